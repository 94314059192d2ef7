/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * bundle: several small messages to one peer, sent as one.
 *
 *     identity              on a ROUTER
 *     <PX|BUNDLE>
 *     messages              each: count, count sizes, the frames; numbers of 4 bytes, the most
 *                           significant first
 *
 * libzmq takes some six microseconds of processor time for a message of nine frames, at both ends
 * together, whatever is in it, and reads and writes 8 KB at a time. In a bundle a message costs a
 * third of that. Nobody above a socket sees bundles: messages are signed, verified, counted and
 * handled one by one.
 *
 * A bundle goes only to whoever is known to take them, which is whoever has sent one; an empty one
 * is a greeting. It is told by other means that the first greeting will be understood
 * (cluster/protocol.h, PX_BUNDLES).
 *
 * What is posted is gathered until the peer changes, something is sent at once, or the owner says
 * so, at the latest before its loop sleeps. On a ROUTER the identity is sent first, by which libzmq
 * says whether there is such a peer; a message that stays alone follows as it is.
 */
#include "private.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#define MARK "<PX|BUNDLE>"
#define SMALL_BYTES 4096u   /* a larger message goes by itself */
#define SMALL_FRAMES 32u    /* and so does one of more frames */
#define BUNDLE_BYTES 32768u /* then it goes */
#define PEERS_MOST 16384u   /* that are known */

struct px_peer {
    UT_hash_handle hh;
    char id[];
};

/* ---- messages as bytes: pure ---- */

static void put_number(struct px_buf *out, size_t number)
{
    const uint32_t bytes = htonl((uint32_t)number);
    px_buf_append(out, (const char *)&bytes, sizeof bytes);
}

static bool take_number(struct px_span *bytes, size_t *number)
{
    uint32_t taken;
    if (bytes->size < sizeof taken)
        return false;
    memcpy(&taken, bytes->data, sizeof taken);
    *number = ntohl(taken);
    *bytes = (struct px_span){bytes->data + sizeof taken, bytes->size - sizeof taken};
    return true;
}

void px_msg_pack(const struct px_msg *msg, struct px_buf *out)
{
    const size_t count = px_msg_count(msg);
    put_number(out, count);
    for (size_t i = 0; i < count; i++)
        put_number(out, px_msg_frame(msg, i).size);
    for (size_t i = 0; i < count; i++) {
        const struct px_span frame = px_msg_frame(msg, i);
        if (frame.size)
            px_buf_append(out, frame.data, frame.size);
    }
}

struct px_msg *px_msg_unpack(struct px_span *bytes)
{
    struct px_span sizes = *bytes;
    size_t count, size;
    if (!take_number(&sizes, &count) || count == 0 || count > PX_MAX_FRAMES ||
        sizes.size / sizeof(uint32_t) < count)
        return NULL;
    struct px_span rest = {sizes.data + count * sizeof(uint32_t),
                           sizes.size - count * sizeof(uint32_t)};
    struct px_msg *msg = px_msg_create();
    for (size_t i = 0; i < count; i++) {
        if (!take_number(&sizes, &size) || size > rest.size) {
            px_msg_destroy(msg);
            return NULL;
        }
        px_msg_append(msg, rest.data, size);
        rest = (struct px_span){rest.data + size, rest.size - size};
    }
    *bytes = rest;
    return msg;
}

/* ---- peers ---- */

static struct px_peer *find_peer(const struct px_bundles *bundles, struct px_span id)
{
    struct px_peer *peer;
    HASH_FIND(hh, bundles->peers, id.data, id.size, peer);
    return peer;
}

static void forget(struct px_bundles *bundles, struct px_peer *peer)
{
    HASH_DEL(bundles->peers, peer);
    free(peer);
}

/* The oldest makes room: most that were met so long ago have gone, and one that has not is known
 * again when it sends its next. */
static void add_peer(struct px_bundles *bundles, struct px_span id)
{
    if (find_peer(bundles, id))
        return;
    if (HASH_COUNT(bundles->peers) >= PEERS_MOST)
        forget(bundles, bundles->peers);
    struct px_peer *peer = px_alloc(sizeof *peer + id.size + 1);
    memcpy(peer->id, id.data, id.size);
    HASH_ADD_KEYPTR(hh, bundles->peers, peer->id, id.size, peer);
}

static void forget_peer(struct px_bundles *bundles, struct px_span id)
{
    struct px_peer *peer = find_peer(bundles, id);
    if (peer)
        forget(bundles, peer);
}

static size_t ident_count(const struct px_socket *socket)
{
    return socket->type == ZMQ_ROUTER ? 1 : 0;
}

/* Whom a message is for; a socket that is no ROUTER has one peer, without a name. */
static struct px_span peer_of(const struct px_socket *socket, const struct px_msg *msg)
{
    return ident_count(socket) ? px_msg_frame(msg, 0) : PX_SPAN("");
}

/* ---- in ---- */

void px_socket_take_bundles(struct px_socket *socket)
{
    socket->bundles.taken = true;
}

bool px_bundle_open(struct px_socket *socket, struct px_msg *msg)
{
    struct px_bundles *bundles = &socket->bundles;
    const size_t idents = ident_count(socket);
    if (!bundles->taken || px_msg_count(msg) != idents + 2 ||
        !px_span_equal(px_msg_frame(msg, idents), MARK))
        return false;
    add_peer(bundles, peer_of(socket, msg));
    bundles->in = msg;
    bundles->rest = px_msg_frame(msg, idents + 1);
    bundles->full = true; /* px_socket_recv() may leave it for later as it is */
    return true;
}

struct px_msg *px_bundle_next(struct px_socket *socket)
{
    struct px_bundles *bundles = &socket->bundles;
    if (!bundles->in)
        return NULL;
    socket->used = true; /* a loop is to look for the rest, of which no descriptor tells */
    struct px_msg *msg = bundles->rest.size ? px_msg_unpack(&bundles->rest) : NULL;
    const struct px_span peer = peer_of(socket, bundles->in);
    if (msg && ident_count(socket))
        px_msg_prepend(msg, peer.data, peer.size);
    if (!msg && bundles->rest.size)
        socket->broken++; /* it does not say where the next message begins */
    if (!msg || !bundles->rest.size) {
        px_msg_destroy(bundles->in);
        bundles->in = NULL;
    }
    bundles->full = bundles->in != NULL;
    return msg;
}

/* ---- out ---- */

static bool suits(const struct px_socket *socket, const struct px_msg *msg)
{
    return socket->bundles.peers && find_peer(&socket->bundles, peer_of(socket, msg)) &&
           px_msg_count(msg) <= SMALL_FRAMES && px_msg_bytes(msg) <= SMALL_BYTES;
}

static bool is_open_for(const struct px_bundles *bundles, struct px_span peer)
{
    return bundles->count && peer.size == bundles->to.size &&
           memcmp(peer.data, bundles->to.data, peer.size) == 0;
}

static void add(struct px_bundles *bundles, struct px_msg *msg)
{
    if (bundles->count++ == 0) {
        bundles->alone = msg;
        return;
    }
    if (bundles->alone)
        px_msg_pack(bundles->alone, &bundles->out);
    px_msg_destroy(bundles->alone);
    bundles->alone = NULL;
    px_msg_pack(msg, &bundles->out);
    px_msg_destroy(msg);
}

/* Begins one with the identity of its peer. */
static enum px_sent begin(struct px_socket *socket, struct px_msg *msg)
{
    struct px_bundles *bundles = &socket->bundles;
    const struct px_span peer = peer_of(socket, msg);
    px_buf_clear(&bundles->to);
    px_buf_append(&bundles->to, peer.data, peer.size);
    const enum px_sent sent = ident_count(socket) ? px_socket_send_first(socket, msg) : PX_SENT;
    if (sent == PX_NO_ROUTE)
        forget_peer(bundles, px_buf_span(&bundles->to));
    return sent;
}

enum px_sent px_socket_post(struct px_socket *socket, struct px_msg **msg)
{
    struct px_bundles *bundles = &socket->bundles;
    if (!suits(socket, *msg))
        return px_socket_send(socket, msg);
    socket->used = true;
    if (!is_open_for(bundles, peer_of(socket, *msg))) {
        px_socket_flush(socket);
        const enum px_sent begun = begin(socket, *msg);
        if (begun != PX_SENT)
            return begun;
    }
    if (ident_count(socket))
        px_msg_drop_front(*msg, 1);
    add(bundles, *msg);
    *msg = NULL;
    if (bundles->out.size >= BUNDLE_BYTES)
        px_socket_flush(socket);
    return PX_SENT;
}

void px_socket_flush(struct px_socket *socket)
{
    struct px_bundles *bundles = &socket->bundles;
    if (!bundles->count)
        return;
    struct px_msg *msg = bundles->alone;
    if (!msg) {
        msg = px_msg_create();
        px_msg_append(msg, MARK, sizeof MARK - 1);
        px_msg_append(msg, bundles->out.data, bundles->out.size);
    }
    bundles->alone = NULL;
    bundles->count = 0;
    px_buf_clear(&bundles->out);
    px_socket_send_rest(socket, msg);
}

void px_socket_greet(struct px_socket *socket, const char *peer)
{
    struct px_msg *msg = px_msg_create();
    add_peer(&socket->bundles, px_span_of(peer));
    if (ident_count(socket))
        px_msg_append(msg, peer, strlen(peer));
    px_msg_append(msg, MARK, sizeof MARK - 1);
    px_msg_append(msg, "", 0);
    if (px_socket_send(socket, &msg) != PX_SENT)
        px_msg_destroy(msg);
}

void px_socket_forget_greeting(struct px_socket *socket, const char *peer)
{
    forget_peer(&socket->bundles, px_span_of(peer));
}

void px_bundles_fini(struct px_bundles *bundles)
{
    struct px_peer *peer, *next;
    HASH_ITER(hh, bundles->peers, peer, next)
        forget(bundles, peer);
    px_msg_destroy(bundles->in);
    px_msg_destroy(bundles->alone);
    px_buf_fini(&bundles->out);
    px_buf_fini(&bundles->to);
}
