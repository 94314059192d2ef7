/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * service: one loop on one thread, woken by the kernel's outbox, by SIGTERM, and by the main
 * thread when the language has ended.
 *
 * Output that may still grow is left in the outbox until it is due; the timer `flush` comes
 * back for it. Ending is orderly as long as the language takes part; the two timers of
 * px_service_end() bound how long that may take.
 */
#include "service.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/types.h>
#include <unistd.h>

#define GRACE_CODE_MS 1000
#define GRACE_ALL_MS 2300
#define PAUSE_MS 5    /* of reading descriptors 1 and 2, for a disk to keep up */
#define WORDS_MS 2000 /* for this thread to send a dying process's output */
#define WIRE_MS 200   /* and for libzmq's */

struct px_service {
    struct px_service_calls calls;
    struct px_loop *loop;
    struct px_kernel *kernel; /* NULL until adopted */
    struct px_watch
        *captures[2];       /* of descriptors 1 and 2; NULL while paused, or without capture */
    struct px_timer *flush; /* armed while the outbox holds something that is not due */
    int64_t flush_ms;       /* when it goes off */
    int finish_fd;          /* eventfd, rung by the main thread */
    int term_fd;            /* eventfd, rung by the handler of SIGTERM */
    int words_fd, said_fd;  /* eventfds, of px_service_last_words */
    bool ending, forced;
    int status;
    bool started;
    pthread_t thread;
};

/* A signal handler has no context argument. The signal cannot be blocked and read from a signalfd
 * instead: programs that the user's code starts would inherit the mask and not end on SIGTERM. */
static volatile sig_atomic_t term_fd = -1;
static volatile pid_t term_owner;

/* A child that the user's code has forked has this handler for a moment, and the eventfd for good:
 * it ends, and not its parent. */
static void on_sigterm(int signo)
{
    const int saved = errno;
    if (getpid() == term_owner) {
        (void)eventfd_write(term_fd, 1);
    } else {
        signal(signo, SIG_DFL);
        raise(signo);
    }
    errno = saved;
}

/* ---- output ---- */

static void on_flush_due(struct px_loop *loop, void *ctx)
{
    struct px_service *service = ctx;
    (void)loop;
    service->flush = NULL;
    px_service_push(service);
}

void px_service_push(struct px_service *service)
{
    const int64_t delay_ms = px_kernel_service(service->kernel);
    const int64_t due_ms = px_now_ms() + delay_ms;
    if (delay_ms < 0 || (service->flush && service->flush_ms <= due_ms))
        return;
    px_loop_cancel(service->loop, service->flush);
    service->flush = px_loop_timer(service->loop, delay_ms, 0, on_flush_due, service);
    service->flush_ms = due_ms;
}

static void on_outbox(struct px_loop *loop, void *ctx)
{
    (void)loop;
    px_service_push(ctx);
}

static void on_captured(struct px_loop *loop, void *ctx);

static void watch_capture(struct px_service *service)
{
    for (int which = PX_STDOUT; which <= PX_STDERR; which++) {
        const int fd = px_kernel_capture_fd(service->kernel, (enum px_stream)which);
        if (fd >= 0)
            service->captures[which] = px_loop_fd(service->loop, fd, on_captured, service);
    }
}

static void on_pause_over(struct px_loop *loop, void *ctx)
{
    (void)loop;
    watch_capture(ctx);
}

/* A child may print faster than a disk takes what is left out: then the pipes hold it up. */
static void pause_capture(struct px_service *service)
{
    for (size_t i = 0; i < PX_COUNT(service->captures); i++) {
        px_loop_unwatch(service->loop, service->captures[i]);
        service->captures[i] = NULL;
    }
    px_loop_timer(service->loop, PAUSE_MS, 0, on_pause_over, service);
}

static void on_captured(struct px_loop *loop, void *ctx)
{
    struct px_service *service = ctx;
    (void)loop;
    if (!service->captures[PX_STDOUT])
        return; /* paused in this turn */
    if (px_kernel_capture(service->kernel))
        px_service_push(service);
    else
        pause_capture(service);
}

void px_service_adopt(struct px_service *service, struct px_kernel *kernel)
{
    service->kernel = kernel;
    px_loop_fd(service->loop, px_kernel_fd(kernel), on_outbox, service);
    watch_capture(service);
}

/* ---- the end ---- */

static void force(struct px_service *service)
{
    px_log(PX_WARN, "end.forced", "status=%d", service->status);
    service->forced = true;
    px_loop_stop(service->loop);
}

static void on_code_overdue(struct px_loop *loop, void *ctx)
{
    struct px_service *service = ctx;
    (void)loop;
    if (service->kernel && px_kernel_busy(service->kernel))
        force(service);
}

static void on_all_overdue(struct px_loop *loop, void *ctx)
{
    (void)loop;
    force(ctx);
}

void px_service_end(struct px_service *service, int status)
{
    if (service->ending)
        return;
    service->ending = true;
    service->status = status;
    if (service->kernel) {
        px_kernel_stop(service->kernel);
        px_kernel_interrupt(service->kernel);
    }
    px_loop_timer(service->loop, GRACE_CODE_MS, 0, on_code_overdue, service);
    px_loop_timer(service->loop, GRACE_ALL_MS, 0, on_all_overdue, service);
}

static void on_term(struct px_loop *loop, void *ctx)
{
    struct px_service *service = ctx;
    eventfd_t count;
    (void)loop;
    if (eventfd_read(service->term_fd, &count) < 0)
        return;
    if (service->calls.terminated)
        service->calls.terminated(service->calls.ctx);
    px_service_end(service, 0);
}

static void on_finish(struct px_loop *loop, void *ctx)
{
    (void)ctx;
    px_loop_stop(loop);
}

/* ---- last words ---- */

static void on_last_words(struct px_loop *loop, void *ctx)
{
    struct px_service *service = ctx;
    eventfd_t count;
    (void)loop;
    if (eventfd_read(service->words_fd, &count) < 0)
        return;
    if (service->kernel) {
        (void)px_kernel_capture(service->kernel);
        px_kernel_flush(service->kernel);
    }
    (void)eventfd_write(service->said_fd, 1);
}

void px_service_last_words(struct px_service *service)
{
    struct pollfd said = {.fd = service->said_fd, .events = POLLIN};
    if (!service->started || pthread_equal(pthread_self(), service->thread))
        return;
    (void)eventfd_write(service->words_fd, 1);
    if (poll(&said, 1, WORDS_MS) > 0)
        (void)poll(NULL, 0, WIRE_MS);
}

/* ---- the thread ---- */

static void *service_thread(void *ctx)
{
    struct px_service *service = ctx;
    struct px_error err;
    if (service->calls.open)
        service->calls.open(service->calls.ctx);
    if (px_loop_run(service->loop, &err) < 0)
        px_die(1, "%s", err.text);
    if (service->kernel)
        px_kernel_flush(service->kernel);
    service->calls.close(service->calls.ctx);
    if (service->forced)
        _exit(service->status);
    return NULL;
}

struct px_service *px_service_create(const struct px_service_calls *calls, struct px_error *err)
{
    struct px_service *service = px_alloc(sizeof *service);
    service->calls = *calls;
    service->finish_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    service->term_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    service->words_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    service->said_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    service->loop = px_loop_create();
    if (service->finish_fd < 0 || service->term_fd < 0 || service->words_fd < 0 ||
        service->said_fd < 0) {
        px_fail(err, PX_EIO, "no eventfd: %s", strerror(errno));
        px_service_destroy(service);
        return NULL;
    }
    px_loop_fd(service->loop, service->finish_fd, on_finish, service);
    px_loop_fd(service->loop, service->term_fd, on_term, service);
    px_loop_fd(service->loop, service->words_fd, on_last_words, service);
    return service;
}

void px_service_destroy(struct px_service *service)
{
    if (!service)
        return;
    if (term_fd == service->term_fd)
        term_fd = -1; /* a late SIGTERM writes to no descriptor */
    px_loop_destroy(service->loop);
    const int fds[] = {service->finish_fd, service->term_fd, service->words_fd, service->said_fd};
    for (size_t i = 0; i < PX_COUNT(fds); i++)
        if (fds[i] >= 0)
            close(fds[i]);
    free(service);
}

struct px_loop *px_service_loop(struct px_service *service)
{
    return service->loop;
}

/* Not before there is a thread to do it: a start that waits ends on SIGTERM, too. */
static void take_sigterm(const struct px_service *service)
{
    struct sigaction action = {.sa_handler = on_sigterm, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    term_fd = service->term_fd;
    term_owner = getpid();
    sigaction(SIGTERM, &action, NULL);
}

int px_service_start(struct px_service *service, struct px_error *err)
{
    sigset_t all, before;
    take_sigterm(service);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(&service->thread, NULL, service_thread, service);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed)
        return px_fail(err, PX_EIO, "no thread: %s", strerror(failed));
    service->started = true;
    return 0;
}

void px_service_finish(struct px_service *service)
{
    if (!service->started)
        return;
    (void)eventfd_write(service->finish_fd, 1);
    pthread_join(service->thread, NULL);
    service->started = false;
}
