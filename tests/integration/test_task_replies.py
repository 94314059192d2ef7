# SPDX-License-Identifier: BSD-3-Clause
"""The task queue of ipcontroller and of pxcontroller, frame by frame: the same tasks, the same
answers of engines that the test plays, and what a client is told must be the same."""
import contextlib
import json
import os
import subprocess

import pytest
import zmq
from conftest import BIN, programs_env, stock_controller, wait_for
from jupyter_client.session import Session

pytest.importorskip("ipyparallel")

DEADLINE = 60
OPTIONS = ["--ip=127.0.0.1", "--HeartMonitor.period=250",
           "--HeartMonitor.max_heartmonitor_misses=100000", "--log-level=40"]


class Side:
    """One controller, a client of it, and engines by name."""

    def __init__(self, command, directory, env, *options):
        self.program = " ".join(command)
        self.process = subprocess.Popen(
            [*command, f"--profile-dir={directory}", *OPTIONS, *options], env=env, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.context = zmq.Context()
        self.client_file, self.engine_file = (self.read(directory, role)
                                              for role in ("client", "engine"))
        key = self.client_file["key"].encode()
        self.session, self.sessions = Session(key=key), {}
        self.client = self.connect(zmq.DEALER, self.client_file["task"], b"the-client")
        self.hub = self.connect(zmq.DEALER, self.client_file["registration"], b"the-client")
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
        wait_for(lambda: self.is_known(name, ping, pong), DEADLINE,
                 f"the scheduler of {self.program} to know of {name}")
        for socket in (ping, pong):
            socket.close()
        return reply["id"]

    def is_known(self, name, ping, pong):
        """Its heart answers until the hub lists it; then the scheduler's turn may still come."""
        patience = 50
        while ping.poll(patience):  # on a busy machine several wait, and the last one counts
            pong.send(ping.recv())
            patience = 0
        engines = self.ask("connection_request", {})["engines"].values()
        return name in engines and self.probe(name)

    def ask(self, msg_type, content):
        """The content of the hub's answer."""
        self.session.send(self.hub, msg_type, content)
        assert self.hub.poll(DEADLINE * 1000), "the hub does not answer"
        return self.session.recv(self.hub, mode=0)[1]["content"]

    def has_result(self, msg_id):
        return self.ask("result_request", {"msg_ids": [msg_id]}).get("completed") == [msg_id]

    def probe(self, name):
        """Whether a task that names the engine is sent to it; else it is impossible."""
        probe = self.submit(targets=[name])
        wait_for(lambda: self.engines[name].poll(0) or self.client.poll(0), DEADLINE,
                 f"a probe of {self.program}")
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


def resubmitted(side, a, b):
    """What an engine gets, how the hub answers; the client is told once."""
    task = side.submit(targets=[a], retries=2, label="mine")
    side.take(a)
    side.answer(a, task)
    told = named(side.told(1), task=task)
    wait_for(lambda: side.has_result(task), DEADLINE, "the hub to hear of a result")
    reply = side.ask("resubmit_request", {"msg_ids": [task]})
    again = reply["resubmitted"].pop(task)
    name, msg_id = side.who_takes([a, b])
    assert msg_id == again and again != task
    idents, msg = side.last
    asked = {"reply": reply, "idents": len(idents), "metadata": msg["metadata"],
             "own parent": msg["parent_header"] == msg["header"],
             "session": msg["header"]["session"] == side.session.session,
             "type": msg["msg_type"], "content": msg["content"], "buffers": len(msg["buffers"])}
    side.answer(name, again)
    wait_for(lambda: side.has_result(again), DEADLINE, "the hub to hear of the second result")
    old, new = (side.ask("db_request", {"query": {"msg_id": m}, "keys": ["resubmitted", "queue"]})
                for m in (task, again))
    assert old["records"][0]["resubmitted"] == again
    side.quiet()
    unknown = side.ask("resubmit_request", {"msg_ids": ["no such task"]})
    return [*told, asked, old["records"][0]["queue"], new["records"][0]["resubmitted"],
            new["records"][0]["queue"], unknown["ename"], unknown["evalue"]]


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
             aborted, target_that_never_was, resubmitted, engine_gone]


@contextlib.contextmanager
def both(tmp_path_factory, *options, kind=Side):
    env = programs_env({k: v for k, v in os.environ.items() if not k.startswith(("IPP_", "IPYTHON"))})
    opened = {}
    try:
        commands = {"theirs": stock_controller(), "ours": [str(BIN / "pxcontroller")]}
        for name, command in commands.items():
            directory = tmp_path_factory.mktemp(name)
            opened[name] = kind(command, directory, dict(env, HOME=str(directory)), *options)
        for side in opened.values():
            side.ids = {name: side.add(name) for name in ("engine-a", "engine-b")}
        yield opened
    finally:
        for side in opened.values():
            side.close()


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    with both(tmp_path_factory) as opened:
        yield opened


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_client_is_told_the_same(sides, scenario):
    told = {name: scenario(side, "engine-a", "engine-b") for name, side in sides.items()}
    assert told["ours"] == told["theirs"]


def test_what_the_other_leaves_unanswered_fails(sides):
    """On purpose: ipcontroller raises ValueError in its log, and the client waits for ever."""
    neither = {"dependencies": ["x"], "success": False, "failure": False}
    sides["theirs"].submit(after=neither)
    sides["theirs"].quiet()
    task = sides["ours"].submit(after=neither)
    [told] = sides["ours"].told(1)
    assert told["parent"] == task and told["content"]["ename"] == "ValueError"


# ---- the scheme "pure": tasks are dealt in turn, nobody keeps books -------------------------------


class Pure(Side):
    def probe(self, name):
        """No engine is ever named, so it must come by its turn."""
        probe = self.submit()
        dealt, _ = self.who_takes(self.engines)
        self.answer(dealt, probe)
        self.told(1)
        return dealt == name


def dealt(side, a, b):
    """Each gets every other task, whatever the tasks ask for, and answers as it likes."""
    sent = [side.submit(), side.submit(after=["no such task"]), side.submit(targets=["nobody"]),
            side.submit(timeout=0.001, retries=3, msg_type="execute_request")]
    answers = dict(zip(sent, [("ok", True), ("error", True), ("aborted", True), ("error", False)]))
    turns = {name: [] for name in (a, b)}
    for _ in sent:
        name, msg_id = side.who_takes([a, b])
        turns[name].append(sent.index(msg_id))
        side.answer(name, msg_id, *answers[msg_id])
    told = named(side.told(4), **{f"task{i}": msg_id for i, msg_id in enumerate(sent)})
    assert sorted(map(len, turns.values())) == [2, 2]
    for one in told:  # who had which is chance
        assert one["metadata"].pop("engine") in (a, b)
    wait_for(lambda: side.has_result(sent[0]), DEADLINE, "the hub to hear of a result")
    rows = side.ask("db_request", {"query": {"msg_id": {"$in": sent}}, "keys": ["queue", "completed"]})
    status = side.ask("queue_request", {"targets": None})
    side.quiet()
    return [told, [row["queue"] for row in rows["records"]],
            [row["completed"] is not None for row in rows["records"][:1]],
            [status[str(id)]["tasks"] for id in side.ids.values()], status["status"]]


def dealt_to_the_unregistered(side, a, b):
    """What counts is the connection."""
    side.remove(b, side.ids[b])
    wait_for(lambda: b not in side.ask("connection_request", {})["engines"].values(), DEADLINE, "b to go")
    sent = [side.submit(), side.submit()]
    takers = []
    for _ in sent:
        name, msg_id = side.who_takes([a, b])
        takers.append(name)
        side.answer(name, msg_id)
    told = named(side.told(2), one=sent[0], two=sent[1])
    for one in told:
        one["metadata"].pop("engine")
    return [sorted(takers), told]


@pytest.fixture(scope="module")
def pure(tmp_path_factory):
    with both(tmp_path_factory, "--TaskScheduler.scheme_name=pure", kind=Pure) as opened:
        yield opened


@pytest.mark.parametrize("scenario", [dealt, dealt_to_the_unregistered])
def test_pure_is_the_same(pure, scenario):
    told = {name: scenario(side, "engine-a", "engine-b") for name, side in pure.items()}
    assert told["ours"] == told["theirs"]
