#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Holds the lines that the layout draws: who may include whom, where third-party headers may
stand, how long a function and a file may be, what does not belong into the repository.

    lint.py            checks the tracked files of the tree, and those new ones git does not ignore
    lint.py --sizes    also lists the longest functions and files

Prints one line a finding, then a line "lint: N passed, N failed, N skipped" that counts rules.
An exception is a row in a table below, with its reason.
"""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

TOP_LEVEL = {"CMakeLists.txt", "kernel", "cluster", "magics", "kernelspec", "tests", "examples",
             "README.md"}

# ---- includes: folder -> what it may include besides its own headers, as path prefixes ----

BASE, WIRE, LOOP, INTERP = "base/base.h", "wire/wire.h", "loop/loop.h", "interp/interp.h"
MAY_INCLUDE = {
    "kernel/base": set(),
    "kernel/wire": {BASE},
    "kernel/loop": {BASE},
    "kernel/interp": {BASE},
    "kernel/interp/python": {BASE, INTERP},
    "kernel": {BASE, WIRE, INTERP},
    "cluster": set(),  # protocol.h
    "cluster/controller": {BASE, WIRE, LOOP, "protocol.h"},
    # service.h and program.h: the threads and options that pxkernel and pxengine share.
    "cluster/engine": {BASE, WIRE, LOOP, INTERP, "kernel.h", "service.h", "program.h",
                       "protocol.h"},
    "cluster/client": {BASE, WIRE, LOOP, "protocol.h"},
    "cluster/python": {BASE, "client/phalanx.h", "phalanx.h"},
    "cluster/launch": {BASE, WIRE, LOOP, "client/phalanx.h", "protocol.h"},
    "magics": {BASE, "client/phalanx.h", "phalanx.h", "python/capsule.h"},
    "examples": {"phalanx.h", INTERP, "interp.h"},
}
# Single files that may include more than their folder.
MORE = {
    "kernel/channels.c": {LOOP},  # the kernel core's sockets; the core itself has none
    "kernel/service.h": {LOOP},  # the thread that owns them
    "kernel/main.c": {LOOP},
}

# ---- third-party headers: pattern -> the only files or folders that may include it ----

CONFINED = [
    (r"zmq\w*\.h", ["kernel/wire/", "kernel/loop/"]),
    (r"(Python|structmember|frameobject|datetime)\.h",
     ["kernel/interp/python/", "cluster/python/", "magics/pxmagics"]),
    (r"sqlite3\.h", ["cluster/controller/db_sqlite.c"]),
    (r"openssl/.*", ["kernel/wire/session.c"]),
    (r"uuid(/.*)?\.h", ["kernel/wire/session.c"]),
    (r"cmocka\.h", ["tests/"]),
]

# ---- sizes ----

FUNCTION_LINES = 60
FILE_LINES = 600
LONG_FUNCTIONS = {
    # "file:function": "reason"
}
LONG_FILES = {
    # "file": "reason"
}

# ---- printing: programs may, libraries may not ----

# A folder all of whose files are one program, or the one place that prints for all.
PRINTERS = ("kernel/base/", "cluster/launch/", "tests/", "examples/")
PRINTER_FILES = re.compile(r"(^|/)(main|install)\.c$")

# ---- words ----

WORDS = re.compile(
    r"/home/\w+/|/tmp/build|\b(TODO|FIXME|XXX)\b")
SLEEPS = re.compile(r"\b(time\.sleep|asyncio\.sleep|usleep|nanosleep|sleep)\s*\(")
SLEEP_SHELL = re.compile(r"^\s*sleep\s|[;&|]\s*sleep\s")
# Sleeping as the work that an engine or a cell is given, not as a way to wait for it.
SLEEP_AS_WORK = re.compile(r"""["'].*\bsleep\b|lambda|# work\b""")


def tracked():
    out = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                         cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    names = sorted({n for n in out.decode().split("\0") if n})
    return [n for n in names if (ROOT / n).is_file()]


def text_of(name):
    return (ROOT / name).read_text(errors="replace")


def code_of(text):
    """C source with comments and the insides of string literals blanked, line by line."""
    def blank(match):
        return re.sub(r"[^\n]", " ", match.group())
    pattern = r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'"
    return re.sub(pattern, blank, text, flags=re.S)


class Lint:
    def __init__(self):
        self.files = tracked()
        self.c_files = [n for n in self.files if n.endswith((".c", ".h"))]
        self.findings = []

    def say(self, name, line, what):
        self.findings.append(f"{name}:{line}: {what}")

    # -- rules: each method named rule_* is one --

    def rule_top_level(self):
        """The top level holds exactly the agreed entries."""
        found = {n.split("/")[0] for n in self.files}
        for entry in sorted(e for e in found - TOP_LEVEL if not e.startswith(".")):
            self.say(entry, 0, "does not belong at the top level")
        # examples and kernelspec may come later than the first build; nothing else may lack.
        for entry in sorted(TOP_LEVEL - found):
            self.say(entry, 0, "is missing at the top level")

    def rule_includes_point_down(self):
        """A file includes headers of its own folder and of lower levels only."""
        for name in self.c_files:
            folder = name.rpartition("/")[0]
            if folder.startswith("tests"):
                continue
            allowed = MAY_INCLUDE.get(folder)
            if allowed is None:
                self.say(name, 1, f"folder {folder} has no row in MAY_INCLUDE")
                continue
            allowed = allowed | MORE.get(name, set())
            for line, header in self.includes(name, r'"([^"]+)"'):
                if header not in allowed and not self.is_own(folder, header):
                    self.say(name, line, f'must not include "{header}"')

    def is_own(self, folder, header):
        """Its own folder's, by bare name or as <folder>/<name>; or made at build time."""
        last = folder.rpartition("/")[2]
        if "/" not in header:
            return (ROOT / folder / header).exists() or header.endswith("_py.h")
        return header.startswith(last + "/") and (ROOT / folder / header.split("/", 1)[1]).exists()

    def rule_tests_include_what_they_mirror(self):
        """A unit test includes the private headers of the folder that it mirrors, and contracts."""
        contracts = {BASE, WIRE, LOOP, INTERP, "client/phalanx.h", "protocol.h", "kernel.h",
                     "test.h", "../test.h"}
        for name in self.c_files:
            match = re.match(r"tests/unit/(\w+)/", name)
            if not match:
                continue
            mirrored = match.group(1)
            for line, header in self.includes(name, r'"([^"]+)"'):
                own = header.startswith(mirrored + "/") or "/" not in header.replace("../", "")
                if header not in contracts and not own:
                    self.say(name, line, f'must not include "{header}": it mirrors {mirrored}')

    def rule_third_party_is_confined(self):
        """Third-party headers stand only where the layout puts them."""
        for name in self.c_files:
            for line, header in self.includes(name, r"<([^>]+)>"):
                for pattern, places in CONFINED:
                    if re.fullmatch(pattern, header) and not name.startswith(tuple(places)):
                        if not (name.startswith("tests/") and pattern.startswith("zmq")):
                            self.say(name, line, f"must not include <{header}>")

    def includes(self, name, pattern):
        for number, line in enumerate(text_of(name).splitlines(), 1):
            match = re.match(r"\s*#\s*include\s+" + pattern, line)
            if match:
                yield number, match.group(1)

    def rule_licence_first(self):
        """Every source file opens with its licence, after a #! line."""
        for name in self.files:
            base = name.rpartition("/")[2]
            script = text_of(name).startswith("#!") if "." not in base else False
            if not (name.endswith((".c", ".h", ".py", ".sh", ".cmake", ".ini"))
                    or base == "CMakeLists.txt" or script):
                continue
            lines = text_of(name).splitlines()
            first = lines[1] if lines and lines[0].startswith("#!") and len(lines) > 1 else \
                lines[0] if lines else ""
            if "SPDX-License-Identifier: BSD-3-Clause" not in first:
                self.say(name, 1, "does not open with its SPDX line")

    def rule_module_comment(self):
        """A C source opens with a comment that says what it is for."""
        for name in self.files:
            if name.endswith(".c") and not name.startswith("tests/"):
                lines = text_of(name).splitlines()
                if len(lines) < 2 or not lines[1].startswith("/*"):
                    self.say(name, 2, "has no module comment")

    def functions(self):
        """(file, function, first line, lines). A body's braces stand in the first column."""
        for name in self.c_files:
            start = None
            lines = code_of(text_of(name)).splitlines()
            for number, line in enumerate(lines, 1):
                if line.startswith("{") and start is None:
                    start = number
                elif line.startswith("}") and start is not None:
                    head = start - 1
                    while head > 1 and lines[head - 2].strip() and \
                            lines[head - 2].rstrip()[-1:] not in ";}" and \
                            not lines[head - 2].startswith("#"):
                        head -= 1
                    text = " ".join(lines[head - 1:start - 1])
                    called = re.search(r"(\w+)\s*\(", text)
                    if line.rstrip() == "}" and called:
                        yield name, called.group(1), start, number - start + 1
                    start = None

    def rule_functions_are_short(self):
        """No function has more than 60 lines."""
        for name, function, line, size in self.functions():
            if size > FUNCTION_LINES and f"{name}:{function}" not in LONG_FUNCTIONS:
                self.say(name, line, f"{function}() has {size} lines")

    def rule_files_are_short(self):
        """No C file has more than 600 lines, nor has a Python file of the product."""
        python = [n for n in self.files if n.endswith(".py") and not n.startswith("tests/")]
        for name in self.c_files + python:
            size = len(text_of(name).splitlines())
            if size > FILE_LINES and name not in LONG_FILES:
                self.say(name, 1, f"has {size} lines")

    def rule_exceptions_are_needed(self):
        """An exception goes when its cause has gone."""
        sizes = {f"{n}:{f}": s for n, f, _, s in self.functions()}
        for key in LONG_FUNCTIONS:
            if sizes.get(key, 0) <= FUNCTION_LINES:
                self.say("tests/lint.py", 0, f"exception for {key} is not needed")
        for name in LONG_FILES:
            if name not in self.files or len(text_of(name).splitlines()) <= FILE_LINES:
                self.say("tests/lint.py", 0, f"exception for {name} is not needed")

    def rule_tests_do_not_sleep(self):
        """Tests wait for conditions with deadlines."""
        for name in self.files:
            if not name.startswith(("tests/unit/", "tests/integration/", "tests/run")):
                continue
            for number, line in enumerate(text_of(name).splitlines(), 1):
                shell = "." not in name.rpartition("/")[2] and SLEEP_SHELL.search(line)
                if shell or (SLEEPS.search(line) and not SLEEP_AS_WORK.search(line)
                             and not line.lstrip().startswith(("#", "*", "//"))):
                    self.say(name, number, "sleeps")

    def rule_libraries_do_not_print(self):
        """Only programs write to stdout and stderr."""
        pattern = re.compile(r"\b(v?printf|puts|putchar|perror)\s*\(|\bf(printf|puts|putc|write)\s*"
                             r"\([^;]*\bstd(out|err)\b")
        for name in self.c_files:
            if name.startswith(PRINTERS) or PRINTER_FILES.search(name):
                continue
            for number, line in enumerate(code_of(text_of(name)).splitlines(), 1):
                if pattern.search(line) and not line.lstrip().startswith("#"):
                    self.say(name, number, "prints; a library reports to its caller")

    def rule_words(self):
        """Nothing speaks of the machine it was made on, or of work left undone."""
        for name in self.files:
            if name == "tests/lint.py" or name.endswith((".png", ".bin")) or "/corpus/" in name:
                continue
            for number, line in enumerate(text_of(name).splitlines(), 1):
                match = WORDS.search(line)
                if match:
                    self.say(name, number, f"'{match.group()}' does not belong here")

    def rule_whitespace(self):
        """No tabs, no blanks at line ends, no C line over 110 columns (the formatter aims at 100)."""
        for name in self.files:
            if not name.endswith((".c", ".h", ".py", ".cmake")):
                continue
            text = text_of(name)
            if text and not text.endswith("\n"):
                self.say(name, text.count("\n") + 1, "has no newline at its end")
            for number, line in enumerate(text.splitlines(), 1):
                if line != line.rstrip():
                    self.say(name, number, "has blanks at its end")
                if "\t" in line:
                    self.say(name, number, "has a tab")
                if len(line) > 110 and name.endswith((".c", ".h")):
                    self.say(name, number, f"has {len(line)} columns")

    def sizes(self):
        rows = sorted(((s, f"{f}() {n}:{line}") for n, f, line, s in self.functions()), reverse=True)
        print("longest functions:")
        for size, what in rows[:12]:
            print(f"  {size:4} {what}")
        print("longest files:")
        rows = sorted(((len(text_of(n).splitlines()), n) for n in self.c_files), reverse=True)
        for size, what in rows[:8]:
            print(f"  {size:4} {what}")

    def run(self):
        passed = failed = 0
        for rule in sorted(n for n in dir(self) if n.startswith("rule_")):
            before = len(self.findings)
            getattr(self, rule)()
            if len(self.findings) > before:
                failed += 1
                print(f"{rule[5:]}: {getattr(self, rule).__doc__}")
                for finding in self.findings[before:]:
                    print(f"  {finding}")
            else:
                passed += 1
        print(f"lint: {passed} passed, {failed} failed, 0 skipped")
        return 1 if failed else 0


def main():
    if any(a not in ("--sizes",) for a in sys.argv[1:]):
        print("usage: lint.py [--sizes]", file=sys.stderr)
        return 2
    lint = Lint()
    if "--sizes" in sys.argv:
        lint.sizes()
    return lint.run()


if __name__ == "__main__":
    sys.exit(main())
