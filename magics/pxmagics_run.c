/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pxmagics_run: which engines, what is sent before and fetched after, and the run itself.
 *
 *     targets -> push -> view.execute -> (local) -> follow -> pull
 */
#include "pxmagics.h"

#include <math.h>

#define PROGRESS_AFTER_S 1.0
#define TARGETS_TOLD 10 /* --verbose: of more, the first and last four */

int px_said(int line, int config, int otherwise)
{
    return line >= 0 ? line : config >= 0 ? config : otherwise;
}

static double said_number(double line, double config, double otherwise)
{
    return !isnan(line) ? line : !isnan(config) ? config : otherwise;
}

/* ---- choosing engines ----------------------------------------------------------- */

static PyObject *current_view(struct px_magics *self)
{
    if (self->view)
        return Py_NewRef(self->view);
    return PyObject_CallMethod(self->face, "view", NULL);
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

/* A tag or host stays a name, as "all" does: who has it is looked up with each message. */
static PyObject *resolve_name(PyObject *client, const char *name, const char *magic)
{
    PyObject *ids = PyObject_CallMethod(client, "_ids_of", "s", name);
    if (!ids && PyErr_ExceptionMatches(PyExc_IndexError)) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        PyObject *text = value ? PyObject_Str(value) : NULL;
        const char *why = text ? PyUnicode_AsUTF8(text) : NULL;
        px_raise_usage(magic, why ? why : name);
        Py_XDECREF(text);
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
    }
    Py_XDECREF(ids);
    return ids ? PyUnicode_FromString(name) : NULL;
}

PyObject *px_resolve(PyObject *client, const struct px_targets *targets, const char *magic)
{
    if (targets->kind == PX_TARGETS_NAMED)
        return resolve_name(client, targets->name, magic);
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
        px_raise_usage(magic, err.text);
    else if (targets->kind == PX_TARGETS_ONE)
        out = PyLong_FromLong(chosen[0]);
    else if (targets->kind == PX_TARGETS_ALL)
        out = PyUnicode_FromString("all");
    else
        out = list_of(chosen, (size_t)found);
    PyMem_Free(chosen);
    PyMem_Free(ids);
    return out;
}

/* The engines for this run: those of the line, of %pxconfig, or the view's. */
static PyObject *choose_targets(struct px_magics *self, PyObject *view, const struct px_line *line,
                                const char *magic)
{
    PyObject *client = PyObject_GetAttrString(view, "client");
    PyObject *out = NULL;
    if (client && line->targets.kind != PX_TARGETS_DEFAULT) {
        out = px_resolve(client, &line->targets, magic);
    } else if (client && self->targets) {
        struct px_targets targets = {0};
        const char *text = PyUnicode_AsUTF8(self->targets);
        if (text && px_targets_parse(px_span_of(text), &targets, NULL) == 0)
            out = px_resolve(client, &targets, magic);
        px_targets_fini(&targets);
    } else if (client) {
        out = PyObject_GetAttrString(view, "targets");
    }
    Py_XDECREF(client);
    return out;
}

/* ---- before and after the code ------------------------------------------------------ */

/* "[0, 1, ...]": of many the first and the last. */
static PyObject *told_targets(PyObject *targets)
{
    const Py_ssize_t size = PyList_Check(targets) ? PyList_GET_SIZE(targets) : 0;
    if (size <= TARGETS_TOLD)
        return PyObject_Str(targets);
    PyObject *const *ids = ((PyListObject *)targets)->ob_item;
    return PyUnicode_FromFormat("[%S, %S, %S, %S, ..., %S, %S, %S, %S]", ids[0], ids[1], ids[2],
                                ids[3], ids[size - 4], ids[size - 3], ids[size - 2], ids[size - 1]);
}

static int announce(PyObject *screen, bool block, PyObject *targets)
{
    PyObject *told = told_targets(targets);
    PyObject *text = told ? PyUnicode_FromFormat("%s execution on engine(s): %U\n",
                                                 block ? "Parallel" : "Async parallel", told)
                          : NULL;
    const int status =
        text ? px_discard(PyObject_CallMethod(screen, "write", "sO", "stdout", text)) : -1;
    Py_XDECREF(text);
    Py_XDECREF(told);
    return status;
}

static PyObject *list_of_names(const struct px_names *names)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < names->count; i++) {
        const struct px_name *name = &names->list[i];
        PyObject *item = name->engine < 0 ? Py_BuildValue("(sO)", name->text, Py_None)
                                          : Py_BuildValue("(sl)", name->text, name->engine);
        if (!item || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

/* face.push, check or pull(view, targets, [(name, engine), ...]) */
static int carry(struct px_magics *self, const char *how, PyObject *view, PyObject *targets,
                 const struct px_names *names)
{
    if (names->count == 0)
        return 0;
    PyObject *list = list_of_names(names);
    const int status =
        list ? px_discard(PyObject_CallMethod(self->face, how, "OOO", view, targets, list)) : -1;
    Py_XDECREF(list);
    return status;
}

/* ---- the run ----------------------------------------------------------------------------- */

static PyObject *start(struct px_magics *self, PyObject *view, PyObject *targets, PyObject *code)
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

int px_keep_result(struct px_magics *self, const char *name, PyObject *result)
{
    if (!*name)
        return 0;
    PyObject *scope = PyObject_GetAttrString(self->shell, "user_ns");
    const int status = scope ? PyMapping_SetItemString(scope, name, result) : -1;
    Py_XDECREF(scope);
    return status;
}

/* Blocking: follows to the end. Otherwise, if output is wanted as it comes, lets a thread do so. */
static PyObject *finish(struct px_magics *self, const struct px_line *line, PyObject *screen,
                        PyObject *result, bool block, bool alone)
{
    const struct px_config *config = &self->config;
    const char *signal = *line->signal ? line->signal : *config->signal ? config->signal : "SIGINT";
    const int streamed = px_said(line->stream, line->group >= 0 ? 0 : config->stream, 1);
    const struct px_follow options = {
        .face = self->face,
        .screen = screen,
        .result = result,
        .stream = streamed,
        .fold = px_said(line->fold, line->group >= 0 ? 0 : config->fold, 1),
        .alone = alone,
        .group = line->group,
        .progress_after =
            said_number(line->progress_after, config->progress_after, PROGRESS_AFTER_S),
        .timeout = said_number(line->timeout, config->timeout, -1),
        .signal = signal,
    };
    const bool shown = block || px_said(line->stream, config->stream, 0) == 1;
    if (shown && px_discard(PyObject_CallMethod(self->face, "mind", "OO", result, screen)) < 0)
        return NULL;
    if (block)
        return px_follow(&options);
    if (px_discard(PyObject_CallMethod(self->face, "keep", "O", result)) < 0)
        return NULL;
    if (shown && px_discard(PyObject_CallMethod(self->face, "follow_later", "OO", result,
                                                options.fold ? Py_True : Py_False)) < 0)
        return NULL;
    return Py_NewRef(result);
}

static PyObject *run_on(struct px_magics *self, PyObject *view, PyObject *targets,
                        const struct px_line *line, PyObject *code, bool block, bool cell)
{
    const bool verbose = px_said(line->verbose, self->config.verbose, 0);
    const bool local = px_said(line->local, self->config.local, 0);
    PyObject *screen = PyObject_CallMethod(self->face, "screen", NULL);
    PyObject *result = NULL, *value = NULL;
    if (screen && (!verbose || announce(screen, block, targets) == 0) &&
        carry(self, "check", view, targets, &line->pull) == 0 &&
        carry(self, "push", view, targets, &line->push) == 0)
        result = start(self, view, targets, code);
    int status = result ? px_keep_result(self, line->out, result) : -1;
    if (status == 0 && local)
        status = px_discard(PyObject_CallMethod(self->face, "run_here", "(O)", code));
    if (status == 0)
        value = finish(self, line, screen, result, block, cell && !verbose && !local);
    if (value && carry(self, "pull", view, targets, &line->pull) < 0)
        Py_CLEAR(value);
    Py_XDECREF(result);
    Py_XDECREF(screen);
    return value;
}

static int view_blocks(PyObject *view)
{
    PyObject *block = PyObject_GetAttrString(view, "block");
    const int yes = block ? PyObject_IsTrue(block) : -1;
    Py_XDECREF(block);
    return yes;
}

PyObject *px_run(struct px_magics *self, const struct px_line *line, PyObject *code, bool cell,
                 const char *magic)
{
    PyObject *view = current_view(self);
    if (!view)
        return NULL;
    const int said = px_said(line->block, self->config.block, -1);
    const int block = said >= 0 ? said : view_blocks(view);
    PyObject *value = NULL, *targets = NULL;
    if (block == 0 && line->pull.count)
        px_raise_usage(magic, "--pull needs the cell's end, for which --noblock does not wait");
    else if (block == 0 && line->timeout > 0)
        px_raise_usage(magic, "--timeout is for a cell that is waited for, and --noblock does not");
    else if (block >= 0)
        targets = choose_targets(self, view, line, magic);
    if (targets)
        value = run_on(self, view, targets, line, code, block, cell);
    Py_XDECREF(targets);
    Py_DECREF(view);
    return value;
}
