/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * render: how what engines say looks. Pure: text in, text out.
 */
#include "magics.h"

#include <stdio.h>
#include <string.h>

/* ---- transcripts ---------------------------------------------------------------- */

void px_transcript_add(struct px_transcript *transcript, struct px_span text)
{
    if (text.size == 0)
        return;
    transcript->changed = true;
    if (transcript->lost == 0 && transcript->tail.size == 0) {
        const size_t room = PX_TRANSCRIPT_HEAD - transcript->head.size;
        const size_t taken = text.size < room ? text.size : room;
        px_buf_append(&transcript->head, text.data, taken);
        text = (struct px_span){text.data + taken, text.size - taken};
    }
    if (text.size > PX_TRANSCRIPT_TAIL) {
        const size_t skipped = text.size - PX_TRANSCRIPT_TAIL;
        transcript->lost += transcript->tail.size + skipped;
        px_buf_clear(&transcript->tail);
        text = (struct px_span){text.data + skipped, PX_TRANSCRIPT_TAIL};
    }
    px_buf_append(&transcript->tail, text.data, text.size);
    if (transcript->tail.size > 2 * PX_TRANSCRIPT_TAIL) { /* moved seldom, not at each line */
        const size_t excess = transcript->tail.size - PX_TRANSCRIPT_TAIL;
        memmove(transcript->tail.data, transcript->tail.data + excess, PX_TRANSCRIPT_TAIL);
        transcript->tail.size = PX_TRANSCRIPT_TAIL;
        transcript->tail.data[PX_TRANSCRIPT_TAIL] = '\0';
        transcript->lost += excess;
    }
}

/* What is seen of one line: a carriage return starts it anew, unless it ends the line. */
static struct px_span visible(struct px_span line)
{
    while (line.size && line.data[line.size - 1] == '\r')
        line.size--;
    const char *last = NULL;
    for (const char *at = line.data; line.size && at < line.data + line.size; at++) {
        if (*at == '\r')
            last = at;
    }
    if (!last)
        return line;
    return (struct px_span){last + 1, line.size - (size_t)(last + 1 - line.data)};
}

static void show_lines(struct px_buf *out, struct px_span text)
{
    while (text.size) {
        const char *end = memchr(text.data, '\n', text.size);
        const size_t size = end ? (size_t)(end - text.data) : text.size;
        const struct px_span seen = visible((struct px_span){text.data, size});
        px_buf_append(out, seen.data, seen.size);
        if (!end)
            return;
        px_buf_append(out, "\n", 1);
        text = (struct px_span){end + 1, text.size - size - 1};
    }
}

/* From the first whole UTF-8 character on. */
static struct px_span from_character(struct px_span text)
{
    while (text.size && ((unsigned char)text.data[0] & 0xC0) == 0x80)
        text = (struct px_span){text.data + 1, text.size - 1};
    return text;
}

/* Up to the last whole UTF-8 character. */
static struct px_span to_character(struct px_span text)
{
    size_t back = 0;
    while (back < 4 && back < text.size) {
        const unsigned char c = (unsigned char)text.data[text.size - 1 - back];
        const size_t need = c < 0x80 ? 1 : c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : c >= 0xC0 ? 2 : 0;
        back++;
        if (need) {
            if (need > back)
                text.size -= back;
            break;
        }
    }
    return text;
}

void px_transcript_show(struct px_transcript *transcript, struct px_buf *out)
{
    transcript->changed = false;
    if (transcript->lost == 0) {
        /* One text, whose cut may lie inside a line. */
        struct px_buf whole = {0};
        px_buf_append(&whole, transcript->head.data, transcript->head.size);
        px_buf_append(&whole, transcript->tail.data, transcript->tail.size);
        show_lines(out, px_buf_span(&whole));
        px_buf_fini(&whole);
        return;
    }
    show_lines(out, to_character(px_buf_span(&transcript->head)));
    px_buf_printf(out, "\n[... %zu bytes are left out here ...]\n", transcript->lost);
    show_lines(out, from_character(px_buf_span(&transcript->tail)));
}

void px_transcript_fini(struct px_transcript *transcript)
{
    px_buf_fini(&transcript->head);
    px_buf_fini(&transcript->tail);
}

/* ---- labels and results ------------------------------------------------------------- */

void px_render_label(struct px_buf *out, const char *what, int engine)
{
    px_buf_printf(out, "[%s:%d] ", what, engine);
}

void px_render_result(struct px_buf *out, int engine, long count, struct px_span text, bool color)
{
    const bool several = text.size && memchr(text.data, '\n', text.size) && text.data[0] != '\n';
    px_buf_printf(out, "%sOut[%d:%ld]: %s%s", color ? "\033[0;31m" : "", engine, count,
                  color ? "\033[0m" : "", several ? "\n" : "");
    px_buf_append(out, text.data, text.size);
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

/* ---- a terminal ------------------------------------------------------------------------ */

void px_terminal_text(struct px_terminal *terminal, struct px_buf *out, const char *what,
                      int engine, struct px_span text)
{
    if (text.size == 0)
        return;
    char label[sizeof terminal->label];
    snprintf(label, sizeof label, "[%s:%d] ", what, engine);
    if (strcmp(label, terminal->label) != 0) {
        px_buf_text(out, terminal->mid_line ? "\n" : "");
        px_buf_text(out, label);
        strcpy(terminal->label, label);
    }
    px_buf_append(out, text.data, text.size);
    terminal->mid_line = text.data[text.size - 1] != '\n';
}
