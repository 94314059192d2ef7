/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * dial: a client connects.
 *
 * This happens on the caller's thread, in an order that misses nothing: the two SUB sockets first,
 * until their connections stand; then the hub is asked for its engines, and whether the controller
 * hears us; then the I/O thread takes over all sockets. An engine that registers in between is in the
 * answer, or in a notification that already waits, or in both.
 */
#define _GNU_SOURCE
#include "client/client.h"
#include "protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define NEEDED_FILES 26 /* sockets of seven kinds, and what libzmq wakes its threads with */
#define LISTEN_MS 1000     /* for the controller to see that we listen; it may be told nothing */
#define LISTEN_PAUSE_MS 2

static int find_file(const struct phalanx_options *options, char out[PX_PATH_SIZE],
                     struct px_error *err)
{
    if (options->file) {
        if (strlen(options->file) >= PX_PATH_SIZE)
            return px_fail(err, PX_EINVAL, "the connection file's name is too long");
        strcpy(out, options->file);
        return 0;
    }
    const struct px_profile_choice choice = {.ipython_dir = options->ipython_dir,
                                             .profile = options->profile,
                                             .profile_dir = options->profile_dir,
                                             .cluster_id = options->cluster_id};
    char dir[PX_PATH_SIZE];
    if (px_profile_dir(&choice, false, dir, err) < 0)
        return -1;
    px_profile_connection_file(dir, px_profile_cluster_id(&choice), PX_ROLE_CLIENT, out);
    return 0;
}

struct dialling {
    struct phalanx_client *client;
    struct px_cluster_connection connection;
    int64_t deadline_ms;
    char listener[PX_LISTENER_SIZE]; /* the topic that says that iopub is heard */
};

static const struct {
    enum px_socket_type type;
    size_t port; /* offset into the connection */
} dial_rows[PX_CHANNEL_COUNT] = {
    [PX_CHANNEL_QUERY] = {PX_DEALER, offsetof(struct px_cluster_connection, registration)},
    [PX_CHANNEL_MUX] = {PX_DEALER, offsetof(struct px_cluster_connection, mux)},
    [PX_CHANNEL_TASK] = {PX_DEALER, offsetof(struct px_cluster_connection, task)},
    [PX_CHANNEL_CONTROL] = {PX_DEALER, offsetof(struct px_cluster_connection, control)},
    [PX_CHANNEL_BROADCAST] = {PX_DEALER, offsetof(struct px_cluster_connection, broadcast)},
    [PX_CHANNEL_NOTIFICATION] = {PX_SUB, offsetof(struct px_cluster_connection, notification)},
    [PX_CHANNEL_IOPUB] = {PX_SUB, offsetof(struct px_cluster_connection, iopub)},
};

static int64_t time_left(int64_t deadline_ms)
{
    const int64_t left = deadline_ms - px_now_ms();
    return left > 0 ? left : 0;
}

static int dial(struct dialling *self, enum px_channel channel, struct px_error *err)
{
    struct phalanx_client *client = self->client;
    struct px_socket *socket = px_socket_create(client->context, dial_rows[channel].type, err);
    client->sockets[channel] = socket;
    if (!socket)
        return -1;
    if (self->connection.curve_serverkey && *self->connection.curve_serverkey)
        px_socket_curve_client(socket, self->connection.curve_serverkey);
    int port;
    memcpy(&port, (const char *)&self->connection + dial_rows[channel].port, sizeof port);
    client->ports[channel] = port;
    char endpoint[PX_ENDPOINT_SIZE];
    if (px_cluster_endpoint(&self->connection, port, endpoint, err) < 0)
        return -1;
    if (dial_rows[channel].type != PX_SUB)
        return px_socket_connect(socket, endpoint, err);
    px_socket_subscribe(socket, "");
    if (px_socket_connect_wait(socket, endpoint, time_left(self->deadline_ms), err) == 0)
        return 0;
    if (err->code == PX_ETIME)
        px_fail(err, PX_ETIME, "no controller answers at %s, which %s names", endpoint,
                client->file);
    return -1;
}

/* The hub's answer, verified. NULL with an error. */
static struct px_msg *await_answer(struct dialling *self, struct px_error *err)
{
    struct px_socket *socket = self->client->sockets[PX_CHANNEL_QUERY];
    for (;;) {
        struct px_msg *msg = px_socket_recv(socket);
        if (msg && px_msg_locate(msg, err) == 0 &&
            px_session_verify(self->client->in, msg, err) == 0)
            return msg;
        if (msg) {
            px_msg_destroy(msg);
            px_fail(err, PX_EAUTH, "the controller's answer was not signed with the key in %s",
                    self->client->file);
            return NULL;
        }
        const int64_t left = time_left(self->deadline_ms);
        if (left == 0) {
            px_fail(err, PX_ETIME,
                    "the controller named in %s does not answer (or knows another key)",
                    self->client->file);
            return NULL;
        }
        if (!px_socket_wait(socket, left) && time_left(self->deadline_ms) > 0) {
            px_fail(err, PX_EINTR, "interrupted while connecting");
            return NULL;
        }
    }
}

/* Every version of the protocol says which it is in its headers, save those before 5. */
static int check_version(const struct px_msg *answer, struct px_error *err)
{
    json_t *header = px_json_parse(px_msg_header(answer), err);
    if (!header)
        return -1;
    const char *version = json_string_value(json_object_get(header, "version"));
    int status = 0;
    if (!version || strncmp(version, "5.", 2) != 0)
        status = px_fail(err, PX_EINVAL,
                         "the controller speaks version %.20s of the message protocol, and this "
                         "client version " PX_PROTOCOL_VERSION
                         ": start pxcontroller, or an ipcontroller of ipyparallel 4 to 9",
                         version ? version : "4 or less");
    json_decref(header);
    return status;
}

/* The hub's answer when it has one that is right, else NULL with an error. */
static json_t *ask_hub(struct dialling *self, struct px_error *err)
{
    struct phalanx_client *client = self->client;
    char *question = px_format("{\"px_listener\": \"%s\"}", self->listener);
    const struct px_draft draft = {.type = PX_CONNECTION_REQUEST, .content = px_span_of(question)};
    struct px_msg *msg = px_session_build(client->out, &draft);
    free(question);
    if (px_socket_send(client->sockets[PX_CHANNEL_QUERY], &msg) != PX_SENT) {
        px_msg_destroy(msg);
        px_fail(err, PX_EIO, "the hub cannot be reached");
        return NULL;
    }
    msg = await_answer(self, err);
    if (!msg)
        return NULL;
    json_t *content = check_version(msg, err) == 0 ? px_json_parse(px_msg_content(msg), err) : NULL;
    px_msg_destroy(msg);
    const char *status = json_string_value(json_object_get(content, "status"));
    if (!content || (status && strcmp(status, "ok") == 0))
        return content;
    const char *why = json_string_value(json_object_get(content, "evalue"));
    px_fail(err, PX_EINVAL, "the controller refuses: %s", why ? why : "no reason given");
    json_decref(content);
    return NULL;
}

/* Until the controller knows that we listen: a connection that stands on this side may not yet do
 * so on the other. One of ipyparallel does not say. */
static json_t *ask_until_heard(struct dialling *self, struct px_error *err)
{
    const int64_t half_ms = time_left(self->deadline_ms) / 2;
    const int64_t until_ms = px_now_ms() + (half_ms < LISTEN_MS ? half_ms : LISTEN_MS);
    json_t *content = ask_hub(self, err);
    while (json_is_false(json_object_get(content, "px_listens")) && px_now_ms() < until_ms) {
        json_decref(content);
        (void)px_socket_wait(self->client->sockets[PX_CHANNEL_QUERY], LISTEN_PAUSE_MS);
        content = ask_hub(self, err);
    }
    return content;
}

static int ask_engines(struct dialling *self, struct px_error *err)
{
    struct phalanx_client *client = self->client;
    json_t *content = ask_until_heard(self, err);
    if (!content)
        return -1;
    client->era = json_integer_value(json_object_get(content, "px_again"));
    px_engines_sync(&client->engines, content);
    px_io_greet(client, content);
    json_decref(content);
    return 0;
}

static int make_sessions(struct dialling *self, struct px_error *err)
{
    struct phalanx_client *client = self->client;
    const struct px_cluster_connection *c = &self->connection;
    client->out = px_session_create(c->key, c->signature_scheme, NULL, err);
    if (!client->out)
        return -1;
    snprintf(client->session_id, sizeof client->session_id, "%s", px_session_id(client->out));
    snprintf(self->listener, sizeof self->listener, PX_LISTENER "%s", client->session_id);
    client->in = px_session_create(c->key, c->signature_scheme, client->session_id, err);
    return client->in ? 0 : -1;
}

/* Without a free descriptor libzmq may end the process, which is not ours. */
static int check_descriptors(struct px_error *err)
{
    int fds[NEEDED_FILES], count = 0;
    while (count < NEEDED_FILES &&
           (fds[count] = count ? fcntl(fds[0], F_DUPFD_CLOEXEC, 0)
                               : open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0)
        count++;
    const int result =
        count == NEEDED_FILES
            ? 0
            : px_fail(err, PX_EIO, "a connection needs %d descriptors, and %d can be had: %s",
                      NEEDED_FILES, count, strerror(errno));
    while (count > 0)
        close(fds[--count]);
    return result;
}

static int dial_all(struct dialling *self, struct px_error *err)
{
    static const enum px_channel order[] = {
        PX_CHANNEL_NOTIFICATION, PX_CHANNEL_IOPUB,   PX_CHANNEL_QUERY,    PX_CHANNEL_MUX,
        PX_CHANNEL_TASK,         PX_CHANNEL_CONTROL, PX_CHANNEL_BROADCAST};
    if (check_descriptors(err) < 0)
        return -1;
    self->client->context = px_context_create(1);
    for (size_t i = 0; i < PX_COUNT(order); i++) {
        if (dial(self, order[i], err) < 0)
            return -1;
    }
    px_socket_subscribe(self->client->sockets[PX_CHANNEL_IOPUB], self->listener);
    return ask_engines(self, err);
}

/* Of a file that is missing, or is not what pxcontroller and ipcontroller 4 to 9 write. */
static void advise(struct px_error *why)
{
    char said[sizeof why->text];
    memcpy(said, why->text, sizeof said);
    px_fail(
        why, why->code, "%.400s%s", said,
        why->code == PX_ENOENT
            ? PX_START_HINT
            : "; name the ...-client.json of a cluster that runs, or start one (pxcluster start)");
}

int px_client_dial(struct phalanx_client *client, const struct phalanx_options *options,
                   struct px_error *err)
{
    struct dialling self = {.client = client};
    self.deadline_ms =
        px_deadline(options->timeout_ms ? options->timeout_ms : PX_CLIENT_TIMEOUT_MS);
    int status = find_file(options, client->file, err);
    if (status == 0)
        status = px_cluster_connection_read(client->file, PX_ROLE_CLIENT, &self.connection, err);
    if (status != 0 && (err->code == PX_EINVAL || err->code == PX_ENOENT))
        advise(err);
    if (status == 0)
        status = make_sessions(&self, err);
    if (status == 0)
        status = dial_all(&self, err);
    px_cluster_connection_fini(&self.connection);
    return status;
}
