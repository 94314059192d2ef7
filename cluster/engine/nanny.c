/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * nanny: turns "an engine has ended" into unregistration at once, without a missed heartbeat.
 *
 *     unregistration_request  {"id": 3, "px": {"cause": "killed by SIGSEGV ...",
 *                                              "running": "<msg_id>" or null, "begun": 18}}
 *
 * "begun" is how many items of the task had begun, and there if it has items (a part of a map).
 * "px" is an addition to the protocol; a hub that does not know it passes it over.
 *
 * A process of its own, because the fork server must not have a ZeroMQ context, and because it
 * outlives the fork server: when that is killed, the pipe between them ends, and the nanny
 * unregisters the engines that go down with it.
 */
#define _GNU_SOURCE
#include "engine.h"

#include "protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINGER_MS 3000
#define MOST_LINE 1024

struct nanny {
    const struct px_cluster_connection *connection;
    void *context; /* made with the first message */
    struct px_session *session;
    struct px_socket *hub;
    int *ids; /* registered, not ended */
    size_t count;
};

static int connect_hub(struct nanny *nanny, struct px_error *err)
{
    const struct px_cluster_connection *connection = nanny->connection;
    char endpoint[PX_ENDPOINT_SIZE];
    if (nanny->hub)
        return 0;
    nanny->session = px_session_create(connection->key, connection->signature_scheme, NULL, err);
    nanny->context = px_context_create(1);
    nanny->hub = nanny->session ? px_socket_create(nanny->context, PX_DEALER, err) : NULL;
    if (!nanny->hub)
        return -1;
    px_socket_set_linger(nanny->hub, LINGER_MS);
    if (connection->curve_serverkey && connection->curve_serverkey[0])
        px_socket_curve_client(nanny->hub, connection->curve_serverkey);
    if (px_cluster_endpoint(connection, connection->registration, endpoint, err) < 0)
        return -1;
    return px_socket_connect(nanny->hub, endpoint, err);
}

/* How an engine ended. */
struct end {
    const char *running; /* NULL: no request */
    long begun;          /* 0: not said */
    const char *cause;
};

static char *say_why(int id, const struct end *end)
{
    struct px_buf content = {0};
    px_buf_printf(&content, "{\"id\": %d, \"px\": {\"cause\": ", id);
    px_buf_json_string(&content, end->cause, strlen(end->cause));
    px_buf_text(&content, ", \"running\": ");
    if (end->running)
        px_buf_json_string(&content, end->running, strlen(end->running));
    else
        px_buf_text(&content, "null");
    if (end->running && end->begun > 0)
        px_buf_printf(&content, ", \"begun\": %ld", end->begun);
    px_buf_text(&content, "}}");
    return content.data;
}

static void unregister(struct nanny *nanny, int id, const struct end *end)
{
    struct px_error err;
    if (connect_hub(nanny, &err) < 0) {
        px_log(PX_ERROR, "unregistration.failed", "id=%d why=\"%s\"", id, err.text);
        return;
    }
    char *content = say_why(id, end);
    const struct px_draft draft = {.type = PX_UNREGISTRATION_REQUEST,
                                   .content = px_span_of(content)};
    struct px_msg *msg = px_session_build(nanny->session, &draft);
    if (px_socket_send(nanny->hub, &msg) != PX_SENT)
        px_msg_destroy(msg);
    free(content);
}

/* "-<id> <msg_id> <begun> <cause>" without what went before msg_id. */
static void on_death(struct nanny *nanny, int id, char *words)
{
    char *rest = NULL;
    const char *running = strtok_r(words, " \n", &rest);
    const char *begun = strtok_r(NULL, " \n", &rest);
    const char *cause = strtok_r(NULL, "\n", &rest);
    const struct end end = {.running = running && strcmp(running, "-") != 0 ? running : NULL,
                            .begun = begun ? strtol(begun, NULL, 10) : 0,
                            .cause = cause ? cause : "unknown"};
    unregister(nanny, id, &end);
}

static void on_line(struct nanny *nanny, char *line)
{
    char *end;
    const int id = (int)strtol(line + 1, &end, 10);
    if (line[0] == '+') {
        nanny->ids = px_realloc(nanny->ids, (nanny->count + 1) * sizeof *nanny->ids);
        nanny->ids[nanny->count++] = id;
        return;
    }
    for (size_t i = 0; i < nanny->count; i++) {
        if (nanny->ids[i] != id)
            continue;
        nanny->ids[i] = nanny->ids[--nanny->count];
        if (line[0] == '-')
            on_death(nanny, id, end);
        return;
    }
}

static void watch(struct nanny *nanny, int fd)
{
    char line[MOST_LINE];
    FILE *lines = fdopen(fd, "r");
    while (lines && fgets(line, sizeof line, lines))
        on_line(nanny, line);
    const struct end end = {.cause = "the fork server that kept it has died"};
    for (size_t i = 0; i < nanny->count; i++)
        unregister(nanny, nanny->ids[i], &end);
    px_socket_destroy(nanny->hub);
    px_context_destroy(nanny->context); /* waits until the messages are out */
}

static void become_nanny(void)
{
    /* What ends the fork server's group must leave time to report it. */
    static const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2};
    sigset_t nothing;
    setsid();
    for (size_t i = 0; i < PX_COUNT(ignored); i++)
        signal(ignored[i], SIG_IGN);
    sigemptyset(&nothing);
    sigprocmask(SIG_SETMASK, &nothing, NULL);
}

int px_nanny_start(const struct px_cluster_connection *connection, pid_t *pid, struct px_error *err)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return px_fail(err, PX_EIO, "no pipe: %s", strerror(errno));
    *pid = fork();
    if (*pid == 0) {
        struct nanny nanny = {.connection = connection};
        close(ends[1]);
        become_nanny();
        watch(&nanny, ends[0]);
        _exit(0);
    }
    close(ends[0]);
    if (*pid > 0)
        return ends[1];
    close(ends[1]);
    return px_fail(err, PX_EIO, "cannot fork: %s", strerror(errno));
}
