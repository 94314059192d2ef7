/* SPDX-License-Identifier: BSD-3-Clause */
/* The options of %px and %%px, and what targets mean: one row a case. */
#include "../test.h"

#include "magics.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- targets ------------------------------------------------------------------ */

static const struct {
    const char *text;
    const char *chosen; /* of engines 2, 3, 5 and 8; NULL: the text is refused */
} target_rows[] = {
    {"all", "2 3 5 8"},
    {"2", "2"},
    {"8", "8"},
    {"-1", "8"},
    {"-4", "2"},
    {"-5", ""},
    {"4", ""},
    {"0:2", "2 3"},
    {":", "2 3 5 8"},
    {"::2", "2 5"},
    {"::-1", "8 5 3 2"},
    {"-2:", "5 8"},
    {":-1", "2 3 5"},
    {"3:1:-1", "8 5"},
    {"1:99", "3 5 8"},
    {"9:", ""},
    {"[2,8]", "2 8"},
    {"[ 2 , -1 ]", "2 8"},
    {"2,3", "2 3"},
    {"(5, 2)", "5 2"},
    {"[3,]", "3"},
    {"[2,7]", ""},
    {" 5 ", "5"},
    {"", NULL},
    {"x", NULL},
    {"2x", NULL},
    {"[2,x]", NULL},
    {"[]", NULL},
    {"::0", NULL},
    {"1:2:3:4", NULL},
    {"9999999999", NULL},
    {"[2", NULL},
    {"0x2", NULL},
    {"+2", NULL},
    {"1.5", NULL},
    {"[,2]", NULL},
};

static void chosen_text(const struct px_targets *targets, char *out, size_t size)
{
    static const int ids[] = {2, 3, 5, 8};
    int chosen[8];
    const long count = px_targets_resolve(targets, ids, 4, chosen, 8, NULL);
    *out = '\0';
    for (long i = 0; i < count; i++)
        snprintf(out + strlen(out), size - strlen(out), "%s%d", i ? " " : "", chosen[i]);
}

static void reads_targets(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(target_rows); i++) {
        struct px_targets targets;
        struct px_error err = {0};
        char chosen[64];
        const int status = px_targets_parse(px_span_of(target_rows[i].text), &targets, &err);
        if (status == 0 && !target_rows[i].chosen)
            fail_msg("'%s' was not refused", target_rows[i].text);
        if (status < 0 && target_rows[i].chosen)
            fail_msg("'%s': %s", target_rows[i].text, err.text);
        if (status == 0) {
            chosen_text(&targets, chosen, sizeof chosen);
            assert_string_equal(chosen, target_rows[i].chosen);
        }
        px_targets_fini(&targets);
    }
}

static void names_the_engines_there_are(void **state)
{
    (void)state;
    struct px_targets targets;
    struct px_error err = {0};
    int out[1];
    assert_int_equal(px_targets_parse(PX_SPAN("7"), &targets, &err), 0);
    assert_int_equal(px_targets_resolve(&targets, (int[]){0, 1}, 2, out, 1, &err), -1);
    assert_string_equal(err.text, "there is no engine 7; registered: 0 and 1");
    assert_int_equal(px_targets_resolve(&targets, NULL, 0, out, 1, &err), -1);
    assert_string_equal(err.text, "no engines are registered");
}

/* ---- lines ------------------------------------------------------------------------- */

static const struct {
    const char *line, *error; /* error: NULL when the line is good */
} cell_rows[] = {
    {"", NULL},
    {"--targets 0:2 --noblock", NULL},
    {"--targets=[0, 2] -o result", NULL},
    {"-t [0, 2] -e", NULL},
    {"-t0 -a -r", NULL},
    {"--target 1", NULL},
    {"--targets '0:2'", NULL},
    {"-ae", NULL},
    {"--progress-after 2.5 --verbose --local", NULL},
    {"--group-outputs=order --no-stream", NULL},
    {"--tragets 0", "unknown option --tragets; did you mean --targets?"},
    {"--qqqqqqqqqqq", "unknown option --qqqqqqqqqqq; %px? lists the options"},
    {"-z", "unknown option -z"},
    {"--no", "unknown option --no"},
    {"--targets", "--targets needs a value"},
    {"--targets x", "'x' names no engines; use an id, -1, 0:2, [0,2] or all"},
    {"--noblock=1", "--noblock takes no value"},
    {"--group-outputs=size", "--group-outputs is type, engine or order, not 'size'"},
    {"--progress-after soon", "--progress-after takes a number, not 'soon'"},
    {"--out 1x", "--out takes a Python name, not '1x'"},
    {"a = 1", "'a' is not an option; code goes on the lines below"},
    {"--targets '0", "a quote (') is not closed"},
    {"--targets [0", "a bracket is not closed: [0"},
};

static void reads_cell_lines(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(cell_rows); i++) {
        struct px_line line;
        struct px_error err = {0};
        const int status = px_line_parse(px_span_of(cell_rows[i].line), true, &line, &err);
        px_line_fini(&line);
        if (!cell_rows[i].error && status < 0)
            fail_msg("'%s': %s", cell_rows[i].line, err.text);
        if (cell_rows[i].error && status == 0)
            fail_msg("'%s' was not refused", cell_rows[i].line);
        if (cell_rows[i].error &&
            strncmp(err.text, cell_rows[i].error, strlen(cell_rows[i].error)) != 0)
            fail_msg("'%s': %s", cell_rows[i].line, err.text);
    }
}

static void keeps_what_was_said(void **state)
{
    (void)state;
    struct px_line line;
    assert_int_equal(px_line_parse(PX_SPAN("-a -t 1 --out foo_1 -e --no-stream --local "
                                           "--no-verbose --progress-after=-1 "
                                           "--no-signal-on-interrupt"),
                                   true, &line, NULL),
                     0);
    assert_int_equal(line.block, 0);
    assert_int_equal(line.stream, 0);
    assert_int_equal(line.verbose, 0);
    assert_int_equal(line.signal_on_interrupt, 0);
    assert_int_equal(line.local, 1);
    assert_int_equal(line.group, PX_GROUP_ENGINE);
    assert_string_equal(line.out, "foo_1");
    assert_int_equal(line.targets.kind, PX_TARGETS_ONE);
    assert_true(line.progress_after == -1);
    px_line_fini(&line);

    assert_int_equal(px_line_parse(PX_SPAN(""), true, &line, NULL), 0);
    assert_int_equal(line.block, -1);
    assert_int_equal(line.stream, -1);
    assert_int_equal(line.targets.kind, PX_TARGETS_DEFAULT);
    assert_true(isnan(line.progress_after));
    px_line_fini(&line);
}

static const struct {
    const char *line, *code;
} code_rows[] = {
    {"a = 5", "a = 5"},
    {"-1", "-1"},
    {"--x", "--x"},
    {"-t 0", "-t 0"},
    {"--targets 0 a", "a"},
    {"--targets=0:2  print('--block')", "print('--block')"},
    {"--noblock --out r x = '", "x = '"},
    {"  a", "a"},
    {"'it''s", "'it''s"},
    {"-'", "-'"},
    {"--targets 0", ""},
};

static void finds_the_code_of_a_line(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(code_rows); i++) {
        struct px_line line;
        struct px_error err = {0};
        if (px_line_parse(px_span_of(code_rows[i].line), false, &line, &err) < 0)
            fail_msg("'%s': %s", code_rows[i].line, err.text);
        assert_string_equal(code_rows[i].line + line.code, code_rows[i].code);
        px_line_fini(&line);
    }
}

static void help_fits_one_screen(void **state)
{
    (void)state;
    struct px_buf out = {0};
    size_t lines = 0;
    px_line_help(&out);
    for (size_t i = 0; i < out.size; i++)
        lines += out.data[i] == '\n';
    assert_true(lines <= 24);
    assert_non_null(strstr(out.data, "-t, --targets"));
    px_buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_targets),
        cmocka_unit_test(names_the_engines_there_are),
        cmocka_unit_test(reads_cell_lines),
        cmocka_unit_test(keeps_what_was_said),
        cmocka_unit_test(finds_the_code_of_a_line),
        cmocka_unit_test(help_fits_one_screen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
