# SPDX-License-Identifier: BSD-3-Clause
"""Engines that come while tasks wait, and go when they have nothing to do."""
import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess

import pytest
from conftest import Cluster, processes_with, stock_controller, wait_for
from test_queues import slurm, slurm_daemons, supervisor  # noqa: F401: fixtures

pytestmark = pytest.mark.usefixtures("no_leftovers")
phalanx = pytest.importorskip("phalanx")
from phalanx.deadlines import wait_until  # noqa: E402

__name__ = "__main__"  # functions travel as code
SOON = "--adapt-idle=1"


@pytest.fixture
def adaptive(run, ipython_dir):
    """adaptive("0:3", *options) starts a cluster whose engines come and go."""
    where = Cluster(ipython_dir, "default", "")

    def start(limits, *options, command="start"):
        run("pxcluster", command, f"--adapt={limits}", SOON, "--daemonize", *options)
        return where

    yield start
    run("pxcluster", "stop", check=False)


@pytest.fixture
def connect():
    """connect(where) gives a client; all are closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda where: stack.enter_context(phalanx.Client(str(where.client_file)))


@pytest.fixture
def gate(tmp_path):
    """Tasks `wait` for it to be `opened`, and leave their pids in a directory as they begin."""

    class Gate:
        begun, file = tmp_path / "begun", tmp_path / "open"

        def open(self):
            self.file.touch()

        def pids(self):
            return {int(name.split("-")[0]) for name in os.listdir(self.begun)}

        def wait(self):
            begun, file = str(self.begun), str(self.file)

            def wait(i):
                import os
                import threading
                import time

                open(os.path.join(begun, "%d-%d" % (os.getpid(), i)), "w").close()
                end = time.monotonic() + 60
                while not os.path.exists(file) and time.monotonic() < end:
                    threading.Event().wait(0.01)
                return i

            return wait

    Gate.begun.mkdir()
    gate = Gate()
    yield gate
    gate.open()


def status(run):
    return json.loads(run("pxcluster", "status", "--json").stdout)


def is_empty(rc):
    return lambda: not rc.ids


# ---- growing and shrinking ---------------------------------------------------------------


def test_a_burst_grows_the_cluster_and_its_end_shrinks_it(adaptive, connect, gate, run):
    where = adaptive("0:3")
    assert "adapts 0 to 3" in run("pxcluster", "status").stdout
    rc = connect(where)
    assert rc.ids == []
    result = rc.load_balanced_view().map_async(gate.wait(), range(40), chunksize=1)
    wait_for(lambda: len(gate.pids()) == 3, what="three engines at work")
    told = status(run)
    assert told["tasks"]["waiting"] == 37 and told["tasks"]["running"] == 3
    assert [(a["min"], a["max"]) for a in told["adapt"]] == [(0, 3)]
    wait_for(lambda: status(run)["adapt"][0]["joining"] == 0, what="all to have joined")
    gate.open()
    assert result.get(timeout=60) == list(range(40))
    assert len(gate.pids()) == 3  # never more
    wait_for(is_empty(rc), what="no engine")
    told = status(run)
    assert told["deaths"] == [] and told["tasks"]["failed"] == 0
    wait_for(lambda: where.state()["engines"]["sets"] == {}, what="an empty file")
    assert rc.load_balanced_view().apply_sync(abs, -7) == 7  # which waits for an engine
    assert "died" not in where.logs() and "not joined" not in where.logs()


def test_tasks_are_taken_back_where_no_engine_is(adaptive, connect, run):
    rc = connect(adaptive("0:1", "--engines=slurm", "--launch-cmd=no-such-program"))
    view = rc.load_balanced_view()
    results = [view.apply_async(abs, -1) for _ in range(5)]
    results[0].abort()
    assert all(result.cancel() for result in results[1:]) and results[0].cancelled()
    assert status(run)["tasks"]["waiting"] == 0


def test_the_least_stay_and_are_replaced(adaptive, connect, gate, run):
    where = adaptive("1:3")
    rc = connect(where)
    first, = rc.ids
    result = rc.load_balanced_view().map_async(gate.wait(), range(9), chunksize=1)
    wait_for(lambda: len(gate.pids()) == 3, what="three engines at work")
    gate.open()
    assert result.get(timeout=60) == list(range(9))
    wait_for(lambda: len(rc.ids) == 1, what="one engine")
    left, = rc.ids
    assert rc[left].apply_sync(abs, -1) == 1  # a second has passed for all
    os.kill(rc[left].apply_sync(os.getpid), signal.SIGKILL)
    wait_for(lambda: rc.ids and rc.ids != [left], what="another engine")
    assert [death["id"] for death in status(run)["deaths"]] == [left]
    assert rc[:].apply_sync(abs, -2) == [2]


def test_an_engine_that_dies_is_replaced_while_tasks_wait(adaptive, connect, gate):
    rc = connect(adaptive("0:2"))
    view = rc.load_balanced_view(retries=1)
    result = view.map_async(gate.wait(), range(6), chunksize=1)
    before = wait_for(lambda: len(gate.pids()) == 2 and gate.pids(), what="two engines at work")
    os.kill(min(before), signal.SIGKILL)
    wait_for(lambda: len(gate.pids()) == 3, what="a third engine")
    gate.open()
    assert result.get(timeout=60) == list(range(6))


@pytest.mark.parametrize("kind", ["direct", "broadcast"])
def test_work_that_is_no_task_keeps_an_engine(adaptive, connect, gate, kind):
    """Of two engines one waits in a cell, and stays; it goes when that has ended."""
    rc = connect(adaptive("0:2"))
    tasks = rc.load_balanced_view().map_async(gate.wait(), range(2), chunksize=1)
    wait_for(lambda: len(gate.pids()) == 2, what="two engines at work")
    busy, other = wait_for(lambda: len(rc.ids) == 2 and rc.ids, what="the client to know of both")
    view = rc[busy] if kind == "direct" else rc.broadcast_view([busy])
    late = gate.file.with_name("late")
    cell = view.execute(
        "import os, threading\nwhile not os.path.exists(%r): threading.Event().wait(0.01)"
        % str(late), block=False)
    gate.open()
    assert tasks.get(timeout=60) == [0, 1]
    wait_for(lambda: rc.ids == [busy], what="the other's end")
    late.touch()
    cell.get(timeout=30)
    wait_for(is_empty(rc), what="no engine")


def test_signals_reach_those_that_came(adaptive, connect, tmp_path):
    def wait(ready):
        import signal
        import threading

        came = threading.Event()
        signal.signal(signal.SIGUSR1, lambda *_: came.set())
        open(ready, "w").close()
        return came.wait(30)

    where, ready = adaptive("0:1"), tmp_path / "ready"
    result = connect(where).load_balanced_view().apply_async(wait, str(ready))
    wait_for(ready.exists, what="an engine that waits for it")
    pid = supervisor(where)  # which may not know of the engine yet
    wait_for(lambda: result.ready() or os.kill(pid, signal.SIGUSR1), what="the signal's arrival")
    assert result.get() is True


def test_engines_of_others_are_left_alone(adaptive, connect, gate, run):
    where = adaptive("0:2")
    run("pxcluster", "engines", "-n1", "--daemonize")
    rc = connect(where)
    stays = rc.ids
    result = rc.load_balanced_view().map_async(gate.wait(), range(6), chunksize=1)
    wait_for(lambda: len(gate.pids()) == 3, what="two engines beside it at work")
    gate.open()
    assert result.get(timeout=60) == list(range(6))
    wait_for(lambda: rc.ids == stays, what="the end of all but that one")
    assert rc[:].apply_sync(abs, -1) == [1]


def test_tasks_at_the_edge_are_not_lost(adaptive, connect):
    """Each round submits when the engine is about to retire, or has just been told to."""
    rc = connect(adaptive("0:1"))
    view = rc.load_balanced_view()
    pids = set()
    for edge_ms in range(940, 1100, 20):
        pids.add(view.apply_async(os.getpid).get(timeout=30))
        with contextlib.suppress(phalanx.TimeoutError):
            wait_until(is_empty(rc), edge_ms / 1000)
        assert view.apply_async(abs, -edge_ms).get(timeout=30) == edge_ms
    assert len(pids) > 1


# ---- launches ----------------------------------------------------------------------------


def test_launches_that_fail_are_tried_again_less_and_less(adaptive, connect):
    where = adaptive("0:2", "--engine-arg=--nonsense")
    connect(where).load_balanced_view().map_async(abs, [-1, -2, -3], chunksize=1)
    tried = re.compile(r"2 of 2 engines have not joined; the next try is in (\d+) s")
    wait_for(lambda: len(tried.findall(where.logs())) == 3, what="three tries")
    assert tried.findall(where.logs()) == ["1", "2", "4"]
    assert "--nonsense" in where.logs()


def test_a_program_that_is_not_there(adaptive, connect):
    where = adaptive("0:2", "--engines=slurm", "--launch-cmd=no-such-program")
    connect(where).load_balanced_view().apply_async(abs, -1)
    wait_for(lambda: "the next try is in 2 s" in where.logs(), what="two tries")
    assert where.logs().count("no-such-program") == 2


def test_stopped_while_it_grows(adaptive, connect, run):
    where = adaptive("0:4")
    rc = connect(where)
    rc.load_balanced_view().map_async(abs, range(20), chunksize=1)
    wait_for(lambda: "engines.asked" in where.logs(), what="engines that were asked for")
    run("pxcluster", "stop")
    assert not where.cluster_file.exists()


def test_slurm(slurm, adaptive, connect, gate, run):  # noqa: F811
    """A queue that lets nobody in is asked once; then engines come, and their jobs end with them."""
    where = adaptive("0:2", "--engines=slurm", "--launch-arg=--hold")
    rc = connect(where)
    result = rc.load_balanced_view().map_async(gate.wait(), range(8), chunksize=1)
    wait_for(lambda: "2 waiting to join" in run("pxcluster", "status").stdout, what="two asked for")
    jobs = slurm.say("squeue", "-h", "--array", "-o", "%A %T").splitlines()
    assert len(jobs) == 2 and all("PENDING" in job for job in jobs)
    more = rc.load_balanced_view().map_async(abs, range(8), chunksize=1)  # asks for no more
    wait_for(lambda: status(run)["tasks"]["waiting"] == 16)
    state, = where.state()["engines"]["sets"].values()
    slurm.say("scontrol", "release", state["job_id"])
    wait_for(lambda: len(gate.pids()) == 2, what="two engines at work")
    gate.open()
    assert result.get(timeout=60) == list(range(8)) == more.get(timeout=60)
    assert where.logs().count("engines.asked") == 1
    wait_for(is_empty(rc), what="no engine")
    wait_for(lambda: not slurm.jobs(), what="no job")
    wait_for(lambda: where.state()["engines"]["sets"] == {}, what="an empty file")
    assert "not joined" not in where.logs()


# ---- what the controller decides ---------------------------------------------------------


@pytest.fixture
def by_name(run, env, px_bin, tmp_path, connect, ipython_dir):
    """(client, log of its two engines, ask) of a cluster whose engines are those of "me"."""
    run("pxcluster", "start", "-n0", "--daemonize")
    log = tmp_path / "engines.log"
    with open(log, "w") as file:
        engines = subprocess.Popen([px_bin / "pxengine", "-n2", "--adapt=me:1"], env=env, stderr=file)
    rc = connect(Cluster(ipython_dir, "default", ""))
    rc.wait_for_engines(2, timeout=60)

    def ask(**content):
        """adapt_request; None where there is nothing to tell."""
        with contextlib.suppress(TimeoutError):
            return json.loads(rc._raw.query("adapt_request", json.dumps(content), 2.5))

    yield rc, log, ask
    engines.terminate()
    engines.wait()
    run("pxcluster", "stop")


def test_who_may_retire_whom(by_name, gate):
    rc, log, ask = by_name
    told = ask(owner="me")
    assert sorted(engine[:2] for engine in told["engines"]) == [[0, 1], [1, 1]]
    assert told["status"] == "ok" and told["waiting"] == 0
    assert ask(owner="me", seen=told["serial"]) is None  # nothing is otherwise
    assert ask(owner="m")["engines"] == []
    assert ask(owner="other", retire=[0, 1])["engines"] == []
    assert ask(owner="me", retire=[0, 1], idle_s=3600, seen=told["serial"]) is None
    assert ask(owner="me", retire=["x", -1, 10**12, None, 7], seen=told["serial"]) is None
    view = rc.load_balanced_view(targets=0)
    first = view.apply_async(gate.wait(), 0)
    with view.temp_flags(follow=[first]):
        second = view.apply_async(abs, -2)
    wait_for(gate.pids, what="a task at work")
    ask(owner="me", retire=[0, 1])  # one is busy, and nobody retires while a task is to follow another
    assert rc.ids == [0, 1]
    gate.open()
    assert first.get(timeout=60) == 0 and second.get(timeout=60) == 2
    ask(owner="me", retire=[0])
    wait_for(lambda: rc.ids == [1], what="the end of one")
    rc[1].apply_sync(phalanx.bind_kernel)
    ask(owner="me", retire=[1])
    wait_for(lambda: 'kept why="it is a kernel besides"' in log.read_text(), what="a refusal")
    assert rc[1].apply_sync(abs, -1) == 1


@pytest.mark.parametrize("content", [{}, {"owner": 3}, {"owner": ""}, {"owner": "x" * 64}])
def test_an_owner_without_a_name(by_name, content):
    assert by_name[2](**content)["evalue"] == "the owner has no name"


def test_too_many_owners(by_name):
    for number in range(64):
        assert by_name[2](owner=f"o{number}")["status"] == "ok"
    assert by_name[2](owner="one more")["evalue"] == "too many start engines here"


# ---- around it ---------------------------------------------------------------------------


@pytest.mark.stock
def test_stock_client(adaptive):
    ipp = pytest.importorskip("ipyparallel")
    where = adaptive("0:2")
    with ipp.Client(str(where.client_file)) as rc:
        view = rc.load_balanced_view()
        assert view.map_sync(lambda x: x * x, range(4)) == [0, 1, 4, 9]
        wait_for(is_empty(rc), what="no engine")
        assert view.apply_async(abs, -1).get(timeout=60) == 1


def test_no_engine_and_what_to_do(adaptive, connect):
    rc = connect(adaptive("0:1"))
    for call in (lambda: rc[:], lambda: rc.direct_view().apply(abs, 1),
                 lambda: rc.broadcast_view().execute("1")):
        with pytest.raises(phalanx.NoEnginesRegistered, match="load-balanced tasks start those"):
            call()
    assert list(rc.load_balanced_view().imap(abs, [-1, 2])) == [1, 2]


@pytest.mark.parametrize("options, words", [
    (["--adapt=5:2"], "5 engines at least are more than 2 at most"),
    (["--adapt=x"], "takes MIN:MAX engines, as in 0:8, not 'x'"),
    (["--adapt=0:0"], "takes MIN:MAX engines"),
    (["--adapt=0:4", "-n2"], "and so does -n"),
    (["--adapt-idle=5"], "--adapt-idle needs --adapt"),
    (["--adapt=0:4", "--adapt-idle=0"], "--adapt-idle"),
    (["--adapt=0:4", "--engines=mpi"], "--adapt is for --engines=local, slurm"),
    (["--adapt=0:4", "--engines=ssh", "--host=a"], "--adapt is for --engines=local, slurm"),
    (["--adapt=0:4", "--engine-cmd=ipengine"], "this package's own controller and engines"),
    (["--adapt=0:4", "--controller-cmd=ipcontroller"], "this package's own controller and"),
])
def test_misuse_is_told_in_a_line(run, options, words):
    done = run("pxcluster", "start", *options, check=False)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1


def test_a_scheme_that_keeps_no_books(run, ipython_dir):
    run("pxcluster", "start", "--adapt=0:2", "--daemonize", "--", "--scheme=pure")
    where = Cluster(ipython_dir, "default", "")
    wait_for(lambda: "the scheme 'pure' does not know which tasks wait" in where.logs())
    assert "engines start while tasks wait" not in where.logs()
    run("pxcluster", "stop")


@pytest.mark.stock
@pytest.mark.parametrize("least, status", [(0, 1), (1, 0)])
def test_a_controller_that_knows_no_such_request(run, env, ipython_dir, least, status):
    pytest.importorskip("ipyparallel")
    where = Cluster(ipython_dir, "default", "")
    controller = subprocess.Popen(stock_controller(), env=env, stderr=subprocess.DEVNULL)
    try:
        wait_for(where.client_file.exists, 60, "the controller's files")
        done = run("pxcluster", "engines", f"--adapt={least}:2", "--daemonize", check=False)
        assert done.returncode == status
        assert "stays as it is: \"Bad Message Type: 'adapt_request'\"" in done.stderr
        assert "engines start while tasks wait" not in done.stderr
    finally:
        run("pxcluster", "stop", check=False)
        controller.terminate()
        controller.wait()


def written(where):
    """(tasks, those of them that are with an engine) in the database."""
    with contextlib.closing(sqlite3.connect(where.profile_dir / "tasks.db")) as db:
        return db.execute('SELECT count(*), count(engine_uuid) FROM "ipython-tasks"').fetchone()


@pytest.fixture
def by_hand(env, px_bin, ipython_dir):
    """by_hand() starts a pxcontroller that can be restored."""
    started = []

    def start():
        words = [px_bin / "pxcontroller", "--restore", "--sqlitedb", "--SQLiteDB.commit_ms=0"]
        started.append(subprocess.Popen(words, env=env))
        return started[-1]

    yield start
    for controller in started:
        controller.terminate()
        controller.wait()


def test_a_controller_that_is_killed_and_restored(by_hand, adaptive, connect, gate, ipython_dir):
    """Engines of a pxcluster that joined a controller: they come and go with the next one as well."""
    where, controller = Cluster(ipython_dir, "default", ""), by_hand()
    wait_for(where.client_file.exists, what="the controller's files")
    adaptive("0:2", command="engines")
    rc = connect(where)
    result = rc.load_balanced_view().map_async(gate.wait(), range(5), chunksize=1)
    wait_for(lambda: len(gate.pids()) == 2, what="two engines at work")
    wait_for(lambda: written(where) == (5, 2), what="all tasks in the database")
    known = where.profile_dir / "log" / "engines.json"
    wait_for(lambda: known.exists() and len(json.loads(known.read_text())["engines"]) == 2,
             what="both written down")
    controller.kill()
    controller.wait()
    by_hand()
    gate.open()
    assert result.get(timeout=60) == list(range(5))
    wait_for(is_empty(rc), what="no engine")
    assert rc.load_balanced_view().apply_async(abs, -4).get(timeout=60) == 4
    for pid, words in processes_with(f"IPYTHONDIR={ipython_dir}").items():
        if "pxcluster engines" in words:
            with contextlib.suppress(ProcessLookupError):  # the first one's helper
                os.kill(pid, signal.SIGTERM)


def test_from_python(env, gate):
    cluster = phalanx.Cluster().adapt(1, 2, idle=1)
    with cluster as rc:
        assert len(rc.ids) == 1
        result = rc.load_balanced_view().map_async(gate.wait(), range(4), chunksize=1)
        wait_for(lambda: len(gate.pids()) == 2, what="two engines at work")
        gate.open()
        assert result.get(timeout=60) == list(range(4))
        with pytest.raises(RuntimeError, match="adapts already, with --adapt=1:2"):
            cluster.adapt(0, 3)
    other = phalanx.Cluster()
    other.start_controller_sync()
    with other.connect_client_sync() as rc:
        other.adapt(maximum=1, idle=1)
        assert rc.load_balanced_view().apply_sync(abs, -1) == 1
        wait_for(is_empty(rc), what="no engine")
        wait_for(lambda: not other.engines, what="no process of one")
        other.restart_engines_sync()
        assert not other.engines
    other.stop_cluster_sync()
    with pytest.raises(RuntimeError, match="5 engines at least are more than 2 at most"):
        phalanx.Cluster().adapt(5, 2).start_cluster_sync()


NOTEBOOK = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance(colors="NoColor")
for cell in ("%load_ext phalanx", "%pxcluster start --adapt 0:2 --adapt-idle=1", "%px 1",
             "%pxcluster status", "import phalanx; view = phalanx.Client().load_balanced_view()",
             "print('seven', view.apply_sync(abs, -7))", "%pxcluster restart", "%pxcluster status",
             "%pxcluster stop", "%pxcluster start --adapt=5:2"):
    shell.run_cell(cell)
"""


@pytest.mark.skipif("PX_SANITIZE" in os.environ, reason="loads the package into a python3 of its own")
def test_from_a_notebook(run):
    said = run("/usr/bin/python3", "-c", NOTEBOOK).stdout
    assert said.count("Starting a cluster that adapts, which ends with this session.") == 3
    assert ("the cluster has no engines; '%pxcluster engines +4' starts some, and load-balanced "
            "tasks those that they need") in said
    assert said.count("0 engines, 0 to 2 as there are tasks, started here") == 2
    assert "seven 7\n" in said
    assert "--adapt: 5 engines at least are more than 2 at most" in said
