# SPDX-License-Identifier: BSD-3-Clause
"""How Python behaves in the kernel and on an engine, compared with a script of one's own."""
import os
import subprocess
from pathlib import Path

import pytest
from conftest import PYTHON, wait_for
from test_output import make, side  # noqa: F401 (fixtures)

pytestmark = pytest.mark.usefixtures("no_leftovers")


def check(side, code):
    """Runs code whose assertions are the test."""
    seen = side.run(code)
    assert seen.reply["status"] == "ok", (seen.reply, seen.text(), seen.text("stderr"))
    return seen


def test_names_are_a_scripts(side):
    check(side,
          "import sys, os, __main__, subprocess\n"
          "assert __name__ == '__main__' and vars(__main__) is globals()\n"
          "assert os.access(sys.executable, os.X_OK) and 'python' in sys.executable, sys.executable\n"
          "assert isinstance(sys.argv, list) and sys.argv and all(isinstance(a, str) for a in sys.argv)\n"
          "where = subprocess.run([sys.executable, '-c', 'import sys; print(sys.prefix)'],\n"
          "                       capture_output=True, text=True, check=True).stdout.strip()\n"
          "assert where == sys.prefix, where\n"
          "x = 1\nassert __main__.x == 1\n")


@pytest.mark.parametrize("kind", ["kernel", "engine"])
def test_modules_beside_a_notebook_may_have_names_of_the_library(make, monkeypatch, tmp_path, kind):
    monkeypatch.chdir(tmp_path)
    for name in ("random", "string", "queue", "decorator"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')\n")
    (tmp_path / "beside.py").write_text("there = True\n")
    check(make(kind), "import random, string\nassert random.random() < 1\n"
                      "import beside\nassert beside.there\n")


def test_signals_reach_the_users_handlers(side):
    faults = {"SIGSEGV", "SIGBUS", "SIGFPE"} if "PX_ASAN_OPTIONS" in os.environ else set()  # its own
    seen = check(side,
                 "import os, signal, threading\n"
                 "came = threading.Event()\n"
                 "for number in (signal.SIGUSR1, signal.SIGALRM, signal.SIGCHLD):\n"
                 "    signal.signal(number, lambda n, f: came.set() or print(signal.Signals(n).name))\n"
                 "os.kill(os.getpid(), signal.SIGUSR1); assert came.wait(10); came.clear()\n"
                 "signal.setitimer(signal.ITIMER_REAL, 0.01); assert came.wait(10); came.clear()\n"
                 "pid = os.fork() or os._exit(0)\n"
                 "os.waitpid(pid, 0); assert came.wait(10)\n"
                 "signal.signal(signal.SIGCHLD, signal.SIG_DFL)\n"
                 "for number in signal.Signals:\n"
                 f"    if number.name not in {faults | {'SIGKILL', 'SIGSTOP'}}:\n"
                 "        before = signal.signal(number, signal.SIG_IGN)\n"
                 "        assert signal.signal(number, before) == signal.SIG_IGN, number\n")
    assert seen.text() == "SIGUSR1\nSIGALRM\nSIGCHLD\n"


def test_children_have_their_own_signals(side):
    check(side,
          "import os, signal, subprocess\n"
          "child = subprocess.Popen(['sleep', '60']); child.terminate()\n"
          "assert child.wait(20) == -signal.SIGTERM\n"
          "import multiprocessing as mp, time\n"
          "worker = mp.get_context('fork').Process(target=time.sleep, args=(60,))\n"
          "worker.start(); worker.terminate(); worker.join(20)\n"
          "assert worker.exitcode == -signal.SIGTERM, worker.exitcode\n")


def test_a_worker_of_a_pool_outlives_no_kernel(make):
    side = make("kernel")
    pid = int(check(side, "import multiprocessing as mp, os\n"
                          "pool = mp.get_context('fork').Pool(1)\n"
                          "print(pool.apply(os.getpid))").text())
    side.kernel.km.shutdown_kernel()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"), what="the worker's end")


def test_asyncio_goes_on_between_cells(side):
    first = side.send("import asyncio\n"
                      "async def ticks():\n"
                      "    for i in range(3):\n"
                      "        await asyncio.sleep(0.05); print('tick', i)\n"
                      "task = asyncio.create_task(ticks()); await asyncio.sleep(0.01); print('first')")
    text = ""
    while "tick 2\n" not in text:  # nothing else runs meanwhile
        msg = side.next_iopub()
        if msg["msg_type"] == "stream":
            assert msg["parent_header"]["msg_id"] == first
            text += msg["content"]["text"]
    assert text == "first\ntick 0\ntick 1\ntick 2\n"
    check(side, "assert task.done(); assert (await asyncio.gather(asyncio.sleep(0, 1)))[0] == 1")


def test_sys_exit_ends_the_cell_and_not_the_process(side):
    seen = side.run("import sys; sys.exit(3)")
    assert (seen.reply["status"], seen.reply["ename"], seen.reply["evalue"]) == (
        "error", "SystemExit", "3")
    check(side, "pass")


def test_matplotlib_shows_figures(side):
    seen = check(side, "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()")
    shown = [content["data"] for kind, content in seen if kind == "display_data"]
    assert len(shown) == 1 and "image/png" in shown[0]


def test_the_debugger_talks_over_stdin(make):
    kernel = make("kernel").kernel
    msg_id = kernel.kc.execute("def f(x):\n    breakpoint()\n    return x\nprint(f(41) + 1)",
                               allow_stdin=True)
    for answer in ("p x", "c"):
        prompt = kernel.kc.get_stdin_msg(timeout=20)["content"]["prompt"]
        assert "db> " in prompt or "(Pdb) " in prompt, prompt
        kernel.kc.input(answer)
    seen = kernel.until_idle(msg_id)
    text = "".join(content["text"] for kind, content in seen if kind == "stream")
    assert "41" in text and text.endswith("42\n")


def test_an_error_costs_no_look_into_ipythons_own_file(side):
    """Its frame is not shown; it is still the first of what %debug goes through."""
    seen = side.run("def fails(): 1/0\nfails()")
    assert seen.reply["ename"] == "ZeroDivisionError"
    check(side, "import gc, sys\nshell = get_ipython()\n"
                "assert shell.InteractiveTB.tb is sys.last_traceback\n"
                "assert sys.last_traceback.tb_frame.f_code.co_name == 'run_code'\n"
                "read = [o.filename for o in gc.get_objects() if type(o).__name__ == 'Source']\n"
                "assert not [name for name in read if 'interactiveshell' in str(name)], read")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A Python without IPython."""
    where = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", str(where)], check=True)
    return str(where / "bin" / "python")


@pytest.mark.parametrize("kind", ["kernel", "engine"])
def test_without_ipython_code_runs_and_magics_say_what_is_missing(make, bare, kind):
    side = make(kind, f"--python={bare}")
    assert check(side, "import asyncio\nprint(await asyncio.sleep(0, 5))").text() == "5\n"
    assert dict(side.run("6 * 7"))["execute_result"]["data"] == {"text/plain": "42"}
    assert side.run("1/0").reply["ename"] == "ZeroDivisionError"
    assert side.run("x = 3 +").reply["ename"] == "SyntaxError"
    for code in ("%time 1", "%%px\n1", "!ls", "x = !ls", "len?", "display(1)",
                 "from IPython.display import HTML"):
        seen = side.run(code)
        assert seen.reply["ename"] == "ModuleNotFoundError", code
        assert f"not installed for {bare}: '{bare} -m pip install ipython'" in seen.reply["evalue"]
        assert len([1 for what, _ in seen if what == "error"]) == 1


def test_an_exit_function_that_catches_interrupts_is_ended(make, bare):
    side = make("kernel", f"--python={bare}")
    process = side.kernel.km.provisioner.process
    check(side,
          "import atexit, subprocess\n"
          "@atexit.register\n"
          "def linger():\n"
          "    for _ in range(9):\n"
          "        try: subprocess.run('kill -INT $PPID', shell=True)\n"
          "        except KeyboardInterrupt: pass\n")
    side.kernel.send("control", "shutdown_request", {"restart": False})
    assert process.wait(20) == 0


@pytest.mark.stock
def test_apply_without_ipython(make, bare):
    """As ipyparallel's client sends it."""
    ipp = pytest.importorskip("ipyparallel")
    side = make("engine", f"--python={bare}")

    def apply(f, *args):
        side.hub.send("mux", [side.uuid, b"client"], "apply_request",
                      buffers=ipp.serialize.pack_apply_message(f, args, {}))
        return side.hub.receive("mux")[1]

    for f, args, result in ((abs, (-1,), 1), (ipp.interactive(lambda x: x + y), (1,), 42),
                            (ipp.interactive(lambda x: x), (ipp.Reference("y"),), 41)):
        check(side, "y = 41")
        reply = apply(f, *args)
        assert reply["content"] == {"status": "ok"}
        assert ipp.serialize.deserialize_object(reply["buffers"])[0] == result
    assert apply(ipp.interactive(lambda: 1 / 0))["content"]["ename"] == "ZeroDivisionError"


@pytest.mark.parametrize("kind", ["kernel", "engine"])
def test_an_active_environment_is_honoured(make, bare, env, kind):
    env["VIRTUAL_ENV"] = str(Path(bare).parents[1])
    check(make(kind), "import os, sys\n"
                      "assert sys.prefix == os.environ['VIRTUAL_ENV'] != sys.base_prefix, sys.prefix\n"
                      "assert sys.executable == os.path.join(sys.prefix, 'bin', 'python')\n")


@pytest.mark.parametrize("kind", ["kernel", "engine"])
@pytest.mark.parametrize("file, found", [("canning.py", "hasattr(phalanx, 'Client')"),
                                         ("more.py", "not hasattr(phalanx, 'Client')")])
def test_another_installation_of_phalanx_is_not_ours(make, env, tmp_path, kind, file, found):
    """But what somebody else has called so is theirs."""
    package = tmp_path / "other" / "phalanx"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / file).touch()
    env["PYTHONPATH"] = f"{package.parent}:{env['PYTHONPATH']}"
    check(make(kind), f"import phalanx; assert {found}, phalanx")


def test_open_pools_of_processes_end_with_the_kernel(make, tmp_path):
    side = make("kernel")
    process = side.kernel.km.provisioner.process
    last = tmp_path / "last"
    check(side,
          "import atexit, pathlib, sys\n"
          "assert 'multiprocessing.util' not in sys.modules\n"
          f"atexit.register(pathlib.Path({str(last)!r}).touch)  # the last to run\n"
          "from concurrent.futures import ProcessPoolExecutor\n"
          "pool = ProcessPoolExecutor(2)\n"
          "assert pool.submit(abs, -2).result() == 2")
    side.kernel.send("control", "shutdown_request", {"restart": False})
    assert process.wait(20) == 0 and last.exists()
