/* SPDX-License-Identifier: BSD-3-Clause */
/* load: see load.h. */
#include "load.h"

#include "protocol.h"

#include <dirent.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

void bench_must(int rc, const struct px_error *err)
{
    if (rc != 0)
        px_die(1, "%s", err->text);
}

struct px_socket *bench_open_socket(void *context, enum px_socket_type type, const char *id,
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
    bench_must(px_cluster_endpoint(file, port, endpoint, &err), &err);
    bench_must(px_socket_connect(socket, endpoint, &err), &err);
    return socket;
}

void bench_send(struct px_socket *socket, struct px_msg *msg)
{
    if (px_socket_send(socket, &msg) != PX_SENT)
        px_msg_destroy(msg);
}

static int count_engines(struct px_socket *query, struct px_session *session)
{
    struct px_draft draft = {.type = PX_CONNECTION_REQUEST};
    struct px_error err;
    bench_send(query, px_session_build(session, &draft));
    if (!px_socket_wait(query, BENCH_WAIT_MS))
        px_die(1, "the controller does not answer");
    struct px_msg *msg = px_socket_recv(query);
    bench_must(px_msg_locate(msg, &err), &err);
    json_t *content = px_json_parse(px_msg_content(msg), &err);
    int count = (int)json_object_size(json_object_get(content, "engines"));
    json_decref(content);
    px_msg_destroy(msg);
    return count;
}

int64_t bench_wait_for_engines(struct px_socket *query, struct px_session *session, int count)
{
    int64_t start_ns = px_now_ns();
    while (count_engines(query, session) < count) {
        if (px_now_ns() - start_ns > (int64_t)BENCH_WAIT_MS * 1000000)
            px_die(1, "engines do not register");
        poll(NULL, 0, 1 + count / 100); /* the answer is long when engines are many */
    }
    return (px_now_ns() - start_ns) / 1000000;
}

/* ---- CPU time of a process, its threads and its children ------------------- */

static int read_stat(const char *path, struct bench_usage *out)
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

static size_t list_threads(int pid, struct bench_usage *out, size_t count)
{
    char path[512];
    snprintf(path, sizeof(path), "/proc/%d/task", pid);
    DIR *dir = opendir(path);
    const struct dirent *entry;
    while (dir != NULL && (entry = readdir(dir)) != NULL && count < BENCH_THREADS) {
        snprintf(path, sizeof(path), "/proc/%d/task/%.20s/stat", pid, entry->d_name);
        if (entry->d_name[0] != '.' && read_stat(path, &out[count]) >= 0)
            count++;
    }
    if (dir != NULL)
        closedir(dir);
    return count;
}

size_t bench_list_usage(int pid, struct bench_usage *out)
{
    size_t count = list_threads(pid, out, 0);
    DIR *dir = opendir("/proc");
    const struct dirent *entry;
    while (dir != NULL && (entry = readdir(dir)) != NULL && count < BENCH_THREADS) {
        struct bench_usage one;
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

void bench_print_usage(const struct bench_usage *before, size_t before_count,
                       const struct bench_usage *after, size_t after_count, double units,
                       const char *unit)
{
    double tick_us = 1e6 / (double)sysconf(_SC_CLK_TCK), sum = 0;
    for (size_t i = 0; i < after_count; i++) {
        long ticks = after[i].ticks;
        for (size_t k = 0; k < before_count; k++)
            ticks -= before[k].tid == after[i].tid ? before[k].ticks : 0;
        double us = (double)ticks * tick_us / units;
        sum += us;
        if (us >= 0.05)
            printf("  cpu  %-16s %8.2f us/%s\n", after[i].name, us, unit);
    }
    printf("  cpu  %-16s %8.2f us/%s\n", "all", sum, unit);
}

long bench_read_rss(int pid)
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

void bench_read_files(const char *dir, struct px_cluster_connection *client,
                      struct px_cluster_connection *engine)
{
    struct px_error err;
    char path[PX_PATH_SIZE];
    snprintf(path, sizeof(path), "%s/ipcontroller-client.json", dir);
    bench_must(px_cluster_connection_read(path, PX_ROLE_CLIENT, client, &err), &err);
    snprintf(path, sizeof(path), "%s/ipcontroller-engine.json", dir);
    bench_must(px_cluster_connection_read(path, PX_ROLE_ENGINE, engine, &err), &err);
}

long bench_argument(int argc, char **argv, int index, long otherwise)
{
    return argc > index ? atol(argv[index]) : otherwise;
}

/* A process asks for what its hard limit, or root, allows: an engine has six connections. */
void bench_allow_files(void)
{
    struct rlimit limit = {1 << 20, 1 << 20};
    if (setrlimit(RLIMIT_NOFILE, &limit) == 0 || getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
}
