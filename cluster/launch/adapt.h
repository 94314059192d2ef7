/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * adapt: engines that are started while tasks wait, and end when they have nothing to do. policy.c
 * decides, asker.c keeps asking the controller what there is, adapt.c does it for a supervisor.
 */
#ifndef PX_LAUNCH_ADAPT_H
#define PX_LAUNCH_ADAPT_H

#include "launch.h"

/* ---- policy.c: pure --------------------------------------------------------------- */

struct px_adapt_engine {
    int id, set;
    int64_t idle_ms; /* for how long it has had no work; -1: it has */
};

struct px_adapt_view {
    int waiting;       /* tasks that no engine has taken */
    int64_t waited_ms; /* for how long there have been some */
    const struct px_adapt_engine *engines;
    size_t count;
    int joining;      /* engines that were asked for and have not joined yet */
    int64_t pause_ms; /* launches have failed: none until then */
};

struct px_adapt_orders {
    int start;        /* engines */
    int *retire;      /* ids; the caller's to free */
    size_t count;     /* of these */
    int64_t again_ms; /* when to decide anew, even if nothing is otherwise; -1: need not be */
};

void px_adapt_decide(const struct px_adapt_limits *limits, const struct px_adapt_view *view,
                     struct px_adapt_orders *out);
/* How long after so many launches in a row that failed nothing is started. */
int64_t px_adapt_pause_ms(int failures);
/* "MIN:MAX". PX_EINVAL. */
PX_MUST_USE int px_adapt_parse(const char *text, struct px_adapt_limits *out, struct px_error *err);

/* ---- asker.c ---------------------------------------------------------------------- */

struct px_asker;
struct px_asker_events {
    void (*answered)(void *ctx, const json_t *reply); /* an adapt_reply, or an error; borrowed */
    /* It has ended: the controller is another one now, or not there; `gone`: for minutes. */
    void (*lost)(void *ctx, bool gone);
    void *ctx;
};
/* Forks a process that asks the controller at `place`. */
struct px_asker *px_asker_start(struct px_loop *loop, const struct px_place *place,
                                const struct px_asker_events *events, struct px_error *err);
/* From now on it asks this adapt_request, again when there is no answer; takes `content`. NULL
 * allowed. */
void px_asker_ask(struct px_asker *asker, json_t *content);
/* Kills and reaps it; nothing is called any more. Allowed inside its callbacks. NULL allowed. */
void px_asker_end(struct px_asker *asker);
void px_asker_destroy(struct px_asker *asker); /* as well; not inside its callbacks */

#endif
