/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * heart: who is alive. Every period one ping goes to all engines; each sends it back under its
 * uuid. Whoever misses more than `max_misses` beats in a row is reported as stopped.
 *
 * The ping socket is an XPUB, whose welcome (zmq_setsockopt(3), ZMQ_XPUB_WELCOME_MSG) is the last
 * ping: a heart that connects gets it at once, so that an engine is known to live when it starts,
 * not a period later, and no other heart is bothered. A pong to any of the last RECENT pings
 * counts: a slow network is not a dead engine.
 *
 * LIMIT: hearts carry no signature, because an engine's heart only sends back what it gets. A ping
 * is a number of seconds, as ipyparallel's, with a fraction that nobody can guess: so only who
 * hears the pings can answer for an engine. With --enable-curve that takes the cluster's key.
 */
#include "controller.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <uthash.h>

#define RECENT 16
#define MAX_HEARTS 100000 /* a pong is not signed: anybody may send some */
#define PING_SIZE 40
#define NS_PER_S 1000000000

struct beating {
    int misses;
    bool answered; /* since the last beat */
    UT_hash_handle hh;
    char uuid[];
};

struct px_heart {
    struct px_shared shared;
    struct px_socket *ping, *pong;
    int max_misses;
    int64_t start_ns;
    struct beating *hearts;
    char recent[RECENT][PING_SIZE];
    unsigned sent;
    struct px_timer *beat;
    unsigned long pongs, garbage, late;
    struct px_log_limiter limiter, stopped;
};

static void send_ping(struct px_heart *heart)
{
    char *text = heart->recent[heart->sent++ % RECENT];
    uint64_t secret;
    px_random(&secret, sizeof(secret));
    snprintf(text, PING_SIZE, "%lld.%015llu",
             (long long)((px_now_ns() - heart->start_ns) / NS_PER_S),
             (unsigned long long)(secret % 1000000000000000u));
    px_socket_set_welcome(heart->ping, px_span_of(text));
    struct px_msg *msg = px_msg_create();
    px_msg_append(msg, text, strlen(text));
    if (px_socket_send(heart->ping, &msg) != PX_SENT)
        px_msg_destroy(msg);
}

static bool is_recent(const struct px_heart *heart, struct px_span text)
{
    for (int i = 0; i < RECENT; i++) {
        if (text.size > 0 && px_span_equal(text, heart->recent[i]))
            return true;
    }
    return false;
}

static struct beating *find(const struct px_heart *heart, struct px_span uuid)
{
    struct beating *beating;
    HASH_FIND(hh, heart->hearts, uuid.data, uuid.size, beating);
    return beating;
}

void px_heart_expect(struct px_heart *heart, struct px_span uuid)
{
    if (find(heart, uuid) != NULL || HASH_COUNT(heart->hearts) >= MAX_HEARTS)
        return;
    struct beating *beating = px_alloc(sizeof(*beating) + uuid.size + 1);
    memcpy(beating->uuid, uuid.data, uuid.size);
    beating->answered = true;
    HASH_ADD_KEYPTR(hh, heart->hearts, beating->uuid, uuid.size, beating);
}

static void forget(struct px_heart *heart, struct beating *beating)
{
    HASH_DEL(heart->hearts, beating);
    free(beating);
}

void px_heart_forget(struct px_heart *heart, struct px_span uuid)
{
    struct beating *beating = find(heart, uuid);
    if (beating != NULL)
        forget(heart, beating);
}

/* uuid | ping */
static void on_pong_message(struct px_heart *heart, const struct px_msg *msg)
{
    bool proper = px_msg_count(msg) == 2 && px_msg_frame(msg, 0).size <= PX_MAX_UUID &&
                  memchr(px_msg_frame(msg, 0).data, 0, px_msg_frame(msg, 0).size) == NULL;
    if (!proper || px_msg_frame(msg, 1).size >= PING_SIZE) {
        heart->garbage++;
        px_log_limited(&heart->limiter, PX_WARN, "pong-malformed", "dropped=%lu", heart->garbage);
        return;
    }
    if (!is_recent(heart, px_msg_frame(msg, 1))) {
        heart->late++;
        return;
    }
    heart->pongs++;
    struct px_span uuid = px_msg_frame(msg, 0);
    struct beating *beating = find(heart, uuid);
    if (beating == NULL) {
        px_heart_expect(heart, uuid);
        if (find(heart, uuid) != NULL)
            px_link_note_text(heart->shared.link, PX_NOTE_NEW_HEART, uuid, (struct px_span){0});
        return;
    }
    beating->answered = true;
    beating->misses = 0;
}

static void on_pong(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct px_heart *heart = ctx;
    struct px_msg *msg;
    for (int i = 0; i < PX_LOOP_BATCH && (msg = px_socket_recv(heart->pong)) != NULL; i++) {
        on_pong_message(heart, msg);
        px_msg_destroy(msg);
    }
    px_link_flush(heart->shared.link);
}

/* Who subscribes says so; that has no consequence, and must not pile up. */
static void on_subscription(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct px_heart *heart = ctx;
    struct px_msg *msg;
    for (int i = 0; i < PX_LOOP_BATCH && (msg = px_socket_recv(heart->ping)) != NULL; i++)
        px_msg_destroy(msg);
}

static void on_beat(struct px_loop *loop, void *ctx)
{
    struct px_heart *heart = ctx;
    on_pong(loop, ctx); /* what has come since counts for the beat that ends */
    struct beating *beating, *next;
    HASH_ITER(hh, heart->hearts, beating, next) {
        beating->misses = beating->answered ? 0 : beating->misses + 1;
        beating->answered = false;
        if (beating->misses <= heart->max_misses)
            continue;
        px_log_limited(&heart->stopped, PX_WARN, "heart-stopped", "engine=%s misses=%d",
                       beating->uuid, beating->misses);
        px_link_note_text(heart->shared.link, PX_NOTE_STOPPED_HEART, px_span_of(beating->uuid),
                          (struct px_span){0});
        forget(heart, beating);
    }
    send_ping(heart);
    px_link_flush(heart->shared.link);
}

struct px_heart *px_heart_create(const struct px_shared *shared, struct px_socket *ping,
                                 struct px_socket *pong, int period_ms, int max_misses)
{
    struct px_heart *heart = px_alloc(sizeof(*heart));
    heart->shared = *shared;
    heart->ping = ping;
    heart->pong = pong;
    heart->max_misses = max_misses;
    heart->start_ns = px_now_ns();
    send_ping(heart); /* nobody hears it, but it is the first welcome */
    px_loop_socket(shared->loop, px_socket_pollable(ping), on_subscription, heart);
    px_loop_socket(shared->loop, px_socket_pollable(pong), on_pong, heart);
    heart->beat = px_loop_timer(shared->loop, period_ms, period_ms, on_beat, heart);
    return heart;
}

void px_heart_destroy(struct px_heart *heart)
{
    if (heart == NULL)
        return;
    struct beating *beating, *next;
    HASH_ITER(hh, heart->hearts, beating, next)
        forget(heart, beating);
    px_loop_cancel(heart->shared.loop, heart->beat);
    free(heart);
}

void px_heart_report(const struct px_heart *heart, json_t *report)
{
    json_object_set_new(
        report, "hearts",
        json_pack("{s:i, s:I, s:I, s:I, s:I}", "beating", (int)HASH_COUNT(heart->hearts), "pings",
                  (json_int_t)heart->sent, "pongs", (json_int_t)heart->pongs, "late",
                  (json_int_t)heart->late, "malformed", (json_int_t)heart->garbage));
}
