/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The launcher for engines in a queue: Slurm's, PBS's, SGE's or HTCondor's (queues.c tells them
 * apart).
 *
 *     sbatch --parsable --job-name=... --ntasks=N [--launch-arg...] SCRIPT pxengine ...
 *     qsub -V -S /bin/sh ... -l nodes=1:ppn=N [--launch-arg...] SCRIPT
 *     condor_submit -terse ... -append "queue N" [--launch-arg...] SCRIPT
 *
 * Slurm starts as many engines as there are tasks: the script is one constant line, srun "$@", and
 * the engines' command line goes from here to srun as separate words, through no shell. Others
 * start the script once, on one node, and pass it no words: they stand in it, each quoted, and
 * pxengine gets -n N. With `job.array`, and where a job has room for one, there is a job for each
 * engine, and each joins when its own starts.
 *
 * A script of the user's (template.c) says itself what it needs and runs.
 *
 * In Slurm the connection goes with the job's environment, for nodes that do not share the
 * profile's directory. SGE and HTCondor show that to every user (qstat -j, condor_q -long), and SGE
 * keeps scripts where all can read them; PBS has it among what qstat -f tells. Engines there read
 * the connection file.
 *
 * The queue is asked about the job: every two seconds at first, then less often. Ending it is its
 * programs' business, with signals as ipyparallel's launchers send them.
 */
#define _GNU_SOURCE
#include "batch.h"
#include "proxy.h"

#include <ctype.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ASK_MS 10000       /* for one command of the queue's */
#define LOOK_FIRST_MS 1000 /* then half as long again each time, up to */
#define LOOK_AT_MOST_MS 20000
#define LOOK_STOPPING_MS 200 /* while the job is being ended */
#define WHAT_SIZE 300        /* of what a job does, and why */
#define PATIENCE 3 /* times that a queue may not answer before a job being ended is given up */

struct batch_set {
    struct px_set base;
    const struct px_batch *batch;
    struct px_loop *loop; /* NULL for a restored set */
    struct px_set_events events;
    json_t *state; /* as in the cluster file */
    char *job, *log;
    int count;
    struct px_timer *timer;
    int64_t pause_ms, looked_ms;
    bool local; /* only this host can reach the controller */
    bool ended, asked, killed;
    bool complained;      /* of the answer before this one, which was none */
    char told[WHAT_SIZE]; /* what the job did when this was last told */
    int silent;      /* times in a row that the queue did not answer */
};

static struct batch_set *batch_of(const struct px_set *set)
{
    return (struct batch_set *)set;
}

static void batch_destroy(struct px_set *base)
{
    struct batch_set *set = batch_of(base);
    if (set->loop)
        px_loop_cancel(set->loop, set->timer);
    json_decref(set->state);
    free(set->job);
    free(set->log);
    free(set);
}

static struct batch_set *create(const struct px_launcher_ops *ops)
{
    struct batch_set *set = px_alloc(sizeof *set);
    set->base = (struct px_set){.ops = ops, .pid = -1};
    set->batch = ops->batch;
    return set;
}

/* ---- asking ---- */

/* Runs one of the queue's programs. Its complaint becomes the error. Returns its exit status, or
 * < 0 when it did not run to its end. */
static int run_queue(const struct px_batch *batch, char *const *argv, struct px_buf *out,
                     struct px_buf *complaints, struct px_error *err)
{
    const int status = px_run_program(argv, ASK_MS, out, complaints, err);
    char line[300];
    if (status > 0) {
        px_batch_complaint(batch, argv[0], complaints->data, out->data, line, sizeof line);
        px_fail(err, PX_EIO, "%s", line);
    }
    return status;
}

/* As px_batch_read, of what one of the queue's programs tells about the job. -1: no answer. */
static int ask(const struct batch_set *set, const char *const *words, char *out, size_t size,
               struct px_error *err)
{
    struct px_argv argv = {0};
    struct px_buf answer = {0}, complaints = {0};
    char nothing[] = "";
    px_batch_words(&argv, words, set->job, "");
    const int status = run_queue(set->batch, argv.items, &answer, &complaints, err);
    int running = -1;
    if (status == 0 || px_batch_is_gone(set->batch, status, complaints.data))
        running =
            px_batch_read(set->batch, set->job, answer.size ? answer.data : nothing, out, size);
    px_buf_fini(&answer);
    px_buf_fini(&complaints);
    px_argv_fini(&argv);
    return running;
}

/* How many of the job's parts are not over, and what they do or how they ended. -1: no answer. */
static int look(const struct batch_set *set, char *out, size_t size, struct px_error *err)
{
    snprintf(out, size, "it has left the queue");
    const int running = ask(set, set->batch->ask, out, size, err);
    if (running == 0 && set->batch->past)
        ask(set, set->batch->past, out, size, NULL);
    return running;
}

/* ---- starting ---- */

/* Whether launch arguments say themselves where engines have room. */
static bool makes_room(const struct px_set_spec *spec, const struct px_batch *batch)
{
    for (const char *const *arg = spec->launch_args; arg && *arg; arg++)
        for (const char *const *own = batch->own; own && *own; own++)
            if (strncmp(*arg, *own, strlen(*own)) == 0)
                return true;
    return false;
}

/* A job for each engine, instead of one for all. */
static bool is_array(const struct px_set_spec *spec, const struct px_batch *batch)
{
    const bool room = batch->engines || makes_room(spec, batch),
               together = batch->passes || px_command_is_ours(spec->command);
    return spec->count > 1 && (spec->job.array || (!spec->job.script && !(room && together)));
}

/* Of the characters that all of them allow. */
static char *job_name(const struct px_set_spec *spec, const struct px_batch *batch)
{
    const char *id = spec->place->cluster_id;
    char *name = px_format("pxengine%s%.*s", id[0] ? "-" : "", batch->id_size, id);
    for (char *at = name; *at; at++)
        if (!isalnum((unsigned char)*at) && !strchr("-_.", *at))
            *at = '_';
    return name;
}

/* What a job runs, in the words of this host. */
static int build_engines(struct px_argv *argv, const struct px_set_spec *spec,
                         const struct px_batch *batch, struct px_error *err)
{
    if (px_argv_build(argv, spec, -1, err) < 0)
        return -1;
    if (!batch->passes && !spec->job.script && px_command_is_ours(spec->command))
        px_argv_add_new(argv, px_format("-n%d", is_array(spec, batch) ? 1 : spec->count));
    for (size_t i = 0; i < argv->count && batch->one_line; i++)
        if (strchr(argv->items[i], '\n'))
            return px_fail(err, PX_EINVAL, "%s takes no line break in a word of a command",
                           batch->submit);
    return 0;
}

/* The user's script, with ipyparallel's names for what it may name. */
static int fill_script(struct px_buf *text, const struct px_set_spec *spec,
                       const struct px_batch *batch, const struct px_argv *engines,
                       struct px_error *err)
{
    char number[16];
    struct px_buf program = {0}, args = {0}, all = {0};
    snprintf(number, sizeof number, "%d", spec->count);
    px_buf_text(&args, "");
    for (size_t i = 0; i < engines->count; i++) {
        batch->quote(i == 0 ? &program : &args, engines->items[i]);
        batch->quote(&all, engines->items[i]);
    }
    const struct px_template_name names[] = {
        {"n", number},
        {"queue", spec->job.queue ? spec->job.queue : ""},
        {"profile_dir", spec->place->profile_dir},
        {"cluster_id", spec->place->cluster_id},
        {"program", program.data},
        {"program_args", args.data},
        {"program_and_args", all.data},
        {NULL, NULL},
    };
    const int result = px_template_fill(spec->job.script, names, text, err);
    px_buf_fini(&program);
    px_buf_fini(&args);
    px_buf_fini(&all);
    return result;
}

static int write_script(const char *path, const struct px_set_spec *spec,
                        const struct px_batch *batch, const struct px_argv *engines,
                        struct px_error *err)
{
    struct px_buf text = {0};
    char *cwd = getcwd(NULL, 0);
    int result = 0;
    if (spec->job.script)
        result = fill_script(&text, spec, batch, engines, err);
    else
        batch->script(&text, engines, cwd ? cwd : "/", is_array(spec, batch));
    if (result == 0)
        result = px_file_write(path, 0700, px_buf_span(&text), err);
    free(cwd);
    px_buf_fini(&text);
    return result;
}

/* Where a job writes; with a log for each of an array's, that of job `part`. Caller frees. */
static char *log_path(const char *log, const struct px_batch *batch, const char *part)
{
    return batch->part ? px_format("%.*s-%s.log", (int)(strlen(log) - strlen(".log")), log, part)
                       : px_strdup(log);
}

static int build_command(struct px_argv *argv, const struct px_set_spec *spec,
                         const struct px_batch *batch, const char *log, struct px_error *err)
{
    char number[16], *name = job_name(spec, batch), *path = log_path(log, batch, batch->part);
    snprintf(number, sizeof number, "%d", spec->count);
    const bool array = is_array(spec, batch), own = spec->job.script;
    const struct {
        const char *const *words;
        const char *value; /* NULL: not asked for */
    } rows[] = {
        {batch->options, ""},
        {batch->plain, own ? NULL : ""},
        {batch->name, own ? NULL : name},
        {batch->log, path},
        {batch->array, array ? number : NULL},
        {batch->engines, own || array || makes_room(spec, batch) ? NULL : number},
        {batch->queue, spec->job.queue},
        {batch->account, spec->job.account},
        {batch->time, spec->job.time},
    };
    const int result =
        px_argv_split(argv, spec->launch_command ? spec->launch_command : batch->submit, err);
    for (size_t i = 0; i < PX_COUNT(rows) && result == 0; i++)
        if (rows[i].value)
            px_batch_words(argv, rows[i].words, rows[i].value, "");
    px_argv_add_all(argv, spec->launch_args);
    free(name);
    free(path);
    return result;
}

/* Runs the submitting program with the connection in this process's environment, for it to take
 * along: for a moment. An older one there is not for the job in any case. */
static int run_submit(const struct px_batch *batch, char *const *argv, char *connection,
                      struct px_buf *answer, struct px_error *err)
{
    struct px_buf complaints = {0};
    if (batch->carries)
        putenv(connection);
    else
        unsetenv("IPP_CONNECTION_INFO");
    const int status = run_queue(batch, argv, answer, &complaints, err);
    unsetenv("IPP_CONNECTION_INFO");
    px_buf_fini(&complaints);
    return status == 0 ? 0 : -1;
}

static int submit(struct batch_set *set, const struct px_set_spec *spec, struct px_error *err)
{
    const struct px_batch *batch = set->batch;
    struct px_argv argv = {0}, engines = {0};
    struct px_buf answer = {0};
    char *connection = px_connection_variable(spec->place, &set->local, err),
         *script = px_format("%s/log/ipengine-%s-%s.job", spec->place->profile_dir,
                             spec->place->cluster_id, spec->set_id);
    int result = connection ? build_engines(&engines, spec, batch, err) : -1;
    if (result == 0)
        result = build_command(&argv, spec, batch, set->log, err);
    if (result == 0)
        result = write_script(script, spec, batch, &engines, err);
    if (result == 0) {
        px_argv_add(&argv, script);
        if (batch->passes && !spec->job.script)
            px_argv_add_all(&argv, (const char *const *)engines.items);
        result = run_submit(batch, argv.items, connection, &answer, err);
        unlink(script); /* the queue has its own copy */
    }
    if (result == 0 && !(set->job = px_batch_number(batch, answer.size ? answer.data : "")))
        result = px_fail(err, PX_EIO, "%s: no job number in '%.80s'", batch->submit,
                         answer.size ? answer.data : "");
    free(script);
    free(connection);
    px_buf_fini(&answer);
    px_argv_fini(&engines);
    px_argv_fini(&argv);
    return result;
}

static void on_look(struct px_loop *loop, void *ctx)
{
    struct batch_set *set = ctx;
    char what[WHAT_SIZE], why[WHAT_SIZE + 60];
    struct px_error err;
    set->timer = NULL;
    if (set->ended || set->asked)
        return;
    const int running = look(set, what, sizeof what, &err);
    if (running < 0 && !set->complained)
        px_log(PX_WARN, "batch.no-answer", "job=%s why=\"%s\"", set->job, err.text);
    set->complained = running < 0;
    if (running > 0 && strcmp(what, set->told) != 0) {
        px_log(PX_INFO, "batch.state", "job=%s state=\"%s\"", set->job, what);
        snprintf(set->told, sizeof set->told, "%s", what);
    }
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

static struct px_set *batch_start(const struct px_launcher_ops *ops, const struct px_set_spec *spec,
                                  struct px_error *err)
{
    struct batch_set *set = create(ops);
    const struct px_place *place = spec->place;
    set->loop = spec->loop;
    set->events = spec->events;
    set->count = spec->count;
    set->log = px_set_log_path(spec, -1);
    if (submit(set, spec, err) < 0) {
        batch_destroy(&set->base);
        return NULL;
    }
    px_log(PX_INFO, "batch.submitted", "queue=%s job=%s engines=%d", ops->name, set->job,
           spec->count);
    /* Keys in ipyparallel's order. */
    set->state = json_pack("{s:s, s:s, s:s, s:i, s:{}, s:s, s:s, s:s}", "batch_template", "",
                           "cluster_id", place->cluster_id, "job_id", set->job, "n", spec->count,
                           "namespace", "profile_dir", place->profile_dir, "queue",
                           spec->job.queue ? spec->job.queue : "", "state", "running");
    set->pause_ms = LOOK_FIRST_MS;
    set->timer = px_loop_timer(set->loop, set->pause_ms, 0, on_look, set);
    return &set->base;
}

/* ipcluster's are the same: a job and its number. */
static struct px_set *batch_restore(const struct px_launcher_ops *ops, const json_t *state,
                                    double written, const struct px_process *supervisor)
{
    struct batch_set *set = create(ops);
    const char *job = json_string_value(json_object_get(state, "job_id"));
    (void)written, (void)supervisor;
    set->state = json_deep_copy(state);
    set->job = job && px_batch_is_number(ops->batch, job) ? px_strdup(job) : NULL;
    set->ended = !set->job;
    return &set->base;
}

static json_t *batch_save(const struct px_set *base)
{
    return json_deep_copy(batch_of(base)->state);
}

/* ---- signalling and ends ---- */

/* To end a job is the queue's own way of it: SIGTERM first, where it knows that. */
static void batch_signal(struct px_set *base, int signo)
{
    struct batch_set *set = batch_of(base);
    const struct px_batch *batch = set->batch;
    const bool ending = signo == SIGTERM || signo == SIGKILL;
    struct px_argv argv = {0};
    struct px_buf out = {0}, complaints = {0};
    struct px_error err;
    char number[16];
    snprintf(number, sizeof number, "%d", signo);
    if (set->ended || (signo == SIGKILL && set->killed))
        return;
    if (!ending && !batch->signal) {
        px_log(PX_WARN, "batch.signal", "job=%s why=\"%s has no way to signal a job\"", set->job,
               base->ops->title);
        return;
    }
    set->asked = set->asked || ending;
    set->killed = signo == SIGKILL;
    px_batch_words(&argv, signo == SIGTERM || !batch->signal ? batch->end : batch->signal, set->job,
                   number);
    const int status = run_queue(batch, argv.items, &out, &complaints, &err);
    if (status != 0 && !px_batch_is_gone(batch, status, complaints.data))
        px_log(PX_WARN, "batch.signal", "job=%s why=\"%s\"", set->job, err.text);
    px_buf_fini(&out);
    px_buf_fini(&complaints);
    px_argv_fini(&argv);
    set->looked_ms = 0;
}

/* While a supervisor watches the job, its timer does; this looks when it is being ended. */
static size_t batch_refresh(struct px_set *base)
{
    struct batch_set *set = batch_of(base);
    const int64_t now = px_now_ms();
    char what[WHAT_SIZE];
    if (set->ended)
        return 0;
    if (set->asked ? set->looked_ms && now - set->looked_ms < LOOK_STOPPING_MS : set->loop != NULL)
        return 1;
    const int running = look(set, what, sizeof what, NULL);
    set->looked_ms = px_now_ms();
    set->silent = running < 0 ? set->silent + 1 : 0;
    if (running < 0 && set->asked && set->silent >= PATIENCE) {
        px_log(PX_ERROR, "batch.silent", "job=%s effect=\"it may still run: %s %s\"", set->job,
               set->batch->end[0], set->job);
        set->ended = true;
    }
    set->ended = set->ended || running == 0;
    return set->ended ? 0 : 1;
}

/* ---- reports ---- */

/* Where each job of an array has its own, of the first that wrote anything. */
static void batch_tail(const struct px_set *base, struct px_buf *out)
{
    const struct batch_set *set = batch_of(base);
    const size_t before = out->size;
    for (int i = 0; i < (set->batch->part ? set->count : 1) && out->size == before; i++) {
        char part[16];
        snprintf(part, sizeof part, "%d", i);
        char *path = log_path(set->log, set->batch, part);
        px_log_tail(path, out);
        free(path);
    }
}

static void batch_missing(const struct px_set *base, struct px_buf *out)
{
    const struct batch_set *set = batch_of(base);
    char what[WHAT_SIZE];
    if (look(set, what, sizeof what, NULL) < 0)
        snprintf(what, sizeof what, "%s does not answer", base->ops->title);
    char *path = log_path(set->log, set->batch, "*");
    px_buf_printf(out, "job %s: %s, log %s\n", set->job, what, path);
    free(path);
    if (set->local)
        px_buf_text(out, PX_LOCAL_HINT);
}

/* ---- the launchers ---- */

#define BATCH_LAUNCHER(variable, row, launcher_name, launcher_title)                               \
    const struct px_launcher_ops variable = {                                                      \
        .name = launcher_name,                                                                     \
        .title = launcher_title,                                                                   \
        .batch = &row,                                                                             \
        .start = batch_start,                                                                      \
        .restore = batch_restore,                                                                  \
        .save = batch_save,                                                                        \
        .signal = batch_signal,                                                                    \
        .refresh = batch_refresh,                                                                  \
        .tail = batch_tail,                                                                        \
        .missing = batch_missing,                                                                  \
        .destroy = batch_destroy,                                                                  \
    }
BATCH_LAUNCHER(px_slurm_launcher, px_slurm_batch, "slurm", "Slurm");
BATCH_LAUNCHER(px_pbs_launcher, px_pbs_batch, "pbs", "PBS");
BATCH_LAUNCHER(px_sge_launcher, px_sge_batch, "sge", "SGE");
BATCH_LAUNCHER(px_condor_launcher, px_condor_batch, "htcondor", "HTCondor");
