/* SPDX-License-Identifier: BSD-3-Clause */
/* Frames: moving, sharing, and finding the Jupyter layout among them. */
#include "wire/wire.h"
#include "../test.h"

#include <stdlib.h>
#include <string.h>

static struct px_msg *make(const char *const *frames)
{
    struct px_msg *msg = px_msg_create();
    for (; *frames; frames++)
        px_msg_append(msg, *frames, strlen(*frames));
    return msg;
}

#define MAKE(...) make((const char *const[]){__VA_ARGS__, NULL})

static void the_layout_is_found(void **state)
{
    (void)state;
    struct px_error err;
    struct px_msg *msg =
        MAKE("client", "engine", "<IDS|MSG>", "sig", "{h}", "{p}", "{m}", "{c}", "b0", "b1");
    assert_int_equal(px_msg_locate(msg, &err), 0);
    assert_int_equal(px_msg_ident_count(msg), 2);
    assert_span_equal(px_msg_ident(msg, 1), "engine");
    assert_span_equal(px_msg_signature(msg), "sig");
    assert_span_equal(px_msg_header(msg), "{h}");
    assert_span_equal(px_msg_parent(msg), "{p}");
    assert_span_equal(px_msg_metadata(msg), "{m}");
    assert_span_equal(px_msg_content(msg), "{c}");
    assert_int_equal(px_msg_buffer_count(msg), 2);
    assert_span_equal(px_msg_buffer(msg, 1), "b1");
    assert_int_equal(px_msg_bytes(msg), 6 + 6 + 9 + 3 + 4 * 3 + 4);
    px_msg_destroy(msg);
}

static void offsets_follow_the_front(void **state)
{
    (void)state;
    struct px_msg *msg = MAKE("a", "b", "<IDS|MSG>", "s", "h", "p", "m", "c");
    assert_int_equal(px_msg_locate(msg, NULL), 0);
    px_msg_swap(msg, 0, 1);
    px_msg_drop_front(msg, 1);
    for (int i = 0; i < 20; i++)
        px_msg_prepend(msg, "x", 1);
    assert_int_equal(px_msg_ident_count(msg), 21);
    assert_span_equal(px_msg_ident(msg, 20), "a");
    assert_span_equal(px_msg_content(msg), "c");
    for (int i = 0; i < 100; i++)
        px_msg_append(msg, "buffer", 6);
    assert_int_equal(px_msg_buffer_count(msg), 100);
    assert_span_equal(px_msg_header(msg), "h");
    assert_span_equal(px_msg_frame(msg, px_msg_first_buffer(msg)), "buffer");
    px_msg_destroy(msg);
}

static void a_mark_is_the_last_identity(void **state)
{
    (void)state;
    struct px_msg *msg = MAKE("a", "b", "<IDS|MSG>", "s", "h", "p", "m", "c");
    assert_int_equal(px_msg_locate(msg, NULL), 0);
    struct px_msg *marked = px_msg_marked(msg, "mark");
    assert_int_equal(px_msg_ident_count(msg), 2);
    assert_int_equal(px_msg_ident_count(marked), 3);
    assert_span_equal(px_msg_ident(marked, 1), "b");
    assert_span_equal(px_msg_ident(marked, 2), "mark");
    assert_span_equal(px_msg_content(marked), "c");
    px_msg_destroy(marked);
    px_msg_destroy(msg);
}

static void what_has_no_layout_is_refused(void **state)
{
    (void)state;
    char long_ident[PX_MAX_IDENTITY + 2];
    memset(long_ident, 'i', sizeof long_ident - 1);
    long_ident[sizeof long_ident - 1] = 0;
    struct px_msg *rows[] = {
        px_msg_create(),
        MAKE("<IDS|MSG>"),
        MAKE("a", "<IDS|MSG>", "s", "h", "p", "m"),
        MAKE("a", "b", "c", "d", "e", "f"),
        MAKE(long_ident, "<IDS|MSG>", "s", "h", "p", "m", "c"),
        MAKE("1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16",
             "17", "<IDS|MSG>", "s", "h", "p", "m", "c"),
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_error err = {.text = ""};
        assert_int_equal(px_msg_locate(rows[i], &err), -1);
        assert_true(err.text[0]);
        px_msg_destroy(rows[i]);
    }
}

static void a_header_has_a_limit(void **state)
{
    (void)state;
    struct px_msg *msg = MAKE("<IDS|MSG>", "s");
    char *large = px_alloc(PX_MAX_HEADER + 1);
    px_msg_append(msg, large, PX_MAX_HEADER + 1);
    for (int i = 0; i < 3; i++)
        px_msg_append(msg, "{}", 2);
    struct px_error err;
    assert_int_equal(px_msg_locate(msg, &err), -1);
    assert_int_equal(err.code, PX_ELIMIT);
    free(large);
    px_msg_destroy(msg);
}

static void count_release(void *data, void *hint)
{
    (void)data;
    ++*(int *)hint;
}

static void copies_share_bytes_until_the_last(void **state)
{
    (void)state;
    static char bytes[100000];
    int released = 0;
    struct px_msg *msg = MAKE("<IDS|MSG>", "s", "h", "p", "m", "c");
    px_msg_append_new(msg, bytes, sizeof bytes, count_release, &released);
    assert_int_equal(px_msg_locate(msg, NULL), 0);
    struct px_msg *copy = px_msg_copy(msg);
    assert_ptr_equal(px_msg_buffer(copy, 0).data, bytes);
    assert_span_equal(px_msg_header(copy), "h"); /* a copy of a located message is located */
    px_msg_destroy(msg);
    assert_int_equal(released, 0);
    px_msg_destroy(copy);
    assert_int_equal(released, 1);
}

static void json_must_be_an_object(void **state)
{
    (void)state;
    static const char *const bad[] = {"", "[]", "{", "{\"a\":}", "nul", "{}x", "\"\xff\""};
    for (size_t i = 0; i < PX_COUNT(bad); i++) {
        struct px_error err;
        assert_null(px_json_parse(px_span_of(bad[i]), &err));
        assert_int_equal(err.code, PX_EINVAL);
    }
    json_t *good = px_json_parse(PX_SPAN("{\"a\": 1}"), NULL);
    assert_int_equal(json_integer_value(json_object_get(good, "a")), 1);
    json_decref(good);
}

static void values_in_json_are_bounded(void **state)
{
    (void)state;
    struct px_error err;
    struct px_buf many = {0}, string = {0};
    px_buf_text(&many, "{\"a\": [0");
    px_buf_text(&string, "{\"a\": \"\\\"");
    for (unsigned i = 0; i <= PX_MAX_JSON_VALUES; i++) {
        px_buf_text(&many, ",0");
        px_buf_text(&string, ",[");
    }
    px_buf_text(&many, "]}");
    px_buf_text(&string, "\"}");
    assert_null(px_json_parse(px_buf_span(&many), &err));
    assert_int_equal(err.code, PX_ELIMIT);
    json_t *good = px_json_parse(px_buf_span(&string), &err);
    assert_non_null(good);
    json_decref(good);
    px_buf_fini(&many);
    px_buf_fini(&string);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_layout_is_found),
        cmocka_unit_test(offsets_follow_the_front),
        cmocka_unit_test(a_mark_is_the_last_identity),
        cmocka_unit_test(what_has_no_layout_is_refused),
        cmocka_unit_test(a_header_has_a_limit),
        cmocka_unit_test(copies_share_bytes_until_the_last),
        cmocka_unit_test(json_must_be_an_object),
        cmocka_unit_test(values_in_json_are_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
