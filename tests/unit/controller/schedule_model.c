/* SPDX-License-Identifier: BSD-3-Clause */
/* The rules of the task scheduler, said plainly. Each question is answered anew from all tasks. */
#include "schedule_model.h"

#include <string.h>

static bool accepts(const struct model_set *set, const struct model_task *task)
{
    return (task->state == M_OK && set->success) || (task->state == M_FAILED && set->failure);
}

bool model_ended(const struct model_task *task)
{
    return task->state == M_OK || task->state == M_FAILED;
}

void model_open(struct model *model, struct model_task *task)
{
    task->state = M_BLOCKED;
    task->place = model->open_count;
    model->open[model->open_count++] = (int)(task - model->tasks);
}

void model_end(struct model *model, struct model_task *task, enum model_state state)
{
    int last = model->open[--model->open_count];
    model->open[task->place] = last;
    model->tasks[last].place = task->place;
    task->state = state;
}

static bool set_met(const struct model *model, const struct model_set *set)
{
    int good = 0;
    for (int i = 0; i < set->count; i++)
        good += accepts(set, &model->tasks[set->ids[i]]);
    return set->count == 0 || (set->all ? good == set->count : good > 0);
}

static bool set_unreachable(const struct model *model, const struct model_set *set)
{
    int bad = 0;
    for (int i = 0; i < set->count; i++) {
        const struct model_task *task = &model->tasks[set->ids[i]];
        bad += model_ended(task) && !accepts(set, task);
    }
    return set->count > 0 && (set->all ? bad > 0 : bad == set->count);
}

static bool followed_on(const struct model *model, const struct model_set *set, int engine)
{
    int good = 0;
    for (int i = 0; i < set->count; i++) {
        const struct model_task *task = &model->tasks[set->ids[i]];
        good += accepts(set, task) && task->engine == engine;
    }
    return set->count == 0 || (set->all ? good == set->count : good > 0);
}

bool model_may_ever_run(const struct model *model, const struct model_task *task, int engine)
{
    const struct model_engine *e = &model->engines[engine];
    bool targeted = task->target_count == 0;
    for (int i = 0; i < task->target_count; i++)
        targeted |= task->targets[i] == engine;
    return e->alive && targeted && !task->shunned[engine] &&
           (e->features & task->needs) == task->needs && followed_on(model, &task->follow, engine);
}

bool model_has_room(const struct model *model, int engine)
{
    return model->engines[engine].alive &&
           (model->hwm == 0 || model->engines[engine].load < model->hwm);
}

/* The running task that the engine was sent first; NULL: none. */
struct model_task *model_first_of(struct model *model, int engine)
{
    struct model_task *first = NULL;
    for (int i = 0; i < model->open_count; i++) {
        struct model_task *task = &model->tasks[model->open[i]];
        if (task->state == M_RUNNING && task->engine == engine &&
            (first == NULL || task->sent < first->sent))
            first = task;
    }
    return first;
}

/* A task that failed waits for no engine that is not there, unless it has a time-out. */
void model_forgive(struct model *model, struct model_task *task)
{
    if (!task->failed || task->timeout_us || task->target_count || task->follow.count ||
        task->state != M_BLOCKED)
        return;
    for (int e = 0; e < model->engine_count; e++) {
        if (model_may_ever_run(model, task, e))
            return;
    }
    memset(task->shunned, 0, sizeof(task->shunned));
    task->failed = false;
}

bool model_could_run(const struct model *model, const struct model_task *task, int engine)
{
    return task->state == M_BLOCKED && set_met(model, &task->after) &&
           model_may_ever_run(model, task, engine);
}

static bool all_ended(const struct model *model, const struct model_set *set)
{
    for (int i = 0; i < set->count; i++) {
        if (!model_ended(&model->tasks[set->ids[i]]))
            return false;
    }
    return true;
}

int model_live_count(const struct model *model)
{
    int live = 0;
    for (int e = 0; e < model->engine_count; e++)
        live += model->engines[e].alive;
    return live;
}

/* Accepted followed tasks ended on different engines, or on none. */
static bool follow_split(const struct model *model, const struct model_set *set)
{
    int home = -2;
    for (int i = 0; set->all && i < set->count; i++) {
        const struct model_task *task = &model->tasks[set->ids[i]];
        if (!accepts(set, task))
            continue;
        if (task->engine < 0 || (home != -2 && home != task->engine))
            return true;
        home = task->engine;
    }
    return false;
}

/* `any` followed tasks all ended, accepted ones nowhere. */
static bool follow_nowhere(const struct model *model, const struct model_set *set)
{
    if (set->all || set->count == 0 || !all_ended(model, set))
        return false;
    for (int i = 0; i < set->count; i++) {
        const struct model_task *task = &model->tasks[set->ids[i]];
        if (accepts(set, task) && task->engine >= 0)
            return false;
    }
    return true;
}

bool model_is_impossible(const struct model *model, const struct model_task *task)
{
    bool after_met = set_met(model, &task->after);
    if ((!after_met && set_unreachable(model, &task->after)) ||
        set_unreachable(model, &task->follow) || follow_split(model, &task->follow) ||
        follow_nowhere(model, &task->follow))
        return true;
    if (!after_met || (task->target_count == 0 && task->follow.count == 0))
        return false;
    for (int e = 0; e < model->engine_count; e++) {
        if (model_may_ever_run(model, task, e))
            return false;
    }
    if (task->follow.count > 0)
        return all_ended(model, &task->follow);
    return model_live_count(model) > 0;
}
