/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sockets: the one file that talks to libzmq's sockets.
 *
 * Options are set once, here, so that each socket of the tree behaves alike: no high-water
 * mark unless asked for (a relay that drops silently is worse than one that grows, and owners
 * bound what they queue), a linger of a second, a limit on a frame's size. ROUTERs are
 * mandatory (zmq_setsockopt(3), ZMQ_ROUTER_MANDATORY): a message to a peer that is not there
 * comes back to the caller instead of vanishing.
 */
#include "private.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * ZMQ_ZERO_COPY_RECV, which zmq.h shows to users of its draft interface only. By default a small
 * frame is a slice of the 8 KB that were read at once and keeps them alive; whoever holds many
 * small messages then holds many times their size. Frames above 8 KB are read in place anyway.
 */
#define ZERO_COPY_RECV 10
#define CONNECTIONS_AT_ONCE 4096 /* that wait to be accepted: engines start by the thousand */
#define LINGER_MS 1000
/* An attempt to connect; then another begins. Where nothing answers the system repeats its own
 * after 1, 3, 7, ... 63 s, and would find a network that is back as late as that. */
#define CONNECT_MS 3000
/* What comes to a publisher: topics, and the words of a handshake. They come from whoever can
 * connect, and libzmq makes some 35 bytes of each byte of a topic. */
#define MOST_TOPIC 4096
#define FIRST_PORT_TRIES 100
#define BUNDLES_AT_ONCE 16       /* without a message in them; then others get their turn */
#define BEAT_MS 30000           /* rare enough for a thousand engines, and for batteries */
#define LEAST_SILENCE_MS 60000  /* for two beats */
#define MOST_SILENCE_MS 6553000 /* longer than anybody waits, and an int */
#define KEEPALIVE_IDLE_S 60     /* what TCP itself does; a suspended process still answers that */

void *px_context_create(int io_threads)
{
    void *context = zmq_ctx_new();
    if (!context)
        px_die(1, "no ZeroMQ context: %s", zmq_strerror(errno));
    zmq_ctx_set(context, ZMQ_IO_THREADS, io_threads);
    zmq_ctx_set(context, ZMQ_MAX_SOCKETS, 4096);
    zmq_ctx_set(context, ZERO_COPY_RECV, 0);
    return context;
}

void px_context_destroy(void *context)
{
    if (!context)
        return;
    while (zmq_ctx_term(context) < 0 && errno == EINTR)
        continue;
}

static void set_int(struct px_socket *socket, int option, int value)
{
    if (zmq_setsockopt(socket->handle, option, &value, sizeof value) < 0)
        px_die(1, "libzmq refuses option %d: %s", option, zmq_strerror(errno));
}

struct px_socket *px_socket_create(void *context, enum px_socket_type type, struct px_error *err)
{
    static const int types[] = {
        [PX_ROUTER] = ZMQ_ROUTER, [PX_DEALER] = ZMQ_DEALER, [PX_PUB] = ZMQ_PUB,
        [PX_SUB] = ZMQ_SUB,       [PX_XPUB] = ZMQ_XPUB,     [PX_PAIR] = ZMQ_PAIR};
    void *handle = zmq_socket(context, types[type]);
    if (!handle) {
        px_fail(err, PX_EIO, "no socket: %s", zmq_strerror(errno));
        return NULL;
    }
    struct px_socket *socket = px_alloc(sizeof *socket);
    *socket = (struct px_socket){.handle = handle, .context = context, .type = types[type]};
    set_int(socket, ZMQ_LINGER, LINGER_MS);
    set_int(socket, ZMQ_CONNECT_TIMEOUT, CONNECT_MS);
    set_int(socket, ZMQ_TCP_KEEPALIVE, 0);
    set_int(socket, ZMQ_TCP_KEEPALIVE_INTVL, PX_KEEPALIVE_INTERVAL_S);
    set_int(socket, ZMQ_TCP_KEEPALIVE_CNT, PX_KEEPALIVE_PROBES);
    set_int(socket, ZMQ_SNDHWM, 0);
    set_int(socket, ZMQ_RCVHWM, 0);
    const int64_t most = type == PX_XPUB ? MOST_TOPIC : PX_MAX_FRAME;
    zmq_setsockopt(handle, ZMQ_MAXMSGSIZE, &most, sizeof most);
    set_int(socket, ZMQ_BACKLOG, CONNECTIONS_AT_ONCE);
    if (socket->type == ZMQ_ROUTER)
        set_int(socket, ZMQ_ROUTER_MANDATORY, 1);
    if (socket->type == ZMQ_XPUB)
        set_int(socket, ZMQ_XPUB_VERBOSE, 1); /* tell of every subscriber, not of the first */
    return socket;
}

void px_socket_set_largest(struct px_socket *socket, size_t frame_bytes)
{
    const int64_t most = (int64_t)frame_bytes;
    zmq_setsockopt(socket->handle, ZMQ_MAXMSGSIZE, &most, sizeof most);
}

void px_socket_destroy(struct px_socket *socket)
{
    if (!socket)
        return;
    px_socket_flush(socket);
    px_bundles_fini(&socket->bundles);
    px_readers_fini(&socket->readers);
    zmq_close(socket->handle);
    free(socket);
}

void px_socket_set_identity(struct px_socket *socket, const char *id)
{
    if (zmq_setsockopt(socket->handle, ZMQ_ROUTING_ID, id, strlen(id)) < 0)
        px_die(1, "'%.60s' cannot be a routing id: %s", id, zmq_strerror(errno));
}

void px_socket_set_hwm(struct px_socket *socket, int messages)
{
    set_int(socket, ZMQ_SNDHWM, messages);
    set_int(socket, ZMQ_RCVHWM, messages);
}

void px_socket_set_bounded(struct px_socket *socket, int messages)
{
    set_int(socket, ZMQ_SNDHWM, messages);
    set_int(socket, ZMQ_XPUB_NODROP, 1); /* else a message is lost without a word */
    socket->bounded = true;
}

void px_socket_count_unread(struct px_socket *socket, struct px_unread *store)
{
    socket->readers.store = store;
}

void px_socket_set_welcome(struct px_socket *socket, struct px_span frame)
{
    if (zmq_setsockopt(socket->handle, ZMQ_XPUB_WELCOME_MSG, frame.data, frame.size) < 0)
        px_die(1, "libzmq refuses a welcome: %s", zmq_strerror(errno));
}

void px_socket_set_linger(struct px_socket *socket, int ms)
{
    set_int(socket, ZMQ_LINGER, ms);
}

/* The other side is told nothing of the time-out (ZMQ_HEARTBEAT_TTL): libzmq keeps that in 16 bits
 * of milliseconds, so that it takes 66 s for 464 ms, and cuts each connection that is idle for so
 * long after a beat. */
void px_socket_set_heartbeat(struct px_socket *socket, int64_t timeout_ms)
{
    const int64_t bounded = timeout_ms < LEAST_SILENCE_MS  ? LEAST_SILENCE_MS
                            : timeout_ms > MOST_SILENCE_MS ? MOST_SILENCE_MS
                                                           : timeout_ms;
    set_int(socket, ZMQ_TCP_KEEPALIVE, 1);
    set_int(socket, ZMQ_TCP_KEEPALIVE_IDLE, KEEPALIVE_IDLE_S);
    if (timeout_ms == 0)
        return;
    set_int(socket, ZMQ_HEARTBEAT_IVL, BEAT_MS);
    set_int(socket, ZMQ_HEARTBEAT_TIMEOUT, (int)bounded);
}

void px_socket_set_handover(struct px_socket *socket)
{
    set_int(socket, ZMQ_ROUTER_HANDOVER, 1);
}

void px_socket_subscribe(struct px_socket *socket, const char *prefix)
{
    socket->used = true;
    zmq_setsockopt(socket->handle, ZMQ_SUBSCRIBE, prefix, strlen(prefix));
}

void px_socket_curve_server(struct px_socket *socket, const char *secret_key)
{
    set_int(socket, ZMQ_CURVE_SERVER, 1);
    if (zmq_setsockopt(socket->handle, ZMQ_CURVE_SECRETKEY, secret_key, 41) < 0)
        px_die(1, "this libzmq has no CURVE, or the secret key is not Z85");
}

void px_socket_curve_client(struct px_socket *socket, const char *server_key)
{
    char public_key[41], secret_key[41];
    if (zmq_curve_keypair(public_key, secret_key) < 0 ||
        zmq_setsockopt(socket->handle, ZMQ_CURVE_PUBLICKEY, public_key, 41) < 0 ||
        zmq_setsockopt(socket->handle, ZMQ_CURVE_SECRETKEY, secret_key, 41) < 0 ||
        zmq_setsockopt(socket->handle, ZMQ_CURVE_SERVERKEY, server_key, 41) < 0)
        px_die(1, "this libzmq has no CURVE, or the server key is not Z85");
}

int px_curve_keypair(char public_key[PX_CURVE_KEY_SIZE], char secret_key[PX_CURVE_KEY_SIZE],
                     struct px_error *err)
{
    if (zmq_curve_keypair(public_key, secret_key) < 0)
        return px_fail(err, PX_EIO, "this libzmq has no CURVE");
    return 0;
}

int px_curve_public(char public_key[PX_CURVE_KEY_SIZE], const char *secret_key,
                    struct px_error *err)
{
    if (strlen(secret_key) != PX_CURVE_KEY_SIZE - 1 || zmq_curve_public(public_key, secret_key) < 0)
        return px_fail(err, PX_EINVAL, "not a CURVE key: 40 characters of Z85 are wanted");
    return 0;
}

/* ---- addresses ---- */

static int refuse_address(const char *verb, const char *endpoint, struct px_error *err)
{
    const enum px_code code = errno == EADDRINUSE                           ? PX_EEXIST
                              : errno == EINVAL || errno == EPROTONOSUPPORT ? PX_EINVAL
                                                                            : PX_EIO;
    return px_fail(err, code, "cannot %s %s: %s", verb, endpoint, zmq_strerror(errno));
}

/* Names are IPv4's, as for ipyparallel: one of both families would lead to the wrong one. */
static void allow_ipv6(struct px_socket *socket, const char *endpoint)
{
    const int yes = 1;
    if (strncmp(endpoint, "tcp://[", 7) == 0)
        zmq_setsockopt(socket->handle, ZMQ_IPV6, &yes, sizeof yes);
}

int px_socket_bind(struct px_socket *socket, const char *endpoint, struct px_error *err)
{
    socket->used = true;
    allow_ipv6(socket, endpoint);
    return zmq_bind(socket->handle, endpoint) < 0 ? refuse_address("bind", endpoint, err) : 0;
}

static bool is_ipc(const char *interface)
{
    return strncmp(interface, "ipc:", 4) == 0;
}

/* ipc has no wildcard port: try random numbers, as the names only have to differ. libzmq binds to a
 * name that somebody else has bound, too, who then hears nothing any more. */
static int bind_free_ipc(struct px_socket *socket, const char *interface, int *port,
                         struct px_error *err)
{
    for (int i = 0; i < FIRST_PORT_TRIES; i++) {
        uint16_t number;
        px_random(&number, sizeof number);
        *port = 1 + number;
        char endpoint[PX_ENDPOINT_SIZE];
        snprintf(endpoint, sizeof endpoint, "%s-%d", interface, *port);
        if (access(endpoint + strlen("ipc://"), F_OK) == 0)
            px_fail(err, PX_EEXIST, "cannot bind %s: there is one", endpoint);
        else if (px_socket_bind(socket, endpoint, err) == 0)
            return 0;
    }
    *port = 0;
    return -1;
}

int px_socket_bind_port(struct px_socket *socket, const char *interface, int *port,
                        struct px_error *err)
{
    if (*port == 0 && is_ipc(interface))
        return bind_free_ipc(socket, interface, port, err);
    char endpoint[PX_ENDPOINT_SIZE];
    if (*port == 0)
        snprintf(endpoint, sizeof endpoint, "%s:*", interface);
    else
        snprintf(endpoint, sizeof endpoint, "%s%c%d", interface, is_ipc(interface) ? '-' : ':',
                 *port);
    if (px_socket_bind(socket, endpoint, err) < 0)
        return -1;
    if (*port == 0) {
        char bound[PX_ENDPOINT_SIZE];
        size_t size = sizeof bound;
        zmq_getsockopt(socket->handle, ZMQ_LAST_ENDPOINT, bound, &size);
        const char *colon = strrchr(bound, ':');
        *port = colon ? atoi(colon + 1) : 0;
    }
    return 0;
}

int px_socket_connect(struct px_socket *socket, const char *endpoint, struct px_error *err)
{
    socket->used = true;
    allow_ipv6(socket, endpoint);
    return zmq_connect(socket->handle, endpoint) < 0 ? refuse_address("connect to", endpoint, err)
                                                     : 0;
}

/* Reads one event from a monitor (zmq_socket_monitor(3)): a frame with the event, one with the
 * address. */
static int read_event(void *monitor)
{
    zmq_msg_t frame;
    zmq_msg_init(&frame);
    int event = -1;
    if (zmq_msg_recv(&frame, monitor, ZMQ_DONTWAIT) >= 2) {
        uint16_t number;
        memcpy(&number, zmq_msg_data(&frame), sizeof number);
        event = number;
        while (zmq_msg_more(&frame) && zmq_msg_recv(&frame, monitor, ZMQ_DONTWAIT) >= 0)
            continue;
    }
    zmq_msg_close(&frame);
    return event;
}

static bool wait_readable(void *handle, int64_t timeout_ms, bool *interrupted)
{
    zmq_pollitem_t item = {.socket = handle, .events = ZMQ_POLLIN};
    const int ready = zmq_poll(&item, 1, (long)timeout_ms);
    if (ready < 0 && interrupted)
        *interrupted = errno == EINTR;
    return ready > 0;
}

static int wait_handshake(void *monitor, const char *endpoint, int64_t timeout_ms,
                          struct px_error *err)
{
    const int64_t deadline = px_now_ms() + timeout_ms;
    for (;;) {
        const int64_t left = deadline - px_now_ms();
        bool interrupted = false;
        if (left <= 0)
            return px_fail(err, PX_ETIME, "no answer from %s", endpoint);
        if (wait_readable(monitor, left, &interrupted) &&
            read_event(monitor) == ZMQ_EVENT_HANDSHAKE_SUCCEEDED)
            return 0;
        if (interrupted)
            return px_fail(err, PX_EINTR, "interrupted while connecting to %s", endpoint);
    }
}

#define MONITOR_NAME_SIZE 64

/* Has libzmq tell of `events` at an address of this process. */
static int start_monitor(struct px_socket *socket, int events, char name[MONITOR_NAME_SIZE],
                         struct px_error *err)
{
    static atomic_ulong counter;
    snprintf(name, MONITOR_NAME_SIZE, "inproc://px-monitor-%lu", atomic_fetch_add(&counter, 1));
    if (zmq_socket_monitor(socket->handle, name, events) < 0)
        return px_fail(err, PX_EIO, "cannot watch a socket: %s", zmq_strerror(errno));
    return 0;
}

struct px_socket *px_socket_monitor(struct px_socket *socket, struct px_error *err)
{
    char name[MONITOR_NAME_SIZE];
    const int events = ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_HANDSHAKE_SUCCEEDED;
    if (start_monitor(socket, events, name, err) < 0)
        return NULL;
    struct px_socket *monitor = px_socket_create(socket->context, PX_PAIR, err);
    if (monitor && px_socket_connect(monitor, name, err) == 0)
        return monitor;
    zmq_socket_monitor(socket->handle, NULL, 0);
    px_socket_destroy(monitor);
    return NULL;
}

bool px_monitor_says_lost(const struct px_msg *event)
{
    uint16_t number;
    const struct px_span frame = px_msg_frame(event, 0);
    if (frame.size < sizeof number)
        return false;
    memcpy(&number, frame.data, sizeof number);
    return number == ZMQ_EVENT_DISCONNECTED;
}

int px_socket_connect_wait(struct px_socket *socket, const char *endpoint, int64_t timeout_ms,
                           struct px_error *err)
{
    char name[MONITOR_NAME_SIZE];
    if (start_monitor(socket, ZMQ_EVENT_HANDSHAKE_SUCCEEDED, name, err) < 0)
        return -1;
    void *monitor = zmq_socket(socket->context, ZMQ_PAIR);
    int result = -1;
    if (!monitor || zmq_connect(monitor, name) < 0)
        px_fail(err, PX_EIO, "cannot watch a socket: %s", zmq_strerror(errno));
    else if (px_socket_connect(socket, endpoint, err) == 0)
        result = wait_handshake(monitor, endpoint, timeout_ms, err);
    zmq_socket_monitor(socket->handle, NULL, 0);
    if (monitor) {
        const int linger = 0;
        zmq_setsockopt(monitor, ZMQ_LINGER, &linger, sizeof linger);
        zmq_close(monitor);
    }
    return result;
}

/* ---- messages ---- */

static enum px_sent refused(void)
{
    return errno == EHOSTUNREACH ? PX_NO_ROUTE : errno == EAGAIN ? PX_WOULD_BLOCK : PX_SEND_FAILED;
}

static int send_frame(struct px_socket *socket, zmq_msg_t *frame, bool more)
{
    int sent;
    do
        sent = zmq_msg_send(frame, socket->handle, (more ? ZMQ_SNDMORE : 0) | ZMQ_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    return sent;
}

enum px_sent px_socket_send_first(struct px_socket *socket, struct px_msg *msg)
{
    if (!px_readers_have_room(&socket->readers, msg))
        return PX_WOULD_BLOCK;
    socket->used = true;
    const bool more = msg->first + 1 < msg->end;
    return send_frame(socket, &msg->frames[msg->first], more) < 0 ? refused() : PX_SENT;
}

void px_socket_send_rest(struct px_socket *socket, struct px_msg *rest)
{
    socket->used = true;
    px_readers_count(&socket->readers, rest);
    for (size_t i = rest->first; i < rest->end; i++)
        if (send_frame(socket, &rest->frames[i], i + 1 < rest->end) < 0)
            break; /* the peer went away inside the message: libzmq drops the whole of it */
    px_msg_destroy(rest); /* sent frames are empty by now */
}

enum px_sent px_socket_offer(struct px_socket *socket, struct px_msg **msg)
{
    struct px_msg *m = *msg;
    px_socket_flush(socket);
    const enum px_sent sent = px_socket_send_first(socket, m);
    if (sent != PX_SENT)
        return sent;
    px_msg_drop_front(m, 1);
    px_socket_send_rest(socket, m);
    *msg = NULL;
    return PX_SENT;
}

/* To those who have room. */
static enum px_sent send_to_some(struct px_socket *socket, struct px_msg **msg)
{
    set_int(socket, ZMQ_XPUB_NODROP, 0);
    const enum px_sent sent = px_socket_offer(socket, msg);
    set_int(socket, ZMQ_XPUB_NODROP, 1);
    return sent == PX_SENT ? PX_SENT_TO_SOME : sent;
}

enum px_sent px_socket_send(struct px_socket *socket, struct px_msg **msg)
{
    const enum px_sent sent = px_socket_offer(socket, msg);
    return sent == PX_WOULD_BLOCK && socket->bounded ? send_to_some(socket, msg) : sent;
}

/* Reads what is left of a message that is too long. */
static void drain(struct px_socket *socket)
{
    zmq_msg_t frame;
    zmq_msg_init(&frame);
    while (zmq_msg_recv(&frame, socket->handle, ZMQ_DONTWAIT) >= 0 && zmq_msg_more(&frame))
        continue;
    zmq_msg_close(&frame);
    socket->oversized++;
}

static struct px_msg *receive(struct px_socket *socket)
{
    struct px_msg *msg = NULL;
    socket->used = true;
    for (;;) {
        zmq_msg_t frame;
        zmq_msg_init(&frame);
        int got;
        do
            got = zmq_msg_recv(&frame, socket->handle, ZMQ_DONTWAIT);
        while (got < 0 && errno == EINTR);
        if (got < 0) {
            socket->used = errno != EAGAIN; /* libzmq has looked for news before it said so */
            zmq_msg_close(&frame);
            px_msg_destroy(msg); /* non-NULL only if the context ended inside a message */
            return NULL;
        }
        if (!msg)
            msg = px_msg_create();
        const bool more = zmq_msg_more(&frame);
        zmq_msg_t *place = px_msg_new_frame(msg);
        zmq_msg_init(place);
        zmq_msg_move(place, &frame);
        zmq_msg_close(&frame);
        if (!more)
            return msg;
        if (px_msg_count(msg) == PX_MAX_FRAMES) {
            px_msg_destroy(msg);
            msg = NULL;
            drain(socket);
        }
    }
}

struct px_msg *px_socket_recv(struct px_socket *socket)
{
    for (int i = 0; i < BUNDLES_AT_ONCE; i++) {
        struct px_msg *msg = px_bundle_next(socket);
        if (!msg)
            msg = receive(socket);
        if (!msg || !px_bundle_open(socket, msg))
            return msg;
    }
    return NULL; /* the socket is in use: its loop comes back when others have had their turn */
}

unsigned long px_socket_oversized(const struct px_socket *socket)
{
    return socket->oversized;
}

unsigned long px_socket_broken(const struct px_socket *socket)
{
    return socket->broken;
}

bool px_socket_wait(struct px_socket *socket, int64_t timeout_ms)
{
    socket->used = true;
    px_socket_flush(socket);
    return socket->bundles.full || wait_readable(socket->handle, timeout_ms, NULL);
}

struct px_pollable px_socket_pollable(struct px_socket *socket)
{
    return (struct px_pollable){socket->handle, &socket->used, &socket->bundles.full};
}

void *px_socket_raw(struct px_socket *socket)
{
    return socket->handle;
}
