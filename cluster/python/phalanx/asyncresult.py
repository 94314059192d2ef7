# SPDX-License-Identifier: BSD-3-Clause
"""What becomes of submitted work: AsyncResult, AsyncMapResult, ExecuteReply.

A result reads events from the C library when somebody asks; nothing runs in the background here.
What has been read belongs to the result object and goes with it.
"""

import json
import re
import sys
import threading
import time
from collections import deque
from datetime import datetime, timezone

from . import _phalanx, error

_overwritten = re.compile(r".*\r(?=[^\n])")


def _date(text):
    if not isinstance(text, str):
        return text
    if text.endswith("Z"):
        text = text[:-1] + "+00:00"
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


class Metadata(dict):
    """What is known about one task; keys are attributes too."""

    def __getattr__(self, key):
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None

    def __setattr__(self, key, value):
        self[key] = value


class ExecuteReply:
    """The result of executed code: its displayed value, output and execution count."""

    def __init__(self, msg_id, content, metadata):
        self.msg_id = msg_id
        self._content = content
        self.execution_count = content.get("execution_count")
        self.metadata = metadata

    def __getitem__(self, key):
        return self.metadata[key]

    def __getattr__(self, key):
        metadata = self.__dict__.get("metadata") or {}
        if key not in metadata:
            raise AttributeError(key)
        return metadata[key]

    @property
    def data(self):
        """The MIME bundle of the value; empty when there is none."""
        return (self.metadata["execute_result"] or {}).get("data", {})

    def __repr__(self):
        text = self.data.get("text/plain", "")
        if len(text) > 32:
            text = text[:29] + "..."
        return "<ExecuteReply[%s]: %s>" % (self.execution_count, text)

    def _plaintext(self):
        text = self.data.get("text/plain", "")
        if not text:
            return ""
        if "\n" in text and not text.startswith("\n"):
            text = "\n" + text
        return "Out[%s:%s]: %s" % (self.metadata["engine_id"], self.execution_count, text)

    def _repr_pretty_(self, p, cycle):
        p.text(self._plaintext())

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = dict(self.data)
        if "text/plain" in data:
            data["text/plain"] = self._plaintext()
        return data, (self.metadata["execute_result"] or {}).get("metadata", {})

    def display(self):
        """Shows the value in all its forms."""
        from IPython.display import publish_display_data

        publish_display_data(*self._repr_mimebundle_())


class _Text:
    """What a task has written to a stream: all of it, or, of very much, its start and its end."""

    HALF = 16 << 20  # characters

    def __init__(self):
        self._start, self._end = [], deque()
        self._start_size = self._end_size = self._lost = 0

    def add(self, text):
        if self._start_size < self.HALF:
            self._start.append(text)
            self._start_size += len(text)
            return
        self._end.append(text)
        self._end_size += len(text)
        while self._end_size - len(self._end[0]) > self.HALF:
            gone = len(self._end.popleft())
            self._end_size -= gone
            self._lost += gone

    def __str__(self):
        """The text, without what a carriage return has overwritten."""
        if len(self._start) > 1:
            self._start = ["".join(self._start)]
        text = self._start[0] if self._start else ""
        if self._lost:
            text += "\n[... %d characters are left out here ...]\n" % self._lost
        text += "".join(self._end)
        return _overwritten.sub("", text) if "\r" in text else text


class _Task:
    """One task's record: what has arrived for it."""

    __slots__ = (
        "reply", "finished", "stdout", "stderr", "outputs", "execute_input", "execute_result",
        "error", "data", "value", "unpacked", "metadata",
    )

    def __init__(self):
        self.reply = self.execute_input = self.execute_result = self.error = None
        self.value = self.metadata = None
        self.finished = self.unpacked = False
        self.stdout = self.stderr = None
        self.outputs, self.data = [], {}

    def write(self, stream, text):
        if getattr(self, stream) is None:
            setattr(self, stream, _Text())
        getattr(self, stream).add(text)


def _on_display(task, content):
    task.outputs.append(content)


def _on_execute_result(task, content):
    task.execute_result = content


def _on_execute_input(task, content):
    task.execute_input = content.get("code")


def _on_error(task, content):
    task.error = error.from_reply(content)


_output_handlers = {
    "display_data": _on_display,
    "execute_result": _on_execute_result,
    "execute_input": _on_execute_input,
    "error": _on_error,
}


class AsyncResult:
    """The results of a call on one or more engines, which may still be running.

    get() returns them, or raises what the call raised. With a single target it is one value,
    otherwise a list in the order of the targets.
    """

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
        self._submitted = datetime.now(timezone.utc)
        self._lock = threading.RLock()
        self._tasks = [_Task() for _ in range(len(raw))]
        self._order = []  # indices of tasks in the order of their replies
        self._outcome = None  # (values, exception) once gathered

    # ---- filing what arrives

    def _pump(self):
        with self._lock:
            event = self._raw.next()
            while event is not None:
                self._file(event)
                event = self._raw.next()

    def _file(self, event):
        task = self._tasks[event.task]
        if event.type == _phalanx.REPLY:
            task.reply = event
            self._order.append(event.task)
        elif event.type == _phalanx.STREAM:
            task.write("stderr" if event.name == "stderr" else "stdout", event.text)
        elif event.type == _phalanx.IDLE:
            task.finished = True
        elif event.name == "data_message":
            task.data.update(self._unpack(event.buffers))
        elif event.name in _output_handlers:
            _output_handlers[event.name](task, json.loads(event.content))

    def _wait(self, until, timeout):
        timeout = None if timeout is None or timeout < 0 else timeout
        try:
            done = self._raw.wait(until, timeout)
        except _phalanx.ClosedError as e:
            self._pump()
            raise error.EngineError("the client was closed while waiting") from e
        self._pump()
        return done

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
            content = json.loads(reply.content)
            e = error.from_reply(content, reply.engine, self._method)
            return e
        if self._method == "execute":
            md = self._task_metadata(index)
            return ExecuteReply(md["msg_id"], json.loads(reply.content), md)
        value = self._unpack(reply.buffers)
        return value

    # ---- waiting

    def wait(self, timeout=-1):
        """Waits until all results are here, at most `timeout` seconds (negative: for ever)."""
        return self._wait(_phalanx.REPLIES, timeout)

    def wait_for_output(self, timeout=-1):
        """Waits until all results and all output are here."""
        return self._wait(_phalanx.FINISHED, timeout)

    def ready(self):
        """Whether all results are here."""
        return self.wait(0)

    done = ready

    def successful(self):
        """Whether the call raised nothing. AssertionError when it has not ended."""
        assert self.ready(), "the result is not ready"
        return self._gather()[1] is None

    def _gather(self):
        with self._lock:
            if self._outcome is None:
                values = [self._value(i) for i in range(len(self._tasks))]
                self._outcome = values, self._exception_among(values)
            return self._outcome

    def _exception_among(self, values):
        if self._single:
            return values[0] if isinstance(values[0], error.KernelError) else None
        try:
            error.collect_exceptions(values, self._fname)
        except error.CompositeError as e:
            return e
        return None

    def _reconstruct(self, values):
        return values[0] if self._single else values

    def get(self, timeout=None, return_exceptions=None):
        """The results, when they arrive. Raises TimeoutError after `timeout` seconds; raises
        RemoteError or CompositeError for what was raised remotely, unless `return_exceptions`,
        which puts exceptions among the results instead."""
        if not self.wait(timeout):
            raise error.TimeoutError("Result not ready.")
        values, exception = self._gather()
        if return_exceptions is None:
            return_exceptions = self._return_exceptions
        if exception is not None and not return_exceptions:
            raise exception
        return self._reconstruct(values)

    result = get

    def exception(self, timeout=None):
        """The exception that get() would raise, or None."""
        if not self.wait(timeout):
            raise error.TimeoutError("Result not ready.")
        return self._gather()[1]

    @property
    def r(self):
        """get() without a time-out."""
        return self.get()

    def get_dict(self, timeout=-1):
        """The results by engine id."""
        results = self.get(timeout)
        if self._single:
            results = [results]
        out = {}
        for md, value in zip(self._metadata_list(), results):
            if md["engine_id"] in out:
                raise ValueError(
                    "Cannot build dict, more than one job ran on engine #%s" % md["engine_id"]
                )
            out[md["engine_id"]] = value
        return out

    result_dict = property(get_dict)

    def abort(self):
        """Takes those of my tasks that have not started from the engines' queues."""
        assert not self.ready(), "Can't abort, I am already done!"
        return self._client.abort(self, targets=self._targets)

    cancel = abort

    # ---- metadata and output

    def _task_metadata(self, index):
        task = self._tasks[index]
        md = Metadata(
            msg_id=self._raw.task_id(index), submitted=self._submitted, started=None,
            completed=None, received=None, engine_uuid=None, engine_id=None, follow=[], after=[],
            status=None,
        )
        if task.reply is not None:
            self._add_reply(md, task.reply)
        engine = self._raw.task_engine(index)
        if engine >= 0:
            md["engine_id"] = engine
            md["engine_uuid"] = md["engine_uuid"] or self._client._uuid(engine)
        md.update(
            execute_input=task.execute_input, execute_result=task.execute_result,
            error=task.error, outputs=task.outputs, data=task.data,
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
        md["started"] = _date(metadata.get("started"))
        md["completed"] = _date(header.get("date"))
        md["received"] = datetime.fromtimestamp(reply.received, timezone.utc)
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

    def stop(self):
        """Sends nothing further of a long map. The msg_ids of what may be running or queued."""
        stop = getattr(self._raw, "stop", None)
        return stop() if stop else self.msg_ids

    @property
    def msg_ids(self):
        """Of my tasks. A long map's items share some; it is waited for until the last is sent."""
        return [self._raw.task_id(i) for i in range(len(self._tasks))]

    def __getattr__(self, key):
        if not key.startswith("_") and key in _metadata_keys:
            self.wait_for_output(0)
            return self._reconstruct_metadata([md[key] for md in self._metadata_list()])
        raise AttributeError("%r object has no attribute %r" % (type(self).__name__, key))

    def __getitem__(self, key):
        if isinstance(key, (int, slice)):
            values = self.get()
            values = [values] if self._single else values
            return values[key]
        return self.__getattr__(key)

    def __len__(self):
        return len(self._tasks)

    def __iter__(self):
        if self._single:
            yield from self.get()
            return
        for i in range(len(self._tasks)):
            yield self._value_when_here(i)

    def __repr__(self):
        state = ":finished" if self._raw.replied == len(self._tasks) else ""
        return "<%s: %s%s>" % (type(self).__name__, self._fname, state)

    def _wait_for_task(self, index):
        while self._tasks[index].reply is None:
            self._pump()
            if self._tasks[index].reply is None:
                self._wait(_phalanx.EVENT, None)

    def _value_when_here(self, index):
        self._wait_for_task(index)
        value = self._value(index)
        if isinstance(value, error.KernelError) and not self._return_exceptions:
            raise value
        return value

    # ---- progress and times

    @property
    def progress(self):
        """How many tasks have ended."""
        return self._raw.replied

    @property
    def elapsed(self):
        """Seconds since the submission, until the last result."""
        if self.ready():
            return self.wall_time
        return (datetime.now(timezone.utc) - self._submitted).total_seconds()

    @property
    def serial_time(self):
        """Seconds of computation, summed over the tasks."""
        times = [(md["completed"], md["started"]) for md in self._finished_metadata()]
        return sum((end - start).total_seconds() for end, start in times if end and start)

    @property
    def wall_time(self):
        """Seconds from the submission to the last result."""
        received = [md["received"] for md in self._finished_metadata() if md["received"]]
        return (max(received) - self._submitted).total_seconds()

    def _finished_metadata(self):
        if not self.ready():
            raise error.TimeoutError("result not ready")
        return self._metadata_list()

    def wait_interactive(self, interval=0.1, timeout=-1):
        """Waits, and shows on one line how many tasks have ended."""
        deadline = None if timeout is None or timeout < 0 else time.monotonic() + timeout
        while not self.wait(interval) and (deadline is None or time.monotonic() < deadline):
            self._show_progress("\r")
        self._show_progress("\r")
        sys.stdout.write("\n")

    def _show_progress(self, start):
        done = "%d/%d tasks after %.0f s" % (self.progress, len(self), self.elapsed)
        sys.stdout.write("%s%s: %s" % (start, self._fname, done))
        sys.stdout.flush()

    # ---- display

    def display_outputs(self, groupby="type", result_only=False):
        """Shows the tasks' output and results, grouped by "type", "engine" or "order"."""
        if groupby not in ("type", "engine", "order"):
            raise ValueError("groupby must be 'type', 'engine' or 'order', not %r" % (groupby,))
        self.wait_for_output()
        values = self.get(return_exceptions=True)
        values = [values] if self._single else values
        records = list(zip(self._metadata_list(), values))
        if groupby == "engine":
            for record in records:
                self._show_all([record], result_only)
        else:
            self._show_all(records, result_only, collate=groupby == "order")

    def _show_all(self, records, result_only, collate=False):
        from IPython.display import display, display_pretty, publish_display_data

        if not result_only:
            for name in ("stdout", "stderr"):
                for md, _ in records:
                    _show_stream(name, md["engine_id"], md[name])
            shown = [(i, md, out) for md, _ in records for i, out in enumerate(md["outputs"])]
            for _, md, out in sorted(shown, key=lambda s: s[0]) if collate else shown:
                display_pretty("[output:%s]" % md["engine_id"], raw=True)
                publish_display_data(out["data"], out.get("metadata") or {})
        for md, value in records:
            if md["execute_result"] is not None and isinstance(value, ExecuteReply):
                display(value)


def _show_stream(name, engine, text):
    if text:
        print("[%s:%s] %s" % (name, engine, text), file=getattr(sys, name), end="")


_metadata_keys = frozenset((
    "msg_id", "submitted", "started", "completed", "received", "engine_uuid", "engine_id",
    "follow", "after", "status", "execute_input", "execute_result", "error", "stdout", "stderr",
    "outputs", "data",
))


class AsyncMapResult(AsyncResult):
    """The results of a map, joined; iteration gives them as they come, in order or (with
    ordered=False) in the order of arrival."""

    def __init__(self, client, raw, unpack, joiner, ordered=True, **kwargs):
        super().__init__(client, raw, unpack, **kwargs)
        self._joiner = joiner
        self.ordered = ordered

    def _reconstruct(self, values):
        if not any(isinstance(v, error.KernelError) for v in values):
            return self._joiner(values)
        flat = []
        for value in values:
            flat.extend([value] if isinstance(value, error.KernelError) else value)
        return flat

    def _reconstruct_metadata(self, values):
        return values

    def _indices(self):
        if self.ordered:
            yield from range(len(self._tasks))
            return
        for n in range(len(self._tasks)):
            while len(self._order) <= n:
                self._wait(_phalanx.EVENT, None)
            yield self._order[n]

    def __iter__(self):
        for index in self._indices():
            part = self._value_when_here(index)
            if isinstance(part, error.KernelError):
                yield part
            else:
                yield from part if isinstance(part, (list, tuple)) or _is_array(part) else [part]


def _is_array(obj):
    from .canning import is_array

    return is_array(obj)
