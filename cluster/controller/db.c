/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * db: the task database. Records are kept in memory, bounded by number and by bytes of buffers
 * and output. When a limit is passed, the oldest go, by the fraction that is set (ipyparallel's
 * DictDB: 1024 records, 1 GiB, a tenth).
 *
 * With a store on disk, memory is its cache: what changed is written a moment later, stays in
 * memory until it is written, and is read back once it has left. So nobody ever waits for the
 * disk: what it does not have yet is here, and what was dropped is known until it is gone there,
 * too. Only when the disk is so far behind that the limits are passed many times over does a
 * record go unwritten; that is counted and logged.
 */
#include "hub.h"

#include <stdlib.h>
#include <string.h>
#include <utlist.h>

/* Unwritten records may pass the limit of records by this factor. */
#define PATIENCE 100

/* SQLite stores 10^9 bytes in a cell; pickled, buffers take some more than their bytes. */
#define ROW_BYTES ((size_t)900 << 20)

/* Dropped, and perhaps still in the file. */
struct tombstone {
    unsigned long number;
    UT_hash_handle hh;
    char msg_id[];
};

struct px_db {
    enum px_db_kind kind;
    struct px_store *store; /* NULL: memory is all there is */
    size_t record_limit, cull_count, cull_at;
    double size_limit, cull_size, cull_bytes_at;
    size_t bytes;
    struct px_record *records; /* a uthash keeps the order in which they were added */
    struct px_record *changed; /* not written since they changed */
    struct tombstone *dropped;
    unsigned long lost, made;
    struct px_log_limiter limiter;
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
    record->written = px_store_put(db->store, record);
}

void px_db_changed(struct px_db *db, struct px_record *record)
{
    if (db->store == NULL || record->is_changed)
        return;
    record->is_changed = true;
    DL_APPEND(db->changed, record);
}

static void forget_dropped(struct px_db *db)
{
    struct tombstone *stone, *next;
    HASH_ITER(hh, db->dropped, stone, next) {
        if (!px_store_is_written(db->store, stone->number))
            return; /* they are in the order of their numbers */
        HASH_DEL(db->dropped, stone);
        free(stone);
    }
}

static bool is_dropped(const struct px_db *db, struct px_span msg_id)
{
    struct tombstone *stone;
    HASH_FIND(hh, db->dropped, msg_id.data, msg_id.size, stone);
    return stone != NULL;
}

bool px_db_flush(struct px_db *db)
{
    while (db->changed != NULL && px_store_has_room(db->store))
        write_out(db, db->changed);
    if (db->store != NULL)
        forget_dropped(db);
    return db->changed == NULL;
}

static bool is_written(const struct px_db *db, const struct px_record *record)
{
    return !record->is_changed && px_store_is_written(db->store, record->written);
}

/* Out of memory; on disk it stays. */
static void evict(struct px_db *db, struct px_record *record)
{
    if (db->store != NULL && !is_written(db, record)) {
        db->lost++;
        px_log_limited(&db->limiter, PX_ERROR, "record-unwritten", "lost=%lu", db->lost);
    }
    if (record->is_changed)
        DL_DELETE(db->changed, record);
    HASH_DEL(db->records, record);
    db->bytes -= record->bytes;
    px_record_destroy(record);
}

/* With a store, what is not complete stays in memory: its reply would only fetch it back. And
 * what is not written stays, within reason. */
static bool may_leave(const struct px_db *db, const struct px_record *record)
{
    if (db->store == NULL)
        return true;
    if (HASH_COUNT(db->records) > db->record_limit * PATIENCE)
        return true;
    return px_record_is_complete(record) && is_written(db, record);
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
    /* Where most of them had to stay, not again before there are many more to look at. */
    db->cull_at = left > db->record_limit ? left + left / 8 + 1 : db->record_limit;
}

bool px_db_tidy(struct px_db *db)
{
    if (db->store == NULL)
        return true;
    if (db->changed != NULL || !px_store_is_idle(db->store))
        return false;
    if (HASH_COUNT(db->records) > db->record_limit)
        cull_records(db, NULL);
    return true;
}

/* At twice the limit, what is not written leaves as well. */
static double hard_limit(const struct px_db *db)
{
    return 2 * db->size_limit;
}

static void cull_bytes(struct px_db *db, const struct px_record *kept)
{
    double step = db->size_limit - db->cull_size, bytes = (double)db->bytes;
    double hard_target = bytes > hard_limit(db) ? hard_limit(db) - step : bytes;
    struct px_record *record, *next;
    HASH_ITER(hh, db->records, record, next) {
        if ((double)db->bytes <= db->cull_size)
            break;
        if (record != kept &&
            (db->store == NULL || is_written(db, record) || (double)db->bytes > hard_target))
            evict(db, record);
    }
    /* Not again for every output when most of them had to stay. */
    double left = (double)db->bytes;
    db->cull_bytes_at = left > db->size_limit ? left + step : db->size_limit;
}

static struct px_record *add(struct px_db *db, struct px_record *record)
{
    HASH_ADD_KEYPTR(hh, db->records, record->msg_id, strlen(record->msg_id), record);
    db->bytes += record->bytes;
    record->made = ++db->made;
    if (HASH_COUNT(db->records) > db->cull_at)
        cull_records(db, record);
    return record;
}

struct px_record *px_db_get(struct px_db *db, struct px_span msg_id)
{
    struct px_record *record = find(db, msg_id);
    if (record != NULL || db->store == NULL)
        return record;
    record = is_dropped(db, msg_id) ? NULL : px_store_get(db->store, msg_id);
    if (record == NULL)
        return NULL;
    record->is_seen = true;
    return add(db, record);
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

void px_db_resize(struct px_db *db, struct px_record *record, size_t before, size_t after)
{
    record->bytes = record->bytes - before + after;
    db->bytes = db->bytes - before + after;
    double bytes = (double)db->bytes;
    if (after > before && (bytes > db->cull_bytes_at || bytes > hard_limit(db)))
        cull_bytes(db, record);
}

static void drop_from_store(struct px_db *db, const char *msg_id)
{
    struct px_span id = px_span_of(msg_id);
    struct tombstone *stone;
    HASH_FIND(hh, db->dropped, id.data, id.size, stone);
    if (stone != NULL) {
        HASH_DEL(db->dropped, stone);
    } else {
        stone = px_alloc(sizeof(*stone) + id.size + 1);
        memcpy(stone->msg_id, id.data, id.size);
    }
    stone->number = px_store_delete(db->store, msg_id);
    HASH_ADD_KEYPTR(hh, db->dropped, stone->msg_id, id.size, stone);
}

void px_db_drop(struct px_db *db, const char *msg_id)
{
    struct px_record *record = find(db, px_span_of(msg_id));
    if (db->store != NULL)
        drop_from_store(db, msg_id); /* `msg_id` may be the record's own */
    if (record == NULL)
        return;
    if (record->is_changed)
        DL_DELETE(db->changed, record);
    HASH_DEL(db->records, record);
    db->bytes -= record->bytes;
    px_record_destroy(record);
}

void px_db_adopt(struct px_db *db, struct px_record *record)
{
    add(db, record);
}

/* A record from the file, unless memory knows better. */
struct from_store {
    struct px_db *db;
    px_record_fn *each;
    void *ctx;
    bool go_on;
};

static bool give_stored(struct px_record *stored, void *ctx)
{
    struct from_store *from = ctx;
    struct px_span msg_id = px_span_of(stored->msg_id);
    struct px_record *record = find(from->db, msg_id);
    if (record != NULL)
        record->is_seen = true;
    if (record != NULL || !is_dropped(from->db, msg_id))
        from->go_on = from->each(record ? record : stored, from->ctx);
    px_record_destroy(stored);
    return from->go_on;
}

static void give_unstored(struct px_db *db, px_record_fn *each, void *ctx)
{
    struct px_record *record, *next;
    HASH_ITER(hh, db->records, record, next) {
        if ((db->store == NULL || !record->is_seen) && !each(record, ctx))
            return;
    }
}

bool px_db_scan(struct px_db *db, int64_t *row, int64_t ms, px_record_fn *each, void *ctx)
{
    struct from_store from = {db, each, ctx, true};
    if (db->store != NULL && *row == 0) {
        forget_dropped(db);
        for (struct px_record *record = db->records; record != NULL; record = record->hh.next)
            record->is_seen = false;
    }
    if (db->store != NULL && px_store_some(db->store, row, ms, give_stored, &from))
        return true;
    if (from.go_on)
        give_unstored(db, each, ctx);
    return false;
}

void px_db_each(struct px_db *db, px_record_fn *each, void *ctx)
{
    int64_t row = 0;
    while (px_db_scan(db, &row, INT64_MAX, each, ctx))
        ;
}

static int compare_made(const void *a, const void *b)
{
    const struct px_record *x = *(struct px_record *const *)a, *y = *(struct px_record *const *)b;
    return (x->made > y->made) - (x->made < y->made);
}

static void each_in_memory(struct px_db *db, const char *const *ids, size_t count,
                           px_record_fn *each, void *ctx)
{
    struct px_record **records = px_alloc((count + 1) * sizeof(struct px_record *));
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        records[found] = find(db, px_span_of(ids[i]));
        found += records[found] != NULL;
    }
    qsort(records, found, sizeof(struct px_record *), compare_made);
    for (size_t i = 0; i < found && each(records[i], ctx); i++)
        ;
    free(records);
}

/* What is read for this does not stay: a question about all there is must not empty the cache. */
static void each_stored(struct px_db *db, const char *const *ids, size_t count, px_record_fn *each,
                        void *ctx)
{
    bool go_on = true;
    for (size_t i = 0; i < count && go_on; i++) {
        struct px_span msg_id = px_span_of(ids[i]);
        struct px_record *record = find(db, msg_id), *stored = NULL;
        if (record == NULL && !is_dropped(db, msg_id))
            record = stored = px_store_get(db->store, msg_id);
        go_on = record == NULL || each(record, ctx);
        px_record_destroy(stored);
    }
}

void px_db_each_of(struct px_db *db, const char *const *ids, size_t count, px_record_fn *each,
                   void *ctx)
{
    (db->store != NULL ? each_stored : each_in_memory)(db, ids, count, each, ctx);
}

bool px_db_stores(const struct px_db *db)
{
    return db->kind != PX_DB_NONE;
}

bool px_db_may_keep(const struct px_db *db, const struct px_msg *msg)
{
    return db->store == NULL || px_msg_bytes(msg) <= ROW_BYTES;
}

size_t px_db_count(const struct px_db *db)
{
    return HASH_COUNT(db->records);
}

size_t px_db_bytes(const struct px_db *db)
{
    return db->bytes;
}

unsigned long px_db_lost(const struct px_db *db)
{
    return db->lost;
}

struct px_db *px_db_create(enum px_db_kind kind, struct px_store *store, size_t record_limit,
                           double size_limit, double cull_fraction)
{
    struct px_db *db = px_alloc(sizeof(*db));
    db->kind = kind;
    db->store = store;
    db->record_limit = db->cull_at = record_limit;
    db->cull_count = (size_t)((double)record_limit * cull_fraction);
    db->size_limit = db->cull_bytes_at = size_limit;
    db->cull_size = size_limit * (1 - cull_fraction);
    return db;
}

void px_db_destroy(struct px_db *db)
{
    if (db == NULL)
        return;
    while (db->changed != NULL)
        write_out(db, db->changed); /* the last ones: the store keeps them until it is closed */
    struct px_record *record, *next;
    HASH_ITER(hh, db->records, record, next) {
        HASH_DEL(db->records, record);
        px_record_destroy(record);
    }
    struct tombstone *stone, *after;
    HASH_ITER(hh, db->dropped, stone, after) {
        HASH_DEL(db->dropped, stone);
        free(stone);
    }
    free(db);
}
