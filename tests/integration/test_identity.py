"""A disk that is an old copy: what was deleted and forgotten meanwhile stays away, whatever happens on the road there.

The nodes are real, with real folders, in this process: the road there has to be stopped at places that a process of
its own does not show. tests/integration/test_recovery.py does the same from outside.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from crdt_spine.config import LimitsConfig
from crdt_spine.core.messages import Delete, FeedBatch, FeedOpen, Get, Hello, NodeInfo, Store, SyncRequest, encode
from crdt_spine.core.selection import Selection
from crdt_spine.errors import ConfigError, SpineError
from crdt_spine.node import flusher, identity, pulling, replication
from crdt_spine.node.node import Node
from crdt_spine.session import Session
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.transport.base import Disconnected, Handler, Message
from crdt_spine.transport.local import LocalSubscription, LocalTransport

PARTITIONS = 8
SECONDS_MAX = 30.0


class Wire:
    """One node's end of the transport that all share; while it is `cut`, what it sends and would get is lost."""

    connected = True

    def __init__(self, shared: LocalTransport) -> None:
        self.shared = shared
        self.payload_bytes_max = shared.payload_bytes_max
        self.cut = False

    async def subscribe(self, subject: str, handler: Handler) -> LocalSubscription:
        def take(message: Message) -> Any:
            return None if self.cut else handler(message)

        return await self.shared.subscribe(subject, take)

    def send(self, subject: str, payload: bytes, reply: str = "") -> None:
        if not self.cut:
            self.shared.send(subject, payload, reply)

    async def request(self, subject: str, payload: bytes, timeout: float) -> bytes:
        if self.cut:
            raise Disconnected
        return await self.shared.request(subject, payload, timeout)

    async def close(self) -> None:
        return None


class Cluster:
    """Nodes of this process, each with a folder; `nodes` are those that run."""

    def __init__(self, folder: Path, ids: tuple[str, ...]) -> None:
        self.folder = folder
        self.ids = ids
        self.transport = LocalTransport()
        self.nodes: dict[str, Node] = {}
        self.session: Session | None = None

    def _hello(self, id: str) -> Hello:
        return Hello(
            cluster="c", region="r", node=id, state="up", nodes=[NodeInfo(id=one) for one in self.ids],
            partitions=PARTITIONS, factor=3, write_quorum=1,
        )  # fmt: skip

    async def start(self, *ids: str) -> None:
        """Start nodes, and wait until they answer."""
        for id in ids:
            engine = SqliteEngine.open(self.folder / id)
            self.nodes[id] = Node(id, self._hello(id), engine, Wire(self.transport))
        await asyncio.gather(*[self.nodes[id].start() for id in ids])

    async def stop(self, *ids: str) -> None:
        for id in ids:
            await self.nodes.pop(id).stop()

    async def crash(self, id: str) -> None:
        """End a node as a kill does: nothing more is written."""
        node = self.nodes.pop(id)
        for subscription in node._subscriptions:
            await subscription.cancel()
        node.replication.close()
        node.answers.close()
        node.feeds.close()
        for task in node._tasks:
            task.cancel()
        await asyncio.gather(*node._tasks, return_exceptions=True)
        for part in (node.queries, node.flusher, node.committer, node.engine):
            part.close()

    def copy(self, id: str, name: str) -> None:
        """Keep a copy of a stopped node's folder."""
        shutil.copytree(self.folder / id, self.folder / name)

    def roll_back(self, id: str, name: str) -> None:
        """Put a copy in the place of a stopped node's folder."""
        shutil.rmtree(self.folder / id)
        shutil.copytree(self.folder / name, self.folder / id)

    async def at(self, node: str, operation: type[Any], **fields: Any) -> Any:
        """What one node says to an operation."""
        if self.session is None:
            self.session = await Session.discover(self.transport, "tester")
        made = operation(i=self.session.number(), **fields)
        return await self.session.run(made, (node,), use_token=False, timeout=2.0)

    async def subscribe(self, node: str) -> list[str]:
        """Open a feed at one node; the list gets what it says against it."""
        problems: list[str] = []

        def take(message: Message) -> None:
            problem = msgspec.json.decode(message.payload, type=FeedBatch).error
            if problem:
                problems.append(problem)

        inbox = f"feed-{len(self.transport.subscriptions)}"
        await self.transport.subscribe(inbox, take)
        opened = FeedOpen(feed=inbox, inbox=inbox, selection=Selection(), partitions=tuple(range(PARTITIONS)), credit=9)
        self.transport.send(self.nodes[node].subjects.feed(node), encode(opened))
        return problems

    async def store(self, node: str, *ids: str) -> None:
        await asyncio.gather(*[self.at(node, Store, id=id, content=id) for id in ids])

    async def delete(self, node: str, *ids: str) -> None:
        await asyncio.gather(*[self.at(node, Delete, id=id) for id in ids])

    def alive(self, node: str) -> int:
        return sum(partition.memories for partition in self.nodes[node].replica.partitions.values())

    def tombstones(self) -> int:
        return sum(p.tombstones for node in self.nodes.values() for p in node.replica.partitions.values())

    def vectors(self, node: str) -> dict[int, dict[str, int]]:
        return self.nodes[node].replica.durable

    def level(self) -> bool:
        """Has every node what every other has?"""
        return all(self.vectors(node) == self.vectors(self.ids[0]) for node in self.nodes)

    def up(self) -> bool:
        return all(node.state == "up" for node in self.nodes.values())

    async def close(self) -> None:
        if self.session is not None:
            await self.session.close()
        await self.stop(*self.nodes)
        await self.transport.close()


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(SECONDS_MAX):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"not within {SECONDS_MAX:g} s: {what}")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget a deletion as soon as every node has it, and do everything a little more often."""
    monkeypatch.setattr(replication, "TOMBSTONE_SECONDS_MIN", 0)
    monkeypatch.setattr(replication, "COLLECT_SECONDS", 0.2)
    monkeypatch.setattr(replication, "ANNOUNCE_SECONDS", 0.2)
    monkeypatch.setattr(flusher, "FLUSH_SECONDS", 0.2)
    monkeypatch.setattr(identity, "HANDSHAKE_SECONDS_MAX", 10.0)  # all are there: it ends long before


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """`await start("a", "b", "c")`: a cluster with these nodes."""
    clusters: list[Cluster] = []

    async def started(*ids: str) -> Cluster:
        clusters.append(Cluster(tmp_path, ids))
        await clusters[-1].start(*ids)
        return clusters[-1]

    yield started
    for cluster in clusters:
        await cluster.close()


GONE = tuple(f"gone-{n}" for n in range(20))
STAYS = tuple(f"stays-{n}" for n in range(20))


async def forget_behind_a_copy(cluster: Cluster) -> None:
    """Keep a copy of a's disk, delete GONE, and wait until nobody remembers it; a is stopped then, on its old disk."""
    await cluster.store("a", *GONE, *STAYS)
    await until(cluster.level, "all nodes have everything")
    await cluster.stop("a")
    cluster.copy("a", "copy")
    await cluster.start("a")
    await cluster.delete("b", *GONE)
    await until(lambda: cluster.level() and cluster.tombstones() == 0, "every deletion is forgotten")
    await cluster.stop("a")
    cluster.roll_back("a", "copy")


async def assert_only_what_stays(cluster: Cluster, *more: str) -> None:
    await until(lambda: cluster.up() and cluster.level(), "all nodes are up and level")
    for node in cluster.nodes:
        assert cluster.alive(node) == len(STAYS) + len(more)
        for id in GONE:
            assert not (await cluster.at(node, Get, id=id)).memory, f"{id} came back at {node}"
        for id in (*STAYS, *more):
            assert (await cluster.at(node, Get, id=id)).memory, f"{id} is missing at {node}"


async def test_what_was_deleted_and_forgotten_does_not_come_back_with_an_old_disk(start: Any) -> None:
    cluster = await start("a", "b", "c")
    await forget_behind_a_copy(cluster)
    await cluster.start("a")
    await assert_only_what_stays(cluster)
    counts = cluster.nodes["a"].replication.counts
    assert counts["whole_syncs"] == PARTITIONS
    await cluster.store("a", "new")
    await cluster.stop("a")
    await cluster.start("a")
    await assert_only_what_stays(cluster, "new")
    assert cluster.nodes["a"].replication.counts["whole_syncs"] == 0, "once was enough"


async def test_a_crash_in_the_middle_of_comparing_goes_on_where_it_was(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await start("a", "b", "c")
    await forget_behind_a_copy(cluster)
    monkeypatch.setattr(identity, "SAVE_SECONDS", 0.0)
    compare = pulling.Pulling.compare
    compared: list[int] = []

    async def compare_some(self: pulling.Pulling, number: int, source: str) -> bool:
        if len(compared) == PARTITIONS // 2:
            await asyncio.Event().wait()
        compared.append(number)
        return await compare(self, number, source)

    with monkeypatch.context() as stuck:
        stuck.setattr(pulling.Pulling, "compare", compare_some)
        await cluster.start("a")
        node = cluster.nodes["a"]
        await until(lambda: len(node.engine.checkpoint.extra.get("to_compare", ())) == PARTITIONS // 2, "half of it")
        name = node.replica.actor
        await assert_it_sends_agents_elsewhere(cluster, "a")
        await cluster.crash("a")
    await cluster.start("a")
    await assert_only_what_stays(cluster)
    node = cluster.nodes["a"]
    assert node.replica.actor == name, "it knew who it is"
    assert node.replication.counts["whole_syncs"] == PARTITIONS // 2
    assert "to_compare" not in node.engine.checkpoint.extra


async def assert_it_sends_agents_elsewhere(cluster: Cluster, id: str) -> None:
    node = cluster.nodes[id]
    assert node.state == "starting"
    assert b"compares its partitions" in bytes(await node.status())
    refused = await cluster.subscribe(id)
    await until(lambda: any("compares its partitions" in problem for problem in refused), "no feed is opened there")
    asked = [
        cluster.at(id, Get, id=GONE[0]),
        cluster.at(id, Store, id="x", content="x"),
        cluster.at(id, Delete, id="1"),
    ]
    for answer in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(answer, SpineError) and "compares its partitions" in str(answer)
    assert "x" not in node.store.dirty
    request = encode(SyncRequest(partition=0, have={}))
    with pytest.raises(TimeoutError):  # it may have what is forgotten everywhere else
        await cluster.transport.request(node.subjects.sync(id), request, 0.3)
    others = [other for other in cluster.ids if other != id]
    assert await cluster.transport.request(node.subjects.sync(others[0]), request, 5.0)
    assert cluster.session is not None
    operation = Store(i=cluster.session.number(), id=STAYS[0], content=STAYS[0])
    await cluster.session.run(operation, (id, *others), timeout=10.0)


async def test_a_node_that_finds_out_late_stops_serving_until_it_has_compared(
    start: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At its start it could reach nobody, and has gone on under a new name."""
    cluster = await start("a", "b", "c")
    await forget_behind_a_copy(cluster)
    for other in ("b", "c"):
        cluster.nodes[other].transport.cut = True
    with monkeypatch.context() as short:
        short.setattr(identity, "HANDSHAKE_SECONDS_MAX", 0.5)
        await cluster.start("a")
    node = cluster.nodes["a"]
    assert node.state == "up", "it can't know"
    await cluster.store("a", "new")
    assert (await cluster.at("a", Get, id=GONE[0])).memory
    dismissed = await cluster.subscribe("a")
    await until(lambda: len(node.feeds.feeds) == 1, "the feed is open")
    with caplog.at_level(logging.WARNING, logger=identity.log.name):
        for other in ("b", "c"):
            cluster.nodes[other].transport.cut = False
        await until(lambda: "compares its partitions" in caplog.text, "a finds out")
        await assert_only_what_stays(cluster, "new")
    assert node.replication.counts["whole_syncs"] >= PARTITIONS
    assert ["compares its partitions" in problem for problem in dismissed] == [True]


async def test_where_all_were_rolled_back_they_go_on_after_a_while(
    start: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each has what the other lost, so none can be believed."""
    monkeypatch.setattr(identity, "COMPARE_SECONDS_MAX", 2.0)
    cluster = await start("a", "b")
    await cluster.store("a", "1")
    await until(cluster.level, "both have 1")
    await cluster.stop("a", "b")
    for node in ("a", "b"):
        cluster.copy(node, f"{node}-before")
    for writer, other in (("a", "b"), ("b", "a")):  # two futures of the same past
        await cluster.start("a", "b")
        await cluster.store(writer, f"by-{writer}")
        await until(lambda: cluster.level() and cluster.alive("a") == 2, "both have it")
        await cluster.stop("a", "b")
        cluster.copy(other, f"{other}-after-{writer}")
        for node in ("a", "b"):
            cluster.roll_back(node, f"{node}-before")
    cluster.roll_back("a", "a-after-b")
    cluster.roll_back("b", "b-after-a")
    monkeypatch.setattr(identity, "HANDSHAKE_SECONDS_MAX", 1.0)  # who was rolled back itself does not answer
    with caplog.at_level(logging.WARNING, logger=identity.log.name):
        await cluster.start("a", "b")
        assert [cluster.nodes[node].state for node in ("a", "b")] == ["starting", "starting"]
        await until(cluster.up, "they go on")
    assert "no peer could be compared with" in caplog.text
    await until(lambda: cluster.level() and cluster.alive("a") == 3, "each has all that is left")
    await cluster.store("a", "new")
    assert any(node.replication.counts["partitions_not_compared"] for node in cluster.nodes.values())


async def test_a_node_that_lost_its_disk_has_nothing_to_compare(start: Any) -> None:
    cluster = await start("a", "b", "c")
    await cluster.store("a", *STAYS)
    await until(cluster.level, "all nodes have everything")
    await cluster.stop("a")
    shutil.rmtree(cluster.folder / "a")
    await cluster.start("a")
    assert cluster.nodes["a"].state == "up"
    await assert_only_what_stays(cluster)
    assert cluster.nodes["a"].replication.counts["whole_syncs"] == 0


async def test_a_copy_of_another_nodes_folder_is_refused_and_not_touched(start: Any) -> None:
    cluster = await start("a", "b", "c")
    await cluster.store("a", *STAYS)
    await until(cluster.level, "all nodes have everything")
    await cluster.stop("a", "b")
    cluster.copy("b", "copy")
    cluster.roll_back("a", "copy")
    engine = SqliteEngine.open(cluster.folder / "a")
    before = engine.checkpoint
    with pytest.raises(ConfigError, match="belongs to node 'b', the configuration says 'a'"):
        Node("a", cluster._hello("a"), engine, Wire(cluster.transport))
    engine.close()
    engine = SqliteEngine.open(cluster.folder / "a")
    assert engine.checkpoint == before
    engine.close()
    shutil.rmtree(cluster.folder / "a")
    await cluster.start("a", "b")
    await assert_only_what_stays(cluster)


async def test_what_the_configuration_limits_is_limited(start: Any) -> None:
    cluster = await start("a")
    engine = SqliteEngine.open(":memory:")
    limits = LimitsConfig(clock_drift_milliseconds=70, cache_bytes=123, replica_retirement=60, tombstone_seconds=0.5)
    node = Node("a", cluster._hello("a"), engine, Wire(cluster.transport), limits=limits)
    assert (node.replica.drift, node.replication.clocks.drift, node.store.cache_bytes) == (70, 70, 123)
    assert (node.replica.retirement.seconds, node.replication.tombstone_seconds) == (60, 0.5)
    engine.close()


async def test_a_node_that_was_killed_keeps_its_name_and_compares_nothing(start: Any) -> None:
    cluster = await start("a", "b", "c")
    await cluster.store("a", *STAYS)
    name = cluster.nodes["a"].replica.actor
    await cluster.crash("a")
    await cluster.start("a")
    assert (cluster.nodes["a"].state, cluster.nodes["a"].replica.actor) == ("up", name)
    await assert_only_what_stays(cluster)
    assert cluster.nodes["a"].replication.counts["whole_syncs"] == 0
