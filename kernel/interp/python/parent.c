/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * parent: which request a piece of output belongs to.
 *
 * The request that runs is kept in a context variable, as an object that holds a reference to it.
 * asyncio gives a task the context it was made in; the bridge gives a thread the variable of
 * the thread that started it. So what a background thread prints goes to the cell that started it,
 * however much later.
 */
#include "python.h"

struct token {
    PyObject ob_base;
    const struct px_python *python;
    const struct px_interp_host *host;
    struct px_parent *parent;
};

static void token_dealloc(PyObject *arg)
{
    struct token *self = (struct token *)arg;
    PyTypeObject *type = Py_TYPE(arg);
    if (!self->python->forked) /* a lock of the host's may be held for ever there */
        self->host->parent_unref(self->parent);
    type->tp_free(arg);
    Py_DECREF(type);
}

static PyType_Slot token_slots[] = {
    {Py_tp_dealloc, token_dealloc},
    {0},
};

static PyType_Spec token_spec = {
    .name = "_phalanx_host.Parent",
    .basicsize = sizeof(struct token),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = token_slots,
};

int px_parent_init(struct px_python *self)
{
    self->parent_variable = PyContextVar_New("phalanx_parent", NULL);
    self->parent_type = (PyTypeObject *)PyType_FromSpec(&token_spec);
    return self->parent_variable && self->parent_type ? 0 : -1;
}

void px_parent_begin(struct px_python *self)
{
    const struct px_interp_host *host = self->host;
    struct px_parent *parent = host && host->parent_ref ? host->parent_ref(host->ctx) : NULL;
    if (!parent)
        return;
    struct token *token = PyObject_New(struct token, self->parent_type);
    if (!token) {
        host->parent_unref(parent);
        PyErr_Clear();
        return;
    }
    token->python = self;
    token->host = host;
    token->parent = parent;
    PyObject *undo = PyContextVar_Set(self->parent_variable, (PyObject *)token);
    if (!undo)
        PyErr_Clear();
    Py_XDECREF(undo);
    Py_DECREF(token);
}

PyObject *px_parent_current(struct px_python *self, struct px_parent **parent)
{
    PyObject *token = NULL;
    *parent = NULL;
    if (PyContextVar_Get(self->parent_variable, NULL, &token) != 0)
        PyErr_Clear();
    if (token && Py_TYPE(token) != self->parent_type)
        Py_CLEAR(token);
    if (token)
        *parent = ((struct token *)token)->parent;
    return token;
}
