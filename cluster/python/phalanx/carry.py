# SPDX-License-Identifier: BSD-3-Clause
"""What %%px --push and --pull carry: names from here to engines, and back.

Every engine remembers the digest of what it was sent under a name, and a fingerprint of what that
became there. It is asked first, and sent only what it does not have: another value, none, or one
that the engine's own code has replaced or changed since.
"""

import hashlib

from IPython.core.error import UsageError

from . import _magics, error, shared
from .canning import interactive

# ---- on engines, in the user's namespace


@interactive
def _carry(digests, values=None):
    """Takes values in, or says which of the names have other values here than were sent.

    A fingerprint is that of a pickle. Of an object whose class says how it is pickled, that may not
    be all there is; so there are some of Python's own containers, numbers and texts and of NumPy's
    objects alone, and everything else counts as changed.
    """
    import builtins
    import io
    import pickle
    from hashlib import blake2b

    class Pickler(pickle.Pickler):
        def reducer_override(self, value):  # called for all but Python's own
            named = builtins.callable(value) and builtins.hasattr(value, "__module__")
            module = (value if named else builtins.type(value)).__module__
            if builtins.str(module).partition(".")[0] != "numpy":
                raise pickle.PicklingError
            return builtins.NotImplemented

    def fingerprint(value):
        out, buffers, digest = io.BytesIO(), [], blake2b(digest_size=16)
        try:
            Pickler(out, 5, buffer_callback=buffers.append).dump(value)
            for part in [out.getbuffer(), *[buffer.raw() for buffer in buffers]]:
                digest.update(part)
        except builtins.Exception:
            return None
        return digest.digest()

    scope = builtins.globals()
    kept = scope.setdefault("_px_carried", {})
    if values is not None:
        scope.update(values)
        for name, digest in digests.items():
            kept[name] = digest, fingerprint(scope[name])
        return []

    def is_as_sent(name):
        digest, was = kept.get(name, (None, None))
        same = name in scope and was is not None and digest == digests[name]
        return same and was == fingerprint(scope[name])

    return [name for name in digests if not is_as_sent(name)]


# ---- here


def _digest(form, name, value):
    digest = hashlib.blake2b(digest_size=16)
    try:
        for buffer in form.pack_call(form.pack_function(_carry), (value,), {}):
            digest.update(memoryview(buffer).cast("B") if len(buffer) else b"")
    except Exception as e:
        raise UsageError(
            "--push: '%s' cannot be sent: %s: %s" % (name, type(e).__name__, e)
        ) from None
    return digest.hexdigest()


def push(view, targets, names, scope):
    """Sends names of the dictionary `scope` to the engines that lack them. Waits."""
    names = [name for name, _ in names]
    for name in names:
        if name not in scope:
            raise UsageError("--push: there is no '%s' here" % name)
    client = view.client
    ids = client._ids_of(targets)
    form = client._form(ids)
    digests = {name: _digest(form, name, scope[name]) for name in names}
    lacking = view._call(_carry, (digests,), {}, ids, False).get()
    groups = {}
    for engine, missing in zip(ids, lacking):
        if missing:
            groups.setdefault(tuple(missing), []).append(engine)

    def send(values):
        results = [
            view._call(
                _carry,
                ({name: digests[name] for name in missing}, {name: values[name] for name in missing}),
                {}, engines, False,
            )
            for missing, engines in groups.items()
        ]
        for result in results:
            result.get()

    if groups:
        shared.deliver(client, ids, {name: scope[name] for name in set().union(*groups)}, send)


def _said(exception):
    """What engines have raised, in a line: each error once."""
    by_text = {}
    for ename, evalue, _, info in getattr(exception, "elist", ()):
        by_text.setdefault("%s: %s" % (ename, evalue), []).append((info or {}).get("engine_id"))
    if not by_text or None in sum(by_text.values(), []):
        return str(exception)
    return "; ".join("%s (engine%s %s)" % (text, "" if len(ids) == 1 else "s", _magics.ranges(ids))
                     for text, ids in by_text.items())


def check(view, names):
    """Refuses engines to pull from that are not there."""
    for _, engine in names:
        if engine is not None and engine not in view.client.ids:
            raise UsageError("--pull: there is no engine %d" % engine)


def pull(view, targets, names, scope):
    """Puts the engines' values of names into the dictionary `scope`: a list in the order of the
    engines, or one engine's value. Waits."""
    ids = view.client._ids_of(targets)
    check(view, names)
    results = [
        view.pull(name, targets=ids if engine is None else engine, block=False)
        for name, engine in names
    ]
    values = {}
    for (name, _), result in zip(names, results):
        try:
            values[name] = result.get()
        except error.RemoteError as e:
            raise UsageError("--pull: '%s' cannot be fetched: %s" % (name, _said(e))) from None
    scope.update(values)
