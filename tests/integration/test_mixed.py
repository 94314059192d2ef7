# SPDX-License-Identifier: BSD-3-Clause
"""Our engines and ipyparallel's, of two versions, in one cluster; and ipyparallel's launchers with
our programs. test_newer.py runs this file once more, with the newer ipyparallel's client."""
import contextlib
import os
import signal
import subprocess

import pytest
from conftest import (NEWER, PYTHON, PYTHONPATH, alive, controller_ports, has_newer, processes_with,
                      stock_controller, wait_for, with_newer)
from four import environment

ipp = pytest.importorskip("ipyparallel")

pytestmark = [pytest.mark.usefixtures("no_leftovers"), pytest.mark.stock]

DEADLINE = 60


# ---- one controller, engines of each kind, two clients ------------------------------------------


def environments(directory):
    """ "installed", "newer" -> the environment in which `import ipyparallel` is that one."""
    env = {**environment(directory), "PYTHONPATH": str(PYTHONPATH), "HOME": str(directory)}
    return {"installed": env, "newer": with_newer(env) if has_newer() else env}


@pytest.fixture(scope="module", params=["our-controller", "installed-controller",
                                        "newer-controller"])
def mixed(request, px_bin, tmp_path_factory):
    """The client's file of a cluster with two engines of ours, and one of each ipyparallel."""
    kind = request.param.partition("-")[0]
    if kind == "newer" and not has_newer():
        pytest.skip(f"no ipyparallel 9 or later in {NEWER}: see tests/newer")
    directory = tmp_path_factory.mktemp("ipython")
    envs = environments(directory)
    file = directory / "profile_default" / "security" / "ipcontroller-client.json"
    log = open(directory / "log", "w")
    processes = []

    def start(version, *command):
        processes.append(subprocess.Popen(list(map(str, command)), env=envs[version], stdout=log,
                                          stderr=log, stdin=subprocess.DEVNULL))

    # Soon registered, and not given up while a busy machine keeps an engine waiting.
    patience = ["--ping=500", "--HeartMonitor.max_heartmonitor_misses=100"]
    if kind == "our":
        start("installed", px_bin / "pxcontroller", *patience)
    else:
        start(kind, *stock_controller(), *patience)
    wait_for(file.exists, DEADLINE, "the connection files")
    for version in envs:
        start(version, px_bin / "pxengine", "-n1")
        start(version, PYTHON, "-m", "ipyparallel.engine")
    registered = "Completed registration with id"
    wait_for(lambda: (directory / "log").read_text().count(registered) == 4, DEADLINE, "4 engines")
    yield file
    for process in reversed(processes):  # engines first
        process.terminate()
    for process in processes:
        process.wait(DEADLINE)
    log.close()
    text = f"IPYTHONDIR={directory}"  # the reference's nannies take their time
    wait_for(lambda: not processes_with(text), DEADLINE, "the end of every process")


def clients(file):
    """Of both kinds, each seeing all four."""
    import phalanx
    stack = contextlib.ExitStack()
    found = []
    for module in (ipp, phalanx):
        def connect():
            rc = module.Client(str(file))
            if len(rc.ids) == 4:
                return rc
            rc.close()  # it missed one that was being registered; the next will not
            return None
        found.append(stack.enter_context(wait_for(connect, DEADLINE, "a client that sees four")))
    return stack, found


def kinds(view):
    """What each engine says it is."""
    view.execute("kind = get_ipython().kernel.implementation", block=True)
    return view.pull("kind", block=True)


def versions(view):
    """Of the ipyparallel that each engine imports."""
    view.execute("import ipyparallel; version = ipyparallel.__version__", block=True)
    return view.pull("version", block=True)


def test_two_kinds_of_engines_serve_two_kinds_of_clients(mixed):
    import numpy
    stack, found = clients(mixed)
    with stack:
        for rc in found:
            view, balanced = rc[:], rc.load_balanced_view()
            assert sorted(kinds(view)) == ["ipython", "ipython", "phalanx", "phalanx"]
            assert len(set(versions(view))) == (2 if has_newer() else 1)
            assert len(set(view.apply_sync(os.getpid))) == 4
            view.scatter("part", numpy.arange(16), block=True)
            view.execute("part = part ** 2", block=True)
            assert list(view.gather("part", block=True)) == [i * i for i in range(16)]
            assert balanced.map_sync(abs, range(-40, 0)) == list(range(40, 0, -1))
            assert len(rc.broadcast_view().apply_sync(os.getpid)) == 4
            if ipp.version_info >= (9,):
                assert rc.broadcast_view().map_sync(abs, range(-9, 0)) == list(range(9, 0, -1))
            shown = view.execute("print('here'); 6 * 7", silent=False)
            shown.get(DEADLINE)
            shown.wait_for_output(DEADLINE)
            assert shown.stdout == ["here\n"] * 4
            assert [r.execute_result["data"]["text/plain"] for r in shown.get()] == ["42"] * 4
        both = [rc.load_balanced_view().map_async(str, range(20)) for rc in found]
        assert [list(result.get(DEADLINE)) for result in both] == [list(map(str, range(20)))] * 2


def test_two_kinds_of_engines_fail_alike(mixed):
    """Errors, interrupts and unmet dependencies: the same on each engine."""
    stack, found = clients(mixed)
    with stack:
        rc, interactive = found[0], ipp.interactive
        for engine in rc.ids:
            view = rc[engine]
            with pytest.raises(ipp.error.RemoteError, match="ZeroDivisionError") as caught:
                view.execute("1/0", block=True)
            assert caught.value.engine_info["engine_uuid"] == rc._engines[engine]
            running = view.execute("import time; print('go', flush=True); time.sleep(60)",
                                   silent=False)
            wait_for(lambda: "go" in rc.metadata[running.msg_ids[0]].stdout, DEADLINE, "its output")
            rc.send_signal("SIGINT", targets=[engine], block=True)
            with pytest.raises(ipp.error.RemoteError, match="KeyboardInterrupt"):
                running.get(DEADLINE)
        name = interactive(lambda: __import__("IPython").get_ipython().kernel.implementation)
        only_ours = ipp.depend(interactive(
            lambda: __import__("IPython").get_ipython().kernel.implementation == "phalanx"))(name)
        results = [rc.load_balanced_view().apply_async(only_ours) for _ in range(6)]
        assert [result.get(DEADLINE) for result in results] == ["phalanx"] * 6
        needs = ipp.require("a_module_that_nobody_has")(interactive(lambda: 1))
        with pytest.raises(ipp.error.RemoteError, match="ImpossibleDependency"):
            rc.load_balanced_view(rc.ids).apply_async(needs).get(DEADLINE)


# ---- ipyparallel's launchers --------------------------------------------------------------------


@pytest.fixture(params=["our-controller", "stock-controller"])
def launched(request, env, px_bin, ipython_dir, monkeypatch):
    """An ipyparallel.Cluster whose engines are ours, and its controller, too."""
    from traitlets.config import Config
    for name in ("PYTHONPATH", "PATH", "IPYTHONDIR", "HOME"):
        monkeypatch.setenv(name, env[name])
    config = Config()
    config.EngineLauncher.engine_cmd = [str(px_bin / "pxengine")]
    config.ControllerLauncher.controller_args = [controller_ports()]
    if request.param == "our-controller":
        config.ControllerLauncher.controller_cmd = [str(px_bin / "pxcontroller")]
    cluster = ipp.Cluster(n=2, config=config, profile_dir=str(ipython_dir / "profile_launched"))
    yield cluster
    cluster.stop_cluster_sync()


def test_a_cluster_object_starts_signals_restarts_and_stops_our_engines(launched):
    rc = launched.start_and_connect_sync()
    with rc:
        rc.wait_for_engines(2, timeout=DEADLINE)
        pids = rc[:].apply_sync(os.getpid)
        assert kinds(rc[:]) == ["phalanx"] * 2
        running = rc[:].execute("import time; time.sleep(60)")
        wait_for(lambda: all(s["queue"] for i, s in rc.queue_status().items() if i != "unassigned"),
                 what="the tasks in the queues")
        wait_for(lambda: launched.signal_engines_sync(signal.SIGINT) or running.ready(), DEADLINE,
                 "the interrupt")
        with pytest.raises(ipp.error.CompositeError, match="KeyboardInterrupt"):
            running.get(DEADLINE)
        assert rc[:].apply_sync(os.getpid) == pids
        launched.restart_engines_sync()
        wait_for(lambda: len(rc.ids) == 2 and min(rc.ids) >= 2, DEADLINE, "two new engines")
        assert not set(rc[:].apply_sync(os.getpid)) & set(pids)
        assert not any(map(alive, pids))
        launched.stop_engines_sync()
        wait_for(lambda: rc.ids == [], DEADLINE, "their unregistration")


def test_ipcluster_runs_our_programs(env, px_bin, ipython_dir):
    profile = ipython_dir / "profile_default"
    profile.mkdir()
    (profile / "ipcluster_config.py").write_text(
        f"c.ControllerLauncher.controller_cmd = [{str(px_bin / 'pxcontroller')!r}]\n"
        f"c.EngineLauncher.engine_cmd = [{str(px_bin / 'pxengine')!r}]\n")

    def ipcluster(*words):
        subprocess.run([PYTHON, "-m", "ipyparallel.cluster", *words], env=env, check=True,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, timeout=DEADLINE)

    ipcluster("start", "-n", "2", "--daemonize")
    file = profile / "security" / "ipcontroller-client.json"
    wait_for(file.exists, DEADLINE, "the connection file")
    with ipp.Client(str(file)) as rc:
        rc.wait_for_engines(2, timeout=DEADLINE)
        assert kinds(rc[:]) == ["phalanx"] * 2
        pids = rc[:].apply_sync(os.getpid)
    ipcluster("stop")
    wait_for(lambda: not any(map(alive, pids)), DEADLINE, "the engines' end")
