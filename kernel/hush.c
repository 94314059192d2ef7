/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hush: a request that published nothing is answered by its reply alone, if its sender asked so.
 *
 * The sender of many small tasks gets three messages for each, of which two say busy and idle, and
 * every relay on the way carries all three. Metadata "px_quiet": true says that it can do without.
 * Then busy is withheld until the next item of the outbox is seen. If that is the reply, busy and
 * idle are left out and the reply's metadata says "px_quiet": true, so that nobody waits for them.
 * If it is output, or if there is none yet (the request takes its time), all goes out as ever.
 *
 * Service thread, but for px_hush_asked.
 */
#include "core.h"

#include <string.h>

bool px_hush_asked(const struct px_request *request)
{
    static const char *const key = "px_quiet";
    struct px_span value;
    return px_scan(px_request_metadata(request), &key, &value, 1) == 0 && px_scan_true(value);
}

/* The reply's metadata, {...}, with one member more. */
static void mark_reply(struct px_item *reply)
{
    static const char member[] = ", \"px_quiet\": true}";
    struct px_buf *metadata = &reply->metadata;
    metadata->size--;
    px_buf_append(metadata, member, sizeof member - 1);
}

static bool answers(const struct px_item *item, const struct px_item *busy)
{
    const struct px_buf *metadata = &item->metadata;
    return item->channel != PX_IOPUB && item->parent == busy->parent && metadata->size > 2 &&
           metadata->data[metadata->size - 1] == '}';
}

static void forget(struct px_kernel *kernel)
{
    px_parent_unref(kernel->hushed);
    kernel->hushed = NULL;
}

void px_hush_end(struct px_kernel *kernel)
{
    struct px_item *busy = kernel->withheld;
    kernel->withheld = NULL;
    if (busy)
        px_kernel_send(kernel, busy);
}

bool px_hush(struct px_kernel *kernel, struct px_item *item)
{
    if (item->mark == PX_BUSY && item->quiet) {
        px_hush_end(kernel);
        kernel->withheld = item;
        return true;
    }
    if (kernel->withheld && answers(item, kernel->withheld)) {
        forget(kernel);
        kernel->hushed = px_parent_ref(item->parent);
        px_item_destroy(kernel->withheld);
        kernel->withheld = NULL;
        mark_reply(item);
        return false;
    }
    px_hush_end(kernel);
    if (item->mark != PX_IDLE || !kernel->hushed || item->parent != kernel->hushed)
        return false;
    forget(kernel);
    px_item_destroy(item);
    return true;
}

void px_hush_fini(struct px_kernel *kernel)
{
    px_item_destroy(kernel->withheld);
    px_parent_unref(kernel->hushed);
}
