# SPDX-License-Identifier: BSD-3-Clause
"""LoadBalancedView: each task to whichever engine is free first."""

import json

from . import _phalanx, batch, calls, items, maps
from .adapting import adapts, none_there
from .asyncresult import AsyncResult
from .dependency import Dependency
from .futures import LazyMapIterator
from .mapresult import AsyncMapResult
from .remotefunction import name_of
from .view import View, _map


def _is_dependency(value):
    if value is None or isinstance(value, (str, AsyncResult, Dependency)):
        return True
    if isinstance(value, dict):
        return isinstance(value.get("dependencies"), list)
    return isinstance(value, (list, tuple, set)) and all(
        isinstance(item, (str, AsyncResult)) for item in value
    )


def _rendered(value):
    """A dependency as it is sent."""
    if isinstance(value, (Dependency, dict)):
        return Dependency(value).as_dict() if isinstance(value, dict) else value.as_dict()
    return list(Dependency(value))


class LoadBalancedView(View):
    """Gives each task to whichever of its engines is free first. Made by
    client.load_balanced_view().

    after: tasks (msg_ids, AsyncResults, a Dependency) that must have ended before mine start.
    follow: tasks on one of whose engines mine must run. timeout: seconds that a task may wait for
    that and for an engine, then TaskTimeout; None: for ever. retries: how often a task that failed
    is given to another engine, or, when all have failed at it and it has no timeout, to one of them.
    """

    after: "str | AsyncResult | Dependency | list | None"
    follow: "str | AsyncResult | Dependency | list | None"
    timeout: "float | None"
    retries: int

    _flags = View._flags + ("after", "follow", "timeout", "retries")

    def __init__(self, client=None, socket=None, targets=None, **flags):
        self.after = self.follow = self.timeout = None
        self.retries = 0
        super().__init__(client, socket, targets, **flags)

    def set_flags(self, **flags):
        """Sets several of my attributes by name; KeyError for one that is not a flag, ValueError and
        TypeError for values that cannot be. Returns the view."""
        for name in ("after", "follow"):
            if not _is_dependency(flags.get(name)):
                raise ValueError("Invalid dependency: %r" % (flags[name],))
        timeout = flags.get("timeout")
        if timeout is not None and not isinstance(timeout, (int, float)):
            raise TypeError("Invalid type for timeout: %r" % type(timeout))
        if timeout is not None and timeout < 0:
            raise ValueError("Invalid timeout: %s" % timeout)
        if not isinstance(flags.get("retries", 0), int):
            raise TypeError("retries must be int, not %r" % type(flags["retries"]))
        return super().set_flags(**flags)

    def _scope(self):
        """(ids, form) for what is submitted next, after what engines were told before."""
        self.client._ahead.settle()
        ids = None if self.targets is None else self.client._ids_of(self.targets)
        return ids, self.client._form(ids)

    def _members(self):
        members = []
        if self.after:
            members.append('"after": %s' % json.dumps(_rendered(self.after)))
        if self.follow:
            members.append('"follow": %s' % json.dumps(_rendered(self.follow)))
        if self.timeout:
            members.append('"timeout": %s' % json.dumps(float(self.timeout)))
        if self.retries:
            if not isinstance(self.retries, int):
                raise TypeError("retries must be int, not %r" % type(self.retries))
            members.append('"retries": %d' % self.retries)
        return members

    def _must_wait(self, block):
        """Tasks may be submitted before there are engines, but waiting for them then is for ever,
        unless the cluster starts engines for them."""
        waits = self.block if block is None else block
        if waits and not self.client.ids and not adapts(self.client):
            raise none_there(self.client)

    def _call(self, f, args, kwargs, block=None, function=None):
        calls.check(f)
        self._must_wait(block)
        ids, form = self._scope()
        buffers, lent = calls.pack(form, f, args, kwargs, function), None
        if self.track:
            buffers, lent = calls.lend(buffers)
        raw = self.client._raw.submit(
            _phalanx.APPLY, _phalanx.BALANCED, ids, metadata=self._metadata(form), buffers=buffers
        )
        del buffers
        result = AsyncResult(self.client, raw, form.unpack_result, name_of(f), ids, True)
        return self._finish(self._sent(result, lent), block)

    def map(
        self, f, *sequences, block=None, chunksize=None, ordered=True, return_exceptions=False,
        label=None,
    ):
        """Like the builtin map: every `chunksize` elements are one task. Without it few elements are
        a task each, and of many (see batch.py) as many go together as make some work. An
        AsyncMapResult, or with `block` a list. ordered: whether iterating over it keeps the order,
        or takes results as they arrive. With `return_exceptions` what was raised is among the
        results. label: instead of my own."""
        calls.check(f)
        options = {"ordered": ordered, "return_exceptions": return_exceptions}
        listed, size = self._listed(sequences)
        if chunksize is not None or size <= batch.FEW or not batch.suits(f):
            return self._spread(
                f, listed, maps.BlockMap(), True, block, chunksize, label, **options
            )
        self._must_wait(block)
        result = items.AsyncMapResult(
            self.client, batch.Batches(self, f, listed, size, label), fname=name_of(f), **options
        )
        return self._finish(self._sent(result, label=label), block)

    def _spread(
        self, f, sequences, mapper, each, block, chunksize=None, label=None, **options
    ):
        """Makes a task of every `chunksize` elements: f is called with them, or, if `each`, with each
        of them."""
        self._must_wait(block)
        chunksize = chunksize if chunksize and chunksize > 0 else 1
        ids, form = self._scope()
        sequences, size = self._listed(sequences)
        mapping, function = form.pack_function(_map if each else f), calls.prepare(form, f)
        metadata, raw, sizes = self._metadata(form, label=label), None, []
        for low in range(0, size, chunksize):
            parts = [s[low : low + chunksize] for s in sequences]
            sizes.append(len(parts[0]) if each else 1)
            if each:
                buffers = calls.pack_map(form, mapping, function, parts)
            else:
                buffers = calls.pack(form, f, parts, {}, mapping)
            raw = self.client._raw.submit(
                _phalanx.APPLY, _phalanx.BALANCED, ids, metadata=metadata, buffers=buffers,
                into=raw,
            )
        if raw is None:
            return []
        result = AsyncMapResult(
            self.client, raw, form.unpack_result, maps.BlockMap().join, fname=name_of(f),
            targets=ids, sizes=sizes, **options,
        )
        return self._finish(self._sent(result, label=label), block)

    def imap(
        self, f, *sequences, ordered=True, max_outstanding="auto", return_exceptions=False
    ):
        """An iterator over f's results that takes from the sequences only as results are taken, so
        that they may be endless: at most `max_outstanding` elements are taken ahead ("auto" and 0:
        what keeps the engines busy, and besides that 1,024 finished results, or 64 MB of them).
        ordered: whether results keep the order, or come as they arrive. With `return_exceptions`
        what was raised is among the results. Its cancel() takes no more elements: what is on its
        way comes yet."""
        if not sequences:
            raise AssertionError("must have some sequences to map onto!")
        calls.check(f)
        self._must_wait(True)
        most = None if max_outstanding in ("auto", 0) else max_outstanding
        return LazyMapIterator(
            *batch.imap(self, f, sequences, ordered, most, return_exceptions)
        )

    def register_joblib_backend(self, name="phalanx", make_default=False):
        """Makes this view a backend of joblib: joblib.Parallel(backend=name)."""
        from .joblib import register

        register(name, make_default, self)
