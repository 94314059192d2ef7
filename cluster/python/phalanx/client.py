# SPDX-License-Identifier: BSD-3-Clause
"""Client: a connection to a cluster, and the views of its engines."""

import atexit
import concurrent.futures
import functools
import itertools
import json
import os
import signal
import threading
import types
import weakref

from . import _non_interactive, _phalanx, canning, error, pickle5, shared
from .asyncresult import AsyncResult
from .balanced import LoadBalancedView
from .broadcast import BroadcastView
from .deadlines import end_of, seconds_left, wait_until
from .display import current_shell, progress_bar
from .futures import Watcher
from .hub import HubFace, MetadataByID
from .hubresult import JoinedResult
from .late import Late
from .order import Ahead
from .targets import TargetsFace
from .view import DirectView

HISTORY_KEPT = 10_000  # of the ids of what was submitted the newest are kept, at least so many
CONNECT_SECONDS = 10
LEAVING_SECONDS = 2  # for engines that are shut down to be gone from `ids`
LOSS_SECONDS = 10  # within which others come in the place of engines that go while one waits
DROPS = 1000  # ids that the controller is asked about at once, lest others wait
ORPHANS = 64  # results that nobody holds are looked through when there are so many of them

_open_clients = weakref.WeakValueDictionary()  # by a number that grows
_numbers = itertools.count()


def _end_all():
    for client in list(_open_clients.values()):
        client._end()


atexit.register(_end_all)


def newest():
    """The open client that was made last, or None."""
    for number in sorted(_open_clients.keys(), reverse=True):
        client = _open_clients.get(number)
        if client is not None and not client._raw.closed:
            return client
    return None


class Client(TargetsFace, HubFace):
    """A connection to a controller, pxcontroller or ipcontroller.

    connection_info: path of an ipcontroller-client.json, or its contents as a dictionary;
    otherwise the file is found by profile (or profile_dir) and cluster_id. Without any of them it is
    the cluster that %px has started here, if it has.
    timeout: seconds to wait for the controller, and for its file to appear.
    sshserver: "user@host:port" through which to reach the controller, by the system's ssh with its
    configuration; sshkey: a private key's file for it; password: what ssh asks for, if it does.
    curve_serverkey: the controller's public key, where its file lacks it ($IPP_CURVE_SERVERKEY).
    cluster: the Cluster it is of, whose size wait_for_engines() takes. context, paramiko, debug,
    curve_publickey and curve_secretkey are taken because ipyparallel's Client takes them, and not
    looked at: each connection makes a pair of keys of its own.

    rc.ids lists the engines; rc[0], rc[1:3], rc[:], rc["gpu"] are DirectViews;
    rc.load_balanced_view() gives tasks to whichever engine is free.

    Raises FileNotFoundError, TimeoutError, ValueError with a sentence that says what to do.
    """

    block = False  # what views take for their `block`
    profile: "str | None"
    cluster: "Cluster | None"
    debug: bool
    history: "list[str]"  # msg_ids of what was submitted, the newest thousands of them
    results: "dict[str, object]"  # what get_result(owner=False) has fetched
    metadata: "dict[str, Metadata]"  # of these
    _first_drop = None  # the first request of _drop()

    def __new__(cls, *args, **kwargs):  # its own, so that tools may replace it and put it back
        return super().__new__(cls)

    def __init__(
        self, connection_info=None, *, profile=None, profile_dir=None, ipython_dir=None,
        cluster_id=None, connection_file=None, url_file=None, timeout=10, sshserver=None,
        sshkey=None, password=None, paramiko=None, debug=False, context=None, cluster=None,
        curve_serverkey=None, curve_publickey=None, curve_secretkey=None, url_or_file=None, **extra,
    ):
        for name in extra:
            raise TypeError("Client() has no option %r" % name)
        self.cluster = cluster
        self.profile = profile
        self.debug = debug
        self._tunnel, self._password = None, password
        file = connection_info or connection_file or url_file or url_or_file
        file = self._written(file) if isinstance(file, dict) else file and os.fspath(file)
        if not (file or profile or profile_dir or ipython_dir or cluster_id):
            from .tunnel import session_cluster

            cluster_id = session_cluster()
        key = curve_serverkey or os.environ.get("IPP_CURVE_SERVERKEY")
        self._server_key = key.decode() if isinstance(key, bytes) else key
        self._connect(
            file, profile, profile_dir, ipython_dir, cluster_id, timeout, sshserver, sshkey
        )
        self.history, self.results, self.metadata = [], {}, MetadataByID(self)
        self._live = {}  # id: weak reference to a result, of tasks whose outcome counts
        self._orphans, self._orphan_limit = set(), ORPHANS
        self._watcher, self._ahead, self._late = Watcher(self._raw), Ahead(), Late(self)
        self._number = next(_numbers)
        _open_clients[self._number] = self
        shell = current_shell()
        if shell is not None and "px" not in shell.magics_manager.magics["line"]:
            from . import magics

            magics.register(shell)  # they run on the newest client

    # ---- connecting

    def _written(self, info):
        """A connection file that holds `info`."""
        from .tunnel import write_connection

        self._own_file = write_connection(info)
        return self._own_file.name

    def _connect(self, file, profile, profile_dir, ipython_dir, cluster_id, timeout, server, key):
        end = end_of(CONNECT_SECONDS if timeout is None else timeout)
        where = (profile, profile_dir, ipython_dir, cluster_id)
        while True:
            try:
                if server or key or self._password or self._asks_for_ssh(file, where):
                    self._raw = self._through_ssh(file, where, server, key, seconds_left(end))
                else:
                    self._raw = _phalanx.Client(
                        self._with_key(file, where), *where, seconds_left(end)
                    )
                return
            except FileNotFoundError as e:
                # A named file is there or not; a cluster that is starting writes its own yet.
                if file or seconds_left(end) == 0 or not self._is_starting(where):
                    from .tunnel import absent

                    raise absent(e, None if file else where) from None
            threading.Event().wait(0.1)

    def _with_key(self, file, where):
        """The connection file, or one of our own that has the controller's key, too."""
        if not self._server_key:
            return file
        from .tunnel import read_connection

        info = read_connection(file, where)
        if info.get("curve_serverkey"):
            return file
        return self._written({**info, "curve_serverkey": self._server_key})

    @staticmethod
    def _is_starting(where):
        """Whether a cluster file says that this cluster is there, or soon will be."""
        from .tunnel import cluster_file

        return os.path.exists(cluster_file(*where))

    @staticmethod
    def _asks_for_ssh(file, where):
        from .tunnel import needs_tunnel

        return needs_tunnel(file, where)

    def _through_ssh(self, file, where, server, key, timeout):
        from .tunnel import Tunnel

        self._tunnel = Tunnel(file, where, server, key, timeout, self._password)
        try:
            file = self._with_key(self._tunnel.file, ())
            return _phalanx.Client(file, None, None, None, None, timeout)
        except BaseException:
            self._tunnel.close()
            raise

    def close(self, linger=None):
        """Ends the connection. Results that have not come yet fail."""
        if "_number" not in self.__dict__:
            return
        self._raw.close()
        _open_clients.pop(self._number, None)
        self._watcher.join()
        if self._tunnel is not None:
            self._tunnel.close()

    def _end(self):
        """close() at the interpreter's end: what was submitted is sent, and other threads, which the
        end will stop wherever they are, do not learn of it at once."""
        self._raw.close(True)
        if self._tunnel is not None:
            self._tunnel.close()

    def __del__(self):  # the thread for callbacks would keep the connection otherwise
        if "_raw" in self.__dict__:
            self._raw.close()
        if self.__dict__.get("_tunnel") is not None:
            self._tunnel.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __repr__(self):
        if self._raw.closed:
            return "<Client: closed>"
        return "<Client: %d engine(s), %s>" % (len(self), self._raw.file)

    @property
    def session(self):
        """What the session is called that marks my messages: session.session."""
        return types.SimpleNamespace(session=self._raw.session)

    @property
    def curve_serverkey(self):
        """The controller's public key, bytes; None when the connection is not encrypted."""
        from .tunnel import read_connection

        key = read_connection(self._raw.file).get("curve_serverkey")
        return key.encode() if key else None

    curve_publickey = curve_secretkey = None  # the C library's

    # ---- engines

    def __len__(self):
        return len(self.ids)

    def __iter__(self):
        for engine in self.ids:
            yield self.direct_view(engine)

    def __getitem__(self, key):
        if not isinstance(key, (int, slice, tuple, list, range, str)):
            raise TypeError("key by int/slice/iterable of ints/name only, not %s" % type(key))
        return self.direct_view(key)

    def direct_view(self, targets="all", **flags):
        """A view that addresses each of `targets`: an id, a slice, ids, or, of those that there are
        at each call, "all", or a tag or host. flags: block, track."""
        return DirectView(self, targets=self._view_targets(targets), **flags)

    def load_balanced_view(self, targets=None, **flags):
        """A view that gives each task to whichever of `targets` (None: all; a tag or host: who has
        it when the task is submitted) is free first. flags: block, track, after, follow, timeout,
        retries."""
        if isinstance(targets, str) and targets == "all":
            targets = None
        if targets is not None:
            ids = self._ids_of(targets)
            targets = targets if isinstance(targets, str) else ids
        return LoadBalancedView(self, targets=targets, **flags)

    def broadcast_view(self, targets="all", is_coalescing=False, coalescing=False, **flags):
        """A view like direct_view()'s whose calls are sent once and copied by the controller. With
        `is_coalescing` it joins the replies of apply(), too, so that few messages come back;
        ipyparallel's notebooks say `coalescing`."""
        view = BroadcastView(self, targets=self._view_targets(targets), **flags)
        view.is_coalescing = is_coalescing or coalescing
        return view

    def executor(self, targets=None):
        """A concurrent.futures.Executor on a load-balanced view of `targets`."""
        return self.load_balanced_view(targets).executor

    def _view_targets(self, targets):
        if isinstance(targets, str) and targets == "all":
            return targets
        ids = self._ids_of(targets)
        if isinstance(targets, str):
            return targets
        return ids[0] if isinstance(targets, int) else ids

    def wait_for_engines(self, n=None, *, timeout=-1, block=True, interactive=None, widget=None):
        """Waits until `n` engines (None: as many as the cluster was started with, at least one) are
        registered; TimeoutError after `timeout` seconds, EngineError when engines go meanwhile and
        too few come within ten seconds. Shows a progress bar in IPython
        (`interactive`: whether; `widget`: whether as a widget). With `block` False it
        returns a Future at once."""
        if n is None:
            n = self._cluster_size()
        if not block:
            seen = self.ids
            return self._soon(lambda: self._await_engines(n, timeout, None, seen))
        if interactive is None:
            interactive = current_shell() is not None and not _non_interactive()
        bar = None
        if interactive and len(self) < n:
            bar = progress_bar(n, "engines", "engine", widget)
        try:
            return self._await_engines(n, timeout, bar)
        finally:
            if bar is not None:
                bar.close()

    def _cluster_size(self):
        """How many engines my cluster was started with."""
        n = getattr(self.cluster, "n", None)
        if n:
            return n
        sets = getattr(self.cluster, "engines", None) or {}
        return sum(s.n or 0 for s in sets.values()) or 1

    def _await_engines(self, n, timeout, bar, seen=()):
        end, loss, seen = end_of(timeout), None, set(seen)
        while True:
            ids = set(self.ids)
            if bar is not None:
                bar.update(min(len(ids), n) - bar.n)
            if len(ids) >= n:
                return None
            seen |= ids
            if seen - ids and loss is None:
                loss = end_of(LOSS_SECONDS)
            if seconds_left(end) == 0:
                raise error.TimeoutError(
                    "%d engines not ready in %s seconds. Currently ready: %d. Start more with "
                    "pxcluster engines, or look into the cluster's log" % (n, timeout, len(ids))
                )
            if seconds_left(loss) == 0:
                raise error.EngineError(
                    "%d of the engines that were there are gone, and %d of the %d awaited ones are "
                    "ready. The cluster's log says why; pxcluster engines starts others"
                    % (len(seen - ids), len(ids), n)
                )
            left = [s for s in (seconds_left(end), seconds_left(loss), 0.5) if s is not None]
            self._raw.wait_engines(len(ids) + 1, min(left))

    @staticmethod
    def _soon(function):
        """A Future of function(), which waits."""
        future = concurrent.futures.Future()
        future.set_running_or_notify_cancel()

        def run():
            try:
                future.set_result(function())
            except BaseException as e:
                future.set_exception(e)

        threading.Thread(target=run, name="phalanx-wait", daemon=True).start()
        return future

    # ---- for views and results

    def _uuid(self, engine):
        return None if self._raw.closed else self._raw.uuid(engine)

    def _form(self, ids):
        """How apply messages for these engines (None: any) are written."""
        if self._raw.feature(pickle5.PYTHON, ids):
            return pickle5
        if not self._raw.feature("pickle5", ids):
            return canning
        engines = self.ids if ids is None else ids
        others = [i for i in engines if not self._raw.feature(pickle5.PYTHON, [i])]
        what = "engine %s runs" if len(others) == 1 else "engines %s run"
        return pickle5.Foreign(what % ", ".join(map(str, others)))

    def _remember(self, result, view):
        """A call's result: its tasks enter the histories, and count as outstanding."""
        self._live[id(result)] = weakref.ref(result)
        if shared.packed.items or shared.held:
            shared.hold(result._raw)
        self._enter(view, result._raw.newest_ids(HISTORY_KEPT))

    def _results_alive(self):
        """The results that somebody holds."""
        held = [reference() for reference in list(self._live.values())]
        return [result for result in held if result is not None]

    def _enter(self, view, ids):
        """Tasks that were sent enter the histories."""
        self.history += ids
        view.history += ids
        if max(len(self.history), len(view.history)) > 2 * HISTORY_KEPT:
            for history in (self.history, view.history):
                del history[:-HISTORY_KEPT]

    def _let_go(self, raw):
        """A result is dropped whose tasks run yet: wait() waits for them, and nothing of it is
        kept."""
        if self._raw.closed:
            return
        raw.discard()
        self._orphans.add(raw)
        if len(self._orphans) >= self._orphan_limit:
            self._running_orphans()

    def _running_orphans(self):
        for raw in list(self._orphans):  # others may come meanwhile
            if not raw.running:
                self._orphans.discard(raw)
        self._orphan_limit = max(ORPHANS, 2 * len(self._orphans))
        return list(self._orphans)

    @property
    def outstanding(self):
        """The ids of my tasks that have no reply yet, a set."""
        ids = set()
        for result in self._results_alive():
            ids.update(result._running_ids())
        for raw in self._running_orphans():
            ids.update(_ids_of_raw(raw))
        return ids

    # ---- waiting

    def spin(self):
        """Does nothing: a thread of the C library receives."""

    def spin_thread(self, interval=1):
        """Does nothing, as spin()."""

    def stop_spin_thread(self):
        """Does nothing, as spin()."""

    def wait(self, jobs=None, timeout=-1):
        """Waits for tasks, at most `timeout` seconds. Whether they have all ended. jobs: what
        get_result takes, or Futures; None: all of mine."""
        end = end_of(timeout)
        if jobs is None:
            waits = [result.wait for result in self._results_alive()]
            waits += [_waiter(raw) for raw in self._running_orphans()]
        else:
            single = isinstance(jobs, (str, int, concurrent.futures.Future))
            jobs = [jobs] if single or not hasattr(jobs, "__iter__") else jobs
            waits = self._waits_for(jobs)
        return all([wait(seconds_left(end)) for wait in waits])

    def _waits_for(self, jobs):
        waits, ids = [], set()
        for job in jobs:
            if isinstance(job, AsyncResult):
                waits.append(job.wait)
            elif isinstance(job, concurrent.futures.Future):
                waits.append(functools.partial(_wait_for_future, job))
            else:
                ids.update(self._msg_ids_from_jobs(job))
        parts = list(self._known(ids).values())
        if parts:
            waits.append(JoinedResult(self, parts).wait)
        orphans = self._running_orphans() if ids else ()
        return waits + [_waiter(raw) for raw in orphans if not ids.isdisjoint(_ids_of_raw(raw))]

    def wait_interactive(self, jobs=None, interval=1.0, timeout=-1.0):
        """wait() with a progress bar."""
        if jobs is None:
            waiting = [result for result in self._results_alive() if not result.ready()]
            parts = [(result, i) for result in waiting for i in range(result._count)]
            if not parts:
                self.wait(timeout=timeout)
                return
            result = JoinedResult(self, parts)
        else:
            result = self.get_result(jobs, block=False)
        result.wait_interactive(interval, timeout)

    # ---- control

    def _control(self, message, content, targets, block):
        ids = self._ids_of(targets)
        raw = self._raw.submit(
            _phalanx.CONTROL, targets=ids, message=message, content=json.dumps(content)
        )
        result = AsyncResult(self, raw, lambda buffers: None, message, ids)
        if not (self.block if block is None else block):
            return result
        result.get()
        return None

    def clear(self, targets=None, block=None):
        """Empties the namespaces of engines. Waits with `block` (None: self.block), else returns an
        AsyncResult."""
        return self._control("clear_request", {}, targets, block)

    def abort(self, jobs=None, targets=None, block=None):
        """Takes tasks that have not started from engines' queues, and where `targets` is left out,
        from the controller's: those of an AsyncResult, those with the given msg_ids, or (None) all of
        mine. Their results raise TaskAborted. ipyparallel's controller keeps what waits in it until
        an engine is free."""
        if jobs is None:
            ids = list(self.outstanding)
            if not ids:
                return None
        else:
            jobs = [jobs] if isinstance(jobs, (str, AsyncResult)) else jobs
            for job in jobs:
                if not isinstance(job, (str, AsyncResult)):
                    raise TypeError(
                        "Invalid msg_id type %r, expected str or AsyncResult" % (job,)
                    )
            ids = [i for job in jobs for i in ([job] if isinstance(job, str) else job.stop())]
        if targets is None and self._drop(ids) and not self.ids:
            return None
        return self._control("abort_request", {"msg_ids": ids}, targets, block)

    def _drop(self, ids):
        """Has the controller end those of these tasks that wait in it. Whether it may have understood:
        one that cannot (ipyparallel's, which says so in its log, and with the scheme "pure" ours) is
        not asked again."""
        first = self._first_drop and self._first_drop.peek()
        if first and first.failed and not first.lost:
            return False
        for low in range(0, len(ids), DROPS):
            content = json.dumps({"msg_ids": ids[low : low + DROPS]})
            raw = self._raw.submit(_phalanx.QUERY, message="abort_request", content=content)
            self._first_drop = self._first_drop or raw
        return True

    def send_signal(self, sig, targets=None, block=None):
        """Sends a signal, a number or a name such as "SIGINT", to engines' processes."""
        name = signal.Signals(sig).name if isinstance(sig, int) else sig
        return self._control("signal_request", {"sig": name}, targets, block)

    def usage(self, targets="all", timeout=1):
        """{id: what an engine and its children use}, of those that answer within `timeout` seconds:
        "kernel_memory" in bytes (of shared pages its part), "kernel_cpu" in percent of a processor
        since the question before, "host_virtual_memory" with its "percent", … as usage_reply has
        them. Engines of pxengine answer while they compute, ipengine's (with psutil) in between."""
        from . import ask

        return ask.usage(self, self._ids_of(targets), timeout)

    def shutdown(self, targets="all", restart=False, hub=False, block=None):
        """Ends engines, and with `hub` all of them and the controller too, and this client. With
        `block` (None: self.block) they are not among `ids` any more."""
        ids = self._ids_of("all" if hub else targets) if self.ids else []
        if ids and not self._control("shutdown_request", {"restart": restart}, ids, hub or block):
            wait_until(lambda: restart or hub or not set(ids) & set(self.ids), LEAVING_SECONDS)
        if hub:
            self._query("shutdown_request", {})
            self.close()

    def activate(self, targets="all", suffix=""):
        """Registers %px and %%px (with `suffix` appended) for a blocking view of `targets`."""
        view = self.direct_view(targets)
        view.block = True
        view.activate(suffix)
        return view

    # ---- dask

    def become_dask(
        self, targets="all", port=0, nanny=False, scheduler_args=None, **worker_args
    ):
        """Turns engines into workers of dask.distributed: a distributed.Client. See dask.become."""
        from . import dask

        return dask.become(self, targets, port, nanny, scheduler_args, worker_args)

    def stop_dask(self, targets="all"):
        """Ends what become_dask() started on these engines."""
        from . import dask

        dask.stop(self, targets)

    become_distributed, stop_distributed = become_dask, stop_dask


def _ids_of_raw(raw):
    """The msg_ids of a result that was let go."""
    return raw.flying() if hasattr(raw, "flying") else [raw.task_id(i) for i in range(len(raw))]


def _wait_for_future(future, left):
    return not concurrent.futures.wait([future], left).not_done


def _waiter(raw):
    return lambda left: raw.wait(_phalanx.REPLIES, left)
