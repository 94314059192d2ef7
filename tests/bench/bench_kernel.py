# SPDX-License-Identifier: BSD-3-Clause
"""The kernel, driven over plain sockets: from the start of the process to its first replies, and the
round trip of a cell, whose request is signed by hand: jupyter_client's session would be a third of
what is measured. The requests wait in the socket's queue when the kernel comes up; the socket tries
to connect every 2 ms, where libzmq's default of 100 ms would be most of what is measured."""
import hmac
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import zmq
from common import BIN, PYTHON, Row, median, time_turns
from jupyter_client.connect import write_connection_file
from jupyter_client.session import Session

OURS = [str(BIN / "pxkernel"), "-f"]
THEIRS = [PYTHON, "-m", "ipykernel_launcher", "-f"]


class Kernel:
    def __init__(self, command):
        self.directory = tempfile.TemporaryDirectory(prefix="px-bench-")
        path, self.info = write_connection_file(os.path.join(self.directory.name, "kernel.json"),
                                                key=b"a key of the benchmark")
        env = dict(os.environ, IPYTHONDIR=self.directory.name,
                   PYTHONPATH=os.environ["PX_PYTHONPATH"])
        self.context = zmq.Context()
        self.session = Session(key=b"a key of the benchmark")
        self.mac, self.requests = hmac.new(b"a key of the benchmark", digestmod="sha256"), 0
        self.begun = time.perf_counter()
        self.process = subprocess.Popen([*command, path], env=env, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.shell = self.connect("shell", self.info)
        self.control = self.connect("control", self.info)

    def connect(self, channel, info):
        socket = self.context.socket(zmq.DEALER)
        socket.linger = 0
        socket.reconnect_ivl = 2
        socket.connect(f"tcp://127.0.0.1:{info[channel + '_port']}")
        return socket

    def send(self, kind, content, socket=None):
        self.session.send(socket or self.shell, kind, content)

    def receive(self, socket=None, timeout=60):
        socket = socket or self.shell
        if not socket.poll(timeout * 1000):
            raise TimeoutError("the kernel does not answer")
        _, frames = self.session.feed_identities(socket.recv_multipart())
        return self.session.deserialize(frames)

    def execute(self, code):
        self.send("execute_request", {"code": code, "silent": False, "store_history": True,
                                      "user_expressions": {}, "allow_stdin": False,
                                      "stop_on_error": True})
        reply = self.receive()
        assert reply["content"]["status"] == "ok", reply["content"]

    def signed(self, kind, content):
        """The frames of a request."""
        self.requests += 1
        header = {"msg_id": f"raw-{self.requests}", "msg_type": kind, "session": "raw",
                  "username": "", "date": "2000-01-01T00:00:00.000000Z", "version": "5.3"}
        parts = [json.dumps(header).encode(), b"{}", b"{}", content]
        mac = self.mac.copy()
        for part in parts:
            mac.update(part)
        return [b"<IDS|MSG>", mac.hexdigest().encode(), *parts]

    def execute_raw(self, content):
        """Content as JSON bytes; returns when the reply has come."""
        self.shell.send_multipart(self.signed("execute_request", content))
        if not self.shell.poll(60000):
            raise TimeoutError("the kernel does not answer")
        assert b'"ok"' in self.shell.recv_multipart()[-1]

    def stop(self):
        self.send("shutdown_request", {"restart": False}, self.control)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.context.destroy(linger=0)
        self.directory.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.stop()


def first_replies(command):
    """(kernel_info_reply, first execute_reply), seconds after the process was started."""
    with Kernel(command) as kernel:
        kernel.send("kernel_info_request", {})
        kernel.receive()
        info = time.perf_counter() - kernel.begun
        kernel.execute("1 + 1")
        return info, time.perf_counter() - kernel.begun


def wakes(kernel, seconds=5):
    """How often its threads wake up in a second of doing nothing."""
    def count():
        lines = [line for task in Path(f"/proc/{kernel.process.pid}/task").iterdir()
                 for line in (task / "status").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))

    time.sleep(2)  # what the last cell left to do, as its history
    before = count()
    time.sleep(seconds)
    return (count() - before) / seconds


def rows(runs):
    pairs = [(first_replies(OURS), first_replies(THEIRS)) for _ in range(runs + 2)]
    for at, what in enumerate(("kernel_info_reply", "the reply of a first cell")):
        yield Row(f"kernel: start to {what}", "ms", median(p[0][at] for p in pairs) * 1e3,
                  median(p[1][at] for p in pairs) * 1e3)
    with Kernel(OURS) as ours, Kernel(THEIRS) as theirs:
        ours.execute("pass")
        theirs.execute("pass")
        cell = json.dumps({"code": "pass", "silent": False, "store_history": True,
                           "user_expressions": {}, "allow_stdin": False,
                           "stop_on_error": True}).encode()
        times = time_turns(lambda: ours.execute_raw(cell), lambda: theirs.execute_raw(cell), 300)
        idle = wakes(ours), wakes(theirs)
    yield Row("kernel: round trip of a cell `pass`", "ms", times[0] * 1e3, times[1] * 1e3)
    yield Row("kernel: idle, wake-ups a second", "1/s", *idle)
