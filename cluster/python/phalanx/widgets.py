# SPDX-License-Identifier: BSD-3-Clause
"""Widgets that engines make, in the front end of the kernel whose cell they belong to.

A widget lives in two places that talk over a comm (Jupyter's messaging, "Custom Messages"). What an
engine opens in a cell that is followed is opened here, too, under the same id and as this kernel's
own. What the engine sends there goes on to the front end; what the front end sends, back to the engine.
What the engine prints and shows because of that belongs to the front end's message, as that of a
callback in the kernel itself does: front ends put it where an Output widget asks for it by the message's id.

What a cell itself prints on an engine into an Output widget, as interact() does at first, is asked for by
the engine's request, of which front ends do not know. Several engines share a cell, so it is asked for by
the cell's for each piece of output that is that engine's.
"""

import contextvars
import json
import weakref

from . import _phalanx, error

KINDS = frozenset(("comm_open", "comm_msg", "comm_close"))
MOST = 4096  # comms that are open; of more the oldest are closed


def _create(**options):
    """A comm of the kernel that runs here, which is not open yet."""
    try:
        from comm import create_comm as create
    except ImportError:  # ipykernel up to 6.17
        from ipykernel.comm import Comm as create
    return create(primary=False, **options)


class _Relay:
    """A comm of an engine's: the front end's side of it is `comm`."""

    def __init__(self, relays, client, engine, comm, later):
        self.relays, self.engine, self.comm, self.later = relays, engine, comm, later
        self.client = weakref.ref(client)
        comm.on_msg(lambda message: self.to_engine("comm_msg", message))
        comm.on_close(lambda message: self.to_engine("comm_close", message))

    def ask_for(self, msg_id):
        """Has the widget, an Output, take what is published for a request; "" for none."""
        self.comm.send({"method": "update", "state": {"msg_id": msg_id}, "buffer_paths": []})

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
        if not raw:
            self.relays.close(self.comm.comm_id)
            return
        names = raw.task_id(0), message.get("header", {}).get("msg_id")
        context, screen = contextvars.copy_context(), self.later()
        client._watcher.watch(raw, lambda: context.run(self._answered, client, raw, screen, names))

    def _answered(self, client, raw, screen, names):
        """Publishes what the engine has published because of it. names: what the message is called
        there and here."""
        event = raw.next()
        while event is not None:
            if event.name in KINDS:
                self.relays.from_engine(client, event, self.later, names)
            else:
                _show(screen, event)
            event = raw.next()


def _show(screen, event):
    if event.type == _phalanx.STREAM:
        screen.write(event.name, event.text)
    elif event.type == _phalanx.OUTPUT:
        _show_output(screen, event.name, json.loads(event.content))


def _show_output(screen, kind, content):
    if kind in ("display_data", "update_display_data"):
        screen.display(content.get("data") or {}, content.get("metadata"), content.get("transient"),
                       kind == "update_display_data")
    elif kind == "clear_output":
        screen.replace(bool(content.get("wait")))
    elif kind == "error":
        screen.write("stderr", "\n".join(map(str, content.get("traceback", ()))) + "\n")


class Relays:
    """The comms that engines have open in front ends; for a kernel's shell."""

    def __init__(self):
        self._open = {}  # comm_id: _Relay, in the order of their coming

    def from_engine(self, client, event, later, names=(None, None)):
        """event: a comm_* of an engine. What is none of ours, or makes no sense, is passed over.
        later(): a screen for what belongs to the request that is handled then. Returns the comm of an
        Output widget that takes what the engine's cell shows from now on; "" when it does no more; or None.
        names: by what a request is known there and here."""
        captor, content = None, json.loads(event.content)
        if isinstance(content, dict) and isinstance(content.get("comm_id"), str):
            data = content.get("data")
            state = data.get("state") if isinstance(data, dict) else None
            if names[0] and isinstance(state, dict) and state.get("msg_id") == names[0]:
                state["msg_id"] = names[1]
            elif not names[0] and isinstance(state, dict) and event.name == "comm_msg" and "msg_id" in state:
                captor = state.pop("msg_id") and content["comm_id"]
            message = {
                "data": data,
                "metadata": json.loads(event.metadata),
                "buffers": [memoryview(buffer) for buffer in event.buffers],
            }
            if event.name == "comm_open":
                self._opened(client, event.engine, content, message, later)
            else:
                self._told(event.engine, event.name, content["comm_id"], message)
        return captor

    def to_output(self, screen, comm_id, event):
        """Shows what an engine's cell has printed or displayed in that Output widget."""
        relay = self._open.get(comm_id)
        if relay is not None:
            relay.ask_for(screen.request_id)
        _show(screen, event)
        if relay is not None:
            relay.ask_for("")

    def _opened(self, client, engine, content, message, later):
        comm_id = content["comm_id"]
        if comm_id in self._open:
            return
        comm = _create(
            comm_id=comm_id, target_name=str(content.get("target_name")),
            target_module=content.get("target_module"),
        )
        self._open[comm_id] = _Relay(self, client, engine, comm, later)
        comm.open(**message)  # last: the front end may answer at once, in another thread
        if len(self._open) > MOST:
            self.close(next(iter(self._open)))

    def _told(self, engine, kind, comm_id, message):
        relay = self._open.get(comm_id)
        if relay is not None and relay.engine == engine:
            relay.comm.send(**message) if kind == "comm_msg" else self.close(comm_id, **message)

    def forget(self, comm_id):
        """It is closed, or will be."""
        return self._open.pop(comm_id, None)

    def close(self, comm_id, **message):
        relay = self.forget(comm_id)
        if relay is not None:
            relay.comm.close(**message)
