/* SPDX-License-Identifier: BSD-3-Clause */
/* Output that does not come, or that nobody reads. */
#include "pair.h"

#include <string.h>

static void an_idle_that_never_comes_is_not_awaited_for_ever(void **state)
{
    struct pair *pair = *state;
    phalanx_result *result = submit_one(pair->client);
    struct px_msg *request = fake_request(pair->fake, FAKE_MUX);
    fake_reply(pair->fake, FAKE_MUX, "E0", request, OK_REPLY);
    assert_int_equal(phalanx_wait(result, PHALANX_FINISHED, FAKE_TIMEOUT_MS), PHALANX_OK);
    phalanx_result_free(result);
    px_msg_destroy(request);
}

/* What the task's stderr says at the end, of an engine that says so much of what it has published
 * and of which two messages come. */
static void expect_at_the_end(struct pair *pair, const char *members, const char *said)
{
    struct phalanx_event event;
    phalanx_result *result = submit_one(pair->client);
    struct px_msg *request = fake_request(pair->fake, FAKE_MUX);
    fake_publish(pair->fake, "E0", request, "stream", "{\"name\": \"stdout\", \"text\": \"a\"}");
    fake_publish(pair->fake, "E0", request, "what_nobody_knows", "{}");
    expect(result, PHALANX_STREAM, &event);
    fake_reply_with(pair->fake, "E0", request, members);
    expect(result, PHALANX_REPLY, &event);
    fake_idle(pair->fake, "E0", request);
    if (said) {
        expect(result, PHALANX_STREAM, &event);
        assert_string_equal(event.name, "stderr");
        assert_string_equal(event.text, said);
        assert_int_equal(event.engine, 0);
    }
    expect(result, PHALANX_IDLE, &event);
    phalanx_result_free(result);
    px_msg_destroy(request);
}

static void output_that_was_lost_is_told(void **state)
{
    expect_at_the_end(*state, "\"px_outputs\": 5",
                      "[phalanx: 3 of 5 messages of output were lost on their way]\n");
}

static void output_that_came_is_not_told(void **state)
{
    static const char *const members[] = {"\"a\": 0", "\"px_outputs\": 2",
                                          "\"px_outputs\": 1", "\"px_outputs\": -5",
                                          "\"px_outputs\": \"5\"",
                                          "\"px_outputs\": 12345678901234567890"};
    for (size_t i = 0; i < PX_COUNT(members); i++)
        expect_at_the_end(*state, members[i], NULL);
}

static void bounds_output_that_nobody_reads(void **state)
{
    struct pair *pair = *state;
    const size_t piece = 1 << 20, pieces = 80;
    char *text = px_alloc(piece);
    memset(text, 'x', piece - 1);
    char *content = px_format("{\"name\": \"stdout\", \"text\": \"%s\"}", text);
    phalanx_result *result = submit_one(pair->client);
    struct px_msg *request = fake_request(pair->fake, FAKE_MUX);
    for (size_t i = 0; i < pieces; i++)
        fake_publish(pair->fake, "E0", request, "stream", content);
    fake_reply(pair->fake, FAKE_MUX, "E0", request, OK_REPLY);
    fake_idle(pair->fake, "E0", request);
    assert_int_equal(phalanx_wait(result, PHALANX_FINISHED, FAKE_TIMEOUT_MS), PHALANX_OK);

    struct phalanx_event event;
    size_t kept = 0;
    bool told = false;
    while (phalanx_next(result, 0, &event) == PHALANX_OK) {
        kept += event.type == PHALANX_STREAM && strcmp(event.name, "stdout") == 0;
        told |= event.type == PHALANX_STREAM && strcmp(event.name, "stderr") == 0 &&
                strstr(event.text, "bytes of output were not kept");
    }
    assert_between(kept, 60, 66);
    assert_true(told);
    phalanx_result_free(result);
    px_msg_destroy(request);
    free(content);
    free(text);
}

/* An engine's threads may write when their task has ended, or when its result is gone. */
static void late_output_is_told_apart(void **state)
{
    static const char a[] = "{\"name\": \"stdout\", \"text\": \"a\"}";
    struct pair *pair = *state;
    struct phalanx_event event;
    phalanx_result *late = phalanx_late(pair->client), *result = submit_one(pair->client);
    struct px_msg *request = fake_request(pair->fake, FAKE_MUX);
    fake_publish(pair->fake, "E0", request, "stream", a);
    expect(result, PHALANX_STREAM, &event);
    assert_null(event.parent);
    fake_reply(pair->fake, FAKE_MUX, "E0", request, OK_REPLY);
    fake_idle(pair->fake, "E0", request);
    assert_int_equal(phalanx_wait(result, PHALANX_FINISHED, FAKE_TIMEOUT_MS), PHALANX_OK);
    assert_int_equal(phalanx_wait(late, PHALANX_EVENT, 0), PHALANX_ETIME);
    char *id = px_strdup(phalanx_task_id(result, 0));
    for (int i = 0; i < 2; i++) {
        fake_publish(pair->fake, "E0", request, "stream", a);
        fake_idle(pair->fake, "E0", request);
        expect(late, PHALANX_STREAM, &event);
        assert_string_equal(event.text, "a");
        assert_string_equal(event.parent, id);
        assert_int_equal(event.engine, 0);
        phalanx_result_free(i == 0 ? result : NULL);
    }
    fake_publish(pair->fake, "who is not known", request, "stream", a);
    expect(late, PHALANX_STREAM, &event);
    assert_int_equal(event.engine, -1);
    phalanx_result *instead = phalanx_late(pair->client);
    assert_int_equal(phalanx_wait(late, PHALANX_EVENT, FAKE_TIMEOUT_MS), PHALANX_ECLOSED);
    phalanx_result_free(late);
    fake_publish(pair->fake, "E0", request, "stream", a);
    expect(instead, PHALANX_STREAM, &event);
    phalanx_result_free(instead);
    fake_publish(pair->fake, "E0", request, "stream", a);
    free(id);
    px_msg_destroy(request);
}

static void late_output_ends_with_the_client(void **state)
{
    struct pair *pair = *state;
    phalanx_client *client = fake_connect(pair->fake);
    phalanx_result *late = phalanx_late(client);
    phalanx_close(client);
    assert_int_equal(phalanx_wait(late, PHALANX_EVENT, FAKE_TIMEOUT_MS), PHALANX_ECLOSED);
    phalanx_result_free(late);
}

/* A client that knows that its iopub connection is lost. */
static phalanx_client *connect_and_go_deaf(struct fake *fake)
{
    int64_t since_ms, left_ms;
    const int64_t deadline = px_now_ms() + FAKE_TIMEOUT_MS;
    fake_set_engines(fake, TWO_ENGINES ", \"px_again\": 1");
    phalanx_client *client = fake_connect(fake);
    fake_break_iopub(fake);
    while (!phalanx_away(client, &since_ms, &left_ms))
        assert_true(px_now_ms() < deadline);
    return client;
}

static void requests_wait_for_iopub_that_was_lost(void **state)
{
    struct pair *pair = *state;
    struct phalanx_event event;
    phalanx_client *client = connect_and_go_deaf(pair->fake);
    phalanx_result *result = submit_one(client);
    fake_mend_iopub(pair->fake);
    struct px_msg *request = fake_request(pair->fake, FAKE_MUX);
    fake_publish(pair->fake, "E0", request, "stream", "{\"name\": \"stdout\", \"text\": \"a\"}");
    expect(result, PHALANX_STREAM, &event);
    phalanx_result_free(result);
    px_msg_destroy(request);
    phalanx_close(client);
}

static void requests_do_not_wait_for_iopub_for_ever(void **state)
{
    struct pair *pair = *state;
    phalanx_client *client = connect_and_go_deaf(pair->fake);
    fake_close_iopub_at_once(pair->fake);
    phalanx_result *result = submit_one(client);
    px_msg_destroy(fake_request(pair->fake, FAKE_MUX));
    phalanx_result_free(result);
    phalanx_close(client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_PAIR(an_idle_that_never_comes_is_not_awaited_for_ever),
        WITH_PAIR(output_that_was_lost_is_told),
        WITH_PAIR(output_that_came_is_not_told),
        WITH_PAIR(bounds_output_that_nobody_reads),
        WITH_PAIR(late_output_is_told_apart),
        WITH_PAIR(late_output_ends_with_the_client),
        WITH_PAIR(requests_wait_for_iopub_that_was_lost),
        WITH_PAIR(requests_do_not_wait_for_iopub_for_ever),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
