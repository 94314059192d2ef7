/* SPDX-License-Identifier: BSD-3-Clause */
/* The scheduling core where engines come and go: what a new one would take, and who may retire. */
#include "schedule.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static char last[16]; /* the engine that was sent a task last */
static int sent, failed;

static void on_send(void *ctx, const char *msg_id, void *payload, const struct px_worker *to)
{
    (void)ctx, (void)msg_id, (void)payload;
    sent++;
    snprintf(last, sizeof(last), "%s", to->uuid);
}

static void on_fail(void *ctx, const char *msg_id, void *payload, enum px_why why,
                    const struct px_worker *on)
{
    (void)ctx, (void)msg_id, (void)payload, (void)why, (void)on;
    failed++;
}

static void on_release(void *ctx, void *payload)
{
    (void)ctx, (void)payload;
}

static struct px_schedule *start(void)
{
    static const struct px_schedule_ops ops = {
        .send = on_send, .fail = on_fail, .release = on_release};
    sent = failed = 0;
    return px_schedule_create(&ops, NULL, px_scheme_at(0), 1, 1);
}

/* after: JSON, or NULL. */
static void submit(struct px_schedule *schedule, const char *name, const char *after,
                   const char *targets)
{
    struct px_task_spec spec = {0};
    assert_int_equal(px_depend_parse(px_span_of(after), &spec.after, NULL), 0);
    assert_int_equal(
        px_names_parse(px_span_of(targets), 9, &spec.targets, &spec.target_count, NULL), 0);
    px_schedule_submit(schedule, px_span_of(name), &spec, NULL);
}

static void answer(struct px_schedule *schedule, const char *uuid, const char *name,
                   enum px_reply reply)
{
    assert_int_equal(px_schedule_reply(schedule, px_span_of(uuid), px_span_of(name), reply, -1),
                     reply == PX_REPLY_OK ? PX_DELIVER : PX_SWALLOW);
    px_schedule_run(schedule);
}

/* While it has no task, and no task waits for others. */
static void retiring(void **state)
{
    (void)state;
    struct px_schedule *schedule = start();
    assert_false(px_schedule_retire(schedule, PX_SPAN("one"))); /* there is none */
    px_schedule_engine_up(schedule, PX_SPAN("one"), 0);
    submit(schedule, "first", NULL, NULL);
    assert_false(px_schedule_retire(schedule, PX_SPAN("one")));
    submit(schedule, "second", "[\"first\"]", NULL);
    px_schedule_engine_up(schedule, PX_SPAN("two"), 0);
    assert_false(px_schedule_retire(schedule, PX_SPAN("two")));
    answer(schedule, "one", "first", PX_REPLY_OK);
    answer(schedule, last, "second", PX_REPLY_OK);
    assert_true(px_schedule_retire(schedule, PX_SPAN("one")));
    assert_false(px_schedule_retire(schedule, PX_SPAN("one"))); /* once */
    for (size_t i = 0; i < 3; i++) {
        submit(schedule, (const char *const[]){"a", "b", "c"}[i], NULL, NULL);
        assert_string_equal(last, "two");
    }
    assert_int_equal(sent, 3);
    assert_int_equal(px_schedule_wanting(schedule), 2);
    px_schedule_engine_lost(schedule, PX_SPAN("one"), NULL);
    assert_int_equal(failed, 0);
    px_schedule_destroy(schedule);
}

/* Not what waits for others, or for engines that are there. */
static void wanting(void **state)
{
    (void)state;
    struct px_schedule *schedule = start();
    submit(schedule, "first", NULL, NULL);
    assert_int_equal(px_schedule_wanting(schedule), 1);
    px_schedule_engine_up(schedule, PX_SPAN("one"), 0);
    assert_int_equal(px_schedule_wanting(schedule), 0);
    submit(schedule, "after", "[\"first\"]", NULL);
    submit(schedule, "named", NULL, "[\"one\"]");
    assert_int_equal(px_schedule_wanting(schedule), 0);
    submit(schedule, "any", NULL, NULL);
    assert_int_equal(px_schedule_wanting(schedule), 1);
    answer(schedule, "one", "first", PX_REPLY_REJECTED); /* it waits for another */
    assert_int_equal(px_schedule_wanting(schedule), 2);
    px_schedule_engine_up(schedule, PX_SPAN("two"), 0);
    assert_int_equal(px_schedule_wanting(schedule), 1);
    px_schedule_destroy(schedule);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(retiring), cmocka_unit_test(wanting)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
