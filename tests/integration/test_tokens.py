"""Tokens between agents and processes: signed where there is a secret, refused with the reason where they are not ours,
and given up soon where nobody will ever have what they ask for."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from crdt_spine import InvalidInput, Spine, StaleToken
from crdt_spine.core.messages import Get, Hello, NodeInfo
from crdt_spine.node.node import Node
from crdt_spine.session import Session
from crdt_spine.storage.sqlite import SqliteEngine
from crdt_spine.transport.base import Disconnected, Handler, Message
from crdt_spine.transport.local import LocalSubscription, LocalTransport

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("tokens"),
    pytest.mark.timeout(120),
]

IDS = ("a", "b", "c")
SECRET = "a secret of at least sixteen bytes"
StartCluster = Callable[..., Awaitable[Any]]
RunScript = Callable[..., Awaitable[asyncio.subprocess.Process]]

# -- whose it is -----------------------------------------------------------------------------------------------------


async def test_tokens_are_signed_where_there_is_a_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "memories.db"
    monkeypatch.delenv("SPINE_TOKEN_SECRET", raising=False)
    async with Spine.open(file, agent="a", token_secret=SECRET) as spine:
        async with spine.subscribe() as updates:
            await spine.store("x")
            update = await anext(updates)
        for token in (spine.token, update.token):
            await spine.wait_for(token)
        forged = spine.token[:-1] + ("A" if spine.token[-1] != "A" else "Q")
        with pytest.raises(InvalidInput):
            await spine.wait_for(forged)
        session, signed = spine.session, spine.token
        session.token_secret = b""
        with pytest.raises(InvalidInput, match="signed: give the secret"):
            await spine.wait_for(signed)
        unsigned = spine.token
        session.token_secret = b"another secret, of another cluster"
        with pytest.raises(InvalidInput, match="altered, or was signed with another secret"):
            await spine.wait_for(signed)
        with pytest.raises(InvalidInput, match="only signed ones are taken"):
            await spine.wait_for(unsigned)
        assert SECRET not in repr(vars(spine)) + repr(spine)
    monkeypatch.setenv("SPINE_TOKEN_SECRET", SECRET)
    async with Spine.open(file, agent="a") as spine:
        assert spine.session.token_secret == SECRET.encode()
        with pytest.raises(InvalidInput, match="only signed ones"):
            spine.subscribe(token=unsigned)
    with pytest.raises(InvalidInput, match="only signed ones"):
        async with Spine.open(file, agent="a", token=unsigned):
            pass
    for bad in ("short", "", b"", 5, "x" * 2_000, "\ud800" * 20):
        with pytest.raises(InvalidInput, match="token_secret"):
            Spine.open(":memory:", agent="a", token_secret=bad)  # type: ignore[arg-type]
    monkeypatch.setenv("SPINE_TOKEN_SECRET", "short")
    with pytest.raises(InvalidInput, match="SPINE_TOKEN_SECRET"):
        Spine.connect("nats://127.0.0.1:1", agent="a")


# -- what nobody will ever have --------------------------------------------------------------------------------------


class Wire:
    """One node's end of the transport; what a `mute` one sends to other nodes is lost, and what they send to a `deaf`
    one."""

    connected = True

    def __init__(self, shared: LocalTransport) -> None:
        self.shared = shared
        self.payload_bytes_max = shared.payload_bytes_max
        self.mute = self.deaf = False

    async def subscribe(self, subject: str, handler: Handler) -> LocalSubscription:
        def take(message: Message) -> Any:
            return None if self.deaf and not subject.endswith(".rpc") else handler(message)

        return await self.shared.subscribe(subject, take)

    def send(self, subject: str, payload: bytes, reply: str = "") -> None:
        if not self.mute or subject.startswith("_INBOX.spine."):
            self.shared.send(subject, payload, reply)

    async def request(self, subject: str, payload: bytes, timeout: float) -> bytes:
        if self.mute or self.deaf:
            raise Disconnected
        return await self.shared.request(subject, payload, timeout)

    async def close(self) -> None:
        return None


class Cluster:
    """Three nodes in this process, without disks: one that is stopped loses everything."""

    def __init__(self, partitions: int = 2) -> None:
        self.partitions = partitions
        self.transport = LocalTransport()
        self.wires: dict[str, Wire] = {}
        self.nodes: dict[str, Node] = {}

    async def start(self, *ids: str) -> None:
        for id in ids:
            hello = Hello(
                cluster="c", region="r", node=id, state="up", nodes=[NodeInfo(id=one) for one in IDS],
                partitions=self.partitions, factor=3, write_quorum=2,
            )  # fmt: skip
            wire: Any = Wire(self.transport)
            self.wires[id] = wire
            self.nodes[id] = Node(id, hello, SqliteEngine.open(":memory:"), wire)
        await asyncio.gather(*[self.nodes[id].start() for id in ids])

    async def lose(self, id: str) -> None:
        await self.nodes.pop(id).stop()

    async def session(self) -> Session:
        return await Session.discover(self.transport, "agent")

    async def spine(self) -> Spine:
        async def opening() -> tuple[Session, Callable[[], Awaitable[None]]]:
            session = await self.session()
            return session, session.close

        return await Spine("agent", opening, None, None).__aenter__()

    async def close(self) -> None:
        await asyncio.gather(*[self.lose(id) for id in list(self.nodes)])
        await self.transport.close()


@pytest_asyncio.fixture(loop_scope="module")
async def nodes() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    await cluster.start(*IDS)
    yield cluster
    await cluster.close()


@pytest_asyncio.fixture(loop_scope="module")
async def wide() -> AsyncIterator[Cluster]:
    """The same with more partitions."""
    cluster = Cluster(partitions=16)
    await cluster.start(*IDS)
    yield cluster
    await cluster.close()


async def test_what_died_with_a_disk_is_stale_soon_and_the_session_goes_on(nodes: Cluster) -> None:
    spine, other = await nodes.spine(), await nodes.spine()
    spine.session.timeout = other.session.timeout = 60.0
    try:
        await spine.store("everywhere", id="m")
        await other.wait_for(spine.token)
        first = spine.session.routing.replicas[spine.session.layout.partition_of("m")][0]
        nodes.wires[first].mute = True
        await spine.update("m", content="on one disk", consistency="eventual")
        token, actor = spine.token, nodes.nodes[first].replica.actor
        await nodes.lose(first)

        # As long as it may come back with its disk, it is waited for.
        with pytest.raises(StaleToken, match=r"within 0\.5 s"):
            await other.wait_for(token, timeout=0.5)

        await nodes.start(first)  # with an empty one
        for call in (spine.get, other_way(other, token)):
            started = time.monotonic()
            with pytest.raises(StaleToken, match=f"of {actor} in partition .*goes on as r/{first}@") as stale:
                await call("m")
            assert time.monotonic() - started < 30, "the call's timeout is 60 s"
            assert "read again" in str(stale.value)
        memory = await spine.get("m")
        assert memory is not None and memory.content == "everywhere", "it was told, and goes on"
        assert (await spine.update("m", content="anew")).content == "anew"
        await other.wait_for(spine.token)
    finally:
        await spine.close()
        await other.close()


async def test_one_lost_disk_was_told_of_once_for_each_partition(wide: Cluster) -> None:
    """One dead token, and of a hundred calls every one that came to a new partition raised StaleToken."""
    spine, other = await wide.spine(), await wide.spine()
    try:
        ids = [f"m{k}" for k in range(100)]
        await asyncio.gather(*[spine.store("everywhere", id=id) for id in ids])
        whole = spine.token
        await other.wait_for(whole)
        lost = "a"
        wide.wires[lost].mute = True
        at_home = [id for id in ids if spine.session.routing.replicas[spine.session.layout.partition_of(id)][0] == lost]
        concerned = {spine.session.layout.partition_of(id) for id in at_home}
        assert len(concerned) > 2
        await asyncio.gather(*[spine.update(id, content="on one disk", consistency="eventual") for id in at_home])
        token, actor = spine.token, wide.nodes[lost].replica.actor
        await wide.lose(lost)
        await wide.start(lost)  # with an empty disk

        readers = {"gets": await wide.spine(), "queries": await wide.spine(), "stores": spine}
        for name, reader in readers.items():
            reader.session.timeout = 60.0
            reader.session.see(reader.session.token_vectors(token))
            told = 0
            for number, id in enumerate(at_home + ids[:20]):
                try:
                    if name == "gets":
                        memory = await reader.get(id)
                        assert memory is not None and memory.content == "everywhere"
                    elif name == "queries":
                        await reader.query(limit=1)
                    else:
                        await reader.store("anew", id=f"new-{number}")
                except StaleToken as stale:
                    assert actor in str(stale)
                    told += 1
            assert told == 1, name
            left = reader.session.vectors
            kept = reader.session.token_vectors(whole)
            for number, vector in kept.items():  # what others have of that actor is not left out
                assert left[number].get(actor, 0) >= vector.get(actor, 0), number
            await reader.close()
    finally:
        await spine.close()
        await other.close()


async def test_a_subscription_took_a_lost_token_over_into_the_session(wide: Cluster) -> None:
    """It raised nothing, delivered, and from then on reads of the session failed: what it had not reached was joined
    into the session's token with the first update."""
    spine, other = await wide.spine(), await wide.spine()
    try:
        await asyncio.gather(*[spine.store("everywhere", id=f"m{k}") for k in range(40)])
        whole = spine.session.token_vectors(spine.token)
        ended = "r/a@gone"
        token = spine.session.token_text({number: {**vector, ended: 7} for number, vector in whole.items()})
        updates = other.subscribe(token=token)
        with pytest.raises(StaleToken, match=f"of {ended} in partition"):
            async with updates:
                pass
        assert len((await other.query(limit=50)).memories) == 40, "the session is as it was"
        # What is lost is not in the subscription's token any more, and nothing else is missed.
        async with other.subscribe(token=updates.token) as again, asyncio.timeout(30):
            await spine.update("m7", content="after it")
            update = await anext(again)
            assert (update.memory.id, update.memory.content) == ("m7", "after it")
        assert not any(vector.get(ended) for vector in other.session.vectors.values())
        assert (await other.store("on it goes")).content
    finally:
        await spine.close()
        await other.close()


async def test_what_a_subscription_was_told_is_dead_and_did_not_come_back_with_each_update(wide: Cluster) -> None:
    """A disk is lost while a subscription is open that has told of what was on it alone: its session is told once."""
    spine, other = await wide.spine(), await wide.spine()
    try:
        await spine.store("everywhere", id="m0")
        number = spine.session.layout.partition_of("m0")
        first = spine.session.routing.replicas[number][0]
        await other.wait_for(spine.token)
        beside = next(f"b{k}" for k in range(200) if spine.session.layout.partition_of(f"b{k}") == number)
        async with other.subscribe() as updates, asyncio.timeout(60):
            wide.wires[first].mute = True
            feed = next(source.node for source in updates._sources.values() if number in source.partitions)
            actor = wide.nodes[first].replica.actor
            if feed != first:  # it tells of nothing that it has not got
                dead = {number: {**spine.session.vectors[number], actor: 99}}
                updates._positions.update(dead)
                other.session.see(dead)
            else:
                await spine.update("m0", content="on one disk", consistency="eventual")
                assert (await anext(updates)).memory.content == "on one disk"
            await wide.lose(first)
            await wide.start(first)
            with pytest.raises(StaleToken):
                await other.get("m0")
            writer = await wide.spine()
            for turn in range(3):
                await writer.store(f"after {turn}", id=beside)
                update = await anext(updates)
                while update.memory.id != beside or update.memory.content != f"after {turn}":
                    update = await anext(updates)
                assert await other.get("m0") is not None, "it was told already"
            await writer.close()
    finally:
        await spine.close()
        await other.close()


def other_way(spine: Spine, token: str) -> Callable[[str], Awaitable[object]]:
    """A spine that is given the token, and then writes."""

    async def call(id: str) -> object:
        with pytest.raises(StaleToken):
            await spine.wait_for(token, timeout=60.0)
        assert await spine.get(id) is not None, "what was not reached is not the session's"
        spine.session.see(spine.session.token_vectors(token))
        return await spine.update(id, content="never written")

    return call


async def test_what_was_read_is_in_the_token_and_waited_for(nodes: Cluster) -> None:
    """Not only what was written: ben reads what ada wrote, cal gets ben's token and asks a node that has none of it."""
    ada, ben, cal = [await nodes.spine() for _ in range(3)]
    try:
        number = ada.session.layout.partition_of("m")
        late = ada.session.routing.replicas[number][2]
        nodes.wires[late].deaf = True
        await ada.store("ada's", id="m")
        assert await ben.get("m") is not None, "from the node that took it"
        given = ben.session.token_vectors(ben.token)

        async def read(timeout: float, token: dict[int, dict[str, int]] | None) -> bytes:
            get = Get(i=cal.session.number(), id="m")
            found = await cal.session.run(get, (late,), (number,), use_token=False, token=token, timeout=timeout)
            return bytes(found.memory)

        assert await read(5, None) == b"", "as it is, at level eventual"
        with pytest.raises(StaleToken, match="no replica reached"):
            await read(2.5, given)
        reading = asyncio.create_task(read(20, given))
        await asyncio.sleep(0.2)
        assert not reading.done()
        nodes.wires[late].deaf = False
        assert b"ada's" in await reading, "it came, and the reader has waited"
        cal.session.see(given)
        memory = await cal.get("m", consistency="causal")
        assert memory is not None and memory.content == "ada's"
    finally:
        for spine in (ada, ben, cal):
            await spine.close()


# -- real processes --------------------------------------------------------------------------------------------------

READER = """
import asyncio, sys
from crdt_spine import Spine

async def main():
    while line := await asyncio.to_thread(sys.stdin.readline):
        n, token = line.split()
        async with Spine.connect(sys.argv[1], agent="reader", token=token, timeout=30) as spine:
            found = [await spine.get(f"counter-{k}") for k in range(4)]
            page = await spine.query(tags=["counter"])
            print(*[memory and memory.content for memory in found], len(page.memories), spine.token, flush=True)

asyncio.run(main())
"""


async def test_a_token_goes_to_another_process_and_back_while_nodes_die(start_cluster: StartCluster) -> None:
    cluster = await start_cluster(nodes=3)
    reader = await asyncio.create_subprocess_exec(
        sys.executable, "-c", READER, cluster.url, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert reader.stdin is not None and reader.stdout is not None
    try:
        async with cluster.spine("writer", timeout=30.0) as spine:
            for k in range(4):
                await spine.store("0", id=f"counter-{k}", tags=["counter"])
            for n in range(1, 13):
                if n in (3, 8):  # the node at which this session's partition is at home dies in the middle of a write
                    home = spine.session.routing.replicas[spine.session.layout.partition_of("counter-0")][0]
                    writing = [asyncio.create_task(spine.update(f"counter-{k}", content=str(n))) for k in range(4)]
                    await cluster.kill(home)
                    await asyncio.gather(*writing)
                else:
                    for k in range(4):
                        await spine.update(f"counter-{k}", content=str(n))
                reader.stdin.write(f"{n} {spine.token}\n".encode())
                line = (await asyncio.wait_for(reader.stdout.readline(), 40)).decode().split()
                assert line[:5] == [str(n)] * 4 + ["4"], "the other process sees what was written here, and no less"
                await spine.wait_for(line[5], timeout=20)
                if n in (5, 10):
                    await cluster.bring_back(home)
            reader.stdin.close()
            assert await asyncio.wait_for(reader.wait(), 20) == 0
    finally:
        if reader.returncode is None:
            reader.kill()
            await reader.wait()
