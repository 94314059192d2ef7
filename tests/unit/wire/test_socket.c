/* SPDX-License-Identifier: BSD-3-Clause */
/* Sockets: what a sender learns, what a receiver is spared. */
#include "wire/wire.h"
#include "../test.h"

#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#define DEADLINE_MS 10000

struct pair {
    void *context;
    struct px_socket *router, *dealer;
    char endpoint[PX_ENDPOINT_SIZE];
};

static int setup(void **state)
{
    struct pair *p = px_alloc(sizeof *p);
    p->context = px_context_create(1);
    p->router = px_socket_create(p->context, PX_ROUTER, NULL);
    p->dealer = px_socket_create(p->context, PX_DEALER, NULL);
    px_socket_set_identity(p->dealer, "peer");
    int port = 0;
    assert_int_equal(px_socket_bind_port(p->router, "tcp://127.0.0.1", &port, NULL), 0);
    assert_true(port > 0);
    snprintf(p->endpoint, sizeof p->endpoint, "tcp://127.0.0.1:%d", port);
    *state = p;
    return 0;
}

static int teardown(void **state)
{
    struct pair *p = *state;
    px_socket_destroy(p->router);
    px_socket_destroy(p->dealer);
    px_context_destroy(p->context);
    free(p);
    return 0;
}

static struct px_msg *to_peer(void)
{
    struct px_msg *msg = px_msg_create();
    px_msg_append(msg, "peer", 4);
    px_msg_append(msg, "hello", 5);
    return msg;
}

static void a_router_says_when_nobody_is_there(void **state)
{
    struct pair *p = *state;
    struct px_msg *msg = to_peer();
    assert_int_equal(px_socket_send(p->router, &msg), PX_NO_ROUTE);
    assert_non_null(msg);
    assert_span_equal(px_msg_frame(msg, 1), "hello");
    assert_int_equal(px_socket_connect_wait(p->dealer, p->endpoint, DEADLINE_MS, NULL), 0);
    /* The dealer has shaken hands; the router learns of it with its next command. */
    const int64_t deadline = px_now_ms() + DEADLINE_MS;
    enum px_sent sent;
    while ((sent = px_socket_send(p->router, &msg)) == PX_NO_ROUTE && px_now_ms() < deadline)
        px_socket_wait(p->router, 1);
    assert_int_equal(sent, PX_SENT);
    assert_null(msg);
    assert_true(px_socket_wait(p->dealer, DEADLINE_MS));
    msg = px_socket_recv(p->dealer);
    assert_span_equal(px_msg_frame(msg, 0), "hello");
    px_msg_destroy(msg);
    assert_null(px_socket_recv(p->dealer));
}

static void a_message_of_too_many_frames_is_dropped_whole(void **state)
{
    struct pair *p = *state;
    assert_int_equal(px_socket_connect(p->dealer, p->endpoint, NULL), 0);
    void *raw = px_socket_raw(p->dealer);
    for (int i = 0; i < PX_MAX_FRAMES + 10; i++)
        zmq_send(raw, "", 0, ZMQ_SNDMORE);
    zmq_send(raw, "end", 3, 0);
    struct px_msg *msg = px_msg_create();
    px_msg_append(msg, "next", 4);
    assert_int_equal(px_socket_send(p->dealer, &msg), PX_SENT);
    const int64_t deadline = px_now_ms() + DEADLINE_MS;
    while (!(msg = px_socket_recv(p->router)) && px_now_ms() < deadline)
        px_socket_wait(p->router, 100);
    assert_non_null(msg);
    assert_span_equal(px_msg_frame(msg, 1), "next");
    assert_int_equal(px_socket_dropped(p->router), 1);
    px_msg_destroy(msg);
}

static void addresses_are_refused_with_a_reason(void **state)
{
    struct pair *p = *state;
    struct px_error err;
    struct px_socket *other = px_socket_create(p->context, PX_ROUTER, NULL);
    assert_int_equal(px_socket_bind(other, p->endpoint, &err), -1);
    assert_int_equal(err.code, PX_EEXIST);
    assert_non_null(strstr(err.text, p->endpoint));
    assert_int_equal(px_socket_bind(other, "nonsense", &err), -1);
    assert_int_equal(err.code, PX_EINVAL);
    assert_int_equal(px_socket_connect(other, "carrier-pigeon://x", &err), -1);
    assert_int_equal(err.code, PX_EINVAL);
    px_socket_destroy(other);
}

static void waiting_for_nobody_ends(void **state)
{
    struct pair *p = *state;
    struct px_socket *lonely = px_socket_create(p->context, PX_SUB, NULL);
    px_socket_set_linger(lonely, 0);
    struct px_error err;
    assert_int_equal(px_socket_connect_wait(lonely, "tcp://127.0.0.1:1", 50, &err), -1);
    assert_int_equal(err.code, PX_ETIME);
    px_socket_destroy(lonely);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_router_says_when_nobody_is_there, setup, teardown),
        cmocka_unit_test_setup_teardown(a_message_of_too_many_frames_is_dropped_whole, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(addresses_are_refused_with_a_reason, setup, teardown),
        cmocka_unit_test_setup_teardown(waiting_for_nobody_ends, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
