/* SPDX-License-Identifier: BSD-3-Clause */
/* A simple model of the task scheduler's rules: tasks and engines in plain arrays, no queues. */
#ifndef SCHEDULE_MODEL_H
#define SCHEDULE_MODEL_H

#include "schedule.h"

#define MAX_TASKS 1000
#define MAX_ENGINES 64
#define FEW_ENGINES 4    /* where tasks are to be sent ahead, they must wait */
#define MOST_AHEAD 64    /* as schedule_ahead.c has it */
#define PATIENCE_US 5000 /* this too */

enum model_state { M_NONE, M_BLOCKED, M_RUNNING, M_OK, M_FAILED };

struct model_set {
    int ids[4];
    int count;
    bool all, success, failure;
};

struct model_task {
    enum model_state state;
    struct model_set after, follow;
    int targets[3];
    int target_count;
    int retries;
    unsigned needs;
    long since; /* grows with each wait */
    int64_t timeout_us, deadline_us;
    int engine; /* running, or where it ended; -1 none */
    int killer; /* engine that died with it, -1 none */
    enum px_why why;
    bool shunned[MAX_ENGINES];
    bool failed, aborted;
    bool released;
    int place;         /* in `open`, while it has not ended */
    long sent;         /* grows with each sending; running */
    bool asked, alone; /* its engine was asked for it; its engine died before it */
};

struct model_engine {
    bool alive, known;
    unsigned load, features;
    int64_t moved_us; /* began its first task, or was sent one ahead first, later than this */
};

struct model {
    struct px_schedule *schedule;
    const char *scheme;
    struct model_task tasks[MAX_TASKS];
    int count;
    int open[MAX_TASKS]; /* indices of those that have not ended, in any order */
    int open_count;
    long released;
    struct model_engine engines[MAX_ENGINES];
    int engine_count;
    unsigned hwm;
    bool ahead;
    int64_t now_us;
    long tickets, sendings, sent_ahead, handed_back;
    uint64_t random;
    bool serving; /* an engine got room: who waits longest is to go first */
};

void model_open(struct model *model, struct model_task *task);
void model_end(struct model *model, struct model_task *task, enum model_state state);
bool model_ended(const struct model_task *task);
bool model_has_room(const struct model *model, int engine);
struct model_task *model_first_of(struct model *model, int engine);
void model_forgive(struct model *model, struct model_task *task);
bool model_could_run(const struct model *model, const struct model_task *task, int engine);
int model_live_count(const struct model *model);
bool model_is_impossible(const struct model *model, const struct model_task *task);
bool model_may_ever_run(const struct model *model, const struct model_task *task, int engine);

#endif
