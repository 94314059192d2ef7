/* SPDX-License-Identifier: BSD-3-Clause */
/* Stacks of several engines as one tree. */
#include "../test.h"

#include "magics.h"

#include <string.h>

#define CELL "  File \"cell.py\", line 4 in <module>\n"
#define SHELL                                                                                      \
    "  File \"/usr/lib/python3/dist-packages/IPython/core/shell.py\", line 9 in run_code\n"        \
    "  File \"<phalanx>/bridge.py\", line 2 in run\n"

static const char receiving[] = "Current thread 0x00007f01 (most recent call first):\n"
                                "  File \"comm.py\", line 33 in recv\n"
                                "  File \"model.py\", line 10 in step\n" CELL SHELL;
static const char computing[] = "Current thread 0x00007f02 (most recent call first):\n"
                                "  File \"model.py\", line 71 in multiply\n"
                                "  File \"model.py\", line 10 in step\n" CELL SHELL;
static const char idle[] = "Current thread 0x00007f03 (most recent call first):\n" SHELL;
static const char threads[] =
    "Thread 0x00007f09 (most recent call first):\n"
    "  File \"watch.py\", line 5 in run\n"
    "  File \"/usr/lib/python3.11/threading.py\", line 1002 in _bootstrap\n\n"
    "Current thread 0x00007f04 (most recent call first):\n" CELL SHELL;

#define ENGINE(number, stacks, work, seconds)                                                      \
    {                                                                                              \
        .engine = number, .text = {stacks, sizeof(stacks) - 1}, .busy = work, .busy_s = seconds    \
    }

static const struct {
    struct px_stacks engines[4];
    size_t count;
    const char *text;
} rows[] = {
    {{ENGINE(0, receiving, "execute_request", 12), ENGINE(1, receiving, "execute_request", 11),
      ENGINE(2, computing, "execute_request", 12), ENGINE(3, idle, NULL, 0)},
     4,
     "engines 0-2: execute_request for up to 12 s\n"
     "engine 3: idle\n"
     "0-2  <module>, cell.py line 4\n"
     "     step, model.py line 10\n"
     "     0-1  recv, comm.py line 33\n"
     "     2    multiply, model.py line 71\n"},
    {{ENGINE(0, "Current thread 0x1\n  File \"<ipython-input-8-fe>\", line 1 in f\n", NULL, 0),
      ENGINE(1, "Current thread 0x1\n  File \"<ipython-input-12-fe>\", line 1 in f\n", NULL, 0)},
     2, /* the same cell, which has another number there */
     "engines 0-1: idle\n"
     "0-1  f, <ipython-input-8-fe> line 1\n"},
    {{ENGINE(5, threads, "apply_request", 61)},
     1,
     "engine 5: apply_request for 1 min 1 s\n"
     "5  <module>, cell.py line 4\n"
     "other threads:\n"
     "5  run, watch.py line 5\n"},
    {{ENGINE(0, computing, NULL, 0), ENGINE(1, CELL, NULL, 0)},
     2, /* the second text has no thread */
     "engines 0-1: idle\n"
     "0  <module>, cell.py line 4\n"
     "   step, model.py line 10\n"
     "   multiply, model.py line 71\n"},
    {{ENGINE(0, "", NULL, 0)}, 1, "engine 0: idle\n"},
    {{ENGINE(0, "Current thread 0x1\n  File \"\xff\n  File \"a\", line in\n", NULL, 0)},
     1,
     "engine 0: idle\n"
     "0  File \"a\", line in\n"
     "   File \"\xff\n"},
    {{{0}}, 0, ""},
};

static void merges_stacks(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(rows); i++) {
        struct px_buf out = {0};
        px_stacks_render(&out, rows[i].engines, rows[i].count);
        assert_string_equal(out.data, rows[i].text);
        px_buf_fini(&out);
    }
}

static void bounds_a_deep_stack(void **state)
{
    (void)state;
    struct px_buf text = {0}, out = {0};
    px_buf_text(&text, "Current thread 0x1 (most recent call first):\n");
    for (int i = 0; i < 20000; i++)
        px_buf_printf(&text, "  File \"a.py\", line %d in f\n", i);
    const struct px_stacks engine = {.engine = 0, .text = px_buf_span(&text)};
    px_stacks_render(&out, &engine, 1);
    assert_true(out.size < 20000);
    px_buf_fini(&text);
    px_buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merges_stacks),
        cmocka_unit_test(bounds_a_deep_stack),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
