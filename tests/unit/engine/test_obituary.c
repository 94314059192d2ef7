/* SPDX-License-Identifier: BSD-3-Clause */
/* What an engine leaves, and what is made of it. */
#include "engine/obituary.h"

#include "../test.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int create(void **state)
{
    *state = px_obituary_create(NULL);
    return *state ? 0 : -1;
}

static int destroy(void **state)
{
    px_obituary_destroy(*state);
    return 0;
}

/* A child dies in the middle of its second request. */
static void the_dead_tell_what_they_did(void **state)
{
    struct px_obituary *obituary = *state;
    struct px_busy busy;
    px_obituary_look(obituary, &busy);
    assert_false(busy.running);
    const pid_t pid = fork();
    if (pid == 0) {
        px_obituary_begin(obituary, PX_SPAN("a_1"), PX_SPAN("apply_request"));
        px_obituary_end(obituary);
        *px_obituary_begun(obituary) = 4;
        px_obituary_begin(obituary, PX_SPAN("a_2"), PX_SPAN("execute_request"));
        raise(SIGKILL);
    }
    waitpid(pid, NULL, 0);
    px_obituary_look(obituary, &busy);
    assert_true(busy.running && busy.since_s >= 0 && busy.since_s < 100);
    assert_int_equal(busy.begun, 0); /* of the one before */
    *px_obituary_begun(obituary) = 5;
    px_obituary_look(obituary, &busy);
    assert_int_equal(busy.begun, 5);
    assert_string_equal(busy.msg_id, "a_2");
    assert_string_equal(busy.type, "execute_request");
    assert_false(px_obituary_has_left(obituary));
    px_obituary_leave(obituary);
    assert_true(px_obituary_has_left(obituary));
}

static void long_names_are_cut(void **state)
{
    char name[1000];
    struct px_busy busy;
    memset(name, 'x', sizeof name);
    px_obituary_begin(*state, (struct px_span){name, sizeof name}, (struct px_span){name, 50});
    px_obituary_look(*state, &busy);
    assert_int_equal(strlen(busy.msg_id), sizeof busy.msg_id - 1);
    assert_int_equal(strlen(busy.type), sizeof busy.type - 1);
}

static const char stack[] = "Fatal Python error: Segmentation fault\n\n"
                            "Thread 0x1 (most recent call first):\n"
                            "  File \"/other.py\", line 1 in other\n\n"
                            "Current thread 0x2 (most recent call first):\n"
                            "  File \"/a b/c.py\", line 519 in string_at\n"
                            "  File \"<string>\", line 1 in <module>\n";

static const struct row {
    struct px_death death;
    const char *written, *cause;
} rows[] = {
    {{.status = 3 << 8}, "", "exit status 3"},
    {{.status = SIGKILL, .peak_kb = 35000}, "", "killed by SIGKILL, peak 36 MB"},
    {{.status = SIGKILL, .peak_kb = 20898438, .out_of_memory = true},
     "",
     "killed by the kernel, out of memory, peak 21.4 GB"},
    {{.status = SIGSEGV},
     stack,
     "killed by SIGSEGV (Segmentation fault), in string_at (/a b/c.py:519)"},
    {{.status = SIGSEGV}, "", "killed by SIGSEGV (Segmentation fault)"},
    {{.status = SIGABRT},
     "Current thread 0x2:\n  File \"x\ty\", line 1 in f\n",
     "killed by SIGABRT (Aborted), in f (x y:1)"},
    {{.status = 40}, "Current thread", "killed by signal 40"},
};

static void causes_are_phrases(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_obituary *obituary = px_obituary_create(NULL);
        struct px_buf cause = {0};
        const size_t size = strlen(rows[i].written);
        assert_int_equal(write(px_obituary_fd(obituary), rows[i].written, size), size);
        px_obituary_cause(obituary, &rows[i].death, &cause);
        assert_string_equal(cause.data, rows[i].cause);
        px_buf_clear(&cause);
        px_obituary_text(obituary, &cause);
        assert_int_equal(cause.size, size);
        px_buf_fini(&cause);
        px_obituary_destroy(obituary);
    }
}

static void text_is_bounded(void **state)
{
    char line[1000];
    struct px_buf text = {0};
    memset(line, 'x', sizeof line);
    for (int i = 0; i < 100; i++)
        assert_int_equal(write(px_obituary_fd(*state), line, sizeof line), sizeof line);
    px_obituary_text(*state, &text);
    assert_true(text.size > 0 && text.size <= 16u << 10);
    px_buf_fini(&text);
}

static void nobody_was_killed_for_memory(void **state)
{
    (void)state;
    struct px_oom now;
    px_oom_count(&now);
    assert_true(now.system >= 0); /* Linux has counted since 4.13 */
    assert_false(px_oom_killed(getpid(), &now));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_dead_tell_what_they_did, create, destroy),
        cmocka_unit_test_setup_teardown(long_names_are_cut, create, destroy),
        cmocka_unit_test(causes_are_phrases),
        cmocka_unit_test_setup_teardown(text_is_bounded, create, destroy),
        cmocka_unit_test(nobody_was_killed_for_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
