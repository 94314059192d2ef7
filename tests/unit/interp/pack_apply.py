# SPDX-License-Identifier: BSD-3-Clause
"""Prints apply requests as clients make them: a line "name hex hex ..." each.

pack_apply.py DIRECTORY: where the package phalanx is, for our own form (names that end in 5). The
others are made by ipyparallel itself.
"""

import pickle
import shlex
import sys
import types

import ipyparallel
import numpy
from ipyparallel.client.remotefunction import _map
from ipyparallel.serialize import Reference, pack_apply_message
from ipyparallel.util import _pull, _push

package = types.ModuleType("wire")
package.__path__ = [sys.argv[1] + "/phalanx"]
sys.modules["wire"] = package
from wire import canning, pickle5  # noqa: E402


def noop():
    pass


def add(x, y=2, *, z: int = 0):
    return x + y + z + k


def total(a):
    return float(a.sum()) + len(bytes(a))


def change(a):
    a[0] = 7
    return a


def fail():
    raise ValueError("no good")


def leave():
    raise SystemExit(3)


def forever():
    print("ready")
    while True:
        pass


def identity(value):
    return value


def prefix():
    return get_ipython().kernel.engine_id


def count_calls():
    count_calls.n = getattr(count_calls, "n", 0) + 1
    return count_calls.n


def publish():
    from ipyparallel.datapub import publish_data

    publish_data({"a": 5})


@ipyparallel.require("a_module_that_is_not_there")
def needs_module():
    return 1


@ipyparallel.require("math", add)
def needs_function():
    return math.floor(math.pi) + add(1)


@ipyparallel.depend(lambda: False)
def never():
    return 1


def outer(n):
    return lambda x: x + n


big = numpy.arange(2000.0)


def show(name, buffers):
    print(name, *(bytes(buffer).hex() for buffer in buffers))


def canned(name, f, *args, **kwargs):
    show(name, pack_apply_message(f, args, kwargs))


def own(name, f, *args, **kwargs):
    show(name, pickle5.pack_call(pickle5.pack_function(f), args, kwargs))


canned("noop", noop)
canned("push", _push, k=40, arr=big)
canned("pull", _pull, ["k", "arr"])
canned("map", _map, lambda x: x**2, [1, 2, 3])
canned("add", add, 1)
canned("add_z", add, 1, z=5)
canned("total", total, big)
canned("array_and_number", lambda a, n, b: float(a[1] + n + b["y"][2]), big, 3, {"y": big})
canned("fail", fail)
canned("leave", leave)
canned("forever", forever)
canned("reference", identity, Reference("k + 1"))
canned("unknown_reference", identity, Reference("nowhere"))
canned("closure", outer(5), 1)
canned("bytes", identity, b"x" * 5000)
canned("list", identity, [1, b"y", big])
canned("kernel", prefix)
canned("count", count_calls)
canned("publish", publish)
canned("needs_module", needs_module)
canned("needs_function", needs_function)
canned("never", never)
canned("builtin", max, 3, 9)
canned("named", shlex.quote, "a b")
canned("unpicklable", lambda: (i for i in ()))
own("noop5", noop)
own("add5", add, 1, z=5)
own("total5", total, big)
own("change5", change, big)
own("change_small5", change, numpy.zeros(3))
own("fail5", fail)
own("reference5", identity, canning.Reference("k + 1"))
own("nested5", identity, {"a": [big, {"b": big}]})
own("closure5", outer(5), 1)
own("named5", shlex.quote, "a b")
show("no_call5", [pickle.dumps((bytearray(b"x"), "not a tuple", {}), 5)])
