/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * outbox: messages on their way to the service thread, in one order for all channels.
 *
 * Output text is appended to the last item while that is the same stream of the same request,
 * and leaves when something else stands behind it, when it is large, or when its first byte is
 * STREAM_DELAY_MS old. So a program that prints byte by byte costs a message every few
 * hundredths of a second, and nothing overtakes output that came before it.
 *
 * A program that writes to both streams in turn would cost a message for each change. Once it has
 * made MANY_ITEMS without a pause, text is appended to the earlier item of its stream as long as
 * only the other stream's stands behind that: the order between the two is then kept to
 * STREAM_DELAY_MS, within each it always is.
 *
 * Text is bounded, for each stream of each request (flow.c). What is too much at a time is held:
 * the last of it in a tail, all of it in a file of the spool. Held text goes out, after a line that
 * says how much is missing, when the flood pauses, when the allowance has grown, and when the
 * request ends. So nothing that prints can fill a memory, here or in front ends, and nothing is
 * lost unsaid.
 *
 * A reply to ipyparallel's client waits a moment behind output of the same request, which goes
 * another way: programs look at a result's stdout as soon as it is ready. Clients of this package
 * count, and wait by themselves.
 *
 * Writers of output wait while the outbox holds OUTBOX_FULL bytes: a cell that shows
 * faster than the service thread sends must not fill the memory. Replies and statuses never wait.
 */
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define STREAM_DELAY_MS 25
#define LOOK_SOON_MS 1 /* how long a reply may wait for others to go with it */
#define APART_MS 3     /* for output to be there first: it goes another way than the reply */
#define OUTBOX_FULL (8u << 20)
#define MANY_ITEMS 256      /* of one stream */
#define ITEMS_PAUSE_MS 1000 /* after which they are counted anew */
#define PAUSE_MS 100        /* without more text, a flood is taken to be over */
#define SETTLE_MS 2000      /* for the disk, when a flooding request ends */
#define LOOK_BYTES 4096     /* of a flood between two looks at the clock */

/* A flow that holds text, or did. */
struct px_flood {
    struct px_flood *next;    /* in outbox->floods */
    struct px_parent *parent; /* NULL outside of that list, and for orphans */
    struct px_flow *flow;
    enum px_stream which;
    const char *topic;
    struct px_tail tail;
    int64_t text_ms; /* of the last text, not much earlier */
    size_t unseen;   /* bytes since the clock was looked at */
    struct px_spool *spool;
    struct px_spool_file *file; /* NULL: none */
    bool midline;               /* the text in it ends no line */
};

struct px_item *px_item_create(enum px_channel channel, const char *type, struct px_parent *parent)
{
    struct px_item *item = px_alloc(sizeof *item);
    item->channel = channel;
    item->type = type;
    item->parent = px_parent_ref(parent);
    item->stream = -1;
    return item;
}

void px_item_drop_buffers(struct px_item *item)
{
    for (size_t i = 0; i < item->buffer_count; i++)
        if (item->buffers[i].release)
            item->buffers[i].release(item->buffers[i].hint);
    free(item->buffers);
    item->buffers = NULL;
    item->buffer_count = 0;
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
    px_item_drop_buffers(item);
    free(item);
}

static size_t weight(const struct px_item *item)
{
    size_t bytes = sizeof *item + item->content.size + item->metadata.size;
    for (size_t i = 0; i < item->buffer_count; i++)
        bytes += item->buffers[i].size;
    return bytes;
}

int px_outbox_init(struct px_outbox *outbox, const struct px_output_config *limits,
                   struct px_error *err)
{
    *outbox = (struct px_outbox){.asleep = true, .open = true, .limits = *limits};
    if (limits->spool_mb > 0)
        outbox->spool = px_spool_create((uint64_t)limits->spool_mb << 20);
    pthread_mutex_init(&outbox->lock, NULL);
    pthread_cond_init(&outbox->room, NULL);
    outbox->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (outbox->fd < 0)
        return px_fail(err, PX_EIO, "no eventfd: %s", strerror(errno));
    return 0;
}

void px_outbox_fini(struct px_outbox *outbox)
{
    while (outbox->floods) {
        struct px_flood *flood = outbox->floods;
        outbox->floods = flood->next;
        px_parent_unref(flood->parent);
    }
    for (int i = 0; i < 2; i++)
        px_flood_destroy(outbox->orphans[i].flood);
    while (outbox->first) {
        struct px_item *item = outbox->first;
        outbox->first = item->next;
        px_item_destroy(item);
    }
    px_spool_destroy(outbox->spool);
    if (outbox->fd >= 0)
        close(outbox->fd);
    pthread_cond_destroy(&outbox->room);
    pthread_mutex_destroy(&outbox->lock);
}

/* With the lock held: the reader is to be woken, once the lock is free, or it would wait for it. */
static void ring(struct px_outbox *outbox)
{
    outbox->wake = outbox->wake || outbox->asleep;
    outbox->asleep = false;
}

/* An eventfd write fails only at 2^64 - 1 unread rings. */
static void unlock(struct px_outbox *outbox)
{
    const bool wake = outbox->wake;
    outbox->wake = false;
    pthread_mutex_unlock(&outbox->lock);
    if (wake)
        (void)eventfd_write(outbox->fd, 1);
}

static void wait_for_room(struct px_outbox *outbox)
{
    while (outbox->bytes >= OUTBOX_FULL && outbox->open) {
        if (outbox->asleep)
            (void)eventfd_write(outbox->fd, 1);
        outbox->asleep = false;
        pthread_cond_wait(&outbox->room, &outbox->lock);
    }
}

/* Of one request at a time. */
static void follow_growing(struct px_outbox *outbox, struct px_item *item)
{
    for (size_t i = 0; i < PX_COUNT(outbox->growing); i++)
        if (item->stream < 0 || (outbox->growing[i] && outbox->growing[i]->parent != item->parent))
            outbox->growing[i] = NULL;
    if (item->stream >= 0)
        outbox->growing[item->stream] = item;
}

static void append(struct px_outbox *outbox, struct px_item *item)
{
    if (outbox->first)
        outbox->tail->next = item;
    else
        outbox->first = item;
    outbox->tail = item;
    outbox->bytes += weight(item);
    follow_growing(outbox, item);
}

void px_outbox_post(struct px_outbox *outbox, struct px_item *item, enum px_post how)
{
    pthread_mutex_lock(&outbox->lock);
    if (how == PX_POST_WAIT)
        wait_for_room(outbox);
    append(outbox, item);
    if (how != PX_POST_QUIET && (how != PX_POST_LAZY || px_now_ns() > outbox->look_ns))
        ring(outbox);
    unlock(outbox);
}

/* ---- with the lock held: text ---- */

static void begin_item(struct px_outbox *outbox, struct px_flow *flow, struct px_parent *parent,
                       enum px_stream which, const char *topic)
{
    const int64_t now_ms = px_now_ms();
    struct px_item *item = px_item_create(PX_IOPUB, "stream", parent);
    item->topic = topic;
    item->stream = (int)which;
    item->due_ms = now_ms + STREAM_DELAY_MS;
    if (now_ms > flow->item_ms + ITEMS_PAUSE_MS)
        flow->items = 0;
    if (flow->items < MANY_ITEMS)
        flow->items++;
    item->patient = flow->items == MANY_ITEMS;
    flow->item_ms = now_ms;
    append(outbox, item);
    ring(outbox);
}

/* Whether so much more text of that request goes into the item, which may grow. */
static bool takes(const struct px_outbox *outbox, const struct px_item *item,
                  const struct px_parent *parent, size_t size)
{
    return item && item->parent == parent && (item == outbox->tail || item->patient) &&
           item->content.size + size <= PX_STREAM_MAX;
}

static void show(struct px_outbox *outbox, struct px_flow *flow, struct px_parent *parent,
                 enum px_stream which, const char *topic, const char *text, size_t size)
{
    while (size > 0) {
        const size_t now = px_text_cut(text, size, PX_STREAM_MAX);
        if (!takes(outbox, outbox->growing[which], parent, now))
            begin_item(outbox, flow, parent, which, topic);
        px_buf_append(&outbox->growing[which]->content, text, now);
        outbox->bytes += now;
        text += now;
        size -= now;
        flow->midline = text[-1] != '\n';
    }
}

/* ---- with the lock held: floods ---- */

void px_flood_destroy(struct px_flood *flood)
{
    if (!flood)
        return;
    if (flood->file)
        px_spool_release(flood->spool, flood->file);
    px_tail_fini(&flood->tail);
    free(flood);
}

static bool is_held(const struct px_flow *flow)
{
    return atomic_load_explicit(&flow->held, memory_order_relaxed);
}

static void hold(struct px_outbox *outbox, struct px_flow *flow, struct px_parent *parent,
                 enum px_stream which, const char *topic, struct px_span text)
{
    if (!flow->flood) {
        flow->flood = px_alloc(sizeof *flow->flood);
        *flow->flood =
            (struct px_flood){.flow = flow, .which = which, .topic = topic, .spool = outbox->spool};
    }
    struct px_flood *flood = flow->flood;
    if (!is_held(flow)) {
        if (flood->file && flood->midline) /* its end was shown */
            px_spool_add(outbox->spool, flood->file, "\n", 1);
        atomic_store_explicit(&flow->held, true, memory_order_relaxed);
        flood->parent = px_parent_ref(parent);
        flood->next = outbox->floods;
        outbox->floods = flood;
        flood->text_ms = px_now_ms();
        ring(outbox); /* for the reader to look when the flood pauses */
    }
    if (outbox->spool && !flood->file)
        flood->file = px_spool_open(outbox->spool, which == PX_STDOUT ? "stdout" : "stderr");
    if (flood->file)
        px_spool_add(outbox->spool, flood->file, text.data, text.size);
    px_tail_add(&flood->tail, text.data, text.size);
    flood->midline = text.data[text.size - 1] != '\n';
}

static void put_notice(struct px_outbox *outbox, const struct px_flood *flood, uint64_t bytes,
                       uint64_t lines, struct px_buf *out)
{
    px_buf_printf(out, "%s[phalanx: %.1f %s of output, %llu line%s, left out here: ",
                  flood->flow->midline ? "\n" : "", (double)bytes / (bytes < 1000000 ? 1e3 : 1e6),
                  bytes < 1000000 ? "kB" : "MB", (unsigned long long)lines, lines == 1 ? "" : "s");
    if (flood->file)
        px_spool_describe(outbox->spool, flood->file, out);
    else
        px_buf_text(out, "it was not kept");
    px_buf_text(out, "]\n");
}

/* Shows what is held, and what is not any more; forgets the flood. */
static void release(struct px_outbox *outbox, struct px_flood *flood)
{
    struct px_buf tail = {0}, text = {0};
    uint64_t lines;
    const uint64_t bytes = px_tail_take(&flood->tail, &tail, &lines);
    if (bytes > 0)
        put_notice(outbox, flood, bytes, lines, &text);
    px_buf_append(&text, tail.data, tail.size);
    px_flow_spend(flood->flow, px_flow_cost(text.data, text.size));
    show(outbox, flood->flow, flood->parent, flood->which, flood->topic, text.data, text.size);
    px_buf_fini(&tail);
    px_buf_fini(&text);
    struct px_flood **at = &outbox->floods;
    while (*at != flood)
        at = &(*at)->next;
    *at = flood->next;
    atomic_store_explicit(&flood->flow->held, false, memory_order_relaxed);
    struct px_parent *parent = flood->parent;
    flood->parent = NULL;
    flood->unseen = 0;
    px_parent_unref(parent); /* the flood may be gone now */
}

/* Milliseconds until the flood may be shown: it pauses and a tail is affordable, or two are. */
static int64_t flood_wait(const struct px_outbox *outbox, const struct px_flood *flood,
                          int64_t now_ms)
{
    const int64_t pause_ms = flood->text_ms + PAUSE_MS - now_ms;
    const int64_t tail_ms = px_flow_wait(flood->flow, &outbox->limits, flood->tail.size, now_ms);
    const int64_t paused_ms = pause_ms > tail_ms ? pause_ms : tail_ms;
    const int64_t most_ms = px_flow_wait(flood->flow, &outbox->limits, 2 * PX_TAIL_SIZE, now_ms);
    return paused_ms < most_ms ? paused_ms : most_ms;
}

/* Shows what may be shown; the milliseconds until more may, -1 when there is nothing. */
static int64_t tend_floods(struct px_outbox *outbox, bool all)
{
    int64_t delay_ms = -1;
    const int64_t now_ms = px_now_ms();
    struct px_flood *next;
    for (struct px_flood *flood = outbox->floods; flood; flood = next) {
        next = flood->next;
        const int64_t wait_ms = all ? 0 : flood_wait(outbox, flood, now_ms);
        if (wait_ms <= 0)
            release(outbox, flood);
        else if (delay_ms < 0 || wait_ms < delay_ms)
            delay_ms = wait_ms;
    }
    return delay_ms;
}

/* ---- text ---- */

static bool is_full(struct px_outbox *outbox)
{
    return outbox->bytes >= OUTBOX_FULL ||
           (outbox->floods && outbox->spool && px_spool_full(outbox->spool));
}

/* How much of the text may be shown; a flood that may be shown before it is. */
static size_t admit(struct px_outbox *outbox, struct px_flow *flow, struct px_span text)
{
    struct px_flood *flood = flow->flood;
    if (!is_held(flow)) {
        if (px_flow_try(flow, &outbox->limits, text.data, text.size))
            return text.size;
        return px_flow_admit(flow, &outbox->limits, text.data, text.size, px_now_ms());
    }
    flood->unseen += text.size;
    if (flood->unseen < LOOK_BYTES)
        return 0;
    flood->unseen = 0;
    flood->text_ms = px_now_ms();
    if (flood_wait(outbox, flood, flood->text_ms) > 0)
        return 0;
    release(outbox, flood);
    return px_flow_admit(flow, &outbox->limits, text.data, text.size, px_now_ms());
}

bool px_outbox_stream(struct px_outbox *outbox, struct px_parent *parent, enum px_stream which,
                      const char *topic, struct px_span text, bool must)
{
    struct px_flow *flow = parent ? &parent->flows[which] : &outbox->orphans[which];
    pthread_mutex_lock(&outbox->lock);
    const bool taken = must || !outbox->open || !is_full(outbox);
    if (taken) {
        const size_t now = admit(outbox, flow, text);
        show(outbox, flow, parent, which, topic, text.data, now);
        if (now < text.size)
            hold(outbox, flow, parent, which, topic,
                 (struct px_span){text.data + now, text.size - now});
    }
    unlock(outbox);
    return taken;
}

void px_outbox_wait(struct px_outbox *outbox)
{
    pthread_mutex_lock(&outbox->lock);
    wait_for_room(outbox);
    unlock(outbox);
    if (outbox->spool)
        px_spool_wait(outbox->spool);
}

void px_outbox_finish(struct px_outbox *outbox, struct px_parent *parent)
{
    if (!is_held(&parent->flows[0]) && !is_held(&parent->flows[1]))
        return;
    if (outbox->spool) /* people open the file when they have read of it */
        px_spool_settle(outbox->spool, SETTLE_MS);
    pthread_mutex_lock(&outbox->lock);
    for (int i = 0; i < 2; i++)
        if (is_held(&parent->flows[i]))
            release(outbox, parent->flows[i].flood);
    unlock(outbox);
}

/* ---- taking ---- */

/* Whether the first item may still get text. */
static bool may_grow(const struct px_outbox *outbox, const struct px_item *item)
{
    if (item->stream < 0 || outbox->growing[item->stream] != item)
        return false;
    return item == outbox->tail || (item->patient && item->next == outbox->tail);
}

/* Milliseconds that the first item still waits: for more text, or, a reply, behind output; 0: it is
 * due. */
static int64_t patience(const struct px_outbox *outbox, const struct px_item *item)
{
    if (item->channel != PX_IOPUB && item->parent && item->parent->shown_ms) {
        const int64_t apart_ms = item->parent->shown_ms + APART_MS - px_now_ms();
        return apart_ms > 0 ? apart_ms : 0;
    }
    if (!may_grow(outbox, item) || item->content.size >= PX_STREAM_MAX / 2)
        return 0;
    const int64_t left = item->due_ms - px_now_ms();
    return left > 0 ? left : 0;
}

struct px_item *px_outbox_take(struct px_outbox *outbox, bool all, int64_t *delay_ms)
{
    pthread_mutex_lock(&outbox->lock);
    const int64_t flood_ms = outbox->floods ? tend_floods(outbox, all) : -1;
    struct px_item *item = outbox->first;
    *delay_ms = !item ? -1 : all ? 0 : patience(outbox, item);
    if (*delay_ms != 0) {
        if (flood_ms > 0 && (*delay_ms < 0 || flood_ms < *delay_ms))
            *delay_ms = flood_ms;
        px_outbox_quiet(outbox);
        outbox->asleep = true;
        outbox->look_ns = 0; /* this was the look: what is posted before the next promise rings */
        item = NULL;
    } else {
        outbox->first = item->next;
        if (item->stream >= 0 && outbox->growing[item->stream] == item)
            outbox->growing[item->stream] = NULL;
        const bool was_full = outbox->bytes >= OUTBOX_FULL / 2;
        outbox->bytes -= weight(item);
        if (was_full && outbox->bytes < OUTBOX_FULL / 2)
            pthread_cond_broadcast(&outbox->room);
        item->next = NULL;
    }
    unlock(outbox);
    return item;
}

void px_outbox_promise(struct px_outbox *outbox, int64_t delay_ms)
{
    pthread_mutex_lock(&outbox->lock);
    const bool soon = delay_ms >= 0 && delay_ms <= LOOK_SOON_MS;
    outbox->look_ns = soon ? px_now_ns() + delay_ms * 1000000 : 0;
    unlock(outbox);
}

void px_outbox_quiet(struct px_outbox *outbox)
{
    eventfd_t ignored;
    (void)eventfd_read(outbox->fd, &ignored);
}

void px_outbox_close(struct px_outbox *outbox)
{
    pthread_mutex_lock(&outbox->lock);
    outbox->open = false;
    pthread_cond_broadcast(&outbox->room);
    unlock(outbox);
}
