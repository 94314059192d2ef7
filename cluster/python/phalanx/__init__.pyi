# SPDX-License-Identifier: BSD-3-Clause
# What the package offers, for editors: at run time each name is imported when it is first used.
from concurrent.futures import (
    ALL_COMPLETED as ALL_COMPLETED,
    FIRST_COMPLETED as FIRST_COMPLETED,
    FIRST_EXCEPTION as FIRST_EXCEPTION,
)
from typing import Any

from . import error as error, util as util
from ._phalanx import ClosedError as ClosedError
from .asyncresult import AsyncResult as AsyncResult
from .balanced import LoadBalancedView as LoadBalancedView
from .broadcast import BroadcastView as BroadcastView
from .canning import (
    PrePickled as PrePickled,
    Reference as Reference,
    can as can,
    can_map as can_map,
    interactive as interactive,
    uncan as uncan,
    uncan_map as uncan_map,
)
from .client import Client as Client
from .cluster import Cluster as Cluster
from .dependency import (
    Dependency as Dependency,
    depend as depend,
    dependent as dependent,
    require as require,
)
from .engines import bind_kernel as bind_kernel
from .error import (
    AlreadyDisplayedError as AlreadyDisplayedError,
    CompositeError as CompositeError,
    DependencyTimeout as DependencyTimeout,
    EngineError as EngineError,
    IPythonError as IPythonError,
    ImpossibleDependency as ImpossibleDependency,
    InvalidDependency as InvalidDependency,
    KernelError as KernelError,
    NoEnginesRegistered as NoEnginesRegistered,
    RemoteError as RemoteError,
    TaskAborted as TaskAborted,
    TaskRejectError as TaskRejectError,
    TaskTimeout as TaskTimeout,
    TimeoutError as TimeoutError,
    UnmetDependency as UnmetDependency,
    collect_exceptions as collect_exceptions,
    unwrap_exception as unwrap_exception,
    wrap_exception as wrap_exception,
)
from .futures import ViewExecutor as ViewExecutor
from .hubresult import AsyncHubResult as AsyncHubResult
from .manager import ClusterManager as ClusterManager
from .mapresult import AsyncMapResult as AsyncMapResult
from .remotefunction import (
    ParallelFunction as ParallelFunction,
    RemoteFunction as RemoteFunction,
    parallel as parallel,
    remote as remote,
)
from .serialize import (
    deserialize_object as deserialize_object,
    pack_apply_message as pack_apply_message,
    serialize_object as serialize_object,
    unpack_apply_message as unpack_apply_message,
    use_cloudpickle as use_cloudpickle,
    use_dill as use_dill,
    use_pickle as use_pickle,
)
from .shared import Shared as Shared, share as share
from .tasks import ExecuteReply as ExecuteReply
from .view import DirectView as DirectView

__version__: str
version_info: tuple[int, ...]
__all__: list[str]

def load_ipython_extension(ip: Any) -> None: ...
def register_joblib_backend(name: str = ..., make_default: bool = ...) -> None: ...
