/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * controller: what the parts of pxcontroller know of each other.
 *
 *   traffic thread   port.c   a bound socket: receive, verify, count
 *                    route.c  towards engines: waits for sockets that are not connected yet
 *                    clients.c  towards clients, also those of a controller that was killed
 *                    relay.c  mux, control, and the task queue of the scheme "pure"
 *                    iopub.c  what engines publish, to all who listen
 *                    task.c   the task scheduler's sockets; schedule.h decides
 *                    broadcast.c, heart.c
 *                    traffic.c makes them, owns the roster of engines, carries out orders
 *   hub thread       hub.c      the loop, and who answers which request
 *                    member.c, job.c  registration and notifications, unfinished requests
 *                    request.c, request_db.c, why.c, status.c  the queries of clients
 *                    adapt.c  who starts and ends engines as there is work
 *                    monitor.c  what is learned from copies of the traffic
 *                    record.c, query.c, db.c, row.c  the task database
 *                    restore.c  what a controller that was killed has left
 *   writing thread   db_sqlite.c  the database on disk, with --sqlitedb
 *   both             link.c   notes (traffic to hub) and orders (hub to traffic)
 *   before threads   settings.c, config.c, sockets.c; main.c places the threads
 *
 * The traffic thread never touches a disk and never waits for the hub.
 */
#ifndef PX_CONTROLLER_H
#define PX_CONTROLLER_H

#include "base/base.h"
#include "loop/loop.h"
#include "wire/wire.h"

#include <jansson.h>
#include <stdatomic.h>

#define PX_MAX_UUID 255

/* ---- settings: options, environment and configuration files (settings.c) --- */

#define PX_MAX_PORTS 4096

struct px_port_pool {
    int ports[PX_MAX_PORTS];
    int count, used;
};

#define PX_HWM_UNSAID (-1)

enum px_db_kind { PX_DB_MEMORY, PX_DB_NONE, PX_DB_SQLITE };

struct px_settings {
    /* where */
    const char *profile, *profile_dir, *ipython_dir, *cluster_id, *work_dir;
    /* addresses */
    const char *ip, *engine_ip, *client_ip, *transport, *location;
    const char *ssh, *engine_ssh;
    const char *ports, *engine_ports, *client_ports;
    int port;
    /* heartbeat */
    int ping_ms, max_misses;
    int registration_timeout_s; /* 0: from ping_ms */
    /* tasks */
    const char *scheme;
    int hwm;             /* PX_HWM_UNSAID: one, and a few when they are very short */
    int unread_mb;       /* replies that clients have not read; 0: by the machine's memory */
    int broadcast_depth; /* accepted for ipcontroller's sake; ours is flat */
    /* database */
    int db;
    const char *db_class;
    int record_limit;
    double size_limit, cull_fraction;
    const char *sqlite_file, *sqlite_dir;
    int commit_ms;            /* how long a change may wait before it is written */
    int disk_records, synced; /* of the file: most records; survive the machine's failure */
    double disk_bytes;
    /* files, keys */
    int reuse, restore, secure, curve;
    const char *curve_secret, *session_key, *signature_scheme, *ident;
    const char *engine_file, *client_file;
    const char *config_file, *key_file;
    /* operation */
    int log_level, ready_fd, log_to_file;
    int ignored; /* flags of ipcontroller without a meaning here */
    const char *ignored_text, *packer;
    char **owned; /* strings from configuration files */
    size_t owned_count;
};

/*
 * Reads options, environment and the profile's ipcontroller_config.{json,py}; makes the profile.
 * The command line wins, then the environment, then files. Strings live as long as argv and
 * the process. Exits (through px_options_main) on --help, --version and bad usage.
 */
PX_MUST_USE int px_settings_read(int argc, char **argv, struct px_settings *out,
                                 char profile_dir[PX_PATH_SIZE], struct px_error *err);
void px_settings_fini(struct px_settings *settings);
/* The rest is config.c. One configuration file more, and the file of a key, where they are named. */
PX_MUST_USE int px_settings_files(struct px_settings *settings, struct px_error *err);
/* A px_config_set, for a struct px_settings: sets one trait, as in "HeartMonitor.period". PX_EINVAL
 * for a value that is not right, and for a name that looks like one of ours; PX_ENOENT for one that
 * is no concern of a controller. */
PX_MUST_USE int px_settings_trait(void *settings, const char *name, struct px_span literal,
                                  struct px_error *err);
/* "10101-10105,10108" and "[1, 2]". */
PX_MUST_USE int px_ports_parse(const char *text, struct px_port_pool *out, struct px_error *err);

/* ---- sockets: everything that is bound, and the connection files (sockets.c) --- */

struct px_sockets {
    void *context;
    struct px_socket *query;
    struct px_socket *notification;
    struct px_socket *mux_in, *mux_out, *control_in, *control_out, *task_in, *task_out;
    struct px_socket *iopub_in, *iopub_out, *broadcast_in, *broadcast_out;
    struct px_socket *ping, *pong;
    struct px_unread *unread;       /* what clients have not read of replies */
    uint32_t mux_first, task_first; /* with --restore: the numbers of their first connections */
    struct px_cluster_connection client, engine; /* what the two files say */
    char client_path[PX_PATH_SIZE], engine_path[PX_PATH_SIZE], engines_path[PX_PATH_SIZE];
    char curve_public[PX_CURVE_KEY_SIZE], curve_secret[PX_CURVE_KEY_SIZE]; /* "" without CURVE */
    bool files_written, reused;
};

PX_MUST_USE int px_sockets_bind(struct px_sockets *sockets, const struct px_settings *settings,
                                const char *profile_dir, struct px_error *err);
PX_MUST_USE int px_sockets_write_files(struct px_sockets *sockets, struct px_error *err);
/* Closes all; removes the files unless they are to be reused. */
void px_sockets_fini(struct px_sockets *sockets, const struct px_settings *settings);

/* ---- link: between the two threads (link.c) -------------------------------- */

/* What the traffic thread tells the hub. The hub trusts it: signatures were verified. */
enum px_note_kind {
    PX_NOTE_MUX_REQUEST,      /* engine, client | message */
    PX_NOTE_MUX_REPLY,        /* client, engine | message */
    PX_NOTE_MUX_AGAIN,        /* engine, client | a request that its client has sent again */
    PX_NOTE_MUX_LATE,         /* client, engine | a reply that its engine has sent again, and that
                               * was not passed on: PX_ORDER_ANSWER if it is wanted */
    PX_NOTE_TASK_REQUEST,     /* client | message */
    PX_NOTE_TASK_AGAIN,       /* client | a request, of a task that has ended, sent again */
    PX_NOTE_TASK_DESTINATION, /* no message; `text` is the msg_id, a 0, the engine's uuid */
    PX_NOTE_TASK_REPLY,       /* client, engine | message; without engine when made here */
    PX_NOTE_IOPUB,            /* topic | message */
    PX_NOTE_LISTENER,         /* `text` is the topic of a client that listens (PX_LISTENER) */
    PX_NOTE_WHY,              /* the request | message; `text` is {"<msg_id>": {...}, ...} */
    PX_NOTE_REPORT,           /* what was asked | msg or NULL; `text`: JSON */
    PX_NOTE_ADAPT,            /* `text`: {"waiting": n, "retired": [uuids]} */
    PX_NOTE_BROADCAST,        /* `text` is uuid 0 "+", it was sent one, or "-", it has answered one;
                               * of engines with PX_FEATURE_ADAPT */
    PX_NOTE_QUERY,            /* a client's request to the hub, after what preceded it */
    PX_NOTE_PROBED,           /* `text` is uuid 0 ident: it has answered PX_ORDER_PROBE_DIRECT */
    PX_NOTE_NEW_HEART,        /* `text` is the uuid */
    PX_NOTE_STOPPED_HEART,
    PX_NOTE_KINDS,
};

struct px_note {
    enum px_note_kind kind;
    struct px_msg *msg;
    char *text;
    size_t bytes;
    bool no_body; /* a reply whose content and buffers are not kept: the hub is far behind */
};

#define PX_NOTES_BATCH 64
struct px_notes {
    size_t count;
    struct px_note items[PX_NOTES_BATCH];
};

/* What the hub asks of the traffic thread. */
enum px_order_kind {
    PX_ORDER_ENGINE_UP,    /* uuid, id, features: finished registration */
    PX_ORDER_ENGINE_DOWN,  /* uuid, id, cause */
    PX_ORDER_EXPECT_NEWS,  /* uuid: its heart is to be told of, even if it beats already */
    PX_ORDER_EXPECT,       /* uuid: a heart that should be beating (restored engine) */
    PX_ORDER_SUBMIT,       /* msg: a task, as if a client had sent it; identities | message */
    PX_ORDER_WHY,          /* msg: a why_request, text: its ids; the answer is a PX_NOTE_WHY */
    PX_ORDER_ABORT,        /* text: ids of tasks that their clients take back */
    PX_ORDER_REMEMBER,     /* msg: its one frame lists tasks that have ended, see restore.c */
    PX_ORDER_ADOPT,        /* uuid, msg: a task that this engine has been sent before */
    PX_ORDER_PROBE,        /* uuid: find out which of its tasks it has */
    PX_ORDER_PROBE_DIRECT, /* uuid, id: the same for direct requests, by a probe of this number; the
                            * answer is a PX_NOTE_PROBED */
    PX_ORDER_ANSWER,       /* msg: client, engine | a reply to a direct request, from the hub */
    PX_ORDER_ANSWER_TASK,  /* msg: client | a reply to a task, which has been noted before */
    PX_ORDER_REPORT,       /* msg: a status_request, or NULL; the answer is a PX_NOTE_REPORT */
    PX_ORDER_ADAPT,        /* text: uuids of engines that are to retire, or NULL; the answer is a
                            * PX_NOTE_ADAPT */
    PX_ORDER_RETURN,       /* msg: comes back as a PX_NOTE_QUERY, after all that was noted */
    PX_ORDER_STOP,
    PX_ORDER_KINDS,
};

struct px_order {
    enum px_order_kind kind;
    int id;
    unsigned features;
    struct px_msg *msg;
    /* Owned as `msg` is; NULL: not known. */
    char *cause;   /* why the engine died, a phrase */
    char *running; /* the request that it died with */
    int begun;     /* of the items of that; 0: it has none, or not known */
    char *text;    /* ids or uuids, each ended by a newline */
    char uuid[PX_MAX_UUID + 1];
};
void px_order_free(struct px_order *order);

/* Copies for the hub that it has not looked at yet. Beyond half of either limit clients' requests
 * wait; beyond it copies of output are dropped, and those of replies lose their bodies. */
#define PX_MAX_BACKLOG 500000u
#define PX_MAX_BACKLOG_BYTES ((size_t)2 << 30)
/* Beyond this many, clients' requests are taken up more slowly (port.c), so that it does not come
 * to that: some ten milliseconds of the hub's time. */
#define PX_PACED_BACKLOG 4096u

struct px_link {
    struct px_doorbell *to_hub;     /* struct px_notes */
    struct px_doorbell *to_traffic; /* struct px_order */
    atomic_size_t backlog, backlog_bytes;
    atomic_bool gathering; /* there is a batch that was not posted */
    /* traffic thread */
    struct px_loop *loop;
    struct px_timer *timer; /* a batch that is not full goes with the next millisecond */
    int64_t posted_ms;
    struct px_notes *batch;
    unsigned long lost; /* copies dropped */
    unsigned long paces;
    struct px_log_limiter limiter;
};

PX_MUST_USE int px_link_init(struct px_link *link, struct px_error *err);
void px_link_fini(struct px_link *link);
/* Traffic thread: its loop, before the first note; NULL before the loop is destroyed. */
void px_link_attach(struct px_link *link, struct px_loop *loop);
/* Traffic thread. Copies by reference / copies the text; px_link_flush() sends what was noted. */
void px_link_note(struct px_link *link, enum px_note_kind kind, const struct px_msg *msg);
void px_link_note_text(struct px_link *link, enum px_note_kind kind, struct px_span first,
                       struct px_span second);
/* Traffic thread. An answer that the hub waits for; takes both, sends at once. */
void px_link_answer(struct px_link *link, enum px_note_kind kind, struct px_msg *msg, char *text);
/* Whether something was noted that the hub cannot see yet. */
bool px_link_is_gathering(struct px_link *link);
/* Whether the hub is so far behind that it should be given time. */
bool px_link_is_crowded(struct px_link *link);
/* The same, and so far that it must not become more. */
bool px_link_is_full(struct px_link *link);
/* After each socket's turn: at most one batch a millisecond wakes the hub, besides full ones. */
void px_link_flush(struct px_link *link);
/* Hub thread. `order` is copied, its message and strings taken. */
void px_link_order(struct px_link *link, const struct px_order *order);
/* Hub thread, after it has handled a batch: frees it. */
void px_link_notes_done(struct px_link *link, struct px_notes *notes);

/* ---- error replies (reply.c) ----------------------------------------------- */

/* {"status": "error", "ename", "evalue", "traceback", "engine_info"} as ipyparallel's
 * wrap_exception. */
void px_error_content(struct px_buf *out, const char *ename, const char *evalue);
/* client | apply_reply, or client, engine | apply_reply where `engine` is not empty: an error in
 * the engine's stead, whatever the request was, as ipyparallel has it. */
struct px_msg *px_error_reply(struct px_session *session, struct px_span client,
                              struct px_span engine, struct px_span parent, const char *ename,
                              const char *evalue);
/* Whether a request with this header comes from a client of ours. They speak a later protocol than
 * jupyter_client, on which ipyparallel's stands. */
bool px_is_ours(struct px_span header);
/* What is said of a request that did not get to its engine; owned by the caller. */
char *px_say_unsent(struct px_span engine);
/* client | apply_reply: the request was taken back before an engine had it. */
struct px_msg *px_aborted_reply(struct px_session *session, struct px_span client,
                                struct px_span parent);
/* Adds `, "key": number` to the content of such a reply, and signs it anew. */
void px_error_reply_add(struct px_session *session, struct px_msg *reply, const char *key,
                        int number);
/* In the place of a reply, client | ... or client, engine | ..., that its client has no room for:
 * PX_UNREAD (protocol.h). */
struct px_msg *px_unread_reply(struct px_session *session, const struct px_msg *reply);
/* To an engine that a former controller has left, or whose connection was lost: any request that it
 * answers in its turn, and that does nothing. When its answer comes, everything sent to it before
 * on that socket has been answered or is lost. `number` is from 1. */
struct px_msg *px_probe_build(struct px_session *session, struct px_span uuid, unsigned number);
unsigned px_probe_number(struct px_span ident); /* of the client that asks; 0: it is another */
bool px_is_probe(const struct px_msg *reply);   /* E | C | ... */

/* ---- traffic --------------------------------------------------------------- */

struct px_traffic;

struct px_traffic_config {
    struct px_sockets *sockets;
    struct px_link *link;
    const char *key, *signature_scheme;
    const char *scheme;
    int hwm, ping_ms, max_misses;
    bool restored; /* clients and engines of a former controller come back */
};

struct px_traffic *px_traffic_create(const struct px_traffic_config *config, struct px_error *err);
void px_traffic_destroy(struct px_traffic *traffic);
/* Runs until PX_ORDER_STOP; on the traffic thread. */
PX_MUST_USE int px_traffic_run(struct px_traffic *traffic, struct px_error *err);

/* Who is registered, as the traffic thread knows it. */
struct px_engine_entry;
bool px_traffic_knows(struct px_traffic *traffic, struct px_span uuid);
/* An engine was sent a broadcast (1), or has answered one (-1). */
void px_traffic_broadcast(struct px_traffic *traffic, struct px_span uuid, int change);

/* ---- port: a bound socket (port.c) ----------------------------------------- */

enum px_mark { PX_MARK_NONE, PX_MARK_AGAIN, PX_MARK_OLD }; /* PX_AGAIN, PX_AGAIN_OLD */

struct px_port {
    const char *name;
    struct px_socket *socket;
    struct px_session *session;
    size_t least_idents;
    void (*handle)(void *ctx, struct px_msg **msg); /* a verified message; may take it */
    void (*after)(void *ctx);                       /* once after each batch */
    void *ctx, *after_ctx;
    struct px_watch *watch;
    struct px_loop *loop;
    struct px_link *link; /* NULL: it is never paced */
    bool blocked;         /* what comes has nowhere to go: it waits in the socket */
    bool owes;            /* what was sent again is handled even if it did arrive: it is the reply
                           * to it that may have been lost */
    enum px_mark again;   /* what is handled was sent before, and maybe did not arrive */
    unsigned long received, malformed, forged, unroutable, cut;
    int64_t cut_ms; /* when the last was */
    unsigned long long bytes;
    struct px_log_limiter limiter;
};

void px_port_watch(struct px_port *port, struct px_loop *loop);
/* The same for requests of clients that the hub gets copies of: while the hub is far behind, only a
 * batch every PX_PACE_MS is handled, and the rest waits in the socket. So memory does not grow with
 * what a busy machine keeps the hub from doing; a request waits no longer than that, unless the
 * limits of the backlog are near: then all wait until the hub has caught up. */
void px_port_watch_paced(struct px_port *port, struct px_loop *loop, struct px_link *link);
#define PX_PACE_MS 20
/* Handles what has arrived, at most PX_LOOP_BATCH messages. Returns how many there were. */
size_t px_port_drain(struct px_port *port);
/* The same, again and again, but not for ever: a flood must not keep the thread. */
void px_port_drain_all(struct px_port *port);
/* Sends to a client, or an error in its place when too much is unread; for the rest as
 * px_socket_post(). */
PX_MUST_USE enum px_sent px_port_post(struct px_port *port, struct px_msg **msg);
/* The same; a peer that is not there any more loses the message, which is counted. Takes `msg`. */
void px_port_send(struct px_port *port, struct px_msg *msg);
/* Adds what was counted to the list "sockets" of a report, as status_reply has it (protocol.h). */
void px_port_report(const struct px_port *port, const char *side, json_t *report);

/* ---- route: a ROUTER towards engines (route.c) ----------------------------- */

#define PX_ROUTE_RETRY_MS 10
#define PX_ROUTE_PATIENCE_MS                                                                       \
    10000 /* how long a message waits for a registered engine to connect                           \
           */
#define PX_ROUTE_MAX_HELD 100000u

struct px_route;
/* A message could not be delivered: engine | message, borrowed. */
typedef void px_unsent_fn(void *ctx, const struct px_msg *msg);
struct px_route *px_route_create(struct px_loop *loop, struct px_port *port,
                                 struct px_traffic *traffic, px_unsent_fn *unsent, void *ctx);
void px_route_destroy(struct px_route *route);
/* Frame 0 is the engine's uuid. Takes `msg`. A registered engine whose socket is not connected
 * yet gets it when it is, in order; of any other the owner is told, in a later turn. */
void px_route_send(struct px_route *route, struct px_msg *msg);
void px_route_forget(struct px_route *route, struct px_span uuid);

/* ---- clients: replies to clients (clients.c) -------------------------------- */

struct px_clients;
struct px_shared;
/* `port` is the clients' ROUTER; `first` the number that ZeroMQ gives its first connection. */
struct px_clients *px_clients_create(const struct px_shared *shared, struct px_port *port,
                                     uint32_t first);
void px_clients_destroy(struct px_clients *clients);
/* A request came from a client: identity | message. False when it goes by a name of ours
 * (PX_NAMES), which is counted and logged: it is to be dropped. */
PX_MUST_USE bool px_clients_saw(struct px_clients *clients, const struct px_msg *msg);
/* The client of tasks that the hub submits again: who has asked for them reads the books. */
#define PX_RESUBMIT PX_NAMES "resubmit"
/* Frame 0 is the client's identity. Takes `msg`. A client that has gone does not get it; one that
 * has spoken through another connection since, or sent something again through it, or comes back
 * after the controller was restarted, does. PX_RESUBMIT is nobody. */
void px_clients_send(struct px_clients *clients, struct px_msg *msg);

/* ---- relay (relay.c) ------------------------------------------------------- */

struct px_relay;
/* What all parts of the traffic thread are given. */
struct px_shared {
    struct px_loop *loop;
    struct px_session *session;
    struct px_link *link;
    struct px_traffic *traffic;
    int64_t return_ms; /* until then clients of a former controller come back; 0: there was none */
};
void px_shared_after(void *shared); /* a port's `after`: sends the notes */

/* Clients' ROUTER `in` (`first`: px_clients_create), engines' ROUTER `out`. `noted`: whether the
 * hub sees copies. */
struct px_relay *px_relay_create(const struct px_shared *shared, const char *name,
                                 struct px_socket *in, struct px_socket *out, uint32_t first,
                                 bool noted);
void px_relay_destroy(struct px_relay *relay);
/* Passes on what has arrived from engines. */
void px_relay_drain(struct px_relay *relay);
void px_relay_probe(struct px_relay *relay, struct px_span uuid, unsigned number);
/* Sends PX_RETIRE_REQUEST, behind what has come for the engine so far. */
void px_relay_retire(struct px_relay *relay, struct px_span uuid);
/* C | E | a reply in the engine's stead; taken. */
void px_relay_answer(struct px_relay *relay, struct px_msg *msg);
void px_relay_engine_down(struct px_relay *relay, struct px_span uuid);
void px_relay_report(const struct px_relay *relay, json_t *report);

/* The task queue of the scheme "pure": `out` is a DEALER that deals to engines in turn. */
struct px_pure;
struct px_pure *px_pure_create(const struct px_shared *shared, struct px_socket *in,
                               struct px_socket *out);
void px_pure_destroy(struct px_pure *pure);
void px_pure_submit(struct px_pure *pure, struct px_msg *msg);
void px_pure_report(const struct px_pure *pure, json_t *report);

/* ---- iopub (iopub.c) ------------------------------------------------------- */

struct px_iopub;
struct px_iopub *px_iopub_create(const struct px_shared *shared, struct px_socket *in,
                                 struct px_socket *out);
void px_iopub_destroy(struct px_iopub *iopub);
void px_iopub_report(const struct px_iopub *iopub, json_t *report);

/* ---- task (task.c) --------------------------------------------------------- */

struct px_tasks;
struct px_tasks *px_tasks_create(const struct px_shared *shared, struct px_socket *in,
                                 struct px_socket *out, uint32_t first, const char *scheme,
                                 int hwm);
void px_tasks_destroy(struct px_tasks *tasks);
void px_tasks_engine_up(struct px_tasks *tasks, struct px_span uuid, unsigned features);
/* By a PX_ORDER_ENGINE_DOWN: `cause` is told to those whose tasks ran there, `begun` to whoever
 * waits for the one that ran last. */
void px_tasks_engine_down(struct px_tasks *tasks, const struct px_order *order);
/* Passes on what has arrived from engines. */
void px_tasks_drain(struct px_tasks *tasks);
/* A task from the hub: identities | message. Takes `msg`. */
void px_tasks_submit(struct px_tasks *tasks, struct px_msg *msg);
/* Clients take these tasks back: ids each ended by a newline. See px_schedule_abort(). */
void px_tasks_abort(struct px_tasks *tasks, const char *msg_ids);
/* Appends {"<msg_id>": why, ...} for ids each ended by a newline. */
void px_tasks_why(struct px_tasks *tasks, const char *msg_ids, struct px_buf *out);
/* An engine of a former controller, which will say which tasks it has. */
void px_tasks_expect(struct px_tasks *tasks, struct px_span uuid);
/* To a client; taken. */
void px_tasks_answer(struct px_tasks *tasks, struct px_msg *msg);
/* What a former controller left. Takes `msg`. */
void px_tasks_adopt(struct px_tasks *tasks, struct px_span uuid, struct px_msg *msg);
/* Finds out which of its tasks the engine has; the others wait for an engine again. */
void px_tasks_probe(struct px_tasks *tasks, struct px_span uuid);
void px_tasks_remember(struct px_tasks *tasks, struct px_span msg_id, bool succeeded,
                       struct px_span uuid);
void px_tasks_report(const struct px_tasks *tasks, json_t *report);
/* px_schedule_wanting(), px_schedule_retire(). */
size_t px_tasks_wanting(const struct px_tasks *tasks);
PX_MUST_USE bool px_tasks_retire(struct px_tasks *tasks, struct px_span uuid);

/* ---- broadcast (broadcast.c) ----------------------------------------------- */

struct px_broadcast;
struct px_broadcast *px_broadcast_create(const struct px_shared *shared, struct px_socket *in,
                                         struct px_socket *out);
void px_broadcast_destroy(struct px_broadcast *broadcast);
void px_broadcast_engine_down(struct px_broadcast *broadcast, struct px_span uuid);
void px_broadcast_report(const struct px_broadcast *broadcast, json_t *report);

/* ---- heart (heart.c) ------------------------------------------------------- */

struct px_heart;
struct px_heart *px_heart_create(const struct px_shared *shared, struct px_socket *ping,
                                 struct px_socket *pong, int period_ms, int max_misses);
void px_heart_destroy(struct px_heart *heart);
void px_heart_expect(struct px_heart *heart, struct px_span uuid);
void px_heart_forget(struct px_heart *heart, struct px_span uuid);
void px_heart_report(const struct px_heart *heart, json_t *report);

#endif
