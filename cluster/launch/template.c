/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * template: a job's script, from one of the user's in ipyparallel's form. Pure.
 *
 *     {name}          what stands for it
 *     {n//4} {n*2}    a number, one of + - * / // % and a whole number
 *     {{ }}           braces
 *
 * LIMIT: of the Python that ipyparallel has between braces, no more than that. A quotient is whole.
 */
#include "batch.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define MOST_NUMBER 1000000000 /* as either operand */

/* text: an operator and a number behind it. */
static bool calculate(long left, struct px_span text, long *out)
{
    char digits[16], *end;
    const char sign = text.size ? text.data[0] : 0;
    size_t skip = sign == '/' && text.size > 1 && text.data[1] == '/' ? 2 : 1;
    if (!sign || text.size - skip >= sizeof digits)
        return false;
    const struct px_span rest = px_span_trim((struct px_span){text.data + skip, text.size - skip});
    memcpy(digits, rest.data, rest.size);
    digits[rest.size] = 0;
    const long right = strtol(digits, &end, 10);
    if (!isdigit((unsigned char)digits[0]) || *end || right > MOST_NUMBER ||
        (right == 0 && strchr("/%", sign)))
        return false;
    switch (sign) {
    case '+':
        *out = left + right;
        return true;
    case '-':
        *out = left - right;
        return true;
    case '*':
        *out = left * right;
        return true;
    case '/':
        *out = left / right;
        return true;
    case '%':
        *out = left % right;
        return true;
    default:
        return false;
    }
}

/* What stands between braces. */
static bool put_field(struct px_span field, const struct px_template_name *names,
                      struct px_buf *out)
{
    size_t size = 0;
    while (size < field.size &&
           (isalnum((unsigned char)field.data[size]) || field.data[size] == '_'))
        size++;
    const struct px_span name = {field.data, size},
                         rest =
                             px_span_trim((struct px_span){field.data + size, field.size - size});
    while (names->name && !px_span_equal(name, names->name))
        names++;
    if (!names->name)
        return false;
    if (rest.size == 0) {
        px_buf_text(out, names->text);
        return true;
    }
    char *end;
    long result;
    const long left = strtol(names->text, &end, 10);
    if (!names->text[0] || *end || left > MOST_NUMBER || !calculate(left, rest, &result))
        return false;
    px_buf_printf(out, "%ld", result);
    return true;
}

int px_template_fill(const char *text, const struct px_template_name *names, struct px_buf *out,
                     struct px_error *err)
{
    for (const char *at = text; *at;) {
        const size_t plain = strcspn(at, "{}");
        px_buf_append(out, at, plain);
        at += plain;
        if (!*at)
            break;
        if (at[0] == at[1]) {
            px_buf_append(out, at, 1);
            at += 2;
            continue;
        }
        const size_t size = strcspn(at + 1, "{}\n");
        const struct px_span field = px_span_trim((struct px_span){at + 1, size});
        if (*at == '}' || at[1 + size] != '}' || !put_field(field, names, out))
            return px_fail(err, PX_EINVAL,
                           "the template's '%.*s' has no meaning here; {{ and }} are braces",
                           (int)(size < 60 ? size + 1 + (at[1 + size] == '}') : 60), at);
        at += size + 2;
    }
    return 0;
}
