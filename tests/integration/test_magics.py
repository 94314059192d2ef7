# SPDX-License-Identifier: BSD-3-Clause
"""%px and %%px in notebooks: in our kernel, and in ipykernel with %load_ext phalanx."""
import json
import os
import queue
import re
import signal
import subprocess
import time

import pytest

import conftest
from conftest import BIN, PYTHON, PYTHONPATH, wait_for

manager = pytest.importorskip("jupyter_client.manager")

KERNELS = {
    "pxkernel": [str(BIN / "pxkernel"), "-f", "{connection_file}"],
    "ipykernel": [PYTHON, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
}


class Notebook:
    """A kernel, and what its cells show."""

    def __init__(self, argv, env, folder):
        spec = folder / "kernels" / "under_test"
        spec.mkdir(parents=True)
        mode = "message" if "pxkernel" in argv[0] else "signal"
        (spec / "kernel.json").write_text(json.dumps(
            {"argv": argv, "display_name": "test", "language": "python", "interrupt_mode": mode}))
        self.km = manager.KernelManager(kernel_name="under_test")
        self.km.kernel_spec_manager.kernel_dirs = [str(folder / "kernels")]
        self.km.start_kernel(env=env, cwd=str(folder))
        self.kc = self.km.client()
        self.kc.start_channels()
        self.kc.wait_for_ready(timeout=60)

    def close(self):
        self.kc.stop_channels()
        self.km.shutdown_kernel()

    def send(self, code):
        # Without stop_on_error ipykernel does not abort the cell that follows a failed one closely.
        return self.kc.execute(code, stop_on_error=False)

    def outputs(self, parent, timeout=60):
        """The messages that a cell publishes, as they come, to its idle."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                message = self.kc.get_iopub_msg(timeout=0.2)
            except queue.Empty:
                assert time.monotonic() < deadline, "the cell does not end"
                continue
            if message["parent_header"].get("msg_id") != parent:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return
            if kind not in ("status", "execute_input"):
                yield kind, content

    def run(self, code, timeout=60):
        """What a notebook would show in the end: [(kind, text or data), ...]."""
        shown, places = [], {}
        for kind, content in self.outputs(self.send(code), timeout):
            where = (content.get("transient") or {}).get("display_id")
            if kind == "update_display_data":
                shown[places[where]] = ("display_data", content["data"])
                continue
            if where:
                places[where] = len(shown)
            if kind == "stream":
                shown.append((content["name"], content["text"]))
            elif kind == "error":
                shown.append(("error", content))
            else:
                shown.append((kind, content["data"]))
        self.kc.get_shell_msg(timeout=10)
        return shown

    def texts(self, code):
        """The texts of the displays of a cell that must not fail."""
        shown = self.run(code)
        assert all(kind == "display_data" for kind, _ in shown), shown
        return [plain(data["text/plain"]) for _, data in shown]

    def error(self, code):
        """The error that ends a cell."""
        kind, content = self.run(code)[-1]
        assert kind == "error"
        return content

    def usage(self, code):
        """The line that a cell with a bad option shows."""
        (name, text), = self.run(code)
        assert name == "stderr"
        return text.strip()


def plain(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def environment(directory, **more):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("IPP_", "JUPYTER", "IPYTHON"))}
    env.update(IPYTHONDIR=str(directory), PYTHONPATH=str(PYTHONPATH), PX_BINDIR=str(BIN), **more)
    return env


def kill_leftovers(directory):
    for pid in conftest.processes_with(f"IPYTHONDIR={directory}"):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass


def programs_env(env):
    """Under a sanitizer the test's process has its runtime preloaded; programs have their own."""
    env = dict(env)
    if "PX_ASAN_OPTIONS" in os.environ:
        env.pop("LD_PRELOAD", None)
        env["ASAN_OPTIONS"] = os.environ["PX_ASAN_OPTIONS"]
    return env


@pytest.fixture(scope="module", params=list(KERNELS))
def notebook(request, tmp_path_factory):
    """A notebook with two engines."""
    if not (BIN / "pxcluster").exists():
        pytest.fail(f"no programs in {BIN}: build first, or set PX_BIN")
    folder = tmp_path_factory.mktemp("notebook")
    env = environment(folder / "ipython")
    try:
        subprocess.run([BIN / "pxcluster", "start", "-n", "2", "--daemonize"], check=True,
                       env=programs_env(env), timeout=60, stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL)
        kernel_env = programs_env(env) if request.param == "pxkernel" else env
        notebook = Notebook(KERNELS[request.param], kernel_env, folder)
        if request.param == "ipykernel":
            assert notebook.run("%load_ext phalanx") == []
        yield notebook
        notebook.close()
    finally:
        kill_leftovers(folder / "ipython")


# ---- what a cell shows ---------------------------------------------------------------------


def test_values(notebook):
    assert notebook.texts("%px a = 5") == []
    assert [re.sub(r":\d+\]", ":n]", t) for t in notebook.texts("%px a * 2")] == [
        "Out[0:n]: 10", "Out[1:n]: 10"]
    first = notebook.texts("%%px\nimport numpy\nnumpy.arange(4).reshape(2, 2)")[0]
    assert first.endswith("\narray([[0, 1],\n       [2, 3]])")
    assert notebook.texts("%px None") == []
    assert notebook.texts("%px -5")[0].endswith(": -5")


def test_streams(notebook):
    code = "%%px\nimport sys\nprint('one')\nprint('two')\nprint('no', file=sys.stderr)"
    assert notebook.texts(code) == [
        "[stdout:0] one\ntwo\n", "[stderr:0] no\n", "[stdout:1] one\ntwo\n", "[stderr:1] no\n"]


def test_targets(notebook):
    assert notebook.texts("%%px --targets 1\nprint('x')") == ["[stdout:1] x\n"]
    assert notebook.texts("%%px -t -1\nprint('x')") == ["[stdout:1] x\n"]
    assert notebook.texts("%%px --targets 0:1\nprint('x')") == ["[stdout:0] x\n"]
    assert notebook.texts("%%px -t [0, 1]\nprint('x')") == ["[stdout:0] x\n", "[stdout:1] x\n"]
    assert notebook.texts("%px --targets 1 print('x')") == ["[stdout:1] x\n"]


@pytest.mark.parametrize("code, line", [
    ("%%px -t 7\n1", "UsageError: %%px: there is no engine 7; registered: 0 and 1"),
    ("%%px -t 5:9\n1", "UsageError: %%px: the targets name no engine; there are 2"),
    ("%%px --tragets 0\n1", "UsageError: %%px: unknown option --tragets; did you mean --targets?"),
    ("%%px -t x\n1", "UsageError: %%px: 'x' names no engines; use an id, -1, 0:2, [0,2] or all"),
    ("%px", "UsageError: %px: there is no code on the line"),
])
def test_bad_lines(notebook, code, line):
    assert notebook.usage(code) == line
    assert notebook.texts("%px 1")[0].endswith(": 1")


def test_figures(notebook):
    pytest.importorskip("matplotlib")
    shown = notebook.run("%%px\n%matplotlib inline\nimport matplotlib.pyplot as plt\n"
                         "plt.plot([1, 2]); plt.show()")
    labels = [data["text/plain"] for _, data in shown if "image/png" not in data]
    assert sorted(labels) == ["[output:0]", "[output:1]"]
    assert sum("image/png" in data for _, data in shown) == 2


def test_displays_keep_their_forms(notebook):
    shown = notebook.run("%%px -t 0\nfrom IPython.display import HTML\nHTML('<b>x</b>')")
    assert [data["text/html"] for _, data in shown] == ["<b>x</b>"]
    code = ("%%px -t 0\nfrom IPython.display import display\n"
            "d = display('old', display_id='d')\nd.update('new')")
    assert notebook.texts(code) == ["[output:0]", "'new'"]


def test_in_loops_and_functions(notebook):
    assert [t[-1] for t in notebook.texts("for i in range(2):\n    %px $i")] == ["0", "0", "1", "1"]
    assert notebook.texts("def f(x):\n    %px -t 0 print($x)\n") == []
    assert notebook.texts("def f(x):\n    %px --targets 0 print($x)\nf(7)") == ["[stdout:0] 7\n"]
    shown = notebook.run("x = 1\n%px y = $x + 1\nprint(x)\n%px y")
    assert shown[0] == ("stdout", "1\n") and len(shown) == 3


def test_errors(notebook):
    error = notebook.error("%px 1/0")
    assert error["ename"] == "CompositeError"
    for engine in "01":
        assert f"[{engine}:execute]: ZeroDivisionError: division by zero" in error["evalue"]
    trace = plain("\n".join(error["traceback"]))
    assert trace.count("Traceback (most recent call last)") == 1  # once, for both
    assert "[0-1:execute]: (2 times the same)" in trace
    error = notebook.error("%%px -t 0\n1/0")
    assert error["ename"] == "RemoteError"


def test_one_engine_fails_and_the_other_is_shown(notebook):
    notebook.run("import phalanx\nrc = phalanx.Client()\n"
                 "rc[:].scatter('me', rc.ids, flatten=True, block=True)")
    shown = notebook.run("%%px\nprint('said')\n10 // me")
    texts = [plain(data["text/plain"]) for kind, data in shown if kind == "display_data"]
    assert texts[:2] == ["[stdout:0] said\n", "[stdout:1] said\n"]
    assert len(texts) == 3 and texts[2].startswith("Out[1:") and texts[2].endswith(": 10")
    assert "[0:execute]: ZeroDivisionError" in shown[-1][1]["evalue"]
    notebook.run("rc.close()")


def test_noblock(notebook):
    shown = notebook.run("ar = %px --noblock print('later'); 6 * 7\nprint(type(ar).__name__)")
    assert shown == [("stdout", "AsyncResult\n")]
    shown = notebook.run("%pxresult")
    said = "".join(text for name, text in shown if name == "stdout")
    assert said == "[stdout:0] later\n[stdout:1] later\n"
    values = [plain(data["text/plain"]) for kind, data in shown if kind == "display_data"]
    assert [v[-2:] for v in values] == ["42", "42"]


def test_out_and_local(notebook):
    assert notebook.texts("%%px --out kept -t 0\nprint('k')") == ["[stdout:0] k\n"]
    assert notebook.run("print(kept.stdout)") == [("stdout", "k\n\n")]
    notebook.run("%%px --local\nboth = 3")
    assert notebook.run("print(both)") == [("stdout", "3\n")]
    assert notebook.texts("%px both")[0].endswith(": 3")


def test_pxconfig(notebook):
    notebook.run("%pxconfig --targets 1 --verbose")
    shown = notebook.run("%px print('c')")
    assert shown[0] == ("stdout", "Parallel execution on engine(s): 1\n")
    assert shown[1][1]["text/plain"] == "[stdout:1] c\n"
    notebook.run("%pxconfig --targets all --no-verbose")
    assert len(notebook.texts("%px 1")) == 2


def test_activate_with_a_suffix(notebook):
    notebook.run("import phalanx\nrc = phalanx.Client()\n"
                 "v = rc[1]\nv.block = True\nv.activate('_one')")
    assert notebook.texts("%px_one print('s')") == ["[stdout:1] s\n"]
    notebook.run("rc.close()")
    assert len(notebook.texts("%px 1")) == 2


def test_long_output_is_bounded(notebook):
    text, = notebook.texts("%%px -t 0\nfor i in range(100000): print('line', i)")
    assert text.startswith("[stdout:0] line 0\nline 1\n")
    assert text.endswith("line 99998\nline 99999\n")
    assert "bytes are left out here" in text and len(text) < 200_000


# ---- while it runs -----------------------------------------------------------------------------


def test_output_comes_while_the_cell_runs(notebook, tmp_path):
    gate = tmp_path / "gate"
    cell = notebook.send("%%px\nimport os, time\nprint('before', flush=True)\n"
                         f"while not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
                         "print('after')")
    seen = set()
    last = {}
    for kind, content in notebook.outputs(cell):
        text = content["data"]["text/plain"]
        seen.add(text)
        last[content["transient"]["display_id"]] = text
        if {"[stdout:0] before\n", "[stdout:1] before\n"} <= seen:
            gate.touch()
    assert sorted(last.values()) == ["[stdout:0] before\nafter\n", "[stdout:1] before\nafter\n"]
    assert "[stdout:0] before\n" in seen
    notebook.kc.get_shell_msg(timeout=10)


def test_interrupt_reaches_the_engines(notebook):
    cell = notebook.send("%%px\nimport time\nprint('asleep', flush=True)\ntime.sleep(100)")
    started, error = 0, None
    for kind, content in notebook.outputs(cell):
        if kind == "display_data" and "asleep" in content["data"]["text/plain"]:
            started += 1
            if started == 2:
                notebook.km.interrupt_kernel()
        if kind == "error":
            error = content
    notebook.kc.get_shell_msg(timeout=10)
    assert error["ename"] == "CompositeError"
    assert "[0:execute]: KeyboardInterrupt" in error["evalue"]
    assert len(notebook.texts("%px 1")) == 2


def test_the_second_interrupt_gives_up(notebook, tmp_path):
    gate = tmp_path / "gate"
    cell = notebook.send(
        "%%px -t 0\nimport os, time\nwhile True:\n    try:\n        print('on', flush=True)\n"
        f"        while not os.path.exists({str(gate)!r}): time.sleep(0.02)\n"
        "        break\n"
        "    except KeyboardInterrupt: pass\n")
    said, error = "", None
    for kind, content in notebook.outputs(cell):
        if kind in ("display_data", "update_display_data"):
            notebook.km.interrupt_kernel()  # at "on", then at "on\non"
        elif kind == "stream":
            said += content["text"]
        elif kind == "error":
            error = content
    gate.touch()
    notebook.kc.get_shell_msg(timeout=10)
    assert error["ename"] == "KeyboardInterrupt"
    assert "gave up waiting for engine 0" in said
    shown = notebook.run("%pxresult")
    assert "on\n" in "".join(t for name, t in shown if name == "stdout")


# ---- without a cluster ---------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_starts_a_cluster_and_ends_it(kernel, tmp_path):
    env = environment(tmp_path / "ipython")
    kernel_env = programs_env(env) if kernel == "pxkernel" else env
    try:
        notebook = Notebook(KERNELS[kernel], kernel_env, tmp_path)
        if kernel == "ipykernel":
            notebook.run("%load_ext phalanx")
        shown = notebook.run("%px 6 * 7")
        assert shown[0][0] == "stdout"
        assert shown[0][1].startswith("No cluster is running: starting one of")
        engines = len(os.sched_getaffinity(0))
        assert len(shown) == 1 + engines
        assert len(notebook.texts("%px 1")) == engines
        notebook.close()
        wait_for(lambda: not conftest.processes_with(f"IPYTHONDIR={tmp_path / 'ipython'}"), 20,
                 "the cluster's end")
    finally:
        kill_leftovers(tmp_path / "ipython")


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_a_killed_kernel_takes_its_cluster_along(kernel, tmp_path):
    env = environment(tmp_path / "ipython")
    kernel_env = programs_env(env) if kernel == "pxkernel" else env
    try:
        notebook = Notebook(KERNELS[kernel], kernel_env, tmp_path)
        if kernel == "ipykernel":
            notebook.run("%load_ext phalanx")
        notebook.run("%px 6 * 7")
        # A child that outlives the kernel does not keep the cluster.
        (_, data), = notebook.run("import os, subprocess\nos.getpid(), subprocess.Popen("
                                  "['sleep', '60'], close_fds=False, env={}).pid")
        kernel_pid, child_pid = json.loads(data["text/plain"].translate({40: "[", 41: "]"}))
        os.kill(kernel_pid, signal.SIGKILL)
        wait_for(lambda: not conftest.processes_with(f"IPYTHONDIR={tmp_path / 'ipython'}"), 20,
                 "the cluster's end")
        assert conftest.alive(child_pid)
        os.kill(child_pid, signal.SIGKILL)
        notebook.close()
    finally:
        kill_leftovers(tmp_path / "ipython")


def test_says_why_none_starts(tmp_path):
    program = tmp_path / "pxcluster"
    program.write_text("#!/bin/sh\necho 'pxcluster: port taken'\nexit 1\n")
    program.chmod(0o755)
    env = environment(tmp_path / "ipython")
    env["PX_BINDIR"] = str(tmp_path)
    try:
        notebook = Notebook(KERNELS["ipykernel"], env, tmp_path)
        notebook.run("%load_ext phalanx")
        error = notebook.error("%px 1")
        why = "KernelError: the cluster did not start: pxcluster: port taken"
        assert error["traceback"] == [why]
        notebook.close()
    finally:
        kill_leftovers(tmp_path / "ipython")
