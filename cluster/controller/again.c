/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * again: direct requests and replies that were sent a second time (protocol.h, PX_AGAIN), and
 * requests that have ended before their client has the reply.
 *
 *     reply, again     wanted by a request that is booked, or one that this controller never heard
 *                      of: passed on; else its client has it
 *     request, again   of one that has ended: answered from the record
 *                      else booked; its engine, which passes over what it has had, is probed, and
 *                      what it then has not answered is lost: px_hub_probed()
 *
 * After a restart a client of ours is given time to send again before its requests count as lost.
 */
#include "hub.h"

#define DOUBT_MS 250

/* ---- engines that are asked ------------------------------------------------ */

static void on_doubt(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct px_hub *hub = ctx;
    struct px_member *member, *next;
    hub->doubt = NULL;
    HASH_ITER(hh, hub->by_id, member, next) {
        if (member->is_doubtful && member->alive)
            px_hub_probe_direct(hub, member);
        member->is_doubtful = false;
    }
}

static void doubt(struct px_hub *hub, struct px_member *member)
{
    member->is_doubtful = true;
    if (hub->doubt == NULL)
        hub->doubt = px_loop_timer(hub->loop, DOUBT_MS, 0, on_doubt, hub);
}

bool px_hub_give_time(struct px_hub *hub, struct px_member *member, const struct px_job *job)
{
    bool returning = hub->settings->restore && px_now_ms() < hub->started_ms + PX_ROUTE_PATIENCE_MS;
    if (job->asked != NULL || !returning || !px_hub_sends_again(hub) ||
        !px_record_is_ours(px_db_get(hub->db, px_span_of(job->msg_id))))
        return false;
    doubt(hub, member);
    return true;
}

bool px_hub_sends_again(const struct px_hub *hub)
{
    return hub->sockets->client.key[0] != 0; /* without, nobody knows what he has had */
}

/* ---- requests that have ended ---------------------------------------------- */

/* client, engine | the reply on record, or an error in its stead. */
static struct px_msg *answer_for(struct px_hub *hub, struct px_span client,
                                 const struct px_msg *request, struct px_span msg_id)
{
    const struct px_record *record = px_db_get(hub->db, msg_id);
    const struct px_msg *reply = record ? record->reply : NULL;
    struct px_span engine = px_span_of(record && record->engine_uuid ? record->engine_uuid : "");
    if (reply == NULL)
        return px_error_reply(hub->session, client, engine, px_msg_header(request), "EngineError",
                              "the request has ended, and its reply is lost");
    const size_t idents = px_msg_ident_count(reply);
    struct px_msg *msg = px_msg_create();
    px_msg_append(msg, client.data, client.size);
    px_msg_append(msg, engine.data, engine.size);
    px_msg_append_frames(msg, reply, idents, px_msg_count(reply) - idents);
    if (px_msg_locate(msg, NULL) != 0)
        return msg;
    struct px_span parent = px_msg_header(request); /* the database on disk does not keep it */
    px_msg_replace(msg, px_msg_ident_count(msg) + 3, parent.data, parent.size);
    px_session_resign(hub->session, msg);
    return msg;
}

/* ---- notes ----------------------------------------------------------------- */

void px_again_direct_reply(struct px_hub *hub, const struct px_note *note)
{
    struct px_span msg_id = px_scan_member(px_msg_parent(note->msg), "msg_id");
    const struct px_job *job = px_hub_job(hub, msg_id);
    bool unheard = job == NULL && hub->settings->restore &&
                   px_history_get(hub->finished, msg_id, NULL) == PX_UNKNOWN;
    if (msg_id.size == 0 || msg_id.size > PX_MAX_MSG_ID || !(unheard || (job && job->mux)))
        return;
    px_monitor_reply(hub, note); /* at once: its engine may have answered the probe as well */
    struct px_order order = {.kind = PX_ORDER_ANSWER, .msg = px_msg_copy(note->msg)};
    px_link_order(hub->link, &order);
}

void px_again_direct_request(struct px_hub *hub, const struct px_note *note)
{
    struct px_header header;
    struct px_member *member = px_hub_member(hub, px_msg_ident(note->msg, 0));
    if (member == NULL || px_header_scan(px_msg_header(note->msg), &header, NULL) != 0)
        return;
    struct px_job *job = px_hub_job(hub, header.msg_id);
    if (job == NULL && px_history_get(hub->finished, header.msg_id, NULL) != PX_UNKNOWN) {
        struct px_order order = {
            .kind = PX_ORDER_ANSWER,
            .msg = answer_for(hub, px_msg_ident(note->msg, 1), note->msg, header.msg_id)};
        px_link_order(hub->link, &order);
        return;
    }
    px_monitor_request(hub, note, &header, member);
    job = px_hub_job(hub, header.msg_id);
    px_msg_destroy(job->asked);
    job->asked = px_msg_create();
    px_msg_append_frames(job->asked, note->msg, 0, px_msg_first_buffer(note->msg));
    if (px_msg_locate(job->asked, NULL) != 0)
        px_die(1, "a message that was located is none");
    doubt(hub, member);
}

void px_again_task_request(struct px_hub *hub, const struct px_note *note)
{
    struct px_header header;
    if (px_header_scan(px_msg_header(note->msg), &header, NULL) != 0)
        return;
    struct px_order order = {
        .kind = PX_ORDER_ANSWER_TASK,
        .msg = answer_for(hub, px_msg_ident(note->msg, 0), note->msg, header.msg_id)};
    px_link_order(hub->link, &order);
}
