# SPDX-License-Identifier: BSD-3-Clause
px_fuzz(output LIBS px_kernel)
px_fuzz(kernel LIBS px_kernel)
