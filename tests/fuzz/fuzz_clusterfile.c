/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A cluster file that anybody may have written: load it, ask what runs, save it again.
 * Loading looks at processes and signals none, so any pid may stand in it.
 */
#include "launch/launch.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char path[64];

static void remove_file(void)
{
    unlink(path);
}

static void make_file(void)
{
    strcpy(path, "/tmp/px-fuzz-XXXXXX");
    const int fd = mkstemp(path);
    if (fd < 0)
        abort();
    close(fd);
    atexit(remove_file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!path[0])
        make_file();
    struct px_cluster cluster;
    struct px_error err;
    const struct px_span text = {(const char *)data, size};
    if (px_file_write(path, 0600, text, &err) < 0)
        abort();
    if (px_cluster_load(path, &cluster, &err) < 0)
        return 0;
    (void)px_cluster_runs(&cluster);
    px_cluster_fini(&cluster);
    return 0;
}
