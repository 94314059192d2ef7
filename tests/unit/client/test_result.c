/* SPDX-License-Identifier: BSD-3-Clause */
/* A client's results against a controller that does what the test says. */
#include "pair.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- engines ------------------------------------------------------------------- */

static void connects_and_learns_engines(void **state)
{
    struct pair *pair = *state;
    int ids[4];
    char uuid[64];
    assert_int_equal(phalanx_engines(pair->client, ids, 4), 2);
    assert_int_equal(ids[0], 0);
    assert_int_equal(ids[1], 1);
    assert_int_equal(phalanx_engine_uuid(pair->client, 1, uuid, sizeof uuid), PHALANX_OK);
    assert_string_equal(uuid, "E1");
    assert_int_equal(phalanx_engine_uuid(pair->client, 7, uuid, sizeof uuid), PHALANX_ENOENT);
    assert_int_equal(phalanx_wait_engines(pair->client, 2, 0), PHALANX_OK);
    assert_int_equal(phalanx_wait_engines(pair->client, 3, 20), PHALANX_ETIME);
}

static void hears_of_new_engines(void **state)
{
    struct pair *pair = *state;
    assert_false(phalanx_feature(pair->client, NULL, 0, "pickle5"));
    fake_notify(pair->fake, "registration_notification",
                "{\"id\": 2, \"uuid\": \"E2\", \"px\": {\"features\": [\"pickle5\"]}}");
    assert_int_equal(phalanx_wait_engines(pair->client, 3, FAKE_TIMEOUT_MS), PHALANX_OK);
    assert_true(phalanx_feature(pair->client, (int[]){2}, 1, "pickle5"));
    assert_false(phalanx_feature(pair->client, (int[]){2}, 1, "pickle6"));
    assert_false(phalanx_feature(pair->client, NULL, 0, "pickle5"));
}

static void names_a_target_that_is_not_there(void **state)
{
    struct pair *pair = *state;
    struct phalanx_error err = {0};
    const int targets[] = {0, 9};
    const struct phalanx_request request = {
        .type = PHALANX_EXECUTE, .code = "1", .targets = targets, .target_count = 2};
    assert_null(phalanx_submit(pair->client, &request, &err));
    assert_int_equal(err.code, PHALANX_ENOENT);
    assert_string_equal(err.text, "No such engine: 9");
}

static int releases;

static void count_release(void *hint)
{
    (void)hint;
    releases++;
}

static void releases_buffers_of_a_refused_request(void **state)
{
    struct pair *pair = *state;
    const struct phalanx_buffer buffer = {.data = "x", .size = 1, .release = count_release};
    const struct phalanx_request request = {.type = PHALANX_APPLY,
                                            .targets = (int[]){9},
                                            .target_count = 1,
                                            .buffers = &buffer,
                                            .buffer_count = 1};
    releases = 0;
    assert_null(phalanx_submit(pair->client, &request, NULL));
    assert_int_equal(releases, 1);
}

/* ---- the end of a task -------------------------------------------------------------- */

static void ends_with_reply_and_idle(void **state)
{
    struct pair *pair = *state;
    struct phalanx_event event;
    phalanx_result *result = submit_one(pair->client);
    struct px_msg *request = fake_request(pair->fake, FAKE_MUX);
    fake_publish(pair->fake, "E0", request, "stream",
                 "{\"name\": \"stdout\", \"text\": \"a\\u0000b\"}");
    expect(result, PHALANX_STREAM, &event);
    assert_string_equal(event.name, "stdout");
    assert_int_equal(event.text_size, 3);
    assert_memory_equal(event.text, "a\0b", 3);
    assert_int_equal(event.engine, 0);

    fake_reply(pair->fake, FAKE_MUX, "E0", request, OK_REPLY);
    expect(result, PHALANX_REPLY, &event);
    assert_false(event.failed);
    assert_string_equal(event.content, OK_REPLY);
    assert_int_equal(event.buffer_count, 1);
    assert_memory_equal(event.buffers[0].data, "result", 6);
    assert_int_equal(phalanx_replied(result), 1);
    assert_int_equal(phalanx_finished(result), 0);
    assert_int_equal(phalanx_wait(result, PHALANX_FINISHED, 20), PHALANX_ETIME);

    fake_idle(pair->fake, "E0", request);
    expect(result, PHALANX_IDLE, &event);
    assert_int_equal(phalanx_finished(result), 1);
    assert_int_equal(phalanx_next(result, 0, &event), PHALANX_DONE);
    phalanx_result_free(result);
    px_msg_destroy(request);
}

static void a_reply_alone_is_nothing_to_show(void **state)
{
    struct pair *pair = *state;
    phalanx_result *result = submit_one(pair->client);
    struct px_msg *request = fake_request(pair->fake, FAKE_MUX);
    fake_reply(pair->fake, FAKE_MUX, "E0", request, OK_REPLY);
    assert_int_equal(phalanx_wait(result, PHALANX_EVENT, FAKE_TIMEOUT_MS), PHALANX_OK);
    assert_int_equal(phalanx_wait(result, PHALANX_SHOWABLE, 0), PHALANX_ETIME);
    fake_publish(pair->fake, "E0", request, "stream", "{\"name\": \"stdout\", \"text\": \"x\"}");
    assert_int_equal(phalanx_wait(result, PHALANX_SHOWABLE, FAKE_TIMEOUT_MS), PHALANX_OK);
    phalanx_result_free(result);
    px_msg_destroy(request);
}

static void counts_what_another_has_read(void **state)
{
    struct pair *pair = *state;
    struct phalanx_event event;
    phalanx_result *result = submit_one(pair->client);
    struct px_msg *request = fake_request(pair->fake, FAKE_MUX);
    assert_int_equal(phalanx_wait_more(result, 0, 0), PHALANX_ETIME);
    fake_reply(pair->fake, FAKE_MUX, "E0", request, OK_REPLY);
    expect(result, PHALANX_REPLY, &event);
    assert_int_equal(phalanx_wait_more(result, 0, 0), PHALANX_OK);
    assert_int_equal(phalanx_arrived(result), 1);
    assert_int_equal(phalanx_wait_more(result, 1, 0), PHALANX_ETIME);
    fake_idle(pair->fake, "E0", request);
    assert_int_equal(phalanx_wait_more(result, 1, FAKE_TIMEOUT_MS), PHALANX_OK);
    assert_int_equal(phalanx_wait_more(result, 99, 0), PHALANX_OK); /* none will come */
    phalanx_result_free(result);
    px_msg_destroy(request);
}

static void ends_with_the_reply_when_idle_came_first(void **state)
{
    struct pair *pair = *state;
    phalanx_result *result = submit_one(pair->client);
    struct px_msg *request = fake_request(pair->fake, FAKE_MUX);
    fake_idle(pair->fake, "E0", request);
    iopub_is_filed(pair);
    assert_int_equal(phalanx_finished(result), 0);
    fake_reply(pair->fake, FAKE_MUX, "E0", request, OK_REPLY);
    assert_int_equal(phalanx_wait(result, PHALANX_FINISHED, 1000), PHALANX_OK);
    phalanx_result_free(result);
    px_msg_destroy(request);
}

static void does_not_take_the_idle_of_an_earlier_try(void **state)
{
    struct pair *pair = *state;
    phalanx_result *result = submit_balanced(pair->client);
    struct px_msg *request = fake_request(pair->fake, FAKE_TASK);
    assert_int_equal(phalanx_task_engine(result, 0), -1);
    fake_idle(pair->fake, "E1", request);
    iopub_is_filed(pair);
    fake_reply(pair->fake, FAKE_TASK, "E0", request, "{\"status\": \"ok\"}");
    assert_int_equal(phalanx_wait(result, PHALANX_REPLIES, FAKE_TIMEOUT_MS), PHALANX_OK);
    assert_int_equal(phalanx_task_engine(result, 0), 0);
    assert_int_equal(phalanx_finished(result), 0);
    fake_idle(pair->fake, "E0", request);
    assert_int_equal(phalanx_wait(result, PHALANX_FINISHED, 1000), PHALANX_OK);
    phalanx_result_free(result);
    px_msg_destroy(request);
}

static void an_aborted_task_has_no_output(void **state)
{
    struct pair *pair = *state;
    struct phalanx_event event;
    phalanx_result *result = submit_one(pair->client);
    struct px_msg *request = fake_request(pair->fake, FAKE_MUX);
    fake_reply(pair->fake, FAKE_MUX, "E0", request, "{\"status\": \"aborted\"}");
    expect(result, PHALANX_REPLY, &event);
    assert_true(event.failed);
    assert_false(event.lost);
    assert_int_equal(phalanx_wait(result, PHALANX_FINISHED, 1000), PHALANX_OK);
    phalanx_result_free(result);
    px_msg_destroy(request);
}

static void a_reply_of_the_scheduler_has_no_output(void **state)
{
    struct pair *pair = *state;
    struct phalanx_event event;
    phalanx_result *result = submit_balanced(pair->client);
    struct px_msg *request = fake_request(pair->fake, FAKE_TASK);
    fake_refuse(pair->fake, request,
                "{\"status\": \"error\", \"ename\": \"TaskTimeout\", \"evalue\": \"\"}");
    expect(result, PHALANX_REPLY, &event);
    assert_true(event.failed);
    assert_int_equal(event.engine, -1);
    expect(result, PHALANX_IDLE, &event);
    phalanx_result_free(result);
    px_msg_destroy(request);
}

static void an_engine_that_dies_fails_its_tasks(void **state)
{
    struct pair *pair = *state;
    struct phalanx_event event;
    phalanx_result *result = submit_to(pair->client, NULL, 0);
    struct px_msg *first = fake_request(pair->fake, FAKE_MUX);
    struct px_msg *second = fake_request(pair->fake, FAKE_MUX);
    fake_set_engines(pair->fake, "\"engines\": {\"0\": \"E0\"}");
    fake_notify(pair->fake, "unregistration_notification", "{\"id\": 1, \"uuid\": \"E1\"}");
    assert_int_equal(phalanx_wait(result, PHALANX_SHOWABLE, FAKE_TIMEOUT_MS), PHALANX_OK);
    expect(result, PHALANX_REPLY, &event);
    assert_int_equal(event.task, 1);
    assert_int_equal(event.engine, 1);
    assert_true(event.failed && event.lost);
    assert_non_null(strstr(event.content, "\"EngineError\""));
    assert_non_null(strstr(event.content, "Engine 1 died while running task"));
    expect(result, PHALANX_IDLE, &event);
    assert_int_equal(phalanx_replied(result), 1);
    assert_int_equal(phalanx_engines(pair->client, NULL, 0), 1);
    phalanx_result_free(result);
    px_msg_destroy(first);
    px_msg_destroy(second);
}

/* ---- what must not be believed, and what comes too late -------------------------------- */

static void drops_a_forged_reply(void **state)
{
    struct pair *pair = *state;
    struct phalanx_event event;
    phalanx_result *result = submit_one(pair->client);
    struct px_msg *request = fake_request(pair->fake, FAKE_MUX);
    fake_forge(pair->fake, "E0", request, "{\"status\": \"forged\"}");
    fake_reply(pair->fake, FAKE_MUX, "E0", request, OK_REPLY);
    expect(result, PHALANX_REPLY, &event);
    assert_string_equal(event.content, OK_REPLY);
    phalanx_result_free(result);
    px_msg_destroy(request);
}

static void drops_what_comes_for_a_freed_result(void **state)
{
    struct pair *pair = *state;
    phalanx_result *result = submit_one(pair->client);
    struct px_msg *request = fake_request(pair->fake, FAKE_MUX);
    phalanx_result_free(result);
    fake_reply(pair->fake, FAKE_MUX, "E0", request, OK_REPLY);
    fake_idle(pair->fake, "E0", request);
    iopub_is_filed(pair);
    px_msg_destroy(request);
}

static void sends_what_was_freed_at_once(void **state)
{
    struct pair *pair = *state;
    const struct phalanx_request request = {.type = PHALANX_CONTROL,
                                            .message = "signal_request",
                                            .content = "{\"sig\": \"SIGINT\"}",
                                            .targets = (int[]){1},
                                            .target_count = 1};
    phalanx_result_free(phalanx_submit(pair->client, &request, NULL));
    struct px_msg *sent = fake_request(pair->fake, FAKE_CONTROL);
    assert_span_equal(px_msg_ident(sent, 1), "E1");
    px_msg_destroy(sent);
}

/* ---- many tasks ---------------------------------------------------------------------------- */

static void one_result_may_hold_many_requests(void **state)
{
    struct pair *pair = *state;
    phalanx_result *result = submit_balanced(pair->client);
    const struct phalanx_buffer buffer = {.data = "g", .size = 1};
    const struct phalanx_request more = {
        .type = PHALANX_APPLY, .route = PHALANX_BALANCED, .buffers = &buffer, .buffer_count = 1};
    for (int i = 1; i < 300; i++)
        assert_int_equal(phalanx_add(result, &more, NULL), PHALANX_OK);
    assert_int_equal(phalanx_task_count(result), 300);
    for (int i = 0; i < 300; i++) {
        struct px_msg *request = fake_request(pair->fake, FAKE_TASK);
        fake_reply(pair->fake, FAKE_TASK, "E1", request, "{\"status\": \"ok\"}");
        fake_idle(pair->fake, "E1", request);
        px_msg_destroy(request);
    }
    assert_int_equal(phalanx_wait(result, PHALANX_FINISHED, FAKE_TIMEOUT_MS), PHALANX_OK);
    struct phalanx_event event;
    size_t replies = 0;
    while (phalanx_next(result, 0, &event) == PHALANX_OK)
        replies += event.type == PHALANX_REPLY;
    assert_int_equal(replies, 300);
    phalanx_result_free(result);
}

static void a_taken_message_outlives_its_result(void **state)
{
    struct pair *pair = *state;
    struct phalanx_event event;
    phalanx_result *result = submit_one(pair->client);
    struct px_msg *request = fake_request(pair->fake, FAKE_MUX);
    fake_reply(pair->fake, FAKE_MUX, "E0", request, OK_REPLY);
    expect(result, PHALANX_REPLY, &event);
    phalanx_message *message = phalanx_take(result);
    assert_null(phalanx_take(result));
    phalanx_result_free(result);
    assert_memory_equal(event.buffers[0].data, "result", 6);
    phalanx_message_free(message);
    px_msg_destroy(request);
}

/* ---- waiting ----------------------------------------------------------------------------------
 */

static void on_alarm(int signo)
{
    (void)signo;
}

static void a_signal_ends_a_wait(void **state)
{
    struct pair *pair = *state;
    struct phalanx_event event;
    phalanx_result *result = submit_one(pair->client);
    struct sigaction action = {.sa_handler = on_alarm}, old;
    sigaction(SIGALRM, &action, &old);
    /* Again and again, so that one that falls before the wait does not count. */
    const struct itimerval often = {{0, 20000}, {0, 20000}}, never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &often, NULL);
    assert_int_equal(phalanx_next(result, FAKE_TIMEOUT_MS, &event), PHALANX_EINTR);
    assert_int_equal(phalanx_wait(result, PHALANX_REPLIES, -1), PHALANX_EINTR);
    assert_int_equal(phalanx_wait_engines(pair->client, 99, -1), PHALANX_EINTR);
    setitimer(ITIMER_REAL, &never, NULL);
    sigaction(SIGALRM, &old, NULL);
    phalanx_result_free(result);
}

static void closing_ends_what_is_outstanding(void **state)
{
    struct pair *pair = *state;
    struct phalanx_event event;
    phalanx_result *result = submit_one(pair->client);
    phalanx_close(pair->client);
    pair->client = NULL;
    assert_int_equal(phalanx_next(result, -1, &event), PHALANX_ECLOSED);
    assert_int_equal(phalanx_wait(result, PHALANX_REPLIES, -1), PHALANX_ECLOSED);
    phalanx_result_free(result);
}

/* The child's exit status: the number of the first thing that was wrong. */
static int use_inherited(struct pair *pair, phalanx_result *result)
{
    struct phalanx_event event;
    struct phalanx_error err = {0};
    const struct phalanx_request request = {.type = PHALANX_EXECUTE, .code = "1"};
    if (phalanx_submit(pair->client, &request, &err) || err.code != PHALANX_ECLOSED ||
        !strstr(err.text, "process that forked"))
        return 1;
    if (phalanx_next(result, -1, &event) != PHALANX_ECLOSED)
        return 2;
    if (phalanx_wait(result, PHALANX_REPLIES, -1) != PHALANX_ECLOSED)
        return 3;
    if (phalanx_query(pair->client, "queue_request", NULL, -1, &err))
        return 4;
    if (phalanx_wait_engines(pair->client, 99, -1) != PHALANX_ECLOSED ||
        phalanx_engines(pair->client, NULL, 0) != 0)
        return 5;
    if (phalanx_task_count(result) || phalanx_task_id(result, 0) || phalanx_replied(result))
        return 6;
    phalanx_discard(result);
    phalanx_notify(result, NULL, NULL);
    phalanx_result_free(result);
    phalanx_close(pair->client);
    return 0;
}

static void a_forked_child_is_refused(void **state)
{
    struct pair *pair = *state;
    struct phalanx_event event;
    phalanx_result *result = submit_one(pair->client);
    const pid_t pid = fork();
    if (pid == 0)
        _exit(use_inherited(pair, result));
    int status = -1;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    struct px_msg *request = fake_request(pair->fake, FAKE_MUX);
    fake_reply(pair->fake, FAKE_MUX, "E0", request, OK_REPLY);
    expect(result, PHALANX_REPLY, &event);
    phalanx_result_free(result);
    px_msg_destroy(request);
}

static void a_controller_that_says_goodbye_ends_it_too(void **state)
{
    struct pair *pair = *state;
    struct phalanx_event event;
    struct phalanx_error err = {0};
    phalanx_result *result = submit_balanced(pair->client);
    px_msg_destroy(fake_request(pair->fake, FAKE_TASK));
    fake_notify(pair->fake, "shutdown_notification", "{\"status\": \"ok\"}");
    expect(result, PHALANX_REPLY, &event);
    assert_true(event.lost);
    assert_non_null(strstr(event.content, "the controller was shut down"));
    const struct phalanx_request request = {.type = PHALANX_EXECUTE, .code = "1"};
    assert_null(phalanx_submit(pair->client, &request, &err));
    assert_int_equal(err.code, PHALANX_ECLOSED);
    phalanx_result_free(result);
}

/* ---- connecting --------------------------------------------------------------------------------
 */

static void says_why_it_cannot_connect(void **state)
{
    (void)state;
    struct phalanx_error err = {0};
    const struct phalanx_options options = {.file = "/nonexistent/client.json"};
    assert_null(phalanx_connect(&options, &err));
    assert_int_equal(err.code, PHALANX_ENOENT);
    assert_non_null(strstr(err.text, "/nonexistent/client.json"));
    assert_non_null(strstr(err.text, "is a cluster running?"));
}

static void count_up(void *hint)
{
    ++*(atomic_int *)hint; /* from the client's own thread */
}

static void says_once_that_all_replies_are_here(void **state)
{
    struct pair *pair = *state;
    phalanx_result *result = submit_one(pair->client);
    struct px_msg *request = fake_request(pair->fake, FAKE_MUX);
    atomic_int before = 0, after = 0, closed = 0;
    phalanx_notify(result, count_up, &before);
    assert_int_equal(before, 0);
    fake_reply(pair->fake, FAKE_MUX, "E0", request, OK_REPLY);
    assert_int_equal(phalanx_wait(result, PHALANX_REPLIES, FAKE_TIMEOUT_MS), PHALANX_OK);
    phalanx_notify(result, count_up, &after);
    assert_int_equal(before, 1);
    assert_int_equal(after, 1);

    phalanx_result *other = submit_one(pair->client);
    phalanx_notify(other, count_up, &closed);
    phalanx_close(pair->client);
    pair->client = NULL;
    assert_int_equal(closed, 1);
    phalanx_result_free(other);
    phalanx_result_free(result);
    px_msg_destroy(request);
}

static void counts_the_tasks_of_a_discarded_result(void **state)
{
    struct pair *pair = *state;
    struct phalanx_event event;
    phalanx_result *result = submit_one(pair->client);
    struct px_msg *request = fake_request(pair->fake, FAKE_MUX);
    phalanx_discard(result);
    fake_publish(pair->fake, "E0", request, "stream", "{\"name\": \"stdout\", \"text\": \"a\"}");
    fake_reply(pair->fake, FAKE_MUX, "E0", request, OK_REPLY);
    fake_idle(pair->fake, "E0", request);
    assert_int_equal(phalanx_wait(result, PHALANX_FINISHED, FAKE_TIMEOUT_MS), PHALANX_OK);
    assert_int_equal(phalanx_next(result, 0, &event), PHALANX_DONE);
    phalanx_result_free(result);
    px_msg_destroy(request);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_PAIR(connects_and_learns_engines),
        WITH_PAIR(hears_of_new_engines),
        WITH_PAIR(names_a_target_that_is_not_there),
        WITH_PAIR(releases_buffers_of_a_refused_request),
        WITH_PAIR(ends_with_reply_and_idle),
        WITH_PAIR(a_reply_alone_is_nothing_to_show),
        WITH_PAIR(counts_what_another_has_read),
        WITH_PAIR(ends_with_the_reply_when_idle_came_first),
        WITH_PAIR(does_not_take_the_idle_of_an_earlier_try),
        WITH_PAIR(an_aborted_task_has_no_output),
        WITH_PAIR(a_reply_of_the_scheduler_has_no_output),
        WITH_PAIR(an_engine_that_dies_fails_its_tasks),
        WITH_PAIR(drops_a_forged_reply),
        WITH_PAIR(drops_what_comes_for_a_freed_result),
        WITH_PAIR(sends_what_was_freed_at_once),
        WITH_PAIR(says_once_that_all_replies_are_here),
        WITH_PAIR(counts_the_tasks_of_a_discarded_result),
        WITH_PAIR(one_result_may_hold_many_requests),
        WITH_PAIR(a_taken_message_outlives_its_result),
        WITH_PAIR(a_signal_ends_a_wait),
        WITH_PAIR(closing_ends_what_is_outstanding),
        WITH_PAIR(a_forked_child_is_refused),
        WITH_PAIR(a_controller_that_says_goodbye_ends_it_too),
        cmocka_unit_test(says_why_it_cannot_connect),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
