# SPDX-License-Identifier: BSD-3-Clause
"""The names under which books and programs know this interface: IPython.parallel, ipyparallel.

Importing them gives this package's objects where nobody else provides them: the importer is asked
last, so the real packages win wherever they are installed.
"""

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import types

# What each of ipyparallel's modules holds, by ours. Those of IPython.parallel are the same.
_MODULES = {
    "": ["phalanx"],
    ".client": [],
    ".client._joblib": ["phalanx.joblib"],
    ".client.asyncresult": ["phalanx.asyncresult", "phalanx.mapresult", "phalanx.hubresult"],
    ".client.client": ["phalanx.client", "phalanx.tasks"],
    ".client.magics": ["phalanx.magics"],
    ".client.map": ["phalanx.maps"],
    ".client.remotefunction": ["phalanx.remotefunction"],
    ".client.view": ["phalanx.view", "phalanx.broadcast", "phalanx.balanced", "phalanx.futures"],
    ".cluster": ["phalanx.cluster", "phalanx.manager"],
    ".cluster.cluster": ["phalanx.cluster"],
    ".controller": [],
    ".controller.dependency": ["phalanx.dependency"],
    ".error": ["phalanx.error"],
    ".datapub": ["phalanx.datapub"],
    ".engine": [],
    ".engine.datapub": ["phalanx.datapub"],
    ".joblib": ["phalanx.joblib"],
    ".serialize": ["phalanx.serialize", "phalanx.canning"],
    ".serialize.canning": ["phalanx.serialize", "phalanx.canning"],
    ".serialize.serialize": ["phalanx.serialize"],
    ".util": ["phalanx.util"],
}
_TABLE = {
    package + name: homes
    for package in ("ipyparallel", "IPython.parallel")
    for name, homes in _MODULES.items()
}

# Whose interface this is: programs ask for what is new enough.
_VERSION = {"__version__": "9.0.0", "version_info": (9, 0, 0)}


class _Module(types.ModuleType):
    """A module whose attributes are other modules', looked up when they are asked for."""

    def __getattr__(self, name):
        if name in _VERSION and _TABLE[self.__name__] == ["phalanx"]:
            return _VERSION[name]
        if name.startswith("__") and name != "__all__":
            raise AttributeError(name)
        if self.__name__ + "." + name in _TABLE:
            return importlib.import_module(self.__name__ + "." + name)
        for home in _TABLE[self.__name__]:
            value = getattr(importlib.import_module(home), name, None)
            if value is not None:
                return value
        raise AttributeError("module %r has no attribute %r" % (self.__name__, name))

    def __dir__(self):
        homes = [importlib.import_module(home) for home in _TABLE[self.__name__]]
        return sorted({name for home in homes for name in dir(home) if not name.startswith("_")})


class Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the old names."""

    def find_spec(self, name, path=None, target=None):
        if name not in _TABLE:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=name + "." in _PARENTS)

    def create_module(self, spec):
        module = _Module(spec.name, "The package phalanx, under an old name.")
        module.__file__ = __file__  # %load_ext of IPython 8.5 looks at it
        return module

    def exec_module(self, module):
        pass


_PARENTS = {name.rpartition(".")[0] + "." for name in _TABLE if "." in name}


def install():
    """Makes the old names importable in this process."""
    if any(isinstance(finder, Importer) for finder in sys.meta_path):
        return
    # What stands in for ipyparallel on engines is less than this.
    stand_ins = os.path.join(os.path.dirname(os.path.abspath(__file__)), "stand_ins")
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != stand_ins]
    sys.meta_path.append(Importer())
