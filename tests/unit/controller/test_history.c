/* SPDX-License-Identifier: BSD-3-Clause */
/* Fates of tasks: ids of all shapes, and what is forgotten first. */
#include "schedule.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void test_ids_are_kept_apart(void **state)
{
    (void)state;
    static const char *const ids[] = {"s_1_0",
                                      "s_1_1",
                                      "s_1_63",
                                      "s_1_64",
                                      "s_1_01",
                                      "s_1_",
                                      "s_1",
                                      "s_1_0_0",
                                      "s1_0",
                                      "0",
                                      "00",
                                      "_0",
                                      "",
                                      "s_1_999999999999999",
                                      "s_1_9999999999999999",
                                      "s_1_1x",
                                      "s_10",
                                      "s_1_10"};
    struct px_history *history = px_history_create(1 << 20);
    for (size_t i = 0; i < PX_COUNT(ids); i++) {
        uint32_t engine = 7;
        assert_int_equal(px_history_get(history, px_span_of(ids[i]), &engine), PX_UNKNOWN);
        assert_int_equal(engine, 0);
        px_history_set(history, px_span_of(ids[i]), PX_SUCCEEDED + i % 2, (uint32_t)i + 1);
    }
    for (size_t i = 0; i < PX_COUNT(ids); i++) {
        uint32_t engine;
        assert_int_equal(px_history_get(history, px_span_of(ids[i]), &engine),
                         PX_SUCCEEDED + i % 2);
        assert_int_equal(engine, i + 1);
    }
    px_history_destroy(history);
}

static void test_fates_change(void **state)
{
    (void)state;
    struct px_history *history = px_history_create(1 << 20);
    uint32_t engine;
    px_history_set(history, PX_SPAN("a_1"), PX_UNFINISHED, 0);
    assert_int_equal(px_history_get(history, PX_SPAN("a_1"), &engine), PX_UNFINISHED);
    px_history_set(history, PX_SPAN("a_1"), PX_FAILED, 3);
    assert_int_equal(px_history_get(history, PX_SPAN("a_1"), &engine), PX_FAILED);
    assert_int_equal(engine, 3);
    assert_int_equal(px_history_get(history, PX_SPAN("a_2"), &engine), PX_UNKNOWN);
    px_history_destroy(history);
}

/* The oldest go, but never an unfinished one. */
static void test_forgetting(void **state)
{
    (void)state;
    const size_t limit = 64 << 10;
    struct px_history *history = px_history_create(limit);
    char id[64];
    px_history_set(history, PX_SPAN("first_0"), PX_UNFINISHED, 0);
    for (int i = 0; i < 200000; i++) {
        snprintf(id, sizeof(id), "s_%d", i);
        px_history_set(history, px_span_of(id), PX_SUCCEEDED, 1);
        assert_true(px_history_bytes(history) <= limit + 1024);
    }
    assert_int_equal(px_history_get(history, PX_SPAN("first_0"), NULL), PX_UNFINISHED);
    assert_int_equal(px_history_get(history, PX_SPAN("s_199999"), NULL), PX_SUCCEEDED);
    assert_int_equal(px_history_get(history, PX_SPAN("s_0"), NULL), PX_UNKNOWN);
    for (int i = 0; i < 10000; i++) {
        snprintf(id, sizeof(id), "odd id %d", i);
        px_history_set(history, px_span_of(id), PX_FAILED, 0);
        assert_true(px_history_bytes(history) <= limit + 1024);
    }
    px_history_destroy(history);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids_are_kept_apart),
        cmocka_unit_test(test_fates_change),
        cmocka_unit_test(test_forgetting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
