/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * task_graph: dependencies between tasks. An unfinished dependency is an edge, found from both
 * ends; one that has ended was counted when the task was admitted. `after` decides when a task
 * may start, `follow` also where: `all` wants one engine on which every one of them ended as
 * wished, `any` is content with an engine on which one did.
 *
 * A task that depends on an unknown id or itself is invalid; one whose dependencies can no
 * longer be met is impossible (ipyparallel's words and rules).
 */
#include "schedule_parts.h"

#include <stdlib.h>

void px_graph_cut(struct task *task)
{
    while (task->waits_on != NULL) {
        struct edge *edge = task->waits_on;
        DL_DELETE2(task->waits_on, edge, left, right);
        DL_DELETE(edge->on->dependents, edge);
        free(edge);
    }
}

/* One more dependency of `after` has ended. False when the task can never start. */
static bool note_after(struct task *task, enum px_fate fate)
{
    const struct px_depend *after = &task->spec.after;
    bool accepted = px_depend_accepts(after, fate);
    task->after_left--;
    if (after->all) {
        task->after_met = task->after_left == 0;
        return accepted;
    }
    task->after_met |= accepted;
    return task->after_met || task->after_left > 0;
}

/* As above for `follow`, which also wants to know where. All of them must be in one place. */
static bool note_follow(struct task *task, enum px_fate fate, uint32_t serial)
{
    const struct px_depend *follow = &task->spec.follow;
    bool accepted = px_depend_accepts(follow, fate) && serial != 0;
    task->follow_left--;
    if (accepted)
        px_serials_add(&task->homes, &task->home_count, serial);
    if (follow->all)
        return accepted && task->home_count == 1;
    return task->home_count > 0 || task->follow_left > 0;
}

/* Dependents hear in the order of their submission; one that is to run after a task and follows it
 * hears first where, then when. */
static void add_edge(struct task *waiter, struct task *on, bool follow)
{
    struct edge *edge = px_alloc(sizeof(*edge));
    *edge = (struct edge){.waiter = waiter, .on = on, .follow = follow};
    DL_APPEND2(waiter->waits_on, edge, left, right);
    struct edge *last = on->dependents ? on->dependents->prev : NULL;
    if (last != NULL && last->waiter == waiter)
        DL_PREPEND_ELEM(on->dependents, last, edge);
    else
        DL_APPEND(on->dependents, edge);
}

static bool any_met(const struct px_schedule *schedule, const struct px_depend *depend)
{
    for (size_t i = 0; i < depend->count; i++) {
        enum px_fate fate = px_history_get(schedule->history, px_span_of(depend->ids[i]), NULL);
        if (px_depend_accepts(depend, fate))
            return true;
    }
    return false;
}

/* PX_WHY_INVALID for an id that was never submitted, or the task's own. */
static bool is_known(const struct px_schedule *schedule, const struct px_depend *depend,
                     struct px_span own)
{
    for (size_t i = 0; i < depend->count; i++) {
        struct px_span id = px_span_of(depend->ids[i]);
        if (px_span_equal(own, depend->ids[i]) ||
            px_history_get(schedule->history, id, NULL) == PX_UNKNOWN)
            return false;
    }
    return true;
}

/* Counts the dependencies that have ended and ties the task to the others. */
static bool tie(struct px_schedule *schedule, struct task *task, bool follow)
{
    const struct px_depend *depend = follow ? &task->spec.follow : &task->spec.after;
    bool possible = true;
    *(follow ? &task->follow_left : &task->after_left) = depend->count;
    for (size_t i = 0; i < depend->count && possible; i++) {
        struct px_span id = px_span_of(depend->ids[i]);
        uint32_t serial;
        enum px_fate fate = px_history_get(schedule->history, id, &serial);
        if (fate == PX_UNFINISHED)
            add_edge(task, px_schedule_task(schedule, id), follow);
        else
            possible = follow ? note_follow(task, fate, serial) : note_after(task, fate);
    }
    return possible;
}

/* Says no with the reason; true when the task may wait or run. */
bool px_graph_admit(struct px_schedule *schedule, struct task *task)
{
    struct px_task_spec *spec = &task->spec;
    struct px_span own = px_span_of(task->msg_id);
    task->after_met =
        spec->after.count == 0 || (!spec->after.all && any_met(schedule, &spec->after));
    if (!task->after_met && !is_known(schedule, &spec->after, own)) {
        px_task_fail(schedule, task, PX_WHY_INVALID, NULL);
        return false;
    }
    if (!task->after_met && !tie(schedule, task, false)) {
        px_task_fail(schedule, task, PX_WHY_IMPOSSIBLE, NULL);
        return false;
    }
    if (!is_known(schedule, &spec->follow, own)) {
        px_task_fail(schedule, task, PX_WHY_INVALID, NULL);
        return false;
    }
    if (!tie(schedule, task, true)) {
        px_task_fail(schedule, task, PX_WHY_IMPOSSIBLE, NULL);
        return false;
    }
    return true;
}

void px_graph_tell(struct px_schedule *schedule, struct edge *edge, enum px_fate fate,
                   uint32_t serial)
{
    struct task *waiter = edge->waiter;
    bool follow = edge->follow, was_met = waiter->after_met;
    DL_DELETE2(waiter->waits_on, edge, left, right);
    free(edge);
    bool possible = follow ? note_follow(waiter, fate, serial) : note_after(waiter, fate);
    /* An `any` set may go on ending after the task was started; that matters if it is retried. */
    if (waiter->state == RUNNING || (!follow && was_met))
        return;
    if (!possible)
        px_task_fail(schedule, waiter, PX_WHY_IMPOSSIBLE, NULL);
    else
        px_task_place(schedule, waiter);
}
