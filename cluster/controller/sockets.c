/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * sockets: binds everything, in the order in which ipcontroller hands out ports, and writes the
 * two connection files. Nothing is written before all is bound. With --reuse, key and ports
 * come from files that a controller left behind.
 *
 * The hub's registration socket listens on both addresses when engines and clients have
 * different ones. ipc addresses are bound under both spellings that peers use. Beside each TCP port
 * there is a Unix domain socket for peers of ours on this host.
 */
#include "controller.h"
#include "protocol.h"
#include "schedule.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define FIRST_MS 10000 /* how long one waits for a message within the process */
/* Nobody need keep more of what is not verified yet: a uuid or a time, and a million ids. */
#define LARGEST_PONG 1024
#define LARGEST_REQUEST (128u << 20)
/* Messages kept for one subscriber that does not read: what comes beyond them it misses. Output may
 * be large; notifications are small and few, and a client that misses one is wrong for good.
 * LIMIT: ZeroMQ counts messages, not bytes: ten thousand displays of 100 kB are a gigabyte. */
#define OUTPUT_HWM 10000
/* Of replies, unless settings say so: a client may be suspended for a night. */
#define MOST_UNREAD ((size_t)4 << 30)
#define NOTIFICATION_HWM 200000

/* Ports for one side, then for both. */
struct pools {
    struct px_port_pool *own, *common;
};

static int take_port(const struct pools *pools)
{
    if (pools->own->used < pools->own->count)
        return pools->own->ports[pools->own->used++];
    if (pools->common->used < pools->common->count)
        return pools->common->ports[pools->common->used++];
    return 0;
}

/* Whom it does not reach, TCP does. */
static void bind_local(struct px_socket *socket, const struct px_cluster_connection *file, int port)
{
    struct px_error err;
    char endpoint[PX_ENDPOINT_SIZE];
    if (px_cluster_local(file, port, endpoint) && px_socket_bind(socket, endpoint, &err) != 0)
        px_log(PX_WARN, "local-address.none", "why=\"%s\"", err.text);
}

static int bind_more(struct px_socket *socket, const char *interface, int port,
                     struct px_error *err)
{
    char endpoint[PX_ENDPOINT_SIZE];
    if (strncmp(interface, "ipc://", 6) != 0)
        return 0;
    snprintf(endpoint, sizeof(endpoint), "%s:%d", interface, port);
    return px_socket_bind(socket, endpoint, err);
}

/*
 * ZeroMQ numbers the connections of a ROUTER in turn, from a number that it draws. The first one is
 * made here, within the process and before there is an address for others.
 */
static int find_first(struct px_sockets *sockets, struct px_socket *socket, const char *endpoint,
                      uint32_t *first, struct px_error *err)
{
    struct px_socket *peer = px_socket_create(sockets->context, PX_DEALER, err);
    struct px_msg *hello = px_msg_create(), *heard = NULL;
    px_msg_append(hello, "", 0);
    if (peer != NULL && px_socket_bind(socket, endpoint, err) == 0 &&
        px_socket_connect(peer, endpoint, err) == 0 && px_socket_send(peer, &hello) == PX_SENT &&
        px_socket_wait(socket, FIRST_MS))
        heard = px_socket_recv(socket);
    struct px_span number = heard ? px_msg_frame(heard, 0) : (struct px_span){0};
    *first = 1;
    for (size_t i = 1; i < number.size; i++)
        *first += (uint32_t)(unsigned char)number.data[i] << (8 * (number.size - 1 - i));
    px_msg_destroy(heard);
    px_msg_destroy(hello);
    px_socket_destroy(peer);
    return number.size == 5 ? 0 : px_fail(err, PX_EIO, "cannot tell connections of %s", endpoint);
}

static int find_firsts(struct px_sockets *sockets, struct px_socket *socket, struct px_error *err)
{
    if (socket == sockets->mux_in)
        return find_first(sockets, socket, "inproc://mux", &sockets->mux_first, err);
    if (socket == sockets->task_in)
        return find_first(sockets, socket, "inproc://task", &sockets->task_first, err);
    return 0;
}

struct plan {
    enum px_socket_type type;
    const char *identity;
    size_t socket; /* offset in px_sockets */
    size_t port;   /* offset in px_cluster_connection */
};

#define SOCKET(field) offsetof(struct px_sockets, field)
#define PORT(field) offsetof(struct px_cluster_connection, field)

static const struct plan query_plan = {PX_ROUTER, NULL, SOCKET(query), PORT(registration)};

static const struct plan engine_plan[] = {
    {PX_ROUTER, PX_ID_CONTROL_OUT, SOCKET(control_out), PORT(control)},
    {PX_ROUTER, PX_ID_MUX_OUT, SOCKET(mux_out), PORT(mux)},
    {PX_ROUTER, PX_ID_TASK_OUT, SOCKET(task_out), PORT(task)},
    {PX_SUB, NULL, SOCKET(iopub_in), PORT(iopub)},
    {PX_XPUB, NULL, SOCKET(ping), PORT(hb_ping)},
    {PX_ROUTER, NULL, SOCKET(pong), PORT(hb_pong)},
    {PX_ROUTER, PX_ID_BROADCAST_ROOT "0", SOCKET(broadcast_out), PORT(broadcast)},
};

static const struct plan client_plan[] = {
    {PX_ROUTER, "control_in", SOCKET(control_in), PORT(control)},
    {PX_ROUTER, "mux_in", SOCKET(mux_in), PORT(mux)},
    {PX_ROUTER, "task_in", SOCKET(task_in), PORT(task)},
    {PX_XPUB, NULL, SOCKET(iopub_out), PORT(iopub)},
    {PX_XPUB, NULL, SOCKET(notification), PORT(notification)},
    {PX_ROUTER, PX_ID_BROADCAST_ROOT, SOCKET(broadcast_in), PORT(broadcast)},
};

/* Longer than a heart may be silent: it is the heart that says whether an engine lives. */
static int64_t heart_patience_ms(const struct px_settings *settings)
{
    return 2 * (int64_t)settings->ping_ms * (settings->max_misses + (int64_t)1);
}

/*
 * A connection that was lost on the way may be lost on one side only. An engine that comes back
 * under its name takes its old place at once, and one that does not is noticed. Clients are not
 * watched: one that was suspended finds its results when it goes on.
 */
static int bind_one(struct px_sockets *sockets, const struct plan *plan,
                    struct px_cluster_connection *file, const struct pools *pools,
                    const struct px_settings *settings, struct px_error *err)
{
    struct px_socket **socket = (struct px_socket **)((char *)sockets + plan->socket);
    int *port = (int *)((char *)file + plan->port);
    bool pure = socket == &sockets->task_out && px_scheme_is_pure(settings->scheme);
    const enum px_socket_type type = pure ? PX_DEALER : plan->type;
    *socket = px_socket_create(sockets->context, type, err);
    if (*socket == NULL)
        return -1;
    if (plan->identity != NULL)
        px_socket_set_identity(*socket, plan->identity);
    if (type == PX_ROUTER && (file == &sockets->engine || plan == &query_plan))
        px_socket_set_handover(*socket);
    if (file == &sockets->engine)
        px_socket_set_heartbeat(*socket,
                                socket == &sockets->iopub_in ? 0 : heart_patience_ms(settings));
    if (socket == &sockets->iopub_out)
        px_socket_set_bounded(*socket, OUTPUT_HWM);
    else if (socket == &sockets->iopub_in)
        px_socket_set_hwm(*socket, OUTPUT_HWM); /* while clients have no room (iopub.c) */
    else if (plan->type == PX_XPUB)
        px_socket_set_hwm(*socket, NOTIFICATION_HWM);
    if (type == PX_ROUTER && (file == &sockets->client || plan == &query_plan))
        px_socket_count_unread(*socket, sockets->unread);
    if (socket == &sockets->pong)
        px_socket_set_largest(*socket, LARGEST_PONG);
    if (socket == &sockets->query)
        px_socket_set_largest(*socket, LARGEST_REQUEST);
    if (plan->type == PX_SUB)
        px_socket_subscribe(*socket, "");
    if (settings->restore && find_firsts(sockets, *socket, err) != 0)
        return -1;
    if (sockets->curve_secret[0] != 0)
        px_socket_curve_server(*socket, sockets->curve_secret);
    if (*port == 0)
        *port = take_port(pools);
    if (px_socket_bind_port(*socket, file->interface, port, err) != 0)
        return -1;
    bind_local(*socket, file, *port);
    return bind_more(*socket, file->interface, *port, err);
}

static int bind_plan(struct px_sockets *sockets, const struct plan *plans, size_t count,
                     struct px_cluster_connection *file, const struct pools *pools,
                     const struct px_settings *settings, struct px_error *err)
{
    for (size_t i = 0; i < count; i++) {
        if (bind_one(sockets, &plans[i], file, pools, settings, err) != 0)
            return -1;
    }
    return 0;
}

static char *make_interface(const struct px_settings *settings, const char *ip,
                            const char *profile_dir)
{
    if (strcmp(settings->transport, "ipc") == 0 && ip == NULL)
        return px_format("ipc://%s/security/ipc%s%s", profile_dir,
                         settings->cluster_id[0] ? "-" : "", settings->cluster_id);
    const bool bare =
        ip && strchr(ip, ':') && ip[0] != '[' && strcmp(settings->transport, "tcp") == 0;
    return px_format(bare ? "%s://[%s]" : "%s://%s", settings->transport, ip ? ip : "127.0.0.1");
}

/* What is new for each cluster, and the same for both sides. */
struct fresh {
    char key[PX_ID_SIZE], local[PX_ID_SIZE];
};

static void describe(const struct px_sockets *sockets, struct px_cluster_connection *file,
                     const struct px_settings *settings, const char *ip, const char *ssh,
                     const struct fresh *fresh, const char *profile_dir)
{
    const bool chosen = settings->secure && settings->session_key;
    char host[256] = "localhost";
    gethostname(host, sizeof(host) - 1);
    file->ssh = px_strdup(ssh ? ssh : "");
    file->interface = make_interface(settings, ip, profile_dir);
    file->key = px_strdup(chosen ? settings->session_key : fresh->key);
    file->local =
        strcmp(settings->transport, "tcp") == 0 ? px_format("phalanx-%s", fresh->local) : NULL;
    file->curve_serverkey = settings->curve ? px_strdup(sockets->curve_public) : NULL;
    file->location = px_strdup(settings->location ? settings->location : host);
    file->pack = px_strdup("json");
    file->unpack = px_strdup("json");
    file->signature_scheme = px_strdup(settings->signature_scheme);
    file->broadcast_count = 1;
}

/* The given key pair, or a fresh one. Reused files name a public key, which ours must be. */
static int choose_curve_keys(struct px_sockets *sockets, const struct px_settings *settings,
                             struct px_error *err)
{
    if (!settings->curve && !(sockets->reused && sockets->client.curve_serverkey != NULL))
        return 0;
    if (settings->curve_secret == NULL && !sockets->reused)
        return px_curve_keypair(sockets->curve_public, sockets->curve_secret, err);
    if (settings->curve_secret == NULL)
        return px_fail(err, PX_EINVAL,
                       "the files to reuse are encrypted: IPP_CURVE_SECRETKEY must hold their key");
    if (px_curve_public(sockets->curve_public, settings->curve_secret, err) != 0)
        return -1;
    memcpy(sockets->curve_secret, settings->curve_secret, PX_CURVE_KEY_SIZE);
    if (sockets->reused && (sockets->client.curve_serverkey == NULL ||
                            strcmp(sockets->client.curve_serverkey, sockets->curve_public) != 0))
        return px_fail(err, PX_EINVAL, "the CURVE key is not that of the files to reuse");
    return 0;
}

/* Both files from before, which must agree. Returns 1 when there are none to reuse. */
static int read_files(struct px_sockets *sockets, const struct px_settings *settings,
                      struct px_error *err)
{
    if (!settings->reuse || access(sockets->client_path, F_OK) != 0 ||
        access(sockets->engine_path, F_OK) != 0)
        return 1;
    if (px_cluster_connection_read(sockets->client_path, PX_ROLE_CLIENT, &sockets->client, err) !=
            0 ||
        px_cluster_connection_read(sockets->engine_path, PX_ROLE_ENGINE, &sockets->engine, err) !=
            0)
        return -1;
    const struct px_cluster_connection *a = &sockets->client, *b = &sockets->engine;
    if (strcmp(a->key, b->key) != 0 || a->registration != b->registration ||
        strcmp(a->signature_scheme, b->signature_scheme) != 0)
        return px_fail(err, PX_EINVAL, "the two connection files to reuse do not belong together");
    sockets->reused = true;
    return 0;
}

static void make_files(struct px_sockets *sockets, const struct px_settings *settings,
                       const char *profile_dir)
{
    struct fresh fresh = {0};
    const char *client_ip = settings->client_ip ? settings->client_ip : settings->ip;
    const char *engine_ip = settings->engine_ip ? settings->engine_ip : settings->ip;
    if (settings->secure && settings->session_key == NULL && !settings->curve)
        px_id_random(fresh.key);
    px_id_random(fresh.local);
    describe(sockets, &sockets->client, settings, client_ip, settings->ssh, &fresh, profile_dir);
    describe(sockets, &sockets->engine, settings, engine_ip, settings->engine_ssh, &fresh,
             profile_dir);
    sockets->client.task_scheme = px_strdup(settings->scheme);
}

static void name_file(char out[PX_PATH_SIZE], const char *profile_dir, const char *name,
                      const char *cluster_id, enum px_role role)
{
    if (name == NULL)
        px_profile_connection_file(profile_dir, cluster_id, role, out);
    else if (name[0] == '/')
        snprintf(out, PX_PATH_SIZE, "%s", name);
    else
        snprintf(out, PX_PATH_SIZE, "%.*s/security/%s", PX_PATH_SIZE / 2, profile_dir, name);
}

/* Whether who listens at `interface` is reached at `other`, too. */
static bool covers(const char *interface, const char *other)
{
    const bool four = strcmp(interface, "tcp://*") == 0 || strcmp(interface, "tcp://0.0.0.0") == 0;
    return strcmp(interface, other) == 0 || strcmp(interface, "tcp://[::]") == 0 ||
           (four && strncmp(other, "tcp://[", 7) != 0);
}

/* One port on both sides' addresses; an address that stands for all is enough by itself. */
static int bind_registration(struct px_sockets *sockets, const struct pools *pools,
                             const struct px_settings *settings, struct px_error *err)
{
    const char *other = sockets->client.interface;
    struct px_cluster_connection file = sockets->engine; /* borrows its strings */
    if (covers(other, file.interface))
        file.interface = sockets->client.interface;
    if (bind_one(sockets, &query_plan, &file, pools, settings, err) != 0)
        return -1;
    sockets->client.registration = sockets->engine.registration = file.registration;
    if (covers(file.interface, other))
        return 0;
    return px_socket_bind_port(sockets->query, other, &file.registration, err);
}

static int bind_all(struct px_sockets *sockets, const struct px_settings *settings,
                    struct px_error *err)
{
    struct px_port_pool common, engine, client;
    if (px_ports_parse(settings->ports, &common, err) != 0 ||
        px_ports_parse(settings->engine_ports, &engine, err) != 0 ||
        px_ports_parse(settings->client_ports, &client, err) != 0)
        return -1;
    if (settings->port != 0 && engine.count < PX_MAX_PORTS)
        engine.ports[engine.count++] = settings->port;
    if (settings->port != 0 && engine.count > 1) {
        memmove(engine.ports + 1, engine.ports, (size_t)(engine.count - 1) * sizeof(int));
        engine.ports[0] = settings->port;
    }
    struct pools engine_pools = {&engine, &common}, client_pools = {&client, &common};
    if (bind_registration(sockets, &engine_pools, settings, err) != 0 ||
        bind_plan(sockets, engine_plan, PX_COUNT(engine_plan), &sockets->engine, &engine_pools,
                  settings, err) != 0)
        return -1;
    return bind_plan(sockets, client_plan, PX_COUNT(client_plan), &sockets->client, &client_pools,
                     settings, err);
}

static size_t unread_bytes(const struct px_settings *settings)
{
    const size_t quarter = (size_t)sysconf(_SC_PHYS_PAGES) / 4 * (size_t)sysconf(_SC_PAGESIZE);
    if (settings->unread_mb > 0)
        return (size_t)settings->unread_mb << 20;
    return quarter < MOST_UNREAD ? quarter : MOST_UNREAD;
}

int px_sockets_bind(struct px_sockets *sockets, const struct px_settings *settings,
                    const char *profile_dir, struct px_error *err)
{
    *sockets = (struct px_sockets){0};
    name_file(sockets->client_path, profile_dir, settings->client_file, settings->cluster_id,
              PX_ROLE_CLIENT);
    name_file(sockets->engine_path, profile_dir, settings->engine_file, settings->cluster_id,
              PX_ROLE_ENGINE);
    snprintf(sockets->engines_path, PX_PATH_SIZE, "%.*s/log/engines%.200s.json", PX_PATH_SIZE / 2,
             profile_dir, settings->cluster_id);
    sockets->context = px_context_create(1);
    if (sockets->context == NULL)
        return px_fail(err, PX_EIO, "no ZeroMQ context");
    sockets->unread = px_unread_create(unread_bytes(settings));
    px_blocks_use();
    px_sockets_guard();
    px_pid_keep();
    int found = read_files(sockets, settings, err);
    if (found < 0 || choose_curve_keys(sockets, settings, err) != 0)
        return -1;
    if (found > 0)
        make_files(sockets, settings, profile_dir);
    return bind_all(sockets, settings, err);
}

int px_sockets_write_files(struct px_sockets *sockets, struct px_error *err)
{
    if (sockets->reused)
        return 0;
    if (px_cluster_connection_write(sockets->engine_path, PX_ROLE_ENGINE, &sockets->engine, err) !=
        0)
        return -1;
    sockets->files_written = true;
    return px_cluster_connection_write(sockets->client_path, PX_ROLE_CLIENT, &sockets->client, err);
}

/* ZeroMQ leaves the sockets of ipc addresses in the file system. */
static void unlink_ipc(const char *interface, int port)
{
    static const char separators[] = "-:";
    if (interface == NULL || strncmp(interface, "ipc://", 6) != 0)
        return;
    for (const char *separator = separators; *separator; separator++) {
        char path[PX_PATH_SIZE];
        snprintf(path, sizeof(path), "%s%c%d", interface + 6, *separator, port);
        unlink(path);
    }
}

static void close_plan(struct px_sockets *sockets, const struct plan *plans, size_t count,
                       const struct px_cluster_connection *file)
{
    for (size_t i = 0; i < count; i++) {
        struct px_socket *socket = *(struct px_socket **)((char *)sockets + plans[i].socket);
        int port = *(const int *)((const char *)file + plans[i].port);
        px_socket_destroy(socket);
        if (socket != NULL && port != 0)
            unlink_ipc(file->interface, port);
    }
}

/* Another controller of the same profile may have written its own since. */
static void unlink_own(const char *path, enum px_role role, const struct px_cluster_connection *own)
{
    struct px_cluster_connection file = {0};
    if (px_cluster_connection_read(path, role, &file, NULL) == 0 &&
        strcmp(file.key, own->key) == 0 && file.registration == own->registration)
        unlink(path);
    px_cluster_connection_fini(&file);
}

void px_sockets_fini(struct px_sockets *sockets, const struct px_settings *settings)
{
    if (sockets->files_written && !settings->reuse) {
        unlink_own(sockets->client_path, PX_ROLE_CLIENT, &sockets->client);
        unlink_own(sockets->engine_path, PX_ROLE_ENGINE, &sockets->engine);
    }
    close_plan(sockets, &query_plan, 1, &sockets->engine);
    close_plan(sockets, engine_plan, PX_COUNT(engine_plan), &sockets->engine);
    close_plan(sockets, client_plan, PX_COUNT(client_plan), &sockets->client);
    if (sockets->context != NULL)
        px_context_destroy(sockets->context);
    px_unread_destroy(sockets->unread);
    px_cluster_connection_fini(&sockets->client);
    px_cluster_connection_fini(&sockets->engine);
}
