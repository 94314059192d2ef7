# SPDX-License-Identifier: BSD-3-Clause
"""Memory of an idle cluster of four and of an idle kernel after one cell, from smaps_rollup: private
(what would come free), and proportional (shared pages divided among their users). A part
counts with its helpers: ipcontroller's processes, an ipengine's nanny, our fork server."""
from pathlib import Path

from bench_kernel import OURS, THEIRS, Kernel
from common import Cluster, Row, descendants

N = 4


def rollup(pid):
    """(private, proportional) in MB."""
    fields = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        fields[name] = int(value.split()[0]) / 1024
    return fields["Private_Clean"] + fields["Private_Dirty"], fields["Pss"]


def total(pids):
    pairs = [rollup(pid) for pid in pids]
    return sum(p[0] for p in pairs), sum(p[1] for p in pairs)


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def cluster_memory(ours):
    """(private of one engine, proportional of one with its share of helpers), (controller)"""
    with Cluster(ours, N) as cluster:
        client = cluster.stock_client()
        client[:].apply_sync(int)
        client.close()
        controller, engines = cluster.pids()
        private, _ = total(engines)
        if ours:
            everything = descendants(parent_of(engines[0]))
        else:
            everything = [p for e in engines for p in descendants(e)]
        _, proportional = total(everything)
        return (private / N, proportional / N), total(descendants(controller))


def kernel_memory(command):
    with Kernel(command) as kernel:
        kernel.execute("1 + 1")
        return total(descendants(kernel.process.pid))


def rows(runs):
    (our_engine, our_controller) = cluster_memory(True)
    (their_engine, their_controller) = cluster_memory(False)
    yield Row("memory: engine, private", "MB", our_engine[0], their_engine[0])
    yield Row("memory: engine with its helpers, proportional", "MB", our_engine[1],
              their_engine[1])
    yield Row("memory: controller, private", "MB", our_controller[0], their_controller[0])
    yield Row("memory: controller, proportional", "MB", our_controller[1], their_controller[1])
    ours, theirs = kernel_memory(OURS), kernel_memory(THEIRS)
    yield Row("memory: kernel after a cell, private", "MB", ours[0], theirs[0])
