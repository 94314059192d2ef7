/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pxcluster list: the clusters that files name, in ipcluster's table or as JSON.
 * A part that has ended is left out of what is shown; files are not touched.
 */
#define _GNU_SOURCE
#include "launch.h"

#include <dirent.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct list_options {
    struct px_common_options common;
    const char *format;
};

static const struct px_option list_rows[] = {
    {"output", 'o', PX_OPT_STRING, offsetof(struct list_options, format), 0, "FORMAT",
     "text or json (default: text)", 0, 0},
    PX_COMMON_ROWS(struct list_options, common),
    {0},
};

static const struct px_usage list_usage = {
    .program = "pxcluster list",
    .synopsis = "[options]",
    .about = "Lists the clusters of all profiles, or of the one that is named.",
    .examples = "  pxcluster list\n"
                "  pxcluster list --profile=lab -o json\n",
    .options = list_rows,
};

/* ---- walking ---- */

int px_each_cluster_in(const char *profile_dir, px_cluster_fn *fn, void *ctx)
{
    /* The directory's own name may hold glob's special characters; a backslash keeps each plain. */
    struct px_buf pattern = {0};
    for (const char *at = profile_dir; *at; at++) {
        if (strchr("*?[\\", *at))
            px_buf_text(&pattern, "\\");
        px_buf_append(&pattern, at, 1);
    }
    px_buf_text(&pattern, "/security/cluster-*.json");
    glob_t found;
    int result = 0;
    if (glob(pattern.data, 0, NULL, &found) == 0) {
        for (size_t i = 0; i < found.gl_pathc && result == 0; i++)
            result = fn(profile_dir, found.gl_pathv[i], ctx);
        globfree(&found);
    }
    px_buf_fini(&pattern);
    return result;
}

static int is_profile(const struct dirent *entry)
{
    return strncmp(entry->d_name, "profile_", 8) == 0;
}

/* The IPython directory: the profile "default" lies in it. */
static int ipython_dir(const struct px_common_options *options, char out[PX_PATH_SIZE])
{
    const struct px_profile_choice choice = {.ipython_dir = options->ipython_dir,
                                             .profile = "default"};
    /* That profile need not exist for others to. */
    if (px_profile_dir(&choice, false, out, NULL) < 0 && !strstr(out, "/profile_default"))
        return -1;
    *strrchr(out, '/') = 0;
    return 0;
}

int px_each_profile(const struct px_common_options *options,
                    int (*fn)(const char *profile_dir, void *ctx), void *ctx)
{
    char root[PX_PATH_SIZE];
    if (options->profile || options->profile_dir) {
        struct px_place place;
        return px_place_find(options, false, &place, NULL) < 0 ? 0 : fn(place.profile_dir, ctx);
    }
    struct dirent **names;
    if (ipython_dir(options, root) < 0)
        return 0;
    const int count = scandir(root, &names, is_profile, alphasort);
    int result = 0;
    for (int i = 0; i < count; i++) {
        char *dir = px_format("%s/%s", root, names[i]->d_name);
        if (result == 0)
            result = fn(dir, ctx);
        free(dir);
        free(names[i]);
    }
    if (count >= 0)
        free(names);
    return result;
}

static const char *id_of(const struct px_cluster *cluster)
{
    const json_t *part = json_object_get(cluster->file, "cluster");
    const char *id = json_string_value(json_object_get(part, "cluster_id"));
    return id ? id : "";
}

static int say_if_it_runs(const char *profile_dir, const char *path, void *ctx)
{
    struct px_cluster cluster;
    (void)profile_dir;
    (void)ctx;
    if (px_cluster_load(path, &cluster, NULL) < 0)
        return 0;
    if (px_cluster_runs(&cluster))
        fprintf(stderr, "pxcluster: there is one of %zu engine%s: --cluster-id='%s'\n",
                cluster.engine_count, cluster.engine_count == 1 ? "" : "s", id_of(&cluster));
    px_cluster_fini(&cluster);
    return 0;
}

void px_say_what_runs(const char *profile_dir)
{
    px_each_cluster_in(profile_dir, say_if_it_runs, NULL);
}

/* ---- showing ---- */

struct listing {
    const struct px_common_options *options;
    json_t *json; /* or NULL: print rows */
};

/* The profile's name when it lies in the IPython directory, else its path. */
static const char *label(const struct listing *listing, const char *dir)
{
    char root[PX_PATH_SIZE];
    if (ipython_dir(listing->options, root) < 0)
        return dir;
    const size_t size = strlen(root);
    if (strncmp(dir, root, size) == 0 && strncmp(dir + size, "/profile_", 9) == 0)
        return dir + size + 9;
    return dir;
}

static void show_row(const struct listing *listing, const char *dir,
                     const struct px_cluster *cluster)
{
    const char *id = id_of(cluster);
    const struct px_launcher_ops *ops = px_launcher_find(cluster->launcher);
    printf("%-16s %-32s %-7s %7zu %s\n", label(listing, dir), id[0] ? id : "''",
           cluster->controller ? "True" : "False", cluster->engine_count,
           ops ? ops->title : cluster->launcher);
}

static int show(const char *profile_dir, const char *path, void *ctx)
{
    struct listing *listing = ctx;
    struct px_cluster cluster;
    struct px_error err;
    if (px_cluster_load(path, &cluster, &err) < 0) {
        fprintf(stderr, "pxcluster list: %s\n", err.text);
        return 0;
    }
    if (listing->json)
        json_array_append(listing->json, cluster.file);
    else
        show_row(listing, profile_dir, &cluster);
    px_cluster_fini(&cluster);
    return 0;
}

static int show_profile(const char *profile_dir, void *ctx)
{
    return px_each_cluster_in(profile_dir, show, ctx);
}

int px_command_list(int argc, char **argv)
{
    struct list_options options = {.common = PX_COMMON_DEFAULTS, .format = "text"};
    const int first = px_options_main(&list_usage, argc, argv, &options);
    const bool as_json = strcmp(options.format, "json") == 0;
    if (first < argc) {
        fprintf(stderr, "pxcluster list: unexpected argument '%s'\n", argv[first]);
        return 2;
    }
    if (!as_json && strcmp(options.format, "text") != 0) {
        fprintf(stderr, "pxcluster list: --output: '%s' is neither text nor json\n",
                options.format);
        return 2;
    }
    px_log_init("pxcluster", (enum px_level)options.common.log_level);
    struct listing listing = {.options = &options.common, .json = as_json ? json_array() : NULL};
    if (!as_json)
        printf("%-16s %-32s %-7s %-7s %s\n", "PROFILE", "CLUSTER ID", "RUNNING", "ENGINES",
               "LAUNCHER");
    px_each_profile(&options.common, show_profile, &listing);
    if (as_json) {
        char *text = json_dumps(listing.json, JSON_ENSURE_ASCII);
        puts(text ? text : "[]");
        free(text);
        json_decref(listing.json);
    }
    return fflush(stdout) == 0 ? 0 : 1;
}
