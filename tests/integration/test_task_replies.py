# SPDX-License-Identifier: BSD-3-Clause
"""The task queue of ipcontroller and of pxcontroller, frame by frame: the same tasks, the same
answers of engines that the test plays, and what a client is told must be the same."""
import json
import os
import subprocess

import pytest
import zmq
from conftest import BIN, PYTHON, wait_for
from jupyter_client.session import Session

pytest.importorskip("ipyparallel")

DEADLINE = 60
OPTIONS = ["--ip=127.0.0.1", "--HeartMonitor.period=250",
           "--HeartMonitor.max_heartmonitor_misses=100000", "--log-level=40"]
COMMANDS = {"theirs": [PYTHON, "-m", "ipyparallel.controller"], "ours": [str(BIN / "pxcontroller")]}


class Side:
    """One controller, a client of it, and engines by name."""

    def __init__(self, command, directory, env):
        self.process = subprocess.Popen(
            [*command, f"--profile-dir={directory}", *OPTIONS], env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.context = zmq.Context()
        self.client_file, self.engine_file = (self.read(directory, role)
                                              for role in ("client", "engine"))
        key = self.client_file["key"].encode()
        self.session, self.sessions = Session(key=key), {}
        self.client = self.connect(zmq.DEALER, self.client_file["task"], b"the-client")
        self.engines, self.rooms = {}, {}

    def read(self, directory, role):
        path = directory / "security" / f"ipcontroller-{role}.json"

        def whole():
            try:
                return json.loads(path.read_text())
            except (OSError, ValueError):
                return None

        wait_for(whole, DEADLINE, "connection files")
        return whole()

    def connect(self, kind, port, identity):
        socket = self.context.socket(kind)
        socket.linger = 0
        socket.identity = identity
        socket.connect(f"tcp://127.0.0.1:{port}")
        return socket

    def add(self, name):
        """Registers an engine, which is to be told apart by its name in each scenario."""
        uuid, file = name.encode(), self.engine_file
        self.sessions[name] = Session(key=self.session.key)
        self.engines[name] = self.connect(zmq.DEALER, file["task"], uuid)
        hub = self.rooms[name] = self.connect(zmq.DEALER, file["registration"], uuid)
        pong = self.connect(zmq.DEALER, file["hb_pong"], uuid)
        ping = self.context.socket(zmq.SUB)
        ping.subscribe(b"")
        ping.connect(f"tcp://127.0.0.1:{file['hb_ping']}")
        self.sessions[name].send(hub, "registration_request", {"uuid": name})
        assert hub.poll(DEADLINE * 1000)
        reply = self.sessions[name].recv(hub, mode=0)[1]["content"]
        assert ping.poll(DEADLINE * 1000)
        pong.send(ping.recv())
        wait_for(lambda: self.probe(name), DEADLINE, "the scheduler to know of an engine")
        for socket in (ping, pong):
            socket.close()
        return reply["id"]

    def probe(self, name):
        """Whether a task that names the engine is sent to it; else it is impossible."""
        probe = self.submit(targets=[name])
        wait_for(lambda: self.engines[name].poll(0) or self.client.poll(0), DEADLINE, "a probe")
        if self.engines[name].poll(0):
            self.take(name)
            self.answer(name, probe)
        return self.told(1)[0]["content"]["status"] == "ok"

    def remove(self, name, engine_id):
        self.sessions[name].send(self.rooms[name], "unregistration_request", {"id": engine_id})

    def submit(self, msg_type="apply_request", **metadata):
        sent = self.session.send(self.client, msg_type, {}, metadata=metadata)
        return sent["header"]["msg_id"]

    def take(self, name):
        """The id of the next task that an engine is sent."""
        assert self.engines[name].poll(DEADLINE * 1000), f"nothing for {name}"
        frames = self.engines[name].recv_multipart()
        idents, rest = self.session.feed_identities(frames)
        # A session of its own for each: the same message may come to several engines.
        msg = self.sessions[name].deserialize(rest)
        self.last = (idents, msg)
        return msg["header"]["msg_id"]

    def who_takes(self, names):
        wait_for(lambda: any(self.engines[n].poll(0) for n in names), DEADLINE, "a task")
        name = next(n for n in names if self.engines[n].poll(0))
        return name, self.take(name)

    def answer(self, name, msg_id, status="ok", met=True, content=None):
        idents, msg = self.last
        assert msg["header"]["msg_id"] == msg_id
        self.sessions[name].send(
            self.engines[name], "apply_reply", content or {"status": status}, parent=msg,
            ident=idents, metadata={"status": status, "dependencies_met": met, "engine": name})

    def told(self, count):
        """What the client is told next: parts that must not differ between the two."""
        return [self.one() for _ in range(count)]

    def one(self):
        assert self.client.poll(DEADLINE * 1000), "the client is told nothing"
        idents, rest = self.session.feed_identities(self.client.recv_multipart())
        msg = self.session.deserialize(rest)
        msg["metadata"].pop("date", None)
        traceback = msg["content"].pop("traceback", None)
        evalue = str(msg["content"].get("evalue")).replace(msg["parent_header"]["msg_id"], "ID")
        msg["content"]["evalue"] = evalue
        return {"idents": idents, "type": msg["msg_type"], "metadata": msg["metadata"],
                "content": msg["content"], "traceback": type(traceback).__name__,
                "parent": msg["parent_header"]["msg_id"], "buffers": len(msg["buffers"])}

    def quiet(self):
        assert not self.client.poll(200), "the client is told too much"

    def close(self):
        self.context.destroy(linger=0)
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


# Each scenario gets two engines, a and b, that are idle; returns what the client was told of which
# of its tasks, in an order that does not depend on chance.


def named(told, **ids):
    """What was told, by the names of tasks."""
    names = {msg_id: name for name, msg_id in ids.items()}
    return sorted(({**one, "parent": names[one["parent"]]} for one in told),
                  key=lambda one: one["parent"])


def unknown_dependencies(side, a, b):
    after = side.submit(after=["no such task"])
    follow = side.submit(follow=["no such task"], msg_type="execute_request")
    return named(side.told(2), after=after, follow=follow)


def failed_dependency(side, a, b):
    first = side.submit(targets=[a])
    side.take(a)
    waits = side.submit(after=[first])
    also = side.submit(follow={"dependencies": [first], "all": False})
    allowed = side.submit(after={"dependencies": [first], "failure": True}, targets=[b])
    side.answer(a, first, "error", content={"status": "error", "ename": "E", "evalue": "x",
                                            "traceback": []})
    side.take(b)
    side.answer(b, allowed)
    late = side.submit(after=[first])
    return named(side.told(5), first=first, waits=waits, also=also, allowed=allowed, late=late)


def follow_in_two_places(side, a, b):
    one, two = side.submit(targets=[a]), side.submit(targets=[b])
    side.take(a)
    side.answer(a, one)
    side.take(b)
    side.answer(b, two)
    told = side.told(2)
    both = side.submit(follow=[one, two])
    any_of = side.submit(follow={"dependencies": [one, two], "all": False}, targets=[b])
    side.take(b)
    side.answer(b, any_of)
    return named(told + side.told(2), one=one, two=two, both=both, any_of=any_of)


def timeout(side, a, b):
    busy = side.submit(targets=[a])
    side.take(a)
    late = side.submit(targets=[a], timeout=0.3)
    blocked = side.submit(after=[busy], timeout=0.3, msg_type="execute_request")
    told = side.told(2)
    side.answer(a, busy)
    return named(told + side.told(1), busy=busy, late=late, blocked=blocked)


def retried_elsewhere(side, a, b):
    task = side.submit(retries=1)
    for _ in range(2):
        name, msg_id = side.who_takes([a, b])
        side.answer(name, msg_id, "error", content={"status": "error", "ename": "E",
                                                    "evalue": "x", "traceback": []})
    told = named(side.told(1), task=task)
    assert told[0]["idents"] == [name.encode()] and told[0]["metadata"].pop("engine") == name
    return [{**told[0], "idents": []}]


def retried_where_it_may_not(side, a, b):
    task = side.submit(retries=3, targets=[a])
    side.take(a)
    side.answer(a, task, "error")
    return named(side.told(1), task=task)


def unmet_where_it_was_sent(side, a, b):
    task = side.submit(targets=[a])
    side.take(a)
    side.answer(a, task, "error", met=False)
    return named(side.told(1), task=task)


def unmet_then_met(side, a, b):
    task = side.submit()
    first, _ = side.who_takes([a, b])
    side.answer(first, task, "error", met=False)
    second, _ = side.who_takes([a, b])
    assert second != first
    side.answer(second, task)
    told = named(side.told(1), task=task)
    return [{**told[0], "idents": [], "metadata": {}}]


def aborted(side, a, b):
    task = side.submit(targets=[b])
    side.take(b)
    side.answer(b, task, "aborted")
    after = side.submit(after=[task])
    return named(side.told(2), task=task, after=after)


def target_that_never_was(side, a, b):
    task = side.submit(targets=["nobody"])
    return named(side.told(1), task=task)


def neither_success_nor_failure(side, a, b):
    side.submit(after={"dependencies": ["x"], "success": False, "failure": False})
    side.quiet()
    return []


def engine_gone(side, a, b):
    """The last: engine a is not there afterwards."""
    running = side.submit(targets=[a])
    side.take(a)
    queued = side.submit(targets=[a])
    moves = side.submit(follow=[running])
    side.remove(a, side.ids[a])
    told = side.told(3)
    after = side.submit(after={"dependencies": [running], "success": False, "failure": True})
    side.take(b)
    side.answer(b, after)
    return named(told + side.told(1), running=running, queued=queued, moves=moves, after=after)


SCENARIOS = [unknown_dependencies, failed_dependency, follow_in_two_places, timeout,
             retried_elsewhere, retried_where_it_may_not, unmet_where_it_was_sent, unmet_then_met,
             aborted, target_that_never_was, neither_success_nor_failure, engine_gone]


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("IPP_", "IPYTHON"))}
    env.pop("LD_PRELOAD", None)
    opened = {}
    try:
        for name, command in COMMANDS.items():
            directory = tmp_path_factory.mktemp(name)
            opened[name] = Side(command, directory, dict(env, HOME=str(directory)))
        for side in opened.values():
            side.ids = {name: side.add(name) for name in ("engine-a", "engine-b")}
        yield opened
    finally:
        for side in opened.values():
            side.close()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_client_is_told_the_same(sides, scenario):
    told = {name: scenario(side, "engine-a", "engine-b") for name, side in sides.items()}
    assert told["ours"] == told["theirs"]
