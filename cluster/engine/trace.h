/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * trace: where every thread is, asked for (stacks_request) or because a deadly signal came.
 *
 *     stacks_request  {}
 *     stacks_reply    {"status": "ok", "pid", "stacks": text, "busy": {"msg_id", "msg_type",
 *                      "since_s"} or null}
 *
 * An addition to the protocol, on the control channel, of engines that announce the feature
 * "stacks". The text is for people, in the form of Python's faulthandler. The reply comes while
 * the interpreter runs, sleeps, or sits in C code that holds its lock.
 */
#ifndef PX_TRACE_H
#define PX_TRACE_H

#include "kernel.h"
#include "loop/loop.h"
#include "obituary.h"

struct px_trace;

/*
 * On the main thread, before another exists: installs the handlers. The language is borrowed,
 * and `obituary`. NULL with an error. One per process.
 */
struct px_trace *px_trace_create(const struct px_interp_ops *ops, void *self,
                                 struct px_obituary *obituary, struct px_error *err);
/* On the service thread: the loop that answers. */
void px_trace_serve(struct px_trace *trace, struct px_loop *loop, struct px_kernel *kernel);
/* Handles stacks_request; on the service thread. */
void px_trace_answer(struct px_trace *trace, struct px_request *request);
/* On the service thread, while it can send: whoever still waits gets a reply. */
void px_trace_stop(struct px_trace *trace);
/* When neither thread uses it. NULL allowed. */
void px_trace_destroy(struct px_trace *trace);

#endif
