/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * flow: how much text may go at once, and the last text of what may not.
 *
 * A flow is a bucket: text spends of a burst, and what was spent comes back with time. So a cell
 * that prints a few thousand lines is not touched, one that prints for ever costs its readers no
 * more than the rate. The tail is a ring with a count, so that a flood of any length is held in
 * PX_TAIL_SIZE bytes.
 *
 * Pure: no clock, no lock, no thread.
 */
#include "output.h"

#include <stdlib.h>
#include <string.h>

#define LONGEST_WAIT_MS 60000

/* ---- flow ---- */

static size_t count_lines(const char *text, size_t size)
{
    size_t lines = 0;
    const char *end = text + size;
    for (const char *at = text; at < end && (at = memchr(at, '\n', (size_t)(end - at))); at++)
        lines++;
    return lines;
}

size_t px_flow_cost(const char *text, size_t size)
{
    return size + count_lines(text, size);
}

static void refill(struct px_flow *flow, const struct px_output_config *config, int64_t now_ms)
{
    const int64_t passed_ms = now_ms - flow->filled_ms;
    flow->filled_ms = now_ms;
    if (passed_ms <= 0)
        return;
    /* Whoever was silent for an hour has a burst, not an hour's worth; and nothing overflows. */
    const int64_t gained =
        passed_ms > 3600000 ? flow->spent : passed_ms * config->rate_kb * 1024 / 1000;
    flow->spent = gained < flow->spent ? flow->spent - gained : 0;
}

static int64_t left(const struct px_flow *flow, const struct px_output_config *config)
{
    return (int64_t)config->burst_kb * 1024 - flow->spent;
}

void px_flow_spend(struct px_flow *flow, size_t cost)
{
    flow->spent += (int64_t)cost;
}

#define WORTH_CUTTING 4096

/* The longest beginning of whole lines that costs at most `most`; of whole characters where one
 * line is longer than that. */
static size_t beginning(const char *text, size_t size, size_t most)
{
    size_t good = 0, cost = 0;
    while (good < size) {
        const char *end = memchr(text + good, '\n', size - good);
        if (!end)
            break;
        const size_t line = (size_t)(end + 1 - (text + good));
        if (cost + line + 1 > most)
            break;
        cost += line + 1;
        good += line;
    }
    if (good > 0 || most < WORTH_CUTTING || size <= most)
        return good;
    return px_text_cut(text, size, most);
}

bool px_flow_try(struct px_flow *flow, const struct px_output_config *config, const char *text,
                 size_t size)
{
    if (config->burst_kb == 0)
        return true;
    const int64_t room = left(flow, config);
    if (flow->spent == 0 || (int64_t)size > room)
        return false;
    const size_t cost = px_flow_cost(text, size);
    if ((int64_t)cost > room)
        return false;
    px_flow_spend(flow, cost);
    return true;
}

size_t px_flow_admit(struct px_flow *flow, const struct px_output_config *config, const char *text,
                     size_t size, int64_t now_ms)
{
    size_t cost = px_flow_cost(text, size);
    if ((int64_t)cost > left(flow, config))
        refill(flow, config, now_ms);
    const int64_t most = left(flow, config);
    size_t admitted = size;
    if ((int64_t)cost > most) {
        admitted = most > 0 ? beginning(text, size, (size_t)most) : 0;
        cost = px_flow_cost(text, admitted);
    }
    if (flow->spent == 0)
        flow->filled_ms = now_ms;
    px_flow_spend(flow, cost);
    return admitted;
}

int64_t px_flow_wait(struct px_flow *flow, const struct px_output_config *config, size_t cost,
                     int64_t now_ms)
{
    refill(flow, config, now_ms);
    const int64_t missing = (int64_t)cost - left(flow, config);
    if (missing <= 0)
        return 0;
    const int64_t wait_ms =
        config->rate_kb > 0 ? missing * 1000 / (config->rate_kb * 1024) + 1 : LONGEST_WAIT_MS;
    return wait_ms < LONGEST_WAIT_MS ? wait_ms : LONGEST_WAIT_MS;
}

/* ---- tail ---- */

void px_tail_add(struct px_tail *tail, const char *text, size_t size)
{
    if (!tail->data)
        tail->data = px_alloc(PX_TAIL_SIZE);
    tail->bytes += size;
    tail->lines += count_lines(text, size);
    if (size > PX_TAIL_SIZE) {
        text += size - PX_TAIL_SIZE;
        size = PX_TAIL_SIZE;
    }
    const size_t first = PX_TAIL_SIZE - tail->next < size ? PX_TAIL_SIZE - tail->next : size;
    memcpy(tail->data + tail->next, text, first);
    memcpy(tail->data, text + first, size - first);
    tail->next = (tail->next + size) % PX_TAIL_SIZE;
    tail->size = tail->size + size < PX_TAIL_SIZE ? tail->size + size : PX_TAIL_SIZE;
}

/* Where the first whole line begins; in one long line, the first whole character. */
static size_t first_start(const char *text, size_t size)
{
    const char *end = memchr(text, '\n', size);
    if (end && (size_t)(end + 1 - text) < size)
        return (size_t)(end + 1 - text);
    size_t start = 0;
    while (start < 3 && start < size && ((unsigned char)text[start] & 0xc0) == 0x80)
        start++;
    return start;
}

uint64_t px_tail_take(struct px_tail *tail, struct px_buf *out, uint64_t *lines)
{
    const size_t size = tail->size;
    const size_t start = (tail->next + PX_TAIL_SIZE - size) % PX_TAIL_SIZE;
    const size_t first = PX_TAIL_SIZE - start < size ? PX_TAIL_SIZE - start : size;
    struct px_buf text = {0};
    if (size > 0) {
        px_buf_append(&text, tail->data + start, first);
        px_buf_append(&text, tail->data, size - first);
    }
    const size_t cut = tail->bytes > size ? first_start(text.data, size) : 0;
    const uint64_t omitted = tail->bytes - (size - cut);
    if (size > 0) {
        px_buf_append(out, text.data + cut, size - cut);
        *lines = tail->lines - count_lines(text.data + cut, size - cut);
    } else {
        *lines = 0;
    }
    px_buf_fini(&text);
    px_tail_fini(tail);
    return omitted;
}

void px_tail_fini(struct px_tail *tail)
{
    free(tail->data);
    *tail = (struct px_tail){0};
}
