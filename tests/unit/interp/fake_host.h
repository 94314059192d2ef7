/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * fake_host: a host that keeps what a language sends, for tests to look at.
 *
 * Text arrives in `text[PX_STDOUT]` and `text[PX_STDERR]`, publications as lines "kind content" in
 * `published`. A test may wait, on another thread, for a piece of output to appear.
 */
#ifndef FAKE_HOST_H
#define FAKE_HOST_H

#include <pthread.h>

#include "interp/interp.h"

struct fake_host {
    struct px_interp_host ops;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct px_buf text[2];
    struct px_buf published;
    struct px_buf owned;  /* standard output again, each piece after "request:" */
    int request;          /* the number of the request that runs */
    int parents;          /* references to requests that the language holds */
    const char *answer;   /* to input(): a line; NULL: no input here; "": wait for a signal */
    struct px_buf prompt; /* what input() asked */
    const struct px_span *buffers; /* those of the apply that runs */
    int kept;                      /* buffers that the language keeps now */
    bool idle;                     /* no cell runs */
};

void fake_host_init(struct fake_host *fake);
void fake_host_fini(struct fake_host *fake);
/* Forgets what came. */
void fake_host_clear(struct fake_host *fake);
/* Whether `piece` has been published. */
bool fake_host_has(struct fake_host *fake, const char *piece);
/* Any thread. Blocks until `piece` is in the standard output. */
void fake_host_wait(struct fake_host *fake, const char *piece);

/* Any thread. Once `piece` is in the standard output, interrupts until `idle` is set: CPython may
 * overlook a signal that comes in the instant before a system call. */
void fake_host_interrupt(struct fake_host *fake, const struct px_interp_ops *ops, void *self,
                         const char *piece);
void fake_host_set_idle(struct fake_host *fake, bool idle);

/* Runs `code` as a cell that takes part in the history; the outcome's owner finis it. */
void fake_host_run(const struct px_interp_ops *ops, void *self, const char *code,
                   struct px_outcome *out);

#endif
