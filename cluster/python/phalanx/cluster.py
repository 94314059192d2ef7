# SPDX-License-Identifier: BSD-3-Clause
"""Clusters started, changed and stopped from Python.

    with phalanx.Cluster(n=4) as rc:           # a Client; the cluster ends with the block
        rc[:].apply_sync(os.getpid)

    cluster = phalanx.Cluster(n=4, profile="lab")
    rc = cluster.start_and_connect_sync()
    cluster.stop_cluster_sync()

The program pxcluster does all of it, and writes down what runs in the cluster's file. That file
is read whenever something is asked; nothing about the cluster is remembered here.
"""

import asyncio
import contextlib
import difflib
import functools
import glob
import inspect
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
import weakref

from . import error
from .deadlines import wait_until

STOP_SECONDS = 5  # after which engines that were asked to end are killed
NOT_RUNNING = 11  # pxcluster's exit status

# ---- the program


def find_pxcluster():
    """The program: of $PX_BINDIR, of the installation or build that this package is part of, or
    on the PATH. None when there is none."""
    here = os.path.dirname(os.path.abspath(__file__))
    places = [
        os.environ.get("PX_BINDIR"),
        os.path.join(here, "..", "..", "..", "..", "bin"),  # P/lib/python3.x/site-packages/phalanx
        os.path.join(here, "..", "..", "bin"),  # build/python/phalanx
    ]
    for place in filter(None, places):
        program = os.path.join(place, "pxcluster")
        if os.access(program, os.X_OK):
            return os.path.normpath(program)
    return shutil.which("pxcluster")


def run(*args, pass_fds=()):
    """(exit status, output) of a program. Its output goes through a file, because what it leaves in
    the background may hold a pipe open. It gets the environment as Python has it: what a library
    has set besides is about this process, as MPI's settings are, with which mpiexec fails."""
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            args, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, check=False, pass_fds=pass_fds, env=os.environ,
        )
        output.seek(0)
        return done.returncode, output.read().decode(errors="replace").strip()


def _end_of_this_process():
    """A descriptor that becomes readable when this process has ended, however it does. Where the
    system has no pidfd it is a pipe, whose other end a process forked from here may keep open."""
    try:
        return os.pidfd_open(os.getpid())
    except (AttributeError, OSError):
        return os.pipe()[0]  # the other end stays open as long as we live


def run_with_parent(*args):
    """run() of pxcluster, which stops what it leaves in the background when this process ends."""
    alive = _end_of_this_process()
    program, command, *options = args
    try:
        return run(program, command, "--parent-fd", str(alive), *options, pass_fds=[alive])
    finally:
        os.close(alive)


def _stop_at_exit(pid, *command):
    if os.getpid() == pid:  # not in a forked child
        run(*command)


# ---- clusters


def _pass_over(unknown, config):
    """Tells of arguments that do nothing: ipyparallel's Cluster takes any name, so people's programs
    do. TypeError where one is nearly the name of one that does something."""
    for name in unknown:
        near = difflib.get_close_matches(name, inspect.signature(Cluster).parameters, 1, 0.8)
        if near:
            raise TypeError("Cluster() has no option %r: did you mean %r?" % (name, near[0]))
        warnings.warn("Cluster() has no option %r, and passes over it" % name, stacklevel=3)
    if config:
        warnings.warn(
            "Cluster() passes over config: what it sets belongs into the profile's "
            "ipcluster_config.py", stacklevel=3,
        )


def _awaitable(method):
    """The coroutine function whose synchronous form is `method`, which waits in another thread."""

    @functools.wraps(method)
    async def call(self, *args, **kwargs):
        waits = functools.partial(method, self, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(None, waits)

    call.__name__ = method.__name__.replace("_sync", "")
    call.__qualname__ = method.__qualname__.replace("_sync", "")
    return call


def _ranks(mpiexec):
    """The pids of the engines of this machine that run under an mpiexec, or under what it runs."""
    found = []
    for path in glob.glob("/proc/%d/task/*/children" % mpiexec):
        try:
            with open(path) as file:
                children = [int(pid) for pid in file.read().split()]
            for pid in children:
                with open("/proc/%d/comm" % pid) as file:
                    name = file.read()
                found += [pid] if name.startswith(("pxengine", "python", "ipengine")) else _ranks(pid)
        except OSError:  # it has ended meanwhile
            pass
    return found


class Launched:
    """What was started and writes to output_file, if that is known."""

    output_file = None

    def get_output(self, remove=False):
        """What it has written; "" without a file. remove: whether the file goes then."""
        try:
            with open(self.output_file or os.devnull, errors="replace") as file:
                output = file.read()
            if remove and self.output_file:
                os.remove(self.output_file)
        except FileNotFoundError:
            return ""
        return output


class EngineSet(Launched):
    """Engines that were started together: engine_set_id, n, state, pids, output_file."""

    def __init__(self, engine_set_id, described):
        engines = described.get("engines") or {}
        far = any(e.get("hostname") for e in engines.values())  # whose pids are other hosts'
        self.engine_set_id = engine_set_id
        self.n = described.get("n")
        self.state = described.get("state")
        self._mpiexec = described.get("pid") if not engines else None
        self._pids = [e["pid"] for e in engines.values() if e.get("pid", -1) > 0 and not far]
        self.output_file = described.get("output_file") or next(
            (e.get("output_file") for e in engines.values()), None
        )

    @property
    def pids(self):
        """Its processes, if all of them are of this machine; else none."""
        if isinstance(self._mpiexec, int) and self._mpiexec > 1:
            ranks = _ranks(self._mpiexec)
            return ranks if len(ranks) == self.n else []
        return self._pids

    def __repr__(self):
        return "<EngineSet(%r, n=%s, %s)>" % (self.engine_set_id, self.n, self.state)


class Controller(Launched):
    """A controller that runs: state, pid, output_file."""

    def __init__(self, described):
        self.state = described.get("state")
        self.pid = described.get("pid")
        self.output_file = described.get("output_file")

    def __repr__(self):
        return "<Controller(pid=%s, %s)>" % (self.pid, self.state)


def _words(given):
    return [given] if isinstance(given, str) else list(given)


class Cluster:
    """A controller and engines, running or not.

    n: engines (None: one a processor). profile or profile_dir, cluster_id: its name (cluster_id's
    default is a random one). engines, controller: launchers, as `pxcluster start --engines=` takes
    them. engine_timeout: seconds for engines to register; at_least: with how many of them to be content
    then. hosts, hostfile: for ssh, such as ["node1:8", "node2"]. launch_args: more arguments for ssh,
    mpiexec, sbatch or qsub. engine_args: for pxengine, such as "--restart=on-failure".
    controller_ip, controller_location, controller_args: for pxcontroller. Of arguments one may be
    given as it is, or any number in a list. shutdown_atexit: whether the cluster stops when this
    object goes, or this process ends, however it does.

    As a context manager it starts, gives a Client, and stops. Methods that take time are coroutines;
    each has a form that waits, with _sync appended to its name. They raise RuntimeError with the
    sentence that pxcluster said. config, parent, log, log_level, load_profile, delay and
    send_engines_connection_env are taken because ipyparallel's Cluster takes them. What the profile's
    ipcluster_config.py sets holds where no argument says otherwise.
    """

    def __init__(
        self, *, n=None, profile="", profile_dir="", cluster_id=None, cluster_file=None,
        engines=None, controller=None, engine_launcher_class=None,
        controller_launcher_class=None, engine_timeout=60, controller_ip="",
        controller_location="", controller_args=(), shutdown_atexit=True, delay=0.0,
        config=None, parent=None, log=None, log_level=20, load_profile=True, hosts=(),
        hostfile=None, launch_args=(), engine_args=(), at_least=None,
        send_engines_connection_env=True, **unknown,
    ):
        from .tunnel import profile_directory

        _pass_over(unknown, config)
        for name, value, other in (
            ("engines", engines, engine_launcher_class),
            ("controller", controller, controller_launcher_class),
        ):
            if value is not None and other is not None:
                raise TypeError("Cluster(%s=…) names the launcher already" % name)

        self.n = n
        self.profile = profile
        self.profile_dir = os.path.abspath(profile_directory(profile, profile_dir, None))
        self.cluster_id = _random_id() if cluster_id is None else cluster_id
        self.cluster_file = cluster_file or os.path.join(
            self.profile_dir, "security", "cluster-%s.json" % self.cluster_id
        )
        self.engine_launcher_class = engine_launcher_class or engines
        self.controller_launcher_class = controller_launcher_class or controller
        self.engine_timeout = engine_timeout
        self.controller_ip = controller_ip
        self.controller_location = controller_location
        self.controller_args = _words(controller_args)
        self.hosts = _words(hosts)
        self.hostfile = hostfile
        self.launch_args = _words(launch_args)
        self.engine_args = _words(engine_args)
        self.at_least = at_least
        self.shutdown_atexit = shutdown_atexit
        self.delay, self.config, self.parent, self.log = delay, config, parent, log
        self.log_level, self.load_profile = log_level, load_profile
        self.send_engines_connection_env = send_engines_connection_env
        self._adapt = []  # options, once adapt() was called
        self._names = {}  # what callers call an engine set: what pxcluster calls it
        self._finalizer = None
        self._context_client = None

    # ---- what runs

    def to_dict(self):
        """What the cluster's file says; of a cluster that does not run, how it would be started."""
        try:
            with open(self.cluster_file) as file:
                return json.load(file)
        except (OSError, ValueError):
            described = {
                name: getattr(self, name) for name in (
                    "cluster_id", "controller_args", "controller_ip", "controller_location",
                    "delay", "n", "profile_dir",
                )
            }
            return {"cluster": described, "engines": {"sets": {}}}

    @classmethod
    def from_dict(cls, d, **kwargs):
        """The cluster that to_dict() described."""
        kwargs.setdefault("shutdown_atexit", False)
        for name in ("cluster_id", "controller_args", "controller_ip", "controller_location", "n",
                     "profile_dir"):
            if name in d["cluster"]:
                kwargs[name] = d["cluster"][name]
        return cls(**kwargs)

    @classmethod
    def from_file(
        cls, cluster_file=None, *, profile=None, profile_dir=None, cluster_id="", **kwargs
    ):
        """A cluster that somebody started, found by the path of its file, or by its name; without
        either that of `pxcluster start`. FileNotFoundError when it does not run. It is not stopped
        with this process."""
        if cluster_file is None:
            cluster_file = cls(
                profile=profile or "", profile_dir=profile_dir or "", cluster_id=cluster_id
            ).cluster_file
        with open(cluster_file) as file:
            return cls.from_dict(json.load(file), cluster_file=cluster_file, **kwargs)

    @property
    def controller(self):
        """The Controller that runs, or None."""
        described = (self.to_dict().get("controller") or {}).get("state")
        return Controller(described) if described else None

    @property
    def engines(self):
        """The EngineSets by their ids."""
        names = {actual: name for name, actual in self._names.items()}
        sets = (self.to_dict().get("engines") or {}).get("sets") or {}
        return {names.get(i, i): EngineSet(names.get(i, i), sets[i]) for i in sorted(sets)}

    @property
    def engine_set(self):
        """The first EngineSet, or None: most clusters have one."""
        return next(iter(self.engines.values()), None)

    def _is_running(self):
        return self.controller is not None

    def __repr__(self):
        name, directory = os.path.split(self.profile_dir)[1], self.profile_dir
        profile = name.startswith("profile_") and name[len("profile_"):]
        parts = ["cluster_id=%r" % self.cluster_id]
        parts.append("profile=%r" % profile if profile else "profile_dir=%r" % directory)
        if self.controller:
            parts.append("controller=<%s>" % self.controller.state)
        if self.engines:
            parts.append("engine_sets=%r" % list(self.engines))
        return "<%s(%s)>" % (type(self).__name__, ", ".join(parts))

    # ---- starting

    def _command(self, name):
        program = find_pxcluster()
        if program is None:
            raise RuntimeError("pxcluster, which starts and stops clusters, is not on the PATH")
        return program, name, "--profile-dir", self.profile_dir, "--cluster-id", self.cluster_id

    def _start(self, name, *options):
        command = self._command(name)
        starter = run_with_parent if self.shutdown_atexit else run
        status, output = starter(*command, "--daemonize", *options)
        if status != 0:
            raise RuntimeError(output.splitlines()[-1] if output else "exit status %d" % status)
        if self.shutdown_atexit and self._finalizer is None:
            self._finalizer = weakref.finalize(
                self, _stop_at_exit, os.getpid(), *self._command("stop")
            )

    def _engine_options(self, n, adapt=()):
        n = self.n if n is None else n
        options = ["--timeout", str(self.engine_timeout), *adapt]
        if n is not None:
            options += ["-n", str(n)]
        if self.engine_launcher_class:
            options += ["--engines", _launcher(self.engine_launcher_class)]
        if self.hosts:
            options.append("--host=" + ",".join(self.hosts))
        if self.hostfile is not None:
            options.append("--hostfile=%s" % os.fspath(self.hostfile))
        if self.at_least is not None:
            options.append("--at-least=%d" % self.at_least)
        own = getattr(self.engine_launcher_class, "engine_args", None)
        words = [*(own if isinstance(own, list) else ()), *self.engine_args]
        options += ["--engine-arg=%s" % word for word in words]
        return options + ["--launch-arg=%s" % os.fspath(word) for word in self.launch_args]

    def _controller_options(self):
        given = {
            "--ip": self.controller_ip, "--location": self.controller_location,
            "--controller": _launcher(self.controller_launcher_class),
        }
        options = [word for pair in given.items() if pair[1] for word in pair]
        own = getattr(self.controller_launcher_class, "controller_args", None)
        return [*options, "--", *(own if isinstance(own, list) else ()), *self.controller_args]

    def start_controller_sync(self):
        """Starts the controller, without engines. RuntimeError when it runs."""
        self._start("start", "-n", "0", *self._controller_options())

    def start_engines_sync(self, n=None, engine_set_id=None):
        """Starts `n` more engines, a new set: its id. Returns when they are registered."""
        before = set(self.engines)
        self._start("engines", *self._engine_options(n))
        started, = set(self.engines) - before
        if engine_set_id is None:
            return started
        self._names[engine_set_id] = started
        return engine_set_id

    def adapt(self, minimum=0, maximum=None, idle=60):
        """Has engines started while load-balanced tasks wait, `maximum` at most (None: one a
        processor), and ended after `idle` seconds without work, but for `minimum`. Where the cluster
        runs, besides the engines that it has; else it will be started so. RuntimeError the second
        time, and where engines are neither local nor in a queue. Returns the cluster."""
        if self._adapt:
            raise RuntimeError("the cluster adapts already, with " + " ".join(self._adapt))
        maximum = len(os.sched_getaffinity(0)) if maximum is None else maximum
        self._adapt = ["--adapt=%d:%d" % (minimum, maximum), "--adapt-idle=%d" % idle]
        if self._is_running():
            self._start("engines", *self._engine_options(None, self._adapt))
        return self

    def start_cluster_sync(self, n=None):
        """Starts the controller, unless it runs, and `n` engines; returns the cluster when they are
        registered."""
        if self._is_running():
            self.start_engines_sync(n)
        else:
            options = self._engine_options(n, self._adapt)
            self._start("start", *options, *self._controller_options())
        return self

    def connect_client_sync(self, **client_kwargs) -> "Client":
        """A Client of the cluster."""
        from .client import Client

        return Client(
            cluster=self, profile_dir=self.profile_dir, cluster_id=self.cluster_id, **client_kwargs
        )

    def start_and_connect_sync(self, n=None, activate=False) -> "Client":
        """start_cluster() and connect_client(): a Client that sees all engines. activate: whether
        %px is to run on them."""
        self.start_cluster_sync(n)
        client = self.connect_client_sync()
        client.wait_for_engines(
            sum(engines.n for engines in self.engines.values()), timeout=self.engine_timeout
        )
        if activate:
            client.activate()
        return client

    # ---- stopping and signals

    def stop_cluster_sync(self):
        """Stops the controller and all engines; nothing when they do not run."""
        status, output = run(*self._command("stop"))
        if status not in (0, NOT_RUNNING):
            raise RuntimeError(output)
        self._names.clear()
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None

    def stop_controller_sync(self):
        """stop_cluster(): engines end with their controller."""
        self.stop_cluster_sync()

    def _sets(self, engine_set_id):
        sets = self.engines
        if engine_set_id is None:
            return list(sets.values())
        if engine_set_id not in sets:
            raise KeyError("no engine set %r; there are %s" % (engine_set_id, list(sets)))
        return [sets[engine_set_id]]

    def signal_engines_sync(self, signum, engine_set_id=None):
        """Sends a signal to a set of engines, or to all."""
        for engines in self._sets(engine_set_id):
            pids = engines.pids
            if not pids:
                self._signal_far(signum, engines)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)

    def _signal_far(self, signum, engines):
        """Signals a set whose processes are not this machine's through the controller, which knows
        engines and not sets: it has to be the only one."""
        if len(self.engines) > 1:
            raise RuntimeError(
                "the engines of set %s are not processes of this machine: client.send_signal() "
                "reaches them" % engines.engine_set_id
            )
        with self.connect_client_sync() as client:
            if client.ids:
                client.send_signal(signum, block=True)

    def stop_engines_sync(self, engine_set_id=None):
        """Stops a set of engines, or all."""
        chosen = [engines.engine_set_id for engines in self._sets(engine_set_id)]
        for signum in (signal.SIGTERM, signal.SIGKILL):
            for name in set(chosen) & set(self.engines):
                self.signal_engines_sync(signum, name)
            if wait_until(lambda: not set(chosen) & set(self.engines), STOP_SECONDS):
                break
        for name in chosen:
            self._names.pop(name, None)

    def restart_engines_sync(self, engine_set_id=None):
        """Stops a set of engines, or each of them, and starts as many anew under its id. Those that
        had died are not among them, but where it is the only set, or none is left, there are as
        many as the cluster began with."""
        for engines in self._sets(engine_set_id):
            n = engines.n if len(self.engines) > 1 else max(engines.n, self._first_count() or 0)
            self.stop_engines_sync(engines.engine_set_id)
            self.start_engines_sync(n, engines.engine_set_id)
        if not self.engines and self._first_count():
            self.start_engines_sync(self._first_count())

    def _first_count(self):
        return self.to_dict()["cluster"].get("n") or self.n

    def signal_engine_sync(self, signum, engine_id):
        """Sends a signal to one engine, by its id as clients see it."""
        with self.connect_client_sync() as client:
            client.send_signal(signum, targets=engine_id, block=True)

    def stop_engine_sync(self, engine_id):
        """Stops one engine, by its id as clients see it."""
        with self.connect_client_sync() as client:
            client.shutdown(targets=engine_id, block=True)
            if not wait_until(lambda: engine_id not in client.ids, STOP_SECONDS):
                raise error.TimeoutError("engine %d has not ended" % engine_id)

    def restart_engine_sync(self, engine_id):
        """Stops one engine and starts another one, which is a set of its own."""
        self.stop_engine_sync(engine_id)
        self.start_engines_sync(1)

    start_controller = _awaitable(start_controller_sync)
    start_engines = _awaitable(start_engines_sync)
    start_cluster = _awaitable(start_cluster_sync)
    connect_client = _awaitable(connect_client_sync)
    start_and_connect = _awaitable(start_and_connect_sync)
    stop_cluster = _awaitable(stop_cluster_sync)
    stop_controller = _awaitable(stop_controller_sync)
    stop_engines = _awaitable(stop_engines_sync)
    stop_engine = _awaitable(stop_engine_sync)
    restart_engines = _awaitable(restart_engines_sync)
    restart_engine = _awaitable(restart_engine_sync)
    signal_engines = _awaitable(signal_engines_sync)
    signal_engine = _awaitable(signal_engine_sync)

    # ---- as a context

    def __enter__(self) -> "Client":
        self._context_client = self.start_and_connect_sync()
        return self._context_client

    def _close_context(self):
        client, self._context_client = self._context_client, None
        if client is not None:
            client.close()

    def __exit__(self, *exc):
        self._close_context()
        self.stop_cluster_sync()

    async def __aenter__(self):
        self._context_client = await self.start_and_connect()
        return self._context_client

    async def __aexit__(self, *exc):
        self._close_context()
        await self.stop_cluster()


def _random_id():
    return "%d-%s" % (time.time(), secrets.token_hex(2))


def _launcher(launcher):
    """The name of a launcher that is given by name, or as a class such as LocalEngineSetLauncher, or
    one made from that."""
    kinds = getattr(launcher, "__mro__", ())
    name = next((k.__name__ for k in kinds if k.__name__.endswith("Launcher")), launcher) or ""
    name = str(name).rpartition(".")[2]
    for end in ("Launcher", "EngineSet", "Controller"):
        name = name[: -len(end)] if name.endswith(end) else name
    return name.lower()
