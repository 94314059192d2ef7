# SPDX-License-Identifier: BSD-3-Clause
"""The task scheduler with our engines: short tasks that are sent ahead, and what becomes of them when
the one before them is long, or takes its engine with it."""
import json
import os
import re
import signal

import pytest
import zmq
from conftest import wait_for
from jupyter_client.session import Session

phalanx = pytest.importorskip("phalanx")

DEADLINE = 60
MOST_AHEAD = 64  # tasks that an engine ever holds


def double(x):
    return 2 * x


def wait_until_exists(path):
    import os
    import threading
    pause = threading.Event()
    open(path + ".begun", "w").close()
    while not os.path.exists(path):
        pause.wait(0.002)
    return "opened"


def crash():
    import ctypes
    ctypes.string_at(0)


# As if typed in a notebook: the client then sends the code, not the name of this module.
for function in (double, wait_until_exists, crash):
    function.__module__ = "__main__"


def count(where, name):
    """A figure of the controller's summary, written on SIGUSR1."""
    pattern = re.compile(rf"\| tasks .*\b{name}=(\d+)")
    before = len(pattern.findall(where.logs()))
    os.kill(where.controller_pid, signal.SIGUSR1)
    wait_for(lambda: len(pattern.findall(where.logs())) > before, what="the summary")
    return int(pattern.findall(where.logs())[-1])


@pytest.fixture
def open_client():
    opened = []

    def connect(where, n):
        client = phalanx.Client(str(where.client_file))
        opened.append(client)
        wait_for(lambda: len(client.ids) == n, DEADLINE, f"{n} engines")
        return client

    yield connect
    for client in opened:
        client.close()


def warm_up(view):
    """Until engines are known to be fast."""
    for result in [view.apply_async(double, i) for i in range(400)]:
        result.get(DEADLINE)


def test_short_tasks_go_ahead_and_a_long_one_keeps_none(cluster, open_client, tmp_path):
    where = cluster(2)
    view = open_client(where, 2).load_balanced_view()
    gate = tmp_path / "gate"
    warm_up(view)
    short = [view.apply_async(double, i) for i in range(100)]
    long = view.apply_async(wait_until_exists, str(gate))
    short += [view.apply_async(double, i) for i in range(100, 600)]
    assert [result.get(DEADLINE) for result in short] == [2 * i for i in range(600)]
    assert not long.ready()
    gate.touch()
    assert long.get(DEADLINE) == "opened"
    assert count(where, "ahead") > 0
    assert count(where, "failed") == 0


def test_what_was_sent_ahead_survives_its_engine(cluster, open_client):
    """Answers that were not out yet are lost with the engine; what it had not begun is not."""
    where = cluster(3)
    client = open_client(where, 3)
    view = client.load_balanced_view()
    warm_up(view)
    short = [view.apply_async(double, i) for i in range(200)]
    deadly = view.apply_async(crash)
    short += [view.apply_async(double, i) for i in range(200, 400)]
    with pytest.raises(phalanx.error.EngineError, match="while running task"):
        deadly.get(DEADLINE)
    lost = 0
    for i, result in enumerate(short):
        try:
            assert result.get(DEADLINE) == 2 * i
        except phalanx.error.EngineError:
            lost += 1
    assert lost < MOST_AHEAD and count(where, "failed") == 1 + lost
    assert len(client.ids) == 2  # it was run on one engine


def test_a_mark_that_was_asked_for_is_kept(cluster, open_client, env):
    config = os.path.join(env["IPYTHONDIR"], "profile_default", "ipcontroller_config.json")
    os.makedirs(os.path.dirname(config))
    with open(config, "w") as file:
        file.write('{"TaskScheduler": {"hwm": 1}}')
    where = cluster(2)
    warm_up(open_client(where, 2).load_balanced_view())
    assert count(where, "ahead") == 0


# ---- why a task waits --------------------------------------------------------------------


def ask(where, msg_type, content):
    """One query of the hub, frame by frame."""
    file = json.loads(where.client_file.read_text())
    session = Session(key=file["key"].encode())
    with zmq.Context() as context, context.socket(zmq.DEALER) as query:
        query.linger = 0
        query.connect(f"tcp://127.0.0.1:{file['registration']}")
        session.send(query, msg_type, content)
        assert query.poll(DEADLINE * 1000), "no answer"
        return session.recv(query, mode=0)[1]


def test_why_tasks_have_not_ended(cluster, open_client, tmp_path):
    where = cluster(1)
    client = open_client(where, 1)
    view = client.load_balanced_view()
    gate = tmp_path / "gate"
    done = view.apply_async(double, 1)
    done.get(DEADLINE)
    running = view.apply_async(wait_until_exists, str(gate))
    wait_for((tmp_path / "gate.begun").exists, DEADLINE, "the task to begin")
    waiting = view.apply_async(double, 2)
    with view.temp_flags(after=[running, waiting], timeout=600):
        blocked = view.apply_async(double, 3)
    direct = client[0].apply_async(double, 4)
    asked = [r.msg_ids[0] for r in (done, running, waiting, blocked, direct)]

    def tasks():
        reply = ask(where, "why_request", {"msg_ids": [*asked, "nobody's", "two\nlines"]})
        assert reply["msg_type"] == "why_reply" and reply["content"]["status"] == "ok"
        return reply["content"]["tasks"]

    wait_for(lambda: tasks()[asked[4]]["state"] != "unknown", DEADLINE, "all to be booked")
    told = tasks()
    assert [told[i]["state"] for i in asked] == ["done", "running", "waiting", "waiting", "running"]
    assert told[asked[1]]["engine"] == told[asked[4]]["engine"] == 0
    assert told[asked[2]]["engine"] is None and "busy" in told[asked[2]]["why"]
    assert sorted(told[asked[3]]["outstanding"]) == sorted(asked[1:3])
    assert 0 < told[asked[3]]["timeout_s"] <= 600 and told[asked[3]]["since_s"] >= 0
    assert told["nobody's"]["state"] == told["two\nlines"]["state"] == "unknown"
    gate.touch()
    blocked.get(DEADLINE)
    direct.get(DEADLINE)
    wait_for(lambda: {tasks()[i]["state"] for i in asked} == {"done"}, DEADLINE, "the end")


@pytest.mark.parametrize("content, reply, ename", [
    ({}, "hub_error", "KeyError"), ({"msg_ids": 3}, "hub_error", "TypeError"),
    ({"msg_ids": ["x"] * 257}, "why_reply", "ValueError"),
    ({"msg_ids": []}, "why_reply", None), ({"msg_ids": [None, {}, 7]}, "why_reply", None)])
def test_why_of_nothing_sensible(cluster, content, reply, ename):
    answer = ask(cluster(1), "why_request", content)
    assert answer["msg_type"] == reply
    assert answer["content"].get("ename") == ename
    assert ename or answer["content"]["tasks"] == {}
