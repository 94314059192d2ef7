/* SPDX-License-Identifier: BSD-3-Clause */
/* The scanner: what it finds, and that it calls the same texts well-formed as jansson. */
#include "wire/wire.h"
#include "../test.h"

#include <stdlib.h>
#include <string.h>

static void fields_are_found_at_the_top_level_only(void **state)
{
    (void)state;
    static const char *const keys[] = {"a", "b", "none", "list"};
    struct px_span v[4];
    const char *text = " { \"x\" : {\"a\": 9, \"b\": [{\"a\": 8}]}, \"a\":1.5e3 ,\"b\": \"t}e,x\" "
                       ", \"list\": [ 1 , [], {} ], \"a\": \"last\" } ";
    assert_int_equal(px_scan(px_span_of(text), keys, v, 4), 0);
    assert_span_equal(v[0], "\"last\"");
    assert_span_equal(v[1], "\"t}e,x\"");
    assert_null(v[2].data);
    assert_span_equal(v[3], "[ 1 , [], {} ]");
    struct px_span plain;
    assert_true(px_scan_string(v[1], &plain));
    assert_span_equal(plain, "t}e,x");
    assert_false(px_scan_string(v[3], &plain));
    assert_false(px_scan_string(PX_SPAN("\"a\\n\""), &plain));
    assert_false(px_scan_string(v[2], &plain));
}

static void a_member_is_a_text_or_nothing(void **state)
{
    (void)state;
    const struct px_span object = PX_SPAN("{\"a\": \"x\", \"b\": 1, \"c\": \"\\n\"}");
    assert_span_equal(px_scan_member(object, "a"), "x");
    assert_span_equal(px_scan_member(object, "b"), "");
    assert_span_equal(px_scan_member(object, "c"), "");
    assert_span_equal(px_scan_member(object, "d"), "");
    assert_span_equal(px_scan_member(PX_SPAN("[]"), "a"), "");
}

/* Right and wrong: jansson says which. */
static const char *const texts[] = {
    "{}",
    "{ }",
    "{\"a\":1}",
    "{\"a\":-0.5E+10}",
    "{\"a\":[1,2,{\"b\":null}]}",
    "{\"a\":true,\"b\":false}",
    "{\"a\":\"\\u00e9\\\\\\\"\"}",
    "{\"a\":[[],[[]]]}",
    "{\"a\":{},\"b\":[]}",
    "{\"a\":0}",
    "{\"a\":10}",
    "",
    "{",
    "}",
    "[]",
    "{\"a\"}",
    "{\"a\":}",
    "{\"a\":1,}",
    "{,}",
    "{\"a\":01}",
    "{\"a\":1.}",
    "{\"a\":.5}",
    "{\"a\":-}",
    "{\"a\":1e}",
    "{\"a\":+1}",
    "{\"a\":[1,]}",
    "{\"a\":[,]}",
    "{\"a\":[1 2]}",
    "{\"a\":{\"b\":1,}}",
    "{\"a\":tru}",
    "{\"a\":\"x}",
    "{\"a\":\"\\x\"}",
    "{\"a\":\"\\u12g4\"}",
    "{\"a\":\"\\",
    "{\"a\":[}",
    "{\"a\":{]}",
    "{\"a\":1}}",
    "{}{}",
    "{\"a\":\"\n\"}",
    "{a:1}",
    "{'a':1}",
    "{\"a\":NaN}",
    "{\"a\" 1}",
    "{\"a\":{1:2}}",
    "{\"a\":1;\"b\":2}",
    "{\"a\":[[1,2],[3,4]],\"b\":{\"c\":{\"d\":[]}}}",
};

static void grammar(void **state)
{
    (void)state;
    static const char *const keys[] = {"a"};
    for (size_t i = 0; i < PX_COUNT(texts); i++) {
        struct px_span value;
        json_t *oracle = json_loads(texts[i], 0, NULL);
        const bool good = oracle && json_is_object(oracle);
        json_decref(oracle);
        if ((px_scan(px_span_of(texts[i]), keys, &value, 1) == 0) != good)
            fail_msg("the scanner and jansson differ on %s", texts[i]);
    }
}

static void depth_is_bounded(void **state)
{
    (void)state;
    static const char *const keys[] = {"a"};
    for (int depth = PX_MAX_JSON_DEPTH; depth <= PX_MAX_JSON_DEPTH + 1; depth++) {
        struct px_buf text = {0};
        px_buf_text(&text, "{\"a\":");
        for (int i = 0; i < depth; i++)
            px_buf_text(&text, "[");
        for (int i = 0; i < depth; i++)
            px_buf_text(&text, "]");
        px_buf_text(&text, "}");
        struct px_span value;
        assert_int_equal(px_scan(px_buf_span(&text), keys, &value, 1),
                         depth > PX_MAX_JSON_DEPTH ? -1 : 0);
        px_buf_fini(&text);
    }
}

static void an_escaped_key_means_not_sure(void **state)
{
    (void)state;
    static const char *const keys[] = {"a"};
    struct px_span value;
    assert_int_equal(px_scan(PX_SPAN("{\"\\u0061\": 1}"), keys, &value, 1), -1);
    assert_int_equal(px_scan(PX_SPAN("{\"b\": {\"\\u0061\": 1}}"), keys, &value, 1), 0);
}

static void headers(void **state)
{
    (void)state;
    struct px_header h;
    struct px_error err;
    assert_int_equal(px_header_scan(PX_SPAN("{\"msg_id\": \"i\", \"msg_type\": \"t\", "
                                            "\"session\": \"s\", \"version\": \"5.3\"}"),
                                    &h, &err),
                     0);
    assert_span_equal(h.msg_id, "i");
    assert_span_equal(h.msg_type, "t");
    assert_span_equal(h.session, "s");
    assert_int_equal(h.date.size, 0);
    static const char *const bad[] = {
        "{}",
        "{\"msg_id\": \"i\"}",
        "{\"msg_id\": 1, \"msg_type\": \"t\"}",
        "{\"msg_id\": \"\", \"msg_type\": \"t\"}",
        "{\"msg_id\": \"a\\tb\", \"msg_type\": \"t\"}",
        "[]",
        "null",
    };
    for (size_t i = 0; i < PX_COUNT(bad); i++) {
        assert_int_equal(px_header_scan(px_span_of(bad[i]), &h, &err), -1);
        assert_true(err.text[0]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fields_are_found_at_the_top_level_only),
        cmocka_unit_test(a_member_is_a_text_or_nothing),
        cmocka_unit_test(grammar),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(an_escaped_key_means_not_sure),
        cmocka_unit_test(headers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
