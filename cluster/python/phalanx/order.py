# SPDX-License-Identifier: BSD-3-Clause
"""Tasks after what their engines were told before: names that were pushed, code that was executed.

The two go to an engine on different ways, and the later one may be the faster.
"""

from collections import deque
from contextlib import suppress

from . import _phalanx
from .deadlines import end_of, seconds_left

# By then an idle engine has answered, and a busy one has got it, and keeps the order. Not longer, as the
# caller may be one that must not wait, such as an event loop. What is large is longer on its way.
SECONDS = 0.03
BYTES_A_SECOND = 20e6
MOST_SECONDS = 5
MOST = 64


class Ahead:
    """Requests, of type _phalanx.Result, that tasks should not overtake."""

    def __init__(self):
        self._requests = deque(maxlen=MOST)
        self._end = None  # of the time that the last of them has

    def add(self, request, size=0):
        """Takes note of a request that was sent. size: bytes, of all its messages."""
        with suppress(IndexError):  # none is left; another thread may have taken the last one
            while not self._requests[0].running:
                self._requests.popleft()
        end = end_of(SECONDS + min(size / BYTES_A_SECOND, MOST_SECONDS))
        self._end = max(end, self._end) if self._requests else end
        self._requests.append(request)

    def settle(self):
        """Gives them the time to arrive, once."""
        while self._requests:
            with suppress(IndexError):  # another thread has taken it
                self._requests.popleft().wait(_phalanx.REPLIES, seconds_left(self._end))
