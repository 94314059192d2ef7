# SPDX-License-Identifier: BSD-3-Clause
"""What a cell shows: displays and results, on their way to the host."""

import threading

import _phalanx_host as host
from _phalanx_bridge import publish
from IPython.core.displayhook import DisplayHook as BaseDisplayHook
from IPython.core.displaypub import DisplayPublisher as BaseDisplayPublisher
from IPython.core.formatters import BaseFormatter
from IPython.core.formatters import DisplayFormatter as BaseDisplayFormatter


class Follower:
    """What has a parent of its own in IPython's kernel follows the one of the thread here. Clients of
    other kernels send by its session what these show."""

    pub_socket = None

    @property
    def session(self):
        return self.shell.kernel.session

    @property
    def parent_header(self):
        return self.shell.get_parent()["header"]

    def set_parent(self, parent):
        self.shell.set_parent(parent)


class DisplayPublisher(Follower, BaseDisplayPublisher):
    """Each thread's hooks see its messages first: they return one to send, or None."""

    def __init__(self, **traits):
        self._own = threading.local()
        super().__init__(**traits)

    @property
    def _hooks(self):
        return self._own.__dict__.setdefault("hooks", [])

    def register_hook(self, hook):
        self._hooks.append(hook)

    def unregister_hook(self, hook):
        known = hook in self._hooks
        if known:
            self._hooks.remove(hook)
        return known

    def _send(self, kind, content):
        kernel = self.shell.kernel
        message = kernel.session.msg(kind, content, kernel.get_parent() if self._hooks else None)
        for hook in self._hooks:
            message = hook(message)
            if message is None:
                return
        kernel.session.send(None, message)

    def publish(self, data, metadata=None, source=None, *, transient=None, update=False, **kwargs):
        content = {"data": data, "metadata": metadata or {}, "transient": transient or {}}
        self._send("update_display_data" if update else "display_data", content)

    def clear_output(self, wait=False):
        self._send("clear_output", {"wait": bool(wait)})


class DisplayHook(Follower, BaseDisplayHook):
    """Shows a cell's value as an execute_result. Cells of several threads may do so at once."""

    def __init__(self, **traits):
        self._own = threading.local()
        super().__init__(**traits)

    @property
    def exec_result(self):
        return getattr(self._own, "exec_result", None)

    @exec_result.setter
    def exec_result(self, result):
        self._own.exec_result = result

    def start_displayhook(self):
        self._own.content = {"data": {}, "metadata": {}, "execution_count": self.prompt_count}

    def write_output_prompt(self):
        self._own.content["execution_count"] = self.prompt_count

    def write_format_data(self, format_dict, md_dict=None):
        self._own.content["data"] = format_dict
        self._own.content["metadata"] = md_dict or {}

    def finish_displayhook(self):
        content, self._own.content = self._own.content, None
        if content["data"]:
            publish(host.EXECUTE_RESULT, content)


class DisplayFormatter(BaseDisplayFormatter):
    """Asks a value of Python's own types for its text alone, where nobody has given its type another
    form: to hear from each of a dozen formatters that it has none takes longer than a plain cell."""

    _plain = {
        kind: (kind.__mro__, [(base.__module__, base.__name__) for base in kind.__mro__])
        for kind in (bool, bytes, complex, dict, float, frozenset, int, list, range, set, str,
                     tuple, type(None))
    }

    def format(self, obj, include=None, exclude=None):
        if include is None and exclude is None and type(obj) in self._plain and self._is_text(obj):
            text = self.formatters["text/plain"](obj)
            if not isinstance(text, tuple):  # with metadata
                return {} if text is None else {"text/plain": text}, {}
        return super().format(obj, include=include, exclude=exclude)

    def _is_text(self, obj):
        classes, names = self._plain[type(obj)]
        others = [self.ipython_display_formatter, self.mimebundle_formatter]
        others += [f for kind, f in self.formatters.items() if kind != "text/plain"]
        return "text/plain" in self.formatters and not any(
            type(other).__module__ != BaseFormatter.__module__
            or id(obj) in other.singleton_printers
            or not other.type_printers.keys().isdisjoint(classes)
            or not other.deferred_printers.keys().isdisjoint(names)
            for other in others
        )
