/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * why: the query why_request (protocol.h). The task scheduler is asked by an order and answers by a
 * note; to that the hub adds what it alone knows: tasks sent to one engine directly, those that
 * ended long ago, engines by number.
 */
#include "hub.h"

#include "protocol.h"

#include <stdlib.h>
#include <string.h>

#define MOST_IDS 256 /* the scheduler looks at every engine for each of them */

void px_on_why_request(const struct px_request *request)
{
    json_t *ids = px_request_items(request, "msg_ids");
    if (ids == NULL)
        return;
    if (json_array_size(ids) > MOST_IDS) {
        px_request_fail(request, PX_WHY_REPLY, "ValueError", "more than 256 msg_ids");
        json_decref(ids);
        return;
    }
    struct px_order order = {
        .kind = PX_ORDER_WHY, .msg = px_msg_copy(request->msg), .text = px_id_lines(ids)};
    px_link_order(request->hub->link, &order);
    json_decref(ids);
}

/* A request that went to one engine directly: the hub alone knows of it. */
static void explain_direct(const struct px_job *job, json_t *answer)
{
    size_t before = 0;
    for (const struct px_job *other = job->member->queue; other != job && before < PX_MOST_COUNTED;
         other = other->next)
        before++;
    const char *running = job->member->task_count > 0
                              ? "its engine runs it, or what the scheduler sent there"
                              : "its engine runs it";
    char *why = before > 0 ? px_format("its engine has it, behind %s%zu sent there directly",
                                       before == PX_MOST_COUNTED ? "at least " : "", before)
                           : px_strdup(running);
    json_object_set_new(answer, "state", json_string(before > 0 ? "queued" : "running"));
    json_object_set_new(answer, "why", json_string(why));
    json_object_set_new(answer, "engine", json_integer(job->member->id));
    free(why);
}

static void explain_unknown(struct px_hub *hub, const char *msg_id, json_t *answer)
{
    const struct px_job *job = px_hub_job(hub, px_span_of(msg_id));
    const struct px_record *record = px_db_get(hub->db, px_span_of(msg_id));
    if (job != NULL && job->mux && job->member != NULL) {
        explain_direct(job, answer);
    } else if (job == NULL && record != NULL && (record->reply || record->lost_content)) {
        json_object_set_new(answer, "state", json_string("done"));
        json_object_set_new(answer, "why", json_string("its result is in the database"));
    } else if (job != NULL) {
        json_object_set_new(answer, "state", json_string("queued"));
        json_object_set_new(answer, "why",
                            json_string("it was dealt to an engine, and of such "
                                        "tasks no book is kept"));
    }
}

/* Its number; and what the scheduler does not know of it. */
static void number_engine(const struct px_hub *hub, json_t *answer)
{
    const json_t *uuid = json_object_get(answer, "engine_uuid");
    const struct px_member *member =
        uuid ? px_hub_member(hub, px_span_of(json_string_value(uuid))) : NULL;
    json_object_set_new(answer, "engine", member ? json_integer(member->id) : json_null());
    json_object_del(answer, "engine_uuid");
    const char *state = json_string_value(json_object_get(answer, "state"));
    if (member && member->queue && strcmp(state, "running") == 0)
        json_object_set_new(
            answer, "why", json_string("its engine runs it, or what was sent there directly"));
}

/* Ids that the scheduler was not asked for, because they are nobody's, or that it does not book. */
static void add_missing(json_t *tasks, const json_t *ids)
{
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const char *id = json_string_value(json_array_get(ids, i));
        if (id != NULL && json_object_get(tasks, id) == NULL)
            json_object_set_new(
                tasks, id,
                json_pack("{s:s, s:s}", "state", "unknown", "why", "nobody knows it here"));
    }
}

void px_why_note(struct px_hub *hub, const struct px_note *note)
{
    struct px_request request = {.hub = hub, .msg = note->msg};
    request.content = px_json_parse(px_msg_content(note->msg), NULL);
    json_t *tasks = px_json_parse(px_span_of(note->text), NULL);
    json_t *ids = px_request_items(&request, "msg_ids");
    const char *id;
    json_t *answer;
    if (tasks == NULL)
        tasks = json_object();
    add_missing(tasks, ids);
    json_object_foreach(tasks, id, answer) {
        number_engine(hub, answer);
        if (strcmp(json_string_value(json_object_get(answer, "state")), "unknown") == 0)
            explain_unknown(hub, id, answer);
    }
    px_request_reply(&request, PX_WHY_REPLY,
                     json_pack("{s:s, s:o}", "status", "ok", "tasks", tasks), NULL);
    json_decref(ids);
    json_decref(request.content);
}
