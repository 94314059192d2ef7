# SPDX-License-Identifier: BSD-3-Clause
# What a call by name is on an engine: one expression, evaluated with the texts `function`
# ("module:name", or "name" in the user's namespace), `args` and `kwargs` (JSON) as its globals. Its
# value is JSON text. Needs nothing but the standard library, so every engine can do it.
(
    lambda functools, importlib, json: json.dumps(
        functools.reduce(
            getattr,
            function.rpartition(":")[2].split("."),
            importlib.import_module(function.rpartition(":")[0] or "__main__"),
        )(*json.loads(args), **json.loads(kwargs)),
        default=lambda value: value.tolist() if hasattr(value, "tolist") else list(value),
    )
)(*map(__import__, ("functools", "importlib", "json")))
