/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * input: a question to the user and the wait for its answer.
 *
 * A shell has one question open at a time, as its thread waits for it. An input_reply that nobody
 * waits for is dropped: front ends send none of their own accord, but a slow user may answer
 * a question that was interrupted.
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

int px_input_init(struct px_input *input, struct px_error *err)
{
    *input = (struct px_input){0};
    pthread_mutex_init(&input->lock, NULL);
    input->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (input->fd < 0)
        return px_fail(err, PX_EIO, "no eventfd: %s", strerror(errno));
    return 0;
}

void px_input_fini(struct px_input *input)
{
    if (input->fd >= 0)
        close(input->fd);
    px_buf_fini(&input->answer);
    pthread_mutex_destroy(&input->lock);
}

void px_input_ask(struct px_input *input)
{
    pthread_mutex_lock(&input->lock);
    input->asked = true;
    input->answered = input->interrupted = false;
    input->question[0] = 0;
    pthread_mutex_unlock(&input->lock);
}

void px_input_name(struct px_input *input, const char *question)
{
    pthread_mutex_lock(&input->lock);
    snprintf(input->question, sizeof input->question, "%s", question);
    pthread_mutex_unlock(&input->lock);
}

bool px_input_waits(struct px_input *input, struct px_span question)
{
    pthread_mutex_lock(&input->lock);
    const bool waits = input->asked && !input->answered &&
                       (!question.size || px_span_equal(question, input->question));
    pthread_mutex_unlock(&input->lock);
    return waits;
}

/* 1: answered, 0: not yet, -1: interrupted. */
static int look(struct px_input *input, struct px_buf *line)
{
    int result = 0;
    pthread_mutex_lock(&input->lock);
    eventfd_t ignored;
    (void)eventfd_read(input->fd, &ignored);
    if (input->interrupted) {
        result = -1;
    } else if (input->answered) {
        px_buf_append(line, input->answer.data, input->answer.size);
        input->asked = false;
        result = 1;
    }
    input->interrupted = false;
    pthread_mutex_unlock(&input->lock);
    return result;
}

int px_input_wait(struct px_input *input, struct px_buf *line, struct px_error *err)
{
    struct pollfd wake = {.fd = input->fd, .events = POLLIN};
    int seen = look(input, line);
    if (seen == 0) {
        if (poll(&wake, 1, LOOK_AGAIN_MS) > 0)
            seen = look(input, line);
    }
    return seen > 0 ? 0 : px_fail(err, PX_EINTR, "interrupted while waiting for input");
}

void px_input_answer(struct px_input *input, struct px_span content)
{
    json_t *json = px_json_parse(content, NULL);
    const json_t *value = json_object_get(json, "value");
    if (json_is_string(value)) {
        pthread_mutex_lock(&input->lock);
        if (input->asked && !input->answered) {
            px_buf_clear(&input->answer);
            px_buf_append(&input->answer, json_string_value(value), json_string_length(value));
            input->answered = true;
            (void)eventfd_write(input->fd, 1);
        }
        pthread_mutex_unlock(&input->lock);
    }
    json_decref(json);
}

void px_input_interrupt(struct px_input *input)
{
    pthread_mutex_lock(&input->lock);
    if (input->asked) {
        input->interrupted = true;
        (void)eventfd_write(input->fd, 1);
    }
    pthread_mutex_unlock(&input->lock);
}
