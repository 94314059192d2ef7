# SPDX-License-Identifier: BSD-3-Clause
"""No-op tasks through the load-balanced view of four engines, all submitted, then all awaited: with
each side's own client as many, and with the stock client on both a few, which is kinder to
ipyparallel, whose tasks cost more the more of them wait.
The processor time a task costs each part disturbs less than its rate does when the machine has
other work, or when the client is what holds the rest up."""
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

from common import Cluster, Row, cpu_seconds, descendants, median, our_client, stock_client


MANY, FEW = 20_000, 400


def noop():
    return None


def same(x):
    return x


# As if typed in a notebook: both clients then send the code, not the name of this module.
noop.__module__ = same.__module__ = "__main__"


def submit_and_await(view, count):
    results = [view.apply_async(noop) for _ in range(count)]
    for result in results:
        result.get()


def map_some(view, count):
    assert list(view.map_sync(same, range(count))) == list(range(count))


def rate(action, view, count, runs):
    """Tasks, or items, a second."""
    action(view, FEW)  # warms up
    rates = []
    for _ in range(runs):
        begun = time.perf_counter()
        action(view, count)
        rates.append(count / (time.perf_counter() - begun))
    return median(rates)


def parts(cluster):
    controller, engines = cluster.pids()
    return {"controller": descendants(controller), "engines": engines, "client": ["self"]}


def in_this_process(connect, client_file, pids, count, items, runs):
    client = connect(client_file)
    view = client.load_balanced_view()
    try:
        mapped = rate(map_some, view, items, runs)
        before = {part: cpu_seconds(pids[part]) for part in pids}
        tasks = rate(submit_and_await, view, count, runs)
        total = FEW + count * runs
        return tasks, mapped, {p: (cpu_seconds(pids[p]) - before[p]) / total for p in pids}
    finally:
        client.close()


def measure(cluster, connect, count, items, runs):
    """(tasks a second, items a second, {part: seconds of processor a task}), of a client in a fresh
    process: what another one leaves behind, threads and objects, would count as its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(
            in_this_process, connect, str(cluster.client_file), parts(cluster), count, items, runs
        ).result()


def rows(runs):
    with Cluster(False, 4) as cluster:
        few = measure(cluster, stock_client, FEW, FEW, runs)
        theirs = measure(cluster, stock_client, MANY, FEW, 1)  # a minute
    with Cluster(True, 4) as cluster:
        stock = measure(cluster, stock_client, FEW, FEW, runs)
        yield Row("no-op tasks by apply, stock client on both", "1/s", stock[0], few[0], False)
        yield Row("items by map_sync, stock client on both", "1/s", stock[1], few[1], False)
        own = measure(cluster, our_client, MANY, MANY, runs)
    yield Row(f"{MANY:,} no-op tasks by apply, own clients", "1/s", own[0], theirs[0], False)
    yield Row("items by map_sync, own clients", "1/s", own[1], few[1], False)
    for part in ("controller", "engines", "client"):
        yield Row(f"processor time a task: {part}, own clients", "us", own[2][part] * 1e6,
                  theirs[2][part] * 1e6)
