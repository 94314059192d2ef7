/* SPDX-License-Identifier: BSD-3-Clause */
/* Records to rows and back; pickled lists of bytes as Python writes them. */
#include "hub.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static struct px_msg *message(const char *header, const char *metadata)
{
    struct px_msg *msg = px_msg_create();
    const char *const frames[] = {PX_DELIMITER, "", header, "{}", metadata, "{\"status\": \"ok\"}"};
    for (size_t i = 0; i < PX_COUNT(frames); i++)
        px_msg_append(msg, frames[i], strlen(frames[i]));
    px_msg_append(msg, "a\0b", 3);
    px_msg_append(msg, "", 0);
    assert_int_equal(px_msg_locate(msg, NULL), 0);
    return msg;
}

static struct px_record *make_record(void)
{
    struct px_record *record = px_alloc(sizeof(*record) + 8);
    strcpy(record->msg_id, "s_1_2");
    record->request = message("{\"msg_id\": \"s_1_2\", \"msg_type\": \"apply_request\","
                              " \"session\": \"s\", \"date\": \"2026-01-02T03:04:05Z\"}",
                              "{\"label\": \"mine\"}");
    record->reply = message("{\"msg_id\": \"e_1_0\", \"msg_type\": \"apply_reply\","
                            " \"date\": \"2026-01-02T03:04:07Z\"}",
                            "{\"started\": \"2026-01-02T03:04:06Z\"}");
    record->queue = "task";
    record->engine_uuid = px_strdup("e0");
    px_date_now(record->received);
    px_buf_text(&record->standard_out, "out\n");
    record->execute_input = json_string("1 + 1");
    record->error = json_pack("{s:s}", "ename", "E");
    return record;
}

static void test_round_trip(void **state)
{
    (void)state;
    struct px_record *record = make_record();
    struct px_row row = {0};
    px_row_from_record(&row, record);
    struct px_record *copy = px_row_to_record(&row);
    json_t *before = px_record_json(record, NULL), *after = px_record_json(copy, NULL);
    assert_true(json_equal(before, after));
    assert_int_equal(px_msg_buffer_count(copy->request), 2);
    assert_int_equal(px_msg_buffer(copy->reply, 0).size, 3);
    assert_memory_equal(px_msg_buffer(copy->reply, 0).data, "a\0b", 3);
    assert_string_equal(json_string_value(json_object_get(after, "label")), "mine");
    json_decref(before);
    json_decref(after);
    px_row_fini(&row);
    px_record_destroy(record);
    px_record_destroy(copy);
}

static void test_unpickle(void **state)
{
    (void)state;
    static const struct {
        struct px_span text;
        int count;
    } rows[] = {
        {PX_SPAN("\x80\x04]."), 0},
        {PX_SPAN("\x80\x04]\x94."), 0},
        {PX_SPAN("\x80\x04\x95\x0a\0\0\0\0\0\0\0]\x94"
                 "C\x01"
                 "a\x94"
                 "a."),
         1},
        {PX_SPAN("\x80\x05]\x94(C\x01"
                 "a\x94"
                 "C\0\x94"
                 "e."),
         2},
        {PX_SPAN("\x80\x03]q\0(B\x02\0\0\0abq\x01"
                 "C\x01"
                 "cq\x02"
                 "e."),
         2},
        {PX_SPAN("\x80\x04]"), -1},
        {PX_SPAN(""), -1},
        {PX_SPAN("\x80\x04](B\xff\xff\xff\xff"
                 "ae."),
         -1},
        {PX_SPAN("\x80\x04](C"), -1},
        {PX_SPAN("cos\nsystem\n."), -1},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_msg *out = px_msg_create();
        int rc = px_buffers_unpickle(rows[i].text, out);
        assert_int_equal(rc, rows[i].count < 0 ? -1 : 0);
        if (rc == 0)
            assert_int_equal(px_msg_count(out), rows[i].count);
        px_msg_destroy(out);
    }
}

static void test_odd_rows(void **state)
{
    (void)state;
    struct px_row row = {0};
    assert_null(px_row_to_record(&row));
    px_row_set(&row, PX_COL_MSG_ID, PX_SPAN("a"));
    px_row_set(&row, PX_COL_HEADER, PX_SPAN("{}"));
    px_row_set(&row, PX_COL_BUFFERS, PX_SPAN("nonsense"));
    px_row_set(&row, PX_COL_ERROR, PX_SPAN("[not json"));
    struct px_record *record = px_row_to_record(&row);
    assert_non_null(record);
    assert_null(record->request);
    assert_null(record->error);
    px_record_destroy(record);
    px_row_fini(&row);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_unpickle),
        cmocka_unit_test(test_odd_rows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
