# SPDX-License-Identifier: BSD-3-Clause
"""pxkernel through Jupyter's own client, with the echo language and with Python."""
import contextlib
import ctypes
import errno
import json
import os
import signal
import sqlite3
import struct
import subprocess
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from queue import Empty

import jupyter_kernel_test
import pytest
import zmq
from conftest import alive, processes_with, programs_env, wait_for
from kernels import PXKERNEL, TIMEOUT, Kernel, echo, python, start  # noqa: F401: fixtures

pytestmark = pytest.mark.usefixtures("no_leftovers")


LANGUAGES = {
    "echo": {"sleep": "print go\nsleep 60", "fail": "error no", "fail later": "sleep 0.5\nerror no",
             "input": "input name? ", "result": "hello", "shown": "hello"},
    "python": {"sleep": "import time; print('go', flush=True); time.sleep(60)",
               "fail": "1/0", "fail later": "import time; time.sleep(0.5); 1/0",
               "input": "print(input('name? '))", "result": "6 * 7", "shown": "42"},
}


@pytest.fixture(params=LANGUAGES)
def both(request, start):
    """(kernel, words) for each language."""
    return start("--language", request.param), LANGUAGES[request.param]


# ---- what a cell looks like --------------------------------------------------

def test_result_comes_between_busy_and_idle(both):
    kernel, words = both
    reply, seen = kernel.run(words["result"])
    assert reply["status"] == "ok" and reply["execution_count"] == 1
    assert [kind for kind, _ in seen] == ["status", "execute_input", "execute_result", "status"]
    assert seen[1][1] == {"code": words["result"], "execution_count": 1}
    assert seen[2][1]["data"]["text/plain"] == words["shown"]


def test_silent_request_shows_and_counts_nothing(both):
    kernel, words = both
    reply, seen = kernel.run(words["result"], silent=True)
    assert reply["status"] == "ok" and reply["execution_count"] == 0
    assert [kind for kind, _ in seen] == ["status", "status"]
    assert kernel.run(words["result"])[0]["execution_count"] == 1


def test_error_is_published_and_replied(both):
    kernel, words = both
    reply, seen = kernel.run(words["fail"])
    assert reply["status"] == "error" and reply["ename"]
    errors = [content for kind, content in seen if kind == "error"]
    assert len(errors) == 1
    assert errors[0] == {key: reply[key] for key in ("ename", "evalue", "traceback")}


def test_output_keeps_its_order(echo):
    _, seen = echo.run("print a\nprint b\nwarn c\nshow d\nprint e\nresult")
    assert [(kind, content.get("text")) for kind, content in seen[2:-1]] == [
        ("stream", "a\nb\n"), ("stream", "c\n"), ("display_data", None), ("stream", "e\n"),
        ("execute_result", None)]


def test_much_output_arrives_whole_and_in_few_messages(start):
    echo = start("--language", "echo", "--output-burst", "0")
    _, seen = echo.run("repeat 200000 0123456789abcdefghijklmnopqrstuvwxyz")
    texts = [content["text"] for kind, content in seen if kind == "stream"]
    assert "".join(texts) == "0123456789abcdefghijklmnopqrstuvwxyz\n" * 200000
    assert len(texts) < 1000


def test_output_is_there_before_the_cell_ends(both):
    kernel, words = both
    msg_id = kernel.kc.execute(words["sleep"])
    assert kernel.wait_for_output(msg_id, "stream")["text"] == "go\n"
    kernel.km.interrupt_kernel()
    assert kernel.reply(msg_id)["content"]["ename"] == "KeyboardInterrupt"


def test_what_was_sent_before_a_failure_is_aborted(both):
    kernel, words = both
    ids = [kernel.kc.execute(code) for code in (words["fail later"], words["result"], words["result"])]
    statuses = [kernel.reply(msg_id)["content"]["status"] for msg_id in ids]
    assert statuses == ["error", "aborted", "aborted"]
    assert kernel.run(words["result"])[0]["status"] == "ok"


def test_without_stop_on_error_nothing_is_aborted(both):
    kernel, words = both
    first = kernel.kc.execute(words["fail"], stop_on_error=False)
    second = kernel.kc.execute(words["result"])
    assert kernel.reply(first)["content"]["status"] == "error"
    assert kernel.reply(second)["content"]["status"] == "ok"


# ---- while the interpreter is busy ---------------------------------------------

def test_kernel_info_is_answered_while_a_cell_runs(both):
    kernel, words = both
    running = kernel.kc.execute(words["sleep"])
    kernel.wait_for_output(running, "stream")
    info = kernel.reply(kernel.kc.kernel_info())["content"]
    assert info["status"] == "ok" and info["protocol_version"].startswith("5.")
    asked = kernel.send("control", "kernel_info_request", {})
    assert kernel.reply(asked, "control")["content"]["status"] == "ok"
    asked = kernel.send("shell", "comm_info_request", {})
    assert kernel.reply(asked)["content"] == {"status": "ok", "comms": {}}
    kernel.km.interrupt_kernel()
    assert kernel.reply(running)["content"]["ename"] == "KeyboardInterrupt"


def test_sigint_interrupts_a_cell(both):
    kernel, words = both
    running = kernel.kc.execute(words["sleep"])
    kernel.wait_for_output(running, "stream")
    os.kill(kernel.pid, signal.SIGINT)
    assert kernel.reply(running)["content"]["ename"] == "KeyboardInterrupt"
    assert kernel.run(words["result"])[0]["status"] == "ok"


def test_what_cells_left_running_ends_with_the_kernel(python, tmp_path):
    """What has a session of its own stays."""
    for ends, more in ((True, ""), (False, ", start_new_session=True")):
        pipe = tmp_path / f"pipe{more}"
        os.mkfifo(pipe)
        with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb", 0) as end:
            reply, _ = python.run("import subprocess\n"
                                  f"with open({str(pipe)!r}, 'w') as file:\n"
                                  f"    child = subprocess.Popen(['sleep', '60'], stdout=file{more})",
                                  user_expressions={"pid": "child.pid"})
            child = int(reply["user_expressions"]["pid"]["data"]["text/plain"])
            python.km.restart_kernel()
            python.kc.wait_for_ready(timeout=TIMEOUT)
            if ends:
                wait_for(lambda: end.read() == b"", TIMEOUT)  # and not None: nobody holds it
            else:
                assert end.read() is None
                os.kill(child, signal.SIGKILL)


def test_stray_interrupts_do_no_harm(both):
    kernel, words = both
    kernel.run(words["result"])
    os.kill(kernel.pid, signal.SIGINT)
    # Control and shell are two connections: the reply says that the next cell comes after it.
    kernel.kc.control_channel.send(kernel.kc.session.msg("interrupt_request", {}))
    assert kernel.kc.get_control_msg(timeout=TIMEOUT)["msg_type"] == "interrupt_reply"
    os.kill(kernel.pid, signal.SIGINT)
    assert kernel.run(words["result"])[0]["status"] == "ok"


def switches(pid):
    """How often the threads of a process have gone to sleep."""
    tasks = Path(f"/proc/{pid}/task")
    lines = [line for task in tasks.iterdir() for line in (task / "status").read_text().splitlines()]
    return [line for line in lines if line.startswith("voluntary_ctxt_switches")]


@pytest.mark.prompt
def test_a_kernel_with_nothing_to_do_does_not_wake_up(both):
    kernel, words = both
    kernel.run(words["result"])
    kernel.kc.hb_channel.pause()

    def rested():
        before = switches(kernel.pid)
        threading.Event().wait(1.5)
        return switches(kernel.pid) == before

    wait_for(rested, TIMEOUT)


# ---- input ------------------------------------------------------------------------

def test_input_is_asked_and_answered(both):
    kernel, words = both
    msg_id = kernel.kc.execute(words["input"], allow_stdin=True)
    asked = kernel.kc.get_stdin_msg(timeout=TIMEOUT)
    assert asked["content"] == {"prompt": "name? ", "password": False}
    assert asked["parent_header"]["msg_id"] == msg_id
    kernel.kc.input("Ada")
    assert kernel.reply(msg_id)["content"]["status"] == "ok"
    assert ("stream", {"name": "stdout", "text": "Ada\n"}) in kernel.until_idle(msg_id)


def test_input_is_interrupted(both):
    kernel, words = both
    for interrupt in (kernel.km.interrupt_kernel, lambda: os.kill(kernel.pid, signal.SIGINT)):
        msg_id = kernel.kc.execute(words["input"], allow_stdin=True)
        kernel.kc.get_stdin_msg(timeout=TIMEOUT)
        interrupt()
        assert kernel.reply(msg_id)["content"]["ename"] == "KeyboardInterrupt"


def test_a_question_is_asked_once(both):
    """The wait wakes up now and then; the user is not asked again."""
    kernel, words = both
    msg_id = kernel.kc.execute(words["input"], allow_stdin=True)
    kernel.kc.get_stdin_msg(timeout=TIMEOUT)
    with pytest.raises(Empty):
        kernel.kc.get_stdin_msg(timeout=2.5)
    kernel.kc.input("Ada")
    assert kernel.reply(msg_id)["content"]["status"] == "ok"


def test_input_without_stdin_fails(both):
    kernel, words = both
    reply, _ = kernel.run(words["input"], allow_stdin=False)
    assert reply["ename"] == "StdinNotImplementedError"


# ---- messages that are wrong --------------------------------------------------------

@pytest.mark.parametrize("content", [{}, {"code": 3}, {"code": None, "silent": 1}])
def test_malformed_execute_gets_an_answer_and_idle(echo, content):
    msg_id = echo.send("shell", "execute_request", content)
    assert echo.reply(msg_id)["content"]["status"] == "error"
    assert [kind for kind, _ in echo.until_idle(msg_id)] == ["status", "status"]


def test_unknown_request_gets_idle_and_no_reply(echo):
    msg_id = echo.send("shell", "frobnicate_request", {})
    assert [kind for kind, _ in echo.until_idle(msg_id)] == ["status", "status"]
    with pytest.raises(Empty):
        echo.kc.get_shell_msg(timeout=0.2)


def test_garbage_is_dropped(echo):
    info = echo.km.get_connection_info()
    with zmq.Context() as context:
        for port in ("shell_port", "control_port", "stdin_port", "hb_port"):
            with context.socket(zmq.DEALER) as socket:
                socket.linger = 500
                socket.connect(f"tcp://127.0.0.1:{info[port]}")
                header = json.dumps({"msg_id": "1", "msg_type": "shutdown_request"}).encode()
                for frames in ([b""], [b"<IDS|MSG>"], [b"<IDS|MSG>"] * 9, [b"x"] * 100,
                               [b"<IDS|MSG>", b"0" * 64, header, b"{}", b"{}", b"{}"],
                               [b"<IDS|MSG>", b"", header, b"{}", b"{}", b"{}"]):
                    socket.send_multipart(frames)
    assert echo.run("hello")[0]["status"] == "ok"


def test_replayed_request_is_refused(echo):
    session, socket = echo.kc.session, echo.kc.shell_channel.socket
    msg = session.msg("execute_request", {"code": "hello", "silent": False})
    frames = session.serialize(msg)
    socket.send_multipart(frames)
    assert echo.reply(msg["header"]["msg_id"])["content"]["status"] == "ok"
    socket.send_multipart(frames)
    assert echo.run("again")[0]["execution_count"] == 2


# ---- beginning and end ---------------------------------------------------------------

def wait_gone(kernel, timeout=5):
    wait_for(lambda: not alive(kernel.pid), timeout, "the kernel's end")


@pytest.mark.parametrize("channel", ["control", "shell"])
def test_shutdown_replies_and_exits_0(both, channel):
    kernel, _ = both
    process = kernel.km.provisioner.process
    msg_id = kernel.send(channel, "shutdown_request", {"restart": False})
    assert kernel.reply(msg_id, channel)["content"] == {"status": "ok", "restart": False}
    assert process.wait(TIMEOUT) == 0


def test_shutdown_does_not_wait_for_a_stuck_cell(python):
    running = python.kc.execute(
        "import time\nprint('go', flush=True)\nwhile True:\n"
        "    try: time.sleep(60)\n    except BaseException: pass")
    python.wait_for_output(running, "stream")
    process = python.km.provisioner.process
    began = time.monotonic()
    python.send("control", "shutdown_request", {"restart": False})
    assert process.wait(TIMEOUT) == 0
    assert time.monotonic() - began < 4


def test_shutdown_does_not_wait_for_endless_output(python):
    python.kc.execute("import threading\ndef flood():\n    while True: print('x' * 1000)\n"
                      "for _ in range(2): threading.Thread(target=flood, daemon=True).start()\n"
                      "flood()")
    process = python.km.provisioner.process
    python.kc.get_iopub_msg(timeout=TIMEOUT)
    python.send("control", "shutdown_request", {"restart": False})
    assert process.wait(TIMEOUT) == 0


def test_restart_begins_anew(both):
    kernel, words = both
    kernel.run(words["result"])
    kernel.km.restart_kernel()
    kernel.kc.wait_for_ready(timeout=TIMEOUT)
    assert kernel.run(words["result"])[0]["execution_count"] == 1


def test_sigterm_ends_cleanly(both):
    kernel, words = both
    running = kernel.kc.execute(words["sleep"])
    kernel.wait_for_output(running, "stream")
    process = kernel.km.provisioner.process
    process.terminate()
    assert process.wait(TIMEOUT) == 0


def without_pidfd():
    """As on Linux before 5.3, or where a filter of system calls knows only older ones."""
    class Filter(ctypes.Structure):
        _fields_ = [("size", ctypes.c_ushort), ("code", ctypes.c_char_p)]

    code = (struct.pack("=HBBI", 0x20, 0, 0, 0)  # the call's number
            + struct.pack("=HBBI", 0x15, 0, 1, 434)  # pidfd_open:
            + struct.pack("=HBBI", 0x06, 0, 0, 0x50000 | errno.ENOSYS)
            + struct.pack("=HBBI", 0x06, 0, 0, 0x7fff0000))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
    assert libc.prctl(22, 2, ctypes.byref(Filter(4, code)), 0, 0) == 0


@pytest.mark.parametrize("prepare", [None, without_pidfd])
def test_kernel_ends_with_its_front_end(env, tmp_path, prepare):
    """JPY_PARENT_PID: a front end that is killed takes its kernel along, through a wrapper, too."""
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps(connection()))
    front_end = f"export JPY_PARENT_PID=$$; sh -c '{PXKERNEL} --language echo -f {path}; :' & wait"
    parent = subprocess.Popen(["sh", "-c", front_end], env=env, preexec_fn=prepare)
    wait_for(lambda: json.loads(path.read_text())["hb_port"], what="ports in the file")
    parent.kill()
    parent.wait()
    wait_for(lambda: not processes_with(f"HOME={tmp_path}"), TIMEOUT, "the kernel's end")


def test_a_front_end_elsewhere_is_not_looked_for(env, tmp_path):
    """srun takes JPY_PARENT_PID to another host, where no such process is, or another one."""
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps(connection()))
    other = subprocess.Popen(["sleep", "60"])
    kernel = subprocess.Popen([PXKERNEL, "--language", "echo", "--log-level=debug", "-f", path],
                              env={**env, "JPY_PARENT_PID": str(other.pid)},
                              stderr=subprocess.PIPE, text=True)
    other.kill()
    other.wait()
    lines = iter(kernel.stderr.readline, "")
    assert any("frontend.unwatched" in line for line in lines)
    kernel.terminate()
    assert kernel.wait(TIMEOUT) in (0, -signal.SIGTERM)  # which may come before somebody listens to it
    assert "frontend.gone" not in kernel.stderr.read()


def test_exit_ends_the_kernel(echo):
    process = echo.km.provisioner.process
    last, later = (echo.kc.execute(code) for code in ("exit", "say late"))  # as "run all" does
    assert echo.reply(last)["content"]["status"] == "ok"
    assert echo.reply(later)["content"]["status"] == "aborted"
    assert process.wait(TIMEOUT) == 0


@pytest.mark.parametrize("code", ["exit", "quit()"])
def test_exit_tells_the_front_end_and_ends_the_kernel(python, code):
    process = python.km.provisioner.process
    reply = python.reply(python.kc.execute(code))["content"]
    assert reply["payload"] == [{"source": "ask_exit", "keepkernel": False}]
    assert process.wait(TIMEOUT) == 0


def connection(**changes):
    return {"transport": "tcp", "ip": "127.0.0.1", "key": "abc",
            "signature_scheme": "hmac-sha256", "shell_port": 0, "control_port": 0, "stdin_port": 0,
            "iopub_port": 0, "hb_port": 0, **changes}


def test_zero_ports_are_chosen_and_written(env, tmp_path):
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps(connection()))
    kernel = subprocess.Popen([PXKERNEL, "--language", "echo", "-f", path], env=env)
    try:
        written = wait_for(lambda: (c := json.loads(path.read_text()))["hb_port"] and c,
                           what="ports in the file")
        ports = [value for key, value in written.items() if key.endswith("_port")]
        assert len(set(ports)) == 5 and all(ports)
        assert path.stat().st_mode & 0o777 == 0o600
        with zmq.Context() as context, context.socket(zmq.REQ) as heart:
            heart.connect(f"tcp://127.0.0.1:{written['hb_port']}")
            heart.send(b"ping")
            assert heart.poll(TIMEOUT * 1000) and heart.recv() == b"ping"
    finally:
        kernel.terminate()
    assert kernel.wait(TIMEOUT) == 0


@pytest.mark.parametrize("file, status", [
    ("missing.json", 1), (None, 2), ("{", 1),
    (json.dumps(connection(signature_scheme="md4")), 1),
    (json.dumps(connection(transport="carrier-pigeon")), 1),
])
def test_bad_connection_files_are_refused_in_one_line(run, tmp_path, file, status):
    args = []
    if file is not None:
        path = tmp_path / ("missing.json" if file == "missing.json" else "kernel.json")
        if file != "missing.json":
            path.write_text(file)
        args = ["-f", path]
    done = run("pxkernel", "--language", "echo", *args, check=False)
    assert done.returncode == status
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("pxkernel: ")


def test_taken_port_is_refused_in_one_line(run, tmp_path):
    path = tmp_path / "kernel.json"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as other:
        port = other.bind_to_random_port("tcp://127.0.0.1")
        path.write_text(json.dumps(connection(shell_port=port)))
        done = run("pxkernel", "--language", "echo", "-f", path, check=False)
    assert done.returncode == 1 and str(port) in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("args", [["--langage", "echo"], ["--language", "cobol", "-f", "x"],
                                  ["-f"], ["file.json"]])
def test_misuse_exits_2(run, args):
    done = run("pxkernel", *args, check=False)
    assert done.returncode == 2 and done.stderr.startswith("pxkernel")


def test_help_and_version(run):
    assert "pxkernel install" in run("pxkernel", "--help").stdout
    assert run("pxkernel", "--version").stdout.strip()


# ---- install ---------------------------------------------------------------------------

ENCRYPTION = {"supported_encryption": ["curve"]}


def test_install_writes_a_kernelspec_that_jupyter_starts(run, env, tmp_path):
    env["JUPYTER_DATA_DIR"] = str(tmp_path / "data")
    run("pxkernel", "install", "--user", "--language", "echo")
    spec = json.loads((tmp_path / "data/kernels/phalanx/kernel.json").read_text())
    assert spec["argv"][0] == str(PXKERNEL.resolve())
    assert spec["argv"][-2:] == ["-f", "{connection_file}"]
    assert spec["display_name"] == "Python (Phalanx)"
    assert spec["interrupt_mode"] == "message" and spec["metadata"] == {"debugger": False, **ENCRYPTION}
    listed = run("/usr/bin/python3", "-c",
                 "import json; from jupyter_client.kernelspec import KernelSpecManager\n"
                 "print(json.dumps(KernelSpecManager().get_all_specs()))")
    assert json.loads(listed.stdout)["phalanx"]["spec"]["argv"] == spec["argv"]


def test_install_prefix_name_and_python(run, tmp_path):
    run("pxkernel", "install", "--prefix", tmp_path / "p", "--name", "lab", "--display-name",
        "Lab", "--python", "/usr/bin/python3")
    spec = json.loads((tmp_path / "p/share/jupyter/kernels/lab/kernel.json").read_text())
    assert spec["argv"][1:3] == ["--python", "/usr/bin/python3"]
    assert spec["display_name"] == "Lab" and spec["language"] == "python"
    assert spec["metadata"] == {"debugger": find_spec("debugpy") is not None, **ENCRYPTION}


def test_install_sets_the_kernels_environment(run, tmp_path):
    run("pxkernel", "install", "--prefix", tmp_path, "--env", "A=1", "--env", "B=x=y")
    spec = json.loads((tmp_path / "share/jupyter/kernels/phalanx/kernel.json").read_text())
    assert spec["env"] == {"A": "1", "B": "x=y"}


@pytest.mark.parametrize("args, status", [(["--env", "A"], 2), (["--env", "=1"], 2),
                                          (["--name", "../x"], 2), (["--user", "--sys-prefix"], 2),
                                          (["--prefix", "/proc/nowhere"], 1), (["extra"], 2)])
def test_install_refuses(run, args, status):
    done = run("pxkernel", "install", *args, check=False)
    assert done.returncode == status and len(done.stderr.splitlines()) == 1


# ---- Jupyter's conformance tests ---------------------------------------------------------

class Conformance(jupyter_kernel_test.KernelTests):
    __test__ = False
    options = ()

    @pytest.fixture(scope="class", autouse=True)
    def start_kernel(self, request, tmp_path_factory):
        cls = request.cls
        directory = tmp_path_factory.mktemp("kernel")
        env = {**os.environ, "IPYTHONDIR": str(directory / "ipython"), "HOME": str(directory)}
        kernel = Kernel(programs_env(env), directory, *cls.options)
        cls.km, cls.kc = kernel.km, kernel.kc
        yield
        kernel.close()

    @classmethod
    def setUpClass(cls):
        """The fixture starts the kernel."""

    @classmethod
    def tearDownClass(cls):
        """And ends it."""


class TestEcho(Conformance):
    __test__ = True
    options = ("--language", "echo")
    language_name = "echo"
    file_extension = ".txt"
    code_hello_world = "print hello, world"
    code_stderr = "warn oh"
    completion_samples = [{"text": "pri", "matches": set()}]
    complete_code_samples = ["hello"]
    code_generate_error = "error no"
    code_execute_result = [{"code": "hello", "result": "hello"}]
    code_display_data = [{"code": "show me", "mime": "text/plain"}]


class TestPython(Conformance):
    __test__ = True
    options = ("--language", "python")
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('oh', file=sys.stderr)"
    completion_samples = [{"text": "zi", "matches": {"zip"}}]
    complete_code_samples = ["1", "print('hello')", "def f(x):\n  return x*2\n\n\n"]
    incomplete_code_samples = ["print('''hello", "def f(x):\n  x*2"]
    invalid_code_samples = ["import = 7q"]
    code_page_something = "zip?"
    code_generate_error = "raise ValueError('no')"
    code_execute_result = [{"code": "6*7", "result": "42"}, {"code": "1+2+3", "result": "6"},
                           {"code": "'x'*3", "result": "'xxx'"}]
    code_display_data = [
        {"code": "from IPython.display import HTML, display; display(HTML('<b>x</b>'))",
         "mime": "text/html"},
        {"code": "from IPython.display import Math, display; display(Math('x'))",
         "mime": "text/latex"}]
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "search")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"


def test_an_interrupt_of_the_first_cell_costs_no_magics(python, ipython_dir):
    startup = ipython_dir / "profile_default" / "startup"
    startup.mkdir(parents=True, exist_ok=True)
    (startup / "once.py").write_text("""
import builtins, sys
class Once:
    def find_spec(self, name, path=None, target=None):
        if name == "phalanx" and not hasattr(builtins, "once"):
            builtins.once = True
            raise KeyboardInterrupt
sys.meta_path.insert(0, Once())
""")
    assert python.run("1")[0]["ename"] == "KeyboardInterrupt"
    assert python.run("get_ipython().find_magic('px').__name__")[0]["status"] == "ok"


# ---- the history file, which all of a user's kernels share ----

def history_of(ipython_dir, timeout=1):
    with contextlib.closing(sqlite3.connect(
            ipython_dir / "profile_default" / "history.sqlite", timeout=timeout)) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'history'").fetchone():
            return None  # whoever looks first makes the file
        return [row[0] for row in db.execute("SELECT source_raw FROM history ORDER BY line")]


@contextlib.contextmanager
def locked(path):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield
        db.execute("ROLLBACK")


def test_history_is_complete_when_the_kernel_has_ended(python, ipython_dir):
    cells = [f"x = {i}" for i in range(30)]
    for cell in cells:
        python.run(cell)
    python.km.shutdown_kernel()
    assert history_of(ipython_dir) == cells


def test_history_reply_has_the_latest_cells(python):
    for i in range(3):
        python.run(f"y = {i}")
    reply = python.reply(python.kc.history(hist_access_type="tail", n=2))["content"]
    assert [line for _, _, line in reply["history"]] == ["y = 1", "y = 2"]


TURNS = """
def turns():
    thread, = [t for t in threading.enumerate() if "History" in t.name]
    status = open(f"/proc/self/task/{thread.native_id}/status").read()
    return int(re.search(r"^voluntary_ctxt_switches:\\s*(\\d+)", status, re.M).group(1))
import re, threading; before = turns()
"""


def test_cells_do_not_wake_the_thread_that_gathers_them(python, ipython_dir):
    """It would take turns at the interpreter with each."""
    python.run(TURNS)
    wait_for(lambda: history_of(ipython_dir), what="the history opened")
    python.run("before = turns()")
    for _ in range(40):
        python.run("pass")
    _, seen = python.run("turns() - before")
    result, = [content for kind, content in seen if kind == "execute_result"]
    assert int(result["data"]["text/plain"]) < 40


def test_a_history_that_is_locked_meanwhile_keeps_no_cell_waiting(python, ipython_dir):
    python.run("first = 1")
    wait_for(lambda: history_of(ipython_dir) == ["first = 1"], what="the history written")
    with locked(ipython_dir / "profile_default" / "history.sqlite"):
        began = time.monotonic()
        written = threading.Event()  # longer than the history is gathered and tried
        while time.monotonic() < began + 3:
            before = time.monotonic()
            python.run("second = 2")
            assert time.monotonic() - before < 0.4
            written.wait(0.2)
    _, messages = python.run("third = 3")
    assert not [content for kind, content in messages if kind == "stream"]
    python.km.shutdown_kernel()
    history = history_of(ipython_dir)
    assert history[0] == "first = 1" and history[-2:] == ["second = 2", "third = 3"]


@pytest.mark.prompt
def test_a_locked_history_file_is_left_alone(python, start, ipython_dir):
    python.run("first = 1")
    wait_for(lambda: history_of(ipython_dir) == ["first = 1"], what="the history written")

    def first_cell():
        began = time.monotonic()
        other = start("--language", "python")
        reply, messages = other.run("1 + 1")
        assert reply["status"] == "ok"
        return other, messages, time.monotonic() - began
    *_, usual = first_cell()
    with locked(ipython_dir / "profile_default" / "history.sqlite"):
        other, messages, took = first_cell()
        assert took < usual + 4  # IPython's own patience is at least 5 s
        assert not [content for kind, content in messages if kind == "stream"]
        other.run("%history -n 1")
        other.km.shutdown_kernel()
    assert history_of(ipython_dir) == ["first = 1"]
    assert not list((ipython_dir / "profile_default").glob("history-corrupt*"))
