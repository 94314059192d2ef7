# SPDX-License-Identifier: BSD-3-Clause
"""A pytest plugin that drives ipyparallel's own installed test suite against our programs.

    PYTHONPATH=tests/integration pytest -p suite.plugin --pyargs ipyparallel.tests.test_view \\
        --px-controller=build/bin/pxcontroller

--px-controller, --px-engine   the program that is started wherever the suite starts ipcontroller,
                               ipengine; without one, the reference's is
--px-client                    the package `phalanx` under the name ipyparallel, where it has the
                               same names (both must be importable)
--px-all                       runs the excluded tests too
--px-outcomes=FILE             appends a line "outcome node" for every test

The same can be said with PX_SUITE_CONTROLLER, PX_SUITE_ENGINE and PX_SUITE_CLIENT=1.

Programs are replaced where a user would: in the plain lists of ipyparallel.cluster.launcher, and
in the profile's ipcluster_config.py for those that the suite starts through ipcluster. Which tests
are left out, and why, is in excluded.txt beside this file.
"""
import importlib
import os
import sys
from pathlib import Path

import pytest

EXCLUDED = Path(__file__).with_name("excluded.txt")

NODE = "suite_node"  # a test's name without the path of the installed suite

# Where ipyparallel keeps names, and in which of our modules the same ones are.
CLIENT_MODULES = {
    "ipyparallel.client.asyncresult": ["asyncresult", "mapresult", "hubresult"],
    "ipyparallel.client.client": ["client", "tasks", "asyncresult", "hubresult"],
    "ipyparallel.client._joblib": ["joblib"],
    "ipyparallel.client.remotefunction": ["remotefunction"],
    "ipyparallel.client.view": ["view", "broadcast", "balanced", "futures", "remotefunction", "asyncresult"],
    "ipyparallel.controller.dependency": ["dependency"],
    "ipyparallel.error": ["error"],
    "ipyparallel.joblib": ["joblib"],
    "ipyparallel.serialize": ["canning"],
    "ipyparallel.serialize.canning": ["canning"],
    "ipyparallel.util": ["canning"],
}


def pytest_addoption(parser):
    group = parser.getgroup("phalanx")
    group.addoption("--px-controller", default=os.environ.get("PX_SUITE_CONTROLLER"))
    group.addoption("--px-engine", default=os.environ.get("PX_SUITE_ENGINE"))
    group.addoption("--px-client", action="store_true",
                    default=os.environ.get("PX_SUITE_CLIENT", "") not in ("", "0"))
    group.addoption("--px-all", action="store_true")
    group.addoption("--px-outcomes")


def replace_programs(config):
    """In place: the suite copies these lists when its modules are imported."""
    from ipyparallel.cluster import launcher

    for program, more, argv, owner, trait in (
            (config.option.px_controller, [], launcher.ipcontroller_cmd_argv,
             launcher.ControllerLauncher, "controller_cmd"),
            # Its own launcher starts one at a time, and does not look like one.
            (config.option.px_engine, ["-n1"], launcher.ipengine_cmd_argv,
             launcher.EngineLauncher, "engine_cmd")):
        if program:
            argv[:] = [program, *more]
            # The trait's default is a copy of the list, or the list itself.
            owner.class_traits()[trait].default_args[0][:] = argv


def replace_client():
    """phalanx's names over ipyparallel's, in the modules where a caller looks for them."""
    import ipyparallel
    import phalanx

    for name in phalanx.__all__:
        setattr(ipyparallel, name, getattr(phalanx, name))
    for theirs, modules in CLIENT_MODULES.items():
        original = importlib.import_module(theirs)
        for name, value in members(modules):
            if hasattr(original, name) and not name.startswith("_"):
                setattr(original, name, value)


def leave_outputs_apart():
    """The suite counts a label an engine; ours come together where they are equal."""
    from phalanx import magics

    register = magics.register

    def register_unfolded(shell, view=None, suffix=""):
        register(shell, view, suffix)
        shell.run_line_magic("pxconfig" + suffix, "--no-fold")

    magics.register = register_unfolded


def members(modules):
    """The public classes and functions that these modules of ours define."""
    for module in [importlib.import_module("phalanx." + name) for name in modules]:
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) in (module.__name__, "__main__"):
                yield name, value


class Outcomes:
    """One line a test: what its call came to, or the phase that kept it from being called."""

    def __init__(self, path):
        self.path = path

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.outcome == "passed":
            return
        outcome = report.outcome if report.when == "call" or report.skipped else "error"
        if hasattr(report, "wasxfail"):
            outcome = "xfailed" if report.skipped else "xpassed"
        with open(self.path, "a") as out:
            out.write(f"{outcome} {dict(report.user_properties).get(NODE, report.nodeid)}\n")


def pytest_configure(config):
    replace_programs(config)
    if config.option.px_client:
        replace_client()
        leave_outputs_apart()
    if config.option.px_outcomes and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Outcomes(config.option.px_outcomes))


def parts(option):
    """The words that excluded.txt uses for what is ours in this run, and whose suite it is."""
    import ipyparallel

    found = {word for word, ours in (("controller", option.px_controller),
                                     ("engine", option.px_engine),
                                     ("client", option.px_client)) if ours}
    return found | {f"ipyparallel-{ipyparallel.version_info[0]}"}


def exclusions(option):
    """node -> reason, of those that concern this run."""
    found = {}
    for line in EXCLUDED.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        part, node, reason = line.split(None, 2)
        if part == "always" or part in parts(option):
            found[node] = reason
    return found


def node_name(item):
    """ "test_view.py::TestView::test_map", wherever the suite is installed."""
    names = [node.name for node in item.listchain() if isinstance(node, (pytest.Class, pytest.Item))]
    return "::".join([item.path.name, *names])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    reasons = {} if config.option.px_all else exclusions(config.option)
    for item in items:
        name = node_name(item)
        item.user_properties.append((NODE, name))
        reason = reasons.get(name) or reasons.get(name.split("[")[0])
        if reason:
            item.add_marker(pytest.mark.skip(reason="excluded: " + reason))


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(fixturedef):
    """A profile of the suite gets what a user would write into its ipcluster_config.py. And what the
    suite puts in the place of our RemoteError, which is the base of others, is taken out again."""
    error = sys.modules.get("phalanx.error")
    remote_error = getattr(error, "RemoteError", None)
    result = yield
    if error is not None:
        error.RemoteError = remote_error
    if fixturedef.argname != "ipython_dir" or result.excinfo:
        return
    from ipyparallel.cluster import launcher

    profile = Path(result.get_result(), "profile_default")
    (profile / "ipcluster_config.py").write_text(
        f"c.ControllerLauncher.controller_cmd = {launcher.ipcontroller_cmd_argv!r}\n"
        f"c.EngineLauncher.engine_cmd = {launcher.ipengine_cmd_argv!r}\n")
