/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * line: the options of %px and %%px, from one table. Pure.
 *
 * Words are split as a shell would: quotes group, and so do brackets, so that a list of targets
 * may hold spaces. A long option may be cut short as long as it stays unique, takes
 * its value after "=" or as the next word; letters take it at once or as the next word.
 * Whatever is refused is refused before anything of it is used.
 */
#include "magics.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORD_SIZE 65536 /* of one value, after its quotes are gone */

const char *const px_group_names[] = {"type", "engine", "order", NULL};

/* ---- words -------------------------------------------------------------------- */

struct reader {
    const char *text;
    size_t size, at;
};

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '\f' || c == '\v';
}

static void skip_space(struct reader *reader)
{
    while (reader->at < reader->size && is_space(reader->text[reader->at]))
        reader->at++;
}

struct word_state {
    char quote; /* 0, or the quote that is open */
    int depth;  /* open brackets */
};

/* Whether `c` belongs to the word's value (a quote does not). */
static bool take_char(struct word_state *state, char c)
{
    if (state->quote) {
        if (c != state->quote)
            return true;
        state->quote = 0;
        return false;
    }
    if (c == '"' || c == '\'') {
        state->quote = c;
        return false;
    }
    state->depth += (c == '[' || c == '(') - (c == ']' || c == ')');
    return true;
}

/* The next word without its quotes, terminated. -1 when a quote or bracket stays open. */
static int next_word(struct reader *reader, struct px_buf *word, struct px_error *err)
{
    struct word_state state = {0};
    px_buf_clear(word);
    px_buf_text(word, "");
    skip_space(reader);
    for (; reader->at < reader->size; reader->at++) {
        const char c = reader->text[reader->at];
        if (is_space(c) && !state.quote && state.depth <= 0)
            break;
        if (c == '\0')
            return px_fail(err, PX_EINVAL, "the line holds a zero byte");
        if (take_char(&state, c))
            px_buf_append(word, &c, 1);
        if (word->size > WORD_SIZE)
            return px_fail(err, PX_ELIMIT, "a value has more than %d bytes", WORD_SIZE);
    }
    if (state.quote)
        return px_fail(err, PX_EINVAL, "a quote (%c) is not closed", state.quote);
    if (state.depth > 0)
        return px_fail(err, PX_EINVAL, "a bracket is not closed: %.40s", word->data);
    return 0;
}

/* ---- targets -------------------------------------------------------------------- */

static bool parse_long(struct px_span text, long *out)
{
    char copy[24];
    while (text.size && is_space(text.data[0]))
        text = (struct px_span){text.data + 1, text.size - 1};
    while (text.size && is_space(text.data[text.size - 1]))
        text.size--;
    if (text.size == 0 || text.size >= sizeof copy)
        return false;
    memcpy(copy, text.data, text.size);
    copy[text.size] = '\0';
    char *end;
    errno = 0;
    *out = strtol(copy, &end, 10);
    return !*end && errno == 0 && labs(*out) <= INT_MAX && !is_space(copy[0]) && copy[0] != '+';
}

static bool is_blank(struct px_span text)
{
    for (size_t i = 0; i < text.size; i++) {
        if (!is_space(text.data[i]))
            return false;
    }
    return true;
}

/* Cuts off what is before the first `mark`; false when there is none: then `part` is all. */
static bool cut(struct px_span *rest, char mark, struct px_span *part)
{
    const char *at = rest->size ? memchr(rest->data, mark, rest->size) : NULL;
    *part = *rest;
    if (!at)
        return false;
    part->size = (size_t)(at - rest->data);
    *rest = (struct px_span){at + 1, rest->size - part->size - 1};
    return true;
}

static int bad_targets(struct px_span text, struct px_error *err)
{
    return px_fail(err, PX_EINVAL, "'%.*s' names no engines; use an id, -1, 0:2, [0,2] or all",
                   (int)(text.size < 60 ? text.size : 60), text.data);
}

static int parse_slice(struct px_span text, struct px_targets *out, struct px_error *err)
{
    struct px_span rest = text, first, end, step = {0};
    cut(&rest, ':', &first);
    const bool has_step = cut(&rest, ':', &end);
    if (has_step)
        step = rest;
    out->kind = PX_TARGETS_SLICE;
    out->step = 1;
    out->has_first = !is_blank(first);
    out->has_end = !is_blank(end);
    if ((out->has_first && !parse_long(first, &out->first)) ||
        (out->has_end && !parse_long(end, &out->end)) ||
        (!is_blank(step) && !parse_long(step, &out->step)) || out->step == 0)
        return bad_targets(text, err);
    return 0;
}

static int parse_list(struct px_span text, struct px_targets *out, struct px_error *err)
{
    out->kind = PX_TARGETS_LIST;
    struct px_span rest = text, part;
    for (bool more = true; more;) {
        more = cut(&rest, ',', &part);
        if (!more && is_blank(part) && out->count > 0)
            return 0; /* "[0,]" */
        if (out->count == PX_TARGETS_MOST)
            return px_fail(err, PX_ELIMIT, "more than %d targets", PX_TARGETS_MOST);
        if ((out->count & (out->count - 1)) == 0)
            out->list = px_realloc(out->list, (out->count ? 2 * out->count : 1) * sizeof(long));
        if (!parse_long(part, &out->list[out->count++]))
            return bad_targets(text, err);
    }
    return 0;
}

int px_targets_parse(struct px_span text, struct px_targets *out, struct px_error *err)
{
    *out = (struct px_targets){0};
    while (text.size && is_space(text.data[text.size - 1]))
        text.size--;
    while (text.size && is_space(text.data[0]))
        text = (struct px_span){text.data + 1, text.size - 1};
    if (px_span_equal(text, "all")) {
        out->kind = PX_TARGETS_ALL;
        return 0;
    }
    if (text.size && memchr(text.data, ':', text.size))
        return parse_slice(text, out, err);
    const char open = text.size ? text.data[0] : '\0', close = open == '[' ? ']' : ')';
    if (text.size >= 2 && (open == '[' || open == '(') && text.data[text.size - 1] == close)
        return parse_list((struct px_span){text.data + 1, text.size - 2}, out, err);
    if (text.size && memchr(text.data, ',', text.size))
        return parse_list(text, out, err);
    out->kind = PX_TARGETS_ONE;
    return parse_long(text, &out->first) ? 0 : bad_targets(text, err);
}

void px_targets_fini(struct px_targets *targets)
{
    free(targets->list);
    targets->list = NULL;
    targets->count = 0;
}

/* ---- targets against the engines there are --------------------------------------------- */

struct chosen {
    int *ids;
    size_t count, most;
};

static void choose(struct chosen *chosen, int id)
{
    if (chosen->count < chosen->most)
        chosen->ids[chosen->count] = id;
    chosen->count++;
}

static int choose_one(struct chosen *chosen, long wanted, const int *ids, size_t count,
                      struct px_error *err)
{
    if (wanted < 0 && (size_t)-wanted <= count) {
        choose(chosen, ids[count - (size_t)-wanted]);
        return 0;
    }
    for (size_t i = 0; i < count; i++) {
        if (ids[i] == wanted) {
            choose(chosen, ids[i]);
            return 0;
        }
    }
    struct px_buf known = {0};
    px_render_engines(&known, ids, count);
    px_fail(err, PX_ENOENT, "there is no engine %ld; registered: %s", wanted, known.data);
    px_buf_fini(&known);
    return -1;
}

/* A bound of a slice as Python clips it: within [low, high], counted from the end if negative. */
static long clip(bool given, long value, long fallback, long low, long high, long count)
{
    if (!given)
        return fallback;
    value += value < 0 ? count : 0;
    return value < low ? low : value > high ? high : value;
}

static void choose_slice(struct chosen *chosen, const struct px_targets *t, const int *ids,
                         size_t count)
{
    const long n = (long)count;
    const bool up = t->step > 0;
    const long low = up ? 0 : -1, high = up ? n : n - 1;
    long at = clip(t->has_first, t->first, up ? low : high, low, high, n);
    const long end = clip(t->has_end, t->end, up ? high : low, low, high, n);
    for (; up ? at < end : at > end; at += t->step)
        choose(chosen, ids[at]);
}

long px_targets_resolve(const struct px_targets *targets, const int *ids, size_t count, int *out,
                        size_t most, struct px_error *err)
{
    struct chosen chosen = {.ids = out, .most = most};
    int status = 0;
    if (count == 0)
        return px_fail(err, PX_ENOENT, "no engines are registered");
    switch (targets->kind) {
    case PX_TARGETS_DEFAULT:
    case PX_TARGETS_ALL:
        for (size_t i = 0; i < count; i++)
            choose(&chosen, ids[i]);
        break;
    case PX_TARGETS_ONE:
        status = choose_one(&chosen, targets->first, ids, count, err);
        break;
    case PX_TARGETS_LIST:
        for (size_t i = 0; i < targets->count && status == 0; i++)
            status = choose_one(&chosen, targets->list[i], ids, count, err);
        break;
    case PX_TARGETS_SLICE:
        choose_slice(&chosen, targets, ids, count);
        break;
    }
    if (status < 0)
        return -1;
    if (chosen.count == 0)
        return px_fail(err, PX_ENOENT, "the targets name no engine; there are %zu", count);
    return (long)chosen.count;
}

/* ---- options ------------------------------------------------------------------------------ */

enum value_type { SET, TEXT, NUMBER, GROUP, TARGETS };

struct row {
    char letter;
    const char *name;
    enum value_type type;
    size_t offset;
    int value;        /* SET */
    const char *help; /* NULL: accepted, because ipyparallel does, and not listed */
};

#define AT(field) offsetof(struct px_line, field)
static const struct row rows[] = {
    {'t', "targets", TARGETS, AT(targets), 0, "engines: an id, -1, 0:2, [0,2], all"},
    {'b', "block", SET, AT(block), 1, "wait for the engines (the default)"},
    {'a', "noblock", SET, AT(block), 0, "return at once; %pxresult shows the results"},
    {'o', "out", TEXT, AT(out), 0, "keep the AsyncResult under this name"},
    {0, "local", SET, AT(local), 1, "run the cell here as well"},
    {0, "stream", SET, AT(stream), 1, "show output as it comes (the default)"},
    {0, "no-stream", SET, AT(stream), 0, "show output at the end"},
    {0, "group-outputs", GROUP, AT(group), 0, "at the end, by type, engine or order"},
    {'e', NULL, SET, AT(group), PX_GROUP_ENGINE, "same as --group-outputs=engine"},
    {'r', NULL, SET, AT(group), PX_GROUP_ORDER, "same as --group-outputs=order"},
    {0, "verbose", SET, AT(verbose), 1, "say on which engines code runs"},
    {0, "no-verbose", SET, AT(verbose), 0, "do not"},
    {0, "progress-after", NUMBER, AT(progress_after), 0, NULL}, /* no progress is shown */
    {0, "signal-on-interrupt", SET, AT(signal_on_interrupt), 1,
     "an interrupt goes to the engines (the default)"},
    {0, "no-signal-on-interrupt", SET, AT(signal_on_interrupt), 0, "it only ends the waiting"},
};

static const struct row *find_letter(char letter)
{
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        if (rows[i].letter && rows[i].letter == letter)
            return &rows[i];
    }
    return NULL;
}

/* The row with this name, or the only one whose name begins so. */
static const struct row *find_name(struct px_span name, bool exact)
{
    const struct row *found = NULL;
    size_t matches = 0;
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        if (!rows[i].name)
            continue;
        if (px_span_equal(name, rows[i].name))
            return &rows[i];
        if (name.size && strncmp(rows[i].name, name.data, name.size) == 0) {
            found = &rows[i];
            matches++;
        }
    }
    return matches == 1 && !exact ? found : NULL;
}

static int unknown_option(const char *word, struct px_error *err)
{
    const char *names[PX_COUNT(rows) + 1];
    size_t count = 0;
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        if (rows[i].name)
            names[count++] = rows[i].name;
    }
    names[count] = NULL;
    char bare[64];
    snprintf(bare, sizeof bare, "%s", word + strspn(word, "-"));
    bare[strcspn(bare, "=")] = '\0';
    const char *near = px_nearest(bare, names);
    if (near)
        return px_fail(err, PX_EINVAL, "unknown option %.60s; did you mean --%s?", word, near);
    return px_fail(err, PX_EINVAL, "unknown option %.60s; %%px? lists the options", word);
}

static bool is_name(const char *text)
{
    if (!*text || isdigit((unsigned char)*text))
        return false;
    for (; *text; text++) {
        if (!isalnum((unsigned char)*text) && *text != '_' && !(*text & 0x80))
            return false;
    }
    return true;
}

static int set_group(const char *value, enum px_group *out, struct px_error *err)
{
    for (int i = 0; px_group_names[i]; i++) {
        if (strcmp(value, px_group_names[i]) == 0) {
            *out = (enum px_group)i;
            return 0;
        }
    }
    return px_fail(err, PX_EINVAL, "--group-outputs is type, engine or order, not '%.60s'", value);
}

static int set_value(const struct row *row, const char *value, struct px_line *line,
                     struct px_error *err)
{
    char *end;
    switch (row->type) {
    case TARGETS:
        px_targets_fini(&line->targets);
        return px_targets_parse(px_span_of(value), &line->targets, err);
    case GROUP:
        return set_group(value, &line->group, err);
    case NUMBER:
        line->progress_after = strtod(value, &end);
        return *value && !*end && isfinite(line->progress_after)
                   ? 0
                   : px_fail(err, PX_EINVAL, "--%s takes a number, not '%.60s'", row->name, value);
    default:
        if (!is_name(value) || strlen(value) >= PX_NAME_SIZE)
            return px_fail(err, PX_EINVAL, "--%s takes a Python name, not '%.60s'", row->name,
                           value);
        strcpy(line->out, value);
        return 0;
    }
}

/* `value`: what follows "=" or the letter; NULL when it is the next word. */
static int apply_row(const struct row *row, const char *value, struct reader *reader,
                     struct px_line *line, struct px_error *err)
{
    if (row->type == SET) {
        if (value)
            return px_fail(err, PX_EINVAL, "--%s takes no value", row->name ? row->name : "?");
        *(int *)((char *)line + row->offset) = row->value;
        return 0;
    }
    if (value)
        return set_value(row, value, line, err);
    struct px_buf word = {0};
    int status = next_word(reader, &word, err);
    if (status == 0 && word.size == 0)
        status = px_fail(err, PX_EINVAL, "--%s needs a value", row->name);
    if (status == 0)
        status = set_value(row, word.data, line, err);
    px_buf_fini(&word);
    return status;
}

static int apply_long(const char *word, struct reader *reader, struct px_line *line,
                      struct px_error *err)
{
    const char *equals = strchr(word, '=');
    const size_t size = equals ? (size_t)(equals - word) : strlen(word);
    const struct row *row = find_name((struct px_span){word + 2, size - 2}, false);
    if (!row)
        return unknown_option(word, err);
    return apply_row(row, equals ? equals + 1 : NULL, reader, line, err);
}

static int apply_letters(const char *word, struct reader *reader, struct px_line *line,
                         struct px_error *err)
{
    for (const char *letter = word + 1; *letter; letter++) {
        const struct row *row = find_letter(*letter);
        if (!row)
            return unknown_option(word, err);
        if (row->type != SET)
            return apply_row(row, letter[1] ? letter + 1 : NULL, reader, line, err);
        if (apply_row(row, NULL, reader, line, err) < 0)
            return -1;
    }
    return 0;
}

/* In a %px the rest may be any Python: only the whole name of an option makes it one. */
static bool is_option(const char *word, bool cell)
{
    if (cell)
        return word[0] == '-' && word[1];
    if (strncmp(word, "--", 2) != 0)
        return false;
    return find_name((struct px_span){word + 2, strcspn(word + 2, "=")}, true) != NULL;
}

static int parse_options(struct reader *reader, bool cell, struct px_buf *word, struct px_line *out,
                         struct px_error *err)
{
    for (;;) {
        skip_space(reader);
        out->code = reader->at;
        if (reader->at == reader->size)
            return 0;
        if (!cell && reader->text[reader->at] != '-')
            return 0;
        if (next_word(reader, word, cell ? err : NULL) < 0)
            return cell ? -1 : 0; /* code has its own rules for quotes */
        if (!is_option(word->data, cell)) {
            return cell ? px_fail(err, PX_EINVAL,
                                  "'%.60s' is not an option; code goes on the lines below",
                                  word->data)
                        : 0;
        }
        const int status = word->data[1] == '-' ? apply_long(word->data, reader, out, err)
                                                : apply_letters(word->data, reader, out, err);
        if (status < 0)
            return -1;
    }
}

int px_line_parse(struct px_span line, bool cell, struct px_line *out, struct px_error *err)
{
    *out = (struct px_line){
        .block = -1, .stream = -1, .verbose = -1, .signal_on_interrupt = -1, .progress_after = NAN};
    struct reader reader = {.text = line.data, .size = line.size};
    struct px_buf word = {0};
    const int status = parse_options(&reader, cell, &word, out, err);
    px_buf_fini(&word);
    return status;
}

void px_line_fini(struct px_line *line)
{
    px_targets_fini(&line->targets);
}

void px_line_help(struct px_buf *out)
{
    px_buf_text(out, "Runs Python code on the engines of a cluster.\n\nOptions:\n");
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        char flags[64];
        if (!rows[i].help)
            continue;
        if (rows[i].name && rows[i].letter)
            snprintf(flags, sizeof flags, "-%c, --%s", rows[i].letter, rows[i].name);
        else if (rows[i].name)
            snprintf(flags, sizeof flags, "    --%s", rows[i].name);
        else
            snprintf(flags, sizeof flags, "-%c", rows[i].letter);
        px_buf_printf(out, "  %-28s %s\n", flags, rows[i].help);
    }
    px_buf_text(out, "\nExamples:\n"
                     "  %px import numpy\n"
                     "  %%px --targets 0:2 --out result\n"
                     "  numpy.random.rand(2)\n");
}
