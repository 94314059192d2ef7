/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pxkernel: a Jupyter kernel on a connection file; or `pxkernel install`, which tells Jupyter of
 * it.
 *
 * The sockets are up, and kernel_info is answered, before the language starts.
 */
#include "channels.h"
#include "crash.h"
#include "install.h"
#include "program.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

struct options {
    const char *file, *language, *python, *profile, *profile_dir, *colors;
    int log_level;
    struct px_output_config output;
};

#define AT(member) offsetof(struct options, member)

static const struct px_option option_rows[] = {
    {"file", 'f', PX_OPT_STRING, AT(file), 0, "FILE", "connection file (required)", 0, 0},
    {"language", 0, PX_OPT_STRING, AT(language), 0, "NAME", "python (default) or echo", 0, 0},
    {"python", 0, PX_OPT_STRING, AT(python), 0, "PATH",
     "interpreter to be (default: its own or the active environment's)", 0, 0},
    {"profile", 0, PX_OPT_STRING, AT(profile), 0, "NAME", "IPython profile to load", 0, 0},
    {"profile-dir", 0, PX_OPT_STRING, AT(profile_dir), 0, "DIR", "its directory, instead", 0, 0},
    {"colors", 0, PX_OPT_STRING, AT(colors), 0, "SCHEME", "of tracebacks: nocolor, linux, ...", 0,
     0},
    {"log-level", 0, PX_OPT_LEVEL, AT(log_level), 0, "LEVEL",
     "debug, info, warn (default), error, or 10 to 50", 0, 0},
    PX_OUTPUT_ROWS(struct options, output),
    {0},
};

static const struct px_usage usage = {
    .program = "pxkernel",
    .synopsis = "[options] -f FILE\n       pxkernel install [--user | --prefix P | --sys-prefix]",
    .about = "The Phalanx Jupyter kernel. Jupyter starts it; 'pxkernel install' tells Jupyter how.",
    .examples = "  pxkernel install --user\n"
                "  pxkernel --HistoryManager.enabled=False -f connection.json\n",
    .options = option_rows,
    .foreign = true, /* IPython's configuration, as its kernel takes it: shell.py */
};

/* Until the language has its own handler, an interrupt waits instead of ending the process. */
static void hold_interrupts(bool hold)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    pthread_sigmask(hold ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL);
}

/* The directory of the profile that was asked for, which must be there; "" for IPython's choice. */
static void find_profile(const struct options *options, char out[PX_PATH_SIZE])
{
    const struct px_profile_choice choice = {.profile = options->profile,
                                             .profile_dir = options->profile_dir};
    struct px_error err;
    out[0] = 0;
    if ((options->profile || options->profile_dir) && px_profile_dir(&choice, false, out, &err) < 0)
        px_die(1, "%s", err.text);
}

static void run_language(struct px_channels *channels, const struct px_interp_ops *ops,
                         const struct px_interp_config *config)
{
    struct px_kernel *kernel = px_channels_kernel(channels);
    struct px_error err;
    void *self = ops->create(config, &err);
    if (!self)
        px_die(1, "%s", err.text);
    hold_interrupts(false);
    px_kernel_capture_begin(kernel);
    px_crash_watch(px_channels_service(channels), ops, self);
    ops->attach(self, px_kernel_host(kernel), -1, px_kernel_session(kernel));
    px_kernel_run(kernel, self);
    ops->destroy(self);
    px_kernel_capture_end(kernel);
}

int main(int argc, char **argv)
{
    px_program_begin();
    if (argc > 1 && strcmp(argv[1], "install") == 0)
        return px_install_main(argc - 1, argv + 1);
    struct options options = {.log_level = PX_WARN, .output = PX_OUTPUT_DEFAULTS};
    /* Further words are for the user's sys.argv: `jupyter run FILE` hands on its own. */
    (void)px_options_main(&usage, argc, argv, &options);
    struct px_error err;
    const struct px_interp_ops *ops = px_language_find(options.language, &err);
    if (!ops)
        px_die(2, "%s", err.text);
    if (!options.file)
        px_die(2, "no connection file: Jupyter starts this program, once 'pxkernel install' has "
                  "told it how; or say -f FILE");
    px_log_init("pxkernel", (enum px_level)options.log_level);
    char profile[PX_PATH_SIZE];
    find_profile(&options, profile);
    hold_interrupts(true);
    signal(SIGINT, SIG_DFL); /* a shell's background job ignores it, and the language would too */
    char *python = px_language_python(ops, options.python);
    const bool debugger = ops->debugs && ops->debugs(python);
    struct px_channels *channels =
        px_channels_open(options.file, ops, &options.output, debugger, &err);
    if (!channels)
        px_die(1, "%s", err.text);
    char *modules = px_own_modules();
    const struct px_interp_config config = {.python = python,
                                            .profile_dir = profile[0] ? profile : NULL,
                                            .colors = options.colors,
                                            .module_dir = modules,
                                            .debugger = debugger,
                                            .argc = argc,
                                            .argv = argv};
    run_language(channels, ops, &config);
    px_channels_close(channels);
    free(modules);
    free(python);
    return 0;
}
