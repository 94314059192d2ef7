/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * bench_schedule: what the scheduling core alone costs a task, and how that grows with engines.
 *
 *     bench_schedule [scheme] [tasks]
 *
 * Half of the engines are busy all the time: each task that is submitted finds idle ones, and then
 * the task that has run longest is answered. Prints processor time in nanoseconds a task, by the
 * number of engines (columns) and by what the tasks ask for (rows).
 */
#include "schedule.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum ask { NOTHING, FEATURE, RETRY, TARGET, AFTER, ASKS };
static const char *const asks[ASKS] = {
    [NOTHING] = "any engine",
    [FEATURE] = "a feature that half of the engines have",
    [RETRY] = "any engine, and another after it failed",
    [TARGET] = "one of three engines",
    [AFTER] = "after the task before",
};

struct flight {
    long task;
    char engine[16];
};

struct bench {
    struct px_schedule *schedule;
    enum ask ask;
    int engines;
    struct flight *flights; /* ring: sent and not answered, in order */
    size_t size, first, count;
    long failed;
};

static void on_send(void *ctx, const char *msg_id, void *payload, const struct px_worker *to)
{
    struct bench *bench = ctx;
    struct flight *flight = &bench->flights[(bench->first + bench->count++) % bench->size];
    (void)payload;
    flight->task = atol(msg_id + 2);
    memcpy(flight->engine, to->uuid, to->uuid_size + 1);
}

static void on_fail(void *ctx, const char *msg_id, void *payload, enum px_why why,
                    const struct px_worker *on)
{
    struct bench *bench = ctx;
    (void)msg_id, (void)payload, (void)why, (void)on;
    bench->failed++;
}

static void on_release(void *ctx, void *payload)
{
    (void)ctx, (void)payload;
}

static const struct px_schedule_ops ops = {.send = on_send, .fail = on_fail, .release = on_release};

static void submit(struct bench *bench, long task)
{
    struct px_task_spec spec = {.needs = bench->ask == FEATURE ? PX_FEATURE_PICKLE5 : 0,
                                .retries = bench->ask == RETRY};
    char name[32], before[40];
    snprintf(name, sizeof(name), "t_%ld", task);
    if (bench->ask == TARGET) {
        spec.targets = px_alloc(3 * sizeof(char *));
        spec.target_count = 3;
        for (int i = 0; i < 3; i++)
            spec.targets[i] = px_format("e%ld", (task * 7919 + i * 104729) % bench->engines);
    }
    if (bench->ask == AFTER && task > 0) {
        snprintf(before, sizeof(before), "[\"t_%ld\"]", task - 1);
        if (px_depend_parse(px_span_of(before), &spec.after, NULL) != 0)
            px_die(1, "a dependency that is none");
    }
    px_schedule_submit(bench->schedule, px_span_of(name), &spec, NULL);
}

static void answer(struct bench *bench)
{
    struct flight flight = bench->flights[bench->first];
    char name[32];
    bench->first = (bench->first + 1) % bench->size;
    bench->count--;
    snprintf(name, sizeof(name), "t_%ld", flight.task);
    struct px_span id = px_span_of(name), engine = px_span_of(flight.engine);
    enum px_reply reply = bench->ask == RETRY ? PX_REPLY_ERROR : PX_REPLY_OK;
    if (px_schedule_reply(bench->schedule, engine, id, reply, -1) == PX_STALE)
        px_die(1, "an answer that nobody waits for");
    px_schedule_run(bench->schedule);
}

static double cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static double measure(const struct px_scheme *scheme, enum ask ask, int engines, long tasks)
{
    struct bench bench = {.ask = ask, .engines = engines, .size = (size_t)engines + 1};
    char name[16];
    bench.flights = px_alloc(bench.size * sizeof(*bench.flights));
    bench.schedule = px_schedule_create(&ops, &bench, scheme, 1, 1);
    for (int i = 0; i < engines; i++) {
        snprintf(name, sizeof(name), "e%d", i);
        if (!px_schedule_engine_up(bench.schedule, px_span_of(name),
                                   i % 2 ? PX_FEATURE_PICKLE5 : 0))
            px_die(1, "an engine twice");
    }
    size_t busy = ask == FEATURE ? (size_t)engines / 4 : (size_t)engines / 2;
    double start_ns = cpu_ns();
    for (long task = 0; task < tasks; task++) {
        submit(&bench, task);
        while (bench.count > busy)
            answer(&bench);
    }
    while (bench.count > 0)
        answer(&bench);
    double ns = (cpu_ns() - start_ns) / (double)tasks;
    px_schedule_destroy(bench.schedule);
    free(bench.flights);
    if (bench.failed > 0)
        px_die(1, "%ld tasks failed", bench.failed);
    return ns;
}

int main(int argc, char **argv)
{
    static const int sizes[] = {4, 100, 1000, 10000};
    const struct px_scheme *scheme = argc > 1 ? px_scheme_find(argv[1]) : px_scheme_at(0);
    long tasks = argc > 2 ? atol(argv[2]) : 100000;
    if (scheme == NULL || tasks < 1)
        px_die(2, "usage: bench_schedule [scheme] [tasks]");
    printf("%-40s", scheme->name);
    for (size_t i = 0; i < PX_COUNT(sizes); i++)
        printf(" %8d", sizes[i]);
    for (enum ask ask = 0; ask < ASKS; ask++) {
        printf("\n%-40s", asks[ask]);
        for (size_t i = 0; i < PX_COUNT(sizes); i++) {
            printf(" %8.0f", measure(scheme, ask, sizes[i], tasks));
            fflush(stdout);
        }
    }
    printf("\n");
    return 0;
}
