"""Under `agent` and `tag` a query asks the home partition's replica alone, and still never misses anything."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from benchmarks.core import Records
from crdt_spine import Spine
from crdt_spine.core.clock import HybridClock
from crdt_spine.core.codec import Garbled
from crdt_spine.core.messages import Hello, NodeInfo, Query, Request, SyncPage, SyncRequest, encode
from crdt_spine.core.placement import partition_of, placement_hash
from crdt_spine.core.replica import Replica
from crdt_spine.core.strays import OwnStrays, home
from crdt_spine.node.node import Node
from crdt_spine.session import Session
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.transport.base import Message
from crdt_spine.transport.local import LocalTransport

pytestmark = pytest.mark.timeout(60)

PARTITIONS = 16
IDS = ("a", "b", "c", "d")
ELSEWHERE = [f"id-{n}" for n in range(100)]  # ids of their callers' own, which lie anywhere


class Cluster:
    """Four nodes in this process, two replicas of each partition; `asked` counts queries by node."""

    def __init__(self, placement: str) -> None:
        self.placement = placement
        self.transport = LocalTransport()
        self.engines = {id: SqliteEngine.open(":memory:") for id in IDS}
        self.nodes: dict[str, Node] = {}
        self.asked: Counter[str] = Counter()
        self.partitions: set[int] = set()  # that were asked
        self.spines: list[Spine] = []

    async def start(self) -> None:
        for id in IDS:
            hello = Hello(
                cluster="c", region="r", node=id, state="up", nodes=[NodeInfo(id=one) for one in IDS],
                partitions=PARTITIONS, factor=2, write_quorum=2, placement=self.placement,
            )  # fmt: skip
            self.nodes[id] = Node(id, hello, self.engines[id], self.transport)
        await asyncio.gather(*[node.start() for node in self.nodes.values()])
        await self.transport.subscribe("spine.c.node.*.rpc", self._count)
        async with asyncio.timeout(20):  # every node has heard how it is in every partition
            while any(node.strays is not None and self.unsure(node) for node in self.nodes.values()):
                await asyncio.sleep(0.01)

    def unsure(self, node: Node) -> bool:
        assert node.strays is not None
        return bool(node.strays.map.elsewhere((), (), {}, node.replica.durable))

    def _count(self, message: Message) -> None:
        for operation in msgspec.json.decode(message.payload, type=Request).operations:
            if isinstance(operation, Query):
                self.asked[message.subject.split(".")[3]] += 1
                self.partitions |= set(range(PARTITIONS) if operation.partitions is None else operation.partitions)

    async def spine(self, agent: str) -> Spine:
        async def opening() -> tuple[Session, Callable[[], Awaitable[None]]]:
            session = await Session.discover(self.transport, agent)
            return session, session.close

        self.spines.append(Spine(agent, opening, None, None))
        return await self.spines[-1].__aenter__()

    async def found(self, spine: Spine, **query: Any) -> tuple[set[str], int, int]:
        """What a query finds, how many requests that took, and of how many partitions."""
        self.asked.clear()
        self.partitions.clear()
        contents: set[str] = set()
        page = await spine.query(limit=1000, **query)
        contents |= {memory.content for memory in page.memories}
        assert page.cursor is None
        return contents, self.asked.total(), len(self.partitions)

    async def stop(self) -> None:
        for spine in self.spines:
            await spine.close()
        await asyncio.wait_for(asyncio.gather(*[node.stop() for node in self.nodes.values()]), 30)
        await self.transport.close()


async def running(placement: str) -> AsyncIterator[Cluster]:
    cluster = Cluster(placement)
    await cluster.start()
    yield cluster
    await cluster.stop()


@pytest.fixture
async def by_agent() -> AsyncIterator[Cluster]:
    async for cluster in running("agent"):
        yield cluster


@pytest.fixture
async def by_tag() -> AsyncIterator[Cluster]:
    async for cluster in running("tag"):
        yield cluster


def other_home(name: str) -> str:
    """An agent or tag whose home is another partition."""
    return next(f"{name}-{n}" for n in range(99) if home(f"{name}-{n}", PARTITIONS) != home(name, PARTITIONS))


def away(key: str) -> str:
    """An own id that does not lie at a key's home."""
    return next(id for id in ELSEWHERE if partition_of(id, PARTITIONS) != home(key, PARTITIONS))


async def test_by_agent_one_partition_has_it_all(by_agent: Cluster) -> None:
    ann, bob = await by_agent.spine("ann"), await by_agent.spine(other_home("ann"))
    mine = await ann.store_many({"content": f"a{n}", "tags": [f"t{n % 3}"]} for n in range(40))
    await bob.store_many({"content": f"b{n}", "tags": [f"t{n % 3}"]} for n in range(40))
    assert {partition_of(memory.id, PARTITIONS) for memory in mine} == {home("ann", PARTITIONS)}
    for reader in (ann, bob):  # also who has just written elsewhere
        assert await by_agent.found(reader, agent="ann") == ({f"a{n}" for n in range(40)}, 1, 1)
    contents, requests, partitions = await by_agent.found(ann, agent="ann", tags=["t1"], text="a1")
    assert (contents, requests, partitions) == ({"a1"}, 1, 1)
    contents, requests, partitions = await by_agent.found(ann, tags=["t1"])
    assert len(contents) == 26 and requests >= 2 and partitions == PARTITIONS
    assert await ann.get(mine[7].id) == mine[7]


async def test_by_agent_what_lies_elsewhere_is_found_all_the_same(by_agent: Cluster) -> None:
    ann, bob, eve = [await by_agent.spine(agent) for agent in ("ann", "bob", "eve")]
    thread = next(f"thread-{n}" for n in range(99) if home(f"thread-{n}", PARTITIONS) != home("ann", PARTITIONS))
    await ann.store("home")
    assert await by_agent.found(ann, agent="ann") == ({"home"}, 1, 1)
    own = await ann.store("own id", id=away("ann"))
    assert (await by_agent.found(ann, agent="ann"))[0] == {"home", "own id"}, "at once"
    entry = await ann.thread(thread).append("entry")
    assert partition_of(entry.id, PARTITIONS) == placement_hash(thread) * PARTITIONS >> 16
    assert (await by_agent.found(ann, agent="ann"))[0] == {"home", "own id", "entry"}
    # Who was shown one of them, or was given a token, must find it, too, however fresh it is.
    assert await bob.get(own.id) == own
    assert "own id" in (await by_agent.found(bob, agent="ann"))[0]
    fresh = next(id for id in reversed(ELSEWHERE) if partition_of(id, PARTITIONS) != home("ann", PARTITIONS))
    await ann.store("fresh", id=fresh)
    await eve.wait_for(ann.token)
    assert (await by_agent.found(eve, agent="ann"))[0] == {"home", "own id", "entry", "fresh"}
    # Once all know of these, only their partitions are asked; and an agent without any costs one as before.
    places = {partition_of(id, PARTITIONS) for id in (own.id, entry.id, fresh)} | {home("ann", PARTITIONS)}
    async with asyncio.timeout(30):
        while (await by_agent.found(eve, agent="ann"))[2] != len(places):
            await asyncio.sleep(0.05)
    await bob.store("of bob")
    async with asyncio.timeout(30):
        while await by_agent.found(bob, agent="bob") != ({"of bob"}, 1, 1):
            await asyncio.sleep(0.05)
    assert await ann.get(own.id) == own


async def test_by_agent_a_subscriber_finds_what_it_was_told_of(by_agent: Cluster) -> None:
    ann, bob = await by_agent.spine("ann"), await by_agent.spine("bob")
    async with bob.subscribe(agent="ann") as updates:
        for n, id in enumerate(ELSEWHERE[:12]):
            await ann.store(f"{n}", id=id)
            assert (await anext(updates)).memory.id == id
            assert f"{n}" in (await by_agent.found(bob, agent="ann"))[0]


async def test_by_tag_the_primary_tag_says_where(by_tag: Cluster) -> None:
    ann = await by_tag.spine("ann")
    tag, other = "red", other_home("red")
    stored = await ann.store_many({"content": f"{n}", "tags": [tag]} for n in range(30))
    assert {partition_of(memory.id, PARTITIONS) for memory in stored} == {home(tag, PARTITIONS)}
    untagged = await ann.store_many({"content": f"u{n}"} for n in range(30))
    assert len({partition_of(memory.id, PARTITIONS) for memory in untagged}) > 3
    everything = {f"{n}" for n in range(30)}
    assert await by_tag.found(ann, tags=[tag]) == (everything, 1, 1)
    assert await by_tag.found(ann, any_tags=[tag]) == (everything, 1, 1)
    assert (await by_tag.found(ann, any_tags=[tag, other]))[::2] == (everything, 2)
    assert (await by_tag.found(ann, tags=[tag, "nowhere"])) == (set(), 1, 1)

    # The same tag as a second one, or later, lies elsewhere.
    second = await ann.store("second", tags=[other, tag])
    assert partition_of(second.id, PARTITIONS) == home(other, PARTITIONS)
    assert (await by_tag.found(ann, tags=[tag]))[0] == everything | {"second"}
    await ann.update(untagged[0].id, add_tags=[tag])
    assert (await by_tag.found(ann, tags=[tag]))[0] == everything | {"second", "u0"}
    assert (await by_tag.found(ann, tags=[other]))[0] == {"second"}
    assert (await by_tag.found(ann, tags=[other, tag]))[0] == {"second"}
    bob = await by_tag.spine("bob")
    async with asyncio.timeout(30):  # bob was shown nothing: it may take a moment until the home's nodes know
        while (await by_tag.found(bob, tags=[tag]))[0] != everything | {"second", "u0"}:
            await asyncio.sleep(0.05)
        while (await by_tag.found(bob, tags=[tag]))[2] > 3:
            await asyncio.sleep(0.05)


async def test_pages_of_a_narrow_query_are_pages_of_all_there_is(by_tag: Cluster) -> None:
    ann = await by_tag.spine("ann")
    for n in range(30):
        moment = datetime(2026, 1, 1, 0, n, tzinfo=UTC)  # two nodes' clocks may not agree which of two came first
        await ann.store(f"{n}", tags=["red"], id=ELSEWHERE[n] if n % 3 == 0 else None, created_at=moment)
    for order in ("newest", "oldest"):
        seen: list[str] = []
        cursor = None
        while True:
            page = await ann.query(tags=["red"], limit=7, order=order, cursor=cursor)  # type: ignore[arg-type]
            seen += [memory.content for memory in page.memories]
            cursor = page.cursor
            if cursor is None:
                break
        assert seen == [f"{n}" for n in (range(30) if order == "oldest" else reversed(range(30)))]


async def test_strays_are_known_again_after_a_restart(by_agent: Cluster) -> None:
    ann = await by_agent.spine("ann")
    stored = await ann.store("own id", id=away("ann"))
    number = partition_of(stored.id, PARTITIONS)
    node = next(node for node in by_agent.nodes.values() if number in node.replica.partitions)
    assert node.strays is not None
    await node.flusher.flush()
    again = type(node.strays)(
        node.id, "agent", PARTITIONS, node.replica.durable, by_agent.transport, node.subjects, dict
    )  # fmt: skip
    again.restore(node.engine.checkpoint)
    assert again.own.of(number).keys.packed() == node.strays.own.of(number).keys.packed() != b""
    assert again.established([number]) == node.strays.established([number])
    # A folder of before: anything may be anywhere.
    checkpoint = msgspec.structs.replace(node.engine.checkpoint, extra={})
    older = type(again)(node.id, "agent", PARTITIONS, node.replica.durable, by_agent.transport, node.subjects, dict)
    older.restore(checkpoint)
    assert placement_hash("anybody") in older.own.of(number).keys


async def test_a_sync_brings_the_keys_of_what_its_receiver_never_sees(by_agent: Cluster) -> None:
    ann = await by_agent.spine("ann")
    stored = await ann.store("own id", id=away("ann"))
    number = partition_of(stored.id, PARTITIONS)
    source = next(node for node in by_agent.nodes.values() if number in node.replica.partitions)
    request = SyncRequest(partition=number, have={})
    raw = await by_agent.transport.request(source.subjects.sync(source.id), encode(request), 10)
    page = msgspec.json.decode(raw, type=SyncPage)
    assert page.strays is not None
    replica = Replica("z", "r/z@1", Records(), HybridClock(), {number: ()}, 1)
    replica.note_strays(OwnStrays("agent", PARTITIONS))
    replica.merge_page(msgspec.structs.replace(page, records=[]), raw, 1 << 50)
    assert replica.strays is not None
    assert placement_hash("ann") in replica.strays.of(number).keys
    assert replica.strays.established(number) == page.strays[1]
    with pytest.raises(Garbled):
        replica.merge_page(msgspec.structs.replace(page, strays=(b"nonsense", {})), raw, 1 << 50)


async def test_nonsense_about_strays_is_refused(by_agent: Cluster) -> None:
    for payload in (b"", b"{}", b'{"type":"strays/1","partitions":[]}', b'{"type":"strays/2","partitions":[1]}'):
        by_agent.transport.send("spine.c.node.a.strays", payload, "nowhere")
    strays = by_agent.nodes["a"].strays
    assert strays is not None
    async with asyncio.timeout(30):
        while strays.counts["strays_refused"] < 4:
            await asyncio.sleep(0.01)
