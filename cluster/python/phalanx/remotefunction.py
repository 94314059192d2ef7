# SPDX-License-Identifier: BSD-3-Clause
"""Decorators that make a function run on a view."""

import inspect

from . import maps


def name_of(f):
    """What a callable is called."""
    return getattr(f, "__name__", None) or getattr(f, "name", None) or str(f)


class RemoteFunction:
    """A function whose calls are view.apply()'s. block: whether they wait (None: as the view);
    flags: those of the view, for the length of a call."""

    view: "View"
    block: "bool | None"
    flags: dict

    def __init__(self, view, f, block=None, **flags):
        self.view = view
        self.func = f
        self.block = block
        self.flags = flags
        self.__name__ = name_of(f)
        if getattr(f, "__doc__", None):
            self.__doc__ = "%s wrapping:\n%s" % (type(self).__name__, f.__doc__)
        try:
            self.__signature__ = inspect.signature(f)
        except Exception:  # a builtin has none; annotations may name what is not there
            pass

    def _waits(self):
        return self.view.block if self.block is None else self.block

    def __call__(self, *args, **kwargs):
        with self.view.temp_flags(block=self._waits(), **self.flags):
            return self.view.apply(self.func, *args, **kwargs)


class ParallelFunction(RemoteFunction):
    """A function that is called with parts of its arguments, sequences of equal length: one part
    for each engine, or on a load-balanced view for every `chunksize` elements. What the calls
    return is joined. dist: "b" for contiguous parts, "r" for every n-th element.

    f.map(*sequences) calls it with each element instead, like view.map().
    """

    def __init__(
        self, view, f, dist="b", block=None, chunksize=None, ordered=True,
        return_exceptions=False, **flags,
    ):
        super().__init__(view, f, block, **flags)
        self.chunksize = chunksize
        self.ordered = ordered
        self.mapper = maps.by_name[dist]()
        self.return_exceptions = return_exceptions

    def __call__(self, *sequences):
        sequences = [s if hasattr(s, "__len__") else list(s) for s in sequences]
        sizes = [len(s) for s in sequences]
        if len(set(sizes)) > 1:
            raise ValueError("all sequences must have equal length, but have %s" % sizes)
        return self._spread(sequences, False)

    def map(self, *sequences):
        """Calls the function with each element of the sequences."""
        return self._spread(sequences, True)

    def _spread(self, sequences, each):
        with self.view.temp_flags(block=self._waits(), **self.flags):
            return self.view._spread(
                self.func, sequences, self.mapper, each, None, self.chunksize,
                ordered=self.ordered, return_exceptions=self.return_exceptions,
            )


def remote(view, block=None, **flags):
    """A decorator: calls of the function are view.apply()'s."""
    return lambda f: RemoteFunction(view, f, block, **flags)


def parallel(view, dist="b", block=None, ordered=True, **flags):
    """A decorator: the function becomes a ParallelFunction on the view."""
    return lambda f: ParallelFunction(view, f, dist, block, ordered=ordered, **flags)
