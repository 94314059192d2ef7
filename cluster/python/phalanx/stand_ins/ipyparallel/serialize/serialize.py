# SPDX-License-Identifier: BSD-3-Clause
"""How objects become buffers."""

import pickle

from _phalanx_wire.canning import deserialize_object, serialize_object

_stdlib_pickle = pickle
