/* SPDX-License-Identifier: BSD-3-Clause */
/* Blocks: kept and used again, told from the C library's memory, bounded; and libzmq's frames in
 * them. */
#include "../test.h"
#include "wire/blocks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#define MB ((size_t)1 << 20)
#define BLOCK_HEADER 64

static int start(void **state)
{
    (void)state;
    px_blocks_cool(0);
    return 0;
}

static void test_used_again(void **state)
{
    (void)state;
    char *first = px_block_take(100 * MB);
    memset(first, 7, 100 * MB);
    assert_true(px_block_room(first) >= 100 * MB);
    assert_true(px_block_give(first));
    char *again = px_block_take(90 * MB);
    assert_ptr_equal(again, first);
    assert_int_equal(again[89 * MB], 7); /* its pages stayed */
    char *other = px_block_take(90 * MB);
    assert_ptr_not_equal(other, first);
    assert_true(px_block_give(other));
    assert_true(px_block_give(again));
}

static void test_not_for_much_less(void **state)
{
    (void)state;
    char *big = px_block_take(100 * MB);
    assert_true(px_block_give(big));
    char *less = px_block_take(50 * MB);
    assert_ptr_not_equal(less, big);
    assert_true(px_block_give(less));
}

static void test_let_go_of(void **state)
{
    (void)state;
    char *block = px_block_take(64 * MB);
    memset(block, 7, 64 * MB);
    assert_true(px_blocks_warm());
    assert_true(px_block_give(block));
    assert_true(px_blocks_cool(60000) > 0); /* not yet */
    assert_true(px_blocks_warm());
    assert_int_equal(px_blocks_cool(0), 0);
    assert_false(px_blocks_warm());
    block = px_block_take(64 * MB);
    for (size_t at = 0; at < 64 * MB; at += 4096)
        assert_int_equal(block[at], 0); /* fresh from the system, if at the same place */
    px_blocks_cool(0);                  /* while it is in use */
    assert_true(px_block_give(block));
    assert_false(px_blocks_warm());
}

/* One of each size comes back, more than are kept: the oldest are gone, the others are there. */
static void test_bounded(void **state)
{
    enum { COUNT = 100, KEPT = 64 };
    (void)state;
    static char *taken[COUNT];
    for (size_t i = 0; i < COUNT; i++) {
        taken[i] = px_block_take(MB);
        taken[i][0] = 7;
    }
    for (size_t i = 0; i < COUNT; i++)
        assert_true(px_block_give(taken[i]));
    size_t used = 0;
    for (size_t i = 0; i < COUNT; i++) {
        taken[i] = px_block_take(MB);
        used += taken[i][0] == 7;
    }
    assert_int_equal(used, KEPT);
    for (size_t i = 0; i < COUNT; i++)
        assert_true(px_block_give(taken[i]));
}

/* Where a block's part would start, but the C library's. */
static void test_strangers(void **state)
{
    (void)state;
    char *arena = aligned_alloc(2 * MB, 4 * MB);
    assert_non_null(arena);
    assert_false(px_block_give(arena + BLOCK_HEADER));
    assert_int_equal(px_block_room(arena + BLOCK_HEADER), 0);
    free(arena);
    assert_false(px_block_give(NULL));
    for (size_t size = 1; size < 6 * MB; size = size * 3 + 1) {
        char *memory = malloc(size);
        assert_false(px_block_give(memory));
        free(memory);
    }
}

static void test_too_much(void **state)
{
    (void)state;
    const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 64, SIZE_MAX / 4, SIZE_MAX / 8};
    for (size_t i = 0; i < PX_COUNT(sizes); i++)
        assert_null(px_block_take(sizes[i]));
}

/* ---- libzmq's frames ---- */

static char *frame_of(zmq_msg_t *frame, size_t size)
{
    assert_int_equal(zmq_msg_init_size(frame, size), 0);
    return zmq_msg_data(frame);
}

static void test_frames(void **state)
{
    (void)state;
    zmq_msg_t before, frame, other;
    char *early = frame_of(&before, 10 * MB);
    memset(early, 1, 10 * MB);
    px_blocks_use();
    px_blocks_use();
    char *first = frame_of(&frame, 10 * MB);
    if (!px_blocks_warm())
        skip(); /* imports_none.c */
    memset(first, 7, 10 * MB);
    zmq_msg_close(&before); /* the C library's */
    zmq_msg_init(&other);
    zmq_msg_copy(&other, &frame);
    zmq_msg_close(&frame);
    assert_int_equal(((char *)zmq_msg_data(&other))[10 * MB - 1], 7);
    zmq_msg_close(&other);
    assert_ptr_equal(frame_of(&frame, 9 * MB), first);
    zmq_msg_close(&frame);
    px_blocks_cool(0);
    frame_of(&frame, 1000);
    assert_false(px_blocks_warm()); /* small ones are the C library's */
    zmq_msg_close(&frame);
}

/* The process is in good order afterwards: two sockets, a message of some size each way. */
static void test_sockets(void **state)
{
    (void)state;
    px_blocks_use();
    void *context = px_context_create(1);
    struct px_socket *ends[2];
    struct px_error err;
    for (size_t i = 0; i < 2; i++)
        ends[i] = px_socket_create(context, PX_PAIR, &err);
    int port = 0;
    assert_int_equal(px_socket_bind_port(ends[0], "tcp://127.0.0.1", &port, &err), 0);
    char endpoint[64];
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%d", port);
    assert_int_equal(px_socket_connect(ends[1], endpoint, &err), 0);
    char *data = px_alloc(20 * MB);
    for (size_t size = 1; size <= 20 * MB; size = size * 5 + 3) {
        memset(data, (int)(size % 251), size);
        struct px_msg *msg = px_msg_create();
        px_msg_append(msg, data, size);
        assert_int_equal(px_socket_send(ends[size % 2], &msg), PX_SENT);
        assert_true(px_socket_wait(ends[1 - size % 2], 10000));
        msg = px_socket_recv(ends[1 - size % 2]);
        assert_non_null(msg);
        assert_int_equal(px_msg_frame(msg, 0).size, size);
        assert_memory_equal(px_msg_frame(msg, 0).data, data, size);
        px_msg_destroy(msg);
    }
    free(data);
    px_socket_destroy(ends[0]);
    px_socket_destroy(ends[1]);
    px_context_destroy(context);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_used_again, start),
        cmocka_unit_test_setup(test_not_for_much_less, start),
        cmocka_unit_test_setup(test_let_go_of, start),
        cmocka_unit_test_setup(test_bounded, start),
        cmocka_unit_test_setup(test_strangers, start),
        cmocka_unit_test_setup(test_too_much, start),
        cmocka_unit_test_setup(test_frames, start),
        cmocka_unit_test_setup(test_sockets, start),
    };
    return cmocka_run_group_tests_name("blocks", tests, NULL, NULL);
}
