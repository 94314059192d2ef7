/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * targets: which engines a line means. Pure.
 *
 * The text is read without knowing the engines there are, so that it can be refused, or kept for
 * later lines; ids, negative numbers and slices are looked up when the line runs.
 */
#include "magics.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* ---- targets -------------------------------------------------------------------- */

static bool parse_long(struct px_span text, long *out)
{
    char copy[24];
    text = px_span_trim(text);
    if (text.size == 0 || text.size >= sizeof copy)
        return false;
    memcpy(copy, text.data, text.size);
    copy[text.size] = '\0';
    char *end;
    errno = 0;
    *out = strtol(copy, &end, 10);
    return end == copy + text.size && errno == 0 && *out >= -INT_MAX && *out <= INT_MAX &&
           copy[0] != '+';
}

static bool is_blank(struct px_span text)
{
    return px_span_trim(text).size == 0;
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
    return px_fail(err, PX_EINVAL,
                   "'%.*s' names no engines; use an id, -1, 0:2, [0,2], all or a tag",
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

/* As a tag of pxengine's or a host: a letter at least, and no dash in front. */
static bool parse_name(struct px_span text, char out[PX_TARGETS_NAME + 1])
{
    bool letter = false;
    for (size_t i = 0; i < text.size; i++) {
        const char c = text.data[i];
        const bool here = isalpha((unsigned char)c) || c == '_';
        if (!here && !isdigit((unsigned char)c) && (i == 0 || (c != '-' && c != '.')))
            return false;
        letter = letter || here;
    }
    if (!letter || text.size > PX_TARGETS_NAME)
        return false;
    memcpy(out, text.data, text.size);
    out[text.size] = '\0';
    return true;
}

int px_targets_parse(struct px_span text, struct px_targets *out, struct px_error *err)
{
    *out = (struct px_targets){0};
    text = px_span_trim(text);
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
    out->kind = parse_name(text, out->name) ? PX_TARGETS_NAMED : PX_TARGETS_ONE;
    if (out->kind == PX_TARGETS_NAMED)
        return 0;
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
    case PX_TARGETS_NAMED:
        return px_fail(err, PX_ENOENT, "'%s' is looked up by the client", targets->name);
    }
    if (status < 0)
        return -1;
    if (chosen.count == 0)
        return px_fail(err, PX_ENOENT, "the targets name no engine; there are %zu", count);
    return (long)chosen.count;
}
