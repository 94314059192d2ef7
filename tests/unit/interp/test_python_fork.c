/* SPDX-License-Identifier: BSD-3-Clause */
/* A warm interpreter forks children that go their own ways. */
#include "../test.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fake_host.h"

static const struct px_interp_ops *const ops = &px_interp_python;

static const char draw[] =
    "import random, numpy, os\n"
    "print(numpy.random.rand(), random.random(), get_ipython().kernel.int_id)";

static int count_threads(void)
{
    int count = 0;
    DIR *dir = opendir("/proc/self/task");
    for (struct dirent *entry; (entry = readdir(dir));)
        count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

/* In the child: runs the cell and writes what it prints. */
static void child(void *python, int id, int fd)
{
    struct fake_host host;
    struct px_outcome out;
    fake_host_init(&host);
    ops->after_fork_child(python);
    ops->attach(python, &host.ops, id, "child");
    fake_host_run(ops, python, draw, &out);
    const struct px_buf *text = out.failed ? &out.error : &host.text[PX_STDOUT];
    bool written = write(fd, text->data, text->size) == (ssize_t)text->size;
    _exit(written && !out.failed ? 0 : 1);
}

static void fork_one(void *python, int id, char *text, size_t size)
{
    int fds[2], status;
    assert_int_equal(pipe(fds), 0);
    ops->before_fork(python);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        child(python, id, fds[1]);
    ops->after_fork_parent(python);
    close(fds[1]);
    size_t used = 0;
    for (ssize_t got; (got = read(fds[0], text + used, size - 1 - used)) > 0;)
        used += (size_t)got;
    text[used] = 0;
    close(fds[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (status != 0)
        fail_msg("%s", text);
}

static void test_children_differ(void **state)
{
    void *python = *state;
    char first[256], second[256];
    fork_one(python, 1, first, sizeof first);
    fork_one(python, 2, second, sizeof second);
    double a[2], b[2];
    int id[2];
    assert_int_equal(sscanf(first, "%lf %lf %d", &a[0], &b[0], &id[0]), 3);
    assert_int_equal(sscanf(second, "%lf %lf %d", &a[1], &b[1], &id[1]), 3);
    assert_true(a[0] != a[1]);
    assert_true(b[0] != b[1]);
    assert_int_equal(id[0], 1);
    assert_int_equal(id[1], 2);
}

static void test_parent_has_one_thread(void **state)
{
    (void)state;
    assert_int_equal(count_threads(), 1);
}

static int setup(void **state)
{
    struct px_error err = {0};
    static char folder[] = "/tmp/px-test-XXXXXX";
    if (!mkdtemp(folder))
        return -1;
    setenv("HOME", folder, 1);
    setenv("IPYTHONDIR", folder, 1);
    struct px_interp_config config = {
        .python = PX_PYTHON, .module_dir = PX_MODULE_DIR, .engine = true};
    void *python = ops->create(&config, &err);
    *state = python;
    if (python && ops->warm(python, &err) == 0)
        return 0;
    print_error("%s\n", err.text);
    return -1;
}

static int teardown(void **state)
{
    ops->destroy(*state);
    char *command = px_format("rm -rf '%s'", getenv("HOME"));
    int status = system(command);
    free(command);
    return status;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parent_has_one_thread),
        cmocka_unit_test(test_children_differ),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
