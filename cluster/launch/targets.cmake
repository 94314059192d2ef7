# SPDX-License-Identifier: BSD-3-Clause
# Included by cluster/CMakeLists.txt. Everything but main.c is a library, so that tests can link it.
set(LAUNCH ${CMAKE_CURRENT_LIST_DIR})
px_library(px_launch
  SOURCES ${LAUNCH}/process.c ${LAUNCH}/logs.c ${LAUNCH}/lines.c ${LAUNCH}/hosts.c
          ${LAUNCH}/argv.c ${LAUNCH}/config.c ${LAUNCH}/local.c ${LAUNCH}/proxy.c ${LAUNCH}/ssh.c ${LAUNCH}/mpi.c
          ${LAUNCH}/batch.c ${LAUNCH}/template.c ${LAUNCH}/queues.c
          ${LAUNCH}/stopper.c ${LAUNCH}/clusterfile.c
          ${LAUNCH}/background.c ${LAUNCH}/confirm.c ${LAUNCH}/files.c
          ${LAUNCH}/supervisor.c ${LAUNCH}/report.c
          ${LAUNCH}/adapt.c ${LAUNCH}/policy.c ${LAUNCH}/asker.c ${LAUNCH}/start.c
          ${LAUNCH}/stop.c ${LAUNCH}/list.c ${LAUNCH}/status.c ${LAUNCH}/usage.c
          ${LAUNCH}/clean.c
  LIBS px_wire px_loop PkgConfig::JANSSON
  PRIVATE phalanx)
target_include_directories(px_launch PUBLIC ${CMAKE_CURRENT_SOURCE_DIR})
px_program(pxcluster SOURCES ${LAUNCH}/main.c LIBS px_launch)
