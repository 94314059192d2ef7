/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * services: the module `_phalanx_host`, through which Python's side calls the host.
 *
 *     publish(kind, content, metadata, buffers)   iopub; texts are JSON
 *     input(prompt, password)                     a line, or None when the front end takes no input
 *     log(text)                                   a line in the log, for whoever runs the program
 *     forked()                                    this is a child process, without a host
 *     background(busy, fd)                        what the event loop has to do between requests
 *     spare(bool)                                 whether to leave alone what an interrupt lasts for
 *     default_int_handler                         Python's handler of SIGINT (thread.c)
 *     murmur2(bytes, seed)                        a hash, that of front ends for cells
 *     bind(path)                                  opens the kernel to front ends; writes their file
 *     begun()                                     a memoryview of one number, which a task that has
 *                                                 items sets to how many it has begun; or None
 *     parent()                                    the header of the caller's request, as JSON text
 *     parent_variable                             what ties the caller to its request (parent.c)
 *     stdout, stderr                              streams.c
 *     DISPLAY_DATA ... DEBUG_EVENT                the kinds
 *
 * Buffers leave without a copy: px_loan keeps the owner alive until the host gives the bytes back,
 * on whatever thread; the owner itself is let go when the GIL is next held.
 */
#include <stdatomic.h>
#include <stdlib.h>

#include "python.h"

#define MOST_BUFFERS 65536

struct state {
    struct px_python *python;
};

static struct px_python *python_of(PyObject *module)
{
    return ((struct state *)PyModule_GetState(module))->python;
}

/* ---- loans ---------------------------------------------------------------- */

static void loan_return(void *hint)
{
    struct px_loan *loan = hint;
    struct px_python *self = loan->python;
    loan->next = atomic_load(&self->returned);
    while (!atomic_compare_exchange_weak(&self->returned, &loan->next, loan))
        ;
    px_python_unref(self);
}

void px_python_unref(struct px_python *self)
{
    if (atomic_fetch_sub(&self->references, 1) > 1)
        return;
    struct px_loan *loan = atomic_load(&self->returned);
    while (loan) { /* came back too late to let its object go */
        struct px_loan *next = loan->next;
        free(loan);
        loan = next;
    }
    pthread_cond_destroy(&self->hits_done);
    pthread_mutex_destroy(&self->hits_lock);
    free(self);
}

int px_loan_make(struct px_python *self, PyObject *object, struct px_buffer *out)
{
    struct px_loan *loan = px_alloc(sizeof *loan);
    loan->python = self;
    if (PyObject_GetBuffer(object, &loan->view, PyBUF_C_CONTIGUOUS) != 0) {
        free(loan);
        return -1;
    }
    atomic_fetch_add(&self->references, 1);
    *out = (struct px_buffer){loan->view.buf, (size_t)loan->view.len, loan_return, loan};
    return 0;
}

void px_loan_collect(struct px_python *self)
{
    if (!atomic_load_explicit(&self->returned, memory_order_relaxed))
        return;
    struct px_loan *loan = atomic_exchange(&self->returned, NULL);
    while (loan) {
        struct px_loan *next = loan->next;
        PyBuffer_Release(&loan->view);
        free(loan);
        loan = next;
    }
}

/* ---- the module's functions ------------------------------------------------ */

static void release_all(struct px_buffer *buffers, size_t count)
{
    for (size_t i = 0; i < count; i++)
        buffers[i].release(buffers[i].hint);
    free(buffers);
}

/* The sequence's buffers as an array; NULL with an exception. */
static struct px_buffer *lend_all(struct px_python *self, PyObject *sequence, size_t *count)
{
    PyObject *list = PySequence_Fast(sequence, "buffers must be a sequence");
    if (!list)
        return NULL;
    Py_ssize_t size = PySequence_Fast_GET_SIZE(list);
    struct px_buffer *buffers = NULL;
    *count = 0;
    if (size > MOST_BUFFERS)
        PyErr_Format(PyExc_ValueError, "more than %d buffers", MOST_BUFFERS);
    else
        buffers = px_alloc((size_t)size * sizeof *buffers + 1);
    for (Py_ssize_t i = 0; buffers && i < size; i++) {
        if (px_loan_make(self, PySequence_Fast_GET_ITEM(list, i), &buffers[*count]) != 0) {
            release_all(buffers, *count);
            buffers = NULL;
            break;
        }
        (*count)++;
    }
    Py_DECREF(list);
    return buffers;
}

static PyObject *host_publish(PyObject *module, PyObject *args)
{
    struct px_python *self = python_of(module);
    int kind;
    struct px_span content, metadata;
    Py_ssize_t content_size, metadata_size;
    PyObject *sequence = NULL;
    if (!PyArg_ParseTuple(args, "is#s#|O", &kind, &content.data, &content_size, &metadata.data,
                          &metadata_size, &sequence))
        return NULL;
    if (kind < 0 || kind >= PX_PUBLICATION_COUNT)
        return PyErr_Format(PyExc_ValueError, "no such kind of message: %d", kind);
    content.size = (size_t)content_size;
    metadata.size = (size_t)metadata_size;
    px_loan_collect(self);
    const struct px_interp_host *host = self->host;
    if (!host)
        Py_RETURN_NONE;
    size_t count = 0;
    struct px_buffer *buffers = NULL;
    if (sequence && sequence != Py_None) {
        buffers = lend_all(self, sequence, &count);
        if (!buffers)
            return NULL;
    }
    struct px_parent *parent;
    PyObject *token = px_parent_current(self, &parent);
    Py_BEGIN_ALLOW_THREADS host->publish(host->ctx, parent, (enum px_publication)kind, content,
                                         metadata, buffers, count);
    Py_END_ALLOW_THREADS Py_XDECREF(token);
    free(buffers);
    Py_RETURN_NONE;
}

/* Without the GIL, on the thread that asks: lets signals act on Python. */
static bool look_at_signals(void *ctx)
{
    PyThreadState **state = ctx;
    PyEval_RestoreThread(*state);
    const bool go_on = PyErr_CheckSignals() == 0 && !px_thread_is_hit();
    *state = PyEval_SaveThread();
    return go_on;
}

static int ask(struct px_python *self, const char *prompt, bool password, struct px_buf *line,
               struct px_error *err)
{
    const struct px_interp_host *host = self->host;
    struct px_parent *parent;
    PyObject *token = px_parent_current(self, &parent);
    PyThreadState *state = PyEval_SaveThread();
    const struct px_ask question = {prompt, password, look_at_signals, &state};
    const int status = host->input(host->ctx, parent, &question, line, err);
    PyEval_RestoreThread(state);
    Py_XDECREF(token);
    return PyErr_Occurred() || PyErr_CheckSignals() != 0 || px_thread_is_hit() ? -1 : status;
}

static PyObject *host_input(PyObject *module, PyObject *args)
{
    struct px_python *self = python_of(module);
    const char *prompt;
    int password;
    if (!PyArg_ParseTuple(args, "sp", &prompt, &password))
        return NULL;
    if (!self->host || !self->host->input)
        Py_RETURN_NONE;
    struct px_buf line = {0};
    struct px_error err = {0};
    PyObject *text = NULL;
    if (ask(self, prompt, password, &line, &err) == 0)
        text = PyUnicode_DecodeUTF8(line.data ? line.data : "", (Py_ssize_t)line.size, "replace");
    else if (!PyErr_Occurred() && (err.code == PX_ENOENT || px_thread_is_hit()))
        text = Py_NewRef(Py_None); /* KeyboardInterrupt comes as soon as this returns to Python */
    else if (!PyErr_Occurred())
        PyErr_SetString(PyExc_EOFError, err.text);
    px_buf_fini(&line);
    return text;
}

static PyObject *host_parent(PyObject *module, PyObject *args)
{
    (void)args;
    struct px_python *self = python_of(module);
    struct px_parent *parent;
    PyObject *token = self->host ? px_parent_current(self, &parent) : NULL;
    if (!token)
        return PyUnicode_FromString("{}");
    struct px_span header = self->host->parent_header(parent);
    PyObject *text = PyUnicode_DecodeUTF8(header.data, (Py_ssize_t)header.size, "replace");
    Py_DECREF(token);
    return text;
}

/* MurmurHash2, 32 bits, of bytes that are read as little-endian words. */
static uint32_t murmur2(const unsigned char *data, size_t size, uint32_t seed)
{
    const uint32_t m = 0x5bd1e995;
    uint32_t hash = seed ^ (uint32_t)size;
    for (; size >= 4; data += 4, size -= 4) {
        uint32_t word = data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 |
                        (uint32_t)data[3] << 24;
        word *= m;
        word ^= word >> 24;
        hash = (hash * m) ^ (word * m);
    }
    for (size_t i = 0; i < size; i++)
        hash ^= (uint32_t)data[i] << (8 * i);
    if (size > 0)
        hash *= m;
    hash = (hash ^ hash >> 13) * m;
    return hash ^ hash >> 15;
}

static PyObject *host_murmur2(PyObject *module, PyObject *args)
{
    Py_buffer view;
    unsigned int seed;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*I", &view, &seed))
        return NULL;
    const uint32_t hash = murmur2(view.buf, (size_t)view.len, seed);
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLong(hash);
}

static PyObject *host_log(PyObject *module, PyObject *text)
{
    const char *line = PyUnicode_Check(text) ? PyUnicode_AsUTF8(text) : NULL;
    (void)module;
    if (!line && !PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "a line of the log is text");
    if (!line)
        return NULL;
    px_log(PX_WARN, "python", "%s", line);
    Py_RETURN_NONE;
}

/* A child that the user's code forked has no thread that would send anything. */
static PyObject *host_forked(PyObject *module, PyObject *args)
{
    (void)args;
    python_of(module)->host = NULL;
    python_of(module)->forked = true;
    python_of(module)->loop_fd = -1;
    Py_RETURN_NONE;
}

static PyObject *host_bind(PyObject *module, PyObject *path)
{
    const struct px_interp_host *host = python_of(module)->host;
    struct px_error err = {0};
    PyObject *bytes = NULL;
    if (!PyUnicode_FSConverter(path, &bytes))
        return NULL;
    if (!host || !host->bind)
        PyErr_SetString(PyExc_RuntimeError, "this is not an engine");
    else if (host->bind(host->ctx, PyBytes_AS_STRING(bytes), &err) < 0)
        PyErr_SetString(PyExc_RuntimeError, err.text);
    Py_DECREF(bytes);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static PyObject *host_begun(PyObject *module, PyObject *args)
{
    const struct px_interp_host *host = python_of(module)->host;
    (void)args;
    if (!host || !host->begun)
        Py_RETURN_NONE;
    PyObject *bytes =
        PyMemoryView_FromMemory((char *)host->begun, sizeof *host->begun, PyBUF_WRITE);
    PyObject *number = bytes ? PyObject_CallMethod(bytes, "cast", "s", "q") : NULL;
    Py_XDECREF(bytes);
    return number;
}

static PyObject *host_spare(PyObject *module, PyObject *spare)
{
    px_thread_spare(python_of(module), spare == Py_True);
    Py_RETURN_NONE;
}

static PyObject *host_background(PyObject *module, PyObject *args)
{
    struct px_python *self = python_of(module);
    int busy;
    if (!PyArg_ParseTuple(args, "pi", &busy, &self->loop_fd))
        return NULL;
    self->background = busy;
    Py_RETURN_NONE;
}

static PyMethodDef host_functions[] = {
    {"publish", host_publish, METH_VARARGS, PyDoc_STR("publish(kind, content, metadata, buffers)")},
    {"input", host_input, METH_VARARGS, PyDoc_STR("input(prompt, password)")},
    {"log", host_log, METH_O, PyDoc_STR("A line in the log, not in the cell.")},
    {"background", host_background, METH_VARARGS,
     PyDoc_STR("background(busy, fd): the event loop is to run between requests: at once when it is"
               " busy, else when the descriptor can be read.")},
    {"forked", host_forked, METH_NOARGS, PyDoc_STR("From now on output goes to the descriptors.")},
    {"bind", host_bind, METH_O, PyDoc_STR("bind(path): opens the kernel to front ends.")},
    {"begun", host_begun, METH_NOARGS,
     PyDoc_STR("Where a task that has items writes how many it has begun, or None.")},
    {"spare", host_spare, METH_O,
     PyDoc_STR("spare(bool): whether an interrupt that lasts is to leave alone what runs now.")},
    {"murmur2", host_murmur2, METH_VARARGS, PyDoc_STR("murmur2(bytes, seed): a hash of 32 bits.")},
    {"parent", host_parent, METH_NOARGS, PyDoc_STR("The header of the caller's request, as JSON.")},
    {0},
};

static struct PyModuleDef host_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_phalanx_host",
    .m_doc = PyDoc_STR("What the kernel or engine around this interpreter does for it."),
    .m_size = sizeof(struct state),
    .m_methods = host_functions,
};

static const struct {
    const char *name;
    enum px_publication value;
} kinds[] = {
    {"DISPLAY_DATA", PX_DISPLAY_DATA},
    {"UPDATE_DISPLAY_DATA", PX_UPDATE_DISPLAY_DATA},
    {"EXECUTE_RESULT", PX_EXECUTE_RESULT},
    {"CLEAR_OUTPUT", PX_CLEAR_OUTPUT},
    {"ERROR", PX_ERROR_OUTPUT},
    {"COMM_OPEN", PX_COMM_OPEN},
    {"COMM_MSG", PX_COMM_MSG},
    {"COMM_CLOSE", PX_COMM_CLOSE},
    {"DATA_MESSAGE", PX_DATA_MESSAGE},
    {"DEBUG_EVENT", PX_DEBUG_EVENT},
};

PyObject *px_services_create(struct px_python *self)
{
    PyObject *module = PyModule_Create(&host_module);
    if (!module)
        return NULL;
    ((struct state *)PyModule_GetState(module))->python = self;
    int status = px_parent_init(self);
    if (status == 0)
        status = PyModule_AddObjectRef(module, "parent_variable", self->parent_variable);
    for (size_t i = 0; i < PX_COUNT(kinds) && status == 0; i++)
        status = PyModule_AddIntConstant(module, kinds[i].name, (long)kinds[i].value);
    static const char *const names[] = {[PX_STDOUT] = "stdout", [PX_STDERR] = "stderr"};
    for (size_t i = 0; i < PX_COUNT(names) && status == 0; i++) {
        PyObject *stream = px_stream_create(self, module, (enum px_stream)i);
        status = stream ? PyModule_AddObject(module, names[i], stream) : -1;
    }
    PyObject *handler = status == 0 ? px_thread_handler(self) : NULL;
    if (!handler || PyModule_AddObjectRef(module, "default_int_handler", handler) != 0)
        status = -1;
    Py_XDECREF(handler);
    if (status != 0)
        Py_CLEAR(module);
    return module;
}
