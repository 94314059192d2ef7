/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * reply: the content of error replies, in the form that ipyparallel's clients turn back into
 * exceptions (error.wrap_exception, error.unwrap_exception).
 */
#include "controller.h"

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
