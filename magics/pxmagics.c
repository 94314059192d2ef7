/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pxmagics: phalanx._magics, the type behind %px, %%px, %pxresult, %pxconfig and %pxstacks.
 *
 * A Magics object belongs to one view, or, without one, asks its face for a view at each run. The
 * face (magics.Face) is what needs Python more than speed: the shell, clusters, pickling. Names
 * and documentation are given to IPython by phalanx/magics.py.
 */
#include "pxmagics.h"

#include <math.h>
#include <string.h>

/* ---- lines ------------------------------------------------------------------------ */

static const char *const magic_names[] = {"%px", "%%px", "%pxconfig", "%pxresult", "%pxstacks"};

/* What is wrong, then how it would be right. */
static void raise_with_help(enum px_magic magic, const char *what)
{
    struct px_buf text = {0};
    px_buf_printf(&text, "%s\n\n", what);
    px_line_help(magic, &text);
    px_raise_usage(magic_names[magic], text.data);
    px_buf_fini(&text);
}

static void show_help(struct px_magics *self, enum px_magic magic)
{
    struct px_buf text = {0};
    px_line_help(magic, &text);
    PyObject *screen = PyObject_CallMethod(self->face, "screen", NULL);
    if (screen)
        px_discard(PyObject_CallMethod(screen, "write", "ss", "stdout", text.data));
    Py_XDECREF(screen);
    px_buf_fini(&text);
}

/* 0: there is something to do, else it is told what not. end_line in any case. */
static int parse_line(struct px_magics *self, PyObject *text, enum px_magic magic,
                      struct px_line *out, struct px_span *span)
{
    struct px_error err = {0};
    Py_ssize_t size;
    const char *line = PyUnicode_AsUTF8AndSize(text, &size);
    *out = (struct px_line){0};
    if (!line)
        return -1;
    *span = (struct px_span){line, (size_t)size};
    if (px_line_parse(*span, magic, out, &err) < 0)
        raise_with_help(magic, err.text);
    else if (!out->help)
        return 0;
    else
        show_help(self, magic);
    return -1;
}

/* What a magic returns: NULL with an exception. */
static PyObject *end_line(struct px_line *line, PyObject *value)
{
    px_line_fini(line);
    return value || PyErr_Occurred() ? value : Py_NewRef(Py_None);
}

/* ---- %px and %%px -------------------------------------------------------------------- */

static PyObject *magic_px(PyObject *object, PyObject *args)
{
    struct px_magics *self = (struct px_magics *)object;
    PyObject *text;
    int alone = false;
    if (!PyArg_ParseTuple(args, "U|p:px", &text, &alone))
        return NULL;
    struct px_line line;
    struct px_span span;
    PyObject *value = NULL;
    if (parse_line(self, text, PX_MAGIC_PX, &line, &span) == 0) {
        PyObject *code = PyUnicode_DecodeUTF8(span.data + line.code,
                                              (Py_ssize_t)(span.size - line.code), "strict");
        if (code && line.code == span.size)
            raise_with_help(PX_MAGIC_PX, "there is no code on the line");
        else if (code)
            value = px_run(self, &line, code, alone, "%px");
        Py_XDECREF(code);
    }
    return end_line(&line, value);
}

static PyObject *magic_cell_px(PyObject *object, PyObject *args)
{
    struct px_magics *self = (struct px_magics *)object;
    PyObject *text, *code;
    int alone = false;
    if (!PyArg_ParseTuple(args, "UU|p:px", &text, &code, &alone))
        return NULL;
    struct px_line line;
    struct px_span span;
    PyObject *value = NULL;
    if (parse_line(self, text, PX_MAGIC_CELL, &line, &span) == 0)
        value = px_run(self, &line, code, alone, "%%px");
    return end_line(&line, value);
}

/* ---- %pxresult ------------------------------------------------------------------------- */

static PyObject *show_last(struct px_magics *self, const struct px_line *line, bool alone)
{
    PyObject *screen = PyObject_CallMethod(self->face, "screen", NULL);
    const struct px_follow options = {
        .face = self->face,
        .screen = screen,
        .result = self->last,
        .stream = line->group < 0,
        .fold = px_said(line->fold, line->group >= 0 ? 0 : self->config.fold, 1),
        .replay = true,
        .alone = alone,
        .group = line->group,
        .progress_after = isnan(self->config.progress_after) ? 1 : self->config.progress_after,
        .timeout = -1,
        .signal = *self->config.signal ? self->config.signal : "SIGINT",
    };
    PyObject *value = screen ? px_follow(&options) : NULL;
    Py_XDECREF(screen);
    return value;
}

/* With a name: kept under it, and nothing else, as ipyparallel does. */
static PyObject *recall(struct px_magics *self, const struct px_line *line, bool alone)
{
    if (!self->last) {
        px_raise_usage("%pxresult", "there has been no %px yet");
        return NULL;
    }
    if (!*line->out)
        return show_last(self, line, alone);
    return px_keep_result(self, line->out, self->last) == 0 ? Py_NewRef(Py_None) : NULL;
}

static PyObject *magic_pxresult(PyObject *object, PyObject *args)
{
    struct px_magics *self = (struct px_magics *)object;
    PyObject *text;
    int alone = false;
    if (!PyArg_ParseTuple(args, "U|p:pxresult", &text, &alone))
        return NULL;
    struct px_line line;
    struct px_span span;
    PyObject *value = NULL;
    if (parse_line(self, text, PX_MAGIC_RESULT, &line, &span) == 0)
        value = recall(self, &line, alone);
    return end_line(&line, value);
}

/* ---- %pxconfig --------------------------------------------------------------------------- */

/* The text of --targets in a line that has been parsed: kept, because what it means changes as
 * engines come and go. */
static PyObject *targets_text(const struct px_targets *targets)
{
    struct px_buf out = {0};
    if (targets->kind == PX_TARGETS_ALL)
        px_buf_text(&out, "all");
    else if (targets->kind == PX_TARGETS_ONE)
        px_buf_printf(&out, "%ld", targets->first);
    else if (targets->kind == PX_TARGETS_NAMED)
        px_buf_text(&out, targets->name);
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
    PyObject *text = px_text_of(&out);
    px_buf_fini(&out);
    return text;
}

/* An activated view is set itself, as ipyparallel does. */
static int configure_view(struct px_magics *self, const struct px_line *line)
{
    if (line->targets.kind != PX_TARGETS_DEFAULT) {
        PyObject *client = PyObject_GetAttrString(self->view, "client");
        PyObject *targets = client ? px_resolve(client, &line->targets, "%pxconfig") : NULL;
        const int status = targets ? PyObject_SetAttrString(self->view, "targets", targets) : -1;
        Py_XDECREF(targets);
        Py_XDECREF(client);
        if (status < 0)
            return -1;
    }
    if (line->block < 0)
        return 0;
    return PyObject_SetAttrString(self->view, "block", line->block ? Py_True : Py_False);
}

static int configure_ourselves(struct px_magics *self, const struct px_line *line)
{
    if (line->targets.kind != PX_TARGETS_DEFAULT) {
        PyObject *text = targets_text(&line->targets);
        if (!text)
            return -1;
        Py_XSETREF(self->targets, text);
    }
    self->config.block = line->block >= 0 ? line->block : self->config.block;
    return 0;
}

static void configure(struct px_config *config, const struct px_line *line)
{
    config->stream = line->stream >= 0 ? line->stream : config->stream;
    config->verbose = line->verbose >= 0 ? line->verbose : config->verbose;
    config->fold = line->fold >= 0 ? line->fold : config->fold;
    config->local = line->local >= 0 ? line->local : config->local;
    if (!isnan(line->progress_after))
        config->progress_after = line->progress_after;
    if (!isnan(line->timeout))
        config->timeout = line->timeout;
    if (*line->signal)
        memcpy(config->signal, line->signal, sizeof config->signal);
}

static PyObject *magic_pxconfig(PyObject *object, PyObject *text)
{
    struct px_magics *self = (struct px_magics *)object;
    struct px_line line;
    struct px_span span;
    int status = parse_line(self, text, PX_MAGIC_CONFIG, &line, &span);
    if (status == 0)
        status = self->view ? configure_view(self, &line) : configure_ourselves(self, &line);
    if (status == 0)
        configure(&self->config, &line);
    return end_line(&line, NULL);
}

/* ---- %pxstacks and the rest ----------------------------------------------------------------- */

/* Those of the line, else the view's own. */
static PyObject *stacks_targets(struct px_magics *self, PyObject *client,
                                const struct px_line *line)
{
    if (self->view && line->targets.kind == PX_TARGETS_DEFAULT)
        return PyObject_GetAttrString(self->view, "targets");
    return px_resolve(client, &line->targets, "%pxstacks");
}

static PyObject *magic_pxstacks(PyObject *object, PyObject *text)
{
    struct px_magics *self = (struct px_magics *)object;
    struct px_line line;
    struct px_span span;
    PyObject *value = NULL;
    if (parse_line(self, text, PX_MAGIC_STACKS, &line, &span) == 0) {
        PyObject *view =
            self->view ? Py_NewRef(self->view) : PyObject_CallMethod(self->face, "view", NULL);
        PyObject *client = view ? PyObject_GetAttrString(view, "client") : NULL;
        PyObject *targets = client ? stacks_targets(self, client, &line) : NULL;
        PyObject *seconds =
            targets ? line.timeout > 0 ? PyFloat_FromDouble(line.timeout) : Py_NewRef(Py_None)
                    : NULL;
        if (seconds)
            value = PyObject_CallMethod(self->face, "stacks", "OOO", client, targets, seconds);
        Py_XDECREF(seconds);
        Py_XDECREF(targets);
        Py_XDECREF(client);
        Py_XDECREF(view);
    }
    return end_line(&line, value);
}

/* follow(screen, result, fold): shows a result's output on a screen as it comes; for a thread. */
static PyObject *magics_follow(PyObject *object, PyObject *args)
{
    struct px_magics *self = (struct px_magics *)object;
    struct px_follow options = {.face = self->face,
                                .stream = true,
                                .replay = true,
                                .background = true,
                                .group = -1,
                                .progress_after = -1,
                                .timeout = -1,
                                .signal = "0"};
    int fold;
    if (!PyArg_ParseTuple(args, "OOp:follow", &options.screen, &options.result, &fold))
        return NULL;
    options.fold = fold;
    return px_follow(&options);
}

static PyObject *magics_last(PyObject *object, void *unused)
{
    (void)unused;
    PyObject *last = ((struct px_magics *)object)->last;
    return Py_NewRef(last ? last : Py_None);
}

/* ---- the type -------------------------------------------------------------------------------- */

static int magics_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"shell", "face", "view", NULL};
    struct px_magics *self = (struct px_magics *)object;
    PyObject *shell, *face, *view = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O:Magics", names, &shell, &face, &view))
        return -1;
    Py_XSETREF(self->shell, Py_NewRef(shell));
    Py_XSETREF(self->face, Py_NewRef(face));
    Py_XSETREF(self->view, view == Py_None ? NULL : Py_NewRef(view));
    self->config = (struct px_config){.block = -1,
                                      .stream = -1,
                                      .verbose = -1,
                                      .fold = -1,
                                      .local = -1,
                                      .progress_after = NAN,
                                      .timeout = NAN};
    return 0;
}

static int magics_traverse(PyObject *object, visitproc visit, void *arg)
{
    struct px_magics *self = (struct px_magics *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->shell);
    Py_VISIT(self->face);
    Py_VISIT(self->view);
    Py_VISIT(self->last);
    return 0;
}

static int magics_clear(PyObject *object)
{
    struct px_magics *self = (struct px_magics *)object;
    Py_CLEAR(self->shell);
    Py_CLEAR(self->face);
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
    {"px", magic_px, METH_VARARGS,
     "px(line, alone=False): runs a line; help() has the options. alone: it is the whole cell."},
    {"cell_px", magic_cell_px, METH_VARARGS,
     "cell_px(line, cell, alone=False): runs a cell; see px()."},
    {"pxresult", magic_pxresult, METH_VARARGS,
     "pxresult(line, alone=False): shows the last run's output again."},
    {"pxconfig", magic_pxconfig, METH_O, "pxconfig(line): sets what lines do not say."},
    {"pxstacks", magic_pxstacks, METH_O, "pxstacks(line): shows the engines' stacks."},
    {"follow", magics_follow, METH_VARARGS,
     "follow(screen, result, fold): shows a result's output as it comes. Waits."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef magics_properties[] = {
    {"last", magics_last, NULL, "The AsyncResult of the last run, or None.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot magics_slots[] = {
    {Py_tp_init, magics_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, magics_dealloc},
    {Py_tp_traverse, magics_traverse},
    {Py_tp_clear, magics_clear},
    {Py_tp_methods, magics_methods},
    {Py_tp_getset, magics_properties},
    {Py_tp_doc, "Magics(shell, face, view=None): the %px family. `face` is a magics.Face, which is "
                "asked for a view when there is none."},
    {0, NULL},
};

static PyType_Spec magics_spec = {
    .name = "phalanx._magics.Magics",
    .basicsize = sizeof(struct px_magics),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = magics_slots,
};

/* ---- the module ---------------------------------------------------------------------------------
 */

struct module_state {
    PyTypeObject *magics_type;
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
    PyModuleDef_HEAD_INIT,          .m_name = "_magics",
    .m_doc = "The %px family.",     .m_size = sizeof(struct module_state),
    .m_methods = px_module_methods, .m_slots = module_slots,
    .m_traverse = module_traverse,  .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__magics(void);
PyMODINIT_FUNC PyInit__magics(void)
{
    return PyModuleDef_Init(&module_def);
}
