/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The types Event and Buffer of phalanx._phalanx.
 *
 * A Buffer is one received frame, held by reference and writable, so that an array from an engine
 * is built on the memory it arrived in.
 */
#include "extension.h"

#include <stdlib.h>
#include <string.h>

/* ---- Buffer ---------------------------------------------------------------- */

void px_shared_drop(struct px_shared_message *shared)
{
    if (--shared->users > 0)
        return;
    phalanx_message_free(shared->message);
    free(shared);
}

struct buffer {
    PyObject_HEAD struct px_shared_message *shared;
    void *data;
    Py_ssize_t size;
};

static void buffer_dealloc(PyObject *object)
{
    struct buffer *self = (struct buffer *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->shared)
        px_shared_drop(self->shared);
    type->tp_free(object);
    Py_DECREF(type);
}

static int buffer_get(PyObject *object, Py_buffer *view, int flags)
{
    struct buffer *self = (struct buffer *)object;
    return PyBuffer_FillInfo(view, object, self->data, self->size, 0, flags);
}

static Py_ssize_t buffer_length(PyObject *object)
{
    return ((struct buffer *)object)->size;
}

static PyType_Slot buffer_slots[] = {
    {Py_tp_dealloc, buffer_dealloc},
    {Py_bf_getbuffer, buffer_get},
    {Py_sq_length, buffer_length},
    {Py_tp_doc, "One received frame; supports the buffer protocol, writable."},
    {0, NULL},
};

PyType_Spec px_buffer_spec = {
    .name = "phalanx._phalanx.Buffer",
    .basicsize = sizeof(struct buffer),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = buffer_slots,
};

static PyObject *buffer_create(struct px_module *module, struct px_shared_message *shared,
                               const struct phalanx_buffer *from)
{
    struct buffer *self = (struct buffer *)module->buffer_type->tp_alloc(module->buffer_type, 0);
    if (!self)
        return NULL;
    self->shared = shared;
    shared->users++;
    self->data = (void *)(uintptr_t)from->data;
    self->size = (Py_ssize_t)from->size;
    return (PyObject *)self;
}

/* ---- Event ------------------------------------------------------------------- */

enum { EVENT_FIELDS = 13 };

static PyStructSequence_Field event_fields[EVENT_FIELDS + 1] = {
    {"type", "STREAM, OUTPUT, REPLY or IDLE"},
    {"task", "index of the task in its result"},
    {"engine", "id, -1 when not known"},
    {"failed", "REPLY: the status is not ok"},
    {"lost", "REPLY: made here, because engine or controller are gone"},
    {"name", "STREAM: stdout or stderr; OUTPUT: the message type"},
    {"text", "STREAM: what was written"},
    {"content", "JSON text"},
    {"metadata", "JSON text"},
    {"header", "JSON text"},
    {"buffers", "list of Buffer"},
    {"received", "seconds since 1970"},
    {"parent", "of Client.late(): the msg_id of the task"},
    {NULL, NULL},
};

PyStructSequence_Desc px_event_desc = {
    .name = "phalanx._phalanx.Event",
    .doc = "Something that arrived for a result.",
    .fields = event_fields,
    .n_in_sequence = EVENT_FIELDS - 1, /* parent by name only */
};

static PyObject *text_of(const char *text, size_t size)
{
    if (!text)
        Py_RETURN_NONE;
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)size, "replace");
}

static PyObject *string_of(const char *text)
{
    return text_of(text, text ? strlen(text) : 0);
}

PyObject *px_buffers_of(struct px_module *module, struct px_shared_message *shared,
                        const struct phalanx_event *event)
{
    PyObject *list = PyList_New((Py_ssize_t)event->buffer_count);
    for (size_t i = 0; list && i < event->buffer_count; i++) {
        PyObject *buffer = buffer_create(module, shared, &event->buffers[i]);
        if (buffer)
            PyList_SET_ITEM(list, (Py_ssize_t)i, buffer);
        else
            Py_CLEAR(list);
    }
    return list;
}

PyObject *px_event_build(struct px_module *module, struct px_shared_message *shared,
                         const struct phalanx_event *event)
{
    PyObject *self = PyStructSequence_New(module->event_type);
    if (!self)
        return NULL;
    PyObject *const values[EVENT_FIELDS] = {
        PyLong_FromLong(event->type),
        PyLong_FromSize_t(event->task),
        PyLong_FromLong(event->engine),
        PyBool_FromLong(event->failed),
        PyBool_FromLong(event->lost),
        string_of(event->name),
        text_of(event->text, event->text_size),
        string_of(event->content),
        string_of(event->metadata),
        string_of(event->header),
        px_buffers_of(module, shared, event),
        PyFloat_FromDouble(event->received),
        string_of(event->parent),
    };
    bool whole = true;
    for (Py_ssize_t i = 0; i < EVENT_FIELDS; i++) {
        whole &= values[i] != NULL;
        PyStructSequence_SetItem(self, i, values[i] ? values[i] : Py_NewRef(Py_None));
    }
    if (!whole)
        Py_CLEAR(self);
    return self;
}
