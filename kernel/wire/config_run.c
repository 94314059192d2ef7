/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * config_run: a configuration file that is a program, by the user's Python (config.py).
 */
#include "wire/wire.h"

#include <stdlib.h>

#define RUN_MS 20000
#define NO_TRAITLETS 3 /* exit status */

extern const char px_embedded_config[];

int px_config_run(const char *path, const char *python, struct px_buf *out, struct px_error *err)
{
    char *pythons[PX_PYTHONS], line[300];
    struct px_buf complaints = {0};
    struct px_error why = {0};
    int status = -1;
    bool next = true;
    const size_t count = px_pythons(python, pythons);
    for (size_t i = 0; i < count && next; i++) {
        char *const argv[] = {pythons[i], "-c", (char *)px_embedded_config, (char *)path, NULL};
        out->size = complaints.size = 0;
        status = px_run_program(argv, RUN_MS, out, &complaints, &why);
        const bool run = status >= 0 || (why.code != PX_ENOENT && why.code != PX_EIO);
        next = status == NO_TRAITLETS || !run;
    }
    px_last_line(complaints.size ? complaints.data : "", line, sizeof line);
    if (status == NO_TRAITLETS)
        px_fail(err, PX_EIO, "%s: %s has no traitlets to read it with", path, pythons[count - 1]);
    else if (status > 0)
        px_fail(err, PX_EINVAL, "%s: %s", path, line);
    else if (status < 0) /* no PX_ENOENT: it is Python that there may be none of, not the file */
        px_fail(err, why.code == PX_ENOENT ? PX_EIO : why.code, "%s: %s", path, why.text);
    for (size_t i = 0; i < count; i++)
        free(pythons[i]);
    px_buf_fini(&complaints);
    return status == 0 ? 0 : -1;
}
