# SPDX-License-Identifier: BSD-3-Clause
"""Exceptions of the client, with ipyparallel's names.

A task that fails on an engine raises RemoteError here; several of them in one call raise
CompositeError. Failures that the controller or this client states (an engine died, a dependency
cannot be met) are RemoteErrors as well as the exception that they are named after, so either
kind of `except` catches them. So are those that engines name after an exception of Python's:
`except ValueError` catches what raised ValueError there. Engines of ours say all classes of other
exceptions, and the first of them that is a class here, too, is meant: a module's that has been
imported here, or the notebook's own. A CompositeError is of its first one's kind.
"""

import abc
import builtins
import concurrent.futures
import functools
import re
import sys
import traceback
import types
import weakref

from .tracebacks import advice, lines_of, of_the_user, ranges, shorter


class IPythonError(Exception):
    """The root of everything here."""


class KernelError(IPythonError):
    """The cluster could not do what was asked."""

    def _render_traceback_(self):
        # In IPython: what is wrong, without the path through this package.
        return ["%s: %s" % (type(self).__name__, self)]


def without_our_frames(interrupt):
    """The same KeyboardInterrupt, which IPython shows without the path through this package. Not of a
    class of ours: by Python's own it knows how a script is to end."""
    interrupt._render_traceback_ = functools.partial(of_the_user, interrupt)
    return interrupt


def interruptible(method):
    """Of a method that waits: see without_our_frames."""

    @functools.wraps(method)
    def wait(*args, **kwargs):
        try:
            return method(*args, **kwargs)
        except KeyboardInterrupt as e:
            without_our_frames(e)
            raise

    return wait


class EngineError(KernelError):
    """An engine is gone."""


class NoEnginesRegistered(KernelError):
    """Engines are needed, and there are none."""

    def __str__(self):
        return super().__str__() or (
            "This operation requires engines."
            " Try client.wait_for_engines(n) to wait for engines to register."
        )


class TaskAborted(KernelError, concurrent.futures.CancelledError):
    """The task was taken from the queue before it ran."""


class TaskTimeout(KernelError):
    """The task waited longer than its timeout allows."""


TimeoutError = builtins.TimeoutError


class UnmetDependency(KernelError):
    """A dependency is not met on this engine; the task is to run elsewhere."""


class ImpossibleDependency(UnmetDependency):
    """No engine can meet the dependency."""


class DependencyTimeout(ImpossibleDependency):
    """The dependency was not met in time."""


class InvalidDependency(ImpossibleDependency):
    """The dependency names a task that nobody knows, or the task itself."""


class TaskRejectError(KernelError):
    """Raised by a task that wants to run on another engine."""


class RemoteTraceback(Exception):
    """The cause of a RemoteError, for who is shown the local traceback: the remote one."""

    def __init__(self, error):
        super().__init__()
        self._error = weakref.ref(error)

    def __reduce__(self):  # for tblib, which dask brings along: it pickles causes, too
        return Exception, (str(self),)

    def __str__(self):
        error = self._error()
        lines = error.render_traceback() if error is not None else []
        return '\n"""\n%s\n"""' % _color.sub("", "\n".join(lines)).strip()


# Python's exceptions, but those that would say something else here: a result is late, memory is short,
# an iteration is over, a program does not parse, a property has no value; and groups, which have members.
_OTHERWISE = (
    AttributeError, MemoryError, StopAsyncIteration, StopIteration, SyntaxError, TimeoutError,
)
_kinds = {
    name: kind for name, kind in vars(builtins).items()
    if isinstance(kind, type) and issubclass(kind, Exception) and kind is not Exception
    and not issubclass(kind, _OTHERWISE)
    and not name.endswith("Group")
}


# How an exception is made, looked at, and compared: what a class has of its own of these is for
# exceptions that were made by it.
_MADE_BY = ("__new__", "__setattr__", "__getattribute__", "__getattr__", "__reduce_ex__")
_SAYING_OTHERWISE = {kind.__name__ for kind in _OTHERWISE} | {"CancelledError", "KernelError"}


@functools.lru_cache(maxsize=256)
def _both(cls, kind):
    """A class that is both, by the name of the first; None, or an exception, where there can be none."""
    if any(isinstance(getattr(kind, name, None), types.FunctionType) for name in _MADE_BY):
        return None
    if isinstance(kind.__init_subclass__, types.MethodType):  # it keeps a list of its heirs, say
        return None
    both = type(cls.__name__, (cls, kind), {
        "__module__": __name__, "__doc__": cls.__doc__, "_plain": cls, "args": BaseException.args,
        "__eq__": object.__eq__, "__hash__": object.__hash__, "__bool__": lambda self: True,
    })
    super(RemoteError, both).__new__(both)  # it may want more than that
    return both


def _class_here(name):
    """The exception "module:qualified.name", as it was imported here, or None."""
    module, _, path = name.partition(":")
    if module == "builtins":
        return _kinds.get(path)
    found = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    if type(found) not in (type, abc.ABCMeta) or not issubclass(found, Exception):
        return None
    # By name: some have become others in later versions of Python. And what this package says itself.
    bases = found.__mro__
    if module.partition(".")[0] == "phalanx" or any(k.__name__ in _SAYING_OTHERWISE for k in bases):
        return None
    return found


def _with_kind(cls, ename, info):
    """cls, or a class that is also what was raised."""
    kinds = (info or {}).get("kinds")
    if not isinstance(kinds, list):
        kinds = ["builtins:" + ename] if isinstance(ename, str) else []
    for name in kinds:
        try:
            kind = _class_here(name)
            both = kind and _both(cls, kind)
        except Exception:  # of the user's own, or the name is none
            continue
        if both:
            return both
    return cls


class RemoteError(KernelError):
    """An exception that was raised on an engine.

    ename, evalue: its class name and its text; traceback: the remote traceback as one string;
    engine_info: {"engine_id", "engine_uuid", "method"} where known; of a map's task "items", too: the
    range of its elements' numbers; and "kinds": the classes of what was raised, where engines say them.
    """

    ename = None
    evalue = None
    traceback = None
    engine_info = None
    _plain = None  # the class that mine was made of

    def __new__(cls, ename=None, evalue=None, traceback=None, engine_info=None):
        cls = _with_kind(cls, ename, engine_info)
        return super(RemoteError, cls).__new__(cls)

    def __init__(self, ename, evalue, traceback, engine_info=None):
        Exception.__init__(self, ename, evalue)
        self.ename = ename
        self.evalue = evalue
        self.traceback = traceback
        self.engine_info = engine_info or {}
        if traceback and traceback != ename:
            self.__cause__ = RemoteTraceback(self)

    def __reduce__(self):
        cls = self._plain or type(self)
        return cls, (self.ename, self.evalue, self.traceback, self.engine_info)

    def __repr__(self):
        return "<%s[%s]:%s(%s)>" % (
            type(self).__name__, self.engine_info.get("engine_id", " "), self.ename, self.evalue
        )

    def __str__(self):
        label = _engine_label(self.engine_info)
        text = "%s: %s" % (self.ename, self.evalue) if self.evalue else str(self.ename)
        return "%s %s" % (label, text) if label else text

    def render_traceback(self):
        """The remote traceback as a list of lines."""
        lines = _lines(self.ename, self.evalue, self.traceback)
        lines += advice(self.ename, self.evalue, _engines([self.engine_info]))
        label = _engine_label(self.engine_info)
        return [label + ":"] + lines if label else lines

    def _render_traceback_(self):
        # IPython shows this in the place of the local traceback.
        return self.render_traceback()

    def print_traceback(self, excid=None):
        """Prints the remote traceback."""
        print("\n".join(self.render_traceback()))


def _lines(ename, evalue, traceback):
    """The lines of a traceback; where there is none, or a name alone, as schedulers send: what it is."""
    lines = lines_of(traceback or "")
    return lines if lines not in ([], [ename]) else ["%s: %s" % (ename, evalue)]


def _engine_label(*infos):
    """"[0-2:apply, item 5]", or "" where no engine is known."""
    engines = _engines(infos)
    if not engines:
        return ""
    items = sorted({item for info in infos if info for item in info.get("items", ())})
    said = ", item%s %s" % ("" if len(items) == 1 else "s", shorter(ranges(items))) if items else ""
    return "[%s:%s%s]" % (ranges(engines), infos[0].get("method") or "apply", said)


def _engines(infos):
    """The ids of those that are known."""
    return [i["engine_id"] for i in infos if i and i.get("engine_id") is not None]


def _named(name, base):
    return type(name, (RemoteError, base), {"__module__": __name__, "__doc__": base.__doc__})


_stated = {
    base.__name__: _named("Remote" + base.__name__, base)
    for base in (
        EngineError, TaskTimeout, ImpossibleDependency, DependencyTimeout, InvalidDependency,
        UnmetDependency,
    )
}
globals().update({cls.__name__: cls for cls in _stated.values()})


_TEXT_MOST = 10000  # characters of one error in the text of a CompositeError
_LOOKS_MOST = 1000  # different errors that are compared closely; more of them letter by letter


class CompositeError(RemoteError):
    """The exceptions of several engines.

    elist: tuples (ename, evalue, traceback, engine_info).
    """

    tb_limit = 4
    msg = elist = None

    def __new__(cls, message, elist):
        return super().__new__(cls, *elist[0]) if elist else super().__new__(cls)

    def __init__(self, message, elist):
        Exception.__init__(self, message, elist)
        self.msg = message
        self.elist = elist
        self.args = [e[0] for e in elist]
        self.__cause__ = RemoteTraceback(self)

    def __reduce__(self):
        return self._plain or type(self), (self.msg, self.elist)

    def _engine_str(self, info):
        label = _engine_label(info)
        return label + ": " if label else "[Engine Exception]: "

    def __str__(self):
        lines = [str(self.msg)]
        for ename, evalue, _, info in self.elist[: self.tb_limit]:
            text = "%s%s: %s" % (self._engine_str(info), ename, evalue)
            lines.append(text if len(text) <= _TEXT_MOST else text[:_TEXT_MOST] + " ...")
        if len(self.elist) > self.tb_limit:
            lines.append(".... %i more exceptions ..." % (len(self.elist) - self.tb_limit))
        return "\n".join(lines)

    def __repr__(self):
        return "%s(%i)" % (type(self).__name__, len(self.elist))

    @staticmethod
    def _render_group(group):
        """The lines of what was raised alike."""
        ename, evalue, traceback, _ = group[0]
        lines = _lines(ename, evalue, traceback)
        return lines + advice(ename, evalue, _engines(info for _, _, _, info in group))

    def _alike(self):
        """The exceptions in groups of those that look the same, but for colours, cells' numbers
        and addresses, in order of their first ones."""
        groups, looks = {}, {}
        for entry in self.elist:
            text = entry[2] or "%s: %s" % entry[:2]
            if text not in looks and len(looks) >= _LOOKS_MOST:
                looks[text] = text
            elif text not in looks:
                looks[text] = _volatile.sub("", _color.sub("", "\n".join(lines_of(text))))
            groups.setdefault((entry[0], looks[text]), []).append(entry)
        return list(groups.values())

    def render_traceback(self, excid=None):
        """The tracebacks, each once however many engines raised it, at most tb_limit of them, or
        that of one exception, as a list of lines."""
        if excid is not None:
            entry = self._entry(excid)
            return [self._engine_str(entry[3])] + self._render_group([entry])
        lines, groups = [], self._alike()
        for group in groups[: self.tb_limit]:
            lines += [_group_label(group)] + self._render_group(group) + [""]
        left = sum(len(group) for group in groups[self.tb_limit :])
        if left:
            lines.append("... %i more exceptions ..." % left)
        return lines

    def _entry(self, excid):
        try:
            return self.elist[excid]
        except IndexError:
            raise IndexError("an exception with index %i does not exist" % excid) from None

    def print_traceback(self, excid=None):
        print("\n".join(self.render_traceback(excid)))

    def raise_exception(self, excid=0):
        """Raises one of the exceptions as a RemoteError."""
        raise RemoteError(*self._entry(excid))


class AlreadyDisplayedError(RemoteError):
    """Stands for a CompositeError whose tracebacks were shown as they came: original_error."""

    def __init__(self, original_error):
        Exception.__init__(self, original_error)
        self.original_error = original_error
        self.n = len(original_error.elist)

    def __reduce__(self):
        return type(self), (self.original_error,)

    def __repr__(self):
        return "<%s(%d errors)>" % (type(self).__name__, self.n)

    def __str__(self):
        return "%d errors" % self.n

    def render_traceback(self):
        """How many there were, a list of one line."""
        return [str(self)]


# What differs between engines in tracebacks that are the same.
_color = re.compile(r"\x1b\[[0-9;]*m")
_volatile = re.compile(
    r"(?:In|Input In|Cell In) ?\s*\[[^]]*\]|<ipython-input-[^>]*>|0x[0-9a-fA-F]+"
    r"|/tmp/ipykernel_\d+/\d+\.py"
)


def _group_label(group):
    """Where the exceptions of a group were raised."""
    label = _engine_label(*(info for _, _, _, info in group))
    count = "" if len(group) == 1 else " (%d times the same)" % len(group)
    return label + ":" + count if label else "[Engine Exception]: "


# What schedulers say by a name alone.
_WORDS = {
    "ImpossibleDependency":
        "the tasks that it depends on ended otherwise, or no engine may run it",
    "InvalidDependency": "it depends on itself, or on a task that the scheduler does not know",
    "TaskTimeout": "it could not be run within its timeout",
}


def from_reply(content, engine_id=None, method="apply"):
    """The exception that a reply's content describes."""
    if content.get("status") == "aborted":
        return TaskAborted("the task was aborted before it ran; client.resubmit() runs it")
    info = dict(content.get("engine_info") or {})
    if info:
        info.setdefault("method", method)
        if engine_id is not None:
            info["engine_id"] = engine_id
        if "px_kinds" in content:
            info["kinds"] = content["px_kinds"]
    ename = content.get("ename") or "RemoteError"
    cls = RemoteError if info else _stated.get(ename, RemoteError)
    if not info and engine_id is not None and engine_id >= 0:
        info = {"engine_id": engine_id, "method": method}
    traceback = "\n".join(content.get("traceback") or [])
    evalue = content.get("evalue") or (_WORDS.get(ename) if cls is not RemoteError else None)
    return cls(ename, evalue or "", traceback, info)


def wrap_exception(engine_info=None):
    """The exception that is being handled, as the content of a reply."""
    kind, e, tb = sys.exc_info()
    return {
        "status": "error", "ename": kind.__name__, "evalue": str(e),
        "traceback": traceback.format_exception(kind, e, tb), "engine_info": engine_info or {},
    }


def unwrap_exception(content):
    """The RemoteError that such a content describes."""
    return RemoteError(
        content["ename"], content["evalue"], "\n".join(content["traceback"]),
        content.get("engine_info"),
    )


def collect_exceptions(results, method="unspecified"):
    """Returns `results`, or raises the exceptions among them as one CompositeError."""
    elist = []
    for result in results:
        if isinstance(result, CompositeError):
            elist += result.elist
        elif isinstance(result, RemoteError):
            elist.append((result.ename, result.evalue, result.traceback, result.engine_info))
        elif isinstance(result, KernelError):
            elist.append((type(result).__name__, str(result), "", {}))
    if elist:
        raise CompositeError("one or more exceptions raised in: %s" % method, elist)
    return results
