/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * interp: what every language shares: looking one up by name, and letting go of an outcome.
 */
#include "interp/interp.h"

#include <stdlib.h>
#include <string.h>

const struct px_interp_ops *px_interp_find(const struct px_interp_ops *const *table,
                                           const char *name)
{
    for (; *table; table++)
        if (strcmp((*table)->name, name) == 0)
            return *table;
    return NULL;
}

void px_outcome_fini(struct px_outcome *outcome)
{
    px_buf_fini(&outcome->error);
    px_buf_fini(&outcome->payload);
    px_buf_fini(&outcome->user_expressions);
    for (size_t i = 0; i < outcome->buffer_count; i++)
        if (outcome->buffers[i].release)
            outcome->buffers[i].release(outcome->buffers[i].hint);
    free(outcome->buffers);
    *outcome = (struct px_outcome){0};
}
