# SPDX-License-Identifier: BSD-3-Clause
"""The cluster that %px uses when nobody named one.

That is the one of the newest open Client; else the one that the default connection file names;
else a local one, with an engine a core, which is started here and ends with this process.
"""

import atexit
import functools
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time

from . import _phalanx, error
from .client import Client, newest

CONNECT_SECONDS = 5  # a controller that is there answers in milliseconds
TRUST_SECONDS = 5  # one that has just answered is not asked again
ENGINE_SECONDS = 30


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


def _run(*args, pass_fds=()):
    """Runs pxcluster to its end. Its output goes through a file, because what it leaves in the
    background may hold a pipe open."""
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            args, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, check=False, pass_fds=pass_fds,
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


class DefaultCluster:
    """Finds, starts, keeps and ends the cluster."""

    def __init__(self):
        self._client = None
        self._stamp = None  # the connection file as it was when we connected
        self._answered = 0.0  # when the controller last did (monotonic)

    def view(self):
        """A blocking view of all engines there are."""
        view = self.client().direct_view("all")
        view.block = True
        return view

    def client(self):
        chosen = newest()
        if chosen is not None and chosen is not self._client:
            return chosen
        if self._client is not None and self._is_stale():
            self._client.close()
            self._client = None
        if self._client is None:
            self._client = self._connect()
            self._stamp = self._stamp_of(self._client)
            self._answered = time.monotonic()
        if not self._client.ids:
            self._await_engines(self._client, 1)
        return self._client

    @staticmethod
    def _stamp_of(client):
        try:
            status = os.stat(client._raw.file)
        except (OSError, _phalanx.ClosedError):
            return None
        return status.st_ino, status.st_mtime_ns

    def _is_stale(self):
        """A controller removes its file when it ends, and writes it anew when it starts; one that
        was killed does neither, but no longer answers."""
        if self._client._raw.closed or self._stamp_of(self._client) != self._stamp:
            return True
        if time.monotonic() - self._answered < TRUST_SECONDS:
            return False
        try:
            self._client._raw.query("connection_request", "{}", CONNECT_SECONDS)
        except (TimeoutError, _phalanx.ClosedError):
            return True
        self._answered = time.monotonic()
        return False

    def _connect(self):
        try:
            return Client(timeout=CONNECT_SECONDS)
        except (FileNotFoundError, TimeoutError):
            return self._start()

    def _start(self):
        program = find_pxcluster()
        if program is None:
            raise error.KernelError(
                "no cluster is running, and pxcluster, which would start one, is not on the PATH"
            )
        count = len(os.sched_getaffinity(0))
        cluster_id = "px-%d-%s" % (os.getpid(), secrets.token_hex(3))
        print(
            "No cluster is running: starting one of %d engine%s, which ends with this session."
            % (count, "" if count == 1 else "s")
        )
        sys.stdout.flush()
        alive = _end_of_this_process()
        try:
            status, output = _run(
                program, "start", "-n", str(count), "--daemonize", "--cluster-id", cluster_id,
                "--parent-fd", str(alive), pass_fds=[alive],
            )
        finally:
            os.close(alive)
        if status != 0:
            why = output.splitlines()[-1] if output else "exit status %d" % status
            raise error.KernelError("the cluster did not start: %s" % why)
        atexit.register(self._stop, program, cluster_id, os.getpid())
        client = Client(cluster_id=cluster_id, timeout=CONNECT_SECONDS)
        self._await_engines(client, count)
        return client

    @staticmethod
    def _await_engines(client, count):
        try:
            client.wait_for_engines(count, timeout=ENGINE_SECONDS)
        except error.TimeoutError:
            if not client.ids:
                raise error.NoEnginesRegistered() from None

    def _stop(self, program, cluster_id, pid):
        if os.getpid() != pid:
            return  # a forked child
        if self._client is not None:
            self._client.close()
        _run(program, "stop", "--cluster-id", cluster_id)


@functools.lru_cache(maxsize=None)
def default_cluster():
    """This process's DefaultCluster."""
    return DefaultCluster()
