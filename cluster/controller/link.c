/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * link: the two queues between the traffic thread and the hub.
 *
 * Notes are gathered in batches, posted when a batch is full or once a millisecond, so that the
 * hub is woken once for many messages and seldom for few. A note holds its message by reference.
 * When the hub falls behind, requests of clients wait in their sockets (port.c). Beyond the limits,
 * copies of output are dropped and counted, and replies keep their headers alone, so that a task
 * that has ended is known to have; never the traffic itself, nor what hearts say.
 */
#include "controller.h"

#include <stdlib.h>
#include <string.h>

static void fini_note(struct px_note *note)
{
    px_msg_destroy(note->msg);
    free(note->text);
}

static void drop_notes(void *item)
{
    struct px_notes *notes = item;
    for (size_t i = 0; i < notes->count; i++)
        fini_note(&notes->items[i]);
    free(notes);
}

void px_order_free(struct px_order *order)
{
    px_msg_destroy(order->msg);
    free(order->cause);
    free(order->running);
    free(order->text);
    free(order);
}

static void drop_order(void *item)
{
    px_order_free(item);
}

int px_link_init(struct px_link *link, struct px_error *err)
{
    *link = (struct px_link){0};
    link->to_hub = px_doorbell_create(err);
    link->to_traffic = link->to_hub ? px_doorbell_create(err) : NULL;
    return link->to_traffic ? 0 : -1;
}

void px_link_fini(struct px_link *link)
{
    if (link->batch != NULL)
        drop_notes(link->batch);
    link->batch = NULL;
    if (link->to_hub != NULL)
        px_doorbell_destroy(link->to_hub, drop_notes);
    if (link->to_traffic != NULL)
        px_doorbell_destroy(link->to_traffic, drop_order);
}

static void post(struct px_link *link)
{
    struct px_notes *batch = link->batch;
    size_t bytes = 0;
    for (size_t i = 0; i < batch->count; i++)
        bytes += batch->items[i].bytes;
    atomic_fetch_add(&link->backlog, batch->count);
    atomic_fetch_add(&link->backlog_bytes, bytes);
    link->batch = NULL;
    px_doorbell_post(link->to_hub, batch);
    atomic_store(&link->gathering, false); /* not before the hub can see it */
}

static void on_timer(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct px_link *link = ctx;
    link->timer = NULL;
    link->posted_ms = px_now_ms();
    if (link->batch != NULL)
        post(link);
}

void px_link_flush(struct px_link *link)
{
    if (link->batch == NULL)
        return;
    int64_t now_ms = px_now_ms();
    if (now_ms != link->posted_ms) {
        link->posted_ms = now_ms;
        post(link);
    } else if (link->timer == NULL && link->loop != NULL) {
        link->timer = px_loop_timer(link->loop, 1, 0, on_timer, link);
    }
}

void px_link_attach(struct px_link *link, struct px_loop *loop)
{
    if (link->loop != NULL)
        px_loop_cancel(link->loop, link->timer);
    link->timer = NULL;
    link->loop = loop;
    if (loop == NULL && link->batch != NULL)
        post(link); /* the last */
}

/* A place for one more note. */
static struct px_note *next_note(struct px_link *link, enum px_note_kind kind)
{
    if (link->batch == NULL) {
        link->batch = px_alloc(sizeof(*link->batch));
        atomic_store(&link->gathering, true);
    }
    struct px_note *note = &link->batch->items[link->batch->count++];
    note->kind = kind;
    return note;
}

static void post_if_full(struct px_link *link)
{
    if (link->batch->count == PX_NOTES_BATCH)
        post(link);
}

bool px_link_is_gathering(struct px_link *link)
{
    return atomic_load(&link->gathering);
}

bool px_link_is_crowded(struct px_link *link)
{
    return atomic_load_explicit(&link->backlog, memory_order_relaxed) > PX_PACED_BACKLOG;
}

/* By this fraction of the limits. */
static bool is_behind(struct px_link *link, size_t fraction)
{
    return atomic_load_explicit(&link->backlog, memory_order_relaxed) >=
               PX_MAX_BACKLOG / fraction ||
           atomic_load_explicit(&link->backlog_bytes, memory_order_relaxed) >=
               PX_MAX_BACKLOG_BYTES / fraction;
}

bool px_link_is_full(struct px_link *link)
{
    return is_behind(link, 2);
}

/* The message without its buffers, with an empty object for its content. */
static struct px_msg *without_body(const struct px_msg *msg)
{
    struct px_msg *out = px_msg_create();
    px_msg_append_frames(out, msg, 0, px_msg_first_buffer(msg));
    if (px_msg_locate(out, NULL) == 0)
        px_msg_replace(out, px_msg_first_buffer(out) - 1, "{}", 2);
    return out;
}

static void note_loss(struct px_link *link)
{
    link->lost++;
    px_log_limited(&link->limiter, PX_WARN, "hub-behind", "copies_dropped=%lu", link->lost);
}

void px_link_note(struct px_link *link, enum px_note_kind kind, const struct px_msg *msg)
{
    bool reply = kind == PX_NOTE_MUX_REPLY || kind == PX_NOTE_TASK_REPLY;
    bool cut = (reply || kind == PX_NOTE_IOPUB) && is_behind(link, 1);
    if (cut)
        note_loss(link);
    if (cut && !reply)
        return;
    struct px_note *note = next_note(link, kind);
    note->msg = cut ? without_body(msg) : px_msg_copy(msg);
    note->bytes = px_msg_bytes(note->msg);
    note->no_body = cut;
    post_if_full(link);
}

void px_link_note_text(struct px_link *link, enum px_note_kind kind, struct px_span first,
                       struct px_span second)
{
    struct px_note *note = next_note(link, kind);
    note->text = px_alloc(first.size + second.size + 2);
    memcpy(note->text, first.data, first.size);
    if (second.size > 0)
        memcpy(note->text + first.size + 1, second.data, second.size);
    post_if_full(link);
}

void px_link_answer(struct px_link *link, enum px_note_kind kind, struct px_msg *msg, char *text)
{
    struct px_note *note = next_note(link, kind);
    note->msg = msg;
    note->text = text;
    post(link);
}

void px_link_order(struct px_link *link, const struct px_order *order)
{
    struct px_order *copy = px_alloc(sizeof(*copy));
    *copy = *order;
    px_doorbell_post(link->to_traffic, copy);
}

void px_link_notes_done(struct px_link *link, struct px_notes *notes)
{
    size_t bytes = 0;
    for (size_t i = 0; i < notes->count; i++)
        bytes += notes->items[i].bytes;
    atomic_fetch_sub(&link->backlog, notes->count);
    atomic_fetch_sub(&link->backlog_bytes, bytes);
    drop_notes(notes);
}
