"""Strong operations of real nodes: of agents that claim at once one wins, nothing that was appended is lost, a read is
never older than what was acknowledged, and without a majority it is said at once."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from crdt_spine import InvalidInput, QuorumFailed, Spine, VersionConflict
from crdt_spine.core.messages import Request, Store, encode
from crdt_spine.core.placement import partition_of
from crdt_spine.errors import SpineError
from crdt_spine.reshaping import Aim, propose
from tests.conftest import free_port

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("strong"),
    pytest.mark.timeout(240),
]

StartCluster = Callable[..., Awaitable[Any]]


async def claimed(spine: Spine, agent: str, id: str) -> bool:
    """Read, and take it if it is free: was it this agent's?"""
    memory = await spine.get(id, consistency="strong")
    assert memory is not None
    if memory.metadata.get("owner") is not None:
        return False
    try:
        await spine.update(id, metadata={"owner": agent}, if_version=memory.version)
    except VersionConflict:
        return False
    return True


async def appended(spine: Spine, id: str, line: str) -> None:
    """Read, add a line, write; again where somebody else was faster."""
    while True:
        memory = await spine.get(id, consistency="strong")
        assert memory is not None
        try:
            await spine.update(id, content=f"{memory.content}\n{line}", if_version=memory.version)
            return
        except VersionConflict:
            await asyncio.sleep(0)


async def test_an_embedded_node_does_them_too(tmp_path: Path) -> None:
    path = tmp_path / "memories.db"
    async with Spine.open(path, agent="one", consistency="strong") as spine:
        memory = await spine.store("text", id="m", tags=["a"])
        assert await spine.get("m") == memory
        changed = await spine.update("m", add_tags=["b"], if_version=memory.version)
        with pytest.raises(VersionConflict):
            await spine.update("m", content="x", if_version=memory.version)
        assert await spine.get("nobody's") is None
        assert [one.id for one in (await spine.query(tags=["b"])).memories] == ["m"]
        with pytest.raises(InvalidInput, match="if_version"):
            spine.document("m")
    async with Spine.open(path, agent="one", consistency="strong") as spine:
        assert await spine.get("m") == changed, "reading it in another term changes nothing that is shown"
        assert (await spine.update("m", content="new", if_version=changed.version)).content == "new"
        assert await spine.delete("m")
        assert not await spine.delete("m")
        assert await spine.get("m") is None


async def test_of_twenty_agents_that_claim_a_task_one_wins(cluster: Any) -> None:
    spines = [cluster.spine(f"agent-{n}", timeout=30.0) for n in range(20)]
    for spine in spines:
        await spine.__aenter__()
    try:
        for number in range(3):
            id = f"task-{number}"
            await spines[number].store("to do", id=id)
            won = await asyncio.gather(*[claimed(spine, spine.agent, id) for spine in spines])
            assert sum(won) == 1
            winner = spines[won.index(True)].agent
            for spine in spines[:5]:
                memory = await spine.get(id, consistency="strong")
                assert memory is not None and memory.metadata == {"owner": winner}
        await spines[0].store("lines:", id="log")
        await asyncio.gather(*[appended(spine, "log", spine.agent) for spine in spines])
        log = await spines[7].get("log", consistency="strong")
        assert log is not None
        assert sorted(log.content.split("\n")[1:]) == sorted(spine.agent for spine in spines)
    finally:
        await asyncio.gather(*[spine.close() for spine in spines])


async def test_a_strong_read_is_never_older_than_what_was_acknowledged_elsewhere(cluster: Any) -> None:
    async with cluster.spine("writer", timeout=30.0) as writer, cluster.spine("reader", timeout=30.0) as reader:
        ids = [f"fresh-{n}" for n in range(5)]
        for number in range(8):
            for id in ids:
                await writer.store(f"{number}", id=id, consistency="strong")
                read = await reader.get(id, consistency="strong")
                assert read is not None and read.content == f"{number}"
        # What a write quorum acknowledged is seen as well, whoever coordinated it.
        for number, id in enumerate(ids):
            node = cluster.ids[number % 3]
            await cluster.run_at(node, Store, id=id, content="weaker", tags=("w",))
            read = await reader.get(id, consistency="strong")
            assert read is not None and read.content == "weaker"
        page = await reader.query(tags=["w"], consistency="strong")
        assert {memory.id for memory in page.memories} == set(ids)


async def test_a_retry_is_applied_once(cluster: Any) -> None:
    """The same operation, sent again as a session does that has heard nothing."""
    async with cluster.spine("repeater", timeout=30.0) as spine:
        memory = await spine.store("0", id="once", consistency="strong")
        session = spine.session
        seen: list[bytes] = []
        send = session.transport.send

        def twice(subject: str, payload: bytes, reply: str = "") -> None:
            send(subject, payload, reply)
            if b'"do":"update"' in payload:
                seen.append(payload)
                again = decoded(payload)
                for node in cluster.ids:
                    send(session.subjects.rpc(node), encode(again), reply)

        session.transport.send = twice  # type: ignore[method-assign]
        try:
            changed = await spine.update("once", content="1", if_version=memory.version)
        finally:
            del session.transport.send  # type: ignore[attr-defined]
        assert seen and changed.content == "1"
        await asyncio.sleep(0.3)
        after = await spine.get("once", consistency="strong")
        assert after == changed


def decoded(payload: bytes) -> Request:
    request = msgspec.json.decode(payload, type=Request)
    return msgspec.structs.replace(request, retry=True)


async def test_nothing_is_lost_while_primaries_die(cluster: Any) -> None:
    """Counters that are only ever raised by compare-and-set; each that was acknowledged is there, in order."""
    ids = [f"counter-{n}" for n in range(4)]
    confirmed = dict.fromkeys(ids, 0)
    unknown = dict.fromkeys(ids, 0)
    going = True

    async with cluster.spine("counter", timeout=20.0) as spine:
        for id in ids:
            await spine.store("0", id=id, consistency="strong")

        async def count(id: str) -> None:
            while going:
                memory = await spine.get(id, consistency="strong")
                assert memory is not None and int(memory.content) >= confirmed[id], "a read went back"
                try:
                    await spine.update(id, content=str(int(memory.content) + 1), if_version=memory.version)
                    confirmed[id] += 1
                except VersionConflict:
                    raise AssertionError("nobody else writes it") from None
                except QuorumFailed as failed:
                    unknown[id] += failed.outcome == "unknown"

        async def count_on(id: str) -> None:
            while going:
                try:
                    await count(id)
                except SpineError as error:
                    assert not isinstance(error, VersionConflict)

        tasks = [asyncio.create_task(count_on(id)) for id in ids]
        try:
            for node in (cluster.ids[0], cluster.ids[1]):
                before = dict(confirmed)
                await cluster.kill(node)
                async with asyncio.timeout(75):
                    while any(confirmed[id] < before[id] + 3 for id in ids):
                        await asyncio.sleep(0.05)
                        for task in tasks:
                            if task.done():
                                task.result()
                await cluster.bring_back(node)
        finally:  # else they would go on for ever, and never let anybody else run, once the spine is closed
            going = False
        await asyncio.gather(*tasks)
        for id in ids:
            memory = await spine.get(id, consistency="strong")
            assert memory is not None
            assert confirmed[id] <= int(memory.content) <= confirmed[id] + unknown[id]


async def test_without_a_majority_it_is_said_at_once(cluster: Any) -> None:
    async with cluster.spine("alone", timeout=60.0, consistency="strong") as spine:
        memory = await spine.store("here", id="alone", consistency="strong")
        stopped = [pid for node in cluster.ids[1:] if (pid := cluster.pid(node)) is not None]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            # The first one may have been asked of a node that stands still; then the one that is left has found out.
            for operation in (lambda: spine.get("alone", consistency="strong"), lambda: spine.delete("alone")):
                begun = time.monotonic()
                with pytest.raises(QuorumFailed) as failed:
                    await operation()
                assert time.monotonic() - begun < 30.0, "not only after the call's timeout"
                assert (failed.value.acks, failed.value.needed) == (1, 2)
                assert failed.value.missing == tuple(cluster.ids[1:])
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        assert await spine.get("alone", consistency="strong") == memory


async def test_fewer_replicas_than_nodes_and_while_partitions_move(start_cluster: StartCluster, tmp_path: Path) -> None:
    folder = tmp_path / "four"
    folder.mkdir()
    listed = [{"id": f"spine-{n}", "host": "127.0.0.1", "port": free_port()} for n in range(1, 5)]
    settings = {"name": "strong", "region": "local", "nodes": listed, "partitions": 8, "replication": {"factor": 3}}
    (folder / "cluster.yaml").write_text(yaml.safe_dump({"cluster": settings}))
    cluster = await start_cluster(nodes=4, folder=folder)
    async with cluster.spine("mover", timeout=30.0) as spine:
        ids = [f"m{n}" for n in range(16)]
        assert len({partition_of(id, 8) for id in ids}) > 4
        versions = {id: (await spine.store("0", id=id, consistency="strong")).version for id in ids}
        going = True
        counts = dict.fromkeys(ids, 0)

        async def count(id: str) -> None:
            while going:
                memory = await spine.update(id, content=str(counts[id] + 1), if_version=versions[id])
                versions[id], counts[id] = memory.version, counts[id] + 1
                read = await spine.get(id, consistency="strong")
                assert read is not None and read.content == str(counts[id])
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(count(id)) for id in ids]
        await propose(spine.session, Aim(kind="remove", goes="spine-4"))
        async with asyncio.timeout(60):
            while (await cluster.status("spine-1"))["cluster"]["change"] is not None:
                await asyncio.sleep(0.2)
                for task in tasks:
                    if task.done():
                        task.result()
        before = dict(counts)
        async with asyncio.timeout(20):
            while any(counts[id] < before[id] + 2 for id in ids):
                await asyncio.sleep(0.05)
        going = False
        await asyncio.gather(*tasks)
