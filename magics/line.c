/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * line: the options of the %px family, from one table. Pure.
 *
 * Words are split as a shell would: quotes group, and so do brackets, so that a list of targets
 * may hold spaces. A long option may be cut short as long as it stays unique, takes
 * its value after "=" or as the next word; letters take it at once or as the next word.
 * Whatever is refused is refused before anything of it is used.
 *
 * In a %px options stand before code, which may begin with a dash as well. A word is an option
 * where it has an option's whole name, or where no expression can be meant: "-x" and "--x + 1" are
 * code, "-t 1 x" and "--target 1 x" have options, "-x 1" and "--bogus 1" wrong ones.
 */
#include "magics.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORD_SIZE 65536  /* of one value, after its quotes are gone */
#define LETTERS_MOST 8   /* options in a row that are looked at to tell them from code */
#define SECONDS_MOST 1e9 /* more are as good as these */

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

/* ---- options ------------------------------------------------------------------------------ */

enum value_type { SET, NAME, NUMBER, GROUP, TARGETS, SIGNAL, PUSH, PULL };

/* Which magics take an option. */
#define PX (1u << PX_MAGIC_PX | 1u << PX_MAGIC_CELL)
#define CONFIG (1u << PX_MAGIC_CONFIG)
#define RESULT (1u << PX_MAGIC_RESULT)
#define STACKS (1u << PX_MAGIC_STACKS)

struct row {
    char letter;
    const char *name;
    enum value_type type;
    size_t offset;
    int value; /* SET */
    unsigned magics;
    const char *arg, *help; /* help: NULL when another row's text speaks of this one */
};

#define AT(field) offsetof(struct px_line, field)
static const struct row rows[] = {
    {'t', "targets", TARGETS, AT(targets), 0, PX | CONFIG | STACKS, "WHICH",
     "engines: an id, -1, 0:2, [0,2], all, a tag or host"},
    {'a', "noblock", SET, AT(block), 0, PX | CONFIG, NULL,
     "return at once; %pxresult shows what came (-b, --block)"},
    {'b', "block", SET, AT(block), 1, PX | CONFIG, NULL, NULL},
    {'o', "out", NAME, AT(out), 0, PX | RESULT, "NAME", "keep the AsyncResult under this name"},
    {0, "local", SET, AT(local), 1, PX | CONFIG, NULL, "run the code here as well (--no-local)"},
    {0, "no-local", SET, AT(local), 0, PX | CONFIG, NULL, NULL},
    {0, "no-stream", SET, AT(stream), 0, PX | CONFIG, NULL,
     "output at the end (--stream: as it comes, --noblock too)"},
    {0, "stream", SET, AT(stream), 1, PX | CONFIG, NULL, NULL},
    {0, "group-outputs", GROUP, AT(group), 0, PX | RESULT, "HOW",
     "at the end by type, engine (-e) or order (-r), unfolded"},
    {'e', NULL, SET, AT(group), PX_GROUP_ENGINE, PX | RESULT, NULL, NULL},
    {'r', NULL, SET, AT(group), PX_GROUP_ORDER, PX | RESULT, NULL, NULL},
    {0, "no-fold", SET, AT(fold), 0, PX | CONFIG | RESULT, NULL,
     "each engine's output apart, though equal (--fold)"},
    {0, "fold", SET, AT(fold), 1, PX | CONFIG | RESULT, NULL, NULL},
    {0, "push", PUSH, AT(push), 0, PX, "A,B", "send these names first, where they are not yet so"},
    {0, "pull", PULL, AT(pull), 0, PX, "C,D@0", "fetch these at the end: a list, or engine 0's"},
    {0, "timeout", NUMBER, AT(timeout), 0, PX | CONFIG, "S",
     "seconds; then interrupt, leave who stays away (0: none)"},
    {0, "timeout", NUMBER, AT(timeout), 0, STACKS, "S", "seconds to wait for answers (default: 3)"},
    {0, "progress-after", NUMBER, AT(progress_after), 0, PX | CONFIG, "S",
     "seconds to the progress line (default: 1; -1: none)"},
    {0, "signal-on-interrupt", SIGNAL, AT(signal), 0, PX | CONFIG, "SIG",
     "what Ctrl-C sends (default: SIGINT; 0: nothing)"},
    {0, "verbose", SET, AT(verbose), 1, PX | CONFIG, NULL,
     "say which engines run it (--no-verbose)"},
    {0, "no-verbose", SET, AT(verbose), 0, PX | CONFIG, NULL, NULL},
};

static bool row_is_for(const struct row *row, enum px_magic magic)
{
    return row->magics >> magic & 1;
}

static const struct row *find_letter(char letter, enum px_magic magic)
{
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        if (rows[i].letter && rows[i].letter == letter && row_is_for(&rows[i], magic))
            return &rows[i];
    }
    return NULL;
}

/* The row with this name, or the only one whose name begins so. */
static const struct row *find_name(struct px_span name, bool exact, enum px_magic magic)
{
    const struct row *found = NULL;
    size_t matches = 0;
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        if (!rows[i].name || !row_is_for(&rows[i], magic))
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

static int unknown_option(const char *word, enum px_magic magic, struct px_error *err)
{
    const char *names[PX_COUNT(rows) + 1];
    size_t count = 0;
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        if (rows[i].name && row_is_for(&rows[i], magic))
            names[count++] = rows[i].name;
    }
    names[count] = NULL;
    char bare[64];
    snprintf(bare, sizeof bare, "%s", word + strspn(word, "-"));
    bare[strcspn(bare, "=")] = '\0';
    const char *near = px_nearest(bare, names);
    if (near)
        return px_fail(err, PX_EINVAL, "unknown option %.60s; did you mean --%s?", word, near);
    return px_fail(err, PX_EINVAL, "unknown option %.60s", word);
}

/* ---- values -------------------------------------------------------------------------------- */

static bool is_name_char(char c)
{
    return isalnum((unsigned char)c) || c == '_' || (c & 0x80);
}

static bool is_name(struct px_span text)
{
    if (text.size == 0 || text.size >= PX_NAME_SIZE || isdigit((unsigned char)text.data[0]))
        return false;
    for (size_t i = 0; i < text.size; i++) {
        if (!is_name_char(text.data[i]))
            return false;
    }
    return true;
}

static int set_group(const char *value, int *out, struct px_error *err)
{
    for (int i = 0; px_group_names[i]; i++) {
        if (strcmp(value, px_group_names[i]) == 0) {
            *out = i;
            return 0;
        }
    }
    return px_fail(err, PX_EINVAL, "--group-outputs is type, engine or order, not '%.60s'", value);
}

/* A name such as SIGINT, or a number. */
static int set_signal(const char *value, char *out, struct px_error *err)
{
    const bool number = *value && !value[strspn(value, "0123456789")];
    const long signal = number ? strtol(value, NULL, 10) : 0; /* LONG_MAX when it is too large */
    if (signal > PX_SIGNAL_MOST || (!number && px_signal_number(value) < 0))
        return px_fail(
            err, PX_EINVAL,
            "--signal-on-interrupt takes SIGINT, SIGTERM, ... or 0 for none, not '%.60s'", value);
    if (number)
        snprintf(out, PX_SIGNAL_SIZE, "%d", (int)signal); /* JSON's numbers do not begin with 0 */
    else
        snprintf(out, PX_SIGNAL_SIZE, "%s", value);
    return 0;
}

/* "c" or, where engines may be named, "c@0". */
static int read_name(struct px_span text, bool engines, struct px_name *out)
{
    const char *mark = engines && text.size ? memchr(text.data, '@', text.size) : NULL;
    struct px_span name = text;
    *out = (struct px_name){.engine = -1};
    if (mark) {
        struct px_targets one;
        name.size = (size_t)(mark - text.data);
        const int status =
            px_targets_parse((struct px_span){mark + 1, text.size - name.size - 1}, &one, NULL);
        const bool good = status == 0 && one.kind == PX_TARGETS_ONE && one.first >= 0;
        out->engine = good ? one.first : -1;
        px_targets_fini(&one);
        if (!good)
            return -1;
    }
    if (!is_name(name))
        return -1;
    memcpy(out->text, name.data, name.size);
    return 0;
}

static void names_fini(struct px_names *names)
{
    free(names->list);
    *names = (struct px_names){0};
}

static int set_names(const struct row *row, const char *value, struct px_names *out,
                     struct px_error *err)
{
    names_fini(out);
    for (const char *at = value;; at++) {
        const size_t size = strcspn(at, ",");
        struct px_name name;
        if (read_name((struct px_span){at, size}, row->type == PULL, &name) < 0)
            return px_fail(err, PX_EINVAL, "--%s takes names as in %s, not '%.60s'", row->name,
                           row->arg, value);
        if (out->count == PX_NAMES_MOST)
            return px_fail(err, PX_ELIMIT, "--%s: more than %d names", row->name, PX_NAMES_MOST);
        out->list = px_realloc(out->list, (out->count + 1) * sizeof *out->list);
        out->list[out->count++] = name;
        at += size;
        if (!*at)
            return 0;
    }
}

static int set_number(const struct row *row, const char *value, double *out, struct px_error *err)
{
    char *end;
    *out = strtod(value, &end);
    if (!*value || *end || !isfinite(*out))
        return px_fail(err, PX_EINVAL, "--%s takes a number, not '%.60s'", row->name, value);
    if (*out < 0 && row->offset == AT(timeout))
        return px_fail(err, PX_EINVAL, "--timeout takes seconds, 0 for no limit, not '%.60s'",
                       value);
    *out = fmax(-SECONDS_MOST, fmin(*out, SECONDS_MOST));
    return 0;
}

static int set_value(const struct row *row, const char *value, struct px_line *line,
                     struct px_error *err)
{
    void *field = (char *)line + row->offset;
    switch (row->type) {
    case TARGETS:
        px_targets_fini(&line->targets);
        return px_targets_parse(px_span_of(value), field, err);
    case GROUP:
        return set_group(value, field, err);
    case NUMBER:
        return set_number(row, value, field, err);
    case SIGNAL:
        return set_signal(value, field, err);
    case PUSH:
    case PULL:
        return set_names(row, value, field, err);
    default:
        if (!is_name(px_span_of(value)))
            return px_fail(err, PX_EINVAL, "--%s takes a Python name, not '%.60s'", row->name,
                           value);
        strcpy(line->out, value);
        return 0;
    }
}

/* ---- parsing ------------------------------------------------------------------------------- */

struct parser {
    struct reader reader;
    enum px_magic magic;
    struct px_line *line;
    struct px_error *err;
};

/* `value`: what follows "=" or the letter; NULL when it is the next word. */
static int apply_row(struct parser *parser, const struct row *row, const char *value)
{
    if (row->type == SET) {
        if (value)
            return px_fail(parser->err, PX_EINVAL, "--%s takes no value",
                           row->name ? row->name : "?");
        *(int *)((char *)parser->line + row->offset) = row->value;
        return 0;
    }
    if (value)
        return set_value(row, value, parser->line, parser->err);
    struct px_buf word = {0};
    int status = next_word(&parser->reader, &word, parser->err);
    if (status == 0 && word.size == 0)
        status = px_fail(parser->err, PX_EINVAL, "--%s needs a value", row->name);
    if (status == 0)
        status = set_value(row, word.data, parser->line, parser->err);
    px_buf_fini(&word);
    return status;
}

static int apply_long(struct parser *parser, const char *word)
{
    const char *equals = strchr(word, '=');
    const size_t size = equals ? (size_t)(equals - word) : strlen(word);
    const struct row *row = find_name((struct px_span){word + 2, size - 2}, false, parser->magic);
    if (!row)
        return unknown_option(word, parser->magic, parser->err);
    return apply_row(parser, row, equals ? equals + 1 : NULL);
}

static int apply_letters(struct parser *parser, const char *word)
{
    for (const char *letter = word + 1; *letter; letter++) {
        const struct row *row = find_letter(*letter, parser->magic);
        if (!row)
            return unknown_option(word, parser->magic, parser->err);
        if (row->type != SET)
            return apply_row(parser, row, letter[1] ? letter + 1 : NULL);
        if (apply_row(parser, row, NULL) < 0)
            return -1;
    }
    return 0;
}

/* ---- options or code ------------------------------------------------------------------------- */

/* Whether what follows an operand begins another one, which no expression allows: "1" in "-x 1". */
static bool begins_operand(const struct reader *reader)
{
    static const char *const operators[] = {"if", "else", "and", "or", "in", "is", "not", "for"};
    struct reader rest = *reader;
    skip_space(&rest);
    const char *at = rest.text + rest.at;
    const size_t left = rest.size - rest.at;
    size_t size = 0;
    if (left == 0)
        return false;
    if (left > 2 && at[0] == '-' && at[1] == '-') {
        while (2 + size < left && (is_name_char(at[2 + size]) || at[2 + size] == '-'))
            size++;
        return find_name((struct px_span){at + 2, size}, true, PX_MAGIC_PX) != NULL;
    }
    if (*at == '"' || *at == '\'')
        return true;
    while (size < left && is_name_char(at[size]))
        size++;
    for (size_t i = 0; i < PX_COUNT(operators); i++) {
        if (px_span_equal((struct px_span){at, size}, operators[i]))
            return false;
    }
    return size > 0;
}

/* "-1 x", "[0,2] x", ":2 x": how values begin that an expression might go on with, if it were not
 * for the operand behind them. */
static bool begins_value(const struct reader *reader)
{
    struct reader rest = *reader;
    struct px_buf word = {0};
    bool yes = next_word(&rest, &word, NULL) == 0 && word.size;
    if (yes) {
        const char *at = word.data;
        const size_t digits = *at == '-' ? strspn(at + 1, "0123456789") : 0;
        yes = (*at == '[' || *at == ':' || (digits && !at[1 + digits])) && begins_operand(&rest);
    }
    px_buf_fini(&word);
    return yes;
}

/* Passes over "-a", "-t0", ..., which are operands with a sign or options. */
static void skip_letters(struct reader *reader)
{
    struct px_buf word = {0};
    for (int i = 0; i < LETTERS_MOST; i++) {
        struct reader rest = *reader;
        const bool good = next_word(&rest, &word, NULL) == 0 && word.size > 1;
        const struct px_span name =
            good ? (struct px_span){word.data + 1, word.size - 1} : (struct px_span){0};
        if (!good || word.data[0] != '-' || !is_name(name) || px_span_equal(name, "await"))
            break;
        *reader = rest;
    }
    px_buf_fini(&word);
}

/* Whether what follows can be no part of an expression: "1" in "-x 1", "-t 0 1" in "-a -t 0 1". */
static bool ends_expression(const struct reader *reader)
{
    struct reader rest = *reader;
    skip_letters(&rest);
    return begins_operand(&rest) || (rest.at > reader->at && begins_value(&rest));
}

/* `reader` stands behind the word. */
static bool is_option_of_line(const struct reader *reader, const char *word)
{
    const char *name = word + strspn(word, "-");
    const size_t dashes = (size_t)(name - word), size = strcspn(name, "=");
    if (dashes < 1 || dashes > 2 || !isalpha((unsigned char)*name))
        return false;
    struct reader rest = *reader;
    skip_space(&rest);
    if (rest.at == rest.size && strcmp(word, "--help") == 0)
        return true; /* an expression, but nobody means it */
    if (dashes == 2 && find_name((struct px_span){name, size}, true, PX_MAGIC_PX))
        return true;
    for (size_t i = 0; i < size; i++) {
        if (!is_name_char(name[i]) && name[i] != '-')
            return false;
    }
    if (name[size] == '=')
        return name[size + 1] != '=';
    const struct row *row = dashes == 1 && size == 1 ? find_letter(*name, PX_MAGIC_PX) : NULL;
    if (row && row->type != SET && begins_value(reader))
        return true;
    return strcmp(name, "await") != 0 && ends_expression(reader);
}

static int parse_options(struct parser *parser, struct px_buf *word)
{
    struct reader *reader = &parser->reader;
    const bool code = parser->magic == PX_MAGIC_PX;
    for (;;) {
        skip_space(reader);
        parser->line->code = reader->at;
        if (reader->at == reader->size || (code && reader->text[reader->at] != '-'))
            return 0;
        if (next_word(reader, word, code ? NULL : parser->err) < 0)
            return code ? 0 : -1; /* code has its own rules for quotes */
        if (code && !is_option_of_line(reader, word->data))
            return 0;
        if (word->data[0] != '-' || !word->data[1])
            return px_fail(parser->err, PX_EINVAL, "'%.60s' is not an option%s", word->data,
                           parser->magic == PX_MAGIC_CELL ? "; code goes on the lines below" : "");
        if (strcmp(word->data, "--help") == 0) {
            parser->line->help = true;
            return 0;
        }
        if ((word->data[1] == '-' ? apply_long : apply_letters)(parser, word->data) < 0)
            return -1;
    }
}

int px_line_parse(struct px_span line, enum px_magic magic, struct px_line *out,
                  struct px_error *err)
{
    *out = (struct px_line){.block = -1,
                            .stream = -1,
                            .verbose = -1,
                            .fold = -1,
                            .local = -1,
                            .group = -1,
                            .timeout = NAN,
                            .progress_after = NAN};
    struct parser parser = {
        .reader = {.text = line.data, .size = line.size}, .magic = magic, .line = out, .err = err};
    struct px_buf word = {0};
    const int status = parse_options(&parser, &word);
    px_buf_fini(&word);
    return status;
}

void px_line_fini(struct px_line *line)
{
    px_targets_fini(&line->targets);
    names_fini(&line->push);
    names_fini(&line->pull);
}

/* ---- help ------------------------------------------------------------------------------------ */

static const struct {
    const char *usage, *about, *examples;
} magics[] = {
    [PX_MAGIC_PX] = {"%px [options] CODE, or %%px [options] above a cell",
                     "Runs Python code on the engines of a cluster.",
                     "  %px import numpy\n  %%px --targets 0:2 --out result\n"},
    [PX_MAGIC_CELL] = {"%%px [options], above the code",
                       "Runs a cell on the engines of a cluster. %px CODE runs a line.",
                       "  %%px --push a,b --pull c\n  %%px --targets 0:2 --timeout 60\n"},
    [PX_MAGIC_CONFIG] = {"%pxconfig [options]", "Sets what %px does when its line does not say.",
                         "  %pxconfig --targets 0:2\n  %pxconfig --noblock --verbose\n"},
    [PX_MAGIC_RESULT] = {"%pxresult [options]",
                         "Waits for the last %px, and shows its output and results.",
                         "  %pxresult\n  %pxresult --group-outputs=engine\n"},
    [PX_MAGIC_STACKS] = {"%pxstacks [options]",
                         "Shows what the engines are doing: their Python stacks as one tree.",
                         "  %pxstacks\n  %pxstacks --targets 3,7\n"},
};

void px_line_help(enum px_magic magic, struct px_buf *out)
{
    px_buf_printf(out, "Usage: %s\n\n%s\n\nOptions:\n", magics[magic].usage, magics[magic].about);
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        char letter[8] = "    ", flags[64];
        if (!rows[i].help || !row_is_for(&rows[i], magic))
            continue;
        if (rows[i].letter)
            snprintf(letter, sizeof letter, "-%c, ", rows[i].letter);
        snprintf(flags, sizeof flags, "%s--%s%s%s", letter, rows[i].name, rows[i].arg ? "=" : "",
                 rows[i].arg ? rows[i].arg : "");
        px_buf_printf(out, "  %-30s %s\n", flags, rows[i].help);
    }
    px_buf_printf(out, "\nExamples:\n%s", magics[magic].examples);
}
