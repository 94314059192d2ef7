# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures: four engines of ours under pxcontroller, and four under ipcontroller, for a module."""
import contextlib
import os
import signal
import subprocess

import pytest

import conftest
from conftest import BIN, PYTHONPATH, programs_env, stock_controller, wait_for

phalanx = pytest.importorskip("phalanx")


def environment(directory):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("IPP_", "JUPYTER", "IPYTHON"))}
    env["IPYTHONDIR"] = str(directory)
    env["PATH"] = f"{BIN}:{env['PATH']}"
    return programs_env(env)


def script_environment(env):
    """That of a script which imports phalanx. From 3.12 on Python warns of each fork beside threads."""
    env = {**env, "PYTHONPATH": str(PYTHONPATH), "PYTHONWARNINGS": "ignore::DeprecationWarning:__main__"}
    if "LD_PRELOAD" in os.environ:
        env["LD_PRELOAD"] = os.environ["LD_PRELOAD"]
        env["ASAN_OPTIONS"] = os.environ.get("ASAN_OPTIONS", "")
    return env


def security_of(env):
    return os.path.join(env["IPYTHONDIR"], "profile_default", "security")


def start_ours(env):
    subprocess.run([BIN / "pxcluster", "start", "-n", "4", "--daemonize"], env=env, check=True,
                   timeout=90, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return 4


def start_theirs(env):
    pytest.importorskip("ipyparallel")
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL,
             "stderr": subprocess.DEVNULL, "start_new_session": True}
    stock = {k: v for k, v in env.items() if k != "PYTHONPATH"}
    # A short period: the tests await deaths. A long patience: the machine may be busy.
    subprocess.Popen([*stock_controller(), "--ping=500"], env=stock, **quiet)
    file = os.path.join(security_of(env), "ipcontroller-engine.json")
    wait_for(lambda: os.path.exists(file), 60, "ipcontroller's files")
    subprocess.Popen([BIN / "pxengine", "-n", "4", f"--file={file}"], env=env, **quiet)
    return 4


def recorded(rc, msg_ids, *keys):
    """Waits until the hub has one of these of each task: it may have learned of the end before."""
    query = {"msg_id": {"$in": msg_ids}}

    def is_so():
        records = rc.db_query(query, list(keys))
        return len(records) == len(msg_ids) and all(any(map(r.get, keys)) for r in records)

    wait_for(is_so, 60, f"the hub to know {' or '.join(keys)}")


@contextlib.contextmanager
def cluster(directory, start):
    """(the client's connection file, number of engines, environment) of what start(env) started
    there: how many engines to await. Nothing of it is left afterwards."""
    if not (BIN / "pxcluster").exists():
        pytest.fail(f"no programs in {BIN}: build first, or set PX_BIN")
    env = environment(directory)
    try:
        count = start(env)
        file = os.path.join(security_of(env), "ipcontroller-client.json")
        with phalanx.Client(file, timeout=60) as client:
            client.wait_for_engines(count, timeout=60)
        yield file, count, env
        if start is start_ours:
            subprocess.run([BIN / "pxcluster", "stop"], env=env, timeout=60,
                           stdout=subprocess.DEVNULL)
    finally:
        for pid in conftest.processes_with(f"IPYTHONDIR={directory}"):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module", params=["ours", pytest.param("theirs", marks=pytest.mark.stock)])
def where(request, tmp_path_factory):
    """(the client's connection file, environment, "ours" or "theirs")"""
    start = {"ours": start_ours, "theirs": start_theirs}[request.param]
    with cluster(tmp_path_factory.mktemp("ipython"), start) as (file, _, env):
        yield file, env, request.param


@pytest.fixture
def rc(where):
    with phalanx.Client(where[0]) as client:
        client.wait_for_engines(4, timeout=60)
        yield client


@pytest.fixture
def view(rc):
    view = rc[:]
    view.block = True
    return view


@pytest.fixture
def balanced(rc):
    return rc.load_balanced_view()
