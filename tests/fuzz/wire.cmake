# SPDX-License-Identifier: BSD-3-Clause
px_fuzz(codec LIBS px_wire)
px_fuzz(bundle LIBS px_wire)
px_fuzz(scan LIBS px_wire)
px_fuzz(connection LIBS px_wire)
