/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * task_queue: who gets which task. A task that is ready goes to an engine with room that may
 * run it, chosen by the scheme; otherwise it waits where such an engine will look when it gets
 * room (see schedule_parts.h). An engine with room takes, of all it may run, what waits longest.
 */
#include "schedule_parts.h"

#include <string.h>

/* ---- picky ----------------------------------------------------------------- */

static void picky_append(struct picky *picky, struct task *task)
{
    if (picky->count == picky->size && picky->head > picky->size / 2) {
        picky->count -= picky->head;
        memmove(picky->items, picky->items + picky->head, picky->count * sizeof(*picky->items));
        picky->base += picky->head;
        picky->head = 0;
    }
    if (picky->count == picky->size) {
        picky->size = picky->size * 2 + 16;
        picky->items = px_realloc(picky->items, picky->size * sizeof(*picky->items));
    }
    picky->tasks++;
    task->picky = picky->base + picky->count + 1;
    picky->items[picky->count++] = task;
}

static void picky_remove(struct picky *picky, struct task *task)
{
    if (task->picky == 0)
        return;
    picky->items[task->picky - 1 - picky->base] = NULL;
    picky->tasks--;
    task->picky = 0;
    while (picky->head < picky->count && picky->items[picky->head] == NULL)
        picky->head++;
}

static bool may_run(const struct task *task, const struct px_worker *worker)
{
    return worker->alive && (worker->features & task->spec.needs) == task->spec.needs &&
           !px_serials_has(task->shunned, task->shunned_count, worker->serial) &&
           (task->spec.follow.count == 0 ||
            px_serials_has(task->homes, task->home_count, worker->serial));
}

/* The first that the worker may have. What it may not have now it never may. */
static struct task *picky_first(struct picky *picky, struct px_worker *worker)
{
    struct desk *desk = desk_of(worker);
    if (desk->cursor < picky->base + picky->head)
        desk->cursor = picky->base + picky->head;
    for (; desk->cursor < picky->base + picky->count; desk->cursor++) {
        struct task *task = picky->items[desk->cursor - picky->base];
        if (task != NULL && may_run(task, worker))
            return task;
    }
    return NULL;
}

/* ---- leaving and running --------------------------------------------------- */

void px_task_leave(struct px_schedule *schedule, struct task *task)
{
    px_heap_remove(&schedule->queues[task->spec.needs], &task->queue_at);
    picky_remove(&schedule->picky, task);
    px_circle_leave(schedule, task);
    if (task->state == WAITING && task->prev != NULL)
        DL_DELETE(schedule->orphans, task);
    task->prev = task->next = NULL;
}

static void run_on(struct px_schedule *schedule, struct task *task, struct px_worker *worker,
                   bool ahead)
{
    px_task_leave(schedule, task);
    px_heap_remove(&schedule->deadlines, &task->deadline_at);
    px_task_set_state(schedule, task, RUNNING);
    task->worker = worker;
    task->since_us = schedule->now_us;
    task->asked = false;
    task->probe = worker->probes;
    DL_APPEND(desk_of(worker)->running, task);
    if (!ahead)
        px_balance_take(schedule->balance, worker);
    px_ahead_sent(schedule, worker, ahead);
    schedule->ops.send(schedule->ctx, task->msg_id, task->payload, worker);
}

/* ---- placing a task -------------------------------------------------------- */

static void consider(struct px_schedule *schedule, const struct task *task,
                     struct px_worker *worker)
{
    if (worker == NULL || !may_run(task, worker))
        return;
    if (schedule->scratch_count == schedule->scratch_size) {
        schedule->scratch_size = schedule->scratch_size * 2 + 16;
        schedule->scratch =
            px_realloc(schedule->scratch, schedule->scratch_size * sizeof(*schedule->scratch));
    }
    schedule->scratch[schedule->scratch_count++] = worker;
}

/* Into `scratch`: of the engines a task names, by targets or by follow, those that may run it. */
static void list_named(struct px_schedule *schedule, const struct task *task)
{
    schedule->scratch_count = 0;
    for (size_t i = 0; i < task->spec.target_count; i++) {
        const char *uuid = task->spec.targets[i];
        consider(schedule, task, px_schedule_worker(schedule, uuid, strlen(uuid)));
    }
    if (task->spec.target_count > 0)
        return;
    for (size_t i = 0; i < task->home_count; i++)
        consider(schedule, task, schedule->by_serial[task->homes[i]]);
}

/* Into `scratch`: of all engines with room those that may run it. */
static void list_open(struct px_schedule *schedule, const struct task *task)
{
    size_t open = px_balance_open(schedule->balance, task->spec.needs);
    schedule->scratch_count = 0;
    for (size_t i = 0; i < open; i++)
        consider(schedule, task, px_balance_at(schedule->balance, task->spec.needs, i));
}

static bool choose_and_run(struct px_schedule *schedule, struct task *task, struct px_worker **some,
                           size_t count)
{
    struct px_pool pool = {
        .balance = schedule->balance, .needs = task->spec.needs, .some = some, .count = count};
    if (count == 0)
        return false;
    struct px_worker *worker = schedule->scheme->choose(&pool);
    if (some == NULL && !may_run(task, worker))
        return false;
    run_on(schedule, task, worker, false);
    return true;
}

/* Where some engines refused it, whoever comes first is seldom one of them. When it is, all are
 * looked at. */
static bool run_anywhere(struct px_schedule *schedule, struct task *task)
{
    size_t open = px_balance_open(schedule->balance, task->spec.needs);
    if (choose_and_run(schedule, task, NULL, open))
        return true;
    if (open == 0 || task->shunned_count == 0)
        return false;
    list_open(schedule, task);
    return choose_and_run(schedule, task, schedule->scratch, schedule->scratch_count);
}

static void place_anywhere(struct px_schedule *schedule, struct task *task)
{
    if (run_anywhere(schedule, task))
        return;
    if (task->shunned_count > 0)
        picky_append(&schedule->picky, task);
    else
        px_heap_push(&schedule->queues[task->spec.needs], task->ticket, task, &task->queue_at);
}

/* No engine that there is may run it: can that change? */
static void place_nowhere(struct px_schedule *schedule, struct task *task)
{
    if (task->spec.follow.count > 0 && task->follow_left > 0)
        return; /* another followed task may end elsewhere */
    if (task->spec.follow.count == 0 && schedule->live == 0)
        DL_APPEND(schedule->orphans, task); /* until there is an engine to compare with */
    else
        px_task_fail(schedule, task, PX_WHY_IMPOSSIBLE, NULL);
}

static void place_among_named(struct px_schedule *schedule, struct task *task)
{
    list_named(schedule, task);
    if (schedule->scratch_count == 0) {
        place_nowhere(schedule, task);
        return;
    }
    size_t open = 0;
    for (size_t i = 0; i < schedule->scratch_count; i++) {
        struct px_worker *worker = schedule->scratch[i];
        if (!px_worker_open(worker))
            continue;
        schedule->scratch[i] = schedule->scratch[open];
        schedule->scratch[open++] = worker;
    }
    if (!choose_and_run(schedule, task, schedule->scratch, open))
        px_circle_join(schedule, task, schedule->scratch, schedule->scratch_count);
}

static bool is_ready(const struct task *task)
{
    const struct px_depend *follow = &task->spec.follow;
    if (!task->after_met)
        return false;
    if (follow->count == 0 || task->follow_left == 0)
        return true;
    return !follow->all && task->home_count > 0;
}

/* Runs the task if an engine may have it now, otherwise puts it where it will be found. */
void px_task_place(struct px_schedule *schedule, struct task *task)
{
    if (task->aborted) {
        px_task_fail(schedule, task, PX_WHY_ABORTED, NULL);
        return;
    }
    if (!is_ready(task))
        return;
    px_task_leave(schedule, task);
    if (task->state != WAITING)
        px_task_set_state(schedule, task, WAITING);
    if (task->spec.target_count == 0 && task->spec.follow.count == 0)
        place_anywhere(schedule, task);
    else
        place_among_named(schedule, task);
}

/* Starts a task's wait: its turn and its time-out count from now. */
void px_task_wait(struct px_schedule *schedule, struct task *task)
{
    task->ticket = ++schedule->tickets;
    task->since_us = schedule->now_us;
    px_task_place(schedule, task);
    if ((task->state == BLOCKED || task->state == WAITING) && task->spec.timeout_us > 0)
        px_heap_push(&schedule->deadlines, (uint64_t)(schedule->now_us + task->spec.timeout_us),
                     task, &task->deadline_at);
}

static bool has_hope(const struct px_schedule *schedule, const struct task *task)
{
    if (!task->failed || task->spec.timeout_us > 0 || task->spec.target_count > 0 ||
        task->spec.follow.count > 0)
        return true; /* or it ends otherwise */
    for (struct px_worker *worker = schedule->workers; worker != NULL; worker = worker->hh.next) {
        if (may_run(task, worker))
            return true;
    }
    return false;
}

bool px_task_forgive(struct px_schedule *schedule, struct task *task)
{
    if (has_hope(schedule, task))
        return false;
    task->shunned_count = 0;
    task->failed = false; /* else who refuses it would be asked again and again */
    if (schedule->ops.renew != NULL)
        schedule->ops.renew(schedule->ctx, task->payload);
    return true;
}

void px_tasks_forgive(struct px_schedule *schedule)
{
    const struct picky *picky = &schedule->picky;
    for (size_t i = picky->head; i < picky->count; i++) {
        struct task *task = picky->items[i];
        if (task != NULL && px_task_forgive(schedule, task))
            px_task_place(schedule, task);
    }
}

void px_task_requeue(struct px_schedule *schedule, struct task *task)
{
    task->since_us = schedule->now_us;
    px_task_place(schedule, task);
}

/* ---- serving an engine that has room --------------------------------------- */

static struct task *earlier(struct task *a, struct task *b)
{
    if (a == NULL || b == NULL)
        return a ? a : b;
    return b->ticket < a->ticket ? b : a;
}

static struct task *next_for(struct px_schedule *schedule, struct px_worker *worker)
{
    struct task *best = earlier(picky_first(&schedule->picky, worker), px_circle_first(worker));
    const struct px_heap_entry *top;
    for (unsigned needs = 0; needs < PX_FEATURE_SETS; needs++) {
        top = px_heap_top(&schedule->queues[needs]);
        if (top != NULL && (worker->features & needs) == needs)
            best = earlier(best, top->item);
    }
    return best;
}

static void send_ahead(struct px_schedule *schedule, struct px_worker *worker)
{
    for (size_t room = px_ahead_room(schedule, worker); room > 0; room--) {
        struct task *task = next_for(schedule, worker);
        if (task == NULL || !px_ahead_suits(task))
            return;
        run_on(schedule, task, worker, true);
    }
}

void px_schedule_serve(struct px_schedule *schedule, struct px_worker *worker)
{
    while (px_worker_open(worker)) {
        struct task *task = next_for(schedule, worker);
        if (task == NULL)
            return;
        run_on(schedule, task, worker, false);
    }
    send_ahead(schedule, worker);
}
