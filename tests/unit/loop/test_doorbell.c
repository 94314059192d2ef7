/* SPDX-License-Identifier: BSD-3-Clause */
/* The doorbell: nothing lost, order kept per poster, rung only for a sleeper. */
#include "loop/loop.h"
#include "../test.h"

#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/eventfd.h>

#define POSTERS 4
#define EACH 20000
#define DEADLINE_MS 30000

struct poster {
    struct px_doorbell *bell;
    uintptr_t number;
};

static void *post_all(void *ctx)
{
    const struct poster *poster = ctx;
    for (uintptr_t i = 1; i <= EACH; i++)
        px_doorbell_post(poster->bell, (void *)(poster->number * 1000000 + i));
    return NULL;
}

static void all_arrive_in_order(void **state)
{
    (void)state;
    struct px_doorbell *bell = px_doorbell_create(NULL);
    pthread_t threads[POSTERS];
    struct poster posters[POSTERS];
    uintptr_t last[POSTERS] = {0};
    for (uintptr_t i = 0; i < POSTERS; i++) {
        posters[i] = (struct poster){bell, i + 1};
        assert_int_equal(pthread_create(&threads[i], NULL, post_all, &posters[i]), 0);
    }
    for (int count = 0; count < POSTERS * EACH; count++) {
        const uintptr_t item = (uintptr_t)px_doorbell_wait(bell, DEADLINE_MS);
        assert_true(item != 0);
        const uintptr_t from = item / 1000000 - 1, number = item % 1000000;
        assert_int_equal(number, last[from] + 1);
        last[from] = number;
    }
    for (int i = 0; i < POSTERS; i++)
        pthread_join(threads[i], NULL);
    assert_null(px_doorbell_take(bell));
    px_doorbell_destroy(bell, NULL);
}

static bool readable(const struct px_doorbell *bell)
{
    struct pollfd fd = {.fd = px_doorbell_fd(bell), .events = POLLIN};
    return poll(&fd, 1, 0) == 1;
}

static void the_bell_is_silent_after_the_last(void **state)
{
    (void)state;
    struct px_doorbell *bell = px_doorbell_create(NULL);
    int item;
    assert_false(readable(bell));
    px_doorbell_post(bell, &item);
    px_doorbell_post(bell, &item);
    assert_true(readable(bell));
    assert_ptr_equal(px_doorbell_take(bell), &item);
    px_doorbell_post(bell, &item);
    assert_true(readable(bell)); /* until NULL was taken: who stops before is woken again */
    assert_ptr_equal(px_doorbell_take(bell), &item);
    assert_ptr_equal(px_doorbell_take(bell), &item);
    assert_null(px_doorbell_take(bell));
    assert_false(readable(bell));
    px_doorbell_post(bell, &item);
    assert_true(readable(bell));
    assert_ptr_equal(px_doorbell_take(bell), &item);
    px_doorbell_destroy(bell, NULL);
}

static void a_wait_has_an_end(void **state)
{
    (void)state;
    struct px_doorbell *bell = px_doorbell_create(NULL);
    const int64_t from = px_now_ms();
    assert_null(px_doorbell_wait(bell, 20));
    assert_true(px_now_ms() - from >= 20);
    px_doorbell_destroy(bell, NULL);
}

static void drop(void *item)
{
    ++*(int *)item;
}

static void what_is_left_is_dropped(void **state)
{
    (void)state;
    struct px_doorbell *bell = px_doorbell_create(NULL);
    int dropped = 0;
    for (int i = 0; i < 100; i++)
        px_doorbell_post(bell, &dropped);
    px_doorbell_destroy(bell, drop);
    assert_int_equal(dropped, 100);
}

/* A poster that is held up between leaving its item and ringing rings a bell that nobody needs any
 * more: the owner wakes once for nothing, not for ever. */
static void a_late_ring_is_heard_once(void **state)
{
    (void)state;
    struct px_doorbell *bell = px_doorbell_create(NULL);
    assert_null(px_doorbell_take(bell));
    assert_int_equal(eventfd_write(px_doorbell_fd(bell), 1), 0);
    assert_true(readable(bell));
    assert_null(px_doorbell_take(bell));
    assert_false(readable(bell));
    px_doorbell_destroy(bell, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_arrive_in_order),
        cmocka_unit_test(the_bell_is_silent_after_the_last),
        cmocka_unit_test(a_late_ring_is_heard_once),
        cmocka_unit_test(a_wait_has_an_end),
        cmocka_unit_test(what_is_left_is_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
