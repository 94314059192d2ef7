# SPDX-License-Identifier: BSD-3-Clause
"""Prints as JSON what a configuration file, the one argument, sets: {class: {trait: value}}.

The file is the user's program, and traitlets runs it: get_config(), load_subconfig(), conditions.
Exit status 3: this Python has no traitlets.
"""

import sys

sys.path = [place for place in sys.path if place]  # without the current directory, as for ipcluster's programs

import json
import os

try:
    from traitlets.config.loader import LazyConfigValue, PyFileConfigLoader
except ImportError:
    sys.exit(3)


def plain(value):
    if isinstance(value, LazyConfigValue):  # c.X.y.append(), .update()
        return value.get_value({} if "update" in value.to_dict() else [])
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    return list(value) if isinstance(value, (set, frozenset)) else str(value)


answer = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the file prints, and what the programs do that it runs
directory, name = os.path.split(sys.argv[1])
try:
    config = PyFileConfigLoader(name, directory).load_config()
    json.dump(config, answer, default=plain)
except BaseException as error:
    sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
