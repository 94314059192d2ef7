# SPDX-License-Identifier: BSD-3-Clause
# What a call by name is on an engine: a function of the texts `function` ("module:name", or "name"
# in the user's namespace), `args` and `kwargs` (JSON), whose value is JSON text. Its globals come
# with it (call.c).
lambda call: (
    lambda function, args, kwargs: dumps(
        reduce(
            getattr,
            function.rpartition(":")[2].split("."),
            import_module(function.rpartition(":")[0] or "__main__"),
        )(*loads(args), **loads(kwargs)),
        default=lambda value: value.tolist() if hasattr(value, "tolist") else list(value),
    )
)(**call)
