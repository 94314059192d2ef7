# SPDX-License-Identifier: BSD-3-Clause
"""BroadcastView: calls that leave the client once, whatever the number of engines."""

import functools
import json

from . import _phalanx, calls, canning, error
from .asyncresult import AsyncResult
from .remotefunction import name_of
from .view import DirectView


class CoalescedResult(AsyncResult):
    """The results of a call whose replies the controller has joined."""

    _kind = "AsyncResult"

    def __init__(self, client, raw, unpack, fname, targets, single):
        super().__init__(client, raw, unpack, fname, targets, single)
        self._uuids = [client._uuid(i) for i in targets]
        self._joined = None

    def _split(self):
        """The values by uuid."""
        for task in self._tasks:
            named = json.loads(task.reply.metadata).get("broadcast_targets")
            if named:
                uuids = [entry if isinstance(entry, str) else entry[0] for entry in named]
                return dict(zip(uuids, canning.unpack_all(task.reply.buffers)))
        return {}

    def _read(self, index, task):
        if task.reply.failed:
            return super()._read(index, task)
        if self._joined is None:
            self._joined = self._split()
            if len(self._joined) < len(self._tasks):
                self._joined = {}  # whose are those that are there, nobody can tell
        if self._uuids[index] in self._joined:
            return self._joined[self._uuids[index]]
        return error.EngineError(
            "an engine failed, and the joined reply does not say which one nor how; call again "
            "with is_coalescing=False"
        )


class BroadcastView(DirectView):
    """A DirectView whose calls leave the client once, whatever the number of engines; the
    controller makes the copies. Made by client.broadcast_view().

    is_coalescing: whether it joins the replies of apply(), push() and pull() as well.
    scatter(), gather() and map(), whose messages differ, go to each engine directly, once the calls
    before them have ended: the two ways keep no order between them.
    """

    _route = _phalanx.BROADCAST
    _flags = DirectView._flags + ("is_coalescing",)
    is_coalescing = False

    def __init__(self, client=None, socket=None, targets=None, **flags):
        super().__init__(client, socket, targets, **flags)
        self._last = {}  # engines -> what was sent last to them, of the C library

    def _sent(self, result, lent=None, label=None):
        self._last[str(result._targets)] = result._raw
        return super()._sent(result, lent, label)

    def _directly(self, method, *args, **kwargs):
        for raw in list(self._last.values()):
            raw.wait(_phalanx.REPLIES)
        try:
            return method(*args, **kwargs)
        finally:
            self._last.clear()

    def _spread(self, *args, **kwargs):
        return self._directly(super()._spread, *args, **kwargs)

    @functools.wraps(DirectView.scatter)
    def scatter(self, *args, **kwargs):
        return self._directly(super().scatter, *args, **kwargs)

    @functools.wraps(DirectView.gather)
    def gather(self, *args, **kwargs):
        return self._directly(super().gather, *args, **kwargs)

    def _call(self, f, args, kwargs, targets=None, block=None, track=None):
        if not self.is_coalescing:
            return super()._call(f, args, kwargs, targets, block, track)
        calls.check(f)
        ids, single, _ = self._scope(targets)
        buffers, lent = calls.pack(canning, f, args, kwargs), None
        if self.track if track is None else track:
            buffers, lent = calls.lend(buffers)
        raw = self._apply(canning, buffers, ids, route=self._route, coalesce=True)
        del buffers
        result = CoalescedResult(
            self.client, raw, canning.unpack_result, name_of(f), ids, single
        )
        return self._finish(self._sent(result, lent), block)
