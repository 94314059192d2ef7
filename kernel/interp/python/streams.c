/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * streams: sys.stdout and sys.stderr as native objects.
 *
 * Text goes straight to the host, which coalesces it; nothing is kept here, so flush has nothing to
 * do and output is in order with displays by construction. Before a host is attached, and after it
 * has gone, text goes to the real descriptor. In a child that the user's code forked, too, but there
 * the pieces of one print() are kept together, as other children may print. They look like text
 * files in the ways libraries test: isatty, fileno, encoding, buffer, writable. Closing one is
 * refused quietly, as the next cell needs it.
 */
#include <errno.h>
#include <unistd.h>

#include "python.h"

#include <structmember.h>

#define MOST_HELD 4096 /* bytes: a pipe takes so many in one piece */

struct stream {
    PyObject ob_base;
    struct px_python *python;
    PyObject *dict; /* libraries hang things on sys.stdout */
    PyObject *weak;
    int which;          /* enum px_stream */
    int fd;             /* the real one */
    bool binary;        /* this is the `buffer` of the other kind */
    bool due;           /* Python has been asked to call write_held */
    struct px_buf held; /* in a forked child: text that is not written yet */
};

static void write_descriptor(int fd, const char *text, size_t size)
{
    while (size > 0) {
        ssize_t done = write(fd, text, size);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return;
        text += done;
        size -= (size_t)done;
    }
}

/* GIL. */
static void write_held(struct stream *self)
{
    if (self->held.size == 0)
        return;
    struct px_buf text = self->held;
    self->held = (struct px_buf){0};
    Py_BEGIN_ALLOW_THREADS write_descriptor(self->fd, text.data, text.size);
    Py_END_ALLOW_THREADS px_buf_fini(&text);
}

static int on_print_over(void *arg)
{
    struct stream *self = arg;
    self->due = false;
    write_held(self);
    Py_DECREF(self);
    return 0;
}

/* GIL. Python makes pending calls on its main thread, between instructions: when print() returns. */
static bool will_be_written(struct stream *self)
{
    if (!self->due && pthread_equal(pthread_self(), self->python->main_thread) &&
        Py_AddPendingCall(on_print_over, self) == 0) {
        self->due = true;
        Py_INCREF(self);
    }
    return self->due;
}

static void write_in_child(struct stream *self, const char *text, size_t size)
{
    px_buf_append(&self->held, text, size);
    if (text[size - 1] == '\n' || self->held.size >= MOST_HELD || !will_be_written(self))
        write_held(self);
}

/* The GIL is kept as long as the host takes text: who gives it up for each line of a loop that
 * prints waits for other threads each time. */
static void send_to_host(const struct px_interp_host *host, struct px_parent *parent,
                         enum px_stream which, const char *text, size_t size)
{
    for (;;) {
        const size_t done = host->stream(host->ctx, parent, which, text, size);
        text += done;
        size -= done;
        if (size == 0)
            return;
        Py_BEGIN_ALLOW_THREADS host->room(host->ctx);
        Py_END_ALLOW_THREADS
    }
}

static void send_text(struct stream *self, const char *text, size_t size)
{
    const struct px_interp_host *host = self->python->host;
    if (host) {
        struct px_parent *parent;
        PyObject *token = px_parent_current(self->python, &parent);
        send_to_host(host, parent, (enum px_stream)self->which, text, size);
        Py_XDECREF(token);
        return;
    }
    if (self->python->forked && size > 0 && !self->binary) {
        write_in_child(self, text, size);
        return;
    }
    Py_BEGIN_ALLOW_THREADS write_descriptor(self->fd, text, size);
    Py_END_ALLOW_THREADS
}

/* Text that is not UTF-8 (lone surrogates of file names) is shown escaped, not refused. */
static int write_text(struct stream *self, PyObject *text)
{
    Py_ssize_t size;
    const char *data = PyUnicode_AsUTF8AndSize(text, &size);
    if (data) {
        if (size > 0)
            send_text(self, data, (size_t)size);
        return 0;
    }
    PyErr_Clear();
    PyObject *bytes = PyUnicode_AsEncodedString(text, "utf-8", "backslashreplace");
    if (!bytes)
        return -1;
    send_text(self, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes));
    Py_DECREF(bytes);
    return 0;
}

static PyObject *stream_write(PyObject *arg, PyObject *text)
{
    struct stream *self = (struct stream *)arg;
    if (!self->binary) {
        if (!PyUnicode_Check(text))
            return PyErr_Format(PyExc_TypeError, "write() argument must be str, not %s",
                                Py_TYPE(text)->tp_name);
        return write_text(self, text) == 0 ? PyLong_FromSsize_t(PyUnicode_GET_LENGTH(text)) : NULL;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(text, &view, PyBUF_SIMPLE) != 0)
        return NULL;
    send_text(self, view.buf, (size_t)view.len);
    PyObject *length = PyLong_FromSsize_t(view.len);
    PyBuffer_Release(&view);
    return length;
}

static PyObject *stream_writelines(PyObject *self, PyObject *lines)
{
    PyObject *iterator = PyObject_GetIter(lines);
    PyObject *line;
    while (iterator && (line = PyIter_Next(iterator))) {
        PyObject *done = stream_write(self, line);
        Py_DECREF(line);
        if (!done)
            break;
        Py_DECREF(done);
    }
    Py_XDECREF(iterator);
    if (PyErr_Occurred())
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *answer_none(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    Py_RETURN_NONE;
}

static PyObject *stream_flush(PyObject *self, PyObject *args)
{
    (void)args;
    write_held((struct stream *)self);
    Py_RETURN_NONE;
}

static PyObject *answer_true(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    Py_RETURN_TRUE;
}

static PyObject *answer_false(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    Py_RETURN_FALSE;
}

static PyObject *stream_fileno(PyObject *self, PyObject *args)
{
    (void)args;
    return PyLong_FromLong(((struct stream *)self)->fd);
}

static PyObject *stream_enter(PyObject *self, PyObject *args)
{
    (void)args;
    return Py_NewRef(self);
}

static PyObject *refuse_read(PyObject *self, PyObject *args)
{
    (void)self;
    (void)args;
    PyObject *io = PyImport_ImportModule("io");
    PyObject *type = io ? PyObject_GetAttrString(io, "UnsupportedOperation") : NULL;
    if (type)
        PyErr_SetString(type, "not readable");
    Py_XDECREF(io);
    Py_XDECREF(type);
    return NULL;
}

static PyObject *answer_reconfigure(PyObject *self, PyObject *args, PyObject *named)
{
    (void)named;
    return answer_none(self, args);
}

static PyMethodDef stream_methods[] = {
    {"write", stream_write, METH_O, PyDoc_STR("Sends text to whoever runs this request.")},
    {"writelines", stream_writelines, METH_O, NULL},
    {"flush", stream_flush, METH_NOARGS, PyDoc_STR("Text is kept in forked children only.")},
    {"close", answer_none, METH_NOARGS, PyDoc_STR("Does nothing: the next cell needs it.")},
    {"isatty", answer_false, METH_NOARGS, NULL},
    {"readable", answer_false, METH_NOARGS, NULL},
    {"seekable", answer_false, METH_NOARGS, NULL},
    {"writable", answer_true, METH_NOARGS, NULL},
    {"fileno", stream_fileno, METH_NOARGS, PyDoc_STR("The process's own descriptor.")},
    {"read", refuse_read, METH_VARARGS, NULL},
    {"readline", refuse_read, METH_VARARGS, NULL},
    {"reconfigure", (PyCFunction)(void (*)(void))answer_reconfigure, METH_VARARGS | METH_KEYWORDS,
     PyDoc_STR("Accepted and ignored.")},
    {"__enter__", stream_enter, METH_NOARGS, NULL},
    {"__exit__", answer_none, METH_VARARGS, NULL},
    {0},
};

static PyObject *get_constant(PyObject *self, void *text)
{
    (void)self;
    return text ? PyUnicode_FromString(text) : Py_NewRef(Py_None);
}

static PyObject *get_name(PyObject *self, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(((struct stream *)self)->which == PX_STDOUT ? "<stdout>"
                                                                            : "<stderr>");
}

static PyObject *get_false(PyObject *self, void *unused)
{
    (void)unused;
    return answer_false(self, NULL);
}

static PyObject *new_stream(PyTypeObject *type, struct px_python *python, int which, bool binary)
{
    struct stream *self = PyObject_GC_New(struct stream, type);
    if (!self)
        return NULL;
    self->python = python;
    self->dict = NULL;
    self->weak = NULL;
    self->which = which;
    self->fd = which == PX_STDOUT ? STDOUT_FILENO : STDERR_FILENO;
    self->binary = binary;
    self->due = false;
    self->held = (struct px_buf){0};
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static PyObject *get_buffer(PyObject *arg, void *unused)
{
    (void)unused;
    struct stream *self = (struct stream *)arg;
    if (self->binary)
        return Py_NewRef(arg);
    return new_stream(Py_TYPE(arg), self->python, self->which, true);
}

static PyGetSetDef stream_attributes[] = {
    {"encoding", get_constant, NULL, NULL, "UTF-8"},
    {"errors", get_constant, NULL, NULL, "backslashreplace"},
    {"mode", get_constant, NULL, NULL, "w"},
    {"newlines", get_constant, NULL, NULL, NULL},
    {"name", get_name, NULL, NULL, NULL},
    {"closed", get_false, NULL, NULL, NULL},
    {"line_buffering", get_false, NULL, NULL, NULL},
    {"write_through", get_false, NULL, NULL, NULL},
    {"buffer", get_buffer, NULL, NULL, NULL},
    {"__dict__", PyObject_GenericGetDict, PyObject_GenericSetDict, NULL, NULL},
    {0},
};

static PyMemberDef stream_members[] = {
    {"__dictoffset__", T_PYSSIZET, offsetof(struct stream, dict), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct stream, weak), READONLY, NULL},
    {0},
};

static int stream_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((struct stream *)self)->dict);
    return 0;
}

static int stream_clear(PyObject *self)
{
    Py_CLEAR(((struct stream *)self)->dict);
    return 0;
}

static void stream_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    PyObject_ClearWeakRefs(self);
    stream_clear(self);
    px_buf_fini(&((struct stream *)self)->held);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyType_Slot stream_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("Output that goes to whoever runs the current request.")},
    {Py_tp_methods, stream_methods},
    {Py_tp_getset, stream_attributes},
    {Py_tp_members, stream_members},
    {Py_tp_traverse, stream_traverse},
    {Py_tp_clear, stream_clear},
    {Py_tp_dealloc, stream_dealloc},
    {0},
};

static PyType_Spec stream_spec = {
    .name = "_phalanx_host.Stream",
    .basicsize = sizeof(struct stream),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = stream_slots,
};

PyObject *px_stream_create(struct px_python *python, PyObject *module, enum px_stream which)
{
    PyObject *type = PyObject_GetAttrString(module, "Stream");
    if (!type) {
        PyErr_Clear();
        type = PyType_FromModuleAndSpec(module, &stream_spec, NULL);
        if (!type)
            return NULL;
        if (PyModule_AddType(module, (PyTypeObject *)type) != 0) {
            Py_DECREF(type);
            return NULL;
        }
    }
    PyObject *stream = new_stream((PyTypeObject *)type, python, (int)which, false);
    Py_DECREF(type);
    return stream;
}
