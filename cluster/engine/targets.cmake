# SPDX-License-Identifier: BSD-3-Clause
# The engine: the kernel core on a cluster's sockets, its fork server, and the program pxengine.
set(DIR ${CMAKE_CURRENT_LIST_DIR})
px_library(px_engine SOURCES ${DIR}/again.c ${DIR}/engine.c ${DIR}/forkserver.c ${DIR}/front.c
  ${DIR}/nanny.c ${DIR}/obituary.c ${DIR}/oom.c ${DIR}/registrar.c ${DIR}/requests.c ${DIR}/tags.c ${DIR}/trace.c ${DIR}/tunnel.c
  LIBS px_service px_loop px_wire)
target_include_directories(px_engine PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
px_program(pxengine SOURCES ${DIR}/main.c LIBS px_engine px_program)
