/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * bench_tasks: the controller's task queue with C at both ends, so that nothing but the
 * controller is measured. N engines that answer at once live in one thread, a client that keeps
 * a window of tasks open in the other.
 *
 *     bench_tasks SECURITY_DIR PID [tasks] [engines] [window] [ENGINES_PID]
 *
 * SECURITY_DIR holds the connection files of a running controller (pxcontroller or
 * ipcontroller), PID is its process. Prints tasks a second and, for each of its threads and
 * children, CPU microseconds a task, and its resident memory at each tenth of the way. A reply that
 * is not "ok" is a failure: they are counted, the first is shown, and the exit code is 1. With
 * ENGINES_PID, a pxengine whose children are that many engines, no engines are made here: the tasks
 * are calls that these run.
 */
#include "engines.h"
#include "load.h"
#include "protocol.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Pickles (protocol 4) of the function dict and of {"nargs": 0, "narg_bufs": 0, "kw_keys": []}: a
 * call without arguments, for engines that really run it. */
static const unsigned char function[] = {
    0x80, 0x04, 0x95, 0x15, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x8c, 0x08, 0x62, 0x75, 0x69,
    0x6c, 0x74, 0x69, 0x6e, 0x73, 0x94, 0x8c, 0x04, 0x64, 0x69, 0x63, 0x74, 0x94, 0x93, 0x94, 0x2e};
static const unsigned char arguments[] = {
    0x80, 0x04, 0x95, 0x29, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x7d, 0x94,
    0x28, 0x8c, 0x05, 0x6e, 0x61, 0x72, 0x67, 0x73, 0x94, 0x4b, 0x00, 0x8c, 0x09,
    0x6e, 0x61, 0x72, 0x67, 0x5f, 0x62, 0x75, 0x66, 0x73, 0x94, 0x4b, 0x00, 0x8c,
    0x07, 0x6b, 0x77, 0x5f, 0x6b, 0x65, 0x79, 0x73, 0x94, 0x5d, 0x94, 0x75, 0x2e};

static void submit(struct px_socket *socket, struct px_session *session)
{
    struct px_draft draft = {
        .type = PX_APPLY_REQUEST,
        .metadata = PX_SPAN("{\"after\": [], \"follow\": [], \"timeout\": 0.0, \"targets\": [], "
                            "\"retries\": 0, \"px_quiet\": true}")};
    struct px_msg *msg = px_session_build(session, &draft);
    px_msg_append(msg, function, sizeof(function));
    px_msg_append(msg, arguments, sizeof(arguments));
    bench_send(socket, msg);
}

/* 1 for a reply that says anything but ok. */
static long is_failure(const struct px_msg *msg)
{
    static const char *const key = "status";
    struct px_span value, word;
    if (px_scan(px_msg_content(msg), &key, &value, 1) == 0 && px_scan_string(value, &word) &&
        px_span_equal(word, "ok"))
        return 0;
    return 1;
}

static void show_failure(const struct px_msg *msg)
{
    struct px_span metadata = px_msg_metadata(msg), content = px_msg_content(msg);
    fprintf(stderr, "bench_tasks: a task failed: %.*s %.*s\n", (int)metadata.size, metadata.data,
            (int)content.size, content.data);
}

/* Returns how many failed. */
static long run_tasks(struct px_socket *socket, struct px_session *session, long tasks, long window,
                      int watched)
{
    long sent = 0, done = 0, failed = 0, tenth = tasks / 10 + 1;
    while (done < tasks) {
        while (sent < tasks && sent - done < window) {
            submit(socket, session);
            sent++;
        }
        if (!px_socket_wait(socket, BENCH_WAIT_MS))
            px_die(1, "no reply: %ld of %ld done", done, tasks);
        struct px_msg *msg;
        while ((msg = px_socket_recv(socket)) != NULL) {
            struct px_error err;
            bench_must(px_msg_locate(msg, &err), &err);
            bench_must(px_session_verify(session, msg, &err), &err);
            if (is_failure(msg) && failed++ == 0)
                show_failure(msg);
            px_msg_destroy(msg);
            if (++done % tenth == 0 && watched != 0)
                printf("  after %9ld tasks: memory %ld kB\n", done, bench_read_rss(watched));
        }
    }
    return failed;
}

int main(int argc, char **argv)
{
    static struct bench_usage before[BENCH_THREADS], after[BENCH_THREADS];
    static struct bench_usage engines_before[BENCH_THREADS], engines_after[BENCH_THREADS];
    struct px_error err;
    if (argc < 3)
        px_die(2, "usage: bench_tasks SECURITY_DIR PID [tasks] [engines] [window] [ENGINES_PID]");
    int pid = atoi(argv[2]), engines_pid = (int)bench_argument(argc, argv, 6, 0);
    long tasks = bench_argument(argc, argv, 3, 100000);
    long window = bench_argument(argc, argv, 5, 1000);
    struct bench_engines engines = {.count = (int)bench_argument(argc, argv, 4, 4),
                                    .work = BENCH_TASKS};
    struct px_cluster_connection file;
    bench_read_files(argv[1], &file, &engines.file);
    bench_allow_files();

    void *context = px_context_create(1);
    struct px_session *session = px_session_create(file.key, file.signature_scheme, NULL, &err);
    struct px_socket *query = bench_open_socket(context, PX_DEALER, NULL, &file, file.registration);
    struct px_socket *task = bench_open_socket(context, PX_DEALER, NULL, &file, file.task);
    printf("idle resident memory %ld kB\n", bench_read_rss(pid));
    if (engines_pid == 0)
        bench_engines_start(&engines);
    printf("%d engines registered in %lld ms\n", engines.count,
           (long long)bench_wait_for_engines(query, session, engines.count));
    long failed = run_tasks(task, session, tasks / 10 + engines.count, window, 0); /* warm up */
    size_t before_count = bench_list_usage(pid, before);
    size_t engines_before_count = engines_pid ? bench_list_usage(engines_pid, engines_before) : 0;
    long rss = bench_read_rss(pid);
    int64_t start_ns = px_now_ns();
    failed += run_tasks(task, session, tasks, window, pid);
    double seconds = (double)(px_now_ns() - start_ns) / 1e9;
    size_t after_count = bench_list_usage(pid, after);
    size_t engines_after_count = engines_pid ? bench_list_usage(engines_pid, engines_after) : 0;
    printf("%ld tasks, %d engines, window %ld: %.0f tasks/s\n", tasks, engines.count, window,
           (double)tasks / seconds);
    bench_print_usage(before, before_count, after, after_count, (double)tasks, "task");
    if (engines_pid != 0)
        bench_print_usage(engines_before, engines_before_count, engines_after, engines_after_count,
                          (double)tasks, "task");
    printf("  memory %ld kB, %+ld kB over the run\n", bench_read_rss(pid),
           bench_read_rss(pid) - rss);
    printf("  %ld failed\n", failed);
    fflush(stdout);
    _exit(failed > 0); /* the engines' thread never ends by itself */
}
