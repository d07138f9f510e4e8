"""What a node was told of a lease, or wrote under one, it knows after it was killed, before it hears anything new."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from crdt_spine import FenceRejected, Spine
from crdt_spine.core.fences import Fence
from crdt_spine.supervisor import lock_service
from tests.conftest import RunningCluster

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("fences")]

Started = Callable[..., Awaitable[RunningCluster]]
TOLD_SECONDS = 1.0  # what is only told is durable some milliseconds after it was given


@pytest.mark.parametrize("writes", [True, False], ids=["written", "only told"])
async def test_a_former_holder_does_not_write_after_all_nodes_were_killed(start_cluster: Started, writes: bool) -> None:
    """It is paused before its write, and would not look at its lease again."""
    cluster = await start_cluster(nodes=1, services=(lock_service(),))
    async with cluster.spine("former") as former, cluster.spine("newest") as newest:
        await former.store("0", id="gate", consistency="strong")
        async with former.lock("gate", ttl=60) as lease:
            old = lease.token
        async with newest.lock("gate", ttl=60) as lease:
            assert lease.token > old
            if writes:
                await newest.update("gate", content="1", fence=lease)
            await asyncio.sleep(TOLD_SECONDS)
            await cluster.kill(*cluster.ids)
            await cluster.bring_back(*cluster.ids)
            for _ in range(3):
                with pytest.raises(FenceRejected):
                    await _late(former, old)
            after = await newest.get("gate", consistency="strong")
            assert after is not None and after.content == ("1" if writes else "0")
            await newest.update("gate", content="2", fence=lease)


async def _late(spine: Spine, token: int) -> None:
    """The write of who was paused after it had looked whether it still holds the lease."""
    await spine.update("gate", content="STALE", fence=Fence("gate", token))  # type: ignore[arg-type]
