/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * trace: a realtime signal to the main thread makes the language write its stacks into a memory
 * file; a handler of ours, which was there first and hence runs last, rings for the service
 * thread, and that reads the file and replies. Nothing of it needs the language's lock.
 *
 * Deadly signals work the same way: the language's handler writes its stacks into the obituary,
 * ours adds the native frames, then the signal takes its course. A process that the user's code
 * forks is none of the engine: there our handlers do nothing.
 */
#define _GNU_SOURCE
#include "trace.h"

#include <errno.h>
#include <execinfo.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

/* Far from the first ones, which programs take. */
#define TRACE_SIGNAL (SIGRTMAX - 3)
/* For the main thread to take the signal: it may be stopped, or wait for a disk. */
#define PATIENCE_MS 2000
#define LAST_REPLIES_MS 20
#define MOST_STACKS (1u << 20)
#define MOST_NATIVE 64 /* frames; a stack that overflowed has a million */

struct px_trace {
    pthread_t main_thread;
    struct px_obituary *obituary;
    int stacks_fd, done_fd;
    bool speaks; /* the language writes its stacks */
    /* service thread */
    struct px_kernel *kernel;
    struct px_loop *loop;
    struct px_timer *late;
    struct px_request **waiting; /* answered together */
    size_t waiting_count;
};

/* A signal handler has no context argument. */
static volatile sig_atomic_t done_fd = -1, last_fd = -1;
static volatile pid_t owner;

static void on_traced(int signo)
{
    const int saved = errno;
    (void)signo;
    if (getpid() == owner)
        (void)eventfd_write(done_fd, 1);
    errno = saved;
}

static void on_deadly(int signo)
{
    static const char title[] = "\nNative frames (most recent call first):\n";
    void *frames[MOST_NATIVE];
    if (getpid() == owner && write(last_fd, title, sizeof title - 1) > 0)
        backtrace_symbols_fd(frames, backtrace(frames, MOST_NATIVE), last_fd);
    signal(signo, SIG_DFL);
    /* The service thread lives on for this moment: replies of earlier requests, which may wait a
     * millisecond for company, must not die with this one. */
    if (getpid() == owner)
        (void)poll(NULL, 0, LAST_REPLIES_MS);
    raise(signo);
}

static void install(int signo, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    sigemptyset(&action.sa_mask);
    sigaction(signo, &action, NULL);
}

static void install_all(void)
{
    static const int deadly[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    void *frame;
    (void)backtrace(&frame, 1); /* loads what it needs, which a handler must not */
    install(TRACE_SIGNAL, on_traced, SA_RESTART);
    for (size_t i = 0; i < PX_COUNT(deadly); i++)
        install(deadly[i], on_deadly, SA_ONSTACK | SA_NODEFER | SA_RESETHAND);
}

struct px_trace *px_trace_create(const struct px_interp_ops *ops, void *self,
                                 struct px_obituary *obituary, struct px_error *err)
{
    struct px_trace *trace = px_alloc(sizeof *trace);
    trace->main_thread = pthread_self();
    trace->obituary = obituary;
    trace->stacks_fd = memfd_create("px-stacks", MFD_CLOEXEC);
    trace->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (trace->stacks_fd < 0 || trace->done_fd < 0) {
        px_fail(err, PX_EIO, "no memory file: %s", strerror(errno));
        px_trace_destroy(trace);
        return NULL;
    }
    owner = getpid();
    done_fd = trace->done_fd;
    last_fd = px_obituary_fd(obituary);
    install_all();
    trace->speaks =
        ops->trace && ops->trace(self, TRACE_SIGNAL, trace->stacks_fd, last_fd, err) == 0;
    if (ops->trace && !trace->speaks)
        px_log(PX_WARN, "trace.none", "why=\"%s\"", err->text); /* the engine is none the worse */
    return trace;
}

void px_trace_destroy(struct px_trace *trace)
{
    if (!trace)
        return;
    if (done_fd == trace->done_fd)
        done_fd = -1;
    free(trace->waiting);
    if (trace->stacks_fd >= 0)
        close(trace->stacks_fd);
    if (trace->done_fd >= 0)
        close(trace->done_fd);
    free(trace);
}

/* ---- answering ---- */

static void put_busy(const struct px_trace *trace, struct px_buf *out)
{
    struct px_busy busy;
    px_obituary_look(trace->obituary, &busy);
    if (!busy.running) {
        px_buf_text(out, "null");
        return;
    }
    px_buf_text(out, "{\"msg_id\": ");
    px_buf_json_string(out, busy.msg_id, strlen(busy.msg_id));
    px_buf_text(out, ", \"msg_type\": ");
    px_buf_json_string(out, busy.type, strlen(busy.type));
    px_buf_printf(out, ", \"since_s\": %.3f}", busy.since_s);
}

static void put_stacks(const struct px_trace *trace, struct px_buf *out)
{
    const off_t size = lseek(trace->stacks_fd, 0, SEEK_END);
    const size_t most = size < 0 ? 0 : size > (off_t)MOST_STACKS ? MOST_STACKS : (size_t)size;
    char *text = px_alloc(most + 1);
    const ssize_t got = pread(trace->stacks_fd, text, most, 0);
    px_buf_json_string(out, text, got > 0 ? (size_t)got : 0);
    free(text);
}

/* Empties the file, so that the next stacks are alone in it. */
static void reset(struct px_trace *trace)
{
    if (ftruncate(trace->stacks_fd, 0) < 0 || lseek(trace->stacks_fd, 0, SEEK_SET) < 0)
        px_log(PX_WARN, "trace.file", "why=\"%s\"", strerror(errno));
}

static void answer_all(struct px_trace *trace, bool late)
{
    struct px_buf content = {0};
    px_buf_text(&content, late ? "{\"status\": \"error\", \"ename\": \"TimeoutError\", \"evalue\": "
                                 "\"the main thread took no signal: it waits for a device, or "
                                 "blocks signals\", \"traceback\": []"
                               : "{\"status\": \"ok\", \"stacks\": ");
    if (!late)
        put_stacks(trace, &content);
    px_buf_printf(&content, ", \"pid\": %d, \"busy\": ", (int)getpid());
    put_busy(trace, &content);
    px_buf_text(&content, "}");
    for (size_t i = 0; i < trace->waiting_count; i++) {
        px_request_reply(trace->kernel, trace->waiting[i], px_buf_span(&content));
        px_request_finish(trace->kernel, trace->waiting[i]);
    }
    trace->waiting_count = 0;
    px_loop_cancel(trace->loop, trace->late);
    trace->late = NULL;
    px_buf_fini(&content);
}

/* The language's handler may be one that makes system calls fail: Python's faulthandler leaves out
 * SA_RESTART when it calls ours. C code that waits must not notice that it is looked at. */
static void ask_main_thread(const struct px_trace *trace)
{
    struct sigaction now;
    if (sigaction(TRACE_SIGNAL, NULL, &now) == 0 && now.sa_handler != on_traced) {
        now.sa_flags |= SA_RESTART;
        sigaction(TRACE_SIGNAL, &now, NULL);
    }
    pthread_kill(trace->main_thread, TRACE_SIGNAL);
}

/* Between our handler's turn and the language's return to its own post a signal finds ours alone,
 * and nothing is written: then it is sent again. */
static void on_done(struct px_loop *loop, void *ctx)
{
    struct px_trace *trace = ctx;
    eventfd_t count;
    (void)loop;
    (void)eventfd_read(trace->done_fd, &count);
    if (trace->waiting_count == 0)
        return;
    if (trace->speaks && lseek(trace->stacks_fd, 0, SEEK_END) == 0) {
        ask_main_thread(trace);
        return;
    }
    answer_all(trace, false);
    reset(trace);
}

static void on_late(struct px_loop *loop, void *ctx)
{
    struct px_trace *trace = ctx;
    (void)loop;
    trace->late = NULL;
    answer_all(trace, true);
    reset(trace);
}

void px_trace_serve(struct px_trace *trace, struct px_loop *loop, struct px_kernel *kernel)
{
    trace->loop = loop;
    trace->kernel = kernel;
    px_loop_fd(loop, trace->done_fd, on_done, trace);
}

void px_trace_stop(struct px_trace *trace)
{
    if (trace->waiting_count)
        answer_all(trace, true);
}

void px_trace_answer(struct px_trace *trace, struct px_request *request)
{
    px_request_hold(request);
    trace->waiting =
        px_realloc(trace->waiting, (trace->waiting_count + 1) * sizeof(struct px_request *));
    trace->waiting[trace->waiting_count++] = request;
    if (trace->late)
        return; /* the signal is under way */
    trace->late = px_loop_timer(trace->loop, PATIENCE_MS, 0, on_late, trace);
    ask_main_thread(trace);
}
