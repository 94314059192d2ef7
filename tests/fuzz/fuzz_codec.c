/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Frames from outside: locate, verify, scan the header, and the relay's moves.
 * Input: a byte that chooses the key, then frames, each a length byte and its bytes.
 */
#include "wire/wire.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct px_msg *frames(const uint8_t *data, size_t size)
{
    struct px_msg *msg = px_msg_create();
    while (size > 0) {
        size_t length = data[0];
        data++;
        size--;
        length = length < size ? length : size;
        px_msg_append(msg, data, length);
        data += length;
        size -= length;
    }
    return msg;
}

static void look_at(struct px_msg *msg, const char *key)
{
    struct px_error err;
    struct px_header header;
    if (px_msg_locate(msg, &err) < 0)
        return;
    struct px_session *session = px_session_create(key, NULL, NULL, NULL);
    const size_t idents = px_msg_ident_count(msg), buffers = px_msg_buffer_count(msg);
    assert(idents + 6 + buffers == px_msg_count(msg));
    if (px_session_verify(session, msg, &err) == 0)
        (void)!px_header_scan(px_msg_header(msg), &header, &err);
    px_session_resign(session, msg);
    assert(px_session_verify(session, msg, &err) == 0 || err.code == PX_EEXIST);
    px_msg_prepend(msg, "relay", 5);
    assert(px_msg_ident_count(msg) == idents + 1);
    struct px_msg *copy = px_msg_copy(msg);
    px_msg_drop_front(msg, 1);
    assert(px_msg_bytes(copy) == px_msg_bytes(msg) + 5);
    px_msg_destroy(copy);
    px_session_destroy(session);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    struct px_msg *msg = frames(data + 1, size - 1);
    look_at(msg, data[0] & 1 ? "" : "key");
    px_msg_destroy(msg);
    return 0;
}
