# SPDX-License-Identifier: BSD-3-Clause
"""IPython's shell, with its output, errors and payloads going to the host.

Only what IPython has kept stable from 7 to 9 is used. The names that begin with px_ are what
bridge.py asks of a shell.
"""

import contextlib
import importlib.util
import os
import re
import sys
import threading
import traceback

import _phalanx_host as host
from _phalanx_bridge import Whole, describe, publish, publish_data

host.bridge.embedded("placeholders").import_ipython()

from IPython.core import page, payloadpage
from IPython.core.application import (
    ENV_CONFIG_DIRS,
    SYSTEM_CONFIG_DIRS,
    BaseIPythonApplication,
)
from IPython.core.autocall import ZMQExitAutocall
from IPython.core.builtin_trap import BuiltinTrap
from IPython.core.compilerop import CachingCompiler
from IPython.core.display_trap import DisplayTrap
from IPython.core.error import UsageError
from IPython.core.inputtransformer2 import (
    ESCAPE_SINGLES,
    EscapedCommand,
    TransformerManager,
)
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.payload import PayloadManager
from IPython.core.shellapp import InteractiveShellApp
from IPython.utils.tokenutil import token_at_cursor
from traitlets import Any, CBool, Instance, Type, Unicode, default
from traitlets.config import Config

output = host.bridge.embedded("output")
line_magics = host.bridge.embedded("line_magics")

RUN_CODE = InteractiveShell.run_code.__code__


class Locked:
    """A trap of IPython's counts how deep it is in: threads take turns at that."""

    def __init__(self, *args, **traits):
        self._px_lock = threading.Lock()
        super().__init__(*args, **traits)

    def __enter__(self):
        with self._px_lock:
            return super().__enter__()

    def __exit__(self, *error):
        with self._px_lock:
            return super().__exit__(*error)


class LockedBuiltins(Locked, BuiltinTrap):
    pass


class LockedDisplay(Locked, DisplayTrap):
    pass


class Compiler(CachingCompiler):
    """Cells' names as files: where front ends may debug, those that these expect."""

    def get_code_name(self, raw_code, transformed_code, number):
        if host.bridge.options["debugger"]:
            return host.bridge.embedded("debugger").cell_name(raw_code)
        if host.bridge.engine:  # engines count apart: what they warn of is to read the same
            number = 0
        return super().get_code_name(raw_code, transformed_code, number)


class Transformers(TransformerManager):
    """Looks for IPython's syntax among the tokens of a cell only where there may be some, and more
    than one magic: Python's tokenizer is written in Python, and takes longer than all else that a
    plain cell needs."""

    # a = %magic, a = !command; %magic and the like at a line's begin; help? Other ends of lines than
    # \n are left to the tokenizer.
    _syntax = re.compile(r"=\s*[%%!]|^\s*[%s]|[?\r\v\f\x1c-\x1e\x85\u2028\u2029]"
                         % re.escape("".join(sorted(ESCAPE_SINGLES))), re.M)
    _magic = re.compile(r"%{1,2}[^\W\d][^?\\\r\v\f\x1c-\x1e\x85\u2028\u2029\n]*\n")
    _searched = ["MagicAssign", "SystemAssign", "EscapedCommand", "HelpEnd"]

    def __init__(self):
        super().__init__()
        names = [transformer.__name__ for transformer in self.token_transformers]
        self._known = list(self.token_transformers) if names == self._searched else None

    def do_one_token_transform(self, lines):
        if self.token_transformers == self._known:
            if not self._syntax.search("".join(lines)):
                return False, lines
            if len(lines) == 1 and self._magic.fullmatch(lines[0]):
                return True, EscapedCommand((1, 0)).transform(lines)
        return super().do_one_token_transform(lines)


class Payloads(PayloadManager):
    """Each thread's own, as each serves a request of its own."""

    def __init__(self, **traits):
        self._own = threading.local()
        super().__init__(**traits)

    @property
    def _payload(self):
        return self._own.__dict__.setdefault("payload", [])

    @_payload.setter
    def _payload(self, payload):
        self._own.payload = payload


# So much of a line before the cursor is completed: of twice that IPython and jedi take four times as
# long, which for a list or a string of 20 kB is half a minute.
LINE_MOST = 2000

# What IPython calls a GUI, and the kernel has nothing to do for.
NO_TOOLKIT = ("", "inline", "widget", "ipympl", "notebook", "nbagg", "agg", "asyncio")


class Own(threading.local):
    """What the shell keeps for the request of each thread."""

    interrupted = False
    traceback = None
    leave = False


class Spared:
    """What IPython does about a cell's end goes on, also when each line of the cell is interrupted."""

    def __enter__(self):
        host.spare(True)

    def __exit__(self, *error):
        host.spare(False)


class ZMQInteractiveShell(InteractiveShell):
    """Called as that of IPython's kernel is: libraries know a notebook by this name, and it names
    the section of the user's configuration."""

    compiler_class = Type(Compiler)
    displayhook_class = Type(output.DisplayHook)
    display_pub_class = Type(output.DisplayPublisher)
    kernel = Any()
    bridge = Any()
    exiter = Instance(ZMQExitAutocall)
    autoindent = CBool(False)
    # Plain attributes: nothing observes them, and a trait costs each cell its notifications.
    execution_count = 1
    last_execution_succeeded = True
    last_execution_result = None
    keepkernel_on_exit = None
    px_own = Any()
    # As %autoawait and the configuration name it.
    loop_runner_map = {**InteractiveShell.loop_runner_map,
                       "asyncio": (host.bridge.loops.run_coroutine, True)}

    @default("loop_runner")
    def _default_loop_runner(self):
        return self.loop_runner_map["asyncio"][0]

    @default("px_own")
    def _default_own(self):
        return Own()

    @default("input_transformer_manager")
    def _default_transformers(self):
        return Transformers()

    @default("exiter")
    def _default_exiter(self):
        return ZMQExitAutocall(self)

    # ---- IPython asks ------------------------------------------------------

    def init_environment(self):
        os.environ.update(TERM="xterm-color", CLICOLOR="1", PAGER="cat", GIT_PAGER="cat")

    def init_virtualenv(self):
        pass  # the interpreter is the environment's own

    def init_hooks(self):
        super().init_hooks()
        self.set_hook("show_in_pager", page.as_hook(payloadpage.page), 99)

    def init_events(self):
        super().init_events()
        trigger = self.events.trigger

        def spared_trigger(*args, **options):
            with Spared():
                trigger(*args, **options)

        self.events.trigger = spared_trigger

    def init_builtins(self):
        super().init_builtins()
        self.builtin_trap = LockedBuiltins(shell=self)

    def init_traceback_handlers(self, custom_exceptions):
        super().init_traceback_handlers(custom_exceptions)
        handler = self.InteractiveTB
        whole = handler.structured_traceback

        def without_our_frame(*args, **names):
            """IPython's own frame is not shown, but is formatted, for which its long file is parsed:
            left out before, where one asks as showtraceback() does."""
            trace = args[2] if len(args) == 3 else None
            ours = getattr(trace, "tb_next", None) and trace.tb_frame.f_code is RUN_CODE
            if not ours or handler.tb_offset != 1 or names.get("tb_offset") is not None:
                return whole(*args, **names)
            lines = whole(*args[:2], trace.tb_next, **{**names, "tb_offset": 0})
            handler.tb = trace  # %debug leaves out the first frame itself
            return lines

        handler.structured_traceback = without_our_frame

    def init_display_formatter(self):
        self.display_formatter = output.DisplayFormatter(parent=self)
        self.configurables.append(self.display_formatter)

    def init_displayhook(self):
        super().init_displayhook()
        self.display_trap = LockedDisplay(hook=self.displayhook)

    def init_payload(self):
        self.payload_manager = Payloads(parent=self)
        self.configurables.append(self.payload_manager)

    def init_magics(self):
        super().init_magics()
        self.register_magics(line_magics.KernelMagics)

    def init_history(self):
        history = self.bridge.embedded("history")
        self.history_manager = history.HistoryManager(shell=self, parent=self)
        self.configurables.append(self.history_manager)

    def init_data_pub(self):
        pass  # see data_pub

    def _tee(self, channel):
        """IPython 9 keeps whatever a cell prints, for %notebook: for ever, and by a function in the
        place of `write` that two subshells would put back in the wrong order.
        LIMIT: %notebook exports no printed text."""
        return contextlib.nullcontext()

    def should_run_async(self, raw_cell, *, transformed_cell=None, **more):
        """Compiles the cell to learn it, which one without these words need not wait for."""
        if transformed_cell is not None:
            if "await" not in transformed_cell and "async" not in transformed_cell:
                return False
        return super().should_run_async(raw_cell, transformed_cell=transformed_cell, **more)

    def enable_gui(self, gui=None):
        try:
            self.bridge.loops.use_toolkit(None if gui in NO_TOOLKIT else gui)
        except RuntimeError as error:
            raise UsageError(f"%gui {gui}: {error}") from None

    def enable_matplotlib(self, gui=None):
        """As IPython does; where that fails, all is as it was before."""
        import matplotlib

        before = self.pylab_gui_select, dict.get(matplotlib.rcParams, "backend")
        try:
            return super().enable_matplotlib(gui)
        except BaseException as error:
            self.pylab_gui_select = before[0]
            dict.__setitem__(matplotlib.rcParams, "backend", before[1])
            there = importlib.util.find_spec("ipympl")
            if gui in ("widget", "ipympl") and not there and isinstance(error, Exception):
                raise UsageError("%matplotlib widget needs ipympl, which is not installed for "
                                 f"{sys.executable}: '{sys.executable} -m pip install ipympl' "
                                 "installs it") from None
            raise

    def ask_exit(self):
        self.px_own.leave = not self.keepkernel_on_exit
        payload = {"source": "ask_exit", "keepkernel": self.keepkernel_on_exit}
        self.payload_manager.write_payload(payload)

    def set_next_input(self, text, replace=False):
        payload = {"source": "set_next_input", "text": text, "replace": replace}
        self.payload_manager.write_payload(payload)

    def get_parent(self):
        return self.kernel.get_parent()

    def set_parent(self, parent):
        self.kernel.set_parent(None, parent)

    parent_header = property(get_parent, set_parent)

    @property
    def data_pub(self):
        """ipyparallel's data publisher."""
        return self

    def publish_data(self, data):
        publish_data(data)

    def showtraceback(self, *args, **options):
        with Spared():
            super().showtraceback(*args, **options)

    def _showtraceback(self, etype, evalue, stb):
        own = self.px_own
        if own.interrupted and etype.__name__ == "CancelledError":
            own.interrupted = False
            etype, evalue = KeyboardInterrupt, KeyboardInterrupt()
        own.traceback = describe(evalue, list(stb))
        publish(host.ERROR, own.traceback)

    def _format_exception_for_storage(self, exception, *more, **names):
        """IPython 9 keeps each error for %notebook: not formatted a second time, which takes as
        long as the first and fails where the error's text does."""
        return self.px_own.traceback or super()._format_exception_for_storage(exception, *more, **names)

    def system_piped(self, cmd):
        """Runs a command, showing its output as it comes."""
        if cmd.rstrip().endswith("&"):
            raise OSError("Background processes not supported.")
        from IPython.utils.process import system

        self.user_ns["_exit_code"] = system(self.var_expand(cmd, depth=1))

    system = system_piped

    # ---- the bridge asks ---------------------------------------------------

    def px_starts_alone(self):
        """True if nothing of the user's runs in px_start(): no configuration, no startup files."""
        app = self.parent
        if getattr(app, "loaded_config_files", True):
            return False
        places = [os.path.join(path, "startup") for path in (*ENV_CONFIG_DIRS, *SYSTEM_CONFIG_DIRS)]
        files = os.listdir(app.profile_dir.startup_dir)
        return files in ([], ["README"]) and not any(map(os.path.isdir, places))

    def px_start(self):
        """Runs startup files and extensions of the profile, then loads the parallel magics."""
        self.parent.px_start(self)
        if self.bridge.engine:
            self.register_magics(line_magics.EngineMagics)
        elif self.bridge.options["module_dir"]:
            self._load_parallel_magics()

    def _load_parallel_magics(self):
        try:
            with Whole():
                import phalanx

            phalanx.load_ipython_extension(self)
        except Exception as error:
            why = "".join(traceback.format_exception_only(type(error), error)).strip()
            host.log(f"the parallel magics are not available: {why}")

    def px_stop(self):
        self.history_manager.px_close()

    def px_execute(self, code, silent, store_history, cell):
        """None, or the error that ended the cell; `cell` is the notebook's id of it, or None."""
        own = self.px_own
        own.traceback = None
        own.interrupted = False
        try:
            try:
                more = {} if cell is None else {"cell_id": cell}
                result = self.run_cell(code, store_history=store_history, silent=silent, **more)
            finally:
                host.spare(True)  # to the end of the request
        except BaseException as error:  # an interrupt outside the user's code, or a fault of IPython's
            if own.traceback is not None:
                return own.traceback
            content = describe(error, self.px_traceback(error))
            publish(host.ERROR, content)
            return content
        failure = result.error_before_exec or result.error_in_exec
        if failure is None:
            return None
        cancelled = own.interrupted and type(failure).__name__ == "CancelledError"
        if own.traceback is None and (cancelled or isinstance(failure, KeyboardInterrupt)):
            self._show_plainly(KeyboardInterrupt())
        if type(failure).__name__ == "BdbQuit":
            self._forget_debugger()
        return own.traceback or describe(failure, [])

    def _forget_debugger(self):
        """Python 3.14 takes the last debugger for the next breakpoint, and one that was told to quit
        stops no more."""
        debugger = getattr(sys.modules.get("pdb"), "Pdb", None)
        if hasattr(debugger, "_last_pdb_instance"):
            debugger._last_pdb_instance = None

    def _show_plainly(self, failure):
        """IPython shows no traceback in whose making the next interrupt comes; unless others show
        what it would have shown."""
        if not {"showtraceback", "_showtraceback"} & vars(self).keys():
            self._showtraceback(type(failure), failure,
                                traceback.format_exception_only(type(failure), failure))

    def px_take_payload(self):
        payload = self.payload_manager.read_payload()
        if payload:
            self.payload_manager.clear_payload()
        own = self.px_own
        leave, own.leave = own.leave, False
        return payload, leave

    def px_traceback(self, error):
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename.startswith("<phalanx>"):
            trace = trace.tb_next
        try:
            if hasattr(error, "_render_traceback_"):
                return list(error._render_traceback_())
            format_lines = self.InteractiveTB.structured_traceback
            return list(format_lines(type(error), error, trace, tb_offset=0))
        except Exception:
            return traceback.format_exception(type(error), error, trace)

    def px_complete(self, code, where):
        from IPython.core.completer import provisionalcompleter, rectify_completions

        line = code.rfind("\n", 0, where) + 1
        cut = max(0, where - line - LINE_MOST)
        code, at = code[:line] + code[line + cut :], where - cut
        with provisionalcompleter():
            found = list(rectify_completions(code, self.Completer.completions(code, at)))
        kinds = [
            {"start": c.start + cut, "end": c.end + cut, "text": c.text, "type": c.type,
             "signature": c.signature}
            for c in found
        ]
        return {
            "status": "ok",
            "matches": [c.text for c in found],
            "cursor_start": kinds[0]["start"] if found else where,
            "cursor_end": kinds[0]["end"] if found else where,
            "metadata": {"_jupyter_types_experimental": kinds},
        }

    def px_inspect(self, code, where, detail):
        reply = {"status": "ok", "found": False, "data": {}, "metadata": {}}
        try:
            name = token_at_cursor(code, where)
            data = self.object_inspect_mime(name, detail_level=detail)
        except KeyError:
            return reply
        if not self.enable_html_pager:
            data.pop("text/html", None)
        return {**reply, "found": True, "data": data}

    def px_is_complete(self, code):
        transformer = getattr(self, "input_transformer_manager", None)
        status, indent = transformer.check_complete(code)
        reply = {"status": status}
        return {**reply, "indent": " " * indent} if status == "incomplete" else reply

    def px_history(self, request):
        return self.history_manager.px_ask(request)


class IPKernelApp(BaseIPythonApplication, InteractiveShellApp):
    """The profile: its configuration, extensions and startup files. The name is that of a section
    there."""

    name = "ipython-kernel"
    connection_file = Unicode().tag(config=True)

    def init_crash_handler(self):
        pass

    def px_start(self, shell):
        self.shell = shell
        shell.configurables.append(self)  # for %config
        self.init_path()
        self.init_gui_pylab()
        self.init_extensions()
        self.init_code()


def _arguments(options):
    """IPython's configuration on the command line, as --Class.trait=VALUE: front ends that take a
    kernel called python3 for IPython's put some there."""
    words = [] if options["engine"] else sys.orig_argv
    return [word for word in words if re.match(r"--[A-Z]\w*\.[\w.]+=", word)]


def _configuration(options):
    config = Config()
    config.IPKernelApp.connection_file = host.bridge.connection_file() or ""  # a kernel has the section
    if options["profile_dir"]:
        config.ProfileDir.location = options["profile_dir"]
    if options["colors"]:
        config.InteractiveShell.colors = options["colors"]
    if options["engine"]:
        config.HistoryManager.hist_file = ":memory:"
    return config


def _take_pdb():
    """breakpoint() and all that names pdb get IPython's, which an interrupt ends."""
    import pdb

    from IPython.core import debugger

    debugger.Pdb = pdb.Pdb = debugger.InterruptiblePdb
    pdb.set_trace = debugger.set_trace


def _without_profile(config, files):
    """Where there is none to be had, IPython gets a place that does not stay."""
    import atexit
    import shutil
    import tempfile

    place = tempfile.mkdtemp(prefix="phalanx-ipython-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    os.environ["IPYTHONDIR"] = place
    config.ProfileDir = Config()
    config.HistoryManager.enabled = False
    app = IPKernelApp(config=config, config_files=files)
    app.initialize(_arguments(host.bridge.options))
    return app


def create(bridge):
    _take_pdb()
    config = _configuration(bridge.options)
    files = ["ipengine_config.py"] if bridge.options["engine"] else ["ipython_kernel_config.py"]
    app = IPKernelApp(config=config, config_files=files)
    try:
        app.initialize(_arguments(bridge.options))
    except Exception as error:
        host.log(f"the IPython profile is ignored: {error}")
        app = _without_profile(config, files)
    with Whole():
        shell = ZMQInteractiveShell.instance(
            parent=app,
            profile_dir=app.profile_dir,
            user_module=bridge.main,
            user_ns=bridge.main.__dict__,
            kernel=bridge.kernel,
            bridge=bridge,
        )
    stand_in = bridge.embedded("environment").stand_in
    stand_in(bridge.when_imported, "zmqshell", ZMQInteractiveShell=ZMQInteractiveShell)
    return shell
