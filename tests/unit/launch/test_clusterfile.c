/* SPDX-License-Identifier: BSD-3-Clause */
/* The cluster file: the form that ipyparallel wrote, what of it runs, several writers. */
#define _GNU_SOURCE
#include "../test.h"

#include "launch/launch.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct fixture {
    char dir[64];
    struct px_place place;
    struct px_process self;
    struct px_set *controller;
};

static int setup(void **state)
{
    struct fixture *fixture = px_alloc(sizeof *fixture);
    strcpy(fixture->dir, "/tmp/px-test-XXXXXX");
    if (!mkdtemp(fixture->dir))
        return -1;
    char *security = px_format("%s/security", fixture->dir);
    mkdir(security, 0700);
    free(security);
    if (px_place_make(fixture->dir, "", &fixture->place, NULL) < 0 ||
        !px_process_find(getpid(), &fixture->self))
        return -1;
    *state = fixture;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    unlink(fixture->place.file);
    char *security = px_format("%s/security", fixture->dir);
    rmdir(security);
    rmdir(fixture->dir);
    free(security);
    free(fixture);
    return 0;
}

static void write_text(const struct fixture *fixture, const char *text)
{
    assert_int_equal(px_file_write(fixture->place.file, 0600, px_span_of(text), NULL), 0);
}

static char *read_text(const struct fixture *fixture)
{
    struct px_buf text = {0};
    assert_int_equal(px_file_read(fixture->place.file, 1 << 20, &text, NULL), 0);
    return text.data;
}

/* A set of this very process, as a file would describe it. */
static struct px_set *restored(const char *format)
{
    char *text = px_format("%s", format);
    for (char *at; (at = strstr(text, "SELF"));) {
        char *next = px_format("%.*s%ld%s", (int)(at - text), text, (long)getpid(), at + 4);
        free(text);
        text = next;
    }
    json_t *state = json_loads(text, 0, NULL);
    assert_non_null(state);
    struct px_set *set = px_local_launcher.restore(&px_local_launcher, state, 1e12, NULL);
    json_decref(state);
    free(text);
    return set;
}

#define CONTROLLER                                                                                 \
    "{\"cluster_id\": \"\", \"output_file\": \"/l/c.log\", \"pid\": SELF, "                        \
    "\"profile_dir\": \"/p\", \"state\": \"running\"}"
#define ENGINES                                                                                    \
    "{\"cluster_id\": \"\", \"n\": 1, \"pid\": -1, \"profile_dir\": \"/p\", "                      \
    "\"state\": \"running\", \"engines\": {\"0\": {\"cluster_id\": \"\", \"n\": 1, "               \
    "\"output_file\": \"/l/e.log\", \"pid\": SELF, \"profile_dir\": \"/p\", "                      \
    "\"state\": \"running\"}}}"

/* As ipyparallel 7.1 wrote it, but for pids, paths, times and its delay. */
static void test_the_form_is_ipyparallels(void **state)
{
    struct fixture *fixture = *state;
    struct px_set *controller = restored(CONTROLLER), *engines = restored(ENGINES);
    const char *args[] = {"--ping=250", NULL};
    const struct px_contribution all = {.launcher = &px_local_launcher,
                                        .controller = controller,
                                        .engines = engines,
                                        .set_id = "1795439733",
                                        .n = 1,
                                        .controller_args = args};
    assert_int_equal(px_clusterfile_put(&fixture->place, &all, NULL), 0);
    char *text = read_text(fixture);
    char *pid = px_format("\"pid\": %ld", (long)getpid());
    char *expected = px_format(
        "{\"cluster\": {\"cluster_id\": \"\", \"controller_args\": [\"--ping=250\"], "
        "\"controller_ip\": \"\", \"controller_location\": \"\", \"delay\": 0.0, \"n\": 1, "
        "\"profile_dir\": \"%s\", \"class\": \"ipyparallel.cluster.cluster.Cluster\"}, "
        "\"controller\": {\"class\": \"local\", \"state\": {\"cluster_id\": \"\", "
        "\"output_file\": \"/l/c.log\", %s, \"profile_dir\": \"/p\", \"state\": \"running\"}}, "
        "\"engines\": {\"class\": \"local\", \"sets\": {\"1795439733\": {\"cluster_id\": \"\", "
        "\"n\": 1, \"pid\": -1, \"profile_dir\": \"/p\", \"state\": \"running\", \"engines\": "
        "{\"0\": {\"cluster_id\": \"\", \"n\": 1, \"output_file\": \"/l/e.log\", %s, "
        "\"profile_dir\": \"/p\", \"state\": \"running\"}}}}}}",
        fixture->dir, pid, pid);
    assert_string_equal(text, expected);
    free(text);
    free(pid);
    free(expected);
    px_set_destroy(controller);
    px_set_destroy(engines);
}

static void test_what_runs_is_told_from_what_ran(void **state)
{
    struct fixture *fixture = *state;
    char *text = px_format(
        "{\"cluster\": {}, \"controller\": {\"class\": \"local\", \"state\": {\"pid\": 999999999}},"
        " \"engines\": {\"class\": \"local\", \"sets\": {\"a\": {\"n\": 2, \"engines\": {"
        "\"0\": {\"pid\": %ld}, \"1\": {\"pid\": 999999998}}}, \"b\": {\"n\": 1, \"engines\": {"
        "\"2\": {\"pid\": 999999997}}}}}}",
        (long)getpid());
    write_text(fixture, text);
    free(text);
    struct px_cluster cluster;
    assert_int_equal(px_cluster_load(fixture->place.file, &cluster, NULL), 0);
    assert_null(cluster.controller);
    assert_int_equal(cluster.engine_sets, 1);
    assert_int_equal(cluster.engine_count, 1);
    assert_true(px_cluster_runs(&cluster));
    assert_null(json_object_get(cluster.file, "controller"));
    px_cluster_fini(&cluster);
}

static void test_a_process_younger_than_the_file_is_another(void **state)
{
    struct fixture *fixture = *state;
    char *text = px_format("{\"cluster\": {}, \"controller\": {\"class\": \"local\", \"state\": "
                           "{\"pid\": %ld}}}",
                           (long)getpid());
    write_text(fixture, text);
    free(text);
    struct px_cluster cluster;
    assert_int_equal(px_cluster_load(fixture->place.file, &cluster, NULL), 0);
    assert_true(px_cluster_runs(&cluster));
    px_cluster_fini(&cluster);

    const struct timespec old[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
    assert_int_equal(utimensat(AT_FDCWD, fixture->place.file, old, 0), 0);
    assert_int_equal(px_cluster_load(fixture->place.file, &cluster, NULL), 0);
    assert_false(px_cluster_runs(&cluster));
    px_cluster_fini(&cluster);
}

static void test_a_process_of_the_cluster_is_known_after_the_clock_was_set(void **state)
{
    struct fixture *fixture = *state;
    char *argv[] = {"sh", "-c", "kill -STOP $$", "sh", "--profile-dir", "/p", "--cluster-id=a",
                    NULL};
    const struct px_spawn request = {.argv = argv, .log = "/dev/null", .keep_fd = -1};
    struct px_process process;
    assert_int_equal(px_process_spawn(&request, &process, NULL), 0);
    static const struct {
        const char *dir, *id;
        bool meant;
    } rows[] = {{"/p", "a", true}, {"/p", "b", false}, {"/q", "a", false}};
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        char *text =
            px_format("{\"cluster\": {}, \"controller\": {\"class\": \"local\", \"state\": "
                      "{\"pid\": %ld, \"profile_dir\": \"%s\", \"cluster_id\": \"%s\"}}}",
                      (long)process.pid, rows[i].dir, rows[i].id);
        write_text(fixture, text);
        free(text);
        const struct timespec old[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
        assert_int_equal(utimensat(AT_FDCWD, fixture->place.file, old, 0), 0);
        struct px_cluster cluster;
        assert_int_equal(px_cluster_load(fixture->place.file, &cluster, NULL), 0);
        assert_int_equal(px_cluster_runs(&cluster), rows[i].meant);
        px_cluster_fini(&cluster);
    }
    px_process_signal(process, SIGKILL);
    assert_int_equal(waitpid(process.pid, NULL, 0), process.pid);
}

static void test_only_what_was_seen_is_removed(void **state)
{
#define CLUSTER(pid, sets)                                                                         \
    "{\"cluster\": {}, \"controller\": {\"state\": {\"pid\": " pid                                 \
    "}}, \"engines\": {\"sets\": {" sets "}}}"
    static const char seen[] = CLUSTER("7", "\"a\": {}, \"b\": {}");
    static const struct {
        const char *now, *left;
    } rows[] = {
        {seen, NULL},
        {CLUSTER("7", "\"b\": {}"), NULL},
        {CLUSTER("8", "\"c\": {}"), CLUSTER("8", "\"c\": {}")},
        {CLUSTER("8", "\"a\": {}, \"c\": {}"), CLUSTER("8", "\"c\": {}")},
    };
    struct fixture *fixture = *state;
    json_t *before = json_loads(seen, 0, NULL);
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        write_text(fixture, rows[i].now);
        px_clusterfile_remove(&fixture->place, before);
        json_t *now = px_clusterfile_read(fixture->place.file, NULL, NULL);
        json_t *left = rows[i].left ? json_loads(rows[i].left, 0, NULL) : NULL;
        assert_true(now == left || json_equal(now, left));
        json_decref(left);
        json_decref(now);
    }
    json_decref(before);
}

static void test_a_launcher_that_we_lack(void **state)
{
    struct fixture *fixture = *state;
    write_text(fixture, "{\"cluster\": {}, \"engines\": {\"class\": \"lsf\", \"sets\": "
                        "{\"a\": {\"n\": 3}}}}");
    struct px_cluster cluster;
    assert_int_equal(px_cluster_load(fixture->place.file, &cluster, NULL), 0);
    assert_string_equal(cluster.foreign, "lsf");
    assert_string_equal(cluster.launcher, "lsf");
    assert_int_equal(cluster.engine_count, 3);
    px_cluster_fini(&cluster);
}

static void test_refused_files(void **state)
{
    static const char *const texts[] = {
        "", "{", "[]", "3", "{\"cluster\": 3}", "{\"engines\": {}}"};
    struct fixture *fixture = *state;
    struct px_cluster cluster;
    struct px_error err;
    assert_int_equal(px_cluster_load(fixture->place.file, &cluster, &err), -1);
    assert_int_equal(err.code, PX_ENOENT);
    for (size_t i = 0; i < PX_COUNT(texts); i++) {
        write_text(fixture, texts[i]);
        assert_int_equal(px_cluster_load(fixture->place.file, &cluster, &err), -1);
        assert_int_equal(err.code, PX_EINVAL);
    }
}

static void test_each_takes_out_only_its_own(void **state)
{
    struct fixture *fixture = *state;
    struct px_set *controller = restored(CONTROLLER), *engines = restored(ENGINES);
    struct px_contribution part = {.launcher = &px_local_launcher,
                                   .controller = controller,
                                   .engines = engines,
                                   .set_id = "one"};
    assert_int_equal(px_clusterfile_put(&fixture->place, &part, NULL), 0);
    part.controller = NULL;
    part.set_id = "two";
    assert_int_equal(px_clusterfile_put(&fixture->place, &part, NULL), 0);

    px_clusterfile_withdraw(&fixture->place, getpid() + 1, "none"); /* somebody else's end */
    px_clusterfile_withdraw(&fixture->place, getpid(), "one");
    json_t *file = px_clusterfile_read(fixture->place.file, NULL, NULL);
    assert_null(json_object_get(file, "controller"));
    json_t *sets = json_object_get(json_object_get(file, "engines"), "sets");
    assert_int_equal(json_object_size(sets), 1);
    assert_non_null(json_object_get(sets, "two"));
    json_decref(file);

    px_clusterfile_withdraw(&fixture->place, 0, "two");
    assert_int_equal(access(fixture->place.file, F_OK), -1); /* the last one takes the file */
    px_set_destroy(controller);
    px_set_destroy(engines);
}

static void test_places(void **state)
{
    (void)state;
    struct px_place place;
    struct px_error err;
    assert_int_equal(px_place_make("/p/", "x", &place, &err), 0);
    assert_string_equal(place.profile_dir, "/p");
    assert_string_equal(place.file, "/p/security/cluster-x.json");
    assert_string_equal(place.client_file, "/p/security/ipcontroller-x-client.json");
    assert_int_equal(px_place_make("/p", "a/b", &place, &err), -1);
    char relative[PX_PATH_SIZE + 8], *cwd = getcwd(NULL, 0);
    assert_int_equal(px_place_make("here", "", &place, &err), 0);
    snprintf(relative, sizeof relative, "%s/here", cwd);
    assert_string_equal(place.profile_dir, relative);
    free(cwd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_the_form_is_ipyparallels, setup, teardown),
        cmocka_unit_test_setup_teardown(test_what_runs_is_told_from_what_ran, setup, teardown),
        cmocka_unit_test_setup_teardown(
            test_a_process_of_the_cluster_is_known_after_the_clock_was_set, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_process_younger_than_the_file_is_another, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_only_what_was_seen_is_removed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_launcher_that_we_lack, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_each_takes_out_only_its_own, setup, teardown),
        cmocka_unit_test(test_places),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
