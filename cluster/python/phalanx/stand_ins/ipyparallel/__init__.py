# SPDX-License-Identifier: BSD-3-Clause
"""Stands in, inside a Phalanx engine or kernel, for the package ipyparallel where that is not
installed: the names that functions sent by its clients expect on an engine. The client itself is
not here; the package `phalanx` has one."""

from .controller.dependency import depend, dependent, require
from .error import *
from .serialize import Reference
from .util import interactive


def bind_kernel(**options):
    from phalanx.engines import bind_kernel

    return bind_kernel(**options)


def __getattr__(name):
    raise AttributeError(
        f"{name}: the package ipyparallel is not installed where this code runs; "
        "what stands in for it has only what engines need"
    )
