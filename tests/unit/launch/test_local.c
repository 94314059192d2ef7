/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The local launcher with a shell script in place of pxengine: what it says on its descriptor,
 * what it leaves when it dies.
 */
#define _GNU_SOURCE
#include "../test.h"

#include "launch/launch.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct fixture {
    char dir[64], program[96];
    struct px_place place;
    struct px_loop *loop;
    struct px_set *set;
    struct px_buf story;
    size_t stop_after; /* events */
    struct px_process engine;
    bool kill_engine; /* as soon as it has registered */
    struct px_timer *late;
};

static void told(struct fixture *fixture)
{
    if (fixture->stop_after > 0 && --fixture->stop_after == 0)
        px_loop_stop(fixture->loop);
}

static void on_registered(struct px_set *set, int engine, pid_t pid, void *ctx)
{
    (void)set;
    struct fixture *fixture = ctx;
    px_buf_printf(&fixture->story, "registered %d, ", engine);
    px_process_find(pid, &fixture->engine);
    if (fixture->kill_engine)
        kill(pid, SIGKILL);
    told(fixture);
}

static void on_ended(struct px_set *set, pid_t pid, const char *why, void *ctx)
{
    (void)set, (void)pid;
    struct fixture *fixture = ctx;
    px_buf_printf(&fixture->story, "ended (%s), ", why);
    told(fixture);
}

static void on_child(struct px_loop *loop, int signo, void *ctx)
{
    (void)loop, (void)signo;
    struct fixture *fixture = ctx;
    if (fixture->set)
        fixture->set->ops->refresh(fixture->set);
}

static void on_late(struct px_loop *loop, void *ctx)
{
    struct fixture *fixture = ctx;
    fixture->late = NULL;
    px_buf_text(&fixture->story, "LATE");
    px_loop_stop(loop);
}

static void on_look(struct px_loop *loop, void *ctx)
{
    struct fixture *fixture = ctx;
    if (!px_process_alive(fixture->engine))
        px_loop_stop(loop);
}

static int setup(void **state)
{
    struct fixture *fixture = px_alloc(sizeof *fixture);
    strcpy(fixture->dir, "/tmp/px-test-XXXXXX");
    if (!mkdtemp(fixture->dir))
        return -1;
    char *log = px_format("%s/log", fixture->dir);
    mkdir(log, 0700);
    free(log);
    snprintf(fixture->program, sizeof fixture->program, "%s/pxengine", fixture->dir);
    fixture->loop = px_loop_create();
    *state = fixture;
    return px_place_make(fixture->dir, "", &fixture->place, NULL) < 0 ||
                   px_loop_signal(fixture->loop, SIGCHLD, on_child, fixture, NULL) < 0
               ? -1
               : 0;
}

static int teardown(void **state)
{
    struct fixture *fixture = *state;
    if (fixture->set) {
        fixture->set->ops->signal(fixture->set, SIGKILL);
        while (waitpid(-1, NULL, 0) > 0)
            ;
        px_set_destroy(fixture->set);
    }
    px_loop_destroy(fixture->loop);
    px_buf_fini(&fixture->story);
    char *command = px_format("rm -rf %s", fixture->dir);
    const int result = system(command);
    free(command);
    free(fixture);
    return result;
}

/* The script gets the descriptor's number as $fd. */
static int start(struct fixture *fixture, const char *script, struct px_error *err)
{
    char *text = px_format("#!/bin/sh\n"
                           "for arg; do case $arg in --ready-fd=*) fd=${arg#*=};; esac; done\n%s\n",
                           script);
    assert_int_equal(px_file_write(fixture->program, 0700, px_span_of(text), NULL), 0);
    free(text);
    const struct px_set_spec spec = {
        .kind = PX_ENGINE_SET,
        .count = 1,
        .command = fixture->program,
        .place = &fixture->place,
        .set_id = "1",
        .log_level = PX_INFO,
        .loop = fixture->loop,
        .events = {.registered = on_registered, .ended = on_ended, .ctx = fixture}};
    fixture->set = px_local_launcher.start(&px_local_launcher, &spec, err);
    return fixture->set ? 0 : -1;
}

/* Runs the loop until so many events came. */
static void run(struct fixture *fixture, size_t events)
{
    fixture->stop_after = events;
    fixture->late = px_loop_timer(fixture->loop, 20000, 0, on_late, fixture);
    assert_int_equal(px_loop_run(fixture->loop, NULL), 0);
    px_loop_cancel(fixture->loop, fixture->late);
}

static void expect(struct fixture *fixture, size_t events, const char *story)
{
    run(fixture, events);
    assert_string_equal(fixture->story.data, story);
    px_buf_clear(&fixture->story);
}

static void test_registration_and_exit(void **state)
{
    struct fixture *fixture = *state;
    fixture->kill_engine = true;
    assert_int_equal(start(fixture,
                           "tail -f /dev/null & engine=$!\n"
                           "eval \"printf 'nonsense\\nregister' >&$fd\"\n"
                           "eval \"echo ed 7 $engine >&$fd\"\n"
                           "wait $engine 2>/dev/null\n"
                           "eval \"echo exited $engine killed by a test >&$fd\"\n"
                           "exec tail -f /dev/null",
                           NULL),
                     0);
    assert_true(fixture->set->speaks);
    expect(fixture, 2, "registered 7, ended (killed by a test), ");
    json_t *saved = fixture->set->ops->save(fixture->set);
    assert_int_equal(json_object_size(json_object_get(saved, "engines")), 0);
    json_decref(saved);
}

static void test_a_dead_fork_server_takes_its_engines(void **state)
{
    struct fixture *fixture = *state;
    assert_int_equal(start(fixture,
                           "setsid tail -f /dev/null & engine=$!\n"
                           "eval \"echo registered 0 $engine >&$fd\"\n"
                           "exit 3",
                           NULL),
                     0);
    run(fixture, 2);
    assert_string_equal(fixture->story.data, "registered 0, ended (exit status 3), ");
    assert_true(fixture->engine.pid > 0);
    fixture->stop_after = 0;
    fixture->late = px_loop_timer(fixture->loop, 20000, 0, on_late, fixture);
    px_loop_timer(fixture->loop, 0, 5, on_look, fixture);
    assert_int_equal(px_loop_run(fixture->loop, NULL), 0);
    px_loop_cancel(fixture->loop, fixture->late);
    assert_false(px_process_alive(fixture->engine));
}

static void test_the_log_is_shown(void **state)
{
    struct fixture *fixture = *state;
    assert_int_equal(start(fixture, "seq 1 100; echo the last line; exit 1", NULL), 0);
    expect(fixture, 1, "ended (exit status 1), ");
    struct px_buf tail = {0};
    fixture->set->ops->tail(fixture->set, &tail);
    assert_non_null(strstr(tail.data, "\n100\nthe last line\n"));
    assert_null(strstr(tail.data, "\n50\n"));
    px_buf_fini(&tail);
}

static void test_one_that_cannot_start(void **state)
{
    struct fixture *fixture = *state;
    struct px_error err;
    const struct px_set_spec spec = {.kind = PX_ENGINE_SET,
                                     .count = 3,
                                     .command = "no-such-engine --of mine",
                                     .place = &fixture->place,
                                     .set_id = "1",
                                     .loop = fixture->loop};
    assert_null(px_local_launcher.start(&px_local_launcher, &spec, &err));
    assert_string_equal(err.text, "cannot run no-such-engine: No such file or directory");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_registration_and_exit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_dead_fork_server_takes_its_engines, setup, teardown),
        cmocka_unit_test_setup_teardown(test_the_log_is_shown, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_that_cannot_start, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
