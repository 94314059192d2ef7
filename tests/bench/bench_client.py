# SPDX-License-Identifier: BSD-3-Clause
"""The client beside its peers, four workers each: ipyparallel, dask.distributed,
concurrent.futures.ProcessPoolExecutor (no network in its way) and joblib (loky).

Calls and maps are of functions that do next to nothing, so what is timed is the way there and
back. All get as many tasks; slow peers do them once, and fewer items of a map. "To each and
back": an array is sent to each worker, and comes back from each. The first time is told apart: each
peer then takes memory that it has again later; ours, a task database's on top, over the first four. "To
each" is the way there alone, as is cheapest: ours shares it, joblib maps a file, dask scatters.
"""
import contextlib
import gc
import os
import re
import subprocess
import sys
import time

from common import BIN, Cluster, Row, median

WORKERS = 4
SLOW = {"joblib", "dask", "ipyparallel"}
TASKS, FEW = 20_000, 400
ITEMS = 10_000
MEGABYTES = (10, 100)
WARM = 4  # exchanges before those that count


def noop():
    return None


def power(x):
    return x**10


def same(x):
    return x


# As if typed in a notebook: clients then send the code, not the name of this module.
for function in (noop, power, same):
    function.__module__ = "__main__"


class Peer:
    """One of those measured. Anything it cannot do is left out."""

    def call(self):
        """A call and its result."""

    def tasks(self, count):
        """So many calls, all submitted, then all awaited."""

    def map(self, f, items, chunksize):
        """A list; chunksize None: as the peer sees fit."""

    def there_and_back(self, array):
        """The array to each worker, and from each."""

    def give(self, array):
        """[its length as each worker sees it], in the peer's cheapest way on one host."""


class Phalanx(Peer):
    def __init__(self, client):
        self.client = client
        self.balanced, self.all = client.load_balanced_view(), client[:]

    def call(self):
        self.balanced.apply_sync(noop)

    def tasks(self, count):
        for result in [self.balanced.apply_async(noop) for _ in range(count)]:
            result.get()

    def map(self, f, items, chunksize):
        return self.balanced.map_sync(f, items, chunksize=chunksize or self.fitting)

    def there_and_back(self, array):
        self.all.push({"a": array}, block=True)
        return self.all.pull("a", block=True)

    def give(self, array):
        import phalanx
        return self.all.apply_sync(len, phalanx.share(array))

    fitting = None  # many items share a task


class IPyParallel(Phalanx):
    fitting = 1  # its default

    def give(self, array):
        return self.all.apply_sync(len, array)


class Pool(Peer):
    def __init__(self, executor):
        self.executor = executor

    def call(self):
        self.executor.submit(int).result()

    def tasks(self, count):
        for future in [self.executor.submit(int) for _ in range(count)]:
            future.result()

    def map(self, f, items, chunksize):
        return list(self.executor.map(f, items, chunksize=chunksize or 1))

    def there_and_back(self, array):
        return list(self.executor.map(same, [array] * WORKERS))

    def give(self, array):
        return list(self.executor.map(len, [array] * WORKERS))


class Joblib(Peer):
    def __init__(self):
        import joblib
        self.joblib = joblib

    def run(self, calls, size="auto"):
        return self.joblib.Parallel(WORKERS, batch_size=size)(calls)

    def call(self):
        self.run([self.joblib.delayed(noop)()])

    def tasks(self, count):
        self.run((self.joblib.delayed(noop)() for _ in range(count)), 1)

    def map(self, f, items, chunksize):
        return self.run((self.joblib.delayed(f)(x) for x in items), chunksize or "auto")

    def there_and_back(self, array):
        return self.run([self.joblib.delayed(same)(array) for _ in range(WORKERS)])

    def give(self, array):
        return self.run([self.joblib.delayed(len)(array) for _ in range(WORKERS)])


class Dask(Peer):
    def __init__(self, client):
        self.client = client

    def call(self):
        self.client.submit(noop, pure=False).result()

    def tasks(self, count):
        self.client.gather([self.client.submit(noop, pure=False) for _ in range(count)])

    def map(self, f, items, chunksize):
        return self.client.gather(self.client.map(f, items, batch_size=chunksize, pure=False))

    def there_and_back(self, array, function=same):
        workers = list(self.client.scheduler_info()["workers"])
        sent = self.client.scatter(array, broadcast=True, hash=False)
        back = [self.client.submit(function, sent, workers=[w], pure=False) for w in workers]
        return self.client.gather(back)

    def give(self, array):
        return self.there_and_back(array, len)


@contextlib.contextmanager
def phalanx():
    with Cluster(True, WORKERS) as cluster, cluster.our_client() as client:
        yield Phalanx(client)


@contextlib.contextmanager
def ipyparallel():
    with Cluster(False, WORKERS) as cluster, cluster.stock_client() as client:
        yield IPyParallel(client)


@contextlib.contextmanager
def pool():
    from concurrent.futures import ProcessPoolExecutor
    for function in (power, same):  # its workers are forked from this very module
        function.__module__ = __name__
    with ProcessPoolExecutor(WORKERS) as executor:
        yield Pool(executor)
    for function in (power, same):
        function.__module__ = "__main__"


@contextlib.contextmanager
def joblib():
    peer = Joblib()
    yield peer
    from joblib.externals.loky import get_reusable_executor
    get_reusable_executor().shutdown(wait=True)


@contextlib.contextmanager
def dask():
    import logging

    from distributed import Client, LocalCluster
    logging.getLogger("distributed").setLevel(logging.ERROR)
    with LocalCluster(n_workers=WORKERS, threads_per_worker=1, processes=True,
                      dashboard_address=None, silence_logs=logging.ERROR) as cluster:
        with Client(cluster) as client:
            yield Dask(client)


PEERS = {f.__wrapped__.__name__: f for f in (phalanx, ipyparallel, dask, pool, joblib)}


def timed(action, runs):
    """The seconds that each of so many runs took."""
    taken = []
    gc.collect()  # once: between short calls it would be part of them, by what it does to caches
    for _ in range(runs):
        begun = time.perf_counter()
        action()
        taken.append(time.perf_counter() - begun)
    return taken


def seconds(action, runs):
    return median(timed(action, runs + 1)[1:])  # the first warms up


def measure(name, runs):
    """{what: figure} of one peer."""
    numpy = __import__("numpy")
    figures, slow = {}, name in SLOW
    with PEERS[name]() as peer:
        figures["round trip of a call"] = 1000 * seconds(peer.call, 30 if slow else 200)
        peer.tasks(FEW)  # warms up
        figures["no-op tasks"] = TASKS / median(timed(lambda: peer.tasks(TASKS), 1 if slow else runs))
        wanted = [x**10 for x in range(ITEMS)]
        for label, size in (("as it sees fit", None), ("in chunks of 100", 100)):
            items = ITEMS // 10 if slow and size is None and name != "joblib" else ITEMS

            def run():
                assert list(peer.map(power, range(items), size)) == wanted[:items]
            figures[f"map of x**10, {label}"] = items / seconds(run, 1 if slow else runs)
        for size in MEGABYTES:
            array = numpy.random.default_rng(0).random(size * 131072)

            def exchange():
                back = peer.there_and_back(array)
                assert len(back) == WORKERS and (back[-1] == array).all()
            first, *others = timed(exchange, WARM + max(runs, 3))
            figures[f"{size} MB to each and back, the first time"] = 1000 * first
            figures[f"{size} MB to each and back"] = 1000 * median(others[WARM - 1:])

            def give():
                assert peer.give(array) == [len(array)] * WORKERS
            figures[f"{size} MB to each"] = 1000 * seconds(give, max(runs, 3))
    return figures


MEMORY = """
import os, sys
module, file, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
client = __import__(module).Client(file)
view = client.load_balanced_view()
def rss():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024
def run(count):
    for low in range(0, count, 500):
        for result in [view.apply_async(abs, -1) for _ in range(min(500, count - low))]:
            result.get()
run(500)
before = rss()
run(count)
print((rss() - before) / count)
"""


def memory(ours, count):
    """kB by which a client grows with each result that was fetched."""
    with Cluster(ours, WORKERS) as cluster:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", MEMORY, "phalanx" if ours else "ipyparallel",
             cluster.client_file, str(count)], stdout=subprocess.PIPE, text=True, check=True,
            env={**os.environ, "PYTHONPATH": os.environ["PX_PYTHONPATH"]})
    return float(done.stdout)


def trip_from_c():
    """ms of a call from C, one after the other, to whichever engine is free."""
    with Cluster(True, WORKERS) as cluster:
        done = subprocess.run([BIN.parent / "bench" / "bench_trip", cluster.client_file],
                              stdout=subprocess.PIPE, text=True, check=True)
    return float(re.search(r"balanced (\d+) us", done.stdout).group(1)) / 1000


UNITS = {"round trip of a call": ("ms", True), "no-op tasks": ("1/s", False)}


def rows(runs):
    assert BIN.exists()
    ours = measure("phalanx", runs)
    for name in PEERS:
        if name == "phalanx":
            continue
        try:
            theirs = measure(name, runs)
        except ImportError as error:
            print(f"client: no {name}: {error}", file=sys.stderr)
            continue
        for what, figure in ours.items():
            unit, less = UNITS.get(what, ("1/s", False) if "map" in what else ("ms", True))
            yield Row(f"{what}, beside {name}", unit, figure, theirs[what], less)
        if name == "ipyparallel":
            yield Row("round trip of a call from C, beside ipyparallel", "ms", trip_from_c(),
                      theirs["round trip of a call"])
    yield Row("client's memory, a result, beside ipyparallel", "kB", max(memory(True, 100_000), 0.001),
              memory(False, 500))
