# SPDX-License-Identifier: BSD-3-Clause
"""Ends that do not fit together: another version of the protocol, of the files, of Python. Each is
said at once, with what to do about it."""
import json
import os
import pickle
import threading

import pytest

from four import phalanx, rc, start_ours, cluster  # noqa: F401: fixtures

zmq = pytest.importorskip("zmq")
__name__ = "__main__"  # functions travel as code


class Hub:
    """Answers the one request that a client makes while it connects."""

    CHANNELS = ("registration", "control", "mux", "task", "iopub", "notification", "broadcast")

    def __init__(self, directory, answers=True, **header):
        from jupyter_client.session import Session

        self.header = header
        self.session = Session(key=b"secret")
        self.context = zmq.Context()
        self.sockets, info = {}, {
            "interface": "tcp://127.0.0.1", "location": "localhost", "ssh": "", "key": "secret",
            "pack": "json", "unpack": "json", "signature_scheme": "hmac-sha256",
            "task_scheme": "leastload",
        }
        for name in self.CHANNELS:
            kind = zmq.XPUB if name in ("iopub", "notification") else zmq.ROUTER
            socket = self.sockets[name] = self.context.socket(kind)
            info[name] = socket.bind_to_random_port("tcp://127.0.0.1")
        self.file = directory / "client.json"
        self.file.write_text(json.dumps(info))
        self.thread = threading.Thread(target=self.answer, daemon=True)
        if answers:
            self.thread.start()

    def answer(self):
        socket = self.sockets["registration"]
        if not socket.poll(20_000):
            return
        idents, request = self.session.feed_identities(socket.recv_multipart())
        parent = self.session.deserialize(request)
        reply = self.session.msg("connection_reply", {"status": "ok", "engines": {}}, parent)
        for name, value in self.header.items():
            if value is None:
                del reply["header"][name]
            else:
                reply["header"][name] = value
        self.session.send(socket, reply, ident=idents)

    def close(self):
        if self.thread.ident:
            self.thread.join(20)
        self.context.destroy(linger=0)


@pytest.mark.parametrize("version, said", [("6.0", "6.0"), ("4.1", "4.1"), (None, "4 or less")])
def test_a_controller_of_another_protocol(tmp_path, version, said):
    hub = Hub(tmp_path, version=version)
    try:
        with pytest.raises(ValueError, match=f"speaks version {said}.*start pxcontroller"):
            phalanx.Client(str(hub.file), timeout=20)
    finally:
        hub.close()


def test_a_controller_of_this_protocol(tmp_path):
    hub = Hub(tmp_path, version="5.3")
    try:
        with phalanx.Client(str(hub.file), timeout=20) as client:
            assert client.ids == []
    finally:
        hub.close()


@pytest.mark.parametrize("text, said", [
    ('{"url": "tcp://127.0.0.1:5", "exec_key": "k", "ssh": "", "location": "x"}', "is missing"),
    ("[]", "not an object"), ("<html>", "not JSON"), ("", "JSON"),
])
def test_files_of_something_else(tmp_path, text, said):
    file = tmp_path / "client.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"{said}.*pxcluster start"):
        phalanx.Client(str(file), timeout=5)


def test_another_packer(tmp_path):
    hub = Hub(tmp_path, answers=False)
    info = json.loads(hub.file.read_text())
    hub.file.write_text(json.dumps({**info, "pack": "pickle"}))
    with pytest.raises(ValueError, match="only json is spoken here, so start"):
        phalanx.Client(str(hub.file), timeout=5)
    hub.close()


@pytest.fixture(scope="module")
def where(tmp_path_factory):  # ipcontroller passes nothing on of what engines say about themselves
    with cluster(tmp_path_factory.mktemp("ipython"), start_ours) as (file, _, env):
        yield file, env, "ours"


def test_engines_of_another_python(rc, monkeypatch):
    """Code is refused, as its bytecode is another's; names travel, and so does data."""
    from phalanx import pickle5

    monkeypatch.setattr(pickle5, "PYTHON", "python2.7")
    view, balanced = rc[:], rc.load_balanced_view()
    refused = pytest.raises(pickle.PicklingError, match="engines 0, 1, 2, 3 run another Python")
    with refused:
        view.apply_sync(lambda: 1)
    with refused:
        balanced.map_sync(lambda x: x, range(4))
    with refused:
        balanced.map_sync(lambda x: x, range(4_000))
    with refused:
        view.push({"f": lambda: 1}, block=True)
    with refused:
        view.apply_sync(phalanx.PrePickled(lambda: 1))
    assert view.apply_sync(phalanx.PrePickled(abs), phalanx.PrePickled(-1)) == [1] * 4
    with pytest.raises(pickle.PicklingError, match="engine 2 runs.*--python"):
        rc[2].apply_sync(max, [3, 1], key=lambda x: x)
    assert len(set(view.apply_sync(os.getpid))) == 4
    assert balanced.apply_sync(sorted, [3, 1, 2], reverse=True) == [3, 2, 1]
    view.execute("a = 5", block=True)
    assert view.apply_sync(eval, "1 + 1") == [2] * 4
    with pytest.raises(pickle.PicklingError, match="code travels only between equal ones"):
        rc[0].apply_sync(eval, "lambda: 1")
