# SPDX-License-Identifier: BSD-3-Clause
px_test(loop/test_loop.c LIBS px_loop PkgConfig::ZMQ)
px_test(loop/test_doorbell.c LIBS px_loop)
