"""Who is alive and well, as the nodes of a real cluster say: one that hangs, one that dies, one that stops."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import nats
import pytest

from crdt_spine.core.messages import Reach, Request, Response, encode
from crdt_spine.core.subjects import Subjects

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("gossip")]

Cluster = Any


async def states(cluster: Cluster, at: str) -> dict[str, str]:
    """What one node believes of each."""
    gossip = (await cluster.status(at)).get("gossip") or {"nodes": {}}
    return {node: health["state"] for node, health in gossip["nodes"].items()}


async def until(what: Callable[[], Awaitable[bool]], seconds: float) -> float:
    """Wait for it; how long that took."""
    begun = time.monotonic()
    async with asyncio.timeout(seconds):
        while not await what():
            await asyncio.sleep(0.05)
    return time.monotonic() - begun


async def all_up(cluster: Cluster) -> bool:
    return all([set((await states(cluster, node)).values()) == {"up"} for node in cluster.ids])


async def down_for_agents(cluster: Cluster, node: str) -> tuple[str, ...]:
    """What a node's answers say of who is down."""
    client = await nats.connect(cluster.url)
    try:
        request = Request(session=uuid.uuid4().hex, agent="tester", operations=[Reach(i=1)])
        inbox = client.new_inbox()
        answers = await client.subscribe(inbox)
        await client.publish(Subjects("spine").rpc(node), encode(request), reply=f"{inbox}.1")
        message = await answers.next_msg(timeout=20)
        return msgspec.json.decode(message.data, type=Response).down
    finally:
        await client.close()


async def test_a_node_that_hangs_is_a_suspect_soon_and_up_when_it_goes_on(cluster: Cluster) -> None:
    await until(lambda: all_up(cluster), 40)
    assert await down_for_agents(cluster, "spine-1") == ()
    pid = cluster.pid("spine-3")
    os.kill(pid, signal.SIGSTOP)
    try:

        async def suspected() -> bool:
            said = [(await states(cluster, node)).get("spine-3") for node in ("spine-1", "spine-2")]
            return all(state in ("suspect", "down") for state in said)

        await until(suspected, 40)
        assert await down_for_agents(cluster, "spine-1") == ("spine-3",)
    finally:
        os.kill(pid, signal.SIGCONT)
    await until(lambda: all_up(cluster), 40)
    assert await down_for_agents(cluster, "spine-1") == ()
    assert cluster.pid("spine-3") == pid


async def test_a_killed_node_is_down_and_up_at_once_when_it_is_back(cluster: Cluster) -> None:
    await until(lambda: all_up(cluster), 40)
    await cluster.kill("spine-2")

    async def down() -> bool:
        return all([(await states(cluster, node)).get("spine-2") == "down" for node in ("spine-1", "spine-3")])

    await until(down, 40)
    assert await down_for_agents(cluster, "spine-3") == ("spine-2",)
    async with cluster.spine() as spine:
        await spine.store("meanwhile")
    await cluster.bring_back("spine-2")
    await until(lambda: all_up(cluster), 40)
    report = (await cluster.status("spine-1"))["gossip"]
    assert report["away"] == [] and report["refused"] == 0
    assert report["sent"] > 0 and report["bytes_sent"] / report["sent"] < 2_000
    others = [report["nodes"][node] for node in cluster.ids]
    shown = {"phi", "load", "waiting", "latency_milliseconds", "silent_seconds", "zone", "epoch", "digest"}
    assert all(shown <= health.keys() for health in others)


async def test_a_node_that_stops_is_not_asked_from_then_on(cluster: Cluster) -> None:
    await until(lambda: all_up(cluster), 40)
    cluster.supervisor.set_node_restart(False)
    os.kill(cluster.pid("spine-1"), signal.SIGTERM)
    try:

        async def known() -> bool:
            return await down_for_agents(cluster, "spine-2") == ("spine-1",)

        await until(known, 40)
        assert (await states(cluster, "spine-2"))["spine-1"] in ("leaving", "down")
    finally:
        async with asyncio.timeout(30):
            while cluster.pid("spine-1") is not None:
                await asyncio.sleep(0.01)
        await cluster.bring_back("spine-1")
    await until(lambda: all_up(cluster), 40)
