/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * cell: execute, queries, comms and clear: each one call into the bridge.
 *
 * The bridge answers in JSON text, so nothing here knows what a reply is made of. Whatever it
 * raises (an interrupt that came a moment late, say) becomes the outcome of the request; an op
 * never fails to answer.
 */
#include "python.h"

static PyObject *text_of(struct px_span span)
{
    return PyUnicode_DecodeUTF8(span.data ? span.data : "", (Py_ssize_t)span.size, "replace");
}

/* Bridge.execute gives (error, execution_count, payload, user_expressions, leave). */
static int unpack(PyObject *answer, struct px_outcome *out)
{
    PyObject *error, *payload, *expressions;
    int leave;
    if (!PyArg_ParseTuple(answer, "OiOOp", &error, &out->execution_count, &payload, &expressions,
                          &leave))
        return -1;
    out->failed = error != Py_None;
    px_python_append(&out->error, error);
    px_python_append(&out->payload, payload);
    px_python_append(&out->user_expressions, expressions);
    out->exit_requested = leave;
    return 0;
}

void px_cell_execute(void *arg, const struct px_execute *request, struct px_outcome *out)
{
    struct px_python *self = arg;
    px_python_enter(self);
    px_parent_begin(self);
    PyObject *code = text_of(request->code);
    PyObject *expressions = text_of(request->user_expressions);
    PyObject *metadata = text_of(request->metadata);
    PyObject *answer = NULL;
    if (code && expressions && metadata)
        answer = PyObject_CallMethod(self->bridge, "execute", "OiiiOO", code, request->silent,
                                     request->store_history, request->allow_stdin, expressions,
                                     metadata);
    if (!answer || unpack(answer, out) != 0)
        px_python_failed(self, "describe_cell", out);
    px_python_end_child(self, out->failed);
    Py_XDECREF(code);
    Py_XDECREF(expressions);
    Py_XDECREF(metadata);
    Py_XDECREF(answer);
    px_python_leave(self);
}

void px_cell_query(void *arg, enum px_query what, struct px_span content, struct px_buf *reply)
{
    static const char *const methods[PX_QUERY_COUNT] = {
        [PX_COMPLETE] = "complete",
        [PX_INSPECT] = "inspect",
        [PX_IS_COMPLETE] = "is_complete",
        [PX_HISTORY] = "history",
        [PX_DEBUG_REQUEST] = "debug",
    };
    struct px_python *self = arg;
    px_python_enter(self);
    px_parent_begin(self); /* what it prints is not the last cell's */
    PyObject *text = text_of(content);
    PyObject *answer =
        text ? PyObject_CallMethod(self->bridge, "query", "sO", methods[what], text) : NULL;
    if (answer) {
        px_python_append(reply, answer);
    } else {
        struct px_outcome out = {0};
        px_python_failed(self, "describe", &out);
        px_buf_printf(reply, "{\"status\": \"error\", %s}", out.error.data);
        px_outcome_fini(&out);
    }
    Py_XDECREF(text);
    Py_XDECREF(answer);
    px_python_leave(self);
}

/* GIL. The buffers of a message as a list of bytes: a comm's handler may keep them. */
static PyObject *list_of(const struct px_span *buffers, size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++) {
        PyObject *item = PyBytes_FromStringAndSize(buffers[i].data, (Py_ssize_t)buffers[i].size);
        if (!item)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, item);
    }
    return list;
}

void px_cell_comm(void *arg, enum px_publication what, struct px_span content,
                  struct px_span metadata, const struct px_span *buffers, size_t buffer_count)
{
    struct px_python *self = arg;
    px_python_enter(self);
    px_parent_begin(self);
    PyObject *text = text_of(content);
    PyObject *extra = text_of(metadata);
    PyObject *list = list_of(buffers, buffer_count);
    PyObject *answer = NULL;
    if (text && extra && list)
        answer = PyObject_CallMethod(self->bridge, "comm", "iOOO", (int)what, text, extra, list);
    if (!answer)
        PyErr_WriteUnraisable(self->bridge);
    px_python_end_child(self, !answer);
    Py_XDECREF(text);
    Py_XDECREF(extra);
    Py_XDECREF(list);
    Py_XDECREF(answer);
    px_python_leave(self);
}

void px_cell_clear(void *arg)
{
    struct px_python *self = arg;
    px_python_enter(self);
    PyObject *answer = PyObject_CallMethod(self->bridge, "clear", NULL);
    if (!answer)
        PyErr_WriteUnraisable(self->bridge);
    Py_XDECREF(answer);
    px_python_leave(self);
}
