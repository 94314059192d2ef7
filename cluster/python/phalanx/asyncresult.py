# SPDX-License-Identifier: BSD-3-Clause
"""What becomes of submitted work: AsyncResult.

A result reads events from the C library when somebody asks; nothing runs in the background here.
What has been read belongs to the result object and goes with it.
"""

import json
import sys
import threading
import warnings
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED
from datetime import datetime, timezone

from . import _phalanx, canning, display, error
from .deadlines import end_of, seconds_left
from .feed import error_reply, moved
from .futures import FutureFace
from .split import SplitFace
from .tasks import METADATA_KEYS, ExecuteReply, Metadata, Task, date_of, output_handlers
from .times import OUTPUT_SECONDS, TimesFace

_CLOSED = json.dumps({
    "status": "error", "ename": "EngineError", "traceback": [],
    "evalue": "the client was closed while results were missing; connect a new one, whose "
              "get_result(msg_ids) asks the controller for them",
})
CANCEL_SECONDS = 0.1  # how long cancel() waits to see whether the tasks were still queued


class TooEarly(RuntimeError, AssertionError):
    """Asked before the results are here."""


class TooLate(RuntimeError, AssertionError):
    """Asked when the results are here."""


class _Lazy:
    """An attribute that is made when it is first looked at, of which most results have no need."""

    def __init__(self, make):
        self._make = make

    def __set_name__(self, owner, name):
        self._name = name

    def __get__(self, result, owner=None):
        if result is None:
            return self
        return result.__dict__.setdefault(self._name, self._make(result))  # one for all threads


class AsyncResult(SplitFace, TimesFace, FutureFace):
    """The results of a call on one or more engines, which may still be running.

    get() returns them, or raises what the call raised. With a single target it is one value,
    otherwise a list in the order of the targets. It is a concurrent.futures.Future, and can be
    awaited. Times are seconds; of time-outs, None and negative ones wait for ever.

    The tasks' metadata are attributes and items: ar.stdout, ar.engine_id, ar["started"], … one
    value with a single target, else a list.
    """

    owner = True  # what arrives is kept by this object alone
    _kind = None  # what users know it as, if not by its class's name
    # Lists once there is something in them: thousands of results may wait, and the collector goes
    # through every list again and again.
    _order = ()  # indices of tasks in the order of their replies
    _listeners = ()  # called with each event that was filed
    _got = None  # (its value,) once a plain one was got
    _outcome = None  # (values, exception) once gathered
    _closed = False  # results are missing for ever
    _adding = None  # (event, how much there was before its output)
    _label = None  # what the tasks are filed under
    _lent = None  # weak references to buffers that are being sent (track=True)
    _raw = None
    _lock = _Lazy(lambda self: threading.RLock())
    _tasks = _Lazy(lambda self: self._make_tasks())
    msg_id: "str | list[str]"
    submitted: "datetime | list[datetime]"
    started: "datetime | list[datetime]"
    completed: "datetime | list[datetime]"
    received: "datetime | list[datetime]"
    engine_id: "int | list[int]"
    engine_uuid: "str | list[str]"
    status: "str | list[str]"
    stdout: "str | list[str]"
    stderr: "str | list[str]"
    outputs: list
    error: "error.RemoteError | list | None"
    execute_result: "dict | list | None"
    execute_input: "str | list | None"
    data: "dict | list[dict]"
    follow: list
    after: list
    label: object

    def __init__(
        self, client, raw, unpack, fname="unknown", targets=None, single=False,
        method="apply", return_exceptions=False,
    ):
        self._client = client
        self._raw = raw
        self._unpack = unpack
        self._fname = fname
        self._targets = targets
        self._single = single
        self._method = method
        self._return_exceptions = return_exceptions
        self._plain = single and method == "apply" and type(self) is AsyncResult

    def _make_tasks(self):
        return [Task() for _ in range(len(self._raw))]

    def __del__(self):
        try:
            if self._raw is not None:
                self._client._live.pop(id(self), None)
                if self._raw.running:
                    self._client._let_go(self._raw)
        except (AttributeError, TypeError):  # at the interpreter's end, when modules are empty
            pass

    @property
    def _submitted(self):
        return datetime.fromtimestamp(self._raw.submitted, timezone.utc)

    # ---- filing what arrives

    def _pump(self, most=sys.maxsize):
        """Files what has arrived, so many events at most. How many there were."""
        with self._lock:
            for taken in range(most):
                event = self._raw.peek()
                if event is None:
                    return taken
                self._take(event)
        return most

    def _take(self, event):
        """Files the event that was peeked at, and lets it go, also if it cannot be filed. One that an
        interrupt falls upon is filed once more; a signal's handler may file and take it, too."""
        try:
            self._file(event)
        except Exception:
            self._raw.pop(event)
            raise
        self._raw.pop(event)
        self._adding = None
        self._tell_listeners(event)

    def _tell_listeners(self, event):
        for listener in self._listeners:
            listener(event)

    def _file(self, event, add_once=None):
        add_once = add_once or self._add_once
        task = self._tasks[event.task].taking(event)
        if event.type == _phalanx.REPLY:
            self._arrived(event.task)
            task.reply = event
        elif event.type == _phalanx.STREAM:
            text = task.more_text("stderr" if event.name == "stderr" else "stdout")
            add_once(event, text.size, text.add, event.text)
        elif event.type == _phalanx.IDLE:
            task.finished = True
            if task.metadata is not None:  # an ExecuteReply that was handed out shows its output
                self._task_metadata(event.task)
        elif event.name == "data_message":
            task.data.update(canning.unpack_result(event.buffers))
        elif event.name == "display_data":
            outputs = task.more_outputs()
            add_once(event, outputs.__len__, outputs.append, json.loads(event.content))
        elif event.name in output_handlers:
            output_handlers[event.name](task, json.loads(event.content))

    def _add_once(self, event, size, add, output):
        """add(output), unless that was done before an interrupt, or by a signal's handler."""
        if self._adding is None or self._adding[0] is not event:
            self._adding = event, size()
        if size() == self._adding[1] and self._raw.peek() is event:
            add(output)

    def _arrived(self, index):
        """A task has its reply. Once more for the last one changes nothing."""
        if isinstance(self._order, tuple):
            self._order = []
        if not self._order or self._order[-1] != index:
            self._order.append(index)

    @error.interruptible
    def _wait(self, until, timeout):
        timeout = None if timeout is None or timeout < 0 else timeout
        try:
            done = self._raw.wait(until, timeout)
        except _phalanx.ClosedError:
            self._end()
            return True
        self._pump()
        return done

    @error.interruptible
    def _wait_till(self, reached, end):
        """Files what comes until reached(), which looks at what was filed, by whichever thread. Whether
        that was before `end` (monotonic; None: no end)."""
        while True:
            seen = self._raw.arrived
            self._pump()
            if reached():
                return True
            left = seconds_left(end)
            if left == 0:
                return False
            try:
                self._raw.wait_more(seen, left)
            except _phalanx.ClosedError:
                self._end()

    def _end(self):
        """The client was closed: what has not come never will."""
        with self._lock:
            self._pump()
            for index, task in enumerate(self._tasks):
                if task.reply is None:
                    self._closed = True
                    self._file(moved(error_reply(_CLOSED), index))
                task.finished = True

    def _on_complete(self, function):
        self._client._watcher.watch(self._raw, function)

    def _task_id(self, index):
        return self._raw.task_id(index)

    def _task_engine(self, index):
        """The engine that a task is known to be on, or None."""
        engine = self._raw.task_engine(index)
        return engine if engine >= 0 else None

    def _task_method(self, index):
        return self._method

    def _wholes(self):
        """The results whose tasks mine are, in an order that is the same for all."""
        return [self]

    def _listen(self, function):
        """function(event) is called with what is filed from now on. (result, listener) pairs: what
        to remove from whose _listeners."""
        self._listeners = [*self._listeners, function]
        return [(self, function)]

    def _unlisten(self, function):
        """It is not at work in any thread, nor called again, when this returns."""
        with self._lock:
            self._listeners.remove(function)

    @property
    def _replied(self):
        return self._raw.replied

    @property
    def _filed(self):
        """How many tasks' replies have been read."""
        return len(self._order)

    def _value(self, index):
        """The value of a task that has its reply, or the exception in its place."""
        task = self._tasks[index]
        if not task.unpacked:
            task.value = self._read(index, task)
            task.unpacked = True
        return task.value

    def _read(self, index, task):
        reply = task.reply
        if reply.failed:
            return error.from_reply(json.loads(reply.content), reply.engine, self._method)
        if self._method == "execute":
            md = self._task_metadata(index)
            return ExecuteReply(md["msg_id"], json.loads(reply.content), md)
        return self._got[0] if self._got else self._unpack(reply.buffers)

    @error.interruptible
    def _get_plain(self, timeout):
        """The value of one successful call of whose task nobody has asked more yet, as (value,); else
        None, and nothing has changed."""
        value = self._raw.value(self._unpack, timeout)
        if value is NotImplemented:
            return None
        return self.__dict__.setdefault("_got", (value,))  # one for all threads

    # ---- waiting

    def wait(self, timeout=-1, return_when=None):
        """Waits until all results are here, at most `timeout` seconds. Whether they are.
        return_when: one of concurrent.futures' constants. Then waits for that, and returns (done,
        pending): sets of the results that split() gives."""
        if return_when is not None:
            return self._split_when(return_when, end_of(timeout))
        return self._wait(_phalanx.REPLIES, timeout)

    def wait_for_output(self, timeout=-1):
        """Waits until all results and all output are here. Whether they are."""
        return self._wait(_phalanx.FINISHED, timeout)

    def ready(self):
        """Whether all results are here."""
        return self.wait(0)

    def successful(self):
        """Whether the call raised nothing. RuntimeError when it has not ended."""
        if not self.ready():
            raise TooEarly("Cannot check successful() if not done.")
        return self._gather()[1] is None

    def _values(self):
        return [self._value(i) for i in range(len(self._tasks))]

    def _gather(self):
        with self._lock:
            if self._outcome is None:
                values = self._values()
                self._outcome = values, self._exception_among(values)
            return self._outcome

    def _outcome_exception(self):
        return self._gather()[1]

    def _exception_among(self, values):
        if self._single:
            return values[0] if isinstance(values[0], error.KernelError) else None
        failed = [v for v in values if isinstance(v, error.KernelError)]
        if failed and all(isinstance(v, error.TaskAborted) for v in failed):
            return failed[0]
        if self._closed:  # one reason for all
            return next(v for v in failed if isinstance(v, error.EngineError))
        try:
            error.collect_exceptions(values, self._fname)
        except error.CompositeError as e:
            return e
        return None

    def _reconstruct(self, values):
        return values[0] if self._single else values

    def _require_ready(self, timeout=0):
        if not self.wait(timeout):
            raise error.TimeoutError(
                "Result not ready. %d of %d tasks have ended; get(timeout) waits longer, abort() "
                "takes back those that have not started" % (self._replied, self._count)
            )

    def get(self, timeout=None, return_exceptions=None, return_when=None):
        """The results, when they arrive. TimeoutError after `timeout` seconds; RemoteError or CompositeError
        for what was raised remotely, unless `return_exceptions`, which puts exceptions among the
        results. With concurrent.futures.FIRST_EXCEPTION as return_when the first is raised at once."""
        if self._plain and return_when is None:
            got = self._got or self._get_plain(timeout)
            if got is not None:
                return got[0]
            timeout = 0  # it has passed, or the reply is here
        if return_when == FIRST_COMPLETED:
            warnings.warn("get() waits for all results, whatever comes first", stacklevel=2)
        elif return_when not in (None, ALL_COMPLETED):
            for piece in self.wait(timeout, return_when)[0]:
                if not self.ready() and not piece.successful():
                    return piece.get(return_exceptions=return_exceptions)
            timeout = 0
        end = end_of(timeout)
        self._require_ready(timeout)
        values, exception = self._gather()
        if self._method == "execute" and exception is None:
            left = seconds_left(end)
            self.wait_for_output(OUTPUT_SECONDS if left is None else min(left, OUTPUT_SECONDS))
        if return_exceptions is None:
            return_exceptions = self._return_exceptions
        if exception is not None and not return_exceptions:
            raise exception
        return self._reconstruct(values)

    def result(self, timeout=None):
        """get(timeout)."""
        return self.get(timeout)

    def exception(self, timeout=None):
        """The exception that get() would raise, or None. TimeoutError after `timeout` seconds."""
        self._require_ready(timeout)
        return None if self._return_exceptions else self._outcome_exception()

    @property
    def r(self):
        """get() without a time-out."""
        return self.get()

    def get_dict(self, timeout=-1):
        """The results by engine id. ValueError when an engine has several."""
        results = [self.get(timeout)] if self._single else self.get(timeout)
        engines = [md["engine_id"] for md in self._metadata_list()]
        for engine in engines:
            if engines.count(engine) > 1:
                raise ValueError(
                    "Cannot build dict, %d jobs ran on engine #%s" % (engines.count(engine), engine)
                )
        return dict(zip(engines, results))

    @property
    def result_dict(self):
        """get_dict()."""
        return self.get_dict()

    def abort(self):
        """Takes back those of my tasks that have not started. get() then raises
        TaskAborted. RuntimeError when all have ended."""
        if self.ready():
            raise TooLate("Can't abort, I am already done!")
        self._take_back(block=True)

    def cancel(self):
        """abort() as concurrent.futures knows it: whether the call is cancelled. False when it has
        ended, when it runs, and when nobody has said within 0.1 s that it was taken back: it may
        still wait in a controller of ipyparallel's. cancelled() knows later."""
        if not self.ready():
            self._take_back()
            self.wait(CANCEL_SECONDS)
        return self.cancelled()

    # ---- sending

    @property
    def sent(self):
        """Whether the arguments may be changed: all is sent. Only with track=True is that awaited;
        otherwise arrays must not be changed before the result is here."""
        if self._lent and self._replied < self._count:
            self._client._raw.ids()  # gives back what was sent
            self._lent = [ref for ref in self._lent if ref() is not None]
            return not self._lent
        return True

    def wait_for_send(self, timeout=-1):
        """Waits until `sent`. TimeoutError after `timeout` seconds."""
        end, pause = end_of(timeout), 0.001
        while not self.sent:
            left = seconds_left(end)
            if left == 0:
                raise error.TimeoutError("Still waiting to be sent")
            self._wait(_phalanx.REPLIES, pause if left is None else min(pause, left))
            pause = min(2 * pause, 0.05)

    # ---- metadata and output

    def _task_metadata(self, index):
        task = self._tasks[index]
        md = Metadata(
            msg_id=self._raw.task_id(index), submitted=self._submitted, started=None,
            completed=None, received=None, engine_uuid=None, engine_id=None, follow=[], after=[],
            status=None, is_broadcast=False, is_coalescing=False, label=self._label,
        )
        if task.reply is not None:
            self._add_reply(md, task.reply)
            engine = self._task_engine(index)
            if engine is not None:
                md["engine_id"] = engine
                md["engine_uuid"] = self._client._uuid(engine) or md["engine_uuid"]
        md.update(
            execute_input=task.execute_input, execute_result=task.execute_result,
            error=task.error or (self._value(index) if md["status"] == "error" else None),
            outputs=task.outputs, data=task.data,
            stdout=str(task.stdout or ""), stderr=str(task.stderr or ""),
        )
        if task.metadata is None:
            task.metadata = md
        else:  # the same object, brought up to date: replies refer to it
            task.metadata.update(md)
        return task.metadata

    @staticmethod
    def _add_reply(md, reply):
        header, metadata = json.loads(reply.header), json.loads(reply.metadata)
        md["status"] = "error" if reply.lost else metadata.get("status")
        md["status"] = md["status"] or ("error" if reply.failed else "ok")
        md["started"] = date_of(metadata.get("started"))
        md["completed"] = date_of(header.get("date"))
        md["received"] = datetime.fromtimestamp(reply.received, timezone.utc)
        for key in ("follow", "after", "is_broadcast", "is_coalescing", "label"):
            md[key] = metadata.get(key) or md[key]
        md["engine_uuid"] = metadata.get("engine")

    def _metadata_list(self):
        self._pump()
        return [self._task_metadata(i) for i in range(len(self._tasks))]

    @property
    def metadata(self):
        """What is known about my tasks: a Metadata, or a list of them."""
        return self._reconstruct_metadata(self._metadata_list())

    def _reconstruct_metadata(self, values):
        return values[0] if self._single else values

    def _places(self):
        """(index, msg_id) pairs of my tasks; of items that share one, the first."""
        if hasattr(self._raw, "places"):
            return self._raw.places()
        return enumerate(self._raw.newest_ids(len(self._raw)))

    def _running_ids(self):
        """The ids of those of my tasks that have no reply."""
        if hasattr(self._raw, "flying"):
            return self._raw.flying()
        self._pump()
        return [self._task_id(i) for i, task in enumerate(self._tasks) if task.reply is None]

    def stop(self):
        """Sends nothing further of a long map. The msg_ids of what may be running or queued."""
        return self._raw.stop() if hasattr(self._raw, "stop") else self.msg_ids

    @property
    def msg_ids(self):
        """The ids of my tasks' messages. A long map's items share some, and it is waited for until
        the last is sent."""
        return [self._task_id(i) for i in range(self._count)]

    def __getattr__(self, key):
        if key.startswith("_") or key not in METADATA_KEYS:
            raise AttributeError("%r object has no attribute %r" % (type(self).__name__, key))
        return self[key]

    def __getitem__(self, key):
        """A result, or a slice of them (TimeoutError when they are not here), or by name what the
        metadata hold (KeyError)."""
        if isinstance(key, (int, slice)):
            self._require_ready()
            chosen = self.get(return_exceptions=True)[key]
            error.collect_exceptions(chosen if isinstance(key, slice) else [chosen], self._fname)
            return chosen
        if not isinstance(key, str):
            raise TypeError("Invalid key type %r, must be 'int','slice', or 'str'" % type(key))
        if key not in METADATA_KEYS:
            raise KeyError(key)
        return self._reconstruct_metadata([md[key] for md in self._metadata_with(key)])

    def __dir__(self):
        return sorted({*super().__dir__(), *METADATA_KEYS})

    def __len__(self):
        return len(self._tasks)

    def __iter__(self):
        if self._single:
            raise TypeError("AsyncResults with a single result are not iterable.")
        return self.iterate()

    def iterate(self, end=None):
        """The results one by one, each as soon as it and those before it are here. end: a time of
        the monotonic clock at which TimeoutError is raised."""
        for index in range(len(self._tasks)):
            yield self._value_when_here(index, end)

    def __repr__(self):
        self._pump()
        state = "pending"
        if self._filed >= self._count:
            state = "failed" if self._has_failure() else "finished"
        return "<%s(%s): %s>" % (self._kind or type(self).__name__, self._fname, state)

    def _has_reply(self, index):
        return self._tasks[index].reply is not None

    def _wait_for_task(self, index, end=None):
        if not self._wait_till(lambda: self._has_reply(index), end):
            self._require_ready()

    def _value_when_here(self, index, end=None):
        self._wait_for_task(index, end)
        value = self._value(index)
        if isinstance(value, error.KernelError) and not self._return_exceptions:
            error.collect_exceptions([value], self._fname)
        return value

    # ---- display

    def stream_output(self):
        """Within `with ar.stream_output():` the tasks' output is shown as it arrives."""
        return display.streaming(self)

    def display_outputs(self, groupby="type", result_only=False):
        """Waits, and shows the tasks' output and results, grouped by "type", "engine" or "order" (like
        "type", and the first pictures of all before the second ones); with `result_only` results
        alone."""
        if groupby not in ("type", "engine", "order"):
            raise ValueError("groupby must be 'type', 'engine' or 'order', not %r" % (groupby,))
        self.wait_for_output()
        values = self.get(return_exceptions=True)
        if self._single:
            display.show_single(self._metadata_list()[0], values, result_only)
            return
        records = list(zip(self._metadata_list(), values))
        display.show_all(records, groupby, result_only)
