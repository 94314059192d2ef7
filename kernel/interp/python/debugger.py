# SPDX-License-Identifier: BSD-3-Clause
"""The debugger of front ends: the Debug Adapter Protocol, by debugpy.

Requests come on a thread of their own, so they are answered while a cell runs, and while it stands at
a breakpoint. Most go on to debugpy's adapter, a process that talks with debugpy's threads in
this one. What a notebook has beyond files is answered here: cells, which are files whose name is
a hash of their text, and the user's variables while nothing stands still.

LIMIT: while a front end debugs, the adapter listens on 127.0.0.1 and asks nobody who he is.
"""

import itertools
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import threading

import _phalanx_host as host
from _phalanx_bridge import publish

SEED = 0xC70F6907
SUFFIX = ".py"
MOST_CHILDREN = 1000  # of a variable
MOST_TEXT = 1000  # characters of its value

# What the kernel and IPython put among the user's names.
HIDDEN = {"exit", "quit", "In", "Out", "get_ipython", "open", "debugpy", "_oh", "_dh", "_ih",
          "special variables", "function variables"}


def _temporary():
    """Where files could be. There may be no room for them: cells run all the same."""
    try:
        return tempfile.gettempdir()
    except OSError:
        return "/tmp"


# Of the names of cells' files. By such a directory libraries know a cell: numba's caches, %lprun. Nobody
# else can have made it, and few kernels need it.
PREFIX = os.path.join(_temporary(), f"ipykernel_{int.from_bytes(os.urandom(6), 'big')}", "")


def cell_name(code):
    return f"{PREFIX}{host.murmur2(code.encode('utf-8', 'replace'), SEED)}{SUFFIX}"


def _is_users(name):
    return name not in HIDDEN and not re.match(r"__\w+__$|_+$|_\d+$|_i{1,3}$|_i\d+$", name)


def _leave_alone(thread):
    """The debugger is not to stop it: it serves the debugger, or nobody sees it."""
    thread.pydev_do_not_trace = thread.is_pydev_daemon_thread = True


class Failed(Exception):
    pass


class Adapter:
    """A connection to the adapter; one thread reads it."""

    def __init__(self, address, on_event):
        self.socket = socket.create_connection(address)
        self.on_event = on_event
        self.numbers = itertools.count(1)
        self.changed = threading.Condition()
        self.replies = {}
        self.closed = self.initialized = False  # initialized: takes breakpoints
        reader = threading.Thread(target=self._read, name="phalanx-debugger", daemon=True)
        _leave_alone(reader)
        reader.start()

    def close(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _read(self):
        try:
            with self.socket, self.socket.makefile("rb") as stream:
                while True:
                    headers = {}
                    for line in iter(stream.readline, b"\r\n"):
                        if not line:
                            return
                        name, _, value = line.partition(b":")
                        headers[name.strip().lower()] = value
                    message = json.loads(stream.read(int(headers[b"content-length"])))
                    self._take(message)
        except (OSError, ValueError, KeyError) as error:
            host.log(f"the debugger's connection: {error!r}")
        finally:
            with self.changed:
                self.closed = True
                self.changed.notify_all()

    def _take(self, message):
        if message.get("type") == "event":
            if message["event"] == "initialized":
                with self.changed:
                    self.initialized = True
                    self.changed.notify_all()
            self.on_event(message)
        elif message.get("type") == "response":
            with self.changed:
                self.replies[message["request_seq"]] = message
                self.changed.notify_all()

    def send(self, message):
        """Returns the number under which the reply will come."""
        number = next(self.numbers)
        text = json.dumps({**message, "seq": number, "type": "request"}).encode()
        self.socket.sendall(b"Content-Length: %d\r\n\r\n" % len(text) + text)
        return number

    def wait(self, number):
        with self.changed:
            self.changed.wait_for(lambda: self.closed or number in self.replies)
            if number not in self.replies:
                raise Failed("debugpy's adapter has gone")
            return self.replies.pop(number)

    def wait_for_initialized(self, attached):
        """Whether it takes breakpoints; not if it has gone, or refused what was sent as `attached`."""
        with self.changed:
            self.changed.wait_for(
                lambda: self.closed or self.initialized or attached in self.replies)
            return self.initialized

    def ask(self, command, **arguments):
        return self.wait(self.send({"command": command, "arguments": arguments}))


class Variables:
    """The user's variables and what is in them, while no cell stands still."""

    def __init__(self):
        self.objects = {}

    def top(self, names):
        self.objects.clear()
        return [self._show(name, value, name) for name, value in list(names.items())
                if _is_users(name)]

    def children(self, reference):
        value, path = self.objects.get(reference, (None, ""))
        return [self._show(name, item, path + access)
                for name, item, access in itertools.islice(self._parts(value), MOST_CHILDREN)]

    @staticmethod
    def _parts(value):
        if isinstance(value, dict):
            return ((repr(key), item, f"[{key!r}]") for key, item in list(value.items()))
        if isinstance(value, (list, tuple)):
            return ((str(i), item, f"[{i}]") for i, item in enumerate(value))
        return ((name, item, f".{name}") for name, item in list(getattr(value, "__dict__", {}).items())
                if not re.match(r"__\w+__$", name))

    def _show(self, name, value, path):
        try:
            text = repr(value)
        except Exception as error:
            text = f"<{type(value).__name__}: repr() raised {type(error).__name__}>"
        reference = 0
        if not isinstance(value, type(sys)) and next(iter(self._parts(value)), None) is not None:
            reference = len(self.objects) + 1
            self.objects[reference] = value, path
        return {"name": name, "value": text[:MOST_TEXT], "type": type(value).__name__,
                "evaluateName": path, "variablesReference": reference}


class Debugger:
    def __init__(self, bridge):
        self.bridge = bridge
        self.address = None  # where debugpy's adapter listens
        self.adapter = None  # None: not started
        self.breakpoints = {}
        self.stopped = set()  # ids of threads
        self.variables = Variables()
        self.transforms = None

    def request(self, message):
        """The content of the reply."""
        command = message.get("command")
        try:
            if not isinstance(command, str):
                raise Failed("a debug request has a command")
            own = getattr(self, "on_" + command, None)
            reply = own(message) if own else self._forward(message)
        except (Failed, OSError) as error:
            reply = {"success": False, "message": str(error)}
        return {"type": "response", "seq": 0, "success": True, **reply, "command": command,
                "request_seq": message.get("seq", 0)}

    def close(self):
        if self.adapter is not None:
            self.adapter.close()
        shutil.rmtree(PREFIX, ignore_errors=True)

    # ---- debugpy -----------------------------------------------------------

    def _adapter(self):
        if self.adapter is None:
            raise Failed("the debugger has not been started")
        return self.adapter

    def _forward(self, message):
        return self._adapter().wait(self._adapter().send(message))

    def _listen(self):
        _leave_alone(threading.current_thread())
        for thread in threading.enumerate():
            if thread.name == "IPythonHistorySavingThread":
                _leave_alone(thread)
        # It warns of breakpoints in Python's own frozen modules, where nobody sets any.
        os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        try:
            import debugpy
        except ImportError as error:
            raise Failed(f"debugpy is not installed for {sys.executable}: {error}") from None
        self.address = debugpy.listen(("127.0.0.1", 0))

    def _keep_empty_lines(self, keep):
        """At the start of a cell, where IPython drops them: the numbers of lines are a file's."""
        from IPython.core.inputtransformer2 import leading_empty_lines

        transforms = self.bridge.shell.input_transformer_manager.cleanup_transforms
        if keep and leading_empty_lines in transforms:
            self.transforms = list(transforms)
            transforms.remove(leading_empty_lines)
        elif not keep and self.transforms is not None:
            transforms[:] = self.transforms
            self.transforms = None

    def cell_begins(self):
        """In the thread of a shell. A step out of the last cell is no step into this one."""
        if self.adapter is not None:
            self._let_run()
            sys.modules["debugpy"].trace_this_thread(True)

    def cell_ends(self):
        """An interrupt has ended it, if this thread stands still: nobody else says so."""
        if self.adapter is None:
            return
        number = self._own_number()
        if number in self.stopped:
            self._let_run()
            self.on_event({"type": "event", "event": "continued", "seq": 0,
                           "body": {"threadId": number, "allThreadsContinued": False}})

    @staticmethod
    def _own_number():
        """Under which debugpy speaks of this thread; None if it does not."""
        schema = sys.modules.get("_pydevd_bundle._debug_adapter.pydevd_base_schema")
        numbers = getattr(getattr(schema, "BaseSchema", None), "_obj_id_to_dap_id", {})
        return numbers.get(getattr(threading.current_thread(), "__pydevd_id__", None))

    @staticmethod
    def _let_run():
        info = getattr(threading.current_thread(), "additional_info", None)  # debugpy's
        if info is not None:
            info.pydev_state, info.pydev_step_cmd, info.pydev_step_stop = 1, -1, None

    def on_event(self, message):
        body = message.get("body") or {}
        if message["event"] == "stopped":
            self.stopped.add(body.get("threadId"))
        elif message["event"] == "continued":
            self.stopped.discard(body.get("threadId"))
            if body.get("allThreadsContinued", True):
                self.stopped.clear()
        publish(host.DEBUG_EVENT, message)

    # ---- requests ------------------------------------------------------------

    def on_initialize(self, message):
        if self.adapter is None:
            if self.address is None:
                self._listen()
            self.adapter = Adapter(self.address, self.on_event)
            self._keep_empty_lines(True)
        return self._forward(message)

    def on_attach(self, message):
        """debugpy replies when it is configured, which front ends leave to the kernel."""
        adapter = self._adapter()
        arguments = dict(message.get("arguments") or {})
        arguments["connect"] = dict(zip(("host", "port"), self.address))
        arguments.setdefault("subProcess", False)
        rules = arguments.setdefault("rules", [])
        rules.append({"path": "**/<phalanx>/**", "include": False})
        modules = host.bridge.options["module_dir"]
        if modules:  # whose import hook runs within what the user's code imports
            rules.append({"path": os.path.join(modules, "phalanx", "**"), "include": False})
        attached = adapter.send({**message, "arguments": arguments})
        if adapter.wait_for_initialized(attached):
            adapter.ask("configurationDone")
        return adapter.wait(attached)

    def on_configurationDone(self, message):
        return {}

    def on_disconnect(self, message):
        arguments = {**(message.get("arguments") or {}), "terminateDebuggee": False}
        try:
            return self._forward({**message, "arguments": arguments})
        finally:
            if self.adapter is not None:
                self.adapter.close()
            self.adapter = None
            self.breakpoints.clear()
            self.stopped.clear()
            self._keep_empty_lines(False)

    def on_debugInfo(self, message):
        return {"body": {
            "isStarted": self.adapter is not None,
            "hashMethod": "Murmur2",
            "hashSeed": SEED,
            "tmpFilePrefix": PREFIX,
            "tmpFileSuffix": SUFFIX,
            "breakpoints": [{"source": source, "breakpoints": points}
                            for source, points in self.breakpoints.items()],
            "stoppedThreads": sorted(filter(None, self.stopped)),
            "richRendering": True,
            "exceptionPaths": ["Python Exceptions"],
            "copyToGlobals": True,
        }}

    def on_dumpCell(self, message):
        code = self._argument(message, "code")
        name = cell_name(code)
        os.makedirs(PREFIX, mode=0o700, exist_ok=True)
        with open(name, "w", encoding="utf-8") as file:
            file.write(code)
        return {"body": {"sourcePath": name}}

    def on_setBreakpoints(self, message):
        source = self._argument(message, "source")
        reply = self._forward(message)
        if reply.get("success"):
            self.breakpoints[source.get("path")] = message["arguments"].get("breakpoints", [])
        return reply

    def on_source(self, message):
        path = self._argument(message, "source").get("path")
        try:
            with open(path, encoding="utf-8") as file:
                return {"body": {"content": file.read()}}
        except (OSError, TypeError, ValueError) as error:
            raise Failed(f"source unavailable: {error}") from None

    def on_stackTrace(self, message):
        """Without what runs cells: the outermost frame is the cell's."""
        reply = self._forward(message)
        frames = (reply.get("body") or {}).get("stackFrames", [])
        paths = [(frame.get("source") or {}).get("path", "") for frame in frames]
        cells = [i for i, path in enumerate(paths) if path.startswith(PREFIX)]
        if cells:
            reply["body"]["stackFrames"] = frames[: cells[-1] + 1]
            reply["body"]["totalFrames"] = cells[-1] + 1
        return reply

    def on_variables(self, message):
        if not self.stopped:
            children = self.variables.children(self._argument(message, "variablesReference"))
            return {"body": {"variables": children}}
        reply = self._forward(message)
        body = reply.get("body") or {}
        if "variables" in body:
            body["variables"] = [v for v in body["variables"] if _is_users(v["name"])]
        return reply

    def on_inspectVariables(self, message):
        return {"body": {"variables": self.variables.top(self.bridge.shell.user_ns)}}

    def on_richInspectVariables(self, message):
        name = self._argument(message, "variableName")
        data, metadata = {}, {}
        if not name.isidentifier():
            if name not in HIDDEN:
                raise Failed("richInspectVariables: no name of a variable")
        elif not self.stopped:
            shown = self.bridge.shell.user_expressions({name: name})[name]
            if shown["status"] == "ok":
                data, metadata = shown["data"], shown["metadata"]
        else:
            data, metadata = self._format_in_frame(name, message["arguments"].get("frameId"))
        return {"body": {"data": data, "metadata": metadata}}

    def _format_in_frame(self, name, frame):
        code = f"__import__('json').dumps(get_ipython().display_formatter.format({name}), default=repr)"
        reply = self._adapter().ask("evaluate", expression=code, frameId=frame, context="clipboard")
        if not reply.get("success"):
            raise Failed(reply.get("message", "it cannot be shown"))
        import ast

        return json.loads(ast.literal_eval(reply["body"]["result"]))

    def on_copyToGlobals(self, message):
        """Of the frame that stands still, into a name of the user's."""
        to = self._argument(message, "dstVariableName")
        source = self._argument(message, "srcVariableName")
        if not (to.isidentifier() and source.isidentifier()):
            raise Failed("copyToGlobals wants names of variables")
        return self._adapter().ask(
            "setExpression", expression=f"globals()['{to}']", value=source,
            frameId=message["arguments"].get("srcFrameId"))

    def on_modules(self, message):
        arguments = message.get("arguments") or {}
        modules = list(sys.modules.values())
        first = arguments.get("startModule", 0)
        last = first + (arguments.get("moduleCount") or len(modules))
        found = []
        for i, module in enumerate(modules[first:last], first):
            path = getattr(getattr(module, "__spec__", None), "origin", None)
            if path and path.endswith(".py"):
                found.append({"id": i, "name": module.__name__, "path": path})
        return {"body": {"modules": found, "totalModules": len(modules)}}

    @staticmethod
    def _argument(message, name):
        arguments = message.get("arguments")
        if not isinstance(arguments, dict) or name not in arguments:
            raise Failed(f"{message['command']} wants {name}")
        return arguments[name]


def create(bridge):
    return Debugger(bridge)
