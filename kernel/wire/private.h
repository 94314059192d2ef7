/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Private to kernel/wire: what a message is made of, and a socket. message.c owns the first;
 * session.c fills in frames, socket.c sends and receives them, bundle.c several messages at once,
 * unread.c counts what was sent, cut.c ends connections.
 */
#ifndef PX_WIRE_PRIVATE_H
#define PX_WIRE_PRIVATE_H

#include "wire/wire.h"

#include <uthash.h>
#include <zmq.h>

#define PX_INLINE_FRAMES 10 /* an apply reply through a relay has nine */
#define PX_NOT_LOCATED SIZE_MAX

struct px_msg {
    size_t first; /* frames before it were dropped from the front and are closed */
    size_t end;   /* one past the last */
    size_t capacity;
    size_t delimiter; /* index into frames, or PX_NOT_LOCATED */
    zmq_msg_t *frames;
    zmq_msg_t fixed[PX_INLINE_FRAMES + 2]; /* two spare in front, for identities */
};

/* Makes room for one frame at the end and returns it, not initialised. */
zmq_msg_t *px_msg_new_frame(struct px_msg *msg);

/* ---- bundles (bundle.c) ---- */

struct px_bundles {
    bool taken;            /* what peers send is unpacked */
    struct px_peer *peers; /* that take them */
    /* in */
    struct px_msg *in;   /* the one that is being taken apart, or NULL */
    struct px_span rest; /* of it */
    bool full;           /* there is one: libzmq does not know of what is left */
    /* out: what is gathered, for one peer */
    struct px_buf to;
    size_t count;
    struct px_msg *alone; /* the first message, until there is another */
    struct px_buf out;
};

/* ---- what peers have not read (unread.c) ---- */

struct px_readers {
    struct px_unread *store; /* NULL: nothing is counted */
    struct px_reader *table; /* by identity */
    struct px_reader *now;   /* whose message is being sent */
    size_t sweep_at;
};

/* What tells our connections from others (cut.c). */
#define PX_KEEPALIVE_INTERVAL_S 20
#define PX_KEEPALIVE_PROBES 4

struct px_socket {
    void *handle;
    void *context;
    int type; /* libzmq's */
    unsigned long oversized, broken;
    bool bounded; /* px_socket_set_bounded */
    bool used;    /* since its loop last asked: a call may have taken its descriptor's edge */
    struct px_bundles bundles;
    struct px_readers readers;
};

/* Whether the peer in frame 0 may be sent this; what is sent next is his. */
bool px_readers_have_room(struct px_readers *readers, const struct px_msg *msg);
/* Counts what follows the identity, until libzmq has sent it. */
void px_readers_count(struct px_readers *readers, struct px_msg *rest);
void px_readers_fini(struct px_readers *readers);

/* Takes a message that is a bundle, to be taken apart. */
bool px_bundle_open(struct px_socket *socket, struct px_msg *msg);
/* The next message of the bundle that is open; NULL: none. */
struct px_msg *px_bundle_next(struct px_socket *socket);
void px_bundles_fini(struct px_bundles *bundles);
/* The first frame of a message of several, then, in any case, the rest of it: the two make one
 * message. The first is taken out of `msg`; `rest` is taken. */
PX_MUST_USE enum px_sent px_socket_send_first(struct px_socket *socket, struct px_msg *msg);
void px_socket_send_rest(struct px_socket *socket, struct px_msg *rest);

#endif
