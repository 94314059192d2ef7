/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What logs tell: their last lines, for people; a line that says why, for a message.
 */
#include "launch.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TAIL_BYTES 4096 /* of each log, in a report */
#define TAIL_LINES 15

void px_log_tail(const char *path, struct px_buf *out)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    const off_t size = lseek(fd, 0, SEEK_END);
    char bytes[TAIL_BYTES + 1];
    const off_t from = size > TAIL_BYTES ? size - TAIL_BYTES : 0;
    const ssize_t got = pread(fd, bytes, TAIL_BYTES, from);
    close(fd);
    if (got <= 0)
        return;
    bytes[got] = 0;
    const char *start = bytes + got;
    for (int lines = 0; start > bytes; start--)
        if (start[-1] == '\n' && start != bytes + got && ++lines == TAIL_LINES)
            break;
    px_buf_printf(out, "--- %s\n%s%s", path, start, bytes[got - 1] == '\n' ? "" : "\n");
}

bool px_log_says(const char *log, const char *text)
{
    char *line = NULL;
    size_t size = 0;
    bool found = false;
    FILE *file = fopen(log, "re");
    while (file && !found && getline(&line, &size, file) > 0)
        found = strstr(line, text) != NULL;
    free(line);
    if (file)
        fclose(file);
    return found;
}
