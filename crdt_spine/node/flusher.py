"""Fills the tables behind the journal, in large transactions, and the text index behind the tables.

Waiting pays: what is written again before a flush is written to the tables once. So a flush starts when enough has
changed or enough time has passed. The text index waits while agents keep the node busy, until it is too far behind; a
text search makes it catch up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from crdt_spine import wall_clock
from crdt_spine.core.clock import at_milliseconds
from crdt_spine.limits import OPERATIONS_REMEMBERED_MAX
from crdt_spine.node.committer import Committer
from crdt_spine.node.share import FLUSH_OPERATIONS_PER_SECOND, Demand, FlushShare
from crdt_spine.storage.engine import Checkpoint, Engine, StorageFull
from crdt_spine.storage.records import RecordStore

log = logging.getLogger(__name__)

FLUSH_FROM = 0.5  # of the memory for what is not in the tables yet
HURRY_FROM = 0.75  # of it: what a flush holds is not counted, so that is the next one's
FLUSH_SECONDS = 10.0  # how much journal a restart may have to replay, in time
TEXT_RECORDS = 1_000  # in one transaction of the text index
TEXT_BACKLOG_MAX = 25_000  # above it the index works without pause, however busy the node is
CHECK_SECONDS = 0.1  # between two looks at whether a flush is due, while texts wait or there is much to flush ...
CALM_CHECK_SECONDS = 0.5  # ... and otherwise: a node has other things to do, and many nodes may share a machine
CALM_BELOW = FLUSH_FROM / 4
WIPED_AT_ONCE = 1_000  # records of a partition that goes, in one transaction
WIPED_ROWS_AT_ONCE = 64  # of the history, each with the versions of many memories
RETRY_SECONDS = 1.0  # while the disk is full
JOURNAL_SECONDS_MAX = 1.0  # a journal that is full may be waiting for this flush


class Flusher:
    """Runs flushes one after the other. `checkpoint` gives the vectors of this instant."""

    def __init__(
        self,
        store: RecordStore,
        engine: Engine,
        committer: Committer,
        checkpoint: Callable[[], Checkpoint],
        demand: Demand,
    ) -> None:
        self.store = store
        self.engine = engine
        self.committer = committer
        self.checkpoint = checkpoint
        self.demand = demand
        self.text_backlog = 0
        self._thread = ThreadPoolExecutor(1, "tables")
        self._one = asyncio.Lock()
        self._waiting = 0  # who waits for a flush
        self._last = 0.0

    async def run(self) -> None:
        """Flush and index when due, until cancelled."""
        loop = asyncio.get_running_loop()
        self._last = loop.time()
        self.text_backlog = await loop.run_in_executor(self._thread, self.engine.index_text, 0)
        while True:
            pause = CHECK_SECONDS if self.text_backlog or self.store.behind() >= CALM_BELOW else CALM_CHECK_SECONDS
            await asyncio.sleep(pause)
            due = self.store.behind() >= FLUSH_FROM or loop.time() - self._last >= FLUSH_SECONDS
            try:
                if due and (self.store.dirty or self.store.recent):
                    await self._flush(FlushShare(self.demand, self._hurries))
                elif due:
                    self._last = loop.time()
                idle = self.demand.here < FLUSH_OPERATIONS_PER_SECOND
                if self.text_backlog and (idle or self.text_backlog > TEXT_BACKLOG_MAX):
                    await self._index(20 if self.text_backlog > TEXT_BACKLOG_MAX else 2)
            except StorageFull as error:
                log.error("the tables can't be written: %s", error)
                await asyncio.sleep(RETRY_SECONDS)

    async def flush(self, first: Callable[[], Awaitable[None]] | None = None) -> None:
        """Bring everything dirty into the tables, now; before that, do what is to be done `first` while no other flush
        is under way. Raises StorageFull: it is dirty still."""
        with self._in_a_hurry():
            await self._flush(None, first)

    def _hurries(self) -> bool:
        """Is no time to rest? Somebody waits for the tables, or what is written meanwhile has hardly room."""
        return bool(self._waiting) or self.store.behind() >= HURRY_FROM

    @contextlib.contextmanager
    def _in_a_hurry(self) -> Iterator[None]:
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def _flush(self, share: FlushShare | None, first: Callable[[], Awaitable[None]] | None = None) -> None:
        loop = asyncio.get_running_loop()
        async with self._one:
            if first is not None:
                await first()
            flush = self.store.begin_flush(self.checkpoint(), at_milliseconds(wall_clock.now()))
            written = False
            try:
                # The turn that is open at this instant is in the flush, but its operation ids are in the journal alone:
                # were the tables ahead of it after a crash, a retry would be applied a second time.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.committer.durable(), JOURNAL_SECONDS_MAX)
                # Shielded: what a thread has begun it ends, and the store must hear of it.
                writing = loop.run_in_executor(self._thread, self.store.write_flush, flush, share)
                try:
                    await asyncio.shield(writing)
                except asyncio.CancelledError:
                    with self._in_a_hurry():
                        await asyncio.wait([writing])
                    written = writing.exception() is None
                    raise
                written = True
            finally:
                self.store.end_flush(flush, written)
            self._last = loop.time()
            self.text_backlog = await loop.run_in_executor(self._thread, self.engine.index_text, 0)
            await self._prune(flush.checkpoint.through)

    async def note(self, checkpoint: Callable[[Checkpoint], Checkpoint]) -> None:
        """Write a checkpoint that is the tables' own one, changed, and nothing else: quick, however much is dirty.
        Raises StorageFull."""
        with self._in_a_hurry():
            async with self._one:
                changed = checkpoint(self.engine.checkpoint)
                loop = asyncio.get_running_loop()
                await asyncio.shield(loop.run_in_executor(self._thread, self.engine.flush, (), (), changed))

    async def wipe(self, partitions: Sequence[int], belongs: Callable[[str], bool]) -> None:
        """Drop these partitions from the tables, a few records at a time, and their memories (`belongs`) from the
        history. Raises StorageFull: it is to be done again."""
        loop = asyncio.get_running_loop()
        while True:
            async with self._one:
                if not await loop.run_in_executor(self._thread, self.engine.wipe, partitions, WIPED_AT_ONCE):
                    break
        after: int | None = 0
        while after is not None:
            async with self._one:
                after = await loop.run_in_executor(
                    self._thread, self.engine.wipe_past, belongs, after, WIPED_ROWS_AT_ONCE
                )

    async def catch_up_text(self) -> None:
        """Everything that was acknowledged before this call can be found by its words afterwards."""
        if self.store.dirty or self.store.flushing:
            await self.flush()
        with self._in_a_hurry():
            async with self._one:
                pass  # a flush that has just ended has said by now how much waits for the index
        while self.text_backlog:
            await self._index(5)

    async def _index(self, transactions: int) -> None:
        loop = asyncio.get_running_loop()
        async with self._one:
            for _ in range(transactions):
                left = await loop.run_in_executor(self._thread, self.engine.index_text, TEXT_RECORDS)
                self.text_backlog = left
                if not left:
                    break

    async def _prune(self, through: int) -> None:
        """Drop journal rows that are in the tables and too old for a retry to ask for."""
        rows = self.committer.rows
        remembered = sum(operations for _, operations in rows)
        last = 0
        while rows and rows[0][0] <= through and remembered > OPERATIONS_REMEMBERED_MAX:
            last, operations = rows.popleft()
            remembered -= operations
        if last:
            await asyncio.get_running_loop().run_in_executor(self._thread, self.engine.prune, last)

    def close(self) -> None:
        self._thread.shutdown(wait=True)
