/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * broadcast: one message to many engines, their replies one by one or as one.
 *
 * ipyparallel has a tree of schedulers here. One process needs no tree: each target gets its
 * own header (msg_id "<original>_<uuid>") and metadata, signed by us, and shares content and
 * buffers by reference. What client and engine see is the same:
 *
 *     client    ->  C | <IDS|MSG>  metadata {"targets": [[uuid, id], ...], "is_coalescing": ...}
 *     engine    <-  E | C | <IDS|MSG>  header.msg_id "<original>_<uuid>", "original_msg_id" added
 *     plain     ->  C | <IDS|MSG>  each reply as it comes
 *     coalesced ->  C | <IDS|MSG>  the last reply with "broadcast_targets": [[uuid, id], ...] added
 *                   and the buffers of all, in that order; or the first error, whole
 *
 * When an engine dies, the client fails what it broadcast there by itself, so a collection that
 * waits for such an engine is dropped. The number of collections is bounded, the oldest goes; so
 * are the bytes of all and the frames of one. What cannot be answered as it should be is answered
 * with an error.
 */
#include "controller.h"
#include "protocol.h"
#include "schedule.h"

#include <stdlib.h>
#include <string.h>
#include <uthash.h>

/* Of headers and metadata, of which each target has its own. */
#define MAX_COPIED_BYTES ((size_t)256 << 20)
#define MAX_COLLECTIONS 4096
#define MAX_BROADCAST_TARGETS 65536
#define MAX_COLLECTED_BYTES ((size_t)2 << 30)
#define MAX_COLLECTED_FRAMES (PX_MAX_FRAMES - 64) /* with what comes before the buffers */

struct target {
    char *uuid;
    json_int_t id;
    struct px_msg *reply;
    UT_hash_handle hh;
};

/* Replies to one coalesced broadcast, until all are there. */
struct collection {
    struct target *targets; /* in the order of the request */
    struct target *by_uuid;
    size_t count, missing;
    size_t frames, bytes; /* of the replies */
    size_t client_size;   /* of the routing id in the key */
    UT_hash_handle hh;
    char key[]; /* client's routing id, a 0, original msg_id */
};

struct px_broadcast {
    struct px_shared shared;
    struct px_port in, out;
    struct px_route *route;
    struct collection *collections; /* in the order they came */
    size_t bytes;                   /* of their replies */
    unsigned long refused, dropped;
};

static void free_collection(struct px_broadcast *broadcast, struct collection *collection)
{
    HASH_DEL(broadcast->collections, collection);
    broadcast->bytes -= collection->bytes;
    HASH_CLEAR(hh, collection->by_uuid);
    for (size_t i = 0; i < collection->count; i++) {
        free(collection->targets[i].uuid);
        px_msg_destroy(collection->targets[i].reply);
    }
    free(collection->targets);
    free(collection);
}

static struct px_buf make_key(struct px_span client, struct px_span original)
{
    struct px_buf key = {0};
    px_buf_append(&key, client.data, client.size);
    px_buf_append(&key, "", 1);
    px_buf_append(&key, original.data, original.size);
    return key;
}

static struct target *find_target(const struct collection *collection, struct px_span uuid)
{
    struct target *target;
    HASH_FIND(hh, collection->by_uuid, uuid.data, uuid.size, target);
    return target;
}

/* Whoever has asked waits for one reply, and will not get the one that it should. */
static void fail_collection(struct px_broadcast *broadcast, struct collection *collection,
                            const char *ename, const char *evalue)
{
    struct px_span client = {collection->key, collection->client_size};
    struct px_span original = {collection->key + client.size + 1,
                               collection->hh.keylen - client.size - 1};
    struct px_buf parent = {0};
    px_buf_text(&parent, "{\"msg_id\": ");
    px_buf_json_string(&parent, original.data, original.size);
    px_buf_text(&parent, "}");
    px_port_send(&broadcast->in,
                 px_error_reply(broadcast->shared.session, client, (struct px_span){0},
                                px_buf_span(&parent), ename, evalue));
    px_buf_fini(&parent);
    free_collection(broadcast, collection);
    broadcast->dropped++;
}

/* ---- requests -------------------------------------------------------------- */

/* What a request asks for, checked. */
struct request {
    char *metadata; /* without targets, with original_msg_id */
    json_t *targets;
    struct px_header header;
    bool coalescing;
};

static bool is_target(const json_t *pair)
{
    const json_t *uuid = json_array_get(pair, 0);
    return json_array_size(pair) == 2 && json_string_length(uuid) > 0 &&
           json_string_length(uuid) <= PX_MAX_UUID && json_is_integer(json_array_get(pair, 1));
}

static int read_request(const struct px_msg *msg, struct request *out, struct px_error *err)
{
    struct px_header header;
    if (px_header_scan(px_msg_header(msg), &header, err) != 0)
        return -1;
    out->header = header;
    json_t *metadata = px_json_parse(px_msg_metadata(msg), err);
    if (metadata == NULL)
        return -1;
    out->coalescing = json_is_true(json_object_get(metadata, "is_coalescing"));
    out->targets = json_incref(json_object_get(metadata, "targets"));
    json_object_del(metadata, "targets");
    const int named = json_object_set_new(metadata, "original_msg_id",
                                          json_stringn(header.msg_id.data, header.msg_id.size));
    out->metadata = json_dumps(metadata, 0);
    json_decref(metadata);
    return named == 0 ? 0 : px_fail(err, PX_EINVAL, "a broadcast's msg_id is not UTF-8");
}

/* What is copied for each target. */
static bool is_bounded(const struct request *request, size_t each)
{
    const size_t count = json_array_size(request->targets);
    return count == 0 || each <= MAX_COPIED_BYTES / count;
}

static int check_request(const struct px_msg *msg, const struct request *out, struct px_error *err)
{
    if (!json_is_array(out->targets) || json_array_size(out->targets) > MAX_BROADCAST_TARGETS)
        return px_fail(err, PX_EINVAL, "a broadcast without a list of targets");
    for (size_t i = 0; i < json_array_size(out->targets); i++) {
        const json_t *pair = json_array_get(out->targets, i);
        if (!is_target(pair))
            return px_fail(err, PX_EINVAL, "a broadcast target that is not [uuid, id]");
        if (out->header.msg_id.size + 1 + json_string_length(json_array_get(pair, 0)) >
            PX_MAX_MSG_ID)
            return px_fail(err, PX_ELIMIT, "a msg_id that is too long with a target's uuid");
    }
    const size_t each =
        px_msg_header(msg).size + (out->metadata != NULL ? strlen(out->metadata) : 0);
    if (!is_bounded(out, each))
        return px_fail(err, PX_ELIMIT,
                       "header and metadata of %zu bytes, once for each of %zu targets, are more "
                       "than %zu MB",
                       each, json_array_size(out->targets), MAX_COPIED_BYTES >> 20);
    return 0;
}

/* One that is named twice counts once. */
static void add_target(struct collection *collection, const char *uuid, json_int_t id)
{
    if (find_target(collection, px_span_of(uuid)) != NULL)
        return;
    struct target *target = &collection->targets[collection->count++];
    target->uuid = px_strdup(uuid);
    target->id = id;
    HASH_ADD_KEYPTR(hh, collection->by_uuid, target->uuid, strlen(target->uuid), target);
}

static void collect(struct px_broadcast *broadcast, struct px_span client,
                    const struct request *request)
{
    struct px_buf key = make_key(client, request->header.msg_id);
    struct collection *collection;
    HASH_FIND(hh, broadcast->collections, key.data, key.size, collection);
    if (collection != NULL)
        free_collection(broadcast, collection);
    if (HASH_COUNT(broadcast->collections) >= MAX_COLLECTIONS)
        fail_collection(broadcast, broadcast->collections, "RuntimeError",
                        "too many coalescing broadcasts are unfinished");
    size_t count = json_array_size(request->targets);
    collection = px_alloc(sizeof(*collection) + key.size);
    memcpy(collection->key, key.data, key.size);
    collection->targets = px_alloc((count + 1) * sizeof(struct target));
    for (size_t i = 0; i < count; i++) {
        const json_t *pair = json_array_get(request->targets, i);
        add_target(collection, json_string_value(json_array_get(pair, 0)),
                   json_integer_value(json_array_get(pair, 1)));
    }
    collection->missing = collection->count;
    collection->client_size = client.size;
    HASH_ADD_KEYPTR(hh, broadcast->collections, collection->key, key.size, collection);
    px_buf_fini(&key);
}

/* The header with another msg_id: the rest stays byte for byte. */
static void write_header(struct px_buf *out, struct px_span header, struct px_span msg_id,
                         const char *uuid)
{
    size_t before = (size_t)(msg_id.data - header.data) + msg_id.size;
    struct px_buf quoted = {0};
    px_buf_json_string(&quoted, uuid, strlen(uuid));
    px_buf_clear(out);
    px_buf_append(out, header.data, before);
    px_buf_text(out, "_");
    px_buf_append(out, quoted.data + 1, quoted.size - 2);
    px_buf_append(out, header.data + before, header.size - before);
    px_buf_fini(&quoted);
}

/* {"targets": [[uuid, id]], and the rest of the metadata. */
static void write_metadata(struct px_buf *out, struct px_span rest, const json_t *pair)
{
    const char *uuid = json_string_value(json_array_get(pair, 0));
    px_buf_clear(out);
    px_buf_text(out, "{\"targets\": [[");
    px_buf_json_string(out, uuid, strlen(uuid));
    px_buf_printf(out, ", %lld]], ", (long long)json_integer_value(json_array_get(pair, 1)));
    px_buf_append(out, rest.data + 1, rest.size - 1);
}

static void send_to_all(struct px_broadcast *broadcast, const struct px_msg *msg,
                        const struct request *request)
{
    const char *rest = request->metadata;
    struct px_buf header = {0}, metadata = {0};
    size_t at = px_msg_ident_count(msg) + 2; /* of the header, while no uuid is in front */
    for (size_t i = 0; rest != NULL && i < json_array_size(request->targets); i++) {
        const json_t *pair = json_array_get(request->targets, i);
        const char *uuid = json_string_value(json_array_get(pair, 0));
        struct px_msg *copy = px_msg_copy(msg);
        write_header(&header, px_msg_header(msg), request->header.msg_id, uuid);
        write_metadata(&metadata, px_span_of(rest), pair);
        px_msg_replace(copy, at, header.data, header.size);
        px_msg_replace(copy, at + 2, metadata.data, metadata.size);
        px_session_resign(broadcast->shared.session, copy);
        px_msg_prepend(copy, uuid, strlen(uuid));
        px_traffic_broadcast(broadcast->shared.traffic, px_span_of(uuid), 1);
        px_route_send(broadcast->route, copy);
    }
    px_buf_fini(&header);
    px_buf_fini(&metadata);
}

/* One reply for a collection, and for what does not say whom it is for; else one for each that can
 * be told from the request. */
static void refuse(struct px_broadcast *broadcast, const struct px_msg *msg,
                   const struct request *request, const char *why)
{
    struct px_span client = px_msg_ident(msg, 0), none = {0};
    struct px_session *session = broadcast->shared.session;
    struct px_buf header = {0};
    bool each = request->targets != NULL && !request->coalescing &&
                is_bounded(request, px_msg_header(msg).size);
    if (!each)
        px_port_send(&broadcast->in,
                     px_error_reply(session, client, none, px_msg_header(msg), "ValueError", why));
    for (size_t i = 0; each && i < json_array_size(request->targets); i++) {
        const char *uuid =
            json_string_value(json_array_get(json_array_get(request->targets, i), 0));
        if (uuid == NULL)
            continue;
        write_header(&header, px_msg_header(msg), request->header.msg_id, uuid);
        px_port_send(&broadcast->in, px_error_reply(session, client, none, px_buf_span(&header),
                                                    "ValueError", why));
    }
    px_buf_fini(&header);
}

static void on_request(void *ctx, struct px_msg **msg)
{
    struct px_broadcast *broadcast = ctx;
    struct request request = {0};
    struct px_error err;
    if (read_request(*msg, &request, &err) == 0 && check_request(*msg, &request, &err) == 0) {
        if (request.coalescing && json_array_size(request.targets) > 0)
            collect(broadcast, px_msg_ident(*msg, 0), &request);
        send_to_all(broadcast, *msg, &request);
    } else {
        broadcast->refused++;
        px_log_limited(&broadcast->in.limiter, PX_WARN, "broadcast-refused",
                       "dropped=%lu why=\"%s\"", broadcast->refused, err.text);
        if (request.header.msg_id.size > 0)
            refuse(broadcast, *msg, &request, err.text);
    }
    free(request.metadata);
    json_decref(request.targets);
}

/* ---- replies --------------------------------------------------------------- */

static bool is_error(const struct px_msg *reply)
{
    return !px_span_equal(px_scan_member(px_msg_content(reply), "status"), "ok");
}

/* The metadata of one reply with the list of all targets, in the order of the buffers. */
static char *merged_metadata(const struct collection *collection, const struct px_msg *last)
{
    json_t *metadata = px_json_parse(px_msg_metadata(last), NULL);
    json_t *list = json_array();
    for (size_t i = 0; i < collection->count; i++) {
        const struct target *target = &collection->targets[i];
        json_array_append_new(list, json_pack("[sI]", target->uuid, target->id));
    }
    if (metadata == NULL)
        metadata = json_object();
    json_object_set_new(metadata, "broadcast_targets", list);
    char *text = json_dumps(metadata, 0);
    json_decref(metadata);
    return text;
}

/* All are there: `last` completed the collection. Shown is the first that is an error, or else it.
 */
static void deliver(struct px_broadcast *broadcast, struct collection *collection,
                    const struct px_msg *last)
{
    bool failed = is_error(last);
    for (size_t i = 0; i < collection->count && !failed; i++) {
        failed = is_error(collection->targets[i].reply);
        if (failed)
            last = collection->targets[i].reply;
    }
    char *metadata = merged_metadata(collection, last);
    struct px_msg *out = px_msg_create();
    px_msg_append_frames(out, last, 0, px_msg_first_buffer(last));
    for (size_t i = 0; i < collection->count && !failed; i++) {
        const struct px_msg *reply = collection->targets[i].reply;
        px_msg_append_frames(out, reply, px_msg_first_buffer(reply), px_msg_buffer_count(reply));
    }
    if (metadata != NULL && px_msg_locate(out, NULL) == 0) {
        px_msg_replace(out, px_msg_ident_count(out) + 4, metadata, strlen(metadata));
        px_session_resign(broadcast->shared.session, out);
        px_port_send(&broadcast->in, out);
        out = NULL;
    }
    px_msg_destroy(out);
    free(metadata);
    free_collection(broadcast, collection);
}

/* `msg` has the client in front; `uuid` is whose reply it is. */
static void add_reply(struct px_broadcast *broadcast, struct px_span uuid, struct px_span original,
                      struct px_msg **msg)
{
    struct px_buf key = make_key(px_msg_ident(*msg, 0), original);
    struct collection *collection;
    HASH_FIND(hh, broadcast->collections, key.data, key.size, collection);
    px_buf_fini(&key);
    struct target *target = collection ? find_target(collection, uuid) : NULL;
    if (target == NULL || target->reply != NULL) {
        broadcast->out.unroutable++;
        return;
    }
    size_t bytes = px_msg_bytes(*msg);
    collection->frames += px_msg_buffer_count(*msg);
    collection->bytes += bytes;
    broadcast->bytes += bytes;
    target->reply = *msg;
    *msg = NULL;
    if (collection->frames > MAX_COLLECTED_FRAMES || broadcast->bytes > MAX_COLLECTED_BYTES)
        fail_collection(broadcast, collection, "ValueError",
                        "the replies are too large for one message: broadcast without coalescing");
    else if (--collection->missing == 0)
        deliver(broadcast, collection, target->reply);
}

static void on_reply(void *ctx, struct px_msg **msg)
{
    static const char *const keys[] = {"original_msg_id", "is_coalescing"};
    struct px_broadcast *broadcast = ctx;
    struct px_span values[2], original;
    char uuid[PX_MAX_UUID + 1];
    struct px_span engine = px_msg_ident(*msg, 0);
    px_traffic_broadcast(broadcast->shared.traffic, engine, -1);
    if (px_scan(px_msg_metadata(*msg), keys, values, 2) != 0 || engine.size > PX_MAX_UUID) {
        broadcast->out.malformed++;
        return;
    }
    memcpy(uuid, engine.data, engine.size);
    engine.data = uuid;
    px_msg_drop_front(*msg, 1);
    if (px_scan_true(values[1]) && px_scan_string(values[0], &original)) {
        add_reply(broadcast, engine, original, msg);
        return;
    }
    px_port_send(&broadcast->in, *msg);
    *msg = NULL;
}

/* E | C | a request that did not get there: answered as if by the engine. */
static void on_unsent(void *ctx, const struct px_msg *request)
{
    struct px_broadcast *broadcast = ctx;
    struct px_span engine = px_msg_ident(request, 0), client = px_msg_ident(request, 1);
    struct px_buf content = {0};
    char *evalue = px_say_unsent(engine);
    px_error_content(&content, "EngineError", evalue);
    struct px_span idents[2] = {engine, client};
    struct px_draft draft = {.idents = idents,
                             .ident_count = 2,
                             .type = PX_APPLY_REPLY,
                             .parent = px_msg_header(request),
                             .metadata = px_msg_metadata(request),
                             .content = px_buf_span(&content)};
    struct px_msg *msg = px_session_build(broadcast->shared.session, &draft);
    on_reply(broadcast, &msg);
    px_msg_destroy(msg);
    px_buf_fini(&content);
    free(evalue);
}

/* ---- engines --------------------------------------------------------------- */

void px_broadcast_engine_down(struct px_broadcast *broadcast, struct px_span uuid)
{
    struct collection *collection, *next;
    px_port_drain(&broadcast->out);
    px_route_forget(broadcast->route, uuid);
    HASH_ITER(hh, broadcast->collections, collection, next) {
        const struct target *target = find_target(collection, uuid);
        if (target == NULL || target->reply != NULL)
            continue;
        free_collection(broadcast, collection);
        broadcast->dropped++;
    }
}

struct px_broadcast *px_broadcast_create(const struct px_shared *shared, struct px_socket *in,
                                         struct px_socket *out)
{
    struct px_broadcast *broadcast = px_alloc(sizeof(*broadcast));
    broadcast->shared = *shared;
    broadcast->in = (struct px_port){.name = "broadcast",
                                     .socket = in,
                                     .session = shared->session,
                                     .least_idents = 1,
                                     .handle = on_request,
                                     .ctx = broadcast};
    broadcast->out = broadcast->in;
    broadcast->out.socket = out;
    broadcast->out.least_idents = 2;
    broadcast->out.handle = on_reply;
    broadcast->route =
        px_route_create(shared->loop, &broadcast->out, shared->traffic, on_unsent, broadcast);
    px_port_watch(&broadcast->in, shared->loop);
    px_port_watch(&broadcast->out, shared->loop);
    return broadcast;
}

void px_broadcast_destroy(struct px_broadcast *broadcast)
{
    if (broadcast == NULL)
        return;
    struct collection *collection, *next;
    HASH_ITER(hh, broadcast->collections, collection, next)
        free_collection(broadcast, collection);
    px_route_destroy(broadcast->route);
    free(broadcast);
}

void px_broadcast_report(const struct px_broadcast *broadcast, json_t *report)
{
    px_port_report(&broadcast->in, "clients", report);
    px_port_report(&broadcast->out, "engines", report);
    json_object_set_new(report, "broadcast",
                        json_pack("{s:i, s:I, s:I}", "collecting",
                                  (int)HASH_COUNT(broadcast->collections), "refused",
                                  (json_int_t)broadcast->refused, "dropped",
                                  (json_int_t)broadcast->dropped));
}
