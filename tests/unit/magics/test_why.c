/* SPDX-License-Identifier: BSD-3-Clause */
/* A why_reply as sentences: one row a case. */
#include "../test.h"

#include "magics.h"

#include <string.h>

#define TASKS(members) "{\"status\": \"ok\", \"tasks\": {" members "}}"

static const struct {
    const char *reply, *text; /* text: NULL when it is refused */
} rows[] = {
    {TASKS(""), ""},
    {TASKS("\"abc\": {\"state\": \"waiting\", \"why\": \"no engine has room\", \"since_s\": 5.2}"),
     "task abc: waiting for 5 s: no engine has room\n"},
    {TASKS("\"abc\": {\"state\": \"running\", \"why\": \"it runs\", \"engine\": 3}"),
     "task abc of engine 3: running: it runs\n"},
    {TASKS("\"a\": {\"state\": \"queued\", \"why\": \"w\", \"engine\": 0, \"since_s\": 1},"
           "\"b\": {\"state\": \"queued\", \"why\": \"w\", \"engine\": 1, \"since_s\": 70},"
           "\"c\": {\"state\": \"done\", \"why\": \"\"}"),
     "2 tasks of engines 0-1: queued for up to 1 min 10 s: w\n"
     "task c: done\n"},
    {TASKS("\"a\": {}"), "task a: unknown\n"},
    {TASKS("\"a\": null, \"b\": {\"state\": 5, \"engine\": \"x\", \"since_s\": []}"),
     "2 tasks: unknown\n"},
    {TASKS("\"a\": {\"engine\": 99999999999}"), "task a: unknown\n"},
    {"{\"status\": \"error\"}", NULL},
    {"{\"tasks\": []}", NULL},
    {"[", NULL},
    {"", NULL},
};

static void says_why(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_buf out = {0};
        struct px_error err = {0};
        px_buf_text(&out, "");
        const int status = px_why_render(&out, px_span_of(rows[i].reply), &err);
        assert_int_equal(status, rows[i].text ? 0 : -1);
        if (rows[i].text)
            assert_string_equal(out.data, rows[i].text);
        else
            assert_string_equal(err.text, "the controller's answer names no tasks");
        px_buf_fini(&out);
    }
}

static void bounds_many_reasons(void **state)
{
    (void)state;
    struct px_buf reply = {0}, out = {0};
    px_buf_text(&reply, "{\"tasks\": {");
    for (int i = 0; i < 100; i++)
        px_buf_printf(&reply, "%s\"t%d\": {\"why\": \"reason %d\"}", i ? "," : "", i, i);
    px_buf_text(&reply, "}}");
    assert_int_equal(px_why_render(&out, px_buf_span(&reply), NULL), 0);
    assert_non_null(strstr(out.data, "reason 19\n... and 80 more tasks\n"));
    px_buf_fini(&reply);
    px_buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(says_why),
        cmocka_unit_test(bounds_many_reasons),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
