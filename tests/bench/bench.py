# SPDX-License-Identifier: BSD-3-Clause
"""Runs the sections that are named, or all, and prints one table."""
import argparse
import importlib
import os
import platform
import sys
import time

SECTIONS = ["start", "kernel", "output", "execute", "tasks", "controller", "client", "engine",
            "memory", "magics"]


def versions():
    import ipykernel
    import ipyparallel
    import zmq
    return (f"ipyparallel {ipyparallel.__version__}, ipykernel {ipykernel.__version__}, "
            f"libzmq {zmq.zmq_version()}, Python {platform.python_version()}, "
            f"{os.cpu_count()} processors")


def number(value):
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def ratio(row):
    """How many times better ours is."""
    if not row.ours or not row.theirs:
        return "-"
    times = row.theirs / row.ours if row.less_is_better else row.ours / row.theirs
    return f"{times:.1f} x" if times < 10 else f"{times:.0f} x"


def show(row):
    print(f"{row.what:58} {row.unit:7} {number(row.ours):>9} {number(row.theirs):>9} "
          f"{ratio(row):>7}", flush=True)


def main():
    parser = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of each start (default: 3)")
    parser.add_argument("sections", nargs="*", help=f"of {' '.join(SECTIONS)} (default: all)")
    options = parser.parse_args()
    unknown = [s for s in options.sections if s not in SECTIONS]
    if unknown:
        parser.error(f"no section {unknown[0]}; there are {', '.join(SECTIONS)}")
    print(versions())
    print(f"{'':58} {'':7} {'Phalanx':>9} {'theirs':>9} {'better':>7}")
    begun, failed = time.monotonic(), 0
    for section in options.sections or SECTIONS:
        try:
            for row in importlib.import_module(f"bench_{section}").rows(options.runs):
                show(row)
        except Exception as error:  # one section that cannot run leaves the others
            failed += 1
            print(f"{section}: {type(error).__name__}: {error}", file=sys.stderr)
    print(f"{time.monotonic() - begun:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
