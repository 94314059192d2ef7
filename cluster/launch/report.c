/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a supervisor tells: to its stderr, which is a log in the background, and to whoever waits
 * for it to start the cluster.
 */
#define _GNU_SOURCE
#include "supervisor.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void px_sv_say(struct supervisor *sv, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    char *line = px_format("pxcluster: %s\n", text);
    fputs(line, stderr);
    if (sv->channel >= 0)
        px_background_say(sv->channel, line);
    free(line);
}

void px_sv_tell_tail(struct supervisor *sv, const struct px_set *set)
{
    struct px_buf tail = {0};
    if (set)
        set->ops->tail(set, &tail);
    if (tail.size) {
        fputs(tail.data, stderr);
        if (sv->channel >= 0)
            px_background_say(sv->channel, tail.data);
    }
    px_buf_fini(&tail);
}

void px_sv_close_channel(struct supervisor *sv, int status)
{
    if (sv->channel < 0)
        return;
    px_loop_unwatch(sv->loop, sv->channel_watch);
    sv->channel_watch = NULL;
    px_background_done(sv->channel, status);
    sv->channel = -1;
}

/* Engines that are there: they say so themselves, where they can, and a client sees them. */
int px_sv_present(const struct supervisor *sv)
{
    return sv->speaks && sv->registered < sv->seen ? sv->registered : sv->seen;
}

void px_sv_tell_why(struct supervisor *sv, const char *why)
{
    if (sv->phase == STARTING && sv->speaks && sv->plan->n > 0)
        px_sv_say(sv, "%s (%d of %d engines had registered)", why, sv->registered, sv->plan->n);
    else
        px_sv_say(sv, "%s", why);
}

/* A line for each engine that has not registered. */
void px_sv_tell_missing(struct supervisor *sv)
{
    struct px_buf missing = {0};
    char *rest = NULL;
    if (sv->engines)
        sv->engines->ops->missing(sv->engines, &missing);
    for (char *line = missing.size ? strtok_r(missing.data, "\n", &rest) : NULL; line;
         line = strtok_r(NULL, "\n", &rest))
        px_sv_say(sv, "%s", line);
    px_buf_fini(&missing);
}

void px_sv_tell_ready(struct supervisor *sv, int count)
{
    const struct px_plan *plan = sv->plan;
    const double seconds = (double)(px_now_ms() - sv->begun_ms) / 1000;
    const int lost = sv->engines ? sv->engines->lost : 0;
    if (plan->ready_fd >= 0) {
        dprintf(plan->ready_fd, "ready %d\n", count);
        close(plan->ready_fd);
    }
    if (plan->log_level > PX_INFO)
        return;
    if (count >= plan->n)
        px_sv_say(sv, "%d engine%s ready in %.2f s: %s", plan->n, plan->n == 1 ? "" : "s", seconds,
                  sv->place->client_file);
    else
        px_sv_say(sv, "%d of %d engines ready in %.2f s%s: %s", count, plan->n, seconds,
                  count + lost < plan->n ? "; others join as they start" : "",
                  sv->place->client_file);
    if (plan->adapt.most > 0 && !sv->steady)
        px_sv_say(sv, "engines start while tasks wait, %d at most; they end after %lld s without",
                  plan->adapt.most, (long long)(plan->adapt.idle_ms / 1000));
    if (sv->channel < 0 && !plan->stop_on_eof && isatty(STDERR_FILENO))
        px_sv_say(sv, "Ctrl-C stops the cluster");
}
