# SPDX-License-Identifier: BSD-3-Clause
"""Time-outs as points in time. In seconds, on the monotonic clock; None: never."""

import threading
import time


def end_of(timeout):
    """When `timeout` seconds have passed; None and negative ones: never."""
    return None if timeout is None or timeout < 0 else time.monotonic() + timeout


def seconds_left(end):
    """The time-out that is left until `end`."""
    return None if end is None else max(0.0, end - time.monotonic())


def wait_until(condition, seconds):
    """Whether condition() comes to pass in time. It is asked fifty times a second."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        threading.Event().wait(0.02)
    return True
