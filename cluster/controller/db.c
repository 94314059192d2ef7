/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * db: the task database. Records are kept in memory, bounded by number and by bytes of buffers
 * and output. When a limit is passed, the oldest go, by the fraction that is set (ipyparallel's
 * DictDB: 1024 records, 1 GiB, a tenth).
 *
 * With a store on disk, memory is its cache: what changed is written a moment later, or when it
 * leaves memory, and what is no longer in memory is read back.
 */
#include "hub.h"

#include <stdlib.h>
#include <string.h>
#include <utlist.h>

struct px_db {
    enum px_db_kind kind;
    struct px_store *store; /* NULL: memory is all there is */
    size_t record_limit, cull_count, cull_at;
    double size_limit, cull_size;
    size_t bytes;
    struct px_record *records; /* a uthash keeps the order in which they were added */
    struct px_record *changed; /* not written since they changed */
};

static struct px_record *find(struct px_db *db, struct px_span msg_id)
{
    struct px_record *record;
    HASH_FIND(hh, db->records, msg_id.data, msg_id.size, record);
    return record;
}

static void write_out(struct px_db *db, struct px_record *record)
{
    DL_DELETE(db->changed, record);
    record->is_changed = false;
    px_store_put(db->store, record);
}

void px_db_changed(struct px_db *db, struct px_record *record)
{
    if (db->store == NULL || record->is_changed)
        return;
    record->is_changed = true;
    DL_APPEND(db->changed, record);
}

void px_db_flush(struct px_db *db)
{
    while (db->changed != NULL)
        write_out(db, db->changed);
}

/* Out of memory; on disk it stays. */
static void evict(struct px_db *db, struct px_record *record)
{
    if (record->is_changed)
        write_out(db, record);
    HASH_DEL(db->records, record);
    db->bytes -= record->bytes;
    px_record_destroy(record);
}

/* With a store, what is not complete stays in memory: its reply would only fetch it back. */
static bool may_leave(const struct px_db *db, const struct px_record *record)
{
    return db->store == NULL || px_record_is_complete(record);
}

static void cull_records(struct px_db *db, const struct px_record *kept)
{
    size_t target = db->record_limit > db->cull_count ? db->record_limit - db->cull_count : 0;
    size_t before = HASH_COUNT(db->records);
    struct px_record *record, *next;
    HASH_ITER(hh, db->records, record, next) {
        if (HASH_COUNT(db->records) <= target)
            break;
        if (record != kept && may_leave(db, record))
            evict(db, record);
    }
    size_t left = HASH_COUNT(db->records);
    px_log(PX_DEBUG, "records-culled", "count=%zu", before - left);
    /* Not again for every record when most of them had to stay. */
    db->cull_at = left > db->record_limit ? left + db->cull_count : db->record_limit;
}

static void cull_bytes(struct px_db *db, const struct px_record *kept)
{
    struct px_record *record, *next;
    HASH_ITER(hh, db->records, record, next) {
        if ((double)db->bytes <= db->cull_size)
            return;
        if (record != kept)
            evict(db, record);
    }
}

static struct px_record *add(struct px_db *db, struct px_record *record)
{
    HASH_ADD_KEYPTR(hh, db->records, record->msg_id, strlen(record->msg_id), record);
    if (HASH_COUNT(db->records) > db->cull_at)
        cull_records(db, record);
    return record;
}

struct px_record *px_db_get(struct px_db *db, struct px_span msg_id)
{
    struct px_record *record = find(db, msg_id);
    if (record != NULL || db->store == NULL)
        return record;
    record = px_store_get(db->store, msg_id);
    return record != NULL ? add(db, record) : NULL;
}

struct px_record *px_db_want(struct px_db *db, struct px_span msg_id)
{
    if (db->kind == PX_DB_NONE || msg_id.size > PX_MAX_MSG_ID)
        return NULL;
    /* Not looked for on disk: what is new is new, and a record of that id is replaced. */
    struct px_record *record = find(db, msg_id);
    if (record != NULL)
        return record;
    record = px_alloc(sizeof(*record) + msg_id.size + 1);
    memcpy(record->msg_id, msg_id.data, msg_id.size);
    return add(db, record);
}

void px_db_grow(struct px_db *db, struct px_record *record, size_t bytes)
{
    record->bytes += bytes;
    db->bytes += bytes;
    if ((double)db->bytes > db->size_limit)
        cull_bytes(db, record);
}

void px_db_drop(struct px_db *db, const char *msg_id)
{
    struct px_record *record = find(db, px_span_of(msg_id));
    if (record != NULL) {
        if (record->is_changed)
            DL_DELETE(db->changed, record);
        HASH_DEL(db->records, record);
        db->bytes -= record->bytes;
    }
    if (db->store != NULL)
        px_store_delete(db->store, msg_id);
    if (record != NULL)
        px_record_destroy(record);
}

void px_db_each(struct px_db *db, px_record_fn *each, void *ctx)
{
    if (db->store != NULL) {
        px_db_flush(db);
        px_store_each(db->store, each, ctx);
        return;
    }
    struct px_record *record, *next;
    HASH_ITER(hh, db->records, record, next) {
        if (!each(record, ctx))
            return;
    }
}

bool px_db_stores(const struct px_db *db)
{
    return db->kind != PX_DB_NONE;
}

size_t px_db_count(const struct px_db *db)
{
    return HASH_COUNT(db->records);
}

size_t px_db_bytes(const struct px_db *db)
{
    return db->bytes;
}

struct px_db *px_db_create(enum px_db_kind kind, struct px_store *store, size_t record_limit,
                           double size_limit, double cull_fraction)
{
    struct px_db *db = px_alloc(sizeof(*db));
    db->kind = kind;
    db->store = store;
    db->record_limit = db->cull_at = record_limit;
    db->cull_count = (size_t)((double)record_limit * cull_fraction);
    db->size_limit = size_limit;
    db->cull_size = size_limit * (1 - cull_fraction);
    return db;
}

void px_db_destroy(struct px_db *db)
{
    if (db == NULL)
        return;
    while (db->records != NULL)
        evict(db, db->records);
    free(db);
}
