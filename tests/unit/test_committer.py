"""When turns are committed: at once where little happens, together where much does, and never left waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from crdt_spine.core.clock import HybridClock
from crdt_spine.core.messages import Store
from crdt_spine.core.replica import Replica
from crdt_spine.node.committer import GATHER_CHANGES_MAX, GATHER_FROM, Committer
from crdt_spine.node.flusher import Flusher
from crdt_spine.node.share import Demand
from crdt_spine.storage.engine import Checkpoint
from crdt_spine.storage.records import RecordStore
from crdt_spine.storage.sqlite import SqliteEngine

NOW = 1_700_000_000_000


class Node:
    """A committer at work on a replica without peers; `turns` has how many changes each commit had."""

    def __init__(self) -> None:
        self.engine = SqliteEngine.open(":memory:")
        self.replica = Replica("a", "r/a@1", RecordStore(self.engine), HybridClock(), {0: ()}, 1)
        self.turns: list[int] = []
        self.committer = Committer(self.replica, self.engine, self._settled, 0)
        self.running = asyncio.create_task(self.committer.run())
        self.written = 0

    def _settled(self, turn: Any, done: Any) -> None:
        self.turns.append(len(turn.records))

    def operate(self, count: int = 1) -> None:
        for _ in range(count):
            self.written += 1
            operation = Store(i=self.written, id=f"m{self.written}", content="x")
            self.replica.write(0, operation, "agent", f"s-{self.written}", NOW, None)

    def write(self, count: int = 1) -> None:
        self.operate(count)
        self.committer.touch()

    async def settled(self) -> None:
        async with asyncio.timeout(5):
            await self.committer.barrier()

    async def close(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        self.committer.close()
        self.engine.close()


@pytest_asyncio.fixture
async def node() -> AsyncIterator[Node]:
    node = Node()
    yield node
    await node.close()


async def test_a_barrier_after_a_busy_turn_is_reached_though_nothing_more_comes(node: Node) -> None:
    """It once waited for the next change: a turn without changes never had enough of them."""
    node.write(GATHER_FROM)
    await node.settled()
    node.committer.touch()
    await node.settled()
    assert node.turns == [GATHER_FROM]


async def test_what_is_done_between_turns_finds_all_before_it_durable_and_nothing_under_way(node: Node) -> None:
    done: list[int] = []

    def look(written: int) -> None:
        assert node.replica.durable[0]["r/a@1"] >= written
        assert node.replica._under_way == 0
        done.append(written)

    actions = []
    for _ in range(40):
        node.write()
        if node.written % 8 == 0:
            actions.append(asyncio.create_task(node.committer.between_turns(partial(look, node.written))))
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await asyncio.gather(*actions)
        with pytest.raises(ZeroDivisionError):
            await node.committer.between_turns(lambda: print(1 // 0))  # its caller's to bear, not the committer's
        await node.committer.between_turns(lambda: look(40))
    assert done == [8, 16, 24, 32, 40, 40]


async def test_changes_that_keep_coming_are_committed_together(node: Node) -> None:
    for _ in range(300):
        node.write(GATHER_FROM)
        await asyncio.sleep(0.0005)
    await node.settled()
    assert sum(node.turns) == 300 * GATHER_FROM
    assert len(node.turns) < 200, "a commit gathers those of some milliseconds"


async def test_what_comes_at_once_is_committed_at_once(node: Node) -> None:
    """Batches of agents were held up for the next one, which came when they were answered."""
    for _ in range(20):
        node.write(15)
        await node.settled()
        await asyncio.sleep(0.01)
    began = asyncio.get_running_loop().time()
    node.write(15)
    for _ in range(3):
        await asyncio.sleep(0)
    assert node.replica.pending == 0, "it is being written"
    await node.settled()
    assert asyncio.get_running_loop().time() - began < 10, "and no change is left behind"
    assert node.turns == [15] * 21


async def used_to_much(node: Node) -> None:
    """So many changes came lately that a commit waits for more; they are not counted."""
    for _ in range(60):
        node.write(GATHER_CHANGES_MAX)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await node.settled()
    node.turns.clear()


async def test_a_full_turn_waits_no_longer(node: Node) -> None:
    await used_to_much(node)
    node.write(GATHER_FROM)
    await node.settled()
    node.write(GATHER_CHANGES_MAX)
    await asyncio.sleep(0)
    node.write(GATHER_CHANGES_MAX)
    await node.settled()
    assert node.turns == [GATHER_FROM, GATHER_CHANGES_MAX, GATHER_CHANGES_MAX]


async def test_changes_that_never_stop_hold_up_nobody_for_ever(node: Node) -> None:
    await used_to_much(node)
    node.write(GATHER_FROM)
    await node.settled()

    async def stream() -> None:
        while True:
            node.write()
            await asyncio.sleep(0)

    streaming = asyncio.create_task(stream())
    await asyncio.sleep(0)
    await node.settled()
    streaming.cancel()
    assert len(node.turns) >= 2


async def test_the_tables_are_never_ahead_of_the_journal(node: Node) -> None:
    """They once were, if the node crashed right after a flush that had begun in the middle of a turn. The change was
    there, its operation id was not, and a retry was applied a second time."""
    seen: list[tuple[str, int]] = []
    append, flush = node.engine.append, node.engine.flush
    slow = threading.Event()

    def slow_append(row: bytes) -> int:
        slow.wait(5)
        seen.append(("journal", row.count(b'"operation"')))
        return append(row)

    def seen_flush(rows: Any, *rest: Any) -> None:
        seen.append(("tables", len(rows)))
        flush(rows, *rest)

    node.engine.append, node.engine.flush = slow_append, seen_flush  # type: ignore[method-assign]
    flusher = Flusher(node.replica.records, node.engine, node.committer, Checkpoint, Demand(lambda: 0))  # type: ignore[arg-type]
    node.write(2)
    flushing = asyncio.create_task(flusher.flush())
    await asyncio.sleep(0.05)
    slow.set()
    async with asyncio.timeout(5):
        await flushing
    flusher.close()
    assert seen == [("journal", 2), ("tables", 2)]


async def test_a_flush_that_has_just_ended_hides_no_text(node: Node) -> None:
    """Between its end and its word on what waits for the index, a search once took the index for complete."""
    index, counting, go_on = node.engine.index_text, threading.Event(), threading.Event()

    def slow_index(records: int) -> int:
        if not records:
            counting.set()
            go_on.wait(5)
        return index(records)

    node.engine.index_text = slow_index  # type: ignore[method-assign]
    flusher = Flusher(node.replica.records, node.engine, node.committer, Checkpoint, Demand(lambda: 0))  # type: ignore[arg-type]
    node.write(2)
    flushing = asyncio.create_task(flusher.flush())
    async with asyncio.timeout(5):
        while not counting.is_set():
            await asyncio.sleep(0.002)
        searching = asyncio.create_task(flusher.catch_up_text())
        await asyncio.sleep(0.02)
        go_on.set()
        await flushing
        await searching
    assert index(0) == 0, "all is in the index"
    flusher.close()


async def test_what_nobody_waits_for_is_committed_with_what_somebody_does(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crdt_spine.node.committer.PATIENCE_SECONDS", 60.0)
    node.write(1)
    await node.settled()
    node.operate()
    node.committer.touch(awaited=False)
    for _ in range(3):
        await asyncio.sleep(0)
    assert node.replica.pending == 1, "it has not been committed alone"
    node.write(1)
    await node.settled()
    assert node.turns == [1, 2]


async def test_what_nobody_waits_for_is_committed_soon_all_the_same(node: Node) -> None:
    node.operate()
    node.committer.touch(awaited=False)
    async with asyncio.timeout(5):
        while node.turns != [1]:
            await asyncio.sleep(0.002)
    assert node.replica.durable[0] == {"r/a@1": 1}


async def test_who_asks_for_all_to_be_durable_waits_for_what_nobody_waited_for(node: Node) -> None:
    """A page or a read that shows it must not leave before it is on the disk."""
    node.operate()
    node.committer.touch(awaited=False)
    assert await node.committer.durable()
    assert node.turns == [1]
    assert node.replica.durable[0] == {"r/a@1": 1}
