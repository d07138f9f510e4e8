"""When the next batch may leave: under load a little later, so that it carries more.

What a message costs five processes (system calls, wake-ups, cold caches) is many times what its content costs. So a
batch makes the next one wait, the longer the more was in it: whoever asks one thing at a time never waits, thousands
of operations a second travel in a few hundred messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Pace:
    """Runs `send` soon, and never more than one batch ahead. A batch of `full` things or more makes the next one wait
    for `seconds_max`, a smaller one for its share of that."""

    def __init__(self, send: Callable[[], None], seconds_max: float, full: int) -> None:
        self._send = send
        self._seconds_each = seconds_max / full
        self._seconds_max = seconds_max
        self._loop = asyncio.get_running_loop()
        self._ready_at = 0.0

    def plan(self) -> None:
        """There is a first thing to send."""
        wait = self._ready_at - self._loop.time()
        if wait > 0:
            self._loop.call_later(wait, self._send)
        else:
            self._loop.call_soon(self._send)

    def sent(self, things: int, seconds_max: float = float("inf")) -> None:
        """A batch has left. The next one does not wait for more than `seconds_max` either."""
        self._ready_at = self._loop.time() + min(things * self._seconds_each, self._seconds_max, seconds_max)
