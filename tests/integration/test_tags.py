# SPDX-License-Identifier: BSD-3-Clause
"""Engines by name: what --tags gives them, and the host where they are."""
import socket
import subprocess

import pytest

from conftest import BIN, controller_ports, wait_for
from test_engine import controller, start, state_names  # noqa: F401: fixtures
from test_magics import (EACH_KERNEL, KERNELS, Notebook, environment, kill_leftovers,
                         out_without_counts, programs_env)

phalanx = pytest.importorskip("phalanx")

HOST = socket.gethostname()


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """(folder, environment) of a cluster of engines 0 and 1, tagged "cpu", and 2, "gpu" and "big"."""
    folder = tmp_path_factory.mktemp("tags")
    env = environment(folder / "ipython")

    def pxcluster(*words):
        subprocess.run([BIN / "pxcluster", *words], check=True, env=programs_env(env), timeout=60,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        pxcluster("start", "-n2", "--daemonize", "--engine-arg=--tags=cpu", "--", "--sqlitedb")
        pxcluster("engines", "-n1", "--daemonize", "--engine-arg=--tags=gpu,big")
        yield folder, env
        pxcluster("stop")
    finally:
        kill_leftovers(folder / "ipython")


@pytest.fixture
def rc(where, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", where[1]["IPYTHONDIR"])
    with phalanx.Client() as client:
        client.wait_for_engines(3, timeout=60)
        yield client


def test_what_there_is(rc):
    assert rc.tags == {"cpu": [0, 1], "gpu": [2], "big": [2]}
    assert rc.hosts == {HOST: [0, 1, 2]}


def test_views_by_name(rc):
    assert rc["cpu"].apply_sync(abs, -1) == [1, 1]
    assert rc.direct_view("gpu").execute("a = 1", block=True).engine_id == [2]
    assert len(rc["cpu"]) == 2 and len(rc[HOST]) == 3
    assert rc.broadcast_view("cpu").apply_sync(abs, -2) == [2, 2]
    assert repr(rc["gpu"]) == "<DirectView gpu>"


def test_tasks_by_name(rc):
    view = rc.load_balanced_view("gpu")
    tasks = [view.apply_async(abs, -i) for i in range(6)]
    assert [task.get() for task in tasks] == list(range(6))
    assert {task.engine_id for task in tasks} == {2}
    result = view.map_async(abs, range(20), chunksize=1)
    assert result.get() == list(range(20)) and set(result.engine_id) == {2}
    assert rc.executor("big").submit(abs, -3).result() == 3


def test_calls_of_the_client_by_name(rc):
    assert set(rc.queue_status("cpu")) == {0, 1, "unassigned"}
    rc["gpu"].execute("kept = 1", block=True)
    rc.clear("gpu", block=True)
    assert rc["gpu"].apply_sync(eval, "'kept' in globals()") == [False]


@pytest.fixture
def join(where):
    """join(*options): a process of engines, terminated at the end."""
    processes = []

    def join(*options):
        processes.append(subprocess.Popen(
            [BIN / "pxengine", "-n1", *options], env=programs_env(where[1]),
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return processes[-1]

    yield join
    for process in processes:
        process.terminate()
        process.wait(60)


def test_a_view_is_of_those_that_have_the_name_now(rc, join):
    first = join("--tags=late")
    wait_for(lambda: "late" in rc.tags, what="the engine")
    view, tasks = rc["late"], rc.load_balanced_view("late")
    other = join("--tags=late")
    wait_for(lambda: len(rc.tags["late"]) == 2, what="the other one")
    assert view.apply_sync(abs, -1) == [1, 1]
    first.terminate()
    wait_for(lambda: len(rc.tags["late"]) == 1, what="the first one's end")
    assert view.apply_sync(abs, -1) == [1] and tasks.apply_sync(abs, -1) == 1
    other.terminate()
    wait_for(lambda: "late" not in rc.tags, what="the other one's end")
    for call in (view.apply_async, tasks.apply_async):
        with pytest.raises(IndexError, match="No engine has the tag or host 'late'; known: cpu, gpu"):
            call(abs, 1)


@pytest.mark.parametrize("name", ["nobody", "", "g p u", "tag:gpu"])
def test_names_that_nobody_has(rc, name):
    for view in (rc.direct_view, rc.load_balanced_view, rc.__getitem__):
        with pytest.raises(IndexError, match=f"No engine has the tag or host '{name}'; known: cpu, gpu"):
            view(name)


def test_a_controller_that_comes_back_knows_the_names(controller, start, ipython_dir):
    file = controller("--reuse", controller_ports())
    start("-n1", "--tags=gpu")
    wait_for(lambda: state_names(ipython_dir, 1), what="the file of engines")
    controller("--restore")
    with phalanx.Client(str(file)) as rc:
        rc.wait_for_engines(1, timeout=60)
        assert rc.tags == {"gpu": [0]}


@pytest.mark.parametrize("text, why", [("all", "'all' is no tag"), ("1", "'1' is no tag"),
                                       ("a,,b", "'' is no tag"), ("a b", "'a b' is no tag"),
                                       (",".join(map("a{}".format, range(17))), "more than 16 tags")])
def test_tags_that_are_none(where, text, why):
    done = subprocess.run([BIN / "pxengine", f"--tags={text}"], env=programs_env(where[1]),
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith(f"pxengine: --tags: {why}")
    assert len(done.stderr.splitlines()) == 1


def test_status_shows_them(where):
    def status(*words):
        return subprocess.run([BIN / "pxcluster", "status", *words], env=programs_env(where[1]),
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
                              timeout=60).stdout
    rows = [line.split() for line in status().splitlines()]
    assert [row[-1] for row in rows if row and row[0] in ("ENGINE", "0", "2")] == ["TAGS", "cpu", "gpu,big"]
    assert '"tags": ["gpu", "big"]' in status("--json").replace('":[', '": [').replace('","', '", "')


@pytest.fixture(scope="module", params=EACH_KERNEL)
def notebook(request, where, tmp_path_factory):
    env = programs_env(where[1]) if request.param == "pxkernel" else where[1]
    notebook = Notebook(KERNELS[request.param], env, tmp_path_factory.mktemp("notebook"))
    if request.param == "ipykernel":
        assert notebook.run("%load_ext phalanx") == []
    yield notebook
    notebook.close()


def test_cells_by_name(notebook):
    assert notebook.run("%px import os") == []
    assert out_without_counts(notebook.texts("%%px --targets cpu\n3")) == ["Out[0-1]: 3"]
    assert out_without_counts(notebook.texts("%px -t gpu 3")) == ["Out[2]: 3"]
    assert out_without_counts(notebook.texts(f"%px --targets={HOST} 3")) == ["Out[0-2]: 3"]
    said, _ = notebook.said("%%px --targets gpu --verbose\nNone")
    assert said == "Parallel execution on engine(s): gpu\n"
    notebook.run("cell = 7")
    assert out_without_counts(notebook.texts("%%px --targets gpu --push cell --pull back\n"
                                             "back = cell")) == []
    assert notebook.run("back")[-1][1]["text/plain"] == "[7]"
    assert notebook.said("%pxstacks --targets gpu")[0].startswith("engine 2")


def test_config_by_name(notebook):
    assert notebook.run("%pxconfig --targets big") == []
    assert out_without_counts(notebook.texts("%px 4")) == ["Out[2]: 4"]
    assert notebook.run("%pxconfig --targets all") == []
    assert notebook.run("import phalanx\nrc = phalanx.Client()\nview = rc['cpu']\n"
                        "view.block = True\nview.activate('_cpu')") == []
    assert out_without_counts(notebook.texts("%px_cpu 4")) == ["Out[0-1]: 4"]


@pytest.mark.parametrize("text, why", [
    ("nobody", "No engine has the tag or host 'nobody'; known: cpu, gpu, big"),
    ("cpu,gpu", "'cpu,gpu' names no engines; use an id, -1, 0:2, [0,2], all or a tag")])
def test_wrong_names_in_cells(notebook, text, why):
    for line in (f"%px --targets {text} x", f"%%px --targets {text}\nx", f"%pxstacks -t {text}"):
        assert why in notebook.usage(line)
    assert len(notebook.texts("%px 1")) == 1
