# SPDX-License-Identifier: BSD-3-Clause
"""Publishing data while a task runs: what ipyparallel.datapub has."""

import sys


def publish_data(data):
    """To be called on an engine: sends a dictionary to the client, where it updates the `data` of the
    task's result. RuntimeError elsewhere."""
    bridge = sys.modules.get("_phalanx_bridge")
    if bridge is None:
        raise RuntimeError("publish_data() is for tasks: call it in what runs on an engine")
    bridge.publish_data(data)
