/* SPDX-License-Identifier: BSD-3-Clause */
/* Tasks that are parked while the engines of a former controller come back. */
#include "comeback.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#define A PX_SPAN("engine-a")
#define B PX_SPAN("engine-b")

static struct px_msg *message(const char *text)
{
    struct px_msg *msg = px_msg_create();
    px_msg_append(msg, text, strlen(text));
    return msg;
}

static void expect_message(struct px_msg *msg, const char *text)
{
    assert_non_null(msg);
    assert_true(px_span_equal(px_msg_frame(msg, 0), text));
    px_msg_destroy(msg);
}

static void waits_until_all_have_arrived_or_left(void **state)
{
    (void)state;
    struct px_comeback *comeback = px_comeback_create();
    assert_false(px_comeback_waits(comeback));
    px_comeback_expect(comeback, A);
    px_comeback_expect(comeback, B);
    px_comeback_expect(comeback, B);
    px_comeback_arrived(comeback, A);
    px_comeback_arrived(comeback, A);
    assert_true(px_comeback_waits(comeback));
    px_comeback_leave(comeback, B);
    assert_false(px_comeback_waits(comeback));
    px_comeback_expect(comeback, A);
    px_comeback_give_up(comeback);
    assert_false(px_comeback_waits(comeback));
    px_comeback_destroy(comeback);
}

static void parked_come_out_in_order(void **state)
{
    (void)state;
    struct px_comeback *comeback = px_comeback_create();
    px_comeback_expect(comeback, A);
    px_comeback_park(comeback, message("1"));
    px_comeback_park(comeback, message("2"));
    px_comeback_park(comeback, message("3"));
    expect_message(px_comeback_unpark(comeback), "1");
    expect_message(px_comeback_unpark(comeback), "2");
    px_comeback_destroy(comeback); /* with the third */
}

static void tells_once_who_has_a_task(void **state)
{
    (void)state;
    char uuid[PX_MAX_IDENTITY + 1];
    struct px_comeback *comeback = px_comeback_create();
    px_comeback_holds(comeback, A, PX_SPAN("one"));
    px_comeback_holds(comeback, A, PX_SPAN("two"));
    px_comeback_holds(comeback, B, PX_SPAN("two")); /* the last word counts */
    px_comeback_holds(comeback, B, PX_SPAN("three"));
    assert_false(px_comeback_take(comeback, PX_SPAN("four"), uuid));
    assert_true(px_comeback_take(comeback, PX_SPAN("one"), uuid));
    assert_string_equal(uuid, "engine-a");
    assert_false(px_comeback_take(comeback, PX_SPAN("one"), uuid));
    assert_true(px_comeback_take(comeback, PX_SPAN("two"), uuid));
    assert_string_equal(uuid, "engine-b");
    px_comeback_leave(comeback, B);
    assert_false(px_comeback_take(comeback, PX_SPAN("three"), uuid));
    px_comeback_destroy(comeback);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(waits_until_all_have_arrived_or_left),
        cmocka_unit_test(parked_come_out_in_order),
        cmocka_unit_test(tells_once_who_has_a_task),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
