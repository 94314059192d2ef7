/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * tunnel: the controller's ports through ssh, as files of a directory that is this user's alone.
 *
 *     ssh -T -L DIR/t\:PORT:HOST:PORT ... SERVER "echo ready; exec cat"
 *         stdin     a pipe from the fork server and the nanny: ssh ends with the last of them
 *         stdout    "ready" once the forwards are there
 *         stderr    DIR/log, for the reason when it fails
 *
 * ssh is the system's, with the user's configuration and agent, and asks no questions. When it ends
 * early the fork server starts it again at the same places, and engines find the hub as they do
 * after any lost connection (registrar.c).
 */
#define _GNU_SOURCE
#include "tunnel.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONNECT_MS 30000
#define SAID_READY "ready"
#define READY SAID_READY "\n"
#define MOST_LOG 65536
#define MOST_WORDS (32 + 2 * (PX_MAX_LEAVES + 8))

struct px_tunnel {
    char dir[64];
    char *server, *host; /* host: the controller's, as the server knows it */
    char *words[MOST_WORDS + 1];
    size_t count;
    pid_t pid; /* 0: none */
    int64_t started_ms;
    bool lost; /* at least once */
    int stdin_fd;
};

static void add(struct px_tunnel *tunnel, char *word)
{
    if (tunnel->count < MOST_WORDS)
        tunnel->words[tunnel->count++] = word;
    else
        free(word);
}

static void add_port(struct px_tunnel *tunnel, int port)
{
    if (port <= 0)
        return;
    add(tunnel, px_strdup("-L"));
    add(tunnel, px_format("%s/t\\:%d:%s:%d", tunnel->dir, port, tunnel->host, port));
}

/* "user@host:port" is ssh's host and -p. */
static void add_server(struct px_tunnel *tunnel)
{
    char *colon = strrchr(tunnel->server, ':');
    if (colon && isdigit((unsigned char)colon[1]) && !colon[1 + strspn(colon + 1, "0123456789")]) {
        *colon = 0;
        add(tunnel, px_format("-p%s", colon + 1));
    }
    add(tunnel, px_strdup("--"));
    add(tunnel, px_strdup(tunnel->server));
    add(tunnel, px_strdup("echo " SAID_READY "; exec cat >/dev/null"));
}

static void fill_words(struct px_tunnel *tunnel, const char *key,
                       const struct px_cluster_connection *to)
{
    static const char *const usual[] = {"ssh",
                                        "-T",
                                        "-oBatchMode=yes",
                                        "-oControlMaster=no",
                                        "-oExitOnForwardFailure=yes",
                                        "-oStreamLocalBindUnlink=yes",
                                        "-oConnectTimeout=10",
                                        "-oServerAliveInterval=15"};
    const int ports[] = {to->registration, to->control, to->mux,    to->task,
                         to->iopub,        to->hb_ping, to->hb_pong};
    for (size_t i = 0; i < PX_COUNT(usual); i++)
        add(tunnel, px_strdup(usual[i]));
    if (key)
        add(tunnel, px_format("-i%s", key));
    for (size_t i = 0; i < PX_COUNT(ports); i++)
        add_port(tunnel, ports[i]);
    for (size_t i = 0; i < to->broadcast_count; i++)
        add_port(tunnel, to->broadcast[i]);
    add_server(tunnel);
}

static int spawn(struct px_tunnel *tunnel, const int fds[3], struct px_error *err)
{
    const int why = px_spawn(&tunnel->pid, tunnel->words, fds);
    if (why == 0)
        return 0;
    tunnel->pid = 0;
    return px_fail(err, PX_EIO, "cannot start ssh: %s", strerror(why));
}

static void close_all(const int *fds, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

/* Starts ssh. *said: where it says that it is ready; NULL: nobody listens. */
static int start(struct px_tunnel *tunnel, int *said, struct px_error *err)
{
    int in[2] = {-1, -1}, out[2] = {-1, -1};
    char *path = px_format("%s/log", tunnel->dir);
    const int log = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    free(path);
    int result = -1;
    if (log < 0 || pipe2(in, O_CLOEXEC) < 0 || (said && pipe2(out, O_CLOEXEC) < 0))
        px_fail(err, PX_EIO, "cannot start ssh: %s", strerror(errno));
    else
        result = spawn(tunnel, (const int[3]){in[0], said ? out[1] : log, log}, err);
    close_all((const int[3]){log, in[0], out[1]}, 3);
    if (result < 0) {
        close_all((const int[2]){in[1], out[0]}, 2);
        return -1;
    }
    tunnel->stdin_fd = in[1];
    tunnel->started_ms = px_now_ms();
    if (said)
        *said = out[0];
    return 0;
}

/* The last line of what ssh wrote. */
static int fail_with_log(const struct px_tunnel *tunnel, struct px_error *err)
{
    struct px_buf log = {0};
    char *path = px_format("%s/log", tunnel->dir);
    if (px_file_read(path, MOST_LOG, &log, NULL) < 0)
        log.size = 0;
    free(path);
    while (log.size && isspace((unsigned char)log.data[log.size - 1]))
        log.size--;
    size_t begin = log.size;
    while (begin && log.data[begin - 1] != '\n')
        begin--;
    const int size = log.size - begin > 200 ? 200 : (int)(log.size - begin);
    px_fail(err, PX_EIO, "ssh to %.100s failed: %.*s; it must connect without a question",
            tunnel->server, size ? size : 15, size ? log.data + begin : "it said nothing");
    px_buf_fini(&log);
    return -1;
}

static int await_ready(const struct px_tunnel *tunnel, int said, struct px_error *err)
{
    const int64_t end = px_now_ms() + CONNECT_MS;
    char word[64] = ""; /* the end of what was said: login scripts may speak first */
    size_t size = 0;
    for (int64_t left; (left = end - px_now_ms()) > 0;) {
        struct pollfd fd = {.fd = said, .events = POLLIN};
        if (poll(&fd, 1, (int)left) < 1)
            continue;
        const ssize_t more = read(said, word + size, sizeof word - 1 - size);
        if (more == 0)
            return fail_with_log(tunnel, err);
        size += more > 0 ? (size_t)more : 0;
        word[size] = 0;
        if (strstr(word, READY))
            return 0;
        const size_t kept = size < sizeof READY - 2 ? size : sizeof READY - 2;
        memmove(word, word + size - kept, kept);
        size = kept;
    }
    return px_fail(err, PX_EIO, "ssh to %.100s has not connected in %d s", tunnel->server,
                   CONNECT_MS / 1000);
}

/* The controller's host, as the connection has it. */
static char *host_of(const struct px_cluster_connection *connection, struct px_error *err)
{
    char endpoint[PX_ENDPOINT_SIZE];
    if (px_cluster_endpoint(connection, connection->registration, endpoint, err) < 0)
        return NULL;
    if (strncmp(endpoint, "tcp://", 6) != 0) {
        px_fail(err, PX_EINVAL, "ssh carries tcp, and the controller is at %.100s", endpoint);
        return NULL;
    }
    const char *host = endpoint + 6;
    return px_format("%.*s", (int)(strrchr(host, ':') - host), host);
}

struct px_tunnel *px_tunnel_open(const char *server, const char *key,
                                 struct px_cluster_connection *connection, struct px_error *err)
{
    struct px_tunnel *tunnel = px_alloc(sizeof *tunnel);
    *tunnel = (struct px_tunnel){.dir = "/tmp/px-XXXXXX", .stdin_fd = -1};
    int said = -1;
    free(connection->local); /* ssh was asked for, whoever listens here */
    connection->local = NULL;
    tunnel->host = host_of(connection, err);
    if (!tunnel->host || !mkdtemp(tunnel->dir)) {
        if (tunnel->host)
            px_fail(err, PX_EIO, "no directory for a tunnel: %s", strerror(errno));
        tunnel->dir[0] = 0;
        px_tunnel_close(tunnel);
        return NULL;
    }
    tunnel->server = px_strdup(server ? server : tunnel->host);
    fill_words(tunnel, key, connection);
    int result = start(tunnel, &said, err);
    if (result == 0)
        result = await_ready(tunnel, said, err);
    if (said >= 0)
        close(said);
    if (result < 0) {
        px_tunnel_close(tunnel);
        return NULL;
    }
    free(connection->interface);
    connection->interface = px_format("ipc://%s/t", tunnel->dir);
    return tunnel;
}

void px_tunnel_forget(struct px_tunnel *tunnel)
{
    if (tunnel && tunnel->stdin_fd >= 0)
        close(tunnel->stdin_fd);
    if (tunnel)
        tunnel->stdin_fd = -1;
}

bool px_tunnel_ended(struct px_tunnel *tunnel, pid_t pid)
{
    if (!tunnel || tunnel->pid != pid)
        return false;
    px_tunnel_forget(tunnel);
    tunnel->pid = 0;
    struct px_error why;
    fail_with_log(tunnel, &why);
    /* One that does not come up again is said to be lost once. */
    const bool lived = px_now_ms() - tunnel->started_ms >= CONNECT_MS;
    px_log(lived || !tunnel->lost ? PX_WARN : PX_DEBUG, "tunnel.lost", "why=\"%s\"", why.text);
    tunnel->lost = true;
    return true;
}

int px_tunnel_again(struct px_tunnel *tunnel, struct px_error *err)
{
    return start(tunnel, NULL, err);
}

static void remove_directory(const char *path)
{
    DIR *entries = opendir(path);
    for (struct dirent *entry; entries && (entry = readdir(entries)) != NULL;)
        unlinkat(dirfd(entries), entry->d_name, 0);
    if (entries)
        closedir(entries);
    rmdir(path);
}

void px_tunnel_close(struct px_tunnel *tunnel)
{
    if (!tunnel)
        return;
    px_tunnel_forget(tunnel);
    if (tunnel->pid > 0) {
        kill(tunnel->pid, SIGTERM);
        waitpid(tunnel->pid, NULL, 0);
    }
    if (tunnel->dir[0])
        remove_directory(tunnel->dir);
    for (size_t i = 0; i < tunnel->count; i++)
        free(tunnel->words[i]);
    free(tunnel->server);
    free(tunnel->host);
    free(tunnel);
}
