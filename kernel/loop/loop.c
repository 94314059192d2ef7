/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * loop: poll(2) over sockets and descriptors, a heap of timers, a signalfd.
 *
 * A turn: wait until something is ready or the first timer is due; call due timers; call each
 * ready watch once. A callback may remove any watch or timer: a removed watch is
 * marked dead and freed when the turn ends, so the arrays do not move while walked.
 *
 * ZMQ_FD (zmq_getsockopt(3)) tells of an edge: it becomes readable when something happened
 * to the socket, and any use of the socket may take the edge away while messages wait. So the
 * loop never sleeps before it has asked (ZMQ_EVENTS) each socket that was used since it was asked
 * last; nothing touches a socket between that look and poll(2), and whatever happens later is a
 * new edge. zmq_poll(3) would ask every socket three times a turn, a system call each.
 */
#define _GNU_SOURCE
#include "loop/loop.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include <zmq.h>

struct px_watch {
    struct px_pollable socket; /* no handle: `fd` alone is watched */
    int fd;                    /* the socket's ZMQ_FD, or what was given */
    bool ready;
    px_loop_fn *fn; /* NULL: dead */
    void *ctx;
};

struct px_timer {
    int64_t due_ms, period_ms;
    unsigned long order; /* timers of one instant run in the order they were set */
    size_t place;        /* index in the heap; SIZE_MAX while its callback runs or when cancelled */
    bool cancelled;
    px_loop_fn *fn;
    void *ctx;
};

struct signal_row {
    int signo;
    px_signal_fn *fn;
    void *ctx;
};

struct px_loop {
    struct px_watch **watches;
    struct pollfd *fds; /* parallel to watches; rebuilt when `changed` */
    size_t watch_count, watch_capacity;
    bool changed;
    bool settled; /* no callback has run since each socket was asked */
    struct px_timer **heap;
    size_t timer_count, timer_capacity;
    unsigned long next_order;
    sigset_t signals;
    int signal_fd; /* -1 until the first px_loop_signal */
    struct signal_row *rows;
    size_t row_count;
    px_loop_fn *settle; /* px_loop_settle; NULL: nothing is gathered */
    void *settle_ctx;
    bool stopping;
};

struct px_loop *px_loop_create(void)
{
    struct px_loop *loop = px_alloc(sizeof *loop);
    sigemptyset(&loop->signals);
    loop->signal_fd = -1;
    return loop;
}

void px_loop_destroy(struct px_loop *loop)
{
    if (!loop)
        return;
    for (size_t i = 0; i < loop->watch_count; i++)
        free(loop->watches[i]);
    for (size_t i = 0; i < loop->timer_count; i++)
        free(loop->heap[i]);
    if (loop->signal_fd >= 0)
        close(loop->signal_fd);
    free(loop->watches);
    free(loop->fds);
    free(loop->heap);
    free(loop->rows);
    free(loop);
}

void px_loop_stop(struct px_loop *loop)
{
    loop->stopping = true;
}

/* ---- watches ---- */

static struct px_watch *add_watch(struct px_loop *loop, struct px_watch watch)
{
    if (loop->watch_count == loop->watch_capacity) {
        loop->watch_capacity = loop->watch_capacity ? 2 * loop->watch_capacity : 8;
        loop->watches = px_realloc(loop->watches, loop->watch_capacity * sizeof *loop->watches);
    }
    struct px_watch *added = px_alloc(sizeof *added);
    *added = watch;
    loop->watches[loop->watch_count++] = added;
    loop->changed = true;
    return added;
}

struct px_watch *px_loop_socket(struct px_loop *loop, struct px_pollable socket, px_loop_fn *fn,
                                void *ctx)
{
    int fd = -1;
    size_t size = sizeof fd;
    if (zmq_getsockopt(socket.handle, ZMQ_FD, &fd, &size) < 0)
        px_die(1, "a socket without a descriptor: %s", zmq_strerror(errno));
    if (socket.used)
        *socket.used = true; /* what came before the watch is looked at */
    return add_watch(loop, (struct px_watch){.socket = socket, .fd = fd, .fn = fn, .ctx = ctx});
}

struct px_watch *px_loop_fd(struct px_loop *loop, int fd, px_loop_fn *fn, void *ctx)
{
    return add_watch(loop, (struct px_watch){.fd = fd, .fn = fn, .ctx = ctx});
}

void px_loop_unwatch(struct px_loop *loop, struct px_watch *watch)
{
    if (!watch)
        return;
    watch->fn = NULL;
    loop->changed = true;
}

/* Frees dead watches and lays out what poll wants. */
static void rebuild(struct px_loop *loop)
{
    size_t kept = 0;
    for (size_t i = 0; i < loop->watch_count; i++) {
        if (loop->watches[i]->fn)
            loop->watches[kept++] = loop->watches[i];
        else
            free(loop->watches[i]);
    }
    loop->watch_count = kept;
    free(loop->fds);
    loop->fds = px_alloc((kept + 1) * sizeof *loop->fds);
    for (size_t i = 0; i < kept; i++)
        loop->fds[i] = (struct pollfd){.fd = loop->watches[i]->fd, .events = POLLIN};
    loop->changed = false;
    loop->settled = false;
}

/* ---- timers: a binary heap by (due, order) ---- */

static bool earlier(const struct px_timer *a, const struct px_timer *b)
{
    return a->due_ms != b->due_ms ? a->due_ms < b->due_ms : a->order < b->order;
}

static void place(struct px_loop *loop, size_t index, struct px_timer *timer)
{
    loop->heap[index] = timer;
    timer->place = index;
}

static void sift_up(struct px_loop *loop, size_t index, struct px_timer *timer)
{
    for (; index > 0; index = (index - 1) / 2) {
        struct px_timer *parent = loop->heap[(index - 1) / 2];
        if (!earlier(timer, parent))
            break;
        place(loop, index, parent);
    }
    place(loop, index, timer);
}

static void sift_down(struct px_loop *loop, size_t index, struct px_timer *timer)
{
    for (size_t child; (child = 2 * index + 1) < loop->timer_count; index = child) {
        if (child + 1 < loop->timer_count && earlier(loop->heap[child + 1], loop->heap[child]))
            child++;
        if (!earlier(loop->heap[child], timer))
            break;
        place(loop, index, loop->heap[child]);
    }
    place(loop, index, timer);
}

static void heap_insert(struct px_loop *loop, struct px_timer *timer)
{
    if (loop->timer_count == loop->timer_capacity) {
        loop->timer_capacity = loop->timer_capacity ? 2 * loop->timer_capacity : 8;
        loop->heap = px_realloc(loop->heap, loop->timer_capacity * sizeof *loop->heap);
    }
    timer->order = loop->next_order++;
    sift_up(loop, loop->timer_count++, timer);
}

static void heap_remove(struct px_loop *loop, struct px_timer *timer)
{
    const size_t index = timer->place;
    struct px_timer *last = loop->heap[--loop->timer_count];
    timer->place = SIZE_MAX;
    if (last == timer)
        return;
    if (index > 0 && earlier(last, loop->heap[(index - 1) / 2]))
        sift_up(loop, index, last);
    else
        sift_down(loop, index, last);
}

struct px_timer *px_loop_timer(struct px_loop *loop, int64_t delay_ms, int64_t period_ms,
                               px_loop_fn *fn, void *ctx)
{
    struct px_timer *timer = px_alloc(sizeof *timer);
    *timer = (struct px_timer){
        .due_ms = px_now_ms() + delay_ms, .period_ms = period_ms, .fn = fn, .ctx = ctx};
    heap_insert(loop, timer);
    return timer;
}

void px_loop_cancel(struct px_loop *loop, struct px_timer *timer)
{
    if (!timer)
        return;
    if (timer->place == SIZE_MAX) {
        timer->cancelled = true; /* inside its own callback: run_timers frees it */
        return;
    }
    heap_remove(loop, timer);
    free(timer);
}

static void run_timers(struct px_loop *loop)
{
    const int64_t now = px_now_ms();
    while (loop->timer_count && loop->heap[0]->due_ms <= now && !loop->stopping) {
        struct px_timer *timer = loop->heap[0];
        heap_remove(loop, timer);
        loop->settled = false;
        timer->fn(loop, timer->ctx);
        if (timer->cancelled || !timer->period_ms) {
            free(timer);
            continue;
        }
        timer->due_ms += timer->period_ms;
        if (timer->due_ms <= now) /* late by whole periods: do not make up for them */
            timer->due_ms = now + timer->period_ms;
        heap_insert(loop, timer);
    }
}

/* ---- signals ---- */

static void on_signal(struct px_loop *loop, void *ctx)
{
    (void)ctx;
    struct signalfd_siginfo info;
    while (read(loop->signal_fd, &info, sizeof info) == (ssize_t)sizeof info)
        for (size_t i = 0; i < loop->row_count; i++)
            if (loop->rows[i].signo == (int)info.ssi_signo)
                loop->rows[i].fn(loop, (int)info.ssi_signo, loop->rows[i].ctx);
}

int px_loop_signal(struct px_loop *loop, int signo, px_signal_fn *fn, void *ctx,
                   struct px_error *err)
{
    sigset_t wanted = loop->signals;
    if (signo == SIGHUP && px_hangup_ignored())
        return 0;
    sigaddset(&wanted, signo);
    const int fd = signalfd(loop->signal_fd, &wanted, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0)
        return px_fail(err, PX_EIO, "no signalfd: %s", strerror(errno));
    if (loop->signal_fd < 0)
        px_loop_fd(loop, fd, on_signal, NULL);
    loop->signal_fd = fd;
    loop->signals = wanted;
    pthread_sigmask(SIG_BLOCK, &wanted, NULL);
    loop->rows = px_realloc(loop->rows, (loop->row_count + 1) * sizeof *loop->rows);
    loop->rows[loop->row_count++] = (struct signal_row){signo, fn, ctx};
    return 0;
}

/* ---- the loop ---- */

static int time_to_next(const struct px_loop *loop)
{
    if (!loop->timer_count)
        return -1;
    const int64_t left = loop->heap[0]->due_ms - px_now_ms();
    return left < 0 ? 0 : left > INT32_MAX ? INT32_MAX : (int)left;
}

/* Takes the edge of the socket's descriptor; true when there is a message. */
static bool has_message(const struct px_pollable *socket)
{
    int events = 0;
    size_t size = sizeof events;
    const bool asked = zmq_getsockopt(socket->handle, ZMQ_EVENTS, &events, &size) == 0;
    return (asked && (events & ZMQ_POLLIN)) || (socket->full && *socket->full);
}

/* Whether the edge of the socket's descriptor may be gone since it was asked last. */
static bool must_ask(const struct px_loop *loop, const struct px_watch *watch)
{
    const bool *used = watch->socket.used;
    return watch->socket.handle && (used ? *used : !loop->settled);
}

/* Asks each socket that was used; true when one has a message. */
static bool look_around(struct px_loop *loop)
{
    bool found = false;
    for (size_t i = 0; i < loop->watch_count; i++) {
        struct px_watch *watch = loop->watches[i];
        if (must_ask(loop, watch)) {
            watch->ready = has_message(&watch->socket);
            if (watch->socket.used)
                *watch->socket.used = false;
        }
        found = found || watch->ready;
    }
    loop->settled = true;
    return found;
}

/* What poll saw, added to what is known. */
static void note_ready(struct px_loop *loop)
{
    for (size_t i = 0; i < loop->watch_count; i++) {
        struct px_watch *watch = loop->watches[i];
        if (loop->fds[i].revents && !watch->ready)
            watch->ready = !watch->socket.handle || has_message(&watch->socket);
    }
}

void px_loop_settle(struct px_loop *loop, px_loop_fn *fn, void *ctx)
{
    loop->settle = fn;
    loop->settle_ctx = ctx;
}

static void settle(struct px_loop *loop)
{
    if (loop->settle)
        loop->settle(loop, loop->settle_ctx);
}

static void call_ready(struct px_loop *loop)
{
    const size_t count = loop->watch_count; /* watches added by callbacks wait for the next turn */
    for (size_t i = 0; i < count && !loop->stopping; i++) {
        struct px_watch *watch = loop->watches[i];
        if (!watch->ready || !watch->fn)
            continue;
        watch->ready = false;
        loop->settled = false;
        watch->fn(loop, watch->ctx);
        settle(loop);
    }
}

static int turn(struct px_loop *loop, struct px_error *err)
{
    settle(loop);
    if (loop->changed || !loop->fds)
        rebuild(loop);
    const int timeout_ms = look_around(loop) ? 0 : time_to_next(loop);
    const int ready = poll(loop->fds, loop->watch_count, timeout_ms);
    if (ready < 0 && errno != EINTR)
        return px_fail(err, PX_EIO, "cannot poll: %s", strerror(errno));
    if (ready > 0)
        note_ready(loop);
    run_timers(loop);
    settle(loop);
    call_ready(loop);
    return 0;
}

int px_loop_run(struct px_loop *loop, struct px_error *err)
{
    loop->stopping = false;
    while (!loop->stopping)
        if (turn(loop, err) < 0)
            return -1;
    settle(loop);
    return 0;
}
