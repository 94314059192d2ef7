/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * relay: messages that are passed on as they came.
 *
 *     client  ->  C | E | <IDS|MSG> ...  ->  swap  ->  E | C | <IDS|MSG> ...  ->  engine E
 *     engine  ->  E | C | <IDS|MSG> ...  ->  swap  ->  C | E | <IDS|MSG> ...  ->  client C
 *
 * mux and control are such relays; the hub sees copies of mux. Frames move, none is written
 * anew, so signatures stay right. iopub goes one way, to all clients, and the hub sees all but
 * status messages. "pure" deals tasks to engines in turn, without a swap and without a book.
 */
#include "controller.h"

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
    px_clients_saw(relay->clients, *msg);
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

/* ---- iopub ----------------------------------------------------------------- */

/*
 * What subscribers have not taken yet is held once for all of them: so many messages each
 * (sockets.c), and so many bytes together. libzmq counts no bytes; so large frames are passed on as
 * memory of ours, which it gives back when the last subscriber has been sent them. Beyond the limit
 * what has large frames goes to nobody; small messages are bounded by their number.
 */
#define LARGE_FRAME 4096
#define MOST_HELD ((size_t)256 << 20)

struct held_bytes {
    atomic_size_t bytes, users; /* `users`: frames, and the iopub itself */
};

struct px_iopub {
    struct px_shared shared;
    struct px_port in;
    struct px_port out;
    struct held_bytes *held; /* outlives it while libzmq has frames */
};

static void let_go(struct held_bytes *held)
{
    if (atomic_fetch_sub(&held->users, 1) == 1)
        free(held);
}

struct counted {
    struct held_bytes *held;
    struct px_msg *frame; /* alone */
};

/* On libzmq's thread. */
static void on_frame_sent(void *data, void *hint)
{
    (void)data;
    struct counted *counted = hint;
    atomic_fetch_sub(&counted->held->bytes, px_msg_bytes(counted->frame));
    let_go(counted->held);
    px_msg_destroy(counted->frame);
    free(counted);
}

static void append_counted(struct px_iopub *iopub, struct px_msg *out, const struct px_msg *msg,
                           size_t index)
{
    struct px_span bytes = px_msg_frame(msg, index);
    struct counted *counted = px_alloc(sizeof(*counted));
    counted->held = iopub->held;
    counted->frame = px_msg_create();
    px_msg_append_frames(counted->frame, msg, index, 1);
    atomic_fetch_add(&iopub->held->users, 1);
    atomic_fetch_add(&iopub->held->bytes, bytes.size);
    px_msg_append_new(out, (void *)(uintptr_t)bytes.data, bytes.size, on_frame_sent, counted);
}

static size_t large_bytes(const struct px_msg *msg)
{
    size_t bytes = 0;
    for (size_t i = 0; i < px_msg_count(msg); i++)
        bytes += px_msg_frame(msg, i).size >= LARGE_FRAME ? px_msg_frame(msg, i).size : 0;
    return bytes;
}

/* The same message with its large frames counted. */
static struct px_msg *count_frames(struct px_iopub *iopub, const struct px_msg *msg)
{
    struct px_msg *out = px_msg_create();
    for (size_t i = 0; i < px_msg_count(msg); i++) {
        if (px_msg_frame(msg, i).size >= LARGE_FRAME)
            append_counted(iopub, out, msg, i);
        else
            px_msg_append_frames(out, msg, i, 1);
    }
    return out;
}

/* False when a subscriber goes without. */
static bool publish(struct px_iopub *iopub, struct px_msg **msg)
{
    size_t large = large_bytes(*msg);
    if (large == 0)
        return px_socket_send(iopub->out.socket, msg) == PX_SENT;
    size_t held = atomic_load(&iopub->held->bytes);
    if (held > 0 && held + large > MOST_HELD)
        return false;
    struct px_msg *counted = count_frames(iopub, *msg);
    bool sent = px_socket_send(iopub->out.socket, &counted) == PX_SENT;
    px_msg_destroy(counted);
    return sent;
}

static void on_iopub(void *ctx, struct px_msg **msg)
{
    struct px_iopub *iopub = ctx;
    struct px_header header;
    bool told = px_header_scan(px_msg_header(*msg), &header, NULL) != 0 ||
                px_span_equal(header.msg_type, "status");
    if (!told)
        px_link_note(iopub->shared.link, PX_NOTE_IOPUB, *msg);
    if (publish(iopub, msg))
        return;
    iopub->out.unroutable++;
    px_log_limited(&iopub->out.limiter, PX_WARN, "subscriber-slow", "missed=%lu held_bytes=%zu",
                   iopub->out.unroutable, atomic_load(&iopub->held->bytes));
}

/* Subscriptions arrive as messages on an XPUB; ZeroMQ has already heeded them. */
static void on_subscription(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct px_iopub *iopub = ctx;
    struct px_msg *msg;
    for (int i = 0; i < PX_LOOP_BATCH && (msg = px_socket_recv(iopub->out.socket)) != NULL; i++)
        px_msg_destroy(msg);
}

struct px_iopub *px_iopub_create(const struct px_shared *shared, struct px_socket *in,
                                 struct px_socket *out)
{
    struct px_iopub *iopub = px_alloc(sizeof(*iopub));
    iopub->shared = *shared;
    iopub->in = (struct px_port){.name = "iopub",
                                 .socket = in,
                                 .session = shared->session,
                                 .handle = on_iopub,
                                 .ctx = iopub,
                                 .after = px_shared_after,
                                 .after_ctx = &iopub->shared};
    iopub->out = (struct px_port){.name = "iopub", .socket = out};
    iopub->held = px_alloc(sizeof(*iopub->held));
    atomic_init(&iopub->held->users, 1);
    px_port_watch(&iopub->in, shared->loop);
    px_loop_socket(shared->loop, px_socket_pollable(out), on_subscription, iopub);
    return iopub;
}

void px_iopub_destroy(struct px_iopub *iopub)
{
    if (iopub == NULL)
        return;
    let_go(iopub->held);
    free(iopub);
}

void px_iopub_report(const struct px_iopub *iopub, json_t *report)
{
    px_port_report(&iopub->in, "engines", report);
    px_port_report(&iopub->out, "clients", report);
}
