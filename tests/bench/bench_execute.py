# SPDX-License-Identifier: BSD-3-Clause
"""Round trips on one engine of a cluster of four, the two sides taking turns: with the stock
client on both clusters, and with each side's own client on its own."""
from common import Cluster, Row, time_turns

COUNT = 200
CALLS = {
    "execute `pass`": lambda view: view.execute("pass", silent=True, block=True),
    "apply": lambda view: view.apply_sync(int),
}


def compare(ours, theirs, clients):
    for name, call in CALLS.items():
        times = time_turns(lambda: call(ours[0]), lambda: call(theirs[0]), COUNT)
        yield Row(f"{name} on one engine, {clients}", "ms", times[0] * 1e3, times[1] * 1e3)


def rows(runs):
    with Cluster(True, 4) as our_cluster, Cluster(False, 4) as their_cluster:
        theirs = their_cluster.stock_client()
        for client, clients in ((our_cluster.stock_client, "stock client on both"),
                                (our_cluster.our_client, "own clients")):
            ours = client()
            yield from compare(ours, theirs, clients)
            ours.close()
        theirs.close()
