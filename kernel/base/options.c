/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Option tables: parsing by getopt_long(3), help and errors from the same rows.
 *
 * getopt's own messages are off; an option that is not in the table is answered with the
 * nearest one that is, because flags of the programs we stand in for are many and
 * ours are fewer.
 */
#include "base/base.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define MAX_ROWS 96   /* a table is one screen of help */
#define MAX_WORD 64   /* longer words have no near neighbours */
#define ROW_BASE 1000 /* getopt's value for row i is ROW_BASE + i, apart from letters */

static bool takes_value(const struct px_option *row)
{
    return row->type != PX_OPT_SET && row->type != PX_OPT_HEADING;
}

static bool row_is_end(const struct px_option *row)
{
    return !row->name && !row->letter && row->type != PX_OPT_HEADING;
}

/* ---- nearest name ---- */

/* Edits (insert, delete, change) that turn a into b; both shorter than MAX_WORD. */
static size_t edit_distance(const char *a, const char *b)
{
    size_t row[MAX_WORD + 1];
    const size_t width = strlen(b);
    for (size_t j = 0; j <= width; j++)
        row[j] = j;
    for (size_t i = 0; a[i]; i++) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < width; j++) {
            const size_t above = row[j + 1];
            size_t best = diagonal + (a[i] != b[j]);
            best = above + 1 < best ? above + 1 : best;
            best = row[j] + 1 < best ? row[j] + 1 : best;
            diagonal = above;
            row[j + 1] = best;
        }
    }
    return row[width];
}

const char *px_nearest(const char *word, const char *const *names)
{
    const size_t size = strlen(word);
    if (size > MAX_WORD)
        return NULL;
    const char *best = NULL;
    size_t least = size / 3 + 2; /* farther than this is another word */
    for (; *names; names++) {
        if (strlen(*names) > MAX_WORD)
            continue;
        const size_t distance = edit_distance(word, *names);
        if (distance < least) {
            least = distance;
            best = *names;
        }
    }
    return best;
}

/* ---- parsing ---- */

/* --Class.some_name=VALUE, as traitlets has it, for a class that the program answers to: some-name,
 * which is an option's name or near to one. */
static bool find_trait(const struct px_usage *usage, const char *word, char name[MAX_WORD + 1])
{
    const size_t size = strcspn(word, "="), dot = strcspn(word, ".");
    if (!usage->classes || strncmp(word, "--", 2) != 0 || dot >= size || size > MAX_WORD)
        return false;
    char class[MAX_WORD + 3];
    snprintf(class, sizeof class, " %.*s ", (int)(dot - 2), word + 2);
    snprintf(name, MAX_WORD + 1, "%.*s", (int)(size - dot - 1), word + dot + 1);
    for (char *at = name; *at; at++)
        if (*at == '_')
            *at = '-';
    return strstr(usage->classes, class) != NULL;
}

static bool is_foreign(const struct px_usage *usage, const char *word)
{
    const size_t class = strcspn(word, ".=");
    return usage->foreign && strncmp(word, "--", 2) == 0 && isupper((unsigned char)word[2]) &&
           word[class] == '.' && strchr(word, '=');
}

static int refuse_unknown(const struct px_usage *usage, const char *word, struct px_error *err)
{
    const char *names[MAX_ROWS + 3] = {"help", "version"};
    size_t count = 2;
    for (const struct px_option *row = usage->options; !row_is_end(row); row++)
        if (row->name && count < MAX_ROWS)
            names[count++] = row->name;
    char bare[MAX_WORD + 2], trait[MAX_WORD + 1];
    snprintf(bare, sizeof bare, "%.*s", (int)strcspn(word, "="), word);
    const char *plain = find_trait(usage, word, trait) ? trait : bare + strspn(bare, "-");
    const char *near = px_nearest(plain, names);
    if (near)
        return px_fail(err, PX_ENOENT, "unknown option '%s': did you mean '--%s'?", bare, near);
    return px_fail(err, PX_ENOENT, "unknown option '%s': see --help", bare);
}

static int store_int(const struct px_option *row, const char *text, int *out, struct px_error *err)
{
    char *end;
    errno = 0;
    const long value = strtol(text, &end, 10);
    if (!text[0] || *end || errno || value < INT32_MIN || value > INT32_MAX)
        return px_fail(err, PX_EINVAL, "--%s: '%.60s' is not a whole number", row->name, text);
    if ((row->least || row->most) && (value < row->least || value > row->most))
        return px_fail(err, PX_EINVAL, "--%s: %ld is not between %d and %d", row->name, value,
                       row->least, row->most);
    *out = (int)value;
    return 0;
}

static int store_double(const struct px_option *row, const char *text, double *out,
                        struct px_error *err)
{
    char *end;
    const double value = strtod(text, &end);
    if (!text[0] || *end || value != value)
        return px_fail(err, PX_EINVAL, "--%s: '%.60s' is not a number", row->name, text);
    *out = value;
    return 0;
}

static bool is_one_of(const char *text, const char *const *words)
{
    while (*words && strcasecmp(text, *words) != 0)
        words++;
    return *words != NULL;
}

/* Alone, or with the value that programs configured by traitlets take: --debug, --debug=True. What
 * a configuration file has set, the command line takes back. */
static int store_set(const struct px_option *row, const char *text, int *out, struct px_error *err)
{
    static const char *const yes[] = {"true", "1", "yes", NULL}, *const no[] = {"false", "0", "no",
                                                                                NULL};
    if (text && is_one_of(text, no)) {
        if (row->value == 1 && *out == 1)
            *out = 0;
        return 0;
    }
    if (text && !is_one_of(text, yes))
        return px_fail(err, PX_EINVAL, "--%s is True or False, not '%.60s'", row->name, text);
    *out = row->value;
    return 0;
}

static int store(const struct px_option *row, const char *text, void *out, struct px_error *err)
{
    void *field = (char *)out + row->offset;
    switch (row->type) {
    case PX_OPT_SET:
        return store_set(row, text, field, err);
    case PX_OPT_INT:
        return store_int(row, text, field, err);
    case PX_OPT_DOUBLE:
        return store_double(row, text, field, err);
    case PX_OPT_STRING:
        *(const char **)field = text;
        return 0;
    case PX_OPT_LEVEL:
        *(int *)field = px_log_parse_level(text);
        if (*(int *)field < 0)
            return px_fail(err, PX_EINVAL, "--%s: '%.60s' is not a log level", row->name, text);
        return 0;
    case PX_OPT_LIST: {
        struct px_list *list = field;
        list->items = px_realloc(list->items, (list->count + 1) * sizeof *list->items);
        list->items[list->count++] = text;
        return 0;
    }
    case PX_OPT_HEADING:
        break;
    }
    return 0;
}

/* getopt's two tables, from ours. */
struct getopt_tables {
    struct option longs[MAX_ROWS + 3];
    char shorts[2 * MAX_ROWS + 8];
};

static void build_tables(const struct px_usage *usage, struct getopt_tables *out)
{
    memset(out, 0, sizeof *out);
    size_t count = 0;
    char *at = out->shorts;
    *at++ = ':'; /* a missing value is reported as ':' */
    *at++ = 'h';
    out->longs[count++] = (struct option){"help", no_argument, NULL, 'h'};
    out->longs[count++] = (struct option){"version", no_argument, NULL, ROW_BASE - 1};
    for (int i = 0; !row_is_end(&usage->options[i]) && count < MAX_ROWS; i++) {
        const struct px_option *row = &usage->options[i];
        const int has = takes_value(row) ? required_argument : optional_argument;
        if (row->name)
            out->longs[count++] = (struct option){row->name, has, NULL, ROW_BASE + i};
        if (row->letter) {
            *at++ = row->letter;
            if (takes_value(row))
                *at++ = ':';
        }
    }
}

static const struct px_option *row_for(const struct px_usage *usage, int value)
{
    if (value >= ROW_BASE)
        return &usage->options[value - ROW_BASE];
    for (const struct px_option *row = usage->options; !row_is_end(row); row++)
        if (row->letter == value)
            return row;
    return NULL;
}

/* The row of that trait; *text is the value, NULL without one. */
static const struct px_option *row_for_trait(const struct px_usage *usage, const char *word,
                                             const char **text)
{
    char name[MAX_WORD + 1];
    if (!find_trait(usage, word, name))
        return NULL;
    const char *value = strchr(word, '=');
    *text = value ? value + 1 : NULL;
    for (const struct px_option *row = usage->options; !row_is_end(row); row++)
        if (row->name && strcmp(row->name, name) == 0 && (value || !takes_value(row)))
            return row;
    return NULL;
}

enum { SAW_HELP = -2, SAW_VERSION = -3 };

static int parse(const struct px_usage *usage, int argc, char **argv, void *out,
                 struct px_error *err)
{
    struct getopt_tables tables;
    build_tables(usage, &tables);
    optind = 0; /* GNU: start afresh */
    opterr = 0;
    for (;;) {
        const int before = optind ? optind : 1;
        const int value = getopt_long(argc, argv, tables.shorts, tables.longs, NULL);
        if (value == -1)
            return optind;
        if (value == 'h')
            return SAW_HELP;
        if (value == ROW_BASE - 1)
            return SAW_VERSION;
        const char *word = argv[optind > before ? optind - 1 : before];
        if (value == ':')
            return px_fail(err, PX_EINVAL, "option '%.80s' needs a value", word);
        const char *text = optarg;
        const struct px_option *row =
            value == '?' ? row_for_trait(usage, word, &text) : row_for(usage, value);
        if (!row && is_foreign(usage, word))
            continue;
        if (!row)
            return refuse_unknown(usage, word, err);
        if (text && value == row->letter && *text == '=')
            text++; /* -n=4, as programs configured by traitlets take it */
        if (store(row, text, out, err) < 0)
            return -1;
    }
}

int px_options_parse(const struct px_usage *usage, int argc, char **argv, void *out,
                     struct px_error *err)
{
    const int result = parse(usage, argc, argv, out, err);
    if (result == SAW_HELP || result == SAW_VERSION)
        return px_fail(err, PX_EINVAL, "'--help' and '--version' stand alone");
    return result;
}

/* ---- help ---- */

void px_options_help(const struct px_usage *usage, struct px_buf *out)
{
    px_buf_printf(out, "Usage: %s %s\n\n%s\n", usage->program, usage->synopsis, usage->about);
    if (usage->options->type != PX_OPT_HEADING)
        px_buf_printf(out, "\nOptions:\n");
    for (const struct px_option *row = usage->options; !row_is_end(row); row++) {
        if (!row->help)
            continue;
        if (row->type == PX_OPT_HEADING) {
            px_buf_printf(out, "\n%s:\n", row->help);
            continue;
        }
        char left[80], letter[8] = "";
        if (row->letter)
            snprintf(letter, sizeof letter, "-%c%s", row->letter, row->name ? ", " : "");
        snprintf(left, sizeof left, "  %s%s%s%s%s", letter, row->name ? "--" : "",
                 row->name ? row->name : "", row->arg ? (row->name ? "=" : " ") : "",
                 row->arg ? row->arg : "");
        px_buf_printf(out, "%-28s %s\n", left, row->help);
    }
    px_buf_printf(out, "%-28s %s\n", "  -h, --help", "show this text");
    px_buf_printf(out, "%-28s %s\n", "      --version", "show the version");
    if (usage->examples)
        px_buf_printf(out, "\nExamples:\n%s", usage->examples);
}

int px_options_main(const struct px_usage *usage, int argc, char **argv, void *out)
{
    struct px_error err;
    const int result = parse(usage, argc, argv, out, &err);
    if (result == SAW_HELP) {
        struct px_buf help = {0};
        px_options_help(usage, &help);
        fputs(help.data, stdout);
        px_buf_fini(&help);
        exit(0);
    }
    if (result == SAW_VERSION) {
        printf("%.*s %s\n", (int)strcspn(usage->program, " "), usage->program, PX_VERSION);
        exit(0);
    }
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", usage->program, err.text);
        exit(2);
    }
    return result;
}
