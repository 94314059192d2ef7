/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * output: how much of a request's text goes out at once, where the rest is kept, and what is
 * written to the descriptors 1 and 2. Private to the kernel core.
 *
 *     Python's print ─────────────┐
 *     C code, children ─ capture ─┴─▶ flow ─▶ outbox          what front ends see
 *                                       └───▶ tail and spool  what is left out of a flood
 */
#ifndef PX_OUTPUT_H
#define PX_OUTPUT_H

#include "kernel.h"

#include <stdatomic.h>

/* ---- flow: a bound on the text of one stream of one request; pure ---- */

/* An allowance that is spent by text and grows with time. Zeroed, it is full. */
struct px_flow {
    int64_t spent;     /* of the burst; more than it after a message that had to go */
    int64_t filled_ms; /* until when the growth is counted */
    int64_t item_ms;   /* when its last message was begun */
    int items;         /* messages begun with no pause between them */
    atomic_bool held;  /* some text is; read without a lock, too, by those whom a guess helps */
    bool midline;      /* what was shown last ended no line */
    struct px_flood *flood; /* NULL until text was held; the outbox's business */
};

/* What text costs: as many bytes as its JSON has, near enough. */
size_t px_flow_cost(const char *text, size_t size);
/* True, and the text's cost is spent, when that is affordable without a look at the clock. */
bool px_flow_try(struct px_flow *flow, const struct px_output_config *config, const char *text,
                 size_t size);
/* How much of the beginning of `text` may go now, whole lines where it is not all: spends that. */
size_t px_flow_admit(struct px_flow *flow, const struct px_output_config *config, const char *text,
                     size_t size, int64_t now_ms);
/* Milliseconds until `cost` may go; 0: now. At most a minute, as a wait without end is no use. */
int64_t px_flow_wait(struct px_flow *flow, const struct px_output_config *config, size_t cost,
                     int64_t now_ms);
void px_flow_spend(struct px_flow *flow, size_t cost);

/* The last text of a flood, in a ring, and how much there was. Zeroed, it is empty. */
#define PX_TAIL_SIZE (32u << 10)
struct px_tail {
    char *data; /* PX_TAIL_SIZE bytes, or NULL */
    size_t next, size;
    uint64_t bytes, lines; /* that were added */
};
void px_tail_add(struct px_tail *tail, const char *text, size_t size);
/* Appends what it holds, from the start of a line (of a character where there is none), and
 * empties it. The bytes and lines that are no more: 0 when all is there. */
uint64_t px_tail_take(struct px_tail *tail, struct px_buf *out, uint64_t *lines);
void px_tail_fini(struct px_tail *tail);

/* ---- spool: files that hold what was left out ---- */

/* Writes on a thread of its own, which exists once something was left out. Any thread may call. */
struct px_spool;
struct px_spool_file;

/* All files together hold at most `most` bytes; the oldest go first. */
struct px_spool *px_spool_create(uint64_t most);
/* Ends the thread. Files stay, for a week at most (spool.c). NULL allowed. */
void px_spool_destroy(struct px_spool *spool);
/* A new file, released by the caller; never NULL: px_spool_describe says what became of it. `name`
 * is the beginning of its name. */
struct px_spool_file *px_spool_open(struct px_spool *spool, const char *name);
/* Nobody adds to it any more; it stays for people to read. NULL allowed. */
void px_spool_release(struct px_spool *spool, struct px_spool_file *file);
/* Copies the text for the thread to write. */
void px_spool_add(struct px_spool *spool, struct px_spool_file *file, const char *text,
                  size_t size);
/* True while the disk is so far behind that writers had better wait. */
bool px_spool_full(struct px_spool *spool);
/* Waits until that is over. */
void px_spool_wait(struct px_spool *spool);
/* Waits until all is written, at most `timeout_ms`. */
void px_spool_settle(struct px_spool *spool, int64_t timeout_ms);
/* Appends a sentence: where the text is, or why it is not. */
void px_spool_describe(struct px_spool *spool, const struct px_spool_file *file,
                       struct px_buf *out);

/* ---- capture: what is written to the descriptors 1 and 2 ---- */

struct px_capture;

struct px_capture *px_capture_create(struct px_error *err);
void px_capture_destroy(struct px_capture *capture); /* NULL allowed */
/* Readable when px_capture_drain() has something to do. */
int px_capture_fd(const struct px_capture *capture, enum px_stream which);
/* From now on what is written to 1 and 2 is captured, and the log goes where 2 went. */
void px_capture_begin(struct px_capture *capture);
/* Gives the descriptors back, where they still are the pipes. */
void px_capture_end(struct px_capture *capture);
/* On the thread that ran the user's code: what C code has printed and libc still holds goes to 1. */
void px_capture_flush(struct px_capture *capture);
/* Any thread: gives away what is there, in whole characters; with `all` the rest of one, too. Never
 * waits, but for another thread that does the same. */
typedef void px_capture_fn(void *ctx, enum px_stream which, const char *text, size_t size);
void px_capture_drain(struct px_capture *capture, bool all, px_capture_fn *take, void *ctx);

#endif
