/* SPDX-License-Identifier: BSD-3-Clause */
/* Files for what was left out: their bytes, their limits, and how long they stay. */
#define _GNU_SOURCE
#include "../test.h"

#include "output.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MB (1u << 20)
#define PATIENCE_MS 20000

static char folder[64];

static int count_entries(const char *path)
{
    int count = 0;
    DIR *dir = opendir(path);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));)
        count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

static void empty_folder(void)
{
    char *command = px_format("rm -rf %s/*", folder);
    assert_int_equal(system(command), 0);
    free(command);
}

static char *describe(struct px_spool *spool, struct px_spool_file *file)
{
    struct px_buf text = {0};
    px_spool_describe(spool, file, &text);
    return text.data;
}

/* The path in "it is in PATH". */
static char *path_of(struct px_spool *spool, struct px_spool_file *file)
{
    char *text = describe(spool, file);
    assert_int_equal(strncmp(text, "it is in ", 9), 0);
    char *path = px_strdup(text + 9);
    free(text);
    return path;
}

static void test_text_arrives_in_a_private_file(void **state)
{
    struct px_spool *spool = px_spool_create(MB);
    struct px_spool_file *file = px_spool_open(spool, "stdout");
    struct stat about;
    char bytes[32] = {0};
    (void)state;
    px_spool_add(spool, file, "one ", 4);
    px_spool_add(spool, file, "two", 3);
    px_spool_settle(spool, PATIENCE_MS);
    char *path = path_of(spool, file);
    assert_int_equal(strncmp(path, folder, strlen(folder)), 0);
    assert_non_null(strstr(path, "/stdout-1.txt"));
    assert_int_equal(stat(path, &about), 0);
    assert_int_equal(about.st_mode & 0777, 0600);
    FILE *read = fopen(path, "r");
    assert_int_equal(fread(bytes, 1, sizeof bytes, read), 7);
    assert_string_equal(bytes, "one two");
    fclose(read);
    strrchr(path, '/')[0] = 0;
    assert_int_equal(stat(path, &about), 0);
    assert_int_equal(about.st_mode & 0777, 0700);
    free(path);
    px_spool_release(spool, file);
    px_spool_destroy(spool);
    assert_int_equal(count_entries(folder), 1); /* it is there to be read */
}

static void test_without_files_nothing_stays(void **state)
{
    (void)state;
    empty_folder();
    struct px_spool *spool = px_spool_create(MB);
    px_spool_destroy(spool);
    assert_int_equal(count_entries(folder), 0);
}

static void fill(struct px_spool *spool, struct px_spool_file *file, size_t size)
{
    static char text[MB / 4];
    memset(text, 'x', sizeof text);
    for (; size > 0; size -= size < sizeof text ? size : sizeof text) {
        px_spool_wait(spool);
        px_spool_add(spool, file, text, size < sizeof text ? size : sizeof text);
    }
}

static void test_a_file_ends_at_the_limit_and_says_so(void **state)
{
    struct px_spool *spool = px_spool_create(MB);
    struct px_spool_file *file = px_spool_open(spool, "stdout");
    (void)state;
    fill(spool, file, 3 * MB);
    px_spool_settle(spool, PATIENCE_MS);
    char *text = describe(spool, file);
    assert_int_equal(strncmp(text, "its first 1.0 MB are in ", 24), 0);
    assert_non_null(strstr(text, ": that is the limit"));
    struct stat about;
    strrchr(text, ':')[0] = 0;
    assert_int_equal(stat(text + 24, &about), 0);
    assert_int_equal(about.st_size, MB);
    free(text);
    px_spool_release(spool, file);
    px_spool_destroy(spool);
}

static void test_older_files_make_room(void **state)
{
    struct px_spool *spool = px_spool_create(MB);
    struct px_spool_file *old = px_spool_open(spool, "stdout");
    (void)state;
    fill(spool, old, MB * 3 / 4);
    px_spool_settle(spool, PATIENCE_MS);
    struct px_spool_file *young = px_spool_open(spool, "stderr");
    fill(spool, young, MB / 2);
    px_spool_settle(spool, PATIENCE_MS);
    char *text = describe(spool, old);
    assert_string_equal(text, "it is lost: it had to make room for later output");
    free(text);
    text = describe(spool, young);
    assert_non_null(strstr(text, "/stderr-2.txt"));
    free(text);
    px_spool_add(spool, old, "more", 4); /* to nobody */
    px_spool_release(spool, old);
    px_spool_release(spool, young);
    px_spool_destroy(spool);
}

/* Request after request floods: neither files nor descriptors nor memory add up. */
static void test_many_files_do_not_add_up(void **state)
{
    struct px_spool *spool = px_spool_create(64 * MB);
    (void)state;
    for (int i = 0; i < 300; i++) {
        struct px_spool_file *file = px_spool_open(spool, "stdout");
        px_spool_add(spool, file, "text", 4);
        px_spool_settle(spool, PATIENCE_MS);
        px_spool_release(spool, file);
    }
    struct px_spool_file *last = px_spool_open(spool, "stdout");
    px_spool_add(spool, last, "text", 4);
    px_spool_settle(spool, PATIENCE_MS);
    char *path = path_of(spool, last);
    strrchr(path, '/')[0] = 0;
    assert_between(count_entries(path), 1, 64);
    assert_between(count_entries("/proc/self/fd"), 1, 100);
    free(path);
    px_spool_release(spool, last);
    px_spool_destroy(spool);
}

static void test_without_a_directory_text_is_said_to_be_lost(void **state)
{
    (void)state;
    setenv("TMPDIR", "/nowhere", 1);
    struct px_spool *spool = px_spool_create(MB);
    struct px_spool_file *file = px_spool_open(spool, "stdout");
    px_spool_add(spool, file, "text", 4);
    px_spool_settle(spool, PATIENCE_MS);
    char *text = describe(spool, file);
    assert_string_equal(text, "it is lost: No such file or directory");
    free(text);
    px_spool_release(spool, file);
    px_spool_destroy(spool);
    setenv("TMPDIR", folder, 1);
}

static void test_what_could_not_be_kept_takes_no_room(void **state)
{
    (void)state;
    char *missing = px_format("%s/missing", folder);
    setenv("TMPDIR", missing, 1);
    struct px_spool *spool = px_spool_create(MB);
    for (int i = 0; i < 5; i++) {
        struct px_spool_file *lost = px_spool_open(spool, "stdout");
        fill(spool, lost, MB / 2);
        px_spool_settle(spool, PATIENCE_MS);
        px_spool_release(spool, lost);
    }
    assert_int_equal(mkdir(missing, 0700), 0);
    struct px_spool_file *file = px_spool_open(spool, "stdout");
    fill(spool, file, MB);
    px_spool_settle(spool, PATIENCE_MS);
    free(path_of(spool, file));
    px_spool_release(spool, file);
    px_spool_destroy(spool);
    setenv("TMPDIR", folder, 1);
    free(missing);
}

static void test_what_a_full_disk_has_taken_is_told(void **state)
{
    (void)state;
    struct rlimit before, narrow;
    getrlimit(RLIMIT_FSIZE, &before);
    narrow = before;
    narrow.rlim_cur = MB / 2;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &narrow);
    struct px_spool *spool = px_spool_create(2 * MB);
    struct px_spool_file *file = px_spool_open(spool, "stdout");
    fill(spool, file, MB);
    px_spool_settle(spool, PATIENCE_MS);
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_DFL);
    char *text = describe(spool, file);
    assert_int_equal(strncmp(text, "its first 0.5 MB are in ", 24), 0);
    free(text);
    px_spool_release(spool, file);
    px_spool_destroy(spool);
}

/* A thread of the spool would: beside it the user's code may be in setenv(3), which allows none. */
static void test_the_environment_is_not_read_later(void **state)
{
    (void)state;
    struct px_spool *spool = px_spool_create(MB);
    setenv("TMPDIR", "/nowhere", 1);
    struct px_spool_file *file = px_spool_open(spool, "stdout");
    px_spool_add(spool, file, "text", 4);
    px_spool_settle(spool, PATIENCE_MS);
    char *path = path_of(spool, file);
    assert_int_equal(strncmp(path, folder, strlen(folder)), 0);
    free(path);
    px_spool_release(spool, file);
    px_spool_destroy(spool);
    setenv("TMPDIR", folder, 1);
}

static void write_one(struct px_spool *spool)
{
    struct px_spool_file *file = px_spool_open(spool, "stdout");
    px_spool_add(spool, file, "text", 4);
    px_spool_settle(spool, PATIENCE_MS);
    px_spool_release(spool, file);
}

/* What a process leaves that flooded and ended; its directory. */
static char *leave_one(void)
{
    int ends[2];
    char path[256] = "";
    assert_int_equal(pipe(ends), 0);
    const pid_t pid = fork();
    if (pid == 0) {
        struct px_spool *spool = px_spool_create(MB);
        struct px_spool_file *file = px_spool_open(spool, "stdout");
        px_spool_add(spool, file, "text", 4);
        px_spool_settle(spool, PATIENCE_MS);
        char *kept = path_of(spool, file);
        const bool said = write(ends[1], kept, strlen(kept)) > 0;
        px_spool_release(spool, file);
        px_spool_destroy(spool);
        _exit(!said);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_true(read(ends[0], path, sizeof path - 1) > 0);
    close(ends[0]);
    close(ends[1]);
    assert_int_equal(access(path, R_OK), 0);
    strrchr(path, '/')[0] = 0;
    return px_strdup(path);
}

static void set_age(const char *path, int days)
{
    const time_t then = time(NULL) - (time_t)days * 24 * 3600;
    const struct timespec times[2] = {{.tv_sec = then}, {.tv_sec = then}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void test_files_stay_for_a_week(void **state)
{
    (void)state;
    empty_folder();
    char *old = leave_one(), *young = leave_one();
    set_age(old, 8);
    set_age(young, 6);
    struct px_spool *spool = px_spool_create(MB);
    write_one(spool);
    assert_int_equal(access(old, F_OK), -1);
    assert_int_equal(access(young, F_OK), 0);
    px_spool_destroy(spool);
    free(old);
    free(young);
}

static void test_no_more_than_some_stay(void **state)
{
    (void)state;
    empty_folder();
    char *left[10];
    for (int i = 0; i < 10; i++) {
        left[i] = leave_one();
        set_age(left[i], i == 5 ? 3 : 1); /* each process removes what is too much */
    }
    struct px_spool *spool = px_spool_create(MB);
    write_one(spool);
    assert_int_equal(count_entries(folder), 9);
    assert_int_equal(access(left[5], F_OK), -1);
    px_spool_destroy(spool);
    for (int i = 0; i < 10; i++)
        free(left[i]);
}

static int setup(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/px-test-XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    return setenv("TMPDIR", folder, 1);
}

static int teardown(void **state)
{
    (void)state;
    empty_folder();
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_arrives_in_a_private_file),
        cmocka_unit_test(test_without_files_nothing_stays),
        cmocka_unit_test(test_a_file_ends_at_the_limit_and_says_so),
        cmocka_unit_test(test_older_files_make_room),
        cmocka_unit_test(test_many_files_do_not_add_up),
        cmocka_unit_test(test_without_a_directory_text_is_said_to_be_lost),
        cmocka_unit_test(test_what_could_not_be_kept_takes_no_room),
        cmocka_unit_test(test_what_a_full_disk_has_taken_is_told),
        cmocka_unit_test(test_the_environment_is_not_read_later),
        cmocka_unit_test(test_files_stay_for_a_week),
        cmocka_unit_test(test_no_more_than_some_stay),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
