/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * task: the task queue's sockets. Messages in, messages out; what goes where, and when, is
 * decided by the schedule (schedule.h), which knows neither.
 *
 *     client       ->  C | <IDS|MSG> ...        header and metadata are scanned, not parsed
 *     to engine    ->  E | C | <IDS|MSG> ...    the same frames by reference
 *     engine       ->  E | C | <IDS|MSG> ...    parent's msg_id; metadata: status, dependencies_met
 *     to client    ->  C | E | <IDS|MSG> ...    or C | <IDS|MSG> apply_reply made here
 *
 *     to engine    ->  E | <IDS|MSG> recall_request {"msg_ids": [...]}, to those that offer
 * "recall"; of each of these tasks that it has not begun, the engine sends the reply,
 *                      metadata.status "recalled", and forgets that it ever saw it
 *
 * A task's message is kept until it has been answered: it may have to go to another engine.
 * When an engine goes, replies it has sent may still be on their way, so what ran there fails
 * or moves on only after GRACE_MS, and replies that come until then count.
 */
#include "comeback.h"
#include "protocol.h"
#include "task.h"

#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#define GRACE_MS 300

struct farewell {
    struct px_tasks *tasks;
    struct px_timer *timer;
    struct farewell *prev, *next;
    int id;
    char *cause;   /* a phrase; NULL: not known */
    char *running; /* the request it died with; NULL: not known */
    int begun;     /* of the items of that; 0: it has none, or not known */
    size_t size;
    char uuid[];
};

/* ---- what the schedule asks for -------------------------------------------- */

static void send_task(void *ctx, const char *msg_id, void *payload, const struct px_worker *to)
{
    struct px_tasks *tasks = ctx;
    struct px_msg *msg = px_msg_copy(payload);
    px_msg_prepend(msg, to->uuid, to->uuid_size);
    px_route_send(tasks->route, msg);
    px_link_note_text(tasks->shared.link, PX_NOTE_TASK_DESTINATION, px_span_of(msg_id),
                      (struct px_span){to->uuid, to->uuid_size});
}

static const char *const enames[] = {
    [PX_WHY_INVALID] = "InvalidDependency", [PX_WHY_IMPOSSIBLE] = "ImpossibleDependency",
    [PX_WHY_TIMEOUT] = "TaskTimeout",       [PX_WHY_ENGINE_DIED] = "EngineError",
    [PX_WHY_ABORTED] = "TaskAborted",
};

/* ipyparallel's words where the cause is not known. */
static void put_loss(const struct farewell *farewell, const struct px_worker *on,
                     const char *msg_id, struct px_buf *out)
{
    if (farewell != NULL && farewell->cause != NULL)
        px_buf_printf(out, "engine %d: %s, while running task '%s'", farewell->id, farewell->cause,
                      msg_id);
    else
        px_buf_printf(out, "Engine b'%s' died while running task '%s'", on->uuid, msg_id);
}

static void answer(struct px_tasks *tasks, struct px_msg *reply)
{
    px_link_note(tasks->shared.link, PX_NOTE_TASK_REPLY, reply);
    px_clients_send(tasks->clients, reply);
}

/* "px_begun": how many items of a task that has items were begun: the last of them was running; 0
 * for another task than the one that ran; `begun` < 0 for nothing. */
static void send_error(struct px_tasks *tasks, const struct px_msg *request, struct px_span engine,
                       const char *ename, const char *evalue, int begun)
{
    struct px_msg *msg = px_error_reply(tasks->shared.session, px_msg_ident(request, 0), engine,
                                        px_msg_header(request), ename, evalue);
    if (begun >= 0)
        px_error_reply_add(tasks->shared.session, msg, "px_begun", begun);
    answer(tasks, msg);
}

/* What is known of the task's items, for send_error. */
static int count_begun(const struct farewell *farewell, const char *msg_id)
{
    if (farewell == NULL || farewell->running == NULL)
        return -1;
    if (strcmp(farewell->running, msg_id) != 0)
        return 0;
    return farewell->begun > 0 ? farewell->begun : -1;
}

static void fail_task(void *ctx, const char *msg_id, void *payload, enum px_why why,
                      const struct px_worker *on)
{
    struct px_tasks *tasks = ctx;
    struct px_buf evalue = {0};
    struct px_span engine = {0};
    const struct farewell *farewell = on != NULL ? tasks->leaving : NULL;
    px_buf_text(&evalue, "");
    if (on != NULL) {
        put_loss(farewell, on, msg_id, &evalue);
        engine = (struct px_span){on->uuid, on->uuid_size};
    }
    if (why == PX_WHY_ABORTED)
        answer(tasks, px_aborted_reply(tasks->shared.session, px_msg_ident(payload, 0),
                                       px_msg_header(payload)));
    else
        send_error(tasks, payload, engine, enames[why], evalue.data, count_begun(farewell, msg_id));
    px_log(PX_DEBUG, "task-failed", "msg_id=%s why=%s", msg_id, enames[why]);
    px_buf_fini(&evalue);
}

static void release_task(void *ctx, void *payload)
{
    (void)ctx;
    px_msg_destroy(payload);
}

/* A blank after the metadata means nothing, and makes it another message. */
static void renew_task(void *ctx, void *payload)
{
    struct px_tasks *tasks = ctx;
    struct px_msg *msg = payload;
    struct px_span old = px_msg_metadata(msg);
    struct px_buf metadata = {0};
    px_buf_append(&metadata, old.data, old.size);
    px_buf_text(&metadata, " ");
    px_msg_replace(msg, px_msg_ident_count(msg) + 4, metadata.data, metadata.size);
    px_session_resign(tasks->shared.session, msg);
    px_buf_fini(&metadata);
}

/* On the socket that brought the tasks, so that it comes after them. */
static void recall_tasks(void *ctx, const struct px_worker *from, const char *const *msg_ids,
                         size_t count)
{
    struct px_tasks *tasks = ctx;
    struct px_span uuid = {from->uuid, from->uuid_size};
    struct px_buf content = {0};
    px_buf_text(&content, "{\"msg_ids\": [");
    for (size_t i = 0; i < count; i++) {
        px_buf_text(&content, i ? ", " : "");
        px_buf_json_string(&content, msg_ids[i], strlen(msg_ids[i]));
    }
    px_buf_text(&content, "]}");
    struct px_draft draft = {.idents = &uuid,
                             .ident_count = 1,
                             .type = PX_RECALL_REQUEST,
                             .content = px_buf_span(&content)};
    px_route_send(tasks->route, px_session_build(tasks->shared.session, &draft));
    px_buf_fini(&content);
    px_log(PX_DEBUG, "tasks-recalled", "engine=%s count=%zu", from->uuid, count);
}

static const struct px_schedule_ops schedule_ops = {
    .send = send_task,
    .fail = fail_task,
    .release = release_task,
    .recall = recall_tasks,
    .renew = renew_task,
};

/* ---- time-outs ------------------------------------------------------------- */

static int64_t now_us(void)
{
    return px_now_ns() / 1000;
}

static void arm(struct px_tasks *tasks);

static void on_timeout(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct px_tasks *tasks = ctx;
    tasks->timer = NULL;
    px_schedule_tick(tasks->schedule, now_us());
    arm(tasks);
    px_link_flush(tasks->shared.link);
}

/* One timer, for the earliest time-out. One that is early is left: it comes back here. */
static void arm(struct px_tasks *tasks)
{
    int64_t deadline_us = px_schedule_deadline(tasks->schedule);
    if (deadline_us < 0 || (tasks->timer != NULL && tasks->timer_us <= deadline_us))
        return;
    px_loop_cancel(tasks->shared.loop, tasks->timer);
    int64_t delay_us = deadline_us - now_us();
    tasks->timer_us = deadline_us;
    tasks->timer = px_loop_timer(tasks->shared.loop, delay_us > 0 ? delay_us / 1000 + 1 : 0, 0,
                                 on_timeout, tasks);
}

void px_tasks_after(void *ctx)
{
    struct px_tasks *tasks = ctx;
    arm(tasks);
    px_link_flush(tasks->shared.link);
}

/* ---- submission and replies ------------------------------------------------ */

static void refuse(struct px_tasks *tasks, const char *why)
{
    tasks->refused++;
    px_log_limited(&tasks->in.limiter, PX_WARN, "task-refused", "dropped=%lu why=\"%s\"",
                   tasks->refused, why);
}

/* Whoever has sent it waits for an answer. */
static void refuse_spec(struct px_tasks *tasks, const struct px_msg *msg, const char *why)
{
    refuse(tasks, why);
    px_link_note(tasks->shared.link, PX_NOTE_TASK_REQUEST, msg);
    send_error(tasks, msg, (struct px_span){0}, "ValueError", why, -1);
}

/* The same where the books cannot have it, as they are JSON. */
static void refuse_text(struct px_tasks *tasks, const struct px_msg *msg, const char *why)
{
    refuse(tasks, why);
    px_clients_send(tasks->clients,
                    px_error_reply(tasks->shared.session, px_msg_ident(msg, 0), (struct px_span){0},
                                   px_msg_header(msg), "ValueError", why));
}

/* Of others an engine may not know the type, and would give no answer: it would count as busy for
 * ever. */
static bool is_task(struct px_span msg_type)
{
    return px_span_equal(msg_type, PX_APPLY_REQUEST) || px_span_equal(msg_type, PX_EXECUTE_REQUEST);
}

/* Reads what is asked of a task. -1: it was refused. */
static int read_task(struct px_tasks *tasks, const struct px_msg *msg, struct px_header *header,
                     struct px_task_spec *spec)
{
    struct px_error err;
    int rc = px_header_scan(px_msg_header(msg), header, &err);
    if (rc == 0 && !px_is_utf8(px_msg_header(msg))) {
        refuse_text(tasks, msg, "the header is not UTF-8");
        return -1;
    }
    if (rc == 0 && px_schedule_holds(tasks->schedule, header->msg_id)) /* its client has that one */
        rc = px_fail(&err, PX_EEXIST, "a task of that id is unfinished");
    if (rc != 0) {
        refuse(tasks, err.text);
        return -1;
    }
    if (is_task(header->msg_type))
        rc = px_task_read_spec(px_msg_metadata(msg), spec, &err);
    else
        rc = px_fail(&err, PX_EINVAL, "a task is an apply_request or an execute_request");
    if (rc != 0)
        refuse_spec(tasks, msg, err.text);
    return rc;
}

void px_tasks_start(struct px_tasks *tasks, struct px_msg *msg)
{
    struct px_header header;
    struct px_task_spec spec = {0};
    if (read_task(tasks, msg, &header, &spec) != 0) {
        px_msg_destroy(msg);
        px_task_spec_fini(&spec);
        return;
    }
    px_link_note(tasks->shared.link, PX_NOTE_TASK_REQUEST, msg);
    px_schedule_tick(tasks->schedule, now_us());
    px_schedule_submit(tasks->schedule, header.msg_id, &spec, msg);
}

void px_tasks_submit(struct px_tasks *tasks, struct px_msg *msg)
{
    if (px_comeback_waits(tasks->comeback))
        px_comeback_park(tasks->comeback, msg);
    else
        px_tasks_start(tasks, msg);
}

static void on_submission(void *ctx, struct px_msg **msg)
{
    struct px_tasks *tasks = ctx;
    if (!px_clients_saw(tasks->clients, *msg))
        return;
    if (tasks->in.again && !px_comeback_waits(tasks->comeback))
        px_tasks_resume(tasks, *msg);
    else
        px_tasks_submit(tasks, *msg);
    *msg = NULL;
}

/* E | C | a task that did not get there: it goes to another engine, or fails when there is none. A
 * recall or a probe is no task that the schedule knows. */
static void on_unsent(void *ctx, const struct px_msg *msg)
{
    struct px_tasks *tasks = ctx;
    struct px_header header;
    if (px_header_scan(px_msg_header(msg), &header, NULL) != 0)
        return;
    px_schedule_tick(tasks->schedule, now_us());
    if (px_schedule_reply(tasks->schedule, px_msg_frame(msg, 0), header.msg_id, PX_REPLY_REJECTED,
                          -1) != PX_STALE)
        px_schedule_run(tasks->schedule);
    px_tasks_after(tasks);
}

static void on_result(void *ctx, struct px_msg **msg)
{
    struct px_tasks *tasks = ctx;
    struct px_task_result result;
    if (px_span_equal(px_msg_ident(*msg, 1), PX_HELD)) {
        px_tasks_held(tasks, *msg);
        return;
    }
    if (px_task_read_result(*msg, &result) != 0) {
        tasks->out.malformed++;
        px_log_limited(&tasks->out.limiter, PX_WARN, "reply-malformed", "socket=task dropped=%lu",
                       tasks->out.malformed);
        return;
    }
    px_schedule_tick(tasks->schedule, now_us());
    enum px_outcome outcome = px_schedule_reply(tasks->schedule, px_msg_ident(*msg, 0),
                                                result.msg_id, result.reply, result.took_us);
    bool probe = outcome == PX_STALE && px_is_probe(*msg);
    if (outcome == PX_DELIVER ||
        (outcome == PX_STALE && !probe && px_tasks_late(tasks, *msg, &result))) {
        px_msg_swap(*msg, 0, 1);
        px_link_note(tasks->shared.link, PX_NOTE_TASK_REPLY, *msg);
        if (tasks->out.again != PX_MARK_OLD || px_is_ours(px_msg_parent(*msg))) {
            px_clients_send(tasks->clients, *msg);
            *msg = NULL;
        }
    } else if (probe) {
        px_tasks_reclaim(tasks, px_msg_ident(*msg, 0), px_probe_number(px_msg_ident(*msg, 1)));
    } else if (outcome == PX_STALE && !tasks->out.again) {
        tasks->stale++;
    }
    px_schedule_run(tasks->schedule);
}

/* ---- engines --------------------------------------------------------------- */

static struct px_span uuid_of(const struct farewell *farewell)
{
    return (struct px_span){farewell->uuid, farewell->size};
}

/* Reads all that engines have sent so far: a reply in the socket is not lost. */
void px_tasks_drain(struct px_tasks *tasks)
{
    px_port_drain_all(&tasks->out);
}

static void farewell_free(struct farewell *farewell)
{
    free(farewell->cause);
    free(farewell->running);
    free(farewell);
}

/* How many tasks have failed so far because their engine died. */
static size_t count_lost(const struct px_tasks *tasks)
{
    struct px_schedule_stats stats;
    px_schedule_stats(tasks->schedule, &stats);
    return stats.why[PX_WHY_ENGINE_DIED];
}

static void say_farewell(struct px_tasks *tasks, struct farewell *farewell)
{
    px_tasks_drain(tasks);
    px_schedule_tick(tasks->schedule, now_us());
    tasks->leaving = farewell;
    size_t before = count_lost(tasks);
    px_schedule_engine_lost(tasks->schedule, uuid_of(farewell), farewell->running);
    tasks->leaving = NULL;
    if (count_lost(tasks) > before)
        px_log(PX_WARN, "tasks-lost", "engine=%s failed=%zu", farewell->uuid,
               count_lost(tasks) - before);
    DL_DELETE(tasks->farewells, farewell);
    farewell_free(farewell);
    px_tasks_after(tasks);
}

static void on_grace_over(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct farewell *farewell = ctx;
    say_farewell(farewell->tasks, farewell);
}

/* An engine of that uuid is back before the old one was given up. */
static void end_grace(struct px_tasks *tasks, struct px_span uuid)
{
    struct farewell *farewell, *next;
    DL_FOREACH_SAFE(tasks->farewells, farewell, next) {
        if (!px_span_equal(uuid, farewell->uuid))
            continue;
        px_loop_cancel(tasks->shared.loop, farewell->timer);
        say_farewell(tasks, farewell);
    }
}

void px_tasks_engine_up(struct px_tasks *tasks, struct px_span uuid, unsigned features)
{
    end_grace(tasks, uuid);
    px_schedule_tick(tasks->schedule, now_us());
    if (!px_schedule_engine_up(tasks->schedule, uuid, features))
        px_log(PX_WARN, "engine-known", "engine=%.*s", (int)uuid.size, uuid.data);
    px_tasks_after(tasks);
}

void px_tasks_engine_down(struct px_tasks *tasks, const struct px_order *order)
{
    struct px_span uuid = px_span_of(order->uuid);
    px_schedule_tick(tasks->schedule, now_us());
    px_schedule_engine_down(tasks->schedule, uuid);
    px_route_forget(tasks->route, uuid);
    px_tasks_drain(tasks);
    px_tasks_unexpect(tasks, uuid);
    struct farewell *farewell = px_alloc(sizeof(*farewell) + uuid.size + 1);
    farewell->tasks = tasks;
    farewell->id = order->id;
    farewell->cause = px_strdup(order->cause);
    farewell->running = px_strdup(order->running);
    farewell->begun = order->begun;
    farewell->size = uuid.size;
    memcpy(farewell->uuid, uuid.data, uuid.size);
    DL_APPEND(tasks->farewells, farewell);
    farewell->timer = px_loop_timer(tasks->shared.loop, GRACE_MS, 0, on_grace_over, farewell);
    px_tasks_after(tasks);
}

/* ---- create, destroy ------------------------------------------------------- */

struct px_tasks *px_tasks_create(const struct px_shared *shared, struct px_socket *in,
                                 struct px_socket *out, uint32_t first, const char *scheme, int hwm)
{
    struct px_tasks *tasks = px_alloc(sizeof(*tasks));
    uint64_t seed;
    px_random(&seed, sizeof(seed));
    tasks->shared = *shared;
    tasks->in = (struct px_port){.name = "task",
                                 .socket = in,
                                 .session = shared->session,
                                 .least_idents = 1,
                                 .handle = on_submission,
                                 .ctx = tasks,
                                 .after = px_tasks_after,
                                 .after_ctx = tasks};
    tasks->out = tasks->in;
    tasks->out.socket = out;
    tasks->out.least_idents = 2;
    tasks->out.handle = on_result;
    tasks->route = px_route_create(shared->loop, &tasks->out, shared->traffic, on_unsent, tasks);
    tasks->in.owes = true;
    tasks->clients = px_clients_create(shared, &tasks->in, first);
    tasks->comeback = px_comeback_create();
    tasks->schedule = px_schedule_create(&schedule_ops, tasks, px_scheme_find(scheme),
                                         hwm == PX_HWM_UNSAID ? 1 : (unsigned)hwm, seed);
    if (hwm == PX_HWM_UNSAID)
        px_schedule_allow_ahead(tasks->schedule);
    px_port_watch_paced(&tasks->in, shared->loop, shared->link);
    px_port_watch(&tasks->out, shared->loop);
    return tasks;
}

void px_tasks_destroy(struct px_tasks *tasks)
{
    if (tasks == NULL)
        return;
    struct farewell *farewell, *next;
    DL_FOREACH_SAFE(tasks->farewells, farewell, next) {
        px_loop_cancel(tasks->shared.loop, farewell->timer);
        farewell_free(farewell);
    }
    px_loop_cancel(tasks->shared.loop, tasks->timer);
    px_loop_cancel(tasks->shared.loop, tasks->patience);
    px_comeback_destroy(tasks->comeback);
    px_schedule_destroy(tasks->schedule);
    px_route_destroy(tasks->route);
    px_clients_destroy(tasks->clients);
    free(tasks);
}

void px_tasks_answer(struct px_tasks *tasks, struct px_msg *msg)
{
    px_clients_send(tasks->clients, msg);
}

void px_tasks_abort(struct px_tasks *tasks, const char *msg_ids)
{
    px_schedule_tick(tasks->schedule, now_us());
    for (const char *end; (end = strchr(msg_ids, '\n')) != NULL; msg_ids = end + 1)
        px_schedule_abort(tasks->schedule, (struct px_span){msg_ids, (size_t)(end - msg_ids)});
    px_schedule_run(tasks->schedule);
    px_tasks_after(tasks);
}

void px_tasks_why(struct px_tasks *tasks, const char *msg_ids, struct px_buf *out)
{
    px_schedule_tick(tasks->schedule, now_us());
    for (const char *end; (end = strchr(msg_ids, '\n')) != NULL; msg_ids = end + 1) {
        struct px_span msg_id = {msg_ids, (size_t)(end - msg_ids)};
        px_buf_json_string(out, msg_id.data, msg_id.size);
        px_buf_text(out, ": ");
        px_schedule_why(tasks->schedule, msg_id, out);
        px_buf_text(out, end[1] ? ", " : "");
    }
    px_tasks_after(tasks);
}

size_t px_tasks_wanting(const struct px_tasks *tasks)
{
    return px_schedule_wanting(tasks->schedule);
}

bool px_tasks_retire(struct px_tasks *tasks, struct px_span uuid)
{
    return px_schedule_retire(tasks->schedule, uuid);
}

void px_tasks_report(const struct px_tasks *tasks, json_t *report)
{
    struct px_schedule_stats stats;
    px_schedule_stats(tasks->schedule, &stats);
    px_port_report(&tasks->in, "clients", report);
    px_port_report(&tasks->out, "engines", report);
    json_t *counts = json_object();
    const struct {
        const char *name;
        size_t count;
    } rows[] = {
        {"blocked", stats.blocked},
        {"waiting", stats.waiting},
        {"running", stats.running},
        {"submitted", stats.submitted},
        {"succeeded", stats.succeeded},
        {"failed", stats.failed},
        {"engine_died", stats.why[PX_WHY_ENGINE_DIED]},
        {"impossible", stats.why[PX_WHY_IMPOSSIBLE]},
        {"invalid", stats.why[PX_WHY_INVALID]},
        {"timed_out", stats.why[PX_WHY_TIMEOUT]},
        {"aborted", stats.why[PX_WHY_ABORTED]},
        {"rejected", stats.rejected},
        {"refused", tasks->refused},
        {"stale", tasks->stale},
        {"ahead", stats.ahead},
        {"recalled", stats.recalled},
        {"history_bytes", stats.history_bytes},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++)
        json_object_set_new(counts, rows[i].name, json_integer((json_int_t)rows[i].count));
    json_object_set_new(report, "tasks", counts);
}
