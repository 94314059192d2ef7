# SPDX-License-Identifier: BSD-3-Clause
"""Comms of engines, as widgets have them: in the front end of the kernel, whose part the test takes."""
import queue
import time

import pytest

from conftest import wait_for
from said import by_engine
from test_magics import notebook  # noqa: F401: fixture

phalanx = pytest.importorskip("phalanx")
from phalanx import widgets  # noqa: E402

TIMEOUT = 60
OPEN = """%%px -t {targets} {options}
from ipykernel.comm import Comm
import time
heard = []
comm = Comm(target_name="test", data={{"at": 0}}, metadata={{"version": "1"}}, buffers=[b"open"])
comm.on_msg(lambda m: (heard.append(m["content"]["data"]),
                       comm.send({{"back": m["content"]["data"]}}, buffers=m["buffers"])))
comm.on_close(lambda m: heard.append("closed"))
"""


class Page:
    """A front end's side: what comes on iopub, and what is sent on comms."""

    def __init__(self, notebook):
        self.notebook, self.kc = notebook, notebook.kc

    def until(self, found):
        """The comm messages up to the one that is found(it)."""
        messages, deadline = [], time.monotonic() + TIMEOUT
        while not messages or not found(messages[-1]):
            try:
                message = self.kc.get_iopub_msg(timeout=0.2)
            except queue.Empty:
                assert time.monotonic() < deadline, messages
                continue
            if message["msg_type"].startswith("comm_"):
                messages.append(message)
        return messages

    def open(self, targets, options=""):
        """A comm of each of the engines: their ids, by engine."""
        self.notebook.send(OPEN.format(targets=targets, options=options))
        opened = {}
        while len(opened) < (2 if targets == "all" else 1):
            message = self.until(lambda m: m["msg_type"] == "comm_open")[-1]
            assert message["content"]["target_name"] == "test"
            assert message["content"]["data"] == {"at": 0}
            assert message["metadata"]["version"] == "1"
            assert [bytes(buffer) for buffer in message["buffers"]] == [b"open"]
            opened[message["content"]["comm_id"]] = message
        self.kc.get_shell_msg(timeout=TIMEOUT)
        return list(opened)

    def send(self, kind, comm_id, data, buffers=()):
        message = self.kc.session.msg(kind, {"comm_id": comm_id, "data": data})
        self.kc.session.send(self.kc.shell_channel.socket, message, buffers=list(buffers))
        return message["header"]["msg_id"]

    def back(self, comm_id, data, buffers=()):
        """Sends, and waits until it comes back from the engine."""
        self.send("comm_msg", comm_id, data, buffers)
        message = self.until(lambda m: m["content"]["comm_id"] == comm_id)[-1]
        assert message["msg_type"] == "comm_msg" and message["content"]["data"] == {"back": data}
        assert [bytes(buffer) for buffer in message["buffers"]] == list(buffers)

    def info(self):
        """The ids of the comms that the kernel says are open."""
        request = self.kc.comm_info()
        return set(self.notebook.reply(request)["content"]["comms"])


@pytest.fixture
def page(notebook):  # noqa: F811
    return Page(notebook)


def test_both_ways(page):
    ids = page.open("all")
    assert len(set(ids)) == 2 and page.info() >= set(ids)
    for number, comm_id in enumerate(ids):
        page.back(comm_id, {"n": number}, [b"\0buffer", b""])
    heard = page.notebook.texts("%px --group-outputs=engine heard")
    assert sorted(text.split(": ")[-1].rstrip("}]") for text in heard if "'n'" in text) == ["0", "1"]


def test_what_engines_send_comes_while_the_cell_runs(page, tmp_path):
    (comm_id,) = page.open(0)
    gate = tmp_path / "gate"
    page.notebook.send(f"%%px -t 0\nimport os\nfor i in range(3): comm.send({{'i': i}})\n"
                       f"while not os.path.exists({str(gate)!r}): time.sleep(0.02)")
    last = {"comm_id": comm_id, "data": {"i": 2}}
    seen = [m["content"]["data"]["i"] for m in page.until(lambda m: m["content"] == last)]
    assert seen == [0, 1, 2]
    gate.touch()
    page.kc.get_shell_msg(timeout=TIMEOUT)


def test_a_cell_that_nobody_waits_for(page):
    (comm_id,) = page.open(1, "--noblock --stream")
    page.back(comm_id, "late")


def test_what_a_callback_prints_belongs_to_the_message(page):
    """As `with Output():` has it, which asks the front end for what follows a message, by its id."""
    (comm_id,) = page.open(0)
    assert page.notebook.run("""%%px -t 0
from IPython.display import clear_output, display
def called(message):
    comm.send({"state": {"msg_id": message["header"]["msg_id"]}})
    clear_output(wait=True); print("called"); display("it")
    comm.send({"state": {"msg_id": ""}})
comm.on_msg(called)""") == []
    asked = page.send("comm_msg", comm_id, {})
    seen = []
    while not seen or seen[-1] != ("comm_msg", {"state": {"msg_id": ""}}):
        message = page.kc.get_iopub_msg(timeout=TIMEOUT)
        if message["msg_type"] in ("comm_msg", "stream", "display_data", "clear_output"):
            content = message["content"]
            seen.append((message["msg_type"], content.get("data") or content.get("text") or content))
            if message["msg_type"] != "comm_msg":
                assert message["parent_header"]["msg_id"] == asked
    assert seen == [("comm_msg", {"state": {"msg_id": asked}}), ("clear_output", {"wait": True}),
                    ("stream", "called\n"), ("display_data", {"text/plain": "'it'"}),
                    ("comm_msg", {"state": {"msg_id": ""}})]


@pytest.mark.parametrize("options", ["", "--noblock --stream"])
def test_what_a_cell_prints_into_an_output_widget(page, options):
    """It is asked for by the cell's id, a piece at a time; what others print meanwhile is not."""
    opened = page.open("all")
    asked = page.notebook.send(f"""%%px {options}
from IPython.display import clear_output, display
print("before")
if comm.comm_id == {opened[0]!r}:
    comm.send({{"method": "update", "state": {{"msg_id": get_ipython().get_parent()["header"]["msg_id"], "a": 1}}}})
    clear_output(wait=True); print("captured", flush=True); display("it")
    comm.send({{"method": "update", "state": {{"msg_id": ""}}}})
print("after")""")
    seen, text = [], ""
    while not seen or by_engine(text) != {0: "before\nafter\n", 1: "before\nafter\n"} or len(seen) < 11:
        message = page.kc.get_iopub_msg(timeout=TIMEOUT)
        content = message["content"]
        if message["msg_type"] == "stream" and content["text"] != "captured\n":
            text += content["text"]
        elif message["msg_type"] in ("stream", "clear_output", "display_data"):
            assert message["parent_header"]["msg_id"] == asked
            seen.append(message["msg_type"])
        elif message["msg_type"] == "comm_msg" and content["comm_id"] == opened[0]:
            seen.append(content["data"]["state"])
    page.kc.get_shell_msg(timeout=TIMEOUT)
    begin, end = {"msg_id": asked}, {"msg_id": ""}
    assert seen == [{"a": 1}, begin, "clear_output", end, begin, "stream", end, begin, "display_data", end, {}]
    assert by_engine(page.notebook.said("%pxresult")[0]) == {0: "before\nafter\n", 1: "before\nafter\n"}


def test_the_front_end_closes(page):
    (comm_id,) = page.open(0)
    page.send("comm_close", comm_id, {})
    wait_for(lambda: comm_id not in page.info(), what="the comm to be closed")
    assert page.notebook.texts("%px -t 0 heard")[-1].endswith("['closed']")


def test_an_engine_closes(page):
    (comm_id,) = page.open(0)
    page.notebook.send("%px -t 0 comm.close({'bye': 1})")
    message = page.until(lambda m: m["content"]["comm_id"] == comm_id)[-1]
    assert message["msg_type"] == "comm_close" and message["content"]["data"] == {"bye": 1}
    page.kc.get_shell_msg(timeout=TIMEOUT)
    assert comm_id not in page.info()


# ---- without a kernel ------------------------------------------------------------------------


class Comm:
    def __init__(self, **options):
        self.comm_id, self.sent, self.closed, self.hear = options["comm_id"], [], False, None
        made.append(self)

    def open(self, data, **more):
        assert self.hear  # the front end may answer at once
        self.sent.append(data)

    def on_msg(self, function):
        self.hear = function

    def on_close(self, function):
        pass

    def send(self, data, **more):
        self.sent.append(data)

    def close(self, **message):
        self.closed = True


made = []


def told(relays, engine, kind, content, client=phalanx):
    relays.from_engine(client, phalanx._phalanx.Event((
        phalanx._phalanx.OUTPUT, 0, engine, False, False, kind, None, content, "{}", "{}", [], 0.0)), None)


@pytest.fixture
def relays(monkeypatch):
    made.clear()
    monkeypatch.setattr(widgets, "_create", Comm)
    return widgets.Relays()


def test_what_makes_no_sense_is_passed_over(relays):
    for kind in ("comm_open", "comm_msg", "comm_close"):
        for content in ("[]", "7", "{}", '{"comm_id": 7}', '{"comm_id": null, "data": {}}'):
            told(relays, 0, kind, content)
    told(relays, 0, "comm_msg", '{"comm_id": "none", "data": {}}')
    told(relays, 0, "comm_close", '{"comm_id": "none", "data": {}}')
    assert made == []


def test_an_engine_has_no_other_ones_comms(relays):
    told(relays, 0, "comm_open", '{"comm_id": "a", "data": 1}')
    for kind in ("comm_open", "comm_msg", "comm_close"):
        told(relays, 1, kind, '{"comm_id": "a", "data": 2}')
    (comm,) = made
    assert comm.sent == [1] and not comm.closed
    told(relays, 0, "comm_msg", '{"comm_id": "a", "data": 3}')
    assert comm.sent == [1, 3]


def test_the_oldest_of_too_many_is_closed(relays):
    for number in range(widgets.MOST + 2):
        told(relays, 0, "comm_open", '{"comm_id": "%d", "data": 1}' % number)
    assert [comm.closed for comm in made] == [True, True] + [False] * widgets.MOST


def test_an_engine_that_is_gone_closes_its_comm(relays):
    class Client:
        class _raw:
            @staticmethod
            def submit(*args, **options):
                raise IndexError("engine 0 is not there")

    told(relays, 0, "comm_open", '{"comm_id": "a", "data": 1}', Client)
    told(relays, 1, "comm_open", '{"comm_id": "b", "data": 1}', Client)
    made[0].hear({"content": {"data": {}}})
    assert [comm.closed for comm in made] == [True, False]
    told(relays, 0, "comm_msg", '{"comm_id": "a", "data": 2}', Client)  # is none of ours any more
    assert made[0].sent == [1]
