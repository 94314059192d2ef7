/* SPDX-License-Identifier: BSD-3-Clause */
/* Ending sets in order, with a launcher that runs nothing and writes down what it is told. */
#include "../test.h"

#include "launch/launch.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct fake {
    struct px_set base;
    char name;
    size_t running;
    int deaf; /* ends only with SIGKILL */
    struct px_buf *story;
};

static void fake_signal(struct px_set *set, int signo)
{
    struct fake *fake = (struct fake *)set;
    px_buf_printf(fake->story, "%c%s ", fake->name, signo == SIGKILL ? "kill" : "term");
    if (signo == SIGKILL || !fake->deaf)
        fake->running = 0;
}

static size_t fake_refresh(struct px_set *set)
{
    return ((struct fake *)set)->running;
}

static const struct px_launcher_ops fake_ops = {
    .name = "fake", .signal = fake_signal, .refresh = fake_refresh};

static void on_done(struct px_loop *loop, void *ctx)
{
    px_buf_text(ctx, "done");
    px_loop_stop(loop);
}

static void on_hurry(struct px_loop *loop, void *ctx)
{
    (void)loop;
    px_stopper_hurry(*(struct px_stopper **)ctx);
}

static void run(struct fake *fakes, size_t count, int64_t grace_ms, bool hurry,
                const char *expected)
{
    struct px_buf story = {0};
    struct px_set *sets[4] = {0};
    for (size_t i = 0; i < count; i++) {
        fakes[i].base.ops = &fake_ops;
        fakes[i].story = &story;
        sets[i + 1] = &fakes[i].base; /* sets[0] stays NULL, which is allowed */
    }
    struct px_loop *loop = px_loop_create();
    struct px_stopper *stopper = px_stopper_start(loop, sets, count + 1, grace_ms, on_done, &story);
    if (hurry)
        px_loop_timer(loop, 0, 0, on_hurry, &stopper); /* after the stopper's first look */
    assert_int_equal(px_loop_run(loop, NULL), 0);
    assert_string_equal(story.data, expected);
    px_stopper_destroy(stopper);
    px_loop_destroy(loop);
    px_buf_fini(&story);
}

static void test_one_after_the_other(void **state)
{
    (void)state;
    struct fake fakes[] = {{.name = 'e', .running = 3}, {.name = 'c', .running = 1}};
    run(fakes, 2, 5000, false, "eterm cterm done");
}

static void test_what_does_not_run_is_passed_over(void **state)
{
    (void)state;
    struct fake fakes[] = {{.name = 'e'}, {.name = 'c', .running = 1}};
    run(fakes, 2, 5000, false, "cterm done");
    run(fakes, 0, 5000, false, "done");
}

static void test_the_deaf_are_killed(void **state)
{
    (void)state;
    struct fake fakes[] = {{.name = 'e', .running = 1, .deaf = 1}, {.name = 'c', .running = 1}};
    run(fakes, 2, 30, false, "eterm ekill cterm done");
}

static void test_in_a_hurry(void **state)
{
    (void)state;
    struct fake fakes[] = {{.name = 'e', .running = 1, .deaf = 1}, {.name = 'c', .running = 1}};
    run(fakes, 2, 5000, true, "eterm ekill ckill done");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_after_the_other),
        cmocka_unit_test(test_what_does_not_run_is_passed_over),
        cmocka_unit_test(test_the_deaf_are_killed),
        cmocka_unit_test(test_in_a_hurry),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
