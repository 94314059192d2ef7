# SPDX-License-Identifier: BSD-3-Clause
px_test(controller/test_schedule.c LIBS px_schedule)
