/* SPDX-License-Identifier: BSD-3-Clause */
/* Tags of a command line: one row a case. */
#include "../test.h"

#include "engine/engine.h"

#include <stdlib.h>
#include <string.h>

#define LONGEST "x23456789_123456789_123456789_123456789_123456789_123456789_1234"

static const struct {
    const char *text;
    const char *json; /* NULL: refused */
} rows[] = {
    {"", ""},
    {"gpu", ", \"tag:gpu\""},
    {"gpu,big", ", \"tag:gpu\", \"tag:big\""},
    {"gpu,", ", \"tag:gpu\""},
    {"2x.a-b_c", ", \"tag:2x.a-b_c\""},
    {LONGEST, ", \"tag:" LONGEST "\""},
    {LONGEST "5", NULL},
    {",", NULL},
    {"gpu,,big", NULL},
    {"gpu, big", NULL},
    {"all", NULL},
    {"3", NULL},
    {"-1", NULL},
    {"1.5", NULL},
    {"-gpu", NULL},
    {".gpu", NULL},
    {"0:2", NULL},
    {"\"", NULL},
    {"a\\", NULL},
    {"\xc3\xa9", NULL},
    {"a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p", ", \"tag:a\", \"tag:b\", \"tag:c\", \"tag:d\", \"tag:e\", "
                                        "\"tag:f\", \"tag:g\", \"tag:h\", \"tag:i\", \"tag:j\", "
                                        "\"tag:k\", \"tag:l\", \"tag:m\", \"tag:n\", \"tag:o\", "
                                        "\"tag:p\""},
    {"a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q", NULL},
};

static void reads_tags(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_error err = {0};
        char *json = px_tags_json(rows[i].text, &err);
        if (!json != !rows[i].json || (json && strcmp(json, rows[i].json) != 0))
            fail_msg("'%s': %s", rows[i].text, json ? json : err.text);
        assert_true(json || err.text[0]);
        free(json);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(reads_tags)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
