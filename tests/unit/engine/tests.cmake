# SPDX-License-Identifier: BSD-3-Clause
px_test(engine/test_nanny.c LIBS px_engine)
px_test(engine/test_obituary.c LIBS px_engine)
px_test(engine/test_tags.c LIBS px_engine)
