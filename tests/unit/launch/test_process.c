/* SPDX-License-Identifier: BSD-3-Clause */
/* Processes: started with what they should have, told apart from their pid's next owner. */
#define _GNU_SOURCE
#include "../test.h"

#include "launch/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char log_file[] = "/tmp/px-test-XXXXXX";

static int setup(void **state)
{
    (void)state;
    strcpy(log_file + strlen(log_file) - 6, "XXXXXX");
    const int fd = mkstemp(log_file);
    if (fd < 0)
        return -1;
    close(fd);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    return unlink(log_file);
}

static struct px_process spawn(int keep_fd, const char *script)
{
    char *argv[] = {"sh", "-c", (char *)script, NULL};
    const struct px_spawn request = {.argv = argv, .log = log_file, .keep_fd = keep_fd};
    struct px_process process;
    struct px_error err;
    assert_int_equal(px_process_spawn(&request, &process, &err), 0);
    assert_true(process.started > 0);
    return process;
}

static int wait_status(struct px_process process)
{
    int status;
    assert_int_equal(waitpid(process.pid, &status, 0), process.pid);
    return status;
}

static void read_log(char *out, size_t size)
{
    struct px_buf text = {0};
    assert_int_equal(px_file_read(log_file, size, &text, NULL), 0);
    snprintf(out, size, "%s", text.data ? text.data : "");
    px_buf_fini(&text);
}

static void test_output_goes_to_the_log(void **state)
{
    (void)state;
    char text[256];
    wait_status(spawn(-1, "echo out; echo err >&2; cat; exit 0"));
    wait_status(spawn(-1, "echo again"));
    read_log(text, sizeof text);
    assert_string_equal(text, "out\nerr\nagain\n");
}

static void test_a_missing_program_is_named(void **state)
{
    (void)state;
    char *argv[] = {"no-such-program-here", NULL};
    const struct px_spawn request = {.argv = argv, .log = log_file, .keep_fd = -1};
    struct px_process process;
    struct px_error err;
    assert_int_equal(px_process_spawn(&request, &process, &err), -1);
    assert_int_equal(err.code, PX_ENOENT);
    assert_string_equal(err.text, "cannot run no-such-program-here: No such file or directory");
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no child is left */
    assert_int_equal(errno, ECHILD);
}

static void test_only_the_kept_descriptor_is_inherited(void **state)
{
    (void)state;
    int ends[2], other = open("/dev/null", O_RDONLY); /* without O_CLOEXEC, on purpose */
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    char *script = px_format("echo here >&%d; [ ! -e /proc/self/fd/%d ]", ends[1], other);
    const struct px_process process = spawn(ends[1], script);
    free(script);
    close(ends[1]);
    char text[16] = "";
    assert_int_equal(read(ends[0], text, sizeof text), 5);
    assert_memory_equal(text, "here\n", 5);
    assert_int_equal(read(ends[0], text, sizeof text), 0); /* nobody else holds it */
    assert_int_equal(wait_status(process), 0);
    close(ends[0]);
    close(other);
}

static void test_signals_are_as_at_login(void **state)
{
    (void)state;
    sigset_t blocked, before;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigprocmask(SIG_BLOCK, &blocked, &before);
    void (*old)(int) = signal(SIGINT, SIG_IGN);
    const struct px_process one = spawn(-1, "exec tail -f /dev/null");
    const struct px_process two = spawn(-1, "exec tail -f /dev/null");
    px_process_signal(one, SIGTERM);
    px_process_signal(two, SIGINT);
    int status = wait_status(one);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    status = wait_status(two);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT);
    sigprocmask(SIG_SETMASK, &before, NULL);
    signal(SIGINT, old);
}

static void test_a_process_is_its_pid_and_its_start(void **state)
{
    (void)state;
    struct px_process self, found;
    assert_true(px_process_find(getpid(), &self));
    assert_true(px_process_alive(self));
    self.started++;
    assert_false(px_process_alive(self)); /* same pid, another life */
    px_process_signal(self, SIGKILL);     /* and so this does nothing */
    px_process_signal_group(self, SIGKILL);
    assert_false(px_process_find(0, &found));
    assert_false(px_process_find(-1, &found));
    assert_false(px_process_find(0x3fffffff, &found));
}

static void test_a_zombie_does_not_live(void **state)
{
    (void)state;
    const struct px_process child = spawn(-1, "exit 0");
    siginfo_t info;
    assert_int_equal(waitid(P_PID, (id_t)child.pid, &info, WEXITED | WNOWAIT), 0);
    assert_false(px_process_alive(child));
    wait_status(child);
}

static void test_start_time_is_now(void **state)
{
    (void)state;
    const struct px_process child = spawn(-1, "exec tail -f /dev/null");
    const double age = (double)time(NULL) - px_process_start_time(child);
    assert_true(age > -2 && age < 5);
    px_process_signal_group(child, SIGKILL);
    wait_status(child);
}

static void test_ancestors(void **state)
{
    (void)state;
    char name[32];
    struct px_process self, found;
    prctl(PR_GET_NAME, name);
    const struct px_process child = spawn(-1, "exec tail -f /dev/null");
    assert_true(px_process_find(getpid(), &self));
    assert_true(px_process_ancestor(child, name, &found));
    assert_int_equal(found.pid, self.pid);
    assert_false(px_process_ancestor(child, "nobody-is-called-so", &found));
    px_process_signal(child, SIGKILL);
    wait_status(child);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_output_goes_to_the_log, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_missing_program_is_named, setup, teardown),
        cmocka_unit_test_setup_teardown(test_only_the_kept_descriptor_is_inherited, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_signals_are_as_at_login, setup, teardown),
        cmocka_unit_test(test_a_process_is_its_pid_and_its_start),
        cmocka_unit_test_setup_teardown(test_a_zombie_does_not_live, setup, teardown),
        cmocka_unit_test_setup_teardown(test_start_time_is_now, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ancestors, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
