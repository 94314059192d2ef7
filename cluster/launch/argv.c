/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Command lines of controllers and engines, and the names of their logs.
 *
 * Programs get what ipyparallel's launchers give theirs, so that any of the four fits; our two,
 * known by their names, get --ready-fd and, for engines, -n as well.
 */
#include "launch.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wordexp.h>

/* Whether a command is one of our two programs, which know --ready-fd and -n. */
static bool is_ours(const char *program)
{
    const char *slash = strrchr(program, '/');
    const char *base = slash ? slash + 1 : program;
    return strcmp(base, "pxcontroller") == 0 || strcmp(base, "pxengine") == 0;
}

void px_argv_add_new(struct px_argv *argv, char *item)
{
    argv->items = px_realloc(argv->items, (argv->count + 2) * sizeof *argv->items);
    argv->items[argv->count++] = item;
    argv->items[argv->count] = NULL;
}

void px_argv_add(struct px_argv *argv, const char *item)
{
    px_argv_add_new(argv, px_strdup(item));
}

void px_argv_add_all(struct px_argv *argv, const char *const *items)
{
    for (; items && *items; items++)
        px_argv_add(argv, *items);
}

void px_argv_fini(struct px_argv *argv)
{
    for (size_t i = 0; i < argv->count; i++)
        free(argv->items[i]);
    free(argv->items);
}

int px_argv_split(struct px_argv *argv, const char *command, struct px_error *err)
{
    wordexp_t words;
    if (wordexp(command, &words, WRDE_NOCMD | WRDE_UNDEF) != 0)
        return px_fail(err, PX_EINVAL, "'%.200s' is not a command", command);
    const size_t count = words.we_wordc;
    for (size_t i = 0; i < count; i++)
        px_argv_add(argv, words.we_wordv[i]);
    wordfree(&words);
    return count > 0 ? 0 : px_fail(err, PX_EINVAL, "'%.200s' is not a command", command);
}

void px_argv_quote(struct px_buf *out, const char *word)
{
    px_buf_text(out, out->size ? " '" : "'");
    for (const char *at = word; *at; at++) {
        if (*at == '\'')
            px_buf_text(out, "'\\''");
        else
            px_buf_append(out, at, 1);
    }
    px_buf_text(out, "'");
}

int px_argv_program(struct px_argv *argv, const struct px_set_spec *spec, struct px_error *err)
{
    static const char *const programs[] = {
        [PX_CONTROLLER_SET] = "pxcontroller", [PX_ENGINE_SET] = "pxengine"};
    if (spec->command)
        return px_argv_split(argv, spec->command, err);
    px_argv_add_new(argv, px_program_path(programs[spec->kind]));
    return 0;
}

void px_argv_options(struct px_argv *argv, const struct px_set_spec *spec, int ready_fd)
{
    px_argv_add(argv, "--cluster-id");
    px_argv_add(argv, spec->place->cluster_id);
    if (spec->kind == PX_ENGINE_SET || spec->log_level != PX_INFO)
        px_argv_add_new(argv, px_format("--log-level=%d", spec->log_level));
    if (ready_fd >= 0)
        px_argv_add_new(argv, px_format("--ready-fd=%d", ready_fd));
    if (ready_fd >= 0 && spec->kind == PX_ENGINE_SET)
        px_argv_add_new(argv, px_format("-n%d", spec->count));
    px_argv_add_all(argv, spec->args);
}

int px_argv_build(struct px_argv *argv, const struct px_set_spec *spec, int ready_fd,
                  struct px_error *err)
{
    if (px_argv_program(argv, spec, err) < 0)
        return -1;
    px_argv_add(argv, "--profile-dir");
    px_argv_add(argv, spec->place->profile_dir);
    px_argv_options(argv, spec, ready_fd);
    return 0;
}

char *px_set_log_path(const struct px_set_spec *spec, int index)
{
    const struct px_place *place = spec->place;
    if (spec->kind == PX_CONTROLLER_SET)
        return px_format("%s/log/ipcontroller%s%s-%ld.log", place->profile_dir,
                         place->cluster_id[0] ? "-" : "", place->cluster_id, (long)getpid());
    if (index < 0)
        return px_format("%s/log/ipengine-%s-%s.log", place->profile_dir, place->cluster_id,
                         spec->set_id);
    return px_format("%s/log/ipengine-%s-%s-%d.log", place->profile_dir, place->cluster_id,
                     spec->set_id, index);
}

bool px_command_is_ours(const char *command)
{
    struct px_argv argv = {0};
    const bool ours =
        !command || (px_argv_split(&argv, command, NULL) == 0 && is_ours(argv.items[0]));
    px_argv_fini(&argv);
    return ours;
}
