/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Private to cluster/client: what a client, a result and a task are made of, and who may touch
 * which field.
 *
 * Two kinds of threads meet here. The caller's threads build and sign requests (session_lock),
 * and read results and the engine table (lock). The client's own I/O thread owns the sockets,
 * the loop and the table of outstanding tasks; it takes `lock` once per batch of received
 * messages to file what came (px_flush). Callers reach it only through the doorbell.
 *
 * Lifetimes: a client is held by its caller and by each of its results; a result is held by its
 * caller, by each task in the I/O thread's table, and while it is on the touched list. Tasks
 * belong to their result.
 *
 *     phalanx_submit --command--> doorbell --> run_submit --> socket
 *     socket --> on_reply / on_output --> px_stage --> px_flush (lock) --> phalanx_next
 */
#ifndef PX_CLIENT_H
#define PX_CLIENT_H

#include "client/phalanx.h"
#include "loop/loop.h"
#include "wire/wire.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <sys/types.h>
#include <uthash.h>

/* ---- limits ------------------------------------------------------------- */

#define PX_CLIENT_TIMEOUT_MS 10000
#define PX_UNREAD_LIMIT ((size_t)64 << 20) /* output of one result that nobody reads */
/* A reply is here and its idle status is not: it may be lost, or belong to an earlier try. Each
 * further output starts the wait anew. */
#define PX_OUTPUT_GRACE_MS 2000
/* An engine is gone: its last replies may still be on their way through another socket. */
#define PX_DEATH_GRACE_MS 100
#define PX_DOUBT_MS 5000 /* for replies of what is not sent again, once the hub is there again */
#define PX_NAP_MS 1      /* see px_client_submit */
#define PX_HELD_MOST 128 /* submissions */
/* While somebody waits and nothing arrives, the hub is asked whether it lives. */
#define PX_PROBE_MS 3000
#define PX_PROBE_MISSES 10
#define PX_DEAF_MS 3000   /* for which requests wait when nothing but iopub is not connected */
#define PX_PROBE_DOUBTS 3 /* misses until it counts as out of reach */
#define PX_GOODBYE_MS 250 /* for last replies, once the controller has said that it ends */
/* Requests that are kept to be sent again, with what each costs beside its bytes. Beyond, the
 * oldest are kept without their buffers; and beyond PX_KEPT_MOST they are not. */
#define PX_KEPT_BYTES ((size_t)64 << 20)
#define PX_KEPT_MOST ((size_t)256 << 20)
#define PX_KEPT_EACH 1024
#define PX_DEAD_ENGINES 4096 /* remembered, so that late messages still find their engine's id */
#define PX_FEATURE_COUNT 32  /* of one engine */
#define PX_FEATURE_SIZE 32   /* longest name whose answer is remembered, and a 0 */

/* ---- engines: the table ---------------------------------------------------- */

struct px_engine {
    UT_hash_handle by_uuid, by_id;
    int id;
    bool alive;
    json_t *features; /* array of strings, or NULL */
    json_t *cause;    /* of its death, a string, or NULL */
    char uuid[PX_MAX_IDENTITY + 1];
};

/* Written by the I/O thread under the client's lock; read by it freely, by others under the lock.
 */
struct px_engines {
    struct px_engine *by_uuid, *by_id;
    size_t alive;
    uint64_t changes; /* grows with each engine that comes or goes */
};

/* `features` is borrowed and may be NULL. False when the uuid or the id cannot be right. */
bool px_engines_add(struct px_engines *engines, const char *uuid, int id, json_t *features);
/* False when there is no such engine alive. */
bool px_engines_remove(struct px_engines *engines, const char *uuid);
/* Why it died, as the hub says ("px_cause"): a string of one phrase; anything else is passed over.
 */
void px_engines_explain(struct px_engines *engines, const char *uuid, json_t *cause);
/* Makes the table equal to a connection_reply's content. True when an engine was removed. */
bool px_engines_sync(struct px_engines *engines, const json_t *content);
/* Alive or remembered; NULL when unknown. */
const struct px_engine *px_engines_find(const struct px_engines *engines, struct px_span uuid);
const struct px_engine *px_engines_find_id(const struct px_engines *engines, int id);
bool px_engines_alive(const struct px_engines *engines, int id);
bool px_engine_has(const struct px_engine *engine, const char *feature);
/* The ids alive of those that offer `feature` (NULL: of all), ascending; the caller frees. */
int *px_engines_ids(const struct px_engines *engines, const char *feature, size_t *count);
void px_engines_fini(struct px_engines *engines);

/* ---- waiting ------------------------------------------------------------------ */

/* One waiting thread, on its stack, in a list under the client's lock. A semaphore, because a
 * signal handler must end the wait. */
struct px_waiter {
    sem_t sem;
    int until;   /* enum phalanx_until, or PX_MORE; unused for engines */
    size_t seen; /* PX_MORE: events, see phalanx_wait_more */
    bool called; /* lock: a post is on its way, or there */
    struct px_waiter *next, *prev, *next_called;
};

#define PX_MORE (PHALANX_SHOWABLE + 1)

/* The deadline of a time-out from now; INT64_MAX for ever, 0 for not at all. */
int64_t px_deadline(int64_t timeout_ms);
/* Waits for a post. PHALANX_OK, _ETIME, _EINTR. */
enum phalanx_code px_waiter_sleep(struct px_waiter *waiter, int64_t deadline_ms);

/* ---- events --------------------------------------------------------------------- */

struct phalanx_message {
    struct phalanx_message *next;
    struct phalanx_event event; /* its strings point into `text` and `stream` */
    struct px_msg *msg;         /* holds the buffers; may be NULL */
    struct px_buf stream;       /* a stream's text */
    struct phalanx_buffer *buffers;
    char *parent; /* of late output; NULL otherwise */
    size_t bytes;
    char text[];
};

/* An event of `msg` (taken; may be NULL), with copies of its JSON frames. */
struct phalanx_message *px_event_create_new(enum phalanx_event_type type, struct px_msg *msg);
/* Whether it counts against PX_UNREAD_LIMIT. */
static inline bool px_event_is_output(const struct phalanx_message *message)
{
    return message->event.type == PHALANX_STREAM || message->event.type == PHALANX_OUTPUT;
}
/* One without a message, whose content is `content`. */
struct phalanx_message *px_event_create_text(enum phalanx_event_type type, const char *content);
/* A stream's; takes `text`'s memory. */
void px_event_set_stream(struct phalanx_message *message, const char *name, struct px_buf *text);
/* Appends the text of a raw JSON string (with its quotes). False when it is none. */
bool px_json_unescape(struct px_span raw, struct px_buf *out);

/* ---- calls by name (call.c): pure ------------------------------------------------- */

struct px_call {
    struct px_buf code, names;
    struct phalanx_buffer buffers[3]; /* of an apply; they point into the two above */
};
/* `args` and `kwargs` are JSON or NULL. */
void px_call_pack(struct px_call *call, const char *function, const char *args, const char *kwargs);
void px_call_fini(struct px_call *call);
/* The text in a pickle of one, of any protocol that writes it in binary. False otherwise: then
 * there is nothing of use in *text. */
bool px_unpickle_text(struct px_span pickle, struct px_span *text);

/* Fills `err` (may be NULL) and returns `code`. */
enum phalanx_code px_refuse(struct phalanx_error *err, enum phalanx_code code, const char *fmt, ...)
    PX_PRINTF(3, 4);

/* ---- tasks and results ------------------------------------------------------------ */

enum px_channel {
    PX_CHANNEL_QUERY,
    PX_CHANNEL_MUX,
    PX_CHANNEL_TASK,
    PX_CHANNEL_CONTROL,
    PX_CHANNEL_BROADCAST,
    PX_CHANNEL_NOTIFICATION,
    PX_CHANNEL_IOPUB,
    PX_CHANNEL_COUNT
};

struct px_task {
    UT_hash_handle hh; /* I/O thread: outstanding, by msg_id */
    struct phalanx_result *result;
    struct px_task *next,
        *prev;           /* I/O thread: replied, waiting for idle; earliest deadline first */
    int64_t deadline_ms; /* I/O thread */
    uint64_t idle_from, reply_from; /* I/O thread: hashes of the engine's session; 0: none yet */
    unsigned outputs, published; /* I/O thread: how many have come; were sent, as the reply says */
    size_t index;
    int engine;   /* lock: engine id, -1: not known yet */
    bool settled; /* lock: the reply has said it; output may be of an earlier try elsewhere */
    enum px_channel channel;
    bool listed, replied, waiting; /* I/O thread: in the table; has its reply; waits for idle */
    bool unanswered;               /* a message type that engines never reply to: ends with idle */
    bool coalesced;                /* one reply stands for all tasks of its broadcast */
    struct px_task *peer;          /* the next task of its broadcast, in a ring; NULL: of none */
    bool bereft;                   /* I/O thread: an engine of its coalesced broadcast died */
    bool doubted;                  /* I/O thread: its reply's connection was lost; not sent again */
    bool lent; /* its buffers are the caller's, who may change them: not kept once it is sent */
    /* I/O thread: what was sent, in case that it is lost, or what is sent later (io.c). */
    struct px_msg *request;
    bool unsent;
    struct px_task *kept_prev, *kept_next;
    char id[];
};

struct phalanx_result {
    struct phalanx_client *client;
    double submitted; /* when it was made, before anything of it is sent: seconds since 1970 */
    atomic_int refs;
    atomic_bool abandoned; /* the caller freed it, or wants no events */
    atomic_bool freed;     /* the caller freed it */
    atomic_size_t unread;  /* bytes of output that wait for phalanx_next */
    atomic_size_t dropped; /* bytes that were not kept */

    /* lock */
    struct px_task **tasks;
    size_t count, capacity;
    size_t replied, finished;
    size_t arrived; /* events, read or not */
    struct phalanx_message *head, *tail;
    bool losses; /* there may be some among them */
    struct px_waiter *waiters;
    bool closed;
    void (*done)(void *hint); /* NULL: none wanted, or called */
    void *done_hint;

    /* the thread that reads */
    struct phalanx_message *current;

    /* I/O thread: what came in this batch */
    struct {
        struct phalanx_message *head, *tail;
        size_t replied, finished;
        bool closed;
    } staged;
    struct phalanx_result *next_touched;
    bool touched;
};

struct phalanx_result *px_result_create(struct phalanx_client *client);
void px_result_unref(struct phalanx_result *result);
/* Lock held. Appends a task; it belongs to the result. */
void px_result_append(struct phalanx_result *result, struct px_task *task);
/* Lock held: moves what was staged into view, and puts those who waited for it before `called`. */
struct px_waiter *px_result_file(struct phalanx_result *result, struct px_waiter *called);
/* I/O thread, now and then: gives the system back what many tasks took that are gone. */
void px_results_tidy(struct phalanx_client *client);
/* Lock not held: else whoever wakes would wait for it at once. */
void px_waiters_wake(struct px_waiter *called);
/* Once the I/O thread has ended: nothing will come for this result. */
void px_result_close(struct phalanx_result *result);

/* ---- client -------------------------------------------------------------------------- */

/* What a caller's thread asks of the I/O thread. `run` frees the command; it is called with
 * `dead` set when the thread has ended, to let go of what the command holds. */
struct px_command {
    void (*run)(struct phalanx_client *client, struct px_command *command, bool dead);
    struct px_command *next; /* lock: held back */
};

struct phalanx_client {
    atomic_int refs;
    unsigned forks; /* of the process whose thread serves it: see client.c */
    char file[PX_PATH_SIZE];
    char session_id[PX_ID_SIZE];

    pthread_mutex_t session_lock;
    struct px_session *out; /* session_lock: builds and signs */

    pthread_mutex_t lock;
    struct px_engines engines;
    struct { /* the last answer of phalanx_feature for all engines */
        char feature[PX_FEATURE_SIZE];
        uint64_t changes;
        bool offered;
    } asked;
    struct px_waiter *engine_waiters;
    atomic_size_t tasks_held, most_held; /* by results; the most since memory was given back */
    atomic_bool untidy;                  /* most of those are gone */
    atomic_bool closed; /* no submissions any more: phalanx_close, or the controller's goodbye */
    bool stopping;      /* nothing is posted any more */
    struct {            /* submissions that wait for the end of the nap, in order */
        struct px_command *head, *tail;
        size_t count;
        bool napping; /* a timer will look */
        bool woken;   /* `wake` is on its way */
        struct px_command wake; /* as it was made: it may be under way twice */
    } held;

    struct px_doorbell *bell;
    pthread_t thread;
    bool running;

    /* I/O thread (before it starts: phalanx_connect) */
    void *context;
    struct px_loop *loop;
    struct px_socket *sockets[PX_CHANNEL_COUNT];
    int ports[PX_CHANNEL_COUNT]; /* that they lead to */
    struct px_session *in; /* verifies */
    struct px_task *tasks; /* outstanding, by msg_id */
    struct px_task *waiting;
    struct px_task *late; /* stands for those that have ended; NULL: their output is dropped */
    struct px_timer *grace_timer, *death_timer, *probe_timer, *nap_timer, *goodbye_timer,
        *doubt_timer;
    struct px_socket *monitors[PX_CHANNEL_COUNT]; /* of those that requests and output need */
    struct px_task *kept;                         /* tasks with their requests, the oldest first */
    struct px_task *kept_whole;                   /* the oldest of them that has buffers */
    size_t kept_bytes;
    int64_t era; /* which start of the cluster it is; 0: the controller does not know what it had */
    enum px_channel gathering; /* whose socket the last request went by */
    bool doubtful; /* a connection was lost: requests wait until the hub has answered */
    int64_t deaf_ms; /* since when iopub is not connected; 0: it is */
    char probe_id[PX_MAX_IDENTITY + 1];
    int probe_misses;
    int64_t probed_ms;
    /* I/O thread writes, any thread reads: since when the controller is out of reach, 0 when it is
     * not; and when what waits for it will be given up. */
    _Atomic int64_t away_ms, give_up_ms;
    bool gone;  /* the controller has said goodbye */
    bool heard; /* something verified has arrived since the last probe */
    struct phalanx_result *touched, *touched_last; /* in this batch, in the order of what came */
};

/* Whether this is a forked child: then nothing here may be touched, a lock least of all. */
bool px_client_inherited(const struct phalanx_client *client);
void px_client_ref(struct phalanx_client *client);
void px_client_unref(struct phalanx_client *client);

/* Connects every socket and learns the engines, on the caller's thread, before there is another
 * (dial.c). */
PX_MUST_USE int px_client_dial(struct phalanx_client *client, const struct phalanx_options *options,
                               struct px_error *err);

/*
 * Takes the command of a submission; the client is not closed. Lock held. While the I/O thread naps
 * (PX_NAP_MS after it has sent something) it is not woken for each: what comes meanwhile is sent
 * together, which saves three threads a wake-up a task. Ended early by `urgent`, by PX_HELD_MOST,
 * and by whoever waits (px_client_wake).
 */
void px_client_submit(struct phalanx_client *client, struct px_command *command, bool urgent);
/* What is held back is sent now. Lock held. */
void px_client_wake(struct phalanx_client *client);
/* Posts a command that carries nothing but a result (may be NULL); the reference goes along. False,
 * and it does not, when the thread is stopping. Lock held. */
bool px_client_post_result(struct phalanx_client *client, struct phalanx_result *result,
                           void (*run)(struct phalanx_client *, struct phalanx_result *));

/* ---- the I/O thread (io.c) --------------------------------------------------------------- */

/* Installs the socket watches on client->loop. */
void px_io_attach(struct phalanx_client *client);
void *px_io_main(void *client);
/* A task enters the table and its message (taken; NULL: another task's goes for it) is sent. */
void px_io_send(struct phalanx_client *client, struct px_task *task, struct px_msg *msg);
/* Files the batch: at the end of every callback. */
void px_io_flush(struct phalanx_client *client);
/* Sends a request, or keeps it until a connection is mended; where it may have to be sent again, a
 * copy is kept. False when it cannot be sent, and *msg is still the caller's. */
PX_MUST_USE bool px_kept_send(struct phalanx_client *client, struct px_task *task,
                              struct px_msg **msg);
/* Sends again, in the order of submission, what has not been answered. */
void px_kept_send_all(struct phalanx_client *client);
/* The same of one, for the reply that the controller has. False when it cannot be. */
PX_MUST_USE bool px_kept_ask_again(struct phalanx_client *client, struct px_task *task);
/* Its request is not needed any more. */
void px_kept_let_go(struct phalanx_client *client, struct px_task *task);
/* Sends what is held back. */
void px_io_send_held(struct phalanx_client *client);
/* Starts asking after the hub while somebody waits, and tidies up. */
void px_io_watch(struct phalanx_client *client, struct phalanx_result *unused);
/* From now on late output is filed to `result`, whose one task stands for those that have ended. */
void px_io_take_late(struct phalanx_client *client, struct phalanx_result *result);
/* Drops the tasks of a freed result. */
void px_io_forget(struct phalanx_client *client, struct phalanx_result *result);
/* Fails everything and ends the loop. */
void px_io_close(struct phalanx_client *client, struct phalanx_result *unused);

/* ---- bundles (bundles.c): I/O thread, and phalanx_connect before it starts ------------------- */

/* The controller's sockets are told that bundles are welcome, if it says that it takes them. */
void px_io_greet(struct phalanx_client *client, const json_t *connection_reply);
/* Sends a request behind all that were sent before, by whichever socket: what a view has pushed is
 * there before what it broadcasts. Takes *msg unless it fails. */
PX_MUST_USE enum px_sent px_io_post(struct phalanx_client *client, enum px_channel channel,
                                    struct px_msg **msg);
/* What was gathered goes out; for px_loop_settle. */
void px_io_settle(struct px_loop *loop, void *client);

/* ---- filing (file.c): I/O thread ------------------------------------------------------------ */

/* `msg` is located and verified, and belongs to the function. */
void px_file_reply(struct phalanx_client *client, struct px_msg *msg);
void px_file_output(struct phalanx_client *client, struct px_msg *msg);
/* A reply made here, and the task's end. `why` completes "Task '…' is lost: "; NULL: its engine
 * died. */
void px_file_lost(struct phalanx_client *client, struct px_task *task, const char *why);
/* Lets go of a task without a word; its result learns that it was closed if `closed`. */
void px_file_drop(struct phalanx_client *client, struct px_task *task, bool closed);
/* Lets go of the task that stands for those that have ended, if there is one. */
void px_file_drop_late(struct phalanx_client *client, bool closed);
/* Ends the tasks whose output is overdue; sets the next timer. */
void px_file_overdue(struct phalanx_client *client);

#endif
