/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * program: what the programs that run a language have in common: their languages, and where
 * the rest of this installation is.
 */
#ifndef PX_PROGRAM_H
#define PX_PROGRAM_H

#include "interp/interp.h"

/* The languages linked in; the first is the default. NULL-terminated. */
extern const struct px_interp_ops *const px_languages[];

/* The language of that name (NULL: the default), or NULL with an error that lists them. */
const struct px_interp_ops *px_language_find(const char *name, struct px_error *err);

/* Absolute path of this program's file; the caller frees. */
char *px_own_path(void);
/* The directory that holds the Python package `phalanx` of this installation, or of this build
 * tree; NULL when there is none. The caller frees. */
char *px_own_modules(void);

#endif
