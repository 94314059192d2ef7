# SPDX-License-Identifier: BSD-3-Clause
"""What a Client asks its controller: states, results, history, the database of tasks."""

import json
import weakref

from . import _phalanx, error
from .asyncresult import AsyncResult
from .deadlines import end_of, seconds_left
from .hubresult import AsyncHubResult, JoinedResult, StoredResult, fetch_records, read_record
from .tasks import date_of, new_metadata

_DATES = ("submitted", "started", "completed", "received")


class MetadataByID(dict):
    """Client.metadata: holds what the controller was asked for; of a task whose result somebody holds
    it gives what is known at the time."""

    def __init__(self, client):
        super().__init__()
        self._client = weakref.ref(client)

    def __missing__(self, msg_id):
        client = self._client()
        known = client._known([msg_id]) if client and msg_id not in client.results else {}
        if msg_id not in known:
            return self.setdefault(msg_id, new_metadata())
        result, index = known[msg_id]
        result._pump()
        return result._task_metadata(index)


class HubFace:
    """The questions of a Client. Each raises TimeoutError when the controller does not answer within
    ten seconds, and RemoteError for what it answers with an error."""

    QUERY_SECONDS = 10

    # ---- asking

    def _ask(self, message, content, timeout=None):
        """(content, buffers) of the answer to a request."""
        raw = self._raw.submit(_phalanx.QUERY, message=message, content=json.dumps(content))
        end = end_of(self.QUERY_SECONDS if timeout is None else timeout)
        if not raw.wait(_phalanx.REPLIES, seconds_left(end)):
            raise error.TimeoutError(
                "the controller has not answered a %s; is it still there? (pxcluster list)"
                % message
            )
        answer = raw.next()
        if answer.lost:
            raise error.TimeoutError(json.loads(answer.content)["evalue"])
        return json.loads(answer.content), answer.buffers

    def _query(self, message, content, timeout=None):
        reply = self._ask(message, content, timeout)[0]
        if reply.get("status") != "ok":
            raise error.from_reply(reply)
        return reply

    # ---- states

    def queue_status(self, targets="all", verbose=False):
        """What the controller has queued: {"unassigned": …, engine id: {"queue", "completed",
        "tasks"}, …}, engines in order; for one engine its entry alone. Numbers, or with `verbose` lists of ids."""
        ids = None if isinstance(targets, str) and targets == "all" else self._ids_of(targets)
        reply = self._query("queue_request", {"targets": ids, "verbose": verbose})
        reply.pop("status")
        status = {"unassigned": reply.pop("unassigned")}
        status.update(sorted((int(k), v) for k, v in reply.items()))
        return status[ids[0]] if isinstance(targets, int) else status

    def result_status(self, msg_ids, status_only=True):
        """{"pending": ids, "completed": ids} of tasks: ids, numbers in my history, AsyncResults.
        Without `status_only` also the results by id; what they raised is raised."""
        ids = self._msg_ids_from_jobs(msg_ids)
        known = [i for i in ids if i in self.results]
        asked = [i for i in ids if i not in self.results]
        status = {"completed": [], "pending": []}
        if asked:
            reply = self._query("result_request", {"msg_ids": asked, "status_only": True})
            status = {key: reply[key] for key in status}
        if not status_only and status["completed"]:
            for record in fetch_records(self, status["completed"]):
                value, metadata = read_record(self, record)
                self.results[record["msg_id"]] = value
                self.metadata[record["msg_id"]] = metadata
        status["completed"] += known
        if status_only:
            return status
        values = {i: self.results[i] for i in status["completed"]}
        failures = [v for v in values.values() if isinstance(v, error.KernelError)]
        if failures and len(ids) == 1:
            raise failures[0]
        error.collect_exceptions(failures, "result_status")
        return {**status, **values}

    def hub_history(self):
        """The msg_ids that the controller's task database holds, oldest first."""
        return self._query("history_request", {})["history"]

    def db_query(self, query, keys=None):
        """The controller's records of tasks (dictionaries) that match `query`, a MongoDB-like one:
        {"msg_id": {"$in": ids}}, {"completed": None}, … keys: which of a record's fields to fetch;
        all but buffers unless given. "msg_id" is always there; times are datetimes."""
        keys = [keys] if isinstance(keys, str) else keys
        content = {"query": _plain(query), "keys": keys}
        reply, buffers = self._ask("db_request", content)
        if reply.get("status") != "ok":
            raise error.from_reply(reply)
        records = reply["records"]
        for name in ("buffers", "result_buffers"):
            lengths = reply.get("buffer_lens" if name == "buffers" else "result_buffer_lens")
            for record, length in zip(records, lengths or ()):
                record[name], buffers = buffers[:length], buffers[length:]
        for record in records:
            _with_dates(record)
        return records

    # ---- results

    def get_result(self, indices_or_msg_ids=None, block=None, owner=True):
        """An AsyncResult for tasks named by msg_id, by number in my history (None: the last one), or
        by AsyncResults, or by a list of these. Those that this client does not know any more, and
        those of other clients, are asked of the controller (AsyncHubResult). With `owner` False
        what it answers is kept in client.results. block: whether to wait (None: self.block)."""
        jobs = -1 if indices_or_msg_ids is None else indices_or_msg_ids
        single = isinstance(jobs, (int, str, AsyncResult)) or not hasattr(jobs, "__iter__")
        result = self._result_of([jobs] if single else list(jobs), single, owner)
        if self.block if block is None else block:
            result.wait()
        return result

    def _result_of(self, jobs, single, owner):
        if single and isinstance(jobs[0], AsyncResult):
            single = jobs[0]._single
        jobs = [j if isinstance(j, AsyncResult) else self._msg_ids_from_jobs(j)[0] for j in jobs]
        known = self._known(job for job in jobs if isinstance(job, str))
        parts, strange = [], []
        for job in jobs:
            if isinstance(job, AsyncResult):
                parts += [(job, index) for index in range(job._count)]
            elif job in known:
                parts.append(known[job])
            else:
                parts.append((None, len(strange)))
                strange.append(job)
        if not strange:
            return JoinedResult(self, parts, single)
        asked = AsyncHubResult(self, strange, single, owner)
        if len(strange) == len(parts):
            return asked
        return JoinedResult(self, [(part or asked, index) for part, index in parts])

    def _known(self, msg_ids):
        """(AsyncResult, index) pairs by msg_id, of those of the tasks that are known here."""
        missing, known = set(msg_ids), {}
        for result in self._results_alive():
            if not missing:
                break
            for index, msg_id in result._places():
                if msg_id in missing:
                    missing.remove(msg_id)
                    known[msg_id] = result, index
        for msg_id in missing.intersection(self.results):
            stored = StoredResult(self, [msg_id])
            stored.fill(0, self.results[msg_id], self.metadata.get(msg_id) or new_metadata())
            known[msg_id] = stored, 0
        return known

    def resubmit(self, indices_or_msg_ids=None, metadata=None, block=None):
        """Lets tasks run once more: an AsyncHubResult. RemoteError (KeyError) for tasks that the
        controller does not know."""
        jobs = -1 if indices_or_msg_ids is None else indices_or_msg_ids
        ids = self._msg_ids_from_jobs(jobs)
        mapping = self._query("resubmit_request", {"msg_ids": ids})["resubmitted"]
        new = [mapping[i] for i in ids]
        self.history += new
        result = AsyncHubResult(self, new)
        if self.block if block is None else block:
            result.wait()
        return result

    # ---- forgetting

    def _msg_ids_from_jobs(self, jobs):
        if isinstance(jobs, (int, str, AsyncResult)) or not hasattr(jobs, "__iter__"):
            jobs = [jobs]
        ids = []
        for job in jobs:
            if isinstance(job, int):
                ids.append(self.history[job])
            elif isinstance(job, str):
                ids.append(job)
            elif isinstance(job, AsyncResult):
                ids += job.msg_ids
            else:
                raise TypeError("Expected msg_id, int, or AsyncResult, got %r" % (job,))
        return ids

    def _msg_ids_on(self, targets):
        uuids = {self._uuid(i) for i in self._ids_of(targets)} if targets else ()
        return [i for i, md in self.metadata.items() if md["engine_uuid"] in uuids]

    def purge_local_results(self, jobs=(), targets=()):
        """Forgets results that this client has kept (client.results): those of `jobs` ("all", or
        whatever get_result takes), and those that ran on `targets`. RuntimeError while tasks among
        them run."""
        if not jobs and not targets and targets != 0:
            raise ValueError("Must specify at least one of `targets` and `jobs`")
        if jobs == "all":
            ids = self.outstanding | set(self.results) | set(self.metadata)
        else:
            ids = {*self._msg_ids_on(targets), *self._msg_ids_from_jobs(jobs)}
        running = self.outstanding & ids
        if running:
            raise RuntimeError("Can't purge outstanding tasks: %s" % running)
        for msg_id in ids:
            self.results.pop(msg_id, None)
            self.metadata.pop(msg_id, None)

    def purge_hub_results(self, jobs=(), targets=()):
        """Makes the controller forget results: those of `jobs` ("all", or whatever get_result
        takes), and all that ran on `targets`."""
        if not jobs and not targets and targets != 0:
            raise ValueError("Must specify at least one of `targets` and `jobs`")
        engines = self._ids_of(targets) if targets or targets == 0 else []
        ids = jobs if jobs == "all" else self._msg_ids_from_jobs(jobs)
        self._query("purge_request", {"engine_ids": engines, "msg_ids": ids})

    def purge_results(self, jobs=(), targets=()):
        """purge_local_results() and purge_hub_results()."""
        self.purge_local_results(jobs, targets)
        self.purge_hub_results(jobs, targets)

    def purge_everything(self):
        """Forgets all results, here and in the controller, and the history."""
        self.purge_results("all")
        self.history = []


def _plain(query):
    """A query with times as the database compares them."""
    if isinstance(query, dict):
        return {key: _plain(value) for key, value in query.items()}
    if hasattr(query, "__iter__") and not isinstance(query, str):
        return [_plain(value) for value in query]
    return query.isoformat() if hasattr(query, "isoformat") else query


def _with_dates(record):
    for name in _DATES:
        if record.get(name) is not None:
            record[name] = date_of(record[name])
    for name in ("header", "result_header"):
        if isinstance(record.get(name), dict) and "date" in record[name]:
            record[name] = dict(record[name], date=date_of(record[name]["date"]))
