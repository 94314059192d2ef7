/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * db: the task database in memory, bounded by records and by bytes of buffers and output. When
 * a limit is passed, the oldest records go, by the fraction that is set (ipyparallel's DictDB:
 * 1024 records, 1 GiB, a tenth).
 */
#include "hub.h"

#include <stdlib.h>
#include <string.h>

struct px_db {
    enum px_db_kind kind;
    size_t record_limit, cull_count;
    double size_limit, cull_size;
    size_t bytes;
    struct px_record *records; /* a uthash keeps the order in which they were added */
};

struct px_record *px_db_get(struct px_db *db, struct px_span msg_id)
{
    struct px_record *record;
    HASH_FIND(hh, db->records, msg_id.data, msg_id.size, record);
    return record;
}

void px_db_drop(struct px_db *db, struct px_record *record)
{
    HASH_DEL(db->records, record);
    db->bytes -= record->bytes;
    px_record_destroy(record);
}

/* Drops the oldest records but `kept`, until `enough` says so. */
static void cull_records(struct px_db *db, const struct px_record *kept)
{
    size_t target = db->record_limit > db->cull_count ? db->record_limit - db->cull_count : 0;
    size_t before = HASH_COUNT(db->records);
    struct px_record *record, *next;
    HASH_ITER(hh, db->records, record, next) {
        if (HASH_COUNT(db->records) <= target)
            break;
        if (record != kept)
            px_db_drop(db, record);
    }
    px_log(PX_DEBUG, "records-culled", "count=%zu", before - HASH_COUNT(db->records));
}

static void cull_bytes(struct px_db *db, const struct px_record *kept)
{
    struct px_record *record, *next;
    HASH_ITER(hh, db->records, record, next) {
        if ((double)db->bytes <= db->cull_size)
            return;
        if (record != kept)
            px_db_drop(db, record);
    }
}

struct px_record *px_db_want(struct px_db *db, struct px_span msg_id)
{
    if (db->kind == PX_DB_NONE)
        return NULL;
    struct px_record *record = px_db_get(db, msg_id);
    if (record != NULL)
        return record;
    record = px_alloc(sizeof(*record) + msg_id.size + 1);
    memcpy(record->msg_id, msg_id.data, msg_id.size);
    HASH_ADD_KEYPTR(hh, db->records, record->msg_id, msg_id.size, record);
    if (HASH_COUNT(db->records) > db->record_limit)
        cull_records(db, record);
    return record;
}

void px_db_grow(struct px_db *db, struct px_record *record, size_t bytes)
{
    record->bytes += bytes;
    db->bytes += bytes;
    if ((double)db->bytes > db->size_limit)
        cull_bytes(db, record);
}

bool px_db_stores(const struct px_db *db)
{
    return db->kind != PX_DB_NONE;
}

struct px_record *px_db_first(struct px_db *db)
{
    return db->records;
}

struct px_record *px_db_next(struct px_record *record)
{
    return record->hh.next;
}

size_t px_db_count(const struct px_db *db)
{
    return HASH_COUNT(db->records);
}

size_t px_db_bytes(const struct px_db *db)
{
    return db->bytes;
}

struct px_db *px_db_create(enum px_db_kind kind, size_t record_limit, double size_limit,
                           double cull_fraction)
{
    struct px_db *db = px_alloc(sizeof(*db));
    db->kind = kind;
    db->record_limit = record_limit;
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
        px_db_drop(db, db->records);
    free(db);
}
