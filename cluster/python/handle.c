/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * handle: a connection as Python objects share it: who uses it, who waits on it, which of Python's
 * buffers are lent to it; and waiting without the GIL.
 */
#define _GNU_SOURCE
#include "extension.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

/* ---- leases: Python buffers lent to ZeroMQ ------------------------------------ */

struct px_lease {
    struct px_lease *next;
    struct px_handle *handle;
    Py_buffer view;
};

/* Any thread, without the GIL. */
static void lease_sent(void *hint)
{
    struct px_lease *lease = hint;
    struct px_handle *handle = lease->handle;
    lease->next = atomic_load(&handle->leases);
    while (!atomic_compare_exchange_weak(&handle->leases, &lease->next, lease))
        continue;
}

void px_handle_sweep(struct px_handle *handle)
{
    struct px_lease *lease = atomic_exchange(&handle->leases, NULL);
    while (lease) {
        struct px_lease *next = lease->next;
        PyBuffer_Release(&lease->view);
        free(lease);
        lease = next;
    }
}

/* What pickles are, and bytes inside of them. */
static bool is_constant(PyObject *item)
{
    PyObject *base = PyMemoryView_Check(item) ? PyMemoryView_GET_BASE(item) : item;
    return base && PyBytes_CheckExact(base);
}

static bool buffer_from(struct px_handle *handle, PyObject *item, struct phalanx_buffer *out)
{
    if (PyBytes_CheckExact(item) && PyBytes_GET_SIZE(item) < PX_LEASE_SIZE) {
        *out = (struct phalanx_buffer){.data = PyBytes_AS_STRING(item),
                                       .size = (size_t)PyBytes_GET_SIZE(item)};
        return true; /* no lease: it is copied while the caller's sequence holds it */
    }
    struct px_lease *lease = calloc(1, sizeof *lease);
    if (!lease) {
        PyErr_NoMemory();
        return false;
    }
    if (PyObject_GetBuffer(item, &lease->view, PyBUF_ANY_CONTIGUOUS) < 0) {
        free(lease);
        return false;
    }
    lease->handle = handle;
    *out = (struct phalanx_buffer){.data = lease->view.buf,
                                   .size = (size_t)lease->view.len,
                                   .release = lease_sent,
                                   .hint = lease,
                                   .constant = is_constant(item)};
    return true;
}

static void give_back(const struct phalanx_buffer *buffer)
{
    if (buffer->hint)
        lease_sent(buffer->hint);
}

/* Small buffers are copied by the submission; their leases come back at once through the list. */
static void copy_if_small(struct phalanx_buffer *buffers, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (buffers[i].size < PX_LEASE_SIZE)
            buffers[i].release = NULL;
    }
}

void px_buffers_submitted(struct px_handle *handle, struct phalanx_buffer *buffers, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!buffers[i].release)
            give_back(&buffers[i]);
    }
    PyMem_Free(buffers);
    px_handle_sweep(handle);
}

bool px_buffers_lend(struct px_handle *handle, PyObject *sequence, struct phalanx_buffer **out,
                     size_t *count)
{
    *out = NULL;
    *count = 0;
    if (!sequence || sequence == Py_None)
        return true;
    if (!PyList_Check(sequence) && !PyTuple_Check(sequence)) { /* the caller's, which hold them */
        PyErr_SetString(PyExc_TypeError, "buffers must be a list or tuple of bytes-like objects");
        return false;
    }
    const Py_ssize_t size = PySequence_Fast_GET_SIZE(sequence);
    *out = PyMem_Calloc((size_t)size + 1, sizeof **out);
    bool good = *out != NULL;
    for (Py_ssize_t i = 0; good && i < size; i++) {
        good = buffer_from(handle, PySequence_Fast_GET_ITEM(sequence, i), &(*out)[i]);
        *count += good;
    }
    if (good) {
        copy_if_small(*out, *count);
        return true;
    }
    for (size_t i = 0; i < *count; i++)
        give_back(&(*out)[i]);
    PyMem_Free(*out);
    return false;
}

/* ---- notices ---------------------------------------------------------------------- */

void px_notice_unref(struct px_notice *notice)
{
    if (--notice->users == 0)
        free(notice);
}

void px_notice_post(void *hint)
{
    struct px_notice *notice = hint;
    struct px_handle *handle = notice->handle;
    atomic_store(&notice->posted, true);
    notice->next = atomic_load(&handle->notices);
    while (!atomic_compare_exchange_weak(&handle->notices, &notice->next, notice))
        continue;
    sem_post(&handle->noticed);
}

static enum phalanx_code wait_notice(void *ctx, int64_t timeout_ms)
{
    struct px_handle *handle = ctx;
    const int64_t until = px_clock_ms() + timeout_ms;
    const struct timespec at = {.tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000};
    if (sem_clockwait(&handle->noticed, CLOCK_MONOTONIC, &at) == 0)
        return PHALANX_OK;
    return errno == EINTR ? PHALANX_EINTR : PHALANX_ETIME;
}

static PyObject *keys_of(struct px_notice *newest)
{
    PyObject *keys = PyList_New(0);
    bool good = keys != NULL;
    for (struct px_notice *next; newest; newest = next) {
        next = newest->next;
        PyObject *key = PyLong_FromUnsignedLongLong(newest->key);
        good = good && key && PyList_Append(keys, key) == 0;
        Py_XDECREF(key);
        px_notice_unref(newest);
    }
    if (good && PyList_Reverse(keys) == 0)
        return keys;
    Py_XDECREF(keys);
    return NULL;
}

PyObject *px_notices_take(struct px_handle *handle, int64_t timeout_ms)
{
    handle->users++;
    const int code = px_wait_python(handle, wait_notice, NULL, handle, timeout_ms);
    struct px_notice *newest = atomic_exchange(&handle->notices, NULL);
    px_handle_unref(handle);
    if (newest)
        return keys_of(newest);
    if (code < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* ---- the handle ------------------------------------------------------------------ */

/* As in the client's client.c: cheaper to ask for than getpid(). */
static unsigned forks;

static void after_fork(void)
{
    forks++;
}

static void watch_forks(void)
{
    (void)pthread_atfork(NULL, NULL, after_fork);
}

struct px_handle *px_handle_create(phalanx_client *client)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    struct px_handle *handle = calloc(1, sizeof *handle);
    if (!handle || sem_init(&handle->noticed, 0, 0) < 0) {
        free(handle);
        phalanx_close(client);
        PyErr_NoMemory();
        return NULL;
    }
    handle->users = 1;
    handle->forks = forks;
    handle->client = client;
    return handle;
}

bool px_handle_inherited(const struct px_handle *handle)
{
    return handle->forks != forks;
}

void px_handle_unref(struct px_handle *handle)
{
    if (--handle->users > 0)
        return;
    px_handle_sweep(handle);
    struct px_notice *notice = atomic_exchange(&handle->notices, NULL);
    for (struct px_notice *next; notice; notice = next) {
        next = notice->next;
        px_notice_unref(notice);
    }
    sem_destroy(&handle->noticed);
    free(handle);
}

void px_handle_close(struct px_handle *handle, bool ending)
{
    phalanx_client *client = handle->client;
    handle->client = NULL;
    if (!client)
        return;
    if (px_handle_inherited(handle)) {
        phalanx_forget(client);
        return;
    }
    handle->ender = ending ? PyThread_get_thread_ident() : 0;
    sem_post(&handle->noticed);
    PyThreadState *state = PyEval_SaveThread();
    phalanx_close(client);
    PyEval_RestoreThread(state);
    px_handle_sweep(handle);
}

static bool is_stopped(const struct px_handle *handle)
{
    const unsigned long ender = handle->ender;
    return ender && ender != PyThread_get_thread_ident();
}

/* Without the GIL: who asks for it at the interpreter's end is ended by Python, which unwinds its
 * stack while the process already exits. If the end takes longer, something may wait for this very
 * thread, which then learns that the client is closed. */
static void stop(void)
{
    struct timespec left = {.tv_sec = PX_LAST_S};
    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        continue;
}

void px_handle_stop_others(const struct px_handle *handle)
{
    if (!is_stopped(handle))
        return;
    PyThreadState *state = PyEval_SaveThread();
    stop();
    PyEval_RestoreThread(state);
}

bool px_handle_check(struct px_handle *handle, PyObject *closed_error)
{
    if (!handle || !handle->client) {
        if (handle)
            px_handle_stop_others(handle);
        PyErr_SetString(closed_error, "the client is closed");
        return false;
    }
    if (px_handle_inherited(handle)) {
        PyErr_SetString(PyExc_RuntimeError,
                        "this client belongs to the process that forked; connect another one");
        return false;
    }
    return true;
}

/* ---- waiting ---------------------------------------------------------------------- */

bool px_timeout(PyObject *seconds, int64_t *out)
{
    *out = -1;
    if (seconds == Py_None)
        return true;
    const double value = PyFloat_AsDouble(seconds);
    if (value == -1 && PyErr_Occurred())
        return false;
    if (value >= 0)
        *out = value > 1e12 ? -1 : (int64_t)(value * 1000 + 0.999);
    return true;
}

int64_t px_clock_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

enum phalanx_code px_wait_undisturbed(const struct px_handle *handle,
                                      enum phalanx_code (*wait)(void *ctx, int64_t timeout_ms),
                                      void *ctx)
{
    enum phalanx_code code = PHALANX_EINTR;
    PyThreadState *state = PyEval_SaveThread();
    while (code == PHALANX_EINTR)
        code = wait(ctx, -1);
    if (is_stopped(handle))
        stop();
    PyEval_RestoreThread(state);
    return code;
}

int px_wait_python(const struct px_handle *handle,
                   enum phalanx_code (*wait)(void *ctx, int64_t timeout_ms), int (*look)(void *ctx),
                   void *ctx, int64_t timeout_ms)
{
    const int64_t deadline = timeout_ms < 0 ? INT64_MAX : px_clock_ms() + timeout_ms;
    for (;;) {
        const int64_t left = deadline == INT64_MAX ? PX_SLICE_MS : deadline - px_clock_ms();
        const int64_t slice = left < 0 ? 0 : left < PX_SLICE_MS ? left : PX_SLICE_MS;
        PyThreadState *state = PyEval_SaveThread();
        const enum phalanx_code code = wait(ctx, slice);
        const bool stopped = is_stopped(handle);
        if (stopped)
            stop();
        PyEval_RestoreThread(state);
        if (!stopped)
            px_handle_stop_others(handle);
        if (PyErr_CheckSignals() < 0)
            return -1;
        if (look && slice > 0 && code == PHALANX_ETIME && look(ctx) < 0)
            return -1;
        if (code != PHALANX_EINTR && (code != PHALANX_ETIME || px_clock_ms() >= deadline))
            return code;
    }
}

bool px_newly_away(struct px_handle *handle, const phalanx_client *client, int64_t *left_ms)
{
    int64_t since_ms;
    const bool away = phalanx_away(client, &since_ms, left_ms);
    const bool news = away && since_ms >= PHALANX_AWAY_MS && !handle->warned;
    handle->warned = away && (news || handle->warned);
    return news;
}

bool px_newly_deserted(struct px_handle *handle, phalanx_client *client)
{
    const int64_t now_ms = px_clock_ms();
    if (phalanx_engines(client, NULL, 0) > 0)
        handle->deserted_ms = 0;
    else if (handle->deserted_ms == 0)
        handle->deserted_ms = now_ms;
    const bool news = handle->deserted_ms > 0 && now_ms - handle->deserted_ms >= PHALANX_AWAY_MS;
    if (news)
        handle->deserted_ms = -1;
    return news;
}
