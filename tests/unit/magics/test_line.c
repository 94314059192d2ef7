/* SPDX-License-Identifier: BSD-3-Clause */
/* The options of the %px family: one row a case. */
#include "../test.h"

#include "magics.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

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
    {"--qqqqqqqqqqq", "unknown option --qqqqqqqqqqq"},
    {"-z", "unknown option -z"},
    {"--no", "unknown option --no"},
    {"--targets", "--targets needs a value"},
    {"--targets x,", "'x,' names no engines; use an id, -1, 0:2, [0,2], all or a tag"},
    {"--noblock=1", "--noblock takes no value"},
    {"--group-outputs=size", "--group-outputs is type, engine or order, not 'size'"},
    {"--progress-after soon", "--progress-after takes a number, not 'soon'"},
    {"--out 1x", "--out takes a Python name, not '1x'"},
    {"a = 1", "'a' is not an option; code goes on the lines below"},
    {"--signal-on-interrupt 0", NULL},
    {"--signal-on-interrupt=9", NULL},
    {"--signal-on-interrupt SIG", "--signal-on-interrupt takes SIGINT, SIGTERM, "},
    {"--signal-on-interrupt 65", "--signal-on-interrupt takes SIGINT, SIGTERM, "},
    {"--signal-on-interrupt \"SIG\\\"", "--signal-on-interrupt takes SIGINT, SIGTERM, "},
    {"--signal-on-interrupt SIGTREM", "--signal-on-interrupt takes SIGINT, SIGTERM, "},
    {"--signal-on-interrupt 4294967298", "--signal-on-interrupt takes SIGINT, SIGTERM, "},
    {"--timeout 0", NULL},
    {"--timeout -1", "--timeout takes seconds, 0 for no limit, not '-1'"},
    {"--timeout inf", "--timeout takes a number, not 'inf'"},
    {"--push a", NULL},
    {"--push=a,b,c", NULL},
    {"--push a,", "--push takes names as in A,B, not 'a,'"},
    {"--push a.b", "--push takes names as in A,B, not 'a.b'"},
    {"--push a@0", "--push takes names as in A,B, not 'a@0'"},
    {"--pull a@0,b", NULL},
    {"--pull a@", "--pull takes names as in C,D@0, not 'a@'"},
    {"--pull a@-1", "--pull takes names as in C,D@0, not 'a@-1'"},
    {"--pull @1", "--pull takes names as in C,D@0, not '@1'"},
    {"-", "'-' is not an option; code goes on the lines below"},
    {"--targets '0", "a quote (') is not closed"},
    {"--targets [0", "a bracket is not closed: [0"},
};

static void reads_cell_lines(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(cell_rows); i++) {
        struct px_line line;
        struct px_error err = {0};
        const int status = px_line_parse(px_span_of(cell_rows[i].line), PX_MAGIC_CELL, &line, &err);
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
                                           "--signal-on-interrupt SIGTERM --timeout 2.5 "
                                           "--no-fold --push a,b --pull c,d@1"),
                                   PX_MAGIC_CELL, &line, NULL),
                     0);
    assert_int_equal(line.block, 0);
    assert_int_equal(line.stream, 0);
    assert_int_equal(line.verbose, 0);
    assert_string_equal(line.signal, "SIGTERM");
    assert_true(line.timeout == 2.5);
    assert_int_equal(line.fold, 0);
    assert_int_equal(line.push.count, 2);
    assert_string_equal(line.push.list[1].text, "b");
    assert_int_equal(line.push.list[1].engine, -1);
    assert_int_equal(line.pull.count, 2);
    assert_string_equal(line.pull.list[1].text, "d");
    assert_int_equal(line.pull.list[1].engine, 1);
    assert_int_equal(line.local, 1);
    assert_int_equal(line.group, PX_GROUP_ENGINE);
    assert_string_equal(line.out, "foo_1");
    assert_int_equal(line.targets.kind, PX_TARGETS_ONE);
    assert_true(line.progress_after == -1);
    px_line_fini(&line);

    assert_int_equal(px_line_parse(PX_SPAN("--signal-on-interrupt 009 --timeout 1e300"),
                                   PX_MAGIC_CELL, &line, NULL),
                     0);
    assert_string_equal(line.signal, "9");
    assert_true(line.timeout == 1e9);
    px_line_fini(&line);

    assert_int_equal(px_line_parse(PX_SPAN(""), PX_MAGIC_CELL, &line, NULL), 0);
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
    {"-x", "-x"},
    {"-x + 1", "-x + 1"},
    {"-x if y else z", "-x if y else z"},
    {"-x[0]", "-x[0]"},
    {"--x + 1", "--x + 1"},
    {"--bogus == 1", "--bogus == 1"},
    {"--help + 1", "--help + 1"},
    {"-await f()", "-await f()"},
    {"-t 0 a", "a"},
    {"-t all a", "a"},
    {"-t0 a", "a"},
    {"-a print(1)", "print(1)"},
    {"-a -t 0 print(1)", "print(1)"},
    {"-e -r -t [0] a", "a"},
    {"-a -x", "-a -x"},
    {"-a -x if y else z", "-a -x if y else z"},
    {"-a -x[0] - b", "-a -x[0] - b"},
    {"-a -await f()", "-a -await f()"},
    {"-t -1", "-t -1"},
    {"-t -1 a", "a"},
    {"-t - 1 * 2", "-t - 1 * 2"},
    {"-t -1 if a else b", "-t -1 if a else b"},
    {"-t [0, 2] a", "a"},
    {"-t [0, 2]", "-t [0, 2]"},
    {"-t [0] + a", "-t [0] + a"},
    {"-t :2 a", "a"},
    {"-x [0] + a", "-x [0] + a"},
    {"--target 0 print(1)", "print(1)"},
    {"--verbos print(1)", "print(1)"},
    {"--verbose --bogus", "--bogus"},
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
        if (px_line_parse(px_span_of(code_rows[i].line), PX_MAGIC_PX, &line, &err) < 0)
            fail_msg("'%s': %s", code_rows[i].line, err.text);
        assert_string_equal(code_rows[i].line + line.code, code_rows[i].code);
        px_line_fini(&line);
    }
}

static const struct {
    const char *line, *error;
} wrong_rows[] = {
    {"--bogus 1", "unknown option --bogus"},
    {"--bogus=1", "unknown option --bogus=1"},
    {"--tragets 0 print(1)", "unknown option --tragets; did you mean --targets?"},
    {"--bogus --targets 0 a", "unknown option --bogus"},
    {"-x 1", "unknown option -x"},
    {"-q 'a'", "unknown option -q"},
    {"--targets x, a", "'x,' names no engines; use an id, -1, 0:2, [0,2], all or a tag"},
    {"--targets", "--targets needs a value"},
};

static void refuses_what_can_be_no_code(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(wrong_rows); i++) {
        struct px_line line;
        struct px_error err = {0};
        const int status = px_line_parse(px_span_of(wrong_rows[i].line), PX_MAGIC_PX, &line, &err);
        px_line_fini(&line);
        if (status == 0)
            fail_msg("'%s' was not refused", wrong_rows[i].line);
        assert_string_equal(err.text, wrong_rows[i].error);
    }
}

static void knows_that_help_is_asked_for(void **state)
{
    (void)state;
    static const struct {
        const char *line;
        bool help;
    } asked[] = {{"--help", true}, {"-t 0 --help ", true}, {"--help + 1", false}, {"1", false}};
    for (size_t i = 0; i < PX_COUNT(asked); i++) {
        struct px_line line;
        assert_int_equal(0, px_line_parse(px_span_of(asked[i].line), PX_MAGIC_PX, &line, NULL));
        assert_int_equal(line.help, asked[i].help);
        px_line_fini(&line);
    }
}

static const struct {
    enum px_magic magic;
    const char *line;
    bool taken;
} magic_rows[] = {
    {PX_MAGIC_CONFIG, "--targets 0 --noblock --verbose --no-stream --local", true},
    {PX_MAGIC_CONFIG, "--progress-after 3 --signal-on-interrupt 0 --no-fold --timeout 9", true},
    {PX_MAGIC_CONFIG, "--out a", false},
    {PX_MAGIC_CONFIG, "--push a", false},
    {PX_MAGIC_RESULT, "-e -o a", true},
    {PX_MAGIC_RESULT, "--group-outputs order", true},
    {PX_MAGIC_RESULT, "--targets 0", false},
    {PX_MAGIC_STACKS, "-t 0:2 --timeout 1", true},
    {PX_MAGIC_STACKS, "--verbose", false},
    {PX_MAGIC_STACKS, "code", false},
};

static void takes_what_is_meant_for_each_magic(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(magic_rows); i++) {
        struct px_line line;
        const int status =
            px_line_parse(px_span_of(magic_rows[i].line), magic_rows[i].magic, &line, NULL);
        px_line_fini(&line);
        if ((status == 0) != magic_rows[i].taken)
            fail_msg("'%s' for magic %d", magic_rows[i].line, (int)magic_rows[i].magic);
    }
}

static void help_fits_one_screen(void **state)
{
    (void)state;
    for (int magic = PX_MAGIC_PX; magic <= PX_MAGIC_STACKS; magic++) {
        struct px_buf out = {0};
        size_t lines = 0, column = 0;
        px_line_help((enum px_magic)magic, &out);
        for (size_t i = 0; i < out.size; i++) {
            column = out.data[i] == '\n' ? 0 : column + 1;
            lines += out.data[i] == '\n';
            assert_true(column <= 90);
        }
        assert_true(lines <= 24);
        const char *examples = strstr(out.data, "Examples:\n");
        assert_non_null(examples);
        assert_int_equal(strchr(strchr(examples, '\n') + 1, '\n')[1], ' '); /* two of them */
        px_buf_fini(&out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_cell_lines),
        cmocka_unit_test(keeps_what_was_said),
        cmocka_unit_test(finds_the_code_of_a_line),
        cmocka_unit_test(refuses_what_can_be_no_code),
        cmocka_unit_test(takes_what_is_meant_for_each_magic),
        cmocka_unit_test(knows_that_help_is_asked_for),
        cmocka_unit_test(help_fits_one_screen),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
