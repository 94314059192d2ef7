/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The lines of the %px family, and what their targets choose; then the same bytes as output, as
 * stacks, and as a controller's answer.
 * Input: a byte (modulo 5: the magic; half of it: how many engines there are), then the line.
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

/* The bytes as what engines write: a byte chooses the engine and stream of up to 15 that follow. */
static void show(struct px_span text)
{
    static const int engines[] = {0, 1, 2};
    struct px_teller *teller = px_teller_create(engines, 3, text.size & 1);
    struct px_buf told[2] = {0};
    int64_t now_ms = 0;
    for (size_t i = 0; i < text.size;) {
        const unsigned char how = (unsigned char)text.data[i++];
        const size_t left = text.size - i, size = how % 16u < left ? how % 16u : left;
        px_teller_add(teller, how / 16 % 3, how & 64 ? PX_STDERR : PX_STDOUT,
                      (struct px_span){text.data + i, size}, now_ms);
        now_ms += how;
        px_teller_tell(teller, now_ms, false, told);
        i += size;
    }
    px_teller_tell(teller, now_ms, true, told);
    assert(px_teller_due(teller) == INT64_MAX);
    px_teller_destroy(teller);
    px_buf_fini(&told[0]);
    px_buf_fini(&told[1]);
}

static void show_stacks(struct px_span text)
{
    const struct px_stacks engines[] = {{.engine = 0, .text = text},
                                        {.engine = 1, .text = text, .busy = "x"}};
    struct px_buf out = {0};
    px_stacks_render(&out, engines, 2);
    px_buf_clear(&out);
    px_fold_error_key(&out, text);
    assert(out.size <= text.size);
    px_buf_fini(&out);
}

static void say_why(struct px_span text)
{
    struct px_buf out = {0};
    struct px_error err = {0};
    assert(px_why_render(&out, text, &err) == 0 || err.text[0]);
    px_buf_fini(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    const struct px_span text = {(const char *)data + 1, size - 1};
    struct px_line line;
    struct px_error err = {0};
    if (px_line_parse(text, (enum px_magic)(data[0] % 5), &line, &err) == 0) {
        assert(line.code <= text.size);
        resolve(&line.targets, data[0] >> 1);
    } else {
        assert(err.text[0]);
    }
    px_line_fini(&line);
    show(text);
    show_stacks(text);
    say_why(text);
    return 0;
}
