"""A cluster whose reads are answered by two replicas, and whose memories lie with their agents: what cluster.yaml says
is in effect in real processes, also while some of them are dead or stopped."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from crdt_spine import QuorumFailed
from crdt_spine.core.messages import Get, Query, Request
from crdt_spine.core.placement import partition_of
from crdt_spine.core.strays import home
from crdt_spine.memory import Memory
from crdt_spine.transport.base import Message
from crdt_spine.transport.nats import NatsTransport
from tests.conftest import free_port

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("read_quorum"),
    pytest.mark.timeout(120),
]

StartCluster = Callable[..., Awaitable[Any]]


def folder_with(path: Path, nodes: int, **settings: Any) -> Path:
    """A folder as `spine up` makes it, but for these settings."""
    path.mkdir()
    listed = [{"id": f"spine-{n}", "host": "127.0.0.1", "port": free_port()} for n in range(1, nodes + 1)]
    cluster = {"name": "quorum", "region": "local", "nodes": listed, **settings}
    (path / "cluster.yaml").write_text(yaml.safe_dump({"cluster": cluster}))
    return path


async def test_reads_of_two_replicas(start_cluster: StartCluster, tmp_path: Path) -> None:
    replication = {"factor": 3, "write_quorum": 2, "read_quorum": 2}
    cluster = await start_cluster(nodes=3, folder=folder_with(tmp_path / "r2", 3, replication=replication))
    async with cluster.spine(timeout=20.0) as spine, cluster.spine(timeout=2.5) as hasty:
        assert spine.session.hello.read_quorum == 2
        stored = [await spine.store(f"{n}", id=f"m{n}") for n in range(20)]
        counts = [(await cluster.status(node))["counts"] for node in cluster.ids]
        for memory in stored:
            assert await spine.get(memory.id) == memory
        after = [(await cluster.status(node))["counts"] for node in cluster.ids]
        asked = sum(one.get("quorum_reads", 0) for one in after) - sum(one.get("quorum_reads", 0) for one in counts)
        assert asked >= 20
        assert await spine.get("m1", consistency="eventual") == stored[1]

        # A replica that was stopped is behind when it goes on; what it says is not what it alone has.
        pid = cluster.pid("spine-3")
        os.kill(pid, signal.SIGSTOP)
        try:
            new = {memory.id: f"new {memory.content}" for memory in stored}
            await asyncio.gather(*[spine.update(id, content=content) for id, content in new.items()])
        finally:
            os.kill(pid, signal.SIGCONT)
        shown = await asyncio.gather(*[cluster.run_at("spine-3", Get, id=id, reads=2) for id in new])
        assert [msgspec.json.decode(one.memory, type=Memory).content for one in shown] == list(new.values())

        # One dead: reads go on. Two: only those go on that need one replica.
        await cluster.kill("spine-1")
        for id, content in new.items():
            assert (await spine.get(id)).content == content
        await cluster.kill("spine-2")
        with pytest.raises(QuorumFailed, match="1 of 2 replicas answered the read of 'm0'") as failed:
            await hasty.get("m0")
        assert (failed.value.outcome, failed.value.acks, failed.value.needed) == ("not applied", 1, 2)
        assert failed.value.missing == ("spine-1", "spine-2")
        with pytest.raises(QuorumFailed, match="spine-1, spine-2") as failed:
            await hasty.store("too few")
        assert (failed.value.acks, failed.value.needed) == (1, 2)
        assert set(failed.value.missing) == {"spine-1", "spine-2"}
        assert (await spine.get("m0", consistency="eventual")).content == new["m0"]
        assert len((await spine.query(limit=1000)).memories) >= 20, "a read quorum is not for queries"
        await cluster.bring_back("spine-1", "spine-2")
        assert (await spine.get("m0")).content == new["m0"]


async def test_a_query_by_agent_asks_one_replica(start_cluster: StartCluster, tmp_path: Path) -> None:
    replication = {"factor": 2, "write_quorum": 2}
    folder = folder_with(tmp_path / "agent", 4, replication=replication, placement="agent", partitions=16)
    cluster = await start_cluster(nodes=4, folder=folder)
    watcher = await NatsTransport.connect(cluster.url, "watcher")
    asked: list[tuple[str, tuple[int, ...] | None]] = []

    def take(message: Message) -> None:
        operations = msgspec.json.decode(message.payload, type=Request).operations
        asked.extend((message.subject, query.partitions) for query in operations if isinstance(query, Query))

    await watcher.subscribe("spine.quorum.node.*.rpc", take)

    async def found(spine: Any, agent: str) -> set[str]:
        asked.clear()
        memories = (await spine.query(agent=agent, limit=1000)).memories
        async with asyncio.timeout(30):
            while not asked:
                await asyncio.sleep(0.01)
        return {memory.content for memory in memories}

    async with cluster.spine("ann") as ann, cluster.spine("bob") as bob:
        mine = await ann.store_many({"content": f"{n}", "tags": ["x"]} for n in range(30))
        await bob.store_many({"content": f"b{n}", "tags": ["x"]} for n in range(30))
        assert {partition_of(memory.id, 16) for memory in mine} == {home("ann", 16)}
        async with asyncio.timeout(40):  # until every node has heard of every partition
            while True:
                assert await found(bob, "ann") == {f"{n}" for n in range(30)}
                if {partitions for _, partitions in asked} == {(home("ann", 16),)}:
                    break
                await asyncio.sleep(0.1)
        for _ in range(3):
            assert await found(ann, "ann") == {f"{n}" for n in range(30)}
            assert {partitions for _, partitions in asked} == {(home("ann", 16),)}  # twice, if it was late
        own = next(f"own-{n}" for n in range(99) if partition_of(f"own-{n}", 16) != home("ann", 16))
        await ann.store("own", id=own)
        assert "own" in await found(ann, "ann")
        await cluster.kill("spine-1", "spine-2", "spine-3", "spine-4")
        await cluster.bring_back("spine-1", "spine-2", "spine-3", "spine-4")
        async with cluster.spine("eve") as eve:
            async with asyncio.timeout(40):
                while "own" not in await found(eve, "ann"):
                    await asyncio.sleep(0.1)
    await watcher.close()
