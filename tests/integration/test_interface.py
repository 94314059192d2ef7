# SPDX-License-Identifier: BSD-3-Clause
"""The names, signatures and families of the package, beside those of the installed ipyparallel; what
editors see of them. Nothing here needs a cluster."""
import datetime
import inspect
import socket
from pathlib import Path

import pytest

phalanx = pytest.importorskip("phalanx")
ipyparallel = pytest.importorskip("ipyparallel")
traitlets = pytest.importorskip("traitlets.config")

CLASSES = [
    "Client", "DirectView", "LoadBalancedView", "BroadcastView", "ViewExecutor", "AsyncResult",
    "AsyncMapResult", "AsyncHubResult", "RemoteFunction", "ParallelFunction", "Reference",
    "Dependency", "dependent", "Cluster", "ClusterManager", "RemoteError", "CompositeError",
]

# What there is not: the names, and why not.
ABSENT = {
    "": {
        "MultipleInstanceError builtins print_function sys traceback traitlets client controller":
            "imported by their module, not made for users",
        "cluster error serialize": "modules, which are imported under ipyparallel's name",
        "load_jupyter_server_extension": "a tab of the classic notebook, not of the client",
    },
    "Client": {
        "create_message_futures send_apply_request send_execute_request":
            "send on sockets, which are the C library's",
    },
    "RemoteFunction": {}, "Reference": {"get_object": "is called on engines, where it stands for"},
    "ParallelFunction": {"mapObject": "of the class itself; dist says the same"},
    "dependent": {"check_dependency": "is called on engines"},
    "Cluster": {
        "profile_config write_cluster_file remove_cluster_file update_cluster_file":
            "pxcluster reads the options and keeps the file",
    },
}

# Defaults that differ on purpose.
DEFAULTS = {
    ("LoadBalancedView", "map", "chunksize"): None,  # small items share tasks
    ("LoadBalancedView", "register_joblib_backend", "name"): "phalanx",
    ("Client", "wait_for_engines", "n"): None,  # as many as the cluster has
    ("Cluster", "__init__", "delay"): 0.0,  # engines start when the controller is ready
}
# PEP 3148's name instead.
RENAMED = {("ViewExecutor", "map", "func"): "fn"}
# Made by this package for itself; users get them from calls.
MADE_HERE = {"AsyncResult", "AsyncMapResult", "AsyncHubResult"}


def absent(name):
    return {word for words in ABSENT.get(name, ()) for word in words.split()}


def public(kind):
    """The names of a class, of its objects' too where they are declared."""
    declared = [name for k in kind.__mro__ for name in inspect.get_annotations(k)]
    inherited = set(dir(traitlets.LoggingConfigurable))
    return {n for n in {*dir(kind), *declared} if not n.startswith("_")} - inherited


def test_the_package_has_ipyparallels_names():
    # Without parts of it that some other test has imported.
    theirs = {name for name, value in vars(ipyparallel).items() if not name.startswith("_")
              and getattr(value, "__name__", "") != f"ipyparallel.{name}"}
    missing = {name for name in theirs if not hasattr(phalanx, name)}
    assert missing <= absent("")
    for name in theirs - absent("") - {"os"}:
        assert name in phalanx.__all__ or name == "version_info", name
        assert isinstance(getattr(phalanx, name), type) == isinstance(
            getattr(ipyparallel, name), type), name


@pytest.mark.parametrize("name", CLASSES)
def test_classes_have_ipyparallels_attributes(name):
    theirs = public(getattr(ipyparallel, name))
    assert theirs, name
    kind = getattr(phalanx, name)
    ours = public(kind)
    if name in ("RemoteFunction", "ParallelFunction", "Dependency", "dependent", "Cluster",
                "ClusterManager"):
        ours |= set(vars(EXAMPLES[name]()))
    assert theirs - ours == absent(name) & theirs


EXAMPLES = {
    "RemoteFunction": lambda: phalanx.RemoteFunction(None, abs),
    "ParallelFunction": lambda: phalanx.ParallelFunction(None, abs),
    "Dependency": phalanx.Dependency,
    "dependent": lambda: phalanx.dependent(abs, abs),
    "Cluster": phalanx.Cluster,
    "ClusterManager": phalanx.ClusterManager,
}


def parameters(function):
    """Those of a signature, without `self` and without those that are private."""
    found = list(inspect.signature(function).parameters.values())
    return [p for p in found if p.name != "self" and not p.name.startswith("_")]


def accepts(function, wanted, position):
    """Whether a parameter of theirs can be given to ours as it is to theirs."""
    ours = {p.name: p for p in parameters(function)}
    kinds = {p.kind for p in ours.values()}
    if wanted.kind in (wanted.VAR_POSITIONAL, wanted.VAR_KEYWORD):
        return wanted.kind in kinds or wanted.kind == wanted.VAR_KEYWORD
    if wanted.name not in ours:
        return wanted.VAR_KEYWORD in kinds and wanted.kind == wanted.KEYWORD_ONLY
    own = ours[wanted.name]
    if wanted.kind == wanted.POSITIONAL_OR_KEYWORD:
        kinds_of_place = {own.POSITIONAL_OR_KEYWORD}
        if wanted.VAR_KEYWORD in kinds:  # which may be called the same
            kinds_of_place.add(own.POSITIONAL_ONLY)
        return own.kind in kinds_of_place and list(ours).index(wanted.name) == position
    return own.kind in (own.KEYWORD_ONLY, own.POSITIONAL_OR_KEYWORD)


def same_default(mine, theirs):
    return mine == theirs or (mine in ((), None) and theirs in ([], ""))


@pytest.mark.parametrize("name", CLASSES)
def test_methods_take_ipyparallels_arguments(name):
    theirs, ours = getattr(ipyparallel, name), getattr(phalanx, name)
    methods = {m for m in public(theirs) if callable(getattr(theirs, m))}
    if name not in MADE_HERE:
        methods |= {"__init__"}
    compared = 0
    for method in sorted(methods - absent(name)):
        mine = getattr(ours, method, None)
        if method.startswith("set_") and issubclass(theirs, ipyparallel.AsyncResult):
            continue  # refused: engines alone set a result
        assert callable(mine), method
        if mine is getattr(theirs, method):  # both inherit it: set's, BaseException's
            continue
        try:
            wanted = parameters(getattr(theirs, method))
            have = {p.name: p for p in parameters(mine)}
        except ValueError:  # a builtin
            continue
        for position, parameter in enumerate(wanted):
            if name in EXAMPLES and parameter.name in absent(name) | {"config", "parent"}:
                continue
            renamed = RENAMED.get((name, method, parameter.name), parameter.name)
            parameter = parameter.replace(name=renamed)
            assert accepts(mine, parameter, position), (method, str(parameter))
            if parameter.default is parameter.empty or parameter.name not in have:
                continue
            default = have[parameter.name].default
            if (name, method, parameter.name) in DEFAULTS:
                assert default == DEFAULTS[name, method, parameter.name]
            elif name != "Cluster":  # whose defaults are traits
                assert same_default(default, parameter.default), (method, str(parameter), default)
            compared += 1
    assert compared or name in ("ViewExecutor", "Reference", "RemoteError", "CompositeError",
                                "ClusterManager", "dependent")


def test_exceptions_are_of_the_same_families():
    theirs = {n: e for n, e in vars(ipyparallel.error).items()
              if isinstance(e, type) and issubclass(e, Exception)}
    assert len(theirs) > 10
    for name, kind in theirs.items():
        ours = getattr(phalanx.error, name)
        assert {k.__name__ for k in kind.__mro__} <= {k.__name__ for k in ours.__mro__}, name


@pytest.mark.parametrize("f, args, kwargs", [
    (len, ([1, 2],), {}), (max, (3, 4), {"key": abs}), (sorted, ({"a": 1},), {"reverse": True}),
])
def test_calls_are_packed_for_each_other(f, args, kwargs):
    wanted = f, args, kwargs
    assert phalanx.unpack_apply_message(phalanx.pack_apply_message(*wanted)) == wanted
    assert ipyparallel.unpack_apply_message(phalanx.pack_apply_message(*wanted)) == wanted
    limits = {"buffer_threshold": 1 << 20, "item_threshold": 1024}
    assert phalanx.unpack_apply_message(phalanx.pack_apply_message(*wanted, **limits)) == wanted
    assert phalanx.deserialize_object(phalanx.serialize_object(args, **limits))[0] == args
    assert phalanx.unpack_apply_message(ipyparallel.pack_apply_message(*wanted)) == wanted
    value = {"a": [1, 2.5, None]}
    assert phalanx.deserialize_object(phalanx.serialize_object(value)) == (value, [])


def test_exceptions_are_wrapped_for_each_other():
    for one, other in ((phalanx, ipyparallel), (ipyparallel, phalanx)):
        try:
            raise KeyError("lost")
        except KeyError:
            content = one.wrap_exception({"engine_id": 3, "engine_uuid": "u", "method": "apply"})
        e = other.unwrap_exception(content)
        assert (e.ename, e.evalue, e.engine_info["engine_id"]) == ("KeyError", "'lost'", 3)
        assert "KeyError" in e.traceback


def test_utilities_do_what_theirs_do():
    theirs, ours = ipyparallel.util, phalanx.util
    assert set(ours.__all__) <= set(dir(theirs))
    aware, naive = ours.utcnow(), datetime.datetime(2026, 1, 2, 3)
    assert aware.tzinfo and ours.ensure_timezone(aware) is aware
    assert ours.compare_datetimes(aware, naive) == theirs.compare_datetimes(aware, naive)
    assert ours.compare_datetimes(naive, naive) == datetime.timedelta(0)
    for util in (theirs, ours):
        assert util.int_keys({"1": "one", "b": 2}) == {1: "one", "b": 2}
        pairs = util.ReverseDict(a=1)
        pairs["b"] = 2
        assert (pairs[2], pairs["b"], pairs.get("c"), pairs.pop("a")) == ("b", 2, None, 1)
        space = util.Namespace(x=1)
        space.y = 2
        assert space == {"x": 1, "y": 2} and space.x == 1
        for refused in (lambda: util.int_keys({"1": 1, 1: 2}), lambda: pairs.__setitem__(2, "c"),
                        lambda: setattr(space, "keys", 1)):
            with pytest.raises(KeyError):
                refused()
    assert phalanx.Dependency(["a"], all=False).as_dict() == ipyparallel.Dependency(
        ["a"], all=False).as_dict()
    shown = phalanx.AlreadyDisplayedError(phalanx.CompositeError("two", [("E", "", "", {})] * 2))
    assert (str(shown), shown.render_traceback()) == ("2 errors", ["2 errors"])


def outcome(function, *args):
    try:
        return function(*args)
    except (AssertionError, TypeError) as e:
        return type(e)


def test_addresses_are_read_as_theirs_are():
    theirs, ours = ipyparallel.util, phalanx.util
    here = socket.gethostname()
    for url in ("tcp://*:10101", "tcp://0.0.0.0:7", "tcp://10.1.2.3:7", "ipc://@x", "inproc://a",
                "tcp://*", "http://a:1", "x", "TCP://*:7"):
        for check in ("is_url", "validate_url", "split_url"):
            assert outcome(getattr(ours, check), url) == outcome(getattr(theirs, check), url), url
        for location in (None, "", here, "127.0.0.1", "192.0.2.7"):
            assert ours.disambiguate_url(url, location) == theirs.disambiguate_url(url, location)
    assert outcome(ours.validate_url, 5) is TypeError
    assert outcome(ours.validate_url_container, {"a": ["tcp://*:1"], "b": "x"}) is AssertionError
    assert ours.validate_url_container(["tcp://*:1", ("ipc://x",)]) is None
    ports = ours.select_random_ports(3) + ours.select_random_ports(3)
    assert len(set(ports)) == 6 and min(ports) > 1023


# ---- what editors see ------------------------------------------------------------------------


def test_the_stub_and_the_package_offer_the_same():
    stub = Path(phalanx.__file__).with_name("__init__.pyi").read_text()
    for name in phalanx.__all__:
        assert f"{name} as {name}" in stub or f"def {name}(" in stub, name
        assert getattr(phalanx, name) is not None
    assert set(phalanx.__all__) <= set(dir(phalanx))


def test_everything_public_is_described():
    """Modules; and the classes, methods, properties and functions that the package offers."""
    missing = [home for home in phalanx._modules if not getattr(phalanx, home).__doc__]
    for name in phalanx.__all__:
        missing += described(getattr(phalanx, name), name)
    assert missing == []


def described(value, path):
    missing = [] if value.__doc__ else [path]
    if inspect.isclass(value):
        for name, member in vars(value).items():
            if isinstance(member, (staticmethod, classmethod)):
                member = member.__func__
            if not name.startswith("_") and (inspect.isfunction(member)
                                             or isinstance(member, property)):
                missing += [] if inherited_doc(value, name, member) else [f"{path}.{name}"]
    return missing


def inherited_doc(kind, name, member):
    """Its own description, or that of what it overrides."""
    return member.__doc__ or any(
        getattr(vars(base).get(name), "__doc__", None) for base in kind.__mro__[1:])


COMPLETED = {
    "rc.": {"ids", "load_balanced_view", "wait_for_engines", "history", "hub_history"},
    "rc[:].": {"apply_sync", "scatter", "targets", "block"},
    "rc.load_balanced_view().": {"map", "imap", "retries", "after"},
    "rc[0].apply_async(abs, 1).": {"get", "stdout", "engine_id", "wait_interactive"},
    "rc.get_result('id').": {"get", "metadata"},
    "rc[:].executor.": {"submit", "map", "shutdown"},
    "phalanx.Cluster(n=2).start_and_connect_sync().": {"ids", "direct_view"},
    "phalanx.Cluster.from_file().": {"stop_cluster_sync", "engines"},
}


@pytest.mark.parametrize("code", COMPLETED)
def test_jedi_completes(code):
    jedi = pytest.importorskip("jedi")
    source = f"import phalanx\nrc = phalanx.Client()\n{code}"
    project = jedi.Project(Path(phalanx.__file__).parents[1])
    names = {c.name for c in jedi.Script(source, project=project).complete(3, len(code))}
    assert COMPLETED[code] <= names
