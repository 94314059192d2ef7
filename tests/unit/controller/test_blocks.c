/* SPDX-License-Identifier: BSD-3-Clause */
/* Large memory: kept and used again, told from the C library's, left alone by what is small. */
#include "blocks.h"

#include "base/base.h"

#include <errno.h>
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define MB ((size_t)1 << 20)

/* Through volatile pointers: the compiler must not see a pair of calls and drop what is between. */
static void *take(size_t size)
{
    void *(*volatile call)(size_t) = malloc;
    return call(size);
}

static void give(void *memory)
{
    void (*volatile call)(void *) = free;
    call(memory);
}

static void test_used_again(void **state)
{
    (void)state;
    char *first = take(100 * MB);
    memset(first, 7, 100 * MB);
    const uintptr_t place = (uintptr_t)first;
    give(first);
    char *again = take(90 * MB);
    assert_true((uintptr_t)again == place);
    assert_int_equal(again[89 * MB], 7); /* its pages stayed */
    char *other = take(90 * MB);
    assert_true((uintptr_t)other != place);
    give(other);
    give(again);
    px_blocks_trim();
}

static void test_not_for_much_less(void **state)
{
    (void)state;
    char *big = take(100 * MB);
    const uintptr_t place = (uintptr_t)big;
    give(big);
    char *less = take(50 * MB);
    assert_true((uintptr_t)less != place);
    give(less);
    px_blocks_trim();
}

static void test_trimmed(void **state)
{
    (void)state;
    char *block = take(64 * MB);
    memset(block, 7, 64 * MB);
    give(block);
    px_blocks_trim();
    block = take(64 * MB);
    for (size_t at = 0; at < 64 * MB; at += 4096)
        assert_int_equal(block[at], 0); /* fresh from the system, if at the same place */
    give(block);
    px_blocks_trim();
}

static void test_moved(void **state)
{
    (void)state;
    char *memory = take(5 * MB);
    memset(memory, 3, 5 * MB);
    memory = realloc(memory, 40 * MB);
    assert_non_null(memory);
    assert_int_equal(memory[5 * MB - 1], 3);
    memset(memory, 4, 40 * MB);
    assert_true(malloc_usable_size(memory) >= 40 * MB);
    memory = realloc(memory, 100); /* back to the C library */
    assert_non_null(memory);
    assert_int_equal(memory[99], 4);
    assert_true(malloc_usable_size(memory) < MB);
    memory = realloc(memory, 8 * MB);
    assert_int_equal(memory[99], 4);
    give(memory);
    px_blocks_trim();
}

/* Where a block's part would start, but the C library's. */
static void test_strangers(void **state)
{
    (void)state;
    char *arena = aligned_alloc(2 * MB, 2 * MB);
    assert_non_null(arena);
    give(arena);
    for (size_t size = 1; size < 6 * MB; size = size * 3 + 1) {
        char *memory = calloc(1, size);
        assert_int_equal(memory[size - 1], 0);
        assert_true(malloc_usable_size(memory) >= size);
        give(memory);
    }
    give(NULL);
}

static void test_too_much(void **state)
{
    (void)state;
    volatile size_t sizes[] = {SIZE_MAX, SIZE_MAX - 64, SIZE_MAX / 4, SIZE_MAX / 8};
    for (size_t i = 0; i < PX_COUNT(sizes); i++) {
        errno = 0;
        assert_null(take(sizes[i]));
        assert_int_equal(errno, ENOMEM);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_used_again), cmocka_unit_test(test_not_for_much_less),
        cmocka_unit_test(test_trimmed),    cmocka_unit_test(test_moved),
        cmocka_unit_test(test_strangers),  cmocka_unit_test(test_too_much),
    };
    return cmocka_run_group_tests_name("blocks", tests, NULL, NULL);
}
