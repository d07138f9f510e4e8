"""How a flush shares the processor: agents come first.

Twenty thousand records are a second of work or two, and all nodes of a cluster under load begin theirs at about the
same time. Done at once, agents would wait for it; so a flush rests between its statements while agents are busy and
there is room for what they write meanwhile. It rests in its own thread, within its transaction: readers do not wait for
that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from crdt_spine.limits import FLUSH_SHARE_MAX

BUSY_OPERATIONS_PER_SECOND: Final = 500  # below that there is enough processor for all
SLICE_SECONDS: Final = 0.005  # of work between two rests


class FlushShare:
    """One flush's. `operations` says how many operations of agents the node has served so far, `hurries` whether
    somebody waits for the flush, or there is little room left. Call it between two statements, in the flush's
    thread."""

    def __init__(
        self,
        operations: Callable[[], int],
        hurries: Callable[[], bool],
        *,
        share: float = FLUSH_SHARE_MAX,
        clock: Callable[[], float] = time.monotonic,
        worked: Callable[[], float] = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._operations = operations
        self._hurries = hurries
        self._share = share
        self._clock = clock
        self._worked = worked
        self._sleep = sleep
        self._since: tuple[float, float, int] | None = None  # time, work and operations at the end of the last rest

    def __call__(self) -> None:
        now, work, count = self._clock(), self._worked(), self._operations()
        if self._since is not None:
            then, before, served = self._since
            spent = work - before
            if spent < SLICE_SECONDS:
                return
            busy = count - served >= BUSY_OPERATIONS_PER_SECOND * (now - then)
            if busy and not self._hurries():
                self._sleep(spent * (1 / self._share - 1))
        self._since = now, self._worked(), count
