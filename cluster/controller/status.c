/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * status: how the controller is, as a query (protocol.h) and as lines of the log for SIGUSR1. The
 * traffic thread is asked for what it counts; to that the hub adds engines, tasks and database.
 */
#include "hub.h"

#include "protocol.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST_DEATHS 100

void px_on_status_request(const struct px_request *request)
{
    struct px_order order = {.kind = PX_ORDER_REPORT, .msg = px_msg_copy(request->msg)};
    px_link_order(request->hub->link, &order);
}

/* ---- what the hub knows ---------------------------------------------------- */

static void set_or_null(json_t *object, const char *key, json_t *value)
{
    json_object_set_new(object, key, value ? json_incref(value) : json_null());
}

/* The tags among what an engine announced. */
static json_t *tags_of(const json_t *features)
{
    size_t i;
    json_t *feature, *tags = json_array();
    json_array_foreach(features, i, feature) {
        const char *text = json_string_value(feature);
        if (text != NULL && strncmp(text, PX_TAG, strlen(PX_TAG)) == 0)
            json_array_append_new(tags, json_string(text + strlen(PX_TAG)));
    }
    return tags;
}

static json_t *describe_engine(const struct px_member *member, int64_t now_ms)
{
    json_t *engine =
        json_pack("{s:i, s:s, s:f, s:I, s:I, s:I, s:o}", "id", member->id, "uuid", member->uuid,
                  "since_s", (double)(now_ms - member->joined_ms) / 1e3, "queue",
                  (json_int_t)member->queue_count, "tasks", (json_int_t)member->task_count,
                  "completed", (json_int_t)member->completed, "tags", tags_of(member->names));
    set_or_null(engine, "host", json_object_get(member->where, "host"));
    set_or_null(engine, "pid", json_object_get(member->where, "pid"));
    return engine;
}

static void add_engines(const struct px_hub *hub, json_t *status)
{
    int64_t now_ms = px_now_ms();
    json_t *engines = json_array(), *deaths = json_array();
    struct px_member *member, *next;
    HASH_ITER(hh, hub->by_id, member, next) {
        if (member->alive)
            json_array_append_new(engines, describe_engine(member, now_ms));
        else if (member->cause != NULL)
            json_array_append_new(deaths,
                                  json_pack("{s:i, s:s, s:s, s:f}", "id", member->id, "uuid",
                                            member->uuid, "cause", member->cause, "ago_s",
                                            (double)(now_ms - member->left_ms) / 1e3));
        if (json_array_size(deaths) > MOST_DEATHS)
            json_array_remove(deaths, 0);
    }
    json_object_set_new(status, "engines", engines);
    json_object_set_new(status, "deaths", deaths);
    json_object_set_new(status, "registering", json_integer((json_int_t)px_hub_pending_count(hub)));
}

static void add_tasks(const struct px_hub *hub, json_t *status)
{
    json_t *tasks = json_object_get(status, "tasks");
    size_t direct = 0;
    for (const struct px_member *member = hub->by_id; member != NULL; member = member->hh.next)
        direct += member->queue_count;
    if (tasks == NULL) { /* the scheme "pure" keeps no books */
        tasks = json_object();
        json_object_set_new(status, "tasks", tasks);
    }
    json_object_set_new(tasks, "direct", json_integer((json_int_t)direct));
    json_object_set_new(tasks, "unassigned", json_integer((json_int_t)hub->unassigned_count));
}

static json_int_t resident_bytes(void)
{
    long long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    if (file != NULL && fscanf(file, "%*d %lld", &pages) != 1)
        pages = 0;
    if (file != NULL)
        fclose(file);
    return (json_int_t)pages * sysconf(_SC_PAGESIZE);
}

static void add_rest(const struct px_hub *hub, json_t *status)
{
    static const char *const kinds[] = {
        [PX_DB_MEMORY] = "memory", [PX_DB_NONE] = "none", [PX_DB_SQLITE] = "sqlite"};
    const struct px_settings *settings = hub->settings;
    json_object_set_new(status, "version", json_string(PX_VERSION));
    json_object_set_new(status, "pid", json_integer(getpid()));
    json_object_set_new(status, "uptime_s",
                        json_real((double)(px_now_ms() - hub->started_ms) / 1e3));
    json_object_set_new(status, "scheme", json_string(settings->scheme));
    json_object_set_new(status, "adapt", px_adapt_list(hub));
    json_object_set_new(status, "curve", json_boolean(hub->sockets->curve_secret[0] != 0));
    json_object_set_new(status, "memory",
                        json_pack("{s:I, s:I}", "resident_bytes", resident_bytes(), "unread_bytes",
                                  (json_int_t)px_unread_bytes(hub->sockets->unread)));
    json_object_set_new(status, "database",
                        json_pack("{s:s, s:I, s:I, s:I}", "kind", kinds[settings->db], "records",
                                  (json_int_t)px_db_count(hub->db), "bytes",
                                  (json_int_t)px_db_bytes(hub->db), "lost",
                                  (json_int_t)px_db_lost(hub->db)));
    json_array_append_new(
        json_object_get(status, "sockets"),
        json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "name", "query", "side", "both",
                  "messages", (json_int_t)hub->requests, "bytes", (json_int_t)hub->request_bytes,
                  "malformed", (json_int_t)(hub->malformed + px_socket_broken(hub->sockets->query)),
                  "bad_signatures", (json_int_t)hub->forged, "oversized",
                  (json_int_t)px_socket_oversized(hub->sockets->query), "dropped",
                  (json_int_t)hub->refused));
}

/* ---- as lines of the log --------------------------------------------------- */

static void log_object(const char *event, const json_t *object)
{
    struct px_buf line = {0};
    const char *key;
    json_t *value;
    px_buf_text(&line, "");
    json_object_foreach((json_t *)object, key, value) {
        char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6));
        px_buf_printf(&line, "%s%s=%s", line.size ? " " : "", key, text ? text : "?");
        free(text);
    }
    px_log(PX_INFO, event, "%s", line.data);
    px_buf_fini(&line);
}

/* A list gives a line an item, under its name without the s; plain values share a line. */
static void log_status(const json_t *status)
{
    const char *key;
    json_t *value, *item;
    json_t *plain = json_object();
    size_t i;
    json_object_foreach((json_t *)status, key, value) {
        char event[32];
        snprintf(event, sizeof(event), "%.*s", (int)strlen(key) - json_is_array(value), key);
        if (json_is_object(value))
            log_object(event, value);
        else if (!json_is_array(value))
            json_object_set(plain, key, value);
        json_array_foreach(value, i, item)
            log_object(event, item);
    }
    log_object("controller", plain);
    json_decref(plain);
}

void px_status_note(struct px_hub *hub, const struct px_note *note)
{
    json_t *status = px_json_parse(px_span_of(note->text), NULL);
    if (status == NULL)
        return;
    add_engines(hub, status);
    add_tasks(hub, status);
    add_rest(hub, status);
    if (note->msg == NULL) {
        log_status(status);
        json_decref(status);
        return;
    }
    struct px_request request = {.hub = hub, .msg = note->msg};
    json_object_set_new(status, "status", json_string("ok"));
    px_request_reply(&request, PX_STATUS_REPLY, status, NULL);
}
