/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * schedule_restore: tasks of a controller that was killed, taken over by the next one, and tasks of
 * an engine whose connection was lost.
 *
 * How a task ended is remembered, for those that depend on it. A task that was sent to an engine
 * which still lives is adopted: it counts as running there, and whatever the engine answers is its
 * end. But it may have been lost on its way, as may what was under way when a connection broke. So
 * the engine is asked something that comes after all of them in its queue, a probe; once it has
 * answered that, what it was sent before and has not answered it never had, or the reply was lost.
 * That is reclaimed: it waits for an engine again. Probes have numbers, as one may be lost too.
 */
#include "schedule_parts.h"

void px_schedule_remember(struct px_schedule *schedule, struct px_span msg_id, bool succeeded,
                          struct px_span uuid)
{
    const struct px_worker *worker = px_schedule_worker(schedule, uuid.data, uuid.size);
    if (px_schedule_task(schedule, msg_id) == NULL)
        px_history_set(schedule->history, msg_id, succeeded ? PX_SUCCEEDED : PX_FAILED,
                       worker ? worker->serial : 0);
}

enum px_fate px_schedule_fate(const struct px_schedule *schedule, struct px_span msg_id)
{
    return px_history_get(schedule->history, msg_id, NULL);
}

bool px_schedule_adopt(struct px_schedule *schedule, struct px_span msg_id,
                       struct px_task_spec *spec, void *payload, struct px_span uuid)
{
    struct px_worker *worker = px_schedule_worker(schedule, uuid.data, uuid.size);
    if (worker == NULL || !worker->alive)
        return false;
    struct task *task = px_task_add(schedule, msg_id, spec, payload);
    /* It was sent: its dependencies were met. */
    px_depend_fini(&task->spec.after);
    px_depend_fini(&task->spec.follow);
    px_history_set(schedule->history, msg_id, PX_UNFINISHED, 0);
    px_task_set_state(schedule, task, RUNNING);
    task->after_met = true;
    task->ticket = schedule->tickets++;
    task->since_us = schedule->now_us;
    task->worker = worker;
    task->probe = worker->probes;
    /* What it holds beyond its measure counts as sent ahead. */
    bool ahead = !px_worker_open(worker);
    DL_APPEND(desk_of(worker)->running, task);
    if (!ahead)
        px_balance_take(schedule->balance, worker);
    px_ahead_sent(schedule, worker, ahead);
    return true;
}

unsigned px_schedule_probe(struct px_schedule *schedule, struct px_span uuid)
{
    struct px_worker *worker = px_schedule_worker(schedule, uuid.data, uuid.size);
    return worker != NULL ? ++worker->probes : 0;
}

size_t px_schedule_reclaim(struct px_schedule *schedule, struct px_span uuid, unsigned probe)
{
    struct px_worker *worker = px_schedule_worker(schedule, uuid.data, uuid.size);
    struct task *task, *next, *back = NULL;
    size_t count = 0;
    if (worker == NULL)
        return 0;
    /* All leave the engine before the first waits: they go on in their old order. */
    DL_FOREACH_SAFE(desk_of(worker)->running, task, next) {
        if (task->probe >= probe)
            continue;
        px_task_take_back(schedule, task);
        DL_APPEND(back, task);
        count++;
    }
    DL_FOREACH_SAFE(back, task, next) {
        task->prev = task->next = NULL;
        if (schedule->ops.renew != NULL)
            schedule->ops.renew(schedule->ctx, task->payload);
        px_task_requeue(schedule, task);
    }
    px_schedule_run(schedule);
    return count;
}
