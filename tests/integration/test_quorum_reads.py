"""Reads that several replicas answer: never older than what a write quorum has, and honest where too few answer.

The nodes are real, in this process, so that what one of them hears can be cut off subject by subject;
tests/integration/test_read_quorum_cluster.py does the same to processes.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from crdt_spine.core.layout import Layout
from crdt_spine.core.messages import Delete, Edit, Get, Hello, NodeInfo, RecordsAnswer, RecordsRequest, Store, encode
from crdt_spine.errors import QuorumFailed
from crdt_spine.memory import Memory
from crdt_spine.node.node import Node
from crdt_spine.session import Session
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.transport.base import Handler, Message
from crdt_spine.transport.local import LocalSubscription, LocalTransport

pytestmark = pytest.mark.timeout(60)

IDS = ("a", "b", "c")


class Wire:
    """One node's end of the transport; subjects with one of `deaf`'s words are not heard."""

    connected = True

    def __init__(self, shared: LocalTransport) -> None:
        self.shared = shared
        self.payload_bytes_max = shared.payload_bytes_max
        self.deaf: set[str] = set()
        self.slow = 0.0  # seconds before it takes a question about records
        self.asked: list[str] = []

    async def subscribe(self, subject: str, handler: Handler) -> LocalSubscription:
        async def take(message: Message) -> None:
            if self.deaf.intersection(message.subject.split(".")):
                return
            if self.slow and message.subject.endswith(".record"):
                await asyncio.sleep(self.slow)
            waiting = handler(message)
            if waiting is not None:
                await waiting

        return await self.shared.subscribe(subject, take)

    def send(self, subject: str, payload: bytes, reply: str = "") -> None:
        self.shared.send(subject, payload, reply)

    async def request(self, subject: str, payload: bytes, timeout: float) -> bytes:
        self.asked.append(subject)
        return await self.shared.request(subject, payload, timeout)

    async def close(self) -> None:
        return None


class Cluster:
    """Three nodes with a write quorum and a read quorum of two, and a session that can ask each."""

    def __init__(self) -> None:
        self.transport = LocalTransport()
        self.wires = {id: Wire(self.transport) for id in IDS}
        self.nodes: dict[str, Node] = {}
        self.session: Session
        self.numbers = itertools.count(1)

    def hello(self, id: str) -> Hello:
        return Hello(
            cluster="c", region="r", node=id, state="up", nodes=[NodeInfo(id=one) for one in IDS], partitions=8,
            factor=3, write_quorum=2, read_quorum=2,
        )  # fmt: skip

    async def start(self, *ids: str) -> None:
        for id in ids:
            self.nodes[id] = Node(id, self.hello(id), SqliteEngine.open(":memory:"), self.wires[id])
        await asyncio.gather(*[self.nodes[id].start() for id in ids])
        self.session = await Session.discover(self.transport, "tester")
        async with asyncio.timeout(40):
            while not all(len(node.replication.peers.alive()) == len(ids) - 1 for node in self.nodes.values()):
                await asyncio.sleep(0.01)

    async def at(self, node: str, operation: type[Any], timeout: float = 5.0, **fields: Any) -> Any:
        made = operation(i=self.session.number(), **fields)
        return await self.session.run(made, (node,), use_token=False, timeout=timeout)

    async def content(self, node: str, id: str, **fields: Any) -> str | None:
        result = await self.at(node, Get, id=id, **fields)
        return msgspec.json.decode(result.memory, type=Memory).content if result.memory else None

    async def stop(self) -> None:
        await self.session.close()
        await asyncio.wait_for(asyncio.gather(*[node.stop() for node in self.nodes.values()]), 20)
        await self.transport.close()


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    running = Cluster()
    await running.start(*IDS)
    yield running
    await running.stop()


def stale(cluster: Cluster) -> None:
    """From now on "c" hears nothing of what is written, but answers."""
    cluster.wires["c"].deaf |= {"delta", "vectors"}


async def test_a_replica_that_missed_a_write_never_shows_less_than_a_read_quorum_has(cluster: Cluster) -> None:
    await cluster.at("a", Store, id="m", content="old", acks=3)
    stale(cluster)
    await cluster.at("a", Store, id="m", content="new", tags=("x",))
    await cluster.at("b", Store, id="born", content="later")
    assert await cluster.content("c", "m", reads=1) == "old", "or this test shows nothing"
    assert await cluster.content("c", "born", reads=1) is None
    for _ in range(3):
        assert await cluster.content("c", "m") == "new"
        assert await cluster.content("c", "born") == "later"
    await cluster.at("a", Delete, id="m")
    assert await cluster.content("c", "m", reads=1) == "old"
    assert await cluster.content("c", "m") is None
    assert cluster.nodes["c"].store.get("m").content.value == "old", "a read writes nothing"  # type: ignore[union-attr]


async def test_changes_that_two_replicas_have_are_merged(cluster: Cluster) -> None:
    await cluster.at("a", Store, id="m", content="text", acks=3)
    for node in cluster.wires.values():
        node.deaf |= {"delta", "vectors"}
    await cluster.at("b", Edit, id="m", metadata={"b": 1}, acks=1)
    await cluster.at("c", Edit, id="m", add=("c",), acks=1)
    result = await cluster.at("a", Get, id="m", reads=3)
    memory = msgspec.json.decode(result.memory, type=Memory)
    assert (memory.content, memory.metadata, memory.tags) == ("text", {"b": 1}, {"c"})


async def test_what_a_quorum_showed_is_in_the_token(cluster: Cluster) -> None:
    """Monotonic reads: after the merged answer, the replica that was behind may not answer alone."""
    await cluster.at("a", Store, id="m", content="old", acks=3)
    stale(cluster)
    await cluster.at("a", Store, id="m", content="new")
    number = Layout(cluster.hello("a")).partition_of("m")
    reader = await Session.discover(cluster.transport, "reader")
    try:
        await reader.run(Get(i=reader.number(), id="m"), ("c",), (number,))
        version = cluster.nodes["a"].store.get("m").version  # type: ignore[union-attr]
        assert {actor: reader.vectors[number].get(actor, 0) for actor in version} == version
        alone = reader.run(Get(i=reader.number(), id="m", reads=1), ("c",), (number,), timeout=1.5)
        with pytest.raises(Exception, match="token"):
            await alone
        elsewhere = await reader.run(Get(i=reader.number(), id="m", reads=1), ("b",), (number,))
        assert b'"new"' in bytes(elsewhere.memory)
    finally:
        await reader.close()


async def test_the_token_of_a_merged_answer_claims_no_more_than_was_shown(cluster: Cluster) -> None:
    """What became durable while others were asked is not in the answer."""
    await cluster.at("a", Store, id="m", content="old", acks=3)
    number = Layout(cluster.hello("a")).partition_of("m")
    other = next(f"o{n}" for n in range(1000) if Layout(cluster.hello("a")).partition_of(f"o{n}") == number)
    cluster.wires["b"].slow = cluster.wires["c"].slow = 0.5
    reader = await Session.discover(cluster.transport, "reader")
    try:
        before = dict(cluster.nodes["a"].replica.durable[number])
        reading = asyncio.create_task(reader.run(Get(i=reader.number(), id="m"), ("a",), (number,)))
        async with asyncio.timeout(30):
            while not cluster.nodes["a"].quorum_reads.open:
                await asyncio.sleep(0)
        await cluster.at("a", Store, id=other, content="meanwhile", acks=1)
        asking = cluster.nodes["a"].quorum_reads.open
        await reading
        assert not asking or reader.vectors[number] == before  # not asking: storing took half a second
    finally:
        await reader.close()


async def test_reads_of_one_moment_ask_another_replica_once(cluster: Cluster) -> None:
    ids = [f"m{n}" for n in range(60)]
    await asyncio.gather(*[cluster.at("a", Store, id=id, content=id, acks=3) for id in ids])
    cluster.wires["a"].asked.clear()
    assert await asyncio.gather(*[cluster.content("a", id) for id in ids]) == ids
    asked = [subject for subject in cluster.wires["a"].asked if subject.endswith(".record")]
    assert len(asked) <= 4, "a message to each of the two others, once or, where the reads came in two turns, twice"
    assert cluster.nodes["a"].quorum_reads.open == 0


async def test_a_replica_that_is_slow_or_gone_is_not_waited_for(cluster: Cluster) -> None:
    await cluster.at("a", Store, id="m", content="text", acks=3)
    cluster.wires["b"].deaf.add("record")
    assert [await cluster.content("a", "m") for _ in range(3)] == ["text"] * 3
    assert [await cluster.content("c", "m") for _ in range(3)] == ["text"] * 3
    counts = [cluster.nodes[node].quorum_reads.counts["quorum_reads_hedged"] for node in "ac"]
    assert any(counts), "or they only waited for the slow one's time to be over"


async def test_too_few_answers_are_said_with_who_did_not(cluster: Cluster) -> None:
    await cluster.at("a", Store, id="m", content="text", acks=3)
    cluster.wires["b"].deaf.add("record")
    cluster.wires["c"].deaf.add("record")
    with pytest.raises(QuorumFailed) as failed:
        await cluster.at("a", Get, id="m", timeout=3.0)
    assert str(failed.value) == "1 of 2 replicas answered the read of 'm'; b, c did not within 1 s; nothing was read"
    assert (failed.value.outcome, failed.value.acks, failed.value.needed) == ("not applied", 1, 2)
    assert await cluster.content("a", "m", reads=1) == "text"


async def test_a_read_that_heard_first_who_is_gone_and_then_the_others_was_never_answered(cluster: Cluster) -> None:
    await cluster.at("a", Store, id="m", content="text", acks=3)
    await cluster.nodes.pop("c").stop()
    cluster.wires["b"].slow = 0.02
    with pytest.raises(QuorumFailed, match=r"^2 of 3 replicas answered the read of 'm'; c did not"):
        await cluster.at("a", Get, id="m", reads=3, timeout=2.0)
    assert not cluster.nodes["a"].quorum_reads.open


async def test_large_records_come_in_several_answers(cluster: Cluster) -> None:
    stale(cluster)
    contents = {f"m{n}": f"{n}" * 150_000 for n in range(8)}
    await asyncio.gather(*[cluster.at("a", Store, id=id, content=text) for id, text in contents.items()])
    found = await asyncio.gather(*[cluster.content("c", id) for id in contents])
    assert found == list(contents.values())


async def test_an_answer_that_makes_no_sense_counts_for_nothing(cluster: Cluster) -> None:
    await cluster.at("a", Store, id="m", content="text", acks=3)
    answers: list[Callable[[RecordsRequest], bytes]] = [
        lambda request: b"nonsense",
        lambda request: encode(RecordsAnswer(through=0)),
        lambda request: encode(RecordsAnswer(through=len(request.have) + 1)),
        lambda request: encode(RecordsAnswer(through=1, states=[(7, msgspec.Raw(b"[]"))])),
        lambda request: encode(RecordsAnswer(through=1, states=[(0, msgspec.Raw(b'["no record"]'))])),
        lambda request: encode(RecordsAnswer(through=1, absent=(0,))),
    ]
    given: list[bytes] = []

    def take(message: Message) -> None:
        given.append(answers[0](msgspec.json.decode(message.payload, type=RecordsRequest)))
        cluster.transport.send(message.reply, given[-1])

    cluster.wires["b"].deaf.add("record")
    cluster.wires["c"].deaf.add("record")
    await cluster.transport.subscribe("spine.c.node.b.record", take)
    await cluster.transport.subscribe("spine.c.node.c.record", take)
    while answers:
        given.clear()
        with pytest.raises(QuorumFailed, match="1 of 2 replicas"):
            await cluster.at("a", Get, id="m", timeout=1.0)
        assert given
        del answers[0]
    answers.append(lambda request: encode(RecordsAnswer(through=1)))
    assert await cluster.content("a", "m") == "text"


@pytest.mark.parametrize("payload", [b"", b"{}", b'{"type":"record/1","have":[]}', b'{"type":"record/2","have":[]}'])
async def test_a_question_that_makes_no_sense_is_refused(cluster: Cluster, payload: bytes) -> None:
    cluster.transport.send("spine.c.node.a.record", payload, "nowhere")
    async with asyncio.timeout(30):
        while not cluster.nodes["a"].quorum_reads.counts["records_refused"]:
            await asyncio.sleep(0.01)
