/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hush: a request that published nothing is answered by its reply alone, if its sender asked so.
 *
 * The sender of many small tasks gets three messages for each, of which two say busy and idle, or
 * four, of which one repeats the code that it sent; and every relay on the way carries them all.
 * Metadata "px_quiet": true says that it can do without. Then busy and execute_input are withheld
 * until the next item of the outbox is seen. If that is the reply, they and idle are left out and
 * the reply's metadata says "px_quiet": true, so that nobody waits for them. If it is output, or if
 * there is none for HUSH_MS, all goes out as ever.
 *
 * Service thread, but for px_hush_asked.
 */
#include "core.h"

#include <string.h>

#define HUSH_MS 8 /* a request that takes longer is seen to be busy */

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

static bool repeats_input(const struct px_item *item, const struct px_item *busy)
{
    return !busy->next && item->parent == busy->parent && strcmp(item->type, "execute_input") == 0;
}

static void forget(struct px_kernel *kernel)
{
    px_parent_unref(kernel->hushed);
    kernel->hushed = NULL;
}

/* What is withheld: busy, and the execute_input behind it. */
static struct px_item *take_withheld(struct px_kernel *kernel)
{
    struct px_item *item = kernel->withheld;
    if (item)
        kernel->withheld = item->next;
    return item;
}

static void drop_withheld(struct px_kernel *kernel)
{
    for (struct px_item *item; (item = take_withheld(kernel));)
        px_item_destroy(item);
}

void px_hush_end(struct px_kernel *kernel)
{
    for (struct px_item *item; (item = take_withheld(kernel));)
        px_kernel_send(kernel, item);
}

int64_t px_hush_left(struct px_kernel *kernel)
{
    const int64_t left_ms = kernel->withheld ? kernel->hush_ms - px_now_ms() : 0;
    if (left_ms > 0)
        return left_ms;
    px_hush_end(kernel);
    return 0;
}

bool px_hush(struct px_kernel *kernel, struct px_item *item)
{
    if (item->mark == PX_BUSY && item->quiet) {
        px_hush_end(kernel);
        item->next = NULL;
        kernel->withheld = item;
        kernel->hush_ms = px_now_ms() + HUSH_MS;
        return true;
    }
    if (kernel->withheld && repeats_input(item, kernel->withheld)) {
        item->next = NULL;
        kernel->withheld->next = item;
        return true;
    }
    if (kernel->withheld && answers(item, kernel->withheld)) {
        forget(kernel);
        kernel->hushed = px_parent_ref(item->parent);
        drop_withheld(kernel);
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
    drop_withheld(kernel);
    px_parent_unref(kernel->hushed);
}
