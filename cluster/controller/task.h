/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * task: what task.c (sockets) and task_read.c (bytes) share. Nobody else includes this.
 */
#ifndef PX_TASK_H
#define PX_TASK_H

#include "controller.h"
#include "schedule.h"

/* What a request's metadata asks for. PX_EINVAL, PX_ELIMIT; `spec` is to be finished either way. */
PX_MUST_USE int px_task_read_spec(struct px_span metadata, struct px_task_spec *spec,
                                  struct px_error *err);

struct px_task_result {
    struct px_span msg_id; /* of the request; points into the message */
    enum px_reply reply;
    int64_t took_us; /* as the engine says, -1 when it does not */
};
/* -1 when it does not say which task it is of. */
PX_MUST_USE int px_task_read_result(const struct px_msg *msg, struct px_task_result *out);

#endif
