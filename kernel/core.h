/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * core: private to the kernel core: requests, their queues, the shells, the outbox, comms, input.
 *
 * Locks: each queue, the outbox, the comms and the kernel have their own, held for a few
 * instructions. Under the kernel's lock that of a queue may be taken; no other two are held at
 * once.
 */
#ifndef PX_CORE_H
#define PX_CORE_H

#include "kernel.h"
#include "output.h"

#include <pthread.h>
#include <stdatomic.h>

/* ---- requests ---- */

struct px_parent {
    atomic_uint references;
    struct px_flow flows[2]; /* by enum px_stream; under the outbox's lock */
    unsigned published;      /* messages on iopub so far, statuses aside; service thread */
    int64_t shown_ms;        /* when the last output went to a client that cannot count; else 0 */
    size_t size;
    char header[]; /* JSON text */
};

struct px_request {
    struct px_request *next;
    struct px_msg *msg; /* NULL once replied: it went along for its identities */
    struct px_header header;
    enum px_channel channel;
    const struct px_handler *handler; /* NULL: nobody knows the type */
    struct px_shell *shell;           /* whose queue it went to; NULL: the service thread's */
    struct px_parent *parent;
    bool aborted; /* to be answered "aborted" when its turn comes */
    atomic_bool allow_stdin; /* threads of the language ask; its own says so as it begins */
    bool held; /* to be finished later, by its holder */
    char started[PX_DATE_SIZE];
};

void px_request_destroy(struct px_request *request);

struct px_parent *px_parent_ref(struct px_parent *parent); /* NULL gives NULL */
void px_parent_unref(struct px_parent *parent);

/* ---- queue of requests: the service thread pushes, the interpreter thread takes ---- */

/* How long after a failure a request that was sent before it may still arrive. */
#define PX_ABORT_WINDOW_MS 100

struct px_queue {
    pthread_mutex_t lock;
    struct px_request *first, **last;
    bool asleep; /* the taker has seen an empty queue; the next push rings */
    bool stopped;
    int fd;                        /* eventfd */
    int64_t abort_until_ms;        /* execute_requests dated before abort_date that arrive */
    char abort_date[PX_DATE_SIZE]; /* earlier than this are aborted */
};

PX_MUST_USE int px_queue_init(struct px_queue *queue, struct px_error *err);
void px_queue_fini(struct px_queue *queue);
void px_queue_push(struct px_queue *queue, struct px_request *request);
/* The oldest request, or NULL; after NULL the next push or stop rings. */
struct px_request *px_queue_take(struct px_queue *queue);
/* Whether a request waits to be taken. */
bool px_queue_waits(struct px_queue *queue);
void px_queue_stop(struct px_queue *queue);
bool px_queue_stopped(struct px_queue *queue);
/* Marks every execute_request that was sent before now as aborted. */
void px_queue_abort_executes(struct px_queue *queue);
/* Unlinks and returns the requests that `match` accepts, in order. */
struct px_request *px_queue_remove(struct px_queue *queue,
                                   bool (*match)(const struct px_request *request, void *ctx),
                                   void *ctx);

/* ---- input(): questions to the user ---- */

struct px_question;

/* Whether a person may be at the other end, as of all a kernel's requests and of few of an
 * engine's. */
bool px_has_front_end(const struct px_kernel *kernel, const struct px_request *request);
/* Any thread of the language: host.input, which see. */
PX_MUST_USE int px_host_input(void *ctx, struct px_parent *parent, const struct px_ask *ask,
                              struct px_buf *line, struct px_error *err);
/* With the kernel's lock: those who wait for an answer look around; NULL: of whatever request. */
void px_input_wake(struct px_kernel *kernel, const struct px_parent *parent);
/* Service thread: the input_request of that number was sent with this msg_id. */
void px_input_sent(struct px_kernel *kernel, uint64_t number, const char *id);
/* Service thread: input_reply, to the question that it names as its parent; where it names none, to
 * the first that waits. */
void px_input_answered(struct px_kernel *kernel, const struct px_request *reply);

/* ---- shells: a queue each, and the thread that serves it ---- */

#define PX_MOST_SUBSHELLS 64

struct px_shell {
    struct px_shell *next;
    struct px_kernel *kernel;
    char id[PX_ID_SIZE]; /* empty: the main shell, on the interpreter thread */
    struct px_queue queue;

    /* under the kernel's lock */
    pthread_t thread;
    struct px_request *serving; /* its own thread reads it without */
    int64_t began_ns;           /* when it began to serve that */
    bool started, ended;        /* the thread */
    bool leaving;               /* deleted: no longer listed, its thread is to end */
    bool running;               /* a request */
    bool hidden;                /* the debugger's: front ends have not made it */
    struct px_parent *current;  /* of the request that runs, or ran last */
};

PX_MUST_USE int px_shell_init(struct px_shell *shell, struct px_kernel *kernel,
                              struct px_error *err);
void px_shell_fini(struct px_shell *shell);
/* Serves requests until the queue is stopped. Its own thread. */
void px_shell_serve(struct px_shell *shell);
/* Its own thread: a request has been served. */
void px_shell_rest(struct px_shell *shell);
/* Service thread: the shell that a request names, the main one if none; NULL: there is no such. */
struct px_shell *px_shell_of(struct px_kernel *kernel, const struct px_request *request);
/* Service thread: the one for debug requests, made when there is none; NULL: it cannot be. */
struct px_shell *px_shell_of_debugger(struct px_kernel *kernel);
/* Any thread: the shell that this thread serves, else the main one. With the kernel's lock. */
struct px_shell *px_shell_here(struct px_kernel *kernel);
/* Any thread, with the kernel's lock: interrupts the request that runs, if one does. */
void px_shell_interrupt(struct px_shell *shell);
/* Interpreter thread, before the language ends: ends the subshells, but for those that sit in user
 * code and do not listen; and all questions. */
void px_subshells_end(struct px_kernel *kernel);
/* True when such a one still uses the kernel, which then must not be freed. */
bool px_subshells_left(struct px_kernel *kernel);

/* ---- outbox: the interpreter's threads post, the service thread takes ---- */

/* Statuses of a request that ran on the interpreter thread, and the idle of one that ran elsewhere.
 */
enum px_mark { PX_UNMARKED, PX_BUSY, PX_IDLE, PX_IDLE_ASIDE };

struct px_item {
    struct px_item *next;
    enum px_channel channel;
    const char *type;
    const char *topic; /* borrowed from the kernel; NULL: `own_topic` or identities */
    char *own_topic;
    struct px_msg *request;   /* whose identities a reply goes to */
    struct px_parent *parent; /* NULL: {} */
    struct px_buf metadata, content;
    struct px_buffer *buffers; /* malloc'ed array */
    size_t buffer_count;
    int stream;     /* enum px_stream while `content` is bare text; else -1 */
    int64_t due_ms; /* of a stream */
    bool patient;   /* of a stream: text of the other one behind it does not make it due */
    enum px_mark mark;
    bool quiet;        /* busy, of a request that can do without (hush.c) */
    uint64_t question; /* of an input_request (input.c) */
};

struct px_item *px_item_create(enum px_channel channel, const char *type, struct px_parent *parent);
void px_item_destroy(struct px_item *item);
void px_item_drop_buffers(struct px_item *item);
/* Receivers drop what does not fit into a message, without a word to those who wait for it: an
 * error, or a line of output, takes its place and tells them. Whether it did. */
bool px_item_bound(struct px_item *item);

struct px_outbox {
    pthread_mutex_t lock;
    pthread_cond_t room;
    struct px_item *first, *tail;
    struct px_item *growing[2]; /* by enum px_stream: the last ones, with nothing but text of the
                                 * same request behind them; NULL: none */
    size_t bytes;
    bool asleep;
    bool wake;       /* to be written to `fd` when the lock is given up */
    int64_t look_ns; /* the service thread looks no later than this, rung or not; 0: no promise */
    bool open;       /* false: nobody waits for room any more */
    int fd;          /* eventfd */
    struct px_output_config limits;
    struct px_flow orphans[2]; /* of text that belongs to no request */
    struct px_flood *floods;   /* that hold text */
    struct px_spool *spool;    /* NULL: what is left out is lost, which is said */
};

PX_MUST_USE int px_outbox_init(struct px_outbox *outbox, const struct px_output_config *limits,
                               struct px_error *err);
void px_outbox_fini(struct px_outbox *outbox);
enum px_post {
    PX_POST_RING,
    PX_POST_QUIET, /* something that rings follows at once, or the service thread looks by itself */
    PX_POST_LAZY,  /* rings unless the service thread has promised to look soon */
    PX_POST_WAIT,  /* blocks while the outbox is full; rings */
};
/* Takes `item`. */
void px_outbox_post(struct px_outbox *outbox, struct px_item *item, enum px_post how);
/*
 * Adds text to the last item when it is the same stream of the same parent, else makes a new item
 * (outbox.c tells when not).
 * What is too much at a time is held. Never blocks: returns false, and has taken nothing, when the
 * reader of the outbox is far behind, unless the text `must` be taken.
 */
#define PX_STREAM_MAX (256u << 10)
bool px_outbox_stream(struct px_outbox *outbox, struct px_parent *parent, enum px_stream which,
                      const char *topic, struct px_span text, bool must);
/* Blocks until px_outbox_stream() may take text again. */
void px_outbox_wait(struct px_outbox *outbox);
/* The request ends: what of its text is held goes out, or is said to be left out. */
void px_outbox_finish(struct px_outbox *outbox, struct px_parent *parent);
void px_flood_destroy(struct px_flood *flood); /* NULL allowed */
/* The oldest item if it is due (or `all`), else NULL with *delay_ms until it is, -1 for none. */
struct px_item *px_outbox_take(struct px_outbox *outbox, bool all, int64_t *delay_ms);
/* Service thread: it will look within `delay_ms`, rung or not; < 0: when it is rung. */
void px_outbox_promise(struct px_outbox *outbox, int64_t delay_ms);
/* Makes `fd` quiet: somebody who cannot take anything now will do so soon. */
void px_outbox_quiet(struct px_outbox *outbox);
/* Lets writers go that wait for room. */
void px_outbox_close(struct px_outbox *outbox);

/* ---- comms that are open, so that comm_info is answered while the interpreter is busy ---- */

struct px_comms;
struct px_comms *px_comms_create(void);
void px_comms_destroy(struct px_comms *comms);
/* Follows comm_open and comm_close of either side; other publications change nothing. */
void px_comms_follow(struct px_comms *comms, enum px_publication what, struct px_span content);
/* Appends {"<id>": {"target_name": "…"}, …}; `target` NULL for all. */
void px_comms_list(struct px_comms *comms, const char *target, struct px_buf *out);

/* ---- kernel ---- */

struct px_kernel {
    struct px_kernel_config config;
    char *topics[PX_TOPIC_COUNT];
    char *info;     /* kernel_info_reply */
    char *connect;  /* connect_reply */
    char *metadata; /* of a message that has no other */
    struct px_interp_host host;
    atomic_int engine_id;
    struct px_shell main;
    struct px_outbox outbox;
    struct px_capture *capture; /* NULL: descriptors are left alone */
    struct px_comms *comms;
    struct px_log_limiter refused; /* service thread */
    struct abort_row *aborts;      /* ids to abort that have not arrived; service thread */
    long unfinished;               /* requests queued whose idle was not sent; service thread */
    bool shown;                    /* busy was sent, idle was not; service thread */
    int look_ms;                   /* until the service thread looks for the next busy */
    int tells;                     /* of a slow reader, still to be made; service thread */
    int64_t told_ms;               /* of one, last; 0: never; service thread */
    int64_t full_ms;               /* since when one has no room; 0: all have; service thread */
    struct px_msg **held;          /* for iopub, while there is no room; service thread */
    size_t held_count, held_size;
    struct px_parent *showing; /* request of the main shell that is seen to run; service thread */
    struct px_item *withheld;  /* hush.c: busy, then execute_input; service thread */
    int64_t hush_ms;           /* until when, monotonic */
    struct px_parent *hushed;  /* hush.c: whose idle is left out; service thread */

    pthread_mutex_t lock;
    /* under lock */
    void *self;              /* the language's instance; NULL before and after px_kernel_run */
    pthread_cond_t changed;  /* `self`, or a subshell's `ended` */
    struct px_shell *shells; /* subshells, in order of creation */
    bool closed;             /* no more of them, and no questions */
    struct px_question *questions; /* open ones, in order of asking (input.c) */
    uint64_t last_question;

    atomic_int next_count;        /* execution count of the next cell */
    _Atomic(int64_t) leave_ms;    /* the user has asked to exit: then it ends; 0 */
    struct px_consumption *usage; /* what the last usage_request measured; service thread */
};

extern const struct px_handler px_core_handlers[];

px_handler_fn px_on_execute_request, px_on_query, px_on_comm;
px_handler_fn px_on_kernel_info_request, px_on_connect_request, px_on_comm_info_request;
px_handler_fn px_on_interrupt_request, px_on_shutdown_request;
px_handler_fn px_on_usage_request, px_on_debug_request;

/* hush.c. Whether the request can do without busy and idle. */
bool px_hush_asked(const struct px_request *request);
/* True when it has taken the item, which is not sent (yet). */
bool px_hush(struct px_kernel *kernel, struct px_item *item);
/* There is no further item now: how long what is withheld may stay so, in milliseconds. 0: nothing
 * is, or it went out. */
int64_t px_hush_left(struct px_kernel *kernel);
/* What is withheld goes out. */
void px_hush_end(struct px_kernel *kernel);
void px_hush_fini(struct px_kernel *kernel);

/* slow.c. Says what is due of a slow reader. */
void px_slow_reader_tell(struct px_kernel *kernel);
/* Sends a message on iopub, behind those that are held. Takes it. */
void px_iopub_send_new(struct px_kernel *kernel, struct px_msg *msg);
/* Sends what is held, as far as there is room. Whether nothing is left. */
bool px_held_send(struct px_kernel *kernel);
void px_held_fini(struct px_kernel *kernel);

/* Interpreter thread, before a reply: output of the request must not come after it. */
void px_kernel_settle(struct px_kernel *kernel, struct px_request *request);
/* Statuses busy and idle around the handler or the abortion of a request, on the thread that serves
 * it; takes it. */
void px_kernel_serve(struct px_kernel *kernel, struct px_request *request);
/* Fills kernel->host. */
void px_host_init(struct px_kernel *kernel);
/* A status message. */
struct px_item *px_state_item(const struct px_kernel *kernel, struct px_parent *parent,
                              const char *state);
/* Builds, signs and sends, on the service thread; takes `item`. */
void px_kernel_send(struct px_kernel *kernel, struct px_item *item);
/* The request's message goes to its reply: whoever asks for input from now on finds none. */
void px_request_give_msg(struct px_kernel *kernel, struct px_request *request,
                         struct px_item *reply);
/* Sends now on the service thread, or posts, as the request's place says; takes `item`. */
void px_kernel_emit(struct px_kernel *kernel, const struct px_request *request,
                    struct px_item *item);
/* An iopub message of the request; `content` is copied. */
void px_kernel_publish(struct px_kernel *kernel, const struct px_request *request, const char *type,
                       enum px_topic topic, struct px_span content);
/* Reply to execute, apply, or anything aborted: content, and a task's metadata. */
void px_reply_task(struct px_kernel *kernel, struct px_request *request, const char *status,
                   struct px_outcome *outcome, struct px_span content);
/* The "aborted" reply. */
void px_reply_aborted(struct px_kernel *kernel, struct px_request *request);
/* True when an abort_request named this request before it came; forgets the id. */
bool px_abort_awaits(struct px_kernel *kernel, const struct px_request *request);
void px_aborts_fini(struct px_kernel *kernel);
/* Statuses and reply "aborted", now and from the service thread: the request's turn may be behind
 * one that runs for an hour. Takes it. */
void px_kernel_serve_aborted(struct px_kernel *kernel, struct px_request *request);

#endif
