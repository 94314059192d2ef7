# SPDX-License-Identifier: BSD-3-Clause
"""ipyparallel.serialize's functions: how objects and calls become the buffers of a message.

Views choose the form themselves; these write and read the one that every engine knows.
"""

from pickle import loads

from . import canning
from .canning import (
    PrePickled, Reference, can, can_map, deserialize_object, serialize_object, uncan, uncan_map,
)


def use_cloudpickle():
    """This process pickles with cloudpickle from now on; view.use_cloudpickle() tells the engines,
    too."""
    canning.use("cloudpickle")


def use_dill():
    """This process pickles with dill from now on; view.use_dill() tells the engines, too."""
    canning.use("dill")


def use_pickle():
    """Undoes use_cloudpickle() and use_dill()."""
    canning.use("pickle")


def pack_apply_message(f, args, kwargs, buffer_threshold=None, item_threshold=None):
    """The buffers of a call. The thresholds are ipyparallel's, and not used."""
    return canning.pack_call(canning.pack_function(f), args, kwargs)


def unpack_apply_message(bufs, g=None, copy=True):
    """(f, args, kwargs) of a call's buffers. g: the globals that functions see. copy: taken, and
    not looked at. ValueError when there are more buffers than the call says."""
    f, bufs = deserialize_object(bufs, g)
    info, *bufs = bufs
    info = loads(info)
    positional, named = bufs[: info["narg_bufs"]], bufs[info["narg_bufs"] :]
    args, kwargs = [], {}
    for _ in range(info["nargs"]):
        value, positional = deserialize_object(positional, g)
        args.append(value)
    for key in info["kw_keys"]:
        kwargs[key], named = deserialize_object(named, g)
    if positional or named:
        raise ValueError("there are more buffers than the call says")
    return f, tuple(args), kwargs


__all__ = [
    "PrePickled", "Reference", "can", "can_map", "deserialize_object", "pack_apply_message",
    "serialize_object", "uncan", "uncan_map", "unpack_apply_message", "use_cloudpickle", "use_dill",
    "use_pickle",
]
