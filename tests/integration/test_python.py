# SPDX-License-Identifier: BSD-3-Clause
"""IPython's features and the libraries that notebooks live on, in pxkernel."""
import contextlib
import json
import os
import shutil
import sqlite3
import subprocess

import pytest
from conftest import PYTHON, wait_for
from kernels import PXKERNEL, TIMEOUT, kernel, python, shared, start  # noqa: F401: fixtures

pytestmark = pytest.mark.usefixtures("no_leftovers")


def text_of(seen):
    """All that a cell shows as text."""
    return "".join(c.get("text") or c.get("data", {}).get("text/plain", "") for _, c in seen)


# code, what its text holds
CELLS = [
    ("%%time\nsum(range(10))", "Wall time"),
    ("%timeit -n1 -r1 pass", "per loop"),
    ("!echo from $((6 * 7))", "from 42"),
    ("%%bash\necho from bash $BASH", "from bash /"),
    ("x = !echo lines\nx[0]", "lines"),
    ("%whos", "Variable"),
    ("%clear", "\033[H\033[2J"),
    ("%config DisplayFormatter.active_types", "text/html"),
    ("%config HistoryManager.db_cache_size", "0"),
    ("%config IPKernelApp.connection_file", "kernel.json"),
    ("%pwd", "/"),
    ("%%writefile script.py\nprint('from a file', __name__)", "Writing script.py"),
    ("%run script.py", "from a file __main__"),
    ("%load_ext autoreload\n%autoreload 2\n'loaded'", "loaded"),
    ("import asyncio\nawait asyncio.sleep(0, 'awaited')", "awaited"),
    ("%autoawait trio\n%autoawait asyncio", ""),
    ("await asyncio.sleep(0, 'with asyncio again')", "with asyncio again"),
    ("1 + 1\n[n async for n in (lambda: (i async for i in agen()))()] if False else 'parsed'",
     "parsed"),
    ("5", "5"),
    ("_ + 1", "6"),
    ("Out[max(Out)], In[-2]", "(6, '_ + 1')"),
    ("%matplotlib inline\n'inline'", "inline"),
    ("import multiprocessing as m\nwith m.Pool(2) as pool: print(pool.map(abs, [-1, -2]))",
     "[1, 2]"),
    ("import os, sys\nsys.stdout.flush()\npid = os.fork()\nif not pid: os._exit(7)\n"
     "os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])", "7"),
    ("import faulthandler; faulthandler.is_enabled() in (True, False)", "True"),
    ("%%capture told\nprint('hidden')", ""),
    ("told.stdout", "hidden"),
    ("from tqdm import tqdm\nfor _ in tqdm(range(3)): pass", "3/3"),
    ("get_ipython().__class__.__mro__[1].__module__", "IPython.core.interactiveshell"),
    ("get_ipython().__class__.__name__", "ZMQInteractiveShell"),
    ("get_ipython().config['IPKernelApp']['connection_file']", "kernel.json"),
    ("import ipykernel.comm; ipykernel.comm.Comm.__module__", "_phalanx_comms"),
    ("k = get_ipython().kernel; k.session.session == k.ident != ''", "True"),
    ("k.send_response(k.iopub_socket, 'stream', {'name': 'stdout', 'text': 'sent'}); None", "sent"),
    ("k.session.send(k.iopub_socket, 'display_data', {'data': {'text/plain': 'shown'}}); None", "shown"),
    ("k.parent.connection_file, k.execution_count == get_ipython().execution_count", "kernel.json', True"),
    ("import ipykernel; ipykernel.get_connection_file()", "kernel.json"),
    ("from ipykernel.connect import get_connection_info; get_connection_info(unpack=True)['key']", "b'"),
    ("get_ipython().parent_header['header']['msg_type']", "execute_request"),
    ("import asyncio; asyncio.get_event_loop().is_running()", "True"),
    ("await asyncio.sleep(0); asyncio.get_event_loop().is_running()", "True"),
    ("asyncio.get_event_loop().run_until_complete(asyncio.sleep(0)) if not "
     "asyncio.get_event_loop().is_running() else 'ran'", "ran"),
    ("from tqdm.autonotebook import tqdm as bar; bar.__module__", "tqdm.notebook"),
    ("from ipykernel.zmqshell import ZMQInteractiveShell as s; isinstance(get_ipython(), s)", "True"),
    ("from IPython.terminal.interactiveshell import TerminalInteractiveShell as t\n"
     "isinstance(get_ipython(), t)", "False"),
    ("import IPython; IPython.terminal.debugger.set_trace.__name__", "set_trace"),
    ("import builtins; builtins.get_ipython is not None and __name__", "__main__"),
]


def test_cells(kernel):
    for code, part in CELLS:
        reply, seen = kernel.run(code)
        assert reply["status"] == "ok", (code, reply)
        assert part in text_of(seen), (code, seen)


CHILDREN = """
import os, warnings
warnings.simplefilter('ignore')  # Python's, of forks while there are threads
children = []
for child in range(4):
    children.append(os.fork())
    if not children[-1]:
        for line in range(200):
            print('child', child, 'line', line)
        print('end', end='')
        os._exit(0)
[os.waitpid(child, 0) for child in children]
"""


def test_lines_of_children_stay_whole(kernel):
    reply, seen = kernel.run(CHILDREN)
    assert reply["status"] == "ok", reply
    lines = "".join(c["text"] for kind, c in seen if kind == "stream").replace("end", "").splitlines()
    assert sorted(lines) == sorted(f"child {c} line {l}" for c in range(4) for l in range(200))


DISPLAYS = [
    ("HTML('<b>x</b>')", "text/html"), ("Markdown('**x**')", "text/markdown"),
    ("Latex('$x$')", "text/latex"), ("Math('x')", "text/latex"), ("SVG('<svg></svg>')",
     "image/svg+xml"), ("JSON({'a': 1})", "application/json"),
    ("Javascript('1')", "application/javascript"), ("Pretty('x')", "text/plain"),
    ("Code('x = 1')", "text/html"), ("IFrame('about:blank', 10, 10)", "text/html"),
    ("Image(data=b'\\x89PNG\\r\\n\\x1a\\n' + b'0' * 50, format='png')", "image/png"),
    ("Audio([0, 1] * 100, rate=8000)", "text/html"), ("FileLink('script.py')", "text/html"),
    ("ProgressBar(5)", "text/html"), ("GeoJSON({'type': 'Point'})", "application/geo+json"),
]


TRANSFORMED = r"""
import itertools, pathlib, random, warnings
from IPython.core.inputtransformer2 import EscapedCommand, TransformerManager

ours, theirs = get_ipython().input_transformer_manager, TransformerManager()
assert type(ours) is not TransformerManager
warnings.simplefilter("ignore", UserWarning)
def outcome(manager, cell):
    try:
        return manager.transform_cell(cell)
    except IndentationError:  # or TabError, which is one
        return IndentationError
    except Exception as error:
        return type(error)
pieces = ["a", " ", "=", "!", "%", "?", "\n", "\\\n", "(", ")", ",", ";", "/", "'", "#", "\r", "\f", "\x85", "\t",
          ":", "...:", ">>> ", "In [1]: ", "if a:\n  ", "%%x\n", 3 * '"']
cells = ["".join(c) for n in (1, 2, 3) for c in itertools.product(pieces, repeat=n)]
draw = random.Random(7)
cells += ["".join(draw.choices(pieces, k=draw.randrange(4, 12))) for _ in range(8000)]
cells += ["%a " + cell for cell in cells[-3000:]]
cells += [pathlib.Path(random.__file__).read_text(), pathlib.Path(pathlib.__file__).read_text()]
differ = [cell for cell in cells if outcome(theirs, cell) not in (outcome(ours, cell), IndentationError)]

class Own(EscapedCommand):
    @classmethod
    def find(cls, tokens):
        return cls((1, 0)) if tokens and tokens[0] and tokens[0][0].string == "own" else None
    def transform(self, lines):
        return ["'instead'\n"]
ours.token_transformers.append(Own)
for get_ipython().input_transformer_manager in (theirs, ours): pass
differ, outcome(ours, "own")
"""


def test_cells_are_transformed_as_ipython_does(kernel):
    """Their tokens are looked at only where they may be IPython's."""
    pytest.importorskip("IPython.core.inputtransformer2")
    _, seen = kernel.run(TRANSFORMED)
    kernel.run("ours.token_transformers.remove(Own)\ndel warnings.filters[0]")
    assert text_of(seen) == r"""([], "'instead'\n")"""


FORMATTED = r"""
from IPython.core.formatters import BaseFormatter, DisplayFormatter

ours = get_ipython().display_formatter
html, bundle = ours.formatters["text/html"], ours.mimebundle_formatter
class Own(int):
    def _repr_html_(self): return "own"
class Always(BaseFormatter):
    def __call__(self, obj): return "always"
class Odd(dict):
    def __repr__(self): raise ValueError("odd")
values = [1, True, 2.5, 1j, "a", b"b", None, [1, [2]], (1,), {1: 2}, {3}, frozenset(), range(3), 10**50,
          Own(1), [Own(1)], object, len, ..., Odd(), "x" * 2000, list(range(2000))]
def differ():
    return [v for v in values if ours.format(v) != DisplayFormatter.format(ours, v)]
found = [differ()]
for change, back in (
        (lambda: html.for_type(int, lambda i: "number"), lambda: html.pop(int)),
        (lambda: html.for_type("builtins.float", lambda i: "later"), lambda: html.pop(float)),
        (lambda: html.for_type(object, lambda i: "any"), lambda: html.pop(object)),
        (lambda: bundle.for_type(str, lambda i, **k: {"text/x": i}), lambda: bundle.pop(str)),
        (lambda: html.singleton_printers.update({id(None): lambda n: "none"}),
         lambda: html.singleton_printers.clear()),
        (lambda: ours.formatters.update({"text/y": Always(parent=ours)}),
         lambda: ours.formatters.pop("text/y")),
        (lambda: setattr(ours.formatters["text/plain"], "float_precision", "%.3f"),
         lambda: setattr(ours.formatters["text/plain"], "float_precision", "")),
        (lambda: setattr(ours.formatters["text/plain"], "pprint", False),
         lambda: setattr(ours.formatters["text/plain"], "pprint", True))):
    before = [DisplayFormatter.format(ours, v) for v in values]
    change()
    if before != [DisplayFormatter.format(ours, v) for v in values]:
        found.append(differ())
    back()
found
"""


def test_values_have_the_forms_that_ipython_gives_them(kernel):
    """Formatters are asked where they may have one. Each change makes a difference, and the same."""
    _, seen = kernel.run(FORMATTED)
    assert dict(seen)["execute_result"]["data"]["text/plain"] == str([[]] * 9), text_of(seen)


@pytest.mark.parametrize("thing, mime", DISPLAYS)
def test_displays(kernel, thing, mime):
    reply, seen = kernel.run(f"from IPython.display import *\ndisplay({thing})\n{thing}")
    assert reply["status"] == "ok", reply
    shown = dict(seen)
    assert mime in shown["display_data"]["data"]
    assert mime in shown.get("execute_result", shown["display_data"])["data"]


def test_pandas_and_plots(kernel):
    pytest.importorskip("pandas")
    _, seen = kernel.run("import pandas as pd\npd.DataFrame({'a': [1, 2]})")
    data = dict(seen)["execute_result"]["data"]
    assert "<table" in data["text/html"] and "a" in data["text/plain"]
    pytest.importorskip("matplotlib")
    _, seen = kernel.run("import matplotlib.pyplot as plt\nplt.plot([1, 2]);")
    assert "image/png" in dict(seen)["display_data"]["data"]
    reply, seen = kernel.run(
        "from matplotlib.animation import FuncAnimation\nfrom IPython.display import HTML\n"
        "fig, ax = plt.subplots()\nline, = ax.plot([0, 1])\n"
        "a = FuncAnimation(fig, lambda i: line.set_data([0, 1], [0, i]), frames=2)\n"
        "HTML(a.to_jshtml())")
    assert "<img" in dict(seen)["execute_result"]["data"]["text/html"], reply


def test_widgets_open_comms_and_hear_of_changes(kernel):
    old = int(pytest.importorskip("ipywidgets").__version__.split(".")[0]) < 7
    reply, seen = kernel.run("import ipywidgets\nslider = ipywidgets.IntSlider(3)\n"
                             "slider.observe(lambda change: print('now', change.new), 'value')\n"
                             "slider")
    assert reply["status"] == "ok", reply
    opened = [c for kind, c in seen if kind == "comm_open"]
    assert {c["target_name"] for c in opened} == {"jupyter.widget"}
    view = dict(seen)
    view = view.get("execute_result") or view["display_data"]
    model = view["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
    moved = kernel.send("shell", "comm_msg", {
        "comm_id": model, "data": {"method": "backbone" if old else "update", "buffer_paths": [],
                                   "sync_data": {"value": 8}, "state": {"value": 8}}})
    assert kernel.wait_for_output(moved, "stream")["text"] == "now 8\n"
    assert kernel.run("slider.value")[1][2][1]["data"]["text/plain"] == "8"
    known = kernel.reply(kernel.send("shell", "comm_info_request",
                                     {"target_name": "jupyter.widget"}))["content"]["comms"]
    assert model in known


def test_an_output_widget_catches_what_is_printed(kernel):
    """The front end moves what bears the msg_id that the widget names at that moment."""
    pytest.importorskip("ipywidgets")
    kernel.run("import ipywidgets\nout = ipywidgets.Output()")
    msg_id = kernel.kc.execute("with out:\n    print('caught')\nprint('shown')")
    told = []
    for kind, content in kernel.until_idle(msg_id):
        if kind == "comm_msg":
            state = content["data"]
            told.append(state.get("state", state.get("sync_data", {})).get("msg_id"))
        elif kind == "stream":
            told.append(content["text"])
    assert told == [msg_id, "caught\n", "", "shown\n"]


def test_hooks_see_what_is_displayed(kernel):
    _, seen = kernel.run(
        "from IPython.display import clear_output\n"
        "def hook(msg):\n    hooked.append((msg['header']['msg_type'], msg['content']))\n"
        "    return None if 'secret' in str(msg['content']) else msg\n"
        "hooked, pub = [], get_ipython().display_pub\npub.register_hook(hook)\n"
        "display('secret'); display('open'); clear_output()\n"
        "print([kind for kind, _ in hooked], pub.unregister_hook(hook), pub.unregister_hook(hook))\n"
        "display('secret at last')")
    assert "['display_data', 'display_data', 'clear_output'] True False" in text_of(seen)
    shown = [c["data"]["text/plain"] for kind, c in seen if kind == "display_data"]
    assert shown == ["'open'", "'secret at last'"]


def test_a_thread_may_print_for_another_request(kernel):
    first = kernel.kc.execute("parent = get_ipython().get_parent()")
    kernel.reply(first)
    kernel.kc.execute("get_ipython().set_parent(parent)\nprint('of the first', flush=True)")
    assert kernel.wait_for_output(first, "stream")["text"] == "of the first\n"


def test_a_cell_knows_its_request_and_its_place_in_the_notebook(kernel):
    content = {"code": "here = get_ipython().get_parent()\n"
                       "print([here[part] for part in ('msg_type', 'metadata', 'content')])",
               "silent": False, "store_history": True, "allow_stdin": False,
               "user_expressions": {"seven": "7"}}
    kernel.run("seen = []\nget_ipython().events.register('pre_run_cell', seen.append)")
    said = []
    for metadata in ({"cellId": "abc", "deletedCells": []}, {}, ["cellId"]):
        msg = {**kernel.kc.session.msg("execute_request", content), "metadata": metadata}
        kernel.kc.shell_channel.send(msg)
        kernel.reply(msg["header"]["msg_id"])
        said.append(text_of(kernel.until_idle(msg["header"]["msg_id"])).splitlines()[0])
    shown = {key: content[key] for key in
             ("code", "silent", "store_history", "allow_stdin", "user_expressions")}
    assert said == [str(["execute_request", metadata, shown])
                    for metadata in ({"cellId": "abc", "deletedCells": []}, {}, {})]
    _, seen = kernel.run("get_ipython().events.unregister('pre_run_cell', seen.append)\n"
                         "[info.cell_id for info in seen]")
    assert dict(seen)["execute_result"]["data"]["text/plain"] == "['abc', None, None, None]"


def comms_of(seen):
    return {c["target_name"] for kind, c in seen if kind == "comm_open"}


def test_backends_of_matplotlib(kernel, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    shows = "import matplotlib.pyplot as plt\nplt.close('all'); plt.plot([1, 2]);"
    reply, _ = kernel.run("%matplotlib widget")
    if reply["status"] == "error":
        assert "needs ipympl, which is not installed for /" in reply["evalue"]
        assert "-m pip install ipympl" in reply["evalue"]
        assert "image/png" in dict(kernel.run(shows)[1])["display_data"]["data"]  # as before
        package = tmp_path / "ipympl"  # a backend of that name, with matplotlib's own in it
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "backend_nbagg.py").write_text(
            "from matplotlib.backends import backend_nbagg\nfrom matplotlib.backends.backend_nbagg"
            " import *\nfrom matplotlib.backends.backend_nbagg import _BackendNbAgg\n")
        kernel.run(f"import sys; sys.path.insert(0, {str(tmp_path)!r})")
    # From 3.9 on a backend is what an installed package says that it is.
    stand_in = reply["status"] == "ok" or matplotlib.__version_info__ < (3, 9)
    for name in ("widget", "notebook") if stand_in else ("notebook",):
        reply, seen = kernel.run(f"%matplotlib {name}\n{shows}")
        assert reply["status"] == "ok", reply
        assert comms_of(seen) & {"matplotlib", "jupyter.widget"}, seen
        kernel.run("plt.close('all')\nget_ipython().pylab_gui_select = None")
    reply, seen = kernel.run(f"%matplotlib inline\n{shows}")
    assert "image/png" in dict(seen)["display_data"]["data"]


@pytest.fixture
def display(env):
    """A screen that nobody sees."""
    if not shutil.which("Xvfb"):
        pytest.skip("Xvfb is not installed")
    reads, writes = os.pipe()
    server = subprocess.Popen(["Xvfb", "-displayfd", str(writes), "-nolisten", "tcp"],
                              pass_fds=[writes], stderr=subprocess.DEVNULL)
    os.close(writes)
    with open(reads) as number:
        env["DISPLAY"] = f":{number.readline().strip()}"
    yield env["DISPLAY"]
    server.terminate()
    server.wait(TIMEOUT)


WINDOWS = {  # later(f): f is called by the toolkit, in a moment
    "tk": "import tkinter\nwindow = tkinter.Tk()\nshown = window.winfo_ismapped\n"
          "def later(f): window.after(10, f)",
    "qt5": "from PyQt5 import QtCore, QtWidgets\nwindow = QtWidgets.QLabel('hello'); window.show()\n"
           "shown = window.isVisible\ndef later(f): QtCore.QTimer.singleShot(10, f)",
    "gtk3": "from gi.repository import GLib, Gtk\nwindow = Gtk.Window(); window.show_all()\n"
            "shown = window.get_mapped\ndef later(f): GLib.timeout_add(10, lambda: f())",
}
MODULES = {"tk": "tkinter", "qt5": "PyQt5", "gtk3": "gi.repository.Gtk"}


@pytest.mark.parametrize("toolkit", WINDOWS)
def test_windows_live_between_cells(display, start, toolkit):
    kernel = start()
    if kernel.run(f"import {MODULES[toolkit]}")[0]["status"] == "error":
        pytest.skip(f"{MODULES[toolkit]} is not installed")
    _, seen = kernel.run(f"%gui {toolkit}")
    assert "%gui" not in text_of(seen), seen
    made = kernel.kc.execute(
        WINDOWS[toolkit] + "\ndef tell():\n    if not shown(): return later(tell)\n"
        "    later(lambda: 1 / 0)\n    later(lambda: print('shown'))\nlater(tell)")
    kernel.wait_for_text(made, "shown\n")
    both = kernel.kc.execute(
        "import asyncio\nasync def task():\n    called = asyncio.Event()\n"
        "    later(called.set)\n    await called.wait()\n    await asyncio.sleep(0.01)\n"
        "    later(lambda: loop.call_later(0.01, print, 'both'))\nloop = asyncio.get_running_loop()\n"
        "running = asyncio.create_task(task())")
    kernel.wait_for_text(both, "both\n")
    reply, _ = kernel.run("%gui\n'still here'")
    assert reply["status"] == "ok"


def test_windows_that_there_are_none_of(kernel):
    for name in ("wx", "qt4"):
        assert "no such windows here" in dict(kernel.run(f"%gui {name}")[1])["stream"]["text"]
    reply, _ = kernel.run("%gui\n'still here'")
    assert reply["status"] == "ok"


def test_a_progress_bar_is_a_widget(kernel):
    pytest.importorskip("ipywidgets")
    # Debian's widgets are older than its tqdm, which looks for a style.
    kernel.run("import ipywidgets, types\nif not hasattr(ipywidgets.FloatProgress, 'style'):\n"
               "    ipywidgets.FloatProgress.style = types.SimpleNamespace()")
    reply, seen = kernel.run("from tqdm.notebook import tqdm\n"
                             "for _ in tqdm(range(3), mininterval=0): pass")
    assert reply["status"] == "ok", reply
    assert comms_of(seen) == {"jupyter.widget"}
    sent = [c["data"] for kind, c in seen if kind == "comm_msg"]
    assert any(data.get("state", {}).get("value") == 3 for data in sent), sent
    assert "application/vnd.jupyter.widget-view+json" in dict(seen)["display_data"]["data"]


def test_what_cells_ask_of_the_front_end(kernel, tmp_path):
    """%edit, and ways to leave that do not."""
    file = tmp_path / "there.py"
    file.write_text("def there():\n    pass\n")
    reply, _ = kernel.run(f"%edit {file}")
    assert reply["payload"] == [{"source": "edit_magic", "filename": str(file), "line_number": None}]
    kernel.run(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom there import there")
    reply, _ = kernel.run("%edit there")
    assert reply["payload"] == [{"source": "edit_magic", "filename": str(file), "line_number": 1}]
    reply, _ = kernel.run("def here(): pass\n%edit here")
    assert reply["status"] == "error" and "edit it there" in reply["evalue"]
    for leave in ("exit", "quit"):
        reply, _ = kernel.run(f"{leave}(keep_kernel=True)")
        assert reply["payload"] == [{"source": "ask_exit", "keepkernel": True}], leave
    reply, _ = kernel.run("import sys\nsys.exit('no')")
    assert (reply["ename"], reply["evalue"], reply["payload"]) == ("SystemExit", "no", [])
    reply, seen = kernel.run("%connect_info")
    assert '"shell_port"' in text_of(seen) and "--existing /" in text_of(seen)
    _, seen = kernel.run("%autosave 10")
    assert "set_autosave_interval(10000)" in dict(seen)["display_data"]["data"]["application/javascript"]


def test_a_cell_drives_another_kernel(kernel):
    """Its client shows here, by this kernel's session, what that one shows."""
    reply, seen = kernel.run(
        "import subprocess, sys\nfrom jupyter_client import BlockingKernelClient\n"
        "from jupyter_client.connect import write_connection_file\n"
        "file, _ = write_connection_file()\n"
        "other = subprocess.Popen([sys.argv[0], '-f', file])\n"
        "client = BlockingKernelClient(connection_file=file)\n"
        "client.load_connection_file(); client.start_channels(); client.wait_for_ready(60)\n"
        "code = 'print(6 * 7); display(\"shown\"); 1/0'\n"
        "client.execute_interactive(code, timeout=60)\n"
        "client.shutdown(); client.stop_channels(); other.wait(60);")
    assert reply["status"] == "ok", reply
    shown = {kind: content for kind, content in seen if kind in ("stream", "display_data", "error")}
    assert shown["stream"]["text"] == "42\n" and shown["error"]["ename"] == "ZeroDivisionError"
    assert shown["display_data"]["data"] == {"text/plain": "'shown'"}


def test_an_extension_of_the_users(kernel, tmp_path):
    (tmp_path / "own_magic.py").write_text(
        "from IPython.core.magic import register_line_magic\n"
        "def load_ipython_extension(shell):\n"
        "    shell.register_magic_function(lambda line: 'own ' + line, magic_name='own')\n"
        "    shell.events.register('post_run_cell', after)\n"
        "def after(result): print('after', result.success)\n"
        "def unload_ipython_extension(shell): shell.events.unregister('post_run_cell', after)\n")
    kernel.run(f"import sys; sys.path.insert(0, {str(tmp_path)!r})")
    assert "after True" in text_of(kernel.run("%load_ext own_magic")[1])
    assert text_of(kernel.run("%own way")[1]) == "'own way'after True\n"
    assert text_of(kernel.run("%unload_ext own_magic\n1")[1]) == "1"


def test_many_kernels_share_one_history(start, ipython_dir):
    """At once, and nobody hears of a lock."""
    kernels = [start() for _ in range(3)]
    asked = [(k, [k.kc.execute(f"number = {n * 100 + i}") for i in range(20)])
             for n, k in enumerate(kernels)]
    for kernel, ids in asked:
        for msg_id in ids:
            assert kernel.reply(msg_id)["content"]["status"] == "ok"
            assert [kind for kind, _ in kernel.until_idle(msg_id)] == ["status", "execute_input", "status"]
    for kernel in kernels:
        kernel.km.shutdown_kernel()
    with contextlib.closing(sqlite3.connect(ipython_dir / "profile_default" / "history.sqlite")) as db:
        lines = [row[0] for row in db.execute("SELECT source_raw FROM history")]
    assert sorted(lines) == sorted(f"number = {n * 100 + i}" for n in range(3) for i in range(20))


def test_completions_have_types(start):
    """They are jedi's, which is imported for the first of them and not before. It allows cells deep
    recursion when it is imported: they have that from the beginning, and it stays as they change it."""
    kernel = start()
    assert kernel.run("import sys; assert 'jedi' not in sys.modules")[0]["status"] == "ok"
    deep = "def down(n): return n and down(n - 1)\ndown(2000)\nsys.setrecursionlimit(5000)"
    assert kernel.run(deep)[0]["status"] == "ok"
    kernel.run("%config IPCompleter.jedi_compute_type_timeout = 60000")
    reply = kernel.reply(kernel.kc.complete("import os\nos.getcw", 18))["content"]
    kinds = {k["text"]: k["type"] for k in reply["metadata"]["_jupyter_types_experimental"]}
    assert kinds.get("getcwd", kinds.get("os.getcwd")) == "function"
    case = "import jedi; assert jedi.settings.case_insensitive_completion is False; down(4000)"
    assert kernel.run(case)[0]["status"] == "ok"


@pytest.mark.parametrize("long", ["1, " * 30_000, "'" + "ab12" * 20_000 + "', "], ids=["list", "text"])
def test_completion_in_a_long_line(kernel, long):
    code = f"import os\nx = [{long}os.getcw]"
    reply = kernel.reply(kernel.kc.complete(code, len(code) - 1))["content"]
    assert reply["cursor_end"] == len(code) - 1
    if not long.startswith("'"):  # the quote that opens it is not looked at
        assert "getcwd" in [match.split(".")[-1] for match in reply["matches"]]
        assert code[reply["cursor_start"] :] in ("getcw]", "os.getcw]")


def test_history_across_sessions(start, ipython_dir):
    first = start()
    first.run("unmistakable = 1")
    first.km.shutdown_kernel()
    second = start()
    second.run("later = 2")
    asked = second.kc.history(hist_access_type="search", pattern="unmis*", n=5)
    assert [h[2] for h in second.reply(asked)["content"]["history"]] == ["unmistakable = 1"]
    asked = second.kc.history(hist_access_type="range", session=-1, start=1, stop=5)
    assert [h[2] for h in second.reply(asked)["content"]["history"]] == ["unmistakable = 1"]
    asked = second.kc.history(hist_access_type="range", session=0, start=1, stop=5)
    assert "later = 2" in [h[2] for h in second.reply(asked)["content"]["history"]]


def test_the_profile_is_loaded(start, ipython_dir):
    profile = ipython_dir / "profile_default"
    (profile / "startup").mkdir(parents=True)
    (profile / "startup" / "00.py").write_text("from_startup = 41\n")
    (profile / "ipython_config.py").write_text(
        "c.InteractiveShellApp.exec_lines = ['from_lines = 1']\n"
        "c.ZMQInteractiveShell.ast_node_interactivity = 'all'\n")
    (profile / "ipython_kernel_config.py").write_text(
        "c.IPKernelApp.code_to_run = 'from_kernel = 2'\n")
    _, seen = start().run("from_startup\nfrom_lines\nfrom_kernel")
    assert [c["data"]["text/plain"] for k, c in seen if k == "execute_result"] == ["41", "1", "2"]


def test_a_full_disk_costs_the_history_and_no_cell(start, ipython_dir):
    """Files cannot grow: what a full disk is to the history."""
    kernel = start()
    kernel.run("import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))")
    for i in range(20):
        assert kernel.run(f"y = {i}")[0]["status"] == "ok"
    asked = kernel.kc.history(hist_access_type="range", session=0, start=1)
    assert kernel.reply(asked)["content"]["status"] in ("ok", "error")
    assert kernel.run("%history -l 3")[0]["status"] in ("ok", "error")
    assert kernel.run("'alive'")[0]["status"] == "ok"


def test_a_history_file_that_cannot_be_made_is_done_without(start, ipython_dir):
    profile = ipython_dir / "profile_default"
    profile.mkdir()
    (profile / "ipython_config.py").write_text(
        "c.HistoryManager.hist_file = '/proc/nowhere/history.sqlite'\n")
    kernel = start()
    assert kernel.run("x = 1")[0]["status"] == "ok"
    assert "x = 1" in text_of(kernel.run("%history")[1])


def test_a_locked_history_keeps_no_cell_waiting(start, ipython_dir):
    """Whoever has the file: a slow disk is the same. A front end's question gets this session's."""
    file = ipython_dir / "profile_default" / "history.sqlite"
    file.parent.mkdir()
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        kernel = start()
        for i in range(3):
            assert kernel.run(f"locked = {i}")[0]["status"] == "ok"
        asked = kernel.kc.history(hist_access_type="search", pattern="lock*2", n=5)
        assert [h[2] for h in kernel.reply(asked)["content"]["history"]] == ["locked = 2"]
        holder.execute("ROLLBACK")
    kernel.km.shutdown_kernel()
    with contextlib.closing(sqlite3.connect(file)) as db:
        wait_for(lambda: db.execute("SELECT count(*) FROM history").fetchone() == (3,), TIMEOUT)


def test_a_profile_that_cannot_be_made_is_done_without(start, env):
    env["IPYTHONDIR"] = "/proc/nowhere"
    assert text_of(start().run("6 * 7")[1]) == "42"


# Debian's widgets are older than its nbclient, which breaks on theirs with any kernel: so by hand.
MODERN_WIDGET = """
from ipykernel.comm import Comm
slider = Comm('jupyter.widget', {'state': {'_model_module': '@jupyter-widgets/controls',
              '_model_name': 'IntSliderModel', 'value': 3}, 'buffer_paths': []})
slider.send({'method': 'update', 'state': {'value': 4}, 'buffer_paths': []})
display({'application/vnd.jupyter.widget-view+json': {'model_id': slider.comm_id}}, raw=True)
"""


def test_the_configuration_may_be_on_the_command_line(start):
    kernel = start("--InteractiveShell.xmode=Plain", "--InteractiveShellApp.exec_lines=set = 5",
                   "--HistoryManager.hist_file=:memory:", "--InlineBackend.figure_format=svg")
    _, seen = kernel.run("ip = get_ipython(); set, ip.xmode, ip.history_manager.hist_file")
    assert dict(seen)["execute_result"]["data"]["text/plain"] == "(5, 'Plain', ':memory:')"
    _, seen = kernel.run("%matplotlib inline\n%config InlineBackend.figure_formats")
    assert dict(seen)["execute_result"]["data"]["text/plain"] == "{'svg'}"


@pytest.mark.parametrize("name", ["phalanx", "python3"])
def test_a_notebook_is_executed_by_nbconvert(env, tmp_path, name):
    """With the kernel of the second name it speaks as with IPython's."""
    nbformat = pytest.importorskip("nbformat")
    env["JUPYTER_DATA_DIR"] = str(tmp_path / "data")
    subprocess.run([PXKERNEL, "install", "--user", "--name", name], env=env, check=True,
                   stdout=subprocess.DEVNULL)
    cells = ["import numpy as np, pandas as pd, matplotlib.pyplot as plt\nnp.arange(3)",
             "pd.DataFrame({'a': np.arange(3)})", "plt.plot([1, 2]);", MODERN_WIDGET]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    (tmp_path / "book.ipynb").write_text(nbformat.writes(book))
    subprocess.run([PYTHON, "-m", "nbconvert", "--to", "notebook", "--execute",
                    f"--ExecutePreprocessor.kernel_name={name}", "--output", "done.ipynb",
                    str(tmp_path / "book.ipynb")], env=env, check=True, cwd=tmp_path,
                   stderr=subprocess.DEVNULL)
    done = json.loads((tmp_path / "done.ipynb").read_text())
    mimes = [set().union(*(o.get("data", {}) for o in c["outputs"])) for c in done["cells"]]
    assert "text/plain" in mimes[0] and "text/html" in mimes[1] and "image/png" in mimes[2]
    assert "application/vnd.jupyter.widget-view+json" in mimes[3]
    kept = done["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    assert [w["state"]["value"] for w in kept.values() if "value" in w["state"]] == [4]


def test_jupyter_runs_a_script(env, tmp_path):
    env["JUPYTER_DATA_DIR"] = str(tmp_path / "data")
    subprocess.run([PXKERNEL, "install", "--user"], env=env, check=True, stdout=subprocess.DEVNULL)
    (tmp_path / "script.py").write_text("import sys\nprint(6 * 7, sys.argv[-1])\n")
    done = subprocess.run([PYTHON, "-m", "jupyter_client.runapp", "--kernel=phalanx", "script.py"],
                          env=env, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.stdout == "42 script.py\n", done


def test_a_console_on_a_terminal(env, tmp_path):
    pexpect = pytest.importorskip("pexpect")
    env.update(JUPYTER_DATA_DIR=str(tmp_path / "data"), TERM="dumb")
    subprocess.run([PXKERNEL, "install", "--user"], env=env, check=True, stdout=subprocess.DEVNULL)

    def start():
        return pexpect.spawn(PYTHON, ["-m", "jupyter_console", "--kernel", "phalanx",
                                      "--simple-prompt"], env=env, cwd=str(tmp_path),
                             timeout=TIMEOUT, encoding="utf-8", echo=False)

    console = start()
    try:
        # jupyter_client lets go of the ports that it has found before the kernel takes them.
        for _ in range(3):
            if console.expect([r"In \[1\]", "Address already in use"]) == 0:
                break
            console.close(force=True)
            console = start()
        else:
            pytest.fail("no console came up in three attempts")
        console.sendline("6 * 7")
        console.expect(r"42")
        console.expect(r"In \[2\]")
        console.sendline("input('who? ')")
        console.expect(r"who\?")
        console.sendline("Ada")
        console.expect("'Ada'")
        console.expect(r"In \[3\]")
        console.sendline("exit")
        console.expect(pexpect.EOF)
    finally:
        console.close(force=True)
    wait_for(lambda: not console.isalive(), what="the console's end")
