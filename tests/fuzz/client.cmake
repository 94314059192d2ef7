# SPDX-License-Identifier: BSD-3-Clause
px_fuzz(unescape LIBS px_client)
px_fuzz(unpickle LIBS px_client)
px_fuzz(engines LIBS px_client)
