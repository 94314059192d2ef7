/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * End sets of processes in order: for each SIGTERM, then SIGKILL after a grace, then the next.
 *
 * The sets may hold children (their end is told by SIGCHLD: call px_stopper_check) or processes of
 * others (only looking tells: a timer looks every 20 ms, while stopping and at no other
 * time). SIGKILL is repeated, because a set may have gained a member meanwhile.
 */
#include "launch.h"

#include <signal.h>
#include <stdlib.h>

#define LOOK_MS 20
#define KILL_AGAIN_MS 500

struct px_stopper {
    struct px_loop *loop;
    struct px_set **sets;
    size_t count, at; /* sets[at] is being ended */
    int64_t grace_ms, kill_at_ms;
    bool asked; /* sets[at] has got its SIGTERM */
    struct px_timer *timer;
    px_loop_fn *done;
    void *ctx;
};

static void on_look(struct px_loop *loop, void *ctx)
{
    (void)loop;
    px_stopper_check(ctx);
}

struct px_stopper *px_stopper_start(struct px_loop *loop, struct px_set *const *sets, size_t count,
                                    int64_t grace_ms, px_loop_fn *done, void *ctx)
{
    struct px_stopper *stopper = px_alloc(sizeof *stopper);
    stopper->loop = loop;
    stopper->sets = px_alloc((count + 1) * sizeof *stopper->sets);
    for (size_t i = 0; i < count; i++)
        if (sets[i])
            stopper->sets[stopper->count++] = sets[i];
    stopper->grace_ms = grace_ms;
    stopper->done = done;
    stopper->ctx = ctx;
    stopper->timer = px_loop_timer(loop, 0, LOOK_MS, on_look, stopper);
    return stopper;
}

/* True while sets[at] runs. */
static bool press(struct px_stopper *stopper)
{
    struct px_set *set = stopper->sets[stopper->at];
    if (set->ops->refresh(set) == 0)
        return false;
    const int64_t now = px_now_ms();
    if (!stopper->asked) {
        stopper->asked = true;
        stopper->kill_at_ms = now + stopper->grace_ms;
        if (stopper->grace_ms > 0)
            set->ops->signal(set, SIGTERM);
    }
    if (now >= stopper->kill_at_ms) {
        set->ops->signal(set, SIGKILL);
        stopper->kill_at_ms = now + KILL_AGAIN_MS;
    }
    return true;
}

void px_stopper_check(struct px_stopper *stopper)
{
    while (stopper->at < stopper->count) {
        if (press(stopper))
            return;
        stopper->at++;
        stopper->asked = false;
    }
    if (!stopper->timer)
        return;
    px_loop_cancel(stopper->loop, stopper->timer);
    stopper->timer = NULL;
    stopper->done(stopper->loop, stopper->ctx);
}

void px_stopper_hurry(struct px_stopper *stopper)
{
    stopper->grace_ms = 0;
    stopper->kill_at_ms = 0;
    px_stopper_check(stopper);
}

void px_stopper_destroy(struct px_stopper *stopper)
{
    if (!stopper)
        return;
    px_loop_cancel(stopper->loop, stopper->timer);
    free(stopper->sets);
    free(stopper);
}
