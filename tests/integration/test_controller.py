# SPDX-License-Identifier: BSD-3-Clause
"""pxcontroller with the installed ipyparallel: stock engines, stock client.

PX_BIN names the directory of the built programs. Each test has its own IPYTHONDIR and its own
process groups, which are killed at its end.
"""

import contextlib
import itertools
import json
import os
import pickle
import random
import resource
import signal
import socket
import sqlite3
import stat
import subprocess
import time

import pytest

from conftest import controller_ports, programs_env, wait_for
from jupyter_client.session import Session

ipp = pytest.importorskip("ipyparallel")
zmq = pytest.importorskip("zmq")
from zmq.utils.monitor import recv_monitor_message  # noqa: E402

BIN = os.environ.get("PX_BIN", "build/bin")
CONTROLLER = os.path.join(BIN, "pxcontroller")
DEADLINE = int(os.environ.get("PX_DEADLINE", 60))

pytestmark = pytest.mark.skipif(not os.path.exists(CONTROLLER), reason="no pxcontroller in PX_BIN")


def wait_until(condition, timeout=DEADLINE, what=None):
    return wait_for(condition, timeout, what)


class Cluster:
    """A controller and engines in one profile directory."""

    def __init__(self, folder):
        self.profile_dir = str(folder / "profile_default")
        self.log_path = str(folder / "controller.log")
        # Engines find this module, which the functions below belong to.
        self.env = programs_env({**os.environ, "IPYTHONDIR": str(folder),
                                 "PYTHONPATH": os.path.dirname(os.path.abspath(__file__))})
        self.controller = None
        self.engines = []
        self.clients = []

    def spawn(self, argv, **kwargs):
        return subprocess.Popen(argv, env=self.env, start_new_session=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, **kwargs)

    def start(self, *options, stderr=None, **kwargs):
        read_fd, write_fd = os.pipe()
        with open(self.log_path, "ab") as log:
            self.controller = self.spawn(
                [CONTROLLER, "--profile-dir", self.profile_dir, "--ping=250",
                 f"--ready-fd={write_fd}", *options],
                stderr=stderr or log, pass_fds=[write_fd], **kwargs)
        os.close(write_fd)
        with os.fdopen(read_fd) as ready:
            assert ready.readline() == "ready\n", self.log()

    def add_engines(self, count):
        for _ in range(count):
            self.engines.append(self.spawn(
                ["/usr/bin/python3", "-m", "ipyparallel.engine", "--profile-dir",
                 self.profile_dir, "--log-level=30"],
                stderr=subprocess.DEVNULL))

    def add_ours(self, count):
        self.engines.append(self.spawn(
            [os.path.join(BIN, "pxengine"), f"-n{count}", "--profile-dir", self.profile_dir],
            stderr=subprocess.DEVNULL))

    def client(self, count=0):
        client = ipp.Client(profile_dir=self.profile_dir, timeout=DEADLINE)
        self.clients.append(client)
        # Sorted only after each has been added, by another thread.
        wait_until(lambda: count <= len(client.ids) and client.ids == sorted(client.ids),
                   what=f"{count} engines")
        return client

    def wait_for_state(self, count):
        """Waits until the hub has written down that `count` engines are registered."""
        path = os.path.join(self.profile_dir, "log", "engines.json")

        def written():
            if not os.path.exists(path):
                return False
            with open(path) as file:
                return len(json.load(file)["engines"]) == count

        wait_until(written, what=f"{count} engines in {path}")

    def security(self, name=""):
        return os.path.join(self.profile_dir, "security", name)

    def log(self):
        with open(self.log_path) as log:
            return log.read()

    def close(self):
        for client in self.clients:
            client.close()
        for process in self.engines + [self.controller]:
            if process is None:
                continue
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Three engines for the tests that harm nobody."""
    cluster = Cluster(tmp_path_factory.mktemp("shared"))
    cluster.start()
    cluster.add_engines(3)
    cluster.rc = cluster.client(3)
    yield cluster
    cluster.close()


# ---- files, options, signals -------------------------------------------------------------


def test_files_and_clean_exit(cluster):
    cluster.start()
    names = ["ipcontroller-client.json", "ipcontroller-engine.json"]
    assert sorted(os.listdir(cluster.security())) == names
    for name in names:
        assert stat.S_IMODE(os.stat(cluster.security(name)).st_mode) == 0o600
        with open(cluster.security(name)) as file:
            assert json.load(file)["signature_scheme"] == "hmac-sha256"
    assert stat.S_IMODE(os.stat(cluster.security()).st_mode) == 0o700
    cluster.controller.send_signal(signal.SIGTERM)
    assert cluster.controller.wait(10) == 0
    assert os.listdir(cluster.security()) == []


def test_cluster_id_and_interrupt(cluster):
    cluster.start("--cluster-id", "abc")
    assert os.path.exists(cluster.security("ipcontroller-abc-client.json"))
    cluster.controller.send_signal(signal.SIGINT)
    assert cluster.controller.wait(10) == 0


def test_a_log_that_nobody_reads_any_more(cluster):
    cluster.start(stderr=subprocess.PIPE)
    cluster.controller.stderr.close()
    cluster.controller.send_signal(signal.SIGUSR1)
    assert cluster.client().ids == []
    cluster.controller.terminate()
    assert cluster.controller.wait(10) == 0
    assert os.listdir(cluster.security()) == []


@pytest.mark.stock  # a sanitizer watches malloc, where libzmq must be left as it is
@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_whoever_comes_when_no_descriptor_is_free_is_turned_away(cluster, family):
    most = (110, 110)
    cluster.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, most))
    with open(cluster.security("ipcontroller-client.json")) as file:
        found = json.load(file)
    address = ("127.0.0.1", found["mux"])
    if family == socket.AF_UNIX:
        address = f"\0{found['px_local']}-{found['mux']}"
    with contextlib.ExitStack() as crowd:
        for _ in range(most[0]):
            crowd.enter_context(socket.socket(family, socket.SOCK_STREAM)).connect(address)
        wait_until(lambda: "files.none" in cluster.log())
        assert cluster.controller.poll() is None
    assert cluster.client().ids == []


def test_reuse_keeps_key_and_ports(cluster):
    cluster.start(controller_ports(), "--reuse")
    with open(cluster.security("ipcontroller-client.json")) as file:
        before = json.load(file)
    cluster.controller.terminate()
    assert cluster.controller.wait(10) == 0
    cluster.start("--reuse")
    with open(cluster.security("ipcontroller-client.json")) as file:
        assert json.load(file) == before
    assert cluster.client().ids == []


@pytest.mark.parametrize("options, words", [
    (["--skheme=lru"], "scheme"),
    (["--scheme=fastest"], "no such scheme"),
    (["--IPController.transport=None"], "IPController.transport: it cannot be None"),
    (["--IPController.regport=70000"], "there is no port 70000"),
    (["--ping=fast"], "ping"),
    (["--ports=x"], "ports"),
    (["--HeartMonitor.peroid=3"], "HeartMonitor.period"),
    (["--mongodb"], "--nodb"),
    (["surplus"], "surplus"),
])
def test_misuse_is_one_line_and_exit_2(cluster, options, words):
    result = subprocess.run([CONTROLLER, "--profile-dir", cluster.profile_dir, *options],
                            env=cluster.env, capture_output=True, text=True, timeout=DEADLINE)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("pxcontroller: ")
    assert words in result.stderr
    assert not os.path.exists(cluster.profile_dir)


def test_taken_port_is_one_line_and_exit_1(cluster):
    cluster.start()
    with open(cluster.security("ipcontroller-client.json")) as file:
        port = json.load(file)["registration"]
    other = cluster.profile_dir + "2"
    result = subprocess.run([CONTROLLER, "--profile-dir", other, f"--port={port}"],
                            env=cluster.env, capture_output=True, text=True, timeout=DEADLINE)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and str(port) in result.stderr
    assert os.listdir(os.path.join(other, "security")) == []


def test_profile_that_cannot_be_made(cluster, tmp_path):
    (tmp_path / "file").write_text("")
    result = subprocess.run([CONTROLLER, "--profile-dir", str(tmp_path / "file" / "p")],
                            env=cluster.env, capture_output=True, text=True, timeout=DEADLINE)
    assert result.returncode in (1, 2)
    assert result.stderr.count("\n") == 1


def test_configuration_files(cluster):
    os.makedirs(cluster.profile_dir)
    with open(os.path.join(cluster.profile_dir, "ipcontroller_config.py"), "w") as file:
        file.write("c.TaskScheduler.scheme_name = 'twobin'  # comment\nc.Other.x = 1\n")
    with open(os.path.join(cluster.profile_dir, "ipcontroller_config.json"), "w") as file:
        json.dump({"IPController": {"location": "elsewhere"}}, file)
    cluster.start()
    with open(cluster.security("ipcontroller-client.json")) as file:
        connection = json.load(file)
    assert connection["task_scheme"] == "twobin"
    assert connection["location"] == "elsewhere"


def test_a_configuration_may_be_a_program(cluster):
    os.makedirs(cluster.profile_dir)
    config = os.path.join(cluster.profile_dir, "ipcontroller_config.py")
    with open(os.path.join(cluster.profile_dir, "key"), "wb") as file:
        file.write('sécret "key"'.encode())
    with open(os.path.join(cluster.profile_dir, "other.py"), "w") as file:
        file.write("c.IPController.location = '.'.join(['some', 'where'])\n")
    with open(config, "w") as file:
        file.write("import os\nc = get_config()\nload_subconfig('other.py')\n"
                   "key = os.path.join(os.path.dirname(__file__), 'key')\n"
                   "c.Session.key = open(key, 'rb').read()\n"
                   "if os.environ['IPYTHONDIR']:\n    c.TaskScheduler.scheme_name = 'l' + 'ru'\n"
                   "print('said by the file')\n")
    cluster.env["VIRTUAL_ENV"] = config  # no directory: there is another Python
    cluster.start()
    with open(cluster.security("ipcontroller-client.json")) as file:
        connection = json.load(file)
    assert connection["key"] == 'sécret "key"' and connection["task_scheme"] == "lru"
    assert connection["location"] == "some.where"
    for text, why in [("raise ValueError('two\\nlines')\n", "ValueError: two lines"),
                      ("c.A.b = (\n", "SyntaxError")]:
        with open(config, "w") as file:
            file.write(text)
        done = subprocess.run([CONTROLLER, "--profile-dir", cluster.profile_dir], env=cluster.env,
                              capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert config in done.stderr and why in done.stderr


def test_config_key_and_log_in_named_files(cluster, tmp_path):
    (tmp_path / "more.py").write_text("c.TaskScheduler.scheme_name = 'lru'\n"
                                      "c.HeartMonitor.period = 777\n")
    (tmp_path / "key").write_text("of my own choice\n")
    cluster.start(f"--config={tmp_path / 'more.py'}", f"--keyfile={tmp_path / 'key'}",
                  "--log-to-file", "--sqlitedb")
    with open(cluster.security("ipcontroller-client.json")) as file:
        connection = json.load(file)
    assert connection["key"] == "of my own choice" and connection["task_scheme"] == "lru"
    log = os.path.join(cluster.profile_dir, "log", f"ipcontroller-{cluster.controller.pid}.log")
    with open(log) as file:
        assert "Hub listening" in file.read()
    for folder, folders, names in os.walk(cluster.profile_dir):
        for name in names:
            mode = stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode)
            assert mode == 0o600, f"{name}: {mode:o}"
    missing = str(tmp_path / "missing")
    for option in (f"--config={missing}", f"--keyfile={missing}"):
        done = subprocess.run([CONTROLLER, "--profile-dir", cluster.profile_dir, option],
                              env=cluster.env, capture_output=True, text=True, timeout=DEADLINE)
        assert done.returncode == 2 and missing in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("options", [
    ["--transport=ipc"],
    ["--ip='*'"],
    ["--IPController.engine_ip=127.0.0.1", "--IPController.client_ip=0.0.0.0"],
    ["--IPController.engine_ip=127.0.0.1", "--IPController.client_ip=127.0.0.2"],
    ["--no-secure"],
])
def test_addresses(cluster, options):
    cluster.start(*options)
    cluster.add_engines(1)
    rc = cluster.client(1)
    assert rc[:].apply_sync(lambda: 1) == [1]
    assert rc.load_balanced_view().apply_sync(lambda: 2) == 2
    cluster.controller.terminate()
    assert cluster.controller.wait(10) == 0
    assert os.listdir(cluster.security()) == []


def test_summary_on_signal(cluster):
    cluster.start()
    cluster.controller.send_signal(signal.SIGUSR1)
    events = ["socket name=\"mux\" side=\"clients\" messages=0", "tasks blocked=0", "hearts beating=0",
              "link backlog=0", "database kind=\"memory\"", "controller registering=0"]
    wait_until(lambda: all(f"| {event}" in cluster.log() for event in events), what="summary")


def pxcluster(cluster, *arguments):
    return subprocess.run([os.path.join(BIN, "pxcluster"), *arguments, "--profile-dir",
                           cluster.profile_dir], env=cluster.env, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=DEADLINE)


def status_of(cluster):
    return json.loads(pxcluster(cluster, "status", "--json").stdout)


def socket_counters(cluster):
    return {(s["name"], s["side"]): s for s in status_of(cluster)["sockets"]}


def test_status(cluster):
    assert pxcluster(cluster, "status").returncode == 11
    cluster.start("--scheme=lru")
    cluster.add_engines(1)
    rc = cluster.client(1)
    view = rc.load_balanced_view()
    view.map_sync(len, ["a"] * 5, chunksize=1)
    with view.temp_flags(retries=0):
        with pytest.raises(ipp.error.RemoteError):
            view.apply_sync(int, "x")
    rc[0].apply_sync(int, "1")
    gate = os.path.join(cluster.profile_dir, "never")
    held = [view.apply_async(append_when_there, gate, "x") for _ in range(3)]
    forger = Peer(cluster)
    forger.session.key = b"wrong"
    mux = forger.connect(zmq.DEALER, forger.client["mux"])
    forger.session.send(mux, "apply_request", content={}, ident=b"x")

    wait_until(lambda: socket_counters(cluster)["mux", "clients"]["bad_signatures"] == 1)
    said = status_of(cluster)
    assert said["status"] == "ok" and said["pid"] == cluster.controller.pid
    assert said["scheme"] == "lru" and said["curve"] is False and said["uptime_s"] > 0
    assert 1e6 < said["memory"]["resident_bytes"] < 1e9
    engine, = said["engines"]
    assert engine["id"] == 0 and engine["queue"] == 0 and engine["completed"] >= 7
    assert engine["host"] is None and engine["pid"] is None  # a stock engine does not say
    assert said["tasks"]["running"] == 1 and said["tasks"]["waiting"] == 2
    assert said["tasks"]["succeeded"] == 5 and said["tasks"]["failed"] == 1
    assert said["database"]["records"] == 10 and said["database"]["kind"] == "memory"
    counted = socket_counters(cluster)["task", "clients"]
    assert counted["messages"] == 9 and counted["bytes"] > 1000
    text = pxcluster(cluster, "status").stdout
    assert "1 running" in text and "scheme lru" in text and "BAD SIGN." in text
    forger.close()
    assert not any(ar.ready() for ar in held)


def test_status_again_and_again(cluster):
    cluster.start()
    cluster.add_engines(1)
    view = cluster.client(1).load_balanced_view()
    command = [os.path.join(BIN, "pxcluster"), "status", "--watch=0.1", "--timeout=3",
               "--profile-dir", cluster.profile_dir]
    pipes = {"env": cluster.env, "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE,
             "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as tables, \
            subprocess.Popen([*command, "--json"], **pipes) as objects:
        try:
            done = [json.loads(objects.stdout.readline())["tasks"]["succeeded"]]
            view.map_sync(len, ["a"] * 5, chunksize=1)
            while done[-1] < 5:
                done.append(json.loads(objects.stdout.readline())["tasks"]["succeeded"])
            assert done[0] == 0 and done[-1] == 5
            rates = []  # the first table knows none
            while len(rates) < 2 or rates[-1] == 0:
                view.apply_sync(len, "a")
                line = tables.stdout.readline()
                if line.startswith("engines"):
                    rates.append(float(line.split(", ")[2].split()[0]) if line.count(",") == 2 else None)
            assert rates[0] is None and rates[-1] > 0
            cluster.controller.terminate()
            for process in (tables, objects):
                assert "the controller does not say" in process.communicate(timeout=DEADLINE)[1]
                assert process.returncode == 1
        finally:
            tables.kill()
            objects.kill()
    assert pxcluster(cluster, "status", "--watch=-1").returncode == 2


# ---- direct views --------------------------------------------------------------------------


def test_engines_and_apply(shared):
    rc = shared.rc
    assert rc.ids == [0, 1, 2]
    pids = rc[:].apply_sync(os.getpid)
    assert len(set(pids)) == 3


def test_execute_output_and_results(shared):
    ar = shared.rc[:].execute("print('hi'); 1 + 1", silent=False)
    ar.get(DEADLINE)
    ar.wait_for_output(DEADLINE)
    assert ar.stdout == ["hi\n"] * 3
    assert [r.execute_result["data"]["text/plain"] for r in ar.get()] == ["2"] * 3


def test_push_pull_scatter_gather(shared):
    view = shared.rc[:]
    view.push({"a": 5, "b": b"x" * 100000}, block=True)
    assert view.pull("a", block=True) == [5] * 3
    assert view.pull("b", block=True) == [b"x" * 100000] * 3
    view.scatter("x", list(range(10)), block=True)
    assert view.gather("x", block=True) == list(range(10))


def test_remote_error(shared):
    with pytest.raises(ipp.error.CompositeError) as info:
        shared.rc[:].apply_sync(lambda: 1 / 0)
    assert "ZeroDivisionError" in str(info.value)


def wait_until_there(path):
    import os
    import threading

    while not os.path.exists(path):
        threading.Event().wait(0.01)


def test_abort(shared, tmp_path):
    """ipengine looks for requests by control when what runs has ended: there is no telling whether it
    has one by then, so some are tried."""
    numbers = itertools.count()

    def relayed():
        return socket_counters(shared)["control", "clients"]["messages"]

    def aborts():
        go_on = tmp_path / str(next(numbers))
        view = shared.rc[0]
        first = view.apply_async(wait_until_there, str(go_on))
        second = view.apply_async(lambda: 2)
        before = relayed()
        view.abort(second)
        wait_until(lambda: relayed() > before)
        go_on.touch()
        first.get(DEADLINE)
        return isinstance(second.exception(DEADLINE), ipp.error.TaskAborted)

    wait_until(aborts)


def test_large_buffers(shared):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(3_000_000, dtype=float)
    assert numpy.array_equal(shared.rc[1].apply_sync(lambda x: x * 2, array), array * 2)


# ---- load balancing ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--scheme=lru"], ["--scheme=twobin", "--hwm=0"],
                                     ["--scheme=weighted"], ["--scheme=plainrandom"],
                                     ["--scheme=pure"]])
def test_map_under_each_scheme(cluster, options):
    cluster.start(*options)
    cluster.add_engines(2)
    # With "pure", a client gives up when engines are announced to it in another order than 0, 1.
    cluster.wait_for_state(2)
    view = cluster.client(2).load_balanced_view()
    assert view.map_sync(lambda x: x**10, range(32)) == [x**10 for x in range(32)]


def test_pure_loses_no_reply_of_many(cluster):
    cluster.start("--scheme=pure")
    cluster.add_ours(1)
    view = cluster.client(1).load_balanced_view()
    assert view.map_async(lambda x: x, range(500), chunksize=1).get(DEADLINE) == list(range(500))


def test_dependencies(shared):
    view = shared.rc.load_balanced_view()
    first = view.apply_async(lambda: 1)
    with view.temp_flags(after=[first]):
        second = view.apply_async(lambda: 2)
    with view.temp_flags(follow=[second]):
        third = view.apply_async(lambda: 3)
    assert (first.get(DEADLINE), second.get(DEADLINE), third.get(DEADLINE)) == (1, 2, 3)
    assert second.engine_id == third.engine_id
    assert second.metadata["started"] >= first.metadata["completed"]


def test_impossible_and_invalid_dependencies(shared):
    view = shared.rc.load_balanced_view()
    failing = view.apply_async(lambda: 1 / 0)
    with view.temp_flags(after=[failing]):
        impossible = view.apply_async(lambda: 2)
    with view.temp_flags(after=["no-such-task"]):
        invalid = view.apply_async(lambda: 2)
    with pytest.raises(ipp.error.RemoteError, match="ImpossibleDependency"):
        impossible.get(DEADLINE)
    with pytest.raises(ipp.error.RemoteError, match="InvalidDependency"):
        invalid.get(DEADLINE)


def test_retries_and_timeout(shared):
    view = shared.rc.load_balanced_view()
    with view.temp_flags(retries=2):
        with pytest.raises(ipp.error.RemoteError, match="ZeroDivisionError"):
            view.apply_async(lambda: 1 / 0).get(DEADLINE)
    with view.temp_flags(retries=3, timeout=0.2):
        with pytest.raises(ipp.error.RemoteError, match="TaskTimeout"):
            view.apply_async(lambda: 1 / 0).get(DEADLINE)


def test_retries_begin_anew_when_all_engines_have_failed(shared, tmp_path):
    view = shared.rc.load_balanced_view()
    tries = len(shared.rc) + 2

    def fail(path):
        with open(path, "a") as file:
            print(os.getpid(), file=file)
        1 / 0

    path = str(tmp_path / "tries")
    with view.temp_flags(retries=tries - 1):
        with pytest.raises(ipp.error.RemoteError, match="ZeroDivisionError"):
            view.apply_async(fail, path).get(DEADLINE)
    pids = open(path).read().split()
    assert len(pids) == tries and len(set(pids[: len(shared.rc)])) == len(shared.rc)


def test_functional_dependency(shared):
    view = shared.rc.load_balanced_view()
    shared.rc[:].execute("special = False", block=True)
    shared.rc[2].execute("special = True", block=True)

    @ipp.interactive
    def is_special():
        return special  # noqa: F821

    task = ipp.depend(is_special)(lambda: True)
    ars = [view.apply_async(task) for _ in range(5)]
    assert all(ar.get(DEADLINE) for ar in ars)
    assert {ar.engine_id for ar in ars} == {2}


def test_targets(shared):
    view = shared.rc.load_balanced_view(targets=[1])
    ars = [view.apply_async(lambda: 1) for _ in range(10)]
    assert [ar.get(DEADLINE) for ar in ars] == [1] * 10
    assert {ar.engine_id for ar in ars} == {1}


# ---- broadcast -------------------------------------------------------------------------------------


@pytest.mark.parametrize("coalescing", [False, True])
def test_broadcast(shared, coalescing):
    view = shared.rc.broadcast_view()
    view.is_coalescing = coalescing  # an argument of either name, by version
    direct = shared.rc[:].apply_sync(os.getpid)
    assert sorted(view.apply_sync(os.getpid)) == sorted(direct)


# ---- the hub ------------------------------------------------------------------------------------------


def test_results_from_another_client(shared):
    ar = shared.rc.load_balanced_view().apply_async(lambda x: x + 1, 41)
    assert ar.get(DEADLINE) == 42
    other = shared.client()
    assert other.get_result(ar.msg_ids[0]).get(DEADLINE) == 42
    status = other.result_status(ar.msg_ids, status_only=True)
    assert status["completed"] == ar.msg_ids and status["pending"] == []
    assert ar.msg_ids[0] in other.hub_history()


def test_queue_status(shared):
    rc = shared.rc
    wait_until(lambda: rc.queue_status()[0]["queue"] == 0)
    ar = rc[0].apply_async(time.sleep, 0.5)
    wait_until(lambda: rc.queue_status()[0]["queue"] == 1, 5)
    assert rc.queue_status(verbose=True)[0]["queue"] == ar.msg_ids
    ar.get(DEADLINE)
    wait_until(lambda: rc.queue_status()[0]["queue"] == 0)


def test_db_query(shared):
    rc = shared.rc
    ar = rc[1].apply_async(lambda: 1)
    ar.get(DEADLINE)
    wait_until(lambda: rc.db_query({"msg_id": ar.msg_ids[0]})[0]["completed"] is not None)
    record = rc.db_query({"msg_id": {"$in": ar.msg_ids}, "queue": "mux"},
                         keys=["engine_uuid", "submitted", "completed", "buffers"])[0]
    assert record["engine_uuid"] == rc._engines[1]
    assert record["submitted"] <= record["completed"]
    later = rc.db_query({"submitted": {"$gt": record["submitted"]}}, keys=["submitted"])
    assert all(r["submitted"] > record["submitted"] for r in later)
    with pytest.raises(ipp.error.RemoteError, match="KeyError"):
        rc.db_query({"msg_id": {"$like": 1}})


def test_resubmit_and_purge(shared):
    rc = shared.rc
    ar = rc.load_balanced_view().apply_async(lambda: 7)
    assert ar.get(DEADLINE) == 7
    wait_until(lambda: rc.result_status(ar.msg_ids, status_only=True)["completed"])
    again = rc.resubmit(ar.msg_ids)
    assert again.get(DEADLINE) == [7]
    rc.purge_hub_results("all")
    wait_until(lambda: rc.hub_history() == [])


def sql(cluster, query):
    """Asks the file itself; "tasks" is the table."""
    path = os.path.join(cluster.profile_dir, "tasks.db")
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(query.replace("tasks", '"ipython-tasks"')).fetchall()


def test_database_on_disk(cluster):
    cluster.start("--sqlitedb", "--DictDB.record_limit=10")
    cluster.add_engines(1)
    rc = cluster.client(1)
    ar = rc.load_balanced_view().map_async(lambda x: x * 2, range(50), chunksize=1)
    assert ar.get(DEADLINE) == [x * 2 for x in range(50)]
    cell = rc[0].execute("print('kept'); 6 * 7", silent=False)
    cell.get(DEADLINE)
    wait_until(lambda: len(rc.hub_history()) == 51)
    wait_until(lambda: len(rc.db_query({"completed": {"$ne": None}}, keys=["msg_id"])) == 51)
    # Answers come from memory; what a kill leaves is what has been written.
    wait_until(lambda: sql(cluster, "SELECT count(*) FROM tasks WHERE completed NOT NULL "
                                    "AND (queue = 'task' OR stdout = 'kept\n')") == [(51,)])
    rc.close()
    os.killpg(cluster.controller.pid, signal.SIGKILL)
    cluster.controller.wait()
    cluster.start("--sqlitedb")
    again = cluster.client()
    assert again.get_result(ar.msg_ids[0]).get(DEADLINE) == [0]
    record = again.db_query({"msg_id": cell.msg_ids[0]})[0]
    assert record["stdout"] == "kept\n" and record["queue"] == "mux"
    again.purge_hub_results(ar.msg_ids)
    wait_until(lambda: again.hub_history() == cell.msg_ids)
    cluster.controller.terminate()
    assert cluster.controller.wait(10) == 0
    (msg_id, buffers, code), = sql(cluster, "SELECT msg_id, result_buffers, execute_input FROM tasks")
    assert msg_id == cell.msg_ids[0] and code == "print('kept'); 6 * 7"
    assert pickle.loads(buffers) == []


def test_terminated_controller_has_written_everything(cluster):
    """What clients have been told is in the file when the controller has ended."""
    cluster.start("--sqlitedb", "--SQLiteDB.commit_ms=60000")
    cluster.add_engines(1)
    rc = cluster.client(1)
    ar = rc.load_balanced_view().map_async(lambda x: x, range(200), chunksize=1)
    assert ar.get(DEADLINE) == list(range(200))
    cluster.controller.terminate()
    assert cluster.controller.wait(10) == 0
    assert sql(cluster, "SELECT count(*) FROM tasks WHERE completed NOT NULL") == [(200,)]


def test_locked_database_holds_nobody(cluster):
    """Another program has the file for itself: everything goes on, and is written when it is free."""
    cluster.start("--sqlitedb", "--SQLiteDB.commit_ms=10", "--DictDB.record_limit=20")
    cluster.add_engines(1)
    rc = cluster.client(1)
    view = rc.load_balanced_view()
    assert view.apply_sync(int, "1") == 1
    path = os.path.join(cluster.profile_dir, "tasks.db")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        ar = view.map_async(lambda x: x, range(100), chunksize=1)
        assert ar.get(DEADLINE) == list(range(100))
        start = time.monotonic()
        assert len(rc.hub_history()) == 101
        assert rc.get_result(ar.msg_ids[0], block=True).get() == [0]
        wait_until(lambda: rc.result_status(ar.msg_ids)["pending"] == [])
        rc.purge_hub_results(ar.msg_ids[99])
        assert len(rc.hub_history()) == 100
        assert time.monotonic() - start < 5
        wait_until(lambda: "database-busy" in cluster.log())
        other.execute("ROLLBACK")
    wait_until(lambda: sql(cluster, "SELECT count(*) FROM tasks WHERE completed NOT NULL") == [(100,)])
    assert "database-free" in cluster.log() and "unwritten" not in cluster.log()


def test_database_on_disk_is_bounded(cluster):
    cluster.start("--sqlitedb", "--SQLiteDB.commit_ms=500", "--SQLiteDB.size_limit=4e6")
    cluster.add_engines(1)
    rc = cluster.client(1)
    view = rc.load_balanced_view()
    view.map_sync(len, [bytes(100000)] * 100, chunksize=1)  # a few large transactions
    wait_until(lambda: "database-culled" in cluster.log())
    used = "SELECT (p.page_count - f.freelist_count) * s.page_size FROM pragma_page_count AS p, " \
           "pragma_freelist_count AS f, pragma_page_size AS s"
    wait_until(lambda: sql(cluster, used)[0][0] < 6e6)
    assert 0 < sql(cluster, "SELECT count(*) FROM tasks")[0][0] < 100


def test_database_that_cannot_be_opened(cluster):
    os.makedirs(os.path.join(cluster.profile_dir, "tasks.db"))
    result = subprocess.run([CONTROLLER, "--profile-dir", cluster.profile_dir, "--sqlitedb"],
                            env=cluster.env, capture_output=True, text=True, timeout=DEADLINE)
    assert result.returncode == 1 and "tasks.db" in result.stderr
    assert result.stderr.count("\n") == 1
    assert os.listdir(cluster.security()) == []


def test_no_database(cluster):
    cluster.start("--nodb")
    rc = cluster.client()
    with pytest.raises(ipp.error.RemoteError, match="NoDB"):
        rc.hub_history()


# ---- engines that come and go ------------------------------------------------------------------------------


def test_killed_engine_fails_its_tasks(cluster):
    cluster.start()
    cluster.add_engines(2)
    rc = cluster.client(2)
    view = rc.load_balanced_view()
    pids = rc[:].apply_async(os.getpid).get_dict(DEADLINE)
    ars = [view.apply_async(time.sleep, 1) for _ in range(4)]
    wait_until(lambda: all(s["tasks"] for i, s in rc.queue_status().items() if i in pids))
    os.kill(pids[0], signal.SIGKILL)
    failed = 0
    for ar in ars:
        try:
            ar.get(20)
        except ipp.error.RemoteError as error:
            assert error.ename == "EngineError"
            failed += 1
    assert failed == 1
    assert rc.ids == [1]


def test_killed_engine_with_retries_moves_on(cluster):
    cluster.start()
    cluster.add_engines(2)
    rc = cluster.client(2)
    view = rc.load_balanced_view()
    pids = rc[:].apply_async(os.getpid).get_dict(DEADLINE)
    with view.temp_flags(retries=1):
        ars = [view.apply_async(time.sleep, 1) for _ in range(2)]
    wait_until(lambda: all(s["tasks"] for i, s in rc.queue_status().items() if i in pids))
    os.kill(pids[1], signal.SIGKILL)
    for ar in ars:
        ar.get(20)


def test_stopped_heart(cluster):
    cluster.start("--HeartMonitor.max_heartmonitor_misses=3")
    cluster.add_engines(1)
    rc = cluster.client(1)
    pid = rc[0].apply_sync(os.getpid)
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: rc.ids == [], 15, "unregistration")
    os.kill(pid, signal.SIGCONT)


def test_restore_after_kill(cluster):
    cluster.start(controller_ports())
    cluster.add_engines(2)
    rc = cluster.client(2)
    pids = rc[:].apply_sync(os.getpid)
    cluster.wait_for_state(2)
    rc.close()
    os.killpg(cluster.controller.pid, signal.SIGKILL)
    cluster.controller.wait()
    cluster.start("--restore")
    again = cluster.client(2)
    assert again.ids == [0, 1]
    assert again[:].apply_async(os.getpid).get(DEADLINE) == pids
    view = again.load_balanced_view()
    assert view.map_sync(lambda x: x + 1, range(10)) == list(range(1, 11))


def test_what_is_lost_of_control_with_a_controller_fails(cluster):
    phalanx = pytest.importorskip("phalanx")
    cluster.start(controller_ports())
    cluster.add_engines(1)
    rc = phalanx.Client(cluster.security("ipcontroller-client.json"))
    rc.wait_for_engines(1, timeout=DEADLINE)
    pid = rc[0].apply_sync(os.getpid)
    cluster.wait_for_state(1)
    os.kill(pid, signal.SIGSTOP)
    lost = rc.clear(block=False)
    rc.queue_status()  # it is on its way
    os.killpg(cluster.controller.pid, signal.SIGKILL)
    cluster.controller.wait()
    os.kill(pid, signal.SIGCONT)  # it answers, and nobody is there
    cluster.start("--restore")
    with pytest.raises(phalanx.CompositeError, match="the connection was lost"):
        lost.get(DEADLINE)
    rc.clear(block=True)
    rc.close()


def append_when_there(path, word, array=None):
    """Waits for `path`, then appends a line to it: each run of a task leaves a trace."""
    import os
    import threading

    while not os.path.exists(path):
        threading.Event().wait(0.01)
    with open(path, "a") as file:
        file.write(word + "\n")
    return word


@pytest.mark.parametrize("coalescing", [False, True], ids=["each", "coalescing"])
def test_a_broadcast_under_way_with_a_controller_fails(cluster, tmp_path, coalescing):
    """Its replies have no way to their client any more."""
    phalanx = pytest.importorskip("phalanx")
    cluster.start(controller_ports())
    cluster.add_engines(2)
    rc = phalanx.Client(cluster.security("ipcontroller-client.json"))
    rc.wait_for_engines(2, timeout=DEADLINE)
    cluster.wait_for_state(2)
    gate = tmp_path / "gate"
    view = rc.broadcast_view(coalescing=coalescing)
    lost = view.apply_async(append_when_there, str(gate), "x")
    rc.queue_status()  # it is on its way
    os.killpg(cluster.controller.pid, signal.SIGKILL)
    cluster.controller.wait()
    cluster.start("--restore")
    with pytest.raises(phalanx.CompositeError, match="the connection was lost"):
        lost.get(DEADLINE)
    gate.touch()
    assert view.apply_async(int, "3").get(DEADLINE) == [3, 3]
    rc.close()


@pytest.mark.parametrize("ours", [False, True], ids=["stock", "ours"])
def test_unfinished_tasks_come_back(cluster, tmp_path, ours):
    """kill -9 while tasks run, wait their turn and wait for others: each is run once, and the
    client, which has been waiting all the while, gets every result."""
    options = ["--sqlitedb", "--SQLiteDB.commit_ms=0"]
    cluster.start(controller_ports(), *options)
    cluster.add_engines(2)
    rc = cluster.client(2)
    if ours:
        phalanx = pytest.importorskip("phalanx")
        rc = phalanx.Client(cluster.security("ipcontroller-client.json"))
        cluster.clients.append(rc)
    gate = str(tmp_path / "gate")
    view = rc.load_balanced_view()
    done = view.apply_async(int, "7")
    assert done.get(DEADLINE) == 7
    results = [view.apply_async(append_when_there, gate, f"task-{i}") for i in range(6)]
    with view.temp_flags(after=[done, results[0]]):
        last = view.apply_async(int, "8")
    direct = rc[1].apply_async(append_when_there, gate, "direct")
    other = cluster.client(2).load_balanced_view().apply_async(int, "9")  # another one that waits
    wait_until(lambda: sql(cluster, "SELECT count(*), sum(engine_uuid IS NOT NULL AND queue = 'task' "
                                    "AND completed IS NULL) FROM tasks") == [(10, 2)])
    cluster.wait_for_state(2)
    os.killpg(cluster.controller.pid, signal.SIGKILL)
    cluster.controller.wait()
    cluster.start("--restore", *options)
    with open(gate, "w"):
        pass
    assert [ar.get(DEADLINE) for ar in results] == [f"task-{i}" for i in range(6)]
    assert last.get(DEADLINE) == 8
    assert direct.get(DEADLINE) == "direct"
    assert other.get(DEADLINE) == 9
    with open(gate) as file:
        assert sorted(file.read().split()) == ["direct", *[f"task-{i}" for i in range(6)]]
    restored = [line.partition(" restored ")[2] for line in cluster.log().splitlines()
                if " restored " in line]
    assert restored == ["engines=2 finished=1 adopted=2 submitted=6 direct=1 failed=0"]
    # Started anew, it leaves alone what another controller has not finished.
    late = view.apply_async(append_when_there, gate + "-never", "late")
    wait_until(lambda: sql(cluster, "SELECT count(*) FROM tasks WHERE completed IS NULL") == [(1,)])
    assert not late.ready()
    os.killpg(cluster.controller.pid, signal.SIGKILL)
    cluster.controller.wait()
    cluster.start("--reuse", *options)
    if ours:
        with pytest.raises(phalanx.error.RemoteError, match="started anew"):
            late.get(DEADLINE)
    os.killpg(cluster.controller.pid, signal.SIGKILL)
    cluster.controller.wait()
    cluster.start("--restore", *options)
    assert "adopted=0 submitted=0 direct=0 failed=0" in cluster.log()


def test_lost_tasks_are_sent_again(cluster, tmp_path):
    """The books say that an engine was sent a task which it never got."""
    options = ["--sqlitedb", "--SQLiteDB.commit_ms=0"]
    cluster.start(controller_ports(), *options)
    cluster.add_engines(1)
    rc = cluster.client(1)
    view = rc.load_balanced_view()
    gate = str(tmp_path / "gate")
    held = view.apply_async(append_when_there, gate, "held")
    lost = view.apply_async(append_when_there, gate, "lost")
    wait_until(lambda: sql(cluster, "SELECT count(*) FROM tasks WHERE engine_uuid NOT NULL") == [(1,)])
    wait_until(lambda: sql(cluster, "SELECT count(*) FROM tasks") == [(2,)])
    cluster.wait_for_state(1)
    os.killpg(cluster.controller.pid, signal.SIGKILL)
    cluster.controller.wait()
    with contextlib.closing(sqlite3.connect(os.path.join(cluster.profile_dir, "tasks.db"))) as db:
        db.execute('UPDATE "ipython-tasks" SET engine_uuid = (SELECT engine_uuid FROM "ipython-tasks" '
                   "WHERE engine_uuid NOT NULL)")
        db.commit()
    with open(gate, "w"):
        pass
    cluster.start("--restore", *options)
    assert (held.get(DEADLINE), lost.get(DEADLINE)) == ("held", "lost")
    with open(gate) as file:
        assert sorted(file.read().split()) == ["held", "lost"]
    assert "adopted=2" in cluster.log()
    wait_until(lambda: "tasks-reclaimed" in cluster.log())


def test_lost_direct_requests_fail(cluster, tmp_path):
    """The books say that an engine was sent a direct request which it never got, or to which its
    reply has been lost: the client that waits is told. One that its engine has is answered."""
    options = ["--sqlitedb", "--SQLiteDB.commit_ms=0"]
    cluster.start(controller_ports(), *options)
    cluster.add_engines(2)
    rc = cluster.client(2)
    gate = str(tmp_path / "gate")
    kept = rc[0].apply_async(append_when_there, gate, "kept")
    lost = rc[0].apply_async(append_when_there, gate, "lost")
    wait_until(lambda: sql(cluster, "SELECT count(*) FROM tasks WHERE engine_uuid NOT NULL") == [(2,)])
    cluster.wait_for_state(2)
    os.killpg(cluster.controller.pid, signal.SIGKILL)
    cluster.controller.wait()
    with contextlib.closing(sqlite3.connect(os.path.join(cluster.profile_dir, "tasks.db"))) as db:
        db.execute('UPDATE "ipython-tasks" SET engine_uuid = ? WHERE msg_id = ?',
                   (rc._engines[1], lost.msg_ids[0]))
        db.commit()
    cluster.start("--restore", *options)
    with pytest.raises(ipp.error.RemoteError, match="engine 1: the controller was killed") as info:
        lost.get(DEADLINE)
    assert info.value.ename == "EngineError"
    assert not kept.ready()
    with open(gate, "w"):
        pass
    assert kept.get(DEADLINE) == "kept"
    wait_until(lambda: rc.queue_status([1])[1]["queue"] == 0)
    assert rc.result_status(lost.msg_ids)["completed"] == lost.msg_ids
    assert "requests-lost" in cluster.log()


KEPT = ["--sqlitedb", "--SQLiteDB.commit_ms=0"]


@pytest.mark.parametrize("ours, options", [(True, []), (True, KEPT), (False, KEPT)],
                         ids=["ours-memory", "ours-sqlite", "stock-sqlite"])
def test_what_was_under_way_is_sent_again(cluster, tmp_path, ours, options):
    """Replies that a controller was sent, and requests that it never read, are lost when it is
    killed. Engines of ours send theirs again, clients of ours as well; nothing is run twice."""
    cluster.start(controller_ports(), *options)
    cluster.add_ours(2)
    rc = cluster.client(2)
    if ours:
        phalanx = pytest.importorskip("phalanx")
        rc = phalanx.Client(cluster.security("ipcontroller-client.json"))
        cluster.clients.append(rc)
    gate = str(tmp_path / "gate")
    view = rc.load_balanced_view()
    done = [view.apply_async(int, "7"), rc[1].apply_async(int, "7")]
    assert [ar.get(DEADLINE) for ar in done] == [7, 7]
    results = {f"direct-{i}": rc[i].apply_async(append_when_there, gate, f"direct-{i}")
               for i in rc.ids}
    results.update((f"task-{i}", view.apply_async(append_when_there, gate, f"task-{i}"))
                   for i in range(6))
    wait_until(lambda: all(rc.queue_status(i)["queue"] and rc.queue_status(i)["tasks"]
                           for i in rc.ids))
    if options:
        wait_until(lambda: sql(cluster, "SELECT count(*), sum(engine_uuid NOT NULL) >= 4 FROM tasks "
                                        "WHERE completed IS NULL") == [(8, 1)])
    cluster.wait_for_state(2)
    os.kill(cluster.controller.pid, signal.SIGSTOP)
    with open(gate, "w"):
        pass

    def lines():
        with open(gate) as file:
            return sorted(file.read().split())

    wait_until(lambda: len(lines()) >= 4)
    for i in range(50 * ours):
        results[f"late-{i}"] = rc[i % 2].apply_async(append_when_there, gate, f"late-{i}")
        results[f"late-task-{i}"] = view.apply_async(append_when_there, gate, f"late-task-{i}")
    os.killpg(cluster.controller.pid, signal.SIGKILL)
    cluster.controller.wait()
    cluster.start("--restore", *options)
    assert {name: ar.get(DEADLINE) for name, ar in results.items()} == {name: name for name in results}
    assert lines() == sorted(results)
    wait_until(lambda: all(state == {**state, "queue": 0, "tasks": 0}
                           for state in map(rc.queue_status, rc.ids)))


@pytest.mark.parametrize("options", [[], KEPT], ids=["memory", "sqlite"])
def test_arrays_that_are_lost_with_a_controller(cluster, tmp_path, options):
    """They are the caller's, who may have changed them: no request is sent again with them. What an
    engine or the database has is done, and what nobody has fails. Bytes are sent again."""
    phalanx, numpy = pytest.importorskip("phalanx"), pytest.importorskip("numpy")
    cluster.start(controller_ports(), *options)
    cluster.add_ours(2)
    rc = phalanx.Client(cluster.security("ipcontroller-client.json"))
    cluster.clients.append(rc)
    wait_until(lambda: len(rc.ids) == 2)
    gate, view, results = str(tmp_path / "gate"), rc.load_balanced_view(), {}

    def submit(name, large):
        to = rc[int(name[-1]) % 2] if name.startswith("direct") else view
        results[name] = to.apply_async(append_when_there, gate, name, large)

    for i in range(16):
        submit(f"direct-{i}" if i < 4 else f"task-{i}", numpy.zeros(100_000))
    for i in range(4):
        submit(f"bytes-{i}", bytes(3_000_000))
    wait_until(lambda: rc.queue_status()["unassigned"] >= 8)
    if options:
        wait_until(lambda: sql(cluster, "SELECT count(*) FROM tasks") == [(20,)])
    cluster.wait_for_state(2)
    os.killpg(cluster.controller.pid, signal.SIGKILL)
    cluster.controller.wait()
    cluster.start("--restore", *options)
    with open(gate, "w"):
        pass
    for result in results.values():
        result.wait(DEADLINE)
        assert result.ready()
    done = sorted(name for name, result in results.items() if result.successful())
    failed = [result for name, result in results.items() if name not in done]
    assert {f"bytes-{i}" for i in range(4)} < {*done}
    assert len(failed) >= 4 or options
    assert len([name for name in done if name.startswith("task")]) == 12 or not options
    for result in failed:
        with pytest.raises(phalanx.RemoteError, match="the arguments of the call are missing"):
            result.get(DEADLINE)
    with open(gate) as file:
        assert sorted(file.read().split()) == done


def test_looking_at_many_records_holds_nobody(cluster):
    """The hub answers others meanwhile, and who waits for all records gets each once."""
    count = 20_000
    cluster.start("--sqlitedb", "--SQLiteDB.commit_ms=0")
    cluster.add_engines(1)
    rc = cluster.client(1)
    assert rc[0].apply_sync(int, "7") == 7
    wait_until(lambda: sql(cluster, "SELECT count(*) FROM tasks WHERE completed NOT NULL") == [(1,)])
    with contextlib.closing(sqlite3.connect(os.path.join(cluster.profile_dir, "tasks.db"))) as db:
        columns = [row[1] for row in db.execute('PRAGMA table_info("ipython-tasks")')]
        assert columns[0] == "msg_id"
        db.execute(f"""WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count})
                       INSERT INTO "ipython-tasks" SELECT 'copy-' || i, {", ".join(columns[1:])}
                       FROM "ipython-tasks", n""")
        db.commit()
    peer = Peer(cluster)
    named = {"msg_id": {"$in": [f"copy-{n}" for n in range(1, count + 1)]}}
    for msg_type in ["db_request", "connection_request"]:
        peer.session.send(peer.query, msg_type, content={"query": named, "keys": ["msg_id"]})
    assert peer.receive(peer.query)["msg_type"] == "connection_reply"
    reply = peer.receive(peer.query)
    assert [record["msg_id"] for record in reply["content"]["records"]] == sorted(named["msg_id"]["$in"])
    for msg_type in ["history_request", "db_request", "connection_request"]:
        peer.session.send(peer.query, msg_type, content={"query": {}, "keys": ["msg_id"]})
    assert rc[0].apply_sync(int, "8") == 8
    replies = [peer.receive(peer.query, DEADLINE) for _ in range(3)]
    assert [reply["msg_type"] for reply in replies] == ["connection_reply", "history_reply", "db_reply"]
    # The task that came meanwhile may be there or not.
    assert count < len(replies[1]["content"]["history"]) == len(set(replies[1]["content"]["history"]))
    found = [record["msg_id"] for record in replies[2]["content"]["records"]]
    assert count < len(found) == len(set(found)) <= count + 2
    for msg_type in ["history_request", "db_request"]:
        peer.session.send(peer.query, msg_type, content={"query": {}, "keys": ["msg_id"]})
    peer.ask("connection_request", {})
    cluster.controller.terminate()
    assert cluster.controller.wait(10) == 0
    peer.close()


def test_shutdown(cluster):
    cluster.start()
    cluster.add_engines(1)
    rc = cluster.client(1)
    rc.shutdown(hub=True, block=True)
    assert cluster.controller.wait(10) == 0
    for engine in cluster.engines:
        engine.wait(10)
    assert os.listdir(cluster.security()) == []


# ---- CURVE ---------------------------------------------------------------------------------------------------


def test_curve(cluster):
    cluster.start("--enable-curve")
    cluster.add_engines(1)
    rc = cluster.client(1)
    assert rc[:].apply_sync(lambda: 1) == [1]
    assert rc.load_balanced_view().map_sync(lambda x: x + 1, range(5)) == list(range(1, 6))
    with open(cluster.security("ipcontroller-client.json")) as file:
        connection = json.load(file)
    assert len(connection["curve_serverkey"]) == 40 and connection["key"] == ""
    connection["curve_serverkey"] = None
    plain = cluster.security("plain.json")
    with open(plain, "w") as file:
        json.dump(connection, file)
    context = zmq.Context()
    context.linger, context.sndtimeo = 0, 1000  # as it may be turned away before it speaks
    with pytest.raises((TimeoutError, ipp.error.TimeoutError, zmq.Again)):
        ipp.Client(plain, timeout=1, context=context)


@pytest.mark.parametrize("server_key", [None, "another"])
def test_without_the_curve_key_nobody_gets_in(cluster, server_key):
    """Neither a peer that does not encrypt nor one that takes the controller for another."""
    cluster.start("--enable-curve")
    peer = Peer(cluster)
    client, engine = peer.client, peer.engine
    ports = {client[k] for k in ("registration", "control", "mux", "task", "broadcast", "iopub",
                                 "notification")}
    ports |= {engine[k] for k in ("control", "mux", "task", "iopub", "hb_ping", "hb_pong")}
    ports |= set(engine["broadcast"])
    for port in ports:
        socket = peer.context.socket(zmq.DEALER)
        socket.linger = 0
        if server_key:
            public, secret = zmq.curve_keypair()
            socket.curve_publickey, socket.curve_secretkey = public, secret
            socket.curve_serverkey = zmq.curve_keypair()[0]
        events = socket.get_monitor_socket()
        socket.connect(f"tcp://127.0.0.1:{port}")
        socket.sndtimeo = 0
        with contextlib.suppress(zmq.Again):  # it may have been turned away by now
            peer.session.send(socket, "connection_request", content={})
        seen = []
        while not any(event & (zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
                               | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
                               | zmq.EVENT_HANDSHAKE_FAILED_AUTH) for event in seen):
            assert events.poll(DEADLINE * 1000), f"port {port}: {seen}"
            seen.append(recv_monitor_message(events)["event"])
            assert seen[-1] != zmq.EVENT_HANDSHAKE_SUCCEEDED
        assert socket.poll(0) == 0
        socket.disable_monitor()
    said = status_of(cluster)  # with the key one does
    assert said["curve"] is True
    assert all(s["messages"] == 0 for s in said["sockets"] if s["name"] != "query")
    peer.close()


def test_engine_without_the_curve_key(cluster):
    cluster.start("--enable-curve")
    engine_file = cluster.security("ipcontroller-engine.json")
    with open(engine_file) as file:
        connection = json.load(file)
    connection["curve_serverkey"] = zmq.curve_keypair()[0].decode()
    wrong = cluster.security("wrong.json")
    with open(wrong, "w") as file:
        json.dump(connection, file)
    engine = cluster.spawn(["/usr/bin/python3", "-m", "ipyparallel.engine", f"--file={wrong}",
                            "--EngineFactory.registration_timeout=3", "--IPEngine.registration_timeout=3",
                            "--profile-dir", cluster.profile_dir], stderr=subprocess.DEVNULL)
    cluster.engines.append(engine)
    assert engine.wait(DEADLINE) != 0
    assert "engine-registered" not in cluster.log()


# ---- frames, as the protocol has them ------------------------------------------------------------------------


class Peer:
    """Sockets of our own making, with the cluster's key."""

    def __init__(self, cluster):
        with open(cluster.security("ipcontroller-client.json")) as file:
            self.client = json.load(file)
        with open(cluster.security("ipcontroller-engine.json")) as file:
            self.engine = json.load(file)
        self.session = Session(key=self.client["key"].encode(), signature_scheme="hmac-sha256")
        self.context = zmq.Context()
        self.query = self.connect(zmq.DEALER, self.client["registration"])

    def connect(self, kind, port, identity=None):
        socket = self.context.socket(kind)
        socket.linger = 0
        if identity:
            socket.setsockopt(zmq.IDENTITY, identity.encode())
        if kind == zmq.SUB:
            socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.connect(f"tcp://127.0.0.1:{port}")
        return socket

    def receive(self, socket, timeout=DEADLINE):
        assert socket.poll(timeout * 1000), "no message"
        return self.session.recv(socket, mode=0)[1]

    def ask(self, msg_type, content, socket=None):
        self.session.send(socket or self.query, msg_type, content=content)
        return self.receive(socket or self.query)

    def register(self, uuid, **content):
        socket = self.connect(zmq.DEALER, self.engine["registration"], uuid)
        return self.ask("registration_request", dict(content, uuid=uuid), socket)

    def beat(self, uuid):
        """Answers one ping."""
        pong = self.connect(zmq.DEALER, self.engine["hb_pong"], uuid)
        pong.linger = 5000  # it goes with this frame, maybe before it is connected
        ping = self.connect(zmq.SUB, self.engine["hb_ping"])
        assert ping.poll(DEADLINE * 1000)
        pong.send(ping.recv())

    def close(self):
        self.context.destroy(linger=0)


@pytest.fixture
def peer(cluster):
    cluster.start("--ping=3000", "--HeartMonitor.max_heartmonitor_misses=100")
    peer = Peer(cluster)
    yield peer
    peer.close()


def test_the_reply_to_a_resubmitted_task_is_nobodys(cluster):
    """Also after a restart, when a reply to an unknown client may be somebody's who comes back."""
    cluster.start()
    cluster.add_engines(1)
    cluster.client(1).close()
    cluster.wait_for_state(1)
    os.killpg(cluster.controller.pid, signal.SIGKILL)
    cluster.controller.wait()
    cluster.start("--restore")
    cluster.client(1)
    with contextlib.closing(Peer(cluster)) as peer:
        client = peer.connect(zmq.DEALER, peer.client["task"])

        def run():
            msg_id = peer.session.send(client, "apply_request", content={})["header"]["msg_id"]
            assert peer.receive(client)["parent_header"]["msg_id"] == msg_id
            return msg_id

        def is_done(msg_id):
            return peer.ask("result_request", {"msg_ids": [msg_id], "status_only": True})["content"]["completed"]

        first = run()
        wait_until(lambda: is_done(first))
        again = peer.ask("resubmit_request", {"msg_ids": [first]})["content"]["resubmitted"][first]
        wait_until(lambda: is_done(again))
        run()


@pytest.mark.parametrize("msg_type, content, reply, ename, evalue", [
    ("nonsense", {}, "hub_error", "KeyError", "\"Bad Message Type: 'nonsense'\""),
    ("queue_request", {}, "hub_error", "KeyError", "'targets'"),
    ("queue_request", {"targets": 99}, "hub_error", "IndexError", "No Such Engine: [99]"),
    ("queue_request", {"targets": "all"}, "hub_error", "IndexError", "No Such Engine: ['all']"),
    ("queue_request", {"targets": []}, "hub_error", "IndexError", "No Engines Registered"),
    ("load_request", {"targets": [1, 2]}, "hub_error", "IndexError", "No Such Engine: [1, 2]"),
    ("result_request", {}, "hub_error", "KeyError", "'msg_ids'"),
    ("result_request", {"msg_ids": ["x"]}, "result_reply", "KeyError", "'No such message: x'"),
    ("resubmit_request", {"msg_ids": ["x"]}, "resubmit_reply", "KeyError",
     "\"No such msg(s): ['x']\""),
    ("purge_request", {"msg_ids": [], "engine_ids": [99]}, "purge_reply", "IndexError",
     "No such engine: 99"),
    ("db_request", {"query": {"a": {"$b": 1}}}, "db_reply", "KeyError", "'$b'"),
])
def test_hub_errors(peer, msg_type, content, reply, ename, evalue):
    answer = peer.ask(msg_type, content)
    assert answer["header"]["msg_type"] == reply
    assert answer["parent_header"]["msg_type"] == msg_type
    assert answer["metadata"] == {}
    content = answer["content"]
    assert (content["status"], content["ename"], content["evalue"]) == ("error", ename, evalue)
    assert isinstance(content["traceback"], list) and content["engine_info"] == {}


def test_resubmitting_what_somebody_else_wrote(cluster):
    """The database is a file that others may write to; a header in it may be anything."""
    cluster.start("--sqlitedb")
    peer = Peer(cluster)
    with contextlib.closing(sqlite3.connect(os.path.join(cluster.profile_dir, "tasks.db"))) as db:
        db.executemany('INSERT INTO "ipython-tasks" (msg_id, header, metadata, content) '
                       "VALUES (?, ?, '{}', '{}')",
                       [("a", "{"), ("b", "[]"), ("c", '{"msg_id": "c\x01"}')])
        db.commit()
    for msg_id in "abc":
        content = peer.ask("resubmit_request", {"msg_ids": [msg_id]})["content"]
        assert content["evalue"] == f"\"No such msg(s): ['{msg_id}']\""
    assert peer.ask("connection_request", {})["content"]["status"] == "ok"
    peer.close()


def test_output_that_is_cut_stays_text(peer):
    kept = 16 << 20  # bytes of one task's stdout
    iopub = peer.connect(zmq.XPUB, peer.engine["iopub"])
    assert iopub.poll(DEADLINE * 1000) and iopub.recv() == b"\x01"
    text = "a" + "é" * (kept // 2)  # the limit falls into the last letter
    peer.session.send(iopub, "stream", content={"name": "stdout", "text": text},
                      parent=peer.session.msg_header("execute_request") | {"msg_id": "m"},
                      ident=b"engine.0.stdout")

    def stdout():
        content = peer.ask("db_request", {"query": {"msg_id": "m"}, "keys": ["stdout"]})["content"]
        return content["records"] and content["records"][0]["stdout"]

    assert wait_until(stdout) == text[:-1]


def test_hub_replies_when_empty(peer):
    assert peer.ask("queue_request", {"targets": None})["content"] == {"status": "ok",
                                                                       "unassigned": 0}
    assert peer.ask("history_request", {})["content"] == {"status": "ok", "history": []}
    assert peer.ask("connection_request", {})["content"]["engines"] == {}


def test_registration_rules(peer):
    first = peer.register("engine-a", id=5)
    assert first["parent_header"] == {} and first["metadata"] == {}
    assert first["content"]["id"] == 5 and first["content"]["hb_period"] == 3000
    info = first["content"]["connection_info"]
    assert {k: peer.engine[k] for k in info} == info
    again = peer.register("engine-a2", id=5)
    assert again["content"]["id"] == 6
    # By another connection: one of the same name is heard only once the first has gone.
    socket = peer.connect(zmq.DEALER, peer.engine["registration"], "another")
    refused = peer.ask("registration_request", {"uuid": "engine-a"}, socket)
    assert refused["content"]["status"] == "error"
    assert refused["content"]["evalue"] == "\"uuid 'engine-a' in use\""
    assert peer.register("engine-b")["content"]["id"] == 8  # the refused one used up a number
    for host, pid, status in ("a", 17, "ok"), ("a", 17, "ok"), ("b", 17, "error"), ("a", 18, "error"):
        content = {"uuid": "engine-d", "px": {"host": host, "pid": pid}}  # one process may ask again
        told = peer.ask("registration_request", content, socket)["content"]
        assert (told["status"], told.get("id", 9)) == (status, 9)
    assert peer.register("engine-c", id="x")["header"]["msg_type"] == "hub_error"


def test_registration_is_told_at_once(peer):
    told = peer.connect(zmq.SUB, peer.client["notification"])
    peer.register("engine-a")
    start = time.monotonic()
    peer.beat("engine-a")
    message = peer.receive(told)
    assert time.monotonic() - start < 2  # not a period of 3 s later
    assert message["header"]["msg_type"] == "registration_notification"
    assert message["content"] == {"id": 0, "uuid": "engine-a"}
    assert message["parent_header"] == {}
    peer.session.send(peer.query, "unregistration_request", content={"id": 0})
    message = peer.receive(told)
    assert message["header"]["msg_type"] == "unregistration_notification"
    assert peer.ask("queue_request", {"targets": None})["content"]["0"] == {
        "queue": 0, "completed": 0, "tasks": 0}


def test_who_subscribes_late_is_told_of_who_came_meanwhile(peer):
    assert peer.ask("connection_request", {})["content"]["engines"] == {}
    early = peer.connect(zmq.SUB, peer.client["notification"])
    peer.register("engine-a")
    peer.beat("engine-a")
    told = peer.receive(early)["content"]
    late = peer.connect(zmq.SUB, peer.client["notification"])
    assert peer.receive(late)["content"] == told


def test_messages_wait_for_a_registered_engine_to_connect(peer):
    told = peer.connect(zmq.SUB, peer.client["notification"])
    peer.register("engine-a")
    peer.beat("engine-a")
    peer.receive(told)
    mux = peer.connect(zmq.DEALER, peer.client["mux"])
    for number in range(3):
        peer.session.send(mux, "apply_request", content={"n": number}, ident=b"engine-a")
    peer.ask("queue_request", {"targets": None})  # a round trip: they have arrived by now
    shell = peer.connect(zmq.ROUTER, peer.engine["mux"], "engine-a")
    for number in range(3):
        assert shell.poll(DEADLINE * 1000)
        idents, frames = peer.session.feed_identities(shell.recv_multipart())
        assert idents[0] == b"mux_out" and len(idents) == 2
        assert peer.session.deserialize(frames)["content"] == {"n": number}


def test_features_are_passed_on(peer):
    told = peer.connect(zmq.SUB, peer.client["notification"])
    peer.register("engine-a", px={"features": ["pickle5", "other"]})
    peer.beat("engine-a")
    assert peer.receive(told)["content"]["px"] == {"features": ["pickle5", "other"]}
    assert peer.ask("connection_request", {})["content"]["px_engines"] == {
        "0": ["pickle5", "other"]}


def test_a_death_tells_which_task_was_running_and_how_far(peer):
    """Of the others all was done, and the results not out, or nothing had begun."""
    task = peer.connect(zmq.DEALER, peer.client["task"])
    for engine, (name, wanted) in enumerate([("engine-a", 7), ("engine-b", 0), ("engine-c", None)]):
        peer.register(name)
        peer.beat(name)
        shell = peer.connect(zmq.ROUTER, peer.engine["task"], name)
        peer.session.send(task, "apply_request", content={})
        msg = peer.receive(shell)
        why = {"cause": "killed", "begun": 7, "running": msg["header"]["msg_id"] if wanted else
               "another" if wanted == 0 else None}
        peer.session.send(peer.query, "unregistration_request", content={"id": engine, "px": why})
        content = peer.receive(task)["content"]
        assert content["ename"] == "EngineError" and content.get("px_begun") == wanted


def test_replays_are_refused(peer):
    frames = peer.session.serialize(peer.session.msg("connection_request", content={}))
    peer.query.send_multipart(frames)
    assert peer.receive(peer.query)["header"]["msg_type"] == "connection_reply"
    peer.query.send_multipart(frames)
    assert peer.ask("history_request", {})["header"]["msg_type"] == "history_reply"


# ---- what cannot be done is answered ------------------------------------------------------------


def ask_raw(peer, socket, metadata, msg_id=None):
    """An apply_request whose metadata no JSON library would write."""
    header = peer.session.msg_header("apply_request")
    header["msg_id"] = msg_id or header["msg_id"]
    frames = [json.dumps(header, default=str).encode(), b"{}", metadata, b"{}"]
    socket.send_multipart([b"<IDS|MSG>", peer.session.sign(frames), *frames, b"buffer"])
    reply = peer.receive(socket)
    assert reply["parent_header"]["msg_id"] == header["msg_id"]
    assert reply["content"]["status"] == "error"
    return reply["content"]["ename"]


def test_requests_that_are_refused_are_answered(peer):
    task = peer.connect(zmq.DEALER, peer.client["task"])
    assert ask_raw(peer, task, b'{"timeout": Infinity}') == "ValueError"
    after = json.dumps({"after": [f"m_{n}" for n in range(100_001)]})
    assert ask_raw(peer, task, after.encode()) == "ValueError"
    assert ask_raw(peer, task, b'{"after": ["nobody"]}') == "InvalidDependency"
    assert ask_raw(peer, task, b'{"a \\"key\\"": 1, "after": ["nobody"]}') == "InvalidDependency"
    broadcast = peer.connect(zmq.DEALER, peer.client["broadcast"])
    assert ask_raw(peer, broadcast, b'{"targets": NaN}') == "ValueError"
    assert ask_raw(peer, broadcast, b'{"targets": 1, "is_coalescing": true}') == "ValueError"
    many = json.dumps({"targets": [[f"nobody-{n}", n] for n in range(3000)], "is_coalescing": True,
                       "x": 100_000 * "x"})
    assert ask_raw(peer, broadcast, many.encode()) == "ValueError"
    long = b'{"targets": [["engine", 0]], "is_coalescing": true}'  # no engine takes an id of 256
    assert ask_raw(peer, broadcast, long, 249 * "x") == "ValueError"
    queue = {"targets": None}
    wait_until(lambda: peer.ask("queue_request", queue)["content"]["unassigned"] == 0)


def test_requests_to_unknown_engines_are_answered(peer):
    mux = peer.connect(zmq.DEALER, peer.client["mux"])
    peer.session.send(mux, "apply_request", content={}, ident=b"nobody")
    reply = peer.receive(mux)
    assert reply["content"]["ename"] == "EngineError" and "nobody" in reply["content"]["evalue"]
    broadcast = peer.connect(zmq.DEALER, peer.client["broadcast"])
    for coalescing in True, False:
        peer.session.send(broadcast, "apply_request", content={}, metadata={
            "targets": [["nobody", 0]], "is_broadcast": True, "is_coalescing": coalescing})
        reply = peer.receive(broadcast)
        assert reply["content"]["ename"] == "EngineError"
        assert reply["metadata"]["is_coalescing"] == coalescing


def join(peer, uuid, told):
    peer.register(uuid)
    peer.beat(uuid)
    assert peer.receive(told)["content"]["uuid"] == uuid


def test_what_a_lost_connection_took_with_it(peer):
    """An engine that asks under its own name had one: what it was sent and does not answer before
    a probe was lost. A task goes out again, and whoever waits for a direct request is told."""
    told = peer.connect(zmq.SUB, peer.client["notification"])
    hub = peer.connect(zmq.DEALER, peer.engine["registration"], "engine-a")
    peer.ask("registration_request", {"uuid": "engine-a"}, hub)
    peer.beat("engine-a")
    assert peer.receive(told)["content"]["uuid"] == "engine-a"
    engine = {name: peer.connect(zmq.ROUTER, peer.engine[name], "engine-a")
              for name in ("task", "mux")}
    client = {name: peer.connect(zmq.DEALER, peer.client[name]) for name in engine}
    sent = {}
    for name in engine:
        peer.session.send(client[name], "apply_request", content={},
                          ident=b"engine-a" if name == "mux" else None)
        sent[name] = peer.receive(engine[name])["header"]["msg_id"]
    wait_until(lambda: peer.ask("queue_request", {"targets": None})["content"]["0"]["queue"] == 1)
    assert peer.ask("connection_request", {}, hub)["content"]["engines"] == {"0": "engine-a"}
    for socket in engine.values():
        assert socket.poll(DEADLINE * 1000), "no probe"
        idents, probe = peer.session.recv(socket, mode=0)
        peer.session.send(socket, "execute_reply", {"status": "ok"}, parent=probe, ident=idents)
    assert peer.receive(engine["task"])["header"]["msg_id"] == sent["task"]
    reply = peer.receive(client["mux"])
    assert reply["content"]["ename"] == "EngineError" and sent["mux"] in reply["content"]["evalue"]
    assert reply["parent_header"]["msg_id"] == sent["mux"]


@pytest.mark.parametrize("name", ["task", "mux"])
@pytest.mark.parametrize("meanwhile", [False, True], ids=["answered-later", "answered-meanwhile"])
@pytest.mark.parametrize("closed", [False, True], ids=["half-open", "closed"])
def test_a_client_that_was_cut_off_gets_its_reply(peer, name, meanwhile, closed):
    """It connects anew and sends its request again: the controller has had that, and owes the reply,
    whether it has heard of the other connection's end or not."""
    told = peer.connect(zmq.SUB, peer.client["notification"])
    join(peer, "engine-a", told)
    engine = peer.connect(zmq.ROUTER, peer.engine[name], "engine-a")
    request = peer.session.serialize(peer.session.msg("apply_request"))
    idents = [b"engine-a"] if name == "mux" else []
    lost = peer.connect(zmq.DEALER, peer.client[name])
    lost.send_multipart([*idents, *request])
    assert engine.poll(DEADLINE * 1000)
    to, msg = peer.session.recv(engine, mode=0)
    if closed:
        lost.close()
    client = peer.connect(zmq.DEALER, peer.client[name])

    def answer():
        peer.session.send(engine, "apply_reply", {"status": "ok"}, parent=msg, ident=to)

    def unfinished():
        state = peer.ask("queue_request", {"targets": None})["content"]["0"]
        return state["queue"] + state["tasks"]

    def received():
        sockets = peer.ask("status_request", {})["content"]["sockets"]
        return next(s["messages"] for s in sockets if (s["name"], s["side"]) == (name, "clients"))

    wait_until(unfinished)
    if meanwhile:
        answer()
        wait_until(lambda: not unfinished())
    client.send_multipart([*idents, b"px.again", *request])
    if not meanwhile:
        wait_until(lambda: received() == 2)
        answer()
    reply = peer.receive(client)
    assert (reply["parent_header"]["msg_id"], reply["content"]) == (msg["header"]["msg_id"], {"status": "ok"})


def test_nobody_goes_by_a_name_of_ours(peer):
    """What an engine answers to such a name would be taken for its answer to the controller."""
    told = peer.connect(zmq.SUB, peer.client["notification"])
    join(peer, "engine-a", told)
    engine = {name: peer.connect(zmq.ROUTER, peer.engine[name], "engine-a") for name in ("task", "mux")}
    names = ["px.held", "px.probe.7", "px.probe.999999999"]
    clients = []
    for number, name in enumerate(names + ["px", "somebody"]):
        for socket in engine:
            clients.append(peer.connect(zmq.DEALER, peer.client[socket], name))
            ident = b"engine-a" if socket == "mux" else None
            peer.session.send(clients[-1], "apply_request", content={"n": number}, ident=ident)
    for socket in engine.values():
        assert socket.poll(DEADLINE * 1000)
        idents, msg = peer.session.recv(socket, mode=0)
        assert msg["content"]["n"] >= len(names)
        peer.session.send(socket, "apply_reply", {"status": "ok"}, parent=msg, ident=idents)
        assert peer.receive(socket)["content"]["n"] >= len(names)

    def refused():
        sockets = peer.ask("status_request", {})["content"]["sockets"]
        return sum(s["malformed"] for s in sockets if s["name"] in engine)

    wait_until(lambda: refused() == 2 * len(names))


def test_an_engine_that_connects_anew_takes_its_place(peer):
    """Its old connection is lost on its own side only: the controller has heard nothing."""
    told = peer.connect(zmq.SUB, peer.client["notification"])
    join(peer, "engine-a", told)
    mux = peer.connect(zmq.DEALER, peer.client["mux"])
    lost = peer.connect(zmq.ROUTER, peer.engine["mux"], "engine-a")
    peer.session.send(mux, "apply_request", content={}, ident=b"engine-a")
    peer.receive(lost)
    lost.setsockopt(zmq.RECONNECT_IVL, -1)
    fresh = peer.connect(zmq.ROUTER, peer.engine["mux"], "engine-a")

    def reached():
        peer.session.send(mux, "apply_request", content={}, ident=b"engine-a")
        return fresh.poll(100)

    wait_until(reached, what="a request by the new connection")


def test_messages_that_an_engine_never_takes_are_answered(peer):
    """Registered, and beating, but its sockets do not connect."""
    told = peer.connect(zmq.SUB, peer.client["notification"])
    join(peer, "deaf", told)
    task = peer.connect(zmq.DEALER, peer.client["task"])
    mux = peer.connect(zmq.DEALER, peer.client["mux"])
    for metadata in {"targets": ["deaf"]}, {}:
        peer.session.send(task, "apply_request", content={}, metadata=metadata)
    peer.session.send(mux, "apply_request", content={}, ident=b"deaf")
    assert peer.receive(task, 30)["content"]["ename"] == "ImpossibleDependency"
    assert peer.receive(mux, 30)["content"]["ename"] == "EngineError"
    queue = {"targets": None}
    wait_until(lambda: peer.ask("queue_request", queue)["content"]["0"]["queue"] == 0)
    shell = peer.connect(zmq.ROUTER, peer.engine["task"], "engine-a")
    join(peer, "engine-a", told)
    assert shell.poll(DEADLINE * 1000)  # what any engine may run goes to another, 10 s later


def test_pure_keeps_tasks_until_there_is_an_engine(cluster):
    cluster.start("--scheme=pure")
    peer = Peer(cluster)
    told = peer.connect(zmq.SUB, peer.client["notification"])
    task = peer.connect(zmq.DEALER, peer.client["task"])
    for number in range(200):
        peer.session.send(task, "apply_request", content={"n": number})
    wait_until(lambda: peer.ask("queue_request", {"targets": None})["content"]["unassigned"])
    refused = peer.ask("abort_request", {"msg_ids": ["any"]})["content"]
    assert refused["evalue"] == "the scheme 'pure' does not know which tasks wait"
    shell = peer.connect(zmq.ROUTER, peer.engine["task"], "engine-a")
    join(peer, "engine-a", told)
    for number in range(200):
        assert shell.poll(DEADLINE * 1000)
        frames = peer.session.feed_identities(shell.recv_multipart())[1]
        assert peer.session.deserialize(frames)["content"] == {"n": number}
    peer.close()


def test_a_heart_that_was_ignored_registers_later(cluster):
    """What has not answered in time is forgotten; its heart goes on, and it asks again."""
    cluster.start("--ping=250", "--IPController.registration_timeout=1")
    peer = Peer(cluster)
    told = peer.connect(zmq.SUB, peer.client["notification"])
    pong = peer.connect(zmq.DEALER, peer.engine["hb_pong"], "late")
    ping = peer.connect(zmq.SUB, peer.engine["hb_ping"])

    def beat_until(condition):
        while not condition():
            if ping.poll(100):
                pong.send(ping.recv())

    hearts = {"hearts": 0}

    def is_heard():
        hearts.update(peer.ask("status_request", {})["content"]["hearts"])
        return hearts["pongs"] > 0

    beat_until(is_heard)  # it beats before it is known
    peer.register("late")
    beat_until(lambda: told.poll(0))
    assert peer.receive(told)["content"]["uuid"] == "late"
    peer.close()


def slow_and_another(peer):
    """(a subscriber to outputs that takes in nothing by itself, another one, an engine's socket)"""
    slow = peer.context.socket(zmq.SUB)
    slow.linger, slow.rcvhwm, slow.rcvbuf = 0, 1, 4096
    slow.setsockopt(zmq.SUBSCRIBE, b"")
    slow.connect(f"tcp://127.0.0.1:{peer.client['iopub']}")
    told = peer.connect(zmq.SUB, peer.client["iopub"])
    iopub = peer.connect(zmq.XPUB, peer.engine["iopub"])
    assert iopub.poll(DEADLINE * 1000) and iopub.recv() == b"\x01"
    return slow, told, iopub


def dropped_outputs(peer):
    sockets = peer.ask("status_request", {})["content"]["sockets"]
    return sum(s["dropped"] for s in sockets if (s["name"], s["side"]) == ("iopub", "clients"))


def test_output_for_a_subscriber_who_does_not_read_is_bounded(cluster):
    cluster.start()
    peer = Peer(cluster)
    slow, told, iopub = slow_and_another(peer)
    iopub.sndhwm = 0
    content = {"name": "stdout", "text": "x" * 1000}

    def publish():
        peer.session.send(iopub, "stream", content=content, ident=b"engine.0.stdout")

    def missed():
        publish()
        return dropped_outputs(peer)

    wait_until(lambda: publish() or slow.poll(10))  # both subscribers are there
    for _ in range(15_000):
        publish()
        while told.poll(0):
            told.recv_multipart()
    assert wait_until(missed) > 0
    assert "subscriber-slow" in cluster.log()
    peer.close()


def test_a_burst_waits_for_a_subscriber_who_reads(peer, cluster):
    """More than is held for him, faster than he can be."""
    slow, reader, iopub = slow_and_another(peer)
    slow.close()
    iopub.sndhwm, reader.rcvtimeo = 0, DEADLINE * 1000
    header = peer.session.msg_header("stream")
    burst = []
    for number in range(30_000):
        header["msg_id"] = f"m{number}"
        parts = [json.dumps(header, default=str).encode(), b"{}", b"{}", b"x" * 500]
        burst.append([b"engine.0.stdout", b"<IDS|MSG>", peer.session.sign(parts), *parts])
    wait_until(lambda: peer.session.send(iopub, "stream", ident=b"hello") or reader.poll(10))
    cluster.controller.send_signal(signal.SIGSTOP)
    for frames in burst:
        iopub.send_multipart(frames, copy=False)
    cluster.controller.send_signal(signal.SIGCONT)

    def take():
        while (frames := reader.recv_multipart())[0] == b"hello":
            pass
        return frames

    for frames in burst:
        assert take() == frames
    assert not dropped_outputs(peer)


def test_large_output_for_a_subscriber_who_does_not_read_is_bounded(cluster):
    """By bytes; another subscriber goes on getting what is small."""
    cluster.start()
    peer = Peer(cluster)
    slow, told, iopub = slow_and_another(peer)
    large = bytes(16 << 20)

    def publish(name, buffers=()):
        peer.session.send(iopub, "data_message", content={}, ident=name, buffers=buffers)

    wait_until(lambda: publish(b"hello") or slow.poll(10))
    for i in range(20):
        publish(b"large", [large])
        wait_until(lambda: told.poll(0) or dropped_outputs(peer))
        while told.poll(0):
            told.recv_multipart()
    assert wait_until(lambda: dropped_outputs(peer)) and "subscriber-slow" in cluster.log()
    with open(f"/proc/{cluster.controller.pid}/status") as status:
        memory = int(status.read().split("VmHWM:")[1].split()[0]) // 1024
    # What is kept for subscribers, and the program. A sanitizer keeps what is freed.
    assert memory < 256 + 150 or "PX_ASAN_OPTIONS" in os.environ, f"{memory} MB"
    publish(b"small")
    wait_until(lambda: told.poll(0) and told.recv_multipart()[0] == b"small")
    slow.close()  # what was held for it is given back, and all is well again
    wait_until(lambda: publish(b"large", [large]) or (told.poll(10) and told.recv_multipart()[0] == b"large"))
    peer.close()


@pytest.mark.parametrize("options", [[], [*KEPT, "--DictDB.record_limit=2"]], ids=["memory", "sqlite"])
def test_replies_for_a_client_who_does_not_read_are_bounded(cluster, options):
    """What is not kept for it is told, and it gets the reply from the database when it asks again."""
    cluster.start("--ping=3000", "--unread=8", *options)
    peer = Peer(cluster)
    told = peer.connect(zmq.SUB, peer.client["notification"])
    join(peer, "engine-a", told)
    engine = peer.connect(zmq.ROUTER, peer.engine["mux"], "engine-a")
    slow = peer.context.socket(zmq.DEALER)
    slow.linger, slow.rcvhwm, slow.rcvbuf = 0, 1, 4096
    slow.connect(f"tcp://127.0.0.1:{peer.client['mux']}")
    requests = {}
    for _ in range(40):
        msg = peer.session.msg("apply_request")
        requests[msg["header"]["msg_id"]] = [b"engine-a", *peer.session.serialize(msg)]
    buffer = bytes(1 << 20)
    for request in requests.values():
        slow.send_multipart(request)
        assert engine.poll(DEADLINE * 1000)
        to, msg = peer.session.recv(engine, mode=0)
        peer.session.send(engine, "apply_reply", {"status": "ok"}, parent=msg, ident=to, buffers=[buffer])
    wait_until(lambda: peer.ask("queue_request", {"targets": None})["content"]["0"]["completed"] == 40)
    wait_until(lambda: "client-slow" in cluster.log())
    status = peer.ask("status_request", {})["content"]
    assert 0 < status["memory"]["unread_bytes"] < 10 << 20
    other = peer.connect(zmq.DEALER, peer.client["mux"])  # who reads is not concerned
    peer.session.send(other, "apply_request", content={}, ident=b"engine-a")
    to, msg = peer.session.recv(engine, mode=0)
    peer.session.send(engine, "apply_reply", {"status": "ok"}, parent=msg, ident=to, buffers=[buffer])
    assert peer.receive(other)["content"] == {"status": "ok"}
    cut = []
    for msg_id in requests:
        reply = peer.receive(slow)
        assert reply["parent_header"]["msg_id"] == msg_id
        if reply["content"]["status"] != "ok":
            assert reply["content"]["ename"] == "RuntimeError" and reply["content"]["px_unread"]
            cut.append(msg_id)
    assert 20 < len(cut) < 40
    for msg_id in cut:
        uuid, *request = requests[msg_id]
        slow.send_multipart([uuid, b"px.again", *request])
        reply = peer.receive(slow)
        assert (reply["parent_header"]["msg_id"], reply["content"]) == (msg_id, {"status": "ok"})
        assert len(reply["buffers"][0]) == len(buffer)
    wait_until(lambda: peer.ask("status_request", {})["content"]["memory"]["unread_bytes"] < 10_000)
    peer.close()


STOPPED_CLIENT = """
import os, select, signal, sys
import phalanx
rc = phalanx.Client(sys.argv[1])
rc.wait_for_engines(1, timeout=60)
def hold(gate):
    import os, select
    while not os.path.exists(gate):
        select.select([], [], [], 0.02)
held = rc[0].apply_async(hold, sys.argv[2])
results = [rc.load_balanced_view().apply_async(bytes, 1 << 20) for _ in range(40)]
results += [rc[0].apply_async(bytes, 1 << 20) for _ in range(40)]
while len(rc.hub_history()) < 81:
    select.select([], [], [], 0.02)
os.kill(os.getpid(), signal.SIGSTOP)
assert [len(result.get(60)) for result in results] == 80 * [1 << 20]
"""


def test_a_client_that_was_stopped_gets_its_results(cluster, tmp_path):
    """More than the controller keeps for it: the database has them."""
    four = pytest.importorskip("four")
    cluster.start("--unread=8", "--sqlitedb", "--DictDB.record_limit=2")
    cluster.add_ours(1)
    gate = tmp_path / "gate"
    client = subprocess.Popen(
        ["/usr/bin/python3", "-c", STOPPED_CLIENT, cluster.security("ipcontroller-client.json"), str(gate)],
        env=four.script_environment(cluster.env), start_new_session=True)
    cluster.engines.append(client)

    def state():
        with open(f"/proc/{client.pid}/stat") as file:
            return file.read().rsplit(")")[1].split()[0]

    wait_until(lambda: state() == "T")
    gate.touch()
    peer = Peer(cluster)
    wait_until(lambda: peer.ask("queue_request", {"targets": None})["content"]["0"]["completed"] == 81)
    wait_until(lambda: "client-slow" in cluster.log())
    client.send_signal(signal.SIGCONT)
    assert client.wait(DEADLINE) == 0
    peer.close()


def test_a_pong_that_is_none_ends_its_connection(peer):
    """It is not signed: what comes there is not kept until it is looked at."""
    pong = peer.connect(zmq.DEALER, peer.engine["hb_pong"], "engine-a")
    lost = pong.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    pong.send(b"x" * 100_000)
    assert lost.poll(DEADLINE * 1000)


def test_ids_that_engines_ask_for_are_bounded(peer):
    assert peer.register("engine-a", id=2**31 - 2)["content"]["id"] == 0
    assert peer.register("engine-b")["content"]["id"] == 1


def test_registrations_that_stall_together_are_one_line(cluster):
    """Of each sweep; and the ids are free again."""
    cluster.start("--IPController.registration_timeout=3")
    peer = Peer(cluster)
    for number in range(300):
        content = {"uuid": f"ghost-{number}", "id": 1000 + number}
        peer.session.send(peer.query, "registration_request", content=content)
    assert [peer.receive(peer.query)["content"]["id"] for _ in range(300)] == list(range(1000, 1300))
    assert peer.register("another", id=1000)["content"]["id"] == 1300
    peer.session.send(peer.query, "unregistration_request", content={"id": 1001})
    assert peer.register("ghost-1", id=1001)["content"]["id"] == 1001
    wait_until(lambda: peer.ask("status_request", {})["content"]["registering"] == 0)
    assert peer.register("yet-another", id=1000)["content"]["id"] == 1000
    assert 0 < cluster.log().count("registration-stalled") < 30
    peer.close()


def test_an_engine_that_is_named_many_times_is_listed_once(peer):
    told = peer.connect(zmq.SUB, peer.client["notification"])
    join(peer, "deaf", told)
    mux = peer.connect(zmq.DEALER, peer.client["mux"])
    for _ in range(2000):
        peer.session.send(mux, "apply_request", content={}, ident=b"deaf")
    queue = {"targets": [0] * 50_000, "verbose": False}
    wait_until(lambda: peer.ask("queue_request", queue)["content"]["0"]["queue"] == 2000)
    assert len(peer.ask("queue_request", dict(queue, verbose=True))["content"]["0"]["queue"]) == 2000


def test_files_of_another_controller_stay(cluster):
    cluster.start()
    first = cluster.controller
    cluster.start()
    files = os.listdir(cluster.security())
    first.terminate()
    assert first.wait(10) == 0
    assert os.listdir(cluster.security()) == files
    assert cluster.client().ids == []


def test_coalesced_replies_that_no_message_can_hold(peer):
    told = peer.connect(zmq.SUB, peer.client["notification"])
    engines = {}
    for uuid in "engine-a", "engine-b":
        join(peer, uuid, told)
        engines[uuid] = peer.context.socket(zmq.ROUTER)
        engines[uuid].linger = 0
        engines[uuid].setsockopt(zmq.IDENTITY, uuid.encode())
        engines[uuid].connect(f"tcp://127.0.0.1:{peer.engine['broadcast'][0]}")
    broadcast = peer.connect(zmq.DEALER, peer.client["broadcast"])
    peer.session.send(broadcast, "apply_request", content={}, metadata={
        "targets": [[uuid, n] for n, uuid in enumerate(engines)], "is_broadcast": True,
        "is_coalescing": True})
    for socket in engines.values():
        assert socket.poll(DEADLINE * 1000)
        idents, frames = peer.session.feed_identities(socket.recv_multipart())
        request = peer.session.deserialize(frames)
        peer.session.send(socket, "apply_reply", content={"status": "ok"}, ident=idents,
                          parent=request, metadata=request["metadata"], buffers=[b""] * 140_000)
    content = peer.receive(broadcast)["content"]
    assert content["ename"] == "ValueError" and "without coalescing" in content["evalue"]


def test_results_that_no_message_can_hold(cluster):
    cluster.start("--sqlitedb")
    peer = Peer(cluster)
    buffers = pickle.dumps([b"%d" % n for n in range(140_000)])
    with contextlib.closing(sqlite3.connect(os.path.join(cluster.profile_dir, "tasks.db"))) as db:
        db.executemany('INSERT INTO "ipython-tasks" (msg_id, header, metadata, content, '
                       "result_header, result_metadata, result_content, result_buffers) "
                       "VALUES (?, '{}', '{}', '{}', '{}', '{}', '{}', ?)",
                       [("a", buffers), ("b", buffers)])
        db.commit()
    answer = peer.ask("result_request", {"msg_ids": ["a", "b"]})["content"]
    assert answer["ename"] == "ValueError" and "fewer tasks" in answer["evalue"]
    assert peer.ask("result_request", {"msg_ids": ["a"]})["content"]["completed"] == ["a"]
    peer.close()


# ---- hostile peers --------------------------------------------------------------------------------------------


def test_garbage_everywhere_is_dropped(cluster):
    cluster.start()
    cluster.add_engines(1)
    with open(cluster.security("ipcontroller-client.json")) as file:
        client = json.load(file)
    with open(cluster.security("ipcontroller-engine.json")) as file:
        engine = json.load(file)
    ports = [client[k] for k in ("registration", "control", "mux", "task", "broadcast")]
    ports += [engine[k] for k in ("control", "mux", "task", "hb_pong")] + engine["broadcast"]
    messages = [[b""], [b"x"], [b"a", b"b"], [b"<IDS|MSG>"], [b"<IDS|MSG>", b"", b"{}"],
                [b"e", b"<IDS|MSG>", b"0" * 64, b"{}", b"{}", b"{}", b"{}"],
                [b"<IDS|MSG>", b"", b"{" * 100000, b"{}", b"{}", b"{}"], [b"\xff" * 300] * 50]
    context = zmq.Context()
    for port in ports:
        with context.socket(zmq.DEALER) as socket:
            socket.linger = 1000
            socket.connect(f"tcp://127.0.0.1:{port}")
            for message in messages:
                socket.send_multipart(message)
    with context.socket(zmq.PUB) as socket:
        socket.linger = 1000
        socket.connect(f"tcp://127.0.0.1:{engine['iopub']}")
        for message in messages:
            socket.send_multipart(message)
    context.term()
    rc = cluster.client(1)
    assert rc[:].apply_sync(lambda: 1) == [1]
    assert rc.load_balanced_view().map_sync(lambda x: x, range(5)) == list(range(5))
    assert cluster.controller.poll() is None


def test_a_task_that_no_engine_answers_takes_no_engine(cluster):
    cluster.start()
    cluster.add_ours(1)
    rc = cluster.client(1)
    peer = Peer(cluster)
    task = peer.connect(zmq.DEALER, peer.client["task"])
    header = json.dumps(peer.session.msg_header("apply_request"), default=str).encode()
    frames = [header.replace(b'"username": "', b'"username": "\xff'), b"{}", b"{}", b"{}"]
    task.send_multipart([b"<IDS|MSG>", peer.session.sign(frames), *frames])
    reply = peer.receive(task)
    assert reply["content"]["evalue"] == "the header is not UTF-8"
    assert reply["parent_header"]["msg_id"] == json.loads(header)["msg_id"]
    peer.session.send(task, "frobnicate_request", content={})
    reply = peer.receive(task)
    assert reply["content"]["ename"] == "ValueError" and "apply_request" in reply["content"]["evalue"]
    assert rc.load_balanced_view().apply_async(lambda: 1).get(DEADLINE) == 1
    peer.close()


NONSENSE = [None, True, -1, 0, 1e308, 2**70, "", "x", "all", "\ud7ff\0", "x" * 3000, [], [[]], [None],
            ["x", 0, {}], {}, {"a": {"b": []}}, {"$in": 3}, {"dependencies": "x"}, {"": None},
            [["engine-a", 0]], [["engine-a", 10**30]], {"$lt": {}}, {"all": [], "success": 0}]
KEYS = ["uuid", "id", "targets", "verbose", "msg_ids", "engine_ids", "query", "keys", "status_only",
        "px", "after", "follow", "timeout", "retries", "label", "is_broadcast", "is_coalescing",
        "original_msg_id", "px_pickle", "status", "engine", "dependencies_met", "started", "name",
        "text", "code", "data", "restart", "owner", "seen", "retire", "idle_s"]
REQUESTS = ["connection_request", "registration_request", "unregistration_request", "queue_request",
            "load_request", "result_request", "history_request", "db_request", "purge_request",
            "resubmit_request", "why_request", "status_request", "adapt_request",
            "become_dask_request"]
ROUTED = ["apply_request", "execute_request", "apply_reply", "execute_reply", "stream", "status",
          "shutdown_reply", "execute_input", "display_data", "abort_request", "comm_msg"]


def test_signed_nonsense_is_survived(peer):
    """By who has the key: each socket, each kind of message, whatever in its four parts."""
    chance = random.Random(7)

    def thing():
        return {key: chance.choice(NONSENSE) for key in chance.sample(KEYS, chance.randint(0, 8))}

    def say(socket, msg_type, *idents):
        msg = peer.session.msg(msg_type, thing())
        msg["metadata"], msg["parent_header"] = thing(), chance.choice([{}, {"msg_id": "m"}, thing()])
        if chance.random() < 0.2:
            msg["header"][chance.choice(list(msg["header"]))] = chance.choice(NONSENSE)
        peer.session.send(socket, msg, ident=list(idents), buffers=[b"b"] * chance.randint(0, 3))

    told = peer.connect(zmq.SUB, peer.client["notification"])
    assert peer.register("engine-a")["content"]["id"] == 0
    ping = peer.connect(zmq.SUB, peer.engine["hb_ping"])
    pong = peer.connect(zmq.DEALER, peer.engine["hb_pong"], "engine-a")
    pong.send(ping.recv())
    assert peer.receive(told)["header"]["msg_type"] == "registration_notification"
    clients = [peer.connect(zmq.DEALER, peer.client[k]) for k in ("task", "mux", "control", "broadcast")]
    engines = [peer.connect(zmq.DEALER, port, "engine-a") for port in (
        peer.engine["task"], peer.engine["mux"], peer.engine["control"], *peer.engine["broadcast"])]
    iopub = peer.connect(zmq.PUB, peer.engine["iopub"])
    for _ in range(100):
        say(peer.query, chance.choice(REQUESTS))
        for socket in clients:
            say(socket, chance.choice(ROUTED), *chance.choice([[], [b"engine-a"], [b"nobody"]]))
        for socket in engines:
            say(socket, chance.choice(ROUTED), *chance.choice([[b"c"], [b"c", b"d"], []]))
        say(iopub, chance.choice(ROUTED), b"engine.0.stdout")
    last = peer.session.msg("queue_request", {"targets": None})
    peer.session.send(peer.query, last)
    while True:
        reply = peer.receive(peer.query)
        if reply["parent_header"].get("msg_id") == last["header"]["msg_id"]:
            break
        assert reply["content"]["status"] in ("ok", "error")
    assert reply["content"]["status"] == "ok" and "0" in reply["content"]


def test_wrong_key_gets_no_answer(cluster):
    cluster.start()
    path = cluster.security("ipcontroller-client.json")
    wrong = cluster.security("wrong.json")
    with open(path) as file:
        connection = json.load(file)
    connection["key"] = "not-the-key"
    with open(wrong, "w") as file:
        json.dump(connection, file)
    with pytest.raises((TimeoutError, ipp.error.TimeoutError)):
        ipp.Client(wrong, timeout=1)
    assert cluster.client().ids == []
