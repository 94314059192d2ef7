/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a hub says of its engines: connection_reply, over a table that holds some. Whatever it says,
 * the table counts right, ids are unique, and each engine alive is found by both names.
 */
#include "client/client.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct px_engines *engines)
{
    size_t count, alive = 0;
    int *ids = px_engines_ids(engines, NULL, &count);
    for (const struct px_engine *e = engines->by_uuid; e; e = e->by_uuid.next)
        alive += e->alive;
    assert(count == alive && alive == engines->alive);
    for (size_t i = 0; i < count; i++) {
        assert(i == 0 || ids[i - 1] < ids[i]);
        const struct px_engine *engine = px_engines_find_id(engines, ids[i]);
        assert(engine && engine->alive);
        assert(px_engines_find(engines, px_span_of(engine->uuid)) == engine);
        (void)px_engine_has(engine, "pickle5");
    }
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct px_engines engines = {0};
    px_engines_add(&engines, "first", 0, NULL);
    px_engines_add(&engines, "second", 1, NULL);
    json_t *content = px_json_parse((struct px_span){(const char *)data, size}, NULL);
    px_engines_sync(&engines, content);
    check(&engines);
    px_engines_sync(&engines, content);
    check(&engines);
    json_decref(content);
    px_engines_fini(&engines);
    return 0;
}
