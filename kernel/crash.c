/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * crash: a front end shows a dead kernel and no more; the reason is in a log that few people find.
 *
 * The language writes its stacks into a memory file when a deadly signal comes, then lets the
 * signal take its course, which leads here. This handler copies the stacks to the log and to
 * descriptor 2, so that they are output of the cell; has the service thread send all there is; and
 * lets the signal do the rest. Only calls that are allowed in a handler (signal-safety(7)) are
 * made.
 *
 * LIMIT: where the heap is spoilt the service thread may hang or die as well; the log has the
 * stacks in any case, and the process ends after some two seconds at most.
 */
#define _GNU_SOURCE
#include "crash.h"

#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

/* A signal handler has no context argument. */
static struct {
    struct px_service *service;
    pid_t owner; /* a child that the user's code forks is none of the kernel */
    int stacks_fd;
} crash;

/* The pipe behind 2 may be full, and its reader gone. */
static bool is_writable(int fd)
{
    struct pollfd polled = {.fd = fd, .events = POLLOUT};
    return poll(&polled, 1, 0) == 1 && polled.revents == POLLOUT;
}

static void copy_stacks(int fd)
{
    char bytes[512];
    off_t at = 0;
    for (ssize_t got; (got = pread(crash.stacks_fd, bytes, sizeof bytes, at)) > 0; at += got)
        if (!is_writable(fd) || write(fd, bytes, (size_t)got) < 0)
            return;
}

static void on_deadly(int signo)
{
    if (getpid() == crash.owner) {
        const int log_fd = px_log_fd();
        copy_stacks(log_fd);
        if (log_fd != STDERR_FILENO)
            copy_stacks(STDERR_FILENO);
        px_service_last_words(crash.service);
    }
    signal(signo, SIG_DFL);
    raise(signo);
}

void px_crash_watch(struct px_service *service, const struct px_interp_ops *ops, void *self)
{
    static const int deadly[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    struct px_error err = {.text = "no memory file"};
    struct sigaction action = {.sa_handler = on_deadly, .sa_flags = SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    crash.service = service;
    crash.owner = getpid();
    crash.stacks_fd = memfd_create("px-crash", MFD_CLOEXEC);
    for (size_t i = 0; i < PX_COUNT(deadly); i++)
        sigaction(deadly[i], &action, NULL); /* before the language's, and hence after them */
    if (ops->trace && (crash.stacks_fd < 0 || ops->trace(self, 0, -1, crash.stacks_fd, &err) < 0))
        px_log(PX_WARN, "crash.silent", "why=\"%s\"", err.text);
}
