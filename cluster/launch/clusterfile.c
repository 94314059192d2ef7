/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * cluster-<id>.json: who runs, for whoever wants to list or stop it.
 *
 * The form is ipyparallel's, to the letter and the order of keys: `ipcluster list` rewrites a file
 * that differs from what it would have written. So nothing of ours can be kept here; the
 * supervisor is found as an ancestor of the processes that the file names.
 *
 * Several writers are possible (pxcluster start, pxcluster engines, ipcluster). Ours take a lock
 * on the security directory around read-change-write and replace the file in one step; each
 * takes out only what is its own, so that a file which a later cluster wrote is not lost.
 */
#define _GNU_SOURCE
#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_FILE (16u << 20) /* ten thousand engines take 3 MB */
#define CLUSTER_CLASS "ipyparallel.cluster.cluster.Cluster"

/* ---- places ---- */

int px_place_make(const char *profile_dir, const char *cluster_id, struct px_place *out,
                  struct px_error *err)
{
    if (strlen(cluster_id) >= sizeof out->cluster_id)
        return px_fail(err, PX_EINVAL, "cluster id is longer than %zu characters",
                       sizeof out->cluster_id - 1);
    if (strchr(cluster_id, '/'))
        return px_fail(err, PX_EINVAL, "cluster id '%.80s' has a slash in it", cluster_id);
    char cwd[PX_PATH_SIZE] = "";
    if (profile_dir[0] != '/' && !getcwd(cwd, sizeof cwd))
        return px_fail(err, PX_EIO, "no current directory: %s", strerror(errno));
    char *path = px_format("%s%s%s", cwd, cwd[0] ? "/" : "", profile_dir);
    const size_t size = strlen(path);
    if (size > 1 && path[size - 1] == '/')
        path[size - 1] = 0;
    if (size < PX_PATH_SIZE - 256)
        strcpy(out->profile_dir, path);
    free(path);
    if (size >= PX_PATH_SIZE - 256)
        return px_fail(err, PX_ELIMIT, "the profile directory's path is too long");
    strcpy(out->cluster_id, cluster_id);
    px_profile_cluster_file(out->profile_dir, cluster_id, out->file);
    px_profile_connection_file(out->profile_dir, cluster_id, PX_ROLE_CLIENT, out->client_file);
    px_profile_connection_file(out->profile_dir, cluster_id, PX_ROLE_ENGINE, out->engine_file);
    return 0;
}

int px_place_find(const struct px_common_options *options, bool create, struct px_place *out,
                  struct px_error *err)
{
    const struct px_profile_choice choice = {.ipython_dir = options->ipython_dir,
                                             .profile = options->profile,
                                             .profile_dir = options->profile_dir,
                                             .cluster_id = options->cluster_id};
    char dir[PX_PATH_SIZE];
    /* `list` looks for profiles in one directory, not below it. */
    if (options->profile && !options->profile_dir && strchr(options->profile, '/'))
        return px_fail(err, PX_EINVAL, "profile '%.80s' has a slash in it: see --profile-dir",
                       options->profile);
    if (px_profile_dir(&choice, create, dir, err) < 0)
        return -1;
    return px_place_make(dir, px_profile_cluster_id(&choice), out, err);
}

/* ---- reading ---- */

json_t *px_clusterfile_read(const char *path, double *written, struct px_error *err)
{
    struct px_buf text = {0};
    struct stat info;
    if (px_file_read(path, MAX_FILE, &text, err) < 0)
        return NULL;
    json_error_t why;
    json_t *file = json_loadb(text.data ? text.data : "", text.size, 0, &why);
    px_buf_fini(&text);
    if (!json_is_object(json_object_get(file, "cluster"))) {
        px_fail(err, PX_EINVAL, "%s is not a cluster file", path);
        json_decref(file);
        return NULL;
    }
    if (written)
        *written = stat(path, &info) < 0
                       ? 0
                       : (double)info.st_mtim.tv_sec + (double)info.st_mtim.tv_nsec / 1e9;
    return file;
}

/* ---- changing ---- */

int px_clusterfile_lock(const struct px_place *place, struct px_error *err)
{
    char *dir = px_format("%s/security", place->profile_dir);
    const int lock = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock < 0 || flock(lock, LOCK_EX) < 0) {
        px_fail(err, PX_EIO, "cannot lock %s: %s", dir, strerror(errno));
        if (lock >= 0)
            close(lock);
        free(dir);
        return -1;
    }
    free(dir);
    return lock;
}

void px_clusterfile_unlock(int lock)
{
    if (lock >= 0)
        close(lock);
}

static int write_file(const char *path, const json_t *file, struct px_error *err)
{
    /* ipyparallel escapes what is not ASCII; jansson's default separators are Python's. */
    char *text = json_dumps(file, JSON_ENSURE_ASCII);
    if (!text)
        return px_fail(err, PX_EINVAL, "%s: cannot be written as JSON", path);
    const int result = px_file_write(path, 0600, px_span_of(text), err);
    free(text);
    return result;
}

json_t *px_process_state(const char *profile_dir, const char *cluster_id, int n, const char *log,
                         pid_t pid)
{
    json_t *state = json_object();
    json_object_set_new(state, "cluster_id", json_string(cluster_id));
    if (n >= 0)
        json_object_set_new(state, "n", json_integer(n));
    if (log)
        json_object_set_new(state, "output_file", json_string(log));
    json_object_set_new(state, "pid", json_integer(pid));
    json_object_set_new(state, "profile_dir", json_string(profile_dir));
    json_object_set_new(state, "state", json_string("running"));
    return state;
}

static json_t *make_cluster(const struct px_place *place,
                            const struct px_contribution *contribution)
{
    json_t *args = json_array();
    for (const char *const *arg = contribution->controller_args; arg && *arg; arg++)
        json_array_append_new(args, json_string(*arg));
    json_t *cluster = json_object();
    json_object_set_new(cluster, "cluster_id", json_string(place->cluster_id));
    json_object_set_new(cluster, "controller_args", args);
    json_object_set_new(cluster, "controller_ip",
                        json_string(contribution->ip ? contribution->ip : ""));
    json_object_set_new(cluster, "controller_location",
                        json_string(contribution->location ? contribution->location : ""));
    json_object_set_new(cluster, "delay", json_real(0));
    json_object_set_new(cluster, "n", json_integer(contribution->n));
    json_object_set_new(cluster, "profile_dir", json_string(place->profile_dir));
    json_object_set_new(cluster, "class", json_string(CLUSTER_CLASS));
    return cluster;
}

static json_t *make_file(const struct px_place *place, const struct px_contribution *contribution)
{
    json_t *file = json_object();
    json_object_set_new(file, "cluster", make_cluster(place, contribution));
    if (contribution->controller) {
        json_t *controller = json_object();
        const struct px_launcher_ops *ops = contribution->controller->ops;
        json_object_set_new(controller, "class", json_string(ops->name));
        json_object_set_new(controller, "state", ops->save(contribution->controller));
        json_object_set_new(file, "controller", controller);
    }
    json_t *engines = json_object();
    json_object_set_new(engines, "class", json_string(contribution->launcher->name));
    json_object_set_new(engines, "sets", json_object());
    json_object_set_new(file, "engines", engines);
    return file;
}

static pid_t controller_pid(const json_t *file)
{
    const json_t *state = json_object_get(json_object_get(file, "controller"), "state");
    return (pid_t)json_integer_value(json_object_get(state, "pid"));
}

int px_clusterfile_put(const struct px_place *place, const struct px_contribution *contribution,
                       struct px_error *err)
{
    json_t *file = px_clusterfile_read(place->file, NULL, NULL);
    json_t *fresh = make_file(place, contribution);
    /* What another controller left there is not ours to keep. */
    if (file && contribution->controller && controller_pid(file) != controller_pid(fresh)) {
        json_decref(file);
        file = NULL;
    }
    if (file)
        json_decref(fresh);
    else
        file = fresh;
    json_t *engines = json_object_get(file, "engines"), *sets = json_object_get(engines, "sets");
    if (contribution->engines && json_object_size(sets) == 0) /* the first set decides */
        json_object_set_new(engines, "class", json_string(contribution->launcher->name));
    if (contribution->engines && json_is_object(sets))
        json_object_set_new(sets, contribution->set_id,
                            contribution->launcher->save(contribution->engines));
    const int result = write_file(place->file, file, err);
    json_decref(file);
    return result;
}

void px_clusterfile_withdraw(const struct px_place *place, pid_t controller, const char *set_id)
{
    json_t *file = px_clusterfile_read(place->file, NULL, NULL);
    if (!file)
        return;
    json_t *sets = json_object_get(json_object_get(file, "engines"), "sets");
    bool changed = json_object_del(sets, set_id) == 0;
    if (controller && controller_pid(file) == controller)
        changed = json_object_del(file, "controller") == 0 || changed;
    if (!json_object_get(file, "controller") && json_object_size(sets) == 0)
        unlink(place->file);
    else if (changed && write_file(place->file, file, NULL) < 0)
        px_log(PX_WARN, "clusterfile.write", "file=%s", place->file);
    json_decref(file);
}

void px_clusterfile_remove(const struct px_place *place, const json_t *seen)
{
    const int lock = px_clusterfile_lock(place, NULL);
    json_t *file = px_clusterfile_read(place->file, NULL, NULL);
    if (file && json_equal(file, seen) && unlink(place->file) < 0)
        px_log(PX_WARN, "clusterfile.remove", "file=%s why=\"%s\"", place->file, strerror(errno));
    const char *id;
    json_t *set;
    json_object_foreach(json_object_get(json_object_get(seen, "engines"), "sets"), id, set)
        px_clusterfile_withdraw(place, controller_pid(seen), id);
    px_clusterfile_withdraw(place, controller_pid(seen), "");
    json_decref(file);
    px_clusterfile_unlock(lock);
}

/* ---- what of it still runs ---- */

static const struct px_launcher_ops *const launchers[] = {
    &px_local_launcher, &px_ssh_launcher, &px_mpi_launcher,   &px_slurm_launcher,
    &px_pbs_launcher,   &px_sge_launcher, &px_condor_launcher};

/* "ipyparallel.cluster.launcher.MPIEngineSetLauncher" is "MPI", as in its --engines. */
const struct px_launcher_ops *px_launcher_find(const char *name)
{
    static const char *const endings[] = {"", "EngineSet", "EngineSetLauncher",
                                          "ControllerLauncher"};
    const char *dot = strrchr(name, '.');
    const char *word = dot ? dot + 1 : name;
    for (size_t i = 0; i < PX_COUNT(launchers); i++) {
        const size_t size = strlen(launchers[i]->name);
        if (strncasecmp(word, launchers[i]->name, size) != 0)
            continue;
        for (size_t j = 0; j < PX_COUNT(endings); j++)
            if (strcasecmp(word + size, endings[j]) == 0)
                return launchers[i];
    }
    return NULL;
}

void px_set_destroy(struct px_set *set)
{
    if (set)
        set->ops->destroy(set);
}

/* The launcher of "controller" or "engines"; notes a class that we do not have. */
static const struct px_launcher_ops *launcher_of(struct px_cluster *cluster, const json_t *part)
{
    const char *name = json_string_value(json_object_get(part, "class"));
    const struct px_launcher_ops *ops = name ? px_launcher_find(name) : NULL;
    if (name && !ops)
        cluster->foreign = name;
    return ops;
}

static void add_supervisor(struct px_cluster *cluster, struct px_process supervisor)
{
    for (size_t i = 0; i < cluster->supervisor_count; i++)
        if (cluster->supervisors[i].pid == supervisor.pid)
            return;
    if (cluster->supervisor_count < PX_COUNT(cluster->supervisors))
        cluster->supervisors[cluster->supervisor_count++] = supervisor;
}

/* A pxcluster that is a parent of the process that a state names. */
static void note_parent(struct px_cluster *cluster, const json_t *state)
{
    struct px_process process, supervisor;
    const json_int_t pid = json_integer_value(json_object_get(state, "pid"));
    if (pid > 0 && pid <= INT32_MAX && px_process_find((pid_t)pid, &process) &&
        px_process_ancestor(process, "pxcluster", &supervisor))
        add_supervisor(cluster, supervisor);
}

/* The pxcluster that a set's id names: "<time>-<pid>". */
static bool find_supervisor(const char *set_id, double written, struct px_process *out)
{
    long pid;
    int end = 0;
    return sscanf(set_id, "%*[0-9]-%ld%n", &pid, &end) == 1 && !set_id[end] && pid > 1 &&
           pid <= INT32_MAX && px_process_find((pid_t)pid, out) &&
           px_process_is(*out, "pxcluster") && px_process_start_time(*out) <= written + 1.0;
}

static void load_controller(struct px_cluster *cluster, double written)
{
    json_t *part = json_object_get(cluster->file, "controller");
    const json_t *state = json_object_get(part, "state");
    const struct px_launcher_ops *ops = launcher_of(cluster, part);
    if (!ops || !state)
        return;
    cluster->controller = ops->restore(ops, state, written, NULL);
    if (cluster->controller->ops->refresh(cluster->controller) > 0) {
        note_parent(cluster, state);
        return;
    }
    px_set_destroy(cluster->controller);
    cluster->controller = NULL;
    json_object_del(cluster->file, "controller");
}

static void load_set(struct px_cluster *cluster, const struct px_launcher_ops *ops, json_t *sets,
                     const char *id, double written)
{
    const char *key;
    json_t *engine, *state = json_object_get(sets, id);
    struct px_process supervisor;
    const bool watched = find_supervisor(id, written, &supervisor);
    struct px_set *set = ops->restore(ops, state, written, watched ? &supervisor : NULL);
    if (ops->refresh(set) == 0) {
        px_set_destroy(set);
        json_object_del(sets, id);
        return;
    }
    if (watched)
        add_supervisor(cluster, supervisor);
    else if (ops == &px_local_launcher)
        json_object_foreach(json_object_get(state, "engines"), key, engine)
            note_parent(cluster, engine);
    json_object_set_new(sets, id, ops->save(set));
    state = json_object_get(sets, id);
    cluster->engine_count += (size_t)json_integer_value(json_object_get(state, "n"));
    cluster->engines[cluster->engine_sets++] = set;
}

static void load_engines(struct px_cluster *cluster, double written)
{
    json_t *part = json_object_get(cluster->file, "engines");
    json_t *sets = json_object_get(part, "sets");
    const struct px_launcher_ops *ops = launcher_of(cluster, part);
    cluster->engines = px_alloc((json_object_size(sets) + 1) * sizeof *cluster->engines);
    const char *id;
    json_t *state;
    void *next;
    json_object_foreach_safe(sets, next, id, state)
    {
        if (ops)
            load_set(cluster, ops, sets, id, written);
        else /* what the file says is all that is known */
            cluster->engine_count += (size_t)json_integer_value(json_object_get(state, "n"));
    }
}

int px_cluster_load(const char *path, struct px_cluster *out, struct px_error *err)
{
    double written = 0;
    *out = (struct px_cluster){.launcher = "local"};
    out->file = px_clusterfile_read(path, &written, err);
    if (!out->file)
        return -1;
    load_controller(out, written);
    load_engines(out, written);
    const char *class =
        json_string_value(json_object_get(json_object_get(out->file, "engines"), "class"));
    if (class)
        out->launcher = class;
    return 0;
}

bool px_cluster_runs(const struct px_cluster *cluster)
{
    return cluster->controller || cluster->engine_count > 0;
}

void px_cluster_fini(struct px_cluster *cluster)
{
    px_set_destroy(cluster->controller);
    for (size_t i = 0; i < cluster->engine_sets; i++)
        px_set_destroy(cluster->engines[i]);
    free(cluster->engines);
    json_decref(cluster->file);
    *cluster = (struct px_cluster){0};
}
