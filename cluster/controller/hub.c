/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hub: the hub thread's loop: requests, notes from the traffic thread, signals.
 *
 * Requests are verified, then found in a table: registration in member.c, queries in request.c
 * and request_db.c. A request that cannot be authenticated gets no answer; any other gets
 * one, if only hub_error. Notes are handled in bounded batches with requests in between, so
 * that a client is answered while traffic floods.
 */
#include "hub.h"

#include "protocol.h"

#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TIDY_MS 1000
#define SHUTDOWN_DELAY_MS 1000
#define LATE_FLUSH_MS 20
#define HISTORY_BYTES (2u << 20) /* a million ids */

/* ---- requests of clients --------------------------------------------------- */

static bool listens(const struct px_hub *hub, const char *topic)
{
    for (size_t i = 0; topic[0] != 0 && i < PX_LISTENERS; i++) {
        if (strcmp(hub->listeners[i], topic) == 0)
            return true;
    }
    return false;
}

static void on_connection_request(const struct px_request *request)
{
    const char *topic = json_string_value(json_object_get(request->content, "px_listener"));
    json_t *content = json_pack("{s:s}", "status", "ok");
    px_members_list(request->hub, content);
    json_object_set_new(content, PX_BUNDLES, json_true());
    if (topic != NULL)
        json_object_set_new(content, "px_listens", json_boolean(listens(request->hub, topic)));
    if (px_hub_sends_again(request->hub))
        json_object_set_new(content, "px_again", json_integer(request->hub->since_us));
    px_request_reply(request, PX_CONNECTION_REPLY, content, NULL);
    /* An engine that is not sure of its connections asks under its own name. */
    struct px_member *member = px_hub_member(request->hub, px_msg_ident(request->msg, 0));
    if (member != NULL)
        px_hub_probe(request->hub, member);
}

static void on_stop(struct px_loop *loop, void *ctx)
{
    (void)ctx;
    px_loop_stop(loop);
}

static void on_shutdown_request(const struct px_request *request)
{
    struct px_hub *hub = request->hub;
    px_log(PX_INFO, "shutdown-requested", NULL);
    px_request_reply(request, "shutdown_reply", json_pack("{s:s}", "status", "ok"), NULL);
    px_hub_notify(hub, PX_SHUTDOWN_NOTIFICATION, json_pack("{s:s}", "status", "ok"),
                  px_msg_header(request->msg));
    if (!hub->stopping)
        px_loop_timer(hub->loop, SHUTDOWN_DELAY_MS, 0, on_stop, hub);
    hub->stopping = true;
}

static const struct px_request_row own_requests[] = {
    {PX_REGISTRATION_REQUEST, px_on_registration_request},
    {PX_UNREGISTRATION_REQUEST, px_on_unregistration_request},
    {PX_CONNECTION_REQUEST, on_connection_request},
    {PX_SHUTDOWN_REQUEST, on_shutdown_request},
    {PX_WHY_REQUEST, px_on_why_request},
    {PX_STATUS_REQUEST, px_on_status_request},
    {PX_ADAPT_REQUEST, px_on_adapt_request},
    {NULL, NULL},
};

/* ---- receiving requests ---------------------------------------------------- */

static px_request_fn *find_handler(const struct px_request_row *rows, struct px_span type)
{
    for (; rows->type != NULL; rows++) {
        if (px_span_equal(type, rows->type))
            return rows->handle;
    }
    return NULL;
}

static void answer(struct px_request *request)
{
    px_request_fn *handle = find_handler(own_requests, request->type);
    if (handle == NULL)
        handle = find_handler(px_query_requests, request->type);
    if (handle == NULL)
        handle = find_handler(px_db_requests, request->type);
    if (handle != NULL) {
        handle(request);
        return;
    }
    char *what =
        px_format("\"Bad Message Type: '%.*s'\"", (int)request->type.size, request->type.data);
    request->hub->refused++;
    px_request_fail(request, "hub_error", "KeyError", what);
    free(what);
}

/* Counted, logged at most once a second, never answered. */
static void drop_request(struct px_hub *hub, unsigned long *counter, const char *event,
                         const char *why)
{
    ++*counter;
    px_log_limited(&hub->limiter, PX_WARN, event, "dropped=%lu why=\"%s\"", *counter, why);
}

static void take_request(struct px_hub *hub, struct px_msg *msg)
{
    struct px_error err;
    struct px_header header;
    hub->request_bytes += px_msg_bytes(msg);
    if (px_msg_locate(msg, &err) != 0) {
        drop_request(hub, &hub->malformed, "request-malformed", err.text);
        return;
    }
    if (px_session_verify(hub->session, msg, &err) != 0) {
        drop_request(hub, &hub->forged, "request-unauthorized", err.text);
        return;
    }
    if (px_msg_ident_count(msg) == 0 || px_header_scan(px_msg_header(msg), &header, &err) != 0) {
        drop_request(hub, &hub->malformed, "request-malformed", "no header of a request");
        return;
    }
    hub->requests++;
    struct px_request request = {.hub = hub, .msg = msg, .type = header.msg_type};
    request.content = px_json_parse(px_msg_content(msg), &err);
    px_log(PX_DEBUG, "request", "type=%.*s", (int)header.msg_type.size, header.msg_type.data);
    if (request.content != NULL)
        answer(&request);
    else
        px_request_fail(&request, "hub_error", "ValueError", err.text);
    json_decref(request.content);
}

/* Memory that traffic needed goes back to the system: that of large messages when no more have
 * come for a while, the rest when it has stopped. */
static void on_tidy(struct px_loop *loop, void *ctx)
{
    struct px_hub *hub = ctx;
    const bool warm = px_blocks_cool(PX_BLOCKS_WARM_MS) > 0;
    if (hub->noted) {
        hub->noted = false;
        return;
    }
    if (!px_db_tidy(hub->db) || warm)
        return;
    px_loop_cancel(loop, hub->tidy);
    hub->tidy = NULL;
    malloc_trim(0);
}

static void start_tidying(struct px_hub *hub)
{
    hub->noted = true;
    if (hub->tidy == NULL)
        hub->tidy = px_loop_timer(hub->loop, TIDY_MS, TIDY_MS, on_tidy, hub);
}

/* One batch of copies. False when there is none. */
static bool take_notes(struct px_hub *hub)
{
    struct px_notes *notes = px_doorbell_take(hub->link->to_hub);
    if (notes == NULL)
        return false;
    for (size_t i = 0; i < notes->count; i++)
        px_monitor_note(hub, &notes->items[i]);
    px_link_notes_done(hub->link, notes);
    start_tidying(hub);
    return true;
}

/* Who asks has had his replies already: what is known of them comes first. What the traffic thread
 * has noted and not posted is waited for, by sending the request round through that thread; not
 * when the hub is behind anyway. */
static bool must_return(struct px_hub *hub)
{
    if (px_link_is_crowded(hub->link))
        return hub->returning > 0;
    const bool gathering = px_link_is_gathering(hub->link);
    for (int i = 0; i < PX_LOOP_BATCH && take_notes(hub); i++)
        ;
    return gathering || hub->returning > 0; /* in the order in which they came */
}

static void take_requests(struct px_hub *hub)
{
    struct px_msg *msg;
    for (int i = 0; i < PX_LOOP_BATCH && (msg = px_socket_recv(hub->sockets->query)) != NULL; i++) {
        if (must_return(hub)) {
            hub->returning++;
            px_link_order(hub->link, &(struct px_order){.kind = PX_ORDER_RETURN, .msg = msg});
            continue;
        }
        take_request(hub, msg);
        px_msg_destroy(msg);
    }
}

void px_hub_query(struct px_hub *hub, const struct px_note *note)
{
    hub->returning--;
    take_request(hub, note->msg);
}

static void on_flush(struct px_loop *loop, void *ctx)
{
    struct px_hub *hub = ctx;
    hub->flush = NULL;
    if (!px_db_flush(hub->db)) /* the disk is behind */
        hub->flush = px_loop_timer(loop, LATE_FLUSH_MS, 0, on_flush, hub);
}

/* One write for all changes of some time: a task changes its record four times. */
void px_hub_changed(struct px_hub *hub, struct px_record *record)
{
    px_db_changed(hub->db, record);
    if (hub->store != NULL && hub->flush == NULL)
        hub->flush = px_loop_timer(hub->loop, hub->settings->commit_ms, 0, on_flush, hub);
}

/* A bounded number of batches a turn, so that requests are answered while traffic floods; the bell
 * rings on while there are more. */
static void on_notes(struct px_loop *loop, void *ctx)
{
    struct px_hub *hub = ctx;
    (void)loop;
    for (int i = 0; i < PX_LOOP_BATCH; i++) {
        if (!take_notes(hub))
            return;
        if (i % 4 == 3)
            take_requests(hub);
    }
}

static void on_query(struct px_loop *loop, void *ctx)
{
    (void)loop;
    take_requests(ctx);
}

/* 01 | topic: somebody subscribes to notifications. */
static void on_subscription(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct px_hub *hub = ctx;
    struct px_msg *msg;
    bool news = false;
    for (int i = 0; i < PX_LOOP_BATCH && (msg = px_socket_recv(hub->sockets->notification)); i++) {
        const struct px_span text = px_msg_frame(msg, 0);
        news = news || (text.size > 0 && text.data[0] == 1);
        px_msg_destroy(msg);
    }
    if (news)
        px_hub_greet(hub);
}

/* ---- signals --------------------------------------------------------------- */

/* Files that are kept are for one that comes in its place, and clients wait for that. */
static void on_end_signal(struct px_loop *loop, int signo, void *ctx)
{
    struct px_hub *hub = ctx;
    px_log(PX_INFO, "stopping", "signal=%d", signo);
    if (!hub->settings->reuse && !hub->stopping)
        px_hub_notify(hub, PX_UNREGISTRATION_NOTIFICATION,
                      json_pack("{s:i, s:b}", "id", -1, PX_GOODBYE, 1), (struct px_span){0});
    px_loop_stop(loop);
}

/* The traffic thread says what it knows, then all is logged: px_status_note(). */
static void on_summary_signal(struct px_loop *loop, int signo, void *ctx)
{
    (void)loop;
    (void)signo;
    struct px_hub *hub = ctx;
    px_link_order(hub->link, &(struct px_order){.kind = PX_ORDER_REPORT});
}

static const int ends[] = {SIGINT, SIGTERM, SIGABRT, SIGHUP};

/* The loop has them blocked, so that they wait until it looks. */
bool px_hub_is_ending(const struct px_hub *hub)
{
    sigset_t waiting;
    sigemptyset(&waiting);
    sigpending(&waiting);
    for (size_t i = 0; i < PX_COUNT(ends); i++) {
        if (sigismember(&waiting, ends[i]) == 1)
            return true;
    }
    return hub->stopping;
}

static int watch_signals(struct px_hub *hub, struct px_error *err)
{
    for (size_t i = 0; i < PX_COUNT(ends); i++) {
        if (px_loop_signal(hub->loop, ends[i], on_end_signal, hub, err) != 0)
            return -1;
    }
    return px_loop_signal(hub->loop, SIGUSR1, on_summary_signal, hub, err);
}

/* ---- create, run, destroy -------------------------------------------------- */

static int64_t registration_timeout(const struct px_settings *settings)
{
    if (settings->registration_timeout_s > 0)
        return (int64_t)settings->registration_timeout_s * 1000;
    int64_t beats = (int64_t)settings->ping_ms * 10;
    return beats > 30000 ? beats : 30000;
}

/* Since 1970, as dates in headers are compared. */
static int64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

struct px_hub *px_hub_create(struct px_sockets *sockets, struct px_link *link,
                             struct px_store *store, const struct px_settings *settings,
                             struct px_error *err)
{
    struct px_hub *hub = px_alloc(sizeof(*hub));
    hub->sockets = sockets;
    hub->link = link;
    hub->settings = settings;
    hub->registration_timeout_ms = registration_timeout(settings);
    hub->finished = px_history_create(HISTORY_BYTES);
    hub->store = store;
    hub->since_us = now_us();
    hub->started_ms = px_now_ms();
    hub->db = px_db_create((enum px_db_kind)settings->db, store, (size_t)settings->record_limit,
                           settings->size_limit, settings->cull_fraction);
    const struct px_cluster_connection *file = &sockets->client;
    hub->session = px_session_create(file->key, file->signature_scheme, settings->ident, err);
    hub->loop = px_loop_create();
    if (hub->session == NULL || watch_signals(hub, err) != 0) {
        px_hub_destroy(hub);
        return NULL;
    }
    if (!settings->restore)
        px_hub_save(hub); /* nobody yet, and from now on */
    px_loop_socket(hub->loop, px_socket_pollable(sockets->notification), on_subscription, hub);
    px_loop_socket(hub->loop, px_socket_pollable(sockets->query), on_query, hub);
    px_loop_fd(hub->loop, px_doorbell_fd(link->to_hub), on_notes, hub);
    return hub;
}

int px_hub_run(struct px_hub *hub, struct px_error *err)
{
    return px_loop_run(hub->loop, err);
}

void px_hub_drain(struct px_hub *hub)
{
    while (hub != NULL && take_notes(hub))
        ;
}

void px_hub_destroy(struct px_hub *hub)
{
    if (hub == NULL)
        return;
    px_scans_fini(hub);
    px_dask_destroy(hub->dask);
    px_adapt_destroy(hub->adapt);
    hub->adapt = NULL; /* members leave yet */
    px_members_fini(hub);
    px_history_destroy(hub->finished);
    px_db_destroy(hub->db);
    px_loop_destroy(hub->loop);
    px_session_destroy(hub->session);
    free(hub);
}
