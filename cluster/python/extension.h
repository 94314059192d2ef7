/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Private to cluster/python: what the two halves of the extension share.
 *
 * Every function here is called with the GIL held unless it says otherwise. The GIL is given up
 * around each call that waits. ZeroMQ's thread never takes it: a buffer that has been sent
 * goes onto its client's list of leases, and the next call from Python gives it back.
 */
#ifndef PX_EXTENSION_H
#define PX_EXTENSION_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "client/phalanx.h"

#include <semaphore.h>
#include <stdatomic.h>
#include <sys/types.h>

/* Bytes-like arguments from this size on are sent in place; smaller ones are copied. */
#define PX_LEASE_SIZE 65536
#define PX_LAST_S 1 /* see px_handle_close */
/* A signal that is handled just before a wait begins does not end it: look again this often. */
#define PX_SLICE_MS 1000

struct px_lease;

/* Somebody wants to know when a result has all its replies. */
struct px_notice {
    struct px_notice *next;
    struct px_handle *handle;
    unsigned long long key;
    int users; /* GIL: its result; the handle's list, on which it is or may come */
    atomic_bool posted;
};

/* A client and what outlives its Python object while results are around. Freed with its last user.
 */
struct px_handle {
    int users;                           /* GIL */
    unsigned forks;                      /* of the process whose thread serves it: see handle.c */
    phalanx_client *client;              /* NULL once closed */
    atomic_ulong ender;                  /* the thread that ends the interpreter; 0: none */
    bool warned;                         /* GIL: that the controller is out of reach */
    int64_t deserted_ms;                 /* GIL: since when no engine is there; -1: that was said */
    _Atomic(struct px_lease *) leases;   /* sent; waiting for the GIL */
    _Atomic(struct px_notice *) notices; /* posted, the last one first */
    sem_t noticed;                       /* posted with each of them, and by closing */
};

struct px_module {
    PyTypeObject *client_type, *result_type, *buffer_type, *event_type;
    PyObject *closed_error;
};

struct px_module *px_module_of(PyTypeObject *type); /* NULL with an exception */
extern struct PyModuleDef px_module_def;

/* NULL with an exception. Takes the client. */
struct px_handle *px_handle_create(phalanx_client *client);
void px_handle_unref(struct px_handle *handle);
void px_notice_unref(struct px_notice *notice);
/* phalanx_notify's callback; the hint is a struct px_notice. Without the GIL. */
void px_notice_post(void *hint);
/* The keys of the notices posted, oldest first, as a list; waits for the first one. None when the
 * time has passed or the client was closed. */
PyObject *px_notices_take(struct px_handle *handle, int64_t timeout_ms);
/* Closes the client. At the interpreter's end other threads that wait on it, or use it, are held
 * PX_LAST_S, as the end would stop them soon: they would report errors that are none. */
void px_handle_close(struct px_handle *handle, bool ending);
/* Holds this thread if it is one of these. */
void px_handle_stop_others(const struct px_handle *handle);
/* Gives back the buffers that have been sent. */
void px_handle_sweep(struct px_handle *handle);
/* False with an exception when the client is closed or belongs to another process. */
bool px_handle_check(struct px_handle *handle, PyObject *closed_error);
bool px_handle_inherited(const struct px_handle *handle);

/*
 * The buffers of a request, from None or a list or tuple of bytes-like objects. Large ones are
 * lent: they come back when ZeroMQ has sent them. False with an exception. px_buffers_submitted
 * ends it, after the submission, which copied the small ones.
 */
bool px_buffers_lend(struct px_handle *handle, PyObject *sequence, struct phalanx_buffer **out,
                     size_t *count);
void px_buffers_submitted(struct px_handle *handle, struct phalanx_buffer *buffers, size_t count);

int64_t px_clock_ms(void); /* monotonic */
/* Seconds, or None for ever, as milliseconds. False with an exception. */
bool px_timeout(PyObject *seconds, int64_t *out);

/*
 * Calls `wait(ctx, timeout_ms)` without the GIL, again after signals whose Python handlers
 * did not raise; `look` (may be NULL) once a second meanwhile, and may set an exception. The code,
 * or -1 with an exception. The caller keeps the handle.
 */
int px_wait_python(const struct px_handle *handle,
                   enum phalanx_code (*wait)(void *ctx, int64_t timeout_ms), int (*look)(void *ctx),
                   void *ctx, int64_t timeout_ms);

/* The same for ever, for a thread that handles no signals: nothing wakes it in vain. */
enum phalanx_code px_wait_undisturbed(const struct px_handle *handle,
                                      enum phalanx_code (*wait)(void *ctx, int64_t timeout_ms),
                                      void *ctx);

/* Whether it is time to say that the controller cannot be reached: once, until it is back. Then
 * also in how many milliseconds results that wait for it fail. GIL. */
bool px_newly_away(struct px_handle *handle, const phalanx_client *client, int64_t *left_ms);

/* The same of all engines having gone. GIL. */
bool px_newly_deserted(struct px_handle *handle, phalanx_client *client);

/* A message that an event and its buffers share. GIL. */
struct px_shared_message {
    int users;
    phalanx_message *message;
};
void px_shared_drop(struct px_shared_message *shared);
/* The Event of a message; its buffers alone, as a list of Buffer. NULL with an exception. */
PyObject *px_event_build(struct px_module *module, struct px_shared_message *shared,
                         const struct phalanx_event *event);
PyObject *px_buffers_of(struct px_module *module, struct px_shared_message *shared,
                        const struct phalanx_event *event);

/* A Result; takes `result`. */
PyObject *px_result_wrap_new(struct px_module *module, struct px_handle *handle,
                             phalanx_result *result);
/* The C result of a Python one. */
phalanx_result *px_result_of(PyObject *self);

extern PyType_Spec px_client_spec, px_result_spec, px_buffer_spec;
extern PyStructSequence_Desc px_event_desc;

#endif
