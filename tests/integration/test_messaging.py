# SPDX-License-Identifier: BSD-3-Clause
"""What protocol 5.5 adds: subshells, a welcome on iopub, usage, features; and payloads, stdin,
widgets' messages, through pxkernel with Python."""
import contextlib
import importlib.util
import json
import os
import re
import signal
import time
from pathlib import Path
from queue import Empty

import pytest
import zmq
from conftest import wait_for
from jupyter_client.session import Session
from kernels import TIMEOUT, echo, kernel, python, shared, start  # noqa: F401: fixtures

pytestmark = pytest.mark.usefixtures("no_leftovers")


def control(kernel, msg_type, content=None):
    msg_id = kernel.send("control", msg_type, content or {})
    return kernel.reply(msg_id, "control")["content"]


def send_to(kernel, subshell, msg_type, content):
    """Sends a request to a subshell; returns its msg_id."""
    msg = kernel.kc.session.msg(msg_type, content)
    msg["header"]["subshell_id"] = subshell
    kernel.kc.shell_channel.send(msg)
    return msg["header"]["msg_id"]


def cell(code, **more):
    return {"code": code, "silent": False, "store_history": True, "user_expressions": {},
            "allow_stdin": False, "stop_on_error": True, **more}


def execute_in(kernel, subshell, code):
    return send_to(kernel, subshell, "execute_request", cell(code))


# ---- kernel_info, usage -------------------------------------------------------

def test_features_are_those_that_are_there(python, echo):
    info = control(python, "kernel_info_request")
    assert info["protocol_version"] == "5.5"
    debugs = importlib.util.find_spec("debugpy") is not None
    assert info["supported_features"] == ["kernel subshells", *["debugger"] * debugs]
    assert control(echo, "kernel_info_request")["supported_features"] == []
    refused = control(echo, "create_subshell_request")
    assert refused["status"] == "error" and refused["ename"] == "NotImplementedError"


def test_usage_is_told_while_a_cell_holds_the_gil(python):
    busy = python.kc.execute("print('go', flush=True)\nimport re\n"
                             "re.match(r'(a+)+$', 'a' * 30 + 'b')")  # holds it for minutes
    python.wait_for_output(busy, "stream")
    control(python, "usage_request")
    usage = control(python, "usage_request")
    assert usage["pid"] == python.pid and usage["kernel_memory"] > 1 << 20
    assert usage["cpu_count"] == os.cpu_count() and usage["host_virtual_memory"]["total"] > 1 << 20
    wait_for(lambda: control(python, "usage_request")["kernel_cpu"] > 10, what="a busy kernel")
    python.km.shutdown_kernel(now=True)


def test_a_subscriber_is_welcomed(echo):
    info = echo.km.get_connection_info()
    session = Session(key=info["key"])
    with zmq.Context() as context, context.socket(zmq.SUB) as iopub:
        iopub.connect(f"tcp://127.0.0.1:{info['iopub_port']}")
        for topic in (b"", b"kernel."):
            iopub.subscribe(topic)
            assert iopub.poll(TIMEOUT * 1000)
            idents, frames = session.feed_identities(iopub.recv_multipart())
            welcome = session.deserialize(frames)
            assert idents == ([topic] if topic else [])
            assert welcome["msg_type"] == "iopub_welcome" and welcome["parent_header"] == {}
            assert welcome["content"] == {"subscription": topic.decode()}
            iopub.unsubscribe(topic)
        iopub.subscribe(b"\xff\xfe")  # no text, no welcome; and no harm
    assert echo.run("hello")[0]["status"] == "ok"


# ---- subshells ---------------------------------------------------------------------------

def make_subshell(kernel):
    return control(kernel, "create_subshell_request")["subshell_id"]


@pytest.fixture
def subshell(kernel):
    made = make_subshell(kernel)
    yield made
    control(kernel, "delete_subshell_request", {"subshell_id": made})


def test_a_cell_may_ask_for_the_subshells(kernel, subshell):
    for own in (None, subshell):
        shown = kernel.until_idle(execute_in(kernel, own, "%subshell"))
        said = "".join(content["text"] for kind, content in shown if kind == "stream")
        assert f"subshell id: {own}\n" in said and f"subshell list: ['{subshell}']\n" in said


def test_subshells_are_made_listed_and_deleted(kernel):
    made = [control(kernel, "create_subshell_request")["subshell_id"] for _ in range(3)]
    assert control(kernel, "list_subshell_request") == {"status": "ok", "subshell_id": made}
    assert control(kernel, "delete_subshell_request", {"subshell_id": made[1]})["status"] == "ok"
    assert control(kernel, "list_subshell_request")["subshell_id"] == [made[0], made[2]]
    for wrong in ({"subshell_id": made[1]}, {"subshell_id": 5}, {}):
        assert control(kernel, "delete_subshell_request", wrong)["status"] == "error"
    msg_id = execute_in(kernel, made[1], "1")
    assert kernel.reply(msg_id)["content"]["status"] == "error"
    assert [kind for kind, _ in kernel.until_idle(msg_id)] == ["status", "status"]
    for left in (made[0], made[2]):
        control(kernel, "delete_subshell_request", {"subshell_id": left})


def test_subshells_are_bounded(python):
    replies = [control(python, "create_subshell_request") for _ in range(70)]
    assert [r["status"] for r in replies] == ["ok"] * 64 + ["error"] * 6
    assert python.run("1")[0]["status"] == "ok"


def test_a_subshell_runs_while_the_main_shell_does(kernel, subshell):
    main = kernel.kc.execute("import threading\nreached = threading.Event()\nprint('go', flush=True)\n"
                             "assert reached.wait(30)\nprint('main done')")
    kernel.wait_for_output(main, "stream")
    other = execute_in(kernel, subshell, "print('in it')\nreached.set()\n"
                                         "threading.current_thread().name")
    reply = kernel.reply(other)
    assert reply["content"]["status"] == "ok" and reply["parent_header"]["msg_id"] == other
    assert kernel.reply(main)["content"]["status"] == "ok"


def test_the_state_heard_last_is_busy_while_a_cell_runs(kernel, subshell):
    """That of the service thread's and of subshells' requests says less."""
    main = kernel.kc.execute("print('go', flush=True)\nname = input()", allow_stdin=True)
    kernel.wait_for_output(main, "stream")
    kernel.kc.get_stdin_msg(timeout=TIMEOUT)
    for ask in (kernel.kc.kernel_info, lambda: kernel.send("control", "usage_request", {}),
                lambda: execute_in(kernel, subshell, "1")):
        kernel.until_idle(ask())
        assert kernel.wait_for_output(main, "status") == {"execution_state": "busy"}
    kernel.kc.input("")
    assert [c for kind, c in kernel.until_idle(main) if kind == "status"] == [
        {"execution_state": "idle"}]
    for msg_id in (kernel.kc.kernel_info(), kernel.kc.execute("2")):
        assert sum(kind == "status" for kind, _ in kernel.until_idle(msg_id)) == 2


def test_output_of_each_shell_has_its_own_parent(kernel, subshell):
    kernel.run("import threading, time\nturn = threading.Barrier(2)\n"
               "def talk(who):\n"
               "    for i in range(20):\n"
               "        turn.wait(20)\n"
               "        print(who, i, flush=True)")
    ids = {kernel.kc.execute("talk('main'); 'main result'"): "main",
           execute_in(kernel, subshell, "talk('sub'); 'sub result'"): "sub"}
    text, results, idle = {"main": "", "sub": ""}, {}, 0
    while idle < 2:
        msg = kernel.kc.get_iopub_msg(timeout=TIMEOUT)
        who = ids.get(msg["parent_header"].get("msg_id"))
        if msg["msg_type"] == "stream":
            text[who] += msg["content"]["text"]
        elif msg["msg_type"] == "execute_result":
            results[who] = msg["content"]["data"]["text/plain"]
        idle += who is not None and msg["content"].get("execution_state") == "idle"
    assert text == {who: "".join(f"{who} {i}\n" for i in range(20)) for who in ("main", "sub")}
    assert results == {"main": "'main result'", "sub": "'sub result'"}


def test_what_c_code_writes_belongs_to_the_main_shells_cell(kernel, subshell):
    """And half a character waits for the other half."""
    main = kernel.kc.execute("import os, threading\ngo = threading.Event()\n"
                             "print('begun', flush=True)\nassert go.wait(30)")
    kernel.wait_for_output(main, "stream")
    for code in (r"os.write(1, b'\xc3')", r"os.write(1, b'\xbc\n')"):
        kernel.reply(execute_in(kernel, subshell, code))
    assert kernel.wait_for_output(main, "stream")["text"] == "ü\n"
    kernel.reply(execute_in(kernel, subshell, "go.set()"))
    kernel.reply(main)


def test_comm_messages_on_a_subshell_run_while_a_cell_does(kernel, subshell):
    """What JupyterLab does with a slider."""
    kernel.run("from ipykernel.comm import Comm\nimport threading\nmoved = threading.Event()\n"
               "def on_open(comm, msg):\n"
               "    @comm.on_msg\n"
               "    def on_msg(msg):\n"
               "        print('slider', msg['content']['data'], flush=True)\n"
               "        moved.set()\n"
               "get_ipython().kernel.comm_manager.register_target('slider', on_open)")
    main = kernel.kc.execute("print('go', flush=True)\nassert moved.wait(30)")
    kernel.wait_for_output(main, "stream")
    send_to(kernel, subshell, "comm_open", {"comm_id": "c1", "target_name": "slider", "data": {}})
    moved = send_to(kernel, subshell, "comm_msg", {"comm_id": "c1", "data": {"value": 7}})
    seen = []
    while "slider" not in str(seen):
        msg = kernel.kc.get_iopub_msg(timeout=TIMEOUT)
        if msg["parent_header"].get("msg_id") == moved:
            seen.append(msg["content"])
    assert kernel.reply(main)["content"]["status"] == "ok"


def test_errors_and_queries_stay_in_their_subshell(kernel, subshell):
    ids = [execute_in(kernel, subshell, code) for code in ("import time; time.sleep(.2); 1/0", "2")]
    mine = kernel.kc.execute("3")
    assert kernel.reply(mine)["content"]["status"] == "ok"
    assert [kernel.reply(i)["content"]["status"] for i in ids] == ["error", "aborted"]
    asked = send_to(kernel, subshell, "complete_request", {"code": "zi", "cursor_pos": 2})
    assert "zip" in kernel.reply(asked)["content"]["matches"]
    awaited = execute_in(kernel, subshell, "import asyncio\nawait asyncio.sleep(0.01)\n'waited'")
    assert kernel.reply(awaited)["content"]["status"] == "ok"


def test_a_subshell_knows_the_history(kernel, subshell):
    kernel.run("remarkable = 1")
    for kind in ({"hist_access_type": "tail", "n": 5}, {"hist_access_type": "range", "session": 0},
                 {"hist_access_type": "search", "pattern": "remark*"}):
        asked = send_to(kernel, subshell, "history_request", {"raw": True, "output": False, **kind})
        reply = kernel.reply(asked)["content"]
        assert reply["status"] == "ok", reply
        assert "remarkable = 1" in [line for *_, line in reply["history"]]


def ask_in(kernel, subshell, prompt):
    msg_id = send_to(kernel, subshell, "execute_request",
                     cell(f"print('heard', input({prompt!r}))", allow_stdin=True))
    return msg_id, kernel.kc.get_stdin_msg(timeout=TIMEOUT)


def heard(kernel, msg_id):
    assert kernel.reply(msg_id)["content"]["status"] == "ok"
    said = ""
    while not said.endswith("\n"):  # it may come in pieces
        said += kernel.wait_for_output(msg_id, "stream")["text"]
    return said


def test_shells_ask_at_once_and_each_gets_its_answer(kernel, subshell):
    mine = kernel.kc.execute("print('heard', input('main? '))", allow_stdin=True)
    questions = {mine: kernel.kc.get_stdin_msg(timeout=TIMEOUT)}
    theirs, question = ask_in(kernel, subshell, "sub? ")
    questions[theirs] = question
    for msg_id, question in questions.items():
        assert question["parent_header"]["msg_id"] == msg_id
    late = kernel.kc.session.msg("input_reply", {"value": "late"}, parent={
        **questions[mine]["header"], "msg_id": "gone"})
    kernel.kc.stdin_channel.send(late)
    for msg_id, value in ((theirs, "sub"), (mine, "main")):
        reply = kernel.kc.session.msg("input_reply", {"value": value},
                                      parent=questions[msg_id]["header"])
        kernel.kc.stdin_channel.send(reply)
        assert heard(kernel, msg_id) == f"heard {value}\n"


def test_a_subshell_takes_an_answer_that_names_no_question(kernel, subshell):
    msg_id, question = ask_in(kernel, subshell, "sub? ")
    assert question["content"] == {"prompt": "sub? ", "password": False}
    kernel.kc.input("any")
    assert heard(kernel, msg_id) == "heard any\n"


def test_an_interrupt_ends_a_subshells_question(kernel, subshell):
    msg_id, _ = ask_in(kernel, subshell, "sub? ")
    kernel.km.interrupt_kernel()
    assert kernel.reply(msg_id)["content"]["ename"] == "KeyboardInterrupt"


def test_an_interrupt_reaches_a_subshell(kernel, subshell):
    stuck = execute_in(kernel, subshell, "print('go', flush=True)\nwhile True: pass")
    kernel.wait_for_output(stuck, "stream")
    kernel.km.interrupt_kernel()
    assert kernel.reply(stuck)["content"]["ename"] == "KeyboardInterrupt"
    fine = execute_in(kernel, subshell, "'fine'")
    assert kernel.reply(fine)["content"]["status"] == "ok"


def test_an_interrupt_does_not_reach_the_thread_that_a_subshell_starts(kernel, subshell):
    """Who waits for that thread to begin would wait for ever."""
    code = ("import threading\nprint('go', flush=True)\n"
            "while True:\n    thread = threading.Thread(target=int); thread.start(); thread.join()")
    for _ in range(20):
        stuck = execute_in(kernel, subshell, code)
        kernel.wait_for_output(stuck, "stream")
        kernel.km.interrupt_kernel()
        assert kernel.reply(stuck)["content"]["ename"] == "KeyboardInterrupt"


def test_deleting_a_subshell_aborts_what_waits_there(kernel, subshell):
    running = execute_in(kernel, subshell, "import threading\ngo = threading.Event()\n"
                                           "print('go', flush=True)\ngo.wait(30)")
    kernel.wait_for_output(running, "stream")
    waiting = execute_in(kernel, subshell, "1")
    kernel.reply(kernel.kc.kernel_info())  # it came by the same way: the other has arrived
    assert control(kernel, "delete_subshell_request", {"subshell_id": subshell})["status"] == "ok"
    assert kernel.reply(waiting)["content"]["status"] == "aborted"
    kernel.run("go.set()")
    assert control(kernel, "list_subshell_request")["subshell_id"] == []


@pytest.mark.parametrize("code", ["import time; print('go', flush=True); time.sleep(60)",
                                  "print('go', flush=True)\nwhile True:\n"
                                  "    try:\n        while True: pass\n"
                                  "    except BaseException: pass"])
def test_a_busy_subshell_does_not_keep_the_kernel_from_ending(python, code):
    subshell = make_subshell(python)
    python.wait_for_output(execute_in(python, subshell, code), "stream")
    process = python.km.provisioner.process
    began = time.monotonic()
    python.send("control", "shutdown_request", {"restart": False})
    assert process.wait(TIMEOUT) == 0
    assert time.monotonic() - began < 4


def test_a_subshell_made_before_python_is_up_serves(start, tmp_path):
    kernel = start()
    subshell = control(kernel, "create_subshell_request")["subshell_id"]
    first = execute_in(kernel, subshell, "6 * 7")
    assert kernel.reply(first)["content"]["status"] == "ok"


# ---- interrupts ---------------------------------------------------------------------------

STUBBORN = """
import asyncio, signal, time
signal.signal(signal.SIGINT, print)
signal.signal(signal.SIGINT, signal.default_int_handler)
print('go', flush=True)
while True:
    try:
        {wait}(60)
    except BaseException:
        print('no', flush=True)
"""


def interrupt_until_answered(kernel, msg_id, interrupt, patience=0.2):
    """As a person does: again, where the first came at an instant in which CPython loses it (python.c),
    or where code looks at what waits more than once."""
    def answered():
        interrupt()
        with contextlib.suppress(Empty):
            reply = kernel.kc.get_shell_msg(timeout=patience)
            kernel.early[reply["parent_header"]["msg_id"]] = reply
        return msg_id in kernel.early

    wait_for(answered, TIMEOUT)


def by_message(kernel):
    kernel.send("control", "interrupt_request", {})  # the manager's may have the id of a cell


def by_signal(kernel):
    os.kill(kernel.pid, signal.SIGINT)


def end_stubborn_cell(kernel, interrupt=by_message, wait="time.sleep"):
    """It must take two; under load the second may come too late to count as one."""
    running = kernel.kc.execute(STUBBORN.format(wait=wait))
    kernel.wait_for_text(running, "go\n")
    interrupt(kernel)
    kernel.wait_for_text(running, "no\n")
    interrupt_until_answered(kernel, running, lambda: interrupt(kernel))
    assert kernel.reply(running)["content"]["ename"] == "KeyboardInterrupt"
    shown = kernel.until_idle(running)
    assert [c["ename"] for kind, c in shown if kind == "error"] == ["KeyboardInterrupt"]


@pytest.mark.parametrize("interrupt", [by_message, by_signal])
@pytest.mark.parametrize("wait", ["time.sleep", "await asyncio.sleep"])
def test_a_second_interrupt_ends_a_cell_that_catches_the_first(kernel, interrupt, wait):
    end_stubborn_cell(kernel, interrupt, wait)
    shown = dict(kernel.run("len(asyncio.all_tasks(asyncio.get_event_loop()))")[1])
    assert shown["execute_result"]["data"]["text/plain"] == "0"  # it does not go on by itself
    assert kernel.run("x = 1\nfor i in range(10): x += 1\nx")[0]["status"] == "ok"


def test_interrupts_of_the_first_cell_leave_a_kernel(start):
    """Which imports IPython meanwhile."""
    kernel = start()
    running = kernel.kc.execute("import time\nfor i in range(20): time.sleep(0.1)")
    interrupt_until_answered(kernel, running, lambda: by_signal(kernel), 0.005)
    kernel.reply(running)
    assert kernel.run("1")[0]["status"] == "ok"
    process = kernel.km.provisioner.process
    kernel.send("control", "shutdown_request", {"restart": False})
    wait_for(lambda: by_signal(kernel) or process.poll() is not None, TIMEOUT)
    assert process.returncode == 0


HANDLES = """
import signal, time
hits = []
signal.signal(signal.SIGINT, lambda *arguments: print('hit', len(hits.append(1) or hits), flush=True))
"""


@pytest.mark.parametrize("cells", [[HANDLES, ""], [HANDLES]])
def test_code_that_handles_sigint_gets_every_one(kernel, cells):
    """In the cell that sets the handler, and in the next."""
    *before, last = cells
    for cell in before:
        kernel.run(cell)
    running = kernel.kc.execute(last + "print('go', flush=True)\nwhile len(hits) < 3: time.sleep(0.01)\n"
                                       "signal.signal(signal.SIGINT, signal.default_int_handler)")
    for text in ("go\n", "hit 1\n", "hit 2\n"):
        kernel.wait_for_text(running, text)
        by_signal(kernel)
    assert kernel.reply(running)["content"]["status"] == "ok"


FORKS = """
import os, select
def child():
    for i in range(3):
        try:
            print(f'child {i}.', flush=True)
            while True: select.select([], [], [], 0.01)
        except KeyboardInterrupt:
            for j in range(100): caught = j
    os._exit(7)
child_id = os.fork() or child()
"""


def test_a_child_catches_as_many_interrupts_as_it_likes(kernel):
    running = kernel.kc.execute(FORKS + "print(f'is {child_id}.', flush=True)\n"
                                        "os.waitstatus_to_exitcode(os.waitpid(child_id, 0)[1])")
    said = ""
    for i in range(3):
        while f"child {i}." not in said or not re.search(r"is \d+\.", said):
            said += kernel.wait_for_output(running, "stream")["text"]
        os.kill(int(re.search(r"is (\d+)\.", said)[1]), signal.SIGINT)
    shown = dict(kernel.until_idle(running))
    assert shown["execute_result"]["data"]["text/plain"] == "7"


def test_interrupts_that_come_late_to_a_subshell_leave_the_main_one_as_it_was(kernel, subshell):
    for _ in range(100):
        running = execute_in(kernel, subshell, "")
        kernel.send("control", "interrupt_request", {})
        kernel.reply(running)
    end_stubborn_cell(kernel)


HOLDER = """
import ctypes, os, threading
start, held, let_go = os.pipe(), os.pipe(), os.pipe()
def hold(keeping=ctypes.PyDLL(None), byte=ctypes.create_string_buffer(1)):
    os.read(start[0], 1)
    keeping.write(held[1], byte, 1)  # calls through it keep the lock
    keeping.read(let_go[0], byte, 1)
threading.Thread(target=hold).start()
[start[1], held[0], let_go[1]]
"""


def is_asleep(pid):
    """Whether no thread of the process has anything to do, as none that wants the lock has then."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "S" for task in tasks)


@pytest.mark.parametrize("where", ["main", "subshell", "signal"])
def test_an_interrupt_reaches_a_cell_that_waits_for_the_lock(kernel, subshell, where):
    """A library keeps the lock in another thread as the cell starts."""
    pipes = json.loads(dict(kernel.run(HOLDER)[1])["execute_result"]["data"]["text/plain"])
    start, held, let_go = (f"/proc/{kernel.pid}/fd/{fd}" for fd in pipes)
    wait_for(lambda: is_asleep(kernel.pid), what="the end of what the last cell left to do")
    with open(let_go, "wb", 0) as release, open(held, "rb", 0) as holds:
        with open(start, "wb", 0) as begin:
            begin.write(b"x")
        holds.read(1)
        code = "import time\nfor i in range(50): time.sleep(0.1)"
        running = execute_in(kernel, subshell if where == "subshell" else None, code)
        kernel.wait_for_output(running, "execute_input")
        if where == "signal":
            os.kill(kernel.pid, signal.SIGINT)
        else:
            control(kernel, "interrupt_request")
        release.write(b"x")
    reply = kernel.reply(running)["content"]
    assert reply.get("ename") == "KeyboardInterrupt" and reply["execution_count"] > 0
    reply, seen = kernel.run("1")
    assert reply["execution_count"] == dict(seen)["execute_input"]["execution_count"]


@pytest.mark.parametrize("code", [
    "import os; print('go', flush=True); os.system('sleep 60')",
    "print('go', flush=True)\n!sleep 60",
    "import subprocess; print('go', flush=True); subprocess.run(['sleep', '60'])",
    "print('go', flush=True)\nimport threading; threading.Lock().acquire() and None\n"
    "l = threading.Lock(); l.acquire(); l.acquire()",
    "import asyncio; print('go', flush=True); await asyncio.sleep(60)",
    "import multiprocessing as m\np = m.Process(target=__import__('time').sleep, args=(60,))\n"
    "p.start(); print('go', flush=True); p.join()",
])
def test_an_interrupt_ends_what_a_cell_waits_for(kernel, code):
    running = kernel.kc.execute(code)
    kernel.wait_for_output(running, "stream")
    interrupt_until_answered(kernel, running, kernel.km.interrupt_kernel, 5)
    kernel.reply(running)
    assert kernel.run("1")[0]["status"] == "ok"


@pytest.mark.parametrize("msg_type", ["complete_request", "inspect_request"])
def test_an_interrupt_of_a_query_does_no_harm(kernel, msg_type):
    kernel.run("class Slow:\n"
               "    def wait(self, *name):\n"
               "        import time; print('go', flush=True); time.sleep(60); return []\n"
               "    __dir__ = __getattr__ = wait\n"
               "slow = Slow()")
    asked = kernel.send("shell", msg_type, {"code": "slow.x", "cursor_pos": 5, "detail_level": 0})
    kernel.wait_for_text(asked, "go\n")
    interrupt_until_answered(kernel, asked, lambda: os.kill(kernel.pid, signal.SIGINT))
    assert kernel.reply(asked)["content"]["status"] in ("ok", "error")
    assert kernel.run("del slow")[0]["status"] == "ok"


def test_a_storm_of_interrupts_does_no_harm(kernel):
    for round in range(3):
        running = kernel.kc.execute("import time\nfor i in range(100): time.sleep(0.01)")
        for _ in range(60):
            os.kill(kernel.pid, signal.SIGINT)
            kernel.send("control", "interrupt_request", {})
        kernel.reply(running)
    answers = [kernel.run("'alive'")[0]["status"] for _ in range(3)]
    assert answers[-1] == "ok"


# ---- payloads, input ---------------------------------------------------------------------------

def test_payloads(kernel):
    reply, _ = kernel.run("zip?")
    assert [p["source"] for p in reply["payload"]] == ["page"]
    assert "text/plain" in reply["payload"][0]["data"]
    reply, _ = kernel.run("get_ipython().set_next_input('x = 1')")
    assert reply["payload"] == [{"source": "set_next_input", "text": "x = 1", "replace": False}]
    reply, _ = kernel.run("%load_ext autoreload")
    assert reply["payload"] == []
    reply, _ = kernel.run("exit(keep_kernel=True)")
    assert reply["payload"] == [{"source": "ask_exit", "keepkernel": True}]
    assert kernel.run("1")[0]["status"] == "ok"


def test_user_expressions(kernel):
    reply, _ = kernel.run("x = 3", user_expressions={"good": "x + 1", "bad": "nothing"})
    values = reply["user_expressions"]
    assert values["good"]["status"] == "ok" and values["good"]["data"]["text/plain"] == "4"
    assert values["bad"]["status"] == "error" and values["bad"]["ename"] == "NameError"


def answer(kernel, text):
    """Waits for the question and answers it; returns its content."""
    question = kernel.kc.get_stdin_msg(timeout=TIMEOUT)["content"]
    kernel.kc.input(text)
    return question


def test_input_and_getpass(kernel):
    msg_id = kernel.kc.execute("import getpass\n[input('name? '), getpass.getpass()]",
                               allow_stdin=True)
    assert answer(kernel, "Ada") == {"prompt": "name? ", "password": False}
    assert answer(kernel, "secret") == {"prompt": "Password: ", "password": True}
    seen = dict(kernel.until_idle(msg_id))
    assert seen["execute_result"]["data"]["text/plain"] == "['Ada', 'secret']"


def test_threads_and_tasks_of_a_cell_ask_one_after_the_other(kernel):
    msg_id = kernel.kc.execute(
        "import asyncio, threading\nheard = {}\n"
        "def ask(name): heard[name] = input(name)\n"
        "async def task(): ask('task')\n"
        "threads = [threading.Thread(target=ask, args=(name,)) for name in 'abc']\n"
        "for thread in threads: thread.start()\n"
        "await asyncio.create_task(task())\nfor thread in threads: thread.join()\n"
        "sorted(heard.items())", allow_stdin=True)
    for _ in range(4):
        question = kernel.kc.get_stdin_msg(timeout=TIMEOUT)
        assert question["parent_header"]["msg_id"] == msg_id
        with pytest.raises(Empty):  # the next one waits for this answer
            kernel.kc.get_stdin_msg(timeout=0)
        kernel.kc.input(question["content"]["prompt"].upper())
    seen = dict(kernel.until_idle(msg_id))
    assert seen["execute_result"]["data"]["text/plain"] == (
        "[('a', 'A'), ('b', 'B'), ('c', 'C'), ('task', 'TASK')]")


def test_a_question_outlives_its_cell_and_none_comes_after_it(kernel):
    msg_id = kernel.kc.execute(
        "import threading, time\n"
        "def ask():\n    print('heard', input('thread? '))\n"
        "    try: input()\n    except EOFError as error: print('refused:', error)\n"
        "threading.Thread(target=ask).start()\ntime.sleep(60)", allow_stdin=True)
    kernel.kc.get_stdin_msg(timeout=TIMEOUT)
    kernel.km.interrupt_kernel()
    assert kernel.reply(msg_id)["content"]["ename"] == "KeyboardInterrupt"
    kernel.kc.input("late")
    kernel.wait_for_text(msg_id, "heard late\nrefused: the cell has ended")


def test_a_thread_that_asks_does_not_keep_the_kernel_from_ending(python):
    python.kc.execute("import threading\nthreading.Thread(target=input).start()\nwhile True: pass",
                      allow_stdin=True)
    python.kc.get_stdin_msg(timeout=TIMEOUT)
    control(python, "shutdown_request", {"restart": False})
    wait_for(lambda: python.km.provisioner.process.poll() == 0, what="the end, and status 0")


def test_without_stdin_input_fails_at_once(kernel):
    reply, _ = kernel.run("input()", allow_stdin=False)
    assert reply["ename"] == "StdinNotImplementedError"


@pytest.mark.parametrize("code", ["%debug", "breakpoint()", "import pdb; pdb.set_trace()"])
def test_debuggers_talk_over_stdin(kernel, code):
    kernel.run("def f(a):\n    return 1 / a")
    if code == "%debug":
        kernel.run("f(0)")
    else:
        code = f"def g():\n    here = 42\n    {code}\n    return here\ng()"
    msg_id = kernel.kc.execute(code, allow_stdin=True)
    assert answer(kernel, "p a" if code == "%debug" else "p here")["prompt"] == "ipdb> "
    answer(kernel, "q")
    text = "".join(c["text"] for k, c in kernel.until_idle(msg_id) if k == "stream")
    assert ("0" if code == "%debug" else "42") in text
    assert kernel.run("1")[0]["status"] == "ok"


@pytest.mark.parametrize("interrupt", [by_message, by_signal])
def test_an_interrupt_ends_a_debugger(kernel, interrupt):
    msg_id = kernel.kc.execute("def g():\n    breakpoint()\n    return 'went on'\ng()", allow_stdin=True)
    assert kernel.kc.get_stdin_msg(timeout=TIMEOUT)["content"]["prompt"] == "ipdb> "
    interrupt(kernel)
    shown = dict(kernel.until_idle(msg_id))
    assert shown["execute_result"]["data"]["text/plain"] == "'went on'"


def test_a_debugger_that_went_on_does_not_come_back_in_the_next_cell(kernel):
    msg_id = kernel.kc.execute("breakpoint()", allow_stdin=True)
    answer(kernel, "c")
    kernel.until_idle(msg_id)
    running = kernel.kc.execute("print('go')\nwhile True: pass", allow_stdin=True)
    kernel.wait_for_text(running, "go\n")
    by_signal(kernel)
    assert kernel.reply(running)["content"]["ename"] == "KeyboardInterrupt"


# ---- displays ---------------------------------------------------------------------------

def test_displays_are_updated_and_cleared(kernel):
    _, seen = kernel.run("from IPython.display import display, clear_output\n"
                         "handle = display('one', display_id='d')\nhandle.update('two')\n"
                         "clear_output(wait=True)")
    kinds = dict(seen)
    assert kinds["display_data"]["transient"] == {"display_id": "d"}
    assert kinds["update_display_data"]["transient"] == {"display_id": "d"}
    assert kinds["update_display_data"]["data"]["text/plain"] == "'two'"
    assert kinds["clear_output"] == {"wait": True}


def test_output_of_tasks_and_threads_belongs_to_their_cell(kernel):
    first = kernel.kc.execute(
        "import asyncio, threading\nfrom IPython.display import display\n"
        "go = asyncio.Event()\nthreaded = threading.Event()\n"
        "async def later():\n    await go.wait()\n    print('from a task', flush=True)\n"
        "    display('shown by a task')\n"
        "task = asyncio.create_task(later())\n"
        "threading.Thread(target=lambda: (threaded.wait(), print('from a thread'))).start()")
    kernel.reply(first)
    kernel.until_idle(first)
    second = kernel.kc.execute("go.set(); threaded.set()")
    texts = {first: "", second: ""}
    wanted = ("from a task", "from a thread", "'shown by a task'")
    while not all(part in "".join(texts.values()) for part in wanted):
        msg = kernel.kc.get_iopub_msg(timeout=TIMEOUT)
        text = msg["content"].get("text") or msg["content"].get("data", {}).get("text/plain")
        texts[msg["parent_header"]["msg_id"]] += text or ""
    assert texts[second].strip() == ""


def test_a_loop_is_woken_from_a_thread_between_cells(kernel):
    """call_soon_threadsafe, with no task waiting."""
    msg_id = kernel.kc.execute(
        "import asyncio, threading\nloop = asyncio.get_running_loop()\n"
        "threading.Timer(0.3, loop.call_soon_threadsafe, (print, 'woken')).start()")
    assert kernel.wait_for_output(msg_id, "stream")["text"] == "woken\n"


def test_a_comm_handler_may_start_a_task(kernel):
    kernel.run("import asyncio\n"
               "def on_open(comm, msg):\n"
               "    async def answer():\n"
               "        await asyncio.sleep(0.01)\n"
               "        comm.send({'answer': 42, 'keys': sorted(msg), 'to': msg['msg_type']})\n"
               "    asyncio.get_running_loop().create_task(answer())\n"
               "get_ipython().kernel.comm_manager.register_target('t', on_open)")
    opened = kernel.send("shell", "comm_open", {"comm_id": "c", "target_name": "t", "data": {}})
    assert kernel.wait_for_output(opened, "comm_msg")["data"] == {
        "answer": 42, "to": "comm_open",
        "keys": ["buffers", "content", "header", "metadata", "msg_id", "msg_type", "parent_header"]}
