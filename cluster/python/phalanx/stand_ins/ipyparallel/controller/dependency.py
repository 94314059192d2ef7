# SPDX-License-Identifier: BSD-3-Clause
"""Functions that run only where a condition holds."""

from types import ModuleType

from ipyparallel.error import UnmetDependency
from ipyparallel.serialize import can, uncan


class depend:
    """Decorator: the function runs only where another one does not return False."""

    def __init__(self, _wrapped_f, *args, **kwargs):
        self.f, self.args, self.kwargs = _wrapped_f, args, kwargs

    def __call__(self, f):
        return dependent(f, self.f, *self.args, **self.kwargs)


class dependent:
    """A function and what it depends on."""

    def __init__(self, _wrapped_f, _wrapped_df, *dargs, **dkwargs):
        self.f, self.df, self.dargs, self.dkwargs = _wrapped_f, _wrapped_df, dargs, dkwargs
        self.__name__ = getattr(_wrapped_f, "__name__", "f")

    def check_dependency(self):
        if self.df(*self.dargs, **self.dkwargs) is False:
            raise UnmetDependency()

    def __call__(self, *args, **kwargs):
        return self.f(*args, **kwargs)


def _require(*modules, **objects):
    names = __import__("__main__").__dict__
    for name in modules:
        try:
            exec("import " + name, names)
        except ImportError:
            raise UnmetDependency(name)
    for name, canned in objects.items():
        names[name] = uncan(canned, names)
    return True


def require(*objects, **mapping):
    """Decorator: modules to import, and objects to define, before the function runs."""
    names = []
    for obj in objects:
        name = obj if isinstance(obj, str) else getattr(obj, "__name__", None)
        if name is None:
            raise TypeError(f"{obj!r} has no name: pass it as a keyword argument")
        if isinstance(obj, (str, ModuleType)):
            names.append(name)
        else:
            mapping[name] = obj
    return depend(_require, *names, **{name: can(obj) for name, obj in mapping.items()})
