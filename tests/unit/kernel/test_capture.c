/* SPDX-License-Identifier: BSD-3-Clause */
/* What goes to the descriptors 1 and 2, from C, children and forks. */
#include "../test.h"

#include "output.h"

#include <pthread.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct fixture {
    struct px_capture *capture;
    struct px_buf text[2];
    size_t taken;
};

static void take(void *ctx, enum px_stream which, const char *text, size_t size)
{
    struct fixture *f = ctx;
    px_buf_append(&f->text[which], text, size);
    f->taken += size;
}

static const char *drained(struct fixture *f, enum px_stream which, bool all)
{
    px_buf_clear(&f->text[which]);
    px_capture_drain(f->capture, all, take, f);
    return px_buf_span(&f->text[which]).data;
}

static int setup(void **state)
{
    struct fixture *f = px_alloc(sizeof *f);
    f->capture = px_capture_create(NULL);
    px_capture_begin(f->capture);
    *state = f;
    return f->capture ? 0 : -1;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    px_capture_destroy(f->capture);
    px_buf_fini(&f->text[PX_STDOUT]);
    px_buf_fini(&f->text[PX_STDERR]);
    free(f);
    return 0;
}

static void test_both_streams_arrive(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(write(1, "out\n", 4), 4);
    assert_int_equal(write(2, "err\n", 4), 4);
    assert_int_equal(system("echo child; echo complaint >&2"), 0);
    assert_string_equal(drained(f, PX_STDOUT, false), "out\nchild\n");
    assert_string_equal(f->text[PX_STDERR].data, "err\ncomplaint\n");
    assert_string_equal(drained(f, PX_STDOUT, false), "");
}

static void test_c_streams_are_flushed_before_the_end(void **state)
{
    struct fixture *f = *state;
    printf("a line\nand a half");
    assert_string_equal(drained(f, PX_STDOUT, false), "a line\n");
    assert_string_equal(drained(f, PX_STDOUT, true), "and a half");
}

static void test_characters_stay_whole(void **state)
{
    struct fixture *f = *state;
    assert_int_equal(write(1, "x\xe2\x82", 3), 3);
    assert_string_equal(drained(f, PX_STDOUT, false), "x");
    assert_int_equal(write(1, "\xac\xc3", 2), 2);
    assert_string_equal(drained(f, PX_STDOUT, false), "\xe2\x82\xac");
    assert_string_equal(drained(f, PX_STDOUT, true), "\xc3"); /* as it is: nothing is lost */
}

static void test_a_fork_writes_what_is_its_own(void **state)
{
    struct fixture *f = *state;
    printf("before ");
    const pid_t pid = fork();
    if (pid == 0) {
        printf("child\n");
        fflush(stdout);
        _exit(write(px_capture_fd(f->capture, PX_STDOUT), "", 1) > 0); /* closed there */
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    printf("after\n");
    assert_string_equal(drained(f, PX_STDOUT, true), "before child\nafter\n");
}

static void test_the_log_goes_where_2_went(void **state)
{
    struct fixture *f = *state;
    px_log(PX_ERROR, "test.line", "to=\"the terminal\"");
    drained(f, PX_STDERR, true);
    assert_int_equal(f->text[PX_STDERR].size, 0);
}

static void test_descriptors_are_given_back(void **state)
{
    struct fixture *f = *state;
    struct stat before, after;
    px_capture_end(f->capture);
    assert_int_equal(fstat(1, &before), 0);
    px_capture_begin(f->capture);
    px_capture_end(f->capture);
    assert_int_equal(fstat(1, &after), 0);
    assert_int_equal(before.st_ino, after.st_ino);
    px_capture_begin(f->capture);
    /* What the user's code put there stays. */
    FILE *file = tmpfile();
    const int saved = dup(1);
    dup2(fileno(file), 1);
    px_capture_end(f->capture);
    assert_int_equal(write(1, "in the file", 11), 11);
    assert_int_equal(lseek(fileno(file), 0, SEEK_END), 11);
    px_capture_begin(f->capture);
    px_capture_end(f->capture);
    fclose(file);
    close(saved);
}

/* More than the pipes hold, while a reader reads as the service thread does. */
struct reader {
    struct fixture *f;
    bool all;
    atomic_bool stop;
};

static void *read_on(void *ctx)
{
    struct reader *reader = ctx;
    do {
        struct pollfd wake = {.fd = px_capture_fd(reader->f->capture, PX_STDOUT), .events = POLLIN};
        poll(&wake, 1, 10);
        px_capture_drain(reader->f->capture, reader->all, take, reader->f);
    } while (!atomic_load(&reader->stop));
    return NULL;
}

static void test_a_verbose_library_is_not_held_up(void **state)
{
    struct fixture *f = *state;
    struct reader reader = {.f = f};
    pthread_t thread;
    char line[4096];
    memset(line, 'x', sizeof line);
    assert_int_equal(pthread_create(&thread, NULL, read_on, &reader), 0);
    for (int i = 0; i < 2000; i++)
        assert_int_equal(write(1, line, sizeof line), sizeof line);
    atomic_store(&reader.stop, true);
    pthread_join(thread, NULL);
    px_capture_drain(f->capture, true, take, f);
    assert_int_equal(f->taken, 2000 * sizeof line);
}

/* For ThreadSanitizer: a subshell whose cell ends late replies while the language has ended. */
static void test_a_thread_may_outlive_it(void **state)
{
    struct fixture *f = *state;
    struct reader reader = {.f = f, .all = true};
    pthread_t thread;
    assert_int_equal(write(1, "late", 4), 4);
    assert_int_equal(pthread_create(&thread, NULL, read_on, &reader), 0);
    px_capture_end(f->capture);
    atomic_store(&reader.stop, true);
    pthread_join(thread, NULL);
    assert_int_equal(f->taken, 4);
}

int main(void)
{
#define CAPTURED(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        CAPTURED(test_both_streams_arrive),
        CAPTURED(test_c_streams_are_flushed_before_the_end),
        CAPTURED(test_characters_stay_whole),
        CAPTURED(test_a_fork_writes_what_is_its_own),
        CAPTURED(test_the_log_goes_where_2_went),
        CAPTURED(test_descriptors_are_given_back),
        CAPTURED(test_a_verbose_library_is_not_held_up),
        CAPTURED(test_a_thread_may_outlive_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
