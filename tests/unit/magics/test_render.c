/* SPDX-License-Identifier: BSD-3-Clause */
/* Labels, results, lists of engines, the progress line: values in, text out. */
#include "../test.h"

#include "magics.h"

static void expect_text(struct px_buf *out, const char *text)
{
    assert_string_equal(out->data, text);
    px_buf_fini(out);
}

static const struct {
    int ids[4];
    size_t count;
    long number;
    const char *text;
    bool color;
    const char *shown;
} result_rows[] = {
    {{0}, 1, 2, "42", false, "Out[0:2]: 42"},
    {{0, 1, 2, 3}, 4, 2, "42", false, "Out[0-3:2]: 42"},
    {{0, 1, 3}, 3, -1, "42", false, "Out[0-1,3]: 42"},
    {{7}, 1, 1, "array([[1],\n       [2]])", false, "Out[7:1]: \narray([[1],\n       [2]])"},
    {{7}, 1, 1, "\nx\ny", false, "Out[7:1]: \nx\ny"},
    {{0}, 1, 2, "42", true, "\033[0;31mOut[0:2]: \033[0m42"},
    {{0}, 1, 2, "", false, "Out[0:2]: "},
};

static void renders_results(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(result_rows); i++) {
        struct px_buf out = {0};
        px_render_result(&out, result_rows[i].ids, result_rows[i].count, result_rows[i].number,
                         px_span_of(result_rows[i].text), result_rows[i].color);
        expect_text(&out, result_rows[i].shown);
    }
}

static const struct {
    const char *text;
    size_t most;
    const char *shown;
} bounded_rows[] = {
    {"", 4, ""},
    {"abcd", 4, "abcd"},
    {"abcdefg", 4, "ab\n[... 3 bytes are left out here ...]\nfg"},
    {"a\xc3\xa9-----\xc3\xa9g", 4, "a\n[... 9 bytes are left out here ...]\ng"},
    {"abc", 0, "\n[... 3 bytes are left out here ...]\n"},
};

static void bounds_text(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(bounded_rows); i++) {
        struct px_buf out = {0};
        px_render_bounded(&out, px_span_of(bounded_rows[i].text), bounded_rows[i].most);
        expect_text(&out, bounded_rows[i].shown);
    }
}

static void renders_labels(void **state)
{
    (void)state;
    struct px_buf out = {0};
    px_render_label(&out, "stdout", (int[]){0, 1, 2, 9}, 4);
    expect_text(&out, "[stdout:0-2,9] ");
}

static void lists_engines(void **state)
{
    (void)state;
    int ids[64];
    struct px_buf out = {0};
    for (int i = 0; i < 64; i++)
        ids[i] = i;
    px_render_engines(&out, ids, 0);
    expect_text(&out, "");
    px_render_engines(&out, ids, 1);
    expect_text(&out, "0");
    px_render_engines(&out, ids, 3);
    expect_text(&out, "0, 1 and 2");
    px_render_engines(&out, ids, 64);
    expect_text(&out, "0, 1, 2, 3, ... (64 engines)");
}

static const struct {
    double seconds;
    const char *text;
} duration_rows[] = {
    {0, "0 s"},  {59.9, "59 s"}, {61, "1 min 1 s"}, {3600, "1 h 0 min"}, {90061, "25 h 1 min"},
    {-1, "0 s"}, {1e300, "0 s"},
};

static void renders_durations(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(duration_rows); i++) {
        struct px_buf out = {0};
        px_render_duration(&out, duration_rows[i].seconds);
        expect_text(&out, duration_rows[i].text);
    }
}

static void renders_progress(void **state)
{
    (void)state;
    struct px_buf out = {0};
    px_render_progress(&out, 0, 4, (int[]){0, 1, 2, 3}, 4, 1.2);
    expect_text(&out, "%px: 0 of 4 engines done, 1 s");
    px_render_progress(&out, 3, 4, (int[]){2}, 1, 75);
    expect_text(&out, "%px: 3 of 4 engines done, 1 min 15 s; at work: 2");
    px_render_progress(&out, 0, 1, (int[]){2}, 1, 2);
    expect_text(&out, "%px: 0 of 1 engine done, 2 s");
}

static void offers_what_to_type(void **state)
{
    (void)state;
    struct px_buf out = {0};
    px_render_ladder(&out, (int[]){3, 7}, 2);
    expect_text(&out, "%px: engines 3 and 7 have not come back. To wait on, see, kill or replace "
                      "them, type\n"
                      "    %pxresult\n"
                      "    %pxstacks --targets 3,7\n"
                      "    %pxcluster engines --kill 3,7\n"
                      "    %pxcluster engines --restart 3,7\n");
}

static void says_that_the_controller_is_gone(void **state)
{
    (void)state;
    struct px_buf out = {0};
    px_render_away(&out, "13:42:10", true);
    expect_text(&out, "%px: the controller cannot be reached; waiting for it until 13:42:10; an "
                      "interrupt ends the cell\n");
    px_render_away(&out, "13:42:10", false);
    expect_text(&out, "%px: the controller cannot be reached; waiting for it until 13:42:10\n");
    px_render_back(&out, 7.2);
    expect_text(&out, "%px: the controller is back, after 7 s\n");
    px_render_left(&out, (int[]){0, 1, 2}, 3);
    expect_text(&out, "%px: left engines 0-2, which nothing reaches without the controller. To wait "
                      "on for them, type\n    %pxresult\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(renders_results),  cmocka_unit_test(renders_labels),
        cmocka_unit_test(lists_engines),    cmocka_unit_test(renders_durations),
        cmocka_unit_test(renders_progress), cmocka_unit_test(offers_what_to_type),
        cmocka_unit_test(bounds_text),      cmocka_unit_test(says_that_the_controller_is_gone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
