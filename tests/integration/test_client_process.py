# SPDX-License-Identifier: BSD-3-Clause
"""The client and its process: fork, exit, threads, what it costs to keep."""
import os
import signal
import subprocess
import threading

import pytest

from conftest import PYTHON
from four import script_environment
from test_client import rc, where  # noqa: F401: fixtures, our cluster and ipyparallel's

phalanx = pytest.importorskip("phalanx")
__name__ = "__main__"  # functions travel as code
SANITIZED = "PX_ASAN_OPTIONS" in os.environ


def script(where, text, timeout=60):
    """Runs a script with a client `rc` and `view`; what it printed. It must end by itself, well."""
    file, count, env = where
    head = f"""
import os, sys, threading, time
import phalanx
rc = phalanx.Client({file!r})
rc.wait_for_engines({count}, timeout=40)
view = rc.load_balanced_view()
"""
    process = subprocess.Popen(
        [PYTHON, "-X", "faulthandler", "-c", head + text], env=script_environment(env), text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # prints where it hangs
        out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, out + err
    assert err == ""
    return out


def test_a_process_without_free_descriptors_is_told(where):  # noqa: F811
    file, _, _ = where
    assert script(where, f"""
import resource
limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
used = max(map(int, os.listdir("/proc/self/fd"))) + 1
for free in (2, 3, 4, 12):  # libzmq ends the process at some
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + free, most))
    try:
        phalanx.Client({file!r}, timeout=5)
    except OSError as e:
        print("a connection needs 26 descriptors" in str(e))
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
""") == "True\n" * 4


FORK = """
result = view.apply_async(pow, 2, 10)
long = view.map_async(abs, range(1000))
def refused(f):
    try:
        f()
    except RuntimeError as e:
        return "belongs to the process that forked" in str(e)
    return False
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    said = [refused(f) for f in (
        lambda: rc.ids, lambda: view.apply_async(abs, -1), lambda: result.get(timeout=5),
        lambda: long.get(timeout=5), lambda: rc[:].execute("1"), lambda: rc.queue_status())]
    # Another client of its own works, and letting go of the inherited one harms nobody.
    with phalanx.Client(%r) as own:
        said.append(own[0].apply_sync(pow, 3, 2) == 9)
    del result, long, view
    rc.close()
    os.write(write, repr(said).encode())
    %s
os.waitpid(pid, 0)
print(os.read(read, 1000).decode())
print(result.get(timeout=20), sum(long.get(timeout=20)), view.apply_sync(abs, -3))
"""


@pytest.mark.skipif(SANITIZED, reason="a lock of the sanitizer's own may be held where threads fork")
@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)"])
def test_a_forked_child_is_told_and_harms_nobody(where, end):
    told, used = script(where, FORK % (where[0], end)).splitlines()
    assert told == repr([True] * 7)
    assert used == "1024 499500 3"


def test_multiprocessing_children_leave_the_client_alone(where):
    assert script(where, """
import multiprocessing
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(abs, [-1, -2]), view.apply_sync(abs, -3))
""").strip() == "[1, 2] 3"


@pytest.mark.parametrize("ending", [
    "result = view.apply_async(time.sleep, 2)",
    "result = view.map_async(time.sleep, [0.01] * 5000)",
    """
from concurrent.futures import CancelledError
def wait(result):
    try:
        result.get()
    except (phalanx.error.EngineError, CancelledError):
        pass
threading.Thread(target=wait, args=(view.apply_async(time.sleep, 2),), daemon=True).start()
""",
    "values = view.imap(abs, range(100000)); next(values)",
    "import gc; rc.cycle = rc; view.cycle = rc; del rc, view; gc.collect()",
    "rc.close(); rc.close()",
    "os._exit(0)",
])
def test_the_interpreter_ends_whatever_is_outstanding(where, ending):
    script(where, ending)


def test_many_threads_use_one_client(rc):
    view, wrong = rc.load_balanced_view(), []

    def use(n):
        for i in range(30):
            if view.apply_sync(pow, n, i) != n ** i:
                wrong.append((n, i))
        results = [view.apply_async(pow, n, i) for i in range(30)]
        if [r.get(timeout=30) for r in results] != [n ** i for i in range(30)]:
            wrong.append(n)
        if rc[:].apply_sync(abs, -n) != [n] * len(rc):
            wrong.append(-n)
        if view.map_sync(abs, range(-200, 0)) != list(range(200, 0, -1)):
            wrong.append("map")

    threads = [threading.Thread(target=use, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_many_threads_wait_for_one_result(rc):
    result = rc.load_balanced_view().map_async(lambda x: x + 1, range(2_000))
    got = []
    threads = [threading.Thread(target=lambda: got.append(result.get(timeout=30)))
               for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=40)
    assert got == [list(range(1, 2_001))] * 6


@pytest.mark.skipif(SANITIZED, reason="a sanitizer keeps what is freed")
def test_a_client_is_as_small_afterwards_as_before(where):
    if where[1] != 4:
        pytest.skip("takes ipcontroller half a minute")
    before, after = map(int, script(where, """
def rss():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
def some():
    for _ in range(4):
        for r in [view.apply_async(abs, -i) for i in range(1000)]:
            r.get()
some()
before = rss()
some()
some()
print(before, rss())
""").split())
    assert after - before < 2_000  # kB, for 8,000 results


@pytest.mark.skipif(SANITIZED, reason="a sanitizer keeps what is freed")
def test_what_a_burst_took_goes_back(where):
    """More results at once than a client minds: when they are gone, so is their memory."""
    if where[1] != 4:
        pytest.skip("takes ipcontroller a minute")
    assert script(where, """
def grown():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024 - before
before = 0
view.apply_sync(abs, -1)
before = grown()
results = [view.apply_async(abs, -1) for i in range(20_000)]
for result in results:
    result.get()
most = grown()
del results, result
deadline = time.monotonic() + 30
while grown() > most / 3 and time.monotonic() < deadline:
    threading.Event().wait(0.1)
print(most > 20_000, grown() <= most / 3)
""").split() == ["True", "True"]


@pytest.mark.skipif(SANITIZED, reason="a sanitizer keeps what is freed")
def test_the_memory_of_large_messages_goes_back(where):
    if where[1] != 4:
        pytest.skip("ipcontroller's is not ours")
    assert script(where, """
import json, threading, time
MB = 1 << 20
def rss():
    import os
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
one = rc[rc.ids[0]]
def all_three():  # client, engine, controller: while there is always something for each to do
    status = json.loads(rc._raw.query("status_request", "{}", 30))
    return rss(), one.apply_sync(rss), status["memory"]["resident_bytes"]
before = all_three()
for _ in range(3):
    assert len(one.apply_sync(lambda data: data, bytes(64 * MB))) == 64 * MB
rc.purge_everything()
deadline = time.monotonic() + 40
def grown():
    return max(now - then for now, then in zip(all_three(), before)) > 16 * MB
while grown() and time.monotonic() < deadline:
    threading.Event().wait(0.1)
print("grown" if grown() else "as before")
""").strip() == "as before"


# ---- Ctrl-C ----------------------------------------------------------------------------------


INTERRUPTS = """
import asyncio, concurrent.futures, signal
sys.modules["tqdm"] = None  # not to be found: it complains of a bar that an interrupt left half made
signal.signal(signal.SIGINT, signal.default_int_handler)
dv = rc[rc.ids[0]]

def hold(x=0, gate=GATE):
    import os, threading
    while not os.path.exists(gate):
        threading.Event().wait(0.01)
    return x

async def awaited():
    return await view.apply_async(hold)

waits = {
    "get": lambda: view.apply_async(hold).get(),
    "wait": lambda: view.apply_async(hold).wait(),
    "output": lambda: view.apply_async(hold).wait_for_output(),
    "bar": lambda: view.map_async(hold, range(3)).wait_interactive(),
    "iterate": lambda: list(view.map_async(hold, range(3))),
    "batches": lambda: view.map_async(hold, range(300)).get(),
    "imap": lambda: list(view.imap(hold, range(3))),
    "client": lambda: view.apply_async(hold) and rc.wait(),
    "engines": lambda: rc.wait_for_engines(99),
    "futures": lambda: concurrent.futures.wait([view.apply_async(hold)]),
    "executor": lambda: view.executor.submit(hold).result(),
    "asyncio": lambda: asyncio.run(awaited()),
    "hub": lambda: phalanx.AsyncHubResult(rc, view.apply_async(hold).msg_ids).get(),
    "apply_sync": lambda: dv.apply_sync(hold),
    "map_sync": lambda: view.map_sync(hold, range(3)),
    "execute": lambda: dv.execute("1", block=True),
}
for name, wait in waits.items():
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        print(name, type(wait()).__name__)
    except KeyboardInterrupt:
        print(name, "interrupted")
    timer.join()
open(GATE, "w").close()
print(rc.wait(timeout=40), view.apply_sync(abs, -4))
"""


def test_every_wait_ends_with_an_interrupt(where, tmp_path):
    """Nothing of what is awaited can end before the waits have: what they wait for comes last."""
    said = script(where, f"GATE = {str(tmp_path / 'gate')!r}" + INTERRUPTS).splitlines()
    assert said.pop() == "True 4"
    said = dict(line.split() for line in said if len(line.split()) == 2)  # others are the bar's
    results = {"apply_sync": "AsyncResult", "map_sync": "AsyncMapResult", "execute": "AsyncResult"}
    assert len(said) == 16
    for name, end in said.items():  # or it came before there was a result
        assert end in (results.get(name), "interrupted"), name


# ---- functions that were sent before ----------------------------------------------------------


def test_a_function_that_changed_is_sent_anew(rc):
    def f(x, y=1):
        return x + y

    view = rc[rc.ids[0]]
    assert view.apply_sync(f, 1) == 2
    assert view.apply_sync(f, 1) == 2
    f.__defaults__ = (10,)
    assert view.apply_sync(f, 1) == 11
    f.__code__ = (lambda x, y: x * y).__code__
    assert view.apply_sync(f, 3) == 30
    f.__defaults__ = ([4],)  # may change unseen
    assert view.apply_sync(f, 3) == [4, 4, 4]
    f.__defaults__[0][0] = 5
    assert view.apply_sync(f, 3) == [5, 5, 5]


def test_functions_of_one_place_in_memory_are_told_apart(rc):
    view = rc[rc.ids[0]]

    def make(n):
        scope = {"__name__": "__main__"}
        exec(f"def f(): return {n}", scope)
        return scope["f"]

    assert [view.apply_sync(make(n)) for n in range(50)] == list(range(50))


def test_builtins_and_functions_of_modules_are_kept_too():
    import os.path
    import random

    from phalanx import pickle5

    for f in (abs, len, os.path.join):
        assert pickle5.pack_function(f) is pickle5.pack_function(f)
    for f in (random.random, [].append, int):  # state, or no function
        assert pickle5.pack_function(f) is not pickle5.pack_function(f)
    join = pickle5.pack_function(os.path.join)
    original = os.path.join
    os.path.join = None  # its name leads elsewhere: now it travels as code
    try:
        assert pickle5.pack_function(original) is not join
    finally:
        os.path.join = original


def test_what_is_kept_of_functions_goes_with_them(rc):
    from phalanx import pickle5

    view = rc[rc.ids[0]]
    before = len(pickle5._kept)
    for n in range(20):
        scope = {"__name__": "__main__"}
        exec(f"def f(): return {n}", scope)
        view.apply_sync(scope.pop("f"))
    assert len(pickle5._kept) <= before + 1
