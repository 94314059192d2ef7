# SPDX-License-Identifier: BSD-3-Clause
"""Views: which engines work is for, and the ways to give it to them."""

import builtins
import json
from contextlib import contextmanager

from . import _phalanx, batch, maps
from .asyncresult import AsyncMapResult, AsyncResult
from .canning import interactive

# ---- functions that run on engines, in the user's namespace


@interactive
def _push(**names):
    scope = globals()
    for name, value in names.items():
        if name.isidentifier():
            scope[name] = value
        else:  # an attribute or an item
            exec("%s = _px_value" % name, scope, {"_px_value": value})


@interactive
def _pull(names):
    if isinstance(names, str):
        return eval(names, globals())
    return [eval(name, globals()) for name in names]


@interactive
def _map(f, *sequences):
    return list(map(f, *sequences))


def _name_of(f):
    return getattr(f, "__name__", None) or getattr(f, "name", None) or str(f)


class View:
    """What DirectView and LoadBalancedView have in common."""

    _flags = ("targets", "block", "track")

    def __init__(self, client, targets=None, **flags):
        self.client = client
        self.targets = targets
        self.block = client.block
        self.track = False
        self.set_flags(**flags)

    def __repr__(self):
        text = str(self.targets)
        if len(text) > 16:
            text = text[:12] + "...]"
        return "<%s %s>" % (type(self).__name__, text)

    def __len__(self):
        if isinstance(self.targets, (list, tuple, range)):
            return len(self.targets)
        return 1 if isinstance(self.targets, int) else len(self.client)

    def set_flags(self, **flags):
        """Sets several of my attributes by name; KeyError for one that is not a flag."""
        for name in flags:
            if name not in self._flags:
                raise KeyError("Invalid name: %r" % (name,))
        for name, value in flags.items():
            setattr(self, name, value)

    @contextmanager
    def temp_flags(self, **flags):
        """Sets flags for the length of a `with` block."""
        saved = {name: getattr(self, name) for name in self._flags}
        self.set_flags(**flags)
        try:
            yield
        finally:
            self.set_flags(**saved)

    # ---- calls

    def apply(self, f, /, *args, **kwargs):
        """Calls f(*args, **kwargs) on my engines: an AsyncResult, or, with `block`, the result."""
        return self._call(f, args, kwargs)

    def apply_async(self, f, /, *args, **kwargs):
        """apply() that returns at once."""
        return self._call(f, args, kwargs, block=False)

    def apply_sync(self, f, /, *args, **kwargs):
        """apply() that waits."""
        return self._call(f, args, kwargs, block=True)

    def _finish(self, result, block):
        """The result, or what it is when `block`; Ctrl-C leaves the caller with the result."""
        if not (self.block if block is None else block):
            return result
        try:
            return result.get()
        except KeyboardInterrupt:
            return result

    # ---- maps

    def map_async(self, f, *sequences, **kwargs):
        """map() that returns at once."""
        if "block" in kwargs:
            raise TypeError("map_async doesn't take a `block` keyword argument.")
        return self.map(f, *sequences, block=False, **kwargs)

    def map_sync(self, f, *sequences, **kwargs):
        """map() that waits."""
        if "block" in kwargs:
            raise TypeError("map_sync doesn't take a `block` keyword argument.")
        return self.map(f, *sequences, block=True, **kwargs)

    def imap(self, f, *sequences, **kwargs):
        """An iterator over map()'s results, as they come."""
        return iter(self.map_async(f, *sequences, **kwargs))

    @staticmethod
    def _listed(sequences):
        assert len(sequences) > 0, "must have some sequences to map onto!"
        listed = [
            s if hasattr(s, "__len__") and hasattr(s, "__getitem__") else list(s) for s in sequences
        ]
        size = min(len(s) for s in listed)
        return [s if len(s) == size else s[:size] for s in listed], size

    # ---- control, through the client

    def abort(self, jobs=None, targets=None, block=None):
        """Takes tasks that have not started from the engines' queues."""
        return self.client.abort(jobs, targets=self.targets if targets is None else targets)

    def queue_status(self, targets=None, verbose=False):
        """What the controller has queued for my engines."""
        return self.client.queue_status(self.targets if targets is None else targets, verbose)

    def shutdown(self, targets=None, restart=False, hub=False, block=None):
        """Ends my engines."""
        return self.client.shutdown(self.targets if targets is None else targets, restart, hub)


class DirectView(View):
    """Addresses each of its engines. Made by indexing a client: rc[0], rc[1:3], rc[:].

    With targets "all" it means whatever engines there are at each call. Indexed by a name it is
    a dictionary of the engines' variables.
    """

    def _scope(self, targets):
        """(ids, single, form) for one call."""
        targets = self.targets if targets is None else targets
        ids = self.client._build_targets(targets)
        return ids, isinstance(targets, int), self.client._form(ids)

    def _result(self, raw, form, fname, ids, single, method="apply"):
        return AsyncResult(
            self.client, raw, form.unpack_result, fname, ids, single, method=method
        )

    def _call(self, f, args, kwargs, targets=None, block=None):
        ids, single, form = self._scope(targets)
        buffers = form.pack_call(form.pack_function(f), args, kwargs)
        raw = self.client._submit(
            _phalanx.APPLY, targets=ids, buffers=buffers, metadata=getattr(form, "METADATA", None)
        )
        return self._finish(self._result(raw, form, _name_of(f), ids, single), block)

    def execute(self, code, silent=True, targets=None, block=None):
        """Runs source code on my engines. Returns an AsyncResult of ExecuteReply objects."""
        ids, single, form = self._scope(targets)
        raw = self.client._submit(_phalanx.EXECUTE, targets=ids, code=code, silent=silent)
        result = self._result(raw, form, "execute", ids, single, method="execute")
        if self.block if block is None else block:
            try:
                result.get()
                result.wait_for_output()
            except KeyboardInterrupt:
                pass
        return result

    def run(self, filename, targets=None, block=None):
        """Executes a local file's contents on my engines."""
        with open(filename) as file:
            return self.execute(file.read() + "\n", targets=targets, block=block)

    def map(self, f, *sequences, block=None, track=False, return_exceptions=False):
        """Like the builtin map: each engine gets one contiguous part of the sequences."""
        ids, _, form = self._scope(None)
        sequences, size = self._listed(sequences)
        mapper = maps.BlockMap()
        mapping, function = form.pack_function(_map), form.prepare(f)
        raw = None
        for index, target in enumerate(ids[:size]):
            parts = [mapper.part(s, index, len(ids), size) for s in sequences]
            raw = self.client._submit(
                _phalanx.APPLY, targets=[target], metadata=getattr(form, "METADATA", None),
                buffers=form.pack_map(mapping, function, parts), into=raw,
            )
        if raw is None:
            return []
        result = AsyncMapResult(
            self.client, raw, form.unpack_result, mapper.join, fname=_name_of(f), targets=ids,
            return_exceptions=return_exceptions,
        )
        return self._finish(result, block)

    # ---- data

    def push(self, names, targets=None, block=None, track=None):
        """Sets variables on my engines from a dictionary."""
        if not isinstance(names, dict):
            raise TypeError("Must be a dict, not %s" % type(names))
        return self._call(_push, (), names, targets, block)

    def update(self, names):
        """push() to all of my engines."""
        return self.push(names)

    def pull(self, names, targets=None, block=None):
        """The value of a name, or of each of a list of names, on each of my engines."""
        if not isinstance(names, str):
            if not isinstance(names, (list, tuple, set)):
                raise TypeError("names must be strs, not %r" % (names,))
            for name in names:
                if not isinstance(name, str):
                    raise TypeError("keys must be str, not type %r" % (name,))
            names = list(names)
        return self._call(_pull, (names,), {}, targets, block)

    def get(self, names):
        """pull() that waits."""
        return self.pull(names, block=True)

    def __getitem__(self, name):
        return self.get(name)

    def __setitem__(self, name, value):
        self.push({name: value})

    def scatter(self, key, seq, dist="b", flatten=False, targets=None, block=None, track=None):
        """Gives each engine a part of `seq` under the name `key`; with `flatten`, an only element
        itself."""
        ids, _, form = self._scope(targets)
        mapper = maps.by_name[dist]()
        function, raw = form.pack_function(_push), None
        for index, target in enumerate(ids):
            part = mapper.part(seq, index, len(ids))
            value = part[0] if flatten and len(part) == 1 else part
            raw = self.client._submit(
                _phalanx.APPLY, targets=[target], metadata=getattr(form, "METADATA", None),
                buffers=form.pack_call(function, (), {key: value}), into=raw,
            )
        result = self._result(raw, form, "scatter", ids, False)
        if not (self.block if block is None else block):
            return result
        result.get()
        return None

    def gather(self, key, dist="b", targets=None, block=None):
        """Joins the parts of a sequence that engines have under the name `key`."""
        ids, _, form = self._scope(targets)
        raw = self.client._submit(
            _phalanx.APPLY, targets=ids, metadata=getattr(form, "METADATA", None),
            buffers=form.pack_call(form.pack_function(_pull), (key,), {}),
        )
        result = AsyncMapResult(
            self.client, raw, form.unpack_result, maps.by_name[dist]().join, fname="gather",
            targets=ids,
        )
        return self._finish(result, block)

    def clear(self, targets=None, block=None):
        """Empties the namespaces of my engines."""
        return self.client.clear(self.targets if targets is None else targets)

    @contextmanager
    def sync_imports(self, local=True, quiet=False):
        """Imports in the `with` block happen on my engines as well as here."""
        original = builtins.__import__
        wanted = []

        def spy(name, scope=None, local_scope=None, fromlist=(), level=0):
            module = original(name, scope, local_scope, fromlist or (), level)
            outermost = (scope or {}).get("__name__") == "__main__" and level == 0
            if outermost and (name, tuple(fromlist or ())) not in wanted:
                wanted.append((name, tuple(fromlist or ())))
            return module

        builtins.__import__ = spy
        try:
            yield
        finally:
            builtins.__import__ = original
        for name, names in wanted:
            listed = ", ".join(names)
            if not quiet:
                print("importing %s on engine(s)" % ("%s from %s" % (listed, name) if names else name))
            code = "from %s import %s" % (name, listed) if names else "import %s" % name
            self.execute(code, block=False).get()

    def activate(self, suffix=""):
        """Makes this view the one that %px and %%px (with `suffix` appended) run on."""
        from . import _activate

        _activate(self, suffix)


class LoadBalancedView(View):
    """Gives each task to whichever of its engines is free first."""

    _flags = View._flags + ("after", "follow", "timeout", "retries")

    def __init__(self, client, targets=None, **flags):
        self.after = self.follow = self.timeout = None
        self.retries = 0
        super().__init__(client, targets, **flags)

    def _scope(self):
        ids = None if self.targets is None else self.client._build_targets(self.targets)
        return ids, self.client._form(ids)

    def _metadata(self, form):
        members = []
        for name in ("after", "follow"):
            value = getattr(self, name)
            if value:
                members.append('"%s": %s' % (name, json.dumps(_dependency(value))))
        if self.timeout:
            members.append('"timeout": %s' % json.dumps(float(self.timeout)))
        if self.retries:
            members.append('"retries": %d' % self.retries)
        if getattr(form, "METADATA", None):
            members.append(form.METADATA)
        return ", ".join(members) or None

    def _call(self, f, args, kwargs, block=None):
        ids, form = self._scope()
        raw = self.client._submit(
            _phalanx.APPLY, _phalanx.BALANCED, ids, metadata=self._metadata(form),
            buffers=form.pack_call(form.pack_function(f), args, kwargs),
        )
        result = AsyncResult(self.client, raw, form.unpack_result, _name_of(f), None, True)
        return self._finish(result, block)

    def map(
        self, f, *sequences, block=None, chunksize=None, ordered=True, return_exceptions=False
    ):
        """Like the builtin map: every `chunksize` elements are one task. Without it few elements are
        a task each, and of many (see batch.py) as many go together as make some work."""
        sequences, size = self._listed(sequences)
        if chunksize is None and size > batch.FEW and batch.suits(f):
            result = AsyncMapResult(
                self.client, batch.Batches(self, f, sequences, size), batch.value_of,
                maps.BlockMap().join, ordered, fname=_name_of(f),
                return_exceptions=return_exceptions,
            )
            return self._finish(result, block)
        if chunksize is None or chunksize < 1:
            chunksize = 1
        ids, form = self._scope()
        mapping, function = form.pack_function(_map), form.prepare(f)
        metadata, raw = self._metadata(form), None
        for low in range(0, size, chunksize):
            parts = [s[low : low + chunksize] for s in sequences]
            raw = self.client._submit(
                _phalanx.APPLY, _phalanx.BALANCED, ids, metadata=metadata,
                buffers=form.pack_map(mapping, function, parts), into=raw,
            )
        if raw is None:
            return []
        result = AsyncMapResult(
            self.client, raw, form.unpack_result, maps.BlockMap().join, ordered,
            fname=_name_of(f), return_exceptions=return_exceptions,
        )
        return self._finish(result, block)

    def imap(
        self, f, *sequences, ordered=True, max_outstanding="auto", return_exceptions=False
    ):
        """An iterator over f of the sequences' elements, which may be endless: they are taken as the
        results are. `ordered`: in their order, else as they come; `max_outstanding`: how many
        elements are on their way at most ("auto": what keeps the engines busy)."""
        most = None if max_outstanding in ("auto", 0) else max_outstanding
        return batch.imap(self, f, sequences, ordered, most, return_exceptions)


def _dependency(value):
    if isinstance(value, AsyncResult):
        return value.msg_ids
    if isinstance(value, str):
        return [value]
    out = []
    for item in value:
        out += item.msg_ids if isinstance(item, AsyncResult) else [item]
    return out


__all__ = ["View", "DirectView", "LoadBalancedView"]
