# SPDX-License-Identifier: BSD-3-Clause
"""What functions of a notebook name goes with them to engines that lack it."""
import functools
import gc
import itertools
import tracemalloc
import weakref

import pytest

from four import rc, view, where  # noqa: F401: fixtures, our cluster and ipyparallel's

np = pytest.importorskip("numpy")
phalanx = pytest.importorskip("phalanx")
from phalanx import companions, pickle5  # noqa: E402

NOTEBOOK = """
import collections, dataclasses, datetime, functools, json as js, logging, numpy as np, os.path
import pathlib, re
from math import sqrt
from random import random
from numpy import add

N, SHAPE, TEXT, array = 7, (2, 3), "text", np.zeros(3)
HERE, WORD, COLORS, cache = pathlib.Path("/"), re.compile("a+"), ["r", "g"], {}
K, DAY, log = np.float32(0.5), datetime.date(2020, 1, 1), logging.getLogger("mine")

def helper(x): return doubled(x) + N
def doubled(x): return 2 * x
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
def even(n): return n == 0 or odd(n - 1)
def odd(n): return n > 0 and even(n - 1)
@functools.lru_cache
def cached(n): return n if n < 2 else cached(n - 1) + cached(n - 2)
def logged(f):
    @functools.wraps(f)
    def call(*args): return TEXT, f(*args)
    return call
@logged
def decorated(x): return helper(x)
@dataclasses.dataclass
class Point:
    x: int = 1
    def far(self): return helper(self.x)
class Named(collections.namedtuple("Named", "a")):
    pass
def adder(n):
    def add_up(x): return doubled(x) + n + N
    return add_up
def all_of(xs): return [helper(x) for x in xs]
async def soon(x): return helper(x)
def untaken(f=None): return f and len(array)
def counted(x):
    cache[x] = cache.get(x, 0) + 1
    return cache[x]
"""


def notebook(**more):
    """The namespace of a notebook, where cells have been run."""
    names = {"__name__": "__main__", **more}
    exec(NOTEBOOK, names)
    return names


def typed(names, text):
    exec(text, names)
    return names


@pytest.fixture
def clean(rc, where):
    if where[2] == "theirs":
        pytest.skip("only in our own form")
    rc.clear(block=True)


@pytest.mark.parametrize("call, expected", [
    ("(helper, 1)", 9), ("(fib, 10)", 55), ("(even, 5)", False), ("(cached, 20)", 6765),
    ("(decorated, 1)", ("text", 9)), ("(Point(4).far,)", 15), ("(lambda: Point(2).far(),)", 11),
    ("(lambda: Named(3)[0],)", 3), ("(adder(1), 2)", 12), ("(all_of, [1, 2])", [9, 11]),
    ("(soon, 1)", 9), ("(lambda: js.dumps(SHAPE),)", "[2, 3]"), ("(lambda: sqrt(N + 2),)", 3.0),
    ("(lambda: 0 <= random() < 1,)", True), ("(lambda: int(add(1, np.int64(2))),)", 3),
    ("(lambda: os.path.join('a', 'b'),)", "a/b"), ("(functools.partial(helper, 1),)", 9),
    ("(lambda f, x: f(x), helper, 1)", 9), ("(lambda p: p.far(), Point(1))", 9),
    ("(lambda p: p[0].far(), [Point(1)])", 9), ("(untaken,)", None),
    ("(lambda: WORD.match('aa')[0] + COLORS[1] + str(HERE / 'x'),)", "aag/x"),
    ("(lambda: (DAY.year, float(K), log.name),)", (2020, 0.5, "mine")),
    ("(lambda: [doubled(y) for y in range(2)],)", [0, 2]), ("(lambda: (lambda: helper(0))(),)", 7),
])
def test_what_goes_along(clean, view, call, expected):
    names = notebook()
    assert view.apply(*eval(call, names)) == [expected] * 4


@pytest.mark.parametrize("chunk", [1, None])
def test_of_maps(clean, rc, view, chunk):
    names = notebook()
    balanced, options = rc.load_balanced_view(), {"chunksize": chunk} if chunk else {}
    assert balanced.map_sync(names["helper"], range(100), **options) == [2 * x + 7 for x in range(100)]
    points = [names["Point"](x) for x in range(10)]
    far = eval("lambda p: p.far()", names)
    assert balanced.map_sync(far, points, **options) == [2 * x + 7 for x in range(10)]
    assert view.map_sync(names["fib"], range(8)) == [0, 1, 1, 2, 3, 5, 8, 13]
    with balanced.executor as executor:
        assert list(executor.map(names["helper"], range(3))) == [7, 9, 11]
        assert executor.submit(names["fib"], 7).result(60) == 13


def test_what_engines_have_stays(clean, view):
    names = notebook()
    view["N"] = 100
    view.execute("def doubled(x): return -x")
    for _ in range(2):
        assert view.apply(names["helper"], 1) == [99] * 4
    view.execute("N = None")
    assert view.apply(eval("lambda: N", names)) == [None] * 4
    view.execute("del N")
    assert view.apply(names["helper"], 1) == [6] * 4
    view["N"] = 3  # what was brought is the engine's from now on
    assert view.apply(names["helper"], 1) == [2] * 4


def test_what_changes_here_is_renewed(clean, view):
    names = notebook()
    versions = ["N = 1", "N = 2", "def doubled(x): return 0", "N = 1", "def doubled(x): return 2 * x"]
    said = [(typed(names, cell), view.apply(names["helper"], 5)[0])[1] for cell in versions]
    assert said == [11, 12, 2, 1, 11]
    typed(names, "class Point:\n    def far(self): return TEXT")
    assert view.apply(eval("lambda: Point().far()", names)) == ["text"] * 4
    typed(names, "Point.far = lambda self: 5")
    assert view.apply(eval("lambda: Point().far()", names)) == [5] * 4
    typed(names, "class Settings:\n    rates = {'a': 1}")
    asks = eval("lambda: Settings.rates['a']", names)
    assert view.apply(asks) == [1] * 4
    names["Settings"].rates["a"] = 2  # in place
    assert view.apply(asks) == [2] * 4
    names["Point"].far = lambda self: phalanx  # of a module that engines have not
    with pytest.raises(NameError, match="Point"):
        view.apply(eval("lambda: Point().far()", names))


def test_notebooks_have_helpers_of_their_own(clean, where, rc):
    one, other = notebook(), typed(notebook(), "N = 1\ndef doubled(x): return x")
    with phalanx.Client(where[0]) as another:
        another.wait_for_engines(4, timeout=60)
        for _ in range(3):
            assert rc[0].apply_sync(one["helper"], 3) == 13
            assert another[0].apply_sync(other["helper"], 3) == 4


def test_what_a_function_keeps_on_an_engine(clean, rc):
    names = typed(notebook(), "count = 0\ndef more():\n    global count\n    count += 1\n    return count")
    assert [rc[0].apply_sync(names["more"]) for _ in range(3)] == [1, 2, 3]
    assert [rc[0].apply_sync(names["counted"], 0) for _ in range(3)] == [1, 2, 3]
    assert rc[0]["cache"] == {0: 3} and names["cache"] == {}
    names["cache"][0] = 10
    assert [rc[0].apply_sync(names["counted"], 0) for _ in range(2)] == [11, 12]


def test_what_is_given_again_stays(clean, rc):
    names = typed(notebook(), "flag = False\ndef asks(): return flag")
    said = [rc[0].apply_sync(names["asks"])]
    for value in True, False:
        rc[0]["flag"] = value
        said.append(rc[0].apply_sync(names["asks"]))
    names["flag"] = True
    assert [*said, rc[0].apply_sync(names["asks"])] == [False, True, False, False]


def test_builtins_stay_what_they_are(clean, rc):
    hidden = typed(notebook(), "max = len\ndef asks(): return max and N")
    assert rc[0].apply_sync(hidden["asks"]) == 7
    assert rc[0].apply_sync(eval("lambda: max(N, 8)", notebook())) == 8


def test_data_stay_here(clean, rc):
    names = notebook(_1=1, _hidden='mine', nested=[[]], long="x" * 70_000, instance=object(), many=list(range(65)))
    for name in "array", "_1", "_hidden", "nested", "long", "instance", "many", "nowhere":
        with pytest.raises(NameError, match=name):
            rc[0].apply_sync(eval("lambda: " + name, names))


def test_a_module_that_engines_have_not(clean, rc, tmp_path, monkeypatch):
    (tmp_path / "only_here_is.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = typed(notebook(), "import only_here_is as own\nfrom only_here_is import value\n"
                              "def uses(it): return it and own.value")
    assert rc[0].apply_sync(names["uses"], False) is False
    monkeypatch.setitem(vars(__import__("__main__")), "own", names["own"])
    with pytest.raises(NameError) as raised:
        rc[0].apply_sync(names["uses"], True)
    said = "\n".join(raised.value.render_traceback())
    assert "own is the module only_here_is here, which engine 0 cannot import." in said
    assert f"sys.path.append('{tmp_path}')" in said and "push" not in said
    rc[0].apply_sync(exec, f"import sys; sys.path.append({str(tmp_path)!r})")
    assert rc[0].apply_sync(names["uses"], True) == 1


def test_what_cannot_be_pickled_stays_here(clean, rc):
    names = typed(notebook(), "import threading\nlock = threading.Lock()\n"
                              "def locked(lock=lock): return 1\n"
                              "def uses(it): return it and locked()")
    assert rc[0].apply_sync(names["uses"], False) is False
    with pytest.raises(NameError, match="locked"):
        rc[0].apply_sync(names["uses"], True)
    assert rc[0].apply_sync(exec, "def locked(): return 2") is None
    assert rc[0].apply_sync(names["uses"], True) == 2


def test_objects_that_are_odd_stay_here(clean, rc):
    names = typed(notebook(), "class Unbound:\n"
                              "    @property\n"
                              "    def __class__(self): raise RuntimeError('nothing is bound')\n"
                              "class Kind(type):\n    __hash__ = None\n"
                              "class Thing(metaclass=Kind): pass\n"
                              "proxy, thing = Unbound(), Thing()\n"
                              "def uses(it): return it and (proxy, thing)")
    assert rc[0].apply_sync(names["uses"], 0) == 0


def test_arguments_are_pickled_once(clean, rc):
    names = typed(notebook(), "made = []\n"
                              "class Counted(Point):\n"
                              "    def __getstate__(self):\n"
                              "        made.append(1)\n"
                              "        return {'x': self.x}")
    typed(names, "def both(point, f): return f(point.far())")
    assert rc[0].apply_sync(names["both"], names["Counted"](1), f=names["helper"]) == 25
    assert names["made"] == [1]
    rc[0].execute("def call(f, x): return f(x)", block=True)
    assert rc[0].apply_sync(phalanx.Reference("call"), names["helper"], 1) == 9


def test_nothing_comes_back(clean, rc):
    before = set(vars(__import__("__main__")))
    names = notebook()
    f = rc[0].apply_sync(eval("lambda: (helper(1), helper)[1]", names))
    assert f.__name__ == "helper" and set(vars(__import__("__main__"))) == before


# ---- what it costs -------------------------------------------------------------------------------


def test_a_function_is_packed_once():
    names = notebook()
    f = names["helper"]
    packed = pickle5.pack_function(f)
    assert set(packed.names) == {"doubled", "N"} and pickle5.pack_function(f) is packed
    for cell in "N = 8", "N = array", "N = [[]]", "del N", "N = 8", "doubled = None", "print = 1":
        typed(names, cell)
        again = pickle5.pack_function(f)
        same = cell in ("N = [[]]", "del N", "print = 1")
        assert (again is packed) == same, cell
        packed = again
        assert pickle5.pack_function(f) is packed
    lists = "N = []", "N = 1\ndef doubled(x=[]): return 1", "class doubled:\n    of = []"
    for cell in lists:  # which may change unseen
        typed(names, cell)
        assert pickle5.pack_function(f) is not pickle5.pack_function(f)


def test_functions_live_no_longer():
    names = notebook()
    typed(names, "class Own:\n    def kind(self): return Own")
    kept = [weakref.ref(names[name]) for name in ("fib", "even", "odd", "Point", "Own")]
    for f in names["fib"], names["even"], names["odd"], eval("lambda: Point()", names), names["Own"].kind:
        pickle5.pack_function(f)
    del f
    names.clear()
    gc.collect()
    assert [ref() for ref in kept] == [None] * 5


def test_what_goes_along_is_bounded():
    text = "\n".join("def f%d(x=%r): return f%d" % (i, "x" * 900, i + 1) for i in range(400))
    names = typed(notebook(), text)
    packed = pickle5.pack_function(names["f0"])
    assert 200 < len(packed.names) < 400
    assert sum(map(len, packed.names.values())) <= companions.MOST_BYTES_IN_ALL
    typed(names, "def large(x=%r): return 1\ndef calls(): return large()" % ("x" * 70_000))
    assert pickle5.pack_function(names["calls"]).names == {}
    typed(names, "def around(it):\n    def calls(): return it\n    return calls\ndef asks(): return calls()")
    for data in np.ones(4_000_000), b"x" * 32_000_000, [1] * 4_000_000:  # and not even pickled
        names["calls"] = names["around"](data)
        tracemalloc.start()
        assert pickle5.pack_function(names["asks"]).names == {}
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
        tracemalloc.stop()
    assert pickle5.pack_function(lambda: itertools and functools).names == {}  # of a module, this one
