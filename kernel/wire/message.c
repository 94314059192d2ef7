/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One message: a vector of ZeroMQ frames, and where the delimiter is.
 *
 * Frames are moved, never copied, on their way through: a zmq_msg_t is 64 bytes and may be moved
 * in memory by zmq_msg_move; its data may be shared by reference between messages and threads.
 * The vector keeps two free places in front, because a relay puts an identity there.
 */
#include "private.h"

#include <stdlib.h>
#include <string.h>

#define FRONT 2 /* free places in front of a new message */

struct px_msg *px_msg_create(void)
{
    struct px_msg *msg = malloc(sizeof *msg);
    if (!msg)
        px_die(1, "out of memory");
    msg->first = msg->end = FRONT;
    msg->capacity = PX_COUNT(msg->fixed);
    msg->delimiter = PX_NOT_LOCATED;
    msg->frames = msg->fixed;
    return msg;
}

void px_msg_destroy(struct px_msg *msg)
{
    if (!msg)
        return;
    for (size_t i = msg->first; i < msg->end; i++)
        zmq_msg_close(&msg->frames[i]);
    if (msg->frames != msg->fixed)
        free(msg->frames);
    free(msg);
}

static void move_frame(zmq_msg_t *to, zmq_msg_t *from)
{
    zmq_msg_init(to);
    zmq_msg_move(to, from);
    zmq_msg_close(from);
}

/* A larger vector with `front` free places before the first frame. */
static void regrow(struct px_msg *msg, size_t front)
{
    const size_t count = msg->end - msg->first;
    const size_t capacity = front + 2 * count + 8;
    zmq_msg_t *frames = px_realloc(NULL, capacity * sizeof *frames);
    for (size_t i = 0; i < count; i++)
        move_frame(&frames[front + i], &msg->frames[msg->first + i]);
    if (msg->frames != msg->fixed)
        free(msg->frames);
    if (msg->delimiter != PX_NOT_LOCATED)
        msg->delimiter = msg->delimiter - msg->first + front;
    msg->frames = frames;
    msg->capacity = capacity;
    msg->first = front;
    msg->end = front + count;
}

zmq_msg_t *px_msg_new_frame(struct px_msg *msg)
{
    if (msg->end == msg->capacity)
        regrow(msg, FRONT);
    return &msg->frames[msg->end++];
}

static void share_frame(zmq_msg_t *to, const zmq_msg_t *from)
{
    zmq_msg_init(to);
    /* zmq_msg_copy marks the source as shared, hence not const; its bytes stay. */
    zmq_msg_copy(to, (zmq_msg_t *)from);
}

void px_msg_append_frames(struct px_msg *msg, const struct px_msg *from, size_t first, size_t count)
{
    for (size_t i = 0; i < count; i++)
        share_frame(px_msg_new_frame(msg), &from->frames[from->first + first + i]);
}

struct px_msg *px_msg_copy(const struct px_msg *msg)
{
    struct px_msg *copy = px_msg_create();
    px_msg_append_frames(copy, msg, 0, px_msg_count(msg));
    if (msg->delimiter != PX_NOT_LOCATED)
        copy->delimiter = copy->first + (msg->delimiter - msg->first);
    return copy;
}

static struct px_span frame_span(const zmq_msg_t *frame)
{
    return (struct px_span){zmq_msg_data((zmq_msg_t *)frame), zmq_msg_size(frame)};
}

size_t px_msg_count(const struct px_msg *msg)
{
    return msg->end - msg->first;
}

struct px_span px_msg_frame(const struct px_msg *msg, size_t index)
{
    return frame_span(&msg->frames[msg->first + index]);
}

size_t px_msg_bytes(const struct px_msg *msg)
{
    size_t bytes = 0;
    for (size_t i = msg->first; i < msg->end; i++)
        bytes += zmq_msg_size(&msg->frames[i]);
    return bytes;
}

static void init_copy(zmq_msg_t *frame, const void *data, size_t size)
{
    if (zmq_msg_init_size(frame, size) < 0)
        px_die(1, "out of memory");
    if (size)
        memcpy(zmq_msg_data(frame), data, size);
}

void px_msg_append(struct px_msg *msg, const void *data, size_t size)
{
    init_copy(px_msg_new_frame(msg), data, size);
}

void px_msg_append_new(struct px_msg *msg, void *data, size_t size,
                       void (*release)(void *data, void *hint), void *hint)
{
    if (zmq_msg_init_data(px_msg_new_frame(msg), data, size, release, hint) < 0)
        px_die(1, "out of memory");
}

void px_msg_prepend(struct px_msg *msg, const void *data, size_t size)
{
    if (msg->first == 0)
        regrow(msg, FRONT);
    init_copy(&msg->frames[--msg->first], data, size);
}

void px_msg_drop_front(struct px_msg *msg, size_t count)
{
    while (count-- > 0 && msg->first < msg->end) {
        if (msg->first == msg->delimiter)
            msg->delimiter = PX_NOT_LOCATED;
        zmq_msg_close(&msg->frames[msg->first++]);
    }
}

void px_msg_swap(struct px_msg *msg, size_t a, size_t b)
{
    zmq_msg_t *one = &msg->frames[msg->first + a], *two = &msg->frames[msg->first + b], kept;
    if (one == two)
        return;
    zmq_msg_init(&kept);
    zmq_msg_move(&kept, one);
    zmq_msg_move(one, two);
    zmq_msg_move(two, &kept);
    zmq_msg_close(&kept);
}

struct px_msg *px_msg_marked(const struct px_msg *msg, const char *ident)
{
    const size_t idents = msg->delimiter - msg->first;
    struct px_msg *marked = px_msg_create();
    px_msg_append_frames(marked, msg, 0, idents);
    px_msg_append(marked, ident, strlen(ident));
    px_msg_append_frames(marked, msg, idents, px_msg_count(msg) - idents);
    marked->delimiter = marked->first + idents + 1;
    return marked;
}

void px_msg_replace(struct px_msg *msg, size_t index, const void *data, size_t size)
{
    zmq_msg_t *frame = &msg->frames[msg->first + index];
    zmq_msg_close(frame);
    init_copy(frame, data, size);
}

/* ---- the Jupyter layout ---- */

/* Frames after the delimiter, in wire order. */
enum { SIGNATURE = 1, HEADER, PARENT, METADATA, CONTENT, BUFFERS };

static int check_sizes(const struct px_msg *msg, struct px_error *err)
{
    static const struct {
        int frame;
        size_t most;
        const char *name;
    } limits[] = {
        {SIGNATURE, 256, "signature"},
        {HEADER, PX_MAX_HEADER, "header"},
        {PARENT, PX_MAX_HEADER, "parent header"},
        {METADATA, PX_MAX_JSON, "metadata"},
        {CONTENT, PX_MAX_JSON, "content"},
    };
    for (size_t i = 0; i < PX_COUNT(limits); i++) {
        const size_t size = zmq_msg_size(&msg->frames[msg->delimiter + (size_t)limits[i].frame]);
        if (size > limits[i].most)
            return px_fail(err, PX_ELIMIT, "%s of %zu bytes, limit %zu", limits[i].name, size,
                           limits[i].most);
    }
    for (size_t i = msg->first; i < msg->delimiter; i++)
        if (zmq_msg_size(&msg->frames[i]) > PX_MAX_IDENTITY)
            return px_fail(err, PX_ELIMIT, "an identity of %zu bytes, limit %d",
                           zmq_msg_size(&msg->frames[i]), PX_MAX_IDENTITY);
    return 0;
}

int px_msg_locate(struct px_msg *msg, struct px_error *err)
{
    msg->delimiter = PX_NOT_LOCATED;
    size_t at = msg->first;
    while (at < msg->end && at - msg->first <= PX_MAX_IDENTITIES &&
           !px_span_equal(frame_span(&msg->frames[at]), PX_DELIMITER))
        at++;
    if (at == msg->end || at - msg->first > PX_MAX_IDENTITIES)
        return px_fail(err, PX_EINVAL, "no delimiter among %zu frames", px_msg_count(msg));
    if (msg->end - at < BUFFERS)
        return px_fail(err, PX_EINVAL, "%zu frames after the delimiter, at least %d needed",
                       msg->end - at - 1, BUFFERS - 1);
    msg->delimiter = at;
    if (check_sizes(msg, err) == 0)
        return 0;
    msg->delimiter = PX_NOT_LOCATED;
    return -1;
}

size_t px_msg_ident_count(const struct px_msg *msg)
{
    return msg->delimiter - msg->first;
}

struct px_span px_msg_ident(const struct px_msg *msg, size_t index)
{
    return px_msg_frame(msg, index);
}

static struct px_span after_delimiter(const struct px_msg *msg, size_t offset)
{
    return frame_span(&msg->frames[msg->delimiter + offset]);
}

struct px_span px_msg_signature(const struct px_msg *msg)
{
    return after_delimiter(msg, SIGNATURE);
}

struct px_span px_msg_header(const struct px_msg *msg)
{
    return after_delimiter(msg, HEADER);
}

struct px_span px_msg_parent(const struct px_msg *msg)
{
    return after_delimiter(msg, PARENT);
}

struct px_span px_msg_metadata(const struct px_msg *msg)
{
    return after_delimiter(msg, METADATA);
}

struct px_span px_msg_content(const struct px_msg *msg)
{
    return after_delimiter(msg, CONTENT);
}

size_t px_msg_buffer_count(const struct px_msg *msg)
{
    return msg->end - msg->delimiter - BUFFERS;
}

struct px_span px_msg_buffer(const struct px_msg *msg, size_t index)
{
    return after_delimiter(msg, BUFFERS + index);
}

size_t px_msg_first_buffer(const struct px_msg *msg)
{
    return msg->delimiter - msg->first + BUFFERS;
}

/* Behind a string, whose first quote is at `at`. */
static const char *skip_string(const char *at, const char *end)
{
    for (at++; at < end && *at != '"'; at++)
        at += *at == '\\' && at + 1 < end;
    return at < end ? at + 1 : end;
}

/* There is a comma or a bracket before each value. */
int px_json_bounded(struct px_span text, struct px_error *err)
{
    const char *at = text.data, *end = text.data + text.size;
    if (text.size < PX_MAX_JSON_VALUES)
        return 0;
    for (size_t count = 0; at < end;) {
        if (*at == '"') {
            at = skip_string(at, end);
            continue;
        }
        count += *at == ',' || *at == '[' || *at == '{';
        if (count > PX_MAX_JSON_VALUES)
            return px_fail(err, PX_ELIMIT, "more than %u values in JSON", PX_MAX_JSON_VALUES);
        at++;
    }
    return 0;
}

json_t *px_json_parse(struct px_span text, struct px_error *err)
{
    json_error_t where;
    if (px_json_bounded(text, err) != 0)
        return NULL;
    json_t *value = json_loadb(text.data, text.size, JSON_ALLOW_NUL, &where);
    if (!value) {
        px_fail(err, PX_EINVAL, "not JSON: %s at byte %d", where.text, where.position);
        return NULL;
    }
    if (!json_is_object(value)) {
        json_decref(value);
        px_fail(err, PX_EINVAL, "JSON, but not an object");
        return NULL;
    }
    return value;
}
