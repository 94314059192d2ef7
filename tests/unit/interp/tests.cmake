# SPDX-License-Identifier: BSD-3-Clause
px_test(interp/test_echo.c LIBS px_interp)
include(${CMAKE_CURRENT_LIST_DIR}/python_tests.cmake)
