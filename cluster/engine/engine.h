/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * engine: the kernel core on a cluster's sockets, and the fork server that makes many of one.
 *
 *     pxengine (fork server)   reads the connection file, warms one interpreter, forks; no thread
 *      │                       of its own and no ZeroMQ context, so that it may fork for ever
 *      ├── nanny               tells the hub at once when an engine has died
 *      ├── engine              attaches, makes a context and a service thread, registers, runs
 *      └── engine …
 */
#ifndef PX_ENGINE_H
#define PX_ENGINE_H

#include "interp/interp.h"
#include "kernel.h"
#include "obituary.h"
#include "tunnel.h"
#include "wire/wire.h"

struct px_engine_config {
    const struct px_cluster_connection *connection;
    const struct px_interp_ops *ops;
    const char *ident;   /* uuid to use; NULL: a random one */
    int wanted_id;       /* asked of the hub; -1: any */
    const char *tags;    /* what px_tags_json() made; NULL: none */
    int timeout_ms;      /* for the hub's answer */
    int max_misses;      /* heartbeats missed before the hub is taken for gone; 0: for ever */
    const char *startup; /* code to run first; NULL */
    const char *adapt;   /* "<owner>:<set>" of who starts and ends it as there is work; NULL */
    int log_level;
    struct px_output_config output;
    struct px_obituary *obituary; /* what it leaves for the fork server */
};

/*
 * Runs one engine on the calling thread, which must be the process's main thread, until it is
 * told to end. Writes "registered <id> <pid>\n" to `report_fd` (-1: to nobody). Returns the
 * exit status. `self` is the language's instance; it is destroyed.
 */
int px_engine_run(const struct px_engine_config *config, void *self, int report_fd);

/*
 * "gpu,big", the names by which clients may choose engines, as features for the registration:
 * `, "tag:gpu", "tag:big"`. Owned by the caller. NULL with PX_EINVAL for what is no name or is an
 * engine's number, PX_ELIMIT for too many.
 */
PX_MUST_USE char *px_tags_json(const char *text, struct px_error *err);

struct px_forkserver_config {
    struct px_engine_config engine;
    struct px_tunnel *tunnel; /* to the controller; NULL: none */
    int count;
    bool restart;     /* an engine that died is replaced */
    bool stop_on_eof; /* all end with standard input, as at SIGTERM; theirs is empty */
    int ready_fd; /* where "started <pid>", "registered <id> <pid>" and "exited <pid> <why>" go, a
                     line each; -1 */
};

/* Forks the engines and serves them until all have ended. Returns the exit status. `self` has been
 * warmed. */
int px_forkserver_run(const struct px_forkserver_config *config, void *self);

/*
 * Forks the nanny. Returns the descriptor to which the fork server writes, a line each, "+<id>"
 * when an engine has registered, "=<id>" when it has told the hub itself that it ends, and
 * "-<id> <msg_id> <begun> <cause>" when it has died; msg_id is "-" when nothing ran, and begun the
 * number of that request's items that had begun, 0 where it has none. The nanny reports the dead,
 * at the descriptor's end those that are left too, and exits. *pid is its process. -1 with an
 * error.
 */
PX_MUST_USE int px_nanny_start(const struct px_cluster_connection *connection, pid_t *pid,
                               struct px_error *err);

#endif
