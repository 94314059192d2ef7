# SPDX-License-Identifier: BSD-3-Clause
"""Views: which engines work is for, and the ways to give it to them."""

import builtins
import json
import re
import sys
from contextlib import contextmanager, suppress

from . import _phalanx, calls, canning, error, imports, maps, pickle5, shared
from .asyncresult import AsyncResult
from .canning import engine_function
from .futures import ViewExecutor
from .mapresult import AsyncMapResult
from .remotefunction import ParallelFunction, RemoteFunction, name_of

# A cell without output is answered by its reply alone. Not through ipcontroller, whose records
# would lack the code.
_QUIET = '"px_quiet": true'

# ---- functions that run on engines, in the user's namespace


@engine_function
def _push(**names):
    scope = globals()
    for name, value in names.items():
        if name.isidentifier():
            scope[name] = value
        else:  # an attribute or an item
            exec("%s = _px_value" % name, scope, {"_px_value": value})


@engine_function
def _pull(names):
    if isinstance(names, str):
        return eval(names, globals())
    return [eval(name, globals()) for name in names]


@engine_function
def _map(f, *sequences):
    return [f(*args) for args in zip(*sequences)]  # list(map()) would end at a StopIteration of f's


@engine_function
def _import(statement):
    exec(statement, globals())


@engine_function
def _use(name):
    import sys

    serialize = sys.modules.get("ipyparallel.serialize")  # the real package's
    if hasattr(serialize, "use_" + name):
        getattr(serialize, "use_" + name)()
    wire = sys.modules.get("_phalanx_wire.canning")  # of our engines
    if wire is not None:
        wire.use(name)
    if name != "pickle":
        __import__(name)


class View:
    """What all views have in common.

    block: whether calls wait and return results (else AsyncResults). track: whether an AsyncResult
    knows when large arguments have been sent. targets: the engines. label: what the controller's
    task database files my tasks under, any JSON.
    """

    client: "Client"
    targets: "str | int | list[int] | None"
    block: bool
    track: bool
    label: object
    history: "list[str]"

    _flags = ("targets", "block", "track", "label")

    def __init__(self, client=None, socket=None, targets=None, **flags):
        self.client = client
        self.targets = targets
        self.block = client.block
        self.track = False
        self.label = None
        self.history = []  # ids of what was submitted, the newest thousands of them
        self._executor = None
        self.set_flags(**flags)

    def __repr__(self):
        text = str(self.targets)
        if len(text) > 16:
            text = text[:12] + "..." + text[-1]
        return "<%s %s>" % (type(self).__name__, text)

    def __len__(self):
        if isinstance(self.targets, (list, tuple, range)):
            return len(self.targets)
        if isinstance(self.targets, str) and self.targets != "all":
            return len(self.client._ids_of(self.targets))
        return 1 if isinstance(self.targets, int) else len(self.client)

    def set_flags(self, **flags):
        """Sets several of my attributes by name; KeyError for one that is not a flag. Returns the
        view."""
        for name in flags:
            if name not in self._flags:
                raise KeyError("Invalid name: %r" % (name,))
        for name, value in flags.items():
            setattr(self, name, value)
        return self

    @contextmanager
    def temp_flags(self, **flags):
        """Sets flags for the length of a `with` block."""
        saved = {name: getattr(self, name) for name in self._flags}
        self.set_flags(**flags)
        try:
            yield
        finally:
            self.set_flags(**saved)

    def _members(self):
        """What my flags add to the metadata of my requests, as JSON members."""
        return []

    def _metadata(self, form=None, quiet=False, label=None):
        """The metadata of a request, as JSON members; label: None for the view's."""
        members, label = self._members(), self.label if label is None else label
        if label is not None:
            members.append('"label": %s' % json.dumps(label))
        if form is not None and form.METADATA:
            members.append(form.METADATA)
        if quiet:
            members.append(_QUIET)
        return ", ".join(members) or None

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

    def _sent(self, result, lent=None, label=None):
        """Enters a result that was just submitted into the books."""
        label = self.label if label is None else label
        if label is not None:
            result._label = label
        if lent is not None:
            result._lent = lent
        self.client._remember(result, self)
        return result

    def _finish(self, result, block):
        """The result, or what it is when `block`."""
        if not (self.block if block is None else block):
            return result
        with self._awaited(result):
            return result.get()

    @contextmanager
    def _awaited(self, result):
        """An interrupt, while one waits in the block, takes back what has not started of a call."""
        try:
            yield
        except KeyboardInterrupt:
            ended = result._replied  # what is taken back has a reply, too
            with suppress(error.KernelError, _phalanx.ClosedError):
                result._take_back()
            raise error.without_our_frames(KeyboardInterrupt(
                "%d of %d tasks had ended. Those that had not started are taken back; those that run"
                " go on, unless client.send_signal('SIGINT') interrupts what engines run"
                % (ended, len(result))
            )) from None

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
        """(sequences that can be sliced, of one length, the length)."""
        if not sequences:
            raise AssertionError("must have some sequences to map onto!")
        listed = [s if maps.has_parts(s) else list(s) for s in sequences]
        size = min(len(s) for s in listed)
        return [s if len(s) == size else s[:size] for s in listed], size

    def remote(self, block=None, **flags):
        """A decorator: calls of the function are apply() of this view."""
        return lambda f: RemoteFunction(self, f, block, **flags)

    def parallel(self, dist="b", block=None, **flags):
        """A decorator: the function is called with parts of its arguments, one for each engine."""
        return lambda f: ParallelFunction(self, f, dist, block, **flags)

    @property
    def executor(self):
        """A concurrent.futures.Executor on this view."""
        if self._executor is None or self._executor._shut:
            self._executor = ViewExecutor(self)
        return self._executor

    # ---- waiting and control, through the client

    @property
    def results(self):
        """What client.results holds."""
        return self.client.results

    @property
    def outstanding(self):
        """The ids of my tasks that have no reply yet, a set."""
        return self.client.outstanding.intersection(self.history)

    def spin(self):
        """Does nothing: a thread of the C library receives."""

    def _jobs(self, jobs):
        """Jobs in which numbers count in my history."""
        if isinstance(jobs, int):
            return self.history[jobs]
        if isinstance(jobs, (list, tuple, set)):
            return [self.history[job] if isinstance(job, int) else job for job in jobs]
        return jobs

    def wait(self, jobs=None, timeout=-1):
        """Waits for tasks (None: all of mine), at most `timeout` seconds. Whether they ended."""
        jobs = sorted(self.outstanding) if jobs is None else self._jobs(jobs)
        return self.client.wait(jobs, timeout)

    def get_result(self, indices_or_msg_ids=None, block=None, owner=False):
        """client.get_result(); numbers count in my history."""
        jobs = self._jobs(-1 if indices_or_msg_ids is None else indices_or_msg_ids)
        return self.client.get_result(jobs, block, owner)

    def abort(self, jobs=None, targets=None, block=None):
        """Takes tasks (None: all of mine) that have not started from the engines' queues."""
        jobs = sorted(self.outstanding) if jobs is None else jobs
        if isinstance(jobs, list) and not jobs:
            return None
        block = self.block if block is None else block
        return self.client.abort(jobs, self.targets if targets is None else targets, block)

    def queue_status(self, targets=None, verbose=False):
        """What the controller has queued for my engines."""
        targets = self.targets if targets is None else targets
        return self.client.queue_status("all" if targets is None else targets, verbose)

    def purge_results(self, jobs=(), targets=()):
        """client.purge_results(); targets "all" and None mean my engines."""
        targets = self.targets if targets in ("all", None) else targets
        return self.client.purge_results(jobs, targets)

    def shutdown(self, targets=None, restart=False, hub=False, block=None):
        """Ends my engines."""
        targets = self.targets if targets in ("all", None) else targets
        block = self.block if block is None else block
        return self.client.shutdown(targets, restart, hub, block)


class DirectView(View):
    """Addresses each of its engines. Made by indexing a client: rc[0], rc[1:3], rc[:].

    With targets "all" it means whatever engines there are at each call. Indexed by a name it is
    a dictionary of the engines' variables.
    """

    _route = _phalanx.DIRECT

    def _scope(self, targets):
        """(ids, single, form) for one call."""
        targets = self.targets if targets is None else targets
        ids = self.client._ids_of(targets)
        return ids, isinstance(targets, int), self.client._form(ids)

    def _result(self, raw, form, fname, ids, single, method="apply"):
        return AsyncResult(
            self.client, raw, form.unpack_result, fname, ids, single, method=method
        )

    def _apply(
        self, form, buffers, ids, into=None, route=_phalanx.DIRECT, label=None, **options
    ):
        return self.client._raw.submit(
            _phalanx.APPLY, route, targets=ids, buffers=buffers, into=into,
            metadata=self._metadata(form, label=label), **options,
        )

    def _call(self, f, args, kwargs, targets=None, block=None, track=None):
        calls.check(f)
        ids, single, form = self._scope(targets)
        buffers, lent = calls.pack(form, f, args, kwargs), None
        if self.track if track is None else track:
            buffers, lent = calls.lend(buffers)
        raw = self._apply(form, buffers, ids, route=self._route)
        if f is _push:
            self.client._ahead.add(raw, len(ids) * calls.size(buffers))
        del buffers
        result = self._sent(self._result(raw, form, name_of(f), ids, single), lent)
        return self._finish(result, block)

    def execute(self, code, silent=True, targets=None, block=None, label=None):
        """Runs source code on my engines. Returns an AsyncResult of ExecuteReply objects; with
        `block` one that has ended, or it raises what the code raised. label: instead of my own."""
        if not isinstance(code, str):
            raise TypeError("code must be text, not %s" % type(code))
        ids, single, form = self._scope(targets)
        quiet = form is pickle5 and self._route == _phalanx.DIRECT
        raw = self.client._raw.submit(
            _phalanx.EXECUTE, self._route, targets=ids, code=code, silent=silent,
            metadata=self._metadata(quiet=quiet, label=label),
        )
        self.client._ahead.add(raw)
        result = self._result(raw, form, "execute", ids, single, method="execute")
        self._sent(result, label=label)
        if not silent:
            for task in result._tasks:  # an engine need not repeat it
                task.execute_input = code
        if self.block if block is None else block:
            with self._awaited(result):
                result.get()
                result.wait_for_output()
        return result

    def run(self, filename, targets=None, block=None, label=None):
        """Executes a local file's contents on my engines."""
        with open(filename) as file:
            return self.execute(file.read() + "\n", targets=targets, block=block, label=label)

    def map(
        self, f, *sequences, block=None, track=False, return_exceptions=False, label=None
    ):
        """Like the builtin map: each engine gets one contiguous part of the sequences. An
        AsyncMapResult, or with `block` a list. With `return_exceptions` what was raised is among
        the results. label: instead of my own."""
        return self._spread(
            f, sequences, maps.BlockMap(), True, block, label=label,
            return_exceptions=return_exceptions,
        )

    def _spread(
        self, f, sequences, mapper, each, block, chunksize=None, label=None, **options
    ):
        """Gives each engine a part of the sequences: f is called with the parts, or, if `each`, with
        the elements of each part."""
        ids, _, form = self._scope(None)
        sequences, size = self._listed(sequences)
        mapping, function = form.pack_function(_map if each else f), calls.prepare(form, f)
        raw, sizes = None, []
        for index, target in enumerate(ids[:size]):
            parts = [mapper.part(s, index, len(ids), size) for s in sequences]
            sizes.append(len(parts[0]) if each else 1)
            if each:
                buffers = calls.pack_map(form, mapping, function, parts)
            else:
                buffers = calls.pack(form, f, parts, {}, mapping)
            raw = self._apply(form, buffers, [target], raw, label=label)
        if raw is None:
            return []
        result = AsyncMapResult(
            self.client, raw, form.unpack_result, mapper.join, fname=name_of(f), targets=ids,
            sizes=sizes, **options,
        )
        return self._finish(self._sent(result, label=label), block)

    # ---- data

    def push(self, ns, targets=None, block=None, track=None):
        """Sets variables on my engines from a dictionary: {"a": 1, "obj.attr": 2}. With `block`,
        large arrays are shared, as share() does it, where all engines are on this host."""
        if not isinstance(ns, dict):
            raise TypeError("Must be a dict, not %s" % type(ns))
        block = self.block if block is None else block

        def send(names):
            return self._call(_push, (), names, targets, block, track)

        if not block:  # this process may have ended before engines look into it
            return send(ns)
        return shared.deliver(self.client, self.targets if targets is None else targets, ns, send)

    def update(self, ns):
        """push() to all of my engines."""
        return self.push(ns)

    def pull(self, names, targets=None, block=None):
        """The value of a name, or of each of a list of names, on each of my engines. RemoteError
        (NameError) where it is not defined."""
        if not isinstance(names, str):
            if not isinstance(names, (list, tuple, set)):
                raise TypeError("names must be strs, not %r" % (names,))
            for name in names:
                if not isinstance(name, str):
                    raise TypeError("keys must be str, not type %s" % type(name))
            names = list(names)
        return self._call(_pull, (names,), {}, targets, block)

    def get(self, key_s):
        """pull() of a name, or of a list of names, that waits."""
        return self.pull(key_s, block=True)

    def __getitem__(self, name):
        return self.get(name)

    def __setitem__(self, name, value):
        self.push({name: value})

    def scatter(self, key, seq, dist="b", flatten=False, targets=None, block=None, track=None):
        """Gives each engine a part of `seq` under the name `key`; with `flatten`, an only element
        itself. dist: "b" for contiguous parts, "r" for every n-th element."""
        ids, _, form = self._scope(targets)
        mapper, track = self._mapper(dist), self.track if track is None else track
        function, raw, lent, size = form.pack_function(_push), None, [], 0
        for index, target in enumerate(ids):
            part = mapper.part(seq, index, len(ids))
            value = part[0] if flatten and len(part) == 1 else part
            buffers = calls.pack(form, _push, (), {key: value}, function)
            if track:
                buffers, refs = calls.lend(buffers)
                lent += refs
            raw = self._apply(form, buffers, [target], raw)
            size += calls.size(buffers)
        self.client._ahead.add(raw, size)
        result = self._sent(self._result(raw, form, "scatter", ids, False), lent or None)
        if not (self.block if block is None else block):
            return result
        with self._awaited(result):
            result.get()
        return None

    @staticmethod
    def _mapper(dist):
        if dist not in maps.by_name:
            raise KeyError("dist is 'b' (blocks) or 'r' (round robin), not %r" % (dist,))
        return maps.by_name[dist]()

    def gather(self, key, dist="b", targets=None, block=None):
        """Joins the parts of a sequence that engines have under the name `key`."""
        ids, _, form = self._scope(targets)
        raw = self._apply(form, form.pack_call(form.pack_function(_pull), (key,), {}), ids)
        result = AsyncMapResult(
            self.client, raw, form.unpack_result, self._mapper(dist).join, fname="gather",
            targets=ids,
        )
        return self._finish(self._sent(result), block)

    def clear(self, targets=None, block=None):
        """Empties the namespaces of my engines."""
        block = self.block if block is None else block
        return self.client.clear(self.targets if targets is None else targets, block)

    # ---- imports

    @property
    def importer(self):
        """sync_imports()."""
        return self.sync_imports()

    @contextmanager
    def sync_imports(self, local=True, quiet=False):
        """Imports in the `with` block happen on my engines as well as here. quiet: says nothing.
        RemoteError where a module is missing there."""
        if not local:
            raise NotImplementedError(
                "imports on engines alone are not made with sync_imports; use view.execute"
            )
        original, user = builtins.__import__, sys._getframe(2)
        wanted = []

        def spy(name, scope=None, local_scope=None, fromlist=(), level=0):
            module = original(name, scope, local_scope, fromlist or (), level)
            if sys._getframe(1) is user and level == 0:
                wanted.append(imports.statement(user, name, fromlist or ()))
            return module

        builtins.__import__ = spy
        try:
            yield
        finally:
            builtins.__import__ = original
        results = []
        for what, module in dict.fromkeys(wanted):
            if not quiet:
                origin = " from " + module if module else ""
                print("importing %s%s on engine(s)" % (what, origin))
            start = "from %s import " % module if module else "import "
            plain = re.sub(r" as \w+", "", what)  # by which ipyparallel's engines know it, alone
            results.append(self.apply_async(_import, "; ".join([start + plain, start + what])))
        for result in results:
            result.get()

    # ---- pickling

    def _use_pickler(self, name):
        canning.use(name)
        result = self.apply(_use, name)
        if isinstance(result, AsyncResult):
            result._fname = "use_" + name
        return result

    def use_cloudpickle(self):
        """From now on this process pickles with cloudpickle: functions carry the globals that they
        use with them, instead of finding them on the engine."""
        return self._use_pickler("cloudpickle")

    def use_dill(self):
        """From now on this process pickles with dill, which must be installed here and there."""
        return self._use_pickler("dill")

    def use_pickle(self):
        """Undoes use_cloudpickle() and use_dill()."""
        return self._use_pickler("pickle")

    def activate(self, suffix=""):
        """Makes this view the one that %px and %%px (with `suffix` appended) run on."""
        from . import _activate

        _activate(self, suffix)
