# SPDX-License-Identifier: BSD-3-Clause
"""result.timeline(): when each engine was at work on a result's tasks.

Everything but `of` is pure, made of spans: (seconds, seconds, whether it failed), on the engines'
clocks, in order. Those of small tasks may overlap: their replies are dated together.
"""

import html
import math
from itertools import groupby

ROWS = 64  # engines that are shown; of more, those that ended last
TEXT_COLUMNS = 48
COLUMNS = 480  # of a picture, in pixels
APART = 120  # tasks of an engine that are drawn one by one
ROW, LEFT, RIGHT, BOTTOM = 14, 72, 170, 18  # pixels
BLOCKS = " ▁▂▃▄▅▆▇█"
GREEN, RED = "#2a8f6b", "#c0392b"


class Timeline:
    """Shows itself: a picture in a notebook, lines of text elsewhere.

    rows: {engine's id: its spans}. title: what they are of. missing: tasks that have not ended.
    """

    def __init__(self, title, begin, rows, missing=0):
        self.title, self.rows, self.missing = title, rows, missing
        spans = [span for row in rows.values() for span in row]
        self.begin = min([begin, *(start for start, _, _ in spans)])  # a host's clock may be late
        self.end = max([stop for _, stop, _ in spans], default=begin)

    @property
    def seconds(self):
        """From the submission to the last task's end."""
        return self.end - self.begin

    def busy(self, engine):
        """How much of the time an engine was at work, 0 to 1."""
        worked = latest = 0
        for start, stop, _ in self.rows[engine]:
            worked += max(0, stop - max(start, latest))
            latest = max(stop, latest)
        return worked / self.seconds if self.seconds > 0 else 0

    def summary(self):
        """What there was to do, and how well engines were used, in a line."""
        tasks, engines = sum(map(len, self.rows.values())), len(self.rows)
        share = sum(map(self.busy, self.rows)) / engines if engines else 0
        text = "%s: %s on %s in %s, at work for %d %% of it" % (
            self.title, _count(tasks, "task"), _count(engines, "engine"), _time(self.seconds),
            round(100 * share),
        )
        return text + ("; %s to come" % _count(self.missing, "task") if self.missing else "")

    def shown(self):
        """The engines that are shown, in order."""
        if len(self.rows) <= ROWS:
            return sorted(self.rows)
        ends = {engine: max(stop for _, stop, _ in row) for engine, row in self.rows.items()}
        return sorted(sorted(ends, key=ends.get)[-ROWS:])

    def _said(self, engine):
        row = self.rows[engine]
        failed = sum(1 for *_, bad in row if bad)
        text = "%3d %%  %s" % (round(100 * self.busy(engine)), _count(len(row), "task"))
        return text + (", %d failed" % failed if failed else "")

    def _more(self):
        more = len(self.rows) - ROWS
        return "and %s that ended before them" % _count(more, "engine") if more > 0 else ""

    def __repr__(self):
        lines = [self.summary()]
        for engine in self.shown():
            parts = coverage(self.rows[engine], self.begin, self.end, TEXT_COLUMNS)
            bar = "".join(BLOCKS[math.ceil(8 * part)] for part in parts)
            lines.append("%6d |%s| %s" % (engine, bar, self._said(engine)))
        return "\n".join(line for line in [*lines, self._more()] if line)

    def _repr_html_(self):
        return "<div>%s</div>%s<div>%s</div>" % (
            html.escape(self.summary()), self._picture() if self.rows else "", self._more()
        )

    def _picture(self):
        shown = self.shown()
        foot = ROW * len(shown)
        scale = COLUMNS / self.seconds if self.seconds > 0 else 0
        text = '<text x="%d" y="%d"%s>%s</text>'
        drawn = []
        for top, engine in zip(range(0, foot, ROW), shown):
            spans = [
                ((start - self.begin) * scale, (stop - self.begin) * scale, bad)
                for start, stop, bad in self.rows[engine]
            ]
            drawn.append(text % (LEFT - 8, top + 11, ' text-anchor="end"', "engine %d" % engine))
            drawn += boxes(spans, top) if len(spans) <= APART else areas(spans, top)
            drawn.append(text % (LEFT + COLUMNS + 8, top + 11, "", self._said(engine)))
        for at in ticks(self.seconds):
            x = LEFT + at * scale
            drawn.append('<path d="M%.1f 0V%d" stroke="currentColor" opacity=".2"/>' % (x, foot + 3))
            drawn.append(text % (x, foot + 14, ' text-anchor="middle"', _time(at)))
        return (
            '<svg width="%d" height="%d" font-size="11" font-family="sans-serif" fill="currentColor">'
            "%s</svg>" % (LEFT + COLUMNS + RIGHT, foot + BOTTOM, "".join(drawn))
        )


def coverage(spans, begin, end, columns):
    """Of each of so many equal parts of the time, how much is in spans: 0 to 1."""
    width = (end - begin) / columns
    parts = [0.0] * columns
    for start, stop, _ in spans if width > 0 else ():
        low, high = (start - begin) / width, (stop - begin) / width
        for i in range(min(int(low), columns - 1), min(math.ceil(high), columns)):
            parts[i] += min(high, i + 1) - max(low, i)
    return [min(1.0, part) for part in parts]


def boxes(spans, top):
    """A box for each task."""
    for low, high, bad in spans:
        yield '<rect x="%.1f" y="%d" width="%.1f" height="%d" fill="%s"/>' % (
            LEFT + low, top + 1, max(0.7, high - low - 0.5), ROW - 2, RED if bad else GREEN
        )


def areas(spans, top):
    """Of many tasks, how full each pixel's time is, in eighths; and lines where one failed."""
    full = [round(8 * part) for part in coverage(spans, 0, COLUMNS, COLUMNS)]
    path, x, bottom = [], LEFT, top + ROW - 1
    for height, same in groupby(full):
        width = sum(1 for _ in same)
        if height:
            tall = height * (ROW - 2) / 8
            path.append("M%d %dv-%gh%dv%gz" % (x, bottom, tall, width, tall))
        x += width
    yield '<path d="%s" fill="%s"/>' % ("".join(path), GREEN)
    failed = sorted({LEFT + int(high) for _, high, bad in spans if bad})
    if failed:
        lines = "".join("M%d %dv-%d" % (x, bottom, ROW - 2) for x in failed)
        yield '<path d="%s" stroke="%s"/>' % (lines, RED)


def ticks(seconds):
    """Round times, from 0 on: some five of them."""
    if seconds <= 0:
        return [0]
    power = 10 ** math.floor(math.log10(seconds / 4))
    step = next(n * power for n in (1, 2, 5, 10) if seconds / (n * power) <= 6)
    return [i * step for i in range(int(seconds / step) + 1)]


def _count(number, name):
    return "{:,} {}{}".format(number, name, "" if number == 1 else "s")


def _time(seconds):
    number, unit = (1000 * seconds, "ms") if 0 < seconds < 1 else (seconds, "s")
    return ("{:,.0f} {}" if number >= 100 else "{:.3g} {}").format(number, unit)


def of(title, records):
    """Of the metadata of tasks, each once."""
    rows, missing = {}, 0
    for md in records:
        if md["engine_id"] is None or not (md["started"] and md["completed"]):
            missing += md["status"] is None  # aborted, lost: nobody worked at it
            continue
        start, stop = md["started"].timestamp(), md["completed"].timestamp()
        row = rows.setdefault(md["engine_id"], [])
        row.append((start, max(start, stop), md["status"] != "ok"))
    for row in rows.values():
        row.sort()
    begin = min([md["submitted"].timestamp() for md in records if md["submitted"]], default=0)
    return Timeline(title, begin, rows, missing)
