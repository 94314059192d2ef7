/* SPDX-License-Identifier: BSD-3-Clause */
/* What every cmocka test includes, in the order that cmocka asks for. */
#ifndef PX_TEST_H
#define PX_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define assert_span_equal(span, text)                                                              \
    do {                                                                                           \
        const struct px_span span_ = (span);                                                       \
        assert_int_equal(span_.size, strlen(text));                                                \
        assert_memory_equal(span_.data, text, span_.size);                                         \
    } while (0)

/* cmocka's own is deprecated since 2.0, and its successor is not in 1.1. */
#define assert_between(value, least, most)                                                         \
    do {                                                                                           \
        const long long value_ = (value);                                                          \
        if (value_ < (least) || value_ > (most))                                                   \
            fail_msg("%s is %lld, not from %s to %s", #value, value_, #least, #most);              \
    } while (0)

#endif
