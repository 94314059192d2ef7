# SPDX-License-Identifier: BSD-3-Clause
"""pxengine: against a hub that the test plays, frame by frame, and against ipyparallel's."""
import contextlib
import ctypes
import datetime
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

from pathlib import Path

import pytest
import zmq
import conftest
from conftest import PYTHON, alive, controller_ports, stock_controller as stock_command, wait_for
from hub import TIMEOUT, Engines, Hub

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.fixture
def hub(ipython_dir):
    hub = Hub(ipython_dir / "profile_default")
    yield hub
    hub.close()


@pytest.fixture
def start(env):
    started = []

    def start(*options, language="echo", **kwargs):
        started.append(Engines(env, [f"--language={language}", *map(str, options)], **kwargs))
        return started[-1]

    yield start
    for engines in started:
        engines.process.terminate()
        try:
            engines.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            engines.process.kill()
            engines.process.communicate()
        engines.ready.close()


# ---- registration --------------------------------------------------------------------

@pytest.mark.parametrize("language, features", [
    ("echo", ["recall", "again"]),
    ("python", ["recall", "again", "pickle5", "python{}.{}".format(*sys.version_info), "stacks"]),
])
def test_registration_names_uuid_and_features(hub, start, language, features):
    hub.write()
    start(language=language)
    _, msg = hub.receive("registration")
    assert set(msg["content"]) == {"uuid", "px"}
    assert msg["content"]["px"]["features"] == [*features, "host:" + socket.gethostname()]
    assert msg["header"]["session"] == msg["content"]["uuid"]


def test_ident_and_id_are_asked_for(hub, start):
    hub.write()
    start("--ident=me", "--id=42")
    _, msg = hub.receive("registration")
    assert msg["content"]["uuid"] == "me" and msg["content"]["id"] == 42


def test_registered_engine_says_so(hub, start):
    hub.write()
    engines = start()
    hub.join(3)
    engine_id, pid = engines.registered()
    assert engine_id == 3 and alive(pid)
    topic, msg = hub.receive("iopub")
    assert topic == [b"engine.3.status"]
    assert msg["content"] == {"execution_state": "starting"} and msg["parent_header"] == {}
    engines.process.terminate()
    assert engines.exited() == (pid, "exit status 0")
    status, err = engines.end()
    assert status == 0 and "Completed registration with id 3" in err


def test_exit_ends_an_engine_at_once(hub, start):
    """Nobody sits before it; what is sent meanwhile would be lost with it."""
    hub.write()
    engines = start()
    uuid = hub.join()
    _, pid = engines.registered()
    hub.send("mux", [uuid, b"c"], "execute_request", {"code": "exit", "silent": True})
    assert hub.receive("mux")[1]["content"]["status"] == "ok"
    hub.send("mux", [uuid, b"c"], "execute_request", {"code": "print late", "silent": True})
    assert engines.exited() == (pid, "exit status 0")
    while hub.sockets["mux"].poll(0):
        assert hub.receive("mux")[1]["content"]["status"] != "ok"


def test_connection_file_may_come_later(hub, start):
    engines = start()
    with pytest.raises(subprocess.TimeoutExpired):
        engines.process.wait(0.5)
    hub.write()
    hub.join()
    assert engines.registered()[0] == 0


def test_connection_comes_by_environment(hub, start, env):
    hub.write()
    env["IPP_CONNECTION_INFO"] = hub.file.read_text()
    hub.file.unlink()
    start()
    hub.join()


def test_profile_cluster_and_key_come_by_environment(hub, start, env, tmp_path):
    hub.write(key="")
    profile = hub.file.parents[1].rename(tmp_path / "elsewhere")
    security = profile / "security"
    (security / hub.file.name).rename(security / "ipcontroller-two-engine.json")
    env.update(IPP_PROFILE_DIR=str(profile), IPP_CLUSTER_ID="two", IPP_SESSION_KEY="secret")
    start()
    hub.join()


def test_a_refused_registration_ends_with_the_reason(hub, start):
    hub.write()
    engines = start()
    hub.register(status="error", ename="KeyError", evalue="uuid 'x' in use", traceback=[])
    status, err = engines.end()
    assert status == 1 and "uuid 'x' in use" in err


@pytest.mark.parametrize("reply", [{"id": None}, {"id": -1}, {"id": "zero"}])
def test_a_senseless_reply_ends_the_engine(hub, start, reply):
    hub.write()
    engines = start()
    hub.register(**reply)
    status, err = engines.end()
    assert status == 1 and "no engine id" in err


def test_a_silent_hub_is_given_up(hub, start):
    hub.write()
    engines = start("--timeout=0.5")
    hub.receive("registration")
    idents, msg = hub.receive("registration")
    assert msg["msg_type"] == "unregistration_request" and msg["content"] == {"id": None}
    status, err = engines.end()
    assert status == 1 and "did not answer" in err


@pytest.mark.parametrize("changes, word", [
    ({"key": "wrong"}, "did not answer"), ({"registration": ...}, "registration"),
    ({"broadcast": []}, "broadcast"), ({"pack": "pickle"}, "pack"),
])
def test_bad_connection_files(hub, start, changes, word):
    hub.write(**changes)
    engines = start("--wait=0", "--timeout=0.5")
    status, err = engines.end()
    assert status == 1 and word in err


@pytest.mark.parametrize("options, variable, one", [
    ([], None, False),
    (["--profile=default"], None, False),
    (["--cluster-id", "", "--profile-dir", "PROFILE"], None, True),  # as 7.1's launchers
    ([], "IPP_CLUSTER_ID", True),  # as 9.x's
    (["--id=3"], None, True),
    ([], "PMI_RANK", True),
    (["-n3"], "PMI_RANK", None),
])
def test_there_is_an_engine_a_processor_or_one_of_a_launcher(hub, start, env, options, variable,
                                                             one):
    hub.write()
    if variable:
        env[variable] = "0"
    profile = hub.file.parents[1]
    engines = start("--timeout=0.2", *[profile if word == "PROFILE" else word for word in options],
                    f"--file={hub.file}", count=())
    said = engines.ready.read()  # nobody answers them, and they end
    allowed = len(os.sched_getaffinity(0))
    assert said.count("started ") == (3 if one is None else 1 if one else allowed)


def test_missing_profile_and_file(start):
    status, err = start("--wait=0").end()
    assert status == 1 and "profile_default" in err and len(err.splitlines()) == 1
    assert err.endswith("is a cluster running? (pxcluster start)\n")
    status, err = start("--wait=0", "--file=/nowhere/x.json").end()
    assert status == 1 and "/nowhere/x.json" in err and len(err.splitlines()) == 1
    assert err.endswith("is a cluster running? (pxcluster start)\n")


def test_the_url_overrides_the_file(hub, start):
    hub.write(interface="tcp://192.0.2.1", registration=1)
    start(f"--url=tcp://127.0.0.1:{hub.ports['registration']}")
    hub.join()


def said_at_the_start(hub, engine_id):
    """What the next engine prints at its start; it is to ask for that id."""
    _, msg = hub.receive("registration")
    assert msg["content"]["id"] == engine_id
    hub.send("registration", [msg["content"]["uuid"].encode()], "registration_reply",
             {"status": "ok", "id": engine_id, "hb_period": 3000})
    hub.receive("iopub")
    return hub.receive("iopub")[1]["content"]["text"]


def test_ipengine_s_names_for_the_same(hub, start, env, tmp_path):
    hub.write()
    file = hub.file.rename(tmp_path / "elsewhere.json")
    (tmp_path / "script").write_text("print one")
    start(f"--IPEngine.url_file={file}", "--IPEngine.timeout=60", "--clean-logs=True", "--s",
          tmp_path / "script", "--c=print two", "--IPEngine.id=7", "--IPEngine.work_dir=/",
          "--BaseParallelApplication.log_to_file=False", "--IPEngine.enable_nanny=False",
          "--IPEngine.wait_for_url_file=0.5")
    assert said_at_the_start(hub, 7) == "one\ntwo\n"


def test_names_of_former_versions(hub, start, ipython_dir):
    """Profiles outlive them."""
    hub.write()
    (ipython_dir / "profile_default" / "ipengine_config.py").write_text(
        "c.IPEngineApp.wait_for_url_file = 60\nc.EngineFactory.timeout = 20\n"
        "c.IPEngineApp.startup_command = 'print profile'\n")
    start("--EngineFactory.id=7")
    assert said_at_the_start(hub, 7) == "profile\n"


def test_configuration_files_say_what_options_would(hub, start, ipython_dir, tmp_path):
    hub.write(key="of another")
    (tmp_path / "key").write_text("secret\n")
    (tmp_path / "more.json").write_text('{"IPEngine": {"startup_command": "print more"}}')
    (ipython_dir / "profile_default" / "ipengine_config.py").write_text(
        f"c.IPEngine.id = 7  # not the eighth\nc.Session.keyfile = {str(tmp_path / 'key')!r}\n"
        "c.IPEngine.startup_command = 'print profile'\nc.InteractiveShell.no_such = 3\n")
    for options, wanted, said in ([], 7, "profile\n"), (["--id=8"], 8, "profile\n"), (
            ["--config", tmp_path / "more.json"], 7, "more\n"):
        start(*options)
        assert said_at_the_start(hub, wanted) == said


def test_a_configuration_may_be_a_program(hub, start, ipython_dir):
    hub.write()
    config = ipython_dir / "profile_default" / "ipengine_config.py"
    config.write_text("import os\nc.IPEngine.id = 3 + 4\n"
                      "c.IPEngine.startup_command = os.linesep.join(['print one', 'print two'])\n")
    start()
    assert said_at_the_start(hub, 7) == "one\ntwo\n"
    config.write_text("c.IPEngine.id = nothing\n")
    status, err = start().end()
    assert status == 2 and err.startswith("pxengine: ") and err.count("\n") == 1
    assert f"{config}: NameError" in err


def test_startup_files_run_at_the_start(hub, start, env, ipython_dir, tmp_path):
    """$PYTHONSTARTUP, then the profile's: before anything is asked of the engine."""
    hub.write()
    startup = ipython_dir / "profile_default" / "startup"
    startup.mkdir()
    (tmp_path / "first.py").write_text("order = ['environment']")
    env["PYTHONSTARTUP"] = str(tmp_path / "first.py")
    (startup / "10-second.py").write_text("print(order + ['profile'])")
    start(language="python")
    hub.join()
    hub.receive("iopub")
    topic, msg = hub.receive("iopub")
    assert topic == [b"engine.0.stdout"]
    assert msg["content"]["text"].strip() == "['environment', 'profile']"


@pytest.mark.parametrize("file", ["ipython_config.py", "ipengine_config.py"])
def test_configured_code_runs_in_the_engine(hub, start, ipython_dir, file):
    """Not once in the fork server, which starts the shell for all engines where nothing is
    configured."""
    hub.write()
    (ipython_dir / "profile_default" / file).write_text(
        "c.InteractiveShellApp.exec_lines = ['import os; print(os.getpid())']\n")
    engines = start(language="python")
    uuid = hub.join()
    hub.send("mux", [uuid, b"c"], "execute_request", {"code": "pass", "silent": True})
    topic, msg = hub.receive("iopub")
    while topic != [b"engine.0.stdout"]:
        topic, msg = hub.receive("iopub")
    assert msg["content"]["text"].strip() == str(engines.registered()[1])


def test_log_to_file(hub, start, ipython_dir):
    (ipython_dir / "profile_default" / "log").mkdir(parents=True)
    hub.write(**{"key": "secret"})
    engines = start("--log-to-file")
    hub.join(2)
    engines.process.terminate()
    assert engines.end() == (0, "")
    log, = (ipython_dir / "profile_default" / "log").glob("ipengine-*.log")
    assert "Completed registration with id 2" in log.read_text()


@pytest.mark.parametrize("option, words", [
    ("--prfile=x", "did you mean '--profile'?"), ("--log-levle=10", "did you mean '--log-level'?"),
    ("--IPEngine.timeot=3", "did you mean '--timeout'?"),
    ("--log-to-file=perhaps", "True or False"),
    ("--log-url=tcp://x:1", "--log-to-file"), ("--url=here", "transport://host:port"),
    ("--url=tcp://here:99999", "transport://host:port"), ("--url=tcp://::1:99", "transport://host:port"),
    ("--url=tcp://:99", "transport://host:port"), ("--script=/nowhere/x.py", "/nowhere/x.py"),
])
def test_a_wrong_option_is_told_in_one_line(hub, start, option, words):
    hub.write()
    status, err = start(option).end()
    assert status == (1 if "/nowhere" in option else 2)
    assert err.startswith("pxengine: ") and words in err and err.count("\n") == 1


@pytest.mark.parametrize("options", [["-n", "0"], ["--nonsense"], ["word"], ["-n2", "--ident=x"], ["--ident=a\"b"], ["--restart=always"],
                                     ["--timeout=0"]])
def test_misuse_exits_2(start, options):
    status, err = start(*options).end()
    assert status == 2 and err.startswith("pxengine: ")


# ---- heart ---------------------------------------------------------------------------------

def test_pings_come_back_while_the_engine_works(hub, start):
    hub.write()
    start()
    uuid = hub.join()
    hub.send("mux", [uuid, b"c"], "execute_request", {"code": "sleep 60", "silent": True})
    for ping in (b"0.5", b"1.0"):
        hub.sockets["hb_ping"].send(ping)
        assert hub.sockets["hb_pong"].poll(TIMEOUT * 1000)
        assert hub.sockets["hb_pong"].recv_multipart() == [uuid, ping]


def test_who_has_missed_pings_asks_before_it_echoes(hub, start):
    """The hub may have given it up meanwhile, although no connection was lost."""
    hub.write()
    start()
    uuid = hub.join(hb_period=10)
    assert hub.silent("registration", 0.7)  # no ping either
    hub.sockets["hb_ping"].send(b"1.0")
    idents, msg = hub.receive("registration")
    assert msg["msg_type"] == "connection_request" and hub.silent("hb_pong", 0)
    hub.send("registration", idents, "connection_reply", {"status": "ok", "engines": {}})
    assert hub.register() == uuid
    assert hub.sockets["hb_pong"].poll(TIMEOUT * 1000)
    assert hub.sockets["hb_pong"].recv_multipart() == [uuid, b"1.0"]


@pytest.mark.parametrize("name", ["task", "control"])
def test_a_lost_connection_is_told_to_the_hub(hub, start, name):
    hub.write()
    start()
    uuid = hub.join()
    hub.sockets[name].close()

    def asks():
        hub.sockets["hb_ping"].send(b"1.0")
        return hub.sockets["registration"].poll(50)

    wait_for(asks, TIMEOUT, "a question")
    idents, msg = hub.receive("registration")
    assert idents == [uuid] and msg["msg_type"] == "connection_request"


def test_a_hub_that_is_gone_ends_the_engine(hub, start):
    hub.write()
    engines = start("--max-heartbeat-misses=1")
    hub.join(5, hb_period=10)
    _, msg = hub.receive("registration")
    assert msg["msg_type"] == "unregistration_request" and msg["content"] == {"id": 5}
    status, err = engines.end()
    assert status == 0 and "hub.gone" in err


# ---- requests --------------------------------------------------------------------------------

@pytest.fixture
def engine(hub, start):
    """(hub, uuid) of a registered echo engine whose status "starting" was read."""
    hub.write()
    start()
    uuid = hub.join()
    hub.receive("iopub")
    return hub, uuid


@pytest.mark.parametrize("name", ["mux", "task", "leaf0"])
def test_each_scheduler_gets_its_replies(engine, name):
    hub, uuid = engine
    metadata = {"is_broadcast": True, "label": "mine", "original_msg_id": "o"}
    msg_id = hub.send(name, [uuid, b"client", b"other"], "apply_request", metadata=metadata,
                      buffers=[b"abc", b""])
    idents, reply = hub.receive(name)
    assert idents == [uuid, b"client", b"other"]
    assert reply["msg_type"] == "apply_reply" and reply["content"] == {"status": "ok"}
    assert [bytes(b) for b in reply["buffers"]] == [b"abc", b""]
    assert reply["parent_header"]["msg_id"] == msg_id
    got = reply["metadata"]
    assert got.pop("started")
    assert got == {"dependencies_met": True, "engine": uuid.decode(), "status": "ok",
                   "is_coalescing": False, **metadata}


def test_a_reply_waits_behind_output(engine):
    """Programs look at what a result has printed as soon as it is ready, and output goes another
    way; clients of ours count what they get."""
    hub, uuid = engine
    hub.send("mux", [uuid, b"c"], "execute_request", {"code": "print hi"})
    while (shown := hub.receive("iopub")[1])["msg_type"] != "stream":
        pass
    reply = hub.receive("mux")[1]
    first, then = (  # texts, where another test has imported what leaves them alone
        datetime.datetime.fromisoformat(str(msg["header"]["date"]).replace("Z", "+00:00"))
        for msg in (shown, reply))
    assert (then - first).total_seconds() >= 0.002


def test_execute_publishes_on_engine_topics(engine):
    hub, uuid = engine
    hub.send("mux", [uuid, b"c"], "execute_request",
             {"code": "print hi\nwarn oh\nshow s\nr", "silent": False})
    topics = [hub.receive("iopub") for _ in range(7)]
    assert [t[0] for t, _ in topics] == [
        b"engine.0.status", b"engine.0.execute_input", b"engine.0.stdout", b"engine.0.stderr",
        b"engine.0.displaypub", b"engine.0.execute_result", b"engine.0.status"]
    assert all(m["metadata"] == {"engine": uuid.decode()} for _, m in topics)
    _, reply = hub.receive("mux")
    assert reply["content"]["execution_count"] == 1
    assert reply["metadata"]["px_outputs"] == 5  # all but the statuses


def deaf(hub, start):
    """The uuid of an echo engine whose relay has not subscribed, and that was given a cell."""
    hub.write()
    hub.sockets["iopub"].unsubscribe(b"")
    start()
    uuid = hub.register()
    wait_for(lambda: hub.sockets["hb_ping"].poll(0), TIMEOUT, "its heart, which says that it serves")
    hub.send("mux", [uuid, b"c"], "execute_request", {"code": "print hi", "silent": True})
    return uuid


def test_output_waits_for_the_relay(hub, start):
    deaf(hub, start)
    hub.sockets["iopub"].subscribe(b"")
    wait_for(lambda: hub.sockets["iopub"].poll(0), TIMEOUT, "what was held")
    contents = [hub.receive("iopub")[1]["content"] for _ in range(4)]
    assert contents == [{"execution_state": "starting"}, {"execution_state": "busy"},
                        {"name": "stdout", "text": "hi\n"}, {"execution_state": "idle"}]
    assert hub.receive("mux")[1]["content"]["status"] == "ok"


@pytest.mark.stock
def test_a_relay_that_never_listens_is_given_up(hub, start):
    deaf(hub, start)
    assert hub.receive("mux")[1]["content"]["status"] == "ok"
    assert not hub.sockets["iopub"].poll(0)


def test_errors_name_the_engine(engine):
    hub, uuid = engine
    hub.send("mux", [uuid, b"c"], "execute_request", {"code": "error no", "silent": True})
    _, reply = hub.receive("mux")
    where = {"engine_uuid": uuid.decode(), "engine_id": 0}
    assert reply["content"]["engine_info"] == {**where, "method": "execute"}
    assert reply["metadata"]["engine_info"] == where


def test_engines_take_no_input(engine):
    hub, uuid = engine
    hub.send("mux", [uuid, b"c"], "execute_request",
             {"code": "input x", "silent": True, "allow_stdin": True})
    _, reply = hub.receive("mux")
    assert reply["content"]["ename"] == "StdinNotImplementedError"


def test_control_interrupts_aborts_and_clears_while_busy(engine):
    hub, uuid = engine
    hub.send("mux", [uuid, b"c"], "execute_request", {"code": "print go\nsleep 60", "silent": True})
    hub.receive("iopub")
    hub.receive("iopub")  # the stream: it runs
    waiting = hub.send("task", [uuid, b"c"], "apply_request")
    asked = hub.send("control", [uuid, b"c"], "abort_request", {"msg_ids": [waiting]})
    _, reply = hub.receive("control")
    assert reply["parent_header"]["msg_id"] == asked and reply["content"] == {"status": "ok"}
    _, reply = hub.receive("task")
    assert reply["parent_header"]["msg_id"] == waiting
    assert reply["content"] == {"status": "aborted"}
    assert reply["metadata"]["status"] == "aborted"
    hub.send("control", [uuid, b"c"], "signal_request", {"sig": "SIGINT"})
    assert hub.receive("control")[1]["content"] == {"status": "ok"}
    assert hub.receive("mux")[1]["content"]["ename"] == "KeyboardInterrupt"
    hub.send("control", [uuid, b"c"], "clear_request")
    assert hub.receive("control")[1]["msg_type"] == "clear_reply"


def test_a_signal_for_a_task_hits_no_other(engine):
    hub, uuid = engine
    ask = ([uuid, b"c"], "execute_request", {"code": "print go\nsleep 60", "silent": True})
    running = hub.send("mux", *ask)
    hub.receive("iopub")
    hub.receive("iopub")  # the stream: it runs
    waiting = hub.send("mux", *ask)
    for meant in "ended or to come", waiting, running:
        hub.send("control", [uuid, b"c"], "signal_request", {"sig": "SIGINT", "px_or_abort": meant})
        assert hub.receive("control")[1]["content"] == {"status": "ok"}
    replies = [hub.receive("mux")[1] for _ in range(2)]
    assert [(reply["parent_header"]["msg_id"], reply["content"].get("ename") or reply["content"]["status"])
            for reply in replies] == [(waiting, "aborted"), (running, "KeyboardInterrupt")]


@pytest.mark.parametrize("content, ename", [({}, "KeyError"), ({"sig": "SIGNONE"}, "AttributeError"),
                                            ({"sig": 1000}, "AttributeError")])
def test_bad_signals_are_refused(engine, content, ename):
    hub, uuid = engine
    hub.send("control", [uuid, b"c"], "signal_request", content)
    assert hub.receive("control")[1]["content"]["ename"] == ename


def test_shutdown_replies_everywhere_and_ends(hub, start):
    hub.write()
    engines = start()
    uuid = hub.join()
    hub.send("control", [uuid, b"c"], "shutdown_request", {"restart": False})
    assert hub.receive("control")[1]["content"] == {"status": "ok", "restart": False}
    while True:
        topic, msg = hub.receive("iopub")
        if topic == [b"engine.0.shutdown"]:
            break
    assert msg["header"]["session"] == uuid.decode()
    assert engines.end()[0] == 0


def test_garbage_on_every_socket_is_dropped(engine):
    hub, uuid = engine
    for name in ("mux", "task", "control", "leaf0", "registration"):
        for frames in ([b""], [b"<IDS|MSG>"], [b"x"] * 50, [b"<IDS|MSG>", b"bad", *[b"{}"] * 4]):
            hub.sockets[name].send_multipart([uuid, *frames])
    hub.send("mux", [uuid, b"c"], "apply_request")
    assert hub.receive("mux")[1]["content"] == {"status": "ok"}


# ---- the fork server ----------------------------------------------------------------------------

def test_many_engines_and_a_death_that_the_hub_hears_of(hub, start):
    hub.write()
    engines = start("-n", 3)
    hub.join_all(3)
    pids = dict(engines.registered() for _ in range(3))
    assert set(pids) == {0, 1, 2} and len(set(pids.values())) == 3
    began = time.monotonic()
    os.kill(pids[1], signal.SIGKILL)
    _, msg = hub.receive("registration")
    assert msg["msg_type"] == "unregistration_request" and msg["content"]["id"] == 1
    assert time.monotonic() - began < 2
    pid, cause = engines.exited()
    assert pid == pids[1] and re.fullmatch(r"killed by SIGKILL, peak \d+ MB", cause)
    assert msg["content"]["px"] == {"cause": cause, "running": None}
    assert alive(pids[0]) and alive(pids[2]) and engines.process.poll() is None
    engines.process.terminate()
    assert {engines.exited(), engines.exited()} == {(pids[0], "exit status 0"),
                                                    (pids[2], "exit status 0")}
    assert engines.end()[0] == 0


def test_engines_raise_a_low_limit_of_open_files(hub, start):
    hub.write()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    start("-n", 2, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (16, most)))
    hub.join_all(2)


def ill_at_ease():
    """What a careless parent leaves: children's ends ignored, signals blocked, no descriptors."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    os.close(0)
    os.close(1)


def test_what_a_careless_parent_left_is_put_right(hub, start):
    hub.write()
    engines = start("-n", 1, preexec_fn=ill_at_ease)
    hub.join()
    _, pid = engines.registered()
    status = Path(f"/proc/{pid}/status")
    wait_for(lambda: "SigBlk:\t0000000000000000" in status.read_text(),  # not while a thread starts
             TIMEOUT, "signals that come")
    assert "SigIgn:\t0000000000010000" not in status.read_text()
    os.kill(pid, signal.SIGTERM)
    assert engines.exited() == (pid, "exit status 0")
    assert engines.process.wait(timeout=TIMEOUT) == 0


def test_a_dead_engine_is_replaced_when_asked(hub, start):
    hub.write()
    engines = start("-n", 2, "--restart=on-failure")
    hub.join_all(2)
    pids = dict(engines.registered() for _ in range(2))
    os.kill(pids[1], signal.SIGKILL)
    seen = {}
    while len(seen) < 2:  # the death and the new life come in either order
        idents, msg = hub.receive("registration")
        seen[msg["msg_type"]] = idents, msg["content"]
    assert seen["unregistration_request"][1]["id"] == 1
    hub.send("registration", seen["registration_request"][0], "registration_reply",
             {"status": "ok", "id": 2, "hb_period": 3000})
    assert engines.exited()[0] == pids[1]
    new_id, new_pid = engines.registered()
    assert new_id == 2 and new_pid not in pids.values()
    engines.process.terminate()
    assert engines.end()[0] == 0


@pytest.mark.parametrize("stop", [True, False], ids=["asked", "all-dead"])
def test_nothing_outlives_the_fork_server(hub, start, ipython_dir, stop):
    hub.write()
    engines = start("-n", 2)
    hub.join_all(2)
    pids = dict(engines.registered() for _ in range(2))
    text = f"IPYTHONDIR={ipython_dir}"
    assert len(conftest.processes_with(text)) == 4  # with the nanny, which speaks for the dead
    hub.close()  # but now nobody hears it
    os.kill(pids[0], signal.SIGKILL)
    engines.exited()
    if stop:
        engines.process.terminate()
    else:
        os.kill(pids[1], signal.SIGKILL)
    assert engines.process.wait(timeout=TIMEOUT) == (0 if stop else 1)
    assert not conftest.processes_with(text)


def test_engines_go_down_with_a_killed_fork_server(hub, start):
    hub.write()
    engines = start("-n", 2)
    assert len(set(hub.join_all(2))) == 2
    pids = [engines.registered()[1] for _ in range(2)]
    engines.process.kill()
    told = set()
    while told != {0, 1}:
        _, msg = hub.receive("registration")
        assert msg["msg_type"] == "unregistration_request"
        told.add(msg["content"]["id"])
    wait_for(lambda: not any(map(alive, pids)), what="the engines' end")


def test_sigint_to_the_fork_server_interrupts_every_engine(hub, start):
    hub.write()
    engines = start("-n", 2)
    uuids = hub.join_all(2)
    for _ in range(2):
        engines.registered()
    for uuid in uuids:
        wait_for(lambda: sends(hub, uuid, "print go\nsleep 60"), what="the engine on mux")
    running = 0
    while running < 2:
        topic, _ = hub.receive("iopub")
        running += topic[0].endswith(b".stdout")
    engines.process.send_signal(signal.SIGINT)
    for _ in range(2):
        assert hub.receive("mux")[1]["content"]["ename"] == "KeyboardInterrupt"


def sends(hub, uuid, code):
    """True when the mux socket knows the engine, and the code went there."""
    hub.sockets["mux"].router_mandatory = True
    try:
        hub.send("mux", [uuid, b"c"], "execute_request", {"code": code, "silent": True})
    except zmq.ZMQError:
        return False
    return True


def test_code_runs_before_the_first_request(hub, start):
    hub.write()
    start("-c", "print first")
    hub.join()
    hub.receive("iopub")
    topic, msg = hub.receive("iopub")
    assert topic == [b"engine.0.stdout"] and msg["content"]["text"] == "first\n"


def test_a_stuck_engine_still_ends_on_sigterm(hub, start):
    hub.write()
    engines = start(language="python")
    uuid = hub.join()
    hub.send("mux", [uuid, b"c"], "execute_request", {
        "silent": True,
        "code": "import time\nprint('go', flush=True)\n"
                "while True:\n    try: time.sleep(60)\n    except BaseException: pass"})
    while not hub.receive("iopub")[0][0].endswith(b".stdout"):
        pass
    engines.process.terminate()
    assert engines.end()[0] == 0


def answers(hub, uuid, ping):
    """The heart echoes, and control replies."""
    hub.sockets["hb_ping"].send(ping)
    assert hub.sockets["hb_pong"].poll(TIMEOUT * 1000)
    assert hub.sockets["hb_pong"].recv_multipart() == [uuid, ping]
    asked = hub.send("control", [uuid, b"c"], "kernel_info_request")
    assert hub.receive("control")[1]["parent_header"]["msg_id"] == asked


@pytest.mark.parametrize("code", [
    "import time; time.sleep(60)",
    "while True: pass",
    "sum(range(10**12))",  # one call into C that never gives the lock up
    "import re; re.match('(a+)+b', 'a' * 60)",  # the same, and deaf to signals
], ids=["sleeps", "computes", "holds-the-lock", "deaf"])
def test_answers_whatever_python_does(hub, start, code):
    hub.write()
    engines = start(language="python")
    uuid = hub.join()
    run_until_go(hub, uuid, code)
    for ping in (b"1", b"2", b"3"):
        answers(hub, uuid, ping)
    assert hub.silent("mux", 0)
    engines.process.terminate()  # and it ends, too
    assert engines.end()[0] == 0


@pytest.mark.prompt
def test_answers_while_large_buffers_pass(hub, start):
    hub.write()
    start()
    uuid = hub.join(hb_period=600_000)
    payload = bytes(100 << 20)
    for turn in range(4):
        hub.send("task", [uuid, b"c"], "apply_request", buffers=[payload])
        answers(hub, uuid, b"%d" % turn)
        assert hub.receive("task", 60)[1]["buffers"][0].nbytes == len(payload)


def run_until_go(hub, uuid, code):
    """Sends code to Python that prints "go" first; the message's id, when it has printed."""
    msg_id = hub.send("mux", [uuid, b"c"], "execute_request",
                      {"silent": True, "code": f"print('go', flush=True)\n{code}"})
    while not hub.receive("iopub")[0][0].endswith(b".stdout"):
        pass
    return msg_id


# ---- where it is, and why it died ---------------------------------------------------------------

@pytest.mark.prompt
@pytest.mark.parametrize("code", [
    "def f():\n    import time; time.sleep(60)\nf()",
    "def f():\n    while True: pass\nf()",
    "def f():\n    sum(range(10**10))\nf()",  # one call into C that never gives the lock up
], ids=["sleeps", "computes", "holds-the-lock"])
def test_stacks_of_a_busy_engine(hub, start, code):
    hub.write()
    start(language="python")
    uuid = hub.join()
    hub.send("control", [uuid, b"c"], "stacks_request")
    idle = hub.receive("control")[1]["content"]
    assert idle["status"] == "ok" and idle["busy"] is None
    msg_id = run_until_go(hub, uuid, code)

    def in_f():  # it may have printed and not called f yet
        hub.send("control", [uuid, b"c"], "stacks_request")
        _, reply = hub.receive("control")
        assert reply["msg_type"] == "stacks_reply"
        assert reply["content"]["stacks"].count("(most recent call first)") == 1
        return " in f\n" in reply["content"]["stacks"] and reply["content"]

    for _ in range(2):  # the second is alone in its reply, too
        content = wait_for(in_f, what="f in the stacks")
        assert content["pid"] == idle["pid"]
        assert content["busy"]["msg_id"] == msg_id
        assert content["busy"]["msg_type"] == "execute_request" and content["busy"]["since_s"] >= 0


@pytest.mark.prompt
def test_stacks_of_every_thread(hub, start):
    hub.write()
    start(language="python")
    uuid = hub.join()
    run_until_go(hub, uuid, "import threading\ndef waits(): threading.Event().wait()\n"
                            "threading.Thread(target=waits, daemon=True).start()")
    hub.receive("mux")
    hub.send("control", [uuid, b"c"], "stacks_request")
    stacks = hub.receive("control")[1]["content"]["stacks"]
    assert " in waits\n" in stacks and "Current thread" in stacks


@pytest.mark.parametrize("code, cause, stderr", [
    ("import ctypes\ndef f(): ctypes.string_at(0)\nf()",
     r"killed by SIGSEGV \(Segmentation fault\), in string_at \(.*ctypes/__init__.py:\d+\)",
     ["Fatal Python error: Segmentation fault", " in f\n", "Native frames", "libc.so"]),
    ("import os; os.abort()", r"killed by SIGABRT \(Aborted\), in <module> \(.*\)",
     ["Fatal Python error: Aborted", "Native frames"]),
    ("import os; os._exit(3)", "exit status 3", []),
    ("import os; os._exit(0)", "exit status 0", []),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"killed by SIGKILL, peak \d+ MB",
     []),
    pytest.param(
        "import sys; sys.setrecursionlimit(10**9)\n"  # C recursion: Python's own is no recursion in C
        "class A:\n    def __getattr__(self, name): return getattr(self, name)\nA().x",
        r"killed by SIGSEGV \(Segmentation fault\), in __getattr__ \(.*\)", ["Native frames"],
        marks=pytest.mark.skipif(sys.version_info >= (3, 12), reason="ends with a RecursionError")),
], ids=["segfault", "abort", "exit", "exit-0", "kill", "stack-overflow"])
def test_cause_of_death(hub, start, code, cause, stderr):
    hub.write()
    engines = start(language="python")
    uuid = hub.join(4)
    pid = engines.registered()[1]
    msg_id = hub.send("mux", [uuid, b"c"], "execute_request", {"silent": True, "code": code})
    _, msg = hub.receive("registration")
    assert msg["msg_type"] == "unregistration_request" and msg["content"]["id"] == 4
    told = msg["content"]["px"]
    assert re.fullmatch(cause, told["cause"]) and told["running"] == msg_id
    assert engines.exited() == (pid, told["cause"])
    status, err = engines.end()
    assert status == 1
    line, = [line for line in err.splitlines() if "engine.ended" in line]
    assert f'id=4 pid={pid} why="{told["cause"]}"' in line
    assert f"running=execute_request msg_id={msg_id}" in line
    for words in stderr:
        assert words in err


def memory_group(limit_bytes):
    """A control group of that much memory, as the file that processes join it by; or None."""
    for root, names in (("/sys/fs/cgroup/memory", ["memory.limit_in_bytes"]),
                        ("/sys/fs/cgroup", ["memory.max", "memory.swap.max"])):
        group = Path(root, f"px-test-{os.getpid()}")
        try:
            group.mkdir()
            (group / names[0]).write_text(str(limit_bytes))
            for name in names[1:]:
                (group / name).write_text("0")
        except OSError:
            with contextlib.suppress(OSError):
                group.rmdir()
            continue
        return group / "cgroup.procs"
    return None


not_sanitized = pytest.mark.skipif("PX_ASAN_OPTIONS" in os.environ,
                                   reason="the sanitizer's shadow is too large")


@not_sanitized
def test_out_of_memory(hub, start):
    """In a control group whose memory does not suffice the kernel kills the engine, and only it."""
    procs = memory_group(150 << 20)
    if procs is None:
        pytest.skip("needs the right to make control groups")
    try:
        hub.write()
        engines = start("-n", 2, language="python", preexec_fn=lambda: procs.write_text("0"))
        uuids = hub.join_all(2)
        pids = dict(engines.registered() for _ in range(2))
        msg_id = hub.send("mux", [uuids[0], b"c"], "execute_request",
                          {"silent": True, "code": "x = b'x' * 10**9"})
        _, msg = hub.receive("registration")
        assert msg["content"]["px"]["running"] == msg_id
        assert re.fullmatch(r"killed by the kernel, out of memory, peak \d+ MB",
                            msg["content"]["px"]["cause"])
        assert engines.exited()[0] == pids[msg["content"]["id"]]
        os.kill(pids[1], signal.SIGKILL)  # this one was somebody else
        _, msg = hub.receive("registration")
        assert msg["content"]["px"]["cause"].startswith("killed by SIGKILL")
        engines.end()
    finally:
        wait_for(lambda: not procs.read_text(), what="the group to be empty")
        procs.parent.rmdir()


@not_sanitized
def test_too_little_address_space_is_an_exception(hub, start):
    hub.write()
    start(language="python")
    uuid = hub.join()
    hub.send("mux", [uuid, b"c"], "execute_request", {"silent": True, "code":
             "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\n"
             "x = bytearray(2**32)"})
    assert hub.receive("mux")[1]["content"]["ename"] == "MemoryError"
    hub.send("mux", [uuid, b"c"], "execute_request", {"silent": True, "code": "1"})
    assert hub.receive("mux")[1]["content"]["status"] == "ok"


def test_a_fork_of_the_user_that_crashes_is_none_of_the_engine(hub, start):
    hub.write()
    engines = start(language="python")
    uuid = hub.join()
    hub.send("mux", [uuid, b"c"], "execute_request", {"silent": True, "code":
             "import os, ctypes\npid = os.fork()\nif pid == 0: ctypes.string_at(0)\n"
             "assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == 11\nos._exit(5)"})
    assert hub.receive("registration")[1]["content"]["px"]["cause"] == "exit status 5"
    assert "Fatal Python error" not in engines.end()[1]


def test_a_task_of_the_event_loop_outlives_the_apply_that_made_it(client):
    """On an engine that has run no cell yet."""
    from ipyparallel import interactive

    def leave():
        import asyncio

        async def work():
            globals()["worked"] = True

        asyncio.ensure_future(work())

    client[:].apply_sync(interactive(leave))
    worked = interactive(lambda: "worked" in globals())
    wait_for(lambda: all(client[:].apply_sync(worked)), what="the tasks")


def test_programs_find_what_ipyparallels_modules_have(client):
    """On an engine on which stand-ins of those modules have their names, and lack some."""
    from ipyparallel import CompositeError, interactive

    @interactive
    def take(name):
        scope = {}
        exec("from ipyparallel.util import " + name, scope)
        return scope[name].__name__

    for name in ("disambiguate_url", "local_logger"):
        assert client[:].apply_sync(take, name) == [name] * 2
    with pytest.raises(CompositeError, match="cannot import name 'nothing'"):
        client[:].apply_sync(take, "nothing")


def test_code_of_ipyparallels_finds_what_its_module_has(client):
    """More than the stand-in of that module has, which serves most."""
    from ipyparallel import util

    assert [now.tzinfo is not None for now in client[:].apply_sync(util.utcnow)] == [True] * 2


def test_arrays_can_be_changed_in_place(client):
    """Those of ipyparallel's client, too, as on its engines: it sends more than 1024 bytes apart."""
    numpy = pytest.importorskip("numpy")
    view = client[:]
    for size in (129, 100_000):
        view.push({"pushed": numpy.zeros(size)}, block=True)
        view.execute("pushed += 1", block=True)
        assert [array.sum() for array in view["pushed"]] == [size] * 2


# ---- ipyparallel's own controller and client ------------------------------------------------------

@pytest.fixture
def stock_controller(env, ipython_dir):
    log = open(ipython_dir / "controller.log", "w")
    process = subprocess.Popen([*stock_command(), "--ping=200"], env=env,
                               stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    file = ipython_dir / "profile_default" / "security" / "ipcontroller-engine.json"
    wait_for(file.exists, 60, "ipcontroller's connection file")
    yield file.with_name("ipcontroller-client.json")
    process.terminate()
    process.wait(TIMEOUT)
    log.close()


@pytest.fixture
def stock_client(stock_controller, start):
    ipp = pytest.importorskip("ipyparallel")
    engines = start("-n", 2, language="python")
    rc = ipp.Client(str(stock_controller))
    wait_for(lambda: len(rc.ids) == 2, 60, "two engines")
    yield rc, engines
    rc.close()


@pytest.mark.stock
def test_stock_client_and_controller(stock_client):
    from ipyparallel import interactive
    from ipyparallel.error import CompositeError, RemoteError, TaskAborted

    rc, engines = stock_client
    view, pids = rc[:], [engines.registered()[1] for _ in range(2)]
    assert sorted(view.apply_sync(os.getpid)) == sorted(pids)
    result = view.execute("print('hi'); 6 * 7", silent=False)
    result.get(TIMEOUT)
    result.wait_for_output(TIMEOUT)
    assert result.stdout == ["hi\n"] * 2
    assert [r.execute_result["data"]["text/plain"] for r in result.get()] == ["42"] * 2
    with pytest.raises(CompositeError):
        view.execute("1/0").get(TIMEOUT)
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        rc[0].apply_sync(interactive(lambda: 1 / 0))
    view.push({"a": 7}, block=True)
    assert view.pull("a", block=True) == [7, 7]
    balanced = rc.load_balanced_view()
    assert balanced.map_sync(interactive(lambda x: x ** 10), range(32)) == [x ** 10 for x in range(32)]
    assert sorted(rc.broadcast_view().apply_sync(os.getpid)) == sorted(pids)
    first, second = rc[0].execute("import time; time.sleep(60)"), rc[0].execute("1")
    wait_for(lambda: rc.queue_status(0)["queue"] == 2, what="two requests in the engine's queue")
    rc.abort(second, targets=[0], block=True)
    with pytest.raises(TaskAborted):
        second.get(TIMEOUT)
    rc.send_signal("SIGINT", targets=[0], block=True)
    with pytest.raises(RemoteError, match="KeyboardInterrupt"):
        first.get(TIMEOUT)
    rc.shutdown(targets=[1], block=True)
    wait_for(lambda: rc.ids == [0], what="the engine's unregistration")


@pytest.mark.stock
def test_stock_client_draws_different_numbers(stock_client):
    """Forked engines do not share the state of random generators."""
    rc, _ = stock_client
    code = "import random, numpy; drawn = (random.random(), numpy.random.rand())"
    rc[:].execute(code, block=True)
    one, two = rc[:].pull("drawn", block=True)
    assert one[0] != two[0] and one[1] != two[1]


# ---- the cause reaches whoever waits ---------------------------------------------------------------

def test_every_client_reads_the_cause(cluster):
    """A direct and a balanced task, of ipyparallel's client and of ours."""
    import phalanx
    ipp = pytest.importorskip("ipyparallel")
    where = cluster(4)
    cause = r"engine \d: killed by SIGSEGV \(Segmentation fault\), in string_at \(.*\), " \
            r"while running task '.*'"
    with ipp.Client(str(where.client_file)) as rc, phalanx.Client(str(where.client_file)) as ours:
        with pytest.raises(ipp.error.RemoteError, match=f"EngineError.*{cause}"):
            rc.load_balanced_view().apply_async(ctypes.string_at, 0).get(TIMEOUT)
        with pytest.raises(ipp.error.RemoteError, match=f"EngineError.*{cause}"):
            rc[rc.ids[-1]].apply_async(ctypes.string_at, 0).get(TIMEOUT)
        with pytest.raises(phalanx.error.EngineError, match=cause):
            ours.load_balanced_view().apply_async(ctypes.string_at, 0).get(TIMEOUT)
        with pytest.raises(phalanx.error.EngineError, match=cause):
            ours[ours.ids[-1]].apply_async(ctypes.string_at, 0).get(TIMEOUT)
        wait_for(lambda: ours.ids == rc.ids == [], what="their unregistration")


# ---- tasks that are asked back -----------------------------------------------------------

def test_recalled_tasks_are_handed_back_and_may_come_again(hub, start, tmp_path):
    hub.write()
    start(language="python")
    uuid = hub.join()
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    wait = (f"import os, threading\npause = threading.Event()\nopen({str(begun)!r}, 'w').close()\n"
            f"while not os.path.exists({str(gate)!r}): pause.wait(0.002)")
    first = hub.send("task", [uuid, b"C"], "execute_request", {"code": wait, "silent": True})
    wait_for(begun.exists, 20, "the first task to begin")
    held = [hub.session.msg("execute_request", {"code": f"x = {i}", "silent": True})
            for i in range(3)]
    frames = [[uuid, b"C", *hub.session.serialize(msg)] for msg in held]
    for parts in frames:
        hub.sockets["task"].send_multipart(parts)
    ids = [msg["header"]["msg_id"] for msg in held]
    hub.send("task", [uuid], "px_recall_request", {"msg_ids": [first, *ids[1:], "nobody's"]})
    for msg_id in ids[1:]:  # what runs is not handed back, nor what was not named
        idents, reply = hub.receive("task")
        assert idents == [uuid, b"C"] and reply["parent_header"]["msg_id"] == msg_id
        assert reply["metadata"]["status"] == "recalled"
    hub.sockets["task"].send_multipart(frames[2])  # byte for byte the same: not a replay
    gate.touch()
    for msg_id in (first, ids[0], ids[2]):
        _, reply = hub.receive("task")
        assert reply["parent_header"]["msg_id"] == msg_id
        assert reply["metadata"]["status"] == "ok"
    hub.sockets["task"].send_multipart(frames[0])  # this one is
    assert hub.silent("task", 0.2)

# ---- a hub that comes back ---------------------------------------------------------------------------

@pytest.fixture
def controller(px_bin, env, ipython_dir):
    """controller(*options) starts one, stopping the last by SIGKILL; its client file."""
    ipp = pytest.importorskip("ipyparallel")
    running = []

    def stop(signo=signal.SIGKILL):
        for process in running:
            process.send_signal(signo)
            process.wait(TIMEOUT)
        running.clear()

    def controller(*options, stock=False):
        stop()
        program = stock_command() if stock else [px_bin / "pxcontroller"]
        file = ipython_dir / "profile_default" / "security" / "ipcontroller-client.json"
        log = open(ipython_dir / "controller.log", "a")
        running.append(subprocess.Popen([*program, "--ping=300", *options], env=env, stdout=log,
                                        stderr=log, stdin=subprocess.DEVNULL,
                                        start_new_session=True))
        log.close()
        wait_for(file.exists, 60, "the connection files")
        return file

    controller.stop = stop
    yield controller
    stop(signal.SIGTERM)


def state_names(ipython_dir, count):
    file = ipython_dir / "profile_default" / "log" / "engines.json"
    with contextlib.suppress(OSError, ValueError):
        return len(json.loads(file.read_text())["engines"]) == count
    return False


@contextlib.contextmanager
def client_of(file, engines):
    """A stock client that sees that many engines. One that connects just when an engine registers
    never hears of it; the next does."""
    import ipyparallel as ipp
    deadline = time.monotonic() + 60
    while True:
        with ipp.Client(str(file)) as rc:
            with contextlib.suppress(pytest.fail.Exception):
                wait_for(lambda: len(rc.ids) == engines, 2)
            if len(rc.ids) == engines:
                yield rc
                return
        assert time.monotonic() < deadline, f"{engines} engines"


@pytest.mark.parametrize("restore", [True, False], ids=["restored", "forgotten"])
def test_engines_come_back_to_a_controller_that_was_killed(controller, start, ipython_dir, restore):
    """Same processes, same names in them, same ids; a task that ran meanwhile goes on."""
    file = controller("--reuse", controller_ports())
    engines = start("-n", 2, language="python")
    pids = dict(engines.registered() for _ in range(2))
    with client_of(file, 2) as rc:
        rc[:].push({"kept": 41}, block=True)
        wait_for(lambda: state_names(ipython_dir, 2), what="the file of engines")
        running = rc[0].execute("import time; time.sleep(1); kept += 1")
        wait_for(lambda: rc.queue_status(0)["queue"] == 1, what="the task in the queue")
    if not restore:
        (ipython_dir / "profile_default" / "log" / "engines.json").unlink()
    controller("--restore" if restore else "--reuse")
    with client_of(file, 2) as rc:
        assert {i: rc[i].apply_sync(os.getpid) for i in rc.ids} == pids
        assert rc[:].pull("kept", block=True) == [42, 41]
        assert rc.load_balanced_view().map_sync(abs, [-1] * 4) == [1] * 4
        assert rc.broadcast_view().apply_sync(os.getpid) == [pids[i] for i in rc.ids]
        rc[1].execute("import os; os._exit(3)")  # and the nanny's word still counts
        wait_for(lambda: rc.ids == [0], what="the unregistration")
    del running


@pytest.mark.stock
def test_engines_come_back_to_a_stock_controller(controller, start):
    file = controller("--reuse", stock=True)
    engines = start("-n", 2, language="python")
    pids = dict(engines.registered() for _ in range(2))
    controller.stop(signal.SIGTERM)  # its children go with it
    file = controller("--reuse", stock=True)
    with client_of(file, 2) as rc:
        assert sorted(rc[:].apply_sync(os.getpid)) == sorted(pids.values())


def test_an_engine_that_was_stopped_comes_back(controller, start):
    """SIGSTOP: the controller gives it up. SIGCONT: it registers anew, under another id."""
    import ipyparallel as ipp
    file = controller("--HeartMonitor.max_heartmonitor_misses=8")
    engines = start(language="python")
    _, pid = engines.registered()
    with client_of(file, 1) as rc:
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: rc.ids == [], what="its unregistration")
        engines.process.send_signal(signal.SIGCONT)  # the fork server passes it on
        wait_for(lambda: rc.ids, what="its return")
        assert rc[rc.ids[0]].apply_sync(os.getpid) == pid
        with pytest.raises(ipp.error.RemoteError) as caught:
            rc[rc.ids[0]].apply_sync(int, "no number")
        assert caught.value.engine_info["engine_id"] == rc.ids[0]
        assert rc.broadcast_view().apply_sync(os.getpid) == [pid]


# ---- under mpiexec -----------------------------------------------------------------------------------

@pytest.mark.skipif(not shutil.which("mpiexec"), reason="needs mpiexec")
def test_one_engine_a_rank(controller, env, px_bin):
    """Three ranks are three engines, of these ids, in one world."""
    pytest.importorskip("mpi4py")
    file = controller()
    env.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
               OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_MCA_btl_vader_single_copy_mechanism="none",
               PRTE_MCA_rmaps_default_mapping_policy=":oversubscribe")  # the same, since Open MPI 5
    process = subprocess.Popen(["mpiexec", "-n", "3", px_bin / "pxengine", "--mpi"], env=env,
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        with client_of(file, 3) as rc:
            assert rc.ids == [0, 1, 2]
            assert rc[:].pull(["mpi_rank", "mpi_size"], block=True) == [[i, 3] for i in range(3)]
            rc[:].execute("total = MPI.COMM_WORLD.allreduce(mpi_rank + 1)", block=True)
            assert rc[:].pull("total", block=True) == [6] * 3
            rc.shutdown(block=True)
        assert process.wait(60) == 0
    finally:
        process.terminate()
        process.wait(TIMEOUT)
