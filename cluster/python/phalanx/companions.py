# SPDX-License-Identifier: BSD-3-Clause
"""What functions of __main__ take along: what they name, for engines that lack it.

A function finds its globals on the engine, where its own home is not. So there go with it, by their
names: functions and classes, modules, small constants, and what those functions and methods name in
their turn. An engine takes what it has nothing under that name for, or had from here before: what
it was given otherwise, by a push or a cell of %%px, stays, and a cache that a function fills there
is not emptied. Names of builtins are not taken along: no engine lacks those, and whoever comes
after would find something else there. Arrays and other data are not, either: they may be large, and
are not meant to be equal everywhere; nor are constants whose names begin with _.
"""

import builtins
import dis
import functools
import io
import itertools
import sys
import types
import weakref

from . import canning

MOST_BYTES = 1 << 16  # of one pickle,
MOST_BYTES_IN_ALL = 1 << 18  # and of all that a function takes along
MOST_ITEMS = 64  # of a list or a dict that is a constant

_ATOMS = frozenset((bool, int, float, complex, str, bytes, type(None), range))
_NAMED = (types.FunctionType, type, types.ModuleType, functools._lru_cache_wrapper)
_CONSTANTS = (  # classes of values that do not change, where their modules are in use
    ("numpy", "generic"), ("numpy", "ufunc"), ("pathlib", "PurePath"), ("datetime", "date"),
    ("datetime", "time"), ("datetime", "timedelta"), ("decimal", "Decimal"), ("re", "Pattern"),
    ("fractions", "Fraction"), ("uuid", "UUID"), ("enum", "Enum"), ("logging", "Logger"),
)
_LOOKS = "LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"
_MISSING = object()


def _is_constant(value):
    return any(isinstance(value, getattr(sys.modules.get(module), name, ()))
               for module, name in _CONSTANTS)


def _is_small(value):
    """Whether a container is flat, and holds a few constants."""
    items = itertools.chain(value, value.values()) if type(value) is dict else value
    return len(value) <= MOST_ITEMS and all(
        type(item) in _ATOMS or _is_constant(item) for item in items)


def travels(name, value):
    """Whether what a name stands for is of a kind that is taken along."""
    try:
        return _travels(name, value)
    except Exception:  # of an object that says of what class it is, another thread's dict, …
        return False


def _travels(name, value):
    kind = type(value)
    if kind is types.BuiltinFunctionType:
        of_module = isinstance(value.__self__, types.ModuleType)
        return of_module or canning.published_method(value) is not NotImplemented
    if isinstance(value, _NAMED):
        return not (kind is types.FunctionType and value in canning.engine_functions)
    if name.startswith("_"):  # not meant for others, or IPython's
        return False
    if kind in _ATOMS:
        return kind not in (str, bytes) or len(value) <= MOST_BYTES
    if kind in (tuple, list, dict, set, frozenset):
        return _is_small(value)
    return _is_constant(value)


@functools.lru_cache(maxsize=1024)
def _globals_of(code):
    """The names that code, and code in it, looks for among its globals."""
    names = {
        step.argval for step in dis.get_instructions(code) if step.opname in _LOOKS
    }
    for constant in code.co_consts:
        if type(constant) is types.CodeType:
            names.update(_globals_of(constant))
    return tuple(sorted(names - vars(builtins).keys()))


class _Seen:
    """What a name stood for when it was looked up, to find out whether it still does."""

    __slots__ = ("names", "name", "get", "makings")

    def __init__(self, names, name, value, makings):
        self.names, self.name, self.makings = names, name, makings
        if value is _MISSING:
            self.get = None
        elif isinstance(value, _NAMED):
            self.get = weakref.ref(value)
        else:
            self.get = lambda: value

    def still(self, unchanged):
        """unchanged(value, makings): of one that has makings."""
        value = self.names.get(self.name, _MISSING)
        if self.get is None:
            return value is _MISSING or not travels(self.name, value)
        if value is None and type(self.get) is weakref.ref:  # it has gone
            return False
        return value is self.get() and unchanged(value, self.makings)


class _Short(io.BytesIO):
    """Takes MOST_BYTES, and nothing of more."""

    def write(self, data):
        self.check(data)
        return super().write(data)

    def check(self, data):
        """Raises OverflowError where there is no room for it. True: it may be in the stream."""
        if self.tell() + memoryview(data).nbytes > MOST_BYTES:
            raise OverflowError
        return True


def _pickled(value, pickler):
    """(the pickle of a value, functions of __main__ in it); raises what pickling does."""
    if type(value) is types.ModuleType:
        if sys.modules.get(value.__name__) is not value:
            raise TypeError(value.__name__)
        value = canning.ModuleRef(value.__name__)
    out = _Short()
    pickling = pickler(out, 5, buffer_callback=out.check)
    pickling.met = []
    pickling.dump(value)
    return out.getvalue(), pickling.met


def find(functions, pickler, makings_of):
    """({name: pickle} of what these functions of __main__ take along, what was seen of it).

    pickler: a class that lists functions of __main__ in `met`. makings_of(value): what decides the
    pickle of a value, to compare it with later; None: it may change unseen, and so has the second
    result to be: None."""
    found, looked, seen, room = {}, set(), [], MOST_BYTES_IN_ALL
    functions = list(functions)
    while functions:
        function = functions.pop()
        for name in _globals_of(function.__code__):
            if name in looked:
                continue
            looked.add(name)
            value = function.__globals__.get(name, _MISSING)
            if value is not _MISSING and not travels(name, value):
                value = _MISSING
            makings = None if value is _MISSING else makings_of(value)
            if seen is not None and (value is _MISSING or makings is not None):
                seen.append(_Seen(function.__globals__, name, value, makings))
            else:
                seen = None
            if value is _MISSING:
                continue
            try:
                packed, more = _pickled(value, pickler)
            except Exception:  # whoever needs it is told that it is not there
                continue
            if len(packed) <= room:
                found[name] = packed
                room -= len(packed)
                functions += more
    return found, seen


@canning.engine_function
def bring(function, names):  # on the engine: sees to it that these are there. names: {name: pickle}
    import pickle
    import sys

    there = vars(sys.modules["__main__"])
    brought = there.setdefault("__px_brought__", {})
    for name, packed in names.items():
        if name in there:
            before, was = brought.get(name, (there, None))
            if there[name] is not before:
                brought.pop(name, None)  # it is the engine's own from now on
                continue
            if was == packed:
                continue
        try:
            value = pickle.loads(packed)
        except Exception:  # of a module that is not there; who uses it is told so
            there.pop(name, None)  # the one before
            continue
        there[name], brought[name] = value, (value, packed)
