/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * dask: become_dask_request and stop_distributed_request. There is no Python in this process: the
 * distributed.Scheduler is one of its own (dask.py), which ends when its standard input does, that
 * is with this process, however that ends.
 *
 *     absent ── request ──▶ starting ── a line ──▶ listening
 *        ▲                                             │ stop
 *        └───────────── its end ──────────────────── ending
 *
 * Requests that come while it starts, or while the one before it ends, wait for the answer.
 */
#define _GNU_SOURCE /* pipe2 */
#include "hub.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define REPLY "become_dask_reply"
#define MOST_WAITING 64
#define MOST_OPTIONS 4096 /* bytes: a pipe takes them at once (PIPE_BUF) */
#define MOST_SAID 65536
#define START_MS 60000 /* distributed takes seconds to import where disks are slow */
#define END_MS 10000

extern const char px_embedded_dask[];

struct px_dask {
    struct px_hub *hub;
    pid_t pid;         /* 0: absent */
    int input, output; /* its standard input, -1 when closed; its standard output */
    struct px_watch *watch;
    struct px_timer *patience;
    struct px_buf said;
    json_t *answer; /* once it listens */
    struct px_msg *waiting[MOST_WAITING];
    size_t waiting_count;
};

/* ---- answering -------------------------------------------------------------- */

static void answer_one(struct px_hub *hub, const struct px_msg *msg, const json_t *answer)
{
    const struct px_request request = {.hub = hub, .msg = msg};
    const char *ename = json_string_value(json_object_get(answer, "ename"));
    const char *evalue = json_string_value(json_object_get(answer, "evalue"));
    if (ename != NULL && evalue != NULL)
        px_request_fail(&request, "hub_error", ename, evalue);
    else
        px_request_reply(&request, REPLY, json_deep_copy(answer), NULL);
}

static void answer_all(struct px_dask *dask, const json_t *answer)
{
    for (size_t i = 0; i < dask->waiting_count; i++) {
        answer_one(dask->hub, dask->waiting[i], answer);
        px_msg_destroy(dask->waiting[i]);
    }
    dask->waiting_count = 0;
}

static void fail_all(struct px_dask *dask, const char *evalue)
{
    json_t *answer = px_error_json("RuntimeError", evalue);
    answer_all(dask, answer);
    json_decref(answer);
}

/* ---- its life --------------------------------------------------------------- */

static void close_input(struct px_dask *dask)
{
    if (dask->input >= 0)
        close(dask->input);
    dask->input = -1;
}

/* It is gone, or goes now. */
static void reap(struct px_dask *dask)
{
    if (dask->pid == 0)
        return;
    close_input(dask);
    kill(dask->pid, SIGKILL);
    while (waitpid(dask->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    px_log(PX_INFO, "dask-ended", "pid=%d", (int)dask->pid);
    dask->pid = 0;
    px_loop_unwatch(dask->hub->loop, dask->watch);
    px_loop_cancel(dask->hub->loop, dask->patience);
    dask->watch = NULL;
    dask->patience = NULL;
    close(dask->output);
    px_buf_fini(&dask->said);
    json_decref(dask->answer);
    dask->answer = NULL;
}

/* The end of its output follows. */
static void on_impatience(struct px_loop *loop, void *ctx)
{
    struct px_dask *dask = ctx;
    (void)loop;
    dask->patience = NULL;
    kill(dask->pid, SIGKILL);
}

static void be_patient(struct px_dask *dask, int64_t ms)
{
    px_loop_cancel(dask->hub->loop, dask->patience);
    dask->patience = px_loop_timer(dask->hub->loop, ms, 0, on_impatience, dask);
}

static void start(struct px_dask *dask);

static void on_end(struct px_dask *dask)
{
    const bool meant = dask->input < 0;
    reap(dask);
    if (!meant)
        fail_all(dask, "the dask scheduler ended before it listened: see the controller's log");
    else if (dask->waiting_count > 0)
        start(dask);
}

static void on_line(struct px_dask *dask, struct px_span line)
{
    json_t *answer = px_json_parse(line, NULL);
    if (answer == NULL)
        return;
    answer_all(dask, answer);
    if (json_object_get(answer, "address") == NULL) {
        json_decref(answer);
        be_patient(dask, END_MS); /* an error: its end follows */
        return;
    }
    dask->answer = answer;
    px_loop_cancel(dask->hub->loop, dask->patience);
    dask->patience = NULL;
}

static void on_output(struct px_loop *loop, void *ctx)
{
    struct px_dask *dask = ctx;
    char bytes[4096];
    (void)loop;
    const ssize_t size = read(dask->output, bytes, sizeof bytes);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (size <= 0 || dask->said.size > MOST_SAID) {
        on_end(dask);
        return;
    }
    px_buf_append(&dask->said, bytes, (size_t)size);
    const char *end = memchr(dask->said.data, '\n', dask->said.size);
    if (end != NULL && dask->answer == NULL && dask->input >= 0)
        on_line(dask, (struct px_span){dask->said.data, (size_t)(end - dask->said.data)});
}

/* ---- starting --------------------------------------------------------------- */

/* By the first Python that can be run; any version serves here. Of its own session: an interrupt at
 * the terminal is the controller's. */
static int spawn(pid_t *pid, int input, int output)
{
    char *pythons[PX_PYTHONS];
    const size_t count = px_pythons(NULL, pythons);
    int status = -1;
    for (size_t i = 0; i < count; i++) {
        char *const argv[] = {pythons[i], "-c", (char *)px_embedded_dask, NULL};
        if (status != 0)
            status = px_spawn(pid, argv, (const int[3]){input, output, -1});
        free(pythons[i]);
    }
    return status;
}

/* The address of an interface, without IPv6's brackets; empty where it is every one. */
static struct px_span address_of(const char *interface)
{
    static const char *const all[] = {"*", "0.0.0.0", "[::]"};
    struct px_span host =
        px_span_of(strncmp(interface, "tcp://", 6) == 0 ? interface + 6 : "127.0.0.1");
    for (size_t i = 0; i < PX_COUNT(all); i++)
        if (px_span_equal(host, all[i]))
            return PX_SPAN("");
    if (host.size > 2 && host.data[0] == '[')
        return (struct px_span){host.data + 1, host.size - 2};
    return host;
}

/* What the client asks for. Engines reach this host as they reach the controller, so it listens
 * where that does unless the client says otherwise. */
static char *read_options(struct px_dask *dask, const struct px_msg *msg)
{
    json_t *content = px_json_parse(px_msg_content(msg), NULL);
    const json_t *asked = json_object_get(content, "scheduler_args");
    json_t *options = json_is_object(asked) ? json_copy((json_t *)asked) : json_object();
    const struct px_span host = address_of(dask->hub->sockets->engine.interface);
    if (json_object_get(options, "host") == NULL && host.size > 0)
        json_object_set_new(options, "host", json_stringn(host.data, host.size));
    char *text = json_dumps(options, JSON_COMPACT);
    json_decref(options);
    json_decref(content);
    return text;
}

static bool write_options(struct px_dask *dask, const char *options)
{
    return strlen(options) < MOST_OPTIONS && px_fd_write(dask->input, px_span_of(options)) == 0 &&
           px_fd_write(dask->input, px_span_of("\n")) == 0;
}

static void start(struct px_dask *dask)
{
    int input[2], output[2] = {-1, -1};
    if (pipe2(input, O_CLOEXEC) != 0) {
        fail_all(dask, "no pipe to a dask scheduler");
        return;
    }
    const int status = pipe2(output, O_CLOEXEC) ? errno : spawn(&dask->pid, input[0], output[1]);
    close(input[0]);
    close(output[1]);
    dask->input = input[1];
    dask->output = output[0];
    if (status != 0) {
        dask->pid = 0;
        close_input(dask);
        close(dask->output);
        fail_all(dask, "a dask scheduler needs Python where the controller runs");
        return;
    }
    px_log(PX_INFO, "dask-started", "pid=%d", (int)dask->pid);
    fcntl(dask->output, F_SETFL, O_NONBLOCK);
    dask->watch = px_loop_fd(dask->hub->loop, dask->output, on_output, dask);
    be_patient(dask, START_MS);
    char *options = read_options(dask, dask->waiting[0]);
    if (!write_options(dask, options))
        kill(dask->pid, SIGKILL);
    free(options);
}

/* ---- requests --------------------------------------------------------------- */

void px_on_become_dask_request(const struct px_request *request)
{
    struct px_hub *hub = request->hub;
    if (hub->dask == NULL) {
        hub->dask = px_alloc(sizeof *hub->dask);
        hub->dask->hub = hub;
        hub->dask->input = -1;
    }
    struct px_dask *dask = hub->dask;
    if (dask->answer != NULL && dask->input >= 0) {
        answer_one(hub, request->msg, dask->answer);
        return;
    }
    if (dask->waiting_count == MOST_WAITING) {
        px_request_fail(request, "hub_error", "RuntimeError", "too many ask for a dask scheduler");
        return;
    }
    dask->waiting[dask->waiting_count++] = px_msg_copy(request->msg);
    if (dask->pid == 0)
        start(dask);
}

void px_on_stop_distributed_request(const struct px_request *request)
{
    struct px_dask *dask = request->hub->dask;
    if (dask != NULL && dask->pid != 0 && dask->input >= 0) {
        fail_all(dask, "the dask scheduler was stopped while it started");
        close_input(dask);
        be_patient(dask, END_MS);
    }
    px_request_reply(request, "stop_distributed_reply", json_pack("{s:s}", "status", "ok"), NULL);
}

void px_dask_destroy(struct px_dask *dask)
{
    if (dask == NULL)
        return;
    fail_all(dask, "the controller ends");
    reap(dask);
    free(dask);
}
