/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * schedule_why: why a task has not ended yet, in a sentence, from the books as they are.
 *
 *     {"state": "waiting", "why": "it waits for 2 of its dependencies", "since_s": 3.2,
 *      "outstanding": ["id", ...], "outstanding_count": 2, "timeout_s": 6.8}
 *     {"state": "queued" or "running", "why": ..., "since_s": ..., "engine_uuid": "..."}
 *     {"state": "done", "why": "it succeeded"} or {"state": "unknown", "why": ...}
 *
 * It costs a look at every engine: something to ask now and then, not in a loop.
 */
#include "schedule_parts.h"

#include <stdlib.h>
#include <string.h>

#define MOST_LISTED 10 /* of the dependencies that have not ended */

static void put_text(struct px_buf *out, const char *key, const struct px_buf *text)
{
    px_buf_printf(out, "\"%s\": ", key);
    px_buf_json_string(out, text->data, text->size);
}

static double seconds(int64_t us)
{
    return us > 0 ? (double)us / 1e6 : 0;
}

/* ---- waiting --------------------------------------------------------------- */

static void put_outstanding(struct px_buf *out, const struct task *task)
{
    const struct edge *edge = task->waits_on;
    px_buf_text(out, ", \"outstanding\": [");
    for (int i = 0; i < MOST_LISTED && edge != NULL; i++, edge = edge->right) {
        px_buf_text(out, i > 0 ? ", " : "");
        px_buf_json_string(out, edge->on->msg_id, strlen(edge->on->msg_id));
    }
    px_buf_printf(out, "], \"outstanding_count\": %zu", task->after_left + task->follow_left);
}

static void say_blocked(const struct task *task, struct px_buf *why)
{
    if (!task->after_met)
        px_buf_printf(why, "%zu of the %zu tasks it is to run after have not ended; it needs %s",
                      task->after_left, task->spec.after.count,
                      task->spec.after.all ? "all of them" : "one of them");
    else
        px_buf_printf(why, "%zu of the %zu tasks whose engine it follows have not ended",
                      task->follow_left, task->spec.follow.count);
}

/* Engines, counted by what keeps the task from them. */
struct tally {
    size_t able, lacking, refused, elsewhere;
};

static int compare_name(const void *uuid, const void *name)
{
    return strcmp(uuid, *(char *const *)name);
}

static bool is_named(const struct task *task, const struct px_worker *worker)
{
    return task->spec.target_count == 0 ||
           bsearch(worker->uuid, task->spec.targets, task->spec.target_count,
                   sizeof(*task->spec.targets), compare_name) != NULL;
}

static struct tally count_engines(const struct px_schedule *schedule, const struct task *task)
{
    struct tally tally = {0};
    for (const struct px_worker *worker = schedule->workers; worker != NULL;
         worker = worker->hh.next) {
        if (!worker->alive)
            continue;
        if (!is_named(task, worker) ||
            (task->spec.follow.count > 0 &&
             !px_serials_has(task->homes, task->home_count, worker->serial)))
            tally.elsewhere++;
        else if ((worker->features & task->spec.needs) != task->spec.needs)
            tally.lacking++;
        else if (px_serials_has(task->shunned, task->shunned_count, worker->serial))
            tally.refused++;
        else
            tally.able++;
    }
    return tally;
}

/* What keeps each of them from it, and what it waits for then. */
static void say_unable(const struct tally *tally, struct px_buf *why)
{
    const struct {
        size_t count;
        const char *what;
    } reasons[] = {{tally->refused, "refused it or failed at it"},
                   {tally->lacking, "lack what it needs"},
                   {tally->elsewhere, "are not meant"}};
    const char *mark = ":";
    px_buf_text(why, "no engine may run it");
    for (size_t i = 0; i < PX_COUNT(reasons); i++) {
        if (reasons[i].count == 0)
            continue;
        px_buf_printf(why, "%s %zu %s", mark, reasons[i].count, reasons[i].what);
        mark = ",";
    }
    px_buf_text(why, "; it waits for another one");
}

static void say_waiting(const struct px_schedule *schedule, const struct task *task,
                        struct px_buf *why)
{
    struct tally tally = count_engines(schedule, task);
    if (schedule->live == 0)
        px_buf_text(why, "no engine is registered");
    else if (tally.able > 0)
        px_buf_printf(why,
                      "the %zu engine%s that may run it %s busy (high-water mark %u); %zu wait",
                      tally.able, tally.able == 1 ? "" : "s", tally.able == 1 ? "is" : "are",
                      px_balance_hwm(schedule->balance), schedule->stats.waiting);
    else
        say_unable(&tally, why);
}

static void put_waiting(const struct px_schedule *schedule, const struct task *task,
                        struct px_buf *out)
{
    struct px_buf why = {0};
    if (task->state == BLOCKED)
        say_blocked(task, &why);
    else
        say_waiting(schedule, task, &why);
    px_buf_printf(out, "{\"state\": \"waiting\", \"since_s\": %.3f, ",
                  seconds(schedule->now_us - task->since_us));
    put_text(out, "why", &why);
    if (task->state == BLOCKED)
        put_outstanding(out, task);
    if (task->deadline_at != 0)
        px_buf_printf(out, ", \"timeout_s\": %.3f",
                      seconds((int64_t)px_heap_key(&schedule->deadlines, task->deadline_at) -
                              schedule->now_us));
    px_buf_text(out, "}");
    px_buf_fini(&why);
}

/* ---- sent, ended, unknown -------------------------------------------------- */

static void put_running(const struct px_schedule *schedule, const struct task *task,
                        struct px_buf *out)
{
    size_t before = 0;
    for (const struct task *other = desk_of(task->worker)->running;
         other != task && before < PX_MOST_COUNTED; other = other->next)
        before++;
    struct px_buf why = {0};
    if (before > 0)
        px_buf_printf(&why, "its engine has it, behind %s%zu other%s",
                      before == PX_MOST_COUNTED ? "at least " : "", before, before == 1 ? "" : "s");
    else
        px_buf_text(&why, "its engine runs it");
    if (!task->worker->alive)
        px_buf_text(&why, "; the engine has left, its last answers are awaited");
    px_buf_printf(out, "{\"state\": \"%s\", \"since_s\": %.3f, ", before ? "queued" : "running",
                  seconds(schedule->now_us - task->since_us));
    put_text(out, "why", &why);
    px_buf_text(out, ", \"engine_uuid\": ");
    px_buf_json_string(out, task->worker->uuid, task->worker->uuid_size);
    px_buf_text(out, "}");
    px_buf_fini(&why);
}

static void put_ended(const struct px_schedule *schedule, struct px_span msg_id, struct px_buf *out)
{
    static const char *const answers[] = {
        [PX_UNKNOWN] = "{\"state\": \"unknown\", \"why\": \"the scheduler does not know it\"}",
        [PX_UNFINISHED] = "{\"state\": \"unknown\", \"why\": \"it is about to end\"}",
        [PX_SUCCEEDED] = "{\"state\": \"done\", \"why\": \"it succeeded\"}",
        [PX_FAILED] = "{\"state\": \"done\", \"why\": \"it failed\"}",
    };
    px_buf_text(out, answers[px_history_get(schedule->history, msg_id, NULL)]);
}

void px_schedule_why(const struct px_schedule *schedule, struct px_span msg_id, struct px_buf *out)
{
    const struct task *task = px_schedule_task(schedule, msg_id);
    if (task == NULL)
        put_ended(schedule, msg_id, out);
    else if (task->state == RUNNING)
        put_running(schedule, task, out);
    else
        put_waiting(schedule, task, out);
}
