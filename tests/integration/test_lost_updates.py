"""Many agents read a memory, append to it and write it back, all at once: with `if_version` nothing is lost; without,
what was overwritten is in a receipt."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from typing import Any

import pytest

from crdt_spine import Spine, VersionConflict

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("lost_updates"),
    pytest.mark.timeout(90),
]

Cluster = Any
AGENTS = 8
ROUNDS = 4


@pytest.fixture
def id() -> str:
    return f"list-{uuid.uuid4().hex}"


async def append(spine: Spine, id: str, word: str, *, checked: bool) -> None:
    """One turn of an agent: read, append, write; again where somebody else was faster, if that is checked."""
    while True:
        memory = await spine.get(id)
        assert memory is not None
        try:
            await spine.update(id, content=f"{memory.content} {word}", if_version=memory.version if checked else None)
            return
        except VersionConflict:
            continue


async def all_append(cluster: Cluster, id: str, *, checked: bool) -> set[str]:
    """Every agent appends some words, of its own session; the words."""

    async def one(number: int) -> list[str]:
        words = [f"{number}.{round}" for round in range(ROUNDS)]
        async with cluster.spine(f"agent-{number}", timeout=30.0) as spine:
            for word in words:
                await append(spine, id, word, checked=checked)
        return words

    async with cluster.spine("founder") as founder:
        await founder.store("list:", id=id)
        await founder.wait_for(founder.token)
        return {word for words in await asyncio.gather(*map(one, range(AGENTS))) for word in words}


async def test_with_if_version_every_append_is_there(cluster: Cluster, id: str) -> None:
    words = await all_append(cluster, id, checked=True)
    async with cluster.spine() as spine:
        memory = await spine.get(id, consistency="causal")
        assert memory is not None
        assert sorted(memory.content.split()[1:]) == sorted(words), "each once"
        assert await spine.conflicts(id) == []


async def test_without_it_a_receipt_has_what_was_overwritten(cluster: Cluster, id: str) -> None:
    words = await all_append(cluster, id, checked=False)
    async with cluster.spine() as spine:
        async with asyncio.timeout(30):  # until all replicas have everything
            while len({(await cluster.get_at(node, id)).version for node in cluster.ids}) > 1:
                await asyncio.sleep(0.05)
        memory = await spine.get(id)
        assert memory is not None
        receipts = await spine.conflicts(id)
        kept = set(memory.content.split()[1:])
        assert kept < words, "agents do overwrite each other"
        overwritten = {word for receipt in receipts for word in receipt.lost.split()[1:]}
        assert kept | overwritten == words, "what is not in the memory is in a receipt"
        assert all(receipt.field == "content" and receipt.lost_agent != receipt.kept_agent for receipt in receipts)


async def test_who_writes_again_without_reading_overwrites_with_a_receipt(cluster: Cluster, id: str) -> None:
    """What others wrote since an agent's own write was acknowledged, it has not seen, though its node has it."""
    async with cluster.spine("ada") as ada, cluster.spine("ben") as ben:
        await ada.store("ada's", id=id)
        await ben.wait_for(ada.token)
        for n in range(7):
            await asyncio.gather(ada.update(id, content=f"ada's {n}"), ben.update(id, content=f"ben's {n}"))
        await ada.wait_for(ben.token)
        written = [memory.content for memory in reversed(await ada.history(id))][1:]
        assert len(written) == 14
        unseen = {one for one, next in itertools.pairwise(written) if one[:3] != next[:3]}
        lost = {receipt.lost for receipt in await ada.conflicts(id)}
        assert unseen <= lost, "neither has read anything of the other one"
