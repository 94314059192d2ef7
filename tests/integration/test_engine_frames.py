# SPDX-License-Identifier: BSD-3-Clause
"""The same requests to an ipengine and to a pxengine: what they answer, frame by frame.

Each request goes to both, and what comes back (identities, topics, headers, parents, metadata,
contents, buffers, their order) is compared whole, after names of processes and moments are replaced
by words. What is left of differences has to stand in MEANT, with its reason.
"""
import re
import subprocess

import pytest
import zmq
from conftest import BIN, PYTHON, processes_with, wait_for
from four import environment
from hub import Hub

ipp = pytest.importorskip("ipyparallel")
numpy = pytest.importorskip("numpy")

pytestmark = pytest.mark.stock

DEADLINE = 60

# (where, why): where a difference is meant.
MEANT = [
    (r"\.version$|\.protocol_version$", "ours speaks 5.5, ipykernel 6.17 spoke 5.3"),
    (r"\.metadata\.label$", "ipyparallel 9 has it, 7.1 has not"),
    (r"\.metadata\.px_outputs$", "ours says how much output there was"),
    (r"\.content\.px_kinds\.", "ours says what an `except` of the client's may name"),
    (r"(execute_result|display_data|1\.shutdown_reply)\.metadata\.engine$",
     "the reference forgets it where every other message has it"),
    (r"unprintable: ", "the reference trips over an exception that has no text"),
    (r"^fails: \[", "the reference only logs what a comm's handler raises"),
    (r"kernel_info_reply\.content\.(implementation(_version)?|banner|help_links)", "its own"),
    (r"kernel_info_reply\.content\.supported_features", "belongs to 5.5"),
    (r"interrupt_reply\.content\.status", "the protocol asks for it; the reference echoes"),
    (r"usage_reply\.content\.", "measured"),
    (r"debug_reply\.content\.", "there is no debugger: its refusal is worded for front ends"),
    (r"malformed.*\.(ename|evalue|traceback)", "another sentence"),
    (r"^not-sent: .*\.(evalue|traceback)", "ours says what the result is, and what to do"),
]
if ipp.version_info >= (8,):  # see test_newer.py
    MEANT += [
        (r"2\.error\.content\.engine_info",
         "7.1's second error names the engine, 9 has but one, without; ours is 7.1's second"),
        (r"(stream|clear_output)\.metadata\.engine$", "with later ipykernels it forgets it here, too"),
        (r"^(await|control): \[", "ipykernel 7 answers these behind what was asked later"),
        (r"^(unknown|message-nobody): \[", "later ipykernels' logs about comms show as streams"),
    ]


# ---- one controller, two engines -----------------------------------------------------------------

class Engine:
    def __init__(self, hub, uuid, number):
        self.hub, self.uuid, self.number = hub, uuid, number

    def send(self, name, msg_type, content, buffers=None, metadata=None):
        return self.hub.send(name, [self.uuid, b"client"], msg_type, content, buffers=buffers,
                             metadata=metadata)

    def collect(self, until):
        """What comes, as (socket, identities, message), until until(all of it)."""
        seen, names = [], [*self.hub.NAMED, "iopub"]
        poller = zmq.Poller()
        for name in names:
            poller.register(self.hub.sockets[name], zmq.POLLIN)
        while not until(seen):
            assert poller.poll(DEADLINE * 1000), f"silence after {[m['msg_type'] for *_, m in seen]}"
            for name in names:
                while self.hub.sockets[name].poll(0):
                    seen.append((name, *self.hub.receive(name)))
        return seen

    def ask(self, name, msg_type, content, buffers=None, metadata=None, idle=True):
        """Everything that a request brings forth. A second one, whose answers come behind by the
        same sockets, tells when that is all."""
        asked = self.send(name, msg_type, content, buffers, metadata)
        seen = self.collect(lambda seen: is_idle(seen, asked)) if idle else []
        fence = self.send(name, "kernel_info_request", {})
        seen += self.collect(lambda seen: is_idle(seen, fence) and is_answered(seen, fence))
        return [Frame(self, asked, *parts) for parts in seen
                if parts[2]["parent_header"].get("msg_id") != fence]


def is_idle(seen, msg_id):
    return any(m["parent_header"].get("msg_id") == msg_id
               and m["content"].get("execution_state") == "idle" for *_, m in seen)


def is_answered(seen, msg_id):
    return any(name != "iopub" and m["parent_header"].get("msg_id") == msg_id for name, _, m in seen)


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """(the reference's, ours)"""
    directory = tmp_path_factory.mktemp("ipython")
    env = environment(directory)
    hub = Hub(directory / "profile_default")
    hub.write(broadcast=[hub.ports["leaf0"]])
    hub.sockets["mux"].router_mandatory = True
    hub.sockets["hb_ping"].setsockopt(zmq.XPUB_VERBOSE, 1)
    processes, pair = [], []
    try:
        for command in ([PYTHON, "-m", "ipyparallel.engine", "--IPEngine.enable_nanny=False"],
                        [BIN / "pxengine", "-n1"]):
            processes.append(subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL,
                                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            pair.append(join(hub, len(pair)))
        yield pair
    finally:
        for process in processes:
            process.kill()
            process.wait()
        wait_for(lambda: not processes_with(f"IPYTHONDIR={directory}"), DEADLINE, "their end")
        hub.close()


def join(hub, number):
    """The engine that registers; when all of its sockets are connected."""
    for name in ("registration", "hb_ping"):
        assert hub.sockets[name].poll(DEADLINE * 1000), f"nothing on {name}"
        if name == "registration":
            engine = Engine(hub, hub.register(number, hb_period=60000), number)
    hub.sockets["hb_ping"].recv()
    wait_for(lambda: is_heard(engine), DEADLINE, "the engine on mux and iopub")
    engine.ask("mux", "kernel_info_request", {})  # nothing is left behind it
    return engine


def is_heard(engine):
    """The reference connects one socket after the other; what it publishes meanwhile is lost."""
    try:
        engine.send("mux", "kernel_info_request", {})
    except zmq.ZMQError:
        return False
    return engine.hub.sockets["iopub"].poll(200)


# ---- what is compared -------------------------------------------------------------------------------

class Frame:
    def __init__(self, engine, asked, name, idents, msg):
        self.socket, self.idents, self.msg = name, idents, msg
        self.engine, self.asked = engine, asked

    def words(self, value, key=None):
        """A copy without what differs between any two processes or moments."""
        if isinstance(value, dict):
            return {str(self.words(k)): self.words(v, k) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.words(item) for item in value]
        if key == "traceback":
            return value
        if hasattr(value, "isoformat") or key in ("date", "started"):
            return "a date"
        if key in ("engine_id", "pid"):
            return "a number"
        return self.text(value) if isinstance(value, str) else value

    def text(self, value):
        value = re.sub(r"\x1b\[[0-9;]*m", "", value)
        value = value.replace(self.engine.uuid.decode(), "<uuid>").replace(self.asked, "<asked>")
        value = re.sub(r"0x[0-9a-f]+", "<address>", value)
        value = re.sub(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])", "<model>", value)
        # The names of cells' files: ipykernel's are there for its debugger.
        return re.sub(r"/tmp/ipykernel_\d+/\d+\.py|(?<=\()\d+\.py|<ipython-input-\d+-\w+>", "<cell>",
                      value)

    def traceback(self, lines):
        """Without the frames of those who carry the user's function out, and without the lines around
        the one that failed: IPython does not always choose the same."""
        own = r"File (<string>:1\n|.*/(ipyparallel|phalanx|ipykernel)/|<phalanx>)"
        return [re.sub(r"(?m)^ +\d+ .*\n", "", line) for line in map(self.text, lines)
                if not re.match(own, line)]

    def flat(self):
        """Path -> value."""
        header, content = dict(self.msg["header"]), dict(self.msg["content"])
        msg_id = header.pop("msg_id")
        assert msg_id != self.asked and header["session"] == self.engine.uuid.decode()
        if "traceback" in content:
            content["traceback"] = self.traceback(content["traceback"])
        topic = [ident.decode().replace(f"engine.{self.engine.number}.", "engine.<id>.")
                 for ident in self.idents]
        whole = {"socket": self.socket, "idents": self.words(topic), "header": self.words(header),
                 "parent": self.words(self.msg["parent_header"]),
                 "metadata": self.words(self.msg["metadata"]), "content": self.words(content),
                 "buffers": [bytes(b) for b in self.msg["buffers"]]}
        return dict(flatten(whole, self.msg["msg_type"]))


def flatten(value, path):
    if isinstance(value, dict):
        yield path, "a dict"
        for key, item in value.items():
            yield from flatten(item, f"{path}.{key}")
    elif isinstance(value, list) and value:
        yield f"{path}.length", len(value)
        for i, item in enumerate(value):
            yield from flatten(item, f"{path}.{i}")
    else:
        yield path, value


def tidy(frames):
    """Ordered by socket; pieces of a stream in one, and last, as the reference holds them back for a
    while; its two errors of an apply, one with less in it, as the fuller one."""
    def place(frame):
        return frame.socket == "iopub", frame.msg["msg_type"] == "stream", \
            frame.msg["content"].get("name", "")

    found = []
    for frame in sorted(frames, key=place):
        before = found[-1] if found else None
        if before and before.msg["msg_type"] == frame.msg["msg_type"] == "stream" \
                and before.idents == frame.idents:
            before.msg["content"]["text"] += frame.msg["content"]["text"]
        elif before and before.msg["msg_type"] == frame.msg["msg_type"] == "error":
            found[-1] = frame
        else:
            found.append(frame)
    return found


def differences(case, theirs, ours):
    """What differs and is not meant to; a line each."""
    kinds = [[f"{f.socket}: {f.msg['msg_type']}" for f in frames] for frames in (theirs, ours)]
    if kinds[0] != kinds[1]:
        line = f"{case}: {kinds[0]} | {kinds[1]}"
        return [] if is_meant(line) else [line]
    found = []
    for number, (one, other) in enumerate(zip(theirs, ours)):
        a, b = one.flat(), other.flat()
        for path in sorted({*a, *b}):
            if a.get(path, ...) != b.get(path, ...) and not is_meant(f"{case}: {number}.{path}"):
                found.append(f"{case}: {number}.{path}: {a.get(path, ...)!r} | {b.get(path, ...)!r}")
    return found


def is_meant(where):
    return any(re.search(pattern, where) for pattern, _ in MEANT)


def compare(engines, rows):
    found = []
    for case, *request in rows:
        theirs, ours = (tidy(engine.ask(*request)) for engine in engines)
        assert len(theirs) > 1, case
        found += differences(case, theirs, ours)
    assert not found, "\n".join(["theirs | ours", *found])


# ---- execute ---------------------------------------------------------------------------------------

def cell(code, **more):
    return {"code": code, "silent": False, "store_history": True, "user_expressions": {},
            "allow_stdin": False, **more}


CELLS = {
    "value": "x = 6 * 7; x",
    "nothing": "y = 3",
    "stdout": "print('hi')",
    "stderr": "import sys; print('hi', file=sys.stderr)",
    "warning": "import warnings; warnings.warn('w')",
    "error": "1/0",
    "error-below": "def f(): raise KeyError('k')\nf()",
    "error-chained": "try: 1/0\nexcept Exception as e: raise ValueError('v') from e",
    "syntax": "1+",
    "indentation": "if 1:\nx",
    "name": "nothing_of_that_name",
    "unprintable": "class E(Exception):\n    def __str__(self): raise RuntimeError\nraise E",
    "html": "from IPython.display import HTML\nHTML('<b>x</b>')",
    "displays": "from IPython.display import display, clear_output\nh = display('one', display_id='d')"
                "\nh.update('two')\nclear_output(wait=True)",
    "metadata": "display({'text/plain': 'p'}, raw=True, metadata={'text/plain': {'a': 1}})",
    "next-input": "get_ipython().set_next_input('q')",
    "pager": "zip?",
    "input": "input('x')",
    "exit": "import sys; sys.exit(3)",
    "interrupt": "raise KeyboardInterrupt",
    "await": "import asyncio; await asyncio.sleep(0, 5)",
    "magic": "%who_ls",
    "no-magic": "%nosuch",
    "shell": "!echo out",
    "array": "import numpy; numpy.arange(3)",
}


def test_execute(engines):
    rows = [(name, "mux", "execute_request", cell(code)) for name, code in CELLS.items()]
    compare(engines, rows)


def test_execute_options(engines):
    broadcast = {"is_broadcast": True, "is_coalescing": True, "original_msg_id": "original"}
    compare(engines, [
        ("silent", "mux", "execute_request", cell("z = 1; z", silent=True)),
        ("silent-stdout", "mux", "execute_request", cell("print(1)", silent=True)),
        ("silent-error", "mux", "execute_request", cell("1/0", silent=True)),
        ("unstored", "mux", "execute_request", cell("z", store_history=False)),
        ("expressions", "mux", "execute_request",
         cell("z", user_expressions={"good": "z + 1", "bad": "nothing"})),
        ("go-on", "mux", "execute_request", cell("1/0", stop_on_error=False)),
        ("task", "task", "execute_request", cell("z")),
        ("broadcast", "leaf0", "execute_request", cell("z"), None, broadcast),
        ("control", "control", "execute_request", cell("z = 2")),
    ])


# ---- apply -----------------------------------------------------------------------------------------

def packed(f, *args, **kwargs):
    return ipp.serialize.pack_apply_message(f, args, kwargs)


def packed_by(name, f, *args):
    """By another pickler than Python's, as view.use_dill() has it."""
    canning = ipp.serialize.canning
    pytest.importorskip(name)
    try:
        getattr(canning, f"use_{name}")()
        return packed(f, *args)
    finally:
        canning.use_pickle()


@ipp.interactive
def fails():
    return 1 / 0


@ipp.interactive
def prints():
    import sys
    print("out")
    print("err", file=sys.stderr)


@ipp.interactive
def displays():
    from IPython.display import display
    display("shown")


@ipp.interactive
def adds(a, b=2):
    return a + b


def multiplier(factor):
    """A closure, of no module that an engine lacks."""
    space = {"__name__": "__main__"}
    exec("def make(factor):\n    return lambda x: x * factor", space)
    return space["make"](factor)


@ipp.interactive
def leaves():
    raise SystemExit(2)


@ipp.interactive
def makes_what_cannot_be_sent():
    import threading
    return threading.Lock()


@ipp.interactive
def makes_buffers():
    import numpy
    return {"a": b"x" * 2000, "b": bytearray(3000), "c": numpy.arange(1000), "d": [1, "two"]}


@ipp.interactive
def publishes():
    from ipyparallel.datapub import publish_data
    publish_data({"k": 1, "big": b"x" * 5000})


@ipp.interactive
def publishes_by_the_long_name():
    import ipyparallel.datapub
    ipyparallel.datapub.publish_data({})


def test_apply(engines):
    broadcast = {"is_broadcast": True, "original_msg_id": "original"}
    unmet = ipp.depend(ipp.interactive(lambda: False))(adds)
    required = ipp.require("no_such_module")(adds)
    array = numpy.arange(1000)
    compare(engines, [
        ("define", "mux", "execute_request", cell("held = 40", silent=True)),
        *((name, name, "apply_request", {}, packed(abs, -1)) for name in ("mux", "task", "control")),
        ("broadcast", "leaf0", "apply_request", {}, packed(abs, -1), broadcast),
        ("nothing", "mux", "apply_request", {}, packed(print)),
        ("error", "mux", "apply_request", {}, packed(fails)),
        ("streams", "mux", "apply_request", {}, packed(prints)),
        ("display", "mux", "apply_request", {}, packed(displays)),
        ("reference", "mux", "apply_request", {}, packed(adds, ipp.Reference("held"))),
        ("keyword", "mux", "apply_request", {}, packed(adds, 1, b=ipp.Reference("held"))),
        ("reference-to-nothing", "mux", "apply_request", {}, packed(adds, ipp.Reference("nothing"))),
        ("unmet", "task", "apply_request", {}, packed(unmet, 1)),
        ("required", "task", "apply_request", {}, packed(required, 1)),
        ("array", "mux", "apply_request", {}, packed(adds, array, b=array)),
        ("list", "mux", "apply_request", {}, packed(adds, [1, b"x" * 2000], b=[array])),
        ("buffers", "mux", "apply_request", {}, packed(makes_buffers)),
        ("not-sent", "mux", "apply_request", {}, packed(makes_what_cannot_be_sent)),
        ("exit", "mux", "apply_request", {}, packed(leaves)),
        *((name, "mux", "apply_request", {}, packed_by(name, multiplier(6), 7))
          for name in ("cloudpickle", "dill")),
        ("malformed", "mux", "apply_request", {}, [b"rubbish"]),
        ("arguments", "mux", "apply_request", {}, packed(adds)),
        ("datapub", "mux", "apply_request", {}, packed(publishes)),
        ("datapub-long", "mux", "apply_request", {}, packed(publishes_by_the_long_name)),
    ])


# ---- the rest ----------------------------------------------------------------------------------------

def test_queries(engines):
    tail = {"hist_access_type": "tail", "output": False, "raw": True, "n": 2}
    lines = {"hist_access_type": "range", "output": False, "raw": True, "session": 0, "start": 1,
             "stop": 3}
    search = {"hist_access_type": "search", "output": False, "raw": True, "pattern": "looked*"}
    compare(engines, [
        ("define", "mux", "execute_request", cell("looked_for = 1; looked_for")),
        ("again", "mux", "execute_request", cell("looked_for + 1")),
        ("complete", "mux", "complete_request", {"code": "looked_", "cursor_pos": 7}),
        ("complete-nothing", "mux", "complete_request", {"code": "zzzz", "cursor_pos": 4}),
        ("inspect", "mux", "inspect_request",
         {"code": "looked_for", "cursor_pos": 3, "detail_level": 0}),
        ("inspect-more", "mux", "inspect_request", {"code": "abs", "cursor_pos": 3, "detail_level": 1}),
        ("inspect-nothing", "mux", "inspect_request",
         {"code": "nothing", "cursor_pos": 3, "detail_level": 0}),
        *((f"is_complete {code!r}", "mux", "is_complete_request", {"code": code})
          for code in ("for i in x:", "1", "1)", "", "%%time\n")),
        ("tail", "mux", "history_request", tail),
        ("tail-output", "mux", "history_request", {**tail, "output": True}),
        ("range", "mux", "history_request", lines),
        ("range-output", "mux", "history_request", {**lines, "output": True}),
        ("search", "mux", "history_request", search),
        ("search-unique", "mux", "history_request", {**search, "unique": True, "n": 1}),
        ("history-unknown", "mux", "history_request",
         {"hist_access_type": "odd", "output": False, "raw": True}),
        ("connect", "mux", "connect_request", {}),
        ("info", "mux", "kernel_info_request", {}),
    ])


COMMS = """
def target(comm, msg):
    @comm.on_msg
    def on_msg(msg):
        comm.send({'got': msg['content']['data']}, buffers=[b'back'], metadata={'m': 1})
    @comm.on_close
    def on_close(msg):
        print('closed')
    comm.send({'hello': msg['content']['data']})
def fails(comm, msg):
    1/0
get_ipython().kernel.comm_manager.register_target('target', target)
get_ipython().kernel.comm_manager.register_target('fails', fails)
"""


def test_comms(engines):
    def opened(name, target):
        return {"comm_id": name, "target_name": target, "data": {"a": 1}}

    said = {"comm_id": "c", "data": {"a": 1}}
    compare(engines, [
        ("targets", "mux", "execute_request", cell(COMMS)),
        ("none", "mux", "comm_info_request", {}),
        ("unknown", "mux", "comm_open", opened("u", "unknown")),
        ("fails", "mux", "comm_open", opened("f", "fails")),
        ("open", "mux", "comm_open", opened("c", "target")),
        ("info", "mux", "comm_info_request", {}),
        ("info-of", "mux", "comm_info_request", {"target_name": "target"}),
        ("info-other", "mux", "comm_info_request", {"target_name": "other"}),
        ("message", "mux", "comm_msg", said, [b"buffer"]),
        ("message-nobody", "mux", "comm_msg", {**said, "comm_id": "nobody"}),
        ("close", "mux", "comm_close", said),
        ("ours", "mux", "execute_request",
         cell("import warnings\nfrom ipykernel.comm import Comm\nwith warnings.catch_warnings():\n"
              "    warnings.simplefilter('ignore')  # later ipykernels have another name for it\n"
              "    c = Comm(target_name='front', data={'a': 1}, metadata={'m': 1}, buffers=[b'b'], "
              "comm_id='mine')\nc.send({'b': 2})\nc.close()")),
    ])


def test_widgets_and_progress_bars(engines):
    pytest.importorskip("ipywidgets")
    pytest.importorskip("tqdm")
    compare(engines, [
        ("widget", "mux", "execute_request",
         cell("import ipywidgets\nipywidgets.Widget._version_validated = True  # else the reference complains\n"
              "bar = ipywidgets.IntProgress(value=3); bar")),
        ("moved", "mux", "execute_request", cell("bar.value = 4")),
        ("closed", "mux", "execute_request", cell("bar.close()")),
        ("terminal", "mux", "execute_request",
         cell("import tqdm\nfor i in tqdm.tqdm(range(3), bar_format='{n}/{total}'): pass")),
        ("notebook", "mux", "execute_request",
         cell("import tqdm.notebook\n"
              "for i in tqdm.notebook.tqdm(range(3), bar_format='{n}/{total}'): pass")),
    ])


def test_control_and_what_nobody_knows(engines):
    compare(engines, [
        ("define", "mux", "execute_request", cell("gone = 1", silent=True)),
        ("clear", "control", "clear_request", {}),
        ("cleared", "mux", "execute_request", cell("gone")),
        ("abort", "control", "abort_request", {"msg_ids": ["nobody"]}),
        ("abort-one", "control", "abort_request", {"msg_ids": "nobody either"}),
        ("interrupt", "control", "interrupt_request", {}),
        ("info", "control", "kernel_info_request", {}),
        ("usage", "control", "usage_request", {}),
        ("debug", "control", "debug_request", {"type": "request", "seq": 1, "command": "attach"}),
        ("unknown", "mux", "nonsense_request", {}),
        ("unknown-control", "control", "nonsense_request", {}),
    ])


def test_what_is_aborted_by_its_id(engines):
    """It is asked for before it comes, which is the same to an engine that waits."""
    found = []
    for request in (("execute_request", cell("1")), ("apply_request", {}, packed(abs, -1))):
        pair = []
        for engine in engines:
            msg = engine.hub.session.msg(request[0], request[1])
            engine.ask("control", "abort_request", {"msg_ids": [msg["header"]["msg_id"]]})
            engine.hub.session.send(engine.hub.sockets["mux"], msg, ident=[engine.uuid, b"client"],
                                    buffers=request[2] if len(request) > 2 else None)
            replies = [part for part in engine.collect(lambda seen: is_answered(
                seen, msg["header"]["msg_id"])) if part[0] == "mux"]
            pair.append([Frame(engine, msg["header"]["msg_id"], *part) for part in replies])
        assert pair[0][0].msg["content"] == {"status": "aborted"}
        found += differences("aborted", *pair)
    assert not found, "\n".join(found)


def test_what_the_reference_leaves_unanswered(engines):
    theirs, ours = engines
    for request in (("mux", "execute_request", {"silent": True}),
                    ("control", "abort_request", {})):
        def replies(engine):
            return [frame.msg for frame in engine.ask(*request) if frame.socket == request[0]]

        assert replies(theirs) == []
        reply, = replies(ours)
        assert reply["content"]["status"] == "error"


def test_shutdown(engines):
    """The last test, as the engines end."""
    def ended(seen):
        return any(m["msg_type"] == "shutdown_reply" for name, _, m in seen if name == "iopub") and \
            any(name == "control" for name, *_ in seen)

    pair = []
    for engine in engines:
        asked = engine.send("control", "shutdown_request", {"restart": False})
        seen = [part for part in engine.collect(ended) if part[2]["msg_type"] == "shutdown_reply"]
        pair.append(tidy([Frame(engine, asked, *part) for part in seen]))
    assert not differences("shutdown", *pair)
