"""What goes on with one of three nodes dead, and with two: everything, and what needs no quorum. Who returns answers
what asks for a token only once it is level.

`test_cluster_faults.py` has the moments in between; here each state is held on to, and everything is tried in it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable
from typing import Any

import pytest

from crdt_spine import QuorumFailed, Spine, SpineError
from crdt_spine.core.messages import Get

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("degradation")]

Cluster = Any
SOME = 24  # memories: every node coordinates some of them


@pytest.fixture
def mark() -> str:
    """A tag that nobody else uses."""
    return f"mark-{uuid.uuid4().hex[:8]}"


async def until_alone(cluster: Cluster, node: str) -> None:
    """Until it knows that it hears nobody."""
    async with asyncio.timeout(40):
        while any(peer["alive"] for peer in (await cluster.status(node))["peers"].values()):
            await asyncio.sleep(0.1)


async def refused(attempt: Awaitable[Any]) -> QuorumFailed:
    """How a write fails that can't have its quorum; it must say so, and soon."""
    started = time.monotonic()
    with pytest.raises(QuorumFailed) as failed:
        await attempt
    assert time.monotonic() - started < 20
    return failed.value


async def everything(spine: Spine, mark: str) -> None:
    """Every operation at quorum, on memories of all coordinators."""
    stored = await spine.store_many(
        [{"content": f"{n}", "id": f"{mark}-{n}", "tags": [mark], "metadata": {"n": n}} for n in range(SOME)]
    )
    for n, memory in enumerate(stored):
        assert await spine.get(memory.id) == memory
        changed = await spine.update(memory.id, content=f"{n} changed", add_tags=["changed"], metadata={"n": None})
        assert (changed.content, changed.metadata) == (f"{n} changed", {})
    for level in ("eventual", "read-your-writes", "causal"):
        memory = await spine.store(level, tags=[mark], consistency=level)
        found = await spine.query(tags=[mark], limit=1000)
        assert memory.id in {one.id for one in found.memories}
    assert await spine.delete(stored[0].id)
    assert await spine.get(stored[0].id) is None
    assert {one.id for one in (await spine.query(tags=["changed", mark], limit=1000)).memories} == {
        one.id for one in stored[1:]
    }
    thread = spine.thread(f"{mark}-thread")
    for word in ("question", "answer"):
        await thread.append(word)
    assert [entry.content for entry in await thread.read()] == ["question", "answer"]
    async with spine.document(f"{mark}-document") as doc:
        import pycrdt

        doc.get("content", type=pycrdt.Text).insert(0, "together")
    document = await spine.get(f"{mark}-document")
    assert document is not None
    assert document.content == "together"
    assert (await spine.history(stored[1].id))[0].content == "1 changed"
    async with spine.subscribe(tags=[mark]) as updates:
        told = await spine.store("news", tags=[mark])
        async with asyncio.timeout(30):
            assert (await anext(updates)).memory == told


@pytest.mark.parametrize("dead", ["spine-1", "spine-3"])
async def test_with_one_of_three_dead_everything_goes_on(cluster: Cluster, mark: str, dead: str) -> None:
    async with cluster.spine("before") as before:
        await before.store("x", id=mark)
        await cluster.kill(dead)
        await everything(before, f"{mark}-a")  # a session that knew the node
        async with cluster.spine("after") as after:
            await everything(after, f"{mark}-b")
            await after.wait_for(before.token)
    await cluster.bring_back(dead)


async def test_with_two_of_three_dead_what_needs_no_quorum_goes_on(cluster: Cluster, mark: str) -> None:
    async with cluster.spine("ada", timeout=2.0) as spine:
        stored = await spine.store_many([{"content": f"{n}", "tags": [mark]} for n in range(SOME)])
        await spine.wait_for(spine.token)
        await cluster.kill("spine-1", "spine-3")
        await until_alone(cluster, "spine-2")

        # Reading, with this session's token and without.
        for memory in stored:
            assert await spine.get(memory.id) == memory
            assert await spine.get(memory.id, consistency="eventual") == memory
        for level in ("eventual", "read-your-writes", "causal"):
            found = (await spine.query(tags=[mark], limit=1000, consistency=level)).memories
            assert {memory.id for memory in found} == {memory.id for memory in stored}
        async with cluster.spine("grace", token=spine.token) as other:
            assert await other.get(stored[0].id) == stored[0]

        # Eventual writes, and reading them with the token.
        alone = await spine.store("alone", tags=[mark], consistency="eventual")
        changed = await spine.update(stored[0].id, content="changed alone", consistency="eventual")
        assert await spine.delete(stored[1].id, consistency="eventual")
        assert await spine.get(alone.id) == alone
        assert await spine.get(stored[0].id) == changed
        assert await spine.get(stored[1].id) is None

        # Writes at quorum say that they are not done, who answered and who did not; and nothing is done.
        for attempt in (
            spine.store("refused", id=f"{mark}-refused"), spine.update(stored[2].id, content="refused"),
            spine.delete(stored[3].id), spine.store("refused", id=f"{mark}-causal", consistency="causal"),
        ):  # fmt: skip
            error = await refused(attempt)
            assert (error.outcome, error.needed) == ("not applied", 2)
            assert "spine-2 reaches 1 of the 2" in str(error)
        assert await spine.get(f"{mark}-refused") is None
        assert await spine.get(f"{mark}-causal") is None
        assert await spine.get(stored[2].id) == stored[2]
        assert await spine.get(stored[3].id) == stored[3]

        # One is enough for all of it to go on; what was written alone is everywhere in the end.
        await cluster.bring_back("spine-3")
        async with asyncio.timeout(40):
            while True:
                try:
                    await spine.store("works", tags=[mark])
                    break
                except SpineError:
                    await asyncio.sleep(0.1)
        await cluster.bring_back("spine-1")
        async with asyncio.timeout(40):
            while any([await cluster.get_at(node, alone.id) is None for node in cluster.ids]):
                await asyncio.sleep(0.1)
        for node in cluster.ids:
            assert await cluster.get_at(node, f"{mark}-refused") is None


async def test_who_returns_answers_what_asks_for_a_token_only_once_it_is_level(cluster: Cluster, mark: str) -> None:
    async with cluster.spine("ada") as spine:
        ids = [f"{mark}-{n}" for n in range(SOME)]
        await asyncio.gather(*[spine.store("old", id=id, tags=[mark]) for id in ids])
        await spine.wait_for(spine.token)
        await cluster.kill("spine-2")
        fresh = [id for n, id in enumerate(ids) if n % 2]
        await asyncio.gather(*[spine.update(id, content="new") for id in fresh])
        # Many more, so that it is behind for a while.
        await asyncio.gather(*[spine.store_many({"content": "x" * 2_000} for _ in range(100)) for _ in range(10)])
        coming = asyncio.create_task(cluster.bring_back("spine-2"))
        session = cluster._observer._live
        partitions = {id: session.layout.partition_of(id) for id in fresh}
        tokens = {number: dict(spine._live.vectors[number]) for number in partitions.values()}
        behind = level = 0
        async with asyncio.timeout(60):
            while level < 3:  # asked alone, again and again, from its first answer on
                for id in fresh[:6]:
                    number = partitions[id]
                    try:
                        result = await session.run(
                            Get(i=session.number(), id=id), ("spine-2",), (number,), use_token=False,
                            token={number: tokens[number]}, timeout=0.3,
                        )  # fmt: skip
                    except SpineError:
                        behind += 1
                        break
                    assert b'"new"' in bytes(result.memory), "it shows less than the token says"
                else:
                    level += 1
                # And whoever is not told where to ask never sees less, whoever answers.
                memory = await spine.get(fresh[level % len(fresh)])
                assert memory is not None
                assert memory.content == "new"
        await coming
        assert behind > 0, "it was asked before it was level, or there"
        # An eventual read is answered at once by whoever is there, and in the end as everybody else does.
        async with asyncio.timeout(40):
            while set((await cluster.contents_at("spine-2", fresh)).values()) != {"new"}:
                await asyncio.sleep(0.1)
