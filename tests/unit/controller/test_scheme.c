/* SPDX-License-Identifier: BSD-3-Clause */
/* The choosers and the books of load: what each scheme promises, and what chance is to give. */
#include "schedule.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define COUNT 10

struct fixture {
    struct px_balance *balance;
    struct px_worker *workers[COUNT];
};

/* Worker 0 is the oldest in line: each is put in front of the one before it. */
static struct fixture make(unsigned hwm)
{
    struct fixture fixture = {.balance = px_balance_create(hwm, 42)};
    for (int i = COUNT - 1; i >= 0; i--) {
        fixture.workers[i] = px_alloc(sizeof(struct px_worker) + 1);
        fixture.workers[i]->slot = PX_NO_SLOT;
        fixture.workers[i]->serial = (uint32_t)i;
        px_balance_add(fixture.balance, fixture.workers[i]);
    }
    return fixture;
}

static void drop(struct fixture *fixture)
{
    for (int i = 0; i < COUNT; i++)
        free(fixture->workers[i]);
    px_balance_destroy(fixture->balance);
}

static struct px_worker *choose(const struct fixture *fixture, const char *scheme,
                                struct px_worker **some, size_t count)
{
    struct px_pool pool = {fixture->balance, 0, some,
                           some ? count : px_balance_open(fixture->balance, 0)};
    return px_scheme_find(scheme)->choose(&pool);
}

static void test_leastload(void **state)
{
    (void)state;
    struct fixture f = make(0);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < COUNT; i++) {
            struct px_worker *worker = choose(&f, "leastload", NULL, 0);
            assert_ptr_equal(worker, f.workers[i]);
            px_balance_take(f.balance, worker);
        }
    }
    px_balance_release(f.balance, f.workers[7]);
    assert_ptr_equal(choose(&f, "leastload", NULL, 0), f.workers[7]);
    struct px_worker *some[] = {f.workers[3], f.workers[2], f.workers[5]};
    assert_ptr_equal(choose(&f, "leastload", some, 3), f.workers[2]);
    px_balance_take(f.balance, f.workers[2]);
    assert_ptr_equal(choose(&f, "leastload", some, 3), f.workers[3]);
    drop(&f);
}

static void test_lru_ignores_load(void **state)
{
    (void)state;
    struct fixture f = make(0);
    for (int i = 0; i < COUNT * 5; i++) {
        struct px_worker *worker = choose(&f, "lru", NULL, 0);
        assert_ptr_equal(worker, f.workers[i % COUNT]);
        px_balance_take(f.balance, worker);
    }
    drop(&f);
}

static void test_full_workers_are_not_chosen(void **state)
{
    (void)state;
    for (size_t s = 0; px_scheme_at(s) != NULL; s++) {
        struct fixture f = make(2);
        for (int i = 0; i < COUNT * 2; i++) {
            struct px_worker *worker = choose(&f, px_scheme_at(s)->name, NULL, 0);
            assert_true(px_worker_open(worker) && worker->load < 2);
            px_balance_take(f.balance, worker);
        }
        assert_int_equal(px_balance_open(f.balance, 0), 0);
        px_balance_release(f.balance, f.workers[4]);
        assert_ptr_equal(choose(&f, px_scheme_at(s)->name, NULL, 0), f.workers[4]);
        drop(&f);
    }
}

static void count_choices(const struct fixture *f, const char *scheme, struct px_worker **some,
                          size_t count, int out[COUNT])
{
    memset(out, 0, sizeof(int) * COUNT);
    for (int i = 0; i < 10000; i++)
        out[choose(f, scheme, some, count)->serial]++;
}

static void test_chance(void **state)
{
    (void)state;
    struct fixture f = make(0);
    int counts[COUNT];
    struct px_worker *some[] = {f.workers[1], f.workers[8]};
    count_choices(&f, "plainrandom", NULL, 0, counts);
    for (int i = 0; i < COUNT; i++)
        assert_true(counts[i] > 800 && counts[i] < 1200);
    count_choices(&f, "plainrandom", some, 2, counts);
    assert_true(counts[1] > 4700 && counts[8] > 4700);
    /* The older of two: the oldest of ten wins 19 times in a hundred, the newest once. */
    count_choices(&f, "twobin", NULL, 0, counts);
    assert_true(counts[0] > 1700 && counts[0] < 2100);
    assert_true(counts[9] > 40 && counts[9] < 170);
    drop(&f);
}

static void test_weighted_prefers_idle(void **state)
{
    (void)state;
    struct fixture f = make(0);
    int counts[COUNT];
    for (int i = 0; i < COUNT - 1; i++)
        px_balance_take(f.balance, f.workers[i]);
    count_choices(&f, "weighted", NULL, 0, counts);
    assert_true(counts[9] > 9990);
    count_choices(&f, "weighted", f.workers, COUNT, counts);
    assert_true(counts[9] > 9990);
    /* Loads 1 and 3: the lighter one is drawn three times in four, and wins if it is drawn. */
    px_balance_take(f.balance, f.workers[0]);
    px_balance_take(f.balance, f.workers[0]);
    count_choices(&f, "weighted", f.workers, 2, counts);
    assert_true(counts[1] > 9200 && counts[1] < 9550);
    drop(&f);
}

static void test_removal(void **state)
{
    (void)state;
    struct fixture f = make(1);
    px_balance_take(f.balance, f.workers[0]);
    px_balance_remove(f.balance, f.workers[0]);
    px_balance_remove(f.balance, f.workers[1]);
    assert_int_equal(px_balance_open(f.balance, 0), COUNT - 2);
    for (int i = 2; i < COUNT; i++) {
        struct px_worker *worker = choose(&f, "leastload", NULL, 0);
        assert_ptr_equal(worker, f.workers[i]);
        px_balance_remove(f.balance, worker);
    }
    assert_int_equal(px_balance_open(f.balance, 0), 0);
    px_balance_add(f.balance, f.workers[3]);
    assert_ptr_equal(choose(&f, "lru", NULL, 0), f.workers[3]);
    drop(&f);
}

/* A task that needs a feature is for those that have it, in the same order as without the others.
 */
static void test_needs(void **state)
{
    (void)state;
    for (size_t s = 0; px_scheme_at(s) != NULL; s++) {
        struct px_balance *balance = px_balance_create(1, 42);
        struct px_worker *workers[COUNT];
        for (int i = COUNT - 1; i >= 0; i--) {
            workers[i] = px_alloc(sizeof(struct px_worker) + 1);
            workers[i]->slot = PX_NO_SLOT;
            workers[i]->features = (unsigned)i % PX_FEATURE_SETS;
            px_balance_add(balance, workers[i]);
        }
        struct px_pool pool = {.balance = balance, .needs = PX_FEATURE_PICKLE5};
        for (int i = 1; i < COUNT; i += 2) {
            pool.count = px_balance_open(balance, pool.needs);
            assert_int_equal(pool.count, (COUNT - i + 1) / 2);
            struct px_worker *worker = px_scheme_at(s)->choose(&pool);
            assert_true(px_worker_open(worker) && (worker->features & PX_FEATURE_PICKLE5));
            if (s < 2) /* leastload and lru: whoever came first */
                assert_ptr_equal(worker, workers[i]);
            px_balance_take(balance, worker);
        }
        assert_int_equal(px_balance_open(balance, pool.needs), 0);
        assert_int_equal(px_balance_open(balance, 0), COUNT / 2);
        for (int i = 0; i < COUNT; i++)
            free(workers[i]);
        px_balance_destroy(balance);
    }
}

static void test_names(void **state)
{
    (void)state;
    assert_string_equal(px_scheme_at(0)->name, "leastload");
    assert_null(px_scheme_find("pure"));
    assert_null(px_scheme_find(""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leastload),
        cmocka_unit_test(test_lru_ignores_load),
        cmocka_unit_test(test_full_workers_are_not_chosen),
        cmocka_unit_test(test_chance),
        cmocka_unit_test(test_weighted_prefers_idle),
        cmocka_unit_test(test_removal),
        cmocka_unit_test(test_needs),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
