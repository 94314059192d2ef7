/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * phalanx._phalanx: libphalanx for Python: the module.
 *
 * It is the narrow waist under the package `phalanx`: it moves bytes, text and numbers, and waits.
 * Views, pickling and exceptions of the user's interface are Python above it.
 */
#include "extension.h"

#include <unistd.h>

/* ---- descriptors ---------------------------------------------------------------- */

/* A capsule whose pointer is the number and one, for it cannot be NULL. */
#define DESCRIPTOR "phalanx.descriptor"

static void close_descriptor(PyObject *capsule)
{
    const intptr_t pointer = (intptr_t)PyCapsule_GetPointer(capsule, DESCRIPTOR);
    Py_BEGIN_ALLOW_THREADS;
    close((int)(pointer - 1));
    Py_END_ALLOW_THREADS;
}

/* Closed when nobody holds what this returns: without a step of Python, in which the exception of
 * an interrupt would be lost. */
static PyObject *module_hold(PyObject *module, PyObject *number)
{
    (void)module;
    const int fd = PyObject_AsFileDescriptor(number);
    return fd < 0 ? NULL : PyCapsule_New((void *)((intptr_t)fd + 1), DESCRIPTOR, close_descriptor);
}

/* ---- the module ---------------------------------------------------------------------------------
 */

struct px_module *px_module_of(PyTypeObject *type)
{
    return PyType_GetModuleState(type);
}

static const struct {
    const char *name;
    long value;
} constants[] = {
    {"EXECUTE", PHALANX_EXECUTE},   {"APPLY", PHALANX_APPLY},
    {"CONTROL", PHALANX_CONTROL},   {"MESSAGE", PHALANX_MESSAGE},
    {"QUERY", PHALANX_QUERY},       {"DIRECT", PHALANX_DIRECT},
    {"BALANCED", PHALANX_BALANCED}, {"BROADCAST", PHALANX_BROADCAST},
    {"STREAM", PHALANX_STREAM},     {"OUTPUT", PHALANX_OUTPUT},
    {"REPLY", PHALANX_REPLY},       {"IDLE", PHALANX_IDLE},
    {"EVENT", PHALANX_EVENT},       {"REPLIES", PHALANX_REPLIES},
    {"FINISHED", PHALANX_FINISHED},
};

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return type && PyModule_AddType(module, type) == 0 ? type : NULL;
}

static int module_exec(PyObject *module)
{
    struct px_module *state = PyModule_GetState(module);
    state->client_type = add_type(module, &px_client_spec);
    state->result_type = add_type(module, &px_result_spec);
    state->buffer_type = add_type(module, &px_buffer_spec);
    state->event_type = PyStructSequence_NewType(&px_event_desc);
    state->closed_error = PyErr_NewExceptionWithDoc(
        "phalanx._phalanx.ClosedError", "The client was closed.", PyExc_RuntimeError, NULL);
    if (!state->client_type || !state->result_type || !state->buffer_type || !state->event_type ||
        !state->closed_error ||
        PyModule_AddObjectRef(module, "Event", (PyObject *)state->event_type) < 0 ||
        PyModule_AddObjectRef(module, "ClosedError", state->closed_error) < 0 ||
        PyModule_AddStringConstant(module, "version", phalanx_version()) < 0)
        return -1;
    for (size_t i = 0; i < sizeof constants / sizeof constants[0]; i++) {
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value) < 0)
            return -1;
    }
    return 0;
}

static int module_clear(PyObject *module)
{
    struct px_module *state = PyModule_GetState(module);
    Py_CLEAR(state->client_type);
    Py_CLEAR(state->result_type);
    Py_CLEAR(state->buffer_type);
    Py_CLEAR(state->event_type);
    Py_CLEAR(state->closed_error);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static PyMethodDef module_methods[] = {
    {"hold", module_hold, METH_O, "A holder of a file descriptor, which is closed with it."},
    {NULL, NULL, 0, NULL},
};

struct PyModuleDef px_module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_phalanx",
    .m_doc = "libphalanx for Python.",
    .m_size = sizeof(struct px_module),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__phalanx(void);
PyMODINIT_FUNC PyInit__phalanx(void)
{
    return PyModuleDef_Init(&px_module_def);
}
