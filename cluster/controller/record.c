/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * record: a task as the database knows it, with ipyparallel's field names. The request and the
 * reply are kept as messages, whose frames are shared with those that went by. A field is parsed
 * out of them when it is asked for, which for most tasks is never.
 */
#include "hub.h"

#include <stdlib.h>
#include <string.h>

void px_record_destroy(struct px_record *record)
{
    if (record == NULL)
        return;
    px_msg_destroy(record->request);
    px_msg_destroy(record->reply);
    free(record->engine_uuid);
    free(record->resubmitted);
    json_decref(record->lost_header);
    json_decref(record->lost_content);
    px_buf_fini(&record->standard_out);
    px_buf_fini(&record->standard_err);
    json_decref(record->execute_input);
    json_decref(record->execute_result);
    json_decref(record->error);
    json_decref(record->display_data);
    free(record);
}

void px_record_lose(struct px_record *record, struct px_span engine_uuid, const char *ename,
                    const char *evalue)
{
    char date[PX_DATE_SIZE];
    px_date_now(date);
    json_decref(record->lost_header);
    json_decref(record->lost_content);
    record->lost_header = json_pack("{s:s}", "date", date);
    record->lost_content = px_error_json(ename, evalue);
    if (engine_uuid.size == 0)
        return;
    json_object_set_new(record->lost_header, "engine",
                        json_stringn(engine_uuid.data, engine_uuid.size));
    px_record_set_engine(record, engine_uuid);
}

void px_record_set_engine(struct px_record *record, struct px_span uuid)
{
    if (uuid.size == 0)
        return;
    free(record->engine_uuid);
    record->engine_uuid = px_strndup(uuid.data, uuid.size);
}

bool px_record_is_ours(const struct px_record *record)
{
    return record != NULL && record->request != NULL && px_is_ours(px_msg_header(record->request));
}

bool px_record_is_complete(const struct px_record *record)
{
    return record->reply != NULL || record->lost_header != NULL;
}

/* ---- dates ----------------------------------------------------------------- */

/* Days from 1970-01-01 in the Gregorian calendar. */
static int64_t days_of(int64_t year, int64_t month, int64_t day)
{
    year -= month <= 2;
    int64_t era = (year >= 0 ? year : year - 399) / 400;
    int64_t year_of_era = year - era * 400;
    int64_t day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year -
           719468;
}

/* Reads `count` digits at *at and moves behind them; -1 when they are not there. */
static int64_t digits(const char **at, const char *end, int count)
{
    int64_t value = 0;
    for (int i = 0; i < count; i++, (*at)++) {
        if (*at == end || **at < '0' || **at > '9')
            return -1;
        value = value * 10 + (**at - '0');
    }
    return value;
}

static bool skip(const char **at, const char *end, char c)
{
    if (*at == end || **at != c)
        return false;
    ++*at;
    return true;
}

/* ".f" to ".ffffff" in microseconds; 0 when there is none. */
static int64_t fraction(const char **at, const char *end)
{
    int64_t value = 0, scale = 100000;
    if (!skip(at, end, '.'))
        return 0;
    for (; *at < end && **at >= '0' && **at <= '9'; ++*at, scale /= 10)
        value += (**at - '0') * scale;
    return value;
}

/* "", "Z", "+hh:mm", "-hhmm" in minutes; INT64_MIN for anything else. */
static int64_t zone(const char *at, const char *end)
{
    if (at == end || (skip(&at, end, 'Z') && at == end))
        return 0;
    bool west = at < end && *at == '-';
    if (!west && (at == end || *at != '+'))
        return INT64_MIN;
    at++;
    int64_t hours = digits(&at, end, 2);
    skip(&at, end, ':');
    int64_t minutes = digits(&at, end, 2);
    if (hours < 0 || minutes < 0 || at != end)
        return INT64_MIN;
    return (hours * 60 + minutes) * (west ? -1 : 1);
}

int64_t px_date_parse(struct px_span text)
{
    if (text.size == 0)
        return -1;
    const char *at = text.data, *end = text.data + text.size;
    int64_t year = digits(&at, end, 4);
    bool dashes = skip(&at, end, '-');
    int64_t month = digits(&at, end, 2);
    dashes = dashes && skip(&at, end, '-');
    int64_t day = digits(&at, end, 2);
    if (!dashes || year < 0 || month < 1 || month > 12 || day < 1 || day > 31 ||
        !(skip(&at, end, 'T') || skip(&at, end, ' ')))
        return -1;
    int64_t hour = digits(&at, end, 2);
    bool colons = skip(&at, end, ':');
    int64_t minute = digits(&at, end, 2);
    colons = colons && skip(&at, end, ':');
    int64_t second = digits(&at, end, 2);
    if (!colons || hour < 0 || hour > 24 || minute < 0 || minute > 59 || second < 0 || second > 60)
        return -1;
    int64_t micros = fraction(&at, end);
    int64_t east = zone(at, end);
    if (east == INT64_MIN)
        return -1;
    return (((days_of(year, month, day) * 24 + hour) * 60 + minute - east) * 60 + second) *
               1000000 +
           micros;
}

/* ---- fields ---------------------------------------------------------------- */

static json_t *parsed(struct px_span text)
{
    json_t *value = px_json_parse(text, NULL);
    return value ? value : json_null();
}

static json_t *text_or_null(const char *text)
{
    return text != NULL && text[0] != 0 ? json_string(text) : json_null();
}

static json_t *shared_or_null(json_t *value)
{
    return value ? json_incref(value) : json_null();
}

/* A string member of one of the JSON frames. */
static json_t *member_of(struct px_span object, const char *key)
{
    struct px_span text = px_scan_member(object, key);
    json_t *string = text.size > 0 ? json_stringn(text.data, text.size) : NULL;
    return string ? string : json_null();
}

static json_t *get_msg_id(const struct px_record *record)
{
    return json_string(record->msg_id);
}

static json_t *get_header(const struct px_record *record)
{
    return record->request ? parsed(px_msg_header(record->request)) : json_null();
}

static json_t *get_metadata(const struct px_record *record)
{
    return record->request ? parsed(px_msg_metadata(record->request)) : json_null();
}

static json_t *get_content(const struct px_record *record)
{
    return record->request ? parsed(px_msg_content(record->request)) : json_null();
}

static json_t *get_submitted(const struct px_record *record)
{
    return record->request ? member_of(px_msg_header(record->request), "date") : json_null();
}

static json_t *get_client_uuid(const struct px_record *record)
{
    return record->request ? member_of(px_msg_header(record->request), "session") : json_null();
}

static json_t *get_engine_uuid(const struct px_record *record)
{
    return text_or_null(record->engine_uuid);
}

static json_t *get_started(const struct px_record *record)
{
    return record->reply ? member_of(px_msg_metadata(record->reply), "started") : json_null();
}

static json_t *get_completed(const struct px_record *record)
{
    if (record->reply != NULL)
        return member_of(px_msg_header(record->reply), "date");
    return shared_or_null(json_object_get(record->lost_header, "date"));
}

static json_t *get_received(const struct px_record *record)
{
    return text_or_null(record->received);
}

static json_t *get_resubmitted(const struct px_record *record)
{
    return text_or_null(record->resubmitted);
}

static json_t *get_result_header(const struct px_record *record)
{
    return record->reply ? parsed(px_msg_header(record->reply))
                         : shared_or_null(record->lost_header);
}

static json_t *get_result_metadata(const struct px_record *record)
{
    return record->reply ? parsed(px_msg_metadata(record->reply)) : json_null();
}

static json_t *get_result_content(const struct px_record *record)
{
    return record->reply ? parsed(px_msg_content(record->reply))
                         : shared_or_null(record->lost_content);
}

static json_t *get_queue(const struct px_record *record)
{
    return text_or_null(record->queue);
}

/* What an engine repeats of a cell's code, unless the sender asked it not to. */
static json_t *get_execute_input(const struct px_record *record)
{
    static const char *const quiet = "px_quiet";
    struct px_span value;
    if (record->execute_input || !record->request || !record->reply ||
        px_scan(px_msg_metadata(record->reply), &quiet, &value, 1) != 0 || !px_scan_true(value))
        return shared_or_null(record->execute_input);
    json_t *content = get_content(record);
    const bool silent = json_is_true(json_object_get(content, "silent"));
    json_t *code = shared_or_null(silent ? NULL : json_object_get(content, "code"));
    json_decref(content);
    return code;
}

static json_t *get_execute_result(const struct px_record *record)
{
    return shared_or_null(record->execute_result);
}

static json_t *get_error(const struct px_record *record)
{
    return shared_or_null(record->error);
}

static json_t *text_of(const struct px_buf *buf)
{
    json_t *text = json_stringn(buf->data ? buf->data : "", buf->size);
    return text ? text : json_string("");
}

static json_t *get_stdout(const struct px_record *record)
{
    return text_of(&record->standard_out);
}

static json_t *get_stderr(const struct px_record *record)
{
    return text_of(&record->standard_err);
}

static json_t *get_label(const struct px_record *record)
{
    json_t *metadata = get_metadata(record);
    json_t *label = shared_or_null(json_object_get(metadata, "label"));
    json_decref(metadata);
    return label;
}

static json_t *get_nothing(const struct px_record *record)
{
    (void)record;
    return json_null();
}

static json_t *get_display_data(const struct px_record *record)
{
    return shared_or_null(record->display_data);
}

/* When a field is part of a record: buffers only when they are asked for. */
enum shown { ALWAYS, ASKED, KNOWN };

/* In the order of ipyparallel's table. */
static const struct {
    const char *name;
    json_t *(*get)(const struct px_record *record);
    enum shown shown;
} fields[] = {
    {"msg_id", get_msg_id, ALWAYS},
    {"header", get_header, ALWAYS},
    {"metadata", get_metadata, ALWAYS},
    {"content", get_content, ALWAYS},
    {"buffers", get_nothing, ASKED},
    {"submitted", get_submitted, ALWAYS},
    {"client_uuid", get_client_uuid, ALWAYS},
    {"engine_uuid", get_engine_uuid, ALWAYS},
    {"started", get_started, ALWAYS},
    {"completed", get_completed, ALWAYS},
    {"resubmitted", get_resubmitted, ALWAYS},
    {"received", get_received, ALWAYS},
    {"result_header", get_result_header, ALWAYS},
    {"result_metadata", get_result_metadata, ALWAYS},
    {"result_content", get_result_content, ALWAYS},
    {"result_buffers", get_nothing, ASKED},
    {"queue", get_queue, ALWAYS},
    {"execute_input", get_execute_input, ALWAYS},
    {"execute_result", get_execute_result, ALWAYS},
    {"error", get_error, ALWAYS},
    {"stdout", get_stdout, ALWAYS},
    {"stderr", get_stderr, ALWAYS},
    {"label", get_label, ALWAYS},
    {"display_data", get_display_data, KNOWN},
};

json_t *px_record_field(const struct px_record *record, const char *name)
{
    for (size_t i = 0; i < PX_COUNT(fields); i++) {
        if (strcmp(fields[i].name, name) == 0)
            return fields[i].get(record);
    }
    return NULL;
}

bool px_record_has_field(const struct px_record *record, const char *name)
{
    for (size_t i = 0; i < PX_COUNT(fields); i++) {
        if (strcmp(fields[i].name, name) == 0)
            return fields[i].shown != KNOWN || record->display_data != NULL;
    }
    return false;
}

json_t *px_record_json(const struct px_record *record, const json_t *keys)
{
    json_t *object = json_object();
    bool chosen = json_array_size(keys) > 0;
    for (size_t i = 0; i < PX_COUNT(fields); i++) {
        if (!chosen && fields[i].shown != ASKED && px_record_has_field(record, fields[i].name))
            json_object_set_new(object, fields[i].name, fields[i].get(record));
    }
    if (chosen)
        json_object_set_new(object, "msg_id", get_msg_id(record));
    for (size_t i = 0; i < json_array_size(keys); i++) {
        const char *key = json_string_value(json_array_get(keys, i));
        if (strcmp(key, "buffers") != 0 && strcmp(key, "result_buffers") != 0)
            json_object_set_new(object, key, px_record_field(record, key));
    }
    return object;
}
