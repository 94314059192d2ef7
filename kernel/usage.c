/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * usage: what the kernel and its child processes use, for front ends that show it.
 *
 * Read from /proc on the service thread, so the answer comes while the language is busy. Shares of
 * the processor are those since the request before; the first one has none to compare with, and
 * says 0. Memory is the proportional share (PSS), which counts pages shared with a child once;
 * for large processes, where the system would walk all their pages for it, it is the resident set.
 *
 * Reference: ipykernel, kernelbase.py, usage_request.
 */
#define _GNU_SOURCE
#include "core.h"

#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST_PROCESSES 256
#define MOST_PROC_FILE (64u << 10)
#define LARGE_BYTES (4LL << 30)

struct px_consumption {
    int64_t at_ms;
    long long ticks;                /* of the kernel and its children */
    unsigned long long busy, total; /* of the host */
};

struct tree {
    pid_t pids[MOST_PROCESSES];
    size_t count;
};

/* The text of a file in /proc, to be freed; NULL when it is not there (any more). */
static char *read_proc(const char *path)
{
    struct px_buf text = {0};
    FILE *file = fopen(path, "re");
    char part[4096];
    size_t got;
    while (file && text.size < MOST_PROC_FILE && (got = fread(part, 1, sizeof part, file)) > 0)
        px_buf_append(&text, part, got);
    if (file)
        fclose(file);
    return text.data; /* a buffer's bytes end with a 0 */
}

/* ---- processes ---- */

static void add_children_of_thread(struct tree *tree, pid_t pid, const char *thread)
{
    char *path = px_format("/proc/%d/task/%s/children", (int)pid, thread);
    char *list = read_proc(path);
    char *next = list;
    for (char *word; next && (word = strsep(&next, " ")) && tree->count < MOST_PROCESSES;)
        if (*word)
            tree->pids[tree->count++] = (pid_t)strtol(word, NULL, 10);
    free(list);
    free(path);
}

static void add_children(struct tree *tree, pid_t pid)
{
    char *path = px_format("/proc/%d/task", (int)pid);
    DIR *dir = opendir(path);
    for (const struct dirent *entry; dir && (entry = readdir(dir));)
        if (entry->d_name[0] != '.')
            add_children_of_thread(tree, pid, entry->d_name);
    if (dir)
        closedir(dir);
    free(path);
}

static long long ticks_of(pid_t pid)
{
    long long user = 0, system = 0;
    char *path = px_format("/proc/%d/stat", (int)pid);
    char *text = read_proc(path);
    const char *after_name = text ? strrchr(text, ')') : NULL;
    if (after_name && sscanf(after_name, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lld %lld",
                             &user, &system) != 2)
        user = system = 0;
    free(text);
    free(path);
    return user + system;
}

static long long resident_bytes(pid_t pid)
{
    long long pages = 0;
    char *path = px_format("/proc/%d/statm", (int)pid);
    char *text = read_proc(path);
    if (!text || sscanf(text, "%*d %lld", &pages) != 1)
        pages = 0;
    free(text);
    free(path);
    return pages * sysconf(_SC_PAGESIZE);
}

/* The number after `key` at the start of a line, in kB, as bytes; -1 when it is not there. */
static long long field_bytes(const char *text, const char *key)
{
    for (const char *at = text; at && (at = strstr(at, key)); at++)
        if (at == text || at[-1] == '\n')
            return strtoll(at + strlen(key), NULL, 10) * 1024;
    return -1;
}

static long long memory_of(pid_t pid)
{
    const long long resident = resident_bytes(pid);
    if (resident > LARGE_BYTES)
        return resident;
    char *path = px_format("/proc/%d/smaps_rollup", (int)pid);
    char *text = read_proc(path);
    const long long share = field_bytes(text, "Pss:");
    free(text);
    free(path);
    return share >= 0 ? share : resident;
}

/* ---- the host ---- */

static void read_host(struct px_consumption *now)
{
    unsigned long long t[8] = {0};
    char *text = read_proc("/proc/stat");
    if (text)
        (void)sscanf(text, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &t[0], &t[1], &t[2],
                     &t[3], &t[4], &t[5], &t[6], &t[7]);
    free(text);
    for (size_t i = 0; i < PX_COUNT(t); i++)
        now->total += t[i];
    now->busy = now->total - t[3] - t[4]; /* idle, iowait */
}

/* With the names that psutil gives them. */
static json_t *host_memory(void)
{
    static const char *const names[][2] = {
        {"total", "MemTotal:"}, {"available", "MemAvailable:"}, {"free", "MemFree:"},
        {"active", "Active:"},  {"inactive", "Inactive:"},      {"buffers", "Buffers:"},
        {"cached", "Cached:"},  {"shared", "Shmem:"},           {"slab", "Slab:"},
    };
    char *text = read_proc("/proc/meminfo");
    json_t *memory = json_object();
    long long values[PX_COUNT(names)];
    for (size_t i = 0; i < PX_COUNT(names); i++) {
        values[i] = text ? field_bytes(text, names[i][1]) : -1;
        values[i] = values[i] < 0 ? 0 : values[i];
        json_object_set_new(memory, names[i][0], json_integer(values[i]));
    }
    free(text);
    const long long used = values[0] - values[1];
    json_object_set_new(memory, "used", json_integer(used));
    const double percent = values[0] ? 100.0 * (double)used / (double)values[0] : 0;
    json_object_set_new(memory, "percent", json_real(percent));
    return memory;
}

/* ---- the request ---- */

static double kernel_percent(const struct px_consumption *before, const struct px_consumption *now)
{
    const double seconds = (double)(now->at_ms - before->at_ms) / 1e3;
    const double used = (double)(now->ticks - before->ticks) / (double)sysconf(_SC_CLK_TCK);
    return seconds > 0 && used > 0 ? 100 * used / seconds
                                   : 0; /* a child that ended takes its own */
}

void px_on_usage_request(struct px_kernel *kernel, struct px_request *request)
{
    struct tree tree = {.pids = {getpid()}, .count = 1};
    struct px_consumption now = {.at_ms = px_now_ms()};
    long long memory = 0;
    for (size_t i = 0; i < tree.count; i++) { /* grows meanwhile */
        add_children(&tree, tree.pids[i]);
        now.ticks += ticks_of(tree.pids[i]);
        memory += memory_of(tree.pids[i]);
    }
    read_host(&now);
    if (!kernel->usage) {
        kernel->usage = px_alloc(sizeof *kernel->usage);
        *kernel->usage = now;
    }
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    const struct px_consumption *before = kernel->usage;
    const double host_busy = (double)(now.busy - before->busy);
    const double host_total = (double)(now.total - before->total);
    json_t *content = json_pack(
        "{s:s, s:s, s:i, s:f, s:I, s:f, s:i, s:o}", "status", "ok", "hostname", host, "pid",
        (int)getpid(), "kernel_cpu", kernel_percent(before, &now), "kernel_memory",
        (json_int_t)memory, "host_cpu_percent", host_total > 0 ? 100 * host_busy / host_total : 0.0,
        "cpu_count", (int)sysconf(_SC_NPROCESSORS_ONLN), "host_virtual_memory", host_memory());
    char *text = json_dumps(content, 0);
    *kernel->usage = now;
    if (text)
        px_request_reply(kernel, request, px_span_of(text));
    else
        px_request_refuse(kernel, request, "RuntimeError", "the host's name is not UTF-8");
    free(text);
    json_decref(content);
}
