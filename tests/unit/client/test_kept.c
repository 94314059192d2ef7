/* SPDX-License-Identifier: BSD-3-Clause */
/* Requests that are sent again when a connection broke. */
#include "pair.h"

#include "client/client.h"
#include "protocol.h"

#define MB ((size_t)1 << 20)

enum how { COPIED, LENT, CONSTANT };

/* A task with so many bytes in a buffer. */
static phalanx_result *submit_bytes(phalanx_client *client, size_t size, enum how how)
{
    char *data = px_alloc(size);
    const struct phalanx_buffer buffer = {.data = data,
                                          .size = size,
                                          .release = how == COPIED ? NULL : free,
                                          .hint = data,
                                          .constant = how == CONSTANT};
    const struct phalanx_request request = {
        .type = PHALANX_APPLY, .route = PHALANX_BALANCED, .buffers = &buffer, .buffer_count = 1};
    phalanx_result *result = phalanx_submit(client, &request, NULL);
    assert_non_null(result);
    if (how == COPIED)
        free(data);
    return result;
}

static phalanx_client *connect_to_who_knows(struct fake *fake)
{
    fake_set_engines(fake, TWO_ENGINES ", \"px_again\": 1");
    return fake_connect(fake);
}

static void lose_and_mend(struct fake *fake, phalanx_client *client)
{
    int64_t since_ms, left_ms;
    const int64_t deadline = px_now_ms() + FAKE_TIMEOUT_MS;
    fake_break_iopub(fake);
    while (!phalanx_away(client, &since_ms, &left_ms))
        assert_true(px_now_ms() < deadline);
    fake_mend_iopub(fake);
}

/* The request comes again, with so many buffers, and is destroyed. */
static void expect_again(struct fake *fake, struct px_msg *first, size_t buffers)
{
    struct px_msg *again = fake_request(fake, FAKE_TASK);
    assert_int_equal(px_msg_ident_count(again), 2);
    assert_true(px_span_equal(px_msg_ident(again, 1), PX_AGAIN));
    const struct px_span signature = px_msg_signature(first);
    assert_int_equal(px_msg_signature(again).size, signature.size);
    assert_memory_equal(px_msg_signature(again).data, signature.data, signature.size);
    assert_int_equal(px_msg_buffer_count(again), buffers);
    px_msg_destroy(again);
    px_msg_destroy(first);
}

static void what_may_change_is_sent_again_without_it(void **state)
{
    struct pair *pair = *state;
    phalanx_client *client = connect_to_who_knows(pair->fake);
    phalanx_result *copied = submit_bytes(client, 10, COPIED);
    struct px_msg *first = fake_request(pair->fake, FAKE_TASK);
    phalanx_result *lent = submit_bytes(client, MB, LENT);
    struct px_msg *second = fake_request(pair->fake, FAKE_TASK);
    assert_int_equal(px_msg_buffer_count(second), 1);
    phalanx_result *constant = submit_bytes(client, MB, CONSTANT);
    struct px_msg *third = fake_request(pair->fake, FAKE_TASK);
    lose_and_mend(pair->fake, client);
    expect_again(pair->fake, first, 1);
    expect_again(pair->fake, second, 0);
    expect_again(pair->fake, third, 1);
    phalanx_result_free(copied);
    phalanx_result_free(lent);
    phalanx_result_free(constant);
    phalanx_close(client);
}

static void what_is_too_much_is_sent_again_without_it(void **state)
{
    enum { EACH = 8, COUNT = 12 };
    struct pair *pair = *state;
    struct px_msg *requests[COUNT];
    phalanx_result *results[COUNT];
    phalanx_client *client = connect_to_who_knows(pair->fake);
    for (size_t i = 0; i < COUNT; i++) {
        results[i] = submit_bytes(client, EACH * MB, COPIED);
        requests[i] = fake_request(pair->fake, FAKE_TASK);
    }
    fake_reply(pair->fake, FAKE_TASK, "E0", requests[6], "{\"status\": \"ok\"}");
    assert_int_equal(phalanx_wait(results[6], PHALANX_REPLIES, FAKE_TIMEOUT_MS), PHALANX_OK);
    lose_and_mend(pair->fake, client);
    const size_t whole = PX_KEPT_BYTES / (EACH * MB) - 1; /* the costs of messages come on top */
    for (size_t i = 0; i < COUNT; i++) {
        if (i == 6)
            px_msg_destroy(requests[i]);
        else
            expect_again(pair->fake, requests[i], i < COUNT - whole ? 0 : 1);
    }
    for (size_t i = 0; i < COUNT; i++)
        phalanx_result_free(results[i]);
    phalanx_close(client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_PAIR(what_may_change_is_sent_again_without_it),
        WITH_PAIR(what_is_too_much_is_sent_again_without_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
