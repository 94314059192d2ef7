/* SPDX-License-Identifier: BSD-3-Clause */
/* A client and a controller that does what the test says. */
#ifndef PX_CLIENT_PAIR_H
#define PX_CLIENT_PAIR_H

#include "../test.h"

#include "fake.h"

#include <stdlib.h>

#define TWO_ENGINES "\"engines\": {\"0\": \"E0\", \"1\": \"E1\"}"
#define OK_REPLY "{\"status\": \"ok\", \"execution_count\": 1}"

struct pair {
    struct fake *fake;
    phalanx_client *client;
};

static inline int setup(void **state)
{
    struct pair *pair = px_alloc(sizeof *pair);
    pair->fake = fake_create(TWO_ENGINES);
    pair->client = fake_connect(pair->fake);
    *state = pair;
    return 0;
}

static inline int teardown(void **state)
{
    struct pair *pair = *state;
    phalanx_close(pair->client);
    fake_destroy(pair->fake);
    free(pair);
    return 0;
}

static inline phalanx_result *submit_to(phalanx_client *client, const int *targets, size_t count)
{
    struct phalanx_error err = {0};
    const struct phalanx_request request = {
        .type = PHALANX_EXECUTE, .code = "1", .targets = targets, .target_count = count};
    phalanx_result *result = phalanx_submit(client, &request, &err);
    if (!result)
        fail_msg("%s", err.text);
    return result;
}

static inline phalanx_result *submit_one(phalanx_client *client)
{
    return submit_to(client, (int[]){0}, 1);
}

static inline phalanx_result *submit_balanced(phalanx_client *client)
{
    const struct phalanx_buffer buffer = {.data = "f", .size = 1};
    const struct phalanx_request request = {
        .type = PHALANX_APPLY, .route = PHALANX_BALANCED, .buffers = &buffer, .buffer_count = 1};
    phalanx_result *result = phalanx_submit(client, &request, NULL);
    assert_non_null(result);
    return result;
}

/* Something after which all that was sent before must have been filed: a message on the same
 * socket for a result of its own. */
static inline void iopub_is_filed(struct pair *pair)
{
    phalanx_result *mark = submit_to(pair->client, (int[]){1}, 1);
    struct px_msg *request = fake_request(pair->fake, FAKE_MUX);
    fake_publish(pair->fake, "E1", request, "stream", "{\"name\": \"stdout\", \"text\": \"mark\"}");
    assert_int_equal(phalanx_wait(mark, PHALANX_EVENT, FAKE_TIMEOUT_MS), PHALANX_OK);
    phalanx_result_free(mark);
    px_msg_destroy(request);
}

static inline void expect(phalanx_result *result, enum phalanx_event_type type,
                          struct phalanx_event *event)
{
    assert_int_equal(phalanx_next(result, FAKE_TIMEOUT_MS, event), PHALANX_OK);
    assert_int_equal(event->type, type);
}

#define WITH_PAIR(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

#endif
