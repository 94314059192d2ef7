/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What other processes say, a line each: whole lines out of what was read, and what a fork server's
 * mean, whichever host it is on.
 *
 *     started <pid>             an engine: it is to register
 *     registered <id> <pid>     an engine
 *     exited <pid> <why>        an engine
 */
#include "launch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST (16u << 20) /* of a line; what is beyond is cut off */

void px_lines_take(struct px_buf *rest, const char *bytes, size_t size, px_line_fn *fn, void *ctx)
{
    while (size > 0) {
        const char *end = memchr(bytes, '\n', size);
        const size_t part = end ? (size_t)(end - bytes) : size, room = MOST - rest->size;
        px_buf_append(rest, bytes, part < room ? part : room);
        if (end) {
            fn(ctx, rest->data);
            px_buf_clear(rest);
        }
        bytes += part + (end != NULL);
        size -= part + (end != NULL);
    }
}

int px_lines_read(int fd, struct px_buf *rest, px_line_fn *fn, void *ctx)
{
    char bytes[16384];
    const ssize_t size = read(fd, bytes, sizeof bytes);
    if (size <= 0)
        return size < 0 && (errno == EINTR || errno == EAGAIN) ? 0 : -1;
    px_lines_take(rest, bytes, (size_t)size, fn, ctx);
    return 1;
}

/* The word, then a number of at least `least`; moves *line behind them and the blanks after. */
static bool take(const char **line, const char *word, long least, long *out)
{
    const size_t size = strlen(word);
    char *end;
    if (strncmp(*line, word, size) != 0)
        return false;
    errno = 0;
    *out = strtol(*line + size, &end, 10);
    if (end == *line + size || errno || *out < least || *out > INT32_MAX)
        return false;
    *line = end + strspn(end, " ");
    return true;
}

struct px_report px_report_read(const char *line)
{
    struct px_report report = {.kind = PX_REPORT_NONE};
    long id = 0, pid = 0;
    if (take(&line, "started ", 2, &pid))
        report.kind = PX_REPORT_STARTED;
    else if (take(&line, "registered ", 0, &id) && take(&line, "", 2, &pid))
        report.kind = PX_REPORT_REGISTERED;
    else if (take(&line, "exited ", 2, &pid))
        report.kind = PX_REPORT_EXITED;
    report.id = (int)id;
    report.pid = (pid_t)pid;
    report.why = line;
    return report;
}
