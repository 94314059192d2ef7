/* SPDX-License-Identifier: BSD-3-Clause */
/* The table of engines. */
#include "../test.h"

#include "client/client.h"

#include <stdlib.h>
#include <string.h>

static void expect_those(const struct px_engines *engines, const char *feature, const int *wanted,
                         size_t count)
{
    size_t found;
    int *ids = px_engines_ids(engines, feature, &found);
    assert_int_equal(found, count);
    assert_memory_equal(ids, wanted, count * sizeof *ids);
    free(ids);
}

static void expect_ids(const struct px_engines *engines, const int *wanted, size_t count)
{
    expect_those(engines, NULL, wanted, count);
}

static void lists_ids_ascending(void **state)
{
    (void)state;
    struct px_engines engines = {0};
    assert_true(px_engines_add(&engines, "c", 7, NULL));
    assert_true(px_engines_add(&engines, "a", 3, NULL));
    assert_true(px_engines_add(&engines, "b", 5, NULL));
    assert_true(px_engines_add(&engines, "b", 5, NULL)); /* told twice */
    expect_ids(&engines, (int[]){3, 5, 7}, 3);
    px_engines_fini(&engines);
}

static void refuses_what_cannot_be(void **state)
{
    (void)state;
    struct px_engines engines = {0};
    char *long_uuid = px_alloc(1000);
    memset(long_uuid, 'x', 999);
    assert_false(px_engines_add(&engines, NULL, 0, NULL));
    assert_false(px_engines_add(&engines, "", 0, NULL));
    assert_false(px_engines_add(&engines, "a", -1, NULL));
    assert_false(px_engines_add(&engines, long_uuid, 0, NULL));
    assert_false(px_engines_remove(&engines, "a"));
    expect_ids(&engines, NULL, 0);
    free(long_uuid);
}

static void remembers_the_dead(void **state)
{
    (void)state;
    struct px_engines engines = {0};
    px_engines_add(&engines, "a", 0, NULL);
    assert_true(px_engines_remove(&engines, "a"));
    assert_false(px_engines_remove(&engines, "a"));
    expect_ids(&engines, NULL, 0);
    const struct px_engine *engine = px_engines_find(&engines, PX_SPAN("a"));
    assert_non_null(engine);
    assert_false(engine->alive);
    assert_int_equal(engine->id, 0);
    px_engines_add(&engines, "a2", 0, NULL); /* a restarted controller counts anew */
    assert_string_equal(px_engines_find_id(&engines, 0)->uuid, "a2");
    px_engines_fini(&engines);
}

static void forgets_the_oldest_dead(void **state)
{
    (void)state;
    struct px_engines engines = {0};
    px_engines_add(&engines, "stays", 0, NULL);
    for (int id = 1; id <= 3 * PX_DEAD_ENGINES; id++) {
        char uuid[16];
        snprintf(uuid, sizeof uuid, "e%d", id);
        px_engines_add(&engines, uuid, id, NULL);
        px_engines_remove(&engines, uuid);
    }
    assert_int_equal(HASH_CNT(by_uuid, engines.by_uuid), PX_DEAD_ENGINES + 1);
    assert_int_equal(HASH_CNT(by_id, engines.by_id), PX_DEAD_ENGINES + 1);
    expect_ids(&engines, (int[]){0}, 1);
    px_engines_fini(&engines);
}

/* A controller that comes back has numbered all anew. */
static void forgets_many_at_once(void **state)
{
    (void)state;
    struct px_engines engines = {0};
    json_t *none = json_pack("{s:{}}", "engines");
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < PX_DEAD_ENGINES; i++) {
            char uuid[32];
            snprintf(uuid, sizeof uuid, "e%d-%d", round, i);
            px_engines_add(&engines, uuid, round * PX_DEAD_ENGINES + i, NULL);
        }
        assert_true(px_engines_sync(&engines, none));
        assert_int_equal(HASH_CNT(by_uuid, engines.by_uuid), PX_DEAD_ENGINES);
    }
    json_decref(none);
    px_engines_fini(&engines);
}

static void follows_a_connection_reply(void **state)
{
    (void)state;
    struct px_engines engines = {0};
    px_engines_add(&engines, "gone", 0, NULL);
    px_engines_add(&engines, "stays", 1, NULL);
    json_t *content = json_pack("{s{ssssss}s{s[s]}}", "engines", "1", "stays", "2", "new", "x",
                                "bad id", "px_engines", "2", "pickle5");
    assert_non_null(content);
    assert_true(px_engines_sync(&engines, content));
    expect_ids(&engines, (int[]){1, 2}, 2);
    assert_true(px_engine_has(px_engines_find_id(&engines, 2), "pickle5"));
    assert_false(px_engine_has(px_engines_find_id(&engines, 1), "pickle5"));
    expect_those(&engines, "pickle5", (int[]){2}, 1);
    expect_those(&engines, "pickle", NULL, 0);
    assert_false(px_engines_sync(&engines, content));
    assert_false(px_engines_sync(&engines, NULL));
    expect_ids(&engines, (int[]){1, 2}, 2);
    json_decref(content);
    px_engines_fini(&engines);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lists_ids_ascending),  cmocka_unit_test(refuses_what_cannot_be),
        cmocka_unit_test(remembers_the_dead),   cmocka_unit_test(forgets_the_oldest_dead),
        cmocka_unit_test(forgets_many_at_once), cmocka_unit_test(follows_a_connection_reply),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
