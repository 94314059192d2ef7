/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * obituary: what an engine leaves for whoever has to say why it died.
 *
 * A page that the engine shares with the fork server says what it is doing; behind it, in the
 * same memory file, there is room for what a deadly signal's handler writes. The fork server makes
 * one for each engine before it forks, and reads it when the engine has ended.
 */
#ifndef PX_OBITUARY_H
#define PX_OBITUARY_H

#include "base/base.h"

#include <sys/resource.h>
#include <sys/types.h>

struct px_obituary;

PX_MUST_USE struct px_obituary *px_obituary_create(struct px_error *err);
void px_obituary_destroy(struct px_obituary *obituary); /* NULL allowed; in either process */

/* ---- in the engine ---- */

/* The interpreter thread starts on a request; longer texts are cut. */
void px_obituary_begin(struct px_obituary *obituary, struct px_span msg_id, struct px_span type);
/* How many items of it it has begun, where it has items: the language writes it. Then 0 again. */
int64_t *px_obituary_begun(struct px_obituary *obituary);
/* It has finished. */
void px_obituary_end(struct px_obituary *obituary);
/* Any thread: the hub was told that the engine ends. */
void px_obituary_leave(struct px_obituary *obituary);
/* Where the handlers of deadly signals write. */
int px_obituary_fd(const struct px_obituary *obituary);

/* ---- in either ---- */

struct px_busy {
    bool running;
    char msg_id[160], type[40];
    double since_s;
    int64_t begun; /* items of it; 0: it has none, or not known */
};
/* What the engine is doing, or was doing at its end. Any thread. */
void px_obituary_look(const struct px_obituary *obituary, struct px_busy *out);
bool px_obituary_has_left(const struct px_obituary *obituary);

/* ---- in the fork server ---- */

/* How many processes the kernel has killed for want of memory, here and in all; -1: not known. */
struct px_oom {
    long group, system;
};
void px_oom_count(struct px_oom *out);
/* Whether it was out of memory that `pid`, which SIGKILL has ended, was killed; `before` is a count
 * from its lifetime. */
bool px_oom_killed(pid_t pid, const struct px_oom *before);

struct px_death {
    pid_t pid;
    int status; /* of waitpid */
    long peak_kb;
    bool out_of_memory;
};
/* The cause in a phrase: "killed by the kernel, out of memory, peak 21.4 GB". One line. */
void px_obituary_cause(const struct px_obituary *obituary, const struct px_death *death,
                       struct px_buf *out);
/* What the handlers wrote, bounded, its end when it is longer; empty for none. */
void px_obituary_text(const struct px_obituary *obituary, struct px_buf *out);

#endif
