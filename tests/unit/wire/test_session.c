/* SPDX-License-Identifier: BSD-3-Clause */
/* Signatures: the published vector, every way of being wrong, and replays. */
#include "wire/wire.h"
#include "../test.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define KEY "00112233-445566778899aabbccddeeff"

/* Made with jupyter_client 7.4.9. */
static const char vector_header[] =
    "{\"msg_id\": \"aaaaaaaa-bbbbbbbbbbbbbbbbbbbbbbbb_100_0\", \"msg_type\": "
    "\"connection_request\", \"username\": \"u\", \"session\": "
    "\"aaaaaaaa-bbbbbbbbbbbbbbbbbbbbbbbb\", \"date\": \"2024-01-02T03:04:05.678901Z\", "
    "\"version\": \"5.3\"}";
static const char vector_signature[] =
    "9b51aaa5de97339aa766533748a11644d5baa3d1bd2b8a760cd60bec12e00ea1";

static struct px_msg *vector_message(const char *signature)
{
    struct px_msg *msg = px_msg_create();
    const char *const frames[] = {PX_DELIMITER, signature, vector_header, "{}", "{}", "{}"};
    for (size_t i = 0; i < PX_COUNT(frames); i++)
        px_msg_append(msg, frames[i], strlen(frames[i]));
    assert_int_equal(px_msg_locate(msg, NULL), 0);
    return msg;
}

static void the_vector_verifies_once(void **state)
{
    (void)state;
    struct px_session *session = px_session_create(KEY, NULL, NULL, NULL);
    struct px_msg *msg = vector_message(vector_signature);
    struct px_error err;
    assert_int_equal(px_session_verify(session, msg, &err), 0);
    assert_int_equal(px_session_verify(session, msg, &err), -1);
    assert_int_equal(err.code, PX_EEXIST);
    assert_string_equal(err.text, "message seen before");
    px_msg_destroy(msg);
    px_session_destroy(session);
}

static void wrong_signatures_are_refused_and_not_remembered(void **state)
{
    (void)state;
    struct px_session *session = px_session_create(KEY, NULL, NULL, NULL);
    char wrong[sizeof vector_signature];
    for (size_t i = 0; i < sizeof wrong - 1; i++) {
        memcpy(wrong, vector_signature, sizeof wrong);
        wrong[i] = wrong[i] == '0' ? '1' : '0';
        struct px_msg *msg = vector_message(wrong);
        assert_int_equal(px_session_verify(session, msg, NULL), -1);
        px_msg_destroy(msg);
    }
    const char *const others[] = {"", "9b51",
                                  "9B51AAA5DE97339AA766533748A11644D5BAA3D1BD2B8A760CD6"
                                  "0BEC12E00EA1"};
    for (size_t i = 0; i < PX_COUNT(others); i++) {
        struct px_msg *msg = vector_message(others[i]);
        assert_int_equal(px_session_verify(session, msg, NULL), -1);
        px_msg_destroy(msg);
    }
    struct px_msg *msg = vector_message(vector_signature);
    assert_int_equal(px_session_verify(session, msg, NULL), 0);
    px_msg_destroy(msg);
    px_session_destroy(session);
}

static struct px_msg *build(struct px_session *session)
{
    return px_session_build(session,
                            &(struct px_draft){.type = "t", .content = PX_SPAN("{\"a\": 1}")});
}

static void what_one_builds_another_verifies(void **state)
{
    (void)state;
    static const char *const schemes[] = {NULL, "", "hmac-sha256", "hmac-sha512", "hmac-md5"};
    for (size_t i = 0; i < PX_COUNT(schemes); i++) {
        struct px_session *one = px_session_create(KEY, schemes[i], "one", NULL);
        struct px_session *two = px_session_create(KEY, schemes[i], "two", NULL);
        struct px_session *other = px_session_create("other key", schemes[i], NULL, NULL);
        const struct px_span idents[] = {PX_SPAN("topic")};
        struct px_msg *msg = px_session_build(
            one, &(struct px_draft){.idents = idents, .ident_count = 1, .type = "status"});
        px_msg_append(msg, "buffer", 6);
        assert_int_equal(px_session_verify(other, msg, NULL), -1);
        assert_int_equal(px_session_verify(two, msg, NULL), 0);
        assert_span_equal(px_msg_ident(msg, 0), "topic");
        assert_span_equal(px_msg_parent(msg), "{}");
        px_msg_replace(msg, px_msg_first_buffer(msg) - 1, "{\"b\": 2}", 8);
        assert_int_equal(px_session_verify(two, msg, NULL), -1);
        px_session_resign(one, msg);
        assert_int_equal(px_session_verify(two, msg, NULL), 0);
        px_msg_destroy(msg);
        px_session_destroy(one);
        px_session_destroy(two);
        px_session_destroy(other);
    }
}

static void a_header_has_all_six_fields(void **state)
{
    (void)state;
    setenv("USER", "O\"Hara\n", 1);
    struct px_session *session = px_session_create("", NULL, "me", NULL);
    struct px_msg *msg = build(session);
    json_t *header = px_json_parse(px_msg_header(msg), NULL);
    assert_non_null(header);
    assert_int_equal(json_object_size(header), 6);
    assert_string_equal(json_string_value(json_object_get(header, "username")), "O\"Hara\n");
    assert_string_equal(json_string_value(json_object_get(header, "session")), "me");
    assert_string_equal(json_string_value(json_object_get(header, "version")), PX_PROTOCOL_VERSION);
    assert_string_equal(json_string_value(json_object_get(header, "msg_id")),
                        px_session_last_id(session));
    json_decref(header);
    px_msg_destroy(msg);
    px_session_destroy(session);
}

static void without_a_key_nothing_is_checked(void **state)
{
    (void)state;
    struct px_session *session = px_session_create("", NULL, NULL, NULL);
    struct px_msg *msg = build(session);
    assert_int_equal(px_msg_signature(msg).size, 0);
    assert_int_equal(px_session_verify(session, msg, NULL), 0);
    assert_int_equal(px_session_verify(session, msg, NULL), 0);
    px_msg_destroy(msg);
    px_session_destroy(session);
}

static void unknown_schemes_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"sha256", "hmac-", "hmac-rot13"};
    for (size_t i = 0; i < PX_COUNT(bad); i++) {
        struct px_error err;
        assert_null(px_session_create(KEY, bad[i], NULL, &err));
        assert_non_null(strstr(err.text, bad[i]));
    }
}

/* The window holds the last PX_REPLAY_WINDOW messages and no more. */
static void ids_that_would_spoil_a_header_are_refused(void **state)
{
    (void)state;
    char longest[129];
    memset(longest, 'x', sizeof longest);
    longest[128] = 0;
    const char *const wrong[] = {"a\"b", "a\\", "a\nb", "\xc3\xa9", longest};
    for (size_t i = 0; i < PX_COUNT(wrong); i++) {
        struct px_error err;
        assert_null(px_session_create(KEY, NULL, wrong[i], &err));
        assert_int_equal(err.code, PX_EINVAL);
    }
    longest[127] = 0;
    struct px_session *session = px_session_create(KEY, NULL, longest, NULL);
    assert_string_equal(px_session_id(session), longest);
    px_session_destroy(session);
}

static void replays_are_refused_within_the_window(void **state)
{
    (void)state;
    struct px_session *sender = px_session_create(KEY, NULL, NULL, NULL);
    struct px_session *receiver = px_session_create(KEY, NULL, NULL, NULL);
    struct px_msg *first = build(sender), *second = build(sender);
    assert_int_equal(px_session_verify(receiver, first, NULL), 0);
    assert_int_equal(px_session_verify(receiver, second, NULL), 0);
    for (int i = 0; i < PX_REPLAY_WINDOW - 1; i++) {
        struct px_msg *msg = build(sender);
        assert_int_equal(px_session_verify(receiver, msg, NULL), 0);
        px_msg_destroy(msg);
    }
    assert_int_equal(px_session_verify(receiver, second, NULL), -1);
    assert_int_equal(px_session_verify(receiver, first, NULL), 0); /* fell out of the window */
    assert_int_equal(px_session_verify(receiver, first, NULL), -1);
    for (int i = 0; i < 2 * PX_REPLAY_WINDOW; i++) {
        struct px_msg *msg = build(sender);
        assert_int_equal(px_session_verify(receiver, msg, NULL), 0);
        assert_int_equal(px_session_verify(receiver, msg, NULL), -1);
        px_msg_destroy(msg);
    }
    px_msg_destroy(first);
    px_msg_destroy(second);
    px_session_destroy(sender);
    px_session_destroy(receiver);
}

/* One that is forgotten may come once more; the window holds as long as ever for the others. */
static void a_forgotten_message_may_come_again(void **state)
{
    (void)state;
    struct px_session *sender = px_session_create(KEY, NULL, NULL, NULL);
    struct px_session *receiver = px_session_create(KEY, NULL, NULL, NULL);
    struct px_msg *kept = build(sender), *given_back = build(sender), *unseen = build(sender);
    px_session_forget(receiver, unseen); /* before anything was verified */
    assert_int_equal(px_session_verify(receiver, kept, NULL), 0);
    for (int i = 0; i < PX_REPLAY_WINDOW / 2; i++) {
        assert_int_equal(px_session_verify(receiver, given_back, NULL), 0);
        assert_int_equal(px_session_verify(receiver, given_back, NULL), -1);
        px_session_forget(receiver, given_back);
        px_session_forget(receiver, unseen);
    }
    assert_int_equal(px_session_verify(receiver, kept, NULL), -1);
    for (int i = 0; i < 2 * PX_REPLAY_WINDOW; i++) {
        struct px_msg *msg = build(sender);
        assert_int_equal(px_session_verify(receiver, msg, NULL), 0);
        assert_int_equal(px_session_verify(receiver, msg, NULL), -1);
        px_msg_destroy(msg);
    }
    px_msg_destroy(kept);
    px_msg_destroy(given_back);
    px_msg_destroy(unseen);
    px_session_destroy(sender);
    px_session_destroy(receiver);
}

static void ids_have_their_form(void **state)
{
    (void)state;
    char one[PX_ID_SIZE], two[PX_ID_SIZE];
    px_id_random(one);
    px_id_random(two);
    assert_int_equal(strlen(one), 33);
    assert_int_equal(one[8], '-');
    for (size_t i = 0; i < 33; i++)
        assert_true(i == 8 || isxdigit((unsigned char)one[i]));
    assert_string_not_equal(one, two);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_vector_verifies_once),
        cmocka_unit_test(wrong_signatures_are_refused_and_not_remembered),
        cmocka_unit_test(what_one_builds_another_verifies),
        cmocka_unit_test(a_header_has_all_six_fields),
        cmocka_unit_test(without_a_key_nothing_is_checked),
        cmocka_unit_test(unknown_schemes_are_refused),
        cmocka_unit_test(ids_that_would_spoil_a_header_are_refused),
        cmocka_unit_test(replays_are_refused_within_the_window),
        cmocka_unit_test(a_forgotten_message_may_come_again),
        cmocka_unit_test(ids_have_their_form),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
