/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * job: requests that were not answered yet, by id and by the engine that has them. From these come
 * queue status, loads and what is pending.
 */
#include "hub.h"

#include <stdlib.h>
#include <string.h>
#include <utlist.h>

struct px_job *px_hub_job(const struct px_hub *hub, struct px_span msg_id)
{
    struct px_job *job;
    HASH_FIND(hh, hub->jobs, msg_id.data, msg_id.size, job);
    return job;
}

static void leave_list(struct px_hub *hub, struct px_job *job)
{
    struct px_member *member = job->member;
    if (member == NULL) {
        DL_DELETE(hub->unassigned, job);
        hub->unassigned_count--;
    } else if (job->mux) {
        DL_DELETE(member->queue, job);
        member->queue_count--;
    } else {
        DL_DELETE(member->tasks, job);
        member->task_count--;
    }
    px_adapt_worked(hub, member);
}

void px_hub_book(struct px_hub *hub, struct px_span msg_id, struct px_member *member, bool mux)
{
    struct px_job *job = px_hub_job(hub, msg_id);
    if (job != NULL) {
        leave_list(hub, job);
    } else {
        job = px_alloc(sizeof(*job) + msg_id.size + 1);
        memcpy(job->msg_id, msg_id.data, msg_id.size);
        HASH_ADD_KEYPTR(hh, hub->jobs, job->msg_id, msg_id.size, job);
    }
    job->member = member;
    job->probe = member != NULL ? member->probes : 0;
    job->mux = mux;
    if (member == NULL) {
        DL_APPEND(hub->unassigned, job);
        hub->unassigned_count++;
    } else if (mux) {
        DL_APPEND(member->queue, job);
        member->queue_count++;
    } else {
        DL_APPEND(member->tasks, job);
        member->task_count++;
    }
    px_adapt_worked(hub, member);
}

void px_hub_unbook(struct px_hub *hub, struct px_job *job)
{
    leave_list(hub, job);
    HASH_DEL(hub->jobs, job);
    px_msg_destroy(job->asked);
    free(job);
}
