/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * slow: somebody who listens on iopub and is so far behind that messages are kept from him.
 *
 * The line that says so is for him, too, who is behind when it is said first: so it is said twice.
 * libzmq does not tell who he is, nor how much he misses until he reads again.
 *
 * Service thread.
 */
#include "core.h"

#define TELL_TIMES 2
#define TELL_MS 10000       /* between the two */
#define TELL_AGAIN_MS 60000 /* when the next slow reader is a new one */

void px_kernel_published(struct px_kernel *kernel, bool to_all)
{
    if (to_all || kernel->tells > 0)
        return;
    if (!kernel->told_ms || px_now_ms() > kernel->told_ms + TELL_AGAIN_MS) {
        kernel->tells = TELL_TIMES;
        kernel->told_ms = px_now_ms() - TELL_MS;
        px_log(PX_WARN, "iopub.slow-reader", NULL);
    }
}

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
