/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Private to magics: what the parts of phalanx._magics share. The GIL is held everywhere but
 * around the wait in pxmagics_follow.c.
 *
 *     pxmagics.c          the type behind the magics: lines in, calls out
 *     pxmagics_run.c      chooses engines and runs code on them
 *     pxmagics_follow.c   waits for a run; interrupts and time-outs
 *     pxmagics_show.c     what is shown of it: text, progress, and in whose turn
 *     pxmagics_queue.c    displays that wait, for the same of other engines and for text
 *     pxmagics_values.c   the values at the end
 *     pxmagics_util.c     small helpers; ranges and renderers for Python
 */
#ifndef PX_PXMAGICS_H
#define PX_PXMAGICS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "client/phalanx.h"
#include "magics.h"

/* ---- helpers ---- */

/* module.name; a new reference, or NULL with an exception. */
PyObject *px_import_name(const char *module, const char *name);
/* Lets go of a call's result. -1 with an exception when it is NULL. */
int px_discard(PyObject *result);
PyObject *px_text_of(const struct px_buf *text);
/* Raises IPython's UsageError, which is shown without a traceback. */
void px_raise_usage(const char *magic, const char *text);
/* phalanx._magics' functions. */
extern PyMethodDef px_module_methods[];

/* ---- running ---- */

/* What lines set and %pxconfig keeps. */
struct px_config {
    int block, stream, verbose, fold, local; /* -1: not said */
    double progress_after, timeout;          /* NAN: not said */
    char signal[PX_SIGNAL_SIZE];             /* "": not said */
};

struct px_magics {
    PyObject_HEAD PyObject *shell;
    PyObject *face;    /* magics.Face: what Python does for us */
    PyObject *view;    /* the activated view, or NULL: the face is asked for one */
    PyObject *last;    /* AsyncResult of the last run, or NULL */
    PyObject *targets; /* %pxconfig --targets: its text, or NULL */
    struct px_config config;
};

/* What `targets` mean among a client's engines: an id, "all" or a list of ids. */
PyObject *px_resolve(PyObject *client, const struct px_targets *targets, const char *magic);
/* Runs code as a line says; `cell`: nothing else can be in this cell. The AsyncResult, None, or
 * NULL with an exception. */
PyObject *px_run(struct px_magics *self, const struct px_line *line, PyObject *code, bool cell,
                 const char *magic);
/* Puts an AsyncResult into the user's namespace; "": nowhere. */
int px_keep_result(struct px_magics *self, const char *name, PyObject *result);
/* The line's word, or what %pxconfig says. */
int px_said(int line, int config, int otherwise);

/* Places in a _phalanx.Event. */
enum event_field { EV_TYPE, EV_TASK, EV_ENGINE, EV_FAILED, EV_LOST, EV_NAME, EV_TEXT, EV_CONTENT };

/* ---- following ---- */

struct px_follow {
    PyObject *face, *screen, *result;
    bool stream;     /* show output as it comes */
    bool fold;       /* what several engines say alike: once */
    bool replay;     /* what has come before is shown too */
    bool background; /* not on the main thread: no signals, and errors are shown, not raised */
    bool alone;      /* nothing else has been shown in this cell */
    int group;       /* enum px_group: show everything at the end in this order; -1: not */
    double progress_after, timeout; /* seconds; negative, 0 or NAN: none */
    const char *signal;             /* sent to engines on an interrupt; "0": none */
};

/* Waits for an AsyncResult of executed code and shows what it says, then its values. None, or
 * NULL with what it raised. */
PyObject *px_follow(const struct px_follow *options);

/* ---- showing ---- */

struct px_show;

struct px_show *px_show_create(const struct px_follow *options, phalanx_result *c_result);
void px_show_destroy(struct px_show *show);
/* One event of the result. -1 with an exception, as all below. */
int px_show_event(struct px_show *show, PyObject *event);
/* What was filed in the AsyncResult before. */
int px_show_past(struct px_show *show);
/* Shows what is due, and the progress line. `pending`: engines that have not replied. */
int px_show_due(struct px_show *show, const int *pending, size_t pending_count);
/* When px_show_due is to be called at the latest. */
int64_t px_show_next_ms(const struct px_show *show);
/* A line of our own, on stderr. */
int px_show_note(struct px_show *show, const struct px_buf *text);
/* All that is left of output, then the values. */
int px_show_rest(struct px_show *show);

/* Publishes a MIME bundle, after what was told. NULL: no metadata, nothing transient. */
int px_show_publish(struct px_show *show, PyObject *data, PyObject *metadata, PyObject *transient,
                    bool update);
/* A display's content, under the label of the engines that run these tasks. */
int px_show_display(struct px_show *show, const size_t *tasks, size_t count, PyObject *content,
                    bool update);
/* A line: these tasks show what others have shown. */
int px_show_same(struct px_show *show, const size_t *tasks, size_t count, const size_t *others,
                 size_t other_count);
/* Text of a task, which waits behind its displays. */
int px_show_text(struct px_show *show, size_t task, enum px_stream stream, PyObject *text);

struct px_value_options {
    struct px_show *show;
    PyObject *result;
    const int *engines; /* by task */
    size_t count;
    bool fold, color;
};

int px_show_values(const struct px_value_options *options);
/* Of equal MIME bundles equal. */
Py_hash_t px_bundle_hash(PyObject *bundle);

/* ---- the queue of displays ---- */

struct px_queue;

struct px_queue *px_queue_create(size_t tasks, bool fold);
void px_queue_destroy(struct px_queue *queue);
bool px_queue_is_empty(const struct px_queue *queue);
void px_queue_display(struct px_queue *queue, size_t task, PyObject *content, bool update);
/* The pages of a reply's content, as displays. -1 with an exception. */
int px_queue_pages(struct px_queue *queue, size_t task, PyObject *content);
/* False, and nothing done, when no display of this task stands before the text. */
bool px_queue_text(struct px_queue *queue, size_t task, enum px_stream stream, PyObject *text);
/* When it is to be shown; INT64_MAX when it is empty. `ended`: by task. */
int64_t px_queue_due(const struct px_queue *queue, const bool *ended);
/* Shows what has waited, each engine's in its order. What then has to wait for text is in the queue
 * again. -1 with an exception. */
int px_queue_show(struct px_queue *queue, struct px_show *show);
/* The id under which a display's content is shown; borrowed, NULL when there is none. */
PyObject *px_display_id(PyObject *content);

#endif
