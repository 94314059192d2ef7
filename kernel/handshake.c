/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * handshake: a kernel tells its launcher which ports it has bound.
 *
 *     kernel     handshake_request   {shell_port, iopub_port, stdin_port, control_port, hb_port}
 *     launcher   handshake_reply     {status}
 *
 * Launchers listen with REP, or with ROUTER: an empty frame before the delimiter suits both.
 */
#define _GNU_SOURCE
#include "handshake.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

static char *endpoint_of(const struct px_kernel_connection *connection)
{
    const bool is_ipc = strcmp(connection->transport, "ipc") == 0;
    return px_format("%s://%s%c%d", connection->transport, connection->ip, is_ipc ? '-' : ':',
                     connection->registration_port);
}

static struct px_msg *request(struct px_session *session,
                              const struct px_kernel_connection *connection)
{
    const struct px_span empty = px_span_of("");
    char *content =
        px_format("{\"shell_port\": %d, \"iopub_port\": %d, \"stdin_port\": %d, "
                  "\"control_port\": %d, \"hb_port\": %d}",
                  connection->shell_port, connection->iopub_port, connection->stdin_port,
                  connection->control_port, connection->hb_port);
    const struct px_draft draft = {.idents = &empty,
                                   .ident_count = 1,
                                   .type = "handshake_request",
                                   .content = px_span_of(content)};
    struct px_msg *msg = px_session_build(session, &draft);
    free(content);
    return msg;
}

static int check_reply(struct px_session *session, struct px_msg *msg, struct px_error *err)
{
    struct px_header header;
    if (px_msg_locate(msg, err) < 0 || px_session_verify(session, msg, err) < 0 ||
        px_header_scan(px_msg_header(msg), &header, err) < 0)
        return -1;
    return px_span_equal(header.msg_type, "handshake_reply")
               ? 0
               : px_fail(err, PX_EINVAL, "it is no handshake_reply");
}

/* NULL at the deadline. What is not signed, or something else, is passed over. */
static struct px_msg *await_reply(struct px_socket *socket, struct px_session *session)
{
    const int64_t deadline = px_now_ms() + PX_HANDSHAKE_MS;
    for (int64_t left = PX_HANDSHAKE_MS; left > 0; left = deadline - px_now_ms()) {
        struct px_msg *msg = px_socket_wait(socket, left) ? px_socket_recv(socket) : NULL;
        struct px_error why;
        if (msg && check_reply(session, msg, &why) == 0)
            return msg;
        if (msg)
            px_log(PX_WARN, "handshake.refused", "why=\"%s\"", why.text);
        px_msg_destroy(msg);
    }
    return NULL;
}

static int shake(struct px_socket *socket, struct px_session *session,
                 const struct px_kernel_connection *connection, const char *endpoint,
                 struct px_error *err)
{
    struct px_msg *msg = request(session, connection);
    if (px_socket_send(socket, &msg) != PX_SENT) {
        px_msg_destroy(msg);
        return px_fail(err, PX_EIO, "cannot send the handshake to %s", endpoint);
    }
    struct px_msg *reply = await_reply(socket, session);
    if (!reply)
        return px_fail(err, PX_ETIME, "nobody at %s has answered the handshake for %d s", endpoint,
                       PX_HANDSHAKE_MS / 1000);
    const struct px_span content = px_msg_content(reply);
    int result = 0;
    if (!px_span_equal(px_scan_member(content, "status"), "ok"))
        result = px_fail(err, PX_EINVAL, "the launcher at %s refuses this kernel: %.*s", endpoint,
                         content.size < 200 ? (int)content.size : 200, (const char *)content.data);
    px_msg_destroy(reply);
    return result;
}

int px_handshake(void *context, struct px_session *session,
                 const struct px_kernel_connection *connection, struct px_error *err)
{
    char *endpoint = endpoint_of(connection);
    sigset_t interrupt, held;
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    pthread_sigmask(SIG_UNBLOCK, &interrupt, &held);
    struct px_socket *socket = px_socket_create(context, PX_DEALER, err);
    int result = socket ? px_socket_connect(socket, endpoint, err) : -1;
    if (result == 0)
        result = shake(socket, session, connection, endpoint, err);
    px_socket_destroy(socket);
    pthread_sigmask(SIG_SETMASK, &held, NULL);
    free(endpoint);
    return result;
}
