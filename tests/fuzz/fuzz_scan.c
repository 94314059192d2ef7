/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The scanner against jansson: what jansson calls an object the scanner reads too, unless it is
 * not sure (an escaped key, or too deep), and the values found are the same. A zero byte
 * ends a number for jansson, which the grammar does not allow: the scanner may refuse it.
 */
#include "wire/wire.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t depth_bound(struct px_span text)
{
    size_t open = 0;
    for (size_t i = 0; i < text.size; i++)
        open += text.data[i] == '{' || text.data[i] == '[';
    return open;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const keys[] = {"a", "msg_id", ""};
    const struct px_span text = {(const char *)data, size};
    struct px_span values[PX_COUNT(keys)];
    struct px_header header;
    const bool read = px_scan(text, keys, values, PX_COUNT(keys)) == 0;
    (void)!px_header_scan(text, &header, NULL);
    json_t *oracle = json_loadb(text.data, text.size, JSON_ALLOW_NUL, NULL);
    if (!json_is_object(oracle)) {
        json_decref(oracle);
        return 0;
    }
    assert(read || memchr(data, '\\', size) || memchr(data, 0, size) ||
           depth_bound(text) > PX_MAX_JSON_DEPTH);
    for (size_t i = 0; read && i < PX_COUNT(keys); i++) {
        const json_t *wanted = json_object_get(oracle, keys[i]);
        assert(!wanted == !values[i].data);
        if (!wanted)
            continue;
        json_t *found =
            json_loadb(values[i].data, values[i].size, JSON_ALLOW_NUL | JSON_DECODE_ANY, NULL);
        assert(found && json_equal(found, wanted));
        json_decref(found);
    }
    json_decref(oracle);
    return 0;
}
