# SPDX-License-Identifier: BSD-3-Clause
"""Magics of kernels and engines: those whose terminal form makes no sense in a notebook, and what an
engine says to the parallel ones."""

import importlib.util
import os
import subprocess
import sys
import threading

import _phalanx_host as host
from IPython.core import page
from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class
from IPython.core.magics.code import CodeMagics, InteractivelyDefined, MacroToEdit


def _connection_file():
    file = host.bridge.connection_file()
    if file is None:
        raise UsageError("there is no connection file: this is not a kernel of its own; "
                         "phalanx.bind_kernel() makes an engine one")
    return file


@magics_class
class KernelMagics(Magics):
    """Magics whose terminal form makes no sense in a notebook."""

    @line_magic
    def clear(self, line):
        """Clear the output of the cell, and a console's screen."""
        self.shell.display_pub.clear_output()
        print("\033[H\033[2J", end="")

    @line_magic
    def less(self, line):
        """Show a file in the pager."""
        if not line:
            raise UsageError("Missing filename.")
        with open(os.path.expanduser(line), encoding="utf-8", errors="replace") as file:
            text = file.read()
        page.page(self.shell.pycolorize(text) if line.endswith(".py") else text)

    more = line_magic("more")(less)

    @line_magic
    def man(self, line):
        """Show a page of the manual in the pager."""
        page.page(self.shell.getoutput(f"man {line} | col -b", split=False))

    @line_magic
    def edit(self, line):
        """Ask the front end to open a file, or the code of a name or of cells, in an editor."""
        options, args = self.parse_options(line, "prxn:")
        try:
            file, number, _ = CodeMagics._find_edit_target(self.shell, args, options, ["", ""])
        except MacroToEdit:
            raise UsageError("%edit: a macro has no file to edit")
        except InteractivelyDefined as error:
            raise UsageError(f"%edit: cell {error.index} defined that: edit it there")
        if file is None:
            return  # it has said why
        cell = getattr(self.shell.compile, "_filename_map", {}).get(file)
        if cell is not None:
            raise UsageError(f"%edit: cell {cell} defined that: edit it there")
        payload = {"source": "edit_magic", "filename": os.path.abspath(file), "line_number": number}
        self.shell.payload_manager.write_payload(payload)

    ed = line_magic("ed")(edit)

    @line_magic
    def autosave(self, line):
        """Set how often the notebook is saved, in seconds; 0: never."""
        if not line.strip().isdigit():
            raise UsageError("%autosave wants a number of seconds")
        seconds = int(line)
        script = f"IPython.notebook.set_autosave_interval({1000 * seconds})"
        self.shell.display_pub.publish({"application/javascript": script})
        print(f"Autosaving every {seconds} seconds" if seconds else "Autosave disabled")

    @line_magic
    def connect_info(self, line):
        """Show how other front ends connect to this kernel."""
        file = _connection_file()
        with open(file, encoding="utf-8") as text:
            print(text.read())
        print(f"This is {file}. Further front ends connect with, for example,\n\n"
              f"    jupyter console --existing {file}")

    @line_magic
    def subshell(self, line):
        """Say which subshells there are, and in which one this runs: None is the main shell."""
        ids = {thread.ident: thread.name.removeprefix("Subshell-")
               for thread in threading.enumerate() if thread.name.startswith("Subshell-")}
        print(f"subshell id: {ids.get(threading.get_ident())}")
        print(f"thread id: {threading.get_ident()}")
        print(f"main thread id: {threading.main_thread().ident}")
        print(f"pid: {os.getpid()}")
        print(f"thread count: {threading.active_count()}")
        print(f"subshell list: {[name for name in ids.values() if name != 'debugger']}")

    @line_magic
    def qtconsole(self, line):
        """Open a qtconsole on this kernel."""
        if importlib.util.find_spec("qtconsole") is None:
            raise UsageError(f"%qtconsole: qtconsole is not installed for {sys.executable}")
        command = [sys.executable, "-m", "qtconsole", "--existing", _connection_file()]
        subprocess.Popen([*command, *line.split()], stdin=subprocess.DEVNULL, start_new_session=True)


class NotHere(UsageError):
    """One that the reply says, and that is not printed as well."""

    def _render_traceback_(self):
        return [f"UsageError: {self}"]


@magics_class
class EngineMagics(Magics):
    """What an engine has in the place of the parallel magics."""

    @line_cell_magic
    def px(self, line, cell=None):
        """Belongs in the notebook: this code runs on an engine already."""
        raise NotHere("%px: this code runs on an engine already; %px belongs in the notebook")
