# SPDX-License-Identifier: BSD-3-Clause
"""What the benchmarks share: clusters of both kinds, medians, rows."""
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

TURN = 10  # calls of one before the other has its turn

BIN = Path(os.environ["PX_BIN"])
PYTHON = sys.executable
sys.path.insert(0, os.environ["PX_PYTHONPATH"])


@dataclasses.dataclass
class Row:
    what: str
    unit: str
    ours: float
    theirs: float
    less_is_better: bool = True


def median(values):
    return statistics.median(values)


def wait_for(condition, timeout=60):
    """Looks every 2 ms, which is the resolution of what is timed with it."""
    pause, deadline = threading.Event(), time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a cluster did not come up")
        pause.wait(0.002)


def stock_client(file):
    import ipyparallel
    with contextlib.redirect_stdout(None):
        deadline = time.monotonic() + 10
        while True:  # ipcontroller writes its file in place: it may not be whole yet
            try:
                return ipyparallel.Client(file, timeout=60)
            except ValueError:
                if time.monotonic() > deadline:
                    raise


def our_client(file):
    import phalanx
    return phalanx.Client(file)


class Cluster:
    """Ours or theirs in a directory of its own."""

    def __init__(self, ours, n):
        self.ours, self.n = ours, n
        self.command = [str(BIN / "pxcluster")] if ours else [PYTHON, "-m", "ipyparallel.cluster"]
        self.directory = tempfile.TemporaryDirectory(prefix="px-bench-")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("IPP_")}
        self.env["IPYTHONDIR"] = self.directory.name
        self.env["PYTHONPATH"] = os.environ["PX_PYTHONPATH"]
        security = Path(self.directory.name) / "profile_default" / "security"
        self.client_file = security / "ipcontroller-client.json"
        self.cluster_file = security / "cluster-.json"

    def call(self, *args):
        return subprocess.run([*self.command, *args], env=self.env, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def start(self):
        """Returns the seconds from the command to all engines in a stock client's `ids`."""
        begun = time.monotonic()
        process = subprocess.Popen([*self.command, "start", f"-n={self.n}" if not self.ours else
                                    f"-n{self.n}", "--daemonize"], env=self.env,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        try:
            wait_for(self.client_file.exists)
            client = self.stock_client()
            wait_for(lambda: len(client.ids) >= self.n)
            seconds = time.monotonic() - begun
            client.close()
        finally:
            process.wait()
        return seconds

    def stock_client(self):
        return stock_client(str(self.client_file))

    def our_client(self):
        return our_client(str(self.client_file))

    def pids(self):
        """(controller, engines) as the cluster file has them."""
        state = json.loads(self.cluster_file.read_text())
        sets = state["engines"]["sets"].values()
        return (state["controller"]["state"]["pid"],
                [e["pid"] for s in sets for e in s["engines"].values()])

    def stop(self):
        self.call("stop")
        self.directory.cleanup()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exception):
        self.stop()


def descendants(pid):
    """The process and all below it."""
    found, rest = [], [pid]
    while rest:
        parent = rest.pop()
        found.append(parent)
        for task in Path(f"/proc/{parent}/task").iterdir():
            rest += map(int, (task / "children").read_text().split())
    return found


def cpu_seconds(pids):
    """User and system time of processes so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def time_turns(ours, theirs, count, warmup=20):
    """The medians of `count` calls of each, in seconds. They take turns of ten, so that what else the
    machine does falls on both. The first two of a turn do not count: the other's processes may still
    be at work behind their last reply."""
    times = ([], [])
    for done in range(-warmup, count, TURN):
        for action, taken in zip((ours, theirs), times):
            for call in range(-2, TURN):
                begun = time.perf_counter()
                action()
                if done >= 0 and call >= 0:
                    taken.append(time.perf_counter() - begun)
    return median(times[0]), median(times[1])
