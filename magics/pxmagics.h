/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Private to magics: what the halves of phalanx._magics share. The GIL is held everywhere but
 * around the wait in pxmagics_follow.c.
 */
#ifndef PX_PXMAGICS_H
#define PX_PXMAGICS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "magics.h"

/* module.name; a new reference, or NULL with an exception. */
PyObject *px_import_name(const char *module, const char *name);
/* Lets go of a call's result. -1 with an exception when it is NULL. */
int px_discard(PyObject *result);
/* Writes to sys.stdout or sys.stderr and flushes. -1 with an exception. */
int px_write_text(const char *stream, const char *text, size_t size);

/*
 * Waits for an AsyncResult of executed code, shows in `shell` what it says as it comes
 * (`stream`) or at the end, then its values; returns None, or NULL with what it raised.
 */
PyObject *px_follow(PyObject *shell, PyObject *result, const struct px_line *line, bool stream);

#endif
