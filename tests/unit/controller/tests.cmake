# SPDX-License-Identifier: BSD-3-Clause
px_test(controller/test_history.c LIBS px_schedule)
px_test(controller/test_depend.c LIBS px_schedule)
px_test(controller/test_scheme.c LIBS px_schedule)
px_test(controller/test_schedule.c SOURCES unit/controller/schedule_model.c LIBS px_schedule)
px_test(controller/test_schedule_rules.c LIBS px_schedule)
px_test(controller/test_query.c LIBS px_controller)
px_test(controller/test_value.c LIBS px_controller)
px_test(controller/test_row.c LIBS px_controller)
px_test(controller/test_settings.c LIBS px_controller)

# Run by hand or by tests/bench: it needs a running controller.
add_executable(bench_tasks bench/bench_tasks.c)
target_link_libraries(bench_tasks PRIVATE px_options px_wire px_loop)
target_include_directories(bench_tasks PRIVATE ${CMAKE_SOURCE_DIR}/cluster)
set_target_properties(bench_tasks PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)
