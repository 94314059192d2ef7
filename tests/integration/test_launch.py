# SPDX-License-Identifier: BSD-3-Clause
"""pxcluster: what a user types, what runs then, and that nothing runs afterwards."""
import json
import os
import re
import signal
import subprocess
import time

import phalanx
import pytest
from conftest import (BIN, PYTHON, STOCK_CONTROLLER, STOCK_ENGINE, Cluster, alive, controller_ports,
                      processes_with, wait_for)

pytestmark = pytest.mark.usefixtures("no_leftovers")

STOCK = [f"--controller-cmd={STOCK_CONTROLLER}", f"--engine-cmd={STOCK_ENGINE}"]

our_controller = pytest.mark.skipif(not (BIN / "pxcontroller").exists(),
                                    reason="pxcontroller is not built")
our_engines = pytest.mark.skipif(not (BIN / "pxengine").exists(), reason="pxengine is not built")


def ours(thing):
    return our_controller(our_engines(thing))


MIXES = [
    pytest.param([], id="ours", marks=[our_controller, our_engines]),
    pytest.param(STOCK, id="stock", marks=pytest.mark.stock),
    pytest.param(STOCK[:1], id="stock-controller", marks=[our_engines, pytest.mark.stock]),
    pytest.param(STOCK[1:], id="stock-engines", marks=[our_controller, pytest.mark.stock]),
]


def ipcluster(env, *args, check=True):
    return subprocess.run([PYTHON, "-m", "ipyparallel.cluster", *args], env=env, check=check,
                          text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=60)


def supervisor_of(pid):
    return int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])


@pytest.fixture
def foreground(env, px_bin):
    """Starts `pxcluster start` in the foreground; returns the process once it says ready."""
    started = []

    def start(*options, n=2, ready=True, **kwargs):
        process = subprocess.Popen([px_bin / "pxcluster", "start", "-n", str(n), *options], env=env,
                                   stderr=subprocess.PIPE, text=True,
                                   **{"stdin": subprocess.DEVNULL, **kwargs})
        started.append(process)
        if ready:
            line = process.stderr.readline()
            assert " ready in " in line, line + process.stderr.read()
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


# ---- start and stop ----


@pytest.mark.parametrize("mix", MIXES)
def test_daemonize_returns_when_a_client_sees_all(cluster, run, mix):
    import ipyparallel as ipp
    where = cluster(2, *mix)
    with ipp.Client(str(where.client_file)) as rc:
        assert rc.ids == [0, 1]
        assert rc[:].apply_sync(os.getpid) == [rc[i].apply_sync(os.getpid) for i in rc.ids]
        assert sorted(rc[:].apply_sync(os.getpid)) == sorted(where.engine_pids)
    pids = [where.controller_pid, *where.engine_pids]
    assert all(map(alive, pids))
    done = run("pxcluster", "stop")
    assert "stopped cluster: 2 engines" in done.stderr
    assert not any(map(alive, pids))
    assert not where.cluster_file.exists()
    assert not where.client_file.exists() and not where.engine_file.exists()


@ours
@pytest.mark.parametrize("spelling", [
    ["-n", "2"], ["-n2"], ["-n=2"], ["--n=2"], ["--n", "2"], ["--Cluster.n=2", "--log-to-file"],
    ["--IPClusterEngines.n=2", "--Cluster.engine_launcher_class=local", "--init"],
])
def test_spellings_of_n(run, spelling):
    done = run("pxcluster", "start", "--daemonize", *spelling)
    assert "2 engines ready" in done.stderr
    run("pxcluster", "stop")


@ours
def test_work_dir(run, tmp_path, ipython_dir):
    (tmp_path / "there").mkdir()
    run("pxcluster", "start", "-n1", "--daemonize", "--work-dir=there", cwd=tmp_path)
    pid, = Cluster(ipython_dir, "default", "").engine_pids
    assert os.readlink(f"/proc/{pid}/cwd") == str(tmp_path / "there")
    run("pxcluster", "stop")
    done = run("pxcluster", "start", "--work-dir=/no/such", check=False)
    assert done.returncode == 2 and "--work-dir: cannot change to /no/such" in done.stderr


@ours
def test_default_is_one_engine_a_processor(cluster, run, ipython_dir):
    done = run("pxcluster", "start", "--daemonize")
    assert re.search(rf"\b{os.cpu_count()} engines? ready", done.stderr)
    assert len(Cluster(ipython_dir, "default", "").engine_pids) == os.cpu_count()
    run("pxcluster", "stop")


@ours
def test_no_engines(cluster):
    where = cluster(0)
    assert where.client_file.exists() and where.engine_pids == []


@ours
def test_modes_of_files(cluster):
    where = cluster(1)
    assert (where.profile_dir / "security").stat().st_mode & 0o777 == 0o700
    for path in (where.client_file, where.engine_file, where.cluster_file):
        assert path.stat().st_mode & 0o777 == 0o600


@ours
@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything(foreground, ipython_dir, signo):
    process = foreground()
    where = Cluster(ipython_dir, "default", "")
    pids = [where.controller_pid, *where.engine_pids]
    process.send_signal(signo)
    assert process.wait(timeout=20) == 0
    assert not any(map(alive, pids))
    assert not where.cluster_file.exists()


@ours
def test_daemonize_without_descriptors(run, env, px_bin, ipython_dir):
    """As from a daemon: what is opened next is not standard output."""
    def close():
        for fd in range(3):
            os.close(fd)
    process = subprocess.Popen([px_bin / "pxcluster", "start", "-n", "1", "--daemonize"], env=env,
                               preexec_fn=close)
    assert process.wait(timeout=20) == 0
    assert Cluster(ipython_dir, "default", "").engine_pids
    run("pxcluster", "stop")


@ours
def test_a_hangup_that_is_ignored_ends_nothing(foreground):
    """nohup pxcluster start"""
    process = foreground(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    process.terminate()
    assert process.stderr.read() == "pxcluster: SIGTERM: stopping\n"


@ours
def test_a_directory_whose_name_is_not_utf8(px_bin, env, tmp_path):
    def pxcluster(*args):
        subprocess.run([px_bin / "pxcluster", *args], env=env, check=True, timeout=60)

    env["IPYTHONDIR"] = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    pxcluster("start", "-n", "1", "--daemonize")
    try:
        with phalanx.Client(profile_dir=env["IPYTHONDIR"] + "/profile_default") as client:
            assert client[0].apply_sync(os.getenv, "IPYTHONDIR") == env["IPYTHONDIR"]
    finally:
        pxcluster("stop")


@ours
def test_ready_fd_and_end_of_stdin(env, px_bin, ipython_dir):
    read, write = os.pipe()
    process = subprocess.Popen(
        [px_bin / "pxcluster", "start", "-n", "1", "--quiet", f"--ready-fd={write}",
         "--stop-on-eof"], env=env, stdin=subprocess.PIPE, stderr=subprocess.PIPE,
        pass_fds=[write])
    os.close(write)
    with os.fdopen(read) as ready:
        assert ready.read() == "ready 1\n"
    process.stdin.close()
    assert process.wait(timeout=20) == 0
    assert process.stderr.read() == b""


@ours
def test_profiles_and_ids(cluster, run):
    one = cluster(1, profile="one")
    two = cluster(1, profile="one", cluster_id="two")
    assert one.client_file.name == "ipcontroller-client.json"
    assert two.client_file.name == "ipcontroller-two-client.json"
    listed = run("pxcluster", "list").stdout.splitlines()
    assert [line.split()[:4] for line in listed[1:]] == [["one", "''", "True", "1"],
                                                         ["one", "two", "True", "1"]]
    there = "pxcluster: there is one of 1 engine: --cluster-id="
    for command in "stop", "status":
        said = run("pxcluster", command, "--profile=one", "--cluster-id=three", check=False)
        assert said.returncode == 11
        assert said.stderr.splitlines()[1:] == [there + "''", there + "'two'"]
    there = str(one.client_file.parent.parent)
    other = re.escape(f"; another one: Client(profile_dir={there!r}, cluster_id='two')")
    with pytest.raises(FileNotFoundError, match=r"running\?.*" + other):
        phalanx.Client(profile_dir=there, cluster_id="three")
    left = one.client_file.parent / "cluster-three.json"  # as of one that was killed
    left.write_text("{}")
    one_by_name = re.escape(f"; another one: Client(profile_dir={there!r}, cluster_id='')")
    with pytest.raises(FileNotFoundError, match=r"start\)" + one_by_name + other + "$"):
        phalanx.Client(profile_dir=there, cluster_id="three", timeout=0)
    left.unlink()
    run("pxcluster", "stop", "--profile=one", "two")
    assert not two.cluster_file.exists() and one.cluster_file.exists()
    run("pxcluster", "stop", "--profile=one", "--all")
    assert not one.cluster_file.exists()


@ours
def test_profile_dir_and_environment(run, env, tmp_path):
    env["IPP_PROFILE_DIR"] = str(tmp_path / "place")
    env["IPP_CLUSTER_ID"] = "env"
    run("pxcluster", "start", "-n1", "--daemonize")
    assert (tmp_path / "place/security/cluster-env.json").exists()
    run("pxcluster", "stop", f"--profile-dir={tmp_path / 'place'}")


@ours
def test_arguments_for_the_controller(cluster):
    where = cluster(1, "--location=here.example", "--", "--ping=700")
    assert json.loads(where.client_file.read_text())["location"] == "here.example"
    command = open(f"/proc/{where.controller_pid}/cmdline").read().split("\0")
    assert "--ping=700" in command
    assert where.state()["cluster"]["controller_args"][-1] == "--ping=700"


@ours
def test_the_configuration_of_the_profile(cluster, run, ipython_dir, tmp_path, monkeypatch):
    """It is a program, what it sets can be overridden, and what it cannot have is named."""
    profile = ipython_dir / "profile_default"
    profile.mkdir()
    file = profile / "ipcluster_config.py"
    file.write_text("import os\nc = get_config()\nc.Cluster.n = len([os.curdir, os.pardir])\n"
                    "os.system('echo printed')\n"
                    "c.Cluster.engine_launcher_class = 'pigeon'\n"
                    "c.Cluster.controller_args.append('--ping=700')\n"
                    "c.EngineLauncher.engine_args = [\n    '--log-level=10']\n"
                    "c.LocalEngineSetLauncher.feathers = 3\nc.PBSLauncher.queue = 'x'\n")
    (tmp_path / "json.py").write_text("raise OSError('not for programs that are started here')\n")
    monkeypatch.chdir(tmp_path)
    refused = run("pxcluster", "start", check=False)
    assert refused.returncode == 2 and "no launcher 'pigeon'" in refused.stderr
    done = run("pxcluster", "start", "--engines=local", "--daemonize")
    first, second = done.stderr.splitlines()
    assert first.endswith("c.LocalEngineSetLauncher.feathers is not known here and has no effect")
    assert " 2 engines ready " in second
    where = Cluster(ipython_dir, "default", "")
    words = [open(f"/proc/{pid}/cmdline").read().split("\0")
             for pid in (where.controller_pid, *where.engine_pids)]
    assert "--ping=700" in words[0] and all("--log-level=10" in engine for engine in words[1:])
    run("pxcluster", "stop")
    cluster(1, "--engines=local")
    assert len(where.engine_pids) == 1
    file.write_text("c.Cluster.n = 1\nraise OSError('no\\nsuch luck')\n")
    refused = run("pxcluster", "start", check=False)
    assert refused.returncode == 2
    assert refused.stderr == f"pxcluster start: {file}: OSError: no such luck\n"


@pytest.mark.parametrize("mix", [MIXES[0], MIXES[2]])
def test_a_profile_whose_controller_reuses_its_files(cluster, run, ipython_dir, mix):
    profile = ipython_dir / "profile_default"
    profile.mkdir()
    (profile / "ipcontroller_config.py").write_text("c.IPController.reuse_files = True\n")
    files, ports = [], controller_ports()
    for _ in range(2):
        where = cluster(1, *mix, "--", ports)
        files.append(json.loads(where.client_file.read_text()))
        run("pxcluster", "stop")
    assert files[0] == files[1]


@ours
def test_more_engines(cluster, run):
    import ipyparallel as ipp
    where = cluster(1)
    run("pxcluster", "engines", "-n", "2", "--daemonize")
    with ipp.Client(str(where.client_file)) as rc:
        assert rc.ids == [0, 1, 2]
    assert len(where.engine_pids) == 3
    pids = where.engine_pids
    run("pxcluster", "stop")
    assert not any(map(alive, pids))


# ---- the reference finds ours, and we find the reference's ----


@ours
def test_ipcluster_lists_and_stops_ours(cluster, env):
    where = cluster(2)
    before = where.cluster_file.read_bytes()
    listed = json.loads(ipcluster(env, "list", "-o", "json").stdout)
    assert listed == [json.loads(before)]
    assert where.cluster_file.read_bytes() == before  # it saw nothing to correct
    assert "True          2 Local" in ipcluster(env, "list").stdout
    assert ipcluster(env, "start", "-n", "1", "--daemonize", check=False).returncode == 10
    pids = [where.controller_pid, *where.engine_pids]
    pids.append(supervisor_of(pids[0]))
    ipcluster(env, "stop")
    wait_for(lambda: not any(map(alive, pids)), what="all processes to end")
    assert not where.cluster_file.exists()


@pytest.mark.stock
def test_we_list_and_stop_theirs(env, run, ipython_dir):
    ipcluster(env, "start", "-n", "2", "--daemonize")
    where = Cluster(ipython_dir, "default", "")
    assert "True          2 Local" in run("pxcluster", "list").stdout
    assert json.loads(run("pxcluster", "list", "-o", "json").stdout) == [where.state()]
    assert run("pxcluster", "start", "-n1", check=False).returncode == 10
    pids = [where.controller_pid, *where.engine_pids]
    wait_for(where.client_file.exists, what="the connection file")
    run("pxcluster", "stop")
    assert not any(map(alive, pids))
    assert not where.cluster_file.exists()


# ---- refusals ----


@ours
def test_second_start_is_refused(cluster, run):
    where = cluster(1)
    done = run("pxcluster", "start", "-n1", check=False)
    assert done.returncode == 10
    assert done.stderr.startswith("pxcluster: a cluster is running already, with 1 engine; ")
    assert f"; pxcluster stop ends it, --cluster-id=ID starts another beside it ({where.cluster_file})" \
        in done.stderr
    assert where.logs()  # a refused start removes nobody's logs
    assert run("pxcluster", "start", "-n1", "--daemonize", check=False).returncode == 10
    assert len(where.engine_pids) == 1


def test_stop_without_a_cluster(run):
    assert run("pxcluster", "stop", check=False).returncode == 11
    assert run("pxcluster", "stop", "--all", check=False).returncode == 11
    assert run("pxcluster", "stop", "--profile=nobody", check=False).returncode == 11


def test_engines_without_a_cluster(run):
    assert run("pxcluster", "engines", "-n1", check=False).returncode == 12


@pytest.mark.parametrize("arguments, words", [
    (["start", "--nn=3"], "unknown option"),
    (["start", "-n", "many"], "whole number"),
    (["start", "-n", "-1"], "not between"),
    (["start", "stray"], "unexpected argument 'stray'"),
    (["start", "--engines=pigeon"], "no launcher 'pigeon'"),
    (["start", "--parent-fd=999"], "--parent-fd=999 is not open"),
    (["list", "-o", "xml"], "neither text nor json"),
    (["strat"], "did you mean 'start'?"),
    ([], "Usage"),
])
def test_misuse_exits_2_with_one_line(run, arguments, words, ipython_dir):
    done = run("pxcluster", *arguments, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert not arguments or done.stderr.count("\n") == 1
    assert not list(ipython_dir.iterdir())


@pytest.mark.parametrize("command", ["start", "stop", "list", "engines", "clean"])
def test_help(run, command):
    text = run("pxcluster", command, "--help").stdout
    assert text.startswith(f"Usage: pxcluster {command}") and "Examples:" in text
    assert max(map(len, text.splitlines())) <= 100
    assert re.fullmatch(r"pxcluster \d+\.\d+\.\d+\n", run("pxcluster", "--version").stdout)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cluster": 1}', '{"cluster": {}}',
                                  '{"cluster": {}, "controller": {"class": "local", "state": 3}}',
                                  '{"cluster": {}, "engines": {"class": 7, "sets": []}}',
                                  '{"cluster": {}, "controller": {"class": "local", '
                                  '"state": {"pid": 99999999999999}}}'])
def test_a_broken_cluster_file(run, ipython_dir, text):
    security = ipython_dir / "profile_default" / "security"
    security.mkdir(parents=True)
    (security / "cluster-.json").write_text(text)
    run("pxcluster", "list")
    assert run("pxcluster", "stop", check=False).returncode in (1, 11)


def test_a_pid_that_came_to_mean_another_process(run, ipython_dir):
    """A file from before a restart names a pid that is somebody else's now: ours, here."""
    security = ipython_dir / "profile_default" / "security"
    security.mkdir(parents=True)
    file = security / "cluster-.json"
    file.write_text(json.dumps({
        "cluster": {"cluster_id": ""},
        "controller": {"class": "local", "state": {"pid": os.getpid()}},
        "engines": {"class": "local", "sets": {}}}))
    os.utime(file, (1_000_000_000, 1_000_000_000))
    assert "False         0" in run("pxcluster", "list").stdout
    assert run("pxcluster", "stop", check=False).returncode == 11
    assert not file.exists()


# ---- failures: nothing is left, and the reason is told ----


def expect_failure(run, ipython_dir, *options, n=2):
    done = run("pxcluster", "start", "-n", n, "--daemonize", *options, check=False)
    assert done.returncode == 1, done.stderr
    assert not list(ipython_dir.glob("profile_*/security/cluster-*.json"))
    return done.stderr


def without(*capabilities):
    """How to run a program without these, which only root has."""
    dropped = ",".join("-" + name for name in capabilities)
    return ["setpriv", "--bounding-set=" + dropped] if os.geteuid() == 0 else []


@ours
def test_status_of_a_cluster_of_somebody_else(cluster, run):
    security = cluster(1).client_file.parent
    security.chmod(0)
    try:
        done = run(*without("dac_override", "dac_read_search"), "pxcluster", "status", check=False)
    finally:
        security.chmod(0o700)
    assert done.returncode == 11 and done.stderr.endswith("-client.json: Permission denied\n")


def test_few_open_files(run, ipython_dir):
    """The controller died of it, or engines said that nobody answers."""
    narrow = ["sh", "-c", "ulimit -n 128; exec pxcluster start -n 8 --daemonize"]
    done = run(*without("sys_resource"), *narrow, check=False)
    assert done.returncode == 1 and not list(ipython_dir.glob("profile_*"))
    assert done.stderr == (
        "pxcluster start: the controller of 8 engines opens 164 files, and the system allows 128: "
        "raise that (ulimit -Hn), or start fewer\n")


@pytest.mark.parametrize("which", ["--controller-cmd", "--engine-cmd"])
def test_program_that_is_not_there(run, ipython_dir, which):
    other = [o for o in STOCK if not o.startswith(which)]
    said = expect_failure(run, ipython_dir, f"{which}=no-such-program", *other)
    assert "cannot run no-such-program: No such file or directory" in said


def test_engine_that_dies_at_once(run, ipython_dir):
    said = expect_failure(run, ipython_dir, *STOCK[:1],
                          "--engine-cmd=sh -c 'echo the reason is this >&2; exit 3'")
    assert "exit status 3" in said and "the reason is this" in said


def test_controller_that_dies_at_once(run, ipython_dir):
    said = expect_failure(run, ipython_dir,
                          "--controller-cmd=sh -c 'echo no luck today; exit 4'")
    assert "exit status 4" in said and "no luck today" in said


def test_controller_that_never_writes_its_files(run, ipython_dir):
    said = expect_failure(run, ipython_dir, "--controller-cmd=tail -f /dev/null --", "--timeout=1")
    assert "within 1 s" in said or "ended" in said


@ours
@pytest.mark.parametrize("options, words", [
    (["--ip=300.1.1.1"], "pxcontroller: cannot bind tcp://300.1.1.1"),
    (["--", "--no-such-option"], "pxcontroller: unknown option '--no-such-option'"),
    (["--python=/no/such"], "pxengine: /no/such: no Python to run there"),
    (["--profile=no/such"], "profile 'no/such' has a slash in it"),
])
def test_what_a_program_says_is_the_one_line(run, ipython_dir, options, words):
    said = expect_failure(run, ipython_dir, *options)
    assert words in said and said.count("\n") == 1, said


@ours
def test_engine_that_never_registers(run, ipython_dir):
    said = expect_failure(run, ipython_dir, "--engine-cmd=sh -c 'exec tail -f /dev/null'",
                          "--timeout=2")
    assert "sees 0 of 2 engines" in said or "within 2 s" in said
    for index in range(2):
        assert re.search(rf"engine {index} \(pid \d+\) did not register, log /\S+-{index}\.log", said)


HANG = """
import os, signal
def hang_if_second():
    try:
        os.close(os.open({path!r}, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        signal.pause()
{when}
"""


def hanging_python(env, tmp_path, when):
    """The engines' interpreter hangs: `when` is the last line of what it runs at its start."""
    place = tmp_path / "site"
    place.mkdir()
    (place / "sitecustomize.py").write_text(HANG.format(path=str(tmp_path / "first"), when=when))
    env["PYTHONPATH"] = f"{place}:{env['PYTHONPATH']}"


@ours
@pytest.mark.parametrize("front", [False, True], ids=["daemonize", "foreground"])
def test_start_names_the_engine_that_hangs(run, env, tmp_path, ipython_dir, front):
    """One of two registers, the other hangs: the message says which."""
    hanging_python(env, tmp_path, "os.register_at_fork(after_in_child=hang_if_second)")
    options = [] if front else ["--daemonize"]
    for timeout in (2, 10, 40):  # on a busy machine the first engine takes its time, too
        (tmp_path / "first").unlink(missing_ok=True)
        done = run("pxcluster", "start", "-n2", f"--timeout={timeout}", *options, check=False)
        assert done.returncode == 1
        if "(1 of 2 engines had registered)" in done.stderr:
            break
    named = re.findall(r"^pxcluster: engine process (\d+) did not register, log (/\S+)$",
                       done.stderr, re.M)
    assert len(named) == 1, done.stderr
    assert "/log/" in named[0][1] and not alive(int(named[0][0]))
    assert not list(ipython_dir.glob("profile_*/security/cluster-*.json"))


@ours
def test_start_names_a_fork_server_that_hangs(run, env, tmp_path, ipython_dir):
    hanging_python(env, tmp_path, "import sys; 'pxengine' in open('/proc/self/cmdline').read() and "
                                  "signal.pause()")
    said = expect_failure(run, ipython_dir, "--timeout=2")
    assert "(0 of 2 engines had registered)" in said
    assert re.search(r"process \d+ has started 0 of 2 engines, log /\S+", said)


@pytest.mark.parametrize("mix", [MIXES[0], MIXES[2]])
def test_controller_killed_ends_all(foreground, ipython_dir, mix):
    process = foreground(*mix)
    where = Cluster(ipython_dir, "default", "")
    pids = where.engine_pids
    os.kill(where.controller_pid, signal.SIGKILL)
    assert process.wait(timeout=20) == 1
    assert "controller" in process.stderr.read()
    assert not any(map(alive, pids))
    assert not where.cluster_file.exists()
    assert mix == [] or not where.client_file.exists() and not where.engine_file.exists()


@ours
def test_supervisor_killed_takes_all_along(cluster):
    where = cluster(2)
    pids = [where.controller_pid, *where.engine_pids]
    os.kill(supervisor_of(pids[0]), signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids)), what="controller and engines to end")


@ours
def test_start_after_a_supervisor_was_killed(cluster, run):
    where = cluster(1)
    pids = [where.controller_pid, *where.engine_pids]
    os.kill(supervisor_of(pids[0]), signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids)), what="controller and engines to end")
    run("pxcluster", "start", "-n1", "--daemonize")


@ours
@pytest.mark.parametrize("stopped", [False, True])
def test_fork_server_killed(cluster, run, stopped):
    """Its engines end by themselves, or, where they cannot, are ended."""
    where = cluster(2)
    engines = where.engine_pids
    for pid in engines * stopped:
        os.kill(pid, signal.SIGSTOP)
    os.kill(supervisor_of(engines[0]), signal.SIGKILL)
    wait_for(lambda: not any(map(alive, engines)), what="orphaned engines to end")
    assert alive(where.controller_pid)
    wait_for(lambda: where.engine_pids == [], what="the file to say so")


@ours
def test_engine_killed_leaves_the_file(cluster):
    where = cluster(2)
    os.kill(where.engine_pids[0], signal.SIGKILL)
    wait_for(lambda: len(where.engine_pids) == 1, what="the file to say so")


@ours
def test_interrupted_while_starting(env, px_bin, ipython_dir):
    """The command in front is interrupted before the cluster is ready: the daemon ends too."""
    process = subprocess.Popen(
        [px_bin / "pxcluster", "start", "-n1", "--daemonize",
         "--engine-cmd=sh -c 'exec tail -f /dev/null'"], env=env, stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True)
    file = ipython_dir / "profile_default/security/cluster-.json"
    wait_for(file.exists, what="the cluster file")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 1
    wait_for(lambda: not processes_with(f"IPYTHONDIR={ipython_dir}"), what="the end of every process")
    process.stderr.close()


@ours
@pytest.mark.parametrize("kind", ["pidfd", "pipe"])
def test_ends_with_its_parent(run, env, ipython_dir, kind):
    """A daemon lives on when its terminal closes, but not when the program that asked has ended."""
    parent = subprocess.Popen(["cat"], env={}, stdin=subprocess.PIPE)
    fd, far = (os.pidfd_open(parent.pid), -1) if kind == "pidfd" else os.pipe()
    try:
        run("pxcluster", "start", "-n2", "--daemonize", f"--parent-fd={fd}", pass_fds=[fd])
        where = Cluster(ipython_dir, "default", "")
        assert all(map(alive, [where.controller_pid, *where.engine_pids]))
        parent.kill()
        if far >= 0:
            os.close(far)
        wait_for(lambda: not processes_with(f"IPYTHONDIR={ipython_dir}"), what="the cluster's end")
        assert not where.cluster_file.exists() and not where.client_file.exists()
        assert "has ended: stopping" in where.logs()
    finally:
        os.close(fd)
        parent.kill()
        parent.communicate()


@ours
def test_parent_gone_while_starting(env, px_bin, ipython_dir):
    fd, far = os.pipe()
    process = subprocess.Popen(
        [px_bin / "pxcluster", "start", "-n1", "--daemonize", f"--parent-fd={fd}",
         "--engine-cmd=sh -c 'exec tail -f /dev/null'"], env=env, stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, pass_fds=[fd])
    os.close(fd)
    wait_for((ipython_dir / "profile_default/security/cluster-.json").exists, what="the file")
    os.close(far)
    assert process.wait(timeout=20) == 1
    assert "has ended: stopping" in process.stderr.read()
    wait_for(lambda: not processes_with(f"IPYTHONDIR={ipython_dir}"), what="the end of every process")
    process.stderr.close()


@ours
def test_waiting_command_killed_while_starting(env, px_bin, ipython_dir):
    process = subprocess.Popen(
        [px_bin / "pxcluster", "start", "-n1", "--daemonize",
         "--engine-cmd=sh -c 'exec tail -f /dev/null'"], env=env, stdin=subprocess.DEVNULL)
    wait_for((ipython_dir / "profile_default/security/cluster-.json").exists, what="the file")
    process.kill()
    process.wait()
    wait_for(lambda: not processes_with(f"IPYTHONDIR={ipython_dir}"), what="the daemon to end")


def test_an_engine_deaf_to_sigterm_is_killed(run, ipython_dir):
    """The grace is 5 s; then SIGKILL, and its process group with it."""
    begun = time.monotonic()
    expect_failure(run, ipython_dir, *STOCK[:1], "--timeout=1", n=1,
                   *["--engine-cmd=sh -c 'trap : TERM; while :; do wait; tail -f /dev/null & done'"])
    assert time.monotonic() - begun < 20


# ---- cleaning ----


@ours
def test_clean(cluster, run):
    where = cluster(1)
    assert run("pxcluster", "clean", check=False).returncode == 1
    assert where.logs()
    run("pxcluster", "stop")
    run("pxcluster", "clean")
    assert not list((where.profile_dir / "log").iterdir())
