/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which host gets how many engines: --host and --hostfile, in mpiexec's forms
 *
 *     --host=HOST[:N][,...]        HOST may be user@host, and [...] around an IPv6 address
 *     a line of a file: HOST, HOST:N, HOST N or HOST slots=N; # starts a comment
 */
#include "launch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_HOSTS 10000
#define MAX_COUNT 4096 /* engines of one pxengine */
#define MAX_FILE (4u << 20)

void px_hosts_fini(struct px_host *hosts)
{
    for (struct px_host *host = hosts; host && host->name; host++)
        free(host->name);
    free(hosts);
}

static size_t count_of(const struct px_host *hosts)
{
    size_t count = 0;
    while (hosts && hosts[count].name)
        count++;
    return count;
}

/* 1 to MAX_COUNT, or -1. */
static int number(const char *text)
{
    char *end;
    const long value = strtol(text, &end, 10);
    return end == text || *end || value < 1 || value > MAX_COUNT ? -1 : (int)value;
}

/* The colon before a count; not one inside an IPv6 address. */
static char *count_colon(char *word)
{
    char *last = strrchr(word, ':'), *bracket = strchr(word, ']');
    if (!last || (bracket && last < bracket))
        return NULL;
    return bracket || strchr(word, ':') == last ? last : NULL;
}

/* What ssh would take for an option, or a shell for more than a word, is no host. */
static bool is_host(const char *name)
{
    return name[0] && name[0] != '-' && !name[strcspn(name, " \t\r\n'\"\\$`;&|<>(){}*?!#~/")];
}

/* `word` is cut up. */
static int add(struct px_host **hosts, char *word, int slots, struct px_error *err)
{
    char *colon = count_colon(word), whole[128];
    snprintf(whole, sizeof whole, "%s", word);
    if (colon) {
        *colon = 0;
        slots = number(colon + 1);
    }
    const size_t size = strlen(word);
    if (word[0] == '[' && word[size - 1] == ']') {
        word[size - 1] = 0;
        word++;
    }
    if (slots < 0)
        return px_fail(err, PX_EINVAL, "'%s': a host takes 1 to %d engines", whole, MAX_COUNT);
    if (!is_host(word))
        return px_fail(err, PX_EINVAL, "'%s' is not HOST or HOST:N", whole);
    const size_t count = count_of(*hosts);
    if (count >= MAX_HOSTS)
        return px_fail(err, PX_ELIMIT, "more than %d hosts", MAX_HOSTS);
    *hosts = px_realloc(*hosts, (count + 2) * sizeof **hosts);
    (*hosts)[count] = (struct px_host){px_strdup(word), slots};
    (*hosts)[count + 1] = (struct px_host){0};
    return 0;
}

int px_hosts_add(struct px_host **hosts, const char *list, struct px_error *err)
{
    char *copy = px_strdup(list), *rest = NULL;
    int result = 0;
    for (char *word = strtok_r(copy, ",", &rest); word && result == 0;
         word = strtok_r(NULL, ",", &rest))
        result = add(hosts, word, 0, err);
    free(copy);
    return result;
}

static int add_line(struct px_host **hosts, char *line, struct px_error *err)
{
    char *rest = NULL;
    line[strcspn(line, "#")] = 0;
    char *name = strtok_r(line, " \t\r", &rest), *slots = strtok_r(NULL, " \t\r", &rest);
    if (!name)
        return 0;
    if (slots && strncmp(slots, "slots=", 6) == 0)
        slots += 6;
    return add(hosts, name, slots ? number(slots) : 0, err);
}

int px_hosts_read(struct px_host **hosts, const char *path, struct px_error *err)
{
    struct px_buf text = {0};
    char *rest = NULL;
    int result = px_file_read(path, MAX_FILE, &text, err);
    for (char *line = result == 0 && text.size ? strtok_r(text.data, "\n", &rest) : NULL;
         line && result == 0; line = strtok_r(NULL, "\n", &rest))
        result = add_line(hosts, line, err);
    px_buf_fini(&text);
    return result;
}

/* Hosts without a count share what is left of n, the first ones one more. */
static void share(struct px_host *hosts, int left, int open_hosts)
{
    for (struct px_host *host = hosts; host->name; host++) {
        if (host->count)
            continue;
        host->count = (left + open_hosts - 1) / open_hosts;
        left -= host->count;
        open_hosts--;
    }
}

int px_hosts_share(struct px_host *hosts, int n, struct px_error *err)
{
    int fixed = 0, open_hosts = 0;
    for (struct px_host *host = hosts; host->name; host++) {
        fixed += host->count;
        open_hosts += host->count == 0;
    }
    if (n < 0)
        n = fixed + open_hosts;
    if (open_hosts == 0 && n > fixed)
        return px_fail(err, PX_EINVAL, "%d engines, but the hosts take %d", n, fixed);
    int left = n;
    for (struct px_host *host = hosts; host->name; host++) {
        if (host->count > left)
            host->count = open_hosts ? host->count : left;
        left -= host->count;
    }
    if (open_hosts && left < 0)
        return px_fail(err, PX_EINVAL, "%d engines, but hosts are to get %d", n, fixed);
    if (open_hosts)
        share(hosts, left, open_hosts);
    return n;
}
