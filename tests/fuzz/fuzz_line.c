/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The line of %px and %%px, and what its targets choose; then the same bytes as output.
 * Input: a byte (bit 0: a cell's line; the rest: how many engines there are), then the line.
 */
#include "magics.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void resolve(const struct px_targets *targets, size_t count)
{
    int ids[128], chosen[128];
    struct px_error err = {0};
    for (size_t i = 0; i < count; i++)
        ids[i] = (int)(2 * i);
    const long found = px_targets_resolve(targets, ids, count, chosen, 128, &err);
    if (found < 0) {
        assert(err.text[0] && !strchr(err.text, '\n'));
        return;
    }
    assert(found > 0);
    for (long i = 0; i < found && i < 128; i++)
        assert(chosen[i] % 2 == 0 && chosen[i] >= 0 && (size_t)chosen[i] < 2 * count);
}

static void show(struct px_span text)
{
    struct px_transcript transcript = {0};
    struct px_buf out = {0};
    px_transcript_add(&transcript, text);
    px_transcript_add(&transcript, text);
    px_transcript_show(&transcript, &out);
    assert(out.size <= 2 * text.size + 100);
    px_transcript_fini(&transcript);
    px_buf_fini(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    const struct px_span text = {(const char *)data + 1, size - 1};
    struct px_line line;
    struct px_error err = {0};
    if (px_line_parse(text, data[0] & 1, &line, &err) == 0) {
        assert(line.code <= text.size);
        resolve(&line.targets, data[0] >> 1);
    } else {
        assert(err.text[0]);
    }
    px_line_fini(&line);
    show(text);
    return 0;
}
