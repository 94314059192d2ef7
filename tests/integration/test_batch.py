# SPDX-License-Identifier: BSD-3-Clause
"""Maps whose items share tasks: how many go together, and that nobody can tell from the results."""
import contextlib
import gc
import io
import itertools
import os
import threading
import time
from types import SimpleNamespace

import pytest

from conftest import wait_for
from test_client import rc, where  # noqa: F401: fixtures, our cluster and ipyparallel's

phalanx = pytest.importorskip("phalanx")
from phalanx import batch, feed  # noqa: E402
from phalanx.feed import Sizes  # noqa: E402

error = phalanx.error
__name__ = "__main__"  # functions travel as code


# ---- how many: pure --------------------------------------------------------------------------


def test_the_first_items_go_alone():
    assert Sizes().next(100_000, 4) == 1
    assert Sizes().next(None, 4) == 1


@pytest.mark.parametrize("seconds, wanted", [
    (1, 1), (feed.TARGET, 1), (feed.TARGET / 5, 5), (1e-9, feed.GROWTH),
])
def test_slow_items_stay_alone_and_quick_ones_gather(seconds, wanted):
    sizes = Sizes()
    sizes.measured(1, seconds)
    assert sizes.next(1_000_000, 4) == wanted


def test_growth_is_gradual_and_bounded():
    sizes, sent, items = Sizes(), [], 1
    for _ in range(12):
        sizes.measured(items, items * 1e-8)
        items = sizes.next(10_000_000, 4)
        sent.append(items)
    assert sent[:3] == [8, 64, 512]
    assert sent[-1] == feed.MOST_ITEMS


@pytest.mark.parametrize("engines", [1, 4, 64])
def test_the_end_is_shared(engines):
    sizes = Sizes()
    sizes.measured(1000, 1.0)  # 1 ms an item
    left, sent = 1000, []
    while left:
        sent.append(sizes.next(left, engines))
        left -= sent[-1]
    assert sent == sorted(sent, reverse=True)
    assert sent[-1] <= 4  # LEAST: 4 ms of work
    assert sent[0] <= max(4, 1000 / (2 * engines))


def test_large_arguments_and_results_keep_batches_small():
    sizes = Sizes()
    sizes.measured(1000, 1e-6)
    sizes.weighed(1, feed.MOST_BYTES / 10)
    assert sizes.next(100_000, 4) == 10
    sizes.weighed(1, 2 * feed.MOST_BYTES)
    assert sizes.next(100_000, 4) == 1


def test_slower_items_are_believed_at_once_and_quicker_ones_slowly():
    sizes = Sizes()
    sizes.measured(100, 100 * 1e-4)
    sizes.measured(1, 1e-2)
    assert sizes.seconds > 4e-3
    sizes.measured(1, 1e-4)
    assert sizes.seconds > 3e-3


def test_functions_with_dependencies_stay_alone():
    class dependent:
        pass

    assert batch.suits(abs)
    assert not batch.suits(dependent())


def test_hooks_are_taken_off_whatever_ends_a_batch():
    def interrupted():
        yield 1
        raise KeyboardInterrupt

    said = io.StringIO()
    said.kept = True  # the hook is an attribute beside it
    with contextlib.redirect_stdout(said), pytest.raises(KeyboardInterrupt):
        feed._run(abs, 60, interrupted())
    assert vars(said) == {"kept": True}


# ---- maps ------------------------------------------------------------------------------------


def square(x):
    return x * x


def test_many_items_in_few_tasks(rc, where):
    view = rc.load_balanced_view()
    result = view.map_async(square, range(20_000))
    assert list(result) == [x * x for x in range(20_000)]
    assert result.get() == [x * x for x in range(20_000)]
    assert len(result) == result.progress == 20_000
    assert result.ready() and result.successful()
    tasks = set(result.msg_ids)
    assert 1 < len(tasks) < 2_000
    assert {md["engine_id"] for md in result.metadata} <= set(rc.ids)


def test_values_alone_are_kept_of_items(rc):
    """No object an item, which Python's collector would look at, until one is asked for."""
    view = rc.load_balanced_view()
    gc.collect()
    before = len(gc.get_objects())
    result = view.map_async(square, range(20_000))
    assert result.get() == list(result) == [x * x for x in range(20_000)]
    gc.collect()
    assert len(gc.get_objects()) - before < 5_000
    assert result.status == 20_000 * ["ok"]


def test_a_chunksize_is_kept_to(rc):
    result = rc.load_balanced_view().map_async(square, range(300), chunksize=100)
    assert len(set(result.msg_ids)) == 3
    assert result.get() == [x * x for x in range(300)]


def test_the_unordered_come_as_they_are(rc):
    result = rc.load_balanced_view().map_async(square, range(3_000), ordered=False)
    assert sorted(result) == [x * x for x in range(3_000)]


def test_several_sequences_of_all_kinds(rc):
    numpy = pytest.importorskip("numpy")
    view = rc.load_balanced_view()
    a = numpy.arange(1_000.0)
    assert view.map_sync(lambda x, y, z: x + y + z, a, range(1_000), (i for i in range(1_200))) == [
        3.0 * i for i in range(1_000)]
    rows = view.map_sync(lambda row: row.sum(), numpy.ones((500, 7)))
    assert rows == [7.0] * 500


def test_an_exception_is_its_items_alone(rc):
    def picky(x):
        if x % 500 == 7:
            raise ValueError("not %d" % x)
        return x

    view = rc.load_balanced_view()
    values = view.map_async(picky, range(2_000), return_exceptions=True).get()
    bad = {i: v for i, v in enumerate(values) if not isinstance(v, int)}
    assert sorted(bad) == [7, 507, 1007, 1507]
    assert [v for v in values if isinstance(v, int)] == [x for x in range(2_000) if x % 500 != 7]
    for i, e in bad.items():
        assert (e.ename, e.evalue) == ("ValueError", "not %d" % i)
        assert "picky" in e.traceback and e.engine_info["engine_id"] in rc.ids
    with pytest.raises(error.CompositeError) as caught:
        view.map_sync(picky, range(2_000))
    assert len(caught.value.elist) == 4
    it = iter(view.map_async(picky, range(2_000)))
    assert [next(it) for _ in range(7)] == list(range(7))
    with pytest.raises(error.RemoteError, match="not 7"):
        next(it)


def test_a_result_that_cannot_be_pickled_is_its_items_alone(rc):
    def some(x):
        import threading

        return threading.Lock() if x == 900 else x

    values = rc.load_balanced_view().map_async(some, range(1_000), return_exceptions=True).get()
    assert values[:900] + values[901:] == [x for x in range(1_000) if x != 900]
    assert isinstance(values[900], error.RemoteError) and "pickle" in values[900].evalue


def test_an_argument_that_cannot_be_pickled(rc):
    view = rc.load_balanced_view()
    with pytest.raises(TypeError, match="pickle"):  # at once, if it is among the first
        view.map_async(square, [threading.Lock()] * 200)
    mixed = [2] * 600 + [threading.Lock()] + [3] * 600
    values = view.map_async(square, mixed, return_exceptions=True).get()
    assert values[:600] + values[601:] == [4] * 600 + [9] * 600
    assert isinstance(values[600], error.KernelError)


def test_a_slow_item_holds_up_nobody_else(rc, tmp_path):
    gate, slow = str(tmp_path / "gate"), 1_500  # two might hold up two engines, all of theirs

    def some(x):
        import os
        import threading

        while x == slow and not os.path.exists(gate):
            threading.Event().wait(0.005)  # work
        sum(range(3_000))  # so that a batch is no more than its share
        return x

    results = iter(rc.load_balanced_view().map_async(some, range(3_000), ordered=False))
    order = []
    try:
        # Its batch, an eighth of all items at most, waits; what came later does not.
        order += itertools.islice(results, 2_000)
        assert slow not in order
    finally:
        open(gate, "w").close()
    order += results
    assert sorted(order) == list(range(3_000))


def test_output_is_its_items(rc):
    def speak(x):
        import sys

        if x % 100 == 3:
            print("item", x)
            print("error of", x, file=sys.stderr)
        if x % 500 == 4:
            from IPython.display import Pretty, display

            display(Pretty(str(x)))
        if x == 1_005:
            print("and fails")
            raise ValueError(x)
        return x

    result = rc.load_balanced_view().map_async(speak, range(3_000), return_exceptions=True)
    values = result.get()
    assert values[:1_005] == list(range(1_005)) and values[1_006:] == list(range(1_006, 3_000))
    assert result.wait_for_output(20) and len(set(result.msg_ids)) < 1_000
    said = {i: text for i, text in enumerate(result.stdout) if text}
    assert said == {1_005: "and fails\n", **{x: f"item {x}\n" for x in range(3, 3_000, 100)}}
    assert {i for i, text in enumerate(result.stderr) if text} == set(range(3, 3_000, 100))
    shown = {i: out[0]["data"]["text/plain"] for i, out in enumerate(result.outputs) if out}
    assert shown == {x: str(x) for x in range(4, 3_000, 500)}
    assert {i: e.evalue for i, e in enumerate(result.error) if e} == {1_005: "1005"}
    print_again = rc[:].apply_sync(lambda: print("as ever"))
    assert print_again == [None] * len(rc)


def test_output_comes_while_its_item_runs(rc, tmp_path):
    gate = str(tmp_path / "gate")

    def speak(x):
        import os
        import threading

        if x == 1_500:
            print("waiting", flush=True)
            while not os.path.exists(gate):
                threading.Event().wait(0.005)  # work
        return x

    result = rc.load_balanced_view().map_async(speak, range(3_000))
    try:
        wait_for(lambda: result.stdout[1_500] == "waiting\n", what="the output")
        assert not result.ready()
    finally:
        open(gate, "w").close()
    assert result.get() == list(range(3_000))


def test_times_are_of_batches(rc):
    result = rc.load_balanced_view().map_async(square, range(20_000))
    result.get()
    assert 0 < result.serial_time < len(rc) * result.wall_time


def test_a_map_that_is_done_before_its_result_is_made(rc, monkeypatch):
    """The wall time is from before the first batch, however late the asking thread goes on."""

    class Finished(threading.Thread):
        def start(self):
            super().start()
            self.join(60)

    monkeypatch.setattr(threading, "Thread", Finished)
    result = rc.load_balanced_view().map_async(square, range(500))
    assert result.ready() and result.get() == [x * x for x in range(500)]
    assert 0 < result.serial_time < len(rc) * result.wall_time
    assert all(md.submitted < md.started for md in result.metadata)


def test_published_data_is_its_items(rc):
    def publish(x):
        if x in (900, 901):
            from ipyparallel.datapub import publish_data

            publish_data({"x": x, "much": b"m" * 5_000})
        return x

    result = rc.load_balanced_view().map_async(publish, range(2_000))
    assert result.get() == list(range(2_000)) and result.wait_for_output(20)
    found = {data["x"]: len(data["much"]) for data in result.data if data}
    assert found == {900: 5_000, 901: 5_000}


def test_published_data_that_cannot_be_read_here_ends_no_map(rc):
    class Unreadable:
        def __reduce__(self):
            return int, ("no number",)

    def publish(x):
        if x == 900:
            from ipyparallel.datapub import publish_data

            publish_data({"x": Unreadable()})
        return x

    result = rc.load_balanced_view().map_async(publish, range(2_000))
    with contextlib.suppress(ValueError):  # whoever files it is told, once
        result.wait_for_output(20)
    assert result.get(20) == list(range(2_000))
    assert list(rc.load_balanced_view().imap(publish, range(1_000))) == list(range(1_000))


def test_builtins_of_the_same_name_in_the_users_namespace(rc):
    rc[:].push({"list": 1, "zip": 2, "len": 3, "str": 4, "type": 5}, block=True)
    try:
        assert rc.load_balanced_view().map_sync(square, range(500)) == [x * x for x in range(500)]
    finally:
        rc[:].execute("del list, zip, len, str, type", block=True)


def test_a_map_can_be_given_up(rc):
    def slow(x):
        import time

        time.sleep(0.02)  # work
        return x

    result = rc.load_balanced_view().map_async(slow, range(20_000), return_exceptions=True)
    wait_for(lambda: result.progress > 10, what="the first items")
    result.abort()
    values = result.get(timeout=30)
    assert any(isinstance(v, error.TaskAborted) for v in values)
    assert values[0] == 0


def test_closing_the_client_ends_a_map(where):
    def slow(x):
        import time

        time.sleep(0.01)  # work

    client = phalanx.Client(where[0])
    result = client.load_balanced_view().map_async(slow, range(5_000))
    threads = {t for t in threading.enumerate() if t.name == "phalanx-map"}
    assert threads
    client.close()
    with pytest.raises(error.EngineError):
        result.get(timeout=20)
    wait_for(lambda: not any(t.is_alive() for t in threads), what="the map's thread")


# ---- imap ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
def test_imap_takes_no_more_than_it_needs(rc, ordered):
    taken = []

    def numbers():
        for i in itertools.count():
            taken.append(i)
            yield i

    values = rc.load_balanced_view().imap(square, numbers(), ordered=ordered)
    first = list(itertools.islice(values, 5_000))
    assert len(set(first)) == 5_000
    assert not ordered or first == [x * x for x in range(5_000)]
    before = len(taken)
    values.close()
    assert len(taken) == before


@pytest.fixture
def clock(monkeypatch):
    """Says what time it is when a feed looks: clock.now."""
    clock = SimpleNamespace(now=0, monotonic=lambda: clock.now, time=time.time)
    monkeypatch.setattr(feed, "time", clock)
    return clock


def test_imap_gives_what_is_there_while_its_source_is_slow(rc, monkeypatch, clock):
    feeds, taken = [], []

    class Feed(phalanx.batch.Feed):
        def __init__(self, *args):
            super().__init__(*args)
            feeds.append(self)

    def source():
        for i in range(1000):
            if i == 1:  # takes long
                clock.now += 2 * feed.TARGET
                wait_for(lambda: feeds[0].raw.peek() is not None, 60, "a reply")
            taken.append(i)
            yield i

    monkeypatch.setattr(phalanx.batch, "Feed", Feed)
    values = rc.load_balanced_view().imap(square, source())
    assert taken == [0, 1]
    assert list(values) == [i * i for i in range(1000)]


def test_a_batch_does_not_wait_for_a_slow_source(clock):
    def source():
        for n in range(100):
            clock.now += 2 * feed.TARGET if n in (0, 40) else 0
            yield n

    stream, counts, taken = feed.Stream([source()]), [], []
    while (one := stream.take(32)) is not None:
        assert one.first == len(taken) and one.count == len(one.columns[0])
        counts.append(one.count)
        taken += one.columns[0]
    assert taken == [*range(100)]
    assert counts == [1, 32, 15, 32, 20]  # twice as many at each look at the clock


def test_imap_keeps_to_max_outstanding(rc):
    taken = []

    def numbers():
        for i in range(300):
            taken.append(i)
            yield i

    got = 0
    for value in rc.load_balanced_view().imap(square, numbers(), max_outstanding=6):
        got += 1
        assert len(taken) <= got + 6
        assert value == (got - 1) ** 2
    assert got == 300


def test_imap_keeps_few_large_values():
    values, sizes = batch._Values(ordered=False), Sizes()
    for count in range(1, 5):
        assert values.few(sizes)
        sizes.weighed(1, batch.AHEAD_BYTES // 4)
        values.values(feed._Batch(count, [], 1), type("reply", (), {"engine": 0}), [b""], ())
    assert not values.few(sizes)


def test_imap_raises_where_the_item_is(rc):
    def picky(x):
        if x == 700:
            raise ValueError("not 700")
        return x

    view, got = rc.load_balanced_view(), []
    with pytest.raises(error.RemoteError, match="not 700"):
        for value in view.imap(picky, itertools.count()):
            got.append(value)
    assert got == list(range(700))
    values = list(view.imap(picky, range(1_000), return_exceptions=True))
    assert isinstance(values[700], error.RemoteError) and len(values) == 1_000


# ---- when an engine dies ---------------------------------------------------------------------


def test_an_engine_that_dies_takes_one_item_along(rc, where):
    if where[1] != 4:
        pytest.skip("ipcontroller learns of a death by heartbeats")

    def deadly(at):
        def some(x):
            import os
            import signal

            if x == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return x

        return some

    def lost(values, at):
        assert len(values) == 20_000
        assert isinstance(values[at], error.EngineError)
        return [i for i, v in enumerate(values) if v != i]

    result = rc.load_balanced_view(rc.ids).map_async(deadly(3_000), range(20_000), return_exceptions=True)
    assert lost(result.get(timeout=60), 3_000) == [3_000]
    assert result.wait_for_output(60)
    view = rc.load_balanced_view()  # the first engine to die has others in its queue
    assert lost(list(view.imap(deadly(0), range(20_000), return_exceptions=True)), 0) == [0]

    # Where none is left that may do the rest, each item says so.
    result = rc.load_balanced_view(rc.ids[0]).map_async(deadly(3_000), range(20_000), return_exceptions=True)
    values = result.get(timeout=60)
    names = {values[i].ename for i in lost(values, 3_000)}
    assert names <= {"EngineError", "ImpossibleDependency", "IndexError"}
    assert not any("closed" in str(value) for value in values)
