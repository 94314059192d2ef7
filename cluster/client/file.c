/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * file: which result a received message belongs to, and when a task is finished. I/O thread only.
 *
 * Reply and output travel by different sockets, so either may come first:
 *
 *     sent --reply, output due--> waiting --idle of the same engine--> finished
 *       |                            '------ no output for 2 s ------> finished
 *       '--reply without output (aborted, control, made by scheduler, hub or here;
 *          or "px_quiet": the engine has published nothing for it)--> finished
 *
 * An idle that precedes the reply counts only if the reply then comes from the same engine: the
 * scheduler may have sent the task to another one first, and that attempt ended with idle too.
 * Output of no outstanding task goes to the result of phalanx_late, if somebody has asked for that;
 * whatever else belongs to none is dropped.
 *
 * An engine of ours says in its reply how many messages of output it has sent (PX_OUTPUTS). When
 * fewer have come by the end, a line on the task's stderr says so.
 */
#define _GNU_SOURCE
#include "client/client.h"
#include "protocol.h"

#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#define MOST_DIGITS 9 /* of a count */

/* ---- staging ------------------------------------------------------------------ */

static struct phalanx_result *touch(struct phalanx_client *client, struct px_task *task)
{
    struct phalanx_result *result = task->result;
    if (!result->touched) {
        result->touched = true;
        atomic_fetch_add(&result->refs, 1);
        result->next_touched = NULL;
        if (client->touched)
            client->touched_last->next_touched = result;
        else
            client->touched = result;
        client->touched_last = result;
    }
    return result;
}

static void stage(struct phalanx_client *client, struct px_task *task,
                  struct phalanx_message *message)
{
    struct phalanx_result *result = touch(client, task);
    message->event.task = task->index;
    if (atomic_load(&result->abandoned)) {
        phalanx_message_free(message);
        return;
    }
    if (px_event_is_output(message))
        result->unread += message->bytes;
    message->next = NULL;
    if (result->staged.tail)
        result->staged.tail->next = message;
    else
        result->staged.head = message;
    result->staged.tail = message;
}

static void unlist(struct phalanx_client *client, struct px_task *task)
{
    struct phalanx_result *result = touch(client, task); /* keeps it until the flush */
    HASH_DEL(client->tasks, task);
    px_kept_let_go(client, task);
    task->listed = false;
    if (task->waiting)
        DL_DELETE(client->waiting, task);
    task->waiting = false;
    px_result_unref(result);
}

static void tell_missing(struct phalanx_client *client, struct px_task *task)
{
    struct phalanx_message *message = px_event_create_text(PHALANX_STREAM, "{}");
    struct px_buf text = {0};
    px_buf_printf(&text, "[phalanx: %u of %u messages of output were lost on their way]\n",
                  task->published - task->outputs, task->published);
    px_event_set_stream(message, "stderr", &text);
    message->event.engine = task->engine;
    stage(client, task, message);
}

static void finish(struct phalanx_client *client, struct px_task *task)
{
    if (task->outputs < task->published)
        tell_missing(client, task);
    struct phalanx_message *idle = px_event_create_text(PHALANX_IDLE, "{}");
    idle->event.engine = task->engine;
    stage(client, task, idle);
    task->result->staged.finished++;
    unlist(client, task);
}

static void count_reply(struct phalanx_client *client, struct px_task *task)
{
    task->replied = true;
    px_kept_let_go(client, task);
    touch(client, task)->staged.replied++;
}

void px_file_drop(struct phalanx_client *client, struct px_task *task, bool closed)
{
    touch(client, task)->staged.closed |= closed;
    unlist(client, task);
}

void px_file_drop_late(struct phalanx_client *client, bool closed)
{
    if (!client->late)
        return;
    struct phalanx_result *result = touch(client, client->late); /* keeps it until the flush */
    result->staged.closed |= closed;
    client->late = NULL;
    px_result_unref(result);
}

/* ipyparallel's words where the hub gave no cause. */
static char *say_loss(const struct phalanx_client *client, const struct px_task *task,
                      const char *why)
{
    const struct px_engine *engine = px_engines_find_id(&client->engines, task->engine);
    const char *cause = engine ? json_string_value(engine->cause) : NULL;
    if (why)
        return px_format("Task '%s' is lost: %s", task->id, why);
    if (cause)
        return px_format("engine %d: %s, while running task '%s'", task->engine, cause, task->id);
    return px_format("Engine %d died while running task '%s'", task->engine, task->id);
}

static struct phalanx_message *lost_reply(const struct phalanx_client *client,
                                          const struct px_task *task, const char *why)
{
    struct px_buf content = {0};
    char *evalue = say_loss(client, task, why);
    px_buf_text(&content, "{\"status\": \"error\", \"ename\": \"EngineError\", \"evalue\": ");
    px_buf_json_string(&content, evalue, strlen(evalue));
    px_buf_text(&content, ", \"traceback\": [], \"engine_info\": {}}");
    free(evalue);
    struct phalanx_message *reply = px_event_create_text(PHALANX_REPLY, content.data);
    px_buf_fini(&content);
    reply->event.engine = task->engine;
    reply->event.failed = reply->event.lost = true;
    return reply;
}

void px_file_lost(struct phalanx_client *client, struct px_task *task, const char *why)
{
    if (!task->replied) {
        stage(client, task, lost_reply(client, task, why));
        count_reply(client, task);
    }
    finish(client, task);
}

/* ---- waiting for the rest of the output -------------------------------------------- */

static void on_grace(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct phalanx_client *client = ctx;
    client->grace_timer = NULL;
    px_file_overdue(client);
    px_io_flush(client);
}

void px_file_overdue(struct phalanx_client *client)
{
    const int64_t now = px_now_ms();
    while (client->waiting && client->waiting->deadline_ms <= now)
        finish(client, client->waiting);
    if (client->waiting && !client->grace_timer)
        client->grace_timer =
            px_loop_timer(client->loop, client->waiting->deadline_ms - now, 0, on_grace, client);
}

static void await_output(struct phalanx_client *client, struct px_task *task)
{
    if (task->waiting)
        DL_DELETE(client->waiting, task);
    task->waiting = true;
    task->deadline_ms = px_now_ms() + PX_OUTPUT_GRACE_MS;
    DL_APPEND(client->waiting, task);
    if (!client->grace_timer)
        px_file_overdue(client);
}

/* ---- what a message says ------------------------------------------------------------- */

static uint64_t hash_of(struct px_span text)
{
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < text.size; i++)
        hash = (hash ^ (unsigned char)text.data[i]) * 1099511628211u;
    return hash ? hash : 1;
}

static struct px_task *find_task(struct phalanx_client *client, struct px_span parent)
{
    struct px_header header;
    struct px_task *task = NULL;
    if (px_header_scan(parent, &header, NULL) == 0)
        HASH_FIND(hh, client->tasks, header.msg_id.data, header.msg_id.size, task);
    return task;
}

/* Which engine speaks: its uuid is the session of all it sends; `metadata` says it as well, for
 * those whose session is another. */
static const struct px_engine *speaker(const struct phalanx_client *client, struct px_span session,
                                       struct px_span metadata)
{
    const struct px_engine *engine = px_engines_find(&client->engines, session);
    return engine ? engine : px_engines_find(&client->engines, px_scan_member(metadata, "engine"));
}

/* ---- replies -------------------------------------------------------------------------- */

static bool output_is_due(const struct px_task *task, bool from_engine, struct px_span status)
{
    const bool runs = task->channel == PX_CHANNEL_MUX || task->channel == PX_CHANNEL_TASK ||
                      task->channel == PX_CHANNEL_BROADCAST;
    return runs && from_engine && !px_span_equal(status, "aborted");
}

/* The reply that ended `task` stands for its whole broadcast: each of the other tasks gets an empty
 * one of the same outcome. Their idle statuses come by themselves. */
static void share_reply(struct phalanx_client *client, const struct px_task *task,
                        const char *content, bool failed)
{
    for (struct px_task *other = task->peer; other != task; other = other->peer) {
        if (!other->listed || other->replied)
            continue;
        struct phalanx_message *reply = px_event_create_text(PHALANX_REPLY, content);
        reply->event.failed = failed;
        reply->event.engine = other->engine;
        stage(client, other, reply);
        count_reply(client, other);
        if (other->idle_from)
            finish(client, other);
        else
            await_output(client, other);
    }
}

struct reply_says {
    struct px_span engine; /* its uuid */
    bool quiet;            /* nothing was published, not even idle */
    unsigned published;
};

/* 0 for what is no plain number. */
static unsigned read_count(struct px_span value)
{
    unsigned count = 0;
    for (size_t i = 0; i < value.size; i++) {
        if (value.data[i] < '0' || value.data[i] > '9' || i == MOST_DIGITS)
            return 0;
        count = 10 * count + (unsigned)(value.data[i] - '0');
    }
    return count;
}

static struct reply_says read_metadata(struct px_span metadata)
{
    static const char *const keys[] = {"engine", "px_quiet", PX_OUTPUTS};
    struct px_span values[PX_COUNT(keys)];
    struct reply_says says = {0};
    if (px_scan(metadata, keys, values, PX_COUNT(keys)) < 0)
        return says;
    if (!values[0].data || !px_scan_string(values[0], &says.engine))
        says.engine = (struct px_span){0};
    says.quiet = px_scan_true(values[1]);
    says.published = read_count(values[2]);
    return says;
}

/* The controller did not keep the reply for us. */
static bool is_left_unread(const struct px_msg *reply)
{
    static const char *const keys[] = {PX_UNREAD};
    struct px_span value;
    return px_scan(px_msg_content(reply), keys, &value, 1) == 0 && value.data;
}

void px_file_reply(struct phalanx_client *client, struct px_msg *msg)
{
    struct px_task *task = find_task(client, px_msg_parent(msg));
    struct px_header header;
    if (!task || task->replied || px_header_scan(px_msg_header(msg), &header, NULL) < 0) {
        px_msg_destroy(msg);
        return;
    }
    const struct px_span status = px_scan_member(px_msg_content(msg), "status");
    const bool failed = !px_span_equal(status, "ok");
    if (failed && is_left_unread(msg) && px_kept_ask_again(client, task)) {
        px_msg_destroy(msg);
        return;
    }
    const struct reply_says says = read_metadata(px_msg_metadata(msg));
    const struct px_engine *speaks = px_engines_find(&client->engines, header.session);
    const struct px_engine *engine =
        speaks ? speaks : px_engines_find(&client->engines, says.engine);
    const bool from_engine =
        speaks || (says.engine.size && says.engine.size == header.session.size &&
                   memcmp(says.engine.data, header.session.data, says.engine.size) == 0);
    task->reply_from = hash_of(header.session);
    task->published = says.published;
    const bool due = !says.quiet && output_is_due(task, from_engine, status) &&
                     task->idle_from != task->reply_from;

    struct phalanx_message *reply = px_event_create_new(PHALANX_REPLY, msg);
    reply->event.failed = failed;
    reply->event.engine = engine ? engine->id : task->engine;
    const struct phalanx_event kept = reply->event;
    stage(client, task, reply);
    count_reply(client, task);
    if (task->coalesced && !atomic_load(&task->result->abandoned))
        share_reply(client, task, failed ? kept.content : "{\"status\": \"ok\"}", failed);
    else if (task->coalesced)
        share_reply(client, task, "{}", failed);
    if (due)
        await_output(client, task);
    else
        finish(client, task);
}

/* ---- output ----------------------------------------------------------------------------- */

static void on_status(struct phalanx_client *client, struct px_task *task, struct px_msg *msg)
{
    struct px_header header;
    if (px_span_equal(px_scan_member(px_msg_content(msg), "execution_state"), "idle") &&
        px_header_scan(px_msg_header(msg), &header, NULL) == 0) {
        task->idle_from = hash_of(header.session);
        if (task->unanswered)
            count_reply(client, task);
        const bool last = task->coalesced || task->idle_from == task->reply_from;
        if (task->unanswered || (task->waiting && last))
            finish(client, task);
    }
    px_msg_destroy(msg);
}

static void stage_output(struct phalanx_client *client, struct px_task *task,
                         struct phalanx_message *message)
{
    struct px_header header;
    const struct px_msg *msg = message->msg;
    const struct px_engine *engine = NULL;
    if (px_header_scan(px_msg_header(msg), &header, NULL) == 0)
        engine = speaker(client, header.session, px_msg_metadata(msg));
    message->event.engine = engine ? engine->id : task->engine;
    if (task == client->late && px_header_scan(px_msg_parent(msg), &header, NULL) == 0)
        message->event.parent = message->parent =
            px_strndup(header.msg_id.data, header.msg_id.size);
    stage(client, task, message);
    if (task->waiting)
        await_output(client, task);
}

static void on_stream(struct phalanx_client *client, struct px_task *task, struct px_msg *msg)
{
    static const char *const keys[] = {"name", "text"}, *const names[] = {"stdout", "stderr"};
    struct px_span values[2], name = {0};
    struct px_buf text = {0};
    const struct px_span content = px_msg_content(msg);
    if (px_scan(content, keys, values, 2) < 0 || !px_scan_string(values[0], &name) ||
        !px_json_unescape(values[1], &text)) {
        px_buf_fini(&text);
        px_msg_destroy(msg);
        return;
    }
    struct phalanx_message *message = px_event_create_new(PHALANX_STREAM, msg);
    px_event_set_stream(message, names[px_span_equal(name, "stderr")], &text);
    stage_output(client, task, message);
}

/* A flood that nobody reads costs no more than this. */
static void drop_unread(struct phalanx_client *client, struct px_task *task, struct px_msg *msg)
{
    touch(client, task)->dropped += px_msg_bytes(msg);
    if (task->waiting)
        await_output(client, task);
    px_msg_destroy(msg);
}

static const char *const output_types[] = {
    "display_data", "update_display_data", "execute_result", "clear_output", "execute_input",
    "error",        "data_message",        "comm_open",      "comm_msg",     "comm_close",
};

static void on_other(struct phalanx_client *client, struct px_task *task, struct px_msg *msg,
                     struct px_span type)
{
    for (size_t i = 0; i < PX_COUNT(output_types); i++) {
        if (px_span_equal(type, output_types[i])) {
            struct phalanx_message *message = px_event_create_new(PHALANX_OUTPUT, msg);
            message->event.name = output_types[i];
            stage_output(client, task, message);
            return;
        }
    }
    px_msg_destroy(msg);
}

static void on_output(struct phalanx_client *client, struct px_task *task, struct px_msg *msg,
                      struct px_span type)
{
    task->outputs++;
    if (task->result->unread > PX_UNREAD_LIMIT)
        drop_unread(client, task, msg);
    else if (px_span_equal(type, "stream"))
        on_stream(client, task, msg);
    else
        on_other(client, task, msg, type);
}

void px_file_output(struct phalanx_client *client, struct px_msg *msg)
{
    struct px_task *task = find_task(client, px_msg_parent(msg));
    struct px_header header;
    task = task ? task : client->late;
    if (!task || px_header_scan(px_msg_header(msg), &header, NULL) < 0)
        px_msg_destroy(msg);
    else if (px_span_equal(header.msg_type, "status"))
        on_status(client, task, msg);
    else
        on_output(client, task, msg, header.msg_type);
}
