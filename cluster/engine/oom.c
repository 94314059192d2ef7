/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * oom: was it the kernel, for want of memory?
 *
 * A process that the kernel kills so ends by SIGKILL like any other, and no status says why. Three
 * places tell, as far as they can be read:
 *
 *     /dev/kmsg                        names the process: certain
 *     memory.events, or version 1's    a count of this control group: it grew, and one of ours
 *     memory.oom_control                 was killed
 *     /proc/vmstat                     a count of the whole machine: the same, where the other two
 *                                        say nothing
 */
#define _GNU_SOURCE
#include "obituary.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST_RECORDS 20000 /* of the kernel's log, looked at */

/* The number behind `word` at the start of a line; -1 when there is none. */
static long number_in(const char *path, const char *word)
{
    char line[256];
    const size_t size = strlen(word);
    long number = -1;
    FILE *file = fopen(path, "re");
    while (file && number < 0 && fgets(line, sizeof line, file))
        if (strncmp(line, word, size) == 0 && line[size] == ' ')
            number = atol(line + size);
    if (file)
        fclose(file);
    return number;
}

/* `line` is "<n>:<controllers>:<path>" of /proc/self/cgroup. */
static long group_count(const char *line)
{
    static const struct {
        const char *prefix, *file;
        bool unified;
    } rows[] = {
        {"/sys/fs/cgroup", "memory.events", true},
        {"/sys/fs/cgroup/unified", "memory.events", true},
        {"/sys/fs/cgroup/memory", "memory.oom_control", false},
    };
    char controllers[200] = "", group[1000];
    const bool unified = strncmp(line, "0::", 3) == 0;
    if (unified ? sscanf(line, "0::%999[^\n]", group) != 1
                : sscanf(line, "%*d:%199[^:]:%999[^\n]", controllers, group) != 2)
        return -1;
    long count = -1;
    for (size_t i = 0; i < PX_COUNT(rows) && count < 0; i++) {
        if (rows[i].unified != unified || (!unified && !strstr(controllers, "memory")))
            continue;
        char *path = px_format("%s%s/%s", rows[i].prefix, group, rows[i].file);
        count = number_in(path, "oom_kill");
        free(path);
    }
    return count;
}

void px_oom_count(struct px_oom *out)
{
    char line[1300];
    *out = (struct px_oom){.group = -1, .system = number_in("/proc/vmstat", "oom_kill")};
    FILE *file = fopen("/proc/self/cgroup", "re");
    while (file && out->group < 0 && fgets(line, sizeof line, file))
        out->group = group_count(line);
    if (file)
        fclose(file);
}

/* 1: the kernel's log says so; 0: it does not; -1: it cannot be read. */
static int is_in_log(pid_t pid)
{
    char record[8192], words[64];
    const int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return -1;
    snprintf(words, sizeof words, "Killed process %ld ", (long)pid);
    int found = 0;
    for (int i = 0; i < MOST_RECORDS && !found; i++) {
        const ssize_t size = read(fd, record, sizeof record - 1);
        if (size < 0)
            break;
        record[size] = 0;
        found = strstr(record, words) != NULL;
    }
    close(fd);
    return found;
}

bool px_oom_killed(pid_t pid, const struct px_oom *before)
{
    struct px_oom now;
    px_oom_count(&now);
    if (before->group >= 0 && now.group > before->group)
        return true;
    if (before->system < 0 || now.system <= before->system)
        return false; /* nobody at all was killed: a number in the log is an older process's */
    const int logged = is_in_log(pid);
    return logged > 0 || (logged < 0 && before->group < 0);
}
