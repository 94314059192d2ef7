/* SPDX-License-Identifier: BSD-3-Clause */
/* The text of JSON strings: one row a case, and jansson as the judge. */
#include "../test.h"

#include "client/client.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *raw, *text; /* text: NULL when it is refused */
} rows[] = {
    {"\"\"", ""},
    {"\"plain\"", "plain"},
    {"\"a\\nb\\tc\\\\d\\\"e\\/\"", "a\nb\tc\\d\"e/"},
    {"\"\\u0041\\u00e9\\u20ac\"", "A\xc3\xa9\xe2\x82\xac"},
    {"\"\\ud83d\\ude00!\"", "\xf0\x9f\x98\x80!"},
    {"\"\\ud83d\"", "\xef\xbf\xbd"},
    {"\"\\ude00x\"", "\xef\xbf\xbdx"},
    {"\"\\ud83d\\u0041\"", "\xef\xbf\xbd"
                           "A"},
    {"\"\xe2\x82\xac\"", "\xe2\x82\xac"},
    {"\"\\x\"", NULL},
    {"\"\\u12g4\"", NULL},
    {"\"\\u12\"", NULL},
    {"\"\\\"", NULL},
    {"\"", NULL},
    {"12", NULL},
    {"", NULL},
};

static void reads_strings(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_buf out = {0};
        const bool read = px_json_unescape(px_span_of(rows[i].raw), &out);
        if (read != (rows[i].text != NULL))
            fail_msg("%s was %s", rows[i].raw, read ? "read" : "refused");
        if (read)
            assert_string_equal(out.data, rows[i].text);
        px_buf_fini(&out);
    }
}

/* Every byte and code point that jansson writes comes back. */
static void reads_what_jansson_writes(void **state)
{
    (void)state;
    for (unsigned long c = 0; c < 0x110000; c += c < 0x900 ? 1 : 61) {
        if (c >= 0xD800 && c < 0xE000)
            continue;
        char raw[32];
        struct px_buf text = {0};
        if (c < 0x10000)
            snprintf(raw, sizeof raw, "\"<\\u%04lx>\"", c);
        else
            snprintf(raw, sizeof raw, "\"<\\u%04lX\\u%04lx>\"", 0xD7C0 + (c >> 10),
                     0xDC00 + (c & 0x3FF));
        json_t *value = json_loads(raw, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);
        assert_non_null(value);
        assert_true(px_json_unescape(px_span_of(raw), &text));
        assert_int_equal(text.size, json_string_length(value));
        assert_memory_equal(text.data, json_string_value(value), text.size);
        px_buf_fini(&text);
        json_decref(value);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_strings),
        cmocka_unit_test(reads_what_jansson_writes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
