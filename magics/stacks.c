/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * stacks: what engines do, merged into one tree. Pure.
 *
 *     engines 0-2: execute_request for 12 s; engine 3: idle
 *     0-2  <module>, cell.py line 4
 *     0-2  step, model.py line 10
 *          0-1  recv, comm.py line 33
 *          2    multiply, model.py line 71
 *
 * Each thread's frames are read outermost first; engines share a frame as long as all frames
 * outside of it are equal. Frames of the interpreter's own machinery around the user's code are
 * left out. A stack is indented where it parts from others, not at each frame, so that deep ones
 * stay readable.
 */
#include "magics.h"

#include <stdlib.h>
#include <string.h>

#define DEPTH_MOST 512    /* frames of one thread */
#define NODES_MOST 100000 /* of the tree */
#define LINE_MOST 600     /* of one frame's text */

struct node {
    char *key, *text;
    int *engines;
    size_t engine_count;
    struct node *first, *last, *next; /* children; the next sibling */
};

struct tree {
    struct node root;
    size_t size;
};

/* Code that runs the user's code: not shown when nothing of the user's is outside of it. */
static const char *const machinery[] = {
    "<phalanx",    "/phalanx/", "/IPython/", "/ipykernel/", "/ipyparallel/", "/tornado/",
    "/traitlets/", "/asyncio/", "<frozen ",  "/runpy.py",   "/threading.py", "/concurrent/",
};

/* ---- the tree ------------------------------------------------------------------------- */

static void add_engine(struct node *node, int engine)
{
    const size_t count = node->engine_count;
    if (count && node->engines[count - 1] == engine)
        return;
    if ((count & (count - 1)) == 0)
        node->engines = px_realloc(node->engines, (count ? 2 * count : 1) * sizeof(int));
    node->engines[node->engine_count++] = engine;
}

static struct node *child_of(struct tree *tree, struct node *parent, const char *key,
                             struct px_span text)
{
    for (struct node *node = parent->first; node; node = node->next) {
        if (strcmp(node->key, key) == 0)
            return node;
    }
    if (tree->size == NODES_MOST)
        return NULL;
    tree->size++;
    struct node *node = px_alloc(sizeof *node);
    node->key = px_strdup(key);
    node->text = px_strndup(text.data, text.size);
    if (parent->last)
        parent->last->next = node;
    else
        parent->first = node;
    parent->last = node;
    return node;
}

static void fini_children(struct node *parent)
{
    struct node *next;
    for (struct node *node = parent->first; node; node = next) {
        next = node->next;
        fini_children(node);
        free(node->key);
        free(node->text);
        free(node->engines);
        free(node);
    }
}

/* ---- reading ----------------------------------------------------------------------------- */

static bool begins(struct px_span line, const char *text)
{
    return line.size >= strlen(text) && memcmp(line.data, text, strlen(text)) == 0;
}

static struct px_span next_line(struct px_span *rest)
{
    const char *end = rest->size ? memchr(rest->data, '\n', rest->size) : NULL;
    const size_t size = end ? (size_t)(end - rest->data) : rest->size;
    const struct px_span line = {rest->data, size};
    rest->data += size + (end != NULL);
    rest->size -= size + (end != NULL);
    return line;
}

static bool is_machinery(struct px_span frame)
{
    char text[LINE_MOST + 1];
    memcpy(text, frame.data, frame.size);
    text[frame.size] = '\0';
    for (size_t i = 0; i < PX_COUNT(machinery); i++) {
        if (strstr(text, machinery[i]))
            return true;
    }
    return false;
}

/* One thread's stack, innermost frame first. */
static void add_stack(struct tree *tree, int engine, const struct px_span *frames, size_t count)
{
    size_t outermost = count;
    while (outermost > 0 && is_machinery(frames[outermost - 1]))
        outermost--;
    struct node *node = &tree->root;
    struct px_buf key = {0};
    for (size_t i = outermost; i > 0 && node; i--) {
        px_buf_clear(&key);
        px_fold_error_key(&key, frames[i - 1]);
        node = child_of(tree, node, key.data, frames[i - 1]);
        if (node)
            add_engine(node, engine);
    }
    px_buf_fini(&key);
}

/* `trees`: the thread that works, and the others. */
static void add_engine_stacks(struct tree trees[2], const struct px_stacks *engine)
{
    struct px_span frames[DEPTH_MOST], rest = engine->text;
    size_t count = 0;
    struct tree *tree = NULL;
    while (rest.size) {
        struct px_span line = next_line(&rest);
        const bool current = begins(line, "Current thread");
        if (current || begins(line, "Thread 0x")) {
            if (tree)
                add_stack(tree, engine->engine, frames, count);
            tree = &trees[!current];
            count = 0;
        } else if (begins(line, "  File ") && count < DEPTH_MOST) {
            line.data += 2;
            line.size -= 2;
            line.size = line.size < LINE_MOST ? line.size : LINE_MOST;
            frames[count++] = line;
        }
    }
    if (tree)
        add_stack(tree, engine->engine, frames, count);
}

/* ---- writing --------------------------------------------------------------------------------- */

/* 'File "a.py", line 3 in f' as "f, a.py line 3". */
static void render_frame(struct px_buf *out, const char *text)
{
    const char *file = strchr(text, '"');
    const char *end = file ? strchr(file + 1, '"') : NULL;
    const char *line = end ? strstr(end, "line ") : NULL;
    const char *name = line ? strstr(line, " in ") : NULL;
    if (!name)
        px_buf_text(out, text);
    else
        px_buf_printf(out, "%s, %.*s %.*s", name + 4, (int)(end - file - 1), file + 1,
                      (int)(name - line), line);
    px_buf_text(out, "\n");
}

/* How many columns the widest list of engines among siblings takes. */
static size_t label_width(const struct node *first)
{
    size_t width = 0;
    for (; first; first = first->next) {
        struct px_buf label = {0};
        px_render_ranges(&label, first->engines, first->engine_count);
        width = label.size > width ? label.size : width;
        px_buf_fini(&label);
    }
    return width;
}

static void render_siblings(struct px_buf *out, const struct node *first, size_t indent)
{
    const size_t width = label_width(first);
    for (const struct node *node = first; node; node = node->next) {
        struct px_buf label = {0};
        px_render_ranges(&label, node->engines, node->engine_count);
        const struct node *at = node;
        for (;; at = at->first) { /* down the frames that all of them share */
            px_buf_printf(out, "%*s%-*s  ", (int)indent, "", (int)width,
                          at == node ? label.data : "");
            render_frame(out, at->text);
            if (!at->first || at->first->next || at->first->engine_count != at->engine_count)
                break;
        }
        px_buf_fini(&label);
        render_siblings(out, at->first, indent + width + 2);
    }
}

/* "engines 0-2: execute_request for 12 s" for each kind of work. */
static void render_work(struct px_buf *out, const struct px_stacks *engines, size_t count)
{
    struct px_span *keys = px_alloc((count + 1) * sizeof *keys);
    size_t *first = px_alloc((count + 1) * sizeof *first);
    size_t *members = px_alloc((count + 1) * sizeof *members);
    int *ids = px_alloc((count + 1) * sizeof *ids);
    for (size_t i = 0; i < count; i++)
        keys[i] = px_span_of(engines[i].busy);
    px_fold(keys, count, first);
    for (size_t i = 0; i < count; i++) {
        const size_t size = px_fold_members(first, count, i, members);
        double longest = 0;
        for (size_t j = 0; j < size; j++) {
            const struct px_stacks *one = &engines[members[j]];
            ids[j] = one->engine;
            longest = one->busy_s > longest ? one->busy_s : longest;
        }
        if (size == 0)
            continue;
        px_buf_printf(out, "engine%s ", size == 1 ? "" : "s");
        px_render_ranges(out, ids, size);
        px_buf_printf(out, ": %s", engines[i].busy ? engines[i].busy : "idle");
        px_buf_text(out, engines[i].busy ? size == 1 ? " for " : " for up to " : "");
        if (engines[i].busy)
            px_render_duration(out, longest);
        px_buf_text(out, "\n");
    }
    free(ids);
    free(members);
    free(first);
    free(keys);
}

void px_stacks_render(struct px_buf *out, const struct px_stacks *engines, size_t count)
{
    struct tree trees[2] = {0};
    px_buf_text(out, "");
    render_work(out, engines, count);
    for (size_t i = 0; i < count; i++)
        add_engine_stacks(trees, &engines[i]);
    render_siblings(out, trees[0].root.first, 0);
    if (trees[1].root.first)
        px_buf_text(out, "other threads:\n");
    render_siblings(out, trees[1].root.first, 0);
    fini_children(&trees[0].root);
    fini_children(&trees[1].root);
}
