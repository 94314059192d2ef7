/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * parts: what the files of one engine share. Private to this folder.
 *
 *     engine.c      sockets, heart, life
 *     registrar.c   the hub: registered, doubted, registered again
 *     requests.c    the requests that only engines know
 *     again.c       the last replies, in case that they are lost
 *     trace.c       stacks, and deadly signals
 *     front.c       sockets for front ends, if the user's code asks for them
 */
#ifndef PX_ENGINE_PARTS_H
#define PX_ENGINE_PARTS_H

#include "engine.h"
#include "service.h"
#include "trace.h"

enum engine_socket { REGISTRAR, SHELL, CONTROL, IOPUB, HEART_OUT, HEART_IN, SOCKET_COUNT };

/* A socket that tells when connections of another come and go. */
struct monitor {
    struct px_socket *socket;
    struct px_watch *watch;
    struct engine *engine;
};

struct px_front;
struct px_kept;
struct px_held_task;

/* All zero at first. */
struct px_again {
    struct px_kept *replies; /* the oldest first */
    size_t count, bytes;
    struct px_timer *timer; /* while there are any, and the connection stands */
    bool broken;
    int64_t heard_ms, alive_ms; /* the last sign of life, and that before it broke */
    struct px_held_task *tasks; /* of the scheduler, not answered yet: a hash by msg_id */
};

struct engine {
    const struct px_engine_config *config;
    char uuid[128];
    int report_fd;
    void *context;
    struct px_session *session;
    struct px_service *service;
    struct px_doorbell *bell; /* to the main thread: the kernel once registered, or nothing */
    struct px_kernel *kernel; /* NULL until registered */
    struct px_trace *trace;
    struct px_doorbell *front_bell; /* to the service thread: a px_front */
    /* service thread */
    struct px_front *front; /* NULL until the user's code has asked for it */
    struct px_socket *sockets[SOCKET_COUNT];
    struct monitor monitors[SOCKET_COUNT]; /* most have none */
    struct px_timer *deadline;             /* of the first registration; NULL afterwards */
    struct px_timer *cool_timer;           /* while memory of large messages is kept */
    int id, misses, status;
    int64_t period_ms;
    int64_t pinged_ms;   /* when the hub was heard last, on a clock that runs in sleep */
    int64_t listen_ms;   /* how long the iopub relay is waited for; 0: no longer */
    int64_t asked_ms;    /* when the hub was asked last, while doubtful */
    struct px_msg *held; /* a ping that came while doubtful, not echoed yet */
    bool pinged;
    bool doubtful; /* the hub may have forgotten us */
    bool left;     /* the hub was told that we end */
    bool bundles;  /* the controller takes them */
    bool cut;      /* hearts and registrar were, and relays may have to be */
    struct px_again again;
    size_t awaited; /* connections to relays that were cut and are not back yet */
    struct px_log_limiter refused, unsent;
};

/* ---- engine.c, service thread ---- */

/* The next message that is whole and signed, or NULL when there is none. */
struct px_msg *px_engine_receive(struct engine *engine, enum engine_socket from);
/* The kernel has received some: sends what it answers, and has the memory of large ones let go. */
void px_engine_fed(struct engine *engine);
/* NULL with an error; else also in engine->sockets. */
struct px_socket *px_engine_open(struct engine *engine, enum engine_socket which,
                                 enum px_socket_type type, struct px_error *err);
/* Registered for the first time: connects, makes the kernel, serves. */
PX_MUST_USE int px_engine_serve(struct engine *engine, struct px_error *err);
/* Tells mux and task that bundles are welcome, if they take them. */
void px_engine_greet(struct engine *engine);
/* Connects to the broadcast scheduler's leaf that goes with the id. */
PX_MUST_USE int px_engine_reach_leaf(struct engine *engine, struct px_error *err);
/* The hub, which was silent, has given us up: connections to the relays may look as if they stood.
 * Cuts them; once they are back the hub is asked again. False when there were none. */
bool px_engine_cut_relays(struct engine *engine);
/* Ends before there was anything to run. */
void px_engine_give_up(struct engine *engine, int status);

/* ---- registrar.c, service thread ---- */

/* Asks to be registered. */
void px_registrar_open(void *engine);
/* Tells the hub, once, that the engine ends. */
void px_registrar_leave(struct engine *engine);
/* The hub may be another than the one that registered us. */
void px_registrar_doubt(struct engine *engine, const char *why);
/* While doubtful: asks the hub whether it knows us, unless it was asked a moment ago. */
void px_registrar_ask(struct engine *engine);
/* Tells the fork server which id it is; the log as well. */
void px_registrar_report(const struct engine *engine);

/* ---- again.c, service thread ---- */

/* A reply is about to be sent on the shell's socket. */
void px_again_replied(struct px_again *again, struct px_loop *loop, const struct px_msg *msg);
/* A request has come there. Before a probe gets its turn the last replies are sent again. */
void px_again_received(struct px_again *again, struct px_socket *socket, struct px_session *session,
                       const struct px_msg *msg);
/* A sign of life from the controller. */
void px_again_heard(struct px_again *again);
/* The connection is lost; it is there again. */
void px_again_break(struct px_again *again);
void px_again_mend(struct px_again *again, struct px_loop *loop);
void px_again_fini(struct px_again *again); /* its loop ends, too */

/* ---- front.c ---- */

/* The first identity of front ends' requests: they can be asked for input. */
#define PX_FRONT "px.front"
/* Any thread, once: binds sockets on 127.0.0.1 and writes their connection file, of mode 0600. Fails
 * where the cluster's messages are not signed. `engine` is a struct engine. */
PX_MUST_USE int px_front_bind(void *engine, const char *path, struct px_error *err);
/* The rest on the service thread. The loop that serves the sockets once they are bound. */
void px_front_serve(struct engine *engine, struct px_loop *loop);
/* Takes the message if it is a front end's, or published. */
bool px_front_send(struct px_front *front, enum px_channel channel, struct px_msg **msg);
void px_front_close(struct engine *engine);

/* ---- requests.c ---- */

extern const struct px_handler px_engine_handlers[];
void px_engine_task_metadata(void *engine, const struct px_request *request, struct px_buf *out);
void px_engine_running(void *engine, const struct px_request *request);
void px_engine_shutdown(void *engine, bool restart);

#endif
