# SPDX-License-Identifier: BSD-3-Clause
"""Parallel work on a cluster of Python engines, with ipyparallel's interface on a C core.

    import phalanx
    rc = phalanx.Client()
    rc.ids                                   # [0, 1, 2, 3]
    rc[:].apply_sync(lambda x: x ** 2, 7)    # [49, 49, 49, 49]
    rc.load_balanced_view().map_sync(abs, range(-4, 0))

In IPython, `%load_ext phalanx` adds %px and %%px.
"""

from . import error
from ._phalanx import version as __version__
from .asyncresult import AsyncMapResult, AsyncResult, ExecuteReply
from .canning import Reference, interactive
from .client import Client
from .error import CompositeError, RemoteError
from .view import DirectView, LoadBalancedView

__all__ = [
    "AsyncMapResult", "AsyncResult", "Client", "CompositeError", "DirectView", "ExecuteReply",
    "LoadBalancedView", "Reference", "RemoteError", "error", "interactive",
]


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
