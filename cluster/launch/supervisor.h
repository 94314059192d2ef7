/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * supervisor: the state that supervisor.c, which acts, and report.c, which tells, share.
 */
#ifndef PX_LAUNCH_SUPERVISOR_H
#define PX_LAUNCH_SUPERVISOR_H

#include "launch.h"

enum phase { STARTING, RUNNING, STOPPING };

struct supervisor {
    const struct px_plan *plan;
    const struct px_place *place;
    struct px_loop *loop;
    enum phase phase;
    int status;
    int64_t begun_ms;
    int channel; /* plan's, until told */
    struct px_watch *channel_watch, *stdin_watch, *parent_watch;

    struct px_set *controller, *engines;
    char set_id[64];
    pid_t controller_pid; /* as in the cluster file */
    bool speaks;          /* engines tell of their registration */
    int registered;
    int seen;       /* of them, by a client */
    bool connected; /* that client is */
    bool alone;     /* has said that no engine is left */

    struct px_files *files; /* for a controller that says nothing */
    struct px_confirm *confirm;
    struct px_timer *deadline, *file_timer;
    struct px_stopper *stopper;
};

/* A line of its own, "pxcluster: ...". */
void px_sv_say(struct supervisor *sv, const char *fmt, ...) PX_PRINTF(2, 3);
/* Engines that are there: they say so themselves, where they can, and a client sees them. */
int px_sv_present(const struct supervisor *sv);
/* The sentence; while starting, with how many engines had registered. */
void px_sv_tell_why(struct supervisor *sv, const char *why);
void px_sv_tell_tail(struct supervisor *sv, const struct px_set *set); /* NULL allowed */
/* A line for each engine that has not registered. */
void px_sv_tell_missing(struct supervisor *sv);
/* `count` engines are there; also to plan->ready_fd, which it closes. */
void px_sv_tell_ready(struct supervisor *sv, int count);
/* Lets a waiting parent go, with this status. */
void px_sv_close_channel(struct supervisor *sv, int status);

#endif
