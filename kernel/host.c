/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * host: the services that a kernel offers its language (struct px_interp_host).
 *
 * They may be called from any thread of the language, and only post to the outbox; input alone
 * (input.c) waits. Output that names no request belongs to the one that runs,
 * or ran last: so a thread that prints after its cell has ended is shown under that cell.
 */
#include "core.h"

#include <stdlib.h>
#include <string.h>

/* A new reference to `parent`, or to the request that runs or ran last on this thread's shell. */
static struct px_parent *resolve(struct px_kernel *kernel, struct px_parent *parent)
{
    if (parent)
        return px_parent_ref(parent);
    pthread_mutex_lock(&kernel->lock);
    parent = px_parent_ref(px_shell_here(kernel)->current);
    pthread_mutex_unlock(&kernel->lock);
    return parent;
}

static const char *stream_topic(const struct px_kernel *kernel, enum px_stream which)
{
    return kernel->topics[which == PX_STDOUT ? PX_TOPIC_STDOUT : PX_TOPIC_STDERR];
}

/* A new reference to the request that what C code and children wrote belongs to, whichever thread
 * finds it: the main shell's, unless a subshell alone runs one. */
static struct px_parent *descriptors_parent(struct px_kernel *kernel)
{
    pthread_mutex_lock(&kernel->lock);
    const struct px_shell *shell = &kernel->main;
    if (!shell->running)
        for (shell = kernel->shells; shell && (!shell->running || shell->hidden);)
            shell = shell->next;
    struct px_parent *parent = px_parent_ref(shell ? shell->current : kernel->main.current);
    pthread_mutex_unlock(&kernel->lock);
    return parent;
}

static void on_captured(void *ctx, enum px_stream which, const char *text, size_t size)
{
    struct px_kernel *kernel = ctx;
    struct px_parent *parent = descriptors_parent(kernel);
    (void)px_outbox_stream(&kernel->outbox, parent, which, stream_topic(kernel, which),
                           (struct px_span){text, size}, true);
    px_parent_unref(parent);
}

/* Takes what was written to the descriptors 1 and 2. */
static void drain(struct px_kernel *kernel, bool all)
{
    if (kernel->capture)
        px_capture_drain(kernel->capture, all, on_captured, kernel);
}

int px_kernel_capture_fd(const struct px_kernel *kernel, enum px_stream which)
{
    return kernel->capture ? px_capture_fd(kernel->capture, which) : -1;
}

bool px_kernel_capture(struct px_kernel *kernel)
{
    if (kernel->outbox.spool && px_spool_full(kernel->outbox.spool))
        return false;
    drain(kernel, false);
    return true;
}

void px_kernel_capture_begin(struct px_kernel *kernel)
{
    if (kernel->capture)
        px_capture_begin(kernel->capture);
}

void px_kernel_capture_end(struct px_kernel *kernel)
{
    if (!kernel->capture)
        return;
    px_capture_end(kernel->capture);
    drain(kernel, true);
}

/* Long text goes in pieces, so that a flood waits for the disk between them. */
#define PIECE (1u << 20)

static size_t host_stream(void *ctx, struct px_parent *parent, enum px_stream which,
                          const char *text, size_t size)
{
    struct px_kernel *kernel = ctx;
    size_t done = 0;
    parent = resolve(kernel, parent);
    /* print() ends its lines by themselves: no need to look; and a flood has no order to keep. */
    const bool line_end = size == 1 && text[0] == '\n';
    if (!line_end &&
        !(parent && atomic_load_explicit(&parent->flows[which].held, memory_order_relaxed)))
        drain(kernel, false);
    while (done < size) {
        const size_t now = px_text_cut(text + done, size - done, PIECE);
        if (!px_outbox_stream(&kernel->outbox, parent, which, stream_topic(kernel, which),
                              (struct px_span){text + done, now}, false))
            break;
        done += now;
    }
    px_parent_unref(parent);
    return done;
}

static void host_room(void *ctx)
{
    struct px_kernel *kernel = ctx;
    px_outbox_wait(&kernel->outbox);
}

void px_kernel_settle(struct px_kernel *kernel, struct px_request *request)
{
    /* Half a character that the main shell's cell wrote is not a subshell's to give away. */
    const bool all = request->shell == &kernel->main || !px_kernel_busy(kernel);
    drain(kernel, all);
    px_outbox_finish(&kernel->outbox, request->parent);
}

static const struct publication {
    const char *type;
    int topic; /* -1: comm-<comm_id> */
} publications[PX_PUBLICATION_COUNT] = {
    [PX_DISPLAY_DATA] = {"display_data", PX_TOPIC_DISPLAY},
    [PX_UPDATE_DISPLAY_DATA] = {"update_display_data", PX_TOPIC_DISPLAY},
    [PX_EXECUTE_RESULT] = {"execute_result", PX_TOPIC_RESULT},
    [PX_CLEAR_OUTPUT] = {"clear_output", PX_TOPIC_DISPLAY},
    [PX_ERROR_OUTPUT] = {"error", PX_TOPIC_ERROR},
    [PX_COMM_OPEN] = {"comm_open", -1},
    [PX_COMM_MSG] = {"comm_msg", -1},
    [PX_COMM_CLOSE] = {"comm_close", -1},
    [PX_DATA_MESSAGE] = {"data_message", PX_TOPIC_DATA},
    [PX_DEBUG_EVENT] = {"debug_event", PX_TOPIC_DEBUG},
};

static char *comm_topic(struct px_span content)
{
    const struct px_span id = px_scan_member(content, "comm_id");
    return px_format("comm-%.*s", (int)id.size, id.data);
}

static struct px_buffer *own_buffers(const struct px_buffer *buffers, size_t count)
{
    struct px_buffer *owned = px_alloc(count * sizeof *owned);
    for (size_t i = 0; i < count; i++) {
        owned[i] = buffers[i];
        if (owned[i].release)
            continue;
        char *copy = px_alloc(owned[i].size + 1);
        if (owned[i].size)
            memcpy(copy, buffers[i].data, owned[i].size);
        owned[i] = (struct px_buffer){copy, buffers[i].size, free, copy};
    }
    return owned;
}

/* The language's own members come behind what every message carries. */
static void stamp_metadata(const struct px_kernel *kernel, struct px_span own, struct px_buf *out)
{
    const size_t stamp = strlen(kernel->metadata) - 1; /* without its closing brace */
    px_buf_append(out, kernel->metadata, stamp);
    if (stamp > 1)
        px_buf_text(out, ", ");
    px_buf_append(out, own.data + 1, own.size - 1);
}

static void host_publish(void *ctx, struct px_parent *parent, enum px_publication what,
                         struct px_span content, struct px_span metadata,
                         const struct px_buffer *buffers, size_t buffer_count)
{
    struct px_kernel *kernel = ctx;
    const struct publication *row = &publications[what];
    px_comms_follow(kernel->comms, what, content);
    parent = resolve(kernel, parent);
    if (kernel->capture)
        px_capture_flush(kernel->capture);
    drain(kernel, false);
    if (parent && (what == PX_ERROR_OUTPUT || what == PX_EXECUTE_RESULT))
        px_outbox_finish(&kernel->outbox, parent); /* they come last in a cell */
    struct px_item *item = px_item_create(PX_IOPUB, row->type, parent);
    px_parent_unref(parent);
    if (row->topic >= 0)
        item->topic = kernel->topics[row->topic];
    else
        item->own_topic = comm_topic(content);
    px_buf_append(&item->content, content.data, content.size);
    if (!px_span_equal(metadata, "{}"))
        stamp_metadata(kernel, metadata, &item->metadata);
    if (buffer_count) {
        item->buffers = own_buffers(buffers, buffer_count);
        item->buffer_count = buffer_count;
    }
    px_outbox_post(&kernel->outbox, item, PX_POST_WAIT);
}

static struct px_parent *host_parent_ref(void *ctx)
{
    return resolve(ctx, NULL);
}

static int64_t host_began(void *ctx)
{
    struct px_kernel *kernel = ctx;
    pthread_mutex_lock(&kernel->lock);
    const struct px_shell *here = px_shell_here(kernel);
    const int64_t ns = pthread_equal(here->thread, pthread_self()) ? here->began_ns : 0;
    pthread_mutex_unlock(&kernel->lock);
    return ns;
}

static struct px_span host_parent_header(struct px_parent *parent)
{
    return (struct px_span){parent->header, parent->size};
}

static void release_kept(void *hint)
{
    px_msg_destroy(hint);
}

/* A handle of its own on the frame: the request may go, its bytes stay. They were received for this
 * process alone, and nobody reads them again. */
static bool host_keep_buffer(void *ctx, size_t index, struct px_buffer *out)
{
    const struct px_kernel *kernel = ctx;
    const struct px_msg *msg = kernel->main.serving ? kernel->main.serving->msg : NULL;
    if (!msg || index >= px_msg_buffer_count(msg))
        return false;
    struct px_msg *kept = px_msg_create();
    px_msg_append_frames(kept, msg, px_msg_first_buffer(msg) + index, 1);
    const struct px_span bytes = px_msg_frame(kept, 0);
    *out = (struct px_buffer){bytes.data, bytes.size, release_kept, kept};
    return true;
}

static int host_bind(void *ctx, const char *path, struct px_error *err)
{
    const struct px_kernel_config *config = &((struct px_kernel *)ctx)->config;
    return config->bind(config->ctx, path, err);
}

void px_host_init(struct px_kernel *kernel)
{
    kernel->host = (struct px_interp_host){.ctx = kernel,
                                           .stream = host_stream,
                                           .room = host_room,
                                           .publish = host_publish,
                                           .input = px_host_input,
                                           .parent_ref = host_parent_ref,
                                           .parent_unref = px_parent_unref,
                                           .parent_header = host_parent_header,
                                           .began = host_began,
                                           .keep_buffer = host_keep_buffer,
                                           .bind = kernel->config.bind ? host_bind : NULL,
                                           .begun = kernel->config.begun};
}
