# SPDX-License-Identifier: BSD-3-Clause
"""From the command (`pxcluster start`, `ipcluster start`) to a stock ipyparallel client that has
all engines in its `ids`. Each run in a fresh profile; the time of stopping is not counted."""
from common import Cluster, Row, median


def seconds(ours, n, runs):
    times = []
    for _ in range(runs):
        cluster = Cluster(ours, n)
        try:
            times.append(cluster.start())
        finally:
            cluster.stop()
    return median(times)


def rows(runs):
    for n in (4, 8):
        yield Row(f"start -n {n}: until a client sees all engines", "s",
                  seconds(True, n, runs), seconds(False, n, runs))
