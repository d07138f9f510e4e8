"""A node that stood still finds old requests in its inbox. They must not beat what was written elsewhere since."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("late_writes")]

Cluster = Any
COUNT = 12  # each third of them has the node that stands still for its coordinator


async def everywhere(cluster: Cluster, expected: dict[str, str | None]) -> bool:
    return all([await cluster.contents_at(node, expected) == expected for node in cluster.ids])


async def late_writes(cluster: Cluster, node: str, expected: dict[str, str | None]) -> int:
    """How many writes the node turned away, once it has gone on, looked at all that was in its inbox, and all have
    what is expected."""
    async with asyncio.timeout(40):
        while (status := await cluster.status(node))["state"] != "up" or not await everywhere(cluster, expected):
            await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)  # whatever it made of what was there has spread
    return int(status["counts"].get("late_writes", 0))


async def test_what_was_overwritten_and_deleted_meanwhile_stays_so(cluster: Cluster) -> None:
    async with cluster.spine() as spine:
        kept, gone = [f"kept-{n}" for n in range(COUNT)], [f"gone-{n}" for n in range(COUNT)]
        await asyncio.gather(*[spine.store("first", id=id) for id in (*kept, *gone)])
        await spine.wait_for(spine.token)
        with cluster.stopped("spine-1"):
            async with asyncio.timeout(60):
                await asyncio.gather(*[spine.update(id, content="second") for id in kept])
                await asyncio.gather(*[spine.update(id, content="third") for id in kept])
                await asyncio.gather(*[spine.store("again", id=id) for id in gone])
                assert all(await asyncio.gather(*[spine.delete(id) for id in gone]))
        expected = dict.fromkeys(kept, "third") | dict.fromkeys(gone)
        late = await late_writes(cluster, "spine-1", expected)
        assert await everywhere(cluster, expected), "and it stays so"
        assert late > 0, "the node was asked while it stood still"
