# SPDX-License-Identifier: BSD-3-Clause
"""%pxcluster watch: rates and pages, which are pure, and a notebook whose page keeps up."""
import json
import queue
import subprocess
import time

import pytest

from conftest import BIN, wait_for
from four import rc, where  # noqa: F401: fixtures, our cluster and ipyparallel's
from test_magics import notebook  # noqa: F401: fixture

phalanx = pytest.importorskip("phalanx")
from phalanx import ask, pxcluster  # noqa: E402
from phalanx.watch import MOMENTS, ROWS, Rates, render  # noqa: E402

DEADLINE = 60


def engine(number, **more):
    return {"id": number, "host": "here", "queue": 0, "tasks": 0, "completed": 0, **more}


# ---- pure ------------------------------------------------------------------------------------


def test_rates_are_from_look_to_look():
    rates = Rates()
    rates.look([engine(0, completed=5)], 10)
    assert rates.of == {} and not rates.history
    rates.look([engine(0, completed=25), engine(1, completed=7)], 12)
    assert rates.of == {0: 10.0}  # 1 was not there before
    rates.look([engine(0, completed=3), engine(1, completed=8)], 13)  # 0 began anew
    assert rates.of == {0: 0, 1: 1}
    assert list(rates.history) == [10, 1]
    rates.look([], 13)  # no time has passed
    assert list(rates.history) == [10, 1]
    for second in range(14, 14 + 2 * MOMENTS):
        rates.look([], second)
    assert list(rates.history) == [0] * MOMENTS


def seen(state, looks=()):
    rates = Rates()
    for at, engines in enumerate([*looks, state["engines"]]):
        rates.look(engines, at)
    return render(state, rates)


def test_a_page_has_a_row_an_engine():
    page = seen({"engines": [engine(0, tasks=2), engine(7, completed=1234, queue=1)],
                 "tasks": {"waiting": 1000, "blocked": 1}},
                [[engine(7, completed=1230)]])
    assert "<b>2 engines, 2 at work, 1,001 tasks waiting, 4.0 tasks a second</b>" in page
    assert page.count("<tr>") == 3 and ">7<" in page and ">1,234<" in page and ">idle<" not in page
    assert page.count("width:80px") == 1  # the fastest one's bar


@pytest.mark.parametrize("count, text", [
    (0, "0 B"), (46, "46 B"), (46_300, "46 kB"), (99_600_000, "100 MB"), (446_000_000, "450 MB"),
    (999_600_000, "1 GB"), (1_240_000_000, "1.2 GB"), (12_400_000_000_000, "12 TB"),
    (12e15, "12000 TB"),
])
def test_sizes_have_two_digits(count, text):
    assert pxcluster.size_text(count) == text


def test_a_page_says_what_engines_use():
    page = seen({"engines": [
        engine(0, memory_bytes=46_300_000, cpu_percent=97.2, host_memory_percent=20.0),
        engine(1, memory_bytes=1_240_000_000, cpu_percent=1.2, host="node<1>", host_memory_percent=93.4),
        engine(2),
    ]})
    rows = page.split("<tr>")[2:]
    assert ">46 MB<" in rows[0] and ">95 %<" in rows[0]
    assert ">1.2 GB<" in rows[1] and "%<" not in rows[1]  # it idles
    assert "B<" not in rows[2]
    assert "node&lt;1&gt;: 93 % of its memory is in use" in page and "here: " not in page


def test_a_page_adds_up_what_a_host_uses():
    page = seen({"engines": [engine(i, host="node%d" % (i % 2), memory_bytes=2_000_000_000 * (i % 2),
                                    cpu_percent=100.0) for i in range(2 * ROWS)]})
    rows = page.split("<tr>")[2:]
    assert ">0 B<" in rows[0] and ">64 GB<" in rows[1] and ">3,200 %<" in rows[1]


def test_a_page_has_a_row_a_host_where_there_are_many():
    hosts = ROWS + 8
    page = seen({"engines": [engine(i, host="node%d" % (i % hosts), completed=1, tasks=i == 5)
                             for i in range(10 * hosts)]})
    rows = page.split("<tr>")[2:]
    assert len(rows) == ROWS + 1 and "and 8 more hosts" in rows[-1]
    assert "node5<" in rows[0] and ">10 engines<" in rows[0] and ">10<" in rows[0]  # it is at work


def test_a_page_tells_of_the_last_deaths_and_of_no_tags():
    page = seen({"engines": [engine(0, host="<script>")],
                 "deaths": [{"id": i, "cause": "<b>%d" % i} for i in range(10)]})
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "engine 6" not in page and "engine 7: &lt;b&gt;7" in page and "engine 9: " in page


def test_one_more_host_is_one_host():
    page = seen({"engines": [engine(i, host="node%d" % i) for i in range(ROWS + 1)]})
    assert "and 1 more host<" in page


# ---- a cluster --------------------------------------------------------------------------------


class Only:
    """A DefaultCluster that has this client."""

    def __init__(self, client):
        self.existing = lambda: client


def test_what_a_controller_says(rc, where):
    state = pxcluster.state_of(rc)
    assert [engine["id"] for engine in state["engines"]] == [0, 1, 2, 3]
    assert ("tasks" in state) == (where[2] == "ours")
    assert [line.split()[0] for line in pxcluster.table(state["engines"])] == ["engine", *"0123"]
    told = "memory_bytes" in state["engines"][0]  # who has not answered after a second is left out
    assert told <= (where[2] == "ours")
    if where[2] == "ours":
        wait_for(lambda: all("memory_bytes" in e for e in pxcluster.state_of(rc)["engines"]), DEADLINE,
                 "all of them to answer in time")


def test_what_engines_use(rc):
    used = rc.usage(timeout=DEADLINE)
    assert list(used) == [0, 1, 2, 3] and list(rc.usage([2], timeout=DEADLINE)) == [2]
    assert all(reply["kernel_memory"] > 1_000_000 for reply in used.values())
    assert 0 < used[0]["host_virtual_memory"]["percent"] < 100
    with pytest.raises(IndexError):
        rc.usage(7)
    assert set(ask.usage(rc, [1, 7], DEADLINE)) == {1}  # one that has just gone


def test_a_terminal_shows_what_engines_use(where):
    if where[2] != "ours":
        pytest.skip("ipcontroller does not say how it is")

    def status(*words):
        done = subprocess.run([BIN / "pxcluster", "status", *words], env=where[1], check=True,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE)
        return done.stdout

    def all_told():  # within the second that they have for it
        engines = json.loads(status("--json"))["engines"]
        assert len(engines) == 4
        return all(engine.get("memory_bytes", 0) > 1_000_000
                   and 0 < engine["host_memory_percent"] < 100 for engine in engines)

    def all_shown():
        names, *rows = [line.split() for line in status().splitlines()[5:10]]
        assert names[6:] == ["MEMORY", "SINCE", "TAGS"] and len(rows) == 4
        return all(row[7] == "MB" and float(row[6]) > 1 for row in rows)
    wait_for(all_told, DEADLINE, "all of them to answer in time")
    wait_for(all_shown, DEADLINE, "the same as a table")


def test_only_a_notebook_can_show_it(rc):
    with pytest.raises(phalanx.error.KernelError, match="pxcluster status --watch"):
        pxcluster.command(Only(rc), "watch")


# ---- a notebook --------------------------------------------------------------------------------


def pages(notebook, display_id, until):
    """The pages of a display as they come, to the first of which until(its text) is true."""
    deadline, text = time.monotonic() + DEADLINE, ""
    while True:
        try:
            message = notebook.kc.get_iopub_msg(timeout=0.2)
        except queue.Empty:
            assert time.monotonic() < deadline, text
            continue
        content = message["content"]
        if message["msg_type"] == "update_display_data":
            assert content["transient"]["display_id"] == display_id
            text = content["data"]["text/plain"]
            assert content["data"]["text/html"].startswith("<div>")
            if until(text):
                return text


def begin(notebook):
    """The display_id of a watch that begins."""
    shown = [(kind, content) for kind, content in notebook.outputs(notebook.send("%pxcluster watch"))]
    (kind, content), = [item for item in shown if item[0] != "update_display_data"]  # an earlier one's
    assert kind == "display_data" and content["data"]["text/plain"].startswith("2 engines, ")
    return content["transient"]["display_id"]


def done(text):
    _, names, *rows = [line.split() for line in text.splitlines()[:4]]
    return sum(int(row[names.index("done")]) for row in rows)


def test_a_page_keeps_up(notebook):
    where = begin(notebook)
    before = done(pages(notebook, where, lambda text: "tasks a second" in text))
    for _ in range(5):
        notebook.send("%px pass")
    pages(notebook, where, lambda text: done(text) == before + 10)
    notebook.send("%pxcluster watch --stop")
    pages(notebook, where, lambda text: text.endswith("\nno longer watched"))

    where = begin(notebook)
    notebook.send("%px -a -t 0 import os; os.kill(os.getpid(), 9)")
    pages(notebook, where, lambda text: text.startswith("1 engine, "))
    notebook.send("%pxcluster restart -n 3")
    pages(notebook, where, lambda text: text.startswith("3 engines, "))
    notebook.send("%px pass")
    pages(notebook, where, lambda text: done(text) == 2)  # of the three
    notebook.send("%pxcluster stop")
    pages(notebook, where, lambda text: text.endswith("\nthe cluster has ended"))
    names = "import threading; print([t.name for t in threading.enumerate()])"
    deadline = time.monotonic() + DEADLINE
    while "phalanx-watch" in notebook.said(names)[0]:
        assert time.monotonic() < deadline
