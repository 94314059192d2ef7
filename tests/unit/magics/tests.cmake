# SPDX-License-Identifier: BSD-3-Clause
px_test(magics/test_line.c LIBS px_magics m)
px_test(magics/test_targets.c LIBS px_magics m)
px_test(magics/test_teller.c LIBS px_magics m)
px_test(magics/test_fold.c LIBS px_magics m)
px_test(magics/test_render.c LIBS px_magics m)
px_test(magics/test_stacks.c LIBS px_magics m)
px_test(magics/test_why.c LIBS px_magics m)
