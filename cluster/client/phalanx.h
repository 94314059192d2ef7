/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * libphalanx: run work on the engines of a cluster, from C.
 *
 *     struct phalanx_error err;
 *     phalanx_client *client = phalanx_connect(NULL, &err);
 *     struct phalanx_request request = {.type = PHALANX_EXECUTE, .code = "print('hi')"};
 *     phalanx_result *result = phalanx_submit(client, &request, &err);      // all engines
 *     struct phalanx_event event;
 *     while (phalanx_next(result, -1, &event) == PHALANX_OK) ...            // as it arrives
 *     phalanx_result_free(result);
 *     phalanx_close(client);
 *
 * A client is connected to one controller (pxcontroller or ipcontroller); one thread of its own
 * receives, verifies and files what arrives. Every function may be called from any thread; only
 * phalanx_next and phalanx_take, which own a result's current event, are for one thread at a time
 * per result. Functions that wait say so; a signal handler that runs on the waiting thread ends
 * the wait with PHALANX_EINTR.
 *
 * A forked child has the parent's clients and results, and may not use them: what would send or
 * wait returns PHALANX_ECLOSED there, nothing is known of tasks and engines, and closing and
 * freeing do nothing. It connects a client of its own.
 *
 * Arguments are borrowed. Strings and buffers inside an event are valid until the next call of
 * phalanx_next on the same result, unless phalanx_take keeps them. Times are milliseconds; a
 * negative time-out waits for ever.
 */
#ifndef PHALANX_H
#define PHALANX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PHALANX_API __attribute__((visibility("default")))

enum phalanx_code {
    PHALANX_OK,
    PHALANX_EINVAL,  /* an argument or a file that cannot be right */
    PHALANX_EIO,     /* the system refused */
    PHALANX_ENOENT,  /* no such file, profile, engine or task */
    PHALANX_ETIME,   /* the time-out passed */
    PHALANX_ECLOSED, /* the client was closed, the controller said goodbye, or the process forked */
    PHALANX_EINTR,   /* a signal was handled while waiting */
    PHALANX_DONE,    /* nothing further will come */
    PHALANX_EREMOTE, /* the task failed on its engine; the text says how */
};

struct phalanx_error {
    enum phalanx_code code;
    char text[512]; /* one sentence */
};

typedef struct phalanx_client phalanx_client;
typedef struct phalanx_result phalanx_result;
typedef struct phalanx_message phalanx_message;

/* ---- connecting ----------------------------------------------------------- */

/* Which cluster; NULL fields take ipyparallel's defaults and environment variables. */
struct phalanx_options {
    const char *file; /* ipcontroller-client.json; otherwise found from the next four */
    const char *profile, *profile_dir, *ipython_dir, *cluster_id;
    int64_t timeout_ms; /* for connecting; 0: 10000 */
};

/* Connects and learns the engines. Waits. NULL with an error when the file is missing or wrong, or
 * nobody answers in time. On return output published by engines reaches this client. */
PHALANX_API phalanx_client *phalanx_connect(const struct phalanx_options *options,
                                            struct phalanx_error *err);
/* Fails outstanding results with PHALANX_ECLOSED and frees the client once its last result is
 * freed. NULL allowed. */
PHALANX_API void phalanx_close(phalanx_client *client);
/* Keeps the client's memory until phalanx_release, for a thread that waits on it while others may
 * close it: whatever it asks of a closed one ends with PHALANX_ECLOSED. */
PHALANX_API void phalanx_hold(phalanx_client *client);
PHALANX_API void phalanx_release(phalanx_client *client);
/* In a forked child: lets go of an inherited client without touching its sockets. */
PHALANX_API void phalanx_forget(phalanx_client *client);
/* This client's session id: the header's `session` of what it sends. */
PHALANX_API const char *phalanx_session(const phalanx_client *client);
/* The connection file in use. */
PHALANX_API const char *phalanx_file(const phalanx_client *client);
/* Whether the controller is out of reach: connections were lost, or it has not answered for some
 * time. Then for how long, and in how many milliseconds what waits for it fails, if it is not back. */
#define PHALANX_AWAY_MS 2000 /* from then on our own programs speak of it */
PHALANX_API bool phalanx_away(const phalanx_client *client, int64_t *since_ms, int64_t *left_ms);

/* ---- engines ---------------------------------------------------------------- */

/* The ids of the engines registered now, ascending. Returns how many there are; fills at most
 * `most`. */
PHALANX_API size_t phalanx_engines(phalanx_client *client, int *ids, size_t most);
/* Copies engine `id`'s uuid. PHALANX_ENOENT when there is none. */
PHALANX_API enum phalanx_code phalanx_engine_uuid(phalanx_client *client, int id, char *uuid,
                                                  size_t size);
/* Waits until at least `count` engines are registered. PHALANX_ETIME, _EINTR, _ECLOSED. */
PHALANX_API enum phalanx_code phalanx_wait_engines(phalanx_client *client, size_t count,
                                                   int64_t timeout_ms);
/* Whether each of these engines (NULL: each registered now) offers `feature`, such as "pickle5".
 * False when there are none. */
PHALANX_API bool phalanx_feature(phalanx_client *client, const int *targets, size_t count,
                                 const char *feature);

/* phalanx_engines() of those that offer `feature`: "tag:gpu", "host:node1", "stacks". */
PHALANX_API size_t phalanx_engines_with(phalanx_client *client, const char *feature, int *ids,
                                        size_t most);
/* What engine `id` offers, as a JSON array of texts, which the caller frees; NULL when there is no
 * such engine. */
PHALANX_API char *phalanx_engine_features(phalanx_client *client, int id);

/* ---- submitting --------------------------------------------------------------- */

enum phalanx_type {
    PHALANX_EXECUTE, /* source code */
    PHALANX_APPLY,   /* ipyparallel's apply: buffers hold function, arguments */
    PHALANX_CONTROL, /* clear_request, abort_request, shutdown_request, signal_request: `message` */
    PHALANX_MESSAGE, /* any other message on the direct channel: `message` */
    PHALANX_QUERY,   /* a request to the hub, such as "result_request": `message`; no targets. Its
                        only task's REPLY is the hub's answer, with buffers where it has any */
    PHALANX_CALL,    /* a Python function by name, with JSON: `function`, `args`, `kwargs` */
};

enum phalanx_route {
    PHALANX_DIRECT,
    PHALANX_BALANCED,
    PHALANX_BROADCAST, /* sent once; the controller makes a copy for each target */
};

struct phalanx_buffer {
    const void *data;
    size_t size;
    void (*release)(void *hint); /* NULL: the bytes are copied; else called once, from any thread,
                                    also when the submission fails */
    void *hint;
    bool constant; /* the bytes stay as they are until `release`: after a controller was lost the
                      request can be sent again with them */
};

struct phalanx_request {
    enum phalanx_type type;
    enum phalanx_route route;
    const int *targets; /* DIRECT, BROADCAST: engine ids; NULL: all registered now. BALANCED: the
                           engines it may run on; NULL: any */
    size_t target_count;
    bool coalesce;    /* BROADCAST of an APPLY: the controller joins the replies. One task's REPLY
                         then holds all buffers, and its metadata `broadcast_targets`, a list of
                         [uuid, id] in their order; the others' are empty. A target that failed has
                         no buffers there, unless it answered last: then all fail as it did */
    const char *code; /* EXECUTE */
    bool silent;      /* EXECUTE: no execute_input, no result, no count */
    bool allow_stdin;
    const char *function; /* CALL: "module:name" (imported on the engine), or "name" of the engine's
                             namespace; dots lead further: "os:path.getsize" */
    const char *args;     /* CALL: a JSON array; NULL: [] */
    const char *kwargs;   /* CALL: a JSON object; NULL: {} */
    const char *message;  /* CONTROL, MESSAGE: message type */
    const char *content;  /* CONTROL, MESSAGE: JSON; NULL: {} */
    const char *metadata; /* JSON members without braces, added to the metadata: "\"retries\": 1";
                             or NULL */
    const struct phalanx_buffer
        *buffers; /* APPLY, MESSAGE; sent to every target without a copy each */
    size_t buffer_count;
};

/* Sends; never waits for an engine. One task per target (DIRECT, BROADCAST), or one (BALANCED,
 * QUERY). NULL:
 * PHALANX_ENOENT names a target that is not registered, or says there are no engines. */
PHALANX_API phalanx_result *phalanx_submit(phalanx_client *client,
                                           const struct phalanx_request *request,
                                           struct phalanx_error *err);
/* Sends another request whose tasks are appended to an existing result, so that many requests are
 * awaited, and their events read, as one. */
PHALANX_API enum phalanx_code phalanx_add(phalanx_result *result,
                                          const struct phalanx_request *request,
                                          struct phalanx_error *err);

/* ---- results --------------------------------------------------------------------- */

enum phalanx_event_type {
    PHALANX_STREAM, /* `text` of `name` ("stdout", "stderr") */
    PHALANX_OUTPUT, /* `name` is the message type: display_data, update_display_data,
                       execute_result, clear_output, execute_input, error, data_message, comm_*:
                       `content`, `buffers` */
    PHALANX_REPLY,  /* the task ended: `content`, `metadata`, `buffers`; `failed` */
    PHALANX_IDLE,   /* all its output has come, and its reply; the last event of each task */
};

struct phalanx_event {
    enum phalanx_event_type type;
    size_t task; /* index into the result's tasks: the order of targets */
    int engine;  /* engine id, -1 when not known */
    bool failed; /* REPLY: status is not "ok" */
    bool lost;   /* REPLY: made here, because the engine or the controller is gone; `content`
                    holds an EngineError */
    const char *name;
    const char *text;
    size_t text_size;
    const char *content; /* JSON, terminated; of a STREAM: {} */
    const char *metadata;
    const char *header;                   /* of the reply or output message */
    const struct phalanx_buffer *buffers; /* of the message; valid as long as the event */
    size_t buffer_count;
    double received; /* when it arrived: seconds since 1970, UTC */
    const char *parent; /* of phalanx_late's: the msg_id of the task; NULL otherwise */
};

/*
 * The next event, in order of arrival. Waits up to `timeout_ms`. PHALANX_OK with *event filled;
 * PHALANX_DONE when every task has its reply and its IDLE (or its output cannot come any more);
 * PHALANX_ETIME; PHALANX_EINTR; PHALANX_ECLOSED after the last event of a client that was closed.
 * Of output that nobody reads 64 MB are kept for a result; what comes then is counted, and a STREAM
 * event on stderr says so.
 */
PHALANX_API enum phalanx_code phalanx_next(phalanx_result *result, int64_t timeout_ms,
                                           struct phalanx_event *event);
/* Keeps the strings and buffers of the event that phalanx_next gave last, until
 * phalanx_message_free (any thread). The caller may write into its buffers. NULL when there is no
 * such event, or when it was taken. */
PHALANX_API phalanx_message *phalanx_take(phalanx_result *result);
PHALANX_API void phalanx_message_free(phalanx_message *message);

/* The value of a CALL, from its REPLY: JSON text, which the caller frees (arrays and sets become
 * lists). NULL: PHALANX_EREMOTE with "ValueError: …" when the call failed; PHALANX_EINVAL for an
 * event that is no such reply. */
PHALANX_API char *phalanx_value(const struct phalanx_event *event, struct phalanx_error *err);

PHALANX_API phalanx_client *phalanx_result_client(const phalanx_result *result);
PHALANX_API size_t phalanx_task_count(const phalanx_result *result);
PHALANX_API const char *phalanx_task_id(const phalanx_result *result, size_t task); /* msg_id */
PHALANX_API int phalanx_task_engine(const phalanx_result *result,
                                    size_t task); /* -1: not known yet */
/* When its first tasks were submitted, seconds since 1970: before their messages were made. */
PHALANX_API double phalanx_submitted(const phalanx_result *result);
/* How many tasks have their reply; how many their reply and all output. Do not wait. */
PHALANX_API size_t phalanx_replied(const phalanx_result *result);
PHALANX_API size_t phalanx_finished(const phalanx_result *result);

enum phalanx_until {
    PHALANX_EVENT,    /* phalanx_next would not wait */
    PHALANX_REPLIES,  /* every task has its reply */
    PHALANX_FINISHED, /* every task has its reply and all its output */
    PHALANX_SHOWABLE, /* output or a loss is there for phalanx_next, or every task has finished */
};
/* Waits, and leaves the events for phalanx_next. PHALANX_OK, _ETIME, _EINTR, _ECLOSED. */
PHALANX_API enum phalanx_code phalanx_wait(phalanx_result *result, enum phalanx_until until,
                                           int64_t timeout_ms);
/* For threads that read one result in turn, where one may have read what another waits for: how
 * many events have come so far, read or not, and a wait until there are more than `seen`, or none
 * will come: PHALANX_OK, _ETIME, _EINTR, _ECLOSED. Any thread. */
PHALANX_API size_t phalanx_arrived(const phalanx_result *result);
PHALANX_API enum phalanx_code phalanx_wait_more(phalanx_result *result, size_t seen,
                                                int64_t timeout_ms);
/*
 * Calls `done(hint)` once, when every task has its reply or the client is closed: before it
 * returns, or from the client's own thread, which waits for it: `done` must be quick and call
 * nothing here. One caller per result; tasks must not be added afterwards. Nothing is called once
 * the result is freed. Any thread.
 */
PHALANX_API void phalanx_notify(phalanx_result *result, void (*done)(void *hint), void *hint);
/*
 * A result to which output is filed that comes when its task has ended, or is nobody's any more:
 * what threads write that the task has left behind. Its one task never ends; otherwise it is as
 * others, and the caller's. One for a client: when another is asked for, waits for this one end
 * with PHALANX_ECLOSED. NULL when the client is closed. Any thread.
 */
PHALANX_API phalanx_result *phalanx_late(phalanx_client *client);
/* Keeps the result's counters and waits, and drops the events that it has and that will come: for
 * whoever wants to know that tasks end, and not how. Not while another thread reads events. */
PHALANX_API void phalanx_discard(phalanx_result *result);
/* Forgets the result: what was submitted is sent all the same, what arrives for it is dropped.
 * NULL allowed. */
PHALANX_API void phalanx_result_free(phalanx_result *result);

/* ---- the hub ----------------------------------------------------------------------- */

/* One request to the hub, such as "queue_request"; content and reply are JSON. Waits. The reply is
 * malloc'ed; NULL with an error. */
PHALANX_API char *phalanx_query(phalanx_client *client, const char *type, const char *content,
                                int64_t timeout_ms, struct phalanx_error *err);

PHALANX_API const char *phalanx_version(void);

#ifdef __cplusplus
}
#endif
#endif
