/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * pxcluster status: what a running controller says about itself, as tables or as JSON, once or
 * again and again. It works with any pxcontroller that the connection file names, on whatever host
 * it runs.
 */
#define _GNU_SOURCE
#include "launch.h"

#include "client/phalanx.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define WATCH_LEAST_S 0.1
#define WATCH_MOST_S 86400.0
#define DEATHS_WATCHED 5 /* the latest */
#define USAGE_MS 1000    /* for engines to say what they use */

struct status_options {
    struct px_common_options common;
    int json;
    double timeout_s, watch_s; /* watch_s 0: once */
};

static const struct px_option status_rows[] = {
    {"json", 0, PX_OPT_SET, offsetof(struct status_options, json), 1, NULL,
     "all that the controller and the engines say, as one JSON object", 0, 0},
    {"watch", 0, PX_OPT_DOUBLE, offsetof(struct status_options, watch_s), 0, "SECONDS",
     "again and again, with tasks a second; with --json an object a line", 0, 0},
    {"timeout", 0, PX_OPT_DOUBLE, offsetof(struct status_options, timeout_s), 0, "SECONDS",
     "how long the controller may take to answer (default: 10)", 0, 0},
    PX_COMMON_ROWS(struct status_options, common),
    {0},
};

static const struct px_usage status_usage = {
    .program = "pxcluster status",
    .synopsis = "[options]",
    .about = "Shows engines, queues, tasks, memory and sockets of a running cluster.",
    .examples = "  pxcluster status\n"
                "  pxcluster status --watch=1\n"
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

/* Between two looks at engines: what they had completed at the first, by uuid. */
struct rates {
    json_t *completed;
    double seconds;
};

static void print_head(struct px_buf *out, const json_t *status)
{
    char uptime[32], memory[32], records[32];
    const json_t *tasks = json_object_get(status, "tasks");
    const json_t *database = json_object_get(status, "database");
    px_buf_printf(out, "controller  pid %lld, version %s, up %s, scheme %s, %s%s\n",
                  number(status, "pid"), text_of(status, "version"),
                  duration(number(status, "uptime_s"), uptime), text_of(status, "scheme"),
                  size_of(number(json_object_get(status, "memory"), "resident_bytes"), memory),
                  json_is_true(json_object_get(status, "curve")) ? ", encrypted" : "");
    px_buf_printf(
        out,
        "tasks       %lld blocked, %lld waiting, %lld running, %lld succeeded, %lld failed "
        "(%lld with their engine), %lld direct\n",
        number(tasks, "blocked"), number(tasks, "waiting"), number(tasks, "running"),
        number(tasks, "succeeded"), number(tasks, "failed"), number(tasks, "engine_died"),
        number(tasks, "direct"));
    px_buf_printf(out, "database    %s, %lld records in memory, %s\n", text_of(database, "kind"),
                  number(database, "records"), size_of(number(database, "bytes"), records));
}

/* What an engine has completed a second since the last look; -1 where that is not known. */
static double rate_of(const struct rates *rates, const json_t *engine)
{
    const json_t *done = json_object_get(rates->completed, text_of(engine, "uuid"));
    if (!done || rates->seconds <= 0)
        return -1;
    return (double)(number(engine, "completed") - json_integer_value(done)) / rates->seconds;
}

static const char *rate_text(double rate, char out[32])
{
    snprintf(out, 32, rate < 0 ? "-" : rate < 9.95 ? "%.1f" : "%.0f", rate);
    return out;
}

static double rate_of_all(const struct rates *rates, const json_t *engines)
{
    size_t i;
    json_t *engine;
    double sum = 0;
    json_array_foreach(engines, i, engine) {
        const double rate = rate_of(rates, engine);
        sum += rate > 0 ? rate : 0;
    }
    return sum;
}

static const char *memory_text(const json_t *engine, char out[32])
{
    const json_t *bytes = json_object_get(engine, "memory_bytes");
    return bytes ? size_of(json_integer_value(bytes), out) : "-";
}

static const char *cpu_text(const json_t *engine, char out[24])
{
    const json_t *percent = json_object_get(engine, "cpu_percent");
    snprintf(out, 24, percent ? "%.0f %%" : "-", json_number_value(percent));
    return out;
}

/* "gpu,big", for as much of them as `out` has room. */
static const char *tags_of(const json_t *engine, char *out, size_t room)
{
    size_t i, size = 0;
    json_t *tag;
    out[0] = '\0';
    json_array_foreach(json_object_get(engine, "tags"), i, tag) {
        if (json_is_string(tag) && size < room)
            size += (size_t)snprintf(out + size, room - size, "%s%s", i ? "," : "",
                                     json_string_value(tag));
    }
    return out;
}

/* rates: NULL where nobody watches. */
static void print_engines(struct px_buf *out, const json_t *status, const struct rates *rates)
{
    size_t i;
    json_t *engine; /* or who adapts their number */
    char total[32];
    const json_t *engines = json_object_get(status, "engines");
    px_buf_printf(out, "engines     %zu, registering %lld", json_array_size(engines),
                  number(status, "registering"));
    json_array_foreach(json_object_get(status, "adapt"), i, engine) {
        px_buf_printf(out, ", adapts %lld to %lld", number(engine, "min"), number(engine, "max"));
        if (number(engine, "joining") > 0)
            px_buf_printf(out, ", %lld waiting to join", number(engine, "joining"));
    }
    if (rates && rates->seconds > 0)
        px_buf_printf(out, ", %s tasks a second", rate_text(rate_of_all(rates, engines), total));
    px_buf_text(out, "\n");
    if (json_array_size(engines) > 0)
        px_buf_printf(out, "\n%6s  %-20s %8s %8s %8s %10s%s  %s\n", "ENGINE", "HOST", "PID",
                      "DIRECT", "TASKS", "COMPLETED",
                      rates ? "    A SEC.   MEMORY   CPU" : "   MEMORY", "SINCE     TAGS");
    json_array_foreach(engines, i, engine) {
        char since[32], rate[32], memory[32], cpu[24], pid[24] = "-", tags[80];
        if (number(engine, "pid") > 0)
            snprintf(pid, sizeof pid, "%lld", number(engine, "pid"));
        px_buf_printf(out, "%6lld  %-20s %8s %8lld %8lld %10lld", number(engine, "id"),
                      text_of(engine, "host"), pid, number(engine, "queue"),
                      number(engine, "tasks"), number(engine, "completed"));
        if (rates)
            px_buf_printf(out, " %9s", rate_text(rate_of(rates, engine), rate));
        px_buf_printf(out, " %8s", memory_text(engine, memory));
        if (rates)
            px_buf_printf(out, " %5s", cpu_text(engine, cpu));
        px_buf_printf(out, "  %-9s %s\n", duration(number(engine, "since_s"), since),
                      tags_of(engine, tags, sizeof tags));
    }
}

/* The last `most`. */
static void print_deaths(struct px_buf *out, const json_t *status, size_t most)
{
    const json_t *deaths = json_object_get(status, "deaths");
    const size_t count = json_array_size(deaths);
    if (count > 0)
        px_buf_printf(out, "\n%6s  %-20s %s\n", "DIED", "AGO", "WHY");
    for (size_t i = count > most ? count - most : 0; i < count; i++) {
        const json_t *death = json_array_get(deaths, i);
        char ago[32];
        px_buf_printf(out, "%6lld  %-20s %s\n", number(death, "id"),
                      duration(number(death, "ago_s"), ago), text_of(death, "cause"));
    }
}

static void print_sockets(struct px_buf *out, const json_t *status)
{
    size_t i;
    json_t *socket;
    px_buf_printf(out, "\n%-10s %-8s %10s %10s %8s %10s %10s %10s\n", "SOCKET", "FROM", "MESSAGES",
                  "BYTES", "DROPPED", "BAD SIGN.", "MALFORMED", "OVERSIZED");
    json_array_foreach(json_object_get(status, "sockets"), i, socket) {
        char bytes[32];
        px_buf_printf(out, "%-10s %-8s %10lld %10s %8lld %10lld %10lld %10lld\n",
                      text_of(socket, "name"), text_of(socket, "side"), number(socket, "messages"),
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
static int ask(phalanx_client *client, int64_t timeout_ms, json_t **out)
{
    struct phalanx_error why = {0};
    struct px_error err;
    char *text = phalanx_query(client, "status_request", "{}", timeout_ms, &why);
    if (text == NULL)
        return say_no(1, "the controller does not say how it is", why.text);
    *out = px_json_parse(px_span_of(text), &err);
    free(text);
    if (*out == NULL)
        return say_no(1, "not a reply", err.text);
    if (strcmp(text_of(*out, "status"), "ok") == 0) {
        px_add_usage(client, timeout_ms < USAGE_MS ? timeout_ms : USAGE_MS, *out);
        return 0;
    }
    say_no(1, "the controller does not say how it is", text_of(*out, "evalue"));
    json_decref(*out);
    return 1;
}

/* ---- once ------------------------------------------------------------------ */

static int show(struct px_buf *out)
{
    const bool written = fwrite(out->data, 1, out->size, stdout) == out->size;
    px_buf_fini(out);
    return written && fflush(stdout) == 0 ? 0 : 1;
}

static int show_json(const json_t *status)
{
    char *text = json_dumps(status, JSON_ENSURE_ASCII);
    puts(text ? text : "{}");
    free(text);
    return fflush(stdout) == 0 ? 0 : 1;
}

static int show_tables(const json_t *status)
{
    struct px_buf out = {0};
    print_head(&out, status);
    print_engines(&out, status, NULL);
    print_deaths(&out, status, SIZE_MAX);
    print_sockets(&out, status);
    return show(&out);
}

/* ---- again and again ------------------------------------------------------- */

/* Lines of the terminal; 0 where the output is none. */
static size_t terminal_lines(void)
{
    struct winsize size;
    if (!isatty(STDOUT_FILENO) || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0)
        return 0;
    return size.ws_row;
}

/* Cuts what would scroll the first lines away. */
static void cut_lines(struct px_buf *text, size_t most)
{
    size_t lines = 0, end = 0;
    for (size_t i = 0; i < text->size; i++) {
        lines += text->data[i] == '\n';
        if (lines < most && text->data[i] == '\n')
            end = i + 1;
    }
    if (lines <= most)
        return;
    struct px_buf cut = {0};
    px_buf_append(&cut, text->data, end);
    px_buf_printf(&cut, "... %zu more lines\n", lines - (most - 1));
    px_buf_fini(text);
    *text = cut;
}

static int show_watched(const json_t *status, const struct rates *rates)
{
    const size_t lines = terminal_lines();
    struct px_buf tables = {0}, out = {0};
    print_head(&tables, status);
    print_engines(&tables, status, rates);
    print_deaths(&tables, status, DEATHS_WATCHED);
    if (lines > 2)
        cut_lines(&tables, lines - 1);
    px_buf_text(&out, lines ? "\033[H\033[J" : ""); /* from the top of a cleared screen */
    px_buf_append(&out, tables.data, tables.size);
    px_buf_text(&out, lines ? "" : "\n");
    px_buf_fini(&tables);
    return show(&out);
}

static json_t *completed_by_uuid(const json_t *status)
{
    size_t i;
    json_t *engine, *completed = json_object();
    json_array_foreach(json_object_get(status, "engines"), i, engine)
        json_object_set_new(completed, text_of(engine, "uuid"),
                            json_integer(number(engine, "completed")));
    return completed;
}

static void pause_until(int64_t at_ms)
{
    const int64_t left = at_ms - px_now_ms();
    const struct timespec pause = {.tv_sec = left / 1000, .tv_nsec = left % 1000 * 1000000};
    if (left > 0)
        nanosleep(&pause, NULL);
}

/* Until the controller or the reader of the output is gone, or a signal ends the program. */
static int watch(phalanx_client *client, const struct status_options *options)
{
    const int64_t timeout_ms = (int64_t)(options->timeout_s * 1e3);
    struct rates rates = {0};
    int64_t last_ms = 0;
    int rc = 0;
    while (rc == 0) {
        const int64_t now_ms = px_now_ms();
        json_t *status;
        rc = ask(client, timeout_ms, &status);
        if (rc != 0)
            break;
        rates.seconds = rates.completed ? (double)(now_ms - last_ms) / 1e3 : 0;
        rc = options->json ? show_json(status) : show_watched(status, &rates);
        json_decref(rates.completed);
        rates.completed = completed_by_uuid(status);
        json_decref(status);
        last_ms = now_ms;
        if (rc == 0)
            pause_until(now_ms + (int64_t)(options->watch_s * 1e3));
    }
    json_decref(rates.completed);
    return rc;
}

/* ---- the whole ------------------------------------------------------------- */

static int show_status(phalanx_client *client, const struct status_options *options)
{
    json_t *status;
    if (options->watch_s > 0)
        return watch(client, options);
    int rc = ask(client, (int64_t)(options->timeout_s * 1e3), &status);
    if (rc != 0)
        return rc;
    rc = options->json ? show_json(status) : show_tables(status);
    json_decref(status);
    return rc;
}

int px_command_status(int argc, char **argv)
{
    struct status_options options = {.common = PX_COMMON_DEFAULTS, .timeout_s = 10};
    struct px_place place;
    struct px_error err;
    struct phalanx_error why = {0};
    const int first = px_options_main(&status_usage, argc, argv, &options);
    if (first < argc)
        return say_no(2, "unexpected argument", argv[first]);
    if (options.watch_s != 0 &&
        !(options.watch_s >= WATCH_LEAST_S && options.watch_s <= WATCH_MOST_S))
        return say_no(2, "--watch", "takes seconds, from 0.1 to a day");
    px_log_init("pxcluster", (enum px_level)options.common.log_level);
    if (px_place_find(&options.common, false, &place, &err) != 0)
        return say_no(PX_NOT_RUNNING, "no cluster", err.text);
    if (access(place.client_file, R_OK) != 0 && errno == ENOENT) {
        say_no(PX_NOT_RUNNING, "no controller runs", place.client_file);
        px_say_what_runs(place.profile_dir);
        return PX_NOT_RUNNING;
    }
    const struct phalanx_options where = {.file = place.client_file,
                                          .timeout_ms = (int64_t)(options.timeout_s * 1e3)};
    phalanx_client *client = phalanx_connect(&where, &why);
    if (client == NULL)
        return say_no(PX_NOT_RUNNING, "no controller answers", why.text);
    const int rc = show_status(client, &options);
    phalanx_close(client);
    return rc;
}
