# SPDX-License-Identifier: BSD-3-Clause
"""The shell where IPython is not installed: Python, without magics.

It offers what bridge.py asks of a shell (the methods that begin with px_) and the few attributes
of IPython's that code on engines uses. What needs IPython says so, and how to get it.
"""

import ast
import builtins
import codeop
import inspect
import linecache
import re
import rlcompleter
import sys
import threading
import traceback

import _phalanx_host as host
from _phalanx_bridge import describe, find_modules_here, publish


def missing(what):
    return ModuleNotFoundError(
        f"{what} IPython, which is not installed for {sys.executable}: "
        f"'{sys.executable} -m pip install ipython' installs it",
        name="IPython",
    )


class NoIPython:
    """The last finder: what nobody else has found."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "IPython":
            raise missing("this needs")
        return None


def display(*objects, **options):
    """Rich display, which there is none of without IPython."""
    raise missing("display() needs")


# Lines that are IPython's and no Python: magics, commands, questions.
_NOT_PYTHON = re.compile(r"^\s*(?:[\w.\s,]+=\s*)?(%{1,2}[A-Za-z]\S*|!\S+|\?+[\w.]+|[\w.]+\?+\s*$)", re.M)


class Own(threading.local):
    """What each shell, main or sub, has of its own."""

    interrupted = False


class Plain:
    def __init__(self, bridge):
        self.bridge = bridge
        self.kernel = bridge.kernel
        self.user_ns = self.user_global_ns = bridge.main.__dict__
        self.execution_count = 1
        self.inputs = []
        self.px_own = Own()
        builtins.display = display
        sys.meta_path.append(NoIPython)

    def px_starts_alone(self):
        return True

    def px_start(self):
        find_modules_here()

    def px_stop(self):
        pass

    def reset(self, new_session=True):
        for name in [name for name in self.user_ns if not name.startswith("__")]:
            del self.user_ns[name]

    def px_execute(self, code, silent, store_history, cell):
        error = None
        try:
            self._run(code, silent)
        except BaseException as failure:
            if self.px_own.interrupted and type(failure).__name__ == "CancelledError":
                failure = KeyboardInterrupt()
            self.px_own.interrupted = False
            error = describe(failure, self.px_traceback(failure))
            publish(host.ERROR, error)
        if store_history and not silent:
            self.inputs.append(code)
            self.execution_count += 1
        return error

    def _parse(self, code, name):
        try:
            return ast.parse(code, name)
        except SyntaxError as error:
            lines = code.splitlines()
            line = lines[error.lineno - 1] if 0 < (error.lineno or 0) <= len(lines) else ""
            found = _NOT_PYTHON.match(line)
            if found is None:
                raise
            raise missing(f"{found.group(1)} needs") from None

    def _evaluate(self, tree, name, mode):
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(tree, name, mode, flags=flags)
        value = eval(code, self.user_ns)
        if code.co_flags & inspect.CO_COROUTINE:
            value = self.bridge.loops.run_coroutine(value)
        return value

    def _run(self, code, silent):
        name = f"<cell {self.execution_count}>"
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        tree = self._parse(code, name)
        last = None
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not silent:
            last = ast.Expression(tree.body.pop().value)
        self._evaluate(tree, name, "exec")
        if last is not None:
            value = self._evaluate(last, name, "eval")
            if value is not None and not code.rstrip().endswith(";"):
                self._show(value)

    def _show(self, value):
        self.user_ns["_"] = value
        content = {"data": {"text/plain": repr(value)}, "metadata": {}}
        publish(host.EXECUTE_RESULT, {**content, "execution_count": self.execution_count})

    def user_expressions(self, expressions):
        values = {}
        for key, expression in expressions.items():
            try:
                text = repr(eval(expression, self.user_ns))
                values[key] = {"status": "ok", "data": {"text/plain": text}, "metadata": {}}
            except Exception as error:
                values[key] = {"status": "error", **describe(error, self.px_traceback(error))}
        return values

    def px_take_payload(self):
        return [], False

    def px_traceback(self, error):
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename.startswith("<phalanx>"):
            trace = trace.tb_next
        return traceback.format_exception(type(error), error, trace)

    def showtraceback(self, *args, **kwargs):
        error = sys.exc_info()[1]
        publish(host.ERROR, describe(error, self.px_traceback(error)))

    def px_complete(self, code, where):
        word = re.search(r"[\w.]*$", code[:where]).group()
        completer = rlcompleter.Completer(self.user_ns)
        matches = []
        while (match := completer.complete(word, len(matches))) is not None:
            matches.append(match)
        start = where - len(word)
        return {"status": "ok", "matches": matches, "cursor_start": start, "cursor_end": where,
                "metadata": {}}

    def px_inspect(self, code, where, detail):
        word = re.search(r"[\w.]*$", code[:where]).group() + re.match(r"\w*", code[where:]).group()
        reply = {"status": "ok", "found": False, "data": {}, "metadata": {}}
        try:
            text = inspect.getdoc(eval(word, self.user_ns))
            reply.update(found=True, data={"text/plain": text or ""})
        except Exception:
            pass
        return reply

    def px_is_complete(self, code):
        try:
            done = codeop.compile_command(code, "<cell>", "exec") is not None
        except (SyntaxError, ValueError, OverflowError):
            return {"status": "invalid"}
        return {"status": "complete"} if done else {"status": "incomplete", "indent": "    "}

    def px_history(self, request):
        cells = list(enumerate(self.inputs, 1))
        if request.get("hist_access_type") == "tail":
            cells = cells[-(request.get("n") or 10):]
        return [(1, number, code) for number, code in cells]


def create(bridge):
    return Plain(bridge)
