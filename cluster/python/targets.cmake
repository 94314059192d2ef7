# SPDX-License-Identifier: BSD-3-Clause
# The package `phalanx`: assembled in python/phalanx of the build tree, installed into site-packages.
set(DIR ${CMAKE_CURRENT_LIST_DIR})
set(PX_PACKAGE_DIR ${CMAKE_BINARY_DIR}/python/phalanx)

Python3_add_library(_phalanx MODULE WITH_SOABI ${DIR}/_phalanx.c ${DIR}/client.c ${DIR}/result.c
  ${DIR}/event.c ${DIR}/handle.c)
target_link_libraries(_phalanx PRIVATE px_options phalanx)
set_target_properties(_phalanx PROPERTIES
  LIBRARY_OUTPUT_DIRECTORY ${PX_PACKAGE_DIR} INSTALL_RPATH "$ORIGIN/../../..")

# Python files are copied as they change, so that the build tree's package is always whole.
file(GLOB_RECURSE PX_PYTHON_FILES RELATIVE ${DIR}/phalanx CONFIGURE_DEPENDS
  ${DIR}/phalanx/*.py ${DIR}/phalanx/*.pyi ${DIR}/phalanx/py.typed)
set(copies)
foreach(file ${PX_PYTHON_FILES})
  add_custom_command(OUTPUT ${PX_PACKAGE_DIR}/${file}
    COMMAND ${CMAKE_COMMAND} -E copy ${DIR}/phalanx/${file} ${PX_PACKAGE_DIR}/${file}
    DEPENDS ${DIR}/phalanx/${file})
  list(APPEND copies ${PX_PACKAGE_DIR}/${file})
endforeach()
add_custom_target(phalanx_package ALL DEPENDS ${copies} _phalanx)

install(TARGETS _phalanx LIBRARY DESTINATION ${PX_PYTHON_DIR}/phalanx)
install(DIRECTORY ${DIR}/phalanx DESTINATION ${PX_PYTHON_DIR} FILES_MATCHING
  PATTERN "*.py" PATTERN "*.pyi" PATTERN "py.typed")
