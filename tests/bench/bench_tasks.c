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
 * children, CPU microseconds a task. With ENGINES_PID, a pxengine whose children are that many
 * engines, no engines are made here: the tasks are calls that these run.
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

static void run_tasks(struct px_socket *socket, struct px_session *session, long tasks, long window)
{
    long sent = 0, done = 0;
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
            px_msg_destroy(msg);
            done++;
        }
    }
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
    run_tasks(task, session, tasks / 10 + engines.count, window); /* warm up */
    size_t before_count = bench_list_usage(pid, before);
    size_t engines_before_count = engines_pid ? bench_list_usage(engines_pid, engines_before) : 0;
    long rss = bench_read_rss(pid);
    int64_t start_ns = px_now_ns();
    run_tasks(task, session, tasks, window);
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
    fflush(stdout);
    _exit(0); /* the engines' thread never ends by itself */
}
