/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * capture: what C code, children and os.write() send to the descriptors 1 and 2.
 *
 * Pipes stand in their place, from px_capture_begin() to px_capture_end(). They are read by the
 * service thread when poll says so, hence also while C code holds a language's lock and writes more
 * than a pipe takes; and by the thread that is about to post something else, so that text keeps its
 * place among prints and displays and is there before the reply. Reading never waits.
 *
 * This side keeps a writing end of each, so that reading never ends either, whatever the user's
 * code does to 1 and 2. The descriptors' former places are kept for the log, and are given back at
 * the end. C's own buffer for stdout is written at each line, and before a reply.
 *
 * A process that the user's code forks writes to the same pipes, but has no business with their
 * other ends: they are closed there.
 */
#define _GNU_SOURCE
#include "output.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIPE_SIZE (1 << 20) /* what an unprivileged process may ask for */
#define READ_SIZE (64u << 10)
#define CHARACTER 4 /* bytes of the longest in UTF-8 */

struct capture_end {
    int fd; /* 1 or 2 */
    int read_fd, write_fd;
    int saved_fd; /* where `fd` led before; -1: nowhere */
    char rest[CHARACTER];
    size_t rest_size; /* the beginning of a character */
};

struct px_capture {
    pthread_mutex_t lock; /* held while text is read and given away, so that it keeps its order */
    struct capture_end ends[2]; /* by enum px_stream */
    atomic_bool begun;          /* threads that outlive the language look, too */
    char *buffer; /* CHARACTER + READ_SIZE bytes, there once needed */
};

/* A fork handler has no context argument. */
static _Atomic(struct px_capture *) in_force;

static void close_end(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* In a child of the user's: the parent's ends, and what was half read, are the parent's. */
static void after_fork_in_child(void)
{
    struct px_capture *capture = in_force;
    in_force = NULL;
    for (size_t i = 0; capture && i < PX_COUNT(capture->ends); i++) {
        close_end(&capture->ends[i].read_fd);
        close_end(&capture->ends[i].write_fd);
    }
}

/* Tries only: a thread that waits for a pipe to be read may hold the lock. */
static void flush_stdout(void)
{
    if (ftrylockfile(stdout) != 0)
        return;
    (void)fflush_unlocked(stdout);
    funlockfile(stdout);
}

/* What is in the buffer would come from the child, too. */
static void before_fork(void)
{
    if (in_force)
        flush_stdout();
}

static void register_fork_handlers(void)
{
    (void)pthread_atfork(before_fork, NULL, after_fork_in_child);
}

static int open_end(struct capture_end *end, int fd, struct px_error *err)
{
    int fds[2];
    end->fd = fd;
    if (pipe2(fds, O_CLOEXEC) < 0)
        return px_fail(err, PX_EIO, "no pipe: %s", strerror(errno));
    end->read_fd = fds[0];
    end->write_fd = fds[1];
    (void)fcntl(end->read_fd, F_SETPIPE_SZ, PIPE_SIZE); /* or what it has */
    if (fcntl(end->read_fd, F_SETFL, O_NONBLOCK) < 0)
        return px_fail(err, PX_EIO, "no pipe without waiting: %s", strerror(errno));
    return 0;
}

struct px_capture *px_capture_create(struct px_error *err)
{
    struct px_capture *capture = px_alloc(sizeof *capture);
    pthread_mutex_init(&capture->lock, NULL);
    for (size_t i = 0; i < PX_COUNT(capture->ends); i++)
        capture->ends[i] = (struct capture_end){.read_fd = -1, .write_fd = -1, .saved_fd = -1};
    if (open_end(&capture->ends[PX_STDOUT], STDOUT_FILENO, err) < 0 ||
        open_end(&capture->ends[PX_STDERR], STDERR_FILENO, err) < 0) {
        px_capture_destroy(capture);
        return NULL;
    }
    return capture;
}

void px_capture_destroy(struct px_capture *capture)
{
    if (!capture)
        return;
    px_capture_end(capture);
    for (size_t i = 0; i < PX_COUNT(capture->ends); i++) {
        close_end(&capture->ends[i].read_fd);
        close_end(&capture->ends[i].write_fd);
        close_end(&capture->ends[i].saved_fd);
    }
    free(capture->buffer);
    pthread_mutex_destroy(&capture->lock);
    free(capture);
}

int px_capture_fd(const struct px_capture *capture, enum px_stream which)
{
    return capture->ends[which].read_fd;
}

void px_capture_begin(struct px_capture *capture)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (capture->begun)
        return;
    fflush(NULL);
    for (size_t i = 0; i < PX_COUNT(capture->ends); i++) {
        struct capture_end *end = &capture->ends[i];
        end->saved_fd = fcntl(end->fd, F_DUPFD_CLOEXEC, 3);
        (void)dup2(end->write_fd, end->fd);
    }
    px_log_set_fd(capture->ends[PX_STDERR].saved_fd);
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    capture->begun = true;
    in_force = capture;
    (void)pthread_once(&once, register_fork_handlers);
}

/* The user's code may have put a file of its own there, which is not ours to take away. */
static bool is_pipe_of(const struct capture_end *end)
{
    struct stat there, ours;
    return fstat(end->fd, &there) == 0 && fstat(end->write_fd, &ours) == 0 &&
           there.st_dev == ours.st_dev && there.st_ino == ours.st_ino;
}

void px_capture_end(struct px_capture *capture)
{
    if (!capture->begun)
        return;
    flush_stdout();
    for (size_t i = 0; i < PX_COUNT(capture->ends); i++) {
        const struct capture_end *end = &capture->ends[i];
        if (!is_pipe_of(end))
            continue;
        if (end->saved_fd >= 0)
            (void)dup2(end->saved_fd, end->fd);
        else
            close(end->fd);
    }
    px_log_set_fd(STDERR_FILENO); /* the former place stays open: the log may be about to write */
    capture->begun = false;
    in_force = NULL;
}

/* ---- reading ---- */

/* Bytes at the end of `text` that begin a character which is not complete. */
static size_t unfinished(const char *text, size_t size)
{
    for (size_t back = 1; back < CHARACTER && back <= size; back++) {
        const unsigned char byte = (unsigned char)text[size - back];
        if ((byte & 0xc0) == 0x80)
            continue;
        const size_t length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1;
        return length > back ? back : 0;
    }
    return 0;
}

/* True when there may be more. */
static bool read_some(struct px_capture *capture, enum px_stream which, px_capture_fn *take,
                      void *ctx)
{
    struct capture_end *end = &capture->ends[which];
    if (!capture->buffer)
        capture->buffer = px_alloc(CHARACTER + READ_SIZE);
    memcpy(capture->buffer, end->rest, end->rest_size);
    const ssize_t got = read(end->read_fd, capture->buffer + end->rest_size, READ_SIZE);
    if (got <= 0)
        return got < 0 && errno == EINTR;
    const size_t size = end->rest_size + (size_t)got;
    end->rest_size = unfinished(capture->buffer, size);
    memcpy(end->rest, capture->buffer + size - end->rest_size, end->rest_size);
    if (size > end->rest_size)
        take(ctx, which, capture->buffer, size - end->rest_size);
    return got == READ_SIZE;
}

static void give_rest(struct capture_end *end, enum px_stream which, px_capture_fn *take, void *ctx)
{
    if (end->rest_size > 0)
        take(ctx, which, end->rest, end->rest_size);
    end->rest_size = 0;
}

void px_capture_flush(struct px_capture *capture)
{
    if (capture->begun)
        flush_stdout();
}

void px_capture_drain(struct px_capture *capture, bool all, px_capture_fn *take, void *ctx)
{
    struct pollfd polls[PX_COUNT(capture->ends)];
    if (all)
        px_capture_flush(capture);
    pthread_mutex_lock(&capture->lock);
    for (size_t i = 0; i < PX_COUNT(polls); i++)
        polls[i] = (struct pollfd){.fd = capture->ends[i].read_fd, .events = POLLIN};
    const int ready = poll(polls, PX_COUNT(polls), 0);
    for (size_t i = 0; i < PX_COUNT(polls); i++) {
        /* A child that writes for ever must not keep us: once what a pipe holds. */
        size_t reads = ready > 0 && polls[i].revents ? PIPE_SIZE / READ_SIZE : 0;
        while (reads > 0 && read_some(capture, (enum px_stream)i, take, ctx))
            reads--;
        if (all)
            give_rest(&capture->ends[i], (enum px_stream)i, take, ctx);
    }
    pthread_mutex_unlock(&capture->lock);
}
