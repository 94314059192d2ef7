# SPDX-License-Identifier: BSD-3-Clause
"""result.timeline(): when each engine was at work."""
import time

import pytest

from test_client import rc, where  # noqa: F401: fixtures, our cluster and ipyparallel's

phalanx = pytest.importorskip("phalanx")
from phalanx import timeline  # noqa: E402
from phalanx.timeline import Timeline  # noqa: E402

__name__ = "__main__"  # functions travel as code


@pytest.mark.parametrize("spans, columns, expected", [
    ([], 4, [0, 0, 0, 0]),
    ([(0, 8, False)], 4, [1, 1, 1, 1]),
    ([(1, 5, False)], 4, [0.5, 1, 0.5, 0]),
    ([(2, 2.5, False), (3, 3.5, True)], 4, [0, 0.5, 0, 0]),
    ([(0, 4, False), (0, 4, False)], 2, [1, 0]),  # as of small tasks, which are dated together
    ([(8, 8, False)], 4, [0, 0, 0, 0]),
])
def test_coverage(spans, columns, expected):
    assert timeline.coverage(spans, 0, 8, columns) == expected


def test_no_time_at_all():
    assert timeline.coverage([(3, 3, False)], 3, 3, 2) == [0, 0]
    nothing = Timeline("f", 3, {0: [(3, 3, False)]})
    assert "1 task on 1 engine" in repr(nothing) and "</svg>" in nothing._repr_html_()


@pytest.mark.parametrize("seconds, expected", [
    (0, [0]), (1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (2.5, [0, 0.5, 1, 1.5, 2, 2.5]),
    (86, [0, 20, 40, 60, 80]), (7200, [0, 2000, 4000, 6000]),
])
def test_ticks(seconds, expected):
    assert timeline.ticks(seconds) == pytest.approx(expected)


@pytest.mark.parametrize("seconds, expected", [
    (0, "0 s"), (0.0123, "12.3 ms"), (0.9996, "1,000 ms"), (1.234, "1.23 s"), (99.96, "100 s"),
    (999.7, "1,000 s"),
])
def test_time_is_said_in_plain_numbers(seconds, expected):
    assert f" in {expected}, " in Timeline("f", 0, {0: [(0, seconds, False)]}).summary()


def test_text():
    rows = {
        10: [(101, 102, False), (102, 103, True)],
        2: [(100, 104, False)],
    }
    first, *lines = repr(Timeline("work", 100, rows, missing=1)).splitlines()
    assert first == "work: 3 tasks on 2 engines in 4 s, at work for 75 % of it; 1 task to come"
    assert lines == [
        "     2 |" + 48 * "█" + "| 100 %  1 task",
        "    10 |" + 12 * " " + 24 * "█" + 12 * " " + "|  50 %  2 tasks, 1 failed",
    ]


def test_a_late_clock_and_overlaps():
    line = Timeline("f", 100, {0: [(99, 101, False), (100, 101, False)]})
    assert line.begin == 99 and line.busy(0) == 1


def test_many_engines_show_those_that_ended_last():
    rows = {engine: [(0, 1 + engine % 100, False)] for engine in range(1000)}
    line = Timeline("f", 0, rows)
    assert len(line.shown()) == timeline.ROWS and min(e % 100 for e in line.shown()) >= 93
    assert repr(line).endswith("and 936 engines that ended before them")
    assert len(line._repr_html_()) < 40_000


def test_a_picture_of_many_tasks_is_bounded():
    rows = {0: [(n / 100, n / 100 + 0.005, n % 7 == 0) for n in range(100_000)]}
    picture = Timeline("<f>", 0, rows)._repr_html_()
    assert len(picture) < 20_000 and timeline.RED in picture and "&lt;f&gt;" in picture


def test_a_map(rc):  # noqa: F811
    def work(n):
        import time

        time.sleep(0.02)  # work
        return 1 // n

    result = rc.load_balanced_view().map_async(work, range(12), chunksize=1, return_exceptions=True)
    result.get()
    line = result.timeline()
    spans = [span for row in line.rows.values() for span in row]
    assert len(spans) == 12 and [bad for *_, bad in spans].count(True) == 1
    assert all(stop - start >= 0.01 for start, stop, _ in spans)
    assert set(line.rows) == set(result.engine_id) and 0 < line.seconds <= result.wall_time + 1
    assert repr(line).startswith("work: 12 tasks on ") and "1 failed" in line._repr_html_()


def test_batches_are_tasks(rc):  # noqa: F811
    result = rc.load_balanced_view().map_async(abs, range(5000))
    result.get()
    tasks = len(set(result.msg_ids))
    assert tasks < 5000 and sum(map(len, result.timeline().rows.values())) == tasks


def test_what_has_not_ended(rc):  # noqa: F811
    engine = rc.ids[0]
    first, second = (rc[engine].apply_async(time.sleep, t) for t in (0, 5))
    both = phalanx.AsyncResult.join(first, second)
    first.get()
    line = both.timeline()
    assert [len(row) for row in line.rows.values()] == [1] and line.missing == 1
    rc.send_signal(2, engine, block=True)
    second.wait(30)


def test_results_joined_and_from_the_hub(rc):  # noqa: F811
    results = [rc[:].apply_async(abs, n) for n in range(3)]
    [result.get() for result in results]
    joined = phalanx.AsyncResult.join(*results).timeline()
    assert {engine: len(row) for engine, row in joined.rows.items()} == dict.fromkeys(rc.ids, 3)
    stored = rc.get_result(results[0].msg_ids)
    stored.get()
    assert {e: len(row) for e, row in stored.timeline().rows.items()} == dict.fromkeys(rc.ids, 1)
