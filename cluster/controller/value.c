/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * value: JSON values as Python sees them. Clients raise what the hub reports, by name and text of
 * a Python exception; so a request that is malformed is answered with the exception that
 * ipyparallel's hub runs into: iterating a number, ordering a str and None, and so on.
 */
#include "hub.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int px_raise(struct px_exception *exception, const char *ename, const char *fmt, ...)
{
    va_list args;
    snprintf(exception->ename, sizeof(exception->ename), "%s", ename);
    va_start(args, fmt);
    vsnprintf(exception->evalue, sizeof(exception->evalue), fmt, args);
    va_end(args);
    return -1;
}

const char *px_type_name(const json_t *value)
{
    static const char *const names[] = {
        [JSON_OBJECT] = "dict", [JSON_ARRAY] = "list",   [JSON_STRING] = "str",
        [JSON_INTEGER] = "int", [JSON_REAL] = "float",   [JSON_TRUE] = "bool",
        [JSON_FALSE] = "bool",  [JSON_NULL] = "NoneType"};
    return value ? names[json_typeof(value)] : "NoneType";
}

bool px_truth(const json_t *value)
{
    switch (value ? json_typeof(value) : JSON_NULL) {
    case JSON_OBJECT:
        return json_object_size(value) > 0;
    case JSON_ARRAY:
        return json_array_size(value) > 0;
    case JSON_STRING:
        return json_string_length(value) > 0;
    case JSON_INTEGER:
    case JSON_REAL:
        return json_number_value(value) != 0;
    case JSON_TRUE:
        return true;
    case JSON_FALSE:
    case JSON_NULL:
        break;
    }
    return false;
}

bool px_is_hashable(const json_t *value)
{
    return !json_is_array(value) && !json_is_object(value);
}

/* ---- iteration ------------------------------------------------------------- */

/* The bytes of the UTF-8 character at `text`, which jansson has checked. */
static size_t character_size(const char *text)
{
    size_t size = 1;
    while (((unsigned char)text[size] & 0xC0) == 0x80)
        size++;
    return size;
}

static json_t *characters(const json_t *string)
{
    json_t *items = json_array();
    const char *at = json_string_value(string), *end = at + json_string_length(string);
    for (size_t size; at < end; at += size) {
        size = character_size(at);
        json_array_append_new(items, json_stringn(at, size));
    }
    return items;
}

json_t *px_iterate(const json_t *value, struct px_exception *exception)
{
    const char *key;
    json_t *item;
    if (json_is_array(value))
        return json_copy((json_t *)value);
    if (json_is_string(value))
        return characters(value);
    if (!json_is_object(value)) {
        px_raise(exception, "TypeError", "'%s' object is not iterable", px_type_name(value));
        return NULL;
    }
    json_t *items = json_array();
    json_object_foreach((json_t *)value, key, item)
        json_array_append_new(items, json_string(key));
    return items;
}

/* ---- repr() ---------------------------------------------------------------- */

static void repr_character(struct px_buf *out, char c, char quote)
{
    if (c == '\n' || c == '\r' || c == '\t')
        px_buf_printf(out, "\\%c", c == '\n' ? 'n' : c == '\r' ? 'r' : 't');
    else if ((unsigned char)c < 0x20 || c == 0x7F)
        px_buf_printf(out, "\\x%02x", (unsigned)(unsigned char)c);
    else
        px_buf_printf(out, c == quote || c == '\\' ? "\\%c" : "%c", c);
}

void px_repr(struct px_buf *out, const char *text)
{
    char quote = strchr(text, '\'') != NULL && strchr(text, '"') == NULL ? '"' : '\'';
    px_buf_append(out, &quote, 1);
    for (; *text; text++)
        repr_character(out, *text, quote);
    px_buf_append(out, &quote, 1);
}

static void repr_list(struct px_buf *out, const json_t *list)
{
    px_buf_text(out, "[");
    for (size_t i = 0; i < json_array_size(list); i++) {
        px_buf_text(out, i > 0 ? ", " : "");
        px_repr_json(out, json_array_get(list, i));
    }
    px_buf_text(out, "]");
}

static void repr_dict(struct px_buf *out, const json_t *dict)
{
    const char *key;
    json_t *value;
    bool first = true;
    px_buf_text(out, "{");
    json_object_foreach((json_t *)dict, key, value) {
        px_buf_text(out, first ? "" : ", ");
        px_repr(out, key);
        px_buf_text(out, ": ");
        px_repr_json(out, value);
        first = false;
    }
    px_buf_text(out, "}");
}

/* The depth is bounded by that of what jansson has read. */
void px_repr_json(struct px_buf *out, const json_t *value)
{
    if (json_is_string(value))
        px_repr(out, json_string_value(value));
    else if (json_is_array(value))
        repr_list(out, value);
    else if (json_is_object(value))
        repr_dict(out, value);
    else if (json_is_boolean(value))
        px_buf_text(out, json_is_true(value) ? "True" : "False");
    else if (json_is_integer(value))
        px_buf_printf(out, "%lld", (long long)json_integer_value(value));
    else if (json_is_real(value))
        px_buf_printf(out, "%.17g", json_real_value(value));
    else
        px_buf_text(out, "None");
}
