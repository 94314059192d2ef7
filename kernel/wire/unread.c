/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * unread: how much of what a ROUTER has sent its peers have not taken yet.
 *
 * libzmq queues without end for a peer that does not read, or counts messages, not bytes. So the
 * last frame of each message is passed on as memory of ours: libzmq gives that back when the
 * message has left for the system, or when its peer has gone.
 *
 *     store      bytes of all, of several sockets; the most that they should be
 *     reader     bytes of one peer; there is none for a peer that was sent nothing of late
 *
 * Both outlive their owners while libzmq has frames.
 */
#include "private.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* So much anybody may leave unread, however much others do. */
#define FAIR_BYTES ((size_t)1 << 20)
#define SMALL_BYTES 4096u /* of such there may be more: they say what is lacking */
#define MORE_BYTES ((size_t)256 << 20)
#define FRAME_BYTES 100u /* what a frame costs beside its bytes */
#define LEAST_SWEEP 64u

struct px_unread {
    atomic_size_t bytes, users; /* `users`: readers, and the owner */
    size_t most;
};

struct px_reader {
    atomic_size_t bytes, users; /* `users`: frames, and the socket */
    struct px_unread *store;
    UT_hash_handle hh;
    char id[];
};

struct last_frame {
    struct px_reader *reader;
    size_t bytes; /* of the message */
    zmq_msg_t frame;
};

struct px_unread *px_unread_create(size_t most_bytes)
{
    struct px_unread *store = px_alloc(sizeof *store);
    atomic_init(&store->users, 1);
    store->most = most_bytes;
    return store;
}

void px_unread_destroy(struct px_unread *store)
{
    if (store && atomic_fetch_sub(&store->users, 1) == 1)
        free(store);
}

size_t px_unread_bytes(const struct px_unread *store)
{
    return atomic_load(&store->bytes);
}

/* ---- readers ---- */

static void let_go(struct px_reader *reader)
{
    if (atomic_fetch_sub(&reader->users, 1) != 1)
        return;
    px_unread_destroy(reader->store);
    free(reader);
}

static void drop_reader(struct px_readers *readers, struct px_reader *reader)
{
    HASH_DEL(readers->table, reader);
    let_go(reader);
}

/* Those who have read all are nobody in particular, and many of them have gone. */
static void sweep(struct px_readers *readers)
{
    struct px_reader *reader, *next;
    HASH_ITER(hh, readers->table, reader, next) {
        if (atomic_load(&reader->bytes) == 0)
            drop_reader(readers, reader);
    }
    readers->sweep_at = 2 * HASH_COUNT(readers->table) + LEAST_SWEEP;
}

static struct px_reader *want_reader(struct px_readers *readers, struct px_span id)
{
    struct px_reader *reader;
    HASH_FIND(hh, readers->table, id.data, id.size, reader);
    if (reader)
        return reader;
    if (HASH_COUNT(readers->table) >= readers->sweep_at)
        sweep(readers);
    reader = px_alloc(sizeof *reader + id.size + 1);
    atomic_init(&reader->users, 1);
    reader->store = readers->store;
    atomic_fetch_add(&readers->store->users, 1);
    memcpy(reader->id, id.data, id.size);
    HASH_ADD_KEYPTR(hh, readers->table, reader->id, id.size, reader);
    return reader;
}

void px_readers_fini(struct px_readers *readers)
{
    struct px_reader *reader, *next;
    HASH_ITER(hh, readers->table, reader, next)
        drop_reader(readers, reader);
}

/* ---- sending ---- */

static size_t cost_of(const struct px_msg *msg)
{
    return px_msg_bytes(msg) + FRAME_BYTES * px_msg_count(msg);
}

bool px_readers_have_room(struct px_readers *readers, const struct px_msg *msg)
{
    const struct px_unread *store = readers->store;
    if (!store)
        return true;
    readers->now = want_reader(readers, px_msg_frame(msg, 0));
    const size_t size = px_msg_bytes(msg);
    const size_t most = store->most + (size <= SMALL_BYTES ? MORE_BYTES : 0);
    return atomic_load(&readers->now->bytes) < FAIR_BYTES ||
           atomic_load(&store->bytes) + cost_of(msg) <= most;
}

/* On libzmq's thread. */
static void on_taken(void *data, void *hint)
{
    (void)data;
    struct last_frame *last = hint;
    atomic_fetch_sub(&last->reader->bytes, last->bytes);
    atomic_fetch_sub(&last->reader->store->bytes, last->bytes);
    let_go(last->reader);
    zmq_msg_close(&last->frame);
    free(last);
}

void px_readers_count(struct px_readers *readers, struct px_msg *rest)
{
    if (!readers->store || px_msg_count(rest) == 0)
        return;
    zmq_msg_t *frame = &rest->frames[rest->end - 1];
    struct last_frame *last = px_alloc(sizeof *last);
    last->reader = readers->now;
    last->bytes = cost_of(rest);
    atomic_fetch_add(&last->reader->users, 1);
    atomic_fetch_add(&last->reader->bytes, last->bytes);
    atomic_fetch_add(&last->reader->store->bytes, last->bytes);
    zmq_msg_init(&last->frame);
    zmq_msg_move(&last->frame, frame);
    if (zmq_msg_init_data(frame, zmq_msg_data(&last->frame), zmq_msg_size(&last->frame), on_taken,
                          last) < 0)
        px_die(1, "out of memory");
}
