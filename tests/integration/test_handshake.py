# SPDX-License-Identifier: BSD-3-Clause
"""Kernels that choose their own ports and tell them to their launcher (Jupyter Enhancement Proposal 66)."""
import json
import signal
import subprocess

import pytest
import zmq
from jupyter_client import BlockingKernelClient
from jupyter_client.session import Session
from kernels import PXKERNEL, TIMEOUT

PORTS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
KEY = b"the launcher's"


class Launcher:
    """A launcher, with a socket for this start (REP), or a long-lived one (ROUTER)."""

    def __init__(self, env, directory, kind=zmq.REP, transport="tcp"):
        self.env, self.session, self.kernels = env, Session(key=KEY), []
        self.file = directory / "registration.json"
        self.socket = zmq.Context.instance().socket(kind)
        ip = "127.0.0.1" if transport == "tcp" else str(directory / "channel")
        if transport == "tcp":
            port = self.socket.bind_to_random_port("tcp://" + ip)
        else:
            port = 1000
            self.socket.bind(f"ipc://{ip}-{port}")
        self.file.write_text(json.dumps({"transport": transport, "ip": ip, "registration_port": port,
                                         "key": KEY.decode(), "signature_scheme": "hmac-sha256"}))

    def start(self):
        self.kernels.append(subprocess.Popen([PXKERNEL, "--language", "echo", "-f", self.file], env=self.env,
                                             stderr=subprocess.PIPE, text=True))
        return self.kernels[-1]

    def hear(self):
        """The route back, the request."""
        assert self.socket.poll(TIMEOUT * 1000)
        return self.session.feed_identities(self.socket.recv_multipart())

    def answer(self, route, request, kind="handshake_reply", session=None, **content):
        session = session or self.session
        session.send(self.socket, kind, content, ident=route, parent=request["header"])

    def meet(self):
        """A kernel's ports, which it has told."""
        kernel = self.start()
        route, frames = self.hear()
        request = self.session.deserialize(frames)
        assert request["msg_type"] == "handshake_request"
        self.answer(route, request, status="ok")
        return kernel, request["content"]

    def close(self):
        for kernel in self.kernels:
            kernel.kill()
            kernel.wait()
            kernel.stderr.close()
        self.socket.close(linger=0)


@pytest.fixture
def launch(env, tmp_path):
    launchers = []

    def launch(*args):
        launchers.append(Launcher(env, tmp_path, *args))
        return launchers[-1]

    yield launch
    for launcher in launchers:
        launcher.close()


def ask(info):
    """Whether a kernel is there."""
    client = BlockingKernelClient()
    client.load_connection_info(info)
    client.start_channels()
    try:
        client.wait_for_ready(timeout=TIMEOUT)
        return client.execute("print('hello')", reply=True, timeout=TIMEOUT)["content"]["status"]
    finally:
        client.stop_channels()


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
@pytest.mark.parametrize("kind", [zmq.REP, zmq.ROUTER], ids=["rep", "router"])
def test_a_kernel_tells_its_ports(launch, kind, transport):
    launcher = launch(kind, transport)
    kernel, ports = launcher.meet()
    assert sorted(ports) == sorted(PORTS) and len(set(ports.values())) == len(PORTS) and all(ports.values())
    launcher.socket.unbind(launcher.socket.last_endpoint)  # a launcher may close it
    info = json.loads(launcher.file.read_text())
    assert {name: info[name] for name in PORTS} == ports  # for other clients
    assert ask(info) == "ok" and kernel.poll() is None


def test_a_kernel_started_again_tells_its_new_ports(launch):
    launcher = launch()
    kernel, _ = launcher.meet()
    kernel.kill()
    kernel.wait()
    _, ports = launcher.meet()
    assert ask({**json.loads(launcher.file.read_text()), **ports}) == "ok"


def test_only_a_signed_reply_counts(launch):
    launcher = launch(zmq.ROUTER)
    kernel = launcher.start()
    route, frames = launcher.hear()
    request = launcher.session.deserialize(frames)
    launcher.socket.send_multipart([*route, b"ok"])
    launcher.answer(route, request, session=Session(key=b"somebody else's"), status="ok")
    launcher.answer(route, request, kind="kernel_info_reply", status="ok")
    for why in ("no delimiter", "signature", "it is no handshake_reply"):
        assert why in kernel.stderr.readline()
    launcher.answer(route, request, status="ok")
    assert ask(json.loads(launcher.file.read_text())) == "ok"


def test_a_launcher_may_refuse(launch):
    launcher = launch()
    kernel = launcher.start()
    route, frames = launcher.hear()
    launcher.answer(route, launcher.session.deserialize(frames), status="error", error="no room")
    assert kernel.wait(TIMEOUT) == 1
    said = kernel.stderr.read()
    assert said.count("\n") == 1 and "refuses this kernel" in said and "no room" in said


def test_a_launcher_may_be_silent(launch):
    launcher = launch()
    kernel = launcher.start()
    launcher.hear()
    assert kernel.wait(TIMEOUT) == 1
    said = kernel.stderr.read()
    assert said.count("\n") == 1 and "nobody at tcp://127.0.0.1" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_kernel_whose_launcher_is_silent_can_be_ended(launch, number):
    launcher = launch()
    kernel = launcher.start()
    launcher.hear()
    kernel.send_signal(number)
    assert kernel.wait(TIMEOUT) == -number  # and not when its patience is at its end


def test_an_address_that_is_none(launch):
    launcher = launch()
    info = json.loads(launcher.file.read_text())
    launcher.file.write_text(json.dumps({**info, "ip": "not an address"}))
    kernel = launcher.start()
    assert kernel.wait(TIMEOUT) == 1
    assert kernel.stderr.read().count("\n") == 1
