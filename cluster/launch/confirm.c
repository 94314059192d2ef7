/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A client's view of the cluster: are N engines there?
 *
 * What engines say of themselves is one thing; that a client sees them is what "started" means.
 * The client runs in a child process, so that the supervisor holds no ZeroMQ context and no
 * thread while it starts others, stays small for the rest of its life, and can end the attempt
 * at any moment. The child writes a line "connected", then "seen <count>" each time that changes;
 * it exits when all are there, after "ok", or after a sentence that says why not.
 */
#define _GNU_SOURCE
#include "launch.h"

#include "client/phalanx.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

struct px_confirm {
    struct px_loop *loop;
    struct px_watch *watch;
    pid_t child;
    int fd; /* what the child writes */
    struct px_buf line;
    struct px_confirm_events events;
    bool told; /* seen or failed was called */
};

/* ---- in the child ---- */

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
    dprintf(answer, "connected\n");
    const size_t now = phalanx_engines(client, NULL, 0);
    const size_t from = question->counted_from < 0 ? now : (size_t)question->counted_from;
    const size_t wanted = (size_t)question->count;
    for (;;) {
        const size_t all = phalanx_engines(client, NULL, 0), seen = all > from ? all - from : 0;
        const int64_t left = deadline - px_now_ms();
        dprintf(answer, "seen %zu\n", seen);
        if (seen >= wanted) {
            dprintf(answer, "ok\n");
            return;
        }
        if (phalanx_wait_engines(client, all + 1, left > 0 ? left : 0) != PHALANX_OK) {
            dprintf(answer, "a client sees %zu of %zu engines\n", seen, wanted);
            return;
        }
    }
}

PX_NORETURN static void run_child(const struct question *question, pid_t parent, int answer)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    if (getppid() == parent)
        ask(question, answer);
    _exit(0); /* the client's sockets end with the process */
}

/* ---- in the supervisor ---- */

/* A callback may end the start; the object lives until the supervisor does. */
static void on_line(void *ctx, const char *line)
{
    struct px_confirm *confirm = ctx;
    const struct px_confirm_events *events = &confirm->events;
    int count;
    if (confirm->told)
        return;
    if (strcmp(line, "connected") == 0) {
        events->connected(events->ctx);
        return;
    }
    if (sscanf(line, "seen %d", &count) == 1) {
        events->seen(count, events->ctx);
        return;
    }
    confirm->told = true;
    if (strcmp(line, "ok") != 0)
        events->failed(line, events->ctx);
}

static void on_answer(struct px_loop *loop, void *ctx)
{
    struct px_confirm *confirm = ctx;
    if (px_lines_read(confirm->fd, &confirm->line, on_line, confirm) >= 0)
        return;
    px_loop_unwatch(loop, confirm->watch);
    confirm->watch = NULL;
    if (!confirm->told)
        confirm->events.failed("the client that was to see the engines ended", confirm->events.ctx);
}

struct px_confirm *px_confirm_start(struct px_loop *loop, const struct px_place *place,
                                    int counted_from, int count, int64_t timeout_ms,
                                    const struct px_confirm_events *events, struct px_error *err)
{
    const struct question question = {place, counted_from, count, timeout_ms};
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0) {
        px_fail(err, PX_EIO, "cannot make a pipe: %s", strerror(errno));
        return NULL;
    }
    const pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        run_child(&question, parent, ends[1]);
    close(ends[1]);
    if (pid < 0) {
        close(ends[0]);
        px_fail(err, PX_EIO, "cannot fork: %s", strerror(errno));
        return NULL;
    }
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    struct px_confirm *confirm = px_alloc(sizeof *confirm);
    *confirm = (struct px_confirm){.loop = loop, .child = pid, .fd = ends[0], .events = *events};
    confirm->watch = px_loop_fd(loop, ends[0], on_answer, confirm);
    return confirm;
}

void px_confirm_end(struct px_confirm *confirm)
{
    if (!confirm || confirm->fd < 0)
        return;
    px_loop_unwatch(confirm->loop, confirm->watch);
    confirm->watch = NULL;
    confirm->told = true;
    close(confirm->fd);
    confirm->fd = -1;
    kill(confirm->child, SIGKILL); /* ours and not reaped: it cannot be another */
    waitpid(confirm->child, NULL, 0);
}

void px_confirm_destroy(struct px_confirm *confirm)
{
    px_confirm_end(confirm);
    if (confirm)
        px_buf_fini(&confirm->line);
    free(confirm);
}
