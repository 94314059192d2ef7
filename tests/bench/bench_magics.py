# SPDX-License-Identifier: BSD-3-Clause
"""%px in a notebook: ours in our kernel on our cluster, ipyparallel's in ipykernel on theirs.

`%px pass` on 4 engines is the cell's round trip, on plain sockets. The rest is ours alone, because
64 of ipyparallel's engines do not fit a small machine: a %%px print on 64 engines from the request
to the cell's idle status, and how many messages that is on iopub; and the round trip of the first
cell after one in which 4 engines have printed 1 MB/s each for 10 s."""
import json
import time

import zmq
from bench_kernel import OURS, THEIRS, Kernel
from common import Cluster, Row, median, time_turns

FLOOD = """%%px
import time
line = "x" * 99 + "\\n"
begun = time.monotonic()
for tick in range(100):
    for _ in range(1000):
        print(line, end="")
    time.sleep(max(0, begun + (tick + 1) / 10 - time.monotonic()))  # work
"""


class Notebook(Kernel):
    """A kernel whose %px runs on a cluster."""

    def __init__(self, command, cluster):
        super().__init__(command)
        self.iopub = self.context.socket(zmq.SUB)
        module = "phalanx" if cluster.ours else "ipyparallel"
        self.execute(f"import {module}; view = {module}.Client({str(cluster.client_file)!r})[:]; "
                     "view.block = True; view.activate()")

    def listen(self):
        """From now on what cells publish is heard."""
        self.iopub.subscribe(b"")
        self.iopub.connect(f"tcp://127.0.0.1:{self.info['iopub_port']}")
        while not self.iopub.poll(50):  # the subscription takes a moment to arrive
            self.execute("pass")
        while self.iopub.poll(200):
            self.iopub.recv_multipart()

    def published(self, code):
        """Runs a cell. How many messages it publishes, to its idle status."""
        self.send("execute_request", {"code": code, "silent": False, "store_history": True,
                                      "user_expressions": {}, "allow_stdin": False,
                                      "stop_on_error": True})
        count, state = 0, ""
        while state != "idle":
            count += 1
            state = self.receive(self.iopub)["content"].get("execution_state")
        assert self.receive()["content"]["status"] == "ok"
        return count


def px_pass():
    with Cluster(True, 4) as ours, Cluster(False, 4) as theirs, \
            Notebook(OURS, ours) as mine, Notebook(THEIRS, theirs) as other:
        cell = json.dumps({"code": "%px pass", "silent": False, "store_history": True,
                           "user_expressions": {}, "allow_stdin": False,
                           "stop_on_error": True}).encode()
        return time_turns(lambda: mine.execute_raw(cell), lambda: other.execute_raw(cell), 200)


def wide_print(runs):
    """(seconds, messages) of a print on 64 engines."""
    with Cluster(True, 64) as cluster, Notebook(OURS, cluster) as notebook:
        notebook.listen()
        notebook.published("%px pass")
        counts, times = [], []
        for _ in range(runs + 2):
            begun = time.perf_counter()
            counts.append(notebook.published("%%px\nprint('the same on every engine')"))
            times.append(time.perf_counter() - begun)
        return median(times), median(counts)


def after_a_flood():
    """(round trip of the next cell, messages of the flooding one)."""
    with Cluster(True, 4) as cluster, Notebook(OURS, cluster) as notebook:
        notebook.listen()
        notebook.published("%px pass")
        count = notebook.published(FLOOD)
        begun = time.perf_counter()
        notebook.execute("pass")
        return time.perf_counter() - begun, count


def rows(runs):
    mine, other = px_pass()
    yield Row("magics: cell `%px pass`, 4 engines", "ms", mine * 1e3, other * 1e3)
    seconds, count = wide_print(runs)
    yield Row("magics: `%%px print(...)`, 64 engines, to idle", "ms", seconds * 1e3, None)
    yield Row("magics: its messages on iopub", "", count, None)
    seconds, count = after_a_flood()
    yield Row("magics: next cell after 4 MB/s for 10 s", "ms", seconds * 1e3, None)
    yield Row("magics: messages of the flood on iopub", "", count, None)
