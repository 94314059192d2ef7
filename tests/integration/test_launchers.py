# SPDX-License-Identifier: BSD-3-Clause
"""Engines through ssh and mpiexec: the real ones, on this host, with throwaway settings."""
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest
from conftest import (BIN, PYTHON, PYTHONPATH, STOCK_ENGINE, Cluster, alive, processes_with,
                      wait_for)

pytestmark = pytest.mark.usefixtures("no_leftovers")
ipp = pytest.importorskip("ipyparallel")

# What a shell would take apart, in an argument of the engines.
NASTY = """it's "a" $HOME `id` \\ ; | * #"""
CODE = f"--engine-arg=--code=said = {NASTY!r}"


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def accepts(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def end(process):
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def failure(run, ipython_dir, *options):
    """The one line that a start says which fails, and leaves nothing."""
    done = run("pxcluster", "start", "--daemonize", *options, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("pxcluster: ") and done.stderr.count("\n") == 1, done.stderr
    assert not list(ipython_dir.glob("profile_*/security/*.json"))
    return done.stderr


def listed(run):
    return [line.split()[2:] for line in run("pxcluster", "list").stdout.splitlines()[1:]]


def ipcluster(env, *args):
    return subprocess.run([PYTHON, "-m", "ipyparallel.cluster", *args], env=env, check=True, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=60).stdout


# ---- ssh: a daemon of this user's, on loopback ----


class Sshd:
    """Hosts node1 and node2 of an ssh configuration, whose sessions have `env` and nothing else."""

    def __init__(self, directory):
        self.directory = directory
        self.port, self.poor_port = free_port(), free_port()
        self.ipython_dir = directory / "there"
        self.ipython_dir.mkdir()
        for name in ("host", "user", "stranger"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name],
                           check=True)
        shutil.copy(directory / "user.pub", directory / "authorized")
        there = {"IPYTHONDIR": self.ipython_dir, "HOME": directory, "PATH": "/usr/bin:/bin",
                 "PYTHONPATH": PYTHONPATH}
        if "PX_ASAN_OPTIONS" in os.environ:
            there.update({name: os.environ.get(name, "") for name in (
                "LSAN_OPTIONS", "UBSAN_OPTIONS", "PYTHONMALLOC")},
                ASAN_OPTIONS=os.environ["PX_ASAN_OPTIONS"])
        self.write("sshd_config", f"""
            ListenAddress 127.0.0.1
            MaxStartups 9
            Port {self.port}
            Port {self.poor_port}
            HostKey {directory}/host
            AuthorizedKeysFile {directory}/authorized
            PidFile none
            UsePAM no
            StrictModes no
            PermitRootLogin prohibit-password
            PasswordAuthentication no
            KbdInteractiveAuthentication no
            Subsystem sftp internal-sftp
            SetEnv {' '.join(f'{k}={v}' for k, v in there.items())}
            Match LocalPort {self.poor_port}
            AllowStreamLocalForwarding no""")
        self.config = self.write_config("config", "user")
        self.process = subprocess.Popen(
            [shutil.which("sshd", path="/usr/sbin:/usr/local/sbin"), "-D", "-e", "-f",
             directory / "sshd_config"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=open(directory / "log", "w"))
        wait_for(lambda: accepts(self.port) or self.process.poll() is not None, what="sshd")

    def write(self, name, text):
        path = self.directory / name
        path.write_text(re.sub(r"(?m)^ +", "", text) + "\n")
        return path

    def write_config(self, name, key, port=None):
        return self.write(name, f"""
            Host node*
            HostName 127.0.0.1
            Port {port or self.port}
            IdentityFile {self.directory}/{key}
            IdentitiesOnly yes
            StrictHostKeyChecking no
            UserKnownHostsFile /dev/null
            LogLevel ERROR""")

    def options(self, hosts, config=None):
        return ["--engines=ssh", f"--host={hosts}", "--launch-arg=-F",
                f"--launch-arg={config or self.config}"]

    def left(self):
        return processes_with(f"IPYTHONDIR={self.ipython_dir}")


@pytest.fixture(scope="module")
def sshd_daemon(tmp_path_factory):
    if not shutil.which("sshd", path="/usr/sbin:/usr/local/sbin") or not shutil.which("ssh"):
        pytest.skip("needs ssh and sshd")
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)  # as Debian does at boot
    sshd = Sshd(tmp_path_factory.mktemp("ssh"))
    if sshd.process.poll() is not None:
        pytest.fail((sshd.directory / "log").read_text())
    yield sshd
    end(sshd.process)


@pytest.fixture
def sshd(sshd_daemon):
    """Fails a test that leaves processes behind on the other side."""
    yield sshd_daemon
    with contextlib.suppress(BaseException):
        wait_for(lambda: not sshd_daemon.left(), 10)
    left = sshd_daemon.left()
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    assert not left, f"left running over there: {left}"


def sockets_of(ipython_dir):
    """The sockets that the running ssh makes on the other side."""
    paths = []
    for pid in processes_with(f"IPYTHONDIR={ipython_dir}"):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            paths += [word[2:].split(":127")[0].replace("\\", "") for word in words
                      if word.startswith("-R/tmp/px-")]
    return paths


def test_ssh(sshd, cluster, run, env, ipython_dir):
    """Two hosts; no port is open to others, no key is on a command line or over there."""
    where = cluster(3, *sshd.options("node1:2,node2"), CODE)
    with ipp.Client(str(where.client_file)) as rc:
        assert rc.ids == [0, 1, 2]
        assert sorted(rc[:].apply_sync(os.getpid)) == sorted(where.engine_pids)
        assert rc[:].pull("said", block=True) == [NASTY] * 3
        assert rc[:].apply_sync(os.getenv, "IPP_CONNECTION_INFO") == [None] * 3
    assert {key: engine["hostname"] for s in where.state()["engines"]["sets"].values()
            for key, engine in s["engines"].items()} == {
        "node1/0": "node1", "node1/1": "node1", "node2/0": "node2"}
    sockets = sockets_of(ipython_dir)
    assert len(sockets) > 10
    assert {stat.S_IMODE(os.stat(path).st_mode) for path in sockets} == {0o600}
    key = json.loads(where.engine_file.read_text())["key"]
    assert not any(key in command for command in {**sshd.left(),
                                                  **processes_with(f"IPYTHONDIR={ipython_dir}")}.values())
    assert not any(sshd.ipython_dir.rglob("*.json"))
    assert listed(run) == [["True", "3", "SSH"]]
    assert "engines     3" in run("pxcluster", "status").stdout
    run("pxcluster", "engines", "--daemonize", *sshd.options("node2")[1:])
    assert listed(run) == [["True", "4", "SSH"]]
    assert "4 engines" in run("pxcluster", "stop").stderr
    assert not any(os.path.exists(path) for path in sockets)
    assert not sshd.left()


@pytest.fixture
def through_ssh(sshd, env, tmp_path):
    """An environment whose ssh knows the hosts."""
    script = tmp_path / "bin" / "ssh"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\nexec {shutil.which('ssh')} -F {sshd.config} \"$@\"\n")
    script.chmod(0o755)
    return dict(env, PATH=f"{script.parent}:{env['PATH']}")


def ssh_of(pid):
    """The pid of a process's ssh, and the directory of its tunnel; or None."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            found = re.search(r"-L\0?(/tmp/px-\w+)/", Path(f"/proc/{child}/cmdline").read_text())
            if found:
                return int(child), Path(found[1])


def test_engines_through_ssh(through_ssh, cluster, px_bin):
    """One tunnel for a process's engines, theirs alone; when it breaks, another; none is left."""
    where = cluster(1)
    engines = subprocess.Popen([px_bin / "pxengine", "-n", "2", "--ssh=node1"], env=through_ssh,
                               stdin=subprocess.DEVNULL)
    try:
        with ipp.Client(str(where.client_file)) as rc:
            wait_for(lambda: len(rc.ids) == 3, 60, "engines")
            view = rc[1:]
            assert view.apply_sync(len, b"x" * 1_000_000) == [1_000_000] * 2
            assert rc.broadcast_view([1, 2]).apply_sync(abs, -1) == [1, 1]
            pid, directory = ssh_of(engines.pid)
            assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: (ssh_of(engines.pid) or [pid])[0] != pid, 30, "another ssh")
            assert view.apply_async(abs, -2).get(60) == [2, 2]
        engines.terminate()
        assert engines.wait(30) == 0
        assert not directory.exists()
    finally:
        end(engines)


def test_no_way_through_ssh(through_ssh, cluster, px_bin):
    cluster(1)
    done = subprocess.run([px_bin / "pxengine", "--ssh=nowhere.invalid"], env=through_ssh,
                          stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert re.fullmatch(r"pxengine: ssh to nowhere.invalid failed: .*resolve.*\n", done.stderr)


@pytest.mark.stock
def test_ssh_from_python(sshd, env):
    phalanx = pytest.importorskip("phalanx")
    with phalanx.Cluster(engines="ssh", hosts=["node1:1", "node2:1"], at_least=1,
                         launch_args=["-F", sshd.config]) as rc:
        assert rc[:].apply_sync(abs, -1) == [1, 1]
        # Their pids are other hosts': the controller tells them.
        assert [engines.pids for engines in rc.cluster.engines.values()] == [[]]
        running = rc[:].apply_async(time.sleep, 60)
        wait_for(lambda: rc.cluster.signal_engines_sync(signal.SIGINT) or running.wait(0.1),
                 what="interrupts")
        assert {e[0] for e in running.exception().elist} == {"KeyboardInterrupt"}


@pytest.mark.stock
def test_ipcluster_sees_ssh_engines_as_we_do(sshd, cluster, env):
    where = cluster(1, *sshd.options("node1"))
    before = where.cluster_file.read_bytes()
    assert json.loads(ipcluster(env, "list", "-o", "json")) == [json.loads(before)]
    assert where.cluster_file.read_bytes() == before


def test_ssh_without_tunnels_ends_with_its_supervisor(sshd, cluster, ipython_dir, tmp_path, run):
    """With --ip engines connect by themselves. kill -9 of pxcluster ends those over there, too."""
    hosts = tmp_path / "hosts"
    hosts.write_text("# two\nnode1 slots=1\nnode2:1  # the second\n")
    where = cluster(2, "--engines=ssh", f"--hostfile={hosts}", *sshd.options("")[2:], "--ip=*")
    assert sockets_of(ipython_dir) == []
    pids = where.engine_pids
    supervisor = int(Path(f"/proc/{where.controller_pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(supervisor, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids)), what="the engines' end")
    wait_for(lambda: listed(run) == [["False", "0", "SSH"]], what="a list without engines")


def test_engine_over_there_dies(sshd, cluster, run):
    where = cluster(2, *sshd.options("node1:2"))
    os.kill(where.engine_pids[0], signal.SIGKILL)
    wait_for(lambda: re.search(r"pxcluster: node1: engine process \d+ ended: .*SIGKILL", where.logs()))
    wait_for(lambda: listed(run) == [["True", "1", "SSH"]], what="one engine less")


@pytest.mark.parametrize("case", ["refused", "unknown", "key", "program", "tunnel"])
def test_ssh_that_fails(sshd, run, ipython_dir, case):
    stranger = sshd.write_config("stranger_config", "stranger")
    closed = sshd.write_config("closed_config", "user", free_port())
    poor = sshd.write_config("poor_config", "user", sshd.poor_port)
    options, words = {
        "refused": (sshd.options("node1", closed), "node1: connect to host 127.0.0.1 port"),
        "unknown": (sshd.options("node1,no..such"), "no..such: Could not resolve hostname"),
        "key": (sshd.options("node1", stranger), "node1: .*Permission denied"),
        "program": ([*sshd.options("node1"), "--engine-cmd=/no/such/engine"], "node1: .*not found"),
        "tunnel": (sshd.options("node1", poor), "node1: .*remote port forwarding failed"),
    }[case]
    assert re.search(words, failure(run, ipython_dir, *options))


def test_at_least_so_many(sshd, cluster, run):
    where = cluster(2, *sshd.options("node1,no..such"), "--at-least=1")
    assert len(where.engine_pids) == 1
    assert "1 of 2 engines ready" in where.logs()


def test_more_hosts_than_sshd_lets_in_at_once(sshd, cluster, run):
    """It refuses some from the tenth connection that has not authenticated on."""
    where = cluster(14, *sshd.options(",".join(f"node{i}" for i in range(14))),
                    "--engine-arg=--language=echo")
    assert len(where.engine_pids) == 14


@pytest.mark.stock
def test_stock_engines_through_ssh(sshd, cluster, run):
    where = cluster(2, *sshd.options("node1:2"), f"--engine-cmd={STOCK_ENGINE}")
    with ipp.Client(str(where.client_file)) as rc:
        assert rc[:].apply_sync(int, "7") == [7, 7]
    run("pxcluster", "stop")  # the fixture waits for their nannies


@pytest.mark.stock
def test_we_list_and_stop_what_ipcluster_started_through_ssh(sshd, run, env, ipython_dir, tmp_path):
    profile = ipython_dir / "profile_default"
    profile.mkdir()
    (profile / "ipcluster_config.py").write_text(f"""
c.SSHLauncher.ssh_args = ['-F', '{sshd.config}']
c.SSHLauncher.scp_args = ['-F', '{sshd.config}']
c.SSHLauncher.remote_python = '{PYTHON}'
c.SSHLauncher.remote_profile_dir = '{sshd.ipython_dir}/profile_default'
c.SSHEngineSetLauncher.engines = {{'node1': 1}}
""")
    ipcluster(env, "start", "-n", "1", "--engines=ssh", "--daemonize")
    where = Cluster(ipython_dir, "default", "")
    wait_for(lambda: where.engine_pids, 60, "the engine")
    assert listed(run) == [["True", "1", "SSH"]]
    pids = [where.controller_pid, *where.engine_pids]
    run("pxcluster", "stop")
    assert not any(map(alive, pids))


# ---- mpiexec ----


@pytest.fixture
def mpi(env):
    if not shutil.which("mpiexec"):
        pytest.skip("needs mpiexec")
    pytest.importorskip("mpi4py")
    env.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
               OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_MCA_btl_vader_single_copy_mechanism="none")
    return env


@pytest.mark.stock
def test_mpi(mpi, cluster, run, env):
    """One engine a rank; ipcluster finds the file as it would have written it."""
    where = cluster(2, "--engines=MPIEngineSetLauncher", CODE)
    with ipp.Client(str(where.client_file)) as rc:
        assert rc[:].pull(["mpi_rank", "mpi_size", "said"], block=True) == [[i, 2, NASTY] for i in (0, 1)]
        pids = rc[:].apply_sync(os.getpid)
    before = where.cluster_file.read_bytes()
    assert json.loads(ipcluster(env, "list", "-o", "json")) == [json.loads(before)]
    assert where.cluster_file.read_bytes() == before
    assert listed(run) == [["True", "2", "MPI"]]
    assert "2 engines" in run("pxcluster", "stop").stderr
    assert not any(map(alive, pids))


@pytest.mark.stock
def test_mpi_from_python(mpi, monkeypatch):
    for name in filter(lambda name: name.startswith("OMPI"), mpi):
        monkeypatch.setenv(name, mpi[name])
    phalanx = pytest.importorskip("phalanx")
    with phalanx.Cluster(n=2, engine_launcher_class="MPIEngineSetLauncher") as rc:
        cluster = rc.cluster
        first, = cluster.engines
        assert sorted(rc[:]["mpi_rank"]) == [0, 1]  # no interrupt cuts MPI's start in two
        running = rc[:].apply_async(time.sleep, 60)
        wait_for(lambda: cluster.signal_engines_sync(signal.SIGINT) or running.wait(0.1),
                 what="interrupts")
        assert {e[0] for e in running.exception().elist} == {"KeyboardInterrupt"}
        cluster.restart_engines_sync()
        rc.wait_for_engines(2, timeout=60)
        assert sorted(rc[:]["mpi_rank"]) == [0, 1] and list(cluster.engines) == [first]
        assert len(cluster.engines[first].pids) == 2


@pytest.mark.stock
def test_mpi_that_fails(mpi, run, ipython_dir):
    assert "cannot run no-such-mpi" in failure(run, ipython_dir, "-n2", "--engines=mpi",
                                               "--launch-cmd=no-such-mpi")
    del mpi["OMPI_MCA_rmaps_base_oversubscribe"]
    said = failure(run, ipython_dir, "-n1000", "--engines=mpi")
    assert "mpiexec: There are not enough slots" in said


# ---- one cluster, one kind ----


def test_other_engines_need_another_cluster(cluster, run):
    cluster(1)
    done = run("pxcluster", "engines", "-n1", "--engines=mpi", check=False)
    assert done.returncode == 2
    assert done.stderr == ("pxcluster engines: this cluster's engines are started by local; "
                           "--engines=mpi needs another cluster\n")


@pytest.mark.parametrize("options, words", [
    (["--engines=ssh"], "--engines=ssh needs --host or --hostfile"),
    (["--host=node1"], "--host is for --engines=ssh"),
    (["--array"], "--array is for --engines=slurm, pbs, sge or htcondor"),
    (["--queue=x", "--engines=htcondor"], "--queue is for --engines=slurm, pbs or sge, or a --template in any"),
    (["--launch-arg=-x"], "--launch-arg is for --engines=ssh, mpi, slurm, pbs, sge or htcondor"),
    (["--engines=ssh", "--host=-oProxyCommand=evil"], "is not HOST or HOST:N"),
    (["--engines=ssh", "--host=node1:many"], "a host takes 1 to 4096 engines"),
    (["--engines=ssh", "--host=node1:2", "-n3"], "3 engines, but the hosts take 2"),
    (["--engines=ssh", "--hostfile=/no/such"], "--hostfile: "),
    (["--controller=ssh"],
     "--controller=ssh: the controller runs on this host, engines need not; --controller=local"),
])
def test_misuse(run, ipython_dir, options, words):
    done = run("pxcluster", "start", *options, check=False)
    assert done.returncode == 2
    assert words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not list(ipython_dir.iterdir())


def test_a_queue_that_says_too_much_has_not_answered(env, px_bin, tmp_path):
    """Of an answer that was cut off nobody could say that a job is not in it."""
    for name, script in {"sbatch": "echo 7", "scancel": "exit 0",
                         "squeue": "yes 'PENDING (Priority)' | head -c 20000000"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    command = [px_bin / "pxcluster", "start", "--engines=slurm", "-n1", "--timeout=1"]
    with open(log, "w") as file, subprocess.Popen(
            command, stdout=file, stderr=file, stdin=subprocess.DEVNULL,
            env={**env, "PATH": f"{tmp_path}:{env['PATH']}"}) as cluster:
        told = 'batch.no-answer job=7 why="squeue: an answer of more than 16 MB"'
        wait_for(lambda: told in log.read_text() or cluster.poll() is not None, 30, told)
        assert cluster.poll() is None, log.read_text()
        cluster.terminate()
    assert "left the queue" not in log.read_text()
