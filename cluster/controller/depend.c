/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * depend: dependency sets of tasks, as clients write them.
 *
 *     "after": ["id", ...]                              all of them, with success
 *     "after": {"dependencies": ["id", ...], "all": true, "success": true, "failure": false}
 *
 * Keys that are missing have the values above. A set that neither success nor failure could
 * satisfy is refused. Sets are small and read once, so they are parsed with jansson.
 */
#include "schedule.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

void px_names_free(char **names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
}

/* Sorts and drops duplicates. */
static size_t make_set(char **names, size_t count)
{
    if (count < 2)
        return count;
    qsort(names, count, sizeof(*names), compare_names);
    size_t kept = 1;
    for (size_t i = 1; i < count; i++) {
        if (strcmp(names[i], names[kept - 1]) == 0)
            free(names[i]);
        else
            names[kept++] = names[i];
    }
    return kept;
}

static int refuse_names(char **names, size_t count, struct px_error *err)
{
    px_names_free(names, count);
    return px_fail(err, PX_EINVAL, "a list of ids holds something that is not an id");
}

static int names_from(const json_t *list, size_t most, char ***names, size_t *count,
                      struct px_error *err)
{
    size_t size = json_array_size(list);
    if (size > most)
        return px_fail(err, PX_ELIMIT, "%zu ids in one list, more than %zu", size, most);
    char **out = px_alloc((size + 1) * sizeof(*out));
    for (size_t i = 0; i < size; i++) {
        const json_t *item = json_array_get(list, i);
        size_t length = json_string_length(item);
        if (!json_is_string(item) || length == 0 || length > PX_MAX_MSG_ID)
            return refuse_names(out, i, err);
        out[i] = px_strdup(json_string_value(item));
    }
    *count = make_set(out, size);
    *names = out;
    return 0;
}

/* A lone string stands for a list of one. Takes no reference. */
static int names_from_value(const json_t *value, size_t most, char ***names, size_t *count,
                            struct px_error *err)
{
    if (value == NULL || json_is_null(value))
        return 0;
    if (json_is_array(value))
        return json_array_size(value) == 0 ? 0 : names_from(value, most, names, count, err);
    if (!json_is_string(value))
        return px_fail(err, PX_EINVAL, "neither a list of ids nor a dependency");
    json_t *list = json_pack("[O]", value);
    int rc = list ? names_from(list, most, names, count, err)
                  : px_fail(err, PX_EINVAL, "an id that cannot be read");
    json_decref(list);
    return rc;
}

static bool is_blank(struct px_span json)
{
    return json.size == 0 || px_span_equal(json, "[]") || px_span_equal(json, "null");
}

int px_names_parse(struct px_span json, size_t most, char ***names, size_t *count,
                   struct px_error *err)
{
    *names = NULL;
    *count = 0;
    if (is_blank(json))
        return 0;
    json_t *value = json_loadb(json.data, json.size, JSON_DECODE_ANY, NULL);
    if (value == NULL)
        return px_fail(err, PX_EINVAL, "a list of ids is not JSON");
    int rc = names_from_value(value, most, names, count, err);
    json_decref(value);
    return rc;
}

static bool truth_of(const json_t *object, const char *key, bool otherwise)
{
    const json_t *value = json_object_get(object, key);
    if (value == NULL)
        return otherwise;
    if (json_is_integer(value))
        return json_integer_value(value) != 0;
    return json_is_true(value);
}

static int depend_from(const json_t *value, struct px_depend *out, struct px_error *err)
{
    if (!json_is_object(value))
        return names_from_value(value, PX_MAX_DEPENDENCIES, &out->ids, &out->count, err);
    out->all = truth_of(value, "all", true);
    out->success = truth_of(value, "success", true);
    out->failure = truth_of(value, "failure", false);
    if (!out->success && !out->failure)
        return px_fail(err, PX_EINVAL, "a dependency on neither success nor failure");
    return names_from_value(json_object_get(value, "dependencies"), PX_MAX_DEPENDENCIES, &out->ids,
                            &out->count, err);
}

int px_depend_parse(struct px_span json, struct px_depend *out, struct px_error *err)
{
    *out = (struct px_depend){.all = true, .success = true};
    if (is_blank(json))
        return 0;
    json_t *value = json_loadb(json.data, json.size, JSON_DECODE_ANY, NULL);
    if (value == NULL)
        return px_fail(err, PX_EINVAL, "a dependency is not JSON");
    int rc = depend_from(value, out, err);
    json_decref(value);
    if (rc != 0)
        *out = (struct px_depend){.all = true, .success = true};
    return rc;
}

void px_depend_fini(struct px_depend *depend)
{
    px_names_free(depend->ids, depend->count);
    depend->ids = NULL;
    depend->count = 0;
}

bool px_depend_accepts(const struct px_depend *depend, enum px_fate fate)
{
    return (fate == PX_SUCCEEDED && depend->success) || (fate == PX_FAILED && depend->failure);
}
