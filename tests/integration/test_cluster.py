# SPDX-License-Identifier: BSD-3-Clause
"""phalanx.Cluster: clusters started, changed and stopped from Python."""
import asyncio
import ctypes
import os
import signal
import subprocess
import threading
import time
import warnings

import pytest

from conftest import PYTHON, alive, processes_with, wait_for
from four import script_environment

phalanx = pytest.importorskip("phalanx")
pytestmark = pytest.mark.usefixtures("px_bin", "env", "no_leftovers")


def pids(rc):
    return rc[:].apply_sync(os.getpid)


def test_a_cluster_for_the_length_of_a_block(ipython_dir):
    with phalanx.Cluster(n=2) as rc:
        cluster = rc.cluster
        assert rc.ids == [0, 1] and cluster.n == 2
        engines, = cluster.engines.values()
        assert sorted(pids(rc)) == sorted(engines.pids)
        assert (engines.n, engines.state, cluster.controller.state) == (2, "running", "running")
        assert "registration with id 1" in engines.get_output()
        assert "listening" in cluster.controller.get_output()
        assert cluster.cluster_file.startswith(str(ipython_dir))
        assert "profile='default'" in repr(cluster) and "engine_sets=" in repr(cluster)
        again = phalanx.Cluster.from_file(cluster.cluster_file)
        assert again.cluster_id == cluster.cluster_id and list(again.engines) == list(cluster.engines)
        assert not again.shutdown_atexit
        known = phalanx.ClusterManager().load_clusters()
        assert [*known] == [f"default:{cluster.cluster_id}"]
        with pytest.raises(RuntimeError, match="running already"):
            cluster.start_controller_sync()
    assert not cluster.engines and cluster.controller is None
    assert "<running>" not in repr(cluster) and not phalanx.ClusterManager().load_clusters()
    cluster.stop_cluster_sync()  # again
    with pytest.raises(FileNotFoundError):
        phalanx.Cluster.from_file(cluster.cluster_file)


def test_sets_of_engines():
    class LocalControllerLauncher:
        pass

    class Fair(LocalControllerLauncher):  # as programs make their own from ipyparallel's
        controller_args = ["--scheme=lru"]

    cluster = phalanx.Cluster(cluster_id="sets", profile="lab", controller=Fair)
    cluster.start_controller_sync()
    assert cluster.engines == {} and "engine_sets" not in repr(cluster)
    assert cluster.engine_set is None
    with cluster.connect_client_sync() as rc:
        assert rc.ids == []
        with pytest.raises(phalanx.NoEnginesRegistered, match="wait_for_engines"):
            rc[:]
        first = cluster.start_engines_sync(1)
        assert cluster.engine_set.engine_set_id == first and cluster.engine_set.n == 1
        assert cluster.start_engines_sync(2, engine_set_id="mine") == "mine"
        assert list(cluster.engines) == [first, "mine"] or list(cluster.engines) == ["mine", first]
        rc.wait_for_engines(timeout=60)  # as many as the sets have
        assert len(rc) == 3
        before = cluster.engines["mine"].pids
        cluster.restart_engines_sync("mine")
        assert not set(before) & set(cluster.engines["mine"].pids)
        rc.wait_for_engines(3, timeout=60)
        mine = cluster.engines["mine"].pids
        assert set(mine) < set(pids(rc))
        cluster.signal_engines_sync(signal.SIGKILL, "mine")
        wait_for(lambda: len(rc.ids) == 1, what="two deaths")
        wait_for(lambda: list(cluster.engines) == [first], what="the set to go")
        cluster.start_cluster_sync(1)  # the controller runs: one more engine
        rc.wait_for_engines(2, timeout=60)
        with pytest.raises(KeyError, match="no engine set 'mine'"):
            cluster.stop_engines_sync("mine")
        cluster.stop_engines_sync()
        assert cluster.engines == {} and cluster.controller.state == "running"
        assert rc.cluster is cluster
    cluster.stop_controller_sync()
    assert cluster.controller is None


def test_the_set_that_came_with_the_controller():
    with phalanx.Cluster(n=2) as rc:
        cluster, before = rc.cluster, pids(rc)
        first, = cluster.engines
        cluster.restart_engines_sync()
        assert list(cluster.engines) == [first]
        rc.wait_for_engines(2, timeout=60)
        assert not set(before) & set(pids(rc))
        cluster.stop_engines_sync(first)
        assert cluster.engines == {} and cluster.controller.state == "running"
        assert "engine_sets" not in repr(cluster)


@pytest.mark.parametrize("given", ["--tags=gpu", ["--tags=gpu"]])
def test_arguments_of_engines(given):
    class LocalEngineSetLauncher:
        engine_args = ["--preload=json"]
    with phalanx.Cluster(n=2, engines=LocalEngineSetLauncher, engine_args=given) as rc:
        assert rc.tags == {"gpu": [0, 1]}
        rc.cluster.start_engines_sync(1)
        rc.wait_for_engines(3, timeout=60)
        assert rc.tags == {"gpu": [0, 1, 2]}
        with open(f"/proc/{rc[0].apply_sync(os.getppid)}/cmdline") as command:
            assert "--preload=json" in command.read().split("\0")
    with pytest.raises(phalanx.ClosedError):
        rc[:].apply_sync(len, "")


def test_options_that_nobody_knows_are_passed_over_aloud():
    """As by ipyparallel, in silence; people write them."""
    with pytest.warns(UserWarning, match="no option 'location'"):
        cluster = phalanx.Cluster(n=1, location="server.local")
    assert cluster.n == 1
    with pytest.warns(UserWarning, match="ipcluster_config.py"):
        phalanx.Cluster(config={"Cluster": {"n": 2}})


def test_clients_of_a_cluster_that_has_ended_close_at_once():
    with phalanx.Cluster(n=1) as rc:
        clients = [rc.cluster.connect_client_sync() for _ in range(30)]
        assert [len(client) for client in clients] == [1] * 30
    closing = threading.Thread(target=lambda: [client.close() for client in clients])
    closing.start()
    wait_for(lambda: not closing.is_alive(), 20, "clients to close, each of them before a second")


def test_what_waits_for_a_cluster_fails_when_that_is_stopped():
    with phalanx.Cluster(n=1) as rc:
        results = [rc.load_balanced_view().apply_async(time.sleep, 100) for _ in range(3)]
        begun = time.monotonic()
        rc.cluster.stop_cluster_sync()
        for result in results:
            with pytest.raises(phalanx.RemoteError, match="was shut down|died|exit|KeyboardInterrupt"):
                result.get(60)
        assert time.monotonic() - begun < 20  # not those 30 s that a lost controller is given
        for view in rc.load_balanced_view, lambda: rc[:]:
            with pytest.raises(RuntimeError, match="shut down"):
                view().apply_sync(os.getpid)


def test_a_client_of_a_controller_that_may_come_back_waits():
    with phalanx.Cluster(n=1, controller_args=["--reuse"]) as rc:
        os.kill(rc.cluster.controller.pid, signal.SIGTERM)
        waiting = rc.load_balanced_view().apply_async(os.getpid)
        with warnings.catch_warnings(), \
                pytest.raises(RuntimeWarning, match="the controller cannot be reached"):
            warnings.simplefilter("error")
            waiting.get(25)


def test_engines_that_died_are_restarted_too():
    with phalanx.Cluster(n=2) as rc:
        cluster = rc.cluster
        for dying in [0], [0, 1]:
            ids = rc.ids
            rc[:].apply_async(os.getpid).wait(60)
            for i in dying:
                cluster.signal_engine_sync(signal.SIGKILL, ids[i])
            wait_for(lambda: len(rc.ids) == 2 - len(dying), what="deaths")
            cluster.restart_engines_sync()
            rc.wait_for_engines(2, timeout=60)
            assert sum(engines.n for engines in cluster.engines.values()) == 2
        cluster.stop_engines_sync()
        cluster.restart_engines_sync()
        rc.wait_for_engines(2, timeout=60)


def test_waiting_for_tasks_says_that_no_engine_is_left():
    with phalanx.Cluster(n=1) as rc, warnings.catch_warnings():
        rc.cluster.stop_engines_sync()
        wait_for(lambda: not rc.ids, what="no engine")
        waiting = rc.load_balanced_view().apply_async(os.getpid)
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="there are no engines; tasks wait until some come"):
            waiting.get(60)
        rc.cluster.restart_engines_sync()
        assert waiting.get(60) in pids(rc)


def test_waiting_for_engines_says_that_the_controller_is_gone():
    with phalanx.Cluster(n=1) as rc, warnings.catch_warnings():
        os.kill(rc.cluster.controller.pid, signal.SIGKILL)
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="the controller cannot be reached"):
            rc.wait_for_engines(2, timeout=60)


def test_single_engines(monkeypatch):
    with phalanx.Cluster(n=2) as rc:
        first, second = pids(rc)
        rc.cluster.restart_engine_sync(1)
        rc.wait_for_engines(2, timeout=60)
        assert not alive(second) and first in pids(rc) and len(rc.ids) == 2
        monkeypatch.setattr(phalanx.client, "LOSS_SECONDS", 0.1)
        awaited = rc.wait_for_engines(9, block=False)
        rc.cluster.signal_engine_sync(signal.SIGKILL, 0)
        wait_for(lambda: 0 not in rc.ids, what="a death")
        with pytest.raises(phalanx.EngineError, match="1 of the engines that were there"):
            awaited.result(60)


def test_engines_get_the_environment_that_python_has(monkeypatch):
    """What MPI has set in this process would keep mpiexec from starting anything."""
    monkeypatch.setenv("PX_TEST_MINE", "1")
    assert ctypes.CDLL(None).setenv(b"PX_TEST_A_LIBRARYS", b"1", 1) == 0
    try:
        with phalanx.Cluster(n=1) as rc:
            rc[0].execute("import os; names = list(os.environ)", block=True)
            names = rc[0]["names"]
    finally:
        ctypes.CDLL(None).unsetenv(b"PX_TEST_A_LIBRARYS")
    assert "PX_TEST_MINE" in names and "PX_TEST_A_LIBRARYS" not in names


def test_in_asyncio():
    async def main():
        async with phalanx.Cluster(n=1) as rc:
            pid, = await rc[:].apply_async(os.getpid)
            assert alive(pid)
            cluster = rc.cluster
        assert not alive(pid) and cluster.controller is None
        rc = await phalanx.Cluster(n=1).start_and_connect()
        assert await rc[0].apply_async(abs, -5) == 5
        await rc.cluster.stop_cluster()
        rc.close()

    asyncio.run(main())


LEAVES = """
import os, sys, phalanx
cluster = phalanx.Cluster(n=1, shutdown_atexit=sys.argv[1] == "True")
rc = cluster.start_and_connect_sync()
if not os.fork():
    sys.exit()  # a child's end is not this process's
os.wait()
print(rc[0].apply_sync(os.getpid), cluster.cluster_file, flush=True)
if sys.argv[2] == "kill":
    os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif("PX_ASAN_OPTIONS" in os.environ,
                    reason="a lock of the sanitizer's own may be held where threads fork")
@pytest.mark.parametrize("with_process, end", [(True, "exit"), (True, "kill"), (False, "exit")])
def test_the_process_ends(env, ipython_dir, with_process, end):
    done = subprocess.run(
        [PYTHON, "-W", "ignore", "-c", LEAVES, str(with_process), end],
        env=script_environment(env), timeout=90, text=True, stdout=subprocess.PIPE)
    pid, file = done.stdout.split()
    if with_process:
        wait_for(lambda: not processes_with(f"IPYTHONDIR={ipython_dir}"), what="its end")
    else:
        assert alive(int(pid))
        phalanx.Cluster.from_file(file).stop_cluster_sync()
    assert not alive(int(pid)) and not os.path.exists(file)


def test_what_cannot_be_started_says_why():
    with pytest.raises(RuntimeError, match="no launcher 'nonesuch'"):
        phalanx.Cluster(n=1, engines="nonesuch").start_cluster_sync()
    for options in {"hosts": "node1:2"}, {"hostfile": "hosts"}, {"launch_args": ["-v"]}:
        with pytest.raises(RuntimeError, match="is for --engines=ssh"):
            phalanx.Cluster(n=1, **options).start_cluster_sync()
    with pytest.raises(RuntimeError, match="--at-least: -1"):
        phalanx.Cluster(n=1, at_least=-1).start_cluster_sync()
    with pytest.raises(TypeError, match="'engins': did you mean 'engines'"):
        phalanx.Cluster(engins=3)
    for options in ({"engines": "ssh", "engine_launcher_class": "mpi"},
                    {"controller": "ssh", "controller_launcher_class": "local"}):
        with pytest.raises(TypeError, match="names the launcher already"):
            phalanx.Cluster(**options)
    with pytest.raises(FileNotFoundError, match="pxcluster start"):
        phalanx.Cluster(n=1).connect_client_sync(timeout=0)
