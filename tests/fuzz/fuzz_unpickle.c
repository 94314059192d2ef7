/* SPDX-License-Identifier: BSD-3-Clause */
/* The value of a call, as an engine may have written it: a text inside the pickle, or nothing. */
#include "client/client.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct px_span pickle = {(const char *)data, size};
    struct px_span text;
    if (px_unpickle_text(pickle, &text)) {
        assert(text.data > pickle.data && text.size < size);
        assert(text.data + text.size < pickle.data + size); /* STOP is behind it */
    }
    const struct phalanx_buffer buffer = {.data = data, .size = size};
    const struct phalanx_event event = {
        .type = PHALANX_REPLY, .buffers = &buffer, .buffer_count = 1};
    struct phalanx_error err;
    char *value = phalanx_value(&event, &err);
    free(value);
    char *content = px_alloc(size + 1);
    memcpy(content, data, size);
    const struct phalanx_event failed = {.type = PHALANX_REPLY, .failed = true, .content = content};
    assert(!phalanx_value(&failed, &err) && err.code == PHALANX_EREMOTE);
    free(content);
    return 0;
}
