# SPDX-License-Identifier: BSD-3-Clause
# pxcontroller: its parts as a library for tests, and the program.
set(DIR ${CMAKE_CURRENT_LIST_DIR})

# The scheduling core is pure: it sees base and jansson alone.
px_library(px_schedule
  SOURCES ${DIR}/schedule.c ${DIR}/task_queue.c ${DIR}/task_graph.c ${DIR}/schedule_named.c ${DIR}/scheme.c
          ${DIR}/schedule_ahead.c ${DIR}/schedule_abort.c ${DIR}/schedule_why.c ${DIR}/schedule_restore.c
          ${DIR}/history.c ${DIR}/depend.c ${DIR}/heap.c
  LIBS px_base PkgConfig::JANSSON)
target_include_directories(px_schedule PUBLIC ${DIR} ${CMAKE_SOURCE_DIR}/cluster)

px_embed(DASK ${DIR}/dask.py)

pkg_check_modules(SQLITE REQUIRED IMPORTED_TARGET sqlite3)
px_library(px_controller
  SOURCES ${DIR}/settings.c ${DIR}/config.c ${DIR}/sockets.c ${DIR}/link.c ${DIR}/port.c
          ${DIR}/route.c ${DIR}/clients.c ${DIR}/relay.c ${DIR}/iopub.c ${DIR}/reply.c ${DIR}/task.c ${DIR}/task_read.c ${DIR}/task_return.c ${DIR}/comeback.c ${DIR}/broadcast.c ${DIR}/heart.c
          ${DIR}/traffic.c ${DIR}/hub.c ${DIR}/member.c ${DIR}/farewell.c ${DIR}/job.c ${DIR}/request.c ${DIR}/request_db.c
          ${DIR}/monitor.c ${DIR}/record.c ${DIR}/query.c ${DIR}/db.c
          ${DIR}/why.c ${DIR}/row.c ${DIR}/db_sqlite.c ${DIR}/value.c ${DIR}/restore.c ${DIR}/again.c ${DIR}/scan.c ${DIR}/status.c
          ${DIR}/adapt.c ${DIR}/dask.c ${DASK}
  LIBS px_schedule px_wire px_loop Threads::Threads
  PRIVATE PkgConfig::SQLITE)

px_program(pxcontroller SOURCES ${DIR}/main.c LIBS px_controller)
