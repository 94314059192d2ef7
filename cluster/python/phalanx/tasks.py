# SPDX-License-Identifier: BSD-3-Clause
"""What is known about one task: its reply, its output, its metadata."""

import io
import re
from collections import deque
from datetime import datetime, timezone

from . import error

_overwritten = re.compile(r".*\r(?=[^\n])")


def date_of(text):
    """The time that a header's text says, aware of its zone; None when it says none."""
    if not isinstance(text, str):
        return text
    if text.endswith("Z"):
        text = text[:-1] + "+00:00"
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=timezone.utc)


class Metadata(dict):
    """What is known about one task; keys are attributes too."""

    def __getattr__(self, key):
        try:
            return self[key]
        except KeyError:
            raise AttributeError(key) from None

    def __setattr__(self, key, value):
        self[key] = value


METADATA_KEYS = frozenset((
    "msg_id", "submitted", "started", "completed", "received", "engine_uuid", "engine_id",
    "follow", "after", "status", "is_broadcast", "is_coalescing", "execute_input",
    "execute_result", "error", "stdout", "stderr", "outputs", "data", "label",
))


def new_metadata(**known):
    """A Metadata with every key; what is not `known` is empty."""
    md = Metadata(
        msg_id=None, submitted=None, started=None, completed=None, received=None,
        engine_uuid=None, engine_id=None, follow=[], after=[], status=None, is_broadcast=False,
        is_coalescing=False, execute_input=None, execute_result=None, error=None, stdout="",
        stderr="", outputs=[], data={}, label=None,
    )
    md.update(known)
    return md


class ExecuteReply:
    """The result of executed code: its displayed value, output and execution count."""

    def __init__(self, msg_id, content, metadata):
        self.msg_id = msg_id
        self._content = content
        self.execution_count = content.get("execution_count")
        self.metadata = metadata

    def __getitem__(self, key):
        return self.metadata[key]

    def __getattr__(self, key):
        metadata = self.__dict__.get("metadata") or {}
        if key not in metadata:
            raise AttributeError(key)
        return metadata[key]

    @property
    def data(self):
        """The MIME bundle of the value; empty when there is none."""
        return (self.metadata["execute_result"] or {}).get("data", {})

    def __repr__(self):
        text = self.data.get("text/plain", "")
        if len(text) > 32:
            text = text[:29] + "..."
        return "<ExecuteReply[%s]: %s>" % (self.execution_count, text)

    def _plaintext(self):
        text = self.data.get("text/plain", "")
        if not text:
            return ""
        if "\n" in text and not text.startswith("\n"):
            text = "\n" + text
        return self._prompt() + text

    def _prompt(self):
        return "Out[%s:%s]: " % (self.metadata["engine_id"], self.execution_count)

    def _repr_pretty_(self, p, cycle):
        p.text(self._plaintext())

    def _repr_mimebundle_(self, include=None, exclude=None):
        data = dict(self.data)
        if "text/plain" in data:
            data["text/plain"] = self._plaintext()
        return data, (self.metadata["execute_result"] or {}).get("metadata", {})

    @property
    def source(self):
        """What made the value, where its message says so."""
        return (self.metadata["execute_result"] or {}).get("source", "")

    def display(self):
        """Shows the value in all its forms."""
        from IPython.display import publish_display_data

        publish_display_data(*self._repr_mimebundle_())

    def _repr_of(self, mime):
        if mime not in self.data:
            return None
        metadata = (self.metadata["execute_result"] or {}).get("metadata", {})
        return (self.data[mime], metadata[mime]) if mime in metadata else self.data[mime]

    def _repr_html_(self):
        return self._repr_of("text/html")

    def _repr_latex_(self):
        return self._repr_of("text/latex")

    def _repr_json_(self):
        return self._repr_of("application/json")

    def _repr_javascript_(self):
        return self._repr_of("application/javascript")

    def _repr_png_(self):
        return self._repr_of("image/png")

    def _repr_jpeg_(self):
        return self._repr_of("image/jpeg")

    def _repr_svg_(self):
        return self._repr_of("image/svg+xml")


class Text:
    """What a task has written to a stream: all of it, or, of very much, its start and its end."""

    HALF = 16 << 20  # characters

    def __init__(self):
        self._start, self._end = io.StringIO(), deque()
        self._end_size = self._lost = 0

    def size(self):
        """How many characters have come."""
        return self._start.tell() + self._end_size + self._lost

    def add(self, text):
        if self._start.tell() < self.HALF:
            self._start.write(text)
            return
        self._end.append(text)
        self._end_size += len(text)
        while self._end_size - len(self._end[0]) > self.HALF:
            gone = len(self._end.popleft())
            self._end_size -= gone
            self._lost += gone

    def __str__(self):
        """The text, without what a carriage return has overwritten."""
        text = self._start.getvalue()
        if self._lost:
            text += "\n[... %d characters are left out here ...]\n" % self._lost
        text += "".join(self._end)
        return _overwritten.sub("", text) if "\r" in text else text


# What an Output widget takes, by the names of events.
CAPTURED = frozenset((
    "stdout", "stderr", "display_data", "update_display_data", "clear_output", "error",
))


class Task:
    """One task's record: what has arrived for it."""

    __slots__ = (
        "reply", "finished", "stdout", "stderr", "execute_input", "execute_result", "error", "value",
        "unpacked", "metadata", "clearing", "captor", "_outputs", "_data",
    )

    def __init__(self):
        self.reply = self.execute_input = self.execute_result = self.error = None
        self.value = self.metadata = None
        self.finished = self.unpacked = False
        self.clearing = False  # by the next output: clear_output(wait=True)
        self.captor = None  # the comm of the Output widget that shows what comes now
        self.stdout = self.stderr = self._outputs = self._data = None

    def is_captured(self, event):
        """Whether an Output widget shows it, and nobody else."""
        return self.captor is not None and event.name in CAPTURED

    def taking(self, event):
        """The record to file an event in: one that nobody keeps, for what is captured."""
        return Task() if self.is_captured(event) else self

    @property
    def outputs(self):
        """The contents of its displays, a list."""
        if self._outputs is None:
            self._outputs = []
        return self._outputs

    @property
    def data(self):
        """What it has published as data, by name."""
        if self._data is None:
            self._data = {}
        return self._data

    def more_text(self, stream):
        """The Text of "stdout" or "stderr", to which more has come."""
        if self.clearing:
            self.clear()
        if getattr(self, stream) is None:
            setattr(self, stream, Text())
        return getattr(self, stream)

    def more_outputs(self):
        """The list of displays, to which one has come."""
        if self.clearing:
            self.clear()
        return self.outputs

    def clear(self):
        """Forgets what it has printed and shown."""
        self.stdout = self.stderr = self._outputs = None
        self.clearing = False


def _on_execute_result(task, content):
    task.execute_result = content


def _on_execute_input(task, content):
    task.execute_input = content.get("code")


def _on_error(task, content):
    task.error = error.from_reply(content)


def _on_clear_output(task, content):
    if content.get("wait"):
        task.clearing = True
    else:
        task.clear()


def _on_update(task, content):
    known = (content.get("transient") or {}).get("display_id")
    for output in task.outputs:
        if known is not None and (output.get("transient") or {}).get("display_id") == known:
            output.update(data=content.get("data"), metadata=content.get("metadata"))


output_handlers = {
    "clear_output": _on_clear_output,
    "update_display_data": _on_update,
    "execute_result": _on_execute_result,
    "execute_input": _on_execute_input,
    "error": _on_error,
}
