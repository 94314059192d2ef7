# SPDX-License-Identifier: BSD-3-Clause
px_test(client/test_result.c SOURCES unit/client/fake.c LIBS px_client)
px_test(client/test_output.c SOURCES unit/client/fake.c LIBS px_client)
px_test(client/test_kept.c SOURCES unit/client/fake.c LIBS px_client)
px_test(client/test_engines.c LIBS px_client)
px_test(client/test_unescape.c LIBS px_client)
px_test(client/test_call.c LIBS px_client)

# Run by hand or by tests/bench: it needs a running cluster.
add_executable(bench_trip bench/bench_trip.c)
target_link_libraries(bench_trip PRIVATE px_options phalanx)
set_target_properties(bench_trip PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)
