/* SPDX-License-Identifier: BSD-3-Clause */
/* How many engines start and which retire: what is seen, and what is decided. */
#include "../test.h"
#include "launch/adapt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IDLE 60000 /* the limit in all rows */
#define LONG 5000  /* tasks have waited for long enough */
#define W (-1)     /* an engine that works */

/* Engines have the ids 1, 2, ...; a 0 ends their times without work. */
static const struct {
    const char *what;
    int least, most;
    int waiting;
    int64_t waited_ms;
    int64_t idle_ms[6];
    int joining;
    int64_t pause_ms;
    int start;
    const char *retire;
    int64_t again_ms;
} rows[] = {
    {"nothing to do", 0, 8, 0, 0, {0}, 0, 0, 0, "", -1},
    {"one task, no engine: at once", 0, 8, 1, 0, {0}, 0, 0, 1, "", -1},
    {"an engine a task", 0, 8, 5, 0, {0}, 0, 0, 5, "", -1},
    {"no more than the most", 0, 8, 40, 0, {0}, 0, 0, 8, "", -1},
    {"those that come count", 0, 8, 5, LONG, {0}, 3, 0, 2, "", -1},
    {"enough come", 0, 8, 3, LONG, {0}, 3, 0, 0, "", -1},
    {"more come than tasks are left", 0, 8, 1, LONG, {0}, 3, 0, 0, "", -1},
    {"all that there may be come", 0, 8, 40, LONG, {0}, 8, 0, 0, "", -1},
    {"beside those that work", 0, 8, 3, LONG, {W, W}, 0, 0, 3, "", -1},
    {"up to the most, with those that work", 0, 4, 9, LONG, {W, W}, 1, 0, 1, "", -1},
    {"the most work", 0, 2, 9, LONG, {W, W}, 0, 0, 0, "", -1},
    {"a moment's wait, while others work", 0, 8, 3, 0, {W}, 0, 0, 0, "", 1500},
    {"the rest of that moment", 0, 8, 3, 400, {W}, 0, 0, 0, "", 1100},
    {"no such moment when all are there", 0, 1, 3, 0, {W}, 0, 0, 0, "", -1},
    {"the least", 3, 8, 0, 0, {0}, 0, 0, 3, "", -1},
    {"the least, and some come", 3, 8, 0, 0, {W}, 1, 0, 1, "", -1},
    {"the least, and a task", 2, 8, 1, 0, {0}, 0, 0, 2, "", -1},
    {"the least does not wait a moment", 2, 8, 9, 0, {W}, 0, 0, 1, "", 1500},
    {"launches have failed", 0, 8, 5, LONG, {0}, 0, 7000, 0, "", 7000},
    {"they had failed", 0, 8, 5, LONG, {0}, 0, 0, 5, "", -1},
    {"one that died is replaced, at least", 2, 8, 0, 0, {W}, 0, 0, 1, "", -1},
    {"idle for long enough", 0, 8, 0, 0, {IDLE}, 0, 0, 0, "1", 1000},
    {"not for long enough", 0, 8, 0, 0, {IDLE - 200}, 0, 0, 0, "", 200},
    {"the least stay", 1, 8, 0, 0, {IDLE, IDLE + 1}, 0, 0, 0, "2", 1000},
    {"all of the least stay", 2, 8, 0, 0, {IDLE, IDLE}, 0, 0, 0, "", -1},
    {"those that work count for the least", 1, 8, 0, 0, {W, IDLE}, 0, 0, 0, "2", 1000},
    {"idle longest first", 1, 8, 0, 0, {IDLE, IDLE + 2, W, IDLE + 1}, 0, 0, 0, "2 4 1", 1000},
    {"of the same idleness the newest", 1, 8, 0, 0, {IDLE, IDLE}, 0, 0, 0, "2", 1000},
    {"the next one is due", 0, 8, 0, 0, {IDLE - 500, IDLE}, 0, 0, 0, "2", 500},
    {"the next one is due, but of the least", 1, 8, 0, 0, {IDLE - 500, IDLE}, 0, 0, 0, "2", 1000},
    {"more than the most came", 0, 1, 9, LONG, {W, W, IDLE}, 0, 0, 0, "3", 1000},
    {"idle ones, and tasks that they do not get", 0, 3, 1, LONG, {IDLE, W}, 0, 0, 1, "1", 1000},
};

static void show_ids(const struct px_adapt_orders *orders, char *out, size_t size)
{
    out[0] = 0;
    for (size_t i = 0; i < orders->count; i++)
        snprintf(out + strlen(out), size - strlen(out), "%s%d", i ? " " : "", orders->retire[i]);
}

static void decisions(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_adapt_engine engines[6];
        const struct px_adapt_limits limits = {rows[i].least, rows[i].most, IDLE};
        struct px_adapt_view view = {rows[i].waiting, rows[i].waited_ms, engines, 0,
                                     rows[i].joining, rows[i].pause_ms};
        struct px_adapt_orders orders;
        char retired[100];
        for (; rows[i].idle_ms[view.count]; view.count++)
            engines[view.count] = (struct px_adapt_engine){.id = (int)view.count + 1,
                                                           .idle_ms = rows[i].idle_ms[view.count]};
        px_adapt_decide(&limits, &view, &orders);
        show_ids(&orders, retired, sizeof retired);
        if (orders.start != rows[i].start || strcmp(retired, rows[i].retire) != 0 ||
            orders.again_ms != rows[i].again_ms)
            fail_msg("%s: start %d, retire '%s', again in %lld ms", rows[i].what, orders.start,
                     retired, (long long)orders.again_ms);
        free(orders.retire);
    }
}

static void pauses(void **state)
{
    static const int64_t wanted[] = {0, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000};
    (void)state;
    for (size_t i = 0; i < PX_COUNT(wanted); i++)
        assert_int_equal(px_adapt_pause_ms((int)i), wanted[i]);
    assert_int_equal(px_adapt_pause_ms(1000000), 60000);
}

static void limits(void **state)
{
    static const struct {
        const char *text;
        int least, most; /* most 0: refused */
    } cases[] = {
        {"0:8", 0, 8},      {"2:2", 2, 2},   {"1:100000", 1, 100000},
        {"5:2", 0, 0},      {"x", 0, 0},     {"3", 0, 0},
        {"", 0, 0},         {":4", 0, 0},    {"4:", 0, 0},
        {"0:0", 0, 0},      {"-1:4", 0, 0},  {"0:4x", 0, 0},
        {"0:100001", 0, 0}, {"1:2:3", 0, 0}, {"0:99999999999999999999", 0, 0},
    };
    (void)state;
    for (size_t i = 0; i < PX_COUNT(cases); i++) {
        struct px_adapt_limits found = {0};
        struct px_error err;
        const int result = px_adapt_parse(cases[i].text, &found, &err);
        if (result != (cases[i].most ? 0 : -1))
            fail_msg("%s: %d", cases[i].text, result);
        assert_int_equal(found.least, cases[i].least);
        assert_int_equal(found.most, cases[i].most);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(decisions), cmocka_unit_test(pauses),
                                       cmocka_unit_test(limits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
