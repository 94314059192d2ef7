/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Estimates pi on the engines of a running cluster: each throws darts at a square.
 *
 *     cc pi.c $(pkg-config --cflags --libs phalanx) -o pi
 *     pxcluster start -n 4 --daemonize
 *     ./pi [darts]
 *
 * The engines are told a Python function once; then each task calls it by name.
 */
#include <phalanx.h>

#include <stdio.h>
#include <stdlib.h>

static const char hits[] =
    "def hits(darts, seed):\n"
    "    import random\n"
    "    throw = random.Random(seed).random\n"
    "    return sum(throw() ** 2 + throw() ** 2 < 1 for _ in range(darts))\n";

static void quit(const struct phalanx_error *err)
{
    fprintf(stderr, "pi: %s\n", err->text);
    exit(1);
}

/* Runs source code on every engine and waits for it. */
static void tell(phalanx_client *client, const char *code)
{
    struct phalanx_error err;
    struct phalanx_request request = {.type = PHALANX_EXECUTE, .code = code, .silent = true};
    phalanx_result *result = phalanx_submit(client, &request, &err);
    if (!result)
        quit(&err);
    phalanx_wait(result, PHALANX_REPLIES, -1);
    phalanx_result_free(result);
}

/* One task; appended to `result`. */
static void throw_darts(phalanx_result **result, phalanx_client *client, long darts, int seed)
{
    struct phalanx_error err;
    char args[64];
    snprintf(args, sizeof args, "[%ld, %d]", darts, seed);
    struct phalanx_request request = {
        .type = PHALANX_CALL, .route = PHALANX_BALANCED, .function = "hits", .args = args};
    if (!*result)
        *result = phalanx_submit(client, &request, &err);
    else if (phalanx_add(*result, &request, &err) != PHALANX_OK)
        quit(&err);
    if (!*result)
        quit(&err);
}

int main(int argc, char **argv)
{
    struct phalanx_error err;
    const long darts = argc > 1 ? atol(argv[1]) : 1000000;
    phalanx_client *client = phalanx_connect(NULL, &err);
    if (!client)
        quit(&err);
    const size_t engines = phalanx_engines(client, NULL, 0);
    if (engines == 0) {
        fputs("pi: the cluster has no engines\n", stderr);
        return 1;
    }
    tell(client, hits);

    const int tasks = (int)(4 * engines);
    phalanx_result *result = NULL;
    for (int seed = 0; seed < tasks; seed++)
        throw_darts(&result, client, darts / tasks, seed);

    long inside = 0;
    struct phalanx_event event;
    while (phalanx_next(result, -1, &event) == PHALANX_OK) {
        if (event.type != PHALANX_REPLY)
            continue;
        char *value = phalanx_value(&event, &err);
        if (!value)
            quit(&err);
        inside += atol(value);
        free(value);
    }
    printf("%zu engines, %d tasks: pi is about %.4f\n", engines, tasks,
           4.0 * (double)inside / (double)(darts / tasks * tasks));
    phalanx_result_free(result);
    phalanx_close(client);
    return 0;
}
