/* SPDX-License-Identifier: BSD-3-Clause */
/* Files for what was left out: their bytes, their limits, and that nothing of them stays. */
#define _GNU_SOURCE
#include "../test.h"

#include "output.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
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
    assert_in_range(count_entries(path), 1, 64);
    assert_in_range(count_entries("/proc/self/fd"), 1, 100);
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

static void write_one(struct px_spool *spool)
{
    struct px_spool_file *file = px_spool_open(spool, "stdout");
    px_spool_add(spool, file, "text", 4);
    px_spool_settle(spool, PATIENCE_MS);
    px_spool_release(spool, file);
}

static void test_what_a_killed_process_left_is_removed(void **state)
{
    (void)state;
    const pid_t pid = fork();
    if (pid == 0) {
        write_one(px_spool_create(MB));
        _exit(0); /* without px_spool_destroy */
    }
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    assert_int_equal(count_entries(folder), 1);
    struct px_spool *spool = px_spool_create(MB);
    write_one(spool);
    assert_int_equal(count_entries(folder), 1);
    px_spool_destroy(spool);
    assert_int_equal(count_entries(folder), 0);
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
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_arrives_in_a_private_file),
        cmocka_unit_test(test_a_file_ends_at_the_limit_and_says_so),
        cmocka_unit_test(test_older_files_make_room),
        cmocka_unit_test(test_many_files_do_not_add_up),
        cmocka_unit_test(test_without_a_directory_text_is_said_to_be_lost),
        cmocka_unit_test(test_what_a_killed_process_left_is_removed),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
