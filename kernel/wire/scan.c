/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * scan: finds a few top-level fields of a JSON object without building anything.
 *
 * A relay or a scheduler decides on three or four fields of a message whose signature is
 * right; parsing all of it would cost fifty times as much. One pass checks that the
 * text is a well-formed object (RFC 8259 grammar) and notes where the wanted values lie.
 * The fuzz test holds it against jansson.
 */
#include "wire/wire.h"

#include <endian.h>
#include <string.h>

struct cursor {
    const char *at, *end;
};

static void skip_space(struct cursor *c)
{
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\n' || *c->at == '\r' || *c->at == '\t'))
        c->at++;
}

static bool skip_char(struct cursor *c, char wanted)
{
    skip_space(c);
    if (c->at == c->end || *c->at != wanted)
        return false;
    c->at++;
    return true;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool skip_hex4(struct cursor *c)
{
    for (int i = 0; i < 4; i++, c->at++)
        if (c->at == c->end || !strchr("0123456789abcdefABCDEF", *c->at) || !*c->at)
            return false;
    return true;
}

#define EACH(byte) (UINT64_C(0x0101010101010101) * (byte))

/* Of eight bytes the top bit of the lowest one that is less than `most` (at most 128), and perhaps of
 * some above it; 0 when none is. */
static uint64_t less(uint64_t bytes, unsigned most)
{
    return (bytes - EACH(most)) & ~bytes & EACH(0x80);
}

/* Over what a string has as it is, eight bytes at a time; up to seven are left at the text's end. */
static void skip_plain(struct cursor *c)
{
    for (uint64_t bytes; c->end - c->at >= 8; c->at += sizeof bytes) {
        memcpy(&bytes, c->at, sizeof bytes);
        bytes = le64toh(bytes);
        const uint64_t special =
            less(bytes, 0x20) | less(bytes ^ EACH('"'), 1) | less(bytes ^ EACH('\\'), 1);
        if (special) {
            c->at += __builtin_ctzll(special) / 8;
            return;
        }
    }
}

/* At the opening quote. Sets *escaped when there was a backslash. */
static bool skip_string(struct cursor *c, bool *escaped)
{
    c->at++;
    for (skip_plain(c); c->at < c->end; c->at++) {
        if (*c->at == '"') {
            c->at++;
            return true;
        }
        if ((unsigned char)*c->at < 0x20)
            return false;
        if (*c->at != '\\')
            continue;
        *escaped = true;
        if (++c->at == c->end)
            return false;
        if (*c->at == 'u') {
            c->at++;
            if (!skip_hex4(c))
                return false;
            c->at--;
        } else if (!*c->at || !strchr("\"\\/bfnrt", *c->at)) {
            return false;
        }
    }
    return false;
}

static bool skip_digits(struct cursor *c)
{
    const char *from = c->at;
    while (c->at < c->end && is_digit(*c->at))
        c->at++;
    return c->at > from;
}

static bool skip_number(struct cursor *c)
{
    if (c->at < c->end && *c->at == '-')
        c->at++;
    if (c->at < c->end && *c->at == '0')
        c->at++;
    else if (!skip_digits(c))
        return false;
    if (c->at < c->end && *c->at == '.') {
        c->at++;
        if (!skip_digits(c))
            return false;
    }
    if (c->at < c->end && (*c->at == 'e' || *c->at == 'E')) {
        c->at++;
        if (c->at < c->end && (*c->at == '+' || *c->at == '-'))
            c->at++;
        if (!skip_digits(c))
            return false;
    }
    return true;
}

static bool skip_word(struct cursor *c, const char *word)
{
    const size_t size = strlen(word);
    if ((size_t)(c->end - c->at) < size || memcmp(c->at, word, size) != 0)
        return false;
    c->at += size;
    return true;
}

static bool skip_scalar(struct cursor *c)
{
    bool escaped = false;
    switch (*c->at) {
    case '"':
        return skip_string(c, &escaped);
    case 't':
        return skip_word(c, "true");
    case 'f':
        return skip_word(c, "false");
    case 'n':
        return skip_word(c, "null");
    default:
        return skip_number(c);
    }
}

static bool skip_key(struct cursor *c)
{
    bool escaped = false;
    skip_space(c);
    return c->at < c->end && *c->at == '"' && skip_string(c, &escaped) && skip_char(c, ':');
}

/* After an opening bracket, or after a comma: is there a member to come? Handles an empty
 * container. */
static bool open_container(struct cursor *c, char kind, bool *empty)
{
    *empty = skip_char(c, kind == '{' ? '}' : ']');
    return *empty || kind == '[' || skip_key(c);
}

/* Skips one value without recursion: `kinds` is the stack of open brackets. */
static bool skip_value(struct cursor *c)
{
    char kinds[PX_MAX_JSON_DEPTH];
    size_t depth = 0;
    for (;;) {
        bool complete = true; /* a value has just ended */
        skip_space(c);
        if (c->at == c->end)
            return false;
        if (*c->at == '{' || *c->at == '[') {
            if (depth == PX_MAX_JSON_DEPTH)
                return false;
            kinds[depth++] = *c->at++;
            if (!open_container(c, kinds[depth - 1], &complete))
                return false;
            depth -= complete;
        } else if (!skip_scalar(c)) {
            return false;
        }
        while (complete && depth > 0) { /* what follows a value inside containers */
            if (skip_char(c, ',')) {
                if (kinds[depth - 1] == '{' && !skip_key(c))
                    return false;
                break;
            }
            if (!skip_char(c, kinds[depth - 1] == '{' ? '}' : ']'))
                return false;
            depth--;
        }
        if (complete && depth == 0)
            return true;
    }
}

static void note(struct px_span key, struct px_span value, const char *const *keys,
                 struct px_span *values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const bool alike = !key.size || keys[i][0] == key.data[0]; /* tells most apart */
        if (alike && strncmp(keys[i], key.data, key.size) == 0 && !keys[i][key.size])
            values[i] = value;
    }
}

int px_scan(struct px_span object, const char *const *keys, struct px_span *values, size_t count)
{
    struct cursor c = {object.data, object.data + object.size};
    for (size_t i = 0; i < count; i++)
        values[i] = (struct px_span){NULL, 0};
    if (!skip_char(&c, '{'))
        return -1;
    bool more = !skip_char(&c, '}');
    while (more) {
        skip_space(&c);
        if (c.at == c.end || *c.at != '"')
            return -1;
        const char *key = c.at + 1;
        bool escaped = false;
        if (!skip_string(&c, &escaped) || escaped)
            return -1;
        const struct px_span name = {key, (size_t)(c.at - 1 - key)};
        if (!skip_char(&c, ':'))
            return -1;
        skip_space(&c);
        const char *value = c.at;
        if (!skip_value(&c))
            return -1;
        note(name, (struct px_span){value, (size_t)(c.at - value)}, keys, values, count);
        more = skip_char(&c, ',');
        if (!more && !skip_char(&c, '}'))
            return -1;
    }
    skip_space(&c);
    return c.at == c.end ? 0 : -1;
}

bool px_scan_string(struct px_span value, struct px_span *out)
{
    if (value.size < 2 || value.data[0] != '"' || memchr(value.data, '\\', value.size))
        return false;
    *out = (struct px_span){value.data + 1, value.size - 2};
    return true;
}

struct px_span px_scan_member(struct px_span object, const char *key)
{
    struct px_span value, text;
    if (px_scan(object, &key, &value, 1) != 0 || !px_scan_string(value, &text))
        return (struct px_span){"", 0};
    return text;
}

bool px_scan_true(struct px_span value)
{
    return value.data && px_span_equal(value, "true");
}

int px_header_scan(struct px_span header, struct px_header *out, struct px_error *err)
{
    static const char *const keys[] = {"msg_id", "msg_type", "session", "date", "subshell_id"};
    struct px_span values[PX_COUNT(keys)];
    if (px_scan(header, keys, values, PX_COUNT(keys)) < 0)
        return px_fail(err, PX_EINVAL, "the header is not a plain JSON object");
    struct px_span *fields[] = {&out->msg_id, &out->msg_type, &out->session, &out->date,
                                &out->subshell_id};
    for (size_t i = 0; i < PX_COUNT(keys); i++) {
        *fields[i] = px_span_of("");
        if (!px_scan_string(values[i], fields[i]) && i < 2)
            return px_fail(err, PX_EINVAL, "the header has no plain %s", keys[i]);
        if (fields[i]->size > 255)
            return px_fail(err, PX_ELIMIT, "%s of %zu bytes, limit 255", keys[i], fields[i]->size);
    }
    if (!out->msg_id.size || !out->msg_type.size)
        return px_fail(err, PX_EINVAL, "the header's msg_id or msg_type is empty");
    return 0;
}
