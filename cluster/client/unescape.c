/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * unescape: the text of a JSON string. Pure.
 *
 * Streams are most of what a chatty task sends, and a JSON parser spends ten times as long on
 * them as on their signature. So the scanner finds the string, and this copies it: runs without a
 * backslash at once, escapes one by one. A lone surrogate becomes U+FFFD, as in any UTF-8.
 */
#include "client/client.h"

#include <string.h>

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The four digits after \u; -1 when they are not. */
static long code_unit(const char *at, const char *end)
{
    long unit = 0;
    if (end - at < 4)
        return -1;
    for (int i = 0; i < 4; i++) {
        const int digit = hex_digit(at[i]);
        if (digit < 0)
            return -1;
        unit = unit << 4 | digit;
    }
    return unit;
}

static void put_utf8(struct px_buf *out, unsigned long c)
{
    char bytes[4];
    size_t size = 0;
    if (c < 0x80) {
        bytes[size++] = (char)c;
    } else if (c < 0x800) {
        bytes[size++] = (char)(0xC0 | c >> 6);
        bytes[size++] = (char)(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        bytes[size++] = (char)(0xE0 | c >> 12);
        bytes[size++] = (char)(0x80 | (c >> 6 & 0x3F));
        bytes[size++] = (char)(0x80 | (c & 0x3F));
    } else {
        bytes[size++] = (char)(0xF0 | c >> 18);
        bytes[size++] = (char)(0x80 | (c >> 12 & 0x3F));
        bytes[size++] = (char)(0x80 | (c >> 6 & 0x3F));
        bytes[size++] = (char)(0x80 | (c & 0x3F));
    }
    px_buf_append(out, bytes, size);
}

/* `at` is behind \u. Returns behind the escape, both halves of a pair; NULL when it is none. */
static const char *put_unicode(struct px_buf *out, const char *at, const char *end)
{
    const long unit = code_unit(at, end);
    if (unit < 0)
        return NULL;
    at += 4;
    if (unit < 0xD800 || unit > 0xDFFF) {
        put_utf8(out, (unsigned long)unit);
        return at;
    }
    const bool followed = unit < 0xDC00 && end - at >= 6 && at[0] == '\\' && at[1] == 'u';
    const long low = followed ? code_unit(at + 2, end) : -1;
    if (low < 0xDC00 || low > 0xDFFF) {
        put_utf8(out, 0xFFFD);
        return at;
    }
    put_utf8(out,
             0x10000UL + ((unsigned long)(unit - 0xD800) << 10) + (unsigned long)(low - 0xDC00));
    return at + 6;
}

/* `at` is behind the backslash. */
static const char *put_escape(struct px_buf *out, const char *at, const char *end)
{
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    if (at == end)
        return NULL;
    if (*at == 'u')
        return put_unicode(out, at + 1, end);
    const char *letter = *at ? strchr(letters, *at) : NULL;
    if (!letter)
        return NULL;
    px_buf_append(out, &meanings[letter - letters], 1);
    return at + 1;
}

bool px_json_unescape(struct px_span raw, struct px_buf *out)
{
    if (raw.size < 2 || raw.data[0] != '"' || raw.data[raw.size - 1] != '"')
        return false;
    const char *at = raw.data + 1, *end = raw.data + raw.size - 1;
    px_buf_text(out, "");
    while (at && at < end) {
        const char *escape = memchr(at, '\\', (size_t)(end - at));
        const char *run_end = escape ? escape : end;
        px_buf_append(out, at, (size_t)(run_end - at));
        at = escape ? put_escape(out, escape + 1, end) : end;
    }
    return at != NULL;
}
