/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pxcluster stop: ends clusters that a file names, ours and ipcluster's.
 *
 * A pxcluster that watches over the cluster is asked first: it ends everything in order, with
 * what no file tells (the fork server). What then still runs of the file's processes is ended here:
 * engines, then controller. The command returns when nothing of it runs.
 */
#include "launch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A supervisor may spend a grace on the engines and one on the controller. */
#define SUPERVISOR_GRACE_MS (2 * PX_STOP_GRACE_MS + 2000)

struct stop_options {
    struct px_common_options common;
    int all;
};

static const struct px_option stop_rows[] = {
    {"all", 0, PX_OPT_SET, offsetof(struct stop_options, all), 1, NULL,
     "every cluster of the profile", 0, 0},
    PX_COMMON_ROWS(struct stop_options, common),
    {0},
};

static const struct px_usage stop_usage = {
    .program = "pxcluster stop",
    .synopsis = "[options] [CLUSTER-ID ...]",
    .about = "Stops running clusters. Exit status 11 if there is none to stop.",
    .examples = "  pxcluster stop\n"
                "  pxcluster stop --profile=lab --all\n",
    .options = stop_rows,
};

static void on_done(struct px_loop *loop, void *ctx)
{
    (void)ctx;
    px_loop_stop(loop);
}

static int end_sets(struct px_set *const *sets, size_t count, int64_t grace_ms,
                    struct px_error *err)
{
    struct px_loop *loop = px_loop_create();
    struct px_stopper *stopper = px_stopper_start(loop, sets, count, grace_ms, on_done, NULL);
    const int result = px_loop_run(loop, err);
    px_stopper_destroy(stopper);
    px_loop_destroy(loop);
    return result;
}

static int end_supervisors(const struct px_cluster *cluster, struct px_error *err)
{
    int result = 0;
    for (size_t i = 0; i < cluster->supervisor_count && result == 0; i++) {
        struct px_set *set = px_local_adopt(cluster->supervisors[i]);
        result = end_sets(&set, 1, SUPERVISOR_GRACE_MS, err);
        px_set_destroy(set);
    }
    return result;
}

static int end_members(const struct px_cluster *cluster, struct px_error *err)
{
    struct px_set **sets = px_alloc((cluster->engine_sets + 1) * sizeof *sets);
    for (size_t i = 0; i < cluster->engine_sets; i++)
        sets[i] = cluster->engines[i];
    sets[cluster->engine_sets] = cluster->controller;
    const int result = end_sets(sets, cluster->engine_sets + 1, PX_STOP_GRACE_MS, err);
    free(sets);
    return result;
}

/* 0, 1 or PX_NOT_RUNNING. */
static int stop_cluster(const struct px_place *place)
{
    struct px_error err;
    struct px_cluster cluster;
    char name[sizeof place->cluster_id + 4] = "";
    if (place->cluster_id[0])
        snprintf(name, sizeof name, " '%s'", place->cluster_id);
    json_t *seen = px_clusterfile_read(place->file, NULL, NULL);
    if (px_cluster_load(place->file, &cluster, &err) < 0) {
        json_decref(seen);
        if (err.code == PX_ENOENT) {
            fprintf(stderr, "pxcluster: no cluster%s is running: there is no %s\n", name,
                    place->file);
            px_say_what_runs(place->profile_dir);
        } else {
            fprintf(stderr, "pxcluster: %s\n", err.text);
        }
        return err.code == PX_ENOENT ? PX_NOT_RUNNING : 1;
    }
    int status = 0;
    if (cluster.foreign) {
        fprintf(stderr, "pxcluster: cannot stop cluster%s: it was launched by '%s'\n", name,
                cluster.foreign);
        status = 1;
    } else if (!px_cluster_runs(&cluster)) {
        fprintf(stderr, "pxcluster: cluster%s had ended; removed %s\n", name, place->file);
        px_clusterfile_remove(place, seen);
        status = PX_NOT_RUNNING;
    } else if (end_supervisors(&cluster, &err) < 0 || end_members(&cluster, &err) < 0) {
        fprintf(stderr, "pxcluster: cannot stop cluster%s: %s\n", name, err.text);
        status = 1;
    } else {
        px_clusterfile_remove(place, seen);
        if (px_log_level() <= PX_INFO)
            fprintf(stderr, "pxcluster: stopped cluster%s: %zu engine%s\n", name,
                    cluster.engine_count, cluster.engine_count == 1 ? "" : "s");
    }
    px_cluster_fini(&cluster);
    json_decref(seen);
    return status;
}

struct all {
    int status;
    size_t count;
};

static int stop_one_of_all(const char *profile_dir, const char *path, void *ctx)
{
    struct all *all = ctx;
    struct px_place place;
    char id[PX_PATH_SIZE];
    /* <dir>/security/cluster-<id>.json */
    snprintf(id, sizeof id, "%s", strrchr(path, '/') + sizeof "cluster-");
    id[strlen(id) - (sizeof ".json" - 1)] = 0;
    if (px_place_make(profile_dir, id, &place, NULL) < 0)
        return 0;
    const int status = stop_cluster(&place);
    if (status == 1)
        all->status = 1;
    else if (status == 0)
        all->count++;
    return 0;
}

static int stop_all(const struct px_common_options *options)
{
    struct all all = {0};
    struct px_error err;
    struct px_place place;
    if (px_place_find(options, false, &place, &err) < 0) {
        fprintf(stderr, "pxcluster stop: %s\n", err.text);
        return PX_NOT_RUNNING;
    }
    px_each_cluster_in(place.profile_dir, stop_one_of_all, &all);
    if (all.status == 0 && all.count == 0) {
        fprintf(stderr, "pxcluster: no cluster of %s is running\n", place.profile_dir);
        return PX_NOT_RUNNING;
    }
    return all.status;
}

int px_command_stop(int argc, char **argv)
{
    struct stop_options options = {.common = PX_COMMON_DEFAULTS};
    int first = px_options_main(&stop_usage, argc, argv, &options);
    px_log_init("pxcluster", (enum px_level)options.common.log_level);
    if (options.all)
        return stop_all(&options.common);
    int status = 0;
    do {
        struct px_error err;
        struct px_place place;
        struct px_common_options one = options.common;
        if (first < argc)
            one.cluster_id = argv[first];
        if (px_place_find(&one, false, &place, &err) < 0) {
            fprintf(stderr, "pxcluster stop: %s\n", err.text);
            return err.code == PX_ENOENT ? PX_NOT_RUNNING : 1;
        }
        const int result = stop_cluster(&place);
        status = status ? status : result;
    } while (++first < argc);
    return status;
}
