# SPDX-License-Identifier: BSD-3-Clause
"""Client: a connection to a cluster, and the views of its engines."""

import atexit
import itertools
import json
import os
import signal
import weakref

from . import _phalanx, canning, error, pickle5
from .asyncresult import AsyncResult
from .view import DirectView, LoadBalancedView

_open_clients = weakref.WeakValueDictionary()  # by a number that grows
_numbers = itertools.count()


def _close_all():
    for client in list(_open_clients.values()):
        client.close()


atexit.register(_close_all)


def newest():
    """The open client that was made last, or None."""
    for number in sorted(_open_clients.keys(), reverse=True):
        client = _open_clients.get(number)
        if client is not None and not client._raw.closed:
            return client
    return None


class Client:
    """A connection to a controller, pxcontroller or ipcontroller.

    connection_info: path of an ipcontroller-client.json; otherwise it is found by profile (or
    profile_dir) and cluster_id. timeout: seconds to wait for the controller.

    rc.ids lists the engines; rc[0], rc[1:3], rc[:] are DirectViews;
    rc.load_balanced_view() gives tasks to whichever engine is free.
    """

    def __init__(
        self, connection_info=None, *, profile=None, profile_dir=None, ipython_dir=None,
        cluster_id=None, connection_file=None, url_file=None, timeout=10,
    ):
        file = connection_info or connection_file or url_file
        self.block = False
        try:
            self._raw = _phalanx.Client(
                os.fspath(file) if file else None, profile, profile_dir, ipython_dir, cluster_id,
                timeout,
            )
        except FileNotFoundError as e:
            raise FileNotFoundError("%s; is a cluster running? (pxcluster start)" % e) from None
        self._number = next(_numbers)
        _open_clients[self._number] = self

    def close(self, linger=None):
        """Ends the connection. Results that have not come yet fail."""
        self._raw.close()
        _open_clients.pop(self._number, None)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __repr__(self):
        if self._raw.closed:
            return "<Client: closed>"
        return "<Client: %d engine(s), %s>" % (len(self), self._raw.file)

    # ---- engines

    @property
    def ids(self):
        """The ids of the engines registered now, ascending."""
        return self._raw.ids()

    def __len__(self):
        return len(self.ids)

    def __iter__(self):
        for engine in self.ids:
            yield self.direct_view(engine)

    def __getitem__(self, key):
        if not isinstance(key, (int, slice, tuple, list, range)):
            raise TypeError("key by int/slice/iterable of ints only, not %s" % type(key))
        return self.direct_view(key)

    def direct_view(self, targets="all", **flags):
        """A view that addresses each of `targets`: an id, a slice, ids, or "all" there are."""
        single = isinstance(targets, int)
        if targets != "all":
            targets = self._build_targets(targets)
            targets = targets[0] if single else targets
        return DirectView(self, targets, **flags)

    def load_balanced_view(self, targets=None, **flags):
        """A view that gives each task to whichever of `targets` (None: all) is free first."""
        if targets == "all":
            targets = None
        if targets is not None:
            targets = self._build_targets(targets)
        return LoadBalancedView(self, targets, **flags)

    def wait_for_engines(self, n=1, timeout=-1, block=True, interactive=None, widget=None):
        """Waits until `n` engines are registered; TimeoutError after `timeout` seconds."""
        timeout = None if timeout is None or timeout < 0 else timeout
        if not self._raw.wait_engines(n, timeout):
            raise error.TimeoutError(
                "%d of %d engines are registered after %s s" % (len(self), n, timeout)
            )

    def _build_targets(self, targets):
        ids = self.ids
        if not ids:
            raise error.NoEnginesRegistered("Can't build targets without any engines")
        if targets is None or isinstance(targets, str):
            if isinstance(targets, str) and targets.lower() != "all":
                raise TypeError("%r not valid str target, must be 'all'" % (targets,))
            return ids
        if isinstance(targets, slice):
            return ids[targets]
        if isinstance(targets, int):
            targets = [targets]
        if not isinstance(targets, (tuple, list, range)):
            raise TypeError(
                "targets by int/slice/collection of ints only, not %s" % type(targets)
            )
        return [self._one_target(t, ids) for t in targets]

    @staticmethod
    def _one_target(target, ids):
        if not isinstance(target, int):
            raise TypeError("targets are engine ids, not %s" % type(target))
        if target < 0 and -target <= len(ids):
            target = ids[target]
        if target not in ids:
            raise IndexError("No such engine: %i" % target)
        return target

    # ---- for views and results

    def _submit(self, *args, **kwargs):
        return self._raw.submit(*args, **kwargs)

    def _uuid(self, engine):
        return self._raw.uuid(engine)

    def _form(self, ids):
        """How apply messages for these engines (None: any) are written."""
        return pickle5 if self._raw.feature("pickle5", ids) else canning

    # ---- control

    def _control(self, message, content, targets):
        ids = self._build_targets(targets)
        raw = self._submit(
            _phalanx.CONTROL, targets=ids, message=message, content=json.dumps(content)
        )
        return AsyncResult(self, raw, lambda buffers: None, message, ids)

    def clear(self, targets=None, block=True):
        """Empties the namespaces of engines."""
        result = self._control("clear_request", {}, targets)
        if block:
            result.get()
        return result

    def abort(self, jobs=None, targets=None, block=True):
        """Takes tasks from engines' queues: an AsyncResult's, those with the given msg_ids, or
        (None) all that are queued."""
        if jobs is None:
            ids = []
        elif isinstance(jobs, AsyncResult):
            ids = jobs.stop()
        else:
            jobs = [jobs] if isinstance(jobs, str) else jobs
            ids = [i for j in jobs for i in (j.stop() if isinstance(j, AsyncResult) else [j])]
        result = self._control("abort_request", {"msg_ids": ids}, targets)
        if block:
            result.get()
        return result

    def send_signal(self, sig, targets=None, block=True):
        """Sends a signal, a number or a name such as "SIGINT", to engines' processes."""
        name = signal.Signals(sig).name if isinstance(sig, int) else sig
        result = self._control("signal_request", {"sig": name}, targets)
        if block:
            result.get()
        return result

    def shutdown(self, targets="all", restart=False, hub=False, block=True):
        """Ends engines, and with `hub` the controller too."""
        if self.ids:
            result = self._control(
                "shutdown_request", {"restart": restart}, None if hub else targets
            )
            if block or hub:
                result.get()
        if hub:
            self._query("shutdown_request", {})

    # ---- the hub

    def _query(self, message, content, timeout=10):
        reply = json.loads(self._raw.query(message, json.dumps(content), timeout))
        if reply.get("status") != "ok":
            raise error.from_reply(reply)
        return reply

    def queue_status(self, targets="all", verbose=False):
        """What the controller has queued: {engine id: {"queue", "completed", "tasks"}},
        "unassigned"; for one engine its entry alone."""
        ids = self._build_targets(targets)
        reply = self._query("queue_request", {"targets": ids, "verbose": verbose})
        reply.pop("status")
        status = {int(k) if k.isdigit() else k: v for k, v in reply.items()}
        return status[targets] if isinstance(targets, int) else status

    def hub_history(self):
        """The msg_ids that the controller's task database holds, oldest first."""
        return self._query("history_request", {})["history"]

    def activate(self, targets="all", suffix=""):
        """Registers %px and %%px (with `suffix` appended) for a blocking view of `targets`."""
        view = self.direct_view(targets)
        view.block = True
        view.activate(suffix)
        return view
