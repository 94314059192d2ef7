/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * member: which engines there are, from a request to be registered to the end.
 *
 * An engine asks to be registered and is given a number; it is registered when its heart is
 * heard for the first time, and only then is anybody told: the traffic thread first, so that
 * what a client sends at once is delivered, then the clients. It is unregistered when it asks,
 * when its nanny or its iopub says that it ends, or when its heart stops.
 *
 * Who is registered is written to a file, from which --restore takes the engines back.
 */
#include "hub.h"

#include "protocol.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#define SWEEP_MS 500
#define GREET_MS 5000 /* between a client's question and its subscription */
#define SAVE_DELAY_MS 50
#define STRANDED_MS 5000      /* how long a dead engine's direct tasks wait for a late reply */
#define MAX_DEAD 10000        /* engines that are gone and still listed */
#define MAX_HOST 255          /* characters of a name */
#define MAX_PENDING 100000    /* registrations at a time */
#define MAX_WANTED 1000000000 /* an id that an engine may ask for: all others come behind it */
#define MAX_STATE_FILE (64u << 20)

struct px_pending {
    int id;
    unsigned features;
    json_t *names, *where;
    int64_t until_ms;
    UT_hash_handle hh, hh_id;
    char uuid[];
};

/* ---- members ------------------------------------------------------ */

struct px_member *px_hub_member(const struct px_hub *hub, struct px_span uuid)
{
    struct px_member *member;
    HASH_FIND(hh_uuid, hub->by_uuid, uuid.data, uuid.size, member);
    return member;
}

struct px_member *px_hub_member_id(const struct px_hub *hub, int id)
{
    struct px_member *member;
    HASH_FIND_INT(hub->by_id, &id, member);
    return member;
}

/* ---- the state file -------------------------------------------------------- */

void px_members_list(const struct px_hub *hub, json_t *out)
{
    json_t *engines = json_object(), *features = json_object();
    struct px_member *member, *next;
    HASH_ITER(hh, hub->by_id, member, next) {
        char id[16];
        snprintf(id, sizeof(id), "%d", member->id);
        if (!member->alive)
            continue;
        json_object_set_new(engines, id, json_string(member->uuid));
        if (member->names != NULL)
            json_object_set(features, id, member->names);
    }
    json_object_set_new(out, "engines", engines);
    json_object_set_new(out, "px_engines", features);
}

void px_hub_save(struct px_hub *hub)
{
    json_t *state =
        json_pack("{s:i, s:I}", "next_id", hub->next_id, "px_since", (json_int_t)hub->since_us);
    px_members_list(hub, state);
    char *text = json_dumps(state, 0);
    struct px_error err;
    if (text != NULL &&
        px_file_write(hub->sockets->engines_path, 0600, px_span_of(text), &err) != 0)
        px_log(PX_WARN, "state-unsaved", "why=\"%s\"", err.text);
    free(text);
    json_decref(state);
}

static void on_save(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct px_hub *hub = ctx;
    hub->save = NULL;
    px_hub_save(hub);
}

/* Soon, once for many: a thousand engines that come together are one write. */
static void save_soon(struct px_hub *hub)
{
    if (hub->save == NULL)
        hub->save = px_loop_timer(hub->loop, SAVE_DELAY_MS, 0, on_save, hub);
}

/* ---- notifications --------------------------------------------------------- */

void px_hub_notify(struct px_hub *hub, const char *type, json_t *content, struct px_span parent)
{
    struct px_draft draft = {.type = type, .parent = parent};
    px_hub_send(hub, hub->sockets->notification, &draft, content);
}

static void order_engine(struct px_hub *hub, enum px_order_kind kind,
                         const struct px_member *member)
{
    struct px_order order = {.kind = kind,
                             .id = member->id,
                             .features = member->features,
                             .cause = px_strdup(member->cause),
                             .running = px_strdup(member->running),
                             .begun = member->begun};
    memcpy(order.uuid, member->uuid, strlen(member->uuid));
    px_link_order(hub->link, &order);
}

/* ---- becoming a member, and ceasing to be one ------------------------------ */

static void free_member(struct px_hub *hub, struct px_member *member)
{
    HASH_DEL(hub->by_id, member);
    while (member->queue != NULL)
        px_hub_unbook(hub, member->queue);
    while (member->tasks != NULL)
        px_hub_unbook(hub, member->tasks);
    json_decref(member->names);
    free(member->cause);
    json_decref(member->where);
    free(member->running);
    free(member);
}

/* The list of the dead is bounded: the oldest without unfinished tasks go. */
static void forget_dead(struct px_hub *hub)
{
    struct px_member *member, *next;
    HASH_ITER(hh, hub->by_id, member, next) {
        if (hub->dead <= MAX_DEAD)
            return;
        if (member->alive || member->is_leaving || member->queue != NULL || member->tasks != NULL)
            continue;
        free_member(hub, member);
        hub->dead--;
    }
}

/* Who starts and ends it, if somebody does: within `names`. */
static const char *find_adapt(const json_t *names)
{
    for (size_t i = 0; i < json_array_size(names); i++) {
        const char *name = json_string_value(json_array_get(names, i));
        if (name != NULL && strncmp(name, PX_ADAPT, strlen(PX_ADAPT)) == 0)
            return name + strlen(PX_ADAPT);
    }
    return NULL;
}

static struct px_member *add_member(struct px_hub *hub, const char *uuid, int id, unsigned features,
                                    json_t *names)
{
    struct px_member *member = px_alloc(sizeof(*member) + strlen(uuid) + 1);
    strcpy(member->uuid, uuid);
    member->id = id;
    member->alive = true;
    member->joined_ms = member->idle_ms = px_now_ms();
    member->features = features;
    member->names = json_incref(names);
    member->adapt = find_adapt(names);
    HASH_ADD_INT(hub->by_id, id, member);
    HASH_ADD_KEYPTR(hh_uuid, hub->by_uuid, member->uuid, strlen(member->uuid), member);
    order_engine(hub, PX_ORDER_ENGINE_UP, member);
    px_adapt_worked(hub, member);
    return member;
}

static json_t *describe_member(const struct px_member *member)
{
    json_t *content = json_pack("{s:i, s:s}", "id", member->id, "uuid", member->uuid);
    if (member->names != NULL)
        json_object_set_new(content, "px", json_pack("{s:O}", "features", member->names));
    return content;
}

static void free_pending(struct px_hub *hub, struct px_pending *pending)
{
    HASH_DEL(hub->pending, pending);
    HASH_DELETE(hh_id, hub->pending_ids, pending);
    json_decref(pending->names);
    json_decref(pending->where);
    free(pending);
}

static struct px_pending *find_pending(const struct px_hub *hub, struct px_span uuid)
{
    struct px_pending *pending;
    HASH_FIND(hh, hub->pending, uuid.data, uuid.size, pending);
    return pending;
}

static struct px_pending *find_pending_id(const struct px_hub *hub, int id)
{
    struct px_pending *pending;
    HASH_FIND(hh_id, hub->pending_ids, &id, sizeof(id), pending);
    return pending;
}

void px_hub_new_heart(struct px_hub *hub, struct px_span uuid)
{
    struct px_pending *pending = find_pending(hub, uuid);
    if (pending == NULL) {
        px_log(PX_DEBUG, "heart-ignored", "engine=%.*s", (int)uuid.size, uuid.data);
        return;
    }
    struct px_member *member =
        add_member(hub, pending->uuid, pending->id, pending->features, pending->names);
    member->where = json_incref(pending->where);
    free_pending(hub, pending);
    px_hub_notify(hub, PX_REGISTRATION_NOTIFICATION, describe_member(member), (struct px_span){0});
    px_log(PX_INFO, "engine-registered", "id=%d engine=%s", member->id, member->uuid);
    save_soon(hub);
}

/* A client of ipyparallel asks who is there and only then subscribes: it would not hear of an
 * engine that registers in between, ever. To those that know of it already this is no news. */
void px_hub_greet(struct px_hub *hub)
{
    const int64_t since_ms = px_now_ms() - GREET_MS;
    struct px_member *member, *next;
    HASH_ITER(hh, hub->by_id, member, next) {
        if (member->alive && member->joined_ms > since_ms)
            px_hub_notify(hub, PX_REGISTRATION_NOTIFICATION, describe_member(member),
                          (struct px_span){0});
    }
}

static void start_sweep(struct px_hub *hub);

void px_hub_unregister(struct px_hub *hub, struct px_member *member, const char *cause)
{
    if (!member->alive)
        return;
    member->alive = false;
    member->cause = px_strdup(cause);
    member->left_ms = px_now_ms();
    HASH_DELETE(hh_uuid, hub->by_uuid, member);
    order_engine(hub, PX_ORDER_ENGINE_DOWN, member);
    px_adapt_worked(hub, member);
    px_hub_take_leave(hub, member);
    px_log(PX_INFO, "engine-unregistered", "id=%d engine=%s%s%s%s", member->id, member->uuid,
           cause ? " why=\"" : "", cause ? cause : "", cause ? "\"" : "");
    hub->dead++;
    forget_dead(hub);
    save_soon(hub);
    start_sweep(hub);
}

/* ---- sweeping: registrations that stall, direct tasks that nobody will answer --- */

static void give_up_job(struct px_hub *hub, struct px_member *member, struct px_job *job)
{
    struct px_record *record = px_db_get(hub->db, px_span_of(job->msg_id));
    px_history_set(hub->finished, px_span_of(job->msg_id), PX_SUCCEEDED, 0);
    if (record != NULL && record->reply == NULL) {
        char *evalue = px_hub_say_lost(member, job->msg_id);
        px_record_lose(record, px_span_of(member->uuid), "EngineError", evalue);
        px_hub_changed(hub, record);
        free(evalue);
    }
    px_hub_unbook(hub, job);
}

static bool sweep_member(struct px_hub *hub, struct px_member *member, int64_t now_ms)
{
    if (member->alive || member->queue == NULL)
        return false;
    if (now_ms - member->left_ms < STRANDED_MS)
        return true;
    while (member->queue != NULL)
        give_up_job(hub, member, member->queue);
    return false;
}

/* The longest waiting come first. */
static void sweep_pending(struct px_hub *hub, int64_t now_ms)
{
    unsigned before = HASH_COUNT(hub->pending);
    if (before == 0 || hub->pending->until_ms > now_ms)
        return;
    char *first = px_format("id=%d engine=%s", hub->pending->id, hub->pending->uuid);
    while (hub->pending != NULL && hub->pending->until_ms <= now_ms)
        free_pending(hub, hub->pending);
    px_log(PX_WARN, "registration-stalled", "%s count=%u", first,
           before - HASH_COUNT(hub->pending));
    free(first);
}

static void on_sweep(struct px_loop *loop, void *ctx)
{
    struct px_hub *hub = ctx;
    int64_t now_ms = px_now_ms();
    sweep_pending(hub, now_ms);
    bool busy = hub->pending != NULL;
    struct px_member *member, *after;
    HASH_ITER(hh, hub->by_id, member, after)
        busy |= sweep_member(hub, member, now_ms);
    if (busy)
        return;
    px_loop_cancel(loop, hub->sweep);
    hub->sweep = NULL;
}

static void start_sweep(struct px_hub *hub)
{
    if (hub->sweep == NULL)
        hub->sweep = px_loop_timer(hub->loop, SWEEP_MS, SWEEP_MS, on_sweep, hub);
}

/* ---- requests of engines --------------------------------------------------- */

/* Whether a number is taken, by a member or by a registration that is under way. */
static bool is_taken(const struct px_hub *hub, int id)
{
    /* Alive, or dead and remembered: a number means one engine. */
    return px_hub_member_id(hub, id) != NULL || find_pending_id(hub, id) != NULL;
}

static int choose_id(struct px_hub *hub, const json_t *wanted)
{
    json_int_t id = json_is_integer(wanted) ? json_integer_value(wanted) : -1;
    if (id < 0 || id > MAX_WANTED || is_taken(hub, (int)id))
        return hub->next_id++;
    if ((int)id >= hub->next_id)
        hub->next_id = (int)id + 1;
    return (int)id;
}

static json_t *connection_info(const struct px_cluster_connection *file)
{
    json_t *leaves = json_array();
    for (size_t i = 0; i < file->broadcast_count; i++)
        json_array_append_new(leaves, json_integer(file->broadcast[i]));
    return json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:o}", "interface", file->interface,
                     "registration", file->registration, "control", file->control, "mux", file->mux,
                     "task", file->task, "iopub", file->iopub, "hb_ping", file->hb_ping, "hb_pong",
                     file->hb_pong, "broadcast", leaves);
}

/* A list ["pickle5", ...]: what an engine understands beyond the common protocol. NULL for none. */
static json_t *read_features(json_t *names, unsigned *features)
{
    static const struct {
        const char *name;
        unsigned bit;
    } known[] = {{"pickle5", PX_FEATURE_PICKLE5},
                 {"recall", PX_FEATURE_RECALL},
                 {"again", PX_FEATURE_AGAIN}};
    *features = 0;
    if (!json_is_array(names) || json_array_size(names) > 64)
        return NULL;
    for (size_t i = 0; i < json_array_size(names); i++) {
        const char *name = json_string_value(json_array_get(names, i));
        for (size_t k = 0; k < PX_COUNT(known); k++) {
            if (name != NULL && strcmp(name, known[k].name) == 0)
                *features |= known[k].bit;
        }
    }
    if (find_adapt(names) != NULL)
        *features |= PX_FEATURE_ADAPT;
    return names;
}

/* {"host": ..., "pid": ...} of what it says about itself; NULL for nothing. */
static json_t *read_where(const json_t *px)
{
    json_t *host = json_object_get(px, "host"), *pid = json_object_get(px, "pid");
    json_t *where = json_object();
    if (json_is_string(host) && json_string_length(host) <= MAX_HOST)
        json_object_set(where, "host", host);
    if (json_is_integer(pid) && json_integer_value(pid) > 0)
        json_object_set(where, "pid", pid);
    if (json_object_size(where) > 0)
        return where;
    json_decref(where);
    return NULL;
}

static void add_pending(struct px_hub *hub, const char *uuid, int id, const json_t *content)
{
    struct px_pending *pending = px_alloc(sizeof(*pending) + strlen(uuid) + 1);
    strcpy(pending->uuid, uuid);
    pending->id = id;
    json_t *names = json_object_get(json_object_get(content, "px"), "features");
    pending->names = json_incref(read_features(names, &pending->features));
    pending->where = read_where(json_object_get(content, "px"));
    pending->until_ms = px_now_ms() + hub->registration_timeout_ms;
    HASH_ADD_KEYPTR(hh, hub->pending, pending->uuid, strlen(pending->uuid), pending);
    HASH_ADD(hh_id, hub->pending_ids, id, sizeof(id), pending);
    struct px_order order = {.kind = PX_ORDER_EXPECT_NEWS};
    memcpy(order.uuid, uuid, strlen(uuid));
    px_link_order(hub->link, &order);
    start_sweep(hub);
}

static bool is_uuid(const json_t *value)
{
    const char *text = json_string_value(value);
    size_t size = json_string_length(value);
    if (text == NULL || size == 0 || size > PX_MAX_UUID || strlen(text) != size)
        return false;
    for (size_t i = 0; i < size; i++) {
        if (text[i] <= ' ' || text[i] > '~')
            return false;
    }
    return true;
}

/* It has an empty parent, as ipyparallel's. */
static void reply_registration(const struct px_request *request, json_t *content)
{
    struct px_draft draft = {.idents_of = request->msg, .type = PX_REGISTRATION_REPLY};
    px_hub_send(request->hub, request->hub->sockets->query, &draft, content);
}

static void refuse_uuid(const struct px_request *request, const char *uuid)
{
    struct px_buf what = {0}, evalue = {0};
    px_buf_printf(&what, "uuid '%s' in use", uuid);
    px_repr(&evalue, what.data);
    reply_registration(request, px_error_json("KeyError", evalue.data));
    px_log_limited(&request->hub->limiter, PX_WARN, "registration-refused",
                   "engine=%s why=\"in use\"", uuid);
    px_buf_fini(&what);
    px_buf_fini(&evalue);
}

static void accept_engine(const struct px_request *request, const char *uuid, int id)
{
    struct px_hub *hub = request->hub;
    add_pending(hub, uuid, id, request->content);
    reply_registration(request, json_pack("{s:i, s:s, s:i, s:o, s:b}", "id", id, "status", "ok",
                                          "hb_period", hub->settings->ping_ms, "connection_info",
                                          connection_info(&hub->sockets->engine), PX_BUNDLES, 1));
}

void px_on_registration_request(const struct px_request *request)
{
    struct px_hub *hub = request->hub;
    const json_t *uuid = json_object_get(request->content, "uuid");
    const json_t *wanted = json_object_get(request->content, "id");
    if (uuid == NULL) {
        px_log_limited(&hub->limiter, PX_WARN, "registration-refused", "why=\"no uuid\"");
        return;
    }
    if (wanted != NULL && !json_is_integer(wanted) && !json_is_null(wanted)) {
        px_request_fail(request, "hub_error", "TypeError", "an engine's id must be an integer");
        return;
    }
    if (!is_uuid(uuid)) {
        px_request_fail(request, "hub_error", "ValueError", "an engine's uuid must be ASCII");
        return;
    }
    if (HASH_COUNT(hub->pending) >= MAX_PENDING) {
        px_request_fail(request, "hub_error", "RuntimeError", "too many engines register at once");
        return;
    }
    struct px_span name = px_span_of(json_string_value(uuid));
    struct px_pending *pending = find_pending(hub, name);
    json_t *where = read_where(json_object_get(request->content, "px"));
    bool same = pending && json_equal(pending->where, where); /* it had no reply: asks again */
    json_decref(where);
    int id = same ? pending->id : choose_id(hub, wanted);
    if (same)
        free_pending(hub, pending);
    if (px_hub_member(hub, name) != NULL || (pending && !same))
        refuse_uuid(request, name.data);
    else
        accept_engine(request, name.data, id);
}

#define MOST_CAUSE 500

/* A phrase; NULL for none. */
static char *read_cause(const json_t *why)
{
    const char *text = json_string_value(json_object_get(why, "cause"));
    if (text == NULL || text[0] == 0)
        return NULL;
    return px_strndup(text, px_text_cut(text, strlen(text), MOST_CAUSE));
}

/* {"cause", "running", "begun"}, as a nanny says it (engine/nanny.c). */
static void lose_member(struct px_hub *hub, struct px_member *member, const json_t *why)
{
    char *cause = read_cause(why);
    const json_t *running = json_object_get(why, "running");
    const json_int_t begun = json_integer_value(json_object_get(why, "begun"));
    if (json_string_length(running) <= PX_MAX_MSG_ID)
        member->running = px_strdup(json_string_value(running));
    if (begun > 0 && begun <= INT32_MAX)
        member->begun = (int)begun;
    px_hub_unregister(hub, member, cause);
    free(cause);
}

void px_on_unregistration_request(const struct px_request *request)
{
    struct px_hub *hub = request->hub;
    const json_t *id = json_object_get(request->content, "id");
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
        return;
    struct px_member *member = px_hub_member_id(hub, (int)json_integer_value(id));
    if (member != NULL && member->alive) {
        lose_member(hub, member, json_object_get(request->content, "px"));
        return;
    }
    struct px_pending *pending = find_pending_id(hub, (int)json_integer_value(id));
    if (pending != NULL)
        free_pending(hub, pending);
}

/* ---- restoring ------------------------------------------------------------- */

static void restore_engine(struct px_hub *hub, const char *key, const json_t *uuid, json_t *names)
{
    char *end;
    long id = strtol(key, &end, 10);
    if (*end != 0 || end == key || id < 0 || id > MAX_WANTED || !is_uuid(uuid) ||
        px_hub_member_id(hub, (int)id) != NULL ||
        px_hub_member(hub, px_span_of(json_string_value(uuid))) != NULL) {
        px_log(PX_WARN, "restore-skipped", "id=%.20s", key);
        return;
    }
    unsigned features;
    names = read_features(names, &features);
    struct px_member *member = add_member(hub, json_string_value(uuid), (int)id, features, names);
    order_engine(hub, PX_ORDER_EXPECT, member);
    if ((int)id >= hub->next_id)
        hub->next_id = (int)id + 1;
}

int px_members_restore(struct px_hub *hub, struct px_error *err)
{
    struct px_buf text = {0};
    struct px_error why;
    if (px_file_read(hub->sockets->engines_path, MAX_STATE_FILE, &text, &why) != 0) {
        px_buf_fini(&text);
        if (why.code == PX_ENOENT)
            return 0;
        return px_fail(err, why.code, "%s", why.text);
    }
    json_t *state = px_json_parse(px_buf_span(&text), &why);
    px_buf_fini(&text);
    if (state == NULL)
        return px_fail(err, PX_EINVAL, "%s is not a list of engines", hub->sockets->engines_path);
    const char *id;
    json_t *uuid;
    json_object_foreach(json_object_get(state, "engines"), id, uuid)
        restore_engine(hub, id, uuid, json_object_get(json_object_get(state, "px_engines"), id));
    json_int_t next_id = json_integer_value(json_object_get(state, "next_id"));
    if (next_id > hub->next_id && next_id < INT32_MAX)
        hub->next_id = (int)next_id;
    const json_t *since = json_object_get(state, "px_since");
    if (json_is_integer(since) && json_integer_value(since) < hub->since_us)
        hub->since_us = json_integer_value(since);
    json_decref(state);
    return 0;
}

void px_members_fini(struct px_hub *hub)
{
    if (hub->save != NULL)
        px_hub_save(hub);
    struct px_member *member, *after;
    HASH_CLEAR(hh_uuid, hub->by_uuid);
    HASH_ITER(hh, hub->by_id, member, after)
        free_member(hub, member);
    while (hub->unassigned != NULL)
        px_hub_unbook(hub, hub->unassigned);
    struct px_pending *pending, *next;
    HASH_ITER(hh, hub->pending, pending, next)
        free_pending(hub, pending);
}

size_t px_hub_pending_count(const struct px_hub *hub)
{
    return HASH_COUNT(hub->pending);
}
