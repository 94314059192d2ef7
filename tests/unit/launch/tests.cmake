# SPDX-License-Identifier: BSD-3-Clause
px_test(launch/test_process.c LIBS px_launch)
px_test(launch/test_clusterfile.c LIBS px_launch)
px_test(launch/test_stopper.c LIBS px_launch)
px_test(launch/test_local.c LIBS px_launch)
px_test(launch/test_hosts.c LIBS px_launch)
px_test(launch/test_config.c LIBS px_launch)
px_test(launch/test_batch.c LIBS px_launch)
