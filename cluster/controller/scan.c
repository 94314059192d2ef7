/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * scan: looks at all records. A file may have millions of them; so of those on disk a few
 * milliseconds' worth are looked at in a turn, and between turns the hub hears engines and answers
 * others. One scan at a time, in the order of the requests. A record that comes while the scan is
 * under way may be in it or not; no other is left out, or given twice.
 */
#include "hub.h"

#include <stdlib.h>
#include <utlist.h>

#define TURN_MS 5

struct px_scan {
    struct px_request request; /* of its own */
    px_record_fn *each;
    px_scan_done_fn *done;
    void *ctx;
    int64_t row;
    struct px_scan *prev, *next;
};

static void end_scan(struct px_scan *scan, bool whole)
{
    struct px_hub *hub = scan->request.hub;
    DL_DELETE(hub->scans, scan);
    scan->done(&scan->request, scan->ctx, whole);
    json_decref(scan->request.content);
    px_msg_destroy((struct px_msg *)scan->request.msg);
    free(scan);
}

static void on_turn(struct px_loop *loop, void *ctx)
{
    struct px_hub *hub = ctx;
    struct px_scan *scan = hub->scans;
    if (px_hub_is_ending(hub))
        end_scan(scan, false);
    else if (!px_db_scan(hub->db, &scan->row, TURN_MS, scan->each, scan->ctx))
        end_scan(scan, true);
    hub->scan_timer = hub->scans ? px_loop_timer(loop, 0, 0, on_turn, hub) : NULL;
}

void px_hub_scan(const struct px_request *request, px_record_fn *each, px_scan_done_fn *done,
                 void *ctx)
{
    struct px_hub *hub = request->hub;
    struct px_header header;
    if (hub->store == NULL) {
        px_db_each(hub->db, each, ctx);
        done(request, ctx, true);
        return;
    }
    struct px_scan *scan = px_alloc(sizeof(*scan));
    struct px_msg *msg = px_msg_copy(request->msg);
    *scan = (struct px_scan){.request = *request, .each = each, .done = done, .ctx = ctx};
    scan->request.msg = msg;
    scan->request.content = json_incref(request->content);
    scan->request.type = px_header_scan(px_msg_header(msg), &header, NULL) == 0
                             ? header.msg_type
                             : (struct px_span){0};
    DL_APPEND(hub->scans, scan);
    if (hub->scan_timer == NULL)
        hub->scan_timer = px_loop_timer(hub->loop, 0, 0, on_turn, hub);
}

void px_scans_fini(struct px_hub *hub)
{
    while (hub->scans != NULL)
        end_scan(hub->scans, false);
}
