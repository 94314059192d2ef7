# SPDX-License-Identifier: BSD-3-Clause
"""A controller that is asked to become a scheduler of dask.distributed starts one beside itself.

The rest of the way, workers in engines and a client of theirs, is in ipyparallel's own suite
(test_suite.py) and, for our client, in test_views.py."""
import os
import signal

import pytest
from conftest import alive, processes_with, wait_for

ipp = pytest.importorskip("ipyparallel")
distributed = pytest.importorskip("distributed")

DEADLINE = 90
NO_DASHBOARD = {"dashboard_address": "127.0.0.1:0"}

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.fixture
def ask(cluster):
    """ask(type, arguments) -> the content of the controller's answer."""
    where = cluster(1)
    with ipp.Client(str(where.client_file), timeout=DEADLINE) as rc:

        def ask(msg_type, **arguments):
            content = {"scheduler_args": {**NO_DASHBOARD, **arguments}}
            return rc._send_recv(rc._query_stream, msg_type, content)["content"]

        ask.cluster = where
        yield ask


@pytest.fixture
def scheduler(ipython_dir):
    """scheduler() -> the process ids of the schedulers that run."""
    text = f"IPYTHONDIR={ipython_dir}"
    return lambda: [pid for pid, words in processes_with(text).items() if "distributed" in words]


def test_one_scheduler_for_all_who_ask(ask, scheduler):
    first = ask("become_dask_request")
    assert first["status"] == "ok", first
    assert first["address"] == f"tcp://127.0.0.1:{first['port']}"
    assert ask("become_dask_request") == first
    with distributed.Client(first["address"], timeout=DEADLINE) as client:
        assert client.scheduler_info()["address"] == first["address"]
    assert len(scheduler()) == 1
    os.kill(scheduler()[0], signal.SIGKILL)
    wait_for(lambda: ask("become_dask_request")["address"] != first["address"], DEADLINE, "another")
    assert ask("stop_distributed_request") == {"status": "ok"}
    wait_for(lambda: not scheduler(), DEADLINE, "its end")
    assert ask("stop_distributed_request") == {"status": "ok"}


def test_arguments_that_it_refuses(ask, scheduler):
    refused = ask("become_dask_request", nonsense=1)
    assert (refused["status"], refused["ename"]) == ("error", "TypeError")
    assert "nonsense" in refused["evalue"]
    refused = ask("become_dask_request", nonsense="x" * 10_000)
    assert refused["status"] == "error" and "log" in refused["evalue"]
    wait_for(lambda: not scheduler(), DEADLINE, "its end")


def test_it_ends_with_a_controller_that_is_killed(ask, scheduler):
    assert ask("become_dask_request")["status"] == "ok"
    [pid] = scheduler()
    os.kill(ask.cluster.controller_pid, signal.SIGKILL)
    wait_for(lambda: not alive(pid), DEADLINE, "its end")
