/* SPDX-License-Identifier: BSD-3-Clause */
/* JSON values as Python sees them: every row was read off a Python 3.11. */
#include "hub.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

static json_t *parse(const char *text)
{
    json_t *value = json_loads(text, JSON_DECODE_ANY, NULL);
    assert_non_null(value);
    return value;
}

static void test_repr(void **state)
{
    (void)state;
    static const struct {
        const char *json, *repr;
    } rows[] = {
        {"\"a\"", "'a'"},
        {"\"it's\"", "\"it's\""},
        {"\"a\\\"b'c\"", "'a\"b\\'c'"},
        {"\"\"", "''"},
        {"\"a\\\\b\\n\\r\\t\\u0001\\u007f\"", "'a\\\\b\\n\\r\\t\\x01\\x7f'"},
        {"\"\u00e9\"", "'\u00e9'"},
        {"null", "None"},
        {"true", "True"},
        {"false", "False"},
        {"-7", "-7"},
        {"1.5", "1.5"},
        {"[]", "[]"},
        {"[1, [\"x\"], null]", "[1, ['x'], None]"},
        {"{}", "{}"},
        {"{\"a\": true, \"b\": {}}", "{'a': True, 'b': {}}"},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_buf out = {0};
        json_t *value = parse(rows[i].json);
        px_repr_json(&out, value);
        assert_string_equal(out.data, rows[i].repr);
        px_buf_fini(&out);
        json_decref(value);
    }
}

static void test_types_and_truth(void **state)
{
    (void)state;
    static const struct {
        const char *json, *type;
        bool truth, hashable;
    } rows[] = {
        {"null", "NoneType", false, true},   {"true", "bool", true, true},
        {"false", "bool", false, true},      {"0", "int", false, true},
        {"-1", "int", true, true},           {"0.0", "float", false, true},
        {"0.5", "float", true, true},        {"\"\"", "str", false, true},
        {"\"0\"", "str", true, true},        {"[]", "list", false, false},
        {"[0]", "list", true, false},        {"{}", "dict", false, false},
        {"{\"a\": 0}", "dict", true, false},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        json_t *value = parse(rows[i].json);
        assert_string_equal(px_type_name(value), rows[i].type);
        assert_int_equal(px_truth(value), rows[i].truth);
        assert_int_equal(px_is_hashable(value), rows[i].hashable);
        json_decref(value);
    }
    assert_string_equal(px_type_name(NULL), "NoneType");
    assert_false(px_truth(NULL));
}

static void test_iteration(void **state)
{
    (void)state;
    static const struct {
        const char *json, *items; /* NULL: `type` cannot be iterated */
        const char *type;
    } rows[] = {
        {"[1, \"x\"]", "[1, \"x\"]", 0},
        {"\"a\u00e9b\"", "[\"a\", \"\u00e9\", \"b\"]", 0},
        {"\"\"", "[]", 0},
        {"{\"k\": 1, \"l\": 2}", "[\"k\", \"l\"]", 0},
        {"7", NULL, "int"},
        {"null", NULL, "NoneType"},
        {"true", NULL, "bool"},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_exception exception;
        char text[64];
        json_t *value = parse(rows[i].json);
        json_t *items = px_iterate(value, &exception);
        if (rows[i].items != NULL) {
            json_t *expected = parse(rows[i].items);
            assert_true(json_equal(items, expected));
            json_decref(expected);
        } else {
            snprintf(text, sizeof(text), "'%s' object is not iterable", rows[i].type);
            assert_null(items);
            assert_string_equal(exception.ename, "TypeError");
            assert_string_equal(exception.evalue, text);
        }
        json_decref(items);
        json_decref(value);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_repr),
        cmocka_unit_test(test_types_and_truth),
        cmocka_unit_test(test_iteration),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
