/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The supervisor: starts a controller and engines, says when they are there, watches, stops.
 *
 *     STARTING --- every engine has registered, and a client sees them ---> RUNNING
 *         |  an engine or the controller ended, time is up, a signal            |
 *         +--------------------------> STOPPING <------ a signal, controller ended
 *                     engines first, then the controller; then the loop ends
 *
 * With --at-least, engines may end or be late as long as so many are there or can still come; the
 * late ones join as they start.
 *
 * Nothing here waits a fixed time: the controller's "ready" (or the appearance of its
 * connection files, where the program is not ours) starts the engines and a client; their
 * words and the client's end STARTING. Engines are let go before the controller, so that
 * clients hear of every one.
 *
 * Should the supervisor itself be killed, its children get SIGTERM from the kernel (process.c)
 * and end as they do when asked: the fork server ends its engines, the controller removes its
 * files.
 */
#define _GNU_SOURCE
#include "supervisor.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define FILE_DELAY_MS 100 /* changes of the cluster file while running are gathered this long */

static void look_at_engines(struct supervisor *sv);

/* ---- the cluster file ---- */

int px_sv_put(struct supervisor *sv, const struct px_set *engines, const char *set_id,
              struct px_error *err)
{
    const struct px_plan *plan = sv->plan;
    const struct px_contribution contribution = {.launcher = plan->launcher,
                                                 .controller = sv->controller,
                                                 .engines = engines,
                                                 .set_id = set_id,
                                                 .n = plan->n,
                                                 .ip = plan->ip,
                                                 .location = plan->location,
                                                 .controller_args = plan->controller_args};
    return px_clusterfile_put(sv->place, &contribution, err);
}

/* With the lock held. A set of which no engine is left is not named any more. */
static int put_file(struct supervisor *sv, struct px_error *err)
{
    if (sv->alone)
        px_clusterfile_withdraw(sv->place, 0, sv->set_id);
    if (px_sv_put(sv, sv->alone ? NULL : sv->engines, sv->set_id, err) < 0)
        return -1;
    return px_sv_adapt_put(sv, err);
}

static int write_file(struct supervisor *sv, struct px_error *err)
{
    const int lock = px_clusterfile_lock(sv->place, err);
    if (lock < 0)
        return -1;
    const int result = put_file(sv, err);
    px_clusterfile_unlock(lock);
    return result;
}

void px_sv_write(struct supervisor *sv)
{
    struct px_error err;
    if (sv->phase == RUNNING && write_file(sv, &err) < 0)
        px_log(PX_WARN, "clusterfile.write", "why=\"%s\"", err.text);
}

static void on_file_timer(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct supervisor *sv = ctx;
    sv->file_timer = NULL;
    look_at_engines(sv); /* they are no children of this process: only looking tells of their end */
    px_sv_write(sv);
}

static void file_changed(struct supervisor *sv)
{
    if (sv->phase == RUNNING && !sv->file_timer)
        sv->file_timer = px_loop_timer(sv->loop, FILE_DELAY_MS, 0, on_file_timer, sv);
}

/* ---- stopping ---- */

/* What a controller that did not end well has left would be taken for the next one's. */
static void drop_files(const struct supervisor *sv)
{
    if (!sv->plan->drops_files)
        return;
    unlink(sv->place->client_file);
    unlink(sv->place->engine_file);
}

static void on_stopped(struct px_loop *loop, void *ctx)
{
    struct supervisor *sv = ctx;
    struct px_error err;
    const int lock = px_clusterfile_lock(sv->place, &err);
    drop_files(sv);
    px_sv_adapt_withdraw(sv);
    px_clusterfile_withdraw(sv->place, sv->controller_pid, sv->set_id);
    px_clusterfile_unlock(lock);
    px_loop_stop(loop);
}

void px_sv_stop(struct supervisor *sv, int status)
{
    if (sv->phase == STOPPING)
        return;
    sv->phase = STOPPING;
    sv->status = status;
    px_loop_cancel(sv->loop, sv->deadline);
    px_loop_cancel(sv->loop, sv->file_timer);
    sv->deadline = sv->file_timer = NULL;
    px_confirm_end(sv->confirm);
    px_sv_adapt_end(sv);
    size_t count;
    struct px_set **order = px_sv_adapt_sets(sv, 2, &count);
    order[count++] = sv->engines;
    order[count++] = sv->controller;
    sv->stopper = px_stopper_start(sv->loop, order, count, PX_STOP_GRACE_MS, on_stopped, sv);
    free(order);
}

bool px_sv_is_abandoned(const struct supervisor *sv, bool gone)
{
    return !sv->controller && (gone || access(sv->place->client_file, F_OK) < 0);
}

/* A start that failed: says why, shows the log of whoever is to blame, and clears up. */
static void give_up(struct supervisor *sv, const struct px_set *whose, const char *why)
{
    if (sv->phase == STOPPING)
        return;
    px_sv_tell_why(sv, why);
    px_sv_tell_tail(sv, whose);
    px_sv_stop(sv, 1);
}

/* Time is up while some are still awaited: says who. */
static void give_up_waiting(struct supervisor *sv, const char *why)
{
    if (sv->phase == STOPPING)
        return;
    px_sv_tell_why(sv, why);
    px_sv_tell_missing(sv);
    px_sv_tell_tail(sv, sv->engines ? sv->engines : sv->controller);
    px_sv_stop(sv, 1);
}

/* ---- becoming ready ---- */

void px_sv_announce(struct supervisor *sv)
{
    if (sv->announced)
        return;
    sv->announced = true;
    px_loop_cancel(sv->loop, sv->deadline);
    sv->deadline = NULL;
    px_sv_tell_ready(sv, px_sv_present(sv));
    px_sv_close_channel(sv, 0);
}

/* Where engines come and go, the controller is told so first. */
static void become_ready(struct supervisor *sv)
{
    struct px_error err;
    if (write_file(sv, &err) < 0) {
        give_up(sv, NULL, err.text);
        return;
    }
    sv->phase = RUNNING;
    px_confirm_end(sv->confirm);
    if (sv->plan->adapt.most > 0)
        px_sv_adapt(sv);
    else
        px_sv_announce(sv);
}

/* All that have not ended are there. */
static void check_ready(struct supervisor *sv)
{
    const int lost = sv->engines ? sv->engines->lost : 0;
    if (sv->phase == STARTING && sv->connected && px_sv_present(sv) >= sv->plan->n - lost)
        become_ready(sv);
}

/* No more time: what there is may do. */
static void settle(struct supervisor *sv, const char *why)
{
    if (sv->phase != STARTING)
        return;
    if (!sv->connected || px_sv_present(sv) < sv->plan->at_least) {
        give_up_waiting(sv, why);
        return;
    }
    px_sv_tell_missing(sv);
    become_ready(sv);
}

static void on_deadline(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct supervisor *sv = ctx;
    sv->deadline = NULL;
    if (sv->phase == RUNNING)
        px_sv_announce(sv);
    char why[128];
    snprintf(why, sizeof why, "no cluster of %d engines within %lld s", sv->plan->n,
             (long long)(sv->plan->timeout_ms / 1000));
    settle(sv, why);
}

/* ---- engines ---- */

static void on_registered(struct px_set *set, int engine, pid_t pid, void *ctx)
{
    (void)set;
    struct supervisor *sv = ctx;
    px_log(PX_DEBUG, "engine.registered", "id=%d pid=%ld", engine, (long)pid);
    sv->registered++;
    file_changed(sv);
    check_ready(sv);
}

static void on_engine_ended(struct px_set *set, pid_t pid, const char *why, void *ctx)
{
    struct supervisor *sv = ctx;
    char text[500];
    if (pid)
        snprintf(text, sizeof text, "engine process %ld ended: %.200s", (long)pid, why);
    else
        snprintf(text, sizeof text, "%s", why);
    const int hope = sv->plan->n - set->lost; /* engines that are there or can come */
    if (sv->phase == STARTING && (hope <= 0 || hope < sv->plan->at_least)) {
        give_up(sv, set, text);
    } else if (sv->phase != STOPPING) {
        if (sv->adapt && pid && strcmp(why, "exit status 0") == 0)
            px_log(PX_INFO, "engine.retired", "pid=%ld", (long)pid);
        else
            px_sv_say(sv, "%s", text);
        file_changed(sv);
        check_ready(sv);
    }
}

/* Once none is left, engines that have no controller here have no reason to be watched. */
static void look_at_engines(struct supervisor *sv)
{
    px_sv_adapt_look(sv);
    if (!sv->engines || sv->engines->ops->refresh(sv->engines) > 0 || sv->phase != RUNNING ||
        sv->alone)
        return;
    sv->alone = true;
    if (sv->adapt && !sv->steady)
        return;
    px_sv_say(sv, "no engine is left");
    if (!sv->controller)
        px_sv_stop(sv, 1);
}

struct px_set *px_sv_start_set(struct supervisor *sv, const char *id, int number, int count,
                               struct px_error *err)
{
    const struct px_plan *plan = sv->plan;
    struct px_argv args = {0};
    if (plan->adapt.most > 0) {
        px_argv_add_all(&args, plan->engine_args);
        px_argv_add_new(&args, px_format("--adapt=%s:%d", sv->set_id, number));
    }
    const struct px_set_spec spec = {
        .kind = PX_ENGINE_SET,
        .count = count,
        .command = plan->engine_command,
        /* ssh looks at them yet when hosts have had to wait; it starts none that adapt */
        .args = args.items ? (const char *const *)args.items : plan->engine_args,
        .place = sv->place,
        .set_id = id,
        .log_level = plan->log_level,
        .launch_command = plan->launch_command,
        .launch_args = plan->launch_args,
        .hosts = plan->hosts,
        .job = plan->job,
        .loop = sv->loop,
        .events = {.registered = on_registered, .ended = on_engine_ended, .ctx = sv}};
    struct px_set *set = plan->launcher->start(plan->launcher, &spec, err);
    px_argv_fini(&args);
    return set;
}

static void start_engines(struct supervisor *sv)
{
    struct px_error err;
    if (sv->engines || sv->plan->n == 0)
        return;
    sv->engines = px_sv_start_set(sv, sv->set_id, 0, sv->plan->n, &err);
    if (!sv->engines) {
        give_up(sv, NULL, err.text);
        return;
    }
    sv->speaks = sv->engines->speaks;
    /* Whoever lists clusters meanwhile finds the processes that are there. */
    if (!sv->speaks && write_file(sv, &err) < 0)
        give_up(sv, NULL, err.text);
}

/* ---- the client's view ---- */

static void on_connected(void *ctx)
{
    struct supervisor *sv = ctx;
    sv->connected = true;
    start_engines(sv);
}

static void on_seen(int count, void *ctx)
{
    struct supervisor *sv = ctx;
    sv->seen = count;
    check_ready(sv);
}

static void on_not_seen(const char *why, void *ctx)
{
    settle(ctx, why);
}

static void start_client(struct supervisor *sv)
{
    const struct px_confirm_events events = {
        .connected = on_connected, .seen = on_seen, .failed = on_not_seen, .ctx = sv};
    const int64_t left = sv->begun_ms + sv->plan->timeout_ms - px_now_ms();
    struct px_error err;
    sv->confirm = px_confirm_start(sv->loop, sv->place, sv->plan->with_controller ? 0 : -1,
                                   sv->plan->n, left > 1 ? left : 1, &events, &err);
    if (!sv->confirm)
        give_up(sv, NULL, err.text);
}

/* ---- the controller ---- */

static void on_controller_ready(struct px_set *set, void *ctx)
{
    (void)set;
    struct supervisor *sv = ctx;
    if (sv->phase != STARTING || sv->engines || sv->confirm)
        return;
    start_engines(sv);
    if (sv->phase == STARTING)
        start_client(sv);
}

static void on_controller_ended(struct px_set *set, pid_t pid, const char *why, void *ctx)
{
    struct supervisor *sv = ctx;
    char text[300];
    if (pid)
        snprintf(text, sizeof text, "the controller (pid %ld) ended: %.200s%s", (long)pid, why,
                 sv->engines ? "; stopping the engines" : "");
    else
        snprintf(text, sizeof text, "%.290s", why);
    give_up(sv, set, text);
}

static void on_files(struct px_loop *loop, void *ctx)
{
    (void)loop;
    on_controller_ready(NULL, ctx);
}

static int start_controller(struct supervisor *sv, struct px_error *err)
{
    const struct px_plan *plan = sv->plan;
    const struct px_set_spec spec = {
        .kind = PX_CONTROLLER_SET,
        .count = 1,
        .command = plan->controller_command,
        .args = plan->controller_args,
        .place = sv->place,
        .log_level = plan->log_level,
        .loop = sv->loop,
        .events = {.ready = on_controller_ready, .ended = on_controller_ended, .ctx = sv}};
    drop_files(sv);
    sv->controller = px_local_launcher.start(&px_local_launcher, &spec, err);
    if (!sv->controller)
        return -1;
    sv->controller_pid = sv->controller->pid;
    if (!sv->controller->speaks)
        sv->files = px_files_wait(sv->loop, sv->place, on_files, sv, err);
    return sv->controller->speaks || sv->files ? 0 : -1;
}

/* ---- signals and ends ---- */

static void on_child(struct px_loop *loop, int signo, void *ctx)
{
    (void)loop, (void)signo;
    struct supervisor *sv = ctx;
    if (sv->controller)
        sv->controller->ops->refresh(sv->controller);
    look_at_engines(sv);
    if (sv->stopper)
        px_stopper_check(sv->stopper);
}

static void on_end_signal(struct px_loop *loop, int signo, void *ctx)
{
    (void)loop;
    struct supervisor *sv = ctx;
    if (sv->phase == STOPPING) {
        px_stopper_hurry(sv->stopper); /* asked twice */
        return;
    }
    if (sv->plan->log_level <= PX_INFO)
        px_sv_say(sv, "SIG%s: stopping", sigabbrev_np(signo));
    px_sv_stop(sv, sv->phase == STARTING ? 1 : 0);
}

static void on_relay_signal(struct px_loop *loop, int signo, void *ctx)
{
    (void)loop;
    struct supervisor *sv = ctx;
    if (sv->phase != RUNNING)
        return;
    size_t count;
    struct px_set **sets = px_sv_adapt_sets(sv, 1, &count);
    if (sv->engines)
        sets[count++] = sv->engines;
    for (size_t i = 0; i < count; i++)
        sets[i]->ops->signal(sets[i], signo);
    free(sets);
}

/* The parent is gone, or standard input has ended: nobody wants this any more. */
static void on_hangup(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct supervisor *sv = ctx;
    struct px_watch **watch = sv->channel_watch ? &sv->channel_watch : &sv->stdin_watch;
    char bytes[256];
    const int fd = sv->channel_watch ? sv->channel : STDIN_FILENO;
    const ssize_t size = read(fd, bytes, sizeof bytes);
    if (size > 0 || (size < 0 && (errno == EINTR || errno == EAGAIN)))
        return;
    px_loop_unwatch(sv->loop, *watch);
    *watch = NULL;
    px_sv_stop(sv, sv->phase == STARTING ? 1 : 0);
}

/* Whoever wanted the cluster has ended, however it did. */
static void on_parent_gone(struct px_loop *loop, void *ctx)
{
    struct supervisor *sv = ctx;
    px_loop_unwatch(loop, sv->parent_watch);
    sv->parent_watch = NULL;
    if (sv->phase != STOPPING && sv->plan->log_level <= PX_INFO)
        px_sv_say(sv, "the program that started the cluster has ended: stopping");
    px_sv_stop(sv, sv->phase == STARTING ? 1 : 0);
}

static int watch_signals(struct supervisor *sv, struct px_error *err)
{
    static const struct {
        int signo;
        px_signal_fn *fn;
    } rows[] = {
        {SIGINT, on_end_signal},    {SIGTERM, on_end_signal},   {SIGCHLD, on_child},
        {SIGUSR1, on_relay_signal}, {SIGUSR2, on_relay_signal},
    };
    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; i < PX_COUNT(rows); i++)
        if (px_loop_signal(sv->loop, rows[i].signo, rows[i].fn, sv, err) < 0)
            return -1;
    if (sv->channel < 0)
        return px_loop_signal(sv->loop, SIGHUP, on_end_signal, sv, err);
    signal(SIGHUP, SIG_IGN); /* a daemon has no terminal to lose */
    return 0;
}

/* ---- the whole ---- */

/* Whether a cluster runs there already; a file that names a dead one is removed. */
static int refuse_running(struct supervisor *sv, struct px_error *err)
{
    struct px_cluster cluster;
    if (px_cluster_load(sv->place->file, &cluster, NULL) < 0) {
        unlink(sv->place->file); /* there is none, or it is no cluster file */
        return 0;
    }
    const bool runs = px_cluster_runs(&cluster) || cluster.foreign;
    const size_t engines = cluster.engine_count;
    px_cluster_fini(&cluster);
    if (!runs) {
        unlink(sv->place->file);
        return 0;
    }
    sv->status = PX_ALREADY_RUNNING;
    if (sv->plan->log) /* nothing of interest will be in it */
        unlink(sv->plan->log);
    return px_fail(err, PX_EEXIST,
                   "a cluster is running already, with %zu engine%s; pxcluster stop ends it, "
                   "--cluster-id=ID starts another beside it (%.300s)",
                   engines, engines == 1 ? "" : "s", sv->place->file);
}

static int begin_with_controller(struct supervisor *sv, struct px_error *err)
{
    const int lock = px_clusterfile_lock(sv->place, err);
    if (lock < 0)
        return -1;
    int result = refuse_running(sv, err);
    if (result == 0 && sv->plan->clean_logs)
        px_clean_logs(sv->place, sv->plan->log);
    if (result == 0)
        result = start_controller(sv, err);
    if (result == 0)
        result = put_file(sv, err);
    px_clusterfile_unlock(lock);
    return result;
}

static int begin_engines(struct supervisor *sv, struct px_error *err)
{
    if (access(sv->place->client_file, F_OK) < 0) {
        sv->status = PX_NO_CLUSTER;
        return px_fail(err, PX_ENOENT, "no cluster is running: there is no %.300s",
                       sv->place->client_file);
    }
    start_client(sv);
    return 0;
}

static void init(struct supervisor *sv, const struct px_plan *plan)
{
    *sv = (struct supervisor){.plan = plan,
                              .place = plan->place,
                              .status = 1,
                              .begun_ms = px_now_ms(),
                              .channel = plan->channel};
    /* ipyparallel's begin with the time, too; by the pid this process is found (clusterfile.c). */
    snprintf(sv->set_id, sizeof sv->set_id, "%ld-%ld", (long)time(NULL), (long)getpid());
    sv->loop = px_loop_create();
    if (sv->channel >= 0)
        sv->channel_watch = px_loop_fd(sv->loop, sv->channel, on_hangup, sv);
    else if (plan->stop_on_eof)
        sv->stdin_watch = px_loop_fd(sv->loop, STDIN_FILENO, on_hangup, sv);
    if (plan->parent_fd >= 0)
        sv->parent_watch = px_loop_fd(sv->loop, plan->parent_fd, on_parent_gone, sv);
}

static void fini(struct supervisor *sv)
{
    px_confirm_destroy(sv->confirm);
    px_files_destroy(sv->files);
    px_stopper_destroy(sv->stopper);
    px_sv_adapt_destroy(sv);
    px_set_destroy(sv->engines);
    px_set_destroy(sv->controller);
    px_sv_close_channel(sv, sv->status);
    px_loop_destroy(sv->loop);
}

int px_supervise(const struct px_plan *plan)
{
    struct supervisor sv;
    struct px_error err;
    init(&sv, plan);
    int result = watch_signals(&sv, &err);
    if (result == 0)
        result =
            plan->with_controller ? begin_with_controller(&sv, &err) : begin_engines(&sv, &err);
    if (result < 0) {
        px_sv_say(&sv, "%s", err.text);
        if (!sv.controller)
            goto done;
        px_sv_stop(&sv, 1);
    } else if (sv.phase == STARTING) {
        sv.deadline = px_loop_timer(sv.loop, plan->timeout_ms, 0, on_deadline, &sv);
    }
    if (px_loop_run(sv.loop, &err) < 0)
        px_sv_say(&sv, "%s", err.text);
done:
    fini(&sv);
    return sv.status;
}
