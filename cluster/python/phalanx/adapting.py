# SPDX-License-Identifier: BSD-3-Clause
"""Clusters whose engines come and go as there is work."""

import json

from . import _phalanx, error


def asked(client):
    """What a pxcontroller says of itself; None where it is none, or does not answer."""
    try:
        status = json.loads(client._raw.query("status_request", "{}", 3))
    except (TimeoutError, ValueError, _phalanx.ClosedError):
        return None
    good = status.get("status") == "ok" and isinstance(status.get("engines"), list)
    return status if good else None


def adapts(client):
    """Whether engines are started for tasks that wait."""
    return bool((asked(client) or {}).get("adapt"))


def none_there(client):
    """The exception of what needs engines, when there are none."""
    try:
        client._raw.wait_engines(1, 0)
    except _phalanx.ClosedError as e:  # they have gone with their controller
        return e
    start = "; load-balanced tasks start those that they need, and" if adapts(client) else ";"
    return error.NoEnginesRegistered(
        "There are no engines. client.wait_for_engines(n) waits for those that start%s "
        "pxcluster engines -n N starts some" % start
    )
