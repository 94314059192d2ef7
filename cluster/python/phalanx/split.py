# SPDX-License-Identifier: BSD-3-Clause
"""A result's tasks one by one: split() and join(), and waiting for some of them."""

import threading
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION

from . import _phalanx, error
from .deadlines import end_of, seconds_left

FOLLOW_SECONDS = 0.05  # in which a task is noticed that is awaited anew, and has its reply


def seen_as_one(parts, single=False, **options):
    """The result of these (AsyncResult, index of its task) pairs."""
    from .hubresult import JoinedResult

    return JoinedResult(parts[0][0]._client, parts, single, **options)


def has_failed(task):
    """Whether a task has its reply and came to an exception."""
    return getattr(task.reply, "failed", isinstance(task.value, error.KernelError))


class SplitFace:
    """Needs of its class: _tasks, _filed, _pump, _wait, _lock, _fname, _return_exceptions."""

    _pieces = None  # what split() gave
    _chunked = False  # each task's value is a list, a part of the whole
    _awaited = ()  # (index, function): see _on_reply

    @property
    def _count(self):
        """How many tasks there are. len() counts a map's elements."""
        return len(self._tasks)

    def split(self):
        """An AsyncResult for each of my tasks, a tuple, the same ones at each call; of a map each has
        the list of its part's values."""
        if self._count == 1:
            return (self,)
        with self._lock:
            if self._pieces is None:
                self._pieces = tuple(
                    seen_as_one(
                        [self._source(index)], not self._chunked, fname=self._fname,
                        return_exceptions=self._return_exceptions,
                    )
                    for index in range(self._count)
                )
            return self._pieces

    def _source(self, index):
        """(AsyncResult, index) of a task of mine where it was submitted."""
        return self, index

    @classmethod
    def join(cls, *async_results):
        """One AsyncResult of the tasks of several. ValueError without any."""
        if not async_results:
            raise ValueError("Must specify at least one AsyncResult to join")
        first = async_results[0]
        if len(async_results) == 1:
            return first
        parts = [(result, index) for result in async_results for index in range(result._count)]
        return seen_as_one(
            parts, fname=first._fname, return_exceptions=first._return_exceptions
        )

    # ---- waiting for some

    def _has_some(self, return_when):
        """Whether it is time to return, as far as the replies that are here say."""
        filed = self._filed
        if filed >= self._count:
            return True
        if return_when == FIRST_EXCEPTION:
            return self._has_failure()
        return return_when == FIRST_COMPLETED and filed > 0

    def _has_failure(self):
        """Whether one of the tasks that have their reply came to an exception."""
        return any(map(has_failed, self._tasks))

    def _reached(self, return_when, end):
        """Waits for what return_when says, until `end` (monotonic). Whether it is so."""
        if return_when not in (ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION):
            raise ValueError("return_when is one of concurrent.futures', not %r" % (return_when,))
        if return_when == ALL_COMPLETED:
            return self._wait(_phalanx.REPLIES, seconds_left(end))
        return self._wait_till(lambda: self._has_some(return_when), end)

    def _split_when(self, return_when, end):
        """(done, pending), sets of split()'s results, at `end` (monotonic) at the latest."""
        self._reached(return_when, end)
        self._pump()
        tasks = self._tasks
        done = {piece for piece, task in zip(self.split(), tasks) if task.reply is not None}
        return done, set(self.split()) - done

    # ---- being told

    def _on_reply(self, index, function):
        """Arranges for one call of function(), from any thread, when that task has its reply."""
        with self._lock:
            follows = bool(self._awaited)
            if follows:
                self._awaited.append((index, function))
            else:
                self._awaited = [(index, function)]
        if not follows:
            threading.Thread(target=self._follow, name="phalanx-replies", daemon=True).start()

    def _some_awaited_is_here(self):
        return any(self._tasks[index].reply is not None for index, _ in tuple(self._awaited))

    def _follow(self):
        left = True
        while left:
            self._wait_till(self._some_awaited_is_here, end_of(FOLLOW_SECONDS))
            with self._lock:
                here = [f for i, f in self._awaited if self._tasks[i].reply is not None]
                left = [a for a in self._awaited if self._tasks[a[0]].reply is None]
                self._awaited = left
            for function in here:
                function()
