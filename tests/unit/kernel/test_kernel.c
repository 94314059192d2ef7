/* SPDX-License-Identifier: BSD-3-Clause */
/* The kernel core, through channels in memory, with the echo language. */
#define _GNU_SOURCE
#include "kernel_fixture.h"

#include "../test.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

static const struct px_handler extra[] = {
    {"apply_request", "apply_reply", PX_ON_INTERPRETER, px_on_apply_request, 0},
    {"clear_request", "clear_reply", PX_ON_INTERPRETER, px_on_clear_request, 0},
    {"abort_request", "abort_reply", PX_ON_SERVICE, px_on_abort_request, 0},
    {0},
};

static int create(void **state)
{
    *state = fixture_create(extra, true);
    return 0;
}

static int create_stopped(void **state)
{
    *state = fixture_create(extra, false);
    return 0;
}

static int destroy(void **state)
{
    fixture_destroy(*state);
    return 0;
}

static void expect_busy(struct fixture *f)
{
    fixture_expect(f, PX_IOPUB, "status", "busy");
}

static void expect_idle(struct fixture *f)
{
    fixture_expect(f, PX_IOPUB, "status", "idle");
}

static bool holds(struct px_span text, const char *part)
{
    return memmem(text.data, text.size, part, strlen(part)) != NULL;
}

static void a_cell_goes_from_busy_to_idle(void **state)
{
    struct fixture *f = *state;
    const char *id = px_strdup(fixture_execute(f, "hello"));
    const struct px_msg *busy = fixture_expect(f, PX_IOPUB, "status", "busy");
    assert_span_equal(px_msg_ident(busy, 0), "kernel.x.status");
    assert_true(holds(px_msg_parent(busy), id));
    fixture_expect(f, PX_IOPUB, "execute_input", "\"code\": \"hello\", \"execution_count\": 1}");
    fixture_expect(f, PX_IOPUB, "execute_result", "\"text/plain\": \"hello\"");
    const struct px_msg *reply = fixture_expect(f, PX_SHELL, "execute_reply", "\"status\": \"ok\"");
    assert_span_equal(px_msg_ident(reply, 0), "client");
    assert_true(holds(px_msg_parent(reply), id));
    assert_true(holds(px_msg_metadata(reply), "\"dependencies_met\": true"));
    assert_int_equal(px_session_verify(f->client, reply, NULL), 0);
    expect_idle(f);
    free((void *)id);
}

static void output_is_joined_and_ordered(void **state)
{
    struct fixture *f = *state;
    fixture_execute(f, "print a\nprint b\nwarn c\nprint d\nshow e");
    expect_busy(f);
    fixture_expect(f, PX_IOPUB, "execute_input", "print");
    fixture_expect(f, PX_IOPUB, "stream", "{\"name\": \"stdout\", \"text\": \"a\\nb\\n\"}");
    fixture_expect(f, PX_IOPUB, "stream", "{\"name\": \"stderr\", \"text\": \"c\\n\"}");
    fixture_expect(f, PX_IOPUB, "stream", "{\"name\": \"stdout\", \"text\": \"d\\n\"}");
    fixture_expect(f, PX_IOPUB, "display_data", "\"e\"");
    fixture_expect(f, PX_SHELL, "execute_reply", "ok");
    expect_idle(f);
}

static void output_comes_while_the_cell_runs(void **state)
{
    struct fixture *f = *state;
    fixture_execute(f, "print now\nsleep 60");
    expect_busy(f);
    fixture_expect(f, PX_IOPUB, "execute_input", "");
    fixture_expect(f, PX_IOPUB, "stream", "now");
    assert_true(px_kernel_busy(f->kernel));
    px_kernel_interrupt(f->kernel);
    fixture_expect(f, PX_IOPUB, "error", "KeyboardInterrupt");
    fixture_expect(f, PX_SHELL, "execute_reply", "KeyboardInterrupt");
    expect_idle(f);
}

static void writers_wait_while_nobody_sends(void **state)
{
    /* 64 MB against an outbox of 8: the cell can only end because the test drains it. */
    struct fixture *f = *state;
    enum { LINES = 1 << 20, WIDTH = 64 };
    char line[WIDTH];
    memset(line, 'x', sizeof line - 1);
    line[WIDTH - 1] = 0;
    char *code = px_format("repeat %d %s", LINES, line);
    fixture_execute(f, code);
    free(code);
    expect_busy(f);
    fixture_expect(f, PX_IOPUB, "execute_input", "");
    size_t bytes = 0;
    while (bytes < (size_t)LINES * (WIDTH + 1)) { /* a newline is two bytes in JSON */
        const struct px_span text = px_msg_content(fixture_expect(f, PX_IOPUB, "stream", "xxx"));
        bytes += text.size - strlen("{\"name\": \"stdout\", \"text\": \"\"}");
    }
    assert_int_equal(bytes, (size_t)LINES * (WIDTH + 1));
    fixture_expect(f, PX_SHELL, "execute_reply", "ok");
    expect_idle(f);
}

static void a_failure_aborts_what_waits(void **state)
{
    struct fixture *f = *state;
    fixture_execute(f, "error no");
    fixture_execute(f, "print never");
    fixture_send(f, PX_SHELL, "is_complete_request", "{\"code\": \"\"}");
    fixture_start(f);
    expect_busy(f);
    fixture_expect(f, PX_IOPUB, "execute_input", "error no");
    fixture_expect(f, PX_IOPUB, "error", "EchoError");
    fixture_expect(f, PX_SHELL, "execute_reply", "\"engine_id\": 7, \"method\": \"execute\"");
    expect_idle(f);
    expect_busy(f);
    const struct px_msg *reply =
        fixture_expect(f, PX_SHELL, "execute_reply", "{\"status\": \"aborted\"}");
    assert_true(holds(px_msg_metadata(reply), "\"status\": \"aborted\""));
    expect_idle(f);
    expect_busy(f);
    fixture_expect(f, PX_SHELL, "is_complete_reply", "complete");
    expect_idle(f);
}

static void silent_failures_and_allowed_ones_abort_nothing(void **state)
{
    struct fixture *f = *state;
    fixture_send(f, PX_SHELL, "execute_request", "{\"code\": \"error a\", \"silent\": true}");
    fixture_send(f, PX_SHELL, "execute_request",
                 "{\"code\": \"error b\", \"silent\": true, \"stop_on_error\": false}");
    fixture_send(f, PX_SHELL, "execute_request", "{\"code\": \"fine\", \"silent\": true}");
    fixture_start(f);
    for (int i = 0; i < 2; i++) {
        expect_busy(f);
        fixture_expect(f, PX_IOPUB, "error", "EchoError");
        fixture_expect(f, PX_SHELL, "execute_reply", "\"execution_count\": 0");
        expect_idle(f);
    }
    expect_busy(f);
    fixture_expect(f, PX_SHELL, "execute_reply", "\"status\": \"ok\"");
    expect_idle(f);
}

static void abort_by_id_answers_at_once(void **state)
{
    struct fixture *f = *state; /* nobody runs: only the service thread can answer */
    char *id = px_strdup(fixture_execute(f, "print never"));
    char *content = px_format("{\"msg_ids\": [\"%s\"]}", id);
    fixture_send(f, PX_CONTROL, "abort_request", content);
    expect_busy(f);
    expect_busy(f);
    assert_true(holds(px_msg_parent(fixture_expect(f, PX_SHELL, "execute_reply", "aborted")), id));
    expect_idle(f);
    fixture_expect(f, PX_CONTROL, "abort_reply", "ok");
    expect_idle(f);
    free(content);
    free(id);
    fixture_start(f);
    fixture_expect_silence(f);
}

/* By one look at it, however many they are. */
static void aborts_are_answered_in_the_order_of_the_queue(void **state)
{
    struct fixture *f = *state;
    char *ids[3], *content;
    for (size_t i = 0; i < PX_COUNT(ids); i++)
        ids[i] = px_strdup(fixture_execute(f, "print never"));
    content =
        px_format("{\"msg_ids\": [\"%s\", \"no such\", \"%s\", \"%s\"]}", ids[2], ids[1], ids[0]);
    fixture_send(f, PX_CONTROL, "abort_request", content);
    expect_busy(f);
    for (size_t i = 0; i < PX_COUNT(ids); i++) {
        expect_busy(f);
        const struct px_msg *reply = fixture_expect(f, PX_SHELL, "execute_reply", "aborted");
        assert_true(holds(px_msg_parent(reply), ids[i]));
        expect_idle(f);
        free(ids[i]);
    }
    fixture_expect(f, PX_CONTROL, "abort_reply", "ok");
    expect_idle(f);
    free(content);
}

#define MANY 100000

/* Who gives up a long queue of the scheduler's names all that is in it. */
static void abort_before_arrival_is_remembered(void **state)
{
    struct fixture *f = *state;
    char *first = px_strdup(fixture_send(f, PX_SHELL, "is_complete_request", "{}"));
    char *next = px_strdup(first); /* ids count up: name the one after the abort_request */
    char *number = strrchr(next, '_') + 1;
    struct px_buf ids = {0};
    px_buf_printf(&ids, "{\"msg_ids\": [\"%.*s%d\"", (int)(number - next), next, atoi(number) + 2);
    for (int i = 0; i < MANY; i++)
        px_buf_printf(&ids, ", \"elsewhere_%d\"", i);
    px_buf_text(&ids, "]}");
    char *content = ids.data;
    fixture_send(f, PX_CONTROL, "abort_request", content);
    fixture_execute(f, "print never");
    expect_busy(f);
    fixture_expect(f, PX_CONTROL, "abort_reply", "ok");
    expect_idle(f);
    /* Before the turn of what was queued earlier, and with nobody running. */
    expect_busy(f);
    fixture_expect(f, PX_SHELL, "execute_reply", "aborted");
    expect_idle(f);
    fixture_start(f);
    expect_busy(f);
    fixture_expect(f, PX_SHELL, "is_complete_reply", "");
    expect_idle(f);
    free(content);
    free(next);
    free(first);
}

static void abort_all_leaves_applies(void **state)
{
    struct fixture *f = *state;
    fixture_execute(f, "print never");
    fixture_send(f, PX_SHELL, "apply_request", "{}");
    fixture_send(f, PX_CONTROL, "abort_request", "{\"msg_ids\": []}");
    expect_busy(f);
    expect_busy(f);
    fixture_expect(f, PX_SHELL, "execute_reply", "aborted");
    expect_idle(f);
    fixture_expect(f, PX_CONTROL, "abort_reply", "ok");
    expect_idle(f);
    fixture_start(f);
    expect_busy(f);
    fixture_expect(f, PX_SHELL, "apply_reply", "ok");
    expect_idle(f);
}

static void abort_refuses_what_is_no_list_of_ids(void **state)
{
    static const char *const wrong[] = {"{}", "{\"msg_ids\": null}", "{\"msg_ids\": [1]}",
                                        "{\"msg_ids\": {}}", "nonsense"};
    struct fixture *f = *state;
    fixture_execute(f, "still here");
    for (size_t i = 0; i < PX_COUNT(wrong); i++) {
        fixture_send(f, PX_CONTROL, "abort_request", wrong[i]);
        expect_busy(f);
        fixture_expect(f, PX_CONTROL, "abort_reply", "\"status\": \"error\"");
        expect_idle(f);
    }
    fixture_start(f);
    expect_busy(f);
    fixture_expect(f, PX_IOPUB, "execute_input", "still here");
}

static void apply_returns_buffers(void **state)
{
    struct fixture *f = *state;
    const struct px_draft draft = {.type = "apply_request"};
    struct px_msg *msg = px_session_build(f->client, &draft);
    px_msg_append(msg, "one", 3);
    px_msg_append(msg, "", 0);
    px_kernel_receive(f->kernel, PX_SHELL, &msg);
    expect_busy(f);
    const struct px_msg *reply = fixture_expect(f, PX_SHELL, "apply_reply", "{\"status\": \"ok\"}");
    assert_int_equal(px_msg_buffer_count(reply), 2);
    assert_span_equal(px_msg_buffer(reply, 0), "one");
    assert_span_equal(px_msg_buffer(reply, 1), "");
    expect_idle(f);
}

static void send_quiet(struct fixture *f, const char *type, const char *content)
{
    const struct px_draft draft = {.type = type,
                                   .metadata = PX_SPAN("{\"px_quiet\": true}"),
                                   .content = px_span_of(content)};
    struct px_msg *msg = px_session_build(f->client, &draft);
    px_kernel_receive(f->kernel, PX_SHELL, &msg);
    /* It has ended: its idle rings. */
    struct pollfd rung = {.fd = px_kernel_fd(f->kernel), .events = POLLIN};
    assert_int_equal(poll(&rung, 1, 20000), 1);
}

static void a_quiet_task_is_answered_by_its_reply_alone(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < 2; i++) {
        send_quiet(f, "apply_request", "{}");
        const struct px_msg *reply = fixture_expect(f, PX_SHELL, "apply_reply", "ok");
        assert_true(holds(px_msg_metadata(reply), ", \"px_quiet\": true}"));
        json_t *metadata = px_json_parse(px_msg_metadata(reply), NULL);
        assert_true(json_is_true(json_object_get(metadata, "px_quiet")));
        json_decref(metadata);
        assert_int_equal(px_session_verify(f->client, reply, NULL), 0);
    }
    fixture_expect_silence(f);
}

static void a_quiet_cell_is_answered_by_its_reply_alone(void **state)
{
    struct fixture *f = *state;
    for (int i = 0; i < 2; i++) {
        send_quiet(f, "execute_request", "{\"code\": \"\"}");
        const struct px_msg *reply = fixture_expect(f, PX_SHELL, "execute_reply", "ok");
        assert_true(holds(px_msg_metadata(reply), ", \"px_quiet\": true}"));
    }
    fixture_expect_silence(f);
}

static void a_quiet_task_with_output_is_as_any_other(void **state)
{
    struct fixture *f = *state;
    for (int silent = 0; silent < 2; silent++) {
        send_quiet(f, "execute_request",
                   silent ? "{\"silent\": true, \"code\": \"print a\"}"
                          : "{\"code\": \"print a\"}");
        expect_busy(f);
        if (!silent)
            fixture_expect(f, PX_IOPUB, "execute_input", "print a");
        fixture_expect(f, PX_IOPUB, "stream", "a");
        const struct px_msg *reply = fixture_expect(f, PX_SHELL, "execute_reply", "ok");
        assert_false(holds(px_msg_metadata(reply), "px_quiet"));
        expect_idle(f);
    }
}

static void a_quiet_task_that_takes_long_is_seen_to_be_busy(void **state)
{
    struct fixture *f = *state;
    const struct px_draft draft = {
        .type = "execute_request",
        .metadata = PX_SPAN("{\"px_quiet\": true}"),
        .content = PX_SPAN("{\"silent\": true, \"code\": \"sleep 60\"}")};
    struct px_msg *msg = px_session_build(f->client, &draft);
    px_kernel_receive(f->kernel, PX_SHELL, &msg);
    expect_busy(f);
    px_kernel_interrupt(f->kernel);
    fixture_expect(f, PX_IOPUB, "error", "KeyboardInterrupt");
    fixture_expect(f, PX_SHELL, "execute_reply", "KeyboardInterrupt");
    expect_idle(f);
}

static void service_answers_without_a_language(void **state)
{
    struct fixture *f = *state;
    static const char *const rows[][3] = {
        {"kernel_info_request", "kernel_info_reply", "\"name\": \"echo\""},
        {"connect_request", "connect_reply", "\"shell_port\": 1"},
        {"comm_info_request", "comm_info_reply", "\"comms\": {}"},
        {"interrupt_request", "interrupt_reply", "ok"},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        fixture_send(f, PX_SHELL, rows[i][0], "{}");
        expect_busy(f);
        fixture_expect(f, PX_SHELL, rows[i][1], rows[i][2]);
        expect_idle(f);
    }
}

static void comms_are_followed(void **state)
{
    struct fixture *f = *state;
    fixture_send(f, PX_SHELL, "comm_open",
                 "{\"comm_id\": \"c1\", \"target_name\": \"t\", \"data\": {}}");
    expect_busy(f);
    expect_idle(f);
    fixture_send(f, PX_CONTROL, "comm_info_request", "{\"target_name\": \"t\"}");
    expect_busy(f);
    fixture_expect(f, PX_CONTROL, "comm_info_reply", "{\"c1\": {\"target_name\": \"t\"}}");
    expect_idle(f);
    fixture_send(f, PX_CONTROL, "comm_info_request", "{\"target_name\": \"u\"}");
    expect_busy(f);
    fixture_expect(f, PX_CONTROL, "comm_info_reply", "\"comms\": {}");
    expect_idle(f);
    fixture_send(f, PX_SHELL, "comm_close", "{\"comm_id\": \"c1\"}");
    expect_busy(f);
    expect_idle(f);
    fixture_send(f, PX_CONTROL, "comm_info_request", "{}");
    expect_busy(f);
    fixture_expect(f, PX_CONTROL, "comm_info_reply", "\"comms\": {}");
    expect_idle(f);
}

static void unknown_and_malformed_end_idle(void **state)
{
    struct fixture *f = *state;
    static const char *const wrong[] = {"{}", "[]", "nonsense", "{\"code\": 1}", ""};
    fixture_send(f, PX_SHELL, "no_such_request", "{}");
    expect_busy(f);
    expect_idle(f);
    for (size_t i = 0; i < PX_COUNT(wrong); i++) {
        fixture_send(f, PX_SHELL, "execute_request", wrong[i]);
        expect_busy(f);
        fixture_expect(f, PX_SHELL, "execute_reply", "\"status\": \"error\"");
        expect_idle(f);
    }
}

static void bad_headers_are_dropped(void **state)
{
    static const char *const wrong[] = {"{}",
                                        "[]",
                                        "",
                                        "{\"msg_id\": 1, \"msg_type\": \"x\"}",
                                        "{\"msg_id\": \"1\"}",
                                        "{\"msg_type\": \"x\"}"};
    struct fixture *f = *state;
    for (size_t i = 0; i < PX_COUNT(wrong); i++) {
        struct px_msg *msg = px_session_build(f->client, &(struct px_draft){.type = "x"});
        const size_t header = px_msg_ident_count(msg) + 2; /* after delimiter and signature */
        px_msg_replace(msg, header, wrong[i], strlen(wrong[i]));
        px_kernel_receive(f->kernel, PX_SHELL, &msg);
        assert_null(msg);
    }
    fixture_expect_silence(f);
}

static void input_is_asked_and_answered(void **state)
{
    struct fixture *f = *state;
    fixture_send(f, PX_STDIN, "input_reply", "{\"value\": \"too early\"}");
    fixture_send(f, PX_SHELL, "execute_request",
                 "{\"code\": \"input who?\", \"silent\": true, \"allow_stdin\": true}");
    expect_busy(f);
    const struct px_msg *asked =
        fixture_expect(f, PX_STDIN, "input_request", "{\"prompt\": \"who?\", \"password\": false}");
    assert_span_equal(px_msg_ident(asked, 0), "client");
    fixture_send(f, PX_STDIN, "input_reply", "{\"value\": 3}");
    fixture_send(f, PX_STDIN, "input_reply", "{\"value\": \"Ada\"}");
    fixture_expect(f, PX_IOPUB, "stream", "Ada");
    fixture_expect(f, PX_SHELL, "execute_reply", "ok");
    expect_idle(f);
}

static void input_is_interrupted(void **state)
{
    struct fixture *f = *state;
    fixture_send(f, PX_SHELL, "execute_request",
                 "{\"code\": \"input who?\", \"silent\": true, \"allow_stdin\": true}");
    expect_busy(f);
    fixture_expect(f, PX_STDIN, "input_request", "who?");
    fixture_send(f, PX_CONTROL, "interrupt_request", "{}");
    expect_busy(f);
    fixture_expect(f, PX_CONTROL, "interrupt_reply", "ok");
    expect_idle(f);
    expect_busy(f); /* still */
    fixture_expect(f, PX_IOPUB, "error", "KeyboardInterrupt");
    fixture_expect(f, PX_SHELL, "execute_reply", "KeyboardInterrupt");
    expect_idle(f);
}

static void input_is_refused_without_a_user(void **state)
{
    struct fixture *f = *state;
    fixture_send(f, PX_SHELL, "execute_request", "{\"code\": \"input x\", \"silent\": true}");
    expect_busy(f);
    fixture_expect(f, PX_IOPUB, "error", "StdinNotImplementedError");
}

static void shutdown_replies_on_both_and_stops(void **state)
{
    struct fixture *f = *state;
    fixture_send(f, PX_CONTROL, "shutdown_request", "{\"restart\": true}");
    expect_busy(f);
    fixture_expect(f, PX_IOPUB, "shutdown_reply", "\"restart\": true");
    fixture_expect(f, PX_CONTROL, "shutdown_reply", "{\"status\": \"ok\", \"restart\": true}");
    expect_idle(f);
    assert_true(f->shut_down);
    pthread_join(f->interpreter, NULL);
    f->running = false;
}

static void exit_ends_the_run(void **state)
{
    struct fixture *f = *state;
    fixture_execute(f, "exit");
    expect_busy(f);
    fixture_expect(f, PX_IOPUB, "execute_input", "exit");
    fixture_expect(f, PX_SHELL, "execute_reply", "ok");
    expect_idle(f);
    fixture_expect_silence(f); /* It answers on while the front end reads the reply. */
    fixture_execute(f, "print late");
    expect_busy(f);
    fixture_expect(f, PX_SHELL, "execute_reply", "aborted");
    expect_idle(f);
    fixture_expect_end(f);
}

static void counts_go_with_history(void **state)
{
    struct fixture *f = *state;
    static const struct {
        const char *content, *count;
    } rows[] = {
        {"{\"code\": \"a\", \"silent\": true}", "\"execution_count\": 0"},
        {"{\"code\": \"a\", \"store_history\": true, \"silent\": true}", "\"execution_count\": 0"},
        {"{\"code\": \"print a\"}", "\"execution_count\": 1"},
        {"{\"code\": \"print a\", \"store_history\": false}", "\"execution_count\": 1"},
        {"{\"code\": \"print a\"}", "\"execution_count\": 2"},
    };
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        fixture_send(f, PX_SHELL, "execute_request", rows[i].content);
        expect_busy(f);
        if (i >= 2) {
            fixture_expect(f, PX_IOPUB, "execute_input", i == 2 ? ": 1}" : ": 2}");
            fixture_expect(f, PX_IOPUB, "stream", "a");
        }
        fixture_expect(f, PX_SHELL, "execute_reply", rows[i].count);
        expect_idle(f);
    }
}

#define WITH_LANGUAGE(test) cmocka_unit_test_setup_teardown(test, create, destroy)
#define BEFORE_LANGUAGE(test) cmocka_unit_test_setup_teardown(test, create_stopped, destroy)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_LANGUAGE(a_cell_goes_from_busy_to_idle),
        WITH_LANGUAGE(output_is_joined_and_ordered),
        WITH_LANGUAGE(output_comes_while_the_cell_runs),
        WITH_LANGUAGE(writers_wait_while_nobody_sends),
        BEFORE_LANGUAGE(a_failure_aborts_what_waits),
        BEFORE_LANGUAGE(silent_failures_and_allowed_ones_abort_nothing),
        BEFORE_LANGUAGE(abort_by_id_answers_at_once),
        BEFORE_LANGUAGE(aborts_are_answered_in_the_order_of_the_queue),
        BEFORE_LANGUAGE(abort_before_arrival_is_remembered),
        BEFORE_LANGUAGE(abort_all_leaves_applies),
        BEFORE_LANGUAGE(abort_refuses_what_is_no_list_of_ids),
        WITH_LANGUAGE(apply_returns_buffers),
        WITH_LANGUAGE(a_quiet_task_is_answered_by_its_reply_alone),
        WITH_LANGUAGE(a_quiet_cell_is_answered_by_its_reply_alone),
        WITH_LANGUAGE(a_quiet_task_with_output_is_as_any_other),
        WITH_LANGUAGE(a_quiet_task_that_takes_long_is_seen_to_be_busy),
        BEFORE_LANGUAGE(service_answers_without_a_language),
        WITH_LANGUAGE(comms_are_followed),
        WITH_LANGUAGE(unknown_and_malformed_end_idle),
        WITH_LANGUAGE(bad_headers_are_dropped),
        WITH_LANGUAGE(input_is_asked_and_answered),
        WITH_LANGUAGE(input_is_interrupted),
        WITH_LANGUAGE(input_is_refused_without_a_user),
        WITH_LANGUAGE(shutdown_replies_on_both_and_stops),
        WITH_LANGUAGE(exit_ends_the_run),
        WITH_LANGUAGE(counts_go_with_history),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
