# SPDX-License-Identifier: BSD-3-Clause
"""Modules that engines share: imported once, before they are forked."""
import os
import signal
import subprocess

import pytest

from conftest import BIN, alive, programs_env, wait_for

phalanx = pytest.importorskip("phalanx")
pytestmark = pytest.mark.usefixtures("no_leftovers")

MODULES = {
    "shared": "import os\nPID = os.getpid()\n",
    "fails": "1 / 0",
    "says_much": "raise ValueError('first\\nsecond')",
    "leaves": "raise SystemExit(3)",
    "starts": "import threading, time\n"
              "threading.Thread(target=threading.Event().wait, daemon=True).start()",
}


@pytest.fixture
def modules(env, tmp_path):
    """A directory of these on the programs' path."""
    for name, source in MODULES.items():
        (tmp_path / f"{name}.py").write_text(source)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(tmp_path), env.get("PYTHONPATH")]))


def test_engines_share_what_was_imported(modules, cluster):
    pytest.importorskip("numpy")
    where = cluster(3, "--engine-arg=--preload=shared,numpy")
    with phalanx.Client(str(where.client_file)) as rc:
        rc.wait_for_engines(3, timeout=60)
        view = rc[:]
        view.execute("import sys, os, numpy", block=True)
        assert view.apply_sync(eval, "sys.modules['shared'].PID == os.getppid()") == [True] * 3
        assert len(set(view.apply_sync(eval, "float(numpy.random.rand())"))) == 3
        assert len(set(view.apply_sync(eval, "__import__('random').random()"))) == 3
        inverse = view.apply_sync(eval, "float(numpy.linalg.inv(numpy.eye(400) * 2)[0, 0])")
        assert inverse == [0.5] * 3  # BLAS has threads of its own in each
        parent, = set(view.apply_sync(os.getppid))
    os.kill(parent, signal.SIGTERM)  # which none of BLAS's threads there takes
    wait_for(lambda: not alive(parent), what="the end of the engines")


@pytest.mark.parametrize("count, said", [(1, None), (2, None), (2, "3")])
def test_engines_share_the_processors(env, cluster, count, said):
    """A library that starts a thread for each would start them in each engine."""
    env.pop("OMP_NUM_THREADS", None)
    if said:
        env["OMP_NUM_THREADS"] = said
    where = cluster(count)
    with phalanx.Client(str(where.client_file)) as rc:
        rc.wait_for_engines(count, timeout=60)
        threads = rc[0].apply_sync(eval, "__import__('os').environ.get('OMP_NUM_THREADS')")
    if count == 1 or said:
        assert threads == said
    else:
        assert 1 <= int(threads) <= max(1, len(os.sched_getaffinity(0)) // count)


def test_an_engine_that_is_replaced_has_them(modules, cluster):
    where = cluster(1, "--engine-arg=--preload=shared", "--engine-arg=--restart=on-failure")
    with phalanx.Client(str(where.client_file)) as rc:
        rc.wait_for_engines(1, timeout=60)
        rc[0].execute("import os; os._exit(1)")
        wait_for(lambda: rc.ids == [1], what="the next engine")
        assert rc[1].apply_sync(eval, "'shared' in __import__('sys').modules")


@pytest.mark.parametrize("names, why", [
    ("nothing.here", "nothing.here: ModuleNotFoundError: No module named 'nothing'"),
    ("shared,fails", "fails: ZeroDivisionError: division by zero"),
    ("says_much", "says_much: ValueError: first"),
    ("leaves", "leaves: SystemExit: 3"),
    ("starts", "starts starts threads, which engines would not have"),
])
def test_what_cannot_be_preloaded(modules, env, ipython_dir, names, why):
    (ipython_dir / "profile_default" / "security").mkdir(parents=True)
    done = subprocess.run([BIN / "pxengine", "-n2", f"--preload={names}"], env=programs_env(env),
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, f"pxengine: --preload: {why}\n")


def test_other_languages_preload_nothing(env):
    done = subprocess.run([BIN / "pxengine", "--language=echo", "--preload=json"],
                          env=programs_env(env), stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "pxengine: --preload: echo imports nothing\n")
