# SPDX-License-Identifier: BSD-3-Clause
"""How results show themselves: progress while they come, output as it arrives and afterwards."""

import contextvars
import importlib.util
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

from . import _phalanx, error
from .tasks import ExecuteReply

STREAM_SECONDS = 0.05  # how long leaving stream_output() may take while tasks run,
LAST_OUTPUT_SECONDS = 2  # and when all have ended, whose last output may be on its way


def current_shell():
    """IPython's shell, if this runs in one."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    return get_ipython()


def in_kernel():
    """Whether a Jupyter frontend shows our output."""
    return getattr(current_shell(), "kernel", None) is not None


class _Line:
    """A progress bar for where tqdm is not installed; tqdm's interface, as far as used here."""

    def __init__(self, total, desc="", unit=""):
        self.n, self.total, self.desc, self.unit = 0, total, desc, unit
        self._start = time.monotonic()
        self._show()

    def update(self, count):
        self.n += count
        self._show()

    def _show(self):
        seconds = time.monotonic() - self._start
        text = "%s: %d/%s %s after %.0f s" % (self.desc, self.n, self.total, self.unit, seconds)
        sys.stdout.write("\r" + text)
        sys.stdout.flush()

    def close(self):
        sys.stdout.write("\n")


def _has_widgets():
    """Whether there are widgets of which tqdm can make a bar."""
    if importlib.util.find_spec("ipywidgets") is None:
        return False
    import ipywidgets

    return hasattr(getattr(ipywidgets, "FloatProgress", None), "style")


def progress_bar(total, desc, unit, widget=None):
    """A tqdm bar, or its like where tqdm is not installed. widget: whether it is one of the
    notebook's widgets; None: if there are widgets here."""
    try:
        import tqdm
    except ImportError:
        return _Line(total, desc, unit)
    if widget is None:
        widget = in_kernel() and _has_widgets()
    if widget:
        import tqdm.notebook

        return tqdm.notebook.tqdm_notebook(total=total, desc=desc, unit=unit)
    return tqdm.tqdm(total=total, desc=desc, unit=unit, file=sys.stdout)


class _Labelled:
    """Writes streams of several engines under headings."""

    def __init__(self):
        self._last = ""
        self._at_line_start = True

    def write(self, text, label="", file=None):
        if not text:
            return
        file = sys.stdout if file is None else file
        heading = ""
        if label and label != self._last:
            self._last, heading = label, label + "\n"
        start = "" if self._at_line_start or not heading else "\n"
        self._at_line_start = text.endswith("\n")
        print(start + heading + text, file=file, end="")


class Streamer:
    """Shows the output of a result as it arrives. In a notebook each engine's streams grow in
    cells' outputs of their own."""

    def __init__(self, result):
        self._result = result
        self._labelled = _Labelled()
        self._seen = set()
        self._errors = 0
        self._in_kernel = in_kernel()

    def show(self, event):
        """Takes an event that was just filed."""
        if event.type == _phalanx.STREAM:
            self._stream(event.task, event.engine, event.name, event.text)
        elif event.type == _phalanx.OUTPUT and event.name in self._shown:
            self._shown[event.name](self, event.task, event.engine)

    def show_past(self, index):
        """Shows what has come of a task before."""
        task = self._result._tasks[index]
        engine = self._result._task_engine(index)
        for name in ("stdout", "stderr"):
            if getattr(task, name) is not None:
                self._stream(index, engine, name, str(getattr(task, name)))
        for content in task.outputs:
            self._output(index, engine, content)
        if task.execute_result is not None:
            self._execute_result(index, engine)
        if task.error is not None:
            self._error(index, engine)

    def _stream(self, index, engine, name, text):
        label = "[%s:%s] " % (name, engine)
        if not self._in_kernel:
            self._labelled.write(text, label, getattr(sys, name))
            return
        from IPython.display import publish_display_data

        display_id = "%s-%s" % (self._result._task_id(index), name)
        publish_display_data(
            {"text/plain": label + str(getattr(self._result._tasks[index], name))},
            transient={"display_id": display_id}, update=display_id in self._seen,
        )
        self._seen.add(display_id)

    def _output(self, index, engine, content=None):
        content = content or self._result._tasks[index].outputs[-1]
        if current_shell() is not None and "data" in content:
            _output_label(engine)
            _publish(content, engine)

    def _execute_result(self, index, engine):
        metadata = self._result._task_metadata(index)
        metadata["engine_id"] = engine
        reply = ExecuteReply(metadata["msg_id"], metadata["execute_result"], metadata)
        if current_shell() is None:
            print(reply._plaintext())
        else:
            reply.display()

    def _error(self, index, engine):
        """The traceback; of many errors, their names."""
        e = self._result._tasks[index].error
        method = self._result._task_method(index)
        e.engine_info = {**e.engine_info, "engine_id": engine, "method": method}
        self._errors += 1
        lines = e.render_traceback() if self._errors <= error.CompositeError.tb_limit else [str(e)]
        self._labelled.write("\n".join(lines) + "\n", file=sys.stderr)

    _shown = {"display_data": _output, "execute_result": _execute_result, "error": _error}


@contextmanager
def streaming(result):
    """Within it, a thread shows the output of `result` as it arrives, after what is here."""
    streamer = Streamer(result)
    left = threading.Event()

    def follow():
        while not left.is_set() and not result._wait(_phalanx.FINISHED, 0):
            result._wait(_phalanx.EVENT, STREAM_SECONDS)

    with ExitStack() as locks:
        for part in result._wholes():
            locks.enter_context(part._lock)
        for index in range(result._count):
            streamer.show_past(index)
        # Late output comes in another thread, and is shown where this is, too.
        context = contextvars.copy_context()
        heard = result._listen(lambda event: context.copy().run(streamer.show, event))
    thread = threading.Thread(target=follow, name="phalanx-output", daemon=True)
    thread.start()
    try:
        yield result
        if result.ready():
            result.wait_for_output(LAST_OUTPUT_SECONDS)
    finally:
        left.set()
        thread.join()
        result._pump()
        for part, listener in heard:
            part._unlisten(listener)


def _output_label(engine):
    from IPython.display import display_pretty

    display_pretty("[output:%s]" % engine, raw=True)


def _publish(content, engine):
    from IPython.display import publish_display_data

    metadata = dict(content.get("metadata") or {}, engine=engine)
    publish_display_data(content["data"], metadata)


def _displayed(records):
    """Those outputs as (record's index, place, engine, content)."""
    for index, (md, _) in enumerate(records):
        for place, content in enumerate(md["outputs"]):
            if "data" in content:
                yield index, place, md["engine_id"], content


def _show_outputs(records, in_turn):
    """in_turn: the first output of each, then the second of each, …"""
    shown = sorted(_displayed(records), key=lambda s: s[1]) if in_turn else _displayed(records)
    last = None
    for index, place, engine, content in shown:
        if in_turn or index != last:
            _output_label(engine)
        last = index
        _publish(content, engine)


def show_single(md, value, result_only=False):
    """One task's output and value, without labels."""
    plain = _Labelled()
    if not result_only:
        plain.write(md["stdout"])
        plain.write(md["stderr"], file=sys.stderr)
    if current_shell() is None:
        return
    from IPython.display import display

    if not result_only:
        for content in md["outputs"]:
            if "data" in content:
                _publish(content, md["engine_id"])
    if md["execute_result"] is not None and isinstance(value, ExecuteReply):
        display(value)


def _show_value(reply):
    """A value behind its prompt; below it, where a page shows a form that has no place for one."""
    from IPython.display import display_pretty, publish_display_data

    data, metadata = reply._repr_mimebundle_()
    seen = any(mime == "text/html" or mime.startswith("image/") for mime in data)
    if seen or "text/plain" not in data:
        display_pretty(reply._prompt(), raw=True)
        data = reply.data
    publish_display_data(data, metadata)


def show_all(records, groupby="type", result_only=False):
    """Tasks' output and values under labels. records: (Metadata, value) pairs; groupby: "type",
    "engine" or "order"."""
    if groupby == "engine":
        for record in records:
            show_all([record], "type", result_only)
        return
    labelled = _Labelled()
    for name in () if result_only else ("stdout", "stderr"):
        for md, _ in records:
            label = "[%s:%s] " % (name, md["engine_id"])
            labelled.write(md[name], label, getattr(sys, name))
    if current_shell() is None:
        return
    if not result_only:
        _show_outputs(records, groupby == "order")
    for md, value in records:
        if md["execute_result"] is not None and isinstance(value, ExecuteReply):
            _show_value(value)
