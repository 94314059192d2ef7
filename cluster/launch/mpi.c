/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The launcher for engines under mpiexec: one engine a rank.
 *
 *     mpiexec -n N [--launch-arg...] pxengine --profile-dir DIR ... --mpi
 *
 * The connection goes with the environment, too, so that ranks on hosts without the profile's
 * directory find the controller: Open MPI is told to pass the variable on (mca_base_env_list);
 * others pass on all. It is also told to give ranks two seconds to end, twice of what engines take.
 * What an MPI library does when a rank dies is its own affair: Open MPI ends all.
 */
#include "proxy.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

/*
 * Open MPI's messages are paragraphs between rules of dashes, MPICH's are lines that begin with the
 * program's name. The first sentence tells what is wrong; what follows is advice.
 */
static void mpi_reason(const char *text, char *out, size_t size)
{
    const char *start = strstr(text, "----\n");
    struct px_buf words = {0};
    start = start ? start + 5 : strstr(text, "[mpiexec@") == text ? text : NULL;
    while (start && *start && words.size < size) {
        const size_t length = strcspn(start, "\n");
        if (length == 0 || strspn(start, "-") == length)
            break;
        px_buf_printf(&words, "%s%.*s", words.size ? " " : "", (int)length, start);
        start += length + (start[length] == '\n');
    }
    char *stop = words.size ? strstr(words.data, ". ") : NULL;
    if (stop)
        *stop = 0;
    for (size_t last = words.size ? strlen(words.data) : 0;
         last > 0 && strchr(":. ", words.data[last - 1]); last--)
        words.data[last - 1] = 0;
    if (words.size && strlen(words.data) < size)
        strcpy(out, words.data);
    px_buf_fini(&words);
}

static struct px_set *mpi_start(const struct px_launcher_ops *ops, const struct px_set_spec *spec,
                                struct px_error *err)
{
    struct px_argv argv = {0};
    struct px_proxy_set *set = px_proxy_set_create(ops, spec, sizeof *set);
    char *connection = px_connection_variable(spec->place, &set->local, err),
         *log = px_set_log_path(spec, -1);
    char *const env[] = {connection, "OMPI_MCA_mca_base_env_list=IPP_CONNECTION_INFO",
                         "OMPI_MCA_odls_base_sigkill_timeout=2", NULL};
    struct px_proxy *proxy = NULL;
    if (connection &&
        px_argv_split(&argv, spec->launch_command ? spec->launch_command : "mpiexec", err) == 0) {
        px_argv_add_new(&argv, px_format("-n"));
        px_argv_add_new(&argv, px_format("%d", spec->count));
        px_argv_add_all(&argv, spec->launch_args);
        if (px_argv_build(&argv, spec, -1, err) == 0) {
            px_argv_add(&argv, "--mpi");
            const struct px_proxy_spec proxy_spec = {.argv = argv.items,
                                                     .env = env,
                                                     .label = "mpiexec",
                                                     .log = log,
                                                     .count = spec->count};
            proxy = px_proxy_start(set, &proxy_spec, err);
        }
    }
    set->reason = mpi_reason;
    if (proxy) {
        set->base.pid = proxy->process.pid;
        set->state = px_process_state(spec->place->profile_dir, spec->place->cluster_id,
                                      spec->count, log, proxy->process.pid);
    }
    px_argv_fini(&argv);
    free(connection);
    free(log);
    return proxy ? &set->base : px_proxy_abandon(set);
}

/* ipcluster's are the same: an mpiexec and its pid. */
static struct px_set *mpi_restore(const struct px_launcher_ops *ops, const json_t *state,
                                  double written, const struct px_process *supervisor)
{
    (void)supervisor;
    struct px_proxy_set *set = px_proxy_set_create(ops, NULL, sizeof *set);
    struct px_process process;
    const json_int_t pid = json_integer_value(json_object_get(state, "pid"));
    set->state = json_deep_copy(state);
    if (pid > 1 && pid <= INT32_MAX && px_process_find((pid_t)pid, &process) &&
        px_process_is_meant(process, state, written))
        px_proxy_adopt(set, process, json_string_value(json_object_get(state, "output_file")));
    return &set->base;
}

static json_t *mpi_save(const struct px_set *base)
{
    const struct px_proxy_set *set = (const struct px_proxy_set *)base;
    return json_deep_copy(set->state);
}

/* Open MPI's mpiexec waits the whole time that it gives its ranks, and one that is killed leaves
 * them behind: those on this host are told here, and it ends with them. */
static void mpi_signal(struct px_set *base, int signo)
{
    const struct px_proxy_set *set = (const struct px_proxy_set *)base;
    size_t told = 0;
    for (size_t i = 0; i < set->proxy_count; i++) {
        struct px_proxy *proxy = set->proxies[i];
        if (proxy->ended || (signo != SIGTERM && signo != SIGKILL))
            continue;
        proxy->asked = true;
        told += px_process_signal_descendants(proxy->process, signo == SIGTERM ? "pxengine" : NULL,
                                              signo);
    }
    if (!told || signo != SIGTERM)
        px_proxy_signal(base, signo);
}

const struct px_launcher_ops px_mpi_launcher = {
    .name = "mpi",
    .title = "MPI",
    .start = mpi_start,
    .restore = mpi_restore,
    .save = mpi_save,
    .signal = mpi_signal,
    .refresh = px_proxy_refresh,
    .tail = px_proxy_tail,
    .missing = px_proxy_missing,
    .destroy = px_proxy_destroy,
};
