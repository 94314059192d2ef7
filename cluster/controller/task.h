/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * task: what task.c (sockets), task_read.c (bytes) and task_return.c (after a controller was
 * killed) share. Nobody else includes this.
 */
#ifndef PX_TASK_H
#define PX_TASK_H

#include "controller.h"
#include "schedule.h"

/* What a request's metadata asks for. PX_EINVAL, PX_ELIMIT; `spec` is to be finished either way. */
PX_MUST_USE int px_task_read_spec(struct px_span metadata, struct px_task_spec *spec,
                                  struct px_error *err);

struct px_task_result {
    struct px_span msg_id; /* of the request; points into the message */
    enum px_reply reply;
    int64_t took_us; /* as the engine says, -1 when it does not */
};
/* -1 when it does not say which task it is of. */
PX_MUST_USE int px_task_read_result(const struct px_msg *msg, struct px_task_result *out);

struct farewell;
struct px_comeback;

struct px_tasks {
    struct px_shared shared;
    struct px_port in, out;
    struct px_route *route;
    struct px_clients *clients;
    struct px_schedule *schedule;
    struct px_comeback *comeback;
    struct px_timer *timer; /* of the next time-out */
    int64_t timer_us;
    struct px_timer *patience; /* with engines that have not come back */
    struct farewell *farewells;
    const struct farewell *leaving; /* whose tasks are being failed */
    unsigned long refused, stale;
};

/* ---- task.c ---- */

/* Takes `msg`, which its client has not sent before. */
void px_tasks_start(struct px_tasks *tasks, struct px_msg *msg);
/* After what may have changed the next time-out: sets the timer, sends the notes. */
void px_tasks_after(void *tasks);

/* ---- task_return.c ---- */

/* Takes `msg`, which may be known here or to an engine. */
void px_tasks_resume(struct px_tasks *tasks, struct px_msg *msg);
/* The engine has answered that probe, and thus everything that it was sent before. */
void px_tasks_reclaim(struct px_tasks *tasks, struct px_span uuid, unsigned probe);
/* The engine has gone: what it had is nowhere. */
void px_tasks_unexpect(struct px_tasks *tasks, struct px_span uuid);
/* An engine says which tasks it has (PX_HELD). */
void px_tasks_held(struct px_tasks *tasks, const struct px_msg *msg);
/* Whether the reply, to a task that is not held here, is for a client of a former controller. */
bool px_tasks_late(struct px_tasks *tasks, const struct px_msg *msg,
                   const struct px_task_result *result);

#endif
