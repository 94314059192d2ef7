/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * again: what a controller that is killed, or a connection that breaks, may take along
 * (protocol.h).
 *
 * A reply that was sent may be lost on its way, or within a controller, so the last ones are kept.
 * A controller that was started anew, or hears of a broken connection, sends a probe; they are sent
 * again before it is answered. Of tasks that were not answered yet the scheduler is told the ids:
 * it may know nothing of them, and must not give them to another engine.
 *
 * Kept are replies of the last KEPT_MS, as far as they fit, and while the connection is broken
 * they grow no older. They are copied, for the language may change an array once it has been sent.
 *
 * LIMIT: a reply of more than KEPT_LARGEST is not kept. If it is lost, its client is told so.
 */
#include "parts.h"

#include "protocol.h"

#include <stdlib.h>
#include <string.h>
#include <uthash.h>
#include <utlist.h>

#define KEPT_MS 2000 /* a controller writes to its database every second */
/* The controller was alive when it was heard last, and has by then passed on what it was sent so
 * long before. */
#define PASS_MS 20
#define KEPT_MOST 2048
#define KEPT_LARGEST ((size_t)1 << 20)
#define KEPT_BYTES ((size_t)16 << 20)

/* In one piece: thousands of them are half as large so. */
struct px_kept {
    int64_t sent_ms;
    struct px_kept *prev, *next;
    size_t bytes, count;
    uint32_t sizes[]; /* of the frames, which follow */
};

struct px_held_task {
    UT_hash_handle hh;
    char msg_id[];
};

/* ---- replies ---- */

static void drop_oldest(struct px_again *again)
{
    struct px_kept *kept = again->replies;
    DL_DELETE(again->replies, kept);
    again->count--;
    again->bytes -= kept->bytes;
    free(kept);
}

static void drop_old(struct px_again *again, int64_t now_ms)
{
    while (again->replies && now_ms - again->replies->sent_ms >= KEPT_MS)
        drop_oldest(again);
}

static void on_old(struct px_loop *loop, void *ctx)
{
    struct px_again *again = ctx;
    again->timer = NULL;
    if (again->broken)
        return;
    drop_old(again, px_now_ms());
    if (again->replies)
        again->timer = px_loop_timer(loop, KEPT_MS, 0, on_old, again);
}

void px_again_heard(struct px_again *again)
{
    again->heard_ms = px_now_ms();
}

void px_again_break(struct px_again *again)
{
    if (!again->broken)
        again->alive_ms = again->heard_ms;
    again->broken = true;
}

void px_again_mend(struct px_again *again, struct px_loop *loop)
{
    again->broken = false;
    if (again->replies && !again->timer) /* by then the probes have come */
        again->timer = px_loop_timer(loop, KEPT_MS, 0, on_old, again);
}

static char *frames_of(const struct px_kept *kept)
{
    return (char *)(kept->sizes + kept->count);
}

/* `bytes`: with the sizes. */
static struct px_kept *copy_reply(const struct px_msg *msg, size_t bytes)
{
    const size_t count = px_msg_count(msg);
    struct px_kept *kept = px_alloc(sizeof *kept + bytes);
    kept->bytes = bytes;
    kept->count = count;
    char *at = frames_of(kept);
    for (size_t i = 0; i < count; i++) {
        const struct px_span frame = px_msg_frame(msg, i);
        kept->sizes[i] = (uint32_t)frame.size;
        if (frame.size)
            memcpy(at, frame.data, frame.size);
        at += frame.size;
    }
    return kept;
}

/* As it was sent. */
static struct px_msg *reply_of(const struct px_kept *kept)
{
    const char *at = frames_of(kept);
    struct px_msg *msg = px_msg_create();
    for (size_t i = 0; i < kept->count; at += kept->sizes[i++])
        px_msg_append(msg, at, kept->sizes[i]);
    if (px_msg_locate(msg, NULL) < 0)
        px_die(1, "a reply of ours is none");
    return msg;
}

static void keep(struct px_again *again, struct px_loop *loop, const struct px_msg *msg,
                 size_t bytes)
{
    const int64_t now_ms = px_now_ms();
    const bool full = again->count == KEPT_MOST || again->bytes + bytes > KEPT_BYTES;
    if (again->broken && full) /* libzmq keeps this one until the connection is back */
        return;
    if (!again->broken)
        drop_old(again, now_ms);
    while (again->count == KEPT_MOST || again->bytes + bytes > KEPT_BYTES)
        drop_oldest(again);
    struct px_kept *kept = copy_reply(msg, bytes);
    kept->sent_ms = now_ms;
    DL_APPEND(again->replies, kept);
    again->count++;
    again->bytes += bytes;
    if (!again->timer)
        again->timer = px_loop_timer(loop, KEPT_MS, 0, on_old, again);
}

static bool is_probe(const struct px_msg *msg)
{
    const struct px_span client = px_msg_ident(msg, 1);
    return client.size > sizeof PX_PROBE - 1 &&
           memcmp(client.data, PX_PROBE, sizeof PX_PROBE - 1) == 0;
}

static void let_go(struct px_again *again, struct px_span msg_id)
{
    struct px_held_task *task;
    HASH_FIND(hh, again->tasks, msg_id.data, msg_id.size, task);
    if (!task)
        return;
    HASH_DEL(again->tasks, task);
    free(task);
}

void px_again_replied(struct px_again *again, struct px_loop *loop, const struct px_msg *msg)
{
    const size_t bytes = px_msg_bytes(msg) + px_msg_count(msg) * sizeof(uint32_t);
    if (px_msg_ident_count(msg) < 2 || is_probe(msg))
        return;
    if (again->tasks)
        let_go(again, px_scan_member(px_msg_parent(msg), "msg_id"));
    /* What was handed back may come here once more, and is then another matter. */
    if (bytes <= KEPT_LARGEST &&
        !px_span_equal(px_scan_member(px_msg_metadata(msg), "status"), PX_RECALLED))
        keep(again, loop, msg, bytes);
}

/* ---- requests ---- */

static void send_quietly(struct px_socket *socket, struct px_msg *msg)
{
    if (px_socket_send(socket, &msg) != PX_SENT)
        px_msg_destroy(msg);
}

static void send_held(const struct px_again *again, struct px_socket *socket,
                      struct px_session *session)
{
    const struct px_span idents[] = {PX_SPAN(PX_ID_TASK_OUT), PX_SPAN(PX_HELD)};
    struct px_buf content = {0};
    px_buf_text(&content, "{\"msg_ids\": [");
    for (const struct px_held_task *task = again->tasks; task; task = task->hh.next) {
        px_buf_text(&content, task == again->tasks ? "" : ", ");
        px_buf_json_string(&content, task->msg_id, strlen(task->msg_id));
    }
    px_buf_text(&content, "]}");
    const struct px_draft draft = {
        .idents = idents, .ident_count = 2, .type = "px_held", .content = px_buf_span(&content)};
    send_quietly(socket, px_session_build(session, &draft));
    px_buf_fini(&content);
}

static void answer_probe(const struct px_again *again, struct px_socket *socket,
                         struct px_session *session, struct px_span relay)
{
    size_t count = 0;
    for (const struct px_kept *kept = again->replies; kept; kept = kept->next) {
        const bool fresh = kept->sent_ms + PASS_MS >= again->alive_ms;
        if (kept->sizes[0] != relay.size || memcmp(frames_of(kept), relay.data, relay.size) != 0)
            continue;
        struct px_msg *msg = reply_of(kept);
        send_quietly(socket, px_msg_marked(msg, fresh ? PX_AGAIN : PX_AGAIN_OLD));
        px_msg_destroy(msg);
        count++;
    }
    if (px_span_equal(relay, PX_ID_TASK_OUT))
        send_held(again, socket, session);
    if (count > 0)
        px_log(PX_INFO, "replies.again", "to=%.*s count=%zu", (int)relay.size, relay.data, count);
}

static void hold(struct px_again *again, const struct px_header *header)
{
    struct px_held_task *task = px_alloc(sizeof *task + header->msg_id.size + 1);
    memcpy(task->msg_id, header->msg_id.data, header->msg_id.size);
    let_go(again, header->msg_id);
    HASH_ADD_KEYPTR(hh, again->tasks, task->msg_id, header->msg_id.size, task);
}

void px_again_received(struct px_again *again, struct px_socket *socket, struct px_session *session,
                       const struct px_msg *msg)
{
    struct px_header header;
    if (px_msg_ident_count(msg) < 2)
        return;
    px_again_heard(again);
    const struct px_span relay = px_msg_ident(msg, 0);
    if (is_probe(msg))
        answer_probe(again, socket, session, relay);
    else if (px_span_equal(relay, PX_ID_TASK_OUT) &&
             px_header_scan(px_msg_header(msg), &header, NULL) == 0 &&
             (px_span_equal(header.msg_type, PX_APPLY_REQUEST) ||
              px_span_equal(header.msg_type, PX_EXECUTE_REQUEST)))
        hold(again, &header);
}

void px_again_fini(struct px_again *again)
{
    while (again->replies)
        drop_oldest(again);
    struct px_held_task *task, *next;
    HASH_ITER(hh, again->tasks, task, next) {
        HASH_DEL(again->tasks, task);
        free(task);
    }
}
