/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * db_sqlite: the task database on disk, in the file and table of ipyparallel's SQLiteDB.
 *
 * Two connections, write-ahead log: the hub thread reads, a thread of its own writes what the
 * hub posts, many rows in one transaction. After kill -9 the file holds every transaction that
 * was committed. Nobody waits for the writing thread: what is posted has a number, and the hub
 * keeps in memory what is not written yet. When another program has locked the file, or the disk is
 * full, writing waits, reading does not.
 *
 * The table is bounded as memory is, by records and by bytes: the oldest that are finished go.
 *
 * Only this file includes sqlite3.h.
 */
#include "hub.h"

#include <poll.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define MAX_BATCH 1000  /* rows in one transaction */
#define MAX_CULL 4000   /* rows deleted in one: what is posted meanwhile waits in memory */
#define BUSY_MS 500     /* another program has the file: how long to wait before looking again */
#define READ_BUSY_MS 50 /* the hub's readers give up sooner */
#define OPEN_BUSY_MS 10000
#define GIVE_UP_MS 3000 /* how long the last rows wait for the file when the controller ends */
#define BACKLOG_BYTES ((size_t)64 << 20) /* and their bytes */
#define BACKLOG 2000                     /* rows that may wait for the writing thread */
#define COUNT_EVERY 10000                /* rows written between two counts of the table */
#define MAX_TABLES 100                   /* "ipython-tasks", "ipython-tasks_1", ... */
#define TABLE_SIZE 32

enum kind { PUT, DELETE, STOP };

struct work {
    enum kind kind;
    size_t bytes;
    struct px_row row;
};

struct px_store {
    sqlite3 *reader, *writer; /* hub thread, writing thread */
    sqlite3_stmt *get, *some; /* hub thread; made for the first record, the first scan */
    char table[TABLE_SIZE];
    struct px_doorbell *bell; /* struct work, to the writing thread */
    atomic_ulong done;        /* how many were carried out */
    unsigned long posted;     /* hub thread */
    atomic_size_t backlog_bytes;
    _Atomic int64_t stopped_ms; /* when the controller was told to end; 0: not yet */
    /* writing thread */
    size_t record_limit, uncounted;
    long long surplus; /* rows that are still to go */
    double size_limit, cull_fraction;
    unsigned long failed;
    bool stuck; /* the file cannot be written for now */
    struct px_log_limiter limiter;
};

/* ---- statements ------------------------------------------------------------------ */

static int fail_sql(sqlite3 *db, struct px_error *err, const char *what)
{
    return px_fail(err, PX_EIO, "task database: %s: %s", what,
                   db ? sqlite3_errmsg(db) : "out of memory");
}

static sqlite3 *open_file(const char *path, const struct px_store_limits *limits,
                          struct px_error *err)
{
    const char *pragmas = limits->is_synced ? "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL"
                                            : "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL";
    sqlite3 *db = NULL;
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX;
    if (sqlite3_open_v2(path, &db, flags, NULL) == SQLITE_OK &&
        sqlite3_busy_timeout(db, OPEN_BUSY_MS) == SQLITE_OK &&
        sqlite3_exec(db, pragmas, NULL, NULL, NULL) == SQLITE_OK)
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
    char *sql = sqlite3_mprintf(format, table, table); /* some name it twice */
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

/* SQLITE_TOOBIG, for more than SQLite stores in one cell. */
static int bind_cell(sqlite3_stmt *statement, size_t column, const struct px_row *row)
{
    const struct px_buf *buf = &row->cells[column];
    int index = (int)column + 1;
    if (!row->present[column])
        return sqlite3_bind_null(statement, index);
    if (is_blob(column))
        return sqlite3_bind_blob64(statement, index, buf->data, buf->size, SQLITE_STATIC);
    return sqlite3_bind_text64(statement, index, buf->data ? buf->data : "", buf->size,
                               SQLITE_STATIC, SQLITE_UTF8);
}

/* A row that is there already keeps its place: rows are in the order of their making. */
static sqlite3_stmt *prepare_put(const struct px_store *store)
{
    struct px_buf sql = {0};
    px_buf_text(&sql, "INSERT INTO \"%w\" VALUES (?");
    for (size_t i = 1; i < PX_COLUMNS; i++)
        px_buf_text(&sql, ", ?");
    px_buf_text(&sql, ") ON CONFLICT(msg_id) DO UPDATE SET ");
    for (size_t i = 1; i < PX_COLUMNS; i++)
        px_buf_printf(&sql, "%s%s = excluded.%s", i > 1 ? ", " : "", px_column_name(i),
                      px_column_name(i));
    sqlite3_stmt *statement = prepare(store->writer, sql.data, store->table);
    px_buf_fini(&sql);
    return statement;
}

/* What is wrong with the row itself will be wrong with it the next time. */
static bool is_of_the_row(int code)
{
    return code == SQLITE_TOOBIG || code == SQLITE_CONSTRAINT || code == SQLITE_MISMATCH;
}

/* -1 when the transaction cannot go on. */
static int carry_out(struct px_store *store, sqlite3_stmt *put, sqlite3_stmt *drop,
                     const struct work *work)
{
    sqlite3_stmt *statement = work->kind == PUT ? put : drop;
    size_t cells = work->kind == PUT ? PX_COLUMNS : 1;
    int code = SQLITE_OK;
    for (size_t i = 0; i < cells && code == SQLITE_OK; i++)
        code = bind_cell(statement, i, &work->row);
    if (code == SQLITE_OK)
        code = sqlite3_step(statement) & 0xff;
    bool skip = is_of_the_row(code);
    if (skip) {
        store->failed++;
        px_log_limited(&store->limiter, PX_ERROR, "database-write", "failed=%lu why=\"%s\"",
                       store->failed, sqlite3_errmsg(store->writer));
    }
    sqlite3_reset(statement);
    sqlite3_clear_bindings(statement);
    return code == SQLITE_DONE || skip ? 0 : -1;
}

static void free_work(void *item)
{
    struct work *work = item;
    px_row_fini(&work->row);
    free(work);
}

/* One transaction; nothing of it is in the file when it fails. */
static int try_batch(struct px_store *store, sqlite3_stmt *put, sqlite3_stmt *drop,
                     struct work *const *batch, size_t count)
{
    int rc = sqlite3_exec(store->writer, "BEGIN IMMEDIATE", NULL, NULL, NULL) == SQLITE_OK ? 0 : -1;
    for (size_t i = 0; i < count && rc == 0; i++) {
        if (batch[i]->kind != STOP)
            rc = carry_out(store, put, drop, batch[i]);
    }
    if (rc == 0 && sqlite3_exec(store->writer, "COMMIT", NULL, NULL, NULL) == SQLITE_OK)
        return 0;
    return -1;
}

/* Says once that the file cannot be written, and waits a little. False when it is time to give up.
 */
static bool wait_to_retry(struct px_store *store)
{
    if (!store->stuck)
        px_log(PX_WARN, "database-busy", "why=\"%s\"", sqlite3_errmsg(store->writer));
    store->stuck = true;
    bool waited = sqlite3_errcode(store->writer) == SQLITE_BUSY; /* SQLite has, BUSY_MS */
    sqlite3_exec(store->writer, "ROLLBACK", NULL, NULL, NULL);
    const int64_t stopped_ms = atomic_load(&store->stopped_ms);
    if (stopped_ms && px_now_ms() - stopped_ms > GIVE_UP_MS)
        return false;
    if (!waited)
        poll(NULL, 0, BUSY_MS); /* a full disk, perhaps: no reason to spin */
    return true;
}

/* However long another program has the file, or the disk is full. */
static void write_rows(struct px_store *store, sqlite3_stmt *put, sqlite3_stmt *drop,
                       struct work *const *batch, size_t count)
{
    int64_t since_ms = px_now_ms();
    while (try_batch(store, put, drop, batch, count) != 0) {
        if (wait_to_retry(store))
            continue;
        store->failed += count;
        px_log(PX_ERROR, "database-lost", "rows=%lu", store->failed);
        return;
    }
    if (store->stuck)
        px_log(PX_INFO, "database-free", "after_ms=%lld", (long long)(px_now_ms() - since_ms));
    store->stuck = false;
}

/* One transaction of what has been posted, from `work` on, which counts as done when it is in the
 * file. False when it was told to stop. */
static bool write_batch(struct px_store *store, sqlite3_stmt *put, sqlite3_stmt *drop,
                        struct work *work)
{
    struct work *batch[MAX_BATCH];
    size_t count = 0, bytes = 0;
    bool go_on = true;
    for (; work != NULL; work = count < MAX_BATCH ? px_doorbell_take(store->bell) : NULL) {
        go_on = go_on && work->kind != STOP;
        bytes += work->bytes;
        batch[count++] = work;
    }
    write_rows(store, put, drop, batch, count);
    for (size_t i = 0; i < count; i++)
        free_work(batch[i]);
    atomic_fetch_sub(&store->backlog_bytes, bytes);
    atomic_fetch_add(&store->done, count);
    store->uncounted += count;
    return go_on;
}

/* ---- limits ------------------------------------------------------------------------- */

static double ask_number(struct px_store *store, const char *format)
{
    sqlite3_stmt *statement = prepare(store->writer, format, store->table);
    double number = 0;
    if (statement != NULL && sqlite3_step(statement) == SQLITE_ROW)
        number = sqlite3_column_double(statement, 0);
    sqlite3_finalize(statement);
    return number;
}

/* How many rows are to go, so that there is room for more. */
static long long count_surplus(struct px_store *store)
{
    static const char used[] = "SELECT (page_count - freelist_count) * page_size FROM "
                               "pragma_page_count, pragma_freelist_count, pragma_page_size";
    bool large = store->size_limit > 0 && ask_number(store, used) > store->size_limit;
    if (!large && store->uncounted < COUNT_EVERY)
        return 0;
    store->uncounted = 0;
    double count = ask_number(store, "SELECT count(*) FROM \"%w\"");
    double limit = (double)store->record_limit;
    if (limit > 0 && count > limit)
        return (long long)(count - limit * (1 - store->cull_fraction));
    return large ? (long long)(count * store->cull_fraction) + 1 : 0;
}

/* Deletes the oldest finished rows, some at a time. True if it may have more to do. */
static bool hold_limits(struct px_store *store)
{
    if (store->surplus == 0 && (store->surplus = count_surplus(store)) > 0)
        px_log(PX_INFO, "database-culled", "rows=%lld", store->surplus);
    if (store->surplus == 0)
        return false;
    long long rows = store->surplus < MAX_CULL ? store->surplus : MAX_CULL;
    char *sql = sqlite3_mprintf("DELETE FROM \"%w\" WHERE rowid IN (SELECT rowid FROM \"%w\" WHERE "
                                "result_header IS NOT NULL ORDER BY rowid LIMIT %lld)",
                                store->table, store->table, rows);
    int gone = sqlite3_exec(store->writer, sql, NULL, NULL, NULL) == SQLITE_OK
                   ? sqlite3_changes(store->writer)
                   : 0;
    store->surplus = gone == rows ? store->surplus - rows : 0;
    sqlite3_free(sql);
    return gone > 0;
}

void px_store_run(struct px_store *store)
{
    sqlite3_stmt *put = prepare_put(store);
    sqlite3_stmt *drop =
        prepare(store->writer, "DELETE FROM \"%w\" WHERE msg_id = ?", store->table);
    bool go_on = true, again = false;
    while (go_on) {
        struct work *work = px_doorbell_wait(store->bell, again ? 0 : -1);
        if (work != NULL)
            go_on = write_batch(store, put, drop, work);
        again = hold_limits(store);
    }
    sqlite3_finalize(put);
    sqlite3_finalize(drop);
}

/* ---- the hub's side -------------------------------------------------------------------- */

static unsigned long post(struct px_store *store, struct work *work)
{
    px_doorbell_post(store->bell, work);
    return ++store->posted;
}

unsigned long px_store_put(struct px_store *store, const struct px_record *record)
{
    struct work *work = px_alloc(sizeof(*work));
    work->kind = PUT;
    px_row_from_record(&work->row, record);
    for (size_t i = 0; i < PX_COLUMNS; i++)
        work->bytes += work->row.cells[i].size;
    atomic_fetch_add(&store->backlog_bytes, work->bytes);
    return post(store, work);
}

unsigned long px_store_delete(struct px_store *store, const char *msg_id)
{
    struct work *work = px_alloc(sizeof(*work));
    work->kind = DELETE;
    px_row_set(&work->row, PX_COL_MSG_ID, px_span_of(msg_id));
    return post(store, work);
}

void px_store_stop(struct px_store *store)
{
    struct work *work = px_alloc(sizeof(*work));
    work->kind = STOP;
    atomic_store(&store->stopped_ms, px_now_ms());
    post(store, work);
}

bool px_store_is_written(const struct px_store *store, unsigned long number)
{
    return atomic_load(&store->done) >= number;
}

bool px_store_is_idle(const struct px_store *store)
{
    return px_store_is_written(store, store->posted);
}

bool px_store_has_room(const struct px_store *store)
{
    return store->posted - atomic_load(&store->done) < BACKLOG &&
           atomic_load(&store->backlog_bytes) < BACKLOG_BYTES;
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
    if (store->get == NULL)
        store->get = prepare(store->reader, "SELECT * FROM \"%w\" WHERE msg_id = ?", store->table);
    if (store->get == NULL)
        return NULL;
    sqlite3_bind_text64(store->get, 1, msg_id.data, msg_id.size, SQLITE_STATIC, SQLITE_UTF8);
    struct px_record *record =
        sqlite3_step(store->get) == SQLITE_ROW ? read_record(store->get) : NULL;
    sqlite3_reset(store->get); /* or it would keep the log from being emptied */
    sqlite3_clear_bindings(store->get);
    return record;
}

void px_store_unfinished(struct px_store *store, bool (*each)(struct px_record *record, void *ctx),
                         void *ctx)
{
    sqlite3_stmt *statement =
        prepare(store->reader, "SELECT * FROM \"%w\" WHERE result_header IS NULL ORDER BY rowid",
                store->table);
    bool go_on = statement != NULL;
    while (go_on && sqlite3_step(statement) == SQLITE_ROW) {
        struct px_record *record = read_record(statement);
        if (record != NULL)
            go_on = each(record, ctx);
    }
    sqlite3_finalize(statement);
}

bool px_store_some(struct px_store *store, int64_t *row, int64_t ms,
                   bool (*each)(struct px_record *record, void *ctx), void *ctx)
{
    const int64_t start_ms = px_now_ms();
    bool go_on = true, late = false;
    if (store->some == NULL)
        store->some =
            prepare(store->reader, "SELECT *, rowid FROM \"%w\" WHERE rowid > ? ORDER BY rowid",
                    store->table);
    if (store->some == NULL)
        return false;
    sqlite3_bind_int64(store->some, 1, *row);
    while (go_on && !late && sqlite3_step(store->some) == SQLITE_ROW) {
        *row = sqlite3_column_int64(store->some, sqlite3_column_count(store->some) - 1);
        struct px_record *record = read_record(store->some);
        if (record != NULL)
            go_on = each(record, ctx);
        late = px_now_ms() - start_ms >= ms;
    }
    sqlite3_reset(store->some); /* or it would keep the log from being emptied */
    return go_on && late;
}

static struct px_span text_at(sqlite3_stmt *statement, int column)
{
    const void *data = sqlite3_column_blob(statement, column);
    int size = sqlite3_column_bytes(statement, column);
    return (struct px_span){data ? data : "", data && size > 0 ? (size_t)size : 0};
}

void px_store_finished(struct px_store *store, size_t most, px_finished_fn *each, void *ctx)
{
    sqlite3_stmt *statement = prepare(
        store->reader,
        "SELECT msg_id, engine_uuid, result_metadata, result_content FROM \"%w\" WHERE "
        "result_header IS NOT NULL AND rowid > (SELECT max(rowid) FROM \"%w\") - ? ORDER BY rowid",
        store->table);
    if (statement != NULL)
        sqlite3_bind_int64(statement, 1, (sqlite3_int64)most);
    while (statement != NULL && sqlite3_step(statement) == SQLITE_ROW)
        each(ctx, text_at(statement, 0), text_at(statement, 1), text_at(statement, 2),
             text_at(statement, 3));
    sqlite3_finalize(statement);
}

/* ---- open, close ---------------------------------------------------------------------------- */

struct px_store *px_store_open(const char *path, const struct px_store_limits *limits,
                               struct px_error *err)
{
    struct px_store *store = px_alloc(sizeof(*store));
    store->record_limit = limits->records;
    store->size_limit = limits->bytes;
    store->cull_fraction = limits->cull_fraction;
    store->bell = px_doorbell_create(err);
    store->writer = store->bell ? open_file(path, limits, err) : NULL;
    store->reader = store->writer ? open_file(path, limits, err) : NULL;
    if (store->reader == NULL || choose_table(store, err) != 0) {
        px_store_close(store);
        return NULL;
    }
    sqlite3_busy_timeout(store->writer, BUSY_MS);
    sqlite3_busy_timeout(store->reader, READ_BUSY_MS);
    return store;
}

void px_store_close(struct px_store *store)
{
    if (store == NULL)
        return;
    px_doorbell_destroy(store->bell, free_work);
    sqlite3_finalize(store->get);
    sqlite3_finalize(store->some);
    sqlite3_close(store->reader);
    sqlite3_close(store->writer);
    free(store);
}
