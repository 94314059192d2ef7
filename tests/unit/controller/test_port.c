/* SPDX-License-Identifier: BSD-3-Clause */
/* A port's requests while the hub keeps up, and while it is far behind. */
#include "controller.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define REQUESTS 200
#define DEADLINE_MS 30000

struct fixture {
    struct px_loop *loop;
    struct px_link link;
    struct px_port port;
    int handled, most_at_once, at_once;
    bool full; /* the hub, until on_caught_up */
    int64_t work_ms; /* that a request takes */
};

static void on_caught_up(struct px_loop *loop, void *ctx);

static void on_request(void *ctx, struct px_msg **msg)
{
    struct fixture *f = ctx;
    (void)msg;
    for (int64_t until_ms = px_now_ms() + f->work_ms; px_now_ms() < until_ms;)
        ;
    f->at_once++;
    if (++f->handled == REQUESTS)
        px_loop_stop(f->loop);
}

static void after_batch(void *ctx)
{
    struct fixture *f = ctx;
    if (f->at_once > f->most_at_once)
        f->most_at_once = f->at_once;
    f->at_once = 0;
}

static void on_deadline(struct px_loop *loop, void *ctx)
{
    (void)ctx;
    px_loop_stop(loop);
}

static void send_requests(struct px_socket *client, struct px_session *session)
{
    struct px_draft draft = {.type = "apply_request"};
    for (int i = 0; i < REQUESTS; i++) {
        struct px_msg *msg = px_session_build(session, &draft);
        assert_int_equal(px_socket_send(client, &msg), PX_SENT);
    }
}

/* What the hub has not looked at: so many hearts. */
static void fall_behind(struct px_link *link, unsigned notes)
{
    for (unsigned i = 0; i < notes; i++)
        px_link_note_text(link, PX_NOTE_NEW_HEART, PX_SPAN("e"), (struct px_span){0});
    px_link_flush(link);
}

static unsigned long play(unsigned notes, struct fixture *f)
{
    char endpoint[PX_ENDPOINT_SIZE];
    int number = 0;
    void *context = px_context_create(1);
    struct px_session *session = px_session_create("key", "hmac-sha256", NULL, NULL);
    struct px_socket *client = px_socket_create(context, PX_DEALER, NULL);
    f->port = (struct px_port){.name = "task",
                               .socket = px_socket_create(context, PX_ROUTER, NULL),
                               .session = session,
                               .least_idents = 1,
                               .handle = on_request,
                               .ctx = f,
                               .after = after_batch,
                               .after_ctx = f};
    f->loop = px_loop_create();
    assert_int_equal(px_link_init(&f->link, NULL), 0);
    assert_int_equal(px_socket_bind_port(f->port.socket, "tcp://127.0.0.1", &number, NULL), 0);
    snprintf(endpoint, sizeof(endpoint), "tcp://127.0.0.1:%d", number);
    assert_int_equal(px_socket_connect(client, endpoint, NULL), 0);
    fall_behind(&f->link, notes);
    if (f->full) {
        atomic_store(&f->link.backlog_bytes, PX_MAX_BACKLOG_BYTES / 2);
        px_loop_timer(f->loop, 20 * PX_PACE_MS, 0, on_caught_up, f);
    }
    px_port_watch_paced(&f->port, f->loop, &f->link);
    px_loop_timer(f->loop, DEADLINE_MS, 0, on_deadline, NULL);
    send_requests(client, session);
    assert_int_equal(px_loop_run(f->loop, NULL), 0);
    assert_int_equal(f->handled, REQUESTS); /* however far behind it is */
    px_loop_destroy(f->loop);
    px_link_fini(&f->link);
    px_socket_destroy(client);
    px_socket_destroy(f->port.socket);
    px_session_destroy(session);
    px_context_destroy(context);
    return f->link.paces;
}

static void test_hub_keeps_up(void **state)
{
    (void)state;
    struct fixture f = {0};
    assert_int_equal(play(PX_PACED_BACKLOG / 2, &f), 0);
}

/* The other sockets have their turns in between. */
static void test_requests_that_are_much_work(void **state)
{
    (void)state;
    struct fixture f = {.work_ms = 10};
    play(0, &f);
    assert_int_equal(f.most_at_once, 1);
}

static void test_hub_is_behind(void **state)
{
    (void)state;
    struct fixture f = {0};
    assert_true(play(PX_PACED_BACKLOG * 2, &f) >= REQUESTS / PX_LOOP_BATCH);
    assert_true(f.most_at_once <= PX_LOOP_BATCH);
}

static void on_caught_up(struct px_loop *loop, void *ctx)
{
    (void)loop;
    struct fixture *f = ctx;
    assert_int_equal(f->handled, 0);
    atomic_store(&f->link.backlog_bytes, 0);
}

/* A pace later than the first request: until then, none is handled. */
static void test_hub_must_not_get_more(void **state)
{
    (void)state;
    struct fixture f = {.full = true};
    play(PX_PACED_BACKLOG * 2, &f);
}

static struct px_msg *build(struct px_session *session, const char *type)
{
    struct px_span topic = PX_SPAN("client");
    struct px_draft draft = {.idents = &topic,
                             .ident_count = 1,
                             .type = type,
                             .parent = PX_SPAN("{\"msg_id\": \"m_1\"}"),
                             .metadata = PX_SPAN("{\"engine\": \"e\"}"),
                             .content = PX_SPAN("{\"status\": \"ok\"}")};
    struct px_msg *msg = px_session_build(session, &draft);
    px_msg_append(msg, "buffer", 6);
    return msg;
}

/* Beyond the limit, output is dropped and replies are cut; the rest stays whole. */
static void test_copies_beyond_the_limit(void **state)
{
    (void)state;
    struct px_link link;
    struct px_session *session = px_session_create("key", "hmac-sha256", NULL, NULL);
    struct px_msg *msg = build(session, "apply_reply");
    assert_int_equal(px_link_init(&link, NULL), 0);
    atomic_store(&link.backlog_bytes, PX_MAX_BACKLOG_BYTES);
    px_link_note(&link, PX_NOTE_IOPUB, msg);
    px_link_note(&link, PX_NOTE_TASK_REPLY, msg);
    px_link_note(&link, PX_NOTE_TASK_REQUEST, msg);
    px_link_note_text(&link, PX_NOTE_TASK_DESTINATION, PX_SPAN("m_1"), PX_SPAN("e"));
    px_link_flush(&link);
    struct px_notes *notes = px_doorbell_take(link.to_hub);
    assert_int_equal(notes->count, 3);
    const struct px_note *reply = &notes->items[0], *request = &notes->items[1];
    assert_int_equal(reply->kind, PX_NOTE_TASK_REPLY);
    assert_true(reply->no_body);
    assert_true(px_span_equal(px_msg_content(reply->msg), "{}"));
    assert_true(px_span_equal(px_msg_parent(reply->msg), "{\"msg_id\": \"m_1\"}"));
    assert_true(px_span_equal(px_msg_metadata(reply->msg), "{\"engine\": \"e\"}"));
    assert_int_equal(px_msg_buffer_count(reply->msg), 0);
    assert_false(request->no_body);
    assert_int_equal(px_msg_buffer_count(request->msg), 1);
    assert_int_equal(notes->items[2].kind, PX_NOTE_TASK_DESTINATION);
    px_link_notes_done(&link, notes);
    px_link_fini(&link);
    px_msg_destroy(msg);
    px_session_destroy(session);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hub_keeps_up),
        cmocka_unit_test(test_requests_that_are_much_work),
        cmocka_unit_test(test_hub_is_behind),
        cmocka_unit_test(test_hub_must_not_get_more),
        cmocka_unit_test(test_copies_beyond_the_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
