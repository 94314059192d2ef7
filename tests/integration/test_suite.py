# SPDX-License-Identifier: BSD-3-Clause
"""ipyparallel's own installed test suite, with pxcontroller where it starts ipcontroller; its
client's part once more, with all of ours: controller, engines, and the package phalanx; and of the
suite of ipyparallel 9 or later (tests/newer) what asks most of controller, engines and client.

One part a module of the suite, each in a pytest of its own (suite/plugin.py), so that parts run
side by side. What fails is run once more, alone: some of these tests have deadlines of their own,
which the reference misses, too, on a busy machine. suite/excluded.txt says what is left out.

Each part runs the modules that ask most of what is ours in it, and that no other part asks of the
same. The rest, which takes as long again, is marked so: sh tests/run -- -m rest.
"""
import os
import signal
import subprocess
from pathlib import Path

import pytest

from conftest import PYTHON, processes_with, with_newer

pytest.importorskip("ipyparallel.tests")
pytest.importorskip("pytest_tornado")
pytest.importorskip("pytest_asyncio")

HERE = Path(__file__).parent
TIMEOUT_S = 600


def modules(most, rest):
    """Longest first, as parts run side by side."""
    return [*most.split(), *(pytest.param(name, marks=pytest.mark.rest) for name in rest.split())]


MODULES = modules("test_view_broadcast test_client test_apps test_lbview test_dependency",
                  "test_cluster test_view test_asyncresult test_joblib test_magics test_executor "
                  "test_remotefunction test_async")

ENGINE_MODULES = modules("test_view test_dependency", "test_cluster test_client")

CLIENT_MODULES = modules("test_client test_view test_magics test_remotefunction test_joblib "
                         "test_dependency",
                         "test_view_broadcast test_lbview test_asyncresult test_executor")

# What later versions ask of a controller and an engine, and offer a client. What is in neither list
# passes, too, and can be run by hand (suite/plugin.py).
NEWER_MODULES = modules("test_client test_view test_cluster test_label", "test_lbview test_dependency")

NEWER_CLIENT_MODULES = modules("test_view_broadcast test_lbview test_asyncresult test_magics "
                               "test_executor", "")

pytestmark = [pytest.mark.stock, pytest.mark.timeout(2 * TIMEOUT_S + 60)]


WHOLE = "the module"


class Suite:
    """Runs modules or single tests of the suite; outcomes is a test's name -> what it came to."""

    def __init__(self, tmp_path, env, options):
        self.tmp_path = tmp_path
        self.options = options
        self.env = dict(env)
        # The suite makes its IPython directories below TMPDIR.
        self.env["TMPDIR"] = str(tmp_path)
        self.env["PYTHONPATH"] = os.pathsep.join([str(HERE), env["PYTHONPATH"]])

    def run(self, *arguments):
        """-> (outcomes, output); a pytest that ends before its tests do is an outcome, too."""
        outcomes = self.tmp_path / "outcomes"
        outcomes.unlink(missing_ok=True)
        done = subprocess.run(
            [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "suite.plugin",
             "--color=no", "--timeout=120", "-o", "asyncio_mode=auto", f"--px-outcomes={outcomes}",
             *self.options, "--pyargs", *arguments],
            cwd=self.tmp_path, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", timeout=TIMEOUT_S)
        if not outcomes.exists():
            pytest.fail(f"nothing ran: {done.stdout[-4000:]}")
        lines = [line.split(None, 1) for line in outcomes.read_text().splitlines()]
        found = {name: outcome for outcome, name in lines}
        if done.returncode not in (0, 1):  # 1: some failed
            found[WHOLE] = "failed"
        return found, done.stdout

    @staticmethod
    def failed(outcomes):
        return [name for name, outcome in outcomes.items() if outcome in ("failed", "error")]


@pytest.fixture
def suite(px_bin, env, tmp_path):
    yield Suite(tmp_path, env, [f"--px-controller={px_bin / 'pxcontroller'}"])
    for pid in processes_with(f"IPYTHONDIR={tmp_path}"):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("module", MODULES)
def test_suite_with_our_controller(suite, module):
    passes(suite, module)


@pytest.mark.parametrize("module", ENGINE_MODULES)
def test_suite_with_our_engine(suite, module, px_bin):
    """With the reference's controller; the test before this and the one after it have ours."""
    suite.options[:] = [f"--px-engine={px_bin / 'pxengine'}"]
    passes(suite, module)


@pytest.mark.parametrize("module", CLIENT_MODULES)
def test_suite_with_our_client(suite, module, px_bin):
    suite.options += [f"--px-engine={px_bin / 'pxengine'}", "--px-client"]
    passes(suite, module)


@pytest.mark.parametrize("module", NEWER_MODULES)
def test_newer_suite_with_ours(suite, module, px_bin):
    suite.env.update(with_newer(suite.env))
    suite.options.append(f"--px-engine={px_bin / 'pxengine'}")
    passes(suite, module)


@pytest.mark.parametrize("module", NEWER_CLIENT_MODULES)
def test_newer_suite_with_our_client(suite, module, px_bin):
    suite.env.update(with_newer(suite.env))
    suite.options += [f"--px-engine={px_bin / 'pxengine'}", "--px-client"]
    passes(suite, module)


def passes(suite, module):
    outcomes, output = suite.run(f"ipyparallel.tests.{module}")
    failed = suite.failed(outcomes)
    if failed:
        names = " or ".join({name.split("::")[-1].split("[")[0] for name in failed})
        only = [] if WHOLE in failed else ["-k", names]
        outcomes, output = suite.run(f"ipyparallel.tests.{module}", *only)
        failed = suite.failed(outcomes)
    assert "passed" in outcomes.values()
    assert not failed, f"{failed}\n{output[-20000:]}"
