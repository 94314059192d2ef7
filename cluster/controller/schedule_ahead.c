/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * schedule_ahead: short tasks in batches, for engines that hand tasks back when asked.
 *
 * A high-water mark of one is fair, since no task ever stands behind a long one, and slow for very
 * short tasks: each costs a wake-up of every thread on its way. So an engine whose last tasks took
 * some microseconds is sent a few ahead: as many as it should finish within AHEAD_US, at most its
 * share of what waits. It stays full for the balance, which counts one task an engine; what is
 * sent ahead is counted here.
 *
 * When times grow, the engine is back at one task at once. When an engine has been at one task for
 * PATIENCE_US, it is asked to hand back what it has not begun, and these tasks take their old turns
 * again: that is how long a task may stand behind a long one.
 *
 * Ahead go only tasks that any engine may run at any time: none with targets or follow, none with a
 * time-out (it would no longer run), none that was refused before. When an engine dies, its nanny
 * says what it was running: that task has died with it, and those before it, whose answers were not
 * out yet; those behind it wait on. When nobody says so, the first task has died with it, and the
 * others go to other engines, each by itself, lest one that kills engines take them along again.
 * LIMIT: what an engine answered in its last millisecond fails although it ran, when it ended
 * without a last word (os._exit, SIGKILL); and without a nanny's word (its host died) it may run
 * twice. With --hwm=1 neither can be.
 */
#include "schedule_parts.h"

#include <string.h>

#define AHEAD_US 2000    /* what an engine may hold, in expected time */
#define AHEAD_MOST 64u   /* and in tasks */
#define PATIENCE_US 5000 /* at one task, before the others are recalled */
#define SAMPLES 64u      /* tasks that the mean looks back on */

/* Time counts up to this: one long task outweighs some ten short ones, not thousands. */
#define LONGEST_US (4 * AHEAD_US)

static bool may_hold(const struct px_schedule *schedule, const struct px_worker *worker)
{
    return schedule->allow_ahead && worker->alive && (worker->features & PX_FEATURE_RECALL) != 0;
}

/* How many tasks besides the first the engine should hold now. */
static size_t aim(const struct px_schedule *schedule, const struct pace *pace)
{
    if (pace->answered == 0)
        return 0;
    int64_t mean_us = pace->spent_us / pace->answered;
    size_t share = schedule->stats.waiting / schedule->live;
    size_t most = mean_us > 0 ? (size_t)(AHEAD_US / mean_us) : AHEAD_MOST;
    if (most > AHEAD_MOST)
        most = AHEAD_MOST;
    most -= most > 0; /* the first */
    return most < share ? most : share;
}

size_t px_ahead_room(const struct px_schedule *schedule, const struct px_worker *worker)
{
    const struct desk *desk = desk_of(worker);
    const struct pace *pace = &desk->pace;
    if (!may_hold(schedule, worker) || desk->running == NULL || desk->running->alone ||
        pace->recalled)
        return 0;
    size_t wanted = aim(schedule, pace);
    return pace->held <= wanted / 2 ? wanted - pace->held : 0; /* seldom and many, not one by one */
}

bool px_ahead_suits(const struct task *task)
{
    return task->spec.target_count == 0 && task->spec.follow.count == 0 &&
           task->spec.timeout_us == 0 && task->shunned_count == 0 && !task->alone;
}

/* The engine is at another task from now on: to the end of the crowd, if it holds any besides. */
static void begin(struct px_schedule *schedule, struct desk *desk)
{
    struct pace *pace = &desk->pace;
    pace->since_us = schedule->now_us;
    if (desk->prev != NULL)
        DL_DELETE(schedule->crowd, desk);
    desk->prev = desk->next = NULL;
    if (pace->held > 0 && !pace->recalled && desk->worker->alive)
        DL_APPEND(schedule->crowd, desk);
}

void px_ahead_sent(struct px_schedule *schedule, struct px_worker *worker, bool ahead)
{
    struct desk *desk = desk_of(worker);
    if (!ahead) {
        if (desk->running->next == NULL)
            desk->pace.since_us = schedule->now_us;
        return;
    }
    schedule->stats.ahead++;
    if (++desk->pace.held == 1) {
        /* In the crowd since now, not since its first began: that keeps the crowd in order. */
        desk->pace.since_us = schedule->now_us;
        DL_APPEND(schedule->crowd, desk);
    }
}

static void learn(struct pace *pace, int64_t took_us)
{
    if (took_us > AHEAD_US || pace->answered == 0) {
        pace->spent_us = took_us < LONGEST_US ? took_us : LONGEST_US;
        pace->answered = 1;
        return;
    }
    if (pace->answered >= SAMPLES) {
        pace->answered /= 2;
        pace->spent_us /= 2;
    }
    pace->spent_us += took_us;
    pace->answered++;
}

void px_ahead_answered(struct px_schedule *schedule, struct px_worker *worker,
                       const struct task *task, int64_t took_us)
{
    struct desk *desk = desk_of(worker);
    if (!may_hold(schedule, worker) || task != desk->running)
        return;
    /* Ours includes the way there and back, theirs the wait of a finished task for its sender. */
    int64_t seen_us = schedule->now_us - desk->pace.since_us;
    learn(&desk->pace, took_us >= 0 && took_us < seen_us ? took_us : seen_us);
}

bool px_ahead_left(struct px_schedule *schedule, struct px_worker *worker, bool first)
{
    struct desk *desk = desk_of(worker);
    if (desk->pace.held == 0)
        return false;
    if (--desk->pace.held == 0)
        desk->pace.recalled = false;
    if (first || desk->pace.held == 0)
        begin(schedule, desk);
    return true;
}

size_t px_ahead_begun(const struct px_worker *worker, const char *running, bool *known)
{
    const struct desk *desk = desk_of(worker);
    size_t count = 0;
    *known = true;
    for (const struct task *task = desk->running; task != NULL; task = task->next) {
        count++;
        if (desk->pace.held > 0 && running != NULL && strcmp(task->msg_id, running) == 0)
            return count;
    }
    if (desk->pace.held == 0)
        return count;
    *known = false;
    return 1;
}

void px_ahead_stop(struct px_schedule *schedule, struct px_worker *worker)
{
    struct desk *desk = desk_of(worker);
    if (desk->prev != NULL)
        DL_DELETE(schedule->crowd, desk);
    desk->prev = desk->next = NULL;
}

static void recall(struct px_schedule *schedule, struct desk *desk)
{
    const char *msg_ids[AHEAD_MOST];
    size_t count = 0;
    px_ahead_stop(schedule, desk->worker);
    desk->pace.recalled = true;
    desk->pace.spent_us = LONGEST_US;
    desk->pace.answered = 1;
    for (struct task *task = desk->running->next; task != NULL && count < AHEAD_MOST;
         task = task->next) {
        task->asked = true;
        msg_ids[count++] = task->msg_id;
    }
    schedule->ops.recall(schedule->ctx, desk->worker, msg_ids, count);
}

void px_ahead_tick(struct px_schedule *schedule)
{
    while (schedule->crowd != NULL &&
           schedule->now_us - schedule->crowd->pace.since_us >= PATIENCE_US)
        recall(schedule, schedule->crowd);
}

int64_t px_ahead_deadline(const struct px_schedule *schedule)
{
    return schedule->crowd ? schedule->crowd->pace.since_us + PATIENCE_US : -1;
}
