/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * schedule_abort: tasks that their clients take back.
 *
 * What waits ends at once. What an engine has been sent is the engine's to abort, but goes to no
 * other engine any more. And the wish may be quicker than its task, as they come by different ways:
 * it is remembered.
 */
#include "schedule_parts.h"

#include <stdlib.h>
#include <string.h>

#define MOST_WISHES 65536 /* many may be of what never comes here: direct requests */

struct wish {
    UT_hash_handle hh; /* in the order in which they came */
    char msg_id[];
};

static void forget(struct px_schedule *schedule, struct wish *wish)
{
    HASH_DEL(schedule->wishes, wish);
    free(wish);
}

static struct wish *find(const struct px_schedule *schedule, struct px_span msg_id)
{
    struct wish *wish;
    HASH_FIND(hh, schedule->wishes, msg_id.data, msg_id.size, wish);
    return wish;
}

static void remember(struct px_schedule *schedule, struct px_span msg_id)
{
    if (find(schedule, msg_id) != NULL)
        return;
    struct wish *wish = px_alloc(sizeof(*wish) + msg_id.size + 1);
    memcpy(wish->msg_id, msg_id.data, msg_id.size);
    HASH_ADD_KEYPTR(hh, schedule->wishes, wish->msg_id, msg_id.size, wish);
    if (HASH_COUNT(schedule->wishes) > MOST_WISHES)
        forget(schedule, schedule->wishes);
}

bool px_wish_fulfil(struct px_schedule *schedule, struct px_span msg_id)
{
    struct wish *wish = find(schedule, msg_id);
    if (wish == NULL)
        return false;
    forget(schedule, wish);
    return true;
}

void px_wishes_fini(struct px_schedule *schedule)
{
    while (schedule->wishes != NULL)
        forget(schedule, schedule->wishes);
}

void px_schedule_abort(struct px_schedule *schedule, struct px_span msg_id)
{
    struct task *task = px_schedule_task(schedule, msg_id);
    if (task != NULL && task->state == RUNNING)
        task->aborted = true;
    else if (task != NULL)
        px_task_fail(schedule, task, PX_WHY_ABORTED, NULL);
    else if (px_history_get(schedule->history, msg_id, NULL) == PX_UNKNOWN)
        remember(schedule, msg_id);
}
