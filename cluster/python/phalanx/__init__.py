# SPDX-License-Identifier: BSD-3-Clause
"""Parallel work on a cluster of Python engines, with ipyparallel's interface on a C core.

    import phalanx
    rc = phalanx.Client()
    rc.ids                                   # [0, 1, 2, 3]
    rc[:].apply_sync(lambda x: x ** 2, 7)    # [49, 49, 49, 49]
    rc.load_balanced_view().map_sync(abs, range(-4, 0))

In IPython, `%load_ext phalanx` adds %px and %%px.
"""

import importlib

# Loaded when first asked for, because every notebook loads this package for its magics' sake.
_homes = {
    "AsyncMapResult": "asyncresult",
    "AsyncResult": "asyncresult",
    "Client": "client",
    "CompositeError": "error",
    "DirectView": "view",
    "ExecuteReply": "asyncresult",
    "LoadBalancedView": "view",
    "Reference": "canning",
    "RemoteError": "error",
    "interactive": "canning",
}
_modules = (
    "_phalanx", "asyncresult", "batch", "canning", "client", "error", "local", "magics", "maps", "pickle5",
    "view",
)

__all__ = [*_homes, "error"]


def __getattr__(name):
    if name in _homes:
        value = getattr(importlib.import_module("." + _homes[name], __name__), name)
    elif name == "__version__":
        value = importlib.import_module("._phalanx", __name__).version
    elif name in _modules:
        return importlib.import_module("." + name, __name__)
    else:
        raise AttributeError("module %r has no attribute %r" % (__name__, name))
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__, "__version__"})


def load_ipython_extension(ip):
    """%load_ext phalanx."""
    from . import magics

    magics.register(ip)


def _activate(view, suffix):
    from IPython import get_ipython

    from . import magics

    shell = get_ipython()
    if shell is None:
        raise RuntimeError("%px works within IPython only")
    magics.register(shell, view, suffix)
