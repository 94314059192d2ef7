/* SPDX-License-Identifier: BSD-3-Clause */
/* Dependency sets as clients write them. */
#include "schedule.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void test_sets(void **state)
{
    (void)state;
    static const struct {
        const char *json;
        size_t count;
        bool all, success, failure;
    } rows[] = {
        {"", 0, true, true, false},
        {"null", 0, true, true, false},
        {"[]", 0, true, true, false},
        {"[ ]", 0, true, true, false},
        {"\"a\"", 1, true, true, false},
        {"[\"b\", \"a\", \"b\"]", 2, true, true, false},
        {"{}", 0, true, true, false},
        {"{\"dependencies\": [\"a\"], \"all\": false}", 1, false, true, false},
        {"{\"dependencies\": \"a\", \"success\": false, \"failure\": true}", 1, true, false, true},
        {"{\"dependencies\": [\"a\"], \"failure\": 1, \"more\": 2}", 1, true, true, true},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_depend depend;
        struct px_error err;
        if (px_depend_parse(px_span_of(rows[i].json), &depend, &err) != 0)
            fail_msg("%s: %s", rows[i].json, err.text);
        assert_int_equal(depend.count, rows[i].count);
        assert_int_equal(depend.all, rows[i].all);
        assert_int_equal(depend.success, rows[i].success);
        assert_int_equal(depend.failure, rows[i].failure);
        for (size_t k = 1; k < depend.count; k++)
            assert_true(strcmp(depend.ids[k - 1], depend.ids[k]) < 0);
        px_depend_fini(&depend);
    }
}

static void test_refused(void **state)
{
    (void)state;
    static const char *const rows[] = {
        "{",
        "1",
        "true",
        "[1]",
        "[\"\"]",
        "[\"a\", null]",
        "{\"dependencies\": 3}",
        "{\"dependencies\": [\"a\"], \"success\": false}",
        "[\"a\"] x",
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_depend depend;
        if (px_depend_parse(px_span_of(rows[i]), &depend, NULL) == 0)
            fail_msg("accepted: %s", rows[i]);
        assert_int_equal(depend.count, 0);
        assert_null(depend.ids);
    }
}

static void test_accepts(void **state)
{
    (void)state;
    struct px_depend success = {.success = true}, failure = {.failure = true};
    assert_true(px_depend_accepts(&success, PX_SUCCEEDED));
    assert_false(px_depend_accepts(&success, PX_FAILED));
    assert_true(px_depend_accepts(&failure, PX_FAILED));
    assert_false(px_depend_accepts(&failure, PX_UNFINISHED));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sets),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_accepts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
