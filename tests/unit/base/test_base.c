/* SPDX-License-Identifier: BSD-3-Clause */
/* Errors, buffers, JSON strings, dates, and the nearest name. */
#include "base/base.h"
#include "../test.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void an_error_may_quote_itself(void **state)
{
    (void)state;
    struct px_error err;
    assert_int_equal(px_fail(&err, PX_EIO, "no %s", "disk"), -1);
    assert_int_equal(px_fail(&err, PX_EINVAL, "file: %s", err.text), -1);
    assert_string_equal(err.text, "file: no disk");
    assert_int_equal(err.code, PX_EINVAL);
    assert_int_equal(px_fail(NULL, PX_EIO, "nobody listens"), -1);
}

static void a_buffer_grows_and_stays_terminated(void **state)
{
    (void)state;
    struct px_buf buf = {0};
    for (int i = 0; i < 1000; i++)
        px_buf_printf(&buf, "%d,", i);
    assert_int_equal(buf.size, 10 * 2 + 90 * 3 + 900 * 4);
    assert_int_equal(strlen(buf.data), buf.size);
    px_buf_clear(&buf);
    assert_string_equal(buf.data, "");
    px_buf_append(&buf, "a\0b", 3);
    assert_int_equal(buf.size, 3);
    px_buf_fini(&buf);
    assert_null(buf.data);
}

static void a_long_format_is_not_cut(void **state)
{
    (void)state;
    char text[5000];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = 0;
    struct px_buf buf = {0};
    px_buf_printf(&buf, "<%s>", text);
    assert_int_equal(buf.size, sizeof text + 1);
    assert_int_equal(buf.data[buf.size - 1], '>');
    px_buf_fini(&buf);
}

static void json_strings_are_escaped_and_valid_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *in, *out;
        size_t size;
    } rows[] = {
        {"", "\"\"", 0},
        {"plain", "\"plain\"", 5},
        {"a\"b\\c\n\t\r", "\"a\\\"b\\\\c\\n\\t\\r\"", 8},
        {"\x01\x1f\x7f", "\"\\u0001\\u001f\x7f\"", 3},
        {"\0", "\"\\u0000\"", 1},
        {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"", 9},
        {"\xff", "\"\\ufffd\"", 1},
        {"\xc3", "\"\\ufffd\"", 1},                                  /* cut short */
        {"\xc0\x80", "\"\\ufffd\\ufffd\"", 2},                       /* overlong */
        {"\xed\xa0\x80", "\"\\ufffd\\ufffd\\ufffd\"", 3},            /* a surrogate */
        {"\xf4\x90\x80\x80", "\"\\ufffd\\ufffd\\ufffd\\ufffd\"", 4}, /* beyond U+10FFFF */
        {"\xe2\x82x", "\"\\ufffd\\ufffdx\"", 3},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_buf buf = {0};
        px_buf_json_string(&buf, rows[i].in, rows[i].size);
        assert_string_equal(buf.data, rows[i].out);
        const bool whole = strstr(rows[i].out, "\\ufffd") == NULL;
        assert_int_equal(px_is_utf8((struct px_span){rows[i].in, rows[i].size}), whole);
        px_buf_fini(&buf);
    }
}

static void a_text_is_cut_between_characters(void **state)
{
    static const struct {
        const char *text;
        size_t most, cut;
    } rows[] = {
        {"abc", 3, 3},
        {"abc", 2, 2},
        {"a\xe2\x82\xac", 3, 1},
        {"a\xe2\x82\xac"
         "b",
         4, 4},
        {"\xf0\x9f\x98\x80", 3, 0},
        {"\xf0\x9f\x98\x80", 1, 0},
        {"a\xc3\xa9", 2, 1},
        {"\x80\x80\x80\x80\x80\x80", 5, 2},
    };
    (void)state;
    for (size_t i = 0; i < PX_COUNT(rows); i++)
        assert_int_equal(px_text_cut(rows[i].text, strlen(rows[i].text), rows[i].most),
                         rows[i].cut);
}

static void a_date_is_what_the_library_would_print(void **state)
{
    (void)state;
    char date[PX_DATE_SIZE], before[32], after[32];
    for (int i = 0; i < 3; i++) {
        struct tm utc;
        time_t now = time(NULL);
        strftime(before, sizeof before, "%Y-%m-%dT%H:%M:%S", gmtime_r(&now, &utc));
        assert_int_equal(px_date_now(date), strlen("2026-01-02T03:04:05.678901Z"));
        now = time(NULL);
        strftime(after, sizeof after, "%Y-%m-%dT%H:%M:%S", gmtime_r(&now, &utc));
        assert_true(strncmp(date, before, 19) >= 0 && strncmp(date, after, 19) <= 0);
        assert_int_equal(date[26], 'Z');
    }
}

static void clocks_do_not_go_back(void **state)
{
    (void)state;
    int64_t last = px_now_ns();
    for (int i = 0; i < 1000; i++) {
        const int64_t now = px_now_ns();
        assert_true(now >= last);
        last = now;
    }
    assert_true(px_now_ms() >= last / 1000000);
}

static void the_nearest_name(void **state)
{
    (void)state;
    static const char *const names[] = {"targets", "block", "noblock", "verbose", NULL};
    assert_string_equal(px_nearest("target", names), "targets");
    assert_string_equal(px_nearest("blok", names), "block");
    assert_null(px_nearest("zzzzzzzz", names));
    char endless[500];
    memset(endless, 'a', sizeof endless);
    endless[sizeof endless - 1] = 0;
    assert_null(px_nearest(endless, names));
}

static void levels_have_names_and_numbers(void **state)
{
    (void)state;
    assert_int_equal(px_log_parse_level("DEBUG"), PX_DEBUG);
    assert_int_equal(px_log_parse_level("warning"), PX_WARN);
    assert_int_equal(px_log_parse_level("30"), 30);
    assert_int_equal(px_log_parse_level("51"), -1);
    assert_int_equal(px_log_parse_level(""), -1);
    assert_int_equal(px_log_parse_level("3x"), -1);
}

/* The log goes into a pipe that is full. Returns where it went before. */
static int fill_log(int ends[2])
{
    static const char bytes[4096];
    const int before = px_log_fd();
    assert_int_equal(pipe(ends), 0);
    fcntl(ends[1], F_SETFL, O_NONBLOCK);
    while (write(ends[1], bytes, sizeof bytes) > 0)
        continue;
    fcntl(ends[1], F_SETFL, 0);
    px_log_set_fd(ends[1]);
    return before;
}

/* What an unread log holds is lost, and that is said. */
static void a_log_that_nobody_reads_holds_nobody(void **state)
{
    (void)state;
    int ends[2];
    char bytes[4096] = {0};
    const int before = fill_log(ends);
    for (int i = 0; i < 3; i++)
        px_log(PX_ERROR, "unread", NULL);
    assert_int_equal(read(ends[0], bytes, sizeof bytes), sizeof bytes);
    px_log(PX_ERROR, "read", "a=%d", 1);
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    ssize_t size = 0;
    for (ssize_t more; (more = read(ends[0], bytes, sizeof bytes)) > 0;)
        size = more;
    px_log_set_fd(before);
    assert_true(size > 0 && size < (ssize_t)sizeof bytes);
    assert_non_null(strstr(strchr(bytes, '|'), "| read a=1 lines_lost=3\n"));
    close(ends[0]);
    close(ends[1]);
}

/* There is room for its beginning. */
static void a_long_text_in_the_log_holds_nobody(void **state)
{
    (void)state;
    int ends[2];
    char bytes[4096], lines[16000];
    for (size_t i = 0; i < sizeof lines; i++)
        lines[i] = i % 100 == 99 ? '\n' : 'x';
    const int before = fill_log(ends);
    assert_int_equal(read(ends[0], bytes, sizeof bytes), sizeof bytes);
    alarm(20);
    px_log_text(PX_ERROR, lines, sizeof lines);
    alarm(0);
    px_log_set_fd(before);
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    ssize_t size = 0;
    for (ssize_t more; (more = read(ends[0], bytes, sizeof bytes)) > 0;)
        size = more;
    assert_int_equal(size, 4000); /* whole lines */
    assert_memory_equal(bytes, lines, 4000);
    close(ends[0]);
    close(ends[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_error_may_quote_itself),
        cmocka_unit_test(a_buffer_grows_and_stays_terminated),
        cmocka_unit_test(a_long_format_is_not_cut),
        cmocka_unit_test(json_strings_are_escaped_and_valid_utf8),
        cmocka_unit_test(a_text_is_cut_between_characters),
        cmocka_unit_test(a_date_is_what_the_library_would_print),
        cmocka_unit_test(clocks_do_not_go_back),
        cmocka_unit_test(the_nearest_name),
        cmocka_unit_test(levels_have_names_and_numbers),
        cmocka_unit_test(a_log_that_nobody_reads_holds_nobody),
        cmocka_unit_test(a_long_text_in_the_log_holds_nobody),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
