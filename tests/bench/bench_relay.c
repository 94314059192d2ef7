/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * bench_relay: what the controller's relays do with C at both ends.
 *
 *     bench_relay SECURITY_DIR PID frames [MB] [count]
 *         messages with one large buffer through mux, GB/s, next to memcpy
 *     bench_relay SECURITY_DIR PID many [engines] [seconds]
 *         registration of many engines, the cost of their heartbeats, a broadcast to all
 *
 * SECURITY_DIR and PID are those of a running pxcontroller or ipcontroller.
 */
#include "engines.h"
#include "load.h"
#include "protocol.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct bench {
    int pid;
    void *context;
    struct px_cluster_connection file;
    struct px_session *session;
    struct px_socket *query;
    struct bench_engines engines;
};

static void start(struct bench *bench, int engines, unsigned work)
{
    bench->engines.work = work;
    bench->engines.count = engines;
    int64_t start_ns = px_now_ns();
    bench_engines_start(&bench->engines);
    bench_wait_for_engines(bench->query, bench->session, engines);
    printf("%d engines registered in %lld ms, controller's memory %ld kB\n", engines,
           (long long)(px_now_ns() - start_ns) / 1000000, bench_read_rss(bench->pid));
}

/* Waits for that many replies, verified. */
static void collect(struct bench *bench, struct px_socket *socket, long count)
{
    while (count > 0) {
        if (!px_socket_wait(socket, BENCH_WAIT_MS))
            px_die(1, "%ld replies are missing", count);
        struct px_msg *msg;
        while ((msg = px_socket_recv(socket)) != NULL) {
            struct px_error err;
            bench_must(px_msg_locate(msg, &err), &err);
            bench_must(px_session_verify(bench->session, msg, &err), &err);
            px_msg_destroy(msg);
            count--;
        }
    }
}

/* ---- large frames ---------------------------------------------------------- */

static void keep(void *data, void *hint)
{
    (void)data, (void)hint;
}

static double send_frames(struct bench *bench, struct px_socket *mux, char *data, size_t size,
                          int count)
{
    const char *uuid = bench_engine_uuid(&bench->engines, 0);
    struct px_span ident = px_span_of(uuid);
    struct px_draft draft = {.idents = &ident, .ident_count = 1, .type = PX_APPLY_REQUEST};
    int64_t start_ns = px_now_ns();
    for (int i = 0; i < count; i++) {
        struct px_msg *msg = px_session_build(bench->session, &draft);
        px_msg_append_new(msg, data, size, keep, NULL);
        bench_send(mux, msg);
        collect(bench, mux, 1);
    }
    return (double)(px_now_ns() - start_ns) / 1e9;
}

static double copy_speed(const char *data, size_t size)
{
    char *to = px_alloc(size);
    memcpy(to, data, size); /* its pages are there afterwards */
    int64_t start_ns = px_now_ns();
    memcpy(to, data, size);
    double seconds = (double)(px_now_ns() - start_ns) / 1e9;
    volatile char used = to[size / 2];
    (void)used;
    free(to);
    return (double)size / seconds / 1e9;
}

static void frames(struct bench *bench, int mb, int count)
{
    size_t size = (size_t)mb * 1000000;
    char *data = px_alloc(size);
    memset(data, 7, size);
    start(bench, 1, BENCH_MUX);
    struct px_socket *mux =
        bench_open_socket(bench->context, PX_DEALER, NULL, &bench->file, bench->file.mux);
    static struct bench_usage before[BENCH_THREADS], after[BENCH_THREADS];
    send_frames(bench, mux, data, size, 2);
    size_t before_count = bench_list_usage(bench->pid, before);
    double seconds = send_frames(bench, mux, data, size, count);
    size_t after_count = bench_list_usage(bench->pid, after);
    printf("%d messages of %d MB through mux: %.2f GB/s, memcpy %.2f GB/s\n", count, mb,
           (double)size * count / seconds / 1e9, copy_speed(data, size));
    bench_print_usage(before, before_count, after, after_count, (double)mb * count, "MB");
    printf("  controller's memory %ld kB\n", bench_read_rss(bench->pid));
}

/* ---- many engines ---------------------------------------------------------- */

static void beats(struct bench *bench, int seconds)
{
    static struct bench_usage before[BENCH_THREADS], after[BENCH_THREADS];
    size_t before_count = bench_list_usage(bench->pid, before);
    unsigned long beaten = atomic_load(&bench->engines.beats);
    poll(NULL, 0, seconds * 1000);
    size_t after_count = bench_list_usage(bench->pid, after);
    beaten = atomic_load(&bench->engines.beats) - beaten;
    printf("%lu heartbeats in %d s\n", beaten, seconds);
    if (beaten > 0)
        bench_print_usage(before, before_count, after, after_count, (double)beaten, "beat");
}

static char *targets_of(const struct bench *bench, bool coalescing)
{
    struct px_buf out = {0};
    px_buf_text(&out, "{\"targets\": [");
    for (int i = 0; i < bench->engines.count; i++)
        px_buf_printf(&out, "%s[\"%s\", %d]", i ? ", " : "", bench_engine_uuid(&bench->engines, i),
                      bench_engine_id(&bench->engines, i));
    px_buf_printf(&out, "], \"is_broadcast\": true, \"is_coalescing\": %s}",
                  coalescing ? "true" : "false");
    return out.data;
}

static void broadcast(struct bench *bench, bool coalescing)
{
    struct px_socket *socket =
        bench_open_socket(bench->context, PX_DEALER, NULL, &bench->file, bench->file.broadcast[0]);
    char *metadata = targets_of(bench, coalescing);
    struct px_draft draft = {.type = PX_APPLY_REQUEST, .metadata = px_span_of(metadata)};
    for (int round = 0; round < 3; round++) {
        int64_t start_ns = px_now_ns();
        bench_send(socket, px_session_build(bench->session, &draft));
        collect(bench, socket, coalescing ? 1 : bench->engines.count);
        double ms = (double)(px_now_ns() - start_ns) / 1e6;
        printf("%s broadcast to %d and back: %.1f ms, %.1f us an engine\n",
               coalescing ? "coalescing" : "plain", bench->engines.count, ms,
               ms * 1000 / bench->engines.count);
    }
    free(metadata);
    px_socket_destroy(socket);
}

static void many(struct bench *bench, int engines, int seconds)
{
    start(bench, engines, BENCH_BROADCAST);
    beats(bench, seconds);
    broadcast(bench, false);
    broadcast(bench, true);
}

int main(int argc, char **argv)
{
    struct px_error err;
    struct bench bench = {.context = px_context_create(1)};
    if (argc < 4)
        px_die(2, "usage: bench_relay SECURITY_DIR PID frames [MB] [count] | many [engines] [s]");
    bench.pid = atoi(argv[2]);
    bench_read_files(argv[1], &bench.file, &bench.engines.file);
    bench_allow_files();
    bench.session = px_session_create(bench.file.key, bench.file.signature_scheme, NULL, &err);
    bench.query =
        bench_open_socket(bench.context, PX_DEALER, NULL, &bench.file, bench.file.registration);
    if (strcmp(argv[3], "frames") == 0)
        frames(&bench, (int)bench_argument(argc, argv, 4, 100),
               (int)bench_argument(argc, argv, 5, 10));
    else
        many(&bench, (int)bench_argument(argc, argv, 4, 1000),
             (int)bench_argument(argc, argv, 5, 10));
    fflush(stdout);
    _exit(0); /* the engines' thread never ends by itself */
}
