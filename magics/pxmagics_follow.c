/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pxmagics_follow: waits for a run on engines and shows what comes, as it comes.
 *
 * The wait is libphalanx's, without the GIL. A notebook gets one display for each stream of each
 * engine, updated at most every FLUSH_MS; a terminal gets labelled lines. Figures and other
 * displays are shown at once under their label; values at the end, in the order of the
 * engines. Every event is also filed in the AsyncResult, so that --out and %pxresult see all.
 *
 * Ctrl-C is a ladder: the first sends SIGINT to the engines that are still at it, and waits on; the
 * second gives up, and says which have not come back. Meanwhile Python's handler only counts: a
 * KeyboardInterrupt inside the code that shows things would lose what it was showing.
 */
#include "pxmagics.h"

#include "client/phalanx.h"

#include <signal.h>
#include <string.h>
#include <strings.h>

#define FLUSH_MS 100
#define BATCH 64      /* events between two looks at signals and the clock */
#define SLICE_MS 1000 /* a signal handled just before a wait does not end it: look again */

/* Fields of phalanx._phalanx.Event. */
enum event_field { EV_TYPE, EV_TASK, EV_ENGINE, EV_FAILED, EV_LOST, EV_NAME, EV_TEXT, EV_CONTENT };

/* ---- small helpers ---------------------------------------------------------------- */

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

int px_write_text(const char *stream, const char *text, size_t size)
{
    PyObject *file = PySys_GetObject(stream); /* borrowed */
    PyObject *string = PyUnicode_DecodeUTF8(text, (Py_ssize_t)size, "replace");
    int status = -1;
    if (string && file) {
        status = px_discard(PyObject_CallMethod(file, "write", "(O)", string));
        if (status == 0)
            status = px_discard(PyObject_CallMethod(file, "flush", NULL));
    }
    Py_XDECREF(string);
    return status;
}

static bool is_notebook(PyObject *shell)
{
    PyObject *kernel = PyObject_GetAttrString(shell, "kernel");
    const bool yes = kernel && kernel != Py_None;
    PyErr_Clear();
    Py_XDECREF(kernel);
    return yes;
}

static bool has_color(PyObject *shell)
{
    PyObject *colors = PyObject_GetAttrString(shell, "colors");
    const char *text = colors && PyUnicode_Check(colors) ? PyUnicode_AsUTF8(colors) : NULL;
    const bool yes = text && strcasecmp(text, "nocolor") != 0;
    PyErr_Clear();
    Py_XDECREF(colors);
    return yes;
}

/* ---- one run -------------------------------------------------------------------------- */

struct speaker {
    struct px_transcript streams[2]; /* stdout, stderr */
    bool published[2];
};

struct run {
    PyObject *shell;
    PyObject *result, *raw; /* the AsyncResult and its _phalanx.Result */
    phalanx_result *c_result;
    size_t count;
    struct speaker *speakers; /* by task */
    struct px_terminal terminal;
    bool notebook, color, stream, signal;
    int *signals; /* how often Ctrl-C was hit; NULL: not counted, an exception instead */
    int handled;  /* how many of them have been acted upon */
    bool dirty;   /* some transcript has changed */
    int64_t flushed_ms;
};

static const char *const stream_names[] = {"stdout", "stderr"};

static int publish(struct run *run, PyObject *data, PyObject *metadata, PyObject *transient,
                   bool update)
{
    PyObject *publisher = PyObject_GetAttrString(run->shell, "display_pub");
    PyObject *method = publisher ? PyObject_GetAttrString(publisher, "publish") : NULL;
    PyObject *args = PyTuple_New(0);
    PyObject *kwargs = Py_BuildValue(
        "{sOsOsOsO}", "data", data, "metadata", metadata ? metadata : Py_None, "transient",
        transient ? transient : Py_None, "update", update ? Py_True : Py_False);
    PyObject *done = method && args && kwargs ? PyObject_Call(method, args, kwargs) : NULL;
    Py_XDECREF(kwargs);
    Py_XDECREF(args);
    Py_XDECREF(method);
    Py_XDECREF(publisher);
    return px_discard(done);
}

static int publish_text(struct run *run, const struct px_buf *text, PyObject *transient,
                        bool update)
{
    PyObject *string = PyUnicode_DecodeUTF8(text->data, (Py_ssize_t)text->size, "replace");
    PyObject *data = string ? Py_BuildValue("{sN}", "text/plain", string) : NULL;
    const int status = data ? publish(run, data, NULL, transient, update) : -1;
    Py_XDECREF(data);
    return status;
}

static int engine_of(const struct run *run, size_t task)
{
    return phalanx_task_engine(run->c_result, task);
}

/* ---- streams ------------------------------------------------------------------------------ */

static int flush_stream(struct run *run, size_t task, int which)
{
    struct speaker *speaker = &run->speakers[task];
    if (!speaker->streams[which].changed)
        return 0;
    struct px_buf text = {0};
    px_render_label(&text, stream_names[which], engine_of(run, task));
    px_transcript_show(&speaker->streams[which], &text);
    PyObject *transient = Py_BuildValue(
        "{sN}", "display_id",
        PyUnicode_FromFormat("%s-%s", phalanx_task_id(run->c_result, task), stream_names[which]));
    const int status =
        transient ? publish_text(run, &text, transient, speaker->published[which]) : -1;
    speaker->published[which] = true;
    Py_XDECREF(transient);
    px_buf_fini(&text);
    return status;
}

static int flush_streams(struct run *run)
{
    for (size_t task = 0; task < run->count; task++) {
        if (flush_stream(run, task, 0) < 0 || flush_stream(run, task, 1) < 0)
            return -1;
    }
    run->dirty = false;
    run->flushed_ms = px_now_ms();
    return 0;
}

static int on_stream(struct run *run, size_t task, PyObject *event)
{
    const char *name = PyUnicode_AsUTF8(PyStructSequence_GET_ITEM(event, EV_NAME));
    Py_ssize_t size;
    const char *text = PyUnicode_AsUTF8AndSize(PyStructSequence_GET_ITEM(event, EV_TEXT), &size);
    if (!name || !text)
        return -1;
    const int which = strcmp(name, "stderr") == 0;
    const struct px_span span = {text, (size_t)size};
    if (run->notebook) {
        px_transcript_add(&run->speakers[task].streams[which], span);
        run->dirty = true;
        return 0;
    }
    struct px_buf out = {0};
    px_terminal_text(&run->terminal, &out, stream_names[which], engine_of(run, task), span);
    const int status = px_write_text(stream_names[which], out.data, out.size);
    px_buf_fini(&out);
    return status;
}

/* ---- displays ------------------------------------------------------------------------------ */

/* An engine's display ids, which other engines may use as well, under its own prefix. */
static PyObject *own_transient(PyObject *content, int engine)
{
    PyObject *transient = PyDict_GetItemString(content, "transient"); /* borrowed */
    PyObject *id =
        transient && PyDict_Check(transient) ? PyDict_GetItemString(transient, "display_id") : NULL;
    if (!id)
        return PyDict_New();
    return Py_BuildValue("{sN}", "display_id", PyUnicode_FromFormat("engine%d-%S", engine, id));
}

static int show_output_label(struct run *run, size_t task)
{
    struct px_buf label = {0};
    px_buf_printf(&label, "[output:%d]", engine_of(run, task));
    const int status = publish_text(run, &label, NULL, false);
    px_buf_fini(&label);
    return status;
}

static PyObject *event_content(PyObject *event)
{
    PyObject *loads = px_import_name("json", "loads");
    PyObject *content =
        loads ? PyObject_CallOneArg(loads, PyStructSequence_GET_ITEM(event, EV_CONTENT)) : NULL;
    Py_XDECREF(loads);
    if (content && !PyDict_Check(content)) {
        PyErr_SetString(PyExc_ValueError, "an engine sent a message without content");
        Py_CLEAR(content);
    }
    return content;
}

static int show_display(struct run *run, size_t task, PyObject *event, bool update)
{
    PyObject *content = event_content(event);
    PyObject *transient = content ? own_transient(content, engine_of(run, task)) : NULL;
    PyObject *data = content ? PyDict_GetItemString(content, "data") : NULL;
    int status = transient ? 0 : -1;
    if (status == 0 && data && PyDict_Check(data)) {
        status = flush_stream(run, task, 0);
        if (status == 0 && !update)
            status = show_output_label(run, task);
        if (status == 0)
            status =
                publish(run, data, PyDict_GetItemString(content, "metadata"), transient, update);
    }
    Py_XDECREF(transient);
    Py_XDECREF(content);
    return status;
}

static int on_output(struct run *run, size_t task, PyObject *event)
{
    const char *name = PyUnicode_AsUTF8(PyStructSequence_GET_ITEM(event, EV_NAME));
    if (!name)
        return -1;
    if (strcmp(name, "display_data") == 0)
        return show_display(run, task, event, false);
    if (strcmp(name, "update_display_data") == 0)
        return show_display(run, task, event, true);
    return 0;
}

/* ---- watching ---------------------------------------------------------------------------------
 */

static int on_event(struct run *run, PyObject *event)
{
    const long type = PyLong_AsLong(PyStructSequence_GET_ITEM(event, EV_TYPE));
    const size_t task = PyLong_AsSize_t(PyStructSequence_GET_ITEM(event, EV_TASK));
    if (px_discard(PyObject_CallMethod(run->result, "_file", "(O)", event)) < 0)
        return -1;
    if (!run->stream || task >= run->count)
        return 0;
    if (type == PHALANX_STREAM)
        return on_stream(run, task, event);
    return type == PHALANX_OUTPUT ? on_output(run, task, event) : 0;
}

/* Shows what has arrived, BATCH events at most, so that a flood does not keep out Ctrl-C. How many
 * there were; -1 with an exception. */
static int drain(struct run *run)
{
    int taken = 0;
    for (; taken < BATCH; taken++) {
        PyObject *event = PyObject_CallMethod(run->raw, "next", NULL);
        if (!event || event == Py_None) {
            Py_XDECREF(event);
            return event ? taken : -1;
        }
        const int status = on_event(run, event);
        Py_DECREF(event);
        if (status < 0)
            return -1;
    }
    return taken;
}

/* The engines of tasks that have no reply yet. */
static size_t still_running(struct run *run, int *ids)
{
    size_t count = 0;
    PyObject *tasks = PyObject_GetAttrString(run->result, "_tasks");
    for (size_t i = 0; tasks && i < run->count; i++) {
        PyObject *reply = PyObject_GetAttrString(PyList_GetItem(tasks, (Py_ssize_t)i), "reply");
        if (reply == Py_None)
            ids[count++] = engine_of(run, i);
        Py_XDECREF(reply);
    }
    Py_XDECREF(tasks);
    return count;
}

static void send_interrupt(struct run *run, const int *ids, size_t count)
{
    PyObject *client = PyObject_GetAttrString(run->result, "_client");
    PyObject *raw = client ? PyObject_GetAttrString(client, "_raw") : NULL;
    PyObject *capsule = raw ? PyObject_CallMethod(raw, "capsule", NULL) : NULL;
    phalanx_client *c_client = capsule ? PyCapsule_GetPointer(capsule, "phalanx.client") : NULL;
    for (size_t i = 0; c_client && i < count; i++) {
        /* One by one: an engine that is gone must not keep the others from hearing. */
        const struct phalanx_request request = {.type = PHALANX_CONTROL,
                                                .message = "signal_request",
                                                .content = "{\"sig\": \"SIGINT\"}",
                                                .targets = &ids[i],
                                                .target_count = 1};
        phalanx_result_free(phalanx_submit(c_client, &request, NULL));
    }
    PyErr_Clear();
    Py_XDECREF(capsule);
    Py_XDECREF(raw);
    Py_XDECREF(client);
}

static void say_who_is_left(const int *ids, size_t count)
{
    struct px_buf text = {0}, engines = {0};
    px_render_engines(&engines, ids, count);
    px_buf_printf(&text, "%%px: gave up waiting for engine%s %s; %%pxresult waits again\n",
                  count == 1 ? "" : "s", engines.data);
    px_write_text("stderr", text.data, text.size);
    px_buf_fini(&engines);
    px_buf_fini(&text);
}

/* 0: wait on. -1: give up. */
static int on_interrupt(struct run *run)
{
    int *ids = PyMem_Calloc(run->count + 1, sizeof *ids);
    const size_t count = ids ? still_running(run, ids) : 0;
    const bool wait_on = run->signal && run->handled++ == 0 && count > 0;
    if (wait_on)
        send_interrupt(run, ids, count);
    else if (count > 0)
        say_who_is_left(ids, count);
    PyMem_Free(ids);
    PyErr_Clear();
    return wait_on ? 0 : -1;
}

/* Runs signal handlers, and acts on what they say. -1 with an exception. */
static int check_signals(struct run *run)
{
    const bool raised = PyErr_CheckSignals() < 0;
    if (raised && !PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        return -1;
    while (raised || (run->signals && *run->signals > run->handled)) {
        PyErr_Clear();
        if (on_interrupt(run) < 0) {
            run->handled = run->signals ? *run->signals : run->handled;
            PyErr_SetNone(PyExc_KeyboardInterrupt);
            return -1;
        }
        if (raised)
            break;
    }
    return 0;
}

static PyObject *count_signal(PyObject *capsule, PyObject *args)
{
    (void)args;
    int *signals = PyCapsule_GetPointer(capsule, "phalanx.signals");
    if (!signals)
        return NULL;
    ++*signals;
    Py_RETURN_NONE;
}

static PyMethodDef count_signal_def = {"count_signal", count_signal, METH_VARARGS, NULL};

static void free_signals(PyObject *capsule)
{
    PyMem_Free(PyCapsule_GetPointer(capsule, "phalanx.signals"));
}

/* Makes Python's handler of SIGINT one that counts, if it is the usual one. The counter lives as
 * long as the handler returned, or there is NULL, without an exception. */
static PyObject *count_interrupts(struct run *run)
{
    PyObject *module = PyImport_ImportModule("signal");
    PyObject *now = module ? PyObject_CallMethod(module, "getsignal", "i", SIGINT) : NULL;
    PyObject *usual = module ? PyObject_GetAttrString(module, "default_int_handler") : NULL;
    int *signals = now && now == usual ? PyMem_Calloc(1, sizeof *signals) : NULL;
    PyObject *capsule = signals ? PyCapsule_New(signals, "phalanx.signals", free_signals) : NULL;
    PyObject *handler = capsule ? PyCFunction_New(&count_signal_def, capsule) : NULL;
    if (handler && px_discard(PyObject_CallMethod(module, "signal", "iO", SIGINT, handler)) < 0)
        Py_CLEAR(handler); /* not the main thread: signals do not come here */
    run->signals = handler ? signals : NULL;
    PyErr_Clear();
    Py_XDECREF(capsule);
    Py_XDECREF(usual);
    Py_XDECREF(now);
    Py_XDECREF(module);
    return handler;
}

/* Gives SIGINT its usual handler back; one that was counted and not acted upon is raised now. Keeps
 * an exception that is set. */
static int end_counting(struct run *run, PyObject *handler)
{
    if (!handler)
        return 0;
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *module = PyImport_ImportModule("signal");
    PyObject *usual = module ? PyObject_GetAttrString(module, "default_int_handler") : NULL;
    if (!usual || px_discard(PyObject_CallMethod(module, "signal", "iO", SIGINT, usual)) < 0)
        PyErr_Clear();
    Py_XDECREF(usual);
    Py_XDECREF(module);
    const bool late = *run->signals > run->handled && !type;
    run->signals = NULL;
    Py_DECREF(handler);
    PyErr_Restore(type, value, traceback);
    if (late)
        PyErr_SetNone(PyExc_KeyboardInterrupt);
    return late ? -1 : 0;
}

static int64_t time_to_wait(const struct run *run)
{
    if (!run->dirty)
        return SLICE_MS;
    const int64_t left = run->flushed_ms + FLUSH_MS - px_now_ms();
    return left > 0 ? left : 0;
}

static bool is_over(const struct run *run, enum phalanx_code code)
{
    return code == PHALANX_ECLOSED || phalanx_finished(run->c_result) == run->count;
}

static int watch(struct run *run)
{
    bool over = false;
    while (!over) {
        const int64_t timeout_ms = time_to_wait(run);
        PyThreadState *state = PyEval_SaveThread();
        const enum phalanx_code code = phalanx_wait(run->c_result, PHALANX_EVENT, timeout_ms);
        PyEval_RestoreThread(state);
        over = is_over(run, code); /* asked before the events are taken: then they are all here */
        const int taken = drain(run);
        over &= taken < BATCH;
        if (taken < 0 || check_signals(run) < 0)
            return -1;
        if (run->dirty && (over || time_to_wait(run) == 0) && flush_streams(run) < 0)
            return -1;
    }
    return 0;
}

/* ---- values at the end
 * ---------------------------------------------------------------------------- */

/* The value's MIME bundle, its text under the prompt. NULL with an exception. */
static PyObject *prompted(struct run *run, PyObject *data, int engine, long execution_count)
{
    PyObject *copy = PyDict_Copy(data);
    PyObject *plain = copy ? PyDict_GetItemString(copy, "text/plain") : NULL;
    Py_ssize_t size = 0;
    const char *text = "";
    if (plain && PyUnicode_Check(plain)) {
        text = PyUnicode_AsUTF8AndSize(plain, &size);
        if (!text) {
            PyErr_Clear();
            text = "?";
            size = 1;
        }
    }
    struct px_buf out = {0};
    px_render_result(&out, engine, execution_count, (struct px_span){text, (size_t)size},
                     run->color);
    PyObject *string = PyUnicode_DecodeUTF8(out.data, (Py_ssize_t)out.size, "replace");
    if (copy && (!string || PyDict_SetItemString(copy, "text/plain", string) < 0))
        Py_CLEAR(copy);
    Py_XDECREF(string);
    px_buf_fini(&out);
    return copy;
}

static int show_value(struct run *run, size_t task)
{
    PyObject *tasks = PyObject_GetAttrString(run->result, "_tasks");
    PyObject *record = tasks ? PyList_GetItem(tasks, (Py_ssize_t)task) : NULL; /* borrowed */
    PyObject *content = record ? PyObject_GetAttrString(record, "execute_result") : NULL;
    int status = content ? 0 : -1;
    if (content && PyDict_Check(content)) {
        PyObject *data = PyDict_GetItemString(content, "data");
        PyObject *count = PyDict_GetItemString(content, "execution_count");
        const long number = count && PyLong_Check(count) ? PyLong_AsLong(count) : 0;
        PyObject *shown =
            data && PyDict_Check(data) ? prompted(run, data, engine_of(run, task), number) : NULL;
        status = shown ? publish(run, shown, PyDict_GetItemString(content, "metadata"), NULL, false)
                       : -1;
        Py_XDECREF(shown);
        if (status < 0 && !PyErr_Occurred())
            status = 0; /* a value without data: nothing to show */
    }
    Py_XDECREF(content);
    Py_XDECREF(tasks);
    return status;
}

static int show_values(struct run *run)
{
    if (run->terminal.mid_line && px_write_text("stdout", "\n", 1) < 0)
        return -1;
    for (size_t task = 0; task < run->count; task++) {
        if (show_value(run, task) < 0)
            return -1;
    }
    return 0;
}

static void run_fini(struct run *run)
{
    for (size_t i = 0; run->speakers && i < run->count; i++) {
        px_transcript_fini(&run->speakers[i].streams[0]);
        px_transcript_fini(&run->speakers[i].streams[1]);
    }
    PyMem_Free(run->speakers);
    Py_CLEAR(run->raw);
}

/* Follows the run to its end, and shows its values. -1 with an exception. */
static int show_run(struct run *run, const struct px_line *line)
{
    PyObject *handler = count_interrupts(run);
    int status = watch(run);
    if (end_counting(run, handler) < 0)
        status = -1;
    if (status < 0)
        return -1;
    if (run->stream)
        return show_values(run);
    return px_discard(
        PyObject_CallMethod(run->result, "display_outputs", "s", px_group_names[line->group]));
}

/* -1 with an exception; run_fini in any case. */
static int run_init(struct run *run)
{
    run->notebook = is_notebook(run->shell);
    run->color = has_color(run->shell);
    run->flushed_ms = px_now_ms(); /* quick cells show their streams once, in the engines' order */
    run->raw = PyObject_GetAttrString(run->result, "_raw");
    PyObject *capsule = run->raw ? PyObject_CallMethod(run->raw, "capsule", NULL) : NULL;
    run->c_result = capsule ? PyCapsule_GetPointer(capsule, "phalanx.result") : NULL;
    Py_XDECREF(capsule);
    if (!run->c_result)
        return -1;
    run->count = phalanx_task_count(run->c_result);
    run->speakers = PyMem_Calloc(run->count + 1, sizeof *run->speakers);
    if (!run->speakers)
        PyErr_NoMemory();
    return run->speakers ? 0 : -1;
}

PyObject *px_follow(PyObject *shell, PyObject *result, const struct px_line *line, bool stream)
{
    struct run run = {.shell = shell,
                      .result = result,
                      .stream = stream,
                      .signal = line->signal_on_interrupt != 0};
    PyObject *value = NULL;
    if (run_init(&run) == 0 && show_run(&run, line) == 0)
        value = PyObject_CallMethod(result, "get", NULL);
    run_fini(&run);
    Py_XDECREF(value);
    return value ? Py_NewRef(Py_None) : NULL;
}
