/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * thread: into Python and out of it, on the interpreter thread and on those of subshells; and how
 * an interrupt gets at what runs there.
 *
 * The interpreter thread is interrupted by SIGINT, which makes KeyboardInterrupt and ends blocking
 * system calls. Where this process leads its group, as under Jupyter, the group gets the signal: so
 * do programs that the cell waits for, as on a terminal.
 *
 * A second interrupt of the same request within a second means that it caught the first: from then
 * on every line that it starts raises KeyboardInterrupt, until it has ended. Lines of the machinery
 * under the cell are spared, so that event loops stay whole. Code that handles SIGINT itself is
 * left to do so.
 *
 * Signals reach one thread only. In a subshell's thread KeyboardInterrupt is made to be raised at
 * the next instruction of Python; setting that up needs the GIL, which the caller must not wait
 * for, and so has a thread of its own.
 *
 * LIMIT: a system call in which a subshell blocks is not ended; the interrupt acts when it returns.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "python.h"

#include <frameobject.h>

#define AGAIN_MS 1000

/* ---- in and out ---- */

/* A subshell's thread. The list is read and changed with the GIL. */
struct px_thread {
    struct px_thread *next;
    pthread_t id;
    bool inside; /* an op */
};

static bool is_main(const struct px_python *self)
{
    return pthread_equal(pthread_self(), self->main_thread);
}

/* GIL. */
static struct px_thread *find(struct px_python *self, pthread_t id)
{
    struct px_thread *thread = self->threads;
    while (thread && !pthread_equal(thread->id, id))
        thread = thread->next;
    return thread;
}

bool px_thread_is_hit(void)
{
    return PyThreadState_Get()->async_exc != NULL;
}

/* GIL. Only running Python takes down the flag that CPython has put up for the exception; with it
 * up, a second interrupt of the main shell does nothing. */
static void take_hit(struct px_python *self)
{
    PyObject *nothing = PyObject_CallMethod(self->bridge, "take_interrupt", NULL);
    Py_XDECREF(nothing);
    PyErr_Clear();
}

/* GIL, this thread's. Notes where it is; an interrupt of what went before is dropped. */
static void step(struct px_python *self, bool inside)
{
    struct px_thread *thread = find(self, pthread_self());
    if (!thread)
        return;
    thread->inside = inside;
    if (px_thread_is_hit())
        take_hit(self);
}

/* GIL, interpreter thread. Forgets the interrupts of a request. */
static void calm(struct px_python *self)
{
    atomic_store(&self->interrupted_ms, 0);
    if (atomic_exchange(&self->relentless, false))
        PyEval_SetTrace(NULL, NULL);
}

void px_python_enter(struct px_python *self)
{
    if (!is_main(self)) {
        PyEval_RestoreThread(PyGILState_GetThisThreadState());
        step(self, true);
    } else {
        PyEval_RestoreThread(self->thread);
        calm(self);
        if (PyErr_CheckSignals() != 0)
            PyErr_Clear();
    }
    px_loan_collect(self);
}

void px_python_leave(struct px_python *self)
{
    if (!is_main(self)) {
        step(self, false);
        PyEval_SaveThread();
        return;
    }
    calm(self);
    self->thread = PyEval_SaveThread();
}

/* GIL. Tells the bridge; failing to is nothing that the thread could mend. */
static void tell(struct px_python *self, const char *method, const char *name)
{
    PyObject *result = PyObject_CallMethod(self->bridge, method, "s", name);
    if (!result)
        PyErr_WriteUnraisable(self->bridge);
    Py_XDECREF(result);
}

void px_thread_begin(void *arg, const char *name)
{
    struct px_python *self = arg;
    struct px_thread *thread = px_alloc(sizeof *thread);
    (void)PyGILState_Ensure();
    thread->id = pthread_self();
    thread->next = self->threads;
    self->threads = thread;
    tell(self, "thread_begin", name);
    PyEval_SaveThread();
}

void px_thread_end(void *arg)
{
    struct px_python *self = arg;
    PyEval_RestoreThread(PyGILState_GetThisThreadState());
    tell(self, "thread_end", "");
    struct px_thread **at = &self->threads;
    while (*at && !pthread_equal((*at)->id, pthread_self()))
        at = &(*at)->next;
    struct px_thread *thread = *at;
    if (thread)
        *at = thread->next;
    free(thread);
    PyGILState_Release(PyGILState_UNLOCKED);
}

/* ---- interrupts ---- */

struct aim {
    struct px_python *self;
    pthread_t thread;
};

static void *hit(void *arg)
{
    struct aim aim = *(struct aim *)arg;
    free(arg);
    const PyGILState_STATE state = PyGILState_Ensure();
    const struct px_thread *thread = find(aim.self, aim.thread);
    if (thread && thread->inside)
        PyThreadState_SetAsyncExc((unsigned long)aim.thread, PyExc_KeyboardInterrupt);
    PyGILState_Release(state);
    return NULL;
}

void px_thread_interrupt(void *arg, pthread_t thread)
{
    struct aim *aim = px_alloc(sizeof *aim);
    *aim = (struct aim){arg, thread};
    pthread_t helper;
    if (pthread_create(&helper, NULL, hit, aim) != 0)
        free(aim);
    else
        pthread_detach(helper);
}

/* Files whose lines are spared. */
static bool is_machinery(const char *file)
{
    static const char *const parts[] = {"<phalanx>/",    "/IPython/", "/asyncio/",
                                        "/traitlets/",   "<frozen ",  "/threading.py",
                                        "/contextlib.py"};
    for (size_t i = 0; i < PX_COUNT(parts); i++)
        if (strstr(file, parts[i]))
            return true;
    return false;
}

static int raise_again(PyObject *unused, PyFrameObject *frame, int what, PyObject *value)
{
    (void)unused, (void)value;
    if (what != PyTrace_LINE)
        return 0;
    PyCodeObject *code = PyFrame_GetCode(frame);
    const char *file = PyUnicode_AsUTF8(code->co_filename);
    const bool spared = !file || is_machinery(file);
    Py_DECREF(code);
    PyErr_Clear(); /* a name that is not UTF-8 */
    if (!spared)
        PyErr_SetNone(PyExc_KeyboardInterrupt);
    return spared ? 0 : -1;
}

/* GIL. Whether code has put a handler of its own in the place of Python's: %px does, which counts
 * interrupts and ends with the second. */
static bool is_handled(void)
{
    PyObject *module = PyImport_ImportModule("_signal");
    PyObject *now = module ? PyObject_CallMethod(module, "getsignal", "i", SIGINT) : NULL;
    PyObject *usual = module ? PyObject_GetAttrString(module, "default_int_handler") : NULL;
    const bool handled = now && usual && now != usual;
    PyErr_Clear();
    Py_XDECREF(usual);
    Py_XDECREF(now);
    Py_XDECREF(module);
    return handled;
}

/* GIL, interpreter thread. */
static int be_relentless(void *arg)
{
    struct px_python *self = arg;
    if (atomic_load(&self->relentless) && !is_handled())
        PyEval_SetTrace(raise_again, NULL);
    return 0;
}

void px_python_interrupt(void *arg)
{
    struct px_python *self = arg;
    const int64_t now_ms = px_now_ms();
    const int64_t last_ms = atomic_exchange(&self->interrupted_ms, now_ms);
    if (last_ms && now_ms - last_ms < AGAIN_MS) {
        atomic_store(&self->relentless, true);
        (void)Py_AddPendingCall(be_relentless, self); /* full: one of these is in it already */
    }
    if (getpgrp() == getpid())
        kill(0, SIGINT);
    else
        pthread_kill(self->main_thread, SIGINT);
}
