# SPDX-License-Identifier: BSD-3-Clause
"""What the integration tests share.

PX_BIN is the directory of the built programs, PX_PYTHONPATH the one that holds the built
`phalanx` package, PX_NEWER what tests/newer unpacked; all default to the tree's own build. Every
test gets its own IPython directory, and whatever process still carries that directory in its
environment when the test ends is killed; for a test that starts programs this is a failure,
because a program of ours leaves nothing behind.
"""
import contextlib
import functools
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("PX_BIN", ROOT / "build" / "bin")).resolve()
PYTHONPATH = Path(os.environ.get("PX_PYTHONPATH", ROOT / "build" / "python")).resolve()
NEWER = Path(os.environ.get("PX_NEWER", ROOT / "build" / "newer")).resolve()
PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable

STOCK_CONTROLLER = f"{PYTHON} -m ipyparallel.controller"
STOCK_ENGINE = f"{PYTHON} -m ipyparallel.engine"

# Files whose tests are long and start what they need themselves: each goes to whoever is free.
APART = ["test_suite.py", "test_newer.py"]

# The others whose tests take longest, longest first: they begin a run, so that none is its end.
LONGEST = [f"test_{name}.py" for name in (
    "controller engine launch kernel magics mixed queues htcondor views output notebook client_process launchers "
    "client batch python client_ends").split()]


def pytest_collection_modifyitems(items):
    """Long files first; the tests of those apart, which mostly wait, are spread between them."""
    place = {file: number for number, file in enumerate(LONGEST)}
    apart = itertools.count()
    items.sort(key=lambda item: next(apart) if item.path.name in APART
               else place.get(item.path.name, sys.maxsize))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests run in one worker, so that its fixtures are set up once."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduler(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return nodeid if file.rpartition("/")[2] in APART else file

    return Scheduler(config, log)


_held = []  # sockets whose names say which ports are this process's


def hold_ports(lows, count):
    """The first of these from which on `count` ports are free. The system gives them nobody, and no
    other test takes them while this process lasts: who looks for free ports binds them later."""
    for low in lows:
        held = socket.socket(socket.AF_UNIX)
        try:
            held.bind(f"\0px-test-ports-{low}")
            for port in range(low, low + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            held.close()
            continue
        _held.append(held)
        return low
    pytest.fail("no free ports")


def controller_ports():
    """An option of either controller: ports that are still free when another takes its place."""
    low = hold_ports(range(10_000, 20_000, 40), 40)
    return f"--ports={low}-{low + 39}"


def stock_controller():
    """The command of ipyparallel's controller, whose processes bind the ports that it chose."""
    return [*STOCK_CONTROLLER.split(), controller_ports()]


@functools.lru_cache(maxsize=None)
def kernel_ports():
    """An iterator over ports for the kernels of this process."""
    low = hold_ports(range(20_000, 32_000, 400), 400)
    return itertools.cycle(range(low, low + 400))


def give_ports(manager):
    """Has a manager of jupyter_client use some of these: what it finds free may soon be taken."""
    manager.cache_ports = False
    for name in ("shell", "iopub", "stdin", "hb", "control"):
        setattr(manager, name + "_port", next(kernel_ports()))


# Under nohup, or behind `&` in a script, the tests' programs would inherit signals that are ignored.
for _signal, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _usual)

# Programs buffer what they print as they do for people.
os.environ.pop("PYTHONUNBUFFERED", None)

# The tests' own process imports the package that was built.
if str(PYTHONPATH) not in sys.path:
    sys.path.insert(0, str(PYTHONPATH))


def wait_for(condition, timeout=60.0, what=None):
    """Returns the condition's first true value; fails at the deadline."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s: {what or getattr(condition, '__name__', condition)}")
        pause.wait(0.01)


def alive(pid):
    """True unless the process is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def processes_with(text):
    """pid -> command line of the processes whose environment holds `text`."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # processes come and go meanwhile
            directory = Path("/proc", pid)
            if text.encode() in (directory / "environ").read_bytes() and alive(pid):
                words = (directory / "cmdline").read_bytes().split(b"\0")
                found[int(pid)] = b" ".join(words).decode(errors="replace").strip()
    return found


@pytest.fixture(scope="session")
def px_bin():
    if not (BIN / "pxcluster").exists():
        pytest.fail(f"no programs in {BIN}: build first, or set PX_BIN")
    return BIN


@pytest.fixture
def ipython_dir(tmp_path):
    """A fresh IPython directory; processes that belong to it end with the test."""
    directory = tmp_path / "ipython"
    directory.mkdir()
    yield directory
    for pid in processes_with(f"IPYTHONDIR={directory}"):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def programs_env(env):
    """A copy of env for programs. Under a sanitizer pytest has its runtime preloaded and does not look
    for leaks. Programs of ours have their own, and do; others need none, and are slow with one."""
    env = dict(env)
    if "PX_ASAN_OPTIONS" in os.environ:
        env.pop("LD_PRELOAD", None)
        env["ASAN_OPTIONS"] = os.environ["PX_ASAN_OPTIONS"]
    return env


@pytest.fixture
def env(ipython_dir, tmp_path):
    """The environment for programs under test."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("IPP_", "JUPYTER", "IPYTHON"))}
    env["IPYTHONDIR"] = str(ipython_dir)
    env["HOME"] = str(tmp_path)
    env["PATH"] = f"{BIN}:{env.get('PATH', '/usr/bin:/bin')}"
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PYTHONPATH), env.get("PYTHONPATH")]))
    env = programs_env(env)
    # An in-process stock client looks for profiles in the same place.
    saved = os.environ.get("IPYTHONDIR")
    os.environ["IPYTHONDIR"] = str(ipython_dir)
    yield env
    if saved is None:
        del os.environ["IPYTHONDIR"]
    else:
        os.environ["IPYTHONDIR"] = saved


def has_newer():
    return (NEWER / "usr" / "lib" / "python3" / "dist-packages" / "ipyparallel").is_dir()


def with_newer(env):
    """A copy of env in which `import ipyparallel` is version 9 or later; skips where there is none."""
    if not has_newer():
        pytest.skip(f"no ipyparallel 9 or later in {NEWER}: see tests/newer")
    modules = NEWER / "usr" / "lib" / "python3" / "dist-packages"
    return {**env, "PYTHONPATH": f"{modules}:{env['PYTHONPATH']}",
            "PATH": f"{NEWER / 'usr' / 'bin'}:{env['PATH']}"}


@pytest.fixture
def run(px_bin, env):
    """run("pxcluster", "list") -> CompletedProcess with text; check=True by default."""

    def run(program, *args, check=True, timeout=60, **kwargs):
        path = px_bin / program
        done = subprocess.run(
            [str(path) if path.exists() else program, *map(str, args)],
            env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, timeout=timeout, **kwargs)
        if check and done.returncode != 0:
            pytest.fail(f"{program} {' '.join(map(str, args))}: exit status {done.returncode}\n"
                        f"{done.stdout}{done.stderr}")
        return done

    return run


class Cluster:
    """A running cluster: where its files are."""

    def __init__(self, ipython_dir, profile, cluster_id):
        self.profile_dir = ipython_dir / f"profile_{profile}"
        dash = f"-{cluster_id}" if cluster_id else ""
        security = self.profile_dir / "security"
        self.client_file = security / f"ipcontroller{dash}-client.json"
        self.engine_file = security / f"ipcontroller{dash}-engine.json"
        self.cluster_file = security / f"cluster-{cluster_id}.json"
        self.cluster_id = cluster_id

    def state(self):
        return json.loads(self.cluster_file.read_text())

    @property
    def controller_pid(self):
        return self.state()["controller"]["state"]["pid"]

    @property
    def engine_pids(self):
        sets = self.state()["engines"]["sets"].values()
        return [engine["pid"] for s in sets for engine in s["engines"].values()]

    def logs(self):
        return "".join(f"--- {p.name}\n{p.read_text(errors='replace')}"
                       for p in sorted((self.profile_dir / "log").glob("*.log")))


@pytest.fixture
def cluster(run, ipython_dir):
    """cluster(n, *options, profile=, cluster_id=) starts one; all are stopped at the end."""
    started = []

    def start(n=2, *options, profile="default", cluster_id="", timeout=90):
        names = [f"--profile={profile}", f"--cluster-id={cluster_id}"]
        if f"--controller-cmd={STOCK_CONTROLLER}" in options and "--" not in options:
            options = [*options, "--", controller_ports()]
        run("pxcluster", "start", "-n", n, "--daemonize", *names, *options, timeout=timeout)
        started.append(names)
        return Cluster(ipython_dir, profile, cluster_id)

    yield start
    for names in started:
        run("pxcluster", "stop", *names, check=False)


@pytest.fixture
def client(cluster):
    """A stock ipyparallel client on a cluster of two of our engines."""
    ipp = pytest.importorskip("ipyparallel")
    where = cluster(2)
    rc = ipp.Client(str(where.client_file))
    wait_for(lambda: len(rc.ids) == 2, what="two engines")
    yield rc
    rc.close()


@pytest.fixture
def no_leftovers(ipython_dir):
    """Fails a test that leaves processes of its IPython directory running."""
    yield
    text = f"IPYTHONDIR={ipython_dir}"
    deadline = time.monotonic() + 5
    pause = threading.Event()
    while processes_with(text) and time.monotonic() < deadline:
        pause.wait(0.02)
    left = processes_with(text)
    assert not left, f"left running: {left}"
