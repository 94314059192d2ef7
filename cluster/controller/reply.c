/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * reply: the content of error replies, in the form that ipyparallel's clients turn back into
 * exceptions (error.wrap_exception, error.unwrap_exception).
 */
#include "controller.h"

#include "protocol.h"

#include <stdio.h>
#include <string.h>

void px_error_content(struct px_buf *out, const char *ename, const char *evalue)
{
    struct px_buf line = {0};
    px_buf_printf(&line, evalue[0] ? "%s: %s" : "%s", ename, evalue);
    px_buf_text(out, "{\"status\": \"error\", \"traceback\": [");
    px_buf_json_string(out, line.data, line.size);
    px_buf_text(out, "], \"ename\": ");
    px_buf_json_string(out, ename, strlen(ename));
    px_buf_text(out, ", \"evalue\": ");
    px_buf_json_string(out, evalue, strlen(evalue));
    px_buf_text(out, ", \"engine_info\": {}}");
    px_buf_fini(&line);
}

struct px_msg *px_error_reply(struct px_session *session, struct px_span client,
                              struct px_span engine, struct px_span parent, const char *ename,
                              const char *evalue)
{
    char date[PX_DATE_SIZE];
    struct px_buf content = {0}, metadata = {0};
    struct px_span idents[2] = {client, engine};
    px_error_content(&content, ename, evalue);
    px_buf_text(&metadata, "");
    if (engine.size > 0) {
        px_date_now(date);
        px_buf_text(&metadata, "{\"status\": \"error\", \"engine\": ");
        px_buf_json_string(&metadata, engine.data, engine.size);
        px_buf_printf(&metadata, ", \"date\": \"%s\"}", date);
    }
    struct px_draft draft = {.idents = idents,
                             .ident_count = engine.size > 0 ? 2 : 1,
                             .type = PX_APPLY_REPLY,
                             .parent = parent,
                             .metadata = px_buf_span(&metadata),
                             .content = px_buf_span(&content)};
    struct px_msg *msg = px_session_build(session, &draft);
    px_buf_fini(&content);
    px_buf_fini(&metadata);
    return msg;
}

struct px_msg *px_aborted_reply(struct px_session *session, struct px_span client,
                                struct px_span parent)
{
    const struct px_span aborted = PX_SPAN("{\"status\": \"aborted\"}");
    struct px_draft draft = {.idents = &client,
                             .ident_count = 1,
                             .type = PX_APPLY_REPLY,
                             .parent = parent,
                             .metadata = aborted,
                             .content = aborted};
    return px_session_build(session, &draft);
}

void px_error_reply_add(struct px_session *session, struct px_msg *reply, const char *key,
                        int number)
{
    struct px_span old = px_msg_content(reply);
    struct px_buf content = {0};
    px_buf_append(&content, old.data, old.size - 1);
    px_buf_printf(&content, ", \"%s\": %d}", key, number);
    px_msg_replace(reply, px_msg_ident_count(reply) + 5, content.data, content.size);
    px_session_resign(session, reply);
    px_buf_fini(&content);
}

struct px_msg *px_unread_reply(struct px_session *session, const struct px_msg *reply)
{
    struct px_span engine = {0};
    if (px_msg_ident_count(reply) > 1)
        engine = px_msg_ident(reply, 1);
    struct px_msg *msg = px_error_reply(
        session, px_msg_ident(reply, 0), engine, px_msg_parent(reply), "RuntimeError",
        "too much was left unread for this reply to be kept: get_result() has it while the task "
        "database does");
    px_error_reply_add(session, msg, PX_UNREAD, 1);
    return msg;
}

bool px_is_ours(struct px_span header)
{
    return px_span_equal(px_scan_member(header, "version"), PX_PROTOCOL_VERSION);
}

char *px_say_unsent(struct px_span engine)
{
    return px_format("the message did not reach engine '%.*s'", (int)engine.size, engine.data);
}

#define MOST_DIGITS 9

struct px_msg *px_probe_build(struct px_session *session, struct px_span uuid, unsigned number)
{
    char ident[sizeof(PX_PROBE) + MOST_DIGITS + 1];
    snprintf(ident, sizeof(ident), PX_PROBE "%u", number);
    struct px_span idents[2] = {uuid, px_span_of(ident)};
    struct px_span content = PX_SPAN("{\"code\": \"\", \"silent\": true, \"store_history\": false, "
                                     "\"user_expressions\": {}, \"allow_stdin\": false}");
    struct px_draft draft = {
        .idents = idents, .ident_count = 2, .type = PX_EXECUTE_REQUEST, .content = content};
    return px_session_build(session, &draft);
}

unsigned px_probe_number(struct px_span ident)
{
    const size_t head = strlen(PX_PROBE);
    unsigned number = 0;
    if (ident.size <= head || ident.size > head + MOST_DIGITS ||
        memcmp(ident.data, PX_PROBE, head) != 0)
        return 0;
    for (size_t i = head; i < ident.size; i++) {
        if (ident.data[i] < '0' || ident.data[i] > '9')
            return 0;
        number = 10 * number + (unsigned)(ident.data[i] - '0');
    }
    return number;
}

bool px_is_probe(const struct px_msg *reply)
{
    return px_probe_number(px_msg_ident(reply, 1)) > 0;
}
