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
#include "wire/wire.h"

#include "loop/loop.h"
#include "protocol.h"

#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WAIT_MS 60000
#define MAX_THREADS 256

struct engine {
    struct engines *all;
    char uuid[PX_ID_SIZE];
    struct px_session *session;
    struct px_socket *registrar, *shell, *ping, *pong;
};

struct engines {
    struct px_loop *loop;
    void *context;
    struct px_cluster_connection file;
    struct engine *list;
    int count;
    unsigned long answered;
};

static void must(int rc, const struct px_error *err)
{
    if (rc != 0)
        px_die(1, "%s", err->text);
}

static struct px_socket *open_socket(void *context, enum px_socket_type type, const char *id,
                                     const struct px_cluster_connection *file, int port)
{
    struct px_error err;
    char endpoint[PX_ENDPOINT_SIZE];
    struct px_socket *socket = px_socket_create(context, type, &err);
    if (socket == NULL)
        px_die(1, "%s", err.text);
    if (id != NULL)
        px_socket_set_identity(socket, id);
    if (type == PX_SUB)
        px_socket_subscribe(socket, "");
    must(px_cluster_endpoint(file, port, endpoint, &err), &err);
    must(px_socket_connect(socket, endpoint, &err), &err);
    return socket;
}

static void send_now(struct px_socket *socket, struct px_msg *msg)
{
    if (px_socket_send(socket, &msg) != PX_SENT)
        px_msg_destroy(msg);
}

/* ---- engines --------------------------------------------------------------- */

static void on_task(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct engine *engine = ctx;
    struct px_msg *msg;
    struct px_buf metadata = {0};
    for (int i = 0; i < PX_LOOP_BATCH && (msg = px_socket_recv(engine->shell)) != NULL; i++) {
        struct px_error err;
        must(px_msg_locate(msg, &err), &err);
        must(px_session_verify(engine->session, msg, &err), &err);
        char date[PX_DATE_SIZE];
        px_date_now(date);
        px_buf_clear(&metadata);
        px_buf_printf(&metadata,
                      "{\"started\": \"%s\", \"dependencies_met\": true, "
                      "\"engine\": \"%s\", \"is_broadcast\": false, \"is_coalescing\": false, "
                      "\"original_msg_id\": \"\", \"status\": \"ok\"}",
                      date, engine->uuid);
        struct px_draft draft = {.idents_of = msg,
                                 .type = PX_APPLY_REPLY,
                                 .parent = px_msg_header(msg),
                                 .metadata = px_buf_span(&metadata),
                                 .content = PX_SPAN("{\"status\": \"ok\"}")};
        struct px_msg *reply = px_session_build(engine->session, &draft);
        px_msg_append(reply, "\x80\x04K*.", 5);
        send_now(engine->shell, reply);
        px_msg_destroy(msg);
        engine->all->answered++;
    }
    px_buf_fini(&metadata);
}

static void on_ping(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct engine *engine = ctx;
    struct px_msg *msg;
    for (int i = 0; i < PX_LOOP_BATCH && (msg = px_socket_recv(engine->ping)) != NULL; i++)
        send_now(engine->pong, msg);
}

static void on_registered(struct px_loop *loop, void *ctx)
{
    struct engine *engine = ctx;
    const struct px_cluster_connection *file = &engine->all->file;
    void *context = engine->all->context;
    struct px_msg *msg = px_socket_recv(engine->registrar);
    if (msg == NULL)
        return;
    px_msg_destroy(msg);
    engine->shell = open_socket(context, PX_ROUTER, engine->uuid, file, file->task);
    engine->pong = open_socket(context, PX_DEALER, engine->uuid, file, file->hb_pong);
    engine->ping = open_socket(context, PX_SUB, NULL, file, file->hb_ping);
    px_loop_socket(loop, px_socket_pollable(engine->shell), on_task, engine);
    px_loop_socket(loop, px_socket_pollable(engine->ping), on_ping, engine);
}

static void start_engine(struct engines *engines, struct engine *engine)
{
    struct px_error err;
    engine->all = engines;
    px_id_random(engine->uuid);
    engine->session =
        px_session_create(engines->file.key, engines->file.signature_scheme, engine->uuid, &err);
    engine->registrar = open_socket(engines->context, PX_DEALER, engine->uuid, &engines->file,
                                    engines->file.registration);
    char *content =
        px_format("{\"uuid\": \"%s\", \"px\": {\"features\": [\"recall\"]}}", engine->uuid);
    struct px_draft draft = {.type = PX_REGISTRATION_REQUEST, .content = px_span_of(content)};
    send_now(engine->registrar, px_session_build(engine->session, &draft));
    free(content);
    px_loop_socket(engines->loop, px_socket_pollable(engine->registrar), on_registered, engine);
}

static void *engines_thread(void *ctx)
{
    struct engines *engines = ctx;
    struct px_error err;
    engines->loop = px_loop_create(&err);
    for (int i = 0; i < engines->count; i++)
        start_engine(engines, &engines->list[i]);
    must(px_loop_run(engines->loop, &err), &err);
    return NULL;
}

/* ---- CPU time of a process, its threads and its children ------------------- */

struct usage {
    int tid;
    char name[32];
    long ticks;
};

static int read_stat(const char *path, struct usage *out)
{
    FILE *file = fopen(path, "r");
    long user, system;
    int parent = -1;
    if (file == NULL)
        return -1;
    int got = fscanf(file, "%d (%31[^)]) %*c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %ld %ld",
                     &out->tid, out->name, &parent, &user, &system);
    fclose(file);
    out->ticks = got == 5 ? user + system : 0;
    return got == 5 ? parent : -1;
}

static size_t list_threads(int pid, struct usage *out, size_t count)
{
    char path[512];
    snprintf(path, sizeof(path), "/proc/%d/task", pid);
    DIR *dir = opendir(path);
    const struct dirent *entry;
    while (dir != NULL && (entry = readdir(dir)) != NULL && count < MAX_THREADS) {
        snprintf(path, sizeof(path), "/proc/%d/task/%.20s/stat", pid, entry->d_name);
        if (entry->d_name[0] != '.' && read_stat(path, &out[count]) >= 0)
            count++;
    }
    if (dir != NULL)
        closedir(dir);
    return count;
}

static size_t list_usage(int pid, struct usage *out)
{
    size_t count = list_threads(pid, out, 0);
    DIR *dir = opendir("/proc");
    const struct dirent *entry;
    while (dir != NULL && (entry = readdir(dir)) != NULL && count < MAX_THREADS) {
        struct usage one;
        char path[64];
        int child = atoi(entry->d_name);
        snprintf(path, sizeof(path), "/proc/%d/stat", child);
        if (child > 0 && read_stat(path, &one) == pid)
            count = list_threads(child, out, count);
    }
    if (dir != NULL)
        closedir(dir);
    return count;
}

static void print_usage(const struct usage *before, size_t before_count, const struct usage *after,
                        size_t after_count, long tasks)
{
    double tick_us = 1e6 / (double)sysconf(_SC_CLK_TCK), sum = 0;
    for (size_t i = 0; i < after_count; i++) {
        long ticks = after[i].ticks;
        for (size_t k = 0; k < before_count; k++)
            ticks -= before[k].tid == after[i].tid ? before[k].ticks : 0;
        double us = (double)ticks * tick_us / (double)tasks;
        sum += us;
        if (us >= 0.05)
            printf("  cpu  %-16s %8.2f us/task\n", after[i].name, us);
    }
    printf("  cpu  %-16s %8.2f us/task\n", "all", sum);
}

/* ---- the client ------------------------------------------------------------ */

static int count_engines(struct px_socket *query, struct px_session *session)
{
    struct px_draft draft = {.type = PX_CONNECTION_REQUEST};
    struct px_error err;
    send_now(query, px_session_build(session, &draft));
    if (!px_socket_wait(query, WAIT_MS))
        px_die(1, "the controller does not answer");
    struct px_msg *msg = px_socket_recv(query);
    must(px_msg_locate(msg, &err), &err);
    json_t *content = px_json_parse(px_msg_content(msg), &err);
    int count = (int)json_object_size(json_object_get(content, "engines"));
    json_decref(content);
    px_msg_destroy(msg);
    return count;
}

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
    send_now(socket, msg);
}

static void run_tasks(struct px_socket *socket, struct px_session *session, long tasks, long window)
{
    long sent = 0, done = 0;
    while (done < tasks) {
        while (sent < tasks && sent - done < window) {
            submit(socket, session);
            sent++;
        }
        if (!px_socket_wait(socket, WAIT_MS))
            px_die(1, "no reply: %ld of %ld done", done, tasks);
        struct px_msg *msg;
        while ((msg = px_socket_recv(socket)) != NULL) {
            struct px_error err;
            must(px_msg_locate(msg, &err), &err);
            must(px_session_verify(session, msg, &err), &err);
            px_msg_destroy(msg);
            done++;
        }
    }
}

static void wait_for_engines(struct px_socket *query, struct px_session *session, int count)
{
    int64_t start_ms = px_now_ms();
    /* The query is the wait: each round is one round trip. */
    while (count_engines(query, session) < count) {
        if (px_now_ms() - start_ms > WAIT_MS)
            px_die(1, "engines do not register");
    }
    printf("%d engines registered in %lld ms\n", count, (long long)(px_now_ms() - start_ms));
}

static long read_rss(int pid)
{
    char path[64], line[256];
    long kb = 0;
    snprintf(path, sizeof(path), "/proc/%d/status", pid);
    FILE *file = fopen(path, "r");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        sscanf(line, "VmRSS: %ld", &kb);
    if (file != NULL)
        fclose(file);
    return kb;
}

static long argument(int argc, char **argv, int index, long otherwise)
{
    return argc > index ? atol(argv[index]) : otherwise;
}

int main(int argc, char **argv)
{
    static struct usage before[MAX_THREADS], after[MAX_THREADS];
    static struct usage engines_before[MAX_THREADS], engines_after[MAX_THREADS];
    struct px_error err;
    if (argc < 3)
        px_die(2, "usage: bench_tasks SECURITY_DIR PID [tasks] [engines] [window] [ENGINES_PID]");
    int pid = atoi(argv[2]);
    long tasks = argument(argc, argv, 3, 100000), window = argument(argc, argv, 5, 1000);
    struct engines engines = {.count = (int)argument(argc, argv, 4, 4)};
    char path[PX_PATH_SIZE];
    struct px_cluster_connection file;
    snprintf(path, sizeof(path), "%s/ipcontroller-client.json", argv[1]);
    must(px_cluster_connection_read(path, PX_ROLE_CLIENT, &file, &err), &err);
    snprintf(path, sizeof(path), "%s/ipcontroller-engine.json", argv[1]);
    must(px_cluster_connection_read(path, PX_ROLE_ENGINE, &engines.file, &err), &err);

    void *context = px_context_create(1);
    engines.context = px_context_create(1);
    engines.list = px_alloc((size_t)engines.count * sizeof(*engines.list));
    struct px_session *session = px_session_create(file.key, file.signature_scheme, NULL, &err);
    struct px_socket *query = open_socket(context, PX_DEALER, NULL, &file, file.registration);
    struct px_socket *task = open_socket(context, PX_DEALER, NULL, &file, file.task);
    pthread_t thread;
    printf("idle resident memory %ld kB\n", read_rss(pid));
    int engines_pid = (int)argument(argc, argv, 6, 0);
    if (engines_pid == 0 && pthread_create(&thread, NULL, engines_thread, &engines) != 0)
        px_die(1, "cannot start a thread");
    wait_for_engines(query, session, engines.count);
    run_tasks(task, session, tasks / 10, window); /* warm up */
    size_t before_count = list_usage(pid, before);
    size_t engines_before_count = engines_pid ? list_usage(engines_pid, engines_before) : 0;
    long rss = read_rss(pid);
    int64_t start_ns = px_now_ns();
    run_tasks(task, session, tasks, window);
    double seconds = (double)(px_now_ns() - start_ns) / 1e9;
    size_t after_count = list_usage(pid, after);
    size_t engines_after_count = engines_pid ? list_usage(engines_pid, engines_after) : 0;
    printf("%ld tasks, %d engines, window %ld: %.0f tasks/s\n", tasks, engines.count, window,
           (double)tasks / seconds);
    print_usage(before, before_count, after, after_count, tasks);
    if (engines_pid != 0)
        print_usage(engines_before, engines_before_count, engines_after, engines_after_count,
                    tasks);
    printf("  memory %ld kB, %+ld kB over the run\n", read_rss(pid), read_rss(pid) - rss);
    fflush(stdout);
    _exit(0); /* the engines' thread never ends by itself */
}
