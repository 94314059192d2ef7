# SPDX-License-Identifier: BSD-3-Clause
px_fuzz(unescape LIBS px_client)
