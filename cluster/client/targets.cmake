# SPDX-License-Identifier: BSD-3-Clause
# libphalanx: the client as a static library for tests, and as the installed shared one.
set(DIR ${CMAKE_CURRENT_LIST_DIR})

px_embed(PX_CALL ${DIR}/call.py)

px_library(px_client
  SOURCES ${DIR}/call.c ${PX_CALL} ${DIR}/client.c ${DIR}/dial.c ${DIR}/io.c ${DIR}/kept.c ${DIR}/file.c ${DIR}/submit.c ${DIR}/result.c
          ${DIR}/bundles.c ${DIR}/engines.c ${DIR}/unescape.c
  LIBS px_wire px_loop PkgConfig::JANSSON Threads::Threads)
target_include_directories(px_client PUBLIC ${CMAKE_SOURCE_DIR}/cluster)

add_library(phalanx SHARED $<TARGET_OBJECTS:px_client>)
target_link_libraries(phalanx PRIVATE
  px_options px_wire px_loop -Wl,--version-script,${DIR}/phalanx.map)
target_include_directories(phalanx INTERFACE ${CMAKE_SOURCE_DIR}/cluster)
set_target_properties(phalanx PROPERTIES
  VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}
  LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib
  LINK_DEPENDS ${DIR}/phalanx.map INSTALL_RPATH "")

configure_file(${DIR}/phalanx.pc.in ${CMAKE_BINARY_DIR}/phalanx.pc @ONLY)
install(TARGETS phalanx LIBRARY DESTINATION lib)
install(FILES ${DIR}/phalanx.h DESTINATION include)
install(FILES ${CMAKE_BINARY_DIR}/phalanx.pc DESTINATION lib/pkgconfig)
