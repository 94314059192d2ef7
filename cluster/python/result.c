/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The type Result of phalanx._phalanx: it hands out events as they come; the Python side files
 * them.
 */
#include "extension.h"

#include <stdlib.h>

/* ---- Result -------------------------------------------------------------------- */

struct result {
    PyObject_HEAD struct px_handle *handle;
    phalanx_result *result;
    struct px_notice *notice;
    struct px_shared_message *held; /* the first event, which was looked at and not taken */
    struct phalanx_event first;     /* the one that is held */
    PyObject *peeked;               /* the same for Python, once made */
    bool opened;                    /* next() or peek() was called: what comes is filed in Python */
};

/* Whether an event is held, or has come and is held now. False with an exception when memory has
 * run out. */
static bool hold_next(struct result *self)
{
    if (self->held)
        return true;
    struct px_shared_message *shared = calloc(1, sizeof *shared);
    if (!shared) { /* before it is taken, for it cannot be put back */
        PyErr_NoMemory();
        return false;
    }
    if (phalanx_next(self->result, 0, &self->first) != PHALANX_OK) {
        free(shared);
        return false;
    }
    *shared = (struct px_shared_message){.users = 1, .message = phalanx_take(self->result)};
    self->held = shared;
    return true;
}

static void drop_held(struct result *self)
{
    struct px_shared_message *held = self->held;
    self->held = NULL;
    if (held)
        px_shared_drop(held);
    Py_CLEAR(self->peeked);
}

phalanx_result *px_result_of(PyObject *self)
{
    return ((struct result *)self)->result;
}

PyObject *px_result_wrap_new(struct px_module *module, struct px_handle *handle,
                             phalanx_result *result)
{
    struct result *self = (struct result *)module->result_type->tp_alloc(module->result_type, 0);
    if (!self) {
        phalanx_result_free(result);
        return NULL;
    }
    self->handle = handle;
    handle->users++;
    self->result = result;
    return (PyObject *)self;
}

static void drop_notice(struct result *self)
{
    phalanx_notify(self->result, NULL, NULL); /* it is posted now, or never */
    if (!atomic_load(&self->notice->posted))
        px_notice_unref(self->notice);
    px_notice_unref(self->notice);
}

static void result_dealloc(PyObject *object)
{
    struct result *self = (struct result *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->handle) {
        if (!px_handle_inherited(self->handle)) {
            if (self->notice)
                drop_notice(self);
            drop_held(self);
            phalanx_result_free(self->result);
        }
        px_handle_unref(self->handle);
    }
    type->tp_free(object);
    Py_DECREF(type);
}

/* False with an exception in a forked child. */
static bool usable(struct result *self)
{
    if (!px_handle_inherited(self->handle))
        return true;
    PyErr_SetString(PyExc_RuntimeError, "this result belongs to the process that forked");
    return false;
}

/* The next event, or None. Making it may run the garbage collector, thereby other threads, and
 * these this function on the same result. */
static PyObject *read_event(PyObject *object, bool take)
{
    struct result *self = (struct result *)object;
    struct px_module *module = px_module_of(Py_TYPE(object));
    if (!module || !usable(self))
        return NULL;
    px_handle_sweep(self->handle);
    self->opened = true;
    if (!hold_next(self))
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    struct px_shared_message *shared = self->held;
    const struct phalanx_event event = self->first;
    PyObject *built = Py_XNewRef(self->peeked);
    shared->users++;
    if (take)
        drop_held(self);
    if (!built)
        built = px_event_build(module, shared, &event);
    if (!self->peeked && self->held == shared)
        self->peeked = Py_XNewRef(built);
    px_shared_drop(shared);
    return built;
}

static PyObject *result_next(PyObject *object, PyObject *unused)
{
    (void)unused;
    return read_event(object, true);
}

static PyObject *result_peek(PyObject *object, PyObject *unused)
{
    (void)unused;
    return read_event(object, false);
}

static PyObject *result_pop(PyObject *object, PyObject *event)
{
    struct result *self = (struct result *)object;
    if (!usable(self))
        return NULL;
    if (self->peeked == event)
        drop_held(self);
    Py_RETURN_NONE;
}

struct waiting {
    struct px_handle *handle;
    phalanx_result *result;
    enum phalanx_until until;
    size_t seen;
    bool more; /* than `seen`, instead of `until` */
};

static enum phalanx_code wait_result(void *ctx, int64_t timeout_ms)
{
    const struct waiting *waiting = ctx;
    return waiting->more ? phalanx_wait_more(waiting->result, waiting->seen, timeout_ms)
                         : phalanx_wait(waiting->result, waiting->until, timeout_ms);
}

/* Says that the controller, or all engines, are gone. */
static int warn_when_away(void *ctx)
{
    const struct waiting *waiting = ctx;
    phalanx_client *client = phalanx_result_client(waiting->result);
    int64_t left_ms;
    if (px_newly_away(waiting->handle, client, &left_ms))
        return PyErr_WarnFormat(PyExc_RuntimeWarning, 1,
                                "the controller cannot be reached; waiting %d s for it",
                                (int)(left_ms / 1000));
    if (px_newly_deserted(waiting->handle, client))
        return PyErr_WarnEx(PyExc_RuntimeWarning,
                            "there are no engines; tasks wait until some come (by themselves "
                            "where the cluster adapts; pxcluster engines -n N starts others), or "
                            "are taken back by abort()",
                            1);
    return 0;
}

static int wait_python(struct result *self, struct waiting waiting, int64_t timeout_ms)
{
    waiting.handle = self->handle;
    waiting.result = self->result;
    if (wait_result(&waiting, 0) == PHALANX_OK)
        return PHALANX_OK;
    /* The wait must not outlive the result, which another thread may let go of. */
    Py_INCREF(self);
    const int code =
        px_wait_python(self->handle, wait_result, warn_when_away, &waiting, timeout_ms);
    Py_DECREF(self);
    return code;
}

/* What a wait came to, as Python says it. */
static PyObject *waited(struct result *self, const struct px_module *module, int code)
{
    if (code < 0)
        return NULL;
    px_handle_sweep(self->handle);
    if (code == PHALANX_ECLOSED) {
        PyErr_SetString(module->closed_error, "the client was closed");
        return NULL;
    }
    return PyBool_FromLong(code == PHALANX_OK);
}

static PyObject *result_sleep(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct result *self = (struct result *)object;
    struct px_module *module = px_module_of(Py_TYPE(object));
    if (!module || !usable(self))
        return NULL;
    struct waiting waiting = {.result = self->result, .until = PHALANX_EVENT};
    return waited(self, module, (int)px_wait_undisturbed(self->handle, wait_result, &waiting));
}

static PyObject *result_wait(PyObject *object, PyObject *args)
{
    struct result *self = (struct result *)object;
    struct px_module *module = px_module_of(Py_TYPE(object));
    PyObject *seconds = Py_None;
    int until;
    int64_t timeout_ms;
    if (!module || !PyArg_ParseTuple(args, "i|O:wait", &until, &seconds) ||
        !px_timeout(seconds, &timeout_ms) || !usable(self))
        return NULL;
    if (until == PHALANX_EVENT && self->held)
        Py_RETURN_TRUE;
    const struct waiting waiting = {.until = (enum phalanx_until)until};
    return waited(self, module, wait_python(self, waiting, timeout_ms));
}

static PyObject *result_wait_more(PyObject *object, PyObject *args)
{
    struct result *self = (struct result *)object;
    struct px_module *module = px_module_of(Py_TYPE(object));
    PyObject *seconds = Py_None;
    Py_ssize_t seen;
    int64_t timeout_ms;
    if (!module || !PyArg_ParseTuple(args, "n|O:wait_more", &seen, &seconds) ||
        !px_timeout(seconds, &timeout_ms) || !usable(self))
        return NULL;
    const struct waiting waiting = {.more = true, .seen = (size_t)seen};
    return waited(self, module, wait_python(self, waiting, timeout_ms));
}

/* Reads the first event; next() gives it later. Whether it is the one task's successful reply. */
static bool has_value(struct result *self)
{
    if (self->opened || phalanx_task_count(self->result) != 1)
        return false;
    return hold_next(self) && self->first.type == PHALANX_REPLY && !self->first.failed;
}

/* What most want to know of most results, without an Event and what a task's record is made of. */
static PyObject *result_value(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
    struct result *self = (struct result *)object;
    struct px_module *module = px_module_of(Py_TYPE(object));
    int64_t timeout_ms;
    if (!module || !usable(self))
        return NULL;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "value() takes unpack and timeout");
        return NULL;
    }
    if (!px_timeout(args[1], &timeout_ms))
        return NULL;
    const struct waiting waiting = {.until = PHALANX_REPLIES};
    const int code = wait_python(self, waiting, timeout_ms);
    if (code < 0)
        return NULL;
    px_handle_sweep(self->handle);
    if (code != PHALANX_OK || !has_value(self))
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_NotImplemented);
    struct px_shared_message *shared = self->held;
    const struct phalanx_event first = self->first;
    shared->users++;
    PyObject *buffers = px_buffers_of(module, shared, &first);
    px_shared_drop(shared);
    PyObject *value = buffers ? PyObject_CallOneArg(args[0], buffers) : NULL;
    Py_XDECREF(buffers);
    return value;
}

static PyObject *result_notify(PyObject *object, PyObject *key)
{
    struct result *self = (struct result *)object;
    const unsigned long long number = PyLong_AsUnsignedLongLong(key);
    if (PyErr_Occurred() || !usable(self))
        return NULL;
    if (self->notice) {
        PyErr_SetString(PyExc_RuntimeError, "the result has a notice already");
        return NULL;
    }
    self->notice = calloc(1, sizeof *self->notice);
    if (!self->notice)
        return PyErr_NoMemory();
    self->notice->handle = self->handle;
    self->notice->key = number;
    self->notice->users = 2;
    phalanx_notify(self->result, px_notice_post, self->notice);
    Py_RETURN_NONE;
}

static PyObject *result_discard(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct result *self = (struct result *)object;
    if (!usable(self))
        return NULL;
    phalanx_discard(self->result);
    drop_held(self);
    Py_RETURN_NONE;
}

static PyObject *result_task_id(PyObject *object, PyObject *index)
{
    struct result *self = (struct result *)object;
    const size_t task = PyLong_AsSize_t(index);
    if (PyErr_Occurred() || !usable(self))
        return NULL;
    const char *id = phalanx_task_id(self->result, task);
    if (!id)
        return PyErr_Format(PyExc_IndexError, "the result has no task %zu", task);
    return PyUnicode_FromString(id);
}

static PyObject *result_newest_ids(PyObject *object, PyObject *most)
{
    struct result *self = (struct result *)object;
    const size_t limit = PyLong_AsSize_t(most);
    if (PyErr_Occurred() || !usable(self))
        return NULL;
    const size_t count = phalanx_task_count(self->result);
    const size_t wanted = count < limit ? count : limit;
    PyObject *list = PyList_New((Py_ssize_t)wanted);
    for (size_t i = 0; list && i < wanted; i++) {
        PyObject *id = PyUnicode_FromString(phalanx_task_id(self->result, count - wanted + i));
        if (id)
            PyList_SET_ITEM(list, (Py_ssize_t)i, id);
        else
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *result_task_engine(PyObject *object, PyObject *index)
{
    struct result *self = (struct result *)object;
    const size_t task = PyLong_AsSize_t(index);
    if (PyErr_Occurred() || !usable(self))
        return NULL;
    return PyLong_FromLong(phalanx_task_engine(self->result, task));
}

/* For other C code in this process: valid as long as the Result. */
static PyObject *result_capsule(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct result *self = (struct result *)object;
    return usable(self) ? PyCapsule_New(self->result, "phalanx.result", NULL) : NULL;
}

static Py_ssize_t result_length(PyObject *object)
{
    struct result *self = (struct result *)object;
    return usable(self) ? (Py_ssize_t)phalanx_task_count(self->result) : -1;
}

enum { REPLIED, FINISHED, ARRIVED };

static struct counter {
    size_t (*of)(const phalanx_result *result);
} counters[] = {
    [REPLIED] = {phalanx_replied}, [FINISHED] = {phalanx_finished}, [ARRIVED] = {phalanx_arrived}};

static PyObject *result_counted(PyObject *object, void *counter)
{
    struct result *self = (struct result *)object;
    return usable(self) ? PyLong_FromSize_t(((struct counter *)counter)->of(self->result)) : NULL;
}

static PyObject *result_running(PyObject *object, void *unused)
{
    (void)unused;
    const struct result *self = (struct result *)object;
    return PyBool_FromLong(!px_handle_inherited(self->handle) &&
                           phalanx_replied(self->result) < phalanx_task_count(self->result));
}

static PyObject *result_submitted(PyObject *object, void *unused)
{
    (void)unused;
    return PyFloat_FromDouble(phalanx_submitted(((struct result *)object)->result));
}

static PyMethodDef result_methods[] = {
    {"next", result_next, METH_NOARGS, "The next Event that has arrived, or None. Does not wait."},
    {"peek", result_peek, METH_NOARGS,
     "What next() would give, which stays, and is the same object, until pop()."},
    {"pop", result_pop, METH_O, "pop(event): takes off what peek() gave, if it is there yet."},
    {"wait", result_wait, METH_VARARGS,
     "wait(until, timeout=None): whether it came to pass within `timeout` seconds. `until` is "
     "EVENT, REPLIES or FINISHED."},
    {"wait_more", result_wait_more, METH_VARARGS,
     "wait_more(seen, timeout=None): whether more events than `seen` have arrived, or none will "
     "come, within `timeout` seconds."},
    {"value", (PyCFunction)(void (*)(void))result_value, METH_FASTCALL,
     "value(unpack, timeout): what unpack makes of the buffers of the reply, if there is one task "
     "that ended well within `timeout` seconds and printed nothing before. NotImplemented "
     "otherwise. All events are next()'s yet."},
    {"sleep", result_sleep, METH_NOARGS,
     "sleep(): waits for an event, in a thread that handles no signals and warns of nothing."},
    {"notify", result_notify, METH_O,
     "notify(key): Client.notices gives `key` once every task has its reply. Once a result."},
    {"discard", result_discard, METH_NOARGS,
     "Drops the events that are here and those that will come; counting and waiting go on."},
    {"task_id", result_task_id, METH_O, "The msg_id of a task."},
    {"newest_ids", result_newest_ids, METH_O, "newest_ids(most): the msg_ids of the last tasks."},
    {"task_engine", result_task_engine, METH_O, "The engine of a task, -1 when not known."},
    {"capsule", result_capsule, METH_NOARGS, "The phalanx_result, for C code."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef result_properties[] = {
    {"running", result_running, NULL, "Whether replies are to come. Not in a forked child.", NULL},
    {"submitted", result_submitted, NULL, "When its first tasks were: seconds since 1970.", NULL},
    {"replied", result_counted, NULL, "How many tasks have their reply.", &counters[REPLIED]},
    {"arrived", result_counted, NULL, "How many events have come, taken or not.",
     &counters[ARRIVED]},
    {"finished", result_counted, NULL, "How many have their reply and all output.",
     &counters[FINISHED]},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot result_slots[] = {
    {Py_tp_dealloc, result_dealloc},
    {Py_tp_methods, result_methods},
    {Py_tp_getset, result_properties},
    {Py_sq_length, result_length},
    {Py_tp_doc, "Tasks that were sent, and what comes back for them."},
    {0, NULL},
};

PyType_Spec px_result_spec = {
    .name = "phalanx._phalanx.Result",
    .basicsize = sizeof(struct result),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = result_slots,
};
