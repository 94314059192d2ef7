# SPDX-License-Identifier: BSD-3-Clause
"""Output that comes when its cell has ended, from threads that it has left behind on engines.

It goes where the cell's other output went: below the cell, and into its result, if that is still
there. One thread of a client reads it, which begins with the first cell, and which nothing else
wakes.
"""

import contextvars
import json
import threading
import time
import weakref
from collections import deque
from concurrent.futures._base import LOGGER

from . import _magics, _phalanx
from .feed import moved

CELLS = 64  # whose late output is shown: the last ones
GATHER_SECONDS = 0.15  # for engines that say the same to be shown as one


def _label(name, engines):
    """"[stdout:0-3]"; without numbers where the client has none for who speaks."""
    known = [engine for engine in engines if engine >= 0]
    return "[%s:%s]" % (name, _magics.ranges(known)) if known else "[%s]" % name


class _Cell:
    """A cell whose late output is wanted. screen: None when it is only filed."""

    def __init__(self, result, screen):
        self._result, self._screen = weakref.ref(result), screen
        self.places = {result._task_id(index): index for index in range(len(result._raw))}
        self._context = contextvars.copy_context()  # by which what is written is the cell's
        self._label, self._mid_line = "", False

    def file(self, event):
        result = self._result()
        if result is not None and event.name != "clear_output":  # what is shown stays, too
            with result._lock:
                result._pump()  # what was written before it
                result._file(event, lambda event, size, add, output: add(output))

    def show(self, events):
        if self._screen is not None:
            self._context.run(self._show, events)

    def _show(self, events):
        said = {}  # (stream, engine): text
        for event in events:
            if event.type == _phalanx.STREAM:
                key = event.name, event.engine
                said[key] = said.get(key, "") + event.text
        alike = {}  # (stream, text): engines
        for (stream, engine), text in said.items():
            alike.setdefault((stream, text), []).append(engine)
        for (stream, text), engines in alike.items():
            self._write(stream, _label(stream, engines) + " \n", text)
        for event in events:
            if event.name in ("display_data", "update_display_data"):
                self._display(event.engine, json.loads(event.content), event.name != "display_data")

    def _write(self, stream, label, text):
        if label != self._label:
            self._label, text = label, "\n" * self._mid_line + label + text
        self._mid_line = not text.endswith("\n")
        self._screen.write(stream, text)

    def _display(self, engine, content, update):
        if not isinstance(content.get("data"), dict):
            return
        known = (content.get("transient") or {}).get("display_id")
        transient = {} if known is None else {"display_id": "engine%d-%s" % (engine, known)}
        if not update:
            self._screen.display({"text/plain": _label("output", [engine])}, None, None, False)
        self._screen.display(content["data"], content.get("metadata"), transient, update)


class Late:
    """What a client reads of its cells' late output."""

    _thread = None

    def __init__(self, raw_client):
        self._client = raw_client
        self._cells = deque(maxlen=CELLS)

    def mind(self, result, screen):
        self._cells.append(_Cell(result, screen))
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._run, args=(self._client.late(),), name="phalanx-late", daemon=True
            )
            self._thread.start()

    def _run(self, raw):
        closed = False
        while not closed:
            try:
                raw.sleep()
                time.sleep(GATHER_SECONDS)
            except _phalanx.ClosedError:
                closed = True
            try:
                self._take(raw)
            except Exception:  # what is shown next may be good again
                LOGGER.exception("exception while late output was shown")

    def _take(self, raw):
        shown = {}  # cell: events
        while (event := raw.next()) is not None:
            for cell in reversed(tuple(self._cells)):
                if event.parent in cell.places:
                    event = moved(event, cell.places[event.parent])
                    cell.file(event)
                    shown.setdefault(cell, []).append(event)
                    break
        for cell, events in shown.items():
            cell.show(events)


def mind(result, screen):
    """From now on late output of `result` is filed there, and written to `screen`, if that is not None,
    as what the running cell writes."""
    known = result._client.__dict__
    late = known.get("_late") or known.setdefault("_late", Late(result._client._raw))
    late.mind(result, screen)
