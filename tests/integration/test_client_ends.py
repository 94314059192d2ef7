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
from four import cluster, script_environment, start_ours

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
        threading.Event().wait(0.001)

def ending():
    sys.stdout.write("ending\\n")
    sys.stdout.flush()

"""
CLIENT = """
rc = connect()
view = rc.load_balanced_view()
"""


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("ipython"), start_ours) as found:
        yield found


@pytest.fixture
def ends(where, tmp_path):
    """ends(text, status=0): what a script wrote to stdout after it said that it was ending, and to
    stderr. It must end in END_S from then on, with that status."""
    file, _, env = where
    gate = tmp_path / "gate"

    def run(text, status=0):
        script = tmp_path / "script.py"
        script.write_text(f"FILE, GATE = {file!r}, {str(gate)!r}\n" + HEAD + text)
        out, err = tmp_path / "out", tmp_path / "err"
        with open(out, "w") as stdout, open(err, "w") as stderr:
            process = subprocess.Popen(
                [PYTHON, script], env=script_environment(env), stdin=subprocess.DEVNULL,
                stdout=stdout, stderr=stderr, start_new_session=True)
        started.append(process)
        wait_for(lambda: process.poll() is not None or out.read_text(), START_S)
        process.wait(END_S)
        assert process.returncode == status, out.read_text() + err.read_text()
        assert out.read_text().startswith("ending\n"), out.read_text() + err.read_text()
        return out.read_text()[len("ending\n"):], err.read_text()

    started = []
    yield run
    gate.touch()
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


QUIET = {
    "idle": "ending()",
    "two clients": "other = connect(); ending()",
    "a client that nobody holds": "connect(); ending()",
    "a client in a cycle": "rc.cycle = rc; view.cycle = view; ending()",
    "tasks in flight": "results = [view.apply_async(hold) for _ in range(8)]; ending()",
    "a thread in get":
        "wait_in_thread(view.apply_async(hold).get); ending()",
    "threads in get of one result":
        "r = rc[:].apply_async(hold)\nfor _ in range(4): wait_in_thread(r.get)\nending()",
    "a thread in wait_for_output":
        "wait_in_thread(view.apply_async(hold).wait_for_output); ending()",
    "a thread in wait_for_engines": "wait_in_thread(lambda: rc.wait_for_engines(99)); ending()",
    "a Future of engines": "future = rc.wait_for_engines(99, block=False); ending()",
    "a thread in a map": "wait_in_thread(lambda: list(view.map_async(hold, range(3)))); ending()",
    "a thread in a long map":
        "wait_in_thread(lambda: list(view.map_async(hold, range(300)))); ending()",
    "a thread in imap": "wait_in_thread(lambda: list(view.imap(hold, range(9)))); ending()",
    "a thread in client.wait":
        "r = view.apply_async(hold); wait_in_thread(rc.wait); ending()",
    "a thread in concurrent.futures": """
wait_in_thread(lambda: concurrent.futures.wait([view.apply_async(hold), view.apply_async(hold)]))
ending()""",
    "a thread in asyncio": """
async def awaited():
    return await view.apply_async(hold)
threading.Thread(target=lambda: asyncio.run(awaited()), daemon=True).start()
ending()""",
    "a thread that asks the controller": """
wait_in_thread(phalanx.AsyncHubResult(rc, view.apply_async(hold).msg_ids).get)
ending()""",
    "threads that never rest": """
def run():
    while True:
        rc[:].apply_sync(abs, -1)
        view.map_sync(abs, range(200))
        rc.queue_status()
for _ in range(4):
    threading.Thread(target=run, daemon=True).start()
threading.Event().wait(0.1)
ending()""",
    "callbacks pending": """
def called(result):
    print("called")
    result.get()
results = [view.apply_async(hold), view.map_async(hold, range(300)), rc[:].apply_async(hold)]
for result in results:
    result.add_done_callback(called)
ending()""",
    "a callback that does not return": """
entered = threading.Event()
def called(result):
    entered.set()
    threading.Event().wait()
result = view.apply_async(hold, gate=GATE + "-first")
result.add_done_callback(called)
open(GATE + "-first", "w").close()
entered.wait(30)
ending()""",
    "a feed at work": "result = view.map_async(time.sleep, [0.001] * 20_000); ending()",
    "an iterator half done": "values = view.imap(abs, range(100_000)); next(values); ending()",
    "output streamed": """
def stream():
    result = rc[:].apply_async(hold)
    with result.stream_output():
        result.wait()
wait_in_thread(stream)
ending()""",
    "an executor": """
pool = rc.executor()
futures = [pool.submit(hold) for _ in range(8)] + [pool.map(hold, range(300))]
ending()""",
    "sys.exit in a thread": "threading.Thread(target=sys.exit, args=(3,)).start(); ending()",
    "everything dropped":
        "results = [view.apply_async(hold) for _ in range(200)]\ndel results, view, rc; ending()",
    "closed with threads in it": """
def get():
    try:
        view.apply_async(hold).get()
    except phalanx.error.EngineError:
        pass
wait_in_thread(get)
rc.close()
ending()""",
}


@pytest.mark.parametrize("case", QUIET)
def test_the_interpreter_ends_in_silence(ends, case):
    assert ends(CLIENT + QUIET[case]) == ("", "")


WORDS = {  # status, text, stdout, the end of stderr, whose other lines are its traceback's
    "an error": (1, "ending()\nraise ValueError('mine')", "", "ValueError: mine\n"),
    "sys.exit": (3, "ending()\nsys.exit(3)", "", ""),
    "os._exit": (5, "ending()\nos._exit(5)", "", ""),
    "SIGTERM": (-signal.SIGTERM, "ending()\nos.kill(os.getpid(), signal.SIGTERM)", "", ""),
    "SIGINT in get": (-signal.SIGINT, """
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
ending()
result.get()""", "", "KeyboardInterrupt\n"),
    "an error in atexit": (0, """
atexit.register(lambda: {}["gone"])
ending()""", "", "KeyError: 'gone'\n"),
    "atexit uses the client": (0, """
atexit.register(lambda: print(rc[:].apply_sync(abs, -1)))
rc[:].abort(rc[:].apply_async(abs, -2))
ending()
open(GATE, "w").close()""", "[1, 1, 1, 1]\n", ""),
    "atexit joins a thread": (0, """
def get():
    try:
        result.get()
    except phalanx.error.EngineError:
        pass
thread = threading.Thread(target=get, daemon=True)
def join():  # after the client's end
    thread.join()
    print("joined")
atexit.unregister(phalanx.client._end_all)
atexit.register(join)
atexit.register(phalanx.client._end_all)
thread.start()
while not sleeps(thread):
    threading.Event().wait(0.001)
ending()""", "joined\n", ""),
    "a thread outlives main": (0, """
def late():
    threading.main_thread().join()
    print(sorted(rc.queue_status(0)))
threading.Thread(target=late).start()
ending()""", "['completed', 'queue', 'tasks']\n", ""),
}


@pytest.mark.parametrize("case", WORDS)
def test_the_interpreter_ends_with_its_own_words(ends, case):
    status, text, out, err = WORDS[case]
    held = "result = view.apply_async(hold); mapped = view.map_async(hold, range(300))\n"
    said = ends(CLIENT + held + text, status)
    assert said[0] == out
    assert said[1].endswith(err) and said[1].count("Traceback") == bool(err)
    if not err:
        assert said[1] == ""


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
    threading.Event().wait(0.001)
ending()
rc.close()
print("phalanx-io" in names())
thread.join()""")
    assert sorted(said[0].splitlines()) == [
        "False", "the client was closed, or its controller shut down"]
    assert said[1] == ""


# ---- processes that are made from one with a client

# What each does beside tasks in flight, a result that is awaited, and callbacks that are pending.
BUSY = """
if __name__ == "__main__":
    rc = connect()
    view = rc.load_balanced_view()
    held = rc[:].apply_async(hold)
    held.add_done_callback(lambda result: None)
    mapped = view.map_async(hold, range(300))
    wait_in_thread(held.get)

def own(n):  # a child's own client
    with connect() as client:
        return len(client), n

def plain(n):
    gc.collect()
    return n + 1

def statuses(pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

def main():
"""
CHILDREN = {
    "fork and os._exit": """
    pids = []
    for n in range(10):
        pids.append(os.fork())
        if pids[-1] == 0:
            os._exit(plain(n))
    print(statuses(pids) == [*range(1, 11)], len(rc.ids))""",
    "fork and sys.exit": """
    pid = os.fork()
    if pid == 0:
        global held, mapped
        del held, mapped
        sys.exit(plain(6))
    print(statuses([pid]) == [7], len(rc.ids))""",
    "fork and an own client": """
    pid = os.fork()
    if pid == 0:
        with connect() as client:
            sys.exit(len(client.ids) + 3)
    print(statuses([pid]) == [7], len(rc.ids))""",
    "fork in a thread": """
    def fork():
        pid = os.fork()
        if pid == 0:
            os._exit(plain(6))
        pids.append(pid)
    pids = []
    threads = [threading.Thread(target=fork) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        rc.queue_status()
    for thread in threads:
        thread.join()
    print(statuses(pids) == [7] * 8, len(rc.ids))""",
    "a child that outlives its parent": """
    if os.fork() == 0:
        while os.getppid() == PARENT:
            threading.Event().wait(0.01)
        print(own(0) == (4, 0), 4)
        sys.exit()""",
    "multiprocessing, fork": """
    pool = multiprocessing.get_context("fork").Pool(2)
    print(pool.map(plain, [1, 2]) == [2, 3], len(rc.ids))
    pool.close()
    pool.join()""",
    "multiprocessing, fork, own clients": """
    with multiprocessing.get_context("fork").Pool(2) as pool:
        print(pool.map(own, [1, 2]) == [(4, 1), (4, 2)], len(rc.ids))""",
    "multiprocessing, spawn, own clients": """
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(pool.map(own, [1, 2]) == [(4, 1), (4, 2)], len(rc.ids))""",
    "multiprocessing, forkserver": """
    with multiprocessing.get_context("forkserver").Pool(2) as pool:
        print(pool.map(plain, [1, 2]) == [2, 3], len(rc.ids))""",
    "a Process that is left to the end": """
    process = multiprocessing.get_context("fork").Process(target=plain, args=(1,))
    process.start()
    print(True, len(rc.ids))""",
    "ProcessPoolExecutor, fork": """
    fork = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(2, fork) as pool:
        print([*pool.map(plain, [1, 2])] == [2, 3], len(rc.ids))""",
    "ProcessPoolExecutor, spawn": """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, spawn) as pool:
        print([*pool.map(own, [1, 2])] == [(4, 1), (4, 2)], len(rc.ids))""",
    "subprocess": """
    said = [subprocess.check_output(["echo", str(n)]) for n in range(20)]
    print(said == [b"%d\\n" % n for n in range(20)], len(rc.ids))""",
    "descriptors": """
    said = subprocess.check_output(["ls", "/proc/self/fd"], close_fds=False)
    print(said.split() == [b"0", b"1", b"2", b"3"], len(rc.ids))""",
    "preexec_fn": """
    said = subprocess.check_output(["echo", "1"], preexec_fn=gc.collect)
    print(said == b"1\\n", len(rc.ids))""",
    "os.execv": """
    os.execv("/bin/echo", ["echo", "True", "4"])""",
}


@pytest.mark.skipif("PX_ASAN_OPTIONS" in os.environ,
                    reason="a lock of the sanitizer's own may be held where threads fork")
@pytest.mark.parametrize("case", CHILDREN)
def test_parents_and_children_live_and_end(ends, tmp_path, case):
    _, err = ends("import multiprocessing\nPARENT = os.getpid()" + BUSY + CHILDREN[case] + """

if __name__ == "__main__":
    ending()
    main()""")
    out = tmp_path / "out"  # which a child may outlive its parent to write to
    wait_for(lambda: out.read_text() == "ending\nTrue 4\n", what="what parent or child says")
    assert err == (tmp_path / "err").read_text() == ""
