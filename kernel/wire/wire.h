/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * wire: Jupyter messages on ZeroMQ: frames, signatures, connection files, sockets.
 *
 * A message on the wire (jupyter_client, "Messaging in Jupyter", The Wire Protocol, 5.x):
 *
 *     identity ...        zero or more: routing ids, or the topic on iopub
 *     <IDS|MSG>           the first frame that equals this ends the identities
 *     signature           lowercase hex HMAC of the next four frames; empty without a key
 *     header              {"msg_id", "msg_type", "username", "session", "date", "version"}
 *     parent header       {} or the header of the request
 *     metadata            {}
 *     content             {}
 *     buffer ...          opaque, not signed
 *
 * Receiving has one order: px_socket_recv() counts frames; px_msg_locate() finds the
 * delimiter and checks lengths; px_session_verify() compares the signature over the raw
 * bytes in constant time and refuses replays; only then are the JSON frames looked at,
 * and only those that decide something.
 *
 * No object here is shared between threads without a queue in between: a message or a
 * socket has one owner, a session belongs to one thread. ZeroMQ itself counts references
 * to a frame's bytes, so px_msg_copy() may hand the same bytes to another thread.
 */
#ifndef PX_WIRE_H
#define PX_WIRE_H

#include "base/base.h"

#include <jansson.h>

/* ---- limits on what comes from outside -------------------------------- */

#define PX_MAX_FRAMES (1 << 18)         /* apply with many arguments: one frame each */
#define PX_MAX_IDENTITIES 16            /* a broadcast tree of depth 10 needs 12 */
#define PX_MAX_IDENTITY 255             /* ZeroMQ's own limit on a routing id */
#define PX_MAX_HEADER (64u << 10)       /* header and parent header; real ones have 210 bytes */
#define PX_MAX_JSON (256u << 20)        /* metadata, content */
#define PX_MAX_FRAME ((int64_t)64 << 30) /* any frame, ZMQ_MAXMSGSIZE: who gets more hangs up */
#define PX_MAX_JSON_VALUES (4u << 20)   /* some fifty bytes each, once parsed */
#define PX_MAX_JSON_DEPTH 512           /* the scanner; jansson has its own limit of 2048 */
#define PX_REPLAY_WINDOW 65536 /* signatures remembered, as jupyter_client's digest history */

#define PX_DELIMITER "<IDS|MSG>"
#define PX_PROTOCOL_VERSION "5.5"

/* ---- message: a vector of frames -------------------------------------- */

struct px_msg;

struct px_msg *px_msg_create(void);
void px_msg_destroy(struct px_msg *msg); /* NULL allowed */
/* A second handle on the same bytes (frames are shared by reference). */
struct px_msg *px_msg_copy(const struct px_msg *msg);

size_t px_msg_count(const struct px_msg *msg);
struct px_span px_msg_frame(const struct px_msg *msg,
                            size_t index);     /* valid while msg is not changed */
size_t px_msg_bytes(const struct px_msg *msg); /* of all frames */

void px_msg_append(struct px_msg *msg, const void *data, size_t size); /* copies */
/* Sends `data` without a copy; `release(data, hint)` is called once, from any thread. */
void px_msg_append_new(struct px_msg *msg, void *data, size_t size,
                       void (*release)(void *data, void *hint), void *hint);
/* Appends, by reference, frames [first, first + count) of `from`. */
void px_msg_append_frames(struct px_msg *msg, const struct px_msg *from, size_t first,
                          size_t count);
void px_msg_prepend(struct px_msg *msg, const void *data, size_t size); /* copies */
void px_msg_drop_front(struct px_msg *msg, size_t count);
void px_msg_swap(struct px_msg *msg, size_t a, size_t b); /* exchanges two frames */
/* A second handle on a located message, with one identity more: the last. */
struct px_msg *px_msg_marked(const struct px_msg *msg, const char *ident);
/* Replaces one frame's bytes (copies `data`). */
void px_msg_replace(struct px_msg *msg, size_t index, const void *data, size_t size);

/*
 * Finds the delimiter and checks frame counts and sizes against the limits above.
 * Until it has succeeded, the accessors below must not be called; afterwards the
 * offsets follow px_msg_prepend and px_msg_drop_front. PX_EINVAL, PX_ELIMIT.
 */
PX_MUST_USE int px_msg_locate(struct px_msg *msg, struct px_error *err);

size_t px_msg_ident_count(const struct px_msg *msg);
struct px_span px_msg_ident(const struct px_msg *msg, size_t index);
struct px_span px_msg_signature(const struct px_msg *msg);
struct px_span px_msg_header(const struct px_msg *msg);
struct px_span px_msg_parent(const struct px_msg *msg);
struct px_span px_msg_metadata(const struct px_msg *msg);
struct px_span px_msg_content(const struct px_msg *msg);
size_t px_msg_buffer_count(const struct px_msg *msg);
struct px_span px_msg_buffer(const struct px_msg *msg, size_t index);
/* Index of the first buffer among all frames, for px_msg_append_frames. */
size_t px_msg_first_buffer(const struct px_msg *msg);

/* Parses a JSON frame with jansson; new reference. PX_EINVAL when it is not an object, PX_ELIMIT
 * when it has more than PX_MAX_JSON_VALUES. Any thread. */
json_t *px_json_parse(struct px_span text, struct px_error *err);
/* -1 with that PX_ELIMIT, for whoever parses a part of it. Pure. */
PX_MUST_USE int px_json_bounded(struct px_span text, struct px_error *err);

/* ---- scan: a few fields of a JSON object, without a parse -------------- */

/*
 * Finds the values of up to 16 top-level keys of the JSON object `object`. values[i] becomes the
 * raw text of the value of keys[i] (strings with their quotes), or an empty span with NULL data
 * when it is absent; the last of duplicates wins. The text is checked to be one well-formed object
 * within PX_MAX_JSON_DEPTH (UTF-8 inside strings is not validated). Returns -1 when it is malformed
 * or when the scan is not sure (an escape inside a top-level key): then parse.
 */
PX_MUST_USE int px_scan(struct px_span object, const char *const *keys, struct px_span *values,
                        size_t count);
/* A raw string value without escapes: its bytes between the quotes. False otherwise. */
bool px_scan_string(struct px_span value, struct px_span *out);
/* The same of one member of an object; an empty text when there is no such string. */
struct px_span px_scan_member(struct px_span object, const char *key);
bool px_scan_true(struct px_span value);

/* The header fields that decide. Spans point into the frame. */
struct px_header {
    struct px_span msg_id, msg_type, session, date, subshell_id;
};
/* PX_EINVAL unless msg_id, msg_type are plain strings (no escapes) of at most 255 bytes; the others
 * may be absent (empty). */
PX_MUST_USE int px_header_scan(struct px_span header, struct px_header *out, struct px_error *err);

/* ---- session: who we are, signing, verifying --------------------------- */

struct px_session;

#define PX_ID_SIZE 34 /* "8hex-24hex" and a 0 */
void px_id_random(char out[PX_ID_SIZE]);

/*
 * `key` may be empty: then signatures are empty and nothing is verified, replays included
 * (as jupyter_client). `scheme` is "hmac-<hash>", NULL for hmac-sha256. `id` NULL for a random one.
 * PX_EINVAL for an unknown scheme, and for an id that is not ASCII, has quotes or a backslash, or
 * more than 127 characters. Belongs to one thread.
 */
struct px_session *px_session_create(const char *key, const char *scheme, const char *id,
                                     struct px_error *err);
void px_session_destroy(struct px_session *session);
const char *px_session_id(const struct px_session *session);

/*
 * Verifies a located message: signature present, right (constant time), not seen before; then
 * remembers it. PX_EAUTH otherwise, PX_EEXIST for one that was seen before. The session's replay
 * window is PX_REPLAY_WINDOW.
 */
PX_MUST_USE int px_session_verify(struct px_session *session, const struct px_msg *msg,
                                  struct px_error *err);

/* A message that was verified may come once more: it was handed back unread, and is expected
 * again. */
void px_session_forget(struct px_session *session, const struct px_msg *msg);

/* What a new message consists of; empty spans mean "{}". */
struct px_draft {
    const struct px_span *idents; /* routing ids or the topic */
    size_t ident_count;
    const struct px_msg *idents_of; /* or: all identities of this located message, by reference */
    const char *type;
    struct px_span parent;   /* JSON of the parent header */
    struct px_span metadata; /* JSON */
    struct px_span content;  /* JSON */
};

/*
 * A new signed, located message with a fresh header (msg_id "<session>_<pid>_<n>", date now).
 * Never fails. Append buffers afterwards; they are not signed.
 */
struct px_msg *px_session_build(struct px_session *session, const struct px_draft *draft);
/* The msg_id of the message built last; valid until the next build. */
const char *px_session_last_id(const struct px_session *session);
/* Signs again after px_msg_replace on a JSON frame. */
void px_session_resign(struct px_session *session, struct px_msg *msg);

/* ---- sockets ------------------------------------------------------------ */

/* The only place that talks to libzmq sockets. One owner thread per socket. */
struct px_socket;

enum px_socket_type { PX_ROUTER, PX_DEALER, PX_PUB, PX_SUB, PX_XPUB, PX_PAIR };

/* A ZeroMQ context with `io_threads`; one a process, made after any fork. */
void *px_context_create(int io_threads);
void px_context_destroy(void *context); /* blocks until lingering messages are out */

/*
 * The memory of large frames. The C library maps and unmaps it anew for each, so that the kernel
 * fills every page with zeros, one fault at a time, before the message is copied there: more than
 * half of the time that a frame of 100 MB takes. After px_blocks_use() libzmq's frames of
 * 256 kB and more lie, in this process, in blocks that are kept for the next frame (imports.c; with
 * imports_none.c in its place nothing changes). For programs of ours: a library must not do that to
 * somebody else's process, and in a client it was seen to gain nothing.
 *
 * Kept blocks are let go of when none was asked for in PX_BLOCKS_WARM_MS. Whoever has a loop looks
 * after that: while px_blocks_warm(), it calls px_blocks_cool(PX_BLOCKS_WARM_MS), which returns in
 * how many ms to call it again; 0: no more. px_blocks_cool(0) lets go of all at once. Any thread.
 */
#define PX_BLOCKS_WARM_MS 5000
void px_blocks_use(void);
bool px_blocks_warm(void);
int64_t px_blocks_cool(int64_t idle_ms);

/*
 * Without a free descriptor libzmq 4.3 ends the process when somebody connects to a Unix socket.
 * After px_sockets_guard() those who come then are turned away, with a line in the log, and come
 * again. For programs of ours that listen there; where imports_none.c is, nothing changes.
 */
void px_sockets_guard(void);

/*
 * libzmq asks the system for the process's id whenever it looks for news, some four times a message,
 * to notice that it was forked. After px_pid_keep() it is told without a system call; pthread_atfork()
 * notices. For programs of ours; where imports_none.c is, nothing changes.
 */
void px_pid_keep(void);

/*
 * No high-water mark, LINGER 1000 ms, ZMQ_MAXMSGSIZE PX_MAX_FRAME, of XPUBs what topics need.
 * ROUTERs report peers that are not there (ZMQ_ROUTER_MANDATORY): see px_socket_send.
 */
struct px_socket *px_socket_create(void *context, enum px_socket_type type, struct px_error *err);
void px_socket_destroy(struct px_socket *socket);                      /* NULL allowed */
void px_socket_set_identity(struct px_socket *socket, const char *id); /* before connect or bind */
void px_socket_set_hwm(struct px_socket *socket, int messages);        /* send and receive */
/* Before connect or bind: a peer that sends a larger frame loses its connection. At most
 * PX_MAX_FRAME. */
void px_socket_set_largest(struct px_socket *socket, size_t frame_bytes);
/* PUB and XPUB, before connect or bind: at most so many messages wait for a subscriber. What he has
 * no room for the others get all the same, and px_socket_send says so. */
void px_socket_set_bounded(struct px_socket *socket, int messages);
/* XPUB: what each subscriber gets as soon as it connects, and nobody else. */
void px_socket_set_welcome(struct px_socket *socket, struct px_span frame);
void px_socket_set_linger(struct px_socket *socket, int ms);
/* Finds out that a peer is gone without a word (a cable, a firewall, a NAT that forgot): libzmq
 * asks now and then, and a connection that is silent for `timeout_ms`, within bounds, is cut.
 * Before connect or bind. For peers that must not be cut while they are suspended: not at all. 0: TCP
 * alone asks, where the socket may be full (a mark on what is received): libzmq 4.3.4 ends the
 * process when it wants to ask a peer that has died meanwhile. */
void px_socket_set_heartbeat(struct px_socket *socket, int64_t timeout_ms);
void px_socket_set_handover(struct px_socket *socket); /* ROUTER: a new peer takes over an id */
void px_socket_subscribe(struct px_socket *socket, const char *prefix);
/* CURVE, Z85 keys of 40 characters; before connect or bind. */
void px_socket_curve_server(struct px_socket *socket, const char *secret_key);
void px_socket_curve_client(struct px_socket *socket, const char *server_key);
#define PX_CURVE_KEY_SIZE 41 /* 40 characters and a 0 */
/* A fresh key pair. PX_EIO when this libzmq has no CURVE. */
PX_MUST_USE int px_curve_keypair(char public_key[PX_CURVE_KEY_SIZE],
                                 char secret_key[PX_CURVE_KEY_SIZE], struct px_error *err);
/* The public key of a secret one. PX_EINVAL when it is not a key. */
PX_MUST_USE int px_curve_public(char public_key[PX_CURVE_KEY_SIZE], const char *secret_key,
                                struct px_error *err);

/* PX_EEXIST when the address is taken, PX_EINVAL when it is not an address, PX_EIO. */
PX_MUST_USE int px_socket_bind(struct px_socket *socket, const char *endpoint,
                               struct px_error *err);
/* Binds `interface`:port (tcp) or -port (ipc); with *port 0 chooses a free one and stores it. */
PX_MUST_USE int px_socket_bind_port(struct px_socket *socket, const char *interface, int *port,
                                    struct px_error *err);
PX_MUST_USE int px_socket_connect(struct px_socket *socket, const char *endpoint,
                                  struct px_error *err);
/* Waits until the first connection made after this call's `connect` has shaken hands: connects and
 * waits up to `timeout_ms`. PX_ETIME. For SUB sockets: what is published from now on arrives. */
PX_MUST_USE int px_socket_connect_wait(struct px_socket *socket, const char *endpoint,
                                       int64_t timeout_ms, struct px_error *err);

/* Ends the TCP connections of this process's px_sockets to these ports, for the network may have
 * done so without a word. libzmq connects anew; what was under way is lost, what was not written
 * yet is not. How many there were. */
size_t px_connections_cut(const int ports[], size_t count);

/* A socket that gets a message each time that a connection of `socket` is lost, to which libzmq
 * then goes on to connect again, and when it is there. One for each socket, after its connections
 * were waited for, which ends it; the caller's. */
struct px_socket *px_socket_monitor(struct px_socket *socket, struct px_error *err);
/* Which of the two such a message says. */
bool px_monitor_says_lost(const struct px_msg *event);

enum px_sent {
    PX_SENT,         /* *msg was taken and is NULL now */
    PX_SENT_TO_SOME, /* PUB, XPUB, bounded: taken, but a subscriber who reads too slowly goes
                        without */
    PX_NO_ROUTE,     /* ROUTER: no such peer (yet); *msg is still the caller's, whole */
    PX_WOULD_BLOCK,  /* full; *msg is still the caller's, whole */
    PX_SEND_FAILED,  /* the context is gone; *msg is still the caller's */
};
/* Sends all frames without blocking. On a ROUTER frame 0 is the peer's id. */
PX_MUST_USE enum px_sent px_socket_send(struct px_socket *socket, struct px_msg **msg);
/* The same, but for PX_WOULD_BLOCK when a subscriber of a bounded PUB or XPUB has no room. */
PX_MUST_USE enum px_sent px_socket_offer(struct px_socket *socket, struct px_msg **msg);

/*
 * What peers of ROUTERs have not taken yet, in bytes: of all sockets that count for one store,
 * which may belong to several threads. When it is as much as `most_bytes`, px_socket_send() and
 * px_socket_post() refuse with PX_WOULD_BLOCK what is for a peer who has left a megabyte unread;
 * messages of 4 KB and less have 256 MB more. What is refused is not queued: the caller says
 * so.
 */
struct px_unread *px_unread_create(size_t most_bytes);
void px_unread_destroy(struct px_unread *store); /* NULL allowed; before or after its sockets */
size_t px_unread_bytes(const struct px_unread *store); /* any thread */
void px_socket_count_unread(struct px_socket *socket,
                            struct px_unread *store); /* before it sends */

/*
 * Bundles: small messages to one peer go together, as one of libzmq's (bundle.c). A socket that takes
 * them gives out their messages one by one; to a peer from which it has had one, or that it has
 * greeted, px_socket_post() sends such. Greet only who is known to understand it. What px_socket_post()
 * has taken goes out with px_socket_flush(), before whatever px_socket_send() sends, and when the
 * socket is destroyed; for the rest as px_socket_send().
 */
void px_socket_take_bundles(struct px_socket *socket);
void px_socket_greet(struct px_socket *socket, const char *peer); /* "" where it has but one */
void px_socket_forget_greeting(struct px_socket *socket, const char *peer);
PX_MUST_USE enum px_sent px_socket_post(struct px_socket *socket, struct px_msg **msg);
void px_socket_flush(struct px_socket *socket);
/* A message as bytes, as bundles have it. Unpacking takes one off the front; NULL when it is none. */
void px_msg_pack(const struct px_msg *msg, struct px_buf *out);
struct px_msg *px_msg_unpack(struct px_span *bytes);

/*
 * Receives one message without blocking; NULL when there is none, or when only empty bundles have
 * come so far. A message with more than PX_MAX_FRAMES frames is read to its end, dropped and counted
 * (px_socket_oversized), and the next one is tried; so is the rest of a bundle that is none
 * (px_socket_broken).
 */
struct px_msg *px_socket_recv(struct px_socket *socket);
unsigned long px_socket_oversized(const struct px_socket *socket);
unsigned long px_socket_broken(const struct px_socket *socket);
/* Waits up to timeout_ms (< 0: for ever) until the socket can be read. False at the deadline or
 * when a signal was handled. For programs without a loop. */
bool px_socket_wait(struct px_socket *socket, int64_t timeout_ms);
/* For px_loop_socket. The socket must outlive the watch. */
struct px_pollable px_socket_pollable(struct px_socket *socket);
void *px_socket_raw(struct px_socket *socket); /* the libzmq handle, for tests */

/* ---- connection files ---------------------------------------------------- */

#define PX_PATH_SIZE 4096
#define PX_ENDPOINT_SIZE 300

/* A kernel's connection file (jupyter_client, "Connection files"). Strings are owned. The keys,
 * which make all channels encrypted, are Z85 and a pair, or NULL (jupyter_client 8.9, "Transport
 * security for kernels"). With a registration_port, which is 0 otherwise, the file is a
 * registration file (Jupyter Enhancement Proposal 66): the kernel tells its ports there. */
struct px_kernel_connection {
    char *transport, *ip, *key, *signature_scheme, *kernel_name, *curve_publickey, *curve_secretkey;
    int shell_port, control_port, stdin_port, iopub_port, hb_port;
    int registration_port;
};
/* PX_ENOENT, PX_EIO, PX_EINVAL with a sentence that names the file and the key. Zero ports are
 * allowed: the kernel chooses and writes them. Those of a registration file, which an earlier
 * kernel wrote, are read as 0. */
PX_MUST_USE int px_kernel_connection_read(const char *path, struct px_kernel_connection *out,
                                          struct px_error *err);
PX_MUST_USE int px_kernel_connection_write(const char *path,
                                           const struct px_kernel_connection *connection,
                                           struct px_error *err);
void px_kernel_connection_fini(struct px_kernel_connection *connection);

#define PX_MAX_LEAVES 64 /* broadcast leaves: depth 6 */

/* ipcontroller-{client,engine}.json (ipyparallel 7.1, controller/app.py). A port that the role
 * lacks is 0. Owned strings.
 */
struct px_cluster_connection {
    char *ssh, *interface, *key, *curve_serverkey, *location, *pack, *unpack, *signature_scheme;
    char *local;       /* see px_cluster_local; "" or NULL: none */
    char *task_scheme; /* client */
    int registration, control, mux, task, iopub;
    int notification;     /* client */
    int hb_ping, hb_pong; /* engine */
    int broadcast[PX_MAX_LEAVES];
    size_t broadcast_count; /* client: 1 */
};
enum px_role { PX_ROLE_CLIENT, PX_ROLE_ENGINE };

/* What to say after PX_ENOENT of a profile or of a connection file. */
#define PX_START_HINT "; is a cluster running? (pxcluster start)"

/* Refuses packers other than json, and missing keys, by name. */
PX_MUST_USE int px_cluster_connection_read(const char *path, enum px_role role,
                                           struct px_cluster_connection *out, struct px_error *err);
PX_MUST_USE int px_cluster_connection_parse(struct px_span json, const char *name,
                                            enum px_role role, struct px_cluster_connection *out,
                                            struct px_error *err);
/* Written whole under another name, mode 0600, then renamed into place. */
PX_MUST_USE int px_cluster_connection_write(const char *path, enum px_role role,
                                            const struct px_cluster_connection *connection,
                                            struct px_error *err);
void px_cluster_connection_fini(struct px_cluster_connection *connection);
/* The endpoint a peer connects to: the local one if anybody listens there (a connection is tried,
 * and closed at once), otherwise the network's, with 0.0.0.0, * and [::] resolved
 * (ipyparallel.util.disambiguate_url). */
PX_MUST_USE int px_cluster_endpoint(const struct px_cluster_connection *connection, int port,
                                    char out[PX_ENDPOINT_SIZE], struct px_error *err);
/*
 * Where pxcontroller listens besides `port`, for peers on its host: a Unix domain socket in the
 * abstract name space, "@<px_local>-<port>". Large messages take half the time that they take by
 * TCP. Other peers pass over "px_local" in the file. False when the file names none.
 */
bool px_cluster_local(const struct px_cluster_connection *connection, int port,
                      char out[PX_ENDPOINT_SIZE]);

/* ---- configuration files (config.c) ---------------------------------------- */

/* Told of one setting: `name` is "Class.trait", `literal` a Python or JSON literal, both for the
 * time of the call. 0, or -1 with PX_ENOENT for a trait that the program does not have. */
typedef int (*px_config_set)(void *ctx, const char *name, struct px_span literal,
                             struct px_error *err);
/* A file's text: of .py the lines `c.Class.trait = literal`, or the object of .json. What is neither
 * is passed over; a value that `set` refuses is logged. Returns how many it took, or -1 for what is
 * no object. Pure otherwise. */
int px_config_py(struct px_span text, px_config_set set, void *ctx);
int px_config_json(struct px_span text, px_config_set set, void *ctx);
/* Whether the text of a .py has more than comments and get_config(), and with `literals` more than
 * px_config_py() reads. */
bool px_config_has_code(struct px_span text, bool literals);
/*
 * Appends to `out` as JSON, {class: {trait: value}}, what a .py sets, which `python` runs, or with
 * NULL the one of px_pythons() that has traitlets. PX_EIO: there is none; PX_EINVAL: the file raised.
 */
PX_MUST_USE int px_config_run(const char *path, const char *python, struct px_buf *out,
                              struct px_error *err);
/* The file, of either kind by its name, which `python` runs where it is a program. Where there is
 * no Python, a warning, and what px_config_py() takes. */
PX_MUST_USE int px_config_file(const char *path, const char *python, px_config_set set, void *ctx,
                               struct px_error *err);
/* The same of <profile>/<program>_config.py, then .json, of which there may be none. */
PX_MUST_USE int px_config_profile(const char *profile_dir, const char *program, const char *python,
                                  px_config_set set, void *ctx, struct px_error *err);
/* 'x', "x", b'x' without quotes and escapes (of "x" those of JSON); anything else as it is. The
 * caller frees. */
char *px_config_unquote(struct px_span literal);
/* The key in a file, without the white space around it; the caller frees. NULL on failure. */
char *px_key_file_read(const char *path, struct px_error *err);

/* ---- profile directories --------------------------------------------------- */

struct px_profile_choice {
    const char *ipython_dir; /* NULL: $IPYTHONDIR, else ~/.ipython */
    const char *profile;     /* NULL: default */
    const char *profile_dir; /* NULL: $IPP_PROFILE_DIR, else from the two above */
    const char *cluster_id;  /* NULL: $IPP_CLUSTER_ID, else "" */
};
/* The profile directory's path. PX_ENOENT when it does not exist and `create` is false; with
 * `create` makes it with security, pid and log (0700), and startup. */
PX_MUST_USE int px_profile_dir(const struct px_profile_choice *choice, bool create,
                               char out[PX_PATH_SIZE], struct px_error *err);
const char *px_profile_cluster_id(const struct px_profile_choice *choice);
/* <profile>/security/ipcontroller[-<id>]-{client,engine}.json */
void px_profile_connection_file(const char *profile_dir, const char *cluster_id, enum px_role role,
                                char out[PX_PATH_SIZE]);
/* <profile>/security/cluster-<id>.json */
void px_profile_cluster_file(const char *profile_dir, const char *cluster_id,
                             char out[PX_PATH_SIZE]);

/* Reads a whole file of at most `most` bytes. */
PX_MUST_USE int px_file_read(const char *path, size_t most, struct px_buf *out,
                             struct px_error *err);
/* Writes all to a descriptor that blocks. -1 with errno. */
int px_fd_write(int fd, struct px_span data);
/* Makes a directory, and those above it. `mode`: of the last; the others get 0755. */
PX_MUST_USE int px_dir_make(const char *path, int mode, struct px_error *err);
/* Writes under another name beside `path`, then renames; `mode` as for open(2). */
PX_MUST_USE int px_file_write(const char *path, int mode, struct px_span data,
                              struct px_error *err);

#endif
