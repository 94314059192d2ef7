# SPDX-License-Identifier: BSD-3-Clause
"""What pxcontroller's hub answers, held against what ipcontroller's hub answers.

Both controllers get the same engines and tasks, which are played here with bare sockets, and are
asked the same questions: what is right, what is malformed, what cannot be. Replies must be equal
but for dates; where ours differ on purpose, DIFFERENT says how and why.
"""
import json
import os
import re
import signal
import subprocess

import pytest
import zmq
from conftest import BIN, programs_env, stock_controller, wait_for
from jupyter_client.session import Session

ipp = pytest.importorskip("ipyparallel")
from ipyparallel.controller.heartmonitor import Heart  # noqa: E402

pytestmark = [pytest.mark.stock, pytest.mark.timeout(180)]

OURS = [str(BIN / "pxcontroller")]
ENGINES = ["engine-a", "engine-b", "engine-c"]  # ids 0, 1, 2; the last one leaves


class Hub:
    """A controller, with a client and engines that talk to it."""

    def __init__(self, command, folder, *options):
        folder.mkdir()
        self.context = zmq.Context()
        self.folder = folder
        self.log = open(folder / "log", "wb")
        self.process = subprocess.Popen(
            [*command, "--profile-dir", str(folder / "profile"), "--ping=200", *options],
            env=programs_env({**os.environ, "IPYTHONDIR": str(folder)}), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=self.log, start_new_session=True)
        self.client = self.file("client")
        self.engine = self.file("engine")
        self.session = Session(key=self.client["key"].encode(), session="client-1",
                               signature_scheme="hmac-sha256")
        self.query = self.socket(zmq.DEALER, self.client["registration"], "client-1")
        self.told = self.socket(zmq.SUB, self.client["notification"])
        self.mux = self.socket(zmq.DEALER, self.client["mux"], "client-1")
        self.task = self.socket(zmq.DEALER, self.client["task"], "client-1")
        self.engines = {}
        self.hearts = []

    def file(self, which):
        path = self.folder / "profile" / "security" / f"ipcontroller-{which}.json"

        def read():
            assert self.process.poll() is None
            try:
                return json.loads(path.read_text())
            except (OSError, ValueError):
                return None

        return wait_for(read, 30, path)

    def socket(self, kind, port, identity=None):
        socket = self.context.socket(kind)
        socket.linger = 0
        if identity:
            socket.setsockopt(zmq.IDENTITY, identity.encode())
        if kind == zmq.SUB:
            socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.connect(f"tcp://127.0.0.1:{port}")
        return socket

    def receive(self, socket, timeout=20):
        """-> (identities, message)"""
        assert socket.poll(timeout * 1000), "no message"
        return self.session.recv(socket, mode=0)

    def ask(self, msg_type, content, timeout=20):
        """The reply, or None when none comes."""
        msg_id = self.session.send(self.query, msg_type, content=content)["header"]["msg_id"]
        while self.query.poll(timeout * 1000):
            message = self.session.recv(self.query, mode=0)[1]
            if message["parent_header"].get("msg_id") == msg_id:
                return message
        return None

    def register(self, uuid):
        socket = self.socket(zmq.DEALER, self.engine["registration"], uuid)
        self.session.send(socket, "registration_request", content={"uuid": uuid})
        assert self.receive(socket)[1]["content"]["status"] == "ok"
        # One ROUTER for both queues, as an engine has it.
        shell = self.socket(zmq.ROUTER, self.engine["mux"], uuid)
        shell.connect(f"tcp://127.0.0.1:{self.engine['task']}")
        self.engines[uuid] = shell
        address = "tcp://127.0.0.1:%i"
        self.hearts.append(Heart(address % self.engine["hb_ping"], address % self.engine["hb_pong"],
                                 heart_id=uuid.encode()))
        self.hearts[-1].start()
        self.hear("registration_notification")

    def hear(self, msg_type):
        while self.receive(self.told)[1]["header"]["msg_type"] != msg_type:
            pass

    def leave(self, engine_id):
        self.session.send(self.query, "unregistration_request", content={"id": engine_id})
        self.hear("unregistration_notification")

    def submit(self, socket, msg_id, *, ident=None, metadata=None, buffers=()):
        message = self.session.msg("apply_request", content={"code": msg_id}, metadata=metadata)
        message["header"]["msg_id"] = message["msg_id"] = msg_id
        self.session.send(socket, message, ident=ident, buffers=list(buffers))

    def take(self, uuid):
        """The next request that an engine gets."""
        return self.receive(self.engines[uuid])

    def reply(self, uuid, request, socket, status="ok", buffers=()):
        """To `request` as take() gave it, and waits for the client to get it."""
        idents, message = request
        content = {"status": status}
        if status == "error":
            content.update(ename="ValueError", evalue="no", traceback=[], engine_info={})
        metadata = {"engine": uuid, "status": status, "dependencies_met": True,
                    "started": message["header"]["date"]}
        self.session.send(self.engines[uuid], "apply_reply", content=content, ident=idents,
                          parent=message, metadata=metadata, buffers=list(buffers))
        self.receive(socket)

    def publish(self, parent, outputs):
        socket = self.socket(zmq.XPUB, self.engine["iopub"])
        assert socket.poll(20000), "iopub does not subscribe"
        for msg_type, content in outputs:
            self.session.send(socket, msg_type, content=content, parent=parent, ident=b"engine.0")
        query = {"query": {"msg_id": parent["header"]["msg_id"]}, "keys": ["stderr"]}
        wait_for(lambda: self.ask("db_request", query)["content"]["records"][0]["stderr"], 20)

    def close(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()
        self.context.destroy(linger=0)


def play(hub):
    """Engines and tasks: answered, failed, running, waiting, gone with their engine."""
    for uuid in ENGINES:
        hub.register(uuid)
    hub.submit(hub.mux, "m1", ident=b"engine-a", metadata={"label": "one"}, buffers=[b"b1", b"b2"])
    m1 = hub.take("engine-a")
    hub.publish(m1[1], [
        ("execute_input", {"code": "x", "execution_count": 1}),
        ("stream", {"name": "stdout", "text": "out"}),
        ("display_data", {"data": {"text/plain": "d"}, "metadata": {}}),
        ("execute_result", {"data": {"text/plain": "7"}, "execution_count": 1, "metadata": {}}),
        ("stream", {"name": "stderr", "text": "err"}),
    ])
    hub.reply("engine-a", m1, hub.mux, buffers=[b"r1"])
    hub.submit(hub.mux, "m2", ident=b"engine-b")
    hub.reply("engine-b", hub.take("engine-b"), hub.mux, status="error")
    hub.submit(hub.mux, "m3", ident=b"engine-a")  # is running
    hub.take("engine-a")
    # Records are in the order in which the hub hears of them, by different ways.
    wait_for(lambda: hub.ask("queue_request", {"targets": [0]})["content"]["0"]["queue"] == 1, 20)
    for msg_id in ("t1", "t2"):
        hub.submit(hub.task, msg_id, metadata={"targets": ["engine-b"], "retries": 0})
        taken = hub.take("engine-b")
        if msg_id == "t1":
            hub.reply("engine-b", taken, hub.task, buffers=[b"r2", b"r3"])
    hub.submit(hub.task, "t3", metadata={"after": {"dependencies": ["t2"], "all": True,
                                                   "success": True, "failure": False}})
    hub.leave(2)

    def settled():
        status = hub.ask("queue_request", {"targets": None})["content"]
        return status["unassigned"] == 1 and status["1"] == {"queue": 0, "completed": 2, "tasks": 1}

    wait_for(settled, 20, "t1 answered, t2 running, t3 waiting")


QUERY = "db_request"
LATER, EARLIER = "2100-01-01T00:00:00.000000Z", "2000-01-01T00:00:00.000000Z"

# What is asked; purging and resubmitting come last, since they change what there is.
ASKED = [
    ("nonsense", {}),
    ("", {}),
    ("queue_reply", {}),
    ("connection_request", {}),
    ("connection_request", {"unexpected": [1]}),
    *[(kind, {"targets": targets}) for kind in ("queue_request",) for targets in (
        None, [], 0, 1, [0], [0, 1], [1, 0, 1], "engine-a", ["engine-b", 0], 99, [99], [0, 99, 98],
        "all", ["engine-z"], 2, "engine-c", -1, True, [None], {}, {"0": 1}, 1.5, [[0]], "")],
    ("queue_request", {}),
    ("queue_request", {"targets": None, "verbose": True}),
    ("queue_request", {"targets": [0], "verbose": 1}),
    ("queue_request", {"targets": [0], "verbose": "yes"}),
    ("queue_request", {"targets": [0], "verbose": None}),
    ("load_request", {}),
    ("load_request", {"targets": 99}),
    ("load_request", {"targets": []}),
    ("result_request", {}),
    *[("result_request", {"msg_ids": ids, "status_only": only}) for only in (False, True)
      for ids in ([], ["m1"], ["m2"], ["m3"], ["t1"], ["t2", "t1"], ["m1", "m1"], ["t3"], ["x"],
                  ["m1", "x"], ["x", "m3"])],
    ("result_request", {"msg_ids": ["m1"], "status_only": 1}),
    ("result_request", {"msg_ids": "m1"}),
    ("result_request", {"msg_ids": None}),
    ("result_request", {"msg_ids": 7}),
    ("result_request", {"msg_ids": [7]}),
    ("result_request", {"msg_ids": [["m1"]]}),
    ("result_request", {"msg_ids": ["m1", None]}),
    ("history_request", {}),
    ("history_request", {"unexpected": 1}),
    # Queries: values, each operator with what fits and what does not.
    (QUERY, {}),
    (QUERY, {"query": {}, "keys": []}),
    (QUERY, {"query": {}, "keys": None}),
    (QUERY, {"query": {}, "keys": ["msg_id"]}),
    (QUERY, {"query": {}, "keys": ["msg_id", "msg_id", "queue"]}),
    (QUERY, {"query": {}, "keys": ["buffers"]}),
    (QUERY, {"query": {}, "keys": ["result_buffers", "header"]}),
    (QUERY, {"query": {}, "keys": ["buffers", "result_buffers"]}),
    (QUERY, {"query": {}, "keys": ["colour"]}),
    (QUERY, {"query": {"msg_id": "x"}, "keys": ["colour"]}),
    (QUERY, {"query": {}, "keys": [7]}),
    (QUERY, {"query": {}, "keys": [None]}),
    (QUERY, {"query": {}, "keys": "queue"}),
    (QUERY, {"query": {}, "keys": 7}),
    (QUERY, {"query": None}),
    (QUERY, {"query": []}),
    (QUERY, {"query": "x"}),
    (QUERY, {"query": 7}),
    *[(QUERY, {"query": query, "keys": ["msg_id"]}) for query in (
        {"msg_id": "m1"}, {"msg_id": None}, {"queue": "mux"}, {"queue": None}, {"colour": 1},
        {"colour": None}, {"label": "one"}, {"msg_id": 7}, {"msg_id": ["m1"]},
        {"engine_uuid": "engine-a"}, {"client_uuid": "client-1"}, {"completed": None},
        {"header": 7}, {"stdout": "out"}, {"stdout": ""}, {"stderr": "err"}, {"resubmitted": None},
        {"msg_id": {}}, {"msg_id": {"$b": 1}}, {"msg_id": {"x": 1}}, {"colour": {"$b": 1}},
        {"msg_id": {"$eq": "m1"}}, {"msg_id": {"$ne": "m1"}}, {"completed": {"$ne": None}},
        {"completed": {"$eq": None}}, {"msg_id": {"$lt": "n"}}, {"msg_id": {"$lte": "m1"}},
        {"msg_id": {"$gte": "m2"}}, {"msg_id": {"$lt": 7}}, {"msg_id": {"$lt": None}},
        {"msg_id": {"$gte": []}}, {"queue": {"$lt": "n"}}, {"colour": {"$lt": 1}},
        {"submitted": {"$lt": LATER}}, {"submitted": {"$gte": EARLIER}},
        {"submitted": {"$lt": EARLIER}}, {"submitted": {"$lte": LATER, "$gte": EARLIER}},
        {"submitted": {"$lt": "yesterday"}}, {"submitted": {"$lt": 7}},
        {"completed": {"$lt": LATER}}, {"submitted": LATER}, {"submitted": {"$in": [LATER]}},
        {"msg_id": {"$in": ["m1", "t1", "x"]}}, {"msg_id": {"$in": []}},
        {"msg_id": {"$in": "m1t1"}}, {"msg_id": {"$in": 7}}, {"msg_id": {"$in": None}},
        {"msg_id": {"$in": {"m1": 1}}}, {"msg_id": {"$in": [1, None, ["m1"]]}},
        {"msg_id": {"$nin": ["m1"]}}, {"msg_id": {"$nin": 7}}, {"completed": {"$in": [None]}},
        {"completed": {"$in": "x"}},
        {"msg_id": {"$all": ["xm1x", "m1"]}}, {"msg_id": {"$all": []}},
        {"msg_id": {"$all": [["m1"]]}}, {"msg_id": {"$all": 7}}, {"msg_id": {"$all": "m"}},
        {"msg_id": {"$all": [7]}},
        {"msg_id": {"$mod": [2, 1]}}, {"colour": {"$mod": [2, 1]}}, {"msg_id": {"$mod": 2}},
        {"msg_id": {"$mod": [2]}}, {"msg_id": {"$mod": []}}, {"msg_id": {"$mod": None}},
        {"completed": {"$exists": True}}, {"completed": {"$exists": False}},
        {"colour": {"$exists": True}}, {"colour": {"$exists": 0}}, {"stdout": {"$exists": "x"}},
        {"stdout": {"$exists": ""}}, {"stdout": {"$exists": []}}, {"stdout": {"$exists": [0]}},
        {"stdout": {"$exists": {}}},
        {"msg_id": {"$in": ["m1", "t1"], "$ne": "m1"}}, {"queue": {"$eq": "mux"}, "msg_id": "m1"})],
    *[(QUERY, {"query": query}) for query in ({"msg_id": "m1"}, {"msg_id": "m2"}, {"msg_id": "m3"},
                                              {"msg_id": {"$in": ["t1", "t2", "t3"]}})],
    ("stop_distributed_request", {}),
    ("purge_request", {}),
    ("purge_request", {"msg_ids": ["x"]}),
    ("purge_request", {"msg_ids": ["m1", "m3"]}),
    ("purge_request", {"msg_ids": "zz"}),
    ("purge_request", {"msg_ids": 7}),
    ("purge_request", {"msg_ids": None}),
    ("purge_request", {"msg_ids": [7, "x"]}),
    ("purge_request", {"engine_ids": [99]}),
    ("purge_request", {"engine_ids": [2]}),
    ("purge_request", {"engine_ids": ["engine-a"]}),
    ("purge_request", {"engine_ids": [None]}),
    ("purge_request", {"engine_ids": 0}),
    ("purge_request", {"engine_ids": "all"}),
    ("history_request", {}),
    ("purge_request", {"msg_ids": ["m2"], "engine_ids": [99]}),
    ("history_request", {}),
    ("purge_request", {"engine_ids": [0]}),  # what it drops is not asked: there, nothing
    ("resubmit_request", {}),
    ("resubmit_request", {"msg_ids": []}),
    ("resubmit_request", {"msg_ids": ["x"]}),
    ("resubmit_request", {"msg_ids": ["t1", "x", "y"]}),
    ("resubmit_request", {"msg_ids": None}),
    ("resubmit_request", {"msg_ids": 7}),
    ("resubmit_request", {"msg_ids": [7]}),
    ("resubmit_request", {"msg_ids": "t1"}),
    ("purge_request", {"msg_ids": "all"}),
    ("history_request", {}),
    ("result_request", {"msg_ids": ["t1"]}),
    ("result_request", {"msg_ids": ["t1"], "status_only": True}),
    ("db_request", {"query": {}, "keys": ["msg_id"]}),
]

# What is asked -> what we answer, and why it is not what ipcontroller answers.
DIFFERENT = [
    # A request without a type is malformed: dropped and counted.
    (("", {}), None),
    # There, True is engine 1, and the reply's key is "True", which no client looks for.
    (("queue_request", {"targets": True}), ("IndexError", "No Such Engine: [True]")),
    # There, the buffers of results found so far come with the error.
    (("result_request", {"msg_ids": ["m1", "x"], "status_only": False}),
     ("KeyError", "'No such message: x'")),
    # Which of the two types is named first depends there on the order of a set.
    (("result_request", {"msg_ids": ["m1", None]}),
     ("TypeError", "'<' not supported between instances of 'NoneType' and 'str'")),
    # Records have a label, as in later versions of ipyparallel: it can be asked for.
    ((QUERY, {"query": {"label": "one"}, "keys": ["msg_id"]}), [{"msg_id": "m1"}]),
]
if ipp.version_info >= (8,):  # see test_newer.py; 7.1 puts names into its sentence by %i, as ours
    DIFFERENT += [
        (("purge_request", {"engine_ids": engines}),
         ("TypeError", f"%i format: a real number is required, not {kind}"))
        for engines, kind in ((["engine-a"], "str"), ([None], "NoneType"), ("all", "str"))]


# What Python 3.14 says otherwise than Python 3.11, whose words ours are.
REWORDED = [(r"cannot use '\w+' as a \w+ \w+ \((unhashable type: '\w+')\)", r"\1"),
            ("is not a container or iterable", "is not iterable")]


def told(message):
    """A reply without what must differ: dates, ids of messages, tracebacks, addresses in texts."""
    if message is None:
        return None
    content = dict(message["content"])
    content.pop("traceback", None)
    content.pop("engine_info", None)
    content.pop("px_engines", None)
    content.pop("px_again", None)
    content.pop("px_bundles", None)
    for record in content.get("records", []):
        record.pop("label", None)  # later versions of ipyparallel have it
        record.pop("display_data", None)  # kept in memory only, as there
    text = json.dumps(content, sort_keys=True, default=str)
    text = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?", "DATE", text)
    text = re.sub(r"client-1_\d+_\d+", "ID", text)
    for later, earlier in REWORDED:
        text = re.sub(later, earlier, text)
    return (message["header"]["msg_type"], message["parent_header"].get("msg_type"),
            json.loads(text), [bytes(b) for b in message["buffers"]])


@pytest.fixture(scope="module", params=["--dictdb", "--sqlitedb", "--nodb"])
def answers(request, tmp_path_factory):
    """(number, asked) -> (reference's, ours)"""
    folder = tmp_path_factory.mktemp("hubs")
    hubs = []
    given = []
    try:
        for name, command in (("reference", stock_controller()), ("ours", OURS)):
            option = request.param if name == "ours" or request.param == "--nodb" else "--dictdb"
            hubs.append(Hub(command, folder / name, option))
            if request.param != "--nodb":
                play(hubs[-1])
            given.append([told(hubs[-1].ask(*asked, timeout=20 if asked[0] else 1)) for asked in ASKED])
    finally:
        for hub in hubs:
            hub.close()
    return list(zip(ASKED, *given))


def summary(answer):
    """What a row of DIFFERENT says of an answer."""
    if answer is None:
        return None
    content = answer[2]
    return (content["ename"], content["evalue"]) if "ename" in content else content.get("records")


def test_answers(answers):
    wrong = []
    for asked, theirs, ours in answers:
        expected = [row[1] for row in DIFFERENT if row[0] == asked]
        if theirs != ours and [summary(ours)] != expected:
            wrong.append(f"{asked[0]} {json.dumps(asked[1])}\n  theirs {theirs}\n  ours   {ours}")
    assert not wrong, "\n".join(wrong)
