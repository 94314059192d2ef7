/* SPDX-License-Identifier: BSD-3-Clause */
/* Which Python is started, and that an environment's is what the user's code sees. */
#include "../test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_host.h"
#include "python.h"

static char folder[] = "/tmp/px-test-XXXXXX";

static void write_file(const char *path, const char *text, mode_t mode)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    chmod(path, mode);
}

static void assert_refused(const char *python, const char *piece)
{
    struct px_error err = {0};
    assert_null(px_python_select(python, &err));
    if (!strstr(err.text, piece) || !strstr(err.text, python))
        fail_msg("%s", err.text);
}

static void assert_selects(const char *wanted, const char *expected)
{
    struct px_error err = {0};
    char *python = px_python_select(wanted, &err);
    if (!python)
        fail_msg("%s", err.text);
    assert_string_equal(python, expected);
    free(python);
}

static void test_named(void **state)
{
    (void)state;
    assert_selects(PX_PYTHON, PX_PYTHON);
    assert_refused("/nowhere/python", "No such file");
    char *other = px_format("%s/other-python", folder);
    write_file(other, "#!/bin/sh\necho 2 7\n", 0755);
    assert_refused(other, "is Python 2.7, but this program was built for 3.");
    write_file(other, "#!/bin/sh\nexit 1\n", 0755);
    assert_refused(other, "not a Python interpreter");
    write_file(other, "", 0644);
    assert_refused(other, "Permission denied");
    free(other);
}

/* Leaves an environment in folder/NAME whose pyvenv.cfg says `version`. */
static char *make_environment(const char *name, const char *version)
{
    char *bin = px_format("%s/%s/bin", folder, name);
    char *command = px_format("mkdir -p '%s' && ln -sf " PX_PYTHON " '%s/python'", bin, bin);
    assert_int_equal(system(command), 0);
    char *config = px_format("%s/%s/pyvenv.cfg", folder, name);
    char *text = px_format("home = /usr/bin\nversion = %s\n", version);
    write_file(config, text, 0644);
    char *python = px_format("%s/python", bin);
    free(bin);
    free(command);
    free(config);
    free(text);
    return python;
}

static void test_active_environment(void **state)
{
    (void)state;
    char *good = make_environment("good", PY_VERSION);
    char *old = make_environment("old", "3.1.9");
    char *prefix = px_format("%s/good", folder);
    setenv("VIRTUAL_ENV", prefix, 1);
    assert_selects(NULL, good);
    assert_selects(PX_PYTHON, PX_PYTHON);
    free(prefix);
    prefix = px_format("%s/old", folder);
    setenv("VIRTUAL_ENV", prefix, 1);
    assert_selects(NULL, PX_PYTHON);
    unsetenv("VIRTUAL_ENV");
    setenv("CONDA_PREFIX", "relative", 1);
    assert_selects(NULL, PX_PYTHON);
    unsetenv("CONDA_PREFIX");
    assert_refused(old, "is Python 3.1");
    free(prefix);
    free(good);
    free(old);
}

/* In a child, as Python starts only once: 0 if `code` runs well in the environment at `python`. */
static int run_in(const char *python, const char *code)
{
    pid_t pid = fork();
    if (pid == 0) {
        struct px_error err = {0};
        struct fake_host host;
        struct px_outcome out;
        struct px_interp_config config = {.python = python};
        fake_host_init(&host);
        void *self = px_interp_python.create(&config, &err);
        if (!self)
            _exit(2);
        px_interp_python.attach(self, &host.ops, -1, NULL);
        fake_host_run(&px_interp_python, self, code, &out);
        if (out.failed)
            print_error("%s\n", out.error.data);
        _exit(out.failed);
    }
    int status = -1;
    waitpid(pid, &status, 0);
    return status;
}

static void test_environment_is_what_code_sees(void **state)
{
    (void)state;
    char *command = px_format(PX_PYTHON " -m venv --without-pip '%s/venv'", folder);
    assert_int_equal(system(command), 0);
    char *python = px_format("%s/venv/bin/python", folder);
    char *code = px_format("import sys\n"
                           "assert sys.executable == '%s', sys.executable\n"
                           "assert sys.prefix == '%s/venv', sys.prefix\n"
                           "assert sys.base_prefix != sys.prefix\n"
                           "assert any(p.startswith(sys.prefix) for p in sys.path), sys.path\n"
                           "assert not any('dist-packages' in p for p in sys.path), sys.path\n",
                           python, folder);
    /* No IPython in it: the plain shell runs the cell. */
    assert_int_equal(run_in(python, code), 0);
    free(command);
    free(python);
    free(code);
}

static void test_plain_shell(void **state)
{
    (void)state;
    char *python = px_format("%s/venv/bin/python", folder);
    assert_int_equal(run_in(python, "x = [i for i in range(3)]\nassert x == [0, 1, 2]\n"
                                    "assert get_ipython().user_ns['x'] is x\nx"),
                     0);
    assert_int_not_equal(run_in(python, "1/0"), 0);
    free(python);
}

static int setup(void **state)
{
    (void)state;
    unsetenv("VIRTUAL_ENV");
    unsetenv("CONDA_PREFIX");
    if (!mkdtemp(folder))
        return -1;
    setenv("HOME", folder, 1);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    char *command = px_format("rm -rf '%s'", folder);
    int status = system(command);
    free(command);
    return status;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_named),
        cmocka_unit_test(test_active_environment),
        cmocka_unit_test(test_environment_is_what_code_sees),
        cmocka_unit_test(test_plain_shell),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
