/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * interp: the table of functions that a language fills, and the services it may call.
 *
 * A language never sees a socket; the protocol never sees a language's object. What
 * crosses is code as UTF-8, JSON text, and buffers. Bookkeeping that the protocol demands
 * (busy and idle, headers, signatures, abort) is on the other side of this table.
 *
 * Threads: every op runs on the interpreter thread (the process's main thread) unless it
 * says otherwise; a language that offers thread_begin is called from several at once. Services may
 * be called from any thread of the language; they queue and return, but for input, which waits.
 */
#ifndef PX_INTERP_H
#define PX_INTERP_H

#include "base/base.h"

#include <pthread.h>

/* ---- what a language may ask of its host -------------------------------- */

/* The request that output belongs to; reference counted, opaque. NULL means "the one that runs
 * now, or the last that ran". */
struct px_parent;

enum px_stream { PX_STDOUT, PX_STDERR };

/* iopub messages whose content the language composes, as JSON text in the form that
 * "Messaging in Jupyter" gives under these names. */
enum px_publication {
    PX_DISPLAY_DATA,        /* {"data", "metadata", "transient"} */
    PX_UPDATE_DISPLAY_DATA, /* the same */
    PX_EXECUTE_RESULT,      /* {"data", "metadata", "execution_count"} */
    PX_CLEAR_OUTPUT,        /* {"wait"} */
    PX_ERROR_OUTPUT,        /* {"ename", "evalue", "traceback"} */
    PX_COMM_OPEN,           /* {"comm_id", "target_name", "data"} */
    PX_COMM_MSG,            /* {"comm_id", "data"} */
    PX_COMM_CLOSE,          /* {"comm_id", "data"} */
    PX_DATA_MESSAGE,        /* {"keys"}; ipyparallel's datapub */
    PX_DEBUG_EVENT,         /* an event of the Debug Adapter Protocol */
    PX_PUBLICATION_COUNT
};

/* A buffer that leaves the language without a copy. `release(hint)` is called once, from any
 * thread, when the bytes are no longer needed; NULL: the bytes are copied before the call returns. */
struct px_buffer {
    const void *data;
    size_t size;
    void (*release)(void *hint);
    void *hint;
};

/* A question to the user. `go_on` is called on the thread that asks, now and then and after signals,
 * for the language to act on them: false gives the question up. */
struct px_ask {
    const char *prompt;
    bool password;
    bool (*go_on)(void *ctx);
    void *ctx;
};

struct px_interp_host {
    void *ctx;

    /* Output text, any length, UTF-8. Coalesced, in order with publish and with what was written to
     * the process's own descriptors. Never blocks, so that a language with a global lock need not
     * give it up for every few bytes: returns how much it has taken. When that is not all, call
     * `room`, without the lock, which blocks until more can be taken. */
    size_t (*stream)(void *ctx, struct px_parent *parent, enum px_stream which, const char *text,
                     size_t size);
    void (*room)(void *ctx);

    /* Anything else on iopub. `metadata` may be empty ("{}"). May block for back-pressure: a language
     * with a global lock releases it around the call. */
    void (*publish)(void *ctx, struct px_parent *parent, enum px_publication what,
                    struct px_span content, struct px_span metadata,
                    const struct px_buffer *buffers, size_t buffer_count);

    /* A line from the user, appended to `line`. Blocks, without the language's lock, until it is
     * there. PX_EINTR: `go_on` said no; PX_ENOENT: the front end takes no input; PX_ECLOSED: the
     * request has ended, or the kernel does. */
    int (*input)(void *ctx, struct px_parent *parent, const struct px_ask *ask, struct px_buf *line,
                 struct px_error *err);

    /* The request that runs now (a new reference), or NULL; and its release. */
    struct px_parent *(*parent_ref)(void *ctx);
    void (*parent_unref)(struct px_parent *parent);
    /* JSON text of its header; valid as long as the reference. */
    struct px_span (*parent_header)(struct px_parent *parent);

    /* Optional. When the request that the calling thread serves began, by px_now_ns(); 0: it serves
     * none. Any thread, no lock of the language held. */
    int64_t (*began)(void *ctx);

    /* Optional. Interpreter thread, during apply: keeps buffer `index` of the request beyond its
     * end. `out` gets its bytes, which the language may also write to; it calls out->release once,
     * from any thread. False: it cannot, and the language copies. */
    bool (*keep_buffer)(void *ctx, size_t index, struct px_buffer *out);

    /* Optional. Any thread, once: opens the kernel to front ends, by a connection file that is
     * written to `path`. */
    int (*bind)(void *ctx, const char *path, struct px_error *err);

    /* Optional. How many items of the task that runs it has begun, for whoever has to say which one
     * killed it: the interpreter thread writes it if the task has items. 0 when a task starts. */
    int64_t *begun;
};

/* ---- what a language offers ---------------------------------------------- */

struct px_interp_config {
    const char *python;      /* interpreter to be, as select() gave it */
    const char *profile_dir; /* IPython profile; NULL: IPython's own choice */
    const char *colors;      /* "nocolor", "linux", ...; NULL: the language's default */
    const char *module_dir;  /* directory that holds the package `phalanx`; put last on the path */
    const char *preload;     /* what warm() imports beside its own: "numpy,pandas"; NULL: nothing */
    bool debugger;           /* PX_DEBUG_REQUEST is asked, on a thread of its own */
    bool engine;             /* an engine: no input, no history file, user namespace for apply */
    int argc;                /* what the user's sys.argv is to show */
    char **argv;
};

struct px_execute {
    struct px_span code;
    struct px_span user_expressions; /* JSON object text */
    struct px_span metadata;         /* of the request, JSON */
    bool silent, store_history;
    bool allow_stdin; /* the front end takes input: somebody sits at it */
};

/* How a request ended. Zeroed by the caller; the owner finis it. */
struct px_outcome {
    bool failed;             /* an exception, or an interrupt */
    bool unmet;              /* apply: UnmetDependency; the task is to go elsewhere */
    int execution_count;     /* execute */
    struct px_buf error;     /* failed: JSON members without braces, "ename", "evalue", "traceback" */
    struct px_buf payload;   /* execute: JSON array text, or empty */
    struct px_buf user_expressions; /* execute: JSON object text, or empty */
    struct px_buffer *buffers; /* apply: result; the array is malloc'ed */
    size_t buffer_count;
    bool exit_requested;     /* execute: the user asked the kernel to end */
};
void px_outcome_fini(struct px_outcome *outcome); /* releases buffers not taken */

/* Requests that are JSON in, JSON out. */
enum px_query {
    PX_COMPLETE,    /* complete_request     -> complete_reply's content, status included */
    PX_INSPECT,
    PX_IS_COMPLETE,
    PX_HISTORY,
    PX_DEBUG_REQUEST,       /* debug_request: a request of the Debug Adapter Protocol, and its response */
    PX_QUERY_COUNT
};

struct px_interp_ops {
    const char *name;      /* as in --language */
    const char *info_json; /* members of kernel_info_reply without braces: "implementation", …,
                              "language_info", "banner", "help_links"; there before start */

    const char *features;  /* what an engine may announce beyond the common protocol: JSON strings,
                              comma separated ("\"pickle5\""); NULL for nothing */

    /* Optional: the interpreter that create() can be for this `python` (NULL: the active environment's
     * or the default), as an absolute path that the caller frees; NULL when it cannot be that. */
    char *(*select)(const char *python, struct px_error *err);

    /* Optional: whether what create() would make of this interpreter, which select() gave, answers
     * PX_DEBUG_REQUEST. Any thread. */
    bool (*debugs)(const char *python);

    /* An instance, or NULL. It has no host until one is attached. */
    void *(*create)(const struct px_interp_config *config, struct px_error *err);
    /* From now on output goes to `host`; after a fork the child attaches its own. `session` is the one
     * that its messages name, an engine's uuid; NULL: none. */
    void (*attach)(void *self, const struct px_interp_host *host, int engine_id,
                   const char *session);
    void (*destroy)(void *self);

    /* Publishes what the cell shows, the result and PX_ERROR_OUTPUT included. */
    void (*execute)(void *self, const struct px_execute *request, struct px_outcome *out);

    /* Optional: ipyparallel's apply. `buffers` and `metadata` as received. The host publishes the
     * outcome's error. */
    void (*apply)(void *self, struct px_span metadata, const struct px_span *buffers,
                  size_t buffer_count, struct px_outcome *out);

    /* JSON in, JSON out: appends the whole content of the reply. Never fails: errors are content. */
    void (*query)(void *self, enum px_query what, struct px_span content, struct px_buf *reply);

    /* Optional: comm_open, comm_msg, comm_close; whole message's pieces. */
    void (*comm)(void *self, enum px_publication what, struct px_span content,
                 struct px_span metadata, const struct px_span *buffers, size_t buffer_count);

    /* Optional: forget the user's names (clear_request). */
    void (*clear)(void *self);

    /* Any thread, no lock of the language held: interrupt what runs. A language also takes SIGINT as
     * an interrupt, and forgets one that comes when nothing runs. */
    void (*interrupt)(void *self);

    /* Optional: from now on signal `signo`, sent to the interpreter thread, writes the stacks of all
     * threads to `stacks_fd` and then acts as it did before; and a deadly signal writes them to
     * `last_fd` first (with 0 for `signo`, that alone). Whatever the language does then, its lock
     * held or not. Descriptors stay the caller's. */
    int (*trace)(void *self, int signo, int stacks_fd, int last_fd, struct px_error *err);
    /* Optional, all three or none: other threads than the interpreter's call execute, query and comm,
     * between thread_begin and thread_end on that thread; `name` is for people. interrupt_thread is
     * called as interrupt is, and may come too late. */
    void (*thread_begin)(void *self, const char *name);
    void (*thread_end)(void *self);
    void (*interrupt_thread)(void *self, pthread_t thread);

    /* Optional: lets the language use idle time. Waits until `fd` can be read, running the language's
     * own event loop (asyncio tasks go on between cells); returns at once when it can. */
    void (*idle)(void *self, int fd);

    /* Optional: import and build what is shared by forked children. Before any fork. Signals are
     * held meanwhile, as threads of libraries that it loads must never take them. */
    int (*warm)(void *self, struct px_error *err);
    /* Optional: around fork(2), in the parent before, in the parent after, in the child after. */
    void (*before_fork)(void *self);
    void (*after_fork_parent)(void *self);
    void (*after_fork_child)(void *self);
};

/* The entry of a NULL-terminated table by name, or NULL. The table is the program's, so that a
 * program without Python links none. */
const struct px_interp_ops *px_interp_find(const struct px_interp_ops *const *table,
                                           const char *name);
extern const struct px_interp_ops px_interp_echo;
extern const struct px_interp_ops px_interp_python; /* in its own library: links CPython */

#endif
