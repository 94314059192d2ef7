/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * python: CPython as a language: start, stop, interrupt, fork, and the table itself.
 *
 * The interpreter is configured through PyConfig to be the program that px_python_select chose, so
 * sys.executable, sys.prefix and site-packages are that program's. Its own SIGINT handler is
 * installed: an interrupt is that signal sent to the interpreter thread, which makes
 * KeyboardInterrupt and ends blocking system calls. One that arrives when nothing runs is dropped
 * on the next entry.
 *
 * LIMIT: one that arrives in the instant between CPython's last look and a system call is acted on
 * when that call ends. CPython has no remedy; a second interrupt ends the call.
 *
 * Stopping runs what was registered with atexit but does not wait for the user's threads: a kernel
 * that is told to end must end.
 */
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "python.h"

static const char info_json[] =
    "\"implementation\": \"phalanx\", \"implementation_version\": \"" PX_VERSION "\", "
    "\"language_info\": {\"name\": \"python\", \"version\": \"" PY_VERSION "\", "
    "\"mimetype\": \"text/x-python\", "
    "\"codemirror_mode\": {\"name\": \"ipython\", \"version\": 3}, "
    "\"pygments_lexer\": \"ipython3\", \"nbconvert_exporter\": \"python\", "
    "\"file_extension\": \".py\"}, "
    "\"banner\": \"Python " PY_VERSION " on Phalanx " PX_VERSION
    ": type ? for help, %%px to run a cell on a cluster\\n\", "
    "\"help_links\": ["
    "{\"text\": \"Python Reference\", \"url\": \"https://docs.python.org/3\"}, "
    "{\"text\": \"IPython Reference\", \"url\": "
    "\"https://ipython.readthedocs.io/en/stable/\"}, "
    "{\"text\": \"NumPy Reference\", \"url\": \"https://numpy.org/doc/stable/\"}, "
    "{\"text\": \"Matplotlib Reference\", \"url\": \"https://matplotlib.org/stable/\"}]";

void px_python_append(struct px_buf *buf, PyObject *text)
{
    Py_ssize_t size = 0;
    if (!text)
        return;
    if (PyBytes_Check(text)) {
        px_buf_append(buf, PyBytes_AS_STRING(text), (size_t)PyBytes_GET_SIZE(text));
        return;
    }
    const char *data = PyUnicode_Check(text) ? PyUnicode_AsUTF8AndSize(text, &size) : NULL;
    if (data)
        px_buf_append(buf, data, (size_t)size);
    else
        PyErr_Clear();
}

/* The last resort, when even the bridge could not describe an exception. */
static void describe_plainly(struct px_outcome *out, PyObject *type, PyObject *value)
{
    const char *name = type && PyType_Check(type) ? ((PyTypeObject *)type)->tp_name : "Exception";
    PyObject *text = value ? PyObject_Str(value) : NULL;
    Py_ssize_t size = 0;
    const char *data = text ? PyUnicode_AsUTF8AndSize(text, &size) : NULL;
    PyErr_Clear();
    px_buf_text(&out->error, "\"ename\": ");
    px_buf_json_string(&out->error, name, strlen(name));
    px_buf_text(&out->error, ", \"evalue\": ");
    px_buf_json_string(&out->error, data ? data : "", (size_t)size);
    px_buf_text(&out->error, ", \"traceback\": []");
    out->unmet = strcmp(name, "UnmetDependency") == 0;
    Py_XDECREF(text);
}

void px_python_failed(struct px_python *self, const char *method, struct px_outcome *out)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (value && trace)
        PyException_SetTraceback(value, trace);
    out->failed = true;
    px_buf_clear(&out->error);
    PyObject *json =
        self->bridge && value ? PyObject_CallMethod(self->bridge, method, "(O)", value) : NULL;
    PyObject *unmet = json && PyTuple_Check(json) ? PyTuple_GET_ITEM(json, 1) : NULL;
    if (unmet) {
        px_python_append(&out->error, PyTuple_GET_ITEM(json, 0));
        out->unmet = unmet == Py_True;
    }
    PyErr_Clear();
    if (out->error.size == 0)
        describe_plainly(out, type, value);
    Py_XDECREF(json);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
}

void px_python_end_child(struct px_python *self, bool failed)
{
    if (!self->forked)
        return;
    PyErr_Clear();
    PyObject *never = PyObject_CallMethod(self->bridge, "end_child", "i", failed);
    Py_XDECREF(never);
    _exit(failed);
}

/* ---- start ---------------------------------------------------------------- */

static int refused(struct px_error *err, PyStatus status, const char *python)
{
    return px_fail(err, PX_EIO, "Python %s does not start: %s", python,
                   status.err_msg ? status.err_msg : "it asked to exit");
}

static int set_arguments(PyConfig *config, const struct px_interp_config *wanted, PyStatus *status)
{
    char *none[] = {(char *)""};
    bool given = wanted->argc > 0;
    *status = PyConfig_SetBytesArgv(config, given ? wanted->argc : 1, given ? wanted->argv : none);
    return PyStatus_Exception(*status) ? -1 : 0;
}

/* Python is to find the default of SIGTERM, whose handler is C's by now: it would be None for
 * signal(), which takes no None back from programs that restore what was there before theirs. */
static PyStatus start(const PyConfig *config)
{
    const struct sigaction usual = {.sa_handler = SIG_DFL};
    struct sigaction own;
    sigset_t term, before;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &term, &before); /* one that comes now waits for its handler */
    sigaction(SIGTERM, NULL, &own);
    if (own.sa_handler != SIG_IGN)
        sigaction(SIGTERM, &usual, NULL);
    PyStatus status = Py_InitializeFromConfig(config);
    sigaction(SIGTERM, &own, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return status;
}

static int initialize(const struct px_interp_config *wanted, struct px_error *err)
{
    int result = -1;
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.parse_argv = 0;
    config.install_signal_handlers = 1;
    config.pathconfig_warnings = 0;
    PyStatus status = PyConfig_SetBytesString(&config, &config.program_name, wanted->python);
    if (PyStatus_Exception(status))
        goto done;
    if (set_arguments(&config, wanted, &status) != 0)
        goto done;
    status = start(&config);
    if (PyStatus_Exception(status))
        goto done;
    result = 0;
done:
    PyConfig_Clear(&config);
    return result == 0 ? 0 : refused(err, status, wanted->python);
}

/* GIL. Runs an embedded file as module `name`, with a file name that tracebacks can show. */
static PyObject *load_module(const char *name, const char *file, const char *source)
{
    PyObject *module = NULL;
    PyObject *code = Py_CompileString(source, file, Py_file_input);
    if (code)
        module = PyImport_ExecCodeModuleEx(name, code, file);
    Py_XDECREF(code);
    return module;
}

/* GIL. The other files stay source until something needs them. */
static int add_sources(PyObject *module)
{
    static const struct {
        const char *name, *text;
    } sources[] = {
        {"apply_source", px_embedded_apply},
        {"comms_source", px_embedded_comms},
        {"debugger_source", px_embedded_debugger},
        {"environment_source", px_embedded_environment},
        {"history_source", px_embedded_history},
        {"kernel_source", px_embedded_kernel},
        {"line_magics_source", px_embedded_line_magics},
        {"loops_source", px_embedded_loops},
        {"output_source", px_embedded_output},
        {"placeholders_source", px_embedded_placeholders},
        {"plain_source", px_embedded_plain},
        {"shell_source", px_embedded_shell},
        {"toolkits_source", px_embedded_toolkits},
    };
    for (size_t i = 0; i < PX_COUNT(sources); i++)
        if (PyModule_AddStringConstant(module, sources[i].name, sources[i].text) != 0)
            return -1;
    return 0;
}

/* GIL. As Python names files, UTF-8 or not. NULL with an exception. */
static PyObject *path_of(const char *path)
{
    return path ? PyUnicode_DecodeFSDefault(path) : Py_NewRef(Py_None);
}

/* GIL. Builds Python's side of this host. */
static int start_bridge(struct px_python *self, const struct px_interp_config *config)
{
    self->module = px_services_create(self);
    if (!self->module || add_sources(self->module) != 0)
        return -1;
    if (PyDict_SetItemString(PyImport_GetModuleDict(), "_phalanx_host", self->module) != 0)
        return -1;
    PyObject *module = load_module("_phalanx_bridge", "<phalanx>/bridge.py", px_embedded_bridge);
    if (!module)
        return -1;
    self->bridge = PyObject_CallMethod(
        module, "Bridge", "{sNszsNszsOsO}", "profile_dir", path_of(config->profile_dir), "colors",
        config->colors, "module_dir", path_of(config->module_dir), "preload", config->preload,
        "engine", config->engine ? Py_True : Py_False, "debugger",
        config->debugger ? Py_True : Py_False);
    Py_DECREF(module);
    return self->bridge ? 0 : -1;
}

static void python_destroy(void *arg);

static void *python_create(const struct px_interp_config *config, struct px_error *err)
{
    if (initialize(config, err) != 0)
        return NULL;
    struct px_python *self = px_alloc(sizeof *self);
    atomic_init(&self->references, 1);
    self->engine = config->engine;
    self->main_thread = pthread_self();
    self->loop_fd = -1;
    pthread_mutex_init(&self->hits_lock, NULL);
    pthread_cond_init(&self->hits_done, NULL);
    if (start_bridge(self, config) != 0) {
        struct px_outcome out = {0};
        px_python_failed(self, "describe", &out);
        px_fail(err, PX_EIO, "Python starts, but its bridge does not: %s", out.error.data);
        px_outcome_fini(&out);
        px_python_leave(self);
        python_destroy(self);
        return NULL;
    }
    px_python_leave(self);
    return self;
}

/* GIL. Calls a method of the bridge for its effect; `format` as for Py_BuildValue, a tuple. A
 * failure is one line in the log. */
static void tell_bridge(struct px_python *self, const char *method, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    PyObject *list = Py_VaBuildValue(format, args);
    va_end(args);
    PyObject *function = list ? PyObject_GetAttrString(self->bridge, method) : NULL;
    PyObject *result = function ? PyObject_CallObject(function, list) : NULL;
    if (!result) {
        struct px_outcome out = {0};
        px_python_failed(self, "describe", &out);
        px_log(PX_WARN, "python-host", "call=%s %s", method, out.error.data);
        px_outcome_fini(&out);
    }
    Py_XDECREF(list);
    Py_XDECREF(function);
    Py_XDECREF(result);
}

static void python_attach(void *arg, const struct px_interp_host *host, int engine_id,
                          const char *session)
{
    struct px_python *self = arg;
    self->host = host;
    px_python_enter(self);
    tell_bridge(self, "attach", "(iz)", engine_id, session);
    px_python_leave(self);
}

static void python_destroy(void *arg)
{
    struct px_python *self = arg;
    if (!self)
        return;
    px_python_enter(self);
    bool alone = true;
    if (self->bridge) {
        PyObject *result = PyObject_CallMethod(self->bridge, "stop", NULL);
        alone = result == Py_True;
        PyErr_Clear();
        Py_XDECREF(result);
    }
    self->host = NULL;
    if (!alone)
        return; /* the GIL stays here, so that the user's threads stand still to the end */
    px_apply_destroy(self);
    Py_CLEAR(self->bridge);
    Py_CLEAR(self->module);
    Py_CLEAR(self->parent_variable);
    Py_CLEAR(self->parent_type);
    px_loan_collect(self);
    px_thread_wait_for_hits(self);
    px_thread_forget(self);
    Py_FinalizeEx();
    px_python_unref(self);
}

/* ---- idle, fork ----------------------------------------------------- */

/* faulthandler's handlers need no GIL: they read the frames as they are. */
static int python_trace(void *arg, int signo, int stacks_fd, int last_fd, struct px_error *err)
{
    struct px_python *self = arg;
    px_python_enter(self);
    PyObject *result =
        PyObject_CallMethod(self->bridge, "trace", "(iii)", signo, stacks_fd, last_fd);
    if (!result)
        px_fail(err, PX_EIO, "faulthandler does not start");
    const int status = result ? 0 : -1;
    PyErr_Clear();
    Py_XDECREF(result);
    px_python_leave(self);
    return status;
}

/* An apply does not look after the event loop: many may come, one upon the other. */
static void note_background(struct px_python *self)
{
    if (!atomic_exchange(&self->applied, false))
        return;
    px_python_enter(self);
    tell_bridge(self, "note_background", "()");
    px_python_leave(self);
}

static void python_idle(void *arg, int fd)
{
    struct px_python *self = arg;
    note_background(self);
    struct pollfd wait[] = {{.fd = fd, .events = POLLIN}, {.fd = self->loop_fd, .events = POLLIN}};
    const int ready = poll(wait, PX_COUNT(wait), self->background ? 0 : -1);
    if (ready < 0 || wait[0].revents || (ready == 0 && !self->background))
        return; /* a signal ends the wait, too: the caller looks again */
    px_python_enter(self);
    tell_bridge(self, "idle", "(i)", fd);
    px_python_end_child(self, false);
    px_python_leave(self);
}

static int python_warm(void *arg, struct px_error *err)
{
    struct px_python *self = arg;
    int status = 0;
    px_python_enter(self);
    PyObject *result = PyObject_CallMethod(self->bridge, "warm", NULL);
    if (!result) {
        struct px_outcome out = {0};
        px_python_failed(self, "describe", &out);
        status = px_fail(err, PX_EIO, "Python does not warm up: %s", out.error.data);
        px_outcome_fini(&out);
    } else if (PyUnicode_Check(result)) {
        const char *why = PyUnicode_AsUTF8(result);
        status = px_fail(err, PX_EINVAL, "--preload: %.300s", why ? why : "?");
        PyErr_Clear();
    }
    Py_XDECREF(result);
    px_python_leave(self);
    return status;
}

static void python_before_fork(void *arg)
{
    px_python_enter(arg);
    PyOS_BeforeFork();
}

static void python_after_fork_parent(void *arg)
{
    PyOS_AfterFork_Parent();
    px_python_leave(arg);
}

static void python_after_fork_child(void *arg)
{
    struct px_python *self = arg;
    self->main_thread = pthread_self();
    PyOS_AfterFork_Child();
    self->forked = false; /* by us, not by the user's code */
    tell_bridge(self, "after_fork", "()");
    px_python_leave(self);
}

/* A form of messages, and whose code this interpreter runs: bytecode is of a minor version. */
#define FEATURES "\"pickle5\", \"python" PX_TEXT(PY_MAJOR_VERSION) "." PX_TEXT(PY_MINOR_VERSION) "\""

const struct px_interp_ops px_interp_python = {
    .name = "python",
    .info_json = info_json,
    .features = FEATURES,
    .select = px_python_select,
    .debugs = px_python_debugs,
    .create = python_create,
    .attach = python_attach,
    .destroy = python_destroy,
    .execute = px_cell_execute,
    .apply = px_apply_run,
    .query = px_cell_query,
    .comm = px_cell_comm,
    .clear = px_cell_clear,
    .interrupt = px_python_interrupt,
    .trace = python_trace,
    .thread_begin = px_thread_begin,
    .thread_end = px_thread_end,
    .interrupt_thread = px_thread_interrupt,
    .idle = python_idle,
    .warm = python_warm,
    .before_fork = python_before_fork,
    .after_fork_parent = python_after_fork_parent,
    .after_fork_child = python_after_fork_child,
};
