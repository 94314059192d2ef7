/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * iopub: what engines publish goes to all clients, and to the hub all but status messages.
 *
 * What subscribers have not taken yet is held once for all of them: so many messages each
 * (sockets.c), and so many bytes together. libzmq counts no bytes; so large frames are passed on as
 * memory of ours, which it gives back when the last subscriber has been sent them.
 *
 * When a subscriber has no room, the message waits for him, and all that engines publish waits in
 * their sockets: a burst is over in a moment. Whoever makes no room within PATIENCE_MS does without
 * until he has read half of what is held for him, for which nobody waits. What finds too many bytes
 * held goes to nobody then, and the next such is not waited with; small messages are bounded by
 * their number. A client of ours says what it missed (client/file.c).
 */
#include "controller.h"

#include "protocol.h"

#include <stdlib.h>
#include <string.h>

#define LARGE_FRAME 4096
#define MOST_HELD ((size_t)256 << 20)
#define PATIENCE_MS 3000 /* who reads makes room for thousands at a time, now and then */
#define RETRY_MS 5

struct held_bytes {
    atomic_size_t bytes, users; /* `users`: frames, and the iopub itself */
};

struct px_iopub {
    struct px_shared shared;
    struct px_port in;
    struct px_port out;
    struct held_bytes *held; /* outlives it while libzmq has frames */
    struct px_msg *late;     /* for which there is no room until `late_ms`; NULL: none */
    int64_t late_ms;
    struct px_timer *retry; /* while there is one */
    bool hopeless;          /* too many bytes are held, and somebody does not take them */
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

static bool is_crowded(const struct px_iopub *iopub, size_t large)
{
    size_t held = atomic_load(&iopub->held->bytes);
    return large > 0 && held > 0 && held + large > MOST_HELD;
}

/* `send` takes the message, or leaves it when a subscriber has no room. */
static enum px_sent pass(struct px_iopub *iopub, struct px_msg **msg,
                         enum px_sent (*send)(struct px_socket *, struct px_msg **))
{
    size_t large = large_bytes(*msg);
    if (is_crowded(iopub, large))
        return PX_WOULD_BLOCK;
    iopub->hopeless = iopub->hopeless && large == 0;
    if (large == 0)
        return send(iopub->out.socket, msg);
    struct px_msg *counted = count_frames(iopub, *msg);
    enum px_sent sent = send(iopub->out.socket, &counted);
    if (sent != PX_WOULD_BLOCK) {
        px_msg_destroy(*msg);
        *msg = NULL;
    }
    px_msg_destroy(counted);
    return sent;
}

static void note_missed(struct px_iopub *iopub)
{
    iopub->out.unroutable++;
    px_log_limited(&iopub->out.limiter, PX_WARN, "subscriber-slow", "missed=%lu held_bytes=%zu",
                   iopub->out.unroutable, atomic_load(&iopub->held->bytes));
}

/* He had his time. Takes the message. */
static void pass_to_some(struct px_iopub *iopub, struct px_msg *msg)
{
    enum px_sent sent = pass(iopub, &msg, px_socket_send);
    iopub->hopeless = iopub->hopeless || sent == PX_WOULD_BLOCK;
    if (sent != PX_SENT)
        note_missed(iopub);
    px_msg_destroy(msg);
}

static void on_retry(struct px_loop *loop, void *ctx)
{
    struct px_iopub *iopub = ctx;
    if (pass(iopub, &iopub->late, px_socket_offer) == PX_WOULD_BLOCK &&
        px_now_ms() < iopub->late_ms)
        return;
    if (iopub->late != NULL)
        pass_to_some(iopub, iopub->late);
    iopub->late = NULL;
    iopub->in.blocked = false;
    px_loop_cancel(loop, iopub->retry);
    iopub->retry = NULL;
}

/* Takes the message. */
static void wait_for_room(struct px_iopub *iopub, struct px_msg *msg)
{
    iopub->late = msg;
    iopub->late_ms = px_now_ms() + PATIENCE_MS;
    iopub->in.blocked = true;
    iopub->retry = px_loop_timer(iopub->shared.loop, RETRY_MS, RETRY_MS, on_retry, iopub);
}

static void on_iopub(void *ctx, struct px_msg **msg)
{
    struct px_iopub *iopub = ctx;
    struct px_header header;
    bool told = px_header_scan(px_msg_header(*msg), &header, NULL) != 0 ||
                px_span_equal(header.msg_type, "status");
    if (!told)
        px_link_note(iopub->shared.link, PX_NOTE_IOPUB, *msg);
    if (pass(iopub, msg, px_socket_offer) != PX_WOULD_BLOCK)
        return;
    if (iopub->hopeless && is_crowded(iopub, large_bytes(*msg))) {
        note_missed(iopub);
        return;
    }
    wait_for_room(iopub, *msg);
    *msg = NULL;
}

/* A 1 and the topic. It comes from whoever can connect: the hub remembers it, and no more. */
static void note_listener(struct px_iopub *iopub, struct px_span frame)
{
    static const char prefix[] = "\1" PX_LISTENER;
    size_t size = sizeof(prefix) - 1;
    if (frame.size < size || frame.size > PX_LISTENER_SIZE || memcmp(frame.data, prefix, size) != 0)
        return;
    px_link_note_text(iopub->shared.link, PX_NOTE_LISTENER,
                      (struct px_span){frame.data + 1, frame.size - 1}, (struct px_span){0});
}

/* Subscriptions arrive as messages on an XPUB; ZeroMQ has already heeded them. */
static void on_subscription(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct px_iopub *iopub = ctx;
    struct px_msg *msg;
    for (int i = 0; i < PX_LOOP_BATCH && (msg = px_socket_recv(iopub->out.socket)) != NULL; i++) {
        note_listener(iopub, px_msg_frame(msg, 0));
        px_msg_destroy(msg);
    }
    px_link_flush(iopub->shared.link);
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
    px_loop_cancel(iopub->shared.loop, iopub->retry);
    px_msg_destroy(iopub->late);
    let_go(iopub->held);
    free(iopub);
}

void px_iopub_report(const struct px_iopub *iopub, json_t *report)
{
    px_port_report(&iopub->in, "engines", report);
    px_port_report(&iopub->out, "clients", report);
}
