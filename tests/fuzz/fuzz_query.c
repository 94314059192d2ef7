/* SPDX-License-Identifier: BSD-3-Clause */
/* Queries of the task database on a record that has a value of every type; dates. */
#include "hub.h"

#include <assert.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static json_t *get_field(void *ctx, const char *field)
{
    return json_incref(json_object_get(ctx, field));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct px_exception exception = {{0}, {0}};
    json_t *record = json_loads("{\"a\": 1, \"b\": \"x\", \"c\": null, \"d\": [1, \"x\"],"
                                " \"e\": {\"k\": 1}, \"f\": \"2026-01-02T03:04:05Z\", \"g\": true}",
                                0, NULL);
    json_t *text = json_loadb((const char *)data, size, JSON_DECODE_ANY, NULL);
    struct px_query *query = px_query_create(text, &exception);
    if (query != NULL && px_query_match(query, get_field, record, &exception) < 0)
        assert(exception.ename[0] != 0 && exception.evalue[0] != 0);
    px_query_destroy(query);
    json_decref(text);
    json_decref(record);
    (void)px_date_parse((struct px_span){(const char *)data, size});
    return 0;
}
