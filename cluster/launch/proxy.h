/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * proxy: sets whose engines run elsewhere. Each has local children, *proxies*, that live as long as
 * the engines they stand for: an ssh for those of a host, an mpiexec for all. What a proxy writes
 * to stderr goes to its log, and explains its end.
 */
#ifndef PX_LAUNCH_PROXY_H
#define PX_LAUNCH_PROXY_H

#include "launch.h"

/* An engine that a proxy has spoken of, by its pid over there. */
struct px_far_engine {
    pid_t pid;
    int id; /* -1: not registered */
    bool ended;
};

struct px_proxy {
    struct px_proxy_set *set;
    struct px_process process;
    bool child;               /* ours to reap; else known from a cluster file */
    bool ended, asked, heard; /* heard: has said anything */
    char *label;              /* whom messages name: a host, mpiexec */
    char *log;
    int count;     /* engines that it stands for */
    int stdin_fd;  /* of ours into it; -1: none, or closed */
    int stdout_fd; /* what it says; -1: nothing */
    struct px_watch *watch;
    struct px_buf line;
    struct px_far_engine *engines;
    size_t engine_count;
};

struct px_proxy_set {
    struct px_set base;
    struct px_loop *loop; /* NULL for a restored set */
    struct px_set_events events;
    int count;  /* engines */
    bool local; /* only this host can reach the controller */
    struct px_proxy **proxies;
    size_t proxy_count;
    json_t *state; /* for the cluster file, where save() does not make it anew */
    /* A proxy has said its first line, or has ended; may be NULL. */
    void (*settled)(struct px_proxy_set *set);
    /* The sentence in a log that says why its program failed; "" if there is none. */
    void (*reason)(const char *log_text, char *out, size_t size);
};

/* Of `size` bytes: a launcher's own struct may go on behind it. `spec` NULL: restored. */
struct px_proxy_set *px_proxy_set_create(const struct px_launcher_ops *ops,
                                         const struct px_set_spec *spec, size_t size);

struct px_proxy_spec {
    char *const *argv, *const *env; /* env may be NULL */
    const char *label, *log;
    int count;
    bool talks; /* gets a pipe for stdin, and its stdout is read: "started", "registered", "exited"
                 */
};
/* Starts one more. NULL: could not. */
struct px_proxy *px_proxy_start(struct px_proxy_set *set, const struct px_proxy_spec *spec,
                                struct px_error *err);
/* One that a cluster file names. */
void px_proxy_adopt(struct px_proxy_set *set, struct px_process process, const char *log);
void px_proxy_close_stdin(struct px_proxy *proxy);

/* Entries for launchers' rows. */
void px_proxy_signal(struct px_set *set, int signo); /* to the proxies, which pass it on */
size_t px_proxy_refresh(struct px_set *set);
void px_proxy_tail(const struct px_set *set, struct px_buf *out);
void px_proxy_missing(const struct px_set *set, struct px_buf *out);
void px_proxy_destroy(struct px_set *set);
/* For start() that failed half-way: ends what runs, hard, and frees. Returns NULL. */
struct px_set *px_proxy_abandon(struct px_proxy_set *set);

/* What an engine needs to find the controller: the connection file. New reference. */
json_t *px_engine_connection(const struct px_place *place, struct px_error *err);
/* Whether only this host can reach the controller. */
bool px_connection_is_local(const json_t *connection);
/* The same as an item of an environment, for pxengine; caller frees. *local as above. */
char *px_connection_variable(const struct px_place *place, bool *local, struct px_error *err);
#define PX_LOCAL_HINT                                                                              \
    "the controller listens on 127.0.0.1 alone: engines on other hosts need its --ip\n"

#endif
