# SPDX-License-Identifier: BSD-3-Clause
px_test(magics/test_line.c LIBS px_magics m)
px_test(magics/test_render.c LIBS px_magics)
