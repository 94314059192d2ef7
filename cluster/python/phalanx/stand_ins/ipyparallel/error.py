# SPDX-License-Identifier: BSD-3-Clause
"""The exceptions of ipyparallel that a task may raise or catch."""


class IPythonError(Exception):
    """The base of all others."""


class KernelError(IPythonError):
    """What an engine reports."""


class EngineError(KernelError):
    """The engine died."""


class UnmetDependency(KernelError):
    """The task cannot run here, and is to go elsewhere."""


class ImpossibleDependency(UnmetDependency):
    """The task cannot run anywhere."""


class DependencyTimeout(ImpossibleDependency):
    """What the task waits for did not come in time."""


class InvalidDependency(ImpossibleDependency):
    """What the task waits for is not known."""


class TaskAborted(KernelError):
    """The task was taken back before it ran."""


class TaskTimeout(KernelError):
    """The task took too long."""


class TimeoutError(KernelError):
    """Nothing came in time."""


class NoEnginesRegistered(KernelError):
    """There is nobody to run the task."""


class RemoteError(KernelError):
    """An exception of an engine, as a client sees it."""

    def __init__(self, ename, evalue, traceback, engine_info=None):
        super().__init__(ename, evalue, traceback)
        self.ename, self.evalue, self.traceback = ename, evalue, traceback
        self.engine_info = engine_info or {}


__all__ = [name for name, value in list(globals().items()) if isinstance(value, type)]
