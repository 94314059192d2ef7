/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * tags: names for engines (protocol.h), from the command line. Pure.
 */
#include "engine.h"

#include "protocol.h"

#include <string.h>

#define MOST_TAGS 16 /* with what else an engine announces below what a client reads */

static bool is_tag(struct px_span name)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_";
    bool letter = false;
    for (size_t i = 0; i < name.size; i++) {
        const bool here = strchr(letters, name.data[i]) != NULL;
        if (!here && !strchr(i ? "0123456789.-" : "0123456789", name.data[i]))
            return false;
        letter = letter || here;
    }
    return letter && name.size <= PX_TAG_SIZE && !px_span_equal(name, "all");
}

char *px_tags_json(const char *text, struct px_error *err)
{
    struct px_buf out = {0};
    int count = 0;
    for (const char *at = text; *at; count++) {
        const struct px_span name = {at, strcspn(at, ",")};
        if (!is_tag(name) || count == MOST_TAGS) {
            px_buf_fini(&out);
            if (count == MOST_TAGS)
                px_fail(err, PX_ELIMIT, "more than %d tags", MOST_TAGS);
            else
                px_fail(err, PX_EINVAL,
                        "'%.*s' is no tag: letters, digits, '_', '.' and '-', %d at most, not a "
                        "number and not 'all'",
                        (int)(name.size < 80 ? name.size : 80), name.data, PX_TAG_SIZE);
            return NULL;
        }
        px_buf_printf(&out, ", \"" PX_TAG "%.*s\"", (int)name.size, name.data);
        at += name.size;
        at += *at == ',';
    }
    px_buf_text(&out, "");
    return out.data;
}
