/* SPDX-License-Identifier: BSD-3-Clause */
#define _GNU_SOURCE
#include "../test.h"

#include "fake.h"

#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct fake {
    void *context;
    struct px_socket *channels[3], *notification, *iopub;
    int iopub_port;
    char dir[64], path[128];
    pthread_t thread;
    pthread_mutex_t lock;
    char *engines; /* lock */
    atomic_bool stopping;
    atomic_int closer;     /* listens where iopub did; -1: nobody does */
    struct px_socket *hub; /* the thread's */
};

static struct px_session *session_of(const char *id, const char *key)
{
    struct px_session *session = px_session_create(key, NULL, id, NULL);
    assert_non_null(session);
    return session;
}

static void answer(struct fake *fake, struct px_session *session, const struct px_msg *request)
{
    pthread_mutex_lock(&fake->lock);
    char *content = px_format("{\"status\": \"ok\", %s}", fake->engines);
    pthread_mutex_unlock(&fake->lock);
    const struct px_draft draft = {.idents_of = request,
                                   .type = "connection_reply",
                                   .parent = px_msg_header(request),
                                   .content = px_span_of(content)};
    struct px_msg *reply = px_session_build(session, &draft);
    if (px_socket_send(fake->hub, &reply) != PX_SENT)
        px_msg_destroy(reply);
    free(content);
}

static void close_at_once(struct fake *fake)
{
    int fd;
    while (fake->closer >= 0 && (fd = accept(fake->closer, NULL, NULL)) >= 0)
        close(fd);
}

static void *serve_hub(void *ctx)
{
    struct fake *fake = ctx;
    struct px_session *session = session_of("hub", FAKE_KEY);
    while (!fake->stopping) {
        close_at_once(fake);
        struct px_msg *msg = px_socket_recv(fake->hub);
        if (!msg) {
            px_socket_wait(fake->hub, 50);
            continue;
        }
        if (px_msg_locate(msg, NULL) == 0 && px_session_verify(session, msg, NULL) == 0)
            answer(fake, session, msg);
        px_msg_destroy(msg);
    }
    px_session_destroy(session);
    return NULL;
}

static struct px_socket *bound(struct fake *fake, enum px_socket_type type, int *port)
{
    struct px_socket *socket = px_socket_create(fake->context, type, NULL);
    *port = 0;
    px_socket_set_linger(socket, 0);
    assert_int_equal(px_socket_bind_port(socket, "tcp://127.0.0.1", port, NULL), 0);
    return socket;
}

struct fake *fake_create(const char *engines)
{
    struct fake *fake = px_alloc(sizeof *fake);
    struct px_cluster_connection file = {.ssh = "",
                                         .interface = "tcp://127.0.0.1",
                                         .key = FAKE_KEY,
                                         .location = "127.0.0.1",
                                         .pack = "json",
                                         .unpack = "json",
                                         .signature_scheme = "hmac-sha256",
                                         .task_scheme = "leastload",
                                         .broadcast = {1},
                                         .broadcast_count = 1};
    fake->context = px_context_create(1);
    pthread_mutex_init(&fake->lock, NULL);
    fake->engines = px_strdup(engines);
    fake->hub = bound(fake, PX_ROUTER, &file.registration);
    fake->channels[FAKE_MUX] = bound(fake, PX_ROUTER, &file.mux);
    fake->channels[FAKE_TASK] = bound(fake, PX_ROUTER, &file.task);
    fake->channels[FAKE_CONTROL] = bound(fake, PX_ROUTER, &file.control);
    fake->notification = bound(fake, PX_PUB, &file.notification);
    fake->iopub = bound(fake, PX_PUB, &file.iopub);
    fake->iopub_port = file.iopub;
    fake->closer = -1;
    strcpy(fake->dir, "/tmp/px-test-client-XXXXXX");
    assert_non_null(mkdtemp(fake->dir));
    snprintf(fake->path, sizeof fake->path, "%s/client.json", fake->dir);
    assert_int_equal(px_cluster_connection_write(fake->path, PX_ROLE_CLIENT, &file, NULL), 0);
    assert_int_equal(pthread_create(&fake->thread, NULL, serve_hub, fake), 0);
    return fake;
}

void fake_destroy(struct fake *fake)
{
    fake->stopping = true;
    pthread_join(fake->thread, NULL);
    for (int i = 0; i < 3; i++)
        px_socket_destroy(fake->channels[i]);
    px_socket_destroy(fake->hub);
    px_socket_destroy(fake->notification);
    px_socket_destroy(fake->iopub);
    if (fake->closer >= 0)
        close(fake->closer);
    px_context_destroy(fake->context);
    unlink(fake->path);
    rmdir(fake->dir);
    free(fake->engines);
    free(fake);
}

const char *fake_file(const struct fake *fake)
{
    return fake->path;
}

void fake_set_engines(struct fake *fake, const char *engines)
{
    pthread_mutex_lock(&fake->lock);
    free(fake->engines);
    fake->engines = px_strdup(engines);
    pthread_mutex_unlock(&fake->lock);
}

void fake_break_iopub(struct fake *fake)
{
    px_socket_destroy(fake->iopub);
    fake->iopub = NULL;
}

/* libzmq closes the old one's port when it likes. */
void fake_mend_iopub(struct fake *fake)
{
    const int64_t deadline = px_now_ms() + FAKE_TIMEOUT_MS;
    fake->iopub = px_socket_create(fake->context, PX_PUB, NULL);
    px_socket_set_linger(fake->iopub, 0);
    while (px_socket_bind_port(fake->iopub, "tcp://127.0.0.1", &fake->iopub_port, NULL) < 0)
        assert_true(px_now_ms() < deadline);
}

void fake_close_iopub_at_once(struct fake *fake)
{
    const int64_t deadline = px_now_ms() + FAKE_TIMEOUT_MS;
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), yes = 1;
    const struct sockaddr_in here = {.sin_family = AF_INET,
                                     .sin_port = htons((uint16_t)fake->iopub_port),
                                     .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes), 0);
    while (bind(fd, (const struct sockaddr *)&here, sizeof here) < 0)
        assert_true(px_now_ms() < deadline);
    assert_int_equal(listen(fd, 16), 0);
    fake->closer = fd;
}

phalanx_client *fake_connect(struct fake *fake)
{
    struct phalanx_error err = {0};
    const struct phalanx_options options = {.file = fake->path};
    phalanx_client *client = phalanx_connect(&options, &err);
    if (!client)
        fail_msg("%s", err.text);
    return client;
}

struct px_msg *fake_request(struct fake *fake, enum fake_channel channel)
{
    const int64_t deadline = px_now_ms() + FAKE_TIMEOUT_MS;
    while (px_now_ms() < deadline) {
        struct px_msg *msg = px_socket_recv(fake->channels[channel]);
        if (msg) {
            assert_int_equal(px_msg_locate(msg, NULL), 0);
            return msg;
        }
        px_socket_wait(fake->channels[channel], 100);
    }
    fail_msg("no request came");
    return NULL;
}

static void send_reply(struct fake *fake, enum fake_channel channel, struct px_session *session,
                       const struct px_msg *request, const char *metadata, const char *content)
{
    struct px_header header;
    assert_int_equal(px_header_scan(px_msg_header(request), &header, NULL), 0);
    const bool apply = px_span_equal(header.msg_type, "apply_request");
    const struct px_draft draft = {.idents_of = request,
                                   .type = apply ? "apply_reply" : "execute_reply",
                                   .parent = px_msg_header(request),
                                   .metadata = px_span_of(metadata),
                                   .content = px_span_of(content)};
    struct px_msg *reply = px_session_build(session, &draft);
    px_msg_append(reply, "result", 6);
    assert_int_equal(px_socket_send(fake->channels[channel], &reply), PX_SENT);
}

static void send_as_engine(struct fake *fake, enum fake_channel channel, const char *engine,
                           const char *key, const struct px_msg *request, const char *members,
                           const char *content)
{
    struct px_session *session = session_of(engine, key);
    char *metadata = px_format("{\"engine\": \"%s\"%s}", engine, members);
    send_reply(fake, channel, session, request, metadata, content);
    free(metadata);
    px_session_destroy(session);
}

void fake_reply(struct fake *fake, enum fake_channel channel, const char *engine,
                const struct px_msg *request, const char *content)
{
    send_as_engine(fake, channel, engine, FAKE_KEY, request, "", content);
}

void fake_reply_with(struct fake *fake, const char *engine, const struct px_msg *request,
                     const char *members)
{
    char *more = px_format(", %s", members);
    send_as_engine(fake, FAKE_MUX, engine, FAKE_KEY, request, more, "{\"status\": \"ok\"}");
    free(more);
}

void fake_forge(struct fake *fake, const char *engine, const struct px_msg *request,
                const char *content)
{
    send_as_engine(fake, FAKE_MUX, engine, "another key", request, "", content);
}

void fake_refuse(struct fake *fake, const struct px_msg *request, const char *content)
{
    struct px_session *session = session_of("scheduler", FAKE_KEY);
    send_reply(fake, FAKE_TASK, session, request, "{}", content);
    px_session_destroy(session);
}

static void publish(struct px_socket *socket, const char *engine, struct px_span parent,
                    const char *topic, const char *type, const char *content)
{
    struct px_session *session = session_of(engine, FAKE_KEY);
    const struct px_span ident = px_span_of(topic);
    const struct px_draft draft = {.idents = &ident,
                                   .ident_count = *topic ? 1 : 0,
                                   .type = type,
                                   .parent = parent,
                                   .content = px_span_of(content)};
    struct px_msg *msg = px_session_build(session, &draft);
    assert_int_equal(px_socket_send(socket, &msg), PX_SENT);
    px_session_destroy(session);
}

void fake_publish(struct fake *fake, const char *engine, const struct px_msg *request,
                  const char *type, const char *content)
{
    publish(fake->iopub, engine, px_msg_header(request), "topic", type, content);
}

void fake_idle(struct fake *fake, const char *engine, const struct px_msg *request)
{
    fake_publish(fake, engine, request, "status", "{\"execution_state\": \"idle\"}");
}

void fake_notify(struct fake *fake, const char *type, const char *content)
{
    publish(fake->notification, "hub", (struct px_span){0}, "", type, content);
}
