/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * config: configuration files as traitlets has them, a profile's <program>_config.py and .json: of
 * the former only lines `c.Class.trait = literal`, for no Python is run.
 */
#include "wire/wire.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_CONFIG (1u << 20)
#define MOST_KEY 4096u

/* ---- literals ---- */

char *px_config_unquote(struct px_span literal)
{
    if (literal.size > 2 && (literal.data[0] == 'b' || literal.data[0] == 'u') &&
        (literal.data[1] == '\'' || literal.data[1] == '"')) {
        literal.data++;
        literal.size--;
    }
    char quote = literal.size >= 2 ? literal.data[0] : 0;
    if ((quote != '\'' && quote != '"') || literal.data[literal.size - 1] != quote)
        return px_strndup(literal.data, literal.size);
    struct px_buf out = {0};
    px_buf_text(&out, "");
    for (size_t i = 1; i + 1 < literal.size; i++) {
        if (literal.data[i] == '\\' && i + 2 < literal.size)
            i++;
        px_buf_append(&out, literal.data + i, 1);
    }
    return out.data ? out.data : px_strdup("");
}

/* Cuts a comment that is not inside quotes. */
static struct px_span without_comment(struct px_span line)
{
    char quote = 0;
    for (size_t i = 0; i < line.size; i++) {
        char c = line.data[i];
        if (quote != 0 && c == '\\')
            i++;
        else if (quote != 0 && c == quote)
            quote = 0;
        else if (quote == 0 && (c == '\'' || c == '"'))
            quote = c;
        else if (quote == 0 && c == '#')
            return (struct px_span){line.data, i};
    }
    return line;
}

/* A literal is a number, a string, a list, True, False or None; an expression is none. */
static bool is_literal(struct px_span text)
{
    if (text.size == 0)
        return false;
    char first = text.data[0], last = text.data[text.size - 1];
    if (first == '\'' || first == '"')
        return text.size >= 2 && last == first &&
               memchr(text.data + 1, first, text.size - 2) == NULL;
    if (first == '[')
        return last == ']';
    if (first == 'b' && text.size > 2)
        return last == '\'' || last == '"';
    return isdigit((unsigned char)first) || first == '.' || px_span_equal(text, "True") ||
           px_span_equal(text, "False") || px_span_equal(text, "None");
}

/* ---- files ---- */

/* 1 if it was taken. A value that is wrong is logged, a name that nobody knows passed over. */
static int offer(const char *name, struct px_span literal, px_config_set set, void *ctx)
{
    struct px_error err;
    if (set(ctx, name, literal, &err) == 0)
        return 1;
    if (err.code != PX_ENOENT)
        px_log(PX_WARN, "config-value", "why=\"%s\"", err.text);
    return 0;
}

static int take_line(struct px_span line, px_config_set set, void *ctx)
{
    line = px_span_trim(without_comment(line));
    const char *equal =
        line.size > 2 && memcmp(line.data, "c.", 2) == 0 ? memchr(line.data, '=', line.size) : NULL;
    if (equal == NULL)
        return 0;
    const size_t at = (size_t)(equal - line.data);
    const struct px_span name = px_span_trim((struct px_span){line.data + 2, at - 2});
    const struct px_span value = px_span_trim((struct px_span){equal + 1, line.size - at - 1});
    char text[128];
    if (name.size >= sizeof text || !memchr(name.data, '.', name.size) || !is_literal(value))
        return 0;
    memcpy(text, name.data, name.size);
    text[name.size] = 0;
    return offer(text, value, set, ctx);
}

int px_config_py(struct px_span text, px_config_set set, void *ctx)
{
    int count = 0;
    while (text.size > 0) {
        const char *end = memchr(text.data, '\n', text.size);
        size_t size = end ? (size_t)(end - text.data) : text.size;
        count += take_line((struct px_span){text.data, size}, set, ctx);
        size += end != NULL;
        text.data += size;
        text.size -= size;
    }
    return count;
}

static int take_value(const char *class_name, const char *trait, const json_t *value,
                      px_config_set set, void *ctx)
{
    char name[128];
    char *text = json_dumps(value, JSON_ENCODE_ANY);
    const int size = snprintf(name, sizeof name, "%s.%s", class_name, trait);
    const bool taken = text && size < (int)sizeof name && offer(name, px_span_of(text), set, ctx);
    free(text);
    return taken;
}

int px_config_json(struct px_span text, px_config_set set, void *ctx)
{
    json_t *config = px_json_parse(text, NULL);
    const char *class_name, *trait;
    json_t *section, *value;
    int count = 0;
    json_object_foreach(config, class_name, section) {
        json_object_foreach(section, trait, value)
            count += take_value(class_name, trait, value, set, ctx);
    }
    json_decref(config);
    return count;
}

int px_config_file(const char *path, px_config_set set, void *ctx, struct px_error *err)
{
    struct px_buf text = {0};
    const char *suffix = strrchr(path, '.');
    const int rc = px_file_read(path, MOST_CONFIG, &text, err);
    if (rc == 0 && suffix && strcmp(suffix, ".json") == 0)
        px_config_json(px_buf_span(&text), set, ctx);
    else if (rc == 0)
        px_config_py(px_buf_span(&text), set, ctx);
    px_buf_fini(&text);
    return rc;
}

void px_config_profile(const char *profile_dir, const char *program, px_config_set set, void *ctx)
{
    static const char *const suffixes[] = {"py", "json"};
    for (size_t i = 0; i < PX_COUNT(suffixes); i++) {
        struct px_error err;
        char *path = px_format("%s/%s_config.%s", profile_dir, program, suffixes[i]);
        if (px_config_file(path, set, ctx, &err) < 0 && err.code != PX_ENOENT)
            px_log(PX_WARN, "config-unreadable", "why=\"%s\"", err.text);
        free(path);
    }
}

char *px_key_file_read(const char *path, struct px_error *err)
{
    struct px_buf text = {0};
    const int rc = px_file_read(path, MOST_KEY, &text, err);
    const struct px_span key = px_span_trim(px_buf_span(&text));
    char *out = rc == 0 && key.size > 0 ? px_strndup(key.data, key.size) : NULL;
    if (rc == 0 && !out)
        px_fail(err, PX_EINVAL, "%.200s holds no key", path);
    px_buf_fini(&text);
    return out;
}
