/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The log: one line an event on stderr, written by one write(2) so that lines of
 * several processes and threads do not mix.
 *
 *     2026-01-02 03:04:05.678 [pxcontroller] WARNING | bad_signature socket=mux count=3
 *
 * The form is ipyparallel's, so that what reads its logs reads ours. The tag and the
 * level are the one process-wide state of the tree: a log is where everything ends.
 *
 * Whoever reads it may have stopped, a pager at its first page, say. Then lines are lost, and
 * counted in the next one that is not: nobody waits for him, but once for a moment.
 */
#define _GNU_SOURCE
#include "base/base.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#define LINE_SIZE 2048 /* longer lines are cut; a pipe that can be written takes so much */
#define PATIENCE_MS 500

static pthread_mutex_t tag_lock = PTHREAD_MUTEX_INITIALIZER;
static char log_tag[64];
static atomic_int least_level = PX_INFO;
static atomic_int log_fd = STDERR_FILENO;
static atomic_bool is_stuck;
static atomic_ulong lost; /* lines, since the last that was written */

void px_log_init(const char *tag, enum px_level least)
{
    pthread_mutex_lock(&tag_lock);
    snprintf(log_tag, sizeof log_tag, "%s", tag);
    pthread_mutex_unlock(&tag_lock);
    atomic_store(&least_level, (int)least);
}

enum px_level px_log_level(void)
{
    return (enum px_level)atomic_load(&least_level);
}

void px_log_set_fd(int fd)
{
    atomic_store(&log_fd, fd);
}

int px_log_fd(void)
{
    return atomic_load(&log_fd);
}

static size_t put_prefix(char *line, size_t size, enum px_level level)
{
    struct timespec now;
    struct tm local;
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &local);
    const size_t date = strftime(line, size, "%Y-%m-%d %H:%M:%S", &local);
    const char *name = level >= PX_ERROR ? " ERROR" : level >= PX_WARN ? " WARNING" : "";
    pthread_mutex_lock(&tag_lock);
    const int tag = snprintf(line + date, size - date, ".%03ld [%s]%s | ", now.tv_nsec / 1000000,
                             log_tag[0] ? log_tag : program_invocation_short_name, name);
    pthread_mutex_unlock(&tag_lock);
    return date + (size_t)tag;
}

/* A line is one line, whatever a peer put into a value. */
static void flatten(char *text, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if ((unsigned char)text[i] < ' ' || text[i] == 0x7f)
            text[i] = '?';
}

static bool is_writable(void)
{
    struct pollfd polled = {.fd = px_log_fd(), .events = POLLOUT};
    const int ready = poll(&polled, 1, atomic_load(&is_stuck) ? 0 : PATIENCE_MS);
    atomic_store(&is_stuck, ready == 0);
    if (ready == 0)
        atomic_fetch_add(&lost, 1);
    return ready != 0;
}

static size_t put_count(char *line, size_t at, const char *name, unsigned long count)
{
    return count ? at + (size_t)snprintf(line + at, LINE_SIZE - at, " %s=%lu", name, count) : at;
}

static void put_line(enum px_level level, const char *event, unsigned long held, const char *fmt,
                     va_list args)
{
    char line[LINE_SIZE];
    const int saved = errno;
    if (!is_writable()) {
        errno = saved;
        return;
    }
    size_t at = put_prefix(line, sizeof line, level);
    at += (size_t)snprintf(line + at, sizeof line - at, "%.100s", event);
    if (fmt && fmt[0]) {
        line[at++] = ' ';
        const int more = vsnprintf(line + at, sizeof line - at, fmt, args);
        at += more < 0 ? 0 : (size_t)more;
    }
    if (at > sizeof line - 80)
        at = sizeof line - 80;
    flatten(line, at);
    at = put_count(line, at, "held_back", held);
    at = put_count(line, at, "lines_lost", atomic_exchange(&lost, 0));
    line[at++] = '\n';
    while (write(px_log_fd(), line, at) < 0 && errno == EINTR)
        continue;
    errno = saved;
}

void px_log(enum px_level level, const char *event, const char *fmt, ...)
{
    if ((int)level < atomic_load(&least_level))
        return;
    va_list args;
    va_start(args, fmt);
    put_line(level, event, 0, fmt, args);
    va_end(args);
}

void px_log_limited(struct px_log_limiter *limiter, enum px_level level, const char *event,
                    const char *fmt, ...)
{
    const int64_t now = px_now_ms();
    if (now < limiter->next_ms) {
        limiter->held++;
        return;
    }
    if ((int)level < atomic_load(&least_level))
        return;
    va_list args;
    va_start(args, fmt);
    put_line(level, event, limiter->held, fmt, args);
    va_end(args);
    *limiter = (struct px_log_limiter){.next_ms = now + 1000};
}

/* As many lines of the text as a pipe takes that can be written; of a longer line, as much. */
static size_t some_lines(const char *text, size_t size)
{
    if (size <= PIPE_BUF)
        return size;
    const char *last = memrchr(text, '\n', PIPE_BUF);
    return last ? (size_t)(last + 1 - text) : PIPE_BUF;
}

void px_log_text(enum px_level level, const char *text, size_t size)
{
    if ((int)level < atomic_load(&least_level) || size == 0)
        return;
    const bool ended = text[size - 1] == '\n';
    while (size > 0 && is_writable()) {
        const ssize_t written = write(px_log_fd(), text, some_lines(text, size));
        if (written < 0 && errno != EINTR)
            return;
        text += written > 0 ? written : 0;
        size -= written > 0 ? (size_t)written : 0;
    }
    if (size == 0 && !ended && is_writable())
        (void)!write(px_log_fd(), "\n", 1);
}

int px_log_parse_level(const char *text)
{
    static const struct {
        const char *name;
        int level;
    } names[] = {{"debug", PX_DEBUG},  {"info", PX_INFO},   {"warn", PX_WARN},
                 {"warning", PX_WARN}, {"error", PX_ERROR}, {"critical", 50}};
    for (size_t i = 0; i < PX_COUNT(names); i++)
        if (strcasecmp(text, names[i].name) == 0)
            return names[i].level;
    char *end;
    const long level = strtol(text, &end, 10);
    return text[0] && !*end && level >= 0 && level <= 50 ? (int)level : -1;
}
