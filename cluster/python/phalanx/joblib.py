# SPDX-License-Identifier: BSD-3-Clause
"""A backend of joblib: with joblib.parallel_backend("phalanx"): Parallel()(…)."""

import pickle
import threading

from joblib.externals import cloudpickle
from joblib.parallel import (
    BACKENDS, AutoBatchingMixin, ParallelBackendBase, register_parallel_backend,
)

from . import canning, error, pickle5
from .view import DirectView

OUTPUT_SECONDS = 1  # for what was printed, once the results are here

_Pickler = pickle5.mended_pickler(cloudpickle.CloudPickler)


@canning.engine_function
def _run(data, buffers):
    import pickle

    return pickle.loads(data, buffers=buffers)()


def _whole(batch):
    """(data, buffers) of a batch with all that its functions use, as joblib's own backends send it:
    its users know nothing of engines' namespaces."""
    stream, *buffers = pickle5.dumps(batch, pickler=_Pickler)
    return stream, [pickle.PickleBuffer(buffer) for buffer in buffers]


class _Batch:
    """What joblib waits for: a result that is there once what it has printed is shown."""

    def __init__(self, result):
        self._result = result
        self._shown = threading.Event()

    def show(self):
        result = self._result
        try:
            result.wait_for_output(OUTPUT_SECONDS)
            if result.stdout or result.stderr:
                result.display_outputs()
        finally:
            self._shown.set()

    def get(self, timeout=None):
        self._result.wait(timeout)
        if self._result.ready():
            self._shown.wait(2 * OUTPUT_SECONDS)
        return self._result.get(0)


class PhalanxBackend(AutoBatchingMixin, ParallelBackendBase):
    """Gives joblib's batches to a load-balanced view, or one of a direct view's engines; without
    one, to that of the newest open Client or of the default cluster, which is started where none
    runs. What a batch prints is shown when it has ended."""

    supports_timeout = True

    def __init__(self, view=None, **kwargs):
        super().__init__(**kwargs)
        self._running = set()
        if view is None:
            from .local import default_cluster

            view = default_cluster().client().load_balanced_view()
        elif isinstance(view, DirectView):
            view = view.client.load_balanced_view(view.targets)
        self._view = view

    def effective_n_jobs(self, n_jobs):
        """How many batches can run at once: one an engine, at most `n_jobs` if that is positive.
        Two for a single engine, as joblib runs everything by itself where it is told one."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        engines = max(2, len(self._view))
        return engines if n_jobs is None or n_jobs < 0 else min(n_jobs, engines)

    def apply_async(self, func, callback=None):
        """Sends a batch; callback(results) is called when it has ended well."""
        result = self._view.apply_async(*self._call(func))
        batch = _Batch(result)
        self._running.add(result)

        def ended(result):
            self._running.discard(result)
            batch.show()
            if callback is not None and result.exception() is None:
                callback(result.get())

        result.add_done_callback(ended)
        return batch

    def _call(self, batch):
        """A function and its arguments for a batch."""
        if canning.chosen is None and self._view._scope()[1] is pickle5:
            try:
                return _run, *_whole(batch)
            except Exception:
                pass  # then the view says what is wrong, or can do it
        return (batch,)

    def abort_everything(self, ensure_ready=True):
        """Takes back what has not started."""
        for result in list(self._running):
            try:
                result.cancel()
            except error.KernelError:  # its engines are gone, and it with them
                pass


IPythonParallelBackend = PhalanxBackend  # as programs import it from ipyparallel.joblib


def register_alias(name):
    """register(), unless somebody else has the name."""
    if name not in BACKENDS:
        register(name)


def register(name="phalanx", make_default=False, view=None):
    """Registers the backend under a name, for a view or the default cluster."""

    def make(**kwargs):
        return PhalanxBackend(**{"view": view, **kwargs})

    register_parallel_backend(name, make, make_default=make_default)
