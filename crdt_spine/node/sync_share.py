"""How much of a node's time repairs may take, by what each page was measured to cost.

The event loop serves agents and repairs alike, so a page is time that agents wait. While agents ask something, at most
SYNC_SHARE_MAX of the time goes into pages: after one that took c seconds the next begins c * (1 / share - 1) later. And
a page is then only as large as fits SYNC_PAGE_SECONDS_TARGET by the cost of the last ones: an agent's operation that
comes in the middle waits for no longer than that. While nobody asks anything there is no pause, and pages are whole.

A node has one share for the pages that it gives and one for those that it takes. Whoever wants a page's time waits in
line (`turn`), so the share holds for all peers together, however many there are.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

from crdt_spine.limits import SYNC_PAGE_RECORDS_MAX, SYNC_PAGE_SECONDS_TARGET, SYNC_SHARE_MAX

BUSY_OPERATIONS_PER_SECOND = 20  # of agents; below it, a page delays hardly anybody
LOOK_SECONDS = 0.25  # over how long the agents' operations are counted
RECORDS_MIN = 64  # a page; smaller ones would cost more than they carry
_WEIGHT = 0.25  # of the last page in the cost of a record


class SyncShare:
    """`operations` says how many operations of agents the node has served so far; `share` is of its time."""

    def __init__(
        self,
        operations: Callable[[], int],
        share: float = SYNC_SHARE_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.operations = operations
        self.share = share
        self.seconds = 0.0  # of the processor that pages took so far ...
        self.pages = 0  # ... and how many there were
        self.record_seconds = 0.0  # one record's part of a page, of late
        self.waiting = 0  # who wants a turn
        self._clock = clock
        self._lock = asyncio.Lock()
        self._ready_at = 0.0
        self._looked = clock(), 0
        self._busy = False

    @property
    def busy(self) -> bool:
        """Do agents ask this node for something?"""
        (then, before), now, count = self._looked, self._clock(), self.operations()
        if now - then >= LOOK_SECONDS:
            self._busy = count - before >= BUSY_OPERATIONS_PER_SECOND * (now - then)
            self._looked = now, count
        return self._busy

    def records_max(self) -> int:
        """How many records the next page may have."""
        if not self.busy or not self.record_seconds:
            return SYNC_PAGE_RECORDS_MAX
        return max(RECORDS_MIN, min(SYNC_PAGE_RECORDS_MAX, int(SYNC_PAGE_SECONDS_TARGET / self.record_seconds)))

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the time of a page; then say `spent`, with nothing to be waited for in between."""
        self.waiting += 1
        try:
            async with self._lock:
                while self.busy and (pause := self._ready_at - self._clock()) > 0:
                    await asyncio.sleep(min(pause, LOOK_SECONDS))
                yield
        finally:
            self.waiting -= 1

    def spent(self, seconds: float, records: int) -> None:
        """A page with so many records took so long."""
        self.seconds += seconds
        self.pages += 1
        self._ready_at = self._clock() + seconds * (1 / self.share - 1)
        if records >= RECORDS_MIN // 2:
            cost = seconds / records
            self.record_seconds += (cost - self.record_seconds) * (_WEIGHT if self.record_seconds else 1)
