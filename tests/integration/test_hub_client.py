# SPDX-License-Identifier: BSD-3-Clause
"""What a client asks its controller, how it reaches it, and what it answers to bad input: on four
engines, under pxcontroller and ipcontroller."""
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import threading
import time
import weakref
from pathlib import Path

import pytest

from conftest import PYTHON, processes_with, wait_for
from four import (balanced, phalanx, rc, recorded, script_environment, view,  # noqa: F401: fixtures
                  where)

numpy = pytest.importorskip("numpy")
error = phalanx.error

# The functions below travel as a notebook's do: as code of __main__.
__name__ = "__main__"


# ---- listening -------------------------------------------------------------------------------


class Relay:
    """Before a port of 127.0.0.1; what goes there passes a function first, which may wait."""

    def __init__(self, port, function):
        self.target, self.function = port, function
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            near, _ = self.listener.accept()
            far = socket.create_connection(("127.0.0.1", self.target))
            for ends in ((near, far, self.function), (far, near, lambda data: None)):
                threading.Thread(target=self.pass_on, args=ends, daemon=True).start()

    @staticmethod
    def pass_on(source, sink, function):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                function(data)
                sink.sendall(data)
        with contextlib.suppress(OSError):  # not closed: the other thread reads there
            sink.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("where", ["ours"], indirect=True)  # ipcontroller does not say what it hears
def test_a_client_connects_when_its_controller_hears_it(where, tmp_path):
    """Its subscription comes after its question; what it asks for then has all its output."""
    asked, doubted = [], threading.Event()

    def count(data):
        asked.extend([True] * data.count(b"connection_request"))
        if len(asked) == 2:
            doubted.set()

    def hold(data):
        if b"SUBSCRIBE" in data:
            assert doubted.wait(60)

    info = json.loads(Path(where[0]).read_text())
    del info["px_local"]  # it would not come by here
    info["registration"] = Relay(info["registration"], count).port
    info["iopub"] = Relay(info["iopub"], hold).port
    file = tmp_path / "client.json"
    file.write_text(json.dumps(info))
    file.chmod(0o600)
    with phalanx.Client(str(file)) as rc:
        result = rc[:].execute("print('out')")
        result.wait_for_output(60)
        assert (result.stdout, result.stderr) == (["out\n"] * 4, [""] * 4)


@pytest.mark.parametrize("where", ["ours"], indirect=True)  # ipcontroller does one after another
def test_questions_about_many_tasks_keep_nobody_waiting(rc, balanced):
    def ask(message, msg_ids):
        """The answer, and whether a question that came later has had its own before it."""
        slow, quick = (
            rc._raw.submit(phalanx._phalanx.QUERY, message=question, content=json.dumps(content))
            for question, content in ((message, {"msg_ids": msg_ids}), ("load_request", {"targets": None})))
        for raw in (quick, slow):
            assert raw.wait(phalanx._phalanx.REPLIES, 60), message
        slow, quick = slow.next(), quick.next()
        return json.loads(slow.content), quick.received < slow.received

    def overtaken(message, msg_ids):
        """The answer; the question is asked again where the one that came later was late itself."""
        def answer():
            content, is_so = ask(message, msg_ids)
            return is_so and content
        return wait_for(answer, what=f"{message} to be overtaken")

    ids = balanced.map_async(abs, range(400), chunksize=1).msg_ids
    rc.wait()
    recorded(rc, ids, "result_header")
    found = overtaken("result_request", ids[:100] + ids[::-1])
    assert found["completed"] == sorted(ids) and set(ids) <= found.keys() and found["pending"] == []
    assert overtaken("resubmit_request", ids * 50)["resubmitted"].keys() == set(ids)
    assert overtaken("purge_request", ids + ["nobody's"] * 100_000) == {"status": "ok"}
    for message in ("resubmit_request", "result_request"):
        refused, _ = ask(message, ids)
        assert refused["ename"] == "KeyError" and min(ids) in refused["evalue"]


# ---- states and records ----------------------------------------------------------------------


def known(rc, ids):
    """Waits until the hub has recorded the end of these tasks."""
    wait_for(lambda: not set(ids) - set(rc.hub_history()), 30, "the hub to know the tasks")
    wait_for(lambda: not rc.result_status(ids)["pending"], 30, "the hub to know their ends")


def test_queue_status(rc, view):
    status = rc.queue_status()
    assert set(status) == {*rc.ids, "unassigned"}
    assert set(rc.queue_status(rc.ids[0])) == {"queue", "completed", "tasks"}
    assert isinstance(view.queue_status(verbose=True)[rc.ids[0]]["completed"], list)
    assert rc.load_balanced_view().queue_status().keys() == status.keys()


@pytest.mark.parametrize("where", ["ours"], indirect=True)  # ipcontroller's learns it later
def test_who_has_a_reply_finds_its_record_complete(rc):
    for _ in range(60):
        result = rc[:].apply_async(abs, -1)
        result.get()
        records = rc.db_query({"msg_id": {"$in": iter(result.msg_ids)}}, ["completed"])
        assert len(records) == len(result.msg_ids)
        assert all(record["completed"] for record in records)


def test_signals_do_not_end_a_question(rc, where):
    processes = processes_with(f"IPYTHONDIR={Path(where[0]).parents[2]}")
    hub = [pid for pid, command in processes.items() if "controller" in command]
    came = []

    def tell(signum):
        for pid in hub:
            os.kill(pid, signum)

    def on_alarm(*unused):
        came.append(True)
        if len(came) == 3:
            tell(signal.SIGCONT)

    before = signal.signal(signal.SIGALRM, on_alarm)
    try:
        tell(signal.SIGSTOP)
        for stat in (Path(f"/proc/{pid}/stat") for pid in hub):
            wait_for(lambda: ") T " in stat.read_text(), 30, "the hub to stop")
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        assert json.loads(rc._raw.query("connection_request", "{}", 60))["status"] == "ok"
        assert len(came) >= 3
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        tell(signal.SIGCONT)


def test_results_of_another_client(rc, where):
    array = numpy.arange(50_000.0)
    done = rc[0].apply_async(lambda a: {"sum": a.sum(), "twice": a * 2}, array)
    said = rc[:].execute("print('said')\n6 * 7", silent=False)
    mute = rc[:].execute("unsaid = 1", silent=False)
    failed = rc[1].apply_async(lambda: 1 / 0)
    for result in (done, said):
        result.get(60)
        assert result.wait_for_output(60)
    failed.wait(60)
    known(rc, done.msg_ids + said.msg_ids + failed.msg_ids)
    recorded(rc, said.msg_ids, "execute_result")
    recorded(rc, mute.msg_ids, "execute_input")
    with phalanx.Client(where[0]) as other:
        other.wait_for_engines(4, timeout=60)
        result = other.get_result(done.msg_ids[0], owner=False)
        assert isinstance(result, phalanx.AsyncHubResult)
        assert (result.get(60)["twice"] == array * 2).all() and result.engine_id == rc.ids[0]
        assert result.serial_time == done.serial_time > 0 and result.wall_time > 0
        again = other.get_result(done.msg_ids[0])
        assert not isinstance(again, phalanx.AsyncHubResult)
        assert again.get()["sum"] == array.sum()
        outputs = other.get_result(said.msg_ids)
        assert [r.data["text/plain"] for r in outputs.get(60)] == ["42"] * 4
        assert outputs.stdout == ["said\n"] * 4
        assert other.get_result(mute.msg_ids).get(60)[0].execute_input == "unsaid = 1"
        with pytest.raises(phalanx.RemoteError, match="ZeroDivisionError"):
            other.get_result(failed.msg_ids[0]).get(60)
        assert other.result_status(done.msg_ids + failed.msg_ids)["pending"] == []
        values = other.result_status(done.msg_ids, status_only=False)
        assert values[done.msg_ids[0]]["sum"] == array.sum()
        with pytest.raises(phalanx.RemoteError):
            other.get_result("no such task").get(10)


def test_a_task_that_is_asked_for_twice(rc, where):
    done = rc[0].apply_async(lambda: 42)
    done.get(60)
    known(rc, done.msg_ids)
    with phalanx.Client(where[0]) as other:
        assert other.get_result(done.msg_ids * 2).get(60) == [42, 42]


def test_a_result_that_is_awaited_through_the_hub(rc, where, tmp_path):
    gate = str(tmp_path / "gate")

    def wait():
        import os
        import threading

        for _ in range(12_000):  # a minute
            if os.path.exists(gate) or threading.Event().wait(0.005):
                break
        return "through"

    mine = rc[0].apply_async(wait)
    wait_for(lambda: mine.msg_ids[0] in rc.hub_history(), 30, "the hub to know the task")
    with phalanx.Client(where[0]) as other:
        result = other.get_result(mine.msg_ids)
        assert not result.ready()
        with pytest.raises(TimeoutError):
            result.get(0.1)
        called = threading.Event()
        result.add_done_callback(lambda r: called.set())
        open(gate, "w").close()
        assert result.get(60) == ["through"] and called.wait(60)


def test_own_results_again(rc, view):
    view.block = False
    first, second = view.apply(abs, -1), rc[0].apply_async(lambda: 2)
    assert rc.get_result(first).get(60) == [1] * 4
    assert rc.get_result(second.msg_ids[0]).get(60) == 2
    assert rc.get_result([first, second.msg_ids[0]], block=True).get() == [1] * 4 + [2]
    assert repr(rc.get_result(first)) == repr(first) == "<AsyncResult(abs): finished>"
    assert rc.get_result().get(60) == 2 and view.get_result(-1).get(60) == 1
    assert rc.wait([first, second.msg_ids[0], -1], timeout=60)
    with pytest.raises(TypeError):
        rc.get_result([3.5])


def test_history_and_queries(rc):
    result = rc[:].apply_async(lambda: 1)
    result.get(60)
    known(rc, result.msg_ids)
    assert rc.hub_history()[-4:] == result.msg_ids == rc.history[-4:]
    records = rc.db_query({"msg_id": {"$in": result.msg_ids}}, keys=["submitted", "completed"])
    assert all(set(r) == {"msg_id", "submitted", "completed"} for r in records)
    assert all(r["submitted"] <= r["completed"] for r in records) and len(records) == 4
    middle = records[1]["submitted"]
    before = rc.db_query({"submitted": {"$lt": middle}}, "msg_id")
    after = rc.db_query({"submitted": {"$gte": middle}}, "msg_id")
    assert len(before) + len(after) == len(rc.hub_history()) and len(after) >= 3
    whole, = rc.db_query({"msg_id": result.msg_ids[0]})
    assert "buffers" not in whole and whole["header"]["date"].tzinfo is not None
    whole, = rc.db_query({"msg_id": result.msg_ids[0]}, keys=["buffers", "result_buffers"])
    assert whole["buffers"] and whole["result_buffers"]


def test_resubmit(rc, balanced):
    array = numpy.arange(20_000.0)
    first = balanced.apply_async(lambda a: (a.sum(), __import__("os").urandom(8)), array)
    value = first.get(60)
    known(rc, first.msg_ids)
    again = rc.resubmit(first.msg_ids[0]).get(60)[0]
    assert again[0] == value[0] and again[1] != value[1]
    with pytest.raises(phalanx.RemoteError, match="KeyError"):
        rc.resubmit(["no such task"])


def test_purge(rc, where):
    result = rc[:].apply_async(lambda: 1)
    result.get(60)
    known(rc, result.msg_ids)
    rc.results["kept"] = 5
    rc.metadata["kept"]["engine_uuid"] = "E"
    rc.purge_local_results("kept")
    assert not rc.results and not rc.metadata
    rc.purge_hub_results(result.msg_ids[0])
    assert result.msg_ids[0] not in rc.hub_history()
    rc.purge_results(targets=rc.ids[1])
    if where[2] == "ours":  # ipcontroller answers "ok" and keeps them
        assert result.msg_ids[1] not in rc.hub_history()
    with pytest.raises(ValueError):
        rc.purge_results()
    running = rc[0].apply_async(time.sleep, 0.5)
    with pytest.raises(RuntimeError, match="outstanding"):
        rc.purge_local_results(running)
    running.get(60)
    known(rc, running.msg_ids)
    rc.purge_everything()
    assert rc.hub_history() == [] == rc.history


# ---- control ---------------------------------------------------------------------------------


def test_control(rc, view):
    view["a"] = 1
    rc.clear(rc.ids[0], block=True)
    assert rc[rc.ids[1:]]["a"] == [1] * 3
    result = rc[0].apply_async(time.sleep, 60)
    wait_for(lambda: rc.queue_status(rc.ids[0])["queue"] == 1, 30, "the engine's queue")
    queued = rc[0].apply_async(lambda: 2)
    assert queued.msg_ids[0] in rc.outstanding
    rc.abort(queued, block=True)
    with pytest.raises(phalanx.TaskAborted):
        queued.get(60)
    with pytest.raises(TypeError):
        rc.abort([7])

    def interrupted():
        rc.send_signal(signal.SIGINT, rc.ids[0], block=True)
        return result.wait(0.5)

    wait_for(interrupted, 30, "the interrupt to reach the task")
    with pytest.raises(phalanx.RemoteError, match="KeyboardInterrupt"):
        result.get()
    assert rc.abort() is None  # nothing is outstanding


# ---- ways to the controller --------------------------------------------------------------------


def test_by_profile_dictionary_and_environment(rc, where, monkeypatch):
    file, env, _ = where
    monkeypatch.setenv("IPYTHONDIR", env["IPYTHONDIR"])
    ways = [{"profile": "default"}, {"ipython_dir": env["IPYTHONDIR"]}, {"url_file": file},
            {"profile_dir": str(Path(file).parents[1])}, {"cluster_id": ""}, {}]
    for way in ways + [{"connection_info": json.loads(Path(file).read_text())}]:
        with phalanx.Client(**way, timeout=30) as client:
            client.wait_for_engines(4, timeout=60)
            assert client[0].apply_sync(lambda: 1) == 1
    with pytest.raises(RuntimeError, match="closed"):
        client.ids
    with pytest.raises(TypeError, match="colour"):
        phalanx.Client(file, colour=1)


@pytest.fixture
def sshd(tmp_path):
    """(port, key's file) of an sshd on the loopback that lets this user in."""
    program = "/usr/sbin/sshd"
    if not os.path.exists(program):
        pytest.skip("openssh-server is not installed")
    key, host = tmp_path / "key", tmp_path / "host"
    for file in (key, host):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file], check=True)
    (tmp_path / "authorized").write_text((tmp_path / "key.pub").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {host}\nStrictModes no\nPidFile none\n"
        f"AuthorizedKeysFile {tmp_path / 'authorized'}\nPasswordAuthentication no\n"
        "UsePAM no\nPermitRootLogin yes\n")
    os.makedirs("/run/sshd", exist_ok=True) if os.geteuid() == 0 else None
    daemon = subprocess.Popen([program, "-D", "-e", "-f", config], stderr=subprocess.DEVNULL)

    def listens():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(listens, 30, "sshd")
    yield port, key
    daemon.terminate()
    daemon.wait(30)


@pytest.fixture
def trusting_ssh(tmp_path, monkeypatch):
    """An ssh first on the PATH that asks nothing about the test's host key."""
    directory = tmp_path / "bin"
    directory.mkdir()
    script = directory / "ssh"
    script.write_text("#!/bin/sh\nexec /usr/bin/ssh -F none -o StrictHostKeyChecking=no "
                      "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o IdentitiesOnly=yes \"$@\"\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


@pytest.mark.parametrize("address", ["127.0.0.1", "*", "[::1]", "[::]"])
def test_files_that_ask_for_ssh(tmp_path, address):
    def asks(**info):
        (tmp_path / "file").write_text(json.dumps({"interface": f"tcp://{address}", **info}))
        return phalanx.tunnel.needs_tunnel(tmp_path / "file", ())

    here = socket.gethostname()
    assert asks(ssh="gate", location="elsewhere")
    assert not asks(ssh="gate", location=here) and not asks(ssh="", location="elsewhere")


def test_through_ssh(rc, where, sshd, trusting_ssh, tmp_path):
    port, key = sshd
    with phalanx.Client(where[0], sshserver=f"127.0.0.1:{port}", sshkey=key, timeout=60) as far:
        far.wait_for_engines(4, timeout=60)
        array = numpy.arange(100_000.0)
        assert far[:].apply_sync(lambda a: a.sum(), array) == [array.sum()] * 4
        assert far[0].execute("print(5)", block=True).stdout == "5\n"
        tunnel = far._tunnel._process
        assert far._raw.file != where[0]
    assert tunnel.poll() is not None
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "it's secret", "-f", key], check=True)
    options = {"sshserver": f"127.0.0.1:{port}", "sshkey": key, "timeout": 60}
    with phalanx.Client(where[0], password="it's secret", **options) as far:
        far.wait_for_engines(4, timeout=60)
    with pytest.raises(error.KernelError, match="ssh to .* failed: .*that `password` answers"):
        phalanx.Client(where[0], password="wrong", **options)
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    with pytest.raises(error.KernelError, match="ssh to .* failed: .*Permission denied"):
        phalanx.Client(where[0], sshserver=f"127.0.0.1:{port}", sshkey=other, timeout=60)


def test_on_the_controllers_host(rc, where):
    """Where it listens locally, we meet it there; where a port leads elsewhere, by TCP."""
    with open(where[0]) as file:
        info = json.load(file)
    if not info.get("px_local"):
        pytest.skip("ipcontroller knows no such address")

    def local(port):
        name, connected = "@%s-%d" % (info["px_local"], port), "03"
        with open("/proc/net/unix") as file:
            rows = [line.split() for line in file]
        return sum(row[-1] == name and row[5] == connected for row in rows)

    for port in (info["mux"], info["iopub"]):
        assert local(port) >= 1  # rc
    before = local(info["mux"])
    with phalanx.Client(info, timeout=30) as client:
        assert client[:].apply_sync(abs, -1) == [1] * 4
        assert local(info["mux"]) == before + 1
    wait_for(lambda: local(info["mux"]) == before, 30, "a connection to end")
    with phalanx.Client({**info, "px_local": "phalanx-of-another-host"}, timeout=30) as client:
        assert client[:].apply_sync(abs, -1) == [1] * 4
        assert local(info["mux"]) == before
    engine_file = where[0].replace("-client.json", "-engine.json")
    with open(engine_file) as file:
        ports = json.load(file)
    assert local(ports["mux"]) == local(ports["hb_pong"]) == 4


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def far_files(security):
    """The connection files' contents, for who is of another host: he knows nothing of px_local."""
    infos = {}
    for role in ("client", "engine"):
        infos[role] = json.loads((security / f"ipcontroller-{role}.json").read_text())
        infos[role]["px_local"] = "phalanx-of-another-host"
    (security / "far.json").write_text(json.dumps(infos["engine"]))
    return infos


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on loopback")
@pytest.mark.parametrize("ip, interface", [("::1", "tcp://[::1]"), ("[::]", "tcp://[::]")])
def test_ipv6(env, run, ipython_dir, px_bin, ip, interface):
    """ipyparallel has no IPv6."""
    run("pxcluster", "start", "-n", 1, "--daemonize", f"--ip={ip}", "--location=::1")
    security = ipython_dir / "profile_default" / "security"
    try:
        infos = far_files(security)
        assert {info["interface"] for info in infos.values()} == {interface}
        url = f"tcp://[::1]:{infos['engine']['registration']}"
        with phalanx.Client(infos["client"], timeout=30) as client, subprocess.Popen(
                [px_bin / "pxengine", "-n1", f"--file={security / 'far.json'}", f"--url={url}"],
                env=env, stderr=subprocess.DEVNULL) as engine:
            client.wait_for_engines(2, timeout=30)
            assert client[:].apply_sync(abs, -1) == [1, 1]
            assert client.load_balanced_view().map_sync(abs, [-1, -2]) == [1, 2]
            engine.terminate()
    finally:
        run("pxcluster", "stop")


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on loopback")
@pytest.mark.parametrize("clients, engines", [
    ("::", "127.0.0.1"), ("127.0.0.1", "::"), ("0.0.0.0", "::1"), ("::1", "0.0.0.0"),
])
def test_ipv6_on_one_side(env, run, ipython_dir, px_bin, clients, engines):
    run("pxcluster", "start", "-n", 0, "--daemonize", "--", f"--IPController.client_ip={clients}",
        f"--IPController.engine_ip={engines}")
    security = ipython_dir / "profile_default" / "security"
    try:
        infos = far_files(security)
        with phalanx.Client(infos["client"], timeout=30) as client, subprocess.Popen(
                [px_bin / "pxengine", "-n1", f"--file={security / 'far.json'}"],
                env=env, stderr=subprocess.DEVNULL) as engine:
            client.wait_for_engines(1, timeout=30)
            assert client[:].apply_sync(abs, -1) == [1]
            engine.terminate()
    finally:
        run("pxcluster", "stop")


def test_curve(env, run, ipython_dir, monkeypatch):
    run("pxcluster", "start", "-n", 1, "--daemonize", "--", "--enable-curve")
    file = ipython_dir / "profile_default" / "security" / "ipcontroller-client.json"
    try:
        assert json.loads(file.read_text())["curve_serverkey"]
        with phalanx.Client(file, timeout=30) as client:
            client.wait_for_engines(1, timeout=60)
            assert client[:].apply_sync(lambda: 1) == [1]
            assert client.broadcast_view().apply_sync(lambda: 2) == [2]
            key = client.curve_serverkey.decode()
        info = {**json.loads(file.read_text()), "curve_serverkey": None}
        monkeypatch.setenv("IPP_CURVE_SERVERKEY", key)
        with phalanx.Client(info, timeout=30) as client:
            assert client[:].apply_sync(lambda: 1) == [1]
        monkeypatch.delenv("IPP_CURVE_SERVERKEY")
        with phalanx.Client(info, curve_serverkey=key.encode(), timeout=30) as client:
            assert client[:].apply_sync(lambda: 1) == [1]
    finally:
        run("pxcluster", "stop", check=False)


# ---- bad input ---------------------------------------------------------------------------------


def test_bad_calls(rc, view, balanced):
    unpicklable = threading.Lock()
    for v in (view, balanced, rc.broadcast_view(), rc.broadcast_view(is_coalescing=True)):
        with pytest.raises(TypeError, match="argument 2, a lock, cannot be sent to an engine"):
            v.apply_sync(print, 1, unpicklable)
        with pytest.raises(TypeError, match="the argument lock, a lock, cannot be sent"):
            v.apply_sync(print, lock=unpicklable)
        with pytest.raises(TypeError, match="f must be callable"):
            v.apply_sync(5)
        assert v.apply_sync(lambda: 1) in (1, [1] * 4)  # nothing is left in disorder
    with pytest.raises(TypeError, match="cannot be sent"):
        balanced.map_sync(id, [unpicklable])
    with pytest.raises(TypeError, match="f must be callable"):
        balanced.map_sync(5, [1])
    with pytest.raises(TypeError, match="must be text"):
        view.execute(5)
    for wrong in ("7", 3.5, {1}, ["a"]):
        with pytest.raises(TypeError):
            rc.direct_view(wrong)
    with pytest.raises(IndexError, match="No such engine: 99; there are"):
        rc.direct_view([0, 99])
    with pytest.raises(TimeoutError, match="9 engines not ready in 0.05 seconds. Currently ready: 4"):
        rc.wait_for_engines(9, timeout=0.05)
    future = rc.wait_for_engines(4, block=False)
    assert future.result(30) is None


def test_no_engines(env, run, ipython_dir):
    run("pxcluster", "start", "-n", 0, "--daemonize")
    file = ipython_dir / "profile_default" / "security" / "ipcontroller-client.json"
    try:
        with phalanx.Client(file, timeout=30) as client:
            for call in (lambda: client[:], lambda: client.direct_view("all").apply(abs, 1),
                         lambda: client.load_balanced_view().apply_sync(abs, 1),
                         lambda: client.load_balanced_view().map_sync(abs, [1]),
                         lambda: client.load_balanced_view().imap(abs, [1]),
                         lambda: client.broadcast_view().execute("1")):
                with pytest.raises(phalanx.NoEnginesRegistered, match="wait_for_engines"):
                    call()
    finally:
        run("pxcluster", "stop", check=False)


def test_a_controller_that_is_gone(env, run, ipython_dir):
    """Goodbye of a controller fails what is outstanding; afterwards nothing can be submitted."""
    run("pxcluster", "start", "-n", 1, "--daemonize")
    file = ipython_dir / "profile_default" / "security" / "ipcontroller-client.json"
    client = phalanx.Client(file, timeout=30)
    client.wait_for_engines(1, timeout=60)
    result = client[0].apply_async(time.sleep, 60)
    run("pxcluster", "stop")
    with pytest.raises((error.EngineError, phalanx.RemoteError)):
        result.get(60)
    with pytest.raises((RuntimeError, error.KernelError)):
        client.load_balanced_view().apply_sync(abs, 1)
    client.close()
    with pytest.raises((FileNotFoundError, TimeoutError)):
        phalanx.Client(file, timeout=0.2)


def test_shutdown(env, run, ipython_dir):
    run("pxcluster", "start", "-n", 2, "--daemonize")
    file = ipython_dir / "profile_default" / "security" / "ipcontroller-client.json"
    client = phalanx.Client(file, timeout=30)
    client.wait_for_engines(2, timeout=60)
    first, second = client.ids
    client[first].shutdown(block=True)  # waits until it is gone
    assert client.ids == [second]
    client.shutdown(hub=True)
    assert repr(client) == "<Client: closed>"
    run("pxcluster", "stop", check=False)


def test_a_client_that_is_dropped(rc, where):
    """It ends with its last reference, and its threads with it."""
    client = phalanx.Client(where[0])
    client.wait_for_engines(4, timeout=60)
    called = threading.Event()
    client[0].apply_async(abs, -1).add_done_callback(lambda result: called.set())
    assert called.wait(60)
    seen = weakref.ref(client)
    del client
    wait_for(lambda: gc.collect() is not None and seen() is None, 30, "the client to go")
    # rc may have one of its own
    wait_for(lambda: sum(t.name == "phalanx-results" for t in threading.enumerate()) <= 1, 30)


# ---- processes ---------------------------------------------------------------------------------

LEAVING = """
import concurrent.futures, os, sys
import phalanx
rc = phalanx.Client(sys.argv[1])
rc.wait_for_engines(4, timeout=60)
kept = rc[:].apply_async(__import__("time").sleep, 30)
kept.add_done_callback(lambda r: None)
rc.load_balanced_view().map_async(abs, range(1000))
if os.fork() == 0:
    del kept
    rc.close()
    sys.exit(0)
status = os.wait()[1]
print("child", status, flush=True)
"""


def test_leaving_with_work_outstanding(where):
    """Neither callbacks nor maps keep the interpreter; a forked child lets go in peace."""
    done = subprocess.run([PYTHON, "-c", LEAVING, where[0]], env=script_environment(where[1]),
                          timeout=60, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "child 0\n", "")
    with phalanx.Client(where[0]) as client:  # the engines still sleep
        client.wait_for_engines(4, timeout=60)
        client.send_signal("SIGINT", block=True)


# ---- old names ---------------------------------------------------------------------------------

OLD_NAMES = """
import phalanx, phalanx.names
phalanx.names.install()
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell()
shell.extension_manager.load_extension("IPython.parallel")  # IPython 8.5 looks at its __file__
from IPython.parallel import Client
from IPython.parallel.error import RemoteError
import ipyparallel as ipp
from ipyparallel.client.view import DirectView, LoadBalancedView
from ipyparallel.controller.dependency import require
from ipyparallel.datapub import publish_data
from ipyparallel.joblib import IPythonParallelBackend
from ipyparallel.util import disambiguate_url
print(Client is phalanx.Client, RemoteError is phalanx.RemoteError, ipp.Client is phalanx.Client,
      LoadBalancedView is phalanx.LoadBalancedView,
      ipp.client.view.ViewExecutor is phalanx.ViewExecutor,
      ipp.client.asyncresult.AsyncResult is phalanx.AsyncResult,
      ipp.version_info >= (7, 0), int(ipp.__version__.split(".")[0]) == ipp.version_info[0])
print("px" in shell.magics_manager.magics["line"])
"""


def old_names(env):
    done = subprocess.run([PYTHON, *(["-S"] if env.pop("HIDDEN", None) else []), "-c", OLD_NAMES],
                          env=env, timeout=60, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_old_names(env, tmp_path):
    """IPython.parallel is ours; ipyparallel is the real package, or ours where that is absent."""
    ipyparallel = pytest.importorskip("ipyparallel")
    env = script_environment(env)
    assert old_names(dict(env)) == ["True"] * 2 + ["False"] * 4 + ["True"] * 3
    site = Path(ipyparallel.__file__).parents[1]
    for entry in site.iterdir():
        if not entry.name.startswith("ipyparallel"):
            (tmp_path / entry.name).symlink_to(entry)
    env["PYTHONPATH"] = f"{tmp_path}:{env['PYTHONPATH']}"
    assert old_names({**env, "HIDDEN": "1"}) == ["True"] * 9
