/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Engines that come and go: what the controller says (asker.c) and how the sets of engines are go
 * to the policy, and what it decides is done.
 *
 *     an answer, a set that has ended, a time ──▶ decide ──▶ start a set of engines
 *                                                       ──▶ ask anew, with who is to retire
 *
 * Engines that are started together are a set, which ends by itself when the last of them has
 * retired. Each engine offers the number of its set (protocol.h), so that it is known how many of
 * those asked for have not come. A set that ends before all of its engines came has failed: the
 * next one is started after a pause, which grows.
 */
#include "adapt.h"
#include "supervisor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ASKER_AGAIN_MS 2000

struct adapt_set {
    struct px_set *set;
    char id[64];
    int number, count;
    int joined, there; /* of these, so far and now */
};

struct px_adapt {
    struct supervisor *sv;
    struct px_asker *asker;
    struct px_timer *timer, *asker_timer;
    struct adapt_set *sets; /* that have not ended; the supervisor's own has the number 0 */
    size_t set_count;
    int numbers; /* given so far */
    int failures;
    int64_t paused_ms; /* nothing is started until then */
    /* What the controller said last, and when. */
    json_int_t serial;
    int64_t told_ms, waiting_ms; /* since when tasks wait */
    int waiting;
    struct px_adapt_engine *engines; /* by id */
    size_t engine_count;
};

static void act(struct px_adapt *adapt);

/* The controller tells for a minute of those that have gone. */
static bool is_there(const struct px_adapt_engine *engine)
{
    return engine->idle_ms >= -1;
}

/* ---- sets ------------------------------------------------------------------------- */

static struct adapt_set *add_set(struct px_adapt *adapt, struct px_set *set, const char *id,
                                 int number, int count)
{
    adapt->sets = px_realloc(adapt->sets, (adapt->set_count + 1) * sizeof *adapt->sets);
    struct adapt_set *added = &adapt->sets[adapt->set_count++];
    *added = (struct adapt_set){.set = set, .number = number, .count = count};
    snprintf(added->id, sizeof added->id, "%s", id);
    return added;
}

static void fail(struct px_adapt *adapt, const char *what)
{
    const int64_t pause_ms = px_adapt_pause_ms(++adapt->failures);
    adapt->paused_ms = px_now_ms() + pause_ms;
    px_sv_say(adapt->sv, "%s; the next try is in %lld s at the soonest", what,
              (long long)(pause_ms / 1000));
}

static void drop_set(struct px_adapt *adapt, size_t index)
{
    const struct adapt_set ended = adapt->sets[index];
    adapt->sets[index] = adapt->sets[--adapt->set_count];
    if (ended.joined < ended.count) {
        char what[100];
        snprintf(what, sizeof what, "%d of %d engines have not joined", ended.count - ended.joined,
                 ended.count);
        fail(adapt, what);
    }
    if (ended.number == 0)
        return; /* the supervisor's */
    struct px_error err;
    const int lock = px_clusterfile_lock(adapt->sv->place, &err);
    px_clusterfile_withdraw(adapt->sv->place, 0, ended.id);
    px_clusterfile_unlock(lock);
    px_set_destroy(ended.set);
}

/* Their engines are no children of this process: only looking tells of their end. */
void px_sv_adapt_look(struct supervisor *sv)
{
    struct px_adapt *adapt = sv->adapt;
    bool changed = false;
    if (!adapt || sv->phase != RUNNING)
        return;
    for (size_t i = 0; i < adapt->set_count;) {
        struct px_set *set = adapt->sets[i].set;
        const bool over = set->ops->refresh(set) == 0;
        changed = changed || over;
        if (over)
            drop_set(adapt, i);
        else
            i++;
    }
    if (changed)
        act(adapt);
}

/* Asked for, and neither come nor lost. */
static int count_joining(const struct px_adapt *adapt)
{
    int joining = 0;
    for (size_t i = 0; i < adapt->set_count; i++) {
        const struct adapt_set *set = &adapt->sets[i];
        const int failed = set->set->lost - (set->joined - set->there);
        const int left = set->count - set->joined - (failed > 0 ? failed : 0);
        joining += left > 0 ? left : 0;
    }
    return joining;
}

/* Ids of sets begin with a time, as ipyparallel's; ours differ by it, and end with our pid. */
static void start_set(struct px_adapt *adapt, int count)
{
    struct supervisor *sv = adapt->sv;
    struct px_error err;
    char id[64];
    const int number = ++adapt->numbers;
    snprintf(id, sizeof id, "%ld%s", strtol(sv->set_id, NULL, 10) + number,
             strchr(sv->set_id, '-'));
    struct px_set *set = px_sv_start_set(sv, id, number, count, &err);
    if (!set) {
        fail(adapt, err.text);
        return;
    }
    px_log(PX_INFO, "engines.asked", "count=%d set=%s", count, id);
    add_set(adapt, set, id, number, count);
    px_sv_write(sv);
}

/* ---- deciding --------------------------------------------------------------------- */

static void ask(struct px_adapt *adapt, const struct px_adapt_orders *orders)
{
    const struct px_adapt_limits *limits = &adapt->sv->plan->adapt;
    json_t *retire = json_array();
    for (size_t i = 0; orders && i < orders->count; i++)
        json_array_append_new(retire, json_integer(orders->retire[i]));
    px_asker_ask(adapt->asker,
                 json_pack("{s:s, s:I, s:i, s:i, s:i, s:f, s:o}", "owner", adapt->sv->set_id,
                           "seen", adapt->serial, "min", limits->least, "max", limits->most,
                           "joining", count_joining(adapt), "idle_s", (double)limits->idle_ms / 1e3,
                           "retire", retire));
}

static void on_timer(struct px_loop *loop, void *ctx)
{
    struct px_adapt *adapt = ctx;
    (void)loop;
    adapt->timer = NULL;
    act(adapt);
}

static void decide(struct px_adapt *adapt, int64_t now_ms, struct px_adapt_orders *orders)
{
    struct px_adapt_engine *engines = px_alloc((adapt->engine_count + 1) * sizeof *engines);
    size_t count = 0;
    for (size_t i = 0; i < adapt->engine_count; i++) {
        if (!is_there(&adapt->engines[i]))
            continue;
        engines[count] = adapt->engines[i];
        if (engines[count].idle_ms >= 0)
            engines[count].idle_ms += now_ms - adapt->told_ms;
        count++;
    }
    const struct px_adapt_view view = {.waiting = adapt->waiting,
                                       .waited_ms = now_ms - adapt->waiting_ms,
                                       .engines = engines,
                                       .count = count,
                                       .joining = count_joining(adapt),
                                       .pause_ms = adapt->paused_ms - now_ms};
    px_adapt_decide(&adapt->sv->plan->adapt, &view, orders);
    free(engines);
}

/* A launch that fails at once leaves a pause, for which it is decided again. */
static void act(struct px_adapt *adapt)
{
    struct px_adapt_orders orders;
    if (adapt->serial == 0) /* nothing is known yet */
        return;
    decide(adapt, px_now_ms(), &orders);
    if (orders.start > 0) {
        start_set(adapt, orders.start);
        free(orders.retire);
        decide(adapt, px_now_ms(), &orders);
    }
    ask(adapt, &orders);
    free(orders.retire);
    px_loop_cancel(adapt->sv->loop, adapt->timer);
    adapt->timer = orders.again_ms < 0
                       ? NULL
                       : px_loop_timer(adapt->sv->loop, orders.again_ms, 0, on_timer, adapt);
}

/* ---- what the controller says ----------------------------------------------------- */

static int by_id(const void *a, const void *b)
{
    const struct px_adapt_engine *one = a, *other = b;
    return one->id < other->id ? -1 : one->id > other->id;
}

/* One that was not known a moment ago has joined. */
static void count_engine(struct px_adapt *adapt, const struct px_adapt_engine *engine)
{
    const bool known =
        adapt->engine_count > 0 &&
        bsearch(engine, adapt->engines, adapt->engine_count, sizeof *engine, by_id) != NULL;
    if (!known)
        adapt->failures = 0;
    for (size_t i = 0; i < adapt->set_count; i++) {
        struct adapt_set *set = &adapt->sets[i];
        if (set->number != engine->set)
            continue;
        set->joined += !known;
        set->there += is_there(engine);
    }
}

static void read_engines(struct px_adapt *adapt, const json_t *list)
{
    size_t i, count = 0;
    json_t *item;
    json_int_t idle_ms;
    struct px_adapt_engine *engines = px_alloc((json_array_size(list) + 1) * sizeof *engines);
    for (i = 0; i < adapt->set_count; i++)
        adapt->sets[i].there = 0;
    json_array_foreach(list, i, item) {
        struct px_adapt_engine *engine = &engines[count];
        if (json_unpack(item, "[i, i, I]", &engine->id, &engine->set, &idle_ms) < 0)
            continue;
        engine->idle_ms = idle_ms;
        count_engine(adapt, engine);
        count++;
    }
    qsort(engines, count, sizeof *engines, by_id);
    free(adapt->engines);
    adapt->engines = engines;
    adapt->engine_count = count;
}

static void on_answered(void *ctx, const json_t *reply)
{
    struct px_adapt *adapt = ctx;
    json_int_t waiting = 0;
    json_t *engines = NULL;
    if (json_unpack((json_t *)reply, "{s:I, s:I, s:o}", "serial", &adapt->serial, "waiting",
                    &waiting, "engines", &engines) < 0) {
        const char *why = json_string_value(json_object_get(reply, "evalue"));
        px_sv_say(adapt->sv, "the number of engines stays as it is: %.200s", why ? why : "?");
        px_asker_end(adapt->asker);
        adapt->sv->steady = true;
        if (adapt->sv->controller || adapt->sv->engines)
            px_sv_announce(adapt->sv);
        else
            px_sv_stop(adapt->sv, 1); /* there is nothing to look after */
        return;
    }
    px_sv_announce(adapt->sv);
    adapt->told_ms = px_now_ms();
    if (adapt->waiting == 0)
        adapt->waiting_ms = adapt->told_ms;
    adapt->waiting = waiting < INT32_MAX ? (int)waiting : INT32_MAX;
    read_engines(adapt, engines);
    act(adapt);
}

static void start_asker(struct px_adapt *adapt);

static void on_asker_timer(struct px_loop *loop, void *ctx)
{
    struct px_adapt *adapt = ctx;
    (void)loop;
    adapt->asker_timer = NULL;
    px_asker_destroy(adapt->asker);
    adapt->asker = NULL;
    start_asker(adapt);
}

/* Another controller may be there soon, if there is none. */
static void on_lost(void *ctx, bool gone)
{
    struct px_adapt *adapt = ctx;
    struct supervisor *sv = adapt->sv;
    if (px_sv_is_abandoned(sv, gone)) {
        px_sv_say(sv, "the controller has ended");
        px_sv_stop(sv, 0);
        return;
    }
    adapt->asker_timer = px_loop_timer(sv->loop, ASKER_AGAIN_MS, 0, on_asker_timer, adapt);
}

static void start_asker(struct px_adapt *adapt)
{
    const struct px_asker_events events = {.answered = on_answered, .lost = on_lost, .ctx = adapt};
    struct px_error err;
    adapt->asker = px_asker_start(adapt->sv->loop, adapt->sv->place, &events, &err);
    if (adapt->asker)
        ask(adapt, NULL);
    else
        on_lost(adapt, false); /* to be tried again */
}

/* ---- of a supervisor -------------------------------------------------------------- */

void px_sv_adapt(struct supervisor *sv)
{
    struct px_adapt *adapt = px_alloc(sizeof *adapt);
    adapt->sv = sv;
    sv->adapt = adapt;
    if (sv->engines)
        add_set(adapt, sv->engines, sv->set_id, 0, sv->plan->n);
    start_asker(adapt);
}

void px_sv_adapt_end(struct supervisor *sv)
{
    struct px_adapt *adapt = sv->adapt;
    if (!adapt)
        return;
    px_asker_end(adapt->asker);
    px_loop_cancel(sv->loop, adapt->timer);
    px_loop_cancel(sv->loop, adapt->asker_timer);
    adapt->timer = adapt->asker_timer = NULL;
}

struct px_set **px_sv_adapt_sets(const struct supervisor *sv, size_t room, size_t *count)
{
    const struct px_adapt *adapt = sv->adapt;
    struct px_set **sets = px_alloc(((adapt ? adapt->set_count : 0) + room) * sizeof *sets);
    *count = 0;
    for (size_t i = 0; adapt && i < adapt->set_count; i++)
        if (adapt->sets[i].number > 0)
            sets[(*count)++] = adapt->sets[i].set;
    return sets;
}

int px_sv_adapt_put(struct supervisor *sv, struct px_error *err)
{
    const struct px_adapt *adapt = sv->adapt;
    for (size_t i = 0; adapt && i < adapt->set_count; i++)
        if (adapt->sets[i].number > 0 &&
            px_sv_put(sv, adapt->sets[i].set, adapt->sets[i].id, err) < 0)
            return -1;
    return 0;
}

void px_sv_adapt_withdraw(struct supervisor *sv)
{
    const struct px_adapt *adapt = sv->adapt;
    for (size_t i = 0; adapt && i < adapt->set_count; i++)
        px_clusterfile_withdraw(sv->place, 0, adapt->sets[i].id);
}

void px_sv_adapt_destroy(struct supervisor *sv)
{
    struct px_adapt *adapt = sv->adapt;
    if (!adapt)
        return;
    px_sv_adapt_end(sv);
    px_asker_destroy(adapt->asker);
    for (size_t i = 0; i < adapt->set_count; i++)
        if (adapt->sets[i].number > 0)
            px_set_destroy(adapt->sets[i].set);
    free(adapt->sets);
    free(adapt->engines);
    free(adapt);
    sv->adapt = NULL;
}
