/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pxmagics: phalanx._magics, the type behind %px, %%px, %pxresult and %pxconfig.
 *
 *     parse the line -> choose engines -> view.execute -> follow -> raise what was raised
 *
 * A Magics object belongs to one view, or, without one, asks the default cluster for a view at
 * each run. Names and documentation are given to IPython by phalanx/magics.py.
 */
#include "pxmagics.h"

#include <string.h>

struct magics {
    PyObject_HEAD PyObject *shell;
    PyObject *cluster;          /* local.DefaultCluster: asked for a view when there is none */
    PyObject *view;             /* the activated view, or NULL */
    PyObject *last;             /* AsyncResult of the last run, or NULL */
    PyObject *targets;          /* %pxconfig --targets: its text, or NULL */
    int block, stream, verbose; /* %pxconfig; block -1: as the view says */
};

/* Raises IPython's UsageError, which is shown as one line. */
static void raise_usage(const char *magic, const char *text)
{
    PyObject *type = px_import_name("IPython.core.error", "UsageError");
    if (type)
        PyErr_Format(type, "%s: %s", magic, text);
    Py_XDECREF(type);
}

/* ---- choosing engines
 * -------------------------------------------------------------------------------- */

static PyObject *current_view(struct magics *self)
{
    if (self->view)
        return Py_NewRef(self->view);
    return PyObject_CallMethod(self->cluster, "view", NULL);
}

/* Engine ids of a list, as an array for PyMem_Free. NULL with an exception. */
static int *ids_of(PyObject *list, size_t *count)
{
    *count = (size_t)PyList_GET_SIZE(list);
    int *ids = PyMem_Calloc(*count + 1, sizeof *ids);
    for (size_t i = 0; ids && i < *count; i++)
        ids[i] = (int)PyLong_AsLong(PyList_GET_ITEM(list, (Py_ssize_t)i));
    return ids ? ids : (int *)PyErr_NoMemory();
}

static PyObject *list_of(const int *ids, size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++)
        PyList_SET_ITEM(list, (Py_ssize_t)i, PyLong_FromLong(ids[i]));
    return list;
}

/* What `targets` mean among the engines of `client`: an id, or a list of ids. */
static PyObject *resolve(PyObject *client, const struct px_targets *targets, const char *magic)
{
    PyObject *known = PyObject_GetAttrString(client, "ids");
    size_t count = 0;
    int *ids = known && PyList_Check(known) ? ids_of(known, &count) : NULL;
    Py_XDECREF(known);
    if (!ids)
        return NULL;
    const size_t most = targets->kind == PX_TARGETS_LIST ? targets->count : count;
    int *chosen = PyMem_Calloc(most + 1, sizeof *chosen);
    PyObject *out = NULL;
    struct px_error err = {0};
    const long found = px_targets_resolve(targets, ids, count, chosen, most, &err);
    if (found < 0)
        raise_usage(magic, err.text);
    else if (targets->kind == PX_TARGETS_ONE)
        out = PyLong_FromLong(chosen[0]);
    else
        out = list_of(chosen, (size_t)found);
    PyMem_Free(chosen);
    PyMem_Free(ids);
    return out;
}

/* The engines for this run: those of the line, of %pxconfig, or the view's. */
static PyObject *choose_targets(struct magics *self, PyObject *view, const struct px_line *line,
                                const char *magic)
{
    PyObject *client = PyObject_GetAttrString(view, "client");
    PyObject *out = NULL;
    if (client && line->targets.kind != PX_TARGETS_DEFAULT) {
        out = resolve(client, &line->targets, magic);
    } else if (client && self->targets) {
        struct px_targets targets = {0};
        const char *text = PyUnicode_AsUTF8(self->targets);
        if (text && px_targets_parse(px_span_of(text), &targets, NULL) == 0)
            out = resolve(client, &targets, magic);
        px_targets_fini(&targets);
    } else if (client) {
        out = PyObject_GetAttrString(view, "targets");
    }
    Py_XDECREF(client);
    return out;
}

static int view_blocks(PyObject *view)
{
    PyObject *block = PyObject_GetAttrString(view, "block");
    const int yes = block ? PyObject_IsTrue(block) : -1;
    Py_XDECREF(block);
    return yes;
}

/* ---- running
 * ------------------------------------------------------------------------------------------- */

static int announce(bool block, PyObject *targets)
{
    PyObject *text = PyUnicode_FromFormat("%s execution on engine(s): %S\n",
                                          block ? "Parallel" : "Async parallel", targets);
    Py_ssize_t size = 0;
    const char *utf8 = text ? PyUnicode_AsUTF8AndSize(text, &size) : NULL;
    const int status = utf8 ? px_write_text("stdout", utf8, (size_t)size) : -1;
    Py_XDECREF(text);
    return status;
}

static PyObject *start(struct magics *self, PyObject *view, PyObject *targets, PyObject *code)
{
    PyObject *execute = PyObject_GetAttrString(view, "execute");
    PyObject *args = PyTuple_Pack(1, code);
    PyObject *kwargs =
        Py_BuildValue("{sOsOsO}", "silent", Py_False, "block", Py_False, "targets", targets);
    PyObject *result = execute && args && kwargs ? PyObject_Call(execute, args, kwargs) : NULL;
    Py_XDECREF(kwargs);
    Py_XDECREF(args);
    Py_XDECREF(execute);
    if (result) {
        PyObject *name = PyUnicode_FromString("%px");
        if (name)
            PyObject_SetAttrString(result, "_fname", name);
        Py_XDECREF(name);
        Py_XSETREF(self->last, Py_NewRef(result));
    }
    return result;
}

static int keep_result(struct magics *self, const char *name, PyObject *result)
{
    if (!*name)
        return 0;
    PyObject *scope = PyObject_GetAttrString(self->shell, "user_ns");
    const int status = scope ? PyMapping_SetItemString(scope, name, result) : -1;
    Py_XDECREF(scope);
    return status;
}

static PyObject *run_on_engines(struct magics *self, const struct px_line *line, PyObject *code,
                                const char *magic)
{
    PyObject *view = current_view(self);
    if (!view)
        return NULL;
    const int said = line->block >= 0 ? line->block : self->block;
    const int block = said >= 0 ? said : view_blocks(view);
    const int verbose = line->verbose >= 0 ? line->verbose : self->verbose;
    PyObject *targets = block >= 0 ? choose_targets(self, view, line, magic) : NULL;
    PyObject *result = NULL, *value = NULL;
    if (targets && (verbose <= 0 || announce(block, targets) == 0))
        result = start(self, view, targets, code);
    int status = result ? keep_result(self, line->out, result) : -1;
    if (status == 0 && line->local)
        status = px_discard(PyObject_CallMethod(self->shell, "run_cell", "(O)", code));
    if (status == 0)
        value = block ? px_follow(self->shell, result, line,
                                  line->stream < 0 ? self->stream : line->stream)
                      : Py_NewRef(result);
    Py_XDECREF(result);
    Py_XDECREF(targets);
    Py_DECREF(view);
    return value;
}

/* ---- the magics
 * -------------------------------------------------------------------------------------------- */

PyDoc_STRVAR(px_doc,
             "Runs a line of Python on the engines of a cluster, and shows what they say.\n\n"
             "    %px import numpy\n"
             "    %px --targets 0:2 numpy.random.rand(2)\n\n"
             "See %%px? for the options.");

static int parse_line(PyObject *text, bool cell, struct px_line *out, struct px_span *span)
{
    struct px_error err = {0};
    Py_ssize_t size;
    const char *line = PyUnicode_AsUTF8AndSize(text, &size);
    *out = (struct px_line){0};
    if (!line)
        return -1;
    *span = (struct px_span){line, (size_t)size};
    if (px_line_parse(*span, cell, out, &err) == 0)
        return 0;
    raise_usage(cell ? "%%px" : "%px", err.text);
    return -1;
}

static PyObject *magic_px(PyObject *object, PyObject *text)
{
    struct px_line line;
    struct px_span span;
    PyObject *value = NULL;
    if (parse_line(text, false, &line, &span) == 0) {
        PyObject *code = PyUnicode_DecodeUTF8(span.data + line.code,
                                              (Py_ssize_t)(span.size - line.code), "strict");
        if (code && line.code == span.size)
            raise_usage("%px", "there is no code on the line");
        else if (code)
            value = run_on_engines((struct magics *)object, &line, code, "%px");
        Py_XDECREF(code);
    }
    px_line_fini(&line);
    return value;
}

static PyObject *magic_cell_px(PyObject *object, PyObject *args)
{
    PyObject *text, *code;
    if (!PyArg_ParseTuple(args, "UU:px", &text, &code))
        return NULL;
    struct px_line line;
    struct px_span span;
    PyObject *value = NULL;
    if (parse_line(text, true, &line, &span) == 0)
        value = run_on_engines((struct magics *)object, &line, code, "%%px");
    px_line_fini(&line);
    return value;
}

PyDoc_STRVAR(pxresult_doc, "Waits for the last %px, and shows its output and results.\n\n"
                           "    %pxresult --group-outputs=engine");

static PyObject *magic_pxresult(PyObject *object, PyObject *text)
{
    struct magics *self = (struct magics *)object;
    struct px_line line;
    struct px_span span;
    PyObject *value = NULL;
    if (parse_line(text, true, &line, &span) == 0) {
        if (!self->last)
            raise_usage("%pxresult", "there has been no %px yet");
        else if (px_discard(PyObject_CallMethod(self->last, "display_outputs", "s",
                                                px_group_names[line.group])) == 0)
            value = PyObject_CallMethod(self->last, "get", NULL);
    }
    px_line_fini(&line);
    Py_XDECREF(value);
    return value ? Py_NewRef(Py_None) : NULL;
}

PyDoc_STRVAR(pxconfig_doc, "Sets what %px and %%px do when their line does not say.\n\n"
                           "    %pxconfig --targets 0:2 --noblock --verbose");

/* The text of --targets in a line that has been parsed: kept, because what it means changes as
 * engines come and go. */
static PyObject *targets_text(const struct px_targets *targets)
{
    struct px_buf out = {0};
    if (targets->kind == PX_TARGETS_ALL)
        px_buf_text(&out, "all");
    else if (targets->kind == PX_TARGETS_ONE)
        px_buf_printf(&out, "%ld", targets->first);
    for (size_t i = 0; i < targets->count; i++)
        px_buf_printf(&out, "%ld,", targets->list[i]);
    if (targets->kind == PX_TARGETS_SLICE) {
        if (targets->has_first)
            px_buf_printf(&out, "%ld", targets->first);
        px_buf_text(&out, ":");
        if (targets->has_end)
            px_buf_printf(&out, "%ld", targets->end);
        px_buf_printf(&out, ":%ld", targets->step);
    }
    PyObject *text = PyUnicode_FromStringAndSize(out.data ? out.data : "", (Py_ssize_t)out.size);
    px_buf_fini(&out);
    return text;
}

static PyObject *magic_pxconfig(PyObject *object, PyObject *text)
{
    struct magics *self = (struct magics *)object;
    struct px_line line;
    struct px_span span;
    PyObject *targets = NULL;
    const bool parsed = parse_line(text, true, &line, &span) == 0;
    if (parsed && line.targets.kind != PX_TARGETS_DEFAULT)
        targets = targets_text(&line.targets);
    if (parsed && !PyErr_Occurred()) {
        self->block = line.block >= 0 ? line.block : self->block;
        self->stream = line.stream >= 0 ? line.stream : self->stream;
        self->verbose = line.verbose >= 0 ? line.verbose : self->verbose;
        if (targets)
            Py_XSETREF(self->targets, Py_NewRef(targets));
    }
    Py_XDECREF(targets);
    px_line_fini(&line);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* ---- the type
 * ------------------------------------------------------------------------------------------------
 */

static int magics_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"shell", "cluster", "view", NULL};
    struct magics *self = (struct magics *)object;
    PyObject *shell, *cluster, *view = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O:Magics", names, &shell, &cluster, &view))
        return -1;
    Py_XSETREF(self->shell, Py_NewRef(shell));
    Py_XSETREF(self->cluster, Py_NewRef(cluster));
    Py_XSETREF(self->view, view == Py_None ? NULL : Py_NewRef(view));
    self->block = -1;
    self->stream = 1;
    return 0;
}

static int magics_traverse(PyObject *object, visitproc visit, void *arg)
{
    struct magics *self = (struct magics *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->shell);
    Py_VISIT(self->cluster);
    Py_VISIT(self->view);
    Py_VISIT(self->last);
    return 0;
}

static int magics_clear(PyObject *object)
{
    struct magics *self = (struct magics *)object;
    Py_CLEAR(self->shell);
    Py_CLEAR(self->cluster);
    Py_CLEAR(self->view);
    Py_CLEAR(self->last);
    Py_CLEAR(self->targets);
    return 0;
}

static void magics_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    magics_clear(object);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyMethodDef magics_methods[] = {
    {"px", magic_px, METH_O, px_doc},
    {"cell_px", magic_cell_px, METH_VARARGS, "Runs a cell; help() has the options."},
    {"pxresult", magic_pxresult, METH_O, pxresult_doc},
    {"pxconfig", magic_pxconfig, METH_O, pxconfig_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot magics_slots[] = {
    {Py_tp_init, magics_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, magics_dealloc},
    {Py_tp_traverse, magics_traverse},
    {Py_tp_clear, magics_clear},
    {Py_tp_methods, magics_methods},
    {Py_tp_doc,
     "Magics(shell, cluster, view=None): the %px family. `cluster` is asked for a view when there "
     "is none."},
    {0, NULL},
};

static PyType_Spec magics_spec = {
    .name = "phalanx._magics.Magics",
    .basicsize = sizeof(struct magics),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = magics_slots,
};

struct module_state {
    PyTypeObject *magics_type;
};

static PyObject *module_help(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    struct px_buf out = {0};
    px_line_help(&out);
    PyObject *text = PyUnicode_FromStringAndSize(out.data, (Py_ssize_t)out.size);
    px_buf_fini(&out);
    return text;
}

static PyMethodDef module_methods[] = {
    {"help", module_help, METH_NOARGS, "The options, as text."},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    state->magics_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &magics_spec, NULL);
    return state->magics_type ? PyModule_AddType(module, state->magics_type) : -1;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct module_state *state = PyModule_GetState(module);
    Py_VISIT(state->magics_type);
    return 0;
}

static int module_clear(PyObject *module)
{
    struct module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->magics_type);
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,         .m_name = "_magics",
    .m_doc = "The %px family.",    .m_size = sizeof(struct module_state),
    .m_methods = module_methods,   .m_slots = module_slots,
    .m_traverse = module_traverse, .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__magics(void);
PyMODINIT_FUNC PyInit__magics(void)
{
    return PyModuleDef_Init(&module_def);
}
