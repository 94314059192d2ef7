/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * schedule_named: tasks that wait for certain engines. A client sends thousands with the same
 * targets: their names are kept once, and so is the set of engines that they wait for, a circle. In
 * its heap a task has one entry, however many engines it names; each of these engines has the
 * circle in a heap of its own, by the ticket of its first task:
 *
 *     engine ── seats, a heap of (circle, ticket) ──▶ circle ── tasks, a heap by ticket
 *
 * A circle's first ticket grows as its tasks leave, and that is not told to its engines: a number
 * in their heaps is at most the true one, and put right when it comes to the top.
 */
#include "schedule_parts.h"

#include <stdlib.h>
#include <string.h>

/* ---- names ----------------------------------------------------------------- */

struct targets {
    UT_hash_handle hh;
    size_t tasks;
    char **names;
    size_t count;
    char text[]; /* all names, each ended by a 0 */
};

static struct targets *join_names(char **names, size_t count, size_t *size)
{
    *size = 0;
    for (size_t i = 0; i < count; i++)
        *size += strlen(names[i]) + 1;
    struct targets *targets = px_alloc(sizeof(*targets) + *size);
    char *at = targets->text;
    for (size_t i = 0; i < count; i++)
        at = stpcpy(at, names[i]) + 1;
    return targets;
}

void px_targets_share(struct px_schedule *schedule, struct task *task)
{
    struct px_task_spec *spec = &task->spec;
    struct targets *known;
    size_t size;
    if (spec->target_count == 0)
        return;
    struct targets *targets = join_names(spec->targets, spec->target_count, &size);
    HASH_FIND(hh, schedule->targets, targets->text, size, known);
    if (known != NULL) {
        px_names_free(spec->targets, spec->target_count);
        free(targets);
    } else {
        known = targets;
        known->names = spec->targets;
        known->count = spec->target_count;
        HASH_ADD_KEYPTR(hh, schedule->targets, known->text, size, known);
    }
    known->tasks++;
    task->targets = known;
    spec->targets = known->names;
}

void px_targets_let_go(struct px_schedule *schedule, struct task *task)
{
    struct targets *targets = task->targets;
    if (targets == NULL)
        return;
    task->targets = NULL;
    task->spec.targets = NULL;
    task->spec.target_count = 0;
    if (--targets->tasks > 0)
        return;
    HASH_DEL(schedule->targets, targets);
    px_names_free(targets->names, targets->count);
    free(targets);
}

/* ---- circles --------------------------------------------------------------- */

/* A circle in the heap of one engine. */
struct seat {
    struct circle *circle;
    struct px_worker *worker;
    size_t at;
};

struct circle {
    UT_hash_handle hh; /* by serials; two may have come to be the same */
    struct px_heap tasks;
    uint32_t *serials; /* ascending */
    struct seat **seats;
    size_t count;
};

static int compare_serials(const void *a, const void *b)
{
    const struct px_worker *x = *(struct px_worker *const *)a, *y = *(struct px_worker *const *)b;
    return (x->serial > y->serial) - (x->serial < y->serial);
}

static void list_circle(struct px_schedule *schedule, struct circle *circle)
{
    HASH_ADD_KEYPTR(hh, schedule->circles, circle->serials,
                    circle->count * sizeof(*circle->serials), circle);
}

static struct circle *make_circle(struct px_schedule *schedule, struct px_worker **workers,
                                  uint32_t *serials, size_t count)
{
    struct circle *circle = px_alloc(sizeof(*circle));
    circle->serials = serials;
    circle->count = count;
    circle->seats = px_alloc(count * sizeof(struct seat *));
    for (size_t i = 0; i < count; i++) {
        circle->seats[i] = px_alloc(sizeof(struct seat));
        *circle->seats[i] = (struct seat){.circle = circle, .worker = workers[i]};
    }
    list_circle(schedule, circle);
    return circle;
}

/* A task may name an engine twice. */
static size_t drop_doubles(struct px_worker **workers, size_t count)
{
    size_t kept = 1;
    for (size_t i = 1; i < count; i++) {
        if (workers[i] != workers[kept - 1])
            workers[kept++] = workers[i];
    }
    return kept;
}

static struct circle *circle_of(struct px_schedule *schedule, struct px_worker **workers,
                                size_t count)
{
    struct circle *circle;
    uint32_t *serials = px_alloc(count * sizeof(*serials));
    qsort(workers, count, sizeof(struct px_worker *), compare_serials);
    count = drop_doubles(workers, count);
    for (size_t i = 0; i < count; i++)
        serials[i] = workers[i]->serial;
    HASH_FIND(hh, schedule->circles, serials, count * sizeof(*serials), circle);
    if (circle == NULL)
        return make_circle(schedule, workers, serials, count);
    free(serials);
    return circle;
}

static uint64_t first_ticket(const struct circle *circle)
{
    return px_heap_top(&circle->tasks)->key;
}

static void seat_at(struct seat *seat, uint64_t ticket)
{
    struct px_heap *seats = &desk_of(seat->worker)->seats;
    if (seat->at != 0 && px_heap_key(seats, seat->at) <= ticket)
        return;
    px_heap_remove(seats, &seat->at);
    px_heap_push(seats, ticket, seat, &seat->at);
}

void px_circle_join(struct px_schedule *schedule, struct task *task, struct px_worker **workers,
                    size_t count)
{
    struct circle *circle = circle_of(schedule, workers, count);
    task->circle = circle;
    px_heap_push(&circle->tasks, task->ticket, task, &task->circle_at);
    if (first_ticket(circle) != task->ticket)
        return;
    for (size_t i = 0; i < circle->count; i++)
        seat_at(circle->seats[i], task->ticket);
}

static void free_seat(struct seat *seat)
{
    px_heap_remove(&desk_of(seat->worker)->seats, &seat->at);
    free(seat);
}

void px_circle_leave(struct px_schedule *schedule, struct task *task)
{
    struct circle *circle = task->circle;
    if (circle == NULL)
        return;
    task->circle = NULL;
    px_heap_remove(&circle->tasks, &task->circle_at);
    if (px_heap_top(&circle->tasks) != NULL)
        return;
    HASH_DEL(schedule->circles, circle);
    for (size_t i = 0; i < circle->count; i++)
        free_seat(circle->seats[i]);
    px_heap_fini(&circle->tasks);
    free(circle->seats);
    free(circle->serials);
    free(circle);
}

struct task *px_circle_first(struct px_worker *worker)
{
    struct px_heap *seats = &desk_of(worker)->seats;
    for (const struct px_heap_entry *top; (top = px_heap_top(seats)) != NULL;) {
        struct seat *seat = top->item;
        uint64_t ticket = first_ticket(seat->circle);
        if (top->key == ticket)
            return px_heap_top(&seat->circle->tasks)->item;
        px_heap_remove(seats, &seat->at);
        px_heap_push(seats, ticket, seat, &seat->at);
    }
    return NULL;
}

/* The tasks of a circle wait for the others in it; without others each looks for itself. */
static void leave_circle(struct px_schedule *schedule, struct seat *seat)
{
    struct circle *circle = seat->circle;
    if (circle->count == 1) {
        px_task_place(schedule, px_heap_top(&circle->tasks)->item); /* leaves it at least */
        return;
    }
    HASH_DEL(schedule->circles, circle);
    size_t kept = 0;
    for (size_t i = 0; i < circle->count; i++) {
        if (circle->seats[i] == seat)
            continue;
        circle->serials[kept] = circle->serials[i];
        circle->seats[kept++] = circle->seats[i];
    }
    circle->count = kept;
    list_circle(schedule, circle);
    free_seat(seat);
}

void px_circles_without(struct px_schedule *schedule, struct px_worker *worker)
{
    while (px_circle_first(worker) != NULL)
        leave_circle(schedule, px_heap_top(&desk_of(worker)->seats)->item);
}
