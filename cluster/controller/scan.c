/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * scan: looks at all records, or at many, or goes through many ids. A file may have millions of
 * records; so of those on disk, and of ids, a few milliseconds' worth are looked at in a turn, and
 * between turns the hub hears engines and answers others. One scan at a time, in the order of the
 * requests. A record that comes while the scan is under way may be in it or not; no other is left
 * out, or given twice.
 */
#include "hub.h"

#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#define TURN_MS 5
#define AT_ONCE 32 /* ids, some 30 us each */
#define FEW 128    /* for these nobody waits until other scans have ended */

struct px_scan {
    struct px_request request; /* of its own */
    px_record_fn *each;
    px_walk_fn *step; /* in the place of `each`, for a list of ids */
    px_scan_done_fn *done;
    void *ctx;
    int64_t row;
    json_t *ids;       /* NULL: all records */
    const char **keys; /* of `ids`, in order */
    size_t key_count, at;
    bool ended; /* `each` wants no more */
    struct px_scan *prev, *next;
};

static void end_scan(struct px_scan *scan, bool whole)
{
    struct px_hub *hub = scan->request.hub;
    DL_DELETE(hub->scans, scan);
    scan->done(&scan->request, scan->ctx, whole);
    json_decref(scan->ids);
    free(scan->keys);
    json_decref(scan->request.content);
    px_msg_destroy((struct px_msg *)scan->request.msg);
    free(scan);
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* In the order in which SQLite gives records to ipyparallel. The caller frees the array. */
static const char **sort_keys(json_t *ids)
{
    const char **keys = px_alloc((json_object_size(ids) + 1) * sizeof(*keys)), *key;
    size_t count = 0;
    json_t *value;
    json_object_foreach(ids, key, value)
        keys[count++] = key;
    qsort(keys, count, sizeof(*keys), compare_keys);
    return keys;
}

static bool give(struct px_record *record, void *ctx)
{
    struct px_scan *scan = ctx;
    scan->ended = !scan->each(record, scan->ctx);
    return !scan->ended;
}

/* False when there is nothing more to look at. */
static bool look_at_ids(struct px_scan *scan)
{
    const int64_t until_ms = px_now_ms() + TURN_MS;
    while (scan->at < scan->key_count && !scan->ended && px_now_ms() < until_ms) {
        const size_t left = scan->key_count - scan->at, some = left < AT_ONCE ? left : AT_ONCE;
        px_db_each_of(scan->request.hub->db, scan->keys + scan->at, some, give, scan);
        scan->at += some;
    }
    return scan->at < scan->key_count && !scan->ended;
}

static bool walk(struct px_scan *scan)
{
    const int64_t until_ms = px_now_ms() + TURN_MS;
    const size_t size = json_array_size(scan->ids);
    while (scan->at < size && !scan->ended && px_now_ms() < until_ms) {
        for (size_t i = 0; i < AT_ONCE && scan->at < size && !scan->ended; i++)
            scan->ended =
                !scan->step(&scan->request, json_array_get(scan->ids, scan->at++), scan->ctx);
    }
    return scan->at < size && !scan->ended;
}

static bool look(struct px_scan *scan)
{
    if (scan->step != NULL)
        return walk(scan);
    if (scan->ids != NULL)
        return look_at_ids(scan);
    return px_db_scan(scan->request.hub->db, &scan->row, TURN_MS, scan->each, scan->ctx);
}

static void on_turn(struct px_loop *loop, void *ctx)
{
    struct px_hub *hub = ctx;
    struct px_scan *scan = hub->scans;
    if (px_hub_is_ending(hub))
        end_scan(scan, false);
    else if (!look(scan))
        end_scan(scan, true);
    hub->scan_timer = hub->scans ? px_loop_timer(loop, 0, 0, on_turn, hub) : NULL;
}

static struct px_scan *begin_scan(const struct px_request *request, json_t *ids,
                                  px_scan_done_fn *done, void *ctx)
{
    struct px_hub *hub = request->hub;
    struct px_header header;
    struct px_scan *scan = px_alloc(sizeof(*scan));
    struct px_msg *msg = px_msg_copy(request->msg);
    *scan = (struct px_scan){.request = *request, .done = done, .ctx = ctx};
    scan->request.msg = msg;
    scan->request.content = json_incref(request->content);
    scan->request.type = px_header_scan(px_msg_header(msg), &header, NULL) == 0
                             ? header.msg_type
                             : (struct px_span){0};
    scan->ids = json_incref(ids);
    DL_APPEND(hub->scans, scan);
    if (hub->scan_timer == NULL)
        hub->scan_timer = px_loop_timer(hub->loop, 0, 0, on_turn, hub);
    return scan;
}

void px_hub_scan(const struct px_request *request, json_t *ids, px_record_fn *each,
                 px_scan_done_fn *done, void *ctx)
{
    struct px_hub *hub = request->hub;
    const size_t count = json_object_size(ids);
    const char **keys = ids != NULL ? sort_keys(ids) : NULL;
    if (hub->store == NULL || (ids != NULL && count <= FEW)) {
        if (ids != NULL)
            px_db_each_of(hub->db, keys, count, each, ctx);
        else
            px_db_each(hub->db, each, ctx);
        free(keys);
        done(request, ctx, true);
        return;
    }
    struct px_scan *scan = begin_scan(request, ids, done, ctx);
    scan->each = each;
    scan->keys = keys;
    scan->key_count = count;
}

void px_hub_walk(const struct px_request *request, json_t *ids, px_walk_fn *step,
                 px_scan_done_fn *done, void *ctx)
{
    if (json_array_size(ids) > FEW) {
        begin_scan(request, ids, done, ctx)->step = step;
        return;
    }
    for (size_t i = 0; i < json_array_size(ids) && step(request, json_array_get(ids, i), ctx); i++)
        ;
    done(request, ctx, true);
}

void px_scans_fini(struct px_hub *hub)
{
    while (hub->scans != NULL)
        end_scan(hub->scans, false);
}
