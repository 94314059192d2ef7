/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The type Client of phalanx._phalanx: connecting, engines, submitting, the hub.
 */
#include "extension.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* ---- Client --------------------------------------------------------------------------- */

struct client {
    PyObject_HEAD struct px_handle *handle;
};

/* The handle's client is there until Python code runs next, which may close it: arguments are read
 * before. */
static struct px_handle *handle_of(PyObject *object, struct px_module **module)
{
    *module = px_module_of(Py_TYPE(object));
    struct client *self = (struct client *)object;
    if (self->handle && !px_handle_inherited(self->handle))
        px_handle_sweep(self->handle);
    return *module && px_handle_check(self->handle, (*module)->closed_error) ? self->handle : NULL;
}

static PyObject *raise_phalanx(const struct phalanx_error *err, PyObject *closed_error)
{
    PyObject *type = PyExc_OSError;
    if (err->code == PHALANX_ETIME)
        type = PyExc_TimeoutError;
    else if (err->code == PHALANX_ENOENT)
        type = PyExc_FileNotFoundError;
    else if (err->code == PHALANX_EINVAL)
        type = PyExc_ValueError;
    else if (err->code == PHALANX_ECLOSED)
        type = closed_error;
    PyErr_SetString(type, err->text);
    return NULL;
}

static phalanx_client *connect_python(struct phalanx_options *options, int64_t timeout_ms,
                                      PyObject *closed_error)
{
    const int64_t deadline = px_clock_ms() + (timeout_ms > 0 ? timeout_ms : 10000);
    for (;;) {
        struct phalanx_error err = {0};
        options->timeout_ms = deadline - px_clock_ms();
        if (options->timeout_ms < 1)
            options->timeout_ms = 1;
        PyThreadState *state = PyEval_SaveThread();
        phalanx_client *client = phalanx_connect(options, &err);
        PyEval_RestoreThread(state);
        if (client)
            return client;
        if (PyErr_CheckSignals() < 0)
            return NULL;
        if (err.code != PHALANX_EINTR) {
            raise_phalanx(&err, closed_error);
            return NULL;
        }
    }
}

/* For PyArg_Parse: a path as bytes, as the system has it, or NULL for None. */
static int path_or_none(PyObject *given, void *out)
{
    if (given != Py_None)
        return PyUnicode_FSConverter(given, out);
    *(PyObject **)out = NULL;
    return 1;
}

enum { FILE_PATH, PROFILE, PROFILE_DIR, IPYTHON_DIR, PATH_COUNT };

/* What phalanx_connect is told, of objects that `paths` holds. */
static int read_options(PyObject *args, PyObject *kwargs, PyObject *paths[PATH_COUNT],
                        struct phalanx_options *options, int64_t *timeout_ms)
{
    static char *names[] = {"file",       "profile", "profile_dir", "ipython_dir",
                            "cluster_id", "timeout", NULL};
    const char **const given[PATH_COUNT] = {&options->file, &options->profile,
                                            &options->profile_dir, &options->ipython_dir};
    PyObject *timeout = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O&O&O&O&zO:Client", names, path_or_none,
                                     &paths[FILE_PATH], path_or_none, &paths[PROFILE], path_or_none,
                                     &paths[PROFILE_DIR], path_or_none, &paths[IPYTHON_DIR],
                                     &options->cluster_id, &timeout))
        return -1;
    for (int i = 0; i < PATH_COUNT; i++)
        *given[i] = paths[i] ? PyBytes_AS_STRING(paths[i]) : NULL;
    return px_timeout(timeout, timeout_ms) ? 0 : -1;
}

static int client_init(PyObject *object, PyObject *args, PyObject *kwargs)
{
    struct client *self = (struct client *)object;
    struct px_module *module = px_module_of(Py_TYPE(object));
    struct phalanx_options options = {0};
    PyObject *paths[PATH_COUNT] = {NULL};
    int64_t timeout_ms;
    phalanx_client *client = NULL;
    if (self->handle)
        PyErr_SetString(PyExc_RuntimeError, "already connected");
    else if (module && read_options(args, kwargs, paths, &options, &timeout_ms) == 0)
        client = connect_python(&options, timeout_ms, module->closed_error);
    for (int i = 0; i < PATH_COUNT; i++)
        Py_XDECREF(paths[i]);
    if (client)
        self->handle = px_handle_create(client);
    return self->handle && client ? 0 : -1;
}

static void client_dealloc(PyObject *object)
{
    struct client *self = (struct client *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->handle) {
        px_handle_close(self->handle, false);
        px_handle_unref(self->handle);
    }
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *client_close(PyObject *object, PyObject *args)
{
    struct client *self = (struct client *)object;
    int ending = 0;
    if (!PyArg_ParseTuple(args, "|p:close", &ending))
        return NULL;
    if (self->handle)
        px_handle_close(self->handle, ending);
    Py_RETURN_NONE;
}

static PyObject *client_ids(PyObject *object, PyObject *args)
{
    struct px_module *module;
    const char *feature = NULL;
    if (!PyArg_ParseTuple(args, "|s:ids", &feature))
        return NULL;
    struct px_handle *handle = handle_of(object, &module);
    if (!handle)
        return NULL;
    const size_t room = phalanx_engines(handle->client, NULL, 0) + 16;
    int *ids = PyMem_Calloc(room, sizeof *ids);
    if (!ids)
        return PyErr_NoMemory();
    const size_t known = phalanx_engines_with(handle->client, feature, ids, room);
    const size_t count = known < room ? known : room;
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list && i < count; i++)
        PyList_SET_ITEM(list, (Py_ssize_t)i, PyLong_FromLong(ids[i]));
    PyMem_Free(ids);
    return list;
}

/* -1 with an exception for what is no int of C. PyLong_AsInt is public only from Python 3.13. */
static int int_of(PyObject *number)
{
    const long value = PyLong_AsLong(number);
    if (value >= INT_MIN && value <= INT_MAX)
        return (int)value;
    PyErr_SetString(PyExc_OverflowError, "the number is too large for an engine's id");
    return -1;
}

static PyObject *client_uuid(PyObject *object, PyObject *id)
{
    struct px_module *module;
    char uuid[256];
    const int engine = int_of(id);
    if (engine == -1 && PyErr_Occurred())
        return NULL;
    struct px_handle *handle = handle_of(object, &module);
    if (!handle)
        return NULL;
    if (phalanx_engine_uuid(handle->client, engine, uuid, sizeof uuid) != PHALANX_OK)
        Py_RETURN_NONE;
    return PyUnicode_FromString(uuid);
}

struct engine_wait {
    struct px_handle *handle;
    phalanx_client *client;
    size_t count;
};

static enum phalanx_code wait_engines(void *ctx, int64_t timeout_ms)
{
    const struct engine_wait *wait = ctx;
    return phalanx_wait_engines(wait->client, wait->count, timeout_ms);
}

static int warn_when_away(void *ctx)
{
    const struct engine_wait *wait = ctx;
    int64_t left_ms;
    if (!px_newly_away(wait->handle, wait->client, &left_ms))
        return 0;
    return PyErr_WarnEx(PyExc_RuntimeWarning,
                        "the controller cannot be reached; is it still there? (pxcluster list)", 1);
}

static PyObject *client_wait_engines(PyObject *object, PyObject *args)
{
    struct px_module *module;
    PyObject *seconds = Py_None;
    Py_ssize_t count;
    int64_t timeout_ms;
    if (!PyArg_ParseTuple(args, "n|O:wait_engines", &count, &seconds) ||
        !px_timeout(seconds, &timeout_ms))
        return NULL;
    struct px_handle *handle = handle_of(object, &module);
    if (!handle)
        return NULL;
    struct engine_wait wait = {handle, handle->client, count > 0 ? (size_t)count : 0};
    phalanx_hold(wait.client);
    const int code = px_wait_python(handle, wait_engines, warn_when_away, &wait, timeout_ms);
    phalanx_release(wait.client);
    if (code < 0)
        return NULL;
    if (code == PHALANX_ECLOSED) {
        PyErr_SetString(module->closed_error, "the client was closed, or its controller shut down");
        return NULL;
    }
    return PyBool_FromLong(code == PHALANX_OK);
}

/* None, or a sequence of ids, as an array that the caller frees. False with an exception. */
static bool targets_from(PyObject *sequence, int **ids, size_t *count)
{
    *ids = NULL;
    *count = 0;
    if (!sequence || sequence == Py_None)
        return true;
    PyObject *fast = PySequence_Fast(sequence, "targets must be a sequence of engine ids");
    if (!fast)
        return false;
    const Py_ssize_t size = PySequence_Fast_GET_SIZE(fast);
    *ids = PyMem_Calloc((size_t)size + 1, sizeof **ids);
    for (Py_ssize_t i = 0; *ids && i < size && !PyErr_Occurred(); i++)
        (*ids)[i] = int_of(PySequence_Fast_GET_ITEM(fast, i));
    *count = (size_t)size;
    Py_DECREF(fast);
    if (*ids && !PyErr_Occurred())
        return true;
    if (!*ids)
        PyErr_NoMemory();
    PyMem_Free(*ids);
    return false;
}

static PyObject *client_feature(PyObject *object, PyObject *args)
{
    struct px_module *module;
    const char *feature;
    PyObject *targets = Py_None;
    int *ids;
    size_t count;
    if (!PyArg_ParseTuple(args, "s|O:feature", &feature, &targets) ||
        !targets_from(targets, &ids, &count))
        return NULL;
    struct px_handle *handle = handle_of(object, &module);
    const bool offered = handle && phalanx_feature(handle->client, ids, count, feature);
    PyMem_Free(ids);
    return handle ? PyBool_FromLong(offered) : NULL;
}

static PyObject *client_features(PyObject *object, PyObject *engine)
{
    struct px_module *module;
    const int id = int_of(engine);
    struct px_handle *handle = PyErr_Occurred() ? NULL : handle_of(object, &module);
    if (!handle)
        return NULL;
    char *text = phalanx_engine_features(handle->client, id);
    PyObject *features = text ? PyUnicode_FromString(text) : Py_NewRef(Py_None);
    free(text);
    return features;
}

static enum phalanx_code wait_answer(void *ctx, int64_t timeout_ms)
{
    return phalanx_wait(ctx, PHALANX_REPLIES, timeout_ms);
}

/* phalanx_query, in whose wait signals' Python handlers run. */
static PyObject *client_query(PyObject *object, PyObject *args)
{
    struct px_module *module;
    struct phalanx_request request = {.type = PHALANX_QUERY};
    PyObject *seconds = Py_None, *text = NULL;
    int64_t timeout_ms;
    if (!PyArg_ParseTuple(args, "s|zO:query", &request.message, &request.content, &seconds) ||
        !px_timeout(seconds, &timeout_ms))
        return NULL;
    struct px_handle *handle = handle_of(object, &module);
    if (!handle)
        return NULL;
    struct phalanx_error err = {0};
    phalanx_result *result = phalanx_submit(handle->client, &request, &err);
    if (!result)
        return raise_phalanx(&err, module->closed_error);
    struct phalanx_event event;
    const int code = px_wait_python(handle, wait_answer, NULL, result, timeout_ms);
    if (code == PHALANX_OK && phalanx_next(result, 0, &event) == PHALANX_OK && !event.lost)
        text = PyUnicode_DecodeUTF8(event.content, (Py_ssize_t)strlen(event.content), "replace");
    else if (code == PHALANX_ECLOSED)
        PyErr_SetString(module->closed_error, "The client was closed");
    else if (code >= 0)
        PyErr_Format(PyExc_TimeoutError, "The hub has not answered a %s", request.message);
    phalanx_result_free(result);
    return text;
}

/* ---- Client.submit ------------------------------------------------------------------------ */

static PyObject *submit(struct px_module *module, struct px_handle *handle, phalanx_client *client,
                        const struct phalanx_request *request, PyObject *into)
{
    struct phalanx_error err = {0};
    if (into != Py_None) {
        if (phalanx_add(px_result_of(into), request, &err) == PHALANX_OK)
            return Py_NewRef(into);
    } else {
        phalanx_result *result = phalanx_submit(client, request, &err);
        if (result)
            return px_result_wrap_new(module, handle, result);
    }
    if (err.code == PHALANX_ENOENT)
        return PyErr_Format(PyExc_IndexError, "%s", err.text);
    if (err.code == PHALANX_ECLOSED)
        px_handle_stop_others(handle);
    return raise_phalanx(&err, module->closed_error);
}

static PyObject *client_submit(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"type",    "route",    "targets", "code", "silent",   "message",
                            "content", "metadata", "buffers", "into", "coalesce", NULL};
    struct px_module *module;
    struct px_handle *handle = handle_of(object, &module);
    PyObject *targets = Py_None, *buffers = Py_None, *into = Py_None;
    int type, route = PHALANX_DIRECT, silent = 0, coalesce = 0;
    struct phalanx_request request = {0};
    if (!handle || !PyArg_ParseTupleAndKeywords(args, kwargs, "i|iOzpzzzOOp:submit", names, &type,
                                                &route, &targets, &request.code, &silent,
                                                &request.message, &request.content,
                                                &request.metadata, &buffers, &into, &coalesce))
        return NULL;
    if (into != Py_None && !Py_IS_TYPE(into, module->result_type)) {
        PyErr_SetString(PyExc_TypeError, "into must be a Result");
        return NULL;
    }
    request.type = (enum phalanx_type)type;
    request.route = (enum phalanx_route)route;
    request.silent = silent;
    request.coalesce = coalesce;
    struct phalanx_buffer *items;
    int *ids;
    if (!targets_from(targets, &ids, &request.target_count))
        return NULL;
    if (!px_handle_check(handle, module->closed_error)) {
        PyMem_Free(ids);
        return NULL;
    }
    phalanx_client *client = handle->client;
    phalanx_hold(client); /* buffers may be Python code, too */
    PyObject *result = NULL;
    if (px_buffers_lend(handle, buffers, &items, &request.buffer_count)) {
        request.targets = ids;
        request.buffers = items;
        result = submit(module, handle, client, &request, into);
        px_buffers_submitted(handle, items, request.buffer_count);
    }
    phalanx_release(client);
    PyMem_Free(ids);
    return result;
}

/* ---- the rest of Client --------------------------------------------------------------------- */

static PyObject *client_notices(PyObject *object, PyObject *seconds)
{
    struct px_module *module;
    struct px_handle *handle = handle_of(object, &module);
    int64_t timeout_ms;
    if (!handle || !px_timeout(seconds, &timeout_ms))
        return NULL;
    return px_notices_take(handle, timeout_ms);
}

static PyObject *client_late(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct px_module *module;
    struct px_handle *handle = handle_of(object, &module);
    phalanx_result *result = handle ? phalanx_late(handle->client) : NULL;
    if (result)
        return px_result_wrap_new(module, handle, result);
    if (handle)
        PyErr_SetString(module->closed_error, "The client was closed");
    return NULL;
}

static PyObject *client_closed(PyObject *object, void *unused)
{
    (void)unused;
    const struct client *self = (struct client *)object;
    return PyBool_FromLong(!self->handle || !self->handle->client);
}

static PyObject *client_file(PyObject *object, void *unused)
{
    (void)unused;
    struct px_module *module;
    struct px_handle *handle = handle_of(object, &module);
    return handle ? PyUnicode_DecodeFSDefault(phalanx_file(handle->client)) : NULL;
}

static PyObject *client_session(PyObject *object, void *unused)
{
    (void)unused;
    struct px_module *module;
    struct px_handle *handle = handle_of(object, &module);
    return handle ? PyUnicode_FromString(phalanx_session(handle->client)) : NULL;
}

static PyMethodDef client_methods[] = {
    {"close", client_close, METH_VARARGS,
     "close(ending=False): closes the connection. What is outstanding fails; at the interpreter's "
     "`ending` other threads that use it are held a moment, and learn of it only then."},
    {"ids", client_ids, METH_VARARGS,
     "ids(feature=None): of the engines registered now, or of those that offer it."},
    {"features", client_features, METH_O, "What an engine offers, as JSON; None without it."},
    {"uuid", client_uuid, METH_O, "The uuid of an engine, or None."},
    {"wait_engines", client_wait_engines, METH_VARARGS,
     "wait_engines(count, timeout=None): whether so many were there within `timeout` seconds."},
    {"feature", client_feature, METH_VARARGS,
     "feature(name, targets=None): whether all of these engines offer it."},
    {"query", client_query, METH_VARARGS,
     "query(type, content=None, timeout=None): the hub's answer, as JSON text."},
    {"submit", (PyCFunction)(void (*)(void))client_submit, METH_VARARGS | METH_KEYWORDS,
     "submit(type, route=DIRECT, targets=None, code=None, silent=False, message=None, "
     "content=None, metadata=None, buffers=None, into=None, coalesce=False): sends a request; a "
     "Result."},
    {"notices", client_notices, METH_O,
     "notices(timeout): the keys given to Result.notify whose results have all replies; waits for "
     "the first one. None at the end of `timeout` seconds, or of the client."},
    {"late", client_late, METH_NOARGS,
     "late(): a Result that never ends, of output that comes when its task has ended; each Event "
     "says by `parent` whose it is."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef client_properties[] = {
    {"closed", client_closed, NULL, "Whether close() was called.", NULL},
    {"file", client_file, NULL, "The connection file in use.", NULL},
    {"session", client_session, NULL, "The session id of what this client sends.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot client_slots[] = {
    {Py_tp_init, client_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, client_dealloc},
    {Py_tp_methods, client_methods},
    {Py_tp_getset, client_properties},
    {Py_tp_doc, "Client(file=None, profile=None, profile_dir=None, ipython_dir=None, "
                "cluster_id=None, timeout=None): a connection to a controller."},
    {0, NULL},
};

PyType_Spec px_client_spec = {
    .name = "phalanx._phalanx.Client",
    .basicsize = sizeof(struct client),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = client_slots,
};
