/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * teller: what engines write becomes one text with labels. Pure: the caller says what time it is.
 *
 *     px_teller_add ---> head of a speaker ---> px_teller_tell ---> "[stdout:0-62] \n..."
 *                   \--> tail, once the head is spent
 *
 * A speaker is a stream of an engine. Its text waits for a moment, so that what others say alike
 * can be told with it: once, with all their numbers. Of texts that begin alike and then differ the
 * common lines are told once, then how each goes on; but a few lines above more that differ are
 * taken for their header, as a table has one, and stay with each. Who has waited long enough is
 * told without those who have not. The start of a speaker's text is told as it comes; of what
 * follows, its newest lines at growing intervals, and the end. So text that never ends is
 * shown alive and stays small.
 */
#include "magics.h"

#include <stdlib.h>
#include <string.h>

#define HEAD_ALL ((size_t)1 << 20) /* of all engines' streams, shared out among them */
#define HEAD_MOST ((size_t)32 << 10)
#define HEAD_LEAST ((size_t)2 << 10)
#define GLIMPSE_SIZE ((size_t)2 << 10) /* of a tail, shown while it grows */
#define GLIMPSE_FIRST_MS 1000
#define GLIMPSE_LAST_MS 60000 /* the interval doubles up to this */
#define PARTIAL_MS 500        /* an unfinished line waits so long for its end */
#define SLACK_MS 100          /* less, where another's has waited so long */
#define WINDOW_LEAST_MS 150   /* how long text waits for others to say the same */
#define WINDOW_ENGINE_MS 3    /* and for each engine */
#define WINDOW_MOST_MS 500
#define HEADER_MOST 8 /* lines; more of them, in common, are no header */
#define LABEL_SIZE 128

struct speaker {
    struct px_buf head; /* not told yet */
    size_t taken;       /* bytes that have ever been put there */
    struct px_buf tail; /* what came after the head was spent */
    size_t lost;        /* bytes left out before the tail */
    int64_t since_ms;   /* since when the head, or the first line that ends in it, waits */
    int64_t glimpse_ms, gap_ms;
    size_t ready; /* while telling: bytes of the head that may be told */
};

struct px_teller {
    int *engines;
    size_t count, live;
    bool fold;
    bool *ended;
    struct speaker *speakers[2]; /* by stream and task */
    size_t part;                 /* of the head and of the tail, for each speaker */
    int64_t window_ms;
    char label[LABEL_SIZE]; /* of what was told last */
    bool mid_line;
    enum px_stream last;
};

const char *const px_stream_names[] = {"stdout", "stderr"};

/* ---- text ------------------------------------------------------------------------ */

/* What is seen of one line: a carriage return starts it anew, unless it ends the line. */
static struct px_span visible(struct px_span line)
{
    while (line.size && line.data[line.size - 1] == '\r')
        line.size--;
    for (size_t i = line.size; i > 0; i--) {
        if (line.data[i - 1] == '\r')
            return (struct px_span){line.data + i, line.size - i};
    }
    return line;
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

/* The size of the whole lines at the start. */
static size_t whole_lines(struct px_span text)
{
    while (text.size && text.data[text.size - 1] != '\n')
        text.size--;
    return text.size;
}

static size_t first_line(struct px_span text)
{
    const char *end = text.size ? memchr(text.data, '\n', text.size) : NULL;
    return end ? (size_t)(end - text.data) + 1 : text.size;
}

static bool has_line(struct px_span text)
{
    return text.size && memchr(text.data, '\n', text.size);
}

static size_t count_lines(struct px_span text)
{
    size_t lines = 0;
    for (; text.size; lines++) {
        const size_t size = first_line(text);
        text = (struct px_span){text.data + size, text.size - size};
    }
    return lines;
}

/* The end of the text, `size` bytes at most, from the start of a line or at least of a character.
 */
static struct px_span last_part(struct px_span text, size_t size)
{
    if (text.size <= size)
        return text;
    struct px_span part = {text.data + text.size - size, size};
    const size_t skipped = first_line(part);
    if (skipped < part.size)
        return (struct px_span){part.data + skipped, part.size - skipped};
    while (part.size && ((unsigned char)part.data[0] & 0xC0) == 0x80)
        part = (struct px_span){part.data + 1, part.size - 1};
    return part;
}

static void drop_front(struct px_buf *buf, size_t size)
{
    if (size == 0)
        return;
    memmove(buf->data, buf->data + size, buf->size - size);
    buf->size -= size;
    buf->data[buf->size] = '\0';
}

/* ---- hearing ----------------------------------------------------------------------- */

static void add_tail(struct speaker *speaker, struct px_span text, size_t most)
{
    if (text.size > most) {
        const struct px_span part = last_part(text, most);
        speaker->lost += speaker->tail.size + text.size - part.size;
        px_buf_clear(&speaker->tail);
        text = part;
    }
    px_buf_append(&speaker->tail, text.data, text.size);
    if (speaker->tail.size > 2 * most) { /* moved seldom, not at each line */
        const size_t kept = last_part(px_buf_span(&speaker->tail), most).size;
        speaker->lost += speaker->tail.size - kept;
        drop_front(&speaker->tail, speaker->tail.size - kept);
    }
}

void px_teller_add(struct px_teller *teller, size_t task, enum px_stream stream,
                   struct px_span text, int64_t now_ms)
{
    struct speaker *speaker = &teller->speakers[stream][task];
    if (text.size == 0)
        return;
    if (speaker->head.size == 0 || (has_line(text) && !has_line(px_buf_span(&speaker->head))))
        speaker->since_ms = now_ms;
    if (speaker->tail.size == 0 && speaker->lost == 0 && speaker->taken < teller->part) {
        size_t taken = px_text_cut(text.data, text.size, teller->part - speaker->taken);
        const size_t lines = whole_lines((struct px_span){text.data, taken});
        taken = taken < text.size && lines ? lines : taken; /* a line is cut only if it is long */
        px_buf_append(&speaker->head, text.data, taken);
        speaker->taken = taken < text.size ? teller->part : speaker->taken + taken;
        text = (struct px_span){text.data + taken, text.size - taken};
    }
    if (text.size == 0)
        return;
    if (speaker->gap_ms == 0) {
        speaker->gap_ms = GLIMPSE_FIRST_MS;
        speaker->glimpse_ms = now_ms + speaker->gap_ms;
    }
    speaker->taken = teller->part;
    add_tail(speaker, text, teller->part);
}

void px_teller_end(struct px_teller *teller, size_t task, int64_t now_ms)
{
    for (int i = 0; i < 2 && !teller->ended[task]; i++) {
        struct speaker *speaker = &teller->speakers[i][task];
        if (!has_line(px_buf_span(&speaker->head)))
            speaker->since_ms = now_ms;
    }
    teller->live -= !teller->ended[task];
    teller->ended[task] = true;
}

/* ---- telling ---------------------------------------------------------------------------- */

static void render_label(const struct px_teller *teller, enum px_stream stream,
                         const size_t *members, size_t count, char *out)
{
    struct px_buf label = {0};
    int *ids = px_alloc(count * sizeof *ids);
    for (size_t i = 0; i < count; i++)
        ids[i] = teller->engines[members[i]];
    px_render_label(&label, px_stream_names[stream], ids, count);
    memcpy(out, label.data, label.size < LABEL_SIZE ? label.size + 1 : LABEL_SIZE);
    out[LABEL_SIZE - 1] = '\0';
    px_buf_fini(&label);
    free(ids);
}

/* Appends `text` under its label, unless the label is what was told last. */
static void say(struct px_teller *teller, enum px_stream stream, const size_t *members,
                size_t count, struct px_span text, struct px_buf out[2])
{
    char label[LABEL_SIZE];
    const size_t before = out[stream].size;
    render_label(teller, stream, members, count, label);
    if (strcmp(label, teller->label) != 0) {
        px_buf_printf(&out[stream], "%s%s\n", teller->mid_line ? "\n" : "", label);
        memcpy(teller->label, label, sizeof label);
        teller->mid_line = false;
    }
    show_lines(&out[stream], text);
    if (out[stream].size > before)
        teller->mid_line = out[stream].data[out[stream].size - 1] != '\n';
    teller->last = stream;
}

/* How much of a speaker's head may be told now. */
static size_t ready_size(struct speaker *speaker, bool whole, int64_t now_ms)
{
    const struct px_span head = px_buf_span(&speaker->head);
    if (whole || head.size == 0)
        return head.size;
    const size_t lines = whole_lines(head);
    if (lines)
        return lines;
    if (memchr(head.data, '\r', head.size)) { /* a progress bar: seldom, and what is seen of it */
        const int64_t gap_ms = speaker->gap_ms ? speaker->gap_ms : GLIMPSE_FIRST_MS;
        if (now_ms < speaker->since_ms + gap_ms - SLACK_MS)
            return 0;
        speaker->gap_ms = 2 * gap_ms < GLIMPSE_LAST_MS ? 2 * gap_ms : GLIMPSE_LAST_MS;
        px_buf_append(&speaker->head, "\n", 1);
        return speaker->head.size;
    }
    return now_ms >= speaker->since_ms + PARTIAL_MS - SLACK_MS ? head.size : 0;
}

static struct px_span ready_text(const struct speaker *speaker)
{
    return (struct px_span){speaker->head.data, speaker->ready};
}

/* What is told in one go. */
struct turn {
    struct px_teller *teller;
    enum px_stream stream;
    int64_t now_ms;
    bool all;
    struct px_buf *out; /* by stream */
};

/* The size of the whole lines that all of them have in common. */
static size_t common_size(const struct turn *turn, const size_t *members, size_t count)
{
    const struct speaker *speakers = turn->teller->speakers[turn->stream];
    struct px_span common = ready_text(&speakers[members[0]]);
    for (size_t i = 1; i < count; i++) {
        const struct px_span other = ready_text(&speakers[members[i]]);
        size_t same = 0;
        while (same < common.size && same < other.size && common.data[same] == other.data[same])
            same++;
        if (same < common.size || same < other.size)
            same = whole_lines((struct px_span){common.data, same});
        common.size = turn->teller->fold ? same : 0;
    }
    return common.size;
}

static bool group_is_due(const struct turn *turn, const size_t *members, size_t count)
{
    const struct px_teller *teller = turn->teller;
    size_t live = 0;
    bool due = turn->all;
    for (size_t i = 0; i < count; i++) {
        const struct speaker *speaker = &teller->speakers[turn->stream][members[i]];
        live += !teller->ended[members[i]];
        due |= turn->now_ms - speaker->since_ms >= teller->window_ms;
    }
    return due || live == teller->live; /* nobody is left who could join them */
}

/* Whether the first `head` bytes of some are told once, and then how each goes on; not if these are
 * fewer lines, unless one may yet go on as the others do. `first`: of those whose next line is the
 * same. */
static bool is_told_once(const struct turn *turn, const size_t *members, const size_t *first,
                         size_t count, size_t head)
{
    const struct speaker *speakers = turn->teller->speakers[turn->stream];
    size_t longest = 0, ways = 0;
    bool behind = false;
    for (size_t i = 0; i < count; i++) {
        const struct px_span text = ready_text(&speakers[members[i]]);
        const size_t lines = count_lines((struct px_span){text.data + head, text.size - head});
        longest = lines > longest ? lines : longest;
        ways += first[i] == i && lines;
        behind |= !lines && !turn->all && !turn->teller->ended[members[i]];
    }
    const size_t lines = count_lines((struct px_span){speakers[members[0]].head.data, head});
    return lines && (lines >= longest || lines > HEADER_MOST || (behind && ways < 2));
}

/* Tells what they have in common. What follows it may be told too if this is `all`; else it waits
 * anew for those who are behind. */
static void tell_head(const struct turn *turn, const size_t *members, size_t count, size_t head)
{
    struct speaker *speakers = turn->teller->speakers[turn->stream];
    say(turn->teller, turn->stream, members, count,
        (struct px_span){speakers[members[0]].head.data, head}, turn->out);
    for (size_t i = 0; i < count; i++) {
        struct speaker *speaker = &speakers[members[i]];
        drop_front(&speaker->head, head);
        speaker->ready = turn->all ? speaker->ready - head : 0;
        speaker->since_ms = turn->now_ms;
    }
}

/* Tells what some have to say: together, or each group that goes on alike. */
static void tell_group(const struct turn *turn, const size_t *members, size_t count)
{
    if (count == 0 || !group_is_due(turn, members, count))
        return;
    const size_t head = common_size(turn, members, count);
    struct px_span *next = px_alloc(count * sizeof *next); /* lines */
    size_t *first = px_alloc(count * sizeof *first), *part = px_alloc(count * sizeof *part);
    for (size_t i = 0; i < count; i++) {
        const struct px_span text = ready_text(&turn->teller->speakers[turn->stream][members[i]]);
        next[i] = (struct px_span){text.data + head, text.size - head};
        next[i].size = first_line(next[i]);
        first[i] = i;
    }
    if (turn->teller->fold)
        px_fold(next, count, first);
    const bool once = is_told_once(turn, members, first, count, head);
    if (once)
        tell_head(turn, members, count, head);
    for (size_t i = 0; i < count && (turn->all || !once); i++) {
        const size_t size = px_fold_members(first, count, i, part);
        for (size_t j = 0; j < size; j++)
            part[j] = members[part[j]];
        if (!once || next[i].size)
            tell_group(turn, part, size);
    }
    free(part);
    free(first);
    free(next);
}

static void tell_heads(const struct turn *turn)
{
    const struct px_teller *teller = turn->teller;
    size_t *tasks = px_alloc((teller->count + 1) * sizeof *tasks), count = 0;
    for (size_t i = 0; i < teller->count; i++) {
        struct speaker *speaker = &teller->speakers[turn->stream][i];
        speaker->ready = ready_size(speaker, turn->all || teller->ended[i], turn->now_ms);
        if (speaker->ready)
            tasks[count++] = i;
    }
    tell_group(turn, tasks, count);
    free(tasks);
}

/* ---- tails ------------------------------------------------------------------------------- */

/* Takes what is to be told of a tail; nothing when it is not its time. */
static void take_tail(struct px_teller *teller, struct speaker *speaker, bool whole, int64_t now_ms,
                      struct px_buf *out)
{
    if (speaker->tail.size == 0 || speaker->head.size || (!whole && now_ms < speaker->glimpse_ms))
        return;
    const size_t most = whole ? teller->part : GLIMPSE_SIZE;
    const struct px_span part = last_part(px_buf_span(&speaker->tail), most);
    speaker->lost += speaker->tail.size - part.size;
    if (speaker->lost)
        px_buf_printf(out, "[... %zu bytes are left out here ...]\n", speaker->lost);
    px_buf_append(out, part.data, part.size);
    if (out->data[out->size - 1] != '\n')
        px_buf_append(out, "\n", 1);
    px_buf_clear(&speaker->tail);
    speaker->lost = 0;
    speaker->gap_ms = 2 * speaker->gap_ms < GLIMPSE_LAST_MS ? 2 * speaker->gap_ms : GLIMPSE_LAST_MS;
    speaker->glimpse_ms = now_ms + speaker->gap_ms;
}

static void tell_tails(struct px_teller *teller, enum px_stream stream, int64_t now_ms, bool all,
                       struct px_buf out[2])
{
    const size_t count = teller->count;
    struct px_buf *texts = px_alloc(count * sizeof *texts);
    struct px_span *keys = px_alloc(count * sizeof *keys);
    size_t *first = px_alloc(count * sizeof *first), *members = px_alloc(count * sizeof *members);
    for (size_t i = 0; i < count; i++) {
        take_tail(teller, &teller->speakers[stream][i], all || teller->ended[i], now_ms, &texts[i]);
        keys[i] = px_buf_span(&texts[i]);
        first[i] = i;
    }
    if (teller->fold)
        px_fold(keys, count, first);
    for (size_t i = 0; i < count; i++) {
        const size_t size = keys[i].size ? px_fold_members(first, count, i, members) : 0;
        if (size)
            say(teller, stream, members, size, keys[i], out);
    }
    for (size_t i = 0; i < count; i++)
        px_buf_fini(&texts[i]);
    free(members);
    free(first);
    free(keys);
    free(texts);
}

static bool has_tail(const struct px_teller *teller, enum px_stream stream)
{
    for (size_t i = 0; i < teller->count; i++) {
        if (teller->speakers[stream][i].tail.size)
            return true;
    }
    return false;
}

/* ---- the contract -------------------------------------------------------------------------- */

void px_teller_tell(struct px_teller *teller, int64_t now_ms, bool all, struct px_buf out[2])
{
    for (enum px_stream stream = PX_STDOUT; stream <= PX_STDERR; stream++) {
        tell_heads(&(struct turn){teller, stream, now_ms, all, out});
        if (has_tail(teller, stream))
            tell_tails(teller, stream, now_ms, all, out);
    }
}

/* When a speaker's text is due. */
static int64_t due_ms(const struct px_teller *teller, size_t task, enum px_stream stream)
{
    const struct speaker *speaker = &teller->speakers[stream][task];
    if (speaker->head.size == 0)
        return speaker->tail.size ? speaker->glimpse_ms : INT64_MAX;
    if (teller->ended[task] || memchr(speaker->head.data, '\n', speaker->head.size))
        return speaker->since_ms + teller->window_ms;
    if (!memchr(speaker->head.data, '\r', speaker->head.size))
        return speaker->since_ms + PARTIAL_MS;
    return speaker->since_ms + (speaker->gap_ms ? speaker->gap_ms : GLIMPSE_FIRST_MS);
}

int64_t px_teller_due(const struct px_teller *teller)
{
    int64_t due = INT64_MAX;
    for (size_t i = 0; i < teller->count; i++) {
        for (enum px_stream stream = PX_STDOUT; stream <= PX_STDERR; stream++) {
            const int64_t one = due_ms(teller, i, stream);
            due = one < due ? one : due;
        }
    }
    return due;
}

void px_teller_break(struct px_teller *teller, struct px_buf out[2])
{
    if (teller->mid_line)
        px_buf_text(&out[teller->last], "\n");
    teller->mid_line = false;
    teller->label[0] = '\0';
}

bool px_teller_mid_line(const struct px_teller *teller)
{
    return teller->mid_line;
}

struct px_teller *px_teller_create(const int *engines, size_t count, bool fold)
{
    struct px_teller *teller = px_alloc(sizeof *teller);
    const size_t part = HEAD_ALL / (count ? count : 1);
    teller->engines = px_alloc((count + 1) * sizeof *teller->engines);
    memcpy(teller->engines, engines, count * sizeof *engines);
    teller->count = teller->live = count;
    teller->fold = fold;
    teller->ended = px_alloc(count + 1);
    for (int i = 0; i < 2; i++)
        teller->speakers[i] = px_alloc((count + 1) * sizeof *teller->speakers[i]);
    teller->part = part > HEAD_MOST ? HEAD_MOST : part < HEAD_LEAST ? HEAD_LEAST : part;
    const int64_t window_ms =
        WINDOW_LEAST_MS + WINDOW_ENGINE_MS * (int64_t)(count < 1000 ? count : 1000);
    teller->window_ms = window_ms < WINDOW_MOST_MS ? window_ms : WINDOW_MOST_MS;
    return teller;
}

void px_teller_destroy(struct px_teller *teller)
{
    if (!teller)
        return;
    for (size_t i = 0; i < teller->count; i++) {
        for (int j = 0; j < 2; j++) {
            px_buf_fini(&teller->speakers[j][i].head);
            px_buf_fini(&teller->speakers[j][i].tail);
        }
    }
    free(teller->speakers[0]);
    free(teller->speakers[1]);
    free(teller->ended);
    free(teller->engines);
    free(teller);
}
