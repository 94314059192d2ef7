/* SPDX-License-Identifier: BSD-3-Clause */
/* The query language, a row a case, and dates. */
#include "hub.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static const char record[] =
    "{\"msg_id\": \"a_1\", \"n\": 5, \"none\": null, \"queue\": \"mux\", \"text\": \"b\","
    " \"completed\": \"2026-01-02T03:04:05Z\", \"list\": [\"b\", 1], \"flag\": true,"
    " \"negative\": -7}";

static json_t *get_field(void *ctx, const char *field)
{
    return json_incref(json_object_get(ctx, field));
}

static int match(const char *text, struct px_exception *exception)
{
    json_t *object = json_loads(record, 0, NULL);
    json_t *json = json_loads(text, JSON_DECODE_ANY, NULL);
    assert_non_null(json);
    struct px_query *query = px_query_create(json, exception);
    int result = query ? px_query_match(query, get_field, object, exception) : -1;
    px_query_destroy(query);
    json_decref(json);
    json_decref(object);
    return result;
}

static void test_matches(void **state)
{
    (void)state;
    static const struct {
        const char *query;
        int result;
    } rows[] = {
        {"{}", 1},
        {"{\"msg_id\": \"a_1\"}", 1},
        {"{\"msg_id\": \"a_2\"}", 0},
        {"{\"n\": 5, \"queue\": \"mux\"}", 1},
        {"{\"queue\": \"mux\", \"n\": 6}", 0},
        {"{\"n\": 5.0}", 1},
        {"{\"none\": null}", 1},
        {"{\"unknown\": null}", 1},
        {"{\"flag\": 1}", 1},
        {"{\"n\": {\"$eq\": 5}}", 1},
        {"{\"n\": {\"$ne\": 5}}", 0},
        {"{\"none\": {\"$ne\": null}}", 0},
        {"{\"completed\": {\"$ne\": null}}", 1},
        {"{\"n\": {\"$lt\": 6}}", 1},
        {"{\"n\": {\"$lt\": 5}}", 0},
        {"{\"n\": {\"$gt\": 4}}", 1},
        {"{\"n\": {\"$gt\": 5}}", 0},
        {"{\"n\": {\"$lte\": 5}}", 1},
        {"{\"n\": {\"$lte\": 4}}", 0},
        {"{\"n\": {\"$gte\": 5}}", 1},
        {"{\"n\": {\"$gte\": 6}}", 0},
        {"{\"n\": {\"$gt\": 1, \"$lt\": 9}}", 1},
        {"{\"n\": {\"$gt\": 1, \"$lt\": 3}}", 0},
        {"{\"text\": {\"$lt\": \"c\"}}", 1},
        {"{\"n\": {\"$in\": [1, 5]}}", 1},
        {"{\"n\": {\"$in\": []}}", 0},
        {"{\"none\": {\"$in\": [null]}}", 1},
        {"{\"text\": {\"$in\": \"abc\"}}", 1},
        {"{\"n\": {\"$nin\": [1, 5]}}", 0},
        {"{\"n\": {\"$nin\": [1]}}", 1},
        {"{\"text\": {\"$all\": [[\"b\", 2], \"abc\"]}}", 1},
        {"{\"text\": {\"$all\": [[\"c\"]]}}", 0},
        {"{\"n\": {\"$mod\": [3, 2]}}", 1},
        {"{\"n\": {\"$mod\": [3, 1]}}", 0},
        {"{\"negative\": {\"$mod\": [3, 2]}}", 1},
        {"{\"n\": {\"$exists\": true}}", 1},
        {"{\"none\": {\"$exists\": true}}", 0},
        {"{\"unknown\": {\"$exists\": false}}", 1},
        {"{\"msg_id\": {\"$glob\": \"a_*\"}}", 1},
        {"{\"msg_id\": {\"$glob\": \"b_*\"}}", 0},
        {"{\"completed\": {\"$gt\": \"2026-01-02T03:04:04.999999Z\"}}", 1},
        {"{\"completed\": {\"$lte\": \"2026-01-02T04:04:05+01:00\"}}", 1},
        {"{\"completed\": \"2026-01-02T01:04:05.000-0200\"}", 1},
        {"{\"completed\": {\"$lt\": \"2026-01-02T03:04:05Z\"}}", 0},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_exception exception = {{0}, {0}};
        int result = match(rows[i].query, &exception);
        if (result != rows[i].result)
            fail_msg("%s gave %d: %s", rows[i].query, result, exception.evalue);
    }
}

static void test_exceptions(void **state)
{
    (void)state;
    static const struct {
        const char *query, *ename, *evalue;
    } rows[] = {
        {"{\"n\": {\"$like\": 5}}", "KeyError", "'$like'"},
        {"[1]", "AttributeError", "'list' object has no attribute 'items'"},
        {"{\"none\": {\"$lt\": \"2026-01-02T03:04:05Z\"}}", "TypeError",
         "'<' not supported between instances of 'NoneType' and 'datetime.datetime'"},
        {"{\"n\": {\"$in\": 5}}", "TypeError", "argument of type 'int' is not iterable"},
        {"{\"n\": {\"$all\": 5}}", "TypeError", "'int' object is not iterable"},
        {"{\"n\": {\"$mod\": 5}}", "TypeError", "'int' object is not subscriptable"},
        {"{\"n\": {\"$mod\": [3]}}", "IndexError", "list index out of range"},
        {"{\"n\": {\"$mod\": [0, 1]}}", "ZeroDivisionError", "integer modulo by zero"},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_exception exception = {{0}, {0}};
        assert_int_equal(match(rows[i].query, &exception), -1);
        assert_string_equal(exception.ename, rows[i].ename);
        assert_string_equal(exception.evalue, rows[i].evalue);
    }
}

static void test_dates(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t micros;
    } rows[] = {
        {"1970-01-01T00:00:00Z", 0},
        {"1970-01-01T00:00:00.5Z", 500000},
        {"1970-01-01T00:00:00.000001Z", 1},
        {"1970-01-01T01:00:00+01:00", 0},
        {"1969-12-31T23:00:00-0100", 0},
        {"2024-02-29T12:00:00Z", 1709208000000000},
        {"2026-11-23T13:14:16", 1795439656000000},
        {"2026-11-23", -1},
        {"2026-13-23T13:14:16Z", -1},
        {"2026-11-23T13:14", -1},
        {"2026-11-23T13:14:16Q", -1},
        {"x", -1},
        {"", -1},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        int64_t micros = px_date_parse(px_span_of(rows[i].text));
        if (micros != rows[i].micros)
            fail_msg("%s gave %lld", rows[i].text, (long long)micros);
    }
}

/* The ids that a query asks for, comma-separated; "any" when it does not say. */
static void test_ids(void **state)
{
    (void)state;
    static const struct {
        const char *query, *ids;
    } rows[] = {
        {"{\"msg_id\": \"a\"}", "a"},
        {"{\"n\": 1, \"msg_id\": {\"$eq\": \"a\"}}", "a"},
        {"{\"msg_id\": {\"$in\": [\"a\", \"b\", \"a\"]}}", "a,b"},
        {"{\"msg_id\": {\"$in\": []}}", ""},
        {"{\"msg_id\": {\"$nin\": [\"c\"], \"$in\": [\"a\"]}}", "a"},
        {"{\"msg_id\": {\"$in\": \"abc\"}}", "any"},
        {"{\"msg_id\": {\"$in\": [\"a\", 1]}}", "any"},
        {"{\"msg_id\": {\"$in\": [\"2026-01-02T03:04:05Z\"]}}", "any"},
        {"{\"msg_id\": {\"$nin\": [\"a\"]}}", "any"},
        {"{\"queue\": {\"$in\": [\"mux\"]}}", "any"},
        {"{}", "any"},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_exception exception;
        json_t *json = json_loads(rows[i].query, 0, NULL), *value;
        struct px_query *query = px_query_create(json, &exception);
        json_t *ids = px_query_ids(query);
        struct px_buf text = {0};
        const char *id;
        px_buf_text(&text, ids == NULL ? "any" : "");
        json_object_foreach(ids, id, value)
            px_buf_printf(&text, "%s%s", text.size ? "," : "", id);
        if (strcmp(text.data, rows[i].ids) != 0)
            fail_msg("%s: %s", rows[i].query, text.data);
        px_buf_fini(&text);
        json_decref(ids);
        px_query_destroy(query);
        json_decref(json);
    }
}

/* Each record would be held against all of it. */
static void test_list_that_is_no_set_is_bounded(void **state)
{
    (void)state;
    static const char *const starts[] = {"{\"n\": {\"$in\": [5", "{\"n\": {\"$all\": [[5]"};
    for (size_t i = 0; i < PX_COUNT(starts); i++) {
        struct px_exception exception = {{0}, {0}};
        struct px_buf text = {0};
        px_buf_text(&text, starts[i]);
        for (int j = 0; j < 1023; j++)
            px_buf_text(&text, ", [5]");
        px_buf_text(&text, "]}}");
        assert_int_equal(match(text.data, &exception), 1);
        text.size -= 3;
        px_buf_text(&text, ", [5]]}}");
        assert_int_equal(match(text.data, &exception), -1);
        assert_string_equal(exception.ename, "ValueError");
        px_buf_fini(&text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matches),
        cmocka_unit_test(test_exceptions),
        cmocka_unit_test(test_dates),
        cmocka_unit_test(test_ids),
        cmocka_unit_test(test_list_that_is_no_set_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
