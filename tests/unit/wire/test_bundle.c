/* SPDX-License-Identifier: BSD-3-Clause */
/* Bundles: what goes in at one end comes out at the other, one by one and in order. */
#include "pair.h"

#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#define DEADLINE_MS 10000
#define MANY 300
#define LARGE 100000
#define CROWD 20000

static struct px_msg *message(const char *first, const char *second)
{
    struct px_msg *msg = px_msg_create();
    px_msg_append(msg, first, strlen(first));
    px_msg_append(msg, second, strlen(second));
    return msg;
}

static struct px_msg *await(struct px_socket *socket)
{
    const int64_t deadline = px_now_ms() + DEADLINE_MS;
    struct px_msg *msg;
    while (!(msg = px_socket_recv(socket)) && px_now_ms() < deadline)
        px_socket_wait(socket, 100);
    assert_non_null(msg);
    return msg;
}

/* The two have exchanged a message. */
static int setup(void **state)
{
    pair_setup(state);
    struct pair *p = *state;
    assert_int_equal(px_socket_connect(p->dealer, p->endpoint, NULL), 0);
    px_socket_take_bundles(p->router);
    px_socket_take_bundles(p->dealer);
    struct px_msg *msg = message("I am", "here");
    assert_int_equal(px_socket_post(p->dealer, &msg), PX_SENT); /* at once: nobody was greeted */
    px_msg_destroy(await(p->router));
    return 0;
}

static void a_message_is_itself_again(void **unused)
{
    (void)unused;
    struct px_buf bytes = {0};
    struct px_msg *msg = message("one", "");
    px_msg_pack(msg, &bytes);
    px_msg_destroy(msg);
    msg = message("two", "frames");
    px_msg_pack(msg, &bytes);
    px_msg_destroy(msg);
    struct px_span rest = px_buf_span(&bytes);
    msg = px_msg_unpack(&rest);
    assert_int_equal(px_msg_count(msg), 2);
    assert_span_equal(px_msg_frame(msg, 0), "one");
    assert_span_equal(px_msg_frame(msg, 1), "");
    px_msg_destroy(msg);
    msg = px_msg_unpack(&rest);
    assert_span_equal(px_msg_frame(msg, 1), "frames");
    px_msg_destroy(msg);
    assert_int_equal(rest.size, 0);
    px_buf_fini(&bytes);
}

static void what_is_no_message_is_refused(void **unused)
{
    (void)unused;
    static const struct px_span bad[] = {
        PX_SPAN(""),
        PX_SPAN("\0\0\0"),
        PX_SPAN("\0\0\0\0"),                          /* no frame */
        PX_SPAN("\0\0\0\1"),                          /* no size */
        PX_SPAN("\0\0\0\1\0\0\0\2x"),                 /* a byte is missing */
        PX_SPAN("\0\0\0\2\0\0\0\1\xff\xff\xff\xffx"), /* and very many */
        PX_SPAN("\xff\xff\xff\xff\0\0\0\0"),
        PX_SPAN("\0\1\0\1\0\0\0\0"),
    };
    for (size_t i = 0; i < PX_COUNT(bad); i++) {
        struct px_span rest = bad[i];
        assert_null(px_msg_unpack(&rest));
        assert_ptr_equal(rest.data, bad[i].data);
    }
}

/* Until one that comes alone: the number of messages of libzmq's that have come, the greeting too.
 */
static size_t count_raw(struct px_socket *socket)
{
    char byte[LARGE];
    int more, size;
    size_t count = 0, more_size = sizeof more;
    zmq_pollitem_t item = {.socket = px_socket_raw(socket), .events = ZMQ_POLLIN};
    do {
        assert_int_equal(zmq_poll(&item, 1, DEADLINE_MS), 1);
        do {
            size = zmq_recv(px_socket_raw(socket), byte, sizeof byte, 0);
            zmq_getsockopt(px_socket_raw(socket), ZMQ_RCVMORE, &more, &more_size);
        } while (more);
        count++;
    } while (size != 3 || memcmp(byte, "end", 3) != 0);
    return count;
}

static void post_many(struct px_socket *socket)
{
    for (int i = 0; i < MANY; i++) {
        char text[16];
        snprintf(text, sizeof text, "%d", i);
        struct px_msg *msg = message(text, "text");
        assert_int_equal(px_socket_post(socket, &msg), PX_SENT);
    }
}

static void small_messages_go_together(void **state)
{
    const struct pair *p = *state;
    px_socket_greet(p->dealer, "");
    post_many(p->dealer);
    px_socket_flush(p->dealer);
    struct px_msg *msg = message("the", "end");
    assert_int_equal(px_socket_post(p->dealer, &msg), PX_SENT);
    px_socket_flush(p->dealer);
    assert_int_equal(count_raw(p->router), 3);
}

static void they_come_one_by_one_in_order(void **state)
{
    const struct pair *p = *state;
    char large[LARGE];
    memset(large, 'x', sizeof large);
    px_socket_greet(p->dealer, "");
    post_many(p->dealer);
    struct px_msg *msg = px_msg_create();
    px_msg_append(msg, large, sizeof large);
    assert_int_equal(px_socket_post(p->dealer, &msg), PX_SENT); /* by itself, and not before them */
    post_many(p->dealer);
    msg = message("at", "once");
    assert_int_equal(px_socket_send(p->dealer, &msg), PX_SENT);
    for (int i = 0; i < 2 * MANY + 1; i++) {
        char text[16];
        snprintf(text, sizeof text, "%d", i < MANY ? i : i - MANY - 1);
        msg = await(p->router);
        assert_span_equal(px_msg_frame(msg, 0), "peer");
        if (i == MANY)
            assert_int_equal(px_msg_frame(msg, 1).size, LARGE);
        else
            assert_span_equal(px_msg_frame(msg, 1), text);
        px_msg_destroy(msg);
    }
    msg = await(p->router);
    assert_span_equal(px_msg_frame(msg, 2), "once");
    px_msg_destroy(msg);
    assert_null(px_socket_recv(p->router));
    assert_int_equal(px_socket_broken(p->router), 0);
}

static void whoever_was_greeted_answers_in_bundles(void **state)
{
    const struct pair *p = *state;
    for (int i = 0; i < CROWD; i++) { /* who have gone make room */
        char other[24];
        snprintf(other, sizeof other, "other %d", i);
        px_socket_greet(p->router, other);
    }
    px_socket_greet(p->dealer, "");
    struct px_msg *msg = message("a", "request");
    assert_int_equal(px_socket_send(p->dealer, &msg), PX_SENT);
    px_msg_destroy(await(p->router));
    for (int i = 0; i < 4; i++) {
        msg = message("peer", i < 3 ? "reply" : "end");
        assert_int_equal(px_socket_post(p->router, &msg), PX_SENT);
        if (i == 2)
            px_socket_flush(p->router);
    }
    msg = message("nobody", "reply"); /* ends what was gathered for another */
    assert_int_equal(px_socket_post(p->router, &msg), PX_NO_ROUTE);
    px_msg_destroy(msg);
    assert_int_equal(count_raw(p->dealer), 2);
}

static void a_loop_knows_of_what_is_left(void **state)
{
    const struct pair *p = *state;
    px_socket_greet(p->dealer, "");
    post_many(p->dealer);
    px_socket_flush(p->dealer);
    const struct px_pollable seen = px_socket_pollable(p->router);
    assert_false(*seen.full);
    for (int i = 0; i < MANY; i++) {
        *seen.used = false;
        px_msg_destroy(await(p->router));
        assert_true(*seen.used); /* or the loop would not ask */
        assert_int_equal(*seen.full, i + 1 < MANY);
        assert_int_equal(px_socket_wait(p->router, 0), i + 1 < MANY);
    }
}

static void garbage_ends_a_bundle(void **state)
{
    const struct pair *p = *state;
    void *raw = px_socket_raw(p->dealer);
    static const char bundle[] = "\0\0\0\1\0\0\0\4good\0\0\0\1\0\0\0\4bad";
    zmq_send(raw, "<PX|BUNDLE>", 11, ZMQ_SNDMORE);
    zmq_send(raw, bundle, sizeof bundle - 1, 0);
    struct px_msg *msg = message("the", "next");
    assert_int_equal(px_socket_send(p->dealer, &msg), PX_SENT);
    msg = await(p->router);
    assert_span_equal(px_msg_frame(msg, 1), "good");
    px_msg_destroy(msg);
    msg = await(p->router);
    assert_span_equal(px_msg_frame(msg, 2), "next");
    px_msg_destroy(msg);
    assert_int_equal(px_socket_broken(p->router), 1);
}

/* Whoever sends nothing but these keeps nobody from the rest of a loop. */
static void empty_bundles_are_passed_over_some_at_a_time(void **state)
{
    const struct pair *p = *state;
    struct px_socket *other = px_socket_create(p->context, PX_DEALER, NULL);
    assert_int_equal(px_socket_bind(p->router, "inproc://here", NULL), 0);
    assert_int_equal(px_socket_connect(other, "inproc://here", NULL),
                     0); /* what is sent is there */
    for (int i = 0; i < MANY; i++)
        px_socket_greet(other, "");
    struct px_msg *msg = message("the", "next");
    assert_int_equal(px_socket_send(other, &msg), PX_SENT);
    assert_null(px_socket_recv(p->router));
    assert_true(*px_socket_pollable(p->router).used);
    msg = await(p->router);
    assert_span_equal(px_msg_frame(msg, 2), "next");
    px_msg_destroy(msg);
    px_socket_destroy(other);
}

/* A loop sleeps when the socket says that there is nothing. */
static void a_bundle_behind_empty_ones_is_not_left(void **state)
{
    const struct pair *p = *state;
    struct px_socket *other = px_socket_create(p->context, PX_DEALER, NULL);
    assert_int_equal(px_socket_bind(p->router, "inproc://here", NULL), 0);
    assert_int_equal(px_socket_connect(other, "inproc://here", NULL), 0);
    int asleep = 0;
    for (int empty = 1; empty < 40 && !asleep; empty++) {
        for (int i = 0; i < empty; i++)
            px_socket_greet(other, "");
        post_many(other);
        px_socket_flush(other);
        for (int i = 0; i < MANY && !asleep;) {
            struct px_msg *msg = px_socket_recv(p->router);
            i += msg != NULL;
            if (!msg && !px_socket_wait(p->router, 0))
                asleep = empty;
            px_msg_destroy(msg);
        }
    }
    px_socket_destroy(other);
    assert_int_equal(asleep, 0); /* behind so many */
}

static void what_was_posted_goes_out_at_the_end(void **state)
{
    struct pair *p = *state;
    px_socket_greet(p->dealer, "");
    post_many(p->dealer);
    px_socket_destroy(p->dealer);
    p->dealer = NULL;
    for (int i = 0; i < MANY; i++)
        px_msg_destroy(await(p->router));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_message_is_itself_again),
        cmocka_unit_test(what_is_no_message_is_refused),
        cmocka_unit_test_setup_teardown(small_messages_go_together, setup, pair_teardown),
        cmocka_unit_test_setup_teardown(they_come_one_by_one_in_order, setup, pair_teardown),
        cmocka_unit_test_setup_teardown(whoever_was_greeted_answers_in_bundles, setup,
                                        pair_teardown),
        cmocka_unit_test_setup_teardown(a_loop_knows_of_what_is_left, setup, pair_teardown),
        cmocka_unit_test_setup_teardown(garbage_ends_a_bundle, setup, pair_teardown),
        cmocka_unit_test_setup_teardown(empty_bundles_are_passed_over_some_at_a_time, setup,
                                        pair_teardown),
        cmocka_unit_test_setup_teardown(a_bundle_behind_empty_ones_is_not_left, setup,
                                        pair_teardown),
        cmocka_unit_test_setup_teardown(what_was_posted_goes_out_at_the_end, setup, pair_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
