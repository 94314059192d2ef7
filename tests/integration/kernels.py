# SPDX-License-Identifier: BSD-3-Clause
"""A running pxkernel and its client, and the fixtures that start one."""
import contextlib
import importlib.util
import os
from queue import Empty

import pytest
from conftest import BIN, PYTHON, PYTHONPATH, give_ports, programs_env
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

PXKERNEL = BIN / "pxkernel"
TIMEOUT = 60

# ipykernel 7 sends replies past the stream that reads its requests, which may then sleep on the next
# one: here they go through the stream, as in later versions.
IPYKERNEL = [PYTHON, "-m", "ipykernel_launcher"]
if importlib.util.find_spec("ipykernel") and importlib.util.find_spec("ipykernel.subshell_manager"):
    IPYKERNEL.append("--IPKernelApp.exec_lines=__import__('ipykernel.subshell_manager').subshell_manager"
                     ".SubshellManager._send_on_shell_channel = lambda _, message, stream="
                     "get_ipython().kernel.shell_stream: stream.send_multipart(message)")


class Manager(KernelManager):
    """Starts pxkernel by its path, with options."""

    options = ()

    @property
    def kernel_spec(self):
        return KernelSpec(argv=[str(PXKERNEL), *self.options, "-f", "{connection_file}"],
                          display_name="pxkernel", language="any", interrupt_mode="message")


class Kernel:
    """A running kernel and its client; run() is one cell from request to idle."""

    manager = Manager

    def __init__(self, env, directory, *options):
        self.early = {}  # replies that nobody has asked for yet
        self.km = self.manager(connection_file=str(directory / "kernel.json"))
        self.km.options = options
        give_ports(self.km)
        self.km.start_kernel(env=env, cwd=str(directory))
        self.kc = self.km.client()
        self.kc.start_channels()
        self.kc.wait_for_ready(timeout=TIMEOUT)

    @property
    def pid(self):
        return self.km.provisioner.process.pid

    def until_idle(self, msg_id, seen=None):
        """The iopub messages of a request, as (type, content)."""
        seen = [] if seen is None else seen
        while True:
            msg = self.kc.get_iopub_msg(timeout=TIMEOUT)
            if msg["parent_header"].get("msg_id") != msg_id:
                continue
            seen.append((msg["msg_type"], msg["content"]))
            if seen[-1] == ("status", {"execution_state": "idle"}):
                return seen

    def wait_for_output(self, msg_id, msg_type):
        while True:
            msg = self.kc.get_iopub_msg(timeout=TIMEOUT)
            if msg["parent_header"].get("msg_id") == msg_id and msg["msg_type"] == msg_type:
                return msg["content"]

    def wait_for_text(self, msg_id, text):
        """Until stdout has said it, in however many messages."""
        said = ""
        while text not in said:
            content = self.wait_for_output(msg_id, "stream")
            said += content["text"] if content["name"] == "stdout" else ""

    def reply(self, msg_id, channel="shell"):
        get = getattr(self.kc, f"get_{channel}_msg")
        while msg_id not in self.early:
            msg = get(timeout=TIMEOUT)
            self.early[msg["parent_header"].get("msg_id")] = msg
        return self.early.pop(msg_id)

    def run(self, code, **options):
        msg_id = self.kc.execute(code, **options)
        return self.reply(msg_id)["content"], self.until_idle(msg_id)

    def send(self, channel, msg_type, content):
        """Sends any request; returns its msg_id."""
        msg = self.kc.session.msg(msg_type, content)
        getattr(self.kc, f"{channel}_channel").send(msg)
        return msg["header"]["msg_id"]

    def close(self):
        self.kc.stop_channels()
        if self.km.has_kernel:
            self.km.shutdown_kernel(now=True)


@pytest.fixture
def start(env, tmp_path):
    started = []

    def start(*options):
        directory = tmp_path / f"kernel{len(started)}"
        directory.mkdir()
        started.append(Kernel(env, directory, *options))
        return started[-1]

    yield start
    for kernel in started:
        kernel.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A kernel with Python for tests that leave it as it was; each still gets its own names."""
    directory = tmp_path_factory.mktemp("shared")
    env = {**os.environ, "IPYTHONDIR": str(directory / "ipython"), "HOME": str(directory),
           "PYTHONPATH": str(PYTHONPATH)}
    kernel = Kernel(programs_env(env), directory)
    yield kernel
    kernel.close()


@pytest.fixture
def kernel(shared):
    """The shared one, without what tests before have left unread."""
    for channel in ("shell", "control", "iopub", "stdin"):
        get = getattr(shared.kc, f"get_{channel}_msg")
        with contextlib.suppress(Empty):
            while True:
                get(timeout=0)
    return shared


@pytest.fixture
def echo(start):
    return start("--language", "echo")


@pytest.fixture
def python(start):
    return start("--language", "python")
