/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * engines: which engines a client knows, by uuid and by id.
 *
 * An engine that is gone stays for a while, not alive, because its last messages may still be
 * on their way and are to be shown under its id. Ids are never reused by a controller; when one
 * comes back under another uuid (a controller that was restarted), the newcomer takes it over.
 */
#include "client/client.h"

#include <stdlib.h>
#include <string.h>

#define PX_MOST_CAUSE 1000 /* bytes */

static void engine_free(struct px_engines *engines, struct px_engine *engine)
{
    HASH_DELETE(by_uuid, engines->by_uuid, engine);
    struct px_engine *same = NULL;
    HASH_FIND(by_id, engines->by_id, &engine->id, sizeof engine->id, same);
    if (same == engine)
        HASH_DELETE(by_id, engines->by_id, engine);
    if (engine->alive)
        engines->alive--;
    engines->changes++;
    json_decref(engine->features);
    json_decref(engine->cause);
    free(engine);
}

static void forget_oldest_dead(struct px_engines *engines)
{
    struct px_engine *engine, *next;
    HASH_ITER(by_uuid, engines->by_uuid, engine, next) { /* in order of arrival */
        if (HASH_CNT(by_uuid, engines->by_uuid) - engines->alive <= PX_DEAD_ENGINES)
            return;
        if (!engine->alive)
            engine_free(engines, engine);
    }
}

bool px_engines_add(struct px_engines *engines, const char *uuid, int id, json_t *features)
{
    const size_t size = uuid ? strlen(uuid) : 0;
    if (size == 0 || size > PX_MAX_IDENTITY || id < 0)
        return false;
    struct px_engine *engine = NULL;
    HASH_FIND(by_uuid, engines->by_uuid, uuid, size, engine);
    if (engine && engine->alive && engine->id == id)
        return true;
    if (engine)
        engine_free(engines, engine);
    HASH_FIND(by_id, engines->by_id, &id, sizeof id, engine);
    if (engine)
        engine_free(engines, engine);
    engine = px_alloc(sizeof *engine);
    engine->id = id;
    engine->alive = true;
    if (json_is_array(features) && json_array_size(features) <= PX_FEATURE_COUNT)
        engine->features = json_incref(features);
    memcpy(engine->uuid, uuid, size + 1);
    HASH_ADD_KEYPTR(by_uuid, engines->by_uuid, engine->uuid, size, engine);
    HASH_ADD_KEYPTR(by_id, engines->by_id, &engine->id, sizeof engine->id, engine);
    engines->alive++;
    engines->changes++;
    return true;
}

bool px_engines_remove(struct px_engines *engines, const char *uuid)
{
    struct px_engine *engine = NULL;
    HASH_FIND(by_uuid, engines->by_uuid, uuid, strlen(uuid), engine);
    if (!engine || !engine->alive)
        return false;
    engine->alive = false;
    engines->alive--;
    engines->changes++;
    forget_oldest_dead(engines);
    return true;
}

void px_engines_explain(struct px_engines *engines, const char *uuid, json_t *cause)
{
    struct px_engine *engine = NULL;
    HASH_FIND(by_uuid, engines->by_uuid, uuid, strlen(uuid), engine);
    if (!engine || !json_is_string(cause) || json_string_length(cause) > PX_MOST_CAUSE)
        return;
    json_decref(engine->cause);
    engine->cause = json_incref(cause);
}

static int parse_id(const char *text)
{
    char *end;
    const long id = strtol(text, &end, 10);
    return *text && !*end && id >= 0 && id <= INT32_MAX ? (int)id : -1;
}

bool px_engines_sync(struct px_engines *engines, const json_t *content)
{
    json_t *map = json_object_get(content, "engines");
    if (!json_is_object(map))
        return false;
    bool removed = false;
    struct px_engine *engine, *next;
    HASH_ITER(by_uuid, engines->by_uuid, engine, next) {
        char key[16];
        snprintf(key, sizeof key, "%d", engine->id);
        const char *uuid = json_string_value(json_object_get(map, key));
        if (engine->alive && (!uuid || strcmp(uuid, engine->uuid) != 0)) {
            engine->alive = false;
            engines->alive--;
            engines->changes++;
            removed = true;
        }
    }
    const json_t *features = json_object_get(content, "px_engines");
    const char *key;
    json_t *uuid;
    json_object_foreach(map, key, uuid)
        px_engines_add(engines, json_string_value(uuid), parse_id(key),
                       json_object_get(features, key));
    forget_oldest_dead(engines);
    return removed;
}

const struct px_engine *px_engines_find(const struct px_engines *engines, struct px_span uuid)
{
    struct px_engine *engine = NULL;
    if (uuid.size)
        HASH_FIND(by_uuid, engines->by_uuid, uuid.data, uuid.size, engine);
    return engine;
}

const struct px_engine *px_engines_find_id(const struct px_engines *engines, int id)
{
    struct px_engine *engine = NULL;
    HASH_FIND(by_id, engines->by_id, &id, sizeof id, engine);
    return engine;
}

bool px_engines_alive(const struct px_engines *engines, int id)
{
    const struct px_engine *engine = px_engines_find_id(engines, id);
    return engine && engine->alive;
}

bool px_engine_has(const struct px_engine *engine, const char *feature)
{
    size_t i;
    json_t *name;
    json_array_foreach(engine->features, i, name) {
        const char *text = json_string_value(name);
        if (text && strcmp(text, feature) == 0)
            return true;
    }
    return false;
}

static int compare_ids(const void *a, const void *b)
{
    const int x = *(const int *)a, y = *(const int *)b;
    return (x > y) - (x < y);
}

int *px_engines_ids(const struct px_engines *engines, const char *feature, size_t *count)
{
    int *ids = px_alloc((engines->alive + 1) * sizeof *ids);
    size_t n = 0;
    for (const struct px_engine *e = engines->by_uuid; e; e = e->by_uuid.next) {
        if (e->alive && (!feature || px_engine_has(e, feature)))
            ids[n++] = e->id;
    }
    qsort(ids, n, sizeof *ids, compare_ids);
    *count = n;
    return ids;
}

void px_engines_fini(struct px_engines *engines)
{
    struct px_engine *engine, *next;
    HASH_ITER(by_uuid, engines->by_uuid, engine, next)
        engine_free(engines, engine);
}
