/* SPDX-License-Identifier: BSD-3-Clause */
/* Option tables: every form that is taken, every form that is refused. */
#include "base/base.h"
#include "../test.h"

#include <stdlib.h>
#include <string.h>

struct values {
    int n, daemonize, level;
    double delay;
    const char *profile;
    struct px_list targets;
};

#define AT(member) offsetof(struct values, member)
static const struct px_option rows[] = {
    {"n", 'n', PX_OPT_INT, AT(n), .arg = "N", .help = "how many", .least = 1, .most = 1000},
    {.type = PX_OPT_HEADING, .help = "Where"},
    {"profile", 0, PX_OPT_STRING, AT(profile), .arg = "NAME", .help = "profile"},
    {"daemonize", 0, PX_OPT_SET, AT(daemonize), .value = 7, .help = "to the background"},
    {"again", 0, PX_OPT_SET, AT(n), .value = 1, .help = "once more"},
    {"delay", 0, PX_OPT_DOUBLE, AT(delay), .arg = "S", .help = "seconds"},
    {"log-level", 0, PX_OPT_LEVEL, AT(level), .arg = "L", .help = "level"},
    {"target", 't', PX_OPT_LIST, AT(targets), .arg = "T", .help = "engine"},
    {0},
};
static const struct px_usage usage = {"prog", "[options]",   "Does things.", "  prog -n 1\n",
                                      rows,   " Prog Base ", false};

#define PARSE(out, err, ...)                                                                       \
    px_options_parse(&usage, (int)PX_COUNT(((char *[]){"prog", __VA_ARGS__})),                     \
                     (char *[]){"prog", __VA_ARGS__, NULL}, (out), (err))

static void every_form_is_taken(void **state)
{
    (void)state;
    struct values v = {.n = 1};
    struct px_error err;
    assert_int_equal(PARSE(&v, &err, "--n=4", "--profile", "", "--daemonize", "--delay=1.5",
                           "--log-level=warn", "-t", "1", "--target=2", "rest"),
                     10);
    assert_int_equal(v.n, 4);
    assert_string_equal(v.profile, "");
    assert_int_equal(v.daemonize, 7);
    assert_true(v.delay == 1.5);
    assert_int_equal(v.level, PX_WARN);
    assert_int_equal(v.targets.count, 2);
    assert_string_equal(v.targets.items[1], "2");
    free(v.targets.items);
    assert_int_equal(PARSE(&v, &err, "-n", "8"), 3);
    assert_int_equal(v.n, 8);
    assert_int_equal(PARSE(&v, &err, "-n=9"), 2);
    assert_int_equal(v.n, 9);
    assert_int_equal(PARSE(&v, &err, "--prof=x"), 2); /* a unique beginning will do */
    assert_string_equal(v.profile, "x");
}

static void traits_are_options(void **state)
{
    (void)state;
    struct values v = {.n = 1};
    struct px_error err;
    assert_int_equal(PARSE(&v, &err, "--Prog.log_level=10", "--Base.n=3", "--Base.daemonize"), 4);
    assert_int_equal(v.level, PX_DEBUG);
    assert_int_equal(v.n, 3);
    assert_int_equal(v.daemonize, 7);
}

static void traits_of_others_may_be_passed_over(void **state)
{
    (void)state;
    struct px_usage open = usage;
    open.foreign = true;
    char *argv[] = {"prog", "--Other.n=3", "-n", "4", "--A.b.c=--daemonize", NULL};
    char *bad[][4] = {{"prog", "--other.n=3"}, {"prog", "--Other=3"}, {"prog", "--Other.n"}};
    struct values v = {.n = 1};
    struct px_error err;
    assert_int_equal(px_options_parse(&open, 5, argv, &v, &err), 5);
    assert_int_equal(v.n, 4);
    assert_int_equal(v.daemonize, 0);
    assert_int_equal(px_options_parse(&usage, 5, argv, &v, &err), -1);
    for (size_t i = 0; i < PX_COUNT(bad); i++)
        assert_int_equal(px_options_parse(&open, 2, bad[i], &v, &err), -1);
}

static void a_flag_may_say_true_or_false(void **state)
{
    (void)state;
    static const struct {
        char *word;
        int becomes;
    } cases[] = {{"--daemonize=True", 7},
                 {"--daemonize=1", 7},
                 {"--daemonize=False", 0},
                 {"--daemonize=0", 0},
                 {"--Prog.daemonize=false", 0}};
    for (size_t i = 0; i < PX_COUNT(cases); i++) {
        struct values v = {0};
        struct px_error err;
        assert_int_equal(PARSE(&v, &err, cases[i].word), 2);
        assert_int_equal(v.daemonize, cases[i].becomes);
    }
    struct values v = {0};
    struct px_error err;
    assert_int_equal(PARSE(&v, &err, "--again"), 2);
    assert_int_equal(v.n, 1);
    assert_int_equal(PARSE(&v, &err, "--again=False"), 2); /* A file said so; I do not. */
    assert_int_equal(v.n, 0);
}

static void refusals_name_what_and_why(void **state)
{
    (void)state;
    static const struct {
        char *word;
        const char *text;
    } cases[] = {
        {"--profil-dir=x", "unknown option '--profil-dir': did you mean '--profile'?"},
        {"--zzzzzzzz", "unknown option '--zzzzzzzz': see --help"},
        {"-x", "unknown option '-x': did you mean '--n'?"},
        {"--n=four", "--n: 'four' is not a whole number"},
        {"--n=", "--n: '' is not a whole number"},
        {"--n=0", "--n: 0 is not between 1 and 1000"},
        {"--n=99999999999999999999", "--n: '99999999999999999999' is not a whole number"},
        {"--delay=soon", "--delay: 'soon' is not a number"},
        {"--delay=nan", "--delay: 'nan' is not a number"},
        {"--log-level=loud", "--log-level: 'loud' is not a log level"},
        {"--profile", "option '--profile' needs a value"},
        {"-n", "option '-n' needs a value"},
        {"--daemonize=maybe", "--daemonize is True or False, not 'maybe'"},
        {"--Other.n=1", "unknown option '--Other.n': see --help"},
        {"--Prog.profil=x", "unknown option '--Prog.profil': did you mean '--profile'?"},
        {"--Prog.n", "unknown option '--Prog.n': did you mean '--n'?"},
    };
    for (size_t i = 0; i < PX_COUNT(cases); i++) {
        struct values v = {0};
        struct px_error err;
        assert_int_equal(PARSE(&v, &err, cases[i].word), -1);
        assert_string_equal(err.text, cases[i].text);
    }
}

static void help_shows_each_row(void **state)
{
    (void)state;
    struct px_buf help = {0};
    px_options_help(&usage, &help);
    for (const struct px_option *row = rows; row->help; row++)
        assert_non_null(strstr(help.data, row->help));
    assert_non_null(strstr(help.data, "-n, --n=N"));
    assert_non_null(strstr(help.data, "Usage: prog [options]"));
    px_buf_fini(&help);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_form_is_taken),
        cmocka_unit_test(traits_are_options),
        cmocka_unit_test(traits_of_others_may_be_passed_over),
        cmocka_unit_test(a_flag_may_say_true_or_false),
        cmocka_unit_test(refusals_name_what_and_why),
        cmocka_unit_test(help_shows_each_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
