/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * shells: who serves the requests that need the language.
 *
 * The main shell is the interpreter thread. A subshell is one more thread with a queue of its own,
 * so that what a front end sends to it (widgets' comm messages, a second console) is served while
 * the main shell runs a cell; both see the same names. The service thread makes and deletes
 * subshells, without the language's lock; a subshell's thread enters the language when that has
 * started. A deleted subshell finishes what it runs; what waits in its queue is aborted.
 *
 * Reference: "Messaging in Jupyter" 5.5, Create, Delete and List subshell.
 */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What subshells get to end by themselves, when the kernel ends. */
#define END_MS 500

/* ---- one shell ---- */

int px_shell_init(struct px_shell *shell, struct px_kernel *kernel, struct px_error *err)
{
    *shell = (struct px_shell){.kernel = kernel};
    return px_queue_init(&shell->queue, err);
}

void px_shell_fini(struct px_shell *shell)
{
    px_queue_fini(&shell->queue);
    px_parent_unref(shell->current);
}

static bool is_main(const struct px_shell *shell)
{
    return shell == &shell->kernel->main;
}

static void set_running(struct px_shell *shell, struct px_request *request)
{
    struct px_kernel *kernel = shell->kernel;
    struct px_parent *last = NULL;
    pthread_mutex_lock(&kernel->lock);
    shell->serving = request;
    shell->running = request != NULL;
    shell->began_ns = request ? px_now_ns() : 0;
    if (request) {
        last = shell->current;
        shell->current = px_parent_ref(request->parent);
    }
    pthread_mutex_unlock(&kernel->lock);
    px_parent_unref(last);
    if (kernel->config.running && is_main(shell))
        kernel->config.running(kernel->config.ctx, request);
}

void px_shell_rest(struct px_shell *shell)
{
    set_running(shell, NULL);
}

static void wait_for_request(struct px_shell *shell)
{
    struct px_kernel *kernel = shell->kernel;
    struct pollfd wake = {.fd = shell->queue.fd, .events = POLLIN};
    if (is_main(shell) && kernel->config.ops->idle)
        kernel->config.ops->idle(kernel->self, shell->queue.fd);
    else
        (void)poll(&wake, 1, -1); /* a signal ends the wait too; the caller looks again */
}

void px_shell_serve(struct px_shell *shell)
{
    while (!px_queue_stopped(&shell->queue)) {
        struct px_request *request = px_queue_take(&shell->queue);
        if (!request) {
            wait_for_request(shell);
            continue;
        }
        px_date_now(request->started);
        set_running(shell, request);
        px_kernel_serve(shell->kernel, request);
    }
}

struct px_shell *px_shell_here(struct px_kernel *kernel)
{
    for (struct px_shell *shell = kernel->shells; shell; shell = shell->next)
        if (shell->started && pthread_equal(shell->thread, pthread_self()))
            return shell;
    return &kernel->main;
}

void px_shell_interrupt(struct px_shell *shell)
{
    struct px_kernel *kernel = shell->kernel;
    const struct px_interp_ops *ops = kernel->config.ops;
    if (!shell->running)
        return;
    if (is_main(shell))
        ops->interrupt(kernel->self);
    else
        ops->interrupt_thread(kernel->self, shell->thread);
    px_input_wake(kernel, shell->current);
}

/* ---- threads of subshells ---- */

/* The language's instance when it has started; NULL when the subshell is to end. */
static void *wait_for_language(struct px_shell *shell)
{
    struct px_kernel *kernel = shell->kernel;
    pthread_mutex_lock(&kernel->lock);
    shell->thread = pthread_self(); /* it may be here before its creator has it */
    shell->started = true;
    while (!kernel->self && !shell->leaving)
        pthread_cond_wait(&kernel->changed, &kernel->lock);
    void *self = shell->leaving ? NULL : kernel->self;
    pthread_mutex_unlock(&kernel->lock);
    return self;
}

static void *subshell_thread(void *ctx)
{
    struct px_shell *shell = ctx;
    struct px_kernel *kernel = shell->kernel;
    void *self = wait_for_language(shell);
    if (self) {
        kernel->config.ops->thread_begin(self, shell->hidden ? "debugger" : shell->id);
        px_shell_serve(shell);
        kernel->config.ops->thread_end(self);
    }
    pthread_mutex_lock(&kernel->lock);
    shell->ended = true;
    pthread_cond_broadcast(&kernel->changed);
    pthread_mutex_unlock(&kernel->lock);
    return NULL;
}

/* With the kernel's lock, which the thread no longer takes. Unlinks and frees a shell that ended.
 */
static void bury(struct px_shell **at)
{
    struct px_shell *shell = *at;
    *at = shell->next;
    pthread_join(shell->thread, NULL);
    px_shell_fini(shell);
    free(shell);
}

/* With the kernel's lock. */
static void bury_ended(struct px_kernel *kernel)
{
    for (struct px_shell **at = &kernel->shells; *at;) {
        if ((*at)->ended)
            bury(at);
        else
            at = &(*at)->next;
    }
}

/* With the kernel's lock. */
static void dismiss(struct px_shell *shell)
{
    shell->leaving = true;
    px_queue_stop(&shell->queue);
}

/* With the kernel's lock. They are buried when the service thread has ended, which may be about to
 * put a request into the queue of one. */
static bool have_ended(const struct px_kernel *kernel)
{
    const struct px_shell *shell = kernel->shells;
    while (shell && shell->ended)
        shell = shell->next;
    return !shell;
}

void px_subshells_end(struct px_kernel *kernel)
{
    const struct timespec until = px_wait_until(END_MS);
    pthread_mutex_lock(&kernel->lock);
    kernel->closed = true;
    for (struct px_shell *shell = kernel->shells; shell; shell = shell->next) {
        dismiss(shell);
        px_shell_interrupt(shell);
    }
    px_input_wake(kernel, NULL);
    pthread_cond_broadcast(&kernel->changed);
    while ((!have_ended(kernel) || kernel->questions) &&
           pthread_cond_timedwait(&kernel->changed, &kernel->lock, &until) != ETIMEDOUT)
        continue;
    pthread_mutex_unlock(&kernel->lock);
}

bool px_subshells_left(struct px_kernel *kernel)
{
    pthread_mutex_lock(&kernel->lock);
    bury_ended(kernel);
    const bool left = kernel->shells || kernel->questions;
    pthread_mutex_unlock(&kernel->lock);
    return left;
}

/* ---- requests, on the service thread ---- */

/* With the kernel's lock. */
static struct px_shell *find(struct px_kernel *kernel, struct px_span id)
{
    for (struct px_shell *shell = kernel->shells; shell; shell = shell->next)
        if (!shell->leaving && !shell->hidden && px_span_equal(id, shell->id))
            return shell;
    return NULL;
}

struct px_shell *px_shell_of(struct px_kernel *kernel, const struct px_request *request)
{
    if (!request->header.subshell_id.size)
        return &kernel->main;
    pthread_mutex_lock(&kernel->lock);
    struct px_shell *shell = find(kernel, request->header.subshell_id);
    pthread_mutex_unlock(&kernel->lock);
    return shell;
}

static int start(struct px_kernel *kernel, struct px_shell *shell, struct px_error *err)
{
    pthread_mutex_lock(&kernel->lock);
    int count = 0;
    struct px_shell **last = &kernel->shells;
    bury_ended(kernel);
    for (; *last; last = &(*last)->next)
        count++;
    int failed = kernel->closed || count >= PX_MOST_SUBSHELLS ? EAGAIN : 0;
    if (!failed) {
        *last = shell; /* the thread looks itself up */
        failed = pthread_create(&shell->thread, NULL, subshell_thread, shell);
        if (failed)
            *last = NULL;
    }
    pthread_mutex_unlock(&kernel->lock);
    return failed ? px_fail(err, PX_EIO, "no subshell beyond %d: %s", count, strerror(failed)) : 0;
}

static struct px_shell *create(struct px_kernel *kernel, bool hidden, struct px_error *err)
{
    struct px_shell *shell = px_alloc(sizeof *shell);
    const int made = px_shell_init(shell, kernel, err);
    shell->hidden = hidden;
    if (hidden)
        strcpy(shell->id, "debugger");
    else
        px_id_random(shell->id);
    if (made == 0 && start(kernel, shell, err) == 0)
        return shell;
    px_shell_fini(shell);
    free(shell);
    return NULL;
}

struct px_shell *px_shell_of_debugger(struct px_kernel *kernel)
{
    pthread_mutex_lock(&kernel->lock);
    struct px_shell *shell = kernel->shells;
    while (shell && !shell->hidden)
        shell = shell->next;
    pthread_mutex_unlock(&kernel->lock);
    struct px_error err;
    if (!shell && !(shell = create(kernel, true, &err)))
        px_log(PX_WARN, "debugger.refused", "why=\"%s\"", err.text);
    return shell;
}

void px_on_create_subshell_request(struct px_kernel *kernel, struct px_request *request)
{
    if (!kernel->config.ops->thread_begin) {
        px_request_refuse(kernel, request, "NotImplementedError", "%s has no subshells",
                          kernel->config.ops->name);
        return;
    }
    struct px_error err;
    const struct px_shell *shell = create(kernel, false, &err);
    if (!shell) {
        px_request_refuse(kernel, request, "RuntimeError", "%s", err.text);
        return;
    }
    char *content = px_format("{\"status\": \"ok\", \"subshell_id\": \"%s\"}", shell->id);
    px_request_reply(kernel, request, px_span_of(content));
    free(content);
}

static bool any(const struct px_request *request, void *unused)
{
    (void)request, (void)unused;
    return true;
}

void px_on_delete_subshell_request(struct px_kernel *kernel, struct px_request *request)
{
    json_t *json = px_json_parse(px_request_content(request), NULL);
    const char *id = json_string_value(json_object_get(json, "subshell_id"));
    struct px_request *waiting = NULL;
    pthread_mutex_lock(&kernel->lock);
    struct px_shell *shell = id ? find(kernel, px_span_of(id)) : NULL;
    if (shell) {
        waiting = px_queue_remove(&shell->queue, any, NULL);
        dismiss(shell);
        pthread_cond_broadcast(&kernel->changed);
    }
    pthread_mutex_unlock(&kernel->lock);
    while (waiting) {
        struct px_request *next = waiting->next;
        px_kernel_serve_aborted(kernel, waiting);
        waiting = next;
    }
    if (shell)
        px_request_reply(kernel, request, PX_SPAN("{\"status\": \"ok\"}"));
    else
        px_request_refuse(kernel, request, "KeyError", "no subshell %.60s", id ? id : "is named");
    json_decref(json);
}

void px_on_list_subshell_request(struct px_kernel *kernel, struct px_request *request)
{
    const char *separator = "";
    struct px_buf content = {0};
    px_buf_text(&content, "{\"status\": \"ok\", \"subshell_id\": [");
    pthread_mutex_lock(&kernel->lock);
    for (struct px_shell *shell = kernel->shells; shell; shell = shell->next) {
        if (shell->leaving || shell->hidden)
            continue;
        px_buf_printf(&content, "%s\"%s\"", separator, shell->id);
        separator = ", ";
    }
    pthread_mutex_unlock(&kernel->lock);
    px_buf_text(&content, "]}");
    px_request_reply(kernel, request, px_buf_span(&content));
    px_buf_fini(&content);
}
