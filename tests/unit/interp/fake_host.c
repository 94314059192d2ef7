/* SPDX-License-Identifier: BSD-3-Clause */
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fake_host.h"

struct px_parent {
    struct fake_host *fake;
    int request;
};

static struct px_parent *on_parent_ref(void *ctx)
{
    struct fake_host *fake = ctx;
    struct px_parent *parent = px_alloc(sizeof *parent);
    *parent = (struct px_parent){fake, fake->request};
    fake->parents++;
    return parent;
}

static void on_parent_unref(struct px_parent *parent)
{
    parent->fake->parents--;
    free(parent);
}

static struct px_span on_parent_header(struct px_parent *parent)
{
    (void)parent;
    return PX_SPAN("{\"msg_id\": \"m\"}");
}

static size_t on_stream(void *ctx, struct px_parent *parent, enum px_stream which, const char *text,
                        size_t size)
{
    struct fake_host *fake = ctx;
    pthread_mutex_lock(&fake->lock);
    px_buf_append(&fake->text[which], text, size);
    px_buf_printf(&fake->owned, "%d:%.*s", parent ? parent->request : -1, (int)size, text);
    pthread_cond_broadcast(&fake->changed);
    pthread_mutex_unlock(&fake->lock);
    return size;
}

static void on_publish(void *ctx, struct px_parent *parent, enum px_publication what,
                       struct px_span content, struct px_span metadata,
                       const struct px_buffer *buffers, size_t buffer_count)
{
    struct fake_host *fake = ctx;
    (void)parent;
    (void)metadata;
    pthread_mutex_lock(&fake->lock);
    px_buf_printf(&fake->published, "%d ", (int)what);
    px_buf_append(&fake->published, content.data, content.size);
    px_buf_printf(&fake->published, " +%zu\n", buffer_count);
    for (size_t i = 0; i < buffer_count; i++)
        if (buffers[i].release)
            buffers[i].release(buffers[i].hint);
    pthread_cond_broadcast(&fake->changed);
    pthread_mutex_unlock(&fake->lock);
}

static int on_input(void *ctx, struct px_parent *parent, const struct px_ask *ask,
                    struct px_buf *line, struct px_error *err)
{
    struct fake_host *fake = ctx;
    if (!fake->answer)
        return px_fail(err, PX_ENOENT, "there is nobody to ask");
    (void)parent;
    px_buf_printf(&fake->prompt, "%s%s", ask->prompt, ask->password ? " (secret)" : "");
    on_stream(ctx, NULL, PX_STDOUT, "asked", 5);
    while (!fake->answer[0]) {
        poll(NULL, 0, 20); /* a signal may have come before */
        if (!ask->go_on(ask->ctx))
            return px_fail(err, PX_EINTR, "a signal came");
    }
    px_buf_text(line, fake->answer);
    return 0;
}

static void on_release(void *hint)
{
    struct fake_host *fake = hint;
    fake->kept--;
}

static bool on_keep_buffer(void *ctx, size_t index, struct px_buffer *out)
{
    struct fake_host *fake = ctx;
    struct px_span span = fake->buffers[index];
    fake->kept++;
    *out = (struct px_buffer){span.data, span.size, on_release, fake};
    return true;
}

void fake_host_init(struct fake_host *fake)
{
    memset(fake, 0, sizeof *fake);
    pthread_mutex_init(&fake->lock, NULL);
    pthread_cond_init(&fake->changed, NULL);
    fake->ops = (struct px_interp_host){
        .ctx = fake,
        .stream = on_stream,
        .publish = on_publish,
        .input = on_input,
        .parent_ref = on_parent_ref,
        .parent_unref = on_parent_unref,
        .parent_header = on_parent_header,
        .keep_buffer = on_keep_buffer,
    };
}

void fake_host_fini(struct fake_host *fake)
{
    px_buf_fini(&fake->text[PX_STDOUT]);
    px_buf_fini(&fake->text[PX_STDERR]);
    px_buf_fini(&fake->published);
    px_buf_fini(&fake->owned);
    px_buf_fini(&fake->prompt);
    pthread_cond_destroy(&fake->changed);
    pthread_mutex_destroy(&fake->lock);
}

void fake_host_clear(struct fake_host *fake)
{
    pthread_mutex_lock(&fake->lock);
    px_buf_clear(&fake->text[PX_STDOUT]);
    px_buf_clear(&fake->text[PX_STDERR]);
    px_buf_clear(&fake->published);
    px_buf_clear(&fake->owned);
    px_buf_clear(&fake->prompt);
    pthread_mutex_unlock(&fake->lock);
}

static bool contains(const struct px_buf *buf, const char *piece)
{
    return buf->size > 0 && strstr(buf->data, piece);
}

bool fake_host_has(struct fake_host *fake, const char *piece)
{
    pthread_mutex_lock(&fake->lock);
    bool found = contains(&fake->published, piece);
    pthread_mutex_unlock(&fake->lock);
    return found;
}

void fake_host_wait(struct fake_host *fake, const char *piece)
{
    pthread_mutex_lock(&fake->lock);
    while (!contains(&fake->text[PX_STDOUT], piece))
        pthread_cond_wait(&fake->changed, &fake->lock);
    pthread_mutex_unlock(&fake->lock);
}

void fake_host_set_idle(struct fake_host *fake, bool idle)
{
    pthread_mutex_lock(&fake->lock);
    fake->idle = idle;
    pthread_cond_broadcast(&fake->changed);
    pthread_mutex_unlock(&fake->lock);
}

void fake_host_interrupt(struct fake_host *fake, const struct px_interp_ops *ops, void *self,
                         const char *piece)
{
    fake_host_wait(fake, piece);
    pthread_mutex_lock(&fake->lock);
    while (!fake->idle) {
        struct timespec patience;
        ops->interrupt(self);
        clock_gettime(CLOCK_REALTIME, &patience);
        patience.tv_sec += 10;
        while (!fake->idle && pthread_cond_timedwait(&fake->changed, &fake->lock, &patience) == 0)
            ;
    }
    pthread_mutex_unlock(&fake->lock);
}

void fake_host_run(const struct px_interp_ops *ops, void *self, const char *code,
                   struct px_outcome *out)
{
    struct px_execute request = {
        .code = px_span_of(code),
        .user_expressions = PX_SPAN("{}"),
        .store_history = true,
    };
    *out = (struct px_outcome){0};
    ops->execute(self, &request, out);
}
