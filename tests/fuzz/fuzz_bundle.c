/* SPDX-License-Identifier: BSD-3-Clause */
/* The messages of a bundle: what can be unpacked packs into the same bytes. */
#include "wire/wire.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct px_span rest = {(const char *)data, size};
    struct px_buf again = {0};
    for (struct px_msg *msg; (msg = px_msg_unpack(&rest)); px_msg_destroy(msg))
        px_msg_pack(msg, &again);
    assert(again.size + rest.size == size);
    assert(again.size == 0 || memcmp(again.data, data, again.size) == 0);
    px_buf_fini(&again);
    return 0;
}
