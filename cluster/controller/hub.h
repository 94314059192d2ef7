/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hub: what the hub thread's files share: engines, tasks that are not finished, records of
 * tasks, and answering requests. Everything here belongs to the hub thread.
 */
#ifndef PX_HUB_H
#define PX_HUB_H

#include "controller.h"
#include "protocol.h"
#include "schedule.h"

#include <uthash.h>

/* ---- records of tasks (record.c) ------------------------------------------- */

#define PX_LISTENERS 256 /* more clients do not connect within a second (client/dial.c) */
#define PX_MAX_RECORD_TEXT (16u << 20) /* stdout, stderr or one other output kept for a task */

/* A task as ipyparallel's TaskRecord. JSON is parsed only when somebody asks. */
struct px_record {
    struct px_msg *request, *reply; /* either may be NULL */
    const char *queue;              /* "mux", "task" or NULL */
    char *engine_uuid, *resubmitted;
    char received[PX_DATE_SIZE]; /* "" for none */
    /* Its engine died, or the reply could not be kept: stands in for it. */
    json_t *lost_header, *lost_content;
    /* From iopub. */
    struct px_buf standard_out, standard_err;
    json_t *execute_input, *execute_result, *error, *display_data;
    size_t kept_bytes[4];  /* what each of these came in */
    size_t bytes;          /* buffers and output, as counted by the database */
    bool is_changed;       /* and in the list of those */
    bool is_seen;          /* by the px_db_scan() under way, or in the file, where it will see it */
    unsigned long written; /* number of the last write; 0 for none */
    unsigned long made;    /* number in the order in which memory got them */
    struct px_record *prev, *next;
    UT_hash_handle hh;
    char msg_id[];
};

void px_record_destroy(struct px_record *record); /* NULL allowed */
/* Nothing for an empty uuid. */
void px_record_set_engine(struct px_record *record, struct px_span uuid);
/* There is no reply to show: the record is complete with an error. `engine_uuid` may be empty. */
void px_record_lose(struct px_record *record, struct px_span engine_uuid, const char *ename,
                    const char *evalue);
/* New reference, JSON null when it is not known; NULL when there is no such field. Buffers are
 * not JSON: their fields give null here. */
json_t *px_record_field(const struct px_record *record, const char *name);
/* display_data is a field only of a record that has it, as in ipyparallel. */
bool px_record_has_field(const struct px_record *record, const char *name);
/* All fields but buffers, or msg_id and `keys` (which are all known). New reference. */
json_t *px_record_json(const struct px_record *record, const json_t *keys);
/* Whether its client is one of ours; false for NULL. */
bool px_record_is_ours(const struct px_record *record);
bool px_record_is_complete(const struct px_record *record);
/* Microseconds since 1970, or -1 when the text is not an ISO 8601 date and time. */
int64_t px_date_parse(struct px_span text);

/* ---- JSON values as Python sees them (value.c) ------------------------------ */

struct px_exception {
    char ename[64];
    char evalue[512];
};
/* Fills `exception`; returns -1. */
int px_raise(struct px_exception *exception, const char *ename, const char *fmt, ...)
    PX_PRINTF(3, 4);
/* "int", "str", "NoneType", ...; NULL counts as null, here and below. */
const char *px_type_name(const json_t *value);
bool px_truth(const json_t *value);
bool px_is_hashable(const json_t *value);
/* What `for item in value` gives: items, characters or keys in a new array. NULL with TypeError. */
json_t *px_iterate(const json_t *value, struct px_exception *exception);
/* Append Python's repr() of a string, of a value. */
void px_repr(struct px_buf *out, const char *text);
void px_repr_json(struct px_buf *out, const json_t *value);

/* ---- query language (query.c) ---------------------------------------------- */

struct px_query;
/* Parses {field: value | {"$op": value, ...}, ...}. NULL with the exception. */
struct px_query *px_query_create(const json_t *query, struct px_exception *exception);
void px_query_destroy(struct px_query *query);
/* No other ids than the keys of this object can match; new reference. NULL: any may. */
json_t *px_query_ids(const struct px_query *query);
/* 1, 0, or -1 with the exception when values cannot be compared. `get` gives a new reference or
 * NULL for what is not there. */
int px_query_match(const struct px_query *query, json_t *(*get)(void *ctx, const char *field),
                   void *ctx, struct px_exception *exception);

/* ---- the database on disk: rows (row.c), the file (db_sqlite.c) --------------- */

enum px_column {
    PX_COL_MSG_ID,
    PX_COL_HEADER,
    PX_COL_METADATA,
    PX_COL_CONTENT,
    PX_COL_BUFFERS,
    PX_COL_SUBMITTED,
    PX_COL_CLIENT,
    PX_COL_ENGINE,
    PX_COL_STARTED,
    PX_COL_COMPLETED,
    PX_COL_RESUBMITTED,
    PX_COL_RECEIVED,
    PX_COL_RESULT_HEADER,
    PX_COL_RESULT_METADATA,
    PX_COL_RESULT_CONTENT,
    PX_COL_RESULT_BUFFERS,
    PX_COL_QUEUE,
    PX_COL_EXECUTE_INPUT,
    PX_COL_EXECUTE_RESULT,
    PX_COL_ERROR,
    PX_COL_STDOUT,
    PX_COL_STDERR,
    PX_COL_LABEL,
    PX_COLUMNS,
};

/* A cell that is not present is NULL in the table. All zero is an empty row. */
struct px_row {
    struct px_buf cells[PX_COLUMNS];
    bool present[PX_COLUMNS];
};

const char *px_column_name(size_t column);
const char *px_column_type(size_t column);
void px_row_set(struct px_row *row, enum px_column column, struct px_span value); /* copies */
void px_row_fini(struct px_row *row);
void px_row_from_record(struct px_row *row, const struct px_record *record);
/* NULL when the row has no proper msg_id; what else it holds that cannot be read is left out. */
struct px_record *px_row_to_record(const struct px_row *row);
/* Appends the items of a pickled list of bytes. -1 for anything else; some may be there then. */
PX_MUST_USE int px_buffers_unpickle(struct px_span text, struct px_msg *out);

struct px_store;
struct px_store_limits {
    size_t records; /* 0: any number */
    double bytes;   /* 0: any size */
    double cull_fraction;
    bool is_synced; /* every transaction is on the disk itself: holds when the machine fails */
};
/* Makes the file and its table where they do not exist. PX_EIO, PX_EEXIST. */
struct px_store *px_store_open(const char *path, const struct px_store_limits *limits,
                               struct px_error *err);
/* After the writing thread has ended. */
void px_store_close(struct px_store *store);
/* The writing thread: writes what is posted until px_store_stop(). */
void px_store_run(struct px_store *store);
/* All below: hub thread. None waits for the writing thread. What is posted gets a number. */
unsigned long px_store_put(struct px_store *store, const struct px_record *record);
unsigned long px_store_delete(struct px_store *store, const char *msg_id);
void px_store_stop(struct px_store *store);
bool px_store_is_written(const struct px_store *store, unsigned long number);
bool px_store_is_idle(const struct px_store *store); /* all that was posted is written */
/* False while the writing thread is behind: better post later. */
bool px_store_has_room(const struct px_store *store);
/* What is in the file; caller destroys. */
struct px_record *px_store_get(struct px_store *store, struct px_span msg_id);
/* Gives every unfinished record in the file to `each`, in the order of their making, until it
 * returns false. They belong to `each`. */
void px_store_unfinished(struct px_store *store, bool (*each)(struct px_record *record, void *ctx),
                         void *ctx);
/* The same for all records in rows behind *row, which moves on, until `ms` have gone by. Whether
 * there may be more. */
PX_MUST_USE bool px_store_some(struct px_store *store, int64_t *row, int64_t ms,
                               bool (*each)(struct px_record *record, void *ctx), void *ctx);
/* The finished ones among the last `most`, in the order of their making. */
typedef void px_finished_fn(void *ctx, struct px_span msg_id, struct px_span engine_uuid,
                            struct px_span metadata, struct px_span content);
void px_store_finished(struct px_store *store, size_t most, px_finished_fn *each, void *ctx);

/* ---- task database (db.c) ------------------------------------------------------- */

struct px_db;
/* `store` is borrowed; NULL for a database in memory alone. */
struct px_db *px_db_create(enum px_db_kind kind, struct px_store *store, size_t record_limit,
                           double size_limit, double cull_fraction);
void px_db_destroy(struct px_db *db);      /* posts what is not written yet */
bool px_db_stores(const struct px_db *db); /* false for --nodb */
/* False for a message so large that its buffers do not go into one row of the store. */
bool px_db_may_keep(const struct px_db *db, const struct px_msg *msg);
/* Valid until the next call of px_db_get, px_db_want or px_db_resize. */
struct px_record *px_db_get(struct px_db *db, struct px_span msg_id);
/* The record of that id, made if there is none. NULL when nothing is stored. May cull others. */
struct px_record *px_db_want(struct px_db *db, struct px_span msg_id);
/* After a change: it will be written. */
void px_db_changed(struct px_db *db, struct px_record *record);
/* Posts what changed, as far as the store has room. False when something is left. */
bool px_db_flush(struct px_db *db);
/* In quiet times: what had to stay in memory until it was written leaves it. False when it is not
 * written yet. */
bool px_db_tidy(struct px_db *db);
/* Takes a record that was read from the store. */
void px_db_adopt(struct px_db *db, struct px_record *record);
/* A part of `record` has grown from so many bytes to so many; may cull others. */
void px_db_resize(struct px_db *db, struct px_record *record, size_t before, size_t after);
void px_db_drop(struct px_db *db, const char *msg_id);
/* All records, in the order of their making, until `each` returns false. `each` may drop the
 * record it is given and must not change it. */
typedef bool px_record_fn(struct px_record *record, void *ctx);
void px_db_each(struct px_db *db, px_record_fn *each, void *ctx);
/* The same in steps of some `ms`, with other things in between but for another such scan: *row is 0
 * at first. False when it is at its end. */
PX_MUST_USE bool px_db_scan(struct px_db *db, int64_t *row, int64_t ms, px_record_fn *each,
                            void *ctx);
/* The same for the records of these ids, without looking at others: with a store in this order. */
void px_db_each_of(struct px_db *db, const char *const *ids, size_t count, px_record_fn *each,
                   void *ctx);
size_t px_db_count(const struct px_db *db); /* in memory */
size_t px_db_bytes(const struct px_db *db);
unsigned long px_db_lost(const struct px_db *db); /* left memory unwritten: the disk is too slow */

/* ---- engines (member.c) and unfinished tasks (job.c) ------------------------------- */

struct px_job;

struct px_member {
    int id;
    bool alive;
    unsigned features;
    json_t *names;                /* of features, as it said them; NULL for none */
    int64_t left_ms;              /* when it was unregistered */
    json_t *where;                /* {"host", "pid"}, as far as it said; NULL for neither */
    int64_t joined_ms;            /* when it was registered */
    char *cause;                  /* why it died, a phrase; NULL: it ended well, or not known */
    bool is_leaving, is_answered; /* dead, and clients have not been told; its direct requests have
                                   * been answered */
    char *running;                /* the request that it died with; NULL: none, or not known */
    int begun;                    /* items of that; 0: it has none, or not known */
    struct px_job *queue, *tasks; /* unfinished, from mux and from the task queue */
    size_t queue_count, task_count, completed;
    const char *adapt;      /* "<owner>:<set>" within its names: it comes and goes; or NULL */
    size_t broadcasts;      /* of such a one: under way */
    int64_t idle_ms;        /* of such a one: when it last had work, or was registered */
    bool is_retiring;       /* of such a one: it was told to end */
    unsigned probes;        /* on mux: how many it was sent, from 1 */
    bool is_doubtful;       /* to be probed soon */
    UT_hash_handle hh;      /* by id: all that ever registered */
    UT_hash_handle hh_uuid; /* by uuid: alive */
    char uuid[];
};

/* A request that was not answered yet. */
struct px_job {
    struct px_member *member; /* NULL: unassigned */
    bool mux;
    struct px_msg *asked;       /* engine, client | without buffers: sent again; or NULL */
    unsigned probe;             /* the last that the member was sent before it */
    struct px_job *prev, *next; /* of the member, or unassigned */
    UT_hash_handle hh;
    char msg_id[];
};

struct px_pending; /* a registration that waits for its heart */
struct px_scan;

struct px_hub {
    struct px_loop *loop;
    struct px_session *session;
    struct px_link *link;
    struct px_sockets *sockets;
    const struct px_settings *settings;
    int64_t registration_timeout_ms;
    struct px_member *by_id, *by_uuid;
    size_t dead;
    struct px_pending *pending, *pending_ids; /* by uuid, by id */
    int next_id;
    char listeners[PX_LISTENERS][PX_LISTENER_SIZE]; /* the last ones, in a ring */
    size_t listened;                                /* how many there were */
    int64_t since_us; /* when it was started anew: tasks of before are nobody's */
    struct px_job *jobs, *unassigned;
    size_t unassigned_count;
    struct px_history *finished; /* ids that were completed */
    struct px_db *db;
    struct px_store *store; /* NULL without --sqlitedb */
    struct px_timer *farewell, *sweep, *save, *tidy, *flush, *doubt, *scan_timer;
    struct px_scan *scans; /* under way, or waiting for the first to end */
    bool stopping, noted;  /* noted: traffic since the last look */
    unsigned long requests, refused, malformed, forged;
    size_t returning; /* requests that are on their way round through the traffic thread */
    unsigned long long request_bytes;
    int64_t started_ms;
    struct px_log_limiter limiter;
    struct px_dask *dask;   /* NULL until somebody asks */
    struct px_adapt *adapt; /* the same */
};

struct px_member *px_hub_member(const struct px_hub *hub, struct px_span uuid); /* alive */
struct px_member *px_hub_member_id(const struct px_hub *hub, int id);           /* alive or dead */
/* `cause` NULL: it has ended well, or nobody knows. */
void px_hub_unregister(struct px_hub *hub, struct px_member *member, const char *cause);
/* farewell.c: sends the client of a direct request an EngineError in the place of the engine's
 * reply; nothing if there is one. `record` may be NULL: nothing is known of it. */
void px_hub_answer(struct px_hub *hub, const struct px_record *record, const char *uuid,
                   const char *evalue);
/* The sentence for that; owned by the caller. */
char *px_hub_say_lost(const struct px_member *member, const char *msg_id);
/* Announces the end of one that is no longer alive, at once or a moment later. */
void px_hub_take_leave(struct px_hub *hub, struct px_member *member);
void px_hub_new_heart(struct px_hub *hub, struct px_span uuid);
/* Somebody subscribed to notifications: tells of the engines that have just registered. */
void px_hub_greet(struct px_hub *hub);
size_t px_hub_pending_count(const struct px_hub *hub);
/* Publishes a notification; `content` is taken, `parent` may be empty. */
void px_hub_notify(struct px_hub *hub, const char *type, json_t *content, struct px_span parent);
/* Adds "engines" {id: uuid} and "px_engines" {id: features} of those that are alive. */
void px_members_list(const struct px_hub *hub, json_t *out);
void px_hub_save(struct px_hub *hub); /* writes down who is registered */
PX_MUST_USE int px_members_restore(struct px_hub *hub, struct px_error *err);
void px_members_fini(struct px_hub *hub);

struct px_job *px_hub_job(const struct px_hub *hub, struct px_span msg_id);
/* Books a request as unfinished with `member`, or unassigned for NULL. */
void px_hub_book(struct px_hub *hub, struct px_span msg_id, struct px_member *member, bool mux);
void px_hub_unbook(struct px_hub *hub, struct px_job *job);
bool px_hub_is_ending(const struct px_hub *hub);
/* A record was changed: it is written to disk, if there is one, some time later. */
void px_hub_changed(struct px_hub *hub, struct px_record *record);
/* A request that comes back from the traffic thread (PX_ORDER_RETURN). */
void px_hub_query(struct px_hub *hub, const struct px_note *note);

/* ---- requests (request.c) -------------------------------------------------- */

struct px_request {
    struct px_hub *hub;
    const struct px_msg *msg;
    struct px_span type;
    json_t *content;
};

/* Sends a message as drafted but for its content, which is taken. Who is not there any more does
 * not get it. */
void px_hub_send(struct px_hub *hub, struct px_socket *socket, struct px_draft *draft,
                 json_t *content);
/* Sends a reply; `content` is taken. Its buffers are the frames of `buffers`, which may be NULL. */
void px_request_reply(const struct px_request *request, const char *type, json_t *content,
                      const struct px_msg *buffers);
/* The same with an error in place of content. */
void px_request_fail(const struct px_request *request, const char *type, const char *ename,
                     const char *evalue);
#define PX_NO_DATA "NoDB backend doesn't store any data. " /* of NoData */
/* hub_error KeyError: a key that must be there is not. */
void px_request_missing(const struct px_request *request, const char *key);
json_t *px_error_json(const char *ename, const char *evalue);

/* All records, or those of the keys of `ids` (scan.c): `each` as for px_db_each(), then `done`,
 * once, in this call or a later one. It answers the request, and frees `ctx`. Not `whole`: the
 * controller is to end. */
typedef void px_scan_done_fn(const struct px_request *request, void *ctx, bool whole);
void px_hub_scan(const struct px_request *request, json_t *ids, px_record_fn *each,
                 px_scan_done_fn *done, void *ctx);
/* The same for each of `ids`, in order, until `step` returns false, which has answered then, or
 * leaves it to `done`. */
typedef bool px_walk_fn(const struct px_request *request, const json_t *id, void *ctx);
void px_hub_walk(const struct px_request *request, json_t *ids, px_walk_fn *step,
                 px_scan_done_fn *done, void *ctx);
void px_scans_fini(struct px_hub *hub); /* answers those that have not ended */

typedef void px_request_fn(const struct px_request *request);
struct px_request_row {
    const char *type;
    px_request_fn *handle;
};
px_request_fn px_on_registration_request, px_on_unregistration_request; /* member.c */
px_request_fn px_on_status_request;                                     /* status.c */
/* What the traffic thread counts: answered to who asked, or logged. */
void px_status_note(struct px_hub *hub, const struct px_note *note);
px_request_fn px_on_become_dask_request, px_on_stop_distributed_request; /* dask.c */
void px_dask_destroy(struct px_dask *dask); /* ends the scheduler; NULL allowed */
px_request_fn px_on_adapt_request;          /* adapt.c */
void px_adapt_note(struct px_hub *hub, const struct px_note *note); /* of the traffic thread */
/* A member (NULL: none yet) has got or done work, or has come or gone. */
void px_adapt_worked(struct px_hub *hub, struct px_member *member);
json_t *px_adapt_list(const struct px_hub *hub); /* for status_reply; new reference */
void px_adapt_destroy(struct px_adapt *adapt);   /* NULL allowed */
px_request_fn px_on_why_request;            /* why.c */
void px_why_note(struct px_hub *hub, const struct px_note *note); /* the scheduler's answer */
extern const struct px_request_row px_query_requests[]; /* request.c; ends with an empty row */
extern const struct px_request_row px_db_requests[];    /* request_db.c */

/* Whether books are kept of tasks; false after an error reply of that type. */
PX_MUST_USE bool px_request_has_books(const struct px_request *request, const char *type);
/* Items of the value under `key`, new reference. NULL after hub_error: it is missing, cannot be
 * iterated, or has more than PX_MAX_IDS. */
json_t *px_request_items(const struct px_request *request, const char *key);
#define PX_MAX_IDS 1000000u
/* An item's text; empty for what is not a string, and that is nobody's id. */
struct px_span px_id_text(const json_t *id);
/* Those of a list that can be anybody's, each ended by a newline, for the scheduler; owned by the
 * caller. */
char *px_id_lines(const json_t *ids);
/* hub_error, or another reply, with an exception. */
void px_request_raise(const struct px_request *request, const char *type,
                      const struct px_exception *exception);
/* The same for a request whose answer the end of the controller has cut short. */
void px_request_fail_ending(const struct px_request *request, const char *type);
/* KeyError: its text is the repr of `what`. */
void px_request_fail_key(const struct px_request *request, const char *type, const char *what);
/* The engine named by an id or a uuid; NULL. */
struct px_member *px_hub_target(const struct px_hub *hub, const json_t *target);

/* ---- copies of the traffic (monitor.c) ------------------------------------- */

void px_monitor_note(struct px_hub *hub, const struct px_note *note);
/* A direct request to `member`: recorded and booked. */
void px_monitor_request(struct px_hub *hub, const struct px_note *note,
                        const struct px_header *header, struct px_member *member);
/* A reply to one: recorded, and struck off. */
void px_monitor_reply(struct px_hub *hub, const struct px_note *note);

/* ---- what was sent again (again.c) ------------------------------------------ */

/* Whether messages can be told from their copies, so that clients may send again. */
bool px_hub_sends_again(const struct px_hub *hub);
/* Whether the client of a request that its engine does not have may yet send it again; the engine
 * is asked once more then. */
bool px_hub_give_time(struct px_hub *hub, struct px_member *member, const struct px_job *job);
void px_again_direct_request(struct px_hub *hub, const struct px_note *note);
void px_again_direct_reply(struct px_hub *hub, const struct px_note *note);
void px_again_task_request(struct px_hub *hub, const struct px_note *note);

/* ---- the hub itself -------------------------------------------------------- */

/* `store` may be NULL. Everything is borrowed. */
struct px_hub *px_hub_create(struct px_sockets *sockets, struct px_link *link,
                             struct px_store *store, const struct px_settings *settings,
                             struct px_error *err);
void px_hub_destroy(struct px_hub *hub);
/* Takes back the engines of a controller that was killed, and with a store its unfinished tasks
 * (restore.c); before the traffic thread runs. */
PX_MUST_USE int px_hub_restore(struct px_hub *hub, struct px_error *err);
/* Finds out which of its tasks and direct requests the engine has. */
void px_hub_probe(struct px_hub *hub, struct px_member *member);
void px_hub_probe_direct(struct px_hub *hub, struct px_member *member); /* of its direct requests */
/* The engine of that uuid has answered what it was ever going to answer of what it was sent on mux
 * before this probe. */
void px_hub_probed(struct px_hub *hub, struct px_span uuid, unsigned probe);
/* Runs until SIGINT, SIGTERM or a shutdown_request. */
PX_MUST_USE int px_hub_run(struct px_hub *hub, struct px_error *err);
/* After the traffic thread has ended: looks at the last copies of the traffic. NULL allowed. */
void px_hub_drain(struct px_hub *hub);

#endif
