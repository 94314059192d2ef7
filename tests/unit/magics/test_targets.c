/* SPDX-License-Identifier: BSD-3-Clause */
/* Which engines a text means: one row a case. */
#include "../test.h"

#include "magics.h"

#include <stdio.h>
#include <string.h>

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
    {"x", "named x"},
    {" gpu ", "named gpu"},
    {"2x", "named 2x"},
    {"node-1.example.org", "named node-1.example.org"},
    {"All", "named All"},
    {"-x", NULL},
    {".x", NULL},
    {"x y", NULL},
    {"x,y", NULL},
    {"x()", NULL},
    {"x23456789_123456789_123456789_123456789_123456789_123456789_12345", NULL},
    {"[2,x]", NULL},
    {"[]", NULL},
    {"::0", NULL},
    {"1:2:3:4", NULL},
    {"9999999999", NULL},
    {"-9223372036854775808", NULL}, /* which has no absolute value */
    {"[2", NULL},
    {"0x2", "named 0x2"},
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
    if (targets->kind == PX_TARGETS_NAMED) {
        assert_int_equal(count, -1); /* a client's to look up */
        snprintf(out, size, "named %s", targets->name);
    }
    for (long i = 0; i < count; i++)
        snprintf(out + strlen(out), size - strlen(out), "%s%d", i ? " " : "", chosen[i]);
}

static void reads_targets(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(target_rows); i++) {
        struct px_targets targets;
        struct px_error err = {0};
        char chosen[80];
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_targets),
        cmocka_unit_test(names_the_engines_there_are),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
