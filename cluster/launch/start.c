/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The commands start and engines: options to a plan, into the background if asked, supervise.
 */
#define _GNU_SOURCE
#include "adapt.h"
#include "batch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#define TEMPLATE_BYTES (1u << 20)
#define ADAPT_IDLE_S 60
#define CONTROLLER_FILES 100 /* open at once, with some clients */
#define ENGINE_FILES 8       /* of them, for each engine besides */

struct start_options {
    struct px_common_options common;
    int n, daemonize, ready_fd, stop_on_eof, parent_fd, timeout, at_least;
    const char *controller, *engines, *controller_command, *engine_command;
    const char *ip, *location, *delay, *clean_logs, *python, *template;
    const char *hostfile, *launch_command, *work_dir;
    const char *adapt;
    struct px_job_wishes job;
    int job_array, adapt_idle, ignored;
    struct px_list engine_args, hosts, launch_args;
};

#define AT(field) offsetof(struct start_options, field)

/* clang-format off */
#define ENGINE_ROWS \
    {"n", 'n', PX_OPT_INT, AT(n), 0, "N", "engines (default: one a processor)", 0, 100000}, \
    {"adapt", 0, PX_OPT_STRING, AT(adapt), 0, "MIN:MAX", \
     "start engines while tasks wait, end idle ones; local or in a queue", 0, 0}, \
    {"adapt-idle", 0, PX_OPT_INT, AT(adapt_idle), 0, "S", \
     "seconds without work after which one ends (default: 60)", 1, 1000000}, \
    {"daemonize", 0, PX_OPT_SET, AT(daemonize), 1, NULL, \
     "return when all engines are there; go on in the background", 0, 0}, \
    {"timeout", 0, PX_OPT_INT, AT(timeout), 0, "S", \
     "seconds for all engines to register (default: 60)", 1, 86400}, \
    {"at-least", 0, PX_OPT_INT, AT(at_least), 0, "N", \
     "be content with N when the time is up (default: all; in a queue: 0)", 0, 100000}, \
    {"engine-cmd", 0, PX_OPT_STRING, AT(engine_command), 0, "CMD", \
     "program for engines (default: pxengine beside this program)", 0, 0}, \
    {"engine-arg", 0, PX_OPT_LIST, AT(engine_args), 0, "ARG", \
     "one more argument for it; may be given again", 0, 0}, \
    {"python", 0, PX_OPT_STRING, AT(python), 0, "PATH", \
     "the engines' interpreter (default: its own or the active environment's)", 0, 0}, \
    {"work-dir", 0, PX_OPT_STRING, AT(work_dir), 0, "DIR", "change to this directory first", 0, 0}, \
    {.type = PX_OPT_HEADING, .help = "Where engines run"}, \
    {"engines", 0, PX_OPT_STRING, AT(engines), 0, "HOW", \
     "launcher for engines: " PX_LAUNCHER_NAMES, 0, 0}, \
    {"host", 0, PX_OPT_LIST, AT(hosts), 0, "HOST[:N],...", \
     "ssh: N engines there (default: an equal share of -n, or 1)", 0, 0}, \
    {"hostfile", 0, PX_OPT_STRING, AT(hostfile), 0, "FILE", \
     "ssh: the same from a file, a line HOST [N] each", 0, 0}, \
    {"queue", 0, PX_OPT_STRING, AT(job.queue), 0, "NAME", \
     "in a queue (" PX_QUEUE_NAMES "): which one", 0, 0}, \
    {"partition", 0, PX_OPT_STRING, AT(job.queue), 0, "NAME", "the same", 0, 0}, \
    {"account", 0, PX_OPT_STRING, AT(job.account), 0, "NAME", "in a queue: the account", 0, 0}, \
    {"time", 0, PX_OPT_STRING, AT(job.time), 0, "LIMIT", \
     "in a queue: the time limit, as that system writes it", 0, 0}, \
    {"array", 0, PX_OPT_SET, AT(job_array), 1, NULL, \
     "in a queue: a job for each engine, instead of one for all", 0, 0}, \
    {"template", 0, PX_OPT_STRING, AT(template), 0, "FILE", \
     "in a queue: the job's script, with {n}, {queue}, {program_and_args}", 0, 0}, \
    {"template-text", 0, PX_OPT_STRING, AT(job.script), 0, "TEXT", NULL, 0, 0}, \
    {"launch-cmd", 0, PX_OPT_STRING, AT(launch_command), 0, "CMD", \
     "another program than ssh, mpiexec, sbatch, qsub or condor_submit", 0, 0}, \
    {"launch-arg", 0, PX_OPT_LIST, AT(launch_args), 0, "ARG", \
     "one more argument for that program; may be given again", 0, 0}
#define OTHER_ROWS \
    {.type = PX_OPT_HEADING, .help = "For programs that start clusters"}, \
    {"ready-fd", 0, PX_OPT_INT, AT(ready_fd), 0, "FD", \
     "write \"ready N\" there when all engines are there", 0, 65535}, \
    {"stop-on-eof", 0, PX_OPT_SET, AT(stop_on_eof), 1, NULL, \
     "stop when standard input ends", 0, 0}, \
    {"parent-fd", 0, PX_OPT_INT, AT(parent_fd), 0, "FD", \
     "stop when it becomes readable or its other end closes: a pidfd or pipe", 3, 65535}, \
    /* ipcluster's traits of other names, and flags that change nothing here. */ \
    {"engine-launcher-class", 0, PX_OPT_STRING, AT(engines), 0, "HOW", NULL, 0, 0}, \
    {"engine-timeout", 0, PX_OPT_INT, AT(timeout), 0, "S", NULL, 1, 86400}, \
    {"log-to-file", 0, PX_OPT_SET, AT(ignored), 1, NULL, NULL, 0, 0}, \
    {"init", 0, PX_OPT_SET, AT(ignored), 1, NULL, NULL, 0, 0}, \
    PX_COMMON_ROWS(struct start_options, common)

static const struct px_option start_rows[] = {
    ENGINE_ROWS,
    {.type = PX_OPT_HEADING, .help = "Controller"},
    {"controller", 0, PX_OPT_STRING, AT(controller), 0, "HOW",
     "launcher for it: local (default: local)", 0, 0},
    {"controller-cmd", 0, PX_OPT_STRING, AT(controller_command), 0, "CMD",
     "program for it (default: pxcontroller beside this program)", 0, 0},
    {"ip", 0, PX_OPT_STRING, AT(ip), 0, "IP", "address it listens on (default: 127.0.0.1)", 0, 0},
    {"location", 0, PX_OPT_STRING, AT(location), 0, "HOST",
     "name by which others reach it (default: this host's)", 0, 0},
    {"clean-logs", 0, PX_OPT_STRING, AT(clean_logs), 0, "BOOL",
     "remove this cluster's old logs first (default: true)", 0, 0},
    {"delay", 0, PX_OPT_STRING, AT(delay), 0, "S",
     "accepted and not needed: engines start when the controller is ready", 0, 0},
    {"controller-launcher-class", 0, PX_OPT_STRING, AT(controller), 0, "HOW", NULL, 0, 0},
    {"controller-ip", 0, PX_OPT_STRING, AT(ip), 0, "IP", NULL, 0, 0},
    {"controller-location", 0, PX_OPT_STRING, AT(location), 0, "HOST", NULL, 0, 0},
    OTHER_ROWS,
    {0},
};

static const struct px_option engines_rows[] = {ENGINE_ROWS, OTHER_ROWS, {0}};
/* clang-format on */

#define CLASSES                                                                                    \
    " Cluster IPCluster IPClusterStart IPClusterEngines BaseParallelApplication "                  \
    "BaseIPythonApplication Application "

static const struct px_usage start_usage = {
    .program = "pxcluster start",
    .synopsis = "[options] [-- controller options]",
    .about = "Starts a controller and engines, and stops them when it is interrupted.",
    .examples = "  pxcluster start -n 4 --daemonize\n"
                "  pxcluster start --engines=ssh --host=node1:8,node2:8\n",
    .options = start_rows,
    .classes = CLASSES,
};

static const struct px_usage engines_usage = {
    .program = "pxcluster engines",
    .synopsis = "[options]",
    .about = "Starts more engines for a cluster that is running.",
    .examples = "  pxcluster engines -n 2 --daemonize\n"
                "  pxcluster engines --profile=lab -n 8\n",
    .options = engines_rows,
    .classes = CLASSES,
};

/* What the user named, or NULL. */
static const struct px_launcher_ops *launcher_option(const struct px_usage *usage,
                                                     const char *option, const char *name)
{
    const struct px_launcher_ops *ops = name ? px_launcher_find(name) : NULL;
    if (!name || ops)
        return ops;
    fprintf(stderr, "%s: --%s: there is no launcher '%s'; there is: %s\n", usage->program, option,
            name, PX_LAUNCHER_NAMES);
    exit(2);
}

PX_NORETURN static void misused(const struct px_usage *usage, const char *fmt, ...) PX_PRINTF(2, 3);
static void misused(const struct px_usage *usage, const char *fmt, ...)
{
    char text[700];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    fprintf(stderr, "%s: %s\n", usage->program, text);
    exit(2);
}

/* The launcher of the engines that a running cluster has: its file has room for one. */
static const struct px_launcher_ops *joined_launcher(const struct px_usage *usage,
                                                     const struct px_place *place,
                                                     const struct px_launcher_ops *asked)
{
    json_t *file = px_clusterfile_read(place->file, NULL, NULL);
    const json_t *engines = json_object_get(file, "engines");
    const char *class = json_string_value(json_object_get(engines, "class"));
    const struct px_launcher_ops *present = class ? px_launcher_find(class) : NULL;
    const bool any = json_object_size(json_object_get(engines, "sets")) > 0;
    char name[100];
    snprintf(name, sizeof name, "%s", present ? present->name : class ? class : "");
    json_decref(file);
    if (any && asked && asked != present)
        misused(usage,
                "this cluster's engines are started by %s; --engines=%s needs another cluster",
                name, asked->name);
    return asked ? asked : present ? present : &px_local_launcher;
}

/* Options that only some launchers have. */
static void check_launcher(const struct px_usage *usage, const struct start_options *options,
                           const struct px_launcher_ops *launcher)
{
    static const char queues[] = PX_BATCH_NAMES;
    const bool ssh = launcher == &px_ssh_launcher, queued = launcher->batch,
               local = launcher == &px_local_launcher,
               script = options->template || options->job.script,
               named = queued && (script || launcher->batch->queue);
    const struct {
        const char *option;
        bool given, fits;
        const char *of;
    } rows[] = {
        {"adapt", options->adapt, local || queued, "local, " PX_BATCH_NAMES},
        {"host", options->hosts.count > 0, ssh, "ssh"},
        {"hostfile", options->hostfile, ssh, "ssh"},
        {"queue", options->job.queue, named, PX_QUEUE_NAMES ", or a --template in any queue"},
        {"account", options->job.account, queued, queues},
        {"time", options->job.time, queued, queues},
        {"array", options->job_array, queued, queues},
        {"template", script, queued, queues},
        {"launch-arg", options->launch_args.count > 0, !local, "ssh, mpi, " PX_BATCH_NAMES},
        {"launch-cmd", options->launch_command, !local, "ssh, mpi, " PX_BATCH_NAMES},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++)
        if (rows[i].given && !rows[i].fits)
            misused(usage, "--%s is for --engines=%s", rows[i].option, rows[i].of);
    if (launcher == &px_ssh_launcher && !options->hosts.count && !options->hostfile)
        misused(usage, "--engines=ssh needs --host or --hostfile");
}

/* How many engines there are at first is what --adapt says. */
static struct px_adapt_limits settle_adapt(const struct px_usage *usage,
                                           struct start_options *options)
{
    const int idle_s = options->adapt_idle ? options->adapt_idle : ADAPT_IDLE_S;
    struct px_adapt_limits limits = {.idle_ms = (int64_t)idle_s * 1000};
    struct px_error err;
    if (options->adapt_idle && !options->adapt)
        misused(usage, "--adapt-idle needs --adapt=MIN:MAX");
    if (!options->adapt)
        return limits;
    if (px_adapt_parse(options->adapt, &limits, &err) < 0)
        misused(usage, "--adapt: %s", err.text);
    if (options->n >= 0)
        misused(usage, "--adapt=%s says how many engines there are, and so does -n: one will do",
                options->adapt);
    if (!px_command_is_ours(options->engine_command) ||
        !px_command_is_ours(options->controller_command))
        misused(usage, "--adapt needs this package's own controller and engines");
    options->n = limits.least;
    options->job.array = true;
    return limits;
}

/* Hosts, and with them how many engines; options.n is -1 where it was not given. */
static struct px_host *settle_hosts(const struct px_usage *usage, struct start_options *options)
{
    struct px_host *hosts = NULL;
    struct px_error err;
    int result = options->hostfile ? px_hosts_read(&hosts, options->hostfile, &err) : 0;
    for (size_t i = 0; i < options->hosts.count && result == 0; i++)
        result = px_hosts_add(&hosts, options->hosts.items[i], &err);
    if (result < 0)
        misused(usage, "--host%s: %s", options->hosts.count ? "" : "file", err.text);
    const bool asked = options->hosts.count || options->hostfile;
    if (asked && !hosts)
        misused(usage, "--host%s names no host", options->hosts.count ? "" : "file");
    if (hosts && (options->n = px_hosts_share(hosts, options->n, &err)) < 0)
        misused(usage, "%s", err.text);
    if (options->n < 0)
        options->n = px_cpu_count();
    return hosts;
}

static bool is_false(const char *text)
{
    return text && (strcasecmp(text, "false") == 0 || strcmp(text, "0") == 0);
}

/* A list for px_plan: what the options say, then `more`, then NULL. Owns its first items. */
struct words {
    char *own[4];
    size_t own_count;
    const char **items;
};

static void words_own(struct words *words, const char *option, const char *value)
{
    if (value)
        words->own[words->own_count++] = px_format("--%s=%s", option, value);
}

static void words_finish(struct words *words, char *const *more, size_t count)
{
    words->items = px_alloc((words->own_count + count + 1) * sizeof *words->items);
    size_t at = 0;
    for (size_t i = 0; i < words->own_count; i++)
        words->items[at++] = words->own[i];
    for (size_t i = 0; i < count; i++)
        words->items[at++] = more[i];
}

static void words_fini(struct words *words)
{
    for (size_t i = 0; i < words->own_count; i++)
        free(words->own[i]);
    free(words->items);
}

/* Into the background if asked; then the work. `rest`: further words for the controller. */
static int launch(const struct start_options *options, struct px_plan *plan,
                  const struct px_argv *rest)
{
    struct px_error err;
    struct words controller = {0}, engine = {0}, launcher = {0};
    words_own(&controller, "ip", options->ip);
    words_own(&controller, "location", options->location);
    words_finish(&controller, rest->items, rest->count);
    words_own(&engine, "python", options->python);
    words_finish(&engine, (char *const *)options->engine_args.items, options->engine_args.count);
    words_finish(&launcher, (char *const *)options->launch_args.items, options->launch_args.count);
    plan->launch_args = launcher.items;
    plan->controller_args = controller.items;
    plan->drops_files =
        plan->with_controller && !px_command_is_ours(plan->controller_command) &&
        !px_launch_keeps_files(plan->place->profile_dir, options->python, plan->controller_args);
    plan->engine_args = engine.items;
    char *log = px_format("%s/log/pxcluster%s%s-%s%ld.log", plan->place->profile_dir,
                          plan->place->cluster_id[0] ? "-" : "", plan->place->cluster_id,
                          plan->with_controller ? "" : "engines-", (long)getpid());
    int status = 1;
    plan->log = options->daemonize ? log : NULL;
    plan->clean_logs = plan->with_controller && !is_false(options->clean_logs);
    if (options->daemonize && px_background(log, plan->parent_fd, &plan->channel, &err) < 0)
        fprintf(stderr, "pxcluster: %s\n", err.text);
    else
        status = px_supervise(plan);
    words_fini(&controller);
    words_fini(&engine);
    words_fini(&launcher);
    free(log);
    return status;
}

/* The launcher to use, once its options are known to fit; a cluster that is `joined` has one. */
static const struct px_launcher_ops *settle_launcher(const struct px_usage *usage,
                                                     const struct start_options *options,
                                                     const struct px_place *joined)
{
    const struct px_launcher_ops *ops = launcher_option(usage, "engines", options->engines);
    const struct px_launcher_ops *controller =
        launcher_option(usage, "controller", options->controller);
    if (controller && controller != &px_local_launcher)
        misused(usage,
                "--controller=%s: the controller runs on this host, engines need not; "
                "--controller=local overrides a profile's controller_launcher_class",
                options->controller);
    if (joined)
        ops = joined_launcher(usage, joined, ops);
    else if (!ops)
        ops = &px_local_launcher;
    check_launcher(usage, options, ops);
    return ops;
}

static const struct start_options start_defaults = {.common = PX_COMMON_DEFAULTS,
                                                    .n = -1,
                                                    .at_least = -1,
                                                    .ready_fd = -1,
                                                    .parent_fd = -1,
                                                    .timeout = 60};

static void options_fini(struct start_options *options)
{
    free(options->engine_args.items);
    free(options->launch_args.items);
    free(options->hosts.items);
}

/* Parses; what follows "--" is the controller's, and stays behind *own. */
static void parse(const struct px_usage *usage, bool with_controller, int argc, char **argv,
                  struct start_options *options, int *own)
{
    *own = 0;
    while (*own < argc && strcmp(argv[*own], "--") != 0)
        (*own)++;
    const int first = px_options_main(usage, *own, argv, options);
    if (first < *own || (*own < argc && !with_controller))
        misused(usage, "unexpected argument '%s'", first < *own ? argv[first] : "--");
    if (options->parent_fd >= 0 && fcntl(options->parent_fd, F_SETFD, FD_CLOEXEC) < 0)
        misused(usage, "--parent-fd=%d is not open", options->parent_fd);
    px_log_init("pxcluster", (enum px_level)options->common.log_level);
}

/* The options that the profile's configuration sets. `words` and `rest` own the texts. */
static void read_config(const struct px_usage *usage, bool with_controller,
                        const struct start_options *asked, struct px_argv *words,
                        struct px_argv *rest)
{
    struct px_place place;
    struct px_error err;
    px_argv_add(words, usage->program);
    if (px_place_find(&asked->common, false, &place, &err) < 0)
        return; /* said in its turn, or made */
    const struct px_launcher_ops *named = launcher_option(usage, "engines", asked->engines);
    const struct px_config_wish wish = {
        .launcher = with_controller ? named : joined_launcher(usage, &place, named),
        .python = asked->python,
        .with_controller = with_controller,
        .hosts_known = asked->hosts.count || asked->hostfile};
    if (px_launch_config(place.profile_dir, &wish, words, rest, &err) < 0)
        misused(usage, "%s", err.text);
}

/* What the command line says, and where it says nothing, the configuration: that stands first. */
static void settle(const struct px_usage *usage, bool with_controller, int argc, char **argv,
                   struct start_options *options, struct px_argv *words, struct px_argv *rest)
{
    struct start_options asked = start_defaults;
    struct px_error err;
    int own;
    parse(usage, with_controller, argc, argv, &asked, &own);
    if (asked.work_dir && chdir(asked.work_dir) < 0)
        misused(usage, "--work-dir: cannot change to %s: %s", asked.work_dir, strerror(errno));
    read_config(usage, with_controller, &asked, words, rest);
    options_fini(&asked);
    *options = start_defaults;
    if (px_options_parse(usage, (int)words->count, words->items, options, &err) < 0)
        misused(usage, "ipcluster_config: %s", err.text);
    if (asked.adapt)
        options->n = -1;
    parse(usage, with_controller, argc, argv, options, &own);
    for (int i = own + 1; i < argc; i++)
        px_argv_add(rest, argv[i]);
}

/* The template's text, which `text` owns. */
static void read_template(const struct px_usage *usage, struct start_options *options,
                          struct px_buf *text)
{
    struct px_error err;
    if (!options->template)
        return;
    if (px_file_read(options->template, TEMPLATE_BYTES, text, &err) < 0)
        misused(usage, "--template: %s", err.text);
    px_buf_text(text, "");
    options->job.script = text->data;
}

/* The controller, which inherits the limit, would die of it, or be silent to engines. */
static bool files_suffice(const struct px_usage *usage, int engines)
{
    const unsigned long needed = CONTROLLER_FILES + ENGINE_FILES * (unsigned long)engines;
    const unsigned long allowed = px_allow_files(needed);
    if (allowed < needed)
        fprintf(stderr,
                "%s: the controller of %d engines opens %lu files, and the system allows %lu: "
                "raise that (ulimit -Hn), or start fewer\n",
                usage->program, engines, needed, allowed);
    return allowed >= needed;
}

/* Plans, and launches. */
static int run(const struct px_usage *usage, bool with_controller, struct start_options *options,
               const struct px_argv *rest)
{
    struct px_place place;
    struct px_error err;
    const struct px_launcher_ops *launcher =
        with_controller ? settle_launcher(usage, options, NULL) : NULL;
    const struct px_adapt_limits adapt = settle_adapt(usage, options);
    struct px_host *hosts = settle_hosts(usage, options);
    if (with_controller && !files_suffice(usage, options->n)) {
        px_hosts_fini(hosts);
        return 1;
    }
    if (px_place_find(&options->common, with_controller, &place, &err) < 0) {
        fprintf(stderr, "%s: %s\n", usage->program, err.text);
        px_hosts_fini(hosts);
        return with_controller ? 1 : PX_NO_CLUSTER;
    }
    if (!launcher)
        launcher = settle_launcher(usage, options, &place);
    const int most = launcher->batch ? 0 : options->n;
    struct px_plan plan = {.place = &place,
                           .launcher = launcher,
                           .with_controller = with_controller,
                           .n = options->n,
                           .adapt = adapt,
                           .timeout_ms = (int64_t)options->timeout * 1000,
                           .at_least = options->at_least < 0            ? most
                                       : options->at_least > options->n ? options->n
                                                                        : options->at_least,
                           .launch_command = options->launch_command,
                           .hosts = hosts,
                           .job = options->job,
                           .controller_command = options->controller_command,
                           .engine_command = options->engine_command,
                           .ip = options->ip,
                           .location = options->location,
                           .log_level = options->common.log_level,
                           .channel = -1,
                           .ready_fd = options->ready_fd,
                           .stop_on_eof = options->stop_on_eof && !options->daemonize,
                           .parent_fd = options->parent_fd};
    const int status = launch(options, &plan, rest);
    px_hosts_fini(hosts);
    return status;
}

static int command(const struct px_usage *usage, bool with_controller, int argc, char **argv)
{
    struct start_options options;
    struct px_argv words = {0}, rest = {0};
    struct px_buf script = {0};
    settle(usage, with_controller, argc, argv, &options, &words, &rest);
    read_template(usage, &options, &script);
    options.job.array = options.job_array;
    const int status = run(usage, with_controller, &options, &rest);
    options_fini(&options);
    px_argv_fini(&words);
    px_argv_fini(&rest);
    px_buf_fini(&script);
    return status;
}

int px_command_start(int argc, char **argv)
{
    return command(&start_usage, true, argc, argv);
}

int px_command_engines(int argc, char **argv)
{
    return command(&engines_usage, false, argc, argv);
}
