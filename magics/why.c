/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * why: a why_reply as sentences, a line for tasks that have the same thing to say. Pure.
 *
 *     {"status": "ok", "tasks": {msg_id: {"state", "why", "engine", "since_s"}}}
 *
 * Everything in it is optional and checked; what is missing is left out of the sentence.
 */
#include "magics.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define LINES_SHOWN 20
#define ID_SHOWN 12 /* of the end of a msg_id, which tells tasks of one client apart */

struct task {
    const char *id, *state, *why;
    int engine;     /* -1: none */
    double since_s; /* negative: not said */
};

static struct task read_task(const char *id, const json_t *object)
{
    const char *state = json_string_value(json_object_get(object, "state"));
    const char *why = json_string_value(json_object_get(object, "why"));
    const json_t *engine = json_object_get(object, "engine");
    const json_t *since = json_object_get(object, "since_s");
    const json_int_t number = json_is_integer(engine) ? json_integer_value(engine) : -1;
    return (struct task){.id = id,
                         .state = state ? state : "unknown",
                         .why = why ? why : "",
                         .engine = number >= 0 && number < INT32_MAX ? (int)number : -1,
                         .since_s = json_is_number(since) ? json_number_value(since) : -1};
}

/* Tasks first, those with the same state and reason. */
static void render_group(struct px_buf *out, const struct task *tasks, const size_t *members,
                         size_t count)
{
    const struct task *task = &tasks[members[0]];
    int *engines = px_alloc(count * sizeof *engines);
    size_t known = 0;
    double longest = -1;
    for (size_t i = 0; i < count; i++) {
        const struct task *one = &tasks[members[i]];
        if (one->engine >= 0)
            engines[known++] = one->engine;
        longest = one->since_s > longest ? one->since_s : longest;
    }
    const size_t size = strlen(task->id);
    if (count == 1)
        px_buf_printf(out, "task %s%s", size > ID_SHOWN ? "..." : "",
                      task->id + (size > ID_SHOWN ? size - ID_SHOWN : 0));
    else
        px_buf_printf(out, "%zu tasks", count);
    if (known) {
        px_buf_printf(out, " of engine%s ", known == 1 ? "" : "s");
        px_render_ranges(out, engines, known);
    }
    px_buf_printf(out, ": %s", task->state);
    if (longest >= 0) {
        px_buf_text(out, count == 1 ? " for " : " for up to ");
        px_render_duration(out, longest);
    }
    px_buf_printf(out, "%s%s\n", *task->why ? ": " : "", task->why);
    free(engines);
}

static void render_tasks(struct px_buf *out, const struct task *tasks, size_t count)
{
    struct px_buf *texts = px_alloc((count + 1) * sizeof *texts);
    struct px_span *keys = px_alloc((count + 1) * sizeof *keys);
    size_t *first = px_alloc((count + 1) * sizeof *first), lines = 0, left = 0;
    size_t *members = px_alloc((count + 1) * sizeof *members);
    for (size_t i = 0; i < count; i++) {
        px_buf_printf(&texts[i], "%s %s", tasks[i].state, tasks[i].why);
        keys[i] = px_buf_span(&texts[i]);
    }
    px_fold(keys, count, first);
    for (size_t i = 0; i < count; i++) {
        const size_t size = px_fold_members(first, count, i, members);
        if (size && lines++ < LINES_SHOWN)
            render_group(out, tasks, members, size);
        else
            left += size;
    }
    if (left)
        px_buf_printf(out, "... and %zu more tasks\n", left);
    for (size_t i = 0; i < count; i++)
        px_buf_fini(&texts[i]);
    free(members);
    free(first);
    free(keys);
    free(texts);
}

int px_why_render(struct px_buf *out, struct px_span reply, struct px_error *err)
{
    json_t *root = json_loadb(reply.data, reply.size, 0, NULL);
    json_t *object = json_object_get(root, "tasks"), *value;
    int status = 0;
    if (json_is_object(object)) {
        const char *id;
        size_t count = 0;
        struct task *tasks = px_alloc((json_object_size(object) + 1) * sizeof *tasks);
        json_object_foreach(object, id, value)
            tasks[count++] = read_task(id, value);
        render_tasks(out, tasks, count);
        free(tasks);
    } else {
        status = px_fail(err, PX_EINVAL, "the controller's answer names no tasks");
    }
    json_decref(root);
    return status;
}
