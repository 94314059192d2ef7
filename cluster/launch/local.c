/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The launcher for processes on this host.
 *
 * A set holds *children*, which this process started and reaps, and *guests*, which it only
 * knows: engines that a pxengine forked, and whatever a cluster file names. Our own programs
 * are told a descriptor (--ready-fd) and say there, a line each,
 *
 *     ready       the controller: files written, sockets bound
 *     (lines.c)   a fork server: its engines
 *
 * One pxengine serves all engines of a set. Any other program named with --controller-cmd or
 * --engine-cmd is started as ipyparallel starts its own: one process an
 * engine, and nothing is heard of it but its end; whether it has registered is in its log.
 */
#define _GNU_SOURCE
#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define TAIL_LOGS 3 /* logs shown; a hundred engines fail for one reason */
#define MISSING_SHOWN 10
#define MAX_LOG (1u << 20)                               /* of a program that gave up */
#define REGISTERED_TEXT "Completed registration with id" /* ipyparallel's engine and ours */

struct member {
    struct px_process process;
    char *key;  /* engines: the name in the cluster file, their id or index; else NULL, as until
                   an engine of a fork server has registered */
    bool child; /* ours to reap */
    bool ended;
    bool asked; /* was sent SIGTERM or SIGKILL by us */
    char *log;
};

struct local_set {
    struct px_set base;
    enum px_set_kind kind;
    int count;
    char *profile_dir, *cluster_id;
    struct px_loop *loop; /* NULL for a restored set */
    struct px_set_events events;
    struct member *members;
    size_t member_count;
    int ready_fd;
    struct px_watch *ready_watch;
    struct px_buf line;
};

static struct local_set *local_of(struct px_set *set)
{
    return (struct local_set *)set;
}

static struct member *add_member(struct local_set *set, struct px_process process, const char *key,
                                 const char *log)
{
    set->members = px_realloc(set->members, (set->member_count + 1) * sizeof *set->members);
    struct member *member = &set->members[set->member_count++];
    *member = (struct member){.process = process, .key = px_strdup(key), .log = px_strdup(log)};
    return member;
}

static void close_ready(struct local_set *set)
{
    px_loop_unwatch(set->loop, set->ready_watch);
    set->ready_watch = NULL;
    if (set->ready_fd >= 0)
        close(set->ready_fd);
    set->ready_fd = -1;
}

static void local_destroy(struct px_set *base)
{
    struct local_set *set = local_of(base);
    if (set->loop)
        close_ready(set);
    for (size_t i = 0; i < set->member_count; i++) {
        free(set->members[i].key);
        free(set->members[i].log);
    }
    free(set->members);
    free(set->profile_dir);
    free(set->cluster_id);
    px_buf_fini(&set->line);
    free(set);
}

static struct local_set *create_set(const struct px_launcher_ops *ops, enum px_set_kind kind)
{
    struct local_set *set = px_alloc(sizeof *set);
    set->base = (struct px_set){.ops = ops, .pid = -1};
    set->kind = kind;
    set->ready_fd = -1;
    return set;
}

/* ---- what our programs say ---- */

static struct member *member_of(struct local_set *set, pid_t pid)
{
    for (size_t i = 0; i < set->member_count; i++)
        if (set->members[i].process.pid == pid && !set->members[i].ended)
            return &set->members[i];
    return NULL;
}

/* The member for a new engine: one that has ended makes room, so that restarts cost nothing. */
static struct member *on_started(struct local_set *set, pid_t pid)
{
    struct px_process process;
    struct member *member = member_of(set, pid);
    if (member || !px_process_find(pid, &process))
        return member;
    for (size_t i = 1; i < set->member_count; i++) {
        member = &set->members[i];
        if (!member->ended || member->child)
            continue;
        free(member->key);
        *member = (struct member){.process = process, .log = member->log};
        return member;
    }
    return add_member(set, process, NULL, set->members[0].log);
}

static void on_registered(struct local_set *set, int id, pid_t pid)
{
    struct member *member = on_started(set, pid);
    if (!member || member->child || member->key)
        return;
    member->key = px_format("%d", id);
    if (set->events.registered)
        set->events.registered(&set->base, id, pid, set->events.ctx);
}

static void on_exited(struct local_set *set, pid_t pid, const char *why)
{
    struct member *member = member_of(set, pid);
    if (member && member->child)
        return; /* the fork server's own end is ours to see */
    const bool asked = set->members[0].asked;
    if (member)
        member->ended = true;
    if (asked)
        return;
    set->base.lost++;
    if (set->events.ended)
        set->events.ended(&set->base, pid, why, set->events.ctx);
}

static void on_line(void *ctx, const char *line)
{
    struct local_set *set = ctx;
    const struct px_report report = px_report_read(line);
    if (report.kind == PX_REPORT_STARTED)
        on_started(set, report.pid);
    else if (report.kind == PX_REPORT_REGISTERED)
        on_registered(set, report.id, report.pid);
    else if (report.kind == PX_REPORT_EXITED)
        on_exited(set, report.pid, report.why);
    else if (strncmp(line, "ready", 5) != 0)
        px_log(PX_WARN, "ready.unknown", "line=\"%.80s\"", line);
    else if (set->events.ready)
        set->events.ready(&set->base, set->events.ctx);
}

/* One read's worth of lines. False when there is nothing more for now. */
static bool read_lines(struct local_set *set)
{
    const int got = set->ready_fd < 0 ? 0 : px_lines_read(set->ready_fd, &set->line, on_line, set);
    if (got < 0)
        close_ready(set);
    return got > 0;
}

static void on_ready_fd(struct px_loop *loop, void *ctx)
{
    (void)loop;
    read_lines(ctx);
}

/* ---- starting ---- */

static int start_process(struct local_set *set, char *const *argv, const char *log, int keep_fd,
                         const char *key, struct px_error *err)
{
    struct px_process process;
    const struct px_spawn spawn = {.argv = argv, .log = log, .keep_fd = keep_fd};
    if (px_process_spawn(&spawn, &process, err) < 0)
        return -1;
    px_log(PX_DEBUG, "process.started", "pid=%ld program=%s", (long)process.pid, argv[0]);
    add_member(set, process, key, log)->child = true;
    return 0;
}

/* One of our programs, with the descriptor it answers on. */
static int start_ours(struct local_set *set, const struct px_set_spec *spec, struct px_error *err)
{
    int result = -1, ends[2];
    struct px_argv argv = {0};
    char *log = px_set_log_path(spec, -1);
    if (pipe2(ends, O_CLOEXEC) < 0) {
        px_fail(err, PX_EIO, "cannot make a pipe: %s", strerror(errno));
        goto free_log;
    }
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    if (px_argv_build(&argv, spec, ends[1], err) == 0)
        result = start_process(set, argv.items, log, ends[1], NULL, err);
    close(ends[1]);
    set->ready_fd = ends[0];
    set->ready_watch = px_loop_fd(set->loop, ends[0], on_ready_fd, set);
    px_argv_fini(&argv);
free_log:
    free(log);
    return result;
}

/* Programs that we know nothing of: one an engine. */
static int start_others(struct local_set *set, const struct px_set_spec *spec, struct px_error *err)
{
    int result = 0;
    struct px_argv argv = {0};
    if (px_argv_build(&argv, spec, -1, err) < 0)
        result = -1;
    const int count = spec->kind == PX_ENGINE_SET ? spec->count : 1;
    for (int i = 0; i < count && result == 0; i++) {
        char *log = px_set_log_path(spec, i), key[16];
        snprintf(key, sizeof key, "%d", i);
        result =
            start_process(set, argv.items, log, -1, spec->kind == PX_ENGINE_SET ? key : NULL, err);
        free(log);
    }
    px_argv_fini(&argv);
    return result;
}

static struct px_set *local_start(const struct px_launcher_ops *ops, const struct px_set_spec *spec,
                                  struct px_error *err)
{
    struct local_set *set = create_set(ops, spec->kind);
    set->count = spec->count;
    set->loop = spec->loop;
    set->events = spec->events;
    set->profile_dir = px_strdup(spec->place->profile_dir);
    set->cluster_id = px_strdup(spec->place->cluster_id);
    set->base.speaks = px_command_is_ours(spec->command);
    const int failed = set->base.speaks ? start_ours(set, spec, err) : start_others(set, spec, err);
    if (failed == 0) {
        if (spec->kind == PX_CONTROLLER_SET)
            set->base.pid = set->members[0].process.pid;
        return &set->base;
    }
    /* Those that did start have registered nowhere yet: nothing is lost by ending them hard. */
    set->events = (struct px_set_events){0};
    set->base.ops->signal(&set->base, SIGKILL);
    for (size_t i = 0; i < set->member_count; i++)
        waitpid(set->members[i].process.pid, NULL, 0);
    local_destroy(&set->base);
    return NULL;
}

/* ---- what a cluster file says ---- */

static void restore_member(struct local_set *set, const json_t *state, const char *key,
                           double written)
{
    struct px_process process;
    const json_int_t pid = json_integer_value(json_object_get(state, "pid"));
    if (pid <= 0 || pid > INT32_MAX || !px_process_find((pid_t)pid, &process) ||
        !px_process_is_meant(process, state, written))
        return;
    const char *log = json_string_value(json_object_get(state, "output_file"));
    add_member(set, process, key, log ? log : "");
}

static struct px_set *local_restore(const struct px_launcher_ops *ops, const json_t *state,
                                    double written, const struct px_process *supervisor)
{
    (void)supervisor;
    json_t *engines = json_object_get(state, "engines");
    struct local_set *set = create_set(ops, engines ? PX_ENGINE_SET : PX_CONTROLLER_SET);
    const char *dir = json_string_value(json_object_get(state, "profile_dir"));
    const char *id = json_string_value(json_object_get(state, "cluster_id"));
    set->profile_dir = px_strdup(dir ? dir : "");
    set->cluster_id = px_strdup(id ? id : "");
    restore_member(set, state, NULL, written);
    const char *key;
    json_t *engine;
    json_object_foreach(engines, key, engine)
        restore_member(set, engine, key, written);
    set->count = (int)set->member_count;
    return &set->base;
}

struct px_set *px_local_adopt(struct px_process process)
{
    struct local_set *set = create_set(&px_local_launcher, PX_CONTROLLER_SET);
    add_member(set, process, NULL, "");
    return &set->base;
}

static json_t *save_one(const struct local_set *set, int n, const char *log, pid_t pid)
{
    return px_process_state(set->profile_dir, set->cluster_id, n, log, pid);
}

static json_t *local_save(const struct px_set *base)
{
    const struct local_set *set = (const struct local_set *)base;
    if (set->kind == PX_CONTROLLER_SET)
        return save_one(set, -1, set->members[0].log, set->members[0].process.pid);
    json_t *engines = json_object();
    for (size_t i = 0; i < set->member_count; i++) {
        const struct member *member = &set->members[i];
        if (!member->key || member->ended)
            continue;
        json_object_set_new(engines, member->key,
                            save_one(set, 1, member->log, member->process.pid));
    }
    json_t *state = save_one(set, (int)json_object_size(engines), NULL, -1);
    json_object_set_new(state, "engines", engines);
    return state;
}

/* ---- signalling and ends ---- */

/* A fork server ends its engines; other signals are meant for the engines themselves. */
static bool gets(const struct local_set *set, const struct member *member, int signo)
{
    const struct member *first = &set->members[0];
    const bool server = set->kind == PX_ENGINE_SET && first->child && !first->key;
    if (!server || signo == SIGKILL)
        return true;
    return signo == SIGTERM ? member->child || first->ended : member->key != NULL;
}

static void local_signal(struct px_set *base, int signo)
{
    struct local_set *set = local_of(base);
    const bool end = signo == SIGTERM || signo == SIGKILL;
    for (size_t i = 0; i < set->member_count; i++) {
        struct member *member = &set->members[i];
        member->asked = member->asked || end;
        if (member->ended || !gets(set, member, signo))
            continue;
        /* An ipcontroller that is told to end while it starts leaves its schedulers behind. */
        const bool whole = signo == SIGTERM && set->profile_dir && !member->child &&
                           set->kind == PX_CONTROLLER_SET;
        if (signo == SIGKILL || whole)
            px_process_signal_group(member->process, signo);
        else
            px_process_signal(member->process, signo);
    }
}

static void describe_end(const siginfo_t *info, char *out, size_t size)
{
    if (info->si_code == CLD_EXITED)
        snprintf(out, size, "exit status %d", info->si_status);
    else
        snprintf(out, size, "killed by SIG%s",
                 sigabbrev_np(info->si_status) ? sigabbrev_np(info->si_status) : "?");
}

/* The last line of one of our programs that gave up: "pxengine: what: why". */
static bool complaint(const struct local_set *set, const char *log, char *out, size_t size)
{
    static const char *const names[] = {
        [PX_CONTROLLER_SET] = "pxcontroller: ", [PX_ENGINE_SET] = "pxengine: "};
    struct px_buf text = {0};
    out[0] = 0;
    if (set->base.speaks && px_file_read(log, MAX_LOG, &text, NULL) == 0)
        px_last_line(text.data, out, size);
    px_buf_fini(&text);
    return strncmp(out, names[set->kind], strlen(names[set->kind])) == 0;
}

/* Tells of a member that nobody had asked to end: in its own words, if there are any. */
static void tell_end(struct local_set *set, const struct member *member, const siginfo_t *info)
{
    const pid_t pid = member->process.pid;
    char why[300];
    const bool said = info->si_code == CLD_EXITED && complaint(set, member->log, why, sizeof why);
    if (!said)
        describe_end(info, why, sizeof why);
    /* A fork server takes all that is left of its engines with it. */
    set->base.lost = member->key ? set->base.lost + 1 : set->count;
    if (set->events.ended)
        set->events.ended(&set->base, said ? 0 : pid, why, set->events.ctx);
}

/* True if the child has ended; it is reaped, and what it left in its process group is killed. */
static bool reap(struct local_set *set, size_t index)
{
    const pid_t pid = set->members[index].process.pid;
    siginfo_t info = {0};
    if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0) {
        if (errno != ECHILD)
            return false;
        info.si_code = CLD_EXITED; /* somebody else reaped it; cannot be */
    } else if (!info.si_pid) {
        return false;
    }
    while (set->ready_fd >= 0 && read_lines(set))
        ;                /* what it said before it ended comes before its end */
    kill(-pid, SIGKILL); /* while the zombie keeps the number of its group taken */
    waitpid(pid, NULL, WNOHANG);
    struct member *member = &set->members[index];
    member->ended = true;
    px_log(PX_DEBUG, "process.ended", "pid=%ld", (long)pid);
    if (!member->asked)
        tell_end(set, member, &info);
    return true;
}

/* A dead fork server leaves its engines without a keeper. */
static void end_orphans(struct local_set *set)
{
    for (size_t i = 0; i < set->member_count; i++)
        if (!set->members[i].child && !set->members[i].ended) {
            px_process_signal_group(set->members[i].process, SIGKILL);
            set->members[i].ended = true; /* nobody tells of it */
        }
}

static size_t local_refresh(struct px_set *base)
{
    struct local_set *set = local_of(base);
    size_t running = 0;
    for (size_t i = 0; i < set->member_count; i++) {
        struct member *member = &set->members[i];
        if (member->ended)
            continue;
        if (member->child ? reap(set, i) : !px_process_alive(member->process)) {
            set->members[i].ended = true;
            if (set->members[i].child && !set->members[i].key)
                end_orphans(set);
            continue;
        }
        running++;
    }
    return running;
}

/* ---- logs ---- */

static void local_tail(const struct px_set *base, struct px_buf *out)
{
    const struct local_set *set = (const struct local_set *)base;
    int shown = 0;
    char line[300];
    if (set->member_count && complaint(set, set->members[0].log, line, sizeof line))
        return; /* it has been told */
    for (size_t i = 0; i < set->member_count && shown < TAIL_LOGS; i++) {
        const struct member *member = &set->members[i];
        /* Of engines with a log each, those that ended explain most. */
        if (member->child && (member->ended || set->member_count == 1 || !member->key)) {
            px_log_tail(member->log, out);
            shown++;
        }
    }
    if (!shown && set->member_count)
        px_log_tail(set->members[0].log, out);
}

/* ---- who is missing ---- */

static bool is_missing(const struct local_set *set, const struct member *member)
{
    if (member->ended)
        return false;
    return set->base.speaks ? !member->child && !member->key
                            : !px_log_says(member->log, REGISTERED_TEXT);
}

/* The fork server may have stopped short of its engines, too. */
static void name_unstarted(const struct local_set *set, struct px_buf *out)
{
    const size_t started = set->member_count - 1;
    if (set->base.speaks && !set->members[0].ended && started < (size_t)set->count)
        px_buf_printf(out, "process %ld has started %zu of %d engines, log %s\n",
                      (long)set->members[0].process.pid, started, set->count, set->members[0].log);
}

static void local_missing(const struct px_set *base, struct px_buf *out)
{
    const struct local_set *set = (const struct local_set *)base;
    size_t missing = 0;
    for (size_t i = 0; i < set->member_count; i++) {
        const struct member *member = &set->members[i];
        if (!is_missing(set, member) || ++missing > MISSING_SHOWN)
            continue;
        if (member->key)
            px_buf_printf(out, "engine %s (pid %ld) did not register, log %s\n", member->key,
                          (long)member->process.pid, member->log);
        else
            px_buf_printf(out, "engine process %ld did not register, log %s\n",
                          (long)member->process.pid, member->log);
    }
    if (missing > MISSING_SHOWN)
        px_buf_printf(out, "%zu more engines did not register\n", missing - MISSING_SHOWN);
    name_unstarted(set, out);
}

const struct px_launcher_ops px_local_launcher = {
    .name = "local",
    .title = "Local",
    .start = local_start,
    .restore = local_restore,
    .save = local_save,
    .signal = local_signal,
    .refresh = local_refresh,
    .tail = local_tail,
    .missing = local_missing,
    .destroy = local_destroy,
};
