"""How much of a processor work takes that can wait, while agents ask for something: they come first.

Three kinds of it:

- *Pages that a node gives* to others. After one that cost c seconds the next begins c * (1 / share - 1) later, and it
  has only as many records as fit SYNC_PAGE_SECONDS_TARGET by the cost of the last ones.
- *Pages that it takes.* While agents ask this node, the same. While they ask the others, as they do where this one has
  to catch up, its whole process keeps to CATCH_UP_SHARE_MAX: the others may be on the same machine.
- *Flushes.* Twenty thousand records are a second of work or two, and all nodes of a cluster under load begin theirs at
  about the same time. A flush rests between its statements, in its own thread, within its transaction; no reader waits
  for that. It rests less where agents ask only the others.

Seconds are those of a processor, as measured: a number of pages or bytes would be too tight on a large machine and too
loose on a small one, and by wall time work would be held back for what others took of a busy machine. While nobody asks
anything there is no pause, and pages are whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from crdt_spine.limits import FLUSH_SHARE_ASIDE_MAX, FLUSH_SHARE_MAX, SYNC_PAGE_RECORDS_MAX, SYNC_PAGE_SECONDS_TARGET

FEW_OPERATIONS_PER_SECOND: Final = 20  # of agents; below it, a page delays hardly anybody
FLUSH_OPERATIONS_PER_SECOND: Final = 500  # below that there is enough processor for agents and a flush
LOOK_SECONDS: Final = 0.25  # over how long the agents' operations are counted
TAKING_SHARE_MIN: Final = 0.1  # of a processor: else a node that is sent much might never have caught up
RECORDS_MIN: Final = 64  # a page; smaller ones would cost more than they carry
IDLE_SECONDS: Final = 5.0  # without a page: what the process did meanwhile was for agents
SLICE_SECONDS: Final = 0.005  # of a flush's work between two rests
_WEIGHT: Final = 0.25  # of the last page in the cost of a record

Clock = Callable[[], float]


class Demand:
    """What agents ask for: `here` says how many operations this node has served so far, `elsewhere` how many a second
    the other nodes serve. To be looked at from any thread, as `elsewhere` must be."""

    def __init__(
        self, here: Callable[[], int], elsewhere: Callable[[], float] = lambda: 0.0, clock: Clock = time.monotonic
    ) -> None:
        self._here = here
        self._elsewhere = elsewhere
        self._clock = clock
        self._looked = clock(), 0
        self._rate = 0.0

    @property
    def here(self) -> float:
        """Operations a second that agents ask of this node."""
        (then, before), now, count = self._looked, self._clock(), self._here()
        if now - then >= LOOK_SECONDS:
            self._looked = now, count
            self._rate = (count - before) / (now - then)
        return self._rate

    @property
    def elsewhere(self) -> float:
        """And of the others."""
        return self._elsewhere()


class PageShare:
    """The pages of all peers together: whoever wants a page's time waits in line (`turn`). `share` is of a processor
    while agents ask this node for something; while they ask others, the process as a whole keeps to `share_elsewhere`,
    None: it does not matter."""

    def __init__(
        self, demand: Demand, share: float, share_elsewhere: float | None = None, *,
        clock: Clock = time.monotonic, process: Clock = time.process_time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:  # fmt: skip
        self.seconds = 0.0  # of a processor that pages took so far ...
        self.pages = 0  # ... and how many there were
        self.record_seconds = 0.0  # one record's part of a page, of late
        self.waiting = 0  # who wants a turn
        self._demand = demand
        self._share = share
        self._share_elsewhere = share_elsewhere
        self._clock = clock
        self._process = process
        self._sleep = sleep
        self._lock = asyncio.Lock()
        self._ready_at = 0.0
        self._latest_at = 0.0  # when a page is due, whatever else the process does
        self._began = clock(), process()  # of the time over which the process's share counts

    @property
    def busy(self) -> bool:
        """Do agents ask this node for something?"""
        return self._demand.here >= FEW_OPERATIONS_PER_SECOND

    def records_max(self) -> int:
        """How many records the next page may have."""
        if not self.busy or not self.record_seconds:
            return SYNC_PAGE_RECORDS_MAX
        return max(RECORDS_MIN, min(SYNC_PAGE_RECORDS_MAX, int(SYNC_PAGE_SECONDS_TARGET / self.record_seconds)))

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the time of a page; say `spent` once it is made."""
        self.waiting += 1
        try:
            async with self._lock:
                if self._clock() - self._began[0] > IDLE_SECONDS:
                    self._began = self._clock(), self._process()
                while (pause := self._pause()) > 0:
                    await self._sleep(min(pause, LOOK_SECONDS))
                yield
        finally:
            self.waiting -= 1

    def spent(self, seconds: float, records: int) -> None:
        """A page with so many records took so long."""
        self.seconds += seconds
        self.pages += 1
        now = self._clock()
        self._ready_at = now + seconds * (1 / self._share - 1)
        self._latest_at = now + seconds * (1 / TAKING_SHARE_MIN - 1)
        if records >= RECORDS_MIN // 2:
            cost = seconds / records
            self.record_seconds += (cost - self.record_seconds) * (_WEIGHT if self.record_seconds else 1)

    def _pause(self) -> float:
        if self.busy:
            return self._ready_at - self._clock()
        if self._share_elsewhere is None or self._demand.elsewhere < FEW_OPERATIONS_PER_SECOND:
            return 0.0
        now, work = self._clock(), self._process()
        (then, before) = self._began
        due = min(then + (work - before) / self._share_elsewhere, self._latest_at)
        if due <= now:
            self._began = now, work  # what was not used is not saved up
        return due - now


class FlushShare:
    """One flush's. `hurries` says whether somebody waits for it, or there is little room left. Call it between two
    statements, in the flush's thread."""

    def __init__(
        self, demand: Demand, hurries: Callable[[], bool], *, worked: Clock = time.thread_time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self._demand = demand
        self._hurries = hurries
        self._worked = worked
        self._sleep = sleep
        self._since: float | None = None  # the work at the end of the last rest

    def __call__(self) -> None:
        work = self._worked()
        if self._since is not None:
            if (spent := work - self._since) < SLICE_SECONDS:
                return
            share = self._share()
            if share < 1 and not self._hurries():
                self._sleep(spent * (1 / share - 1))
        self._since = work

    def _share(self) -> float:
        if self._demand.here >= FLUSH_OPERATIONS_PER_SECOND:
            return FLUSH_SHARE_MAX
        return FLUSH_SHARE_ASIDE_MAX if self._demand.elsewhere >= FEW_OPERATIONS_PER_SECOND else 1.0
