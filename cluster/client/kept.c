/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * kept: requests that have not been answered are kept, to be sent again: when a connection broke,
 * or when the controller says that it could not keep a reply for us (protocol.h, PX_AGAIN,
 * PX_UNREAD). Those beyond PX_KEPT_BYTES are not, the oldest first. I/O thread only.
 */
#include "client/client.h"
#include "protocol.h"

#include <utlist.h>

void px_kept_let_go(struct phalanx_client *client, struct px_task *task)
{
    if (!task->request)
        return;
    DL_DELETE2(client->kept, task, kept_prev, kept_next);
    client->kept_bytes -= px_msg_bytes(task->request) + PX_KEPT_EACH;
    if (task->unsent) /* nobody waits for it, but it is to be done */
        (void)!px_io_post(client, task->channel, &task->request);
    px_msg_destroy(task->request);
    task->request = NULL;
    task->unsent = false;
}

static bool is_full(const struct phalanx_client *client)
{
    return client->kept_bytes > PX_KEPT_BYTES && client->kept->kept_next && !client->kept->unsent;
}

/* Takes `msg`. */
static void keep(struct phalanx_client *client, struct px_task *task, struct px_msg *msg)
{
    task->request = msg;
    DL_APPEND2(client->kept, task, kept_prev, kept_next);
    client->kept_bytes += px_msg_bytes(msg) + PX_KEPT_EACH;
    while (is_full(client))
        px_kept_let_go(client, client->kept);
}

static bool is_sent_again(const struct phalanx_client *client, const struct px_task *task)
{
    return client->era != 0 &&
           (task->channel == PX_CHANNEL_MUX || task->channel == PX_CHANNEL_TASK);
}

bool px_kept_send(struct phalanx_client *client, struct px_task *task, struct px_msg **msg)
{
    if (is_sent_again(client, task) && client->doubtful) {
        task->unsent = true;
        keep(client, task, *msg);
        *msg = NULL;
        return true;
    }
    if (is_sent_again(client, task) && !task->lent)
        keep(client, task, px_msg_copy(*msg));
    return px_io_post(client, task->channel, msg) == PX_SENT;
}

static void send_again(struct phalanx_client *client, struct px_task *task)
{
    const bool first = task->unsent;
    struct px_msg *msg =
        first ? px_msg_copy(task->request) : px_msg_marked(task->request, PX_AGAIN);
    task->unsent = false;
    if (first && task->lent)
        px_kept_let_go(client, task);
    if (px_io_post(client, task->channel, &msg) != PX_SENT)
        px_msg_destroy(msg);
}

bool px_kept_ask_again(struct phalanx_client *client, struct px_task *task)
{
    if (!task->request || !is_sent_again(client, task) ||
        (task->engine >= 0 && !px_engines_alive(&client->engines, task->engine)))
        return false;
    send_again(client, task);
    return true;
}

void px_kept_send_all(struct phalanx_client *client)
{
    size_t count = 0;
    struct px_task *task, *next;
    client->doubtful = false;
    client->away_ms = 0;
    DL_FOREACH_SAFE2(client->kept, task, next, kept_next)
    {
        if ((task->engine >= 0 && !px_engines_alive(&client->engines, task->engine)) ||
            (client->era == 0 && !task->unsent))
            continue;
        send_again(client, task);
        count++;
    }
    px_log(PX_DEBUG, "requests.again", "count=%zu", count);
}
