/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * row: a record as a row of the table that ipyparallel's SQLiteDB keeps (controller/sqlitedb.py).
 * JSON columns hold the frames as they came; lists of buffers are pickled lists of bytes, of which
 * the few opcodes that Python's pickle uses for such a list are written and read here.
 */
#include "hub.h"

#include <stdlib.h>
#include <string.h>

static const char *const columns[PX_COLUMNS] = {
    [PX_COL_MSG_ID] = "msg_id",
    [PX_COL_HEADER] = "header",
    [PX_COL_METADATA] = "metadata",
    [PX_COL_CONTENT] = "content",
    [PX_COL_BUFFERS] = "buffers",
    [PX_COL_SUBMITTED] = "submitted",
    [PX_COL_CLIENT] = "client_uuid",
    [PX_COL_ENGINE] = "engine_uuid",
    [PX_COL_STARTED] = "started",
    [PX_COL_COMPLETED] = "completed",
    [PX_COL_RESUBMITTED] = "resubmitted",
    [PX_COL_RECEIVED] = "received",
    [PX_COL_RESULT_HEADER] = "result_header",
    [PX_COL_RESULT_METADATA] = "result_metadata",
    [PX_COL_RESULT_CONTENT] = "result_content",
    [PX_COL_RESULT_BUFFERS] = "result_buffers",
    [PX_COL_QUEUE] = "queue",
    [PX_COL_EXECUTE_INPUT] = "execute_input",
    [PX_COL_EXECUTE_RESULT] = "execute_result",
    [PX_COL_ERROR] = "error",
    [PX_COL_STDOUT] = "stdout",
    [PX_COL_STDERR] = "stderr",
    [PX_COL_LABEL] = "label",
};

const char *px_column_name(size_t column)
{
    return columns[column];
}

const char *px_column_type(size_t column)
{
    static const char *const types[PX_COLUMNS] = {
        [PX_COL_MSG_ID] = "text PRIMARY KEY",   [PX_COL_HEADER] = "dict text",
        [PX_COL_METADATA] = "dict text",        [PX_COL_CONTENT] = "dict text",
        [PX_COL_BUFFERS] = "bufs blob",         [PX_COL_SUBMITTED] = "timestamp",
        [PX_COL_STARTED] = "timestamp",         [PX_COL_COMPLETED] = "timestamp",
        [PX_COL_RECEIVED] = "timestamp",        [PX_COL_RESULT_HEADER] = "dict text",
        [PX_COL_RESULT_METADATA] = "dict text", [PX_COL_RESULT_CONTENT] = "dict text",
        [PX_COL_RESULT_BUFFERS] = "bufs blob",
    };
    return types[column] ? types[column] : "text";
}

void px_row_fini(struct px_row *row)
{
    for (size_t i = 0; i < PX_COLUMNS; i++)
        px_buf_fini(&row->cells[i]);
}

void px_row_set(struct px_row *row, enum px_column column, struct px_span value)
{
    px_buf_clear(&row->cells[column]);
    px_buf_append(&row->cells[column], value.data, value.size);
    row->present[column] = true;
}

static struct px_span cell(const struct px_row *row, enum px_column column)
{
    return row->present[column] ? px_buf_span(&row->cells[column]) : (struct px_span){0};
}

/* ---- pickled lists of bytes --------------------------------------------------- */

static void put_number(struct px_buf *out, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) {
        char byte = (char)(value >> (8 * i));
        px_buf_append(out, &byte, 1);
    }
}

static void pickle_buffers(struct px_buf *out, const struct px_msg *msg)
{
    px_buf_append(out, "\x80\x04](", 4); /* protocol 4, empty list, mark */
    for (size_t i = 0; i < px_msg_buffer_count(msg); i++) {
        struct px_span buffer = px_msg_buffer(msg, i);
        bool wide = buffer.size > UINT32_MAX;
        px_buf_append(out, wide ? "\x8e" : "B", 1);
        put_number(out, buffer.size, wide ? 8 : 4);
        px_buf_append(out, buffer.data, buffer.size);
    }
    px_buf_append(out, "e.", 2); /* append all since the mark, stop */
}

/* Opcodes with the bytes that follow: a count of bytes to skip, or the size of a string's size. */
static const struct {
    unsigned char code, skip, size;
} opcodes[] = {
    {0x80, 1, 0}, {0x95, 8, 0}, {']', 0, 0}, {0x94, 0, 0}, {'q', 1, 0},  {'(', 0, 0},
    {'a', 0, 0},  {'e', 0, 0},  {'C', 0, 1}, {'B', 0, 4},  {0x8e, 0, 8},
};

static uint64_t get_number(const char *data, size_t bytes)
{
    uint64_t value = 0;
    for (size_t i = bytes; i-- > 0;)
        value = value << 8 | (unsigned char)data[i];
    return value;
}

/* One opcode at the front of `text`, which moves behind it. -1 when it is none of ours. */
static int unpickle_one(struct px_span *text, struct px_msg *out)
{
    for (size_t i = 0; i < PX_COUNT(opcodes); i++) {
        size_t head = 1u + opcodes[i].skip + opcodes[i].size;
        if ((unsigned char)text->data[0] != opcodes[i].code)
            continue;
        if (text->size < head)
            return -1;
        uint64_t size = get_number(text->data + 1, opcodes[i].size);
        if (size > text->size - head)
            return -1;
        if (opcodes[i].size > 0)
            px_msg_append(out, text->data + head, (size_t)size);
        text->data += head + size;
        text->size -= head + size;
        return 0;
    }
    return -1;
}

int px_buffers_unpickle(struct px_span text, struct px_msg *out)
{
    while (text.size > 0 && text.data[0] != '.') {
        if (unpickle_one(&text, out) != 0)
            return -1;
    }
    return text.size == 1 ? 0 : -1;
}

/* ---- record to row ----------------------------------------------------------------- */

static void set_text(struct px_row *row, enum px_column column, const char *text)
{
    if (text != NULL && text[0] != 0)
        px_row_set(row, column, px_span_of(text));
}

static void set_json(struct px_row *row, enum px_column column, const json_t *value)
{
    char *text = value && !json_is_null(value) ? json_dumps(value, JSON_ENCODE_ANY) : NULL;
    set_text(row, column, text);
    free(text);
}

/* A field of text as its text, any other value as JSON. */
static void set_field(struct px_row *row, enum px_column column, const struct px_record *record)
{
    json_t *value = px_record_field(record, columns[column]);
    if (json_is_string(value))
        px_row_set(row, column,
                   (struct px_span){json_string_value(value), json_string_length(value)});
    else
        set_json(row, column, value);
    json_decref(value);
}

static void set_frames(struct px_row *row, enum px_column header, enum px_column metadata,
                       enum px_column content, enum px_column buffers, const struct px_msg *msg)
{
    if (msg == NULL)
        return;
    px_row_set(row, header, px_msg_header(msg));
    px_row_set(row, metadata, px_msg_metadata(msg));
    px_row_set(row, content, px_msg_content(msg));
    pickle_buffers(&row->cells[buffers], msg);
    row->present[buffers] = true;
}

void px_row_from_record(struct px_row *row, const struct px_record *record)
{
    static const enum px_column plain[] = {
        PX_COL_MSG_ID,    PX_COL_SUBMITTED,   PX_COL_CLIENT,       PX_COL_ENGINE, PX_COL_STARTED,
        PX_COL_COMPLETED, PX_COL_RESUBMITTED, PX_COL_RECEIVED,     PX_COL_QUEUE,  PX_COL_STDOUT,
        PX_COL_STDERR,    PX_COL_LABEL,       PX_COL_EXECUTE_INPUT};
    for (size_t i = 0; i < PX_COUNT(plain); i++)
        set_field(row, plain[i], record);
    set_json(row, PX_COL_EXECUTE_RESULT, record->execute_result);
    set_json(row, PX_COL_ERROR, record->error);
    set_frames(row, PX_COL_HEADER, PX_COL_METADATA, PX_COL_CONTENT, PX_COL_BUFFERS,
               record->request);
    set_frames(row, PX_COL_RESULT_HEADER, PX_COL_RESULT_METADATA, PX_COL_RESULT_CONTENT,
               PX_COL_RESULT_BUFFERS, record->reply);
    if (record->reply == NULL) {
        set_json(row, PX_COL_RESULT_HEADER, record->lost_header);
        set_json(row, PX_COL_RESULT_CONTENT, record->lost_content);
    }
}

/* ---- row to record ------------------------------------------------------------------- */

static void append_json(struct px_msg *msg, struct px_span text)
{
    px_msg_append(msg, text.size ? text.data : "{}", text.size ? text.size : 2);
}

/* The message of which these were the frames; NULL when there is no header. */
static struct px_msg *rebuild(struct px_span header, struct px_span metadata,
                              struct px_span content, struct px_span buffers)
{
    if (header.size == 0)
        return NULL;
    struct px_msg *msg = px_msg_create();
    px_msg_append(msg, PX_DELIMITER, sizeof(PX_DELIMITER) - 1);
    px_msg_append(msg, "", 0);
    append_json(msg, header);
    px_msg_append(msg, "{}", 2);
    append_json(msg, metadata);
    append_json(msg, content);
    bool right = buffers.size == 0 || px_buffers_unpickle(buffers, msg) == 0;
    if (right && px_msg_locate(msg, NULL) == 0)
        return msg;
    px_msg_destroy(msg);
    return NULL;
}

static char *dup_cell(const struct px_row *row, enum px_column column)
{
    struct px_span text = cell(row, column);
    return text.size > 0 ? px_strndup(text.data, text.size) : NULL;
}

static json_t *parse_cell(const struct px_row *row, enum px_column column)
{
    struct px_span text = cell(row, column);
    return text.size > 0 ? px_json_parse(text, NULL) : NULL;
}

struct px_record *px_row_to_record(const struct px_row *row)
{
    struct px_span msg_id = cell(row, PX_COL_MSG_ID), received = cell(row, PX_COL_RECEIVED);
    struct px_span queue = cell(row, PX_COL_QUEUE), input = cell(row, PX_COL_EXECUTE_INPUT);
    if (msg_id.size == 0 || msg_id.size > PX_MAX_MSG_ID)
        return NULL;
    struct px_record *record = px_alloc(sizeof(*record) + msg_id.size + 1);
    memcpy(record->msg_id, msg_id.data, msg_id.size);
    record->request = rebuild(cell(row, PX_COL_HEADER), cell(row, PX_COL_METADATA),
                              cell(row, PX_COL_CONTENT), cell(row, PX_COL_BUFFERS));
    record->reply = rebuild(cell(row, PX_COL_RESULT_HEADER), cell(row, PX_COL_RESULT_METADATA),
                            cell(row, PX_COL_RESULT_CONTENT), cell(row, PX_COL_RESULT_BUFFERS));
    record->queue = px_span_equal(queue, "mux") ? "mux" : px_span_equal(queue, "task") ? "task" : 0;
    record->engine_uuid = dup_cell(row, PX_COL_ENGINE);
    record->resubmitted = dup_cell(row, PX_COL_RESUBMITTED);
    if (received.size < sizeof(record->received))
        memcpy(record->received, received.size ? received.data : "", received.size);
    struct px_span out = cell(row, PX_COL_STDOUT), err = cell(row, PX_COL_STDERR);
    px_buf_append(&record->standard_out, out.size ? out.data : "", out.size);
    px_buf_append(&record->standard_err, err.size ? err.data : "", err.size);
    record->execute_input = input.size ? json_stringn(input.data, input.size) : NULL;
    record->execute_result = parse_cell(row, PX_COL_EXECUTE_RESULT);
    record->error = parse_cell(row, PX_COL_ERROR);
    record->bytes = out.size + err.size + (record->request ? px_msg_bytes(record->request) : 0) +
                    (record->reply ? px_msg_bytes(record->reply) : 0);
    return record;
}
