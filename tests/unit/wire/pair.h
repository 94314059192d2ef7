/* SPDX-License-Identifier: BSD-3-Clause */
/* Two sockets for tests: a ROUTER that is bound, and a DEALER called "peer", not connected. */
#ifndef PX_TEST_PAIR_H
#define PX_TEST_PAIR_H

#include "../test.h"
#include "wire/wire.h"

#include <stdio.h>
#include <stdlib.h>

struct pair {
    void *context;
    struct px_socket *router, *dealer;
    char endpoint[PX_ENDPOINT_SIZE]; /* the ROUTER's */
};

static inline int pair_setup(void **state)
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

static inline int pair_teardown(void **state)
{
    struct pair *p = *state;
    px_socket_destroy(p->router);
    px_socket_destroy(p->dealer);
    px_context_destroy(p->context);
    free(p);
    return 0;
}

#endif
