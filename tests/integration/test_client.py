# SPDX-License-Identifier: BSD-3-Clause
"""The package `phalanx` as its users know it, on our cluster and on ipyparallel's."""
import __future__
import functools
import os
import pickle
import subprocess
import sys
import threading
import time

import pytest

from conftest import PYTHON, STOCK_ENGINE, stock_controller, wait_for
from four import cluster, script_environment, security_of, start_ours

phalanx = pytest.importorskip("phalanx")
numpy = pytest.importorskip("numpy")
jupyter_client = pytest.importorskip("jupyter_client")
error = phalanx.error

# The functions below travel as a notebook's do: as code of __main__.
__name__ = "__main__"


# ---- the wire forms, without a cluster -------------------------------------------------------

READ_PICKLE5 = """
import pickle, sys
buffers = pickle.load(sys.stdin.buffer)
a = 41
f, args, kwargs = pickle.loads(buffers[0], buffers=buffers[1:])
assert "phalanx" not in sys.modules
print(repr(f(*args, **kwargs)))
"""
READ_CANNED = """
import pickle, sys
from ipyparallel.serialize import unpack_apply_message
buffers = pickle.load(sys.stdin.buffer)
a = 41
f, args, kwargs = unpack_apply_message(buffers, globals())
print(repr(f(*args, **kwargs)))
"""


def outer(n):
    k = 3

    def inner(x):
        return x + k + n

    return inner


class Base:
    def __init__(self, n):
        self.n = n

    def twice(self):
        return self.n * 2


class Derived(Base):
    def twice(self):
        return super().twice() + 1


def keyword_only(n, *, scale=1):
    return n * scale


# What Python 3.14 does of itself: annotations are looked at late, and name what may not be there.
LATE = __future__.annotations.compiler_flag if sys.version_info < (3, 14) else 0
late = {"__name__": "__main__"}
exec(compile("def f(x: Missing): return x\nclass C:\n    def m(self, x: Missing): return x", "late",
             "exec", LATE), late)

BIG = numpy.arange(100_000.0)
BOTH = [
    (late["f"], (5,), {}, "5"),
    (lambda cls: cls().m(6), (late["C"],), {}, "6"),
    (lambda x: x + 1, (5,), {}, "6"),
    (lambda: a, (), {}, "41"),  # noqa: F821: of the reader's namespace
    (outer(2), (1,), {}, "6"),
    (keyword_only, (4,), {"scale": 3}, "12"),
    (functools.partial(pow, 2), (5,), {}, "32"),
    (lambda x: x.sum(), (BIG,), {}, repr(BIG.sum())),
    (lambda cls: cls(4).twice(), (Base,), {}, "8"),
    (lambda x: x + 1, (phalanx.Reference("a"),), {}, "42"),
    (len, (b"x" * 5000,), {}, "5000"),
    (numpy.linalg.norm, ([3.0, 4.0],), {}, repr(numpy.float64(5))),
]
PICKLE5_ONLY = [
    (lambda f: f.__annotations__, (late["f"],), {}, "{'x': 'Missing'}"),
    (lambda x: x.twice(), (Derived(4),), {}, "9"),
    (lambda d: sum(v.sum() for v in d["l"]), ({"l": [BIG, BIG]},), {}, repr(2 * BIG.sum())),
    (lambda f: f(3), (outer(1),), {}, "7"),
]


def call_elsewhere(reader, form, f, args, kwargs):
    buffers = form.pack_call(form.pack_function(f), args, kwargs)
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LD_PRELOAD")}
    done = subprocess.run([PYTHON, "-c", reader], input=pickle.dumps([bytes(b) for b in buffers]),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, timeout=30)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip(), len(buffers)


@pytest.mark.parametrize("f, args, kwargs, wanted", BOTH + PICKLE5_ONLY)
def test_pickle5_needs_nothing_of_ours(f, args, kwargs, wanted):
    from phalanx import pickle5

    assert call_elsewhere(READ_PICKLE5, pickle5, f, args, kwargs)[0] == wanted


@pytest.mark.parametrize("f, args, kwargs, wanted", BOTH)
def test_ipyparallel_reads_the_canned_form(f, args, kwargs, wanted):
    pytest.importorskip("ipyparallel")
    assert call_elsewhere(READ_CANNED, phalanx.canning, f, args, kwargs)[0] == wanted


def test_arrays_leave_the_stream():
    from phalanx import pickle5

    stream, *buffers = pickle5.pack_call(pickle5.pack_function(len), (BIG, [BIG]), {})
    assert len(stream) < 1000
    assert [memoryview(b).nbytes for b in buffers] == [BIG.nbytes]  # the same array, once


def test_canned_bytes_are_ipyparallels():
    stream, *buffers = phalanx.canning.serialize_object(b"x" * 2000)
    assert stream == (
        bytes([0x80, pickle.DEFAULT_PROTOCOL]) + bytes.fromhex("9546000000000000008c1d")
        + b"ipyparallel.serialize.canning"
        + bytes.fromhex("948c0b") + b"CannedBytes"
        + bytes.fromhex("9493942981947d948c07") + b"buffers"
        + bytes.fromhex("945d944e6173622e")
    )
    assert buffers == [b"x" * 2000]
    inline, = phalanx.canning.serialize_object(b"x" * 1024)
    assert phalanx.canning.deserialize_object([inline]) == (b"x" * 1024, [])


# ---- two clusters ----------------------------------------------------------------------------


def start_theirs(env):
    pytest.importorskip("ipyparallel")
    quiet = dict(env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                 stderr=subprocess.DEVNULL, start_new_session=True)
    stock = {k: v for k, v in env.items() if k != "PYTHONPATH"}
    quiet["env"] = stock
    subprocess.Popen([*stock_controller(), "--ping=200"], **quiet)
    file = os.path.join(security_of(env), "ipcontroller-engine.json")
    wait_for(lambda: os.path.exists(file), 30)
    for _ in range(2):
        subprocess.Popen(STOCK_ENGINE.split(), **quiet)
    return 2


@pytest.fixture(scope="module", params=["ours", pytest.param("theirs", marks=pytest.mark.stock)])
def where(request, tmp_path_factory):
    """(connection file, number of engines, environment)"""
    start = {"ours": start_ours, "theirs": start_theirs}[request.param]
    with cluster(tmp_path_factory.mktemp("ipython"), start) as running:
        yield running


@pytest.fixture
def rc(where):
    file, count, _ = where
    with phalanx.Client(file) as client:
        client.wait_for_engines(count, timeout=40)
        yield client


@pytest.fixture
def view(rc):
    view = rc[:]
    view.block = True
    return view


# ---- engines and views -----------------------------------------------------------------------


def test_ids_and_indexing(rc, where):
    n = where[1]
    assert len(rc) == n
    assert rc.ids == sorted(rc.ids)
    assert rc[0].targets == rc.ids[0]
    assert rc[-1].targets == rc.ids[-1]
    assert rc[:].targets == rc.ids
    assert rc[::2].targets == rc.ids[::2]
    assert rc[[rc.ids[0]]].targets == [rc.ids[0]]
    assert rc.direct_view().targets == "all"
    assert [v.targets for v in rc] == rc.ids
    with pytest.raises(IndexError, match="No such engine: 99"):
        rc[99]
    with pytest.raises(TypeError, match="ints such as 0, not '0'"):
        rc["0"]
    with pytest.raises(IndexError, match="No engine has the tag or host 'x'; known: "):
        rc["x"]


def test_wait_for_engines_times_out(rc):
    with pytest.raises(TimeoutError):
        rc.wait_for_engines(99, timeout=0.05)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a cluster running"):
        phalanx.Client(str(tmp_path / "none.json"))
    with pytest.raises(FileNotFoundError):
        phalanx.Client(profile_dir=str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError) as caught:
        phalanx.Client(str(tmp_path / "none.json"), sshserver="nowhere.invalid")
    assert str(caught.value).count("is a cluster running") == 1


def test_without_ssh(where, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(phalanx.KernelError, match="^ssh is not installed: [^;]*$"):
        phalanx.Client(where[0], sshserver="nowhere.invalid")


def test_wrong_key(where, tmp_path):
    file = tmp_path / "wrong.json"
    text = open(where[0]).read()
    key = text.split('"key": "')[1].split('"')[0]
    file.write_text(text.replace(key, "0" * len(key)))
    with pytest.raises(TimeoutError, match="does not answer"):
        phalanx.Client(str(file), timeout=1)


# ---- calls -----------------------------------------------------------------------------------


def test_apply(rc, view):
    n = len(rc)
    assert view.apply_sync(lambda x: x**2, 7) == [49] * n
    assert rc[0].apply_sync(lambda x, y=1: x + y, 1, y=5) == 6
    assert rc[0].apply_sync(len, b"x" * 5000) == 5000
    result = view.apply_async(pow, 2, 10)
    assert result.get(timeout=10) == [1024] * n
    assert result.r == result.get()
    assert result.successful() and result.ready() and len(result) == n
    assert result.get_dict() == dict.fromkeys(rc.ids, 1024)


def test_builtins_see_the_users_namespace(rc):
    dv = rc[0]
    assert dv.apply_sync(exec, "_n = 20") is None
    assert dv.apply_sync(eval, "_n + 1") == 21
    assert "_n" in dv.apply_sync(dir)
    assert dv.apply_sync(eval, "_n + m", {"m": 1, "_n": 2}) == 3
    with pytest.raises(phalanx.RemoteError, match="NameError.*_missing"):
        dv.apply_sync(eval, "_missing")


def test_what_travels(rc):
    one = rc[0]
    assert one.apply_sync(outer(2), 1) == 6
    assert one.apply_sync(functools.partial(pow, 2), 5) == 32
    assert one.apply_sync(lambda cls: cls(4).twice(), Base) == 8
    nested = {"a": [1, (2, None)], "b": {3}}
    assert one.apply_sync(lambda x: x, nested) == nested
    assert one.apply_sync(lambda *a, **k: (a, k), 1, b=2) == ((1,), {"b": 2})
    assert one.apply_sync(lambda f: f(3), lambda x: x + 1) == 4


@pytest.mark.parametrize("array", [
    numpy.arange(10), numpy.arange(100_000.0).reshape(100, -1), numpy.zeros((0, 5)),
    numpy.array(3.5), numpy.array(["a", None], dtype=object),
    numpy.arange(12).reshape(3, 4)[:, ::2],
    numpy.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
], ids=lambda a: f"{a.dtype}-{a.shape}")
def test_arrays(rc, array):
    back = rc[0].apply_sync(lambda a: a, array)
    assert back.dtype == array.dtype and back.shape == array.shape
    assert (back == array).all()


def test_dates_arrive(rc):
    # One way only: ipyparallel's own engines cannot send them.
    dates = numpy.array(["2026-01-02"], dtype="M8[D]")
    assert rc[0].apply_sync(lambda a: str(a[0]), dates) == "2026-01-02"


def test_random_numbers_differ_between_engines(rc, view):
    draws = view.apply_sync(numpy.random.rand, 2, 2)
    assert all(d.shape == (2, 2) for d in draws)
    assert not (draws[0] == draws[1]).all()
    assert len(view.map_sync(numpy.linalg.eigvals, draws)) == len(rc)


# ---- data ------------------------------------------------------------------------------------


def test_names(rc, view):
    n = len(rc)
    view["a"] = 5
    assert view["a"] == [5] * n
    assert view.apply_sync(lambda: a) == [5] * n  # noqa: F821: the engine's
    view.push({"b": [1, 2], "c": "x"})
    assert view.pull(["b", "c"]) == [[[1, 2], "x"]] * n
    assert rc[0].apply_sync(lambda x: x + 1, phalanx.Reference("a")) == 6
    with pytest.raises(phalanx.CompositeError, match="NameError"):
        view["never_defined"]


def test_scatter_and_gather(rc, view):
    view.scatter("part", list(range(10)))
    assert sum(view["part"], []) == list(range(10))
    assert view.gather("part") == list(range(10))
    data = numpy.arange(101.0)
    view.scatter("part", data)
    assert (view.gather("part") == data).all()
    view.scatter("id", rc.ids, flatten=True)
    assert view["id"] == rc.ids


def test_execute(rc, view):
    result = view.execute("print('hi'); x = 3\nx * 2", silent=False)
    assert result.wait_for_output(10)
    assert result.stdout == ["hi\n"] * len(rc)
    assert [r.data["text/plain"] for r in result.get()] == ["6"] * len(rc)
    assert result.engine_id == rc.ids
    assert result[0]._plaintext().startswith("Out[%d:" % rc.ids[0])


def test_values_of_code_are_there_when_its_replies_are(rc, view):
    """They come as output, on another way than replies."""
    for _ in range(30):
        replies = view.execute("3 * 2", silent=False).get(10)
        assert [r.data.get("text/plain") for r in replies] == ["6"] * len(rc)


# ---- maps ------------------------------------------------------------------------------------


def test_map(rc, view):
    wanted = [x**10 for x in range(32)]
    assert view.map_sync(lambda x: x**10, range(32)) == wanted
    assert view.map_sync(lambda x, y: x + y, [1, 2], [10, 20]) == [11, 22]
    assert view.map_sync(lambda x: x, []) == []
    assert list(view.map_async(lambda x: x + 1, range(5))) == [1, 2, 3, 4, 5]


def test_balanced_map(rc):
    balanced = rc.load_balanced_view()
    wanted = [x**10 for x in range(32)]
    assert balanced.map_sync(lambda x: x**10, range(32)) == wanted
    assert balanced.map_sync(lambda x: x**10, iter(range(32)), chunksize=5) == wanted
    assert sorted(balanced.map(lambda x: x, range(9), ordered=False)) == list(range(9))
    assert balanced.apply_sync(lambda: 7) == 7
    chosen = rc.load_balanced_view([rc.ids[0]])
    result = chosen.map_async(lambda x: x, range(3))
    result.get(10)
    assert set(result.engine_id) == {rc.ids[0]}


def test_a_map_with_an_error(rc):
    result = rc.load_balanced_view().map_async(lambda x: 1 // x, [1, 0, 1])
    with pytest.raises(phalanx.CompositeError, match="ZeroDivisionError"):
        result.get(10)
    values = result.get(10, return_exceptions=True)
    assert values[0] == values[2] == 1 and values[1].ename == "ZeroDivisionError"


# ---- errors and endings ----------------------------------------------------------------------


def test_remote_errors(rc, view):
    with pytest.raises(phalanx.RemoteError) as caught:
        rc[0].apply_sync(lambda: 1 / 0)
    assert caught.value.ename == "ZeroDivisionError"
    assert "ZeroDivisionError" in caught.value.traceback
    assert "[%d:apply]" % rc.ids[0] in str(caught.value)
    with pytest.raises(phalanx.CompositeError) as caught:
        view.apply_sync(lambda: 1 / 0)
    for engine in rc.ids[:4]:
        assert "[%d:apply]" % engine in str(caught.value)
    with pytest.raises(phalanx.RemoteError):
        caught.value.raise_exception(0)


def test_a_result_that_cannot_travel(rc):
    with pytest.raises(phalanx.RemoteError, match="pickle"):
        rc[0].apply_sync(lambda: (i for i in ()))


def test_timeout(rc):
    result = rc[0].apply_async(time.sleep, 0.5)
    with pytest.raises(TimeoutError):
        result.get(timeout=0.02)
    assert not result.wait(0.01)
    assert result.get(timeout=10) is None
    assert result.elapsed >= result.serial_time >= 0.5


def test_abort(rc):
    one = rc[0]
    first = one.apply_async(time.sleep, 0.5)
    second = one.apply_async(time.sleep, 30)
    second.abort()
    with pytest.raises(error.TaskAborted):
        second.get(10)
    first.get(10)


def test_metadata(rc):
    result = rc[0].apply_async(lambda: 3)
    result.get(10)
    metadata = result.metadata
    assert metadata.engine_id == rc.ids[0] and metadata.status == "ok"
    assert metadata.submitted <= metadata.received and metadata.started <= metadata.completed
    assert metadata.msg_id == result.msg_ids[0]


def test_queue_status(rc):
    status = rc.queue_status()
    assert list(status) == ["unassigned", *rc.ids]
    assert {"queue", "completed", "tasks"} <= set(status[rc.ids[0]])


def test_closing_ends_waits(where):
    rc = phalanx.Client(where[0])
    result = rc[0].apply_async(time.sleep, 1)
    threading.Timer(0.05, rc.close).start()
    with pytest.raises(error.EngineError):
        result.get(10)
    with pytest.raises(RuntimeError, match="closed"):
        rc.ids


SCRIPT = """
import os, signal, sys, threading, time
import phalanx
rc = phalanx.Client(sys.argv[1])
result = rc[0].apply_async(time.sleep, 1)
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    result.get()
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - start < 0.9, flush=True)
child = os.fork()
if child == 0:
    try:
        rc.ids
    except RuntimeError as error:
        print("child:", error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(result.get())
"""


def test_interrupt_fork_and_exit(where):
    """Ctrl-C ends a wait, a forked child is refused, and the interpreter exits cleanly."""
    file, _, env = where
    done = subprocess.run([PYTHON, "-c", SCRIPT, file], env=script_environment(env), timeout=60,
                          text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0] == "interrupted True"
    assert lines[1].startswith("child: this client belongs to the process that forked")
    assert lines[2] == "None"


# ---- engines as kernels ----------------------------------------------------------------------


def test_front_ends_connect_to_an_engine(rc, where):
    if where[1] != 4:
        pytest.skip("ipengine has its own bind_kernel")
    view = rc[0]
    file = view.apply_sync(phalanx.bind_kernel)
    assert view.apply_sync(phalanx.bind_kernel) == file
    assert os.stat(file).st_mode & 0o777 == 0o600
    view["x"] = 41
    front = jupyter_client.BlockingKernelClient(connection_file=file)
    front.load_connection_file()
    front.hb_channel.time_to_dead = 30  # not 1, on a busy machine
    front.start_channels()
    try:
        front.wait_for_ready(timeout=30)
        seen = []
        reply = front.execute_interactive(
            "y = input('who? ')\nprint(x)\nx + 1", output_hook=seen.append, allow_stdin=True,
            stdin_hook=lambda question: front.input("me"), timeout=30)
        assert reply["content"]["status"] == "ok"
        contents = {msg["msg_type"]: msg["content"] for msg in seen}
        assert contents["stream"]["text"] == "41\n"
        assert contents["execute_result"]["data"]["text/plain"] == "42"
        assert view["y"] == "me"
        with pytest.raises(error.RemoteError, match="StdinNotImplementedError"):
            view.apply_sync(input)  # as in any task
        result = view.execute("print(y)")
        assert result.wait_for_output(30) and result.stdout == "me\n"

        key, front.session.key = front.session.key, b"another"
        front.kernel_info()
        front.session.key = key
        asked = front.kernel_info()
        assert front.get_shell_msg(timeout=30)["parent_header"]["msg_id"] == asked
    finally:
        front.stop_channels()
    with pytest.raises(RuntimeError, match="is for engines"):
        phalanx.bind_kernel()


# ---- engines that die (last: the cluster is smaller afterwards) ------------------------------


def test_an_engine_dies(rc):
    victim = rc.ids[-1]
    result = rc[victim].apply_async(lambda: __import__("os")._exit(3))
    with pytest.raises(error.EngineError, match=f"ngine {victim}( died|: exit status 3,) while running"):
        result.get(30)
    wait_for(lambda: victim not in rc.ids, 10)
    with pytest.raises(IndexError):
        rc[victim]
    assert rc[:].apply_sync(lambda: 1) == [1] * len(rc)
