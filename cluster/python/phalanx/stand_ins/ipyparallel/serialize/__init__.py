# SPDX-License-Identifier: BSD-3-Clause
"""How objects travel: see the package phalanx, whose code this is."""

from _phalanx_wire.canning import Reference, can, deserialize_object, serialize_object, uncan

from .canning import use_cloudpickle, use_dill, use_pickle

can_map, uncan_map = {}, {}
