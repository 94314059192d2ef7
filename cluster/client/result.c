/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * result: events in order of arrival, counters, and those who wait for them.
 *
 * Everything here runs on the caller's threads under the client's lock, but for
 * px_result_file, by which the I/O thread moves a batch into view. A waiter sleeps
 * on its own semaphore and is posted only when what it waits for is there, so a thread that
 * awaits 20,000 replies is woken once. A semaphore and not a condition variable: sem_clockwait
 * returns when a signal handler has run, and that is how Ctrl-C gets through.
 */
#define _GNU_SOURCE
#include "client/client.h"

#include <errno.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <utlist.h>

#define MANY_TASKS 10000u /* at once */

/* Seconds since 1970. */
static double wall_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* ---- waiting ----------------------------------------------------------------- */

int64_t px_deadline(int64_t timeout_ms)
{
    if (timeout_ms == 0)
        return 0;
    const int64_t now = px_now_ms();
    return timeout_ms < 0 || timeout_ms > INT64_MAX / 2 - now ? INT64_MAX : now + timeout_ms;
}

enum phalanx_code px_waiter_sleep(struct px_waiter *waiter, int64_t deadline_ms)
{
    int status;
    if (deadline_ms == INT64_MAX) {
        status = sem_wait(&waiter->sem);
    } else {
        const struct timespec at = {.tv_sec = deadline_ms / 1000,
                                    .tv_nsec = (deadline_ms % 1000) * 1000000};
        status = sem_clockwait(&waiter->sem, CLOCK_MONOTONIC, &at);
    }
    if (status == 0)
        return PHALANX_OK;
    return errno == EINTR ? PHALANX_EINTR : PHALANX_ETIME;
}

void px_waiters_wake(struct px_waiter *called)
{
    while (called) {
        struct px_waiter *next = called->next_called;
        sem_post(&called->sem); /* it may be gone now */
        called = next;
    }
}

/* Lock held. Nobody lets go of a semaphore that is still to be posted. */
static void leave(struct phalanx_result *result, struct px_waiter *waiter)
{
    DL_DELETE(result->waiters, waiter);
    while (waiter->called && sem_wait(&waiter->sem) < 0)
        continue;
    sem_destroy(&waiter->sem);
}

static bool is_ready(const struct phalanx_result *result, const struct px_waiter *waiter)
{
    switch (waiter->until) {
    case PX_MORE:
        return result->arrived > waiter->seen || result->dropped ||
               result->finished == result->count;
    case PHALANX_EVENT:
        return result->head || result->dropped || result->finished == result->count;
    case PHALANX_REPLIES:
        return result->replied == result->count;
    case PHALANX_SHOWABLE:
        return (result->head && (result->unread || result->losses)) || result->dropped ||
               result->finished == result->count;
    default:
        return result->finished == result->count;
    }
}

/* Lock held, and held again on return. */
static enum phalanx_code wait_until(struct phalanx_result *result, int until, size_t seen,
                                    int64_t deadline_ms)
{
    struct phalanx_client *client = result->client;
    struct px_waiter waiter = {.until = until, .seen = seen};
    if (is_ready(result, &waiter))
        return PHALANX_OK;
    if (deadline_ms == 0)
        return result->closed ? PHALANX_ECLOSED : PHALANX_ETIME;
    px_client_wake(client);
    sem_init(&waiter.sem, 0, 0);
    DL_APPEND(result->waiters, &waiter);
    enum phalanx_code code = PHALANX_OK;
    while (!is_ready(result, &waiter) && code == PHALANX_OK) {
        if (result->closed) {
            code = PHALANX_ECLOSED;
            break;
        }
        pthread_mutex_unlock(&client->lock);
        code = px_waiter_sleep(&waiter, deadline_ms);
        pthread_mutex_lock(&client->lock);
        waiter.called &= code != PHALANX_OK;
    }
    if (is_ready(result, &waiter))
        code = PHALANX_OK;
    leave(result, &waiter);
    return code;
}

static enum phalanx_code wait_unlocked(struct phalanx_result *result, int until, size_t seen,
                                       int64_t timeout_ms)
{
    if (px_client_inherited(result->client))
        return PHALANX_ECLOSED;
    pthread_mutex_lock(&result->client->lock);
    const enum phalanx_code code = wait_until(result, until, seen, px_deadline(timeout_ms));
    pthread_mutex_unlock(&result->client->lock);
    return code;
}

enum phalanx_code phalanx_wait(phalanx_result *result, enum phalanx_until until, int64_t timeout_ms)
{
    return wait_unlocked(result, (int)until, 0, timeout_ms);
}

enum phalanx_code phalanx_wait_more(phalanx_result *result, size_t seen, int64_t timeout_ms)
{
    return wait_unlocked(result, PX_MORE, seen, timeout_ms);
}

/* ---- events --------------------------------------------------------------------- */

static char *put(char **at, struct px_span text)
{
    char *start = *at;
    if (text.size)
        memcpy(start, text.data, text.size);
    start[text.size] = '\0';
    *at += text.size + 1;
    return start;
}

static void add_buffers(struct phalanx_message *message)
{
    const size_t count = px_msg_buffer_count(message->msg);
    if (!count)
        return;
    message->buffers = px_alloc(count * sizeof *message->buffers);
    for (size_t i = 0; i < count; i++) {
        const struct px_span span = px_msg_buffer(message->msg, i);
        message->buffers[i] = (struct phalanx_buffer){.data = span.data, .size = span.size};
        message->bytes += span.size;
    }
    message->event.buffers = message->buffers;
    message->event.buffer_count = count;
}

struct phalanx_message *px_event_create_new(enum phalanx_event_type type, struct px_msg *msg)
{
    const struct px_span header = px_msg_header(msg), metadata = px_msg_metadata(msg);
    /* Of a stream the text alone is shown. */
    const struct px_span content = type == PHALANX_STREAM ? px_span_of("{}") : px_msg_content(msg);
    const size_t size = header.size + metadata.size + content.size + 3;
    struct phalanx_message *message = px_alloc(sizeof *message + size);
    message->event.type = type;
    message->event.engine = -1;
    message->event.received = wall_clock();
    char *at = message->text;
    message->event.header = put(&at, header);
    message->event.metadata = put(&at, metadata);
    message->event.content = put(&at, content);
    message->bytes = sizeof *message + size;
    message->msg = msg;
    add_buffers(message);
    return message;
}

struct phalanx_message *px_event_create_text(enum phalanx_event_type type, const char *content)
{
    const struct px_span span = px_span_of(content);
    struct phalanx_message *message = px_alloc(sizeof *message + span.size + 1);
    char *at = message->text;
    message->event.type = type;
    message->event.engine = -1;
    message->event.received = wall_clock();
    message->event.header = message->event.metadata = "{}";
    message->event.content = put(&at, span);
    message->bytes = sizeof *message;
    return message;
}

void px_event_set_stream(struct phalanx_message *message, const char *name, struct px_buf *text)
{
    message->stream = *text;
    message->event.name = name;
    message->event.text = message->stream.data;
    message->event.text_size = message->stream.size;
    message->bytes += message->stream.capacity;
    *text = (struct px_buf){0};
}

void phalanx_message_free(phalanx_message *message)
{
    if (!message)
        return;
    px_msg_destroy(message->msg);
    px_buf_fini(&message->stream);
    free(message->buffers);
    free(message->parent);
    free(message);
}

/* What stands in the place of output that was not kept. Lock held. */
static struct phalanx_message *dropped_notice(struct phalanx_result *result)
{
    struct phalanx_message *message = px_event_create_text(PHALANX_STREAM, "{}");
    const size_t dropped = atomic_exchange(&result->dropped, 0);
    struct px_buf text = {0};
    px_buf_printf(&text, "[%zu bytes of output were not kept: nobody read them]\n", dropped);
    px_event_set_stream(message, "stderr", &text);
    return message;
}

static struct phalanx_message *pop(struct phalanx_result *result)
{
    struct phalanx_message *message = result->head;
    if (!message)
        return result->dropped ? dropped_notice(result) : NULL;
    result->head = message->next;
    if (!result->head) {
        result->tail = NULL;
        result->losses = false;
    }
    if (px_event_is_output(message))
        result->unread -= message->bytes;
    return message;
}

enum phalanx_code phalanx_next(phalanx_result *result, int64_t timeout_ms,
                               struct phalanx_event *event)
{
    if (px_client_inherited(result->client))
        return PHALANX_ECLOSED;
    phalanx_message_free(result->current);
    pthread_mutex_lock(&result->client->lock);
    enum phalanx_code code = wait_until(result, PHALANX_EVENT, 0, px_deadline(timeout_ms));
    result->current = pop(result);
    if (result->current)
        code = PHALANX_OK;
    else if (code == PHALANX_OK)
        code = PHALANX_DONE;
    pthread_mutex_unlock(&result->client->lock);
    if (result->current)
        *event = result->current->event;
    return code;
}

phalanx_message *phalanx_take(phalanx_result *result)
{
    struct phalanx_message *message = result->current;
    result->current = NULL;
    return message;
}

/* ---- filing (the I/O thread, lock held) -------------------------------------------- */

static void file_event(struct phalanx_result *result, struct phalanx_message *message)
{
    message->next = NULL;
    if (result->tail)
        result->tail->next = message;
    else
        result->head = message;
    result->tail = message;
    result->arrived++;
    result->losses |= message->event.lost;
}

static void tell_done(struct phalanx_result *result)
{
    void (*const done)(void *) = result->done;
    if (!done || (!result->closed && result->replied < result->count))
        return;
    result->done = NULL;
    done(result->done_hint);
}

struct px_waiter *px_result_file(struct phalanx_result *result, struct px_waiter *called)
{
    struct phalanx_message *message = result->staged.head, *next;
    for (; message; message = next) {
        next = message->next;
        struct px_task *task = result->tasks[message->event.task];
        const bool reply = message->event.type == PHALANX_REPLY;
        if (message->event.engine >= 0 && (reply || !task->settled))
            task->engine = message->event.engine;
        task->settled |= reply;
        file_event(result, message);
    }
    result->replied += result->staged.replied;
    result->finished += result->staged.finished;
    result->closed |= result->staged.closed;
    memset(&result->staged, 0, sizeof result->staged);
    tell_done(result);
    struct px_waiter *waiter;
    DL_FOREACH(result->waiters, waiter) {
        if (waiter->called || !(result->closed || is_ready(result, waiter)))
            continue;
        waiter->called = true;
        waiter->next_called = called;
        called = waiter;
    }
    return called;
}

void px_result_close(struct phalanx_result *result)
{
    pthread_mutex_lock(&result->client->lock);
    result->staged.closed = true;
    struct px_waiter *called = px_result_file(result, NULL);
    pthread_mutex_unlock(&result->client->lock);
    px_waiters_wake(called);
}

/* ---- tasks ----------------------------------------------------------------------------- */

void px_result_append(struct phalanx_result *result, struct px_task *task)
{
    if (result->count == result->capacity) {
        result->capacity = result->capacity ? 2 * result->capacity : 4;
        result->tasks = px_realloc(result->tasks, result->capacity * sizeof(struct px_task *));
    }
    task->index = result->count;
    result->tasks[result->count++] = task;
    struct phalanx_client *client = result->client;
    const size_t held = atomic_fetch_add(&client->tasks_held, 1) + 1;
    if (held > client->most_held)
        client->most_held = held;
}

phalanx_client *phalanx_result_client(const phalanx_result *result)
{
    return result->client;
}

/* One of its own numbers. */
static size_t number_of(const phalanx_result *result, const size_t *number)
{
    if (px_client_inherited(result->client))
        return 0;
    pthread_mutex_lock(&result->client->lock);
    const size_t now = *number;
    pthread_mutex_unlock(&result->client->lock);
    return now;
}

size_t phalanx_task_count(const phalanx_result *result)
{
    return number_of(result, &result->count);
}

const char *phalanx_task_id(const phalanx_result *result, size_t task)
{
    if (px_client_inherited(result->client))
        return NULL;
    pthread_mutex_lock(&result->client->lock);
    const char *id = task < result->count ? result->tasks[task]->id : NULL;
    pthread_mutex_unlock(&result->client->lock);
    return id;
}

int phalanx_task_engine(const phalanx_result *result, size_t task)
{
    if (px_client_inherited(result->client))
        return -1;
    pthread_mutex_lock(&result->client->lock);
    const int engine = task < result->count ? result->tasks[task]->engine : -1;
    pthread_mutex_unlock(&result->client->lock);
    return engine;
}

double phalanx_submitted(const phalanx_result *result)
{
    return result->submitted;
}

size_t phalanx_replied(const phalanx_result *result)
{
    return number_of(result, &result->replied);
}

size_t phalanx_arrived(const phalanx_result *result)
{
    return number_of(result, &result->arrived);
}

size_t phalanx_finished(const phalanx_result *result)
{
    return number_of(result, &result->finished);
}

phalanx_result *phalanx_late(phalanx_client *client)
{
    if (px_client_inherited(client))
        return NULL;
    struct phalanx_result *result = px_result_create(client);
    struct px_task *task = px_alloc(sizeof *task + 1);
    task->result = result;
    task->engine = -1;
    task->settled = true; /* nobody's: an engine that is not known is not the last that spoke */
    atomic_fetch_add(&result->refs, 1); /* the command's */
    pthread_mutex_lock(&client->lock);
    px_result_append(result, task);
    const bool posted = px_client_post_result(client, result, px_io_take_late);
    pthread_mutex_unlock(&client->lock);
    if (posted)
        return result;
    px_result_unref(result); /* the command's, which has not taken it */
    px_result_unref(result);
    return NULL;
}

/* ---- lifetime ------------------------------------------------------------------------------ */

struct phalanx_result *px_result_create(struct phalanx_client *client)
{
    struct phalanx_result *result = px_alloc(sizeof *result);
    result->client = client;
    result->submitted = wall_clock();
    px_client_ref(client);
    atomic_init(&result->refs, 1);
    return result;
}

static void free_messages(struct phalanx_message *message)
{
    while (message) {
        struct phalanx_message *next = message->next;
        phalanx_message_free(message);
        message = next;
    }
}

void px_result_unref(struct phalanx_result *result)
{
    if (atomic_fetch_sub(&result->refs, 1) != 1)
        return;
    free_messages(result->head);
    free_messages(result->staged.head);
    phalanx_message_free(result->current);
    for (size_t i = 0; i < result->count; i++)
        free(result->tasks[i]);
    free(result->tasks);
    atomic_fetch_sub(&result->client->tasks_held, result->count);
    px_client_unref(result->client);
    free(result);
}

void phalanx_notify(phalanx_result *result, void (*done)(void *hint), void *hint)
{
    if (px_client_inherited(result->client))
        return;
    pthread_mutex_lock(&result->client->lock);
    result->done = done;
    result->done_hint = hint;
    tell_done(result);
    pthread_mutex_unlock(&result->client->lock);
}

void phalanx_discard(phalanx_result *result)
{
    if (px_client_inherited(result->client))
        return;
    atomic_store(&result->abandoned, true);
    pthread_mutex_lock(&result->client->lock);
    struct phalanx_message *const kept = result->head;
    for (const struct phalanx_message *message = kept; message; message = message->next)
        if (px_event_is_output(message)) /* what is staged counts until it is freed */
            result->unread -= message->bytes;
    result->head = result->tail = NULL;
    pthread_mutex_unlock(&result->client->lock);
    free_messages(kept);
}

/* Whether there were many tasks, and most of them are gone: malloc keeps what they took. */
static bool is_past_a_burst(const struct phalanx_client *client)
{
    return client->most_held >= MANY_TASKS && client->tasks_held < client->most_held / 8;
}

void px_results_tidy(struct phalanx_client *client)
{
    if (!atomic_exchange(&client->untidy, false) || !is_past_a_burst(client))
        return; /* or in the next burst, whose end says so again */
    client->most_held = client->tasks_held;
    malloc_trim(0);
}

void phalanx_result_free(phalanx_result *result)
{
    if (!result || px_client_inherited(result->client))
        return;
    struct phalanx_client *client = result->client;
    atomic_store(&result->abandoned, true);
    atomic_store(&result->freed, true);
    pthread_mutex_lock(&client->lock);
    result->done = NULL;
    const bool posted =
        result->finished < result->count && px_client_post_result(client, result, px_io_forget);
    if (is_past_a_burst(client) && !atomic_exchange(&client->untidy, true))
        px_client_post_result(client, NULL, px_io_watch);
    pthread_mutex_unlock(&client->lock);
    if (!posted)
        px_result_unref(result);
}
