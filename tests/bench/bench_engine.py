# SPDX-License-Identifier: BSD-3-Clause
"""How fast an engine answers while Python is at work: pings of the heart and kernel_info_requests
on its control channel, one at a time, against a hub that this process plays. The reference
answers neither while C code holds Python's lock for longer than it waits; a figure that is
missing was not answered within TIMEOUT_S."""
import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import zmq
from jupyter_client.session import Session

from common import BIN, PYTHON, Row

TIMEOUT_S = 3
COUNT = 50
PAUSE_S = 0.01
LARGE = 100 << 20

WORK = {
    "idle": None,
    "Python sleeps": "import time; time.sleep(60)",
    "Python computes": "while True: pass",
    "C code holds the lock": "sum(range(10**12))",
    "100 MB buffers go in and out": LARGE,
}


class Hub:
    """One engine's controller: its sockets, and nothing behind them."""

    NAMES = {"mux": b"mux_out", "control": b"control_out",
             "leaf": b"sub_scheduler_00"}

    def __init__(self, directory, task_port):
        self.context = zmq.Context()
        self.session = Session(key=b"secret")
        self.sockets, ports = {}, {}
        for name, kind in (("registration", zmq.ROUTER), ("hb_pong", zmq.ROUTER),
                           *((n, zmq.ROUTER) for n in self.NAMES), ("iopub", zmq.SUB),
                           ("hb_ping", zmq.XPUB)):
            sock = self.sockets[name] = self.context.socket(kind)
            sock.linger = 0
            if name in self.NAMES:
                sock.routing_id = self.NAMES[name]
            ports[name] = sock.bind_to_random_port("tcp://127.0.0.1")
        self.sockets["iopub"].subscribe(b"")
        security = Path(directory) / "profile_default" / "security"
        security.mkdir(parents=True)
        (security / "ipcontroller-engine.json").write_text(json.dumps({
            "ssh": "", "interface": "tcp://127.0.0.1", "location": socket.gethostname(),
            "pack": "json", "unpack": "json", "signature_scheme": "hmac-sha256",
            "curve_serverkey": None, "key": "secret", "broadcast": [ports.pop("leaf")], "task": task_port, **ports}))

    def receive(self, name, timeout_s):
        if not self.sockets[name].poll(timeout_s * 1000):
            return None
        idents, rest = self.session.feed_identities(self.sockets[name].recv_multipart())
        return idents, self.session.deserialize(rest)

    def send(self, name, uuid, msg_type, content=None, buffers=None):
        msg = self.session.msg(msg_type, content or {})
        self.session.send(self.sockets[name], msg, ident=[uuid, b"client"], buffers=buffers)

    def join(self):
        idents, _ = self.receive("registration", 60)
        msg = self.session.msg("registration_reply", {"status": "ok", "id": 0, "hb_period": 60000})
        self.session.send(self.sockets["registration"], msg, ident=idents)
        self.receive("iopub", 60)
        self.sockets["hb_ping"].recv()  # its heart listens
        threading.Event().wait(0.5)  # the reference connects one socket after the other
        return idents[0]


def times(ask, answer):
    """Of COUNT round trips, in seconds; none when one is not answered."""
    taken = []
    for _ in range(COUNT):
        threading.Event().wait(PAUSE_S)
        begun = time.perf_counter()
        ask()
        if not answer():
            return []
        taken.append(time.perf_counter() - begun)
    return taken


# The task scheduler, in a process of its own: it copies as much as the engine does. It is told
# the engine's uuid when it is to begin.
SWAPPER = """
import sys, zmq
from jupyter_client.session import Session
from ipyparallel.serialize import pack_apply_message
session = Session(key=b"secret")
sock = zmq.Context().socket(zmq.ROUTER)
sock.linger = 0
sock.routing_id = b"task_out"
print(sock.bind_to_random_port("tcp://127.0.0.1"), flush=True)
uuid = sys.stdin.readline().strip().encode()
buffers = pack_apply_message(len, (bytes(int(sys.argv[1])),), {})
while True:
    session.send(sock, session.msg("apply_request", {}), ident=[uuid, b"c"], buffers=buffers)
    reply = session.deserialize(session.feed_identities(sock.recv_multipart(copy=False), copy=False)[1],
                                copy=False)
    assert reply["content"]["status"] == "ok", reply["content"]
    print("swapped", flush=True)
"""


def start_swapper(size):
    """The process, and the port of its socket."""
    process = subprocess.Popen([PYTHON, "-c", SWAPPER, str(size)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    return process, int(process.stdout.readline())


def measure(command, work):
    """(worst ping, worst control) in milliseconds, None where there was no answer."""
    with tempfile.TemporaryDirectory(prefix="px-bench-") as directory:
        swapper, port = start_swapper(work if isinstance(work, int) else 0)
        hub = Hub(directory, port)
        env = {**os.environ, "IPYTHONDIR": directory}
        engine = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            uuid = hub.join()
            if isinstance(work, str):
                hub.send("mux", uuid, "execute_request", {"code": work, "silent": True})
                # Time to begin. Its status busy does not come while theirs holds the lock.
                threading.Event().wait(2)
            elif work:
                print(uuid.decode(), file=swapper.stdin, flush=True)
                swapper.stdout.readline()  # one has been there and back
            pong, pinged = hub.sockets["hb_pong"], hub.sockets["hb_ping"]
            pings = times(lambda: pinged.send(b"1"),
                          lambda: pong.poll(TIMEOUT_S * 1000) and pong.recv_multipart())
            asks = times(lambda: hub.send("control", uuid, "kernel_info_request"),
                         lambda: hub.receive("control", TIMEOUT_S))
            return [max(t) * 1e3 if t else None for t in (pings, asks)]
        finally:
            swapper.kill()
            swapper.communicate()
            engine.kill()
            engine.wait()
            hub.context.destroy(linger=0)


def rows(runs):
    ours = [str(BIN / "pxengine"), "-n1"]
    theirs = [PYTHON, "-m", "ipyparallel.engine", "--IPEngine.enable_nanny=False"]
    for name, work in WORK.items():
        our_times, their_times = measure(ours, work), measure(theirs, work)
        for what, mine, other in zip(("heartbeat", "control"), our_times, their_times):
            yield Row(f"worst of {COUNT}, {what}: {name}", "ms", mine, other)


