# SPDX-License-Identifier: BSD-3-Clause
"""The end of an interpreter that has a client, whatever that is at, and processes made from one.

Each script must end soon, with the status that is its own, and say nothing that it was not told to
say: neither "Exception ignored in" nor an error of ours from a thread that the end has stopped.
"""
import contextlib
import os
import signal
import subprocess

import pytest

from conftest import PYTHON, wait_for
from four import script_environment
from four import where  # noqa: F401: a fixture, our cluster and ipyparallel's

phalanx = pytest.importorskip("phalanx")
SANITIZED = "PX_ASAN_OPTIONS" in os.environ
START_S, END_S = 60, 10

HEAD = """
import asyncio, atexit, concurrent.futures, gc, os, signal, subprocess, sys, threading, time
import phalanx

def hold(x=0, gate=GATE):  # ends when the test does
    import os, threading
    while not os.path.exists(gate):
        threading.Event().wait(0.01)
    return x

def connect():
    client = phalanx.Client(FILE)
    client.wait_for_engines(4, timeout=40)
    return client

def sleeps(thread):
    # whether it waits, in the package or for it
    with open("/proc/self/task/%d/stat" % thread.native_id) as stat:
        if stat.read().rpartition(")")[2].split()[0] != "S":
            return False
    frame = sys._current_frames().get(thread.ident)
    files = set()
    while frame is not None:
        files.add(frame.f_code.co_filename)
        frame = frame.f_back
    return any("/phalanx/" in file or "/concurrent/" in file for file in files)

def wait_in_thread(f):
    thread = threading.Thread(target=f, daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while not sleeps(thread):
        assert thread.is_alive() and time.monotonic() < end
        time.sleep(0.001)

def ending():
    sys.stdout.write("ending\\n")
    sys.stdout.flush()

"""
CLIENT = """
rc = connect()
view = rc.load_balanced_view()
"""


@pytest.fixture
def ends(where, tmp_path):  # noqa: F811
    """ends(text, status=0): what a script wrote to stdout after it said that it was ending, and to
    stderr. It must end in END_S from then on, with that status."""
    file, env, _ = where
    gate = tmp_path / "gate"

    def run(text, status=0):
        script = tmp_path / "script.py"
        script.write_text(f"FILE, GATE = {file!r}, {str(gate)!r}\n" + HEAD + text)
        out, err = tmp_path / "out", tmp_path / "err"
        with open(out, "w") as stdout, open(err, "w") as stderr:
            process = subprocess.Popen(
                [PYTHON, script], env=script_environment(env), stdin=subprocess.DEVNULL,
                stdout=stdout, stderr=stderr, start_new_session=True)
        try:
            wait_for(lambda: process.poll() is not None or out.read_text(), START_S)
            process.wait(END_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert process.returncode == status, out.read_text() + err.read_text()
        assert out.read_text().startswith("ending\n"), out.read_text() + err.read_text()
        return out.read_text()[len("ending\n"):], err.read_text()

    yield run
    gate.touch()


def test_closing_leaves_nothing_to_a_thread_that_waits(ends):
    said = ends(CLIENT + """
def names():
    tasks = [open("/proc/self/task/%s/comm" % task) for task in os.listdir("/proc/self/task")]
    return [task.read().strip() for task in tasks]
assert "phalanx-io" in names()
def wait():
    try:
        rc.wait_for_engines(99)
    except phalanx._phalanx.ClosedError as e:
        print(e)
thread = threading.Thread(target=wait)
thread.start()
while not sleeps(thread):
    time.sleep(0.001)
ending()
rc.close()
print("phalanx-io" in names())
thread.join()""")
    assert sorted(said[0].splitlines()) == [
        "False", "the client was closed, or its controller shut down"]
    assert said[1] == ""
