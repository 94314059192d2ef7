/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Connection files: a kernel's (jupyter_client, "Connection files") and a cluster's pair,
 * ipcontroller-{client,engine}.json (ipyparallel 7.1, controller/app.py, save_connection_dict).
 *
 * Each file is a table of fields: key, type, place in the struct, who has it and who needs
 * it. Reading, checking, writing and freeing walk the same rows. A file is read into a fresh
 * struct and handed out only when all of it is right.
 */
#define _GNU_SOURCE
#include "wire/wire.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_FILE (1u << 20) /* real ones have under 1 KB */
#define MAX_LOCAL 80        /* of the 107 bytes that such an address may have */

/* A PORT_OR_NONE that is 0 is not written. TEXT_OR_NULL and TEXT_OR_NONE may be null or lack; the
 * one is written as null then, the other not. */
enum field_type { PORT, PORT_OR_NONE, PORTS, TEXT, TEXT_OR_NULL, TEXT_OR_NONE };
enum { CLIENT = 1, ENGINE = 2, BOTH = 3 };

struct field {
    const char *key;
    enum field_type type;
    size_t offset;
    int has;               /* roles whose file holds it; a kernel's file counts as BOTH */
    int needs;             /* roles that refuse a file without it */
    const char *otherwise; /* TEXT: the value when it may be missing */
};

#define AT(member) offsetof(struct px_cluster_connection, member)
static const struct field cluster_fields[] = {
    {"ssh", TEXT, AT(ssh), BOTH, 0, ""},
    {"interface", TEXT, AT(interface), BOTH, BOTH, NULL},
    {"registration", PORT, AT(registration), BOTH, BOTH, NULL},
    {"control", PORT, AT(control), BOTH, BOTH, NULL},
    {"mux", PORT, AT(mux), BOTH, BOTH, NULL},
    {"task", PORT, AT(task), BOTH, BOTH, NULL},
    {"task_scheme", TEXT, AT(task_scheme), CLIENT, CLIENT, NULL},
    {"iopub", PORT, AT(iopub), BOTH, BOTH, NULL},
    {"notification", PORT, AT(notification), CLIENT, CLIENT, NULL},
    {"hb_ping", PORT, AT(hb_ping), ENGINE, ENGINE, NULL},
    {"hb_pong", PORT, AT(hb_pong), ENGINE, ENGINE, NULL},
    {"broadcast", PORTS, AT(broadcast), BOTH, BOTH, NULL},
    {"key", TEXT, AT(key), BOTH, CLIENT, ""},
    {"curve_serverkey", TEXT_OR_NULL, AT(curve_serverkey), BOTH, 0, NULL},
    {"location", TEXT, AT(location), BOTH, 0, ""},
    {"pack", TEXT, AT(pack), BOTH, BOTH, NULL},
    {"unpack", TEXT, AT(unpack), BOTH, BOTH, NULL},
    {"signature_scheme", TEXT, AT(signature_scheme), BOTH, BOTH, NULL},
    {"px_local", TEXT, AT(local), BOTH, 0, ""},
};
#undef AT

#define AT(member) offsetof(struct px_kernel_connection, member)
static const struct field kernel_fields[] = {
    {"shell_port", PORT, AT(shell_port), BOTH, 0, NULL},
    {"iopub_port", PORT, AT(iopub_port), BOTH, 0, NULL},
    {"stdin_port", PORT, AT(stdin_port), BOTH, 0, NULL},
    {"control_port", PORT, AT(control_port), BOTH, 0, NULL},
    {"hb_port", PORT, AT(hb_port), BOTH, 0, NULL},
    {"registration_port", PORT_OR_NONE, AT(registration_port), BOTH, 0, NULL},
    {"ip", TEXT, AT(ip), BOTH, 0, "127.0.0.1"},
    {"key", TEXT, AT(key), BOTH, 0, ""},
    {"transport", TEXT, AT(transport), BOTH, 0, "tcp"},
    {"signature_scheme", TEXT, AT(signature_scheme), BOTH, 0, "hmac-sha256"},
    {"kernel_name", TEXT, AT(kernel_name), BOTH, 0, ""},
    {"curve_publickey", TEXT_OR_NONE, AT(curve_publickey), BOTH, 0, NULL},
    {"curve_secretkey", TEXT_OR_NONE, AT(curve_secretkey), BOTH, 0, NULL},
};
#undef AT

/* ---- reading ---- */

static int refuse(const char *name, const struct field *field, const char *why,
                  struct px_error *err)
{
    return px_fail(err, PX_EINVAL, "%s: \"%s\" %s", name, field->key, why);
}

static int read_text(const json_t *value, const struct field *field, const char *name, char **out,
                     struct px_error *err)
{
    if (json_is_null(value) && field->type != TEXT)
        return 0;
    if (!json_is_string(value))
        return refuse(name, field, "is not a string", err);
    if (strlen(json_string_value(value)) != json_string_length(value))
        return refuse(name, field, "has a zero byte in it", err);
    *out = px_strdup(json_string_value(value));
    return 0;
}

static int read_port(const json_t *value, const struct field *field, const char *name, int *out,
                     struct px_error *err)
{
    const json_int_t port = json_integer_value(value);
    if (!json_is_integer(value) || port < 0 || port > 65535)
        return refuse(name, field, "is not a port number", err);
    *out = (int)port;
    return 0;
}

static int read_ports(const json_t *value, const struct field *field, const char *name,
                      struct px_cluster_connection *out, struct px_error *err)
{
    if (!json_is_array(value)) {
        out->broadcast_count = 1;
        return read_port(value, field, name, &out->broadcast[0], err);
    }
    const size_t count = json_array_size(value);
    if (count == 0 || count > PX_MAX_LEAVES)
        return refuse(name, field, "must list 1 to 64 ports", err);
    for (size_t i = 0; i < count; i++)
        if (read_port(json_array_get(value, i), field, name, &out->broadcast[i], err) < 0)
            return -1;
    out->broadcast_count = count;
    return 0;
}

static int read_field(const json_t *object, const struct field *field, int role, const char *name,
                      void *out, struct px_error *err)
{
    void *place = (char *)out + field->offset;
    const json_t *value = json_object_get(object, field->key);
    if (!value) {
        if (field->needs & role)
            return refuse(name, field, "is missing", err);
        if (field->otherwise)
            *(char **)place = px_strdup(field->otherwise);
        return 0;
    }
    switch (field->type) {
    case PORT:
    case PORT_OR_NONE:
        return read_port(value, field, name, place, err);
    case PORTS:
        return read_ports(value, field, name, out, err);
    case TEXT:
    case TEXT_OR_NULL:
    case TEXT_OR_NONE:
        break;
    }
    return read_text(value, field, name, place, err);
}

static int read_fields(struct px_span text, const char *name, const struct field *fields,
                       size_t count, int role, void *out, struct px_error *err)
{
    struct px_error why;
    json_t *object = px_json_parse(text, &why);
    if (!object)
        return px_fail(err, PX_EINVAL, "%s: %s", name, why.text);
    int result = 0;
    for (size_t i = 0; i < count && result == 0; i++)
        result = read_field(object, &fields[i], role, name, out, err);
    json_decref(object);
    return result;
}

static void fini_fields(const struct field *fields, size_t count, void *connection)
{
    for (size_t i = 0; i < count; i++)
        if (fields[i].type >= TEXT)
            free(*(char **)((char *)connection + fields[i].offset));
}

/* ---- writing ---- */

/* NULL: not written. */
static json_t *field_value(const struct field *field, int role, const void *connection)
{
    const void *place = (const char *)connection + field->offset;
    const struct px_cluster_connection *cluster = connection;
    switch (field->type) {
    case PORT:
        return json_integer(*(const int *)place);
    case PORT_OR_NONE:
        return *(const int *)place ? json_integer(*(const int *)place) : NULL;
    case PORTS: {
        if (role == CLIENT)
            return json_integer(cluster->broadcast[0]);
        json_t *ports = json_array();
        for (size_t i = 0; i < cluster->broadcast_count; i++)
            json_array_append_new(ports, json_integer(cluster->broadcast[i]));
        return ports;
    }
    case TEXT:
    case TEXT_OR_NULL:
    case TEXT_OR_NONE:
        break;
    }
    const char *text = *(char *const *)place;
    if (text || field->type == TEXT)
        return json_string(text ? text : "");
    return field->type == TEXT_OR_NULL ? json_null() : NULL;
}

static int write_fields(const char *path, const struct field *fields, size_t count, int role,
                        const void *connection, struct px_error *err)
{
    json_t *object = json_object();
    for (size_t i = 0; i < count; i++) {
        json_t *value = fields[i].has & role ? field_value(&fields[i], role, connection) : NULL;
        if (value)
            json_object_set_new(object, fields[i].key, value);
    }
    char *text = json_dumps(object, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    json_decref(object);
    if (!text)
        return px_fail(err, PX_EINVAL, "%s: a value is not UTF-8", path);
    const int result = px_file_write(path, 0600, px_span_of(text), err);
    free(text);
    return result;
}

/* ---- a kernel's file ---- */

/* Keys that cannot serve are no reason to go without. */
static int check_curve(const char *path, const struct px_kernel_connection *connection,
                       struct px_error *err)
{
    const char *named = connection->curve_publickey, *secret = connection->curve_secretkey;
    char follows[PX_CURVE_KEY_SIZE];
    struct px_error why;
    if (!named && !secret)
        return 0;
    if (!secret)
        return px_fail(err, PX_EINVAL, "%s: \"curve_publickey\" without \"curve_secretkey\"", path);
    if (px_curve_public(follows, secret, &why) != 0)
        return px_fail(err, PX_EINVAL, "%s: \"curve_secretkey\": %s", path, why.text);
    if (named && strcmp(named, follows) != 0)
        return px_fail(err, PX_EINVAL, "%s: \"curve_publickey\" is not that of \"curve_secretkey\"",
                       path);
    return 0;
}

int px_kernel_connection_read(const char *path, struct px_kernel_connection *out,
                              struct px_error *err)
{
    *out = (struct px_kernel_connection){0};
    struct px_buf text = {0};
    int result = px_file_read(path, MAX_FILE, &text, err);
    if (result == 0)
        result = read_fields(px_buf_span(&text), path, kernel_fields, PX_COUNT(kernel_fields), BOTH,
                             out, err);
    px_buf_fini(&text);
    if (result == 0 && strcmp(out->transport, "tcp") != 0 && strcmp(out->transport, "ipc") != 0)
        result = px_fail(err, PX_EINVAL, "%s: transport \"%.40s\" is neither tcp nor ipc", path,
                         out->transport);
    if (result == 0)
        result = check_curve(path, out, err);
    if (result == 0 && out->registration_port)
        out->shell_port = out->control_port = out->stdin_port = out->iopub_port = out->hb_port = 0;
    if (result < 0)
        px_kernel_connection_fini(out);
    return result;
}

int px_kernel_connection_write(const char *path, const struct px_kernel_connection *connection,
                               struct px_error *err)
{
    return write_fields(path, kernel_fields, PX_COUNT(kernel_fields), BOTH, connection, err);
}

void px_kernel_connection_fini(struct px_kernel_connection *connection)
{
    fini_fields(kernel_fields, PX_COUNT(kernel_fields), connection);
    *connection = (struct px_kernel_connection){0};
}

/* ---- a cluster's file ---- */

int px_cluster_connection_parse(struct px_span json, const char *name, enum px_role role,
                                struct px_cluster_connection *out, struct px_error *err)
{
    *out = (struct px_cluster_connection){0};
    const int mask = role == PX_ROLE_CLIENT ? CLIENT : ENGINE;
    int result = read_fields(json, name, cluster_fields, PX_COUNT(cluster_fields), mask, out, err);
    if (result == 0 && (strcmp(out->pack, "json") != 0 || strcmp(out->unpack, "json") != 0))
        result = px_fail(err, PX_EINVAL,
                         "%s: packer \"%.60s\": only json is spoken here, so start the "
                         "controller with it",
                         name, strcmp(out->pack, "json") != 0 ? out->pack : out->unpack);
    if (result < 0)
        px_cluster_connection_fini(out);
    return result;
}

int px_cluster_connection_read(const char *path, enum px_role role,
                               struct px_cluster_connection *out, struct px_error *err)
{
    *out = (struct px_cluster_connection){0};
    struct px_buf text = {0};
    int result = px_file_read(path, MAX_FILE, &text, err);
    if (result == 0)
        result = px_cluster_connection_parse(px_buf_span(&text), path, role, out, err);
    px_buf_fini(&text);
    return result;
}

int px_cluster_connection_write(const char *path, enum px_role role,
                                const struct px_cluster_connection *connection,
                                struct px_error *err)
{
    return write_fields(path, cluster_fields, PX_COUNT(cluster_fields),
                        role == PX_ROLE_CLIENT ? CLIENT : ENGINE, connection, err);
}

void px_cluster_connection_fini(struct px_cluster_connection *connection)
{
    fini_fields(cluster_fields, PX_COUNT(cluster_fields), connection);
    *connection = (struct px_cluster_connection){0};
}

/* ---- endpoints: which address reaches the controller from here ---- */

static bool is_this_machine(const struct in_addr *address)
{
    if ((ntohl(address->s_addr) >> 24) == 127)
        return true;
    struct ifaddrs *all;
    if (getifaddrs(&all) < 0)
        return false;
    bool found = false;
    for (const struct ifaddrs *one = all; one && !found; one = one->ifa_next)
        if (one->ifa_addr && one->ifa_addr->sa_family == AF_INET)
            found = ((const struct sockaddr_in *)(const void *)one->ifa_addr)->sin_addr.s_addr ==
                    address->s_addr;
    freeifaddrs(all);
    return found;
}

/* [, an address, ] */
#define ADDRESS_SIZE (INET6_ADDRSTRLEN + 2)

static void put_address(const struct sockaddr *found, char out[ADDRESS_SIZE])
{
    const struct sockaddr_in6 *six = (const void *)found;
    const struct sockaddr_in *four = (const void *)found;
    char text[INET6_ADDRSTRLEN] = "";
    if (found->sa_family == AF_INET6) {
        inet_ntop(AF_INET6, &six->sin6_addr, text, sizeof text);
        snprintf(out, ADDRESS_SIZE, "[%s]", text);
    } else if (!is_this_machine(&four->sin_addr)) {
        inet_ntop(AF_INET, &four->sin_addr, out, ADDRESS_SIZE);
    }
}

/* `location` (a host name, an address, or "") as an address for a wildcard interface, which may take
 * IPv6 besides. */
static int locate(const char *location, bool six, char out[ADDRESS_SIZE], struct px_error *err)
{
    char host[256] = "";
    strcpy(out, "127.0.0.1");
    gethostname(host, sizeof host - 1);
    if (!location || !location[0] || strcmp(location, host) == 0)
        return 0;
    struct addrinfo *found, hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
    int refused = getaddrinfo(location, NULL, &hints, &found);
    hints.ai_family = AF_INET6;
    if (refused && six)
        refused = getaddrinfo(location, NULL, &hints, &found);
    if (refused)
        return px_fail(err, PX_ENOENT, "the controller's location '%.200s' is not known: %s",
                       location, gai_strerror(refused));
    put_address(found->ai_addr, out);
    freeaddrinfo(found);
    return 0;
}

static int network_endpoint(const struct px_cluster_connection *connection, int port,
                            char out[PX_ENDPOINT_SIZE], struct px_error *err)
{
    const char *interface = connection->interface;
    const char *ip = strstr(interface, "://");
    if (!ip || ip - interface > 8 || strlen(interface) > 250)
        return px_fail(err, PX_EINVAL, "interface '%.60s' is not transport://address", interface);
    ip += 3;
    const bool six = strcmp(ip, "[::]") == 0;
    if (strcmp(ip, "*") != 0 && strcmp(ip, "0.0.0.0") != 0 && !six) {
        snprintf(out, PX_ENDPOINT_SIZE, "%s:%d", interface, port);
        return 0;
    }
    char address[ADDRESS_SIZE];
    if (locate(connection->location, six, address, err) < 0)
        return -1;
    snprintf(out, PX_ENDPOINT_SIZE, "%.*s%s:%d", (int)(ip - interface), interface, address, port);
    return 0;
}

bool px_cluster_local(const struct px_cluster_connection *connection, int port,
                      char out[PX_ENDPOINT_SIZE])
{
    const char *name = connection->local;
    if (!name || !name[0] || strlen(name) > MAX_LOCAL)
        return false;
    snprintf(out, PX_ENDPOINT_SIZE, "ipc://@%s-%d", name, port);
    return true;
}

/* Whether there is such an address here. It is of the kernel's, not of the file system's: it is
 * seen in one network name space, and goes with the process that listens there. */
static bool answers(const char *endpoint)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *name = endpoint + sizeof "ipc://@" - 1;
    const size_t size = strlen(name);
    memcpy(address.sun_path + 1, name, size);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return false;
    const socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + size);
    const bool there = connect(fd, (const struct sockaddr *)&address, length) == 0;
    close(fd);
    return there;
}

int px_cluster_endpoint(const struct px_cluster_connection *connection, int port,
                        char out[PX_ENDPOINT_SIZE], struct px_error *err)
{
    char local[PX_ENDPOINT_SIZE];
    if (network_endpoint(connection, port, out, err) < 0)
        return -1;
    if (px_cluster_local(connection, port, local) && answers(local))
        strcpy(out, local);
    return 0;
}
