/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * registrar: an engine and its hub.
 *
 *     NEW ── registration_reply ──▶ KNOWN ◀── the hub has us on its list ──┐
 *      │ refused, or time is up        │ connection lost, or long silence  │
 *      ▼                               ▼                                   │
 *     end                          DOUBTFUL ── connection_request ─▶ ──────┤
 *                                      └─ not on the list: registration_request, reply
 *
 * A controller may be restarted on the same ports. With its list of engines restored it knows this
 * one; else it has to be told. While in doubt an engine does not echo pings, because a hub counts
 * the first one it hears as the sign that a registration is complete, and passes over a heart
 * that it does not expect. It asks when a ping comes, for then there is a hub to ask.
 *
 * LIMIT: where the hub gives another id than before, topics keep the old one, and so does what
 * the language was told at its start.
 */
#include "parts.h"

#include "protocol.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ASK_AGAIN_MS 1000

static void send_hub(struct engine *engine, const char *type, const char *content)
{
    const struct px_draft draft = {.type = type, .content = px_span_of(content)};
    struct px_msg *msg = px_session_build(engine->session, &draft);
    if (px_socket_send(engine->sockets[REGISTRAR], &msg) != PX_SENT)
        px_msg_destroy(msg);
}

void px_registrar_leave(struct engine *engine)
{
    if (engine->left || !engine->sockets[REGISTRAR])
        return;
    engine->left = true;
    px_obituary_leave(engine->config->obituary);
    char *content =
        engine->id < 0 ? px_strdup("{\"id\": null}") : px_format("{\"id\": %d}", engine->id);
    send_hub(engine, PX_UNREGISTRATION_REQUEST, content);
    free(content);
}

static void on_registration_timeout(struct px_loop *loop, void *ctx)
{
    struct engine *engine = ctx;
    (void)loop;
    engine->deadline = NULL;
    px_log(PX_ERROR, "registration.failed",
           "why=\"the hub did not answer within %d ms: it is gone, or knows another key\"",
           engine->config->timeout_ms);
    px_registrar_leave(engine);
    px_engine_give_up(engine, 1);
}

/* What we understand beyond the common protocol, and the names that clients may call us by. */
static void write_features(const struct engine *engine, const char *host, struct px_buf *out)
{
    const struct px_interp_ops *ops = engine->config->ops;
    char *place = px_format(PX_HOST "%s", host);
    px_buf_printf(out, "[\"recall\", \"again\"%s%s%s%s, ", ops->features ? ", " : "",
                  ops->features ? ops->features : "", ops->trace ? ", \"stacks\"" : "",
                  engine->config->tags ? engine->config->tags : "");
    px_buf_json_string(out, place, strlen(place));
    if (engine->config->adapt) {
        char *owner = px_format(PX_ADAPT "%s", engine->config->adapt);
        px_buf_text(out, ", ");
        px_buf_json_string(out, owner, strlen(owner));
        free(owner);
    }
    px_buf_text(out, "]");
    free(place);
}

/* `wanted_id` -1: any. */
static void send_registration(struct engine *engine, int wanted_id)
{
    struct px_buf content = {0};
    char host[256] = "";
    if (gethostname(host, sizeof(host) - 1) < 0)
        host[0] = 0;
    px_buf_printf(&content, "{\"uuid\": \"%s\", \"px\": {\"features\": ", engine->uuid);
    write_features(engine, host, &content);
    px_buf_printf(&content, ", \"pid\": %ld, \"host\": ", (long)getpid());
    px_buf_json_string(&content, host, strlen(host));
    px_buf_text(&content, "}");
    if (wanted_id >= 0)
        px_buf_printf(&content, ", \"id\": %d", wanted_id);
    px_buf_text(&content, "}");
    send_hub(engine, PX_REGISTRATION_REQUEST, content.data);
    px_buf_fini(&content);
}

/* 0 with id and period; -1 with why the hub said no. */
static int read_reply(struct engine *engine, const struct px_msg *msg, struct px_error *err)
{
    json_t *content = px_json_parse(px_msg_content(msg), err);
    if (!content)
        return -1;
    int result = 0;
    const char *status = json_string_value(json_object_get(content, "status"));
    const json_t *id = json_object_get(content, "id");
    const json_int_t period = json_integer_value(json_object_get(content, "hb_period"));
    if (status && strcmp(status, "ok") != 0) {
        const char *why = json_string_value(json_object_get(content, "evalue"));
        result = px_fail(err, PX_EEXIST, "%.300s", why ? why : "the hub gave no reason");
    } else if (!json_is_integer(id) || json_integer_value(id) < 0 ||
               json_integer_value(id) > INT32_MAX) {
        result = px_fail(err, PX_EINVAL, "the hub's reply has no engine id");
    } else {
        engine->id = (int)json_integer_value(id);
        engine->period_ms = period > 0 && period < INT32_MAX ? period : PX_HEARTBEAT_MS;
        engine->bundles = json_is_true(json_object_get(content, PX_BUNDLES));
    }
    json_decref(content);
    return result;
}

static void write_report(const struct engine *engine)
{
    char *line = px_format("registered %d %d\n", engine->id, (int)getpid());
    if (engine->report_fd >= 0 && write(engine->report_fd, line, strlen(line)) < 0)
        px_log(PX_WARN, "report.failed", "why=\"%s\"", strerror(errno));
    free(line);
}

static void name_log(const struct engine *engine)
{
    char *tag = px_format("pxengine.%d", engine->id);
    px_log_init(tag, (enum px_level)engine->config->log_level);
    free(tag);
}

void px_registrar_report(const struct engine *engine)
{
    name_log(engine);
    px_log(PX_INFO, "registered", PX_REGISTERED_TEXT, engine->id);
    write_report(engine);
}

/* ---- doubt ---- */

void px_registrar_doubt(struct engine *engine, const char *why)
{
    if (!engine->kernel || engine->left)
        return;
    if (!engine->doubtful)
        px_log(PX_WARN, "hub.lost", "why=\"%s\"", why);
    engine->doubtful = true;
    engine->asked_ms = 0;
}

void px_registrar_ask(struct engine *engine)
{
    const int64_t now_ms = px_now_ms();
    if (engine->asked_ms && now_ms - engine->asked_ms < ASK_AGAIN_MS)
        return;
    engine->asked_ms = now_ms;
    send_hub(engine, PX_CONNECTION_REQUEST, "{}");
}

/* The ping that made us ask goes back now. */
static void be_sure(struct engine *engine)
{
    engine->doubtful = engine->cut = false;
    engine->awaited = 0;
    px_engine_greet(engine);
    px_again_mend(&engine->again, px_service_loop(engine->service));
    if (engine->held && px_socket_send(engine->sockets[HEART_OUT], &engine->held) != PX_SENT)
        px_msg_destroy(engine->held);
    engine->held = NULL;
    px_log(PX_INFO, "hub.back", "id=%d", engine->id);
}

/* Its list of engines: {"<id>": "<uuid>"}. */
static void on_connection_reply(struct engine *engine, const struct px_msg *msg)
{
    const char *id;
    json_t *uuid, *content = px_json_parse(px_msg_content(msg), NULL);
    const json_t *engines = json_object_get(content, "engines");
    bool known = false;
    if (!engine->doubtful || !json_is_object(engines)) {
        json_decref(content);
        return;
    }
    json_object_foreach((json_t *)engines, id, uuid)
        known =
            known || (json_is_string(uuid) && strcmp(json_string_value(uuid), engine->uuid) == 0);
    engine->bundles = json_is_true(json_object_get(content, PX_BUNDLES));
    if (known)
        be_sure(engine);
    else
        send_registration(engine, engine->id);
    json_decref(content);
}

/* ---- registration ---- */

static void on_first_reply(struct engine *engine, const struct px_msg *msg)
{
    struct px_error err;
    px_loop_cancel(px_service_loop(engine->service), engine->deadline);
    engine->deadline = NULL;
    if (read_reply(engine, msg, &err) == 0 && px_engine_serve(engine, &err) == 0)
        return;
    px_log(PX_ERROR, "registration.failed", "why=\"%s\"", err.text);
    px_engine_give_up(engine, 1);
}

/* A refusal leaves us doubtful: the next ping asks again. */
static void on_later_reply(struct engine *engine, const struct px_msg *msg)
{
    struct px_error err;
    const int before = engine->id;
    if (!engine->doubtful)
        return;
    if (read_reply(engine, msg, &err) < 0) {
        px_log(PX_WARN, "registration.refused", "why=\"%s\"", err.text);
        return;
    }
    if (engine->cut && px_engine_cut_relays(engine))
        return;
    px_kernel_renumber(engine->kernel, engine->id);
    if (engine->id != before && px_engine_reach_leaf(engine, &err) < 0)
        px_log(PX_WARN, "relay.late", "why=\"%s\"", err.text);
    px_registrar_report(engine);
    be_sure(engine);
}

static void on_registration_reply(struct engine *engine, const struct px_msg *msg)
{
    if (engine->deadline)
        on_first_reply(engine, msg);
    else if (engine->kernel)
        on_later_reply(engine, msg);
}

static void on_registrar(struct px_loop *loop, void *ctx)
{
    static const struct {
        const char *type;
        void (*fn)(struct engine *engine, const struct px_msg *msg);
    } rows[] = {
        {PX_REGISTRATION_REPLY, on_registration_reply},
        {PX_CONNECTION_REPLY, on_connection_reply},
    };
    struct engine *engine = ctx;
    struct px_header header;
    (void)loop;
    for (struct px_msg *msg; (msg = px_engine_receive(engine, REGISTRAR)); px_msg_destroy(msg)) {
        if (px_header_scan(px_msg_header(msg), &header, NULL) < 0)
            continue;
        for (size_t i = 0; i < PX_COUNT(rows); i++)
            if (px_span_equal(header.msg_type, rows[i].type))
                rows[i].fn(engine, msg);
    }
}

void px_registrar_open(void *ctx)
{
    struct engine *engine = ctx;
    struct px_error err;
    char endpoint[PX_ENDPOINT_SIZE];
    struct px_loop *loop = px_service_loop(engine->service);
    if (!px_engine_open(engine, REGISTRAR, PX_DEALER, &err) ||
        px_cluster_endpoint(engine->config->connection, engine->config->connection->registration,
                            endpoint, &err) < 0 ||
        px_socket_connect(engine->sockets[REGISTRAR], endpoint, &err) < 0) {
        px_log(PX_ERROR, "registration.failed", "why=\"%s\"", err.text);
        px_engine_give_up(engine, 1);
        return;
    }
    px_loop_socket(loop, px_socket_pollable(engine->sockets[REGISTRAR]), on_registrar, engine);
    engine->deadline =
        px_loop_timer(loop, engine->config->timeout_ms, 0, on_registration_timeout, engine);
    send_registration(engine, engine->config->wanted_id);
}
