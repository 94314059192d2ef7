/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * asker: a process that keeps one question standing with the hub, and passes on its answers.
 *
 *     supervisor  ── a line: what to ask ──▶  asker  ── adapt_request ──▶  hub
 *                 ◀── a line: the answer ──          ◀── adapt_reply ────
 *
 * It is a process of its own for the same reason as the client of confirm.c, and no client of that
 * kind, which would be sent all that engines print. The question is put again now and then, for a
 * controller that was started again has forgotten it. It ends when the connection file is not the
 * one that it has read.
 */
#define _GNU_SOURCE
#include "adapt.h"

#include "protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define AGAIN_MS 15000
#define PATIENCE_MS 180000 /* for a controller that is lost; an engine's is as long */
#define GONE 3             /* exit status */
#define MOMENT_MS 100      /* from a connection's end to that of the file */

/* ---- in the child ----------------------------------------------------------------- */

struct child {
    const char *file;
    struct stat stat; /* of it, when it was read */
    int fd;
    struct px_loop *loop;
    struct px_session *session;
    struct px_socket *hub, *monitor;
    struct px_timer *timer; /* after its connection came or went */
    int64_t lost_ms;        /* when it went; 0: it is there, or never was */
    bool gone;              /* for so long that nobody waits for it any more */
    struct px_buf rest;
    char *question; /* NULL: none yet */
};

static void ask(struct child *child)
{
    const struct px_draft draft = {.type = PX_ADAPT_REQUEST,
                                   .content = px_span_of(child->question)};
    struct px_msg *msg = px_session_build(child->session, &draft);
    if (px_socket_send(child->hub, &msg) != PX_SENT)
        px_msg_destroy(msg);
}

static void on_question(void *ctx, const char *line)
{
    struct child *child = ctx;
    free(child->question);
    child->question = px_strdup(line);
    ask(child);
}

static void on_supervisor(struct px_loop *loop, void *ctx)
{
    struct child *child = ctx;
    if (px_lines_read(child->fd, &child->rest, on_question, child) < 0)
        px_loop_stop(loop);
}

static void pass_on(struct child *child, const struct px_msg *msg)
{
    const struct px_span content = px_msg_content(msg);
    if (px_fd_write(child->fd, content) < 0 || px_fd_write(child->fd, PX_SPAN("\n")) < 0)
        px_loop_stop(child->loop);
}

static void on_hub(struct px_loop *loop, void *ctx)
{
    struct child *child = ctx;
    struct px_header header;
    (void)loop;
    for (struct px_msg *msg; (msg = px_socket_recv(child->hub)); px_msg_destroy(msg))
        if (px_msg_locate(msg, NULL) == 0 && px_session_verify(child->session, msg, NULL) == 0 &&
            px_header_scan(px_msg_header(msg), &header, NULL) == 0 &&
            (px_span_equal(header.msg_type, PX_ADAPT_REPLY) ||
             px_span_equal(header.msg_type, "hub_error"))) /* of a hub that knows no such request */
            pass_on(child, msg);
}

/* A controller that ends removes its file; one that starts writes it; one that is to be restored
 * leaves it. */
static void on_again(struct px_loop *loop, void *ctx)
{
    struct child *child = ctx;
    struct stat now;
    child->gone = child->lost_ms && px_now_ms() - child->lost_ms > PATIENCE_MS;
    if (child->gone || stat(child->file, &now) < 0 || now.st_ino != child->stat.st_ino ||
        now.st_mtim.tv_sec != child->stat.st_mtim.tv_sec)
        px_loop_stop(loop);
    else if (child->question)
        ask(child);
}

static void on_moment(struct px_loop *loop, void *ctx)
{
    ((struct child *)ctx)->timer = NULL;
    on_again(loop, ctx);
}

static void on_monitor(struct px_loop *loop, void *ctx)
{
    struct child *child = ctx;
    for (struct px_msg *event; (event = px_socket_recv(child->monitor)); px_msg_destroy(event)) {
        child->lost_ms = px_monitor_says_lost(event) ? px_now_ms() : 0;
        if (!child->timer)
            child->timer = px_loop_timer(loop, MOMENT_MS, 0, on_moment, child);
    }
}

static int connect_hub(struct child *child, void *context, struct px_error *err)
{
    struct px_cluster_connection connection;
    char endpoint[PX_ENDPOINT_SIZE];
    if (stat(child->file, &child->stat) < 0 ||
        px_cluster_connection_read(child->file, PX_ROLE_CLIENT, &connection, err) < 0)
        return -1;
    int result = -1;
    child->session = px_session_create(connection.key, connection.signature_scheme, NULL, err);
    child->hub = child->session ? px_socket_create(context, PX_DEALER, err) : NULL;
    if (child->hub && connection.curve_serverkey && connection.curve_serverkey[0])
        px_socket_curve_client(child->hub, connection.curve_serverkey);
    if (child->hub && px_cluster_endpoint(&connection, connection.registration, endpoint, err) == 0)
        result = (child->monitor = px_socket_monitor(child->hub, err))
                     ? px_socket_connect(child->hub, endpoint, err)
                     : -1;
    px_cluster_connection_fini(&connection);
    return result;
}

PX_NORETURN static void run_child(const char *file, pid_t parent, int fd)
{
    struct px_error err;
    struct child child = {.file = file, .fd = fd, .loop = px_loop_create()};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    px_close_descriptors(&fd, 1);
    if (getppid() != parent || connect_hub(&child, px_context_create(1), &err) < 0)
        _exit(1);
    px_loop_fd(child.loop, fd, on_supervisor, &child);
    px_loop_socket(child.loop, px_socket_pollable(child.hub), on_hub, &child);
    px_loop_socket(child.loop, px_socket_pollable(child.monitor), on_monitor, &child);
    px_loop_timer(child.loop, AGAIN_MS, AGAIN_MS, on_again, &child);
    /* The sockets end with the process. */
    _exit(px_loop_run(child.loop, &err) < 0 ? 1 : child.gone ? GONE : 0);
}

/* ---- in the supervisor ------------------------------------------------------------ */

struct px_asker {
    struct px_loop *loop;
    struct px_watch *watch;
    pid_t pid;
    int fd;
    struct px_buf rest;
    struct px_asker_events events;
};

static void on_answer(void *ctx, const char *line)
{
    struct px_asker *asker = ctx;
    json_t *reply = px_json_parse(px_span_of(line), NULL);
    if (reply && asker->fd >= 0)
        asker->events.answered(asker->events.ctx, reply);
    json_decref(reply);
}

static void on_child(struct px_loop *loop, void *ctx)
{
    struct px_asker *asker = ctx;
    (void)loop;
    if (px_lines_read(asker->fd, &asker->rest, on_answer, asker) >= 0)
        return;
    int status = 0;
    waitpid(asker->pid, &status, 0); /* it is ending: nobody else has its end of the socket */
    asker->pid = 0;
    px_asker_end(asker);
    asker->events.lost(asker->events.ctx, WIFEXITED(status) && WEXITSTATUS(status) == GONE);
}

struct px_asker *px_asker_start(struct px_loop *loop, const struct px_place *place,
                                const struct px_asker_events *events, struct px_error *err)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) {
        px_fail(err, PX_EIO, "cannot make a pair of sockets: %s", strerror(errno));
        return NULL;
    }
    const pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        run_child(place->client_file, parent, ends[1]);
    close(ends[1]);
    if (pid < 0) {
        px_fail(err, PX_EIO, "cannot fork: %s", strerror(errno));
        close(ends[0]);
        return NULL;
    }
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    struct px_asker *asker = px_alloc(sizeof *asker);
    *asker = (struct px_asker){.loop = loop, .pid = pid, .fd = ends[0], .events = *events};
    asker->watch = px_loop_fd(loop, ends[0], on_child, asker);
    return asker;
}

/* A question is short, and the child reads; should it not, the next one comes through. */
void px_asker_ask(struct px_asker *asker, json_t *content)
{
    char *line = json_dumps(content, JSON_COMPACT);
    char *text = px_format("%s\n", line);
    if (asker && asker->fd >= 0 && px_fd_write(asker->fd, px_span_of(text)) < 0)
        px_log(PX_WARN, "asker.write", "why=\"%s\"", strerror(errno));
    free(text);
    free(line);
    json_decref(content);
}

void px_asker_end(struct px_asker *asker)
{
    if (!asker || asker->fd < 0)
        return;
    px_loop_unwatch(asker->loop, asker->watch);
    close(asker->fd);
    asker->fd = -1;
    if (asker->pid) { /* ours and not reaped: it cannot be another */
        kill(asker->pid, SIGKILL);
        waitpid(asker->pid, NULL, 0);
    }
}

void px_asker_destroy(struct px_asker *asker)
{
    px_asker_end(asker);
    if (asker)
        px_buf_fini(&asker->rest);
    free(asker);
}
