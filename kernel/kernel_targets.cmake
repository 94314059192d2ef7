# SPDX-License-Identifier: BSD-3-Clause
# The language table, the kernel core, and the program pxkernel.
px_library(px_interp SOURCES interp/interp.c interp/echo.c LIBS px_base Threads::Threads)

px_library(px_kernel
  SOURCES kernel.c send.c shells.c hush.c host.c queue.c outbox.c flow.c spool.c capture.c slow.c
          execute.c control.c usage.c comm.c input.c
  LIBS px_wire px_interp PkgConfig::JANSSON Threads::Threads)

px_library(px_service SOURCES service.c LIBS px_kernel px_loop Threads::Threads)

px_library(px_program SOURCES program.c LIBS px_interp px_python)
target_compile_definitions(px_program PRIVATE PX_PYTHON_DIR="${PX_PYTHON_DIR}")

px_program(pxkernel SOURCES main.c crash.c channels.c handshake.c install.c LIBS px_service px_program)
