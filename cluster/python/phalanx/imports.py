# SPDX-License-Identifier: BSD-3-Clause
"""Import statements, as they are known to who sees builtins.__import__ being called.

It is told what is imported, and not under which names that is stored: the code behind says it.
"""

import dis
from itertools import dropwhile, islice


def statement(frame, name, names):
    """The import statement that a frame is at: (what, of which module or None), for a person and, with
    an `import` before it, for Python. names: of a `from name import names`."""
    if "*" in names:
        return "*", name
    stored = list(_stored(frame, len(names) or 1))
    if not names:
        return _renamed(name, name.partition(".")[0], stored), None
    return ", ".join(_renamed(n, n, stored[i : i + 1]) for i, n in enumerate(names)), name


def _renamed(name, plain, stored):
    return name if stored in ([plain], []) else "%s as %s" % (name, stored[0])


def _stored(frame, count):
    """The names under which an import stores its `count` objects; none when it is a plain call."""
    steps = dropwhile(lambda s: s.offset != frame.f_lasti, dis.get_instructions(frame.f_code))
    at = next(steps, None)
    if at is None or at.opname != "IMPORT_NAME":
        return
    for step in islice((s for s in steps if s.opname.startswith("STORE_")), count):
        yield step.argval[0] if isinstance(step.argval, tuple) else step.argval
