/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * task_return: tasks of a controller that was killed, and those that clients send again.
 *
 *     the database knows it, and the engine it was sent to     adopted: it counts as running there
 *     the database knows it, and no engine                     parked
 *     a client submits it, or sends it again                   parked
 *
 * What is parked waits for the engines that come back (comeback.h). Then, what one of them has is
 * adopted, what has ended is not done again, and the rest is submitted as ever. A reply to a task
 * that nobody here knows is passed on: there was a client that wanted it.
 */
#include "comeback.h"
#include "task.h"

void px_tasks_remember(struct px_tasks *tasks, struct px_span msg_id, bool succeeded,
                       struct px_span uuid)
{
    px_schedule_remember(tasks->schedule, msg_id, succeeded, uuid);
}

void px_tasks_adopt(struct px_tasks *tasks, struct px_span uuid, struct px_msg *msg)
{
    struct px_error err;
    struct px_header header;
    struct px_task_spec spec = {0};
    if (px_header_scan(px_msg_header(msg), &header, &err) == 0 &&
        px_task_read_spec(px_msg_metadata(msg), &spec, &err) == 0 &&
        !px_schedule_holds(tasks->schedule, header.msg_id) &&
        px_schedule_adopt(tasks->schedule, header.msg_id, &spec, msg, uuid))
        return;
    px_task_spec_fini(&spec);
    px_tasks_start(tasks, msg); /* says what is wrong with it, if anything is */
}

void px_tasks_probe(struct px_tasks *tasks, struct px_span uuid)
{
    unsigned number = px_schedule_probe(tasks->schedule, uuid);
    if (number > 0)
        px_route_send(tasks->route, px_probe_build(tasks->shared.session, uuid, number));
}

void px_tasks_reclaim(struct px_tasks *tasks, struct px_span uuid, unsigned probe)
{
    size_t count = px_schedule_reclaim(tasks->schedule, uuid, probe);
    if (count > 0)
        px_log(PX_INFO, "tasks-reclaimed", "engine=%.*s count=%zu", (int)uuid.size, uuid.data,
               count);
}

/* ---- what was parked, or sent again ---------------------------------------- */

void px_tasks_resume(struct px_tasks *tasks, struct px_msg *msg)
{
    struct px_header header;
    char uuid[PX_MAX_IDENTITY + 1];
    if (px_header_scan(px_msg_header(msg), &header, NULL) != 0) {
        px_tasks_start(tasks, msg);
    } else if (px_schedule_holds(tasks->schedule, header.msg_id)) {
        px_msg_destroy(msg);
    } else if (px_schedule_fate(tasks->schedule, header.msg_id) != PX_UNKNOWN) {
        px_link_note(tasks->shared.link, PX_NOTE_TASK_AGAIN, msg);
        px_msg_destroy(msg);
    } else if (px_comeback_take(tasks->comeback, header.msg_id, uuid)) {
        px_link_note(tasks->shared.link, PX_NOTE_TASK_REQUEST, msg);
        px_link_note_text(tasks->shared.link, PX_NOTE_TASK_DESTINATION, header.msg_id,
                          px_span_of(uuid));
        px_tasks_adopt(tasks, px_span_of(uuid), msg);
    } else {
        px_tasks_start(tasks, msg);
    }
}

static void resume_parked(struct px_tasks *tasks)
{
    size_t count = 0;
    if (px_comeback_waits(tasks->comeback))
        return;
    px_loop_cancel(tasks->shared.loop, tasks->patience);
    tasks->patience = NULL;
    for (struct px_msg *msg; (msg = px_comeback_unpark(tasks->comeback)) != NULL; count++)
        px_tasks_resume(tasks, msg);
    if (count > 0)
        px_log(PX_INFO, "tasks-resumed", "count=%zu", count);
    px_tasks_after(tasks);
}

static void on_patience_over(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct px_tasks *tasks = ctx;
    tasks->patience = NULL;
    px_comeback_give_up(tasks->comeback);
    resume_parked(tasks);
}

void px_tasks_expect(struct px_tasks *tasks, struct px_span uuid)
{
    px_comeback_expect(tasks->comeback, uuid);
    if (tasks->patience == NULL)
        tasks->patience =
            px_loop_timer(tasks->shared.loop, PX_ROUTE_PATIENCE_MS, 0, on_patience_over, tasks);
}

void px_tasks_unexpect(struct px_tasks *tasks, struct px_span uuid)
{
    bool waited = px_comeback_waits(tasks->comeback);
    px_comeback_leave(tasks->comeback, uuid);
    if (waited)
        resume_parked(tasks);
}

/* ---- what engines say ------------------------------------------------------ */

void px_tasks_held(struct px_tasks *tasks, const struct px_msg *msg)
{
    struct px_span uuid = px_msg_ident(msg, 0);
    json_t *content = px_json_parse(px_msg_content(msg), NULL), *id;
    size_t i;
    json_array_foreach(json_object_get(content, "msg_ids"), i, id) {
        struct px_span msg_id = {json_string_value(id), json_string_length(id)};
        if (json_is_string(id) && msg_id.size <= PX_MAX_MSG_ID &&
            !px_schedule_holds(tasks->schedule, msg_id) &&
            px_schedule_fate(tasks->schedule, msg_id) == PX_UNKNOWN)
            px_comeback_holds(tasks->comeback, uuid, msg_id);
    }
    json_decref(content);
    bool waited = px_comeback_waits(tasks->comeback);
    px_comeback_arrived(tasks->comeback, uuid);
    if (waited)
        resume_parked(tasks);
}

bool px_tasks_late(struct px_tasks *tasks, const struct px_msg *msg,
                   const struct px_task_result *result)
{
    char uuid[PX_MAX_IDENTITY + 1];
    bool ended = result->reply == PX_REPLY_OK || result->reply == PX_REPLY_ERROR;
    if (tasks->shared.return_ms == 0 || !ended ||
        px_schedule_fate(tasks->schedule, result->msg_id) != PX_UNKNOWN)
        return false;
    (void)px_comeback_take(tasks->comeback, result->msg_id, uuid);
    px_schedule_remember(tasks->schedule, result->msg_id, result->reply == PX_REPLY_OK,
                         px_msg_ident(msg, 0));
    return true;
}
