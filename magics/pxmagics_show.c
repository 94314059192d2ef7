/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pxmagics_show: what is shown of a run: text, displays, the progress line, values.
 *
 * Text goes through a teller, which folds and bounds it, to the screen's streams. A display waits
 * in a queue and is shown after the text that came before it; what its engine writes after it waits
 * behind it. The progress line stands at the end of stdout and is wiped before anything else is
 * written.
 *
 * Once an engine clears its output, front ends offer nothing to take back what is its and leave the
 * others': from then on the cell is shown anew from the records, as often as people can follow.
 */
#include "pxmagics.h"

#include <stdlib.h>
#include <string.h>

#define TELL_MS 40 /* text is told at most this often */
#define PROGRESS_MS 1000
#define REPAINT_MS                                                                                 \
    100 /* a cell whose engines clear their output is shown anew at most this often, */
#define REPAINT_SHARE 10 /* and takes up a tenth of the time with that */

struct px_show {
    struct px_follow options;
    size_t count;
    int *engines; /* by task */
    struct px_teller *teller;
    struct px_queue *queue;
    bool *ended; /* by task: nothing more comes of it */
    bool color, progress;
    bool written; /* something else than the progress line */
    struct {
        bool on;    /* an engine has cleared its output: the cell is shown anew when that changes */
        bool dirty; /* it has changed */
        int64_t next_ms;
        struct px_buf notes; /* our own lines, which stay */
    } repaint;
    struct {
        int *ids; /* engines that are lost for one reason, which is not said yet */
        size_t count;
        struct px_buf why;
    } lost;
    int64_t started_ms, told_ms, progress_ms;
    size_t progress_width; /* of the line that is shown now */
};

/* ---- the screen --------------------------------------------------------------------- */

static bool screen_has(PyObject *screen, const char *name)
{
    PyObject *value = PyObject_GetAttrString(screen, name);
    const bool yes = value && PyObject_IsTrue(value) == 1;
    Py_XDECREF(value);
    PyErr_Clear();
    return yes;
}

static int write_stream(struct px_show *show, const char *name, const struct px_buf *text)
{
    if (text->size == 0)
        return 0;
    PyObject *string = px_text_of(text);
    const int status =
        string ? px_discard(PyObject_CallMethod(show->options.screen, "write", "sO", name, string))
               : -1;
    Py_XDECREF(string);
    return status;
}

/* Blanks stand in its place; where it is all there is, the cell is empty again, in front ends that
 * can clear one. */
static int wipe_progress(struct px_show *show)
{
    const size_t width = show->progress_width;
    struct px_buf text = {0};
    show->progress_width = 0;
    if (!width)
        return 0;
    px_buf_printf(&text, "\r%*s\r", (int)width, "");
    int status = write_stream(show, "stdout", &text);
    px_buf_fini(&text);
    if (status == 0 && show->options.alone && !show->written) {
        show->options.alone = false; /* what screen.clear() leaves is to stay */
        status = px_discard(PyObject_CallMethod(show->options.screen, "clear", NULL));
    }
    return status;
}

/* Writes what was told; frees it. */
static int write_told(struct px_show *show, struct px_buf told[2])
{
    int status = 0;
    if (told[0].size || told[1].size) {
        status = wipe_progress(show);
        if (status == 0)
            status = write_stream(show, "stdout", &told[0]);
        if (status == 0)
            status = write_stream(show, "stderr", &told[1]);
        show->written = true;
    }
    px_buf_fini(&told[0]);
    px_buf_fini(&told[1]);
    return status;
}

static int tell(struct px_show *show, bool all)
{
    struct px_buf told[2] = {0};
    show->told_ms = px_now_ms();
    px_teller_tell(show->teller, show->told_ms, all, told);
    return write_told(show, told);
}

int px_show_publish(struct px_show *show, PyObject *data, PyObject *metadata, PyObject *transient,
                    bool update)
{
    struct px_buf told[2] = {0};
    px_teller_break(show->teller, told);
    if (write_told(show, told) < 0 || wipe_progress(show) < 0)
        return -1;
    show->written = true;
    return px_discard(PyObject_CallMethod(
        show->options.screen, "display", "OOOO", data, metadata ? metadata : Py_None,
        transient ? transient : Py_None, update ? Py_True : Py_False));
}

int px_show_note(struct px_show *show, const struct px_buf *text)
{
    struct px_buf told[2] = {0};
    px_teller_break(show->teller, told);
    px_buf_append(&told[1], text->data, text->size);
    px_buf_append(&show->repaint.notes, text->data, text->size);
    return write_told(show, told);
}

/* ---- displays and text ------------------------------------------------------------------ */

/* An engine's display ids, which other engines may use as well, under its own prefix. */
static PyObject *own_transient(PyObject *content, int engine)
{
    PyObject *id = px_display_id(content); /* borrowed */
    if (!id)
        return PyDict_New();
    return Py_BuildValue("{sN}", "display_id", PyUnicode_FromFormat("engine%d-%S", engine, id));
}

static void put_label(const struct px_show *show, const size_t *tasks, size_t count,
                      struct px_buf *out)
{
    int *ids = px_alloc(count * sizeof *ids);
    for (size_t i = 0; i < count; i++)
        ids[i] = show->engines[tasks[i]];
    px_buf_text(out, "[output:");
    px_render_ranges(out, ids, count);
    px_buf_text(out, "]");
    free(ids);
}

/* Publishes a line; frees it. */
static int show_line(struct px_show *show, struct px_buf *line)
{
    PyObject *data = Py_BuildValue("{sN}", "text/plain", px_text_of(line));
    const int status = data ? px_show_publish(show, data, NULL, NULL, false) : -1;
    Py_XDECREF(data);
    px_buf_fini(line);
    return status;
}

static int show_output_label(struct px_show *show, const size_t *tasks, size_t count)
{
    struct px_buf line = {0};
    put_label(show, tasks, count, &line);
    return show_line(show, &line);
}

int px_show_same(struct px_show *show, const size_t *tasks, size_t count, const size_t *others,
                 size_t other_count)
{
    struct px_buf line = {0};
    put_label(show, tasks, count, &line);
    px_buf_text(&line, " the same as ");
    put_label(show, others, other_count, &line);
    return show_line(show, &line);
}

int px_show_display(struct px_show *show, const size_t *tasks, size_t count, PyObject *content,
                    bool update)
{
    PyObject *data = PyDict_GetItemString(content, "data");
    if (!data || !PyDict_Check(data))
        return 0;
    PyObject *transient = own_transient(content, show->engines[tasks[0]]);
    int status = transient ? 0 : -1;
    if (status == 0 && !update)
        status = show_output_label(show, tasks, count);
    if (status == 0)
        status = px_show_publish(show, data, PyDict_GetItemString(content, "metadata"), transient,
                                 update);
    Py_XDECREF(transient);
    return status;
}

int px_show_text(struct px_show *show, size_t task, enum px_stream stream, PyObject *text)
{
    if (px_queue_text(show->queue, task, stream, text))
        return 0;
    Py_ssize_t size;
    const char *utf8 = PyUnicode_AsUTF8AndSize(text, &size);
    if (!utf8) { /* a lone surrogate: text that is none */
        PyErr_Clear();
        utf8 = "?";
        size = 1;
    }
    px_teller_add(show->teller, task, stream, (struct px_span){utf8, (size_t)size}, px_now_ms());
    return 0;
}

/* Shows the displays that wait, after all text; text that waits behind them is heard now. */
static int show_queue(struct px_show *show)
{
    return tell(show, true) == 0 ? px_queue_show(show->queue, show) : -1;
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

/* ---- events --------------------------------------------------------------------------------- */

/* What a reply has for a pager, as after "len?". */
static int on_reply(struct px_show *show, size_t task, PyObject *event)
{
    const char *text = PyUnicode_AsUTF8(PyStructSequence_GET_ITEM(event, EV_CONTENT));
    if (!text || !strstr(text, "\"page\""))
        return text ? 0 : -1;
    PyObject *content = event_content(event);
    const int status = content ? px_queue_pages(show->queue, task, content) : -1;
    Py_XDECREF(content);
    return status;
}

static int on_change(struct px_show *show)
{
    show->repaint.dirty = true;
    return 0;
}

/* With "wait" nothing changes before there is other output in its place. */
static int on_clear(struct px_show *show, PyObject *event)
{
    if (!screen_has(show->options.screen, "clears"))
        return 0;
    PyObject *content = event_content(event);
    PyObject *wait = content ? PyDict_GetItemString(content, "wait") : NULL; /* borrowed */
    if (content && (wait != Py_True || !show->repaint.on))
        show->repaint.on = show->repaint.dirty = true; /* what was on its way is shown so, too */
    show->progress &= !show->repaint.on;
    Py_XDECREF(content);
    return content ? 0 : -1;
}

static int on_output(struct px_show *show, size_t task, PyObject *event)
{
    const char *name = PyUnicode_AsUTF8(PyStructSequence_GET_ITEM(event, EV_NAME));
    if (!name)
        return -1;
    if (strncmp(name, "comm_", 5) == 0)
        return px_discard(
            PyObject_CallMethod(show->options.screen, "comm", "OO", show->options.result, event));
    if (strcmp(name, "clear_output") == 0)
        return on_clear(show, event);
    const bool update = strcmp(name, "update_display_data") == 0;
    if (!update && strcmp(name, "display_data") != 0)
        return 0;
    if (show->repaint.on)
        return on_change(show);
    PyObject *content = event_content(event);
    if (content)
        px_queue_display(show->queue, task, content, update);
    Py_XDECREF(content);
    return content ? 0 : -1;
}

static int tell_note(struct px_show *show, struct px_buf *note)
{
    const int status = tell(show, true) == 0 ? px_show_note(show, note) : -1;
    px_buf_fini(note);
    return status;
}

static int tell_lost(struct px_show *show)
{
    struct px_buf note = {0};
    if (show->lost.count == 0)
        return 0;
    px_buf_printf(&note, "%%px: lost engine%s ", show->lost.count == 1 ? "" : "s");
    px_render_ranges(&note, show->lost.ids, show->lost.count);
    px_buf_printf(&note, ": %s\n", show->lost.why.data);
    show->lost.count = 0;
    return tell_note(show, &note);
}

/* An obituary is said at once; a reason that is several engines' together. */
static int add_loss(struct px_show *show, size_t task, const char *text)
{
    if (strncmp(text, "engine ", 7) == 0) {
        struct px_buf note = {0};
        px_buf_printf(&note, "%%px: lost %s\n", text);
        return tell_note(show, &note);
    }
    const char *lost = strstr(text, "' is lost: "), *why = text;
    if (lost)
        why = strchr(lost, ':') + 2;
    else if (strncmp(text, "Engine ", 7) == 0) /* it has no obituary */
        why = "gone while running this cell, by exit(), a shutdown or a death that nobody saw";
    if (show->lost.count && strcmp(why, show->lost.why.data) != 0 && tell_lost(show) < 0)
        return -1;
    px_buf_clear(&show->lost.why);
    px_buf_text(&show->lost.why, why);
    show->lost.ids[show->lost.count++] = show->engines[task];
    return 0;
}

/* An engine is gone: that is said, the error comes with the others' results. */
static int on_loss(struct px_show *show, size_t task, PyObject *event)
{
    PyObject *content = event_content(event);
    PyObject *why = content ? PyDict_GetItemString(content, "evalue") : NULL;
    const char *text = why && PyUnicode_Check(why) ? PyUnicode_AsUTF8(why) : NULL;
    PyErr_Clear();
    const int status = add_loss(show, task, text ? text : "it is gone");
    Py_XDECREF(content);
    return status;
}

static void end_task(struct px_show *show, size_t task)
{
    show->ended[task] = true;
    px_teller_end(show->teller, task, px_now_ms());
}

int px_show_event(struct px_show *show, PyObject *event)
{
    const long type = PyLong_AsLong(PyStructSequence_GET_ITEM(event, EV_TYPE));
    const size_t task = PyLong_AsSize_t(PyStructSequence_GET_ITEM(event, EV_TASK));
    const char *name = "";
    if (PyErr_Occurred() || task >= show->count)
        return PyErr_Occurred() ? -1 : 0;
    switch (type) {
    case PHALANX_STREAM:
        if (show->repaint.on)
            return on_change(show);
        name = PyUnicode_AsUTF8(PyStructSequence_GET_ITEM(event, EV_NAME));
        return name ? px_show_text(show, task, strcmp(name, "stderr") == 0 ? PX_STDERR : PX_STDOUT,
                                   PyStructSequence_GET_ITEM(event, EV_TEXT))
                    : -1;
    case PHALANX_OUTPUT:
        return on_output(show, task, event);
    case PHALANX_REPLY:
        if (PyStructSequence_GET_ITEM(event, EV_LOST) == Py_True)
            return on_loss(show, task, event);
        return show->repaint.on ? on_change(show) : on_reply(show, task, event);
    case PHALANX_IDLE:
        end_task(show, task);
        return 0;
    default:
        return 0;
    }
}

/* ---- what came before ------------------------------------------------------------------------ */

static int past_stream(struct px_show *show, size_t task, PyObject *record, enum px_stream stream)
{
    PyObject *text = PyObject_GetAttrString(record, px_stream_names[stream]);
    int status = text ? 0 : -1;
    if (text && text != Py_None) {
        PyObject *string = PyObject_Str(text);
        status = string ? px_show_text(show, task, stream, string) : -1;
        Py_XDECREF(string);
    }
    Py_XDECREF(text);
    return status;
}

static int past_outputs(struct px_show *show, size_t task, PyObject *record)
{
    PyObject *outputs = PyObject_GetAttrString(record, "outputs");
    int status = outputs && PyList_Check(outputs) ? 0 : -1;
    for (Py_ssize_t i = 0; status == 0 && i < PyList_GET_SIZE(outputs); i++)
        px_queue_display(show->queue, task, PyList_GET_ITEM(outputs, i), false);
    Py_XDECREF(outputs);
    PyObject *reply = status == 0 ? PyObject_GetAttrString(record, "reply") : NULL;
    if (status == 0)
        status = reply ? 0 : -1;
    if (reply && reply != Py_None)
        status = on_reply(show, task, reply);
    Py_XDECREF(reply);
    return status;
}

int px_show_past(struct px_show *show)
{
    PyObject *tasks = PyObject_GetAttrString(show->options.result, "_tasks");
    int status = tasks && PyList_Check(tasks) ? 0 : -1;
    for (size_t i = 0; status == 0 && i < show->count; i++) {
        PyObject *record = PyList_GetItem(tasks, (Py_ssize_t)i); /* borrowed */
        PyObject *over = record ? PyObject_GetAttrString(record, "finished") : NULL;
        if (!over || past_stream(show, i, record, PX_STDOUT) < 0 ||
            past_stream(show, i, record, PX_STDERR) < 0 || past_outputs(show, i, record) < 0)
            status = -1;
        if (over == Py_True)
            end_task(show, i);
        Py_XDECREF(over);
    }
    Py_XDECREF(tasks);
    return status;
}

static int show_rest_of_queue(struct px_show *show)
{
    while (!px_queue_is_empty(show->queue))
        if (show_queue(show) < 0)
            return -1;
    return 0;
}

static int repaint(struct px_show *show)
{
    struct px_buf told[2] = {0};
    const int64_t now_ms = px_now_ms();
    if ((show->written || show->progress_width) &&
        px_discard(PyObject_CallMethod(show->options.screen, "replace", NULL)) < 0)
        return -1;
    show->repaint.dirty = false;
    show->progress_width = 0;
    px_teller_destroy(show->teller);
    px_queue_destroy(show->queue);
    show->teller = px_teller_create(show->engines, show->count, show->options.fold);
    show->queue = px_queue_create(show->count, show->options.fold);
    px_buf_append(&told[1], show->repaint.notes.data, show->repaint.notes.size);
    if (write_told(show, told) < 0 || px_show_past(show) < 0 || show_rest_of_queue(show) < 0 ||
        tell(show, true) < 0)
        return -1;
    const int64_t took_ms = px_now_ms() - now_ms, pause_ms = REPAINT_SHARE * took_ms;
    show->repaint.next_ms = now_ms + took_ms + (pause_ms > REPAINT_MS ? pause_ms : REPAINT_MS);
    return 0;
}

/* ---- as time goes by ------------------------------------------------------------------------- */

static int show_progress(struct px_show *show, const int *pending, size_t pending_count)
{
    struct px_buf text = {0}, out = {0};
    px_render_progress(&text, show->count - pending_count, show->count, pending, pending_count,
                       (double)(px_now_ms() - show->started_ms) / 1000);
    const size_t width = text.size;
    px_buf_printf(&out, "\r%s", text.data);
    if (show->progress_width > width)
        px_buf_printf(&out, "%*s", (int)(show->progress_width - width), "");
    const int status = write_stream(show, "stdout", &out);
    show->progress_width = width > show->progress_width ? width : show->progress_width;
    px_buf_fini(&out);
    px_buf_fini(&text);
    return status;
}

int px_show_due(struct px_show *show, const int *pending, size_t pending_count)
{
    const int64_t now_ms = px_now_ms();
    if (tell_lost(show) < 0)
        return -1;
    if (show->repaint.on)
        return show->options.stream && show->repaint.dirty && now_ms >= show->repaint.next_ms
                   ? repaint(show)
                   : 0;
    if (show->options.stream) {
        const bool waiting = px_teller_due(show->teller) != INT64_MAX;
        if (now_ms >= px_queue_due(show->queue, show->ended) && show_queue(show) < 0)
            return -1;
        if (waiting && now_ms >= show->told_ms + TELL_MS && tell(show, false) < 0)
            return -1;
    }
    if (!show->progress || now_ms < show->progress_ms)
        return 0;
    show->progress_ms = now_ms + PROGRESS_MS; /* the next, also where there is no place for one */
    return pending_count && !px_teller_mid_line(show->teller)
               ? show_progress(show, pending, pending_count)
               : 0;
}

int64_t px_show_next_ms(const struct px_show *show)
{
    int64_t next = show->progress ? show->progress_ms : INT64_MAX;
    if (show->repaint.on)
        return show->options.stream && show->repaint.dirty ? show->repaint.next_ms : INT64_MAX;
    if (show->options.stream) {
        int64_t text = px_teller_due(show->teller);
        if (text != INT64_MAX && text < show->told_ms + TELL_MS)
            text = show->told_ms + TELL_MS;
        const int64_t displays = px_queue_due(show->queue, show->ended);
        next = text < next ? text : next;
        next = displays < next ? displays : next;
    }
    return next;
}

/* ---- the end ------------------------------------------------------------------------------ */

/* Tasks that succeeded may have shown errors: a value's __repr__ has failed. */
static int add_stray_errors(struct px_show *show)
{
    PyObject *errors =
        PyObject_CallMethod(show->options.face, "stray_errors", "O", show->options.result);
    int status = errors && PyList_Check(errors) ? 0 : -1;
    for (Py_ssize_t i = 0; status == 0 && i < PyList_GET_SIZE(errors); i++) {
        Py_ssize_t task;
        PyObject *text; /* borrowed */
        status = PyArg_ParseTuple(PyList_GET_ITEM(errors, i), "nU", &task, &text) ? 0 : -1;
        if (status == 0)
            status = px_show_text(show, (size_t)task, PX_STDERR, text);
    }
    Py_XDECREF(errors);
    return status;
}

int px_show_rest(struct px_show *show)
{
    const struct px_follow *options = &show->options;
    struct px_buf told[2] = {0};
    if (tell_lost(show) < 0 || wipe_progress(show) < 0)
        return -1;
    if (!options->stream && options->group >= 0)
        return px_discard(PyObject_CallMethod(options->result, "display_outputs", "s",
                                              px_group_names[options->group]));
    if (show->repaint.dirty && repaint(show) < 0)
        return -1;
    if (show_rest_of_queue(show) < 0)
        return -1;
    if (add_stray_errors(show) < 0 || tell(show, true) < 0)
        return -1;
    px_teller_break(show->teller, told);
    if (write_told(show, told) < 0)
        return -1;
    return px_show_values(&(struct px_value_options){.show = show,
                                                     .result = options->result,
                                                     .engines = show->engines,
                                                     .count = show->count,
                                                     .fold = options->fold,
                                                     .color = show->color});
}

/* ---- create, destroy ----------------------------------------------------------------------------
 */

struct px_show *px_show_create(const struct px_follow *options, phalanx_result *result)
{
    struct px_show *show = px_alloc(sizeof *show);
    show->options = *options;
    show->count = phalanx_task_count(result);
    show->engines = px_alloc((show->count + 1) * sizeof *show->engines);
    for (size_t i = 0; i < show->count; i++)
        show->engines[i] = phalanx_task_engine(result, i);
    show->ended = px_alloc(show->count + 1);
    show->lost.ids = px_alloc((show->count + 1) * sizeof *show->lost.ids);
    show->teller = px_teller_create(show->engines, show->count, options->fold);
    show->color = screen_has(options->screen, "color");
    show->progress = options->progress_after >= 0 && screen_has(options->screen, "progress");
    show->started_ms = px_now_ms();
    show->progress_ms = show->started_ms + (int64_t)(options->progress_after * 1000);
    show->queue = px_queue_create(show->count, options->fold);
    return show;
}

void px_show_destroy(struct px_show *show)
{
    if (!show)
        return;
    px_teller_destroy(show->teller);
    px_queue_destroy(show->queue);
    px_buf_fini(&show->lost.why);
    px_buf_fini(&show->repaint.notes);
    free(show->lost.ids);
    free(show->ended);
    free(show->engines);
    free(show);
}
