# SPDX-License-Identifier: BSD-3-Clause
"""Publishing data while a task runs."""

from ipyparallel.engine.datapub import publish_data
