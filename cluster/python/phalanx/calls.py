# SPDX-License-Identifier: BSD-3-Clause
"""From a Python call to the buffers of a message, and what is said when that cannot be."""

import pickle
import weakref

from .canning import PrePickled, Reference, is_refusal

LENT_BYTES = 65536  # from this size on the C library sends a buffer where it lies

_REFUSALS = (pickle.PicklingError, TypeError, AttributeError, ValueError, RecursionError)


def check(f):
    """TypeError when `f` is nothing that an engine could call."""
    if not callable(f) and not isinstance(f, (Reference, PrePickled)):
        raise TypeError("f must be callable, not %s" % type(f))


def _refused(form, value):
    try:
        form.pack_call(form.pack_function(value), (), {}) if callable(value) else form.pack_call(
            form.pack_function(len), (value,), {}
        )
    except _REFUSALS:
        return True
    return False


def _culprit(form, f, args, kwargs):
    """What of a call cannot be pickled, in words."""
    if _refused(form, f):
        return "the function %s" % getattr(f, "__name__", f)
    named = [("argument %d" % (i + 1), value) for i, value in enumerate(args)]
    named += [("the argument %s" % name, value) for name, value in kwargs.items()]
    for name, value in named:
        if _refused(form, value):
            return "%s, a %s," % (name, type(value).__name__)
    return "the call"


def _explained(e, form, f, args, kwargs):
    """`e` with a sentence that says what to do about it."""
    kind = type(e) if type(e) in _REFUSALS else pickle.PicklingError
    explained = kind(
        "%s: %s cannot be sent to an engine. Make it there instead (view.execute), pass what it is "
        "made from, or refer to it by name (phalanx.Reference)"
        % (e, _culprit(form, f, args, kwargs))
    )
    explained.__cause__ = None if is_refusal(e) else e
    return explained


def pack(form, f, args, kwargs, function=None):
    """The buffers of a call of `f`; function: what form.pack_function(f) gave, where known. What
    pickle raises is raised again with the name of the argument."""
    try:
        return form.pack_call(function or form.pack_function(f), args, kwargs)
    except _REFUSALS as e:
        raise _explained(e, form, f, args, kwargs)


def prepare(form, f):
    """`f` as it is sent with every task of a map."""
    check(f)
    try:
        return form.prepare(f)
    except _REFUSALS as e:
        raise _explained(e, form, f, (), {})


def size(buffers):
    """How many bytes they have."""
    return sum(memoryview(buffer).nbytes for buffer in buffers)


def pack_map(form, mapping, function, parts):
    """The buffers of a task of a map; mapping and function are prepared."""
    try:
        return form.pack_map(mapping, function, parts)
    except _REFUSALS as e:
        raise _explained(e, form, len, parts, {})


def lend(buffers):
    """(buffers to send, weak references that die as they have been sent)."""
    lent = [memoryview(b) if _size(b) >= LENT_BYTES else b for b in buffers]
    return lent, [weakref.ref(b) for b in lent if type(b) is memoryview]


def _size(buffer):
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)
