# SPDX-License-Identifier: BSD-3-Clause
"""How Python's own libraries behave inside a kernel or engine: threads and pools print for the
request that gave them work, spawned processes get the functions that cells define.

Modules that are not loaded yet are changed when the user's code imports them.
"""

import functools
import importlib.machinery
import importlib.util
import os
import pickle
import sys
import threading
import types


class WhenImported:
    """A finder that finds nothing, but runs functions on modules once they are loaded."""

    def __init__(self):
        self.changes = {}
        sys.meta_path.insert(0, self)

    def change(self, name, function):
        if name in sys.modules:
            function(sys.modules[name])
        else:
            self.changes.setdefault(name, []).append(function)

    def find_spec(self, name, path=None, target=None):
        changes = self.changes.pop(name, None)
        spec = importlib.util.find_spec(name) if changes else None
        if spec is None or not hasattr(spec.loader, "exec_module"):
            return spec
        load = spec.loader.exec_module

        def load_and_change(module):
            load(module)
            for change in changes:
                change(module)

        spec.loader.exec_module = load_and_change
        return spec


class OwnPackage:
    """Of several installations of the package phalanx the program uses the one that is its own. What
    else may have the name comes first where sys.path has it first."""

    def __init__(self, directory):
        self.directory = directory
        sys.meta_path.insert(0, self)

    def find_spec(self, name, path=None, target=None):
        if name != "phalanx":
            return None
        find = importlib.machinery.PathFinder.find_spec
        spec = find(name)
        places = spec and spec.submodule_search_locations or ()
        if any(os.path.exists(os.path.join(place, "canning.py")) for place in places):
            spec = find(name, [self.directory])
        return spec


def stand_in(when_imported, name, **members):
    """A module in the place of ipykernel's of that name, which needs its kernel. Libraries look for
    some of them to tell a notebook."""
    module = types.ModuleType("ipykernel." + name, "Stands for ipykernel's, which needs its kernel.")
    vars(module).update(members)
    sys.modules.setdefault(module.__name__, module)
    when_imported.change("ipykernel", lambda package: setattr(package, name, module))


# ---- whose output it is -----------------------------------------------------------


class InRequest:
    """A function that runs, in a pool's thread, for the request that handed it in."""

    def __init__(self, variable, function):
        self.variable, self.function = variable, function
        self.parent = variable.get(None)

    def __call__(self, *args, **kwargs):
        token = self.variable.set(self.parent)
        try:
            return self.function(*args, **kwargs)
        finally:
            self.variable.reset(token)


def _attribute_threads(variable):
    """What a thread prints belongs to the request of the thread that started it."""
    start, bootstrap = threading.Thread.start, threading.Thread._bootstrap_inner

    @functools.wraps(start)
    def start_in_request(self):
        self._phalanx_parent = variable.get(None)
        return start(self)

    @functools.wraps(bootstrap)
    def bootstrap_in_request(self):
        parent = self.__dict__.pop("_phalanx_parent", None)
        variable.set(parent)
        if getattr(self, "_context", None) is not None:  # in which run() runs, from Python 3.14 on
            self._context.run(variable.set, parent)
        return bootstrap(self)

    threading.Thread.start = start_in_request
    threading.Thread._bootstrap_inner = bootstrap_in_request


def _attribute_pools(variable, module):
    """What a call in a pool prints belongs to the request that handed the call in, not to the one
    that happened to start the pool's thread."""
    submit = module.ThreadPoolExecutor.submit

    @functools.wraps(submit)
    def submit_in_request(self, fn, /, *args, **kwargs):
        return submit(self, InRequest(variable, fn), *args, **kwargs)

    module.ThreadPoolExecutor.submit = submit_in_request


def _attribute_thread_pools(variable, module):
    """The same for multiprocessing's pools of threads."""
    import inspect

    def attribute(method):
        parameters = inspect.signature(method)

        @functools.wraps(method)
        def in_request(*args, **kwargs):
            call = parameters.bind(*args, **kwargs)
            for name in ("func", "callback", "error_callback"):
                if callable(call.arguments.get(name)):
                    call.arguments[name] = InRequest(variable, call.arguments[name])
            return method(*call.args, **call.kwargs)

        return in_request

    for name in ("apply_async", "_map_async", "imap", "imap_unordered"):  # what the others call
        setattr(module.ThreadPool, name, attribute(getattr(module.ThreadPool, name)))


# ---- processes that multiprocessing spawns ------------------------------------------


# Run where the pickle is loaded. What the function refers to, and itself, become names there unless
# they are, so that an instance that comes back as a result finds its class.
_DEFINE = """[
    main.__dict__.setdefault(key, item)
    for key, item in getattr(value, '__globals__', {}).items() if key[:2] != '__'
] and None or main.__dict__.setdefault(name, value)"""


class Main:
    """In a pickle: the module __main__ of whoever loads it."""

    def __reduce__(self):
        return importlib.import_module, ("__main__",)


class ByValue:
    """In a pickle: a function or class as its code."""

    def __init__(self, value):
        try:
            import cloudpickle
        except ImportError:
            raise pickle.PicklingError(
                f"{value.__qualname__} is defined in a cell, where a spawned process cannot find "
                f"it: install cloudpickle for {sys.executable}, put it into a module, or use "
                "multiprocessing.get_context('fork')"
            ) from None
        self.load, self.data = cloudpickle.loads, cloudpickle.dumps(value)

    def __reduce__(self):
        return self.load, (self.data,)


_SPAWNERS = ("multiprocessing.popen_spawn_posix", "multiprocessing.popen_forkserver")


def _reduce_for_process(pickler, value):
    """A spawned process has none of what cells define: it gets that by value. A forked one has it,
    and finds it by name, with the globals that its own initializer may have changed."""
    if (
        isinstance(value, (types.FunctionType, type))
        and value.__module__ == "__main__"
        and any(name in sys.modules for name in _SPAWNERS)
        and "." not in value.__qualname__
    ):
        names = {"main": Main(), "name": value.__qualname__, "value": ByValue(value)}
        return eval, (_DEFINE, names)
    return NotImplemented


def _pickle_for_processes(module):
    if not hasattr(module.ForkingPickler, "reducer_override"):
        module.ForkingPickler.reducer_override = _reduce_for_process


def create(variable):
    """Returns what others may ask to change modules, too."""
    when_imported = WhenImported()
    _attribute_threads(variable)
    when_imported.change(
        "concurrent.futures.thread", functools.partial(_attribute_pools, variable)
    )
    when_imported.change(
        "multiprocessing.pool", functools.partial(_attribute_thread_pools, variable)
    )
    when_imported.change("multiprocessing.reduction", _pickle_for_processes)
    return when_imported
