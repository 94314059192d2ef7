/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * select: which Python a kernel or engine becomes.
 *
 * The one that is named; else that of the environment in whose bin/ this program lies; else that of
 * the active one ($VIRTUAL_ENV, $CONDA_PREFIX); else the one this program was built with. The
 * library that is linked in has one minor version, and extension modules fit only that one, so a
 * candidate must have it too: a named one that has not is an error, any other is passed over with a
 * line in the log.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "python.h"

/* "version = 3.11.2" or "version_info = 3.11.2.final.0" of an environment's pyvenv.cfg. */
static bool version_of_environment(const char *python, int *major, int *minor)
{
    bool found = false;
    const char *slash = strrchr(python, '/');
    char *path = px_format("%.*s/../pyvenv.cfg", (int)(slash - python), python);
    FILE *file = fopen(path, "re");
    free(path);
    if (!file)
        return false;
    char line[PATH_MAX];
    while (!found && fgets(line, sizeof line, file))
        found = sscanf(line, "version = %d.%d", major, minor) == 2 ||
                sscanf(line, "version_info = %d.%d", major, minor) == 2;
    fclose(file);
    return found;
}

/* The program's own name often says it: /usr/bin/python3 is a link to python3.11. */
static bool version_of_name(const char *python, int *major, int *minor)
{
    char real[PATH_MAX];
    char end;
    if (!realpath(python, real))
        return false;
    return sscanf(strrchr(real, '/'), "/python%d.%d%c", major, minor, &end) == 2;
}

static bool version_by_asking(const char *python, int *major, int *minor)
{
    char *quoted = px_alloc(4 * strlen(python) + 1);
    char *out = quoted;
    for (const char *in = python; *in; in++)
        out = *in == '\'' ? stpcpy(out, "'\\''") : (*out = *in, out + 1);
    char *command =
        px_format("'%s' -SEc 'import sys; print(*sys.version_info[:2])' 2>/dev/null", quoted);
    free(quoted);
    FILE *pipe = popen(command, "re");
    free(command);
    if (!pipe)
        return false;
    bool found = fscanf(pipe, "%d %d", major, minor) == 2;
    return pclose(pipe) == 0 && found;
}

static int check(const char *python, struct px_error *err)
{
    int major = 0, minor = 0;
    if (access(python, X_OK) != 0)
        return px_fail(err, PX_ENOENT, "%s: no Python to run there: %s", python, strerror(errno));
    if (!version_of_environment(python, &major, &minor) &&
        !version_of_name(python, &major, &minor) && !version_by_asking(python, &major, &minor))
        return px_fail(err, PX_EINVAL, "%s: not a Python interpreter", python);
    if (major != PY_MAJOR_VERSION || minor != PY_MINOR_VERSION)
        return px_fail(err, PX_EINVAL, "%s: is Python %d.%d, but this program was built for %d.%d",
                       python, major, minor, PY_MAJOR_VERSION, PY_MINOR_VERSION);
    return 0;
}

/* A name without a slash is looked up on PATH, as a shell would. */
static char *find(const char *wanted)
{
    if (strchr(wanted, '/'))
        return wanted[0] == '/' ? px_strdup(wanted) : NULL;
    const char *path = getenv("PATH");
    for (const char *dir = path ? path : ""; *dir;) {
        size_t size = strcspn(dir, ":");
        char *candidate = px_format("%.*s/%s", (int)size, dir, wanted);
        if (size > 0 && dir[0] == '/' && access(candidate, X_OK) == 0)
            return candidate;
        free(candidate);
        dir += size + (dir[size] == ':');
    }
    return NULL;
}

static char *absolute(const char *wanted)
{
    char *found = find(wanted);
    if (found)
        return found;
    char here[PATH_MAX];
    return getcwd(here, sizeof here) ? px_format("%s/%s", here, wanted) : px_strdup(wanted);
}

static char *of_environment(const char *prefix, const char *whose)
{
    struct px_error err;
    if (!prefix || prefix[0] != '/')
        return NULL;
    char *python = px_format("%s/bin/python", prefix);
    if (check(python, &err) == 0)
        return python;
    px_log(PX_WARN, "environment-ignored", "whose=\"%s\" why=\"%s\"", whose, err.text);
    free(python);
    return NULL;
}

/* /usr of /usr/bin/python3; empties the path where it has no such. */
static char *prefix_of(char *python)
{
    for (int i = 0; i < 2; i++) {
        char *slash = strrchr(python, '/');
        python[slash ? slash - python : 0] = 0;
    }
    return python;
}

static bool is_environment(const char *prefix)
{
    char *venv = px_format("%s/pyvenv.cfg", prefix);
    char *conda = px_format("%s/conda-meta", prefix);
    const bool found = access(venv, F_OK) == 0 || access(conda, F_OK) == 0;
    free(venv);
    free(conda);
    return found;
}

static char *of_own_place(void)
{
    char path[PATH_MAX] = "";
    if (readlink("/proc/self/exe", path, sizeof path - 1) <= 0 || !is_environment(prefix_of(path)))
        return NULL;
    return of_environment(path, "this program");
}

char *px_python_select(const char *wanted, struct px_error *err)
{
    char *python = wanted ? absolute(wanted) : NULL;
    if (!python)
        python = of_own_place();
    if (!python)
        python = of_environment(getenv("VIRTUAL_ENV"), "VIRTUAL_ENV");
    if (!python)
        python = of_environment(getenv("CONDA_PREFIX"), "CONDA_PREFIX");
    if (!python)
        python = px_strdup(PX_PYTHON_DEFAULT);
    if (check(python, err) == 0)
        return python;
    free(python);
    return NULL;
}

/* ---- the debugger ---- */

#define OWN "lib/python" PX_TEXT(PY_MAJOR_VERSION) "." PX_TEXT(PY_MINOR_VERSION)

static bool has_debugpy(const char *dir, size_t size, const char *below)
{
    char *path = px_format("%.*s/%s/debugpy/__init__.py", (int)size, dir, below);
    const bool there = access(path, R_OK) == 0;
    free(path);
    return there;
}

/* In what is installed under a prefix. */
static bool is_under(const char *prefix)
{
    static const char *const places[] = {OWN "/site-packages", OWN "/dist-packages",
                                         "lib/python3/dist-packages",
                                         "local/" OWN "/dist-packages"};
    for (size_t i = 0; prefix && i < PX_COUNT(places); i++)
        if (has_debugpy(prefix, strlen(prefix), places[i]))
            return true;
    return false;
}

static bool is_on_pythonpath(void)
{
    const char *path = getenv("PYTHONPATH");
    for (const char *dir = path ? path : ""; *dir;) {
        const size_t size = strcspn(dir, ":");
        if (size > 0 && has_debugpy(dir, size, "."))
            return true;
        dir += size + (dir[size] == ':');
    }
    return false;
}

/* Whether it is of an environment that does not see what is installed outside. */
static bool is_isolated(const char *prefix)
{
    char *path = px_format("%s/pyvenv.cfg", prefix);
    FILE *file = fopen(path, "re");
    free(path);
    if (!file)
        return false;
    char line[PATH_MAX];
    bool sees = false;
    while (!sees && fgets(line, sizeof line, file))
        sees = strncmp(line, "include-system-site-packages = true", 35) == 0;
    fclose(file);
    return !sees;
}

bool px_python_debugs(const char *python)
{
    char real[PATH_MAX] = "";
    const char *home = getenv("HOME");
    char *users = px_format("%s/.local", home ? home : "");
    const bool resolved = realpath(python, real) != NULL;
    char *prefix = px_strdup(python);
    prefix_of(prefix);
    bool found = is_on_pythonpath() || is_under(prefix);
    if (!found && !is_isolated(prefix))
        found = (resolved && is_under(prefix_of(real))) || is_under(users);
    free(users);
    free(prefix);
    return found;
}
