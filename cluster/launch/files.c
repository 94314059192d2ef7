/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Waits for a controller's connection files, when it is not one that says that it is ready.
 *
 * ipcontroller writes the two in place, so a file can be there and not be whole: a file counts
 * when it parses. inotify tells when to look; nothing is polled.
 */
#define _GNU_SOURCE
#include "launch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

struct px_files {
    struct px_loop *loop;
    const struct px_place *place;
    int fd;
    struct px_watch *watch;
    struct px_timer *first_look;
    px_loop_fn *fn; /* NULL once called */
    void *ctx;
};

static bool is_whole(const char *path, enum px_role role)
{
    struct px_cluster_connection connection;
    if (px_cluster_connection_read(path, role, &connection, NULL) < 0)
        return false;
    px_cluster_connection_fini(&connection);
    return true;
}

static void look(struct px_files *files)
{
    if (!files->fn || !is_whole(files->place->client_file, PX_ROLE_CLIENT) ||
        !is_whole(files->place->engine_file, PX_ROLE_ENGINE))
        return;
    px_loop_unwatch(files->loop, files->watch);
    files->watch = NULL;
    px_loop_fn *fn = files->fn;
    files->fn = NULL;
    fn(files->loop, files->ctx);
}

static void on_change(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct px_files *files = ctx;
    char events[4096]; /* what changed does not matter: two files are looked at */
    if (read(files->fd, events, sizeof events) < 0 && errno != EAGAIN && errno != EINTR)
        px_log(PX_WARN, "inotify.read", "why=\"%s\"", strerror(errno));
    look(files);
}

/* With ipcontroller's --reuse the files are there before it starts. */
static void on_first_look(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct px_files *files = ctx;
    files->first_look = NULL;
    look(files);
}

struct px_files *px_files_wait(struct px_loop *loop, const struct px_place *place, px_loop_fn *fn,
                               void *ctx, struct px_error *err)
{
    struct px_files *files = px_alloc(sizeof *files);
    *files = (struct px_files){.loop = loop, .place = place, .fn = fn, .ctx = ctx};
    char *dir = px_format("%s/security", place->profile_dir);
    files->fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (files->fd < 0 || inotify_add_watch(files->fd, dir, IN_CLOSE_WRITE | IN_MOVED_TO) < 0) {
        px_fail(err, PX_EIO, "cannot watch %.200s: %s", dir, strerror(errno));
        px_files_destroy(files);
        files = NULL;
    } else {
        files->watch = px_loop_fd(loop, files->fd, on_change, files);
        files->first_look = px_loop_timer(loop, 0, 0, on_first_look, files);
    }
    free(dir);
    return files;
}

void px_files_destroy(struct px_files *files)
{
    if (!files)
        return;
    px_loop_unwatch(files->loop, files->watch);
    px_loop_cancel(files->loop, files->first_look);
    if (files->fd >= 0)
        close(files->fd);
    free(files);
}
