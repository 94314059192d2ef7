# SPDX-License-Identifier: BSD-3-Clause
"""What a cell prints, by whatever means, in the kernel and on an engine: where it goes, in which
order, under which request, and how much of it."""
import os
import queue
import re
import signal
import time
from pathlib import Path

import pytest
import zmq
from conftest import wait_for
from hub import Hub, Engines
from test_kernel import TIMEOUT, Kernel

pytestmark = pytest.mark.usefixtures("no_leftovers")


class Seen(list):
    """(type, content) of the messages between a request's busy and idle, and its reply."""

    reply = None

    def text(self, name="stdout"):
        return "".join(c["text"] for kind, c in self if kind == "stream" and c["name"] == name)

    def order(self):
        """Streams and what stands between them, neighbours joined."""
        found = []
        for kind, content in self:
            key = content["name"] if kind == "stream" else kind
            if found and found[-1][0] == key == content.get("name"):
                found[-1][1] += content["text"]
            elif kind in ("stream", "display_data", "execute_result", "error"):
                found.append([key, content.get("text")])
        return [tuple(item) for item in found]


class KernelSide:
    def __init__(self, kernel):
        self.kernel, self.pid = kernel, kernel.pid

    def send(self, code):
        return self.kernel.kc.execute(code)

    def finish(self, msg_id):
        seen = Seen()
        self.kernel.until_idle(msg_id, seen)
        seen.reply = self.kernel.reply(msg_id)["content"]
        return seen

    def next_iopub(self):
        return self.kernel.kc.get_iopub_msg(timeout=TIMEOUT)

    def run(self, code):
        return self.finish(self.send(code))


class EngineSide:
    def __init__(self, hub, engines):
        self.hub, self.engines = hub, engines
        hub.write()
        self.uuid = hub.join()
        self.pid = engines.registered()[1]

    def send(self, code):
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {},
                   "allow_stdin": False}
        return self.hub.send("mux", [self.uuid, b"client"], "execute_request", content)

    def next_iopub(self):
        while True:
            idents, msg = self.hub.receive("iopub")
            if idents != [b"\x01"]:
                return msg

    def finish(self, msg_id):
        seen = Seen()
        while seen[-1:] != [("status", {"execution_state": "idle"})]:
            msg = self.next_iopub()
            if msg["parent_header"].get("msg_id") == msg_id:
                seen.append((msg["msg_type"], msg["content"]))
        while True:
            _, reply = self.hub.receive("mux")
            if reply["parent_header"]["msg_id"] == msg_id:
                seen.reply = reply["content"]
                return seen

    def run(self, code):
        return self.finish(self.send(code))


@pytest.fixture
def make(request, env, tmp_path):
    """make(side, *options): a kernel or an engine that is ready."""
    ends = []

    def make(side, *options):
        (tmp_path / "spool").mkdir(exist_ok=True)
        env["TMPDIR"] = str(tmp_path / "spool")
        if side == "kernel":
            kernel = Kernel(env, tmp_path, *options)
            ends.append(kernel.close)
            return KernelSide(kernel)
        hub = Hub(Path(env["IPYTHONDIR"]) / "profile_default")
        ends.append(hub.close)
        engines = Engines(env, ["--language=python", *options])
        ends.append(engines.process.wait)
        ends.append(engines.process.terminate)
        ends.append(engines.process.stdout.close)
        ends.append(engines.process.stderr.close)
        return EngineSide(hub, engines)

    yield make
    for end in reversed(ends):
        end()


@pytest.fixture(params=["kernel", "engine"])
def side(request, make):
    return make(request.param)


# ---- C code and other processes --------------------------------------------------------

def test_output_of_all_kinds_comes_in_order(side):
    seen = side.run(
        "import ctypes, os, subprocess, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "print('1')\n"
        "os.system('echo 2')\n"
        "print('3')\n"
        "subprocess.run(['echo', '4'])\n"
        "libc.puts(b'5')\n"
        "os.write(1, b'6\\n')\n"
        "print('7', file=sys.__stdout__, flush=True)\n"
        "subprocess.run('echo 8', shell=True, stdout=sys.stdout)\n"
        "sys.stdout.buffer.write(b'9\\n')\n"
        "display(0)\n"
        "os.system('echo 10; echo bad >&2')\n"
        "print('worse', file=sys.stderr)\n"
        "libc.printf(b'11')\n")  # without an end of line
    assert seen.order() == [
        ("stdout", "1\n2\n3\n4\n5\n6\n7\n8\n9\n"), ("display_data", None), ("stdout", "10\n"),
        ("stderr", "bad\nworse\n"), ("stdout", "11"), ("execute_result", None)]
    assert seen.text() == "".join(f"{i}\n" for i in range(1, 11)) + "11"


def test_a_verbose_library_that_keeps_the_lock_does_not_hang(side):
    seen = side.run(
        "import ctypes\n"
        "c = ctypes.PyDLL(None)  # keeps the GIL\n"
        "line = b'x' * 1023 + b'\\n'\n"
        "for _ in range(1500): assert c.write(1, line, 1024) == 1024\n")
    assert seen.reply["status"] == "ok"
    assert seen.text() == ("x" * 1023 + "\n") * 1500


def test_a_redirected_descriptor_is_the_users(side):
    seen = side.run(
        "import os, tempfile\n"
        "with tempfile.TemporaryFile() as f:\n"
        "    saved = os.dup(1); os.dup2(f.fileno(), 1)\n"
        "    os.system('echo file'); print('cell')\n"
        "    os.dup2(saved, 1); os.close(saved)\n"
        "    f.seek(0); print(f.read())\n"
        "os.system('echo again');\n")
    assert seen.text() == "cell\nb'file\\n'\nagain\n"


def test_streams_look_like_files(side):
    seen = side.run(
        "import sys, io, logging\n"
        "assert (sys.stdout.fileno(), sys.stderr.fileno()) == (1, 2)\n"
        "assert not sys.stdout.isatty() and sys.stdout.writable() and not sys.stdout.closed\n"
        "assert isinstance(sys.stdout, io.TextIOBase) and sys.stdout.encoding == 'UTF-8'\n"
        "assert print('x', flush=True) is None and sys.stdout.write('four') == 4\n"
        "sys.stdout.close()\n"
        "print('open')\n"
        "logging.StreamHandler(sys.__stderr__).handle(logging.makeLogRecord({'msg': 'early'}))\n")
    assert seen.reply["status"] == "ok", seen.reply
    assert seen.text() == "x\nfouropen\n" and seen.text("stderr") == "early\n"


def test_text_that_is_no_utf8_arrives(side):
    seen = side.run("import os; os.write(1, b'a\\xffb\\xe2\\x82'); os.write(1, b'\\xac\\xe2')\n")
    assert seen.text() == "a�b€�"


@pytest.mark.parametrize("kind", ["kernel", "engine"])
def test_capture_can_be_left_out(make, kind):
    seen = make(kind, "--no-capture").run("import os; os.system('echo elsewhere'); print('here')")
    assert seen.text() == "here\n"


# ---- children of the user's code --------------------------------------------------------

def test_a_forked_child_prints_and_ends_by_itself(side):
    seen = side.run(
        "import os, sys, atexit\n"
        "atexit.register(os.write, 1, b'never in a child')\n"
        "def ended(child):\n"
        "    pid = os.fork()\n"
        "    if pid: return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "    child()\n"
        "def says(): print('child'); os.system('echo grandchild'); os._exit(0)\n"
        "print(ended(says))\n"
        "print(ended(lambda: sys.exit(3)))\n"
        "if (status := ended(lambda: print('falls off the end'))) is not None: print(status)\n")
    assert seen.reply["status"] == "ok"
    assert seen.text() == "child\ngrandchild\n0\n3\nfalls off the end\n0\n"
    if "PX_ASAN_OPTIONS" not in os.environ:  # whose own locks may be held where threads fork
        assert side.run("if not os.fork(): 1/0\nprint(os.waitstatus_to_exitcode(os.wait()[1]))"
                        ).text() == "1\n"
    # The parent has its descriptors, its sockets and its signals.
    assert side.run("print('alive')").text() == "alive\n"


def test_multiprocessing_forks_and_spawns_functions_of_cells(side):
    seen = side.run(
        "import multiprocessing as mp\n"
        "class Pair:\n"
        "    def __init__(self, a): self.a = a\n"
        "def add(x): print('worker', x, flush=True); return Pair(x + 1)\n"
        "def start(): global base; base = 5\n"
        "def based(x): return base + x\n"
        "for kind in ('spawn', 'fork'):\n"
        "    with mp.get_context(kind).Pool(1) as pool:\n"
        "        print(pool.apply_async(add, (1,)).get(30).a)\n"
        "with mp.get_context('fork').Pool(1, start) as pool: print(pool.apply(based, (1,)))\n")
    assert seen.reply["status"] == "ok", seen.reply
    assert seen.text() == "worker 1\n2\nworker 1\n2\n6\n"


# ---- whose output it is ------------------------------------------------------------------

def test_threads_pools_and_tasks_print_for_who_started_them(side):
    first = side.send(
        "import asyncio, threading, concurrent.futures\n"
        "go = threading.Event()\n"
        "def late(): go.wait(); print('thread')\n"
        "thread = threading.Thread(target=late); thread.start()\n"
        "pool = concurrent.futures.ThreadPoolExecutor(1)\n"
        "pool.submit(print, 'pool 1').result()\n"
        "import multiprocessing.pool; threads = multiprocessing.pool.ThreadPool(1)\n"
        "async def tick():\n"
        "    while not go.is_set(): await asyncio.sleep(0.01)\n"
        "    print('task')\n"
        "task = asyncio.ensure_future(tick())\n"
        "print('cell')")
    side.finish(first)
    second = side.send("go.set(); thread.join(); pool.submit(print, 'pool 2').result()\n"
                       "threads.map(print, ['mapped']); list(threads.imap(print, ['in turn']))\n"
                       "threads.apply_async(print, ['applied'], callback=lambda _: print('back'))\n"
                       "threads.close(); threads.join()\n"
                       "await task\nprint('end')")
    texts = {first: "", second: ""}
    while "end\n" not in texts[second]:
        msg = side.next_iopub()
        if msg["msg_type"] == "stream":
            texts[msg["parent_header"]["msg_id"]] += msg["content"]["text"]
    assert sorted(texts[first].split("\n")) == ["", "task", "thread"]
    assert texts[second] == "pool 2\nmapped\nin turn\napplied\nback\nend\n"


# ---- floods ------------------------------------------------------------------------------

NOTICE = r"\[phalanx: (\d+\.\d) (kB|MB) of output, (\d+) lines?, left out here: it is in (\S+)\]\n"


def test_a_flood_is_bounded_and_nothing_is_lost(side):
    begun = time.monotonic()
    seen = side.run("for i in range(300000): print('%099d' % i)")
    text = seen.text()
    assert len(text) < 2_500_000 + 80_000 * (time.monotonic() - begun)
    lines = text.split("\n")
    assert lines[0] == "%099d" % 0 and lines[-2] == "%099d" % 299999
    notices = re.findall(NOTICE, text)
    paths = {path for *_, path in notices}
    assert len(paths) == 1
    shown = len([line for line in lines if line.startswith("000")])
    left_out = sum(int(lines) for _, _, lines, _ in notices)
    assert 0 <= shown + left_out - 300000 <= len(notices)  # a line that was cut counts on both sides
    # Each line is shown or in the file, and the file goes on where the head ended.
    number = re.compile(r"^\d{99}$", re.MULTILINE)
    head = [int(n) for n in number.findall(text[:text.index("[phalanx:")])]
    path = Path(paths.pop())
    wait_for(lambda: path.read_text().endswith("%099d\n" % 299999), what="a slow disk to have the file")
    rest = [int(n) for n in number.findall(path.read_text())]
    assert head == list(range(len(head))) and len(head) > 10000
    assert rest[0] in (len(head), len(head) + 1)
    assert {int(n) for n in number.findall(text)} | set(rest) == set(range(300000))


def resident_kb(pid):
    if "PX_ASAN_OPTIONS" in os.environ:
        return 0  # a sanitizer keeps what is freed
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1))


def test_an_endless_flood_grows_nothing_and_is_interrupted(make):
    side = make("kernel")
    side.run("import os, sys, threading, time")
    before = resident_kb(side.pid)
    msg_id = side.send("print('go', flush=True)\nwhile True: print('and on'); print('!', file=sys.stderr)")
    shown, until = 0, time.monotonic() + 3
    while time.monotonic() < until:
        msg = side.next_iopub()
        shown += len(msg["content"].get("text", ""))
    assert shown < 5_000_000
    assert resident_kb(side.pid) - before < 40_000
    side.kernel.km.interrupt_kernel()
    seen = side.finish(msg_id)
    assert seen.reply["ename"] == "KeyboardInterrupt"
    assert [kind for kind, _ in seen[-2:]] == ["error", "status"]  # the tails come before it


def test_a_flood_of_c_code_is_bounded(side):
    seen = side.run("import os\nos.system('yes | head -c 30000000');")
    assert len(seen.text()) < 4_000_000
    bytes_left = sum(float(size) * (1e6 if unit == "MB" else 1e3)
                     for size, unit, *_ in re.findall(NOTICE, seen.text()))
    shown = seen.text().count("y\n") * 2
    assert abs(bytes_left + shown - 30e6) < 0.2e6


def test_the_last_of_a_flood_shows_when_it_pauses(side):
    msg_id = side.send("import time\nfor i in range(300000): print('x' * 20, i)\ntime.sleep(60)")
    text = ""
    while "x 299999\n" not in text:
        text += side.next_iopub()["content"].get("text", "")
    assert "left out here" in text
    os.kill(side.pid, signal.SIGINT)
    assert side.finish(msg_id).reply["ename"] == "KeyboardInterrupt"


@pytest.mark.parametrize("options, words", [
    (["--output-spool=1"], "its first 1.0 MB are in"), (["--output-spool=0"], "it was not kept")])
def test_a_spool_has_limits_of_its_own(make, options, words):
    assert words in make("kernel", *options).run("for i in range(100): print('x' * 99999)").text()


def test_without_limits_all_is_shown(make):
    seen = make("kernel", "--output-burst=0").run("for i in range(200): print('x' * 99999)")
    assert seen.text() == ("x" * 99999 + "\n") * 200


def test_spool_files_outlive_the_kernel(make, tmp_path):
    side = make("kernel")
    text = side.run("for i in range(40): print('x' * 99999)").text()
    path = Path(re.search(NOTICE, text).group(4))
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    side.kernel.km.shutdown_kernel()
    assert path.stat().st_size > 0  # a notebook that a program ran is read later


def test_streams_in_turn_cost_no_message_each(side):
    seen = side.run("import sys\nfor i in range(100000): print(i); print(i, file=sys.stderr)")
    assert len(seen) < 9000
    for name in ("stdout", "stderr"):
        assert seen.text(name) == "".join(f"{i}\n" for i in range(100000))


# ---- slow readers --------------------------------------------------------------------------

def test_a_front_end_that_reads_slowly_gets_everything(make):
    side = make("kernel")
    code = ("import _phalanx_host as host\n"
            "text = '{\"data\": {\"text/plain\": \"' + 'x' * 3000 + '\"}, \"metadata\": {}}'\n"
            "for _ in range(8000): host.publish(host.DISPLAY_DATA, text, '{}')")
    seen = side.run(code)
    assert [kind for kind, _ in seen].count("display_data") == 8000
    assert seen.text("stderr") == ""


def test_a_front_end_that_does_not_read_harms_nobody_and_hears_of_it(make):
    side = make("kernel")
    port = side.kernel.kc.get_connection_info()["iopub_port"]
    slow = zmq.Context.instance().socket(zmq.SUB)
    slow.linger, slow.rcvhwm, slow.rcvbuf = 0, 1, 4096
    slow.subscribe(b"")
    slow.connect(f"tcp://127.0.0.1:{port}")
    side.run("pass")
    assert slow.poll(TIMEOUT * 1000)  # it is there, and reads no further
    code = ("import _phalanx_host as host\n"
            "for _ in range(400): host.publish(host.DISPLAY_DATA, text, '{}')")
    side.run("text = '{\"data\": {\"text/plain\": \"' + 'x' * 3000 + '\"}, \"metadata\": {}}'")
    before, shown, errors = resident_kb(side.pid), 0, ""
    while "reads too slowly" not in errors:
        assert shown < 20000
        msg_id = side.send(code)
        while True:
            msg = side.next_iopub()
            errors += msg["content"].get("text", "")
            shown += msg["msg_type"] == "display_data"
            if (msg["parent_header"].get("msg_id") == msg_id
                    and msg["content"].get("execution_state") == "idle"):
                break
    assert shown % 400 == 0  # whoever reads gets everything
    assert "[phalanx: a front end reads too slowly and missed messages]\n" in errors
    assert resident_kb(side.pid) - before < 60_000
    slow.close()


@pytest.mark.parametrize("topic", [b"", b"display_data"])
def test_who_subscribes_while_another_does_not_read_is_welcomed_and_delays_nobody(make, topic):
    side = make("kernel")
    address = f"tcp://127.0.0.1:{side.kernel.kc.get_connection_info()['iopub_port']}"
    with zmq.Context.instance().socket(zmq.SUB) as slow, zmq.Context.instance().socket(zmq.SUB) as late:
        slow.linger, slow.rcvhwm, slow.rcvbuf = 0, 1, 4096
        slow.subscribe(topic)
        slow.connect(address)
        late.connect(address)
        assert slow.poll(TIMEOUT * 1000)  # it is there, and reads no further
        msg_id = side.send("import _phalanx_host as host\n"
                           "text = '{\"data\": {\"text/plain\": \"' + 'x' * 3000 + '\"}, \"metadata\": {}}'\n"
                           "for _ in range(20000): host.publish(host.DISPLAY_DATA, text, '{}')")
        end, shown = time.monotonic() + 3 * TIMEOUT, 0
        while time.monotonic() < end:
            try:
                msg = side.kernel.kc.get_iopub_msg(timeout=0.5)
            except queue.Empty:  # the cell waits for the slow one
                late.subscribe(b"elsewhere")
                assert late.poll(TIMEOUT * 1000)
                assert b"iopub_welcome" in late.recv_multipart()[3]
                late.unsubscribe(b"elsewhere")
                continue
            shown += msg["msg_type"] == "display_data"
            if (msg["parent_header"].get("msg_id") == msg_id
                    and msg["content"].get("execution_state") == "idle"):
                break
        assert shown == 20000


# ---- the end ------------------------------------------------------------------------------

@pytest.mark.parametrize("code, what", [
    ("import ctypes; ctypes.string_at(0)", "Segmentation fault"),
    ("import os; os.write(2, b'a library says why\\n'); os.abort()", "Aborted"),
    ("import faulthandler, os; faulthandler.enable(); os.kill(os.getpid(), 7)", "Bus error")])
def test_a_crash_is_explained_in_the_cell(make, code, what):
    side = make("kernel")
    side.send(f"print('before')\n{code}")
    text = ""
    while "most recent call first" not in text or "in <module>" not in text:
        content = side.next_iopub()["content"]
        text += content.get("text", "")
    assert text.startswith("before\n") and f"Fatal Python error: {what}" in text
    if what == "Aborted":
        assert "a library says why\n" in text
    wait_for(lambda: not side.kernel.km.is_alive(), what="the kernel's end")


def test_what_runs_at_exit_is_heard(make):
    side = make("kernel")
    side.run("import atexit, os; atexit.register(os.system, 'echo bye')")
    side.kernel.send("control", "shutdown_request", {"restart": False})
    text = ""
    while "bye\n" not in text:
        text += side.next_iopub()["content"].get("text", "")
