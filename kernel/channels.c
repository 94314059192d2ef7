/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * channels: shell, control, stdin, iopub and heartbeat on the service thread.
 *
 *     shell, control, stdin   ROUTER   requests; a client that comes back takes over its id
 *     iopub                   XPUB     what everybody sees; a new subscriber gets iopub_welcome
 *     hb                      ROUTER   each message goes back as it came
 *
 * A front end that dies without a word leaves kernels behind; jupyter_client puts its
 * process id into JPY_PARENT_PID, and the kernel ends when that process does. Only if it is one
 * that this one comes from: launchers (srun, containers) take the variable to where the number
 * means nothing, or another process.
 *
 * Reference: "Messaging in Jupyter" 5.5; jupyter_client, "Making kernels for Jupyter".
 */
#define _GNU_SOURCE
#include "channels.h"

#include "handshake.h"

#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOOK_EVERY_MS 1000 /* after the front end, where the system tells nobody of its end */
#define MOST_ANCESTORS 100

struct px_channels {
    struct px_kernel_connection connection;
    void *context;
    struct px_session *session;
    struct px_kernel *kernel;
    struct px_service *service;
    /* service thread */
    struct px_socket *sockets[PX_CHANNEL_COUNT];
    struct px_socket *heart;
    pid_t parent;  /* the front end; 0: none to watch */
    int parent_fd; /* its pidfd, or -1 */
    struct px_watch *parent_watch;
    struct px_log_limiter refused, unsent;
};

static const char *const topics[PX_TOPIC_COUNT] = {
    [PX_TOPIC_STATUS] = ".status",       [PX_TOPIC_EXECUTE_INPUT] = ".execute_input",
    [PX_TOPIC_STDOUT] = "stream.stdout", [PX_TOPIC_STDERR] = "stream.stderr",
    [PX_TOPIC_DISPLAY] = "display_data", [PX_TOPIC_RESULT] = ".execute_result",
    [PX_TOPIC_ERROR] = ".error",         [PX_TOPIC_SHUTDOWN] = ".shutdown",
    [PX_TOPIC_DATA] = "datapub",         [PX_TOPIC_DEBUG] = ".debug_event",
};

static const struct px_handler handlers[] = {
    {"create_subshell_request", "create_subshell_reply", PX_ON_SERVICE,
     px_on_create_subshell_request, 0},
    {"delete_subshell_request", "delete_subshell_reply", PX_ON_SERVICE,
     px_on_delete_subshell_request, 0},
    {"list_subshell_request", "list_subshell_reply", PX_ON_SERVICE, px_on_list_subshell_request, 0},
    {0},
};

/* ---- in and out ---- */

static void drop_unsent(struct px_channels *channels, enum px_channel channel, struct px_msg **msg)
{
    if (!*msg)
        return;
    px_log_limited(&channels->unsent, PX_INFO, "message.unsent", "channel=%d why=\"client gone\"",
                   (int)channel);
    px_msg_destroy(*msg);
    *msg = NULL;
}

static void send_message(void *ctx, enum px_channel channel, struct px_msg **msg)
{
    struct px_channels *channels = ctx;
    struct px_socket *socket = channels->sockets[channel];
    const enum px_sent sent = channel == PX_IOPUB ? px_kernel_offer(channels->kernel, socket, msg)
                                                  : px_socket_send(socket, msg);
    if (channel != PX_IOPUB || sent != PX_WOULD_BLOCK)
        drop_unsent(channels, channel, msg);
}

static void receive(struct px_channels *channels, enum px_channel channel)
{
    struct px_error err;
    for (int i = 0; i < PX_LOOP_BATCH; i++) {
        struct px_msg *msg = px_socket_recv(channels->sockets[channel]);
        if (!msg)
            break;
        if (px_msg_locate(msg, &err) == 0 && px_session_verify(channels->session, msg, &err) == 0) {
            px_kernel_receive(channels->kernel, channel, &msg);
            continue;
        }
        px_log_limited(&channels->refused, PX_WARN, "message.refused", "channel=%d why=\"%s\"",
                       (int)channel, err.text);
        px_msg_destroy(msg);
    }
    px_service_push(channels->service);
}

static void on_shell(struct px_loop *loop, void *ctx)
{
    (void)loop;
    receive(ctx, PX_SHELL);
}

static void on_control(struct px_loop *loop, void *ctx)
{
    (void)loop;
    receive(ctx, PX_CONTROL);
}

static void on_stdin(struct px_loop *loop, void *ctx)
{
    (void)loop;
    receive(ctx, PX_STDIN);
}

/* A frame of 1 and the topic: a subscription (zmq_socket(3), ZMQ_XPUB). It comes from whoever can
 * connect, so it decides nothing but to whom the answer goes: those who subscribe to that topic and
 * have room. How long a slow reader has been waited for is not counted by it. */
static void welcome(struct px_channels *channels, struct px_span frame)
{
    if (!frame.size || frame.data[0] != 1 || frame.size > 1 + PX_MAX_IDENTITY)
        return;
    const struct px_span topic = {frame.data + 1, frame.size - 1};
    json_t *content = json_pack("{s:s%}", "subscription", topic.data, topic.size);
    char *text = content ? json_dumps(content, 0) : NULL;
    json_decref(content);
    if (!text)
        return; /* not UTF-8: no topic of ours */
    const struct px_draft draft = {.idents = &topic,
                                   .ident_count = topic.size ? 1 : 0,
                                   .type = "iopub_welcome",
                                   .content = px_span_of(text)};
    struct px_msg *msg = px_session_build(channels->session, &draft);
    free(text);
    if (px_socket_send(channels->sockets[PX_IOPUB], &msg) != PX_SENT)
        drop_unsent(channels, PX_IOPUB, &msg);
}

static void on_subscription(struct px_loop *loop, void *ctx)
{
    struct px_channels *channels = ctx;
    (void)loop;
    for (int i = 0; i < PX_LOOP_BATCH; i++) {
        struct px_msg *msg = px_socket_recv(channels->sockets[PX_IOPUB]);
        if (!msg)
            return;
        if (px_msg_count(msg) == 1)
            welcome(channels, px_msg_frame(msg, 0));
        px_msg_destroy(msg);
    }
}

static void on_heart(struct px_loop *loop, void *ctx)
{
    struct px_channels *channels = ctx;
    (void)loop;
    for (int i = 0; i < PX_LOOP_BATCH; i++) {
        struct px_msg *beat = px_socket_recv(channels->heart);
        if (!beat)
            return;
        if (px_socket_send(channels->heart, &beat) != PX_SENT)
            px_msg_destroy(beat);
    }
}

/* ---- ends ---- */

static void on_shutdown(void *ctx, bool restart)
{
    struct px_channels *channels = ctx;
    px_log(PX_INFO, "shutdown", "restart=%d", restart);
    px_service_end(channels->service, 0);
}

static void end_without_parent(struct px_channels *channels)
{
    px_log(PX_INFO, "frontend.gone", NULL);
    px_service_end(channels->service, 0);
}

static void on_parent_gone(struct px_loop *loop, void *ctx)
{
    struct px_channels *channels = ctx;
    px_loop_unwatch(loop, channels->parent_watch);
    end_without_parent(channels);
}

static void close_sockets(void *ctx)
{
    struct px_channels *channels = ctx;
    for (int i = 0; i < PX_CHANNEL_COUNT; i++) {
        px_socket_destroy(channels->sockets[i]);
        channels->sockets[i] = NULL;
    }
    px_socket_destroy(channels->heart);
    channels->heart = NULL;
    px_context_destroy(channels->context);
    channels->context = NULL;
}

/* What cells have left running in the background ends with the kernel, which Jupyter starts as the
 * leader of a session. What has a session of its own stays. */
static void end_children(void)
{
    if (getsid(0) != getpid())
        return;
    signal(SIGTERM, SIG_IGN);
    kill(0, SIGTERM);
}

static void on_end(void *ctx)
{
    close_sockets(ctx);
    end_children();
}

/* ---- setting up: on the main thread, before the service thread exists ---- */

struct bind_row {
    enum px_socket_type type;
    int *port;
    px_loop_fn *fn;
    struct px_socket **socket;
};

static int bind_one(struct px_channels *channels, const struct bind_row *row, struct px_error *err)
{
    const struct px_kernel_connection *connection = &channels->connection;
    char *interface = px_format("%s://%s", connection->transport, connection->ip);
    int result = -1;
    *row->socket = px_socket_create(channels->context, row->type, err);
    if (*row->socket) {
        if (row->type == PX_ROUTER)
            px_socket_set_handover(*row->socket);
        else
            px_socket_set_bounded(*row->socket, PX_IOPUB_MOST);
        if (connection->curve_secretkey)
            px_socket_curve_server(*row->socket, connection->curve_secretkey);
        result = px_socket_bind_port(*row->socket, interface, row->port, err);
    }
    free(interface);
    if (result == 0)
        px_loop_socket(px_service_loop(channels->service), px_socket_pollable(*row->socket),
                       row->fn, channels);
    return result;
}

static int bind_all(struct px_channels *channels, struct px_error *err)
{
    struct px_kernel_connection *connection = &channels->connection;
    const struct bind_row rows[] = {
        /* Control first: within a turn an interrupt or abort acts before later cells start. */
        {PX_ROUTER, &connection->control_port, on_control, &channels->sockets[PX_CONTROL]},
        {PX_ROUTER, &connection->shell_port, on_shell, &channels->sockets[PX_SHELL]},
        {PX_ROUTER, &connection->stdin_port, on_stdin, &channels->sockets[PX_STDIN]},
        {PX_XPUB, &connection->iopub_port, on_subscription, &channels->sockets[PX_IOPUB]},
        {PX_ROUTER, &connection->hb_port, on_heart, &channels->heart},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++)
        if (bind_one(channels, &rows[i], err) < 0)
            return -1;
    return 0;
}

static bool has_free_port(const struct px_kernel_connection *connection)
{
    return !connection->shell_port || !connection->control_port || !connection->stdin_port ||
           !connection->iopub_port || !connection->hb_port;
}

static int create_kernel(struct px_channels *channels, const struct px_interp_ops *ops,
                         const struct px_output_config *output, bool debugger, struct px_error *err)
{
    const struct px_kernel_connection *connection = &channels->connection;
    char *prefix = px_format("kernel.%s", px_session_id(channels->session));
    char *ports = px_format(", \"shell_port\": %d, \"iopub_port\": %d, \"stdin_port\": %d, "
                            "\"hb_port\": %d, \"control_port\": %d",
                            connection->shell_port, connection->iopub_port, connection->stdin_port,
                            connection->hb_port, connection->control_port);
    const struct px_kernel_config config = {.ops = ops,
                                            .session = channels->session,
                                            .topic_prefix = prefix,
                                            .topics = topics,
                                            .handlers = handlers,
                                            .connect_info = ports,
                                            .engine_id = -1,
                                            .has_stdin = true,
                                            .debugger = debugger,
                                            .output = *output,
                                            .ctx = channels,
                                            .send = send_message,
                                            .shutdown = on_shutdown};
    channels->kernel = px_kernel_create(&config, err);
    free(prefix);
    free(ports);
    return channels->kernel ? 0 : -1;
}

/* 0 when nobody can say. */
static pid_t parent_of(pid_t pid)
{
    char path[64], text[1024];
    int parent = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *file = fopen(path, "re");
    const size_t size = file ? fread(text, 1, sizeof text - 1, file) : 0;
    if (file)
        fclose(file);
    text[size] = 0;
    const char *after_name = strrchr(text, ')');
    return after_name && sscanf(after_name, ") %*c %d", &parent) == 1 ? parent : 0;
}

static bool is_ancestor(pid_t pid)
{
    pid_t at = getppid();
    for (int i = 0; i < MOST_ANCESTORS && at > 1 && at != pid; i++)
        at = parent_of(at);
    return at == pid;
}

static void on_look(struct px_loop *loop, void *ctx)
{
    struct px_channels *channels = ctx;
    (void)loop;
    if (!is_ancestor(channels->parent))
        end_without_parent(channels);
}

/* Before anybody can know that this is here: who has gone afterwards was an ancestor. */
static void find_parent(struct px_channels *channels)
{
    const char *text = getenv("JPY_PARENT_PID");
    const long pid = text ? strtol(text, NULL, 10) : 0;
    if (pid > 1 && is_ancestor((pid_t)pid))
        channels->parent = (pid_t)pid;
}

static void watch_parent(struct px_channels *channels)
{
    struct px_loop *loop = px_service_loop(channels->service);
    if (!channels->parent) {
        px_log(PX_DEBUG, "frontend.unwatched", "why=\"this comes from no JPY_PARENT_PID\"");
        return;
    }
    channels->parent_fd = (int)syscall(SYS_pidfd_open, channels->parent, 0);
    if (channels->parent_fd >= 0)
        channels->parent_watch = px_loop_fd(loop, channels->parent_fd, on_parent_gone, channels);
    else if (errno == ESRCH)
        end_without_parent(channels);
    else
        px_loop_timer(loop, 0, LOOK_EVERY_MS, on_look, channels);
}

static int set_up(struct px_channels *channels, const char *path, const struct px_interp_ops *ops,
                  const struct px_output_config *output, bool debugger, struct px_error *err)
{
    struct px_kernel_connection *connection = &channels->connection;
    const struct px_service_calls calls = {.ctx = channels, .close = on_end};
    find_parent(channels);
    if (px_kernel_connection_read(path, connection, err) < 0)
        return -1;
    channels->session = px_session_create(connection->key, connection->signature_scheme, NULL, err);
    channels->service = channels->session ? px_service_create(&calls, err) : NULL;
    if (!channels->service)
        return -1;
    channels->context = px_context_create(1);
    px_pid_keep();
    const bool choose = has_free_port(connection);
    if (bind_all(channels, err) < 0)
        return -1;
    if (choose && px_kernel_connection_write(path, connection, err) < 0)
        return -1;
    if (connection->registration_port &&
        px_handshake(channels->context, channels->session, connection, err) < 0)
        return -1;
    if (create_kernel(channels, ops, output, debugger, err) < 0)
        return -1;
    px_service_adopt(channels->service, channels->kernel);
    watch_parent(channels);
    px_kernel_announce(channels->kernel);
    return px_service_start(channels->service, err);
}

struct px_channels *px_channels_open(const char *path, const struct px_interp_ops *ops,
                                     const struct px_output_config *output, bool debugger,
                                     struct px_error *err)
{
    struct px_channels *channels = px_alloc(sizeof *channels);
    channels->parent_fd = -1;
    if (set_up(channels, path, ops, output, debugger, err) < 0) {
        close_sockets(channels); /* the thread does it where there is one */
        px_channels_close(channels);
        return NULL;
    }
    return channels;
}

struct px_kernel *px_channels_kernel(struct px_channels *channels)
{
    return channels->kernel;
}

struct px_service *px_channels_service(struct px_channels *channels)
{
    return channels->service;
}

void px_channels_close(struct px_channels *channels)
{
    if (channels->service)
        px_service_finish(channels->service);
    px_service_destroy(channels->service);
    px_kernel_destroy(channels->kernel);
    px_session_destroy(channels->session);
    px_kernel_connection_fini(&channels->connection);
    if (channels->parent_fd >= 0)
        close(channels->parent_fd);
    free(channels);
}
