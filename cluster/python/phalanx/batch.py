# SPDX-License-Identifier: BSD-3-Clause
"""Maps over many items: small ones travel together, and nobody has to say how many.

A task of its own for each item is right while items take long, and ruinous while they take
microseconds. So a few items go alone and are timed; from then on as many are sent together as
make some work (feed.TARGET), fewer towards the end, so that engines finish together. An
engine gives up a batch after feed.PATIENCE and hands back what it has not begun (a straggler
is split); what is handed back is sent again, to whom it may concern.

`Batches` looks like a result of the C library whose tasks are the *items*: each has its own value or
its own exception, and its own output; values arrive as items.Part. Results, their order, errors and iteration
are therefore those of single items. What differs: what is written past sys.stdout (by C code, by other
programs) is filed under the item that spoke last; if an engine dies, the item that it was at is lost
(with `retries` all of its batch run again), and those of its batch that it had done, a twentieth of a
second's work, run again elsewhere, as their results died with it; if the results of a batch cannot be
pickled, its items run again, one by one, to find out whose fault it is. With a chunksize nothing
differs. An engine that died with its host, or that is not pxengine's, says nothing of items: then
all of the batch are lost.
"""

import json
import os
import threading
import time
from array import array
from collections import deque

from . import _phalanx, error
from .feed import (
    Feed, Slices, Stream, error_content, error_reply, local_error, moved, output_event,
)
from .items import Part

FEW = 128  # items that go alone without further thought
AHEAD = 1024  # values of an imap that nobody has asked for: then no more are sent
AHEAD_BYTES = 64 << 20  # or so much


def suits(f):
    """Whether calls of `f` may share a task. Those that a dependency may move may not."""
    return type(f).__name__ != "dependent" and not hasattr(f, "dependencies")


class Batches:
    """The result of a map, item by item, as the C library would have it: what AsyncResult reads.

    A thread of its own sends one batch after another, until all items have their reply.
    """

    def __init__(self, view, f, sequences, size, label=None):
        self.submitted = time.time()  # before anything is sent
        self.replied = self.finished = self.arrived = 0
        self._size = size
        self._pid = os.getpid()
        self._batches = []
        self._batch_of = array("l", [-1]) * size
        self._events = deque()
        self._news = threading.Condition()
        self._closed = self._stopped = self._discarded = False
        self._done = []  # called when all items have their reply
        self._feed = Feed(view, f, Slices(sequences, size), self, label=label)
        self._feed.feed()
        threading.Thread(target=self._run, name="phalanx-map", daemon=True).start()

    def _run(self):
        try:
            while self._more():
                self._feed.collect()
                if self._stopped:
                    self._give_up(error_reply('{"status": "aborted"}'))
        except _phalanx.ClosedError:
            pass
        finally:
            with self._news:
                self._closed = True  # unless all have come
                self._feed = None
                self._news.notify_all()
            self._tell()

    def _more(self):
        """Sends what there is room for. False when all replies and all output have come."""
        try:
            return self._feed.feed()
        except _phalanx.ClosedError:
            raise
        except Exception as e:  # no engine may run the rest
            self._give_up(local_error(e))
            return self._feed.feed()

    def _give_up(self, reply):
        for batch in self._feed.drop():
            self.failed(batch, reply)
            self.idle(batch)

    # ---- what the feed tells

    def sent(self, batch):
        with self._news:
            index = len(self._batches)
            self._batches.append(batch)
            self._batch_of[batch.first : batch.first + batch.count] = array("l", [index]) * batch.count
            self._news.notify_all()

    def _add(self, events, replied=0, finished=0):
        with self._news:
            if not self._discarded:
                self._events.extend(events)
            self.arrived += len(events)
            self.replied += replied
            self.finished += finished
            self._news.notify_all()
            complete = replied and self.replied == self._size
        if complete:
            self._tell()

    def _tell(self):
        with self._news:
            done, self._done = self._done, []
        for function in done:
            function()

    def values(self, batch, reply, values, errors):
        failed, part = {}, (batch.first, reply, values)
        if errors:
            uuid = json.loads(reply.metadata).get("engine")
            info = {"engine_id": reply.engine, "engine_uuid": uuid, "method": "apply"}
            for index, *e, kinds in errors:
                at, said = batch.first + index, {**info, "kinds": kinds} if kinds else info
                failed[at] = moved(error_reply(error_content(*e, said), reply), at)
        outputs = [output_event("error", e) for e in failed.values()]
        self._add([Part(*part, failed), *outputs], replied=len(values))

    def failed(self, batch, reply):
        items = range(batch.first, batch.first + batch.count)
        self._add([moved(reply, index) for index in items], replied=batch.count)

    def output(self, batch, event):
        self._add([moved(event, batch.first + batch.speaker)])

    def idle(self, batch):
        self._add((), finished=batch.begun)

    # ---- what a result is asked

    def __len__(self):
        return self._size

    @property
    def running(self):
        """Whether items have no reply yet. Not in a forked child."""
        return self.replied < self._size and os.getpid() == self._pid

    def newest_ids(self, most):
        """None: the feed enters its tasks into the histories as it sends them."""
        return ()

    def _check(self):
        if os.getpid() != self._pid:  # the thread that sends is not here, and its lock may be held
            raise RuntimeError("this result belongs to the process that forked")

    def peek(self):  # a forked child is told when it waits for more
        try:
            return self._events[0]
        except IndexError:
            return None

    def pop(self, event):
        if self._events and self._events[0] is event:
            self._events.popleft()

    def wait(self, until, timeout=None):
        return self._wait_until({
            _phalanx.EVENT: lambda: self._events or self.finished == self._size,
            _phalanx.REPLIES: lambda: self.replied == self._size,
            _phalanx.FINISHED: lambda: self.finished == self._size,
        }[until], timeout)

    def wait_more(self, seen, timeout=None):
        return self._wait_until(
            lambda: self.arrived > seen or self.finished == self._size, timeout
        )

    def _wait_until(self, reached, timeout):
        self._check()
        with self._news:
            self._news.wait_for(lambda: reached() or self._closed, timeout)
            if self._closed and not reached():
                raise _phalanx.ClosedError("the client was closed")
            return bool(reached())

    def task_id(self, item):
        """The msg_id of the task that an item is, or was last, part of. Waits until it is sent."""
        self._check()
        with self._news:
            self._news.wait_for(lambda: self._batch_of[item] >= 0 or self._closed)
            at = self._batch_of[item]
        return self._batches[at].task if at >= 0 else ""

    def task_engine(self, item):
        at = self._batch_of[item]
        return self._batches[at].engine if at >= 0 else -1

    def on_complete(self, function):
        """function() is called, in whatever thread, when all items have their reply."""
        with self._news:
            self._done.append(function)
            complete = self.replied == self._size or self._closed
        if complete:
            self._tell()

    def discard(self):
        """Keeps counting, keeps no events."""
        with self._news:
            self._discarded = True
            self._events.clear()

    def places(self):
        """(first item, msg_id) pairs of the tasks that were sent."""
        return [(batch.first, batch.task) for batch in list(self._batches)]

    def stop(self):
        """Sends no more. The msg_ids of what is on its way."""
        self._stopped = True
        return self.flying()

    def flying(self):
        """The msg_ids of what is on its way."""
        feed = self._feed
        return [batch.task for batch in list(feed.flying.values())] if feed else []


# ---- imap


class _Values:
    """Keeps the values that an imap has not handed out."""

    def __init__(self, ordered):
        self.ordered = ordered
        self.next = 0
        self.here = deque()  # in the order in which they go
        self.early = {}  # by index

    def held(self):
        """How many values wait here."""
        return len(self.here) + len(self.early)

    def few(self, sizes):
        """Whether there should be more: here, and behind one that is slow. sizes: the feed's."""
        ahead = min(AHEAD, AHEAD_BYTES / max(1, sizes.bytes))
        return len(self.here) < ahead and len(self.early) < ahead + 32 * min(sizes.largest, ahead)

    def _put(self, index, value):
        if not self.ordered:
            self.here.append(value)
            return
        self.early[index] = value
        while self.next in self.early:
            self.here.append(self.early.pop(self.next))
            self.next += 1

    def values(self, batch, reply, values, errors):
        for index, ename, evalue, traceback, kinds in errors:
            item = batch.first + index
            info = {
                "engine_id": reply.engine, "method": "apply", "items": range(item, item + 1),
            }
            if kinds:
                info["kinds"] = kinds
            values[index] = error.RemoteError(ename, evalue, "\n".join(traceback), info)
        for index, value in enumerate(values, batch.first):
            self._put(index, value)

    def failed(self, batch, reply):
        e = error.from_reply(json.loads(reply.content), reply.engine)
        items = range(batch.first, batch.first + batch.count)
        if isinstance(e, error.RemoteError):
            e.engine_info["items"] = items
        for index in items:
            self._put(index, e)

    def sent(self, batch):
        pass

    def output(self, batch, event):
        pass

    idle = sent


def imap(view, f, sequences, ordered=True, most=None, return_exceptions=False):
    """Sends the first items. (a generator of f of each item, a function after which no more items are
    taken). Items are taken from `sequences` as they are needed. `most`: items that are taken and
    not yielded, in flight or here (None: what keeps the engines busy, and AHEAD)."""
    values, source = _Values(ordered), Stream(sequences)
    feed = Feed(view, f, source, values, most)
    busy = feed.feed()
    return _yield(feed, values, busy, most, return_exceptions), source.end


def _yield(feed, values, busy, most, return_exceptions):
    due = False
    while busy or values.here:
        due = busy and feed.collect(wait=not values.here) or due
        ahead = due and most is None and not feed.source.slow and values.few(feed.sizes)
        if ahead or not values.here:
            busy, due = feed.feed(), False
        if values.here:
            value = values.here.popleft()
            if isinstance(value, error.KernelError) and not return_exceptions:
                raise value
            yield value
            if most is not None:
                busy, due = feed.feed(), False
