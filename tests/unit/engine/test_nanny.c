/* SPDX-License-Identifier: BSD-3-Clause */
/* The nanny's side of a pipe, and the hub's side of a socket. */
#include "engine/engine.h"

#include "../test.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEADLINE_MS 20000
#define NOT_KNOWN(id) "{\"id\": " #id ", \"px\": {\"cause\": \"unknown\", \"running\": null}}"

struct world {
    void *context;
    struct px_socket *hub;
    struct px_session *session;
    struct px_cluster_connection connection;
    pid_t nanny;
    int fd;
};

/* A port that nobody else gets until libzmq has bound it, too (SO_REUSEADDR). */
static int reserve(int *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    const int fd = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes), 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, size), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    *port = ntohs(address.sin_port);
    return fd;
}

/* As in a fork server, the nanny is there before libzmq's threads are: one of them may hold a lock
 * of malloc's at a fork. */
static int create(void **state)
{
    struct world *world = px_alloc(sizeof *world);
    int port;
    const int reserved = reserve(&port);
    world->connection = (struct px_cluster_connection){.interface = px_strdup("tcp://127.0.0.1"),
                                                       .location = px_strdup("localhost"),
                                                       .key = px_strdup("key"),
                                                       .registration = port};
    world->fd = px_nanny_start(&world->connection, &world->nanny, NULL);
    assert_true(world->fd >= 0);
    world->session = px_session_create("key", NULL, NULL, NULL);
    world->context = px_context_create(1);
    world->hub = px_socket_create(world->context, PX_ROUTER, NULL);
    assert_int_equal(px_socket_bind_port(world->hub, "tcp://127.0.0.1", &port, NULL), 0);
    close(reserved);
    *state = world;
    return 0;
}

static int destroy(void **state)
{
    struct world *world = *state;
    if (world->fd >= 0)
        close(world->fd);
    px_socket_destroy(world->hub);
    px_context_destroy(world->context);
    px_session_destroy(world->session);
    px_cluster_connection_fini(&world->connection);
    free(world);
    return 0;
}

static void tell(struct world *world, const char *lines)
{
    assert_int_equal(write(world->fd, lines, strlen(lines)), strlen(lines));
}

static void expect(struct world *world, const char *content)
{
    struct px_header header;
    assert_true(px_socket_wait(world->hub, DEADLINE_MS));
    struct px_msg *msg = px_socket_recv(world->hub);
    assert_int_equal(px_msg_locate(msg, NULL), 0);
    assert_int_equal(px_session_verify(world->session, msg, NULL), 0);
    assert_int_equal(px_header_scan(px_msg_header(msg), &header, NULL), 0);
    assert_span_equal(header.msg_type, "unregistration_request");
    assert_span_equal(px_msg_content(msg), content);
    px_msg_destroy(msg);
}

static void expect_end(struct world *world)
{
    int status;
    assert_int_equal(waitpid(world->nanny, &status, 0), world->nanny);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void a_death_is_reported_at_once(void **state)
{
    struct world *world = *state;
    tell(world, "+3\n+4\n-3 a_1_2 0 killed by SIGSEGV, in f (x \"y\":3)\n");
    expect(world, "{\"id\": 3, \"px\": {\"cause\": \"killed by SIGSEGV, in f (x \\\"y\\\":3)\", "
                  "\"running\": \"a_1_2\"}}");
    tell(world, "+5\n-4 - 0 exit status 3\n-5 a_1_3 18 exit status 4\n");
    expect(world, "{\"id\": 4, \"px\": {\"cause\": \"exit status 3\", \"running\": null}}");
    expect(world, "{\"id\": 5, \"px\": {\"cause\": \"exit status 4\", \"running\": \"a_1_3\", "
                  "\"begun\": 18}}");
    close(world->fd);
    world->fd = -1;
    expect_end(world);
}

static void those_left_are_reported_at_the_end(void **state)
{
    struct world *world = *state;
    tell(world, "+7\n+8\n-9\n=8\n"); /* 9 is not known, 8 spoke for itself */
    close(world->fd);
    world->fd = -1;
    expect(world, "{\"id\": 7, \"px\": {\"cause\": \"the fork server that kept it has died\", "
                  "\"running\": null}}");
    expect_end(world);
}

static void signals_to_the_group_do_not_end_it(void **state)
{
    struct world *world = *state;
    tell(world, "+1\n-1 -\n");
    expect(world, NOT_KNOWN(1)); /* it has set itself up by now */
    assert_int_equal(kill(world->nanny, SIGTERM), 0);
    assert_int_equal(kill(world->nanny, SIGINT), 0);
    tell(world, "+2\n-2 -\n");
    expect(world, NOT_KNOWN(2));
    close(world->fd);
    world->fd = -1;
    expect_end(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_death_is_reported_at_once, create, destroy),
        cmocka_unit_test_setup_teardown(those_left_are_reported_at_the_end, create, destroy),
        cmocka_unit_test_setup_teardown(signals_to_the_group_do_not_end_it, create, destroy),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
