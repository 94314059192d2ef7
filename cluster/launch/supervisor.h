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
    bool announced; /* has told that it is ready */

    struct px_files *files; /* for a controller that says nothing */
    struct px_confirm *confirm;
    struct px_timer *deadline, *file_timer;
    struct px_stopper *stopper;
    struct px_adapt *adapt; /* NULL: the number of engines stays */
    bool steady;            /* it does all the same: the controller does not say what waits */
};

/* ---- supervisor.c ---- */

/* Ends everything, then the loop: with this exit status. */
void px_sv_stop(struct supervisor *sv, int status);
/* Tells, once, that it is ready. */
void px_sv_announce(struct supervisor *sv);
/* Starts engines: a set of this id and, where engines come and go, this number. NULL with why. */
struct px_set *px_sv_start_set(struct supervisor *sv, const char *id, int number, int count,
                               struct px_error *err);
/* Writes what there is to the cluster file. Failures are logged. */
void px_sv_write(struct supervisor *sv);
/* With the lock held: one set (NULL: none), and the controller, if that is ours. */
PX_MUST_USE int px_sv_put(struct supervisor *sv, const struct px_set *engines, const char *set_id,
                          struct px_error *err);
/* Whether the controller, which is somebody else's, has ended: as it should, or is `gone`. */
bool px_sv_is_abandoned(const struct supervisor *sv, bool gone);

/* ---- adapt.c ---- */

/* From now on engines come and go, as plan->adapt says. */
void px_sv_adapt(struct supervisor *sv);
/* Looks which of its sets have ended. */
void px_sv_adapt_look(struct supervisor *sv);
/* The sets that it has started, in an array with room for some more, which the caller frees. */
struct px_set **px_sv_adapt_sets(const struct supervisor *sv, size_t room, size_t *count);
/* With the lock held: writes them to the cluster file, takes them out of it. */
PX_MUST_USE int px_sv_adapt_put(struct supervisor *sv, struct px_error *err);
void px_sv_adapt_withdraw(struct supervisor *sv);
void px_sv_adapt_end(struct supervisor *sv); /* nothing is started any more */
void px_sv_adapt_destroy(struct supervisor *sv);

/* ---- report.c ---- */

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
