/* SPDX-License-Identifier: BSD-3-Clause */
/* load: what the load generators share: sockets, waiting for engines, processor time and memory. */
#ifndef BENCH_LOAD_H
#define BENCH_LOAD_H

#include "wire/wire.h"

#define BENCH_WAIT_MS 300000
#define BENCH_THREADS 256

struct bench_usage {
    int tid;
    char name[32];
    long ticks;
};

/* All of these end the program with a line when they fail. */
void bench_must(int rc, const struct px_error *err);
void bench_read_files(const char *dir, struct px_cluster_connection *client,
                      struct px_cluster_connection *engine);
struct px_socket *bench_open_socket(void *context, enum px_socket_type type, const char *id,
                                    const struct px_cluster_connection *file, int port);
void bench_send(struct px_socket *socket, struct px_msg *msg);
/* Until the hub lists `count` engines; the milliseconds that took. */
int64_t bench_wait_for_engines(struct px_socket *query, struct px_session *session, int count);
/* Of a process, its threads and its children. */
size_t bench_list_usage(int pid, struct bench_usage *out);
void bench_print_usage(const struct bench_usage *before, size_t before_count,
                       const struct bench_usage *after, size_t after_count, double units,
                       const char *unit);
long bench_read_rss(int pid);
long bench_argument(int argc, char **argv, int index, long otherwise);
void bench_allow_files(void);

#endif
