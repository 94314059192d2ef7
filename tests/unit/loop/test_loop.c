/* SPDX-License-Identifier: BSD-3-Clause */
/* The reactor: order of timers, removal inside callbacks, descriptors, signals. */
#include "loop/loop.h"
#include "../test.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zmq.h>

struct record {
    char order[64];
    size_t size;
    struct px_timer *timer;
    struct px_watch *watch, *other;
    int fd;
    int calls;
};

struct mark {
    struct record *record;
    char name;
};

static void on_mark(struct px_loop *loop, void *ctx)
{
    struct mark *mark = ctx;
    mark->record->order[mark->record->size++] = mark->name;
    if (mark->name == '!')
        px_loop_stop(loop);
}

/* A loop with the timers that add() gives it, all in less than 10 ms: on a busy machine one that is
 * added late is due late. */
static struct px_loop *loop_with(void (*add)(struct px_loop *loop, struct mark *marks),
                                 struct mark *marks)
{
    for (;;) {
        struct px_loop *loop = px_loop_create();
        const int64_t began_ms = px_now_ms();
        add(loop, marks);
        if (px_now_ms() - began_ms < 10)
            return loop;
        px_loop_destroy(loop);
    }
}

static void add_four(struct px_loop *loop, struct mark *marks)
{
    px_loop_timer(loop, 30, 0, on_mark, &marks[0]);
    px_loop_timer(loop, 10, 0, on_mark, &marks[1]);
    px_loop_timer(loop, 20, 0, on_mark, &marks[2]);
    px_loop_timer(loop, 0, 0, on_mark, &marks[3]);
    px_loop_cancel(loop, px_loop_timer(loop, 5, 0, on_mark, &marks[2]));
}

static void timers_run_in_order(void **state)
{
    (void)state;
    struct record record = {.size = 0};
    struct mark marks[] = {{&record, '!'}, {&record, 'b'}, {&record, 'c'}, {&record, 'a'}};
    struct px_loop *loop = loop_with(add_four, marks);
    assert_int_equal(px_loop_run(loop, NULL), 0);
    assert_string_equal(record.order, "abc!");
    px_loop_destroy(loop);
}

/* What a callback has gathered goes out before what the next one sends. */
static void each_callback_is_settled(void **state)
{
    (void)state;
    struct record record = {.size = 0};
    struct px_loop *loop = px_loop_create();
    struct mark marks[] = {{&record, 'a'}, {&record, '!'}, {&record, '.'}};
    int ends[2][2];
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pipe(ends[i]), 0);
        assert_int_equal(write(ends[i][1], "x", 1), 1);
        px_loop_fd(loop, ends[i][0], on_mark, &marks[i]);
    }
    px_loop_settle(loop, on_mark, &marks[2]);
    assert_int_equal(px_loop_run(loop, NULL), 0);
    const char *first = strchr(record.order, 'a');
    assert_non_null(first);
    assert_memory_equal(first, "a.!.", 4);
    px_loop_destroy(loop);
    for (int i = 0; i < 2; i++) {
        close(ends[i][0]);
        close(ends[i][1]);
    }
}

static void add_many(struct px_loop *loop, struct mark *marks)
{
    struct px_timer *timers[200];
    for (int i = 0; i < 200; i++)
        timers[i] = px_loop_timer(loop, (i * 7) % 20, 0, on_mark, &marks[i]);
    for (int i = 0; i < 200; i++)
        if (i % 10 != 3)
            px_loop_cancel(loop, timers[i]);
    px_loop_timer(loop, 25, 0, on_mark, &marks[200]);
}

static void many_timers_keep_their_order(void **state)
{
    (void)state;
    struct record record = {.size = 0};
    static struct mark marks[201];
    for (int i = 0; i < 200; i++)
        marks[i] = (struct mark){&record, (char)('a' + i % 20)};
    marks[200] = (struct mark){&record, '!'};
    struct px_loop *loop = loop_with(add_many, marks);
    assert_int_equal(px_loop_run(loop, NULL), 0);
    /* Kept: i = 3, 13, 23 …: delays 1 and 11 in turn, names d and n. */
    assert_string_equal(record.order, "ddddddddddnnnnnnnnnn!");
    px_loop_destroy(loop);
}

static void on_period(struct px_loop *loop, void *ctx)
{
    struct record *record = ctx;
    if (++record->calls == 3) {
        px_loop_cancel(loop, record->timer); /* its own */
        px_loop_stop(loop);
    }
}

static void a_periodic_timer_cancels_itself(void **state)
{
    (void)state;
    struct record record = {.size = 0};
    struct px_loop *loop = px_loop_create();
    record.timer = px_loop_timer(loop, 0, 1, on_period, &record);
    assert_int_equal(px_loop_run(loop, NULL), 0);
    assert_int_equal(record.calls, 3);
    px_loop_destroy(loop);
}

/* Both descriptors are ready; the first callback removes both watches. */
static void on_readable(struct px_loop *loop, void *ctx)
{
    struct record *record = ctx;
    record->calls++;
    px_loop_unwatch(loop, record->watch);
    px_loop_unwatch(loop, record->other);
    px_loop_stop(loop);
}

static void a_removed_watch_is_not_called(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(write(ends[1], "x", 1), 1);
    struct px_loop *loop = px_loop_create();
    struct record record = {.size = 0};
    record.watch = px_loop_fd(loop, ends[0], on_readable, &record);
    record.other = px_loop_fd(loop, ends[0], on_readable, &record);
    assert_int_equal(px_loop_run(loop, NULL), 0);
    assert_int_equal(record.calls, 1);
    px_loop_destroy(loop);
    close(ends[0]);
    close(ends[1]);
}

static void on_hangup(struct px_loop *loop, void *ctx)
{
    ++*(int *)ctx;
    px_loop_stop(loop);
}

static void a_hangup_wakes(void **state)
{
    (void)state;
    int ends[2], calls = 0;
    assert_int_equal(pipe(ends), 0);
    close(ends[1]);
    struct px_loop *loop = px_loop_create();
    px_loop_fd(loop, ends[0], on_hangup, &calls);
    assert_int_equal(px_loop_run(loop, NULL), 0);
    assert_int_equal(calls, 1);
    px_loop_destroy(loop);
    close(ends[0]);
}

static void on_signo(struct px_loop *loop, int signo, void *ctx)
{
    *(int *)ctx = signo;
    px_loop_stop(loop);
}

static void signals_arrive_on_the_loop(void **state)
{
    (void)state;
    struct px_loop *loop = px_loop_create();
    int seen_one = 0, seen_two = 0;
    assert_int_equal(px_loop_signal(loop, SIGUSR1, on_signo, &seen_one, NULL), 0);
    assert_int_equal(px_loop_signal(loop, SIGUSR2, on_signo, &seen_two, NULL), 0);
    kill(getpid(), SIGUSR2);
    assert_int_equal(px_loop_run(loop, NULL), 0);
    assert_int_equal(seen_two, SIGUSR2);
    assert_int_equal(seen_one, 0);
    px_loop_destroy(loop);
}

/*
 * A loop passes messages from one socket to another, as a relay does, while its peer keeps only a
 * few under way: an edge that is lost stops both for good, and the deadline says so.
 */
#define PASSED 20000
#define WINDOW 3
#define DEADLINE_MS 30000

struct relay {
    void *in, *out;
    int passed;
    bool late;
    bool in_used, out_used; /* set with every use, for the loop that is told */
};

static void on_pass(struct px_loop *loop, void *ctx)
{
    struct relay *relay = ctx;
    char byte;
    relay->in_used = relay->out_used = true;
    while (zmq_recv(relay->in, &byte, 1, ZMQ_DONTWAIT) == 1) {
        assert_int_equal(zmq_send(relay->out, &byte, 1, 0), 1);
        relay->passed++;
    }
    if (relay->passed == PASSED)
        px_loop_stop(loop);
}

/* Nothing but credits: reading them uses `out` beside the sends in on_pass. */
static void on_credit(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct relay *relay = ctx;
    char byte;
    relay->in_used = relay->out_used = true;
    while (zmq_recv(relay->out, &byte, 1, ZMQ_DONTWAIT) == 1)
        assert_int_equal(zmq_send(relay->in, &byte, 1, 0), 1);
}

static void on_late(struct px_loop *loop, void *ctx)
{
    ((struct relay *)ctx)->late = true;
    px_loop_stop(loop);
}

/* Sends on `in`; what arrives on `out` goes back there, and only then comes the next on `in`. */
static void *feed(void *ctx)
{
    struct relay *peer = ctx;
    int sent = 0;
    char byte = 'x';
    while (sent < WINDOW)
        sent += zmq_send(peer->in, &byte, 1, 0);
    for (int back = 0; back < PASSED; back++) {
        if (zmq_recv(peer->out, &byte, 1, 0) != 1 || zmq_send(peer->out, &byte, 1, 0) != 1)
            break;
        if (sent < PASSED && back + 1 < PASSED)
            sent += zmq_recv(peer->in, &byte, 1, 0) == 1 ? zmq_send(peer->in, &byte, 1, 0) : PASSED;
    }
    return NULL;
}

static void *pair_socket(void *context, const char *endpoint, bool bind)
{
    void *socket = zmq_socket(context, ZMQ_PAIR);
    const int linger = 0, wait_ms = DEADLINE_MS;
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof linger);
    if (!bind)
        zmq_setsockopt(socket, ZMQ_RCVTIMEO, &wait_ms, sizeof wait_ms);
    assert_int_equal(bind ? zmq_bind(socket, endpoint) : zmq_connect(socket, endpoint), 0);
    return socket;
}

static void pass_all(bool told)
{
    void *context = zmq_ctx_new();
    struct relay relay = {.in = pair_socket(context, "inproc://in", true),
                          .out = pair_socket(context, "inproc://out", true)};
    struct relay peer = {.in = pair_socket(context, "inproc://in", false),
                         .out = pair_socket(context, "inproc://out", false)};
    struct px_loop *loop = px_loop_create();
    px_loop_socket(loop, (struct px_pollable){relay.in, told ? &relay.in_used : NULL, NULL},
                   on_pass, &relay);
    px_loop_socket(loop, (struct px_pollable){relay.out, told ? &relay.out_used : NULL, NULL},
                   on_credit, &relay);
    px_loop_timer(loop, DEADLINE_MS, 0, on_late, &relay);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, feed, &peer), 0);
    assert_int_equal(px_loop_run(loop, NULL), 0);
    assert_false(relay.late);
    pthread_join(thread, NULL);
    px_loop_destroy(loop);
    void *const sockets[] = {relay.in, relay.out, peer.in, peer.out};
    for (size_t i = 0; i < PX_COUNT(sockets); i++)
        zmq_close(sockets[i]);
    zmq_ctx_term(context);
}

static void no_edge_of_a_socket_is_lost(void **state)
{
    (void)state;
    pass_all(false);
    pass_all(true);
}

static void count_signal(struct px_loop *loop, int signo, void *ctx)
{
    ++*(int *)ctx;
    if (signo == SIGUSR2)
        px_loop_stop(loop);
}

static void a_hangup_that_is_ignored_stays_so(void **state)
{
    (void)state;
    int calls = 0;
    struct px_loop *loop = px_loop_create();
    void (*before)(int) = signal(SIGHUP, SIG_IGN);
    assert_int_equal(px_loop_signal(loop, SIGHUP, count_signal, &calls, NULL), 0);
    assert_int_equal(px_loop_signal(loop, SIGUSR2, count_signal, &calls, NULL), 0);
    raise(SIGHUP);
    raise(SIGUSR2); /* of two that wait, the lower comes first */
    assert_int_equal(px_loop_run(loop, NULL), 0);
    assert_int_equal(calls, 1);
    px_loop_destroy(loop);
    signal(SIGHUP, before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(timers_run_in_order),
        cmocka_unit_test(each_callback_is_settled),
        cmocka_unit_test(many_timers_keep_their_order),
        cmocka_unit_test(a_periodic_timer_cancels_itself),
        cmocka_unit_test(a_removed_watch_is_not_called),
        cmocka_unit_test(a_hangup_wakes),
        cmocka_unit_test(signals_arrive_on_the_loop),
        cmocka_unit_test(a_hangup_that_is_ignored_stays_so),
        cmocka_unit_test(no_edge_of_a_socket_is_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
