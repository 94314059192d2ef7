/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Private to kernel/wire: what a message is made of. message.c owns it; session.c fills in
 * frames, socket.c sends and receives them.
 */
#ifndef PX_WIRE_PRIVATE_H
#define PX_WIRE_PRIVATE_H

#include "wire/wire.h"

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

#endif
