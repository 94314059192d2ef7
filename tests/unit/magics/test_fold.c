/* SPDX-License-Identifier: BSD-3-Clause */
/* What is equal, ranges of engines, what tells errors apart: one row a case. */
#include "../test.h"

#include "magics.h"

#include <string.h>

static void finds_what_is_equal(void **state)
{
    (void)state;
    static const char *const texts[] = {"a", "b", "a", "", "b", "a", ""};
    static const size_t wanted[] = {0, 1, 0, 3, 1, 0, 3};
    struct px_span keys[PX_COUNT(texts)];
    size_t first[PX_COUNT(texts)];
    for (size_t i = 0; i < PX_COUNT(texts); i++)
        keys[i] = px_span_of(texts[i]);
    px_fold(keys, PX_COUNT(texts), first);
    assert_memory_equal(first, wanted, sizeof wanted);
    px_fold(NULL, 0, NULL);
    size_t members[PX_COUNT(texts)];
    assert_int_equal(px_fold_members(first, PX_COUNT(texts), 0, members), 3);
    assert_memory_equal(members, ((size_t[]){0, 2, 5}), 3 * sizeof *members);
    assert_int_equal(px_fold_members(first, PX_COUNT(texts), 2, members), 0);
}

static const struct {
    int ids[20];
    size_t count;
    const char *text;
} range_rows[] = {
    {{0}, 1, "0"},
    {{0, 1}, 2, "0-1"},
    {{0, 1, 2, 7}, 4, "0-2,7"},
    {{2, 0, 1}, 3, "0-2"},
    {{5, 5}, 2, "5"},
    {{1, 3, 5}, 3, "1,3,5"},
    {{0, 2, 4, 6, 8, 10, 12, 14}, 8, "0,2,4,6,8,10,12,14"},
    {{0, 2, 4, 6, 8, 10, 12, 14, 16}, 9, "0,2,4,6,8,10,12,14,... (9 engines)"},
};

static void shortens_lists_of_engines(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(range_rows); i++) {
        struct px_buf out = {0};
        px_render_ranges(&out, range_rows[i].ids, range_rows[i].count);
        assert_string_equal(out.data, range_rows[i].text);
        px_buf_fini(&out);
    }
}

static const struct {
    const char *a, *b;
    bool same;
} error_rows[] = {
    {"ValueError: x", "ValueError: x", true},
    {"ValueError: x", "ValueError: y", false},
    {"Cell In[3], line 1", "Cell In[12], line 1", true},
    {"Cell In [3], line 1", "Cell In [3], line 2", false},
    {"<A object at 0x7f00aa>", "<A object at 0x55ee>", true},
    {"Task '8898a-c4_23_3' is lost: x", "Task '8898a-c4_23_4' is lost: x", true},
    {"Task '8898a' is lost: x", "Task '8898a' is lost: y", false},
    {"Engine 0 died while running task '8a-c4_3'", "Engine 12 died while running task '8a-c4_4'",
     true},
    {"\033[0;31mKeyError\033[0m: 1", "KeyError: 1", true},
    {"/tmp/ipykernel_12/3.py", "/tmp/ipykernel_77/3.py", true},
    {"<ipython-input-9-ab>:1", "<ipython-input-10-ab>:1", true},
    {"<ipython-input-9-ab>:1", "<ipython-input-9-ac>:1", false},
    {"In[", "In[", true},
    {"0x", "0", false},
    {"\033[", "\033", false},
};

static void tells_errors_apart(void **state)
{
    (void)state;
    for (size_t i = 0; i < PX_COUNT(error_rows); i++) {
        struct px_buf a = {0}, b = {0};
        px_fold_error_key(&a, px_span_of(error_rows[i].a));
        px_fold_error_key(&b, px_span_of(error_rows[i].b));
        if ((strcmp(a.data, b.data) == 0) != error_rows[i].same)
            fail_msg("'%s' and '%s'", a.data, b.data);
        px_buf_fini(&a);
        px_buf_fini(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_what_is_equal),
        cmocka_unit_test(shortens_lists_of_engines),
        cmocka_unit_test(tells_errors_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
