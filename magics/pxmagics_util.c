/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pxmagics_util: helpers, and the pure renderers as functions of phalanx._magics.
 */
#include "pxmagics.h"

PyObject *px_import_name(const char *module, const char *name)
{
    PyObject *from = PyImport_ImportModule(module);
    PyObject *found = from ? PyObject_GetAttrString(from, name) : NULL;
    Py_XDECREF(from);
    return found;
}

int px_discard(PyObject *result)
{
    Py_XDECREF(result);
    return result ? 0 : -1;
}

PyObject *px_text_of(const struct px_buf *text)
{
    return PyUnicode_DecodeUTF8(text->data ? text->data : "", (Py_ssize_t)text->size, "replace");
}

void px_raise_usage(const char *magic, const char *text)
{
    PyObject *type = px_import_name("IPython.core.error", "UsageError");
    if (type)
        PyErr_Format(type, "%s: %s", magic, text);
    Py_XDECREF(type);
}

/* ---- functions of the module ------------------------------------------------------ */

/* The renderer's text as a str; frees it. */
static PyObject *take_text(struct px_buf *text)
{
    PyObject *string = px_text_of(text);
    px_buf_fini(text);
    return string;
}

static PyObject *module_help(PyObject *module, PyObject *args)
{
    (void)module;
    int magic = PX_MAGIC_PX;
    if (!PyArg_ParseTuple(args, "|i:help", &magic))
        return NULL;
    if (magic < PX_MAGIC_PX || magic > PX_MAGIC_STACKS)
        return PyErr_Format(PyExc_ValueError, "there is no magic %d", magic);
    struct px_buf text = {0};
    px_line_help((enum px_magic)magic, &text);
    return take_text(&text);
}

static PyObject *module_error_key(PyObject *module, PyObject *text)
{
    (void)module;
    struct px_buf key = {0};
    Py_ssize_t size;
    const char *utf8 = PyUnicode_AsUTF8AndSize(text, &size);
    if (!utf8)
        return NULL;
    px_fold_error_key(&key, (struct px_span){utf8, (size_t)size});
    return take_text(&key);
}

static PyObject *module_bounded(PyObject *module, PyObject *args)
{
    (void)module;
    const char *utf8;
    Py_ssize_t size, most;
    if (!PyArg_ParseTuple(args, "s#n:bounded", &utf8, &size, &most))
        return NULL;
    if (most < 0)
        return PyErr_Format(PyExc_ValueError, "bounded takes a number of bytes");
    struct px_buf text = {0};
    px_render_bounded(&text, (struct px_span){utf8, (size_t)size}, (size_t)most);
    return take_text(&text);
}

static PyObject *module_ranges(PyObject *module, PyObject *list)
{
    (void)module;
    PyObject *fast = PySequence_Fast(list, "ranges takes a sequence of int");
    if (!fast)
        return NULL;
    const size_t count = (size_t)PySequence_Fast_GET_SIZE(fast);
    int *ids = PyMem_Calloc(count + 1, sizeof *ids);
    for (size_t i = 0; ids && i < count; i++)
        ids[i] = (int)PyLong_AsLong(PySequence_Fast_GET_ITEM(fast, (Py_ssize_t)i));
    struct px_buf text = {0};
    if (ids && !PyErr_Occurred())
        px_render_ranges(&text, ids, count);
    PyMem_Free(ids);
    Py_DECREF(fast);
    if (!ids)
        return PyErr_NoMemory();
    return PyErr_Occurred() ? NULL : take_text(&text);
}

static int read_stacks(PyObject *item, struct px_stacks *out)
{
    const char *text;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(item, "is#zd:stacks", &out->engine, &text, &size, &out->busy,
                          &out->busy_s))
        return -1;
    out->text = (struct px_span){text, (size_t)size};
    return 0;
}

static PyObject *module_stacks(PyObject *module, PyObject *list)
{
    (void)module;
    PyObject *fast = PySequence_Fast(list, "stacks takes a sequence of tuples");
    if (!fast)
        return NULL;
    const size_t count = (size_t)PySequence_Fast_GET_SIZE(fast);
    struct px_stacks *engines = PyMem_Calloc(count + 1, sizeof *engines);
    bool good = engines != NULL;
    for (size_t i = 0; good && i < count; i++)
        good = read_stacks(PySequence_Fast_GET_ITEM(fast, (Py_ssize_t)i), &engines[i]) == 0;
    struct px_buf text = {0};
    if (good)
        px_stacks_render(&text, engines, count);
    else if (!engines)
        PyErr_NoMemory();
    PyMem_Free(engines);
    Py_DECREF(fast);
    return good ? take_text(&text) : NULL;
}

static PyObject *module_why(PyObject *module, PyObject *reply)
{
    (void)module;
    struct px_buf text = {0};
    struct px_error err = {0};
    Py_ssize_t size;
    const char *utf8 = PyUnicode_AsUTF8AndSize(reply, &size);
    if (!utf8)
        return NULL;
    if (px_why_render(&text, (struct px_span){utf8, (size_t)size}, &err) < 0) {
        px_buf_fini(&text);
        return PyErr_Format(PyExc_ValueError, "%s", err.text);
    }
    return take_text(&text);
}

PyMethodDef px_module_methods[] = {
    {"help", module_help, METH_VARARGS, "help(magic=0): its options, as text."},
    {"error_key", module_error_key, METH_O,
     "error_key(traceback): what tells it from others, without addresses and cells' numbers."},
    {"bounded", module_bounded, METH_VARARGS,
     "bounded(text, most): its start and its end, if it is longer."},
    {"ranges", module_ranges, METH_O, "ranges(ids): as in \"0-2,7\"."},
    {"stacks", module_stacks, METH_O,
     "stacks([(engine, text, busy, seconds), ...]): all of them as one tree."},
    {"why", module_why, METH_O, "why(reply): a why_reply's JSON as sentences."},
    {NULL, NULL, 0, NULL},
};
