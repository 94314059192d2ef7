# SPDX-License-Identifier: BSD-3-Clause
"""Results that are not one submission of this client's: joined from several, kept from before, or
known to the controller alone."""

import itertools
import threading
import time

from . import _phalanx, canning, error, pickle5
from .asyncresult import AsyncResult
from .deadlines import end_of, seconds_left
from .feed import moved
from .tasks import ExecuteReply, Task, date_of, new_metadata

POLL_FIRST, POLL_MOST = 0.05, 1.0  # seconds between two questions to the controller
GRACE = 1.0  # seconds in which the controller comes to know of what passed through it


class JoinedResult(AsyncResult):
    """Tasks of other results, seen as one. parts: (AsyncResult, index of its task) pairs. fname: the
    functions' name, where they have but one."""

    _kind = "AsyncResult"

    def __init__(self, client, parts, single=False, fname=None, return_exceptions=False):
        self._parts = parts
        names = {part._fname for part, _ in parts}
        fname = fname or (names.pop() if len(names) == 1 else "get_result")
        super().__init__(
            client, None, None, fname, single=single, return_exceptions=return_exceptions
        )
        self._whole = list({id(part): part for part, _ in parts}.values())

    @property
    def _tasks(self):
        return [part._tasks[index] for part, index in self._parts]

    def _pump(self):
        for part in self._whole:
            part._pump()

    def _wait(self, until, timeout):
        end = end_of(timeout)
        self._pump()
        name = "finished" if until == _phalanx.FINISHED else "reply"
        for (part, _), task in zip(self._parts, self._tasks):
            # All of a part may take longer than those of its tasks that are wanted.
            if not part._wait_till(lambda: getattr(task, name) or part._wait(until, 0), end):
                return False
        return True

    @property
    def _count(self):
        return len(self._parts)

    def _wait_till(self, reached, end):
        while True:
            self._pump()
            if reached():
                return True
            for part in self._whole:  # in turn: whichever it is, its news are seen soon
                left = seconds_left(end)
                if left == 0:
                    return False
                if not part.ready():
                    part._wait(
                        _phalanx.EVENT, POLL_FIRST if left is None else min(POLL_FIRST, left)
                    )

    def _on_complete(self, function):
        wholes = len(self._parts) == sum(part._count for part in self._whole)
        most, heard = len(self._whole if wholes else self._parts), itertools.count(1)

        def one_more(part=None):
            if next(heard) == most:
                function()

        if wholes:
            for part in self._whole:
                part.add_done_callback(one_more)
        else:
            for part, index in self._parts:
                part._on_reply(index, one_more)

    def _source(self, index):
        part, at = self._parts[index]
        return part._source(at)

    def _on_reply(self, index, function):
        part, at = self._parts[index]
        part._on_reply(at, function)

    def _task_id(self, index):
        part, at = self._parts[index]
        return part._task_id(at)

    @property
    def _replied(self):
        self._pump()
        return self._filed

    @property
    def _filed(self):
        return sum(task.reply is not None for task in self._tasks)

    def _value(self, index):
        part, at = self._parts[index]
        return part._value(at)

    def _wait_for_task(self, index, end=None):
        part, at = self._parts[index]
        part._wait_for_task(at, end)

    def _task_metadata(self, index):
        part, at = self._parts[index]
        return part._task_metadata(at)

    def _task_engine(self, index):
        part, at = self._parts[index]
        return part._task_engine(at)

    def _task_method(self, index):
        part, at = self._parts[index]
        return part._task_method(at)

    def _wholes(self):
        return sorted({w for part in self._whole for w in part._wholes()}, key=id)

    def _listen(self, function):
        heard, indices = [], {}
        for index, (part, at) in enumerate(self._parts):
            indices.setdefault(part, {})[at] = index
        for part in self._whole:

            def listener(event, mine=indices[part]):
                if event.task in mine:
                    function(moved(event, mine[event.task]))

            heard += part._listen(listener)
        return heard

    @property
    def elapsed(self):
        if self.ready():
            return self.wall_time
        return max(part.elapsed for part in self._whole)


class StoredResult(AsyncResult):
    """Results that are all here."""

    _kind = "AsyncResult"

    def __init__(self, client, msg_ids, single=False, fname="get_result"):
        super().__init__(client, None, None, fname, single=single)
        self._ids = list(msg_ids)

    def _make_tasks(self):
        return [Task() for _ in self._ids]

    def fill(self, index, value, metadata):
        """Sets what a task came to."""
        task = self._tasks[index]
        task.value, task.metadata = value, metadata
        task.unpacked = task.finished = task.reply = True
        task.outputs[:] = metadata["outputs"]
        task.stdout, task.stderr = metadata["stdout"] or None, metadata["stderr"] or None
        task.execute_result, task.error = metadata["execute_result"], metadata["error"]
        self._arrived(index)

    def _pump(self):
        pass

    def _wait(self, until, timeout):
        return True

    def _wait_till(self, reached, end):
        return self._wait(_phalanx.REPLIES, seconds_left(end)) and bool(reached())

    def _on_complete(self, function):
        function()

    def _on_reply(self, index, function):
        self.add_done_callback(lambda result: function())

    def _task_id(self, index):
        return self._ids[index]

    @property
    def _replied(self):
        return sum(task.reply is not None for task in self._tasks)

    def _task_engine(self, index):
        return self._task_metadata(index)["engine_id"]

    def _task_metadata(self, index):
        task = self._tasks[index]
        return task.metadata or new_metadata(msg_id=self._ids[index])


class AsyncHubResult(StoredResult):
    """Results of tasks that another client submitted, or that this one has forgotten. Waiting
    asks the controller again and again, at most 20 times a second; prefer the result of the call
    where you have it."""

    _kind = None

    def __init__(self, client, msg_ids, single=False, owner=True):
        super().__init__(client, msg_ids, single)
        self.owner = owner
        self._fetched = False

    def _wait(self, until, timeout):
        end, pause = end_of(timeout), POLL_FIRST
        known_by = end_of(GRACE if set(self._ids) <= set(self._client.history) else 0)
        while not self._fetched:
            try:
                pending = self._is_pending()
                if not pending:
                    self._fetch()
                    break
            except (error.RemoteError, KeyError) as e:  # it does not know them, or not yet
                if seconds_left(known_by) == 0:
                    known = isinstance(e, error.KernelError)
                    self._fail(e if known else error.KernelError(e.args[0]))
                    break
            left = seconds_left(end)
            if left == 0:
                return False
            threading.Event().wait(pause if left is None else min(pause, left))
            pause = min(2 * pause, POLL_MOST)
        return True

    def _is_pending(self):
        content = {"msg_ids": self._ids, "status_only": True}
        return bool(self._client._query("result_request", content)["pending"])

    def _fail(self, e):
        """All my tasks have this exception."""
        with self._lock:
            for index, msg_id in enumerate(self._ids):
                self.fill(index, e, new_metadata(msg_id=msg_id, status="error"))
            self._fetched = True

    def _fetch(self):
        with self._lock:
            if self._fetched:
                return
            records = {r["msg_id"]: r for r in fetch_records(self._client, self._ids)}
            for index, msg_id in enumerate(self._ids):
                value, metadata = read_record(self._client, records[msg_id])
                self.fill(index, value, metadata)
                if not self.owner:
                    self._client.results[msg_id] = value
                    self._client.metadata[msg_id] = metadata
            self._fetched = True

    def _on_complete(self, function):
        def wait():
            try:
                self._wait(_phalanx.REPLIES, None)
            except Exception as e:  # the controller is gone, or the client closed
                self._fail(error.EngineError("the result cannot be awaited: %s" % e))
            function()

        threading.Thread(target=wait, name="phalanx-hub-result", daemon=True).start()

    @property
    def _replied(self):
        return self._count if self._fetched else 0

    @property
    def elapsed(self):
        """Seconds since the submission, until the last result."""
        if self.ready():
            return self.wall_time
        submitted = self._client.db_query({"msg_id": {"$in": self._ids}}, ["submitted"])
        return max(time.time() - r["submitted"].timestamp() for r in submitted)


_RECORD_KEYS = [
    "metadata", "engine_uuid", "submitted", "started", "completed", "received", "header",
    "result_header", "result_metadata", "result_content", "result_buffers", "stdout", "stderr",
    "execute_input", "execute_result", "error",
]


def fetch_records(client, msg_ids):
    """The controller's records of these tasks. KeyError when it has not all of them."""
    records = client.db_query({"msg_id": {"$in": list(msg_ids)}}, _RECORD_KEYS)
    missing = set(msg_ids) - {record["msg_id"] for record in records}
    if missing:
        raise KeyError(
            "the controller has no record of %s; it may have been purged" % ", ".join(missing)
        )
    return records


def read_record(client, record):
    """(value or exception, Metadata) of a task that has ended."""
    uuid = record.get("engine_uuid")
    result_metadata = record.get("result_metadata") or {}
    content = record.get("result_content") or {}
    engine = next((i for i, u in client._engines.items() if u == uuid), None)
    stamps = {key: record.get(key) for key in ("submitted", "started", "completed", "received")}
    stamps["started"] = date_of(result_metadata.get("started")) or stamps["started"]
    stamps["completed"] = (record.get("result_header") or {}).get("date") or stamps["completed"]
    metadata = new_metadata(
        msg_id=record["msg_id"], engine_uuid=uuid, engine_id=engine, status=content.get("status"),
        label=(record.get("metadata") or {}).get("label"), **stamps,
    )
    for key in ("stdout", "stderr", "execute_input", "execute_result"):
        metadata[key] = record.get(key) or metadata[key]
    if record.get("error"):
        metadata["error"] = error.from_reply(record["error"], engine)
    kind = (record.get("result_header") or {}).get("msg_type", "")
    method = "execute" if kind.startswith("execute") else "apply"
    if content.get("status") != "ok":
        return error.from_reply(content, engine, method), metadata
    if method == "execute":
        return ExecuteReply(record["msg_id"], content, metadata), metadata
    own = (record.get("metadata") or {}).get("px_pickle") == 5
    form = pickle5 if own else canning
    return form.unpack_result(record["result_buffers"]), metadata


__all__ = ["AsyncHubResult", "JoinedResult", "StoredResult"]
