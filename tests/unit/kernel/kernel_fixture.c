/* SPDX-License-Identifier: BSD-3-Clause */
#define _GNU_SOURCE
#include "kernel_fixture.h"

#include "../test.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#define DEADLINE_MS 20000
#define KEY "a key"

static const char *const topics[PX_TOPIC_COUNT] = {
    [PX_TOPIC_STATUS] = ".status",  [PX_TOPIC_EXECUTE_INPUT] = ".execute_input",
    [PX_TOPIC_STDOUT] = ".stdout",  [PX_TOPIC_STDERR] = ".stderr",
    [PX_TOPIC_DISPLAY] = "display", [PX_TOPIC_RESULT] = ".execute_result",
    [PX_TOPIC_ERROR] = ".error",    [PX_TOPIC_SHUTDOWN] = ".shutdown",
    [PX_TOPIC_DATA] = "datapub",
    [PX_TOPIC_DEBUG] = ".debug_event",
};

static void keep(void *ctx, enum px_channel channel, struct px_msg **msg)
{
    struct fixture *fixture = ctx;
    assert_true(fixture->count < MOST_SENT);
    fixture->sent[fixture->count++] = (struct sent){channel, *msg};
    *msg = NULL;
}

static void on_shutdown(void *ctx, bool restart)
{
    struct fixture *fixture = ctx;
    (void)restart;
    fixture->shut_down = true;
    px_kernel_stop(fixture->kernel);
}

static void *interpreter(void *ctx)
{
    struct fixture *fixture = ctx;
    const struct px_interp_config config = {0};
    fixture->language = px_interp_echo.create(&config, NULL);
    px_interp_echo.attach(fixture->language, px_kernel_host(fixture->kernel), -1, NULL);
    px_kernel_run(fixture->kernel, fixture->language);
    px_interp_echo.destroy(fixture->language);
    return NULL;
}

void fixture_start(struct fixture *fixture)
{
    assert_int_equal(pthread_create(&fixture->interpreter, NULL, interpreter, fixture), 0);
    fixture->running = true;
}

struct fixture *fixture_create(const struct px_handler *handlers, bool start)
{
    struct fixture *fixture = px_alloc(sizeof *fixture);
    fixture->session = px_session_create(KEY, NULL, "kernel-session", NULL);
    fixture->client = px_session_create(KEY, NULL, "client-session", NULL);
    const struct px_kernel_config config = {.ops = &px_interp_echo,
                                            .session = fixture->session,
                                            .topic_prefix = "kernel.x",
                                            .topics = topics,
                                            .handlers = handlers,
                                            .connect_info = ", \"shell_port\": 1",
                                            .engine_id = 7,
                                            .has_stdin = true,
                                            .ctx = fixture,
                                            .send = keep,
                                            .shutdown = on_shutdown};
    fixture->kernel = px_kernel_create(&config, NULL);
    assert_non_null(fixture->kernel);
    if (start)
        fixture_start(fixture);
    return fixture;
}

void fixture_destroy(struct fixture *fixture)
{
    px_kernel_stop(fixture->kernel);
    px_kernel_interrupt(fixture->kernel);
    if (fixture->running)
        pthread_join(fixture->interpreter, NULL);
    px_kernel_flush(fixture->kernel);
    for (size_t i = 0; i < fixture->count; i++)
        px_msg_destroy(fixture->sent[i].msg);
    px_kernel_destroy(fixture->kernel);
    px_session_destroy(fixture->session);
    px_session_destroy(fixture->client);
    free(fixture);
}

const char *fixture_send(struct fixture *fixture, enum px_channel channel, const char *type,
                         const char *content)
{
    const struct px_span ident = PX_SPAN("client");
    const struct px_draft draft = {
        .idents = &ident, .ident_count = 1, .type = type, .content = px_span_of(content)};
    struct px_msg *msg = px_session_build(fixture->client, &draft);
    px_kernel_receive(fixture->kernel, channel, &msg);
    assert_null(msg);
    return px_session_last_id(fixture->client);
}

const char *fixture_execute(struct fixture *fixture, const char *code)
{
    struct px_buf content = {0};
    px_buf_text(&content, "{\"silent\": false, \"code\": ");
    px_buf_json_string(&content, code, strlen(code));
    px_buf_text(&content, "}");
    const char *id = fixture_send(fixture, PX_SHELL, "execute_request", content.data);
    px_buf_fini(&content);
    return id;
}

static void pump(struct fixture *fixture, int64_t until_ms)
{
    struct pollfd wake = {.fd = px_kernel_fd(fixture->kernel), .events = POLLIN};
    const int64_t left = until_ms - px_now_ms();
    const int64_t delay_ms = px_kernel_service(fixture->kernel);
    int wait = delay_ms < 0 || delay_ms > left ? (int)left : (int)delay_ms;
    if (fixture->next == fixture->count && wait > 0)
        poll(&wake, 1, wait);
}

const struct px_msg *fixture_expect(struct fixture *fixture, enum px_channel channel,
                                    const char *type, const char *part)
{
    const int64_t deadline = px_now_ms() + DEADLINE_MS;
    while (fixture->next == fixture->count && px_now_ms() < deadline)
        pump(fixture, deadline);
    if (fixture->next == fixture->count)
        fail_msg("no %s came", type);
    const struct sent *sent = &fixture->sent[fixture->next++];
    struct px_header header;
    assert_int_equal(px_header_scan(px_msg_header(sent->msg), &header, NULL), 0);
    const struct px_span content = px_msg_content(sent->msg);
    if (!px_span_equal(header.msg_type, type) || sent->channel != channel ||
        !memmem(content.data, content.size, part, strlen(part)))
        fail_msg("expected %s with '%s', got %.*s: %.*s", type, part, (int)header.msg_type.size,
                 header.msg_type.data, (int)content.size, content.data);
    return sent->msg;
}

void fixture_expect_silence(struct fixture *fixture)
{
    /* Anything that was to come would come before the answer to this. */
    fixture_send(fixture, PX_SHELL, "is_complete_request", "{\"code\": \"\"}");
    fixture_expect(fixture, PX_IOPUB, "status", "busy");
    fixture_expect(fixture, PX_SHELL, "is_complete_reply", "complete");
    fixture_expect(fixture, PX_IOPUB, "status", "idle");
}

void fixture_expect_end(struct fixture *fixture)
{
    const int64_t deadline = px_now_ms() + DEADLINE_MS;
    while (pthread_tryjoin_np(fixture->interpreter, NULL) != 0) {
        if (px_now_ms() > deadline)
            fail_msg("the language serves on");
        pump(fixture, px_now_ms() + 10);
    }
    fixture->running = false;
}
