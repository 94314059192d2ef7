/* SPDX-License-Identifier: BSD-3-Clause */
/* The task database: its limits, and memory as the cache of a file that may be far behind. */
#define _GNU_SOURCE
#include "hub.h"

#include <setjmp.h>
#include <stdarg.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

struct fixture {
    char path[64];
    struct px_store *store;
    struct px_db *db;
    pthread_t writer;
    bool writing;
};

static void open_store(struct fixture *fixture, size_t record_limit)
{
    struct px_store_limits limits = {.cull_fraction = 0.1};
    struct px_error err;
    fixture->store = px_store_open(fixture->path, &limits, &err);
    assert_non_null(fixture->store);
    fixture->db = px_db_create(PX_DB_SQLITE, fixture->store, record_limit, 1e6, 0.5);
}

static int setup(void **state)
{
    struct fixture *fixture = calloc(1, sizeof(*fixture));
    strcpy(fixture->path, "/tmp/test_db_XXXXXX");
    int fd = mkstemp(fixture->path);
    assert_true(fd >= 0);
    close(fd);
    open_store(fixture, 4);
    *state = fixture;
    return 0;
}

static void *write_all(void *store)
{
    px_store_run(store);
    return NULL;
}

/* Until then, the file is far behind. */
static void start_writing(struct fixture *fixture)
{
    fixture->writing = true;
    assert_int_equal(pthread_create(&fixture->writer, NULL, write_all, fixture->store), 0);
}

static void close_store(struct fixture *fixture)
{
    if (!fixture->writing)
        start_writing(fixture);
    px_db_destroy(fixture->db);
    px_store_stop(fixture->store);
    pthread_join(fixture->writer, NULL);
    px_store_close(fixture->store);
    fixture->writing = false;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    close_store(fixture);
    unlink(fixture->path);
    free(fixture);
    return 0;
}

static void finish(struct px_db *db, const char *msg_id)
{
    struct px_record *record = px_db_want(db, px_span_of(msg_id));
    record->queue = "task";
    record->lost_header = json_pack("{s:s}", "date", "2026-01-01T00:00:00Z");
    px_db_changed(db, record);
}

static void finish_many(struct px_db *db, int from, int to)
{
    char msg_id[16];
    for (int i = from; i < to; i++) {
        snprintf(msg_id, sizeof(msg_id), "m_%02d", i);
        finish(db, msg_id);
    }
}

static bool append_id(struct px_record *record, void *ctx)
{
    px_buf_printf(ctx, "%s ", record->msg_id);
    return true;
}

static bool take_id(struct px_record *record, void *ctx)
{
    append_id(record, ctx);
    px_record_destroy(record);
    return true;
}

static void assert_ids(struct px_db *db, const char *expected)
{
    struct px_buf ids = {0};
    px_buf_text(&ids, "");
    px_db_each(db, append_id, &ids);
    assert_string_equal(ids.data, expected);
    px_buf_fini(&ids);
}

static void assert_ids_of(struct px_db *db, const char *const *wanted, size_t count,
                          const char *expected)
{
    struct px_buf ids = {0};
    px_buf_text(&ids, "");
    px_db_each_of(db, wanted, count, append_id, &ids);
    assert_string_equal(ids.data, expected);
    px_buf_fini(&ids);
}

static void test_some_in_memory_come_as_they_were_made(void **state)
{
    (void)state;
    struct px_db *db = px_db_create(PX_DB_MEMORY, NULL, 10, 1e6, 0.5);
    finish(db, "b");
    finish(db, "c");
    finish(db, "a");
    static const char *const wanted[] = {"a", "b", "none"};
    assert_ids_of(db, wanted, PX_COUNT(wanted), "b a ");
    px_db_destroy(db);
}

/* Some are in the file alone, some in memory, and what is read does not stay there. */
static void test_some_in_the_file_come_as_asked_for(void **state)
{
    struct fixture *fixture = *state;
    finish(fixture->db, "b");
    finish(fixture->db, "c");
    finish(fixture->db, "a");
    close_store(fixture);
    open_store(fixture, 4);
    finish(fixture->db, "aa");
    px_db_drop(fixture->db, "c");
    static const char *const wanted[] = {"a", "aa", "b", "c", "z"};
    assert_ids_of(fixture->db, wanted, PX_COUNT(wanted), "a aa b ");
    assert_int_equal(px_db_count(fixture->db), 1);
}

/* Reads what is logged until `event` is among it. */
static void wait_for_log(int fd, const char *event)
{
    char text[8192];
    size_t size = 0;
    while (size < sizeof(text) - 1) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        assert_int_equal(poll(&ready, 1, 30000), 1);
        ssize_t got = read(fd, text + size, sizeof(text) - 1 - size);
        assert_true(got > 0);
        size += (size_t)got;
        text[size] = 0;
        if (strstr(text, event) != NULL)
            return;
    }
    fail();
}

/* Here: files may not grow. */
static void test_full_disk_is_waited_for(void **state)
{
    struct fixture *fixture = *state;
    struct rlimit limit, none;
    int pipe_fds[2], error_fd = dup(STDERR_FILENO);
    assert_int_equal(pipe(pipe_fds), 0);
    assert_true(dup2(pipe_fds[1], STDERR_FILENO) >= 0);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    none = limit;
    none.rlim_cur = 0;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &none), 0);
    finish(fixture->db, "a");
    assert_true(px_db_flush(fixture->db));
    start_writing(fixture);
    wait_for_log(pipe_fds[0], "database-busy");
    assert_false(px_store_is_idle(fixture->store));
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    wait_for_log(pipe_fds[0], "database-free");
    assert_true(dup2(error_fd, STDERR_FILENO) >= 0);
    close(error_fd);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    close_store(fixture);
    open_store(fixture, 4);
    assert_ids(fixture->db, "a ");
}

/* However many transactions wait for it. */
static void test_full_disk_holds_up_the_end_once(void **state)
{
    struct fixture *fixture = *state;
    struct rlimit limit, none;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    none = limit;
    none.rlim_cur = 0;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &none), 0);
    const struct px_record *record = px_db_want(fixture->db, PX_SPAN("a"));
    for (int i = 0; i < 20000; i++)
        px_store_put(fixture->store, record);
    start_writing(fixture);
    px_store_stop(fixture->store);
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += 20;
    assert_int_equal(pthread_timedjoin_np(fixture->writer, NULL, &deadline), 0);
    fixture->writing = false;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

/* Of what may not leave each byte more would be a look at all of it; at twice the limit it leaves.
 */
static void test_unwritten_bytes_stay_up_to_twice_the_limit(void **state)
{
    struct fixture *fixture = *state;
    struct px_record *records[50];
    char msg_id[16];
    for (int i = 0; i < 50; i++) {
        snprintf(msg_id, sizeof(msg_id), "m_%02d", i);
        records[i] = px_db_want(fixture->db, px_span_of(msg_id));
        px_db_changed(fixture->db, records[i]);
        px_db_resize(fixture->db, records[i], 0, 39000); /* of 1,000,000 */
    }
    assert_int_equal(px_db_count(fixture->db), 50);
    px_db_resize(fixture->db, records[49], 39000,
                 100000); /* beyond two million: half a million go */
    assert_int_equal(px_db_lost(fixture->db), 14);
    assert_int_equal(px_db_bytes(fixture->db), 35 * 39000 + 100000);
}

static void test_unwritten_stay_in_memory(void **state)
{
    struct fixture *fixture = *state;
    finish_many(fixture->db, 0, 10);
    assert_true(px_db_flush(fixture->db));
    assert_int_equal(px_db_count(fixture->db), 10); /* of 4: none is in the file yet */
    assert_ids(fixture->db, "m_00 m_01 m_02 m_03 m_04 m_05 m_06 m_07 m_08 m_09 ");
    assert_int_equal(px_db_lost(fixture->db), 0);
    close_store(fixture);
    open_store(fixture, 4);
    assert_int_equal(px_db_count(fixture->db), 0);
    assert_non_null(px_db_get(fixture->db, PX_SPAN("m_07")));
    assert_ids(fixture->db, "m_00 m_01 m_02 m_03 m_04 m_05 m_06 m_07 m_08 m_09 ");
    assert_null(px_db_get(fixture->db, PX_SPAN("m_10")));
    finish_many(fixture->db, 10, 20);
    assert_true(px_db_count(fixture->db) >= 10);
}

static void test_written_leave_memory_in_quiet_times(void **state)
{
    struct fixture *fixture = *state;
    finish_many(fixture->db, 0, 10);
    assert_false(px_db_tidy(fixture->db));
    assert_true(px_db_flush(fixture->db));
    assert_false(px_db_tidy(fixture->db)); /* nobody writes */
    assert_int_equal(px_db_count(fixture->db), 10);
    start_writing(fixture);
    const int64_t deadline_ms = px_now_ms() + 30000;
    while (!px_db_tidy(fixture->db))
        assert_true(px_now_ms() < deadline_ms);
    assert_true(px_db_count(fixture->db) <= 4);
    assert_ids(fixture->db, "m_00 m_01 m_02 m_03 m_04 m_05 m_06 m_07 m_08 m_09 ");
}

/* A hundred thousand that nobody has answered must not be gone through for every hundred that come:
 * a look, and then so many more that the next is worth its while. */
static void test_few_looks_where_most_must_stay(void **state)
{
    struct fixture *fixture = *state;
    finish_many(fixture->db, 0, 80);
    assert_true(px_db_flush(fixture->db));
    start_writing(fixture);
    const int64_t deadline_ms = px_now_ms() + 30000;
    while (!px_store_is_idle(fixture->store))
        assert_true(px_now_ms() < deadline_ms);
    finish_many(fixture->db, 80, 84); /* now the first may leave */
    assert_int_equal(px_db_count(fixture->db), 84);
    finish_many(fixture->db, 84, 99);
    assert_true(px_db_count(fixture->db) < 84);
}

static void test_dropped_are_gone_at_once(void **state)
{
    struct fixture *fixture = *state;
    finish_many(fixture->db, 0, 4);
    close_store(fixture);
    open_store(fixture, 4);
    assert_non_null(px_db_get(fixture->db, PX_SPAN("m_01")));
    px_db_drop(fixture->db, "m_01"); /* in memory and in the file */
    px_db_drop(fixture->db, "m_02"); /* in the file alone */
    px_db_drop(fixture->db, "m_09"); /* nowhere */
    assert_null(px_db_get(fixture->db, PX_SPAN("m_01")));
    assert_null(px_db_get(fixture->db, PX_SPAN("m_02")));
    assert_ids(fixture->db, "m_00 m_03 ");
    finish(fixture->db, "m_02"); /* made again */
    assert_non_null(px_db_get(fixture->db, PX_SPAN("m_02")));
    assert_ids(fixture->db, "m_00 m_02 m_03 ");
    close_store(fixture);
    open_store(fixture, 4);
    assert_ids(fixture->db, "m_00 m_03 m_02 ");
}

static void test_unfinished_and_finished_in_the_file(void **state)
{
    struct fixture *fixture = *state;
    finish_many(fixture->db, 0, 2);
    struct px_record *record = px_db_want(fixture->db, PX_SPAN("open"));
    px_db_changed(fixture->db, record);
    close_store(fixture);
    open_store(fixture, 4);
    struct px_buf ids = {0};
    int64_t row = 0;
    while (px_store_some(fixture->store, &row, INT64_MAX, take_id, &ids))
        ;
    assert_string_equal(ids.data, "m_00 m_01 open ");
    px_buf_clear(&ids);
    px_store_unfinished(fixture->store, take_id, &ids);
    px_buf_text(&ids, "");
    assert_string_equal(ids.data, "open ");
    px_buf_fini(&ids);
}

static void test_limits_of_memory(void **state)
{
    (void)state;
    struct px_db *db = px_db_create(PX_DB_MEMORY, NULL, 10, 1000, 0.5);
    finish_many(db, 0, 11);
    assert_int_equal(px_db_count(db), 5);
    assert_null(px_db_get(db, PX_SPAN("m_05")));
    struct px_record *record = px_db_get(db, PX_SPAN("m_10"));
    px_db_resize(db, px_db_get(db, PX_SPAN("m_06")), 0, 800);
    px_db_resize(db, record, 0, 150);
    px_db_resize(db, record, 150, 200); /* in place of, not besides */
    assert_int_equal(px_db_bytes(db), 1000);
    px_db_resize(db, record, 200, 201);
    assert_int_equal(px_db_bytes(db), 201);
    assert_null(px_db_get(db, PX_SPAN("m_06")));
    px_db_drop(db, "m_10");
    assert_int_equal(px_db_bytes(db), 0);
    px_db_destroy(db);
}

static void test_none_stores_nothing(void **state)
{
    (void)state;
    struct px_db *db = px_db_create(PX_DB_NONE, NULL, 10, 1000, 0.5);
    assert_false(px_db_stores(db));
    assert_null(px_db_want(db, PX_SPAN("a")));
    assert_null(px_db_get(db, PX_SPAN("a")));
    px_db_destroy(db);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_full_disk_is_waited_for, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_disk_holds_up_the_end_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unwritten_bytes_stay_up_to_twice_the_limit, setup,
                                        teardown),
        cmocka_unit_test(test_some_in_memory_come_as_they_were_made),
        cmocka_unit_test_setup_teardown(test_some_in_the_file_come_as_asked_for, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unwritten_stay_in_memory, setup, teardown),
        cmocka_unit_test_setup_teardown(test_written_leave_memory_in_quiet_times, setup, teardown),
        cmocka_unit_test_setup_teardown(test_few_looks_where_most_must_stay, setup, teardown),
        cmocka_unit_test_setup_teardown(test_dropped_are_gone_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unfinished_and_finished_in_the_file, setup, teardown),
        cmocka_unit_test(test_limits_of_memory),
        cmocka_unit_test(test_none_stores_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
