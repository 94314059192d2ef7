# SPDX-License-Identifier: BSD-3-Clause
"""A client that is used while it is being used: from other threads, by signals' handlers, and by what
the garbage collector runs; and Ctrl-C at the worst moment."""
import concurrent.futures
import importlib
import threading

import pytest

from conftest import wait_for
from four import balanced, phalanx, rc, view, where  # noqa: F401: fixtures
from test_views import gate  # noqa: F401: a fixture

ask = importlib.import_module("phalanx.ask")

__name__ = "__main__"  # functions travel as code


def say(x):
    from IPython.display import display
    print("said", x)
    display(x)
    return x


def finished(balanced):
    """Results of all kinds that print and display, none of whose events has been filed."""
    results = [(balanced.apply_async(say, 7), 7), (balanced.map_async(say, range(200)), [*range(200)])]
    for result, _ in results:
        assert result._raw.wait(phalanx._phalanx.FINISHED, 60)
    return results


def said(result):
    """The numbers that its tasks printed, and those that they displayed."""
    metadata = result.metadata if isinstance(result.metadata, list) else [result.metadata]
    printed = [int(word) for md in metadata for word in md["stdout"].split() if word != "said"]
    return sorted(printed), sorted(int(o["data"]["text/plain"]) for md in metadata
                                   for o in md["outputs"])


def is_output(event):
    return getattr(event, "type", None) in (phalanx._phalanx.STREAM, phalanx._phalanx.OUTPUT)


def test_an_interrupt_doubles_no_output(balanced):
    for result, values in finished(balanced):
        file, due = result._file, [True, True, True]

        def interrupted(event):
            file(event)
            if is_output(event) and due:
                due.pop()
                raise KeyboardInterrupt

        result._file = interrupted
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                result.ready()
        assert result.get(60) == values
        expected = values if isinstance(values, list) else [values]
        assert said(result) == (expected, expected)


def test_a_handler_may_read_the_result_that_is_being_read(balanced):
    for result, values in finished(balanced):
        file, depth = result._file, []

        def handled(event):
            depth.append(event)
            if len(depth) == 1:
                result._pump(1)  # as a signal's handler may
            file(event)
            if len(depth) == 1:
                result._pump(1)
            depth.pop()

        result._file = handled
        assert result.get(60) == values
        expected = values if isinstance(values, list) else [values]
        assert said(result) == (expected, expected)


def test_results_that_are_dropped_in_two_threads_stay_awaited(rc):
    class Raw:
        running = True

        def discard(self):
            pass

    class Looked(Raw):
        @property
        def running(self):  # another thread tidies, and drops one more
            if not dropped:
                dropped.append(Raw())
                rc._running_orphans()
                rc._let_go(dropped[0])
            return True

    dropped = []
    rc._let_go(Looked())
    rc._running_orphans()
    assert dropped[0] in rc._running_orphans()
    rc._orphans.clear()


def test_a_handler_may_ask_to_be_called_back(balanced, gate, monkeypatch):  # noqa: F811
    results = [balanced.apply_async(gate.task) for _ in range(3)]
    called, waiting = [], [*results[1:]]

    def handler():
        if waiting:
            waiting.pop().add_done_callback(called.append)

    class Thread(threading.Thread):
        def start(self):
            handler()
            super().start()
            handler()

    condition = threading.Condition

    def handled_condition(*args):
        handler()
        return condition(*args)

    asking = threading.Thread(target=lambda: results[0].add_done_callback(called.append), daemon=True)
    with monkeypatch.context() as patches:
        patches.setattr(threading, "Thread", Thread)
        patches.setattr(threading, "Condition", handled_condition)
        asking.start()
        asking.join(20)
    assert not asking.is_alive() and not waiting
    gate.open()
    wait_for(lambda: len(called) == 3, what="the callbacks")
    assert {id(result) for result in called} == {id(result) for result in results}


def test_what_is_looked_at_after_the_clients_end_has_ended(where, gate):  # noqa: F811
    with phalanx.Client(where[0]) as client:
        client.wait_for_engines(4, timeout=60)
        view = client.load_balanced_view()
        early, late = [view.apply_async(gate.task) for _ in range(2)]
        concurrent.futures.wait([early], 0)
        watcher = client._watcher._thread
    watcher.join(20)
    assert not watcher.is_alive()
    done = concurrent.futures.wait([early, late], 20)
    assert not done.not_done
    assert isinstance(late.exception(), phalanx.error.EngineError)


def test_stacks_that_come_while_nothing_was_there_yet(rc, monkeypatch):
    able = [i for i in rc.ids if rc._raw.feature("stacks", [i])][:1]
    if not able:
        pytest.skip("engines that cannot tell")

    class Late:
        """A result whose answer comes right after it was asked for one in vain."""

        def __init__(self, raw):
            self._raw, self._asked = raw, False

        def __getattr__(self, name):
            return getattr(self._raw, name)

        @property
        def finished(self):
            return self._raw.finished if self._asked else 0

        def next(self):
            if self._asked:
                return self._raw.next()
            self._asked = True
            assert self._raw.wait(phalanx._phalanx.FINISHED, 20)

    class Client:
        def __getattr__(self, name):
            return getattr(raw, name)

        def submit(self, *args, **kwargs):
            return Late(raw.submit(*args, **kwargs))

    raw = rc._raw
    monkeypatch.setattr(rc, "_raw", Client())
    assert ask.stacks(rc, able) == "engine %d: idle\n" % able[0]
