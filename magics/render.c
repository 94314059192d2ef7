/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * render: labels, results, errors' heads, lists of engines, the progress line. Pure.
 */
#include "magics.h"

#include <string.h>

#define PENDING_SHOWN 8 /* engines that the progress line names */

void px_render_label(struct px_buf *out, const char *what, const int *ids, size_t count)
{
    px_buf_printf(out, "[%s:", what);
    px_render_ranges(out, ids, count);
    px_buf_text(out, "] ");
}

void px_render_result(struct px_buf *out, const int *ids, size_t count, long number,
                      struct px_span text, bool color)
{
    const bool several = text.size && memchr(text.data, '\n', text.size) && text.data[0] != '\n';
    px_buf_printf(out, "%sOut[", color ? "\033[0;31m" : "");
    px_render_ranges(out, ids, count);
    if (number >= 0)
        px_buf_printf(out, ":%ld", number);
    px_buf_printf(out, "]: %s%s", color ? "\033[0m" : "", several ? "\n" : "");
    px_buf_append(out, text.data, text.size);
}

void px_render_bounded(struct px_buf *out, struct px_span text, size_t most)
{
    const size_t head = px_text_cut(text.data, text.size, most / 2);
    size_t tail = text.size - most / 2;
    px_buf_text(out, "");
    if (text.size <= most) {
        px_buf_append(out, text.data, text.size);
        return;
    }
    while (tail < text.size && ((unsigned char)text.data[tail] & 0xC0) == 0x80)
        tail++;
    px_buf_append(out, text.data, head);
    px_buf_printf(out, "\n[... %zu bytes are left out here ...]\n", tail - head);
    px_buf_append(out, text.data + tail, text.size - tail);
}

void px_render_engines(struct px_buf *out, const int *ids, size_t count)
{
    const bool many = count > 16;
    const size_t shown = many ? 4 : count;
    px_buf_text(out, "");
    for (size_t i = 0; i < shown; i++)
        px_buf_printf(out, "%s%d", i == 0 ? "" : i + 1 == count ? " and " : ", ", ids[i]);
    if (many)
        px_buf_printf(out, ", ... (%zu engines)", count);
}

void px_render_duration(struct px_buf *out, double seconds)
{
    const long whole = seconds > 0 && seconds < 1e9 ? (long)seconds : 0;
    if (whole < 60)
        px_buf_printf(out, "%ld s", whole);
    else if (whole < 3600)
        px_buf_printf(out, "%ld min %ld s", whole / 60, whole % 60);
    else
        px_buf_printf(out, "%ld h %ld min", whole / 3600, whole / 60 % 60);
}

void px_render_progress(struct px_buf *out, size_t done, size_t count, const int *pending,
                        size_t pending_count, double seconds)
{
    px_buf_printf(out, "%%px: %zu of %zu engine%s done, ", done, count, count == 1 ? "" : "s");
    px_render_duration(out, seconds);
    if (done && pending_count && pending_count <= PENDING_SHOWN) {
        px_buf_text(out, "; at work: ");
        px_render_ranges(out, pending, pending_count);
    }
}

void px_render_ladder(struct px_buf *out, const int *ids, size_t count)
{
    struct px_buf list = {0};
    for (size_t i = 0; i < count; i++)
        px_buf_printf(&list, "%s%d", i ? "," : "", ids[i]);
    px_buf_printf(out, "%%px: engine%s ", count == 1 ? "" : "s");
    px_render_engines(out, ids, count);
    px_buf_printf(out,
                  " %s not come back. To wait on, see, kill or replace %s, type\n"
                  "    %%pxresult\n"
                  "    %%pxstacks --targets %s\n"
                  "    %%pxcluster engines --kill %s\n"
                  "    %%pxcluster engines --restart %s\n",
                  count == 1 ? "has" : "have", count == 1 ? "it" : "them", list.data, list.data,
                  list.data);
    px_buf_fini(&list);
}

void px_render_left(struct px_buf *out, const int *ids, size_t count)
{
    px_buf_printf(out, "%%px: left engine%s ", count == 1 ? "" : "s");
    px_render_ranges(out, ids, count);
    px_buf_printf(out,
                  ", which nothing reaches without the controller. To wait on for %s, type\n"
                  "    %%pxresult\n",
                  count == 1 ? "it" : "them");
}

void px_render_away(struct px_buf *out, const char *until, bool interruptible)
{
    px_buf_printf(out, "%%px: the controller cannot be reached; waiting for it until %s%s\n", until,
                  interruptible ? "; an interrupt ends the cell" : "");
}

void px_render_back(struct px_buf *out, double seconds)
{
    px_buf_text(out, "%px: the controller is back, after ");
    px_render_duration(out, seconds);
    px_buf_text(out, "\n");
}
