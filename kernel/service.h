/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * service: the service thread of a kernel's process, and how such a process ends.
 *
 * The thread runs one loop and owns every socket. It starts with all signals blocked, so that
 * they reach the main thread, where the language runs; and it is the thread that can end the
 * process when the language does not listen:
 *
 *     px_service_end        stop taking requests, interrupt what runs
 *     after 1 s             still in user code: close the sockets, _exit
 *     after 2.3 s           still shutting the language down: the same
 *
 * jupyter_client sends SIGTERM after 2.5 s, so a front end never has to.
 */
#ifndef PX_SERVICE_H
#define PX_SERVICE_H

#include "kernel.h"
#include "loop/loop.h"

struct px_service;

/* What the owner of the sockets does on the service thread. */
struct px_service_calls {
    void *ctx;
    void (*open)(void *ctx);  /* first, on the thread; optional */
    void (*close)(void *ctx); /* last: destroys the sockets */
    void (*terminated)(
        void *ctx); /* SIGTERM came; optional: px_service_end(…, 0) follows in any case */
};

struct px_service *px_service_create(const struct px_service_calls *calls, struct px_error *err);
void px_service_destroy(struct px_service *service); /* after px_service_finish; NULL allowed */
struct px_loop *px_service_loop(struct px_service *service);

/* Before the thread starts, or on it: from now on serves this kernel's outbox. */
void px_service_adopt(struct px_service *service, struct px_kernel *kernel);
/* Main thread. Until then SIGTERM ends the process at once, then as px_service_end() says. */
PX_MUST_USE int px_service_start(struct px_service *service, struct px_error *err);

/* Service thread: begins the end described above. `status` is for _exit. Repeated calls do nothing.
 */
void px_service_end(struct px_service *service, int status);
/* Service thread, after px_kernel_receive(): sends what is ready, and looks again when more is. */
void px_service_push(struct px_service *service);

/* Any thread but the service thread, also in the handler of a deadly signal: has all output so far
 * sent, and waits for that, but not long. */
void px_service_last_words(struct px_service *service);

/* Main thread, when the language has ended: sends the rest, closes, waits for the thread. */
void px_service_finish(struct px_service *service);

#endif
