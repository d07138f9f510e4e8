"""Group commit: one journal row, one fsync, for everything that came while the last one was being written.

This is the only place where a turn becomes durable, and the only road on which anything of it leaves the node
(rule 7): the deltas and acknowledgements of a turn, the answers and feed updates that depend on it go out behind it.
While the disk is full the turn is kept and tried again; `full` tells the rest of the node to take no more writes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from crdt_spine.core.quorum import Waiting
from crdt_spine.core.replica import Replica
from crdt_spine.core.turn import Turn
from crdt_spine.node.worker import Worker
from crdt_spine.storage.engine import Engine, StorageFull

log = logging.getLogger(__name__)

ROW_BYTES_MAX = 4 * 1024 * 1024
RETRY_SECONDS = 0.5  # while the disk is full
GATHER_FROM = 3  # changes in the last turn, from which on there is load, and larger commits cost much less than many
GATHER_SLICE_SECONDS = 0.002  # a commit is put off by as long where that is likely to double it; and again, while ...
GATHER_GROWTH = 0.15  # ... it brings at least this share of what there is: six times where changes come evenly ...
GATHER_CHANGES_MAX = 64  # ... and there are fewer than this
PAUSE_SECONDS = 0.02  # between two turns is as long as any longer one: what comes behind it tells what is usual
PATIENCE_SECONDS = 0.01  # what nobody waits for waits this long for something that somebody waits for
SMOOTHING = 1 / 8  # of a new measurement of how long a turn takes, how much comes, and how often


class Committer:
    """Ends turns, writes them, tells `on_settled`. `through` is the last journal row whose turn has taken effect."""

    def __init__(
        self, replica: Replica, engine: Engine, on_settled: Callable[[Turn, list[Waiting]], None], through: int
    ) -> None:
        self.replica = replica
        self.engine = engine
        self.on_settled = on_settled
        self.through = through
        self.full = False
        self.seconds = 0.0  # that a turn takes to be durable, smoothed
        self.rows: deque[tuple[int, int]] = deque()  # (sequence, operations in it), for pruning
        self._thread = Worker("journal")
        self._wake = asyncio.Event()
        self._soon: asyncio.TimerHandle | None = None  # when what nobody waits for is to be committed
        self._barriers: list[asyncio.Future[bool]] = []  # for the next turn
        self._reached: list[asyncio.Future[bool]] = []  # for the turn that is being written
        self._next: list[Callable[[], None]] = []  # what is to be done between two turns, once the open one is durable
        self._committing = False
        self._last_changes = 0
        self._changes = 0.0  # in a turn, smoothed, ...
        self._between = PAUSE_SECONDS  # ... and the seconds from one to the next
        self._ended_at = 0.0  # the last one

    def touch(self, awaited: bool = True) -> None:
        """Something is to be committed: now, or, where nobody waits for it, with the next thing that somebody does."""
        if self._wake.is_set():
            return
        if awaited:
            self._wake.set()
        elif self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._wake.set)

    async def barrier(self) -> None:
        """Return once everything that has taken effect in memory so far is durable, however long the disk is full."""
        while not await self.durable():
            await asyncio.sleep(RETRY_SECONDS)

    async def durable(self) -> bool:
        """Wait until everything that has taken effect in memory so far is durable; False: the disk is full, it is not,
        and nobody knows when."""
        if not self._committing and not self._wake.is_set() and self._soon is None:
            return True
        if self.full:
            return False
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._barriers.append(future)
        self._wake.set()
        return await future

    async def between_turns(self, action: Callable[[], None]) -> None:
        """Do it once everything that has taken effect so far is durable, and at a moment when no turn is being written.
        What it raises, its caller gets."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def act() -> None:
            try:
                action()
            except Exception as error:
                if not done.done():
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(None)

        self._next.append(act)
        self._wake.set()
        await done

    async def run(self) -> None:
        """Commit, until cancelled."""
        while True:
            await self._wake.wait()
            if self._last_changes >= GATHER_FROM:
                await self._gather()
            self._wake.clear()
            if self._soon is not None:
                self._soon.cancel()
                self._soon = None
            self._reached, self._barriers = self._barriers, []
            between, self._next = self._next, []
            turn = self.replica.end_turn()
            self._measure(len(turn.records), time.monotonic())
            if not turn.empty:
                self._committing = True
                begun = time.monotonic()
                await self._write(turn)
                self.seconds += (time.monotonic() - begun - self.seconds) * SMOOTHING
                self._last_changes = len(turn.records)
                self.on_settled(turn, self.replica.persisted(turn))
                self._committing = False
            _release(self._reached, True)
            for act in between:
                act()

    def _measure(self, changes: int, now: float) -> None:
        """A turn with so many changes has ended."""
        self._changes += (changes - self._changes) * SMOOTHING
        self._between += (min(now - self._ended_at, PAUSE_SECONDS) - self._between) * SMOOTHING
        self._ended_at = now

    async def _gather(self) -> None:
        """Let the turn grow while changes come thick: who waits for one of them waits little longer, and each costs
        less. What came at once, as the batches of agents do, does not wait for the next batch."""
        before, now = 0, self.replica.pending
        if self._changes * GATHER_SLICE_SECONDS < now * self._between:
            return
        while before < now < GATHER_CHANGES_MAX and now - before >= GATHER_GROWTH * now:
            await asyncio.sleep(GATHER_SLICE_SECONDS)
            before, now = now, self.replica.pending

    async def _write(self, turn: Turn) -> None:
        for row in _rows(turn.journal):
            while True:
                try:
                    sequence = await self._thread.do(self.engine.append, row)
                    break
                except StorageFull as error:
                    if not self.full:
                        log.error("the journal can't be written, no more writes are taken: %s", error)
                    self.full = True
                    _release(self._reached + self._barriers, False)
                    await asyncio.sleep(RETRY_SECONDS)
            if self.full:
                log.warning("the journal can be written again")
                self.full = False
            self.through = sequence
            self.rows.append((sequence, row.count(b'"operation"')))

    def close(self) -> None:
        self._thread.close()


def _release(barriers: list[asyncio.Future[bool]], durable: bool) -> None:
    """Let those go on that wait at a barrier, knowing whether it is reached."""
    for barrier in barriers:
        if not barrier.done():
            barrier.set_result(durable)


def _rows(journal: list[bytes]) -> list[bytes]:
    """The entries of a turn as journal rows: lines of JSON, cut so that no row grows out of bounds."""
    rows: list[bytes] = []
    start = size = 0
    for index, entry in enumerate(journal):
        if size and size + len(entry) > ROW_BYTES_MAX:
            rows.append(b"\n".join(journal[start:index]))
            start, size = index, 0
        size += len(entry)
    if start < len(journal):
        rows.append(b"\n".join(journal[start:]))
    return rows
