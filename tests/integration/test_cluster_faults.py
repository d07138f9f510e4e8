"""Nodes and the broker die and return: what goes on meanwhile, what fails and how it says so."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
import uuid
from typing import Any

import msgspec
import pytest

from crdt_spine import ConnectionFailed, InvalidInput, Memory, QuorumFailed, Spine, SpineError
from crdt_spine.core.messages import Edit, Request, Response, Result, Store, encode
from crdt_spine.core.subjects import Subjects
from crdt_spine.limits import CONNECT_SECONDS_MAX
from crdt_spine.transport.base import Message
from crdt_spine.transport.nats import NatsTransport

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("cluster_faults")]

Cluster = Any
LATE_SECONDS_MAX = 10.0  # behind its time, on a busy machine


@pytest.fixture
def mark() -> str:
    """A tag that nobody else uses."""
    return f"mark-{uuid.uuid4().hex}"


async def works(spine: Spine, mark: str, seconds: float = 40.0) -> None:
    """Wait until a quorum takes writes of this spine again."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                await spine.store("works", tags=[mark])
                return
            except SpineError:
                await asyncio.sleep(0.1)


# -- two of three nodes ----------------------------------------------------------------------------------------------


async def test_with_one_node_of_three_only_what_needs_a_quorum_fails(cluster: Cluster, mark: str) -> None:
    async with cluster.spine(timeout=3.0) as spine:
        stored = await spine.store("before", id=mark, tags=[mark])
        await spine.wait_for(spine.token)
        await cluster.kill("spine-2", "spine-3")

        # At once: the node that is left can't know yet that it is alone. It takes the write and waits in vain.
        started = time.monotonic()
        with pytest.raises(QuorumFailed) as failed:
            await spine.store("lost?", id=f"{mark}-early", tags=[mark])
        assert time.monotonic() - started < 3.0 + LATE_SECONDS_MAX
        assert failed.value.outcome == "unknown"

        # Then it knows, and takes none: it says that nothing was done, and nothing was.
        async with asyncio.timeout(40):
            while any(peer["alive"] for peer in (await cluster.status("spine-1"))["peers"].values()):
                await asyncio.sleep(0.1)
        for attempt in (
            spine.store("refused", id=f"{mark}-late"), spine.update(mark, content="refused"), spine.delete(mark),
        ):  # fmt: skip
            started = time.monotonic()
            with pytest.raises(QuorumFailed, match="quorum: node spine-1 reaches 1 of the 2") as failed:
                await attempt
            assert 2.5 < time.monotonic() - started < 3.0 + LATE_SECONDS_MAX
            assert (failed.value.outcome, failed.value.acks, failed.value.needed) == ("not applied", 1, 2)
            assert failed.value.missing == ("spine-2", "spine-3")
        assert await spine.get(f"{mark}-late") is None

        # Reading goes on, and so does what is content with one replica.
        assert await spine.get(mark) == stored
        assert stored in (await spine.query(tags=[mark])).memories
        one = await spine.store("alone", id=f"{mark}-alone", tags=[mark], consistency="eventual")
        assert await spine.get(one.id) == one
        await spine.update(one.id, content="still alone", consistency="eventual")
        async with spine.subscribe(tags=[mark]) as updates:
            new = await spine.store("told", tags=[mark], consistency="eventual")
            async with asyncio.timeout(20):
                assert (await anext(updates)).memory == new

        # They return, and all is as ever, without anybody doing anything; what was written alone reaches them.
        await cluster.bring_back("spine-2", "spine-3")
        await works(spine, mark)
        assert (await spine.update(mark, content="after")).content == "after"
        async with asyncio.timeout(40):
            while any([(await cluster.get_at(node, one.id)) is None for node in cluster.ids]):
                await asyncio.sleep(0.1)
        for node in cluster.ids:
            assert await cluster.get_at(node, f"{mark}-late") is None


async def test_a_write_that_waits_for_its_quorum_is_done_when_a_node_returns(cluster: Cluster, mark: str) -> None:
    async with cluster.spine(timeout=60.0) as spine:
        await cluster.kill("spine-1", "spine-3")
        writing = [asyncio.create_task(spine.store(f"{n}", id=f"{mark}-{n}")) for n in range(50)]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in writing)
        await cluster.bring_back("spine-3")
        async with asyncio.timeout(40):
            stored = await asyncio.gather(*writing)
        await cluster.bring_back("spine-1")
        for memory in stored:
            assert await spine.get(memory.id) == memory
        assert await cluster.contents_at("spine-2", [m.id for m in stored]) == {m.id: m.content for m in stored}


async def test_all_nodes_gone_is_said_and_their_return_is_noticed(cluster: Cluster, mark: str) -> None:
    async with cluster.spine(timeout=1.5) as spine:
        stored = await spine.store("x", id=mark)
        await cluster.kill(*cluster.ids)
        started = time.monotonic()
        with pytest.raises(ConnectionFailed, match=r"no replica answered within 1\.5 s"):
            await spine.get(mark)
        with pytest.raises(SpineError) as failed:
            await spine.store("y")
        # "Unknown" where the time is over before the broker has said of the last attempt that nobody was there.
        assert isinstance(failed.value, ConnectionFailed | QuorumFailed)
        assert time.monotonic() - started < 2 * 1.5 + LATE_SECONDS_MAX
        with pytest.raises(ConnectionFailed, match=cluster.url.removeprefix("nats://")):
            await cluster.spine().__aenter__()
        waiting = asyncio.create_task(spine.get(mark))
        await cluster.bring_back(*cluster.ids)
        await asyncio.gather(waiting, return_exceptions=True)
        await works(spine, mark)
        assert (await spine.get(mark)) == stored


# -- the broker ------------------------------------------------------------------------------------------------------


async def test_calls_wait_for_a_broker_that_comes_back(cluster: Cluster, mark: str) -> None:
    async with cluster.spine(timeout=30.0) as spine, cluster.spine("idle", timeout=30.0) as idle:
        stored = await spine.store("before", id=mark, tags=[mark])
        for round in range(2):
            cluster.kill_broker()
            assert await spine.get(mark) == stored
            many = await spine.store_many({"content": f"{round} {n}", "tags": [mark]} for n in range(100))
            assert len({memory.id for memory in many}) == 100
        assert await idle.get(mark) == stored
        memories = (await spine.query(tags=[mark], limit=1000)).memories
        assert len(memories) == 201, "an operation that was repeated was applied once"
        async with asyncio.timeout(40):
            for node in cluster.ids:
                while None in (await cluster.contents_at(node, [memory.id for memory in memories])).values():
                    await asyncio.sleep(0.1)


async def test_a_broker_that_stays_away_is_said_within_the_timeout(start_cluster: Any, mark: str) -> None:
    cluster = await start_cluster(nodes=1)
    async with cluster.spine(timeout=1.0) as spine:
        await spine.store("x", id=mark)
        await cluster.supervisor.stop()
        for attempt in (spine.get(mark), spine.store("y"), spine.query(), spine.delete(mark)):
            started = time.monotonic()
            with pytest.raises(ConnectionFailed, match="broker is not connected"):
                await attempt
            assert time.monotonic() - started < 1.0 + LATE_SECONDS_MAX
        report = await spine.status()
        assert [node["state"] for node in report["nodes"]] == ["down"]


async def test_connecting_to_nothing_fails_within_five_seconds_and_names_the_address() -> None:
    assert CONNECT_SECONDS_MAX < 5
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        port = silent.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            closed = probe.getsockname()[1]

        async def refused(port: int) -> None:
            started = time.monotonic()
            with pytest.raises(ConnectionFailed, match=f"127.0.0.1:{port}") as failed:
                await Spine.connect(f"nats://bob:secret@127.0.0.1:{port}", agent="ada").__aenter__()
            assert time.monotonic() - started < CONNECT_SECONDS_MAX + LATE_SECONDS_MAX
            assert "secret" not in str(failed.value)

        await asyncio.gather(refused(port), refused(closed))


async def test_a_broker_without_nodes_is_told_apart_from_no_broker(broker: Any) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectionFailed, match="no node") as failed:
        await Spine.connect(broker.url, agent="ada").__aenter__()
    assert time.monotonic() - started < CONNECT_SECONDS_MAX + LATE_SECONDS_MAX
    assert str(broker.port) in str(failed.value)


@pytest.mark.parametrize("url", [None, 5, "", "localhost", "http://127.0.0.1:4222", "nats://", "nats://h:99999999"])
async def test_what_is_no_address_is_refused_at_once(url: Any) -> None:
    with pytest.raises(InvalidInput, match="url"):
        Spine.connect(url, agent="ada")


# -- retries ---------------------------------------------------------------------------------------------------------


async def test_a_retry_is_applied_once_whoever_takes_it_and_whoever_was_restarted(cluster: Cluster, mark: str) -> None:
    """The same operation to every node, one after the other; then to all of them again, after all were killed."""
    transport = await NatsTransport.connect(cluster.url, "retries")
    heard: asyncio.Queue[Message] = asyncio.Queue()
    await transport.subscribe(f"{mark}.>", heard.put_nowait)
    subjects = Subjects("spine")

    async def send(node: str, operation: Store | Edit, retry: bool) -> Result:
        request = Request(session=mark, agent="tester", operations=[operation], retry=retry)
        async with asyncio.timeout(30):
            while True:
                transport.send(subjects.rpc(node), encode(request), f"{mark}.answers.1")
                with contextlib.suppress(TimeoutError):
                    message = await asyncio.wait_for(heard.get(), 5)
                    result = msgspec.json.decode(message.payload, type=Response).results[0]
                    if result.error not in ("Busy", "Behind"):
                        return result
                await asyncio.sleep(0.1)

    try:
        store, edit = Store(i=1, id=mark, content="x", acks=3), Edit(i=2, id=mark, content="y", add=("t",), acks=3)
        stored = await send("spine-1", store, False)
        edited = await send("spine-1", edit, False)
        once = msgspec.json.decode(edited.memory, type=Memory)
        assert once.content == "y" and once.version != stored.version
        for node in cluster.ids:
            assert (await send(node, store, True)).error is None
            again = await send(node, edit, True)
            assert msgspec.json.decode(again.memory, type=Memory) == once
        await cluster.kill(*cluster.ids)
        await cluster.bring_back(*cluster.ids)
        for node in cluster.ids:
            assert (await send(node, store, True)).error is None
            assert msgspec.json.decode((await send(node, edit, True)).memory, type=Memory) == once
            assert await cluster.get_at(node, mark) == once
    finally:
        await transport.close()
