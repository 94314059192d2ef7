/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A cluster file that anybody may have written: load it, ask what runs, save it again.
 * Loading looks at processes and signals none, so any pid may stand in it. What it would ask ssh,
 * squeue and qstat is answered here.
 */
#include "launch/launch.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char path[64];

/* In place of the library's: every second question finds nobody. */
int px_run_program(char *const *argv, int64_t timeout_ms, struct px_buf *out,
                   struct px_buf *complaints, struct px_error *err)
{
    static unsigned questions;
    (void)timeout_ms;
    px_buf_printf(out, "RUNNING (%zu)\n 7 \n", strlen(argv[0]));
    px_buf_text(out, "7 0.5 name user qw\n7\n    job_state = Q\n    comment = why");
    px_buf_text(complaints, "error: Invalid job id specified\n");
    return questions++ % 2 ? px_fail(err, PX_EIO, "nobody is there") : 0;
}

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
