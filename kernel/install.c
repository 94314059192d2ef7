/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * install: writes kernels/<name>/kernel.json and the logos to a place where Jupyter looks.
 *
 *     --user        $JUPYTER_DATA_DIR, else $XDG_DATA_HOME/jupyter, else ~/.local/share/jupyter
 *     --prefix P    P/share/jupyter
 *     --sys-prefix  the active environment ($VIRTUAL_ENV, $CONDA_PREFIX), else /usr/local
 *
 * kernel.json names this program by its absolute path, and the interpreter, which must fit it,
 * where one was named or, with --sys-prefix, an environment is active: the kernelspec belongs to
 * that. The logos come from this program's own installation and are left out where there is none.
 *
 * Reference: jupyter_client, "Making kernels for Jupyter"; jupyter_core, "Directories".
 */
#include "install.h"

#include "program.h"
#include "wire/wire.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_LOGO (256u << 10)

struct options {
    int user, sys_prefix;
    const char *prefix, *name, *display_name, *python, *language;
    struct px_list env;
};

#define AT(member) offsetof(struct options, member)

static const struct px_option option_rows[] = {
    {"user", 0, PX_OPT_SET, AT(user), 1, NULL, "for this user alone (default)", 0, 0},
    {"prefix", 0, PX_OPT_STRING, AT(prefix), 0, "DIR", "into DIR/share/jupyter", 0, 0},
    {"sys-prefix", 0, PX_OPT_SET, AT(sys_prefix), 1, NULL,
     "into the active environment, else /usr/local", 0, 0},
    {"name", 0, PX_OPT_STRING, AT(name), 0, "NAME", "of the kernelspec (default: phalanx)", 0, 0},
    {"display-name", 0, PX_OPT_STRING, AT(display_name), 0, "TEXT",
     "what people see (default: Python (Phalanx))", 0, 0},
    {"python", 0, PX_OPT_STRING, AT(python), 0, "PATH",
     "interpreter to be, of this build's version", 0, 0},
    {"env", 0, PX_OPT_LIST, AT(env), 0, "NAME=VALUE", "set in the kernel's environment; repeatable",
     0, 0},
    {"language", 0, PX_OPT_STRING, AT(language), 0, "NAME", "pass --language NAME to the kernel", 0,
     0},
    {0},
};

static const struct px_usage usage = {
    .program = "pxkernel install",
    .synopsis = "[options]",
    .about = "Tells Jupyter of this kernel.",
    .examples = "  pxkernel install --user\n"
                "  pxkernel install --sys-prefix --display-name 'Python (lab)' "
                "--env OMP_NUM_THREADS=4\n",
    .options = option_rows,
};

/* ---- where ---- */

static char *user_dir(void)
{
    const char *data = getenv("JUPYTER_DATA_DIR");
    const char *xdg = getenv("XDG_DATA_HOME");
    const char *home = getenv("HOME");
    if (data && data[0])
        return px_strdup(data);
    if (xdg && xdg[0])
        return px_format("%s/jupyter", xdg);
    return home && home[0] ? px_format("%s/.local/share/jupyter", home) : NULL;
}

/* NULL when no environment is active. */
static const char *active_prefix(void)
{
    const char *virtual_env = getenv("VIRTUAL_ENV");
    const char *conda = getenv("CONDA_PREFIX");
    if (virtual_env && virtual_env[0])
        return virtual_env;
    return conda && conda[0] ? conda : NULL;
}

/* Jupyter's rule for names (jupyter_client.kernelspec). */
static bool is_name(const char *name)
{
    return name[0] && strlen(name) <= 100 &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") ==
               strlen(name) &&
           strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static char *spec_dir(const struct options *options, struct px_error *err)
{
    const char *active = active_prefix();
    const char *prefix = !options->sys_prefix ? options->prefix : active ? active : "/usr/local";
    char *data = prefix ? px_format("%s/share/jupyter", prefix) : user_dir();
    if (!data) {
        px_fail(err, PX_ENOENT, "no home directory: set HOME or say --prefix");
        return NULL;
    }
    char *dir = px_format("%s/kernels/%s", data, options->name);
    free(data);
    return dir;
}

/* ---- what ---- */

static json_t *command(const struct options *options, const char *program)
{
    json_t *argv = json_pack("[s]", program);
    const char *const pairs[][2] = {{"--language", options->language},
                                    {"--python", options->python}};
    for (size_t i = 0; i < PX_COUNT(pairs); i++) {
        if (!pairs[i][1])
            continue;
        json_array_append_new(argv, json_string(pairs[i][0]));
        json_array_append_new(argv, json_string(pairs[i][1]));
    }
    json_array_append_new(argv, json_string("-f"));
    json_array_append_new(argv, json_string("{connection_file}"));
    return argv;
}

/* {"NAME": "VALUE", …} of the --env options; NULL when one is not UTF-8. */
static json_t *environment(const struct options *options)
{
    json_t *env = json_object();
    for (size_t i = 0; i < options->env.count; i++) {
        const char *value = strchr(options->env.items[i], '=');
        char *name = px_strndup(options->env.items[i], (size_t)(value - options->env.items[i]));
        if (json_object_set_new(env, name, json_string(value + 1)) < 0) {
            json_decref(env);
            env = NULL; /* every further one fails, too */
        }
        free(name);
    }
    return env;
}

static bool has_debugger(const struct options *options)
{
    struct px_error err;
    const struct px_interp_ops *ops = px_language_find(options->language, &err);
    char *python = ops ? px_language_python(ops, options->python) : NULL;
    const bool debugs = python && ops->debugs && ops->debugs(python);
    free(python);
    return debugs;
}

static char *kernel_json(const struct options *options, const char *program, struct px_error *err)
{
    const char *language = options->language ? options->language : px_languages[0]->name;
    json_t *spec = json_pack(
        "{s:o, s:s, s:s, s:s, s:s, s:{s:b, s:[s]}, s:o}", "argv", command(options, program),
        "display_name", options->display_name, "language", language, "interrupt_mode", "message",
        "kernel_protocol_version", PX_PROTOCOL_VERSION, "metadata", "debugger",
        has_debugger(options), "supported_encryption", "curve", "env", environment(options));
    char *text = spec ? json_dumps(spec, JSON_INDENT(1)) : NULL;
    json_decref(spec);
    if (!text)
        px_fail(err, PX_EINVAL, "a name or path is not UTF-8");
    return text;
}

/* From the kernelspec that was installed with this program, if there is one. */
static int copy_logo(const char *program, const char *dir, const char *logo, struct px_error *err)
{
    const int base = (int)(strrchr(program, '/') - program);
    char *from = px_format("%.*s/../share/jupyter/kernels/phalanx/%s", base, program, logo);
    char *to = px_format("%s/%s", dir, logo);
    struct px_buf image = {0};
    struct px_error absent;
    int result = 0;
    if (px_file_read(from, MOST_LOGO, &image, &absent) == 0)
        result = px_file_write(to, 0644, px_buf_span(&image), err);
    px_buf_fini(&image);
    free(from);
    free(to);
    return result;
}

static int write_spec(const struct options *options, const char *dir, struct px_error *err)
{
    char *program = px_own_path();
    char *text = kernel_json(options, program, err);
    char *path = px_format("%s/kernel.json", dir);
    int result = -1;
    if (text && px_dir_make(dir, 0755, err) == 0 &&
        copy_logo(program, dir, "logo-32x32.png", err) == 0 &&
        copy_logo(program, dir, "logo-64x64.png", err) == 0)
        result = px_file_write(path, 0644, px_span_of(text), err);
    free(path);
    free(text);
    free(program);
    return result;
}

/* The interpreter that kernel.json is to name, to be freed; NULL for none. */
static char *choose_python(const struct options *options, const struct px_interp_ops *ops)
{
    const char *active = options->sys_prefix ? active_prefix() : NULL;
    char *own = active ? px_format("%s/bin/python", active) : NULL;
    const char *wanted = options->python ? options->python : own;
    if (wanted && !ops->select && options->python)
        px_die(2, "--python is not for %s", ops->name);
    char *python = wanted ? px_language_python(ops, wanted) : NULL;
    free(own);
    return python;
}

int px_install_main(int argc, char **argv)
{
    struct options options = {.name = "phalanx", .display_name = "Python (Phalanx)"};
    const int rest = px_options_main(&usage, argc, argv, &options);
    struct px_error err;
    px_log_init("pxkernel install", PX_WARN);
    if (rest < argc)
        px_die(2, "'%.60s' is not an option; see --help", argv[rest]);
    if (options.user + options.sys_prefix + (options.prefix != NULL) > 1)
        px_die(2, "--user, --prefix and --sys-prefix exclude each other");
    if (!is_name(options.name))
        px_die(2, "'%.60s' cannot name a kernelspec: letters, digits, '.', '_' and '-'",
               options.name);
    const struct px_interp_ops *ops = px_language_find(options.language, &err);
    if (!ops)
        px_die(2, "%s", err.text);
    for (size_t i = 0; i < options.env.count; i++)
        if (strcspn(options.env.items[i], "=") == 0 || !strchr(options.env.items[i], '='))
            px_die(2, "--env wants NAME=VALUE, not '%.60s'", options.env.items[i]);
    char *python = choose_python(&options, ops);
    options.python = python;
    char *dir = spec_dir(&options, &err);
    if (!dir || write_spec(&options, dir, &err) < 0)
        px_die(1, "%s", err.text);
    printf("installed kernelspec %s in %s\n", options.name, dir);
    free(dir);
    free(python);
    free(options.env.items);
    return 0;
}
