/* SPDX-License-Identifier: BSD-3-Clause */
/* The allowance of a stream's text, and the tail of what it does not cover. */
#include "../test.h"

#include "output.h"

#include <stdlib.h>
#include <string.h>

static const struct px_output_config config = {.burst_kb = 1, .rate_kb = 1};

static void test_a_burst_goes_and_comes_back_with_time(void **state)
{
    struct px_flow flow = {0};
    char text[1024];
    (void)state;
    memset(text, 'x', sizeof text);
    assert_int_equal(px_flow_admit(&flow, &config, text, 1024, 5000), 1024);
    assert_int_equal(px_flow_admit(&flow, &config, text, 1, 5000), 0);
    assert_int_equal(px_flow_wait(&flow, &config, 512, 5000), 501);
    assert_int_equal(px_flow_wait(&flow, &config, 512, 5500), 0);
    assert_int_equal(px_flow_admit(&flow, &config, text, 512, 5500), 512);
    assert_int_equal(px_flow_admit(&flow, &config, text, 1, 5500), 0);
    /* A day later it is a burst again, and no more. */
    assert_int_equal(px_flow_admit(&flow, &config, text, 1024, 5500 + 86400000), 1024);
    assert_int_equal(px_flow_admit(&flow, &config, text, 1, 5500 + 86400000), 0);
}

static void test_a_look_at_the_clock_is_saved_while_there_is_plenty(void **state)
{
    struct px_flow flow = {0};
    (void)state;
    assert_false(px_flow_try(&flow, &config, "abc", 3)); /* the first text starts the clock */
    assert_int_equal(px_flow_admit(&flow, &config, "abc", 3, 1), 3);
    assert_true(px_flow_try(&flow, &config, "a\nb", 3));
    assert_int_equal(flow.spent, 7);
    char text[1024] = {0};
    assert_false(px_flow_try(&flow, &config, text, sizeof text));
    assert_int_equal(flow.spent, 7);
}

static void test_without_a_limit_everything_goes(void **state)
{
    struct px_flow flow = {0};
    const struct px_output_config none = {0};
    char text[4096] = {0};
    (void)state;
    for (int i = 0; i < 100; i++)
        assert_true(px_flow_try(&flow, &none, text, sizeof text));
}

static void test_lines_stay_whole(void **state)
{
    struct px_flow flow = {0};
    char text[2000];
    (void)state;
    for (size_t i = 0; i < sizeof text; i++)
        text[i] = i % 100 == 99 ? '\n' : 'x';
    /* 101 of cost a line. */
    assert_int_equal(px_flow_admit(&flow, &config, text, sizeof text, 0), 1000);
}

static void test_a_long_line_is_cut_between_characters(void **state)
{
    const struct px_output_config wide = {.burst_kb = 8, .rate_kb = 1};
    struct px_flow flow = {0};
    char text[20001];
    (void)state;
    text[0] = 'x'; /* so that the limit falls into a character */
    for (size_t i = 1; i < sizeof text; i += 2)
        memcpy(text + i, "\xc3\xa4", 2);
    const size_t cut = px_flow_admit(&flow, &wide, text, sizeof text, 0);
    assert_int_equal(cut, 8191);
    assert_int_equal((unsigned char)text[cut], 0xc3);
}

static void test_an_allowance_that_never_grows_is_waited_for_a_minute(void **state)
{
    const struct px_output_config still = {.burst_kb = 1, .rate_kb = 0};
    struct px_flow flow = {0};
    char text[1024] = {0};
    (void)state;
    assert_int_equal(px_flow_admit(&flow, &still, text, sizeof text, 0), sizeof text);
    assert_int_equal(px_flow_wait(&flow, &still, 10, 1000000), 60000);
}

/* ---- tail ---- */

static void test_a_short_tail_is_whole(void **state)
{
    struct px_tail tail = {0};
    struct px_buf out = {0};
    uint64_t lines = 7;
    (void)state;
    assert_int_equal(px_tail_take(&tail, &out, &lines), 0);
    assert_int_equal(lines, 0);
    assert_int_equal(out.size, 0);
    px_tail_add(&tail, "one\n", 4);
    px_tail_add(&tail, "two", 3);
    assert_int_equal(px_tail_take(&tail, &out, &lines), 0);
    assert_int_equal(lines, 0);
    assert_string_equal(out.data, "one\ntwo");
    assert_null(tail.data);
    px_buf_fini(&out);
}

/* Whatever the pieces, the tail is the end of the whole, from the start of a line, and the count is
 * right. */
static void test_a_tail_is_the_end_of_all(void **state)
{
    (void)state;
    srandom(1);
    for (int round = 0; round < 50; round++) {
        struct px_tail tail = {0};
        struct px_buf all = {0}, out = {0};
        uint64_t lines, counted = 0;
        const long pieces = random() % 400;
        for (long i = 0; i < pieces; i++) {
            const struct px_buf before = all;
            px_buf_printf(&all, "%*ld\n", (int)(1 + random() % 2000), i);
            px_tail_add(&tail, all.data + before.size, all.size - before.size);
        }
        const uint64_t omitted = px_tail_take(&tail, &out, &lines);
        assert_int_equal(omitted + out.size, all.size);
        assert_memory_equal(all.data + omitted, px_buf_span(&out).data, out.size);
        assert_true(omitted == 0 || all.data[omitted - 1] == '\n');
        assert_true(omitted == 0 || out.size > PX_TAIL_SIZE - 2002);
        for (size_t i = 0; i < omitted; i++)
            counted += all.data[i] == '\n';
        assert_int_equal(lines, counted);
        px_buf_fini(&all);
        px_buf_fini(&out);
    }
}

static void test_a_tail_of_one_line_begins_with_a_character(void **state)
{
    struct px_tail tail = {0};
    struct px_buf out = {0};
    uint64_t lines;
    (void)state;
    for (int i = 0; i < 20000; i++)
        px_tail_add(&tail, "\xe2\x82\xac", 3);
    const uint64_t omitted = px_tail_take(&tail, &out, &lines);
    assert_int_equal(omitted + out.size, 60000);
    assert_int_equal(out.size % 3, 0);
    assert_int_equal((unsigned char)out.data[0], 0xe2);
    px_buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_burst_goes_and_comes_back_with_time),
        cmocka_unit_test(test_a_look_at_the_clock_is_saved_while_there_is_plenty),
        cmocka_unit_test(test_without_a_limit_everything_goes),
        cmocka_unit_test(test_lines_stay_whole),
        cmocka_unit_test(test_a_long_line_is_cut_between_characters),
        cmocka_unit_test(test_an_allowance_that_never_grows_is_waited_for_a_minute),
        cmocka_unit_test(test_a_short_tail_is_whole),
        cmocka_unit_test(test_a_tail_is_the_end_of_all),
        cmocka_unit_test(test_a_tail_of_one_line_begins_with_a_character),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
