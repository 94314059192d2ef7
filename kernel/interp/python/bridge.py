# SPDX-License-Identifier: BSD-3-Clause
"""What C calls: one object, whose methods take and give JSON text.

IPython is slow to import, so the shell is made when something first needs it. Where IPython is not
installed a plain one takes its place.
"""

import _signal
import atexit
import builtins
import contextlib
import json
import os
import signal
import sys
import threading
import traceback
import types

import _phalanx_host as host

POOLS_SECONDS = 0.4  # within which open pools of processes end with the kernel


def _take_interrupts():
    """Python's handler of SIGINT, under every name that programs compare with the one in force."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.default_int_handler = _signal.default_int_handler = host.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Whole:
    """What must not be cut in two, as an import: an interrupt waits for its end."""

    def __enter__(self):
        self.interrupted = False
        self.handler = None
        if threading.current_thread() is threading.main_thread():
            self.handler = signal.signal(signal.SIGINT, self._note)

    def _note(self, *unused):
        self.interrupted = True

    def __exit__(self, kind, *unused):
        if self.handler is not None:
            signal.signal(signal.SIGINT, self.handler)
        if self.interrupted and kind is None:
            raise KeyboardInterrupt


def _end_debugger():
    """One that was told to go on takes interrupts for calls of it: in its cell only."""
    handler, bdb = _signal.getsignal(signal.SIGINT), sys.modules.get("bdb")
    if bdb is not None and isinstance(getattr(handler, "__self__", None), bdb.Bdb):
        with contextlib.suppress(ValueError):  # a subshell's thread may not
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_process_pools():
    """The workers of pools that are still open end before multiprocessing, in its exit function,
    closes what would tell them to, and awaits them. Those that are busy keep nobody."""
    pools = sys.modules.get("concurrent.futures.process")
    if getattr(pools, "_threads_wakeups", None):
        ending = threading.Thread(target=pools._python_exit, daemon=True)
        ending.start()
        ending.join(POOLS_SECONDS)


def find_modules_here():
    """In the working directory: behind the standard library, where IPython's shell puts it when it
    starts. Modules that lie beside a notebook may have names like random.py."""
    if "" not in sys.path:
        parts = [os.path.basename(path) in ("site-packages", "dist-packages") for path in sys.path]
        sys.path.insert(parts.index(True) if True in parts else 0, "")


def _simple(value):
    """JSON for what the json module does not know."""
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        import binascii

        return binascii.b2a_base64(value).decode("ascii")  # its newline is in every notebook
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return value.tolist()
    if isinstance(value, (set, frozenset, types.GeneratorType)) or hasattr(value, "__next__"):
        return list(value)
    return repr(value)


def _clean(value):
    """A copy with nothing in it that JSON cannot say: no NaN, no odd keys."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else repr(value)
    if isinstance(value, dict):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(item) for item in value]
    if value is None or isinstance(value, (str, int)):
        return value
    return _clean(_simple(value))


def encode(value):
    """JSON text as bytes."""
    try:
        text = json.dumps(value, default=_simple, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError):
        text = json.dumps(_clean(value), ensure_ascii=False)
    return text.encode("utf-8", "replace")


def members(value):
    """The same without the braces."""
    return encode(value)[1:-1]


_MOST = 1 << 20  # characters of an exception, and of a part of its traceback


def _bounded(text):
    if len(text) <= _MOST:
        return text
    half = _MOST // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def describe(error, lines):
    """An exception in the protocol's form."""
    try:
        text = str(error)
    except Exception as failure:
        text = f"Failed to cast exception to string: {failure}"
    content = {
        "ename": type(error).__name__,
        "evalue": _bounded(text),
        "traceback": [_bounded(line) for line in lines],
    }
    if host.bridge.engine and getattr(type(error), "__module__", "") != "builtins":
        mro = type(error).__mro__  # for `except` at the client
        content["px_kinds"] = [f"{getattr(k, '__module__', '')}:{k.__qualname__}" for k in mro]
    return content


def publish(kind, content, metadata=None, buffers=None):
    if host.bridge.child:
        host.bridge.show_in_child(kind, content)
    else:
        _publish(kind, content, metadata, buffers)


def _publish(kind, content, metadata, buffers):
    host.publish(kind, encode(content), encode(dict(metadata or {})), buffers)


def publish_data(data):
    """ipyparallel's data publishing: a dict for the client, while a task runs."""
    publish(host.DATA_MESSAGE, {"keys": list(data)}, None, host.bridge.pack(data))


class Bridge:
    def __init__(self, options):
        self.options = options
        self.engine = options["engine"]
        self.child = False  # of the kernel's or engine's process, forked by the user's code
        self._shell = None
        self._comms = None
        self._apply = None
        self._making = threading.RLock()
        self._debugger = None
        self._started = False
        self._modules = {}
        self._bound_file = None
        self.kernel = self.embedded("kernel").Kernel(self)
        self.loops = self.embedded("loops").Loops(self)
        host.bridge = self
        self._install()

    # ---- the process -------------------------------------------------------

    def _install(self):
        """Makes this process a kernel for whatever looks at `sys` and `builtins`."""
        import io

        _take_interrupts()
        io.TextIOBase.register(host.Stream)
        sys.stdout, sys.stderr = host.stdout, host.stderr
        sys.stdin = open(os.devnull, encoding="utf-8")
        if self.options["module_dir"]:
            sys.path.append(self.options["module_dir"])
            sys.path.append(os.path.join(self.options["module_dir"], "phalanx", "stand_ins"))
        os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        builtins.input = self.input
        builtins.get_ipython = lambda: self.shell
        import getpass

        getpass.getpass = self.getpass
        environment = self.embedded("environment")
        if self.options["module_dir"]:
            environment.OwnPackage(self.options["module_dir"])
        self.when_imported = environment.create(host.parent_variable)
        self.when_imported.change("ipyparallel", self._know_bind_kernel)
        self.when_imported.change("ipykernel.connect", self._know_connection_file)
        os.register_at_fork(after_in_child=self._in_child)
        self.main = sys.modules["__main__"]

    def _know_bind_kernel(self, module):
        """The real package's works in its own engines alone."""
        module.bind_kernel = self.bind_kernel

    def _know_connection_file(self, module):
        """By its name libraries learn which notebook this is."""
        elsewhere = module.get_connection_file

        def get_connection_file(app=None):
            file = self.connection_file() if app is None else None
            return file or elsewhere(app)

        module.get_connection_file = get_connection_file

    def connection_file(self):
        """That of this kernel, or None for an engine that was not bound."""
        arguments = sys.orig_argv
        if self._bound_file is None and not self.engine and "-f" in arguments[:-1]:
            return os.path.abspath(arguments[arguments.index("-f") + 1])
        return self._bound_file

    def bind_kernel(self, **options):
        """Makes an engine a kernel that front ends connect to: the path of its connection file. A
        kernel is one already. ipyparallel's options are taken, and not looked at."""
        with self._making:  # threads of the user's may want it at once
            if self.engine and self._bound_file is None:
                from jupyter_core.paths import jupyter_runtime_dir

                directory = jupyter_runtime_dir()
                os.makedirs(directory, mode=0o700, exist_ok=True)
                file = os.path.join(directory, f"kernel-{os.getpid()}.json")
                host.bind(file)
                self._bound_file = file
        return self.connection_file()

    def _in_child(self):
        """A process forked here has no host, and signals meant for it are its own: the handlers of
        the program around us would act on what it shares with its parent."""
        host.forked()
        self.child = True
        self._debugger = None
        self.loops.forget()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            if signal.getsignal(number) in (None, signal.SIG_DFL):  # none that Python set
                signal.signal(number, signal.SIG_DFL)

    def show_in_child(self, kind, content):
        """What a child would publish goes to its descriptors, as text; and sys.exit() ends it, as it
        would a child of a script."""
        if kind == host.ERROR:
            if content["ename"] == "SystemExit":
                code = content["evalue"]
                number = code.lstrip("-").isdigit()
                if code not in ("", "None") and not number:
                    print(code, file=sys.stderr)
                self.end_child(int(code) if number else code not in ("", "None"))
            print("\n".join(content["traceback"]), file=sys.stderr)
        elif "data" in content and "text/plain" in content["data"]:
            print(content["data"]["text/plain"])

    def end_child(self, status):
        """Ends a child that comes back from the user's code: the rest of this program, its exit
        handlers and its sockets are the parent's."""
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            try:
                stream.flush()
            except Exception:
                pass
        os._exit(status & 0xFF)

    def embedded(self, name):
        """The embedded module `name`, executed on first use."""
        module = self._modules.get(name)
        if module is None:
            import linecache

            source, file = getattr(host, name + "_source"), f"<phalanx>/{name}.py"
            linecache.cache[file] = (len(source), None, source.splitlines(True), file)
            module = types.ModuleType("_phalanx_" + name)
            module.__file__ = file
            sys.modules[module.__name__] = module
            exec(compile(source, file, "exec"), module.__dict__)
            self._modules[name] = module
        return module

    def attach(self, engine_id, session):
        self.kernel.engine_id = self.kernel.int_id = engine_id
        self.kernel.ident = self.kernel.session.session = session or ""
        if self.options["engine"] and self._has_startup_files():
            self.shell  # as ipengine does: before anything is asked of it

    def warm(self):
        """Imports and builds what forked children share: the more, the less each writes for itself.
        No thread may start here, and nothing of the user's may run but what is to be preloaded.
        None, or why that cannot be."""
        import gc

        self._make_shell()
        self.comms
        if self._shell.px_starts_alone() and not self._has_startup_files():
            self.shell
        if self.options["module_dir"]:
            self.apply.pack5(None)
        why = self._preload(self.options["preload"] or "")
        gc.collect()
        gc.freeze()
        return why

    @staticmethod
    def _preload(names):
        from importlib import import_module

        for name in filter(None, names.split(",")):
            try:
                import_module(name)
            except BaseException as error:
                why = str(error).partition("\n")[0]
                return f"{name}: {type(error).__name__}: {why}"
            if threading.active_count() > 1:
                return f"{name} starts threads, which engines would not have"
        return None

    def after_fork(self):
        """In a child that is an engine. Python has seeded its own generator anew."""
        import random

        self.child = False
        random.seed()
        if "numpy" in sys.modules and hasattr(sys.modules["numpy"], "random"):
            sys.modules["numpy"].random.seed()

    def trace(self, signo, stacks_fd, last_fd):
        """faulthandler's handlers, which work with the lock held elsewhere; not in forked children."""
        import faulthandler

        def forget():
            if signo:
                faulthandler.unregister(signo)
            faulthandler.disable()

        if signo:
            faulthandler.register(signo, file=stacks_fd, all_threads=True, chain=True)
        faulthandler.enable(file=last_fd, all_threads=True)
        os.register_at_fork(after_in_child=forget)

    def thread_begin(self, name):
        """In the thread of a subshell. The shell is made here, where no interrupt hits the thread:
        one that did would leave it half made, or locked."""
        threading.current_thread().name = f"Subshell-{name}"
        self.shell

    def take_interrupt(self):
        """Raises the KeyboardInterrupt that waits for this thread, if one does."""

    def thread_end(self, unused):
        self.loops.end_thread()
        # What stands for a thread that Python did not start would stand there for ever.
        getattr(threading, "_active", {}).pop(threading.get_ident(), None)

    def stop(self):
        """Runs what the user left to be run at exit. True if none of the user's threads is left."""
        history = getattr(self._shell, "history_manager", None)
        if self._debugger is not None:
            self._debugger.close()
        if self._shell is not None:
            self._shell.px_stop()
        _end_process_pools()
        atexit._run_exitfuncs()
        host.spare(True)  # only what the user left is interrupted until it ends
        if history is not None:
            history.px_drop()
        current = threading.current_thread()
        return not any(t is not current for t in threading.enumerate())

    # ---- the shell ---------------------------------------------------------

    def _make_shell(self):
        if self._shell is not None:
            return
        try:
            with Whole():
                module = self.embedded("shell")
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] not in ("IPython", "traitlets"):
                raise
            sys.modules.pop("_phalanx_shell", None)
            module = self.embedded("plain")
        self._shell = module.create(self)

    @property
    def shell(self):
        """The shell, with the user's startup files run."""
        if self._started:
            return self._shell
        with self._making:  # subshells may want it at once; in the startup files it is there
            self._make_shell()
            if not self._started:
                self._started = True
                self.comms
                try:
                    self._shell.px_start()
                except KeyboardInterrupt:  # the next cell starts it, or would be without %px
                    self._started = False
                    raise
        return self._shell

    # ---- requests ----------------------------------------------------------

    def execute(self, code, silent, store_history, allow_stdin, expressions, metadata):
        shell, debugger = self.shell, self._debugger
        self.kernel._allow_stdin = bool(allow_stdin)
        cell = self.kernel.begin(metadata, code=code, silent=bool(silent),
                                 store_history=bool(store_history), allow_stdin=bool(allow_stdin),
                                 user_expressions=expressions)
        if debugger is not None:
            debugger.cell_begins()
        with self.loops.running():
            error = shell.px_execute(code, bool(silent), bool(store_history), cell)
            _end_debugger()
            if debugger is not None:
                debugger.cell_ends()
            values = {}
            if error is None and expressions not in ("", "{}"):
                values = shell.user_expressions(json.loads(expressions))
        payload, leave = shell.px_take_payload()
        return (
            None if error is None else members(error),
            shell.execution_count - 1,
            encode(payload) if payload else None,
            encode(values) if values else None,
            leave,
        )

    def query(self, what, content):
        try:
            request = json.loads(content)
            reply = getattr(self, "on_" + what)(request)
        except BaseException as error:  # an interrupt, too, is no reason not to answer
            lines = traceback.format_exception(type(error), error, error.__traceback__)
            reply = {"status": "error", **describe(error, lines)}
        return encode(reply)

    def on_complete(self, request):
        code = request["code"]
        return self.shell.px_complete(code, request.get("cursor_pos", len(code)))

    def on_inspect(self, request):
        code = request["code"]
        where = request.get("cursor_pos", len(code))
        return self.shell.px_inspect(code, where, request.get("detail_level", 0))

    def on_is_complete(self, request):
        return self.shell.px_is_complete(request["code"])

    def on_history(self, request):
        return {"status": "ok", "history": self.shell.px_history(request)}

    def on_debug(self, request):
        if self._debugger is None:
            self._debugger = self.embedded("debugger").create(self)
        return self._debugger.request(request)

    def clear(self):
        if self._shell is not None:
            self._shell.reset(False)
        else:
            names = self.main.__dict__
            for name in [name for name in names if not name.startswith("__")]:
                del names[name]

    # Exceptions as JSON members, and whether they mean that a dependency is not met.

    def describe(self, error):
        """One from anywhere: makes no shell for it."""
        if self._shell is not None:
            lines = self._shell.px_traceback(error)
        else:
            lines = traceback.format_exception(type(error), error, error.__traceback__)
        return self._answer(describe(error, lines))

    def describe_task(self, error):
        """One that ended an apply, which the kernel publishes."""
        return self._answer(describe(error, self.shell.px_traceback(error)))

    def describe_cell(self, error):
        """One that ended a cell where the shell did not see it, or could not be made: published as
        any other."""
        if self._shell is not None:
            lines = self._shell.px_traceback(error)
        else:
            lines = traceback.format_exception(type(error), error, error.__traceback__)
        content = describe(error, lines)
        publish(host.ERROR, content)
        return self._answer(content)

    def _answer(self, content):
        return members(content), content["ename"] == "UnmetDependency"

    # ---- apply -------------------------------------------------------------

    def make_apply(self):
        """The slow half of apply, for C. Startup files come before the first call."""
        if self._shell is not None or self._has_startup_files():
            self.shell
        else:
            find_modules_here()
        if sys.version_info >= (3, 14):
            self.loops.current  # which asyncio.ensure_future() wants and does not make any more
        return self.apply

    @property
    def apply(self):
        if self._apply is None:
            self._apply = self.embedded("apply").create(self)
        return self._apply

    def _has_startup_files(self):
        if os.environ.get("PYTHONSTARTUP"):
            return True
        startup = os.path.join(self.options["profile_dir"] or "", "startup")
        try:
            return any(name.endswith((".py", ".ipy")) for name in os.listdir(startup))
        except OSError:
            return False

    def pack(self, value):
        """The buffers of an object, in ipyparallel's form."""
        return self.apply.pack(value)

    # ---- comms -------------------------------------------------------------

    @property
    def comms(self):
        """The manager of comms, which widgets find through `comm` or `ipykernel.comm`."""
        if self._comms is None:
            self._comms = self.embedded("comms").create(self)
        return self._comms

    def comm(self, kind, content, metadata, buffers):
        header = json.loads(host.parent())
        message = {
            "content": json.loads(content),
            "metadata": json.loads(metadata),
            "buffers": buffers,
            "header": header,
            "parent_header": {},
            "msg_id": header.get("msg_id"),
            "msg_type": header.get("msg_type"),
        }
        handlers = {
            host.COMM_OPEN: "comm_open",
            host.COMM_MSG: "comm_msg",
            host.COMM_CLOSE: "comm_close",
        }
        with self.loops.running():
            getattr(self.comms, handlers[kind])(message)

    # ---- input -------------------------------------------------------------

    def _ask(self, prompt, password):
        line = host.input(str(prompt), password)
        if line is None:
            raise self._no_stdin()(
                "raw_input was called, but this frontend does not support input requests."
            )
        if line == "\x04":
            raise EOFError
        return line

    @staticmethod
    def _no_stdin():
        try:
            from IPython.core.error import StdinNotImplementedError
        except ImportError:
            return NotImplementedError
        return StdinNotImplementedError

    def input(self, prompt=""):
        """A line of text from the user. The prompt is shown first; Ctrl-D raises EOFError."""
        return self._ask(prompt, False)

    def getpass(self, prompt="Password: ", stream=None):
        """A line of text from the user, who does not see it while typing."""
        return self._ask(prompt, True)

    # ---- between requests --------------------------------------------------

    def note_background(self):
        self.loops.note_background()

    def idle(self, fd):
        self.loops.idle(fd)
