# SPDX-License-Identifier: BSD-3-Clause
"""Engines in queues: Slurm's, that of PBS's commands over it, and SGE's. The real ones, with one node,
this host, and throwaway settings; what tests/queues unpacked (PX_QUEUES) is taken for the latter two."""
import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, programs_env, wait_for
from test_launchers import CODE, NASTY, end, failure, free_port, ipcluster, listed

pytestmark = pytest.mark.usefixtures("no_leftovers")
ipp = pytest.importorskip("ipyparallel")

# A job that its queue keeps waiting, and a start that does not.
HELD = ["--launch-arg=-h", "--timeout=1"]

QUEUES = Path(os.environ.get("PX_QUEUES", ROOT / "build" / "queues")).resolve()


def only_set(where):
    """The state of the one set of engines in a cluster's file."""
    state, = where.state()["engines"]["sets"].values()
    return state


def supervisor(where):
    """The pxcluster that watches over that set, by whose id it is known."""
    set_id, = where.state()["engines"]["sets"]
    return int(set_id.split("-")[1])


def ipcluster_stops(where, queue, env):
    """ipcluster shows a cluster with a job as we do, and ends both."""
    before = where.state()
    shown, = json.loads(ipcluster(env, "list", "-o", "json"))
    for state in (shown, after := where.state()):
        for engines in state["engines"]["sets"].values():
            engines.pop("output_file", None)  # ipyparallel 8 supposes one
    assert shown == after == before
    ipcluster(env, "stop")
    wait_for(lambda: not queue.jobs(), 30, "the job's end")


# ---- Slurm: one node, this one ----

SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={d}
AuthType=auth/munge
AuthInfo=socket={dir}/munge.sock
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=3
SchedulerParameters=sched_interval=1,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    def __init__(self, directory):
        self.directory = directory
        self.conf = directory / "slurm.conf"
        self.daemons = []
        directory.chmod(0o700)
        (directory / "state").mkdir()
        (directory / "spool").mkdir()
        (directory / "munge.key").write_bytes(os.urandom(128))
        (directory / "munge.key").chmod(0o400)
        self.conf.write_text(SLURM_CONF.format(dir=directory, host=socket.gethostname().split(".")[0],
                                               user=getpass.getuser(), ctld=free_port(), d=free_port()))
        if " 22." not in self.say("sinfo", "--version"):  # which uses no cgroups, and cannot be told not to
            (directory / "cgroup.conf").write_text("CgroupPlugin=disabled\n")

    def start(self, program, *arguments):
        path = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin")
        self.daemons.append(subprocess.Popen(
            [path, *arguments], env=programs_env({**os.environ, "SLURM_CONF": str(self.conf)}), cwd=self.directory,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=open(self.directory / f"{program}.log", "w")))

    def say(self, *words):
        return subprocess.run(words, env=programs_env({**os.environ, "SLURM_CONF": str(self.conf)}), text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=30).stdout.strip()

    def jobs(self):
        return self.say("squeue", "-h").splitlines()

    def bring_up(self):
        self.start("munged", "--foreground", "--force", f"--key-file={self.directory}/munge.key",
                   f"--socket={self.directory}/munge.sock", f"--pid-file={self.directory}/munged.pid",
                   f"--seed-file={self.directory}/munged.seed", f"--log-file={self.directory}/munge.log")
        wait_for((self.directory / "munge.sock").exists, what="munged")
        self.start("slurmctld", "-D")
        self.start("slurmd", "-D")
        wait_for(lambda: self.say("sinfo", "-h", "-o", "%T") == "idle"
                 or any(daemon.poll() is not None for daemon in self.daemons), 30, "an idle node")
        return all(daemon.poll() is None for daemon in self.daemons)

    def why(self):
        return " | ".join(line for name in ("munged", "slurmctld", "slurmd")
                          for line in (self.directory / f"{name}.log").read_text().splitlines()[-1:])


@pytest.fixture(scope="module")
def slurm_daemons(tmp_path_factory):
    for program in ("munged", "slurmctld", "slurmd", "sbatch"):
        if not shutil.which(program, path="/usr/sbin:/usr/bin:/sbin"):
            pytest.skip(f"needs {program}")
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        if not slurm.bring_up():
            pytest.skip(f"Slurm does not run here: {slurm.why()}")
        yield slurm
    finally:
        for daemon in reversed(slurm.daemons):
            end(daemon)


@pytest.fixture
def slurm(slurm_daemons, env):
    env["SLURM_CONF"] = str(slurm_daemons.conf)
    yield slurm_daemons
    slurm_daemons.say("scancel", f"--user={getpass.getuser()}")
    wait_for(lambda: not slurm_daemons.say("squeue", "-h"), 30, "an empty queue")


@pytest.mark.stock
def test_slurm(slurm, cluster, run, env, ipython_dir):
    where = cluster(2, "--engines=slurm", "--partition=main", "--time=10", CODE, cluster_id="two")
    with ipp.Client(str(where.client_file)) as rc:
        assert rc[:].pull("said", block=True) == [NASTY] * 2
        assert sorted(rc[:].apply_sync(os.getenv, "SLURM_PROCID")) == ["0", "1"]
    assert slurm.say("squeue", "-h", "-o", "%j %P %C %T %l") == "pxengine-two main 2 RUNNING 10:00"
    run("pxcluster", "engines", "-n1", "--daemonize", "--cluster-id=two")
    assert listed(run) == [["True", "3", "Slurm"]]
    assert "engines     3" in run("pxcluster", "status", "--cluster-id=two").stdout
    assert "3 engines" in run("pxcluster", "stop", "two").stderr
    assert slurm.say("squeue", "-h") == ""
    assert not list(ipython_dir.rglob("*.job"))


def test_engines_join_as_slurm_lets_them(slurm, cluster):
    """The job is held: the start is over when its time is, and engines come later."""
    where = cluster(2, "--engines=slurm", "--array", "--timeout=1", "--launch-arg=--hold")
    job = where.state()["engines"]["sets"].popitem()[1]["job_id"]
    assert "0 of 2 engines ready" in where.logs() and "others join as they start" in where.logs()
    assert f"job {job}: PENDING (JobHeldUser" in where.logs()
    assert "the controller listens on 127.0.0.1 alone" in where.logs()
    slurm.say("scontrol", "release", f"{job}_2")
    told = f'job={job} state="PENDING (JobHeldUser), RUNNING (None)"'
    wait_for(lambda: told in where.logs(), what=told)
    slurm.say("scontrol", "release", job)
    with ipp.Client(str(where.client_file)) as rc:
        wait_for(lambda: len(rc.ids) == 2, 60, "both engines")
    assert len(slurm.say("squeue", "-h").splitlines()) == 2


# ---- PBS's commands, over Slurm ----


@pytest.fixture
def pbs(slurm, env, tmp_path):
    """Slurm, whose qsub, qstat and qdel come first in the programs' PATH."""
    programs = QUEUES / "pbs" / "usr" / "bin"
    if not programs.is_dir():
        pytest.skip(f"no {programs}: see tests/queues")
    here = tmp_path / "pbs"
    here.mkdir()
    for name in ("qsub", "qstat", "qdel"):
        (here / name).symlink_to(programs / name)
    (here / "sbatch").symlink_to(shutil.which("sbatch"))  # where they look for it
    env["PATH"] = f"{here}:{env['PATH']}"
    return slurm


@pytest.mark.stock
def test_pbs(pbs, cluster, run, ipython_dir):
    """One job of two engines on a node; one of an array more; both are ended."""
    where = cluster(2, "--engines=pbs", "--queue=main", CODE, cluster_id="many+words")
    with ipp.Client(str(where.client_file)) as rc:
        assert rc[:].pull("said", block=True) == [NASTY] * 2
        assert rc[:].apply_sync(os.getcwd) == [os.getcwd()] * 2
    assert pbs.say("squeue", "-h", "-o", "%j %P %C %T") == "pxengine-many_w main 2 RUNNING"
    run("pxcluster", "engines", "-n2", "--array", "--daemonize", "--cluster-id=many+words")
    assert listed(run)[0][-3:] == ["True", "4", "PBS"]
    assert len(pbs.say("squeue", "-h").splitlines()) == 3
    assert "4 engines" in run("pxcluster", "stop", "many+words").stderr
    wait_for(lambda: not pbs.say("squeue", "-h"), 30, "an empty queue")
    assert not list(ipython_dir.rglob("*.job"))


def test_nobody_watches_a_job(pbs, cluster, run):
    """What the file says is enough to find it, and to end it."""
    where = cluster(1, "--engines=pbs", "--time=600", *HELD)
    assert pbs.say("squeue", "-h", "-o", "%l %r") == "10:00 JobHeldUser"
    os.kill(supervisor(where), signal.SIGKILL)  # and with it its controller
    wait_for(lambda: listed(run) == [["False", "1", "PBS"]], what="the controller's end")
    assert "1 engine" in run("pxcluster", "stop").stderr
    wait_for(lambda: not pbs.say("squeue", "-h"), 30, "an empty queue")


# ---- SGE ----

SGE_BOOTSTRAP = """
admin_user {user}
default_domain none
ignore_fqdn true
spooling_method classic
spooling_lib libspoolc
spooling_params {dir}/default/common;{dir}/spool
binary_path {dir}/bin
qmaster_spool_dir {dir}/spool
security_mode none
listener_threads 1
worker_threads 1
scheduler_threads 1
jvm_threads 0
"""


class Sge:
    """In a directory of its own: its programs look for their libraries where they are installed, but
    for the one path in the name of a spooling library, which is taken out of copies of them."""

    def __init__(self, directory):
        self.directory = directory
        self.package = QUEUES / "sge" / "usr"
        self.daemons = []
        self.env = programs_env({
            **os.environ, "SGE_ROOT": str(directory), "SGE_CELL": "default", "SGE_ND": "1",
            "SGE_QMASTER_PORT": str(free_port()), "SGE_EXECD_PORT": str(free_port()),
            "PATH": f"{directory}/bin:{os.environ['PATH']}"})
        self.loading = {**self.env, "LD_LIBRARY_PATH": str(self.package / "lib" / "gridengine")}
        for name in ("bin", "spool/job_scripts", "execd", "default/common"):
            (directory / name).mkdir(parents=True)
        self.copy_programs()
        common = directory / "default" / "common"
        user = "none" if os.getuid() == 0 else getpass.getuser()  # besides root
        (common / "bootstrap").write_text(SGE_BOOTSTRAP.format(dir=directory, user=user).lstrip())
        (common / "act_qmaster").write_text("localhost\n")
        if socket.gethostname() != "localhost":
            (common / "host_aliases").write_text(f"localhost {socket.gethostname()}\n")

    def copy_programs(self):
        path = b"/usr/lib/gridengine/%s%s"
        for program in (self.package / "lib" / "gridengine").iterdir():
            copy = self.directory / "bin" / program.name
            if program.is_file() and path in (code := program.read_bytes()):
                copy.write_bytes(code.replace(path, b"%s%s".ljust(len(path), b"\0")))
                copy.chmod(0o755)
            else:
                copy.symlink_to(program)
        share = self.package / "share" / "gridengine"
        (self.directory / "util").symlink_to(share / "util")
        arch = subprocess.check_output([share / "util" / "arch"], text=True, env=self.env).strip()
        (self.directory / "bin" / arch).symlink_to(".")

    def say(self, *words):
        return subprocess.run(words, env=self.env, text=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30).stdout

    def spool(self, *words):
        subprocess.run(words, env=self.loading, check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, timeout=30)

    def write(self, name, text):
        (self.directory / name).write_text(text)
        return self.directory / name

    def start(self, program):
        self.daemons.append(subprocess.Popen(
            [program], env=self.loading, executable=self.directory / "bin" / program,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=open(self.directory / f"{program}.log", "w"), cwd=self.directory))

    def bring_up(self):
        share = self.package / "share" / "gridengine"
        self.spool("spoolinit", "classic", "libspoolc", f"{self.directory}/default/common;"
                   f"{self.directory}/spool", "init")
        usual = (share / "default-configuration").read_text()
        self.spool("spooldefaults.bin", "configuration", self.write("conf", re.sub(
            r"(?m)^(execd_spool_dir|min_[ug]id) .*",
            lambda row: f"{row[1]} {self.directory / 'execd' if row[1][0] == 'e' else 0}", usual)))
        for kind, where in (("complexes", "centry"), ("usersets", "usersets")):
            self.spool("spooldefaults.bin", kind, share / "util" / "resources" / where)
        self.spool("spooldefaults.bin", "managers", getpass.getuser())
        self.start("sge_qmaster")
        wait_for(lambda: "localhost" in self.say("qconf", "-sh").split() or self.died(), 30, "sge_qmaster")
        self.start("sge_execd")
        wait_for(lambda: "localhost" in self.say("qconf", "-sel").split() or self.died(), 30, "sge_execd")
        if self.died():
            return False
        self.configure()
        wait_for(lambda: re.search(r"main@localhost +\S+ +\S+ +\S+ +lx\S*\s*$",
                                   self.say("qstat", "-f"), re.M) or self.died(), 30, "an idle node")
        return not self.died()

    def configure(self):
        self.say("qconf", "-as", "localhost")
        self.say("qconf", "-Ap", self.package / "share/gridengine/util/resources/pe/smp")
        at_once = {"schedule_interval": "0:0:1", "flush_submit_sec": 1, "flush_finish_sec": 1}
        usual = self.say("qconf", "-ssconf")
        for key, value in at_once.items():
            usual = re.sub(rf"(?m)^{key} .*", f"{key} {value}", usual)
        self.say("qconf", "-Msconf", self.write("sched", usual))
        queue = self.say("qconf", "-sq")
        for key, value in {"qname": "main", "hostlist": "localhost", "slots": 4, "pe_list": "smp",
                           "shell": "/bin/sh", "load_thresholds": "NONE"}.items():
            queue = re.sub(rf"(?m)^{key} .*", f"{key} {value}", queue)
        done = self.say("qconf", "-Aq", self.write("queue", queue))
        assert "added" in done, done

    def died(self):
        return any(daemon.poll() is not None for daemon in self.daemons)

    def why(self):
        return " | ".join(line for path in self.directory.glob("*.log")
                          for line in path.read_text().splitlines()[-1:])

    def jobs(self):
        """(number, state) of each line of the user's jobs."""
        return [(line.split()[0], line.split()[4]) for line in self.say("qstat").splitlines()[2:]]


@pytest.fixture(scope="module")
def sge_daemons(tmp_path_factory):
    if not (QUEUES / "sge").is_dir():
        pytest.skip(f"no {QUEUES / 'sge'}: see tests/queues")
    sge = Sge(tmp_path_factory.mktemp("sge"))
    try:
        if not sge.bring_up():
            pytest.skip(f"SGE does not run here: {sge.why()}")
        yield sge
    except subprocess.CalledProcessError as error:  # as where no name is known for this host
        pytest.skip(f"SGE does not run here: {error}")
    finally:
        for daemon in sge.daemons:  # nothing of it will be wanted again
            daemon.kill()
            daemon.wait()


@pytest.fixture
def sge(sge_daemons, env):
    env.update({name: value for name, value in sge_daemons.env.items() if name.startswith("SGE_")})
    env["PATH"] = f"{sge_daemons.directory}/bin:{env['PATH']}"
    yield sge_daemons
    if sge_daemons.jobs():
        sge_daemons.say("qdel", "-u", getpass.getuser())
    wait_for(lambda: not sge_daemons.jobs(), 30, "an empty queue")


@pytest.mark.stock
def test_sge(sge, cluster, run):
    """A job for each engine; what anybody may see of it does not let him in."""
    where = cluster(2, "--engines=SGE", "--queue=main", "--time=0:10:0", "--account=lab", CODE)
    with ipp.Client(str(where.client_file)) as rc:
        assert rc[:].pull("said", block=True) == [NASTY] * 2
        assert sorted(rc[:].apply_sync(os.getenv, "SGE_TASK_ID")) == ["1", "2"]
        assert rc[:].apply_sync(os.getcwd) == [os.getcwd()] * 2
    job = only_set(where)["job_id"]
    assert [number for number, _ in sge.jobs()] == [job] * 2
    shown = sge.say("qstat", "-j", job)
    for words in ("h_rt=600", "account: +lab", "job_name: +pxengine\n", "job-array tasks: +1-2:1"):
        assert re.search(words, shown), shown
    assert "IPP_CONNECTION_INFO" not in shown
    assert json.loads(where.client_file.read_text())["key"] not in shown
    os.kill(supervisor(where), signal.SIGUSR1)
    wait_for(lambda: "SGE has no way to signal a job" in where.logs(), what="a warning")
    run("pxcluster", "engines", "-n1", "--daemonize")
    assert listed(run) == [["True", "3", "SGE"]]
    assert "3 engines" in run("pxcluster", "stop").stderr
    assert not sge.jobs()


@pytest.mark.stock
def test_sge_gives_a_job_room(sge, cluster):
    """Once it is let, and in a parallel environment, one job holds both engines."""
    where = cluster(2, "--engines=sge", *HELD,
                    *(f"--launch-arg={word}" for word in ("-pe", "smp", "2")))
    job = only_set(where)["job_id"]
    assert sge.jobs() == [(job, "hqw")]
    assert f"job {job}: hqw, log " in where.logs() and "0 of 2 engines ready" in where.logs()
    sge.say("qrls", job)
    with ipp.Client(str(where.client_file)) as rc:
        wait_for(lambda: len(rc.ids) == 2, 60, "both engines")
        assert rc[:].apply_sync(os.getenv, "NSLOTS") == ["2", "2"]
    assert sge.jobs() == [(job, "r")]


def test_a_waiting_job_is_ended_once(sge, cluster, run):
    """Its pxcluster did; whoever asked that does not look for it again."""
    cluster(1, "--engines=sge", *HELD)
    assert run("pxcluster", "stop").stderr == "pxcluster: stopped cluster: 1 engine\n"


@pytest.mark.stock
def test_a_script_of_the_users(sge, cluster, run, tmp_path):
    """The template says what the job is, and its words for the queue count."""
    script = tmp_path / "script"
    script.write_text("#$ -S /bin/bash\n#$ -N mine\nexport TWICE={n*2} SLOTS=${{NSLOTS}}\n"
                      "[[ x == x ]] && {program_and_args}\n")
    where = cluster(1, "--engines=sge", f"--template={script}")
    with ipp.Client(str(where.client_file)) as rc:
        assert rc[:].apply_sync(os.getenv, "TWICE") == ["2"]
        assert rc[:].apply_sync(os.getenv, "SLOTS") == ["1"]
    assert re.search(r"job_name: +mine\n", sge.say("qstat", "-j", only_set(where)["job_id"]))
    run("pxcluster", "stop")
    (where.profile_dir / "ipcluster_config.py").write_text(
        "c.Cluster.engine_launcher_class = 'SGE'\n"
        "c.SGEEngineSetLauncher.batch_template = '#PBS -l nodes={n//4}:ppn={ppn}'\n")
    done = run("pxcluster", "start", "-n1", check=False)
    assert done.returncode == 1 and not sge.jobs()
    assert "'{ppn}' has no meaning here" in done.stderr


def test_sge_does_not_answer(sge, cluster, run, env):
    """Whoever ends a job that nobody can ask about hears so."""
    where = cluster(1, "--engines=sge", *HELD)
    job = only_set(where)["job_id"]
    os.kill(supervisor(where), signal.SIGKILL)
    right = env["SGE_QMASTER_PORT"]
    env["SGE_QMASTER_PORT"] = str(free_port())
    wait_for(lambda: listed(run) == [["False", "1", "SGE"]], what="the controller's end")
    assert f'it may still run: qdel {job}"' in run("pxcluster", "stop").stderr
    env["SGE_QMASTER_PORT"] = right
    assert sge.jobs() == [(job, "hqw")]


# ---- all of them ----


@pytest.fixture
def queue(request):
    """The one that the test is about, by its name."""
    return request.getfixturevalue(request.param)


@pytest.mark.stock
@pytest.mark.parametrize("queue", ["slurm", "sge"], indirect=True)
def test_ipcluster_stops_our_job(request, queue, cluster, env):
    ipcluster_stops(cluster(1, f"--engines={request.node.callspec.params['queue']}"), queue, env)


@pytest.mark.parametrize("queue, options, words", [
    ("slurm", ["--partition=nobody"],
     "sbatch: Batch job submission failed: Invalid partition name"),
    ("slurm", ["--launch-cmd=no-such-sbatch"], "cannot run no-such-sbatch"),
    ("slurm", ["--launch-arg=--no-such-option"], "sbatch: "),
    ("pbs", ["--queue=nobody"], "qsub: Batch job submission failed: Invalid partition name"),
    ("sge", ["--queue=nobody"], 'qsub: Unable to run job: Job was rejected because job requests '
     'unknown queue "nobody"'),
], indirect=["queue"])
def test_queue_that_refuses(request, queue, run, ipython_dir, options, words):
    name = request.node.callspec.params["queue"]
    assert words in failure(run, ipython_dir, "-n1", f"--engines={name}", *options)
    assert not queue.jobs()


@pytest.mark.parametrize("queue, ended", [("slurm", "FAILED .*"), ("sge", "it has left the queue")],
                         indirect=["queue"])
def test_job_that_fails(request, queue, run, ended):
    """What the job wrote follows the line, as with engines on this host."""
    name = request.node.callspec.params["queue"]
    done = run("pxcluster", "start", "--daemonize", "-n1", f"--engines={name}",
               "--engine-cmd=sh -c 'echo the reason; exit 3'", check=False)
    assert done.returncode == 1
    assert re.search(rf"^pxcluster: job \d+: {ended}$", done.stderr, re.M), done.stderr
    assert "the reason" in done.stderr
