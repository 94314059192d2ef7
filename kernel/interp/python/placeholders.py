# SPDX-License-Identifier: BSD-3-Clause
"""IPython without what it imports and a cell does not need: that comes when somebody asks for it."""

import importlib.util
import sys
import types


class Embed(types.ModuleType):
    """IPython's terminal, which is more than half of its modules, and of which the package itself
    needs only this name. It stays, as its neighbours import one another in circles that begin here."""

    def _load(self):
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = importlib.import_module(self.__name__)
        vars(self).update(vars(module))
        return module

    def __getattr__(self, name):
        if name.startswith("__"):  # of whoever looks through all modules
            raise AttributeError(name)
        return getattr(self._load(), name)

    def embed(self, **options):
        return self._load().embed(**options)


def _terminal_module(name):
    """For the package IPython.terminal, all of which is there where IPython is imported whole."""
    if name in ("debugger", "embed", "interactiveshell", "ipapp", "magics", "prompts"):
        return importlib.import_module(f"IPython.terminal.{name}")
    raise AttributeError(f"module 'IPython.terminal' has no attribute {name!r}")


class Jedi(types.ModuleType):
    """The library that finds completions takes as long to import as IPython itself: the first
    completion does that."""

    def __init__(self, name):
        super().__init__(name)
        self.settings = types.SimpleNamespace()
        # It sets this when it is imported, which cells may count on and change.
        sys.setrecursionlimit(max(sys.getrecursionlimit(), 3000))

    def __getattr__(self, name):
        limit = sys.getrecursionlimit()
        import jedi

        sys.setrecursionlimit(limit)
        vars(jedi.settings).update(vars(self.__dict__.pop("settings", types.SimpleNamespace())))
        return getattr(jedi, name)


def import_ipython():
    """Imports the package with placeholders for what it imports and a cell does not need."""
    if "IPython" in sys.modules:
        return
    places = {"IPython.terminal.embed": Embed}
    if "jedi" not in sys.modules and importlib.util.find_spec("jedi"):
        parts = ("jedi.api", "jedi.api.helpers", "jedi.api.classes")
        places.update({"jedi": Jedi}, **dict.fromkeys(parts, types.ModuleType))
    places = {name: kind(name) for name, kind in places.items()}
    sys.modules.update(places)
    try:
        import IPython.core.completer  # the shell would import it later
    finally:
        for name, module in places.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
    sys.modules.setdefault("IPython.terminal.embed", places["IPython.terminal.embed"])
    importlib.import_module("IPython.terminal").__getattr__ = _terminal_module
