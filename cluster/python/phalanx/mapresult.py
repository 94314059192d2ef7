# SPDX-License-Identifier: BSD-3-Clause
"""AsyncMapResult: the results of a map, whose tasks each have a part of the elements."""

from itertools import accumulate

from . import error
from .asyncresult import AsyncResult
from .canning import is_array


class AsyncMapResult(AsyncResult):
    """The results of a map, joined; iteration gives them as they come, in order or (with
    ordered=False) in the order of arrival. sizes: how many elements each task has (None: one)."""

    _chunked = True
    _joined = None  # the elements, once they were joined to a list
    _starts = None  # where each task's elements begin, once somebody asked

    def __init__(self, client, raw, unpack, joiner, ordered=True, sizes=None, **kwargs):
        super().__init__(client, raw, unpack, **kwargs)
        self._joiner = joiner
        self._sizes = sizes
        self.ordered = ordered

    def __len__(self):
        return self._count if self._sizes is None else sum(self._sizes)

    @property
    def progress(self):
        if self._sizes is None:
            return self._replied
        self._pump()
        return sum(self._sizes[index] for index in self._order)

    def _read(self, index, task):
        value = super()._read(index, task)
        if isinstance(value, error.RemoteError):
            value.engine_info["items"] = self._items_of(index)
        return value

    def _items_of(self, index):
        """Which elements a task has, a range; none where it has a part of unknown size."""
        if self._sizes is None:
            return range(0)
        if self._starts is None:
            self._starts = [0, *accumulate(self._sizes)]
        return range(*self._starts[index : index + 2])

    def _reconstruct(self, values):
        if self._joined is not None:
            return self._joined
        if not any(isinstance(v, error.KernelError) for v in values):
            flat = self._joiner(values)
        else:
            flat = []
            for value in values:
                flat.extend([value] if isinstance(value, error.KernelError) else value)
        if type(flat) is list:
            self._joined = flat
        return flat

    def _reconstruct_metadata(self, values):
        return values

    def _indices(self, end):
        if self.ordered:
            yield from range(len(self._tasks))
            return
        for n in range(len(self._tasks)):
            if not self._wait_till(lambda: len(self._order) > n, end):
                self._require_ready()
            yield self._order[n]

    def iterate(self, end=None):
        """The elements' results one by one, as they come. end: as AsyncResult's."""
        for index in self._indices(end):
            part = self._value_when_here(index, end)
            if isinstance(part, error.KernelError) or not _is_part(part):
                yield part
            else:
                yield from part


def _is_part(value):
    return isinstance(value, (list, tuple)) or is_array(value)
