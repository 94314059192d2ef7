# SPDX-License-Identifier: BSD-3-Clause
"""Canned objects, and the switches that clients flip on both ends."""

from types import FunctionType

from _phalanx_wire.canning import *
from _phalanx_wire.canning import (
    CannedArray, CannedBytes, CannedCell, CannedClass, CannedFunction, CannedMemoryView,
    CannedObject, CannedPartial, use,
)

CannedBuffer = CannedMemoryView
can_map, uncan_map = {}, {CannedObject: lambda obj, g: obj.get_object(g)}
_original_can_map = {FunctionType: CannedFunction}


def use_dill():
    use("dill")


def use_cloudpickle():
    use("cloudpickle")


def use_pickle():
    use("pickle")
