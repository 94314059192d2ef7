# SPDX-License-Identifier: BSD-3-Clause
"""The parallel magics' names and documentation; what they do is in the extension _magics."""

from . import _magics


class _DefaultCluster:
    """local.DefaultCluster, whose code is loaded when %px is first used."""

    _cluster = None

    def view(self):
        if self._cluster is None:
            from .local import default_cluster

            self._cluster = default_cluster()
        return self._cluster.view()


_default = _DefaultCluster()


def register(shell, view=None, suffix=""):
    """Gives `shell` %px, %%px, %pxresult and %pxconfig, their names with `suffix` appended.

    They run on `view`, or, without one, on the default cluster.
    """
    magics = _magics.Magics(shell, _default, view)

    def px(line):
        return magics.px(line)

    def cell_px(line, cell):
        return magics.cell_px(line, cell)

    def pxresult(line=""):
        return magics.pxresult(line)

    def pxconfig(line=""):
        return magics.pxconfig(line)

    px.__doc__ = cell_px.__doc__ = _magics.help()
    pxresult.__doc__ = magics.pxresult.__doc__
    pxconfig.__doc__ = magics.pxconfig.__doc__
    add = shell.magics_manager.register_function
    add(px, "line", "px" + suffix)
    add(cell_px, "cell", "px" + suffix)
    add(pxresult, "line", "pxresult" + suffix)
    add(pxconfig, "line", "pxconfig" + suffix)
    if not suffix:
        add(pxresult, "line", "result")
