/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * front: an engine as a kernel that front ends connect to (ipyparallel, bind_kernel).
 *
 *     shell, control, stdin   ROUTER   the requests of front ends, for the engine's one kernel
 *     iopub                   XPUB     what the kernel publishes, beside the cluster's
 *     hb                      ROUTER   each message goes back as it came
 *
 * So a front end's cells see the namespace of the engine's tasks and take turns with them. The
 * first identity of their requests becomes PX_FRONT, by which a reply is known to go back here and
 * not to the cluster. Messages are signed with the cluster's key, so the connection file is as
 * secret as the cluster's.
 *
 * The thread that asks for it binds and writes the file; the doorbell brings the sockets to the
 * service thread, which alone uses them from then on.
 */
#include "parts.h"

#include <stdlib.h>
#include <unistd.h>

struct px_front {
    struct engine *engine;
    struct px_socket *sockets[PX_CHANNEL_COUNT];
    struct px_socket *heart;
    char *path;
    bool written; /* the file there is ours */
    struct px_log_limiter refused;
};

static void destroy(struct px_front *front)
{
    if (!front)
        return;
    for (size_t i = 0; i < PX_COUNT(front->sockets); i++)
        px_socket_destroy(front->sockets[i]);
    px_socket_destroy(front->heart);
    if (front->written)
        unlink(front->path);
    free(front->path);
    free(front);
}

/* ---- the thread that asks ---- */

static int bind_one(const struct engine *engine, enum px_socket_type type, int *port,
                    struct px_socket **socket, struct px_error *err)
{
    *socket = px_socket_create(engine->context, type, err);
    if (!*socket)
        return -1;
    if (type == PX_ROUTER)
        px_socket_set_handover(*socket);
    else
        px_socket_set_bounded(*socket, PX_IOPUB_MOST);
    return px_socket_bind_port(*socket, "tcp://127.0.0.1", port, err);
}

static int bind_all(struct px_front *front, struct px_error *err)
{
    const struct engine *engine = front->engine;
    const struct px_cluster_connection *cluster = engine->config->connection;
    struct px_kernel_connection file = {.transport = "tcp",
                                        .ip = "127.0.0.1",
                                        .key = cluster->key,
                                        .signature_scheme = cluster->signature_scheme,
                                        .kernel_name = "phalanx"};
    struct px_socket **sockets = front->sockets;
    if (bind_one(engine, PX_ROUTER, &file.shell_port, &sockets[PX_SHELL], err) < 0 ||
        bind_one(engine, PX_ROUTER, &file.control_port, &sockets[PX_CONTROL], err) < 0 ||
        bind_one(engine, PX_ROUTER, &file.stdin_port, &sockets[PX_STDIN], err) < 0 ||
        bind_one(engine, PX_XPUB, &file.iopub_port, &sockets[PX_IOPUB], err) < 0 ||
        bind_one(engine, PX_ROUTER, &file.hb_port, &front->heart, err) < 0)
        return -1;
    front->written = px_kernel_connection_write(front->path, &file, err) == 0;
    return front->written ? 0 : -1;
}

int px_front_bind(void *ctx, const char *path, struct px_error *err)
{
    struct engine *engine = ctx;
    const char *key = engine->config->connection->key;
    if (!key || !key[0])
        return px_fail(err, PX_EINVAL,
                       "an engine's kernel would be open to everybody: the messages of this "
                       "cluster are not signed");
    struct px_front *front = px_alloc(sizeof *front);
    front->engine = engine;
    front->path = px_strdup(path);
    if (bind_all(front, err) < 0) {
        destroy(front);
        return -1;
    }
    px_doorbell_post(engine->front_bell, front);
    return 0;
}

/* ---- service thread ---- */

static void receive(struct px_front *front, enum px_channel channel)
{
    struct px_error err;
    struct px_msg *msg;
    for (int i = 0; i < PX_LOOP_BATCH && (msg = px_socket_recv(front->sockets[channel])); i++) {
        if (px_msg_locate(msg, &err) == 0 && px_msg_ident_count(msg) > 0 &&
            px_session_verify(front->engine->session, msg, &err) == 0) {
            px_msg_prepend(msg, PX_FRONT, sizeof PX_FRONT - 1);
            px_kernel_receive(front->engine->kernel, channel, &msg);
            continue;
        }
        px_log_limited(&front->refused, PX_WARN, "message.refused", "from=\"a front end\"");
        px_msg_destroy(msg);
    }
    px_engine_fed(front->engine);
}

#define ON_CHANNEL(name, channel)                                                                  \
    static void name(struct px_loop *loop, void *front)                                            \
    {                                                                                              \
        (void)loop;                                                                                \
        receive(front, channel);                                                                   \
    }
ON_CHANNEL(on_shell, PX_SHELL)
ON_CHANNEL(on_control, PX_CONTROL)
ON_CHANNEL(on_stdin, PX_STDIN)

/* Subscriptions: nothing to do, but they must be read. */
static void on_iopub(struct px_loop *loop, void *ctx)
{
    struct px_front *front = ctx;
    struct px_msg *msg;
    (void)loop;
    for (int i = 0; i < PX_LOOP_BATCH && (msg = px_socket_recv(front->sockets[PX_IOPUB])); i++)
        px_msg_destroy(msg);
}

static void on_heart(struct px_loop *loop, void *ctx)
{
    struct px_front *front = ctx;
    struct px_msg *beat;
    (void)loop;
    for (int i = 0; i < PX_LOOP_BATCH && (beat = px_socket_recv(front->heart)); i++)
        if (px_socket_send(front->heart, &beat) != PX_SENT)
            px_msg_destroy(beat);
}

static void on_bound(struct px_loop *loop, void *ctx)
{
    struct engine *engine = ctx;
    struct px_front *front;
    while ((front = px_doorbell_take(engine->front_bell))) {
        const struct {
            struct px_socket *socket;
            px_loop_fn *fn;
        } rows[] = {
            /* Control first: within a turn an interrupt acts before later cells start. */
            {front->sockets[PX_CONTROL], on_control},
            {front->sockets[PX_SHELL], on_shell},
            {front->sockets[PX_STDIN], on_stdin},
            {front->sockets[PX_IOPUB], on_iopub},
            {front->heart, on_heart},
        };
        for (size_t i = 0; i < PX_COUNT(rows); i++)
            px_loop_socket(loop, px_socket_pollable(rows[i].socket), rows[i].fn, front);
        engine->front = front; /* the language asks for one */
        px_log(PX_INFO, "kernel.bound", "file=%s", front->path);
    }
}

void px_front_serve(struct engine *engine, struct px_loop *loop)
{
    px_loop_fd(loop, px_doorbell_fd(engine->front_bell), on_bound, engine);
}

bool px_front_send(struct px_front *front, enum px_channel channel, struct px_msg **msg)
{
    if (channel != PX_IOPUB) {
        if (!px_span_equal(px_msg_ident(*msg, 0), PX_FRONT))
            return false;
        px_msg_drop_front(*msg, 1);
    }
    const enum px_sent sent = px_socket_send(front->sockets[channel], msg);
    if (sent != PX_SENT && sent != PX_SENT_TO_SOME) {
        px_msg_destroy(*msg); /* whoever asked has gone */
        *msg = NULL;
    }
    return true;
}

void px_front_close(struct engine *engine)
{
    destroy(engine->front);
    engine->front = NULL;
    for (struct px_front *late; (late = px_doorbell_take(engine->front_bell));)
        destroy(late);
}
