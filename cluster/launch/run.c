/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A short question to a program: run it, read what it says, wait for its end, not for ever.
 */
#define _GNU_SOURCE
#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_ANSWER (1u << 20)

/* False at the end of the file. */
static bool take(int fd, struct px_buf *out)
{
    char bytes[4096];
    const ssize_t size = read(fd, bytes, sizeof bytes);
    if (size < 0 && (errno == EINTR || errno == EAGAIN))
        return true;
    if (size > 0 && out->size < MAX_ANSWER)
        px_buf_append(out, bytes, (size_t)size);
    return size > 0;
}

/* False when time was up first. */
static bool listen_to(int out_fd, int err_fd, int64_t deadline, struct px_buf *out,
                      struct px_buf *complaints)
{
    struct pollfd fds[] = {{.fd = out_fd, .events = POLLIN}, {.fd = err_fd, .events = POLLIN}};
    struct px_buf *const bufs[] = {out, complaints};
    while (fds[0].fd >= 0 || fds[1].fd >= 0) {
        const int64_t left = deadline - px_now_ms();
        if (left <= 0)
            return false;
        if (poll(fds, PX_COUNT(fds), (int)left) <= 0)
            continue;
        for (size_t i = 0; i < PX_COUNT(fds); i++)
            if (fds[i].fd >= 0 && fds[i].revents && !take(fds[i].fd, bufs[i]))
                fds[i].fd = -1;
    }
    return true;
}

/* False when time was up first: it may have closed what is read, and go on. */
static bool await_end(pid_t pid, int64_t deadline, int *status)
{
    pid_t ended;
    while ((ended = waitpid(pid, status, WNOHANG)) == 0 || (ended < 0 && errno == EINTR)) {
        if (px_now_ms() >= deadline)
            return false;
        (void)poll(NULL, 0, 1);
    }
    return true;
}

static void close_two(const int ends[2])
{
    close(ends[0]);
    close(ends[1]);
}

int px_process_run(char *const *argv, int64_t timeout_ms, struct px_buf *out,
                   struct px_buf *complaints, struct px_error *err)
{
    int said[2], complained[2], status = -1;
    struct px_process process;
    if (pipe2(said, O_CLOEXEC) < 0)
        return px_fail(err, PX_EIO, "no pipe: %s", strerror(errno));
    if (pipe2(complained, O_CLOEXEC) < 0) {
        close_two(said);
        return px_fail(err, PX_EIO, "no pipe: %s", strerror(errno));
    }
    const struct px_spawn spawn = {
        .argv = argv, .keep_fd = -1, .out_fd = said[1], .err_fd = complained[1]};
    const int started = px_process_spawn(&spawn, &process, err);
    close(said[1]);
    close(complained[1]);
    if (started == 0) {
        const int64_t deadline = px_now_ms() + timeout_ms;
        const bool whole = listen_to(said[0], complained[0], deadline, out, complaints) &&
                           await_end(process.pid, deadline, &status);
        if (!whole) {
            kill(-process.pid, SIGKILL);
            waitpid(process.pid, &status, 0);
        }
        if (!whole)
            status = px_fail(err, PX_ETIME, "%.100s: no answer within %lld s", argv[0],
                             (long long)timeout_ms / 1000);
        else
            status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    close(said[0]);
    close(complained[0]);
    return status;
}
