/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Programs that this one starts, and which interpreter that may be.
 */
#define _GNU_SOURCE
#include "base/base.h"

#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int px_spawn(pid_t *pid, char *const argv[], const int fds[3])
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attributes;
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawn_file_actions_init(&files);
    for (int i = 0; i < 3; i++)
        if (fds[i] >= 0)
            posix_spawn_file_actions_adddup2(&files, fds[i], i);
    posix_spawn_file_actions_addclosefrom_np(&files, STDERR_FILENO + 1); /* what others left open */
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(&attributes,
                             POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    const int why = posix_spawnp(pid, argv[0], &files, &attributes, argv, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
    return why;
}

/* The interpreter of an environment that this program is in, or that is active; that which was
 * there when this was built; any. */
size_t px_pythons(const char *named, char *out[PX_PYTHONS])
{
    size_t count = 0;
    static const char *const places[] = {"VIRTUAL_ENV", "CONDA_PREFIX"};
    char own[512] = "";
    if (named) {
        out[count++] = px_strdup(named);
        return count;
    }
    if (readlink("/proc/self/exe", own, sizeof own - 1) > 0)
        out[count++] = px_format("%.*s/python", (int)(strrchr(own, '/') - own), own);
    for (size_t i = 0; i < PX_COUNT(places); i++)
        if (getenv(places[i]))
            out[count++] = px_format("%s/bin/python", getenv(places[i]));
    out[count++] = px_strdup(PX_PYTHON_DEFAULT);
    out[count++] = px_strdup("python3");
    return count;
}
