/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * schedule_parts: what schedule.c (events), task_queue.c (who gets which task) and task_graph.c
 * (dependencies) share. Nobody else includes this.
 *
 * Where a task is found:
 *   blocked   on the edges of the tasks it depends on;
 *   waiting   for any engine: in `queues`, one a set of needed features, by ticket;
 *             for any engine but those that refused it: in `picky`, by ticket. An engine reads
 *             picky from where it stopped, because who refused a task once is not asked again while
 *             it waits there;
 *             for certain engines (targets, follow): in the circle of all that wait for these
 *             (schedule_named.c);
 *             for targets while there is no engine at all: in `orphans`;
 *   running   in the list of its engine, in the order it was sent.
 * Tickets are given when a task is submitted or refused, so the longest waiting goes first.
 *
 * A task that ends goes onto `done`, and px_schedule_run() tells its dependents from there: a
 * chain of a hundred thousand failures is a loop, not a recursion.
 */
#ifndef PX_SCHEDULE_PARTS_H
#define PX_SCHEDULE_PARTS_H

#include "heap.h"
#include "schedule.h"

#include <utlist.h>

enum state { BLOCKED, WAITING, RUNNING, DONE };

struct task;

/* `waiter` depends on `on`. */
struct edge {
    struct task *waiter, *on;
    bool follow;
    struct edge *prev, *next;  /* of `on` */
    struct edge *left, *right; /* of `waiter` */
};

struct targets;
struct circle;

struct task {
    void *payload;
    enum state state;
    struct px_task_spec spec;
    bool after_met;
    size_t after_left, follow_left; /* dependencies that have not ended */
    struct edge *waits_on;          /* by left and right */
    struct edge *dependents;
    uint32_t *homes; /* serials of engines where followed tasks ended as wished */
    size_t home_count;
    uint32_t *shunned; /* serials of engines that refused it or failed at it */
    size_t shunned_count;
    bool failed; /* at one of them, and is to be retried */
    uint64_t ticket;
    uint64_t picky;  /* its number in `picky` plus one */
    size_t queue_at; /* in queues[spec.needs] */
    size_t deadline_at;
    struct targets *targets; /* whose names `spec` has; NULL for none */
    struct circle *circle;   /* waiting for certain engines; and its place there */
    size_t circle_at;
    struct px_worker *worker; /* running */
    enum px_fate fate;        /* done: how, and where */
    uint32_t serial;
    int64_t since_us;         /* running: when it was sent; else when it began to wait */
    bool asked;               /* running: its engine was asked to hand it back */
    unsigned probe;           /* running: the last probe that its engine was sent before it */
    bool aborted;             /* its client has taken it back: nobody is sent it any more */
    bool alone;               /* its engine died and may have begun it: never ahead again */
    struct task *prev, *next; /* its engine's running tasks, orphans, or done */
    UT_hash_handle hh;
    char msg_id[];
};

/* How fast an engine is, and what it was sent ahead: schedule_ahead.c. */
struct pace {
    int64_t since_us; /* when the first of its running tasks began, as far as we can see */
    int64_t spent_us; /* by the tasks it answered last */
    unsigned answered;
    unsigned held; /* running tasks but the first, when they were sent ahead */
    bool recalled; /* it was asked to hand them back */
};

/* What the schedule keeps for a worker. */
struct desk {
    struct px_worker *worker;
    struct px_heap seats;
    uint64_t cursor; /* into picky */
    struct task *running;
    struct pace pace;
    struct desk *prev, *next; /* in `crowd` */
};

/* Tasks by ascending number; a task that left is a NULL. */
struct picky {
    struct task **items;
    size_t head, count, size; /* items[head..count) */
    size_t tasks;             /* of these, not NULL */
    uint64_t base;            /* number of items[0] */
};

struct px_schedule {
    struct px_schedule_ops ops;
    void *ctx;
    const struct px_scheme *scheme;
    struct px_balance *balance;
    struct px_history *history;
    struct px_worker *workers;    /* hash by uuid: alive, or down and not yet lost */
    struct px_worker **by_serial; /* NULL once lost */
    uint32_t serials;
    size_t live;
    struct task *tasks; /* hash by msg_id */
    struct px_heap queues[PX_FEATURE_SETS];
    struct px_heap deadlines;
    struct wish *wishes; /* hash by msg_id: schedule_abort.c */
    struct picky picky;
    struct targets *targets; /* sets of names, by their text */
    struct circle *circles;  /* sets of engines, by their serials */
    struct task *orphans, *done;
    bool allow_ahead;
    struct desk *crowd; /* engines that hold tasks sent ahead, the one longest at its first first */
    uint32_t *freed;    /* serials of engines that have got room */
    size_t freed_count, freed_size;
    struct px_worker **scratch;
    size_t scratch_count, scratch_size;
    uint64_t tickets;
    int64_t now_us;
    struct px_schedule_stats stats;
};

static inline struct desk *desk_of(const struct px_worker *worker)
{
    return worker->state;
}

struct px_worker *px_schedule_worker(const struct px_schedule *schedule, const char *uuid,
                                     size_t size);
struct task *px_schedule_task(const struct px_schedule *schedule, struct px_span msg_id);

/* Small sets of engine serials. */
bool px_serials_has(const uint32_t *set, size_t count, uint32_t serial);
void px_serials_add(uint32_t **set, size_t *count, uint32_t serial);

/* ---- schedule.c ------------------------------------------------------------ */

void px_task_set_state(struct px_schedule *schedule, struct task *task, enum state state);
/* Makes a task, blocked, of an id that is not there. Takes `spec` and the payload. */
struct task *px_task_add(struct px_schedule *schedule, struct px_span msg_id,
                         struct px_task_spec *spec, void *payload);
/* Takes the task from its engine, which thereby has room for another. */
void px_task_take_back(struct px_schedule *schedule, struct task *task);
/* The task ends; its dependents hear of it in px_schedule_run(). */
void px_task_fail(struct px_schedule *schedule, struct task *task, enum px_why why,
                  const struct px_worker *on);

/* ---- task_queue.c ---------------------------------------------------------- */

/* Takes a task that waits out of whatever it waits in. */
void px_task_leave(struct px_schedule *schedule, struct task *task);
/* Runs the task if an engine may have it now, otherwise puts it where it will be found. Ends one
 * that was taken back. */
void px_task_place(struct px_schedule *schedule, struct task *task);
/* Starts a task's wait: its turn and its time-out count from now. */
void px_task_wait(struct px_schedule *schedule, struct task *task);
/* Those that it failed at may have it again, if it waits for ever else: no other engine may.
 * Whether that is so. */
bool px_task_forgive(struct px_schedule *schedule, struct task *task);
void px_tasks_forgive(struct px_schedule *schedule); /* all that wait */
/* It waits on, as if it had never been sent. */
void px_task_requeue(struct px_schedule *schedule, struct task *task);
/* Gives an engine tasks while it has room and there are any for it. */
void px_schedule_serve(struct px_schedule *schedule, struct px_worker *worker);

/* ---- schedule_named.c ------------------------------------------------------ */

/* The names of the task's targets become those of all tasks with the same ones; and it lets go of
 * them. */
void px_targets_share(struct px_schedule *schedule, struct task *task);
void px_targets_let_go(struct px_schedule *schedule, struct task *task);
/* The task waits for any of these engines, which are at least one; `workers` is put in order. */
void px_circle_join(struct px_schedule *schedule, struct task *task, struct px_worker **workers,
                    size_t count);
void px_circle_leave(struct px_schedule *schedule, struct task *task); /* if it is in one */
/* The longest waiting of those that wait for this engine among others; NULL for none. */
struct task *px_circle_first(struct px_worker *worker);
/* The engine is not alive any more: tasks that waited for it wait for others, or end. */
void px_circles_without(struct px_schedule *schedule, struct px_worker *worker);

/* ---- schedule_abort.c ------------------------------------------------------ */

/* Whether a task that comes was taken back before; that is forgotten thereby. */
bool px_wish_fulfil(struct px_schedule *schedule, struct px_span msg_id);
void px_wishes_fini(struct px_schedule *schedule);

/* ---- schedule_ahead.c ------------------------------------------------------ */

/* How many more tasks the engine may be sent although it is busy. */
size_t px_ahead_room(const struct px_schedule *schedule, const struct px_worker *worker);
/* Whether this task may be one of them. */
bool px_ahead_suits(const struct task *task);
/* The task was put at the end of the engine's list: by its turn, or ahead. */
void px_ahead_sent(struct px_schedule *schedule, struct px_worker *worker, bool ahead);
/* The engine answered a task that is still in its list. */
void px_ahead_answered(struct px_schedule *schedule, struct px_worker *worker,
                       const struct task *task, int64_t took_us);
/* A task, the first or not, has left the engine's list. True when that made no room, because the
 * engine holds one that was sent ahead. */
bool px_ahead_left(struct px_schedule *schedule, struct px_worker *worker, bool first);
/* How many of the engine's tasks, in their order, it has begun for all one can tell, when the last
 * that it began is `running`. `known`: it has begun no other. */
size_t px_ahead_begun(const struct px_worker *worker, const char *running, bool *known);
/* The engine goes: nothing is recalled from it any more. */
void px_ahead_stop(struct px_schedule *schedule, struct px_worker *worker);
/* Recalls from engines that have been at one task for too long. */
void px_ahead_tick(struct px_schedule *schedule);
/* When the next is due; -1 for never. */
int64_t px_ahead_deadline(const struct px_schedule *schedule);

/* ---- task_graph.c ---------------------------------------------------------- */

/* Ties a new task to its dependencies. False when it was failed instead. */
bool px_graph_admit(struct px_schedule *schedule, struct task *task);
/* Tells a task that one of its dependencies has ended so. Frees the edge, which has left `on`. */
void px_graph_tell(struct px_schedule *schedule, struct edge *edge, enum px_fate fate,
                   uint32_t serial);
void px_graph_cut(struct task *task);

#endif
