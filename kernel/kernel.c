/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * kernel: from a message to its handler, and from an item to a message.
 *
 * Requests have a fixed frame here, whatever their handler does: status busy, the handler,
 * status idle, each with the request as parent. A type that nobody knows gets the two
 * statuses and no reply; a message that has no readable header is dropped and counted.
 */
#include "core.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

/* ---- requests ---- */

/* Takes *msg in any case. NULL when the header is not one. */
static struct px_request *create_request(struct px_msg **msg, enum px_channel channel,
                                         struct px_error *err)
{
    struct px_msg *taken = *msg;
    *msg = NULL;
    struct px_request *request = px_alloc(sizeof *request);
    request->msg = taken;
    request->channel = channel;
    const struct px_span header = px_msg_header(taken);
    int good = px_header_scan(header, &request->header, err);
    if (good == 0 && !px_is_utf8(header)) /* all who listen are to read it, as a parent */
        good = px_fail(err, PX_EINVAL, "the header is not UTF-8");
    if (good < 0) {
        px_request_destroy(request);
        return NULL;
    }
    request->parent = px_alloc(sizeof *request->parent + header.size);
    atomic_init(&request->parent->references, 1);
    request->parent->size = header.size;
    memcpy(request->parent->header, header.data, header.size);
    return request;
}

void px_request_destroy(struct px_request *request)
{
    if (!request)
        return;
    px_msg_destroy(request->msg);
    px_parent_unref(request->parent);
    free(request);
}

struct px_span px_request_content(const struct px_request *request)
{
    return px_msg_content(request->msg);
}

struct px_span px_request_metadata(const struct px_request *request)
{
    return px_msg_metadata(request->msg);
}

struct px_span px_request_id(const struct px_request *request)
{
    return request->header.msg_id;
}

struct px_span px_request_type(const struct px_request *request)
{
    return request->header.msg_type;
}

int px_request_arg(const struct px_request *request)
{
    return request->handler->arg;
}

struct px_parent *px_parent_ref(struct px_parent *parent)
{
    if (parent)
        atomic_fetch_add(&parent->references, 1);
    return parent;
}

void px_parent_unref(struct px_parent *parent)
{
    if (!parent || atomic_fetch_sub(&parent->references, 1) != 1)
        return;
    for (size_t i = 0; i < PX_COUNT(parent->flows); i++)
        px_flood_destroy(parent->flows[i].flood);
    free(parent);
}

/* ---- sending ---- */

/*
 * The end of a request wakes the service thread. While others wait to run at once, and that thread
 * looks within a moment anyhow, it does not: their replies then go out together. A busy of the main
 * shell is looked for without a ring, and so is execute_input behind it, but for one that comes
 * late: next_look(). Idle follows a reply at once.
 */
static enum px_post ringing(struct px_kernel *kernel, const struct px_request *request,
                            const struct px_item *item)
{
    if (request->shell != &kernel->main)
        return PX_POST_RING;
    if (item->mark != PX_IDLE)
        return item->channel == PX_IOPUB && item->mark != PX_BUSY ? PX_POST_LAZY : PX_POST_QUIET;
    return px_queue_waits(&kernel->main.queue) ? PX_POST_LAZY : PX_POST_RING;
}

void px_kernel_emit(struct px_kernel *kernel, const struct px_request *request,
                    struct px_item *item)
{
    if (!request->handler || request->handler->place == PX_ON_SERVICE)
        px_kernel_send(kernel, item);
    else
        px_outbox_post(&kernel->outbox, item, ringing(kernel, request, item));
}

void px_kernel_publish(struct px_kernel *kernel, const struct px_request *request, const char *type,
                       enum px_topic topic, struct px_span content)
{
    struct px_item *item = px_item_create(PX_IOPUB, type, request->parent);
    item->topic = kernel->topics[topic];
    px_buf_append(&item->content, content.data, content.size);
    px_kernel_emit(kernel, request, item);
}

static void publish_state(struct px_kernel *kernel, const struct px_request *request,
                          enum px_mark mark)
{
    struct px_item *item =
        px_state_item(kernel, request->parent, mark == PX_BUSY ? "busy" : "idle");
    item->quiet = mark == PX_BUSY && px_hush_asked(request);
    if (request->shell == &kernel->main)
        item->mark = mark;
    else if (mark == PX_IDLE)
        item->mark = PX_IDLE_ASIDE;
    px_kernel_emit(kernel, request, item);
}

void px_request_give_msg(struct px_kernel *kernel, struct px_request *request,
                         struct px_item *reply)
{
    pthread_mutex_lock(&kernel->lock); /* threads of the request may be asking */
    reply->request = request->msg;
    request->msg = NULL;
    pthread_mutex_unlock(&kernel->lock);
}

void px_request_reply(struct px_kernel *kernel, struct px_request *request, struct px_span content)
{
    if (request->handler->place == PX_ON_INTERPRETER)
        px_kernel_settle(kernel, request);
    struct px_item *item =
        px_item_create(request->channel, request->handler->reply, request->parent);
    px_buf_append(&item->content, content.data, content.size);
    px_request_give_msg(kernel, request, item);
    px_kernel_emit(kernel, request, item);
}

void px_request_refuse(struct px_kernel *kernel, struct px_request *request, const char *ename,
                       const char *fmt, ...)
{
    char why[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(why, sizeof why, fmt, args);
    va_end(args);
    struct px_buf content = {0};
    px_buf_printf(&content, "{\"status\": \"error\", \"ename\": \"%s\", \"evalue\": ", ename);
    px_buf_json_string(&content, why, strlen(why));
    px_buf_text(&content, ", \"traceback\": []}");
    px_request_reply(kernel, request, px_buf_span(&content));
    px_buf_fini(&content);
}

/* ---- receiving ---- */

void px_kernel_serve(struct px_kernel *kernel, struct px_request *request)
{
    publish_state(kernel, request, PX_BUSY);
    if (request->aborted)
        px_reply_aborted(kernel, request);
    else if (request->handler)
        request->handler->fn(kernel, request);
    if (!request->held)
        px_request_finish(kernel, request);
}

void px_request_hold(struct px_request *request)
{
    request->held = true;
}

void px_request_finish(struct px_kernel *kernel, struct px_request *request)
{
    if (request->shell) {
        if (request->msg) /* else there was a reply, and output before it */
            px_kernel_settle(kernel, request);
        px_shell_rest(request->shell);
    }
    publish_state(kernel, request, PX_IDLE);
    px_request_destroy(request);
}

static void on_unknown_subshell(struct px_kernel *kernel, struct px_request *request)
{
    const struct px_span id = request->header.subshell_id;
    if (!id.size)
        px_request_refuse(kernel, request, "RuntimeError", "no thread for the debugger");
    else if (request->handler->reply)
        px_request_refuse(kernel, request, "KeyError", "no subshell %.*s", (int)id.size, id.data);
}

static void refuse_subshell(struct px_kernel *kernel, struct px_request *request)
{
    const struct px_handler here = {request->handler->type, request->handler->reply, PX_ON_SERVICE,
                                    on_unknown_subshell, 0};
    request->handler = &here;
    px_kernel_serve(kernel, request);
}

static const struct px_handler debug_handler = {"debug_request", "debug_reply", PX_ON_INTERPRETER,
                                                px_on_query, PX_DEBUG_REQUEST};

/* Service thread: on to the shell that it names; what a debugger is asked has its own. */
static void pass_on(struct px_kernel *kernel, struct px_request *request)
{
    struct px_shell *shell = request->handler == &debug_handler ? px_shell_of_debugger(kernel)
                                                                : px_shell_of(kernel, request);
    if (kernel->aborts && px_abort_awaits(kernel, request)) {
        px_kernel_serve_aborted(kernel, request);
    } else if (!shell) {
        refuse_subshell(kernel, request);
    } else {
        request->shell = shell;
        if (shell == &kernel->main)
            kernel->unfinished++;
        px_queue_push(&shell->queue, request);
    }
}

static const struct px_handler *find_row(const struct px_handler *rows, struct px_span type)
{
    for (; rows && rows->type; rows++)
        if (px_span_equal(type, rows->type))
            return rows;
    return NULL;
}

static const struct px_handler *find_handler(const struct px_kernel *kernel, struct px_span type)
{
    if (kernel->config.debugger && px_span_equal(type, debug_handler.type))
        return &debug_handler;
    const struct px_handler *row = find_row(kernel->config.handlers, type);
    return row ? row : find_row(px_core_handlers, type);
}

void px_kernel_receive(struct px_kernel *kernel, enum px_channel channel, struct px_msg **msg)
{
    struct px_error err;
    struct px_request *request = create_request(msg, channel, &err);
    if (!request) {
        px_log_limited(&kernel->refused, PX_WARN, "message.refused", "why=\"%s\"", err.text);
        return;
    }
    px_log(PX_DEBUG, "message.in", "channel=%d type=%.*s id=%.*s", (int)channel,
           (int)request->header.msg_type.size, request->header.msg_type.data,
           (int)request->header.msg_id.size, request->header.msg_id.data);
    if (channel == PX_STDIN) {
        if (px_span_equal(request->header.msg_type, "input_reply"))
            px_input_answered(kernel, request);
        px_request_destroy(request);
        return;
    }
    request->handler = find_handler(kernel, request->header.msg_type);
    if (request->handler && request->handler->place == PX_ON_INTERPRETER)
        pass_on(kernel, request);
    else
        px_kernel_serve(kernel, request);
}

void px_kernel_announce(struct px_kernel *kernel)
{
    px_kernel_send(kernel, px_state_item(kernel, NULL, "starting"));
}

int px_kernel_fd(const struct px_kernel *kernel)
{
    return kernel->outbox.fd;
}

/* A turn sends at most this many, so that requests are read meanwhile. */
#define SERVICE_BATCH 256
#define HELD_MS 2 /* between two looks whether there is room on iopub */

/*
 * busy and what follows it are posted without ringing, so that a short request costs one wake-up of
 * this thread, for its idle. A long one must be seen to be busy all the same: while a request is
 * unfinished and its busy not sent, this thread looks again after a moment, then after longer ones;
 * and once more after busy, for execute_input.
 */
#define LOOK_FIRST_MS 1
#define LOOK_LAST_MS 64

static int64_t sooner(int64_t delay_ms, int64_t look_ms)
{
    return delay_ms < 0 || look_ms < delay_ms ? look_ms : delay_ms;
}

static int64_t next_look(struct px_kernel *kernel, int64_t delay_ms, bool began)
{
    if (kernel->unfinished <= 0 || (kernel->shown && !began))
        return delay_ms;
    const int look_ms = kernel->shown ? LOOK_FIRST_MS : kernel->look_ms;
    if (!kernel->shown && kernel->look_ms < LOOK_LAST_MS)
        kernel->look_ms *= 2;
    return sooner(delay_ms, look_ms);
}

/* All was taken: the milliseconds until there is something to do without a ring. */
static int64_t rest(struct px_kernel *kernel, int64_t delay_ms, bool began)
{
    began = began || kernel->withheld;
    const int64_t hush_ms = px_hush_left(kernel);
    px_slow_reader_tell(kernel);
    if (hush_ms == 0)
        return next_look(kernel, delay_ms, began);
    /* Replies of requests that wait behind this one go together: ringing(). */
    return sooner(delay_ms, px_queue_waits(&kernel->main.queue) ? LOOK_FIRST_MS : hush_ms);
}

/* The user has asked to exit: `delay_ms`, or until that is due. */
static int64_t leave_when_due(struct px_kernel *kernel, int64_t delay_ms)
{
    const int64_t due_ms = atomic_load(&kernel->leave_ms);
    const int64_t left_ms = due_ms - px_now_ms();
    if (due_ms == 0)
        return delay_ms;
    if (left_ms > 0)
        return sooner(delay_ms, left_ms);
    px_queue_stop(&kernel->main.queue);
    return delay_ms;
}

static void follow_mark(struct px_kernel *kernel, enum px_mark mark)
{
    if (mark != PX_BUSY && mark != PX_IDLE)
        return;
    kernel->shown = mark == PX_BUSY;
    kernel->look_ms = LOOK_FIRST_MS;
    if (mark == PX_IDLE)
        kernel->unfinished--;
}

static void send_item(struct px_kernel *kernel, struct px_item *item)
{
    follow_mark(kernel, item->mark);
    if (!px_hush(kernel, item))
        px_kernel_send(kernel, item);
}

/* There is no room on iopub: what is in the outbox waits, and so its writers, before long. */
static int64_t wait_for_room(struct px_kernel *kernel)
{
    px_outbox_quiet(&kernel->outbox);
    return HELD_MS;
}

int64_t px_kernel_service(struct px_kernel *kernel)
{
    int64_t delay_ms;
    bool began = false;
    for (int i = 0; i < SERVICE_BATCH; i++) {
        if (!px_held_send(kernel))
            return wait_for_room(kernel);
        struct px_item *item = px_outbox_take(&kernel->outbox, false, &delay_ms);
        if (!item) {
            delay_ms = leave_when_due(kernel, rest(kernel, delay_ms, began));
            px_outbox_promise(&kernel->outbox, delay_ms);
            return delay_ms;
        }
        began = began || item->mark == PX_BUSY;
        send_item(kernel, item);
    }
    px_hush_end(kernel);
    return 0;
}

/* A thread that prints for ever must not keep the process from ending. */
#define FLUSH_MOST_MS 500

void px_kernel_flush(struct px_kernel *kernel)
{
    int64_t delay_ms;
    const int64_t until_ms = px_now_ms() + FLUSH_MOST_MS;
    while (px_now_ms() < until_ms) {
        if (!px_held_send(kernel)) {
            (void)poll(NULL, 0, HELD_MS);
            continue;
        }
        struct px_item *item = px_outbox_take(&kernel->outbox, true, &delay_ms);
        if (!item)
            break;
        send_item(kernel, item);
    }
    px_hush_end(kernel);
}

/* ---- any thread ---- */

void px_kernel_interrupt(struct px_kernel *kernel)
{
    pthread_mutex_lock(&kernel->lock);
    if (kernel->self) {
        px_shell_interrupt(&kernel->main);
        for (struct px_shell *shell = kernel->shells; shell; shell = shell->next)
            if (!shell->hidden)
                px_shell_interrupt(shell);
    }
    pthread_mutex_unlock(&kernel->lock);
}

void px_kernel_stop(struct px_kernel *kernel)
{
    px_outbox_close(&kernel->outbox);
    px_queue_stop(&kernel->main.queue);
}

bool px_kernel_unfinished(const struct px_kernel *kernel)
{
    return kernel->unfinished > 0;
}

bool px_kernel_busy(struct px_kernel *kernel)
{
    pthread_mutex_lock(&kernel->lock);
    const bool running = kernel->main.running;
    pthread_mutex_unlock(&kernel->lock);
    return running;
}

/* ---- interpreter thread ---- */

const struct px_interp_host *px_kernel_host(struct px_kernel *kernel)
{
    return &kernel->host;
}

static void set_self(struct px_kernel *kernel, void *self, bool running)
{
    pthread_mutex_lock(&kernel->lock);
    kernel->self = self;
    kernel->main.running = running;
    pthread_cond_broadcast(&kernel->changed);
    pthread_mutex_unlock(&kernel->lock);
}

void px_kernel_run(struct px_kernel *kernel, void *self)
{
    kernel->main.thread = pthread_self();
    set_self(kernel, self, false);
    px_shell_serve(&kernel->main);
    px_subshells_end(kernel);
    set_self(kernel, NULL, false);
}

bool px_kernel_execute(struct px_kernel *kernel, void *self, struct px_span code)
{
    struct px_outcome outcome = {0};
    const struct px_execute run = {
        .code = code, .user_expressions = PX_SPAN("{}"), .metadata = PX_SPAN("{}"), .silent = true};
    set_self(kernel, self, true); /* so that it can be interrupted */
    kernel->config.ops->execute(self, &run, &outcome);
    set_self(kernel, NULL, false);
    const bool good = !outcome.failed;
    if (!good)
        px_log(PX_ERROR, "startup.failed", "%.*s", (int)outcome.error.size,
               outcome.error.size ? outcome.error.data : "");
    px_outcome_fini(&outcome);
    return good;
}

/* ---- create and destroy ---- */

const struct px_handler px_core_handlers[] = {
    {"execute_request", "execute_reply", PX_ON_INTERPRETER, px_on_execute_request, 0},
    {"complete_request", "complete_reply", PX_ON_INTERPRETER, px_on_query, PX_COMPLETE},
    {"inspect_request", "inspect_reply", PX_ON_INTERPRETER, px_on_query, PX_INSPECT},
    {"is_complete_request", "is_complete_reply", PX_ON_INTERPRETER, px_on_query, PX_IS_COMPLETE},
    {"history_request", "history_reply", PX_ON_INTERPRETER, px_on_query, PX_HISTORY},
    {"comm_open", NULL, PX_ON_INTERPRETER, px_on_comm, PX_COMM_OPEN},
    {"comm_msg", NULL, PX_ON_INTERPRETER, px_on_comm, PX_COMM_MSG},
    {"comm_close", NULL, PX_ON_INTERPRETER, px_on_comm, PX_COMM_CLOSE},
    {"kernel_info_request", "kernel_info_reply", PX_ON_SERVICE, px_on_kernel_info_request, 0},
    {"connect_request", "connect_reply", PX_ON_SERVICE, px_on_connect_request, 0},
    {"comm_info_request", "comm_info_reply", PX_ON_SERVICE, px_on_comm_info_request, 0},
    {"interrupt_request", "interrupt_reply", PX_ON_SERVICE, px_on_interrupt_request, 0},
    {"shutdown_request", "shutdown_reply", PX_ON_SERVICE, px_on_shutdown_request, 0},
    {"usage_request", "usage_reply", PX_ON_SERVICE, px_on_usage_request, 0},
    {"debug_request", "debug_reply", PX_ON_SERVICE, px_on_debug_request, 0},
    {0},
};

static void name_topics(struct px_kernel *kernel)
{
    const struct px_kernel_config *config = &kernel->config;
    for (int i = 0; i < PX_TOPIC_COUNT; i++) {
        const bool prefixed = config->topics[i][0] == '.';
        kernel->topics[i] =
            px_format("%s%s", prefixed ? config->topic_prefix : "", config->topics[i]);
    }
}

/* kernel_info_reply. What is not in the tables is not promised. */
static char *describe(const struct px_kernel_config *config)
{
    const bool subshells =
        config->ops->thread_begin && find_row(config->handlers, PX_SPAN("create_subshell_request"));
    return px_format("{\"status\": \"ok\", \"protocol_version\": \"%s\", "
                     "\"supported_features\": [%s%s%s], %s%s}",
                     PX_PROTOCOL_VERSION, subshells ? "\"kernel subshells\"" : "",
                     subshells && config->debugger ? ", " : "",
                     config->debugger ? "\"debugger\"" : "",
                     config->debugger ? "\"debugger\": true, " : "", config->ops->info_json);
}

static void init_lock(struct px_kernel *kernel)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&kernel->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&kernel->lock, NULL);
}

struct px_kernel *px_kernel_create(const struct px_kernel_config *config, struct px_error *err)
{
    struct px_kernel *kernel = px_alloc(sizeof *kernel);
    kernel->config = *config;
    atomic_init(&kernel->next_count, 1);
    atomic_init(&kernel->engine_id, config->engine_id);
    kernel->look_ms = LOOK_FIRST_MS;
    init_lock(kernel);
    kernel->comms = px_comms_create();
    name_topics(kernel);
    kernel->info = describe(config);
    kernel->connect =
        px_format("{\"status\": \"ok\"%s}", config->connect_info ? config->connect_info : "");
    kernel->metadata = config->stamp_engine
                           ? px_format("{\"engine\": \"%s\"}", px_session_id(config->session))
                           : px_strdup("{}");
    px_host_init(kernel);
    /* Both, so that destroying finds each initialised whichever failed. */
    const int shell = px_shell_init(&kernel->main, kernel, err);
    const int outbox = px_outbox_init(&kernel->outbox, &config->output, err);
    if (config->output.capture)
        kernel->capture = px_capture_create(err);
    if ((config->output.capture && !kernel->capture) || shell < 0 || outbox < 0) {
        px_kernel_destroy(kernel);
        return NULL;
    }
    kernel->config.topic_prefix = kernel->config.connect_info = NULL; /* were borrowed */
    return kernel;
}

void px_kernel_destroy(struct px_kernel *kernel)
{
    if (!kernel || px_subshells_left(kernel))
        return;
    px_capture_destroy(kernel->capture);
    px_shell_fini(&kernel->main);
    px_hush_fini(kernel);
    px_held_fini(kernel);
    px_parent_unref(kernel->showing);
    px_outbox_fini(&kernel->outbox);
    px_comms_destroy(kernel->comms);
    px_aborts_fini(kernel);
    for (int i = 0; i < PX_TOPIC_COUNT; i++)
        free(kernel->topics[i]);
    free(kernel->info);
    free(kernel->connect);
    free(kernel->metadata);
    free(kernel->usage);
    pthread_cond_destroy(&kernel->changed);
    pthread_mutex_destroy(&kernel->lock);
    free(kernel);
}

void *px_kernel_ctx(const struct px_kernel *kernel)
{
    return kernel->config.ctx;
}

const char *px_kernel_session(const struct px_kernel *kernel)
{
    return px_session_id(kernel->config.session);
}
