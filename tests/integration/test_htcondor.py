# SPDX-License-Identifier: BSD-3-Clause
"""Engines in HTCondor's queue: the real one that tests/queues unpacked (PX_QUEUES), with one machine,
this one, and throwaway settings. Debian 12 has none."""
import json
import os
import re
import signal
import subprocess

import pytest
from conftest import programs_env, wait_for
from test_launchers import NASTY, end, failure, free_port, listed
from test_queues import QUEUES, ipcluster_stops, only_set, supervisor

pytestmark = pytest.mark.usefixtures("no_leftovers")
ipp = pytest.importorskip("ipyparallel")

# What HTCondor would take for its own.
MACROS = f"{NASTY} $(x)$$(y)$$"
CODE = f"--engine-arg=--code=said = {MACROS!r}"

# A job that waits until somebody lets it go on, and a start that does not.
HELD = ["--launch-arg=hold=true", "--timeout=1"]

CONF = """
RELEASE_DIR = {package}
LOCAL_DIR = {dir}
LOG = $(LOCAL_DIR)/log
SPOOL = $(LOCAL_DIR)/spool
EXECUTE = $(LOCAL_DIR)/execute
LOCK = $(LOCAL_DIR)/lock
RUN = $(LOCAL_DIR)/lock
LIB = {package}/lib/condor
LIBEXEC = {package}/libexec/condor
SHARE = {package}/share/condor
DAEMON_LIST = MASTER COLLECTOR NEGOTIATOR SCHEDD STARTD
CONDOR_HOST = 127.0.0.1
COLLECTOR_HOST = 127.0.0.1:{port}
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = false
USE_SHARED_PORT = false
SEC_DEFAULT_AUTHENTICATION_METHODS = FS
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = *
ALLOW_ADMINISTRATOR = *
NUM_CPUS = 4
MEMORY = 4096
START = true
NEGOTIATOR_INTERVAL = 1
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_CYCLE_DELAY = 1
SCHEDD_INTERVAL = 1
SCHEDD_MIN_INTERVAL = 1
PERIODIC_EXPR_INTERVAL = 1
"""


class Pool:
    def __init__(self, directory):
        self.directory = directory
        self.package = QUEUES / "condor" / "usr"
        for name in ("log", "spool", "execute", "lock"):
            (directory / name).mkdir()
        conf = directory / "conf"
        conf.write_text(CONF.format(dir=directory, package=self.package, port=free_port()))
        self.settings = {"CONDOR_CONFIG": str(conf), "LD_LIBRARY_PATH": str(self.package / "lib"),
                         "PATH": f"{self.package}/bin:{self.package}/sbin:{os.environ['PATH']}"}
        self.env = programs_env({**os.environ, **self.settings})

    def bring_up(self):
        self.master = subprocess.Popen(
            ["condor_master", "-f"], env=self.env, cwd=self.directory,
            executable=self.package / "sbin" / "condor_master", stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=open(self.directory / "log" / "stderr", "w"))
        wait_for(lambda: self.master.poll() is not None
                 or (self.say("condor_status", "-autoformat", "State") == "Unclaimed"
                     and self.tells("condor_q")), 60, "an idle machine")
        return self.master.poll() is None

    def bring_down(self):
        self.master.send_signal(signal.SIGQUIT)  # at once
        end(self.master)

    def do(self, *words):
        return subprocess.run(words, env=self.env, text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=30)

    def say(self, *words):
        return self.do(*words).stdout.strip()

    def tells(self, *words):
        return self.do(*words).returncode == 0

    def why(self):
        return " | ".join(line for path in (self.directory / "log").iterdir() if path.is_file()
                          for line in path.read_text(errors="replace").splitlines()[-1:])

    def jobs(self, *attributes):
        """A line for each job, of its number and these."""
        return self.say("condor_q", "-autoformat:j", *(attributes or ["JobStatus"])).splitlines()


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    if not (QUEUES / "condor").is_dir():
        pytest.skip(f"no {QUEUES / 'condor'}: see tests/queues")
    if os.getuid() == 0:
        pytest.skip("HTCondor takes no jobs of root's")
    pool = Pool(tmp_path_factory.mktemp("htcondor"))
    try:
        if not pool.bring_up():
            pytest.skip(f"HTCondor does not run here: {pool.why()}")
        yield pool
    finally:
        pool.bring_down()


@pytest.fixture
def condor(pool, env):
    env.update({**pool.settings, "PATH": f"{pool.package}/bin:{env['PATH']}"})
    yield pool
    pool.say("condor_rm", "-all")
    wait_for(lambda: not pool.jobs(), 30, "an empty queue")


@pytest.mark.stock
def test_htcondor(condor, cluster, run, ipython_dir):
    """A job for each engine; what anybody may see of it does not let him in."""
    where = cluster(2, "--engines=HTCondor", "--time=600", "--account=lab", CODE, cluster_id="two")
    with ipp.Client(str(where.client_file)) as rc:
        assert rc[:].pull("said", block=True) == [MACROS] * 2
        assert rc[:].apply_sync(os.getcwd) == [os.getcwd()] * 2
        assert len(set(rc[:].apply_sync(os.getenv, "_CONDOR_SLOT"))) == 2
    job = only_set(where)["job_id"]
    assert condor.jobs("JobBatchName", "AcctGroup", "AllowedJobDuration", "JobStatus") == [
        f"{job}.{i} pxengine-two lab 600 2" for i in (0, 1)]
    shown = condor.say("condor_q", "-long", job)
    assert "Arguments = " in shown and "IPP_CONNECTION_INFO" not in shown
    assert json.loads(where.client_file.read_text())["key"] not in shown
    os.kill(supervisor(where), signal.SIGUSR1)
    wait_for(lambda: "HTCondor has no way to signal a job" in where.logs(), what="a warning")
    run("pxcluster", "engines", "-n1", "--daemonize", "--cluster-id=two")
    assert listed(run) == [["True", "3", "HTCondor"]]
    assert "engines     3" in run("pxcluster", "status", "--cluster-id=two").stdout
    assert "3 engines" in run("pxcluster", "stop", "two").stderr
    assert not condor.jobs()
    assert not list(ipython_dir.rglob("*.job"))


@pytest.mark.stock
def test_engines_join_as_htcondor_lets_them(condor, cluster):
    where = cluster(2, "--engines=htcondor", *HELD)
    job = only_set(where)["job_id"]
    assert "0 of 2 engines ready" in where.logs() and "others join as they start" in where.logs()
    assert re.search(rf"job {job}: HELD \(submitted on hold at user's request\), log .*-\*\.log$",
                     where.logs(), re.M)
    condor.say("condor_release", f"{job}.1")
    with ipp.Client(str(where.client_file)) as rc:
        wait_for(lambda: len(rc.ids) == 1, 60, "the one that is let")
        told = rf'job={job} state="HELD \(submitted .*\), RUNNING \(slot1_1@.*\)"'
        wait_for(lambda: re.search(told, where.logs()), what=told)
        condor.say("condor_release", job)
        wait_for(lambda: len(rc.ids) == 2, 60, "both engines")


def test_one_job_has_room_for_all(condor, cluster):
    where = cluster(2, "--engines=htcondor", "--launch-arg=request_cpus=2")
    assert condor.jobs("CpusProvisioned") == [only_set(where)["job_id"] + ".0 2"]


@pytest.mark.parametrize("wish, state", [
    ("request_cpus=99", r"IDLE \(no match found\)"),
    ("executable=/no/such", r"HELD \(.*Failed to execute '/no/such'.*\)"),
])
def test_why_it_does_not_run(condor, cluster, wish, state):
    """Told as soon as HTCondor knows, however long the cluster has been up by then."""
    where = cluster(1, "--engines=htcondor", "--timeout=1", "--launch-arg=-append", f"--launch-arg={wish}")
    told = rf'job={only_set(where)["job_id"]} state="{state}"'
    wait_for(lambda: re.search(told, where.logs()), what=told)


@pytest.mark.parametrize("script, ended", [
    ("exit 3", r"COMPLETED \(exit status 3\)"), ("kill -9 $$", r"COMPLETED \(signal 9\)")])
def test_job_that_fails(condor, run, script, ended):
    """What the job wrote follows the line, as with engines on this host."""
    done = run("pxcluster", "start", "--daemonize", "-n2", "--engines=htcondor",
               f"--engine-cmd=sh -c 'echo the reason; {script}'", check=False)
    assert done.returncode == 1
    assert re.search(rf"^pxcluster: job \d+: {ended}$", done.stderr, re.M), done.stderr
    assert "the reason" in done.stderr
    assert not condor.jobs()


def test_job_that_somebody_removes(condor, cluster):
    where = cluster(1, "--engines=htcondor")
    job = only_set(where)["job_id"]
    condor.say("condor_rm", job)
    wait_for(lambda: f"job {job}: REMOVED (via condor_rm (by user " in where.logs(), what="why")
    wait_for(lambda: "no engine is left" in where.logs(), what="that none is left")


@pytest.mark.parametrize("options, words", [
    (["--account=a b"], "condor_submit: Invalid accounting_group: a b"),
    (["--launch-cmd=no-such-submit"], "cannot run no-such-submit"),
    (["--launch-arg=-append", "--launch-arg=request_cpus=1 2"],
     "condor_submit: Parse error in expression: RequestCpus = 1 2"),
    (["--engine-arg=--code=a\nb"], "condor_submit takes no line break in a word of a command"),
    (["--template-text=executable = {program}\n"], "no queue statement"),
    (["--template-text=executable = {program}\nqueue\nexecutable = /bin/sh\nqueue\n"], "-single-cluster"),
])
def test_htcondor_refuses(condor, run, ipython_dir, options, words):
    assert words in failure(run, ipython_dir, "-n1", "--engines=htcondor", *options)
    assert not condor.jobs()


@pytest.mark.stock
def test_a_template_of_ipyparallels(condor, cluster, run):
    """Its words for HTCondor: the program's arguments stand between double quotes."""
    where = cluster(0)
    run("pxcluster", "stop")
    (where.profile_dir / "ipcluster_config.py").write_text(
        "c.Cluster.engine_launcher_class = 'HTCondor'\n"
        "c.HTCondorEngineSetLauncher.batch_template = '''\n"
        "universe = vanilla\nexecutable = {program}\ntransfer_executable = False\n"
        "getenv = True\nenvironment = \"TWICE={n*2} WHERE={queue}\"\n"
        "arguments = \"{program_args}\"\nqueue {n}\n'''\n")
    where = cluster(2, "--queue=here", CODE)
    with ipp.Client(str(where.client_file)) as rc:
        assert rc[:].pull("said", block=True) == [MACROS] * 2
        assert rc[:].apply_sync(os.getenv, "TWICE") == ["4"] * 2
        assert rc[:].apply_sync(os.getenv, "WHERE") == ["here"] * 2
    assert len(condor.jobs()) == 2


@pytest.mark.stock
def test_ipcluster_stops_our_job(condor, cluster, env):
    ipcluster_stops(cluster(1, "--engines=htcondor"), condor, env)


def test_htcondor_does_not_answer(condor, cluster, run, env, tmp_path):
    """Whoever ends a job that nobody can ask about hears so."""
    where = cluster(1, "--engines=htcondor", *HELD)
    job = only_set(where)["job_id"]
    os.kill(supervisor(where), signal.SIGKILL)
    right = env["CONDOR_CONFIG"]
    env["CONDOR_CONFIG"] = str(tmp_path / "conf")
    (tmp_path / "conf").write_text(open(right).read() + f"SPOOL = {tmp_path}\n")
    wait_for(lambda: listed(run) == [["False", "1", "HTCondor"]], what="the controller's end")
    assert f'it may still run: condor_rm {job}"' in run("pxcluster", "stop").stderr
    env["CONDOR_CONFIG"] = right
    assert [line.split()[0] for line in condor.jobs()] == [f"{job}.0"]
