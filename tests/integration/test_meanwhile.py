# SPDX-License-Identifier: BSD-3-Clause
"""A client that is used while it is being used: from other threads, by signals' handlers, and by what
the garbage collector runs."""
import concurrent.futures
import threading

from conftest import wait_for
from four import balanced, phalanx, rc, view, where  # noqa: F401: fixtures
from test_views import gate  # noqa: F401: a fixture


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
