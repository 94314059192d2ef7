# SPDX-License-Identifier: BSD-3-Clause
"""Windows that live between cells: `%gui tk`, `%matplotlib qt5`.

A toolkit waits for its own events and, with them, for one descriptor of the kernel's: nobody wakes
up to look. Where asyncio has something to do meanwhile, it is given turns, a few events each.
"""

import ctypes.util
import importlib
import os
import sys
import traceback

TURN = 0.02  # seconds between two turns
MOST_EVENTS = 1000  # of one turn


class Unavailable(Exception):
    pass


class Noticed:
    """What a window's code leaves for asyncio ends the toolkit's wait, as if a thread had."""

    def __init__(self, loop):
        self.loop = loop

    def __enter__(self):
        loop, call_at = self.loop, self.loop.call_at

        def call_at_and_wake(*args, **more):
            loop.call_soon_threadsafe(lambda: None)
            return call_at(*args, **more)

        loop.call_soon, loop.call_at = loop.call_soon_threadsafe, call_at_and_wake

    def __exit__(self, *error):
        del self.loop.call_soon, self.loop.call_at


def _need(module, package):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"needs {package}, which {sys.executable} has not: {error}") from None


def _has_display():
    """Qt ends the process where it finds none."""
    if os.environ.get("WAYLAND_DISPLAY") or sys.platform != "linux":
        return True
    name = os.environ.get("DISPLAY")
    library = ctypes.util.find_library("X11")
    if not name or not library:
        return bool(name)
    x11 = ctypes.CDLL(library)
    x11.XOpenDisplay.restype = ctypes.c_void_p
    display = x11.XOpenDisplay(name.encode())
    if display:
        x11.XCloseDisplay(ctypes.c_void_p(display))
    return bool(display)


class Tk:
    """Serves the windows of all roots; it has none itself, so the user's first is the default."""

    def __init__(self):
        self.tcl = _need("tkinter", "tkinter (Debian: python3-tk)").Tcl().tk
        self.readable = sys.modules["tkinter"].READABLE
        self.no_wait = importlib.import_module("_tkinter").DONT_WAIT

    def wait(self, fd):
        self.tcl.createfilehandler(fd, self.readable, lambda *ready: self.tcl.quit())
        try:
            self.tcl.mainloop(-1)  # however few windows there are
        finally:
            self.tcl.deletefilehandler(fd)

    def turn(self):
        for _ in range(MOST_EVENTS):
            if not self.tcl.dooneevent(self.no_wait):
                break


class Qt:
    def __init__(self, *bindings):
        names = [name for name in bindings if name in sys.modules] or bindings
        name = next((name for name in names if importlib.util.find_spec(name)), names[0])
        self.core = _need(f"{name}.QtCore", " or ".join(bindings))
        application = _need(f"{name}.QtWidgets", name).QApplication
        if application.instance() is None:
            platform = os.environ.get("QT_QPA_PLATFORM", "xcb")
            if platform.startswith(("xcb", "wayland")) and not _has_display():
                raise Unavailable("needs a display: $DISPLAY names none that answers")
            application.setAttribute(self.core.Qt.ApplicationAttribute.AA_ShareOpenGLContexts)
        self.application = application.instance() or application([sys.argv[0] or "kernel"])
        self.application.setQuitOnLastWindowClosed(False)

    def wait(self, fd):
        self._keep_alive()
        loop = self.core.QEventLoop()
        notifier = self.core.QSocketNotifier(fd, self.core.QSocketNotifier.Type.Read)
        notifier.activated.connect(loop.quit)
        try:
            (getattr(loop, "exec_", None) or loop.exec)()
        finally:
            notifier.setEnabled(False)

    def turn(self):
        self._keep_alive()
        self.application.processEvents()

    @staticmethod
    def _keep_alive():
        """With Python's own hook PyQt ends the process when a slot raises; IPython sets that back."""
        if sys.excepthook is sys.__excepthook__:
            sys.excepthook = traceback.print_exception


class Gtk:
    def __init__(self):
        gi = _need("gi", "PyGObject (Debian: python3-gi, gir1.2-gtk-3.0)")
        try:
            gi.require_version("Gtk", "3.0")
        except ValueError as error:
            raise Unavailable(str(error)) from None
        from gi.repository import GLib, Gtk

        self.glib, self.gtk = GLib, Gtk
        if not Gtk.init_check(None)[0]:
            raise Unavailable("needs a display: $DISPLAY names none that answers")

    def wait(self, fd):
        def leave(*ready):
            self.gtk.main_quit()
            return True

        source = self.glib.io_add_watch(fd, self.glib.PRIORITY_DEFAULT, self.glib.IO_IN, leave)
        try:
            self.gtk.main()
        finally:
            self.glib.source_remove(source)

    def turn(self):
        for _ in range(MOST_EVENTS):
            if not self.gtk.events_pending():
                break
            self.gtk.main_iteration()


TOOLKITS = {
    "tk": Tk,
    "qt": lambda: Qt("PyQt6", "PySide6", "PyQt5", "PySide2"),
    "qt6": lambda: Qt("PyQt6", "PySide6"),
    "qt5": lambda: Qt("PyQt5", "PySide2"),
    "gtk": Gtk,
    "gtk3": Gtk,
}


def create(name):
    if name not in TOOLKITS:
        raise Unavailable(f"no such windows here; there are {', '.join(TOOLKITS)}")
    return TOOLKITS[name]()
