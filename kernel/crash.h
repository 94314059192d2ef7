/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * crash: what a kernel that dies of a signal still says. Private to pxkernel.
 */
#ifndef PX_CRASH_H
#define PX_CRASH_H

#include "service.h"

/* Main thread, once: from now on a deadly signal makes the language's stacks (px_interp_ops.trace)
 * and all output so far reach the log and the front ends. Where that cannot be had, it is a line in
 * the log. */
void px_crash_watch(struct px_service *service, const struct px_interp_ops *ops, void *self);

#endif
