/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * reply: the content of error replies, in the form that ipyparallel's clients turn back into
 * exceptions (error.wrap_exception, error.unwrap_exception).
 */
#include "controller.h"

#include "protocol.h"

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

#define PROBE_IDENT "px.probe" /* the client that asks */

struct px_msg *px_probe_build(struct px_session *session, struct px_span uuid)
{
    struct px_span idents[2] = {uuid, PX_SPAN(PROBE_IDENT)};
    struct px_span content = PX_SPAN("{\"code\": \"\", \"silent\": true, \"store_history\": false, "
                                     "\"user_expressions\": {}, \"allow_stdin\": false}");
    struct px_draft draft = {
        .idents = idents, .ident_count = 2, .type = PX_EXECUTE_REQUEST, .content = content};
    return px_session_build(session, &draft);
}

bool px_is_probe(const struct px_msg *reply)
{
    return px_span_equal(px_msg_ident(reply, 1), PROBE_IDENT);
}
