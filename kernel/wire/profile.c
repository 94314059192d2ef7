/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Files and profile directories: where ipyparallel puts things, we put them (apps/baseapp.py), so
 * that both worlds find each other's clusters.
 */
#define _GNU_SOURCE
#include "wire/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- whole files, and directories ---- */

int px_file_read(const char *path, size_t most, struct px_buf *out, struct px_error *err)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return px_fail(err, errno == ENOENT ? PX_ENOENT : PX_EIO, "cannot read %s: %s", path,
                       strerror(errno));
    char chunk[4096];
    ssize_t got;
    int result = 0;
    while ((got = read(fd, chunk, sizeof chunk)) != 0) {
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            result = px_fail(err, PX_EIO, "cannot read %s: %s", path, strerror(errno));
        else if (out->size + (size_t)got > most)
            result = px_fail(err, PX_ELIMIT, "%s is larger than %zu bytes", path, most);
        if (result < 0)
            break;
        px_buf_append(out, chunk, (size_t)got);
    }
    close(fd);
    return result;
}

int px_fd_write(int fd, struct px_span data)
{
    while (data.size > 0) {
        const ssize_t put = write(fd, data.data, data.size);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -1;
        data.data += put;
        data.size -= (size_t)put;
    }
    return 0;
}

/* That there is no room some file systems of other hosts say when the file is closed. */
static int fill_and_close(int fd, int mode, struct px_span data)
{
    const int filled = fchmod(fd, (mode_t)mode) < 0 ? -1 : px_fd_write(fd, data);
    const int why = errno;
    const int closed = close(fd);
    errno = filled < 0 ? why : errno;
    return filled < 0 ? filled : closed;
}

int px_file_write(const char *path, int mode, struct px_span data, struct px_error *err)
{
    char *temporary = px_format("%s.XXXXXX", path);
    const int fd = mkostemp(temporary, O_CLOEXEC);
    int result = 0;
    if (fd < 0)
        result = px_fail(err, PX_EIO, "cannot write %s: %s", path, strerror(errno));
    else if (fill_and_close(fd, mode, data) < 0 || rename(temporary, path) < 0) {
        result = px_fail(err, PX_EIO, "cannot write %s: %s", path, strerror(errno));
        unlink(temporary);
    }
    free(temporary);
    return result;
}

/* The parts above get no mode that lets others write, whatever umask says: who can change a
 * directory above the key's can put another key there. */
int px_dir_make(const char *path, int mode, struct px_error *err)
{
    char *part = px_strdup(path);
    int result = 0;
    for (char *slash = part + strspn(part, "/"); result == 0 && (slash = strchr(slash, '/'));
         *slash++ = '/') {
        *slash = 0;
        const int why = mkdir(part, 0755) < 0 ? errno : 0;
        if (why && why != EEXIST && access(part, F_OK) < 0)
            result = px_fail(err, PX_EIO, "cannot make %s: %s", part, strerror(why));
    }
    free(part);
    struct stat info;
    if (result == 0 && mkdir(path, (mode_t)mode) < 0 && errno != EEXIST)
        result = px_fail(err, PX_EIO, "cannot make %s: %s", path, strerror(errno));
    if (result == 0 && (stat(path, &info) < 0 || !S_ISDIR(info.st_mode)))
        result = px_fail(err, PX_EIO, "%s is not a directory", path);
    return result;
}

/* ---- profiles ---- */

static const char *given(const char *value, const char *variable)
{
    if (value && value[0])
        return value;
    value = getenv(variable);
    return value && value[0] ? value : NULL;
}

static const char *home(void)
{
    const char *dir = getenv("HOME");
    if (dir && dir[0])
        return dir;
    const struct passwd *user = getpwuid(getuid());
    return user ? user->pw_dir : "/";
}

static void choose(const struct px_profile_choice *choice, char out[PX_PATH_SIZE])
{
    const char *dir = choice->profile_dir;
    /* A profile named on the command line outweighs a directory from the environment. */
    if (!dir && !choice->profile && !choice->ipython_dir)
        dir = given(NULL, "IPP_PROFILE_DIR");
    if (dir) {
        snprintf(out, PX_PATH_SIZE, "%s", dir);
        return;
    }
    const char *name = choice->profile && choice->profile[0] ? choice->profile : "default";
    const char *root = given(choice->ipython_dir, "IPYTHONDIR");
    if (root)
        snprintf(out, PX_PATH_SIZE, "%s/profile_%s", root, name);
    else
        snprintf(out, PX_PATH_SIZE, "%s/.ipython/profile_%s", home(), name);
}

static int make_profile(const char *dir, struct px_error *err)
{
    static const struct {
        const char *name;
        int mode;
    } parts[] = {{"security", 0700}, {"pid", 0700}, {"log", 0700}, {"startup", 0755}};
    if (px_dir_make(dir, 0755, err) < 0)
        return -1;
    for (size_t i = 0; i < PX_COUNT(parts); i++) {
        char path[PX_PATH_SIZE + 16];
        snprintf(path, sizeof path, "%s/%s", dir, parts[i].name);
        if (px_dir_make(path, parts[i].mode, err) < 0)
            return -1;
        if (parts[i].mode == 0700 && chmod(path, 0700) < 0)
            return px_fail(err, PX_EIO, "cannot close %s to others: %s", path, strerror(errno));
    }
    return 0;
}

int px_profile_dir(const struct px_profile_choice *choice, bool create, char out[PX_PATH_SIZE],
                   struct px_error *err)
{
    choose(choice, out);
    if (strlen(out) > PX_PATH_SIZE - 256)
        return px_fail(err, PX_ELIMIT, "the profile directory's path is too long");
    struct px_error why;
    if (create)
        return make_profile(out, &why) == 0
                   ? 0
                   : px_fail(err, why.code,
                             "%.400s; IPYTHONDIR or --profile-dir=DIR names another place",
                             why.text);
    if (access(out, F_OK) < 0)
        return px_fail(err, PX_ENOENT, "no such profile: %s", out);
    return 0;
}

const char *px_profile_cluster_id(const struct px_profile_choice *choice)
{
    if (choice->cluster_id)
        return choice->cluster_id; /* "" on the command line means "" */
    const char *id = given(NULL, "IPP_CLUSTER_ID");
    return id ? id : "";
}

void px_profile_connection_file(const char *profile_dir, const char *cluster_id, enum px_role role,
                                char out[PX_PATH_SIZE])
{
    snprintf(out, PX_PATH_SIZE, "%s/security/ipcontroller%s%s-%s.json", profile_dir,
             cluster_id[0] ? "-" : "", cluster_id, role == PX_ROLE_CLIENT ? "client" : "engine");
}

void px_profile_cluster_file(const char *profile_dir, const char *cluster_id,
                             char out[PX_PATH_SIZE])
{
    snprintf(out, PX_PATH_SIZE, "%s/security/cluster-%s.json", profile_dir, cluster_id);
}
