/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The scheduling core against a simple model, by chance. Its rules one by one:
 * test_schedule_rules.c.
 *
 * The model keeps every task and engine in plain arrays and knows nothing of queues. It checks
 * each action when it comes (the engine may run the task, has room, nobody who waits longer
 * could have gone there) and after each event that nothing was left undone (no waiting task
 * could run on an engine with room, no impossible task still waits).
 *
 * Where tasks may be sent ahead, it checks that only those are which could wait as well (no
 * constraint, no engine free for them), that they come back when their engine is at one task for
 * too long or dies, and that nothing is ever sent to stand behind one that came back from the dead.
 *
 * A test run plays some two million events; PX_TEST_ROUNDS=100 plays a hundred times as many.
 */
#include "schedule_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

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

/* ---- what the schedule does, checked at once ------------------------------- */

static unsigned least_load(const struct model *model, const struct model_task *task)
{
    unsigned least = UINT32_MAX;
    for (int e = 0; e < model->engine_count; e++) {
        if (model_has_room(model, e) && model_may_ever_run(model, task, e) &&
            model->engines[e].load < least)
            least = model->engines[e].load;
    }
    return least;
}

static void check_ahead(struct model *model, const struct model_task *task, int engine)
{
    assert_true(model->ahead && (model->engines[engine].features & PX_FEATURE_RECALL));
    assert_true(model->engines[engine].load <= MOST_AHEAD);
    assert_int_equal(task->target_count + task->follow.count, 0);
    assert_int_equal(task->timeout_us, 0);
    assert_false(task->alone || model_first_of(model, engine)->alone);
    for (int e = 0; e < model->engine_count; e++) {
        assert_false(task->shunned[e]);
        assert_false(model_has_room(model, e) && model_could_run(model, task, e));
    }
}

static void on_send(void *ctx, const char *msg_id, void *payload, const struct px_worker *to)
{
    struct model *model = ctx;
    struct model_task *task = payload;
    int engine = atoi(to->uuid + 1);
    assert_ptr_equal(task, &model->tasks[index_of(msg_id)]);
    assert_true(model_could_run(model, task, engine));
    bool ahead = !model_has_room(model, engine);
    if (ahead)
        check_ahead(model, task, engine);
    for (int i = 0; i < model->open_count && (model->serving || ahead); i++) {
        const struct model_task *other = &model->tasks[model->open[i]];
        if (other->since < task->since)
            assert_false(model_could_run(model, other, engine));
    }
    if (strcmp(model->scheme, "leastload") == 0 && !model->serving && !ahead)
        assert_int_equal(model->engines[engine].load, least_load(model, task));
    task->state = M_RUNNING;
    task->engine = engine;
    task->deadline_us = 0;
    task->sent = ++model->sendings;
    task->asked = false;
    if (model->engines[engine].load++ < 2)
        model->engines[engine].moved_us = model->now_us;
    model->sent_ahead += ahead;
}

static void on_recall(void *ctx, const struct px_worker *from, const char *const *msg_ids,
                      size_t count)
{
    struct model *model = ctx;
    int engine = atoi(from->uuid + 1);
    assert_true(model->engines[engine].alive && count > 0);
    assert_true(model->now_us - model->engines[engine].moved_us >= PATIENCE_US);
    for (size_t i = 0; i < count; i++) {
        struct model_task *task = &model->tasks[index_of(msg_ids[i])];
        assert_true(task->state == M_RUNNING && task->engine == engine);
        assert_true(task != model_first_of(model, engine) && !task->asked);
        task->asked = true;
    }
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
            assert_true(model_is_impossible(model, task));
        if (why == PX_WHY_ABORTED)
            assert_true(task->aborted);
        if (why == PX_WHY_TIMEOUT)
            assert_true(task->deadline_us > 0 && task->deadline_us <= model->now_us);
        task->engine = -1;
    }
    task->why = why;
    model_end(model, task, M_FAILED);
}

static void on_release(void *ctx, void *payload)
{
    struct model *model = ctx;
    struct model_task *task = payload;
    assert_false(task->released);
    task->released = true;
    model->released++;
}

static const struct px_schedule_ops ops = {
    .send = on_send, .fail = on_fail, .release = on_release, .recall = on_recall};

static void check_nothing_left(struct model *model)
{
    assert_int_equal(model->released, model->count - model->open_count);
    for (int i = 0; i < model->open_count; i++) {
        const struct model_task *task = &model->tasks[model->open[i]];
        assert_false(task->released);
        if (task->state != M_BLOCKED)
            continue;
        assert_false(model_is_impossible(model, task) || task->aborted);
        for (int e = 0; e < model->engine_count; e++)
            assert_false(model_has_room(model, e) && model_could_run(model, task, e));
    }
}

/* ---- events by chance ------------------------------------------------------ */

static void random_set(struct model *model, struct model_set *set, struct px_depend *out,
                       bool empty)
{
    struct px_buf json = {0};
    *set = (struct model_set){.all = roll(model, 2), .success = true};
    set->failure = roll(model, 3) == 0;
    set->success = !set->failure || roll(model, 2);
    int want = !empty && model->count > 0 && roll(model, 3) == 0 ? 1 + (int)roll(model, 3) : 0;
    if (want == 0) {
        assert_int_equal(px_depend_parse((struct px_span){0}, out, NULL), 0);
        return;
    }
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
    bool plain = model->ahead && roll(model, 4) > 0; /* most tasks have no constraint */
    random_set(model, &task->after, &spec.after, plain);
    random_set(model, &task->follow, &spec.follow, plain);
    if (!plain && roll(model, 4) == 0 && model->engine_count > 0) {
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
    spec.timeout_us = task->timeout_us =
        !plain && roll(model, 6) == 0 ? 1 + (int)roll(model, 50) : 0;
    task->deadline_us = task->timeout_us ? model->now_us + task->timeout_us : 0;
    model_open(model, task);
    task->engine = -1;
    task->since = ++model->tickets;
    model->count++;
    name_task(name, index);
    assert_false(px_schedule_holds(model->schedule, px_span_of(name)));
    px_schedule_submit(model->schedule, px_span_of(name), &spec, task);
}

static void engine_up(struct model *model)
{
    if (model->engine_count == MAX_ENGINES ||
        (model->ahead && model_live_count(model) >= FEW_ENGINES))
        return;
    int e = model->engine_count++;
    char uuid[16];
    snprintf(uuid, sizeof(uuid), "e%d", e);
    model->engines[e] =
        (struct model_engine){.alive = true,
                              .known = true,
                              .features = (roll(model, 4) != 0) | (roll(model, 3) > 0) << 1};
    model->serving = true;
    assert_true(
        px_schedule_engine_up(model->schedule, px_span_of(uuid), model->engines[e].features));
}

/* Any of the engine's tasks, as a nanny would name it; NULL: nobody knows. */
static const struct model_task *last_begun(struct model *model, int engine)
{
    int start = (int)roll(model, (unsigned)model->open_count + 1);
    for (int i = start; i < model->open_count; i++) {
        const struct model_task *task = &model->tasks[model->open[i]];
        if (task->state == M_RUNNING && task->engine == engine)
            return task;
    }
    return NULL;
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
        for (int i = 0; i < model->open_count; i++)
            model_forgive(model, &model->tasks[model->open[i]]);
        px_schedule_engine_down(model->schedule, px_span_of(uuid));
        check_nothing_left(model);
    }
    if (!at_once)
        return;
    model->engines[e].known = false;
    /* Tasks with retries left wait anew; the model does not care for their order. What was sent
     * ahead waits on. */
    model->tickets++;
    const struct model_task *first = model_first_of(model, e);
    const struct model_task *last = last_begun(model, e);
    for (int i = 0; i < model->open_count; i++) {
        struct model_task *task = &model->tasks[model->open[i]];
        if (task->state != M_RUNNING || task->engine != e)
            continue;
        if (model->ahead && (last != NULL ? task->sent > last->sent : task != first)) {
            task->state = M_BLOCKED;
            task->engine = -1;
            task->alone = last == NULL;
            continue;
        }
        if (task->retries == 0)
            continue;
        task->state = M_BLOCKED;
        task->retries--;
        task->engine = -1;
        task->shunned[e] = task->failed = true;
        model_forgive(model, task);
        task->since = model->tickets;
        task->deadline_us = task->timeout_us ? model->now_us + task->timeout_us : 0;
    }
    model->serving = false;
    char running[32];
    if (last != NULL)
        name_task(running, (int)(last - model->tasks));
    px_schedule_engine_lost(model->schedule, px_span_of(uuid), last ? running : NULL);
}

static void reply_to(struct model *model, struct model_task *task, enum px_reply reply)
{
    char name[32], uuid[16];
    int e = task->engine;
    if (task == model_first_of(model, e))
        model->engines[e].moved_us = model->now_us;
    name_task(name, (int)(task - model->tasks));
    snprintf(uuid, sizeof(uuid), "e%d", e);
    model->engines[e].load -= model->engines[e].alive;
    bool refused = reply == PX_REPLY_REJECTED || reply == PX_REPLY_RECALLED;
    bool again = refused || (reply == PX_REPLY_ERROR && task->retries > 0);
    if (again) {
        task->retries -= reply == PX_REPLY_ERROR;
        task->shunned[e] = true;
        task->failed |= reply == PX_REPLY_ERROR;
        task->state = M_BLOCKED;
        task->engine = -1;
        model_forgive(model, task);
        task->since = ++model->tickets;
        task->deadline_us = task->timeout_us ? model->now_us + task->timeout_us : 0;
    } else {
        model_end(model, task, reply == PX_REPLY_OK ? M_OK : M_FAILED);
    }
    enum px_outcome outcome =
        px_schedule_reply(model->schedule, px_span_of(uuid), px_span_of(name), reply,
                          roll(model, 3) ? (int64_t)roll(model, 300) : -1);
    assert_int_equal(outcome, again ? PX_SWALLOW : PX_DELIVER);
    px_schedule_run(model->schedule);
}

/* An engine hands back one task: one it was asked for, or any, which is a refusal. */
static void hand_back(struct model *model, struct model_task *task)
{
    if (!task->asked) {
        reply_to(model, task, PX_REPLY_RECALLED);
        return;
    }
    char name[32], uuid[16];
    int e = task->engine;
    if (task == model_first_of(model, e))
        model->engines[e].moved_us = model->now_us;
    name_task(name, (int)(task - model->tasks));
    snprintf(uuid, sizeof(uuid), "e%d", e);
    model->engines[e].load -= model->engines[e].alive;
    task->state = M_BLOCKED;
    task->engine = -1;
    assert_int_equal(px_schedule_reply(model->schedule, px_span_of(uuid), px_span_of(name),
                                       PX_REPLY_RECALLED, -1),
                     PX_SWALLOW);
    px_schedule_run(model->schedule);
    model->handed_back++;
}

static void reply_one(struct model *model)
{
    int start = model->open_count > 0 ? (int)roll(model, (unsigned)model->open_count) : 0;
    for (int i = 0; i < model->open_count; i++) {
        struct model_task *task = &model->tasks[model->open[(start + i) % model->open_count]];
        if (task->state != M_RUNNING || !model->engines[task->engine].known)
            continue;
        unsigned chance = roll(model, 10);
        if (task->asked ? roll(model, 3) > 0 : roll(model, 50) == 0) {
            hand_back(model, task);
            return;
        }
        reply_to(model, task,
                 chance < 7   ? PX_REPLY_OK
                 : chance < 9 ? PX_REPLY_ERROR
                              : PX_REPLY_REJECTED);
        return;
    }
}

/* Ends any task that no engine has; one that an engine has, or the next to come, ends later. */
static void abort_one(struct model *model)
{
    int start = (int)roll(model, (unsigned)model->open_count + 1);
    int index = start < model->open_count ? model->open[start] : model->count;
    if (index == MAX_TASKS)
        return;
    struct model_task *task = &model->tasks[index];
    enum model_state before = task->state;
    char name[32];
    name_task(name, index);
    task->aborted = true;
    px_schedule_abort(model->schedule, px_span_of(name));
    assert_int_equal(task->state, before == M_BLOCKED ? M_FAILED : before);
    px_schedule_run(model->schedule);
}

static void tick(struct model *model)
{
    model->now_us += roll(model, 8) ? roll(model, 20) : roll(model, 2 * PATIENCE_US);
    px_schedule_tick(model->schedule, model->now_us);
    assert_true(px_schedule_deadline(model->schedule) < 0 ||
                px_schedule_deadline(model->schedule) > model->now_us);
    for (int i = 0; i < model->open_count; i++) {
        const struct model_task *task = &model->tasks[model->open[i]];
        assert_false(task->state == M_BLOCKED && task->deadline_us > 0 &&
                     task->deadline_us <= model->now_us);
        /* Behind one that runs for too long stands nothing that was not asked for. */
        if (!model->ahead || task->state != M_RUNNING || !model->engines[task->engine].alive)
            continue;
        assert_true(task->asked || task == model_first_of(model, task->engine) ||
                    model->now_us - model->engines[task->engine].moved_us < PATIENCE_US);
    }
}

/* What a game is played with. */
struct game {
    const char *scheme;
    unsigned hwm;
    bool ahead;
    uint64_t seed;
};

static void one_event(struct model *model)
{
    unsigned chance = roll(model, 100);
    model->serving = false;
    if (chance < (model->ahead ? 50 : 40))
        submit_one(model);
    else if (chance < 90)
        reply_one(model);
    else if (chance < 93)
        tick(model);
    else if (chance < 94)
        abort_one(model);
    else if (chance < 97)
        engine_up(model);
    else
        engine_down(model, chance == 99);
    check_nothing_left(model);
}

static long play(const struct game *game, int events)
{
    struct model *model = px_alloc(sizeof(*model));
    model->random = game->seed;
    model->hwm = game->hwm;
    model->ahead = game->ahead;
    model->scheme = game->scheme;
    model->schedule =
        px_schedule_create(&ops, model, px_scheme_find(game->scheme), game->hwm, game->seed + 1);
    if (game->ahead)
        px_schedule_allow_ahead(model->schedule);
    for (int i = 0; i < events && model->count < MAX_TASKS; i++)
        one_event(model);
    px_schedule_destroy(model->schedule);
    for (int i = 0; i < model->count; i++)
        assert_true(model->tasks[i].released);
    long ahead = model->sent_ahead * (model->handed_back > 0);
    free(model);
    return ahead;
}

/* How many games of a kind. */
static uint64_t games(void)
{
    const char *text = getenv("PX_TEST_ROUNDS");
    long rounds = text ? atol(text) : 1;
#ifdef __SANITIZE_ADDRESS__
    const uint64_t once = 10; /* that takes ten times as long */
#else
    const uint64_t once = 105;
#endif
    return rounds > 0 ? (uint64_t)rounds * once : once;
}

static void test_random_events(void **state)
{
    (void)state;
    static const unsigned hwms[] = {1, 2, 0};
    for (size_t s = 0; px_scheme_at(s) != NULL; s++) {
        for (size_t h = 0; h < PX_COUNT(hwms); h++) {
            for (uint64_t seed = 1; seed <= games(); seed++) {
                struct game game = {px_scheme_at(s)->name, hwms[h], false, seed * 977 + s};
                play(&game, 1000);
            }
        }
    }
}

static void test_random_events_ahead(void **state)
{
    (void)state;
    long ahead = 0;
    for (size_t s = 0; px_scheme_at(s) != NULL; s++) {
        for (uint64_t seed = 1; seed <= games(); seed++) {
            struct game game = {px_scheme_at(s)->name, 1, true, seed * 1409 + s};
            ahead += play(&game, 1000);
        }
    }
    assert_true(ahead > 1000); /* it did happen, and some came back */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_events),
        cmocka_unit_test(test_random_events_ahead),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
