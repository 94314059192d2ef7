# SPDX-License-Identifier: BSD-3-Clause
"""Turning engines into a dask.distributed cluster: client.become_dask().

The scheduler and the workers run in threads of the engines, each with an event loop of its own, so
that the engines go on serving their views.
"""

from .canning import engine_function


@engine_function
def _serve(kind, name, args, kwargs):
    """Starts distributed.<kind>(*args, **kwargs) in a thread; its address. It is in the engine's
    namespace as `name`, and as "dask_…" for "distributed_…"."""
    import asyncio
    import threading

    import distributed

    scope = globals()
    if name in scope:
        return scope[name].address
    ready, outcome = threading.Event(), {}

    async def run():
        try:
            server = await getattr(distributed, kind)(*args, **kwargs)
        except BaseException as e:
            outcome["error"] = e
            ready.set()
            return
        scope[name] = scope[name.replace("distributed", "dask")] = outcome["server"] = server
        server._px_loop = asyncio.get_running_loop()
        ready.set()
        await server.finished()

    thread = threading.Thread(target=lambda: asyncio.run(run()), name="dask-" + name, daemon=True)
    thread.start()
    if not ready.wait(60):
        raise TimeoutError("%s has not started within a minute" % kind)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["server"].address


@engine_function
def _end(*names):
    import asyncio

    scope = globals()
    for name in names:
        server = scope.pop(name, None)
        scope.pop(name.replace("distributed", "dask"), None)
        if server is not None:
            asyncio.run_coroutine_threadsafe(server.close(), server._px_loop).result(30)


def become(client, targets="all", port=0, nanny=False, scheduler_args=None, worker_args=None):
    """A distributed.Client of a scheduler on the first of `targets` and a worker on each of them.

    port: the scheduler's (0: any); it listens on the loopback unless scheduler_args has another
    "host", which engines on other machines need. nanny: whether workers are processes of their own.
    scheduler_args, worker_args: for distributed.Scheduler and .Worker; workers have one thread
    unless `nthreads` says otherwise. ImportError where distributed is not installed.
    """
    import distributed

    view = client.direct_view(targets)
    ids = client._ids_of(view.targets)
    options = {"port": port, "host": "127.0.0.1", "dashboard": False, **(scheduler_args or {})}
    address = client[ids[0]].apply_sync(_serve, "Scheduler", "distributed_scheduler", (), options)
    worker_args = dict(worker_args or {})
    worker_args.setdefault("nthreads", worker_args.pop("ncores", 1))
    kind = "Nanny" if nanny else "Worker"
    view.apply_sync(_serve, kind, "distributed_worker", (address,), worker_args)
    return distributed.Client(address)


def stop(client, targets="all"):
    """Ends the workers on `targets`, and the scheduler if it is on one of them."""
    client.direct_view(targets).apply_sync(_end, "distributed_worker", "distributed_scheduler")
