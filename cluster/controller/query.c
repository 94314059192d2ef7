/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * query: the language of db_request.
 *
 *     {"completed": {"$ne": null}, "submitted": {"$gt": "2026-01-02T03:04:05Z"}, "queue": "mux"}
 *
 * All tests must hold. A plain value means equality. Values compare as Python's would: numbers
 * with numbers, strings with strings, and dates (ISO 8601 text, whatever its zone) as times;
 * an order between others is a TypeError, as it is in ipyparallel. Two of its slips are not
 * kept: there "$gt" means "$lt", and several plain values are all compared with the last.
 *
 * To add an operator: one function, one row.
 *
 * A long list is kept as a set: a client asks with all its ids, and each record is held against
 * them. A query for ids can also say which, so that nobody need look at other records.
 */
#include "hub.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TESTS 1024
#define MAX_LIST 1024 /* values that each record is held against one by one */

typedef int operator_fn(const json_t *value, const json_t *argument,
                        struct px_exception *exception);

struct test {
    char *field;
    const char *name;
    operator_fn *holds;
    json_t *argument;
};

struct px_query {
    struct test *tests;
    size_t count;
};

/* Microseconds, or -1 when the string is not a date. */
static int64_t date_of(const json_t *value)
{
    return json_is_string(value) ? px_date_parse((struct px_span){json_string_value(value),
                                                                  json_string_length(value)})
                                 : -1;
}

/* ---- comparing ------------------------------------------------------------- */

/* To ipyparallel, dates are no strings. */
static const char *type_name(const json_t *value)
{
    return date_of(value) >= 0 ? "datetime.datetime" : px_type_name(value);
}

static bool is_number(const json_t *value)
{
    return json_is_number(value) || json_is_boolean(value);
}

static double number_of(const json_t *value)
{
    return json_is_boolean(value) ? json_is_true(value) : json_number_value(value);
}

static bool equal(const json_t *a, const json_t *b)
{
    if (is_number(a) && is_number(b))
        return number_of(a) == number_of(b);
    int64_t date = date_of(a);
    if (date >= 0 && date_of(b) >= 0)
        return date == date_of(b);
    return json_equal(a, b);
}

/* -1, 0 or 1 in *out; TypeError when there is no order between the two. */
static int order(const json_t *a, const json_t *b, const char *symbol, int *out,
                 struct px_exception *exception)
{
    int64_t date_a = date_of(a), date_b = date_of(b);
    if (date_a >= 0 && date_b >= 0)
        *out = (date_a > date_b) - (date_a < date_b);
    else if (date_a < 0 && date_b < 0 && json_is_string(a) && json_is_string(b))
        *out = strcmp(json_string_value(a), json_string_value(b));
    else if (is_number(a) && is_number(b))
        *out = (number_of(a) > number_of(b)) - (number_of(a) < number_of(b));
    else
        return px_raise(exception, "TypeError",
                        "'%s' not supported between instances of '%s' and '%s'", symbol,
                        type_name(a), type_name(b));
    return 0;
}

/* ---- operators ------------------------------------------------------------- */

static int op_eq(const json_t *value, const json_t *argument, struct px_exception *exception)
{
    (void)exception;
    return equal(value, argument);
}

static int op_ne(const json_t *value, const json_t *argument, struct px_exception *exception)
{
    (void)exception;
    return !equal(value, argument);
}

static int op_lt(const json_t *value, const json_t *argument, struct px_exception *exception)
{
    int sign;
    return order(value, argument, "<", &sign, exception) != 0 ? -1 : sign < 0;
}

static int op_gt(const json_t *value, const json_t *argument, struct px_exception *exception)
{
    int sign;
    return order(value, argument, ">", &sign, exception) != 0 ? -1 : sign > 0;
}

static int op_lte(const json_t *value, const json_t *argument, struct px_exception *exception)
{
    int sign;
    return order(value, argument, "<=", &sign, exception) != 0 ? -1 : sign <= 0;
}

static int op_gte(const json_t *value, const json_t *argument, struct px_exception *exception)
{
    int sign;
    return order(value, argument, ">=", &sign, exception) != 0 ? -1 : sign >= 0;
}

/* Python's `value in container`, for lists, strings and the keys of objects. */
static int contains(const json_t *container, const json_t *value, struct px_exception *exception)
{
    if (json_is_array(container)) {
        for (size_t i = 0; i < json_array_size(container); i++) {
            if (equal(json_array_get(container, i), value))
                return 1;
        }
        return 0;
    }
    if (json_is_string(container)) {
        if (json_is_string(value) && date_of(value) < 0)
            return strstr(json_string_value(container), json_string_value(value)) != NULL;
        return px_raise(exception, "TypeError",
                        "'in <string>' requires string as left operand, not %s", type_name(value));
    }
    if (json_is_object(container))
        return json_is_string(value) &&
               json_object_get(container, json_string_value(value)) != NULL;
    return px_raise(exception, "TypeError", "argument of type '%s' is not iterable",
                    type_name(container));
}

static int op_in(const json_t *value, const json_t *argument, struct px_exception *exception)
{
    return contains(argument, value, exception);
}

static int op_nin(const json_t *value, const json_t *argument, struct px_exception *exception)
{
    int found = contains(argument, value, exception);
    return found < 0 ? -1 : !found;
}

static int op_all(const json_t *value, const json_t *argument, struct px_exception *exception)
{
    json_t *containers = px_iterate(argument, exception);
    int found = containers ? 1 : -1;
    for (size_t i = 0; found > 0 && i < json_array_size(containers); i++)
        found = contains(json_array_get(containers, i), value, exception);
    json_decref(containers);
    return found;
}

/* sequence[index]: NULL with the exception that Python raises. */
static const json_t *item_at(const json_t *sequence, size_t index, struct px_exception *exception)
{
    if (index < json_array_size(sequence))
        return json_array_get(sequence, index);
    if (json_is_array(sequence))
        px_raise(exception, "IndexError", "list index out of range");
    else if (json_is_object(sequence))
        px_raise(exception, "KeyError", "%zu", index);
    else if (json_is_string(sequence))
        px_raise(exception, "TypeError", "unsupported operand type(s) for %%: 'int' and 'str'");
    else
        px_raise(exception, "TypeError", "'%s' object is not subscriptable",
                 px_type_name(sequence));
    return NULL;
}

/* Python's remainder has the sign of the divisor; with a str on its left it is formatting. */
static int op_mod(const json_t *value, const json_t *argument, struct px_exception *exception)
{
    const json_t *divisor = item_at(argument, 0, exception);
    if (divisor == NULL)
        return -1;
    if (json_is_string(value) && date_of(value) < 0)
        return px_raise(exception, "TypeError",
                        "not all arguments converted during string formatting");
    if (!json_is_integer(value) || !json_is_integer(divisor))
        return px_raise(exception, "TypeError", "unsupported operand type(s) for %%: '%s' and '%s'",
                        type_name(value), type_name(divisor));
    json_int_t by = json_integer_value(divisor);
    if (by == 0)
        return px_raise(exception, "ZeroDivisionError", "integer modulo by zero");
    const json_t *rest = item_at(argument, 1, exception);
    if (rest == NULL)
        return -1;
    json_int_t left = by == -1 ? 0 : json_integer_value(value) % by;
    if (left != 0 && (left < 0) != (by < 0))
        left += by;
    return is_number(rest) && number_of(rest) == (double)left;
}

static int op_exists(const json_t *value, const json_t *argument, struct px_exception *exception)
{
    (void)exception;
    return px_truth(argument) != json_is_null(value);
}

static int op_glob(const json_t *value, const json_t *argument, struct px_exception *exception)
{
    if (!json_is_string(argument))
        return px_raise(exception, "TypeError", "a glob must be a str, not '%s'",
                        px_type_name(argument));
    return json_is_string(value) &&
           fnmatch(json_string_value(argument), json_string_value(value), FNM_NOESCAPE) == 0;
}

static const struct {
    const char *name;
    operator_fn *holds;
} operators[] = {
    {"$eq", op_eq},   {"$ne", op_ne},   {"$lt", op_lt},     {"$gt", op_gt},
    {"$lte", op_lte}, {"$gte", op_gte}, {"$in", op_in},     {"$nin", op_nin},
    {"$all", op_all}, {"$mod", op_mod}, {"$glob", op_glob}, {"$exists", op_exists},
};

/* ---- parsing --------------------------------------------------------------- */

static void add_test(struct px_query *query, const char *field, const char *name,
                     operator_fn *holds, json_t *argument)
{
    query->tests = px_realloc(query->tests, (query->count + 1) * sizeof(*query->tests));
    query->tests[query->count++] =
        (struct test){px_strdup(field), name, holds, json_incref(argument)};
}

/* The strings of a list as the keys of an object, in which `contains` finds them at once. NULL when
 * something else is among them: a date, which equals other texts, say. */
static json_t *as_set(const json_t *list)
{
    json_t *set = json_object();
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i);
        const char *text = json_string_value(item);
        if (text == NULL || strlen(text) != json_string_length(item) || date_of(item) >= 0) {
            json_decref(set);
            return NULL;
        }
        json_object_set_new(set, text, json_null());
    }
    return set;
}

static int add_list(struct px_query *query, const char *field, const char *name, operator_fn *holds,
                    json_t *list, struct px_exception *exception)
{
    json_t *set = as_set(list);
    if (set == NULL && json_array_size(list) > MAX_LIST)
        return px_raise(exception, "ValueError", "more than %d values in %s, and not all plain str",
                        MAX_LIST, name);
    add_test(query, field, name, holds, set ? set : list);
    json_decref(set);
    return 0;
}

static int add_operator(struct px_query *query, const char *field, const char *name,
                        json_t *argument, struct px_exception *exception)
{
    for (size_t i = 0; i < PX_COUNT(operators); i++) {
        if (strcmp(operators[i].name, name) != 0)
            continue;
        name = operators[i].name;
        operator_fn *holds = operators[i].holds;
        if (json_is_array(argument) && (holds == op_in || holds == op_nin))
            return add_list(query, field, name, holds, argument, exception);
        if (holds == op_all &&
            json_array_size(argument) + json_object_size(argument) + json_string_length(argument) >
                MAX_LIST)
            return px_raise(exception, "ValueError", "more than %d values in $all", MAX_LIST);
        add_test(query, field, name, holds, argument);
        return 0;
    }
    return px_raise(exception, "KeyError", "'%.200s'", name);
}

static int add_field(struct px_query *query, const char *field, json_t *value,
                     struct px_exception *exception)
{
    const char *name;
    json_t *argument;
    if (query->count + json_object_size(value) > MAX_TESTS)
        return px_raise(exception, "ValueError", "a query of more than %d tests", MAX_TESTS);
    if (!json_is_object(value)) {
        add_test(query, field, "$eq", op_eq, value);
        return 0;
    }
    json_object_foreach(value, name, argument) {
        if (add_operator(query, field, name, argument, exception) != 0)
            return -1;
    }
    return 0;
}

struct px_query *px_query_create(const json_t *query, struct px_exception *exception)
{
    struct px_query *out = px_alloc(sizeof(*out));
    const char *field;
    json_t *value;
    if (!json_is_object(query)) {
        px_raise(exception, "AttributeError", "'%s' object has no attribute 'items'",
                 px_type_name(query));
        goto fail;
    }
    json_object_foreach((json_t *)query, field, value) {
        if (add_field(out, field, value, exception) != 0)
            goto fail;
    }
    return out;

fail:
    px_query_destroy(out);
    return NULL;
}

void px_query_destroy(struct px_query *query)
{
    if (query == NULL)
        return;
    for (size_t i = 0; i < query->count; i++) {
        free(query->tests[i].field);
        json_decref(query->tests[i].argument);
    }
    free(query->tests);
    free(query);
}

int px_query_match(const struct px_query *query, json_t *(*get)(void *ctx, const char *field),
                   void *ctx, struct px_exception *exception)
{
    for (size_t i = 0; i < query->count; i++) {
        const struct test *test = &query->tests[i];
        json_t *value = get(ctx, test->field);
        if (value == NULL)
            value = json_null();
        int holds = test->holds(value, test->argument, exception);
        json_decref(value);
        if (holds <= 0)
            return holds;
    }
    return 1;
}

json_t *px_query_ids(const struct px_query *query)
{
    for (size_t i = 0; i < query->count; i++) {
        const struct test *test = &query->tests[i];
        if (strcmp(test->field, "msg_id") != 0)
            continue;
        if (test->holds == op_in && json_is_object(test->argument))
            return json_incref(test->argument);
        if (test->holds == op_eq && json_is_string(test->argument)) {
            json_t *list = json_pack("[O]", test->argument), *set = as_set(list);
            json_decref(list);
            if (set != NULL)
                return set;
        }
    }
    return NULL;
}
