/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * engine: registers with the hub, connects the kernel core to the schedulers, echoes heartbeats.
 *
 *     registrar  DEALER  registration_request ──▶ hub ──▶ registration_reply
 *     shell      ROUTER  to mux, task and one broadcast leaf; a peer's name tells them apart
 *     control    ROUTER  interrupt, abort, signal, shutdown
 *     iopub      XPUB    a PUB that sees when the relay listens; until then it holds its messages
 *     heart      SUB, DEALER   a ping goes back as it came
 *
 * The uuid is the routing id of every socket and the session of every message. All sockets
 * belong to the service thread, so heartbeats and control are answered whatever the language
 * does. The heart's subscription comes last: the hub takes an engine for complete when it hears its
 * heart, and then tasks come.
 *
 * An engine whose hub is gone waits for one on the same ports, for `max_misses` heartbeats. It may
 * be the network that is gone. So while the hub is silent heart and registrar, which have nothing
 * to lose, connect anew (kernel/wire/cut.c), and the others once the hub has registered the engine
 * anew: by then it has given up whatever was under way on them.
 *
 * Reference: ipyparallel 7.1, engine/app.py and engine/kernel.py.
 */
#include "parts.h"

#include "protocol.h"

#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CONNECT_WAIT_MS 1000 /* for one relay; later ones are reached when they come up */
#define LISTEN_WAIT_MS 5000  /* for the iopub relay's subscription */
#define IO_THREADS 2         /* one can be busy with 100 MB: hearts and control go by the other */
#define SILENT_MISSES 3      /* after each so many hearts connect anew */
#define HEART_SLACK_MS 500   /* on top of the period, as the reference allows */
#define LAST_WORDS_MS 250    /* for what is left to send when told to end, as the hub may be */

static const char none[] = "no kernel"; /* what the bell gives when registration failed */

static void drop_item(void *item)
{
    (void)item; /* nothing that the bell carries is its own */
}

static const char *const topics[PX_TOPIC_COUNT] = {
    [PX_TOPIC_STATUS] = ".status",      [PX_TOPIC_EXECUTE_INPUT] = ".execute_input",
    [PX_TOPIC_STDOUT] = ".stdout",      [PX_TOPIC_STDERR] = ".stderr",
    [PX_TOPIC_DISPLAY] = ".displaypub", [PX_TOPIC_RESULT] = ".execute_result",
    [PX_TOPIC_ERROR] = ".error",        [PX_TOPIC_SHUTDOWN] = ".shutdown",
    [PX_TOPIC_DATA] = "datapub",
    [PX_TOPIC_DEBUG] = ".debug_event",
};

void px_engine_give_up(struct engine *engine, int status)
{
    engine->status = status;
    px_doorbell_post(engine->bell, (void *)none);
}

/* ---- messages ---- */

struct px_msg *px_engine_receive(struct engine *engine, enum engine_socket from)
{
    struct px_error err;
    for (struct px_msg *msg; (msg = px_socket_recv(engine->sockets[from]));) {
        if (px_msg_locate(msg, &err) == 0 && px_session_verify(engine->session, msg, &err) == 0)
            return msg;
        px_log_limited(&engine->refused, PX_WARN, "message.refused", "why=\"%s\"", err.text);
        px_msg_destroy(msg);
    }
    return NULL;
}

static void on_cool(struct px_loop *loop, void *ctx);

/* The memory of large messages goes back to the system when no more have come for a while. */
static void watch_blocks(struct engine *engine)
{
    const int64_t left_ms = px_blocks_cool(PX_BLOCKS_WARM_MS);
    engine->cool_timer =
        left_ms ? px_loop_timer(px_service_loop(engine->service), left_ms, 0, on_cool, engine)
                : NULL;
}

static void on_cool(struct px_loop *loop, void *ctx)
{
    (void)loop;
    watch_blocks(ctx);
}

void px_engine_fed(struct engine *engine)
{
    px_service_push(engine->service);
    if (!engine->cool_timer && px_blocks_warm())
        watch_blocks(engine);
}

static void feed(struct engine *engine, enum engine_socket from, enum px_channel channel)
{
    struct px_msg *msg;
    for (int i = 0; i < PX_LOOP_BATCH && (msg = px_engine_receive(engine, from)); i++) {
        if (from == SHELL)
            px_again_received(&engine->again, engine->sockets[SHELL], engine->session, msg);
        px_kernel_receive(engine->kernel, channel, &msg);
    }
    px_engine_fed(engine);
}

static void on_shell(struct px_loop *loop, void *ctx)
{
    (void)loop;
    feed(ctx, SHELL, PX_SHELL);
}

static void on_control(struct px_loop *loop, void *ctx)
{
    (void)loop;
    feed(ctx, CONTROL, PX_CONTROL);
}

/* What is published before the relay has subscribed goes to nobody, without a word. */
static bool is_heard(struct engine *engine)
{
    if (engine->listen_ms && px_now_ms() >= engine->listen_ms) {
        px_log(PX_WARN, "relay.late", "socket=iopub");
        engine->listen_ms = 0;
    }
    return engine->listen_ms == 0;
}

/* *msg stays when there is no room for it, or nobody yet: it is offered again. */
static void publish(struct engine *engine, struct px_msg **msg)
{
    if (!is_heard(engine))
        return;
    struct px_msg *copy = engine->front ? px_msg_copy(*msg) : NULL; /* it goes to both */
    const enum px_sent sent = px_kernel_offer(engine->kernel, engine->sockets[IOPUB], msg);
    if (copy && sent != PX_WOULD_BLOCK)
        (void)px_front_send(engine->front, PX_IOPUB, &copy);
    px_msg_destroy(copy);
    if (sent == PX_WOULD_BLOCK)
        return;
    px_msg_destroy(*msg); /* the context is gone, if there is still one */
    *msg = NULL;
}

static void send_message(void *ctx, enum px_channel channel, struct px_msg **msg)
{
    static const enum engine_socket sockets[PX_CHANNEL_COUNT] = {
        [PX_SHELL] = SHELL, [PX_CONTROL] = CONTROL, [PX_STDIN] = SHELL};
    struct engine *engine = ctx;
    if (channel == PX_IOPUB) {
        publish(engine, msg);
        return;
    }
    if (engine->front && px_front_send(engine->front, channel, msg))
        return;
    if (channel == PX_SHELL)
        px_again_replied(&engine->again, px_service_loop(engine->service), *msg);
    if (px_socket_post(engine->sockets[sockets[channel]], msg) == PX_SENT)
        return;
    px_log_limited(&engine->unsent, PX_WARN, "message.unsent", "why=\"no scheduler there\"");
    px_msg_destroy(*msg);
    *msg = NULL;
}

/* The relay has subscribed: what was held for it goes out. It stays subscribed: libzmq remembers that
 * for a connection that it makes anew. */
static void on_iopub(struct px_loop *loop, void *ctx)
{
    struct engine *engine = ctx;
    (void)loop;
    for (int i = 0; i < PX_LOOP_BATCH; i++) {
        struct px_msg *subscription = px_socket_recv(engine->sockets[IOPUB]);
        if (!subscription)
            break;
        engine->listen_ms = 0;
        px_msg_destroy(subscription);
    }
    px_service_push(engine->service);
}

static int leaf_of(const struct engine *engine)
{
    const struct px_cluster_connection *connection = engine->config->connection;
    return connection->broadcast[(size_t)engine->id % connection->broadcast_count];
}

/* ---- the heart ---- */

/* A machine that sleeps is as silent as a process that is stopped. */
static int64_t boot_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Whoever has not heard the hub for two periods may have been given up: the network stalled, this
 * process was stopped, the machine slept. */
static void note_ping(struct engine *engine)
{
    const int64_t now_ms = boot_ms();
    if (now_ms - engine->pinged_ms > 2 * engine->period_ms + HEART_SLACK_MS)
        px_registrar_doubt(engine, "it was silent for too long");
    px_again_heard(&engine->again);
    engine->pinged_ms = now_ms;
    engine->pinged = true;
}

static void on_ping(struct px_loop *loop, void *ctx)
{
    struct engine *engine = ctx;
    (void)loop;
    for (int i = 0; i < PX_LOOP_BATCH; i++) {
        struct px_msg *ping = px_socket_recv(engine->sockets[HEART_IN]);
        if (!ping)
            return;
        note_ping(engine);
        if (engine->doubtful) {
            px_msg_destroy(engine->held);
            engine->held = ping;
            px_registrar_ask(engine);
        } else if (px_socket_send(engine->sockets[HEART_OUT], &ping) != PX_SENT) {
            px_msg_destroy(ping);
        }
    }
}

/* What was under way when it was lost is lost. Doubt begins anew when the connection is there
 * again, for only then can the hub find out what. */
static void on_connection(struct px_loop *loop, void *ctx)
{
    struct monitor *monitor = ctx;
    (void)loop;
    struct engine *engine = monitor->engine;
    const bool relays = monitor != &engine->monitors[HEART_IN];
    for (struct px_msg *event; (event = px_socket_recv(monitor->socket)); px_msg_destroy(event)) {
        const bool lost = px_monitor_says_lost(event);
        if (lost)
            px_again_break(&engine->again);
        px_registrar_doubt(engine, "a connection was lost");
        if (!lost && relays && engine->awaited > 0 && --engine->awaited == 0)
            px_registrar_ask(engine);
    }
}

static void unwatch(struct engine *engine, enum engine_socket which)
{
    struct monitor *monitor = &engine->monitors[which];
    px_loop_unwatch(px_service_loop(engine->service), monitor->watch);
    px_socket_destroy(monitor->socket);
    *monitor = (struct monitor){0};
}

/* Without it a lost hub is noticed by missed pings alone. */
static void watch(struct engine *engine, enum engine_socket which)
{
    struct px_error err;
    struct monitor *monitor = &engine->monitors[which];
    unwatch(engine, which);
    monitor->engine = engine;
    monitor->socket = px_socket_monitor(engine->sockets[which], &err);
    if (monitor->socket)
        monitor->watch =
            px_loop_socket(px_service_loop(engine->service), px_socket_pollable(monitor->socket),
                           on_connection, monitor);
    else
        px_log(PX_WARN, "monitor.none", "why=\"%s\"", err.text);
}

/* Only controllers of ours let a new connection take the name over from one that looks alive. */
static void cut_hearts(struct engine *engine)
{
    const struct px_cluster_connection *connection = engine->config->connection;
    const int ports[] = {connection->registration, connection->hb_ping, connection->hb_pong};
    if (!engine->bundles)
        return;
    (void)px_connections_cut(ports, PX_COUNT(ports));
    engine->cut = true;
}

bool px_engine_cut_relays(struct engine *engine)
{
    const struct px_cluster_connection *connection = engine->config->connection;
    const int watched[] = {connection->mux, connection->task, leaf_of(engine), connection->control};
    (void)px_connections_cut(&connection->iopub, 1);
    engine->awaited = px_connections_cut(watched, PX_COUNT(watched));
    engine->cut = false;
    return engine->awaited > 0;
}

static void on_heart_check(struct px_loop *loop, void *ctx)
{
    struct engine *engine = ctx;
    (void)loop;
    engine->misses = engine->pinged ? 0 : engine->misses + 1;
    engine->pinged = false;
    if (engine->misses > 0 && engine->misses % SILENT_MISSES == 0)
        cut_hearts(engine);
    if (engine->misses <= engine->config->max_misses || engine->config->max_misses == 0)
        return;
    px_log(PX_ERROR, "hub.gone", "missed=%d period_ms=%d", engine->misses, (int)engine->period_ms);
    px_registrar_leave(engine);
    px_service_end(engine->service, 0);
}

/* ---- registered ---- */

/* For which a silent hub is waited for. */
static int64_t patience_ms(const struct engine *engine)
{
    const int64_t period_ms = engine->period_ms ? engine->period_ms : PX_HEARTBEAT_MS;
    const int misses = engine->config->max_misses;
    return misses > 0 ? (period_ms + HEART_SLACK_MS) * (misses + 1) : INT64_MAX;
}

struct px_socket *px_engine_open(struct engine *engine, enum engine_socket which,
                                 enum px_socket_type type, struct px_error *err)
{
    const char *server_key = engine->config->connection->curve_serverkey;
    struct px_socket *socket = px_socket_create(engine->context, type, err);
    if (!socket)
        return NULL;
    if (server_key && server_key[0])
        px_socket_curve_client(socket, server_key);
    if (type != PX_SUB)
        px_socket_set_identity(socket, engine->uuid);
    px_socket_set_heartbeat(socket, patience_ms(engine));
    if (which == IOPUB)
        px_socket_set_bounded(socket, PX_IOPUB_MOST);
    return engine->sockets[which] = socket;
}

/* Connects and waits a moment for the relay, so that it knows us before the hub announces us. */
static int reach(struct engine *engine, enum engine_socket which, int port, struct px_error *err)
{
    char endpoint[PX_ENDPOINT_SIZE];
    if (px_cluster_endpoint(engine->config->connection, port, endpoint, err) < 0)
        return -1;
    if (px_socket_connect_wait(engine->sockets[which], endpoint, CONNECT_WAIT_MS, err) == 0)
        return 0;
    if (err->code != PX_ETIME)
        return -1;
    px_log(PX_WARN, "relay.late", "endpoint=%s", endpoint);
    return 0;
}

int px_engine_reach_leaf(struct engine *engine, struct px_error *err)
{
    /* A second connection of one name would take the place of the first, and so on. */
    if (engine->config->connection->broadcast_count < 2)
        return 0;
    const int result = reach(engine, SHELL, leaf_of(engine), err);
    watch(engine, SHELL); /* waiting for a connection ends that */
    return result;
}

static int connect_all(struct engine *engine, struct px_error *err)
{
    const struct px_cluster_connection *connection = engine->config->connection;
    const struct {
        enum engine_socket which;
        enum px_socket_type type;
        int port;
    } rows[] = {
        {SHELL, PX_ROUTER, connection->mux},     {SHELL, PX_ROUTER, connection->task},
        {SHELL, PX_ROUTER, leaf_of(engine)},     {CONTROL, PX_ROUTER, connection->control},
        {IOPUB, PX_XPUB, connection->iopub},     {HEART_OUT, PX_DEALER, connection->hb_pong},
        {HEART_IN, PX_SUB, connection->hb_ping},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        if (!engine->sockets[rows[i].which] &&
            !px_engine_open(engine, rows[i].which, rows[i].type, err))
            return -1;
        if (reach(engine, rows[i].which, rows[i].port, err) < 0)
            return -1;
    }
    engine->listen_ms = px_now_ms() + LISTEN_WAIT_MS;
    return 0;
}

static int create_kernel(struct engine *engine, struct px_error *err)
{
    char *prefix = px_format("engine.%d", engine->id);
    const struct px_kernel_config config = {.ops = engine->config->ops,
                                            .session = engine->session,
                                            .topic_prefix = prefix,
                                            .topics = topics,
                                            .handlers = px_engine_handlers,
                                            .engine_id = engine->id,
                                            .stamp_engine = true,
                                            .has_stdin = true,
                                            .stdin_of = PX_FRONT,
                                            .output = engine->config->output,
                                            .ctx = engine,
                                            .send = send_message,
                                            .shutdown = px_engine_shutdown,
                                            .running = px_engine_running,
                                            .begun = px_obituary_begun(engine->config->obituary),
                                            .bind = px_front_bind,
                                            .task_metadata = px_engine_task_metadata};
    engine->kernel = px_kernel_create(&config, err);
    free(prefix);
    return engine->kernel ? 0 : -1;
}

void px_engine_greet(struct engine *engine)
{
    static const char *const relays[] = {PX_ID_TASK_OUT, PX_ID_MUX_OUT};
    for (size_t i = 0; i < PX_COUNT(relays); i++) {
        if (engine->bundles)
            px_socket_greet(engine->sockets[SHELL], relays[i]);
        else
            px_socket_forget_greeting(engine->sockets[SHELL], relays[i]);
    }
}

static void on_settle(struct px_loop *loop, void *ctx)
{
    (void)loop;
    const struct engine *engine = ctx;
    px_socket_flush(engine->sockets[SHELL]);
}

int px_engine_serve(struct engine *engine, struct px_error *err)
{
    struct px_loop *loop = px_service_loop(engine->service);
    if (create_kernel(engine, err) < 0 || connect_all(engine, err) < 0)
        return -1;
    px_socket_take_bundles(engine->sockets[SHELL]);
    px_engine_greet(engine);
    px_loop_settle(loop, on_settle, engine);
    /* Control first: within a turn an abort acts before later tasks start. */
    px_loop_socket(loop, px_socket_pollable(engine->sockets[CONTROL]), on_control, engine);
    px_loop_socket(loop, px_socket_pollable(engine->sockets[SHELL]), on_shell, engine);
    px_loop_socket(loop, px_socket_pollable(engine->sockets[IOPUB]), on_iopub, engine);
    px_loop_socket(loop, px_socket_pollable(engine->sockets[HEART_IN]), on_ping, engine);
    px_loop_timer(loop, engine->period_ms + HEART_SLACK_MS, engine->period_ms + HEART_SLACK_MS,
                  on_heart_check, engine);
    px_service_adopt(engine->service, engine->kernel);
    px_trace_serve(engine->trace, loop, engine->kernel);
    px_front_serve(engine, loop);
    px_kernel_announce(engine->kernel);
    px_registrar_report(engine);
    engine->pinged_ms = boot_ms();
    watch(engine, SHELL);
    watch(engine, CONTROL);
    watch(engine, HEART_IN);
    px_socket_subscribe(engine->sockets[HEART_IN], ""); /* last: now the hub may use us */
    px_doorbell_post(engine->bell, engine->kernel);
    return 0;
}

/* ---- life ---- */

static void close_sockets(void *ctx)
{
    struct engine *engine = ctx;
    if (engine->kernel) {
        px_trace_stop(engine->trace);
        px_registrar_leave(engine);
    }
    for (int i = 0; i < SOCKET_COUNT; i++) {
        unwatch(engine, (enum engine_socket)i);
        px_socket_destroy(engine->sockets[i]);
        engine->sockets[i] = NULL;
    }
    px_front_close(engine);
    px_msg_destroy(engine->held);
    px_again_fini(&engine->again);
    px_context_destroy(engine->context);
    engine->context = NULL;
}

static void on_terminated(void *ctx)
{
    struct engine *engine = ctx;
    px_log(PX_INFO, "terminated", NULL);
    px_registrar_leave(engine);
    for (int i = 0; i < SOCKET_COUNT; i++)
        if (engine->sockets[i])
            px_socket_set_linger(engine->sockets[i], LAST_WORDS_MS);
    if (!engine->kernel)
        px_engine_give_up(engine, 0);
}

static void serve(struct engine *engine, void *self)
{
    void *item = NULL;
    while (!item) /* a signal ends a wait */
        item = px_doorbell_wait(engine->bell, -1);
    if (item == none)
        return;
    struct px_kernel *kernel = item;
    const char *startup = engine->config->startup;
    px_kernel_capture_begin(kernel);
    /* The number is the kernel's: the service thread may be registering anew. */
    engine->config->ops->attach(self, px_kernel_host(kernel), px_kernel_number(kernel),
                                engine->uuid);
    if (startup && startup[0])
        (void)px_kernel_execute(kernel, self, px_span_of(startup)); /* a failure is logged */
    px_kernel_run(kernel, self);
}

int px_engine_run(const struct px_engine_config *config, void *self, int report_fd)
{
    struct px_error err;
    struct engine engine = {.config = config, .report_fd = report_fd, .id = -1};
    const struct px_service_calls calls = {.ctx = &engine,
                                           .open = px_registrar_open,
                                           .close = close_sockets,
                                           .terminated = on_terminated};
    if (config->ident)
        snprintf(engine.uuid, sizeof engine.uuid, "%s", config->ident);
    else
        px_id_random(engine.uuid);
    engine.session = px_session_create(config->connection->key,
                                       config->connection->signature_scheme, engine.uuid, &err);
    engine.bell = px_doorbell_create(&err);
    engine.front_bell = px_doorbell_create(&err);
    engine.service = px_service_create(&calls, &err);
    engine.context = px_context_create(IO_THREADS);
    px_blocks_use();
    px_pid_keep();
    engine.trace = px_trace_create(config->ops, self, config->obituary, &err);
    if (!engine.session || !engine.trace || !engine.bell || !engine.front_bell || !engine.service ||
        px_service_start(engine.service, &err) < 0)
        px_die(1, "%s", err.text);
    serve(&engine, self);
    config->ops->destroy(self);
    if (engine.kernel)
        px_kernel_capture_end(engine.kernel);
    px_service_finish(engine.service);
    px_service_destroy(engine.service);
    px_trace_destroy(engine.trace);
    px_kernel_destroy(engine.kernel);
    px_doorbell_destroy(engine.bell, drop_item);
    px_doorbell_destroy(engine.front_bell, drop_item);
    px_session_destroy(engine.session);
    return engine.status;
}
