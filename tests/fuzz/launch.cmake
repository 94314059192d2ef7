# SPDX-License-Identifier: BSD-3-Clause
px_fuzz(clusterfile LIBS px_launch)
