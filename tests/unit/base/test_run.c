/* SPDX-License-Identifier: BSD-3-Clause */
/* Short questions to programs. */
#include "base/base.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

static int run(const char *script, int64_t timeout_ms, struct px_buf *out, struct px_error *err)
{
    char *const argv[] = {"sh", "-c", (char *)script, NULL};
    struct px_buf complaints = {0};
    const int status = px_run_program(argv, timeout_ms, out, &complaints, err);
    px_buf_fini(&complaints);
    return status;
}

/* By its silence and by its life. */
static void test_a_question_has_an_end(void **state)
{
    (void)state;
    struct px_error err = {0};
    struct px_buf out = {0};
    assert_int_equal(run("echo yes; exit 3", 60000, &out, &err), 3);
    assert_string_equal(out.data, "yes\n");
    px_buf_fini(&out);
    assert_int_equal(run("exec tail -f /dev/null", 50, &out, &err), -1);
    assert_int_equal(err.code, PX_ETIME);
    err.code = PX_OK;
    assert_int_equal(run("exec sleep 60 >&- 2>&-", 50, &out, &err), -1);
    assert_int_equal(err.code, PX_ETIME);
    px_buf_fini(&out);
}

/* What was cut off would be read as if it were whole. */
static void test_an_answer_has_a_bound(void **state)
{
    (void)state;
    struct px_error err = {0};
    struct px_buf out = {0};
    assert_int_equal(run("yes", 60000, &out, &err), -1);
    assert_int_equal(err.code, PX_ELIMIT);
    px_buf_fini(&out);
    assert_int_equal(run("yes | head -c 9000000", 60000, &out, &err), 0);
    assert_int_equal(out.size, 9000000);
    px_buf_fini(&out);
}

static void test_who_is_missing_is_named(void **state)
{
    (void)state;
    char *const argv[] = {"no-such-program", NULL};
    struct px_error err = {0};
    struct px_buf out = {0};
    assert_int_equal(px_run_program(argv, 60000, &out, &out, &err), -1);
    assert_int_equal(err.code, PX_ENOENT);
    assert_string_equal(err.text, "cannot run no-such-program: No such file or directory");
}

/* One left open would keep its other end waiting for as long as the program lives. */
static void test_no_other_descriptor_is_passed_on(void **state)
{
    (void)state;
    struct px_error err;
    struct px_buf out = {0};
    const int other = open("/dev/null", O_RDONLY);
    char *script = px_format("test ! -e /proc/self/fd/%d && cat", other);
    assert_true(other > 2);
    assert_int_equal(run(script, 60000, &out, &err), 0);
    assert_int_equal(out.size, 0);
    free(script);
    close(other);
    px_buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_question_has_an_end),
        cmocka_unit_test(test_an_answer_has_a_bound),
        cmocka_unit_test(test_who_is_missing_is_named),
        cmocka_unit_test(test_no_other_descriptor_is_passed_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
