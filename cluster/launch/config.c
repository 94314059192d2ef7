/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * config: a profile's ipcluster_config.py and .json, as options of ours.
 *
 * Python runs the former, for such files compute what they say. What ipyparallel's classes have is
 * found in a table that says which of our options does it; a trait of the launcher in use that has
 * none is named in a warning, for the cluster may not be what its user wants without it. Of
 * ipcontroller_config one thing is looked for.
 */
#define _GNU_SOURCE
#include "launch.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define MOST_FILE (1u << 20)

/* What becomes of a value. */
enum form {
    SCALAR,  /* --option=VALUE */
    EACH,    /* a list: --option=ITEM for each */
    COMMAND, /* a list of words, or their text: --option='WORD' 'WORD' */
    WORDS,   /* a text of words: --option=WORD for each */
    HOSTS,   /* {host: N, host: {"n": N}, host: [N, ...]}: --option=HOST:N for each */
    REST,    /* a list: what follows "--" */
    NOTHING, /* not needed here */
};

#define CLUSTER                                                                                    \
    "Application BaseParallelApplication IPCluster IPClusterEngines IPClusterStart Cluster"
#define BASE "BaseLauncher LocalProcessLauncher"
#define CONTROLLER "ControllerLauncher ControllerMixin LocalControllerLauncher"
#define ENGINES "EngineLauncher EngineMixin"
#define LOCAL ENGINES " LocalEngineLauncher LocalEngineSetLauncher"
#define BATCH ENGINES " BatchSystemLauncher BatchEngineSetLauncher"

/* Classes stand with those behind whose values count more: those that inherit from them, and
 * Cluster, to which ipyparallel 7 moved what the applications had. */

/* What launchers of engines are there. */
static const struct family {
    const struct px_launcher_ops *launcher;
    const char *classes;
} families[] = {
    {&px_local_launcher, LOCAL},
    {&px_mpi_launcher,
     ENGINES " MPILauncher MPIExecLauncher MPIEngineSetLauncher MPIExecEngineSetLauncher"},
    {&px_ssh_launcher, LOCAL " SSHLauncher SSHEngineLauncher SSHEngineSetLauncher"},
    {&px_slurm_launcher, BATCH " SlurmLauncher SlurmEngineSetLauncher"},
    {&px_pbs_launcher, BATCH " PBSLauncher PBSEngineSetLauncher"},
    {&px_sge_launcher, BATCH " PBSLauncher SGELauncher SGEEngineSetLauncher"},
    {&px_condor_launcher, BATCH " HTCondorLauncher HTCondorEngineSetLauncher"},
};

/* Where a row counts. */
enum where {
    EVER,
    START, /* where a controller is started, too */
    MPI,
    SSH,
    SLURM,
    QUEUE, /* any */
};

static const struct row {
    enum where where;
    const char *classes; /* NULL: those of the launcher in use */
    const char *trait;   /* with NOTHING: several */
    enum form form;
    const char *option;
} rows[] = {
    {EVER, CLUSTER, "n", SCALAR, "n"},
    {EVER, CLUSTER, "engine_timeout", SCALAR, "timeout"},
    {EVER, CLUSTER, "daemonize", SCALAR, "daemonize"},
    {EVER, CLUSTER, "log_level", SCALAR, "log-level"},
    {START, CLUSTER, "engine_launcher_class", SCALAR, "engines"},
    {START, CLUSTER, "controller_launcher_class", SCALAR, "controller"},
    {START, CLUSTER, "controller_ip", SCALAR, "ip"},
    {START, CLUSTER, "controller_location", SCALAR, "location"},
    {START, CLUSTER, "clean_logs", SCALAR, "clean-logs"},
    {START, CLUSTER, "controller_args", REST, NULL},
    {START, CONTROLLER, "controller_args", REST, NULL},
    {START, CONTROLLER, "controller_cmd", COMMAND, "controller-cmd"},
    {EVER, NULL, "engine_args", EACH, "engine-arg"},
    {EVER, NULL, "engine_cmd", COMMAND, "engine-cmd"},
    {MPI, NULL, "mpi_cmd", COMMAND, "launch-cmd"},
    {MPI, NULL, "mpi_args", EACH, "launch-arg"},
    {SSH, NULL, "ssh_cmd", COMMAND, "launch-cmd"},
    {SSH, NULL, "ssh_args", EACH, "launch-arg"},
    {SSH, NULL, "engines", HOSTS, "host"},
    {SSH, NULL, "remote_python", SCALAR, "python"},
    {QUEUE, NULL, "queue", SCALAR, "queue"},
    {QUEUE, NULL, "submit_command", COMMAND, "launch-cmd"},
    {QUEUE, NULL, "batch_template", SCALAR, "template-text"},
    {QUEUE, NULL, "batch_template_file", SCALAR, "template"},
    {SLURM, NULL, "account", SCALAR, "account"},
    {SLURM, NULL, "timelimit", SCALAR, "time"},
    {SLURM, NULL, "qos", SCALAR, "launch-arg=--qos"},
    {SLURM, NULL, "options", WORDS, "launch-arg"},
    /* Which cluster was settled before, or the reference's own affairs. */
    {EVER, CLUSTER,
     "profile profile_dir cluster_id delay load_profile shutdown_atexit "
     "engine_launcher_class controller_launcher_class controller_ip "
     "controller_location controller_args clean_logs log_to_file",
     NOTHING, NULL},
    {EVER, BASE " " CONTROLLER,
     "stop_timeout output_limit stop_seconds_until_kill poll_seconds controller_args "
     "controller_cmd",
     NOTHING, NULL},
    {EVER, NULL, "stop_timeout output_limit stop_seconds_until_kill poll_seconds delay", NOTHING,
     NULL},
};

/* ---- values as options ------------------------------------------------------------- */

struct sink {
    const char *trait; /* for complaints */
    struct px_argv *options, *rest;
};

static bool has_word(const char *words, const char *word)
{
    const size_t size = strlen(word);
    for (const char *at = words; (at = strstr(at, word)); at += size)
        if ((at == words || at[-1] == ' ') && (at[size] == ' ' || !at[size]))
            return true;
    return false;
}

/* A scalar as options have it; NULL where it is none. Caller frees. */
static char *text_of(const json_t *value)
{
    if (json_is_string(value))
        return px_strdup(json_string_value(value));
    if (json_is_boolean(value))
        return px_strdup(json_is_true(value) ? "true" : "false");
    if (json_is_number(value))
        return px_format("%.17g", json_number_value(value));
    return NULL;
}

static int refuse(const struct sink *sink, const char *wanted, struct px_error *err)
{
    return px_fail(err, PX_EINVAL, "c.%s is not %s", sink->trait, wanted);
}

static int add_scalar(const struct sink *sink, const char *option, const json_t *value,
                      struct px_error *err)
{
    char *text = text_of(value);
    if (!text)
        return refuse(sink, "a text or a number", err);
    if (text[0])
        px_argv_add_new(sink->options, px_format("--%s=%s", option, text));
    free(text);
    return 0;
}

/* Each item of a list as an option; without one, as a word for the controller. */
static int add_each(const struct sink *sink, const char *option, const json_t *value,
                    struct px_error *err)
{
    size_t i;
    json_t *item;
    if (!json_is_array(value))
        return refuse(sink, "a list", err);
    json_array_foreach(value, i, item) {
        char *text = text_of(item);
        if (!text)
            return refuse(sink, "a list of texts", err);
        if (option)
            px_argv_add_new(sink->options, px_format("--%s=%s", option, text));
        else
            px_argv_add(sink->rest, text);
        free(text);
    }
    return 0;
}

/* Words quoted as px_argv_split() takes them. */
static int add_command(const struct sink *sink, const char *option, const json_t *value,
                       struct px_error *err)
{
    struct px_buf text = {0};
    size_t i;
    json_t *item;
    if (json_is_string(value))
        return add_scalar(sink, option, value, err);
    json_array_foreach(value, i, item) {
        if (!json_is_string(item)) {
            px_buf_fini(&text);
            return refuse(sink, "a list of texts", err);
        }
        px_argv_quote(&text, json_string_value(item));
    }
    if (text.size)
        px_argv_add_new(sink->options, px_format("--%s=%s", option, text.data));
    px_buf_fini(&text);
    return json_is_array(value) ? 0 : refuse(sink, "a list", err);
}

static int add_words(const struct sink *sink, const char *option, const json_t *value,
                     struct px_error *err)
{
    struct px_argv words = {0};
    const char *text = json_string_value(value);
    int result = text ? 0 : refuse(sink, "a text", err);
    if (result == 0 && text[strspn(text, " \t\n")])
        result = px_argv_split(&words, text, err);
    for (size_t i = 0; i < words.count && result == 0; i++)
        px_argv_add_new(sink->options, px_format("--%s=%s", option, words.items[i]));
    px_argv_fini(&words);
    return result;
}

static int add_hosts(const struct sink *sink, const char *option, json_t *value,
                     struct px_error *err)
{
    const char *host;
    json_t *said;
    if (!json_is_object(value))
        return refuse(sink, "a dict of hosts", err);
    json_object_foreach(value, host, said) {
        const json_t *count = json_is_object(said)  ? json_object_get(said, "n")
                              : json_is_array(said) ? json_array_get(said, 0)
                                                    : said;
        if (!json_is_integer(count))
            return refuse(sink, "a dict of hosts and their numbers of engines", err);
        if (json_object_size(said) > 1 || json_array_size(said) > 1)
            fprintf(stderr,
                    "pxcluster: ipcluster_config: c.%s: of host %.100s only the number of "
                    "engines is taken\n",
                    sink->trait, host);
        px_argv_add_new(sink->options, px_format("--%s=%s:%lld", option, host,
                                                 (long long)json_integer_value(count)));
    }
    return 0;
}

static int add(const struct sink *sink, const struct row *row, json_t *value, struct px_error *err)
{
    switch (row->form) {
    case SCALAR:
        return add_scalar(sink, row->option, value, err);
    case EACH:
    case REST:
        return add_each(sink, row->option, value, err);
    case COMMAND:
        return add_command(sink, row->option, value, err);
    case WORDS:
        return add_words(sink, row->option, value, err);
    case HOSTS:
        return add_hosts(sink, row->option, value, err);
    case NOTHING:
        break;
    }
    return 0;
}

/* ---- what applies ------------------------------------------------------------------ */

static const char *classes_of(const struct row *row, const struct px_launcher_ops *launcher)
{
    const char *classes = row->classes;
    for (size_t i = 0; i < PX_COUNT(families) && !classes; i++)
        classes = families[i].launcher == launcher ? families[i].classes : NULL;
    return classes ? classes : "";
}

static bool applies(const struct row *row, const struct px_launcher_ops *launcher,
                    bool with_controller)
{
    const bool counts[] = {
        [EVER] = true,
        [START] = with_controller,
        [MPI] = launcher == &px_mpi_launcher,
        [SSH] = launcher == &px_ssh_launcher,
        [SLURM] = launcher == &px_slurm_launcher,
        [QUEUE] = launcher->batch != NULL,
    };
    return counts[row->where];
}

/* The value that counts, and its full name: that of the last of the classes that has one. */
static json_t *find(const json_t *config, const char *classes, const char *trait, char *name,
                    size_t size)
{
    char words[400], *rest = NULL;
    json_t *found = NULL;
    snprintf(words, sizeof words, "%s", classes);
    for (char *class = strtok_r(words, " ", &rest); class; class = strtok_r(NULL, " ", &rest)) {
        json_t *value = json_object_get(json_object_get(config, class), trait);
        if (!value || json_is_null(value))
            continue;
        found = value;
        snprintf(name, size, "%s.%s", class, trait);
    }
    return found;
}

/* Says what has no place here, of classes that have one. */
static void name_the_rest(const json_t *config, const struct px_launcher_ops *launcher)
{
    const char *class, *trait;
    json_t *traits, *value;
    json_object_foreach((json_t *)config, class, traits) {
        json_object_foreach(traits, trait, value) {
            bool meant = false, known = false;
            for (size_t i = 0; i < PX_COUNT(rows); i++) {
                if (!applies(&rows[i], launcher, true) ||
                    !has_word(classes_of(&rows[i], launcher), class))
                    continue;
                meant = true;
                known |= has_word(rows[i].trait, trait);
            }
            if (meant && !known)
                fprintf(stderr,
                        "pxcluster: ipcluster_config: c.%.60s.%.60s is not known here and "
                        "has no effect\n",
                        class, trait);
        }
    }
}

/* ---- reading ------------------------------------------------------------------------- */

/* Whether a file does more than a new profile's. */
static bool has_code(const char *path)
{
    struct px_buf text = {0};
    struct px_error err;
    const bool code = px_file_read(path, MOST_FILE, &text, &err) == 0
                          ? px_config_has_code(px_buf_span(&text), false)
                          : err.code != PX_ENOENT; /* Python says what is wrong */
    px_buf_fini(&text);
    return code;
}

/* An object, or NULL with an error; PX_ENOENT where there is nothing to read. */
static json_t *parse(const char *path, const struct px_buf *text, struct px_error *err)
{
    json_error_t why;
    json_t *config = json_loadb(text->data ? text->data : "", text->size, 0, &why);
    if (!json_is_object(config)) {
        px_fail(err, PX_EINVAL, "%s: %s", path, config ? "not an object" : why.text);
        json_decref(config);
        return NULL;
    }
    return config;
}

/* Both files' settings in one object; where both say something, the latter counts. */
static json_t *read_config(const char *profile_dir, const char *program, const char *python,
                           struct px_error *err)
{
    json_t *config = json_object();
    for (int i = 0; i < 2 && config; i++) {
        const bool py = i == 0;
        char *path = px_format("%s/%s_config.%s", profile_dir, program, py ? "py" : "json");
        struct px_buf text = {0};
        const int read = !py              ? px_file_read(path, MOST_FILE, &text, err)
                         : has_code(path) ? px_config_run(path, python, &text, err)
                                          : px_fail(err, PX_ENOENT, "no settings");
        json_t *part = read == 0 ? parse(path, &text, err) : NULL;
        if (part)
            json_object_update_recursive(config, part);
        else if (err->code != PX_ENOENT)
            json_decref(config), config = NULL;
        json_decref(part);
        px_buf_fini(&text);
        free(path);
    }
    return config;
}

/* The launcher that it names; one that we have not is refused with the option of that name. */
static const struct px_launcher_ops *choice_of(const json_t *config)
{
    char name[200];
    const char *word =
        json_string_value(find(config, CLUSTER, "engine_launcher_class", name, sizeof name));
    const struct px_launcher_ops *launcher = word ? px_launcher_find(word) : NULL;
    return launcher ? launcher : &px_local_launcher;
}

int px_launch_config(const char *profile_dir, const struct px_config_wish *wish,
                     struct px_argv *options, struct px_argv *rest, struct px_error *err)
{
    json_t *config = read_config(profile_dir, "ipcluster", wish->python, err);
    if (!config)
        return -1;
    char name[200];
    int result = 0;
    const struct px_launcher_ops *launcher = wish->launcher ? wish->launcher : choice_of(config);
    for (size_t i = 0; i < PX_COUNT(rows) && result == 0; i++) {
        json_t *value =
            applies(&rows[i], launcher, wish->with_controller)
                ? find(config, classes_of(&rows[i], launcher), rows[i].trait, name, sizeof name)
                : NULL;
        const struct sink sink = {.trait = name, .options = options, .rest = rest};
        if (value && !(rows[i].form == HOSTS && wish->hosts_known))
            result = add(&sink, &rows[i], value, err);
    }
    if (result == 0)
        name_the_rest(config, launcher);
    json_decref(config);
    return result;
}

/* Whether a trait that is a truth is set, where it is `so` before: by its flag, wherever that
 * stands, else by the last "--Class.trait=True", or that in two words. */
static bool set_by(const char *const *args, const char *flag, const char *trait, bool so)
{
    const size_t size = strlen(trait);
    for (; args && *args; args++) {
        const char *value = NULL;
        if (strcmp(*args, flag) == 0)
            return true;
        if (strncmp(*args, trait, size) == 0 && (*args)[size] == '=')
            value = *args + size + 1;
        else if (strcmp(*args, trait) == 0)
            value = args[1];
        if (value)
            so = strcasecmp(value, "true") == 0 || strcmp(value, "1") == 0;
    }
    return so;
}

/* Whether a configuration of ipcontroller sets a truth, under any name that its class has had. */
static bool says(const json_t *config, const char *trait)
{
    static const char *const names[] = {"HubFactory", "IPControllerApp", "IPController"};
    bool so = false;
    for (size_t i = 0; i < PX_COUNT(names); i++) {
        const json_t *value = json_object_get(json_object_get(config, names[i]), trait);
        so = value ? json_is_true(value) : so;
    }
    return so;
}

bool px_launch_keeps_files(const char *profile_dir, const char *python, const char *const *args)
{
    static const struct {
        const char *flag, *name, *trait;
    } ways[] = {{"--reuse", "reuse_files", "--IPController.reuse_files"},
                {"--restore", "restore_engines", "--IPController.restore_engines"}};
    struct px_error err;
    json_t *config = read_config(profile_dir, "ipcontroller", python, &err);
    bool keeps = false;
    for (size_t i = 0; i < PX_COUNT(ways); i++)
        keeps |= set_by(args, ways[i].flag, ways[i].trait, says(config, ways[i].name));
    json_decref(config);
    return keeps;
}
