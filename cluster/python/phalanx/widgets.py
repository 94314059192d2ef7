# SPDX-License-Identifier: BSD-3-Clause
"""Widgets that engines make, in the front end of the kernel whose cell they belong to.

A widget lives in two places that talk over a comm (Jupyter's messaging, "Custom Messages"). What an
engine opens in a cell that is followed is opened here, too, under the same id and as this kernel's
own. What the engine sends there goes on to the front end; what the front end sends, back to the engine.
"""

import json
import weakref

from . import _phalanx, error

MOST = 4096  # comms that are open; of more the oldest are closed


def _create(**options):
    """A comm of the kernel that runs here."""
    try:
        from comm import create_comm as create
    except ImportError:  # ipykernel up to 6.17
        from ipykernel.comm import Comm as create
    return create(**options)


class _Relay:
    """A comm of an engine's: the front end's side of it is `comm`."""

    def __init__(self, relays, client, engine, comm):
        self.relays, self.engine, self.comm = relays, engine, comm
        self.client = weakref.ref(client)
        comm.on_msg(lambda message: self.to_engine("comm_msg", message))
        comm.on_close(lambda message: self.to_engine("comm_close", message))

    def to_engine(self, kind, message):
        """From the kernel's thread for requests. An engine that is gone closes the comm."""
        client = self.client()
        content = {"comm_id": self.comm.comm_id, "data": message["content"].get("data")}
        if kind == "comm_close":
            self.relays.forget(self.comm.comm_id)
        try:
            raw = client and client._raw.submit(
                _phalanx.MESSAGE, targets=[self.engine], message=kind, content=json.dumps(content),
                metadata=json.dumps(message.get("metadata") or {})[1:-1],
                buffers=list(message.get("buffers") or ()),
            )
        except (IndexError, _phalanx.ClosedError, error.EngineError):
            raw = None
        if raw:
            client._watcher.watch(raw, lambda: self._answered(client, raw))
        else:
            self.relays.close(self.comm.comm_id)

    def _answered(self, client, raw):
        """What the engine has published because of it."""
        event = raw.next()
        while event is not None:
            if event.name in self.relays.kinds:
                self.relays.from_engine(client, event)
            event = raw.next()


class Relays:
    """The comms that engines have open in front ends; for a kernel's shell."""

    def __init__(self):
        self._open = {}  # comm_id: _Relay, in the order of their coming
        self.kinds = {"comm_open": self._opened, "comm_msg": self._sent, "comm_close": self._closed}

    def from_engine(self, client, event):
        """event: a comm_* of an engine. What is none of ours, or makes no sense, is passed over."""
        content = json.loads(event.content)
        if isinstance(content, dict) and isinstance(content.get("comm_id"), str):
            message = {
                "data": content.get("data"),
                "metadata": json.loads(event.metadata),
                "buffers": [memoryview(buffer) for buffer in event.buffers],
            }
            self.kinds[event.name](client, event.engine, content, message)

    def _opened(self, client, engine, content, message):
        comm_id = content["comm_id"]
        if comm_id in self._open:
            return
        comm = _create(
            comm_id=comm_id, target_name=str(content.get("target_name")),
            target_module=content.get("target_module"), **message,
        )
        self._open[comm_id] = _Relay(self, client, engine, comm)
        if len(self._open) > MOST:
            self.close(next(iter(self._open)))

    def _sent(self, client, engine, content, message):
        relay = self._open.get(content["comm_id"])
        if relay is not None and relay.engine == engine:
            relay.comm.send(**message)

    def _closed(self, client, engine, content, message):
        relay = self._open.get(content["comm_id"])
        if relay is not None and relay.engine == engine:
            self.close(content["comm_id"], **message)

    def forget(self, comm_id):
        """It is closed, or will be."""
        return self._open.pop(comm_id, None)

    def close(self, comm_id, **message):
        relay = self.forget(comm_id)
        if relay is not None:
            relay.comm.close(**message)
