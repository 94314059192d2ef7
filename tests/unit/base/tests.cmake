# SPDX-License-Identifier: BSD-3-Clause
px_test(base/test_base.c LIBS px_base)
px_test(base/test_options.c LIBS px_base)
px_test(base/test_run.c LIBS px_base)
