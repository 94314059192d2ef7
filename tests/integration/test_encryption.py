# SPDX-License-Identifier: BSD-3-Clause
"""Kernels whose channels are encrypted, with keys as jupyter_client 8.9 puts them into connection files."""
import json
import subprocess

import pytest
import zmq
import zmq.utils.monitor
from conftest import wait_for
from kernels import PXKERNEL, TIMEOUT, Kernel, Manager

LOST = zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL \
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH

CHANNELS = {"shell": zmq.DEALER, "control": zmq.DEALER, "stdin": zmq.DEALER, "iopub": zmq.SUB, "hb": zmq.REQ}


def give_keys(sockets, keys):
    """To a socket, or to a context's future ones."""
    sockets.curve_publickey, sockets.curve_secretkey = keys
    sockets.curve_serverkey = keys[0]


class Keys(Manager):
    """What the manager of jupyter_client 8.9 does: one pair, in the file, for both sides."""

    keys = zmq.curve_keypair()
    context = zmq.Context()
    give_keys(context, keys)

    def write_connection_file(self, **options):
        super().write_connection_file(**options)
        with open(self.connection_file, "r+", encoding="utf-8") as file:
            info = json.load(file)
            info["curve_publickey"], info["curve_secretkey"] = (key.decode() for key in self.keys)
            file.seek(0)
            json.dump(info, file)

    def client(self, **options):
        kind = self.client_factory.class_traits()["context"].klass  # jupyter_client 7: asyncio's
        context = kind.shadow(self.context.underlying)
        give_keys(context, self.keys)
        return super().client(context=context, **options)


class Encrypted(Kernel):
    manager = Keys


@pytest.fixture(params=["tcp", "ipc"])
def kernel(request, env, tmp_path, monkeypatch):
    monkeypatch.setattr(Keys, "transport", request.param)
    if request.param == "ipc":
        monkeypatch.setattr(Keys, "ip", str(tmp_path / "channel"))
    kernel = Encrypted(env, tmp_path)
    yield kernel
    kernel.close()


def test_all_channels_are_encrypted(kernel):
    kernel.kc.hb_channel.unpause()
    kernel.kc.allow_stdin = True
    asking = kernel.kc.execute("print('said'); answer = input('? ')")
    kernel.wait_for_text(asking, "said")  # shell and iopub
    assert kernel.kc.get_stdin_msg(timeout=TIMEOUT)["content"]["prompt"] == "? "
    kernel.kc.input("yes")
    assert kernel.reply(asking)["content"]["status"] == "ok"
    assert kernel.reply(kernel.send("control", "kernel_info_request", {}), "control")
    wait_for(kernel.kc.hb_channel.is_beating, what="a heartbeat")


@pytest.mark.parametrize("keys", [None, zmq.curve_keypair()], ids=["none", "others"])
def test_nobody_else_is_let_in(kernel, keys):
    with zmq.Context() as plain:
        for channel, kind in CHANNELS.items():
            with plain.socket(kind) as socket:
                if keys:
                    give_keys(socket, keys)
                with socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | LOST) as events:
                    socket.connect(kernel.kc._make_url(channel))
                    assert events.poll(1000 * TIMEOUT), f"nothing came of connecting to {channel}"
                    event = zmq.utils.monitor.recv_monitor_message(events)["event"]
                    socket.disable_monitor()
                assert event & LOST, channel
    assert kernel.run("1")[0]["status"] == "ok"


PAIR, OTHER = ([key.decode() for key in zmq.curve_keypair()] for _ in range(2))


@pytest.mark.parametrize("keys, why", [
    ({"curve_publickey": PAIR[0]}, '"curve_publickey" without "curve_secretkey"'),
    ({"curve_publickey": OTHER[0], "curve_secretkey": PAIR[1]},
     '"curve_publickey" is not that of "curve_secretkey"'),
    ({"curve_publickey": PAIR[0], "curve_secretkey": "short"}, '"curve_secretkey": not a CURVE key'),
])
def test_keys_that_cannot_serve_are_refused(env, tmp_path, keys, why):
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps(keys))
    done = subprocess.run([PXKERNEL, "-f", path], env=env, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 1
    assert why in done.stderr and len(done.stderr.splitlines()) == 1
    assert json.loads(path.read_text()) == keys
