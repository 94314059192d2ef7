/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pxmagics_follow: waits for a run on engines, shows what comes, and lets the user end it.
 *
 * The wait is libphalanx's, without the GIL. Every event is filed in the AsyncResult, so that --out
 * and %pxresult see all, and then shown.
 *
 * Ctrl-C is a ladder: the first sends a signal to the engines that are still at it, and waits on;
 * the second gives up, says which have not come back and what can be typed about them. A time-out
 * climbs it by itself. Meanwhile Python's handler only counts: a KeyboardInterrupt inside the code
 * that shows things would lose what it was showing.
 */
#include "pxmagics.h"

#include <signal.h>
#include <string.h>
#include <time.h>

#define BATCH 64       /* events between two looks at signals and the clock */
#define SLICE_MS 1000  /* a signal handled just before a wait does not end it: look again */
#define GRACE_MS 5000  /* after a time-out has interrupted the engines */
#define ERRORS_MS 1000 /* errors are shown when others still run so long after */

static const char RUN[] = "phalanx.run"; /* the capsule in `listener` */

struct run {
    const struct px_follow *options;
    PyObject *raw;
    PyObject *listener; /* what the AsyncResult calls */
    phalanx_result *result;
    phalanx_client *client;
    size_t count;
    struct px_show *show;
    bool *replied; /* by task */
    int *pending;  /* engines of those that have not */
    int *signals;  /* how often Ctrl-C was hit; NULL: not counted, an exception instead */
    int handled;   /* how many of them have been acted upon */
    int64_t deadline_ms;
    int64_t errors_ms; /* when to show the errors that have come; INT64_MAX: there is none */
    int64_t away_ms;   /* how long the controller is out of reach, which was said; 0: it is not */
    bool answered;     /* an engine has replied since */
    bool timed_out;
};

/* ---- events ---------------------------------------------------------------------------- */

/* An Output widget's, of what is shown to nobody else: 1 when it was, 0 when it is not, -1 with an
 * exception. */
static int give_to_widget(struct run *run, size_t task, PyObject *event)
{
    PyObject *tasks = PyObject_GetAttrString(run->options->result, "_tasks");
    PyObject *record = tasks ? PySequence_GetItem(tasks, (Py_ssize_t)task) : NULL;
    PyObject *asked = record ? PyObject_CallMethod(record, "is_captured", "(O)", event) : NULL;
    int status = asked ? asked == Py_True : -1;
    if (status == 1 && px_discard(PyObject_CallMethod(run->options->screen, "captured", "OO",
                                                      run->options->result, event)) < 0)
        status = -1;
    Py_XDECREF(asked);
    Py_XDECREF(record);
    Py_XDECREF(tasks);
    return status;
}

static int on_event(struct run *run, PyObject *event)
{
    const long type = PyLong_AsLong(PyStructSequence_GET_ITEM(event, EV_TYPE));
    const size_t task = PyLong_AsSize_t(PyStructSequence_GET_ITEM(event, EV_TASK));
    if (type == PHALANX_REPLY && task < run->count) {
        run->replied[task] = true;
        run->answered |= PyStructSequence_GET_ITEM(event, EV_LOST) != Py_True;
        const bool failed = PyStructSequence_GET_ITEM(event, EV_FAILED) == Py_True;
        if (failed && run->options->stream && run->errors_ms == INT64_MAX)
            run->errors_ms = px_now_ms() + ERRORS_MS;
    }
    const bool output = type == PHALANX_STREAM || type == PHALANX_OUTPUT;
    const int given = output && task < run->count ? give_to_widget(run, task, event) : 0;
    return given ? (given < 0 ? -1 : 0) : px_show_event(run->show, event);
}

/* The AsyncResult calls it with each event that it files, whoever took it. */
static PyObject *hear(PyObject *capsule, PyObject *event)
{
    struct run *run = PyCapsule_GetPointer(capsule, RUN);
    return run && on_event(run, event) == 0 ? Py_NewRef(Py_None) : NULL;
}

static PyMethodDef hear_def = {"hear", hear, METH_O, NULL};

static int listen(struct run *run)
{
    PyObject *capsule = PyCapsule_New(run, RUN, NULL);
    run->listener = capsule ? PyCFunction_New(&hear_def, capsule) : NULL;
    Py_XDECREF(capsule);
    if (!run->listener)
        return -1;
    return px_discard(PyObject_CallMethod(run->options->result, "_listen", "O", run->listener));
}

/* Nobody is at work in hear(), or comes there, when this returns. */
static void stop_listening(struct run *run)
{
    while (run->listener &&
           px_discard(PyObject_CallMethod(run->options->result, "_unlisten", "O", run->listener)) <
               0 &&
           PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        PyErr_Clear();
    PyErr_Clear();
}

/* Shows what has arrived, BATCH events at most, so that a flood does not keep out Ctrl-C. How many
 * there were; -1 with an exception. */
static int drain(struct run *run)
{
    PyObject *count = PyObject_CallMethod(run->options->result, "_pump", "i", BATCH);
    const int taken = count ? (int)PyLong_AsLong(count) : -1; /* BATCH at most */
    Py_XDECREF(count);
    return taken;
}

/* Lists the engines of tasks that have no reply yet. */
static size_t list_pending(struct run *run)
{
    size_t count = 0;
    for (size_t i = 0; i < run->count; i++) {
        if (!run->replied[i])
            run->pending[count++] = phalanx_task_engine(run->result, i);
    }
    return count;
}

/* ---- the ladder --------------------------------------------------------------------------- */

/* By themselves: an engine that is gone must not keep the others from hearing. */
static void ask_engine(struct run *run, int engine, const char *message, const char *content)
{
    const struct phalanx_request request = {.type = PHALANX_CONTROL,
                                            .message = message,
                                            .content = content,
                                            .targets = &engine,
                                            .target_count = 1};
    phalanx_result_free(phalanx_submit(run->client, &request, NULL));
}

/* To the engines that are still at it. Where the cell waits behind something else it is taken back
 * instead: by our engines with the one message, by ipyparallel's, which signal, with the other. */
static void send_signal(struct run *run)
{
    const char *signal = run->options->signal;
    const char *quote = *signal >= '0' && *signal <= '9' ? "" : "\"";
    for (size_t i = 0; i < run->count; i++) {
        if (run->replied[i])
            continue;
        const char *id = phalanx_task_id(run->result, i);
        const int engine = phalanx_task_engine(run->result, i);
        struct px_buf sent = {0}, taken = {0};
        px_buf_printf(&sent, "{\"sig\": %s%s%s, \"px_or_abort\": \"%s\"}", quote, signal, quote,
                      id);
        px_buf_printf(&taken, "{\"msg_ids\": [\"%s\"]}", id);
        ask_engine(run, engine, "signal_request", sent.data);
        ask_engine(run, engine, "abort_request", taken.data);
        px_buf_fini(&sent);
        px_buf_fini(&taken);
    }
}

static void say_what_was_sent(struct run *run, size_t count)
{
    struct px_buf text = {0};
    px_buf_printf(&text, "%%px: sent %s to engine%s ", run->options->signal, count == 1 ? "" : "s");
    px_render_ranges(&text, run->pending, count);
    px_buf_printf(&text, "; interrupt again to leave %s\n", count == 1 ? "it" : "them");
    px_show_note(run->show, &text);
    px_buf_fini(&text);
}

static void say_who_is_left(struct run *run, size_t count)
{
    struct px_buf text = {0};
    (run->away_ms ? px_render_left : px_render_ladder)(&text, run->pending, count);
    px_show_note(run->show, &text);
    px_buf_fini(&text);
}

/* A KeyboardInterrupt that shows what became of the engines, and nothing of our own code. */
static void raise_interrupt(struct run *run)
{
    struct px_buf text = {0};
    const size_t count = list_pending(run);
    px_buf_printf(&text, "left engine%s ", count == 1 ? "" : "s");
    px_render_ranges(&text, run->pending, count);
    px_discard(PyObject_CallMethod(run->options->face, "interrupt", "s", count ? text.data : ""));
    px_buf_fini(&text);
}

/* One rung. 0: wait on. -1: give up. */
static int on_interrupt(struct run *run)
{
    const size_t count = list_pending(run);
    const bool wait_on = strcmp(run->options->signal, "0") != 0 && run->handled++ == 0 &&
                         count > 0 && run->away_ms == 0;
    if (wait_on) {
        send_signal(run);
        say_what_was_sent(run, count);
    } else if (count > 0) {
        say_who_is_left(run, count);
    }
    PyErr_Clear();
    return wait_on ? 0 : -1;
}

/* Runs signal handlers, and acts on what they say, or have said while events were taken: then an
 * exception is set. -1 with an exception. */
static int check_signals(struct run *run)
{
    const bool raised = PyErr_Occurred() || PyErr_CheckSignals() < 0;
    if (raised && !PyErr_ExceptionMatches(PyExc_KeyboardInterrupt))
        return -1;
    while (raised || (run->signals && *run->signals > run->handled)) {
        PyErr_Clear();
        if (on_interrupt(run) < 0) {
            run->handled = run->signals ? *run->signals : run->handled;
            raise_interrupt(run);
            return -1;
        }
        if (raised)
            break;
    }
    return 0;
}

static void raise_timeout(const struct run *run, size_t count)
{
    struct px_buf text = {0};
    px_buf_printf(&text, "%zu of %zu engine%s did not end within %d s", count, run->count,
                  run->count == 1 ? "" : "s",
                  (int)run->options->timeout + run->timed_out * GRACE_MS / 1000);
    px_discard(PyObject_CallMethod(run->options->face, "time_out", "s", text.data));
    px_buf_fini(&text);
}

/* Past the deadline: interrupts the engines; those that do not come back in time are left. */
static int check_deadline(struct run *run)
{
    if (px_now_ms() < run->deadline_ms)
        return 0;
    const size_t count = list_pending(run);
    if (count == 0) { /* replies are here, and only output is on its way */
        run->deadline_ms = INT64_MAX;
        return 0;
    }
    if (run->timed_out || run->away_ms) {
        say_who_is_left(run, count);
        raise_timeout(run, count);
        return -1;
    }
    struct px_buf text = {0};
    px_buf_printf(&text, "%%px: time is up (--timeout=%g): interrupting engine%s ",
                  run->options->timeout, count == 1 ? "" : "s");
    px_render_ranges(&text, run->pending, count);
    px_buf_text(&text, "\n");
    const int status = px_show_note(run->show, &text);
    px_buf_fini(&text);
    run->timed_out = true;
    run->deadline_ms = px_now_ms() + GRACE_MS;
    send_signal(run);
    return status;
}

/* Shows, folded, the errors that have come while others run on. */
static int check_errors(struct run *run)
{
    if (px_now_ms() < run->errors_ms)
        return 0;
    run->errors_ms = INT64_MAX;
    PyObject *text = PyObject_CallMethod(run->options->face, "early", "OO", run->options->result,
                                         run->options->fold ? Py_True : Py_False);
    Py_ssize_t size = 0;
    const char *utf8 = text ? PyUnicode_AsUTF8AndSize(text, &size) : NULL;
    int status = utf8 ? 0 : -1;
    if (size > 0) {
        struct px_buf note = {0};
        px_buf_append(&note, utf8, (size_t)size);
        status = px_show_note(run->show, &note);
        px_buf_fini(&note);
    }
    Py_XDECREF(text);
    return status;
}

/* Raises an error where nobody will come back. */
static int check_cluster(struct run *run)
{
    return px_discard(
        PyObject_CallMethod(run->options->face, "check_cluster", "O", run->options->result));
}

/* Says that the controller is gone, and when it is back. */
static int check_contact(struct run *run)
{
    int64_t since_ms, left_ms;
    const bool told = run->away_ms != 0;
    const bool away = phalanx_away(run->client, &since_ms, &left_ms) &&
                      since_ms >= PHALANX_AWAY_MS && !(told && run->answered);
    if (away && check_cluster(run) < 0)
        return -1;
    struct px_buf text = {0};
    if (!away && told) {
        px_render_back(&text, (double)run->away_ms / 1000);
    } else if (away && !told) {
        char until[16];
        const time_t end = time(NULL) + (time_t)(left_ms / 1000);
        struct tm local;
        strftime(until, sizeof until, "%H:%M:%S", localtime_r(&end, &local));
        px_render_away(&text, until, !run->options->background);
    }
    run->answered = false;
    run->away_ms = away ? since_ms : 0;
    const int status = away != told ? px_show_note(run->show, &text) : 0;
    px_buf_fini(&text);
    return status;
}

/* ---- counting interrupts -------------------------------------------------------------------- */

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
 * long as the handler returned, or there is NULL, without an exception. It is _signal that is
 * called, in which no line of Python can be interrupted. */
static PyObject *count_interrupts(struct run *run)
{
    PyObject *module = PyImport_ImportModule("_signal");
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
    PyObject *module = PyImport_ImportModule("_signal");
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

/* ---- watching ----------------------------------------------------------------------------------
 */

static int64_t time_to_wait(const struct run *run)
{
    const int64_t now_ms = px_now_ms(), show_ms = px_show_next_ms(run->show);
    int64_t next_ms = now_ms + SLICE_MS;
    next_ms = show_ms < next_ms ? show_ms : next_ms;
    next_ms = run->deadline_ms < next_ms ? run->deadline_ms : next_ms;
    next_ms = run->errors_ms < next_ms ? run->errors_ms : next_ms;
    return next_ms > now_ms ? next_ms - now_ms : 0;
}

static bool is_over(const struct run *run, enum phalanx_code code)
{
    return code == PHALANX_ECLOSED || phalanx_finished(run->result) == run->count;
}

static int watch(struct run *run)
{
    bool over = false;
    while (!over) {
        const int64_t timeout_ms = time_to_wait(run);
        PyThreadState *state = PyEval_SaveThread();
        const enum phalanx_code code = phalanx_wait(run->result, PHALANX_SHOWABLE, timeout_ms);
        PyEval_RestoreThread(state);
        over = is_over(run, code); /* asked before the events are taken: then they are all here */
        const int taken = drain(run);
        over &= taken >= 0 && taken < BATCH;
        if (check_signals(run) < 0 || (!over && check_deadline(run) < 0))
            return -1;
        if (check_contact(run) < 0 || (!over && check_errors(run) < 0))
            return -1;
        if (!over && px_show_due(run->show, run->pending, list_pending(run)) < 0)
            return -1;
    }
    return 0;
}

static int watch_interruptibly(struct run *run)
{
    if (run->options->background)
        return watch(run);
    PyObject *handler = count_interrupts(run);
    const int status = watch(run);
    return end_counting(run, handler) < 0 ? -1 : status;
}

/* ---- one run ------------------------------------------------------------------------------------
 */

/* Marks the tasks that had their reply before. */
static int read_past(struct run *run)
{
    PyObject *tasks = PyObject_GetAttrString(run->options->result, "_tasks");
    int status = tasks && PyList_Check(tasks) ? 0 : -1;
    for (size_t i = 0; status == 0 && i < run->count; i++) {
        PyObject *reply = PyObject_GetAttrString(PyList_GetItem(tasks, (Py_ssize_t)i), "reply");
        run->replied[i] = reply && reply != Py_None;
        status = reply ? 0 : -1;
        Py_XDECREF(reply);
    }
    Py_XDECREF(tasks);
    return status == 0 && run->options->replay ? px_show_past(run->show) : status;
}

/* Everything is heard once: what was filed before from the records, what is filed later as it is.
 * -1 with an exception. */
static int begin(struct run *run)
{
    PyObject *lock = PyObject_GetAttrString(run->options->result, "_lock");
    if (!lock || px_discard(PyObject_CallMethod(lock, "acquire", NULL)) < 0) {
        Py_XDECREF(lock);
        return -1;
    }
    const int status = listen(run) == 0 ? read_past(run) : -1;
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    px_discard(PyObject_CallMethod(lock, "release", NULL));
    PyErr_Restore(type, error, traceback);
    Py_DECREF(lock);
    return status;
}

/* Nothing of its errors has been shown in this cell. */
static int forget_told(struct run *run)
{
    PyObject *told = PySet_New(NULL);
    const int status = told ? PyObject_SetAttrString(run->options->result, "_told", told) : -1;
    Py_XDECREF(told);
    return status;
}

/* -1 with an exception; run_fini in any case. */
static int run_init(struct run *run)
{
    if (forget_told(run) < 0)
        return -1;
    run->raw = PyObject_GetAttrString(run->options->result, "_raw");
    PyObject *capsule = run->raw ? PyObject_CallMethod(run->raw, "capsule", NULL) : NULL;
    run->result = capsule ? PyCapsule_GetPointer(capsule, "phalanx.result") : NULL;
    Py_XDECREF(capsule);
    if (!run->result)
        return -1;
    run->client = phalanx_result_client(run->result);
    run->count = phalanx_task_count(run->result);
    run->replied = PyMem_Calloc(run->count + 1, sizeof *run->replied);
    run->pending = PyMem_Calloc(run->count + 1, sizeof *run->pending);
    if (!run->replied || !run->pending) {
        PyErr_NoMemory();
        return -1;
    }
    run->show = px_show_create(run->options, run->result);
    const double timeout = run->options->timeout;
    run->deadline_ms = timeout > 0 ? px_now_ms() + (int64_t)(timeout * 1000) : INT64_MAX;
    return begin(run);
}

static void run_fini(struct run *run)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    stop_listening(run);
    Py_CLEAR(run->listener);
    PyErr_Restore(type, error, traceback);
    px_show_destroy(run->show);
    PyMem_Free(run->pending);
    PyMem_Free(run->replied);
    Py_CLEAR(run->raw);
}

PyObject *px_follow(const struct px_follow *options)
{
    struct run run = {.options = options, .errors_ms = INT64_MAX};
    PyObject *value = NULL;
    int status = run_init(&run);
    if (status == 0 && watch_interruptibly(&run) < 0) {
        PyObject *type, *error, *traceback;
        PyErr_Fetch(&type, &error, &traceback);
        px_show_rest(run.show); /* what did arrive is shown */
        PyErr_Restore(type, error, traceback);
        status = -1;
    } else if (status == 0) {
        status = px_show_rest(run.show);
    }
    run_fini(&run);
    if (status == 0) /* raises what was raised on engines, folded */
        value = PyObject_CallMethod(options->face, "outcome", "OOO", options->result,
                                    options->fold ? Py_True : Py_False, options->screen);
    Py_XDECREF(value);
    return value ? Py_NewRef(Py_None) : NULL;
}
