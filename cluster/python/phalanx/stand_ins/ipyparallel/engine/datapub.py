# SPDX-License-Identifier: BSD-3-Clause
"""Publishing data while a task runs."""


class ZMQDataPublisher:
    """Named by ipyparallel's own engine; not used here."""


def publish_data(data):
    """Sends a dict to the client, which finds it as the result's `data`."""
    from _phalanx_bridge import publish_data as publish

    publish(data)
