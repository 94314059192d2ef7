/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * doorbell: a queue of pointers from many threads to one, with a wake-up.
 *
 * The owner takes items until there are none, which silences the bell, and is then "asleep": the
 * next post rings it, later ones find it rung. The ring buffer grows by doubling and is kept, so
 * that posting in a steady state allocates nothing.
 */
#define _GNU_SOURCE
#include "loop/loop.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct px_doorbell {
    pthread_mutex_t lock;
    void **items; /* ring of `capacity`, a power of two */
    size_t capacity, first, count;
    bool asleep; /* the owner has seen an empty queue; the next post rings */
    int fd;
};

struct px_doorbell *px_doorbell_create(struct px_error *err)
{
    const int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0) {
        px_fail(err, PX_EIO, "no eventfd: %s", strerror(errno));
        return NULL;
    }
    struct px_doorbell *bell = px_alloc(sizeof *bell);
    pthread_mutex_init(&bell->lock, NULL);
    bell->fd = fd;
    bell->asleep = true;
    bell->capacity = 64;
    bell->items = px_alloc(bell->capacity * sizeof *bell->items);
    return bell;
}

void px_doorbell_destroy(struct px_doorbell *bell, void (*drop)(void *item))
{
    if (!bell)
        return;
    for (void *item; (item = px_doorbell_take(bell));)
        drop(item);
    close(bell->fd);
    pthread_mutex_destroy(&bell->lock);
    free(bell->items);
    free(bell);
}

static void grow(struct px_doorbell *bell)
{
    void **items = px_alloc(2 * bell->capacity * sizeof *items);
    for (size_t i = 0; i < bell->count; i++)
        items[i] = bell->items[(bell->first + i) & (bell->capacity - 1)];
    free(bell->items);
    bell->items = items;
    bell->first = 0;
    bell->capacity *= 2;
}

void px_doorbell_post(struct px_doorbell *bell, void *item)
{
    pthread_mutex_lock(&bell->lock);
    if (bell->count == bell->capacity)
        grow(bell);
    bell->items[(bell->first + bell->count++) & (bell->capacity - 1)] = item;
    const bool ring = bell->asleep;
    bell->asleep = false;
    pthread_mutex_unlock(&bell->lock);
    if (ring && eventfd_write(bell->fd, 1) < 0)
        px_die(1, "cannot ring a doorbell: %s", strerror(errno));
}

void *px_doorbell_take(struct px_doorbell *bell)
{
    void *item = NULL;
    pthread_mutex_lock(&bell->lock);
    if (bell->count) {
        item = bell->items[bell->first];
        bell->first = (bell->first + 1) & (bell->capacity - 1);
        bell->count--;
    } else {
        /* Whether it was rung or not: a ring is written outside the lock and may come late. Then
         * the owner wakes once for nothing, and comes here. */
        eventfd_t ignored;
        (void)eventfd_read(bell->fd, &ignored);
        bell->asleep = true;
    }
    pthread_mutex_unlock(&bell->lock);
    return item;
}

void *px_doorbell_wait(struct px_doorbell *bell, int64_t timeout_ms)
{
    const int64_t deadline = px_now_ms() + timeout_ms;
    for (;;) {
        void *item = px_doorbell_take(bell);
        const int64_t left = timeout_ms < 0 ? -1 : deadline - px_now_ms();
        if (item || (timeout_ms >= 0 && left <= 0))
            return item;
        struct pollfd poll_fd = {.fd = bell->fd, .events = POLLIN};
        const int ready = poll(&poll_fd, 1, left > INT32_MAX ? INT32_MAX : (int)left);
        if (ready < 0 && errno == EINTR)
            return NULL;
    }
}

int px_doorbell_fd(const struct px_doorbell *bell)
{
    return bell->fd;
}
