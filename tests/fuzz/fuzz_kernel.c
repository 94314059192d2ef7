/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a sender with the right key may say: messages into the kernel core, with the echo language
 * behind it, on one thread but for questions and subshells. Whatever they hold, each request has
 * one busy, one idle and at most one reply, all that leaves is JSON in UTF-8, and afterwards the
 * kernel still answers.
 *
 * A message is five lines: channel and header, parent, metadata, content, a buffer. The channel is
 * a letter of "sci" (shell, control, stdin); a capital one lets the next message come at once,
 * before this one is served. A header that is a bare word is that type, in a header as it should
 * be; after a '/' it names a subshell: 1 is the first that was made.
 */
#define _GNU_SOURCE
#include "kernel.h"

#include <assert.h>
#include <jansson.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MOST_REQUESTS 64

struct tally {
    char *parent;
    int busy, idle, replies;
};

struct run {
    struct px_kernel *kernel;
    struct px_interp_ops ops;
    struct px_interp_host host; /* the kernel's, but for `input` */
    struct px_span left;        /* of the input */
    char *subshell;
    bool asked, answered, shut_down;
    atomic_bool questioned, settled; /* input_request was sent; the wait for its answer is over */
    int messages;
    struct tally tallies[MOST_REQUESTS + 1];
};

/* Ops have no room for what belongs to the test; there is one of it at a time. */
static struct run *now;
static _Thread_local bool on_main;

/* ---- what the kernel says ---- */

static bool is_text(struct px_span json)
{
    json_t *text = json_stringn(json.data, json.size); /* NULL where it is not UTF-8 */
    json_decref(text);
    return text != NULL;
}

static json_t *parse(struct px_span json)
{
    json_t *value = json_loadb(json.data, json.size, JSON_ALLOW_NUL, NULL);
    assert(json_is_object(value));
    return value;
}

static struct tally *tally_of(struct run *run, struct px_span parent)
{
    struct tally *tally = run->tallies;
    for (; tally->parent; tally++)
        if (px_span_equal(parent, tally->parent))
            return tally;
    assert(tally < run->tallies + MOST_REQUESTS);
    tally->parent = px_strndup(parent.data, parent.size);
    return tally;
}

static void count(struct tally *tally, const char *type, const json_t *content)
{
    const char *state = json_string_value(json_object_get(content, "execution_state"));
    if (state && strcmp(type, "status") == 0) {
        /* Said again, it is the same one: behind what ended beside it. */
        tally->busy += strcmp(state, "busy") == 0 && tally->busy == tally->idle;
        tally->idle += strcmp(state, "idle") == 0;
    }
}

static void on_send(void *ctx, enum px_channel channel, struct px_msg **msg)
{
    struct run *run = ctx;
    assert(is_text(px_msg_parent(*msg)));
    json_t *header = parse(px_msg_header(*msg)), *content = parse(px_msg_content(*msg));
    json_t *metadata = parse(px_msg_metadata(*msg));
    const char *type = json_string_value(json_object_get(header, "msg_type"));
    struct tally *tally = tally_of(run, px_msg_parent(*msg));
    if (channel == PX_IOPUB)
        count(tally, type, content);
    else if (channel == PX_STDIN)
        atomic_store(&run->questioned, true);
    else if (!json_is_true(json_object_get(metadata, "px_quiet"))) /* which stands for busy, idle */
        tally->replies++;
    const char *made = json_string_value(json_object_get(content, "subshell_id"));
    if (made && !run->subshell)
        run->subshell = px_strdup(made);
    if (strstr(tally->parent, "\"the end\""))
        run->answered = run->answered || strcmp(type, "is_complete_reply") == 0;
    json_decref(header);
    json_decref(metadata);
    json_decref(content);
    px_msg_destroy(*msg);
    *msg = NULL;
}

static void on_shutdown(void *ctx, bool restart)
{
    struct run *run = ctx;
    (void)restart;
    run->shut_down = true;
    px_kernel_stop(run->kernel);
}

/* ---- what it hears ---- */

static struct px_span take_line(struct px_span *text)
{
    const char *end = text->size ? memchr(text->data, '\n', text->size) : NULL;
    const struct px_span line = {text->data, end ? (size_t)(end - text->data) : text->size};
    text->data += line.size + (end != NULL);
    text->size -= line.size + (end != NULL);
    return line;
}

static char *full_header(struct run *run, struct px_span line)
{
    if (!line.size || line.data[0] == '{')
        return px_strndup(line.data, line.size);
    const char *slash = memchr(line.data, '/', line.size);
    const int type_size = slash ? (int)(slash - line.data) : (int)line.size;
    const bool first =
        slash && px_span_equal((struct px_span){slash, line.size - (size_t)type_size}, "/1");
    return px_format("{\"msg_id\": \"m%d\", \"msg_type\": \"%.*s\", \"session\": \"s\", "
                     "\"date\": \"2024-01-02T03:04:05.678901Z\", \"version\": \"5.5\"%s%s%s}",
                     run->messages, type_size, line.data, slash ? ", \"subshell_id\": \"" : "",
                     first && run->subshell ? run->subshell : "", slash ? "\"" : "");
}

static void receive(struct run *run, enum px_channel channel, const char *header,
                    const struct px_span parts[4])
{
    struct px_msg *msg = px_msg_create();
    px_msg_append(msg, "client", 6);
    px_msg_append(msg, PX_DELIMITER, strlen(PX_DELIMITER));
    px_msg_append(msg, "", 0);
    px_msg_append(msg, header, strlen(header));
    for (int i = 0; i < 4; i++)
        px_msg_append(msg, parts[i].data, parts[i].size);
    if (px_msg_locate(msg, NULL) == 0)
        px_kernel_receive(run->kernel, channel, &msg);
    px_msg_destroy(msg);
    (void)px_kernel_service(run->kernel);
}

/* False when there is none left. */
static bool feed_one(struct run *run)
{
    static const char letters[] = "sci";
    for (bool more = true; more;) {
        if (!run->left.size || run->messages == MOST_REQUESTS - 4)
            return false;
        run->messages++;
        struct px_span line = take_line(&run->left), parts[4];
        for (int i = 0; i < 4; i++)
            parts[i] = take_line(&run->left);
        const char letter = line.size ? line.data[0] : 's';
        const char *at = strchr(letters, letter | 0x20);
        if (line.size)
            line = (struct px_span){line.data + 1, line.size - 1};
        char *header = full_header(run, line);
        receive(run, at && *at ? (enum px_channel)(at - letters) : PX_SHELL, header, parts);
        free(header);
        more = letter >= 'A' && letter <= 'Z';
    }
    return true;
}

/* The last two requests, which nobody has spoilt. */
static void ask_for_life(struct run *run)
{
    static const struct px_span parts[4] = {{"{}", 2}, {"{}", 2}, {"{}", 2}, {"", 0}};
    run->asked = true;
    receive(run, PX_CONTROL, "{\"msg_id\": \"the end\", \"msg_type\": \"kernel_info_request\"}",
            parts);
    receive(run, PX_SHELL, "{\"msg_id\": \"the end\", \"msg_type\": \"is_complete_request\"}",
            parts);
}

/* ---- the language: echo, but for what would take long ---- */

static void idle(void *self, int fd)
{
    (void)self, (void)fd;
    if (feed_one(now))
        return;
    if (!now->asked && !now->shut_down)
        ask_for_life(now);
    else
        px_kernel_stop(now->kernel);
}

static void execute(void *self, const struct px_execute *request, struct px_outcome *out)
{
    const struct px_span code = request->code;
    if (!on_main || memmem(code.data, code.size, "sleep", 5) ||
        memmem(code.data, code.size, "repeat", 6))
        return;
    px_interp_echo.execute(self, request, out);
    now->shut_down = now->shut_down || out->exit_requested;
}

/* Plays the service thread, while the language waits: a question lets the next messages in; without
 * one the user goes away. */
static void *answer(void *ctx)
{
    struct run *run = ctx;
    while (!atomic_load(&run->questioned) && !atomic_load(&run->settled))
        (void)px_kernel_service(run->kernel);
    while (!atomic_load(&run->settled))
        if (!feed_one(run))
            px_kernel_interrupt(run->kernel);
    return NULL;
}

static int input(void *ctx, struct px_parent *parent, const struct px_ask *ask, struct px_buf *line,
                 struct px_error *err)
{
    pthread_t thread;
    atomic_store(&now->questioned, false);
    atomic_store(&now->settled, false);
    assert(pthread_create(&thread, NULL, answer, now) == 0);
    const int status = px_kernel_host(now->kernel)->input(ctx, parent, ask, line, err);
    atomic_store(&now->settled, true);
    pthread_join(thread, NULL);
    return status;
}

static void begin_thread(void *self, const char *name)
{
    (void)self, (void)name;
}

static void end_thread(void *self)
{
    (void)self;
}

static void interrupt_thread(void *self, pthread_t thread)
{
    (void)self, (void)thread;
}

/* ---- one input ---- */

static const struct px_handler handlers[] = {
    {"apply_request", "apply_reply", PX_ON_INTERPRETER, px_on_apply_request, 0},
    {"clear_request", "clear_reply", PX_ON_INTERPRETER, px_on_clear_request, 0},
    {"abort_request", "abort_reply", PX_ON_SERVICE, px_on_abort_request, 0},
    {"create_subshell_request", "create_subshell_reply", PX_ON_SERVICE,
     px_on_create_subshell_request, 0},
    {"delete_subshell_request", "delete_subshell_reply", PX_ON_SERVICE,
     px_on_delete_subshell_request, 0},
    {"list_subshell_request", "list_subshell_reply", PX_ON_SERVICE, px_on_list_subshell_request, 0},
    {0},
};

static const char *const topics[PX_TOPIC_COUNT] = {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"};

static struct px_kernel *make_kernel(struct run *run, struct px_session *session)
{
    run->ops = px_interp_echo;
    run->ops.idle = idle;
    run->ops.execute = execute;
    run->ops.thread_begin = begin_thread;
    run->ops.thread_end = end_thread;
    run->ops.interrupt_thread = interrupt_thread;
    const struct px_kernel_config config = {.ops = &run->ops,
                                            .session = session,
                                            .topic_prefix = "kernel",
                                            .topics = topics,
                                            .handlers = handlers,
                                            .engine_id = -1,
                                            .has_stdin = true,
                                            .output = {.burst_kb = 1, .rate_kb = 1},
                                            .ctx = run,
                                            .send = on_send,
                                            .shutdown = on_shutdown};
    return px_kernel_create(&config, NULL);
}

static void check(struct run *run)
{
    for (struct tally *tally = run->tallies; tally->parent; tally++) {
        assert(tally->busy == tally->idle);
        assert(tally->replies <= tally->busy);
        free(tally->parent);
    }
    assert(run->answered || run->shut_down || !run->asked);
    free(run->subshell);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct run run = {.left = {(const char *)data, size}};
    struct px_session *session = px_session_create("a key", NULL, "kernel", NULL);
    now = &run;
    on_main = true;
    run.kernel = make_kernel(&run, session);
    assert(run.kernel);
    run.host = *px_kernel_host(run.kernel);
    run.host.input = input;
    const struct px_interp_config config = {0};
    void *language = px_interp_echo.create(&config, NULL);
    px_interp_echo.attach(language, &run.host, -1, NULL);
    px_kernel_run(run.kernel, language);
    px_kernel_flush(run.kernel);
    px_interp_echo.destroy(language);
    px_kernel_destroy(run.kernel);
    px_session_destroy(session);
    check(&run);
    return 0;
}
