/* SPDX-License-Identifier: BSD-3-Clause */
/* When a message wakes the reader of the outbox, and when it may wait for its next look. */
#include "core.h"

#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static bool is_rung(const struct px_outbox *outbox)
{
    struct pollfd look = {.fd = outbox->fd, .events = POLLIN};
    return poll(&look, 1, 0) > 0;
}

static void post(struct px_outbox *outbox, enum px_post how)
{
    px_outbox_post(outbox, px_item_create(PX_IOPUB, "status", NULL), how);
}

/* Takes everything, as the service thread does; returns how much there was. */
static int take_all(struct px_outbox *outbox)
{
    struct px_item *item;
    int64_t delay_ms;
    int count = 0;
    while ((item = px_outbox_take(outbox, false, &delay_ms)) != NULL) {
        px_item_destroy(item);
        count++;
    }
    assert_int_equal(delay_ms, -1);
    return count;
}

static void test_each_burst_rings_once(void **state)
{
    (void)state;
    const struct px_output_config limits = {0};
    struct px_outbox outbox;
    assert_int_equal(px_outbox_init(&outbox, &limits, NULL), 0);
    post(&outbox, PX_POST_QUIET);
    assert_false(is_rung(&outbox));
    post(&outbox, PX_POST_RING);
    post(&outbox, PX_POST_RING);
    assert_true(is_rung(&outbox));
    assert_int_equal(take_all(&outbox), 3);
    assert_false(is_rung(&outbox));
    assert_int_equal(take_all(&outbox), 0);
    post(&outbox, PX_POST_RING);
    assert_true(is_rung(&outbox));
    px_outbox_fini(&outbox);
}

static void test_lazy_relies_on_a_promise_while_it_lasts(void **state)
{
    (void)state;
    const struct px_output_config limits = {0};
    struct px_outbox outbox;
    assert_int_equal(px_outbox_init(&outbox, &limits, NULL), 0);
    post(&outbox, PX_POST_LAZY); /* nothing was promised */
    assert_true(is_rung(&outbox));
    assert_int_equal(take_all(&outbox), 1);
    px_outbox_promise(&outbox, 1000); /* too far away */
    post(&outbox, PX_POST_LAZY);
    assert_true(is_rung(&outbox));
    assert_int_equal(take_all(&outbox), 1);

    px_outbox_promise(&outbox, 1);
    outbox.look_ns = px_now_ns() + 60000000000; /* no test should depend on a millisecond */
    post(&outbox, PX_POST_LAZY);
    assert_false(is_rung(&outbox));
    outbox.look_ns = px_now_ns() - 1; /* the reader is late */
    post(&outbox, PX_POST_LAZY);
    assert_true(is_rung(&outbox));
    assert_int_equal(take_all(&outbox), 2);
    px_outbox_promise(&outbox, -1); /* it sleeps until it is rung */
    post(&outbox, PX_POST_LAZY);
    assert_true(is_rung(&outbox));
    px_outbox_fini(&outbox);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_burst_rings_once),
        cmocka_unit_test(test_lazy_relies_on_a_promise_while_it_lasts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
