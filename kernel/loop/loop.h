/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * loop: one reactor per thread (sockets, descriptors, timers, signals), and
 * the doorbell, the one thing that another thread may touch.
 *
 * A loop belongs to the thread that runs it. Every function here that takes a
 * loop must be called on that thread, or before it starts. A callback does a
 * bounded amount of work and returns; waiting is a timer or a state.
 * Built on poll(2) and each socket's ZMQ_FD, with the care that its edges need (loop.c).
 */
#ifndef PX_LOOP_H
#define PX_LOOP_H

#include "base/base.h"

#include <sys/types.h>

/* A socket's callback handles at most this many messages a turn, so that a flood on one starves
 * none. */
#define PX_LOOP_BATCH 128

struct px_loop;
struct px_watch;
struct px_timer;

typedef void px_loop_fn(struct px_loop *loop, void *ctx);

struct px_loop *px_loop_create(void);
void px_loop_destroy(struct px_loop *loop); /* NULL allowed; frees watches and timers left */

/* Runs until px_loop_stop(). Returns -1 if polling itself fails. */
PX_MUST_USE int px_loop_run(struct px_loop *loop, struct px_error *err);
void px_loop_stop(struct px_loop *loop);

/* Calls `fn` after the timers of a turn, after each other callback, before the loop waits, and when
 * it ends: what was gathered goes out (px_socket_flush), ahead of what the next callback sends by
 * other sockets. One for a loop. */
void px_loop_settle(struct px_loop *loop, px_loop_fn *fn, void *ctx);

/* Calls `fn` while the ZeroMQ socket (px_socket_pollable) can be read. */
struct px_watch *px_loop_socket(struct px_loop *loop, struct px_pollable socket, px_loop_fn *fn,
                                void *ctx);
/* Calls `fn` while the descriptor can be read (or is hung up). */
struct px_watch *px_loop_fd(struct px_loop *loop, int fd, px_loop_fn *fn, void *ctx);
/* Stops and frees a watch; allowed inside any callback. NULL allowed. Does not close anything. */
void px_loop_unwatch(struct px_loop *loop, struct px_watch *watch);

/*
 * Calls `fn` after `delay_ms`, then every `period_ms` if that is not 0. A timer
 * without a period frees itself after its call; its pointer is then stale.
 */
struct px_timer *px_loop_timer(struct px_loop *loop, int64_t delay_ms, int64_t period_ms,
                               px_loop_fn *fn, void *ctx);
/* Stops and frees a timer; allowed inside any callback, its own included. NULL allowed. */
void px_loop_cancel(struct px_loop *loop, struct px_timer *timer);

/*
 * Calls `fn` on this thread when the process gets `signo`. Blocks the signal in
 * the calling thread (call before other threads start, so that they inherit it). A SIGHUP that is
 * ignored (px_hangup_ignored) stays so: a signalfd would get it all the same.
 */
typedef void px_signal_fn(struct px_loop *loop, int signo, void *ctx);
PX_MUST_USE int px_loop_signal(struct px_loop *loop, int signo, px_signal_fn *fn, void *ctx,
                               struct px_error *err);

/* ---- doorbell: a queue of pointers with a wake-up --------------------- */

/*
 * Many posters, one owner. The bell (an eventfd) is rung only when the owner
 * sleeps, so a burst costs one system call. The owner of an item moves with it.
 */
struct px_doorbell;

struct px_doorbell *px_doorbell_create(struct px_error *err);
/* Frees the bell. Items left are given to `drop` (may be NULL when there are none). */
void px_doorbell_destroy(struct px_doorbell *bell, void (*drop)(void *item));

/* Any thread. `item` is not NULL. Never blocks beyond a short lock. */
void px_doorbell_post(struct px_doorbell *bell, void *item);
/* Owner only: the oldest item or NULL; after NULL the next post rings. */
void *px_doorbell_take(struct px_doorbell *bell);
/* Owner only: waits for an item. NULL at the deadline (timeout_ms < 0: none) or when a signal
 * was handled. */
void *px_doorbell_wait(struct px_doorbell *bell, int64_t timeout_ms);
/* The descriptor to watch: readable when the bell was rung. The owner calls px_doorbell_take
 * until NULL, which also silences it. */
int px_doorbell_fd(const struct px_doorbell *bell);

#endif
