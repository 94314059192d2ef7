/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Private to magics: the contract of its pure half.
 *
 *     line.c      a %px or %%px line becomes options and code
 *     render.c    labels, bounded transcripts of streams, what a terminal is shown
 *
 * The other half is the IPython face, phalanx._magics (pxmagics.h):
 *
 *     pxmagics.c  chooses engines and runs code on them
 *     pxmagics_follow.c    shows what comes
 */
#ifndef PX_MAGICS_H
#define PX_MAGICS_H

#include "base/base.h"

/* ---- line ------------------------------------------------------------------- */

#define PX_TARGETS_MOST 65536 /* engines that one line may name */
#define PX_NAME_SIZE 256      /* a Python name after --out */

enum px_targets_kind {
    PX_TARGETS_DEFAULT, /* not said: the view's own */
    PX_TARGETS_ALL,
    PX_TARGETS_ONE,   /* an id; negative: from the end */
    PX_TARGETS_LIST,  /* several of these */
    PX_TARGETS_SLICE, /* positions among the ids, as in Python: first:end:step */
};

struct px_targets {
    enum px_targets_kind kind;
    long first, end, step; /* ONE: first. SLICE: as far as has_first, has_end say */
    bool has_first, has_end;
    long *list; /* LIST: owned */
    size_t count;
};

/* Parses "all", "3", "-1", "0:2", "::2", "0,2", "[0, -1]". PX_EINVAL. */
PX_MUST_USE int px_targets_parse(struct px_span text, struct px_targets *out, struct px_error *err);
/* The engine ids meant, given those registered (ascending); `out` holds `most` of them. -1 with
 * PX_ENOENT when one does not exist or none is meant. Otherwise how many there are. */
PX_MUST_USE long px_targets_resolve(const struct px_targets *targets, const int *ids, size_t count,
                                    int *out, size_t most, struct px_error *err);
void px_targets_fini(struct px_targets *targets);

enum px_group { PX_GROUP_TYPE, PX_GROUP_ENGINE, PX_GROUP_ORDER };
extern const char *const px_group_names[]; /* by enum px_group */

/* Yes-or-no options are -1 when the line does not say. */
struct px_line {
    int block, stream, verbose, signal_on_interrupt;
    int local;
    enum px_group group;
    double progress_after;  /* seconds; NAN when not said */
    char out[PX_NAME_SIZE]; /* "" when not said */
    struct px_targets targets;
    size_t code; /* where in the line its code begins; its length when there is none */
};

/*
 * Parses the options in front of a line. `cell`: the line of a %%px, which holds options alone; of
 * a %px, only words that begin with two dashes are options, and the rest is code. An error
 * is one line that names what is wrong. px_line_fini in any case.
 */
PX_MUST_USE int px_line_parse(struct px_span line, bool cell, struct px_line *out,
                              struct px_error *err);
void px_line_fini(struct px_line *line);
/* One screen: the options, and two examples. */
void px_line_help(struct px_buf *out);

/* ---- render ------------------------------------------------------------------- */

#define PX_TRANSCRIPT_HEAD ((size_t)32 << 10) /* of a stream's text, what is kept of its start */
#define PX_TRANSCRIPT_TAIL ((size_t)32 << 10) /* and of its end */

/* The text of one stream of one engine, bounded: its start, and its latest end. */
struct px_transcript {
    struct px_buf head, tail;
    size_t lost;  /* bytes between the two */
    bool changed; /* since px_transcript_show */
};

void px_transcript_add(struct px_transcript *transcript, struct px_span text);
/* Appends the text as it looks: what a carriage return has overwritten is gone, and a line in the
 * middle says how much is left out. */
void px_transcript_show(struct px_transcript *transcript, struct px_buf *out);
void px_transcript_fini(struct px_transcript *transcript);

/* "[stdout:0] " */
void px_render_label(struct px_buf *out, const char *what, int engine);
/* "Out[0:2]: " and the text, which begins on its own line when it has several; `color`: the prompt
 * is red, as IPython's are. */
void px_render_result(struct px_buf *out, int engine, long count, struct px_span text, bool color);
/* "0, 1, 2 and 7"; more than 16: "0, 1, 2, 3, ... (64 engines)". */
void px_render_engines(struct px_buf *out, const int *ids, size_t count);

/* What a terminal has been shown last, so that labels appear when the speaker changes. */
struct px_terminal {
    char label[64];
    bool mid_line;
};
/* Appends `text` with its label if that is due. */
void px_terminal_text(struct px_terminal *terminal, struct px_buf *out, const char *what,
                      int engine, struct px_span text);

#endif
