/* SPDX-License-Identifier: BSD-3-Clause */
/* Labels, transcripts, terminals: text in, text out. */
#include "../test.h"

#include "magics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void expect_shown(struct px_transcript *transcript, const char *text)
{
    struct px_buf out = {0};
    px_buf_text(&out, "");
    px_transcript_show(transcript, &out);
    assert_string_equal(out.data, text);
    px_buf_fini(&out);
}

static const struct {
    const char *parts[4], *shown;
} transcript_rows[] = {
    {{"a\n", "b\n"}, "a\nb\n"},
    {{"10%\r", "20%\r"}, "20%"},
    {{"10%\r", "20%\r", "done\n"}, "done\n"},
    {{"dos\r\n", "x\r\n"}, "dos\nx\n"},
    {{"a", "b", "c"}, "abc"},
    {{"\r\r"}, ""},
    {{"one\ntwo\rTWO\nthree"}, "one\nTWO\nthree"},
};

static void shows_text_as_it_looks(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(transcript_rows); i++) {
        struct px_transcript transcript = {0};
        for (size_t j = 0; j < 4 && transcript_rows[i].parts[j]; j++)
            px_transcript_add(&transcript, px_span_of(transcript_rows[i].parts[j]));
        assert_true(transcript.changed);
        expect_shown(&transcript, transcript_rows[i].shown);
        assert_false(transcript.changed);
        px_transcript_fini(&transcript);
    }
}

static void bounds_a_long_text(void **state)
{
    (void)state;
    struct px_transcript transcript = {0};
    struct px_buf out = {0};
    char line[32];
    for (int i = 0; i < 100000; i++) {
        const int size = snprintf(line, sizeof line, "line %d \xc3\xa9\n", i);
        px_transcript_add(&transcript, (struct px_span){line, (size_t)size});
    }
    px_transcript_show(&transcript, &out);
    assert_true(out.size < PX_TRANSCRIPT_HEAD + 2 * PX_TRANSCRIPT_TAIL + 200);
    assert_memory_equal(out.data, "line 0 ", 7);
    assert_non_null(strstr(out.data, " bytes are left out here ...]\n"));
    assert_string_equal(out.data + out.size - strlen("line 99999 \xc3\xa9\n"),
                        "line 99999 \xc3\xa9\n");
    px_buf_fini(&out);
    px_transcript_fini(&transcript);
}

static void bounds_one_huge_piece(void **state)
{
    (void)state;
    const size_t size = 4 << 20;
    struct px_transcript transcript = {0};
    struct px_buf out = {0};
    char *text = px_alloc(size);
    memset(text, 'x', size);
    px_transcript_add(&transcript, (struct px_span){text, size});
    px_transcript_add(&transcript, PX_SPAN("end"));
    px_transcript_show(&transcript, &out);
    assert_true(out.size < 2 * (PX_TRANSCRIPT_HEAD + PX_TRANSCRIPT_TAIL));
    assert_string_equal(out.data + out.size - 4, "xend");
    px_buf_fini(&out);
    px_transcript_fini(&transcript);
    free(text);
}

static void cuts_between_characters(void **state)
{
    (void)state;
    /* Three bytes a character: the limits of head and tail fall inside one. */
    const size_t count = 200000;
    struct px_transcript transcript = {0};
    struct px_buf out = {0};
    for (size_t i = 0; i < count; i++)
        px_transcript_add(&transcript, PX_SPAN("\xe2\x82\xac"));
    px_transcript_show(&transcript, &out);
    const char *mark = strstr(out.data, "\n[...");
    assert_non_null(mark);
    assert_int_equal((mark - out.data) % 3, 0);
    assert_int_equal(strlen(strstr(mark, "...]\n") + 5) % 3, 0);
    px_buf_fini(&out);
    px_transcript_fini(&transcript);
}

static void renders_results(void **state)
{
    (void)state;
    struct px_buf out = {0};
    px_render_result(&out, 3, 12, PX_SPAN("42"), false);
    assert_string_equal(out.data, "Out[3:12]: 42");
    px_buf_clear(&out);
    px_render_result(&out, 0, 1, PX_SPAN("array([1,\n       2])"), false);
    assert_string_equal(out.data, "Out[0:1]: \narray([1,\n       2])");
    px_buf_clear(&out);
    px_render_result(&out, 0, 1, PX_SPAN("x"), true);
    assert_string_equal(out.data, "\033[0;31mOut[0:1]: \033[0mx");
    px_buf_clear(&out);
    px_render_label(&out, "stdout", 7);
    assert_string_equal(out.data, "[stdout:7] ");
    px_buf_fini(&out);
}

static void lists_engines(void **state)
{
    (void)state;
    int ids[64];
    struct px_buf out = {0};
    for (int i = 0; i < 64; i++)
        ids[i] = i;
    px_render_engines(&out, ids, 1);
    px_buf_text(&out, "; ");
    px_render_engines(&out, ids, 3);
    px_buf_text(&out, "; ");
    px_render_engines(&out, ids, 64);
    assert_string_equal(out.data, "0; 0, 1 and 2; 0, 1, 2, 3, ... (64 engines)");
    px_buf_fini(&out);
}

static void labels_a_terminal_when_the_speaker_changes(void **state)
{
    (void)state;
    struct px_terminal terminal = {0};
    struct px_buf out = {0};
    px_terminal_text(&terminal, &out, "stdout", 0, PX_SPAN("a\n"));
    px_terminal_text(&terminal, &out, "stdout", 0, PX_SPAN("b"));
    px_terminal_text(&terminal, &out, "stdout", 1, PX_SPAN("c\n"));
    px_terminal_text(&terminal, &out, "stderr", 1, PX_SPAN("d\n"));
    px_terminal_text(&terminal, &out, "stderr", 1, PX_SPAN(""));
    assert_string_equal(out.data, "[stdout:0] a\nb\n[stdout:1] c\n[stderr:1] d\n");
    assert_false(terminal.mid_line);
    px_buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shows_text_as_it_looks),
        cmocka_unit_test(bounds_a_long_text),
        cmocka_unit_test(bounds_one_huge_piece),
        cmocka_unit_test(cuts_between_characters),
        cmocka_unit_test(renders_results),
        cmocka_unit_test(lists_engines),
        cmocka_unit_test(labels_a_terminal_when_the_speaker_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
