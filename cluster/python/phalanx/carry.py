# SPDX-License-Identifier: BSD-3-Clause
"""What %%px --push and --pull carry: names from here to engines, and back.

Every engine remembers the digest of what it was sent under a name, and which object that became.
It is asked first, and sent only what it does not have: another value, or none, or one that the
engine's own code has put in its place.
"""

import hashlib

from IPython.core.error import UsageError

from . import error
from .canning import interactive

# ---- on engines, in the user's namespace


@interactive
def _lacking(digests):
    scope = globals()
    kept = scope.get("_px_carried", {})
    return [
        name for name, digest in digests.items()
        if name not in scope or kept.get(name) != (digest, id(scope[name]))
    ]


@interactive
def _receive(names, digests):
    scope = globals()
    scope.update(names)
    kept = scope.setdefault("_px_carried", {})
    for name, digest in digests.items():
        kept[name] = digest, id(scope[name])


# ---- here


def _digest(form, name, value):
    digest = hashlib.blake2b(digest_size=16)
    try:
        for buffer in form.pack_call(form.pack_function(_lacking), (value,), {}):
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
    lacking = view._call(_lacking, (digests,), {}, ids, False).get()
    groups = {}
    for engine, missing in zip(ids, lacking):
        if missing:
            groups.setdefault(tuple(missing), []).append(engine)
    results = [
        view._call(
            _receive,
            ({name: scope[name] for name in missing}, {name: digests[name] for name in missing}),
            {}, engines, False,
        )
        for missing, engines in groups.items()
    ]
    for result in results:
        result.get()


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
            raise UsageError("--pull: '%s' cannot be fetched: %s" % (name, e)) from None
    scope.update(values)
