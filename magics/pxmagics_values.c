/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pxmagics_values: the values of a run that has ended, under their prompts; equal ones once.
 */
#include "pxmagics.h"

#include <stdlib.h>
#include <string.h>

#define TEXT_ALL ((size_t)1 << 20) /* of all engines' values, shared out among them */
#define TEXT_MOST ((size_t)256 << 10)
#define TEXT_LEAST ((size_t)4 << 10)

Py_hash_t px_bundle_hash(PyObject *bundle)
{
    Py_hash_t hash = PyDict_GET_SIZE(bundle);
    Py_ssize_t at = 0;
    for (PyObject *mime, *value; PyDict_Next(bundle, &at, &mime, &value);) {
        const Py_hash_t one = PyUnicode_Check(value) ? PyObject_Hash(value) : 0;
        hash = (Py_hash_t)((size_t)hash * 31 + (size_t)one);
    }
    return hash;
}

struct value {
    PyObject *content; /* of the execute_result; NULL: none, or shown with an earlier one */
    PyObject *data;    /* its data, borrowed */
    Py_hash_t hash;
    struct px_span text;
    long number;
};

struct values {
    const struct px_value_options *options;
    struct value *list; /* by task */
    int *ids;           /* of those that are shown together */
};

/* Leaves content NULL when the task has no value. -1 with an exception. */
static int read_value(PyObject *record, struct value *out)
{
    PyObject *content = record ? PyObject_GetAttrString(record, "execute_result") : NULL;
    if (!content)
        return -1;
    out->data = PyDict_Check(content) ? PyDict_GetItemString(content, "data") : NULL;
    if (!out->data || !PyDict_Check(out->data) || PyDict_GET_SIZE(out->data) == 0) {
        Py_DECREF(content);
        return 0;
    }
    out->content = content;
    out->hash = px_bundle_hash(out->data);
    PyObject *number = PyDict_GetItemString(content, "execution_count");
    PyObject *plain = PyDict_GetItemString(out->data, "text/plain");
    out->number = number && PyLong_Check(number) ? PyLong_AsLong(number) : 0;
    if (plain && PyUnicode_Check(plain)) {
        Py_ssize_t size;
        const char *utf8 = PyUnicode_AsUTF8AndSize(plain, &size);
        out->text = utf8 ? (struct px_span){utf8, (size_t)size} : PX_SPAN("?");
    }
    PyErr_Clear();
    return 0;
}

static bool are_equal(const struct value *a, const struct value *b)
{
    if (!b->content || a->hash != b->hash)
        return false;
    const int equal = PyObject_RichCompareBool(a->data, b->data, Py_EQ);
    if (equal < 0)
        PyErr_Clear();
    return equal == 1;
}

/* The value's text, bounded, after the prompt of `count` engines. */
static PyObject *prompted(const struct values *values, struct px_span shown, size_t count,
                          long number)
{
    struct px_buf text = {0}, bounded = {0};
    const size_t part = TEXT_ALL / values->options->count;
    px_render_bounded(&bounded, shown,
                      part > TEXT_MOST    ? TEXT_MOST
                      : part < TEXT_LEAST ? TEXT_LEAST
                                          : part);
    px_render_result(&text, values->ids, count, number, px_buf_span(&bounded),
                     values->options->color);
    PyObject *string = px_text_of(&text);
    px_buf_fini(&bounded);
    px_buf_fini(&text);
    return string;
}

static int show_prompt(const struct values *values, size_t count, long number)
{
    PyObject *prompt = prompted(values, PX_SPAN(""), count, number);
    PyObject *data = prompt ? Py_BuildValue("{sO}", "text/plain", prompt) : NULL;
    const int status = data ? px_show_publish(values->options->show, data, NULL, NULL, false) : -1;
    Py_XDECREF(data);
    Py_XDECREF(prompt);
    return status;
}

/* Whether a page shows a form of the value in place of its text, and so without its prompt. LaTeX is
 * left as ipyparallel has it: in one display with the prompt. */
static bool hides_text(const struct value *value)
{
    Py_ssize_t at = 0;
    for (PyObject *mime, *form; PyDict_Next(value->data, &at, &mime, &form);) {
        const char *name = PyUnicode_Check(mime) ? PyUnicode_AsUTF8(mime) : NULL;
        if (name && (strcmp(name, "text/html") == 0 || strncmp(name, "image/", 6) == 0))
            return true;
    }
    PyErr_Clear();
    return !value->text.data;
}

/* Shows a value behind the prompt of `count` engines, or below it. */
static int show_value(const struct values *values, const struct value *value, size_t count,
                      long number)
{
    PyObject *metadata = PyDict_GetItemString(value->content, "metadata");
    if (hides_text(value))
        return show_prompt(values, count, number) == 0
                   ? px_show_publish(values->options->show, value->data, metadata, NULL, false)
                   : -1;
    PyObject *text = prompted(values, value->text, count, number);
    PyObject *data = text ? PyDict_Copy(value->data) : NULL;
    int status = data ? PyDict_SetItemString(data, "text/plain", text) : -1;
    if (status == 0)
        status = px_show_publish(values->options->show, data, metadata, NULL, false);
    Py_XDECREF(data);
    Py_XDECREF(text);
    return status;
}

/* Shows the value of a task, and with it the same of later ones. */
static int show_with_equals(struct values *values, size_t first)
{
    const struct px_value_options *options = values->options;
    struct value *value = &values->list[first];
    size_t count = 0;
    long number = value->number;
    for (size_t i = first; i < options->count; i++) {
        struct value *other = &values->list[i];
        if (i > first && (!options->fold || !are_equal(value, other)))
            continue;
        values->ids[count++] = options->engines[i];
        number = other->number == number ? number : -1;
        if (i > first)
            Py_CLEAR(other->content);
    }
    return show_value(values, value, count, number);
}

int px_show_values(const struct px_value_options *options)
{
    PyObject *tasks = PyObject_GetAttrString(options->result, "_tasks");
    int status = tasks && PyList_Check(tasks) ? 0 : -1;
    struct values values = {.options = options,
                            .list = px_alloc((options->count + 1) * sizeof *values.list),
                            .ids = px_alloc((options->count + 1) * sizeof *values.ids)};
    for (size_t i = 0; status == 0 && i < options->count; i++)
        status = read_value(PyList_GetItem(tasks, (Py_ssize_t)i), &values.list[i]);
    for (size_t i = 0; status == 0 && i < options->count; i++) {
        if (values.list[i].content)
            status = show_with_equals(&values, i);
    }
    for (size_t i = 0; i < options->count; i++)
        Py_XDECREF(values.list[i].content);
    Py_XDECREF(tasks);
    free(values.ids);
    free(values.list);
    return status;
}
