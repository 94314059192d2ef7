/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A kernel on channels in memory: requests are built as a client would, what the kernel sends is
 * kept, and the test plays the service thread.
 */
#ifndef PX_KERNEL_FIXTURE_H
#define PX_KERNEL_FIXTURE_H

#include "kernel.h"

#include <pthread.h>

#define MOST_SENT 4096

struct sent {
    enum px_channel channel;
    struct px_msg *msg;
};

struct fixture {
    struct px_session *session, *client;
    struct px_kernel *kernel;
    void *language;
    pthread_t interpreter;
    struct sent sent[MOST_SENT];
    size_t count, next; /* kept, and looked at by expect() */
    bool shut_down, running;
};

/* With `start`, the echo language serves on a thread of its own; else see fixture_start(). */
struct fixture *fixture_create(const struct px_handler *handlers, bool start);
void fixture_start(struct fixture *fixture);
/* Stops and joins the language first. */
void fixture_destroy(struct fixture *fixture);

/* Sends a request; returns its msg_id, which stays until the fixture's end. */
const char *fixture_send(struct fixture *fixture, enum px_channel channel, const char *type,
                         const char *content);
const char *fixture_execute(struct fixture *fixture, const char *code);

/* Waits for the next message: its type, and `part` somewhere in its content. Fails at a deadline.
 */
const struct px_msg *fixture_expect(struct fixture *fixture, enum px_channel channel,
                                    const char *type, const char *part);
/* Fails unless nothing more comes while the interpreter is idle. */
void fixture_expect_silence(struct fixture *fixture);
/* Waits until the language has stopped serving, and joins it. Fails at a deadline. */
void fixture_expect_end(struct fixture *fixture);

#endif
