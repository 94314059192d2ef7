# SPDX-License-Identifier: BSD-3-Clause
"""The cluster that %px uses when nobody named one.

That is the one of the newest open Client; else the one that the default connection file names;
else a local one, with an engine a core, which is started here and ends with this process.
"""

import atexit
import functools
import os
import re
import secrets
import sys
import time
import weakref

from . import _phalanx, error, tunnel
from .adapting import adapts
from .client import Client, newest
from .cluster import find_pxcluster, run, run_with_parent
from .deadlines import wait_until

CONNECT_SECONDS = 5  # a controller that is there answers in milliseconds
TRUST_SECONDS = 5  # one that has just answered is not asked again
ENGINE_SECONDS = 30
SOON_SECONDS = 2  # for engines of a cluster that has none: they may be about to register


def _where(file):
    """(profile directory, cluster id) of a client's connection file."""
    name = os.path.basename(file)
    match = re.fullmatch(r"ipcontroller-(?:(.*)-)?client\.json", name)
    return os.path.dirname(os.path.dirname(file)), (match[1] or "") if match else ""


class DefaultCluster:
    """Finds, starts, keeps and ends the cluster."""

    def __init__(self):
        self._client = None  # that we connected
        self._own = None  # (cluster id, options of --adapt) of the cluster that was started here
        self._news = False
        self._stamps = weakref.WeakKeyDictionary()  # client: its connection file as it was at first
        self._launched = weakref.WeakKeyDictionary()  # client: the file of its pxcluster, or None
        self._answered = weakref.WeakKeyDictionary()  # client: when it last did (monotonic)

    # ---- finding it

    def view(self):
        """A blocking view of all engines there are."""
        view = self.client().direct_view("all")
        view.block = True
        return view

    def client(self):
        """The cluster's client. Starts a cluster when there is none."""
        self._news = False  # if there were any, they were another cell's
        client = self.existing()
        if client is None:  # one without engines is false
            client = self._started(self._start(None))
        if not client.ids and not wait_until(lambda: client.ids, SOON_SECONDS):
            raise error.KernelError(
                "the cluster has no engines; '%%pxcluster engines +4' starts some%s"
                % (", and load-balanced tasks those that they need" if adapts(client) else "")
            )
        return client

    def existing(self):
        """The client of the cluster that runs, or None."""
        for client in dict.fromkeys((newest(), self._client)):
            if client is not None and not self._is_stale(client):
                return client
        if self._client is not None:
            self._client.close()
            self._client = None
        try:
            return self._started(Client(timeout=CONNECT_SECONDS))
        except (FileNotFoundError, TimeoutError):
            return None

    def _started(self, client):
        self._client = client
        self._stamps[client] = self._stamp_of(client)
        self._launched[client] = self._cluster_file(client)
        self._answered[client] = time.monotonic()
        return client

    @staticmethod
    def _cluster_file(client):
        """Which pxcluster, or ipcluster, keeps as long as the cluster runs that it has started."""
        directory, cluster_id = _where(client._raw.file)
        file = os.path.join(directory, "security", "cluster-%s.json" % cluster_id)
        return file if os.path.exists(file) else None

    def has_ended(self, client):
        """Whether what started the client's cluster has ended it."""
        file = self._launched.get(client)
        return file is not None and not os.path.exists(file)

    @staticmethod
    def _stamp_of(client):
        try:
            status = os.stat(client._raw.file)
        except (OSError, _phalanx.ClosedError):
            return None
        return status.st_ino, status.st_mtime_ns

    def _is_stale(self, client):
        """A controller removes its file when it ends, and writes it anew when it starts; one that
        was killed does neither, but no longer answers."""
        if client._raw.closed or self.has_ended(client):
            return True
        stamp = self._stamp_of(client)
        if stamp is None or self._stamps.setdefault(client, stamp) != stamp:
            return True
        if time.monotonic() - self._answered.get(client, -TRUST_SECONDS) < TRUST_SECONDS:
            return False
        try:
            client._raw.query("connection_request", "{}", CONNECT_SECONDS)
        except (TimeoutError, _phalanx.ClosedError):
            return True
        self._answered[client] = time.monotonic()
        return False

    def take_news(self):
        """Whether a cluster was started since this was asked last."""
        news, self._news = self._news, False
        return news

    # ---- starting and ending it

    @staticmethod
    def _program():
        program = find_pxcluster()
        if program is None:
            raise error.KernelError(
                "no cluster is running, and pxcluster, which would start one, is not on the PATH"
            )
        return program

    def start(self, count=None, adapt=()):
        """Starts a cluster, which ends with this process: of `count` engines, or with the options
        --adapt=MIN:MAX, --adapt-idle=S of pxcluster. KernelError when one is running."""
        client = self.existing()
        if client is not None:
            raise error.KernelError(
                "a cluster of %d engine%s is running; '%%pxcluster restart' or '%%pxcluster engines"
                " +N' change it" % (len(client), "" if len(client) == 1 else "s")
            )
        return self._started(self._start(count, "Starting a cluster", adapt))

    def _start(self, count, what="No cluster is running: starting one", adapt=()):
        program = self._program()
        options = [*adapt, *(["-n", str(count)] if count else [])]
        if not options:
            count = len(os.sched_getaffinity(0))
            options = ["-n", str(count)]
        size = "of %d engine%s" % (count, "" if count == 1 else "s") if count else "that adapts"
        cluster_id = "px-%d-%s" % (os.getpid(), secrets.token_hex(3))
        print("%s %s, which ends with this session." % (what, size))
        sys.stdout.flush()
        self._news = True
        self._run_with_parent(
            "the cluster did not start", program, "start", *options, "--daemonize",
            "--engines", "local", "--cluster-id", cluster_id,
        )
        self._own = cluster_id, list(adapt)
        tunnel.started = cluster_id  # that Client() connects to
        atexit.register(self._stop_own, program, cluster_id, os.getpid())
        client = Client(cluster_id=cluster_id, timeout=CONNECT_SECONDS)
        if count:
            self._await_engines(client, count)
        return client

    @staticmethod
    def _run_with_parent(what, *args):
        """Runs pxcluster; what it leaves in the background ends with this process."""
        status, output = run_with_parent(*args)
        if status != 0:
            why = output.splitlines()[-1] if output else "exit status %d" % status
            raise error.KernelError("%s: %s" % (what, why))

    @staticmethod
    def _await_engines(client, count):
        try:
            client.wait_for_engines(count, timeout=ENGINE_SECONDS)
        except error.TimeoutError:
            if not client.ids:
                raise error.NoEnginesRegistered() from None

    def stop(self):
        """Ends the cluster that runs. How many engines it had, or None when none runs."""
        client = self.existing()
        if client is None:
            return None
        count = len(client)
        directory, cluster_id = _where(client._raw.file)
        status, _ = run(
            self._program(), "stop", "--profile-dir", directory, "--cluster-id", cluster_id
        )
        if status != 0 and not self._is_stale(client):  # its controller was started by other means
            client.shutdown(hub=True)
        client.close()
        if client is self._client:
            self._client = None
        return count

    def add(self, count):
        """Starts more engines of the cluster that runs; waits until they are registered."""
        client = self.existing()
        before = set(client.ids)
        directory, cluster_id = _where(client._raw.file)
        args = (
            self._program(), "engines", "-n", str(count), "--daemonize",
            "--profile-dir", directory, "--cluster-id", cluster_id,
        )
        if self._own and self._own[0] == cluster_id:
            self._run_with_parent("the engines did not start", *args)
        else:
            status, output = run(*args)
            if status != 0:
                raise error.KernelError("the engines did not start: %s" % output)
        wait_until(lambda: len(set(client.ids) - before) >= count, ENGINE_SECONDS)
        return sorted(set(client.ids) - before)

    def own_adapt(self):
        """The options of --adapt with which the cluster was started, if it was, and here."""
        client = self.existing()
        return self._own[1] if client is not None and self.is_own(client) else []

    def is_own(self, client):
        """Whether the cluster was started here."""
        return bool(self._own) and self._own[0] == _where(client._raw.file)[1]

    def _stop_own(self, program, cluster_id, pid):
        if os.getpid() != pid:
            return  # a forked child
        if self._client is not None:
            self._client._end()
        run(program, "stop", "--cluster-id", cluster_id)


@functools.lru_cache(maxsize=None)
def default_cluster():
    """This process's DefaultCluster."""
    return DefaultCluster()
