# SPDX-License-Identifier: BSD-3-Clause
"""Reaching a controller through ssh: the system's own, with the user's configuration and agent.

One ssh forwards a local port for each of the controller's ports; a connection file of our own names
the local ones. The tunnel ends with its client, and with this process however that ends, because
ssh's standard input is a pipe from here that `cat` at the other end reads.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import tempfile
import threading
import time

from . import error

PORTS = ("registration", "control", "mux", "task", "iopub", "notification", "broadcast")
EVERYWHERE = ("0.0.0.0", "*", "[::]")
LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]", *EVERYWHERE)
WHERE = "profile", "profile_dir", "ipython_dir"  # by which a cluster's id is said, as Client() knows them
CONNECT_SECONDS = 30
HINT = "is a cluster running? (pxcluster start)"  # the C library's, which sees most files

started = None  # the id of a cluster that ends with this process


def profile_directory(profile, profile_dir, ipython_dir):
    """Where a profile's files are; empty values: the default."""
    if profile_dir or (os.environ.get("IPP_PROFILE_DIR") and not profile):
        return profile_dir or os.environ["IPP_PROFILE_DIR"]
    base = ipython_dir or os.environ.get("IPYTHONDIR") or os.path.expanduser("~/.ipython")
    return os.path.join(base, "profile_%s" % (profile or "default"))


def _security_file(name, where):
    cluster_id = where[3] if where[3] is not None else os.environ.get("IPP_CLUSTER_ID", "")
    return os.path.join(profile_directory(*where[:3]), "security", name(cluster_id or ""))


def connection_file(*where):
    """The client's connection file of (profile, profile_dir, ipython_dir, cluster_id)."""
    return _security_file(lambda i: "ipcontroller%s-client.json" % (i and "-" + i), where)


def cluster_file(*where):
    """The cluster's file of (profile, profile_dir, ipython_dir, cluster_id)."""
    return _security_file(lambda i: "cluster-%s.json" % i, where)


def session_cluster():
    """The id of the cluster that %px has started for this process, while it is there; else None."""
    where = None, None, None, started
    there = started and all(map(os.path.exists, (cluster_file(*where), connection_file(*where))))
    return started if there else None


def absent(e, where):
    """FileNotFoundError for a connection file that `e` has not found, with what else there is. where:
    None: the file itself was named."""
    said = str(e) if HINT in str(e) else "%s; %s" % (e, HINT)
    with contextlib.suppress(OSError):
        directory = os.path.dirname(cluster_file(*where)) if where else os.devnull
        names = (re.fullmatch("cluster-(.*)[.]json", name) for name in os.listdir(directory))
        given = "".join("%s=%r, " % it for it in zip(WHERE, where or ()) if it[1])
        ids = (name[1] for name in names if name and os.path.exists(connection_file(*where[:3], name[1])))
        others = ["Client(%scluster_id=%r)" % (given, i) for i in ids]
        said += "".join("; another one: " + other for other in sorted(others))
    return FileNotFoundError(said)


def write_connection(info):
    """A temporary file, 0600, that holds a connection's description. It goes with the object."""
    file = tempfile.NamedTemporaryFile("w", prefix="phalanx-", suffix="-client.json")
    json.dump(info, file)
    file.flush()
    return file


def read_connection(file, where=()):
    """What a connection file says."""
    with open(file or connection_file(*where)) as opened:
        return json.load(opened)


def needs_tunnel(file, where):
    """Whether the connection file asks for ssh: it names a server, and its controller listens on
    another machine's loopback. What is wrong with the file others say."""
    try:
        info = read_connection(file, where)
        address = info["interface"].partition("://")[2]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False
    if not isinstance(info, dict) or not info.get("ssh"):
        return False
    here = {socket.gethostname(), socket.gethostname().partition(".")[0], *LOCAL}
    return address not in LOCAL or info.get("location") not in here


def _free_ports(count):
    """Ports that nobody listens on now."""
    held = []
    try:
        for _ in range(count):
            held.append(socket.socket())
            held[-1].bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in held]
    finally:
        for s in held:
            s.close()


@contextlib.contextmanager
def _answering(password):
    """The environment in which ssh gets its password: a program that it asks has it from there. None
    without a password."""
    if not password:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="phalanx-") as directory:
        program = os.path.join(directory, "password")
        with open(program, "w") as file:
            file.write("#!/bin/sh\nprintf '%s\\n' \"$PX_SSH_PASSWORD\"\n")
        os.chmod(program, 0o700)
        yield {
            "DISPLAY": ":0", **os.environ, "SSH_ASKPASS": program, "SSH_ASKPASS_REQUIRE": "force",
            "PX_SSH_PASSWORD": password,
        }


class Tunnel:
    """A running ssh. file: the connection file to use instead.

    FileNotFoundError without the connection file; error.KernelError with ssh's own words when it
    cannot connect, and without ssh; TimeoutError.
    """

    def __init__(self, file, where, server=None, key=None, timeout=None, password=None):
        info = read_connection(file, where)
        server = server or info.get("ssh") or "localhost"
        address = info["interface"].partition("://")[2]
        if address in EVERYWHERE:
            address = "127.0.0.1"  # as seen from the server
        ports = {p: info[p][0] if isinstance(info[p], list) else info[p] for p in PORTS if p in info}
        local = dict(zip(ports, _free_ports(len(ports))))
        self._log = tempfile.TemporaryFile()
        command = self._command(server, key, address, ports, local, password)
        with _answering(password) as env:
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
                    start_new_session=True, env=env,
                )
            except FileNotFoundError:
                raise error.KernelError(
                    "ssh is not installed: %s is reached through it" % server
                ) from None
            self._await(server, CONNECT_SECONDS if timeout is None else timeout)
        info.update(local, interface="tcp://127.0.0.1", location="", ssh="")
        self._file = write_connection(info)
        self.file = self._file.name

    @staticmethod
    def _command(server, key, address, ports, local, password):
        asks = "NumberOfPasswordPrompts=1" if password else "BatchMode=yes"
        command = ["ssh", "-T", "-o", asks, "-o", "ExitOnForwardFailure=yes"]
        host, colon, port = server.rpartition(":")
        if colon and port.isdigit():
            server, command = host, command + ["-p", port]
        if key:
            command += ["-i", os.fspath(key)]
        for name, remote in ports.items():
            command += ["-L", "127.0.0.1:%d:%s:%d" % (local[name], address, remote)]
        return command + ["--", server, "echo ready; exec cat > /dev/null"]

    def _await(self, server, timeout):
        """Waits for the word that comes once the forwards are there."""
        said = []
        reader = threading.Thread(
            target=lambda: said.append(self._process.stdout.readline()), daemon=True
        )
        reader.start()
        end = time.monotonic() + timeout
        reader.join(timeout)
        if said and said[0].strip() == b"ready":
            return
        late = time.monotonic() >= end
        self.close()
        if late:
            raise error.TimeoutError("ssh to %s has not connected in %g seconds" % (server, timeout))
        self._log.seek(0)
        why = self._log.read().decode(errors="replace").strip().splitlines()
        raise error.KernelError(
            "ssh to %s failed: %s. Try `ssh %s` in a terminal; it must connect without a question, "
            "or with one that `password` answers"
            % (server, why[-1] if why else "it said nothing", server)
        )

    def close(self):
        """Ends ssh."""
        self._process.stdin.close()
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()
