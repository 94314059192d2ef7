/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * control: the requests that the service thread answers, whatever the interpreter does.
 */
#include "core.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

void px_on_kernel_info_request(struct px_kernel *kernel, struct px_request *request)
{
    px_request_reply(kernel, request, px_span_of(kernel->info));
}

void px_on_connect_request(struct px_kernel *kernel, struct px_request *request)
{
    px_request_reply(kernel, request, px_span_of(kernel->connect));
}

void px_on_comm_info_request(struct px_kernel *kernel, struct px_request *request)
{
    json_t *json = px_json_parse(px_request_content(request), NULL);
    struct px_buf content = {0};
    px_buf_text(&content, "{\"status\": \"ok\", \"comms\": ");
    px_comms_list(kernel->comms, json_string_value(json_object_get(json, "target_name")), &content);
    px_buf_text(&content, "}");
    json_decref(json);
    px_request_reply(kernel, request, px_buf_span(&content));
    px_buf_fini(&content);
}

void px_on_interrupt_request(struct px_kernel *kernel, struct px_request *request)
{
    px_kernel_interrupt(kernel);
    px_request_reply(kernel, request, PX_SPAN("{\"status\": \"ok\"}"));
}

void px_on_shutdown_request(struct px_kernel *kernel, struct px_request *request)
{
    json_t *json = px_json_parse(px_request_content(request), NULL);
    const bool restart = json_is_true(json_object_get(json, "restart"));
    json_decref(json);
    const struct px_span content = restart ? PX_SPAN("{\"status\": \"ok\", \"restart\": true}")
                                           : PX_SPAN("{\"status\": \"ok\", \"restart\": false}");
    px_kernel_flush(kernel); /* output that came before */
    px_kernel_publish(kernel, request, "shutdown_reply", PX_TOPIC_SHUTDOWN, content);
    px_request_reply(kernel, request, content);
    kernel->config.shutdown(kernel->config.ctx, restart);
}

/* A refusal in the form of the Debug Adapter Protocol, which is what a front end that debugs reads.
 */
void px_on_debug_request(struct px_kernel *kernel, struct px_request *request)
{
    static const char why[] = "this kernel has no debugger; use %debug or breakpoint()";
    json_t *asked = px_json_parse(px_request_content(request), NULL);
    const char *command = json_string_value(json_object_get(asked, "command"));
    json_t *content =
        json_pack("{s:s, s:s, s:s, s:[], s:s, s:I, s:i, s:b, s:s, s:s}", "status", "error", "ename",
                  "NotImplementedError", "evalue", why, "traceback", "type", "response",
                  "request_seq", json_integer_value(json_object_get(asked, "seq")), "seq", 0,
                  "success", 0, "command", command ? command : "", "message", why);
    char *text = json_dumps(content, 0);
    px_request_reply(kernel, request, px_span_of(text));
    free(text);
    json_decref(content);
    json_decref(asked);
}

/* ---- abort ---- */

/* Ids that have not arrived are kept: who gives up all that waits in the scheduler tells each
 * engine every id. Most of them never come, and the oldest go first: 34 MB at worst. */
#define MOST_ABORTS 262144

struct abort_row {
    UT_hash_handle hh;
    char id[];
};

static void forget(struct px_kernel *kernel, struct abort_row *row)
{
    HASH_DEL(kernel->aborts, row);
    free(row);
}

void px_aborts_fini(struct px_kernel *kernel)
{
    while (kernel->aborts)
        forget(kernel, kernel->aborts);
}

bool px_abort_awaits(struct px_kernel *kernel, const struct px_request *request)
{
    const struct px_span id = request->header.msg_id;
    struct abort_row *row;
    HASH_FIND(hh, kernel->aborts, id.data, id.size, row);
    if (!row)
        return false;
    forget(kernel, row);
    return true;
}

static void await(struct px_kernel *kernel, const json_t *id)
{
    struct abort_row *row;
    const char *text = json_string_value(id);
    if (!text)
        return;
    HASH_FIND_STR(kernel->aborts, text, row);
    if (row)
        return;
    row = px_alloc(sizeof *row + strlen(text) + 1);
    strcpy(row->id, text);
    HASH_ADD_STR(kernel->aborts, id, row);
}

static bool is_awaited(const struct px_request *request, void *kernel)
{
    return px_abort_awaits(kernel, request);
}

static bool is_execute(const struct px_request *request, void *unused)
{
    (void)unused;
    return px_span_equal(request->header.msg_type, "execute_request");
}

void px_kernel_serve_aborted(struct px_kernel *kernel, struct px_request *request)
{
    struct px_handler here = *request->handler;
    here.place = PX_ON_SERVICE;
    request->handler = &here;
    request->shell = NULL;
    request->aborted = true;
    px_kernel_serve(kernel, request);
}

/* For requests taken out of the queue. */
static void answer_aborted(struct px_kernel *kernel, struct px_request *requests)
{
    while (requests) {
        struct px_request *request = requests;
        requests = request->next;
        kernel->unfinished--;
        px_kernel_serve_aborted(kernel, request);
    }
}

/* However many ids there are, the queue is gone through once, since heartbeats wait meanwhile. What
 * is not in it may yet arrive. */
static void abort_ids(struct px_kernel *kernel, const json_t *ids)
{
    size_t i;
    json_t *id;
    await(kernel, ids);
    json_array_foreach(ids, i, id)
        await(kernel, id);
    answer_aborted(kernel, px_queue_remove(&kernel->main.queue, is_awaited, kernel));
    while (HASH_COUNT(kernel->aborts) > MOST_ABORTS)
        forget(kernel, kernel->aborts);
}

bool px_kernel_withdraw(struct px_kernel *kernel, const json_t *id)
{
    abort_ids(kernel, id);
    pthread_mutex_lock(&kernel->lock);
    const struct px_parent *parent = kernel->main.running ? kernel->main.current : NULL;
    const struct px_span header = {parent ? parent->header : "{}", parent ? parent->size : 2};
    const bool runs = px_span_equal(px_scan_member(header, "msg_id"), json_string_value(id));
    pthread_mutex_unlock(&kernel->lock);
    return runs;
}

/* All ids are strings, or the one value is. */
static bool are_ids(const json_t *ids)
{
    size_t i;
    json_t *id;
    if (json_is_string(ids))
        return true;
    json_array_foreach(ids, i, id)
        if (!json_is_string(id))
            return false;
    return json_is_array(ids);
}

void px_on_abort_request(struct px_kernel *kernel, struct px_request *request)
{
    json_t *json = px_json_parse(px_request_content(request), NULL);
    json_t *ids = json_object_get(json, "msg_ids");
    if (!are_ids(ids)) {
        json_decref(json);
        px_request_refuse(kernel, request, "ValueError", "msg_ids is not a list of strings");
        return;
    }
    if (json_is_array(ids) && json_array_size(ids) == 0)
        answer_aborted(kernel, px_queue_remove(&kernel->main.queue, is_execute, NULL));
    else
        abort_ids(kernel, ids);
    json_decref(json);
    px_request_reply(kernel, request, PX_SPAN("{\"status\": \"ok\"}"));
}

/* ---- recall ---- */

static bool is_named(const struct px_request *request, void *ids)
{
    size_t i;
    json_t *id;
    json_array_foreach((json_t *)ids, i, id)
        if (json_is_string(id) && px_span_equal(request->header.msg_id, json_string_value(id)))
            return true;
    return false;
}

/* Its reply says so; nothing else tells that it ever was here, and it may come again. */
static void give_back(struct px_kernel *kernel, struct px_request *request)
{
    struct px_handler here = *request->handler;
    here.place = PX_ON_SERVICE;
    request->handler = &here;
    kernel->unfinished--;
    px_session_forget(kernel->config.session, request->msg);
    px_date_now(request->started);
    px_reply_task(kernel, request, "recalled", NULL, PX_SPAN("{\"status\": \"recalled\"}"));
    px_request_destroy(request);
}

void px_on_recall_request(struct px_kernel *kernel, struct px_request *request)
{
    json_t *json = px_json_parse(px_request_content(request), NULL);
    json_t *ids = json_object_get(json, "msg_ids");
    struct px_request *queued =
        json_is_array(ids) ? px_queue_remove(&kernel->main.queue, is_named, ids) : NULL;
    while (queued) {
        struct px_request *next = queued->next;
        give_back(kernel, queued);
        queued = next;
    }
    json_decref(json);
}
