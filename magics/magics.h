/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Private to magics: the contract of its pure half.
 *
 *     line.c      a line of the %px family becomes options and code
 *     targets.c   which engines it means
 *     teller.c    what engines write becomes one labelled, bounded text
 *     fold.c      what is equal; ranges of engines
 *     render.c    labels, results, lists of engines, the progress line
 *     stacks.c    engines' stacks become one tree
 *     why.c       what the scheduler says about a task becomes sentences
 *
 * The other half is the IPython face, phalanx._magics (pxmagics.h).
 */
#ifndef PX_MAGICS_H
#define PX_MAGICS_H

#include "base/base.h"

/* ---- targets ------------------------------------------------------------------- */

#define PX_TARGETS_MOST 65536 /* engines that one line may name */
#define PX_TARGETS_NAME 64    /* bytes of a tag or host */

enum px_targets_kind {
    PX_TARGETS_DEFAULT, /* not said: the view's own */
    PX_TARGETS_ALL,
    PX_TARGETS_ONE,   /* an id; negative: from the end */
    PX_TARGETS_LIST,  /* several of these */
    PX_TARGETS_SLICE, /* positions among the ids, as in Python: first:end:step */
    PX_TARGETS_NAMED, /* a tag or host, which the client looks up */
};

struct px_targets {
    enum px_targets_kind kind;
    long first, end, step; /* ONE: first. SLICE: as far as has_first, has_end say */
    bool has_first, has_end;
    long *list; /* LIST: owned */
    size_t count;
    char name[PX_TARGETS_NAME + 1]; /* NAMED */
};

/* Parses "all", "3", "-1", "0:2", "::2", "0,2", "[0, -1]", "gpu". PX_EINVAL. */
PX_MUST_USE int px_targets_parse(struct px_span text, struct px_targets *out, struct px_error *err);
/* The engine ids meant by all but a name, given those registered (ascending); `out` holds `most` of
 * them. -1 with PX_ENOENT when one does not exist or none is meant. Otherwise how many there are.
 */
PX_MUST_USE long px_targets_resolve(const struct px_targets *targets, const int *ids, size_t count,
                                    int *out, size_t most, struct px_error *err);
void px_targets_fini(struct px_targets *targets);

/* ---- line ----------------------------------------------------------------------- */

#define PX_NAME_SIZE 256 /* a Python name after --out */

enum px_group { PX_GROUP_TYPE, PX_GROUP_ENGINE, PX_GROUP_ORDER };
extern const char *const px_group_names[]; /* by enum px_group */

#define PX_NAMES_MOST 256 /* after --push or --pull */
#define PX_SIGNAL_SIZE 16
#define PX_SIGNAL_MOST 64

struct px_name {
    char text[PX_NAME_SIZE];
    long engine; /* --pull c@0: 0; -1: every engine's */
};
struct px_names {
    struct px_name *list;
    size_t count;
};

enum px_magic {
    PX_MAGIC_PX,     /* %px: options, then code */
    PX_MAGIC_CELL,   /* the line of a %%px */
    PX_MAGIC_CONFIG, /* %pxconfig */
    PX_MAGIC_RESULT, /* %pxresult */
    PX_MAGIC_STACKS, /* %pxstacks */
};

/* Yes-or-no options are -1 when the line does not say. */
struct px_line {
    int block, stream, verbose, fold, local;
    int group;                      /* enum px_group; -1 when not said */
    double progress_after, timeout; /* seconds; NAN when not said */
    char signal[PX_SIGNAL_SIZE];    /* "SIGINT", "2", "0" for none; "" when not said */
    char out[PX_NAME_SIZE];         /* "" when not said */
    struct px_names push, pull;
    struct px_targets targets;
    size_t code; /* where in the line its code begins; its length when there is none */
    bool help;   /* --help: nothing is to be done */
};

/*
 * Parses the options of a line. All but a %px take options alone. An error is one line that names
 * what is wrong. px_line_fini in any case.
 */
PX_MUST_USE int px_line_parse(struct px_span line, enum px_magic magic, struct px_line *out,
                              struct px_error *err);
void px_line_fini(struct px_line *line);
/* One screen: the options, and two examples. */
void px_line_help(enum px_magic magic, struct px_buf *out);

/* ---- fold --------------------------------------------------------------------- */

/* first[i] becomes the least j whose key equals key i. */
void px_fold(const struct px_span *keys, size_t count, size_t *first);
/* Lists those whose first is `group`, and says how many there are; none, if it has another itself.
 */
size_t px_fold_members(const size_t *first, size_t count, size_t group, size_t *members);
/* Appends what tells one error from another in a traceback: without colors, addresses, the
 * numbers of cells and the ids of tasks, which differ between engines. */
void px_fold_error_key(struct px_buf *out, struct px_span traceback);

/* ---- teller ---------------------------------------------------------------------- */

enum px_stream { PX_STDOUT, PX_STDERR };
extern const char *const px_stream_names[]; /* by enum px_stream */

struct px_teller;

/* `engines`: the id of each task's engine. `fold`: text that several say is told once. */
struct px_teller *px_teller_create(const int *engines, size_t count, bool fold);
void px_teller_destroy(struct px_teller *teller);
/* Text of a task's stream came. */
void px_teller_add(struct px_teller *teller, size_t task, enum px_stream stream,
                   struct px_span text, int64_t now_ms);
/* No more will come for this task. */
void px_teller_end(struct px_teller *teller, size_t task, int64_t now_ms);
/* When px_teller_tell has something to do at the latest; INT64_MAX when nothing waits. */
int64_t px_teller_due(const struct px_teller *teller);
/* Appends what is due, or `all` that waits, to the text of each stream. */
void px_teller_tell(struct px_teller *teller, int64_t now_ms, bool all, struct px_buf out[2]);
/* Something else will be shown: ends an unfinished line; the next text has its label again. */
void px_teller_break(struct px_teller *teller, struct px_buf out[2]);
bool px_teller_mid_line(const struct px_teller *teller);

/* ---- render ------------------------------------------------------------------- */

/* "0-2,7"; of very many ranges the first, and how many engines. */
void px_render_ranges(struct px_buf *out, const int *ids, size_t count);
/* "[stdout:0-2] " */
void px_render_label(struct px_buf *out, const char *what, const int *ids, size_t count);
/* "Out[0:2]: " and the text, which begins on its own line when it has several. `number`: the
 * execution count; -1: it differs between them. `color`: the prompt is red, as IPython's are. */
void px_render_result(struct px_buf *out, const int *ids, size_t count, long number,
                      struct px_span text, bool color);
/* Of a text longer than `most` bytes the first and the last half of them, and how many are left out.
 */
void px_render_bounded(struct px_buf *out, struct px_span text, size_t most);
/* "0, 1, 2 and 7"; more than 16: "0, 1, 2, 3, ... (64 engines)". */
void px_render_engines(struct px_buf *out, const int *ids, size_t count);
/* "12 s", "3 min 5 s", "2 h 7 min" */
void px_render_duration(struct px_buf *out, double seconds);
/* "%px: 3 of 4 engines done, 12 s; at work: 3" */
void px_render_progress(struct px_buf *out, size_t done, size_t count, const int *pending,
                        size_t pending_count, double seconds);
/* Which engines have not come back after an interrupt, and what to type, a line each. */
void px_render_ladder(struct px_buf *out, const int *ids, size_t count);
/* The same where no controller would bring them anything. */
void px_render_left(struct px_buf *out, const int *ids, size_t count);
/* The controller cannot be reached; `until`: the time of day when its cell gives up. */
void px_render_away(struct px_buf *out, const char *until, bool interruptible);
void px_render_back(struct px_buf *out, double seconds);

/* ---- stacks --------------------------------------------------------------------- */

/* What one engine does. */
struct px_stacks {
    int engine;
    struct px_span text; /* as Python's faulthandler writes it: threads, innermost frames first */
    const char *busy;    /* msg_type of the request it works at; NULL: none */
    double busy_s;
};

/* Appends all engines' stacks as one tree, outermost frames first, equal ones once. */
void px_stacks_render(struct px_buf *out, const struct px_stacks *engines, size_t count);

/* ---- why ------------------------------------------------------------------------- */

/* Appends why each of these tasks waits or what it does, from a why_reply's JSON. PX_EINVAL. */
PX_MUST_USE int px_why_render(struct px_buf *out, struct px_span reply, struct px_error *err);

#endif
