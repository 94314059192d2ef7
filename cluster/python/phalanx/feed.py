# SPDX-License-Identifier: BSD-3-Clause
"""Sends the items of a long map in batches, and takes the replies apart.

How many items go together is `Sizes`'s business, which is pure. `Feed` sends and receives; it tells a
sink what came of which item. See batch.py for why and for what users see of it.

At most 2 batches an engine (and 2) are in flight.
"""

import json
import time
from collections import deque
from itertools import islice

from . import _phalanx, calls, canning, shared
from .canning import engine_function

TARGET = 0.05  # seconds of work in a batch
A_MOMENT = TARGET / 5  # that a reply may have before the next item of a slow source
PATIENCE = 4 * TARGET  # seconds after which an engine hands the rest of a batch back
GROWTH = 8  # a batch is at most so many times larger than the largest that was measured
MOST_ITEMS = 16384
MOST_BYTES = 4 << 20  # of arguments, or of results, in a batch
TASKS_A_RESULT = 1024  # a result of the C library remembers its tasks; then comes another
LEAST = 0.004  # seconds of work in one of the last batches


class Sizes:
    """How many items the next batch holds. Pure: told what was measured, asked for a number."""

    def __init__(self, most=MOST_ITEMS):
        self.most = most
        self.seconds = None  # of an item, smoothed
        self.bytes = 0  # of an item, on its way there or back, the larger
        self.largest = 1  # that was measured

    def measured(self, items, seconds):
        """A batch of so many items took an engine so long."""
        each = max(seconds / items, 1e-9)
        if self.seconds is None:
            self.seconds = each
        else:  # the larger the batch, the more it knows; slower ones are believed sooner
            weight = max(0.2, items / (items + self.largest))
            weight = max(weight, 0.5) if each > self.seconds else weight
            self.seconds += weight * (each - self.seconds)
        self.largest = max(self.largest, items)

    def weighed(self, items, size):
        """The arguments or the results of so many items have `size` bytes."""
        self.bytes = max(size / items, self.bytes * 0.9)

    def next(self, left, engines):
        """Of `left` items (0 or None: nobody knows), with so many engines: at least 1."""
        if self.seconds is None:
            return 1
        count = min(self.most, GROWTH * self.largest)
        if self.seconds * count > TARGET:
            count = TARGET / self.seconds
        if self.bytes * count > MOST_BYTES:
            count = MOST_BYTES / self.bytes
        if left:  # of the rest half for all, but nothing too small
            share = max(left / (2 * max(1, engines)), LEAST / self.seconds)
            count = min(count, share, left)
        return max(1, int(count))


@engine_function
def _run(f, patience, *columns):
    """On the engine. (seconds, values, errors): as many values as items were begun; None where an
    error (its index, an error's content, and its classes as ours say them) is. With patience None
    there is one item, whose error is the task's. The engine is told which item is next, for its obituary.

    An item that says something sends data first: {MARK: its index}. What follows is its output.
    """
    import sys
    from builtins import (
        AttributeError, BaseException, Exception, TypeError, delattr, enumerate, getattr, len, list,
        setattr, str, type, vars, zip,
    )
    from time import perf_counter  # the user's namespace may have other things under these names
    from types import CoroutineType

    modules = sys.modules.get
    loops = getattr(getattr(modules("_phalanx_host"), "bridge", None), "loops", None)
    awaited = getattr(loops, "run_call", lambda value: value)  # ipyparallel's engines cannot
    start = perf_counter()
    if patience is None:
        value = f(*[column[0] for column in columns])
        value = awaited(value) if type(value) is CoroutineType else value
        return perf_counter() - start, [value], ()
    values, errors, speaker, hooks = [], [], [0], []
    shell = getattr(modules("IPython"), "get_ipython", lambda: None)()
    begun = getattr(modules("_phalanx_host"), "begun", lambda: None)() or [0]
    publish = getattr(modules("ipyparallel.engine.datapub"), "publish_data", None)

    def marking(call):
        def said(*args, **kwargs):
            if hooks and publish and speaker[0] != len(values):
                speaker[0] = len(values)
                sys.stdout.flush()
                sys.stderr.flush()
                publish({"px_item": speaker[0]})
            return call(*args, **kwargs)

        return said

    for owner, name in (
        (sys.stdout, "write"), (sys.stderr, "write"),
        (getattr(shell, "display_pub", None), "publish"),
        (modules("ipyparallel.engine.datapub"), "publish_data"),
        (modules("ipyparallel.datapub"), "publish_data"),
    ):
        try:
            before = vars(owner).get(name)
            setattr(owner, name, marking(getattr(owner, name)))
            hooks.append((owner, name, before))
        except (AttributeError, TypeError):  # there is none, or it is the user's own
            pass
    try:
        for begun[0], args in enumerate(zip(*columns), 1):
            try:
                value = f(*args)
                values.append(awaited(value) if type(value) is CoroutineType else value)
            except BaseException as e:
                try:
                    text = str(e)
                except Exception:
                    text = "<no text>"
                try:
                    tb = e.__traceback__  # without its first frame, this one: as of a cell
                    lines = shell.InteractiveTB.structured_traceback(type(e), e, tb)
                except Exception:
                    from traceback import format_exception

                    lines = format_exception(type(e), e, e.__traceback__.tb_next)
                kinds = None
                if modules("_phalanx_host") and getattr(type(e), "__module__", "") != "builtins":
                    kinds = [
                        "%s:%s" % (getattr(k, "__module__", ""), k.__qualname__)
                        for k in type(e).__mro__
                    ]
                errors.append((len(values), type(e).__name__, text, list(lines), kinds))
                values.append(None)
            if perf_counter() - start > patience:
                break
    finally:  # an interrupt may come between two items
        begun[0] = 0
        while hooks:
            owner, name, before = hooks.pop()
            setattr(owner, name, before) if before else delattr(owner, name)
    return perf_counter() - start, values, errors


MARK = "px_item"  # see _run


class _Batch:
    __slots__ = ("first", "columns", "count", "begun", "speaker", "engine", "task")

    def __init__(self, first, columns, count):
        self.first, self.columns, self.count = first, columns, count
        self.begun = count  # of them; fewer once the rest was handed back
        self.speaker = 0  # which of them the output is of that arrives
        self.engine = -1
        self.task = ""  # msg_id

    def split(self, at):
        """(the first `at` items, the others)."""
        return (
            _Batch(self.first, [c[:at] for c in self.columns], at),
            _Batch(self.first + at, [c[at:] for c in self.columns], self.count - at),
        )


class Slices:
    """Items of sequences whose length is known."""

    slow = False

    def __init__(self, sequences, size):
        self.sequences, self.left, self.at = sequences, size, 0

    def take(self, count):
        low, count = self.at, min(count, self.left)
        if not count:
            return None
        self.at += count
        self.left -= count
        return _Batch(low, [s[low : low + count] for s in self.sequences], count)


class Stream:
    """Items of iterables, which are not looked at before their time."""

    left = None  # nobody knows
    slow = False  # the last ones were

    def __init__(self, iterables):
        self.rows, self.at = zip(*iterables), 0

    def take(self, count):
        """So many, or fewer: those that came within the time of a batch."""
        rows, end = [], time.monotonic() + TARGET
        while len(rows) < count and time.monotonic() <= end:
            some = list(islice(self.rows, min(len(rows) + 1, count - len(rows))))
            if not some:
                break
            rows += some
        self.slow = time.monotonic() > end
        if not rows:
            return None
        self.at += len(rows)
        return _Batch(self.at - len(rows), [list(c) for c in zip(*rows)], len(rows))

    def end(self):
        """No more items are taken."""
        self.rows = iter(())


_final = frozenset((
    "EngineError", "TaskAborted", "TaskTimeout", "ImpossibleDependency", "DependencyTimeout",
    "InvalidDependency",
))  # made by the scheduler: they are each item's


class Feed:
    """Sends batches and takes their replies apart; for one thread. `sink` is told:

    sent(batch)
    values(batch, reply, values, errors)   of the first items of the batch, in order
    failed(batch, reply)                   all of them have this reply
    output(batch, event)                   a stream's text, a display: of its item `speaker`
    idle(batch)                            of the items begun all output has come

    With a limit, so many items are in flight or held() by the sink. label: as View._metadata's.
    """

    def __init__(self, view, f, source, sink, limit=None, label=None):
        self.client, self.source, self.sink, self.limit = view.client, source, sink, limit
        self.view = view
        self.targets, self.form = view._scope()
        self.metadata = view._metadata(self.form, label=label)
        self.function = calls.prepare(self.form, f)
        self.run = self.form.pack_function(_run)
        # ipyparallel's form looks for what pickle cannot do in short lists only.
        self.sizes = Sizes(canning.ITEM_THRESHOLD - 1 if self.form is canning else MOST_ITEMS)
        self.back = deque()  # to be sent again
        self.sent = 0
        self.raw = None
        self.flying = {}  # index of the task in raw: its batch, until the reply
        self.open = {}  # the same, until all output has come

    # ---- sending

    def _room(self):
        """How many items may go now."""
        if self.raw is not None and len(self.raw) >= TASKS_A_RESULT:
            if self.open:
                return 0
            self.raw = None
        engines = len(self.client.ids if self.targets is None else self.targets) or 1
        if len(self.flying) >= 2 * engines + 2:
            return 0
        count = self.sizes.next(self.source.left, engines)
        if self.limit:
            free = self.limit - sum(batch.count for batch in self.flying.values())
            free -= self.sink.held()
            count = min(count, -(-self.limit // engines), free)
        return count

    def _take(self, count):
        if not self.back:
            return self.source.take(count)
        batch = self.back.popleft()
        if batch.count > count:
            batch, rest = batch.split(count)
            self.back.appendleft(rest)
        return batch

    def feed(self):
        """Sends what there is room for; where the source is slow, until something has come. False
        when all replies and all output have come."""
        while True:
            count = self._room()
            batch = self._take(count) if count > 0 else None
            if batch is None:
                return bool(self.open)
            self._send(batch)
            if self.source.slow and self.raw is not None and self.raw.wait(_phalanx.EVENT, A_MOMENT):
                return True

    def _pack(self, batch):
        patience = None if batch.count == 1 else PATIENCE
        return calls.pack_map(self.form, self.run, self.function, [patience, *batch.columns])

    def _send(self, batch):
        try:
            buffers = self._pack(batch)
        except Exception as e:
            if not self.sent:
                raise  # where the map was asked for
            if batch.count > 1:
                self._one_by_one(batch)
            else:
                self.sink.failed(batch, local_error(e))
                self.sink.idle(batch)
            return
        self.sizes.weighed(batch.count, _size(buffers))
        try:
            self.raw = self._submit(buffers)
        except Exception:
            self.back.appendleft(batch)
            raise
        if shared.packed.items:
            shared.hold(self.raw)
        index = len(self.raw) - 1
        batch.task = self.raw.task_id(index)
        self.flying[index] = self.open[index] = batch
        self.client._enter(self.view, [batch.task])
        self.sent += 1
        self.sink.sent(batch)

    def _submit(self, buffers):
        """To those of the view's engines that are there yet."""
        while True:
            try:
                return self.client._raw.submit(
                    _phalanx.APPLY, _phalanx.BALANCED, self.targets, metadata=self.metadata,
                    buffers=buffers, into=self.raw,
                )
            except IndexError:  # one has died
                left = [engine for engine in self.targets or () if engine in self.client.ids]
                if not left or left == self.targets:
                    raise
                self.targets = left

    def drop(self):
        """Forgets what was not sent: the batches."""
        rest = [*self.back]
        batch = self.source.take(MOST_ITEMS) if self.source.left else None
        while batch is not None:
            rest.append(batch)
            batch = self.source.take(MOST_ITEMS) if self.source.left else None
        self.back.clear()
        return rest

    # ---- receiving

    def collect(self, wait=True):
        """Waits until something has come, and hands it on. Whether there were replies."""
        if wait:
            self.raw.wait(_phalanx.EVENT, None)
        flying, event = len(self.flying), self.raw.next()
        while event is not None:
            if event.type == _phalanx.REPLY:
                self._reply(self.flying.pop(event.task), event)
            elif event.type == _phalanx.IDLE:
                self.sink.idle(self.open.pop(event.task))
            else:
                self._output(self.open[event.task], event)
            event = self.raw.next()
        return len(self.flying) < flying

    def _output(self, batch, event):
        if event.name == "data_message" and json.loads(event.content).get("keys") == [MARK]:
            index = canning.unpack_result(event.buffers)[MARK]
            if isinstance(index, int) and 0 <= index < batch.count:
                batch.speaker = index
                return
        self.sink.output(batch, event)

    def _reply(self, batch, reply):
        batch.engine = reply.engine
        if reply.failed:
            content = json.loads(reply.content)
            begun = content.get("px_begun")
            if begun == 0:
                self._again(batch)
                return
            if isinstance(begun, int) and 0 < begun <= batch.count and batch.count > 1:
                self._all_but_one(batch, begun - 1, reply)
                return
            final = reply.lost or content.get("status") == "aborted"
            if batch.count == 1 or final or content.get("ename") in _final:
                self.sink.failed(batch, reply)
            else:
                self._one_by_one(batch)
            return
        try:
            seconds, values, errors = self.form.unpack_result(reply.buffers)
        except Exception as e:
            if batch.count > 1:
                self._one_by_one(batch)
            else:
                self.sink.failed(batch, local_error(e, reply))
            return
        self.sizes.measured(len(values), seconds)
        self.sizes.weighed(len(values), _size(reply.buffers))
        if len(values) < batch.count:
            self.back.append(batch.split(len(values))[1])
            batch.begun = len(values)
        batch.columns = None
        self.sink.values(batch, reply, values, errors)

    def _again(self, batch):
        """The engine died at another task: of this one nothing had begun, or all was done."""
        self.back.append(batch.split(0)[1])
        batch.begun, batch.columns = 0, None

    def _all_but_one(self, batch, at, reply):
        """The engine died at that item, and with it the results of those before it."""
        before, rest = batch.split(at)
        item, after = rest.split(1)
        self.back.extend(part for part in (before, after) if part.count)
        batch.begun, batch.columns = 1, None
        self.sink.failed(item, reply)

    def _one_by_one(self, batch):
        """The batch itself failed, not one of its items."""
        batch.begun = 0
        rest = batch
        while rest.count > 1:
            one, rest = rest.split(1)
            self.back.append(one)
        self.back.append(rest)


def _size(buffers):
    return sum(b.nbytes if isinstance(b, memoryview) else len(b) for b in buffers)


# ---- events, as the C library makes them


def error_reply(content, like=None):
    """A reply made here; `like`: the one in whose place it stands."""
    engine, metadata, header = (like.engine, like.metadata, like.header) if like else (-1, "{}", "{}")
    return _phalanx.Event((
        _phalanx.REPLY, 0, engine, True, like is None, None, None, content, metadata, header, [],
        time.time(),
    ))


def error_content(ename, evalue, traceback=(), engine_info=None):
    return json.dumps({
        "status": "error", "ename": ename, "evalue": evalue, "traceback": list(traceback),
        "engine_info": engine_info or {},
    })


def local_error(e, like=None):
    """A reply that says what went wrong on this side."""
    return error_reply(error_content(type(e).__name__, str(e)), like)


def output_event(kind, reply):
    """A message of that type, with the content of a reply, as engines publish errors."""
    return _phalanx.Event((
        _phalanx.OUTPUT, reply.task, reply.engine, False, False, kind, None, reply.content, "{}",
        "{}", [], reply.received,
    ))


def moved(event, task):
    """The event as that of another task."""
    return _phalanx.Event((event.type, task, *event[2:]))
