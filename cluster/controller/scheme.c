/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * scheme: the engines ordered by load and by use, and the schemes that choose one of them.
 *
 * Workers of one set of features are a group. A worker is in its group's list of its load; while it
 * has room (load below the high-water mark) it is also in an array (for random choice) and in a
 * line, least recently used first. "Used" means given a task, or having just made room. Every
 * change is O(1), and so is every choice among all workers that have some features, since there are
 * few groups; a choice among named ones costs their number.
 *
 * To add a scheme: one function of a pool, one row in the table at the end.
 */
#include "schedule.h"

#include <stdlib.h>
#include <string.h>

struct bucket {
    struct px_worker *head, *tail; /* longest there first */
    size_t count;
};

struct group {
    struct bucket *buckets; /* by load */
    size_t bucket_count;
    size_t least; /* no bucket below this one has workers */
    struct px_worker **open;
    size_t open_count, open_size;
    struct px_worker *oldest, *newest; /* of the open ones */
};

struct px_balance {
    unsigned hwm;
    uint64_t random;
    int64_t first, last; /* stamps at both ends of the lines */
    struct group groups[PX_FEATURE_SETS];
};

/* xorshift64*: good enough to spread work, and the same on every run with one seed. */
static uint64_t next_random(struct px_balance *balance)
{
    balance->random ^= balance->random >> 12;
    balance->random ^= balance->random << 25;
    balance->random ^= balance->random >> 27;
    return balance->random * 0x2545F4914F6CDD1DULL;
}

static size_t random_below(struct px_balance *balance, size_t limit)
{
    return (size_t)((next_random(balance) >> 32) * (uint64_t)limit >> 32);
}

static double random_unit(struct px_balance *balance)
{
    return (double)(next_random(balance) >> 11) / (double)(1ULL << 53);
}

/* ---- buckets, the open array and the line ---------------------------------- */

static struct group *group_of(struct px_balance *balance, const struct px_worker *worker)
{
    return &balance->groups[worker->features % PX_FEATURE_SETS];
}

/* The next group from `set` on whose workers have these features, and of which one has room. */
static struct group *next_group(const struct px_balance *balance, unsigned needs, unsigned *set)
{
    for (; *set < PX_FEATURE_SETS; ++*set) {
        if ((*set & needs) == needs && balance->groups[*set].open_count > 0)
            return (struct group *)&balance->groups[(*set)++];
    }
    return NULL;
}

static struct bucket *bucket_of(struct group *group, unsigned load)
{
    if (load >= group->bucket_count) {
        size_t count = (size_t)load * 2 + 4;
        group->buckets = px_realloc(group->buckets, count * sizeof(struct bucket));
        memset(group->buckets + group->bucket_count, 0,
               (count - group->bucket_count) * sizeof(struct bucket));
        group->bucket_count = count;
    }
    return &group->buckets[load];
}

static void bucket_remove(struct group *group, struct px_worker *worker)
{
    struct bucket *bucket = bucket_of(group, worker->load);
    *(worker->prev ? &worker->prev->next : &bucket->head) = worker->next;
    *(worker->next ? &worker->next->prev : &bucket->tail) = worker->prev;
    bucket->count--;
}

static void bucket_append(struct group *group, struct px_worker *worker)
{
    struct bucket *bucket = bucket_of(group, worker->load);
    worker->next = NULL;
    worker->prev = bucket->tail;
    *(bucket->tail ? &bucket->tail->next : &bucket->head) = worker;
    bucket->tail = worker;
    bucket->count++;
}

static void bucket_prepend(struct group *group, struct px_worker *worker)
{
    struct bucket *bucket = bucket_of(group, worker->load);
    worker->prev = NULL;
    worker->next = bucket->head;
    *(bucket->head ? &bucket->head->prev : &bucket->tail) = worker;
    bucket->head = worker;
    bucket->count++;
}

static void line_remove(struct group *group, struct px_worker *worker)
{
    *(worker->older ? &worker->older->newer : &group->oldest) = worker->newer;
    *(worker->newer ? &worker->newer->older : &group->newest) = worker->older;
}

static void line_append(struct px_balance *balance, struct px_worker *worker)
{
    struct group *group = group_of(balance, worker);
    worker->stamp = ++balance->last;
    worker->newer = NULL;
    worker->older = group->newest;
    *(group->newest ? &group->newest->newer : &group->oldest) = worker;
    group->newest = worker;
}

static void line_prepend(struct px_balance *balance, struct px_worker *worker)
{
    struct group *group = group_of(balance, worker);
    worker->stamp = --balance->first;
    worker->older = NULL;
    worker->newer = group->oldest;
    *(group->oldest ? &group->oldest->older : &group->newest) = worker;
    group->oldest = worker;
}

static void open_add(struct group *group, struct px_worker *worker)
{
    if (group->open_count == group->open_size) {
        group->open_size = group->open_size * 2 + 8;
        group->open = px_realloc(group->open, group->open_size * sizeof(*group->open));
    }
    worker->slot = group->open_count;
    group->open[group->open_count++] = worker;
}

static void open_remove(struct group *group, struct px_worker *worker)
{
    struct px_worker *last = group->open[--group->open_count];
    group->open[worker->slot] = last;
    last->slot = worker->slot;
    worker->slot = PX_NO_SLOT;
}

static void seek_least(struct group *group)
{
    while (group->least < group->bucket_count && group->buckets[group->least].count == 0)
        group->least++;
}

void px_balance_add(struct px_balance *balance, struct px_worker *worker)
{
    struct group *group = group_of(balance, worker);
    worker->load = 0;
    bucket_prepend(group, worker);
    line_prepend(balance, worker);
    open_add(group, worker);
    group->least = 0;
}

void px_balance_remove(struct px_balance *balance, struct px_worker *worker)
{
    struct group *group = group_of(balance, worker);
    bucket_remove(group, worker);
    if (px_worker_open(worker)) {
        line_remove(group, worker);
        open_remove(group, worker);
    }
    seek_least(group);
}

void px_balance_take(struct px_balance *balance, struct px_worker *worker)
{
    struct group *group = group_of(balance, worker);
    bucket_remove(group, worker);
    line_remove(group, worker);
    worker->load++;
    bucket_append(group, worker);
    seek_least(group);
    if (balance->hwm != 0 && worker->load >= balance->hwm)
        open_remove(group, worker);
    else
        line_append(balance, worker);
}

void px_balance_release(struct px_balance *balance, struct px_worker *worker)
{
    struct group *group = group_of(balance, worker);
    bucket_remove(group, worker);
    worker->load--;
    bucket_append(group, worker);
    if (worker->load < group->least)
        group->least = worker->load;
    if (!px_worker_open(worker)) {
        open_add(group, worker);
        line_append(balance, worker);
    }
}

unsigned px_balance_hwm(const struct px_balance *balance)
{
    return balance->hwm;
}

size_t px_balance_open(const struct px_balance *balance, unsigned needs)
{
    const struct group *group;
    size_t count = 0;
    for (unsigned set = 0; (group = next_group(balance, needs, &set)) != NULL;)
        count += group->open_count;
    return count;
}

struct px_worker *px_balance_at(const struct px_balance *balance, unsigned needs, size_t index)
{
    const struct group *group;
    for (unsigned set = 0; (group = next_group(balance, needs, &set)) != NULL;) {
        if (index < group->open_count)
            return group->open[index];
        index -= group->open_count;
    }
    return NULL;
}

/* ---- what schemes ask of a pool -------------------------------------------- */

static struct px_worker *older_of(struct px_worker *a, struct px_worker *b)
{
    return b->stamp < a->stamp ? b : a;
}

static struct px_worker *lighter_of(struct px_worker *a, struct px_worker *b)
{
    return b->load == a->load ? older_of(a, b) : b->load < a->load ? b : a;
}

typedef struct px_worker *better_fn(struct px_worker *a, struct px_worker *b);

/* The best of a pool, when the best of each group is at hand. */
static struct px_worker *pool_best(const struct px_pool *pool, better_fn *better,
                                   struct px_worker *(*best_of)(const struct group *group))
{
    struct px_worker *best = pool->some ? pool->some[0] : NULL;
    for (size_t i = 1; pool->some != NULL && i < pool->count; i++)
        best = better(best, pool->some[i]);
    const struct group *group;
    unsigned set = pool->some ? PX_FEATURE_SETS : 0;
    while ((group = next_group(pool->balance, pool->needs, &set)) != NULL)
        best = best ? better(best, best_of(group)) : best_of(group);
    return best;
}

static struct px_worker *oldest_of(const struct group *group)
{
    return group->oldest;
}

static struct px_worker *lightest_of(const struct group *group)
{
    return group->buckets[group->least].head;
}

static struct px_worker *pool_random(const struct px_pool *pool)
{
    size_t index = random_below(pool->balance, pool->count);
    return pool->some ? pool->some[index] : px_balance_at(pool->balance, pool->needs, index);
}

/* An idle engine weighs a million times as much as one with a task, as in ipyparallel. */
static double weight_of(size_t load)
{
    return 1.0 / (1e-6 + (double)load);
}

static size_t loads_end(const struct px_balance *balance, const struct group *group)
{
    return balance->hwm != 0 && balance->hwm < group->bucket_count ? balance->hwm
                                                                   : group->bucket_count;
}

/*
 * One draw by weight. Workers of one load weigh the same, so a load is drawn and the worker that
 * has been at it longest is taken.
 * LIMIT: walks all loads between the least and the greatest; without a high-water mark these can
 * be some thousands when one engine hangs. Remedy: a list of the loads in use.
 */
static struct px_worker *draw_from_all(struct px_balance *balance, unsigned needs)
{
    const struct group *group;
    double sum = 0;
    for (unsigned set = 0; (group = next_group(balance, needs, &set)) != NULL;) {
        for (size_t load = group->least; load < loads_end(balance, group); load++)
            sum += (double)group->buckets[load].count * weight_of(load);
    }
    double left = random_unit(balance) * sum;
    struct px_worker *chosen = NULL;
    for (unsigned set = 0; (group = next_group(balance, needs, &set)) != NULL;) {
        size_t end = loads_end(balance, group);
        for (size_t load = group->least; load < end && (chosen == NULL || left > 0); load++) {
            if (group->buckets[load].count == 0)
                continue;
            chosen = group->buckets[load].head;
            left -= (double)group->buckets[load].count * weight_of(load);
        }
    }
    return chosen;
}

static struct px_worker *pool_draw(const struct px_pool *pool)
{
    if (pool->some == NULL)
        return draw_from_all(pool->balance, pool->needs);
    double sum = 0;
    for (size_t i = 0; i < pool->count; i++)
        sum += weight_of(pool->some[i]->load);
    double left = random_unit(pool->balance) * sum;
    size_t index = 0;
    for (; index + 1 < pool->count; index++) {
        left -= weight_of(pool->some[index]->load);
        if (left <= 0)
            break;
    }
    return pool->some[index];
}

/* ---- the schemes ----------------------------------------------------------- */

static struct px_worker *choose_leastload(const struct px_pool *pool)
{
    return pool_best(pool, lighter_of, lightest_of);
}

static struct px_worker *choose_lru(const struct px_pool *pool)
{
    return pool_best(pool, older_of, oldest_of);
}

static struct px_worker *choose_plainrandom(const struct px_pool *pool)
{
    return pool_random(pool);
}

static struct px_worker *choose_twobin(const struct px_pool *pool)
{
    struct px_worker *first = pool_random(pool);
    return older_of(first, pool_random(pool));
}

static struct px_worker *choose_weighted(const struct px_pool *pool)
{
    struct px_worker *first = pool_draw(pool);
    struct px_worker *second = pool_draw(pool);
    return second->load < first->load ? second : first;
}

static const struct px_scheme schemes[] = {
    {"leastload", "the engine with the fewest tasks", choose_leastload},
    {"lru", "the engine that was used least recently", choose_lru},
    {"plainrandom", "any engine, by chance", choose_plainrandom},
    {"twobin", "two by chance, of these the one used least recently", choose_twobin},
    {"weighted", "two by chance, idle ones more likely, of these the less loaded", choose_weighted},
};

const struct px_scheme *px_scheme_at(size_t index)
{
    return index < PX_COUNT(schemes) ? &schemes[index] : NULL;
}

const struct px_scheme *px_scheme_find(const char *name)
{
    for (size_t i = 0; i < PX_COUNT(schemes); i++) {
        if (strcmp(schemes[i].name, name) == 0)
            return &schemes[i];
    }
    return NULL;
}

bool px_scheme_is_pure(const char *name)
{
    return strcmp(name, "pure") == 0;
}

struct px_balance *px_balance_create(unsigned hwm, uint64_t seed)
{
    struct px_balance *balance = px_alloc(sizeof(*balance));
    balance->hwm = hwm;
    balance->random = seed ? seed : 0x9E3779B97F4A7C15ULL;
    return balance;
}

void px_balance_destroy(struct px_balance *balance)
{
    if (balance == NULL)
        return;
    for (unsigned set = 0; set < PX_FEATURE_SETS; set++) {
        free(balance->groups[set].buckets);
        free(balance->groups[set].open);
    }
    free(balance);
}
