/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pxmagics_queue: displays that wait to be shown, and the text that waits behind them.
 *
 * A display waits for text that came before it from others, and, if it may be folded, for the same
 * display of other engines: until the last has one, nothing new has come for FOLD_MS, or the first
 * has waited FOLD_MOST_MS. An engine that comes later with what others have shown is only said to.
 * What an engine has sent keeps its order.
 */
#include "pxmagics.h"

#include <stdlib.h>
#include <string.h>

#define DISPLAY_MS 150
#define FOLD_MS 300
#define FOLD_MOST_MS 1000
#define SHOWN_MOST 256 /* displays that are remembered, for engines that show the same later */

struct item {
    size_t task;
    PyObject *content; /* of a display; or text, a str */
    int number;        /* a display: whether it is an update; text: its stream */
    bool foldable, done;
    size_t turn;    /* its place among its task's, while a round is shown */
    Py_hash_t hash; /* of a display that is foldable */
};

/* What was shown, foldable. */
struct shown {
    struct item item; /* owns a reference to its content */
    size_t *tasks, count;
};

struct px_queue {
    bool fold;
    size_t tasks;
    struct item *items;
    size_t count, capacity, foldable;
    bool *displaying; /* by task: has a display here */
    int64_t first_ms, last_ms;
    struct shown *shown;
    size_t shown_count;
};

struct px_queue *px_queue_create(size_t tasks, bool fold)
{
    struct px_queue *queue = px_alloc(sizeof *queue);
    queue->fold = fold && tasks > 1;
    queue->tasks = tasks;
    queue->displaying = px_alloc(tasks + 1);
    return queue;
}

static void free_items(struct item *items, size_t count)
{
    for (size_t i = 0; i < count; i++)
        Py_DECREF(items[i].content);
    free(items);
}

void px_queue_destroy(struct px_queue *queue)
{
    if (!queue)
        return;
    free_items(queue->items, queue->count);
    for (size_t i = 0; i < queue->shown_count; i++) {
        Py_DECREF(queue->shown[i].item.content);
        free(queue->shown[i].tasks);
    }
    free(queue->shown);
    free(queue->displaying);
    free(queue);
}

bool px_queue_is_empty(const struct px_queue *queue)
{
    return queue->count == 0;
}

/* ---- adding ------------------------------------------------------------------------- */

static void add(struct px_queue *queue, const struct item *item)
{
    if (queue->count == queue->capacity) {
        queue->capacity = queue->capacity ? 2 * queue->capacity : 16;
        queue->items = px_realloc(queue->items, queue->capacity * sizeof *queue->items);
    }
    queue->last_ms = px_now_ms();
    if (queue->count == 0)
        queue->first_ms = queue->last_ms;
    queue->items[queue->count++] = *item;
    queue->foldable += item->foldable;
    Py_INCREF(item->content);
}

/* What is shown under an id will be changed: it is one engine's own. */
PyObject *px_display_id(PyObject *content)
{
    PyObject *transient = PyDict_GetItemString(content, "transient");
    return transient && PyDict_Check(transient) ? PyDict_GetItemString(transient, "display_id")
                                                : NULL;
}

void px_queue_display(struct px_queue *queue, size_t task, PyObject *content, bool update)
{
    struct item item = {.task = task, .content = content, .number = update};
    PyObject *data = PyDict_GetItemString(content, "data");
    item.foldable = queue->fold && !update && data && PyDict_Check(data) && !px_display_id(content);
    if (item.foldable)
        item.hash = px_bundle_hash(data);
    queue->displaying[task] = true;
    add(queue, &item);
}

static int add_page(struct px_queue *queue, size_t task, PyObject *payload)
{
    PyObject *source = PyDict_Check(payload) ? PyDict_GetItemString(payload, "source") : NULL;
    PyObject *data = source ? PyDict_GetItemString(payload, "data") : NULL; /* both borrowed */
    if (!data || !PyUnicode_Check(source) || PyUnicode_CompareWithASCIIString(source, "page") != 0)
        return 0;
    PyObject *content = Py_BuildValue("{sO}", "data", data);
    if (content)
        px_queue_display(queue, task, content, false);
    Py_XDECREF(content);
    return content ? 0 : -1;
}

int px_queue_pages(struct px_queue *queue, size_t task, PyObject *content)
{
    PyObject *payload = PyDict_GetItemString(content, "payload"); /* borrowed */
    int status = 0;
    for (Py_ssize_t i = 0; payload && PyList_Check(payload) && i < PyList_GET_SIZE(payload); i++)
        status |= add_page(queue, task, PyList_GET_ITEM(payload, i));
    return status;
}

bool px_queue_text(struct px_queue *queue, size_t task, enum px_stream stream, PyObject *text)
{
    const struct item item = {.task = task, .content = text, .number = (int)stream};
    if (!queue->displaying[task])
        return false;
    add(queue, &item);
    return true;
}

/* ---- showing -------------------------------------------------------------------------- */

/* Whether a task that goes on has no display here: others may wait for it. */
static bool others_may_come(const struct px_queue *queue, const bool *ended)
{
    for (size_t i = 0; i < queue->tasks; i++) {
        if (!ended[i] && !queue->displaying[i])
            return true;
    }
    return false;
}

int64_t px_queue_due(const struct px_queue *queue, const bool *ended)
{
    if (queue->count == 0)
        return INT64_MAX;
    if (queue->foldable == 0)
        return queue->first_ms + DISPLAY_MS;
    if (!others_may_come(queue, ended))
        return queue->last_ms;
    const int64_t quiet_ms = queue->last_ms + FOLD_MS, most_ms = queue->first_ms + FOLD_MOST_MS;
    return quiet_ms < most_ms ? quiet_ms : most_ms;
}

static bool are_equal(const struct item *a, const struct item *b)
{
    static const char *const members[] = {"data", "metadata"};
    if (!a->foldable || !b->foldable || a->hash != b->hash)
        return false;
    for (size_t i = 0; i < PX_COUNT(members); i++) {
        PyObject *x = PyDict_GetItemString(a->content, members[i]);
        PyObject *y = PyDict_GetItemString(b->content, members[i]);
        const int equal = !x || !y ? x == y : PyObject_RichCompareBool(x, y, Py_EQ);
        if (equal < 0)
            PyErr_Clear();
        if (equal != 1)
            return false;
    }
    return true;
}

struct round {
    struct item *items;
    size_t count;
    bool *spoke; /* by task: its text was told, and what it sent later waits again */
    bool *seen;  /* by task: its next item was looked at */
    size_t *members;
};

/* The tasks whose next item is the display items[at], too. */
static size_t gather(struct round *round, size_t at, size_t tasks)
{
    size_t count = 0;
    memset(round->seen, 0, tasks);
    for (size_t i = at; i < round->count; i++) {
        struct item *item = &round->items[i];
        if (item->done || round->seen[item->task])
            continue;
        round->seen[item->task] = true;
        if (i > at && (round->spoke[item->task] || !are_equal(item, &round->items[at])))
            continue;
        item->done = true;
        round->members[count++] = item->task;
        if (!item->foldable)
            break;
    }
    return count;
}

static void add_tasks(struct shown *shown, const size_t *tasks, size_t count)
{
    shown->tasks = px_realloc(shown->tasks, (shown->count + count) * sizeof *shown->tasks);
    memcpy(shown->tasks + shown->count, tasks, count * sizeof *shown->tasks);
    shown->count += count;
}

static bool has_any(const struct shown *shown, const size_t *tasks, size_t count)
{
    for (size_t i = 0; i < shown->count; i++) {
        for (size_t j = 0; j < count; j++) {
            if (shown->tasks[i] == tasks[j])
                return true;
        }
    }
    return false;
}

/* The same display, shown of others: an engine that shows one twice means it. NULL: none. */
static struct shown *find_shown(struct px_queue *queue, const struct item *item,
                                const size_t *tasks, size_t count)
{
    for (size_t i = 0; i < queue->shown_count; i++) {
        struct shown *shown = &queue->shown[i];
        if (are_equal(item, &shown->item) && !has_any(shown, tasks, count))
            return shown;
    }
    return NULL;
}

/* Shows a display of some tasks; or, when others have shown the same, says that. */
static int show_once(struct px_queue *queue, const struct item *item, size_t count,
                     const size_t *tasks, struct px_show *show)
{
    struct shown *shown = find_shown(queue, item, tasks, count);
    if (shown) {
        const int status = px_show_same(show, tasks, count, shown->tasks, shown->count);
        add_tasks(shown, tasks, count);
        return status;
    }
    if (item->foldable && queue->shown_count < SHOWN_MOST) {
        queue->shown = px_realloc(queue->shown, (queue->shown_count + 1) * sizeof *queue->shown);
        shown = &queue->shown[queue->shown_count++];
        *shown = (struct shown){.item = *item};
        Py_INCREF(item->content);
        add_tasks(shown, tasks, count);
    }
    return px_show_display(show, tasks, count, item->content, item->number);
}

static int take_turn(struct px_queue *queue, struct round *round, size_t at, struct px_show *show)
{
    struct item *item = &round->items[at];
    if (item->done)
        return 0;
    if (PyUnicode_Check(item->content)) {
        item->done = true;
        round->spoke[item->task] = true;
        return px_show_text(show, item->task, (enum px_stream)item->number, item->content);
    }
    if (round->spoke[item->task]) {
        item->done = true;
        px_queue_display(queue, item->task, item->content, item->number);
        return 0;
    }
    const size_t count = gather(round, at, queue->tasks);
    return show_once(queue, item, count, round->members, show);
}

static int by_turn(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    if (x->turn != y->turn)
        return x->turn < y->turn ? -1 : 1;
    return (x->task > y->task) - (x->task < y->task);
}

/* Each engine's first, by engine, then each one's second: whichever came first. */
static void take_turns(struct item *items, size_t count, size_t tasks)
{
    size_t *turns = px_alloc((tasks + 1) * sizeof *turns);
    for (size_t i = 0; i < count; i++)
        items[i].turn = turns[items[i].task]++;
    if (count)
        qsort(items, count, sizeof *items, by_turn);
    free(turns);
}

int px_queue_show(struct px_queue *queue, struct px_show *show)
{
    take_turns(queue->items, queue->count, queue->tasks);
    struct round round = {.items = queue->items,
                          .count = queue->count,
                          .spoke = px_alloc(queue->tasks + 1),
                          .seen = px_alloc(queue->tasks + 1),
                          .members = px_alloc((queue->tasks + 1) * sizeof(size_t))};
    queue->items = NULL;
    queue->count = queue->capacity = queue->foldable = 0;
    memset(queue->displaying, 0, queue->tasks);
    int status = 0;
    for (size_t i = 0; status == 0 && i < round.count; i++)
        status = take_turn(queue, &round, i, show);
    free_items(round.items, round.count);
    free(round.members);
    free(round.seen);
    free(round.spoke);
    return status;
}
