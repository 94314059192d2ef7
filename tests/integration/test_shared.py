# SPDX-License-Identifier: BSD-3-Clause
"""phalanx.share(): engines map what lies once in the client's memory."""
import contextlib
import errno
import gc
import os
import pickle
import subprocess
import sys

import pytest

from conftest import PYTHON, wait_for
from four import rc, script_environment, view, where  # noqa: F401: fixtures, our cluster and ipyparallel's

numpy = pytest.importorskip("numpy")
phalanx = pytest.importorskip("phalanx")
from phalanx import shared  # noqa: E402

SIZE = 8_000_000

# On an engine: how much of the memory that maps a Shared is its own.
OWN = """
def own():
    sizes, ours = [], False
    for line in open("/proc/self/smaps"):
        if "-" in line.split()[0]:
            ours = "memfd:phalanx-shared" in line
        elif ours and line.startswith("Private_"):
            sizes.append(int(line.split()[1]))
    return sum(sizes)
"""


@pytest.fixture
def array():
    return numpy.arange(SIZE // 8)


def test_arrays_arrive_and_are_not_copied(view, array):
    view.execute(OWN)
    with_it = phalanx.share(array)
    assert with_it.nbytes == SIZE and repr(with_it) == "<Shared 8000000 bytes>"
    view.push({"kept": with_it})
    assert view.apply(eval, "int(kept.sum())") == [int(array.sum())] * 4
    assert view.apply(eval, "type(kept).__name__, kept.flags.writeable, own()") == [("ndarray", True, 0)] * 4
    view.execute("del kept")
    assert view.apply(eval, "'memfd:phalanx' in open('/proc/self/maps').read()") == [False] * 4


def test_what_an_engine_writes_is_its_own(view, array):
    view.execute(OWN)
    view.push({"kept": phalanx.share(array)})
    view.client[0].execute("kept[:3] = 7", block=True)
    assert view.apply(eval, "kept[:3].tolist()") == [[7] * 3] + [[0, 1, 2]] * 3
    pages = view.apply(eval, "own()")
    assert 0 < pages[0] <= 64 and pages[1:] == [0] * 3 and array[:3].tolist() == [0, 1, 2]


def test_any_data(view, array):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": array, "y": array * 0.5})
    fortran = numpy.asfortranarray(array[:6000].reshape(60, 100))
    data = {"frame": frame, "more": [array, b"x" * 3_000_000, "text", {1: None}], "fortran": fortran,
            "empty": numpy.zeros((0, 5)), "object": numpy.array([None, "a"])}
    back = view.client[1].apply_sync(dict, phalanx.share(data))
    assert back["frame"].equals(frame) and numpy.array_equal(back["more"][0], array)
    assert back["more"][1:] == data["more"][1:] and back["empty"].shape == (0, 5)
    assert numpy.array_equal(back["fortran"], data["fortran"]) and back["object"].tolist() == [None, "a"]
    for small in (None, (1, "a"), b""):
        assert view.client[0].apply_sync(repr, phalanx.share(small)) == repr(small)


def test_tasks_and_maps(rc, array):
    balanced, with_it = rc.load_balanced_view(), phalanx.share(array)
    assert balanced.map_sync(numpy.take, [with_it] * 300, range(300)) == list(range(300))
    assert balanced.apply_sync(len, with_it) == len(array)
    assert rc.executor().submit(numpy.sum, with_it).result() == array.sum()
    assert rc.broadcast_view().apply_sync(len, with_it) == [len(array)] * 4


def test_items_that_a_map_makes_as_it_goes(rc, array):
    chunks = (phalanx.share(array[i:]) for i in range(60))
    for chunksize in (1, 7):
        items = (phalanx.share(array[i:]) for i in range(60))
        sums = rc.load_balanced_view().map_sync(len, items, chunksize=chunksize)
        assert sums == [len(array) - i for i in range(60)]
    assert list(rc.load_balanced_view().imap(len, chunks)) == sums


RETURN = """
def give(n):
    import numpy, phalanx
    return phalanx.share(numpy.arange(n))
"""


def test_an_engine_returns_the_data(rc, array):
    rc[0].execute(RETURN, block=True)
    assert numpy.array_equal(rc[0].apply_sync(phalanx.Reference("give"), len(array)), array)


def mapped(view, name="kept"):
    """On each engine: whether an array lies in memory that is shared."""
    view.execute(OWN)
    lines = view.apply(eval, f"""[line for line in open('/proc/self/maps')
        if int(line.split('-')[0], 16) <= {name}.ctypes.data < int(line.split('-')[1].split()[0], 16)]""")
    return ["memfd:phalanx-shared" in line for line, in lines]


def test_a_push_that_waits_shares_large_arrays(view, where, array):
    few, ours = array[:1000], where[2] == "ours"
    assert view.push({"kept": array, "few": few, "n": 1}) == [None] * 4
    assert mapped(view) == [ours] * 4 and mapped(view, "few") == [False] * 4
    view.execute("kept[0] += 1; del few")
    assert view.apply(eval, "int(kept[0]), n") == [(1, 1)] * 4 and array[0] == 0
    view.push({"kept": array[::2]})  # which is no one piece of memory
    assert mapped(view) == [False] * 4 and view.apply(eval, "int(kept[2])") == [4] * 4
    view.push({"kept": array}, block=False).get()
    assert mapped(view) == [False] * 4 and view.apply(eval, "int(kept[2])") == [2] * 4


def test_a_push_to_engines_that_may_not_look_here(view, array, monkeypatch):
    monkeypatch.setattr(shared.Shared, "_where", lambda self: (shared._host(), 1, 0, self._file))
    view.push({"kept": array})
    assert mapped(view) == [False] * 4 and view.apply(eval, "int(kept[2])") == [2] * 4


def test_a_push_where_nothing_can_be_shared(view, array, monkeypatch):
    def fail(*_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "memfd_create", fail)
    view.push({"kept": array})
    assert mapped(view) == [False] * 4 and view.apply(eval, "int(kept[2])") == [2] * 4


def test_it_is_kept_until_the_call_has_ended(rc, array):
    rc[:].execute("import threading; go = threading.Event()", block=True)
    shared.prune()
    gc.collect()
    before = memory_files()
    busy = rc[:].apply_async(eval, "go.wait(60)")
    rc[:]["kept"] = phalanx.share(array)  # which nobody holds, behind a call that runs
    gc.collect()
    assert len(shared.held) == 1
    rc.send_signal("SIGINT", rc.ids, block=True)
    busy.wait(60)
    for _ in range(2):  # the first is submitted while it is still to come
        assert rc[:].apply_sync(eval, "int(kept[5])") == [5] * 4
    assert not shared.held
    assert memory_files() == before


def memory_files():
    """How many this process has."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += "phalanx-shared" in os.readlink(f"/proc/self/fd/{fd}")
    return count


def test_it_ends_without_a_step_of_python(array):
    """In which an interrupt would be lost."""
    before, with_it, steps = memory_files(), phalanx.share(array), []
    sys.setprofile(lambda frame, event, _: steps.append(frame.f_code.co_name) if event == "call" else None)
    try:
        del with_it
    finally:
        sys.setprofile(None)
    assert steps == [] and memory_files() == before


def test_nobody_changes_it(array):
    with_it = phalanx.share(array)
    for change in (lambda: os.pwrite(with_it._fd, b"x", 0), lambda: os.ftruncate(with_it._fd, 5),
                   lambda: os.ftruncate(with_it._fd, 2 * SIZE)):
        with pytest.raises(PermissionError):
            change()
    mine = with_it.get()
    mine[0] = 9
    assert array[0] == 0 and numpy.array_equal(pickle.loads(pickle.dumps(with_it)), array)


def test_data_that_is_gone(rc, array):
    with_it = phalanx.share(array)
    stream = pickle.dumps(with_it)
    del with_it
    why = f"the data was in process {os.getpid()} of .*: it is not there: No such file"
    with pytest.raises(phalanx.RemoteError, match=why):
        rc[0].apply_sync(pickle.loads, stream)
    read, write = os.pipe()  # may have taken the number
    try:
        for fd in (read, write):
            with pytest.raises(RuntimeError, match="is no longer there|is not there"):
                shared._map(shared._host(), os.getpid(), fd, (1, 2, 3))
    finally:
        os.close(read)
        os.close(write)


def test_another_host(rc, array, monkeypatch):
    monkeypatch.setattr(shared, "_host", lambda: "elsewhere")
    with pytest.raises(phalanx.RemoteError, match="of elsewhere: it can be used on that host alone"):
        rc[0].apply_sync(len, phalanx.share(array))


def test_a_client_that_has_ended(rc, where, tmp_path):
    """What it left waiting fails and says why; nothing else does."""
    file, env, _ = where
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy, phalanx, pickle, sys\n"
        f"rc = phalanx.Client({str(file)!r}); rc.wait_for_engines(4)\n"
        "data = phalanx.share(numpy.arange(1000000))\n"
        "sys.stdout.buffer.write(pickle.dumps(data))\n")
    done = subprocess.run([PYTHON, script], env=script_environment(env), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, check=True, timeout=60)
    with pytest.raises(phalanx.RemoteError, match="it is not there"):
        rc[0].apply_sync(pickle.loads, done.stdout)
    assert rc[0].apply_sync(abs, -1) == 1


def test_what_cannot_be_shared():
    before = memory_files()
    with pytest.raises(TypeError, match="cannot pickle"):
        phalanx.share(sys.stdout)
    assert memory_files() == before
