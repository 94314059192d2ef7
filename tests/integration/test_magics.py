# SPDX-License-Identifier: BSD-3-Clause
"""%px and %%px in notebooks: in our kernel, and in ipykernel with %load_ext phalanx."""
import json
import os
import queue
import re
import signal
import socket
import subprocess
import time

import pytest

import conftest
from conftest import BIN, PYTHON, PYTHONPATH, programs_env, wait_for
from kernels import IPYKERNEL
from said import by_engine, on_a_terminal, plain, shown_text

manager = pytest.importorskip("jupyter_client.manager")

KERNELS = {
    "pxkernel": [str(BIN / "pxkernel"), "-f", "{connection_file}"],
    "ipykernel": [*IPYKERNEL, "-f", "{connection_file}"],
}
EACH_KERNEL = ["pxkernel", pytest.param("ipykernel", marks=pytest.mark.stock)]


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
        conftest.give_ports(self.km)
        self.km.start_kernel(env=env, cwd=str(folder))
        self.kc = self.km.client()
        self.kc.start_channels()
        self.kc.wait_for_ready(timeout=60)
        self.folder, self.env, self.ipykernel = folder, env, "pxkernel" not in argv[0]

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
            header = message["parent_header"]
            if header.get("msg_id") != parent or header["msg_type"] != "execute_request":
                continue  # the manager's interrupt_request may have the same id
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
            if kind == "clear_output":
                shown.clear()
            elif kind == "stream" and shown and shown[-1][0] == content["name"]:
                shown[-1] = (content["name"], shown[-1][1] + content["text"])
            elif kind == "stream":
                shown.append((content["name"], content["text"]))
            elif kind == "error":
                shown.append(("error", content))
            else:
                shown.append((kind, content["data"]))
        self.kc.get_shell_msg(timeout=60)
        return shown

    def reply(self, parent):
        """The reply to a request; what is left of others is passed over."""
        while True:
            message = self.kc.get_shell_msg(timeout=60)
            if message["parent_header"].get("msg_id") == parent:
                return message

    def said(self, code):
        """(stdout, stderr) of a cell that must show nothing else but values."""
        shown = self.run(code)
        assert all(kind in ("stdout", "stderr", "display_data") for kind, _ in shown), shown
        return tuple("".join(text for kind, text in shown if kind == name)
                     for name in ("stdout", "stderr"))

    def late_output(self, parent, until, timeout=30):
        """What a cell that has ended writes, until(it)."""
        deadline, text = time.monotonic() + timeout, ""
        while not until(text):
            try:
                message = self.kc.get_iopub_msg(timeout=0.2)
            except queue.Empty:
                assert time.monotonic() < deadline, repr(text)
                continue
            if message["msg_type"] == "stream":
                assert message["parent_header"].get("msg_id") == parent
                text += message["content"]["text"]
        return text

    def scatter(self, name):
        """Gives each engine its place among them under a name."""
        self.run("import phalanx\nwith phalanx.Client() as rc:\n"
                 f"    rc[:].scatter({name!r}, range(len(rc)), flatten=True).get()")

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
        shown = self.run(code)
        assert all(name == "stderr" for name, _ in shown), shown
        return "".join(text for _, text in shown).strip()


def out_without_counts(texts):
    return [re.sub(r":\d+\]", "]", text) for text in texts]


def environment(directory, **more):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("IPP_", "JUPYTER", "IPYTHON"))}
    paths = [str(PYTHONPATH), *filter(None, [os.environ.get("PYTHONPATH")])]  # see test_newer.py
    env.update(IPYTHONDIR=str(directory), PYTHONPATH=os.pathsep.join(paths), PX_BINDIR=str(BIN), **more)
    return env


def kill_leftovers(directory):
    for pid in conftest.processes_with(f"IPYTHONDIR={directory}"):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass


@pytest.fixture(scope="module", params=EACH_KERNEL)
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
        assert notebook.run("%pxconfig --progress-after=-1") == []  # a busy machine's cells take seconds
        yield notebook
        notebook.close()
    finally:
        kill_leftovers(folder / "ipython")


# ---- what a cell shows ---------------------------------------------------------------------


def test_values(notebook):
    assert notebook.run("%px a = 5") == []
    assert out_without_counts(notebook.texts("%px a * 2")) == ["Out[0-1]: 10"]
    first, = notebook.texts("%%px\nimport numpy\nnumpy.arange(4).reshape(2, 2)")
    assert first.endswith("\narray([[0, 1],\n       [2, 3]])")
    assert notebook.texts("%px None") == []
    assert notebook.texts("%px -5")[0].endswith(": -5")
    assert out_without_counts(notebook.texts("%px --no-fold 7")) == ["Out[0]: 7", "Out[1]: 7"]


def test_values_that_differ(notebook):
    notebook.run("%px import os")
    texts = out_without_counts(notebook.texts("%px os.getpid()"))
    assert [t.split("]")[0] for t in texts] == ["Out[0", "Out[1"]


def test_streams(notebook):
    code = "%%px {}\nimport sys\nprint('one')\nprint('two')\nprint('no', file=sys.stderr)"
    out, err = notebook.said(code.format(""))
    assert by_engine(out) == {0: "one\ntwo\n", 1: "one\ntwo\n"}
    assert by_engine(err, "stderr") == {0: "no\n", 1: "no\n"}
    folded = ("[stdout:0-1] \none\ntwo\n", "[stderr:0-1] \nno\n")
    assert notebook.said(code.format("--no-stream")) == folded
    apart = "[stdout:0] \none\ntwo\n[stdout:1] \none\ntwo\n"
    assert notebook.said(code.format("--no-stream --no-fold"))[0] == apart
    assert notebook.said("%%px -t 1\nprint('x', end='')")[0] == "[stdout:1] \nx\n"


def test_warnings_are_the_same_on_engines_that_count_apart(notebook):
    notebook.run("%px -t 0 pass")
    err = notebook.said("%%px --no-stream\nimport warnings; warnings.warn('careful')")[1]
    assert err.startswith("[stderr:0-1] \n<ipython-input-") and err.count("careful") == 2, err


def test_what_differs_stands_apart(notebook):
    notebook.scatter("me")
    code = "%%px --no-stream\nprint('same')\nprint('I am', me)"
    assert notebook.said(code)[0] == (
        "[stdout:0-1] \nsame\n[stdout:0] \nI am 0\n[stdout:1] \nI am 1\n")
    assert notebook.said(code + "\nprint('again')")[0] == (  # as with a table's header
        "[stdout:0] \nsame\nI am 0\nagain\n[stdout:1] \nsame\nI am 1\nagain\n")


def test_targets(notebook):
    for targets in ("--targets 1", "-t -1", "--targets=1:", "-t [1]", "-t ::-2"):
        assert notebook.said(f"%%px {targets}\nprint('x')")[0] == "[stdout:1] \nx\n"
    for targets in ("-t [0, 1]", "-t all", "-t :", "-t 1,0"):
        out, _ = notebook.said(f"%%px {targets}\nprint('x')")
        assert by_engine(out) == {0: "x\n", 1: "x\n"}
    assert notebook.said("%px --targets 1 print('x')")[0] == "[stdout:1] \nx\n"
    assert notebook.said("%px -t 1 print('x')")[0] == "[stdout:1] \nx\n"


@pytest.mark.parametrize("code, line", [
    ("%%px -t 7\n1", "UsageError: %%px: there is no engine 7; registered: 0 and 1"),
    ("%%px -t 5:9\n1", "UsageError: %%px: the targets name no engine; there are 2"),
    ("%%px --push nothing_here\n1", "UsageError: --push: there is no 'nothing_here' here"),
    ("%%px -t x\n1", f"UsageError: %%px: No engine has the tag or host 'x'; known: {socket.gethostname()}"),
    ("%%px --pull a@9\n1", "UsageError: --pull: there is no engine 9"),
    ("%%px --noblock --pull a\n1",
     "UsageError: %%px: --pull needs the cell's end, for which --noblock does not wait"),
    ("%%px --noblock --timeout 3\n1",
     "UsageError: %%px: --timeout is for a cell that is waited for, and --noblock does not"),
])
def test_bad_values(notebook, code, line):
    assert notebook.usage(code) == line
    assert notebook.texts("%px 1")[0].endswith(": 1")


@pytest.mark.parametrize("code, line", [
    ("%%px --tragets 0\n1", "%%px: unknown option --tragets; did you mean --targets?"),
    ("%%px -t x,1\n1", "%%px: 'x,1' names no engines; use an id, -1, 0:2, [0,2], all or a tag"),
    ("%px", "%px: there is no code on the line"),
    ("%px --bogus 1", "%px: unknown option --bogus"),
    ("%px -q 1", "%px: unknown option -q"),
    ("%pxconfig --out x", "%pxconfig: unknown option --out"),
    ("%pxresult nonsense", "%pxresult: 'nonsense' is not an option"),
    ("%pxstacks -x", "%pxstacks: unknown option -x"),
    ("%pxcluster frobnicate", "%pxcluster: there is no command 'frobnicate'"),
    ("%pxcluster start -n x", "%pxcluster: -n takes a number of engines, not 'x'"),
])
def test_bad_options_show_usage(notebook, code, line):
    said = notebook.usage(code).splitlines()
    assert said[0] == f"UsageError: {line}"
    assert said[2].startswith("Usage: %")
    examples = said[said.index(next(s for s in said if s.strip() == "Examples:")) + 1:]
    assert len(examples) == 2 and all("%px" in e for e in examples)
    assert len(said) <= 27
    assert notebook.texts("%px 1")[0].endswith(": 1")


def test_help(notebook):
    for name in ("%px", "%%px", "%pxconfig", "%pxresult", "%pxstacks", "%pxwhy", "%pxcluster",
                 "%autopx"):
        message = notebook.kc.execute(f"{name}?", stop_on_error=False)
        list(notebook.outputs(message))
        reply = notebook.reply(message)
        page, = reply["content"]["payload"]
        text = plain(page["data"]["text/plain"])
        assert "px" in text and len(text.splitlines()) <= 40
        if name != "%autopx":
            examples = text[text.index("Examples:"):].splitlines()[1:]
            assert all(re.match(" *%", line) for line in examples[:2]), text
            assert len([line for line in examples if re.match(" *%", line)]) == 2


def test_expressions_that_begin_with_a_dash(notebook):
    notebook.run("%px x = 3")
    assert notebook.texts("%px -x")[0].endswith(": -3")
    assert notebook.texts("%px --x + 1")[0].endswith(": 4")
    assert notebook.texts("%px -x if x else 1")[0].endswith(": -3")


FIGURE = ("%%px {}\n%matplotlib inline\nimport matplotlib.pyplot as plt\n"
          "plt.plot([1, {}]); plt.show()")


def test_help_is_an_option(notebook):
    for code in ("%px --help", "%%px --help\n1", "%pxresult --help", "%pxcluster --help"):
        out, err = notebook.said(code)
        assert out.startswith("Usage: %px" if code[1] != "%" else "Usage: %%px") and err == ""


def test_as_an_expression(notebook):
    """Of use where its value is: an assignment gets the AsyncResult, a statement shows nothing."""
    label, = out_without_counts(notebook.texts("ar = %px 6 * 7"))
    assert label == "Out[0-1]: 42"
    assert notebook.said("print(len(ar.get()), ar.done())")[0] == "2 True\n"
    assert len(notebook.texts("def f():\n    ar = %px 1\n    return ar.r\nx = f()")) == 1
    for code in ("%px 1", "for i in range(1):\n    %px 1", "a = 2\n%px 1",
                 "get_ipython().run_cell_magic('px', '', '1')"):
        assert out_without_counts(notebook.texts(code)) == ["Out[0-1]: 1"]
    assert [kind for kind, _ in notebook.run("%time %px 1")] == ["display_data", "stdout"]


def test_a_value_that_cannot_be_shown(notebook):
    bad = "class Bad:\n    def __repr__(self): raise ValueError('no repr')\nBad()"
    for code in ("%%px\n" + bad, "%pxresult"):
        out, err = notebook.said(code)
        assert out == "" and err.startswith("[stderr:0-1] \n")
        assert plain(err).endswith("ValueError: no repr\n")
    assert notebook.texts("%px 1")[0].endswith(": 1")


def test_displays_that_will_change_are_shown_by_engine(notebook):
    texts = notebook.texts("%px --no-stream display('it', display_id=True).display('it')")
    assert texts == ["[output:0]", "'it'", "[output:1]", "'it'"] * 2


def figures_of(notebook, code):
    """([labels], number of images)"""
    shown = [data for kind, data in notebook.run(code) if kind == "display_data"]
    labels = [data["text/plain"] for data in shown if "image/png" not in data]
    return sorted(labels), sum("image/png" in data for data in shown)


def test_figures(notebook):
    pytest.importorskip("matplotlib")
    notebook.scatter("me")
    labels, count = figures_of(notebook, FIGURE.format("", 2))  # matplotlib's first import: any time
    assert count == 1
    assert labels == ["[output:0-1]"] or labels[1] == "[output:1] the same as [output:0]" or \
        labels[0] == "[output:0] the same as [output:1]"
    apart = (["[output:0]", "[output:1]"], 2)
    assert figures_of(notebook, FIGURE.format("--no-fold", 2)) == apart
    assert figures_of(notebook, FIGURE.format("", "me")) == apart


def test_displays_keep_their_forms_and_their_place(notebook):
    shown = notebook.run("%%px -t 0\nfrom IPython.display import HTML\nHTML('<b>x</b>')")
    (_, prompt), (_, value) = shown  # a page shows a value's HTML, and no text of it
    assert re.fullmatch(r"Out\[0:\d+\]: ", plain(prompt["text/plain"])) and len(prompt) == 1
    assert value["text/html"] == "<b>x</b>" and "Out[" not in value["text/plain"]
    shown = notebook.run("%px -e -t [0] HTML('<b>x</b>')")
    assert [data.get("text/html") for _, data in shown] == [None, "<b>x</b>"]
    code = ("%%px -t 0\nfrom IPython.display import display\n"
            "d = display('old', display_id='d')\nd.update('new')")
    assert notebook.texts(code) == ["[output:0]", "'new'"]
    shown = notebook.run("%%px --no-stream\nfrom IPython.display import display\n"
                         "print('before'); display('it'); print('after')")
    kinds = [data if kind == "stdout" else data["text/plain"] for kind, data in shown]
    assert kinds[0] == "[stdout:0-1] \nbefore\n" and kinds[-1] == "[stdout:0-1] \nafter\n"
    assert kinds[1:-1] == ["[output:0-1]", "'it'"]


def test_equal_displays_are_folded_each_in_its_turn(notebook):
    notebook.scatter("me")
    code = ("%%px {}\nfrom IPython.display import display\n"
            "display('same'); print('between'); display(me if {} else 'too'); display('last')")
    texts = [data.replace("between\n", "") if kind == "stdout" else data["text/plain"]
             for kind, data in notebook.run(code.format("--no-stream", False))]
    assert texts == ["[output:0-1]", "'same'", "[stdout:0-1] \n", "[output:0-1]", "'too'",
                     "[output:0-1]", "'last'"]
    texts = [data["text/plain"] for kind, data in
             notebook.run(code.format("--no-stream", True)) if kind == "display_data"]
    assert sorted(texts) in (sorted(expected) for expected in (
        ["[output:0-1]", "'same'", "[output:0]", "0", "[output:1]", "1", "[output:0-1]", "'last'"],
        ["[output:0-1]", "'same'", "[output:0]", "0", "[output:0]", "'last'", "[output:1]", "1",
         "[output:1] the same as [output:0]"],
        ["[output:0-1]", "'same'", "[output:0]", "0", "[output:1]", "'last'", "[output:1]", "1",
         "[output:0] the same as [output:1]"])), texts


def test_an_engine_that_shows_the_same_later(notebook, tmp_path):
    gate = tmp_path / "gate"
    notebook.scatter("me")
    cell = notebook.send(
        "%%px\nfrom IPython.display import display\nimport os, time\n"
        f"while me and not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
        "display('it'); display('it'); display(me)")
    texts = []
    for kind, content in notebook.outputs(cell):
        if kind == "display_data":
            texts.append(content["data"]["text/plain"])
            gate.touch()
    notebook.kc.get_shell_msg(timeout=60)
    assert texts == ["[output:0]", "'it'", "[output:0]", "'it'", "[output:0]", "0",
                     "[output:1] the same as [output:0]", "[output:1] the same as [output:0]",
                     "[output:1]", "1"]


def test_in_loops_and_functions(notebook):
    texts = out_without_counts(notebook.texts("for i in range(2):\n    %px $i"))
    assert texts == ["Out[0-1]: 0", "Out[0-1]: 1"]
    assert notebook.run("def f(x):\n    %px -t 0 print($x)\n") == []
    assert notebook.said("def f(x):\n    %px --targets 0 print($x)\nf(7)")[0] == "[stdout:0] \n7\n"
    notebook.run("there = 'here'\n%px there = 'there'")
    assert notebook.said("%px -t 0 print(f'{there}', {there})")[0] == (
        "[stdout:0] \nthere {'there'}\n")
    assert notebook.said("%px -t 0 print('$there', \"$there\")")[0] == "[stdout:0] \n$there here\n"
    assert notebook.said("%px -t 0 !echo $HOME $no_such_name.")[0] != "[stdout:0] \n.\n"
    shown = notebook.run("x = 1\n%px y = $x + 1\nprint(x)\n%px y")
    assert shown[0] == ("stdout", "1\n") and len(shown) == 2


# ---- errors ------------------------------------------------------------------------------------


def test_errors(notebook):
    error = notebook.error("%px 1/0")
    assert error["ename"] == "CompositeError"
    for engine in "01":
        assert f"[{engine}:execute]: ZeroDivisionError: division by zero" in error["evalue"]
    trace = plain("\n".join(error["traceback"]))
    assert trace.count("Traceback (most recent call last)") == 1
    assert trace.startswith("[0-1:execute]:\n")
    error = notebook.error("%%px -t 0\n1/0")
    assert error["ename"] == "RemoteError"
    trace = plain("\n".join(notebook.error("%%px --no-fold\n1/0")["traceback"]))
    assert "[0:execute]:" in trace and "[1:execute]:" in trace


def test_errors_that_differ(notebook):
    notebook.scatter("me")
    trace = plain("\n".join(notebook.error("%px {}[me]")["traceback"]))
    assert trace.count("Traceback (most recent call last)") == 2
    assert "[0:execute]:" in trace and "[1:execute]:" in trace


def test_an_error_is_shown_while_others_run(notebook, tmp_path):
    """Once: at the cell's end a line says where. What comes then is shown there."""
    gate = str(tmp_path / "gate")
    notebook.scatter("rank")
    said, error = "", None
    cell = notebook.send(
        "%%px --progress-after 0.1\nimport os, time\nif rank == 0: raise KeyError('early')\n"
        f"while not os.path.exists({gate!r}): time.sleep(0.01)\n1 / 0")
    for kind, content in notebook.outputs(cell):
        if kind == "stream":
            said += content["text"]
            if "KeyError" in plain(said):
                open(gate, "w").close()
        error = content if kind == "error" else error
    notebook.kc.get_shell_msg(timeout=60)
    assert plain(said).count("[0:execute]:") == 1 and "raise KeyError('early')" in plain(said)
    text = plain("\n".join(error["traceback"]))
    assert "KeyError: 'early'" not in text and "[0:execute]: as shown above" in text
    assert "[1:execute]:" in text and "ZeroDivisionError" in text


def test_a_name_that_is_known_here_only(notebook):
    notebook.run("here_only = 1")
    trace = plain("\n".join(notebook.error("%px here_only + 1")["traceback"]))
    assert trace.endswith("here_only is known here, and not on engines 0-1: "
                          "'%%px --push here_only' sends it")
    trace = plain("\n".join(notebook.error("%px nowhere + 1")["traceback"]))
    assert "--push" not in trace


def test_a_call_that_fails_shows_its_cell(notebook):
    """Engines have the code of what was typed here, and not its source."""
    parent = notebook.send("here_only = [[]]\ndef inverse(x):\n    return 1 / (x - 3)\n"
                           "def shifted(x): return [x] + here_only\n"
                           "import phalanx; rc = phalanx.Client(); balanced = rc.load_balanced_view()")
    assert list(notebook.outputs(parent)) == []
    cell = notebook.reply(parent)["content"]["execution_count"]
    trace = plain("\n".join(notebook.error("balanced.map_sync(inverse, range(9))")["traceback"]))
    frame = f"Cell In [{cell}], line 3, in inverse(x)\n"
    assert f"{frame}      1 here_only = [[]]\n      2 def inverse(x):\n" \
           "----> 3     return 1 / (x - 3)\n      4 def shifted" in trace
    assert re.match(r"\[[01]:apply, item 3\]:", trace) and trace.count("File ") == 0
    trace = plain("\n".join(notebook.error("rc[0].apply_sync(shifted, 5)")["traceback"]))
    assert "here_only is known here, and not on engine 0: client[:].push({'here_only'" in trace
    notebook.run("rc.close()")


def test_an_engine_has_nobody_to_ask(notebook):
    trace = plain("\n".join(notebook.error("%px input('name? ')")["traceback"]))
    assert "StdinNotImplementedError" in trace and "'%%px --push NAME' sends" in trace
    assert "<phalanx>" not in trace


def test_one_engine_fails_and_the_other_is_shown(notebook):
    notebook.scatter("me")
    shown = notebook.run("%%px\nprint('said')\n10 // me")
    (_, value), (_, error) = shown[-2:]
    assert by_engine("".join(text for _, text in shown[:-2])) == {0: "said\n", 1: "said\n"}
    assert re.fullmatch(r"Out\[1:\d+\]: 10", plain(value["text/plain"]))
    assert "[0:execute]: ZeroDivisionError" in error["evalue"]


def test_a_magic_within_a_magic(notebook):
    shown = notebook.run("%%px\n%px 1")
    (kind, error), = shown
    assert plain("\n".join(error["traceback"])) == (
        "[0-1:execute]:\nUsageError: %px: this code runs on an engine already; %px belongs in the "
        "notebook")
    assert notebook.texts("%px 1")[0].endswith(": 1")


# ---- options -----------------------------------------------------------------------------------


def test_noblock(notebook):
    shown = notebook.run("ar = %px --noblock print('later'); 6 * 7\nprint(type(ar).__name__)")
    assert shown == [("stdout", "AsyncResult\n")]
    shown = notebook.run("%pxresult")
    assert by_engine(shown[0][1]) == {0: "later\n", 1: "later\n"}
    assert plain(shown[1][1]["text/plain"]).endswith(": 42") and len(shown) == 2
    shown = notebook.run("%result --group-outputs=engine")
    assert "".join(t for kind, t in shown if kind == "stdout").count("later") == 2
    assert notebook.run("%pxresult -o again") == []
    assert notebook.run("again is ar")[0][1]["text/plain"] == "True"


def test_noblock_shows_as_it_comes(notebook, tmp_path):
    """In the cell that started it, while the next cells run."""
    gate = tmp_path / "gate"
    first = notebook.send("ar = %px --noblock --stream import os, time; print('one', flush=True);"
                          f" exec('while not os.path.exists({str(gate)!r}): time.sleep(0.01)');"
                          " print('two')".replace("exec('", 'exec("').replace("0.01)')", '0.01)")'))
    assert list(notebook.outputs(first)) == []
    notebook.kc.get_shell_msg(timeout=60)
    one = notebook.late_output(first, lambda text: len(by_engine(text)) == 2)
    assert by_engine(one) == {0: "one\n", 1: "one\n"}
    second = notebook.send("6 * 7")
    assert [kind for kind, _ in notebook.outputs(second)] == ["execute_result"]
    notebook.kc.get_shell_msg(timeout=60)
    gate.touch()
    notebook.late_output(first, lambda text: by_engine(one + text) == {
        0: "one\ntwo\n", 1: "one\ntwo\n"})
    notebook.run("ar.get()")


@pytest.mark.parametrize("option", ["", "--noblock --stream "])
def test_what_threads_write_when_their_cell_has_ended(notebook, tmp_path, option):
    """Below the cell that began them, while the next cells run, and in its result."""
    gate = tmp_path / "gate"
    notebook.run("import phalanx.late; phalanx.late.GATHER_SECONDS = 1  # for engines that are delayed")
    code = (f"import os, threading, time\ndef wait():\n    while not os.path.exists({str(gate)!r}):\n"
            "        time.sleep(0.01)\n    print('late'); print('too')\n"
            "threading.Thread(target=wait).start(); print('one')")
    first = notebook.send(f"%%px {option}-o begun\n{code}")
    assert all(kind in ("stream", "execute_result") for kind, _ in notebook.outputs(first))
    notebook.run("begun.wait_for_output(); begun.wait_for_output()")
    assert by_engine(notebook.said("%px 'between'\n%px print('between')")[0]) == {
        0: "between\n", 1: "between\n"}
    gate.touch()
    late = notebook.late_output(first, lambda text: by_engine(text) == {0: "late\ntoo\n", 1: "late\ntoo\n"})
    assert late == "[stdout:0-1] \nlate\ntoo\n"
    assert notebook.run("begun.stdout == ['one\\nlate\\ntoo\\n'] * 2")[0][1]["text/plain"] == "True"


def test_what_threads_show_when_their_cell_has_ended(notebook, tmp_path):
    gate = tmp_path / "gate"
    code = (f"import os, threading, time\nfrom IPython.display import display\n"
            f"handle = display('first', display_id=True)\n"
            f"def wait():\n    while not os.path.exists({str(gate)!r}):\n        time.sleep(0.01)\n"
            "    display('new'); handle.update('second')\n"
            "threading.Thread(target=wait).start()")
    first = notebook.send(f"%%px -t 0\n{code}")
    places = [(content.get("transient") or {}).get("display_id") for kind, content in notebook.outputs(first)]
    notebook.run("6 * 7")
    gate.touch()
    seen = []
    while len(seen) < 3:
        message = notebook.kc.get_iopub_msg(timeout=60)
        if message["msg_type"] in ("display_data", "update_display_data"):
            content = message["content"]
            assert message["parent_header"]["msg_id"] == first
            seen.append((content["data"]["text/plain"], content["transient"].get("display_id")))
    assert places[0] is None and places[1]
    assert seen == [("[output:0]", None), ("'new'", None), ("'second'", places[1])]


def test_what_threads_write_is_streamed_in_the_cell_that_does_so(notebook, tmp_path):
    gate = tmp_path / "gate"
    notebook.run("import os, phalanx, threading; rc = phalanx.Client()")
    code = (f"import os, threading\ndef wait():\n    while not os.path.exists({str(gate)!r}):\n"
            "        threading.Event().wait(0.01)\n    print('late')\n"
            "threading.Thread(target=wait).start(); print('one')")
    notebook.run(f"ar = rc[0].execute({code!r}, block=False); ar.wait_for_output()")
    shown = notebook.run(f"with ar.stream_output():\n    open({str(gate)!r}, 'w').close()\n"
                         "    for _ in range(6000):\n        if 'late' in ar.stdout: break\n"
                         "        threading.Event().wait(0.01)\nrc.close()")
    assert shown[-1] == ("display_data", {"text/plain": "[stdout:0] one\nlate\n"})


def test_out_and_local(notebook):
    assert notebook.said("%%px --out kept -t 0\nprint('k')")[0] == "[stdout:0] \nk\n"
    assert notebook.said("print(kept.stdout)")[0] == "k\n\n"
    notebook.run("%%px --local\nboth = 3")
    assert notebook.said("print(both)")[0] == "3\n"
    assert notebook.texts("%px both")[0].endswith(": 3")
    notebook.run("%pxconfig --local")
    notebook.run("%px both = 4")
    notebook.run("%px --no-local both = 5")
    assert notebook.said("print(both)")[0] == "4\n"
    notebook.run("%pxconfig --no-local")
    notebook.run("%px both = 6")
    assert notebook.said("print(both)")[0] == "4\n"


def test_no_stream_and_groups(notebook):
    code = "%%px {}\nimport sys\nprint('a')\nprint('b', file=sys.stderr)\n1"
    out, err = notebook.said(code.format("--no-stream"))
    assert (out, err) == ("[stdout:0-1] \na\n", "[stderr:0-1] \nb\n")
    for group in ("--group-outputs=type", "--group-outputs order", "-e", "-r"):
        out, err = notebook.said(code.format(group))  # at the end, as --no-stream has it
        assert out.count("a\n") == 2 and err.count("b\n") == 2
        assert "[stdout:0]" in out and "[stdout:1]" in out


def test_pxconfig(notebook):
    notebook.run("%pxconfig --targets 1 --verbose")
    shown = notebook.said("%px print('c')")[0]
    assert shown == "Parallel execution on engine(s): 1\n[stdout:1] \nc\n"
    notebook.run("%pxconfig --targets all --noblock")
    assert notebook.said("ar = %px 1")[0] == "Async parallel execution on engine(s): all\n"
    notebook.run("%pxconfig --no-verbose --block --no-fold")
    assert len(notebook.texts("%px 1")) == 2
    notebook.run("%pxconfig --fold")
    assert len(notebook.texts("%px 1")) == 1


def test_activate_with_a_suffix(notebook):
    notebook.run("import phalanx\nrc = phalanx.Client()\n"
                 "v = rc[1]\nv.block = True\nv.activate('_one')")
    assert notebook.said("%px_one print('s')")[0] == "[stdout:1] \ns\n"
    assert notebook.said("%%px_one\nprint('s')")[0] == "[stdout:1] \ns\n"
    assert notebook.said("%pxresult_one")[0] == "[stdout:1] \ns\n"
    assert notebook.said("%pxstacks_one")[0] == "engine 1: idle\n"
    notebook.run("%pxconfig_one --targets 0 --noblock")
    assert notebook.run("v.targets, v.block")[0][1]["text/plain"] == "(0, False)"
    notebook.run("rc.close()")
    assert len(notebook.texts("%px 1")) == 1


def test_autopx(notebook):
    assert notebook.said("%autopx")[0] == "%autopx enabled\n"
    try:
        assert notebook.run("auto_a = 5\nauto_b = 2") == []
        assert notebook.texts("auto_a * auto_b")[0].endswith(": 10")
        out, _ = notebook.said("for i in range(2):\n    print(i)")
        assert by_engine(out) == {0: "0\n1\n", 1: "0\n1\n"}
        assert notebook.error("auto_a / 0")["ename"] == "CompositeError"
        assert notebook.texts("%px -t 0 auto_a")[0].endswith(": 5")
    finally:
        assert notebook.said("%autopx")[0] == "%autopx disabled\n"
    assert notebook.run("'auto_a' in globals()")[0][1]["text/plain"] == "False"


def test_push_and_pull(notebook):
    notebook.run("import numpy\npushed = numpy.arange(3)\nfactor = 2")
    notebook.run("%%px --push pushed,factor --pull total,first@0\n"
                 "total = int(pushed.sum()) * factor\nfirst = pushed[0] + factor")
    assert notebook.run("total, int(first)")[0][1]["text/plain"] == "([6, 6], 2)"
    assert notebook.error("%%px --pull total\n1/0")["ename"] == "CompositeError"
    assert notebook.usage("%%px --pull missing_there\npass") == (
        "UsageError: --pull: 'missing_there' cannot be fetched: "
        "NameError: name 'missing_there' is not defined (engines 0-1)")
    notebook.run("import threading\nlock = threading.Lock()")
    assert "'lock' cannot be sent: TypeError" in notebook.usage("%%px --push lock\npass")


def test_push_sends_what_has_changed(notebook):
    """An object that is counted when it is unpickled."""
    counted = ("class Counted:\n    def __init__(self, n): self.n = n\n"
               "    def __reduce__(self): return eval, ('__import__(\"builtins\").__dict__.__setitem__"
               "(\"px_got\", __import__(\"builtins\").__dict__.get(\"px_got\", 0) + 1)"
               " or %d' % self.n, {})\nvalue = Counted(1)")
    notebook.run(counted)
    notebook.run("%px import builtins; builtins.px_got = 0")
    for code, got in (("%%px --push value\npass", 1), ("%%px --push value\npass", 1),
                      ("value = Counted(2)", 1), ("%%px --push value\npass", 2),
                      ("%px value = 'mine'", 2), ("%%px --push value\npass", 3),
                      ("%px del value", 3), ("%%px --push value\npass", 4),
                      ("value.n = 5", 4), ("%%px --push value\npass", 5),
                      ("%%px --push value\npass", 5)):
        notebook.run(code)
        assert notebook.texts("%px builtins.px_got")[0].endswith(f": {got}"), code


def test_push_sends_what_engines_have_changed(notebook):
    notebook.run("import numpy\nfrom types import SimpleNamespace\n"
                 "data, array, other = [3, 1, 2], numpy.arange(3), SimpleNamespace(n=1)")
    for _ in range(2):
        notebook.run("%%px --push data,array,other\n"
                     "got = str((data, array.tolist(), other.n))\n"
                     "data.append(99); array[0] = 7; other.n = 8")
        assert "([3, 1, 2], [0, 1, 2], 1)" in notebook.texts("%px -t 0 got")[0]
    notebook.run("%%px --push data,array\nkept = data, array")
    notebook.run("%%px --push data,array\ngot = kept[0] is data and kept[1] is array")
    assert notebook.texts("%px -t 0 got")[0].endswith(": True")


# ---- very much, and not text ------------------------------------------------------------------------


def test_long_output_is_bounded(notebook):
    text, _ = notebook.said("%%px -t 0\nfor i in range(100000): print('line', i)")
    assert text.startswith("[stdout:0] \nline 0\nline 1\n")
    assert text.endswith("line 99998\nline 99999\n")
    assert "bytes are left out here" in text and len(text) < 100_000


def test_long_values_and_errors_are_bounded(notebook):
    text, = notebook.texts("%px 'a' + 1000000 * 'v' + 'z'")
    assert re.match(r"Out\[0-1(:\d+)?\]: \n'avv", text) and text.endswith("vz'")
    assert "bytes are left out here" in text and len(text) < 300000
    error = notebook.error("%px raise ValueError(1000000 * 'v')")
    assert len(error["evalue"]) < 100000 and len("".join(error["traceback"])) < 100000


def test_output_that_is_not_text(notebook):
    text, _ = notebook.said("%%px\nimport sys\nprint('\\x00\\x1b[', chr(0x10ffff))\n"
                            "sys.stdout.write('\\udc80\\n')")
    assert sorted(by_engine(text)) == [0, 1]
    assert notebook.texts("%px 1")[0].endswith(": 1")


def test_a_cell_that_prints_for_ever(notebook):
    cell = notebook.send("%%px\ni = 0\nwhile True:\n    print('line', i)\n    i += 1")
    size, error, interrupted = 0, None, False
    for kind, content in notebook.outputs(cell):
        if kind == "stream":
            size += len(content["text"])
            if "left out" in content["text"] and not interrupted:
                interrupted = True
                notebook.km.interrupt_kernel()
        if kind == "error":
            error = content
    notebook.kc.get_shell_msg(timeout=60)
    assert "KeyboardInterrupt" in error["evalue"] and size < 1_000_000
    assert notebook.texts("%px 1")[0].endswith(": 1")


# ---- while it runs -----------------------------------------------------------------------------


def waiting_cell(gate, options=""):
    return (f"%%px {options}\nimport os, time\nprint('before', flush=True)\n"
            f"while not os.path.exists({str(gate)!r}): time.sleep(0.01)\nprint('after')")


def test_output_comes_while_the_cell_runs(notebook, tmp_path):
    gate = tmp_path / "gate"
    text = ""
    for kind, content in notebook.outputs(notebook.send(waiting_cell(gate, "--progress-after -1"))):
        assert kind == "stream"
        text += content["text"]
        if by_engine(text) == {0: "before\n", 1: "before\n"}:
            gate.touch()
    notebook.kc.get_shell_msg(timeout=60)
    said = by_engine(text)
    assert {engine: t.strip() for engine, t in said.items()} == {
        0: "before\nafter", 1: "before\nafter"}


def test_progress_line(notebook, tmp_path):
    gate = tmp_path / "gate"
    code = waiting_cell(gate, "--progress-after 0.1").replace("print('after')", "")
    text = ""
    for kind, content in notebook.outputs(notebook.send(code)):
        text = "" if kind == "clear_output" else text + content["text"]
        if "before\n%px: 0 of 2 engines done" in shown_text(text):
            gate.touch()
    notebook.kc.get_shell_msg(timeout=60)
    assert {engine: t.strip() for engine, t in by_engine(text).items()} == {
        0: "before", 1: "before"}
    # Alone, it leaves nothing behind, nor on a terminal, which is not cleared.
    gate.unlink()
    code = code.replace("print('before', flush=True)\n", "")
    kinds, text = [], ""
    for kind, content in notebook.outputs(notebook.send(code)):
        kinds.append(kind)
        text += content.get("text", "")
        if kind == "stream" and "0 of 2" in content["text"]:
            gate.touch()
    notebook.kc.get_shell_msg(timeout=60)
    assert kinds[-1] == "clear_output" and on_a_terminal(text) == ""
    # In a cell that has shown something else it clears nothing.
    gate.unlink()
    code = code.replace("--progress-after 0.1", "--progress-after 0")
    for kind, content in notebook.outputs(notebook.send("print('here')\n" + as_statement(code))):
        assert kind == "stream"
        if "0 of 2" in content["text"]:
            gate.touch()
    notebook.kc.get_shell_msg(timeout=60)
    gate.unlink()
    cell = notebook.send(waiting_cell(gate, "--progress-after -1 --timeout 1.5"))
    assert not any("engines done" in str(content) for _, content in notebook.outputs(cell))
    notebook.kc.get_shell_msg(timeout=60)


def test_the_progress_of_a_recalled_run_leaves_nothing(notebook, tmp_path):
    """In what is saved: the line that front ends overwrite is cleared before results are shown."""
    gate = tmp_path / "gate"
    quiet = waiting_cell(gate, "--noblock").replace("print('before', flush=True)\n", "")
    notebook.run(quiet)
    notebook.run("%pxconfig --progress-after 0.1")
    text = ""
    for kind, content in notebook.outputs(notebook.send("%pxresult")):
        text = "" if kind == "clear_output" else text + content["text"]
        if "0 of 2 engines done" in text:
            gate.touch()
    notebook.kc.get_shell_msg(timeout=60)
    notebook.run("%pxconfig --progress-after=-1")
    assert "after" in text and "engines done" not in text


def test_interrupt_reaches_the_engines(notebook):
    cell = notebook.send("%%px\nimport time\nprint('asleep', flush=True)\ntime.sleep(100)")
    error, text, interrupted = None, "", False
    for kind, content in notebook.outputs(cell):
        text += content["text"] if kind == "stream" else ""
        if len(by_engine(text)) == 2 and not interrupted:
            interrupted = True
            notebook.km.interrupt_kernel()
        if kind == "error":
            error = content
    notebook.kc.get_shell_msg(timeout=60)
    assert error["ename"] == "CompositeError"
    assert "%px: sent SIGINT to engines 0-1; interrupt again to leave them\n" in text
    assert "[0:execute]: KeyboardInterrupt" in error["evalue"]
    assert len(notebook.texts("%px 1")) == 1


def test_an_interrupt_takes_back_what_waits_and_leaves_what_runs_before_it(notebook, tmp_path):
    gate = tmp_path / "gate"
    notebook.run("import phalanx\ndef task(gate):\n    import os, time\n"
                 "    while not os.path.exists(gate): time.sleep(0.01)\n    return 'whole'\n"
                 f"client = phalanx.Client()\nfirst = client[:].apply_async(task, {str(gate)!r})")
    *said, (kind, error) = notebook.run("%px --timeout 1 print('it began')")
    assert kind == "error" and error["ename"] == "TaskAborted", error
    assert said == [("stderr", "%px: time is up (--timeout=1): interrupting engines 0-1\n")]
    gate.touch()
    assert notebook.said("print(first.get(60))\nclient.close()") == ("['whole', 'whole']\n", "")
    assert out_without_counts(notebook.texts("%px 1")) == ["Out[0-1]: 1"]


def test_what_callbacks_print_is_the_output_of_the_cell_that_wanted_them(notebook, tmp_path):
    if notebook.ipykernel:
        pytest.skip("ipykernel 6 has one thread's output in the cell that runs")
    gate = tmp_path / "gate"
    notebook.run("import phalanx\nclient = phalanx.Client()\ndef task(gate):\n    import os, time\n"
                 "    while not os.path.exists(gate): time.sleep(0.01)\n"
                 f"result = client[0].apply_async(task, {str(gate)!r})\n"
                 "result.add_done_callback(lambda _: print('from the first'))")
    second = notebook.send("import asyncio\ncalled = asyncio.Event()\n"
                           "loop = asyncio.get_running_loop()\n"
                           "def call(_): print('from the second'); loop.call_soon_threadsafe(called.set)\n"
                           "result.add_done_callback(call)\n"
                           f"open({str(gate)!r}, 'w').close()\nheard = await called.wait()")
    assert [content["text"] for _, content in notebook.outputs(second)] == ["from the second\n"]
    notebook.kc.get_shell_msg(timeout=60)
    notebook.run("client.close()")


def stubborn_cell(gate, options):
    return (f"%%px -t 0 {options}\nimport os, time\nwhile True:\n    try:\n"
            "        print('on', flush=True)\n"
            f"        while not os.path.exists({str(gate)!r}): time.sleep(0.02)\n"
            "        break\n"
            "    except KeyboardInterrupt: pass\n")


LADDER = """\
%px: engine 0 has not come back. To wait on, see, kill or replace it, type
    %pxresult
    %pxstacks --targets 0
    %pxcluster engines --kill 0
    %pxcluster engines --restart 0
"""


def test_the_second_interrupt_gives_up(notebook, tmp_path):
    gate = tmp_path / "gate"
    said, interrupts, error = "", 0, None
    for kind, content in notebook.outputs(notebook.send(stubborn_cell(gate, ""))):
        if kind == "error":
            error = content
        if kind != "stream":
            continue
        said += content["text"]
        if interrupts < shown_text(said).count("on\n") and interrupts < 2:  # each "on" anew
            interrupts += 1
            notebook.km.interrupt_kernel()
    notebook.kc.get_shell_msg(timeout=60)
    assert error["ename"] == "KeyboardInterrupt"
    assert error["traceback"] == ["KeyboardInterrupt: left engine 0"]
    assert LADDER in said
    stacks = notebook.run("%pxstacks -t 0")[0][1]  # while it is busy
    assert stacks.startswith("engine 0: execute_request for ")
    assert "<module>" in stacks
    gate.touch()
    assert "on\n" in notebook.said("%pxresult")[0]


def test_timeout(notebook, tmp_path):
    said, error = "", None
    cell = notebook.send(waiting_cell(tmp_path / "never", "--timeout 0.5"))
    for kind, content in notebook.outputs(cell):
        said += content["text"] if kind == "stream" else ""
        error = content if kind == "error" else error
    notebook.kc.get_shell_msg(timeout=60)
    assert "%px: time is up (--timeout=0.5): interrupting engine" in said
    assert error["ename"] == "CompositeError" and "KeyboardInterrupt" in error["evalue"]


def test_signal_on_interrupt(notebook, tmp_path):
    """None is sent: the first interrupt gives up."""
    gate = tmp_path / "gate"
    said, error = "", None
    for kind, content in notebook.outputs(notebook.send(
            waiting_cell(gate, "-t 0 --signal-on-interrupt 0"))):
        said += content["text"] if kind == "stream" else ""
        error = content if kind == "error" else error
        if shown_text(said) == "[stdout:0] \nbefore\n":
            notebook.km.interrupt_kernel()
    notebook.kc.get_shell_msg(timeout=60)
    assert error["ename"] == "KeyboardInterrupt" and LADDER in said
    gate.touch()
    assert "after" in notebook.said("%pxresult")[0]


def test_stacks(notebook):
    assert notebook.said("%pxstacks")[0] == "engines 0-1: idle\n"


def test_stacks_of_engines_that_hold_the_gil(notebook, tmp_path):
    """In C code, which answers no signal of Python's; equal stacks are told once."""
    fifo = str(tmp_path / "fifo")
    os.mkfifo(fifo)
    notebook.run(f"%%px\nimport ctypes, os\nfd = os.open({fifo!r}, os.O_RDWR)\n"
                 "libc = ctypes.PyDLL(None)  # keeps the GIL\n"
                 "def hold(): return libc.read(fd, ctypes.create_string_buffer(1), 1)")
    notebook.run("%px --noblock --out held hold()")
    said = ""
    deadline = time.monotonic() + 30
    while not re.search("^engines 0-1: execute_request for .*hold", said, re.DOTALL):
        assert time.monotonic() < deadline, said
        said = notebook.said("%pxstacks")[0]
    writer = os.open(fifo, os.O_WRONLY)
    os.write(writer, b"12")
    os.close(writer)
    assert said.count("hold") == 1 and "<module>" in said and "no answer" not in said
    assert notebook.run("held.wait_for_output()\n[r.data['text/plain'] for r in held.get()]")[0][1] == {
        "text/plain": "['1', '1']"}


def test_why_a_cell_runs(notebook, tmp_path):
    gate = tmp_path / "gate"
    notebook.run(waiting_cell(gate, "--noblock --out waiting"))
    both = re.compile("^engines 0-1: execute_request for up to \\d+ s$", re.MULTILINE)
    try:
        # Until both engines have begun, one may still be said to be idle.
        wait_for(lambda: both.search(notebook.said("%pxwhy")[0]), what="both to be busy")
        for code in ("%pxwhy", "%pxwhy waiting"):
            text, _ = notebook.said(code)
            assert re.search("^2 tasks of engines 0-1: running", text)
            assert both.search(text)
        notebook.run("import phalanx\nlb = phalanx.Client().load_balanced_view()")
        for _ in range(5):  # asked before it has arrived
            text, _ = notebook.said("behind = lb.apply_async(int)\n%pxwhy behind")
            assert "its engine runs it, or what was sent there directly" in text or "busy" in text, text
    finally:
        gate.touch()
    notebook.run("waiting.get(), behind.get(30), lb.client.close()")
    assert notebook.said("%pxwhy waiting")[0] == "2 tasks done\n"
    assert "is not an AsyncResult" in notebook.usage("%pxwhy In")


def test_why_a_task_that_all_have_refused_waits(notebook, tmp_path):
    """It, and one with a time-out that has failed on all, do not fail: they wait for another engine."""
    gate = str(tmp_path / "gate")
    notebook.run(
        "import phalanx\nrc = phalanx.Client()\nlb = rc.load_balanced_view(retries=5)\n"
        "def there(gate):\n    import os\n    return os.path.exists(gate)\n"
        f"refused = lb.apply_async(phalanx.depend(there, {gate!r})(abs), -1)\nlb.timeout = 600\n"
        f"failing = lb.apply_async(lambda gate: 1 / __import__('os').path.exists(gate), {gate!r})")
    words = r"waiting for \d+ s: no engine may run it: 2 refused it or failed at it; it waits for an"
    for name in ("refused", "failing"):
        wait_for(lambda: re.search(words, notebook.said("%pxwhy " + name)[0]), what=words)
    open(gate, "w").close()
    started, _ = notebook.said("%pxcluster engines +1")
    assert notebook.run("refused.get(30), failing.get(30)")[0][1]["text/plain"] == "(1, 1.0)"
    notebook.run("rc.close()")
    notebook.run("%pxcluster engines --kill " + re.search(r"\d+", started)[0])


def test_why_tasks_wait(notebook, tmp_path):
    """Dependencies, engines that may not or cannot take them, the high-water mark."""
    gate = str(tmp_path / "gate")
    notebook.run(
        "import phalanx\nrc = phalanx.Client()\nlb = rc.load_balanced_view()\n"
        "def wait(gate):\n    import os, time\n"
        "    while not os.path.exists(gate): time.sleep(0.01)\n"
        f"running = [lb.apply_async(wait, {gate!r}) for _ in range(2)]\n"
        "with lb.temp_flags(after=running[0]): after = lb.apply_async(int)\n"
        "with lb.temp_flags(targets=[0]): meant = lb.apply_async(int)\n"
        f"last = [lb.apply_async(wait, {gate!r}) for _ in range(8)][-1]\n"
        "first = running[0]")
    why = {
        "first": r"of engine \d: running for \d+ s: its engine runs it",
        "after": "1 of the 1 tasks it is to run after have not ended; it needs all of them",
        "meant": "the 1 engine that may run it is busy",
        "last": r"the 2 engines that may run it are busy \(high-water mark \d+\); \d+ wait",
    }
    engines = re.compile(r"^engines? [-0-9]+: apply_request for (up to )?\d+ s$", re.MULTILINE)
    try:
        # Until both engines have begun, one may still be said to be idle.
        wait_for(lambda: engines.search(notebook.said("%pxwhy first")[0]), what="both to be busy")
        for name, words in why.items():
            said = notebook.said("%pxwhy " + name)[0]
            assert re.search(words, said) and engines.search(said), said
    finally:
        with open(gate, "w"):
            notebook.run("lb.wait(); rc.close()")
    assert "the scheduler does not know it" in notebook.said("%pxwhy no-such-task")[0]


# ---- engines come and go ---------------------------------------------------------------------------


def test_an_engine_that_dies(notebook):
    """It is named with its cause; the others' results are shown; the next cell works."""
    started, _ = notebook.said("%pxcluster engines +1")
    new = int(re.fullmatch(r"Started engine (\d+)\.\n", started)[1])
    notebook.run(f"%px -t {new} victim = True")
    cell = notebook.send(f"%%px --targets 0,{new}\nimport os\n"
                         "if 'victim' in globals(): os.kill(os.getpid(), 9)\n7")
    said, values, error = "", [], None
    for kind, content in notebook.outputs(cell):
        said += content["text"] if kind == "stream" else ""
        if kind == "display_data":
            values.append(plain(content["data"]["text/plain"]))
        error = content if kind == "error" else error
    notebook.kc.get_shell_msg(timeout=60)
    assert f"%px: lost engine {new}: killed by SIGKILL" in said
    assert [v.split("]")[0].split(":")[0] for v in values] == ["Out[0"]
    assert "EngineError" in error["evalue"]
    assert len(notebook.texts("%px 1")) == 1


def test_engines_are_added_ended_killed_and_replaced(notebook):
    before, _ = notebook.said("%pxcluster engines")
    count = int(before.split()[0])
    assert notebook.said("%pxcluster engines +2")[0].startswith("Started engines ")
    assert notebook.said("%pxcluster engines")[0].startswith(f"{count + 2} engines: ")
    ended, _ = notebook.said("%pxcluster engines -1")
    assert re.fullmatch(r"Ended engine \d+\.\n", ended)
    new = re.search(r"(\d+)\n", notebook.said("%pxcluster engines")[0])[1]
    replaced, _ = notebook.said(f"%pxcluster engines --restart {new}")
    started = re.fullmatch(rf"Killed engine {new}; started engine (\d+)\.\n", replaced)[1]
    assert notebook.said(f"%pxcluster engines --kill {started}")[0] == f"Killed engine {started}.\n"
    assert notebook.said("%pxcluster engines")[0] == before
    assert "there is no engine 999" in notebook.error("%pxcluster engines --kill 999")["evalue"]
    status, _ = notebook.said("%pxcluster status")
    assert status.startswith(f"{count} engine") and "not started here" in status


# ---- through other front ends ---------------------------------------------------------------------


def as_statement(cell):
    """A %%px cell as a statement, for a cell that does something else as well."""
    line, _, body = cell.partition("\n")
    name, _, options = line.removeprefix("%%").partition(" ")
    return f"get_ipython().run_cell_magic({name!r}, {options!r}, {body!r})"


def test_what_goes_to_a_pager_is_shown(notebook):
    shown = notebook.run("%%px\nlen?")
    assert [kind for kind, _ in shown] == ["display_data"] * 2
    assert shown[0][1] == {"text/plain": "[output:0-1]"}
    assert "Return the number of items in a container." in shown[1][1]["text/plain"]
    assert notebook.run("%pxresult") == shown


# ---- cleared output ------------------------------------------------------------------------


def test_an_engine_clears_what_is_its_own(notebook):
    notebook.scatter("place")
    cell = ("%%px\nfrom IPython.display import clear_output, display\nprint('first'); display('shown')\n"
            "if place == 0:\n    clear_output({}); {}")
    left = [("stdout", "[stdout:1] \nfirst\n"), ("display_data", {"text/plain": "[output:1]"}),
            ("display_data", {"text/plain": "'shown'"})]
    assert notebook.run(cell.format("", "pass")) == left
    assert notebook.run("%pxresult") == left
    left[0] = ("stdout", "[stdout:0] \nsecond\n[stdout:1] \nfirst\n")
    assert notebook.run(cell.format("wait=True", "print('second')")) == left
    kinds = [kind for kind, _ in notebook.run(cell.format("wait=True", "pass"))]  # for what never comes
    assert kinds == ["stdout", "display_data", "display_data"]


def test_a_cleared_cell_is_shown_anew_while_it_runs(notebook, tmp_path):
    gate = tmp_path / "gate"
    cell = notebook.send(
        "%%px\nimport os, time\nfrom IPython.display import clear_output\n"
        "for i in range(3):\n    clear_output(wait=True); print('step', i)\n"
        f"while not os.path.exists({str(gate)!r}): time.sleep(0.02)\nprint('end')")
    text = ""
    for kind, content in notebook.outputs(cell):
        text = "" if kind == "clear_output" else text + content["text"]
        if text == "[stdout:0-1] \nstep 2\n":
            gate.touch()
    assert text == "[stdout:0-1] \nstep 2\nend\n" and gate.exists()
    notebook.kc.get_shell_msg(timeout=60)


def test_our_own_lines_are_not_cleared(notebook):
    cell = notebook.send(
        "%%px\nimport time\nfrom IPython.display import clear_output\nclear_output()\n"
        "try:\n    print('before', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    clear_output(); print('after')")
    shown, interrupted = {"stdout": "", "stderr": ""}, False
    for kind, content in notebook.outputs(cell):
        if kind == "clear_output":
            shown = dict.fromkeys(shown, "")
        else:
            shown[content["name"]] += content["text"]
        if shown["stdout"] == "[stdout:0-1] \nbefore\n" and not interrupted:
            notebook.km.interrupt_kernel()
            interrupted = True
    assert shown == {"stdout": "[stdout:0-1] \nafter\n",
                     "stderr": "%px: sent SIGINT to engines 0-1; interrupt again to leave them\n"}
    notebook.kc.get_shell_msg(timeout=60)


def test_a_display_is_remembered_as_it_ends(notebook):
    cell = "%%px -t 0\nh = display('one', display_id='it'); h.update('two'); display('three')"
    shown = notebook.run(cell)
    assert [data["text/plain"] for _, data in shown] == ["[output:0]", "'two'", "[output:0]", "'three'"]
    assert notebook.run("%pxresult") == shown


@pytest.fixture
def spec(notebook, monkeypatch):
    """The kernel of `notebook` for front ends that start their own: its name."""
    monkeypatch.setenv("JUPYTER_PATH", str(notebook.folder))
    return "under_test"


def test_nbclient(notebook, spec, tmp_path):
    """What a saved notebook holds (nothing of a progress line), and that output arrives before the
    cell's end."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    gate = tmp_path / "gate"

    class Client(nbclient.NotebookClient):
        def process_message(self, message, cell, cell_index):
            if message["msg_type"] == "stream" and "before" in message["content"]["text"]:
                gate.touch()
            return super().process_message(message, cell, cell_index)

    cells = ["%load_ext phalanx" if notebook.ipykernel else "1",
             "print('here')\n" + as_statement(waiting_cell(gate, "-t 0 --progress-after 0")),
             "%px -t 1 6 * 7", "%px 1/0"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    Client(book, kernel_name=spec, timeout=60, allow_errors=True).execute(env=notebook.env)
    stream, value, error = (cell.outputs for cell in book.cells[1:])
    assert "".join(o.text for o in stream) == "here\n[stdout:0] \nbefore\nafter\n"
    assert out_without_counts([plain(o.data["text/plain"]) for o in value
                               if o.output_type == "display_data"]) == ["Out[1]: 42"]
    assert error[-1].output_type == "error" and error[-1].ename == "CompositeError"


def open_console(pexpect, notebook, spec):
    """At its second prompt. jupyter_client lets go of the ports that it has found before the kernel
    takes them: one that another process got first is a console to start again."""
    for attempt in range(3):
        console = pexpect.spawn(
            PYTHON, ["-m", "jupyter_console", "--kernel", spec, "--simple-prompt"],
            env=dict(notebook.env, JUPYTER_PATH=str(notebook.folder)), encoding="utf-8",
            timeout=60, dimensions=(50, 120))
        if console.expect([r"In \[1\]: ", "Address already in use"]) == 0:
            console.sendline("%load_ext phalanx" if notebook.ipykernel else "1")
            if console.expect([r"In \[2\]: ", pexpect.TIMEOUT], timeout=30) == 0:
                return console
        console.close(force=True)
    pytest.fail("no console came up in three attempts")


def test_console(notebook, spec):
    """jupyter console in a terminal: live output, folded, and a progress line that goes."""
    pexpect = pytest.importorskip("pexpect")
    pytest.importorskip("jupyter_console")
    console = open_console(pexpect, notebook, spec)
    try:
        console.sendline("%px import time; print('first', flush=True); time.sleep(1.5); print('last')")
        console.expect(r"\[stdout:0(-1)?\]\s+first\r\n")
        console.expect("%px: 0 of 2 engines done, 1 s")
        console.expect(r"last\r\n")
        console.expect(r"In \[3\]: ")
        console.sendline("%px 6 * 7")
        console.expect(r"Out\[0-1(:\d+)?\]: .*42")
        console.expect(r"In \[4\]: ")
        console.sendline("%px 1 / 0")
        console.expect(r"\[0-1:execute\]:")
        console.expect("ZeroDivisionError.*: division by zero")
        console.expect(r"In \[5\]: ")
        assert "[1:execute]" not in console.before
    finally:
        console.close(force=True)


def test_ipython_in_a_terminal(notebook):
    """No kernel at all: labels, values, a progress line that goes, Ctrl-C."""
    pexpect = pytest.importorskip("pexpect")
    if not notebook.ipykernel:
        pytest.skip("once is enough")
    terminal = pexpect.spawn(
        PYTHON, ["-m", "IPython", "--simple-prompt", "--colors=NoColor"],
        env=dict(notebook.env, TERM="dumb"), encoding="utf-8", timeout=60, dimensions=(50, 120))
    try:
        terminal.expect(r"In \[1\]: ")
        terminal.sendline("%load_ext phalanx")
        terminal.expect(r"In \[2\]: ")
        terminal.sendline("%px import time; print('first', flush=True); time.sleep(1.5); print('last')")
        terminal.expect(r"\[stdout:0(-1)?\]\s+first\r\n")
        terminal.expect("%px: 0 of 2 engines done, 1 s")
        terminal.expect(r"last\r\n")
        terminal.expect(r"In \[3\]: ")
        terminal.sendline("%px print('on', flush=True); time.sleep(100)")
        terminal.expect(r"\[stdout:0(-1)?\]\s+on\r\n")
        terminal.expect("%px: 0 of 2 engines done")
        terminal.sendintr()
        terminal.expect("KeyboardInterrupt")
        terminal.expect(r"In \[4\]: ")
        terminal.sendline("%px 6 * 7")
        terminal.expect(r"Out\[0-1(:\d+)?\]: 42")
        terminal.sendline("%px 1 / 0")
        terminal.expect(r"----> 1 1 */ *0\r\n\s*ZeroDivisionError: division by zero\r\n")  # no colors
    finally:
        terminal.close(force=True)


# ---- without a cluster ---------------------------------------------------------------------------


def loses_its_cluster(notebook, env):
    """While a cell runs. The next ones work, on another."""
    name, = (notebook.folder / "ipython" / "profile_default" / "security").glob("cluster-px-*.json")
    said, error, stopped = "", None, False
    for kind, content in notebook.outputs(notebook.send(
            "%%px --progress-after -1\nimport time\nprint('on', flush=True)\ntime.sleep(100)")):
        said += content["text"] if kind == "stream" else ""
        error = content if kind == "error" else error
        if shown_text(said).endswith("on\n") and not stopped:  # each engine's may come apart
            stopped = True
            subprocess.run([BIN / "pxcluster", "stop", "--cluster-id", name.stem[len("cluster-"):]],
                           env=programs_env(env), check=True, stderr=subprocess.DEVNULL)
    notebook.kc.get_shell_msg(timeout=60)
    # Engines that end interrupt what runs, and may have the time to say so.
    if "KeyboardInterrupt" not in error["evalue"]:
        assert re.search("%px: lost engine.* (died while running task|gone while running this cell)", said), said
        assert "EngineError" in error["evalue"] or error["ename"] == "EngineError"
    assert notebook.run("6 * 7")[0][1]["text/plain"] == "42"
    shown = notebook.run("%px 6 * 7")
    assert shown[0][1].startswith("No cluster is running: starting one of")
    assert notebook.run("phalanx.Client().ids == list(range(%d))" % len(os.sched_getaffinity(0))
                        )[0][1]["text/plain"] == "True"  # of the new one


def loses_its_controller(notebook):
    """Of a cluster that %px started, and that ends without it."""
    file, = (notebook.folder / "ipython" / "profile_default" / "security").glob("cluster-px-*.json")
    said, error, killed = "", None, False
    for kind, content in notebook.outputs(notebook.send(
            "%%px --progress-after -1\nimport time\nprint('on', flush=True)\ntime.sleep(100)")):
        said += content["text"] if kind == "stream" else ""
        error = content if kind == "error" else error
        if "on\n" in said and not killed:
            killed = True
            os.kill(json.loads(file.read_text())["controller"]["state"]["pid"], signal.SIGKILL)
    notebook.kc.get_shell_msg(timeout=60)
    assert error["traceback"] == ["KernelError: the controller died, and its cluster has ended; the "
                                  "next %px starts another"]
    assert notebook.run("%px 6 * 7")[0][1].startswith("No cluster is running: starting one of")


@pytest.mark.parametrize("kernel", EACH_KERNEL)
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
        assert [kind for kind, _ in shown[1:] if kind != "stdout"] == ["display_data"]
        gate, kinds = tmp_path / "gate", []
        code = re.sub(r"print\(.*\)\n?", "", waiting_cell(gate, "--progress-after 0.1"))
        for kind, content in notebook.outputs(notebook.send(code)):
            kinds.append(kind)
            gate.touch()
        assert kinds[-1] == "clear_output", kinds  # of this cell, which started nothing
        notebook.kc.get_shell_msg(timeout=60)
        text, = notebook.texts("%px 1")
        assert text.startswith("Out[0-%d:" % (engines - 1) if engines > 1 else "Out[0:")
        mine = "import phalanx\nwith phalanx.Client() as rc: print(rc[0].apply_sync(pow, 2, 5))"
        assert notebook.said(mine)[0] == "32\n"
        if kernel == "pxkernel":  # the same code in both
            loses_its_cluster(notebook, env)
            loses_its_controller(notebook)
        notebook.close()
        wait_for(lambda: not conftest.processes_with(f"IPYTHONDIR={tmp_path / 'ipython'}"), 20,
                 "the cluster's end")
    finally:
        kill_leftovers(tmp_path / "ipython")


@pytest.mark.parametrize("kernel", EACH_KERNEL)
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


def test_a_cluster_without_engines(tmp_path):
    env = environment(tmp_path / "ipython")
    try:
        subprocess.Popen([BIN / "pxcontroller"], env=programs_env(env), stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        security = tmp_path / "ipython" / "profile_default" / "security"
        wait_for((security / "ipcontroller-client.json").exists, 20, "the controller")
        notebook = Notebook(KERNELS["pxkernel"], programs_env(env), tmp_path)
        assert notebook.error("%px 1")["traceback"] == [
            "KernelError: the cluster has no engines; '%pxcluster engines +4' starts some"]
        assert notebook.said("%pxcluster engines +1")[0] == "Started engine 0.\n"
        assert notebook.texts("%px 6 * 7")[0].endswith(": 42")
        notebook.close()
    finally:
        kill_leftovers(tmp_path / "ipython")


def start_controller(env, *options):
    controller = subprocess.Popen([BIN / "pxcontroller", "--ready-fd=1", "--log-level=ERROR", *options],
                                  env=programs_env(env), stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE)
    with controller.stdout as ready:
        assert ready.readline() == b"ready\n"
    return controller


def kill(process):
    process.kill()
    process.wait()


def test_a_controller_that_is_killed(tmp_path):
    """A cell says what it waits for, and goes on where another controller takes over in time."""
    env = environment(tmp_path / "ipython")
    gate = tmp_path / "gate"
    try:
        controller = start_controller(env, conftest.controller_ports())
        subprocess.Popen([BIN / "pxengine", "-n", "2"], env=programs_env(env),
                         stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        state = tmp_path / "ipython" / "profile_default" / "log" / "engines.json"
        wait_for(lambda: state.exists() and len(json.loads(state.read_text())["engines"]) == 2,
                 what="the engines in the controller's books")
        notebook = Notebook(KERNELS["pxkernel"], programs_env(env), tmp_path)
        assert notebook.texts("%px 1")[0].endswith(": 1")
        said, killed = "", False
        cell = waiting_cell(gate, "--progress-after=-1") + "\n6 * 7"
        for kind, content in notebook.outputs(notebook.send(cell)):
            said += content["text"] if kind == "stream" else ""
            said += plain(content["data"]["text/plain"]) if kind == "display_data" else ""
            if not killed and by_engine(said) == {0: "before\n", 1: "before\n"}:
                killed = True
                kill(controller)
            if "cannot be reached" in said and controller.returncode is not None:
                controller = start_controller(env, "--restore")
            if "is back" in said:
                gate.touch()
        said = shown_text(said)
        back = re.search(r"%px: the controller cannot be reached; waiting for it until \d\d:\d\d:\d\d; "
                         r"an interrupt ends the cell\n(?:.*\n)*%px: the controller is back, after \d+ s\n"
                         r"((?:.*\n)*).*: 42$", said)
        assert back and by_engine(back[1]) == {0: "after\n", 1: "after\n"}, said
        notebook.kc.get_shell_msg(timeout=60)

        gate.unlink()
        said, killed = "", False
        cell = waiting_cell(gate, "--out=waited --progress-after=-1")
        for kind, content in notebook.outputs(notebook.send(cell)):
            said += content["text"] if kind == "stream" else ""
            if not killed and by_engine(said) == {0: "before\n", 1: "before\n"}:
                killed = True
                kill(controller)
            if "cannot be reached" in said and killed is True:
                killed = "and interrupted"
                notebook.km.interrupt_kernel()
        assert "left engines 0-1, which nothing reaches without the controller" in said
        assert (kind, content["ename"]) == ("error", "KeyboardInterrupt")
        warned, error = notebook.run("waited.get(0.1)")
        assert "RuntimeWarning: the controller cannot be reached; waiting" in warned[1]
        assert error[1]["ename"] == "TimeoutError"
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
