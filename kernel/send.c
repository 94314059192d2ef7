/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * send: an item of the outbox becomes a signed message and leaves. On the service thread.
 *
 * What the language lends (arrays in buffers) leaves without a copy: the message gives it back when
 * the last frame that refers to it is gone.
 */
#include "core.h"

#include <stdlib.h>
#include <string.h>

struct release {
    void (*fn)(void *hint);
    void *hint;
};

static void release_buffer(void *data, void *hint)
{
    (void)data;
    const struct release release = *(struct release *)hint;
    free(hint);
    release.fn(release.hint);
}

static void append_buffers(struct px_msg *msg, struct px_item *item)
{
    for (size_t i = 0; i < item->buffer_count; i++) {
        struct px_buffer *buffer = &item->buffers[i];
        if (!buffer->release) {
            px_msg_append(msg, buffer->data, buffer->size);
            continue;
        }
        struct release *release = px_alloc(sizeof *release);
        *release = (struct release){buffer->release, buffer->hint};
        buffer->release = NULL; /* the message's business from here on */
        px_msg_append_new(msg, (void *)buffer->data, buffer->size, release_buffer, release);
    }
}

/* Bare text becomes the content of a stream message. */
static void dress_stream(struct px_item *item)
{
    struct px_buf json = {0};
    px_buf_text(&json, item->stream == PX_STDOUT ? "{\"name\": \"stdout\", \"text\": "
                                                 : "{\"name\": \"stderr\", \"text\": ");
    px_buf_json_string(&json, item->content.data, item->content.size);
    px_buf_text(&json, "}");
    px_buf_fini(&item->content);
    item->content = json;
}

#define MOST_BUFFERS (PX_MAX_FRAMES - 64) /* with what is before them */

static bool fits(const struct px_item *item)
{
    bool fits = item->content.size <= PX_MAX_JSON && item->metadata.size <= PX_MAX_JSON &&
                item->buffer_count <= MOST_BUFFERS;
    for (size_t i = 0; i < item->buffer_count && fits; i++)
        fits = item->buffers[i].size <= (size_t)PX_MAX_FRAME;
    return fits;
}

/* Into `out`: what there is of it, and how much of that may be. */
static void say_size(const struct px_item *item, struct px_buf *out)
{
    size_t largest = 0;
    for (size_t i = 0; i < item->buffer_count; i++)
        largest = item->buffers[i].size > largest ? item->buffers[i].size : largest;
    px_buf_printf(out,
                  "the %s is too large: %zu bytes of JSON (at most %u), %zu buffers (%d), the "
                  "largest of %zu bytes (%lld)",
                  item->type, item->content.size + item->metadata.size, PX_MAX_JSON,
                  item->buffer_count, MOST_BUFFERS, largest, (long long)PX_MAX_FRAME);
}

bool px_item_bound(struct px_item *item)
{
    if (fits(item))
        return false;
    const bool output = item->channel == PX_IOPUB;
    struct px_buf why = {0};
    px_buf_text(&why, output ? "[phalanx: " : "");
    say_size(item, &why);
    px_buf_text(&why, output ? "]\n" : "");
    px_item_drop_buffers(item);
    px_buf_clear(&item->content);
    if (item->metadata.size > PX_MAX_JSON)
        px_buf_clear(&item->metadata);
    if (output)
        item->type = "stream";
    px_buf_text(&item->content,
                output ? "{\"name\": \"stderr\", \"text\": "
                       : "{\"status\": \"error\", \"ename\": \"ValueError\", \"evalue\": ");
    px_buf_json_string(&item->content, why.data, why.size);
    px_buf_text(&item->content, output ? "}" : ", \"traceback\": []}");
    px_buf_fini(&why);
    return true;
}

static void show(struct px_kernel *kernel, struct px_parent *parent)
{
    px_parent_unref(kernel->showing);
    kernel->showing = px_parent_ref(parent);
}

/* A front end shows the state that it heard last. What ends elsewhere, while a request of the main
 * shell runs, is followed by that one's busy again. */
static void follow_state(struct px_kernel *kernel, const struct px_item *item)
{
    if (item->mark == PX_BUSY)
        show(kernel, item->parent);
    else if (item->mark == PX_IDLE)
        show(kernel, NULL);
    else if (item->mark == PX_IDLE_ASIDE && kernel->showing)
        px_kernel_send(kernel, px_state_item(kernel, kernel->showing, "busy"));
}

/* Whether the sender of a request counts what is published for it, as clients of this version do.
 */
static bool is_counted(const struct px_parent *parent)
{
    const struct px_span header = {parent->header, parent->size};
    return px_span_equal(px_scan_member(header, "version"), PX_PROTOCOL_VERSION);
}

/* An engine says in a task's reply how much it has published for the task, if it has: relays may
 * lose some of it, and its client can count. To one that cannot, the reply comes later (outbox.c).
 */
static void count_output(const struct px_kernel *kernel, struct px_item *item)
{
    struct px_parent *parent = item->parent;
    struct px_buf *metadata = &item->metadata;
    if (!parent || !kernel->config.stamp_engine)
        return;
    if (item->channel != PX_IOPUB) {
        if (parent->published && metadata->size > 2) {
            metadata->size--;
            px_buf_printf(metadata, ", \"px_outputs\": %u}", parent->published);
        }
    } else if (strcmp(item->type, "status") != 0) {
        parent->published++;
        if (strcmp(item->type, "execute_input") != 0 && !is_counted(parent))
            parent->shown_ms = px_now_ms();
    }
}

struct px_item *px_state_item(const struct px_kernel *kernel, struct px_parent *parent,
                              const char *state)
{
    struct px_item *item = px_item_create(PX_IOPUB, "status", parent);
    item->topic = kernel->topics[PX_TOPIC_STATUS];
    px_buf_texts(&item->content, PX_TEXTS("{\"execution_state\": \"", state, "\"}"));
    return item;
}

void px_kernel_send(struct px_kernel *kernel, struct px_item *item)
{
    if (item->stream >= 0)
        dress_stream(item);
    px_item_bound(item);
    count_output(kernel, item);
    const struct px_span topic = px_span_of(item->own_topic ? item->own_topic : item->topic);
    const struct px_draft draft = {
        .idents = &topic,
        .ident_count = topic.size ? 1 : 0,
        .idents_of = item->request,
        .type = item->type,
        .parent = item->parent ? (struct px_span){item->parent->header, item->parent->size}
                               : (struct px_span){0},
        .metadata =
            item->metadata.size ? px_buf_span(&item->metadata) : px_span_of(kernel->metadata),
        .content = px_buf_span(&item->content),
    };
    struct px_msg *msg = px_session_build(kernel->config.session, &draft);
    append_buffers(msg, item);
    px_log(PX_DEBUG, "message.out", "channel=%d type=%s id=%s", (int)item->channel, item->type,
           px_session_last_id(kernel->config.session));
    if (item->channel == PX_STDIN)
        px_input_sent(kernel, item->question, px_session_last_id(kernel->config.session));
    if (item->channel == PX_IOPUB)
        px_iopub_send_new(kernel, msg);
    else
        kernel->config.send(kernel->config.ctx, item->channel, &msg);
    follow_state(kernel, item);
    px_item_destroy(item);
}
