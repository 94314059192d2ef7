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
 * under the cell are spared, so that event loops stay whole, and so is what IPython does about the
 * end of a cell. Code that handles SIGINT itself is left to do so.
 *
 * A request may wait long for the GIL, before its first instruction. So an interrupt has a time, and
 * is acted on by the request that had begun by then; one that is older was meant for what went
 * before, and is dropped.
 *
 * Two handlers see to that. One stands before CPython's in C: it gives a SIGINT its time and counts
 * those that other processes send (ours were counted when they were sent). The user's code may put
 * others there: each request and each KeyboardInterrupt puts ours before CPython's again. The
 * other is signal.default_int_handler, in whose place stands ours under the same name: what makes
 * KeyboardInterrupt also makes it lasting, in one step, so that no line of the cell comes between.
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

#define AGAIN_NS 1000000000

/* ---- SIGINT ---- */

/* A signal handler has no context argument. */
static _Atomic(struct px_python *) interpreter;
static _Atomic(int64_t) signalled_ns; /* when the last SIGINT came */
static struct sigaction cpythons;     /* CPython's handler, which ours calls */

/* Any thread, and in a signal handler. */
static void count_interrupt(struct px_python *self)
{
    const int64_t now_ns = px_now_ns();
    const int64_t last_ns = atomic_exchange(&self->interrupted_ns, now_ns);
    atomic_store(&self->relentless, last_ns && now_ns - last_ns < AGAIN_NS);
}

/* Linux may choose another thread of the process for it, which then ends no system call of ours. */
static void on_sigint(int signo, siginfo_t *info, void *context)
{
    struct px_python *self = atomic_load(&interpreter);
    (void)context;
    if (self && !self->forked) {
        if (info->si_pid != getpid())
            count_interrupt(self);
        if (!pthread_equal(pthread_self(), self->main_thread)) {
            pthread_kill(self->main_thread, signo);
            return;
        }
    }
    atomic_store(&signalled_ns, px_now_ns());
    cpythons.sa_handler(signo);
}

/* Interpreter thread. Whoever has the signal ignored, or handles it in C, is left to do so. */
static void stamp_sigint(void)
{
    struct sigaction now;
    if (sigaction(SIGINT, NULL, &now) < 0 || (now.sa_flags & SA_SIGINFO) ||
        now.sa_handler == SIG_DFL || now.sa_handler == SIG_IGN)
        return;
    if (!cpythons.sa_handler)
        cpythons = now; /* the first time nobody else has been there */
    if (now.sa_handler != cpythons.sa_handler)
        return;
    now.sa_flags |= SA_SIGINFO;
    now.sa_sigaction = on_sigint;
    sigaction(SIGINT, &now, NULL);
}

/* ---- in and out ---- */

/* A subshell's thread. The list is read and changed with the GIL. */
struct px_thread {
    struct px_thread *next;
    pthread_t id;
    bool inside;       /* an op */
    int64_t began_ns;  /* what it does there */
    int64_t missed_ns; /* an interrupt that found it outside; 0: none */
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

/* GIL, this thread's, which is a subshell's. An interrupt of what went before is dropped. */
static void enter_thread(struct px_python *self, int64_t began_ns)
{
    struct px_thread *thread = find(self, pthread_self());
    if (!thread)
        return;
    thread->inside = true;
    thread->began_ns = began_ns;
    if (px_thread_is_hit())
        take_hit(self);
    if (thread->missed_ns >= began_ns)
        PyThreadState_SetAsyncExc((unsigned long)thread->id, PyExc_KeyboardInterrupt);
    thread->missed_ns = 0;
}

static void leave_thread(struct px_python *self)
{
    struct px_thread *thread = find(self, pthread_self());
    if (!thread)
        return;
    thread->inside = false;
    if (px_thread_is_hit())
        take_hit(self);
}

/* GIL, interpreter thread. Forgets the interrupts of a request. */
static void calm(struct px_python *self)
{
    atomic_store(&self->interrupted_ns, 0);
    atomic_store(&self->relentless, false);
    if (self->traced)
        PyEval_SetTrace(NULL, NULL);
    self->traced = false;
    self->spared = 0;
}

/* Since when interrupts are meant for what runs now. */
static int64_t began(const struct px_python *self)
{
    const struct px_interp_host *host = self->host;
    const int64_t ns = host && host->began ? host->began(host->ctx) : 0;
    return ns ? ns : px_now_ns();
}

void px_python_enter(struct px_python *self)
{
    const int64_t began_ns = began(self);
    if (!is_main(self)) {
        PyEval_RestoreThread(PyGILState_GetThisThreadState());
        enter_thread(self, began_ns);
    } else {
        if (!atomic_load(&self->applied)) /* not for each of many calls, one upon the other */
            stamp_sigint();
        PyEval_RestoreThread(self->thread);
        if (atomic_load(&self->interrupted_ns) < began_ns)
            calm(self);
        if (atomic_load(&signalled_ns) < began_ns && PyErr_CheckSignals() != 0)
            PyErr_Clear();
    }
    px_loan_collect(self);
}

void px_python_leave(struct px_python *self)
{
    if (!is_main(self)) {
        leave_thread(self);
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
    int64_t ns;
};

static void count_hit(struct px_python *self, int change)
{
    pthread_mutex_lock(&self->hits_lock);
    self->hits += change;
    if (self->hits == 0)
        pthread_cond_broadcast(&self->hits_done);
    pthread_mutex_unlock(&self->hits_lock);
}

void px_thread_wait_for_hits(struct px_python *self)
{
    Py_BEGIN_ALLOW_THREADS pthread_mutex_lock(&self->hits_lock);
    while (self->hits > 0)
        pthread_cond_wait(&self->hits_done, &self->hits_lock);
    pthread_mutex_unlock(&self->hits_lock);
    Py_END_ALLOW_THREADS
}

/* GIL. Until CPython 3.12 the state of a thread that is being started has the id of the one that
 * starts it, up to the moment it runs. What is raised by that id would be raised there: the thread
 * would end before it begins, and who waits for it to begin would wait for ever.
 * A thread that comes from C needs no GIL to put its state in front of the list, and in 3.11
 * nothing is seen behind it before it has done so: who does not see `thread` looks again. */
static bool may_start_another(pthread_t thread)
{
    int count = 0;
    PyThreadState *state = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    for (; state; state = PyThreadState_Next(state))
        count += state->thread_id == (unsigned long)thread;
    return count != 1;
}

static struct px_thread *find_settled(struct px_python *self, pthread_t id)
{
    struct px_thread *thread = find(self, id);
    while (thread && may_start_another(id)) {
        Py_BEGIN_ALLOW_THREADS const struct timespec moment = {.tv_nsec = 100000};
        nanosleep(&moment, NULL);
        Py_END_ALLOW_THREADS thread = find(self, id);
    }
    return thread;
}

static void *hit(void *arg)
{
    struct aim aim = *(struct aim *)arg;
    free(arg);
    const PyGILState_STATE state = PyGILState_Ensure();
    struct px_thread *thread = find_settled(aim.self, aim.thread);
    if (thread && !thread->inside)
        thread->missed_ns = aim.ns;
    else if (thread && aim.ns >= thread->began_ns)
        PyThreadState_SetAsyncExc((unsigned long)aim.thread, PyExc_KeyboardInterrupt);
    PyGILState_Release(state);
    count_hit(aim.self, -1);
    return NULL;
}

void px_thread_interrupt(void *arg, pthread_t thread)
{
    struct aim *aim = px_alloc(sizeof *aim);
    *aim = (struct aim){arg, thread, px_now_ns()};
    pthread_t helper;
    count_hit(arg, 1);
    if (pthread_create(&helper, NULL, hit, aim) == 0) {
        pthread_detach(helper);
    } else {
        count_hit(arg, -1);
        free(aim);
    }
}

/* Files whose lines are spared. */
static bool is_machinery(const char *file)
{
    static const char *const parts[] = {
        "<phalanx>/",    "/IPython/",      "/asyncio/",    "/traitlets/",     "<frozen ",
        "/threading.py", "/contextlib.py", "/selectors.py", "/_weakrefset.py", "/weakref.py",
        "/typing.py", /* traitlets casts */
    };
    for (size_t i = 0; i < PX_COUNT(parts); i++)
        if (strstr(file, parts[i]))
            return true;
    return false;
}

static int raise_again(PyObject *unused, PyFrameObject *frame, int what, PyObject *value)
{
    (void)unused, (void)value;
    if (what != PyTrace_LINE || atomic_load(&interpreter)->spared > 0)
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
    if (!atomic_load(&self->relentless) || is_handled())
        return 0;
    self->traced = true;
    PyEval_SetTrace(raise_again, NULL);
    return 0;
}

/* GIL, interpreter thread: Python's handler of SIGINT. The first that comes after other code has put
 * CPython's handler in the place of ours has not been counted. */
static PyObject *default_int_handler(PyObject *module, PyObject *args)
{
    struct px_python *self = atomic_load(&interpreter);
    int signo;
    PyObject *frame;
    (void)module;
    if (!PyArg_ParseTuple(args, "iO:default_int_handler", &signo, &frame))
        return NULL;
    if (self && !self->forked) {
        int64_t never = 0;
        stamp_sigint();
        atomic_compare_exchange_strong(&self->interrupted_ns, &never, px_now_ns());
        be_relentless(self);
    }
    PyErr_SetNone(PyExc_KeyboardInterrupt);
    return NULL;
}

PyObject *px_thread_handler(struct px_python *self)
{
    static PyMethodDef method = {"default_int_handler", default_int_handler, METH_VARARGS,
                                 PyDoc_STR("The default handler for SIGINT installed by Python.\n\n"
                                           "It raises KeyboardInterrupt.")};
    PyObject *name = PyUnicode_FromString("_signal");
    PyObject *module = name ? PyImport_Import(name) : NULL;
    PyObject *handler = module ? PyCFunction_NewEx(&method, module, name) : NULL;
    atomic_store(&interpreter, self);
    Py_XDECREF(module);
    Py_XDECREF(name);
    return handler;
}

void px_thread_spare(struct px_python *self, bool spare)
{
    if (is_main(self))
        self->spared += spare ? 1 : -1;
}

void px_thread_forget(struct px_python *self)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    atomic_store(&interpreter, NULL);
    calm(self); /* what is interrupted at the end has no other */
}

void px_python_interrupt(void *arg)
{
    struct px_python *self = arg;
    count_interrupt(self);
    if (atomic_load(&self->relentless))
        (void)Py_AddPendingCall(be_relentless, self); /* where a handler in C keeps the signal */
    if (getpgrp() == getpid())
        kill(0, SIGINT);
    else
        pthread_kill(self->main_thread, SIGINT);
}
