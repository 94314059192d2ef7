/* SPDX-License-Identifier: BSD-3-Clause */
/* What engines write becomes one text: scripts of what happens, and what is told. */
#include "../test.h"

#include "magics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One step: 'o' and 'e': text of a task's stdout or stderr; 'x': its end; 't': `ms` later, what is
 * told; 'a': all of it; 'b': something else is shown. Of 't', 'a' and 'b' the text is what must be
 * told: stdout's, then stderr's. */
struct step {
    char what;
    int number; /* task, or ms */
    const char *text;
};

static const struct {
    const char *name;
    size_t engines;
    bool fold;
    struct step steps[16];
} rows[] = {
    {"one engine", 1, true, {{'o', 0, "a\n"}, {'t', 0, "[stdout:0] \na\n"}}},
    {"its label comes once",
     1,
     true,
     {{'o', 0, "a\n"}, {'t', 0, "[stdout:0] \na\n"}, {'o', 0, "b\n"}, {'t', 0, "b\n"}}},
    {"and again after something else",
     1,
     true,
     {{'o', 0, "a"},
      {'a', 0, "[stdout:0] \na"},
      {'b', 0, "\n"},
      {'o', 0, "b\n"},
      {'t', 0, "[stdout:0] \nb\n"}}},
    {"two streams",
     1,
     true,
     {{'o', 0, "a\n"}, {'e', 0, "b\n"}, {'t', 0, "[stdout:0] \na\n[stderr:0] \nb\n"}}},
    {"equal text of all is told at once",
     3,
     true,
     {{'o', 0, "a\n"},
      {'o', 2, "a\n"},
      {'t', 1, ""},
      {'o', 1, "a\n"},
      {'t', 1, "[stdout:0-2] \na\n"}}},
    {"text waits for others, but not for ever",
     3,
     true,
     {{'o', 0, "a\n"},
      {'o', 1, "a\n"},
      {'t', 20, ""},
      {'t', 500, "[stdout:0-1] \na\n"},
      {'o', 2, "a\n"},
      {'t', 500, "[stdout:2] \na\n"}}},
    {"outliers stand apart",
     4,
     true,
     {{'o', 0, "a\n"},
      {'o', 1, "b\n"},
      {'o', 2, "a\n"},
      {'o', 3, "a\n"},
      {'a', 0, "[stdout:0,2-3] \na\n[stdout:1] \nb\n"}}},
    {"a line that ends late waits for others that do",
     2,
     true,
     {{'o', 0, "a"},
      {'o', 1, "a"},
      {'t', 300, ""},
      {'o', 0, "b\n"},
      {'t', 50, ""},
      {'o', 1, "b\n"},
      {'t', 50, "[stdout:0-1] \nab\n"}}},
    {"so does one that its engine's end ends",
     2,
     true,
     {{'o', 0, "a"},
      {'o', 1, "a"},
      {'t', 300, ""},
      {'x', 0, NULL},
      {'t', 50, ""},
      {'x', 1, NULL},
      {'t', 10, "[stdout:0-1] \na"}}},
    {"so are progress bars",
     3,
     true,
     {{'o', 1, "\r1%"},
      {'t', 50, ""},
      {'o', 0, "\r1%"},
      {'o', 2, "\r2%"},
      {'t', 960, "[stdout:0-1] \n1%\n[stdout:2] \n2%\n"}}},
    {"unfinished lines are told together",
     2,
     true,
     {{'o', 0, "a"}, {'t', 50, ""}, {'o', 1, "a"}, {'t', 460, "[stdout:0-1] \na"}}},
    {"common lines first, then what differs",
     2,
     true,
     {{'o', 0, "a\nb\nc\n"},
      {'o', 1, "a\nb\nd\n"},
      {'a', 0, "[stdout:0-1] \na\nb\n[stdout:0] \nc\n[stdout:1] \nd\n"}}},
    {"a header stays with what differs below it",
     3,
     true,
     {{'o', 0, "h\n1\n2\n"},
      {'o', 1, "h\n3\n4\n"},
      {'o', 2, "h\n1\n2\n"},
      {'a', 0, "[stdout:0,2] \nh\n1\n2\n[stdout:1] \nh\n3\n4\n"}}},
    {"with one that has nothing below it, too",
     2,
     true,
     {{'o', 0, "h\n1\n2\n"},
      {'o', 1, "h\n"},
      {'x', 1, NULL},
      {'t', 500, "[stdout:0] \nh\n1\n2\n[stdout:1] \nh\n"}}},
    {"a line before one that differs is told once",
     2,
     true,
     {{'o', 0, "a\n1\n"},
      {'o', 1, "a\n2\n"},
      {'a', 0, "[stdout:0-1] \na\n[stdout:0] \n1\n[stdout:1] \n2\n"}}},
    {"so are many lines before many",
     2,
     true,
     {{'o', 0, "1\n2\n3\n4\n5\n6\n7\n8\n9\n" "a\n2\n3\n4\n5\n6\n7\n8\n9\n10\n"},
      {'o', 1, "1\n2\n3\n4\n5\n6\n7\n8\n9\n" "b\n"},
      {'a', 0, "[stdout:0-1] \n1\n2\n3\n4\n5\n6\n7\n8\n9\n"
               "[stdout:0] \na\n2\n3\n4\n5\n6\n7\n8\n9\n10\n[stdout:1] \nb\n"}}},
    {"some have more in common than others",
     3,
     true,
     {{'o', 0, "a\nb\nc\nx\n"},
      {'o', 1, "a\nz\n"},
      {'o', 2, "a\nb\nc\ny\n"},
      {'a', 0, "[stdout:0,2] \na\nb\nc\n[stdout:0] \nx\n[stdout:2] \ny\n"
               "[stdout:1] \na\nz\n"}}},
    {"who is behind may yet go on alike",
     2,
     true,
     {{'o', 0, "a\nb\nc\nd\n"},
      {'o', 1, "a\n"},
      {'t', 500, "[stdout:0-1] \na\n"},
      {'o', 1, "b\nc\nd\n"},
      {'t', 1, "b\nc\nd\n"}}},
    {"but is not waited for where others differ",
     3,
     true,
     {{'o', 0, "h\n1\n2\n"},
      {'o', 1, "h\n3\n4\n"},
      {'t', 300, "[stdout:0] \nh\n1\n2\n[stdout:1] \nh\n3\n4\n"},
      {'o', 2, "h\n"},
      {'t', 100, ""},
      {'o', 2, "5\n6\n"},
      {'t', 400, "[stdout:2] \nh\n5\n6\n"}}},
    {"who is ahead waits for those behind",
     2,
     true,
     {{'o', 0, "a\nb\n"},
      {'o', 1, "a\n"},
      {'t', 500, "[stdout:0-1] \na\n"},
      {'o', 1, "b\n"},
      {'t', 1, "b\n"}}},
    {"not folded",
     2,
     false,
     {{'o', 0, "a\n"}, {'o', 1, "a\n"}, {'a', 0, "[stdout:0] \na\n[stdout:1] \na\n"}}},
    {"an unfinished line waits for its end",
     1,
     true,
     {{'o', 0, "a"}, {'t', 100, ""}, {'o', 0, "b\n"}, {'t', 0, "[stdout:0] \nab\n"}}},
    {"but not for ever, and is gone on with",
     1,
     true,
     {{'o', 0, "."},
      {'t', 600, "[stdout:0] \n."},
      {'o', 0, "."},
      {'t', 600, "."},
      {'o', 0, "\n"},
      {'t', 0, "\n"}}},
    {"another engine begins a line of its own",
     2,
     true,
     {{'o', 0, "a"},
      {'t', 600, "[stdout:0] \na"},
      {'o', 1, "b\n"},
      {'x', 0, NULL},
      {'t', 600, "\n[stdout:1] \nb\n"}}},
    {"the end of an engine ends its line",
     1,
     true,
     {{'o', 0, "a"}, {'x', 0, NULL}, {'t', 100, "[stdout:0] \na"}}},
    {"no one left to wait for",
     2,
     true,
     {{'x', 1, NULL}, {'o', 0, "a\n"}, {'t', 0, "[stdout:0] \na\n"}}},
    {"a carriage return starts a line anew",
     1,
     true,
     {{'o', 0, "10%\r20%\rdone\n"}, {'t', 0, "[stdout:0] \ndone\n"}}},
    {"lines of DOS", 1, true, {{'o', 0, "a\r\nb\r\n"}, {'t', 0, "[stdout:0] \na\nb\n"}}},
    {"a progress bar is told seldom",
     1,
     true,
     {{'e', 0, "\r10%"},
      {'t', 600, ""},
      {'e', 0, "\r20%"},
      {'t', 500, "[stderr:0] \n20%\n"},
      {'e', 0, "\r30%"},
      {'t', 1500, ""},
      {'t', 600, "30%\n"}}},
    {"bytes that are not text",
     1,
     true,
     {{'o', 0, "\xff\x01\n"}, {'t', 0, "[stdout:0] \n\xff\x01\n"}}},
};

static void expect(struct px_teller *teller, const struct step *step, int64_t now_ms,
                   const char *name)
{
    struct px_buf told[2] = {0};
    if (step->what == 'b')
        px_teller_break(teller, told);
    else
        px_teller_tell(teller, now_ms, step->what == 'a', told);
    px_buf_append(&told[0], told[1].data, told[1].size);
    px_buf_text(&told[0], "");
    if (strcmp(told[0].data, step->text) != 0)
        fail_msg("%s: '%s' instead of '%s'", name, told[0].data, step->text);
    px_buf_fini(&told[0]);
    px_buf_fini(&told[1]);
}

static void tells(void **state)
{
    (void)state;
    static const int engines[] = {0, 1, 2, 3};
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_teller *teller = px_teller_create(engines, rows[i].engines, rows[i].fold);
        int64_t now_ms = 1000;
        for (const struct step *step = rows[i].steps; step->what; step++) {
            if (step->what == 'o' || step->what == 'e')
                px_teller_add(teller, (size_t)step->number,
                              step->what == 'e' ? PX_STDERR : PX_STDOUT, px_span_of(step->text),
                              now_ms);
            else if (step->what == 'x')
                px_teller_end(teller, (size_t)step->number, now_ms);
            else
                expect(teller, step, now_ms += step->number, rows[i].name);
        }
        px_teller_destroy(teller);
    }
}

/* ---- very much ------------------------------------------------------------------------- */

static void keeps_the_start_and_the_end(void **state)
{
    (void)state;
    struct px_teller *teller = px_teller_create((int[]){5}, 1, true);
    struct px_buf told[2] = {0};
    char line[32];
    for (int i = 0; i < 100000; i++) {
        const int size = snprintf(line, sizeof line, "line %d \xc3\xa9\n", i);
        px_teller_add(teller, 0, PX_STDOUT, (struct px_span){line, (size_t)size}, 0);
    }
    px_teller_tell(teller, 1, true, told);
    assert_true(told[0].size < 100000);
    assert_memory_equal(told[0].data, "[stdout:5] \nline 0 ", 19);
    assert_non_null(strstr(told[0].data, " bytes are left out here ...]\nline "));
    const char last[] = "line 99999 \xc3\xa9\n";
    assert_string_equal(told[0].data + told[0].size - strlen(last), last);
    px_buf_fini(&told[0]);
    px_teller_destroy(teller);
}

/* A day of a line each 10 ms: it stays alive, and small. */
static void shows_glimpses_of_what_never_ends(void **state)
{
    (void)state;
    struct px_teller *teller = px_teller_create((int[]){0}, 1, true);
    struct px_buf told[2] = {0};
    char line[32];
    size_t last_size = 0;
    int64_t silent_since = 0, longest = 0;
    for (int64_t now_ms = 0; now_ms < 86400000; now_ms += 100) {
        for (int i = 0; i < 10; i++) {
            const int size = snprintf(line, sizeof line, "line %lld\n", (long long)now_ms);
            px_teller_add(teller, 0, PX_STDOUT, (struct px_span){line, (size_t)size}, now_ms);
        }
        px_teller_tell(teller, now_ms, false, told);
        if (told[0].size > last_size) {
            longest = now_ms - silent_since > longest ? now_ms - silent_since : longest;
            silent_since = now_ms;
            last_size = told[0].size;
        }
    }
    assert_true(last_size < (size_t)4 << 20);
    assert_true(longest <= 60100);
    px_buf_fini(&told[0]);
    px_teller_destroy(teller);
}

static void cuts_between_characters(void **state)
{
    (void)state;
    struct px_teller *teller = px_teller_create((int[]){0}, 1, true);
    struct px_buf told[2] = {0};
    px_teller_add(teller, 0, PX_STDOUT, PX_SPAN("x"), 0);
    for (int i = 0; i < 100000; i++)
        px_teller_add(teller, 0, PX_STDOUT, PX_SPAN("\xe2\x82\xac"), 0);
    px_teller_tell(teller, 1, true, told);
    const char *mark = strstr(told[0].data, "[... ");
    assert_non_null(mark);
    assert_int_equal((mark - told[0].data - 13) % 3, 0);
    const char *rest = strchr(mark, '\n') + 1;
    assert_int_equal((strlen(rest) - 1) % 3, 0);
    px_buf_fini(&told[0]);
    px_teller_destroy(teller);
}

static void folds_equal_ends(void **state)
{
    (void)state;
    struct px_teller *teller = px_teller_create((int[]){0, 1}, 2, true);
    struct px_buf told[2] = {0};
    for (int i = 0; i < 100000; i++) {
        px_teller_add(teller, 0, PX_STDOUT, PX_SPAN("same\n"), 0);
        px_teller_add(teller, 1, PX_STDOUT, PX_SPAN("same\n"), 0);
    }
    px_teller_tell(teller, 1, true, told);
    assert_memory_equal(told[0].data, "[stdout:0-1] \nsame\n", 19);
    assert_null(strstr(told[0].data + 1, "[stdout"));
    px_buf_fini(&told[0]);
    px_teller_destroy(teller);
}

/* Nobody's text is lost, told twice or out of order, however it comes. */
static void loses_nothing(void **state)
{
    (void)state;
    srand(7);
    for (int round = 0; round < 1000; round++) {
        const int engines[] = {0, 1, 2};
        struct px_teller *teller = px_teller_create(engines, 3, round % 2);
        struct px_buf told[2] = {0}, said[3] = {0}, heard[3] = {0};
        for (int i = 0; i < 60; i++) {
            const size_t task = (size_t)(rand() % 3);
            static const char *const texts[] = {"a\n", "b\n", "a\nb\n", "a\nb\na\nc\n"};
            const char *text = texts[rand() % 4];
            px_teller_add(teller, task, PX_STDOUT, px_span_of(text), i * 40);
            px_buf_text(&said[task], text);
            if (rand() % 3 == 0)
                px_teller_tell(teller, i * 40 + 1, rand() % 8 == 0, told);
            if (i == 50 && round % 3 == 0)
                px_teller_end(teller, task, i * 40);
        }
        px_teller_tell(teller, 5000, true, told);
        char *save = NULL;
        const char *label = "";
        for (char *line = strtok_r(told[0].data, "\n", &save); line;
             line = strtok_r(NULL, "\n", &save)) {
            if (*line == '[')
                label = line;
            for (size_t task = 0; *line != '[' && task < 3; task++) {
                /* "0-1", "1-2" and "0,2" name their members; "0-2" also the one between. */
                if (strstr(label, "0-2") || strchr(label, (char)('0' + task)))
                    px_buf_printf(&heard[task], "%s\n", line);
            }
        }
        for (size_t task = 0; task < 3; task++) {
            assert_string_equal(said[task].data ? said[task].data : "",
                                heard[task].data ? heard[task].data : "");
            px_buf_fini(&said[task]);
            px_buf_fini(&heard[task]);
        }
        px_buf_fini(&told[0]);
        px_teller_destroy(teller);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tells),
        cmocka_unit_test(keeps_the_start_and_the_end),
        cmocka_unit_test(shows_glimpses_of_what_never_ends),
        cmocka_unit_test(cuts_between_characters),
        cmocka_unit_test(folds_equal_ends),
        cmocka_unit_test(loses_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
