# SPDX-License-Identifier: BSD-3-Clause
"""Frame by frame against ipykernel: both kernels get the same requests; what they send back must have
the same channels, order, topics, keys and types, except for the rows of DIFFERENCES."""
import difflib
import json
import os
import re
import subprocess

import pytest
import zmq
from conftest import BIN, PYTHONPATH
from jupyter_client.connect import write_connection_file
from jupyter_client.session import Session
from kernels import IPYKERNEL, TIMEOUT

KERNELS = pytest.importorskip("ipykernel").version_info[:2]
pytestmark = [pytest.mark.stock, pytest.mark.usefixtures("no_leftovers")]

COMMANDS = {"pxkernel": [str(BIN / "pxkernel"), "-f"],
            "ipykernel": [*IPYKERNEL, "-f"]}
# ipykernel aborts what comes in the moment between the idle of a cell that stopped on an error and its
# next turn: aborted() has that.
CELL = {"silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False,
        "stop_on_error": False}
# Values that are compared, not only their type.
TELLING = {"status", "execution_state", "name", "ename", "restart", "wait", "source", "found", "indent",
           "password", "prompt", "text", "matches", "code", "execution_count", "cursor_start", "cursor_end",
           "target_name", "text/plain", "replace", "keepkernel", "start", "history"}


class Talk:
    """A kernel, and all that it says."""

    def __init__(self, command, directory):
        self.directory = directory
        self.asked = None  # the type of the last request
        path, self.info = write_connection_file(str(directory / "kernel.json"), key=b"a key")
        env = {**os.environ, "IPYTHONDIR": str(directory), "HOME": str(directory),
               "PYTHONPATH": str(PYTHONPATH)}
        self.process = subprocess.Popen([*command, path], env=env, cwd=directory, stdin=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        self.session = Session(key=b"a key")
        self.context = zmq.Context()
        self.sockets = {}
        for name in ("shell", "control", "stdin", "iopub"):
            socket = self.sockets[name] = self.context.socket(zmq.SUB if name == "iopub" else zmq.DEALER)
            socket.linger = 0
            if name == "iopub":
                socket.subscribe(b"")
            else:
                socket.identity = b"client"
            socket.connect(f"tcp://127.0.0.1:{self.info[name + '_port']}")
        self.wait_until_heard()

    def wait_until_heard(self):
        """A subscription takes its time; and ipykernel 7 trips over what control hears too early."""
        for attempt in range(200):
            channel = "control" if attempt else "shell"
            self.session.send(self.sockets[channel], "kernel_info_request", {})
            assert self.sockets[channel].poll(TIMEOUT * 1000)
            self.sockets[channel].recv_multipart()
            if self.sockets["iopub"].poll(100):
                break
        while self.sockets["iopub"].poll(300):
            self.sockets["iopub"].recv_multipart()

    def receive(self, channel):
        socket = self.sockets[channel]
        assert socket.poll(TIMEOUT * 1000), f"{self.directory.name}: nothing on {channel} after {self.asked}"
        idents, frames = self.session.feed_identities(socket.recv_multipart())
        msg = self.session.deserialize(frames)
        return b"".join(idents).decode(), msg

    def send(self, channel, msg_type, content):
        self.asked = msg_type
        return self.session.send(self.sockets[channel], msg_type, content)["header"]["msg_id"]

    def ask(self, channel, msg_type, content, answer=None, replies=True):
        """All messages of one request, in the order of each channel."""
        msg_id, seen = self.send(channel, msg_type, content), []
        if answer is not None:
            seen.append(("stdin", *self.receive("stdin")))
            self.session.send(self.sockets["stdin"], "input_reply", {"value": answer})
        while not seen or seen[-1][2]["content"].get("execution_state") != "idle":
            topic, msg = self.receive("iopub")
            if msg["parent_header"].get("msg_id") == msg_id:
                seen.append(("iopub", topic, msg))
        if replies:
            seen.append((channel, *self.receive(channel)))
        assert all(msg["parent_header"]["msg_id"] == msg_id for *_, msg in seen)
        return merge(seen)

    def close(self):
        self.context.destroy(linger=0)
        self.process.kill()
        self.process.wait()


def merge(seen):
    """Neighbouring texts of one stream are one."""
    merged = []
    for channel, topic, msg in seen:
        last = merged[-1][2] if merged else {"msg_type": ""}
        if msg["msg_type"] == last["msg_type"] == "stream" and msg["content"]["name"] == last["content"]["name"]:
            last["content"]["text"] += msg["content"]["text"]
        else:
            merged.append((channel, topic, msg))
    return merged


def shape(value, key=None):
    """Keys and types, and the values that tell something."""
    if isinstance(value, dict):
        return {k: shape(v, k) for k, v in sorted(value.items())}
    if key in TELLING:
        return value
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def outline(seen):
    """What is compared of a request's messages: lines of text."""
    lines = []
    for channel, topic, msg in seen:
        if str(msg["content"].get("text", "")).startswith("No such comm"):  # later ipykernels' log
            continue
        msg["content"].pop("host_cpu_percent", None)  # ipykernel leaves it out while it is 0
        topic = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{24,}|[0-9a-f]{32}", "*", topic)
        parts = {"header": sorted(msg["header"]), "parent": sorted(msg["parent_header"]),
                 "metadata": shape(msg["metadata"]), "content": shape(msg["content"]),
                 "buffers": [len(b) for b in msg["buffers"]]}
        lines.append(f"{channel} {topic} {msg['msg_type']}")
        lines += [f"  {name} {json.dumps(part, sort_keys=True)}" for name, part in parts.items()]
    return lines


COMM = ("import warnings\nfrom ipykernel.comm import Comm\n"
        "warnings.simplefilter('ignore')  # later ipykernels have another name for it\n"
        "comm = Comm('there', {'a': 1}, comm_id='ours', buffers=[b'12'])\n"
        "comm.on_msg(lambda msg: print(msg['content']['data'], len(msg['buffers'])))")
# name: (channel, type, content, further arguments of ask())
STEPS = {
    "info": ("shell", "kernel_info_request", {}),
    "info on control": ("control", "kernel_info_request", {}),
    "stdout": ("shell", "execute_request", {**CELL, "code": "print('out')\nprint('more')"}),
    "stderr": ("shell", "execute_request", {**CELL, "code": "import sys\nprint('err', file=sys.stderr)"}),
    "result": ("shell", "execute_request", {**CELL, "code": "6 * 7"}),
    "silent": ("shell", "execute_request", {**CELL, "code": "6 * 7", "silent": True}),
    "no history": ("shell", "execute_request", {**CELL, "code": "1", "store_history": False}),
    "error": ("shell", "execute_request", {**CELL, "code": "1/0"}),
    "syntax error": ("shell", "execute_request", {**CELL, "code": "1 +"}),
    "empty": ("shell", "execute_request", {**CELL, "code": ""}),
    "expressions": ("shell", "execute_request",
                    {**CELL, "code": "x = 1", "user_expressions": {"good": "x", "bad": "nothing"}}),
    "display": ("shell", "execute_request",
                {**CELL, "code": "from IPython.display import *\nh = display(HTML('<b>'), display_id='one')\n"
                                 "h.update('two')\nclear_output(wait=True)\ndisplay(3)\nHTML('<i>')"}),
    "page": ("shell", "execute_request", {**CELL, "code": "zip?"}),
    "next input": ("shell", "execute_request",
                   {**CELL, "code": "get_ipython().set_next_input('y', replace=True)"}),
    "exit": ("shell", "execute_request", {**CELL, "code": "exit(keep_kernel=True)"}),
    "sys.exit": ("shell", "execute_request", {**CELL, "code": "import sys; sys.exit(3)"}),
    "input": ("shell", "execute_request",
              {**CELL, "allow_stdin": True, "code": "print(input('who? '))"}, {"answer": "Ada"}),
    "getpass": ("shell", "execute_request",
                {**CELL, "allow_stdin": True, "code": "import getpass; getpass.getpass()"}, {"answer": "key"}),
    "no stdin": ("shell", "execute_request", {**CELL, "code": "input()"}),
    "inspect": ("shell", "inspect_request", {"code": "zip", "cursor_pos": 3, "detail_level": 0}),
    "inspect nothing": ("shell", "inspect_request", {"code": "nowhere", "cursor_pos": 3, "detail_level": 0}),
    "complete": ("shell", "complete_request", {"code": "zi", "cursor_pos": 2}),
    "complete nothing": ("shell", "complete_request", {"code": "qqq", "cursor_pos": 3}),
    "is complete": ("shell", "is_complete_request", {"code": "1"}),
    "is incomplete": ("shell", "is_complete_request", {"code": "def f():"}),
    "is invalid": ("shell", "is_complete_request", {"code": "import = 7q"}),
    "tail": ("shell", "history_request",
             {"hist_access_type": "tail", "n": 2, "raw": True, "output": False}),
    "tail with output": ("shell", "history_request",
                         {"hist_access_type": "tail", "n": 2, "raw": True, "output": True}),
    "range": ("shell", "history_request",
              {"hist_access_type": "range", "session": 0, "start": 1, "stop": 3, "raw": True, "output": True}),
    "search": ("shell", "history_request",
               {"hist_access_type": "search", "pattern": "6*", "n": 5, "raw": True, "output": False}),
    "comm": ("shell", "execute_request", {**CELL, "code": COMM}),
    "comm's target missing": ("shell", "comm_open", {"comm_id": "c", "target_name": "nowhere", "data": {}},
                              {"replies": False}),
    "comm_info": ("shell", "comm_info_request", {}),
    "comm heard": ("shell", "comm_msg", {"comm_id": "ours", "data": {"c": 3}}, {"replies": False}),
    "comm closed": ("shell", "execute_request", {**CELL, "code": "comm.close({'b': 2})"}),
    "unknown comm": ("shell", "comm_msg", {"comm_id": "zzz", "data": {}}, {"replies": False}),
    "unknown type": ("shell", "frobnicate_request", {}, {"replies": False}),
    "no reply": ("shell", "is_complete_reply", {}, {"replies": False}),
    "connect": ("shell", "connect_request", {}),
    "usage": ("control", "usage_request", {}),
    "interrupt": ("control", "interrupt_request", {}),
    "shutdown": ("control", "shutdown_request", {"restart": True}),
}


# What we say otherwise, and what ipykernel has there: reason, pattern in ours, theirs.
DIFFERENCES = [
    ("the same, before it was a feature: the debugger", r'"debugger": "bool", ', ""),
    ("the same, of usage_reply", r'"pid": "int", "status": "ok"', '"pid": "int"'),
    ("the error of a cell has the metadata of an engine's",
     r'"engine_info": \{"engine_id": "int", "engine_uuid": "str"\}, (?="started")', ""),
    ("getpass asks what Python's own does", r'"prompt": "Password: "', '"prompt": ""'),
]
if KERNELS < (7,):
    DIFFERENCES.append(
        ("protocol 5.5: kernel_info lists features", r', "supported_features": \["str"\]', ""))
if KERNELS < (6, 29):
    DIFFERENCES.append(
        ("protocol 5.4: each reply has a status", r'^  content \{"status": "ok"\}$', "  content {}"))
# And what is not compared: output of both streams, which ipykernel sorts by stream and we leave in
# order; debug_request, which test_debugger.py has; subshells and iopub_welcome, which it does not have.


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    talks = [Talk(command, tmp_path_factory.mktemp(name)) for name, command in COMMANDS.items()]
    yield talks
    for talk in talks:
        talk.close()


def agree(lines, used):
    """Our lines with their form of what is said otherwise on purpose."""
    for reason, pattern, theirs in DIFFERENCES:
        changed = [re.sub(pattern, theirs, line) for line in lines]
        used |= {reason} if changed != lines else set()
        lines = changed
    return lines


def aborted(talk):
    """The messages of a cell that was sent after one that then failed."""
    gate = talk.directory / "gate"  # where it runs
    os.mkfifo(gate)
    talk.send("shell", "execute_request",
              {**CELL, "code": "open('gate').close(); 1/0", "stop_on_error": True})
    after = talk.send("shell", "execute_request", {**CELL, "code": "2"})
    talk.send("control", "kernel_info_request", {})  # what was sent before it has come, too
    talk.receive("control")
    with open(gate, "w"):  # it waits there
        talk.receive("shell")
    seen = [("shell", *talk.receive("shell"))]
    while seen[-1][2]["content"].get("execution_state") != "idle":
        topic, msg = talk.receive("iopub")
        if msg["parent_header"].get("msg_id") == after:
            seen.append(("iopub", topic, msg))
    return outline(seen)


def settle(talk):
    """Until cells run again: after a failure they are aborted for a moment."""
    cell = {**CELL, "code": "", "silent": True, "store_history": False}
    answers = []
    while "ok" not in answers:
        seen = talk.ask("shell", "execute_request", cell)
        answers = [msg["content"].get("status") for channel, _, msg in seen if channel == "shell"]


def test_each_request_is_answered_as_ipykernel_does(talks):
    ours, theirs = map(aborted, talks)
    assert ours == theirs
    for talk in talks:
        settle(talk)
    found, used = [], set()
    for name, (channel, msg_type, content, *more) in STEPS.items():
        ours, theirs = (outline(t.ask(channel, msg_type, content, **(more[0] if more else {})))
                        for t in talks)
        diff = list(difflib.unified_diff(theirs, agree(ours, used), n=3, lineterm=""))[2:]
        if diff:
            found += [f"==== {name}", *diff]
    assert not found, "\n".join(found)
    assert used == {reason for reason, *_ in DIFFERENCES}
