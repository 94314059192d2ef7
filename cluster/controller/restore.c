/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * restore: what a controller that was killed has left. Engines come from the state file and keep
 * their ids (member.c). With a database on disk the tasks come back, too:
 *
 *   finished              their ids, for dependencies and for clients that ask for results
 *   sent to an engine     that is back: adopted; what it turns out not to have is sent anew
 *   sent to one that      is gone, of the task queue: submitted again; direct ones have failed
 *   not sent yet          submitted again
 *
 * So it is, without a restart, when an engine asks whether it is known: its connections were lost,
 * and with them what was under way.
 *
 * A direct request that its engine turns out not to have, or whose reply was lost, fails, unless
 * its client sends it again (again.c).
 *
 * All keep their ids, so a client that still waits gets its reply. Tasks from before the cluster
 * was last started without --restore are left alone.
 */
#include "hub.h"

#include "protocol.h"

#include <stdlib.h>
#include <string.h>

#define MAX_REMEMBERED 1000000u /* finished tasks whose ids are read back */

struct restored {
    struct px_hub *hub;
    struct px_buf ended; /* as PX_ORDER_REMEMBER has it */
    size_t finished, adopted, submitted, direct, failed;
};

/* ---- finished tasks -------------------------------------------------------- */

static bool has_status(struct px_span object, const char *wanted)
{
    return px_span_equal(px_scan_member(object, "status"), wanted);
}

static bool is_text(struct px_span text)
{
    return text.size <= PX_MAX_MSG_ID && memchr(text.data, 0, text.size) == NULL;
}

static void remember(void *ctx, struct px_span msg_id, struct px_span engine,
                     struct px_span metadata, struct px_span content)
{
    struct restored *restored = ctx;
    if (msg_id.size == 0 || !is_text(msg_id) || !is_text(engine))
        return;
    bool ok = has_status(metadata, "ok") || has_status(content, "ok");
    px_history_set(restored->hub->finished, msg_id, PX_SUCCEEDED, 0);
    px_buf_text(&restored->ended, ok ? "s" : "f");
    px_buf_append(&restored->ended, msg_id.data, msg_id.size);
    px_buf_append(&restored->ended, "", 1);
    px_buf_append(&restored->ended, engine.data, engine.size);
    px_buf_append(&restored->ended, "", 1);
    restored->finished++;
}

static void order_remember(struct restored *restored)
{
    if (restored->ended.size == 0)
        return;
    struct px_order order = {.kind = PX_ORDER_REMEMBER, .msg = px_msg_create()};
    px_msg_append(order.msg, restored->ended.data, restored->ended.size);
    px_link_order(restored->hub->link, &order);
}

/* ---- unfinished tasks ------------------------------------------------------ */

/* The request as the client had sent it: its session is its routing id. */
static struct px_msg *again(struct px_hub *hub, const struct px_record *record,
                            struct px_span client)
{
    struct px_msg *msg = px_msg_create();
    px_msg_append(msg, client.data, client.size);
    px_msg_append_frames(msg, record->request, 0, px_msg_count(record->request));
    if (px_msg_locate(msg, NULL) != 0) {
        px_msg_destroy(msg);
        return NULL;
    }
    px_session_resign(hub->session, msg);
    return msg;
}

void px_hub_probe(struct px_hub *hub, struct px_member *member)
{
    struct px_order order = {.kind = PX_ORDER_PROBE};
    memcpy(order.uuid, member->uuid, strlen(member->uuid));
    px_link_order(hub->link, &order);
    px_hub_probe_direct(hub, member);
}

void px_hub_probe_direct(struct px_hub *hub, struct px_member *member)
{
    struct px_order order = {.kind = PX_ORDER_PROBE_DIRECT, .id = (int)++member->probes};
    memcpy(order.uuid, member->uuid, strlen(member->uuid));
    px_link_order(hub->link, &order);
}

/* Instead of a reply that will not come. Of what is not on record nobody can say who has asked,
 * unless it was sent again. */
static void lose_direct(struct px_hub *hub, const struct px_member *member, struct px_job *job)
{
    const struct px_record *record = px_db_get(hub->db, px_span_of(job->msg_id));
    char *evalue = px_format("engine %d: the controller was killed, or a connection lost, and with "
                             "it a direct request or its reply: '%s'",
                             member->id, job->msg_id);
    job->probe = member->probes; /* answered, which takes a moment to get about */
    if (record != NULL && record->request != NULL) {
        px_hub_answer(hub, record, member->uuid, evalue);
    } else if (job->asked != NULL) {
        struct px_order order = {.kind = PX_ORDER_ANSWER};
        order.msg =
            px_error_reply(hub->session, px_msg_ident(job->asked, 1), px_span_of(member->uuid),
                           px_msg_header(job->asked), "EngineError", evalue);
        px_link_order(hub->link, &order);
    } else {
        px_history_set(hub->finished, px_span_of(job->msg_id), PX_FAILED, 0);
        px_hub_unbook(hub, job);
    }
    free(evalue);
}

void px_hub_probed(struct px_hub *hub, struct px_span uuid, unsigned probe)
{
    struct px_member *member = px_hub_member(hub, uuid);
    struct px_job *job = member ? member->queue : NULL, *next;
    size_t lost = 0;
    for (; job != NULL; job = next) {
        next = job->next;
        if (job->probe >= probe || px_hub_give_time(hub, member, job))
            continue;
        lost++;
        lose_direct(hub, member, job);
    }
    if (lost > 0)
        px_log(PX_WARN, "requests-lost", "engine=%.*s count=%zu", (int)uuid.size, uuid.data, lost);
}

static void restore_direct(struct restored *restored, struct px_record *record,
                           struct px_member *member)
{
    struct px_span msg_id = px_span_of(record->msg_id);
    if (member != NULL) {
        px_hub_book(restored->hub, msg_id, member, true);
        restored->direct++;
        return;
    }
    char *evalue = px_format("Engine died while running task '%s'", record->msg_id);
    px_record_lose(record, (struct px_span){0}, "EngineError", evalue);
    px_history_set(restored->hub->finished, msg_id, PX_FAILED, 0);
    px_hub_changed(restored->hub, record);
    if (record->engine_uuid != NULL)
        px_hub_answer(restored->hub, record, record->engine_uuid, evalue);
    free(evalue);
    restored->failed++;
}

static void restore_queued(struct restored *restored, const struct px_record *record,
                           struct px_member *member, struct px_msg *msg)
{
    struct px_order order = {.kind = PX_ORDER_SUBMIT, .msg = msg};
    if (member != NULL) {
        order.kind = PX_ORDER_ADOPT;
        memcpy(order.uuid, member->uuid, strlen(member->uuid));
        restored->adopted++;
    } else {
        restored->submitted++;
    }
    px_hub_book(restored->hub, px_span_of(record->msg_id), member, false);
    px_link_order(restored->hub->link, &order);
}

static bool is_wanted(const struct px_hub *hub, const struct px_record *record,
                      struct px_header *header)
{
    return record->request != NULL && record->queue != NULL &&
           px_header_scan(px_msg_header(record->request), header, NULL) == 0 &&
           header->session.size > 0 && header->session.size <= PX_MAX_UUID &&
           px_date_parse(header->date) >= hub->since_us;
}

static bool restore_task(struct px_record *record, void *ctx)
{
    struct restored *restored = ctx;
    struct px_hub *hub = restored->hub;
    struct px_header header;
    struct px_msg *msg =
        is_wanted(hub, record, &header) ? again(hub, record, header.session) : NULL;
    if (msg == NULL) {
        px_record_destroy(record);
        return true;
    }
    struct px_member *member =
        record->engine_uuid ? px_hub_member(hub, px_span_of(record->engine_uuid)) : NULL;
    px_db_adopt(hub->db, record);
    if (strcmp(record->queue, "mux") == 0) {
        px_msg_destroy(msg);
        restore_direct(restored, record, member);
    } else {
        restore_queued(restored, record, member, msg);
    }
    return true;
}

static void probe_engines(struct px_hub *hub)
{
    struct px_member *member, *next;
    HASH_ITER(hh, hub->by_id, member, next) {
        if (member->tasks || member->queue || (member->features & PX_FEATURE_AGAIN))
            px_hub_probe(hub, member);
    }
}

int px_hub_restore(struct px_hub *hub, struct px_error *err)
{
    struct restored restored = {.hub = hub};
    if (px_members_restore(hub, err) != 0)
        return -1;
    if (hub->store != NULL) {
        px_store_finished(hub->store, MAX_REMEMBERED, remember, &restored);
        order_remember(&restored);
        px_store_unfinished(hub->store, restore_task, &restored);
    }
    probe_engines(hub);
    px_buf_fini(&restored.ended);
    px_log(PX_INFO, "restored",
           "engines=%u finished=%zu adopted=%zu submitted=%zu direct=%zu failed=%zu",
           HASH_COUNT(hub->by_id), restored.finished, restored.adopted, restored.submitted,
           restored.direct, restored.failed);
    return 0;
}
