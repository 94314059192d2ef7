# SPDX-License-Identifier: BSD-3-Clause
px_test(wire/test_message.c LIBS px_wire)
px_test(wire/test_scan.c LIBS px_wire)
px_test(wire/test_session.c LIBS px_wire)
px_test(wire/test_socket.c LIBS px_wire PkgConfig::ZMQ)
px_test(wire/test_bundle.c LIBS px_wire PkgConfig::ZMQ)
px_test(wire/test_connection.c LIBS px_wire)
px_test(wire/test_profile.c LIBS px_wire)
px_test(wire/test_blocks.c LIBS px_wire PkgConfig::ZMQ)
