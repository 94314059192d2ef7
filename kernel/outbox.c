/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * outbox: messages on their way to the service thread, in one order for all channels.
 *
 * Output text is appended to the last item while that is the same stream of the same request,
 * and leaves when something else stands behind it, when it is large, or when its first byte is
 * STREAM_DELAY_MS old. So a program that prints byte by byte costs a message every few
 * hundredths of a second, and nothing overtakes output that came before it.
 *
 * Writers of output wait while the outbox holds OUTBOX_FULL bytes: a cell that prints
 * faster than the network takes must not fill the memory. Replies and statuses never wait.
 */
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define STREAM_DELAY_MS 25
#define OUTBOX_FULL (8u << 20)

struct px_item *px_item_create(enum px_channel channel, const char *type, struct px_parent *parent)
{
    struct px_item *item = px_alloc(sizeof *item);
    item->channel = channel;
    item->type = type;
    item->parent = px_parent_ref(parent);
    item->stream = -1;
    return item;
}

void px_item_destroy(struct px_item *item)
{
    if (!item)
        return;
    free(item->own_topic);
    px_msg_destroy(item->request);
    px_parent_unref(item->parent);
    px_buf_fini(&item->metadata);
    px_buf_fini(&item->content);
    for (size_t i = 0; i < item->buffer_count; i++)
        if (item->buffers[i].release)
            item->buffers[i].release(item->buffers[i].hint);
    free(item->buffers);
    free(item);
}

static size_t weight(const struct px_item *item)
{
    size_t bytes = sizeof *item + item->content.size + item->metadata.size;
    for (size_t i = 0; i < item->buffer_count; i++)
        bytes += item->buffers[i].size;
    return bytes;
}

int px_outbox_init(struct px_outbox *outbox, struct px_error *err)
{
    *outbox = (struct px_outbox){.asleep = true, .open = true};
    pthread_mutex_init(&outbox->lock, NULL);
    pthread_cond_init(&outbox->room, NULL);
    outbox->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (outbox->fd < 0)
        return px_fail(err, PX_EIO, "no eventfd: %s", strerror(errno));
    return 0;
}

void px_outbox_fini(struct px_outbox *outbox)
{
    while (outbox->first) {
        struct px_item *item = outbox->first;
        outbox->first = item->next;
        px_item_destroy(item);
    }
    if (outbox->fd >= 0)
        close(outbox->fd);
    pthread_cond_destroy(&outbox->room);
    pthread_mutex_destroy(&outbox->lock);
}

/* With the lock held. An eventfd write fails only at 2^64 - 1 unread rings. */
static void ring(struct px_outbox *outbox)
{
    if (!outbox->asleep)
        return;
    outbox->asleep = false;
    (void)eventfd_write(outbox->fd, 1);
}

static void wait_for_room(struct px_outbox *outbox)
{
    while (outbox->bytes >= OUTBOX_FULL && outbox->open) {
        ring(outbox);
        pthread_cond_wait(&outbox->room, &outbox->lock);
    }
}

static void append(struct px_outbox *outbox, struct px_item *item)
{
    if (outbox->first)
        outbox->tail->next = item;
    else
        outbox->first = item;
    outbox->tail = item;
    outbox->bytes += weight(item);
}

void px_outbox_post(struct px_outbox *outbox, struct px_item *item, enum px_post how)
{
    pthread_mutex_lock(&outbox->lock);
    if (how == PX_POST_WAIT)
        wait_for_room(outbox);
    append(outbox, item);
    if (how != PX_POST_QUIET)
        ring(outbox);
    pthread_mutex_unlock(&outbox->lock);
}

static bool continues(const struct px_item *tail, struct px_parent *parent, enum px_stream which,
                      size_t size)
{
    return tail->stream == (int)which && tail->parent == parent &&
           tail->content.size + size <= PX_STREAM_MAX;
}

void px_outbox_stream(struct px_outbox *outbox, struct px_parent *parent, enum px_stream which,
                      const char *topic, const char *text, size_t size)
{
    pthread_mutex_lock(&outbox->lock);
    wait_for_room(outbox);
    if (outbox->first && continues(outbox->tail, parent, which, size)) {
        px_buf_append(&outbox->tail->content, text, size);
        outbox->bytes += size;
    } else {
        struct px_item *item = px_item_create(PX_IOPUB, "stream", parent);
        item->topic = topic;
        item->stream = (int)which;
        item->due_ms = px_now_ms() + STREAM_DELAY_MS;
        px_buf_append(&item->content, text, size);
        append(outbox, item);
        ring(outbox);
    }
    pthread_mutex_unlock(&outbox->lock);
}

/* Milliseconds that the first item may still wait for more text; 0: it is due. */
static int64_t patience(const struct px_item *item)
{
    if (item->stream < 0 || item->next || item->content.size >= PX_STREAM_MAX / 2)
        return 0;
    const int64_t left = item->due_ms - px_now_ms();
    return left > 0 ? left : 0;
}

struct px_item *px_outbox_take(struct px_outbox *outbox, bool all, int64_t *delay_ms)
{
    pthread_mutex_lock(&outbox->lock);
    struct px_item *item = outbox->first;
    *delay_ms = !item ? -1 : all ? 0 : patience(item);
    if (*delay_ms != 0) {
        eventfd_t ignored;
        (void)eventfd_read(outbox->fd, &ignored);
        outbox->asleep = true;
        item = NULL;
    } else {
        outbox->first = item->next;
        const bool was_full = outbox->bytes >= OUTBOX_FULL / 2;
        outbox->bytes -= weight(item);
        if (was_full && outbox->bytes < OUTBOX_FULL / 2)
            pthread_cond_broadcast(&outbox->room);
        item->next = NULL;
    }
    pthread_mutex_unlock(&outbox->lock);
    return item;
}

void px_outbox_close(struct px_outbox *outbox)
{
    pthread_mutex_lock(&outbox->lock);
    outbox->open = false;
    pthread_cond_broadcast(&outbox->room);
    pthread_mutex_unlock(&outbox->lock);
}
