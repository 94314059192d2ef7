# SPDX-License-Identifier: BSD-3-Clause
"""The face that a result shows to concurrent.futures and asyncio, and a view's Executor.

Nothing runs in the background until somebody asks to be called back. Then one thread of the client
waits, without the GIL, for the C library to name the results that are complete.
"""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import inspect
import itertools
import threading
import time
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, LOGGER, RUNNING

from . import _phalanx, error

JOIN_SECONDS = 2  # a callback that does not return must not keep the client from closing

# Here are no locks but that of a Future's Condition, which its thread may take again: a signal's
# handler or the garbage collector may run code of the user's anywhere, and that may come here.


class Watcher:
    """Calls functions once results are complete: client._watcher."""

    _thread = None

    def __init__(self, raw_client):
        self._client = raw_client
        self._wanted = {}  # key: function
        self._keys = itertools.count()

    def watch(self, raw, function):
        """function() will be called, in another thread, when `raw` has all its replies or the
        client is closed. Once for each `raw`."""
        if hasattr(raw, "on_complete"):
            raw.on_complete(function)
            return
        key = next(self._keys)
        self._wanted[key] = function
        raw.notify(key)
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="phalanx-results", daemon=True)
            if self.__dict__.setdefault("_thread", thread) is thread:  # the first of several
                thread.start()
        if self._client.closed:  # the thread may have ended
            self._call(key)

    def _run(self):
        while True:
            try:
                keys = self._client.notices(None)
            except _phalanx.ClosedError:
                break
            for key in keys or ():
                self._call(key)
        for key in sorted(self._wanted):
            self._call(key)

    def _call(self, key):
        function = self._wanted.pop(key, None)
        try:
            if function is not None:
                function()
        except Exception:  # as concurrent.futures does with callbacks
            LOGGER.exception("exception while a result was announced")

    def join(self):
        """Waits until callbacks have run. Called after the client was closed."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN_SECONDS)


class FutureFace(concurrent.futures.Future):
    """What makes a result a Future. Its state is the C library's; the base class's fields, through
    which concurrent.futures' functions wait, come into being when one of them looks."""

    _announced = False
    _face_lock = None
    _waiters = _done_callbacks = ()

    def __init__(self):  # the base class would make what is hardly ever needed
        pass

    def _on_complete(self, function):
        """Arranges for one call of function(), from any thread, when ready() has become true."""
        raise NotImplementedError

    @property
    def _condition(self):
        if self._face_lock is None:
            self._show_face()
        return self._face_lock

    def _show_face(self):
        own, condition = self.__dict__, threading.Condition()
        own.setdefault("_waiters", [])
        own.setdefault("_done_callbacks", [])
        if own.setdefault("_face_lock", condition) is condition:  # the first of several
            self._on_complete(self._announce)

    @property
    def _state(self):
        # Not before _announce(), which tells those who look now.
        if not self._announced:
            return RUNNING
        return CANCELLED_AND_NOTIFIED if self.cancelled() else FINISHED

    def _announce(self):
        with self._face_lock:
            self._announced = True
            for waiter in self._waiters:  # who take themselves out
                self._tell(waiter)
            callbacks, self._done_callbacks = self._done_callbacks, []
            self._face_lock.notify_all()
        for callback in callbacks:
            self._call_back(callback)

    def _tell(self, waiter):
        if self.cancelled():
            waiter.add_cancelled(self)
        elif self.exception() is not None:
            waiter.add_exception(self)
        else:
            waiter.add_result(self)

    def _call_back(self, callback):
        try:
            callback(self)
        except Exception:
            LOGGER.exception("exception calling callback for %r", self)

    def add_done_callback(self, fn):
        """fn(self) is called when all results are here: at once if they are, else in another
        thread and the caller's context, to which what it prints belongs. What it raises is
        logged."""
        with self._condition:
            if not self._announced and not self.ready():
                run = contextvars.copy_context().run
                self._done_callbacks.append(functools.partial(run, fn))
                return
        self._call_back(fn)

    def done(self):
        """Whether all results are here (or exceptions, or aborted tasks)."""
        return self.ready()

    def running(self):
        """Whether results are missing."""
        return not self.ready()

    def cancelled(self):
        """Whether the call ended because its tasks were aborted."""
        return self.ready() and isinstance(self._outcome_exception(), error.TaskAborted)

    def __await__(self):
        """Waits in an event loop. Cancelling that takes the tasks that have not started back from the
        engines, as abort() does, but waits for nothing."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def settle():
            if future.done():
                return
            if self.cancelled():
                future.cancel()
            elif self.exception() is not None:
                future.set_exception(self.exception())
            else:
                future.set_result(self.result())

        def tell(self):
            try:
                loop.call_soon_threadsafe(settle)
            except RuntimeError:  # the loop was closed
                pass

        self.add_done_callback(tell)
        try:
            return (yield from future)
        except asyncio.CancelledError:
            if not self.ready():
                self._take_back()
            raise

    def _take_back(self, block=False):
        """client.abort() of my tasks on those of their engines that are there yet."""
        targets, there = self._targets, self._client.ids
        if targets is not None:
            targets = [engine for engine in targets if engine in there]
            self._client._drop(self.stop())
        if targets != []:
            self._client.abort(self, targets, block)

    def _not_ours(self, *args):
        raise RuntimeError("the outcome of an AsyncResult is set by its engines alone")

    set_result = set_exception = set_running_or_notify_cancel = _not_ours


class LazyMapIterator:
    """The results of a map that takes its arguments as it needs them. Made by view.imap()."""

    def __init__(self, gen, signal_done, give_up=lambda: None):
        self._generator = gen
        self._end = signal_done
        self._give_up = give_up

    def __iter__(self):
        return self

    @error.interruptible
    def __next__(self):
        return next(self._generator)

    def cancel(self):
        """No more arguments are taken. The results of those that were come yet."""
        self._end()

    def close(self):
        """cancel(), and no more results come."""
        self._end()
        begun = inspect.getgeneratorstate(self._generator) != inspect.GEN_CREATED
        self._generator.close()
        if not begun:  # else it has done so itself
            self._give_up()


def _given_up(result):
    with contextlib.suppress(error.KernelError, _phalanx.ClosedError):
        if not result.ready():
            result._take_back()


def _whole_or_given_up(result, end):
    try:
        yield from result.iterate(end)
    finally:
        _given_up(result)


class ViewExecutor(concurrent.futures.Executor):
    """A view as an Executor (PEP 3148): view.executor, client.executor().

    Its futures are AsyncResults. Engines are neither started nor shut down by it.
    """

    def __init__(self, view):
        self.view = view
        self._shut = False
        self._submitted = set()

    @property
    def _max_workers(self):
        return len(self.view)

    def _check(self):
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _keep(self, result):
        self._submitted.add(result)
        result.add_done_callback(self._submitted.discard)
        return result

    def submit(self, fn, /, *args, **kwargs):
        """fn(*args, **kwargs) on an engine: an AsyncResult, which is a Future."""
        self._check()
        return self._keep(self.view.apply_async(fn, *args, **kwargs))

    def map(self, fn, *iterables, timeout=None, chunksize=None, **options):
        """A LazyMapIterator over the results in order. All calls are submitted at once; `timeout`
        seconds from now TimeoutError is raised for a result that is not there. When that or another
        exception ends it, or it is given up, calls that have not started are taken back. All
        run where no value is ever asked for, unless close() is called.

        With imap()'s options (ordered, max_outstanding, return_exceptions) the iterables are
        consumed as results are."""
        self._check()
        if options:
            return self.view.imap(fn, *iterables, **options)
        end = None if timeout is None else time.monotonic() + timeout
        sizes = {} if chunksize is None else {"chunksize": chunksize}
        result = self.view.map_async(fn, *iterables, **sizes)
        if not isinstance(result, concurrent.futures.Future):  # nothing to map over
            return LazyMapIterator((value for value in result), lambda: None)
        values = _whole_or_given_up(self._keep(result), end)
        return LazyMapIterator(values, result.stop, lambda: _given_up(result))

    def shutdown(self, wait=True, *, cancel_futures=False):
        """No more submissions. With `cancel_futures` what has not started is aborted: its engines are
        told once, of all. Then waits for what was submitted, if it is to."""
        self._shut = True
        submitted = list(self._submitted)  # in one step: callbacks take out what has ended
        left = [result for result in submitted if not result.ready()]
        if cancel_futures and left:
            with contextlib.suppress(error.NoEnginesRegistered):  # whose futures fail
                self.view.client.abort(left, block=False)
        if wait:
            concurrent.futures.wait(left)
