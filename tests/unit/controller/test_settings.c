/* SPDX-License-Identifier: BSD-3-Clause */
/* Traits, configuration files and port lists. */
#include "controller.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void test_python_lines(void **state)
{
    (void)state;
    static const char text[] = "c = get_config()\n"
                               "c.HeartMonitor.period = 200\n"
                               "  c.TaskScheduler.scheme_name='twobin'  # a comment\n"
                               "# c.TaskScheduler.hwm = 5\n"
                               "c.IPController.location = \"a # b\"\n"
                               "c.IPController.ports = [10101, 10102]\n"
                               "c.IPController.reuse_files = True\n"
                               "c.DictDB.size_limit = 1e6\n"
                               "c.Session.key = b'secret'\n"
                               "c.IPController.ssh_server = None\n"
                               "c.Application.log_level = 'DEBUG'\n"
                               "c.IPController.ip = socket.gethostname()\n"
                               "c.Unknown.trait = 5\n"
                               "c.TaskScheduler.hwm = 'many'\n"
                               "import os; c.TaskScheduler.hwm = os.cpu_count()";
    struct px_settings settings = {.hwm = 1, .ssh = "x"};
    px_log_init("test", PX_ERROR);
    assert_int_equal(px_config_py(px_span_of(text), px_settings_trait, &settings), 9);
    assert_int_equal(settings.ping_ms, 200);
    assert_string_equal(settings.scheme, "twobin");
    assert_string_equal(settings.location, "a # b");
    assert_string_equal(settings.ports, "[10101, 10102]");
    assert_int_equal(settings.reuse, 1);
    assert_true(settings.size_limit == 1e6);
    assert_string_equal(settings.session_key, "secret");
    assert_null(settings.ssh);
    assert_int_equal(settings.log_level, PX_DEBUG);
    assert_null(settings.ip);
    assert_int_equal(settings.hwm, 1);
    px_settings_fini(&settings);
}

static int take_any(void *count, const char *name, struct px_span literal, struct px_error *err)
{
    (void)literal, (void)err;
    assert_string_equal(name, "A.b");
    ++*(int *)count;
    return 0;
}

static void test_names_have_a_class(void **state)
{
    int count = 0;
    (void)state;
    assert_int_equal(px_config_py(PX_SPAN("c.n = 3\nc.A.b = 1\nc.--help = 1"), take_any, &count), 1);
    assert_int_equal(count, 1);
}

static void test_json(void **state)
{
    (void)state;
    static const char text[] =
        "{\"HeartMonitor\": {\"period\": 300, \"debug\": false}, \"TaskScheduler\": {\"hwm\": 3},"
        " \"IPController\": {\"reuse_files\": true, \"location\": \"here\"}, \"version\": 1}";
    struct px_settings settings = {0};
    assert_int_equal(px_config_json(px_span_of(text), px_settings_trait, &settings), 4);
    assert_int_equal(settings.ping_ms, 300);
    assert_int_equal(settings.hwm, 3);
    assert_string_equal(settings.location, "here");
    assert_int_equal(px_config_json(PX_SPAN("[1"), px_settings_trait, &settings), 0);
    px_settings_fini(&settings);
}

static void test_traits_refused(void **state)
{
    (void)state;
    struct px_settings settings = {0};
    struct px_error err;
    assert_int_equal(px_settings_trait(&settings, "HeartMonitor.peroid", PX_SPAN("3"), &err), -1);
    assert_non_null(strstr(err.text, "HeartMonitor.period"));
    assert_int_equal(err.code, PX_ENOENT);
    assert_int_equal(px_settings_trait(&settings, "TaskScheduler.hwm", PX_SPAN("-1"), &err), -1);
    assert_int_equal(err.code, PX_EINVAL);
    assert_int_equal(
        px_settings_trait(&settings, "IPController.reuse_files", PX_SPAN("perhaps"), &err), -1);
    assert_int_equal(
        px_settings_trait(&settings, "TaskScheduler.scheme_name", PX_SPAN("None"), &err), -1);
    assert_int_equal(px_settings_trait(&settings, "Application.log_level", PX_SPAN("loud"), &err),
                     -1);
    px_settings_fini(&settings);
}

static void test_ports(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int count, first, last;
    } rows[] = {
        {NULL, 0, 0, 0},
        {"", 0, 0, 0},
        {"10101", 1, 10101, 10101},
        {"10101-10105,10108", 6, 10101, 10108},
        {"[1, 2]", 2, 1, 2},
        {"10-9", -1, 0, 0},
        {"0", -1, 0, 0},
        {"1-65536", -1, 0, 0},
        {"x", -1, 0, 0},
        {"1-", -1, 0, 0},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_port_pool pool;
        int rc = px_ports_parse(rows[i].text, &pool, NULL);
        assert_int_equal(rc == 0, rows[i].count >= 0);
        if (rows[i].count <= 0)
            continue;
        assert_int_equal(pool.count, rows[i].count);
        assert_int_equal(pool.ports[0], rows[i].first);
        assert_int_equal(pool.ports[pool.count - 1], rows[i].last);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_python_lines),
        cmocka_unit_test(test_names_have_a_class),
        cmocka_unit_test(test_json),
        cmocka_unit_test(test_traits_refused),
        cmocka_unit_test(test_ports),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
