# SPDX-License-Identifier: BSD-3-Clause
"""`get_ipython().kernel`: what code that was written for IPython's kernels and engines looks for."""

import json
import threading

import _phalanx_host as host
from _phalanx_bridge import publish


class Session:
    """The little of a Jupyter session that engine code asks of `get_ipython().kernel.session`."""

    kinds = {
        "display_data": host.DISPLAY_DATA,
        "update_display_data": host.UPDATE_DISPLAY_DATA,
        "execute_result": host.EXECUTE_RESULT,
        "clear_output": host.CLEAR_OUTPUT,
        "error": host.ERROR,
        "comm_open": host.COMM_OPEN,
        "comm_msg": host.COMM_MSG,
        "comm_close": host.COMM_CLOSE,
        "data_message": host.DATA_MESSAGE,
    }
    buffer_threshold = 1024
    item_threshold = 64
    session = ""  # the id in the header of every message from here

    def msg(self, msg_type, content=None, parent=None, header=None, metadata=None):
        return {
            "header": {"msg_type": msg_type, **(header or {})},
            "msg_type": msg_type,
            "parent_header": parent or {},
            "content": content or {},
            "metadata": metadata or {},
        }

    def send(self, stream, msg_or_type, content=None, parent=None, ident=None, buffers=None,
             track=False, header=None, metadata=None):
        if not isinstance(msg_or_type, str):
            content, metadata = msg_or_type["content"], msg_or_type["metadata"]
            buffers = buffers or msg_or_type.get("buffers")
            msg_or_type = msg_or_type["msg_type"]
        if msg_or_type == "stream":
            (host.stderr if content["name"] == "stderr" else host.stdout).write(content["text"])
        elif msg_or_type in self.kinds:
            publish(self.kinds[msg_or_type], content, metadata, buffers)
        else:
            raise ValueError(f"a {msg_or_type!r} message cannot be sent from here")
        return self.msg(msg_or_type, content, metadata=metadata)


class Parent(dict):
    """A request, as the protocol has it. `token` is what output follows."""

    token = None


def _object(text):
    """What a request has as an object, whatever it is."""
    value = json.loads(text or "{}")
    return value if isinstance(value, dict) else {}


class Kernel:
    """The kernel, by the names that IPython's own has for it."""

    implementation = "phalanx"
    iopub_socket = None
    eventloop = None
    _allow_stdin = False  # by the last cell's front end: IPython's kernel has the name

    def __init__(self, bridge):
        self._bridge = bridge
        self.engine_id = self.int_id = -1
        self.ident = ""
        self.session = Session()
        self._own = threading.local()  # of each thread's last cell

    def begin(self, metadata, **content):
        """A cell of this thread's, for get_parent(). Returns the notebook's id of it, or None."""
        self._own.token = host.parent_variable.get(None)
        self._own.metadata, self._own.content = metadata, content
        return _object(metadata).get("cellId") if '"cellId"' in metadata else None

    @property
    def shell(self):
        return self._bridge.shell

    @property
    def log(self):
        import logging

        return logging.getLogger("phalanx")

    @property
    def io_loop(self):
        """tornado's, around the loop that C lets run between requests."""
        from tornado.ioloop import IOLoop

        return self._bridge.loops.current and IOLoop.current()

    @property
    def comm_manager(self):
        return self._bridge.comms

    @property
    def parent(self):
        """The program, whose `connection_file` is asked for."""
        return self.shell.parent

    @property
    def execution_count(self):
        return self.shell.execution_count

    def raw_input(self, prompt=""):
        return self._bridge.input(prompt)

    def getpass(self, prompt="", stream=None):
        return self._bridge.getpass(prompt)

    def send_response(self, stream, msg_or_type, content=None, ident=None, buffers=None, track=False,
                      header=None, metadata=None, channel="shell"):
        return self.session.send(stream, msg_or_type, content, buffers=buffers, metadata=metadata)

    def get_parent(self, channel="shell"):
        header = json.loads(host.parent())
        parent = Parent(header=header, msg_id=header.get("msg_id"), msg_type=header.get("msg_type"),
                        parent_header={}, metadata={}, content={}, buffers=[])
        parent.token = host.parent_variable.get(None)
        if parent.token is not None and parent.token is getattr(self._own, "token", None):
            content = self._own.content
            parent["metadata"] = _object(self._own.metadata)
            parent["content"] = {**content, "user_expressions": _object(content["user_expressions"])}
        return parent

    def set_parent(self, ident, parent, channel="shell"):
        """Output of this thread or task belongs to that request now, if get_parent() gave it."""
        if getattr(parent, "token", None) is not None:
            host.parent_variable.set(parent.token)

    _parent_header = property(get_parent)  # of old, and widgets still ask for it

    def _topic(self, topic):
        where = f"engine.{self.engine_id}" if self.engine_id >= 0 else "kernel"
        return f"{where}.{topic}".encode()
