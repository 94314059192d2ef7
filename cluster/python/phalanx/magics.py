# SPDX-License-Identifier: BSD-3-Clause
"""The parallel magics' names, documentation and Python side; running and rendering are in the
extension _magics."""

import re
import sys
import threading
from collections import deque
from importlib import import_module
from opcode import opname

from IPython.core.magic import needs_local_scope, no_var_expand
from IPython.utils.text import DollarFormatter

from . import _magics, _non_interactive, error
from .tracebacks import advice, lines_of
from .widgets import Relays

_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_ERRORS_SHOWN = 8  # different ones of one cell
_ERROR_MOST = 65536  # bytes of one that are shown
_KEPT = 16  # results of --noblock
_PRINTS = 1  # what CALL_INTRINSIC_1 calls where an interactive statement ends

_relays = Relays()

# ---- where things are shown


class Screen:
    """What a running cell's output goes to. `progress`: whether somebody watches, where a line can be
    wiped again: nbclient and its like take no input, and save what they got."""

    def __init__(self, shell, cluster):
        self._shell = shell
        self._cluster = cluster

    @property
    def color(self):
        return str(getattr(self._shell, "colors", "NoColor")).lower() != "nocolor"

    @property
    def progress(self):
        kernel = getattr(self._shell, "kernel", None)
        return sys.stdout.isatty() if kernel is None else getattr(kernel, "_allow_stdin", True)

    def write(self, name, text):
        file = getattr(sys, name)
        file.write(text)
        file.flush()

    def display(self, data, metadata, transient, update):
        self._shell.display_pub.publish(
            data, metadata or {}, transient=transient or {}, update=update
        )

    def comm(self, result, event):
        """What an engine says to a front end's widget."""
        if getattr(self._shell, "kernel", None) is not None:
            captor = _relays.from_engine(result._client, event, lambda: later(self))
            if captor is not None:
                result._tasks[event.task].captor = captor or None

    def captured(self, result, event):
        """What an Output widget of an engine's is to show."""
        _relays.to_output(self, result._tasks[event.task].captor, event)

    @property
    def request_id(self):
        """By which front ends know what belongs to the cell."""
        return self._shell.parent_header["header"]["msg_id"]

    @property
    def clears(self):
        """Whether a cell's output can be replaced."""
        return getattr(self._shell, "kernel", None) is not None

    def replace(self, wait=True):
        """What is written next stands in the place of all that this cell has shown."""
        self._shell.display_pub.clear_output(wait=wait)

    def clear(self):
        """Wipes the cell's output, unless it tells of a cluster that was started."""
        if not self._cluster.take_news():
            self._shell.display_pub.clear_output()


def later(screen):
    """The same for what comes after the request that is handled now, and belongs to it."""
    base = sys.modules.get("ipykernel.kernelbase")  # ours ties threads and contexts to requests
    theirs = base is not None and isinstance(getattr(screen._shell, "kernel", None), base.Kernel)
    return CellScreen(screen._shell, screen._cluster) if theirs else screen


class CellScreen(Screen):
    """The output of one cell of ipykernel, also after the cell has ended."""

    progress = False

    def __init__(self, shell, cluster):
        super().__init__(shell, cluster)
        self._kernel = shell.kernel
        self._parent = shell.parent_header

    @property
    def request_id(self):
        return self._parent["header"]["msg_id"]

    def _send(self, kind, content):
        kernel = self._kernel
        kernel.session.send(
            kernel.iopub_socket, kind, content, parent=self._parent,
            ident=("kernel.%s.%s" % (kernel.ident, kind)).encode(),
        )

    def write(self, name, text):
        self._send("stream", {"name": name, "text": text})

    def replace(self, wait=True):
        self._send("clear_output", {"wait": wait})

    def display(self, data, metadata, transient, update):
        kind = "update_display_data" if update else "display_data"
        self._send(
            kind, {"data": data, "metadata": metadata or {}, "transient": transient or {}}
        )


# ---- errors


def fold_error(exception, scope, fold=True, told=(), color=True):
    """Gives a CompositeError a traceback in which an error that several engines raised is shown
    once (`fold`), and NameErrors a hint when the name is known in `scope`. told: engines whose
    errors have been shown; a line says whose, and no more."""
    lines = _folded_lines(_entries_of(exception), scope, fold, told, color)
    if lines:
        exception._render_traceback_ = lambda: lines


def _entries_of(exception):
    """(ename, evalue, traceback, engine_info) of each; none when it is not engines'."""
    if getattr(exception, "elist", None) is not None:
        return exception.elist
    if getattr(exception, "engine_info", None) is None:
        return []
    return [(exception.ename, exception.evalue, exception.traceback, exception.engine_info)]


def _engine_of(entry):
    return (entry[3] or {}).get("engine_id")


def _folded_lines(entries, scope, fold, told=(), color=True):
    known = [engine for engine in map(_engine_of, entries) if engine in told]
    groups = {}
    for index, entry in enumerate(e for e in entries if _engine_of(e) not in told):
        text = "%s\n%s\n%s" % (entry[0], entry[1], entry[2] or "")
        key = _magics.error_key(text) if fold else index
        groups.setdefault(key, []).append(entry)
    lines = []
    for shown, group in enumerate(groups.values()):
        if shown == _ERRORS_SHOWN:
            lines.append("... and %d other errors" % (len(groups) - shown))
            break
        lines += _error_lines(group, scope) + [""]
    if known:
        lines.append("[%s:execute]: as shown above" % _magics.ranges(known))
    lines = lines[:-1] if lines and lines[-1] == "" else lines
    return lines if color else [_COLOR.sub("", line) for line in lines]


def _error_lines(group, scope):
    ename, evalue, traceback, _ = group[0]
    infos = [entry[3] or {} for entry in group]
    ids = [info["engine_id"] for info in infos if isinstance(info.get("engine_id"), int)]
    ranges = _magics.ranges(ids) if ids else ""
    label = "[%s:%s]:" % (ranges, infos[0].get("method") or "execute") if ids else None
    lines = [label] if label else []
    lines += lines_of(_magics.bounded(traceback or "%s: %s" % (ename, evalue), _ERROR_MOST))
    return lines + advice(ename, evalue, ids, scope)


def _told(exception):
    """An exception that is shown in a line, without the frames of this package."""
    text = str(exception)
    line = type(exception).__name__ + (": " + text if text else "")
    exception._render_traceback_ = lambda: [line]
    return exception


# ---- what the extension asks of Python


class _DefaultCluster:
    """local.DefaultCluster, whose code is loaded when %px is first used."""

    _cluster = None

    def get(self):
        if self._cluster is None:
            from .local import default_cluster

            self._cluster = default_cluster()
        return self._cluster

    def take_news(self):
        """Whether a cluster was started, and said so, since this was asked last."""
        return self._cluster is not None and self._cluster.take_news()

    def has_ended(self, client):
        """Whether it is known that the cluster of this client is no more."""
        return self._cluster is not None and self._cluster.has_ended(client)


_default = _DefaultCluster()


class Face:
    """The Python side of a _magics.Magics."""

    def __init__(self, shell):
        self.shell = shell
        self._screen = Screen(shell, _default)
        self._kept = deque(maxlen=_KEPT)

    def keep(self, result):
        """Keeps a result that nobody waits for, so that get_result(-2) finds its outcome."""
        self._kept.append(result)

    def mind(self, result, screen):
        """What comes of a result when it has ended is shown by the cell that runs now."""
        result._client._late.show(result, later(screen))

    def view(self):
        """A blocking view of the default cluster."""
        return _default.get().view()

    def screen(self):
        return self._screen

    def run_here(self, code):
        self.shell.run_cell(code)

    def push(self, view, targets, names):
        """Sends local names to engines that do not have them as they are here."""
        import_module(".carry", __package__).push(view, targets, names, self.shell.user_ns)

    def check(self, view, targets, names):
        """Refuses a --pull that cannot succeed before the code runs."""
        import_module(".carry", __package__).check(view, names)

    def pull(self, view, targets, names):
        """Fetches names from engines into the local namespace."""
        import_module(".carry", __package__).pull(view, targets, names, self.shell.user_ns)

    def stacks(self, client, targets, seconds):
        print(import_module(".ask", __package__).stacks(client, targets, seconds), end="")

    def early(self, result, fold):
        """What some engines have raised while others run on, as text; each engine's once."""
        told = result._told  # engines, since this cell began to follow it
        failed = [
            index for index, task in enumerate(result._tasks)
            if task.reply is not None and task.reply.failed and not task.reply.lost
        ]
        new = [result._value(i) for i in failed if result._task_engine(i) not in told]
        told.update(result._task_engine(i) for i in failed)
        entries = [entry for e in new for entry in _entries_of(e)]
        lines = _folded_lines(entries, self.shell.user_ns, fold, color=self._screen.color)
        return "".join(line + "\n" for line in lines)

    def outcome(self, result, fold, screen):
        """Raises what a run that has ended raised on engines."""
        if not any(task.reply is None or task.reply.failed for task in result._tasks):
            return
        try:
            result.get()
        except Exception as e:
            told = getattr(result, "_told", ())
            fold_error(e, self.shell.user_ns, fold, told, self._screen.color)
            raise

    def stray_errors(self, result):
        """What tasks that succeeded have shown of errors, as a __repr__'s: [(task, text), ...]."""
        shown = []
        for index, task in enumerate(result._tasks):
            if task.error is not None and task.reply is not None and not task.reply.failed:
                text = task.error.traceback or str(task.error)
                text = text if self._screen.color else _COLOR.sub("", text)
                shown.append((index, text.rstrip("\n") + "\n"))
        return shown

    def check_cluster(self, result):
        """For a result whose controller cannot be reached."""
        if _default.has_ended(result._client):
            raise error.KernelError(
                "the controller died, and its cluster has ended; the next %px starts another"
            )

    @staticmethod
    def time_out(text):
        raise _told(TimeoutError(text))

    @staticmethod
    def interrupt(text):
        raise _told(KeyboardInterrupt(text) if text else KeyboardInterrupt())

    def follow_later(self, result, fold):
        """Shows a result's output in the cell that runs now, as it comes, while others run."""
        screen = later(self._screen)
        magics = _magics.Magics(self.shell, self)
        threading.Thread(
            target=self._follow, args=(magics, screen, result, fold), daemon=True
        ).start()

    @staticmethod
    def _follow(magics, screen, result, fold):
        try:
            magics.follow(screen, result, fold)
        except Exception as e:
            render = getattr(e, "_render_traceback_", None)
            lines = render() if render else ["%s: %s" % (type(e).__name__, e)]
            screen.write("stderr", "\n".join(lines) + "\n")


# ---- %autopx


class AutoPx:
    """Sends whole cells to engines, as long as it is on."""

    has_side_effects = True  # not to be called when IPython only asks whether input is complete

    def __init__(self, shell, magics, suffix):
        self._shell = shell
        self._magics = magics
        self._suffix = suffix
        self._ours = re.compile(r"\s*%%?(auto)?px\w*|\s*%result\b")

    def toggle(self, line=""):
        """Sends cells to the engines until it is given again.

        Cells that begin with a magic of the %px family still run here.

            %autopx
        """
        transforms = self._shell.input_transformer_manager.cleanup_transforms
        if self in transforms:
            transforms.remove(self)
            print("%%autopx%s disabled" % self._suffix)
        else:
            transforms.insert(0, self)
            print("%%autopx%s enabled" % self._suffix)

    def __call__(self, lines):
        cell = "".join(lines)
        if not cell.strip() or self._ours.match(cell):
            return lines
        self._shell._px_auto = self.run
        return ["get_ipython()._px_auto(%r)\n" % cell]

    def run(self, cell):
        self._magics.cell_px("", cell, True)


# ---- registering


def _expand(line, scope, local_scope):
    """The line with the values of $name. What stands in braces is Python's: {x}, f"{x}"."""
    if "$" not in line:
        return line
    try:
        braces_kept = line.replace("{", "{{").replace("}", "}}")
        return DollarFormatter().vformat(braces_kept, (), {**scope, **(local_scope or {})})
    except Exception:  # a shell's variable, as in !echo $HOME
        return line


def _is_whole_cell(shell, kind, *words):
    """Whether the cell that runs is this "line" or "cell" magic alone. words: its name, then what is
    said to it."""
    cells = shell.user_ns.get("In")
    call = "get_ipython().run_%s_magic(%s)" % (kind, ", ".join(map(repr, words)))
    return bool(cells) and cells[-1] == call


def _is_value_used():
    """Whether the code that called the running magic does something with its value: an assignment
    does; a statement does not, nor does %time, which evaluates one as a module of its own."""
    frame = sys._getframe(2)
    while frame and frame.f_globals.get("__name__", "").startswith("IPython."):
        frame = frame.f_back
    if frame is None:
        return False
    code = frame.f_code
    for at in range(frame.f_lasti + 2, len(code.co_code), 2):
        name, value = opname[code.co_code[at]], code.co_code[at + 1]
        if name == "RETURN_VALUE":
            return code.co_name != "<module>"
        if name == "CALL_INTRINSIC_1":
            return value != _PRINTS
        if name not in ("CACHE", "<0>", "NOP", "EXTENDED_ARG"):
            return name not in ("POP_TOP", "PRINT_EXPR")
    return False


def _documented(text):
    def decorate(function):
        function.__doc__ = text
        return function

    return decorate


def register(shell, view=None, suffix=""):
    """Gives `shell` the magics of the %px family, their names with `suffix` appended.

    They run on `view`, or, without one, on the default cluster.
    """
    face = Face(shell)
    magics = _magics.Magics(shell, face, view)
    if _non_interactive():
        magics.pxconfig("--no-stream --progress-after=-1")

    @no_var_expand
    @needs_local_scope
    @_documented(_magics.help(0))
    def px(line, local_ns=None):
        alone = _is_whole_cell(shell, "line", "px" + suffix, line)
        value = magics.px(_expand(line, shell.user_ns, local_ns), alone)
        return magics.last if value is None and _is_value_used() else value

    @_documented(_magics.help(1))
    def cell_px(line, cell):
        alone = _is_whole_cell(shell, "cell", "px" + suffix, line, cell)
        value = magics.cell_px(line, cell, alone)
        return magics.last if value is None and _is_value_used() else value

    @_documented(_magics.help(3))
    def pxresult(line=""):
        return magics.pxresult(line, _is_whole_cell(shell, "line", "pxresult" + suffix, line))

    @_documented(_magics.help(2))
    def pxconfig(line=""):
        return magics.pxconfig(line)

    @_documented(_magics.help(4))
    def pxstacks(line=""):
        return magics.pxstacks(line)

    def pxwhy(line=""):
        """Usage: %pxwhy [NAME or MSG-ID ...]

        Says why tasks wait: those of the last %px, of an AsyncResult, or with these msg_ids.

        Examples:
          %pxwhy
          %pxwhy result
        """
        ask = import_module(".ask", __package__)
        client = (view or face.view()).client
        print(ask.why(client, line, magics.last, shell.user_ns), end="")

    add = shell.magics_manager.register_function
    add(px, "line", "px" + suffix)
    add(cell_px, "cell", "px" + suffix)
    add(pxresult, "line", "pxresult" + suffix)
    add(pxconfig, "line", "pxconfig" + suffix)
    add(pxstacks, "line", "pxstacks" + suffix)
    add(pxwhy, "line", "pxwhy" + suffix)
    add(AutoPx(shell, magics, suffix).toggle, "line", "autopx" + suffix)
    if not suffix:
        add(pxresult, "line", "result")
        add(pxcluster, "line", "pxcluster")


def pxcluster(line=""):
    """Usage: %pxcluster COMMAND

    Manages the cluster that %px runs on.

      start [-n N]       start one on this machine, with N engines (default: one a processor)
      start --adapt=0:8  with as many, up to 8, as there are load-balanced tasks
      stop               end it
      restart [-n N]     end it and start it anew, with as many engines
      status             what runs where
      watch [--stop]     the same, kept up to date below the cell, with tasks a second
      engines            the ids of its engines
      engines +N         start N more
      engines -N         end N of them, idle ones first
      engines --kill 3,7       kill these, whatever they do
      engines --restart 3,7    kill these and start as many

    What is started here ends with this session.

    Examples:
      %pxcluster start -n 8
      %pxcluster engines +4
    """
    import_module(".pxcluster", __package__).command(_default.get(), line)
