/* SPDX-License-Identifier: BSD-3-Clause */
/* What the scheduling core takes over from a controller that was killed. */
#include "schedule.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

struct seen {
    int sent, failed, released;
    char to[16], last[16];
};

static void on_send(void *ctx, const char *msg_id, void *payload, const struct px_worker *to)
{
    struct seen *seen = ctx;
    (void)payload;
    seen->sent++;
    snprintf(seen->to, sizeof(seen->to), "%s", to->uuid);
    snprintf(seen->last, sizeof(seen->last), "%s", msg_id);
}

static void on_fail(void *ctx, const char *msg_id, void *payload, enum px_why why,
                    const struct px_worker *on)
{
    struct seen *seen = ctx;
    (void)msg_id, (void)payload, (void)why, (void)on;
    seen->failed++;
}

static void on_release(void *ctx, void *payload)
{
    struct seen *seen = ctx;
    (void)payload;
    seen->released++;
}

static const struct px_schedule_ops ops = {.send = on_send, .fail = on_fail, .release = on_release};

static struct px_schedule *start(struct seen *seen, unsigned hwm, int engines)
{
    struct px_schedule *schedule = px_schedule_create(&ops, seen, px_scheme_at(0), hwm, 1);
    char uuid[16];
    for (int i = 0; i < engines; i++) {
        snprintf(uuid, sizeof(uuid), "e%d", i);
        assert_true(px_schedule_engine_up(schedule, px_span_of(uuid), 0));
    }
    return schedule;
}

static void submit(struct px_schedule *schedule, const char *name, const char *after)
{
    struct px_task_spec spec = {0};
    assert_int_equal(px_depend_parse(px_span_of(after), &spec.after, NULL), 0);
    px_schedule_submit(schedule, px_span_of(name), &spec, NULL);
}

static bool adopt(struct px_schedule *schedule, const char *name, const char *uuid, int retries)
{
    struct px_task_spec spec = {.retries = retries};
    return px_schedule_adopt(schedule, px_span_of(name), &spec, NULL, px_span_of(uuid));
}

static void answer(struct px_schedule *schedule, const char *uuid, const char *name)
{
    assert_int_equal(
        px_schedule_reply(schedule, px_span_of(uuid), px_span_of(name), PX_REPLY_OK, -1),
        PX_DELIVER);
    px_schedule_run(schedule);
}

/* More tasks than the engine may have: none is sent, each is answered, others come after. */
static void test_adopted_are_not_sent(void **state)
{
    (void)state;
    for (unsigned hwm = 0; hwm < 3; hwm++) {
        struct seen seen = {0};
        struct px_schedule *schedule = start(&seen, hwm, 1);
        assert_true(adopt(schedule, "a", "e0", 0));
        assert_true(adopt(schedule, "b", "e0", 0));
        assert_true(adopt(schedule, "c", "e0", 0));
        assert_false(adopt(schedule, "d", "e9", 0));
        assert_true(px_schedule_holds(schedule, PX_SPAN("b")));
        answer(schedule, "e0", "a");
        answer(schedule, "e0", "c");
        submit(schedule, "d", "[\"b\"]");
        assert_int_equal(seen.sent, 0);
        answer(schedule, "e0", "b");
        assert_int_equal(seen.sent, 1);
        assert_string_equal(seen.last, "d");
        answer(schedule, "e0", "d");
        assert_int_equal(px_schedule_reclaim(schedule, PX_SPAN("e0"), 1), 0);
        px_schedule_destroy(schedule);
        assert_int_equal(seen.released, 4);
        assert_int_equal(seen.failed, 0);
    }
}

static void test_unanswered_are_reclaimed(void **state)
{
    (void)state;
    struct seen seen = {0};
    struct px_schedule *schedule = start(&seen, 1, 1);
    assert_true(adopt(schedule, "a", "e0", 0));
    assert_true(adopt(schedule, "b", "e0", 0));
    assert_true(adopt(schedule, "c", "e0", 0));
    answer(schedule, "e0", "a");
    assert_int_equal(px_schedule_probe(schedule, PX_SPAN("e0")), 1);
    assert_int_equal(px_schedule_reclaim(schedule, PX_SPAN("e0"), 1), 2);
    assert_int_equal(seen.sent, 1);
    assert_string_equal(seen.last, "b"); /* in their old order */
    assert_int_equal(px_schedule_reclaim(schedule, PX_SPAN("e0"), 1), 0);
    assert_int_equal(px_schedule_probe(schedule, PX_SPAN("e9")), 0);
    assert_int_equal(px_schedule_reclaim(schedule, PX_SPAN("e9"), 1), 0);
    answer(schedule, "e0", "b");
    assert_string_equal(seen.last, "c");
    answer(schedule, "e0", "c");
    px_schedule_destroy(schedule);
    assert_int_equal(seen.released, 3);
}

/* Two doubts, one after the other: the answer to the first tells nothing of what was sent since. */
static void test_a_probe_is_about_what_was_sent_before(void **state)
{
    (void)state;
    struct seen seen = {0};
    struct px_schedule *schedule = start(&seen, 0, 1);
    submit(schedule, "a", "[]");
    assert_int_equal(px_schedule_probe(schedule, PX_SPAN("e0")), 1);
    submit(schedule, "b", "[]");
    assert_int_equal(px_schedule_probe(schedule, PX_SPAN("e0")), 2);
    submit(schedule, "c", "[]");
    assert_int_equal(seen.sent, 3);
    assert_int_equal(px_schedule_reclaim(schedule, PX_SPAN("e0"), 1), 1);
    assert_string_equal(seen.last, "a");
    assert_int_equal(px_schedule_reclaim(schedule, PX_SPAN("e0"), 2), 1);
    assert_string_equal(seen.last, "b");
    assert_int_equal(seen.sent, 5);
    px_schedule_destroy(schedule);
    assert_int_equal(seen.released, 3);
}

static void test_adopted_die_with_their_engine(void **state)
{
    (void)state;
    struct seen seen = {0};
    struct px_schedule *schedule = start(&seen, 1, 2);
    assert_true(adopt(schedule, "a", "e0", 0));
    assert_true(adopt(schedule, "b", "e1", 1));
    px_schedule_engine_lost(schedule, PX_SPAN("e1"), NULL);
    assert_int_equal(seen.failed, 0);
    answer(schedule, "e0", "a");
    assert_string_equal(seen.last, "b");
    px_schedule_engine_lost(schedule, PX_SPAN("e0"), NULL);
    assert_int_equal(seen.failed, 1);
    px_schedule_destroy(schedule);
}

static void test_remembered_count_as_dependencies(void **state)
{
    (void)state;
    struct seen seen = {0};
    struct px_schedule *schedule = start(&seen, 1, 1);
    px_schedule_remember(schedule, PX_SPAN("good"), true, PX_SPAN("e0"));
    px_schedule_remember(schedule, PX_SPAN("bad"), false, PX_SPAN("gone"));
    submit(schedule, "a", "[\"good\"]");
    assert_int_equal(seen.sent, 1);
    submit(schedule, "b", "[\"bad\"]");
    assert_int_equal(seen.failed, 1);
    px_schedule_destroy(schedule);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adopted_are_not_sent),
        cmocka_unit_test(test_unanswered_are_reclaimed),
        cmocka_unit_test(test_a_probe_is_about_what_was_sent_before),
        cmocka_unit_test(test_adopted_die_with_their_engine),
        cmocka_unit_test(test_remembered_count_as_dependencies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
