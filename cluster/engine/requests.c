/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * requests: what engines answer and other kernels do not, and what they add to a task's reply.
 *
 * Reference: ipyparallel 7.1, engine/kernel.py.
 */
#include "parts.h"

#include "protocol.h"

#include <jansson.h>
#include <signal.h>
#include <unistd.h>

/* "SIGINT" or its number, 0 for none; -1: there is no such signal. */
static int signal_number(const json_t *sig)
{
    const char *text = json_string_value(sig);
    if (json_is_integer(sig)) {
        const json_int_t number = json_integer_value(sig);
        return number >= 0 && number <= SIGRTMAX ? (int)number : -1;
    }
    return text ? px_signal_number(text) : -1;
}

static void on_signal_due(struct px_loop *loop, void *ctx)
{
    (void)loop;
    kill(getpid(), (int)(intptr_t)ctx);
}

/* The signal follows the reply, by a moment, so that a deadly one is answered too.
 * LIMIT: SIGCONT cannot wake an engine that SIGSTOP has stopped, as the engine itself reads it;
 * sent to the fork server it does. */
#define SIGNAL_DELAY_MS 20
static void on_signal_request(struct px_kernel *kernel, struct px_request *request)
{
    struct engine *engine = px_kernel_ctx(kernel);
    json_t *json = px_json_parse(px_request_content(request), NULL);
    const json_t *sig = json_object_get(json, "sig");
    const int number = signal_number(sig);
    const json_t *meant = json_object_get(json, PX_OR_ABORT);
    const bool due = number > 0 && (!json_is_string(meant) || px_kernel_withdraw(kernel, meant));
    if (number < 0)
        px_request_refuse(kernel, request, sig ? "AttributeError" : "KeyError",
                          sig ? "no such signal" : "'sig'");
    else
        px_request_reply(kernel, request, PX_SPAN("{\"status\": \"ok\"}"));
    json_decref(json);
    if (due && number == SIGINT)
        px_kernel_interrupt(kernel);
    else if (due)
        px_loop_timer(px_service_loop(engine->service), SIGNAL_DELAY_MS, 0, on_signal_due,
                      (void *)(intptr_t)number);
}

#define RETIRE_AGAIN_MS 50

/* The task scheduler sends nothing any more. What was on its way here directly is done first. */
static void on_retire_due(struct px_loop *loop, void *ctx)
{
    struct engine *engine = ctx;
    if (px_kernel_unfinished(engine->kernel)) {
        px_loop_timer(loop, RETIRE_AGAIN_MS, 0, on_retire_due, engine);
        return;
    }
    px_log(PX_INFO, "retired", NULL);
    px_service_end(engine->service, 0);
}

/* Whoever has bound a kernel to it wants to keep it. */
static void on_retire_request(struct px_kernel *kernel, struct px_request *request)
{
    struct engine *engine = px_kernel_ctx(kernel);
    (void)request;
    if (engine->front)
        px_log(PX_INFO, "kept", "why=\"it is a kernel besides\"");
    else
        on_retire_due(px_service_loop(engine->service), engine);
}

static void on_stacks_request(struct px_kernel *kernel, struct px_request *request)
{
    struct engine *engine = px_kernel_ctx(kernel);
    px_trace_answer(engine->trace, request);
}

const struct px_handler px_engine_handlers[] = {
    {PX_APPLY_REQUEST, PX_APPLY_REPLY, PX_ON_INTERPRETER, px_on_apply_request, 0},
    {PX_CLEAR_REQUEST, "clear_reply", PX_ON_INTERPRETER, px_on_clear_request, 0},
    {PX_ABORT_REQUEST, "abort_reply", PX_ON_SERVICE, px_on_abort_request, 0},
    {PX_RECALL_REQUEST, NULL, PX_ON_SERVICE, px_on_recall_request, 0},
    {PX_SIGNAL_REQUEST, "signal_reply", PX_ON_SERVICE, on_signal_request, 0},
    {PX_RETIRE_REQUEST, NULL, PX_ON_SERVICE, on_retire_request, 0},
    {PX_STACKS_REQUEST, "stacks_reply", PX_ON_SERVICE, on_stacks_request, 0},
    {0},
};

/* What schedulers and clients want back of a task's own metadata. */
void px_engine_task_metadata(void *ctx, const struct px_request *request, struct px_buf *out)
{
    static const char *const keys[] = {"is_broadcast", "is_coalescing", "original_msg_id", "label"};
    static const char *const absent[] = {"false", "false", "\"\"", "null"};
    struct px_span values[PX_COUNT(keys)] = {{0}};
    (void)ctx;
    const bool found = px_scan(px_request_metadata(request), keys, values, PX_COUNT(keys)) == 0;
    for (size_t i = 0; i < PX_COUNT(keys); i++) {
        const struct px_span value = found && values[i].data ? values[i] : px_span_of(absent[i]);
        px_buf_texts(out, PX_TEXTS(", \"", keys[i], "\": "));
        px_buf_append(out, value.data, value.size);
    }
}

void px_engine_running(void *ctx, const struct px_request *request)
{
    struct engine *engine = ctx;
    if (request)
        px_obituary_begin(engine->config->obituary, px_request_id(request),
                          px_request_type(request));
    else
        px_obituary_end(engine->config->obituary);
}

void px_engine_shutdown(void *ctx, bool restart)
{
    struct engine *engine = ctx;
    px_log(PX_INFO, "shutdown", "restart=%d", restart);
    px_service_end(engine->service, 0);
}
