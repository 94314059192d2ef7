/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * bundles: which of the client's sockets send several requests as one message, and when these go.
 *
 * Requests that are submitted one after the other leave together (px_client_submit); so do replies
 * that the controller has for this client, once it was greeted.
 */
#include "client/client.h"
#include "protocol.h"

static const enum px_channel bundled[] = {PX_CHANNEL_TASK, PX_CHANNEL_MUX};

void px_io_greet(struct phalanx_client *client, const json_t *connection_reply)
{
    const bool welcome = json_is_true(json_object_get(connection_reply, PX_BUNDLES));
    for (size_t i = 0; i < PX_COUNT(bundled); i++) {
        struct px_socket *socket = client->sockets[bundled[i]];
        px_socket_take_bundles(socket);
        if (welcome)
            px_socket_greet(socket, "");
        else
            px_socket_forget_greeting(socket, "");
    }
}

enum px_sent px_io_post(struct phalanx_client *client, enum px_channel channel, struct px_msg **msg)
{
    if (client->gathering != channel)
        px_socket_flush(client->sockets[client->gathering]);
    client->gathering = channel;
    return px_socket_post(client->sockets[channel], msg);
}

void px_io_settle(struct px_loop *loop, void *ctx)
{
    (void)loop;
    const struct phalanx_client *client = ctx;
    for (size_t i = 0; i < PX_COUNT(bundled); i++)
        px_socket_flush(client->sockets[bundled[i]]);
}
