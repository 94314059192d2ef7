/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * program: what the programs that run a language have in common: their languages, and where
 * the rest of this installation is.
 */
#ifndef PX_PROGRAM_H
#define PX_PROGRAM_H

#include "kernel.h"

/* The languages linked in; the first is the default. NULL-terminated. */
extern const struct px_interp_ops *const px_languages[];

/* The language of that name (NULL: the default), or NULL with an error that lists them. */
const struct px_interp_ops *px_language_find(const char *name, struct px_error *err);

/* The interpreter that a language is to be for this `python` (NULL: its own choice); the caller frees.
 * NULL where there is nothing to choose. Does not return when the language cannot be that. */
char *px_language_python(const struct px_interp_ops *ops, const char *python);

/* Option rows for a struct px_output_config `member` of the options' struct `type`. */
#define PX_OUTPUT_ROWS(type, member)                                                               \
    {NULL, 0, PX_OPT_HEADING, 0, 0, NULL, "Output", 0, 0},                                         \
        {"output-burst",                                                                           \
         0,                                                                                        \
         PX_OPT_INT,                                                                               \
         offsetof(type, member.burst_kb),                                                          \
         0,                                                                                        \
         "KIB",                                                                                    \
         "text a request may print at once (default: 2048; 0: no limit)",                          \
         0,                                                                                        \
         1 << 20},                                                                                 \
        {"output-rate",                                                                            \
         0,                                                                                        \
         PX_OPT_INT,                                                                               \
         offsetof(type, member.rate_kb),                                                           \
         0,                                                                                        \
         "KIB",                                                                                    \
         "and then a second (default: 64); the end is always shown",                               \
         0,                                                                                        \
         1 << 20},                                                                                 \
        {"output-spool",                                                                           \
         0,                                                                                        \
         PX_OPT_INT,                                                                               \
         offsetof(type, member.spool_mb),                                                          \
         0,                                                                                        \
         "MIB",                                                                                    \
         "files in $TMPDIR that keep the rest (default: 256; 0: none)",                            \
         0,                                                                                        \
         1 << 20},                                                                                 \
    {                                                                                              \
        "no-capture", 0, PX_OPT_SET, offsetof(type, member.capture), 0, NULL,                      \
            "leave output of C code and child processes where it goes", 0, 0                       \
    }

/* Absolute path of this program's file; the caller frees. */
char *px_own_path(void);
/* The directory that holds the Python package `phalanx` of this installation, or of this build
 * tree; NULL when there is none. The caller frees. */
char *px_own_modules(void);

#endif
