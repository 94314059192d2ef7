/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * engine: registers with the hub, connects the kernel core to the schedulers, echoes heartbeats.
 *
 *     registrar  DEALER  registration_request ──▶ hub ──▶ registration_reply
 *     shell      ROUTER  to mux, task and one broadcast leaf; a peer's name tells them apart
 *     control    ROUTER  interrupt, abort, signal, shutdown
 *     iopub      XPUB    a PUB that sees when somebody listens
 *     heart      SUB, DEALER   a ping goes back as it came
 *
 * The uuid is the routing id of every socket and the session of every message. All sockets
 * belong to the service thread, so heartbeats and control are answered whatever the language
 * does. The heart's subscription comes last: the hub takes an engine for complete when it hears its
 * heart, and then tasks come.
 *
 * LIMIT: an engine whose hub is gone ends after `max_misses` heartbeats; it does not reconnect
 * to a restarted one.
 *
 * Reference: ipyparallel 7.1, engine/app.py and engine/kernel.py.
 */
#include "engine.h"

#include "protocol.h"
#include "service.h"
#include "trace.h"

#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CONNECT_WAIT_MS 1000 /* for one relay; later ones are reached when they come up */
#define HEART_SLACK_MS 500   /* on top of the period, as the reference allows */
#define LAST_WORDS_MS                                                                              \
    250 /* for what is left to send when told to end: the hub may be ending too                    \
         */

enum engine_socket { REGISTRAR, SHELL, CONTROL, IOPUB, HEART_OUT, HEART_IN, SOCKET_COUNT };

struct engine {
    const struct px_engine_config *config;
    char uuid[128];
    int report_fd;
    void *context;
    struct px_session *session;
    struct px_service *service;
    struct px_doorbell *bell; /* to the main thread: the kernel once registered, or `none` */
    struct px_kernel *kernel; /* NULL until registered */
    struct px_trace *trace;
    /* service thread */
    struct px_socket *sockets[SOCKET_COUNT];
    struct px_timer *deadline; /* of the registration; NULL afterwards */
    int id, misses, status;
    int64_t period_ms;
    bool pinged, left; /* left: the hub was told */
    struct px_log_limiter refused, unsent;
};

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
};

/* ---- the hub ---- */

static void send_hub(struct engine *engine, const char *type, const char *content)
{
    const struct px_draft draft = {.type = type, .content = px_span_of(content)};
    struct px_msg *msg = px_session_build(engine->session, &draft);
    if (px_socket_send(engine->sockets[REGISTRAR], &msg) != PX_SENT)
        px_msg_destroy(msg);
}

static void unregister(struct engine *engine)
{
    if (engine->left || !engine->sockets[REGISTRAR])
        return;
    engine->left = true;
    px_obituary_leave(engine->config->obituary);
    char *content =
        engine->id < 0 ? px_strdup("{\"id\": null}") : px_format("{\"id\": %d}", engine->id);
    send_hub(engine, PX_UNREGISTRATION_REQUEST, content);
    free(content);
}

/* Ends before there was anything to run. */
static void give_up(struct engine *engine, int status)
{
    engine->status = status;
    px_doorbell_post(engine->bell, (void *)none);
}

static void on_registration_timeout(struct px_loop *loop, void *ctx)
{
    struct engine *engine = ctx;
    (void)loop;
    engine->deadline = NULL;
    px_log(PX_ERROR, "registration.failed", "why=\"the hub did not answer within %d ms\"",
           engine->config->timeout_ms);
    unregister(engine);
    give_up(engine, 1);
}

static void send_registration(struct engine *engine)
{
    const struct px_interp_ops *ops = engine->config->ops;
    struct px_buf content = {0};
    px_buf_printf(&content, "{\"uuid\": \"%s\", \"px\": {\"features\": [\"recall\"%s%s%s]}",
                  engine->uuid, ops->features ? ", " : "", ops->features ? ops->features : "",
                  ops->trace ? ", \"stacks\"" : "");
    if (engine->config->wanted_id >= 0)
        px_buf_printf(&content, ", \"id\": %d", engine->config->wanted_id);
    px_buf_text(&content, "}");
    send_hub(engine, PX_REGISTRATION_REQUEST, content.data);
    px_buf_fini(&content);
}

/* ---- messages ---- */

/* The next message that is whole and signed, or NULL when there is none. */
static struct px_msg *receive(struct engine *engine, enum engine_socket from)
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

static void feed(struct engine *engine, enum engine_socket from, enum px_channel channel)
{
    struct px_msg *msg;
    for (int i = 0; i < PX_LOOP_BATCH && (msg = receive(engine, from)); i++)
        px_kernel_receive(engine->kernel, channel, &msg);
    px_service_push(engine->service);
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

static void send_message(void *ctx, enum px_channel channel, struct px_msg **msg)
{
    static const enum engine_socket sockets[PX_CHANNEL_COUNT] = {
        [PX_SHELL] = SHELL, [PX_CONTROL] = CONTROL, [PX_STDIN] = SHELL, [PX_IOPUB] = IOPUB};
    struct engine *engine = ctx;
    if (px_socket_send(engine->sockets[sockets[channel]], msg) == PX_SENT)
        return;
    px_log_limited(&engine->unsent, PX_WARN, "message.unsent", "why=\"no scheduler there\"");
    px_msg_destroy(*msg);
    *msg = NULL;
}

/* Subscriptions: nothing to do, but they must be read. */
static void on_iopub(struct px_loop *loop, void *ctx)
{
    struct engine *engine = ctx;
    (void)loop;
    for (int i = 0; i < PX_LOOP_BATCH; i++) {
        struct px_msg *subscription = px_socket_recv(engine->sockets[IOPUB]);
        if (!subscription)
            return;
        px_msg_destroy(subscription);
    }
}

static void on_ping(struct px_loop *loop, void *ctx)
{
    struct engine *engine = ctx;
    (void)loop;
    for (int i = 0; i < PX_LOOP_BATCH; i++) {
        struct px_msg *ping = px_socket_recv(engine->sockets[HEART_IN]);
        if (!ping)
            return;
        engine->pinged = true;
        if (px_socket_send(engine->sockets[HEART_OUT], &ping) != PX_SENT)
            px_msg_destroy(ping);
    }
}

static void on_heart_check(struct px_loop *loop, void *ctx)
{
    struct engine *engine = ctx;
    (void)loop;
    engine->misses = engine->pinged ? 0 : engine->misses + 1;
    engine->pinged = false;
    if (engine->misses <= engine->config->max_misses || engine->config->max_misses == 0)
        return;
    px_log(PX_ERROR, "hub.gone", "missed=%d period_ms=%d", engine->misses, (int)engine->period_ms);
    unregister(engine);
    px_service_end(engine->service, 0);
}

/* ---- requests that only engines know ---- */

static int signal_number(const json_t *sig)
{
    static const struct {
        const char *name;
        int number;
    } rows[] = {
        {"SIGINT", SIGINT},   {"SIGTERM", SIGTERM}, {"SIGKILL", SIGKILL}, {"SIGHUP", SIGHUP},
        {"SIGQUIT", SIGQUIT}, {"SIGUSR1", SIGUSR1}, {"SIGUSR2", SIGUSR2}, {"SIGSTOP", SIGSTOP},
        {"SIGCONT", SIGCONT}, {"SIGABRT", SIGABRT}, {"SIGALRM", SIGALRM}, {"SIGTSTP", SIGTSTP},
    };
    if (json_is_integer(sig)) {
        const json_int_t number = json_integer_value(sig);
        return number >= 0 && number <= SIGRTMAX ? (int)number : -1;
    }
    for (size_t i = 0; json_is_string(sig) && i < PX_COUNT(rows); i++)
        if (strcmp(json_string_value(sig), rows[i].name) == 0)
            return rows[i].number;
    return -1;
}

static void on_signal_due(struct px_loop *loop, void *ctx)
{
    (void)loop;
    kill(getpid(), (int)(intptr_t)ctx);
}

/* The signal follows the reply, by a moment, so that a deadly one is answered too.
 * LIMIT: SIGCONT cannot wake an engine that SIGSTOP has stopped, as the engine itself reads it; the
 * fork server's host can. */
#define SIGNAL_DELAY_MS 20
static void on_signal_request(struct px_kernel *kernel, struct px_request *request)
{
    struct engine *engine = px_kernel_ctx(kernel);
    json_t *json = px_json_parse(px_request_content(request), NULL);
    const json_t *sig = json_object_get(json, "sig");
    const int number = signal_number(sig);
    if (number < 0)
        px_request_refuse(kernel, request, sig ? "AttributeError" : "KeyError",
                          sig ? "no such signal" : "'sig'");
    else
        px_request_reply(kernel, request, PX_SPAN("{\"status\": \"ok\"}"));
    json_decref(json);
    if (number == SIGINT)
        px_kernel_interrupt(kernel);
    else if (number > 0)
        px_loop_timer(px_service_loop(engine->service), SIGNAL_DELAY_MS, 0, on_signal_due,
                      (void *)(intptr_t)number);
}

static void on_stacks_request(struct px_kernel *kernel, struct px_request *request)
{
    struct engine *engine = px_kernel_ctx(kernel);
    px_trace_answer(engine->trace, request);
}

static const struct px_handler handlers[] = {
    {PX_APPLY_REQUEST, PX_APPLY_REPLY, PX_ON_INTERPRETER, px_on_apply_request, 0},
    {PX_CLEAR_REQUEST, "clear_reply", PX_ON_INTERPRETER, px_on_clear_request, 0},
    {PX_ABORT_REQUEST, "abort_reply", PX_ON_SERVICE, px_on_abort_request, 0},
    {PX_RECALL_REQUEST, NULL, PX_ON_SERVICE, px_on_recall_request, 0},
    {PX_SIGNAL_REQUEST, "signal_reply", PX_ON_SERVICE, on_signal_request, 0},
    {PX_STACKS_REQUEST, "stacks_reply", PX_ON_SERVICE, on_stacks_request, 0},
    {0},
};

/* What schedulers and clients want back of a task's own metadata. */
static void task_metadata(void *ctx, const struct px_request *request, struct px_buf *out)
{
    static const char *const keys[] = {"is_broadcast", "is_coalescing", "original_msg_id", "label"};
    static const char *const absent[] = {"false", "false", "\"\"", "null"};
    struct px_span values[PX_COUNT(keys)] = {{0}};
    (void)ctx;
    const bool found = px_scan(px_request_metadata(request), keys, values, PX_COUNT(keys)) == 0;
    for (size_t i = 0; i < PX_COUNT(keys); i++) {
        const struct px_span value = found && values[i].data ? values[i] : px_span_of(absent[i]);
        px_buf_printf(out, ", \"%s\": ", keys[i]);
        px_buf_append(out, value.data, value.size);
    }
}

static void on_running(void *ctx, const struct px_request *request)
{
    struct engine *engine = ctx;
    if (request)
        px_obituary_begin(engine->config->obituary, px_request_id(request),
                          px_request_type(request));
    else
        px_obituary_end(engine->config->obituary);
}

static void on_shutdown(void *ctx, bool restart)
{
    struct engine *engine = ctx;
    px_log(PX_INFO, "shutdown", "restart=%d", restart);
    px_service_end(engine->service, 0);
}

/* ---- registered ---- */

static struct px_socket *open_socket(struct engine *engine, enum engine_socket which,
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

static int connect_all(struct engine *engine, struct px_error *err)
{
    const struct px_cluster_connection *connection = engine->config->connection;
    const int leaf = connection->broadcast[(size_t)engine->id % connection->broadcast_count];
    const struct {
        enum engine_socket which;
        enum px_socket_type type;
        int port;
    } rows[] = {
        {SHELL, PX_ROUTER, connection->mux},
        {SHELL, PX_ROUTER, connection->task},
        {SHELL, PX_ROUTER, leaf},
        {CONTROL, PX_ROUTER, connection->control},
        {IOPUB, PX_XPUB, connection->iopub},
        {HEART_OUT, PX_DEALER, connection->hb_pong},
        {HEART_IN, PX_SUB, connection->hb_ping},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        if (!engine->sockets[rows[i].which] &&
            !open_socket(engine, rows[i].which, rows[i].type, err))
            return -1;
        if (reach(engine, rows[i].which, rows[i].port, err) < 0)
            return -1;
    }
    /* What is published before the relay has subscribed is lost. */
    if (!px_socket_wait(engine->sockets[IOPUB], CONNECT_WAIT_MS))
        px_log(PX_WARN, "relay.late", "socket=iopub");
    return 0;
}

static int create_kernel(struct engine *engine, struct px_error *err)
{
    char *prefix = px_format("engine.%d", engine->id);
    const struct px_kernel_config config = {.ops = engine->config->ops,
                                            .session = engine->session,
                                            .topic_prefix = prefix,
                                            .topics = topics,
                                            .handlers = handlers,
                                            .engine_id = engine->id,
                                            .stamp_engine = true,
                                            .output = engine->config->output,
                                            .ctx = engine,
                                            .send = send_message,
                                            .shutdown = on_shutdown,
                                            .running = on_running,
                                            .task_metadata = task_metadata};
    engine->kernel = px_kernel_create(&config, err);
    free(prefix);
    return engine->kernel ? 0 : -1;
}

static void report(const struct engine *engine)
{
    char *line = px_format("registered %d %d\n", engine->id, (int)getpid());
    if (engine->report_fd >= 0 && write(engine->report_fd, line, strlen(line)) < 0)
        px_log(PX_WARN, "report.failed", "why=\"%s\"", strerror(errno));
    free(line);
}

static void name_log(const struct engine *engine)
{
    char *tag = px_format("pxengine.%d", engine->id);
    px_log_init(tag, (enum px_level)engine->config->log_level);
    free(tag);
}

static int start_serving(struct engine *engine, struct px_error *err)
{
    struct px_loop *loop = px_service_loop(engine->service);
    if (create_kernel(engine, err) < 0 || connect_all(engine, err) < 0)
        return -1;
    /* Control first: within a turn an abort acts before later tasks start. */
    px_loop_socket(loop, px_socket_pollable(engine->sockets[CONTROL]), on_control, engine);
    px_loop_socket(loop, px_socket_pollable(engine->sockets[SHELL]), on_shell, engine);
    px_loop_socket(loop, px_socket_pollable(engine->sockets[IOPUB]), on_iopub, engine);
    px_loop_socket(loop, px_socket_pollable(engine->sockets[HEART_IN]), on_ping, engine);
    px_loop_timer(loop, engine->period_ms + HEART_SLACK_MS, engine->period_ms + HEART_SLACK_MS,
                  on_heart_check, engine);
    px_service_adopt(engine->service, engine->kernel);
    px_trace_serve(engine->trace, loop, engine->kernel);
    px_kernel_announce(engine->kernel);
    name_log(engine);
    px_log(PX_INFO, "registered", PX_REGISTERED_TEXT, engine->id);
    report(engine);
    px_socket_subscribe(engine->sockets[HEART_IN], ""); /* last: now the hub may use us */
    px_doorbell_post(engine->bell, engine->kernel);
    return 0;
}

/* 0 with id and period; -1 with why the hub said no. */
static int read_reply(struct engine *engine, const struct px_msg *msg, struct px_error *err)
{
    json_t *content = px_json_parse(px_msg_content(msg), err);
    if (!content)
        return -1;
    int result = 0;
    const char *status = json_string_value(json_object_get(content, "status"));
    const json_t *id = json_object_get(content, "id");
    const json_int_t period = json_integer_value(json_object_get(content, "hb_period"));
    if (status && strcmp(status, "ok") != 0) {
        const char *why = json_string_value(json_object_get(content, "evalue"));
        result = px_fail(err, PX_EEXIST, "%.300s", why ? why : "the hub gave no reason");
    } else if (!json_is_integer(id) || json_integer_value(id) < 0 ||
               json_integer_value(id) > INT32_MAX) {
        result = px_fail(err, PX_EINVAL, "the hub's reply has no engine id");
    } else {
        engine->id = (int)json_integer_value(id);
        engine->period_ms = period > 0 && period < INT32_MAX ? period : PX_HEARTBEAT_MS;
    }
    json_decref(content);
    return result;
}

static void on_registrar(struct px_loop *loop, void *ctx)
{
    struct engine *engine = ctx;
    struct px_header header;
    struct px_error err;
    for (struct px_msg *msg; (msg = receive(engine, REGISTRAR)); px_msg_destroy(msg)) {
        if (!engine->deadline || px_header_scan(px_msg_header(msg), &header, &err) < 0 ||
            !px_span_equal(header.msg_type, PX_REGISTRATION_REPLY))
            continue;
        px_loop_cancel(loop, engine->deadline);
        engine->deadline = NULL;
        if (read_reply(engine, msg, &err) == 0 && start_serving(engine, &err) == 0)
            continue;
        px_log(PX_ERROR, "registration.failed", "why=\"%s\"", err.text);
        give_up(engine, 1);
    }
}

/* ---- life ---- */

static void open_registrar(void *ctx)
{
    struct engine *engine = ctx;
    struct px_error err;
    char endpoint[PX_ENDPOINT_SIZE];
    struct px_loop *loop = px_service_loop(engine->service);
    if (!open_socket(engine, REGISTRAR, PX_DEALER, &err) ||
        px_cluster_endpoint(engine->config->connection, engine->config->connection->registration,
                            endpoint, &err) < 0 ||
        px_socket_connect(engine->sockets[REGISTRAR], endpoint, &err) < 0) {
        px_log(PX_ERROR, "registration.failed", "why=\"%s\"", err.text);
        give_up(engine, 1);
        return;
    }
    px_loop_socket(loop, px_socket_pollable(engine->sockets[REGISTRAR]), on_registrar, engine);
    engine->deadline =
        px_loop_timer(loop, engine->config->timeout_ms, 0, on_registration_timeout, engine);
    send_registration(engine);
}

static void close_sockets(void *ctx)
{
    struct engine *engine = ctx;
    if (engine->kernel) {
        px_trace_stop(engine->trace);
        unregister(engine);
    }
    for (int i = 0; i < SOCKET_COUNT; i++) {
        px_socket_destroy(engine->sockets[i]);
        engine->sockets[i] = NULL;
    }
    px_context_destroy(engine->context);
    engine->context = NULL;
}

static void on_terminated(void *ctx)
{
    struct engine *engine = ctx;
    px_log(PX_INFO, "terminated", NULL);
    unregister(engine);
    for (int i = 0; i < SOCKET_COUNT; i++)
        if (engine->sockets[i])
            px_socket_set_linger(engine->sockets[i], LAST_WORDS_MS);
    if (!engine->kernel)
        give_up(engine, 0);
}

static void serve(struct engine *engine, void *self)
{
    void *item = NULL;
    while (!item) /* a signal ends a wait */
        item = px_doorbell_wait(engine->bell, -1, NULL);
    if (item == none)
        return;
    struct px_kernel *kernel = item;
    const char *startup = engine->config->startup;
    px_kernel_capture_begin(kernel);
    engine->config->ops->attach(self, px_kernel_host(kernel), engine->id, engine->uuid);
    if (startup && startup[0])
        (void)px_kernel_execute(kernel, self, px_span_of(startup)); /* a failure is logged */
    px_kernel_run(kernel, self);
}

int px_engine_run(const struct px_engine_config *config, void *self, int report_fd)
{
    struct px_error err;
    struct engine engine = {.config = config, .report_fd = report_fd, .id = -1};
    const struct px_service_calls calls = {.ctx = &engine,
                                           .open = open_registrar,
                                           .close = close_sockets,
                                           .terminated = on_terminated};
    if (config->ident)
        snprintf(engine.uuid, sizeof engine.uuid, "%s", config->ident);
    else
        px_id_random(engine.uuid);
    engine.session = px_session_create(config->connection->key,
                                       config->connection->signature_scheme, engine.uuid, &err);
    engine.bell = px_doorbell_create(&err);
    engine.service = px_service_create(&calls, &err);
    engine.context = px_context_create(1);
    engine.trace = px_trace_create(config->ops, self, config->obituary, &err);
    if (!engine.session || !engine.trace || !engine.bell || !engine.service ||
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
    px_session_destroy(engine.session);
    return engine.status;
}
