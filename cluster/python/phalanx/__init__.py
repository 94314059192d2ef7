# SPDX-License-Identifier: BSD-3-Clause
"""Parallel work on a cluster of Python engines, with ipyparallel's interface on a C core.

    import phalanx
    rc = phalanx.Client()
    rc.ids                                   # [0, 1, 2, 3]
    rc[:].apply_sync(lambda x: x ** 2, 7)    # [49, 49, 49, 49]
    rc.load_balanced_view().map_sync(abs, range(-4, 0))

In IPython, `%load_ext phalanx` adds %px and %%px.
"""

import contextlib
import importlib
import importlib.util
import os
import re
import sys
import warnings

# Loaded when first asked for, because every notebook loads this package for its magics' sake.
_homes = {
    "ALL_COMPLETED": "split",
    "AsyncHubResult": "hubresult",
    "AsyncMapResult": "mapresult",
    "AsyncResult": "asyncresult",
    "BroadcastView": "broadcast",
    "Client": "client",
    "ClosedError": "_phalanx",
    "Cluster": "cluster",
    "ClusterManager": "manager",
    "CompositeError": "error",
    "Dependency": "dependency",
    "DirectView": "view",
    "ExecuteReply": "tasks",
    "FIRST_COMPLETED": "split",
    "FIRST_EXCEPTION": "split",
    "LoadBalancedView": "balanced",
    "ParallelFunction": "remotefunction",
    "PrePickled": "canning",
    "Reference": "canning",
    "RemoteError": "error",
    "RemoteFunction": "remotefunction",
    "ViewExecutor": "futures",
    "bind_kernel": "engines",
    "can": "canning",
    "can_map": "canning",
    "collect_exceptions": "error",
    "depend": "dependency",
    "dependent": "dependency",
    "deserialize_object": "serialize",
    "interactive": "canning",
    "pack_apply_message": "serialize",
    "parallel": "remotefunction",
    "remote": "remotefunction",
    "require": "dependency",
    "serialize_object": "serialize",
    "share": "shared",
    "Shared": "shared",
    "uncan": "canning",
    "uncan_map": "canning",
    "unpack_apply_message": "serialize",
    "unwrap_exception": "error",
    "use_cloudpickle": "serialize",
    "use_dill": "serialize",
    "use_pickle": "serialize",
    "wrap_exception": "error",
    # exceptions
    "AlreadyDisplayedError": "error",
    "DependencyTimeout": "error",
    "EngineError": "error",
    "IPythonError": "error",
    "ImpossibleDependency": "error",
    "InvalidDependency": "error",
    "KernelError": "error",
    "NoEnginesRegistered": "error",
    "TaskAborted": "error",
    "TaskRejectError": "error",
    "TaskTimeout": "error",
    "TimeoutError": "error",
    "UnmetDependency": "error",
}
_modules = (
    "_phalanx", "ask", "asyncresult", "balanced", "batch", "broadcast", "calls", "canning",
    "carry", "client", "cluster", "dask", "datapub", "deadlines", "dependency", "display", "error",
    "feed", "futures", "hub", "hubresult", "local", "magics", "mapresult", "maps", "names",
    "pickle5", "pxcluster", "remotefunction", "serialize", "shared", "split", "targets", "tasks",
    "times", "tunnel", "urls", "util", "view",
)

__all__ = [*_homes, "error", "register_joblib_backend", "util"]


def __getattr__(name):
    if name in _homes:
        value = getattr(importlib.import_module("." + _homes[name], __name__), name)
    elif name == "__version__":
        value = importlib.import_module("._phalanx", __name__).version
    elif name == "version_info":
        value = tuple(int(n) for n in re.findall(r"[0-9]+", __getattr__("__version__")))
    elif name in _modules:
        return importlib.import_module("." + name, __name__)
    else:
        raise AttributeError("module %r has no attribute %r" % (__name__, name))
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__, "__version__", "version_info"})


def load_ipython_extension(ip):
    """%load_ext phalanx: the parallel magics, and ipyparallel's name for this package where that is
    not installed."""
    from . import magics, names

    names.install()
    magics.register(ip)


def register_joblib_backend(name="phalanx", make_default=False):
    """Makes `name` a backend of joblib that uses the newest open Client, or the default cluster.
    Done under the names "phalanx" and (where nobody has that) "ipyparallel" when both this package
    and joblib have been imported."""
    from .joblib import register, register_alias

    register(name, make_default)
    if name == "phalanx":
        register_alias("ipyparallel")


class _WhenJoblibComes:
    """Registers the backend as soon as joblib is imported: its users need not know when that was."""

    def find_spec(self, name, path=None, target=None):
        if name != "joblib" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)  # the others know where it is
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                    with contextlib.suppress(Exception):  # another module of that name
                        register_joblib_backend()

            spec.loader.exec_module = exec_module
        return spec


if "joblib" in sys.modules:
    register_joblib_backend()
else:
    sys.meta_path.insert(0, _WhenJoblibComes())


def _non_interactive():
    """Whether $IPP_NONINTERACTIVE asks for no progress bars, and for %px's output at the end."""
    return os.environ.get("IPP_NONINTERACTIVE", "") not in ("", "0")


def _activate(view, suffix):
    from IPython import get_ipython

    from . import magics

    shell = get_ipython()
    if shell is None:
        warnings.warn("The IPython parallel magics (%px, etc.) only work within IPython.")
        return
    magics.register(shell, view, suffix)
