/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * kernel: what a Jupyter kernel does with messages, without sockets.
 *
 * Two threads share a kernel. The service thread owns the sockets and the session: it feeds
 * located and verified messages to px_kernel_receive() and sends what the kernel gives back
 * through `send`. The interpreter thread (the process's main thread) sits in px_kernel_run()
 * and calls the language. Requests go one way through a queue, messages the other way through
 * an outbox; each has a descriptor that wakes its reader.
 *
 *     service thread                                interpreter thread
 *     px_kernel_receive ── queue of requests ─────▶ px_kernel_run ─▶ language
 *     px_kernel_service ◀─ outbox of messages ───── its output, replies, statuses
 *
 * A subshell is one more thread like the second, with a queue of its own (shells.c).
 *
 * A handler table says for each message type which thread answers it. What the service
 * thread answers (kernel_info, interrupt, shutdown, abort, comm_info) is answered while the
 * interpreter is busy, sleeps, or has not started. Statuses busy and idle surround every
 * request and are sent here, never by a handler.
 *
 * Reference: "Messaging in Jupyter" 5.5.
 */
#ifndef PX_KERNEL_H
#define PX_KERNEL_H

#include "base/base.h"
#include "interp/interp.h"
#include "wire/wire.h"

struct json_t; /* jansson's */

enum px_channel { PX_SHELL, PX_CONTROL, PX_STDIN, PX_IOPUB, PX_CHANNEL_COUNT };

struct px_kernel;
struct px_request;

/* ---- handlers ------------------------------------------------------------ */

enum px_place { PX_ON_SERVICE, PX_ON_INTERPRETER };

typedef void px_handler_fn(struct px_kernel *kernel, struct px_request *request);

/* One message type. To add a message, write on_<type> and a row. */
struct px_handler {
    const char *type;
    const char *reply; /* type of the reply; NULL: there is none */
    enum px_place place;
    px_handler_fn *fn;
    int arg; /* for a function that serves several rows: px_request_arg() */
};

/* Rows that only some kernels offer; they stand in the tables of those. */
px_handler_fn px_on_apply_request, px_on_clear_request, px_on_abort_request;
/* Hands queued requests back to the scheduler that sent them: {"msg_ids": [...]}. */
px_handler_fn px_on_recall_request;
px_handler_fn px_on_create_subshell_request, px_on_delete_subshell_request;
px_handler_fn px_on_list_subshell_request;

/* What a handler may ask. Spans are valid until the reply is given. */
struct px_span px_request_content(const struct px_request *request);
struct px_span px_request_metadata(const struct px_request *request);
struct px_span px_request_id(const struct px_request *request); /* msg_id */
struct px_span px_request_type(const struct px_request *request);
int px_request_arg(const struct px_request *request);

/* Gives the reply, once, on the handler's thread; afterwards the request's spans are gone. */
void px_request_reply(struct px_kernel *kernel, struct px_request *request, struct px_span content);
/* The same for a refusal: {"status": "error", "ename", "evalue", "traceback": []}. */
void px_request_refuse(struct px_kernel *kernel, struct px_request *request, const char *ename,
                       const char *fmt, ...) PX_PRINTF(4, 5);
/* For a handler on the service thread that cannot answer yet: the request is the caller's, who
 * replies later, then gives it to px_request_finish, which publishes idle. */
void px_request_hold(struct px_request *request);
void px_request_finish(struct px_kernel *kernel, struct px_request *request);

/* ---- configuration -------------------------------------------------------- */

enum px_topic {
    PX_TOPIC_STATUS,
    PX_TOPIC_EXECUTE_INPUT,
    PX_TOPIC_STDOUT,
    PX_TOPIC_STDERR,
    PX_TOPIC_DISPLAY,
    PX_TOPIC_RESULT,
    PX_TOPIC_ERROR,
    PX_TOPIC_SHUTDOWN,
    PX_TOPIC_DATA,
    PX_TOPIC_DEBUG,
    PX_TOPIC_COUNT
};

/*
 * Bounds of a request's text output, each stream for itself: `burst_kb` KiB may go at once, then
 * `rate_kb` KiB a second (a line's end counts twice, as in JSON). What is more goes into files of
 * together `spool_mb` MiB, and its last lines are shown. Zeroed: no bounds.
 */
struct px_output_config {
    int burst_kb, rate_kb, spool_mb;
    int capture; /* whether output to the descriptors 1 and 2 is the request's, too */
};
#define PX_OUTPUT_DEFAULTS {.burst_kb = 2048, .rate_kb = 64, .spool_mb = 256, .capture = 1}

/* Everything is copied but the tables, `ops` and `session`, which are borrowed for life. */
struct px_kernel_config {
    const struct px_interp_ops *ops;
    struct px_session *session; /* used on the service thread only */
    const char *topic_prefix;   /* "kernel.<id>", "engine.3" */
    const char *const
        *topics; /* PX_TOPIC_COUNT names; one that starts with '.' follows the prefix */
    const struct px_handler *handlers; /* more rows, ending with an empty one; NULL: none */
    const char *connect_info; /* members of connect_reply's content, with a leading comma; NULL */
    int engine_id;            /* in engine_info of errors; -1 for none */
    bool stamp_engine;        /* metadata of every message names the engine */
    bool has_stdin;
    const char *stdin_of; /* optional, borrowed: the first identity of those who can be asked */
    bool debugger; /* debug requests go to the language, which has threads; else they are refused */
    struct px_output_config output;

    void *ctx; /* of the functions below, called on the service thread unless they say otherwise */
    /* Sends on a channel and sets *msg to NULL; on iopub it may be left, and comes again soon. */
    void (*send)(void *ctx, enum px_channel channel, struct px_msg **msg);
    /* A shutdown_request was answered. The owner ends the process (px_kernel_stop first). */
    void (*shutdown)(void *ctx, bool restart);
    /* Optional, on the interpreter thread: it starts on a request; with NULL, it has finished. */
    void (*running)(void *ctx, const struct px_request *request);
    /* Optional: see struct px_interp_host. */
    int (*bind)(void *ctx, const char *path, struct px_error *err);
    int64_t *begun; /* optional, borrowed: see struct px_interp_host */
    /* Optional: appends members, each with a leading comma, to the metadata of a task's reply.
     * Called on the thread of the request. */
    void (*task_metadata)(void *ctx, const struct px_request *request, struct px_buf *out);
};

struct px_kernel *px_kernel_create(const struct px_kernel_config *config, struct px_error *err);
/* When neither thread uses it any more. NULL allowed. */
void px_kernel_destroy(struct px_kernel *kernel);
void *px_kernel_ctx(const struct px_kernel *kernel); /* of the configuration */
/* The session that its messages name. Borrowed. */
const char *px_kernel_session(const struct px_kernel *kernel);

/* ---- service thread -------------------------------------------------------- */

/* Publishes the status "starting". */
void px_kernel_announce(struct px_kernel *kernel);
/* Takes a located, verified message. After a few of them, call px_kernel_service(). */
void px_kernel_receive(struct px_kernel *kernel, enum px_channel channel, struct px_msg **msg);
/* Readable when px_kernel_service() has something to do; it may also have said so by its result. */
int px_kernel_fd(const struct px_kernel *kernel);
/* Readable when somebody wrote to descriptor 1 or 2: then px_kernel_capture(). -1 without capture. */
int px_kernel_capture_fd(const struct px_kernel *kernel, enum px_stream which);
/* False: it did nothing, as too much waits for the disk already; call again in a moment. */
bool px_kernel_capture(struct px_kernel *kernel);
/* Sends what is due. Returns the milliseconds after which to call again, rung or not; -1 for none. */
int64_t px_kernel_service(struct px_kernel *kernel);
/* For `send`: publishes a message on iopub. While a subscriber has no room it is PX_WOULD_BLOCK for a
 * while, and to be left as it is; then he goes without, which is said in a line of output. */
PX_MUST_USE enum px_sent px_kernel_offer(struct px_kernel *kernel, struct px_socket *socket,
                                         struct px_msg **msg);
/* Messages that may wait for one subscriber of iopub: text is bounded before (px_output_config). */
#define PX_IOPUB_MOST 1024
/* Whether a request is queued or runs, or what it has published was not all sent. */
bool px_kernel_unfinished(const struct px_kernel *kernel);
/* Aborts the request of this id where it waits or will arrive. True: it runs. */
bool px_kernel_withdraw(struct px_kernel *kernel, const struct json_t *id);
/* Sends all there is, whether due or not; gives up after half a second of more and more. */
void px_kernel_flush(struct px_kernel *kernel);

/* ---- any thread ------------------------------------------------------------ */

/* Interrupts what runs; does nothing when nothing runs. */
void px_kernel_interrupt(struct px_kernel *kernel);
/* Makes px_kernel_run() return after the request that runs now. */
void px_kernel_stop(struct px_kernel *kernel);
/* From now on errors name the engine by this id. */
void px_kernel_renumber(struct px_kernel *kernel, int engine_id);
/* That id; -1 of a kernel that is no engine's. */
int px_kernel_number(const struct px_kernel *kernel);
/* True while the interpreter thread serves a request. */
bool px_kernel_busy(struct px_kernel *kernel);

/* ---- interpreter thread ------------------------------------------------------ */

/* Puts pipes in place of the descriptors 1 and 2, and takes them away; nothing without capture. */
void px_kernel_capture_begin(struct px_kernel *kernel);
void px_kernel_capture_end(struct px_kernel *kernel);
/* The services for the language. */
const struct px_interp_host *px_kernel_host(struct px_kernel *kernel);
/* Serves requests with the language's instance until px_kernel_stop(), or until the user's code
 * asked to end. */
void px_kernel_run(struct px_kernel *kernel, void *self);
/* Runs code as a silent request without a sender would (start-up code); true when it succeeded. */
bool px_kernel_execute(struct px_kernel *kernel, void *self, struct px_span code);

#endif
