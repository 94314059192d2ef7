# SPDX-License-Identifier: BSD-3-Clause
"""What a task needs before it may run: on its engine (@require, @depend), or of other tasks
(Dependency)."""

import functools
import types

from .asyncresult import AsyncResult
from .canning import engine_function, equivalents

# ---- on the engine


@engine_function
def _run_if(check, f, *args, **kwargs):
    if check() is False:
        from ipyparallel.error import UnmetDependency

        raise UnmetDependency()
    return f(*args, **kwargs)


@engine_function
def _run_with(provide, f, *args, **kwargs):
    names, own = provide(), getattr(f, "__globals__", {})
    if own.get("__name__") == "__main__":  # cloudpickle's, for what travelled with the function
        own.update(names)
    return f(*args, **kwargs)


@engine_function
def _provide(*modules, **objects):
    from ipyparallel.error import UnmetDependency

    names = {}
    for name in modules:
        try:
            exec("import " + name, names)  # "numpy as np" and "json, math", too
        except ImportError:
            raise UnmetDependency(name)
    names.pop("__builtins__", None)
    names.update(objects)
    globals().update(names)
    return names


class dependent:
    """A function that runs on an engine only where another one allows it."""

    def __init__(self, _wrapped_f, _wrapped_df, *dargs, **dkwargs):
        self.f = _wrapped_f
        self.df = _wrapped_df
        self.dargs = dargs
        self.dkwargs = dkwargs
        self.__name__ = getattr(_wrapped_f, "__name__", "f")

    def __call__(self, *args, **kwargs):
        return self.f(*args, **kwargs)

    def sent_as(self):
        """What is pickled in my place."""
        check = functools.partial(self.df, *self.dargs, **self.dkwargs)
        return functools.partial(_run_with if self.df is _provide else _run_if, check, self.f)


equivalents[dependent] = dependent.sent_as


class depend:
    """A decorator: before the function runs on an engine, f(*args, **kwargs) is called there; if it
    returns False or raises UnmetDependency, the scheduler tries another engine."""

    def __init__(self, _wrapped_f, *args, **kwargs):
        self.f = _wrapped_f
        self.args = args
        self.kwargs = kwargs

    def __call__(self, f):
        return dependent(f, self.f, *self.args, **self.kwargs)


def require(*objects, **mapping):
    """A decorator: modules (or their names, as after "import") are imported on the engine before the
    function runs there, or the scheduler tries another engine; functions, and by keyword any
    objects, are set in its namespace."""
    modules = []
    for obj in objects:
        if isinstance(obj, types.ModuleType):
            obj = obj.__name__
        if isinstance(obj, str):
            modules.append(obj)
        elif hasattr(obj, "__name__"):
            mapping[obj.__name__] = obj
        else:
            raise TypeError(
                "Objects other than modules and functions must be passed by kwarg, but got: %s"
                % type(obj)
            )
    return depend(_provide, *modules, **mapping)


# ---- of other tasks


class Dependency(set):
    """A set of msg_ids that a task waits for (view.after), or to whose engines it goes
    (view.follow).

    dependencies: msg_ids and AsyncResults, or what as_dict() gave. all: whether each of them, or
    one, is needed. success, failure: which ends count; at least one.
    """

    def __init__(self, dependencies=(), all=True, success=True, failure=False):
        if isinstance(dependencies, dict):
            all = dependencies.get("all", True)
            success = dependencies.get("success", success)
            failure = dependencies.get("failure", failure)
            dependencies = dependencies.get("dependencies", [])
        if isinstance(dependencies, (str, AsyncResult)):
            dependencies = [dependencies]
        if not (success or failure):
            raise ValueError("Must depend on at least one of successes or failures!")
        super().__init__()
        for item in dependencies:
            if isinstance(item, AsyncResult):
                self.update(item.msg_ids)
            elif isinstance(item, str):
                self.add(item)
            else:
                raise TypeError("invalid dependency type: %r" % type(item))
        self.all, self.success, self.failure = all, success, failure

    def _among(self, against):
        return self.issubset(against) if self.all else not self.isdisjoint(against)

    def check(self, completed, failed=None):
        """Whether it is met, when these ids have succeeded and those failed."""
        ended = set(completed if self.success else ())
        ended.update(failed if failed is not None and self.failure else ())
        return not self or self._among(ended)

    def unreachable(self, completed, failed=None):
        """Whether it cannot be met any more."""
        bad = set(() if self.success else completed)
        bad.update(() if failed is None or self.failure else failed)
        return bool(self) and (not self.isdisjoint(bad) if self.all else self.issubset(bad))

    def as_dict(self):
        """Itself for JSON."""
        return {
            "dependencies": list(self), "all": self.all, "success": self.success,
            "failure": self.failure,
        }
