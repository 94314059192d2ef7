/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sets of proxies: start them, read what they say, reap them and tell why they ended.
 *
 * Where a proxy talks, its lines are a fork server's (lines.c), and the pids in them are another
 * host's: nothing here looks them up.
 */
#define _GNU_SOURCE
#include "proxy.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_LOG (1u << 20)
#define SHOWN 10 /* of many alike, in a report */

static struct px_proxy_set *set_of(const struct px_set *set)
{
    return (struct px_proxy_set *)set;
}

struct px_proxy_set *px_proxy_set_create(const struct px_launcher_ops *ops,
                                         const struct px_set_spec *spec, size_t size)
{
    struct px_proxy_set *set = px_alloc(size);
    set->base = (struct px_set){.ops = ops, .pid = -1};
    if (spec) {
        set->loop = spec->loop;
        set->events = spec->events;
        set->count = spec->count;
    }
    return set;
}

void px_proxy_close_stdin(struct px_proxy *proxy)
{
    if (proxy->stdin_fd >= 0)
        close(proxy->stdin_fd);
    proxy->stdin_fd = -1;
}

static void close_stdout(struct px_proxy *proxy)
{
    if (proxy->stdout_fd < 0)
        return;
    px_loop_unwatch(proxy->set->loop, proxy->watch);
    close(proxy->stdout_fd);
    proxy->watch = NULL;
    proxy->stdout_fd = -1;
}

void px_proxy_destroy(struct px_set *base)
{
    struct px_proxy_set *set = set_of(base);
    for (size_t i = 0; i < set->proxy_count; i++) {
        struct px_proxy *proxy = set->proxies[i];
        px_proxy_close_stdin(proxy);
        close_stdout(proxy);
        px_buf_fini(&proxy->line);
        free(proxy->engines);
        free(proxy->label);
        free(proxy->log);
        free(proxy);
    }
    free(set->proxies);
    json_decref(set->state);
    free(set);
}

static struct px_proxy *add(struct px_proxy_set *set, const char *label, const char *log)
{
    struct px_proxy *proxy = px_alloc(sizeof *proxy);
    *proxy = (struct px_proxy){.set = set,
                               .label = px_strdup(label),
                               .log = px_strdup(log),
                               .stdin_fd = -1,
                               .stdout_fd = -1};
    set->proxies = px_realloc(set->proxies, (set->proxy_count + 1) * sizeof(struct px_proxy *));
    set->proxies[set->proxy_count++] = proxy;
    return proxy;
}

/* ---- what they say ---- */

static struct px_far_engine *engine_of(struct px_proxy *proxy, pid_t pid)
{
    for (size_t i = 0; i < proxy->engine_count; i++)
        if (proxy->engines[i].pid == pid && !proxy->engines[i].ended)
            return &proxy->engines[i];
    return NULL;
}

static struct px_far_engine *on_started(struct px_proxy *proxy, pid_t pid)
{
    struct px_far_engine *engine = engine_of(proxy, pid);
    if (engine)
        return engine;
    for (size_t i = 0; i < proxy->engine_count && !engine; i++)
        if (proxy->engines[i].ended) /* makes room, so that restarts cost nothing */
            engine = &proxy->engines[i];
    if (!engine) {
        proxy->engines =
            px_realloc(proxy->engines, (proxy->engine_count + 1) * sizeof *proxy->engines);
        engine = &proxy->engines[proxy->engine_count++];
    }
    *engine = (struct px_far_engine){.pid = pid, .id = -1};
    return engine;
}

static void on_registered(struct px_proxy *proxy, int id, pid_t pid)
{
    struct px_proxy_set *set = proxy->set;
    struct px_far_engine *engine = on_started(proxy, pid);
    if (engine->id >= 0)
        return;
    engine->id = id;
    if (set->events.registered)
        set->events.registered(&set->base, id, pid, set->events.ctx);
}

static void on_exited(struct px_proxy *proxy, pid_t pid, const char *why)
{
    struct px_proxy_set *set = proxy->set;
    struct px_far_engine *engine = engine_of(proxy, pid);
    char text[300];
    if (!engine)
        return;
    engine->ended = true;
    if (proxy->asked || !set->events.ended)
        return;
    set->base.lost++;
    snprintf(text, sizeof text, "%.100s: engine process %ld ended: %.150s", proxy->label, (long)pid,
             why);
    set->events.ended(&set->base, 0, text, set->events.ctx);
}

static void on_line(void *ctx, const char *line)
{
    struct px_proxy *proxy = ctx;
    const struct px_report report = px_report_read(line);
    const bool first = !proxy->heard;
    proxy->heard = true;
    if (report.kind == PX_REPORT_STARTED)
        on_started(proxy, report.pid);
    else if (report.kind == PX_REPORT_REGISTERED)
        on_registered(proxy, report.id, report.pid);
    else if (report.kind == PX_REPORT_EXITED)
        on_exited(proxy, report.pid, report.why);
    else if (line[0]) /* a login shell's greeting, for one */
        px_log(PX_DEBUG, "proxy.unknown", "from=%s line=\"%.80s\"", proxy->label, line);
    if (first && proxy->set->settled)
        proxy->set->settled(proxy->set);
}

/* One read's worth. False when there is nothing more for now. */
static bool read_lines(struct px_proxy *proxy)
{
    const int got =
        proxy->stdout_fd < 0 ? 0 : px_lines_read(proxy->stdout_fd, &proxy->line, on_line, proxy);
    if (got < 0)
        close_stdout(proxy);
    return got > 0;
}

static void on_stdout(struct px_loop *loop, void *ctx)
{
    (void)loop;
    read_lines(ctx);
}

/* ---- starting ---- */

static void close_pair(const int ends[2])
{
    if (ends[0])
        close(ends[0]);
    if (ends[1])
        close(ends[1]);
}

struct px_proxy *px_proxy_start(struct px_proxy_set *set, const struct px_proxy_spec *spec,
                                struct px_error *err)
{
    int in[2] = {0}, out[2] = {0}; /* 0: px_spawn's "none" */
    struct px_process process;
    if (spec->talks && (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0)) {
        px_fail(err, PX_EIO, "cannot make a pipe: %s", strerror(errno));
        goto fail;
    }
    const struct px_spawn spawn = {.argv = spec->argv,
                                   .log = spec->log,
                                   .keep_fd = -1,
                                   .in_fd = in[0],
                                   .out_fd = out[1],
                                   .env = spec->env};
    if (px_process_spawn(&spawn, &process, err) < 0)
        goto fail;
    px_log(PX_DEBUG, "proxy.started", "pid=%ld program=%s for=%s", (long)process.pid, spec->argv[0],
           spec->label);
    struct px_proxy *proxy = add(set, spec->label, spec->log);
    proxy->process = process;
    proxy->child = true;
    proxy->count = spec->count;
    if (spec->talks) {
        close(in[0]);
        close(out[1]);
        proxy->stdin_fd = in[1];
        proxy->stdout_fd = out[0];
        fcntl(in[1], F_SETFL, O_NONBLOCK);
        fcntl(out[0], F_SETFL, O_NONBLOCK);
        proxy->watch = px_loop_fd(set->loop, out[0], on_stdout, proxy);
    }
    return proxy;
fail:
    close_pair(in);
    close_pair(out);
    return NULL;
}

void px_proxy_adopt(struct px_proxy_set *set, struct px_process process, const char *log)
{
    add(set, "", log)->process = process;
}

struct px_set *px_proxy_abandon(struct px_proxy_set *set)
{
    set->events = (struct px_set_events){0};
    for (size_t i = 0; i < set->proxy_count; i++) {
        px_process_signal_group(set->proxies[i]->process, SIGKILL);
        waitpid(set->proxies[i]->process.pid, NULL, 0);
    }
    px_proxy_destroy(&set->base);
    return NULL;
}

/* ---- signalling and ends ---- */

void px_proxy_signal(struct px_set *base, int signo)
{
    struct px_proxy_set *set = set_of(base);
    for (size_t i = 0; i < set->proxy_count; i++) {
        struct px_proxy *proxy = set->proxies[i];
        proxy->asked = proxy->asked || signo == SIGTERM || signo == SIGKILL;
        if (proxy->ended)
            continue;
        if (signo == SIGKILL)
            px_process_signal_group(proxy->process, signo);
        else
            px_process_signal(proxy->process, signo);
    }
}

/* What its log says of why the program failed; "" when nothing. */
static void find_reason(const struct px_proxy *proxy, char *out, size_t size)
{
    struct px_buf log = {0};
    out[0] = 0;
    if (proxy->set->reason && px_file_read(proxy->log, MAX_LOG, &log, NULL) == 0 && log.size)
        proxy->set->reason(log.data, out, size);
    px_buf_fini(&log);
}

/* "<label>: <what its log says, or how it ended>" */
static void describe_end(const struct px_proxy *proxy, const siginfo_t *info, char *out,
                         size_t size)
{
    char reason[300];
    find_reason(proxy, reason, sizeof reason);
    const char *name = sigabbrev_np(info->si_status);
    if (reason[0])
        snprintf(out, size, "%s: %s", proxy->label, reason);
    else if (info->si_code == CLD_EXITED)
        snprintf(out, size, "%s: ended with exit status %d", proxy->label, info->si_status);
    else
        snprintf(out, size, "%s: killed by SIG%s", proxy->label, name ? name : "?");
}

static int ended_engines(const struct px_proxy *proxy)
{
    int ended = 0;
    for (size_t i = 0; i < proxy->engine_count; i++)
        ended += proxy->engines[i].ended;
    return ended;
}

/* True if it has ended. What it had said comes before its end; engines that it told of do not end
 * a second time. */
static bool reap(struct px_proxy *proxy)
{
    struct px_proxy_set *set = proxy->set;
    siginfo_t info = {0};
    if (waitid(P_PID, (id_t)proxy->process.pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0 ||
        !info.si_pid)
        return false;
    while (read_lines(proxy))
        ;
    kill(-proxy->process.pid, SIGKILL); /* while the zombie keeps the group's number taken */
    waitpid(proxy->process.pid, NULL, 0);
    proxy->ended = true;
    px_proxy_close_stdin(proxy);
    close_stdout(proxy);
    if (!proxy->heard && set->settled)
        set->settled(set);
    const int lost = proxy->count - ended_engines(proxy);
    if (proxy->asked || lost <= 0)
        return true;
    char why[420];
    describe_end(proxy, &info, why, sizeof why);
    set->base.lost += lost;
    for (size_t i = 0; i < proxy->engine_count; i++)
        proxy->engines[i].ended = true;
    if (set->events.ended)
        set->events.ended(&set->base, 0, why, set->events.ctx);
    return true;
}

size_t px_proxy_refresh(struct px_set *base)
{
    struct px_proxy_set *set = set_of(base);
    size_t running = 0;
    for (size_t i = 0; i < set->proxy_count; i++) {
        struct px_proxy *proxy = set->proxies[i];
        if (proxy->ended)
            continue;
        if (proxy->child ? reap(proxy) : !px_process_alive(proxy->process))
            proxy->ended = true;
        else
            running++;
    }
    return running;
}

/* ---- reports ---- */

/* Where a reason was found, it has been told: the log's own words add nothing. */
void px_proxy_tail(const struct px_set *base, struct px_buf *out)
{
    const struct px_proxy_set *set = set_of(base);
    int shown = 0;
    for (size_t i = 0; i < set->proxy_count && shown < 3; i++) {
        const struct px_proxy *proxy = set->proxies[i];
        char reason[300];
        find_reason(proxy, reason, sizeof reason);
        if (!proxy->ended || reason[0])
            continue;
        px_log_tail(proxy->log, out);
        shown++;
    }
}

void px_proxy_missing(const struct px_set *base, struct px_buf *out)
{
    const struct px_proxy_set *set = set_of(base);
    int shown = 0;
    for (size_t i = 0; i < set->proxy_count; i++) {
        const struct px_proxy *proxy = set->proxies[i];
        int registered = 0;
        for (size_t j = 0; j < proxy->engine_count; j++)
            registered += proxy->engines[j].id >= 0 && !proxy->engines[j].ended;
        if (proxy->ended || registered >= proxy->count || ++shown > SHOWN)
            continue;
        if (base->speaks)
            px_buf_printf(out, "%s: %d of %d engines did not register, log %s\n", proxy->label,
                          proxy->count - registered, proxy->count, proxy->log);
        else
            px_buf_printf(out, "%s: not all engines have registered, log %s\n", proxy->label,
                          proxy->log);
    }
    if (shown > SHOWN)
        px_buf_printf(out, "%d more the same\n", shown - SHOWN);
    if (shown && set->local)
        px_buf_text(out, PX_LOCAL_HINT);
}

/* ---- the connection ---- */

json_t *px_engine_connection(const struct px_place *place, struct px_error *err)
{
    struct px_buf text = {0};
    if (px_file_read(place->engine_file, MAX_LOG, &text, err) < 0)
        return NULL;
    json_t *connection = px_json_parse(px_buf_span(&text), NULL);
    px_buf_fini(&text);
    if (!connection)
        px_fail(err, PX_EINVAL, "%.300s is not a connection file", place->engine_file);
    return connection;
}

bool px_connection_is_local(const json_t *connection)
{
    const char *interface = json_string_value(json_object_get(connection, "interface"));
    return interface &&
           (strncmp(interface, "tcp://127.", 10) == 0 ||
            strcmp(interface, "tcp://localhost") == 0 || strcmp(interface, "tcp://[::1]") == 0);
}

char *px_connection_variable(const struct px_place *place, bool *local, struct px_error *err)
{
    json_t *connection = px_engine_connection(place, err);
    if (!connection)
        return NULL;
    *local = px_connection_is_local(connection);
    char *text = json_dumps(connection, JSON_COMPACT);
    char *variable = px_format("IPP_CONNECTION_INFO=%s", text);
    free(text);
    json_decref(connection);
    return variable;
}
