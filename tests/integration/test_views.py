# SPDX-License-Identifier: BSD-3-Clause
"""Every method of views and results, on four engines, under pxcontroller and ipcontroller."""
import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import gc
import io
import itertools
import json
import operator
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
import typing
import warnings

import pytest

from conftest import PYTHONPATH, wait_for
from four import balanced, phalanx, rc, recorded, view, where  # noqa: F401: fixtures

numpy = pytest.importorskip("numpy")
magics = pytest.importorskip("phalanx._magics")
from phalanx import order  # noqa: E402
error = phalanx.error

# The functions below travel as a notebook's do: as code of __main__.
__name__ = "__main__"


@contextlib.contextmanager
def raises_remote(name):
    with pytest.raises(phalanx.RemoteError) as caught:
        yield
    e = caught.value
    assert name in ([entry[0] for entry in e.elist] if hasattr(e, "elist") else [e.ename])


@contextlib.contextmanager
def printed():
    """A list that holds, afterwards, what was printed."""
    out, said = io.StringIO(), []
    with contextlib.redirect_stdout(out):
        yield said
    said.append(out.getvalue())


class Gate:
    """Tasks that wait until the test opens it; engines run on this machine."""

    def __init__(self, path):
        self.path = str(path)

    def open(self):
        open(self.path, "w").close()

    @property
    def task(self):
        path = self.path

        def wait(value=None):
            import os
            import threading

            for _ in range(12_000):  # a minute
                if os.path.exists(path) or threading.Event().wait(0.005):
                    break
            return value

        return wait


@pytest.fixture
def gate(tmp_path):
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()


# ---- calls -----------------------------------------------------------------------------------


def test_apply_and_its_kin(view, balanced):
    assert view.apply(lambda x, y=1: x + y, 2, y=3) == [5] * 4
    assert view.apply_sync(lambda f: f, f=7) == [7] * 4
    result = view.apply_async(lambda: 1)
    assert isinstance(result, phalanx.AsyncResult) and result.get(60) == [1] * 4
    assert balanced.apply_sync(lambda x: x * 2, 4) == 8
    balanced.block = True
    assert balanced.apply(lambda: 3) == 3


def test_calls_of_any_length(view):
    """An engine changes the pickle of a call, whose frame must still end where all of it does."""
    for length in range(12):
        view.push({"name": "x" * length})
        assert view["name"] == ["x" * length] * 4


def test_run_and_execute(view, tmp_path):
    file = tmp_path / "program.py"
    file.write_text("def g():\n    return 5\n    ")
    view.run(file)
    assert view.apply(lambda f: f(), phalanx.Reference("g")) == [5] * 4
    reply = view.client[0].execute("print('out'); 6 * 7", silent=False, block=True).get()
    assert reply.stdout == "out\n" and reply.data["text/plain"] == "42"
    assert repr(reply) == f"<ExecuteReply[{reply.execution_count}]: 42>"
    with raises_remote("ZeroDivisionError"):
        view.execute("1/0")


def test_flags(view, balanced):
    view.set_flags(block=False, track=True)
    with view.temp_flags(block=True):
        assert view.apply(lambda: 1) == [1] * 4
    assert not view.block and view.track
    with pytest.raises(KeyError):
        view.set_flags(nothing=1)
    for wrong, kind in (({"after": 5}, ValueError), ({"timeout": "x"}, TypeError),
                        ({"timeout": -1}, ValueError), ({"retries": "x"}, TypeError),
                        ({"follow": [7]}, ValueError)):
        with pytest.raises(kind):
            balanced.set_flags(**wrong)
    assert len(view) == 4 and len(view.client[0]) == 1 and len(balanced) == 4


def test_track(view):
    array = numpy.zeros(1 << 20)
    with view.temp_flags(track=True, block=False):
        result = view.apply(lambda a: float(a.sum()), array)
    result.wait_for_send(60)
    assert result.sent
    assert result.get(60) == [0.0] * 4


# ---- data ------------------------------------------------------------------------------------


def test_names(view):
    view.push({"a": 1, "b": [2]})
    view.update({"c": 3})
    view["d.e"] = 4 if view.execute("class d: pass").successful() else None
    assert view.pull(["a", "b"]) == [[1, [2]]] * 4
    assert view.get("c") == view["c"] == [3] * 4 and view["d.e"] == [4] * 4
    for wrong in (5, [5]):
        with pytest.raises(TypeError):
            view.pull(wrong)
    with pytest.raises(TypeError):
        view.push("a")
    view.clear()
    with raises_remote("NameError"):
        view["a"]


@pytest.mark.parametrize("dist", ["b", "r"])
@pytest.mark.parametrize("data", [list(range(10)), numpy.arange(10.0)], ids=["list", "array"])
def test_scatter_and_gather(view, dist, data):
    view.scatter("part", data, dist=dist)
    assert [len(p) for p in view["part"]] == [3, 3, 2, 2]
    back = view.gather("part", dist=dist)
    assert list(back) == list(data) and type(back) is type(data)
    view.scatter("rank", view.targets, flatten=True)
    assert view["rank"] == view.targets
    with pytest.raises(KeyError):
        view.scatter("x", data, dist="z")


def test_sync_imports(view):
    view.clear()
    with printed() as said, view.sync_imports():
        import colorsys  # noqa: F401
        from fractions import Fraction  # noqa: F401
    assert said == ["importing colorsys on engine(s)\nimporting Fraction from fractions on engine(s)\n"]
    assert view.pull(["colorsys.ONE_THIRD > 0", "Fraction(1, 2) * 2"]) == [[True, 1]] * 4
    with printed() as said, view.sync_imports(quiet=True):
        import colorsys  # noqa: F401
    assert said == [""]


def test_sync_imports_under_other_names(view):
    view.clear()
    with printed() as said, view.sync_imports():
        import colorsys as cs
        import concurrent.futures as cf  # noqa: F401
        from collections import OrderedDict as O, deque  # noqa: F401, E741
        print(cs.ONE_THIRD < 1)
    assert said == ["True\nimporting colorsys as cs on engine(s)\n"
                    "importing concurrent.futures as cf on engine(s)\n"
                    "importing OrderedDict as O, deque from collections on engine(s)\n"]
    assert view.pull(["cs.ONE_THIRD > 0", "cf.Future.__name__", "len(O(a=deque()))"]) \
           == [[True, "Future", 1]] * 4
    # Without the other names, as ipyparallel has them, and its users' functions.
    assert view.pull(["colorsys is cs", "concurrent.futures is cf", "OrderedDict is O"]) \
           == [[True] * 3] * 4


def test_picklers(view):
    pytest.importorskip("cloudpickle")
    view.execute("_where = 'engine'")
    __main__ = __import__("__main__")
    f = phalanx.interactive(lambda: _where)  # noqa: F821
    __main__._where = "client"
    try:
        assert view.apply(f) == ["engine"] * 4
        with view.temp_flags(block=False):
            used = view.use_cloudpickle()
        assert used.get() and repr(used) == "<AsyncResult(use_cloudpickle): finished>"
        assert view.apply(f) == ["client"] * 4
        view["x"] = 5
        assert view["x"] == [5] * 4
        assert view.map(lambda n: n + 1, range(8)) == list(range(1, 9))
    finally:
        view.use_pickle()
        del __main__._where
    assert view.apply(f) == ["engine"] * 4


def test_what_is_required_is_there_for_functions_that_take_along_what_they_use(view, balanced):
    @phalanx.require("colorsys", number=5)
    def needy(x):
        return colorsys.rgb_to_hsv(x, x, x), number  # noqa: F821

    view.use_cloudpickle()
    try:
        assert balanced.apply_sync(needy, 1) == ((0.0, 0.0, 1), 5)
        assert view.apply_sync(needy, 1) == [((0.0, 0.0, 1), 5)] * 4
    finally:
        view.use_pickle()
    assert balanced.apply_sync(needy, 1) == ((0.0, 0.0, 1), 5)


def uses_dill(view):
    """What plain pickle and cloudpickle refuse travels both ways."""
    def of_main(source):  # dill takes the globals of other modules' functions along
        return eval(source, vars(__import__("__main__")))

    double, plus_one = of_main("lambda x: x * 2"), of_main("lambda x: x + 1")
    locked = of_main("lambda lock: lock.locked()")
    view.use_dill()
    try:
        assert view.apply(double, 4) == [8] * 4
        assert view.apply(of_main("lambda d: d['a'][0](2)"), {"a": [double]}) == [4] * 4
        assert view.apply(locked, threading.Lock()) == [False] * 4
        locks = view.apply(of_main("lambda: __import__('threading').Lock()"))
        assert [lock.locked() for lock in locks] == [False] * 4
        view["x"] = 5
        assert view["x"] == [5] * 4
        assert view.map(plus_one, range(8)) == list(range(1, 9))
        balanced = view.client.load_balanced_view()
        assert balanced.map_sync(plus_one, range(300)) == list(range(1, 301))
    finally:
        view.use_pickle()
    with pytest.raises(TypeError, match="cannot pickle"):
        view.apply(locked, threading.Lock())


def test_dill(view):
    pytest.importorskip("dill")
    uses_dill(view)


def test_dill_of_ipyparallels_client(where):
    pytest.importorskip("dill")
    ipyparallel = pytest.importorskip("ipyparallel")
    with ipyparallel.Client(where[0]) as client:
        client.wait_for_engines(4, timeout=60)
        view = client[:]
        view.block = True
        uses_dill(view)
        chosen = "getattr(__import__('sys').modules.get('_phalanx_wire.canning'), 'chosen', None)"
        assert view.apply(eval, f"{chosen} is None") == [True] * 4


# ---- broadcasts ------------------------------------------------------------------------------


def test_coalesced_broadcasts_in_one_result(rc):
    lib, form, raw = phalanx._phalanx, phalanx.canning, None
    for value in "one", "two":
        buffers = form.pack_call(form.pack_function(lambda x: x), (value,), {})
        raw = rc._raw.submit(lib.APPLY, route=lib.BROADCAST, targets=rc.ids, buffers=buffers,
                             coalesce=True, into=raw)
    assert raw.wait(lib.REPLIES, 60)
    buffers = [b for event in iter(raw.next, None) if event.type == lib.REPLY for b in event.buffers]
    assert sorted(form.unpack_all(buffers)) == ["one"] * 4 + ["two"] * 4


def test_a_collection_may_read_events_while_one_is_made(rc):
    lib, form, raw, events = phalanx._phalanx, phalanx.canning, None, []
    for value in range(8):
        buffers = form.pack_call(form.pack_function(lambda x: bytes([x]) * 5000), (value,), {})
        raw = rc._raw.submit(lib.APPLY, targets=rc.ids, buffers=buffers, into=raw)
    assert raw.wait(lib.FINISHED, 60)

    def read(phase, info):
        events.append(raw.next())

    thresholds = gc.get_threshold()
    gc.callbacks.append(read)
    try:
        gc.set_threshold(1)
        events += iter(raw.next, None)
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(read)
    replies = [event for event in events if event and event.type == lib.REPLY]
    values = sorted(form.unpack_result(reply.buffers) for reply in replies)
    assert values == [bytes([value]) * 5000 for value in range(8) for _ in rc.ids]


@pytest.mark.parametrize("coalescing", [False, True])
def test_broadcast(rc, coalescing):
    view = rc.broadcast_view(rc.ids, is_coalescing=coalescing)
    array = numpy.arange(100_000.0)
    view["a"] = array
    assert [a.sum() for a in view["a"]] == [array.sum()] * 4
    rc[:].scatter("rank", rc.ids, flatten=True).get()
    result = view.pull("rank", block=False)
    assert result.get(60) == rc.ids == result.engine_id
    executed = view.execute("print(rank)")
    executed.get(60)
    assert executed.wait_for_output(60)
    assert executed.stdout == [f"{i}\n" for i in rc.ids]
    assert view.apply_sync(lambda: 1) == [1] * 4
    assert rc.broadcast_view(rc.ids[:2], is_coalescing=coalescing).apply_sync(lambda: 2) == [2, 2]
    assert rc.broadcast_view(coalescing=coalescing).is_coalescing is coalescing
    assert view.map_sync(abs, [-1, 2]) == [1, 2]
    with raises_remote("ZeroDivisionError"):
        view.apply_sync(lambda: 1 / 0)


def test_broadcast_to_one(rc):
    assert rc.broadcast_view(0).apply_sync(lambda: 5) == 5


# ---- maps ------------------------------------------------------------------------------------


def test_map(view, balanced):
    assert view.map(pow, range(10), itertools.repeat(2, 20)) == [n ** 2 for n in range(10)]
    assert view.map_sync(lambda x: x, []) == [] == balanced.map_sync(lambda x: x, [])
    assert list(view.map_async(abs, iter([-1, 2, -3]))) == [1, 2, 3]
    assert list(view.imap(abs, [-1])) == [1]
    assert balanced.map_sync(lambda x, y: x + y, range(5), range(9), chunksize=2) == [0, 2, 4, 6, 8]
    for mapping in (view.map_async, view.map_sync):
        with pytest.raises(TypeError):
            mapping(abs, [1], block=True)
    with pytest.raises(AssertionError):
        view.map(abs)


def test_maps_take_what_cannot_be_sliced(view, balanced):
    for values in ({"a": 1, "b": 2}, {3, 4}, collections.deque("xy"), iter(range(5))):
        listed = list(values)
        values = iter(listed) if iter(values) is values else values
        assert list(balanced.map_sync(str, values)) == [str(v) for v in listed]
        values = iter(listed) if iter(values) is values else values
        assert list(view.map_sync(str, values)) == [str(v) for v in listed]


def test_map_keeps_exceptions(balanced):
    result = balanced.map_async(lambda n: 1 // (n - 2), range(4), return_exceptions=True)
    values = result.get(60)
    assert values[:2] + values[3:] == [-1, -1, 1] and isinstance(values[2], phalanx.RemoteError)
    assert values[2].ename == "ZeroDivisionError"
    with raises_remote("ZeroDivisionError"):
        list(balanced.map_async(lambda n: 1 // n, range(2)))


def test_an_element_that_raises_stopiteration_ends_no_map(view, balanced):
    for mapped in (lambda: view.map_sync(next, [iter("a"), iter("")]),
                   lambda: balanced.map_sync(next, [iter(""), iter("a")]),
                   lambda: balanced.map_sync(next, [iter(""), iter("a")], chunksize=2),
                   lambda: balanced.map_sync(next, [iter("")] * 300)):
        with raises_remote("StopIteration"):
            mapped()


def test_unordered_map(balanced, gate):
    wait = gate.task
    result = balanced.map_async(
        lambda n, f: f(n) if n == 0 else n, range(4), [wait] * 4, ordered=False)
    values = iter(result)
    assert sorted(next(values) for _ in range(3)) == [1, 2, 3]
    gate.open()
    assert list(values) == [0]


def test_imap_is_lazy_and_bounded(balanced):
    taken = []

    def numbers():
        for n in itertools.count():
            taken.append(n)
            yield n

    values = balanced.imap(lambda n: n * 10, numbers(), max_outstanding=2)
    assert taken == [0, 1]
    assert [next(values) for _ in range(10)] == list(range(0, 100, 10))
    assert len(taken) <= 10 + 2
    values.cancel()
    count = len(taken)
    assert list(values) == [10 * n for n in range(10, count)] and len(taken) == count
    unordered = balanced.imap(lambda n: n, itertools.count(), ordered=False)
    assert len(set(itertools.islice(unordered, 50))) == 50


# ---- decorators ------------------------------------------------------------------------------


def test_remote_and_parallel(view, balanced):
    @view.remote(block=True)
    def add(x, y=5):
        """Adds."""
        return x + y

    assert add(1) == [6] * 4 and add.__name__ == "add" and "Adds." in add.__doc__
    assert phalanx.remote(view.client[0])(abs)(-3).get(60) == 3

    @view.parallel(block=True)
    def double(x):
        return x * 2

    assert double(list(range(8))) == [0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7]
    assert double.map(range(3)) == [0, 2, 4]
    spread = phalanx.parallel(view, dist="r", block=True)(lambda part: [max(part)])
    assert spread(list(range(8))) == [4, 5, 6, 7]
    with pytest.raises(ValueError, match="equal length"):
        phalanx.parallel(view)(zip)([1], [1, 2])
    assert phalanx.parallel(balanced, block=True)(lambda x: x + 1).map([1, 2]) == [2, 3]


def test_require_and_depend(rc, balanced):
    rc[:].execute("here = None").get()
    engine = rc.ids[2]
    rc[engine].execute("here = 'yes'").get()

    @phalanx.require("colorsys", helper=lambda: 5)
    @phalanx.interactive
    def f():
        return colorsys.ONE_THIRD > 0, helper()  # noqa: F821

    assert balanced.apply_sync(f) == (True, 5)

    @phalanx.depend(phalanx.interactive(lambda word: here == word), "yes")  # noqa: F821
    def g():
        return "ran"

    results = [balanced.apply_async(g) for _ in range(5)]
    assert [r.get(60) for r in results] == ["ran"] * 5
    assert {r.engine_id for r in results} == {engine}

    @phalanx.require("no_such_module_anywhere")
    def never():
        pass

    with balanced.temp_flags(timeout=0.3):  # no engine will do; a new one might
        with pytest.raises(phalanx.TaskTimeout, match="within its timeout"):
            balanced.apply_sync(never)


def test_modules_are_required_as_import_names_them(balanced):
    @phalanx.require("colorsys as colors", "json, string", "os.path")
    @phalanx.interactive
    def f():
        return colors.ONE_THIRD > 0, json.dumps(string.digits), os.path.sep  # noqa: F821

    assert balanced.apply_async(f).get(60) == (True, '"0123456789"', "/")


def test_metadata_tells_the_error_as_soon_as_the_result_does(balanced):
    for _ in range(50):  # iopub's word of it is sometimes later than the reply
        result = balanced.apply_async(lambda: 1 / 0)
        assert result.wait(60)
        assert result.metadata.error.ename == "ZeroDivisionError"


def test_after_and_follow(rc, balanced, gate):
    first = balanced.apply_async(gate.task)
    with balanced.temp_flags(after=first):
        second = balanced.apply_async(time.time)
    with balanced.temp_flags(follow=phalanx.Dependency([first])):
        third = balanced.apply_async(lambda: 3)
    assert not second.ready()
    gate.open()
    assert second.get(60) and third.get(60) == 3
    assert second.started >= first.completed
    assert third.engine_id == first.engine_id
    with balanced.temp_flags(after="no such task"):
        with pytest.raises(phalanx.InvalidDependency, match="does not know") as caught:
            balanced.apply_sync(lambda: 1)
    shown = caught.value.render_traceback()[0]
    assert "does not know" in shown or shown.startswith("Traceback")  # ipcontroller's
    on_one = rc.load_balanced_view(rc.ids[1])
    assert {on_one.apply_async(lambda: 1).get_dict(60).popitem()[0] for _ in range(3)} == {rc.ids[1]}


def test_retries(balanced, tmp_path):
    marks = str(tmp_path)

    def fail_twice():
        import os

        if len(os.listdir(marks)) < 2:
            open(os.path.join(marks, str(os.getpid())), "w").close()
            raise ValueError("not yet")
        return "done"

    with balanced.temp_flags(retries=3):
        assert balanced.apply_sync(fail_twice) == "done"
    with raises_remote("ValueError"):
        balanced.apply_sync(lambda: int("x"))


# ---- results ---------------------------------------------------------------------------------


def test_metadata_by_id(rc, balanced, gate):
    """client.metadata knows the tasks whose results somebody holds, at work or done."""
    done = balanced.map_async(abs, range(-3, 0), chunksize=1)
    assert done.get(60) == [3, 2, 1]
    assert [rc.metadata[i] for i in done.msg_ids] == done.metadata
    assert rc.metadata[done.msg_ids[1]].status == "ok"
    working = rc[0].apply_async(gate.task, 5)
    assert rc.metadata[working.msg_ids[0]].completed is None
    gate.open()
    assert working.get(60) == 5 and rc.metadata[working.msg_ids[0]].engine_id == rc.ids[0]
    assert rc.metadata["no such task"].status is None and len(rc.metadata) == 1
    rc.results["put here"] = 5
    assert rc.metadata["put here"].status is None and len(rc.metadata) == 2
    rc.purge_local_results("put here")
    assert len(rc.results) == 0 and len(rc.metadata) == 1
    rc.metadata.clear()


def test_waiting(view, gate):
    result = view.apply_async(gate.task, 5)
    assert not result.ready() and not result.done() and result.running()
    assert result.wait(0) is False and result.progress == 0 and len(result) == 4
    with pytest.raises(TimeoutError, match="0 of 4 tasks have ended"):
        result.get(0.01)
    with pytest.raises(TimeoutError):
        result.exception(0)
    with pytest.raises(TimeoutError):
        result.wall_time
    assert result.elapsed >= 0 and result.engine_id == [None] * 4
    gate.open()
    assert result.get(60) == result.r == result.result() == [5] * 4
    assert result.successful() and result.exception() is None and result.progress == 4
    assert result.wait_for_output(60)
    assert result.get_dict() == result.result_dict == dict.fromkeys(view.targets, 5)
    assert result[0] == 5 and result[1:3] == [5, 5] and list(result) == [5] * 4
    assert result.metadata[0].engine_id == result["engine_id"][0] == view.targets[0]
    assert 0 <= result.serial_time and result.wall_time > 0
    assert result.timedelta(result.submitted, result.received) == result.wall_time
    assert "stdout" in dir(result) and not hasattr(result, "nothing")
    with pytest.raises(KeyError):
        result["nothing"]
    with pytest.raises(ValueError):
        view.client.load_balanced_view().map_async(abs, range(9)).get_dict()


def test_joining_splitting_and_the_first(rc, gate):
    first, second = rc[0].apply_async(gate.task, 1), rc[:].apply_async(lambda: 2)
    both = phalanx.AsyncResult.join(first, second)
    done, pending = both.wait(60, return_when=phalanx.FIRST_COMPLETED)
    assert done and len(done | pending) == 5 and both.split()[0] in pending
    done, pending = second.wait(0, return_when=phalanx.FIRST_EXCEPTION)
    assert pending <= set(second.split()) and repr(first) == "<AsyncResult(wait): pending>"
    gate.open()
    assert both.get(60) == [1] + [2] * 4 and len(both) == 5
    assert both.wait(60, return_when=phalanx.ALL_COMPLETED) == (set(both.split()), set())
    assert [part.get(60) for part in second.split()] == [2] * 4
    assert first.split() == (first,) and phalanx.AsyncResult.join(first) is first
    assert repr(both) == "<AsyncResult(wait): finished>"
    with pytest.raises(ValueError):
        phalanx.AsyncResult.join()
    with pytest.raises(ValueError):
        both.wait(return_when="never")


def test_the_first_exception(rc, gate):
    rc[0]["task"] = gate.task
    for i in rc.ids[1:]:
        rc[i]["task"] = lambda: 1 // 0
    failing = rc[:].apply_async(phalanx.Reference("task"))
    with raises_remote("ZeroDivisionError"):
        failing.get(60, return_when=phalanx.FIRST_EXCEPTION)
    failing.wait_interactive(timeout=60, return_when=phalanx.FIRST_EXCEPTION)
    done, pending = failing.wait(60, return_when=phalanx.FIRST_EXCEPTION)
    assert failing.split()[0] in pending and not failing.ready()
    with raises_remote("ZeroDivisionError"):
        failing.split()[1].get(60)
    with pytest.raises(RuntimeError, match="not done"):
        failing.successful()
    gate.open()
    assert failing.wait(60) and "failed" in repr(failing)


def test_parts_are_futures_of_their_own(rc, gate):
    mapped = rc.load_balanced_view().map_async(abs, [-1, -2])
    assert [part.get(60) for part in mapped.split()] == [[[1]], [[2]]]
    rc[0]["task"] = gate.task
    rc[1]["task"] = lambda: 1
    pair = rc[:2].apply_async(phalanx.Reference("task"))
    called = threading.Event()
    pair.split()[1].add_done_callback(lambda part: called.set())
    first = next(concurrent.futures.as_completed(pair.split(), 60))
    assert first is pair.split()[1] and called.wait(60) and not pair.ready()
    gate.open()
    assert pair.get(60) == [None, 1]


def test_maps_count_their_elements(view, balanced):
    for result in (view.map_async(abs, range(9)), balanced.map_async(abs, range(9), chunksize=2)):
        assert len(result) == 9 and len(result.msg_ids) < 9
        result.get(60)
        assert result.progress == 9


def test_many_tasks_are_looked_through_once(rc, balanced, gate, monkeypatch):
    results = [balanced.apply_async(abs, -n) for n in range(50)]
    mapped = balanced.map_async(abs, range(-300, 0), chunksize=10)
    long = balanced.map_async(gate.task, range(300))
    dropped = balanced.apply_async(gate.task).msg_ids
    ids = [*(result.msg_ids[0] for result in results), *mapped.msg_ids, mapped.msg_ids[0]]
    looks, alive = [], rc._results_alive
    monkeypatch.setattr(rc, "_results_alive", lambda: looks.append(1) or alive())
    assert rc.wait(ids, 60) and len(looks) == 1
    assert rc.get_result(ids).get(60)[49:51] == [49, [*range(300, 290, -1)]] and len(looks) == 2
    first = long._raw.task_id(0)
    assert rc.wait(5, 60) and not rc.wait([first], 0) and not rc.wait(dropped, 0)
    gate.open()
    assert rc.wait([*dropped, first], 60)

    joined = phalanx.AsyncResult.join(phalanx.AsyncResult.join(*results), mapped)
    pieces = joined.split()
    assert [piece._whole[0] for piece in pieces[:50]] == results and pieces[50]._whole == [mapped]
    assert pieces[50].get(60) == [*range(300, 290, -1)]

    joins, join = [], mapped._joiner
    mapped._joiner = lambda values: joins.append(1) or join(values)
    assert [mapped[n] for n in range(300)] == [*range(300, 0, -1)] and len(joins) == 1


def test_labels(rc, view, balanced, tmp_path):
    assert view.set_flags(label="mine") is view and balanced.set_flags(label="mine") is balanced
    file = tmp_path / "code.py"
    file.write_text("a = 1")
    results = [view.execute("1", label="one"), view.run(file, label="one"),
               view.map_async(abs, range(4), label="one"),
               balanced.map_async(abs, range(4), label="one"),
               balanced.map_async(abs, range(400), label="one")]
    assert all(set(r.get(60) and r.label) == {"one"} for r in results)
    for v in (view, balanced):
        assert v.apply_async(abs, -1).label in ("mine", ["mine"] * 4)
    plain = rc[0].apply_async(abs, -1)
    plain.get(60)
    assert plain.metadata.label is None


def test_pickled_before(rc, view, balanced):
    pickled = []

    class Costly:
        def __reduce__(self):
            pickled.append(1)
            return list, ((1, 2),)

    data, f = phalanx.PrePickled(Costly()), phalanx.PrePickled(lambda x, y=0: sum(x) + y)
    for v in (view, balanced, rc.broadcast_view(is_coalescing=True)):
        for _ in range(2):
            assert v.apply_sync(f, data, y=1) in (4, [4] * 4)
    assert len(pickled) <= 2  # once for each form
    assert (rc[0].apply_sync(sum, phalanx.PrePickled(numpy.arange(5000)))) == sum(range(5000))


@pytest.mark.parametrize("where", ["ours"], indirect=True)  # __main__ is not on engines otherwise
def test_the_users_canning(rc):
    class Handle:
        pass

    class Canned(phalanx.canning.CannedObject):
        def __init__(self, handle):
            self.buffers = []

        def get_object(self, g=None):
            return "opened"

    phalanx.can_map[Handle] = Canned
    try:
        assert rc[0].apply_sync(lambda x: x, Handle()) == "opened"
        assert phalanx.uncan(phalanx.can({"a": 1})) == {"a": 1}
        assert phalanx.uncan(phalanx.can(Handle())) == "opened"
    finally:
        del phalanx.can_map[Handle]


def test_single_results_are_single(rc):
    result = rc[0].apply_async(lambda: [1, 2])
    assert result.get(60) == [1, 2] and result.engine_id == rc.ids[0]
    with pytest.raises(TypeError):
        iter(result)
    assert rc[[rc.ids[0]]].apply_sync(lambda: 1) == [1]


def test_a_value_that_was_got_leaves_its_record(rc, balanced, gate):
    """get() of a single call reads its value alone; all else that is known of it is there yet."""
    result = balanced.apply_async(list, (1, 2))
    value = result.get(60)
    assert value == [1, 2] and value is result.get() is result.r is result.result()
    assert result.successful() and result.exception() is None and result.done()
    assert result.status == "ok" and result.engine_id in rc.ids and result.elapsed > 0
    assert result.started >= result.submitted and result.wait_for_output(60)
    assert concurrent.futures.wait([result], 60).done == {result}
    assert "finished" in repr(result) and rc.get_result(result.msg_id).get() == value

    result = balanced.apply_async(print, "said")
    assert result.get(60) is None and result.wait_for_output(60) and result.stdout == "said\n"
    assert result.get() is None

    result = balanced.apply_async(lambda: 1 // 0)
    for _ in range(2):
        with raises_remote("ZeroDivisionError"):
            result.get(60)
    assert result.status == "error" and result.get(return_exceptions=True).ename

    result = balanced.apply_async(gate.task)
    for timeout in 0, 0.01:
        with pytest.raises(phalanx.TimeoutError, match="0 of 1 tasks"):
            result.get(timeout)
    waited, wait = [], result._wait
    result._wait = lambda until, timeout: waited.append(timeout) or wait(until, timeout)
    with pytest.raises(phalanx.TimeoutError):
        result.get(0.01)
    assert waited == [0]  # not as long once more
    gate.open()
    values = []
    threads = [threading.Thread(target=lambda: values.append(result.get())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(values) == 8 and all(value is values[0] for value in values)


def test_what_one_reader_awaits_another_may_read(rc, gate):
    rc[1].apply_async(gate.task)
    rc[0]["task"] = lambda: __import__("threading").Event().wait(0.02)
    others = []
    for _ in range(10):
        pair = rc[:2].apply_async(phalanx.Reference("task"))
        own = threading.Thread(target=pair.split()[0].get)
        others += [threading.Thread(target=pair.split()[1].wait) for _ in range(2)]
        for thread in (*others[-2:], own):
            thread.start()
        own.join(60)
        assert not own.is_alive() and not pair.ready()
    gate.open()
    for thread in others:
        thread.join(60)


def test_an_interrupt_loses_no_event(view, balanced):
    """It may come between its arrival and its filing, or just after that."""
    mapped = balanced.map_async(abs, range(-300, 0))
    for result, values in (view.apply_async(abs, -1), [1] * 4), (mapped, [*range(300, 0, -1)]):
        assert result._raw.wait(phalanx._phalanx.FINISHED, 60)
        file, due = result._file, ["after", "before"]

        def interrupted(event):
            when = due.pop() if due else None
            if when != "before":
                file(event)
            if when:
                raise KeyboardInterrupt

        result._file = interrupted
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                result.ready()
        assert result.get(60) == values and sorted(result._order) == [*range(len(values))]


def test_events_come_once_though_their_value_was_got(rc):
    lib, form = phalanx._phalanx, phalanx.canning
    call = form.pack_call(form.pack_function(lambda: [1]), (), {})

    def submitted(**options):
        raw = rc._raw.submit(lib.APPLY, route=lib.BALANCED, buffers=call, **options)
        assert raw.wait(lib.FINISHED, 60)
        return raw

    raw = submitted()
    assert raw.value(form.unpack_result, 0) == raw.value(form.unpack_result, None) == [1]
    assert raw.wait(lib.EVENT, 0) and raw.replied == 1 and not raw.running
    types = [event.type for event in iter(raw.next, None)]
    assert types[0] == lib.REPLY and types.count(lib.REPLY) == types.count(lib.IDLE) == 1
    assert raw.value(form.unpack_result, 0) is NotImplemented  # they are filed by who reads events
    assert submitted(into=submitted()).value(form.unpack_result, 0) is NotImplemented  # of two tasks

    raw = submitted()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            raw.value(lambda buffers: 1 // 0, 0)
    raw.discard()
    assert raw.next() is None
    for wrong in (), (form.unpack_result,), (form.unpack_result, "soon"):
        with pytest.raises(TypeError):
            raw.value(*wrong)
    with pytest.raises(TypeError, match="list or tuple"):  # who else would hold them?
        rc._raw.submit(lib.APPLY, buffers=(bytes(9) for _ in range(9)))


def test_interactive_wait(view, monkeypatch):
    with printed() as said:
        view.apply_async(abs, -1).wait_interactive()
    assert "4/4" in said[0]
    monkeypatch.setitem(__import__("sys").modules, "tqdm", None)
    with printed() as said:
        view.apply_async(abs, -1).wait_interactive(interval=0.01)
        view.client.wait_for_engines(4, interactive=True)
    assert "abs: 4/4 tasks after" in said[0]


def test_output(view):
    with printed() as said:
        view.execute("print('a')").display_outputs()
    assert said == ["".join(f"[stdout:{i}] \na\n" for i in view.targets)]
    with printed() as said:
        failed = view.client[0].execute("print('kept')\n1/0", block=False)
        failed.wait(60)
        failed.display_outputs()
    assert said == ["kept\n"]
    with printed() as said:
        view.client[0].execute("print('a')").display_outputs()
        view.execute("print('b')").display_outputs("engine")
    assert said[0].startswith("a\n") and said[0].count("[stdout:") == 4
    with pytest.raises(ValueError):
        view.execute("1").display_outputs("colour")


def test_output_as_it_arrives(rc, gate):
    seen = threading.Event()

    class Watch(io.StringIO):
        def write(self, text):
            super().write(text)
            if "first" in text:
                seen.set()
            return len(text)

    out = Watch()
    code = (f"import os, threading\nprint('first', flush=True)\n"
            f"while not os.path.exists({gate.path!r}): threading.Event().wait(0.005)\nprint('second')")
    with contextlib.redirect_stdout(out):
        with rc[0].execute(code, block=False).stream_output() as result:
            assert seen.wait(60)
            assert not result.ready()
            gate.open()
            result.get(60)
            assert result.wait_for_output(60)
    assert out.getvalue() == f"[stdout:{rc.ids[0]}] \nfirst\nsecond\n"


def test_the_last_output_of_what_has_ended_is_shown(balanced, monkeypatch):
    monkeypatch.setattr("phalanx.display.LAST_OUTPUT_SECONDS", 60)
    for _ in range(10):
        with printed() as said:
            result = balanced.map_async(lambda n: print("item" * 50_000), range(8), chunksize=1)
            with result.stream_output():
                result.wait()
        assert said[0].count("item") == 8 * 50_000


def test_output_that_came_before(rc, where):
    code = "print('out')\n'value'\n%s"
    result = phalanx.AsyncResult.join(
        rc[0].execute(code % "7", silent=False, block=False),
        rc[1].execute(code % "1/0", silent=False, block=False))
    result.wait_for_output(60)
    shown = []
    other = phalanx.Client(where[0])
    recorded(other, result.msg_ids, "execute_result", "error")  # which come last
    stored = other.get_result(result.msg_ids)
    stored.get(60, return_exceptions=True)
    for streamed in (result, rc.get_result(result.msg_ids[1]), stored):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            with streamed.stream_output():
                pass
        shown.append((out.getvalue(), err.getvalue()))
    assert "[stdout:0] \nout\n" in shown[0][0] and "[stdout:1] \nout\n" in shown[0][0]
    assert f"Out[{rc.ids[0]}:" in shown[0][0] and "[1:execute]" in shown[0][1]
    assert shown[1][0].startswith("[stdout:1] \nout\n") and "ZeroDivisionError" in shown[1][1]
    assert "out\n" in shown[2][0] and f"Out[{rc.ids[0]}:" in shown[2][0]
    assert "ZeroDivisionError" in shown[2][1]
    other.close()


class Screen:
    """Where %px would show things."""

    color = progress = False

    def __init__(self):
        self.said = ""

    def write(self, name, text):
        self.said += text


@contextlib.contextmanager
def followed(result):
    """What %px follows a result with, while another thread reads it."""
    over = threading.Event()

    def read():
        while not over.wait(0.005):
            result._pump()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        face = types.SimpleNamespace(outcome=lambda *args: None, stray_errors=lambda result: [])
        yield magics.Magics(None, face).follow
    finally:
        over.set()
        reader.join()


def test_a_result_that_is_read_while_it_is_recalled_shows_once(rc, gate, monkeypatch):
    code = (f"import os, threading\nprint('one', flush=True)\n"
            f"while not os.path.exists({gate.path!r}): threading.Event().wait(0.005)\nprint('two')")
    result = rc[0].execute(code, block=False)
    wait_for(lambda: result.stdout, 60, "the first line")
    came = threading.Event()
    result._listen(lambda event: came.set())
    real = phalanx.tasks.Text.__str__

    def slow(text):
        gate.open()
        came.wait(0.3)  # or it cannot, as it has to
        return real(text)

    monkeypatch.setattr(phalanx.tasks.Text, "__str__", slow)
    screen = Screen()
    with followed(result) as follow:
        follow(screen, result, True)
    assert screen.said == "[stdout:0] \none\ntwo\n"


def test_nobody_shows_a_result_whose_cell_has_ended(rc, gate, monkeypatch):
    code = (f"import os, threading\nprint('one', flush=True)\n"
            f"while not os.path.exists({gate.path!r}): threading.Event().wait(0.005)\n"
            f"from IPython.display import display\ndisplay({{'text/plain': 'shown'}}, raw=True)")
    result = rc[0].execute(code, block=False)
    inside, order, real = threading.Event(), [], json.loads

    def slow(text, *args):
        if "shown" in text and threading.current_thread() is not threading.main_thread():
            order.append("read")
            if len(order) == 2:  # filed, and now being shown
                inside.set()
                threading.Event().wait(0.3)
                order.append("read")
        return real(text, *args)

    class Broken(Screen):
        def write(self, name, text):
            gate.open()
            assert inside.wait(60)
            raise OSError("no screen")

    monkeypatch.setattr(json, "loads", slow)
    with followed(result) as follow:
        with pytest.raises(OSError):
            follow(Broken(), result, True)
        order.append("over")
    assert order == ["read", "read", "read", "over"]


def test_an_unfinished_line_is_waited_with_at_rest(view, gate):
    code = (f"import os, threading\nprint('one', end='', flush=True)\n"
            f"while not os.path.exists({gate.path!r}): threading.Event().wait(0.005)")
    screen, looks = Screen(), []
    screen.progress = True
    face = types.SimpleNamespace(
        screen=lambda: screen, keep=lambda result: None, mind=lambda *args: None, outcome=lambda *args: None,
        stray_errors=lambda result: [])
    shown = magics.Magics(None, face, view)
    shown.pxconfig("--progress-after 0.1")
    result = shown.cell_px("--noblock --targets 0", code)
    real = result._pump
    result._pump = lambda *most: looks.append(None) or real(*most)
    timer = threading.Timer(0.8, gate.open)
    timer.start()
    shown.pxresult("")
    timer.join()
    assert screen.said.endswith("[stdout:0] \none\n") and len(looks) < 100


def test_output_is_whole_once_results_are_here(view, balanced):
    def speak(n=1):
        import sys
        print("out", n)
        print("err", file=sys.stderr)

    for _ in range(20):
        for result, count in ((view.apply_async(speak), 4), (balanced.map_async(speak, range(3)), 3)):
            result.get(60)
            assert result.stderr == ["err\n"] * count and all(result["stdout"])
        single = balanced.apply_async(speak)
        single.get(60)
        assert single.stdout == "out 1\n"
    result = balanced.apply_async(lambda: 1 / 0)
    with raises_remote("ZeroDivisionError"):
        result.get(60)
    assert result.error.ename == "ZeroDivisionError"


def test_as_futures(balanced, gate):
    slow = balanced.apply_async(gate.task, "slow")
    fast = balanced.apply_async(lambda: "fast")
    done, left = concurrent.futures.wait([slow, fast], 60, concurrent.futures.FIRST_COMPLETED)
    assert done == {fast} and left == {slow}
    order, called = [], threading.Event()
    slow.add_done_callback(lambda f: (order.append(f.result()), called.set()))
    fast.add_done_callback(lambda f: order.append(f.result()))
    gate.open()
    assert called.wait(60) and order == ["fast", "slow"]
    many = [balanced.apply_async(lambda i: i, i) for i in range(20)]
    assert sorted(f.result() for f in concurrent.futures.as_completed(many, 60)) == list(range(20))
    with pytest.raises(RuntimeError):
        fast.set_result(1)


def test_waiting_ends_with_the_first_exception(balanced, gate, tmp_path):
    second = Gate(tmp_path / "second")
    slow = balanced.apply_async(gate.task)
    failing = balanced.apply_async(lambda wait: wait(1) / 0, second.task)
    threading.Timer(0.05, second.open).start()
    begun = time.monotonic()
    done, left = concurrent.futures.wait([slow, failing], 30, concurrent.futures.FIRST_EXCEPTION)
    assert done == {failing} and left == {slow} and time.monotonic() - begun < 20
    kept = balanced.map_async(lambda n: 1 // n, range(2), return_exceptions=True)
    kept.wait(60)
    begun = time.monotonic()
    done, left = concurrent.futures.wait([slow, kept], 0.2, concurrent.futures.FIRST_EXCEPTION)
    assert done == {kept} and left == {slow}
    assert time.monotonic() - begun > 0.1  # kept raises nothing, so both were waited for


def test_closing_tells_those_who_wait(where, gate):
    client = phalanx.Client(where[0])
    client.wait_for_engines(4, timeout=60)
    results = [client[0].apply_async(gate.task), client[:].apply_async(gate.task),
               client.load_balanced_view().map_async(gate.task, range(300))]
    called = threading.Event()
    results[1].add_done_callback(lambda r: called.set())
    threading.Timer(0.05, client.close).start()
    done, left = concurrent.futures.wait(results, 60)
    assert not left and called.wait(60)
    for result in results:
        assert result.ready() and result.done() and not result.successful()
        assert "failed" in repr(result)
        with pytest.raises(phalanx.RemoteError, match="the client was closed"):
            result.get()
        with raises_remote("EngineError"):
            result.get()
    assert len(results[1].engine_id) == 4 and results[1].stdout == [""] * 4


def test_awaited(view, balanced):
    async def main():
        values = await asyncio.gather(*[balanced.apply_async(lambda i: i, i) for i in range(5)])
        assert values == list(range(5))
        assert await view.apply_async(lambda: 1) == [1] * 4
        assert await balanced.map_async(lambda x: x + 1, range(500)) == list(range(1, 501))
        with raises_remote("ZeroDivisionError"):
            await balanced.apply_async(lambda: 1 / 0)

    asyncio.run(main())


def test_an_event_loop_is_not_held_up_by_what_it_cancels(rc, gate, monkeypatch):
    waits = []
    monkeypatch.setattr(phalanx.AsyncResult, "cancel", waits.append)  # which awaits an answer
    dv = rc[rc.ids[0]]
    first, second = dv.apply_async(gate.task, 1), dv.apply_async(abs, -2)

    async def main():
        for result in (first, second):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(result, 0.05)
        assert not first.ready()

    asyncio.run(main())
    assert not waits
    rc.abort("unknown", targets=dv.targets, block=True)  # comes behind the others
    gate.open()
    assert first.get(30) == 1  # it had started
    with pytest.raises(phalanx.TaskAborted):
        second.get(30)
    assert second.cancelled()


def test_cancel_and_abort(rc, gate, monkeypatch):
    monkeypatch.setattr("phalanx.asyncresult.CANCEL_SECONDS", 60)
    busy = rc[0].apply_async(gate.task)
    queued, other = rc[0].apply_async(lambda: 1), rc[0].apply_async(lambda: 2)
    other.abort()
    assert queued.cancel() and queued.cancelled()
    for result in (queued, other):
        with pytest.raises(phalanx.TaskAborted):
            result.get(60)
    with pytest.raises(concurrent.futures.CancelledError):
        queued.result()
    gate.open()
    busy.get(60)
    assert busy.cancel() is False
    with pytest.raises(AssertionError):
        busy.abort()
    with pytest.raises(RuntimeError) as caught:
        busy.abort()
    assert caught.typename == "TooLate"


@pytest.mark.parametrize("few", [False, True], ids=["any engine", "some"])
def test_what_waits_in_the_controller_is_cancelled(where, rc, gate, few, monkeypatch):
    if where[2] == "theirs":
        pytest.skip("theirs keeps it until an engine is free")
    view = rc.load_balanced_view(rc.ids[:2] if few else None)
    busy = [view.apply_async(gate.task, n) for n in range(len(view))]
    waiting = [view.apply_async(abs, -n) for n in range(40)]
    monkeypatch.setattr("phalanx.asyncresult.CANCEL_SECONDS", 30)
    after = view.apply_async(abs, -1)
    with view.temp_flags(after=after):
        second = view.apply_async(abs, -2)
    assert all(result.cancel() for result in [*waiting, after])
    with raises_remote("ImpossibleDependency"):
        second.get(30)
    assert rc.result_status(waiting)["pending"] == []
    again = rc.resubmit(waiting[7].msg_id, block=False)
    many = view.map_async(gate.task, range(800), chunksize=1)
    many.abort()
    with pytest.raises(phalanx.TaskAborted):
        many.get(30)
    assert not any(result.ready() for result in busy)
    gate.open()
    assert [result.get(30) for result in busy] == list(range(len(view))) and again.get(30) == [7]


def test_a_module_that_engines_lack(view, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def double(x): return 2 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    with pytest.raises(phalanx.CompositeError) as caught:
        view.apply(only_here.double, 2)
    wanted = "view.execute(%r, block=True)" % f"import sys; sys.path.append({str(tmp_path)!r})"
    for shown in caught.value.render_traceback(), caught.value.render_traceback(0):
        assert f"only_here is a module here, of {tmp_path}" in shown[-3] + shown[-2]
        assert wanted in shown[-2] + shown[-1]
    try:
        eval(wanted)
        assert view.apply(only_here.double, 2) == [4] * 4
    finally:
        view.execute("sys.path.pop()", block=True)
    del sys.modules["only_here"]  # for good: monkeypatch would put it back
    assert "is a module here" not in "".join(caught.value.render_traceback())


def test_the_same_traceback_is_shown_once(view):
    with pytest.raises(phalanx.CompositeError) as caught:
        view.execute("import os\nraise KeyError(17)")
    e = caught.value
    text = "\n".join(e.render_traceback())
    assert text.count("Traceback") == 1 and "(4 times the same)" in text
    assert f"[{view.targets[0]}-{view.targets[-1]}:execute]" in text
    scripts = "".join(traceback.format_exception(e))  # what a script prints
    assert "\x1b" not in scripts and "raise KeyError(17)" in scripts.split("direct cause")[0]
    with pytest.raises(phalanx.RemoteError, match="KeyError"):
        e.raise_exception(1)
    view.scatter("rank", view.targets, flatten=True)
    with pytest.raises(phalanx.CompositeError) as caught:
        view.execute("raise KeyError(rank)")
    assert "\n".join(caught.value.render_traceback()).count("Traceback") == 4


def test_an_error_is_of_the_class_that_was_raised(rc, view, balanced):
    with pytest.raises(ZeroDivisionError) as caught:
        balanced.apply_sync(lambda: 1 / 0)
    assert isinstance(caught.value, phalanx.RemoteError) and "RemoteError[" in repr(caught.value)
    with pytest.raises(LookupError):
        balanced.executor.submit({}.__getitem__, 1).result(60)
    for mapped in (view.map_sync, balanced.map_sync, lambda *a: list(balanced.imap(*a))):
        with pytest.raises(ValueError):
            mapped(int, "12x")
    with pytest.raises(OSError) as caught:
        view.execute("open('/nowhere/to be found')")
    assert isinstance(caught.value, phalanx.CompositeError)
    for e in caught.value, error.RemoteError(*caught.value.elist[0]):
        assert e.errno is None and "No such file" in str(e)
        copied = pickle.loads(pickle.dumps(e))
        assert type(copied) is type(e) and str(copied) == str(e) and copied.args == e.args

    def late():
        raise TimeoutError("over there")

    with pytest.raises(phalanx.RemoteError) as caught:
        balanced.apply_sync(late)
    assert not isinstance(caught.value, TimeoutError)  # the result is not late


def test_an_error_is_of_a_class_that_is_here_too(view, balanced, monkeypatch):
    if not view.client._form(view.targets).METADATA:
        pytest.skip("ipyparallel's engines say a name")

    class Refused(Exception):
        pass

    monkeypatch.setattr(sys.modules["__main__"], "Refused", Refused, raising=False)
    view.execute("import json\nclass Refused(LookupError): pass\nclass Gone(Refused): pass\n"
                 "def refuse(*_): raise Gone('not today')", block=True)
    refuse = phalanx.Reference("refuse")
    calls = [
        lambda: view.execute("refuse()").get(),
        lambda: view.apply_sync(refuse),
        lambda: balanced.apply_async(refuse).result(60),
        lambda: balanced.map_sync(refuse, range(9)),
        lambda: list(balanced.imap(refuse, range(9))),
    ]
    for call in calls:
        with pytest.raises(Refused, match="not today") as caught:
            call()
        assert isinstance(caught.value, phalanx.RemoteError)
        assert isinstance(pickle.loads(pickle.dumps(caught.value)), Refused)
    with pytest.raises(json.JSONDecodeError):
        view.execute("json.loads('{')", block=True)
    monkeypatch.delattr(sys.modules["__main__"], "Refused")
    with pytest.raises(LookupError):  # the next of its classes
        view.apply_sync(refuse)

    def late(_):
        raise TimeoutError("over there")

    for call in (lambda: balanced.apply_sync(late, 0), lambda: balanced.map_sync(late, range(9))):
        with pytest.raises(phalanx.RemoteError) as caught:
            call()
        assert not isinstance(caught.value, OSError)


with contextlib.suppress(ImportError):  # it looks at all exceptions when imported, and some of these are odd
    import distributed  # noqa: F401


class Odd:
    @dataclasses.dataclass
    class Unhashable(Exception):
        code: int

    @dataclasses.dataclass(frozen=True)
    class Frozen(Exception):
        code: int

    class New(Exception):
        def __new__(cls, code):
            return super().__new__(cls, code)

    class Asks(Exception):
        def __getattr__(self, name):
            return self.code[name]

    class Childless(Exception):
        def __init_subclass__(cls):
            raise RuntimeError("no")

    class Late(TimeoutError):
        pass

    class Group(ExceptionGroup if sys.version_info >= (3, 11) else TimeoutError):
        pass

    class CancelledError(Exception):
        pass

    class Message(Exception):
        msg = elist = args = property(lambda self: self.code)

        def __len__(self):
            return 0

    class Meta(Exception, metaclass=type("Kind", (type,), {"__hash__": None})):
        pass

    class Named(OSError):
        ename = property(lambda self: "mine")

        def __init__(self, code):
            self.code = code

        def __str__(self):
            return self.code


@pytest.mark.parametrize("name, is_one", [
    ("Odd.Unhashable", True), ("Odd.Frozen", False), ("Odd.New", False), ("Odd.Asks", False),
    ("Odd.Childless", False), ("Odd.Late", False), ("Odd.Named", True), ("Odd", False),
    ("Odd.Group", False), ("Odd.CancelledError", False), ("Odd.Message", True), ("Odd.Meta", False),
    ("Odd.None", False), ("", False), ("Odd.<locals>.x", False), ("phalanx.EngineError", False),
])
def test_an_error_of_an_odd_class(monkeypatch, name, is_one):
    here = types.SimpleNamespace(Odd=Odd, phalanx=phalanx)
    monkeypatch.setitem(sys.modules, "here", here)
    kinds = [5, None, ":", "nowhere:X", f"here:{name}", "builtins:ArithmeticError"]
    info = {"engine_id": 1}
    e = error.from_reply({"ename": "X", "evalue": "text", "engine_info": info, "px_kinds": kinds})
    for one in e, pickle.loads(pickle.dumps(e)):
        assert (str(one), one.ename, hash(one) == hash(one)) == ("[1:apply] X: text", "X", True)
        assert isinstance(one, ArithmeticError) is not is_one
        assert one and "RemoteError" in "".join(traceback.format_exception(one))
    with pytest.raises(error.CompositeError, match="X: text") as caught:
        error.collect_exceptions([e])
    assert isinstance(caught.value, ArithmeticError) is not is_one and len(caught.value.elist) == 1
    if is_one:
        assert isinstance(e, operator.attrgetter(name)(here))
    for odd in 5, "builtins:ValueError", {}, None:
        error.from_reply({"ename": "X", "engine_info": info, "px_kinds": odd})


def test_a_remote_attribute_error_is_no_missing_property(view):
    result = view.apply_async(lambda: object().nope)
    result.wait(30)
    with pytest.raises(error.CompositeError, match="no attribute 'nope'"):
        result.r


@pytest.mark.parametrize("kind", sorted(vars(error)["_kinds"].values(), key=repr))
def test_an_error_of_each_kind(kind):
    with pytest.raises(kind) as caught:
        raise error.from_reply({"ename": kind.__name__, "evalue": "text", "engine_info": {"engine_id": 1}})
    assert str(caught.value) == f"[1:apply] {kind.__name__}: text"
    assert "RemoteError" in "".join(traceback.format_exception(caught.value))
    assert type(pickle.loads(pickle.dumps(caught.value))) is type(caught.value)


def test_errors_are_pickled_with_their_cause():
    """As distributed has it, which installs this for the exceptions that there are."""
    pytest.importorskip("tblib")
    run_alone("import pickle, phalanx, tblib.pickling_support\n"
              "e = phalanx.RemoteError('ValueError', 'text', 'the remote traceback')\n"
              "tblib.pickling_support.install()\n"
              "copied = pickle.loads(pickle.dumps(e))\n"
              "assert type(copied) is type(e) and 'the remote traceback' in str(copied.__cause__)")


def test_an_error_without_a_remote_traceback_keeps_its_context():
    with pytest.raises(phalanx.EngineError) as caught:
        try:
            {}["key"]
        except KeyError:
            raise error.from_reply({"ename": "EngineError", "evalue": "it died"})
    assert "KeyError: 'key'" in "".join(traceback.format_exception(caught.value))


# ---- executors -------------------------------------------------------------------------------


def test_executor(rc, balanced, gate):
    executor = balanced.executor
    assert isinstance(executor, concurrent.futures.Executor) and executor.view is balanced
    with executor:
        future = executor.submit(pow, 2, 5)
        assert isinstance(future, concurrent.futures.Future)
        assert list(executor.map(lambda a, b: a + b, range(5), range(5), timeout=60)) == [0, 2, 4, 6, 8]
    assert future.result() == 32
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(abs, 1)
    assert balanced.executor is not executor
    late = rc.executor([rc.ids[0]])
    with pytest.raises(TimeoutError):
        list(late.map(gate.task, range(2), timeout=0.05))
    late.shutdown(wait=False, cancel_futures=True)
    gate.open()


def test_a_map_of_an_executor_that_is_given_up_takes_back_the_rest(rc, gate):
    executor = rc.executor(rc.ids[:1])
    for first, begun in [
        (lambda n, wait: n and wait(n), True),
        (lambda n, wait: wait(1 // n), True),
        (lambda n, wait: wait(n), False),
    ]:
        values = executor.map(first, range(20), [gate.task] * 20, timeout=60)
        result, = executor._submitted
        try:
            assert not begun or next(values) == 0
        except TimeoutError:
            pytest.fail(f"the first has not come; {rc.queue_status(verbose=True)}")
        except phalanx.RemoteError:
            assert begun
        if not begun:
            values.close()
        del values
        rc.abort("unknown", targets=rc.ids[:1], block=True)  # comes behind it
        gate.open()
        assert not concurrent.futures.wait([result], 60).not_done
        ended = result.get(return_exceptions=True)
        assert sum(isinstance(value, phalanx.TaskAborted) for value in ended) > 15
        os.unlink(gate.path)


def test_a_map_of_an_executor_that_nobody_reads_runs(rc, gate):
    with rc.executor() as executor:
        executor.map(lambda n, wait: wait(n), range(20), [gate.task] * 20)
        result, = executor._submitted
        gate.open()
    assert result.result(60) == [*range(20)]


def test_an_executor_aborts_all_its_futures_at_once(rc, gate, monkeypatch):
    told, abort = [], rc.abort
    monkeypatch.setattr(rc, "abort", lambda *args, **kw: told.append(kw) or abort(*args, **kw))
    executor = rc[rc.ids[0]].executor
    _, *others = [executor.submit(gate.task, i) for i in range(8)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert len(told) == 1
    abort("unknown", targets=rc.ids[0], block=True)  # comes behind it
    gate.open()
    assert not concurrent.futures.wait(others, 60).not_done
    assert all(future.cancelled() for future in others)


def run_alone(code):
    paths = filter(None, [str(PYTHONPATH), os.environ.get("PYTHONPATH")])
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60,
                   env=dict(os.environ, PYTHONPATH=os.pathsep.join(paths)))


def test_joblib_may_be_imported_first_or_last():
    pytest.importorskip("joblib")
    for first, last in (("joblib", "phalanx"), ("phalanx", "joblib")):
        code = (f"import {first}, importlib.util as u; u.find_spec('joblib'); import {last}, joblib\n"
                "assert 'phalanx' in joblib.parallel.BACKENDS")
        run_alone(code)


def test_another_joblib_can_be_imported(tmp_path):
    (tmp_path / "joblib.py").write_text("mine = True")
    run_alone(f"import sys, phalanx; sys.path.insert(0, {str(tmp_path)!r}); import joblib; joblib.mine")


known_here, an_array = 5, numpy.arange(100_000)


def test_functions_of_joblib_take_along_what_they_use(rc):
    joblib = pytest.importorskip("joblib")
    if not rc._form(None).METADATA:
        pytest.skip("only in our own form")
    rc.load_balanced_view().register_joblib_backend("phalanx")

    def recursive(n):
        return known_here if n == 0 else 1 + recursive(n - 1)

    def of_arrays(a):
        return int(a.sum() - an_array.sum()) + known_here

    with joblib.parallel_backend("phalanx", view=rc.load_balanced_view()):
        assert joblib.Parallel()(joblib.delayed(dataclasses.asdict)(Row(n)) for n in range(2)) \
            == [{"a": 0, "b": []}, {"a": 1, "b": []}]
        assert joblib.Parallel()(joblib.delayed(recursive)(n) for n in range(4)) == [5, 6, 7, 8]
        assert joblib.Parallel()(joblib.delayed(of_arrays)(an_array) for _ in range(2)) == [5, 5]
        with pytest.raises(TypeError, match="a lock, cannot be sent|cannot pickle"):
            joblib.Parallel()(joblib.delayed(id)(threading.Lock()) for _ in range(2))


def test_joblib(rc):
    joblib = pytest.importorskip("joblib")
    phalanx.register_joblib_backend()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with joblib.parallel_backend("phalanx"):
            found = joblib.Parallel(n_jobs=4)(joblib.delayed(pow)(i, 2) for i in range(20))
    assert found == [i ** 2 for i in range(20)]
    rc.load_balanced_view(rc.ids[0]).register_joblib_backend("one engine")
    with joblib.parallel_backend("one engine"):
        pids = joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(4))
        for kind in phalanx.RemoteError, ValueError:
            with pytest.raises(kind):
                joblib.Parallel()(joblib.delayed(int)(c) for c in "1x")
    assert set(pids) == {rc[0].apply_sync(os.getpid)}
    for view, engines in (rc[:2], rc.ids[:2]), (rc[0], [0]):
        with joblib.parallel_backend("phalanx", view=view):
            pids = joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(6))
        assert set(pids) <= set(rc[engines].apply_sync(os.getpid))
    from phalanx.joblib import IPythonParallelBackend  # as programs know it

    joblib.register_parallel_backend(
        "theirs", lambda **kwargs: IPythonParallelBackend(view=rc.load_balanced_view(), **kwargs))
    with joblib.parallel_backend("theirs"):
        assert joblib.Parallel()(joblib.delayed(abs)(-i) for i in range(4)) == [0, 1, 2, 3]


def test_tasks_stay_behind_large_names_too(rc, balanced):
    view = rc[:]
    view.execute("import numpy", block=True)
    for _ in range(5):
        view.push({"large": numpy.zeros(2 << 20)}, block=False)
        assert balanced.apply_sync(lambda: large.nbytes) == 16 << 20  # noqa: F821
        view.execute("del large", block=True)
        view.scatter("large", numpy.zeros(8 << 20), block=False)
        assert balanced.apply_sync(lambda: large.nbytes) == 16 << 20  # noqa: F821
        view.execute("del large", block=True)


def test_joblib_shows_what_is_printed_and_heeds_a_time_limit(rc, gate, capsys):
    joblib = pytest.importorskip("joblib")
    with joblib.parallel_backend("phalanx", view=rc.load_balanced_view()):
        joblib.Parallel(n_jobs=2)(joblib.delayed(print)(word) for word in ("one", "two"))
        assert sorted(capsys.readouterr().out.split()) == ["one", "two"]
        if not rc._form(None).METADATA:
            return  # the task that waits has to be sent by value
        with pytest.raises(TimeoutError):
            joblib.Parallel(n_jobs=2, timeout=0.5)(joblib.delayed(gate.task)() for _ in range(2))


def test_tasks_publish_data(rc):
    def task():
        from phalanx.datapub import publish_data
        publish_data({"a": 1})
        publish_data({"a": 2, "b": 3})

    result = rc[:].apply_async(task)
    assert result.wait_for_output(60) and result.data == [{"a": 2, "b": 3}] * 4
    with pytest.raises(RuntimeError, match="call it in what runs on an engine"):
        phalanx.datapub.publish_data({})


def test_dask(rc):
    pytest.importorskip("distributed")
    client = rc.become_dask(dashboard_address=None)
    try:
        assert client.submit(sum, client.map(lambda x: x * x, range(10))).result(60) == 285
        for name in "distributed_worker", "dask_worker":
            assert all("Worker" in text for text in rc[:].apply_sync(repr, phalanx.Reference(name)))
        assert rc[:].apply_sync(lambda: 1) == [1] * 4  # the views go on
    finally:
        client.close()
        rc.stop_dask()
    for name in "distributed_worker", "dask_worker":
        with raises_remote("NameError"):
            rc[:].apply_sync(lambda x: x, phalanx.Reference(name))


# ---- what is remembered ----------------------------------------------------------------------


def test_arguments_may_close_the_client(where):
    lib = phalanx._phalanx

    class Closing:
        def __init__(self, raw):
            self.raw = raw

        def __index__(self):
            self.raw.close()
            return 0

    for ask in (
        lambda raw, engine: raw.uuid(engine),
        lambda raw, engine: raw.feature("pickle5", [engine]),
        lambda raw, engine: raw.submit(lib.EXECUTE, code="1", targets=[engine]),
    ):
        with phalanx.Client(where[0]) as client:
            with pytest.raises(lib.ClosedError):
                ask(client._raw, Closing(client._raw))


def test_what_was_fetched_is_forgotten(rc, balanced):
    """Neither results nor their arguments stay; a dropped result is counted until it ends."""
    import weakref

    result = balanced.apply_async(lambda a: a, numpy.zeros(100_000))
    seen = weakref.ref(result)
    result.get(60)
    del result
    gc.collect()
    assert seen() is None and not rc.results and not rc.metadata
    for _ in range(200):
        balanced.apply_async(lambda: 1)
    assert rc.wait(timeout=60) and rc.outstanding == set()
    assert len(rc._orphans) == 0 and len(rc.history) >= 200
    from phalanx.client import HISTORY_KEPT

    for n in range(0, 5 * HISTORY_KEPT, 100):
        rc._enter(balanced, [str(i) for i in range(n, n + 100)])
    for history in rc.history, balanced.history:
        assert HISTORY_KEPT <= len(history) <= 2 * HISTORY_KEPT
        assert history[-1] == str(5 * HISTORY_KEPT - 1)


def test_an_exception_of_a_map_says_of_which_elements(balanced, view):
    def items(e):
        return e.engine_info["items"]

    def fails(x):
        return 1 / (x % 50 - 7)

    for more, wanted in ({}, 7), ({"chunksize": 4}, 4):
        kept = balanced.map_sync(fails, range(20), return_exceptions=True, **more)
        error, = (value for value in kept if isinstance(value, phalanx.RemoteError))
        assert items(error) == range(wanted, wanted + more.get("chunksize", 1))
    with pytest.raises(phalanx.CompositeError) as caught:
        balanced.map_sync(fails, range(1000))
    assert [list(info["items"]) for *_, info in caught.value.elist] == [[n] for n in range(7, 1000, 50)]
    assert re.match(r"\[.*:apply, items 7,57,107,(\d+,)+\.\.\.\]: \(20 times the same\)",
                    caught.value.render_traceback()[0])
    with pytest.raises(phalanx.RemoteError) as caught:
        list(balanced.imap(fails, range(1000)))
    assert items(caught.value) == range(7, 8)
    with pytest.raises(phalanx.CompositeError, match=r"\[\d+:apply, items 0-9\]: ZeroDiv"):
        view.map_sync(fails, range(40))
    with pytest.raises(phalanx.CompositeError, match=r"\[\d+:apply\]: NameError"):
        view.gather("nowhere").get()


@pytest.mark.parametrize("form", [
    "File {}:{}, in {}", "File \x1b[0;32m{}:{}\x1b[0m, in \x1b[0;36m{}\x1b[0m",
    "\x1b[36mFile \x1b[39m\x1b[32m{}:{}\x1b[39m, in \x1b[36m{}\x1b[39m",
], ids=["plain", "IPython 8", "IPython 9"])
def test_frames_of_a_package_in_the_home_directory(monkeypatch, form):
    """IPython writes ~ for it."""
    monkeypatch.setenv("HOME", str(PYTHONPATH))
    theirs = [form.format("~/elsewhere.py", 1, "f(x)"), "----> 1 1 / x"]
    told = [form.format("~/phalanx/feed.py", 83, "_run(f)"), "---> 83 value = f(x)", "", *theirs]
    remote = phalanx.RemoteError("ZeroDivisionError", "division by zero", "\n".join(told), {})
    assert [line for line in remote.render_traceback() if line] == theirs


def test_functions_that_decorators_and_classes_make(view, monkeypatch):
    """Their globals are not those of the module that they say they are of."""
    @contextlib.contextmanager
    def five():
        yield 5

    @dataclasses.dataclass
    class Record:
        a: int

    pair = collections.namedtuple("pair", "a b")
    namespace = {"k": 3, "__name__": "no_module"}
    monkeypatch.setitem(sys.modules, "no_module", None)
    exec("def of_its_own(x): return x + k", namespace)

    def enter():
        with five() as value:
            return value

    assert view.apply_sync(enter) == [5] * 4
    if view.client._form(view.targets).METADATA:  # our own, with cloudpickle
        pytest.importorskip("cloudpickle")
        said = view.apply_sync(lambda: repr(Record(1))) + view.apply_sync(repr, Record(1))
        said += map(repr, view.apply_sync(lambda: Record(1)))
        assert [text.rpartition(".")[2] for text in said] == ["Record(a=1)"] * 12
        assert view.apply_sync(lambda p: p._replace(b=7), pair(1, 2)) == [(1, 7)] * 4
        assert view.apply_sync(namespace["of_its_own"], 4) == [7] * 4


class Point(typing.NamedTuple):
    x: int
    y: int = 2

    def sum(self):
        return self.x + self.y


T = typing.TypeVar("T")
T.__module__ = "__main__"  # as later Pythons do not see that this module says it is
if sys.version_info >= (3, 11):
    class Pair(typing.NamedTuple, typing.Generic[T]):
        one: T
        other: T
else:
    Pair = Point


@dataclasses.dataclass(frozen=True)
class Row:
    a: int
    b: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    a: int


class Computed:
    @functools.cached_property
    def value(self):
        return [42]


@functools.lru_cache(maxsize=5)
def cached(x):
    return [x]


@functools.singledispatch
def kind_of(x):
    return "an object"


@kind_of.register
def _(x: int):
    return "an int"


MEET = [
    (lambda p: (p.sum(), p._replace(x=5).y, type(p)(7), type(p).__name__), Point(3),
     (5, 2, (7, 2), "Point")),
    (lambda p: (p[1], type(p)(3, 4)._asdict(), type(p).__doc__), Pair(1, 2),
     (2, Pair(3, 4)._asdict(), Pair.__doc__)),
    (lambda r: (__import__("dataclasses").asdict(r), type(r)(2).b), Row(1, [2]), ({"a": 1, "b": [2]}, [])),
    (lambda s: (s.a, [f.name for f in __import__("dataclasses").fields(s)]), Slots(1), (1, ["a"])),
    (lambda c: c.value is c.value and c.value, Computed(), [42]),
    (lambda f: (f(1) is f(1), f.cache_info().maxsize, f.__name__), cached, (True, 5, "cached")),
    (lambda f: (f(1), f("a"), f.__name__), kind_of, ("an int", "an object", "kind_of")),
]


@pytest.mark.parametrize("use, value, expected", MEET, ids=[str(i) for i in range(len(MEET))])
def test_what_notebooks_are_made_of(view, use, value, expected):
    """Objects of classes that neither pickle nor cloudpickle makes again as they were."""
    if not view.client._form(view.targets).METADATA:
        pytest.skip("ipyparallel's form")
    pytest.importorskip("cloudpickle")
    assert view.apply_sync(use, value) == [expected] * 4
    view["value_"] = value
    assert [use(back) for back in view["value_"]] == [expected] * 4
    assert {type(back) for back in view["value_"]} == {type(value)}


def test_what_ends_together_is_told_in_order(rc):
    view, ended = rc[0], []
    pid = view.apply_sync(os.getpid)
    os.kill(pid, signal.SIGSTOP)
    try:
        results = [view.apply_async(int, i) for i in range(60)]
        for result in results:
            result.add_done_callback(ended.append)
        rc.queue_status()  # they are on their way
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: len(ended) == 60, what="the results")
    assert ended == results


def test_large_bytes_are_bytes(view):
    data = os.urandom(3 << 20)
    back = view.apply_sync(lambda one, other: one + other if type(one) is type(other) is bytes else None,
                           data, other=data[:-1])
    assert {type(one) for one in back} == {bytes} and back == [data + data[:-1]] * 4
    view["data"] = data
    assert view["data"] == [data] * 4
    form = phalanx.pickle5
    stream, *buffers = form.pack_result(data)
    assert len(stream) < 100 and [len(buffer) for buffer in buffers] == [len(data)]
    assert form.unpack_result([stream, *buffers]) == data


def vast(size=(64 << 30) + 1):
    """An array of more bytes than go into a message; none of them is there."""
    import mmap

    import numpy
    return numpy.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | 0x4000), "u1")  # no reserve


def test_what_is_too_large_for_a_message_is_refused(view):
    if not view.client._form(view.targets).METADATA:
        pytest.skip("ipyparallel's form")
    pytest.importorskip("numpy")
    with pytest.raises(ValueError, match="a buffer of 68719476737 bytes; at most 68719476736 can be sent"):
        view.apply_sync(len, vast())
    with pytest.raises(phalanx.CompositeError, match="the apply_reply is too large: .* the largest of "
                       r"68719476737 bytes \(68719476736\)"):
        view.apply_sync(vast)
    balanced = view.client.load_balanced_view()
    refused = balanced.apply_async(vast)
    with balanced.temp_flags(after=refused), raises_remote("ImpossibleDependency"):
        balanced.apply_sync(abs, 1)  # the scheduler knows that it failed
    assert view.apply_sync(len, "abc") == [3] * 4


def test_output_too_large_for_a_message_is_named(view):
    pytest.importorskip("ipykernel.comm")
    view["vast"] = vast
    result = view.execute("from ipykernel.comm import Comm\nComm('t').send({}, buffers=[vast()])")
    result.get(30)
    assert all("[phalanx: the comm_msg is too large: " in text for text in result.stderr)


def test_objects_of_very_many_buffers(view):
    """The first of them alone leave the pickle."""
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.full(200, i) for i in range(12_000)]
    assert view.apply_sync(lambda arrays: [int(a[-1]) for a in arrays], arrays) == [[*range(12_000)]] * 4
    back = view.client[0].apply_sync(lambda arrays: arrays, arrays)
    assert [int(array[-1]) for array in back] == [*range(12_000)]


def test_an_exception_with_a_very_long_text(view):
    with pytest.raises(phalanx.CompositeError) as caught:
        view.apply_sync(exec, "raise ValueError('a' * 5_000_000 + 'b')")
    one = caught.value.elist[0]
    text = one[1]
    assert 1 << 20 < len(text) < 1_100_000 and text.endswith("b") and "3951425 characters left out" in text


def test_classes_without_cloudpickle(view, monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    monkeypatch.setattr(phalanx.pickle5, "_picklers", {})
    if not view.client._form(view.targets).METADATA:
        pytest.skip("ipyparallel's form")
    for value in Row(1), Computed, [Slots(2)]:
        with pytest.raises(pickle.PicklingError, match="Can't pickle the class .* of __main__: install"
                           " cloudpickle for .*: argument 1, a .*, cannot be sent to an engine"):
            view.apply_sync(len, value)


def test_tasks_find_what_was_pushed_before(balanced, rc, monkeypatch):
    monkeypatch.setattr(phalanx.order, "SECONDS", 30)  # on any machine
    view = rc[:]
    for n in range(40):
        if n % 2:
            view[f"pushed_{n}"] = n
        else:
            view.execute(f"pushed_{n} = {n}")
        assert balanced.map_sync(eval, [f"pushed_{n}"] * 8) == [n] * 8


def test_tasks_do_not_wait_for_engines_that_are_busy(balanced, rc, gate):
    running = rc[:].apply_async(gate.task)
    ahead = rc[:].execute("behind_it = 1", block=False)
    began = balanced.apply_async(int, "7")
    assert not running.ready() and not ahead.ready()
    gate.open()
    assert began.get(60) == 7
    running.get(60)


def test_an_interrupt_ends_a_call_that_waits(rc, balanced, view, gate, tmp_path, monkeypatch):
    """What runs goes on, what waits is taken back."""
    path, wait, get = str(tmp_path), gate.task, phalanx.AsyncResult.get

    def get_and_be_interrupted(self, *args):
        wait_for(lambda: any(tmp_path.glob("began_*")), 60, "tasks to begin")
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        return get(self, *args)

    def task(n):
        open(f"{path}/began_{n}", "w").close()
        wait()

    def interrupts(call):
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt, match=r"^0 of \d+ tasks had ended") as caught:
            call()
        assert caught.value.__suppress_context__

    monkeypatch.setattr(phalanx.AsyncResult, "get", get_and_be_interrupted)
    interrupts(lambda: balanced.map_sync(task, range(200), chunksize=1))
    interrupts(lambda: view.apply_sync(wait))
    interrupts(lambda: view.execute("1", block=True))
    interrupts(lambda: view.scatter("part", range(4)))
    gate.open()
    assert rc.wait(timeout=60)
    assert 0 < len(list(tmp_path.glob("began_*"))) < 100


@pytest.mark.parametrize("call", [
    "balanced.map_sync(wait, range(8), chunksize=1)", "view.apply_sync(wait)",
    "balanced.map_async(wait, range(300)).get()", "view.apply_async(wait).wait()",
    "rc[0].apply_async(wait).get()", "list(balanced.map_async(wait, range(8), chunksize=1))",
    "list(balanced.imap(wait, range(8)))", "rc[0].apply_async(wait).wait_interactive(0.1)",
])
def test_an_interrupt_shows_the_callers_lines_alone(rc, balanced, view, gate, call):
    from IPython.core.interactiveshell import InteractiveShell

    gate_task = gate.task
    scope = {"rc": rc, "balanced": balanced, "view": view, "wait": lambda *args: gate_task()}
    shell = InteractiveShell.instance()
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            exec(compile(f"def caller():\n    {call}\ncaller()", "<a cell>", "exec"), scope)
        assert type(caught.value).__name__ == "KeyboardInterrupt"
        shown = "\n".join(caught.value._render_traceback_())
        assert "caller()" in shown and "KeyboardInterrupt" in shown, shown
        assert "phalanx" not in shown and "/lib/" not in shown, shown
    finally:
        shell.restore_sys_module_state()
        InteractiveShell.clear_instance()
        gate.open()
        assert rc.wait(timeout=60)


def test_tasks_are_taken_back_though_one_of_their_engines_is_gone(rc, gate):
    gone = rc.ids[-1] + 1
    runs = rc[0].apply_async(gate.task)
    for take_back in (phalanx.AsyncResult.abort, phalanx.AsyncResult.cancel):
        waits = rc[0].apply_async(int)
        waits._targets.append(gone)
        take_back(waits)
        with pytest.raises(phalanx.TaskAborted):
            waits.get(60)
    gate.open()
    runs.get(60)


def test_tasks_wait_only_for_what_was_sent_just_before_them(monkeypatch):
    class Request:
        def __init__(self):
            self.waits = []

        @property
        def running(self):  # while another thread takes all
            ahead.settle()
            return False

        def wait(self, until, left):
            self.waits.append(left)

    ahead, first, second = order.Ahead(), Request(), Request()
    monkeypatch.setattr(order, "SECONDS", 0)
    ahead.add(first)
    monkeypatch.setattr(order, "SECONDS", 3600)
    ahead.add(second)
    assert first.waits == [0]
    ahead.settle()
    ahead.settle()
    assert first.waits == [0] and len(second.waits) == 1 and second.waits[0] > 3000


def speak_late(path):
    import os, threading

    def wait():
        while not os.path.exists(path):
            threading.Event().wait(0.01)
        print("late")

    print("first")
    threading.Thread(target=wait).start()


def test_late_output_is_filed_behind_what_nobody_has_read(view, balanced, gate):
    results = [view.apply_async(speak_late, gate.path), balanced.map_async(speak_late, [gate.path])]
    for result in results:
        assert result._raw.wait(phalanx._phalanx.FINISHED, 60)
    gate.open()
    for result, count in zip(results, (4, 1)):
        tasks = result._tasks
        wait_for(lambda: all("late" in str(task.stdout) for task in tasks), 60, "what comes late")
        assert result.stdout == ["first\nlate\n"] * count


def test_late_output_is_in_replies_and_is_streamed(rc, gate, monkeypatch):
    rc[0]["speak_late"] = speak_late
    result = rc[0].execute(f"speak_late({gate.path!r})", block=False)
    reply = result.get(60)
    assert result.wait_for_output(60) and reply.stdout == "first\n"
    with printed() as said, result.stream_output():
        gate.open()
        wait_for(lambda: "late" in reply.stdout, 60, "what comes late")
    assert said[0] == f"[stdout:{rc.ids[0]}] \nfirst\nlate\n"


async def doubled(n):
    import asyncio

    await asyncio.get_running_loop().run_in_executor(None, int)
    return 2 * n if n != 5 else 1 / 0


@pytest.mark.parametrize("client", ["phalanx", "ipyparallel"])
def test_functions_that_await(where, client):
    """They run in the engine's loop, alone or as a map's."""
    rc = pytest.importorskip(client).Client(where[0])
    view, balanced = rc[:], rc.load_balanced_view()
    assert view.apply_sync(doubled, 4) == [8] * 4 and view.map_sync(doubled, range(5)) == [0, 2, 4, 6, 8]
    assert balanced.map_sync(doubled, [2] * 300) == [4] * 300
    assert balanced.map_sync(doubled, [2] * 30, chunksize=7) == [4] * 30
    for call in (lambda: rc[0].apply_sync(doubled, 5), lambda: view.map_sync(doubled, range(3, 9)),
                 lambda: balanced.map_sync(doubled, range(20))):
        with pytest.raises(Exception) as caught:
            call()
        e = getattr(caught.value, "elist", [[caught.value.args[0]]])[0]
        assert e[0] == "ZeroDivisionError"
    said = rc[:].apply_async(lambda: None)
    assert said.wait(60) and said.stderr == [""] * 4  # of what was never awaited
    rc.close()


def test_an_interrupt_reaches_what_a_function_awaits(rc, gate):
    async def wait(path):
        import asyncio

        try:
            open(path, "w").close()
            await asyncio.Event().wait()
        finally:
            print("cleaned up")

    result = rc[0].apply_async(wait, gate.path)
    wait_for(lambda: os.path.exists(gate.path), 60, "the start")
    rc.send_signal(signal.SIGINT, rc.ids[0], block=True)
    with pytest.raises(phalanx.RemoteError) as caught:
        result.get(60)
    assert caught.value.ename == "KeyboardInterrupt"
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(caught.value.render_traceback()))
    assert "await asyncio.Event().wait()" in trace and "run_until_complete" not in trace
    assert result.wait_for_output(60) and result.stdout == "cleaned up\n"
    assert rc[0].apply_sync(doubled, 1) == 2


def test_a_result_that_cannot_be_sent(view):
    with pytest.raises(phalanx.CompositeError) as caught:
        view.apply_sync(lambda: (n for n in ()))
    assert "the result, a generator, cannot be sent back" in str(caught.value)
    assert "File " not in "\n".join(caught.value.render_traceback())
