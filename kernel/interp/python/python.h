/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * python: what the files of the CPython host share. Private to this folder.
 *
 * Rules of the global lock (GIL): between two ops the interpreter thread does not hold it, so that
 * the user's threads run on. Every op is bracketed by px_python_enter and px_python_leave;
 * functions that say "GIL" are called between them, or from Python. A service of the host that may
 * block is called without it.
 *
 * There is one interpreter a process (CPython allows no other), and hence one struct px_python;
 * it is passed along, and Python's side reaches it through the state of the module `_phalanx_host`.
 */
#ifndef PX_PYTHON_H
#define PX_PYTHON_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <pthread.h>
#include <stdatomic.h>

#include "interp/interp.h"

struct px_apply;

/* A macro's value as a string. */
#define PX_TEXT_(x) #x
#define PX_TEXT(x) PX_TEXT_(x)

/* Bytes lent to the host, come back: their owner waits here for the GIL. */
struct px_loan {
    struct px_loan *next;
    struct px_python *python;
    Py_buffer view;
};

struct px_python {
    const struct px_interp_host *host; /* NULL until attached */
    PyThreadState *thread;             /* of the interpreter thread, while it is outside Python */
    pthread_t main_thread;             /* the one that interrupts go to */
    bool engine;
    bool forked;               /* this is a child that the user's code forked: it has no host */
    struct px_thread *threads; /* of subshells; GIL */
    bool background;           /* the event loop has something to do between cells */
    int loop_fd;               /* readable when the event loop has something to do, or -1 */
    atomic_bool applied;       /* a function was called, which may have given the loop something */
    _Atomic(int64_t) interrupted_ns; /* when what runs on the interpreter thread last was; 0: not */
    atomic_bool relentless;    /* that was soon after another interrupt, which it caught */
    bool traced;               /* each line that it starts is interrupted; GIL */
    int spared;                /* > 0: but not now; GIL */
    pthread_mutex_t hits_lock;
    pthread_cond_t hits_done;
    int hits;                  /* threads that are to interrupt a subshell's; under hits_lock */
    PyObject *module;          /* _phalanx_host */
    PyObject *parent_variable; /* context variable: the request that output belongs to */
    PyTypeObject *parent_type; /* of its values */
    PyObject *bridge;          /* instance of bridge.Bridge */
    struct px_apply *apply;
    _Atomic(struct px_loan *) returned; /* pushed by any thread, popped under the GIL */
    atomic_size_t references;           /* the language's own, and one for each loan on its way */
};

/* Any thread. The last one frees it: buffers may still be sent when the language has ended. */
void px_python_unref(struct px_python *self);

/* Take and give up the GIL, on the interpreter thread or a subshell's. Entering drops an interrupt
 * that was meant for a request which has ended; one that comes during the wait is kept. */
void px_python_enter(struct px_python *self);
void px_python_leave(struct px_python *self);

/* The interpreter to be: an owned absolute path, or NULL with a sentence. Any thread, no Python. */
char *px_python_select(const char *wanted, struct px_error *err);
/* Whether that interpreter, an absolute path, is likely to find debugpy. Any thread, no Python. */
bool px_python_debugs(const char *python);

/* GIL. The module `_phalanx_host`, with the streams in it; a new reference or NULL with an
 * exception. */
PyObject *px_services_create(struct px_python *self);
/* GIL. Makes what the next two need. -1 with an exception. */
int px_parent_init(struct px_python *self);
/* GIL. From now on output of this thread, and of threads and tasks that it starts, belongs to the
 * request that runs now. */
void px_parent_begin(struct px_python *self);
/* GIL. The object that holds this thread's or task's request, and that request: a new reference, or
 * NULL when it has none (the host then takes the one that runs). */
PyObject *px_parent_current(struct px_python *self, struct px_parent **parent);

/* GIL. The object behind sys.stdout or sys.stderr. */
PyObject *px_stream_create(struct px_python *self, PyObject *module, enum px_stream which);

/* GIL. Fills `out` with a buffer that keeps `object`'s bytes until released from any thread. -1
 * with an exception if it offers none. */
int px_loan_make(struct px_python *self, PyObject *object, struct px_buffer *out);
/* GIL. Lets go of what was given back. */
void px_loan_collect(struct px_python *self);

/* GIL. Turns the current exception into `out` (failed) without raising another. `method` of the
 * bridge describes it: "describe", "describe_task", "describe_cell". */
void px_python_failed(struct px_python *self, const char *method, struct px_outcome *out);

/* GIL. Ends a child that the user's code forked and that comes back from it; nothing in another. */
void px_python_end_child(struct px_python *self, bool failed);

/* GIL. Appends a str or bytes object; anything else is ignored. */
void px_python_append(struct px_buf *buf, PyObject *text);

/* The ops that cell.c and apply.c hold. */
void px_cell_execute(void *self, const struct px_execute *request, struct px_outcome *out);
void px_cell_query(void *self, enum px_query what, struct px_span content, struct px_buf *reply);
void px_cell_comm(void *self, enum px_publication what, struct px_span content,
                  struct px_span metadata, const struct px_span *buffers, size_t buffer_count);
void px_cell_clear(void *self);
/* And those of thread.c. */
void px_thread_begin(void *self, const char *name);
void px_thread_end(void *self);
void px_thread_interrupt(void *self, pthread_t thread);
/* GIL, which it gives up meanwhile: until no thread of ours will ask for it to interrupt another.
 */
void px_thread_wait_for_hits(struct px_python *self);
/* GIL. True when CPython is about to raise what interrupts this subshell's thread. */
bool px_thread_is_hit(void);
void px_python_interrupt(void *self);
/* GIL. What is to stand for signal.default_int_handler until px_thread_forget(), so that a second
 * SIGINT is stronger than the first: a new reference, or NULL with an exception. */
PyObject *px_thread_handler(struct px_python *self);
/* Before Python ends: a SIGINT, which it then leaves to the system, does not end the process. */
void px_thread_forget(struct px_python *self);
/* GIL. Until it is called with false as often as with true, or the request has ended, what runs on
 * the interpreter thread is interrupted but once by each interrupt. Does nothing on others. */
void px_thread_spare(struct px_python *self, bool spare);
void px_apply_run(void *self, struct px_span metadata, const struct px_span *buffers,
                  size_t buffer_count, struct px_outcome *out);
/* GIL. Forgets what apply remembers. */
void px_apply_destroy(struct px_python *self);

extern const char px_embedded_apply[];
extern const char px_embedded_bridge[];
extern const char px_embedded_comms[];
extern const char px_embedded_debugger[];
extern const char px_embedded_environment[];
extern const char px_embedded_history[];
extern const char px_embedded_kernel[];
extern const char px_embedded_line_magics[];
extern const char px_embedded_loops[];
extern const char px_embedded_output[];
extern const char px_embedded_placeholders[];
extern const char px_embedded_plain[];
extern const char px_embedded_shell[];
extern const char px_embedded_toolkits[];

#endif
