/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * slow: somebody who listens on iopub and is behind.
 *
 * He may read more slowly than a cell shows things: then messages are held here, what is behind
 * them waits in the outbox, and a cell that goes on waits with it. When he makes no room at all for
 * PATIENCE_MS, he has stopped reading, and goes without what others are sent until he reads again.
 *
 * The line that says so is for him, too, who is behind when it is said first: so it is said twice.
 * libzmq does not tell who he is, nor how much he misses until he reads again.
 *
 * Service thread.
 */
#include "core.h"

#include <stdlib.h>
#include <string.h>

/* Who reads makes room in steps: of PX_IOPUB_MOST / 2 messages, and of what the system sees fit. Some
 * 2 s lie between them on an idle machine, 9 s on one that is busy with engines. */
#define PATIENCE_MS 10000
#define TELL_TIMES 2
#define TELL_MS 10000       /* between the two */
#define TELL_AGAIN_MS 60000 /* when the next slow reader is a new one */

static void note_missed(struct px_kernel *kernel)
{
    if (kernel->tells > 0)
        return;
    if (!kernel->told_ms || px_now_ms() > kernel->told_ms + TELL_AGAIN_MS) {
        kernel->tells = TELL_TIMES;
        kernel->told_ms = px_now_ms() - TELL_MS;
        px_log(PX_WARN, "iopub.slow-reader", NULL);
    }
}

enum px_sent px_kernel_offer(struct px_kernel *kernel, struct px_socket *socket,
                             struct px_msg **msg)
{
    enum px_sent sent = px_socket_offer(socket, msg);
    if (sent != PX_WOULD_BLOCK) {
        kernel->full_ms = 0;
        return sent;
    }
    const int64_t now_ms = px_now_ms();
    kernel->full_ms = kernel->full_ms ? kernel->full_ms : now_ms;
    if (now_ms - kernel->full_ms < PATIENCE_MS)
        return sent;
    sent = px_socket_send(socket, msg);
    note_missed(kernel);
    return sent;
}

/* ---- what is held ---- */

void px_iopub_send_new(struct px_kernel *kernel, struct px_msg *msg)
{
    if (kernel->held_count == 0)
        kernel->config.send(kernel->config.ctx, PX_IOPUB, &msg);
    if (!msg)
        return;
    if (kernel->held_count == kernel->held_size) {
        kernel->held_size = 2 * kernel->held_size + 8;
        kernel->held = px_realloc(kernel->held, kernel->held_size * sizeof(struct px_msg *));
    }
    kernel->held[kernel->held_count++] = msg;
}

bool px_held_send(struct px_kernel *kernel)
{
    size_t sent = 0;
    for (; sent < kernel->held_count; sent++) {
        kernel->config.send(kernel->config.ctx, PX_IOPUB, &kernel->held[sent]);
        if (kernel->held[sent])
            break;
    }
    kernel->held_count -= sent;
    if (sent && kernel->held_count)
        memmove(kernel->held, kernel->held + sent, kernel->held_count * sizeof(struct px_msg *));
    return kernel->held_count == 0;
}

void px_held_fini(struct px_kernel *kernel)
{
    for (size_t i = 0; i < kernel->held_count; i++)
        px_msg_destroy(kernel->held[i]);
    free(kernel->held);
}

/* ---- what is said ---- */

void px_slow_reader_tell(struct px_kernel *kernel)
{
    if (kernel->tells == 0 || px_now_ms() < kernel->told_ms + TELL_MS)
        return;
    pthread_mutex_lock(&kernel->lock);
    struct px_item *item = px_item_create(PX_IOPUB, "stream", kernel->main.current);
    pthread_mutex_unlock(&kernel->lock);
    item->topic = kernel->topics[PX_TOPIC_STDERR];
    item->stream = PX_STDERR;
    px_buf_text(&item->content, "[phalanx: a front end reads too slowly and missed messages]\n");
    kernel->told_ms = px_now_ms();
    kernel->tells--;
    px_kernel_send(kernel, item);
}
