# SPDX-License-Identifier: BSD-3-Clause
"""A backend of joblib: with joblib.parallel_backend("phalanx"): Parallel()(…)."""

import pickle

from joblib.externals import cloudpickle
from joblib.parallel import (
    BACKENDS, AutoBatchingMixin, ParallelBackendBase, register_parallel_backend,
)

from . import canning, error, pickle5

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


class PhalanxBackend(AutoBatchingMixin, ParallelBackendBase):
    """Gives joblib's batches to a load-balanced view; without one, to that of the newest open Client
    or of the default cluster, which is started where none runs."""

    def __init__(self, view=None, **kwargs):
        super().__init__(**kwargs)
        self._running = set()
        if view is None:
            from .local import default_cluster

            view = default_cluster().client().load_balanced_view()
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
        self._running.add(result)

        def ended(result):
            self._running.discard(result)
            if callback is not None and result.exception() is None:
                callback(result.get())

        result.add_done_callback(ended)
        return result

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
