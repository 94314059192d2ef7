# SPDX-License-Identifier: BSD-3-Clause
# CPython as a language. The Python files beside this one are embedded, so that a program needs
# nothing but itself to start.
set(PX_EMBEDDED)
foreach(module apply bridge comms debugger environment history kernel line_magics loops output
               placeholders plain shell toolkits)
  px_embed(output ${CMAKE_CURRENT_LIST_DIR}/${module}.py)
  list(APPEND PX_EMBEDDED ${output})
endforeach()

px_library(px_python
  SOURCES interp/python/python.c interp/python/select.c interp/python/cell.c interp/python/apply.c
          interp/python/streams.c interp/python/services.c interp/python/parent.c interp/python/thread.c ${PX_EMBEDDED}
  LIBS px_interp Python3::Python)
target_compile_definitions(px_python PRIVATE PX_PYTHON_DEFAULT="${Python3_EXECUTABLE}")
target_include_directories(px_python PRIVATE ${CMAKE_CURRENT_LIST_DIR})
