# SPDX-License-Identifier: BSD-3-Clause
"""What this process adds to engines' tracebacks: the source of functions that were typed here, which
engines do not have, and what to do about names and modules that only this process knows."""

import linecache
import os
import re
import sys
import types

_CONTEXT = 2  # lines of source before and behind the one that raised
_LONG = 60  # characters of a list of numbers
_COLOR = r"(?:\x1b\[[0-9;]*m)*"
# As IPython 8 and 9 have it.
_FRAME = re.compile(r"%sFile %s([^\x1b]+):(\d+)%s(, in .*)" % (_COLOR, _COLOR, _COLOR))
_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep, "<phalanx>"  # the client's, the engine's

_NOBODY_TO_ASK = [
    "Nobody can be asked by an engine: '%%px --push NAME' sends it what was asked here. Where it is to",
    "ask by itself, phalanx.bind_kernel() makes it a kernel for a front end of its own.",
]
_MISSING_NAME = re.compile(r"name '(\w+)' is not defined")
_NOT_IN_MAIN = re.compile(r"Can't get attribute '(\w+)' on <module '__main__'")
_MISSING_MODULE = re.compile(r"No module named '(\w+)'")


def ranges(numbers):
    """"0-3,7" of [0, 1, 2, 3, 7]."""
    out = []
    for n in sorted(set(numbers)):
        if out and out[-1][1] == n - 1:
            out[-1][1] = n
        else:
            out.append([n, n])
    return ",".join(str(a) if a == b else "%d-%d" % (a, b) for a, b in out)


def shorter(text):
    """The same without its later parts, where it is long."""
    return text if len(text) <= _LONG else text[: text.rindex(",", 0, _LONG) + 1] + "..."


# ---- frames


def lines_of(traceback):
    """A traceback's lines, with the source of cells and without the frames of this package."""
    lines, skips = [], False
    told = traceback.splitlines()
    for line, following in zip(told, told[1:] + [""]):
        frame = _FRAME.match(line)
        if frame:
            file = os.path.expanduser(frame[1])  # IPython writes ~ for the home directory
            skips = file.startswith(_OURS)
        if not skips:
            bare = frame and not following
            lines += _with_source(line, file, int(frame[2]), frame[3]) if bare else [line]
        skips = skips and bool(line)
    return lines


def of_the_user(error):
    """IPython's lines of an exception of this process's, with the user's frames alone: what this package
    calls of Python's own library goes with it."""
    from .display import current_shell

    shell = current_shell()
    if shell is None:
        return ["%s: %s" % (type(error).__name__, error)]
    python, ipython = (os.path.dirname(sys.modules[m].__file__) + os.sep for m in ("os", "IPython"))
    kept, inside, trace = [], True, error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        inside = file.startswith((*_OURS, ipython)) or inside and file.startswith(python)
        kept += [] if inside else [trace]
        trace = trace.tb_next
    for frame in reversed(kept):
        trace = types.TracebackType(trace, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    if trace is None:
        return shell.InteractiveTB.get_exception_only(type(error), error)
    return shell.InteractiveTB.structured_traceback(type(error), error, trace, tb_offset=0)


def _with_source(line, file, number, rest):
    """The lines of a frame whose source the engine has not got."""
    source = linecache.getlines(file)
    if not 0 < number <= len(source):
        return [line]
    cell = _cell(file)
    lines = ["%s, line %d%s" % (cell, number, rest) if cell else line]
    first, last = max(1, number - _CONTEXT), min(len(source), number + _CONTEXT)
    for n in range(first, last + 1):
        label = str(n) if n != number else "-" * (5 - len(str(n))) + "> %d" % n
        lines.append("%7s %s" % (label, source[n - 1].rstrip()))
    return lines


def _cell(file):
    """"Cell In [3]", where that is the file name of an input of this process's IPython."""
    from .display import current_shell

    numbers = getattr(getattr(current_shell(), "compile", None), "_filename_map", {})
    return "Cell In [%s]" % numbers[file] if file in numbers else None


# ---- advice


def advice(ename, evalue, engines, scope=None):
    """What to do about what engines lack and this process has: lines, mostly none. engines: their
    ids. scope: what a cell of %%px may push; None: it was a call."""
    evalue = str(evalue or "")
    if ename == "ModuleNotFoundError":
        return _missing_module(evalue)
    if ename == "StdinNotImplementedError":
        return _NOBODY_TO_ASK
    pattern = {"NameError": _MISSING_NAME, "AttributeError": _NOT_IN_MAIN}.get(ename)
    found = pattern and pattern.match(evalue)
    known = vars(sys.modules["__main__"]) if scope is None else scope
    if not found or found[1] not in known or found[1].startswith("_"):
        return []
    where = "engine%s %s" % ("" if len(set(engines)) == 1 else "s", ranges(engines))
    where = where if engines else "engines"
    if scope is None and type(known[found[1]]) is types.ModuleType:
        module = known[found[1]].__name__
        not_there = "%s is the module %s here, which %s cannot import." % (found[1], module, where)
        return [not_there, *_missing_module("No module named '%s'" % module.partition(".")[0])]
    return _missing_name(found[1], where, ename, scope is None)


def _missing_name(name, where, ename, is_call):
    there = "%s is known here, and not on %s: " % (name, where)
    if ename == "AttributeError":
        return [there + "'%%px --local' above its definition has both define it"]
    if not is_call:
        return [there + "'%%%%px --push %s' sends it" % name]
    return [
        there + "client[:].push({'%s': %s}) sends it." % (name, name),
        "After client[:].use_cloudpickle() functions take along all that they use.",
    ]


def _missing_module(evalue):
    found = _MISSING_MODULE.fullmatch(evalue)
    module = sys.modules.get(found[1]) if found else None
    spec = getattr(module, "__spec__", None)
    if spec is None or not spec.origin or not os.path.isabs(spec.origin):
        return []
    directory = os.path.dirname(spec.origin)
    if spec.submodule_search_locations is not None:
        directory = os.path.dirname(directory)
    return [
        "%s is a module here, of %s. Engines that see this directory find it there after" % (
            found[1], directory),
        "    view.execute(%r, block=True)" % ("import sys; sys.path.append(%r)" % directory),
    ]
