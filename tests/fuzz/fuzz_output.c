/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a program prints, through the bounds of output: whatever is printed, in whatever pieces and
 * at whatever times, what is shown and what is said to be left out add up to all of it, and no
 * more is shown than the allowance. The first bytes are limits; each piece has its length and
 * the time since the one before in front.
 */
#include "output.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct sums {
    uint64_t given, shown, cost, left;
};

static void print(struct px_flow *flow, const struct px_output_config *config, struct px_tail *tail,
                  struct px_span text, int64_t now_ms, struct sums *sums)
{
    const size_t cut = px_text_cut(text.data, text.size, text.size / 2);
    assert(cut <= text.size && cut + 3 >= text.size / 2);
    size_t now = text.size;
    if (tail->bytes > 0)
        now = 0;
    else if (!px_flow_try(flow, config, text.data, text.size))
        now = px_flow_admit(flow, config, text.data, text.size, now_ms);
    assert(now <= text.size);
    sums->given += text.size;
    sums->shown += now;
    sums->cost += px_flow_cost(text.data, now);
    if (now < text.size)
        px_tail_add(tail, text.data + now, text.size - now);
}

static void release(struct px_tail *tail, struct sums *sums)
{
    struct px_buf out = {0};
    uint64_t lines;
    const uint64_t omitted = px_tail_take(tail, &out, &lines);
    assert(lines <= omitted && out.size <= PX_TAIL_SIZE);
    sums->shown += out.size;
    sums->left += omitted;
    px_buf_fini(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    const struct px_output_config config = {.burst_kb = 1 + data[0] % 8, .rate_kb = data[1]};
    struct px_flow flow = {0};
    struct px_tail tail = {0};
    struct sums sums = {0};
    int64_t now_ms = 1;
    for (size_t at = 2; at + 2 < size;) {
        const size_t most = size - at - 2, wanted = (size_t)data[at] * 32;
        const size_t piece = wanted < most ? wanted : most;
        now_ms += data[at + 1];
        print(&flow, &config, &tail, (struct px_span){(const char *)data + at + 2, piece}, now_ms,
              &sums);
        if (tail.bytes > 0 && px_flow_wait(&flow, &config, tail.size, now_ms) == 0) {
            px_flow_spend(&flow, tail.size);
            sums.cost += tail.size;
            release(&tail, &sums);
        }
        at += 2 + piece;
    }
    assert(sums.cost <= (uint64_t)config.burst_kb * 1024 +
                            (uint64_t)now_ms * (uint64_t)config.rate_kb * 1024 / 1000 + 1);
    release(&tail, &sums);
    assert(sums.given == sums.shown + sums.left);
    return 0;
}
