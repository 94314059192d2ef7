/* SPDX-License-Identifier: BSD-3-Clause */
/* What peers of a ROUTER have not read: counted, bounded, given back. */
#include "pair.h"

#define MOST ((size_t)8 << 20)
#define LARGE ((size_t)1 << 20)
#define PATIENCE_MS 10000

struct unread {
    struct pair *pair;
    struct px_unread *store;
};

static int setup(void **state)
{
    struct unread *u = px_alloc(sizeof *u);
    pair_setup((void **)&u->pair);
    u->store = px_unread_create(MOST);
    px_socket_count_unread(u->pair->router, u->store);
    px_socket_set_hwm(u->pair->dealer, 1);
    *state = u;
    return 0;
}

static int teardown(void **state)
{
    struct unread *u = *state;
    px_unread_destroy(u->store); /* others hold it yet */
    pair_teardown((void **)&u->pair);
    free(u);
    return 0;
}

static void meet(struct pair *p)
{
    struct px_msg *hello = px_msg_create(), *heard;
    assert_int_equal(px_socket_connect(p->dealer, p->endpoint, NULL), 0);
    px_msg_append(hello, "hello", 5);
    assert_int_equal(px_socket_send(p->dealer, &hello), PX_SENT);
    while (!(heard = px_socket_recv(p->router)))
        assert_true(px_socket_wait(p->router, PATIENCE_MS));
    px_msg_destroy(heard);
}

static enum px_sent send_to_peer(struct px_socket *router, size_t size)
{
    struct px_msg *msg = px_msg_create();
    void *bytes = px_alloc(size);
    px_msg_append(msg, "peer", 4);
    px_msg_append(msg, "", 0);
    px_msg_append(msg, bytes, size);
    free(bytes);
    const enum px_sent sent = px_socket_send(router, &msg);
    assert_true((msg == NULL) == (sent == PX_SENT));
    px_msg_destroy(msg);
    return sent;
}

static void who_does_not_read_is_refused(void **state)
{
    const struct unread *u = *state;
    size_t sent = 0, small = 0, got = 0;
    meet(u->pair);
    while (send_to_peer(u->pair->router, LARGE) == PX_SENT)
        assert_true(++sent < 1000); /* the system takes some */
    assert_true(sent >= MOST / LARGE - 1);
    assert_true(px_unread_bytes(u->store) <= MOST);
    while (small < 100 && send_to_peer(u->pair->router, 1000) == PX_SENT)
        small++;
    assert_int_equal(small, 100); /* there is room for what says so */
    while (got < sent + small) {
        struct px_msg *msg = px_socket_recv(u->pair->dealer);
        if (!msg) {
            assert_true(px_socket_wait(u->pair->dealer, PATIENCE_MS));
            continue;
        }
        assert_int_equal(px_msg_frame(msg, 1).size, got < sent ? LARGE : 1000);
        px_msg_destroy(msg);
        got++;
    }
    assert_int_equal(px_unread_bytes(u->store), 0);
    assert_int_equal(send_to_peer(u->pair->router, LARGE), PX_SENT);
}

static void who_is_not_there_costs_nothing(void **state)
{
    const struct unread *u = *state;
    assert_int_equal(send_to_peer(u->pair->router, LARGE), PX_NO_ROUTE);
    assert_int_equal(px_unread_bytes(u->store), 0);
}

/* However much others have left: a message at a time. */
static void a_reader_has_room_beside_others(void **state)
{
    const struct unread *u = *state;
    meet(u->pair);
    assert_int_equal(send_to_peer(u->pair->router, 2 * MOST), PX_SENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(who_does_not_read_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(who_is_not_there_costs_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(a_reader_has_room_beside_others, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
