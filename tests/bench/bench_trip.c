/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * bench_trip: the round trip of a call from C, by libphalanx.
 *
 *     bench_trip CLIENT_FILE [calls]
 *
 * CLIENT_FILE is that of a running cluster. Prints the median of so many calls of dict(), one after
 * the other, in microseconds: to one engine, and to whichever is free.
 */
#include "client/phalanx.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static void quit(const char *why)
{
    fprintf(stderr, "bench_trip: %s\n", why);
    exit(1);
}

static double now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static void call(phalanx_client *client, enum phalanx_route route, int engine)
{
    struct phalanx_error err;
    struct phalanx_event event = {.failed = true};
    const struct phalanx_request request = {.type = PHALANX_CALL,
                                            .route = route,
                                            .function = "builtins:dict",
                                            .targets = route == PHALANX_DIRECT ? &engine : NULL,
                                            .target_count = 1};
    phalanx_result *result = phalanx_submit(client, &request, &err);
    if (!result)
        quit(err.text);
    while (phalanx_next(result, 10000, &event) == PHALANX_OK && event.type != PHALANX_REPLY)
        continue;
    if (event.failed)
        quit("a call failed");
    phalanx_result_free(result);
}

static int compare(const void *a, const void *b)
{
    const double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static double median_us(phalanx_client *client, enum phalanx_route route, int engine, size_t calls)
{
    double *taken = calloc(calls, sizeof *taken);
    if (!taken)
        quit("out of memory");
    for (size_t i = 0; i < calls / 10; i++)
        call(client, route, engine);
    for (size_t i = 0; i < calls; i++) {
        const double begun = now_us();
        call(client, route, engine);
        taken[i] = now_us() - begun;
    }
    qsort(taken, calls, sizeof *taken, compare);
    const double median = taken[calls / 2];
    free(taken);
    return median;
}

int main(int argc, char **argv)
{
    struct phalanx_error err;
    if (argc < 2)
        quit("usage: bench_trip CLIENT_FILE [calls]");
    const struct phalanx_options options = {.file = argv[1]};
    const size_t calls = argc > 2 ? strtoul(argv[2], NULL, 10) : 2000;
    phalanx_client *client = phalanx_connect(&options, &err);
    int engine;
    if (!client)
        quit(err.text);
    if (!calls || !phalanx_engines(client, &engine, 1))
        quit("no calls, or no engines");
    printf("direct %.0f us\n", median_us(client, PHALANX_DIRECT, engine, calls));
    printf("balanced %.0f us\n", median_us(client, PHALANX_BALANCED, engine, calls));
    phalanx_close(client);
    return 0;
}
