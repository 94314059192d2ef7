/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pxcluster clean, and what start removes first: logs and files that dead clusters left.
 *
 * `start` removes only logs of the cluster it is about to be. `clean` takes what ipcluster clean
 * takes (all logs, controllers' files, files of dead clusters), and refuses while a
 * cluster of the profile runs, unless forced.
 */
#define _GNU_SOURCE
#include "launch.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct clean_options {
    struct px_common_options common;
    int force, all;
};

static const struct px_option clean_rows[] = {
    {"force", 0, PX_OPT_SET, offsetof(struct clean_options, force), 1, NULL,
     "also while clusters run (their processes are left alone)", 0, 0},
    {"all", 0, PX_OPT_SET, offsetof(struct clean_options, all), 1, NULL, "every profile", 0, 0},
    PX_COMMON_ROWS(struct clean_options, common),
    {0},
};

static const struct px_usage clean_usage = {
    .program = "pxcluster clean",
    .synopsis = "[options]",
    .about = "Removes logs and connection files that clusters have left in a profile.",
    .examples = "  pxcluster clean\n"
                "  pxcluster clean --all\n",
    .options = clean_rows,
};

typedef bool name_fn(const char *name, const void *ctx);

/* Removes the entries of `dir`/`sub` that `wanted` accepts. */
static void remove_entries(const char *dir, const char *sub, name_fn *wanted, const void *ctx)
{
    char *path = px_format("%s/%s", dir, sub);
    DIR *entries = opendir(path);
    free(path);
    if (!entries)
        return;
    for (struct dirent *entry; (entry = readdir(entries));) {
        if (entry->d_name[0] == '.' || !wanted(entry->d_name, ctx))
            continue;
        if (unlinkat(dirfd(entries), entry->d_name, 0) < 0)
            px_log(PX_WARN, "clean.remove", "file=%s why=\"%s\"", entry->d_name, strerror(errno));
        else
            px_log(PX_DEBUG, "clean.remove", "file=%s", entry->d_name);
    }
    closedir(entries);
}

/* ---- logs of one cluster ---- */

/* `name` is `prefix`, then only characters of `rest`, then ".log". */
static bool log_matches(const char *name, const char *prefix, const char *rest)
{
    const size_t size = strlen(prefix);
    if (strncmp(name, prefix, size) != 0)
        return false;
    const size_t run = strspn(name + size, rest);
    return run > 0 && strcmp(name + size + run, ".log") == 0;
}

struct log_choice {
    const char *cluster_id, *keep;
};

static bool is_log_of(const char *name, const void *ctx)
{
    const struct log_choice *choice = ctx;
    const char *id = choice->cluster_id, *dash = id[0] ? "-" : "";
    if (choice->keep && strcmp(name, choice->keep) == 0)
        return false;
    char controller[256], engine[256], own[256];
    snprintf(controller, sizeof controller, "ipcontroller%s%s-", dash, id);
    snprintf(engine, sizeof engine, "ipengine-%s-", id);
    snprintf(own, sizeof own, "pxcluster%s%s-", dash, id);
    return log_matches(name, controller, "0123456789") || log_matches(name, own, "0123456789") ||
           log_matches(name, engine, "0123456789-");
}

void px_clean_logs(const struct px_place *place, const char *keep)
{
    const struct log_choice choice = {place->cluster_id, keep ? strrchr(keep, '/') + 1 : NULL};
    remove_entries(place->profile_dir, "log", is_log_of, &choice);
}

/* ---- the command ---- */

static bool is_anything(const char *name, const void *ctx)
{
    (void)name, (void)ctx;
    return true;
}

static bool is_controller_file(const char *name, const void *ctx)
{
    (void)ctx;
    const size_t size = strlen(name);
    return strncmp(name, "ipcontroller-", 13) == 0 && size > 5 &&
           strcmp(name + size - 5, ".json") == 0;
}

/* With the lock held. */
static int clean_file(const char *profile_dir, const char *path, void *ctx)
{
    const struct clean_options *options = ctx;
    struct px_cluster cluster;
    (void)profile_dir;
    bool runs = false;
    if (px_cluster_load(path, &cluster, NULL) == 0) {
        runs = px_cluster_runs(&cluster) || cluster.foreign;
        px_cluster_fini(&cluster);
    }
    if (runs && !options->force) {
        fprintf(stderr, "pxcluster clean: a cluster is running: %s; stop it, or use --force\n",
                path);
        return 1;
    }
    unlink(path);
    return 0;
}

static int clean_profile(const char *profile_dir, void *ctx)
{
    struct px_place place;
    if (px_place_make(profile_dir, "", &place, NULL) < 0)
        return 1;
    const int lock = px_clusterfile_lock(&place, NULL); /* none: there is no such directory */
    const int refused = px_each_cluster_in(profile_dir, clean_file, ctx);
    px_clusterfile_unlock(lock);
    if (refused)
        return 1;
    remove_entries(profile_dir, "log", is_anything, NULL);
    remove_entries(profile_dir, "security", is_controller_file, NULL);
    return 0;
}

int px_command_clean(int argc, char **argv)
{
    struct clean_options options = {.common = PX_COMMON_DEFAULTS};
    const int first = px_options_main(&clean_usage, argc, argv, &options);
    if (first < argc) {
        fprintf(stderr, "pxcluster clean: unexpected argument '%s'\n", argv[first]);
        return 2;
    }
    px_log_init("pxcluster", (enum px_level)options.common.log_level);
    if (options.all)
        return px_each_profile(&options.common, clean_profile, &options);
    struct px_place place;
    struct px_error err;
    if (px_place_find(&options.common, false, &place, &err) < 0) {
        fprintf(stderr, "pxcluster clean: %s\n", err.text);
        return 1;
    }
    return clean_profile(place.profile_dir, &options);
}
