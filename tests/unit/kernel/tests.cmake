# SPDX-License-Identifier: BSD-3-Clause
px_test(kernel/test_kernel.c SOURCES unit/kernel/kernel_fixture.c LIBS px_kernel)
px_test(kernel/test_flow.c LIBS px_kernel)
px_test(kernel/test_outbox.c LIBS px_kernel)
px_test(kernel/test_spool.c LIBS px_kernel)
px_test(kernel/test_capture.c LIBS px_kernel)
