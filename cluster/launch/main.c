/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pxcluster: start, stop and list clusters. One row a command.
 */
#include "launch.h"

#include <stdio.h>
#include <string.h>

static const struct command {
    const char *name, *about;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"start", "start a controller and engines", px_command_start},
    {"stop", "stop clusters", px_command_stop},
    {"list", "list clusters", px_command_list},
    {"status", "show engines, tasks and sockets of a running cluster", px_command_status},
    {"engines", "start more engines for a running cluster", px_command_engines},
    {"clean", "remove logs and files that clusters have left", px_command_clean},
};

static int help(FILE *out)
{
    fprintf(out, "Usage: pxcluster COMMAND [options]\n\n"
                 "Runs clusters of one controller, on this host, and many engines.\n\nCommands:\n");
    for (size_t i = 0; i < PX_COUNT(commands); i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].about);
    fprintf(out, "\nEach command has a --help of its own.\n"
                 "Exit status: 0 done, 1 failed, 2 misused, 10 running already, 11 not running,\n"
                 "12 no cluster to join.\n\n"
                 "Examples:\n  pxcluster start -n 4 --daemonize\n  pxcluster stop\n");
    return 0;
}

static int unknown(const char *word)
{
    const char *names[PX_COUNT(commands) + 1] = {0};
    for (size_t i = 0; i < PX_COUNT(commands); i++)
        names[i] = commands[i].name;
    const char *near = px_nearest(word, names);
    fprintf(stderr, "pxcluster: there is no command '%s'%s%s%s\n", word,
            near ? ": did you mean '" : ": see pxcluster --help", near ? near : "",
            near ? "'?" : "");
    return 2;
}

int main(int argc, char **argv)
{
    px_program_begin();
    if (argc < 2) {
        help(stderr);
        return 2;
    }
    for (size_t i = 0; i < PX_COUNT(commands); i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
        return help(stdout);
    if (strcmp(argv[1], "--version") == 0) {
        printf("pxcluster %s\n", PX_VERSION);
        return 0;
    }
    return unknown(argv[1]);
}
