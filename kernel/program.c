/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * program: languages and places. Everything is found from the program's own file, so that an
 * installation can be moved as a whole.
 */
#include "program.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const struct px_interp_ops *const px_languages[] = {
    &px_interp_python,
    &px_interp_echo,
    NULL,
};

const struct px_interp_ops *px_language_find(const char *name, struct px_error *err)
{
    const struct px_interp_ops *found = name ? px_interp_find(px_languages, name) : px_languages[0];
    if (found)
        return found;
    struct px_buf names = {0};
    for (size_t i = 0; px_languages[i]; i++)
        px_buf_printf(&names, "%s%s", i ? ", " : "", px_languages[i]->name);
    px_fail(err, PX_EINVAL, "no language '%.60s'; there are: %s", name, names.data);
    px_buf_fini(&names);
    return NULL;
}

char *px_language_python(const struct px_interp_ops *ops, const char *python)
{
    struct px_error err;
    char *selected = ops->select ? ops->select(python, &err) : NULL;
    if (ops->select && !selected)
        px_die(1, "%s", err.text);
    return selected;
}

char *px_own_path(void)
{
    char path[PATH_MAX];
    const ssize_t size = readlink("/proc/self/exe", path, sizeof path - 1);
    return px_strndup(path, size > 0 ? (size_t)size : 0);
}

char *px_own_modules(void)
{
    static const char *const places[] = {PX_PYTHON_DIR, "python"}; /* installed; build tree */
    char *program = px_own_path();
    char *slash = strrchr(program, '/');
    if (slash)
        *slash = 0;
    char *found = NULL;
    for (size_t i = 0; slash && !found && i < PX_COUNT(places); i++) {
        char *package = px_format("%s/../%s/phalanx", program, places[i]);
        if (access(package, R_OK) == 0)
            found = px_format("%s/../%s", program, places[i]);
        free(package);
    }
    free(program);
    char *real = found ? realpath(found, NULL) : NULL;
    free(found);
    return real;
}
