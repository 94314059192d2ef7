# SPDX-License-Identifier: BSD-3-Clause
"""%pxcluster watch: what the cluster does, in a cell's output that stays up to date.

`Rates` and `render` are pure; `Watch` has a thread that looks once a second, and shows what it sees
if something has changed. One watch at a time: a newer one ends it.
"""

import html
import threading
import time
from collections import deque

from IPython.display import display

from . import _phalanx, error
from .pxcluster import plural, size_text, state_of, table

INTERVAL = 1.0  # seconds between two looks at least,
LONGEST = 5.0  # at most, and
SHARE = 20  # times as long as a look takes, of thousands of engines
ROWS = 32  # of a table: with more engines, a row is a host
DEATHS = 3  # the latest, with their causes
FULL = 90  # percent of a host's memory from which it is spoken of
MOMENTS = 60  # of the curve
PATIENCE = 60  # seconds without an answer after which it is over

_CELL = "padding:1px 10px;border:0;text-align:"
_BAR = "display:inline-block;height:.6em;background:#2a8f6b;border-radius:1px;width:%dpx"
_CURVE = (
    '<svg width="%d" height="18" style="vertical-align:middle"><polyline points="%s" fill="none" '
    'stroke="#2a8f6b" stroke-width="1.5"/></svg>'
)


class Rates:
    """Tasks a second, of each engine and of all, from one look to the next."""

    def __init__(self):
        self.of = {}  # by engine id; nothing of those seen for the first time
        self.history = deque(maxlen=MOMENTS)  # of all
        self._before, self._at = {}, None

    def look(self, engines, now):
        """engines: as state_of() has them. now: seconds, of any steady clock."""
        done = {engine["id"]: engine.get("completed") or 0 for engine in engines}
        if self._at is not None and now > self._at:
            more = {i: max(0, n - self._before[i]) for i, n in done.items() if i in self._before}
            self.of = {i: n / (now - self._at) for i, n in more.items()}
            self.history.append(sum(self.of.values()))
        self._before, self._at = done, now


def _work(engine):
    return (engine.get("queue") or 0) + (engine.get("tasks") or 0)


def _rate_text(rate):
    return "" if rate is None else "%.1f" % rate if 0 < rate < 9.95 else "{:,.0f}".format(rate)


def _cpu_text(percent):
    """In steps of 5 %, so that what idles does not seem to move."""
    steps = None if percent is None else 5 * round(percent / 5)
    return "{:,} %".format(steps) if steps else ""


def _memory_text(count):
    return "" if count is None else size_text(count)


def _sum(values):
    """None where none is known."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _row(cells, tag="td", right=()):
    return "<tr>%s</tr>" % "".join(
        '<%s style="%s%s">%s</%s>' % (tag, _CELL, "right" if i in right else "left", cell, tag)
        for i, cell in enumerate(cells)
    )


def _by_engine(engines, rates):
    """Rows of an engine each: name, host, tasks there, done, memory, processor, a second."""
    return [
        (engine["id"], engine.get("host"), _work(engine), engine.get("completed"),
         engine.get("memory_bytes"), engine.get("cpu_percent"), rates.of.get(engine["id"]))
        for engine in engines
    ]


def _by_host(engines, rates):
    hosts = {}
    for engine in engines:
        hosts.setdefault(engine.get("host"), []).append(engine)
    rows = [
        (plural(len(own)), host, sum(map(_work, own)), sum(e.get("completed") or 0 for e in own),
         _sum(e.get("memory_bytes") for e in own), _sum(e.get("cpu_percent") for e in own),
         sum(rates.of.get(e["id"], 0) for e in own))
        for host, own in hosts.items()
    ]
    return sorted(rows, key=lambda row: -row[2])


def _engines_table(engines, rates):
    rows = (_by_engine if len(engines) <= ROWS else _by_host)(engines, rates)
    fastest = max([rate or 0 for *_, rate in rows], default=0)
    right = (0, 2, 3, 4, 5, 6)
    names = ("engine", "host", "tasks there", "done", "memory", "processor", "a second", "")
    lines = [_row(names, "th", right)]
    for name, host, work, done, memory, cpu, rate in rows[:ROWS]:
        bar = '<span style="%s"></span>' % (_BAR % round(80 * rate / fastest)) if rate else ""
        done = "" if done is None else "{:,}".format(done)
        cells = (html.escape(str(name)), html.escape(str(host or "")), work or "idle", done,
                 _memory_text(memory), _cpu_text(cpu), _rate_text(rate), bar)
        lines.append(_row(cells, right=right))
    if len(rows) > ROWS:
        more = plural(len(rows) - ROWS, "more host")
        lines.append(_row(("", "and " + more, *[""] * 6)))
    return '<table style="border-collapse:collapse;font-size:90%%">%s</table>' % "".join(lines)


def _full_hosts(engines):
    """A line for each host that has little memory left, fullest first."""
    told = [e for e in engines if e.get("host_memory_percent", 0) >= FULL]
    full = {e.get("host"): e["host_memory_percent"] for e in told}
    worst = sorted(full.items(), key=lambda item: -item[1])[:DEATHS]
    return ["%s: %d %% of its memory is in use" % item for item in worst]


def _curve(history):
    most = max(history, default=0)
    if not most or len(history) < 2:
        return ""
    points = " ".join("%d,%.1f" % (2 * i, 17 - 16 * n / most) for i, n in enumerate(history))
    return _CURVE % (2 * MOMENTS, points)


def _summary(state, rates):
    engines, tasks = state["engines"], state.get("tasks") or {}
    busy = sum(1 for engine in engines if _work(engine))
    parts = [plural(len(engines)), "%d at work" % busy]
    waiting = (tasks.get("waiting") or 0) + (tasks.get("blocked") or 0)
    if waiting:
        parts.append("{:,} tasks waiting".format(waiting))
    if rates.history:
        parts.append("%s tasks a second" % _rate_text(rates.history[-1]))
    return ", ".join(parts)


def render(state, rates, note=""):
    """A table as HTML. state: as state_of() has it. note: one line more, below."""
    lines = ["<b>%s</b> %s" % (html.escape(_summary(state, rates)), _curve(rates.history))]
    lines.append(_engines_table(state["engines"], rates))
    lines += map(html.escape, _full_hosts(state["engines"]))
    for death in (state.get("deaths") or [])[-DEATHS:]:
        lines.append(html.escape("engine %s: %s" % (death.get("id"), death.get("cause"))))
    if note:
        lines.append("<i>%s</i>" % html.escape(note))
    return "<div>%s</div>" % "".join("<div>%s</div>" % line for line in lines)


class _Shown:
    """What a front end gets: HTML, or the plain table."""

    def __init__(self, page, text):
        self.page, self.text = page, text

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/html": self.page, "text/plain": self.text}


class Watch:
    """Shows a client's cluster below the cell that runs now, until end() or the cluster's.

    ended: called now and then; true when the cluster is no more."""

    def __init__(self, client, ended):
        self._meet(client, ended)
        self._page = None
        self._handle = display(self._shown(), display_id=True)
        self._begin()

    def _meet(self, client, ended):
        self._client, self._ended = client, ended
        self._rates = Rates()
        self._over = ""  # why
        self._state = state_of(client)
        self._asks = "tasks" in self._state  # of an ipcontroller one asks otherwise
        self._rates.look(self._state["engines"], time.monotonic())

    def _begin(self):
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="phalanx-watch", daemon=True)
        self._thread.start()

    def go_on(self, client, ended):
        """In the same place, with another cluster."""
        self.end()
        self._thread.join()
        self._meet(client, ended)
        self._begin()

    def end(self, why="no longer watched"):
        """What is shown stays as it is, and says so."""
        self._over = self._over or why
        self._stopped.set()

    def _shown(self):
        self._page = render(self._state, self._rates, self._over)
        text = "\n".join([_summary(self._state, self._rates), *table(self._state["engines"])])
        return _Shown(self._page, text + ("\n" + self._over if self._over else ""))

    def _look(self):
        try:
            self._state = state_of(self._client, self._asks)
        except _phalanx.ClosedError:
            self.end("the cluster has ended")
            return False
        except error.KernelError:  # no answer
            return False
        self._rates.look(self._state["engines"], time.monotonic())
        return True

    def _run(self):
        heard, took = time.monotonic(), 0
        while not self._stopped.wait(min(max(INTERVAL, SHARE * took), LONGEST)):
            begun = time.monotonic()
            if self._ended():
                self.end("the cluster has ended")
            elif self._look():
                heard = time.monotonic()
            elif time.monotonic() - heard > PATIENCE:
                self.end("the controller does not answer")
            self._update()
            took = time.monotonic() - begun
        self._update()

    def _update(self):
        page, shown = self._page, self._shown()
        if shown.page != page:
            self._handle.update(shown)


_current = None


def watch(client, ended):
    """Shows that cluster; ends an earlier watch."""
    global _current
    unwatch()
    _current = Watch(client, ended)


def follow(client, ended):
    """Where a cluster was watched until it ended, goes on with the one in its place."""
    if _current is not None:
        _current.go_on(client, ended)


def unwatch():
    """Ends the watch, if there is one."""
    global _current
    if _current is not None:
        _current.end()
    _current = None
