# SPDX-License-Identifier: BSD-3-Clause
"""Output that comes when its call has ended, from threads that it has left behind on engines.

It goes where the call's other output went: into its result, if that is still there, and below the
cell, if it was one of %%px. One thread of a client reads it, which nothing else wakes.
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


def _file(result, event):
    if event.name == "clear_output":  # what is shown stays, too
        return
    with result._lock:
        result._pump()  # what was written before it
        result._file(event, lambda event, size, add, output: add(output))
        task = result._tasks[event.task]
        if task.metadata is not None:  # an ExecuteReply that was handed out shows its output
            result._task_metadata(event.task)
        result._tell_listeners(event)


class _Cell:
    """A cell that shows its late output."""

    def __init__(self, result, screen):
        self.ids, self._screen = frozenset(result.msg_ids), screen
        self._context = contextvars.copy_context()  # by which what is written is the cell's
        self._label, self._mid_line = "", False

    def show(self, events):
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
    """What a client reads of late output."""

    def __init__(self, client):
        self._client = weakref.ref(client)
        self._cells = deque(maxlen=CELLS)
        threading.Thread(
            target=self._run, args=(client._raw.late(),), name="phalanx-late", daemon=True
        ).start()

    def show(self, result, screen):
        """From now on late output of `result` is written to `screen`, as what the running cell writes."""
        self._cells.append(_Cell(result, screen))

    def _run(self, raw):
        closed = False
        while not closed:
            try:
                raw.sleep()
                time.sleep(GATHER_SECONDS)
            except _phalanx.ClosedError:
                closed = True
            try:
                self._take(list(iter(raw.next, None)))
            except Exception:  # what comes next may be good again
                LOGGER.exception("exception while late output was filed")

    def _take(self, events):
        client = self._client()
        known = client._known(event.parent for event in events) if client is not None else {}
        cells = tuple(self._cells)
        shown = {}  # cell: events
        for event in events:
            if event.parent in known:
                result, index = known[event.parent]
                _file(result, moved(event, index))
            for cell in cells:
                if event.parent in cell.ids:
                    shown.setdefault(cell, []).append(event)
        for cell, events in shown.items():
            cell.show(events)
