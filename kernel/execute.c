/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * execute: the requests that run on the interpreter thread: execute, apply, clear, the queries,
 * comms.
 *
 * Counting: the language says in its outcome which cell it was; the next cell's number, which
 * execute_input shows, is one more. A silent request repeats the number before.
 *
 * Replies to execute and apply carry metadata that schedulers and clients decide on:
 * started, dependencies_met, engine, status, and on errors engine_info; an engine
 * adds its own members.
 */
#include "core.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* From `exit` to the end: a front end reads the reply, which tells it to end as well, only while it
 * sees the kernel alive; then it sends a shutdown_request, which ends it at once. */
#define LEAVE_MS 1000

/* ---- replies ---- */

void px_kernel_renumber(struct px_kernel *kernel, int engine_id)
{
    atomic_store(&kernel->engine_id, engine_id);
}

int px_kernel_number(const struct px_kernel *kernel)
{
    return atomic_load(&kernel->engine_id);
}

static void put_engine_info(struct px_kernel *kernel, struct px_buf *out, const char *method)
{
    px_buf_printf(out, ", \"engine_info\": {\"engine_uuid\": \"%s\", \"engine_id\": %d",
                  px_session_id(kernel->config.session), px_kernel_number(kernel));
    if (method)
        px_buf_printf(out, ", \"method\": \"%s\"", method);
    px_buf_text(out, "}");
}

static void put_metadata(struct px_kernel *kernel, const struct px_request *request,
                         const char *status, bool unmet, struct px_buf *out)
{
    px_buf_texts(out, PX_TEXTS("{\"started\": \"", request->started,
                               "\", \"dependencies_met\": ", unmet ? "false" : "true",
                               ", \"engine\": \"", px_session_id(kernel->config.session), "\""));
    if (kernel->config.task_metadata)
        kernel->config.task_metadata(kernel->config.ctx, request, out);
    if (strcmp(status, "error") == 0)
        put_engine_info(kernel, out, NULL);
    px_buf_texts(out, PX_TEXTS(", \"status\": \"", status, "\"}"));
}

void px_reply_task(struct px_kernel *kernel, struct px_request *request, const char *status,
                   struct px_outcome *outcome, struct px_span content)
{
    if (request->handler->place == PX_ON_INTERPRETER)
        px_kernel_settle(kernel, request);
    struct px_item *item =
        px_item_create(request->channel, request->handler->reply, request->parent);
    px_buf_append(&item->content, content.data, content.size);
    if (outcome && !outcome->failed) {
        item->buffers = outcome->buffers;
        item->buffer_count = outcome->buffer_count;
        outcome->buffers = NULL;
        outcome->buffer_count = 0;
    }
    if (px_item_bound(item))
        status = "error";
    put_metadata(kernel, request, status, outcome && outcome->unmet, &item->metadata);
    px_request_give_msg(kernel, request, item);
    px_kernel_emit(kernel, request, item);
}

void px_reply_aborted(struct px_kernel *kernel, struct px_request *request)
{
    if (!request->handler->reply)
        return;
    if (!request->started[0])
        px_date_now(request->started);
    px_reply_task(kernel, request, "aborted", NULL, PX_SPAN("{\"status\": \"aborted\"}"));
}

static struct px_span error_members(const struct px_outcome *outcome)
{
    return outcome->error.size
               ? px_buf_span(&outcome->error)
               : PX_SPAN("\"ename\": \"Error\", \"evalue\": \"\", \"traceback\": []");
}

/* With the members that the reply names, too: a client reads there which engine it was. */
static void publish_error(struct px_kernel *kernel, const struct px_request *request,
                          const struct px_outcome *outcome, const char *method)
{
    const struct px_span members = error_members(outcome);
    struct px_buf content = {0};
    px_buf_text(&content, "{");
    px_buf_append(&content, members.data, members.size);
    put_engine_info(kernel, &content, method);
    px_buf_text(&content, "}");
    px_kernel_publish(kernel, request, "error", PX_TOPIC_ERROR, px_buf_span(&content));
    px_buf_fini(&content);
}

static void put_error(struct px_kernel *kernel, const struct px_outcome *outcome,
                      const char *method, struct px_buf *content)
{
    const struct px_span members = error_members(outcome);
    px_buf_text(content, "{\"status\": \"error\", ");
    px_buf_append(content, members.data, members.size);
    put_engine_info(kernel, content, method);
}

/* ---- execute ---- */

struct execute_args {
    json_t *json; /* owns what `run` points to */
    char *expressions;
    struct px_execute run;
    bool stop_on_error;
};

static bool flag(const json_t *json, const char *key, bool otherwise)
{
    const json_t *value = json_object_get(json, key);
    return json_is_boolean(value) ? json_is_true(value) : otherwise;
}

static void execute_args_fini(struct execute_args *args)
{
    free(args->expressions);
    json_decref(args->json);
}

static int parse_execute(const struct px_request *request, struct execute_args *args,
                         struct px_error *err)
{
    args->json = px_json_parse(px_request_content(request), err);
    if (!args->json)
        return -1;
    const json_t *code = json_object_get(args->json, "code");
    if (!json_is_string(code))
        return px_fail(err, PX_EINVAL, "execute_request without 'code', or it is not a string");
    const json_t *expressions = json_object_get(args->json, "user_expressions");
    if (json_is_object(expressions) && json_object_size(expressions))
        args->expressions = json_dumps(expressions, 0);
    const bool silent = flag(args->json, "silent", false);
    args->run = (struct px_execute){
        .code = {json_string_value(code), json_string_length(code)},
        .user_expressions = args->expressions ? px_span_of(args->expressions) : PX_SPAN("{}"),
        .metadata = px_request_metadata(request),
        .silent = silent,
        .store_history = !silent && flag(args->json, "store_history", true),
        .allow_stdin = flag(args->json, "allow_stdin", false),
    };
    args->stop_on_error = flag(args->json, "stop_on_error", true);
    return 0;
}

static void publish_input(struct px_kernel *kernel, const struct px_request *request,
                          struct px_span code)
{
    struct px_buf content = {0};
    px_buf_text(&content, "{\"code\": ");
    px_buf_json_string(&content, code.data, code.size);
    px_buf_printf(&content, ", \"execution_count\": %d}", atomic_load(&kernel->next_count));
    px_kernel_publish(kernel, request, "execute_input", PX_TOPIC_EXECUTE_INPUT,
                      px_buf_span(&content));
    px_buf_fini(&content);
}

static void reply_execute(struct px_kernel *kernel, struct px_request *request,
                          struct px_outcome *outcome)
{
    struct px_buf content = {0};
    if (outcome->failed)
        put_error(kernel, outcome, "execute", &content);
    else
        px_buf_text(&content, "{\"status\": \"ok\"");
    const struct px_span expressions = px_buf_span(&outcome->user_expressions);
    const struct px_span payload = px_buf_span(&outcome->payload);
    px_buf_printf(&content,
                  ", \"execution_count\": %d, \"user_expressions\": ", outcome->execution_count);
    px_buf_text(&content, expressions.size ? expressions.data : "{}");
    px_buf_text(&content, ", \"payload\": ");
    px_buf_text(&content, payload.size ? payload.data : "[]");
    px_buf_text(&content, "}");
    px_reply_task(kernel, request, outcome->failed ? "error" : "ok", outcome,
                  px_buf_span(&content));
    px_buf_fini(&content);
}

static void leave(struct px_kernel *kernel, const struct px_request *request)
{
    if (px_has_front_end(kernel, request))
        atomic_store(&kernel->leave_ms, px_now_ms() + LEAVE_MS);
    else
        px_queue_stop(&kernel->main.queue);
}

void px_on_execute_request(struct px_kernel *kernel, struct px_request *request)
{
    if (atomic_load(&kernel->leave_ms)) { /* "run all" sends what comes behind exit, too */
        px_reply_aborted(kernel, request);
        return;
    }
    struct execute_args args = {0};
    struct px_error err;
    if (parse_execute(request, &args, &err) < 0) {
        execute_args_fini(&args);
        px_request_refuse(kernel, request, "ValueError", "%s", err.text);
        return;
    }
    request->allow_stdin = args.run.allow_stdin;
    if (!args.run.silent)
        publish_input(kernel, request, args.run.code);
    struct px_outcome outcome = {0};
    kernel->config.ops->execute(kernel->self, &args.run, &outcome);
    if (outcome.execution_count > 0)
        atomic_store(&kernel->next_count, outcome.execution_count + 1);
    else if (outcome.failed && !args.run.silent) /* before the language counted it */
        outcome.execution_count = atomic_load(&kernel->next_count);
    if (outcome.exit_requested)
        leave(kernel, request);
    /* Before the reply: what a client sends after reading it is not to be aborted. */
    if (outcome.failed && !args.run.silent && args.stop_on_error)
        px_queue_abort_executes(&request->shell->queue);
    reply_execute(kernel, request, &outcome);
    px_outcome_fini(&outcome);
    execute_args_fini(&args);
}

/* ---- apply, clear ---- */

/* The caller frees the array. */
static struct px_span *buffers_of(const struct px_request *request, size_t *count)
{
    *count = px_msg_buffer_count(request->msg);
    struct px_span *buffers = px_alloc((*count + 1) * sizeof *buffers);
    for (size_t i = 0; i < *count; i++)
        buffers[i] = px_msg_buffer(request->msg, i);
    return buffers;
}

static void reply_apply(struct px_kernel *kernel, struct px_request *request,
                        struct px_outcome *outcome)
{
    struct px_buf content = {0};
    if (outcome->failed) {
        publish_error(kernel, request, outcome, "apply");
        put_error(kernel, outcome, "apply", &content);
        px_buf_text(&content, "}");
    } else {
        px_buf_text(&content, "{\"status\": \"ok\"}");
    }
    px_reply_task(kernel, request, outcome->failed ? "error" : "ok", outcome,
                  px_buf_span(&content));
    px_buf_fini(&content);
}

void px_on_apply_request(struct px_kernel *kernel, struct px_request *request)
{
    const struct px_interp_ops *ops = kernel->config.ops;
    if (!ops->apply) {
        px_request_refuse(kernel, request, "NotImplementedError", "%s has no apply", ops->name);
        return;
    }
    size_t count;
    struct px_span *buffers = buffers_of(request, &count);
    struct px_outcome outcome = {0};
    ops->apply(kernel->self, px_request_metadata(request), buffers, count, &outcome);
    free(buffers);
    reply_apply(kernel, request, &outcome);
    px_outcome_fini(&outcome);
}

void px_on_clear_request(struct px_kernel *kernel, struct px_request *request)
{
    if (kernel->config.ops->clear)
        kernel->config.ops->clear(kernel->self);
    px_request_reply(kernel, request, PX_SPAN("{\"status\": \"ok\"}"));
}

/* ---- queries, comms ---- */

void px_on_query(struct px_kernel *kernel, struct px_request *request)
{
    struct px_buf reply = {0};
    kernel->config.ops->query(kernel->self, (enum px_query)px_request_arg(request),
                              px_request_content(request), &reply);
    px_request_reply(kernel, request, px_buf_span(&reply));
    px_buf_fini(&reply);
}

void px_on_comm(struct px_kernel *kernel, struct px_request *request)
{
    const enum px_publication what = (enum px_publication)px_request_arg(request);
    px_comms_follow(kernel->comms, what, px_request_content(request));
    if (!kernel->config.ops->comm)
        return;
    size_t count;
    struct px_span *buffers = buffers_of(request, &count);
    kernel->config.ops->comm(kernel->self, what, px_request_content(request),
                             px_request_metadata(request), buffers, count);
    free(buffers);
}
