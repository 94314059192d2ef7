# SPDX-License-Identifier: BSD-3-Clause
"""ipyparallel's canned form: how functions, arrays and bytes travel in apply messages.

An object becomes [pickle, buffer...]: what pickle cannot carry (functions, closures, classes of
__main__) or should not copy (arrays, bytes) is replaced by a "canned" object whose large buffers
leave the pickle and follow it as frames. Every ipyparallel engine reads this form.

The pickles name ipyparallel's classes. That package need not be installed here, and is not
imported: the classes below stand for them. pickle insists that a class can be imported under the
name it writes, so while pickling they live in two modules with random names, exactly as
long as the real ones, which are then written over in the bytes.
"""

import functools
import importlib
import io
import pickle
import re
import secrets
import sys
import types

BUFFER_THRESHOLD = 1024  # larger buffers leave the pickle
METADATA = None  # what requests in this form say of it
ITEM_THRESHOLD = 64  # containers of fewer items are looked into, one level deep

SWITCHES = "use_dill", "use_cloudpickle", "use_pickle"  # ipyparallel's functions that choose a pickler
_CANNING = "ipyparallel.serialize.canning"
_CODEUTIL = "ipyparallel.serialize.codeutil"


def _stand_in(name):
    alias = ("px" + secrets.token_hex(len(name)))[: len(name)]
    sys.modules[alias] = types.ModuleType(alias)
    return sys.modules[alias]


_canning = _stand_in(_CANNING)
WIRE_MODULE, REAL_MODULE = _canning.__name__, _CANNING  # of canned objects' classes, here and there
_codeutil = _stand_in(_CODEUTIL)


def _wire(module):
    """Decorator: the object is pickled as a member of `module`."""

    def place(obj):
        obj.__module__ = module.__name__
        setattr(module, obj.__name__, obj)
        return obj

    return place


# ---- the user's side -------------------------------------------------------------------------


class Reference:
    """Names an object on the engine: evaluated there, in the user's namespace."""

    def __init__(self, name):
        if not isinstance(name, str):
            raise TypeError("illegal name: %r" % (name,))
        self.name = name

    def __repr__(self):
        return "<Reference: %r>" % self.name


class PrePickled:
    """An object that is pickled once, at its first use as a function or an argument of calls, however
    many calls there are. What it holds must not change any more."""

    def __init__(self, obj):
        if isinstance(obj, PrePickled):
            raise ValueError("this is pickled already")
        self.obj = obj
        self.__name__ = getattr(obj, "__name__", "PrePickled")
        self._packed = {}

    def packed(self, form):
        """What `form` (a function) makes of the object."""
        if form not in self._packed:
            self._packed[form] = form(self.obj)
        return self._packed[form]


def interactive(f):
    """Makes `f` use the user's namespace on the engine as its globals."""
    if isinstance(f, types.FunctionType):
        main = importlib.import_module("__main__").__dict__
        f = types.FunctionType(f.__code__, main, f.__name__, f.__defaults__, f.__closure__)
    f.__module__ = "__main__"
    return f


engine_functions = set()  # ours, which always travel as code and see the namespace of the engine
equivalents = {}  # class: function that gives what is pickled in the place of an object of it
chosen = None  # the module whose pickler the user has chosen: cloudpickle, dill


def engine_function(f):
    """Decorator of the functions of this package that run on engines."""
    f = interactive(f)
    engine_functions.add(f)
    return f


def use(name):
    """Pickles with "cloudpickle" or "dill" from now on, or as ever ("pickle")."""
    global chosen
    try:
        chosen = None if name == "pickle" else importlib.import_module(name)
    except ImportError as e:
        raise ImportError("%s; it must be installed here and on the engines" % e) from None


# ---- canned objects --------------------------------------------------------------------------


@_wire(_canning)
class CannedObject:
    buffers = ()

    def get_object(self, g=None):
        for key in self.keys:
            setattr(self.obj, key, uncan(getattr(self.obj, key), g))
        if self.hook:
            uncan(self.hook, g)(self.obj, g)
        return self.obj


@_wire(_canning)
class CannedBytes(CannedObject):
    def __init__(self, obj):
        self.buffers = [obj]

    def get_object(self, g=None):
        data = self.buffers[0]
        return data if isinstance(data, bytes) else bytes(data)


@_wire(_canning)
class CannedMemoryView(CannedBytes):
    def get_object(self, g=None):
        return memoryview(self.buffers[0])


_canning.CannedBuffer = CannedMemoryView


@_wire(_canning)
class CannedArray(CannedObject):
    def __init__(self, obj):
        self.shape = obj.shape
        self.dtype = obj.dtype.descr if obj.dtype.fields else obj.dtype.str
        self.pickled = sum(obj.shape) == 0 or obj.dtype.hasobject
        if self.pickled:
            self.buffers = [pickle.dumps(obj)]
        else:
            numpy = sys.modules["numpy"]
            flat = numpy.ascontiguousarray(obj).reshape(-1)
            self.buffers = [flat.view(numpy.uint8).data if obj.size else b""]

    def get_object(self, g=None):
        if self.pickled:
            return loads(self.buffers[0])
        numpy = importlib.import_module("numpy")
        dtype = self.dtype
        if isinstance(dtype, list):
            dtype = [tuple(field) for field in dtype]
        return numpy.frombuffer(self.buffers[0], dtype=dtype).reshape(self.shape)


@_wire(_canning)
class CannedCell(CannedObject):
    def __init__(self, cell):
        self.cell_contents = can(cell.cell_contents)

    def get_object(self, g=None):
        return types.CellType(uncan(self.cell_contents, g))


def namespace_of(module, code):
    """Where code that came from a module finds its names. Engines have another (apply.py)."""
    return importlib.import_module(module).__dict__


@_wire(_canning)
class CannedFunction(CannedObject):
    def __init__(self, f):
        self.code = f.__code__
        self.defaults = [can(d) for d in f.__defaults__] if f.__defaults__ else None
        self.kwdefaults = can_dict(f.__kwdefaults__) if f.__kwdefaults__ else None
        annotations = annotations_of(f)
        self.annotations = can_dict(annotations) if annotations else None
        self.closure = tuple(can(cell) for cell in f.__closure__) if f.__closure__ else None
        self.module = home_of(f) or f.__module__ or "__main__"
        self.__name__ = f.__name__
        self.buffers = []

    def get_object(self, g=None):
        if not self.module.startswith("__"):
            g = namespace_of(self.module, self.code)
        if self.module == _CANNING and self.__name__ in SWITCHES:
            return g[self.__name__]  # which knows of this module
        f = types.FunctionType(
            self.code,
            {} if g is None else g,
            self.__name__,
            tuple(uncan(d, g) for d in self.defaults) if self.defaults else None,
            tuple(uncan(c, g) for c in self.closure) if self.closure else None,
        )
        f.__kwdefaults__ = uncan_dict(self.kwdefaults, g) if self.kwdefaults else None
        f.__annotations__ = uncan_dict(self.annotations, g) if self.annotations else {}
        return f


@_wire(_canning)
class CannedPartial(CannedObject):
    def __init__(self, f):
        self.func = can(f.func)
        self.args = [can(a) for a in f.args]
        self.keywords = {k: can(v) for k, v in f.keywords.items()}
        self.buffers = []
        self.arg_buffer_counts = [self._adopt(a) for a in self.args]
        keys = sorted(self.keywords)
        self.keyword_buffer_counts = {key: self._adopt(self.keywords[key]) for key in keys}

    def _adopt(self, canned):
        if not isinstance(canned, CannedObject):
            return 0
        count = len(canned.buffers)
        self.buffers.extend(canned.buffers)
        canned.buffers = []
        return count

    def get_object(self, g=None):
        buffers = list(self.buffers)

        def give(canned, count):
            if count:
                canned.buffers = buffers[:count]
                del buffers[:count]

        for canned, count in zip(self.args, self.arg_buffer_counts):
            give(canned, count)
        for key in sorted(self.keyword_buffer_counts):
            give(self.keywords[key], self.keyword_buffer_counts[key])
        return functools.partial(
            uncan(self.func, g),
            *[uncan(a, g) for a in self.args],
            **{k: uncan(v, g) for k, v in self.keywords.items()},
        )


@_wire(_canning)
class CannedClass(CannedObject):
    def __init__(self, cls):
        self.name = cls.__name__
        self.old_style = False
        self._canned_dict = {
            k: can(v) for k, v in cls.__dict__.items() if k not in ("__weakref__", "__dict__")
        }
        self.parents = [can(c) for c in cls.mro()[1:]]
        self.buffers = []

    def get_object(self, g=None):
        parents = tuple(uncan(p, g) for p in self.parents)
        return type(self.name, parents, uncan_dict(self._canned_dict, g))


class _WireReference(CannedObject):
    def __init__(self, reference):
        self.name = reference.name
        self.buffers = []

    def get_object(self, g=None):
        return eval(self.name, {} if g is None else g)


_WireReference.__name__ = _WireReference.__qualname__ = "Reference"
_wire(_canning)(_WireReference)


@_wire(_codeutil)
def code_ctor(*args):
    return types.CodeType(*args)


def annotations_of(f):
    """A function's. Python 3.14 computes them when they are asked for; where they name what is not
    there, as they are written."""
    try:
        return f.__annotations__
    except Exception:
        import annotationlib

        return annotationlib.get_annotations(f, format=annotationlib.Format.STRING)


def found_by_name(f):
    """Whether `f` is what its module has under its name, so that the name can travel."""
    module = f.__module__
    if not module or module.startswith("__") or "<" in f.__qualname__:
        return False
    target = sys.modules.get(module)
    for part in f.__qualname__.split("."):
        target = getattr(target, part, None)
    return target is f


def home_of(f):
    """The module in whose namespace a function that travels as code finds its names on the engine.
    None: its own globals are no module's. Decorators of modules give functions that say that they are
    of the module of what they wrap."""
    name = f.__globals__.get("__name__") or ""
    said = name if "__wrapped__" in f.__dict__ else f.__module__ or "__main__"
    if name and (name.startswith("__") or said.startswith("__")):
        return "__main__"
    return name if getattr(sys.modules.get(name), "__dict__", None) is f.__globals__ else None


def _can_function(f):
    if chosen is not None and f not in engine_functions:
        return f
    return f if found_by_name(f) else CannedFunction(f)


def _can_class(cls):
    return CannedClass(cls) if chosen is None and cls.__module__ == "__main__" else cls


can_map = {
    types.FunctionType: _can_function,
    functools.partial: CannedPartial,
    bytes: CannedBytes,
    memoryview: CannedMemoryView,
    types.CellType: CannedCell,
    type: _can_class,
    Reference: _WireReference,
}
_own_kinds = frozenset(can_map)


def users_canned(obj):
    """What the user's entry of can_map makes of an object; None when there is none."""
    kind = type(obj)
    return can_map[kind](obj) if kind in can_map and kind not in _own_kinds else None


def can(obj):
    """`obj`, or its canned stand-in."""
    canner = can_map.get(type(obj))
    if canner:
        return canner(obj)
    if type(obj) in equivalents:
        return can(equivalents[type(obj)](obj))
    if is_array(obj):
        return CannedArray(obj)
    return obj


def is_array(obj):
    """Whether `obj` is exactly a numpy array. Does not import numpy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(obj) is numpy.ndarray


def can_dict(obj):
    return {k: can(v) for k, v in obj.items()} if type(obj) is dict else obj


def uncan(obj, g=None):
    """What can() stood in for. g: the globals that functions see."""
    for kind, opened in uncan_map.items():
        if isinstance(obj, kind):
            return opened(obj, g)
    return obj


def uncan_dict(obj, g=None):
    return {k: uncan(v, g) for k, v in obj.items()} if type(obj) is dict else obj


uncan_map = {CannedObject: lambda obj, g: obj.get_object(g), dict: uncan_dict}


# ---- pickling --------------------------------------------------------------------------------


def is_refusal(e):
    """Whether pickle says, in its own words, that something cannot be pickled: then where it said so
    is of no interest."""
    return re.match("(cannot|Can't) (pickle|get) ", str(e)) is not None


_CODE_FIELDS = (
    "argcount", "posonlyargcount", "kwonlyargcount", "nlocals", "stacksize", "flags", "code",
    "consts", "names", "varnames", "filename", "name",
) + (
    ("qualname", "firstlineno", "linetable", "exceptiontable")
    if sys.version_info >= (3, 11)
    else ("firstlineno", "linetable" if sys.version_info >= (3, 10) else "lnotab")
) + ("freevars", "cellvars")


class ModuleRef:
    """Pickles as a module, by name."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return importlib.import_module, (self.name,)


def published_method(method):
    """The reduction of a bound method that its module publishes under a name.

    numpy.random.rand and random.random are methods of a hidden generator. By name, each engine
    uses its own generator; pickled as methods are, all would start from a copy of ours.
    """
    owner = getattr(method, "__self__", None)
    if owner is None or isinstance(owner, (types.ModuleType, type)):
        return NotImplemented
    for name in (type(owner).__module__, "numpy.random", "random"):
        module = sys.modules.get(name)
        if module is not None and getattr(module, method.__name__, None) == method:
            return getattr, (ModuleRef(name), method.__name__)
    return NotImplemented


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj):
        kind = type(obj)
        if kind is types.CodeType:
            return code_ctor, tuple(getattr(obj, "co_" + field) for field in _CODE_FIELDS)
        if kind is types.BuiltinMethodType or kind is types.MethodType:
            return published_method(obj)
        return NotImplemented


def dumps(obj):
    """A pickle that names ipyparallel's classes."""
    out = io.BytesIO()
    if chosen is None:
        _Pickler(out).dump(obj)
    else:
        chosen.dump(obj, out)
    data = out.getvalue()
    for alias, name in ((_canning, _CANNING), (_codeutil, _CODEUTIL)):
        data = data.replace(alias.__name__.encode(), name.encode())
    return data


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if module == "__builtin__" and name in _DILLS_OWN:
            return _DILLS_OWN[name]()
        if module == _CANNING and hasattr(_canning, name):
            return getattr(_canning, name)
        if module == _CODEUTIL:
            return getattr(_codeutil, name)
        if module == "ipyparallel.error":
            module = "phalanx.error"
        known = sys.modules.get(module)
        if known is not None and "." not in name:  # its packages need not be imported, too
            return getattr(known, name)
        return super().find_class(module, name)


# What dill writes as members of a module that there is not.
_DILLS_OWN = {
    "__main__": lambda: importlib.import_module("__main__").__dict__,
    "NoneType": lambda: type(None),
}


def loads(data):
    """An object from such a pickle, also from one of dill's."""
    data = bytes(data) if not isinstance(data, bytes) else data
    if b"ipyparallel" not in data and b"__builtin__" not in data:
        return pickle.loads(data)
    return _Unpickler(io.BytesIO(data)).load()


# ---- whole objects ---------------------------------------------------------------------------

_PLAIN = frozenset((int, float, complex, str, bool, type(None), range, bytearray))


def is_plain(obj):
    """Whether plain pickle does it right, quickly decided."""
    if type(obj) in _PLAIN:
        return True
    if type(obj) in (list, tuple):
        return all(type(item) in _PLAIN for item in obj)
    return False


def _extract(canned):
    out = []
    if not isinstance(canned, CannedObject):
        return out
    for i, buf in enumerate(canned.buffers):
        size = buf.nbytes if isinstance(buf, memoryview) else len(buf)
        if size > BUFFER_THRESHOLD:
            canned.buffers[i] = None
            out.append(buf)
        elif not isinstance(buf, bytes):
            canned.buffers[i] = bytes(buf)
    return out


def serialize_object(obj, buffer_threshold=None, item_threshold=None):
    """[pickle, buffer...] of one object. The thresholds are ipyparallel's, and not used."""
    if type(obj) is PrePickled:
        return list(obj.packed(serialize_object))
    if is_plain(obj):
        return [pickle.dumps(obj)]
    if type(obj) in (list, tuple, set) and len(obj) < ITEM_THRESHOLD:
        items = [can(item) for item in obj]
        canned = type(obj)(items)
    elif type(obj) is dict and len(obj) < ITEM_THRESHOLD:
        canned = {key: can(obj[key]) for key in sorted(obj)}
        items = canned.values()
    else:
        canned = can(obj)
        items = [canned]
    buffers = [buf for item in items for buf in _extract(item)]
    return [dumps(canned)] + buffers


def _restore(canned, buffers):
    if isinstance(canned, CannedObject):
        for i, buf in enumerate(canned.buffers):
            if buf is None:
                canned.buffers[i] = buffers.pop(0)


def deserialize_object(buffers, g=None):
    """(object, the buffers that are left) from [pickle, buffer..., further objects...]."""
    buffers = list(buffers)
    canned = loads(buffers.pop(0))
    if type(canned) in (list, tuple, set) and len(canned) < ITEM_THRESHOLD:
        for item in canned:
            _restore(item, buffers)
        return type(canned)(uncan(item, g) for item in canned), buffers
    if type(canned) is dict and len(canned) < ITEM_THRESHOLD:
        for key in sorted(canned):
            _restore(canned[key], buffers)
        return {key: uncan(value, g) for key, value in canned.items()}, buffers
    _restore(canned, buffers)
    return uncan(canned, g), buffers


# ---- apply messages --------------------------------------------------------------------------


def pack_function(f):
    """The part of an apply message that is the same for every task of a map."""
    return serialize_object(f)


def pack_call(function, args, kwargs):
    """The buffers of an apply_request; `function` from pack_function."""
    arg_buffers = [buf for arg in args for buf in serialize_object(arg)]
    keys = sorted(kwargs)
    info = {"nargs": len(args), "narg_bufs": len(arg_buffers), "kw_keys": keys}
    out = list(function)
    out.append(pickle.dumps(info))
    out += arg_buffers
    for key in keys:
        out += serialize_object(kwargs[key])
    return out


def unpack_result(buffers):
    """The value that an apply_reply carries."""
    return deserialize_object(buffers)[0]


def unpack_all(buffers):
    """The values of several replies, whose buffers follow each other."""
    buffers = list(buffers)
    while buffers:
        value, buffers = deserialize_object(buffers)
        yield value


def prepare(f):
    """A function that is an argument of every task of a map."""
    return serialize_object(f)


def pack_map(mapping, function, parts):
    """The buffers of a task that calls mapping(function, *parts); both prepared."""
    arg_buffers = list(function) + [buf for part in parts for buf in serialize_object(part)]
    info = {"nargs": 1 + len(parts), "narg_bufs": len(arg_buffers), "kw_keys": []}
    return list(mapping) + [pickle.dumps(info)] + arg_buffers
