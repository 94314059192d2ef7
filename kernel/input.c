/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * input: questions to the user and the wait for their answers.
 *
 * A question is put by the front end whose request it belongs to, while that runs: no front end
 * shows one of a request that has ended. Whatever thread asks, of one request one question is
 * open at a time, as people answer one by one and some front ends do not say which. An answer that
 * nobody waits for is dropped: a slow user may answer a question that was interrupted.
 *
 * Questions lie on the stacks of those who ask, in a list in order of asking, under the kernel's
 * lock.
 */
#include "core.h"

#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* A signal that lands between the language's last look and poll(2) would be noticed only with the
 * answer; so the wait ends now and then for the language to look again. */
#define LOOK_AGAIN_MS 1000
#define QUESTION_SIZE 160

struct px_question {
    struct px_question *next;
    struct px_parent *parent; /* of the request that it belongs to: a reference */
    uint64_t number;
    struct px_item *item;   /* input_request, until it is posted */
    char id[QUESTION_SIZE]; /* its msg_id; empty until it is sent */
    bool answered;
    struct px_buf answer;
    int fd; /* eventfd: there is something to look at */
};

static void ring(const struct px_question *question)
{
    (void)eventfd_write(question->fd, 1);
}

/* ---- with the kernel's lock ---- */

static bool serves(const struct px_shell *shell, const struct px_parent *parent)
{
    return shell->serving && shell->serving->parent == parent;
}

/* The request whose front end may be asked: the caller's, while it runs; else what this thread's
 * shell serves, if it is a shell's. */
static struct px_request *asker(struct px_kernel *kernel, const struct px_parent *parent)
{
    const struct px_shell *here = px_shell_here(kernel);
    if (!parent)
        return here->serving;
    if (serves(&kernel->main, parent))
        return kernel->main.serving;
    for (const struct px_shell *shell = kernel->shells; shell; shell = shell->next)
        if (serves(shell, parent))
            return shell->serving;
    return pthread_equal(here->thread, pthread_self()) ? here->serving : NULL;
}

/* The first that belongs to the same request. */
static bool is_its_turn(const struct px_kernel *kernel, const struct px_question *question)
{
    const struct px_question *at = kernel->questions;
    while (at && at->parent != question->parent)
        at = at->next;
    return at == question;
}

static struct px_item *create_item(const struct px_request *request, const struct px_ask *ask,
                                   uint64_t number)
{
    struct px_item *item = px_item_create(PX_STDIN, "input_request", request->parent);
    item->request = px_msg_copy(request->msg);
    item->question = number;
    px_buf_text(&item->content, "{\"prompt\": ");
    px_buf_json_string(&item->content, ask->prompt, strlen(ask->prompt));
    px_buf_text(&item->content, ask->password ? ", \"password\": true}" : ", \"password\": false}");
    return item;
}

/* ---- asking ---- */

static int refuse(const struct px_request *request, struct px_error *err)
{
    return request ? px_fail(err, PX_ENOENT, "this front end takes no input")
                   : px_fail(err, PX_ECLOSED, "the cell has ended: nobody would see the question");
}

bool px_has_front_end(const struct px_kernel *kernel, const struct px_request *request)
{
    const char *only = kernel->config.stdin_of;
    return kernel->config.has_stdin &&
           (!only || !request->msg || px_span_equal(px_msg_ident(request->msg, 0), only));
}

static int begin(struct px_kernel *kernel, const struct px_parent *parent, const struct px_ask *ask,
                 struct px_question *question, struct px_error *err)
{
    pthread_mutex_lock(&kernel->lock);
    const struct px_request *request = asker(kernel, parent);
    const bool allowed = request && request->allow_stdin && px_has_front_end(kernel, request);
    const bool asks = allowed && request->msg && !kernel->closed;
    if (asks) {
        question->parent = px_parent_ref(request->parent); /* so that no other is at its address */
        question->number = ++kernel->last_question;
        question->item = create_item(request, ask, question->number);
        struct px_question **last = &kernel->questions;
        while (*last)
            last = &(*last)->next;
        *last = question;
    }
    pthread_mutex_unlock(&kernel->lock);
    return asks ? 0 : refuse(allowed ? NULL : request, err);
}

/* Lets the next one of the same request go on. */
static void end(struct px_kernel *kernel, struct px_question *question)
{
    pthread_mutex_lock(&kernel->lock);
    struct px_question **at = &kernel->questions;
    while (*at != question)
        at = &(*at)->next;
    *at = question->next;
    px_input_wake(kernel, question->parent);
    pthread_cond_broadcast(&kernel->changed);
    pthread_mutex_unlock(&kernel->lock);
    px_parent_unref(question->parent);
    px_item_destroy(question->item);
    px_buf_fini(&question->answer);
}

/* 1: answered, 0: not yet, -1: there will be no answer. */
static int look(struct px_kernel *kernel, struct px_question *question)
{
    struct px_item *item = NULL;
    pthread_mutex_lock(&kernel->lock);
    const int result = question->answered ? 1 : kernel->closed ? -1 : 0;
    if (result == 0 && is_its_turn(kernel, question)) {
        item = question->item;
        question->item = NULL;
    }
    pthread_mutex_unlock(&kernel->lock);
    if (item)
        px_outbox_post(&kernel->outbox, item, PX_POST_RING);
    return result;
}

static int wait_for_answer(struct px_kernel *kernel, const struct px_ask *ask,
                           struct px_question *question, struct px_error *err)
{
    struct pollfd wake = {.fd = question->fd, .events = POLLIN};
    int seen = look(kernel, question);
    while (seen == 0) {
        eventfd_t rings;
        (void)poll(&wake, 1, LOOK_AGAIN_MS);
        (void)eventfd_read(question->fd, &rings);
        seen = look(kernel, question);
        if (seen == 0 && !ask->go_on(ask->ctx))
            return px_fail(err, PX_EINTR, "interrupted while waiting for input");
    }
    return seen > 0 ? 0 : px_fail(err, PX_ECLOSED, "the kernel ends");
}

int px_host_input(void *ctx, struct px_parent *parent, const struct px_ask *ask,
                  struct px_buf *line, struct px_error *err)
{
    struct px_kernel *kernel = ctx;
    struct px_question question = {.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (question.fd < 0)
        return px_fail(err, PX_EIO, "no eventfd: %s", strerror(errno));
    int status = begin(kernel, parent, ask, &question, err);
    if (status == 0) {
        status = wait_for_answer(kernel, ask, &question, err);
        if (status == 0)
            px_buf_append(line, question.answer.data, question.answer.size);
        end(kernel, &question);
    }
    close(question.fd);
    return status;
}

/* ---- the other side ---- */

void px_input_wake(struct px_kernel *kernel, const struct px_parent *parent)
{
    for (struct px_question *at = kernel->questions; at; at = at->next)
        if (!parent || at->parent == parent)
            ring(at);
}

void px_input_sent(struct px_kernel *kernel, uint64_t number, const char *id)
{
    pthread_mutex_lock(&kernel->lock);
    for (struct px_question *at = kernel->questions; at; at = at->next)
        if (at->number == number)
            snprintf(at->id, sizeof at->id, "%s", id);
    pthread_mutex_unlock(&kernel->lock);
}

/* The msg_id of the input_request that a reply names as its parent; else empty: some clients name
 * none, or the cell. */
static struct px_span question_of(const struct px_request *reply)
{
    struct px_header parent;
    if (px_header_scan(px_msg_parent(reply->msg), &parent, NULL) == 0 &&
        px_span_equal(parent.msg_type, "input_request"))
        return parent.msg_id;
    return PX_SPAN("");
}

static bool waits(const struct px_question *question, struct px_span id)
{
    return question->id[0] && !question->answered && (!id.size || px_span_equal(id, question->id));
}

void px_input_answered(struct px_kernel *kernel, const struct px_request *reply)
{
    json_t *json = px_json_parse(px_request_content(reply), NULL);
    const json_t *value = json_object_get(json, "value");
    const struct px_span id = question_of(reply);
    pthread_mutex_lock(&kernel->lock);
    struct px_question *question = json_is_string(value) ? kernel->questions : NULL;
    while (question && !waits(question, id))
        question = question->next;
    if (question) {
        px_buf_append(&question->answer, json_string_value(value), json_string_length(value));
        question->answered = true;
        ring(question);
    }
    pthread_mutex_unlock(&kernel->lock);
    json_decref(json);
}
