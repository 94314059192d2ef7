# SPDX-License-Identifier: BSD-3-Clause
"""How a sequence is cut into parts for engines, and how parts are joined again."""

import sys
from collections.abc import Mapping
from itertools import chain, islice

from .canning import is_array


def has_parts(values):
    """Whether slices of it are parts of what iterating over it gives."""
    if isinstance(values, Mapping) or not hasattr(values, "__len__"):
        return False
    try:
        values[:0]
    except Exception:  # whatever it raises: a deque, a set, a key missing
        return False
    return True


class BlockMap:
    """Contiguous parts, the first ones longer by one where the length does not divide."""

    def part(self, seq, index, count, size=None):
        size = len(seq) if size is None else size
        base, extra = divmod(size, count)
        low = index * base + min(index, extra)
        high = low + base + (index < extra)
        try:
            return seq[low:high]
        except TypeError:
            return list(islice(seq, low, high))

    def join(self, parts):
        if not parts:
            return []
        if is_array(parts[0]):
            return sys.modules["numpy"].concatenate(parts)
        if isinstance(parts[0], (list, tuple)):
            return list(chain.from_iterable(parts))
        return parts


class RoundRobinMap(BlockMap):
    """Every n-th element."""

    def part(self, seq, index, count, size=None):
        return seq[index : len(seq) if size is None else size : count]

    def join(self, parts):
        if not parts or not (is_array(parts[0]) or isinstance(parts[0], (list, tuple))):
            return parts
        rounds = max(len(part) for part in parts)
        flat = [part[i] for i in range(rounds) for part in parts if len(part) > i]
        return sys.modules["numpy"].array(flat) if is_array(parts[0]) else flat


by_name = {"b": BlockMap, "r": RoundRobinMap}
