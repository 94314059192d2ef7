# SPDX-License-Identifier: BSD-3-Clause
"""The form in which our client and our engines exchange apply messages.

One pickle (protocol 5) of (function, args, kwargs), then its out-of-band buffers: arrays, wherever
they are inside the arguments, travel without a copy. Used only where every engine
concerned has said that it knows the feature "pickle5".

Functions of __main__ travel as code, and see the user's namespace on the engine as their
globals, as in ipyparallel; what they name and it lacks goes with them (companions.py). Functions of
modules travel by name. Classes of __main__ are cloudpickle's work, and do not travel where it is not
installed. What the stream names is the standard library's alone, so nothing need be installed on the
engine for it.
"""

import functools
import io
import marshal
import operator
import pickle
import sys
import types
import weakref

from . import canning
from .canning import (
    BUFFER_THRESHOLD, ModuleRef, PrePickled, Reference, found_by_name, is_array, is_plain,
    published_method,
)

METADATA = '"px_pickle": 5'
_LARGE = 1 << 20  # bytes: these alone are worth a call
_REMEMBERED = 1 << 14  # bytes of a function: in the stream, where engines know it again (apply.c)
MOST_BUFFERS = 10_000  # of a message; the rest of an object's goes into its pickle


_opened = operator.methodcaller("get_object")  # what was canned, on the engine


class _Attribute:
    """Pickles as a module's attribute, by name, also where the attribute itself would refuse."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self):  # pickle wants what it calls to look callable
        raise TypeError(self.name)

    def __reduce__(self):
        return getattr, (ModuleRef(self.module), self.name)


class _Namespace:
    """Pickles as a module's namespace, the live one."""

    def __init__(self, module):
        self.module = module

    def __reduce__(self):
        return vars, (ModuleRef(self.module),)


_function_type = _Attribute("types", "FunctionType")
_cell_type = _Attribute("types", "CellType")
_cache_info = _Attribute("functools", "_CacheInfo")


def _reduce_function(f):
    home = canning.home_of(f)
    if home is None:
        return NotImplemented  # cloudpickle's work, which takes the globals along
    args = (f.__code__, _Namespace(home), f.__name__, f.__defaults__, f.__closure__)
    slots = {
        "__kwdefaults__": f.__kwdefaults__,
        "__annotations__": canning.annotations_of(f),
        "__qualname__": f.__qualname__,
        "__module__": f.__module__,
    }
    return _function_type, args, (f.__dict__ or None, {k: v for k, v in slots.items() if v})


def _reduce_cell(cell):
    # The contents come after the cell, which may be inside them.
    try:
        return _cell_type, (), (None, {"cell_contents": cell.cell_contents})
    except ValueError:
        return _cell_type, ()


@canning.engine_function
def _dispatching(function, registered):
    """functools.singledispatch, again."""
    import functools

    function = functools.singledispatch(function)
    for kind, implementation in registered:
        function.register(kind, implementation)
    return function


def _reduce_any_function(f):
    if canning.chosen is not None and f not in canning.engine_functions:
        return NotImplemented
    if found_by_name(f):
        return NotImplemented
    reduced = _reduce_dispatching(f)
    return _reduce_function(f) if reduced is NotImplemented else reduced


def _reduce_dispatching(f):
    """Of functools.singledispatch, whose cache is of weak references."""
    if f.__globals__ is not vars(functools) or "registry" not in f.__dict__ or found_by_name(f):
        return NotImplemented
    registered = [item for item in f.registry.items() if item[0] is not object]
    return _dispatching, (f.registry[object], registered)


def _reduce_cached(f):
    """Of functools.lru_cache and cache. The cache of the copy is empty."""
    if found_by_name(f):
        return NotImplemented
    limits = f.cache_parameters()
    args = f.__wrapped__, limits["maxsize"], limits["typed"], _cache_info
    return functools._lru_cache_wrapper, args, f.__dict__


def _reduce_cached_property(p):
    """Without its lock, which it has before Python 3.12."""
    return functools.cached_property, (p.func,), {"attrname": p.attrname}


def _reduce_canned_class(cls):
    if cls.__module__ == canning.WIRE_MODULE:
        return getattr, (ModuleRef(canning.REAL_MODULE), cls.__name__)
    return NotImplemented


def _without_named_tuple(cls, reduced):
    """How cloudpickle reduces a class, which is by the bases that were written. One of them may be
    typing.NamedTuple, which is none, and would make another class."""
    written = vars(cls).get("__orig_bases__") or ()
    marker = getattr(sys.modules.get("typing"), "NamedTuple", cls)
    if marker not in written:
        return reduced
    bases = tuple(tuple if base is marker else base for base in written)
    make, args, *state = reduced
    return make, tuple(bases if arg == written else arg for arg in args), *state


def _reduce_mark(obj):
    """One of the objects by whose identity dataclasses knows what a field is, by name."""
    members = vars(sys.modules["dataclasses"])
    name = next((name for name, value in members.items() if value is obj), None)
    return NotImplemented if name is None else _Attribute("dataclasses", name).__reduce__()


# How this form pickles what pickle itself would get wrong.
_reducers = {
    types.FunctionType: _reduce_any_function,
    types.CodeType: lambda obj: (marshal.loads, (marshal.dumps(obj),)),
    types.CellType: _reduce_cell,
    types.BuiltinMethodType: published_method,
    types.MethodType: published_method,
    Reference: lambda obj: (eval, (obj.name, _Namespace("__main__"))),
    PrePickled: lambda obj: obj.packed(_Packed).__reduce__(),
}
# And cloudpickle, too.
_mends = {
    types.FunctionType: _reduce_dispatching,
    type: _reduce_canned_class,
    functools._lru_cache_wrapper: _reduce_cached,
    functools.cached_property: _reduce_cached_property,
}


def _mended(obj):
    """As pickle.Pickler.reducer_override."""
    kind = type(obj)
    if kind in _mends:
        return _mends[kind](obj)
    return _reduce_mark(obj) if kind.__module__ == "dataclasses" else NotImplemented


def _override(obj):
    """The same."""
    kind = type(obj)
    if kind in _reducers:
        return _reducers[kind](obj)
    if kind in canning.equivalents:
        return canning.equivalents[kind](obj).__reduce__()
    canned = canning.users_canned(obj)
    return _mended(obj) if canned is None else (_opened, (canned,))


def mended_pickler(base):
    """cloudpickle's class `base`, without what it gets wrong. Functions take their globals along."""
    return _pickler_on(base, _mended)


def _meet(pickler, obj, reduced):
    """Lists functions that will look for their globals in the engine's __main__."""
    if type(obj) is types.FunctionType and type(reduced) is tuple and reduced[0] is _function_type:
        if reduced[1][1].module == "__main__" and obj not in canning.engine_functions:
            pickler.met.append(obj)


class _PlainPickler(pickle.Pickler):
    override = staticmethod(_override)

    def reducer_override(self, obj):
        reduced = self.override(obj)
        _meet(self, obj, reduced)
        if reduced is NotImplemented and isinstance(obj, type) and obj.__module__ == "__main__":
            raise pickle.PicklingError(
                "Can't pickle the class %s of __main__: install cloudpickle for %s, or put the class "
                "into a module" % (obj.__qualname__, sys.executable)
            )
        return reduced


def _pickler_on(base, reduce=_override):
    """`base`, with what this form does differently."""

    class Pickler(base):
        override = staticmethod(reduce)

        def reducer_override(self, obj):
            reduced = self.override(obj)
            _meet(self, obj, reduced)
            if reduced is not NotImplemented or not hasattr(base, "reducer_override"):
                return reduced
            reduced = super().reducer_override(obj)
            by_name = reduced is NotImplemented or not isinstance(obj, type)
            return reduced if by_name else _without_named_tuple(obj, reduced)

    return Pickler


def _pickler():
    """The class that pickles what plain pickle may not."""
    if canning.chosen not in _picklers:
        _picklers[canning.chosen] = _find_pickler()
    return _picklers[canning.chosen]


def _find_pickler():
    if canning.chosen:
        return _pickler_on(canning.chosen.Pickler)
    try:
        import cloudpickle
    except ImportError:
        return _PlainPickler
    return _pickler_on(cloudpickle.CloudPickler)


_picklers = {}  # by the module chosen


def _is_simple(obj):
    if is_array(obj):
        return not obj.dtype.hasobject
    return is_plain(obj)


def dumps(obj, simple=False, pickler=None, met=None):
    """[stream, buffer...]. `simple`: the caller knows that plain pickle does it right. met: a list
    for the functions of __main__ that are in it."""
    buffers = []

    def leave_out(buffer):
        raw = buffer.raw()
        if raw.nbytes <= BUFFER_THRESHOLD or len(buffers) == MOST_BUFFERS:
            return True
        buffers.append(raw)
        return False

    if simple:
        return [pickle.dumps(obj, 5, buffer_callback=leave_out)] + buffers
    out = io.BytesIO()
    pickling = (pickler or _pickler())(out, 5, buffer_callback=leave_out)
    pickling.met = [] if met is None else met
    pickling.dump(obj)
    return [out.getvalue()] + buffers


class _Large:
    """Bytes that leave the stream as arrays do, and that pickle would copy."""

    __slots__ = ("data",)

    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        return bytes, (pickle.PickleBuffer(self.data),)


def _left_out(obj):
    return _Large(obj) if type(obj) is bytes and len(obj) > _LARGE else obj


class _Packed:
    """A function, or something else, that was pickled before, and is unpickled where the call is."""

    __slots__ = ("stream", "size", "buffers", "names", "seen", "bare")

    def __init__(self, f):
        met = []
        parts = dumps(f, met=met)
        self._hold(parts, *_companions(met))

    def _hold(self, parts, names, seen):
        stream, *buffers = parts
        self.size = len(stream)
        self.stream = stream if self.size <= _REMEMBERED else pickle.PickleBuffer(stream)
        self.buffers = [pickle.PickleBuffer(buffer) for buffer in buffers]
        self.names, self.seen = names, seen
        self.bare = None  # the whole call without arguments, once there was one

    def is_whole(self):
        """Whether the names that go with it still stand for the same."""
        return all(seen.still(_value_unchanged) for seen in self.seen)

    def __reduce__(self):
        make = pickle.loads
        if self.buffers:  # a closure over an array
            make = functools.partial(make, buffers=self.buffers)
        if self.names:
            return make, (self.stream,), self.names, None, None, _bring()
        return make, (self.stream,)


def _companions(met):
    """companions.find() of these functions."""
    if not met:
        return {}, ()
    from . import companions  # which engines, that pack results, do without

    return companions.find(met, _pickler(), _value_makings)


class _Bringing:
    """Pickles as companions.bring, and can be called as pickle asks of what sets a state."""

    def __init__(self):
        from .companions import bring

        self.packed = _Packed(bring)

    def __call__(self, function, names):
        raise TypeError("for engines")

    def __reduce__(self):
        return self.packed.__reduce__()


@functools.lru_cache(maxsize=None)
def _bring():
    return _Bringing()


class _Named:
    """A function that a Reference names: looked up at each call, so nothing of it is packed."""

    __slots__ = ("name",)
    buffers = ()

    def __init__(self, reference):
        self.name = reference.name

    def __reduce__(self):
        return eval, (self.name, _Namespace("__main__"))


# ---- functions that were sent before

_ATOMS = frozenset((type(None), bool, int, float, complex, str, bytes))
_LARGEST_KEPT = 65536  # bytes of a function's pickle

_kept = {}  # id of a function: (weak reference to it, what its pickle came from, _Packed)


_BY_NAME = ()  # the makings of what travels as the name of a module and its own


def _makings(f):
    """What decides the pickle of a function, to be compared by identity; None where that may change
    unseen: state in a closure, in attributes, in annotations, in mutable defaults."""
    if type(f) is types.BuiltinFunctionType:
        return _BY_NAME if isinstance(f.__self__, types.ModuleType) else None
    if type(f) is not types.FunctionType:
        return None
    if found_by_name(f):
        return _BY_NAME
    if f.__closure__ or f.__dict__ or f.__kwdefaults__ or canning.annotations_of(f):
        return None
    defaults = f.__defaults__
    if defaults and not all(type(value) in _ATOMS for value in defaults):
        return None
    return f.__code__, defaults, f.__name__, f.__qualname__, f.__module__


def _unchanged(f, makings):
    if makings is _BY_NAME:
        return type(f) is types.BuiltinFunctionType or found_by_name(f)
    code, defaults, name, qualname, module = makings
    return (
        f.__code__ is code and f.__defaults__ is defaults and f.__name__ is name
        and f.__qualname__ is qualname and f.__module__ is module
        and not (f.__dict__ or f.__kwdefaults__ or canning.annotations_of(f))
    )


def _value_makings(value):
    """_makings() of what a function may take along, for _value_unchanged()."""
    if type(value) is types.FunctionType:
        return _makings(value)
    if isinstance(value, type) and value.__module__ == "__main__":
        return None
    if type(value) is functools._lru_cache_wrapper:
        return _BY_NAME if found_by_name(value) else None
    return None if type(value) in (list, dict, set) else _BY_NAME


def _value_unchanged(value, makings):
    return type(value) is not types.FunctionType or _unchanged(value, makings)


def _keep(f, makings, packed):
    key = id(f)
    _kept[key] = weakref.ref(f, lambda ref: _kept.pop(key, None)), makings, packed


def pack_function(f):
    """The part of an apply message that is the same for every call of `f`. That of a plain function
    or a builtin is made once and kept as long as it lives and stays what it was."""
    if type(f) is Reference:
        return _Named(f)
    if type(f) is PrePickled:
        return f.packed(_Packed)
    if canning.chosen is not None:
        return _Packed(f)
    kept = _kept.get(id(f))
    if kept is not None and kept[0]() is f and _unchanged(f, kept[1]) and kept[2].is_whole():
        return kept[2]
    makings, packed = _makings(f), _Packed(f)
    lasts = makings is not None and packed.seen is not None
    if lasts and not packed.buffers and packed.size <= _LARGEST_KEPT:
        _keep(f, makings, packed)
    return packed


def pack_call(function, args, kwargs):
    """The buffers of an apply_request; `function` from pack_function."""
    if not args and not kwargs and type(function) is _Packed and not function.buffers:
        if function.bare is None:
            function.bare = dumps((function, (), {}), True)
        return function.bare
    simple = all(map(_is_simple, args)) and all(map(_is_simple, kwargs.values()))
    kwargs = {name: _left_out(value) for name, value in kwargs.items()}
    return _dumps_call(function, tuple(map(_left_out, args)), kwargs, simple)


class _Call(_Packed):
    """A whole call, with what functions and methods among its arguments take along."""

    __slots__ = ()

    def __init__(self, parts, names):
        self._hold(parts, names, None)

    def __reduce__(self):  # by a call of its own kind, which engines do not take for a function's
        make = functools.partial(pickle.loads, buffers=self.buffers)
        return make, (self.stream,), self.names, None, None, _bring()


def _dumps_call(function, args, kwargs, simple):
    met = []
    parts = dumps((function, args, kwargs), simple, met=met)
    names = _companions(met)[0]
    return dumps(_Call(parts, names), True) if names else parts


def pack_result(value):
    """The buffers of an apply_reply."""
    return dumps(_left_out(value), _is_simple(value))


def unpack_result(buffers):
    """The value that an apply_reply carries."""
    return pickle.loads(buffers[0], buffers=buffers[1:])


prepare = pack_function


def pack_map(mapping, function, parts):
    """The buffers of a task that calls mapping(function, *parts); both prepared."""
    return _dumps_call(mapping, (function, *parts), {}, all(map(_is_simple, parts)))


# ---- engines of another Python


PYTHON = "python%d.%d" % sys.version_info[:2]  # the feature of engines that run our bytecode


class Foreign:
    """This form, for engines that do not run our bytecode, as a module-like object: functions of
    modules, builtins and References travel, which are names; code is refused, both ways, where
    elsewhere it would fail to unpickle, or break the interpreter.

    who: the engines, for the sentence.
    """

    METADATA = METADATA

    def __init__(self, who):
        self.who = who

    def _refuse(self):
        raise pickle.PicklingError(
            "%s another Python than this process, %d.%d, and code travels only between equal ones; "
            "start engines with `pxcluster start --python=%s`, or call functions of modules"
            % (self.who, *sys.version_info[:2], sys.executable)
        )

    def _dumps(self, obj):
        def overridden(obj):
            if type(obj) is types.CodeType:
                self._refuse()
            if type(obj) is PrePickled:
                self._dumps(obj.obj)  # refused if there is code in it
            return _override(obj)

        class Pickler(_pickler()):
            override = staticmethod(overridden)

        return dumps(obj, pickler=Pickler)

    def pack_function(self, f):
        """`f` itself, once it is sure that it can travel."""
        f = _Named(f) if type(f) is Reference else f
        self._dumps(f)
        return f

    prepare = pack_function

    def pack_call(self, function, args, kwargs):
        """The buffers of an apply_request."""
        return self._dumps((function, tuple(args), kwargs))

    def pack_map(self, mapping, function, parts):
        """The buffers of a task that calls mapping(function, *parts)."""
        return self._dumps((mapping, (function, *parts), {}))

    def unpack_result(self, buffers):
        """The value that an apply_reply carries."""
        refuse = self._refuse

        class Unpickler(pickle.Unpickler):
            def find_class(self, module, name):
                return refuse() if module == "marshal" else super().find_class(module, name)

        return Unpickler(io.BytesIO(buffers[0]), buffers=buffers[1:]).load()
