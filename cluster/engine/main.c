/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pxengine: one or many engines of a cluster. Stands in for ipengine: the options of the same
 * names and the environment (IPP_CLUSTER_ID, IPP_PROFILE_DIR, IPP_CONNECTION_INFO, IPP_SESSION_KEY,
 * IPP_CURVE_SERVERKEY) mean the same.
 */
#define _GNU_SOURCE
#include "engine.h"

#include "program.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOOK_EVERY_MS 50 /* for the connection file */
#define MOST_SCRIPT (16u << 20)

struct options {
    const char *profile, *profile_dir, *ipython_dir, *cluster_id;
    const char *restart, *file, *url, *location, *work_dir, *ident, *code, *script, *language;
    const char *python, *colors, *ssh, *sshkey, *log_url, *config_file, *key_file, *tags;
    const char *preload, *adapt;
    int count, id, max_misses, log_level, log_to_file, ready_fd, mpi, ignored;
    int stop_on_eof;
    char *info; /* $IPP_CONNECTION_INFO, or NULL; owned */
    double wait, timeout;
    struct px_output_config output;
};

#define AT(member) offsetof(struct options, member)

static const struct px_option option_rows[] = {
    {NULL, 0, PX_OPT_HEADING, 0, 0, NULL, "Which cluster", 0, 0},
    {"profile", 0, PX_OPT_STRING, AT(profile), 0, "NAME", "profile name (default: default)", 0, 0},
    {"profile-dir", 0, PX_OPT_STRING, AT(profile_dir), 0, "DIR",
     "profile directory, instead of a name", 0, 0},
    {"ipython-dir", 0, PX_OPT_STRING, AT(ipython_dir), 0, "DIR",
     "where profiles live (default: $IPYTHONDIR or ~/.ipython)", 0, 0},
    {"cluster-id", 0, PX_OPT_STRING, AT(cluster_id), 0, "ID",
     "tells several clusters of one profile apart (default: none)", 0, 0},
    {"file", 0, PX_OPT_STRING, AT(file), 0, "FILE",
     "connection file (default: ipcontroller-engine.json of the profile)", 0, 0},
    {"url", 0, PX_OPT_STRING, AT(url), 0, "URL",
     "reach the controller at transport://host:port, whatever the file says", 0, 0},
    {"location", 0, PX_OPT_STRING, AT(location), 0, "HOST",
     "the controller's host, where the file's interface is 0.0.0.0 or *", 0, 0},
    {"ssh", 0, PX_OPT_STRING, AT(ssh), 0, "SERVER",
     "reach it through ssh to user@host:port (default: what the file says)", 0, 0},
    {"sshkey", 0, PX_OPT_STRING, AT(sshkey), 0, "FILE", "private key for it", 0, 0},
    {"keyfile", 0, PX_OPT_STRING, AT(key_file), 0, "FILE",
     "the key to sign with (default: the connection file's)", 0, 0},
    {"config", 0, PX_OPT_STRING, AT(config_file), 0, "FILE",
     "configuration, besides the profile's ipengine_config.py: .py or .json", 0, 0},
    {"wait", 0, PX_OPT_DOUBLE, AT(wait), 0, "SECONDS",
     "for the connection file to appear (default: 10)", 0, 0},
    {"timeout", 0, PX_OPT_DOUBLE, AT(timeout), 0, "SECONDS",
     "for the hub to answer the registration (default: 5)", 0, 0},
    {NULL, 0, PX_OPT_HEADING, 0, 0, NULL, "Engines", 0, 0},
    {"n", 'n', PX_OPT_INT, AT(count), 0, "N",
     "how many (default: one a processor, or 1 under a launcher)", 1, 4096},
    {"language", 0, PX_OPT_STRING, AT(language), 0, "NAME", "python (default) or echo", 0, 0},
    {"python", 0, PX_OPT_STRING, AT(python), 0, "PATH",
     "interpreter to be (default: its own or the active environment's)", 0, 0},
    {"preload", 0, PX_OPT_STRING, AT(preload), 0, "MODULE,...",
     "import these once, before engines are forked, which share them", 0, 0},
    {"code", 'c', PX_OPT_STRING, AT(code), 0, "CODE", "run this first", 0, 0},
    {"script", 's', PX_OPT_STRING, AT(script), 0, "FILE", "run this file before it", 0, 0},
    {"tags", 0, PX_OPT_STRING, AT(tags), 0, "NAME,...",
     "names for these engines: client[\"gpu\"], %px --targets gpu", 0, 0},
    {"mpi", 0, PX_OPT_SET, AT(mpi), 1, NULL,
     "under mpiexec: ask for the rank as id, set mpi_rank and mpi_size", 0, 0},
    {"restart", 0, PX_OPT_STRING, AT(restart), 0, "WHEN",
     "replace engines that die: never (default) or on-failure", 0, 0},
    {"work-dir", 0, PX_OPT_STRING, AT(work_dir), 0, "DIR", "change to this directory", 0, 0},
    {"ident", 0, PX_OPT_STRING, AT(ident), 0, "UUID", "the one engine's uuid (default: random)", 0,
     0},
    {"id", 0, PX_OPT_INT, AT(id), 0, "N", "ask the hub for this id", 0, 1000000000},
    {"max-heartbeat-misses", 0, PX_OPT_INT, AT(max_misses), 0, "N",
     "then the hub is gone; 0: wait for ever (default: 50)", 0, 1000000},
    {"colors", 0, PX_OPT_STRING, AT(colors), 0, "SCHEME", "of tracebacks: nocolor, linux, ...", 0,
     0},
    {"InteractiveShell.colors", 0, PX_OPT_STRING, AT(colors), 0, "SCHEME", NULL, 0, 0},
    PX_OUTPUT_ROWS(struct options, output),
    {NULL, 0, PX_OPT_HEADING, 0, 0, NULL, "Reports", 0, 0},
    {"log-level", 0, PX_OPT_LEVEL, AT(log_level), 0, "LEVEL",
     "debug, info (default), warn, error, or 10 to 50", 0, 0},
    {"log-to-file", 0, PX_OPT_SET, AT(log_to_file), 1, NULL,
     "log to the profile's log/ipengine-<id>-<pid>.log", 0, 0},
    {"debug", 0, PX_OPT_SET, AT(log_level), PX_DEBUG, NULL, "the same as --log-level=debug", 0, 0},
    {"quiet", 0, PX_OPT_SET, AT(log_level), PX_ERROR, NULL, "the same as --log-level=error", 0, 0},
    {"ready-fd", 0, PX_OPT_INT, AT(ready_fd), 0, "FD",
     "write 'started PID', 'registered ID PID' and 'exited PID WHY' there", 0, 1000000},
    {"stop-on-eof", 0, PX_OPT_SET, AT(stop_on_eof), 1, NULL, "end when standard input ends", 0, 0},
    {"adapt", 0, PX_OPT_STRING, AT(adapt), 0, "OWNER:SET", NULL, 0, 0}, /* launch/adapt.c's */
    /* ipengine's other names for the same; and what goes without saying here. */
    {"c", 0, PX_OPT_STRING, AT(code), 0, "CODE", NULL, 0, 0},
    {"s", 0, PX_OPT_STRING, AT(script), 0, "FILE", NULL, 0, 0},
    {"url-file", 0, PX_OPT_STRING, AT(file), 0, "FILE", NULL, 0, 0},
    {"registration-url", 0, PX_OPT_STRING, AT(url), 0, "URL", NULL, 0, 0},
    {"wait-for-url-file", 0, PX_OPT_DOUBLE, AT(wait), 0, "SECONDS", NULL, 0, 0},
    {"startup-command", 0, PX_OPT_STRING, AT(code), 0, "CODE", NULL, 0, 0},
    {"startup-script", 0, PX_OPT_STRING, AT(script), 0, "FILE", NULL, 0, 0},
    {"use-mpi", 0, PX_OPT_SET, AT(mpi), 1, NULL, NULL, 0, 0},
    {"enable-nanny", 0, PX_OPT_SET, AT(ignored), 1, NULL, NULL, 0, 0},
    {"ProfileDir.location", 0, PX_OPT_STRING, AT(profile_dir), 0, "DIR", NULL, 0, 0},
    {"Session.keyfile", 0, PX_OPT_STRING, AT(key_file), 0, "FILE", NULL, 0, 0},
    {"clean-logs", 0, PX_OPT_SET, AT(ignored), 1, NULL, NULL, 0, 0},
    {"secure", 0, PX_OPT_SET, AT(ignored), 1, NULL, NULL, 0, 0}, /* the connection file says it */
    {"no-secure", 0, PX_OPT_SET, AT(ignored), 1, NULL, NULL, 0, 0},
    {"sshserver", 0, PX_OPT_STRING, AT(ssh), 0, "SERVER", NULL, 0, 0},
    {"log-url", 0, PX_OPT_STRING, AT(log_url), 0, "URL", NULL, 0, 0},
    {0},
};

static const struct px_usage usage = {
    .program = "pxengine",
    .synopsis = "[options]",
    .about = "Engines of a cluster: interpreters that take work over the network.",
    .examples = "  pxengine -n 8\n"
                "  pxengine --profile=lab --cluster-id=two -c 'import numpy'\n",
    .options = option_rows,
    /* EngineFactory and IPEngineApp are what IPEngine was before ipyparallel 7. */
    .classes =
        " IPEngine EngineFactory IPEngineApp BaseParallelApplication BaseIPythonApplication ",
};

static struct px_profile_choice choice_of(const struct options *options)
{
    return (struct px_profile_choice){.ipython_dir = options->ipython_dir,
                                      .profile = options->profile,
                                      .profile_dir = options->profile_dir,
                                      .cluster_id = options->cluster_id};
}

/* ---- configuration files ---- */

/* A px_config_set: as if it had come as an option. The words stay, as argv does. */
static int take_trait(void *ctx, const char *name, struct px_span literal, struct px_error *err)
{
    static struct px_list words;
    char *value = px_config_unquote(literal);
    const bool none = strcmp(value, "None") == 0 || strcmp(value, "null") == 0;
    char *word = px_format("--%s=%s", name, value);
    char *argv[] = {(char *)usage.program, word, NULL};
    const int rc = none ? 0 : px_options_parse(&usage, 2, argv, ctx, err);
    words.items = px_realloc(words.items, (words.count + 1) * sizeof *words.items);
    words.items[words.count++] = word;
    free(value);
    return rc < 0 ? -1 : 0;
}

/* The command line says which files there are, and has the last word over them. */
static int read_options(int argc, char **argv, struct options *out)
{
    struct px_error err;
    const struct options defaults = *out;
    (void)px_options_main(&usage, argc, argv, out);
    px_log_init(usage.program, (enum px_level)out->log_level);
    const char *file = out->config_file, *python = out->python;
    char profile[PX_PATH_SIZE];
    const struct px_profile_choice choice = choice_of(out);
    const bool found = px_profile_dir(&choice, false, profile, &err) == 0;
    *out = defaults;
    if (found && px_config_profile(profile, "ipengine", python, take_trait, out, &err) < 0)
        px_die(2, "%s", err.text);
    if (file && px_config_file(file, python, take_trait, out, &err) < 0)
        px_die(2, "--config: %s", err.text);
    const int rest = px_options_main(&usage, argc, argv, out);
    px_log_init(usage.program, (enum px_level)out->log_level);
    return rest;
}

/* ---- the connection ---- */

/* The profile's directory, or "" when there is none and none is needed to find the cluster. */
static void find_profile(const struct options *options, char out[PX_PATH_SIZE])
{
    const struct px_profile_choice choice = choice_of(options);
    struct px_error err;
    if (px_profile_dir(&choice, false, out, &err) == 0)
        return;
    if (!options->file && !options->info)
        px_die(1, "%s" PX_START_HINT, err.text);
    out[0] = 0;
}

static void find_file(const struct options *options, const char *profile, char out[PX_PATH_SIZE])
{
    const struct px_profile_choice choice = {.cluster_id = options->cluster_id};
    if (!options->file)
        px_profile_connection_file(profile, px_profile_cluster_id(&choice), PX_ROLE_ENGINE, out);
    else if (strlen(options->file) < PX_PATH_SIZE)
        strcpy(out, options->file);
    else
        px_die(2, "the name of the connection file is too long");
}

/* The file may be missing, or half written, until the controller is up. */
static void wait_for_file(const char *path, double wait_s, struct px_cluster_connection *out)
{
    struct px_error err;
    const int64_t deadline = px_now_ms() + (int64_t)(1000 * wait_s);
    while (px_cluster_connection_read(path, PX_ROLE_ENGINE, out, &err) < 0) {
        if (err.code == PX_EIO || px_now_ms() >= deadline)
            px_die(1, "no cluster to join after %g s: %s%s", wait_s, err.text,
                   err.code == PX_ENOENT ? PX_START_HINT : "");
        (void)poll(NULL, 0, LOOK_EVERY_MS);
    }
}

static void fill_from_environment(char **value, const char *variable)
{
    const char *given = getenv(variable);
    if (given && given[0] && (!*value || !(*value)[0])) {
        free(*value);
        *value = px_strdup(given);
    }
}

/* transport://host:port; *host_size is that of what precedes the last colon. */
static bool parse_url(const char *url, int *port, int *host_size)
{
    const char *host = strstr(url, "://"), *colon = strrchr(url, ':');
    if (!host || colon - host < 4)
        return false;
    host += 3;
    const size_t size = (size_t)(colon - host);
    char *end;
    const long number = strtol(colon + 1, &end, 10);
    *host_size = (int)(colon - url);
    *port = number > 0 && number < 65536 ? (int)number : 0;
    return *port && !*end && strcspn(host, "/ ") > size &&
           (host[0] == '[' || strchr(host, ':') == colon);
}

/* The host of --url goes with the ports of the file, but for that of the registration. */
static void apply_address(const struct options *options, struct px_cluster_connection *out)
{
    int size;
    if (options->url && parse_url(options->url, &out->registration, &size)) {
        free(out->interface);
        out->interface = px_format("%.*s", size, options->url);
    }
    if (options->location) {
        free(out->location);
        out->location = px_strdup(options->location);
    }
}

static void read_connection(const struct options *options, const char *path,
                            struct px_cluster_connection *out)
{
    struct px_error err;
    if (options->file || !options->info)
        wait_for_file(path, options->wait, out);
    else if (px_cluster_connection_parse(px_span_of(options->info), "$IPP_CONNECTION_INFO",
                                         PX_ROLE_ENGINE, out, &err) < 0)
        px_die(1, "%s", err.text);
    apply_address(options, out);
    if (options->key_file) {
        free(out->key);
        if (!(out->key = px_key_file_read(options->key_file, &err)))
            px_die(1, "--keyfile: %s", err.text);
    }
    fill_from_environment(&out->key, "IPP_SESSION_KEY");
    fill_from_environment(&out->curve_serverkey, "IPP_CURVE_SERVERKEY");
}

/* As ipengine: a key alone means ssh to the controller's own host. NULL: none is wanted. */
static struct px_tunnel *open_tunnel(const struct options *options,
                                     struct px_cluster_connection *connection)
{
    struct px_error err;
    const char *named = connection->ssh && connection->ssh[0] ? connection->ssh : NULL;
    if (!options->ssh && !options->sshkey && !named)
        return NULL;
    struct px_tunnel *tunnel =
        px_tunnel_open(options->ssh ? options->ssh : named, options->sshkey, connection, &err);
    if (!tunnel)
        px_die(1, "%s", err.text);
    return tunnel;
}

/* ---- what runs first ---- */

static const char mpi_code[] = "from mpi4py import MPI\n"
                               "mpi_rank = MPI.COMM_WORLD.Get_rank()\n"
                               "mpi_size = MPI.COMM_WORLD.Get_size()\n";

/* What the launchers of Open MPI, MPICH, PMIx and Slurm tell their processes. */
static int mpi_rank(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK",
                                        "SLURM_PROCID"};
    for (size_t i = 0; i < PX_COUNT(names); i++) {
        const char *rank = getenv(names[i]);
        if (rank && rank[0])
            return atoi(rank);
    }
    return -1;
}

/* MPI, then the script, then the code; owned, or NULL for nothing. */
static char *startup_code(const struct options *options)
{
    struct px_buf code = {0};
    struct px_error err;
    if (options->mpi)
        px_buf_text(&code, mpi_code);
    if (options->script && px_file_read(options->script, MOST_SCRIPT, &code, &err) < 0)
        px_die(1, "--script: %s", err.text);
    if (options->script)
        px_buf_text(&code, "\n");
    if (options->code)
        px_buf_text(&code, options->code);
    return code.data;
}

static void log_to_file(const char *profile, const char *cluster_id)
{
    char *path = px_format("%s/log/ipengine%s%s-%d.log", profile, cluster_id[0] ? "-" : "",
                           cluster_id, (int)getpid());
    const int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (fd < 0 || dup2(fd, STDERR_FILENO) < 0)
        px_die(1, "--log-to-file: cannot write %s: %s", path, strerror(errno));
    close(fd);
    free(path);
}

/* ---- main ---- */

/* What tells this process of its cluster is not for the programs that engines run: taken out of the
 * environment before the language makes its copy. NULL: nothing there. */
static char *take_variable(const char *name)
{
    const char *value = getenv(name);
    char *own = value && value[0] ? px_strdup(value) : NULL;
    unsetenv(name);
    return own;
}

static int warm(const struct px_interp_ops *ops, void *self, struct px_error *err)
{
    sigset_t all, before;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    const int status = ops->warm ? ops->warm(self, err) : 0;
    sigprocmask(SIG_SETMASK, &before, NULL);
    return status;
}

static void *start_language(const struct options *options, const char *profile,
                            const struct px_interp_ops *ops, char **argv)
{
    struct px_error err;
    char *modules = px_own_modules();
    char *python = px_language_python(ops, options->python);
    signal(SIGINT, SIG_DFL); /* a shell's background job ignores it, and the language would too */
    const struct px_interp_config config = {.python = python,
                                            .profile_dir = profile[0] ? profile : NULL,
                                            .colors = options->colors,
                                            .module_dir = modules,
                                            .preload = options->preload,
                                            .engine = true,
                                            .argc = 1,
                                            .argv = argv};
    void *self = ops->create(&config, &err);
    free(python);
    free(modules);
    if (!self || warm(ops, self, &err) < 0)
        px_die(1, "%s", err.text);
    return self;
}

/* It becomes a routing id, and part of JSON and of topics. */
static bool is_ident(const char *text)
{
    const size_t size =
        strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.");
    return size > 0 && size < 128 && !text[size];
}

static void check(const struct options *options, int rest, int argc, char **argv)
{
    if (rest < argc)
        px_die(2, "'%.60s' is not an option; see --help", argv[rest]);
    if (options->count > 1 && (options->ident || options->id >= 0))
        px_die(2, "--ident and --id name one engine, but -n asks for %d", options->count);
    if (options->ident && !is_ident(options->ident))
        px_die(2, "--ident takes up to 127 letters, digits, '-', '_' and '.'");
    int port, size;
    if (options->url && !parse_url(options->url, &port, &size))
        px_die(2, "--url is transport://host:port, not '%.100s'", options->url);
    if (options->log_url)
        px_die(2, "--log-url: logs go to stderr, or with --log-to-file to the profile");
    if (options->wait < 0 || options->wait > 86400)
        px_die(2, "--wait must be between 0 and 86400 seconds");
    if (options->timeout <= 0 || options->timeout > 86400)
        px_die(2, "--timeout must be more than 0 and at most 86400 seconds");
    if (strcmp(options->restart, "never") != 0 && strcmp(options->restart, "on-failure") != 0)
        px_die(2, "--restart is never or on-failure, not '%.60s'", options->restart);
    if (options->work_dir && chdir(options->work_dir) < 0)
        px_die(1, "cannot change to %s: %s", options->work_dir, strerror(errno));
}

/* Whether somebody else counts: ipyparallel's launchers (7.1 names directory and id, 9.x says both
 * in the environment), mpiexec and srun start a program for each engine, and so does who names it.
 */
static bool is_one_of_many(const struct options *options)
{
    return options->mpi || options->ident || options->id >= 0 || mpi_rank() >= 0 ||
           (options->profile_dir && options->cluster_id) || getenv("IPP_CLUSTER_ID") ||
           getenv("IPP_CONNECTION_INFO") || strcmp(program_invocation_short_name, "ipengine") == 0;
}

/* Numeric libraries (OpenMP, OpenBLAS, MKL, BLIS) would start a thread a processor in each engine,
 * which take longer together than a thread a processor in all. Who has said how many knows better. */
static void share_processors(int engines)
{
    const int each = px_cpu_count() / engines;
    char threads[16];
    snprintf(threads, sizeof threads, "%d", each > 1 ? each : 1);
    if (engines > 1)
        setenv("OMP_NUM_THREADS", threads, 0);
}

static const struct px_interp_ops *find_language(const struct options *options)
{
    struct px_error err;
    const struct px_interp_ops *ops = px_language_find(options->language, &err);
    if (!ops)
        px_die(2, "%s", err.text);
    if (options->preload && !ops->warm)
        px_die(2, "--preload: %s imports nothing", ops->name);
    return ops;
}

static char *read_tags(const struct options *options)
{
    struct px_error err;
    char *tags = px_tags_json(options->tags ? options->tags : "", &err);
    if (!tags)
        px_die(2, "--tags: %s", err.text);
    return tags;
}

/* Whoever wanted engines has changed their mind before there is any. */
static bool input_has_ended(void)
{
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    char byte;
    return poll(&input, 1, 0) == 1 && read(STDIN_FILENO, &byte, 1) == 0;
}

static const struct options option_defaults = {.id = -1,
                                               .restart = "never",
                                               .wait = 10,
                                               .timeout = 5,
                                               .max_misses = 50,
                                               .log_level = PX_INFO,
                                               .output = PX_OUTPUT_DEFAULTS,
                                               .ready_fd = -1};

int main(int argc, char **argv)
{
    struct options options = option_defaults;
    px_program_begin();
    const int rest = read_options(argc, argv, &options);
    check(&options, rest, argc, argv);
    if (options.count == 0)
        options.count = is_one_of_many(&options) ? 1 : px_cpu_count();
    share_processors(options.count);
    const struct px_interp_ops *ops = find_language(&options);
    if (options.stop_on_eof && input_has_ended())
        return 0;
    char *tags = read_tags(&options);
    options.info = take_variable("IPP_CONNECTION_INFO");
    char profile[PX_PATH_SIZE], path[PX_PATH_SIZE];
    find_profile(&options, profile);
    find_file(&options, profile, path);
    /* Before the file is waited for: meanwhile the controller may come up. */
    if (options.log_to_file)
        log_to_file(profile, px_profile_cluster_id(
                                 &(struct px_profile_choice){.cluster_id = options.cluster_id}));
    if (options.mpi && options.id < 0 && options.count == 1)
        options.id = mpi_rank();
    char *startup = startup_code(&options);
    void *self = start_language(&options, profile, ops, argv);
    struct px_cluster_connection connection;
    read_connection(&options, path, &connection);
    struct px_tunnel *tunnel = open_tunnel(&options, &connection);
    const struct px_forkserver_config config = {
        .engine = {.connection = &connection,
                   .ops = ops,
                   .ident = options.ident,
                   .wanted_id = options.id,
                   .tags = tags,
                   .timeout_ms = (int)(1000 * options.timeout),
                   .max_misses = options.max_misses,
                   .startup = startup,
                   .adapt = options.adapt,
                   .log_level = options.log_level,
                   .output = options.output},
        .tunnel = tunnel,
        .count = options.count,
        .restart = strcmp(options.restart, "on-failure") == 0,
        .stop_on_eof = options.stop_on_eof,
        .ready_fd = options.ready_fd,
    };
    const int status = px_forkserver_run(&config, self);
    px_tunnel_close(tunnel);
    px_cluster_connection_fini(&connection);
    free(startup);
    free(tags);
    free(options.info);
    ops->destroy(self);
    return status;
}
