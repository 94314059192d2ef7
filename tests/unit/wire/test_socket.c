/* SPDX-License-Identifier: BSD-3-Clause */
/* Sockets: what a sender learns, what a receiver is spared. */
#include "pair.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

#define DEADLINE_MS 10000

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
    assert_int_equal(px_socket_oversized(p->router), 1);
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

static struct px_socket *subscriber(struct pair *p, const char *endpoint)
{
    struct px_socket *socket = px_socket_create(p->context, PX_SUB, NULL);
    px_socket_set_hwm(socket, 1);
    px_socket_set_linger(socket, 0);
    px_socket_subscribe(socket, "");
    assert_int_equal(px_socket_connect(socket, endpoint, NULL), 0);
    return socket;
}

static size_t take_all(struct px_socket *socket)
{
    size_t count = 0;
    for (struct px_msg *msg; (msg = px_socket_recv(socket)); count++)
        px_msg_destroy(msg);
    return count;
}

/* One does not read: the sender hears of it, and the other gets everything. */
static void a_slow_subscriber_alone_goes_without(void **state)
{
    struct pair *p = *state;
    char text[10000] = {0}, *endpoint;
    struct px_socket *publisher = px_socket_create(p->context, PX_XPUB, NULL);
    int port = 0;
    px_socket_set_bounded(publisher, 200); /* libzmq looks for room once a millisecond */
    px_socket_set_linger(publisher, 0);
    assert_int_equal(px_socket_bind_port(publisher, "tcp://127.0.0.1", &port, NULL), 0);
    endpoint = px_format("tcp://127.0.0.1:%d", port);
    struct px_socket *slow = subscriber(p, endpoint), *quick = subscriber(p, endpoint);
    for (size_t seen = 0; seen < 2; seen += take_all(publisher))
        assert_true(px_socket_wait(publisher, DEADLINE_MS));
    size_t sent = 0, got = 0;
    enum px_sent how = PX_SENT;
    /* What fits between two sockets is libzmq's and the system's business; it is not endless. */
    while (how == PX_SENT && sent < 100000) {
        struct px_msg *msg = px_msg_create();
        px_msg_append(msg, "topic", 5);
        px_msg_append(msg, text, sizeof text);
        how = px_socket_offer(publisher, &msg);
        if (how == PX_WOULD_BLOCK) { /* it is whole */
            assert_int_equal(px_msg_count(msg), 2);
            how = px_socket_send(publisher, &msg);
        }
        assert_null(msg);
        sent++;
        while (got < sent) {
            assert_true(px_socket_wait(quick, DEADLINE_MS));
            got += take_all(quick);
        }
    }
    assert_int_equal(how, PX_SENT_TO_SOME);
    assert_true(px_socket_wait(slow, DEADLINE_MS));
    px_socket_destroy(slow);
    px_socket_destroy(quick);
    px_socket_destroy(publisher);
    free(endpoint);
}

/* Whoever can connect may subscribe. */
static void a_topic_has_a_length(void **state)
{
    struct pair *p = *state;
    char topics[2][5001] = {0};
    struct px_socket *publisher = px_socket_create(p->context, PX_XPUB, NULL), *subscribers[2];
    int port = 0;
    assert_int_equal(px_socket_bind_port(publisher, "tcp://127.0.0.1", &port, NULL), 0);
    char *endpoint = px_format("tcp://127.0.0.1:%d", port);
    memset(topics[0], 'x', 5000);
    memset(topics[1], 'y', 200);
    for (size_t i = 0; i < 2; i++) {
        subscribers[i] = px_socket_create(p->context, PX_SUB, NULL);
        px_socket_subscribe(subscribers[i], topics[i]);
        assert_int_equal(px_socket_connect(subscribers[i], endpoint, NULL), 0);
    }
    size_t longest = 0, count = 0;
    while (px_socket_wait(publisher, count ? 300 : DEADLINE_MS)) {
        struct px_msg *msg = px_socket_recv(publisher);
        const size_t size = msg ? px_msg_frame(msg, 0).size : 0;
        longest = size > longest ? size : longest;
        count += msg != NULL;
        px_msg_destroy(msg);
    }
    px_socket_destroy(subscribers[0]);
    px_socket_destroy(subscribers[1]);
    px_socket_destroy(publisher);
    free(endpoint);
    assert_int_equal(count, 1);
    assert_int_equal(longest, 1 + 200);
}

/* What libzmq would do: who has bound it already would hear nothing any more. */
static void a_name_that_is_taken_is_not_chosen(void **state)
{
    struct pair *p = *state;
    enum { TAKEN = 8192, CHOSEN = 100 };
    struct px_socket *sockets[CHOSEN];
    char folder[] = "/tmp/px-names-XXXXXX";
    int least = INT_MAX, ports[CHOSEN] = {0};
    assert_non_null(mkdtemp(folder));
    char *interface = px_format("ipc://%s/s", folder);
    for (int i = 1; i <= TAKEN; i++) {
        char *name = px_format("%s/s-%d", folder, i);
        close(open(name, O_CREAT | O_WRONLY, 0600));
        free(name);
    }
    for (int i = 0; i < CHOSEN; i++) {
        sockets[i] = px_socket_create(p->context, PX_PUB, NULL);
        assert_int_equal(px_socket_bind_port(sockets[i], interface, &ports[i], NULL), 0);
        least = ports[i] < least ? ports[i] : least;
    }
    for (int i = 0; i < CHOSEN; i++)
        px_socket_destroy(sockets[i]);
    for (int i = 0; i < TAKEN + CHOSEN; i++) { /* libzmq leaves the names of its sockets */
        char *name = px_format("%s/s-%d", folder, i < TAKEN ? i + 1 : ports[i - TAKEN]);
        unlink(name);
        free(name);
    }
    free(interface);
    rmdir(folder);
    assert_true(least > TAKEN);
}

static int option(struct px_socket *socket, int which)
{
    int value = -1;
    size_t size = sizeof value;
    assert_int_equal(zmq_getsockopt(px_socket_raw(socket), which, &value, &size), 0);
    return value;
}

/* A peer that may be suspended is not watched; one that is has time, and not for ever. */
static void silence_is_bounded_when_asked(void **state)
{
    struct pair *p = *state;
    assert_int_equal(option(p->router, ZMQ_HEARTBEAT_IVL), 0);
    px_socket_set_heartbeat(p->router, 0);
    assert_int_equal(option(p->router, ZMQ_HEARTBEAT_IVL), 0);
    assert_int_equal(option(p->router, ZMQ_TCP_KEEPALIVE), 1);
    px_socket_set_heartbeat(p->router, 1);
    px_socket_set_heartbeat(p->dealer, INT64_MAX);
    const int beat = option(p->router, ZMQ_HEARTBEAT_IVL);
    assert_between(beat, 10000, 60000);
    assert_true(option(p->router, ZMQ_HEARTBEAT_TIMEOUT) >= 2 * beat);
    assert_true(option(p->dealer, ZMQ_HEARTBEAT_TIMEOUT) > 3600 * 1000);
    /* What libzmq makes of it is 16 bits wide. */
    assert_int_equal(option(p->router, ZMQ_HEARTBEAT_TTL), 0);
    assert_int_equal(option(p->dealer, ZMQ_HEARTBEAT_TTL), 0);
}

static void post(struct px_socket *socket, const char *word)
{
    struct px_msg *msg = px_msg_create();
    px_msg_append(msg, word, strlen(word));
    assert_int_equal(px_socket_send(socket, &msg), PX_SENT);
}

static void expect_posted(struct px_socket *router, const char *word)
{
    assert_true(px_socket_wait(router, DEADLINE_MS));
    struct px_msg *msg = px_socket_recv(router);
    assert_non_null(msg);
    assert_span_equal(px_msg_frame(msg, 1), word);
    px_msg_destroy(msg);
}

static void expect_event(struct px_socket *monitor, bool lost)
{
    assert_true(px_socket_wait(monitor, DEADLINE_MS));
    struct px_msg *event = px_socket_recv(monitor);
    assert_non_null(event);
    assert_int_equal(px_monitor_says_lost(event), lost);
    px_msg_destroy(event);
}

/* Somebody else's, in this process. */
static int connect_plainly(int port)
{
    const struct sockaddr_in address = {.sin_family = AF_INET,
                                        .sin_port = htons((uint16_t)port),
                                        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static void what_is_cut_connects_anew(void **state)
{
    struct pair *p = *state;
    const int port = atoi(strrchr(p->endpoint, ':') + 1), others[] = {1, 2};
    struct sockaddr_in peer;
    socklen_t size = sizeof peer;
    px_socket_set_handover(p->router); /* it may not have done with the one before */
    assert_int_equal(px_socket_connect_wait(p->dealer, p->endpoint, DEADLINE_MS, NULL), 0);
    struct px_socket *monitor = px_socket_monitor(p->dealer, NULL);
    const int foreign = connect_plainly(port);
    post(p->dealer, "before");
    expect_posted(p->router, "before");
    assert_int_equal(px_connections_cut(others, PX_COUNT(others)), 0);
    assert_int_equal(px_connections_cut(&port, 1), 1);
    expect_event(monitor, true);
    post(p->dealer, "meanwhile");
    expect_event(monitor, false);
    expect_posted(p->router, "meanwhile");
    assert_int_equal(getpeername(foreign, (struct sockaddr *)&peer, &size), 0);
    close(foreign);
    px_socket_destroy(monitor);
}

/* It must not take what is the parent's. */
static void a_forked_child_is_known(void **state)
{
    struct pair *p = *state;
    int events, status;
    size_t size = sizeof events;
    px_pid_keep();
    const pid_t child = fork();
    if (child == 0)
        _exit(zmq_getsockopt(px_socket_raw(p->router), ZMQ_EVENTS, &events, &size) < 0 &&
                      errno == EINTR
                  ? 0
                  : 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(zmq_getsockopt(px_socket_raw(p->router), ZMQ_EVENTS, &events, &size), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_router_says_when_nobody_is_there, pair_setup,
                                        pair_teardown),
        cmocka_unit_test_setup_teardown(a_message_of_too_many_frames_is_dropped_whole, pair_setup,
                                        pair_teardown),
        cmocka_unit_test_setup_teardown(addresses_are_refused_with_a_reason, pair_setup,
                                        pair_teardown),
        cmocka_unit_test_setup_teardown(waiting_for_nobody_ends, pair_setup, pair_teardown),
        cmocka_unit_test_setup_teardown(silence_is_bounded_when_asked, pair_setup, pair_teardown),
        cmocka_unit_test_setup_teardown(a_topic_has_a_length, pair_setup, pair_teardown),
        cmocka_unit_test_setup_teardown(a_name_that_is_taken_is_not_chosen, pair_setup,
                                        pair_teardown),
        cmocka_unit_test_setup_teardown(a_slow_subscriber_alone_goes_without, pair_setup,
                                        pair_teardown),
        cmocka_unit_test_setup_teardown(what_is_cut_connects_anew, pair_setup, pair_teardown),
        cmocka_unit_test_setup_teardown(a_forked_child_is_known, pair_setup, pair_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
