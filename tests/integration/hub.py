# SPDX-License-Identifier: BSD-3-Clause
"""A hub that the test plays, frame by frame, and a pxengine that is told of it."""
import json
import os
import socket
import subprocess

import zmq
from conftest import BIN, wait_for
from jupyter_client.session import Session

PXENGINE = BIN / "pxengine"
TIMEOUT = 60


class Hub:
    """The controller's side of one engine: bound sockets, and the connection file."""

    NAMED = {"mux": b"mux_out", "task": b"task_out", "control": b"control_out",
             "leaf0": b"sub_scheduler_00", "leaf1": b"sub_scheduler_01"}

    def __init__(self, profile_dir):
        self.file = profile_dir / "security" / "ipcontroller-engine.json"
        self.file.parent.mkdir(parents=True)
        self.context = zmq.Context()
        self.session = Session(key=b"secret")
        self.sockets, self.ports = {}, {}
        for name in ("registration", "hb_pong", *self.NAMED):
            self.bind(name, zmq.ROUTER)
        self.bind("iopub", zmq.SUB).subscribe(b"")
        self.bind("hb_ping", zmq.XPUB)

    def bind(self, name, kind):
        self.sockets[name] = sock = self.context.socket(kind)
        sock.linger = 0
        if name in self.NAMED:
            sock.routing_id = self.NAMED[name]
        self.ports[name] = sock.bind_to_random_port("tcp://127.0.0.1")
        return sock

    def write(self, **changes):
        content = {"ssh": "", "interface": "tcp://127.0.0.1", "location": socket.gethostname(),
                   "pack": "json", "unpack": "json", "signature_scheme": "hmac-sha256",
                   "curve_serverkey": None, "key": "secret",
                   "broadcast": [self.ports["leaf0"], self.ports["leaf1"]],
                   **{k: p for k, p in self.ports.items() if not k.startswith("leaf")}}
        content.update(changes)
        self.file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    def receive(self, name, timeout=TIMEOUT):
        """(identities, message) of the next one on a socket."""
        assert self.sockets[name].poll(timeout * 1000), f"nothing on {name}"
        frames = self.sockets[name].recv_multipart()
        idents, rest = self.session.feed_identities(frames)
        return idents, self.session.deserialize(rest)

    def silent(self, name, seconds):
        return not self.sockets[name].poll(seconds * 1000)

    def send(self, name, idents, msg_type, content=None, buffers=None, **kwargs):
        msg = self.session.msg(msg_type, content or {}, **kwargs)
        self.session.send(self.sockets[name], msg, ident=idents, buffers=buffers)
        return msg["header"]["msg_id"]

    def register(self, engine_id=0, **reply):
        """Answers a registration; returns the engine's uuid."""
        idents, msg = self.receive("registration")
        assert msg["msg_type"] == "registration_request"
        assert idents == [msg["content"]["uuid"].encode()]
        content = {"status": "ok", "id": engine_id, "hb_period": 3000, **reply}
        self.send("registration", idents, "registration_reply", content)
        return idents[0]

    def join(self, engine_id=0, **reply):
        """Registers an engine and waits until its heart listens."""
        uuid = self.register(engine_id, **reply)
        # A SUB subscribes when its thread looks at it, as a relay's always does.
        wait_for(lambda: self.sockets["iopub"].poll(0) and self.sockets["hb_ping"].poll(0), TIMEOUT,
                 "the engine's first status and its heart")
        assert self.sockets["hb_ping"].recv() == b"\x01"
        return uuid

    def join_all(self, count):
        """Registers that many engines as 0, 1, …; returns their uuids."""
        uuids = [self.register(engine_id) for engine_id in range(count)]
        for _ in uuids:
            topic, _ = self.receive("iopub")
            assert topic[0].endswith(b".status")
        return uuids

    def close(self):
        self.context.destroy(linger=0)


class Engines:
    """A pxengine and what it says on --ready-fd and stderr."""

    def __init__(self, env, options, count=("-n1",), **kwargs):
        read, write = os.pipe()
        self.ready = os.fdopen(read)
        self.process = subprocess.Popen([PXENGINE, *count, f"--ready-fd={write}", *options],
                                        env=env, pass_fds=[write], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        **kwargs)
        os.close(write)

    def said(self, word):
        """The words behind `word` on its next line; engines that were started are passed over."""
        line = self.ready.readline().strip()
        while line.startswith("started "):
            line = self.ready.readline().strip()
        assert line.startswith(word + " "), line
        return line.removeprefix(word + " ")

    def registered(self):
        """(id, pid) of the next engine that says so."""
        engine_id, pid = self.said("registered").split()
        return int(engine_id), int(pid)

    def exited(self):
        pid, why = self.said("exited").split(" ", 1)
        return int(pid), why

    def end(self):
        out, err = self.process.communicate(timeout=TIMEOUT)
        assert out == ""
        return self.process.returncode, err
