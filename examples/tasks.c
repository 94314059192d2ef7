/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Farms tasks out to the engines of a running cluster and collects them as they end.
 *
 *     cc tasks.c $(pkg-config --cflags --libs phalanx) -o tasks
 *     ./tasks
 *
 * Eight calls go to whichever engine is free. One of them sleeps, so it ends last; one fails,
 * and is told apart. What tasks print arrives in between, as it is written.
 */
#include <phalanx.h>

#include <stdio.h>
#include <stdlib.h>

static const char work[] = "import time\n"
                           "def work(n, seconds):\n"
                           "    time.sleep(seconds)\n"
                           "    print('task', n, 'works')\n"
                           "    return {'n': n, 'square': n * n} if n != 5 else 1 / 0\n";

enum { TASKS = 8 };

static void quit(const struct phalanx_error *err)
{
    fprintf(stderr, "tasks: %s\n", err->text);
    exit(1);
}

static phalanx_result *farm_out(phalanx_client *client)
{
    struct phalanx_error err;
    phalanx_result *result = NULL;
    for (int n = 0; n < TASKS; n++) {
        char args[64];
        snprintf(args, sizeof args, "[%d, %s]", n, n == 0 ? "1.5" : "0.01");
        struct phalanx_request request = {
            .type = PHALANX_CALL, .route = PHALANX_BALANCED, .function = "work", .args = args};
        if (!result)
            result = phalanx_submit(client, &request, &err);
        else if (phalanx_add(result, &request, &err) != PHALANX_OK)
            quit(&err);
        if (!result)
            quit(&err);
    }
    return result;
}

static void show(const struct phalanx_event *event)
{
    struct phalanx_error err;
    if (event->type == PHALANX_STREAM) {
        printf("[%s of %d] %s", event->name, event->engine, event->text);
    } else if (event->type == PHALANX_REPLY) {
        char *value = phalanx_value(event, &err);
        printf("task %zu on engine %d: %s\n", event->task, event->engine, value ? value : err.text);
        free(value);
    }
}

int main(void)
{
    struct phalanx_error err;
    phalanx_client *client = phalanx_connect(NULL, &err);
    if (!client)
        quit(&err);
    if (phalanx_wait_engines(client, 1, 10000) != PHALANX_OK) {
        fputs("tasks: no engine has registered\n", stderr);
        return 1;
    }
    struct phalanx_request define = {.type = PHALANX_EXECUTE, .code = work, .silent = true};
    phalanx_result *result = phalanx_submit(client, &define, &err);
    if (!result)
        quit(&err);
    phalanx_wait(result, PHALANX_REPLIES, -1);
    phalanx_result_free(result);

    result = farm_out(client);
    struct phalanx_event event;
    while (phalanx_next(result, -1, &event) == PHALANX_OK)
        show(&event);
    printf("%zu of %d tasks have ended\n", phalanx_finished(result), (int)TASKS);
    phalanx_result_free(result);
    phalanx_close(client);
    return 0;
}
