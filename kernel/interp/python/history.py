# SPDX-License-Identifier: BSD-3-Clause
"""IPython's history, off the path of cells.

IPython writes each input to a file that all of a user's kernels share, and waits: for the disk, for
a kernel that holds the file's lock, and, when that lasts, takes the file for corrupt and moves it
away. Here the thread that IPython has for writing gathers the inputs of a second and keeps no cell
waiting for the disk; what it cannot write now it writes later, at the latest when the kernel ends.
A file that cannot be written to when the shell is made is left alone, and the history kept in
memory. What waits for a full disk is bounded.
"""

import contextlib
import sqlite3
import threading

import _phalanx_host as host
from IPython.core.history import HistoryManager
from traitlets import default

GATHER_S = 1.0
MOST_WAITING = 10_000  # inputs that are kept for a disk that takes none
BUSY_MS = 500  # that a locked file may cost a first cell, and the end of the kernel twice


@contextlib.contextmanager
def _briefly(db):
    """Within it, a locked file is an error after BUSY_MS."""
    before = db.execute("PRAGMA busy_timeout").fetchone()[0]
    db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    try:
        yield
    finally:
        db.execute(f"PRAGMA busy_timeout = {before}")


class History(HistoryManager):
    _i = _ii = _iii = _i00 = ""  # plain attributes: nothing observes them, and each cell sets all

    def __init__(self, **traits):
        self._px_closing = threading.Event()
        self._px_writing = threading.Lock()
        self._px_lines = (None, frozenset())  # of the session: numbers that are in the file
        self._px_warned = False
        super().__init__(**traits)

    def _px_warn(self, what, error):
        if not self._px_warned:
            self._px_warned = True
            host.log(f"{self.hist_file}: {what}: {error}")

    def _px_use_memory(self, error):
        self._px_warn("the history is kept in memory only", error)
        self.hist_file = ":memory:"

    # ---- IPython asks, on a shell's thread unless it passes a connection -------------------------

    @default("connection_options")
    def _px_options(self):
        """Subshells ask, too. SQLite takes its turns by itself; writers have _px_writing."""
        return {"check_same_thread": False}

    def init_db(self):
        if self.enabled and str(self.hist_file) != ":memory:":
            try:
                self._px_probe()
            except sqlite3.OperationalError as error:
                self._px_use_memory(error)
            except sqlite3.DatabaseError:
                pass  # corrupt: IPython moves it away
        return super().init_db()

    def _px_probe(self):
        probe = sqlite3.connect(str(self.hist_file), timeout=BUSY_MS / 1000, isolation_level=None)
        with contextlib.closing(probe):
            probe.execute("BEGIN IMMEDIATE")
            probe.execute("ROLLBACK")

    def new_session(self, conn=None):
        if not self.enabled:
            return
        try:
            with _briefly(conn or self.db):
                super().new_session(conn)
        except sqlite3.OperationalError as error:
            if conn is not None:
                raise
            self._px_use_memory(error)
            super().init_db()
            super().new_session()

    def writeout_cache(self, conn=None):
        """Cells go on adding to the caches meanwhile: their locks are not held for the disk."""
        if not self.enabled:
            return
        if conn is not None:
            self._px_closing.wait(GATHER_S)
        with self._px_writing:
            with self.db_input_cache_lock:
                inputs, self.db_input_cache = self.db_input_cache, []
            with self.db_output_cache_lock:
                outputs, self.db_output_cache = self.db_output_cache, []
            try:
                with _briefly(conn or self.db):
                    self._px_store(conn or self.db, inputs, outputs)
            except sqlite3.Error as error:
                self._px_warn("the history is written later", error)
                with self.db_input_cache_lock:
                    self.db_input_cache = (inputs + self.db_input_cache)[-MOST_WAITING:]
                with self.db_output_cache_lock:
                    self.db_output_cache = (outputs + self.db_output_cache)[-MOST_WAITING:]

    def _px_store(self, db, inputs, outputs):
        if not inputs and not outputs:
            return
        session, taken = self._px_lines
        if any(line == 1 for line, *_ in inputs) and 1 in taken and session == self.session_number:
            self.new_session(db)  # numbers began anew: so does the session
        taken = set(taken) if session == self.session_number else set()
        rows = [(self.session_number, self._px_number(line, taken), *rest)
                for line, *rest in inputs]
        texts = [(self.session_number, *line) for line in outputs]
        with db:
            db.executemany("INSERT INTO history VALUES (?, ?, ?, ?)", rows)
            db.executemany("INSERT OR IGNORE INTO output_history VALUES (?, ?, ?)", texts)
        self._px_lines = (self.session_number, taken)

    @staticmethod
    def _px_number(line, taken):
        """Cells that ran at once, in subshells, have one number; the file wants each once."""
        while line in taken:
            line += 1
        taken.add(line)
        return line

    # ---- the shell asks --------------------------------------------------------------------------

    def px_close(self):
        """Writes what is not yet written. A forked child has no thread, and nothing to do."""
        thread = self.save_thread
        if thread is None or not thread.is_alive():
            return
        self._px_closing.set()
        thread.stop()
        try:
            with _briefly(self.db):
                self.end_session()
        except sqlite3.Error as error:
            self._px_warn("the end of the session is not written", error)

    def px_drop(self):
        """Last: closes a database in memory. That of a file is a forked child's parent's, too."""
        if str(self.hist_file) == ":memory:":
            self.db.close()
