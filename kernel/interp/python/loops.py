# SPDX-License-Identifier: BSD-3-Clause
"""asyncio's loop of each thread that runs cells, and the windows that live beside the main one.

Cells run while their thread's loop counts as running, so that `asyncio.create_task` works in them as
in other kernels; C lets the main thread's run between cells, too.
"""

import itertools
import sys
import threading
import traceback
import types

import _phalanx_host as host

MOST_DELIVERIES = 1000  # of an interrupt to what a cell awaits


class Loops:
    def __init__(self, bridge):
        self._bridge = bridge
        self._own = threading.local()
        self._idling = False
        self._toolkit = None

    def forget(self):
        """In a forked child: the parent's are its own."""
        self._toolkit = None
        if self._idling:
            self._own.loop.stop()  # it shares its selector with the parent's
        self._own = threading.local()

    def end_thread(self):
        """Closes this thread's, if it has made one."""
        loop = getattr(self._own, "loop", None)
        if loop is not None:
            loop.close()

    @property
    def current(self):
        """This thread's. Between requests C lets that of the interpreter thread run."""
        loop = self._made()
        if loop is None:
            import asyncio

            loop = self._own.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
        return loop

    def _made(self):
        """This thread's, if there is one: ours, or what a function that was applied got from
        asyncio.get_event_loop(), which makes one where no cell has run yet."""
        loop = getattr(self._own, "loop", None)
        if loop is None and "asyncio" in sys.modules and sys.version_info < (3, 14):
            policy = sys.modules["asyncio"].get_event_loop_policy()
            loop = self._own.loop = getattr(getattr(policy, "_local", None), "_loop", None)
        return None if loop is None or loop.is_closed() else loop

    def running(self):
        """A block in which this thread's loop counts as running."""
        return Running(self)

    def run_call(self, coroutine):
        """What a function that was applied awaits, in the loop of the thread that runs it."""
        self.current  # which counts as running
        own, code = types.SimpleNamespace(interrupted=False), coroutine.cr_code
        with self.running():
            try:
                return self._run(coroutine, own)
            except BaseException as error:
                trace = error.__traceback__  # without asyncio's part
                while trace is not None and trace.tb_frame.f_code is not code:
                    trace = trace.tb_next
                if own.interrupted and type(error).__name__ == "CancelledError":
                    raise KeyboardInterrupt().with_traceback(trace) from None
                raise error.with_traceback(trace)

    def run_coroutine(self, coroutine):
        """Runs a cell that awaits."""
        return self._run(coroutine, self._bridge.shell.px_own)

    def _run(self, coroutine, own):
        """An interrupt is delivered inside the coroutine, where its `finally` blocks and context
        managers see it, and noted in `own`; one that lasts may keep a loop that is not asyncio's
        from getting there."""
        loop = self.current
        _count_as_running(loop, False)
        task = loop.create_task(coroutine)
        try:
            for deliveries in itertools.count(1):
                try:
                    return loop.run_until_complete(task)
                except KeyboardInterrupt:
                    if task.done() or deliveries == MOST_DELIVERIES:
                        raise
                    own.interrupted = True
                    task.cancel()
        finally:
            _count_as_running(loop, True)

    def note_background(self):
        """Tells C what the loop has to do between requests."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = self.current if self._toolkit else self._made()
        if loop is None:
            host.background(False, -1)
            return
        try:
            busy = self._toolkit or loop._ready or loop._scheduled
            host.background(bool(busy), loop._selector.fileno())
        except (AttributeError, OSError, ValueError):  # another kind of loop
            host.background(True, -1)

    def idle(self, fd):
        """Lets the loop run until `fd` can be read, or the toolkit is to have a turn."""
        loop = self.current
        loop.add_reader(fd, loop.stop)
        self._idling = True
        turn = None
        try:
            if self._toolkit is not None:
                turn = self._let_toolkit_run(loop)
            loop.run_forever()
        except (KeyboardInterrupt, SystemExit):
            pass
        finally:
            self._idling = False
            if turn is not None:
                turn.cancel()
            if not self._bridge.child:
                loop.remove_reader(fd)
                self.note_background()

    # ---- windows -----------------------------------------------------------

    def use_toolkit(self, name):
        """From now on that toolkit's windows live between cells; None: no windows do."""
        if name is None:
            self._toolkit = None
            return
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("windows belong to the main shell")
        module = self._bridge.embedded("toolkits")
        try:
            self._toolkit = module.create(name)
        except module.Unavailable as error:
            raise RuntimeError(str(error)) from None

    def _let_toolkit_run(self, loop):
        """Until the loop has something to do; returns what stops that in turn."""
        module = self._bridge.embedded("toolkits")
        try:
            if getattr(loop, "_ready", True) or loop._scheduled:
                self._toolkit.turn()
                return loop.call_later(module.TURN, loop.stop)
            with module.Noticed(loop):
                self._toolkit.wait(loop._selector.fileno())
        except Exception:
            self._toolkit = None
            host.log("the windows are left alone: " + traceback.format_exc().strip())
        return loop.call_soon(loop.stop)


def _count_as_running(loop, running):
    """For asyncio.get_running_loop(), and for loop.is_running() where the loop lets us."""
    import asyncio

    asyncio._set_running_loop(loop if running else None)
    if hasattr(loop, "_thread_id"):
        loop._thread_id = threading.get_ident() if running else None


class Running:
    """A thread's loop counts as running while a cell does, if anything may want one."""

    def __init__(self, loops):
        self.loops = loops
        self.loop = loops.current if "asyncio" in sys.modules else None

    def __enter__(self):
        if self.loop is not None:
            _count_as_running(self.loop, True)

    def __exit__(self, *error):
        if self.loop is not None:
            _count_as_running(self.loop, False)
        self.loops.note_background()
