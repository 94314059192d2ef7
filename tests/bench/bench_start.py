# SPDX-License-Identifier: BSD-3-Clause
"""From the command (`pxcluster start`, `ipcluster start`) to a stock ipyparallel client that has
all engines in its `ids`. Each run in a fresh profile; the time of stopping is not counted."""
from common import Cluster, Row, median


def seconds(ours, n):
    cluster = Cluster(ours, n)
    try:
        return cluster.start()
    finally:
        cluster.stop()


def rows(runs):
    for n in (1, 4, 8, 32):
        times = runs if n < 32 else 1  # theirs takes a minute
        pairs = [(seconds(True, n), seconds(False, n)) for _ in range(times)]
        yield Row(f"start -n {n}: until a client sees all engines", "s",
                  median(p[0] for p in pairs), median(p[1] for p in pairs))
