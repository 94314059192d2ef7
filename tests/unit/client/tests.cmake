# SPDX-License-Identifier: BSD-3-Clause
px_test(client/test_result.c SOURCES unit/client/fake.c LIBS px_client)
px_test(client/test_engines.c LIBS px_client)
px_test(client/test_unescape.c LIBS px_client)
px_test(client/test_call.c LIBS px_client)
