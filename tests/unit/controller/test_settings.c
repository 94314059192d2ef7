/* SPDX-License-Identifier: BSD-3-Clause */
/* Traits, configuration files and port lists. */
#include "controller.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void test_python_lines(void **state)
{
    (void)state;
    static const char text[] = "c = get_config()\n"
                               "c.HeartMonitor.period = 200\n"
                               "c.TaskScheduler.scheme_name='twobin'  # a comment\n"
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
                               "if False:\n    c.TaskScheduler.hwm = 7\n"
                               "c.TaskScheduler.hwm += 1\n"
                               "c.HeartMonitor.period = 3 * 1000\n"
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
    assert_int_equal(px_config_py(PX_SPAN("c.n = 3\nc.A.b = 1\nc.--help = 1"), take_any, &count),
                     1);
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
    assert_int_equal(px_config_json(PX_SPAN("[1"), px_settings_trait, &settings), -1);
    px_settings_fini(&settings);
}

static void test_what_is_a_program(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool code, more; /* than comments; than literals */
    } rows[] = {
        {"", false, false},
        {"# c.A.b = f()\n\nc = get_config()  # noqa\n", false, false},
        {"c.A.b = 1\nc.A.b = 'x # y'  # z\nc.A.b = b\"x\"\nc.A.b = True", true, false},
        {"c.A.b = [1, 2.5]", true, false},
        {"import os", true, true},
        {"  c.A.b = 1", true, true},
        {"c.A.b = 1 + 1", true, true},
        {"c.A.b = 2; import os", true, true},
        {"c.A.b += 1", true, true},
        {"c.A.b = 'a' + 'b'", true, true},
        {"c.A.b = 'a\\n'", true, true},
        {"c.A.b = ['a']", true, true},
        {"c.A.b = \"\"\"\nc.A.c = 1\n\"\"\"", true, true},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        const struct px_span text = px_span_of(rows[i].text);
        assert_int_equal(px_config_has_code(text, false), rows[i].code);
        assert_int_equal(px_config_has_code(text, true), rows[i].more);
    }
}

static void test_a_program_without_python_gives_its_literals(void **state)
{
    (void)state;
    static const char text[] = "c.TaskScheduler.hwm = 3\nc.HeartMonitor.period = 10 * 10\n";
    char path[] = "/tmp/px-test-XXXXXX.py";
    struct px_settings settings = {.hwm = 1};
    struct px_error err;
    const int fd = mkstemps(path, 3);
    assert_int_equal(px_fd_write(fd, PX_SPAN(text)), 0);
    close(fd);
    px_log_init("test", PX_ERROR);
    assert_int_equal(px_config_file(path, "/nowhere/python", px_settings_trait, &settings, &err),
                     0);
    assert_int_equal(settings.hwm, 3);
    assert_int_equal(settings.ping_ms, 0);
    unlink(path);
    px_settings_fini(&settings);
}

static void test_escapes(void **state)
{
    (void)state;
    static const struct {
        const char *literal, *text;
    } rows[] = {{"\"a\\nb\\u00e9\\\"\"", "a\nb\u00e9\""},
                {"'it\\'s'", "it's"},
                {"b'x'", "x"},
                {"1e3", "1e3"}};
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        char *text = px_config_unquote(px_span_of(rows[i].literal));
        assert_string_equal(text, rows[i].text);
        free(text);
    }
}

/* Profiles outlive versions: most say c.HubFactory.ip. */
static void test_names_of_former_versions(void **state)
{
    (void)state;
    struct px_settings settings = {0};
    struct px_error err;
    assert_int_equal(px_settings_trait(&settings, "HubFactory.ip", PX_SPAN("'*'"), &err), 0);
    assert_string_equal(settings.ip, "*");
    assert_int_equal(
        px_settings_trait(&settings, "IPControllerApp.reuse_files", PX_SPAN("True"), &err), 0);
    assert_int_equal(settings.reuse, 1);
    assert_int_equal(px_settings_trait(&settings, "HubFactory.none", PX_SPAN("1"), &err), -1);
    assert_int_equal(err.code, PX_EINVAL);
    px_settings_fini(&settings);
}

static void test_traits_refused(void **state)
{
    (void)state;
    struct px_settings settings = {0};
    struct px_error err;
    assert_int_equal(px_settings_trait(&settings, "HeartMonitor.peroid", PX_SPAN("3"), &err), -1);
    assert_non_null(strstr(err.text, "HeartMonitor.period"));
    assert_int_equal(err.code, PX_EINVAL); /* which is told when a file says it */
    assert_int_equal(px_settings_trait(&settings, "SQLiteDB.table", PX_SPAN("'x'"), &err), -1);
    assert_int_equal(err.code, PX_EINVAL);
    assert_int_equal(px_settings_trait(&settings, "IPKernelApp.ip", PX_SPAN("'x'"), &err), -1);
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
        cmocka_unit_test(test_what_is_a_program),
        cmocka_unit_test(test_a_program_without_python_gives_its_literals),
        cmocka_unit_test(test_escapes),
        cmocka_unit_test(test_names_of_former_versions),
        cmocka_unit_test(test_traits_refused),
        cmocka_unit_test(test_ports),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
