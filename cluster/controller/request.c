/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * request: how requests are answered, and the queries about queues and results (ipyparallel,
 * controller/hub.py; those of the task database are in request_db.c). Errors are Python exceptions
 * by name and text, because that is what clients raise: KeyError's text is the repr of its
 * argument.
 */
#include "hub.h"

#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#define MAX_REPLY_BUFFERS (PX_MAX_FRAMES - 64) /* with what is before them */

/* ---- replying -------------------------------------------------------------- */

json_t *px_error_json(const char *ename, const char *evalue)
{
    struct px_buf text = {0};
    px_error_content(&text, ename, evalue);
    json_t *content = px_json_parse(px_buf_span(&text), NULL);
    px_buf_fini(&text);
    return content;
}

/* Takes the text. */
static void send_text(struct px_hub *hub, struct px_socket *socket, struct px_draft *draft,
                      char *text, const struct px_msg *buffers)
{
    draft->content = text ? px_span_of(text) : (struct px_span){0};
    struct px_msg *msg = px_session_build(hub->session, draft);
    if (buffers != NULL)
        px_msg_append_frames(msg, buffers, 0, px_msg_count(buffers));
    const enum px_sent sent = px_socket_send(socket, &msg);
    if (sent == PX_WOULD_BLOCK)
        px_log_limited(&hub->limiter, PX_WARN, "client-slow",
                       "socket=query why=\"it does not read: a reply of %zu bytes is dropped\"",
                       px_msg_bytes(msg));
    if (sent != PX_SENT)
        px_msg_destroy(msg);
    free(text);
}

void px_hub_send(struct px_hub *hub, struct px_socket *socket, struct px_draft *draft,
                 json_t *content)
{
    send_text(hub, socket, draft, json_dumps(content, 0), NULL);
    json_decref(content);
}

void px_request_reply(const struct px_request *request, const char *type, json_t *content,
                      const struct px_msg *buffers)
{
    struct px_draft draft = {
        .idents_of = request->msg, .type = type, .parent = px_msg_header(request->msg)};
    char *text = json_dumps(content, 0);
    json_decref(content);
    if ((buffers != NULL && px_msg_count(buffers) > MAX_REPLY_BUFFERS) ||
        (text != NULL && strlen(text) > PX_MAX_JSON)) {
        free(text);
        px_request_fail(request, type, "ValueError",
                        "more than one message can have: ask for fewer tasks at a time");
        return;
    }
    send_text(request->hub, request->hub->sockets->query, &draft, text, buffers);
}

void px_request_fail(const struct px_request *request, const char *type, const char *ename,
                     const char *evalue)
{
    px_log(PX_DEBUG, "request-failed", "type=%.*s ename=%s evalue=\"%s\"", (int)request->type.size,
           request->type.data, ename, evalue);
    px_request_reply(request, type, px_error_json(ename, evalue), NULL);
}

/* A KeyError: its text is the repr of what it says. */
void px_request_fail_key(const struct px_request *request, const char *type, const char *what)
{
    struct px_buf evalue = {0};
    px_repr(&evalue, what);
    px_request_fail(request, type, "KeyError", evalue.data);
    px_buf_fini(&evalue);
}

void px_request_missing(const struct px_request *request, const char *key)
{
    px_request_fail_key(request, "hub_error", key);
}

void px_request_raise(const struct px_request *request, const char *type,
                      const struct px_exception *exception)
{
    px_request_fail(request, type, exception->ename, exception->evalue);
}

void px_request_fail_ending(const struct px_request *request, const char *type)
{
    px_request_fail(request, type, "RuntimeError", "the controller is ending");
}

bool px_request_has_books(const struct px_request *request, const char *type)
{
    const bool books = !px_scheme_is_pure(request->hub->settings->scheme);
    if (!books)
        px_request_fail(request, type, "ValueError",
                        "the scheme 'pure' does not know which tasks wait");
    return books;
}

json_t *px_request_items(const struct px_request *request, const char *key)
{
    struct px_exception exception;
    const json_t *value = json_object_get(request->content, key);
    if (value == NULL) {
        px_request_missing(request, key);
        return NULL;
    }
    json_t *items = px_iterate(value, &exception);
    if (json_array_size(items) > PX_MAX_IDS) {
        px_raise(&exception, "ValueError", "more than %u in %s", PX_MAX_IDS, key);
        json_decref(items);
        items = NULL;
    }
    if (items == NULL)
        px_request_raise(request, "hub_error", &exception);
    return items;
}

struct px_span px_id_text(const json_t *id)
{
    const char *text = json_string_value(id);
    return (struct px_span){text ? text : "", json_string_length(id)};
}

char *px_id_lines(const json_t *ids)
{
    struct px_buf lines = {0};
    px_buf_text(&lines, "");
    for (size_t i = 0; i < json_array_size(ids); i++) {
        struct px_span id = px_id_text(json_array_get(ids, i));
        if (id.size == 0 || id.size > PX_MAX_MSG_ID || memchr(id.data, '\n', id.size) != NULL)
            continue;
        px_buf_append(&lines, id.data, id.size);
        px_buf_text(&lines, "\n");
    }
    return lines.data;
}

/* ---- targets --------------------------------------------------------------- */

struct targets {
    struct px_member **members;
    size_t count;
};

struct px_member *px_hub_target(const struct px_hub *hub, const json_t *target)
{
    if (json_is_integer(target) && json_integer_value(target) >= 0 &&
        json_integer_value(target) <= INT32_MAX)
        return px_hub_member_id(hub, (int)json_integer_value(target));
    return json_is_string(target) ? px_hub_member(hub, px_span_of(json_string_value(target)))
                                  : NULL;
}

static void all_targets(const struct px_hub *hub, struct targets *out)
{
    struct px_member *member, *next;
    out->members = px_alloc((HASH_COUNT(hub->by_id) + 1) * sizeof(*out->members));
    HASH_ITER(hh, hub->by_id, member, next)
        out->members[out->count++] = member;
}

/* IndexError with the list of those that do not exist. */
static void fail_targets(const struct px_request *request, const json_t *list)
{
    struct px_buf text = {0};
    px_buf_text(&text, "No Such Engine: [");
    bool first = true;
    for (size_t i = 0; i < json_array_size(list); i++) {
        if (px_hub_target(request->hub, json_array_get(list, i)) != NULL)
            continue;
        px_buf_text(&text, first ? "" : ", ");
        px_repr_json(&text, json_array_get(list, i));
        first = false;
    }
    px_buf_text(&text, "]");
    px_request_fail(request, "hub_error", "IndexError", text.data);
    px_buf_fini(&text);
}

static int listed_targets(const struct px_request *request, const json_t *list, struct targets *out)
{
    struct px_exception exception;
    for (size_t i = 0; i < json_array_size(list); i++) {
        if (px_is_hashable(json_array_get(list, i)))
            continue;
        px_raise(&exception, "TypeError", "unhashable type: '%s'",
                 px_type_name(json_array_get(list, i)));
        px_request_raise(request, "hub_error", &exception);
        return -1;
    }
    out->members = px_alloc((json_array_size(list) + 1) * sizeof(*out->members));
    for (size_t i = 0; i < json_array_size(list); i++) {
        struct px_member *member = px_hub_target(request->hub, json_array_get(list, i));
        if (member == NULL) {
            fail_targets(request, list);
            return -1;
        }
        out->members[out->count++] = member;
    }
    if (out->count == 0)
        px_request_fail(request, "hub_error", "IndexError", "No Engines Registered");
    return out->count == 0 ? -1 : 0;
}

/* -1 after an error reply. `out->members` is freed by the caller in either case. */
static int read_targets(const struct px_request *request, struct targets *out)
{
    json_t *targets = json_object_get(request->content, "targets");
    if (json_is_null(targets)) {
        all_targets(request->hub, out);
        return 0;
    }
    bool one = json_is_integer(targets) || json_is_boolean(targets) || json_is_string(targets);
    json_t *list = one ? json_pack("[O]", targets) : px_request_items(request, "targets");
    int rc = list ? listed_targets(request, list, out) : -1;
    json_decref(list);
    return rc;
}

/* ---- queue_request, load_request ------------------------------------------- */

static json_t *job_ids(const struct px_job *jobs)
{
    json_t *ids = json_array();
    const struct px_job *job;
    DL_FOREACH(jobs, job)
        json_array_append_new(ids, json_string(job->msg_id));
    return ids;
}

/* {uuid: [ids of its finished tasks]}, as far as there are records of them: one look at all records
 * for all engines. */
static bool add_completed(struct px_record *record, void *ctx)
{
    json_t *ids = record->engine_uuid ? json_object_get(ctx, record->engine_uuid) : NULL;
    if (ids != NULL && px_record_is_complete(record))
        json_array_append_new(ids, json_string(record->msg_id));
    return true;
}

static json_t *completed_lists(const struct targets *targets)
{
    json_t *completed = json_object();
    for (size_t i = 0; i < targets->count; i++)
        json_object_set_new(completed, targets->members[i]->uuid, json_array());
    return completed;
}

/* `completed` is NULL when numbers are all that is wanted. */
static json_t *queue_of(const struct px_member *member, const json_t *completed)
{
    json_t *ids = json_object_get(completed, member->uuid);
    if (completed != NULL)
        return json_pack("{s:o, s:o, s:o}", "queue", job_ids(member->queue), "completed",
                         ids ? json_incref(ids) : json_array(), "tasks", job_ids(member->tasks));
    return json_pack("{s:I, s:I, s:I}", "queue", (json_int_t)member->queue_count, "completed",
                     (json_int_t)member->completed, "tasks", (json_int_t)member->task_count);
}

static void reply_queues(const struct px_request *request, const struct targets *targets,
                         const json_t *completed)
{
    const struct px_hub *hub = request->hub;
    json_t *content = json_pack("{s:s}", "status", "ok");
    for (size_t i = 0; i < targets->count; i++) {
        char id[16];
        snprintf(id, sizeof(id), "%d", targets->members[i]->id);
        if (json_object_get(content, id) == NULL) /* an engine may be named twice */
            json_object_set_new(content, id, queue_of(targets->members[i], completed));
    }
    json_object_set_new(content, "unassigned",
                        completed ? job_ids(hub->unassigned)
                                  : json_integer((json_int_t)hub->unassigned_count));
    px_request_reply(request, "queue_reply", content, NULL);
}

/* Engines may have come and gone since the question. */
static void on_completed(const struct px_request *request, void *completed, bool whole)
{
    struct targets targets = {0};
    if (!whole)
        px_request_fail_ending(request, "hub_error");
    else if (read_targets(request, &targets) == 0)
        reply_queues(request, &targets, completed);
    free(targets.members);
    json_decref(completed);
}

static void on_queue_request(const struct px_request *request)
{
    struct targets targets = {0};
    if (read_targets(request, &targets) == 0) {
        if (px_truth(json_object_get(request->content, "verbose")))
            px_hub_scan(request, NULL, add_completed, on_completed, completed_lists(&targets));
        else
            reply_queues(request, &targets, NULL);
    }
    free(targets.members);
}

static void on_load_request(const struct px_request *request)
{
    struct targets targets = {0};
    if (read_targets(request, &targets) == 0) {
        json_t *content = json_pack("{s:s}", "status", "ok");
        for (size_t i = 0; i < targets.count; i++) {
            char id[16];
            const struct px_member *member = targets.members[i];
            snprintf(id, sizeof(id), "%d", member->id);
            json_object_set_new(
                content, id, json_integer((json_int_t)(member->queue_count + member->task_count)));
        }
        px_request_reply(request, "load_reply", content, NULL);
    }
    free(targets.members);
}

/* ---- result_request -------------------------------------------------------- */

static json_t *result_of(const struct px_record *record)
{
    static const char *const io_keys[] = {"execute_input", "execute_result", "error", "stdout",
                                          "stderr"};
    static const char *const keys[] = {"header",        "metadata",       "result_metadata",
                                       "result_header", "result_content", "received"};
    json_t *result = json_object(), *io = json_object();
    for (size_t i = 0; i < PX_COUNT(keys); i++)
        json_object_set_new(result, keys[i], px_record_field(record, keys[i]));
    for (size_t i = 0; i < PX_COUNT(io_keys); i++)
        json_object_set_new(io, io_keys[i], px_record_field(record, io_keys[i]));
    json_object_set_new(result, "io", io);
    return result;
}

static int compare_ids(const void *a, const void *b)
{
    return strcmp(json_string_value(*(json_t *const *)a), json_string_value(*(json_t *const *)b));
}

/* Python's set and sorted() want what can be hashed and ordered. */
static int check_ids(const json_t *ids, struct px_exception *exception)
{
    const json_t *first = json_array_get(ids, 0);
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (!px_is_hashable(id))
            return px_raise(exception, "TypeError", "unhashable type: '%s'", px_type_name(id));
        if (i > 0 && json_is_string(id) != json_is_string(first))
            return px_raise(exception, "TypeError",
                            "'<' not supported between instances of '%s' and '%s'",
                            px_type_name(id), px_type_name(first));
    }
    return 0;
}

/* Those ids sorted, without duplicates; as they are where they are no strings. A new reference;
 * NULL after an error reply. */
static json_t *sorted_ids(const struct px_request *request, json_t *ids)
{
    struct px_exception exception;
    const size_t size = json_array_size(ids);
    if (check_ids(ids, &exception) != 0) {
        px_request_raise(request, "hub_error", &exception);
        return NULL;
    }
    if (!json_is_string(json_array_get(ids, 0)))
        return json_incref(ids);
    json_t **sorted = px_alloc(size * sizeof(*sorted)), *out = json_array();
    for (size_t i = 0; i < size; i++)
        sorted[i] = json_array_get(ids, i);
    qsort(sorted, size, sizeof(*sorted), compare_ids);
    for (size_t i = 0; i < size; i++) {
        if (i == 0 || compare_ids(&sorted[i - 1], &sorted[i]) != 0)
            json_array_append(out, sorted[i]);
    }
    free(sorted);
    return out;
}

struct results {
    json_t *content, *pending, *completed;
    struct px_msg *buffers;
    bool status_only;
    bool answered; /* with an error */
};

static void add_result(struct results *results, const char *msg_id, const struct px_record *record)
{
    json_array_append_new(results->completed, json_string(msg_id));
    json_object_set_new(results->content, msg_id, result_of(record));
    if (record->reply != NULL)
        px_msg_append_frames(results->buffers, record->reply, px_msg_first_buffer(record->reply),
                             px_msg_buffer_count(record->reply));
}

/* -1 after an error reply. */
static int gather_result(const struct px_request *request, struct results *results,
                         const char *msg_id)
{
    struct px_hub *hub = request->hub;
    struct px_span id = px_span_of(msg_id);
    struct px_record *record = results->status_only ? NULL : px_db_get(hub->db, id);
    bool finished = px_history_get(hub->finished, id, NULL) != PX_UNKNOWN;
    if (px_hub_job(hub, id) != NULL || (!finished && record && !px_record_is_complete(record))) {
        json_array_append_new(results->pending, json_string(msg_id));
        return 0;
    }
    if (finished && results->status_only) {
        json_array_append_new(results->completed, json_string(msg_id));
        return 0;
    }
    if (record != NULL) {
        add_result(results, msg_id, record);
        return 0;
    }
    if (finished) {
        px_request_fail_key(request, "hub_error", msg_id);
        return -1;
    }
    char *what = px_format("No such message: %s", msg_id);
    px_request_fail_key(request, "result_reply", what);
    free(what);
    return -1;
}

/* 'No such message: ' + id, of an id that is not a str. */
static int fail_concatenation(const struct px_request *request, const json_t *id)
{
    struct px_exception exception;
    px_raise(&exception, "TypeError", "can only concatenate str (not \"%s\") to str",
             px_type_name(id));
    px_request_raise(request, "result_reply", &exception);
    return -1;
}

static bool add_one(const struct px_request *request, const json_t *id, void *ctx)
{
    struct results *results = ctx;
    const char *text = json_string_value(id);
    results->answered =
        (text ? gather_result(request, results, text) : fail_concatenation(request, id)) != 0;
    return !results->answered && px_msg_count(results->buffers) <= MAX_REPLY_BUFFERS;
}

static void on_results(const struct px_request *request, void *ctx, bool whole)
{
    struct results *results = ctx;
    if (!whole)
        px_request_fail_ending(request, "result_reply");
    else if (!results->answered)
        px_request_reply(request, "result_reply", json_incref(results->content), results->buffers);
    json_decref(results->content);
    px_msg_destroy(results->buffers);
    free(results);
}

static void reply_results(const struct px_request *request, json_t *ids)
{
    const bool status_only = px_truth(json_object_get(request->content, "status_only"));
    if (!status_only && !px_db_stores(request->hub->db)) {
        px_request_fail(request, "result_reply", "NoData", PX_NO_DATA);
        return;
    }
    struct results *results = px_alloc(sizeof(*results));
    *results = (struct results){.content = json_object(),
                                .pending = json_array(),
                                .completed = json_array(),
                                .buffers = px_msg_create(),
                                .status_only = status_only};
    json_object_set_new(results->content, "status", json_string("ok"));
    json_object_set_new(results->content, "pending", results->pending);
    json_object_set_new(results->content, "completed", results->completed);
    px_hub_walk(request, ids, add_one, on_results, results);
}

static void on_result_request(const struct px_request *request)
{
    json_t *ids = px_request_items(request, "msg_ids");
    json_t *sorted = ids ? sorted_ids(request, ids) : NULL;
    if (sorted != NULL)
        reply_results(request, sorted);
    json_decref(sorted);
    json_decref(ids);
}

/* ---- abort_request ---------------------------------------------------------- */

static void on_abort_request(const struct px_request *request)
{
    json_t *ids =
        px_request_has_books(request, "abort_reply") ? px_request_items(request, "msg_ids") : NULL;
    if (ids == NULL)
        return;
    struct px_order order = {.kind = PX_ORDER_ABORT, .text = px_id_lines(ids)};
    px_link_order(request->hub->link, &order);
    px_request_reply(request, "abort_reply", json_pack("{s:s}", "status", "ok"), NULL);
    json_decref(ids);
}

const struct px_request_row px_query_requests[] = {
    {"queue_request", on_queue_request},
    {"load_request", on_load_request},
    {"result_request", on_result_request},
    {PX_ABORT_REQUEST, on_abort_request},
    {"become_dask_request", px_on_become_dask_request},
    {"stop_distributed_request", px_on_stop_distributed_request},
    {NULL, NULL},
};
