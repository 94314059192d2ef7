/* SPDX-License-Identifier: BSD-3-Clause */
/* When a message wakes the reader of the outbox, when it may wait for its next look, and into which
 * messages text goes. */
#include "core.h"

#include <poll.h>

#include "../test.h"

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

/* As to a client that does not count what it is sent. */
static void test_a_reply_waits_behind_output(void **state)
{
    (void)state;
    const struct px_output_config limits = {0};
    struct px_outbox outbox;
    struct px_parent parent = {.references = 1};
    int64_t delay_ms;
    assert_int_equal(px_outbox_init(&outbox, &limits, NULL), 0);
    px_outbox_post(&outbox, px_item_create(PX_SHELL, "apply_reply", &parent), PX_POST_RING);
    parent.shown_ms = px_now_ms() + 1000; /* no test should depend on a millisecond */
    assert_null(px_outbox_take(&outbox, false, &delay_ms));
    assert_in_range(delay_ms, 1, 1003);
    parent.shown_ms = px_now_ms() - 1000;
    assert_int_equal(take_all(&outbox), 1);
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
    outbox.look_ns = px_now_ns() + 60000000000; /* the reader was early, and has promised no more */
    assert_int_equal(take_all(&outbox), 0);
    post(&outbox, PX_POST_LAZY);
    assert_true(is_rung(&outbox));
    assert_int_equal(take_all(&outbox), 1);
    px_outbox_promise(&outbox, -1); /* it sleeps until it is rung */
    post(&outbox, PX_POST_LAZY);
    assert_true(is_rung(&outbox));
    px_outbox_fini(&outbox);
}

static void print(struct px_outbox *outbox, struct px_parent *parent, enum px_stream which,
                  const char *text)
{
    assert_true(px_outbox_stream(outbox, parent, which, "", px_span_of(text), false));
}

static void take_rest(struct px_outbox *outbox)
{
    int64_t delay_ms;
    while (outbox->first)
        px_item_destroy(px_outbox_take(outbox, true, &delay_ms));
}

/* Whether the next item is such text, or, without one, no text. */
static void expect(struct px_outbox *outbox, int stream, const char *text)
{
    int64_t delay_ms;
    struct px_item *item = px_outbox_take(outbox, true, &delay_ms);
    assert_non_null(item);
    assert_int_equal(item->stream, stream);
    if (text)
        assert_string_equal(item->content.data, text);
    px_item_destroy(item);
}

static void test_streams_in_turn_share_items_in_the_end(void **state)
{
    (void)state;
    const struct px_output_config limits = {.burst_kb = 1024};
    struct px_outbox outbox;
    struct px_parent first = {0}, second = {0};
    atomic_init(&first.references, 1);
    atomic_init(&second.references, 1);
    assert_int_equal(px_outbox_init(&outbox, &limits, NULL), 0);
    int items = 4, rounds = 0;
    while (items == 4 && ++rounds < 1000) { /* each change is a message, for a while */
        take_rest(&outbox);
        print(&outbox, &first, PX_STDOUT, "a");
        print(&outbox, &first, PX_STDERR, "b");
        print(&outbox, &first, PX_STDOUT, "c");
        print(&outbox, &first, PX_STDERR, "d");
        items = 0;
        for (const struct px_item *item = outbox.first; item; item = item->next)
            items++;
    }
    assert_int_equal(items, 2);
    assert_between(rounds, 100, 999);
    int64_t delay_ms;
    assert_null(px_outbox_take(&outbox, false, &delay_ms)); /* both wait for more */
    assert_true(delay_ms > 0);
    print(&outbox, &second, PX_STDOUT, "theirs");
    print(&outbox, &first, PX_STDOUT, "after them");
    post(&outbox, PX_POST_QUIET);
    print(&outbox, &first, PX_STDOUT, "after that");
    expect(&outbox, PX_STDOUT, "ac");
    expect(&outbox, PX_STDERR, "bd");
    expect(&outbox, PX_STDOUT, "theirs");
    expect(&outbox, PX_STDOUT, "after them");
    expect(&outbox, -1, NULL);
    expect(&outbox, PX_STDOUT, "after that");
    px_outbox_fini(&outbox);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_burst_rings_once),
        cmocka_unit_test(test_a_reply_waits_behind_output),
        cmocka_unit_test(test_lazy_relies_on_a_promise_while_it_lasts),
        cmocka_unit_test(test_streams_in_turn_share_items_in_the_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
