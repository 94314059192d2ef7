/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * policy: how many engines to start and which to end. Pure.
 *
 * An engine is started for each task that waits, and as many as the least that there are to be;
 * those that were asked for and have not come count, so that a slow queue is asked once. Tasks that
 * wait while there are engines must have waited a moment: short ones need no more engines.
 */
#include "adapt.h"

#include <stdio.h>
#include <stdlib.h>

#define GROW_MS 1500  /* for which tasks must have waited: what is known is a second old at most */
#define AGAIN_MS 1000 /* until an engine that has got work in that moment is asked again */
#define PAUSE_MS 1000 /* after a launch that failed; twice as long after each more, up to */
#define MOST_PAUSE_MS 60000
#define MOST_ENGINES 100000

static int at_least(int value, int bound)
{
    return value > bound ? value : bound;
}

static int at_most(int value, int bound)
{
    return value < bound ? value : bound;
}

static void again(struct px_adapt_orders *out, int64_t ms)
{
    if (out->again_ms < 0 || ms < out->again_ms)
        out->again_ms = ms;
}

static void grow(const struct px_adapt_limits *limits, const struct px_adapt_view *view,
                 struct px_adapt_orders *out)
{
    const int there = (int)view->count + view->joining;
    int wanted = at_least(view->waiting - view->joining, 0);
    if (wanted > 0 && there > 0 && there < limits->most && view->waited_ms < GROW_MS) {
        wanted = 0;
        again(out, GROW_MS - view->waited_ms);
    }
    wanted = at_most(at_least(wanted, limits->least - there), limits->most - there);
    if (wanted > 0 && view->pause_ms > 0)
        again(out, view->pause_ms);
    else
        out->start = at_least(wanted, 0);
}

/* Those without work for the longest time first. */
static int by_idleness(const void *a, const void *b)
{
    const struct px_adapt_engine *one = a, *other = b;
    if (one->idle_ms != other->idle_ms)
        return one->idle_ms > other->idle_ms ? -1 : 1;
    return one->id > other->id ? -1 : one->id < other->id;
}

static void shrink(const struct px_adapt_limits *limits, const struct px_adapt_view *view,
                   struct px_adapt_orders *out)
{
    const size_t least = (size_t)limits->least;
    size_t spare = view->count > least ? view->count - least : 0;
    if (spare == 0)
        return;
    struct px_adapt_engine *engines = px_alloc(view->count * sizeof *engines);
    for (size_t i = 0; i < view->count; i++)
        engines[i] = view->engines[i];
    qsort(engines, view->count, sizeof *engines, by_idleness);
    out->retire = px_alloc(spare * sizeof *out->retire);
    for (size_t i = 0; i < spare && engines[i].idle_ms >= 0; i++) {
        if (engines[i].idle_ms < limits->idle_ms) {
            again(out, limits->idle_ms - engines[i].idle_ms);
            break;
        }
        out->retire[out->count++] = engines[i].id;
        again(out, AGAIN_MS);
    }
    free(engines);
}

void px_adapt_decide(const struct px_adapt_limits *limits, const struct px_adapt_view *view,
                     struct px_adapt_orders *out)
{
    *out = (struct px_adapt_orders){.again_ms = -1};
    grow(limits, view, out);
    shrink(limits, view, out);
}

int64_t px_adapt_pause_ms(int failures)
{
    int64_t pause_ms = failures > 0 ? PAUSE_MS : 0;
    for (int i = 1; i < failures && pause_ms < MOST_PAUSE_MS; i++)
        pause_ms *= 2;
    return pause_ms < MOST_PAUSE_MS ? pause_ms : MOST_PAUSE_MS;
}

int px_adapt_parse(const char *text, struct px_adapt_limits *out, struct px_error *err)
{
    long least = -1, most = -1;
    int end = 0;
    if (sscanf(text, "%ld:%ld%n", &least, &most, &end) != 2 || text[end] || least < 0 || most < 1 ||
        most > MOST_ENGINES)
        return px_fail(err, PX_EINVAL, "takes MIN:MAX engines, as in 0:8, not '%.60s'", text);
    if (least > most)
        return px_fail(err, PX_EINVAL, "%ld engines at least are more than %ld at most", least,
                       most);
    out->least = (int)least;
    out->most = (int)most;
    return 0;
}
