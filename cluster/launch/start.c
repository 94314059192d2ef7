/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The commands start and engines: options to a plan, into the background if asked, supervise.
 */
#define _GNU_SOURCE
#include "launch.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

struct start_options {
    struct px_common_options common;
    int n, daemonize, ready_fd, stop_on_eof, parent_fd, timeout;
    const char *controller, *engines, *controller_command, *engine_command;
    const char *ip, *location, *delay, *clean_logs, *python;
    struct px_list engine_args;
};

#define AT(field) offsetof(struct start_options, field)

/* clang-format off */
#define ENGINE_ROWS \
    {"n", 'n', PX_OPT_INT, AT(n), 0, "N", "engines (default: one a processor)", 0, 100000}, \
    {"daemonize", 0, PX_OPT_SET, AT(daemonize), 1, NULL, \
     "return when all engines are there; go on in the background", 0, 0}, \
    {"timeout", 0, PX_OPT_INT, AT(timeout), 0, "S", \
     "seconds for all engines to register (default: 60)", 1, 86400}, \
    {"engines", 0, PX_OPT_STRING, AT(engines), 0, "HOW", \
     "launcher for engines: local (default: local)", 0, 0}, \
    {"engine-cmd", 0, PX_OPT_STRING, AT(engine_command), 0, "CMD", \
     "program for engines (default: pxengine beside this program)", 0, 0}, \
    {"engine-arg", 0, PX_OPT_LIST, AT(engine_args), 0, "ARG", \
     "one more argument for it; may be given again", 0, 0}, \
    {"python", 0, PX_OPT_STRING, AT(python), 0, "PATH", \
     "the engines' interpreter (default: the active one)", 0, 0}
#define OTHER_ROWS \
    {.type = PX_OPT_HEADING, .help = "For programs that start clusters"}, \
    {"ready-fd", 0, PX_OPT_INT, AT(ready_fd), 0, "FD", \
     "write \"ready N\" there when all engines are there", 0, 65535}, \
    {"stop-on-eof", 0, PX_OPT_SET, AT(stop_on_eof), 1, NULL, \
     "stop when standard input ends", 0, 0}, \
    {"parent-fd", 0, PX_OPT_INT, AT(parent_fd), 0, "FD", \
     "stop when it becomes readable or its other end closes: a pidfd or pipe", 3, 65535}, \
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
    OTHER_ROWS,
    {0},
};

static const struct px_option engines_rows[] = {ENGINE_ROWS, OTHER_ROWS, {0}};
/* clang-format on */

static const struct px_usage start_usage = {
    .program = "pxcluster start",
    .synopsis = "[options] [-- controller options]",
    .about = "Starts a controller and engines, and stops them when it is interrupted.",
    .examples = "  pxcluster start -n 4 --daemonize\n"
                "  pxcluster start --profile=lab -n 16 -- --sqlitedb\n",
    .options = start_rows,
};

static const struct px_usage engines_usage = {
    .program = "pxcluster engines",
    .synopsis = "[options]",
    .about = "Starts more engines for a cluster that is running.",
    .examples = "  pxcluster engines -n 2 --daemonize\n"
                "  pxcluster engines --profile=lab -n 8\n",
    .options = engines_rows,
};

static const struct px_launcher_ops *launcher_option(const struct px_usage *usage,
                                                     const char *option, const char *name)
{
    const struct px_launcher_ops *ops = name ? px_launcher_find(name) : &px_local_launcher;
    if (ops)
        return ops;
    fprintf(stderr, "%s: --%s: there is no launcher '%s'; there is: %s\n", usage->program, option,
            name, px_local_launcher.name);
    exit(2);
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

/* Into the background if asked; then the work. `words` are further ones for the controller. */
static int launch(const struct start_options *options, struct px_plan *plan, char **words,
                  char **words_end)
{
    struct px_error err;
    struct words controller = {0}, engine = {0};
    words_own(&controller, "ip", options->ip);
    words_own(&controller, "location", options->location);
    words_finish(&controller, words, (size_t)(words_end - words));
    words_own(&engine, "python", options->python);
    words_finish(&engine, (char *const *)options->engine_args.items, options->engine_args.count);
    plan->controller_args = controller.items;
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
    free(log);
    return status;
}

static int command(const struct px_usage *usage, bool with_controller, int argc, char **argv)
{
    struct start_options options = {.common = PX_COMMON_DEFAULTS,
                                    .n = (int)sysconf(_SC_NPROCESSORS_ONLN),
                                    .ready_fd = -1,
                                    .parent_fd = -1,
                                    .timeout = 60};
    /* What follows "--" is the controller's; anything else that is no option is a mistake. */
    int own = 0;
    while (own < argc && strcmp(argv[own], "--") != 0)
        own++;
    const int first = px_options_main(usage, own, argv, &options);
    if (first < own || (own < argc && !with_controller)) {
        fprintf(stderr, "%s: unexpected argument '%s'\n", usage->program,
                first < own ? argv[first] : "--");
        return 2;
    }
    if (options.parent_fd >= 0 && fcntl(options.parent_fd, F_SETFD, FD_CLOEXEC) < 0) {
        fprintf(stderr, "%s: --parent-fd=%d is not open\n", usage->program, options.parent_fd);
        return 2;
    }
    px_log_init("pxcluster", (enum px_level)options.common.log_level);
    launcher_option(usage, "controller", options.controller);
    const struct px_launcher_ops *launcher = launcher_option(usage, "engines", options.engines);

    struct px_place place;
    struct px_error err;
    if (px_place_find(&options.common, with_controller, &place, &err) < 0) {
        fprintf(stderr, "%s: %s\n", usage->program, err.text);
        return with_controller ? 1 : PX_NO_CLUSTER;
    }
    char **controller_words = own < argc ? argv + own + 1 : argv + argc;
    struct px_plan plan = {.place = &place,
                           .launcher = launcher,
                           .with_controller = with_controller,
                           .n = options.n,
                           .timeout_ms = (int64_t)options.timeout * 1000,
                           .controller_command = options.controller_command,
                           .engine_command = options.engine_command,
                           .ip = options.ip,
                           .location = options.location,
                           .log_level = options.common.log_level,
                           .channel = -1,
                           .ready_fd = options.ready_fd,
                           .stop_on_eof = options.stop_on_eof && !options.daemonize,
                           .parent_fd = options.parent_fd};
    const int status = launch(&options, &plan, controller_words, argv + argc);
    free(options.engine_args.items);
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
