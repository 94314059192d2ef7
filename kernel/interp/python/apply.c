/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * apply: calls a function that came as buffers, and gives its result back as buffers.
 *
 * Two forms arrive. ipyparallel's: [function..., info, argument..., keyword argument...], each
 * object a pickle and then the large buffers that were taken out of it; info says how many. Our
 * own, marked in the metadata: one pickle of (function, args, kwargs) and its out-of-band buffers.
 *
 * Small tasks are the hot path. The pickle of a function is looked up by its bytes and gives a
 * fresh function from remembered code, or, if it names one, what its module has under that name
 * now; arguments and results that need nothing but pickle go through it directly. Whatever else
 * there is goes to apply.py.
 *
 * Large buffers are neither copied in (the request's memory is kept as long as an object uses it,
 * if the host offers that) nor out (px_loan).
 */
#define _GNU_SOURCE /* memmem */
#include <stdlib.h>
#include <string.h>

#include "python.h"

#define MOST_REMEMBERED 1024         /* functions, and descriptions of arguments */
#define LONGEST_REMEMBERED (1 << 16) /* bytes of pickle of one */
#define SMALL 1024                   /* ipyparallel takes larger buffers out of pickles */
#define FUNCTIONS "_pxload"          /* the module of our own loads */
#define LOADS_CODE 0x70786c64        /* and its number in copyreg's registry: "pxld" */
#define COPIED 4096                  /* results up to this are copied: cheaper than a loan */

struct px_apply {
    PyObject *slow; /* apply.Apply */
    PyObject *loads, *dumps;
    PyObject *framed;          /* the builtins that look at the frame which calls them */
    PyObject *buffers_keyword; /* ("buffers",) */
    PyObject *functions;       /* bytes of a pickle -> what Apply.template_of gave */
    PyObject *infos;           /* bytes -> (nargs, narg_bufs, kw_keys) */
    PyTypeObject *kept;
};

/* One request. */
struct call {
    struct px_python *python;
    struct px_apply *apply;
    const struct px_span *buffers;
    size_t count;
    PyObject *function, *args, *kwargs;
};

/* ---- memory of the request, kept by an object --------------------------------- */

struct kept {
    PyObject ob_base;
    struct px_buffer buffer;
};

static int kept_get(PyObject *arg, Py_buffer *view, int flags)
{
    struct kept *self = (struct kept *)arg;
    return PyBuffer_FillInfo(view, arg, (void *)self->buffer.data, (Py_ssize_t)self->buffer.size, 0,
                             flags);
}

static void kept_dealloc(PyObject *arg)
{
    struct kept *self = (struct kept *)arg;
    PyTypeObject *type = Py_TYPE(arg);
    if (self->buffer.release)
        self->buffer.release(self->buffer.hint);
    type->tp_free(arg);
    Py_DECREF(type);
}

static PyType_Slot kept_slots[] = {
    {Py_bf_getbuffer, kept_get},
    {Py_tp_dealloc, kept_dealloc},
    {0},
};

static PyType_Spec kept_spec = {
    .name = "_phalanx_host.RequestBuffer",
    .basicsize = sizeof(struct kept),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = kept_slots,
};

/* Buffer `index` as an object that outlives the request. It can be written to, as arrays are, but
 * for small ones as `bytes`: pickles. */
static PyObject *keep(struct call *call, size_t index, bool as_bytes)
{
    const struct px_interp_host *host = call->python->host;
    struct px_span bytes = call->buffers[index];
    struct px_buffer buffer;
    if (bytes.size > SMALL && host && host->keep_buffer &&
        host->keep_buffer(host->ctx, index, &buffer)) {
        struct kept *self = PyObject_New(struct kept, call->apply->kept);
        if (!self) {
            buffer.release(buffer.hint);
            return NULL;
        }
        self->buffer = buffer;
        return (PyObject *)self;
    }
    if (as_bytes && bytes.size <= SMALL)
        return PyBytes_FromStringAndSize(bytes.data, (Py_ssize_t)bytes.size);
    return PyByteArray_FromStringAndSize(bytes.data, (Py_ssize_t)bytes.size);
}

static PyObject *keep_from(struct call *call, size_t first, bool as_bytes)
{
    PyObject *list = PyList_New((Py_ssize_t)(call->count - first));
    for (size_t i = first; list && i < call->count; i++) {
        PyObject *item = keep(call, i, as_bytes);
        if (!item)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)(i - first), item);
    }
    return list;
}

/* ---- unpacking ---------------------------------------------------------------- */

/* The object of a pickle that is only borrowed: what it holds is copied out of it. */
static PyObject *loads(struct px_apply *apply, struct px_span pickle, PyObject *buffers)
{
    PyObject *view =
        PyMemoryView_FromMemory((char *)pickle.data, (Py_ssize_t)pickle.size, PyBUF_READ);
    if (!view)
        return NULL;
    PyObject *args[] = {view, buffers};
    PyObject *value =
        PyObject_Vectorcall(apply->loads, args, 1, buffers ? apply->buffers_keyword : NULL);
    Py_DECREF(view);
    return value;
}

static int remember(PyObject *dict, PyObject *key, PyObject *value)
{
    if (PyBytes_GET_SIZE(key) > LONGEST_REMEMBERED)
        return 0;
    if (PyDict_GET_SIZE(dict) >= MOST_REMEMBERED)
        PyDict_Clear(dict);
    return PyDict_SetItem(dict, key, value);
}

/* A function like those of the template: itself, or
 * ((code, globals, name, defaults), annotations or None, keyword defaults or None). */
static PyObject *build_function(PyObject *template)
{
    if (!PyTuple_Check(template))
        return Py_NewRef(template);
    PyObject *dicts[2] = {NULL, NULL};
    PyObject *function =
        PyObject_Call((PyObject *)&PyFunction_Type, PyTuple_GET_ITEM(template, 0), NULL);
    for (int i = 0; function && i < 2; i++) {
        PyObject *given = PyTuple_GET_ITEM(template, i + 1);
        if (given == Py_None)
            continue;
        dicts[i] = PyDict_Copy(given);
        if (!dicts[i])
            Py_CLEAR(function);
    }
    if (function && dicts[0])
        PyFunction_SetAnnotations(function, dicts[0]);
    if (function && dicts[1])
        PyFunction_SetKwDefaults(function, dicts[1]);
    Py_XDECREF(dicts[0]);
    Py_XDECREF(dicts[1]);
    return function;
}

/* The function in buffer 0, if its pickle alone says what it is: 1; 0 if not; -1: exception. */
static int find_function(struct call *call)
{
    struct px_apply *apply = call->apply;
    struct px_span pickle = call->buffers[0];
    int result = -1;
    PyObject *key = PyBytes_FromStringAndSize(pickle.data, (Py_ssize_t)pickle.size);
    if (!key)
        return -1;
    PyObject *template = Py_XNewRef(PyDict_GetItemWithError(apply->functions, key));
    if (!template && !PyErr_Occurred()) {
        template = PyObject_CallMethod(apply->slow, "template", "O", key);
        if (template && remember(apply->functions, key, template) != 0)
            Py_CLEAR(template);
    }
    if (template == Py_True)
        call->function = loads(apply, pickle, NULL);
    else if (template && template != Py_None)
        call->function = build_function(template);
    if (call->function)
        result = 1;
    else if (template == Py_None)
        result = 0;
    Py_XDECREF(template);
    Py_DECREF(key);
    return result;
}

/* The function, wherever it ends: sets `next` to the buffer behind it. */
static int unpack_function(struct call *call, size_t *next)
{
    int found = find_function(call);
    *next = 1;
    if (found != 0)
        return found > 0 ? 0 : -1;
    PyObject *list = keep_from(call, 0, true);
    PyObject *answer = list ? PyObject_CallMethod(call->apply->slow, "function", "O", list) : NULL;
    PyObject *function;
    Py_ssize_t used = 0;
    if (answer && PyArg_ParseTuple(answer, "On", &function, &used))
        call->function = Py_NewRef(function);
    Py_XDECREF(list);
    Py_XDECREF(answer);
    *next = (size_t)used;
    return call->function ? 0 : -1;
}

/* {"nargs": 1, "narg_bufs": 1, "kw_keys": []} as a tuple; a new reference. */
static PyObject *read_info(struct px_apply *apply, struct px_span pickle)
{
    PyObject *key = PyBytes_FromStringAndSize(pickle.data, (Py_ssize_t)pickle.size);
    PyObject *tuple = key ? Py_XNewRef(PyDict_GetItemWithError(apply->infos, key)) : NULL;
    if (!key || tuple || PyErr_Occurred()) {
        Py_XDECREF(key);
        return tuple;
    }
    PyObject *info = loads(apply, pickle, NULL);
    if (info && PyDict_Check(info)) {
        PyObject *nargs = PyDict_GetItemString(info, "nargs");
        PyObject *buffers = PyDict_GetItemString(info, "narg_bufs");
        PyObject *keys = PyDict_GetItemString(info, "kw_keys");
        if (nargs && buffers && keys && PyLong_Check(nargs) && PyLong_Check(buffers) &&
            PyList_Check(keys))
            tuple = Py_BuildValue("OON", nargs, buffers, PyList_AsTuple(keys));
    }
    if (tuple && remember(apply->infos, key, tuple) != 0)
        Py_CLEAR(tuple);
    if (!tuple && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "the description of the arguments is not one");
    Py_XDECREF(info);
    Py_DECREF(key);
    return tuple;
}

static bool mentions(const struct px_span *buffer, const char *name)
{
    return memmem(buffer->data, buffer->size, name, strlen(name)) != NULL;
}

/* Whether everything from `first` on is a pickle that needs nothing but pickle: it names neither
 * ipyparallel's classes nor the module that dill makes up. */
static bool all_plain(const struct call *call, size_t first)
{
    for (size_t i = first; i < call->count; i++)
        if (mentions(&call->buffers[i], "ipyparallel") ||
            mentions(&call->buffers[i], "__builtin__"))
            return false;
    return true;
}

static int unpack_plain(struct call *call, size_t first, Py_ssize_t nargs, PyObject *keys)
{
    Py_ssize_t named = PyTuple_GET_SIZE(keys);
    call->args = PyTuple_New(nargs);
    call->kwargs = named > 0 ? PyDict_New() : NULL;
    if (!call->args || (named > 0 && !call->kwargs))
        return -1;
    for (Py_ssize_t i = 0; i < nargs; i++) {
        PyObject *value = loads(call->apply, call->buffers[first + (size_t)i], NULL);
        if (!value)
            return -1;
        PyTuple_SET_ITEM(call->args, i, value);
    }
    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *value = loads(call->apply, call->buffers[first + (size_t)(nargs + i)], NULL);
        int status = value ? PyDict_SetItem(call->kwargs, PyTuple_GET_ITEM(keys, i), value) : -1;
        Py_XDECREF(value);
        if (status != 0)
            return -1;
    }
    return 0;
}

static int unpack_arguments(struct call *call, size_t first, PyObject *info)
{
    Py_ssize_t nargs, positional;
    PyObject *keys;
    if (!PyArg_ParseTuple(info, "nnO!", &nargs, &positional, &PyTuple_Type, &keys))
        return -1;
    size_t left = call->count - first;
    if (nargs >= 0 && positional == nargs &&
        left == (size_t)nargs + (size_t)PyTuple_GET_SIZE(keys) && all_plain(call, first))
        return unpack_plain(call, first, nargs, keys);
    if (nargs < 0 || positional < 0 || (size_t)nargs > left) {
        PyErr_SetString(PyExc_ValueError, "there are fewer buffers than the message says");
        return -1;
    }
    PyObject *list = keep_from(call, first, true);
    PyObject *answer = list ? PyObject_CallMethod(call->apply->slow, "arguments", "nnOO", nargs,
                                                  positional, keys, list)
                            : NULL;
    Py_XDECREF(list);
    PyObject *args, *kwargs;
    if (answer && PyArg_ParseTuple(answer, "O!O!", &PyTuple_Type, &args, &PyDict_Type, &kwargs)) {
        call->args = Py_NewRef(args);
        call->kwargs = Py_NewRef(kwargs);
    }
    Py_XDECREF(answer);
    return PyErr_Occurred() ? -1 : 0;
}

static int unpack_canned(struct call *call)
{
    size_t next = 0;
    if (unpack_function(call, &next) != 0)
        return -1;
    if (next >= call->count) {
        PyErr_SetString(PyExc_ValueError, "the description of the arguments is missing");
        return -1;
    }
    PyObject *info = read_info(call->apply, call->buffers[next]);
    int status = info ? unpack_arguments(call, next + 1, info) : -1;
    Py_XDECREF(info);
    return status;
}

/* pickle.loads, for functions inside our own form: remembers those it may. */
static PyObject *loads_function(PyObject *capsule, PyObject *args, PyObject *named)
{
    struct px_python *python = PyCapsule_GetPointer(capsule, FUNCTIONS);
    struct px_apply *apply = python->apply;
    PyObject *key = PyTuple_GET_SIZE(args) == 1 && !named ? PyTuple_GET_ITEM(args, 0) : NULL;
    bool usual = key && PyBytes_Check(key);
    PyObject *template = usual ? Py_XNewRef(PyDict_GetItemWithError(apply->functions, key)) : NULL;
    PyObject *value = NULL;
    if (template && template != Py_None && template != Py_True)
        value =
            build_function(template); /* others may be remembered meanwhile, and this forgotten */
    else if (!PyErr_Occurred())
        value = PyObject_Call(apply->loads, args, named);
    const bool known = template != NULL;
    Py_XDECREF(template);
    if (!value || !usual || known)
        return value;
    template = PyObject_CallMethod(apply->slow, "template_of", "(O)", value);
    if (!template || remember(apply->functions, key, template) != 0)
        Py_CLEAR(value);
    Py_XDECREF(template);
    return value;
}

static PyMethodDef loads_method = {
    "loads", (PyCFunction)(void (*)(void))loads_function, METH_VARARGS | METH_KEYWORDS,
    PyDoc_STR("As pickle.loads, which it stands for in calls that our client packs.")};

/* GIL. A module of one function, which the pickle of a call is made to call. */
static int add_loads(struct px_python *python)
{
    PyObject *module = PyImport_AddModule(FUNCTIONS);
    PyObject *capsule = PyCapsule_New(python, FUNCTIONS, NULL);
    PyObject *function = capsule ? PyCFunction_New(&loads_method, capsule) : NULL;
    Py_XDECREF(capsule);
    if (!module || !function || PyModule_AddObject(module, "loads", function) != 0)
        return -1;
    PyObject *numbered = PyObject_CallMethod(python->apply->slow, "number", "ssi", FUNCTIONS,
                                             "loads", LOADS_CODE);
    Py_XDECREF(numbered);
    return numbered ? 0 : -1;
}

/*
 * The pickle of a call. Our client packs the function as a pickle of its own, which the outer one
 * gives to _pickle.loads:
 *
 *     80 05  95 <8 bytes>  8c 07 "_pickle" 94  8c 05 "loads" 94  93  ...
 *
 * The last byte there, which looks for the function of these names, is replaced: the two names are
 * dropped, and our own loads is taken by its number. (The names stay, as later bytes may count on
 * them. They are in a frame, whose size grows by what is more: from 3.14.10 on Python minds.) Any
 * other pickle is just as good, but slower.
 */
static PyObject *loads_call(struct call *call, PyObject *buffers)
{
    static const char head[] = "\x8c\x07_pickle\x94\x8c\x05loads\x94\x93";
    static const char ours[] = "00\x84"
                               "dlxp"; /* POP POP EXT4, LOADS_CODE */
    enum { AT = 11, NAMES = AT + sizeof head - 2, MORE = sizeof ours - 2 };
    struct px_span pickle = call->buffers[0];
    if (pickle.size < AT + sizeof head || pickle.size > LONGEST_REMEMBERED ||
        memcmp(pickle.data, "\x80\x05\x95", 3) != 0 ||
        memcmp(pickle.data + AT, head, sizeof head - 1) != 0)
        return loads(call->apply, pickle, buffers);
    PyObject *copy = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(pickle.size + MORE));
    if (!copy)
        return NULL;
    char *out = PyBytes_AS_STRING(copy);
    memcpy(out, pickle.data, NAMES);
    memcpy(out + NAMES, ours, sizeof ours - 1);
    memcpy(out + NAMES + sizeof ours - 1, pickle.data + NAMES + 1, pickle.size - NAMES - 1);
    for (unsigned at = 3, carry = MORE; at < AT; at++, carry >>= 8)
        out[at] = (char)(carry += (unsigned char)out[at]);
    PyObject *args[] = {copy, buffers};
    PyObject *value = PyObject_Vectorcall(call->apply->loads, args, 1,
                                          buffers ? call->apply->buffers_keyword : NULL);
    Py_DECREF(copy);
    return value;
}

static int unpack_pickle5(struct call *call)
{
    PyObject *list = call->count > 1 ? keep_from(call, 1, false) : NULL;
    if (call->count > 1 && !list)
        return -1;
    PyObject *answer = loads_call(call, list);
    PyObject *function, *args, *kwargs;
    Py_XDECREF(list);
    if (answer && PyTuple_Check(answer) &&
        PyArg_ParseTuple(answer, "OO!O!", &function, &PyTuple_Type, &args, &PyDict_Type, &kwargs)) {
        call->function = Py_NewRef(function);
        call->args = Py_NewRef(args);
        call->kwargs = Py_NewRef(kwargs);
    } else if (answer && !PyErr_Occurred()) {
        PyErr_SetString(PyExc_TypeError, "the pickle holds no (function, args, kwargs)");
    }
    Py_XDECREF(answer);
    return PyErr_Occurred() ? -1 : 0;
}

static int unpack(struct call *call, bool pickle5)
{
    if (call->count == 0) {
        PyErr_SetString(PyExc_ValueError,
                        "the arguments of the call are missing: they were lost with a controller, "
                        "and were too large, or too many, for its client to send them again");
        return -1;
    }
    return pickle5 ? unpack_pickle5(call) : unpack_canned(call);
}

/* ---- packing -------------------------------------------------------------------- */

/* Bytes that leave: a copy if they are few, else the object's own, on loan. */
static int give(struct px_python *python, PyObject *object, struct px_buffer *out)
{
    if (!PyBytes_Check(object) || PyBytes_GET_SIZE(object) > COPIED)
        return px_loan_make(python, object, out);
    size_t size = (size_t)PyBytes_GET_SIZE(object);
    char *copy = px_alloc(size + 1);
    memcpy(copy, PyBytes_AS_STRING(object), size);
    *out = (struct px_buffer){copy, size, free, copy};
    return 0;
}

static int give_one(struct px_python *python, PyObject *bytes, struct px_outcome *out)
{
    out->buffers = px_alloc(sizeof *out->buffers);
    if (give(python, bytes, out->buffers) != 0)
        return -1;
    out->buffer_count = 1;
    return 0;
}

static int give_list(struct px_python *python, PyObject *list, struct px_outcome *out)
{
    Py_ssize_t count = PyList_GET_SIZE(list);
    out->buffers = px_alloc((size_t)(count + 1) * sizeof *out->buffers);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (give(python, PyList_GET_ITEM(list, i), &out->buffers[i]) != 0)
            return -1;
        out->buffer_count++;
    }
    return 0;
}

static bool is_atom(PyObject *value)
{
    return value == Py_None || PyBool_Check(value) || PyLong_CheckExact(value) ||
           PyFloat_CheckExact(value) || PyUnicode_CheckExact(value);
}

static int pack(struct px_python *python, PyObject *value, bool pickle5, struct px_outcome *out)
{
    struct px_apply *apply = python->apply;
    PyObject *packed = NULL;
    int status = -1;
    if (is_atom(value)) {
        packed = PyObject_CallOneArg(apply->dumps, value);
        status = packed ? give_one(python, packed, out) : -1;
    } else {
        packed = PyObject_CallMethod(apply->slow, pickle5 ? "pack5" : "pack", "(O)", value);
        if (packed && !PyList_Check(packed))
            PyErr_SetString(PyExc_TypeError, "a result packs into a list");
        else if (packed)
            status = give_list(python, packed, out);
    }
    Py_XDECREF(packed);
    return status;
}

/* ---- the op ---------------------------------------------------------------------- */

/* Our client's mark. A key of the object, so what follows it is a colon; a text that is the same
 * word, or quotes it, has none. */
static bool says_pickle5(struct px_span metadata)
{
    static const char key[] = "\"px_pickle\"";
    const char *at = metadata.data;
    const char *end = at ? at + metadata.size : NULL;
    while (at < end && (at = memmem(at, (size_t)(end - at), key, sizeof key - 1))) {
        at += sizeof key - 1;
        while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r'))
            at++;
        if (at < end && *at == ':')
            return true;
    }
    return false;
}

static struct px_apply *create_apply(struct px_python *python)
{
    struct px_apply *apply = px_alloc(sizeof *apply);
    python->apply = apply;
    PyObject *pickle = PyImport_ImportModule("_pickle");
    if (pickle) {
        apply->loads = PyObject_GetAttrString(pickle, "loads");
        apply->dumps = PyObject_GetAttrString(pickle, "dumps");
        Py_DECREF(pickle);
    }
    apply->buffers_keyword = Py_BuildValue("(s)", "buffers");
    apply->functions = PyDict_New();
    apply->infos = PyDict_New();
    apply->kept = (PyTypeObject *)PyType_FromSpec(&kept_spec);
    if (apply->loads && apply->dumps && apply->buffers_keyword && apply->functions &&
        apply->infos && apply->kept)
        apply->slow = PyObject_CallMethod(python->bridge, "make_apply", NULL);
    apply->framed = apply->slow ? PyObject_GetAttrString(apply->slow, "framed") : NULL;
    if (apply->framed && add_loads(python) == 0)
        return apply;
    px_apply_destroy(python);
    return NULL;
}

void px_apply_destroy(struct px_python *python)
{
    struct px_apply *apply = python->apply;
    if (!apply)
        return;
    python->apply = NULL;
    Py_XDECREF(apply->slow);
    Py_XDECREF(apply->framed);
    Py_XDECREF(apply->loads);
    Py_XDECREF(apply->dumps);
    Py_XDECREF(apply->buffers_keyword);
    Py_XDECREF(apply->functions);
    Py_XDECREF(apply->infos);
    Py_XDECREF(apply->kept);
    free(apply);
}

static PyObject *call_function(const struct call *call)
{
    int framed =
        PyCFunction_Check(call->function) ? PySet_Contains(call->apply->framed, call->function) : 0;
    if (framed <= 0) {
        PyErr_Clear(); /* a builtin's object that has no hash */
        return PyObject_Call(call->function, call->args, call->kwargs);
    }
    return PyObject_CallMethod(call->apply->slow, "call_framed", "OOO", call->function, call->args,
                               call->kwargs ? call->kwargs : Py_None);
}

void px_apply_run(void *arg, struct px_span metadata, const struct px_span *buffers,
                  size_t buffer_count, struct px_outcome *out)
{
    struct px_python *self = arg;
    px_python_enter(self);
    px_parent_begin(self);
    struct call call = {.python = self, .buffers = buffers, .count = buffer_count};
    call.apply = self->apply ? self->apply : create_apply(self);
    bool pickle5 = says_pickle5(metadata);
    int status = call.apply ? 0 : -1;
    if (status == 0)
        status = unpack(&call, pickle5);
    if (status == 0) {
        PyObject *value = call_function(&call);
        status = value ? pack(self, value, pickle5, out) : -1;
        Py_XDECREF(value);
    }
    if (status != 0)
        px_python_failed(self, "describe_task", out);
    px_python_end_child(self, status != 0);
    atomic_store(&self->applied, true);
    Py_XDECREF(call.function);
    Py_XDECREF(call.args);
    Py_XDECREF(call.kwargs);
    px_python_leave(self);
}
