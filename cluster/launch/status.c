/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pxcluster status: what a running controller says about itself, as tables or as JSON. It works
 * with any pxcontroller that the connection file names, on whatever host it runs.
 */
#include "launch.h"

#include "client/phalanx.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct status_options {
    struct px_common_options common;
    int json;
    double timeout_s;
};

static const struct px_option status_rows[] = {
    {"json", 0, PX_OPT_SET, offsetof(struct status_options, json), 1, NULL,
     "the whole reply of the controller, as one JSON object", 0, 0},
    {"timeout", 0, PX_OPT_DOUBLE, offsetof(struct status_options, timeout_s), 0, "SECONDS",
     "how long the controller may take to answer (default: 10)", 0, 0},
    PX_COMMON_ROWS(struct status_options, common),
    {0},
};

static const struct px_usage status_usage = {
    .program = "pxcluster status",
    .synopsis = "[options]",
    .about = "Shows engines, queues, tasks, memory and sockets of a running controller.",
    .examples = "  pxcluster status\n"
                "  pxcluster status --profile=lab --json\n",
    .options = status_rows,
};

/* ---- as text --------------------------------------------------------------- */

static long long number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_real(value) ? (long long)json_real_value(value)
                               : (long long)json_integer_value(value);
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "-";
}

/* Two units at most: "3 d 4 h", "5 min 2 s", "0 s". */
static const char *duration(long long seconds, char out[32])
{
    if (seconds >= 86400)
        snprintf(out, 32, "%lld d %lld h", seconds / 86400, seconds % 86400 / 3600);
    else if (seconds >= 3600)
        snprintf(out, 32, "%lld h %lld min", seconds / 3600, seconds % 3600 / 60);
    else if (seconds >= 60)
        snprintf(out, 32, "%lld min %lld s", seconds / 60, seconds % 60);
    else
        snprintf(out, 32, "%lld s", seconds);
    return out;
}

static const char *size_of(long long bytes, char out[32])
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 999.5 && unit + 1 < PX_COUNT(units)) {
        value /= 1000;
        unit++;
    }
    snprintf(out, 32, unit == 0 || value >= 99.95 ? "%.0f %s" : "%.1f %s", value, units[unit]);
    return out;
}

static void print_head(const json_t *status)
{
    char uptime[32], memory[32], records[32];
    const json_t *tasks = json_object_get(status, "tasks");
    const json_t *database = json_object_get(status, "database");
    printf("controller  pid %lld, version %s, up %s, scheme %s, %s%s\n", number(status, "pid"),
           text_of(status, "version"), duration(number(status, "uptime_s"), uptime),
           text_of(status, "scheme"),
           size_of(number(json_object_get(status, "memory"), "resident_bytes"), memory),
           json_is_true(json_object_get(status, "curve")) ? ", encrypted" : "");
    printf("tasks       %lld blocked, %lld waiting, %lld running, %lld succeeded, %lld failed "
           "(%lld with their engine), %lld direct\n",
           number(tasks, "blocked"), number(tasks, "waiting"), number(tasks, "running"),
           number(tasks, "succeeded"), number(tasks, "failed"), number(tasks, "engine_died"),
           number(tasks, "direct"));
    printf("database    %s, %lld records in memory, %s\n", text_of(database, "kind"),
           number(database, "records"), size_of(number(database, "bytes"), records));
}

static void print_engines(const json_t *status)
{
    size_t i;
    json_t *engine;
    const json_t *engines = json_object_get(status, "engines");
    printf("engines     %zu, registering %lld\n", json_array_size(engines),
           number(status, "registering"));
    if (json_array_size(engines) > 0)
        printf("\n%6s  %-20s %8s %8s %8s %10s  %s\n", "ENGINE", "HOST", "PID", "DIRECT", "TASKS",
               "COMPLETED", "SINCE");
    json_array_foreach(engines, i, engine) {
        char since[32], pid[24] = "-";
        if (number(engine, "pid") > 0)
            snprintf(pid, sizeof pid, "%lld", number(engine, "pid"));
        printf("%6lld  %-20s %8s %8lld %8lld %10lld  %s\n", number(engine, "id"),
               text_of(engine, "host"), pid, number(engine, "queue"), number(engine, "tasks"),
               number(engine, "completed"), duration(number(engine, "since_s"), since));
    }
}

static void print_deaths(const json_t *status)
{
    size_t i;
    json_t *death;
    const json_t *deaths = json_object_get(status, "deaths");
    if (json_array_size(deaths) > 0)
        printf("\n%6s  %-20s %s\n", "DIED", "AGO", "WHY");
    json_array_foreach(deaths, i, death) {
        char ago[32];
        printf("%6lld  %-20s %s\n", number(death, "id"), duration(number(death, "ago_s"), ago),
               text_of(death, "cause"));
    }
}

static void print_sockets(const json_t *status)
{
    size_t i;
    json_t *socket;
    printf("\n%-10s %-8s %10s %10s %8s %10s %10s %10s\n", "SOCKET", "FROM", "MESSAGES", "BYTES",
           "DROPPED", "BAD SIGN.", "MALFORMED", "OVERSIZED");
    json_array_foreach(json_object_get(status, "sockets"), i, socket) {
        char bytes[32];
        printf("%-10s %-8s %10lld %10s %8lld %10lld %10lld %10lld\n", text_of(socket, "name"),
               text_of(socket, "side"), number(socket, "messages"),
               size_of(number(socket, "bytes"), bytes), number(socket, "dropped"),
               number(socket, "bad_signatures"), number(socket, "malformed"),
               number(socket, "oversized"));
    }
}

/* ---- asking ---------------------------------------------------------------- */

static int say_no(int exit_status, const char *what, const char *why)
{
    fprintf(stderr, "pxcluster status: %s: %s\n", what, why);
    return exit_status;
}

/* 0 with the reply in *out; the exit status otherwise. */
static int ask(const char *file, int64_t timeout_ms, json_t **out)
{
    const struct phalanx_options options = {.file = file, .timeout_ms = timeout_ms};
    struct phalanx_error why = {0};
    struct px_error err;
    phalanx_client *client = phalanx_connect(&options, &why);
    if (client == NULL)
        return say_no(PX_NOT_RUNNING, "no controller answers", why.text);
    char *text = phalanx_query(client, "status_request", "{}", timeout_ms, &why);
    phalanx_close(client);
    if (text == NULL)
        return say_no(1, "the controller does not say how it is", why.text);
    *out = px_json_parse(px_span_of(text), &err);
    free(text);
    if (*out == NULL)
        return say_no(1, "not a reply", err.text);
    if (strcmp(text_of(*out, "status"), "ok") == 0)
        return 0;
    say_no(1, "the controller does not say how it is", text_of(*out, "evalue"));
    json_decref(*out);
    return 1;
}

int px_command_status(int argc, char **argv)
{
    struct status_options options = {.common = PX_COMMON_DEFAULTS, .timeout_s = 10};
    struct px_place place;
    struct px_error err;
    json_t *status;
    const int first = px_options_main(&status_usage, argc, argv, &options);
    if (first < argc)
        return say_no(2, "unexpected argument", argv[first]);
    px_log_init("pxcluster", (enum px_level)options.common.log_level);
    if (px_place_find(&options.common, false, &place, &err) != 0)
        return say_no(PX_NOT_RUNNING, "no cluster", err.text);
    if (access(place.client_file, R_OK) != 0)
        return say_no(PX_NOT_RUNNING, "no controller runs", place.client_file);
    const int rc = ask(place.client_file, (int64_t)(options.timeout_s * 1e3), &status);
    if (rc != 0)
        return rc;
    if (options.json) {
        char *text = json_dumps(status, JSON_ENSURE_ASCII);
        puts(text ? text : "{}");
        free(text);
    } else {
        print_head(status);
        print_engines(status);
        print_deaths(status);
        print_sockets(status);
    }
    json_decref(status);
    return fflush(stdout) == 0 ? 0 : 1;
}
