# SPDX-License-Identifier: BSD-3-Clause
"""The Debug Adapter Protocol through pxkernel, as a notebook's debugger speaks it."""
import itertools
import json
import re
from pathlib import Path

import kernels
import pytest
from kernels import TIMEOUT, echo, kernel, python, shared, start  # noqa: F401: fixtures

pytest.importorskip("debugpy")
pytestmark = [pytest.mark.usefixtures("no_leftovers"), pytest.mark.stock]

CODE = """

def add(a, b):
    c = a + b
    return c

print('before')
total = add(2, 3)
print('after', total)"""


class Debug:
    """Requests on the control channel, events on iopub."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.numbers = itertools.count(1)

    def ask(self, command, **arguments):
        number = next(self.numbers)
        content = {"type": "request", "seq": number, "command": command, "arguments": arguments}
        reply = self.kernel.reply(self.kernel.send("control", "debug_request", content), "control")
        assert reply["msg_type"] == "debug_reply"
        assert reply["content"]["request_seq"] == number, reply["content"]
        assert reply["content"]["command"] == command
        return reply["content"]

    def done(self, command, **arguments):
        reply = self.ask(command, **arguments)
        assert reply["success"], reply
        return reply.get("body")

    def begin(self):
        assert self.done("initialize", clientID="test", adapterID="", pathFormat="path",
                         linesStartAt1=True)["supportsSetExpression"]
        self.done("attach")

    def break_at(self, code, line):
        path = self.done("dumpCell", code=code)["sourcePath"]
        body = self.done("setBreakpoints", source={"path": path}, breakpoints=[{"line": line}],
                         sourceModified=False)
        assert [point["verified"] for point in body["breakpoints"]] == [True]
        return path

    def event(self, name):
        while True:
            msg = self.kernel.kc.get_iopub_msg(timeout=TIMEOUT)
            if msg["msg_type"] == "debug_event" and msg["content"]["event"] == name:
                return msg["content"].get("body")

    def frames(self, thread):
        return self.done("stackTrace", threadId=thread)["stackFrames"]

    def stop_in_add(self):
        self.path = self.break_at(CODE, 5)
        running = self.kernel.kc.execute(CODE)
        return running, self.event("stopped")["threadId"]


@pytest.fixture
def debug(kernel):
    debug = Debug(kernel)
    debug.begin()
    yield debug
    debug.done("disconnect", restart=False, terminateDebuggee=True)
    assert kernel.run("'still here'")[0]["status"] == "ok"


def test_it_is_announced_and_off_until_a_front_end_wants_it(kernel):
    info = kernel.reply(kernel.kc.kernel_info())["content"]
    assert info["debugger"] and "debugger" in info["supported_features"]
    debug = Debug(kernel)
    body = debug.done("debugInfo")
    assert not body["isStarted"] and body["breakpoints"] == body["stoppedThreads"] == []
    refused = debug.ask("evaluate", expression="1")
    assert not refused["success"] and "not been started" in refused["message"]
    for content in ({}, {"command": 3, "seq": "x"}, {"command": "dumpCell", "arguments": 4}):
        reply = kernel.reply(kernel.send("control", "debug_request", content), "control")
        assert not reply["content"].get("success")


def test_libraries_know_a_cell_by_its_file(kernel):
    """Those that keep what they made of a function ask whether a cell defined it."""
    _, seen = kernel.run("import sys; sys._getframe().f_code.co_filename")
    assert re.search(r"/ipykernel_\d+/\d+\.py", dict(seen)["execute_result"]["data"]["text/plain"])


def test_a_cell_stands_still_and_goes_on(debug):
    running, thread = debug.stop_in_add()
    assert debug.done("debugInfo")["stoppedThreads"] == [thread]
    frames = debug.frames(thread)
    assert [(f["name"], f["line"], f["source"]["path"]) for f in frames] == [
        ("add", 5, debug.path), ("<module>", 8, debug.path)]
    frame = frames[0]["id"]
    scope = debug.done("scopes", frameId=frame)["scopes"][0]["variablesReference"]
    here = debug.done("variables", variablesReference=scope)["variables"]
    assert {v["name"]: v["value"] for v in here} == {"a": "2", "b": "3", "c": "5"}
    assert debug.done("evaluate", expression="a * 100", frameId=frame)["result"] == "200"
    shown = debug.done("richInspectVariables", variableName="c", frameId=frame)
    assert shown["data"] == {"text/plain": "5"}
    debug.done("copyToGlobals", srcVariableName="c", dstVariableName="kept", srcFrameId=frame)
    assert debug.done("source", source={"path": debug.path})["content"] == CODE
    debug.done("stepOut", threadId=thread)
    assert debug.event("stopped")["reason"] == "step"
    assert [f["line"] for f in debug.frames(thread)] == [8]
    debug.done("next", threadId=thread)
    debug.event("stopped")
    debug.done("next", threadId=thread)  # out of the cell, and not into the next one
    assert debug.kernel.reply(running)["content"]["status"] == "ok"
    _, seen = debug.kernel.run("kept, total")
    assert dict(seen)["execute_result"]["data"]["text/plain"] == "(5, 5)"


def test_an_interrupt_ends_a_cell_that_stands_still(debug):
    running, _ = debug.stop_in_add()
    debug.kernel.km.interrupt_kernel()
    assert debug.kernel.reply(running)["content"]["ename"] == "KeyboardInterrupt"
    debug.event("continued")
    assert debug.done("debugInfo")["stoppedThreads"] == []
    running, thread = debug.stop_in_add()
    debug.done("continue", threadId=thread)
    assert debug.kernel.reply(running)["content"]["status"] == "ok"


def test_a_cell_that_ends_leaves_another_thread_standing(debug):
    reply = debug.kernel.reply(debug.kernel.send("control", "create_subshell_request", {}), "control")
    subshell = reply["content"]["subshell_id"]
    debug.break_at(CODE, 5)
    msg = debug.kernel.kc.session.msg("execute_request", {"code": CODE, "silent": False})
    msg["header"]["subshell_id"] = subshell
    debug.kernel.kc.shell_channel.send(msg)
    thread = debug.event("stopped")["threadId"]
    _, seen = debug.kernel.run("'meanwhile'")
    assert "debug_event" not in dict(seen)
    assert debug.done("debugInfo")["stoppedThreads"] == [thread]
    debug.done("continue", threadId=thread)
    assert debug.kernel.reply(msg["header"]["msg_id"])["content"]["status"] == "ok"
    debug.kernel.reply(debug.kernel.send("control", "delete_subshell_request",
                                         {"subshell_id": subshell}), "control")


def test_variables_are_seen_while_nothing_stands_still(debug):
    debug.kernel.run("class A: pass\na = A(); a.x = {'k': [1, 2]}\nimport json")
    top = {v["name"]: v for v in debug.done("inspectVariables")["variables"]}
    assert {"A", "a", "json"} <= set(top) and not {"In", "Out", "_", "get_ipython"} & set(top)
    assert top["a"]["type"] == "A" and top["json"]["variablesReference"] == 0
    path, at = "a", top["a"]
    for name, then in (("x", ".x"), ("'k'", "['k']"), ("1", "[1]")):
        reference = at["variablesReference"]
        inside = debug.done("variables", variablesReference=reference)["variables"]
        at = {v["name"]: v for v in inside}[name]
        path += then
        assert at["evaluateName"] == path
    assert at["value"] == "2" and at["variablesReference"] == 0
    shown = debug.done("richInspectVariables", variableName="a")["data"]
    assert "A at 0x" in shown["text/plain"]
    assert debug.done("modules")["totalModules"] > 100


def test_files_of_cells_go_with_the_kernel(python):
    path = Path(Debug(python).done("dumpCell", code="1")["sourcePath"])
    assert path.read_text() == "1" and path.parent.stat().st_mode & 0o777 == 0o700
    python.km.shutdown_kernel()
    assert not path.parent.exists()


def test_who_has_none_refuses(echo):
    def ask(content):
        return echo.reply(echo.send("control", "debug_request", content), "control")["content"]

    reply = ask({"type": "request", "seq": 7, "command": "attach"})
    assert reply["status"] == "error" and reply["success"] is False
    assert reply["request_seq"] == 7 and reply["command"] == "attach" and reply["message"]
    assert ask({"seq": "x", "command": 3})["success"] is False
    info = echo.reply(echo.kc.kernel_info())["content"]
    assert "debugger" not in json.dumps(info)


def test_cells_run_where_no_file_can_be_written(start, tmp_path, monkeypatch):
    """As on a full disk: a cell is named after a file that only a debugger would write."""
    program = tmp_path / "pxkernel"
    program.write_text(f'#!/bin/sh\nulimit -f 0\nexec {kernels.PXKERNEL} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(kernels, "PXKERNEL", program)
    kernel = start()
    kernel.run("pass")  # IPython wants to write a README
    assert kernel.run("1 + 1")[0]["status"] == "ok"
