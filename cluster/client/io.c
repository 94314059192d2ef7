/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * io: the client's one I/O thread: sockets in, sockets out, and the watch over the hub.
 *
 * A callback takes a bounded batch from its socket, verifies each message before anything in it
 * is read, hands it to file.c, and files the batch at its end. Messages of other clients
 * arrive on iopub too: those are recognised by our session id not occurring in the parent
 * header, before a signature is computed for them.
 *
 * Nobody tells a client that a controller was killed. So while somebody waits and nothing
 * arrives, the hub is asked for the engines every PX_PROBE_MS; the answer also mends the engine
 * table if a notification was missed. PX_PROBE_MISSES unanswered questions fail what is
 * outstanding.
 *
 * What is under way when a connection breaks, or a controller is killed, is lost, and nobody says
 * what that is. So the hub is asked when the connection is there again, and then what has not been
 * answered is sent again, byte for byte: whoever has had it passes over it (protocol.h, PX_AGAIN).
 * What is submitted meanwhile waits, so that engines get all in the order of submission; and so it
 * does, though not for long, while iopub alone is not connected.
 */
#define _GNU_SOURCE
#include "client/client.h"
#include "protocol.h"

#include <stdlib.h>
#include <string.h>
#include <utlist.h>

void px_io_flush(struct phalanx_client *client)
{
    if (!client->touched)
        return;
    struct phalanx_result *result = client->touched;
    struct px_waiter *called = NULL;
    client->touched = NULL;
    pthread_mutex_lock(&client->lock);
    for (struct phalanx_result *r = result; r; r = r->next_touched)
        called = px_result_file(r, called);
    pthread_mutex_unlock(&client->lock);
    px_waiters_wake(called);
    while (result) {
        struct phalanx_result *next = result->next_touched;
        result->touched = false;
        px_result_unref(result);
        result = next;
    }
}

/* ---- sending -------------------------------------------------------------------- */

void px_io_send(struct phalanx_client *client, struct px_task *task, struct px_msg *msg)
{
    if (atomic_load(&task->result->freed)) { /* sent, and what comes of it is nobody's */
        if (msg && px_io_post(client, task->channel, &msg) != PX_SENT)
            px_msg_destroy(msg);
        return;
    }
    HASH_ADD_KEYPTR(hh, client->tasks, task->id, strlen(task->id), task);
    task->listed = true;
    atomic_fetch_add(&task->result->refs, 1);
    if (client->gone)
        px_file_lost(client, task, "the controller was shut down");
    else if (task->engine >= 0 && !px_engines_alive(&client->engines, task->engine))
        px_file_lost(client, task, NULL);
    else if (msg && !px_kept_send(client, task, &msg))
        px_file_lost(client, task, "it could not be sent");
    px_msg_destroy(msg);
}

static struct px_command *take_held(struct phalanx_client *client)
{
    pthread_mutex_lock(&client->lock);
    struct px_command *first = client->held.head;
    client->held.head = client->held.tail = NULL;
    client->held.count = 0;
    client->held.woken = false;
    pthread_mutex_unlock(&client->lock);
    return first;
}

static void send_all(struct phalanx_client *client, struct px_command *command)
{
    while (command) {
        struct px_command *next = command->next;
        command->run(client, command, false);
        command = next;
    }
}

static void on_nap_end(struct px_loop *loop, void *ctx)
{
    struct phalanx_client *client = ctx;
    pthread_mutex_lock(&client->lock);
    client->held.napping = client->held.head != NULL;
    pthread_mutex_unlock(&client->lock);
    if (!client->held.napping) {
        client->nap_timer = NULL;
        return;
    }
    client->nap_timer = px_loop_timer(loop, PX_NAP_MS, 0, on_nap_end, client);
    send_all(client, take_held(client));
    px_io_flush(client);
}

void px_io_send_held(struct phalanx_client *client)
{
    if (!client->nap_timer) {
        client->nap_timer = px_loop_timer(client->loop, PX_NAP_MS, 0, on_nap_end, client);
        pthread_mutex_lock(&client->lock);
        client->held.napping = true;
        pthread_mutex_unlock(&client->lock);
    }
    send_all(client, take_held(client));
}

/* ---- the watch over the hub --------------------------------------------------------- */

static void fail_outstanding(struct phalanx_client *client, const char *why)
{
    struct px_task *task, *next;
    HASH_ITER(hh, client->tasks, task, next)
        px_file_lost(client, task, why);
}

/* An engine may have it, but nobody brings the reply; and who gets it again may do it twice. */
static void fail_sent(struct phalanx_client *client, const char *why)
{
    struct px_task *task, *next;
    HASH_ITER(hh, client->tasks, task, next) {
        if ((task->channel == PX_CHANNEL_MUX || task->channel == PX_CHANNEL_TASK) && !task->unsent)
            px_file_lost(client, task, why);
    }
}

static bool somebody_waits(struct phalanx_client *client)
{
    pthread_mutex_lock(&client->lock);
    const bool waits = client->engine_waiters != NULL;
    pthread_mutex_unlock(&client->lock);
    return waits || client->tasks;
}

static void ask_hub(struct phalanx_client *client)
{
    const struct px_draft draft = {.type = PX_CONNECTION_REQUEST};
    pthread_mutex_lock(&client->session_lock);
    struct px_msg *msg = px_session_build(client->out, &draft);
    snprintf(client->probe_id, sizeof client->probe_id, "%s", px_session_last_id(client->out));
    pthread_mutex_unlock(&client->session_lock);
    if (px_socket_send(client->sockets[PX_CHANNEL_QUERY], &msg) != PX_SENT)
        px_msg_destroy(msg);
}

/* The controller is out of reach since `since_ms`, or since before. */
static void miss_controller(struct phalanx_client *client, int64_t since_ms)
{
    const int periods = PX_PROBE_MISSES + 1 - client->probe_misses;
    client->give_up_ms = client->probed_ms + (int64_t)periods * PX_PROBE_MS;
    if (client->away_ms == 0)
        client->away_ms = since_ms;
}

static void on_probe(struct px_loop *loop, void *ctx)
{
    struct phalanx_client *client = ctx;
    client->probed_ms = px_now_ms();
    px_results_tidy(client);
    if (!somebody_waits(client)) {
        px_loop_cancel(loop, client->probe_timer);
        client->probe_timer = NULL;
        return;
    }
    const bool heard = client->heard && !client->doubtful;
    client->heard = false;
    if (heard) {
        client->probe_misses = 0;
    } else if (client->probe_misses++ >= PX_PROBE_MISSES) {
        client->probe_misses = 0;
        fail_outstanding(client, "the controller has not answered for 30 s");
        (void)px_connections_cut(client->ports, PX_CHANNEL_COUNT); /* nothing is under way now */
    } else {
        ask_hub(client);
    }
    if (client->doubtful || client->probe_misses >= PX_PROBE_DOUBTS)
        miss_controller(client, client->probed_ms - (int64_t)client->probe_misses * PX_PROBE_MS);
    px_io_flush(client);
}

void px_io_watch(struct phalanx_client *client, struct phalanx_result *unused)
{
    (void)unused;
    if (client->probe_timer)
        return;
    client->probe_misses = 0;
    client->probed_ms = px_now_ms();
    client->heard = true;
    if (client->away_ms)
        miss_controller(client, client->probed_ms);
    client->probe_timer = px_loop_timer(client->loop, PX_PROBE_MS, PX_PROBE_MS, on_probe, client);
}

/* ---- the watch over connections ------------------------------------------------------- */

static void on_doubt(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct phalanx_client *client = ctx;
    client->doubt_timer = NULL;
    struct px_task *task, *next;
    HASH_ITER(hh, client->tasks, task, next) {
        if (task->doubted)
            px_file_lost(client, task,
                         "the connection was lost, and with it the request or its reply");
    }
    px_io_flush(client);
}

/* What is asked by control, or broadcast, is not sent again, and a reply comes by the connection of
 * its request or by none. What libzmq still has goes by the next one, though. */
static void doubt(struct phalanx_client *client, enum px_channel channel)
{
    struct px_task *task, *next;
    if (channel != PX_CHANNEL_CONTROL && channel != PX_CHANNEL_BROADCAST)
        return;
    HASH_ITER(hh, client->tasks, task, next)
        task->doubted |= task->channel == channel;
    px_loop_cancel(client->loop, client->doubt_timer); /* set anew when the hub has answered */
    client->doubt_timer = NULL;
}

static void on_connection(struct phalanx_client *client, enum px_channel channel)
{
    for (struct px_msg *event; (event = px_socket_recv(client->monitors[channel]));) {
        const bool lost = px_monitor_says_lost(event);
        px_msg_destroy(event);
        if (channel == PX_CHANNEL_IOPUB) {
            if (lost && client->deaf_ms)
                continue; /* as before: a tunnel without another end is lost all the time */
            client->deaf_ms = lost ? px_now_ms() : 0;
        } else if (!lost && client->deaf_ms) {
            client->deaf_ms = px_now_ms(); /* it may come a moment after the others */
        }
        client->doubtful |= lost;
        if (lost) {
            doubt(client, channel);
            miss_controller(client, px_now_ms());
        }
        /* What was asked before may be lost as well. */
        if (!lost && client->doubtful && (channel == PX_CHANNEL_QUERY || !client->probe_id[0]))
            ask_hub(client);
    }
}

#define ON_CONNECTION(name, channel)                                                               \
    static void name(struct px_loop *loop, void *client)                                           \
    {                                                                                              \
        (void)loop;                                                                                \
        on_connection(client, channel);                                                            \
    }
ON_CONNECTION(on_query_connection, PX_CHANNEL_QUERY)
ON_CONNECTION(on_mux_connection, PX_CHANNEL_MUX)
ON_CONNECTION(on_task_connection, PX_CHANNEL_TASK)
ON_CONNECTION(on_control_connection, PX_CHANNEL_CONTROL)
ON_CONNECTION(on_broadcast_connection, PX_CHANNEL_BROADCAST)
ON_CONNECTION(on_iopub_connection, PX_CHANNEL_IOPUB)

/* Without it what is lost is noticed by its absence alone. */
static void watch_connections(struct phalanx_client *client)
{
    static const struct {
        enum px_channel channel;
        px_loop_fn *handle;
    } rows[] = {
        {PX_CHANNEL_QUERY, on_query_connection},
        {PX_CHANNEL_MUX, on_mux_connection},
        {PX_CHANNEL_TASK, on_task_connection},
        {PX_CHANNEL_CONTROL, on_control_connection},
        {PX_CHANNEL_BROADCAST, on_broadcast_connection},
        {PX_CHANNEL_IOPUB, on_iopub_connection},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_socket *monitor = px_socket_monitor(client->sockets[rows[i].channel], NULL);
        client->monitors[rows[i].channel] = monitor;
        if (monitor)
            px_loop_socket(client->loop, px_socket_pollable(monitor), rows[i].handle, client);
    }
}

/* ---- engines come and go --------------------------------------------------------------- */

static void bereave(struct px_task *task)
{
    for (struct px_task *other = task->peer; other && other != task; other = other->peer)
        other->bereft = other->coalesced;
}

/* Direct tasks of engines that are not there any more get their reply from here. */
static void on_death(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct phalanx_client *client = ctx;
    client->death_timer = NULL;
    struct px_task *task, *next;
    HASH_ITER(hh, client->tasks, task, next) {
        if (task->channel != PX_CHANNEL_TASK && task->engine >= 0 && !task->replied &&
            !px_engines_alive(&client->engines, task->engine)) {
            bereave(task);
            px_file_lost(client, task, NULL);
        }
    }
    HASH_ITER(hh, client->tasks, task, next) {
        if (task->bereft)
            px_file_lost(client, task, "an engine died, for whose reply the controller waits");
    }
    px_io_flush(client);
}

/* Lock held. */
static void engines_changed(struct phalanx_client *client, bool removed)
{
    struct px_waiter *waiter;
    DL_FOREACH(client->engine_waiters, waiter)
        sem_post(&waiter->sem);
    if (removed && !client->death_timer)
        client->death_timer = px_loop_timer(client->loop, PX_DEATH_GRACE_MS, 0, on_death, client);
}

/* Whether output of what is sent now would be lost. */
static bool is_deaf(const struct phalanx_client *client)
{
    return client->deaf_ms && px_now_ms() - client->deaf_ms < PX_DEAF_MS;
}

static void on_connection_reply(struct phalanx_client *client, const struct px_msg *msg)
{
    client->probe_id[0] = '\0';
    json_t *content = px_json_parse(px_msg_content(msg), NULL);
    pthread_mutex_lock(&client->lock);
    engines_changed(client, px_engines_sync(&client->engines, content));
    pthread_mutex_unlock(&client->lock);
    const int64_t before = client->era;
    client->era = json_integer_value(json_object_get(content, "px_again"));
    px_io_greet(client, content);
    json_decref(content);
    if (before != 0 && client->era != 0 && client->era != before)
        fail_sent(client, "the controller was started anew, and knows nothing of it");
    if (client->doubtful && !is_deaf(client)) {
        px_loop_cancel(client->loop, client->doubt_timer);
        client->doubt_timer = px_loop_timer(client->loop, PX_DOUBT_MS, 0, on_doubt, client);
        px_kept_send_all(client);
    }
}

static void on_registration_notification(struct phalanx_client *client, json_t *content)
{
    const json_t *id = json_object_get(content, "id");
    px_engines_add(&client->engines, json_string_value(json_object_get(content, "uuid")),
                   json_is_integer(id) ? (int)json_integer_value(id) : -1,
                   json_object_get(json_object_get(content, "px"), "features"));
    engines_changed(client, false);
}

static void on_shutdown_notification(struct phalanx_client *client, json_t *content)
{
    (void)content;
    client->closed = client->gone = true;
    engines_changed(client, false);
}

static void on_unregistration_notification(struct phalanx_client *client, json_t *content)
{
    if (json_is_true(json_object_get(content, PX_GOODBYE)))
        on_shutdown_notification(client, content);
    const char *uuid = json_string_value(json_object_get(content, "uuid"));
    if (uuid)
        px_engines_explain(&client->engines, uuid, json_object_get(content, "px_cause"));
    engines_changed(client, uuid && px_engines_remove(&client->engines, uuid));
}

/* The last replies, that to a shutdown_request among them, come on other sockets: they are given a
 * moment. */
static void on_goodbye(struct px_loop *loop, void *ctx)
{
    struct phalanx_client *client = ctx;
    (void)loop;
    client->goodbye_timer = NULL;
    fail_outstanding(client, "the controller was shut down");
    px_io_flush(client);
}

static const struct {
    const char *type;
    void (*handle)(struct phalanx_client *client, json_t *content); /* lock held */
} notifications[] = {
    {PX_REGISTRATION_NOTIFICATION, on_registration_notification},
    {PX_UNREGISTRATION_NOTIFICATION, on_unregistration_notification},
    {PX_SHUTDOWN_NOTIFICATION, on_shutdown_notification},
};

static void on_notification(struct phalanx_client *client, struct px_msg *msg)
{
    struct px_header header;
    json_t *content = px_json_parse(px_msg_content(msg), NULL);
    if (content && px_header_scan(px_msg_header(msg), &header, NULL) == 0) {
        pthread_mutex_lock(&client->lock);
        for (size_t i = 0; i < PX_COUNT(notifications); i++) {
            if (px_span_equal(header.msg_type, notifications[i].type))
                notifications[i].handle(client, content);
        }
        pthread_mutex_unlock(&client->lock);
        if (client->gone && !client->goodbye_timer)
            client->goodbye_timer =
                px_loop_timer(client->loop, PX_GOODBYE_MS, 0, on_goodbye, client);
    }
    json_decref(content);
    px_msg_destroy(msg);
}

/* ---- receiving ------------------------------------------------------------------------------ */

static bool mentions(struct px_span text, const char *word)
{
    return text.size && memmem(text.data, text.size, word, strlen(word));
}

static bool answers_probe(const struct phalanx_client *client, const struct px_msg *msg)
{
    struct px_header header;
    return client->probe_id[0] && px_header_scan(px_msg_parent(msg), &header, NULL) == 0 &&
           px_span_equal(header.msg_id, client->probe_id);
}

static void on_answer(struct phalanx_client *client, struct px_msg *msg)
{
    if (answers_probe(client, msg)) {
        on_connection_reply(client, msg);
        px_msg_destroy(msg);
        return;
    }
    px_file_reply(client, msg);
}

struct channel_row {
    bool others; /* carries other clients' messages as well */
    void (*handle)(struct phalanx_client *client, struct px_msg *msg);
};

static const struct channel_row channels[PX_CHANNEL_COUNT] = {
    [PX_CHANNEL_QUERY] = {.handle = on_answer},
    [PX_CHANNEL_MUX] = {.handle = px_file_reply},
    [PX_CHANNEL_TASK] = {.handle = px_file_reply},
    [PX_CHANNEL_CONTROL] = {.handle = px_file_reply},
    [PX_CHANNEL_BROADCAST] = {.handle = px_file_reply},
    [PX_CHANNEL_NOTIFICATION] = {.handle = on_notification},
    [PX_CHANNEL_IOPUB] = {.others = true, .handle = px_file_output},
};

/* Whether it is for this client, whole and signed. */
static bool is_good(const struct phalanx_client *client, const struct channel_row *row,
                    struct px_msg *msg)
{
    return px_msg_locate(msg, NULL) == 0 &&
           (!row->others || mentions(px_msg_parent(msg), client->session_id)) &&
           px_session_verify(client->in, msg, NULL) == 0;
}

static void receive(struct phalanx_client *client, enum px_channel channel)
{
    const struct channel_row *row = &channels[channel];
    for (int n = 0; n < PX_LOOP_BATCH; n++) {
        struct px_msg *msg = px_socket_recv(client->sockets[channel]);
        if (!msg)
            break;
        if (!is_good(client, row, msg)) {
            px_msg_destroy(msg);
            continue;
        }
        client->heard = true;
        if (client->away_ms && !client->doubtful)
            client->away_ms = 0;
        row->handle(client, msg);
    }
    px_io_flush(client);
}

#define ON_CHANNEL(name, channel)                                                                  \
    static void name(struct px_loop *loop, void *client)                                           \
    {                                                                                              \
        (void)loop;                                                                                \
        receive(client, channel);                                                                  \
    }
ON_CHANNEL(on_query, PX_CHANNEL_QUERY)
ON_CHANNEL(on_mux, PX_CHANNEL_MUX)
ON_CHANNEL(on_task, PX_CHANNEL_TASK)
ON_CHANNEL(on_control, PX_CHANNEL_CONTROL)
ON_CHANNEL(on_broadcast, PX_CHANNEL_BROADCAST)
ON_CHANNEL(on_notice, PX_CHANNEL_NOTIFICATION)
ON_CHANNEL(on_iopub, PX_CHANNEL_IOPUB)

/* ---- commands ------------------------------------------------------------------------------- */

static void on_bell(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct phalanx_client *client = ctx;
    for (struct px_command *command; (command = px_doorbell_take(client->bell));)
        command->run(client, command, false);
    px_io_flush(client);
}

void px_io_take_late(struct phalanx_client *client, struct phalanx_result *result)
{
    px_file_drop_late(client, true);
    atomic_fetch_add(&result->refs, 1);
    client->late = result->tasks[0];
}

void px_io_forget(struct phalanx_client *client, struct phalanx_result *result)
{
    if (client->late && client->late->result == result)
        px_file_drop_late(client, false);
    for (size_t i = 0; i < result->count; i++) {
        if (result->tasks[i]->listed)
            px_file_drop(client, result->tasks[i], false);
    }
}

void px_io_close(struct phalanx_client *client, struct phalanx_result *unused)
{
    (void)unused;
    px_io_send_held(client);
    struct px_task *task, *next;
    HASH_ITER(hh, client->tasks, task, next)
        px_file_drop(client, task, true);
    px_file_drop_late(client, true);
    px_loop_stop(client->loop);
}

/* ---- the thread -------------------------------------------------------------------------------
 */

void px_io_attach(struct phalanx_client *client)
{
    static px_loop_fn *const handlers[PX_CHANNEL_COUNT] = {
        [PX_CHANNEL_QUERY] = on_query,         [PX_CHANNEL_MUX] = on_mux,
        [PX_CHANNEL_TASK] = on_task,           [PX_CHANNEL_CONTROL] = on_control,
        [PX_CHANNEL_BROADCAST] = on_broadcast, [PX_CHANNEL_NOTIFICATION] = on_notice,
        [PX_CHANNEL_IOPUB] = on_iopub,
    };
    for (int i = 0; i < PX_CHANNEL_COUNT; i++)
        px_loop_socket(client->loop, px_socket_pollable(client->sockets[i]), handlers[i], client);
    watch_connections(client);
    px_loop_settle(client->loop, px_io_settle, client);
    px_loop_fd(client->loop, px_doorbell_fd(client->bell), on_bell, client);
}

void *px_io_main(void *ctx)
{
    struct phalanx_client *client = ctx;
    if (px_loop_run(client->loop, NULL) < 0) {
        pthread_mutex_lock(&client->lock);
        client->closed = true;
        client->stopping = true;
        engines_changed(client, false);
        pthread_mutex_unlock(&client->lock);
        px_io_close(client, NULL);
        px_io_flush(client);
    }
    return NULL;
}
