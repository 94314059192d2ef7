# SPDX-License-Identifier: BSD-3-Clause
"""The slow half of apply: what apply.c does not decide by itself.

The wire forms are read and written by the package's own canning.py and pickle5.py, loaded under
the name `_phalanx_wire`, so that an engine neither imports the client nor writes them twice.

Functions of ipyparallel's modules arrive as code and are linked to those modules here. Importing
that package takes half a second, so small stand-ins serve until somebody imports the real one, or
such code asks for more than they have: then they step aside. Where it is not installed they are
found, last of all, as `ipyparallel` itself.
"""

import builtins
import contextlib
import copyreg
import dis
import functools
import importlib
import importlib.util
import os
import sys
import types
import warnings

_STAND_INS = (
    "error", "util", "serialize.canning", "serialize.codeutil", "serialize.serialize", "serialize",
    "client.remotefunction", "client.view", "controller.dependency", "engine.datapub", "datapub",
)  # each after those that it imports
_ATOMS = (type(None), bool, int, float, complex, str, bytes)


# Builtins that look at the frame that calls them, and the code that calls one in the user's
# namespace: its constants are the function, the arguments, and those by keyword.
FRAMED = frozenset((eval, exec, globals, locals, vars, dir, __import__))
with warnings.catch_warnings():
    warnings.simplefilter("ignore", SyntaxWarning)
    _CALL = compile("'f'(*'args', **'kwargs')", "<apply>", "eval")


class StepAside:
    """Takes the stand-ins out of the way of the real package when that is first imported, save what
    publishes data: the real one works only in ipykernel."""

    kept = "ipyparallel.engine.datapub"

    def __init__(self, modules):
        self.modules = modules

    def find_spec(self, name, path=None, target=None):
        if name == "ipyparallel":
            for key, module in self.modules.items():
                if sys.modules.get(key) is module:
                    del sys.modules[key]
        if name == self.kept and name in self.modules:
            return importlib.util.spec_from_file_location(name, self.modules[name].__file__)
        return None

    def missing(self, module, name):
        """What the real package has and a stand-in lacks, for a program that asks for it."""
        if name.startswith("_"):  # as those ask who look through all modules
            raise AttributeError(name)
        if sys.modules.get(module) is self.modules.get(module):
            importlib.import_module("ipyparallel")
        real = importlib.import_module(module)
        if real is self.modules.get(module):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return getattr(real, name)

    def namespace_of(self, name, code):
        """That of a module, for code that came from it."""
        module = importlib.import_module(name)
        if module is self.modules.get(name) and not _knows(vars(module), code):
            with contextlib.suppress(ImportError):  # then the code says what it lacks
                importlib.import_module("ipyparallel")
                module = importlib.import_module(name)
        return vars(module)


def _knows(names, code):
    return all(step.argval in names or hasattr(builtins, step.argval)
               for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL")


def _load(name, root):
    """Imports a stand-in without its parents, which importing it by name would bring."""
    path = os.path.join(root, *name.split("."))
    package = os.path.isdir(path)
    spec = importlib.util.spec_from_file_location(
        name,
        os.path.join(path, "__init__.py") if package else path + ".py",
        submodule_search_locations=[path] if package else None,
    )
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _stand_in(root, when_imported, canning):
    if "ipyparallel" in sys.modules:
        return
    modules = {}
    aside = StepAside(modules)
    sys.meta_path.insert(0, aside)
    canning.namespace_of = aside.namespace_of
    for name in _STAND_INS:
        name = "ipyparallel." + name
        if name not in sys.modules:
            modules[name] = _load(name, root)
            modules[name].__getattr__ = functools.partial(aside.missing, name)
    # Code that imports this by its long name, with its stand-in there, finds it in the package.
    when_imported.change("ipyparallel", lambda real: importlib.import_module("ipyparallel.datapub"))


def _teach_real_package(canning, real):
    """ipyparallel's own `uncan`, called by user code, is to know what we unpickled, and its switches
    switch what packs results here, too."""
    real.uncan_map[canning.CannedObject] = lambda obj, g: obj.get_object(g)

    def switch(theirs, name):
        def use():
            theirs()
            canning.use(name.removeprefix("use_"))

        return use

    for name in canning.SWITCHES:
        setattr(real, name, switch(getattr(real, name), name))


def _trust_the_page(module):
    """The notebook's page introduces itself to the notebook's kernel alone. Without that ipywidgets 6 and 7
    take it that there is none, and say so wherever a widget is shown."""
    if getattr(module.Widget, "_version_validated", True) is None:
        module.Widget._version_validated = True


def _wire(directory):
    """The package `phalanx` without its __init__, which would bring in the client."""
    package = types.ModuleType("_phalanx_wire")
    package.__path__ = [directory]
    sys.modules[package.__name__] = package
    return importlib.import_module("_phalanx_wire.canning")


class Apply:
    framed = FRAMED

    def __init__(self, bridge):
        directory = os.path.join(bridge.options["module_dir"] or "", "phalanx")
        if not os.path.exists(os.path.join(directory, "canning.py")):
            raise RuntimeError(f"{directory}: the package phalanx is not there")
        self.bridge = bridge
        self.user_ns = bridge.main.__dict__
        self.canning = _wire(directory)
        self._pickle5 = None
        teach = functools.partial(_teach_real_package, self.canning)
        bridge.when_imported.change("ipyparallel.serialize.canning", teach)
        _stand_in(os.path.join(directory, "stand_ins"), bridge.when_imported, self.canning)
        bridge.when_imported.change("ipywidgets.widgets.widget", _trust_the_page)

    # ---- called by C ---------------------------------------------------------

    @staticmethod
    def number(module, name, number):
        """Pickles may name that function by a number from now on. An earlier one is forgotten."""
        copyreg.add_extension(module, name, number)
        copyreg.clear_extension_cache()

    def template(self, data):
        """template_of() the function in a pickle of ipyparallel's form."""
        value = self.canning.loads(data)
        if type(value) is self.canning.CannedFunction and not value.closure:
            value = value.get_object(self.user_ns)
        template = self.template_of(value)
        if template is True and b"ipyparallel" in data:
            return None  # plain pickle would import that package where a stand-in serves
        return template

    def template_of(self, f):
        """How a pickle that gave `f` is read the next time. (arguments for FunctionType, annotations,
        keyword defaults): it is code without state of its own. True: it is a name, to be looked up
        again, since its module may have been reloaded. A builtin function: always that. None: by
        whoever read it now."""
        if isinstance(f, (types.FunctionType, type)) and self.canning.found_by_name(f):
            return True
        if isinstance(f, types.BuiltinFunctionType):
            return f if isinstance(f.__self__, types.ModuleType) else None
        if not isinstance(f, types.FunctionType) or f.__closure__ or f.__dict__:
            return None
        defaults = [*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()]
        if not all(type(value) in _ATOMS for value in defaults):
            return None
        args = (f.__code__, f.__globals__, f.__name__, f.__defaults__)
        again = types.FunctionType(*args)
        if (again.__qualname__, again.__module__) != (f.__qualname__, f.__module__):
            return None
        return args, f.__annotations__ or None, f.__kwdefaults__

    def function(self, buffers):
        """(function, how many buffers it took)."""
        function, left = self.canning.deserialize_object(buffers, self.user_ns)
        return function, len(buffers) - len(left)

    def arguments(self, count, positional, keys, buffers):
        """(args, kwargs) of the buffers behind the description."""
        if positional > len(buffers):
            raise ValueError("there are fewer buffers than the message says")
        args, kwargs = [], {}
        left, rest = buffers[:positional], buffers[positional:]
        for _ in range(count):
            value, left = self.canning.deserialize_object(left, self.user_ns)
            args.append(value)
        for key in keys:
            kwargs[key], rest = self.canning.deserialize_object(rest, self.user_ns)
        if left or rest:
            raise ValueError("there are more buffers than the message says")
        return tuple(args), kwargs

    def call_framed(self, f, args, kwargs):
        """Calls one of FRAMED as a cell would."""
        values = {"f": f, "args": args, "kwargs": kwargs or {}}
        constants = tuple(values.get(constant, constant) for constant in _CALL.co_consts)
        return eval(_CALL.replace(co_consts=constants), self.user_ns)

    def pack(self, value):
        """The buffers of a result, in ipyparallel's form."""
        return self._packed(self.canning.serialize_object, value)

    def pack5(self, value):
        """The same in our own form."""
        if self._pickle5 is None:
            self._pickle5 = importlib.import_module("_phalanx_wire.pickle5")
        return self._packed(self._pickle5.pack_result, value)

    def _packed(self, pack, value):
        value = self._awaited(value)
        try:
            return pack(value)
        except Exception as e:
            if not self.canning.is_refusal(e):
                raise
            raise type(e)(
                f"{e}: the result, a {type(value).__name__}, cannot be sent back. Keep it on the engine"
                " under a name, or return what it is made of"
            ) from None

    def _awaited(self, value):
        """What coroutines come to, which cannot be sent: a call of an `async def` gives one, a part of
        a map a list of them."""
        if type(value) is types.CoroutineType:
            return self.bridge.loops.run_call(value)
        if type(value) is list and value and type(value[0]) is types.CoroutineType:
            try:
                return [self._awaited(item) for item in value]
            finally:
                for item in value:  # those behind one that fails are not begun
                    if type(item) is types.CoroutineType:
                        item.close()
        return value


def create(bridge):
    return Apply(bridge)
