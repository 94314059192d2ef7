/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * queue: requests on their way to the interpreter thread.
 *
 * A list under a lock, and not the doorbell of loop/, because the service thread must reach
 * into it: abort answers or marks requests that still wait. The eventfd is rung only when the
 * taker has seen the queue empty, so a burst costs one system call.
 *
 * A cell that fails aborts the cells sent after it ("run all" sends them at once). Some may
 * still be on the wire at that moment; so execute_requests that arrive within a short window and
 * were dated before the failure are aborted too. Their sender could not have known.
 */
#include "core.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

int px_queue_init(struct px_queue *queue, struct px_error *err)
{
    *queue = (struct px_queue){.asleep = true};
    queue->last = &queue->first;
    pthread_mutex_init(&queue->lock, NULL);
    queue->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (queue->fd < 0)
        return px_fail(err, PX_EIO, "no eventfd: %s", strerror(errno));
    return 0;
}

void px_queue_fini(struct px_queue *queue)
{
    while (queue->first) {
        struct px_request *request = queue->first;
        queue->first = request->next;
        px_request_destroy(request);
    }
    if (queue->fd >= 0)
        close(queue->fd);
    pthread_mutex_destroy(&queue->lock);
}

/* Gives up the lock, then wakes the taker, who would wait for it otherwise. An eventfd write fails
 * only at 2^64 - 1 unread rings. */
static void unlock_and_ring(struct px_queue *queue)
{
    const bool wake = queue->asleep;
    queue->asleep = false;
    pthread_mutex_unlock(&queue->lock);
    if (wake)
        (void)eventfd_write(queue->fd, 1);
}

static bool is_execute(const struct px_request *request)
{
    return px_span_equal(request->header.msg_type, "execute_request");
}

/* Dates compare as text when they are written alike. */
static bool sent_before(const struct px_request *request, const char *date)
{
    const struct px_span sent = request->header.date;
    return sent.size == strlen(date) && memcmp(sent.data, date, sent.size) < 0;
}

void px_queue_push(struct px_queue *queue, struct px_request *request)
{
    pthread_mutex_lock(&queue->lock);
    if (queue->abort_until_ms && is_execute(request)) {
        if (px_now_ms() > queue->abort_until_ms)
            queue->abort_until_ms = 0;
        else if (sent_before(request, queue->abort_date))
            request->aborted = true;
    }
    *queue->last = request;
    queue->last = &request->next;
    unlock_and_ring(queue);
}

struct px_request *px_queue_take(struct px_queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    struct px_request *request = queue->first;
    if (request) {
        queue->first = request->next;
        if (!queue->first)
            queue->last = &queue->first;
        request->next = NULL;
    } else {
        eventfd_t ignored;
        (void)eventfd_read(queue->fd, &ignored); /* a ring may come late, even while asleep */
        queue->asleep = !queue->stopped;
    }
    pthread_mutex_unlock(&queue->lock);
    return request;
}

bool px_queue_waits(struct px_queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    const bool waits = queue->first != NULL;
    pthread_mutex_unlock(&queue->lock);
    return waits;
}

void px_queue_stop(struct px_queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    queue->stopped = true;
    queue->asleep = true;
    unlock_and_ring(queue);
}

bool px_queue_stopped(struct px_queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    const bool stopped = queue->stopped;
    pthread_mutex_unlock(&queue->lock);
    return stopped;
}

void px_queue_abort_executes(struct px_queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    px_date_now(queue->abort_date);
    queue->abort_until_ms = px_now_ms() + PX_ABORT_WINDOW_MS;
    for (struct px_request *at = queue->first; at; at = at->next)
        at->aborted = at->aborted || is_execute(at);
    pthread_mutex_unlock(&queue->lock);
}

struct px_request *px_queue_remove(struct px_queue *queue,
                                   bool (*match)(const struct px_request *request, void *ctx),
                                   void *ctx)
{
    struct px_request *removed = NULL, **end = &removed;
    pthread_mutex_lock(&queue->lock);
    struct px_request **at = &queue->first;
    while (*at) {
        struct px_request *request = *at;
        if (!match(request, ctx)) {
            at = &request->next;
            continue;
        }
        *at = request->next;
        request->next = NULL;
        *end = request;
        end = &request->next;
    }
    queue->last = at;
    pthread_mutex_unlock(&queue->lock);
    return removed;
}
