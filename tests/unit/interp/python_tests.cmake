# SPDX-License-Identifier: BSD-3-Clause
# One program per way to start Python: a process can hold only one interpreter.
foreach(name python python_apply python_fork python_select)
  px_test(interp/test_${name}.c SOURCES unit/interp/fake_host.c LIBS px_python)
  set(target interp_test_${name})
  target_compile_definitions(${target} PRIVATE PX_MODULE_DIR="${CMAKE_BINARY_DIR}/python"
    PX_PYTHON="${Python3_EXECUTABLE}")
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR}/kernel/interp/python)
  add_dependencies(${target} phalanx_package)
  # CPython and the modules it loads keep memory to the end by design.
  set_tests_properties(${target} PROPERTIES ENVIRONMENT
    "LSAN_OPTIONS=suppressions=${CMAKE_CURRENT_LIST_DIR}/python.supp:print_suppressions=0")
endforeach()
