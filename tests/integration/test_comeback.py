"""While a node comes back, those that give it what it missed go on serving agents."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec
import pytest

from crdt_spine.core.messages import Get, Hello, NodeInfo, Store
from crdt_spine.memory import Memory
from crdt_spine.node.node import Node
from crdt_spine.session import Session
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.transport.local import LocalTransport

pytestmark = pytest.mark.timeout(60)

MEMORIES = 200


class SlowToRead(SqliteEngine):
    """Tables of which a page for another replica takes for ever, until somebody lets it go on."""

    def hold(self) -> None:
        self.reading, self.released = threading.Event(), threading.Event()

    def since(self, partition: int, have: Mapping[str, int], after: str | None, limit: int) -> list[tuple[str, bytes]]:
        self.reading.set()
        try:
            self.released.wait(20)
            return super().since(partition, have, after, limit)
        finally:
            self.reading.clear()


class Pair:
    """Two nodes in this process; the second one begins with nothing."""

    def __init__(self, folder: Path) -> None:
        self.transport = LocalTransport()
        engine = SlowToRead.open(folder / "a")
        assert isinstance(engine, SlowToRead)
        self.engine = engine
        self.engine.hold()
        self.a = Node("a", self.hello("a"), self.engine, self.transport)
        self.b: Node | None = None

    def hello(self, id: str) -> Hello:
        return Hello(
            cluster="c", region="r", node=id, state="up", nodes=[NodeInfo(id="a"), NodeInfo(id="b")], partitions=4,
            factor=2, write_quorum=1,
        )  # fmt: skip

    async def start_second(self) -> None:
        self.b = Node("b", self.hello("b"), SqliteEngine.open(":memory:"), self.transport)
        await self.b.start()

    async def stop(self) -> None:
        self.engine.released.set()
        nodes = [node for node in (self.b, self.a) if node is not None]
        await asyncio.wait_for(asyncio.gather(*[node.stop() for node in nodes]), 20)
        await self.transport.close()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    pair = Pair(tmp_path)
    await pair.a.start()
    yield pair
    await pair.stop()


async def test_agents_are_answered_while_a_page_is_read_for_another_node(pair: Pair) -> None:
    session = await Session.discover(pair.transport, "tester")
    ids = [f"memory-{k}" for k in range(MEMORIES)]

    async def at_a(operation: Get | Store) -> Memory | None:
        result = await session.run(operation, ("a",), use_token=False, timeout=5.0)
        return msgspec.json.decode(result.memory, type=Memory) if result.memory else None

    await asyncio.gather(*[at_a(Store(i=session.number(), id=id, content=f"of {id}")) for id in ids])
    await pair.a.flusher.flush()
    await pair.start_second()
    assert pair.b is not None
    async with asyncio.timeout(40):
        while not pair.engine.reading.is_set():
            await asyncio.sleep(0.01)
    for id in ids[:20]:
        found = await at_a(Get(i=session.number(), id=id))
        assert found is not None
        assert found.content == f"of {id}"
        await at_a(Store(i=session.number(), id=f"new-{id}", content="written meanwhile"))
    assert pair.engine.reading.is_set(), "the page is being read, all that time"
    assert sum(p.memories for p in pair.b.replica.partitions.values()) < MEMORIES
    pair.engine.released.set()
    async with asyncio.timeout(40):
        while pair.b.replica.durable != pair.a.replica.durable:
            await asyncio.sleep(0.01)
    assert sum(p.memories for p in pair.b.replica.partitions.values()) == MEMORIES + 20
    await session.close()
