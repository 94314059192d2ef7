# SPDX-License-Identifier: BSD-3-Clause
"""Comms: messages between objects here and objects in the front end (widgets).

Widgets find the class through the package `comm`, or in older times as `ipykernel.comm.Comm`; both
lead here. The interface is the one that those two share.
"""

import uuid

import _phalanx_host as host
from _phalanx_bridge import publish


class Comm:
    """One end of a comm. Made here (`primary`) it opens the other end in the front end."""

    manager = None  # set by create()

    def __init__(self, target_name="comm", data=None, metadata=None, buffers=None, comm_id=None,
                 primary=True, target_module=None, **unused):
        self.target_name, self.target_module = target_name, target_module
        self.comm_id = comm_id or uuid.uuid4().hex
        self.primary = primary
        self.kernel = self.manager.kernel
        self._on_msg = self._on_close = None
        self._closed = True
        if primary:
            self.open(data, metadata, buffers)
        else:
            self._closed = False

    def __del__(self):
        self.close(deleting=True)

    def _publish(self, kind, data, metadata, buffers, **more):
        content = {"comm_id": self.comm_id, "data": {} if data is None else data, **more}
        publish(kind, content, metadata, buffers)

    def open(self, data=None, metadata=None, buffers=None):
        self.manager.register_comm(self)
        self._publish(host.COMM_OPEN, data, metadata, buffers, target_name=self.target_name,
                      target_module=self.target_module)
        self._closed = False

    def send(self, data=None, metadata=None, buffers=None):
        self._publish(host.COMM_MSG, data, metadata, buffers)

    def close(self, data=None, metadata=None, buffers=None, deleting=False):
        if self._closed:
            return
        self._closed = True
        self._publish(host.COMM_CLOSE, data, metadata, buffers)
        if not deleting:
            self.manager.unregister_comm(self)

    def on_msg(self, callback):
        self._on_msg = callback

    def on_close(self, callback):
        self._on_close = callback

    def handle_msg(self, msg):
        if self._on_msg is None:
            return
        events = getattr(self.kernel.shell, "events", None)
        if events is not None:
            events.trigger("pre_execute")
        self._on_msg(msg)
        if events is not None:
            events.trigger("post_execute")

    def handle_close(self, msg):
        if self._on_close is not None:
            self._on_close(msg)


class Manager:
    """The open comms, and what to call when the front end opens one."""

    def __init__(self, bridge):
        self.bridge = bridge
        self.kernel = bridge.kernel
        self.targets = {}
        self.comms = {}

    def register_target(self, target_name, f):
        if isinstance(f, str):
            from traitlets.utils.importstring import import_item

            f = import_item(f)
        self.targets[target_name] = f

    def unregister_target(self, target_name, f):
        return self.targets.pop(target_name)

    def register_comm(self, comm):
        self.comms[comm.comm_id] = comm
        return comm.comm_id

    def unregister_comm(self, comm):
        return self.comms.pop(comm.comm_id, None)

    def get_comm(self, comm_id):
        return self.comms.get(comm_id)

    # ---- messages from the front end ----------------------------------------

    def comm_open(self, msg):
        content = msg["content"]
        name = content["target_name"]
        comm = Comm(name, comm_id=content["comm_id"], primary=False)
        self.register_comm(comm)
        target = self.targets.get(name)
        if target is None or not self._call(target, comm, msg):
            comm.close()

    def comm_msg(self, msg):
        comm = self.get_comm(msg["content"]["comm_id"])
        if comm is not None:
            self._call(comm.handle_msg, msg)

    def comm_close(self, msg):
        comm = self.get_comm(msg["content"]["comm_id"])
        if comm is not None:
            comm._closed = True
            self.unregister_comm(comm)
            self._call(comm.handle_close, msg)

    def _call(self, function, *args):
        try:
            function(*args)
        except Exception:
            self.bridge.shell.showtraceback()
            return False
        return True


def create(bridge):
    Comm.manager = manager = Manager(bridge)
    stand_in = bridge.embedded("environment").stand_in
    stand_in(bridge.when_imported, "comm", Comm=Comm, CommManager=Manager)
    try:
        import comm
    except ImportError:
        return manager
    comm.create_comm = Comm
    comm.get_comm_manager = lambda: manager
    return manager
