/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * route: messages to engines by their uuid.
 *
 * An engine is registered as soon as its heart has answered, which may be some milliseconds
 * before the connection of another of its sockets stands. A message that finds no such peer is
 * held then, and with it everything later for the same engine, and tried again by a short timer
 * that runs only while something is held. It is given up when the engine goes, when it has
 * waited for PX_ROUTE_PATIENCE_MS, or when too many are held. To an engine that is not
 * registered nothing is held. Of what is given up, but for that of an engine that goes, the owner
 * is told in a turn of its own, so that it may send again.
 */
#include "controller.h"

#include <stdlib.h>
#include <string.h>
#include <uthash.h>
#include <utlist.h>

struct held {
    struct px_msg *msg;
    int64_t until_ms;
    struct held *prev, *next;
};

struct line {
    struct held *first;
    UT_hash_handle hh;
    char uuid[];
};

struct px_route {
    struct px_loop *loop;
    struct px_port *port;
    struct px_traffic *traffic;
    struct line *lines;
    size_t held;
    struct held *given_up;
    struct px_timer *timer, *tell;
    px_unsent_fn *unsent;
    void *ctx;
};

static struct line *find_line(const struct px_route *route, struct px_span uuid)
{
    struct line *line;
    HASH_FIND(hh, route->lines, uuid.data, uuid.size, line);
    return line;
}

static void drop_first(struct px_route *route, struct line *line)
{
    struct held *held = line->first;
    DL_DELETE(line->first, held);
    px_msg_destroy(held->msg);
    free(held);
    route->held--;
}

static void free_line(struct px_route *route, struct line *line)
{
    while (line->first != NULL)
        drop_first(route, line);
    HASH_DEL(route->lines, line);
    free(line);
}

static void on_tell(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct px_route *route = ctx;
    struct held *list = route->given_up, *held, *next;
    route->given_up = NULL;
    route->tell = NULL;
    DL_FOREACH_SAFE(list, held, next) {
        route->unsent(route->ctx, held->msg);
        px_msg_destroy(held->msg);
        free(held);
    }
}

static void give_up(struct px_route *route, struct px_msg *msg)
{
    struct held *held = px_alloc(sizeof(*held));
    held->msg = msg;
    DL_APPEND(route->given_up, held);
    route->port->unroutable++;
    if (route->tell == NULL)
        route->tell = px_loop_timer(route->loop, 0, 0, on_tell, route);
}

/* Sends what can be sent; the line stays while something is left. */
static void try_line(struct px_route *route, struct line *line, int64_t now_ms)
{
    while (line->first != NULL) {
        struct held *held = line->first;
        enum px_sent sent = px_socket_post(route->port->socket, &held->msg);
        if (sent != PX_SENT && held->until_ms > now_ms)
            return;
        if (sent != PX_SENT) {
            give_up(route, held->msg);
            held->msg = NULL;
            px_log_limited(&route->port->limiter, PX_WARN, "engine-unreachable",
                           "socket=%s engine=%s dropped=%lu", route->port->name, line->uuid,
                           route->port->unroutable);
        }
        drop_first(route, line);
    }
    free_line(route, line);
}

static void on_retry(struct px_loop *loop, void *ctx)
{
    struct px_route *route = ctx;
    int64_t now_ms = px_now_ms();
    struct line *line, *next;
    HASH_ITER(hh, route->lines, line, next)
        try_line(route, line, now_ms);
    if (route->lines != NULL)
        return;
    px_loop_cancel(loop, route->timer);
    route->timer = NULL;
}

static void hold(struct px_route *route, struct px_span uuid, struct px_msg *msg)
{
    struct line *line = find_line(route, uuid);
    if (line == NULL) {
        line = px_alloc(sizeof(*line) + uuid.size + 1);
        memcpy(line->uuid, uuid.data, uuid.size);
        HASH_ADD_KEYPTR(hh, route->lines, line->uuid, uuid.size, line);
    }
    struct held *held = px_alloc(sizeof(*held));
    held->msg = msg;
    held->until_ms = px_now_ms() + PX_ROUTE_PATIENCE_MS;
    DL_APPEND(line->first, held);
    route->held++;
    if (route->timer == NULL)
        route->timer =
            px_loop_timer(route->loop, PX_ROUTE_RETRY_MS, PX_ROUTE_RETRY_MS, on_retry, route);
}

void px_route_send(struct px_route *route, struct px_msg *msg)
{
    struct px_span uuid = px_msg_frame(msg, 0);
    bool behind = route->lines != NULL && find_line(route, uuid) != NULL;
    if (!behind && px_socket_post(route->port->socket, &msg) == PX_SENT)
        return;
    if (route->held < PX_ROUTE_MAX_HELD && px_traffic_knows(route->traffic, uuid)) {
        hold(route, uuid, msg);
        return;
    }
    px_log_limited(&route->port->limiter, PX_WARN, "engine-unknown",
                   "socket=%s engine=%.*s dropped=%lu", route->port->name,
                   (int)(uuid.size > 64 ? 64 : uuid.size), uuid.data, route->port->unroutable + 1);
    give_up(route, msg);
}

void px_route_forget(struct px_route *route, struct px_span uuid)
{
    struct line *line = find_line(route, uuid);
    if (line != NULL)
        free_line(route, line);
}

struct px_route *px_route_create(struct px_loop *loop, struct px_port *port,
                                 struct px_traffic *traffic, px_unsent_fn *unsent, void *ctx)
{
    struct px_route *route = px_alloc(sizeof(*route));
    route->loop = loop;
    route->port = port;
    route->traffic = traffic;
    route->unsent = unsent;
    route->ctx = ctx;
    return route;
}

void px_route_destroy(struct px_route *route)
{
    if (route == NULL)
        return;
    struct line *line, *next;
    HASH_ITER(hh, route->lines, line, next)
        free_line(route, line);
    struct held *held, *after;
    DL_FOREACH_SAFE(route->given_up, held, after) {
        px_msg_destroy(held->msg);
        free(held);
    }
    px_loop_cancel(route->loop, route->timer);
    px_loop_cancel(route->loop, route->tell);
    free(route);
}
