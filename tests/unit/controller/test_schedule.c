/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The scheduling core against a simple model, by chance. Its rules one by one:
 * test_schedule_rules.c.
 *
 * The model keeps every task and engine in plain arrays and knows nothing of queues. It checks
 * each action when it comes (the engine may run the task, has room, nobody who waits longer
 * could have gone there) and after each event that nothing was left undone (no waiting task
 * could run on an engine with room, no impossible task still waits).
 */
#include "schedule.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MAX_TASKS 4000
#define MAX_ENGINES 64

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
    int64_t timeout_ms, deadline_ms;
    int engine; /* running, or where it ended; -1 none */
    int killer; /* engine that died with it, -1 none */
    enum px_why why;
    bool shunned[MAX_ENGINES];
    bool released;
};

struct model_engine {
    bool alive, known;
    unsigned load, features;
};

struct model {
    struct px_schedule *schedule;
    const char *scheme;
    struct model_task tasks[MAX_TASKS];
    int count;
    struct model_engine engines[MAX_ENGINES];
    int engine_count;
    unsigned hwm;
    int64_t now_ms;
    long tickets;
    uint64_t random;
    bool serving; /* an engine got room: who waits longest is to go first */
};

static unsigned roll(struct model *model, unsigned below)
{
    model->random = model->random * 6364136223846793005ULL + 1442695040888963407ULL;
    return (unsigned)((model->random >> 33) % below);
}

static void name_task(char out[32], int index)
{
    snprintf(out, 32, "s%d_%d_%d", index % 3, 77, index);
}

static int index_of(const char *msg_id)
{
    return atoi(strrchr(msg_id, '_') + 1);
}

/* ---- the rules, said plainly ----------------------------------------------- */

static bool accepts(const struct model_set *set, const struct model_task *task)
{
    return (task->state == M_OK && set->success) || (task->state == M_FAILED && set->failure);
}

static bool ended(const struct model_task *task)
{
    return task->state == M_OK || task->state == M_FAILED;
}

static bool set_met(const struct model *model, const struct model_set *set)
{
    int good = 0;
    for (int i = 0; i < set->count; i++)
        good += accepts(set, &model->tasks[set->ids[i]]);
    return set->count == 0 || (set->all ? good == set->count : good > 0);
}

static bool set_unreachable(const struct model *model, const struct model_set *set)
{
    int bad = 0;
    for (int i = 0; i < set->count; i++) {
        const struct model_task *task = &model->tasks[set->ids[i]];
        bad += ended(task) && !accepts(set, task);
    }
    return set->count > 0 && (set->all ? bad > 0 : bad == set->count);
}

static bool followed_on(const struct model *model, const struct model_set *set, int engine)
{
    int good = 0;
    for (int i = 0; i < set->count; i++) {
        const struct model_task *task = &model->tasks[set->ids[i]];
        good += accepts(set, task) && task->engine == engine;
    }
    return set->count == 0 || (set->all ? good == set->count : good > 0);
}

static bool may_ever_run(const struct model *model, const struct model_task *task, int engine)
{
    const struct model_engine *e = &model->engines[engine];
    bool targeted = task->target_count == 0;
    for (int i = 0; i < task->target_count; i++)
        targeted |= task->targets[i] == engine;
    return e->alive && targeted && !task->shunned[engine] &&
           (e->features & task->needs) == task->needs && followed_on(model, &task->follow, engine);
}

static bool has_room(const struct model *model, int engine)
{
    return model->engines[engine].alive &&
           (model->hwm == 0 || model->engines[engine].load < model->hwm);
}

static bool could_run(const struct model *model, const struct model_task *task, int engine)
{
    return task->state == M_BLOCKED && set_met(model, &task->after) &&
           may_ever_run(model, task, engine);
}

static bool all_ended(const struct model *model, const struct model_set *set)
{
    for (int i = 0; i < set->count; i++) {
        if (!ended(&model->tasks[set->ids[i]]))
            return false;
    }
    return true;
}

static int live_count(const struct model *model)
{
    int live = 0;
    for (int e = 0; e < model->engine_count; e++)
        live += model->engines[e].alive;
    return live;
}

/* Accepted followed tasks ended on different engines, or on none. */
static bool follow_split(const struct model *model, const struct model_set *set)
{
    int home = -2;
    for (int i = 0; set->all && i < set->count; i++) {
        const struct model_task *task = &model->tasks[set->ids[i]];
        if (!accepts(set, task))
            continue;
        if (task->engine < 0 || (home != -2 && home != task->engine))
            return true;
        home = task->engine;
    }
    return false;
}

/* `any` followed tasks all ended, accepted ones nowhere. */
static bool follow_nowhere(const struct model *model, const struct model_set *set)
{
    if (set->all || set->count == 0 || !all_ended(model, set))
        return false;
    for (int i = 0; i < set->count; i++) {
        const struct model_task *task = &model->tasks[set->ids[i]];
        if (accepts(set, task) && task->engine >= 0)
            return false;
    }
    return true;
}

static bool is_impossible(const struct model *model, const struct model_task *task)
{
    bool after_met = set_met(model, &task->after);
    if ((!after_met && set_unreachable(model, &task->after)) ||
        set_unreachable(model, &task->follow) || follow_split(model, &task->follow) ||
        follow_nowhere(model, &task->follow))
        return true;
    if (!after_met || (task->target_count == 0 && task->follow.count == 0))
        return false;
    for (int e = 0; e < model->engine_count; e++) {
        if (may_ever_run(model, task, e))
            return false;
    }
    if (task->follow.count > 0)
        return all_ended(model, &task->follow);
    return live_count(model) > 0;
}

/* ---- what the schedule does, checked at once ------------------------------- */

static unsigned least_load(const struct model *model, const struct model_task *task)
{
    unsigned least = UINT32_MAX;
    for (int e = 0; e < model->engine_count; e++) {
        if (has_room(model, e) && may_ever_run(model, task, e) && model->engines[e].load < least)
            least = model->engines[e].load;
    }
    return least;
}

static void on_send(void *ctx, const char *msg_id, void *payload, const struct px_worker *to)
{
    struct model *model = ctx;
    struct model_task *task = payload;
    int engine = atoi(to->uuid + 1);
    assert_ptr_equal(task, &model->tasks[index_of(msg_id)]);
    assert_true(could_run(model, task, engine));
    assert_true(has_room(model, engine));
    for (int i = 0; i < model->count && model->serving; i++) {
        const struct model_task *other = &model->tasks[i];
        if (other->since < task->since)
            assert_false(could_run(model, other, engine));
    }
    if (strcmp(model->scheme, "leastload") == 0 && !model->serving)
        assert_int_equal(model->engines[engine].load, least_load(model, task));
    task->state = M_RUNNING;
    task->engine = engine;
    task->deadline_ms = 0;
    model->engines[engine].load++;
}

static void on_fail(void *ctx, const char *msg_id, void *payload, enum px_why why,
                    const struct px_worker *on)
{
    struct model *model = ctx;
    struct model_task *task = payload;
    (void)msg_id;
    if (why == PX_WHY_ENGINE_DIED) {
        assert_int_equal(task->state, M_RUNNING);
        assert_int_equal(task->engine, atoi(on->uuid + 1));
        assert_int_equal(task->retries, 0);
    } else {
        assert_int_equal(task->state, M_BLOCKED);
        if (why == PX_WHY_IMPOSSIBLE)
            assert_true(is_impossible(model, task));
        if (why == PX_WHY_TIMEOUT)
            assert_true(task->deadline_ms > 0 && task->deadline_ms <= model->now_ms);
        task->engine = -1;
    }
    task->why = why;
    task->state = M_FAILED;
}

static void on_release(void *ctx, void *payload)
{
    struct model_task *task = payload;
    (void)ctx;
    assert_false(task->released);
    task->released = true;
}

static const struct px_schedule_ops ops = {on_send, on_fail, on_release};

static void check_nothing_left(struct model *model)
{
    for (int i = 0; i < model->count; i++) {
        const struct model_task *task = &model->tasks[i];
        assert_int_equal(task->released, ended(task));
        if (task->state != M_BLOCKED)
            continue;
        assert_false(is_impossible(model, task));
        for (int e = 0; e < model->engine_count; e++)
            assert_false(has_room(model, e) && could_run(model, task, e));
    }
}

/* ---- events by chance ------------------------------------------------------ */

static void random_set(struct model *model, struct model_set *set, struct px_depend *out)
{
    struct px_buf json = {0};
    *set = (struct model_set){.all = roll(model, 2), .success = true};
    set->failure = roll(model, 3) == 0;
    set->success = !set->failure || roll(model, 2);
    int want = model->count > 0 && roll(model, 3) == 0 ? 1 + (int)roll(model, 3) : 0;
    px_buf_printf(&json, "{\"all\": %s, \"success\": %s, \"failure\": %s, \"dependencies\": [",
                  set->all ? "true" : "false", set->success ? "true" : "false",
                  set->failure ? "true" : "false");
    for (int k = 0; k < want; k++) {
        int span = model->count < 40 ? model->count : 40;
        int id = model->count - 1 - (int)roll(model, (unsigned)span);
        bool twice = false;
        for (int j = 0; j < set->count; j++)
            twice |= set->ids[j] == id;
        char name[32];
        name_task(name, id);
        px_buf_printf(&json, "%s\"%s\"", k ? ", " : "", name);
        if (!twice)
            set->ids[set->count++] = id;
    }
    px_buf_text(&json, "]}");
    assert_int_equal(px_depend_parse(px_buf_span(&json), out, NULL), 0);
    px_buf_fini(&json);
}

static void submit_one(struct model *model)
{
    if (model->count == MAX_TASKS)
        return;
    int index = model->count;
    struct model_task *task = &model->tasks[index];
    struct px_task_spec spec = {0};
    char name[32];
    random_set(model, &task->after, &spec.after);
    random_set(model, &task->follow, &spec.follow);
    if (roll(model, 4) == 0 && model->engine_count > 0) {
        task->target_count = 1 + (int)roll(model, 3);
        spec.targets = px_alloc(sizeof(char *) * 3);
        spec.target_count = (size_t)task->target_count;
        for (int i = 0; i < task->target_count; i++) {
            task->targets[i] = (int)roll(model, (unsigned)model->engine_count);
            spec.targets[i] = px_format("e%d", task->targets[i]);
        }
    }
    spec.retries = task->retries = roll(model, 4) == 0 ? (int)roll(model, 3) : 0;
    spec.needs = task->needs = roll(model, 5) == 0;
    spec.timeout_ms = task->timeout_ms = roll(model, 6) == 0 ? 1 + (int)roll(model, 50) : 0;
    task->deadline_ms = task->timeout_ms ? model->now_ms + task->timeout_ms : 0;
    task->state = M_BLOCKED;
    task->engine = -1;
    task->since = ++model->tickets;
    model->count++;
    name_task(name, index);
    assert_false(px_schedule_holds(model->schedule, px_span_of(name)));
    px_schedule_submit(model->schedule, px_span_of(name), &spec, task);
}

static void engine_up(struct model *model)
{
    if (model->engine_count == MAX_ENGINES)
        return;
    int e = model->engine_count++;
    char uuid[16];
    snprintf(uuid, sizeof(uuid), "e%d", e);
    model->engines[e] =
        (struct model_engine){.alive = true, .known = true, .features = roll(model, 4) != 0};
    model->serving = true;
    assert_true(
        px_schedule_engine_up(model->schedule, px_span_of(uuid), model->engines[e].features));
}

static void engine_down(struct model *model, bool at_once)
{
    int e = model->engine_count > 0 ? (int)roll(model, (unsigned)model->engine_count) : -1;
    char uuid[16];
    if (e < 0 || !model->engines[e].known)
        return;
    snprintf(uuid, sizeof(uuid), "e%d", e);
    if (model->engines[e].alive) {
        model->engines[e].alive = false;
        px_schedule_engine_down(model->schedule, px_span_of(uuid));
        check_nothing_left(model);
    }
    if (!at_once)
        return;
    model->engines[e].known = false;
    /* Tasks with retries left wait anew; the model does not care for their order. */
    model->tickets++;
    for (int i = 0; i < model->count; i++) {
        struct model_task *task = &model->tasks[i];
        if (task->state != M_RUNNING || task->engine != e || task->retries == 0)
            continue;
        task->state = M_BLOCKED;
        task->retries--;
        task->engine = -1;
        task->shunned[e] = true;
        task->since = model->tickets;
        task->deadline_ms = task->timeout_ms ? model->now_ms + task->timeout_ms : 0;
    }
    model->serving = false;
    px_schedule_engine_lost(model->schedule, px_span_of(uuid));
}

static void reply_to(struct model *model, struct model_task *task, enum px_reply reply)
{
    char name[32], uuid[16];
    int e = task->engine;
    name_task(name, (int)(task - model->tasks));
    snprintf(uuid, sizeof(uuid), "e%d", e);
    model->engines[e].load -= model->engines[e].alive;
    bool again = reply == PX_REPLY_REJECTED || (reply == PX_REPLY_ERROR && task->retries > 0);
    if (again) {
        task->retries -= reply == PX_REPLY_ERROR;
        task->shunned[e] = true;
        task->state = M_BLOCKED;
        task->engine = -1;
        task->since = ++model->tickets;
        task->deadline_ms = task->timeout_ms ? model->now_ms + task->timeout_ms : 0;
    } else {
        task->state = reply == PX_REPLY_OK ? M_OK : M_FAILED;
    }
    enum px_outcome outcome =
        px_schedule_reply(model->schedule, px_span_of(uuid), px_span_of(name), reply);
    assert_int_equal(outcome, again ? PX_SWALLOW : PX_DELIVER);
    px_schedule_run(model->schedule);
}

static void reply_one(struct model *model)
{
    int start = model->count > 0 ? (int)roll(model, (unsigned)model->count) : 0;
    for (int i = 0; i < model->count; i++) {
        struct model_task *task = &model->tasks[(start + i) % model->count];
        if (task->state != M_RUNNING || !model->engines[task->engine].known)
            continue;
        unsigned chance = roll(model, 10);
        reply_to(model, task,
                 chance < 7   ? PX_REPLY_OK
                 : chance < 9 ? PX_REPLY_ERROR
                              : PX_REPLY_REJECTED);
        return;
    }
}

static void tick(struct model *model)
{
    model->now_ms += roll(model, 20);
    px_schedule_tick(model->schedule, model->now_ms);
    for (int i = 0; i < model->count; i++) {
        const struct model_task *task = &model->tasks[i];
        assert_false(task->state == M_BLOCKED && task->deadline_ms > 0 &&
                     task->deadline_ms <= model->now_ms);
    }
}

static void play(const char *scheme, unsigned hwm, uint64_t seed, int events)
{
    struct model *model = px_alloc(sizeof(*model));
    model->random = seed;
    model->hwm = hwm;
    model->scheme = scheme;
    model->schedule = px_schedule_create(&ops, model, px_scheme_find(scheme), hwm, seed + 1);
    for (int i = 0; i < events && model->count < MAX_TASKS; i++) {
        unsigned chance = roll(model, 100);
        model->serving = false;
        if (chance < 40)
            submit_one(model);
        else if (chance < 90)
            reply_one(model);
        else if (chance < 94)
            tick(model);
        else if (chance < 97)
            engine_up(model);
        else
            engine_down(model, chance == 99);
        check_nothing_left(model);
    }
    px_schedule_destroy(model->schedule);
    for (int i = 0; i < model->count; i++)
        assert_true(model->tasks[i].released);
    free(model);
}

static void test_random_events(void **state)
{
    (void)state;
    static const unsigned hwms[] = {1, 2, 0};
    for (size_t s = 0; px_scheme_at(s) != NULL; s++) {
        for (size_t h = 0; h < PX_COUNT(hwms); h++) {
            for (uint64_t seed = 1; seed <= 30; seed++)
                play(px_scheme_at(s)->name, hwms[h], seed * 977 + s, 500);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_events),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
