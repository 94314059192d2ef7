/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * echo: the smallest complete language. Each line of a cell is a command:
 *
 *     print TEXT      TEXT on stdout          warn TEXT      TEXT on stderr
 *     show TEXT       display_data            input PROMPT   asks, and prints the answer
 *     repeat N TEXT   N lines of TEXT         sleep SECONDS  until interrupted
 *     error TEXT      fails with EchoError    exit           ends the kernel
 *
 * Anything else is echoed as the cell's result. apply returns its buffers. It exists so that
 * kernels and engines are tested without Python, and as the example to start a language from.
 */
#include "interp/interp.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct echo {
    const struct px_interp_host *host;
    pthread_t thread; /* that runs the cells, for interrupt */
    int count;        /* of cells with history */
    const struct px_execute *cell;
    struct px_outcome *out;
};

/* A signal handler has no context argument: the one mutable global. */
static atomic_bool interrupted;

static void on_sigint(int signo)
{
    (void)signo;
    atomic_store(&interrupted, true);
}

static void *echo_create(const struct px_interp_config *config, struct px_error *err)
{
    (void)config;
    struct sigaction action = {.sa_handler = on_sigint};
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGINT, &action, NULL) < 0) {
        px_fail(err, PX_EIO, "no handler for SIGINT: %s", strerror(errno));
        return NULL;
    }
    struct echo *echo = px_alloc(sizeof *echo);
    echo->thread = pthread_self();
    return echo;
}

static void echo_attach(void *self, const struct px_interp_host *host, int engine_id,
                        const char *session)
{
    struct echo *echo = self;
    (void)engine_id, (void)session;
    echo->host = host;
    echo->thread = pthread_self();
}

static void echo_destroy(void *self)
{
    free(self);
}

static void fail(struct echo *echo, const char *ename, const char *evalue)
{
    struct px_buf *error = &echo->out->error;
    echo->out->failed = true;
    px_buf_clear(error);
    px_buf_printf(error, "\"ename\": \"%s\", \"evalue\": ", ename);
    px_buf_json_string(error, evalue, strlen(evalue));
    px_buf_text(error, ", \"traceback\": [");
    char *line = px_format("%s: %s", ename, evalue);
    px_buf_json_string(error, line, strlen(line));
    free(line);
    px_buf_text(error, "]");
}

/* {"data": {"text/plain": TEXT}, "metadata": {} …}; for a result, with the cell's number. */
static void publish_text(struct echo *echo, enum px_publication what, const char *text)
{
    struct px_buf content = {0};
    px_buf_text(&content, "{\"data\": {\"text/plain\": ");
    px_buf_json_string(&content, text, strlen(text));
    px_buf_text(&content, "}, \"metadata\": {}");
    if (what == PX_EXECUTE_RESULT)
        px_buf_printf(&content, ", \"execution_count\": %d", echo->count);
    else
        px_buf_text(&content, ", \"transient\": {}");
    px_buf_text(&content, "}");
    echo->host->publish(echo->host->ctx, NULL, what, px_buf_span(&content), PX_SPAN("{}"), NULL, 0);
    px_buf_fini(&content);
}

static void publish_error(struct echo *echo)
{
    char *content = px_format("{%s}", echo->out->error.data);
    echo->host->publish(echo->host->ctx, NULL, PX_ERROR_OUTPUT, px_span_of(content), PX_SPAN("{}"),
                        NULL, 0);
    free(content);
}

/* ---- commands ---- */

static void print_to(struct echo *echo, enum px_stream which, const char *text)
{
    char *line = px_format("%s\n", text);
    const struct px_interp_host *host = echo->host;
    const char *left = line;
    while (left[0]) {
        left += host->stream(host->ctx, NULL, which, left, strlen(left));
        if (left[0])
            host->room(host->ctx);
    }
    free(line);
}

static void do_print(struct echo *echo, const char *text)
{
    print_to(echo, PX_STDOUT, text);
}

static void do_warn(struct echo *echo, const char *text)
{
    print_to(echo, PX_STDERR, text);
}

static void do_show(struct echo *echo, const char *text)
{
    publish_text(echo, PX_DISPLAY_DATA, text);
}

static void do_repeat(struct echo *echo, const char *text)
{
    char *end;
    const long count = strtol(text, &end, 10);
    for (long i = 0; i < count && !atomic_load(&interrupted); i++)
        print_to(echo, PX_STDOUT, end + (*end == ' '));
}

static void do_sleep(struct echo *echo, const char *text)
{
    (void)echo;
    const int64_t until = px_now_ms() + (int64_t)(1000 * atof(text));
    for (int64_t left; (left = until - px_now_ms()) > 0 && !atomic_load(&interrupted);)
        (void)poll(NULL, 0, left > 100 ? 100 : (int)left); /* a signal may just miss the poll */
}

static void do_error(struct echo *echo, const char *text)
{
    fail(echo, "EchoError", text);
}

static bool is_not_interrupted(void *unused)
{
    (void)unused;
    return !atomic_load(&interrupted);
}

static void do_input(struct echo *echo, const char *prompt)
{
    struct px_buf line = {0};
    struct px_error err = {0};
    const struct px_ask ask = {.prompt = prompt, .go_on = is_not_interrupted};
    if (echo->host->input(echo->host->ctx, NULL, &ask, &line, &err) == 0)
        print_to(echo, PX_STDOUT, line.data ? line.data : "");
    else if (err.code != PX_EINTR)
        fail(echo, "StdinNotImplementedError", err.text);
    px_buf_fini(&line);
}

static void do_exit(struct echo *echo, const char *text)
{
    (void)text;
    echo->out->exit_requested = true;
}

static const struct command {
    const char *word;
    void (*fn)(struct echo *echo, const char *rest);
} commands[] = {
    {"print", do_print}, {"warn", do_warn},   {"show", do_show},   {"repeat", do_repeat},
    {"sleep", do_sleep}, {"error", do_error}, {"input", do_input}, {"exit", do_exit},
};

/* True when the line was a command. */
static bool run_command(struct echo *echo, const char *line)
{
    const size_t word = strcspn(line, " ");
    for (size_t i = 0; i < PX_COUNT(commands); i++) {
        if (strlen(commands[i].word) != word || strncmp(line, commands[i].word, word) != 0)
            continue;
        commands[i].fn(echo, line + word + (line[word] == ' '));
        return true;
    }
    return false;
}

static void run_lines(struct echo *echo, char *code)
{
    struct px_buf rest = {0};
    char *next = code;
    for (char *line; (line = strsep(&next, "\n")) && !echo->out->failed;) {
        if (atomic_load(&interrupted)) {
            fail(echo, "KeyboardInterrupt", "");
        } else if (*line && !run_command(echo, line)) {
            px_buf_text(&rest, rest.size ? "\n" : "");
            px_buf_text(&rest, line);
        }
    }
    if (atomic_load(&interrupted) && !echo->out->failed)
        fail(echo, "KeyboardInterrupt", "");
    if (echo->out->failed)
        publish_error(echo);
    else if (rest.size && !echo->cell->silent)
        publish_text(echo, PX_EXECUTE_RESULT, rest.data);
    px_buf_fini(&rest);
}

/* ---- the table ---- */

static void echo_execute(void *self, const struct px_execute *request, struct px_outcome *out)
{
    struct echo *echo = self;
    echo->cell = request;
    echo->out = out;
    atomic_store(&interrupted, false);
    if (request->store_history)
        echo->count++;
    char *code = px_strndup(request->code.data, request->code.size);
    run_lines(echo, code);
    free(code);
    out->execution_count = echo->count;
}

static void echo_apply(void *self, struct px_span metadata, const struct px_span *buffers,
                       size_t buffer_count, struct px_outcome *out)
{
    (void)self, (void)metadata;
    out->buffers = px_alloc((buffer_count + 1) * sizeof *out->buffers);
    out->buffer_count = buffer_count;
    for (size_t i = 0; i < buffer_count; i++) {
        char *copy = px_strndup(buffers[i].data, buffers[i].size);
        out->buffers[i] = (struct px_buffer){copy, buffers[i].size, free, copy};
    }
}

static void echo_query(void *self, enum px_query what, struct px_span content, struct px_buf *reply)
{
    static const char *const replies[PX_QUERY_COUNT] = {
        [PX_COMPLETE] = ("{\"status\": \"ok\", \"matches\": [], \"cursor_start\": 0, "
                         "\"cursor_end\": 0, \"metadata\": {}}"),
        [PX_INSPECT] = "{\"status\": \"ok\", \"found\": false, \"data\": {}, \"metadata\": {}}",
        [PX_IS_COMPLETE] = "{\"status\": \"complete\"}",
        [PX_HISTORY] = "{\"status\": \"ok\", \"history\": []}",
        [PX_DEBUG_REQUEST] = "{\"type\": \"response\", \"success\": false}",
    };
    (void)self, (void)content;
    px_buf_text(reply, replies[what]);
}

static void echo_clear(void *self)
{
    struct echo *echo = self;
    echo->count = 0;
}

static void echo_interrupt(void *self)
{
    struct echo *echo = self;
    pthread_kill(echo->thread, SIGINT);
}

static void echo_after_fork_child(void *self)
{
    struct echo *echo = self;
    echo->thread = pthread_self();
}

const struct px_interp_ops px_interp_echo = {
    .name = "echo",
    .info_json = "\"implementation\": \"phalanx-echo\", \"implementation_version\": \"" PX_VERSION
                 "\", \"language_info\": {\"name\": \"echo\", \"version\": \"" PX_VERSION
                 "\", \"mimetype\": \"text/plain\", \"file_extension\": \".txt\"}, "
                 "\"banner\": \"Phalanx " PX_VERSION ", echo\", \"help_links\": []",
    .create = echo_create,
    .attach = echo_attach,
    .destroy = echo_destroy,
    .execute = echo_execute,
    .apply = echo_apply,
    .query = echo_query,
    .clear = echo_clear,
    .interrupt = echo_interrupt,
    .after_fork_child = echo_after_fork_child,
};
