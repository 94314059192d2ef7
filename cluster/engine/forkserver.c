/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * forkserver: one warm interpreter, forked into engines, and what becomes of them.
 *
 * This process has no thread and no ZeroMQ context, now or later, so that forking is safe at any
 * time (threads of libraries that --preload brings in are theirs to see to at a fork, as BLAS's
 * do). It learns ids through a pipe that the engines share, reaps them, says why each ended, and
 * has the nanny tell the hub. Signals that it gets go on to every engine; SIGTERM ends them all,
 * and then itself. An engine has a process group of its own, so that a signal to this process's
 * group reaches it once; and it gets SIGTERM when this process dies.
 *
 * It ends after the nanny, so that whoever waits for it finds nothing of it left.
 *
 * With `restart`, an engine that has registered and then died is replaced by another fork, with a
 * new uuid and id; not when that happens too often, for then each would die of the same.
 */
#define _GNU_SOURCE
#include "engine.h"

#include "loop/loop.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define KILL_AFTER_MS 4000 /* an engine forces its own end after 2.3 s */
/* For the nanny to tell of the dead: as long as it tries; less when asked to end, for then the hub
 * may be ending as well, and with KILL_AFTER_MS it must be less than what pxcluster grants. */
#define NANNY_MS 4000
#define NANNY_STOPPING_MS 500
#define MOST_LINE 128
#define MOST_FILES (1u << 16) /* one an engine here; in each, its own and the user's */
#define MOST_CAUSE 600
#define TUNNEL_AGAIN_MS 1000
#define MOST_RESTARTS 5 /* of one engine within */
#define RESTARTS_MS 60000

struct child {
    pid_t pid;
    int id; /* -1 until registered */
    bool ended;
    struct px_obituary *obituary; /* NULL before the first fork */
    int restarts;                 /* since */
    int64_t restarts_ms;          /* this moment */
};

struct forkserver {
    const struct px_forkserver_config *config;
    void *self;
    struct px_loop *loop;
    sigset_t mask;  /* before the loop blocked signals: the engines' own */
    int reports[2]; /* pipe from the engines */
    struct px_watch *stdin_watch;
    int nanny_fd;
    pid_t nanny; /* 0: none, or reaped */
    struct child *children;
    struct child *forked; /* the last: in the engine, itself */
    int living;
    struct px_oom oom; /* the kernel's kills for want of memory so far */
    bool stopping, failed;
    char line[MOST_LINE];
    size_t line_size;
};

/* ---- saying ---- */

static void PX_PRINTF(2, 3) say(int fd, const char *fmt, ...)
{
    char line[MOST_LINE + MOST_CAUSE];
    va_list args;
    va_start(args, fmt);
    const int wanted = vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    const size_t size = (size_t)wanted < sizeof line ? (size_t)wanted : sizeof line - 1;
    line[size - 1] = '\n'; /* cut or not */
    if (fd >= 0 && write(fd, line, size) < 0)
        px_log(PX_WARN, "report.failed", "why=\"%s\"", strerror(errno));
}

static struct child *child_of(struct forkserver *server, pid_t pid)
{
    for (int i = 0; i < server->config->count; i++)
        if (server->children[i].pid == pid && !server->children[i].ended)
            return &server->children[i];
    return NULL;
}

static void on_report_line(struct forkserver *server)
{
    int id, pid;
    if (sscanf(server->line, "registered %d %d", &id, &pid) != 2)
        return;
    struct child *child = child_of(server, pid);
    if (!child)
        return;
    if (child->id == id)
        return; /* registered again, with a hub that was restarted */
    if (child->id >= 0)
        say(server->nanny_fd, "=%d\n", child->id);
    child->id = id;
    say(server->nanny_fd, "+%d\n", id);
    say(server->config->ready_fd, "registered %d %d\n", id, pid);
}

static void on_report_bytes(struct forkserver *server, const char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (bytes[i] != '\n') {
            if (server->line_size < MOST_LINE - 1)
                server->line[server->line_size++] = bytes[i];
            continue;
        }
        server->line[server->line_size] = 0;
        on_report_line(server);
        server->line_size = 0;
    }
}

/* All that is there: an engine writes one line in its life. */
static void on_reports(struct px_loop *loop, void *ctx)
{
    struct forkserver *server = ctx;
    char bytes[1024];
    (void)loop;
    for (ssize_t size; (size = read(server->reports[0], bytes, sizeof bytes)) > 0;)
        on_report_bytes(server, bytes, (size_t)size);
}

static int fork_engine(struct forkserver *server, struct child *child, struct px_error *err);

/* ---- ends ---- */

/* True when another engine has taken the place of the one that died. */
static bool replace(struct forkserver *server, struct child *child)
{
    struct px_error err;
    if (!server->config->restart || server->stopping || child->id < 0)
        return false;
    if (px_now_ms() - child->restarts_ms > RESTARTS_MS) {
        child->restarts = 0;
        child->restarts_ms = px_now_ms();
    }
    if (++child->restarts > MOST_RESTARTS) {
        px_log(PX_ERROR, "engine.abandoned", "restarts=%d within_s=%d", MOST_RESTARTS,
               RESTARTS_MS / 1000);
        return false;
    }
    if (fork_engine(server, child, &err) == 0)
        return true;
    px_log(PX_ERROR, "engine.abandoned", "why=\"%s\"", err.text);
    return false;
}

static void on_nanny_due(struct px_loop *loop, void *ctx)
{
    struct forkserver *server = ctx;
    (void)loop;
    if (server->nanny > 0)
        kill(server->nanny, SIGKILL); /* its end, as any other, stops the loop */
}

/* No engine is left: the nanny says its last words, and then the loop ends. */
static void dismiss_nanny(struct forkserver *server)
{
    close(server->nanny_fd);
    server->nanny_fd = -1;
    if (server->nanny > 0)
        px_loop_timer(server->loop, server->stopping ? NANNY_STOPPING_MS : NANNY_MS, 0,
                      on_nanny_due, server);
    else
        px_loop_stop(server->loop);
}

static void on_nanny_ended(struct forkserver *server)
{
    server->nanny = 0;
    if (server->nanny_fd < 0)
        px_loop_stop(server->loop);
    else
        px_log(PX_WARN, "nanny.ended", "effect=\"the hub notices dead engines later\"");
}

static void find_cause(struct forkserver *server, const struct child *child, int status,
                       long peak_kb, struct px_buf *cause)
{
    const bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    const struct px_death death = {.pid = child->pid,
                                   .status = status,
                                   .peak_kb = peak_kb,
                                   .out_of_memory =
                                       killed && px_oom_killed(child->pid, &server->oom)};
    if (death.out_of_memory) { /* each kill explains one death */
        server->oom.group++;
        server->oom.system++;
    }
    px_obituary_cause(child->obituary, &death, cause);
}

static void log_end(const struct forkserver *server, const struct child *child, bool bad,
                    const char *cause, long peak_kb, const struct px_busy *busy)
{
    const enum px_level level = bad && !server->stopping ? PX_ERROR : PX_INFO;
    if (busy->running)
        px_log(level, "engine.ended",
               "id=%d pid=%d why=\"%s\" running=%s msg_id=%s since_s=%.1f peak_rss_mb=%ld",
               child->id, (int)child->pid, cause, busy->type, busy->msg_id, busy->since_s,
               peak_kb / 1024);
    else
        px_log(level, "engine.ended", "id=%d pid=%d why=\"%s\" peak_rss_mb=%ld", child->id,
               (int)child->pid, cause, peak_kb / 1024);
    struct px_buf stacks = {0};
    px_obituary_text(child->obituary, &stacks);
    px_log_text(level, stacks.data, stacks.size);
    px_buf_fini(&stacks);
}

/* An engine that was told to end has told the hub; any other end is a death, status 0 or not. */
static void on_ended(struct forkserver *server, struct child *child, int status, long peak_kb)
{
    struct px_buf cause = {0};
    struct px_busy busy;
    on_reports(server->loop, server); /* an id may still be in the pipe */
    const bool left = px_obituary_has_left(child->obituary);
    const bool bad = !WIFEXITED(status) || WEXITSTATUS(status) != 0 || (!left && child->id >= 0);
    find_cause(server, child, status, peak_kb, &cause);
    px_obituary_look(child->obituary, &busy);
    child->ended = true;
    server->living--;
    log_end(server, child, bad, cause.data, peak_kb, &busy);
    if (child->id >= 0 && bad)
        say(server->nanny_fd, "-%d %s %" PRId64 " %s\n", child->id,
            busy.running ? busy.msg_id : "-", busy.begun, cause.data);
    else if (child->id >= 0)
        say(server->nanny_fd, "=%d\n", child->id);
    say(server->config->ready_fd, "exited %d %s\n", (int)child->pid, cause.data);
    px_buf_fini(&cause);
    if (bad && !replace(server, child))
        server->failed = true;
    if (server->living == 0)
        dismiss_nanny(server);
}

static void on_tunnel_due(struct px_loop *loop, void *ctx)
{
    struct forkserver *server = ctx;
    struct px_error err;
    if (server->stopping || px_tunnel_again(server->config->tunnel, &err) == 0)
        return;
    px_log(PX_WARN, "tunnel.lost", "why=\"%s\"", err.text);
    px_loop_timer(loop, TUNNEL_AGAIN_MS, 0, on_tunnel_due, server);
}

static void on_child(struct px_loop *loop, int signo, void *ctx)
{
    struct forkserver *server = ctx;
    struct rusage usage;
    int status;
    (void)signo;
    for (pid_t pid; (pid = wait4(-1, &status, WNOHANG, &usage)) > 0;) {
        struct child *child = child_of(server, pid);
        if (child)
            on_ended(server, child, status, usage.ru_maxrss);
        else if (pid == server->nanny)
            on_nanny_ended(server);
        else if (px_tunnel_ended(server->config->tunnel, pid))
            px_loop_timer(loop, TUNNEL_AGAIN_MS, 0, on_tunnel_due, server);
    }
}

static void signal_all(struct forkserver *server, int signo)
{
    for (int i = 0; i < server->config->count; i++)
        if (!server->children[i].ended)
            kill(server->children[i].pid, signo);
}

static void on_kill_due(struct px_loop *loop, void *ctx)
{
    (void)loop;
    signal_all(ctx, SIGKILL);
}

static void on_forward(struct px_loop *loop, int signo, void *ctx)
{
    (void)loop;
    signal_all(ctx, signo);
}

static void on_terminate(struct px_loop *loop, int signo, void *ctx)
{
    struct forkserver *server = ctx;
    (void)signo;
    if (!server->stopping && server->living == 0)
        px_loop_timer(loop, NANNY_STOPPING_MS, 0, on_nanny_due, server);
    else if (!server->stopping)
        px_loop_timer(loop, KILL_AFTER_MS, 0, on_kill_due, server);
    server->stopping = true;
    signal_all(server, SIGTERM);
}

/* Whoever started this process, here or through ssh, is gone or wants it to end. */
static void on_stdin(struct px_loop *loop, void *ctx)
{
    struct forkserver *server = ctx;
    char bytes[256];
    const ssize_t size = read(STDIN_FILENO, bytes, sizeof bytes);
    if (size > 0 || (size < 0 && (errno == EINTR || errno == EAGAIN)))
        return;
    px_loop_unwatch(loop, server->stdin_watch);
    on_terminate(loop, SIGTERM, server);
}

/* ---- forking ---- */

static void hook(void (*fn)(void *self), void *self)
{
    if (fn)
        fn(self);
}

static void take_no_input(void)
{
    const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (null < 0 || dup2(null, STDIN_FILENO) < 0)
        _exit(1);
    close(null);
}

static _Noreturn void be_engine(struct forkserver *server, pid_t parent)
{
    const struct px_forkserver_config *config = server->config;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) /* it died before we asked to be told */
        _exit(1);
    setpgid(0, 0);
    hook(config->engine.ops->after_fork_child, server->self);
    px_loop_destroy(server->loop);
    close(server->reports[0]);
    close(server->nanny_fd);
    px_tunnel_forget(config->tunnel);
    if (config->ready_fd >= 0)
        close(config->ready_fd);
    if (config->stop_on_eof) /* not for it to read */
        take_no_input();
    struct px_engine_config engine = config->engine;
    engine.obituary = server->forked->obituary;
    for (int i = 0; i < config->count; i++)
        if (&server->children[i] != server->forked)
            px_obituary_destroy(server->children[i].obituary);
    free(server->children);
    pthread_sigmask(SIG_SETMASK, &server->mask, NULL);
    const int status = px_engine_run(&engine, server->self, server->reports[1]);
    fflush(NULL);
    _exit(status); /* exit handlers are the fork server's */
}

static int fork_engine(struct forkserver *server, struct child *child, struct px_error *err)
{
    const struct px_interp_ops *ops = server->config->engine.ops;
    const pid_t parent = getpid();
    px_obituary_destroy(child->obituary);
    child->obituary = px_obituary_create(err);
    if (!child->obituary)
        return -1;
    server->forked = child;
    hook(ops->before_fork, server->self);
    const pid_t pid = fork();
    if (pid == 0)
        be_engine(server, parent);
    const int why = errno;
    hook(ops->after_fork_parent, server->self);
    if (pid < 0)
        return px_fail(err, PX_EIO, "cannot fork: %s", strerror(why));
    child->pid = pid;
    child->id = -1;
    child->ended = false;
    server->living++;
    say(server->config->ready_fd, "started %d\n", (int)pid);
    return 0;
}

static int watch_signals(struct forkserver *server, struct px_error *err)
{
    static const struct {
        int signo;
        px_signal_fn *fn;
    } rows[] = {
        {SIGCHLD, on_child},    {SIGTERM, on_terminate}, {SIGINT, on_forward},
        {SIGHUP, on_terminate}, {SIGUSR1, on_forward},   {SIGUSR2, on_forward},
        {SIGCONT, on_forward},
    };
    pthread_sigmask(SIG_SETMASK, NULL, &server->mask);
    for (size_t i = 0; i < PX_COUNT(rows); i++)
        if (px_loop_signal(server->loop, rows[i].signo, rows[i].fn, server, err) < 0)
            return -1;
    return 0;
}

static int start(struct forkserver *server, struct px_error *err)
{
    if (pipe2(server->reports, O_CLOEXEC) < 0)
        return px_fail(err, PX_EIO, "no pipe: %s", strerror(errno));
    fcntl(server->reports[0], F_SETFL, O_NONBLOCK);
    if (server->config->ready_fd >= 0)
        fcntl(server->config->ready_fd, F_SETFD, FD_CLOEXEC);
    server->nanny_fd = px_nanny_start(server->config->engine.connection, &server->nanny, err);
    if (server->nanny_fd < 0)
        return -1;
    server->loop = px_loop_create();
    if (watch_signals(server, err) < 0)
        return -1;
    px_loop_fd(server->loop, server->reports[0], on_reports, server);
    if (server->config->stop_on_eof)
        server->stdin_watch = px_loop_fd(server->loop, STDIN_FILENO, on_stdin, server);
    for (int i = 0; i < server->config->count; i++)
        if (fork_engine(server, &server->children[i], err) < 0)
            return -1;
    return 0;
}

int px_forkserver_run(const struct px_forkserver_config *config, void *self)
{
    struct px_error err;
    struct forkserver server = {.config = config, .self = self, .reports = {-1, -1}};
    server.children = px_alloc((size_t)config->count * sizeof *server.children);
    for (int i = 0; i < config->count; i++)
        server.children[i].ended = true;
    px_oom_count(&server.oom);
    px_allow_files(MOST_FILES);
    signal(SIGPIPE, SIG_IGN); /* whoever asked for reports may be gone */
    int result = start(&server, &err);
    if (result < 0) {
        px_log(PX_ERROR, "engines.failed", "why=\"%s\"", err.text);
        server.failed = true;
        signal_all(&server, SIGTERM);
    }
    if (server.living > 0 && px_loop_run(server.loop, &err) < 0)
        px_die(1, "%s", err.text);
    if (server.nanny_fd >= 0)
        close(server.nanny_fd);
    if (server.nanny > 0) /* nothing was forked: it has nothing to say */
        waitpid(server.nanny, NULL, 0);
    px_loop_destroy(server.loop);
    close(server.reports[0]);
    close(server.reports[1]);
    for (int i = 0; i < config->count; i++)
        px_obituary_destroy(server.children[i].obituary);
    free(server.children);
    return server.failed && !server.stopping ? 1 : 0;
}
