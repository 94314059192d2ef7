# SPDX-License-Identifier: BSD-3-Clause
"""IPython's history, off the path of cells.

IPython writes each input to a file that all of a user's kernels share, and waits: for the disk, for
a kernel that holds the file's lock, and, when that lasts, takes the file for corrupt and moves it
away. Here the thread that IPython has for writing opens the file, gathers the inputs of a second and
keeps no cell waiting for the disk: what it cannot write now it writes later, at the latest when the
kernel ends. Until the file is open there is one in memory, in which it stays when the file cannot be
written to. Front ends' questions have a thread, too, and are answered from what this session knows
when that takes long. What waits for a full disk is bounded.
"""

import contextlib
import fnmatch
import os
import sqlite3
import threading
import time

import _phalanx_host as host
from IPython.core.history import HistoryAccessor
from IPython.core.history import HistoryManager as BaseHistoryManager
from traitlets import default

GATHER_S = 1.0
UNCOUNTED = 1 << 30  # inputs, after which IPython would wake the thread that gathers them
MOST_WAITING = 10_000  # inputs that are kept for a disk that takes none
BUSY_MS = 500  # that a locked file may cost the end of the kernel, twice
OPEN_S = 30.0  # and the thread that opens it, and what asks for its rows
ASK_S = 2.0  # for which what comes next waits for the answer to a front end
MEMORY = ":memory:"


@contextlib.contextmanager
def _briefly(db):
    """Within it, a locked file is an error after BUSY_MS."""
    before = db.execute("PRAGMA busy_timeout").fetchone()[0]
    db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    try:
        yield
    finally:
        db.execute(f"PRAGMA busy_timeout = {before}")


def _is_stopping():
    """Whether somebody waits for this thread, that of IPython, to end: it stops for a fork, too."""
    thread = threading.current_thread()
    return getattr(thread, "_stop_now", False) or getattr(thread, "stop_now", False)


class HistoryManager(BaseHistoryManager):
    _i = _ii = _iii = _i00 = ""  # plain attributes: nothing observes them, and each cell sets all

    def __init__(self, **traits):
        self._px_closing = threading.Event()
        self._px_writing = threading.Lock()
        self._px_lines = (None, frozenset())  # of the session: numbers that are in the file
        self._px_warned = False
        self._px_opened = threading.Event()  # or known to be in memory
        self._px_file = None
        self._px_owner = os.getpid()
        super().__init__(**traits)
        if not self.enabled or self._px_in_memory():
            self._px_opened.set()
        elif self.save_flag is not None:
            self.save_flag.set()

    def _px_in_memory(self):
        return str(self.hist_file) == MEMORY

    def _px_warn(self, what, error):
        if not self._px_warned:
            self._px_warned = True
            host.log(f"{self.hist_file}: {what}: {error}")

    def _px_use_memory(self, error):
        self._px_warn("the history is kept in memory only", error)
        self.hist_file = MEMORY

    # ---- IPython asks, on a shell's thread unless it passes a connection -------------------------

    @default("connection_options")
    def _px_options(self):
        """Subshells ask, too. SQLite takes its turns by itself; writers have _px_writing."""
        return {"check_same_thread": False}

    def init_db(self):
        """Of a file nothing yet."""
        file, self.hist_file = self.hist_file, MEMORY
        try:
            super().init_db()
        finally:
            self.hist_file = file

    def _px_open(self):
        try:
            self._px_probe(time.monotonic() + OPEN_S)
            file = HistoryAccessor(parent=self, hist_file=self.hist_file,
                                   connection_options=self.connection_options)
            with _briefly(file.db):
                self.new_session(file.db)
            self._px_file, self.db = file, file.db  # an accessor that goes closes its file
        except Exception as error:
            if _is_stopping():
                return  # the next thread goes on, or px_close
            self._px_use_memory(error)
        self._px_opened.set()

    def _px_probe(self, deadline):
        """Returns when the file can be written to, or is corrupt: IPython then moves it away."""
        probe = sqlite3.connect(str(self.hist_file), timeout=BUSY_MS / 1000, isolation_level=None)
        with contextlib.closing(probe):
            while True:
                try:
                    probe.execute("BEGIN IMMEDIATE")
                    probe.execute("ROLLBACK")
                    return
                except sqlite3.OperationalError as error:
                    late = self._px_closing.is_set() or time.monotonic() > deadline
                    if late or _is_stopping() or "locked" not in str(error):
                        raise
                except sqlite3.DatabaseError:
                    return

    def new_session(self, conn=None):
        if self.enabled:
            with _briefly(conn or self.db):
                super().new_session(conn)

    def _px_wait(self):
        """For the file, where its rows are asked for."""
        if not self._px_closing.is_set():
            self._px_opened.wait(OPEN_S)

    def _run_sql(self, *args, **options):
        self._px_wait()
        return super()._run_sql(*args, **options)

    def get_session_info(self, *args, **options):
        self._px_wait()
        return super().get_session_info(*args, **options)

    def get_range(self, session=0, *args, **options):
        if session < 0:
            self._px_wait()
        return super().get_range(session, *args, **options)

    def writeout_cache(self, conn=None):
        """Cells go on adding to the caches meanwhile: their locks are not held for the disk."""
        if not self.enabled:
            return
        if conn is None:
            self._px_wait()
        elif self._px_opened.is_set():
            self._px_gather()
        with self._px_writing:
            if not self._px_opened.is_set():
                self._px_open()
            if not self._px_opened.is_set():
                return
            with self.db_input_cache_lock:
                inputs, self.db_input_cache = self.db_input_cache, []
            with self.db_output_cache_lock:
                outputs, self.db_output_cache = self.db_output_cache, []
            try:
                with _briefly(self.db):
                    self._px_store(self.db, inputs, outputs)
            except sqlite3.Error as error:
                self._px_warn("the history is written later", error)
                with self.db_input_cache_lock:
                    self.db_input_cache = (inputs + self.db_input_cache)[-MOST_WAITING:]
                with self.db_output_cache_lock:
                    self.db_output_cache = (outputs + self.db_output_cache)[-MOST_WAITING:]

    def _px_gather(self):
        """Waits for more inputs, on IPython's thread, which these do not wake: it would take turns
        with the cells. What stops it does."""
        wake = getattr(threading.current_thread(), "save_flag", self.save_flag)
        deadline = time.monotonic() + GATHER_S
        size, self.db_cache_size = self.db_cache_size, UNCOUNTED
        while not _is_stopping() and not self._px_closing.is_set() and time.monotonic() < deadline:
            if wake.wait(max(0, deadline - time.monotonic())):
                wake.clear()
        if self.db_cache_size == UNCOUNTED:  # the user has not said otherwise meanwhile
            self.db_cache_size = size
        if _is_stopping():
            wake.set()

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

    def px_ask(self, request):
        """The entries that a front end asks for; of this session, where the file is slow."""
        found, failed = [], []

        def find():
            try:
                found.append([tuple(entry) for entry in self._px_find(request)])
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=find, name="phalanx-history", daemon=True)
        thread.start()
        thread.join(ASK_S)
        if failed:
            raise failed[0]
        return found[0] if found else self._px_find_here(request)

    def _px_find(self, request):
        how = {"raw": request.get("raw", True), "output": request.get("output", False)}
        kind = request.get("hist_access_type", "tail")
        if kind == "tail":
            return self.get_tail(request.get("n") or 10, include_latest=True, **how)
        if kind == "range":
            return self.get_range(request.get("session", 0), request.get("start", 0),
                                  request.get("stop"), **how)
        if kind == "search":
            return self.search(request.get("pattern") or "*", n=request.get("n"),
                               unique=request.get("unique", False), **how)
        return []

    def _px_find_here(self, request):
        self._px_warn("the file is slow", "front ends are shown this session's inputs")
        if request.get("hist_access_type") == "range":
            return []
        pattern = request.get("pattern") or "*"
        raw, output = request.get("raw", True), request.get("output", False)
        lines = [line for _, line, text in self.get_range(0, raw=raw)
                 if fnmatch.fnmatchcase(text, pattern)]
        return [tuple(entry) for line in lines[-(request.get("n") or 10):]
                for entry in self.get_range(0, line, line + 1, raw=raw, output=output)]

    def px_close(self):
        """Writes what is not yet written. A forked child has nothing to do."""
        thread = self.save_thread
        nothing = not self.enabled or (thread is None and self._px_in_memory())
        if nothing or os.getpid() != self._px_owner:
            return
        self._px_closing.set()
        if thread is not None:  # not stopped for a fork
            thread.stop()
        try:
            with _briefly(self.db):
                self.end_session()
        except sqlite3.Error as error:
            self._px_warn("the end of the session is not written", error)

    def px_drop(self):
        """Last: closes a database in memory. That of a file is a forked child's parent's, too."""
        if self._px_in_memory():
            self.db.close()
