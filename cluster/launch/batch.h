/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * batch: queueing systems, each a row of what it does otherwise than the others. The functions here
 * read what its programs say and write what they run; they are pure.
 *
 * Words of a command may hold '@', for the value that they are about, and '#', for a signal's
 * number. Lists of words end with NULL.
 */
#ifndef PX_LAUNCH_BATCH_H
#define PX_LAUNCH_BATCH_H

#include "launch.h"

struct px_batch {
    /* ---- to submit a job ---- */
    const char *submit;         /* the usual name of the program */
    const char *const *options; /* always */
    const char *const *plain;   /* for a script that has no words for the queue in it */
    const char *const *name, *const *log, *const *queue, *const *account, *const *time;
    const char *const *engines; /* place for '@' engines in one job; NULL: each needs its own */
    const char *const *array;   /* '@' jobs of one engine */
    /* How launch arguments begin that ask for the place of engines themselves; may be NULL. */
    const char *const *own;
    /* Appends the script that runs this command in `cwd`, if that is there, as so many jobs as the
     * queue is told elsewhere (`array`), or as one. */
    void (*script)(struct px_buf *out, const struct px_argv *command, const char *cwd, bool array);
    bool passes; /* the script has not got the command in it: it gets that as its arguments */
    /* Appends a word as a script has it; after a space where there is something. */
    void (*quote)(struct px_buf *out, const char *word);
    bool one_line; /* it cannot have a line break in it */
    /* What stands for a job's number among those of an array, each of which has a log of its own;
     * NULL: one log is for all. */
    const char *part;
    bool carries; /* a job's environment is nobody else's to read: the connection goes in it */
    int id_size;  /* so much of a cluster's id fits into a job's name */
    const char *number; /* the characters of a job's number; it begins with a digit */

    /* ---- to ask about it ---- */
    const char *const *ask;
    const char *const *past; /* the same, of one that has left the queue; NULL: nothing tells */
    /* The state that a line of the answer tells of the job '@', in place; NULL: none. */
    char *(*state)(char *line, const char *job);
    const char *const *over; /* states of what does not run any more */
    const char *const *gone; /* complaints that mean the same, */
    int gone_status;         /* as does this exit status; 0: none */
    const char *reason;      /* what stands before the reason why it waits; may be NULL */
    bool wordy;              /* its programs' complaints are more than one line */

    /* ---- to end it ---- */
    const char *const *end, *const *signal; /* signal NULL: has no way to */
};

extern const struct px_batch px_slurm_batch, px_pbs_batch, px_sge_batch, px_condor_batch;

/* Appends the words, with what '@' and '#' stand for. */
void px_batch_words(struct px_argv *argv, const char *const *words, const char *at,
                    const char *hash);
/* A job's number, from what the submitting program wrote. NULL: there is none; caller frees. */
char *px_batch_number(const struct px_batch *batch, const char *answer);
/* Whether it has the form of one. */
bool px_batch_is_number(const struct px_batch *batch, const char *text);
/* What a program that failed complained of, or else answered (both may be NULL), in one line. */
void px_batch_complaint(const struct px_batch *batch, const char *program, const char *complaints,
                        const char *answer, char *out, size_t size);
/*
 * Reads an answer, which it changes. `out` gets the states of the job's parts that are not over, or
 * if all are, of those; of each the first one with its reason. It is left as it is when nothing is
 * told. Returns how many parts are not over.
 */
int px_batch_read(const struct px_batch *batch, const char *job, char *answer, char *out,
                  size_t size);
/* Whether a program failed because there is no such job any more. */
bool px_batch_is_gone(const struct px_batch *batch, int status, const char *complaints);

/* ---- templates (template.c) ---- */

struct px_template_name {
    const char *name, *text; /* a list of them ends with NULLs */
};
/* Appends a script from a template in ipyparallel's form: {queue}, {n//4}, {{. PX_EINVAL names what
 * has no meaning; then part of it is appended. */
PX_MUST_USE int px_template_fill(const char *text, const struct px_template_name *names,
                                 struct px_buf *out, struct px_error *err);

#endif
