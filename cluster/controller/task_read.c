/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * task_read: the few fields of requests and replies that the task queue decides on. They are found
 * by a scan of the verified bytes; only metadata that the scan is not sure of is parsed.
 *
 *     request   metadata   after, follow, targets, timeout, retries, px_pickle
 *     reply     parent     msg_id
 *               metadata   dependencies_met, status, started
 *               header     date
 */
#include "task.h"

#include "protocol.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* ---- requests -------------------------------------------------------------- */

enum { AFTER, FOLLOW, TARGETS, TIMEOUT, RETRIES, PICKLE, SUBMIT_KEYS };
static const char *const submit_keys[SUBMIT_KEYS] = {
    [AFTER] = "after",     [FOLLOW] = "follow",   [TARGETS] = "targets",
    [TIMEOUT] = "timeout", [RETRIES] = "retries", [PICKLE] = "px_pickle",
};

/* A number in JSON; 0 when the value is absent or null. */
static int read_number(struct px_span value, double *out)
{
    char text[64];
    *out = 0;
    if (value.data == NULL || px_span_equal(value, "null"))
        return 0;
    if (value.size >= sizeof(text))
        return -1;
    memcpy(text, value.data, value.size);
    text[value.size] = 0;
    char *end;
    *out = strtod(text, &end);
    return end == text || *end != 0 || *out != *out ? -1 : 0;
}

static int read_numbers(const struct px_span *values, struct px_task_spec *spec,
                        struct px_error *err)
{
    double timeout_s, retries, pickle;
    if (read_number(values[TIMEOUT], &timeout_s) != 0 ||
        read_number(values[RETRIES], &retries) != 0 || read_number(values[PICKLE], &pickle) != 0)
        return px_fail(err, PX_EINVAL, "timeout, retries or px_pickle is not a number");
    if (timeout_s > 0)
        spec->timeout_us = timeout_s < 1e9 ? (int64_t)(timeout_s * 1e6) + 1 : 0;
    if (retries > 0)
        spec->retries = retries < PX_MAX_RETRIES ? (int)retries : PX_MAX_RETRIES;
    spec->needs = pickle >= 5 ? PX_FEATURE_PICKLE5 : 0;
    return 0;
}

static int read_values(const struct px_span *values, struct px_task_spec *spec,
                       struct px_error *err)
{
    if (read_numbers(values, spec, err) != 0 ||
        px_depend_parse(values[AFTER], &spec->after, err) != 0 ||
        px_depend_parse(values[FOLLOW], &spec->follow, err) != 0)
        return -1;
    return px_names_parse(values[TARGETS], PX_MAX_TARGETS, &spec->targets, &spec->target_count,
                          err);
}

/* The scan is not sure of this metadata: of what jansson reads the keys above are written anew, and
 * scanned. */
static int read_parsed(struct px_span metadata, struct px_task_spec *spec, struct px_error *err)
{
    json_t *object = px_json_parse(metadata, err), *known = json_object();
    for (size_t i = 0; i < SUBMIT_KEYS; i++)
        json_object_set(known, submit_keys[i], json_object_get(object, submit_keys[i]));
    char *text = object ? json_dumps(known, JSON_COMPACT) : NULL;
    json_decref(known);
    json_decref(object);
    struct px_span values[SUBMIT_KEYS];
    int rc = -1;
    if (text == NULL || px_scan(px_span_of(text), submit_keys, values, SUBMIT_KEYS) != 0)
        px_fail(err, PX_EINVAL, "metadata is not an object");
    else
        rc = read_values(values, spec, err);
    free(text);
    return rc;
}

int px_task_read_spec(struct px_span metadata, struct px_task_spec *spec, struct px_error *err)
{
    struct px_span values[SUBMIT_KEYS];
    if (px_json_bounded(metadata, err) != 0)
        return -1;
    if (px_scan(metadata, submit_keys, values, SUBMIT_KEYS) == 0)
        return read_values(values, spec, err);
    return read_parsed(metadata, spec, err);
}

/* ---- replies --------------------------------------------------------------- */

/* Engines state the status in metadata; where it is missing, content has it. */
static bool is_ok(struct px_span status, struct px_span content)
{
    return status.data ? px_span_equal(status, "\"ok\"")
                       : px_span_equal(px_scan_member(content, "status"), "ok");
}

/* "2026-01-02T03:04:05.678901Z" on the microseconds of its day; -1 for anything else. */
static int64_t time_of_day(struct px_span date)
{
    static const char form[] = "0000-00-00T00:00:00.000000Z";
    if (date.size != sizeof(form) - 1)
        return -1;
    for (size_t i = 0; i < date.size; i++) {
        if (form[i] == '0' ? date.data[i] < '0' || date.data[i] > '9' : date.data[i] != form[i])
            return -1;
    }
    const char *at = date.data;
    int64_t us = 0;
    for (size_t i = 20; i < 26; i++)
        us = us * 10 + (at[i] - '0');
    int hours = (at[11] - '0') * 10 + at[12] - '0', minutes = (at[14] - '0') * 10 + at[15] - '0';
    int seconds = (at[17] - '0') * 10 + at[18] - '0';
    if (hours > 23 || minutes > 59 || seconds > 60)
        return -1;
    return us + 1000000ll * (seconds + 60 * (minutes + 60 * hours));
}

/* From the metadata's `started` to the header's date, within one day; -1 when it cannot be said. */
static int64_t read_duration(const struct px_msg *msg, struct px_span started)
{
    struct px_header header;
    struct px_span begun;
    if (!px_scan_string(started, &begun) || px_header_scan(px_msg_header(msg), &header, NULL) != 0)
        return -1;
    int64_t from_us = time_of_day(begun), to_us = time_of_day(header.date);
    if (from_us < 0 || to_us < from_us || memcmp(begun.data, header.date.data, 10) != 0)
        return -1;
    return to_us - from_us;
}

int px_task_read_result(const struct px_msg *msg, struct px_task_result *out)
{
    static const char *const keys[] = {"dependencies_met", "status", "started"};
    static const char *const parent_keys[] = {"msg_id"};
    struct px_span values[3], id;
    if (px_scan(px_msg_parent(msg), parent_keys, &id, 1) != 0 ||
        !px_scan_string(id, &out->msg_id) || px_scan(px_msg_metadata(msg), keys, values, 3) != 0)
        return -1;
    if (px_span_equal(values[0], "false"))
        out->reply = PX_REPLY_REJECTED;
    else if (px_span_equal(values[1], "\"" PX_RECALLED "\""))
        out->reply = PX_REPLY_RECALLED;
    else
        out->reply = is_ok(values[1], px_msg_content(msg)) ? PX_REPLY_OK : PX_REPLY_ERROR;
    out->took_us = read_duration(msg, values[2]);
    return 0;
}
