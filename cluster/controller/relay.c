/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * relay: messages that are passed on as they came.
 *
 *     client  ->  C | E | <IDS|MSG> ...  ->  swap  ->  E | C | <IDS|MSG> ...  ->  engine E
 *     engine  ->  E | C | <IDS|MSG> ...  ->  swap  ->  C | E | <IDS|MSG> ...  ->  client C
 *
 * mux and control are such relays; the hub sees copies of mux. Frames move, none is written
 * anew, so signatures stay right. "pure" deals tasks to engines in turn, without a swap and without a
 * book.
 */
#include "controller.h"
#include "protocol.h"

#include <stdlib.h>
#include <utlist.h>

struct px_relay {
    struct px_shared shared;
    struct px_port in, out;
    struct px_route *route;
    struct px_clients *clients;
    bool noted;
};

static void on_request(void *ctx, struct px_msg **msg)
{
    struct px_relay *relay = ctx;
    if (!px_clients_saw(relay->clients, *msg))
        return;
    px_msg_swap(*msg, 0, 1);
    if (relay->noted)
        px_link_note(relay->shared.link, relay->in.again ? PX_NOTE_MUX_AGAIN : PX_NOTE_MUX_REQUEST,
                     *msg);
    px_route_send(relay->route, *msg);
    *msg = NULL;
}

static void on_reply(void *ctx, struct px_msg **msg)
{
    struct px_relay *relay = ctx;
    if (px_is_probe(*msg)) {
        px_link_note_text(relay->shared.link, PX_NOTE_PROBED, px_msg_ident(*msg, 0),
                          px_msg_ident(*msg, 1));
        return;
    }
    px_msg_swap(*msg, 0, 1);
    if (relay->out.again) {
        bool old = relay->out.again == PX_MARK_OLD && !px_is_ours(px_msg_parent(*msg));
        px_link_note(relay->shared.link, old ? PX_NOTE_MUX_REPLY : PX_NOTE_MUX_LATE, *msg);
        return;
    }
    if (relay->noted)
        px_link_note(relay->shared.link, PX_NOTE_MUX_REPLY, *msg);
    px_clients_send(relay->clients, *msg);
    *msg = NULL;
}

/* E | C | a request that did not get there: whoever has sent it waits for an answer. */
static void on_unsent(void *ctx, const struct px_msg *msg)
{
    struct px_relay *relay = ctx;
    if (px_msg_ident_count(msg) < 2 || px_is_probe(msg))
        return;
    struct px_span engine = px_msg_ident(msg, 0);
    char *evalue = px_say_unsent(engine);
    px_relay_answer(relay, px_error_reply(relay->shared.session, px_msg_ident(msg, 1), engine,
                                          px_msg_header(msg), "EngineError", evalue));
    px_link_flush(relay->shared.link);
    free(evalue);
}

void px_shared_after(void *ctx)
{
    const struct px_shared *shared = ctx;
    px_link_flush(shared->link);
}

struct px_relay *px_relay_create(const struct px_shared *shared, const char *name,
                                 struct px_socket *in, struct px_socket *out, uint32_t first,
                                 bool noted)
{
    struct px_relay *relay = px_alloc(sizeof(*relay));
    relay->shared = *shared;
    relay->noted = noted;
    relay->in = (struct px_port){.name = name,
                                 .socket = in,
                                 .session = shared->session,
                                 .least_idents = 2,
                                 .handle = on_request,
                                 .ctx = relay,
                                 .after = px_shared_after,
                                 .after_ctx = &relay->shared};
    relay->out = relay->in;
    relay->out.socket = out;
    relay->out.handle = on_reply;
    relay->route = px_route_create(shared->loop, &relay->out, shared->traffic, on_unsent, relay);
    relay->in.owes = noted; /* the hub has the replies */
    relay->clients = px_clients_create(shared, &relay->in, first);
    px_port_watch_paced(&relay->in, shared->loop, noted ? shared->link : NULL);
    px_port_watch(&relay->out, shared->loop);
    return relay;
}

void px_relay_destroy(struct px_relay *relay)
{
    if (relay == NULL)
        return;
    px_route_destroy(relay->route);
    px_clients_destroy(relay->clients);
    free(relay);
}

void px_relay_drain(struct px_relay *relay)
{
    px_port_drain_all(&relay->out);
}

void px_relay_probe(struct px_relay *relay, struct px_span uuid, unsigned number)
{
    px_route_send(relay->route, px_probe_build(relay->shared.session, uuid, number));
}

void px_relay_retire(struct px_relay *relay, struct px_span uuid)
{
    struct px_draft draft = {
        .idents = &uuid, .ident_count = 1, .type = PX_RETIRE_REQUEST, .content = PX_SPAN("{}")};
    px_route_send(relay->route, px_session_build(relay->shared.session, &draft));
}

void px_relay_answer(struct px_relay *relay, struct px_msg *msg)
{
    if (relay->noted)
        px_link_note(relay->shared.link, PX_NOTE_MUX_REPLY, msg);
    px_clients_send(relay->clients, msg);
}

void px_relay_engine_down(struct px_relay *relay, struct px_span uuid)
{
    px_route_forget(relay->route, uuid);
}

void px_relay_report(const struct px_relay *relay, json_t *report)
{
    px_port_report(&relay->in, "clients", report);
    px_port_report(&relay->out, "engines", report);
}

/* ---- pure ------------------------------------------------------------------ */

struct px_pure {
    struct px_shared shared;
    struct px_port in, out;
    /* The rest of a batch, while no engine has room; further requests wait in their socket. */
    struct waiting *waiting;
    struct px_timer *retry;
};

struct waiting {
    struct px_msg *msg;
    struct waiting *prev, *next;
};

static void drop_waiting(struct px_pure *pure)
{
    struct waiting *first = pure->waiting;
    DL_DELETE(pure->waiting, first);
    px_msg_destroy(first->msg);
    free(first);
}

static void on_pure_retry(struct px_loop *loop, void *ctx)
{
    struct px_pure *pure = ctx;
    while (pure->waiting != NULL &&
           px_socket_send(pure->out.socket, &pure->waiting->msg) == PX_SENT)
        drop_waiting(pure);
    if (pure->waiting != NULL)
        return;
    px_loop_cancel(loop, pure->retry);
    pure->retry = NULL;
    pure->in.blocked = false;
}

void px_pure_submit(struct px_pure *pure, struct px_msg *msg)
{
    px_link_note(pure->shared.link, PX_NOTE_TASK_REQUEST, msg);
    if (pure->waiting == NULL && px_socket_send(pure->out.socket, &msg) == PX_SENT)
        return;
    struct waiting *last = px_alloc(sizeof(*last));
    last->msg = msg;
    DL_APPEND(pure->waiting, last);
    pure->in.blocked = true;
    if (pure->retry == NULL)
        pure->retry = px_loop_timer(pure->shared.loop, PX_ROUTE_RETRY_MS, PX_ROUTE_RETRY_MS,
                                    on_pure_retry, pure);
}

static void on_pure_request(void *ctx, struct px_msg **msg)
{
    const struct px_pure *pure = ctx;
    if (pure->in.again) /* nobody knows which engine has had it */
        return;
    px_pure_submit(ctx, *msg);
    *msg = NULL;
}

static void on_pure_reply(void *ctx, struct px_msg **msg)
{
    struct px_pure *pure = ctx;
    px_link_note(pure->shared.link, PX_NOTE_TASK_REPLY, *msg);
    px_port_send(&pure->in, *msg);
    *msg = NULL;
}

struct px_pure *px_pure_create(const struct px_shared *shared, struct px_socket *in,
                               struct px_socket *out)
{
    struct px_pure *pure = px_alloc(sizeof(*pure));
    pure->shared = *shared;
    pure->in = (struct px_port){.name = "task",
                                .socket = in,
                                .session = shared->session,
                                .least_idents = 1,
                                .handle = on_pure_request,
                                .ctx = pure,
                                .after = px_shared_after,
                                .after_ctx = &pure->shared};
    pure->out = pure->in;
    pure->out.socket = out;
    pure->out.handle = on_pure_reply;
    px_port_watch_paced(&pure->in, shared->loop, shared->link);
    px_port_watch(&pure->out, shared->loop);
    return pure;
}

void px_pure_destroy(struct px_pure *pure)
{
    if (pure == NULL)
        return;
    while (pure->waiting != NULL)
        drop_waiting(pure);
    px_loop_cancel(pure->shared.loop, pure->retry);
    free(pure);
}

void px_pure_report(const struct px_pure *pure, json_t *report)
{
    px_port_report(&pure->in, "clients", report);
    px_port_report(&pure->out, "engines", report);
}
