/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * clients: replies to clients, also to those that were cut off or had a controller that was killed.
 *
 * A client's socket has no name of its own: the ROUTER gives each connection a number, and it is
 * by that number that engines and tasks know who is to have a reply. A client that connects again
 * has another number. It says for which session it speaks with what it sends, and so does a reply:
 * one to a number that has gone goes to the connection that spoke last for its session. Where that
 * one has sent something again (PX_AGAIN) the earlier ones are dead, though this end may not know
 * yet: a reply to one of these goes to it, too.
 *
 * LIMIT: of connections that live beside each other under one session, which no client of ours or
 * ipyparallel's has, the others' replies would go to the one that sends something again.
 *
 * After a restart of the controller a client says nothing while it only waits. But ZeroMQ gives
 * numbers in turn, so that those of all connections since the start are known. So a reply to a
 * number from before goes
 *
 *   to the connection that has sent something for this session since, or
 *   to each connection that has not yet said whose it is: the one that waits takes the reply, any
 *   other passes over it, as clients do with replies that they do not know.
 *
 * Connections come back one after the other; for some seconds after the restart such a reply is
 * kept, and new ones get it as they come. Later, all are back who will be.
 */
#include "controller.h"

#include "protocol.h"

#include <stdlib.h>
#include <string.h>
#include <uthash.h>
#include <utlist.h>

#define RETRY_MS 20
#define GAP 64           /* numbers in a row that may belong to nobody any more */
#define MAX_HELD 100000u /* replies that wait */
#define MAX_SEEN 100000u /* connections that are known by their session: the last ones */
#define NUMBER_BYTES 5   /* of a routing id that ZeroMQ chose: 0 and a big-endian number */

struct seen {
    UT_hash_handle hh;         /* by number */
    UT_hash_handle hh_session; /* the last of a session */
    size_t number_size;
    bool returned; /* has sent what an earlier connection had sent */
    char text[];   /* both, one after the other */
};

struct held {
    struct px_msg *msg;
    size_t given; /* how many of `peers` were offered it */
    bool sent;
    struct held *prev, *next_held;
};

struct px_clients {
    struct px_loop *loop;
    struct px_port *port;
    int64_t return_ms; /* until then connections come back; 0: no controller was before this one */
    uint32_t next;     /* the number that is looked at next */
    uint32_t *peers;   /* numbers of connections that have been found */
    size_t peer_count, peer_size;
    struct seen *seen, *by_session;
    bool some_returned;
    struct held *held;
    size_t held_count;
    struct px_timer *timer;
};

static struct seen *find_seen(const struct px_clients *clients, struct px_span number)
{
    struct seen *seen;
    HASH_FIND(hh, clients->seen, number.data, number.size, seen);
    return seen;
}

static struct seen *find_session(const struct px_clients *clients, struct px_span session)
{
    struct seen *seen;
    HASH_FIND(hh_session, clients->by_session, session.data, session.size, seen);
    return seen;
}

static void on_retry(struct px_loop *loop, void *ctx);

/* What an engine replies to such a name is for us: others would lose requests, or engines. */
static bool refuse_name(struct px_clients *clients, struct px_span name)
{
    const size_t size = sizeof(PX_NAMES) - 1;
    struct px_port *port = clients->port;
    if (name.size < size || memcmp(name.data, PX_NAMES, size) != 0)
        return false;
    port->malformed++;
    px_log_limited(&port->limiter, PX_WARN, "client-refused", "socket=%s name=%.*s dropped=%lu",
                   port->name, (int)name.size, name.data, port->malformed);
    return true;
}

static struct px_span session_of(const struct seen *seen)
{
    return (struct px_span){seen->text + seen->number_size, seen->hh_session.keylen};
}

static void forget_seen(struct px_clients *clients, struct seen *seen)
{
    if (find_session(clients, session_of(seen)) == seen)
        HASH_DELETE(hh_session, clients->by_session, seen);
    HASH_DEL(clients->seen, seen);
    free(seen);
}

static void note_client(struct px_clients *clients, const struct px_msg *msg)
{
    struct px_header header;
    struct px_span number = px_msg_ident(msg, 0);
    if (find_seen(clients, number) != NULL ||
        px_header_scan(px_msg_header(msg), &header, NULL) != 0)
        return;
    if (HASH_COUNT(clients->seen) >= MAX_SEEN)
        forget_seen(clients, clients->seen);
    struct seen *seen = px_alloc(sizeof(*seen) + number.size + header.session.size);
    seen->number_size = number.size;
    memcpy(seen->text, number.data, number.size);
    memcpy(seen->text + number.size, header.session.data, header.session.size);
    HASH_ADD_KEYPTR(hh, clients->seen, seen->text, number.size, seen);
    struct seen *before = find_session(clients, header.session);
    if (before != NULL)
        HASH_DELETE(hh_session, clients->by_session, before);
    HASH_ADD_KEYPTR(hh_session, clients->by_session, seen->text + number.size, header.session.size,
                    seen);
    if (clients->held != NULL) /* what was kept comes before the answer to this */
        on_retry(clients->loop, clients);
}

bool px_clients_saw(struct px_clients *clients, const struct px_msg *msg)
{
    if (refuse_name(clients, px_msg_ident(msg, 0)))
        return false;
    note_client(clients, msg);
    struct seen *seen = clients->port->again ? find_seen(clients, px_msg_ident(msg, 0)) : NULL;
    if (seen != NULL)
        seen->returned = clients->some_returned = true;
    return true;
}

static bool send_to(struct px_clients *clients, const struct px_msg *msg, struct px_span number)
{
    struct px_msg *copy = px_msg_copy(msg);
    px_msg_replace(copy, 0, number.data, number.size);
    bool sent = px_socket_send(clients->port->socket, &copy) == PX_SENT;
    px_msg_destroy(copy);
    return sent;
}

static struct px_span number_text(uint32_t number, char text[NUMBER_BYTES])
{
    text[0] = 0;
    for (int i = 1; i < NUMBER_BYTES; i++)
        text[i] = (char)(number >> (8 * (NUMBER_BYTES - 1 - i)));
    return (struct px_span){text, NUMBER_BYTES};
}

static void add_peer(struct px_clients *clients, uint32_t number)
{
    if (clients->peer_count == clients->peer_size) {
        clients->peer_size = clients->peer_size * 2 + 16;
        clients->peers = px_realloc(clients->peers, clients->peer_size * sizeof(*clients->peers));
    }
    clients->peers[clients->peer_count++] = number;
}

/* To connections that have not said whose they are. */
static void offer(struct px_clients *clients, struct held *held)
{
    char text[NUMBER_BYTES];
    for (; held->given < clients->peer_count; held->given++) {
        struct px_span number = number_text(clients->peers[held->given], text);
        if (find_seen(clients, number) == NULL)
            held->sent |= send_to(clients, held->msg, number);
    }
}

/*
 * Whoever has a number gets the reply; that is how one finds out that there is somebody. Only a
 * reply that all who were found before have been offered may be used so.
 */
static void explore(struct px_clients *clients, struct held *held)
{
    char text[NUMBER_BYTES];
    uint32_t misses = 0;
    while (misses < GAP && clients->peer_count < MAX_SEEN) {
        uint32_t at = clients->next + misses;
        struct px_span number = number_text(at, text);
        bool known = find_seen(clients, number) != NULL;
        if (!known && !send_to(clients, held->msg, number)) {
            misses++;
            continue;
        }
        held->sent |= !known;
        add_peer(clients, at);
        held->given = clients->peer_count;
        clients->next = at + 1;
        misses = 0;
    }
}

/* The connection that spoke last for whose reply it is; NULL: none is known. */
static const struct seen *find_owner(const struct px_clients *clients, const struct px_msg *reply)
{
    return find_session(clients, px_scan_member(px_msg_parent(reply), "session"));
}

static bool send_to_owner(struct px_clients *clients, const struct px_msg *msg)
{
    const struct seen *owner = find_owner(clients, msg);
    return owner != NULL &&
           send_to(clients, msg, (struct px_span){owner->text, owner->number_size});
}

/* True when there is nothing more to be done for this reply. */
static bool try_held(struct px_clients *clients, struct held *held)
{
    if (find_owner(clients, held->msg) != NULL) {
        held->sent |= send_to_owner(clients, held->msg);
        return true;
    }
    offer(clients, held);
    if (held == clients->held) /* the oldest one only: what it finds serves all */
        explore(clients, held);
    return px_now_ms() >= clients->return_ms;
}

static void drop_held(struct px_clients *clients, struct held *held)
{
    clients->port->unroutable += !held->sent;
    DL_DELETE2(clients->held, held, prev, next_held);
    clients->held_count--;
    px_msg_destroy(held->msg);
    free(held);
}

static void on_retry(struct px_loop *loop, void *ctx)
{
    struct px_clients *clients = ctx;
    for (struct held *held = clients->held, *next; held != NULL; held = next) {
        next = held->next_held;
        if (try_held(clients, held))
            drop_held(clients, held);
    }
    if (clients->held != NULL)
        return;
    px_loop_cancel(loop, clients->timer);
    clients->timer = NULL;
}

static void hold(struct px_clients *clients, struct px_msg *msg)
{
    struct held *held = px_alloc(sizeof(*held));
    held->msg = msg;
    DL_APPEND2(clients->held, held, prev, next_held);
    clients->held_count++;
    if (try_held(clients, held))
        drop_held(clients, held);
    else if (clients->timer == NULL)
        clients->timer = px_loop_timer(clients->loop, RETRY_MS, RETRY_MS, on_retry, clients);
}

/* From a connection that its client has given up to the one in its place. */
static void readdress(const struct px_clients *clients, struct px_msg *msg)
{
    const struct seen *to =
        clients->some_returned ? find_seen(clients, px_msg_frame(msg, 0)) : NULL;
    const struct seen *last = to ? find_session(clients, session_of(to)) : NULL;
    if (last != NULL && last != to && last->returned)
        px_msg_replace(msg, 0, last->text, last->number_size);
}

void px_clients_send(struct px_clients *clients, struct px_msg *msg)
{
    readdress(clients, msg);
    if (px_port_post(clients->port, &msg) == PX_SENT)
        return;
    if (px_span_equal(px_msg_frame(msg, 0), PX_RESUBMIT)) {
        px_msg_destroy(msg);
        return;
    }
    /* One that was here has gone. Who never was is from before a restart. */
    const bool was_here = find_seen(clients, px_msg_frame(msg, 0)) != NULL;
    if (!was_here && clients->return_ms != 0 && clients->held_count < MAX_HELD) {
        hold(clients, msg);
        return;
    }
    clients->port->unroutable += !(was_here && send_to_owner(clients, msg));
    px_msg_destroy(msg);
}

struct px_clients *px_clients_create(const struct px_shared *shared, struct px_port *port,
                                     uint32_t first)
{
    struct px_clients *clients = px_alloc(sizeof(*clients));
    clients->loop = shared->loop;
    clients->port = port;
    clients->return_ms = shared->return_ms;
    clients->next = first;
    return clients;
}

void px_clients_destroy(struct px_clients *clients)
{
    if (clients == NULL)
        return;
    px_loop_cancel(clients->loop, clients->timer);
    while (clients->held != NULL)
        drop_held(clients, clients->held);
    free(clients->peers);
    struct seen *seen, *next;
    HASH_ITER(hh, clients->seen, seen, next)
        forget_seen(clients, seen);
    free(clients);
}
