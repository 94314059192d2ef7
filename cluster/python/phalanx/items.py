# SPDX-License-Identifier: BSD-3-Clause
"""The result of a long map (batch.py), whose tasks are its items.

Of most items nobody asks but for the value. So the values lie in one list, and an item gets a Task,
as AsyncResult knows it, when it has failed or printed, or when its metadata are asked for.
"""

from array import array

from . import _phalanx, error, mapresult
from .split import has_failed
from .tasks import Task


class Part:
    """The values of items that came in one reply, from the first on. failed: {index: its reply}."""

    __slots__ = ("first", "reply", "values", "failed")

    def __init__(self, first, reply, values, failed):
        self.first, self.reply, self.values, self.failed = first, reply, values, failed


class _Reply:
    """An item's reply: its batch's, but for the value."""

    __slots__ = ("task", "reply", "buffers")
    type, failed, lost = _phalanx.REPLY, False, False

    def __init__(self, task, reply, value):
        self.task, self.reply, self.buffers = task, reply, [value]

    def __getattr__(self, name):
        return getattr(self.reply, name)


class Tasks:
    """A sequence of Task objects, which come to be when they are asked for."""

    def __init__(self, size):
        self.values = [None] * size
        self.own = {}  # index: the Task of an item that has one
        self._replies = [None] * size

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        task = self.own.get(index)
        if task is None:
            task = self.own[index] = self._make(index)
        return task

    def __iter__(self):
        for index in range(len(self.values)):
            yield self.own.get(index) or self._make(index)

    def _make(self, index):
        task = Task()
        if self._replies[index] is not None:
            self._fill(index, task)
        return task

    def _fill(self, index, task):
        task.reply = _Reply(index, self._replies[index], self.values[index])

    def put(self, part):
        """Files the values of a part."""
        end = part.first + len(part.values)
        self.values[part.first : end] = part.values
        self._replies[part.first : end] = [part.reply] * len(part.values)
        if self.own:
            for index in self.own.keys() & range(part.first, end):
                self._fill(index, self.own[index])
        for index, reply in part.failed.items():
            self[index].reply = reply

    def has_reply(self, index):
        """Whether an item has its reply."""
        if self._replies[index] is not None:
            return True
        return index in self.own and self.own[index].reply is not None


class AsyncMapResult(mapresult.AsyncMapResult):
    """That of batch.Batches."""

    def __init__(self, client, raw, **kwargs):
        super().__init__(client, raw, unpack=None, joiner=None, **kwargs)
        self._order = array("l")

    def _make_tasks(self):
        return Tasks(len(self._raw))

    def _file(self, event, add_once=None):
        if not isinstance(event, Part):
            super()._file(event, add_once)
            return
        self._tasks.put(event)
        indices = range(event.first, event.first + len(event.values))
        if not self._order or self._order[-1] != indices[-1]:  # else it is filed once more
            self._order.extend(indices)

    def _tell_listeners(self, event):
        if not isinstance(event, Part):  # nothing that is shown
            super()._tell_listeners(event)

    def _has_failure(self):
        return any(map(has_failed, self._tasks.own.values()))

    def _has_reply(self, index):
        return self._tasks.has_reply(index)

    def _read(self, index, task):
        return super()._read(index, task) if task.reply.failed else task.reply.buffers

    def _items_of(self, index):
        return range(index, index + 1)

    def _value(self, index):
        """As a part of the map has it: in a list."""
        if index in self._tasks.own:
            return super()._value(index)
        return [self._tasks.values[index]]

    def _values(self):
        values = self._tasks.values.copy()
        for index in self._tasks.own:
            value = self._value(index)
            values[index] = value if isinstance(value, error.KernelError) else value[0]
        return values

    def _reconstruct(self, values):
        return values
