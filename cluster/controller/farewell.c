/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * farewell: what clients hear of an engine that has died.
 *
 * A client that hears of an engine's end gives up what it has sent there directly. Ours reads in
 * the notification why it died (px_cause); ipyparallel's does not. So the end of one that died with
 * requests of such a client is announced late:
 *
 *     died ── LAST_REPLIES_MS ──▶ those without a reply are answered, with the cause
 *          ── as long again ────▶ unregistration_notification
 *
 * at first because its last replies may be on their way, then so that these arrive before it.
 */
#include "hub.h"

#include "protocol.h"

#include <stdlib.h>

#define FAREWELL_TICK_MS 10
#define LAST_REPLIES_MS 40 /* a dead engine's on their way; as long for ours to reach clients */

void px_hub_answer(struct px_hub *hub, const struct px_record *record, const char *uuid,
                   const char *evalue)
{
    struct px_header header;
    if (record == NULL || record->request == NULL || record->reply != NULL ||
        px_header_scan(px_msg_header(record->request), &header, NULL) != 0)
        return;
    /* As it came, engine, client | message; or from the store, without: a client of ours then. */
    struct px_span client = px_msg_ident_count(record->request) == 2
                                ? px_msg_ident(record->request, 1)
                                : header.session;
    struct px_order order = {.kind = PX_ORDER_ANSWER,
                             .msg = px_error_reply(hub->session, client, px_span_of(uuid),
                                                   px_msg_header(record->request), "EngineError",
                                                   evalue)};
    px_link_order(hub->link, &order);
}

/* "px_cause" is an addition to the protocol. */
static json_t *describe_end(const struct px_member *member)
{
    json_t *content = json_pack("{s:i, s:s}", "id", member->id, "uuid", member->uuid);
    if (member->cause != NULL)
        json_object_set_new(content, "px_cause", json_string(member->cause));
    return content;
}

char *px_hub_say_lost(const struct px_member *member, const char *msg_id)
{
    return member->cause ? px_format("engine %d: %s, while running task '%s'", member->id,
                                     member->cause, msg_id)
                         : px_format("Engine %d died while running task '%s'", member->id, msg_id);
}

/* The request of a client that may not know px_cause, or NULL. */
static struct px_record *foreign_record(struct px_hub *hub, const struct px_job *job)
{
    struct px_record *record = px_db_get(hub->db, px_span_of(job->msg_id));
    return record == NULL || record->request == NULL || px_record_is_ours(record) ? NULL : record;
}

static void answer_foreign(struct px_hub *hub, struct px_member *member)
{
    member->is_answered = true;
    for (const struct px_job *job = member->queue; job != NULL; job = job->next) {
        char *evalue = px_hub_say_lost(member, job->msg_id);
        px_hub_answer(hub, foreign_record(hub, job), member->uuid, evalue);
        free(evalue);
    }
}

static void announce_end(struct px_hub *hub, struct px_member *member)
{
    member->is_leaving = false;
    px_hub_notify(hub, PX_UNREGISTRATION_NOTIFICATION, describe_end(member), (struct px_span){0});
}

static void on_farewell(struct px_loop *loop, void *ctx)
{
    struct px_hub *hub = ctx;
    struct px_member *member, *next;
    bool more = false;
    HASH_ITER(hh, hub->by_id, member, next) {
        const int64_t since_ms = px_now_ms() - member->left_ms;
        if (!member->is_leaving)
            continue;
        if (!member->is_answered && since_ms >= LAST_REPLIES_MS)
            answer_foreign(hub, member);
        else if (member->is_answered && since_ms >= 2 * LAST_REPLIES_MS)
            announce_end(hub, member);
        more |= member->is_leaving;
    }
    if (more)
        return;
    px_loop_cancel(loop, hub->farewell);
    hub->farewell = NULL;
}

void px_hub_take_leave(struct px_hub *hub, struct px_member *member)
{
    const struct px_job *job = member->cause != NULL ? member->queue : NULL;
    for (; job != NULL && !member->is_leaving; job = job->next)
        member->is_leaving = foreign_record(hub, job) != NULL;
    if (!member->is_leaving) {
        announce_end(hub, member);
        return;
    }
    if (hub->farewell == NULL)
        hub->farewell =
            px_loop_timer(hub->loop, FAREWELL_TICK_MS, FAREWELL_TICK_MS, on_farewell, hub);
}
