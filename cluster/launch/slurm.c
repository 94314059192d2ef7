/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The launcher for engines in Slurm's queue.
 *
 *     sbatch --parsable --job-name=... --ntasks=N [--launch-arg...] SCRIPT pxengine ...
 *
 * The script is one constant line, srun "$@": the engines' command line goes from here to srun as
 * separate words, through no shell. With `job_array` it is --array=1-N --ntasks=1: a job for each
 * engine, and each joins when its own starts. The connection goes with the job's environment, for
 * nodes that do not share the profile's directory.
 *
 * squeue is asked about the job: every two seconds at first, then less often. Ending it is
 * scancel's business, with signals as ipyparallel's launcher sends them.
 */
#define _GNU_SOURCE
#include "proxy.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ASK_MS 10000       /* for one command of Slurm's */
#define LOOK_FIRST_MS 1000 /* then half as long again each time, up to */
#define LOOK_AT_MOST_MS 20000
#define LOOK_STOPPING_MS 200 /* while the job is being ended */
#define PATIENCE 3 /* times that Slurm may not answer before a job being ended is given up */

struct slurm_set {
    struct px_set base;
    struct px_loop *loop; /* NULL for a restored set */
    struct px_set_events events;
    json_t *state; /* as in the cluster file */
    char *job, *log;
    int count;
    struct px_timer *timer;
    int64_t pause_ms, looked_ms;
    bool local; /* only this host can reach the controller */
    bool ended, asked, killed;
    int silent; /* times in a row that squeue did not answer */
};

static struct slurm_set *slurm_of(const struct px_set *set)
{
    return (struct slurm_set *)set;
}

static void slurm_destroy(struct px_set *base)
{
    struct slurm_set *set = slurm_of(base);
    if (set->loop)
        px_loop_cancel(set->loop, set->timer);
    json_decref(set->state);
    free(set->job);
    free(set->log);
    free(set);
}

static struct slurm_set *create(void)
{
    struct slurm_set *set = px_alloc(sizeof *set);
    set->base = (struct px_set){.ops = &px_slurm_launcher, .pid = -1};
    return set;
}

/* ---- asking ---- */

/* Runs one of Slurm's programs. Its complaint, without its name before it, becomes the error. */
static int run_slurm(char *const *argv, struct px_buf *out, struct px_error *err)
{
    struct px_buf complaints = {0};
    const int status = px_process_run(argv, ASK_MS, out, &complaints, err);
    if (status > 0) {
        char line[300];
        px_last_line(complaints.data, line, sizeof line);
        const char *colon = strstr(line, "error: ");
        px_fail(err, PX_EIO, "%.40s: %s", argv[0],
                colon     ? colon + 7
                : line[0] ? line
                          : "failed and did not say why");
    }
    px_buf_fini(&complaints);
    return status == 0 ? 0 : -1;
}

/* States of jobs (squeue(1), job state codes) that will not run any more. */
static bool is_over(const char *state)
{
    static const char *const over[] = {"BOOT_FAIL",     "CANCELLED", "COMPLETED",   "DEADLINE",
                                       "FAILED",        "NODE_FAIL", "PREEMPTED",   "REVOKED",
                                       "OUT_OF_MEMORY", "TIMEOUT",   "SPECIAL_EXIT"};
    for (size_t i = 0; i < PX_COUNT(over); i++)
        if (strcmp(state, over[i]) == 0)
            return true;
    return false;
}

/*
 * Asks about the job. `out` gets "STATE (reason)" of its first part that is not over, or of the
 * last that is. Returns how many parts are not over; -1: no answer.
 */
static int look(const struct slurm_set *set, char *out, size_t size)
{
    char *const argv[] = {"squeue",           "--noheader", "--states=all", "--array",
                          "--format=%T (%r)", "--jobs",     set->job,       NULL};
    struct px_buf text = {0};
    struct px_error err;
    int running = 0;
    char *rest = NULL;
    snprintf(out, size, "gone");
    if (run_slurm(argv, &text, &err) < 0) {
        px_buf_fini(&text);
        return strstr(err.text, "Invalid job id") ? 0 : -1;
    }
    for (char *line = text.size ? strtok_r(text.data, "\n", &rest) : NULL; line;
         line = strtok_r(NULL, "\n", &rest)) {
        char state[32] = "";
        sscanf(line, "%31s", state);
        const bool over = is_over(state);
        if (running == 0)
            snprintf(out, size, "%s", line);
        running += !over;
    }
    px_buf_fini(&text);
    return running;
}

/* ---- starting ---- */

static char *write_script(const struct px_set_spec *spec, struct px_error *err)
{
    static const char script[] = "#!/bin/sh\nexec srun \"$@\"\n";
    char *path = px_format("%s/log/ipengine-%s-%s.sbatch", spec->place->profile_dir,
                           spec->place->cluster_id, spec->set_id);
    if (px_file_write(path, 0700, PX_SPAN(script), err) == 0)
        return path;
    free(path);
    return NULL;
}

static int build_command(struct px_argv *argv, const struct px_set_spec *spec, const char *script,
                         const char *log, struct px_error *err)
{
    const char *id = spec->place->cluster_id;
    if (px_argv_split(argv, spec->launch_command ? spec->launch_command : "sbatch", err) < 0)
        return -1;
    px_argv_add(argv, "--parsable");
    px_argv_add_new(argv, px_format("--job-name=pxengine%s%s", id[0] ? "-" : "", id));
    px_argv_add_new(argv, px_format("--output=%s", log));
    if (spec->job_array)
        px_argv_add_new(argv, px_format("--array=1-%d", spec->count));
    px_argv_add_new(argv, px_format("--ntasks=%d", spec->job_array ? 1 : spec->count));
    px_argv_add_all(argv, spec->launch_args);
    px_argv_add(argv, script);
    return px_argv_build(argv, spec, -1, err);
}

/* The connection in this process's environment, for sbatch to take along: for a moment. */
static int submit(struct slurm_set *set, const struct px_set_spec *spec, struct px_error *err)
{
    struct px_argv argv = {0};
    struct px_buf answer = {0};
    char *connection = px_connection_variable(spec->place, &set->local, err),
         *script = write_script(spec, err);
    int result = connection && script ? build_command(&argv, spec, script, set->log, err) : -1;
    if (result == 0) {
        putenv(connection);
        result = run_slurm(argv.items, &answer, err);
        unsetenv("IPP_CONNECTION_INFO");
    }
    /* "17" or "17;cluster" */
    const size_t size = answer.size ? strspn(answer.data, "0123456789") : 0;
    if (result == 0 && size == 0)
        result = px_fail(err, PX_EIO, "sbatch: no job number in '%.80s'",
                         answer.size ? answer.data : "");
    if (result == 0)
        set->job = px_strndup(answer.data, size);
    if (script)
        unlink(script); /* Slurm has its own copy */
    free(script);
    free(connection);
    px_buf_fini(&answer);
    px_argv_fini(&argv);
    return result;
}

static void on_look(struct px_loop *loop, void *ctx)
{
    struct slurm_set *set = ctx;
    char what[200], why[260];
    set->timer = NULL;
    if (set->ended || set->asked)
        return;
    const int running = look(set, what, sizeof what);
    if (running != 0) {
        set->pause_ms =
            set->pause_ms * 3 / 2 < LOOK_AT_MOST_MS ? set->pause_ms * 3 / 2 : LOOK_AT_MOST_MS;
        set->timer = px_loop_timer(loop, set->pause_ms, 0, on_look, set);
        return;
    }
    set->ended = true;
    set->base.lost = set->count;
    snprintf(why, sizeof why, "job %s: %s", set->job, what);
    set->events.ended(&set->base, 0, why, set->events.ctx);
}

static struct px_set *slurm_start(const struct px_set_spec *spec, struct px_error *err)
{
    struct slurm_set *set = create();
    const struct px_place *place = spec->place;
    set->loop = spec->loop;
    set->events = spec->events;
    set->count = spec->count;
    set->log = px_set_log_path(spec, -1);
    if (submit(set, spec, err) < 0) {
        slurm_destroy(&set->base);
        return NULL;
    }
    px_log(PX_INFO, "slurm.submitted", "job=%s engines=%d", set->job, spec->count);
    /* Keys in ipyparallel's order. */
    set->state =
        json_pack("{s:s, s:s, s:s, s:i, s:{}, s:s, s:s, s:s}", "batch_template", "", "cluster_id",
                  place->cluster_id, "job_id", set->job, "n", spec->count, "namespace",
                  "profile_dir", place->profile_dir, "queue", "", "state", "running");
    set->pause_ms = LOOK_FIRST_MS;
    set->timer = px_loop_timer(set->loop, set->pause_ms, 0, on_look, set);
    return &set->base;
}

/* ipcluster's are the same: a job and its number. */
static struct px_set *slurm_restore(const json_t *state, double written,
                                    const struct px_process *supervisor)
{
    struct slurm_set *set = create();
    const char *job = json_string_value(json_object_get(state, "job_id"));
    (void)written, (void)supervisor;
    set->state = json_deep_copy(state);
    set->job = px_strdup(job && job[0] && !job[strspn(job, "0123456789")] ? job : NULL);
    set->ended = !set->job;
    return &set->base;
}

static json_t *slurm_save(const struct px_set *base)
{
    return json_deep_copy(slurm_of(base)->state);
}

/* ---- signalling and ends ---- */

/* scancel's own way to end a job is SIGTERM, and SIGKILL after Slurm's KillWait. */
static void slurm_signal(struct px_set *base, int signo)
{
    struct slurm_set *set = slurm_of(base);
    char number[16];
    snprintf(number, sizeof number, "%d", signo);
    char *const end[] = {"scancel", set->job, NULL};
    char *const other[] = {"scancel", "--full", "--signal", number, set->job, NULL};
    struct px_buf out = {0};
    struct px_error err;
    if (set->ended || (signo == SIGKILL && set->killed))
        return;
    set->asked = set->asked || signo == SIGTERM || signo == SIGKILL;
    set->killed = signo == SIGKILL;
    if (run_slurm(signo == SIGTERM ? end : other, &out, &err) < 0)
        px_log(PX_WARN, "slurm.signal", "job=%s why=\"%s\"", set->job, err.text);
    px_buf_fini(&out);
    set->looked_ms = 0;
}

/* While a supervisor watches the job, its timer does; this looks when it is being ended. */
static size_t slurm_refresh(struct px_set *base)
{
    struct slurm_set *set = slurm_of(base);
    const int64_t now = px_now_ms();
    char what[200];
    if (set->ended)
        return 0;
    if ((set->loop && !set->asked) || (set->looked_ms && now - set->looked_ms < LOOK_STOPPING_MS))
        return 1;
    const int running = look(set, what, sizeof what);
    set->looked_ms = px_now_ms();
    set->silent = running < 0 ? set->silent + 1 : 0;
    if (running < 0 && set->asked && set->silent >= PATIENCE) {
        px_log(PX_ERROR, "slurm.silent", "job=%s effect=\"it may still run: scancel %s\"", set->job,
               set->job);
        set->ended = true;
    }
    set->ended = set->ended || running == 0;
    return set->ended ? 0 : 1;
}

/* ---- reports ---- */

static void slurm_tail(const struct px_set *base, struct px_buf *out)
{
    px_log_tail(slurm_of(base)->log, out);
}

static void slurm_missing(const struct px_set *base, struct px_buf *out)
{
    const struct slurm_set *set = slurm_of(base);
    char what[200];
    const int running = look(set, what, sizeof what);
    px_buf_printf(out, "job %s: %s, log %s\n", set->job,
                  running < 0 ? "Slurm does not answer" : what, set->log);
    if (set->local)
        px_buf_text(out, PX_LOCAL_HINT);
}

const struct px_launcher_ops px_slurm_launcher = {
    .name = "slurm",
    .title = "Slurm",
    .patient = true,
    .start = slurm_start,
    .restore = slurm_restore,
    .save = slurm_save,
    .signal = slurm_signal,
    .refresh = slurm_refresh,
    .tail = slurm_tail,
    .missing = slurm_missing,
    .destroy = slurm_destroy,
};
