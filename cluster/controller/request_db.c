/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * request_db: requests that look into the task database or change it: history, queries, purging
 * and resubmitting (ipyparallel, controller/hub.py). Without a database they are answered with
 * NoData.
 */
#include "hub.h"

#include <stdlib.h>
#include <string.h>

/* ---- history_request, db_request ------------------------------------------- */

struct dated {
    int64_t date;
    char *msg_id;
};

struct history {
    struct dated *items;
    size_t count, size;
};

static int compare_dates(const void *a, const void *b)
{
    const struct dated *x = a, *y = b;
    if (x->date != y->date)
        return x->date < y->date ? -1 : 1;
    return 0;
}

static bool add_dated(struct px_record *record, void *ctx)
{
    struct history *history = ctx;
    struct px_header header;
    if (record->request == NULL ||
        px_header_scan(px_msg_header(record->request), &header, NULL) != 0)
        return true;
    int64_t date = px_date_parse(header.date);
    if (date < 0)
        return true;
    if (history->count == history->size) {
        history->size = history->size * 2 + 64;
        history->items = px_realloc(history->items, history->size * sizeof(*history->items));
    }
    history->items[history->count++] = (struct dated){date, px_strdup(record->msg_id)};
    return true;
}

static void on_dated(const struct px_request *request, void *ctx, bool whole)
{
    struct history *history = ctx;
    json_t *ids = json_array();
    if (history->count > 1)
        qsort(history->items, history->count, sizeof(*history->items), compare_dates);
    for (size_t i = 0; i < history->count; i++) {
        json_array_append_new(ids, json_string(history->items[i].msg_id));
        free(history->items[i].msg_id);
    }
    free(history->items);
    free(history);
    if (whole)
        px_request_reply(request, "history_reply",
                         json_pack("{s:s, s:O}", "status", "ok", "history", ids), NULL);
    else
        px_request_fail_ending(request, "history_reply");
    json_decref(ids);
}

static void on_history_request(const struct px_request *request)
{
    if (px_db_stores(request->hub->db))
        px_hub_scan(request, NULL, add_dated, on_dated, px_alloc(sizeof(struct history)));
    else
        px_request_fail(request, "history_reply", "NoData", PX_NO_DATA);
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
        const char *name = json_string_value(json_array_get(keys, i));
        if (name != NULL && strcmp(name, key) == 0)
            return true;
    }
    return false;
}

/* KeyError when one of the keys is not a field of the record. */
static int check_keys(const struct px_record *record, const json_t *keys,
                      struct px_exception *exception)
{
    for (size_t i = 0; i < json_array_size(keys); i++) {
        const json_t *key = json_array_get(keys, i);
        if (json_is_string(key) && px_record_has_field(record, json_string_value(key)))
            continue;
        struct px_buf text = {0};
        px_repr_json(&text, key);
        px_raise(exception, "KeyError", "%s", text.data);
        px_buf_fini(&text);
        return -1;
    }
    return 0;
}

struct search {
    struct px_query *query;
    json_t *keys;  /* what was asked for */
    json_t *items; /* and its items; NULL when it has none */
    struct found found;
    struct px_exception exception;
    bool failed;
};

/* Keys are looked at only when something is found, as ipyparallel does. */
static bool choose_keys(struct search *search, const struct px_record *record)
{
    if (!px_truth(search->keys))
        return true;
    if (search->items == NULL)
        search->items = px_iterate(search->keys, &search->exception);
    return search->items != NULL && check_keys(record, search->items, &search->exception) == 0;
}

static bool add_found(struct px_record *record, void *ctx)
{
    struct search *search = ctx;
    struct found *found = &search->found;
    int match = px_query_match(search->query, record_field, record, &search->exception);
    search->failed = match < 0 || (match > 0 && !choose_keys(search, record));
    if (match > 0 && !search->failed) {
        json_array_append_new(found->records, px_record_json(record, search->items));
        add_buffers(found, found->buffer_lens, record->request);
        add_buffers(found, found->result_buffer_lens, record->reply);
    }
    return !search->failed;
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

static void on_found(const struct px_request *request, void *ctx, bool whole)
{
    struct search *search = ctx;
    if (!whole)
        px_request_fail_ending(request, "db_reply");
    else if (search->failed)
        px_request_raise(request, "db_reply", &search->exception);
    else
        reply_found(request, &search->found);
    json_decref(search->found.records);
    json_decref(search->found.buffer_lens);
    json_decref(search->found.result_buffer_lens);
    px_msg_destroy(search->found.buffers);
    json_decref(search->items);
    json_decref(search->keys);
    px_query_destroy(search->query);
    free(search);
}

static struct search *search_create(const struct px_request *request)
{
    json_t *empty = json_object();
    const json_t *wanted = json_object_get(request->content, "query");
    struct search *search = px_alloc(sizeof(*search));
    search->query = px_query_create(wanted ? wanted : empty, &search->exception);
    search->keys = json_incref(json_object_get(request->content, "keys"));
    search->failed = search->query == NULL;
    search->found.records = json_array();
    search->found.buffers = px_msg_create();
    search->found.buffer_lens = has_key(search->keys, "buffers") ? json_array() : NULL;
    search->found.result_buffer_lens =
        has_key(search->keys, "result_buffers") ? json_array() : NULL;
    json_decref(empty);
    return search;
}

static void on_db_request(const struct px_request *request)
{
    if (!px_db_stores(request->hub->db)) {
        px_request_fail(request, "db_reply", "NoData", PX_NO_DATA);
        return;
    }
    struct search *search = search_create(request);
    json_t *ids = search->failed ? NULL : px_query_ids(search->query);
    if (search->failed)
        on_found(request, search, true);
    else
        px_hub_scan(request, ids, add_found, on_found, search);
    json_decref(ids);
}

/* ---- purge_request --------------------------------------------------------- */

struct purge {
    struct px_db *db;
    json_t *uuids; /* of engines, as keys; NULL: of all */
    json_t *wrong; /* the first id of an engine that does not exist; NULL: none */
};

static bool purge_one(struct px_record *record, void *ctx)
{
    const struct purge *purge = ctx;
    bool right = purge->uuids == NULL || (record->engine_uuid != NULL &&
                                          json_object_get(purge->uuids, record->engine_uuid));
    if (right && px_record_is_complete(record))
        px_db_drop(purge->db, record->msg_id);
    return true;
}

/* -1 after an error reply. */
static int check_ended(const struct px_request *request, const json_t *ids)
{
    struct px_hub *hub = request->hub;
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const struct px_span id = px_id_text(json_array_get(ids, i));
        if (px_hub_job(hub, id) == NULL)
            continue;
        char *what = px_format("msg pending: '%s'", id.data);
        px_request_fail(request, "purge_reply", "IndexError", what);
        free(what);
        return -1;
    }
    return 0;
}

static bool purge_id(const struct px_request *request, const json_t *id, void *ctx)
{
    struct px_db *db = request->hub->db;
    (void)ctx;
    const bool resubmitted = px_hub_job(request->hub, px_id_text(id)) != NULL; /* meanwhile */
    if (!resubmitted && px_db_get(db, px_id_text(id)) != NULL)
        px_db_drop(db, px_id_text(id).data);
    return true;
}

/* "No such engine: %i" % id, in Python. */
static void fail_engine(const struct px_request *request, const json_t *id)
{
    struct px_exception exception;
    if (json_is_number(id) || json_is_boolean(id))
        px_raise(&exception, "IndexError", "No such engine: %lld",
                 json_is_number(id) ? (long long)json_number_value(id)
                                    : (long long)json_is_true(id));
    else
        px_raise(&exception, "TypeError", "%%i format: a real number is required, not %s",
                 px_type_name(id));
    px_request_raise(request, "purge_reply", &exception);
}

static void on_purged(const struct px_request *request, void *ctx, bool whole)
{
    struct purge *purge = ctx;
    if (!whole)
        px_request_fail_ending(request, "purge_reply");
    else if (purge->wrong != NULL)
        fail_engine(request, purge->wrong);
    else
        px_request_reply(request, "purge_reply", json_pack("{s:s}", "status", "ok"), NULL);
    json_decref(purge->uuids);
    json_decref(purge->wrong);
    free(purge);
}

/* Drops finished records, of some engines or (NULL) of all, and replies. Takes both. */
static void purge_finished(const struct px_request *request, json_t *uuids, json_t *wrong)
{
    struct purge *purge = px_alloc(sizeof(*purge));
    *purge = (struct purge){.db = request->hub->db, .uuids = uuids, .wrong = wrong};
    if (uuids == NULL || json_object_size(uuids) > 0)
        px_hub_scan(request, NULL, purge_one, on_purged, purge);
    else
        on_purged(request, purge, true);
}

/* As in ipyparallel, those before one that does not exist are purged. */
static void purge_engines(const struct px_request *request, const json_t *ids)
{
    json_t *uuids = json_object(), *wrong = NULL;
    for (size_t i = 0; i < json_array_size(ids) && wrong == NULL; i++) {
        json_t *id = json_array_get(ids, i);
        struct px_member *member = json_is_integer(id) ? px_hub_target(request->hub, id) : NULL;
        if (member != NULL && member->alive)
            json_object_set_new(uuids, member->uuid, json_null());
        else
            wrong = json_incref(id);
    }
    purge_finished(request, uuids, wrong);
}

/* An empty list for what is missing; NULL after an error reply. */
static json_t *purge_items(const struct px_request *request, const char *key)
{
    return json_object_get(request->content, key) ? px_request_items(request, key) : json_array();
}

static void on_ids_purged(const struct px_request *request, void *ctx, bool whole)
{
    (void)ctx;
    json_t *engines = whole ? purge_items(request, "engine_ids") : NULL;
    if (!whole)
        px_request_fail_ending(request, "purge_reply");
    else if (engines != NULL)
        purge_engines(request, engines);
    json_decref(engines);
}

static void on_purge_request(const struct px_request *request)
{
    const json_t *which = json_object_get(request->content, "msg_ids");
    if (json_is_string(which) && strcmp(json_string_value(which), "all") == 0) {
        purge_finished(request, NULL, NULL);
        return;
    }
    json_t *ids = purge_items(request, "msg_ids");
    if (ids != NULL && check_ended(request, ids) == 0)
        px_hub_walk(request, ids, purge_id, on_ids_purged, NULL);
    json_decref(ids);
}

/* ---- resubmit_request ------------------------------------------------------ */

/* What of the old metadata says how the buffers are to be read; the rest is left out. */
static struct px_span reading_metadata(const struct px_record *record)
{
    static const char *const key[] = {"px_pickle"};
    struct px_span value;
    const bool own = px_scan(px_msg_metadata(record->request), key, &value, 1) == 0 && value.data;
    return own ? PX_SPAN("{\"px_pickle\": 5}") : PX_SPAN("{}");
}

/* The stored request under a new id; its header is the parent too. */
static struct px_msg *renewed(struct px_hub *hub, const struct px_record *record, char **new_id)
{
    struct px_span ident = PX_SPAN(PX_RESUBMIT);
    json_t *header = px_json_parse(px_msg_header(record->request), NULL);
    const char *type = json_string_value(json_object_get(header, "msg_type"));
    struct px_draft draft = {.idents = &ident,
                             .ident_count = 1,
                             .type = type ? type : "?",
                             .metadata = reading_metadata(record),
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
    px_hub_changed(hub, record);
    /* Booked before the traffic thread hears of it, so that nobody finds it unknown. */
    px_hub_book(hub, id, NULL, false);
    struct px_record *copy = px_db_want(hub->db, id);
    if (copy != NULL) {
        copy->queue = "task";
        copy->request = px_msg_copy(msg);
        px_db_resize(hub->db, copy, 0, px_msg_bytes(msg));
        px_hub_changed(hub, copy);
    }
    struct px_order order = {.kind = PX_ORDER_SUBMIT, .msg = msg};
    px_link_order(hub->link, &order);
    free(new_id);
}

/* A record from disk may be anybody's: without a header that can be read it is none of a task. */
static bool can_resubmit(const struct px_record *record)
{
    struct px_header header;
    if (record == NULL || record->request == NULL ||
        px_header_scan(px_msg_header(record->request), &header, NULL) != 0)
        return false;
    json_t *parsed = px_json_parse(px_msg_header(record->request), NULL);
    bool readable = parsed != NULL;
    json_decref(parsed);
    return readable;
}

struct resubmission {
    json_t *ids;
    struct px_buf missing;
    json_t *resubmitted; /* {id: the new one} */
};

static bool look_for(const struct px_request *request, const json_t *id, void *ctx)
{
    struct px_buf *missing = &((struct resubmission *)ctx)->missing;
    if (can_resubmit(px_db_get(request->hub->db, px_id_text(id))))
        return true;
    px_buf_text(missing, missing->size > 0 ? ", " : "No such msg(s): [");
    px_repr_json(missing, id);
    return true;
}

static bool resubmit_id(const struct px_request *request, const json_t *id, void *ctx)
{
    json_t *resubmitted = ((struct resubmission *)ctx)->resubmitted;
    struct px_record *record = px_db_get(request->hub->db, px_id_text(id));
    /* An earlier one may have culled it, or be the same. */
    if (json_object_get(resubmitted, px_id_text(id).data) == NULL && can_resubmit(record))
        resubmit(request->hub, record, resubmitted);
    return true;
}

static void end_resubmission(struct resubmission *work)
{
    json_decref(work->ids);
    json_decref(work->resubmitted);
    px_buf_fini(&work->missing);
    free(work);
}

static void on_resubmitted(const struct px_request *request, void *ctx, bool whole)
{
    struct resubmission *work = ctx;
    if (whole)
        px_request_reply(request, "resubmit_reply",
                         json_pack("{s:s, s:O}", "status", "ok", "resubmitted", work->resubmitted),
                         NULL);
    else
        px_request_fail_ending(request, "resubmit_reply");
    end_resubmission(work);
}

/* KeyError for those that are not there; then none is resubmitted. */
static void on_looked_for(const struct px_request *request, void *ctx, bool whole)
{
    struct resubmission *work = ctx;
    if (whole && work->missing.size == 0) {
        px_hub_walk(request, work->ids, resubmit_id, on_resubmitted, work);
        return;
    }
    px_buf_text(&work->missing, "]");
    if (whole)
        px_request_fail_key(request, "resubmit_reply", work->missing.data);
    else
        px_request_fail_ending(request, "resubmit_reply");
    end_resubmission(work);
}

static void resubmit_all(const struct px_request *request, json_t *ids)
{
    struct resubmission *work = px_alloc(sizeof(*work));
    *work = (struct resubmission){.ids = json_incref(ids), .resubmitted = json_object()};
    px_hub_walk(request, ids, look_for, on_looked_for, work);
}

static void on_resubmit_request(const struct px_request *request)
{
    struct px_exception exception;
    const json_t *value = json_object_get(request->content, "msg_ids");
    if (value == NULL) {
        px_request_missing(request, "msg_ids");
        return;
    }
    if (!px_db_stores(request->hub->db)) {
        px_request_fail(request, "resubmit_reply", "NoData", PX_NO_DATA);
        return;
    }
    json_t *ids = px_iterate(value, &exception);
    if (ids == NULL)
        px_raise(&exception, "TypeError", "argument of type '%s' is not iterable",
                 px_type_name(value));
    else if (json_array_size(ids) > PX_MAX_IDS)
        px_raise(&exception, "ValueError", "more than %u in msg_ids", PX_MAX_IDS);
    if (ids != NULL && json_array_size(ids) <= PX_MAX_IDS)
        resubmit_all(request, ids);
    else
        px_request_raise(request, "resubmit_reply", &exception);
    json_decref(ids);
}

const struct px_request_row px_db_requests[] = {
    {"history_request", on_history_request},
    {"db_request", on_db_request},
    {"purge_request", on_purge_request},
    {"resubmit_request", on_resubmit_request},
    {NULL, NULL},
};
