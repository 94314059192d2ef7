/* SPDX-License-Identifier: BSD-3-Clause */
/* Calls by name: the pickles of texts that come back, and the frames that go out. */
#include "../test.h"

#include "client/client.h"

#include <stdlib.h>
#include <string.h>

#define ROW(bytes) bytes, sizeof(bytes) - 1

static const struct {
    const char *pickle;
    size_t size;
    const char *text; /* NULL when it is refused */
} rows[] = {
    {ROW("\x80\x04\x95\x06\0\0\0\0\0\0\0\x8c\x02"
         "42\x94."),
     "42"}, /* protocol 4 and 5 */
    {ROW("\x80\x05\x95\x06\0\0\0\0\0\0\0\x8c\x02"
         "42\x94."),
     "42"},
    {ROW("\x80\x02X\x02\0\0\0{}q\0."), "{}"}, /* protocol 2 */
    {ROW("X\0\0\0\0."), ""},
    {ROW("\x8d\x01\0\0\0\0\0\0\0x."), "x"},
    {ROW("X\x01\0\0\0xr\x01\0\0\0."), "x"},
    {ROW(""), NULL},
    {ROW("."), NULL},
    {ROW("N."), NULL},                        /* None */
    {ROW("X\x02\0\0\0x."), NULL},             /* longer than it is */
    {ROW("X\x01\0\0\0x"), NULL},              /* no end */
    {ROW("X\x01\0\0\0x.."), NULL},            /* something behind the end */
    {ROW("X\x01\0\0\0xX\x01\0\0\0y."), NULL}, /* two texts */
    {ROW("X\x01\0"), NULL},                   /* half a length */
    {ROW("\x8d\xff\xff\xff\xff\xff\xff\xff\xff."), NULL},
    {ROW("\x80"), NULL},
    {ROW("cos\nsystem\nX\x02\0\0\0ls\x85R."), NULL},
};

static void reads_texts_only(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_span text;
        const bool read = px_unpickle_text((struct px_span){rows[i].pickle, rows[i].size}, &text);
        if (read != (rows[i].text != NULL))
            fail_msg("row %zu was %s", i, read ? "read" : "refused");
        if (read)
            assert_true(px_span_equal(text, rows[i].text));
    }
}

static void a_call_is_three_frames(void **state)
{
    (void)state;
    struct px_call call;
    px_call_pack(&call, "os:getpid", NULL, "{\"k\": 1}");
    assert_int_equal(PX_COUNT(call.buffers), 3);
    assert_memory_equal(call.buffers[0].data, "cbuiltins\neval\n(X", 17);
    const char *names = call.buffers[2].data;
    static const char wanted[] =
        "}(X\x08\0\0\0functionX\x09\0\0\0os:getpidX\x04\0\0\0argsX\x02\0\0\0"
        "[]X\x06\0\0\0kwargsX\x08\0\0\0{\"k\": 1}u.";
    assert_int_equal(call.buffers[2].size, sizeof wanted - 1);
    assert_memory_equal(names, wanted, sizeof wanted - 1);
    px_call_fini(&call);
}

static void a_value_is_a_replys(void **state)
{
    (void)state;
    struct phalanx_error err;
    const struct phalanx_buffer good = {.data = "X\x02\0\0\0[]q\0.", .size = 10};
    struct phalanx_event event = {.type = PHALANX_REPLY, .buffers = &good, .buffer_count = 1};
    char *value = phalanx_value(&event, &err);
    assert_string_equal(value, "[]");
    free(value);
    const struct phalanx_buffer pair = {.data = "X\x01\0\0\0xX\x01\0\0\0y\x86.", .size = 14};
    event.buffers = &pair; /* a task's, which returned ("x", "y") */
    assert_null(phalanx_value(&event, &err));
    assert_int_equal(err.code, PHALANX_EINVAL);
    event.buffer_count = 0;
    assert_null(phalanx_value(&event, &err));
    assert_int_equal(err.code, PHALANX_EINVAL);
    event.type = PHALANX_IDLE;
    assert_null(phalanx_value(&event, NULL));
    event = (struct phalanx_event){
        .type = PHALANX_REPLY,
        .failed = true,
        .content = "{\"status\": \"error\", \"ename\": \"ValueError\", \"evalue\": \"no\"}"};
    assert_null(phalanx_value(&event, &err));
    assert_int_equal(err.code, PHALANX_EREMOTE);
    assert_string_equal(err.text, "ValueError: no");
    event.content = "{\"status\": \"aborted\"}";
    assert_null(phalanx_value(&event, &err));
    assert_string_equal(err.text, "The task was aborted");
    event.content = "no JSON";
    assert_null(phalanx_value(&event, &err));
    assert_int_equal(err.code, PHALANX_EREMOTE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_texts_only),
        cmocka_unit_test(a_call_is_three_frames),
        cmocka_unit_test(a_value_is_a_replys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
