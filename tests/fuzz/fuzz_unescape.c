/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A stream's text: what the scanner takes for a string must be read, and as jansson reads it.
 * Input: what stands between the quotes.
 */
#include "client/client.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const key = "text";
    struct px_buf object = {0}, text = {0};
    px_buf_text(&object, "{\"text\": \"");
    px_buf_append(&object, data, size);
    px_buf_text(&object, "\"}");
    struct px_span raw;
    if (px_scan(px_buf_span(&object), &key, &raw, 1) == 0 && raw.data && raw.data[0] == '"') {
        assert(px_json_unescape(raw, &text));
        json_t *parsed = json_loadb(object.data, object.size, JSON_ALLOW_NUL, NULL);
        const json_t *wanted = json_object_get(parsed, key);
        if (wanted) {
            assert(text.size == json_string_length(wanted));
            assert(memcmp(text.data, json_string_value(wanted), text.size) == 0);
        }
        json_decref(parsed);
    } else {
        px_json_unescape((struct px_span){(const char *)data, size}, &text);
    }
    px_buf_fini(&text);
    px_buf_fini(&object);
    return 0;
}
