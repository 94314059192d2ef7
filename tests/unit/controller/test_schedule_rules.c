/* SPDX-License-Identifier: BSD-3-Clause */
/* The scheduling core, rule by rule, and at size: long chains, wide joins, many engines. */
#include "schedule.h"

#include <setjmp.h>
#include <stdarg.h>
#include <jansson.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct simple {
    int sent, failed, released;
    enum px_why why;
    char to[64], last[64];
};

static void simple_send(void *ctx, const char *msg_id, void *payload, const struct px_worker *to)
{
    struct simple *simple = ctx;
    (void)payload;
    simple->sent++;
    snprintf(simple->to, sizeof(simple->to), "%s", to->uuid);
    snprintf(simple->last, sizeof(simple->last), "%s", msg_id);
}

static void simple_fail(void *ctx, const char *msg_id, void *payload, enum px_why why,
                        const struct px_worker *on)
{
    struct simple *simple = ctx;
    (void)msg_id, (void)payload, (void)on;
    simple->failed++;
    simple->why = why;
}

static void simple_release(void *ctx, void *payload)
{
    struct simple *simple = ctx;
    (void)payload;
    simple->released++;
}

static const struct px_schedule_ops simple_ops = {
    .send = simple_send, .fail = simple_fail, .release = simple_release};

static void submit_named(struct px_schedule *schedule, const char *name, const char *after,
                         const char *follow)
{
    struct px_task_spec spec = {0};
    assert_int_equal(px_depend_parse(px_span_of(after), &spec.after, NULL), 0);
    assert_int_equal(px_depend_parse(px_span_of(follow), &spec.follow, NULL), 0);
    px_schedule_submit(schedule, px_span_of(name), &spec, NULL);
}

static void finish(struct px_schedule *schedule, const char *engine, const char *name,
                   enum px_reply reply)
{
    assert_int_equal(px_schedule_reply(schedule, px_span_of(engine), px_span_of(name), reply, -1),
                     PX_DELIVER);
    px_schedule_run(schedule);
}

static void test_invalid(void **state)
{
    (void)state;
    static const char *const sets[] = {"[\"nope\"]", "[\"self\"]"};
    for (size_t i = 0; i < PX_COUNT(sets); i++) {
        struct simple simple = {0};
        struct px_schedule *schedule =
            px_schedule_create(&simple_ops, &simple, px_scheme_at(0), 1, 1);
        submit_named(schedule, "self", sets[i], NULL);
        submit_named(schedule, "other", NULL, sets[i]);
        assert_int_equal(simple.failed, 2);
        assert_int_equal(simple.why, i == 0 ? PX_WHY_INVALID : PX_WHY_IMPOSSIBLE);
        px_schedule_destroy(schedule);
    }
}

static void test_holds(void **state)
{
    (void)state;
    struct simple simple = {0};
    struct px_schedule *schedule = px_schedule_create(&simple_ops, &simple, px_scheme_at(0), 1, 1);
    assert_false(px_schedule_holds(schedule, PX_SPAN("a_1")));
    submit_named(schedule, "a_1", NULL, NULL);
    assert_true(px_schedule_holds(schedule, PX_SPAN("a_1")));
    assert_true(px_schedule_engine_up(schedule, PX_SPAN("e0"), 0));
    finish(schedule, "e0", "a_1", PX_REPLY_OK);
    assert_false(px_schedule_holds(schedule, PX_SPAN("a_1")));
    submit_named(schedule, "a_2", NULL, NULL);
    px_schedule_destroy(schedule);
    assert_int_equal(simple.released, 2);
}

static enum px_outcome turn_away(struct px_schedule *schedule, const char *engine,
                                 enum px_reply reply)
{
    enum px_outcome outcome =
        px_schedule_reply(schedule, px_span_of(engine), PX_SPAN("a_1"), reply, -1);
    px_schedule_run(schedule);
    return outcome;
}

/* Engines that a task failed at may have it again when there is no other; those that refused it,
 * or within a time-out, may not. */
static void test_retries(void **state)
{
    (void)state;
    static const struct {
        int64_t timeout_us;
        enum px_reply reply;
        bool again;
    } rows[] = {
        {0, PX_REPLY_ERROR, true}, {9, PX_REPLY_ERROR, false}, {0, PX_REPLY_REJECTED, false}};
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct simple simple = {0};
        struct px_schedule *schedule =
            px_schedule_create(&simple_ops, &simple, px_scheme_at(0), 1, 1);
        struct px_task_spec spec = {.retries = 3, .timeout_us = rows[i].timeout_us};
        char first[sizeof(simple.to)];
        assert_true(px_schedule_engine_up(schedule, PX_SPAN("e0"), 0));
        assert_true(px_schedule_engine_up(schedule, PX_SPAN("e1"), 0));
        px_schedule_submit(schedule, PX_SPAN("a_1"), &spec, NULL);
        memcpy(first, simple.to, sizeof(first));
        assert_int_equal(turn_away(schedule, first, rows[i].reply), PX_SWALLOW);
        assert_string_not_equal(simple.to, first);
        assert_int_equal(simple.sent, 2);
        px_schedule_engine_down(schedule, px_span_of(first));
        px_schedule_engine_lost(schedule, px_span_of(first), NULL);
        assert_int_equal(turn_away(schedule, simple.to, rows[i].reply), PX_SWALLOW);
        assert_int_equal(simple.sent, rows[i].again ? 3 : 2);
        assert_true(px_schedule_engine_up(schedule, PX_SPAN("e2"), 0));
        assert_int_equal(simple.sent, 3);
        px_schedule_destroy(schedule);
    }
}

/* "a_1" is at the only engine, "e0". */
static struct px_schedule *with_a_task_to_retry(struct simple *simple)
{
    struct px_schedule *schedule = px_schedule_create(&simple_ops, simple, px_scheme_at(0), 1, 1);
    struct px_task_spec spec = {.retries = 3};
    assert_true(px_schedule_engine_up(schedule, PX_SPAN("e0"), 0));
    px_schedule_submit(schedule, PX_SPAN("a_1"), &spec, NULL);
    return schedule;
}

/* The one that it had not failed at is busy, and dies. */
static void test_retries_after_a_death(void **state)
{
    (void)state;
    struct simple simple = {0};
    struct px_schedule *schedule = with_a_task_to_retry(&simple);
    assert_true(px_schedule_engine_up(schedule, PX_SPAN("e1"), 0));
    submit_named(schedule, "a_2", NULL, NULL);
    assert_string_equal(simple.to, "e1");
    assert_int_equal(turn_away(schedule, "e0", PX_REPLY_ERROR), PX_SWALLOW);
    assert_int_equal(simple.sent, 2);
    px_schedule_engine_down(schedule, PX_SPAN("e1"));
    assert_int_equal(simple.sent, 3);
    assert_string_equal(simple.to, "e0");
    assert_string_equal(simple.last, "a_1");
    px_schedule_destroy(schedule);
}

/* The one that it failed at is dead, and the other refuses it: who refuses is not asked for ever. */
static void test_retries_after_a_refusal(void **state)
{
    (void)state;
    struct simple simple = {0};
    struct px_schedule *schedule = with_a_task_to_retry(&simple);
    px_schedule_engine_down(schedule, PX_SPAN("e0"));
    px_schedule_engine_lost(schedule, PX_SPAN("e0"), NULL);
    assert_true(px_schedule_engine_up(schedule, PX_SPAN("e1"), 0));
    assert_string_equal(simple.to, "e1");
    for (int i = 0; i < 5 && strcmp(simple.to, "e1") == 0 && simple.sent == 2 + i; i++)
        assert_int_equal(turn_away(schedule, "e1", PX_REPLY_REJECTED), PX_SWALLOW);
    assert_true(simple.sent <= 3);
    const int sent = simple.sent;
    assert_true(px_schedule_engine_up(schedule, PX_SPAN("e2"), 0));
    assert_int_equal(simple.sent, sent + 1);
    assert_string_equal(simple.to, "e2");
    px_schedule_destroy(schedule);
}

static void test_stale_reply(void **state)
{
    (void)state;
    struct simple simple = {0};
    struct px_schedule *schedule = px_schedule_create(&simple_ops, &simple, px_scheme_at(0), 1, 1);
    assert_true(px_schedule_engine_up(schedule, PX_SPAN("e0"), 0));
    assert_true(px_schedule_engine_up(schedule, PX_SPAN("e1"), 0));
    assert_false(px_schedule_engine_up(schedule, PX_SPAN("e1"), 0));
    submit_named(schedule, "a", NULL, NULL);
    const char *other = strcmp(simple.to, "e0") == 0 ? "e1" : "e0";
    assert_int_equal(px_schedule_reply(schedule, px_span_of(other), PX_SPAN("a"), PX_REPLY_OK, -1),
                     PX_STALE);
    assert_int_equal(px_schedule_reply(schedule, PX_SPAN("e9"), PX_SPAN("a"), PX_REPLY_OK, -1),
                     PX_STALE);
    finish(schedule, simple.to, "a", PX_REPLY_OK);
    assert_int_equal(
        px_schedule_reply(schedule, px_span_of(simple.to), PX_SPAN("a"), PX_REPLY_OK, -1),
        PX_STALE);
    px_schedule_destroy(schedule);
}

/* A chain of failures is followed without recursion. */
static void test_long_chain(void **state)
{
    (void)state;
    struct simple simple = {0};
    struct px_schedule *schedule = px_schedule_create(&simple_ops, &simple, px_scheme_at(0), 1, 1);
    char name[32] = "c_1_0", after[64];
    assert_true(px_schedule_engine_up(schedule, PX_SPAN("e0"), 0));
    submit_named(schedule, name, NULL, NULL);
    for (int i = 1; i < 100000; i++) {
        snprintf(after, sizeof(after), "[\"%s\"]", name);
        snprintf(name, sizeof(name), "c_1_%d", i);
        submit_named(schedule, name, after, NULL);
    }
    assert_int_equal(simple.sent, 1);
    finish(schedule, "e0", "c_1_0", PX_REPLY_ERROR);
    assert_int_equal(simple.failed, 99999);
    assert_int_equal(simple.why, PX_WHY_IMPOSSIBLE);
    px_schedule_destroy(schedule);
}

/* One task after a hundred thousand others, which end one by one. */
static void test_wide(void **state)
{
    (void)state;
    struct simple simple = {0};
    struct px_schedule *schedule = px_schedule_create(&simple_ops, &simple, px_scheme_at(0), 0, 1);
    struct px_buf after = {0};
    char name[32];
    assert_true(px_schedule_engine_up(schedule, PX_SPAN("e0"), 0));
    for (int i = 0; i < PX_MAX_DEPENDENCIES; i++) {
        snprintf(name, sizeof(name), "w_1_%d", i);
        submit_named(schedule, name, NULL, NULL);
        px_buf_printf(&after, "%s\"%s\"", i ? ", " : "[", name);
    }
    px_buf_text(&after, "]");
    submit_named(schedule, "last", after.data, NULL);
    for (int i = 0; i < PX_MAX_DEPENDENCIES; i++) {
        snprintf(name, sizeof(name), "w_1_%d", i);
        assert_string_not_equal(simple.last, "last");
        finish(schedule, "e0", name, PX_REPLY_OK);
    }
    assert_string_equal(simple.last, "last");
    px_buf_fini(&after);
    px_schedule_destroy(schedule);
}

/* Ten thousand engines: each task goes to an idle one, and none gets a second before all have one.
 */
static void test_many_engines(void **state)
{
    (void)state;
    struct simple simple = {0};
    struct px_schedule *schedule = px_schedule_create(&simple_ops, &simple, px_scheme_at(0), 1, 1);
    char name[32];
    for (int i = 0; i < 10000; i++) {
        snprintf(name, sizeof(name), "engine-%d", i);
        assert_true(px_schedule_engine_up(schedule, px_span_of(name), 0));
    }
    for (int i = 0; i < 10000; i++) {
        snprintf(name, sizeof(name), "m_1_%d", i);
        submit_named(schedule, name, NULL, NULL);
        assert_int_equal(simple.sent, i + 1);
    }
    submit_named(schedule, "m_1_10000", NULL, NULL);
    assert_int_equal(simple.sent, 10000);
    finish(schedule, simple.to, "m_1_9999", PX_REPLY_OK);
    assert_int_equal(simple.sent, 10001);
    px_schedule_destroy(schedule);
}

/* A graph of GRAPH tasks, each after up to three of those before it, on ENGINES engines; a smaller
 * one for all schemes but the default. */
#define GRAPH 100000
#define ENGINES 10000

struct graph {
    int after[GRAPH][3];
    bool done[GRAPH], busy[ENGINES];
    int running[GRAPH], on[GRAPH]; /* in the order they were sent */
    int sent, ended;
};

static void graph_send(void *ctx, const char *msg_id, void *payload, const struct px_worker *to)
{
    struct graph *graph = ctx;
    int task = atoi(msg_id + 4), engine = atoi(to->uuid + 1);
    (void)payload;
    for (int k = 0; k < 3; k++)
        assert_true(graph->after[task][k] < 0 || graph->done[graph->after[task][k]]);
    assert_false(graph->busy[engine]);
    graph->busy[engine] = true;
    graph->running[graph->sent] = task;
    graph->on[graph->sent++] = engine;
}

static void graph_fail(void *ctx, const char *msg_id, void *payload, enum px_why why,
                       const struct px_worker *on)
{
    (void)ctx, (void)payload, (void)on;
    fail_msg("%s failed: %d", msg_id, (int)why);
}

static void graph_release(void *ctx, void *payload)
{
    (void)ctx, (void)payload;
}

static void graph_submit(struct graph *graph, struct px_schedule *schedule, int task)
{
    char name[32], after[128] = "[", id[32];
    for (int k = 0; k < 3; k++) {
        int reach = task < 1000 ? task : 1000;
        int before = (task * 7919 + k * 104729) % (reach + 1); /* 0: one dependency less */
        graph->after[task][k] = before == 0 ? -1 : task - before;
        if (before == 0)
            continue;
        snprintf(id, sizeof(id), "%s\"g_1_%d\"", after[1] ? ", " : "", task - before);
        strcat(after, id);
    }
    strcat(after, "]");
    snprintf(name, sizeof(name), "g_1_%d", task);
    submit_named(schedule, name, after, NULL);
}

static void graph_answer(struct graph *graph, struct px_schedule *schedule)
{
    char name[32], engine[32];
    int task = graph->running[graph->ended], on = graph->on[graph->ended];
    graph->ended++;
    graph->done[task] = true;
    graph->busy[on] = false;
    snprintf(name, sizeof(name), "g_1_%d", task);
    snprintf(engine, sizeof(engine), "e%d", on);
    finish(schedule, engine, name, PX_REPLY_OK);
}

static void test_large_graph(void **state)
{
    (void)state;
    struct px_schedule_ops ops = {.send = graph_send, .fail = graph_fail, .release = graph_release};
    for (size_t s = 0; px_scheme_at(s) != NULL; s++) {
        struct graph *graph = px_alloc(sizeof(*graph));
        struct px_schedule *schedule = px_schedule_create(&ops, graph, px_scheme_at(s), 1, s + 1);
        char engine[32];
        for (int i = 0; i < ENGINES; i++) {
            snprintf(engine, sizeof(engine), "e%d", i);
            assert_true(px_schedule_engine_up(schedule, px_span_of(engine), 0));
        }
        int tasks = s == 0 ? GRAPH : GRAPH / 5;
        for (int task = 0; task < tasks; task++)
            graph_submit(graph, schedule, task);
        while (graph->ended < graph->sent)
            graph_answer(graph, schedule);
        assert_int_equal(graph->ended, tasks);
        px_schedule_destroy(schedule);
        free(graph);
    }
}

static void test_memory_is_flat(void **state)
{
    (void)state;
    struct simple simple = {0};
    struct px_schedule *schedule = px_schedule_create(&simple_ops, &simple, px_scheme_at(0), 1, 1);
    struct px_schedule_stats stats;
    char name[64];
    assert_true(px_schedule_engine_up(schedule, PX_SPAN("e0"), 0));
    for (int i = 0; i < 300000; i++) {
        snprintf(name, sizeof(name), "01234567-0123456789abcdef01234567_1_%d", i);
        submit_named(schedule, name, NULL, NULL);
        finish(schedule, "e0", name, PX_REPLY_OK);
    }
    px_schedule_stats(schedule, &stats);
    assert_int_equal(stats.succeeded, 300000);
    assert_true(stats.history_bytes < 300000 * 8);
    px_schedule_destroy(schedule);
}

static void assert_why(const struct px_schedule *schedule, const char *msg_id, const char *state,
                       const char *words)
{
    struct px_buf out = {0};
    px_schedule_why(schedule, px_span_of(msg_id), &out);
    json_t *json = json_loadb(out.data, out.size, 0, NULL);
    assert_non_null(json);
    assert_string_equal(json_string_value(json_object_get(json, "state")), state);
    const char *why = json_string_value(json_object_get(json, "why"));
    if (strstr(why, words) == NULL)
        fail_msg("%s: '%s' does not say '%s'", msg_id, why, words);
    json_decref(json);
    px_buf_fini(&out);
}

static void submit_constrained(struct px_schedule *schedule, const char *name, const char *target,
                               unsigned needs, int64_t timeout_us)
{
    struct px_task_spec spec = {.needs = needs, .timeout_us = timeout_us};
    if (target != NULL) {
        spec.targets = px_alloc(sizeof(char *));
        spec.targets[0] = px_strdup(target);
        spec.target_count = 1;
    }
    px_schedule_submit(schedule, px_span_of(name), &spec, NULL);
}

/* It is to run after "a", and follows "a" or "b": the end of "a" allows it to run, and tells where.
 */
static void test_where_before_when(void **state)
{
    (void)state;
    struct simple simple = {0};
    struct px_schedule *schedule = px_schedule_create(&simple_ops, &simple, px_scheme_at(0), 0, 1);
    assert_true(px_schedule_engine_up(schedule, PX_SPAN("e0"), 0));
    submit_named(schedule, "b", NULL, NULL);
    finish(schedule, "e0", "b", PX_REPLY_OK);
    submit_named(schedule, "load", NULL, NULL);
    assert_true(px_schedule_engine_up(schedule, PX_SPAN("e1"), 0));
    submit_named(schedule, "a", NULL, NULL);
    assert_string_equal(simple.to, "e1");
    submit_named(schedule, "last", "[\"a\"]", "{\"dependencies\": [\"a\", \"b\"], \"all\": false}");
    assert_int_equal(simple.sent, 3);
    finish(schedule, "e1", "a", PX_REPLY_OK);
    assert_string_equal(simple.last, "last");
    assert_string_equal(simple.to, "e1"); /* which is idle */
    px_schedule_destroy(schedule);
}

#define NAMED 1000

/* A task that names the first `engines` of them. */
static void submit_to(struct px_schedule *schedule, int task, size_t engines)
{
    char name[32];
    struct px_task_spec spec = {.targets = px_alloc(engines * sizeof(char *)),
                                .target_count = engines};
    for (size_t i = 0; i < engines; i++)
        spec.targets[i] = px_format("engine-%04zu", i);
    snprintf(name, sizeof(name), "t_1_%d", task);
    px_schedule_submit(schedule, px_span_of(name), &spec, NULL);
}

/* Equal targets are kept once, and a waiting task has one place, however many engines it names: two
 * thousand tasks with a thousand targets would cost more than a hundred megabytes otherwise. */
static void test_targets_are_shared(void **state)
{
    (void)state;
    enum { TASKS = 2000 };
    struct simple simple = {0};
    struct px_schedule *schedule = px_schedule_create(&simple_ops, &simple, px_scheme_at(0), 1, 1);
    char name[32];
    for (size_t i = 0; i < NAMED; i++) {
        snprintf(name, sizeof(name), "engine-%04zu", i);
        assert_true(px_schedule_engine_up(schedule, px_span_of(name), 0));
    }
    for (int i = 0; i < NAMED; i++)
        submit_to(schedule, i, NAMED);
    assert_int_equal(simple.sent, NAMED); /* all are busy now */
    const size_t before = mallinfo2().uordblks;
    for (int i = 0; i < TASKS; i++)
        submit_to(schedule, NAMED + i, NAMED - (size_t)(i % 3));
    assert_true(mallinfo2().uordblks - before < 8u << 20);
    assert_int_equal(simple.sent, NAMED);

    /* Engines go: what waits for others waits on, until there is none. */
    struct px_schedule_stats stats;
    px_schedule_engine_lost(schedule, PX_SPAN("engine-0005"), NULL);
    px_schedule_stats(schedule, &stats);
    assert_int_equal(stats.waiting, TASKS);
    assert_int_equal(simple.failed, 1);
    assert_true(px_schedule_engine_up(schedule, PX_SPAN("stranger"), 0));
    assert_int_equal(simple.sent, NAMED);
    for (int i = 0; i < NAMED; i++) {
        if (i != 5) {
            snprintf(name, sizeof(name), "engine-%04d", i);
            px_schedule_engine_lost(schedule, px_span_of(name), NULL);
        }
    }
    assert_int_equal(simple.failed, NAMED + TASKS); /* died, or impossible */
    px_schedule_destroy(schedule);
    assert_int_equal(simple.released, NAMED + TASKS);
}

static void test_why(void **state)
{
    (void)state;
    struct simple simple = {0};
    struct px_schedule *schedule = px_schedule_create(&simple_ops, &simple, px_scheme_at(0), 1, 1);
    px_schedule_tick(schedule, 1000000);
    submit_named(schedule, "a", NULL, NULL);
    assert_why(schedule, "a", "waiting", "no engine is registered");
    assert_true(px_schedule_engine_up(schedule, PX_SPAN("e0"), 0));
    assert_why(schedule, "a", "running", "runs it");
    submit_named(schedule, "b", "[\"a\"]", NULL);
    submit_named(schedule, "c", NULL, "[\"a\"]");
    submit_named(schedule, "d", NULL, NULL);
    submit_constrained(schedule, "e", "e0", 0, 5000000);
    submit_constrained(schedule, "f", NULL, PX_FEATURE_PICKLE5, 0);
    assert_why(schedule, "b", "waiting", "1 of the 1 tasks it is to run after");
    assert_why(schedule, "c", "waiting", "1 of the 1 tasks whose engine it follows");
    assert_why(schedule, "d", "waiting",
               "the 1 engine that may run it is busy (high-water mark 1)");
    assert_why(schedule, "e", "waiting", "the 1 engine that may run it is busy");
    assert_why(schedule, "f", "waiting", "1 lack what it needs");
    assert_why(schedule, "nope", "unknown", "does not know");

    struct px_buf out = {0};
    px_schedule_tick(schedule, 3000000);
    px_schedule_why(schedule, PX_SPAN("e"), &out);
    px_schedule_why(schedule, PX_SPAN("b"), &out);
    px_buf_append(&out, "", 1);
    assert_non_null(strstr(out.data, "\"since_s\": 2.000"));
    assert_non_null(strstr(out.data, "\"timeout_s\": 3.000"));
    assert_non_null(strstr(out.data, "\"outstanding\": [\"a\"], \"outstanding_count\": 1"));
    px_buf_fini(&out);

    finish(schedule, "e0", "a", PX_REPLY_OK);
    assert_why(schedule, "a", "done", "succeeded");
    assert_int_equal(
        px_schedule_reply(schedule, PX_SPAN("e0"), PX_SPAN("b"), PX_REPLY_REJECTED, -1),
        PX_SWALLOW);
    px_schedule_run(schedule);
    assert_why(schedule, "b", "waiting", "1 refused it");
    px_schedule_engine_down(schedule, PX_SPAN("e0"));
    assert_why(schedule, "c", "running", "has left");
    px_schedule_engine_lost(schedule, PX_SPAN("e0"), NULL);
    assert_why(schedule, "c", "done", "failed");
    px_schedule_destroy(schedule);
}

/* Of a long queue, and of many dependencies, only so much is looked at. */
static void test_why_of_many(void **state)
{
    (void)state;
    struct simple simple = {0};
    struct px_schedule *schedule = px_schedule_create(&simple_ops, &simple, px_scheme_at(0), 0, 1);
    struct px_buf after = {0}, out = {0};
    char msg_id[16];
    assert_true(px_schedule_engine_up(schedule, PX_SPAN("e0"), 0));
    for (int i = 0; i < PX_MOST_COUNTED + 10; i++) {
        snprintf(msg_id, sizeof(msg_id), "t%d", i);
        submit_named(schedule, msg_id, NULL, NULL);
        if (i < 12)
            px_buf_printf(&after, "%s\"%s\"", i > 0 ? ", " : "[", msg_id);
    }
    px_buf_text(&after, "]");
    submit_named(schedule, "last", after.data, NULL);
    assert_why(schedule, "t999", "queued", "behind 999 others");
    assert_why(schedule, "t1005", "queued", "behind at least 1000 others");
    finish(schedule, "e0", "t0", PX_REPLY_OK);
    px_schedule_why(schedule, PX_SPAN("last"), &out);
    px_buf_append(&out, "", 1);
    assert_non_null(strstr(out.data, "\"t7\", \"t8\"], \"outstanding_count\": 11"));
    px_buf_fini(&out);
    px_buf_fini(&after);
    px_schedule_destroy(schedule);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_invalid),
        cmocka_unit_test(test_holds),
        cmocka_unit_test(test_retries),
        cmocka_unit_test(test_retries_after_a_death),
        cmocka_unit_test(test_retries_after_a_refusal),
        cmocka_unit_test(test_stale_reply),
        cmocka_unit_test(test_long_chain),
        cmocka_unit_test(test_wide),
        cmocka_unit_test(test_many_engines),
        cmocka_unit_test(test_large_graph),
        cmocka_unit_test(test_memory_is_flat),
        cmocka_unit_test(test_where_before_when),
        cmocka_unit_test(test_targets_are_shared),
        cmocka_unit_test(test_why),
        cmocka_unit_test(test_why_of_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
