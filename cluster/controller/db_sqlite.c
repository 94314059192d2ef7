/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * db_sqlite: the task database on disk, in the file and table of ipyparallel's SQLiteDB.
 *
 * Two connections, write-ahead log: the hub thread reads, a thread of its own writes what the
 * hub posts, many rows in one transaction. After kill -9 the file holds every transaction that
 * was committed. px_store_sync() waits until all that was posted is in the file; the hub does so
 * before it reads, the traffic thread never.
 *
 * Only this file includes sqlite3.h.
 */
#include "hub.h"

#include <pthread.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#define MAX_BATCH 1000 /* rows in one transaction */
#define BUSY_MS 10000  /* another process has the file */
#define MAX_TABLES 100 /* "ipython-tasks", "ipython-tasks_1", ... */
#define TABLE_SIZE 32

enum kind { PUT, DELETE, STOP };

struct work {
    enum kind kind;
    struct px_row row;
};

struct px_store {
    sqlite3 *reader, *writer; /* hub thread, writing thread */
    char table[TABLE_SIZE];
    struct px_doorbell *bell; /* struct work, to the writing thread */
    pthread_mutex_t lock;
    pthread_cond_t done_changed;
    unsigned long posted, done; /* under the lock */
    unsigned long failed;
    struct px_log_limiter limiter;
};

/* ---- statements ------------------------------------------------------------------ */

static int fail_sql(sqlite3 *db, struct px_error *err, const char *what)
{
    return px_fail(err, PX_EIO, "task database: %s: %s", what,
                   db ? sqlite3_errmsg(db) : "out of memory");
}

static sqlite3 *open_file(const char *path, struct px_error *err)
{
    sqlite3 *db = NULL;
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    if (sqlite3_open_v2(path, &db, flags, NULL) == SQLITE_OK &&
        sqlite3_busy_timeout(db, BUSY_MS) == SQLITE_OK &&
        sqlite3_exec(db, "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL", NULL, NULL, NULL) ==
            SQLITE_OK)
        return db;
    fail_sql(db, err, path);
    sqlite3_close(db);
    return NULL;
}

/* Whether the table has exactly our columns, in our order. -1 when it does not exist. */
static int has_our_columns(sqlite3 *db, const char *table)
{
    sqlite3_stmt *statement = NULL;
    char *sql = sqlite3_mprintf("PRAGMA table_info(\"%w\")", table);
    size_t count = 0;
    bool same = true;
    if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) == SQLITE_OK) {
        for (; sqlite3_step(statement) == SQLITE_ROW; count++) {
            const char *name = (const char *)sqlite3_column_text(statement, 1);
            same = same && count < PX_COLUMNS && name != NULL &&
                   strcmp(name, px_column_name(count)) == 0;
        }
    }
    sqlite3_finalize(statement);
    sqlite3_free(sql);
    return count == 0 ? -1 : same && count == PX_COLUMNS;
}

static int create_table(sqlite3 *db, const char *table, struct px_error *err)
{
    struct px_buf sql = {0};
    px_buf_printf(&sql, "CREATE TABLE \"%s\" (", table);
    for (size_t i = 0; i < PX_COLUMNS; i++)
        px_buf_printf(&sql, "%s%s %s", i ? ", " : "", px_column_name(i), px_column_type(i));
    px_buf_text(&sql, ")");
    int rc = sqlite3_exec(db, sql.data, NULL, NULL, NULL);
    px_buf_fini(&sql);
    return rc == SQLITE_OK ? 0 : fail_sql(db, err, "cannot make the table");
}

/* A table with other columns is somebody else's: the next name is tried. */
static int choose_table(struct px_store *store, struct px_error *err)
{
    for (int i = 0; i < MAX_TABLES; i++) {
        snprintf(store->table, TABLE_SIZE, i ? "ipython-tasks_%d" : "ipython-tasks", i);
        int ours = has_our_columns(store->writer, store->table);
        if (ours > 0)
            return 0;
        if (ours < 0)
            return create_table(store->writer, store->table, err);
    }
    return px_fail(err, PX_EEXIST, "task database: no table of ours, and no name left for one");
}

static sqlite3_stmt *prepare(sqlite3 *db, const char *format, const char *table)
{
    sqlite3_stmt *statement = NULL;
    char *sql = sqlite3_mprintf(format, table);
    if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) != SQLITE_OK)
        px_log(PX_ERROR, "database", "why=\"%s\"", sqlite3_errmsg(db));
    sqlite3_free(sql);
    return statement;
}

/* ---- the writing thread ------------------------------------------------------------- */

static bool is_blob(size_t column)
{
    return column == PX_COL_BUFFERS || column == PX_COL_RESULT_BUFFERS;
}

static void bind_cell(sqlite3_stmt *statement, size_t column, const struct px_row *row)
{
    const struct px_buf *buf = &row->cells[column];
    int index = (int)column + 1;
    if (!row->present[column])
        sqlite3_bind_null(statement, index);
    else if (is_blob(column))
        sqlite3_bind_blob64(statement, index, buf->data, buf->size, SQLITE_STATIC);
    else
        sqlite3_bind_text64(statement, index, buf->data ? buf->data : "", buf->size, SQLITE_STATIC,
                            SQLITE_UTF8);
}

static sqlite3_stmt *prepare_put(const struct px_store *store)
{
    struct px_buf sql = {0};
    px_buf_text(&sql, "INSERT OR REPLACE INTO \"%w\" VALUES (?");
    for (size_t i = 1; i < PX_COLUMNS; i++)
        px_buf_text(&sql, ", ?");
    px_buf_text(&sql, ")");
    sqlite3_stmt *statement = prepare(store->writer, sql.data, store->table);
    px_buf_fini(&sql);
    return statement;
}

static void carry_out(struct px_store *store, sqlite3_stmt *put, sqlite3_stmt *drop,
                      struct work *work)
{
    sqlite3_stmt *statement = work->kind == PUT ? put : drop;
    size_t cells = work->kind == PUT ? PX_COLUMNS : 1;
    for (size_t i = 0; i < cells; i++)
        bind_cell(statement, i, &work->row);
    if (sqlite3_step(statement) != SQLITE_DONE) {
        store->failed++;
        px_log_limited(&store->limiter, PX_ERROR, "database-write", "failed=%lu why=\"%s\"",
                       store->failed, sqlite3_errmsg(store->writer));
    }
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
}

static void free_work(void *item)
{
    struct work *work = item;
    px_row_fini(&work->row);
    free(work);
}

static void count_done(struct px_store *store, unsigned long count)
{
    pthread_mutex_lock(&store->lock);
    store->done += count;
    pthread_cond_broadcast(&store->done_changed);
    pthread_mutex_unlock(&store->lock);
}

/* One transaction of what has been posted, from `work` on. False when it was told to stop. */
static bool write_batch(struct px_store *store, sqlite3_stmt *put, sqlite3_stmt *drop,
                        struct work *work)
{
    unsigned long count = 0;
    bool go_on = true;
    sqlite3_exec(store->writer, "BEGIN", NULL, NULL, NULL);
    for (; work != NULL; work = count < MAX_BATCH ? px_doorbell_take(store->bell) : NULL) {
        if (work->kind == STOP)
            go_on = false;
        else
            carry_out(store, put, drop, work);
        free_work(work);
        count++;
    }
    if (sqlite3_exec(store->writer, "COMMIT", NULL, NULL, NULL) != SQLITE_OK) {
        px_log_limited(&store->limiter, PX_ERROR, "database-commit", "why=\"%s\"",
                       sqlite3_errmsg(store->writer));
        sqlite3_exec(store->writer, "ROLLBACK", NULL, NULL, NULL);
    }
    count_done(store, count);
    return go_on;
}

void px_store_run(struct px_store *store)
{
    sqlite3_stmt *put = prepare_put(store);
    sqlite3_stmt *drop =
        prepare(store->writer, "DELETE FROM \"%w\" WHERE msg_id = ?", store->table);
    bool go_on = true;
    while (go_on) {
        struct work *work = px_doorbell_wait(store->bell, -1, NULL);
        if (work != NULL)
            go_on = write_batch(store, put, drop, work);
    }
    sqlite3_finalize(put);
    sqlite3_finalize(drop);
}

/* ---- the hub's side -------------------------------------------------------------------- */

static void post(struct px_store *store, struct work *work)
{
    pthread_mutex_lock(&store->lock);
    store->posted++;
    pthread_mutex_unlock(&store->lock);
    px_doorbell_post(store->bell, work);
}

void px_store_put(struct px_store *store, const struct px_record *record)
{
    struct work *work = px_alloc(sizeof(*work));
    work->kind = PUT;
    px_row_from_record(&work->row, record);
    post(store, work);
}

void px_store_delete(struct px_store *store, const char *msg_id)
{
    struct work *work = px_alloc(sizeof(*work));
    work->kind = DELETE;
    px_row_set(&work->row, PX_COL_MSG_ID, px_span_of(msg_id));
    post(store, work);
}

void px_store_stop(struct px_store *store)
{
    struct work *work = px_alloc(sizeof(*work));
    work->kind = STOP;
    post(store, work);
}

void px_store_sync(struct px_store *store)
{
    pthread_mutex_lock(&store->lock);
    unsigned long wanted = store->posted;
    while (store->done < wanted)
        pthread_cond_wait(&store->done_changed, &store->lock);
    pthread_mutex_unlock(&store->lock);
}

static struct px_record *read_record(sqlite3_stmt *statement)
{
    struct px_row row = {0};
    for (int i = 0; i < PX_COLUMNS; i++) {
        const void *data = sqlite3_column_blob(statement, i);
        int size = sqlite3_column_bytes(statement, i);
        if (sqlite3_column_type(statement, i) != SQLITE_NULL && size >= 0)
            px_row_set(&row, (enum px_column)i, (struct px_span){data ? data : "", (size_t)size});
    }
    struct px_record *record = px_row_to_record(&row);
    px_row_fini(&row);
    return record;
}

struct px_record *px_store_get(struct px_store *store, struct px_span msg_id)
{
    px_store_sync(store);
    sqlite3_stmt *statement =
        prepare(store->reader, "SELECT * FROM \"%w\" WHERE msg_id = ?", store->table);
    struct px_record *record = NULL;
    if (statement != NULL) {
        sqlite3_bind_text64(statement, 1, msg_id.data, msg_id.size, SQLITE_STATIC, SQLITE_UTF8);
        if (sqlite3_step(statement) == SQLITE_ROW)
            record = read_record(statement);
    }
    sqlite3_finalize(statement);
    return record;
}

void px_store_each(struct px_store *store, bool (*each)(struct px_record *record, void *ctx),
                   void *ctx)
{
    px_store_sync(store);
    sqlite3_stmt *statement =
        prepare(store->reader, "SELECT * FROM \"%w\" ORDER BY rowid", store->table);
    bool go_on = statement != NULL;
    while (go_on && sqlite3_step(statement) == SQLITE_ROW) {
        struct px_record *record = read_record(statement);
        if (record == NULL)
            continue;
        go_on = each(record, ctx);
        px_record_destroy(record);
    }
    sqlite3_finalize(statement);
}

/* ---- open, close ---------------------------------------------------------------------------- */

struct px_store *px_store_open(const char *path, struct px_error *err)
{
    struct px_store *store = px_alloc(sizeof(*store));
    pthread_mutex_init(&store->lock, NULL);
    pthread_cond_init(&store->done_changed, NULL);
    store->bell = px_doorbell_create(err);
    store->writer = store->bell ? open_file(path, err) : NULL;
    store->reader = store->writer ? open_file(path, err) : NULL;
    if (store->reader != NULL && choose_table(store, err) == 0)
        return store;
    px_store_close(store);
    return NULL;
}

void px_store_close(struct px_store *store)
{
    if (store == NULL)
        return;
    px_doorbell_destroy(store->bell, free_work);
    sqlite3_close(store->reader);
    sqlite3_close(store->writer);
    pthread_cond_destroy(&store->done_changed);
    pthread_mutex_destroy(&store->lock);
    free(store);
}
