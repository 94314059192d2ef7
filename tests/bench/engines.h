/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * engines: thousands of engines that answer at once, on one thread, for load.
 *
 * A libzmq socket costs two descriptors and a place in every poll; these speak ZMTP 3.0 (the wire
 * of libzmq 4) over plain TCP and epoll, one descriptor a connection. Each registers, beats, and
 * answers whatever comes from the task queue, mux or broadcast with an apply_reply of one small
 * buffer; large buffers are read and dropped.
 */
#ifndef BENCH_ENGINES_H
#define BENCH_ENGINES_H

#include "wire/wire.h"

#include <stdatomic.h>

enum { BENCH_TASKS = 1, BENCH_MUX = 2, BENCH_BROADCAST = 4 };

struct bench_engines {
    struct px_cluster_connection file;
    int count;
    unsigned work; /* where from: BENCH_TASKS, … */
    atomic_int registered;
    atomic_ulong answered, beats;
    struct px_session *session;
    struct bench_engine *list;
    int epoll;
};

/* Starts the thread, which ends with the process. Dies with a message when it cannot. */
void bench_engines_start(struct bench_engines *engines);
int bench_engine_id(const struct bench_engines *engines, int index);
const char *bench_engine_uuid(const struct bench_engines *engines, int index);

#endif
