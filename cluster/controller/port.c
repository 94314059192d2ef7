/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * port: a bound socket of the traffic thread. What arrives is counted, its frames are checked
 * and its signature verified before anybody looks further; garbage, forgeries and replays are
 * dropped, counted, and logged at most once a second.
 */
#include "controller.h"

#include "protocol.h"

#define DRAIN_TURNS 64
#define SPELL_MS 60000 /* a line of the log for each in which replies are cut */
#define TURN_MS 5 /* then others get theirs: a broadcast to a thousand engines takes some ten */

static enum px_mark mark_of(struct px_span ident)
{
    if (px_span_equal(ident, PX_AGAIN))
        return PX_MARK_AGAIN;
    return px_span_equal(ident, PX_AGAIN_OLD) ? PX_MARK_OLD : PX_MARK_NONE;
}

/* ... | px.again | <IDS|MSG> ...: the mark is taken off. */
static enum px_mark take_mark(const struct px_port *port, struct px_msg *msg)
{
    size_t last = px_msg_ident_count(msg) - 1;
    enum px_mark mark = last < port->least_idents ? PX_MARK_NONE : mark_of(px_msg_ident(msg, last));
    if (mark == PX_MARK_NONE)
        return mark;
    for (; last > 0; last--)
        px_msg_swap(msg, last, last - 1);
    px_msg_drop_front(msg, 1);
    return mark;
}

static bool is_good(struct px_port *port, struct px_msg *msg)
{
    struct px_error err;
    if (px_msg_locate(msg, &err) != 0 || px_msg_ident_count(msg) < port->least_idents) {
        port->malformed++;
        px_log_limited(&port->limiter, PX_WARN, "message-malformed", "socket=%s dropped=%lu",
                       port->name, port->malformed);
        return false;
    }
    port->again = port->least_idents > 0 ? take_mark(port, msg) : PX_MARK_NONE;
    if (px_session_verify(port->session, msg, &err) != 0) {
        if (port->again && err.code == PX_EEXIST)
            return port->owes; /* as is hoped */
        port->forged++;
        px_log_limited(&port->limiter, PX_WARN, "message-unauthorized",
                       "socket=%s dropped=%lu why=\"%s\"", port->name, port->forged, err.text);
        return false;
    }
    return true;
}

static size_t drain(struct px_port *port, int64_t until_ms)
{
    size_t count = 0;
    for (; count < PX_LOOP_BATCH && !port->blocked && px_now_ms() < until_ms; count++) {
        struct px_msg *msg = px_socket_recv(port->socket);
        if (msg == NULL)
            break;
        port->received++;
        port->bytes += px_msg_bytes(msg);
        if (is_good(port, msg))
            port->handle(port->ctx, &msg);
        px_msg_destroy(msg);
    }
    if (port->after != NULL)
        port->after(port->after_ctx);
    return count;
}

size_t px_port_drain(struct px_port *port)
{
    return drain(port, INT64_MAX);
}

void px_port_drain_all(struct px_port *port)
{
    for (int turn = 0; turn < DRAIN_TURNS; turn++) {
        if (px_port_drain(port) < PX_LOOP_BATCH)
            return;
    }
}

static void on_readable(struct px_loop *loop, void *ctx);

static void watch(struct px_port *port)
{
    port->watch = px_loop_socket(port->loop, px_socket_pollable(port->socket), on_readable, port);
}

static void on_paced(struct px_loop *loop, void *ctx)
{
    struct px_port *port = ctx;
    if (port->blocked || (port->link != NULL && px_link_is_full(port->link))) {
        px_loop_timer(loop, PX_PACE_MS, 0, on_paced, port);
        return;
    }
    px_port_drain(port);
    watch(port);
}

static void on_readable(struct px_loop *loop, void *ctx)
{
    struct px_port *port = ctx;
    bool crowded = port->link != NULL && px_link_is_crowded(port->link);
    if (!crowded && !port->blocked) {
        drain(port, px_now_ms() + TURN_MS);
        return;
    }
    if (crowded)
        port->link->paces++;
    px_loop_unwatch(loop, port->watch);
    px_loop_timer(loop, PX_PACE_MS, 0, on_paced, port);
}

void px_port_watch(struct px_port *port, struct px_loop *loop)
{
    px_port_watch_paced(port, loop, NULL);
}

void px_port_watch_paced(struct px_port *port, struct px_loop *loop, struct px_link *link)
{
    port->loop = loop;
    port->link = link;
    watch(port);
}

static void note_cut(struct px_port *port, struct px_span session)
{
    const int64_t now_ms = px_now_ms();
    port->cut++;
    if (port->cut == 1 || now_ms - port->cut_ms > SPELL_MS)
        px_log(PX_WARN, "client-slow",
               "socket=%s session=%.*s why=\"it does not read: replies are left to the database\"",
               port->name, (int)session.size, session.data);
    port->cut_ms = now_ms;
}

enum px_sent px_port_post(struct px_port *port, struct px_msg **msg)
{
    enum px_sent sent = px_socket_post(port->socket, msg);
    if (sent != PX_WOULD_BLOCK)
        return sent;
    note_cut(port, px_scan_member(px_msg_parent(*msg), "session"));
    struct px_msg *cut = px_unread_reply(port->session, *msg);
    px_msg_destroy(*msg);
    *msg = cut;
    return px_socket_post(port->socket, msg);
}

void px_port_send(struct px_port *port, struct px_msg *msg)
{
    if (px_port_post(port, &msg) == PX_SENT)
        return;
    port->unroutable++;
    px_msg_destroy(msg);
}

void px_port_report(const struct px_port *port, const char *side, json_t *report)
{
    json_t *counters = json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "name", port->name, "side", side,
        "messages", (json_int_t)port->received, "bytes", (json_int_t)port->bytes, "malformed",
        (json_int_t)(port->malformed + px_socket_broken(port->socket)), "bad_signatures",
        (json_int_t)port->forged, "oversized", (json_int_t)px_socket_oversized(port->socket),
        "dropped", (json_int_t)port->unroutable, "cut", (json_int_t)port->cut);
    json_array_append_new(json_object_get(report, "sockets"), counters);
}
