# SPDX-License-Identifier: BSD-3-Clause
"""What somebody with the right key may send: requests spoilt at random, correctly signed, to all five
sockets and to a subshell. Nothing may end the kernel or make it fall silent; each request that has a
header is busy once and idle once, and has at most one reply."""
import collections
import copy
import hmac
import json
import random

import pytest
import zmq
from kernels import TIMEOUT, echo, python, start  # noqa: F401: fixtures

pytestmark = pytest.mark.usefixtures("no_leftovers")

DEEP = "[" * 400 + "]" * 400
VALUES = [None, True, -1, 0, 1 << 70, 1e300, float("nan"), "", "x" * 300, "x" * 200_000, "\0", "\ud800",
          "é€😀", "../../etc", [], {}, [1, [2, {"a": None}]], {"": {"": ""}}, ["a"] * 1000,
          {str(i): i for i in range(1000)}]
CELL = {"code": "print(1)\n2", "silent": False, "store_history": True, "allow_stdin": False,
        "user_expressions": {"a": "1 + 1"}, "stop_on_error": True}
COMM = {"comm_id": "c", "target_name": "t", "data": {"value": 1}}
REQUESTS = [
    ("shell", "execute_request", CELL),
    ("shell", "execute_request", {**CELL, "silent": True}),
    ("shell", "complete_request", {"code": "zi", "cursor_pos": 2}),
    ("shell", "inspect_request", {"code": "zip", "cursor_pos": 2, "detail_level": 0}),
    ("shell", "is_complete_request", {"code": "def f():"}),
    ("shell", "history_request", {"hist_access_type": "tail", "n": 3, "raw": True, "output": False}),
    ("shell", "history_request", {"hist_access_type": "range", "session": 0, "start": 1, "stop": 3}),
    ("shell", "history_request", {"hist_access_type": "search", "pattern": "*", "unique": True}),
    ("shell", "comm_open", COMM), ("shell", "comm_msg", COMM), ("shell", "comm_close", COMM),
    ("shell", "comm_info_request", {"target_name": "t"}),
    ("shell", "kernel_info_request", {}), ("shell", "connect_request", {}),
    ("shell", "frobnicate_request", {"a": 1}),
    ("control", "kernel_info_request", {}),
    ("control", "debug_request", {"type": "request", "seq": 1, "command": "attach"}),
    ("control", "create_subshell_request", {}), ("control", "list_subshell_request", {}),
    ("control", "delete_subshell_request", {"subshell_id": "none"}),
    ("control", "interrupt_request", {}),
    ("stdin", "input_reply", {"value": "Ada"}),
]


def paths(value, path=()):
    """Every place inside a JSON value."""
    yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in members:
        yield from paths(item, (*path, key))


def spoil(chance, value):
    """A copy in which one thing is replaced, missing or too much."""
    value = copy.deepcopy(value)
    *way, last = chance.choice(list(paths(value))) or (None,)
    inside = value
    for key in way:
        inside = inside[key]
    if last is None:
        return chance.choice(VALUES)
    if chance.random() < 0.3:
        del inside[last]
    elif chance.random() < 0.1 and isinstance(inside, dict):
        inside[chance.choice(["code", "subshell_id", "px_quiet", "\0"])] = chance.choice(VALUES)
    else:
        inside[last] = chance.choice(VALUES)
    return value


def spoil_text(chance, text):
    """What no JSON library would write."""
    at = chance.randrange(len(text) + 1)
    return chance.choice([text[:at], text[:at] + b"\xff" + text[at:], text + text, b"", b"\0" * 50,
                          text.replace(b"1", DEEP.encode()), text.replace(b'"', b"'")])


class Peer:
    """Somebody with the key, on sockets of his own."""

    def __init__(self, info, context):
        self.key = info["key"] if isinstance(info["key"], bytes) else info["key"].encode()
        self.sockets = {}
        for name, kind in {"shell": zmq.DEALER, "control": zmq.DEALER, "stdin": zmq.DEALER,
                           "hb": zmq.DEALER, "iopub": zmq.SUB}.items():
            socket = self.sockets[name] = context.socket(kind)
            socket.linger = 0
            if name == "iopub":
                socket.subscribe(b"")
            socket.connect(f"tcp://{info['ip']}:{info[name + '_port']}")
        self.sent = 0
        self.states = collections.Counter()
        self.replies = collections.Counter()
        assert b"iopub_welcome" in self.receive("iopub")[-4]

    def header(self, msg_type, **more):
        self.sent += 1
        return {"msg_id": f"hostile-{self.sent}", "msg_type": msg_type, "session": "hostile", "username": "",
                "date": "2024-01-02T03:04:05.678901Z", "version": "5.5", **more}

    def send(self, channel, header, parent=b"{}", metadata=b"{}", content=b"{}", buffers=()):
        parts = [part if isinstance(part, bytes) else json.dumps(part).encode()
                 for part in (header, parent, metadata, content)]
        signature = hmac.new(self.key, b"".join(parts), "sha256").hexdigest().encode()
        self.sockets[channel].send_multipart([b"<IDS|MSG>", signature, *parts, *buffers])

    def receive(self, channel):
        socket = self.sockets[channel]
        assert socket.poll(TIMEOUT * 1000), f"nothing comes on {channel}"
        return socket.recv_multipart()

    def next(self, channel):
        """(type, msg_id of the parent, content): everything that comes is JSON."""
        frames = self.receive(channel)
        at = frames.index(b"<IDS|MSG>")
        header, parent, _, content = map(json.loads, frames[at + 2:at + 6])
        return header["msg_type"], parent.get("msg_id"), content

    def settle(self, subshell=None):
        """Waits until all that was sent has been served."""
        last = {}
        for channel, msg_type, shell in (("shell", "execute_request", None),
                                         ("shell", "execute_request", subshell),
                                         ("control", "kernel_info_request", None)):
            header = self.header(msg_type, **({"subshell_id": shell} if shell else {}))
            last[header["msg_id"]] = channel
            self.send(channel, header, content={**CELL, "code": ""})
        idle = set(last)
        while idle:
            kind, parent, content = self.next("iopub")
            if kind == "status":
                self.states[parent, content["execution_state"]] += 1
                if content["execution_state"] == "idle":
                    idle.discard(parent)
        while last:
            for channel in set(last.values()):
                kind, parent, content = self.next(channel)
                self.replies[parent] += 1
                if parent in last:
                    # A spoilt cell that failed aborts what waits behind it; an interrupt, which
                    # comes on another channel, may find this cell.
                    ended = content["status"]
                    assert ended in ("ok", "aborted") or content["ename"] == "KeyboardInterrupt", content
                    del last[parent]

    def close(self):
        for socket in self.sockets.values():
            socket.close()


@pytest.fixture(params=["echo", "python"])
def victim(request, start):
    return start("--language", request.param)


def throw(peer, chance, subshell):
    channel, msg_type, content = chance.choice(REQUESTS)
    parts = {"header": peer.header(msg_type), "parent": {}, "metadata": {}, "content": content}
    if subshell and channel == "shell" and chance.random() < 0.3:
        parts["header"]["subshell_id"] = subshell
    for _ in range(chance.choice([1, 1, 2, 4])):
        which = chance.choice(["content", "content", "header", "parent", "metadata"])
        parts[which] = spoil(chance, parts[which])
    if chance.random() < 0.2:
        which = chance.choice(list(parts))
        parts[which] = spoil_text(chance, json.dumps(parts[which]).encode())
    peer.send(channel, **parts, buffers=[b"x" * chance.choice([0, 1, 70_000])] * chance.choice([0, 0, 0, 1, 30]))


def test_signed_nonsense_leaves_the_kernel_well(victim):
    chance = random.Random(victim.km.connection_file.count("/"))
    with zmq.Context() as context:
        peer = Peer(victim.km.get_connection_info(), context)
        made = peer.header("create_subshell_request")
        peer.send("control", made)
        subshell = peer.next("control")[2].get("subshell_id")
        for _ in range(25):
            for _ in range(30):
                throw(peer, chance, subshell)
            peer.sockets["hb"].send_multipart([b"beat"] * chance.randrange(1, 40))
            peer.settle(subshell)
        del peer.states[None, "starting"]
        parents = {parent for parent, _ in peer.states}
        assert len(parents) > 500
        for parent in parents:
            # A cell's busy is repeated when something that was answered beside it is done.
            assert peer.states[parent, "busy"] >= peer.states[parent, "idle"] > 0
            assert peer.replies[parent] <= peer.states[parent, "busy"]
        assert peer.receive("hb")[0] == b"beat"
        peer.close()
    assert victim.run("6 * 7")[0]["status"] == "ok"
