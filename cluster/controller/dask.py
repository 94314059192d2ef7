# SPDX-License-Identifier: BSD-3-Clause
"""A distributed.Scheduler beside pxcontroller (dask.c), which gives this text to Python.

Standard input: one line of JSON, the scheduler's keyword arguments; its end is the scheduler's end.
Standard output: one line of JSON, where the scheduler listens, or the error that kept it from it.
"""

import sys

sys.path = [place for place in sys.path if place]  # not where the controller happens to run

import asyncio
import json
import os


def listening(scheduler):
    return {"status": "ok", "ip": scheduler.ip, "address": scheduler.address, "port": scheduler.port}


async def serve(options, say):
    from distributed import Scheduler

    scheduler = await Scheduler(**options)
    say(listening(scheduler))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await scheduler.close()


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print belongs into the log

    def say(answer):
        print(json.dumps(answer), file=answers, flush=True)

    options = json.loads(sys.stdin.readline())
    if "host" in options:
        host = options["host"]
        options.setdefault("dashboard_address", f"[{host}]:8787" if ":" in host else f"{host}:8787")
    try:
        asyncio.run(serve(options, say))
    except Exception as error:
        say({"status": "error", "ename": type(error).__name__, "evalue": str(error)})


main()
