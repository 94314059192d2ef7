/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * scheme: the engines ordered by load and by use, and the schemes that choose one of them.
 *
 * A worker is in the list of its load; while it has room (load below the high-water mark) it
 * is also in an array (for random choice) and in a line, least recently used first. "Used"
 * means given a task, or having just made room. Every change is O(1), and so is every choice
 * among all workers; a choice among some of them costs their number.
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

struct px_balance {
    unsigned hwm;
    uint64_t random;
    struct bucket *buckets; /* by load */
    size_t bucket_count;
    size_t least; /* no bucket below this one has workers */
    struct px_worker **open;
    size_t open_count, open_size;
    struct px_worker *oldest, *newest; /* of the open ones */
    int64_t first, last;               /* stamps at both ends of the line */
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

static struct bucket *bucket_of(struct px_balance *balance, unsigned load)
{
    if (load >= balance->bucket_count) {
        size_t count = (size_t)load * 2 + 4;
        balance->buckets = px_realloc(balance->buckets, count * sizeof(struct bucket));
        memset(balance->buckets + balance->bucket_count, 0,
               (count - balance->bucket_count) * sizeof(struct bucket));
        balance->bucket_count = count;
    }
    return &balance->buckets[load];
}

static void bucket_remove(struct px_balance *balance, struct px_worker *worker)
{
    struct bucket *bucket = bucket_of(balance, worker->load);
    *(worker->prev ? &worker->prev->next : &bucket->head) = worker->next;
    *(worker->next ? &worker->next->prev : &bucket->tail) = worker->prev;
    bucket->count--;
}

static void bucket_append(struct px_balance *balance, struct px_worker *worker)
{
    struct bucket *bucket = bucket_of(balance, worker->load);
    worker->next = NULL;
    worker->prev = bucket->tail;
    *(bucket->tail ? &bucket->tail->next : &bucket->head) = worker;
    bucket->tail = worker;
    bucket->count++;
}

static void bucket_prepend(struct px_balance *balance, struct px_worker *worker)
{
    struct bucket *bucket = bucket_of(balance, worker->load);
    worker->prev = NULL;
    worker->next = bucket->head;
    *(bucket->head ? &bucket->head->prev : &bucket->tail) = worker;
    bucket->head = worker;
    bucket->count++;
}

static void line_remove(struct px_balance *balance, struct px_worker *worker)
{
    *(worker->older ? &worker->older->newer : &balance->oldest) = worker->newer;
    *(worker->newer ? &worker->newer->older : &balance->newest) = worker->older;
}

static void line_append(struct px_balance *balance, struct px_worker *worker)
{
    worker->stamp = ++balance->last;
    worker->newer = NULL;
    worker->older = balance->newest;
    *(balance->newest ? &balance->newest->newer : &balance->oldest) = worker;
    balance->newest = worker;
}

static void line_prepend(struct px_balance *balance, struct px_worker *worker)
{
    worker->stamp = --balance->first;
    worker->older = NULL;
    worker->newer = balance->oldest;
    *(balance->oldest ? &balance->oldest->older : &balance->newest) = worker;
    balance->oldest = worker;
}

static void open_add(struct px_balance *balance, struct px_worker *worker)
{
    if (balance->open_count == balance->open_size) {
        balance->open_size = balance->open_size * 2 + 8;
        balance->open = px_realloc(balance->open, balance->open_size * sizeof(*balance->open));
    }
    worker->slot = balance->open_count;
    balance->open[balance->open_count++] = worker;
}

static void open_remove(struct px_balance *balance, struct px_worker *worker)
{
    struct px_worker *last = balance->open[--balance->open_count];
    balance->open[worker->slot] = last;
    last->slot = worker->slot;
    worker->slot = PX_NO_SLOT;
}

static void seek_least(struct px_balance *balance)
{
    while (balance->least < balance->bucket_count && balance->buckets[balance->least].count == 0)
        balance->least++;
}

void px_balance_add(struct px_balance *balance, struct px_worker *worker)
{
    worker->load = 0;
    bucket_prepend(balance, worker);
    line_prepend(balance, worker);
    open_add(balance, worker);
    balance->least = 0;
}

void px_balance_remove(struct px_balance *balance, struct px_worker *worker)
{
    bucket_remove(balance, worker);
    if (px_worker_open(worker)) {
        line_remove(balance, worker);
        open_remove(balance, worker);
    }
    seek_least(balance);
}

void px_balance_take(struct px_balance *balance, struct px_worker *worker)
{
    bucket_remove(balance, worker);
    line_remove(balance, worker);
    worker->load++;
    bucket_append(balance, worker);
    seek_least(balance);
    if (balance->hwm != 0 && worker->load >= balance->hwm)
        open_remove(balance, worker);
    else
        line_append(balance, worker);
}

void px_balance_release(struct px_balance *balance, struct px_worker *worker)
{
    bucket_remove(balance, worker);
    worker->load--;
    bucket_append(balance, worker);
    if (worker->load < balance->least)
        balance->least = worker->load;
    if (!px_worker_open(worker)) {
        open_add(balance, worker);
        line_append(balance, worker);
    }
}

unsigned px_balance_hwm(const struct px_balance *balance)
{
    return balance->hwm;
}

size_t px_balance_open(const struct px_balance *balance)
{
    return balance->open_count;
}

struct px_worker *px_balance_at(const struct px_balance *balance, size_t index)
{
    return balance->open[index];
}

/* ---- what schemes ask of a pool -------------------------------------------- */

static struct px_worker *older_of(struct px_worker *a, struct px_worker *b)
{
    return b->stamp < a->stamp ? b : a;
}

static struct px_worker *pool_oldest(const struct px_pool *pool)
{
    if (pool->some == NULL)
        return pool->balance->oldest;
    struct px_worker *best = pool->some[0];
    for (size_t i = 1; i < pool->count; i++)
        best = older_of(best, pool->some[i]);
    return best;
}

static struct px_worker *pool_least(const struct px_pool *pool)
{
    if (pool->some == NULL)
        return pool->balance->buckets[pool->balance->least].head;
    struct px_worker *best = pool->some[0];
    for (size_t i = 1; i < pool->count; i++) {
        struct px_worker *other = pool->some[i];
        if (other->load < best->load || (other->load == best->load && other->stamp < best->stamp))
            best = other;
    }
    return best;
}

static struct px_worker *pool_random(const struct px_pool *pool)
{
    if (pool->some == NULL)
        return pool->balance->open[random_below(pool->balance, pool->balance->open_count)];
    return pool->some[random_below(pool->balance, pool->count)];
}

/* An idle engine weighs a million times as much as one with a task, as in ipyparallel. */
static double weight_of(size_t load)
{
    return 1.0 / (1e-6 + (double)load);
}

/*
 * One draw by weight. Workers of one load weigh the same, so a load is drawn and the worker that
 * has been at it longest is taken.
 * LIMIT: walks all loads between the least and the greatest; without a high-water mark these can
 * be some thousands when one engine hangs. Remedy: a list of the loads in use.
 */
static struct px_worker *draw_from_all(struct px_balance *balance)
{
    size_t end = balance->hwm ? balance->hwm : balance->bucket_count;
    if (end > balance->bucket_count)
        end = balance->bucket_count;
    double sum = 0;
    for (size_t load = balance->least; load < end; load++)
        sum += (double)balance->buckets[load].count * weight_of(load);
    double left = random_unit(balance) * sum;
    struct px_worker *chosen = NULL;
    for (size_t load = balance->least; load < end && (chosen == NULL || left > 0); load++) {
        if (balance->buckets[load].count == 0)
            continue;
        chosen = balance->buckets[load].head;
        left -= (double)balance->buckets[load].count * weight_of(load);
    }
    return chosen;
}

static struct px_worker *pool_draw(const struct px_pool *pool)
{
    if (pool->some == NULL)
        return draw_from_all(pool->balance);
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
    return pool_least(pool);
}

static struct px_worker *choose_lru(const struct px_pool *pool)
{
    return pool_oldest(pool);
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
    free(balance->buckets);
    free(balance->open);
    free(balance);
}
