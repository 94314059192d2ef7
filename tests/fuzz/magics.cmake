# SPDX-License-Identifier: BSD-3-Clause
px_fuzz(line LIBS px_magics m)
