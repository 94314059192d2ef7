# SPDX-License-Identifier: BSD-3-Clause
# The language table, the kernel core, and the program pxkernel.
px_library(px_interp SOURCES interp/interp.c interp/echo.c LIBS px_base Threads::Threads)

px_library(px_kernel
  SOURCES kernel.c queue.c outbox.c execute.c control.c comm.c input.c
  LIBS px_wire px_interp PkgConfig::JANSSON Threads::Threads)
