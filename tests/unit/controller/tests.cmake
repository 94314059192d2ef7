# SPDX-License-Identifier: BSD-3-Clause
px_test(controller/test_history.c LIBS px_schedule)
px_test(controller/test_depend.c LIBS px_schedule)
px_test(controller/test_scheme.c LIBS px_schedule)
px_test(controller/test_schedule.c SOURCES unit/controller/schedule_model.c LIBS px_schedule)
px_test(controller/test_schedule_rules.c LIBS px_schedule)
px_test(controller/test_schedule_restore.c LIBS px_schedule)
px_test(controller/test_query.c LIBS px_controller)
px_test(controller/test_value.c LIBS px_controller)
px_test(controller/test_row.c LIBS px_controller)
px_test(controller/test_settings.c LIBS px_controller)

# Run by hand or by tests/bench: they need a running controller.
foreach(name bench_tasks bench_relay)
  add_executable(${name} bench/${name}.c bench/engines.c bench/load.c)
  target_link_libraries(${name} PRIVATE px_options px_wire)
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR}/cluster)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)
endforeach()
