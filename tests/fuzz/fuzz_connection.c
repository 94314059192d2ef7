/* SPDX-License-Identifier: BSD-3-Clause */
/* Connection files: the first byte chooses the role, the rest is the file. */
#include "wire/wire.h"

#include <assert.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    struct px_cluster_connection connection;
    struct px_error err;
    const enum px_role role = data[0] & 1 ? PX_ROLE_ENGINE : PX_ROLE_CLIENT;
    const struct px_span text = {(const char *)data + 1, size - 1};
    if (px_cluster_connection_parse(text, "file", role, &connection, &err) < 0) {
        assert(!connection.interface && err.text[0]);
        return 0;
    }
    assert(connection.broadcast_count >= 1 && connection.broadcast_count <= PX_MAX_LEAVES);
    px_cluster_connection_fini(&connection);
    return 0;
}
