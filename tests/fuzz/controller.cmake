# SPDX-License-Identifier: BSD-3-Clause
px_fuzz(depend LIBS px_schedule)
px_fuzz(query LIBS px_controller)
px_fuzz(task LIBS px_controller)
px_fuzz(config LIBS px_controller)
px_fuzz(row LIBS px_controller)
