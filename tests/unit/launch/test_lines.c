/* SPDX-License-Identifier: BSD-3-Clause */
/* Lines as they come, and what a fork server's say. */
#include "../test.h"

#include "launch/launch.h"

#include <stdlib.h>
#include <string.h>

static void join(void *ctx, const char *line)
{
    px_buf_printf(ctx, "[%s]", line);
}

static void lines_are_whole_however_they_come(void **state)
{
    (void)state;
    static const char text[] = "one\n\ntwo three\nrest";
    for (size_t step = 1; step < sizeof text; step++) {
        struct px_buf rest = {0}, seen = {0};
        for (size_t at = 0; at < sizeof text - 1; at += step) {
            const size_t left = sizeof text - 1 - at;
            px_lines_take(&rest, text + at, left < step ? left : step, join, &seen);
        }
        assert_string_equal(seen.data, "[one][][two three]");
        assert_span_equal(px_buf_span(&rest), "rest");
        px_buf_fini(&rest);
        px_buf_fini(&seen);
    }
}

static void a_line_without_end_takes_no_more_and_more_memory(void **state)
{
    (void)state;
    static char part[1 << 20];
    struct px_buf rest = {0};
    memset(part, 'x', sizeof part);
    for (int i = 0; i < 20; i++)
        px_lines_take(&rest, part, sizeof part, join, NULL);
    assert_int_equal(rest.size, 16 << 20);
    px_buf_fini(&rest);
}

static void expect(const char *line, enum px_report_kind kind, int id, pid_t pid, const char *why)
{
    const struct px_report report = px_report_read(line);
    assert_int_equal(report.kind, kind);
    if (kind == PX_REPORT_NONE)
        return;
    assert_int_equal(report.pid, pid);
    if (kind == PX_REPORT_REGISTERED)
        assert_int_equal(report.id, id);
    if (kind == PX_REPORT_EXITED)
        assert_string_equal(report.why, why);
}

static void reports_are_read(void **state)
{
    (void)state;
    expect("started 12", PX_REPORT_STARTED, 0, 12, NULL);
    expect("registered 0 12", PX_REPORT_REGISTERED, 0, 12, NULL);
    expect("registered 2147483647 12", PX_REPORT_REGISTERED, INT32_MAX, 12, NULL);
    expect("exited 12 killed by SIGKILL", PX_REPORT_EXITED, 0, 12, "killed by SIGKILL");
    expect("exited 12", PX_REPORT_EXITED, 0, 12, "");
}

/* kill(2) and kill(1) take 1, 0 and what is negative for others than an engine. */
static void a_number_that_is_no_engine_is_no_report(void **state)
{
    (void)state;
    static const char *const pids[] = {"",   "x",          "1",          "0",
                                       "-1", "4294967295", "4294967308", "99999999999999999999"};
    static const char *const words[] = {"started", "registered 3", "exited"};
    for (size_t i = 0; i < PX_COUNT(pids); i++) {
        for (size_t j = 0; j < PX_COUNT(words); j++) {
            char *line = px_format("%s %s", words[j], pids[i]);
            expect(line, PX_REPORT_NONE, 0, 0, NULL);
            free(line);
        }
    }
    expect("registered -1 12", PX_REPORT_NONE, 0, 0, NULL);
    expect("registered 4294967296 12", PX_REPORT_NONE, 0, 0, NULL);
    expect("Welcome to node 3", PX_REPORT_NONE, 0, 0, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_are_whole_however_they_come),
        cmocka_unit_test(a_line_without_end_takes_no_more_and_more_memory),
        cmocka_unit_test(reports_are_read),
        cmocka_unit_test(a_number_that_is_no_engine_is_no_report),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
