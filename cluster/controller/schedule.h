/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * schedule: which task runs on which engine, when. Pure: no sockets, no clock, no threads.
 *
 * Events go in (a task was submitted, an engine came or went, a reply arrived, time passed),
 * actions come out through three functions (send, fail, release). The rules are those of
 * ipyparallel's TaskScheduler: `after` and `follow` dependencies, targets, retries on other
 * engines, time-outs while waiting, a high-water mark an engine.
 *
 * In eleven files: history.c (how every task ended, in a few bytes each), depend.c (dependency
 * sets), scheme.c (engines by load and the five choosers), schedule.c (the events), task_queue.c
 * (who gets which task), schedule_named.c (targets), task_graph.c (dependencies), schedule_ahead.c
 * (short tasks in batches), schedule_abort.c (what clients take back), schedule_why.c (what keeps a
 * task), schedule_restore.c (tasks of a controller that was killed).
 *
 * A task is  blocked   until its `after` is met and its `follow` can be decided,
 *            waiting   until an engine that may run it has room,
 *            running   on one engine until its reply,
 * and then forgotten but for its fate. The invariant between events: no waiting task could
 * run on an engine that has room.
 */
#ifndef PX_SCHEDULE_H
#define PX_SCHEDULE_H

#include "base/base.h"

#include <uthash.h>

#define PX_MAX_MSG_ID 255
#define PX_MAX_DEPENDENCIES 100000 /* ids in one `after` or `follow` */
#define PX_MAX_TARGETS 65536       /* engines named by one task */
#define PX_MAX_RETRIES 1000000
#define PX_HISTORY_BYTES (8u << 20) /* fates of some 1,300,000 tasks */

/* What engines may offer beyond the common protocol: bits of px_worker.features. */
#define PX_FEATURE_PICKLE5 1u
#define PX_FEATURE_RECALL 2u
#define PX_FEATURE_SETS 4u  /* of these two */
#define PX_FEATURE_AGAIN 4u /* sends its last replies again; not for the schedule, as the next */
#define PX_FEATURE_ADAPT 8u /* comes and goes as there is work */

/* ---- history: the fate of every task --------------------------------------- */

enum px_fate { PX_UNKNOWN, PX_UNFINISHED, PX_SUCCEEDED, PX_FAILED };

/*
 * Message ids are "<session>_<pid>_<n>" with n counting up: a block of 64 neighbours costs some
 * 350 bytes. Other ids are kept as well, at the price of a block each. Beyond `most_bytes` the
 * oldest blocks without an unfinished task are forgotten.
 */
struct px_history;
struct px_history *px_history_create(size_t most_bytes);
void px_history_destroy(struct px_history *history);
/* `engine` is the serial number of the engine it ran on, 0 for none. */
void px_history_set(struct px_history *history, struct px_span msg_id, enum px_fate fate,
                    uint32_t engine);
enum px_fate px_history_get(const struct px_history *history, struct px_span msg_id,
                            uint32_t *engine);
size_t px_history_bytes(const struct px_history *history);

/* ---- depend: a set of ids and what is asked of them ------------------------ */

struct px_depend {
    char **ids; /* sorted, no duplicates */
    size_t count;
    bool all, success, failure;
};

/*
 * Parses the JSON value of `after` or `follow`: null, a string, a list of strings, or
 * {"dependencies": [...], "all", "success", "failure"}. An absent value (NULL data) is empty.
 * PX_EINVAL, PX_ELIMIT; `out` is then empty.
 */
PX_MUST_USE int px_depend_parse(struct px_span json, struct px_depend *out, struct px_error *err);
void px_depend_fini(struct px_depend *depend);
/* Whether a task that ended so counts towards the set. */
bool px_depend_accepts(const struct px_depend *depend, enum px_fate fate);

/* Parses a JSON list of strings (task targets), sorts it and drops duplicates; null and absent are
 * empty. */
PX_MUST_USE int px_names_parse(struct px_span json, size_t most, char ***names, size_t *count,
                               struct px_error *err);
void px_names_free(char **names, size_t count);

/* ---- scheme: engines by load ----------------------------------------------- */

/* An engine as the scheduler sees it. The balance owns the fields down to `newer`. */
struct px_worker {
    unsigned load;                   /* tasks it was given and has not answered */
    size_t slot;                     /* place among the open workers, or PX_NO_SLOT */
    int64_t stamp;                   /* grows each time it goes to the end of the line */
    struct px_worker *prev, *next;   /* workers of the same load */
    struct px_worker *older, *newer; /* open workers, least recently used first */

    uint32_t serial;   /* from 1, never given again */
    unsigned features; /* bits: what it understands beyond the common protocol */
    bool alive;
    unsigned probes; /* how many it was sent, from 1 */
    void *state;     /* schedule.c's own */
    UT_hash_handle hh;
    size_t uuid_size;
    char uuid[];
};
#define PX_NO_SLOT SIZE_MAX

struct px_balance;
/* `hwm`: tasks an engine may have at a time; 0 for any number. `seed` feeds the random schemes. */
struct px_balance *px_balance_create(unsigned hwm, uint64_t seed);
void px_balance_destroy(struct px_balance *balance); /* does not free the workers */
void px_balance_add(struct px_balance *balance, struct px_worker *worker); /* to the front */
void px_balance_remove(struct px_balance *balance, struct px_worker *worker);
void px_balance_take(struct px_balance *balance, struct px_worker *worker);    /* load + 1 */
void px_balance_release(struct px_balance *balance, struct px_worker *worker); /* load - 1 */
unsigned px_balance_hwm(const struct px_balance *balance);
/* Workers with room that have all these features; any order. */
size_t px_balance_open(const struct px_balance *balance, unsigned needs);
struct px_worker *px_balance_at(const struct px_balance *balance, unsigned needs, size_t index);
static inline bool px_worker_open(const struct px_worker *worker)
{
    return worker->slot != PX_NO_SLOT;
}

/* What a scheme chooses from: open workers that have what the task needs, or `some` of them. Never
 * empty. */
struct px_pool {
    struct px_balance *balance;
    unsigned needs;
    struct px_worker **some; /* NULL: all of these */
    size_t count;
};

struct px_scheme {
    const char *name;
    const char *help;
    struct px_worker *(*choose)(const struct px_pool *pool);
};
const struct px_scheme *px_scheme_find(const char *name); /* NULL: none of that name */
bool px_scheme_is_pure(const char *name); /* of none: relay.c deals tasks, and keeps no books */
/* The i-th scheme or NULL; the first is the default. */
const struct px_scheme *px_scheme_at(size_t index);

/* ---- schedule -------------------------------------------------------------- */

struct px_schedule;

enum px_why {
    PX_WHY_INVALID,
    PX_WHY_IMPOSSIBLE,
    PX_WHY_TIMEOUT,
    PX_WHY_ENGINE_DIED,
    PX_WHY_ABORTED,
    PX_WHYS
};

struct px_schedule_ops {
    /* Send the task to this engine now. The payload stays with the schedule. */
    void (*send)(void *ctx, const char *msg_id, void *payload, const struct px_worker *to);
    /* The task ends without a result; `on` is the engine that died, otherwise NULL. */
    void (*fail)(void *ctx, const char *msg_id, void *payload, enum px_why why,
                 const struct px_worker *on);
    /* The schedule no longer holds the payload: called once for each task, last. */
    void (*release)(void *ctx, void *payload);
    /* Ask the engine to hand back those of these tasks that it has not begun. They stay on its
     * books until it answers. NULL when tasks are never sent ahead. */
    void (*recall)(void *ctx, const struct px_worker *from, const char *const *msg_ids,
                   size_t count);
    /* The task goes out again, maybe to an engine that had it: no engine takes the same message
     * twice. NULL when that does not matter. */
    void (*renew)(void *ctx, void *payload);
};

struct px_schedule *px_schedule_create(const struct px_schedule_ops *ops, void *ctx,
                                       const struct px_scheme *scheme, unsigned hwm, uint64_t seed);
void px_schedule_destroy(struct px_schedule *schedule); /* releases what is left */
/*
 * Lets engines that hand tasks back when asked hold a few more than one, while tasks are very short
 * (schedule_ahead.c). For a high-water mark of one that nobody has asked for.
 */
void px_schedule_allow_ahead(struct px_schedule *schedule);

/*
 * Time in microseconds on any steady scale: says what time it is, ends what waited too long,
 * recalls what was sent ahead in vain.
 */
void px_schedule_tick(struct px_schedule *schedule, int64_t now_us);
/* When the next of these is due; -1 for never. */
int64_t px_schedule_deadline(const struct px_schedule *schedule);

/* What is asked of a task. Everything is taken: a spec is empty afterwards. */
struct px_task_spec {
    struct px_depend after, follow;
    char **targets; /* engine uuids, sorted; NULL for any */
    size_t target_count;
    int64_t timeout_us; /* 0: none */
    int retries;
    unsigned needs; /* features that its engine must have */
};
void px_task_spec_fini(struct px_task_spec *spec);

/* Whether a task of that id is unfinished. */
bool px_schedule_holds(const struct px_schedule *schedule, struct px_span msg_id);
/*
 * Submits a task, of an id that the schedule does not hold. The payload belongs to the schedule
 * until it is released, which may be at once.
 */
void px_schedule_submit(struct px_schedule *schedule, struct px_span msg_id,
                        struct px_task_spec *spec, void *payload);

/* The task's client takes it back: it ends if it waits, or when it comes, or when its engine does
 * not end it. Call px_schedule_run() after the last of several. */
void px_schedule_abort(struct px_schedule *schedule, struct px_span msg_id);

/* False when an engine of that uuid is there already. */
bool px_schedule_engine_up(struct px_schedule *schedule, struct px_span uuid, unsigned features);
/* The engine gets nothing more; replies that are on their way are still welcome. */
void px_schedule_engine_down(struct px_schedule *schedule, struct px_span uuid);
/*
 * Nothing more can come from it: its tasks are tried elsewhere or fail. `running` is the id of what
 * it began last, NULL when that is not known: what was sent ahead behind it waits on.
 */
void px_schedule_engine_lost(struct px_schedule *schedule, struct px_span uuid,
                             const char *running);

enum px_reply { PX_REPLY_OK, PX_REPLY_ERROR, PX_REPLY_REJECTED, PX_REPLY_RECALLED };
enum px_outcome {
    PX_DELIVER, /* the client is to have this reply; the task is finished */
    PX_SWALLOW, /* the task goes to another engine, or waits again */
    PX_STALE,   /* no such task is running there: nothing was changed */
};
/*
 * An engine replied. Only the books are changed; call px_schedule_run() after the reply was
 * delivered, so that a client hears of a task before its successors start. `took_us` is how long
 * the engine says it took, -1 when it does not.
 */
PX_MUST_USE enum px_outcome px_schedule_reply(struct px_schedule *schedule, struct px_span uuid,
                                              struct px_span msg_id, enum px_reply reply,
                                              int64_t took_us);
void px_schedule_run(struct px_schedule *schedule);

/* How many tasks wait that an engine could take that is not there yet. */
size_t px_schedule_wanting(const struct px_schedule *schedule);
/* As px_schedule_engine_down(), unless the engine has a task, or one that waits for others may yet
 * ask for an engine by what ran there. Whether it was done. */
PX_MUST_USE bool px_schedule_retire(struct px_schedule *schedule, struct px_span uuid);

/* ---- what a former controller left: schedule_restore.c ---- */

/* A task that has ended, at the engine of this uuid if it is still there. */
void px_schedule_remember(struct px_schedule *schedule, struct px_span msg_id, bool succeeded,
                          struct px_span uuid);
/* How it ended, or that it has not. */
enum px_fate px_schedule_fate(const struct px_schedule *schedule, struct px_span msg_id);
/* As px_schedule_submit(), of a task that the engine has been sent before. False, with nothing
 * taken, when there is no such engine. */
PX_MUST_USE bool px_schedule_adopt(struct px_schedule *schedule, struct px_span msg_id,
                                   struct px_task_spec *spec, void *payload, struct px_span uuid);
/* The engine is about to be sent a probe: its number, or 0 when there is no such engine. */
unsigned px_schedule_probe(struct px_schedule *schedule, struct px_span uuid);
/* The engine has answered that probe: what it was sent before and has not answered, it never got,
 * or its reply was lost. That goes to any. Returns how many. */
size_t px_schedule_reclaim(struct px_schedule *schedule, struct px_span uuid, unsigned probe);

struct px_schedule_stats {
    size_t engines, blocked, waiting, running;
    size_t submitted, succeeded, failed, rejected;
    size_t why[PX_WHYS];    /* of those that failed: without having been answered */
    size_t ahead, recalled; /* tasks sent to an engine that was busy, tasks it handed back */
    size_t history_bytes;
};
#define PX_MOST_COUNTED 1000 /* of requests in front of one that somebody asks about */
/* Appends a JSON object that says why the task of that id has not ended (schedule_why.c). */
void px_schedule_why(const struct px_schedule *schedule, struct px_span msg_id, struct px_buf *out);
void px_schedule_stats(const struct px_schedule *schedule, struct px_schedule_stats *out);

#endif
