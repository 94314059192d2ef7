/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A client's view of the cluster: are N engines there?
 *
 * What engines say of themselves is one thing; that a client sees them is what "started" means. The client
 * runs in a child process, so that the supervisor holds no ZeroMQ context and no thread
 * while it starts others, stays small for the rest of its life, and can end the attempt at any
 * moment.
 */
#define _GNU_SOURCE
#include "launch.h"

#include "client/phalanx.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

struct question {
    const struct px_place *place;
    int counted_from, count;
    int64_t timeout_ms;
};

static void ask(const struct question *question, int answer)
{
    const int64_t deadline = px_now_ms() + question->timeout_ms;
    const struct phalanx_options options = {.file = question->place->client_file,
                                            .timeout_ms = question->timeout_ms};
    struct phalanx_error err = {0};
    phalanx_client *client = phalanx_connect(&options, &err);
    if (!client) {
        dprintf(answer, "no client can connect: %s\n", err.text);
        return;
    }
    const size_t seen = phalanx_engines(client, NULL, 0);
    dprintf(answer, "connected %zu\n", seen);
    const size_t from = question->counted_from < 0 ? seen : (size_t)question->counted_from;
    const size_t wanted = from + (size_t)question->count;
    int64_t left = deadline - px_now_ms();
    if (phalanx_wait_engines(client, wanted, left > 0 ? left : 0) == PHALANX_OK)
        dprintf(answer, "ok\n");
    else
        dprintf(answer, "a client sees %zu of %zu engines\n", phalanx_engines(client, NULL, 0),
                wanted);
}

int px_confirm_start(const struct px_place *place, int counted_from, int count, int64_t timeout_ms,
                     struct px_process *child, struct px_error *err)
{
    const struct question question = {place, counted_from, count, timeout_ms};
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return px_fail(err, PX_EIO, "cannot make a pipe: %s", strerror(errno));
    const pid_t parent = getpid(), pid = fork();
    if (pid < 0) {
        close(ends[0]);
        close(ends[1]);
        return px_fail(err, PX_EIO, "cannot fork: %s", strerror(errno));
    }
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        signal(SIGPIPE, SIG_IGN);
        if (getppid() == parent)
            ask(&question, ends[1]);
        _exit(0); /* the client's sockets end with the process */
    }
    close(ends[1]);
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    if (!px_process_find(pid, child))
        *child = (struct px_process){pid, 0};
    return ends[0];
}
