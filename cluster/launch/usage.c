/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * usage: what engines use, asked of each on its control channel (kernel/usage.c) and added to what
 * the controller says of them. Those of ipengine, which answer between two tasks, are not asked.
 */
#include "launch.h"

#include "client/phalanx.h"

#include <stdio.h>

#define MOST_ASKED 1000

/* What to add to an engine that says this of itself; NULL where it does not say it. */
static json_t *read_reply(const char *content)
{
    json_t *reply = px_json_parse(px_span_of(content), NULL);
    const json_t *memory = json_object_get(reply, "kernel_memory");
    const json_t *cpu = json_object_get(reply, "kernel_cpu");
    const json_t *host = json_object_get(json_object_get(reply, "host_virtual_memory"), "percent");
    json_t *added = NULL;
    if (json_is_integer(memory) && json_is_number(cpu) && json_is_number(host))
        added = json_pack("{s:I, s:f, s:f}", "memory_bytes", json_integer_value(memory),
                          "cpu_percent", json_number_value(cpu), "host_memory_percent",
                          json_number_value(host));
    json_decref(reply);
    return added;
}

/* By id, of those that answer in time. */
static void read_replies(phalanx_result *result, json_t *used)
{
    struct phalanx_event event;
    while (phalanx_next(result, 0, &event) == PHALANX_OK) {
        if (event.type != PHALANX_REPLY || event.failed)
            continue;
        char id[24];
        json_t *added = read_reply(event.content);
        snprintf(id, sizeof id, "%d", event.engine);
        if (added)
            json_object_set_new(used, id, added);
    }
}

static void ask(phalanx_client *client, int64_t timeout_ms, json_t *used)
{
    int ids[MOST_ASKED + 1];
    const size_t count = phalanx_engines_with(client, "stacks", ids, PX_COUNT(ids));
    const struct phalanx_request request = {.type = PHALANX_CONTROL,
                                            .targets = ids,
                                            .target_count = count,
                                            .message = "usage_request"};
    if (count == 0 || count > MOST_ASKED)
        return;
    phalanx_result *result = phalanx_submit(client, &request, NULL);
    if (result == NULL)
        return; /* an engine has just gone: the next look has the others */
    (void)phalanx_wait(result, PHALANX_REPLIES, timeout_ms);
    read_replies(result, used);
    phalanx_result_free(result);
}

void px_add_usage(phalanx_client *client, int64_t timeout_ms, json_t *status)
{
    size_t i;
    json_t *engine, *used = json_object();
    ask(client, timeout_ms, used);
    json_array_foreach(json_object_get(status, "engines"), i, engine) {
        char id[24];
        snprintf(id, sizeof id, "%d", (int)json_integer_value(json_object_get(engine, "id")));
        json_object_update_missing(engine, json_object_get(used, id));
    }
    json_decref(used);
}
