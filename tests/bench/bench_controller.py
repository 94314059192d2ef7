# SPDX-License-Identifier: BSD-3-Clause
"""The controllers alone, with C at both ends (bench_tasks.c, bench_relay.c): tasks, large messages,
and what thousands of engines cost. ipcontroller is given fewer tasks and at most a thousand engines."""
import json
import os
import re
import socket
import subprocess
import tempfile
from pathlib import Path

from common import BIN, PYTHON, Row, wait_for

BENCH = BIN.parent / "bench"
TASKS = {True: 100_000, False: 2_000}
MANY = (1000, 5000)


def listens(path):
    """Whether every port in a connection file takes connections: ipcontroller writes the files
    first."""
    try:
        file = json.loads(path.read_text())
        ports = [v for k, v in file.items() if isinstance(v, int) and v > 0] + list(
            file["broadcast"] if isinstance(file["broadcast"], list) else [])
        for port in ports:
            socket.create_connection(("127.0.0.1", port)).close()
    except (OSError, ValueError):
        return False
    return True


class Controller:
    def __init__(self, ours, *options):
        self.directory = tempfile.TemporaryDirectory(prefix="px-bench-")
        env = {k: v for k, v in os.environ.items() if not k.startswith("IPP_")}
        command = [str(BIN / "pxcontroller")] if ours else [PYTHON, "-m", "ipyparallel.controller"]
        self.process = subprocess.Popen(
            [*command, *options], env=dict(env, IPYTHONDIR=self.directory.name),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.security = Path(self.directory.name) / "profile_default" / "security"

    def __enter__(self):
        names = [self.security / f"ipcontroller-{role}.json" for role in ("client", "engine")]
        wait_for(lambda: all(map(listens, names)))
        return self

    def __exit__(self, *exception):
        self.process.terminate()
        self.process.wait()
        self.directory.cleanup()

    def run(self, program, *arguments):
        done = subprocess.run([BENCH / program, self.security, str(self.process.pid),
                               *map(str, arguments)], stdout=subprocess.PIPE, text=True,
                              timeout=600, check=True)
        return done.stdout


def number(pattern, text):
    return float(re.search(pattern, text).group(1))


def tasks(ours, engines=4, count=None):
    """(tasks a second, all processor time a task, the scheduler's of that; us)"""
    with Controller(ours) as controller:
        text = controller.run("bench_tasks", count or TASKS[ours], engines, 1000 if ours else 50)
    scheduler = number(r"cpu  traffic +([\d.]+)", text) if ours else None
    return number(r": (\d+) tasks/s", text), number(r"cpu  all +([\d.]+)", text), scheduler


def frames(ours, mb, count):
    with Controller(ours) as controller:
        return number(r"mux: ([\d.]+) GB/s", controller.run("bench_relay", "frames", mb, count))


def many(ours, engines):
    """(seconds to register all, us a heartbeat, us an engine of a broadcast, of a coalescing one)"""
    with Controller(ours) as controller:
        text = controller.run("bench_relay", "many", engines, 10)
    plain, coalescing = (min(map(float, re.findall(rf"{kind} .* ms, ([\d.]+) us an engine", text)))
                         for kind in ("plain", "coalescing"))
    return (number(r"registered in (\d+) ms", text) / 1000,
            number(r"cpu  all +([\d.]+) us/beat", text), plain, coalescing)


def memory():
    """MB by which the controller grew over the second half of a million tasks."""
    with Controller(True) as controller:
        text = controller.run("bench_tasks", 1_000_000, 4)
    sizes = [int(kb) for kb in re.findall(r"tasks: memory (\d+) kB", text)]
    return (sizes[-1] - sizes[len(sizes) // 2]) / 1024


def rows(runs):
    ours, theirs = tasks(True), tasks(False)
    yield Row("C ends, 4 engines: no-op tasks", "1/s", ours[0], theirs[0], False)
    yield Row("C ends, 4 engines: controller's processor time a task", "us", ours[1], theirs[1])
    yield Row("C ends, 4 engines: scheduler's of that", "us", ours[2], None)
    for engines in MANY:
        yield Row(f"C ends, {engines:,} engines: scheduler's processor time a task", "us",
                  tasks(True, engines)[2], None)
    for mb, count in ((10, 20), (100, 5)):
        yield Row(f"{mb} MB there through mux", "GB/s", frames(True, mb, count),
                  frames(False, mb, count), False)
    for engines in MANY:
        ours = many(True, engines)
        theirs = many(False, engines) if engines <= 1000 else [None] * 4
        what = ["until all are registered", "controller's processor time a heartbeat",
                "a broadcast and all replies, an engine", "the same, coalescing"]
        for name, unit, *pair in zip(what, ["s", "us", "us", "us"], ours, theirs):
            yield Row(f"{engines:,} engines: {name}", unit, *pair)
    yield Row("a million tasks: memory grows in the second half by", "MB", memory(), None)
