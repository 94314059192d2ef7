/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * submit: a request becomes one signed message a target, and a command to the I/O thread.
 *
 * Building and signing happen on the caller's thread. Content and metadata are
 * composed once; buffers enter the first message and are shared by reference with the others, so
 * an array for sixteen engines is not copied sixteen times.
 */
#include "client/client.h"
#include "protocol.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---- errors ------------------------------------------------------------------- */

enum phalanx_code px_refuse(struct phalanx_error *err, enum phalanx_code code, const char *fmt, ...)
{
    if (err) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(err->text, sizeof err->text, fmt, args);
        va_end(args);
        err->code = code;
    }
    return code;
}

/* ---- targets --------------------------------------------------------------------- */

struct target {
    int id; /* -1: whichever the scheduler chooses */
    char uuid[PX_MAX_IDENTITY + 1];
};

struct targets {
    struct target *items;
    size_t count;
};

/* Lock held. */
static enum phalanx_code add_target(const struct phalanx_client *client, int id,
                                    struct targets *out, struct phalanx_error *err)
{
    const struct px_engine *engine = px_engines_find_id(&client->engines, id);
    if (!engine || !engine->alive)
        return px_refuse(err, PHALANX_ENOENT, "No such engine: %d", id);
    out->items[out->count].id = id;
    strcpy(out->items[out->count++].uuid, engine->uuid);
    return PHALANX_OK;
}

static enum phalanx_code resolve_targets(struct phalanx_client *client,
                                         const struct phalanx_request *request, struct targets *out,
                                         struct phalanx_error *err)
{
    enum phalanx_code code = PHALANX_OK;
    pthread_mutex_lock(&client->lock);
    size_t count = request->target_count;
    int *all = request->targets ? NULL : px_engines_ids(&client->engines, NULL, &count);
    const int *ids = all ? all : request->targets;
    if (count == 0)
        code = px_refuse(err, PHALANX_ENOENT,
                         all ? "No engines are registered" : "No target is named");
    out->items = px_alloc((count + 1) * sizeof *out->items);
    for (size_t i = 0; i < count && code == PHALANX_OK; i++)
        code = add_target(client, ids[i], out, err);
    pthread_mutex_unlock(&client->lock);
    free(all);
    return code;
}

/* ---- what is sent ------------------------------------------------------------------- */

struct letter {
    enum px_channel channel;
    const char *type;
    bool unanswered, broadcast, coalesced, lent;
    struct px_span content; /* the request's own, or what `code` holds */
    struct px_buf code, metadata;
};

static bool is_named(const struct phalanx_request *request)
{
    return request->type == PHALANX_CONTROL || request->type == PHALANX_MESSAGE ||
           request->type == PHALANX_QUERY;
}

static void execute_content(const struct phalanx_request *request, struct px_buf *out)
{
    px_buf_text(out, "{\"code\": ");
    px_buf_json_string(out, request->code, strlen(request->code));
    px_buf_printf(out,
                  ", \"silent\": %s, \"user_expressions\": {}, \"allow_stdin\": %s, "
                  "\"stop_on_error\": true, \"store_history\": %s}",
                  request->silent ? "true" : "false", request->allow_stdin ? "true" : "false",
                  request->silent ? "false" : "true");
}

/* The engines that a load-balanced task may run on. */
static void target_metadata(const struct targets *targets, struct px_buf *out)
{
    px_buf_text(out, "\"targets\": [");
    for (size_t i = 0; i < targets->count; i++) {
        px_buf_text(out, i ? ", " : "");
        px_buf_json_string(out, targets->items[i].uuid, strlen(targets->items[i].uuid));
    }
    px_buf_text(out, "]");
}

/* Whom the controller's copies of a broadcast are for. */
static void broadcast_metadata(const struct targets *targets, bool coalesce, struct px_buf *out)
{
    px_buf_text(out, "\"targets\": [");
    for (size_t i = 0; i < targets->count; i++) {
        px_buf_text(out, i ? ", [" : "[");
        px_buf_json_string(out, targets->items[i].uuid, strlen(targets->items[i].uuid));
        px_buf_printf(out, ", %d]", targets->items[i].id);
    }
    px_buf_printf(out, "], \"is_broadcast\": true, \"is_coalescing\": %s",
                  coalesce ? "true" : "false");
}

static enum px_channel channel_of(const struct phalanx_request *request)
{
    static const enum px_channel routes[] = {[PHALANX_DIRECT] = PX_CHANNEL_MUX,
                                             [PHALANX_BALANCED] = PX_CHANNEL_TASK,
                                             [PHALANX_BROADCAST] = PX_CHANNEL_BROADCAST};
    if (request->type == PHALANX_CONTROL)
        return PX_CHANNEL_CONTROL;
    return request->type == PHALANX_QUERY ? PX_CHANNEL_QUERY : routes[request->route];
}

static void compose(const struct phalanx_request *request, struct targets *targets,
                    struct letter *out)
{
    static const char *const types[] = {
        [PHALANX_EXECUTE] = PX_EXECUTE_REQUEST, [PHALANX_APPLY] = PX_APPLY_REQUEST};
    const bool balanced = request->route == PHALANX_BALANCED;
    const bool named = is_named(request);
    out->channel = channel_of(request);
    out->broadcast = out->channel == PX_CHANNEL_BROADCAST;
    out->coalesced = out->broadcast && request->coalesce && request->type == PHALANX_APPLY;
    out->type = named ? request->message : types[request->type];
    for (size_t i = 0; i < request->buffer_count; i++)
        out->lent |= request->buffers[i].release && !request->buffers[i].constant;
    out->unanswered = named && strncmp(request->message, "comm_", 5) == 0;
    out->content = px_span_of(request->content && named ? request->content : "{}");
    if (request->type == PHALANX_EXECUTE) {
        execute_content(request, &out->code);
        out->content = px_buf_span(&out->code);
    }

    px_buf_text(&out->metadata, "{");
    if (balanced && targets->count)
        target_metadata(targets, &out->metadata);
    if (out->broadcast)
        broadcast_metadata(targets, out->coalesced, &out->metadata);
    else if (request->type == PHALANX_APPLY) /* see kernel/hush.c */
        px_buf_text(&out->metadata,
                    out->metadata.size > 1 ? ", \"px_quiet\": true" : "\"px_quiet\": true");
    if (request->metadata && *request->metadata)
        px_buf_texts(&out->metadata,
                     PX_TEXTS(out->metadata.size > 1 ? ", " : "", request->metadata));
    px_buf_text(&out->metadata, "}");
    if (balanced) { /* one message, to whom the scheduler likes */
        targets->count = 1;
        targets->items[0] = (struct target){.id = -1};
    }
}

struct lease {
    void (*release)(void *hint);
    void *hint;
};

static void release_lease(void *data, void *hint)
{
    (void)data;
    struct lease *lease = hint;
    lease->release(lease->hint);
    free(lease);
}

static void append_buffer(struct px_msg *msg, const struct phalanx_buffer *buffer)
{
    if (!buffer->release) {
        px_msg_append(msg, buffer->data, buffer->size);
        return;
    }
    struct lease *lease = px_alloc(sizeof *lease);
    *lease = (struct lease){.release = buffer->release, .hint = buffer->hint};
    px_msg_append_new(msg, (void *)(uintptr_t)buffer->data, buffer->size, release_lease, lease);
}

static void release_buffers(const struct phalanx_request *request)
{
    for (size_t i = 0; i < request->buffer_count; i++) {
        if (request->buffers[i].release)
            request->buffers[i].release(request->buffers[i].hint);
    }
}

/* ---- the command ---------------------------------------------------------------------- */

struct parcel {
    struct px_task *task;
    struct px_msg *msg;
};

struct submission {
    struct px_command command;
    struct phalanx_result *result; /* a reference */
    size_t count;
    struct parcel parcels[];
};

static void run_submission(struct phalanx_client *client, struct px_command *command, bool dead)
{
    struct submission *self = (struct submission *)command;
    for (size_t i = 0; i < self->count; i++) {
        if (dead)
            px_msg_destroy(self->parcels[i].msg);
        else
            px_io_send(client, self->parcels[i].task, self->parcels[i].msg);
    }
    if (dead)
        px_result_close(self->result);
    else
        px_io_watch(client, NULL);
    px_result_unref(self->result);
    free(self);
}

static struct px_task *task_create(struct phalanx_result *result, const struct letter *letter,
                                   int engine, const char *id)
{
    const size_t size = strlen(id) + 1;
    struct px_task *task = px_alloc(sizeof *task + size);
    task->result = result;
    task->engine = engine;
    task->channel = letter->channel;
    task->unanswered = letter->unanswered;
    task->coalesced = letter->coalesced;
    task->lent = letter->lent;
    memcpy(task->id, id, size);
    return task;
}

/* One message; the controller's copies are answered under its id with the target's uuid appended.
 */
static void build_broadcast(struct submission *self, struct phalanx_result *result,
                            const struct letter *letter, const struct targets *targets)
{
    struct phalanx_client *client = result->client;
    const struct px_draft draft = {.type = letter->type,
                                   .metadata = px_buf_span(&letter->metadata),
                                   .content = letter->content};
    self->parcels[0].msg = px_session_build(client->out, &draft);
    for (size_t i = 0; i < targets->count; i++) {
        const struct target *target = &targets->items[i];
        struct px_buf id = {0};
        px_buf_printf(&id, "%s_%s", px_session_last_id(client->out), target->uuid);
        self->parcels[i].task = task_create(result, letter, target->id, id.data);
        px_buf_fini(&id);
    }
    for (size_t i = 0; i < targets->count; i++)
        self->parcels[i].task->peer = self->parcels[(i + 1) % targets->count].task;
}

static void build_each(struct submission *self, struct phalanx_result *result,
                       const struct letter *letter, const struct targets *targets)
{
    struct phalanx_client *client = result->client;
    for (size_t i = 0; i < targets->count; i++) {
        const struct px_span ident = px_span_of(targets->items[i].uuid);
        const struct px_draft draft = {.idents = &ident,
                                       .ident_count = ident.size ? 1 : 0,
                                       .type = letter->type,
                                       .metadata = px_buf_span(&letter->metadata),
                                       .content = letter->content};
        self->parcels[i].msg = px_session_build(client->out, &draft);
        self->parcels[i].task =
            task_create(result, letter, targets->items[i].id, px_session_last_id(client->out));
    }
}

static struct submission *build(struct phalanx_result *result, const struct letter *letter,
                                const struct targets *targets,
                                const struct phalanx_request *request)
{
    struct phalanx_client *client = result->client;
    struct submission *self = px_alloc(sizeof *self + targets->count * sizeof self->parcels[0]);
    self->command.run = run_submission;
    self->count = targets->count;
    pthread_mutex_lock(&client->session_lock);
    if (letter->broadcast)
        build_broadcast(self, result, letter, targets);
    else
        build_each(self, result, letter, targets);
    pthread_mutex_unlock(&client->session_lock);

    struct px_msg *first = self->parcels[0].msg;
    for (size_t i = 0; i < request->buffer_count; i++)
        append_buffer(first, &request->buffers[i]);
    for (size_t i = 1; i < self->count && request->buffer_count && !letter->broadcast; i++)
        px_msg_append_frames(self->parcels[i].msg, first, px_msg_first_buffer(first),
                             request->buffer_count);
    return self;
}

static void discard(struct submission *self)
{
    for (size_t i = 0; i < self->count; i++) {
        px_msg_destroy(self->parcels[i].msg);
        free(self->parcels[i].task);
    }
    free(self);
}

static enum phalanx_code post(struct submission *self, struct phalanx_result *result,
                              struct phalanx_error *err)
{
    struct phalanx_client *client = result->client;
    pthread_mutex_lock(&client->lock);
    const bool open = !client->closed;
    if (open) {
        self->result = result;
        atomic_fetch_add(&result->refs, 1);
        for (size_t i = 0; i < self->count; i++)
            px_result_append(result, self->parcels[i].task);
        const enum px_channel channel = self->parcels[0].task->channel;
        px_client_submit(client, &self->command,
                         channel == PX_CHANNEL_CONTROL || channel == PX_CHANNEL_QUERY);
    }
    pthread_mutex_unlock(&client->lock);
    if (open)
        return PHALANX_OK;
    discard(self);
    return px_refuse(err, PHALANX_ECLOSED,
                     "The client is closed, or its controller was shut down; connect another one");
}

/* The controller would drop what is too large, without a word to who waits. */
static enum phalanx_code deliver(struct phalanx_result *result, const struct letter *letter,
                                 const struct targets *targets,
                                 const struct phalanx_request *request, struct phalanx_error *err)
{
    const size_t size = letter->content.size + letter->metadata.size;
    if (size <= PX_MAX_JSON)
        return post(build(result, letter, targets, request), result, err);
    release_buffers(request);
    return px_refuse(err, PHALANX_EINVAL,
                     "The request has %zu bytes of JSON; at most %u can be sent", size,
                     PX_MAX_JSON);
}

/* ---- the public side ---------------------------------------------------------------------- */

static enum phalanx_code check(const struct phalanx_client *client,
                               const struct phalanx_request *request, struct phalanx_error *err)
{
    const bool named = is_named(request);
    if (px_client_inherited(client))
        return px_refuse(err, PHALANX_ECLOSED,
                         "This client belongs to the process that forked; connect another one");
    if ((unsigned)request->type > PHALANX_QUERY || (unsigned)request->route > PHALANX_BROADCAST)
        return px_refuse(err, PHALANX_EINVAL, "The request's type or route is unknown");
    if (request->type == PHALANX_EXECUTE && !request->code)
        return px_refuse(err, PHALANX_EINVAL, "A request to execute needs code");
    if (request->type == PHALANX_APPLY && request->buffer_count < 1)
        return px_refuse(err, PHALANX_EINVAL, "A request to apply needs buffers");
    if (named && (!request->message || !*request->message))
        return px_refuse(err, PHALANX_EINVAL, "The request needs a message type");
    if (named && request->route != PHALANX_DIRECT)
        return px_refuse(err, PHALANX_EINVAL,
                         "Only execute and apply can be load-balanced or broadcast");
    for (size_t i = 0; i < request->buffer_count; i++)
        if (request->buffers[i].size > (size_t)PX_MAX_FRAME)
            return px_refuse(
                err, PHALANX_EINVAL,
                "The request has a buffer of %zu bytes; at most %lld can be sent at once",
                request->buffers[i].size, (long long)PX_MAX_FRAME);
    if (request->buffer_count > PX_MAX_FRAMES / 2)
        return px_refuse(err, PHALANX_EINVAL, "The request has %zu buffers; at most %d can be sent",
                         request->buffer_count, PX_MAX_FRAMES / 2);
    return PHALANX_OK;
}

static bool is_json(const char *text, bool (*right)(const json_t *))
{
    json_t *value = text ? json_loads(text, 0, NULL) : NULL;
    const bool good = !text || (value && right(value));
    json_decref(value);
    return good;
}

static bool is_list(const json_t *value)
{
    return json_is_array(value);
}

static bool is_object(const json_t *value)
{
    return json_is_object(value);
}

static enum phalanx_code add_call(phalanx_result *result, const struct phalanx_request *request,
                                  struct phalanx_error *err)
{
    if (!request->function || !*request->function)
        return px_refuse(err, PHALANX_EINVAL, "A call needs a function's name");
    if (!is_json(request->args, is_list))
        return px_refuse(err, PHALANX_EINVAL, "The arguments of a call are no JSON array");
    if (!is_json(request->kwargs, is_object))
        return px_refuse(err, PHALANX_EINVAL, "The keyword arguments of a call are no JSON object");
    if (request->buffer_count)
        return px_refuse(err, PHALANX_EINVAL, "A call takes no buffers");
    struct px_call call;
    px_call_pack(&call, request->function, request->args, request->kwargs);
    struct phalanx_request apply = *request;
    apply.type = PHALANX_APPLY;
    apply.buffers = call.buffers;
    apply.buffer_count = PX_COUNT(call.buffers);
    const enum phalanx_code code = phalanx_add(result, &apply, err);
    px_call_fini(&call);
    return code;
}

enum phalanx_code phalanx_add(phalanx_result *result, const struct phalanx_request *request,
                              struct phalanx_error *err)
{
    if (request->type == PHALANX_CALL) {
        const enum phalanx_code called = add_call(result, request, err);
        if (called != PHALANX_OK)
            release_buffers(request);
        return called;
    }
    struct target whoever = {.id = -1};
    struct targets targets = {.items = &whoever};
    struct letter letter = {0};
    enum phalanx_code code = check(result->client, request, err);
    const bool anywhere =
        request->type == PHALANX_QUERY || (request->route == PHALANX_BALANCED && !request->targets);
    if (code == PHALANX_OK && !anywhere)
        code = resolve_targets(result->client, request, &targets, err);
    if (anywhere)
        targets.count = request->type == PHALANX_QUERY;
    if (code == PHALANX_OK) {
        compose(request, &targets, &letter);
        code = deliver(result, &letter, &targets, request, err);
    } else {
        release_buffers(request);
    }
    px_buf_fini(&letter.code);
    px_buf_fini(&letter.metadata);
    if (targets.items != &whoever)
        free(targets.items);
    return code;
}

phalanx_result *phalanx_submit(phalanx_client *client, const struct phalanx_request *request,
                               struct phalanx_error *err)
{
    struct phalanx_result *result = px_result_create(client);
    if (phalanx_add(result, request, err) == PHALANX_OK)
        return result;
    px_result_unref(result);
    return NULL;
}

/* ---- the hub -------------------------------------------------------------------------------- */

char *phalanx_query(phalanx_client *client, const char *type, const char *content,
                    int64_t timeout_ms, struct phalanx_error *err)
{
    static const struct phalanx_request nothing = {0};
    if (px_client_inherited(client)) {
        px_refuse(err, PHALANX_ECLOSED, "This client belongs to the process that forked");
        return NULL;
    }
    struct target hub = {.id = -1};
    const struct targets targets = {.items = &hub, .count = 1};
    struct letter letter = {.channel = PX_CHANNEL_QUERY,
                            .type = type,
                            .content = px_span_of(content ? content : "{}")};
    px_buf_text(&letter.metadata, "{}");
    char *answer = NULL;
    struct phalanx_result *result = px_result_create(client);
    enum phalanx_code code = deliver(result, &letter, &targets, &nothing, err);
    if (code == PHALANX_OK) {
        struct phalanx_event event = {0};
        code = phalanx_next(result, timeout_ms, &event);
        if (code == PHALANX_OK && !event.lost)
            answer = px_strdup(event.content);
        else if (code == PHALANX_ETIME || code == PHALANX_OK)
            px_refuse(err, PHALANX_ETIME, "The hub has not answered a %s", type);
        else
            px_refuse(err, code, code == PHALANX_EINTR ? "Interrupted" : "The client was closed");
    }
    px_buf_fini(&letter.metadata);
    phalanx_result_free(result);
    return answer;
}
