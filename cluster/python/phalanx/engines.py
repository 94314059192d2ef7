# SPDX-License-Identifier: BSD-3-Clause
"""What runs on engines."""

import sys


def bind_kernel(**options):
    """To be called on an engine: makes it a kernel that front ends connect to. Returns the path of
    its connection file, on the engine's host: jupyter console --existing FILE. Its cells see the
    namespace of tasks and take turns with them.

    Again, and in a Phalanx kernel, returns the file that there is. RuntimeError elsewhere.
    ipyparallel's options are taken, and not looked at."""
    bridge = getattr(sys.modules.get("_phalanx_host"), "bridge", None)
    if bridge is None:
        raise RuntimeError(
            "bind_kernel() is for engines: view.apply_sync(phalanx.bind_kernel), or call it in %px"
        )
    return bridge.bind_kernel(**options)
