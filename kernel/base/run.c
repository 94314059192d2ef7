/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A short question to a program: run it, read what it says, wait for its end, not for ever.
 */
#define _GNU_SOURCE
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_ANSWER (16u << 20) /* qstat's of 100,000 jobs; what says more is no answer */

/* False at the end of the file, and where there is too much of it. */
static bool take(int fd, struct px_buf *out)
{
    char bytes[4096];
    const ssize_t size = read(fd, bytes, sizeof bytes);
    if (size < 0 && (errno == EINTR || errno == EAGAIN))
        return true;
    if (size > 0)
        px_buf_append(out, bytes, (size_t)size);
    return size > 0 && out->size <= MAX_ANSWER;
}

/* False when time was up first. */
static bool listen_to(const int ends[2], int64_t deadline, struct px_buf *const bufs[2])
{
    struct pollfd fds[] = {{.fd = ends[0], .events = POLLIN}, {.fd = ends[1], .events = POLLIN}};
    while (fds[0].fd >= 0 || fds[1].fd >= 0) {
        const int64_t left = deadline - px_now_ms();
        if (left <= 0)
            return false;
        if (poll(fds, PX_COUNT(fds), (int)left) <= 0)
            continue;
        for (size_t i = 0; i < PX_COUNT(fds); i++) {
            if (fds[i].fd >= 0 && fds[i].revents && !take(fds[i].fd, bufs[i]))
                fds[i].fd = -1;
            if (bufs[i]->size > MAX_ANSWER)
                return true;
        }
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

/* Its exit status; what it starts goes with it where it has to be ended. */
static int converse(pid_t pid, const char *name, const int ends[2], int64_t timeout_ms,
                    struct px_buf *const bufs[2], struct px_error *err)
{
    int status = -1;
    const int64_t deadline = px_now_ms() + timeout_ms;
    const bool heard = listen_to(ends, deadline, bufs),
               much = bufs[0]->size > MAX_ANSWER || bufs[1]->size > MAX_ANSWER;
    if (!heard || much || !await_end(pid, deadline, &status)) {
        kill(-pid, SIGKILL);
        waitpid(pid, &status, 0);
        return much ? px_fail(err, PX_ELIMIT, "%.100s: an answer of more than %u MB", name,
                              MAX_ANSWER >> 20)
                    : px_fail(err, PX_ETIME, "%.100s: no answer within %lld s", name,
                              (long long)timeout_ms / 1000);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void close_all(const int *fds, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

int px_run_program(char *const *argv, int64_t timeout_ms, struct px_buf *out,
                   struct px_buf *complaints, struct px_error *err)
{
    int said[2] = {-1, -1}, complained[2] = {-1, -1}, result = -1;
    pid_t pid;
    struct px_buf *const bufs[] = {out, complaints};
    const int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (nothing < 0 || pipe2(said, O_CLOEXEC) < 0 || pipe2(complained, O_CLOEXEC) < 0) {
        px_fail(err, PX_EIO, "cannot run %.200s: %s", argv[0], strerror(errno));
        goto done;
    }
    const int why = px_spawn(&pid, argv, (const int[3]){nothing, said[1], complained[1]});
    close_all((const int[]){said[1], complained[1]}, 2);
    said[1] = complained[1] = -1;
    if (why != 0)
        px_fail(err, why == ENOENT ? PX_ENOENT : PX_EIO, "cannot run %.200s: %s", argv[0],
                strerror(why));
    else
        result =
            converse(pid, argv[0], (const int[]){said[0], complained[0]}, timeout_ms, bufs, err);
done:
    close_all((const int[]){nothing, said[0], said[1], complained[0], complained[1]}, 5);
    return result;
}
