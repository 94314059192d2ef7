/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * config: configuration files as traitlets has them, a profile's <program>_config.py and .json. One
 * of the former that has but lines `c.Class.trait = literal`, as most have, is read here; Python
 * runs any other (config_run.c), and where there is none its literal lines are what counts.
 */
#include "wire/wire.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST_CONFIG (1u << 20)
#define MOST_KEY 4096u
#define NAME_SIZE 128 /* of Class.trait */
#define NUMBERS "0123456789.e[], "

/* ---- literals ---- */

char *px_config_unquote(struct px_span literal)
{
    if (literal.size > 2 && (literal.data[0] == 'b' || literal.data[0] == 'u') &&
        (literal.data[1] == '\'' || literal.data[1] == '"')) {
        literal.data++;
        literal.size--;
    }
    json_t *text = literal.size && literal.data[0] == '"'
                       ? json_loadb(literal.data, literal.size, JSON_DECODE_ANY, NULL)
                       : NULL;
    char *decoded = px_strdup(json_string_value(text));
    json_decref(text);
    if (decoded)
        return decoded;
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
    return out.data;
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

/* A text without escapes, a number, True, False, None, or a list of numbers; what is none may be an
 * expression. */
static bool is_literal(struct px_span text)
{
    if (text.size > 1 && text.data[0] == 'b' && !isalnum((unsigned char)text.data[1]))
        text.data++, text.size--;
    if (text.size == 0)
        return false;
    const char *start = text.data, first = start[0], last = start[text.size - 1];
    if (first == '\'' || first == '"')
        return text.size >= 2 && last == first && !memchr(start + 1, first, text.size - 2) &&
               !memchr(start, '\\', text.size);
    size_t digits = 0;
    while (digits < text.size && memchr(NUMBERS, start[digits], sizeof NUMBERS - 1))
        digits++;
    if (digits == text.size)
        return first == '[' ? last == ']' : isdigit((unsigned char)first) || first == '.';
    return px_span_equal(text, "True") || px_span_equal(text, "False") ||
           px_span_equal(text, "None");
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

static bool is_name(const char *text)
{
    const size_t class = strcspn(text, ".");
    for (size_t i = 0; text[i]; i++)
        if (i != class && !isalnum((unsigned char)text[i]) && text[i] != '_')
            return false;
    return text[class] != 0;
}

/* `c.Class.trait = literal`: the name, and the literal. Any other line is false, and so is one that
 * belongs to a condition. */
static bool split_line(struct px_span line, char name[NAME_SIZE], struct px_span *value)
{
    const char *equal =
        line.size > 2 && memcmp(line.data, "c.", 2) == 0 ? memchr(line.data, '=', line.size) : NULL;
    if (equal == NULL)
        return false;
    const char *end = line.data + line.size;
    const struct px_span trait =
        px_span_trim((struct px_span){line.data + 2, (size_t)(equal - line.data) - 2});
    if (trait.size >= NAME_SIZE)
        return false;
    memcpy(name, trait.data, trait.size);
    name[trait.size] = 0;
    *value = px_span_trim(without_comment((struct px_span){equal + 1, (size_t)(end - equal) - 1}));
    return is_name(name) && is_literal(*value);
}

/* The first line, of which *text is rid. */
static struct px_span next_line(struct px_span *text)
{
    const char *end = memchr(text->data, '\n', text->size);
    const struct px_span line = {text->data, end ? (size_t)(end - text->data) : text->size};
    text->data += line.size + (end != NULL);
    text->size -= line.size + (end != NULL);
    return line;
}

int px_config_py(struct px_span text, px_config_set set, void *ctx)
{
    char name[NAME_SIZE];
    struct px_span value;
    int count = 0;
    while (text.size > 0)
        if (split_line(next_line(&text), name, &value))
            count += offer(name, value, set, ctx);
    return count;
}

bool px_config_has_code(struct px_span text, bool literals)
{
    char name[NAME_SIZE];
    struct px_span value;
    while (text.size > 0) {
        const struct px_span line = next_line(&text), words = px_span_trim(without_comment(line));
        if (words.size > 0 && !px_span_equal(words, "c = get_config()") &&
            !(literals && split_line(line, name, &value)))
            return true;
    }
    return false;
}

static int take_value(const char *class_name, const char *trait, const json_t *value,
                      px_config_set set, void *ctx)
{
    char name[NAME_SIZE];
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
    int count = config ? 0 : -1;
    json_object_foreach(config, class_name, section) {
        json_object_foreach(section, trait, value)
            count += take_value(class_name, trait, value, set, ctx);
    }
    json_decref(config);
    return count;
}

static int take_object(const char *path, struct px_span text, px_config_set set, void *ctx,
                       struct px_error *err)
{
    if (px_config_json(text, set, ctx) >= 0)
        return 0;
    return px_fail(err, PX_EINVAL, "%s: not a JSON object", path);
}

/* A program, or what can be told of it without Python. */
static int take_program(const char *path, const char *python, struct px_span text,
                        px_config_set set, void *ctx, struct px_error *err)
{
    struct px_buf json = {0};
    struct px_error why;
    int rc = px_config_run(path, python, &json, &why);
    if (rc == 0) {
        rc = take_object(path, px_buf_span(&json), set, ctx, err);
    } else if (why.code == PX_EIO) {
        px_log(PX_WARN, "config-not-run", "taken=\"lines c.Class.trait = literal\" why=\"%s\"",
               why.text);
        px_config_py(text, set, ctx);
        rc = 0;
    } else {
        px_fail(err, why.code, "%s", why.text);
    }
    px_buf_fini(&json);
    return rc;
}

int px_config_file(const char *path, const char *python, px_config_set set, void *ctx,
                   struct px_error *err)
{
    struct px_buf text = {0};
    const char *suffix = strrchr(path, '.');
    int rc = px_file_read(path, MOST_CONFIG, &text, err);
    const struct px_span said = px_buf_span(&text);
    if (rc == 0 && suffix && strcmp(suffix, ".json") == 0)
        rc = take_object(path, said, set, ctx, err);
    else if (rc == 0 && px_config_has_code(said, true))
        rc = take_program(path, python, said, set, ctx, err);
    else if (rc == 0)
        px_config_py(said, set, ctx);
    px_buf_fini(&text);
    return rc;
}

int px_config_profile(const char *profile_dir, const char *program, const char *python,
                      px_config_set set, void *ctx, struct px_error *err)
{
    static const char *const suffixes[] = {"py", "json"};
    int rc = 0;
    for (size_t i = 0; i < PX_COUNT(suffixes) && rc == 0; i++) {
        char *path = px_format("%s/%s_config.%s", profile_dir, program, suffixes[i]);
        rc = access(path, F_OK) == 0 ? px_config_file(path, python, set, ctx, err) : 0;
        free(path);
    }
    return rc;
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
