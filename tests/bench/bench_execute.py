# SPDX-License-Identifier: BSD-3-Clause
"""Round trips on one engine of a cluster of four: with the stock client on both clusters, and
with each side's own client on its own."""
from common import Cluster, Row, time_each

COUNT = 200


def round_trips(client):
    """(execute, apply), seconds."""
    view = client[0]
    execute = time_each(lambda: view.execute("pass", silent=True, block=True), COUNT)
    apply = time_each(lambda: view.apply_sync(int), COUNT)
    return execute, apply


def measure(cluster, client):
    try:
        return round_trips(client)
    finally:
        client.close()


def rows(runs):
    with Cluster(False, 4) as cluster:
        theirs = measure(cluster, cluster.stock_client())
    with Cluster(True, 4) as cluster:
        stock = measure(cluster, cluster.stock_client())
        yield Row("execute `pass` on one engine, stock client on both", "ms", stock[0] * 1e3,
                  theirs[0] * 1e3)
        yield Row("apply on one engine, stock client on both", "ms", stock[1] * 1e3,
                  theirs[1] * 1e3)
        own = measure(cluster, cluster.our_client())
    yield Row("execute `pass` on one engine, own clients", "ms", own[0] * 1e3, theirs[0] * 1e3)
    yield Row("apply on one engine, own clients", "ms", own[1] * 1e3, theirs[1] * 1e3)
