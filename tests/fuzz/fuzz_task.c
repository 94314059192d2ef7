/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the task queue reads of bytes from outside. The first byte says what the rest is: metadata
 * of a request, compared with what jansson finds in it, or a reply: header, parent, metadata,
 * content, each on a line.
 */
#include "task.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static double number_of(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : 0;
}

static void compare(const struct px_task_spec *spec, const json_t *object)
{
    double retries = number_of(object, "retries"), timeout_s = number_of(object, "timeout");
    const json_t *targets = json_object_get(object, "targets");
    assert(retries < 1
               ? spec->retries == 0
               : spec->retries == (int)(retries < PX_MAX_RETRIES ? retries : PX_MAX_RETRIES));
    assert((spec->timeout_us > 0) == (timeout_s > 0 && timeout_s < 1e9));
    assert(spec->needs == (number_of(object, "px_pickle") >= 5 ? PX_FEATURE_PICKLE5 : 0));
    if (json_is_array(targets))
        assert((spec->target_count > 0) == (json_array_size(targets) > 0));
}

static void try_spec(struct px_span text)
{
    struct px_task_spec spec = {0};
    struct px_error err;
    json_t *object = json_loadb(text.data, text.size, JSON_ALLOW_NUL, NULL);
    if (px_task_read_spec(text, &spec, &err) == 0 && json_is_object(object) &&
        memchr(text.data, 0, text.size) == NULL)
        compare(&spec, object);
    px_task_spec_fini(&spec);
    json_decref(object);
}

static void try_result(struct px_span text)
{
    struct px_task_result result;
    struct px_msg *msg = px_msg_create();
    px_msg_append(msg, PX_DELIMITER, strlen(PX_DELIMITER));
    px_msg_append(msg, "", 0);
    for (int i = 0; i < 4; i++) {
        const char *end = text.size ? memchr(text.data, '\n', text.size) : NULL;
        size_t length = end ? (size_t)(end - text.data) : text.size;
        px_msg_append(msg, text.data, length);
        text.data += length + (end != NULL);
        text.size -= length + (end != NULL);
    }
    if (px_msg_locate(msg, NULL) == 0 && px_task_read_result(msg, &result) == 0) {
        struct px_span parent = px_msg_parent(msg);
        assert(result.msg_id.data >= parent.data &&
               result.msg_id.data + result.msg_id.size <= parent.data + parent.size);
        assert(result.took_us >= -1 && result.took_us < (24ll * 3600 + 1) * 1000000);
        assert((unsigned)result.reply <= PX_REPLY_RECALLED);
    }
    px_msg_destroy(msg);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    struct px_span text = {(const char *)data + 1, size - 1};
    if (data[0] == 'r')
        try_result(text);
    else
        try_spec(text);
    return 0;
}
