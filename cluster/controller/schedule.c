/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * schedule: the events. Each changes the books of tasks and engines and ends with
 * px_schedule_run(), which follows up what it set off, until nothing more can start. See
 * schedule.h for the contract, schedule_parts.h for where everything is kept.
 */
#include "schedule_parts.h"

#include <stdlib.h>
#include <string.h>

struct px_worker *px_schedule_worker(const struct px_schedule *schedule, const char *uuid,
                                     size_t size)
{
    struct px_worker *worker;
    HASH_FIND(hh, schedule->workers, uuid, size, worker);
    return worker;
}

struct task *px_schedule_task(const struct px_schedule *schedule, struct px_span msg_id)
{
    struct task *task;
    HASH_FIND(hh, schedule->tasks, msg_id.data, msg_id.size, task);
    return task;
}

bool px_serials_has(const uint32_t *set, size_t count, uint32_t serial)
{
    for (size_t i = 0; i < count; i++) {
        if (set[i] == serial)
            return true;
    }
    return false;
}

void px_serials_add(uint32_t **set, size_t *count, uint32_t serial)
{
    if (px_serials_has(*set, *count, serial))
        return;
    *set = px_realloc(*set, (*count + 1) * sizeof(**set));
    (*set)[(*count)++] = serial;
}

/* ---- the end of a task ----------------------------------------------------- */

static size_t *counter_of(struct px_schedule *schedule, enum state state)
{
    size_t *counters[] = {&schedule->stats.blocked, &schedule->stats.waiting,
                          &schedule->stats.running, NULL};
    return counters[state];
}

void px_task_set_state(struct px_schedule *schedule, struct task *task, enum state state)
{
    --*counter_of(schedule, task->state);
    task->state = state;
    if (state != DONE)
        ++*counter_of(schedule, state);
}

/* The task is over: its fate is written down; its dependents hear of it in px_schedule_run(). */
static void end_task(struct px_schedule *schedule, struct task *task, enum px_fate fate,
                     uint32_t serial)
{
    px_task_leave(schedule, task);
    px_graph_cut(task);
    px_heap_remove(&schedule->deadlines, &task->deadline_at);
    px_task_set_state(schedule, task, DONE);
    task->fate = fate;
    task->serial = serial;
    px_history_set(schedule->history, px_span_of(task->msg_id), fate, serial);
    ++*(fate == PX_SUCCEEDED ? &schedule->stats.succeeded : &schedule->stats.failed);
    HASH_DEL(schedule->tasks, task);
    schedule->ops.release(schedule->ctx, task->payload);
    task->payload = NULL;
    DL_APPEND(schedule->done, task);
}

void px_task_fail(struct px_schedule *schedule, struct task *task, enum px_why why,
                  const struct px_worker *on)
{
    schedule->stats.why[why]++;
    schedule->ops.fail(schedule->ctx, task->msg_id, task->payload, why, on);
    end_task(schedule, task, PX_FAILED, on ? on->serial : 0);
}

/* Takes the task from its engine, which thereby has room for another. */
void px_task_take_back(struct px_schedule *schedule, struct task *task)
{
    struct px_worker *worker = task->worker;
    bool first = desk_of(worker)->running == task;
    DL_DELETE(desk_of(worker)->running, task);
    task->prev = task->next = NULL;
    task->worker = NULL;
    bool covered = px_ahead_left(schedule, worker, first);
    if (!worker->alive)
        return;
    if (!covered)
        px_balance_release(schedule->balance, worker);
    if (schedule->freed_count == schedule->freed_size) {
        schedule->freed_size = schedule->freed_size * 2 + 16;
        schedule->freed =
            px_realloc(schedule->freed, schedule->freed_size * sizeof(*schedule->freed));
    }
    schedule->freed[schedule->freed_count++] = worker->serial;
}

static void free_task(struct px_schedule *schedule, struct task *task)
{
    px_targets_let_go(schedule, task);
    px_task_spec_fini(&task->spec);
    free(task->homes);
    free(task->shunned);
    free(task);
}

/* ---- events ---------------------------------------------------------------- */

void px_schedule_run(struct px_schedule *schedule)
{
    while (schedule->done != NULL) {
        struct task *task = schedule->done;
        DL_DELETE(schedule->done, task);
        while (task->dependents != NULL) {
            struct edge *edge = task->dependents;
            DL_DELETE(task->dependents, edge);
            px_graph_tell(schedule, edge, task->fate, task->serial);
        }
        free_task(schedule, task);
    }
    for (size_t i = 0; i < schedule->freed_count; i++) {
        struct px_worker *worker = schedule->by_serial[schedule->freed[i]];
        if (worker != NULL && worker->alive)
            px_schedule_serve(schedule, worker);
    }
    schedule->freed_count = 0;
}

bool px_schedule_holds(const struct px_schedule *schedule, struct px_span msg_id)
{
    return px_schedule_task(schedule, msg_id) != NULL;
}

struct task *px_task_add(struct px_schedule *schedule, struct px_span msg_id,
                         struct px_task_spec *spec, void *payload)
{
    struct task *task = px_alloc(sizeof(*task) + msg_id.size + 1);
    memcpy(task->msg_id, msg_id.data, msg_id.size);
    task->payload = payload;
    task->spec = *spec;
    task->spec.needs &= PX_FEATURE_SETS - 1;
    *spec = (struct px_task_spec){0};
    px_targets_share(schedule, task);
    HASH_ADD_KEYPTR(hh, schedule->tasks, task->msg_id, msg_id.size, task);
    schedule->stats.submitted++;
    schedule->stats.blocked++;
    return task;
}

void px_schedule_submit(struct px_schedule *schedule, struct px_span msg_id,
                        struct px_task_spec *spec, void *payload)
{
    struct task *task = px_task_add(schedule, msg_id, spec, payload);
    task->aborted = px_wish_fulfil(schedule, msg_id);
    /* Written down only after the look at its dependencies, lest it know itself. */
    bool admitted = px_graph_admit(schedule, task);
    if (admitted) {
        px_history_set(schedule->history, msg_id, PX_UNFINISHED, 0);
        px_task_wait(schedule, task);
    }
    px_schedule_run(schedule);
}

/* The engine has not begun it: it waits again, in its old turn. */
static enum px_outcome put_back(struct px_schedule *schedule, struct task *task)
{
    schedule->stats.recalled++;
    px_task_requeue(schedule, task);
    return PX_SWALLOW;
}

/* It failed at the engine, which costs it a retry, or was refused. */
static void wait_for_others(struct px_schedule *schedule, struct task *task,
                            const struct px_worker *worker, bool failed)
{
    task->spec.retries -= failed;
    task->failed |= failed;
    px_serials_add(&task->shunned, &task->shunned_count, worker->serial);
    (void)px_task_forgive(schedule, task);
    px_task_wait(schedule, task);
}

enum px_outcome px_schedule_reply(struct px_schedule *schedule, struct px_span uuid,
                                  struct px_span msg_id, enum px_reply reply, int64_t took_us)
{
    struct task *task = px_schedule_task(schedule, msg_id);
    struct px_worker *worker = px_schedule_worker(schedule, uuid.data, uuid.size);
    if (task == NULL || worker == NULL || task->state != RUNNING || task->worker != worker)
        return PX_STALE;
    if (reply != PX_REPLY_RECALLED)
        px_ahead_answered(schedule, worker, task, took_us);
    px_task_take_back(schedule, task);
    if (reply == PX_REPLY_RECALLED && task->asked)
        return put_back(schedule, task);
    /* Handing back what was not asked for is refusing it. */
    bool refused = reply == PX_REPLY_REJECTED || reply == PX_REPLY_RECALLED;
    bool retry = refused || (reply == PX_REPLY_ERROR && task->spec.retries > 0);
    if (!retry) {
        end_task(schedule, task, reply == PX_REPLY_OK ? PX_SUCCEEDED : PX_FAILED, worker->serial);
        return PX_DELIVER;
    }
    schedule->stats.rejected++;
    wait_for_others(schedule, task, worker, !refused);
    return PX_SWALLOW;
}

bool px_schedule_engine_up(struct px_schedule *schedule, struct px_span uuid, unsigned features)
{
    if (px_schedule_worker(schedule, uuid.data, uuid.size) != NULL)
        return false;
    struct px_worker *worker = px_alloc(sizeof(*worker) + uuid.size + 1);
    struct desk *desk = px_alloc(sizeof(*desk));
    memcpy(worker->uuid, uuid.data, uuid.size);
    worker->uuid_size = uuid.size;
    worker->features = features & (PX_FEATURE_SETS - 1);
    worker->state = desk;
    desk->worker = worker;
    worker->slot = PX_NO_SLOT;
    worker->alive = true;
    worker->serial = ++schedule->serials;
    if ((worker->serial & (worker->serial - 1)) == 0)
        schedule->by_serial = px_realloc(schedule->by_serial,
                                         (size_t)worker->serial * 2 * sizeof(*schedule->by_serial));
    schedule->by_serial[worker->serial] = worker;
    HASH_ADD_KEYPTR(hh, schedule->workers, worker->uuid, uuid.size, worker);
    schedule->live++;

    /* The orphans queue up like everybody else before the engine takes its first task. */
    struct task *orphans = schedule->orphans, *task, *next;
    schedule->orphans = NULL;
    DL_FOREACH_SAFE(orphans, task, next) {
        task->prev = task->next = NULL;
        px_task_place(schedule, task);
    }
    px_schedule_run(schedule);
    px_balance_add(schedule->balance, worker);
    px_schedule_serve(schedule, worker);
    return true;
}

static void put_down(struct px_schedule *schedule, struct px_worker *worker)
{
    worker->alive = false;
    schedule->live--;
    px_balance_remove(schedule->balance, worker);
    px_ahead_stop(schedule, worker);
    px_circles_without(schedule, worker);
    px_tasks_forgive(schedule);
    px_schedule_run(schedule);
}

void px_schedule_engine_down(struct px_schedule *schedule, struct px_span uuid)
{
    struct px_worker *worker = px_schedule_worker(schedule, uuid.data, uuid.size);
    if (worker != NULL && worker->alive)
        put_down(schedule, worker);
}

size_t px_schedule_wanting(const struct px_schedule *schedule)
{
    size_t count = schedule->picky.tasks;
    for (unsigned needs = 0; needs < PX_FEATURE_SETS; needs++)
        count += schedule->queues[needs].count;
    return count;
}

bool px_schedule_retire(struct px_schedule *schedule, struct px_span uuid)
{
    struct px_worker *worker = px_schedule_worker(schedule, uuid.data, uuid.size);
    if (worker == NULL || !worker->alive || desk_of(worker)->running != NULL ||
        schedule->stats.blocked > 0)
        return false;
    put_down(schedule, worker);
    return true;
}

static void free_worker(struct px_worker *worker)
{
    px_heap_fini(&desk_of(worker)->seats);
    free(worker->state);
    free(worker);
}

/* The task died with its engine. */
static void lose(struct px_schedule *schedule, struct task *task, const struct px_worker *worker)
{
    if (task->spec.retries == 0) {
        px_task_fail(schedule, task, PX_WHY_ENGINE_DIED, worker);
        return;
    }
    wait_for_others(schedule, task, worker, true);
}

static void lose_all(struct px_schedule *schedule, struct px_worker *worker, const char *running)
{
    struct desk *desk = desk_of(worker);
    bool known;
    size_t begun = px_ahead_begun(worker, running, &known);
    desk->pace.held = 0;
    for (size_t i = 0; desk->running != NULL; i++) {
        struct task *task = desk->running;
        px_task_take_back(schedule, task);
        if (i < begun) {
            lose(schedule, task, worker);
            continue;
        }
        task->alone = !known;
        px_task_requeue(schedule, task);
    }
}

void px_schedule_engine_lost(struct px_schedule *schedule, struct px_span uuid, const char *running)
{
    struct px_worker *worker = px_schedule_worker(schedule, uuid.data, uuid.size);
    if (worker == NULL)
        return;
    if (worker->alive)
        put_down(schedule, worker);
    lose_all(schedule, worker, running);
    schedule->by_serial[worker->serial] = NULL;
    HASH_DEL(schedule->workers, worker);
    free_worker(worker);
    px_schedule_run(schedule);
}

void px_schedule_tick(struct px_schedule *schedule, int64_t now_us)
{
    schedule->now_us = now_us;
    const struct px_heap_entry *top;
    while ((top = px_heap_top(&schedule->deadlines)) != NULL && (int64_t)top->key <= now_us)
        px_task_fail(schedule, top->item, PX_WHY_TIMEOUT, NULL);
    px_ahead_tick(schedule);
    if (schedule->done != NULL)
        px_schedule_run(schedule);
}

int64_t px_schedule_deadline(const struct px_schedule *schedule)
{
    const struct px_heap_entry *top = px_heap_top(&schedule->deadlines);
    int64_t timeout_us = top ? (int64_t)top->key : -1, recall_us = px_ahead_deadline(schedule);
    if (timeout_us < 0 || recall_us < 0)
        return timeout_us < 0 ? recall_us : timeout_us;
    return timeout_us < recall_us ? timeout_us : recall_us;
}

void px_schedule_stats(const struct px_schedule *schedule, struct px_schedule_stats *out)
{
    *out = schedule->stats;
    out->engines = schedule->live;
    out->history_bytes = px_history_bytes(schedule->history);
}

/* ---- create, destroy ------------------------------------------------------- */

void px_task_spec_fini(struct px_task_spec *spec)
{
    px_depend_fini(&spec->after);
    px_depend_fini(&spec->follow);
    px_names_free(spec->targets, spec->target_count);
    *spec = (struct px_task_spec){0};
}

struct px_schedule *px_schedule_create(const struct px_schedule_ops *ops, void *ctx,
                                       const struct px_scheme *scheme, unsigned hwm, uint64_t seed)
{
    struct px_schedule *schedule = px_alloc(sizeof(*schedule));
    schedule->ops = *ops;
    schedule->ctx = ctx;
    schedule->scheme = scheme;
    schedule->balance = px_balance_create(hwm, seed);
    schedule->history = px_history_create(PX_HISTORY_BYTES);
    return schedule;
}

void px_schedule_allow_ahead(struct px_schedule *schedule)
{
    schedule->allow_ahead = true;
}

static void destroy_tasks(struct px_schedule *schedule)
{
    struct task *task, *next;
    HASH_ITER(hh, schedule->tasks, task, next) {
        px_task_leave(schedule, task);
        px_graph_cut(task);
    }
    HASH_ITER(hh, schedule->tasks, task, next) {
        HASH_DEL(schedule->tasks, task);
        schedule->ops.release(schedule->ctx, task->payload);
        free_task(schedule, task);
    }
}

void px_schedule_destroy(struct px_schedule *schedule)
{
    if (schedule == NULL)
        return;
    px_schedule_run(schedule);
    destroy_tasks(schedule);
    struct px_worker *worker, *next;
    HASH_ITER(hh, schedule->workers, worker, next) {
        HASH_DEL(schedule->workers, worker);
        free_worker(worker);
    }
    for (unsigned needs = 0; needs < PX_FEATURE_SETS; needs++)
        px_heap_fini(&schedule->queues[needs]);
    px_heap_fini(&schedule->deadlines);
    px_wishes_fini(schedule);
    free(schedule->picky.items);
    free(schedule->by_serial);
    free(schedule->freed);
    free(schedule->scratch);
    px_balance_destroy(schedule->balance);
    px_history_destroy(schedule->history);
    free(schedule);
}
