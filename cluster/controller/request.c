/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * request: the queries of clients (PROTOCOL 7): queue status, results, history, the database,
 * purging and resubmitting. Errors are Python exceptions by name and text, because that is
 * what clients raise: KeyError's text is the repr of its argument.
 */
#include "hub.h"

#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#define MAX_IDS 1000000

/* ---- replying --------------------------------------------------------------------- */

json_t *px_error_json(const char *ename, const char *evalue)
{
    struct px_buf text = {0};
    px_error_content(&text, ename, evalue);
    json_t *content = px_json_parse(px_buf_span(&text), NULL);
    px_buf_fini(&text);
    return content;
}

void px_repr(struct px_buf *out, const char *text)
{
    char quote = strchr(text, '\'') != NULL && strchr(text, '"') == NULL ? '"' : '\'';
    px_buf_append(out, &quote, 1);
    for (; *text; text++) {
        if (*text == quote || *text == '\\')
            px_buf_text(out, "\\");
        px_buf_append(out, text, 1);
    }
    px_buf_append(out, &quote, 1);
}

void px_request_reply(const struct px_request *request, const char *type, json_t *content,
                      const struct px_msg *buffers)
{
    char *text = json_dumps(content, 0);
    struct px_draft draft = {.idents_of = request->msg,
                             .type = type,
                             .parent = px_msg_header(request->msg),
                             .content = text ? px_span_of(text) : (struct px_span){0}};
    struct px_msg *msg = px_session_build(request->hub->session, &draft);
    if (buffers != NULL)
        px_msg_append_frames(msg, buffers, 0, px_msg_count(buffers));
    if (px_socket_send(request->hub->sockets->query, &msg) != PX_SENT)
        px_msg_destroy(msg);
    free(text);
    json_decref(content);
}

void px_request_fail(const struct px_request *request, const char *type, const char *ename,
                     const char *evalue)
{
    px_log(PX_DEBUG, "request-failed", "type=%.*s ename=%s evalue=\"%s\"",
           (int)request->type.size, request->type.data, ename, evalue);
    px_request_reply(request, type, px_error_json(ename, evalue), NULL);
}

/* A KeyError: its text is the repr of what it says. */
static void fail_key(const struct px_request *request, const char *type, const char *what)
{
    struct px_buf evalue = {0};
    px_repr(&evalue, what);
    px_request_fail(request, type, "KeyError", evalue.data);
    px_buf_fini(&evalue);
}

void px_request_missing(const struct px_request *request, const char *key)
{
    fail_key(request, "hub_error", key);
}

/* The list of strings under `key`. NULL when it is missing or not that; then hub_error is sent. */
static const json_t *wanted_ids(const struct px_request *request, const char *key)
{
    const json_t *ids = json_object_get(request->content, key);
    if (ids == NULL) {
        px_request_missing(request, key);
        return NULL;
    }
    bool right = json_is_array(ids) && json_array_size(ids) <= MAX_IDS;
    for (size_t i = 0; right && i < json_array_size(ids); i++)
        right = json_is_string(json_array_get(ids, i));
    if (right)
        return ids;
    px_request_fail(request, "hub_error", "TypeError", "msg_ids must be a list of str");
    return NULL;
}

static struct px_span id_at(const json_t *ids, size_t index)
{
    const json_t *id = json_array_get(ids, index);
    return (struct px_span){json_string_value(id), json_string_length(id)};
}

/* ---- targets ---------------------------------------------------------------------------- */

struct targets {
    struct px_member **members;
    size_t count;
};

static struct px_member *find_target(const struct px_hub *hub, const json_t *target)
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

static void repr_of(struct px_buf *out, const json_t *value)
{
    if (json_is_string(value)) {
        px_repr(out, json_string_value(value));
        return;
    }
    char *text = json_dumps(value, JSON_ENCODE_ANY);
    px_buf_text(out, json_is_null(value) ? "None" : text ? text : "?");
    free(text);
}

/* IndexError with the list of those that do not exist. */
static void fail_targets(const struct px_request *request, const json_t *list)
{
    struct px_buf text = {0};
    px_buf_text(&text, "No Such Engine: [");
    bool first = true;
    for (size_t i = 0; i < json_array_size(list); i++) {
        if (find_target(request->hub, json_array_get(list, i)) != NULL)
            continue;
        px_buf_text(&text, first ? "" : ", ");
        repr_of(&text, json_array_get(list, i));
        first = false;
    }
    px_buf_text(&text, "]");
    px_request_fail(request, "hub_error", "IndexError", text.data);
    px_buf_fini(&text);
}

static int listed_targets(const struct px_request *request, const json_t *list,
                          struct targets *out)
{
    if (json_array_size(list) == 0) {
        px_request_fail(request, "hub_error", "IndexError", "No Engines Registered");
        return -1;
    }
    out->members = px_alloc(json_array_size(list) * sizeof(*out->members));
    for (size_t i = 0; i < json_array_size(list); i++) {
        struct px_member *member = find_target(request->hub, json_array_get(list, i));
        if (member == NULL) {
            fail_targets(request, list);
            return -1;
        }
        out->members[out->count++] = member;
    }
    return 0;
}

/* -1 after an error reply. `out->members` is freed by the caller in either case. */
static int read_targets(const struct px_request *request, struct targets *out)
{
    json_t *targets = json_object_get(request->content, "targets");
    if (targets == NULL) {
        px_request_missing(request, "targets");
        return -1;
    }
    if (json_is_null(targets)) {
        all_targets(request->hub, out);
        return 0;
    }
    if (json_is_array(targets))
        return listed_targets(request, targets, out);
    json_t *list = json_pack("[O]", targets);
    int rc = listed_targets(request, list, out);
    json_decref(list);
    return rc;
}

/* ---- queue_request, load_request ------------------------------------------------------------ */

static json_t *job_ids(const struct px_job *jobs)
{
    json_t *ids = json_array();
    const struct px_job *job;
    DL_FOREACH(jobs, job)
        json_array_append_new(ids, json_string(job->msg_id));
    return ids;
}

/* Ids of finished tasks of an engine, as far as there are records of them. */
static json_t *completed_ids(struct px_hub *hub, const struct px_member *member)
{
    json_t *ids = json_array();
    for (struct px_record *record = px_db_first(hub->db); record != NULL;
         record = px_db_next(record)) {
        if (record->engine_uuid != NULL && px_record_is_complete(record) &&
            strcmp(record->engine_uuid, member->uuid) == 0)
            json_array_append_new(ids, json_string(record->msg_id));
    }
    return ids;
}

static json_t *queue_of(struct px_hub *hub, const struct px_member *member, bool verbose)
{
    if (verbose)
        return json_pack("{s:o, s:o, s:o}", "queue", job_ids(member->queue), "completed",
                         completed_ids(hub, member), "tasks", job_ids(member->tasks));
    return json_pack("{s:I, s:I, s:I}", "queue", (json_int_t)member->queue_count, "completed",
                     (json_int_t)member->completed, "tasks", (json_int_t)member->task_count);
}

static void on_queue_request(const struct px_request *request)
{
    struct px_hub *hub = request->hub;
    struct targets targets = {0};
    if (read_targets(request, &targets) == 0) {
        bool verbose = json_is_true(json_object_get(request->content, "verbose"));
        json_t *content = json_pack("{s:s}", "status", "ok");
        for (size_t i = 0; i < targets.count; i++) {
            char id[16];
            snprintf(id, sizeof(id), "%d", targets.members[i]->id);
            json_object_set_new(content, id, queue_of(hub, targets.members[i], verbose));
        }
        json_object_set_new(content, "unassigned",
                            verbose ? job_ids(hub->unassigned)
                                    : json_integer((json_int_t)hub->unassigned_count));
        px_request_reply(request, "queue_reply", content, NULL);
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
            json_object_set_new(content, id,
                                json_integer((json_int_t)(member->queue_count +
                                                          member->task_count)));
        }
        px_request_reply(request, "load_reply", content, NULL);
    }
    free(targets.members);
}

/* ---- result_request ---------------------------------------------------------------------------- */

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
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The ids, sorted, without duplicates. Caller frees. */
static const char **sorted_ids(const json_t *ids, size_t *count)
{
    size_t size = json_array_size(ids), kept = 0;
    const char **out = px_alloc((size + 1) * sizeof(*out));
    for (size_t i = 0; i < size; i++)
        out[i] = json_string_value(json_array_get(ids, i));
    qsort(out, size, sizeof(*out), compare_ids);
    for (size_t i = 0; i < size; i++) {
        if (kept == 0 || strcmp(out[kept - 1], out[i]) != 0)
            out[kept++] = out[i];
    }
    *count = kept;
    return out;
}

struct results {
    json_t *content, *pending, *completed;
    struct px_msg *buffers;
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
                         const char *msg_id, bool status_only)
{
    struct px_hub *hub = request->hub;
    struct px_span id = px_span_of(msg_id);
    struct px_record *record = status_only ? NULL : px_db_get(hub->db, id);
    bool finished = px_history_get(hub->finished, id, NULL) != PX_UNKNOWN;
    if (px_hub_job(hub, id) != NULL || (!finished && record && !px_record_is_complete(record))) {
        json_array_append_new(results->pending, json_string(msg_id));
        return 0;
    }
    if (finished && status_only) {
        json_array_append_new(results->completed, json_string(msg_id));
        return 0;
    }
    if (record != NULL) {
        add_result(results, msg_id, record);
        return 0;
    }
    if (finished) {
        fail_key(request, "hub_error", msg_id);
        return -1;
    }
    char *what = px_format("No such message: %s", msg_id);
    fail_key(request, "result_reply", what);
    free(what);
    return -1;
}

static void on_result_request(const struct px_request *request)
{
    const json_t *ids = wanted_ids(request, "msg_ids");
    if (ids == NULL)
        return;
    bool status_only = json_is_true(json_object_get(request->content, "status_only"));
    size_t count;
    const char **sorted = sorted_ids(ids, &count);
    struct results results = {.content = json_object(), .pending = json_array(),
                              .completed = json_array(), .buffers = px_msg_create()};
    json_object_set_new(results.content, "status", json_string("ok"));
    json_object_set_new(results.content, "pending", results.pending);
    json_object_set_new(results.content, "completed", results.completed);
    int rc = 0;
    for (size_t i = 0; i < count && rc == 0; i++)
        rc = gather_result(request, &results, sorted[i], status_only);
    if (rc == 0)
        px_request_reply(request, "result_reply", json_incref(results.content), results.buffers);
    json_decref(results.content);
    px_msg_destroy(results.buffers);
    free(sorted);
}

/* ---- history_request, db_request ---------------------------------------------------------------- */

#define NO_DATA "NoDB backend doesn't store any data. "

struct dated {
    int64_t date;
    const char *msg_id;
};

static int compare_dates(const void *a, const void *b)
{
    const struct dated *x = a, *y = b;
    if (x->date != y->date)
        return x->date < y->date ? -1 : 1;
    return 0;
}

static int64_t submitted_of(const struct px_record *record)
{
    struct px_header header;
    if (record->request == NULL ||
        px_header_scan(px_msg_header(record->request), &header, NULL) != 0)
        return -1;
    return px_date_parse(header.date);
}

static json_t *history(struct px_hub *hub)
{
    struct dated *all = px_alloc((px_db_count(hub->db) + 1) * sizeof(*all));
    size_t count = 0;
    for (struct px_record *record = px_db_first(hub->db); record != NULL;
         record = px_db_next(record)) {
        int64_t date = submitted_of(record);
        if (date >= 0)
            all[count++] = (struct dated){date, record->msg_id};
    }
    qsort(all, count, sizeof(*all), compare_dates);
    json_t *ids = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(ids, json_string(all[i].msg_id));
    free(all);
    return ids;
}

static void on_history_request(const struct px_request *request)
{
    if (!px_db_stores(request->hub->db)) {
        px_request_fail(request, "history_reply", "NoData", NO_DATA);
        return;
    }
    px_request_reply(request, "history_reply",
                     json_pack("{s:s, s:o}", "status", "ok", "history", history(request->hub)),
                     NULL);
}

static json_t *record_field(void *ctx, const char *field)
{
    return px_record_field(ctx, field);
}

struct found {
    json_t *records, *buffer_lens, *result_buffer_lens;
    struct px_msg *buffers;
};

static void add_buffers(struct found *found, json_t *lens, const struct px_msg *msg)
{
    if (lens == NULL)
        return;
    size_t count = msg ? px_msg_buffer_count(msg) : 0;
    json_array_append_new(lens, json_integer((json_int_t)count));
    if (count > 0)
        px_msg_append_frames(found->buffers, msg, px_msg_first_buffer(msg), count);
}

static bool has_key(const json_t *keys, const char *key)
{
    for (size_t i = 0; i < json_array_size(keys); i++) {
        if (strcmp(json_string_value(json_array_get(keys, i)), key) == 0)
            return true;
    }
    return false;
}

/* False with the exception when one of the keys is not a field. */
static bool keys_are_right(const json_t *keys, struct px_exception *exception)
{
    for (size_t i = 0; i < json_array_size(keys); i++) {
        const char *key = json_string_value(json_array_get(keys, i));
        if (key != NULL && px_record_has_field(key))
            continue;
        struct px_buf text = {0};
        px_repr(&text, key ? key : "?");
        snprintf(exception->ename, sizeof(exception->ename), "KeyError");
        snprintf(exception->evalue, sizeof(exception->evalue), "%.*s",
                 (int)sizeof(exception->evalue) - 1, text.data);
        px_buf_fini(&text);
        return false;
    }
    return true;
}

static int find_records(struct px_hub *hub, const struct px_query *query, const json_t *keys,
                        struct found *found, struct px_exception *exception)
{
    for (struct px_record *record = px_db_first(hub->db); record != NULL;
         record = px_db_next(record)) {
        int match = px_query_match(query, record_field, record, exception);
        if (match < 0)
            return -1;
        if (match == 0)
            continue;
        json_array_append_new(found->records, px_record_json(record, keys));
        add_buffers(found, found->buffer_lens, record->request);
        add_buffers(found, found->result_buffer_lens, record->reply);
    }
    return 0;
}

static void reply_found(const struct px_request *request, const struct found *found)
{
    json_t *content = json_pack("{s:s, s:O, s:n, s:n}", "status", "ok", "records", found->records,
                                "buffer_lens", "result_buffer_lens");
    if (found->buffer_lens != NULL)
        json_object_set(content, "buffer_lens", found->buffer_lens);
    if (found->result_buffer_lens != NULL)
        json_object_set(content, "result_buffer_lens", found->result_buffer_lens);
    px_request_reply(request, "db_reply", content, found->buffers);
}

static void on_db_request(const struct px_request *request)
{
    struct px_hub *hub = request->hub;
    struct px_exception exception;
    json_t *empty = json_object();
    const json_t *wanted = json_object_get(request->content, "query");
    const json_t *keys = json_object_get(request->content, "keys");
    if (!px_db_stores(hub->db)) {
        px_request_fail(request, "db_reply", "NoData", NO_DATA);
        json_decref(empty);
        return;
    }
    struct found found = {.records = json_array(), .buffers = px_msg_create()};
    struct px_query *query = px_query_create(wanted ? wanted : empty, &exception);
    bool right = query != NULL && keys_are_right(keys, &exception);
    if (right) {
        found.buffer_lens = has_key(keys, "buffers") ? json_array() : NULL;
        found.result_buffer_lens = has_key(keys, "result_buffers") ? json_array() : NULL;
        right = find_records(hub, query, keys, &found, &exception) == 0;
    }
    if (right)
        reply_found(request, &found);
    else
        px_request_fail(request, "db_reply", exception.ename, exception.evalue);
    px_query_destroy(query);
    json_decref(found.records);
    json_decref(found.buffer_lens);
    json_decref(found.result_buffer_lens);
    px_msg_destroy(found.buffers);
    json_decref(empty);
}

/* ---- purge_request ---------------------------------------------------------------------------------- */

/* Drops finished records, of one engine or (NULL) of all. */
static void purge_finished(struct px_hub *hub, const char *engine_uuid)
{
    struct px_record *next;
    for (struct px_record *record = px_db_first(hub->db); record != NULL; record = next) {
        next = px_db_next(record);
        bool right = engine_uuid == NULL || (record->engine_uuid != NULL &&
                                             strcmp(record->engine_uuid, engine_uuid) == 0);
        if (right && px_record_is_complete(record))
            px_db_drop(hub->db, record);
    }
}

/* -1 after an error reply; nothing is dropped then. */
static int purge_ids(const struct px_request *request, const json_t *ids)
{
    struct px_hub *hub = request->hub;
    for (size_t i = 0; i < json_array_size(ids); i++) {
        if (px_hub_job(hub, id_at(ids, i)) == NULL)
            continue;
        char *what = px_format("msg pending: '%s'", id_at(ids, i).data);
        px_request_fail(request, "purge_reply", "IndexError", what);
        free(what);
        return -1;
    }
    for (size_t i = 0; i < json_array_size(ids); i++) {
        struct px_record *record = px_db_get(hub->db, id_at(ids, i));
        if (record != NULL)
            px_db_drop(hub->db, record);
    }
    return 0;
}

static int purge_engines(const struct px_request *request, const json_t *ids)
{
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        struct px_member *member = json_is_integer(id) ? find_target(request->hub, id) : NULL;
        if (member != NULL && member->alive) {
            purge_finished(request->hub, member->uuid);
            continue;
        }
        struct px_buf what = {0};
        px_buf_text(&what, "No such engine: ");
        repr_of(&what, id);
        px_request_fail(request, "purge_reply", "IndexError", what.data);
        px_buf_fini(&what);
        return -1;
    }
    return 0;
}

static void on_purge_request(const struct px_request *request)
{
    const json_t *which = json_object_get(request->content, "msg_ids");
    if (json_is_string(which) && strcmp(json_string_value(which), "all") == 0) {
        purge_finished(request->hub, NULL);
        px_request_reply(request, "purge_reply", json_pack("{s:s}", "status", "ok"), NULL);
        return;
    }
    if (which != NULL && (which = wanted_ids(request, "msg_ids")) == NULL)
        return;
    if (purge_ids(request, which) == 0 &&
        purge_engines(request, json_object_get(request->content, "engine_ids")) == 0)
        px_request_reply(request, "purge_reply", json_pack("{s:s}", "status", "ok"), NULL);
}

/* ---- resubmit_request --------------------------------------------------------------------------------- */

/* Nobody's routing id: replies to it are dropped; the client asks for the result instead. */
#define RESUBMIT_IDENT "px.resubmit"

/* The stored request under a new id; its header is the parent too, and metadata is empty. */
static struct px_msg *renewed(struct px_hub *hub, const struct px_record *record, char **new_id)
{
    struct px_span ident = PX_SPAN(RESUBMIT_IDENT);
    json_t *header = px_json_parse(px_msg_header(record->request), NULL);
    const char *type = json_string_value(json_object_get(header, "msg_type"));
    struct px_draft draft = {.idents = &ident, .ident_count = 1, .type = type ? type : "?",
                             .content = px_msg_content(record->request)};
    struct px_msg *msg = px_session_build(hub->session, &draft);
    json_t *fresh = px_json_parse(px_msg_header(msg), NULL);
    json_object_set(header, "msg_id", json_object_get(fresh, "msg_id"));
    json_object_set(header, "date", json_object_get(fresh, "date"));
    *new_id = px_strdup(px_session_last_id(hub->session));
    char *text = json_dumps(header, 0);
    size_t at = px_msg_ident_count(msg) + 2;
    px_msg_replace(msg, at, text, strlen(text));
    px_msg_replace(msg, at + 1, text, strlen(text));
    px_session_resign(hub->session, msg);
    px_msg_append_frames(msg, record->request, px_msg_first_buffer(record->request),
                         px_msg_buffer_count(record->request));
    free(text);
    json_decref(header);
    json_decref(fresh);
    return msg;
}

static void resubmit(struct px_hub *hub, struct px_record *record, json_t *resubmitted)
{
    char *new_id;
    struct px_msg *msg = renewed(hub, record, &new_id);
    struct px_span id = px_span_of(new_id);
    json_object_set_new(resubmitted, record->msg_id, json_string(new_id));
    free(record->resubmitted);
    record->resubmitted = px_strdup(new_id);
    /* Booked before the traffic thread hears of it, so that nobody finds it unknown. */
    px_hub_book(hub, id, NULL, false);
    struct px_record *copy = px_db_want(hub->db, id);
    if (copy != NULL) {
        copy->queue = "task";
        copy->request = px_msg_copy(msg);
    }
    struct px_order order = {.kind = PX_ORDER_SUBMIT, .msg = msg};
    px_link_order(hub->link, &order);
    free(new_id);
}

/* KeyError "No such msg(s): [...]" for those that are not there. */
static bool all_known(const struct px_request *request, const json_t *ids)
{
    struct px_buf missing = {0};
    px_buf_text(&missing, "No such msg(s): [");
    size_t empty = missing.size;
    for (size_t i = 0; i < json_array_size(ids); i++) {
        struct px_record *record = px_db_get(request->hub->db, id_at(ids, i));
        if (record != NULL && record->request != NULL)
            continue;
        px_buf_text(&missing, missing.size > empty ? ", " : "");
        px_repr(&missing, id_at(ids, i).data);
    }
    bool known = missing.size == empty;
    px_buf_text(&missing, "]");
    if (!known)
        fail_key(request, "resubmit_reply", missing.data);
    px_buf_fini(&missing);
    return known;
}

static void on_resubmit_request(const struct px_request *request)
{
    struct px_hub *hub = request->hub;
    const json_t *ids = wanted_ids(request, "msg_ids");
    if (ids == NULL)
        return;
    if (!px_db_stores(hub->db)) {
        px_request_fail(request, "resubmit_reply", "NoData", NO_DATA);
        return;
    }
    if (!all_known(request, ids))
        return;
    json_t *resubmitted = json_object();
    for (size_t i = 0; i < json_array_size(ids); i++) {
        struct px_record *record = px_db_get(hub->db, id_at(ids, i));
        if (record != NULL) /* an earlier one may have culled it */
            resubmit(hub, record, resubmitted);
    }
    px_request_reply(request, "resubmit_reply",
                     json_pack("{s:s, s:o}", "status", "ok", "resubmitted", resubmitted), NULL);
}

/* ---- dask ------------------------------------------------------------------------------------------------ */

/* There is no Python in this process to run a distributed.Scheduler. */
static void on_become_dask_request(const struct px_request *request)
{
    px_request_fail(request, "hub_error", "ModuleNotFoundError",
                    "this controller cannot host a dask scheduler: start one beside it");
}

static void on_stop_distributed_request(const struct px_request *request)
{
    px_request_reply(request, "stop_distributed_reply", json_pack("{s:s}", "status", "ok"), NULL);
}

const struct px_request_row px_query_requests[] = {
    {"queue_request", on_queue_request},
    {"load_request", on_load_request},
    {"result_request", on_result_request},
    {"history_request", on_history_request},
    {"db_request", on_db_request},
    {"purge_request", on_purge_request},
    {"resubmit_request", on_resubmit_request},
    {"become_dask_request", on_become_dask_request},
    {"stop_distributed_request", on_stop_distributed_request},
    {NULL, NULL},
};
