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

#endif
