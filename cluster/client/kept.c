/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * kept: requests that have not been answered are kept, to be sent again: when a connection broke,
 * or when the controller says that it could not keep a reply for us (protocol.h, PX_AGAIN,
 * PX_UNREAD). Of those beyond PX_KEPT_BYTES, the oldest first, and of those whose buffers are the
 * caller's, the buffers are not: a signature covers the rest alone, so that whoever has had the
 * request knows it again and answers, and an engine that has not fails it. I/O thread only.
 */
#include "client/client.h"
#include "protocol.h"

#include <utlist.h>

static size_t cost(const struct px_msg *msg)
{
    return px_msg_bytes(msg) + PX_KEPT_EACH;
}

static bool is_whole(const struct px_task *task)
{
    return px_msg_buffer_count(task->request) > 0;
}

/* What of `msg` its signature covers. */
static struct px_msg *without_buffers(const struct px_msg *msg)
{
    struct px_msg *bare = px_msg_create();
    px_msg_append_frames(bare, msg, 0, px_msg_first_buffer(msg));
    if (px_msg_locate(bare, NULL) != 0)
        px_die(1, "a message that was located is none");
    return bare;
}

/* The oldest that has buffers is another now. */
static void look_on(struct phalanx_client *client, struct px_task *from)
{
    while (from && !is_whole(from))
        from = from->kept_next;
    client->kept_whole = from;
}

void px_kept_let_go(struct phalanx_client *client, struct px_task *task)
{
    if (!task->request)
        return;
    if (client->kept_whole == task)
        look_on(client, task->kept_next);
    DL_DELETE2(client->kept, task, kept_prev, kept_next);
    client->kept_bytes -= cost(task->request);
    if (task->unsent) /* nobody waits for it, but it is to be done */
        (void)!px_io_post(client, task->channel, &task->request);
    px_msg_destroy(task->request);
    task->request = NULL;
    task->unsent = false;
}

static void strip(struct phalanx_client *client, struct px_task *task)
{
    struct px_msg *whole = task->request;
    task->request = without_buffers(whole);
    client->kept_bytes -= cost(whole) - cost(task->request);
    px_msg_destroy(whole);
    if (client->kept_whole == task)
        look_on(client, task->kept_next);
}

static bool can_spare(const struct px_task *task)
{
    return task && task->kept_next && !task->unsent;
}

/* Takes `msg`. */
static void keep(struct phalanx_client *client, struct px_task *task, struct px_msg *msg)
{
    task->request = msg;
    DL_APPEND2(client->kept, task, kept_prev, kept_next);
    client->kept_bytes += cost(msg);
    if (!client->kept_whole)
        look_on(client, task);
    while (client->kept_bytes > PX_KEPT_BYTES && can_spare(client->kept_whole))
        strip(client, client->kept_whole);
    while (client->kept_bytes > PX_KEPT_MOST && can_spare(client->kept))
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
    if (is_sent_again(client, task))
        keep(client, task, task->lent ? without_buffers(*msg) : px_msg_copy(*msg));
    return px_io_post(client, task->channel, msg) == PX_SENT;
}

static void send_again(struct phalanx_client *client, struct px_task *task)
{
    const bool first = task->unsent;
    struct px_msg *msg =
        first ? px_msg_copy(task->request) : px_msg_marked(task->request, PX_AGAIN);
    task->unsent = false;
    if (first && task->lent)
        strip(client, task);
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
